//! Ethernet II headers with at most one 802.1Q tag: for raw frames (simulation, load generation, captures).
//!
//! The rack's own packet sockets are SOCK_DGRAM: there the kernel writes and removes this header. Not here:
//! 802.3 length frames, QinQ, the frame check sequence.

use std::fmt;

/// A MAC address.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Self = Self([0xff; 6]);
    pub const ZERO: Self = Self([0; 6]);

    /// One station's address: not zero, and the group bit is clear.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self != Self::ZERO
    }
}

/// `52:54:00:00:01:05`.
impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

pub const ETHERTYPE_IPV4: u16 = 0x0800;
pub const ETHERTYPE_ARP: u16 = 0x0806;
const ETHERTYPE_VLAN: u16 = 0x8100;
/// Octets of an untagged header; a tag adds four.
pub const HEADER_BYTES: usize = 14;
const TAG_BYTES: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    pub target: Mac,
    pub source: Mac,
    /// VLAN id, 1..=4094, of the 802.1Q tag.
    pub vid: Option<u16>,
    pub ethertype: u16,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EthernetError {
    #[error("shorter than an Ethernet header")]
    Truncated,
    #[error("an 802.3 length where an EtherType should be")]
    NoEthertype,
    #[error("no room for an Ethernet header")]
    NoRoom,
}

impl Header {
    /// The header and what follows it.
    pub fn parse(frame: &[u8]) -> Result<(Self, &[u8]), EthernetError> {
        let (target, rest) = frame
            .split_first_chunk::<6>()
            .ok_or(EthernetError::Truncated)?;
        let (source, rest) = rest
            .split_first_chunk::<6>()
            .ok_or(EthernetError::Truncated)?;
        let (kind, mut rest) = rest
            .split_first_chunk::<2>()
            .ok_or(EthernetError::Truncated)?;
        let mut ethertype = u16::from_be_bytes(*kind);
        let mut vid = None;
        if ethertype == ETHERTYPE_VLAN {
            let (tag, after) = rest
                .split_first_chunk::<4>()
                .ok_or(EthernetError::Truncated)?;
            // Vid 0 is a priority tag: the frame belongs to the untagged network.
            vid = Some(u16::from_be_bytes([tag[0], tag[1]]) & 0x0fff).filter(|vid| *vid != 0);
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            rest = after;
        }
        if ethertype < 0x0600 {
            return Err(EthernetError::NoEthertype);
        }
        Ok((
            Self {
                target: Mac(*target),
                source: Mac(*source),
                vid,
                ethertype,
            },
            rest,
        ))
    }

    pub fn bytes(&self) -> usize {
        HEADER_BYTES + if self.vid.is_some() { TAG_BYTES } else { 0 }
    }

    /// Writes the header at the start of `frame`; gives its length.
    pub fn emit(&self, frame: &mut [u8]) -> Result<usize, EthernetError> {
        let bytes = self.bytes();
        let header = frame.get_mut(..bytes).ok_or(EthernetError::NoRoom)?;
        header[..6].copy_from_slice(&self.target.0);
        header[6..12].copy_from_slice(&self.source.0);
        if let Some(vid) = self.vid {
            header[12..14].copy_from_slice(&ETHERTYPE_VLAN.to_be_bytes());
            header[14..16].copy_from_slice(&(vid & 0x0fff).to_be_bytes());
        }
        header[bytes - 2..].copy_from_slice(&self.ethertype.to_be_bytes());
        Ok(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_emitted_is_parsed_again() {
        for vid in [None, Some(1), Some(4094)] {
            let header = Header {
                target: Mac::BROADCAST,
                source: Mac([0x52, 0x54, 0, 0, 1, 5]),
                vid,
                ethertype: ETHERTYPE_IPV4,
            };
            let mut frame = [0; 20];
            let bytes = header.emit(&mut frame).unwrap();
            let (parsed, rest) = Header::parse(&frame).unwrap();
            assert_eq!((parsed, rest.len()), (header, 20 - bytes));
            for length in 0..bytes {
                assert!(Header::parse(&frame[..length]).is_err(), "cut at {length}");
                assert_eq!(
                    header.emit(&mut frame[..length]),
                    Err(EthernetError::NoRoom)
                );
            }
        }
    }

    #[test]
    fn only_a_station_is_unicast() {
        assert!(Mac([0x52, 0x54, 0, 0, 1, 5]).is_unicast());
        for mac in [Mac::ZERO, Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1])] {
            assert!(!mac.is_unicast(), "{mac}");
        }
    }
}
