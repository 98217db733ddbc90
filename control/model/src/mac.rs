//! A 48-bit Ethernet address.

use std::fmt;
use std::str::FromStr;

use crate::ParseError;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    pub fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    pub fn octets(self) -> [u8; 6] {
        self.0
    }

    /// From exactly six octets (the link's `Data`).
    pub fn from_slice(octets: &[u8]) -> Option<Self> {
        octets.try_into().ok().map(Self)
    }

    /// Whether one host can own it: not multicast, not all zero.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl FromStr for Mac {
    type Err = ParseError;

    /// `52:54:00:12:34:56`, `52-54-00-12-34-56`, `5254.0012.3456` or `525400123456`, in either case.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "a MAC address");
        let mut digits = [0u8; 12];
        let mut count = 0;
        let bytes = text.as_bytes();
        let (separator, group) = match bytes.len() {
            17 if bytes[2] == b':' || bytes[2] == b'-' => (Some(bytes[2]), 2),
            14 if bytes[4] == b'.' => (Some(b'.'), 4),
            12 => (None, 12),
            _ => return Err(wrong()),
        };
        for (index, byte) in bytes.iter().enumerate() {
            let is_separator = index % (group + 1) == group;
            if is_separator && separator == Some(*byte) {
                continue;
            }
            let digit = (*byte as char)
                .to_digit(16)
                .filter(|_| !is_separator)
                .ok_or_else(wrong)?;
            *digits.get_mut(count).ok_or_else(wrong)? = digit as u8;
            count += 1;
        }
        let mut octets = [0; 6];
        for (octet, pair) in octets.iter_mut().zip(digits.chunks_exact(2)) {
            *octet = pair[0] << 4 | pair[1];
        }
        Ok(Self(octets))
    }
}

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_usual_spelling_is_read() {
        let want = Mac::new([0x52, 0x54, 0x00, 0xab, 0xcd, 0xef]);
        for text in [
            "52:54:00:ab:cd:ef",
            "52-54-00-AB-CD-EF",
            "5254.00ab.cdef",
            "525400abcdef",
            "52:54:00:AB:cd:EF",
        ] {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
        assert_eq!(want.to_string(), "52:54:00:ab:cd:ef");
    }

    #[test]
    fn others_are_refused() {
        for text in [
            "",
            "52:54:00:ab:cd",
            "52:54:00:ab:cd:ef:00",
            "52:54:00:ab:cd:eg",
            "52:54-00:ab:cd:ef",
            "525400abcde",
            "52:54:00:ab:cd:e",
            "5:254:00:ab:cd:ef",
            "5254.00ab:cdef",
            "５２５４００",
            "::::::::::::",
            "52540:0abcde",
            "ä2:54:00:ab:cd:e",
        ] {
            assert!(text.parse::<Mac>().is_err(), "{text}");
        }
    }

    #[test]
    fn multicast_and_zero_belong_to_no_host() {
        for (text, want) in [
            ("52:54:00:00:00:01", true),
            ("01:00:5e:00:00:01", false),
            ("ff:ff:ff:ff:ff:ff", false),
            ("00:00:00:00:00:00", false),
        ] {
            assert_eq!(text.parse::<Mac>().unwrap().is_unicast(), want, "{text}");
        }
    }
}
