//! The host's network interfaces and their addresses, by rtnetlink.
//!
//! Loopback devices and link-local addresses are left out: no machine boots through them.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;

use crate::netlink::{attributes, dump, ip, u32_at};

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

/// Two dumps; takes some tens of microseconds.
pub fn read() -> io::Result<Vec<Interface>> {
    let mut links = BTreeMap::new();
    dump(RTM_GETLINK, &[0; LINK_BYTES], |kind, body| {
        if kind == RTM_NEWLINK
            && let Some(interface) = link(body)
        {
            links.insert(interface.index, interface);
        }
    })?;
    dump(RTM_GETADDR, &[0; ADDR_BYTES], |kind, body| {
        if kind == RTM_NEWADDR
            && let Some((index, address, length)) = address(body)
            && let Some(interface) = links.get_mut(&index)
        {
            interface.addresses.push((address, length));
        }
    })?;
    Ok(links.into_values().collect())
}

fn link(body: &[u8]) -> Option<Interface> {
    let (index, flags) = (u32_at(body, 4)?, u32_at(body, 8)?);
    if flags & IFF_LOOPBACK != 0 {
        return None;
    }
    let mut interface = Interface {
        index,
        name: String::new(),
        mac: None,
        addresses: Vec::new(),
    };
    attributes(body.get(LINK_BYTES..)?, |kind, value| match kind {
        IFLA_ADDRESS => interface.mac = value.try_into().ok(),
        IFLA_IFNAME => {
            let end = value
                .iter()
                .position(|octet| *octet == 0)
                .unwrap_or(value.len());
            interface.name = String::from_utf8_lossy(&value[..end]).into_owned();
        }
        _ => {}
    });
    (!interface.name.is_empty()).then_some(interface)
}

fn address(body: &[u8]) -> Option<(u32, IpAddr, u8)> {
    let (length, index) = (*body.get(1)?, u32_at(body, 4)?);
    let (mut peer, mut local) = (None, None);
    attributes(body.get(ADDR_BYTES..)?, |kind, value| match kind {
        IFA_ADDRESS => peer = ip(value),
        IFA_LOCAL => local = ip(value),
        _ => {}
    });
    // On a point-to-point device IFA_ADDRESS is the other end's.
    let address = local.or(peer)?;
    let is_link_local = match address {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.is_unicast_link_local(),
    };
    (!is_link_local).then_some((index, address, length))
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

    #[test]
    fn cut_and_odd_messages_end_quietly() {
        let mut message = vec![0; 48];
        message[4..8].copy_from_slice(&7u32.to_ne_bytes());
        // One attribute: IFLA_IFNAME "eth0".
        let at = LINK_BYTES;
        message[at..at + 2].copy_from_slice(&9u16.to_ne_bytes());
        message[at + 2..at + 4].copy_from_slice(&IFLA_IFNAME.to_ne_bytes());
        message[at + 4..at + 8].copy_from_slice(b"eth0");
        let seen = link(&message).unwrap();
        assert_eq!((seen.index, seen.name.as_str()), (7, "eth0"));
        for cut in 0..message.len() {
            drop((link(&message[..cut]), address(&message[..cut])));
        }
        for length in 0..64u8 {
            let noise: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37)).collect();
            drop((link(&noise), address(&noise)));
        }
    }
}
