//! Writes OFFER, ACK, NAK and BOOTREPLY: fixed fields and options (RFC 2131 §4.3.1 table 3).
//!
//! ```text
//! 53, 54, 51 58 59, 80, 1 | 60 43 125 210 | as option 55 lists them | what is always sent | 118 97 61 67 0 82
//! ```
//!
//! The mask stands before the router (RFC 2132 §3.3). What the client asks for comes in its order (§9.8), and a short
//! message loses the end of it: first `sname`, then `file` take what does not fit (option 52), if no name stands
//! there. The echoes have their room from the start: 97 (RFC 4578 §2.3), 61 (RFC 6842) and, last of the options
//! field, 82 (RFC 3046 §2.2). Before it stands the boot file's name with a NUL behind it: firmware that does not look at
//! an option's length reads on to a NUL, and would ask for `lpxelinux.0a` and a control character.

use std::net::Ipv4Addr;

use wire::dhcp4::{
    FLAG_BROADCAST, Header, LeaseTimes, MessageType, OP_REPLY, OVERLOAD_FILE, OVERLOAD_SNAME, View,
    WriteError, Writer, code, payload_limit,
};

use crate::config::{BootReply, Link, Reservation, Subnet};
use crate::counters::{Counters, Drop, Sent};
use crate::options::{KNOWN, Scopes, Values};
use crate::relay;

/// What a reply gives the client.
pub(crate) struct Terms<'a> {
    pub kind: MessageType,
    /// yiaddr; unspecified in the ACK of an INFORM.
    pub address: Ipv4Addr,
    pub subnet: &'a Subnet,
    /// The client's reservation, whose options and lease go before all others.
    pub host: Option<&'a Reservation>,
    /// Option 54: the rack's address on the link, or what a relay puts in its place (RFC 5107).
    pub server_id: Ipv4Addr,
    /// None for INFORM.
    pub lease_secs: Option<u32>,
    /// Option 12 if asked for. "" for none.
    pub hostname: &'a str,
    /// An ACK for a DISCOVER (RFC 4039).
    pub rapid: bool,
}

impl<'a> Terms<'a> {
    fn values(&self, query: &View<'_>, link: &'a Link, boot: &'a BootReply<'a>) -> Values<'a> {
        let address = match self.address {
            none if none.is_unspecified() => query.ciaddr(),
            address => address,
        };
        Values {
            scopes: Scopes::of(self.host, self.subnet, address),
            link,
            subnet: self.subnet,
            boot,
            hostname: self.hostname,
        }
    }
}

/// A written message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub length: usize,
    /// Position of the lease times; 0 if there are none.
    pub times_at: usize,
}

/// Writes an OFFER or ACK.
pub(crate) fn write<'a>(
    query: &View<'_>,
    link: &'a Link,
    boot: &'a BootReply<'a>,
    terms: &Terms<'a>,
    counters: &mut Counters,
    buffer: &mut [u8],
) -> Result<Written, Drop> {
    let values = terms.values(query, link, boot);
    let file = values.boot_file();
    let mut header = answer_header(query);
    if terms.kind == MessageType::Ack {
        header.ciaddr = query.header().ciaddr;
    }
    header.yiaddr = terms.address.octets();
    fill_boot(&mut header, boot, file);

    let in_field = header.file[0] != 0;
    // A loader's name stays where every firmware looks for it.
    let wider = match in_field {
        true => &[OVERLOAD_SNAME][..],
        false => &[OVERLOAD_SNAME, OVERLOAD_FILE | OVERLOAD_SNAME],
    };
    let mut tail = Tail::of(query, Some(link)).named(sent_name(query, &values, in_field));
    let attempt = |tail: &Tail<'_>, overload, buffer: &mut [u8]| {
        compose(query, terms, &values, &header, tail, overload, buffer)
    };
    let mut first = attempt(&tail, 0, buffer);
    if matches!(first, Err(Drop::ReplyTooLong)) && tail.leave_out_relay(counters) {
        first = attempt(&tail, 0, buffer);
    }
    let mut lacks_name = false;
    if matches!(first, Err(Drop::ReplyTooLong)) && in_field {
        lacks_name = !std::mem::take(&mut tail.boot_name).is_empty();
        first = attempt(&tail, 0, buffer);
    }
    let (mut written, mut left_out) = first?;
    for overload in wider {
        if left_out == 0 {
            break;
        }
        let wide = attempt(&tail, *overload, buffer);
        (written, left_out) = wide.or_else(|_| attempt(&tail, 0, buffer))?;
    }
    if left_out > 0 || lacks_name {
        counters.count(Sent::OptionLeftOut);
    }
    Ok(written)
}

/// What option 67 says: where the field does not hold the name, where the client asks for it, and where an operator has it
/// sent always.
fn sent_name<'a>(query: &View<'_>, values: &Values<'a>, in_field: bool) -> &'a [u8] {
    let is_asked = query
        .parameter_list()
        .is_none_or(|list| list.contains(&code::BOOTFILE));
    let closest = values.scopes.find(code::BOOTFILE);
    match !in_field || is_asked || closest.is_some_and(|option| option.always) {
        true => values.boot_name(),
        false => &[],
    }
}

/// One attempt at a message; gives how many options did not fit.
fn compose(
    query: &View<'_>,
    terms: &Terms<'_>,
    values: &Values<'_>,
    header: &Header,
    tail: &Tail<'_>,
    overload: u8,
    buffer: &mut [u8],
) -> Result<(Written, usize), Drop> {
    let limit = payload_limit(query.message_bytes_max(), values.link.mtu);
    let mut writer =
        Writer::new(buffer, limit, header, terms.kind).map_err(|_| Drop::ReplyTooLong)?;
    let asked = query.parameter_list();

    let mut must = || -> Result<usize, WriteError> {
        writer.address(code::SERVER_ID, terms.server_id)?;
        let times_at = match terms.lease_secs {
            Some(secs) => writer.lease_times(LeaseTimes::of(secs))?,
            None => 0,
        };
        if overload > 0 {
            writer.overload(overload)?;
        }
        if terms.rapid {
            writer.option(code::RAPID_COMMIT, &[])?;
        }
        values.write(code::SUBNET_MASK, &mut writer)?;
        writer.reserve(tail.bytes())?;
        for code in FORCED {
            values.write(code, &mut writer)?;
        }
        Ok(times_at)
    };
    let times_at = must().map_err(|_| Drop::ReplyTooLong)?;

    let mut done = Done::default();
    for code in FORCED
        .into_iter()
        .chain([code::SUBNET_MASK, code::BOOTFILE])
    {
        done.insert(code);
    }
    let mut left_out = 0;
    let mut may = |code: u8, done: &mut Done, writer: &mut Writer<'_>| {
        if done.insert(code) {
            left_out += usize::from(values.write(code, writer).is_err());
        }
    };
    // RFC 2132 §9.8: in the order of the client. One that lists nothing gets everything there is.
    for code in asked.unwrap_or(&KNOWN) {
        may(*code, &mut done, &mut writer);
    }
    for option in values.scopes.iter() {
        // The closest scope decides whether it is sent unasked.
        let closest = values.scopes.find(option.code);
        if asked.is_none() || closest.is_some_and(|option| option.always) {
            may(option.code, &mut done, &mut writer);
        }
    }
    tail.write(&mut writer)?;
    let length = writer.finish();
    Ok((Written { length, times_at }, left_out))
}

/// Sent whether asked for or not, where there is a value: HTTP boot insists on its class, PXE on its options, ONIE on
/// its installer, lpxelinux on its prefix.
const FORCED: [u8; 4] = [
    code::VENDOR_CLASS,
    code::VENDOR_OPTIONS,
    code::VENDOR_IDENTIFYING,
    code::PATH_PREFIX,
];

/// Which options a message has had its chance for.
#[derive(Default)]
struct Done([u64; 4]);

impl Done {
    /// False if it was there before: each option is sent once (RFC 2131 §4.3.1).
    fn insert(&mut self, code: u8) -> bool {
        let (word, bit) = (&mut self.0[usize::from(code >> 6)], 1 << (code & 63));
        let new = *word & bit == 0;
        *word |= bit;
        new
    }
}

/// Writes a NAK: no addresses, and the broadcast flag where a relay has to deliver it (RFC 2131 §4.3.2).
pub(crate) fn write_nak(
    query: &View<'_>,
    server_id: Ipv4Addr,
    why: &str,
    counters: &mut Counters,
    buffer: &mut [u8],
) -> Result<usize, Drop> {
    let mut header = answer_header(query);
    if !query.giaddr().is_unspecified() {
        header.flags.set(query.flags() | FLAG_BROADCAST);
    }
    let limit = payload_limit(None, 1500);
    let mut writer =
        Writer::new(buffer, limit, &header, MessageType::Nak).map_err(|_| Drop::ReplyTooLong)?;
    let mut tail = Tail::of(query, None);
    writer
        .address(code::SERVER_ID, server_id)
        .and_then(|()| writer.option(code::MESSAGE, why.as_bytes()))
        .map_err(|_| Drop::ReplyTooLong)?;
    if tail.bytes() > writer.room() {
        tail.leave_out_relay(counters);
    }
    writer
        .reserve(tail.bytes())
        .map_err(|_| Drop::ReplyTooLong)?;
    tail.write(&mut writer)?;
    Ok(writer.finish())
}

/// Writes a BOOTREPLY (RFC 951, RFC 1534): the vendor field of 64 octets holds what fits of it.
pub(crate) fn write_bootp<'a>(
    query: &View<'_>,
    link: &'a Link,
    boot: &'a BootReply<'a>,
    terms: &Terms<'a>,
    counters: &mut Counters,
    buffer: &mut [u8],
) -> Result<usize, Drop> {
    let values = terms.values(query, link, boot);
    let mut header = answer_header(query);
    header.ciaddr = query.header().ciaddr;
    header.yiaddr = terms.address.octets();
    fill_boot(&mut header, boot, values.boot_file());
    let tail = Tail {
        relay_info: query.relay_info(),
        ..Tail::default()
    };
    let mut writer =
        Writer::bootp(buffer, &header, tail.bytes()).map_err(|_| Drop::ReplyTooLong)?;
    let mut left_out = false;
    writer
        .reserve(tail.bytes())
        .map_err(|_| Drop::ReplyTooLong)?;
    // The file's name stands in its field, or nowhere: a BOOTP client knows no option 67.
    for code in [code::SUBNET_MASK].iter().chain(&KNOWN[1..]) {
        left_out |= values.write(*code, &mut writer).is_err();
    }
    if left_out {
        counters.count(Sent::OptionLeftOut);
    }
    tail.write(&mut writer)?;
    Ok(writer.finish())
}

/// siaddr, and the name of the boot file where it fits its field with a NUL at its end.
pub(crate) fn fill_boot(header: &mut Header, boot: &BootReply<'_>, file: &[u8]) {
    if let Some(server) = boot.next_server {
        header.siaddr = server.octets();
    }
    if file.len() < header.file.len() {
        header.file[..file.len()].copy_from_slice(file);
    }
}

/// The fields that every answer takes from its query.
pub(crate) fn answer_header(query: &View<'_>) -> Header {
    let asked = query.header();
    let mut header = Header::new(OP_REPLY);
    header.htype = asked.htype;
    header.hlen = asked.hlen;
    header.xid = asked.xid;
    header.flags = asked.flags;
    header.giaddr = asked.giaddr;
    header.chaddr = asked.chaddr;
    header
}

/// The echoed options and the boot file's name. Room for them is kept from the start; the relay's comes last.
#[derive(Default)]
pub(crate) struct Tail<'a> {
    /// Option 67; empty for none.
    boot_name: &'a [u8],
    subnet_selection: Option<&'a [u8]>,
    machine_uuid: Option<&'a [u8]>,
    client_id: Option<&'a [u8]>,
    relay_info: Option<&'a [u8]>,
}

impl<'a> Tail<'a> {
    /// Option 118 comes back from where `link` has the subnet it names (RFC 3011 §2).
    pub fn of(query: &View<'a>, link: Option<&Link>) -> Self {
        let selected = link.and_then(|link| relay::subnet_selection(query, link));
        Self {
            subnet_selection: selected.and_then(|_| query.option(code::SUBNET_SELECTION)),
            machine_uuid: query
                .option(code::MACHINE_UUID)
                .filter(|uuid| uuid.len() == 17),
            client_id: query.client_id(),
            relay_info: query.relay_info(),
            boot_name: &[],
        }
    }

    pub fn named(self, boot_name: &'a [u8]) -> Self {
        Self { boot_name, ..self }
    }

    /// A reply that cannot hold all of option 82 goes without it (RFC 3046 §2.2). False if there was none.
    pub fn leave_out_relay(&mut self, counters: &mut Counters) -> bool {
        let was = self.relay_info.take().is_some();
        if was {
            counters.count(Sent::RelayInfoLeftOut);
        }
        was
    }

    fn echoes(&self) -> [(u8, Option<&'a [u8]>); 3] {
        [
            (code::SUBNET_SELECTION, self.subnet_selection),
            (code::MACHINE_UUID, self.machine_uuid),
            (code::CLIENT_ID, self.client_id),
        ]
    }

    /// A long one takes two octets for each part.
    pub fn bytes(&self) -> usize {
        let echoes = self.echoes().into_iter().map(|(_, octets)| octets);
        let options = echoes.chain([self.relay_info]).flatten();
        let bytes = options.map(|octets| octets.len() + 2 * octets.len().div_ceil(255).max(1));
        bytes.sum::<usize>() + Writer::name_bytes(self.boot_name)
    }

    pub fn write(&self, writer: &mut Writer<'_>) -> Result<(), Drop> {
        writer.release(self.bytes());
        let mut put = || -> Result<(), WriteError> {
            for (code, octets) in self.echoes() {
                octets.map_or(Ok(()), |octets| writer.option(code, octets))?;
            }
            writer.name(code::BOOTFILE, self.boot_name)?;
            let relay = self.relay_info;
            relay.map_or(Ok(()), |octets| writer.option(code::RELAY_INFO, octets))
        };
        put().map_err(|_| Drop::ReplyTooLong)
    }
}
