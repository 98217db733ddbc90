//! The kernel's neighbour table: which card answers for an address on a device's own network (RFC 826).

use std::io;
use std::net::Ipv4Addr;

use crate::netlink::{attributes, get, u16_at};

const RTM_NEWNEIGH: u16 = 28;
const RTM_GETNEIGH: u16 = 30;
const AF_INET: u8 = 2;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `ndmsg`: family, padding, device, state, flags, type.
const NEIGHBOUR_BYTES: usize = 12;
/// NUD_REACHABLE, STALE, DELAY, PROBE, PERMANENT: an entry with an address that frames are sent to.
const USABLE: u16 = 0x02 | 0x04 | 0x08 | 0x10 | 0x80;

/// The MAC that frames to `address` are sent to on the device with this kernel index; `None` where the kernel knows
/// none. Takes some tens of microseconds, whatever the size of the table (kernel 5.0 and later).
pub fn mac_of(device: u32, address: Ipv4Addr) -> io::Result<Option<[u8; 6]>> {
    let mut mac = None;
    let asked = get(RTM_GETNEIGH, &question(device, address), |kind, body| {
        if kind == RTM_NEWNEIGH {
            mac = usable(body);
        }
    });
    match asked {
        Ok(()) => Ok(mac),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn question(device: u32, address: Ipv4Addr) -> Vec<u8> {
    let mut body = vec![0; NEIGHBOUR_BYTES];
    body[0] = AF_INET;
    body[4..8].copy_from_slice(&device.to_ne_bytes());
    body.extend_from_slice(&8u16.to_ne_bytes());
    body.extend_from_slice(&NDA_DST.to_ne_bytes());
    body.extend_from_slice(&address.octets());
    body
}

fn usable(body: &[u8]) -> Option<[u8; 6]> {
    if u16_at(body, 8)? & USABLE == 0 {
        return None;
    }
    let mut mac = None;
    attributes(body.get(NEIGHBOUR_BYTES..)?, |kind, value| {
        if kind == NDA_LLADDR {
            mac = value.try_into().ok();
        }
    });
    mac
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_understands_the_question_and_knows_nobody_on_loopback() {
        assert_eq!(mac_of(1, Ipv4Addr::new(127, 1, 2, 3)).unwrap(), None);
    }

    #[test]
    fn only_an_entry_that_frames_are_sent_to_names_a_card() {
        let entry = |state: u16, lladdr: &[u8]| {
            let mut body = question(7, Ipv4Addr::LOCALHOST);
            body[8..10].copy_from_slice(&state.to_ne_bytes());
            body.extend_from_slice(&u16::try_from(4 + lladdr.len()).unwrap().to_ne_bytes());
            body.extend_from_slice(&NDA_LLADDR.to_ne_bytes());
            body.extend_from_slice(lladdr);
            body
        };
        let mac = [0x52, 0x54, 0, 0, 1, 2];
        for (state, what) in [(0x02, "reachable"), (0x04, "stale"), (0x80, "permanent")] {
            assert_eq!(usable(&entry(state, &mac)), Some(mac), "{what}");
        }
        for (state, what) in [
            (0, "none"),
            (0x01, "incomplete"),
            (0x20, "failed"),
            (0x40, "no ARP"),
        ] {
            assert_eq!(usable(&entry(state, &mac)), None, "{what}");
        }
        assert_eq!(usable(&entry(0x02, &[1; 8])), None, "no Ethernet");
        let whole = entry(0x02, &mac);
        for cut in 0..whole.len() {
            assert_eq!(usable(&whole[..cut]), None, "{cut}");
        }
    }
}
