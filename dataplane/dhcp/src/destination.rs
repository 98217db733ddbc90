//! Where a reply goes (RFC 2131 §4.1).

use std::net::Ipv4Addr;

use wire::dhcp4::{CLIENT_PORT, MessageType, SERVER_PORT, View};
use wire::ethernet::Mac;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// Through the routing table, or broadcast on the link.
    Udp { ip: Ipv4Addr, port: u16 },
    /// The host can't answer ARP yet: a whole frame to its hardware address.
    Frame { mac: Mac, ip: Ipv4Addr, port: u16 },
}

impl Destination {
    pub const BROADCAST: Self = Self::Udp {
        ip: Ipv4Addr::BROADCAST,
        port: CLIENT_PORT,
    };

    pub fn ip(self) -> Ipv4Addr {
        match self {
            Self::Udp { ip, .. } | Self::Frame { ip, .. } => ip,
        }
    }

    pub fn port(self) -> u16 {
        match self {
            Self::Udp { port, .. } | Self::Frame { port, .. } => port,
        }
    }
}

/// Where the reply to `query` goes (RFC 2131 §4.1). First matching row wins.
///
/// | giaddr | reply | ciaddr | broadcast | destination                               |
/// |--------|-------|--------|-----------|-------------------------------------------|
/// | set    | any   | any    | any       | giaddr, UDP port 67                       |
/// | 0      | NAK   | any    | any       | 255.255.255.255, port 68                  |
/// | 0      | other | yiaddr | any       | ciaddr, port 68                           |
/// | 0      | other | else   | set       | 255.255.255.255, port 68                  |
/// | 0      | other | else   | clear     | `yiaddr`, port 68, framed to `chaddr`     |
///
/// `yiaddr` is the address in the reply. A ciaddr that is another one is not the client's (tables 4 and 5 want 0 there):
/// the reply would be lost, or hit whoever has it. A client without a MAC gets a broadcast in the last row (RFC 4390 §2.1), as
/// does one whose chaddr is no single station's.
pub fn reply_destination(query: &View<'_>, reply: MessageType, yiaddr: Ipv4Addr) -> Destination {
    if !query.giaddr().is_unspecified() {
        Destination::Udp {
            ip: query.giaddr(),
            port: SERVER_PORT,
        }
    } else if reply == MessageType::Nak {
        Destination::BROADCAST
    } else if !yiaddr.is_unspecified() && query.ciaddr() == yiaddr {
        Destination::Udp {
            ip: query.ciaddr(),
            port: CLIENT_PORT,
        }
    } else if query.broadcast() {
        Destination::BROADCAST
    } else if let Some(mac) = query.mac().filter(|mac| mac.is_unicast()) {
        Destination::Frame {
            mac,
            ip: yiaddr,
            port: CLIENT_PORT,
        }
    } else {
        Destination::BROADCAST
    }
}

#[cfg(test)]
mod tests {
    use MessageType::{Ack, Nak, Offer};
    use wire::dhcp4::{FLAG_BROADCAST, Header, OP_REQUEST, Writer};

    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0, 1, 5]);

    #[test]
    fn reply_goes_where_the_rfc_says() {
        const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
        let relay = Ipv4Addr::new(10, 0, 0, 1);
        let client = Ipv4Addr::new(10, 0, 0, 9);
        let offered = Ipv4Addr::new(10, 0, 0, 50);
        let to = |ip, port| Destination::Udp { ip, port };
        let framed = Destination::Frame {
            mac: MAC,
            ip: offered,
            port: 68,
        };
        let all = Destination::BROADCAST;
        let cases = [
            // case                     giaddr ciaddr  bcast  hlen reply  want
            (
                "relay wins over all",
                relay,
                client,
                true,
                6,
                Nak,
                to(relay, 67),
            ),
            ("nak is broadcast", NONE, client, false, 6, Nak, all),
            (
                "renewing client",
                NONE,
                offered,
                true,
                6,
                Ack,
                to(offered, 68),
            ),
            ("another's address", NONE, client, true, 6, Offer, all),
            ("stale address", NONE, client, false, 6, Offer, framed),
            ("asked for broadcast", NONE, NONE, true, 6, Offer, all),
            ("no address yet", NONE, NONE, false, 6, Offer, framed),
            ("no Ethernet address", NONE, NONE, false, 0, Offer, all),
        ];
        for (case, giaddr, ciaddr, broadcast, hlen, reply, want) in cases {
            let mut header = Header::new(OP_REQUEST);
            header.htype = 1;
            header.hlen = hlen;
            header.chaddr[..6].copy_from_slice(&MAC.0);
            header.giaddr = giaddr.octets();
            header.ciaddr = ciaddr.octets();
            header.flags.set(if broadcast { FLAG_BROADCAST } else { 0 });
            let mut buffer = [0; 300];
            let length = Writer::new(&mut buffer, 300, &header, MessageType::Request)
                .map(Writer::finish)
                .unwrap();
            let query = View::parse(&buffer[..length]).unwrap();
            assert_eq!(reply_destination(&query, reply, offered), want, "{case}");
        }
    }
}
