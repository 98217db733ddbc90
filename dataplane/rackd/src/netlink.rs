//! Requests to the kernel by rtnetlink, and their answers taken apart. RFC 3549 (netlink).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::OwnedFd;

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
const HEADER_BYTES: usize = 16;
/// Datagrams of one dump at most; the kernel fills each with up to 32 KiB.
const DATAGRAMS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 65_536;

/// All entries of a kind: `each` gets the type and the body of every message.
pub fn dump(request: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = ask(request, DUMP, body)?;
    let mut buffer = vec![0u8; BUFFER_BYTES];
    for _ in 0..DATAGRAMS_MAX {
        let (got, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
        if messages(&buffer[..got], &mut each)? {
            return Ok(());
        }
    }
    Err(io::Error::other("the kernel's list does not end"))
}

/// One entry: `each` gets the message that answers. What is not there is an error (ENOENT).
pub fn get(request: u16, body: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    let socket = ask(request, NLM_F_REQUEST, body)?;
    let mut buffer = [0u8; 4_096];
    let (got, _) = recv(&socket, &mut buffer[..], RecvFlags::empty())?;
    messages(&buffer[..got], &mut each).map(drop)
}

/// The kernel has answered when this returns.
fn ask(request: u16, flags: u16, body: &[u8]) -> io::Result<OwnedFd> {
    // No protocol is NETLINK_ROUTE.
    let socket = socket_with(
        AddressFamily::NETLINK,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        None,
    )?;
    bind(&socket, &SocketAddrNetlink::new(0, 0))?;
    let mut message = vec![0; HEADER_BYTES];
    message.extend_from_slice(body);
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    message[..4].copy_from_slice(&length.to_ne_bytes());
    message[4..6].copy_from_slice(&request.to_ne_bytes());
    message[6..8].copy_from_slice(&flags.to_ne_bytes());
    send(&socket, &message, SendFlags::empty())?;
    Ok(socket)
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

/// An address of either family, by its length.
pub fn ip(octets: &[u8]) -> Option<IpAddr> {
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

/// Hands type and value of each attribute to `each`.
pub fn attributes(mut rest: &[u8], mut each: impl FnMut(u16, &[u8])) {
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

pub fn u16_at(octets: &[u8], at: usize) -> Option<u16> {
    octets
        .get(at..at + 2)?
        .try_into()
        .ok()
        .map(u16::from_ne_bytes)
}

pub fn u32_at(octets: &[u8], at: usize) -> Option<u32> {
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
    fn an_errors_number_is_told() {
        let error = [
            &20u32.to_ne_bytes()[..],
            &NLMSG_ERROR.to_ne_bytes(),
            &[0; 10],
            &(-2i32).to_ne_bytes(),
        ];
        let error = messages(&error.concat(), &mut |_, _| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
    }

    #[test]
    fn cut_and_odd_messages_end_quietly() {
        let mut message = vec![0; 32];
        message[..4].copy_from_slice(&32u32.to_ne_bytes());
        message[4..6].copy_from_slice(&16u16.to_ne_bytes());
        message[16..20].copy_from_slice(b"body");
        let mut seen = Vec::new();
        assert!(!messages(&message, &mut |kind, body| seen.push((kind, body.len()))).unwrap());
        assert_eq!(seen, [(16, 16)]);
        for cut in 0..message.len() {
            messages(&message[..cut], &mut |_, body| {
                attributes(body, |_, value| {
                    ip(value);
                });
            })
            .unwrap();
        }
        for length in 0..64u8 {
            let noise: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37)).collect();
            attributes(&noise, |_, value| {
                ip(value);
            });
            messages(&noise, &mut |_, _| {}).ok();
        }
    }
}
