//! What a rack's power drivers take for a value: said when it is set, not when the power is needed.
//!
//! The racks judge again (`dataplane/power`); `schema/power/parameters.json` holds both to one answer. No message
//! holds a value: it may be a secret.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::PowerType;

/// IPMI v2.0 table 22-30 and §13.20: 16 octets of name, 20 of password and K_g.
const IPMI_USER_BYTES_MAX: usize = 16;
const IPMI_SECRET_BYTES_MAX: usize = 20;
const HOST_BYTES_MAX: usize = 253;
const URI_BYTES_MAX: usize = 2048;
const PATTERN_BYTES_MAX: usize = 512;

/// Why a driver would not take `value`, which is not empty.
pub(super) fn refusal(power_type: PowerType, name: &str, value: &str) -> Option<&'static str> {
    match (power_type, name) {
        (PowerType::Ipmi, "power_address") if !is_address(value) => Some(
            "Enter an IP address or a host name, with a port if it is not 623: 10.0.0.9, 10.0.0.9:6230, [fd00::9]:6230.",
        ),
        (PowerType::Ipmi, "power_user") if value.len() > IPMI_USER_BYTES_MAX => {
            Some("At most 16 octets: IPMI has no longer names.")
        }
        (PowerType::Ipmi, "power_pass") if value.len() > IPMI_SECRET_BYTES_MAX => {
            Some("At most 20 octets: IPMI 2.0 has no longer passwords.")
        }
        (PowerType::Ipmi, "k_g") if !is_k_g(value) => {
            Some("Enter up to 20 octets of text, or 0x and up to 40 hexadecimal digits.")
        }
        (PowerType::Ipmi, "cipher_suite_id") if !matches!(value, "3" | "17") => Some(
            "17 and 3 are available: the others do not encrypt or rest on MD5. Leave it empty to ask the BMC.",
        ),
        (PowerType::Ipmi, "power_driver") if value != "LAN_2_0" => {
            Some("LAN_2_0 is available: IPMI 1.5 protects neither password nor commands.")
        }
        (PowerType::Webhook, "power_on_uri" | "power_off_uri" | "power_query_uri")
            if !is_uri(value) =>
        {
            Some("Enter an http or https URI of at most 2048 octets.")
        }
        (PowerType::Webhook, "power_on_regex" | "power_off_regex") => pattern_refusal(value),
        _ => None,
    }
}

/// `host`, `host:port`, `[v6]`, `[v6]:port` or a bare IPv6 address.
fn is_address(text: &str) -> bool {
    let text = text.trim();
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|port| port != 0);
    if let Some(rest) = text.strip_prefix('[') {
        let Some((host, rest)) = rest.split_once(']') else {
            return false;
        };
        let port = rest.is_empty() || rest.strip_prefix(':').is_some_and(is_port);
        return host.parse::<Ipv6Addr>().is_ok() && port;
    }
    match text.split_once(':') {
        Some((_, rest)) if rest.contains(':') => text.parse::<Ipv6Addr>().is_ok(),
        Some((host, port)) => is_host(host) && is_port(port),
        None => is_host(text),
    }
}

/// An IPv4 address or a name. What is made of digits and dots is meant as an address.
fn is_host(text: &str) -> bool {
    if text.bytes().all(|c| c.is_ascii_digit() || c == b'.') {
        return text.parse::<Ipv4Addr>().is_ok();
    }
    let is_fine = |c: u8| c.is_ascii_alphanumeric() || b".-_".contains(&c);
    text.len() <= HOST_BYTES_MAX && !text.starts_with('-') && text.bytes().all(is_fine)
}

/// `0x` and hex digits, 40 bare hex digits, or text.
fn is_k_g(text: &str) -> bool {
    let is_hex = |digits: &str| {
        !digits.is_empty()
            && digits.len().is_multiple_of(2)
            && digits.len() <= 2 * IPMI_SECRET_BYTES_MAX
            && digits.bytes().all(|c| c.is_ascii_hexdigit())
    };
    match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(digits) => is_hex(digits),
        None => text.len() <= IPMI_SECRET_BYTES_MAX || is_hex(text),
    }
}

/// By the parser that the racks use: a URI that only looks well would be refused when the power is needed.
fn is_uri(text: &str) -> bool {
    let fits = |uri: url::Url| matches!(uri.scheme(), "http" | "https") && uri.has_host();
    text.len() <= URI_BYTES_MAX && url::Url::parse(text).is_ok_and(fits)
}

/// The racks' patterns are the part of regular expressions that needs no backtracking.
fn pattern_refusal(text: &str) -> Option<&'static str> {
    if text.len() > PATTERN_BYTES_MAX {
        return Some("At most 512 octets.");
    }
    let mut chars = text.chars().peekable();
    // Whether something stands before a repeat mark.
    let mut repeatable = false;
    while let Some(c) = chars.next() {
        match c {
            '(' | ')' => return Some("Groups are not available."),
            '{' if chars.peek().is_some_and(char::is_ascii_digit) => {
                return Some("Counted repeats are not available.");
            }
            '*' | '+' | '?' if !repeatable => return Some("Nothing to repeat."),
            '*' | '+' | '?' => {
                // Lazy or greedy makes no difference to whether it matches.
                chars.next_if_eq(&'?');
                repeatable = false;
            }
            '|' | '^' | '$' => repeatable = false,
            '\\' => match chars.next() {
                None => return Some("It ends in a backslash."),
                Some(c) if c.is_ascii_alphanumeric() && !"sSdDwWntr".contains(c) => {
                    return Some("This escape is not available.");
                }
                Some(_) => repeatable = true,
            },
            '[' => {
                if !pass_class(&mut chars) {
                    return Some("A class of characters that does not end, or is not available.");
                }
                repeatable = true;
            }
            _ => repeatable = true,
        }
    }
    None
}

fn pass_class(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> bool {
    let _ = chars.next_if_eq(&'^');
    let mut is_empty = true;
    while let Some(first) = chars.next() {
        let first = match first {
            ']' if !is_empty => return true,
            '\\' => match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some('r') => '\r',
                Some('s' | 'd' | 'w') => {
                    is_empty = false;
                    continue;
                }
                Some(c) if !c.is_ascii_alphanumeric() => c,
                _ => return false,
            },
            c => c,
        };
        let mut ahead = chars.clone();
        if ahead.next() == Some('-') && ahead.next().is_some_and(|c| c != ']') {
            chars.next();
            if chars.next().is_none_or(|last| last == '\\' || last < first) {
                return false;
            }
        }
        is_empty = false;
    }
    false
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// What the API takes the racks take, and the other way round: one table for both.
    #[test]
    fn parameters_are_judged_as_the_racks_judge_them() {
        let table = include_str!("../../../../schema/power/parameters.json");
        let rows: Vec<Value> = serde_json::from_str(table).expect("a list");
        assert!(rows.len() > 40);
        for row in rows {
            let power_type: PowerType = row["driver"].as_str().unwrap().parse().unwrap();
            let parameters = row["parameters"].as_object().unwrap();
            let wrong = power_type.split(parameters).err();
            let named = wrong.as_ref().map(|error| error.parameter.as_str());
            assert_eq!(named, row["wrong"].as_str(), "{row}");
            for value in parameters.values().filter_map(Value::as_str) {
                let shown = wrong.as_ref().map(ToString::to_string).unwrap_or_default();
                assert!(value.len() < 18 || !shown.contains(value), "{shown}");
            }
        }
    }
}
