//! Writes OFFER, ACK and NAK: fixed fields and options (RFC 2131 §4.3.1 table 3).
//!
//! Always there: 53, 54, 1 and (but for INFORM) 51, 58, 59; the echoes of 61 (RFC 6842), 97 (RFC 4578 §2.3) and,
//! last, 82 (RFC 3046 §2.2). The rest only where the client asks for it (option 55), in an order of our own:
//! what a boot needs comes first, so that a short message loses the least.

use std::net::Ipv4Addr;

use wire::dhcp4::{
    FLAG_BROADCAST, Header, LeaseTimes, MessageType, OP_REPLY, View, Writer, code, payload_limit,
};

use crate::config::{BootReply, Link, Subnet};
use crate::counters::{Counters, Drop, Sent};

/// What a reply gives the client.
pub(crate) struct Terms<'a> {
    pub kind: MessageType,
    /// yiaddr; unspecified in the ACK of an INFORM.
    pub address: Ipv4Addr,
    pub subnet: &'a Subnet,
    /// None for INFORM.
    pub lease_secs: Option<u32>,
    /// Option 12 if asked for. "" for none.
    pub hostname: &'a str,
}

/// A written message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Written {
    pub length: usize,
    /// Position of the lease times; 0 if there are none.
    pub times_at: usize,
}

/// Writes an OFFER or ACK.
pub(crate) fn write(
    query: &View<'_>,
    link: &Link,
    boot: &BootReply<'_>,
    terms: &Terms<'_>,
    counters: &mut Counters,
    buffer: &mut [u8],
) -> Result<Written, Drop> {
    let mut header = answer_header(query);
    if terms.kind == MessageType::Ack {
        header.ciaddr = query.header().ciaddr;
    }
    header.yiaddr = terms.address.octets();
    if let Some(server) = boot.next_server {
        header.siaddr = server.octets();
    }
    // The field keeps a NUL at its end.
    let file_fits = boot.file.len() < header.file.len();
    if file_fits {
        header.file[..boot.file.len()].copy_from_slice(boot.file.as_bytes());
    }

    let limit = payload_limit(query.message_bytes_max(), link.mtu);
    let mut writer =
        Writer::new(buffer, limit, &header, terms.kind).map_err(|_| Drop::ReplyTooLong)?;
    let tail = Tail::of(query);
    let mut must = || -> Result<usize, wire::dhcp4::WriteError> {
        writer.address(code::SERVER_ID, link.server)?;
        let times_at = match terms.lease_secs {
            Some(secs) => writer.lease_times(LeaseTimes::of(secs))?,
            None => 0,
        };
        writer.address(code::SUBNET_MASK, terms.subnet.net.netmask())?;
        writer.reserve(tail.bytes())?;
        if let Some(class) = boot.vendor_class {
            writer.option(code::VENDOR_CLASS, class)?;
        }
        if let Some(prefix) = boot.path_prefix {
            writer.option(code::PATH_PREFIX, prefix.as_bytes())?;
        }
        Ok(times_at)
    };
    let times_at = must().map_err(|_| Drop::ReplyTooLong)?;

    let asked = query.parameter_list();
    let wants = |code: u8| asked.is_none_or(|list| list.contains(&code));
    let subnet = terms.subnet;
    let mut left_out = false;
    let mut may = |result: Result<(), wire::dhcp4::WriteError>| left_out |= result.is_err();
    if !boot.file.is_empty() && (wants(code::BOOTFILE) || !file_fits) {
        may(writer.option(code::BOOTFILE, boot.file.as_bytes()));
    }
    if let Some(server) = boot.next_server
        && asked.is_some_and(|list| list.contains(&code::TFTP_SERVER))
    {
        let mut text = [0; 15];
        may(writer.option(code::TFTP_SERVER, dotted(server, &mut text)));
    }
    if let Some(options) = boot.vendor_options {
        may(writer.option(code::VENDOR_OPTIONS, options));
    }
    if let Some(gateway) = subnet.gateway
        && wants(code::ROUTERS)
    {
        may(writer.address(code::ROUTERS, gateway));
    }
    if wants(code::DNS_SERVERS) {
        may(writer.addresses(code::DNS_SERVERS, &subnet.dns));
    }
    if link.mtu != 1500 && wants(code::INTERFACE_MTU) {
        may(writer.option(code::INTERFACE_MTU, &link.mtu.to_be_bytes()));
    }
    if wants(code::BROADCAST_ADDRESS) {
        may(writer.address(code::BROADCAST_ADDRESS, subnet.net.broadcast()));
    }
    if !terms.hostname.is_empty() && wants(code::HOSTNAME) {
        may(writer.option(code::HOSTNAME, terms.hostname.as_bytes()));
    }
    if !subnet.domain.is_empty() {
        if wants(code::DOMAIN) {
            may(writer.option(code::DOMAIN, subnet.domain.as_bytes()));
        }
        let mut labels = [0; 255];
        if wants(code::DOMAIN_SEARCH)
            && let Some(labels) = encode_domain(&subnet.domain, &mut labels)
        {
            may(writer.option(code::DOMAIN_SEARCH, labels));
        }
    }
    if wants(code::NTP_SERVERS) {
        may(writer.addresses(code::NTP_SERVERS, &subnet.ntp));
    }
    if left_out {
        counters.count(Sent::OptionLeftOut);
    }
    tail.write(&mut writer)?;
    Ok(Written {
        length: writer.finish(),
        times_at,
    })
}

/// Writes a NAK: no addresses, and the broadcast flag where a relay has to deliver it (RFC 2131 §4.3.2).
pub(crate) fn write_nak(
    query: &View<'_>,
    server: Ipv4Addr,
    why: &str,
    buffer: &mut [u8],
) -> Result<usize, Drop> {
    let mut header = answer_header(query);
    if !query.giaddr().is_unspecified() {
        header.flags.set(query.flags() | FLAG_BROADCAST);
    }
    let limit = payload_limit(None, 1500);
    let mut writer =
        Writer::new(buffer, limit, &header, MessageType::Nak).map_err(|_| Drop::ReplyTooLong)?;
    let tail = Tail::of(query);
    writer
        .address(code::SERVER_ID, server)
        .and_then(|()| writer.reserve(tail.bytes()))
        .and_then(|()| writer.option(code::MESSAGE, why.as_bytes()))
        .map_err(|_| Drop::ReplyTooLong)?;
    tail.write(&mut writer)?;
    Ok(writer.finish())
}

/// The fields that every answer takes from its query.
fn answer_header(query: &View<'_>) -> Header {
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

/// The echoed options. Room for them is kept from the start; the relay's comes last.
struct Tail<'a> {
    machine_uuid: Option<&'a [u8]>,
    client_id: Option<&'a [u8]>,
    relay_info: Option<&'a [u8]>,
}

impl<'a> Tail<'a> {
    fn of(query: &View<'a>) -> Self {
        Self {
            machine_uuid: query
                .option(code::MACHINE_UUID)
                .filter(|uuid| uuid.len() == 17),
            client_id: query.client_id(),
            relay_info: query.relay_info(),
        }
    }

    fn options(&self) -> impl Iterator<Item = (u8, &'a [u8])> {
        [
            (code::MACHINE_UUID, self.machine_uuid),
            (code::CLIENT_ID, self.client_id),
            (code::RELAY_INFO, self.relay_info),
        ]
        .into_iter()
        .filter_map(|(code, octets)| Some((code, octets?)))
    }

    /// At most 3 x 257: each comes from one received option.
    fn bytes(&self) -> usize {
        self.options().map(|(_, octets)| octets.len() + 2).sum()
    }

    fn write(&self, writer: &mut Writer<'_>) -> Result<(), Drop> {
        writer.release(self.bytes());
        for (code, octets) in self.options() {
            writer
                .option(code, octets)
                .map_err(|_| Drop::ReplyTooLong)?;
        }
        Ok(())
    }
}

/// `10.99.0.1` without an allocation.
fn dotted(address: Ipv4Addr, text: &mut [u8; 15]) -> &[u8] {
    use std::io::Write;
    let room = text.len();
    let mut rest = &mut text[..];
    // Fifteen octets hold every dotted quad.
    let left = write!(rest, "{address}").map_or(room, |()| rest.len());
    &text[..room - left]
}

/// A domain name as DNS labels (RFC 3397 §2, without compression). None if it is not a valid name.
fn encode_domain<'a>(domain: &str, labels: &'a mut [u8; 255]) -> Option<&'a [u8]> {
    let mut length = 0;
    for label in domain.trim_end_matches('.').split('.') {
        let bytes = u8::try_from(label.len())
            .ok()
            .filter(|bytes| (1..=63).contains(bytes))?;
        let end = length + 1 + label.len();
        let place = labels.get_mut(length..end)?;
        place[0] = bytes;
        place[1..].copy_from_slice(label.as_bytes());
        length = end;
    }
    *labels.get_mut(length)? = 0;
    Some(&labels[..=length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_become_labels() {
        let cases: [(&str, Option<&[u8]>); 6] = [
            ("maas", Some(b"\x04maas\0")),
            ("lab.example.", Some(b"\x03lab\x07example\0")),
            ("", None),
            ("a..b", None),
            (&"x".repeat(64), None),
            (&("x".repeat(63) + ".").repeat(4), None),
        ];
        for (domain, want) in cases {
            assert_eq!(encode_domain(domain, &mut [0; 255]), want, "{domain}");
        }
    }

    #[test]
    fn every_quad_fits() {
        for address in [
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(10, 99, 0, 1),
        ] {
            assert_eq!(
                dotted(address, &mut [0; 15]),
                address.to_string().as_bytes()
            );
        }
    }
}
