//! UDP over IPv4 (RFC 768): a received datagram out of a raw packet, and the packet around a payload to send.

use std::net::{Ipv4Addr, SocketAddrV4};

use crate::ipv4::{self, Ipv4Error, PROTOCOL_UDP};

pub const HEADER_BYTES: usize = 8;
/// Room that [`frame`] needs in front of a payload: IPv4 and UDP headers.
pub const HEADROOM_BYTES: usize = ipv4::HEADER_BYTES + HEADER_BYTES;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UdpError {
    #[error("IPv4: {0}")]
    Ipv4(#[from] Ipv4Error),
    #[error("not UDP")]
    NotUdp,
    #[error("shorter than it says")]
    Truncated,
    #[error("impossible length")]
    BadLength,
    #[error("checksum is wrong")]
    BadChecksum,
}

/// What to do with a checksum that is not zero. The kernel hands over packets of the same host before their
/// checksum is computed (TP_STATUS_CSUMNOTREADY in the packet's auxiliary data).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Checksum {
    Verify,
    NotReady,
}

/// A received UDP datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Datagram<'a> {
    pub source: SocketAddrV4,
    pub target: SocketAddrV4,
    pub payload: &'a [u8],
}

impl<'a> Datagram<'a> {
    /// Reads a whole IPv4 packet, as an AF_PACKET SOCK_DGRAM socket delivers it.
    pub fn parse_packet(octets: &'a [u8], checksum: Checksum) -> Result<Self, UdpError> {
        let packet = ipv4::Packet::parse(octets)?;
        if packet.protocol != PROTOCOL_UDP {
            return Err(UdpError::NotUdp);
        }
        let header = packet
            .payload
            .first_chunk::<HEADER_BYTES>()
            .ok_or(UdpError::Truncated)?;
        let word = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
        let length = usize::from(word(4));
        if length < HEADER_BYTES {
            return Err(UdpError::BadLength);
        }
        let datagram = packet.payload.get(..length).ok_or(UdpError::Truncated)?;
        // Zero means that the sender computed none.
        if word(6) != 0
            && checksum == Checksum::Verify
            && ipv4::fold(pseudo_sum(packet.source, packet.target, datagram)) != 0xffff
        {
            return Err(UdpError::BadChecksum);
        }
        Ok(Self {
            source: SocketAddrV4::new(packet.source, word(0)),
            target: SocketAddrV4::new(packet.target, word(2)),
            payload: &datagram[HEADER_BYTES..],
        })
    }
}

/// Makes an IPv4 packet of `packet`, whose payload already stands behind [`HEADROOM_BYTES`]. The result is what
/// an AF_PACKET SOCK_DGRAM socket sends: the kernel adds the Ethernet header.
pub fn frame(
    packet: &mut [u8],
    source: SocketAddrV4,
    target: SocketAddrV4,
    identification: u16,
) -> Result<(), UdpError> {
    ipv4::emit_header(
        packet,
        *source.ip(),
        *target.ip(),
        PROTOCOL_UDP,
        identification,
    )?;
    let datagram = packet
        .get_mut(ipv4::HEADER_BYTES..)
        .ok_or(UdpError::Truncated)?;
    let length = u16::try_from(datagram.len()).map_err(|_| UdpError::BadLength)?;
    let header = datagram
        .first_chunk_mut::<HEADER_BYTES>()
        .ok_or(UdpError::Truncated)?;
    header[0..2].copy_from_slice(&source.port().to_be_bytes());
    header[2..4].copy_from_slice(&target.port().to_be_bytes());
    header[4..6].copy_from_slice(&length.to_be_bytes());
    header[6..8].fill(0);
    let checksum = match !ipv4::fold(pseudo_sum(*source.ip(), *target.ip(), datagram)) {
        0 => 0xffff, // zero would say "no checksum"
        other => other,
    };
    datagram[6..8].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// Sum over the pseudo header and the datagram. At most 64 KiB, so it cannot overflow.
fn pseudo_sum(source: Ipv4Addr, target: Ipv4Addr, datagram: &[u8]) -> u32 {
    let start = u32::from(PROTOCOL_UDP) + datagram.len() as u32; // a datagram's length fits 16 bits
    let sum = ipv4::sum(ipv4::sum(start, &source.octets()), &target.octets());
    ipv4::sum(sum, datagram)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(payload: &[u8]) -> Vec<u8> {
        let mut octets = vec![0; HEADROOM_BYTES];
        octets.extend_from_slice(payload);
        let from = SocketAddrV4::new(Ipv4Addr::new(10, 99, 0, 1), 67);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 68);
        frame(&mut octets, from, to, 1).unwrap();
        octets
    }

    #[test]
    fn framed_payload_comes_back() {
        for payload in [&b""[..], b"x", b"even", b"odd length"] {
            let octets = packet(payload);
            let datagram = Datagram::parse_packet(&octets, Checksum::Verify).unwrap();
            assert_eq!(datagram.payload, payload);
            assert_eq!((datagram.source.port(), datagram.target.port()), (67, 68));
            for length in 0..octets.len() {
                assert!(Datagram::parse_packet(&octets[..length], Checksum::Verify).is_err());
            }
        }
    }

    #[test]
    fn checksum_is_verified_unless_absent_or_not_ready() {
        let mut octets = packet(b"payload");
        let last = octets.len() - 1;
        octets[last] ^= 1;
        let verify = |octets: &[u8]| Datagram::parse_packet(octets, Checksum::Verify).map(|_| ());
        assert_eq!(verify(&octets), Err(UdpError::BadChecksum));
        assert!(Datagram::parse_packet(&octets, Checksum::NotReady).is_ok());
        octets[26..28].fill(0);
        assert_eq!(verify(&octets), Ok(()));
    }

    #[test]
    fn length_must_fit_the_packet() {
        for (length, want) in [(7, UdpError::BadLength), (16, UdpError::Truncated)] {
            let mut octets = packet(b"payload");
            octets[25] = length;
            assert_eq!(
                Datagram::parse_packet(&octets, Checksum::NotReady),
                Err(want)
            );
        }
    }
}
