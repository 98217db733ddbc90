//! DHCP options that an operator may set: their names, the types of their values, and which are the server's own.
//!
//! RFC 2132, 2241, 3361, 3397, 3442, 4578, 5071 and IANA's registry. A value is written as text of its option's type, or for any
//! option as its octets in hex (`0x…`).

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use crate::ParseError;
use crate::dhcp::octets_of;

/// Octets of one value. Longer ones than 255 are split over several options of the code (RFC 3396).
pub const VALUE_BYTES_MAX: usize = 1_020;

/// How a value is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ValueType {
    Address,
    /// One or more, separated by commas or spaces.
    Addresses,
    /// `from to`, separated by commas.
    AddressPairs,
    Bool,
    U8,
    U16,
    U32,
    I32,
    U16s,
    Text,
    /// Names, encoded as RFC 1035 §3.1 has it.
    Domains,
    /// `10.0.0.0/8 10.1.0.1`, separated by commas (RFC 3442).
    Routes,
    Octets,
}

const TYPES: [(&str, ValueType); 13] = [
    ("ip", ValueType::Address),
    ("ips", ValueType::Addresses),
    ("ip-pairs", ValueType::AddressPairs),
    ("bool", ValueType::Bool),
    ("u8", ValueType::U8),
    ("u16", ValueType::U16),
    ("u32", ValueType::U32),
    ("i32", ValueType::I32),
    ("u16s", ValueType::U16s),
    ("text", ValueType::Text),
    ("domains", ValueType::Domains),
    ("routes", ValueType::Routes),
    ("hex", ValueType::Octets),
];

impl ValueType {
    pub fn name(self) -> &'static str {
        TYPES
            .iter()
            .find(|(_, kind)| *kind == self)
            .map_or("", |(name, _)| name)
    }

    fn expected(self) -> &'static str {
        match self {
            ValueType::Address => "an IPv4 address",
            ValueType::Addresses => "IPv4 addresses, separated by commas",
            ValueType::AddressPairs => "pairs of IPv4 addresses, separated by commas",
            ValueType::Bool => "true or false",
            ValueType::U8 => "a number from 0 to 255",
            ValueType::U16 => "a number from 0 to 65535",
            ValueType::U32 => "a number from 0 to 4294967295",
            ValueType::I32 => "a number from -2147483648 to 2147483647",
            ValueType::U16s => "numbers from 0 to 65535, separated by commas",
            ValueType::Text => "a text",
            ValueType::Domains => "domain names, separated by commas",
            ValueType::Routes => "routes as 10.0.0.0/8 10.1.0.1, separated by commas",
            ValueType::Octets => "octets as 0x0a0b or 0a:0b",
        }
    }
}

impl FromStr for ValueType {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        TYPES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, kind)| *kind)
            .ok_or_else(|| {
                ParseError::new(
                    text,
                    "a type: ip, ips, ip-pairs, bool, u8, u16, u32, i32, u16s, text, domains, routes or hex",
                )
            })
    }
}

use ValueType::*;

/// (code, name, type), by code.
const STANDARD: &[(u8, &str, ValueType)] = &[
    (2, "time-offset", I32),
    (3, "routers", Addresses),
    (4, "time-servers", Addresses),
    (5, "ien116-name-servers", Addresses),
    (6, "domain-name-servers", Addresses),
    (7, "log-servers", Addresses),
    (8, "cookie-servers", Addresses),
    (9, "lpr-servers", Addresses),
    (10, "impress-servers", Addresses),
    (11, "resource-location-servers", Addresses),
    (12, "host-name", Text),
    (13, "boot-size", U16),
    (14, "merit-dump", Text),
    (15, "domain-name", Text),
    (16, "swap-server", Address),
    (17, "root-path", Text),
    (18, "extensions-path", Text),
    (19, "ip-forwarding", Bool),
    (20, "non-local-source-routing", Bool),
    (21, "policy-filter", AddressPairs),
    (22, "max-dgram-reassembly", U16),
    (23, "default-ip-ttl", U8),
    (24, "path-mtu-aging-timeout", U32),
    (25, "path-mtu-plateau-table", U16s),
    (26, "interface-mtu", U16),
    (27, "all-subnets-local", Bool),
    (28, "broadcast-address", Address),
    (29, "perform-mask-discovery", Bool),
    (30, "mask-supplier", Bool),
    (31, "router-discovery", Bool),
    (32, "router-solicitation-address", Address),
    (33, "static-routes", AddressPairs),
    (34, "trailer-encapsulation", Bool),
    (35, "arp-cache-timeout", U32),
    (36, "ieee802-3-encapsulation", Bool),
    (37, "default-tcp-ttl", U8),
    (38, "tcp-keepalive-interval", U32),
    (39, "tcp-keepalive-garbage", Bool),
    (40, "nis-domain", Text),
    (41, "nis-servers", Addresses),
    (42, "ntp-servers", Addresses),
    (43, "vendor-encapsulated-options", Octets),
    (44, "netbios-name-servers", Addresses),
    (45, "netbios-dd-server", Addresses),
    (46, "netbios-node-type", U8),
    (47, "netbios-scope", Text),
    (48, "font-servers", Addresses),
    (49, "x-display-manager", Addresses),
    (60, "vendor-class-identifier", Text),
    (64, "nisplus-domain", Text),
    (65, "nisplus-servers", Addresses),
    (66, "tftp-server-name", Text),
    (67, "bootfile-name", Text),
    (68, "mobile-ip-home-agent", Addresses),
    (69, "smtp-server", Addresses),
    (70, "pop-server", Addresses),
    (71, "nntp-server", Addresses),
    (72, "www-server", Addresses),
    (73, "finger-server", Addresses),
    (74, "irc-server", Addresses),
    (75, "streettalk-server", Addresses),
    (76, "streettalk-directory-assistance-server", Addresses),
    (78, "slp-directory-agent", Octets),
    (79, "slp-service-scope", Octets),
    (85, "nds-servers", Addresses),
    (86, "nds-tree-name", Text),
    (87, "nds-context", Text),
    (88, "bcms-controller-names", Domains),
    (89, "bcms-controller-address", Addresses),
    (95, "ldap-servers", Text),
    (98, "uap-servers", Text),
    (100, "posix-timezone", Text),
    (101, "tzdb-timezone", Text),
    (108, "ipv6-only-preferred", U32),
    (114, "captive-portal", Text),
    (116, "auto-config", U8),
    (117, "name-service-search", U16s),
    (119, "domain-search", Domains),
    (120, "sip-servers", Octets),
    (121, "classless-static-routes", Routes),
    (124, "vivco", Octets),
    (125, "vivso", Octets),
    (128, "tftp-server-ip", Octets),
    (138, "capwap-ac-v4", Addresses),
    (150, "tftp-server-address", Addresses),
    (159, "v4-portparams", Octets),
    (208, "pxelinux-magic", Octets),
    (209, "pxelinux-config-file", Text),
    (210, "pxelinux-path-prefix", Text),
    (211, "pxelinux-reboot-time", U32),
    (212, "6rd", Octets),
    (213, "access-domain", Domains),
    (249, "ms-classless-static-routes", Routes),
    (252, "wpad", Text),
];

/// Why an option is not the operator's to set. `None`: it is.
fn owner(code: u8) -> Option<&'static str> {
    Some(match code {
        0 | 255 => "it is no option",
        1 => "it follows from the subnet's network",
        51 | 58 | 59 => "set lease_secs instead",
        50 | 52..=57 => "it is part of the protocol",
        61 | 82 | 97 => "it is the client's or the relay's, and is echoed",
        77 | 80 | 81 | 90..=94 | 118 | 145 | 151..=157 | 220 | 221 => {
            "it is part of an exchange between client, relay and server"
        }
        _ => return None,
    })
}

/// Why an option or its value was refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OptionError {
    #[error("{0:?} is no option: give a code from 1 to 254 or a name such as ntp-servers.")]
    Unknown(String),
    #[error("Option {code} cannot be set: {why}.")]
    Owned { code: u8, why: &'static str },
    #[error("Option {0} has no standard type: give the value as hex (0x0a0b), or say its type.")]
    Untyped(u8),
    #[error("{text:?} is not {expected}; octets can be given as hex (0x0a0b).")]
    Value {
        text: String,
        expected: &'static str,
    },
    #[error("The value is empty. To leave the option out, say so (suppress).")]
    Empty,
    #[error("The value has {0} octets; at most {VALUE_BYTES_MAX} can be sent.")]
    TooLong(usize),
}

/// The code of an option that an operator may set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OptionCode(u8);

impl OptionCode {
    pub fn new(code: u8) -> Result<Self, OptionError> {
        match owner(code) {
            Some(why) => Err(OptionError::Owned { code, why }),
            None => Ok(Self(code)),
        }
    }

    pub fn number(self) -> u8 {
        self.0
    }

    /// The standard name, "" where there is none.
    pub fn name(self) -> &'static str {
        self.standard().map_or("", |(_, name, _)| name)
    }

    pub fn value_type(self) -> Option<ValueType> {
        self.standard().map(|(_, _, kind)| *kind)
    }

    fn standard(self) -> Option<&'static (u8, &'static str, ValueType)> {
        let at = STANDARD.binary_search_by_key(&self.0, |(code, ..)| *code);
        at.ok().and_then(|at| STANDARD.get(at))
    }

    /// The octets of a value. `given`: its type, where it is not the option's own.
    pub fn encode(self, text: &str, given: Option<ValueType>) -> Result<Vec<u8>, OptionError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(OptionError::Empty);
        }
        let octets = match (octets_written(text), given.or(self.value_type())) {
            (Some(octets), _) => octets,
            (None, Some(kind)) => encode(text, kind),
            (None, None) => return Err(OptionError::Untyped(self.0)),
        };
        let kind = given.or(self.value_type()).unwrap_or(Octets);
        let octets = octets.ok_or_else(|| OptionError::Value {
            text: text.chars().take(64).collect(),
            expected: kind.expected(),
        })?;
        match octets.len() {
            0 => Err(OptionError::Empty),
            n if n > VALUE_BYTES_MAX => Err(OptionError::TooLong(n)),
            _ => Ok(octets),
        }
    }
}

impl FromStr for OptionCode {
    type Err = OptionError;

    /// A number or a standard name.
    fn from_str(text: &str) -> Result<Self, OptionError> {
        let text = text.trim();
        let named = STANDARD.iter().find(|(_, name, _)| *name == text);
        let code = match named {
            Some((code, ..)) => Ok(*code),
            None => text.parse::<u8>(),
        };
        let unknown = || OptionError::Unknown(text.chars().take(64).collect());
        Self::new(code.map_err(|_| unknown())?)
    }
}

impl fmt::Display for OptionCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.name() {
            "" => write!(f, "{}", self.0),
            name => write!(f, "{} ({name})", self.0),
        }
    }
}

//---------------------------------------------------------------- values

/// `0x…` means octets whatever the type.
fn octets_written(text: &str) -> Option<Option<Vec<u8>>> {
    text.strip_prefix("0x")
        .or(text.strip_prefix("0X"))
        .map(|digits| hex::decode(digits).ok())
}

fn encode(text: &str, kind: ValueType) -> Option<Vec<u8>> {
    let items = || {
        text.split([',', ' '])
            .map(str::trim)
            .filter(|item| !item.is_empty())
    };
    match kind {
        Address => address(text),
        Addresses => items().map(address).collect::<Option<Vec<_>>>().map(flat),
        AddressPairs => list(text, |pair| {
            let mut pair = pair.split_whitespace();
            let both = [address(pair.next()?)?, address(pair.next()?)?];
            pair.next().is_none().then(|| both.concat())
        }),
        Bool => match text.to_ascii_lowercase().as_str() {
            "true" | "yes" | "on" | "1" => Some(vec![1]),
            "false" | "no" | "off" | "0" => Some(vec![0]),
            _ => None,
        },
        U8 => text.parse::<u8>().ok().map(|number| vec![number]),
        U16 => number::<u16, 2>(text, u16::to_be_bytes),
        U32 => number::<u32, 4>(text, u32::to_be_bytes),
        I32 => number::<i32, 4>(text, i32::to_be_bytes),
        U16s => items()
            .map(|item| number::<u16, 2>(item, u16::to_be_bytes))
            .collect::<Option<Vec<_>>>()
            .map(flat),
        Text => {
            let quoted = text
                .strip_prefix('"')
                .and_then(|text| text.strip_suffix('"'));
            let text = quoted.unwrap_or(text);
            // RFC 2132 §2: no terminator; one inside would end the text for most clients.
            (!text.contains('\0')).then(|| text.as_bytes().to_vec())
        }
        Domains => items().map(domain).collect::<Option<Vec<_>>>().map(flat),
        Routes => list(text, route),
        Octets => octets_of(text).flatten(),
    }
}

fn flat(parts: Vec<Vec<u8>>) -> Vec<u8> {
    parts.concat()
}

fn list(text: &str, item: impl Fn(&str) -> Option<Vec<u8>>) -> Option<Vec<u8>> {
    text.split(',')
        .map(item)
        .collect::<Option<Vec<_>>>()
        .map(flat)
}

fn number<T: FromStr, const N: usize>(text: &str, octets: fn(T) -> [u8; N]) -> Option<Vec<u8>> {
    text.parse().ok().map(|number| octets(number).to_vec())
}

fn address(text: &str) -> Option<Vec<u8>> {
    let address: Ipv4Addr = text.parse().ok()?;
    Some(address.octets().to_vec())
}

/// Labels with their lengths, without compression (RFC 1035 §3.1; RFC 3397 leaves compression to the server).
fn domain(name: &str) -> Option<Vec<u8>> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let mut octets = Vec::new();
    for label in name.split('.') {
        let plain = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-' || octet == b'_';
        if label.is_empty() || label.len() > 63 || !label.bytes().all(plain) {
            return None;
        }
        octets.push(label.len() as u8);
        octets.extend_from_slice(label.as_bytes());
    }
    octets.push(0);
    (octets.len() <= 255).then_some(octets)
}

/// Prefix length, the significant octets of the network, the router (RFC 3442).
fn route(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split_whitespace().filter(|part| *part != "via");
    let (network, length) = parts.next()?.split_once('/')?;
    let router = address(parts.next()?)?;
    let (network, length): (Ipv4Addr, u8) = (network.parse().ok()?, length.parse().ok()?);
    let mask = match length {
        0 => 0,
        1..=32 => u32::MAX << (32 - length),
        _ => return None,
    };
    if parts.next().is_some() {
        return None;
    }
    // A client clears what lies beyond the mask (RFC 3442); it is not sent in the first place.
    let network = Ipv4Addr::from(u32::from(network) & mask);
    let significant = usize::from(length.div_ceil(8));
    let mut octets = vec![length];
    octets.extend_from_slice(&network.octets()[..significant]);
    octets.extend(router);
    Some(octets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_is_in_order_and_the_servers_own_are_not_in_it() {
        assert!(STANDARD.windows(2).all(|two| two[0].0 < two[1].0));
        for (index, (code, name, _)) in STANDARD.iter().enumerate() {
            assert_eq!(owner(*code), None, "{code}");
            let twice = STANDARD[..index].iter().any(|(_, other, _)| other == name);
            assert!(!twice, "{name}");
            assert_eq!(name.parse::<OptionCode>().unwrap().number(), *code);
        }
        for (name, kind) in TYPES {
            assert_eq!(name.parse(), Ok(kind));
            assert_eq!(kind.name(), name);
        }
    }

    #[test]
    fn codes_are_numbers_or_names() {
        for (text, want) in [
            ("42", Ok(42)),
            ("ntp-servers", Ok(42)),
            (" 224 ", Ok(224)),
            ("254", Ok(254)),
        ] {
            assert_eq!(text.parse::<OptionCode>().map(OptionCode::number), want);
        }
        for (text, part) in [
            ("0", "it is no option"),
            ("255", "it is no option"),
            ("256", "no option"),
            ("-1", "no option"),
            ("ntp", "no option"),
            ("", "no option"),
            ("1", "subnet's network"),
            ("51", "lease_secs"),
            ("53", "protocol"),
            ("54", "protocol"),
            ("58", "lease_secs"),
            ("61", "echoed"),
            ("82", "echoed"),
            ("93", "exchange"),
        ] {
            let error = text.parse::<OptionCode>().unwrap_err().to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
    }

    #[test]
    fn values_are_encoded_by_their_type() {
        let cases: [(&str, &str, Option<&str>, &[u8]); 27] = [
            (
                "ntp-servers",
                "10.0.0.1, 10.0.0.2",
                None,
                &[10, 0, 0, 1, 10, 0, 0, 2],
            ),
            (
                "ntp-servers",
                "10.0.0.1 10.0.0.2",
                None,
                &[10, 0, 0, 1, 10, 0, 0, 2],
            ),
            ("ntp-servers", "0x0a000001", None, &[10, 0, 0, 1]),
            ("swap-server", "10.0.0.1", None, &[10, 0, 0, 1]),
            ("interface-mtu", "9000", None, &[0x23, 0x28]),
            ("time-offset", "-3600", None, &[0xff, 0xff, 0xf1, 0xf0]),
            ("arp-cache-timeout", "60", None, &[0, 0, 0, 60]),
            ("default-ip-ttl", "64", None, &[64]),
            ("ip-forwarding", "Yes", None, &[1]),
            ("ip-forwarding", "false", None, &[0]),
            ("path-mtu-plateau-table", "68,1500", None, &[0, 68, 5, 0xdc]),
            ("domain-name", "lab.example", None, b"lab.example"),
            ("root-path", "\"0x41\"", None, b"0x41"),
            ("domain-search", "a.b, c", None, b"\x01a\x01b\0\x01c\0"),
            ("domain-search", "a.b.", None, b"\x01a\x01b\0"),
            ("121", "10.0.0.0/8 10.1.0.1", None, &[8, 10, 10, 1, 0, 1]),
            // Bits beyond the mask are left out.
            ("121", "10.7.8.9/8 10.1.0.1", None, &[8, 10, 10, 1, 0, 1]),
            (
                "121",
                "10.1.255.255/17 10.1.0.1",
                None,
                &[17, 10, 1, 128, 10, 1, 0, 1],
            ),
            ("249", "10.1.1.1/0 10.1.0.1", None, &[0, 10, 1, 0, 1]),
            (
                "121",
                "0.0.0.0/0 via 10.1.0.1, 10.2.3.0/24 10.1.0.2",
                None,
                &[0, 10, 1, 0, 1, 24, 10, 2, 3, 10, 1, 0, 2],
            ),
            ("33", "10.2.0.1 10.1.0.1", None, &[10, 2, 0, 1, 10, 1, 0, 1]),
            ("43", "01:04:00", None, &[1, 4, 0]),
            ("43", "0x010400", None, &[1, 4, 0]),
            ("224", "0xff", None, &[0xff]),
            ("224", "ztp", Some("text"), b"ztp"),
            ("224", "7", Some("u16"), &[0, 7]),
            ("interface-mtu", "1500", Some("u32"), &[0, 0, 5, 0xdc]),
        ];
        for (code, text, kind, want) in cases {
            let kind = kind.map(|kind| kind.parse().unwrap());
            let code: OptionCode = code.parse().unwrap();
            assert_eq!(
                code.encode(text, kind).as_deref(),
                Ok(want),
                "{code} {text}"
            );
        }
    }

    #[test]
    fn wrong_values_are_refused_with_what_is_right() {
        let long = "x".repeat(VALUE_BYTES_MAX + 1);
        for (code, text, part) in [
            ("ntp-servers", "time.example", "IPv4 addresses"),
            ("ntp-servers", "10.0.0.1,10.0.0", "IPv4 addresses"),
            ("ntp-servers", "0x0a0", "hex"),
            ("swap-server", "10.0.0.1 10.0.0.2", "an IPv4 address"),
            ("interface-mtu", "65536", "0 to 65535"),
            ("default-ip-ttl", "-1", "0 to 255"),
            ("ip-forwarding", "perhaps", "true or false"),
            ("domain-search", "a..b", "domain names"),
            ("domain-search", "a b!", "domain names"),
            ("121", "10.0.0.0/33 10.1.0.1", "routes"),
            ("121", "10.0.0.0/8", "routes"),
            ("33", "10.0.0.1", "pairs"),
            ("43", "abc", "octets"),
            ("43", "ä:öö", "octets"),
            ("224", "abc", "no standard type"),
            ("domain-name", "", "empty"),
            ("domain-name", " ", "empty"),
            ("domain-name", "\"\"", "empty"),
            ("224", "0x", "empty"),
            ("domain-name", &long, "at most 1020"),
        ] {
            let code: OptionCode = code.parse().unwrap();
            let error = code.encode(text, None).unwrap_err().to_string();
            assert!(error.contains(part), "{code} {text}: {error}");
        }
    }
}
