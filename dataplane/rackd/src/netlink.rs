//! Requests to the kernel by rtnetlink, and their answers taken apart. RFC 3549 (netlink).
//!
//! An answer is whole or it is an error: what is not there is told apart from what was cut, lost or changed while it was
//! read. Every question has a socket of its own, so that nothing of one answer is left for the next.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

const NLMSG_NOOP: u16 = 1;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLMSG_OVERRUN: u16 = 4;
const NLM_F_REQUEST: u16 = 1;
/// What is listed changed meanwhile: entries may be missing, or there twice.
const NLM_F_DUMP_INTR: u16 = 0x10;
/// NLM_F_REQUEST | NLM_F_DUMP
const DUMP: u16 = 0x301;
const HEADER_BYTES: usize = 16;
/// Datagrams of one dump at most; the kernel fills each with up to 32 KiB.
const DATAGRAMS_MAX: usize = 1024;
const BUFFER_BYTES: usize = 65_536;
/// A list that changes while it is read is read again so often.
const DUMPS_MAX: usize = 4;

/// All entries of a kind, by their messages' types and bodies. An error: not all of them are known.
pub fn dump(request: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let mut outcome = dump_once(request, body);
    for _ in 1..DUMPS_MAX {
        match &outcome {
            Err(error) if passes(error) => outcome = dump_once(request, body),
            _ => break,
        }
    }
    outcome
}

fn dump_once(request: u16, body: &[u8]) -> io::Result<Vec<(u16, Vec<u8>)>> {
    let socket = ask(request, DUMP, body)?;
    let mut buffer = vec![0u8; BUFFER_BYTES];
    let mut all = Vec::new();
    for _ in 0..DATAGRAMS_MAX {
        let datagram = receive(&socket, &mut buffer)?;
        let is_over = messages(datagram, &mut |kind, body| {
            all.push((kind, body.to_vec()));
            Ok(())
        })?;
        if is_over {
            return Ok(all);
        }
    }
    Err(io::Error::other("the kernel's list does not end"))
}

/// The same question again may have its answer: the list changed, or the kernel had no memory for all of it.
fn passes(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    error.kind() == io::ErrorKind::Interrupted
        || number == Some(rustix::io::Errno::NOBUFS.raw_os_error())
        || number == Some(rustix::io::Errno::AGAIN.raw_os_error())
}

/// One entry: `each` gets the message that answers. What is not there is an error of the kernel's own (ENOENT), and so is
/// an answer that has no message.
pub fn get(
    request: u16,
    body: &[u8],
    mut each: impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<()> {
    let socket = ask(request, NLM_F_REQUEST, body)?;
    let mut buffer = [0u8; 4_096];
    one(receive(&socket, &mut buffer)?, &mut each)
}

fn one(datagram: &[u8], each: &mut impl FnMut(u16, &[u8]) -> io::Result<()>) -> io::Result<()> {
    let mut count = 0;
    messages(datagram, &mut |kind, body| {
        count += 1;
        each(kind, body)
    })?;
    match count {
        0 => Err(malformed("the kernel's answer says nothing")),
        _ => Ok(()),
    }
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

/// The next datagram, whole. It is there already, or it never comes: an answer that the kernel lost must not be waited for.
fn receive<'a>(socket: &impl AsFd, buffer: &'a mut [u8]) -> io::Result<&'a [u8]> {
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    let (_, bytes) = recv(socket, &mut *buffer, flags)?;
    buffer
        .get(..bytes)
        .ok_or_else(|| malformed("the kernel's answer was cut"))
}

/// Hands each message to `each`; `true` at the end of the dump.
fn messages(
    mut rest: &[u8],
    each: &mut impl FnMut(u16, &[u8]) -> io::Result<()>,
) -> io::Result<bool> {
    while !rest.is_empty() {
        let cut = || malformed("a message of the kernel's was cut");
        let header = rest.get(..HEADER_BYTES).ok_or_else(cut)?;
        let length = u32_at(header, 0).unwrap_or(0) as usize;
        let (kind, flags) = (
            u16_at(header, 4).unwrap_or(0),
            u16_at(header, 6).unwrap_or(0),
        );
        let body = rest.get(HEADER_BYTES..length).ok_or_else(cut)?;
        if flags & NLM_F_DUMP_INTR != 0 {
            return Err(io::ErrorKind::Interrupted.into());
        }
        match kind {
            NLMSG_NOOP => {}
            // A dump that failed in its middle says so at its end.
            NLMSG_DONE => return failure(body).map_or(Ok(true), Err),
            NLMSG_ERROR => return Err(failure(body).unwrap_or_else(|| malformed("no answer"))),
            NLMSG_OVERRUN => return Err(rustix::io::Errno::NOBUFS.into()),
            _ => each(kind, body)?,
        }
        rest = rest.get(align(length)..).unwrap_or_default();
    }
    Ok(false)
}

/// The negated number at the front of the end of a dump, and of an error. None: 0, which is no failure.
fn failure(body: &[u8]) -> Option<io::Error> {
    let code = u32_at(body, 0)?.cast_signed();
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}

pub fn malformed(words: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, words)
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

/// Hands type and value of each attribute to `each`. An error: they end in the middle of one.
pub fn attributes(mut rest: &[u8], mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
    while !rest.is_empty() {
        let cut = || malformed("an attribute of the kernel's was cut");
        let length = usize::from(u16_at(rest, 0).ok_or_else(cut)?);
        let kind = u16_at(rest, 2).ok_or_else(cut)?;
        each(kind, rest.get(4..length).ok_or_else(cut)?);
        rest = rest.get(align(length)..).unwrap_or_default();
    }
    Ok(())
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

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(HEADER_BYTES + body.len()).unwrap();
        let mut octets = length.to_ne_bytes().to_vec();
        octets.extend_from_slice(&kind.to_ne_bytes());
        octets.extend_from_slice(&flags.to_ne_bytes());
        octets.extend_from_slice(&[0; 8]);
        octets.extend_from_slice(body);
        octets
    }

    fn read(octets: &[u8]) -> (io::Result<bool>, usize) {
        let mut count = 0;
        let over = messages(octets, &mut |_, _| {
            count += 1;
            Ok(())
        });
        (over, count)
    }

    /// Each of these once looked like the end of a list, or like an entry that is not there.
    #[test]
    fn what_was_cut_lost_or_changed_is_no_end_and_no_absence() {
        use io::ErrorKind::{Interrupted, InvalidData, NotFound, PermissionDenied};
        let entry = message(16, 0, b"body");
        let number = |code: i32| code.to_ne_bytes();
        let nobufs = io::Error::from(rustix::io::Errno::NOBUFS).kind();
        for (octets, want, why) in [
            (message(NLMSG_ERROR, 0, &number(-2)), NotFound, "ENOENT"),
            (
                message(NLMSG_ERROR, 0, &number(-1)),
                PermissionDenied,
                "EPERM",
            ),
            (
                message(NLMSG_ERROR, 0, &number(0)),
                InvalidData,
                "a mere acknowledgement",
            ),
            (
                message(NLMSG_ERROR, 0, b"ab"),
                InvalidData,
                "an error without a number",
            ),
            (
                message(NLMSG_DONE, 0, &number(-1)),
                PermissionDenied,
                "a dump that failed in its middle",
            ),
            (
                message(NLMSG_DONE, NLM_F_DUMP_INTR, &number(0)),
                Interrupted,
                "changed, said at the end",
            ),
            (
                message(16, NLM_F_DUMP_INTR, b"body"),
                Interrupted,
                "changed, said in the middle",
            ),
            (message(NLMSG_OVERRUN, 0, b""), nobufs, "data lost"),
            (
                [&entry[..], &entry[..18]].concat(),
                InvalidData,
                "cut in the second",
            ),
        ] {
            let (over, _) = read(&octets);
            assert_eq!(over.unwrap_err().kind(), want, "{why}");
        }
        for cut in 1..entry.len() {
            let (over, count) = read(&entry[..cut]);
            assert_eq!((over.unwrap_err().kind(), count), (InvalidData, 0), "{cut}");
        }
        let whole = [
            entry.clone(),
            message(NLMSG_NOOP, 0, b""),
            entry,
            message(NLMSG_DONE, 0, &number(0)),
        ];
        let (over, count) = read(&whole.concat());
        assert_eq!((over.unwrap(), count), (true, 2));
        let (over, count) = read(&whole[..3].concat());
        assert_eq!((over.unwrap(), count), (false, 2), "more datagrams follow");
    }

    #[test]
    fn an_answer_without_an_entry_says_nothing_of_the_entry() {
        for octets in [
            vec![],
            message(NLMSG_NOOP, 0, b""),
            message(NLMSG_DONE, 0, b""),
        ] {
            let error = one(&octets, &mut |_, _| Ok(())).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData);
        }
        let kinds = &mut Vec::new();
        one(&message(28, 0, b"body"), &mut |kind, _| {
            kinds.push(kind);
            Ok(())
        })
        .unwrap();
        assert_eq!(*kinds, [28]);
    }

    /// A datagram that the buffer does not hold, and none at all.
    #[test]
    fn a_datagram_that_does_not_fit_is_an_error_and_none_is_not_waited_for() {
        let (ours, theirs) = std::os::unix::net::UnixDatagram::pair().unwrap();
        let mut buffer = [0; 32];
        theirs.send(&message(28, 0, &[7; 17])).unwrap();
        let cut = receive(&ours, &mut buffer).unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::InvalidData);
        theirs.send(&message(28, 0, &[7; 16])).unwrap();
        assert_eq!(receive(&ours, &mut buffer).unwrap().len(), 32);
        let none = receive(&ours, &mut buffer).unwrap_err();
        assert_eq!(none.kind(), io::ErrorKind::WouldBlock);
        // A socket that died.
        drop(theirs);
        let connected = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let gone = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        connected.connect(gone.local_addr().unwrap()).unwrap();
        drop(gone);
        connected.send(b"x").unwrap();
        let mut dead = None;
        for _ in 0..1_000 {
            match receive(&connected, &mut buffer) {
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => dead = Some(error),
                _ => {
                    std::thread::yield_now();
                    continue;
                }
            }
            break;
        }
        assert_eq!(
            dead.expect("it dies").kind(),
            io::ErrorKind::ConnectionRefused
        );
    }

    #[test]
    fn only_what_passes_is_asked_again() {
        let again = |error: rustix::io::Errno| passes(&error.into());
        assert!(again(rustix::io::Errno::NOBUFS) && again(rustix::io::Errno::AGAIN));
        assert!(again(rustix::io::Errno::INTR));
        assert!(!again(rustix::io::Errno::PERM) && !again(rustix::io::Errno::NOENT));
        assert!(!passes(&malformed("cut")));
    }

    #[test]
    fn attributes_are_whole_or_an_error_and_noise_ends() {
        let mut octets = 8u16.to_ne_bytes().to_vec();
        octets.extend_from_slice(&[1, 0, 10, 0, 0, 1]);
        let mut seen = Vec::new();
        attributes(&octets, |kind, value| seen.push((kind, ip(value)))).unwrap();
        assert_eq!(seen, [(1, Some([10, 0, 0, 1].into()))]);
        for cut in 1..octets.len() {
            let error = attributes(&octets[..cut], |_, _| {}).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{cut}");
        }
        for length in 0..64u8 {
            let noise: Vec<u8> = (0..length).map(|i| i.wrapping_mul(37)).collect();
            attributes(&noise, |_, value| {
                assert!(ip(value).is_none() || value.len() >= 4)
            })
            .ok();
            read(&noise).0.ok();
        }
    }
}
