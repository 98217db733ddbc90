//! The host's network interfaces and their addresses, by rtnetlink.
//!
//! Loopback devices and link-local addresses are left out: no machine boots through them. RFC 3549 (netlink).

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

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
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
const IFF_LOOPBACK: u32 = 0x8;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const HEADER_BYTES: usize = 16;
/// `ifinfomsg`, `ifaddrmsg`
const LINK_BYTES: usize = 16;
const ADDR_BYTES: usize = 8;
/// Datagrams of one dump at most; the kernel fills each with up to 32 KiB.
const DATAGRAMS_MAX: usize = 1024;

/// Two dumps; takes some tens of microseconds.
pub fn read() -> io::Result<Vec<Interface>> {
    let mut links = BTreeMap::new();
    dump(RTM_GETLINK, LINK_BYTES, |kind, body| {
        if kind == RTM_NEWLINK
            && let Some(interface) = link(body)
        {
            links.insert(interface.index, interface);
        }
    })?;
    dump(RTM_GETADDR, ADDR_BYTES, |kind, body| {
        if kind == RTM_NEWADDR
            && let Some((index, address, length)) = address(body)
            && let Some(interface) = links.get_mut(&index)
        {
            interface.addresses.push((address, length));
        }
    })?;
    Ok(links.into_values().collect())
}

fn dump(request: u16, body_bytes: usize, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let flags = SocketFlags::CLOEXEC;
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, None)?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let mut message = vec![0; HEADER_BYTES + body_bytes];
    let length = u32::try_from(message.len()).expect("a header and a body");
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&request.to_ne_bytes());
    message[6..8].copy_from_slice(&DUMP.to_ne_bytes());
    send(&socket, &message, SendFlags::empty())?;
    let mut buffer = vec![0u8; 65_536];
    for _ in 0..DATAGRAMS_MAX {
        let (got, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if messages(&buffer[..got], &mut each)? {
            return Ok(());
        }
    }
    Err(io::Error::other(
        "the kernel's list of interfaces does not end",
    ))
}

/// Hands each message to `each`; `true` at the end of the dump.
fn messages(mut rest: &[u8], each: &mut impl FnMut(u16, &[u8])) -> io::Result<bool> {
    while let Some(header) = rest.get(..HEADER_BYTES) {
        let length = u32_at(header, 0).unwrap_or(0) as usize;
        let kind = u16_at(header, 4).unwrap_or(0);
        let Some(body) = rest.get(HEADER_BYTES..length) else {
            break;
        };
        match kind {
            NLMSG_DONE => return Ok(true),
            NLMSG_ERROR => {
                let code = u32_at(body, 0).unwrap_or(0).cast_signed();
                return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
            }
            _ => each(kind, body),
        }
        rest = rest.get(align(length)..).unwrap_or_default();
    }
    Ok(false)
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

fn ip(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets)
            .ok()
            .map(|o| Ipv4Addr::from(o).into()),
        16 => <[u8; 16]>::try_from(octets)
            .ok()
            .map(|o| Ipv6Addr::from(o).into()),
        _ => None,
    }
}

fn attributes(mut rest: &[u8], mut each: impl FnMut(u16, &[u8])) {
    while let (Some(length), Some(kind)) = (u16_at(rest, 0), u16_at(rest, 2)) {
        let length = usize::from(length);
        let Some(value) = rest.get(4..length) else {
            return;
        };
        each(kind, value);
        rest = rest.get(align(length)..).unwrap_or_default();
    }
}

/// NLMSG_ALIGN and RTA_ALIGN; at least one step on.
fn align(length: usize) -> usize {
    length.max(4).next_multiple_of(4)
}

fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_ne_bytes)
}

fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
    octets
        .get(at..at + 4)?
        .try_into()
        .ok()
        .map(u32::from_ne_bytes)
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
        let mut message = vec![0; 64];
        message[..4].copy_from_slice(&64u32.to_ne_bytes());
        message[4..6].copy_from_slice(&RTM_NEWLINK.to_ne_bytes());
        message[HEADER_BYTES + 4..HEADER_BYTES + 8].copy_from_slice(&7u32.to_ne_bytes());
        // One attribute: IFLA_IFNAME "eth0".
        let at = HEADER_BYTES + LINK_BYTES;
        message[at..at + 2].copy_from_slice(&9u16.to_ne_bytes());
        message[at + 2..at + 4].copy_from_slice(&IFLA_IFNAME.to_ne_bytes());
        message[at + 4..at + 8].copy_from_slice(b"eth0");
        let mut seen = Vec::new();
        assert!(!messages(&message, &mut |_, body| seen.extend(link(body))).unwrap());
        assert_eq!((seen[0].index, seen[0].name.as_str()), (7, "eth0"));
        for cut in 0..message.len() {
            messages(&message[..cut], &mut |_, body| {
                drop((link(body), address(body)))
            })
            .unwrap();
        }
        for body in 0..64u8 {
            let noise: Vec<u8> = (0..body).map(|i| i.wrapping_mul(37)).collect();
            drop((link(&noise), address(&noise)));
        }
        let error = [
            &20u32.to_ne_bytes()[..],
            &NLMSG_ERROR.to_ne_bytes(),
            &[0; 10],
            &(-1i32).to_ne_bytes(),
        ];
        assert!(messages(&error.concat(), &mut |_, _| {}).is_err());
    }
}
