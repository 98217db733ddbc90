//! The host's network interfaces and their addresses, by rtnetlink.
//!
//! Loopback devices and link-local addresses are left out: no machine boots through them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::netlink::{attributes, dump, ip, malformed, u32_at};

/// One device as the kernel has it now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Kernel index.
    pub index: u32,
    pub name: String,
    pub mac: Option<[u8; 6]>,
    /// With prefix length.
    pub addresses: Vec<(IpAddr, u8)>,
}

const RTM_NEWLINK: u16 = 16;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_GETADDR: u16 = 22;
const IFF_LOOPBACK: u32 = 0x8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// `ifinfomsg`, `ifaddrmsg`
const LINK_BYTES: usize = 16;
const ADDR_BYTES: usize = 8;

/// Two dumps; takes some tens of microseconds. An error: what devices there are is not known, which is not "none".
pub fn read() -> io::Result<Vec<Interface>> {
    let mut links = BTreeMap::new();
    for (kind, body) in dump(RTM_GETLINK, &[0; LINK_BYTES])? {
        if kind == RTM_NEWLINK
            && let Some(interface) = link(&body)?
        {
            links.insert(interface.index, interface);
        }
    }
    for (kind, body) in dump(RTM_GETADDR, &[0; ADDR_BYTES])? {
        if kind == RTM_NEWADDR
            && let Some((index, address, length)) = address(&body)?
            && let Some(interface) = links.get_mut(&index)
        {
            interface.addresses.push((address, length));
        }
    }
    Ok(links.into_values().collect())
}

/// `None`: a device without a name, or loopback.
fn link(body: &[u8]) -> io::Result<Option<Interface>> {
    let cut = || malformed("a device was cut");
    let index = u32_at(body, 4).ok_or_else(cut)?;
    let flags = u32_at(body, 8).ok_or_else(cut)?;
    if flags & IFF_LOOPBACK != 0 {
        return Ok(None);
    }
    let mut interface = Interface {
        index,
        name: String::new(),
        mac: None,
        addresses: Vec::new(),
    };
    attributes(
        body.get(LINK_BYTES..).ok_or_else(cut)?,
        |kind, value| match kind {
            IFLA_ADDRESS => interface.mac = value.try_into().ok(), // others are no Ethernet
            IFLA_IFNAME => {
                let end = value
                    .iter()
                    .position(|octet| *octet == 0)
                    .unwrap_or(value.len());
                interface.name = String::from_utf8_lossy(&value[..end]).into_owned();
            }
            _ => {}
        },
    )?;
    Ok((!interface.name.is_empty()).then_some(interface))
}

/// `None`: link-local.
fn address(body: &[u8]) -> io::Result<Option<(u32, IpAddr, u8)>> {
    let cut = || malformed("an address was cut");
    let length = *body.get(1).ok_or_else(cut)?;
    let index = u32_at(body, 4).ok_or_else(cut)?;
    let (mut peer, mut local) = (None, None);
    attributes(
        body.get(ADDR_BYTES..).ok_or_else(cut)?,
        |kind, value| match kind {
            IFA_ADDRESS => peer = ip(value),
            IFA_LOCAL => local = ip(value),
            _ => {}
        },
    )?;
    // On a point-to-point device IFA_ADDRESS is the other end's.
    let Some(address) = local.or(peer) else {
        return Ok(None);
    };
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    Ok((!is_link_local).then_some((index, address, length)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_answers_without_loopback() {
        let interfaces = read().unwrap();
        assert!(
            interfaces
                .iter()
                .all(|interface| interface.index > 0 && interface.name != "lo")
        );
    }

    /// A device or an address that was cut would be one less, and its link's machines without DHCP.
    #[test]
    fn what_was_cut_is_an_error_and_no_missing_device() {
        let mut message = vec![0; 28];
        message[4..8].copy_from_slice(&7u32.to_ne_bytes());
        // One attribute: IFLA_IFNAME "eth0".
        let at = LINK_BYTES;
        message[at..at + 2].copy_from_slice(&9u16.to_ne_bytes());
        message[at + 2..at + 4].copy_from_slice(&IFLA_IFNAME.to_ne_bytes());
        message[at + 4..at + 8].copy_from_slice(b"eth0");
        let seen = link(&message).unwrap().unwrap();
        assert_eq!((seen.index, seen.name.as_str()), (7, "eth0"));
        for cut in 0..at + 9 {
            let read = link(&message[..cut]);
            // Whole but without any attribute: a device without a name.
            assert_eq!(read.is_err(), cut != at, "{cut}");
        }
        let mut message = vec![2, 24, 0, 0, 7, 0, 0, 0];
        message.extend_from_slice(&8u16.to_ne_bytes());
        message.extend_from_slice(&IFA_LOCAL.to_ne_bytes());
        message.extend_from_slice(&[10, 0, 0, 1]);
        let seen = address(&message).unwrap().unwrap();
        assert_eq!(seen, (7, [10, 0, 0, 1].into(), 24));
        for cut in 0..message.len() {
            assert_eq!(
                address(&message[..cut]).is_err(),
                cut != ADDR_BYTES,
                "{cut}"
            );
        }
        for length in 0..64u8 {
            let noise: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37)).collect();
            drop((link(&noise), address(&noise)));
        }
    }
}
