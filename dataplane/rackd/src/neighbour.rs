//! The kernel's neighbour table and routes: which card answers for an address on a device's own network (RFC 826).

use std::io;
use std::net::Ipv4Addr;

use crate::netlink::{attributes, get, malformed, u16_at, u32_at};

const RTM_NEWROUTE: u16 = 24;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const AF_INET: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `ndmsg`: family, padding, device, state, flags, type.
const NEIGHBOUR_BYTES: usize = 12;
/// NUD_INCOMPLETE: it is being asked for.
const INCOMPLETE: u16 = 0x01;
/// NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT: an entry with an address that frames are sent to.
const USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;
/// `rtmsg`: family, lengths of target and source, tos, table, protocol, scope, type, flags.
const ROUTE_BYTES: usize = 12;
const RTN_UNICAST: u8 = 1;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_VIA: u16 = 18;

/// What the kernel says of an address on a device. That it could not be asked is an error, and none of these.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Frames to the address are sent to this card.
    Card([u8; 6]),
    /// The kernel asks the network now.
    Asking,
    /// The kernel knows none, or nobody answered it.
    None,
}

/// Takes some tens of microseconds, whatever the size of the table (kernel 5.0 and later).
pub fn entry(device: u32, address: Ipv4Addr) -> io::Result<Entry> {
    let mut found = None;
    let asked = get(RTM_GETNEIGH, &question(device, address), |kind, body| {
        if kind == RTM_NEWNEIGH {
            found = Some(read_entry(body)?);
        }
        Ok(())
    });
    match asked {
        Ok(()) => found.ok_or_else(|| malformed("the kernel answered with no neighbour")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Entry::None),
        Err(error) => Err(error),
    }
}

/// Frames to the address leave by this device, and straight to whoever has it: not to this host, by a router, or by another
/// device.
pub fn is_direct(device: u32, address: Ipv4Addr) -> io::Result<bool> {
    Ok(device_to(address)? == Some(device))
}

/// The device by which frames go straight to whoever has the address. `None`: it is this host's own, or behind a router.
pub fn device_to(address: Ipv4Addr) -> io::Result<Option<u32>> {
    use io::ErrorKind::{HostUnreachable, NetworkUnreachable};
    let mut direct = None;
    let asked = get(RTM_GETROUTE, &route_question(address), |kind, body| {
        if kind == RTM_NEWROUTE {
            direct = Some(straight_by(body)?);
        }
        Ok(())
    });
    match asked {
        Ok(()) => direct.ok_or_else(|| malformed("the kernel answered with no route")),
        Err(error) if matches!(error.kind(), NetworkUnreachable | HostUnreachable) => Ok(None),
        Err(error) => Err(error),
    }
}

fn question(device: u32, address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0; NEIGHBOUR_BYTES];
    body[0] = AF_INET;
    body[4..8].copy_from_slice(&device.to_ne_bytes());
    put(&mut body, NDA_DST, &address.octets());
    body
}

fn route_question(address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0; ROUTE_BYTES];
    (body[0], body[1]) = (AF_INET, 32);
    put(&mut body, RTA_DST, &address.octets());
    body
}

/// An attribute of four octets or a multiple of them.
fn put(body: &mut Vec<u8>, kind: u16, value: &[u8]) {
    body.extend_from_slice(&(4 + value.len() as u16).to_ne_bytes()); // far below
    body.extend_from_slice(&kind.to_ne_bytes());
    body.extend_from_slice(value);
}

fn read_entry(body: &[u8]) -> io::Result<Entry> {
    let cut = || malformed("a neighbour was cut");
    let state = u16_at(body, 8).ok_or_else(cut)?;
    let mut mac = None;
    attributes(
        body.get(NEIGHBOUR_BYTES..).ok_or_else(cut)?,
        |kind, value| {
            if kind == NDA_LLADDR {
                mac = value.try_into().ok(); // another length is no Ethernet
            }
        },
    )?;
    Ok(match mac {
        _ if state & INCOMPLETE != 0 => Entry::Asking,
        Some(mac) if state & USABLE != 0 => Entry::Card(mac),
        _ => Entry::None,
    })
}

fn straight_by(body: &[u8]) -> io::Result<Option<u32>> {
    let cut = || malformed("a route was cut");
    let kind = *body.get(7).ok_or_else(cut)?;
    let (mut out, mut is_routed) = (None, false);
    attributes(
        body.get(ROUTE_BYTES..).ok_or_else(cut)?,
        |kind, value| match kind {
            RTA_OIF => out = u32_at(value, 0),
            RTA_GATEWAY | RTA_VIA => is_routed = true,
            _ => {}
        },
    )?;
    Ok(out.filter(|_| kind == RTN_UNICAST && !is_routed))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOPBACK: u32 = 1;

    #[test]
    fn the_kernel_understands_the_questions_and_knows_nobody_on_loopback() {
        let address = Ipv4Addr::new(127, 1, 2, 3);
        assert_eq!(entry(LOOPBACK, address).unwrap(), Entry::None);
        assert!(
            !is_direct(LOOPBACK, address).unwrap(),
            "it is this host's own"
        );
    }

    /// The device went away between two questions: nothing is known of its neighbours.
    #[test]
    fn a_device_that_is_not_there_is_an_error_and_not_an_empty_network() {
        let error = entry(0x7fff_0000, Ipv4Addr::new(10, 0, 0, 1)).unwrap_err();
        assert_ne!(error.kind(), io::ErrorKind::NotFound, "{error}");
    }

    fn entry_of(state: u16, lladdr: &[u8]) -> Vec<u8> {
        let mut body = question(7, Ipv4Addr::LOCALHOST);
        body[8..10].copy_from_slice(&state.to_ne_bytes());
        body.extend_from_slice(&u16::try_from(4 + lladdr.len()).unwrap().to_ne_bytes());
        body.extend_from_slice(&NDA_LLADDR.to_ne_bytes());
        body.extend_from_slice(lladdr);
        body
    }

    #[test]
    fn only_an_entry_that_frames_are_sent_to_names_a_card() {
        let mac = [0x52, 0x54, 0, 0, 1, 2];
        for (state, want, what) in [
            (0x02, Entry::Card(mac), "reachable"),
            (0x04, Entry::Card(mac), "stale"),
            (0x08, Entry::Card(mac), "delay"),
            (0x10, Entry::Card(mac), "probe"),
            (0x80, Entry::Card(mac), "permanent"),
            (0, Entry::None, "none"),
            (0x01, Entry::Asking, "incomplete"),
            (0x20, Entry::None, "failed"),
            (0x40, Entry::None, "no ARP"),
        ] {
            assert_eq!(read_entry(&entry_of(state, &mac)).unwrap(), want, "{what}");
        }
        let infiniband = read_entry(&entry_of(0x02, &[1; 8])).unwrap();
        assert_eq!(infiniband, Entry::None, "no Ethernet");
    }

    /// Cut behind an attribute it is an entry without a card, as the kernel makes them; everywhere else an error.
    #[test]
    fn an_entry_that_was_cut_is_an_error_and_not_nobody() {
        let whole = entry_of(0x02, &[2; 6]);
        for cut in 0..whole.len() {
            let read = read_entry(&whole[..cut]);
            match cut {
                NEIGHBOUR_BYTES | 20 => assert_eq!(read.unwrap(), Entry::None, "{cut}"),
                _ => assert!(read.is_err(), "{cut}"),
            }
        }
    }

    #[test]
    fn a_straight_route_has_no_router_and_leaves_by_the_device() {
        let route = |kind: u8, attributes: &[(u16, u32)]| {
            let mut body = vec![0; ROUTE_BYTES];
            body[7] = kind;
            for (kind, value) in attributes {
                put(&mut body, *kind, &value.to_ne_bytes());
            }
            body
        };
        for (kind, attributes, want, why) in [
            (1, &[(RTA_DST, 9), (RTA_OIF, 7)][..], true, "straight"),
            (1, &[(RTA_OIF, 8)][..], false, "another device"),
            (1, &[(RTA_OIF, 7), (RTA_GATEWAY, 1)][..], false, "a router"),
            (1, &[(RTA_VIA, 1), (RTA_OIF, 7)][..], false, "IPv6's router"),
            (2, &[(RTA_OIF, 7)][..], false, "this host's own"),
            (1, &[][..], false, "no device"),
        ] {
            let body = route(kind, attributes);
            assert_eq!(straight_by(&body).unwrap() == Some(7), want, "{why}");
        }
        let body = route(1, &[(RTA_OIF, 7)]);
        for cut in (0..ROUTE_BYTES).chain(ROUTE_BYTES + 1..body.len()) {
            assert!(straight_by(&body[..cut]).is_err(), "{cut}");
        }
    }
}
