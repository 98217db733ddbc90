//! The DHCPv4 codec against dhcproto: what both read alike, and what is refused for a cause.

mod round_trip;

use std::collections::{BTreeMap, BTreeSet};

use dhcproto::v4::{self, borrowed};
use dhcproto::{Decodable, Decoder};
use wire::dhcp4::{HEADER_BYTES, JOINED_BYTES_MAX, Joined, ParseError, View, code};

pub use self::round_trip::dhcp4_round_trip;

const MAGIC: [u8; 4] = v4::MAGIC;
/// Where `sname`, `file` and the magic cookie stand (RFC 2131 figure 1).
const SNAME: std::ops::Range<usize> = 44..108;
const FILE: std::ops::Range<usize> = 108..236;
const COOKIE: std::ops::Range<usize> = 236..240;

/// Any octets: no panic, and every reading as dhcproto reads it; what is refused has a fault dhcproto sees too, or
/// one listed in DIFFERENCES.md.
pub fn dhcp4_parse(octets: &[u8]) {
    match View::parse(octets) {
        Ok(view) => {
            read_everything(&view);
            reads_as_dhcproto(&view, octets);
            let mut room = Joined::default();
            match view.joined(&mut room) {
                Ok(joined) => {
                    read_everything(&joined);
                    joins(&view, &joined);
                }
                Err(error) => {
                    let in_all: usize = view.options().map(|(_, octets)| octets.len()).sum();
                    assert_eq!(error, ParseError::OptionsTooLong);
                    assert!(in_all > JOINED_BYTES_MAX);
                }
            }
        }
        Err(error) => assert!(
            has_fault(octets),
            "{error}, and dhcproto sees no fault in {octets:02x?}"
        ),
    }
}

/// Asks for all there is; the answers are looked at elsewhere.
fn read_everything(view: &View<'_>) {
    let mut scratch = [0; 512];
    let codes: BTreeSet<u8> = view.options().map(|(code, _)| code).collect();
    for code in codes {
        let first = view.option(code).map(<[u8]>::len);
        let joined = view.option_joined(code, &mut scratch).map(<[u8]>::len);
        assert!(joined.is_none_or(|joined| Some(joined) >= first));
    }
    for (code, octets) in view.options() {
        assert!(code != code::PAD && code != code::END);
        assert!(octets.len() <= JOINED_BYTES_MAX);
    }
    let _ = (view.message_type(), view.is_request(), view.is_bootp());
    let _ = (view.broadcast(), view.rapid_commit());
    let _ = view.subnet_selection();
    let _ = (view.requested_address(), view.server_id());
    let _ = (view.lease_secs(), view.message_bytes_max(), view.arch());
    let _ = (view.client_id(), view.relay_info(), view.parameter_list());
    let _ = (view.hostname(), view.vendor_class(), view.user_class());
    let _ = (view.machine_uuid(), view.mac(), view.htype());
    let _ = format!("{view:?}");
}

/// Options that came in parts are put together, but for those of fixed length, of which the first counts.
fn joins(view: &View<'_>, joined: &View<'_>) {
    let mut seen = BTreeSet::new();
    for (code, octets) in joined.options() {
        if !seen.insert(code) {
            assert!(FIXED.contains(&code), "option {code} twice");
            continue;
        }
        let mut scratch = vec![0; JOINED_BYTES_MAX];
        let whole = view.option_joined(code, &mut scratch);
        if FIXED.contains(&code) {
            assert_eq!(joined.option(code), view.option(code));
        } else {
            assert_eq!(whole, Some(octets), "option {code}");
        }
    }
    assert!(view.options().all(|(code, _)| seen.contains(&code)));
}

/// Codes of fixed length.
const FIXED: [u8; 10] = [50, 51, 52, 53, 54, 57, 58, 59, 80, 118];

// -------------------------------------------------------------------- what both read

fn reads_as_dhcproto(view: &View<'_>, octets: &[u8]) {
    let Ok(theirs) = borrowed::Message::new(octets) else {
        return; // shorter than a DHCP message: plain BOOTP is not dhcproto's business
    };
    assert_eq!(view.header().op, u8::from(theirs.opcode()));
    assert_eq!(view.htype(), u8::from(theirs.htype()));
    assert_eq!((view.hlen(), view.hops()), (theirs.hlen(), theirs.hops()));
    assert_eq!((view.xid(), view.secs()), (theirs.xid(), theirs.secs()));
    assert_eq!(view.flags(), u16::from(theirs.flags()));
    assert_eq!(view.ciaddr(), theirs.ciaddr());
    assert_eq!(view.yiaddr(), theirs.yiaddr());
    assert_eq!(view.siaddr(), theirs.siaddr());
    assert_eq!(view.giaddr(), theirs.giaddr());
    assert_eq!(view.chaddr(), theirs.chaddr());
    if octets[COOKIE] != MAGIC {
        return;
    }
    // Two options 52, and one that is none of 1, 2, 3, have no meaning to agree on.
    let overload = match overload(octets) {
        Overload::None => 0,
        Overload::Bits(bits) => bits,
        Overload::Faulty => return,
    };
    let (in_file, in_sname) = (overload & 1 != 0, overload & 2 != 0);
    assert_eq!(view.file(), if in_file { &[] } else { theirs.fname() });
    assert_eq!(view.sname(), if in_sname { &[] } else { theirs.sname() });

    let mut fields = vec![&octets[HEADER_BYTES..]];
    fields.extend(in_file.then_some(&octets[FILE]));
    fields.extend(in_sname.then_some(&octets[SNAME]));
    let joined = their_options(&fields);
    let mut scratch = vec![0; octets.len()];
    for (code, octets) in &joined {
        let whole = view.option_joined(*code, &mut scratch);
        assert_eq!(whole, Some(&octets[..]), "option {code}");
    }
    let ours: BTreeSet<u8> = view.options().map(|(code, _)| code).collect();
    assert!(ours.iter().eq(joined.keys()));
    for (code, octets) in &joined {
        if view.options().filter(|(found, _)| found == code).count() == 1 {
            means_the_same(view, *code, octets);
        }
    }
    if dhcproto_can_decode(&octets[HEADER_BYTES..]) {
        let theirs = v4::Message::from_bytes(octets).expect("240 octets are all it asks for");
        for (code, _) in theirs.opts() {
            // dhcproto takes option 37 for 23.
            if *code == v4::OptionCode::DefaultIpTtl {
                continue;
            }
            assert!(view.option(u8::from(*code)).is_some(), "{code:?}");
        }
    }
}

/// Every option of these fields with its octets joined in order. dhcproto joins instances that stand side by side;
/// the rest of RFC 3396 §7 is added here.
fn their_options(fields: &[&[u8]]) -> BTreeMap<u8, Vec<u8>> {
    let mut joined: BTreeMap<u8, Vec<u8>> = BTreeMap::new();
    for (at, field) in fields.iter().enumerate() {
        for option in borrowed::DhcpOptionIterator::new(field) {
            // A relay's stands in the options field.
            if at > 0 && u8::from(option.code()) == code::RELAY_INFO {
                continue;
            }
            let octets = joined.entry(u8::from(option.code())).or_default();
            octets.extend_from_slice(option.data());
        }
    }
    joined
}

/// The typed reading of an option that stands there once, in the length its RFC gives.
fn means_the_same(view: &View<'_>, code: u8, octets: &[u8]) {
    use dhcproto::v4::DhcpOption as O;
    let fixed = match code {
        code::REQUESTED_ADDRESS | code::SERVER_ID | code::LEASE_TIME => 4,
        code::MESSAGE_TYPE => 1,
        code::MESSAGE_BYTES_MAX | code::CLIENT_ARCH => 2,
        code::CLIENT_ID | code::PARAMETER_LIST | code::HOSTNAME | code::VENDOR_CLASS => {
            octets.len()
        }
        code::USER_CLASS | code::RELAY_INFO => octets.len(),
        _ => return,
    };
    if octets.len() != fixed {
        return;
    }
    let wire = [&[code, octets.len() as u8], octets].concat();
    let Ok(theirs) = O::from_bytes(&wire) else {
        return; // a host name that is no UTF-8, a relay's sub-option cut short
    };
    match theirs {
        O::RequestedIpAddress(address) => assert_eq!(view.requested_address(), Some(address)),
        O::ServerIdentifier(address) => assert_eq!(view.server_id(), Some(address)),
        O::AddressLeaseTime(secs) => assert_eq!(view.lease_secs(), Some(secs)),
        O::MessageType(kind) => {
            let known = u8::from(kind);
            let known = (1..=8).contains(&known).then_some(known);
            assert_eq!(view.message_type().map(|kind| kind as u8), known);
        }
        O::MaxMessageSize(bytes) => assert_eq!(view.message_bytes_max(), Some(bytes)),
        O::ClientSystemArchitecture(arch) => assert_eq!(view.arch(), Some(u16::from(arch))),
        O::ClientIdentifier(id) => assert_eq!(view.client_id().unwrap_or_default(), id),
        O::ParameterRequestList(codes) => {
            let codes: Vec<u8> = codes.into_iter().map(u8::from).collect();
            assert_eq!(view.parameter_list().unwrap_or_default(), codes);
        }
        O::Hostname(name) => assert_eq!(view.hostname().unwrap_or_default(), name.as_bytes()),
        O::ClassIdentifier(class) => assert_eq!(view.vendor_class().unwrap_or_default(), class),
        O::UserClass(class) => assert_eq!(view.user_class().unwrap_or_default(), class),
        O::RelayAgentInformation(_) => assert_eq!(view.relay_info().unwrap_or_default(), octets),
        other => unreachable!("option {code} was decoded as {other:?}"),
    }
}

/// dhcproto asserts the length of these in debug builds instead of refusing them. Its parts are those side by side.
fn dhcproto_can_decode(options: &[u8]) -> bool {
    borrowed::DhcpOptionIterator::new(options).all(|option| match u8::from(option.code()) {
        80 => option.is_empty(),
        81 => option.len() >= 3,
        94 => option.len() == 3,
        152..=155 => option.len() == 4,
        _ => true,
    })
}

// -------------------------------------------------------------------- what is refused

/// Whether there is a reason to refuse a message.
fn has_fault(octets: &[u8]) -> bool {
    if octets.len() < HEADER_BYTES {
        assert!(v4::Message::from_bytes(octets).is_err());
        return true;
    }
    // Deliberate: dhcproto looks neither at the cookie nor at hlen.
    if octets[COOKIE] != MAGIC || octets[2] > 16 {
        return true;
    }
    let (in_file, in_sname) = match overload(octets) {
        Overload::None => (false, false),
        Overload::Bits(bits) => (bits & 1 != 0, bits & 2 != 0),
        Overload::Faulty => return true,
    };
    is_cut(&octets[HEADER_BYTES..])
        || (in_file && is_cut(&octets[FILE]))
        || (in_sname && is_cut(&octets[SNAME]))
}

/// Whether an option runs over the end of its field.
fn is_cut(field: &[u8]) -> bool {
    let mut decoder = Decoder::new(field);
    while let Ok(code) = decoder.read_u8() {
        match code {
            code::PAD => {}
            code::END => return false,
            _ => {
                let whole = decoder
                    .read_u8()
                    .and_then(|length| decoder.read_slice(length.into()).map(drop));
                if whole.is_err() {
                    return true;
                }
            }
        }
    }
    false
}

enum Overload {
    None,
    Bits(u8),
    /// Of another length or value than RFC 2132 §9.3 gives, or more than one.
    Faulty,
}

/// What option 52 of the options field says.
fn overload(octets: &[u8]) -> Overload {
    let mut found = borrowed::DhcpOptionIterator::new(&octets[HEADER_BYTES..])
        .filter(|option| u8::from(option.code()) == code::OVERLOAD);
    let Some(option) = found.next() else {
        return Overload::None;
    };
    match (option.data(), found.next()) {
        ([bits @ 1..=3], None) => Overload::Bits(*bits),
        _ => Overload::Faulty,
    }
}
