//! DHCP as an operator sets it: identifiers of clients, lease times, a VLAN's mode, boot methods, how full a range is.
//!
//! The options themselves are in `dhcp_option`.

use std::fmt;
use std::ops::RangeInclusive;
use std::str::FromStr;

use crate::ParseError;

/// Seconds that a lease may be set to.
pub const LEASE_SECS: RangeInclusive<i32> = 30..=86_400;
/// What a lease is without any setting.
pub const LEASE_SECS_DEFAULT: i32 = 600;

/// What racks do on a VLAN.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DhcpMode {
    #[default]
    Serve,
    /// Somebody else hands out the addresses: only boot information is given (PXE 2.1 §2.2.3).
    Proxy,
}

impl DhcpMode {
    pub fn as_str(self) -> &'static str {
        match self {
            DhcpMode::Serve => "serve",
            DhcpMode::Proxy => "proxy",
        }
    }
}

impl FromStr for DhcpMode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        [DhcpMode::Serve, DhcpMode::Proxy]
            .into_iter()
            .find(|mode| mode.as_str() == text)
            .ok_or_else(|| ParseError::new(text, "serve or proxy"))
    }
}

//---------------------------------------------------------------- identifiers

/// Octets by which a client or a relay's port is told: a client id (option 61), a circuit id or a remote id (option 82).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identifier(Box<[u8]>);

/// An option's length octet (RFC 2132 §2).
const IDENTIFIER_BYTES_MAX: usize = 255;

impl Identifier {
    /// 1 to 255 octets.
    pub fn new(octets: &[u8]) -> Option<Self> {
        (1..=IDENTIFIER_BYTES_MAX)
            .contains(&octets.len())
            .then(|| Self(octets.into()))
    }

    pub fn octets(&self) -> &[u8] {
        &self.0
    }
}

impl FromStr for Identifier {
    type Err = ParseError;

    /// Octets as `0x01525400` or `01:52:54:00`; anything else is text, taken as it is. Text in double quotes is text
    /// whatever it looks like.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let wrong = || ParseError::new(text, "an identifier: text, or octets as 0x0a0b or 0a:0b");
        let quoted = text
            .strip_prefix('"')
            .and_then(|text| text.strip_suffix('"'));
        let octets = match (quoted, octets_of(text)) {
            (Some(text), _) => text.as_bytes().to_vec(),
            (None, Some(octets)) => octets.ok_or_else(wrong)?,
            (None, None) => text.as_bytes().to_vec(),
        };
        Self::new(&octets).ok_or_else(wrong)
    }
}

/// Octets written as `0x…` or as pairs with colons. The outer `None`: it is neither; the inner one: it begins with 0x and is
/// no hex.
pub(crate) fn octets_of(text: &str) -> Option<Option<Vec<u8>>> {
    if let Some(digits) = text.strip_prefix("0x").or(text.strip_prefix("0X")) {
        return Some(hex::decode(digits).ok());
    }
    let pairs: Vec<&str> = text.split(':').collect();
    if pairs.len() < 2 || pairs.iter().any(|pair| pair.len() != 2) {
        return None;
    }
    hex::decode(pairs.concat()).ok().map(Some)
}

impl fmt::Display for Identifier {
    /// In the form that is read as the same octets: text where it can be.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |octet: &u8| octet.is_ascii_graphic() || *octet == b' ';
        let text = std::str::from_utf8(&self.0)
            .ok()
            .filter(|text| text.bytes().all(|octet| plain(&octet)) && text.trim() == *text);
        match text {
            Some(text) if text.parse().as_ref() == Ok(self) => f.write_str(text),
            _ => write!(f, "0x{}", hex::encode(&self.0)),
        }
    }
}

impl fmt::Debug for Identifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

//---------------------------------------------------------------- boot methods

/// MAAS's boot methods and those in its manner that it has not, with their client architecture (option 93, RFC 4578 §2.1);
/// iPXE is told by other options.
pub const BOOT_METHODS: [(&str, Option<u16>); 19] = [
    ("pxe", Some(0x00)),
    ("ipxe", None),
    ("uefi_ia32_tftp", Some(0x06)),
    ("uefi_amd64_tftp", Some(0x07)),
    ("uefi_ebc_tftp", Some(0x09)),
    ("uefi_armhf_tftp", Some(0x0a)),
    ("uefi_arm64_tftp", Some(0x0b)),
    ("open-firmware_ppc64el", Some(0x0c)),
    ("powernv", Some(0x0e)),
    ("uefi_ia32_http", Some(0x0f)),
    ("uefi_amd64_http", Some(0x10)),
    ("uefi_armhf_http", Some(0x12)),
    ("uefi_arm64_http", Some(0x13)),
    ("uefi_riscv64_tftp", Some(0x1b)),
    ("uefi_riscv64_http", Some(0x1c)),
    ("s390x", Some(0x1f)),
    ("s390x_partition", Some(0x20)),
    ("uefi_loong64_tftp", Some(0x27)),
    ("uefi_loong64_http", Some(0x28)),
];

/// A boot method by MAAS's name, IANA's number (`0x07`) or the octets of isc-dhcpd (`00:07`).
pub fn boot_method(text: &str) -> Result<&'static str, ParseError> {
    let text = text.trim();
    let number = match text.split_once(':') {
        Some((high, low)) => u16::from_str_radix(&format!("{high}{low}"), 16).ok(),
        None => text
            .strip_prefix("0x")
            .and_then(|digits| u16::from_str_radix(digits, 16).ok()),
    };
    BOOT_METHODS
        .iter()
        .find(|(name, arch)| *name == text || (number.is_some() && *arch == number))
        .map(|(name, _)| *name)
        .ok_or_else(|| ParseError::new(text, "a boot architecture"))
}

//---------------------------------------------------------------- how full a range is

/// The threshold that a range has crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum UsageLevel {
    #[default]
    Normal,
    Filling,
    NearlyFull,
}

impl UsageLevel {
    const ALL: [UsageLevel; 3] = [
        UsageLevel::Normal,
        UsageLevel::Filling,
        UsageLevel::NearlyFull,
    ];
    /// Below a threshold by this many percent, it is crossed again: a range that sways around it says so once.
    const HYSTERESIS: u8 = 5;

    /// Percent from which it holds.
    pub fn percent(self) -> u8 {
        match self {
            UsageLevel::Normal => 0,
            UsageLevel::Filling => 80,
            UsageLevel::NearlyFull => 95,
        }
    }

    pub fn from_percent(percent: i16) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|level| i16::from(level.percent()) == percent)
    }

    /// The level of a range with `taken` of its `total` addresses in use, that was at this level before.
    pub fn next(self, taken: u64, total: u64) -> Self {
        let reaches = |level: &UsageLevel| {
            let slack = if *level <= self { Self::HYSTERESIS } else { 0 };
            let percent = level.percent().saturating_sub(slack);
            u128::from(taken) * 100 >= u128::from(total) * u128::from(percent)
        };
        if total == 0 {
            return UsageLevel::Normal;
        }
        Self::ALL
            .into_iter()
            .rev()
            .find(reaches)
            .unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn identifiers_are_text_or_octets_and_come_back() {
        let long = "x".repeat(256);
        let cases: [(&str, Option<&[u8]>, &str); 11] = [
            ("rack1/port7", Some(b"rack1/port7"), "rack1/port7"),
            ("0x0a0B", Some(&[10, 11]), "0x0a0b"),
            ("01:52:54", Some(&[1, 0x52, 0x54]), "0x015254"),
            ("0x414243", Some(b"ABC"), "ABC"),
            ("\"01:52\"", Some(b"01:52"), "0x30313a3532"),
            ("eth 1", Some(b"eth 1"), "eth 1"),
            ("1:2", Some(b"1:2"), "1:2"),
            ("zz:52", Some(b"zz:52"), "zz:52"),
            ("0x0", None, ""),
            ("", None, ""),
            (&long, None, ""),
        ];
        for (text, want, shown) in cases {
            let read = text.parse::<Identifier>();
            assert_eq!(read.as_ref().ok().map(Identifier::octets), want, "{text}");
            if let Ok(read) = read {
                assert_eq!(read.to_string(), shown, "{text}");
                assert_eq!(read.to_string().parse(), Ok(read));
            }
        }
    }

    #[test]
    fn boot_methods_have_three_spellings() {
        for (text, want) in [
            ("uefi_amd64_tftp", Some("uefi_amd64_tftp")),
            ("0x07", Some("uefi_amd64_tftp")),
            ("00:07", Some("uefi_amd64_tftp")),
            ("0x0000", Some("pxe")),
            ("ipxe", Some("ipxe")),
            ("0xff", None),
            ("amd64", None),
            ("", None),
        ] {
            assert_eq!(boot_method(text).ok(), want, "{text}");
        }
    }

    #[test]
    fn levels_rise_at_once_and_fall_late() {
        use UsageLevel::*;
        let cases = [
            (Normal, 79, Normal),
            (Normal, 80, Filling),
            (Normal, 95, NearlyFull),
            (Filling, 79, Filling),
            (Filling, 75, Filling),
            (Filling, 74, Normal),
            (Filling, 94, Filling),
            (Filling, 95, NearlyFull),
            (NearlyFull, 90, NearlyFull),
            (NearlyFull, 89, Filling),
            (NearlyFull, 74, Normal),
        ];
        for (before, taken, want) in cases {
            assert_eq!(before.next(taken, 100), want, "{before:?} at {taken}");
        }
        assert_eq!(NearlyFull.next(0, 0), Normal);
        assert_eq!(Normal.next(u64::MAX, u64::MAX), NearlyFull);
        for level in UsageLevel::ALL {
            assert_eq!(
                UsageLevel::from_percent(level.percent().into()),
                Some(level)
            );
        }
    }
}
