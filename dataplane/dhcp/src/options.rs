//! Which value an option has for one client: what an operator set for its host, its range or its subnet, else what
//! the rack itself knows. Pure; `reply.rs` decides which options are sent and in which order.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::dhcp4::{WriteError, Writer, code};

use crate::config::{BootReply, DhcpOption, Link, Range, Reservation, Subnet};

/// Options that the protocol itself fills: an operator's value for them is ignored.
const OWN: [u8; 16] = [
    code::PAD,
    code::REQUESTED_ADDRESS,
    code::LEASE_TIME,
    code::OVERLOAD,
    code::MESSAGE_TYPE,
    code::SERVER_ID,
    code::PARAMETER_LIST,
    code::MESSAGE,
    code::MESSAGE_BYTES_MAX,
    code::RENEWAL_TIME,
    code::REBINDING_TIME,
    code::CLIENT_ID,
    code::RAPID_COMMIT,
    code::RELAY_INFO,
    code::SUBNET_SELECTION,
    code::END,
];

/// What the rack itself knows, in the order in which a client gets it that asks for nothing in particular: what a
/// boot needs comes first, so that a short message loses the least.
pub(crate) const KNOWN: [u8; 9] = [
    code::BOOTFILE,
    code::ROUTERS,
    code::DNS_SERVERS,
    code::INTERFACE_MTU,
    code::BROADCAST_ADDRESS,
    code::HOSTNAME,
    code::DOMAIN,
    code::DOMAIN_SEARCH,
    code::NTP_SERVERS,
];

/// What operators set for this client, closest scope first.
#[derive(Clone, Copy, Default)]
pub(crate) struct Scopes<'a>([&'a [DhcpOption]; 3]);

impl<'a> Scopes<'a> {
    /// Host before range before subnet. `address` is the client's, and tells its range.
    pub fn of(host: Option<&'a Reservation>, subnet: &'a Subnet, address: Ipv4Addr) -> Self {
        Self([
            host.map_or(&[], |host| &host.options),
            range_of(subnet, address).map_or(&[], |range| &range.options),
            &subnet.options,
        ])
    }

    /// All of them, also those that a closer scope hides.
    pub fn iter(self) -> impl Iterator<Item = &'a DhcpOption> {
        self.0.into_iter().flatten()
    }

    /// The closest scope's word on an option.
    pub fn find(self, code: u8) -> Option<&'a DhcpOption> {
        if OWN.contains(&code) {
            return None;
        }
        self.iter().find(|option| option.code == code)
    }
}

/// The dynamic or reserved range that an address is in.
fn range_of(subnet: &Subnet, address: Ipv4Addr) -> Option<&Range> {
    subnet
        .ranges
        .iter()
        .find(|range| (range.first..=range.last).contains(&address))
}

/// How long a client may have an address, by configuration: host before range before subnet.
pub(crate) fn lease_of(host: Option<&Reservation>, subnet: &Subnet, address: Ipv4Addr) -> Duration {
    host.and_then(|host| host.lease)
        .or_else(|| range_of(subnet, address)?.lease)
        .unwrap_or(subnet.lease)
}

/// The values for one client.
pub(crate) struct Values<'a> {
    pub scopes: Scopes<'a>,
    pub link: &'a Link,
    pub subnet: &'a Subnet,
    pub boot: &'a BootReply<'a>,
    /// "" for none.
    pub hostname: &'a str,
}

impl<'a> Values<'a> {
    /// The boot file: an operator's option 67 stands in for what `boot` chose, in the `file` field too.
    pub fn boot_file(&self) -> &'a [u8] {
        match self.scopes.find(code::BOOTFILE) {
            Some(option) if !option.value.is_empty() => &option.value,
            _ => self.boot.file.as_bytes(),
        }
    }

    /// What option 67 says, as it is sent: empty for none.
    pub fn boot_name(&self) -> &'a [u8] {
        match self.scopes.find(code::BOOTFILE) {
            Some(option) => &option.value,
            None => self.boot.file.as_bytes(),
        }
    }

    /// Writes one option, if there is a value for it. Not 67, which comes last: [`Self::boot_name`].
    pub fn write(&self, code: u8, writer: &mut Writer<'_>) -> Result<(), WriteError> {
        if let Some(option) = self.scopes.find(code) {
            return match (code, &option.value[..]) {
                (_, []) => Ok(()), // left out, whatever a wider scope says
                (code::TFTP_SERVER, name) => writer.name(code, name),
                (_, octets) => writer.option(code, octets),
            };
        }
        let (subnet, boot) = (self.subnet, self.boot);
        let text = |writer: &mut Writer<'_>, octets: &[u8]| {
            if octets.is_empty() {
                Ok(())
            } else {
                writer.option(code, octets)
            }
        };
        match code {
            code::SUBNET_MASK => writer.address(code, subnet.net.netmask()),
            code::ROUTERS => match subnet.gateway {
                Some(gateway) => writer.address(code, gateway),
                None => Ok(()),
            },
            code::DNS_SERVERS => writer.addresses(code, &subnet.dns),
            code::HOSTNAME => text(writer, self.hostname.as_bytes()),
            code::DOMAIN => text(writer, subnet.domain.as_bytes()),
            code::INTERFACE_MTU if self.link.mtu != 1500 => {
                writer.option(code, &self.link.mtu.to_be_bytes())
            }
            code::BROADCAST_ADDRESS => writer.address(code, subnet.net.broadcast()),
            code::NTP_SERVERS => writer.addresses(code, &subnet.ntp),
            code::VENDOR_OPTIONS => text(writer, boot.vendor_options.unwrap_or_default()),
            code::VENDOR_CLASS => text(writer, boot.vendor_class.unwrap_or_default()),
            code::TFTP_SERVER => match boot.next_server {
                Some(server) => writer.name(code, dotted(server, &mut [0; 15])),
                None => Ok(()),
            },
            code::DOMAIN_SEARCH => {
                let mut labels = [0; 255];
                match encode_domain(&subnet.domain, &mut labels) {
                    Some(labels) => writer.option(code, labels),
                    None => Ok(()),
                }
            }
            code::VENDOR_IDENTIFYING => text(writer, boot.vendor_identifying.unwrap_or_default()),
            code::PATH_PREFIX => text(writer, boot.path_prefix.unwrap_or_default().as_bytes()),
            _ => Ok(()), // RFC 2131 §4.3.1: no value, no option
        }
    }
}

/// `10.99.0.1` without an allocation.
fn dotted(address: Ipv4Addr, text: &mut [u8; 15]) -> &[u8] {
    use std::io::Write;
    let room = text.len();
    let mut rest = &mut text[..];
    // Fifteen octets hold every dotted quad.
    let left = write!(rest, "{address}").map_or(room, |()| rest.len());
    &text[..room - left]
}

/// A domain name as DNS labels (RFC 3397 §2, without compression). None if it is not a valid name.
fn encode_domain<'a>(domain: &str, labels: &'a mut [u8; 255]) -> Option<&'a [u8]> {
    let mut length = 0;
    for label in domain.trim_end_matches('.').split('.') {
        let bytes = u8::try_from(label.len())
            .ok()
            .filter(|bytes| (1..=63).contains(bytes))?;
        let end = length + 1 + label.len();
        let place = labels.get_mut(length..end)?;
        place[0] = bytes;
        place[1..].copy_from_slice(label.as_bytes());
        length = end;
    }
    *labels.get_mut(length)? = 0;
    Some(&labels[..=length])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn domains_become_labels() {
        let cases: [(&str, Option<&[u8]>); 6] = [
            ("maas", Some(b"\x04maas\0")),
            ("lab.example.", Some(b"\x03lab\x07example\0")),
            ("", None),
            ("a..b", None),
            (&"x".repeat(64), None),
            (&("x".repeat(63) + ".").repeat(4), None),
        ];
        for (domain, want) in cases {
            assert_eq!(encode_domain(domain, &mut [0; 255]), want, "{domain}");
        }
    }

    #[test]
    fn every_quad_fits() {
        for address in [
            Ipv4Addr::UNSPECIFIED,
            Ipv4Addr::BROADCAST,
            Ipv4Addr::new(10, 99, 0, 1),
        ] {
            assert_eq!(
                dotted(address, &mut [0; 15]),
                address.to_string().as_bytes()
            );
        }
    }
}
