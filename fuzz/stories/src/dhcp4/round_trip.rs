//! A message through both codecs: dhcproto writes, we read and write again, dhcproto reads the same.

use std::net::Ipv4Addr;

use arbitrary::Unstructured;
use dhcproto::v4::relay::{RelayAgentInformation, RelayInfo, UnknownInfo};
use dhcproto::v4::{self, DhcpOption, OptionCode, UnknownOption};
use dhcproto::{Decodable, Encodable};
use wire::dhcp4::{Joined, MESSAGE_BYTES_MIN, View, Writer, code};

use crate::{octets, one_of, pick};

/// More would not make a message different.
const OPTIONS_MAX: u32 = 24;
/// Longer than any message generated here.
const BUFFER_BYTES: usize = 64 * 1024;
/// Not one of those that are generated.
const LAST: u8 = 230;

/// A message of any fields and options, well-formed: copied whole, and into as little room as a client may leave.
pub fn dhcp4_round_trip(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let tight = Tight::arbitrary(&mut input);
    let message = message(&mut input);
    let octets = message.to_vec().expect("every field fits");
    let view = View::parse(&octets).expect("dhcproto writes no faults");
    assert_eq!(
        view.message_type().map(|kind| kind as u8),
        message.opts().msg_type().map(u8::from)
    );
    let options = options(&view, octets.len());
    whole(&view, &octets, &options);
    tight.copy(&view, &options);
}

/// Every option but 53, parts put together.
fn options(view: &View<'_>, message_bytes: usize) -> Vec<(u8, Vec<u8>)> {
    let mut scratch = vec![0; message_bytes];
    let mut options: Vec<(u8, Vec<u8>)> = vec![];
    for (code, _) in view.options() {
        if code != code::MESSAGE_TYPE && options.iter().all(|(known, _)| *known != code) {
            let value = view.option_joined(code, &mut scratch);
            let value = value.expect("the scratch is as long as the message");
            options.push((code, value.to_vec()));
        }
    }
    options
}

/// With room for everything dhcproto reads the same.
fn whole(view: &View<'_>, octets: &[u8], all: &[(u8, Vec<u8>)]) {
    let mut buffer = vec![0; BUFFER_BYTES];
    let kind = view.message_type().expect("compared by the caller");
    let mut writer = Writer::new(&mut buffer, BUFFER_BYTES, view.header(), kind)
        .expect("the buffer is longer than the shortest message");
    for (code, value) in all {
        writer.option(*code, value).expect("the buffer is longer");
    }
    let length = writer.finish();
    let again = View::parse(&buffer[..length]).expect("we write no faults");
    assert_eq!(options(&again, length), all);
    let decode = |octets| v4::Message::from_bytes(octets).expect("240 octets are all it asks for");
    assert_eq!(decode(octets), decode(&buffer[..length]));
}

/// What a client and a relay leave for options.
struct Tight {
    limit: usize,
    /// Bits of option 52.
    overload: u8,
    /// Kept for what comes last.
    last: usize,
}

impl Tight {
    fn arbitrary(input: &mut Unstructured<'_>) -> Self {
        Self {
            limit: MESSAGE_BYTES_MIN + pick(input, 700) as usize,
            overload: pick(input, 4) as u8,
            last: pick(input, 40) as usize,
        }
    }

    /// What was taken stands there, what was refused does not, and what comes last has its room.
    fn copy(&self, view: &View<'_>, options: &[(u8, Vec<u8>)]) {
        let mut buffer = vec![0xaa; self.limit];
        let kind = view.message_type().expect("compared by the caller");
        let mut writer = Writer::new(&mut buffer, self.limit, view.header(), kind)
            .expect("room for the shortest message");
        if self.overload > 0 {
            let opened = writer.overload(self.overload);
            opened.expect("the shortest message has room for option 52");
        }
        let last = vec![7; self.last];
        let kept = writer.reserve(self.last + 2);
        kept.expect("the shortest message has room for it");
        let mut taken: Vec<&(u8, Vec<u8>)> = vec![];
        for option in options {
            // In `file` or `sname` it would not count: replies keep its room in the options field.
            if option.0 == code::RELAY_INFO {
                continue;
            }
            if writer.option(option.0, &option.1).is_ok() {
                taken.push(option);
            }
        }
        writer.release(self.last + 2);
        writer.option(LAST, &last).expect("its room was kept");
        let length = writer.finish();
        assert!((MESSAGE_BYTES_MIN..=self.limit).contains(&length));

        let copy = View::parse(&buffer[..length]).expect("we write no faults");
        let mut room = Joined::default();
        let copy = copy.joined(&mut room).expect("short enough");
        assert_eq!(copy.message_type(), view.message_type());
        assert_eq!(copy.option(LAST), Some(&last[..]));
        for (code, value) in &taken {
            assert_eq!(copy.option(*code), Some(&value[..]), "option {code}");
        }
        // 53, 52 and the last one beside them.
        let own = 2 + usize::from(self.overload > 0);
        assert_eq!(copy.options().count(), taken.len() + own);
        let (file, sname) = (self.overload & 1 != 0, self.overload & 2 != 0);
        assert_eq!(copy.file(), if file { &[] } else { view.file() });
        assert_eq!(copy.sname(), if sname { &[] } else { view.sname() });
    }
}

fn address(input: &mut Unstructured<'_>) -> Ipv4Addr {
    Ipv4Addr::from(input.arbitrary::<u32>().unwrap_or_default())
}

fn addresses(input: &mut Unstructured<'_>) -> Vec<Ipv4Addr> {
    (0..pick(input, 70)).map(|_| address(input)).collect()
}

fn bytes(input: &mut Unstructured<'_>) -> Vec<u8> {
    let most = one_of(input, &[4, 20, 255, 256, 600]);
    let count = pick(input, most + 1) as usize;
    octets(input, count).to_vec()
}

fn text(input: &mut Unstructured<'_>) -> String {
    String::from_utf8_lossy(&bytes(input)).into_owned()
}

/// Without its last octet: the field keeps a NUL at its end, else dhcproto reads it as empty.
fn name(input: &mut Unstructured<'_>, field_bytes: usize) -> Vec<u8> {
    let mut name = bytes(input);
    name.truncate(field_bytes - 1);
    name
}

fn message(input: &mut Unstructured<'_>) -> v4::Message {
    let mut message = v4::Message::default();
    let number = |input: &mut Unstructured<'_>| input.arbitrary::<u32>().unwrap_or_default();
    message
        .set_opcode((number(input) as u8).into())
        .set_htype((number(input) as u8).into())
        .set_hops(number(input) as u8)
        .set_xid(number(input))
        .set_secs(number(input) as u16)
        .set_flags((number(input) as u16).into())
        .set_ciaddr(address(input))
        .set_yiaddr(address(input))
        .set_siaddr(address(input))
        .set_giaddr(address(input));
    let hlen = pick(input, 17) as usize;
    message.set_chaddr(octets(input, hlen));
    if pick(input, 2) == 1 {
        message.set_sname(&name(input, 64));
    }
    if pick(input, 2) == 1 {
        message.set_fname(&name(input, 128));
    }
    let kind = one_of(input, &[1, 2, 3, 4, 5, 6, 7, 8]);
    for _ in 0..pick(input, OPTIONS_MAX) {
        let option = option(input);
        message.opts_mut().insert(option);
    }
    message
        .opts_mut()
        .insert(DhcpOption::MessageType(v4::MessageType::from(kind)));
    message
}

fn option(input: &mut Unstructured<'_>) -> DhcpOption {
    let number = |input: &mut Unstructured<'_>| input.arbitrary::<u32>().unwrap_or_default();
    match pick(input, 27) {
        0 => DhcpOption::SubnetMask(address(input)),
        1 => DhcpOption::Router(addresses(input)),
        2 => DhcpOption::DomainNameServer(addresses(input)),
        3 => DhcpOption::NtpServers(addresses(input)),
        4 => DhcpOption::Hostname(text(input)),
        5 => DhcpOption::DomainName(text(input)),
        6 => DhcpOption::InterfaceMtu(number(input) as u16),
        7 => DhcpOption::BroadcastAddr(address(input)),
        8 => DhcpOption::VendorExtensions(bytes(input)),
        9 => DhcpOption::RequestedIpAddress(address(input)),
        10 => DhcpOption::AddressLeaseTime(number(input)),
        11 => DhcpOption::ServerIdentifier(address(input)),
        12 => DhcpOption::ParameterRequestList(bytes(input).into_iter().map(Into::into).collect()),
        13 => DhcpOption::Message(text(input)),
        14 => DhcpOption::MaxMessageSize(number(input) as u16),
        15 => DhcpOption::Renewal(number(input)),
        16 => DhcpOption::Rebinding(number(input)),
        17 => DhcpOption::ClassIdentifier(bytes(input)),
        18 => DhcpOption::ClientIdentifier(bytes(input)),
        19 => DhcpOption::TFTPServerName(bytes(input)),
        20 => DhcpOption::BootfileName(bytes(input)),
        21 => DhcpOption::UserClass(bytes(input)),
        22 => DhcpOption::RapidCommit,
        23 => DhcpOption::ClientSystemArchitecture((number(input) as u16).into()),
        24 => DhcpOption::ClientMachineIdentifier(bytes(input)),
        25 => DhcpOption::RelayAgentInformation(relay(input)),
        _ => unknown(input),
    }
}

/// A code that dhcproto has no type for: it would not check a typed one's length when it writes it.
fn unknown(input: &mut Unstructured<'_>) -> DhcpOption {
    let code = one_of(input, &[78, 99, 175, 209, 210, 224, 254]);
    let mut value = bytes(input);
    value.truncate(255);
    match OptionCode::from(code) {
        code @ OptionCode::Unknown(_) => DhcpOption::Unknown(UnknownOption::new(code, value)),
        known => unreachable!("dhcproto has learned {known:?}"),
    }
}

fn relay(input: &mut Unstructured<'_>) -> RelayAgentInformation {
    let mut info = RelayAgentInformation::default();
    // All of it fits one option: dhcproto does not split this one.
    let short = |input: &mut Unstructured<'_>| {
        let mut value = bytes(input);
        value.truncate(60);
        value
    };
    if pick(input, 2) == 1 {
        info.insert(RelayInfo::AgentCircuitId(short(input)));
    }
    if pick(input, 2) == 1 {
        info.insert(RelayInfo::AgentRemoteId(short(input)));
    }
    if pick(input, 2) == 1 {
        info.insert(RelayInfo::LinkSelection(address(input)));
    }
    if pick(input, 2) == 1 {
        info.insert(RelayInfo::ServerIdentifierOverride(address(input)));
    }
    if pick(input, 2) == 1 {
        info.insert(RelayInfo::Unknown(UnknownInfo::new(
            200.into(),
            short(input),
        )));
    }
    info
}
