//! IPv4 headers (RFC 791 §3.1) and the Internet checksum (RFC 1071).
//!
//! Takes packets as an AF_PACKET SOCK_DGRAM socket delivers them: the IP header first, perhaps with link-layer
//! padding behind. Fragments are refused, not reassembled: nothing a rack answers here is ever fragmented.

use std::net::Ipv4Addr;

pub const PROTOCOL_UDP: u8 = 17;
/// Octets of the header we write; a received one may be longer (options).
pub const HEADER_BYTES: usize = 20;
const DONT_FRAGMENT: u16 = 0x4000;
const MORE_FRAGMENTS: u16 = 0x2000;
const FRAGMENT_OFFSET: u16 = 0x1fff;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Ipv4Error {
    #[error("shorter than it says")]
    Truncated,
    #[error("not version 4")]
    NotVersion4,
    #[error("impossible header or total length")]
    BadLength,
    #[error("header checksum is wrong")]
    BadChecksum,
    #[error("a fragment")]
    Fragment,
    #[error("no room for the packet")]
    NoRoom,
}

/// A received packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet<'a> {
    pub source: Ipv4Addr,
    pub target: Ipv4Addr,
    pub protocol: u8,
    pub ttl: u8,
    pub payload: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads one packet; octets behind its total length (padding of short frames) are ignored.
    pub fn parse(octets: &'a [u8]) -> Result<Self, Ipv4Error> {
        let fixed = octets
            .first_chunk::<HEADER_BYTES>()
            .ok_or(Ipv4Error::Truncated)?;
        if fixed[0] >> 4 != 4 {
            return Err(Ipv4Error::NotVersion4);
        }
        let header_bytes = usize::from(fixed[0] & 0x0f) * 4;
        let total_bytes = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if header_bytes < HEADER_BYTES || total_bytes < header_bytes {
            return Err(Ipv4Error::BadLength);
        }
        let packet = octets.get(..total_bytes).ok_or(Ipv4Error::Truncated)?;
        let (header, payload) = packet.split_at(header_bytes);
        if fold(sum(0, header)) != 0xffff {
            return Err(Ipv4Error::BadChecksum);
        }
        if u16::from_be_bytes([fixed[6], fixed[7]]) & (MORE_FRAGMENTS | FRAGMENT_OFFSET) != 0 {
            return Err(Ipv4Error::Fragment);
        }
        Ok(Self {
            source: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            target: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
            protocol: fixed[9],
            ttl: fixed[8],
            payload,
        })
    }
}

/// Writes a header into the first [`HEADER_BYTES`] of `packet`, whose rest is the payload already there.
pub fn emit_header(
    packet: &mut [u8],
    source: Ipv4Addr,
    target: Ipv4Addr,
    protocol: u8,
    identification: u16,
) -> Result<(), Ipv4Error> {
    let total = u16::try_from(packet.len()).map_err(|_| Ipv4Error::NoRoom)?;
    let header = packet
        .first_chunk_mut::<HEADER_BYTES>()
        .ok_or(Ipv4Error::NoRoom)?;
    *header = [0; HEADER_BYTES];
    header[0] = 0x45;
    header[2..4].copy_from_slice(&total.to_be_bytes());
    header[4..6].copy_from_slice(&identification.to_be_bytes());
    header[6..8].copy_from_slice(&DONT_FRAGMENT.to_be_bytes());
    header[8] = 64;
    header[9] = protocol;
    header[12..16].copy_from_slice(&source.octets());
    header[16..20].copy_from_slice(&target.octets());
    let checksum = !fold(sum(0, header));
    header[10..12].copy_from_slice(&checksum.to_be_bytes());
    Ok(())
}

/// Adds `octets` as big-endian 16-bit words to a running sum; an odd last octet is padded with zero.
/// At most 64 KiB of octets in all, so that the sum cannot overflow.
pub(crate) fn sum(start: u32, octets: &[u8]) -> u32 {
    let (words, odd) = octets.as_chunks::<2>();
    let sum = words.iter().fold(start, |sum, word| {
        sum + u32::from(u16::from_be_bytes(*word))
    });
    sum + odd.first().map_or(0, |octet| u32::from(*octet) << 8)
}

/// The one's complement sum of 16 bits (RFC 1071 §2).
pub(crate) fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16 // not above 0xffff now
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet() -> Vec<u8> {
        let mut octets = vec![0; HEADER_BYTES];
        octets.extend_from_slice(b"payload");
        let (from, to) = (Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 198));
        emit_header(&mut octets, from, to, PROTOCOL_UDP, 7).unwrap();
        octets
    }

    fn refresh_checksum(octets: &mut [u8]) {
        let bytes = usize::from(octets[0] & 15) * 4;
        octets[10..12].fill(0);
        let checksum = !fold(sum(0, &octets[..bytes]));
        octets[10..12].copy_from_slice(&checksum.to_be_bytes());
    }

    #[test]
    fn emitted_packet_is_parsed_and_padding_ignored() {
        let mut octets = packet();
        octets.extend_from_slice(&[0xaa; 19]);
        let parsed = Packet::parse(&octets).unwrap();
        assert_eq!(
            (parsed.payload, parsed.protocol),
            (&b"payload"[..], PROTOCOL_UDP)
        );
        assert_eq!(parsed.target, Ipv4Addr::new(10, 99, 0, 198));
        for length in 0..27 {
            assert_eq!(
                Packet::parse(&octets[..length]),
                Err(Ipv4Error::Truncated),
                "{length}"
            );
        }
    }

    #[test]
    fn header_options_are_skipped() {
        let mut octets = packet();
        octets.splice(20..20, [1, 1, 1, 0]); // three NOPs and an end of options
        octets[0] = 0x46;
        octets[3] += 4;
        refresh_checksum(&mut octets);
        assert_eq!(Packet::parse(&octets).unwrap().payload, b"payload");
    }

    #[test]
    fn bad_headers_are_refused() {
        type Spoil = fn(&mut Vec<u8>);
        let cases: [(&str, Spoil, Ipv4Error); 6] = [
            ("version", |p| p[0] = 0x65, Ipv4Error::NotVersion4),
            ("header length", |p| p[0] = 0x44, Ipv4Error::BadLength),
            ("total below header", |p| p[3] = 19, Ipv4Error::BadLength),
            ("checksum", |p| p[8] = 9, Ipv4Error::BadChecksum),
            (
                "first fragment",
                |p| {
                    p[6] = 0x20;
                    refresh_checksum(p);
                },
                Ipv4Error::Fragment,
            ),
            (
                "later fragment",
                |p| {
                    p[7] = 1;
                    refresh_checksum(p);
                },
                Ipv4Error::Fragment,
            ),
        ];
        for (case, spoil, want) in cases {
            let mut octets = packet();
            spoil(&mut octets);
            assert_eq!(Packet::parse(&octets), Err(want), "{case}");
        }
    }
}
