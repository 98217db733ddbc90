//! Frames, packets and datagrams: no panic, and what was read is written back the same.

use std::net::SocketAddrV4;

use wire::ethernet::{ETHERTYPE_IPV4, Header};
use wire::ipv4::Packet;
use wire::udp::{self, Checksum, Datagram, HEADROOM_BYTES};

/// 802.1Q.
const ETHERTYPE_VLAN: u16 = 0x8100;

/// Any octets, as a frame and as the IPv4 packet that a packet socket gives.
pub fn ethernet_udp(octets: &[u8]) {
    packet(octets);
    let Ok((header, rest)) = Header::parse(octets) else {
        return;
    };
    assert_eq!(
        rest.len() + header.bytes(),
        octets.len() - priority_tag(octets)
    );
    if header.ethertype == ETHERTYPE_VLAN {
        return; // a second tag, which is nobody's business here
    }
    let mut again = vec![0; header.bytes()];
    assert_eq!(header.emit(&mut again), Ok(header.bytes()));
    assert_eq!(Header::parse(&again), Ok((header, &[][..])));
    if header.ethertype == ETHERTYPE_IPV4 {
        packet(rest);
    }
}

/// Octets of a tag with vid 0, which stands for no VLAN and is not written back.
fn priority_tag(octets: &[u8]) -> usize {
    match octets.get(12..16) {
        Some([0x81, 0, high, 0]) if high & 0x0f == 0 => 4,
        _ => 0,
    }
}

fn packet(octets: &[u8]) {
    if let Ok(packet) = Packet::parse(octets) {
        assert!(packet.payload.len() + 20 <= octets.len());
    }
    let Ok(datagram) = Datagram::parse_packet(octets, Checksum::Verify) else {
        return;
    };
    let unchecked = Datagram::parse_packet(octets, Checksum::NotReady);
    assert_eq!(unchecked, Ok(datagram), "more is never refused for less");
    let mut again = [&[0; HEADROOM_BYTES][..], datagram.payload].concat();
    let (source, target): (SocketAddrV4, SocketAddrV4) = (datagram.source, datagram.target);
    udp::frame(&mut again, source, target, 7).expect("it came in one packet");
    assert_eq!(
        Datagram::parse_packet(&again, Checksum::Verify),
        Ok(datagram)
    );
}
