//! ARP for IPv4 over Ethernet (RFC 826): the probe that asks whether anybody uses an address (RFC 5227 §2.1.1), and
//! what a packet says of its sender.
//!
//! Not here: other hardware or protocols, replies, announcements.

use std::net::Ipv4Addr;

use crate::ethernet::{ETHERTYPE_ARP, HEADER_BYTES, Header, Mac};

/// Octets of a frame with an ARP packet and no padding.
pub const FRAME_BYTES: usize = HEADER_BYTES + PACKET_BYTES;
const PACKET_BYTES: usize = 28;
/// Hardware type Ethernet, protocol IPv4, the lengths of their addresses.
const KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const REQUEST: [u8; 2] = [0, 1];

/// Who sent an ARP packet, as the packet says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sender {
    pub mac: Mac,
    /// Unspecified in a probe: who asks does not use the address yet.
    pub address: Ipv4Addr,
}

/// A probe as a whole frame: a broadcast request whose sender has no IP address, so that no cache learns from it.
pub fn probe(source: Mac, address: Ipv4Addr) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    frame[..6].copy_from_slice(&Mac::BROADCAST.0);
    frame[6..12].copy_from_slice(&source.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_ARP.to_be_bytes());
    frame[14..20].copy_from_slice(&KIND);
    frame[20..22].copy_from_slice(&REQUEST);
    frame[22..28].copy_from_slice(&source.0);
    frame[38..42].copy_from_slice(&address.octets());
    frame
}

/// The sender of a received frame's ARP packet, request or reply. None for anything else.
pub fn sender(frame: &[u8]) -> Option<Sender> {
    let (header, packet) = Header::parse(frame).ok()?;
    let packet = packet.first_chunk::<PACKET_BYTES>()?;
    if header.ethertype != ETHERTYPE_ARP || packet[..6] != KIND {
        return None;
    }
    let [.., a, b, c, d] = *packet.first_chunk::<18>()?;
    let mac = packet[8..14].try_into().ok()?;
    Some(Sender {
        mac: Mac(mac),
        address: Ipv4Addr::from([a, b, c, d]),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([0x52, 0x54, 0, 0, 1, 5]);

    #[test]
    fn a_probe_is_the_rfcs() {
        let frame = probe(MAC, Ipv4Addr::new(10, 99, 0, 7));
        let want = "ffffffffffff 525400000105 0806 0001 0800 06 04 0001 \
                    525400000105 00000000 000000000000 0a630007";
        let hex: String = frame.iter().map(|octet| format!("{octet:02x}")).collect();
        assert_eq!(hex, want.replace(' ', ""));
        let nobody = Sender {
            mac: MAC,
            address: Ipv4Addr::UNSPECIFIED,
        };
        assert_eq!(sender(&frame), Some(nobody));
    }

    #[test]
    fn an_answer_names_its_sender_and_nothing_else_does() {
        let mut frame = probe(MAC, Ipv4Addr::UNSPECIFIED).to_vec();
        frame[21] = 2;
        frame[28..32].copy_from_slice(&[10, 99, 0, 7]);
        let answer = Sender {
            mac: MAC,
            address: Ipv4Addr::new(10, 99, 0, 7),
        };
        assert_eq!(sender(&frame), Some(answer));
        for cut in 0..frame.len() {
            assert_eq!(sender(&frame[..cut]), None, "{cut}");
        }
        for at in [12, 14, 16, 18, 19] {
            let mut odd = frame.clone();
            odd[at] ^= 0xff;
            assert_eq!(sender(&odd), None, "{at}");
        }
        frame.extend([0; 18]); // padding to the shortest frame
        assert_eq!(sender(&frame), Some(answer));
    }
}
