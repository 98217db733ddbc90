//! epoll with recvmmsg and sendmmsg, a plain blocking loop, and the load that every engine gets.

use std::io::{self, ErrorKind, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, recvmmsg, sendmmsg};

use super::{DATAGRAM, IN_FLIGHT, LOST_AFTER, Meter, raw};

/// Readiness, then everything that is there, then all answers.
pub fn serve(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    let socket = UdpSocket::bind(at).context("binding")?;
    socket.set_nonblocking(true).context("nonblocking")?;
    let epoll = Epoll::new(EpollCreateFlags::empty()).context("an epoll")?;
    epoll
        .add(&socket, EpollEvent::new(EpollFlags::EPOLLIN, 0))
        .context("watching the socket")?;
    let mut many = Many::default();
    let mut events = [EpollEvent::empty(); 1];
    loop {
        many.receive(&socket)?;
        if many.lengths.is_empty() {
            epoll
                .wait(&mut events, EpollTimeout::NONE)
                .context("waiting")?;
            continue;
        }
        many.send_back(&socket)?;
        if meter.add(many.lengths.len()) {
            return Ok(());
        }
    }
}

/// One system call to receive, one to answer.
pub fn serve_blocking(at: SocketAddr, meter: &mut Meter) -> Result<()> {
    let socket = UdpSocket::bind(at).context("binding")?;
    let mut octets = [0; 2048];
    loop {
        let (length, peer) = socket.recv_from(&mut octets).context("receiving")?;
        socket
            .send_to(&octets[..length], peer)
            .context("answering")?;
        if meter.add(1) {
            return Ok(());
        }
    }
}

/// Keeps [`IN_FLIGHT`] requests under way until `over`.
pub fn load(at: SocketAddr, over: &AtomicBool) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).context("the load's socket")?;
    socket.connect(at).context("connecting")?;
    socket
        .set_read_timeout(Some(LOST_AFTER))
        .context("a time limit")?;
    let mut many = Many::default();
    while !over.load(Ordering::Acquire) {
        many.fill();
        match many.send(&socket, &[]) {
            // Nobody listens yet.
            Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
                std::thread::sleep(LOST_AFTER / 20);
                continue;
            }
            other => other.context("sending the first requests")?,
        }
        loop {
            match many.receive_some(&socket) {
                // The server is gone, or requests were lost: begin anew.
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                Err(error) => return Err(error).context("receiving answers"),
                Ok(()) if many.lengths.is_empty() => break,
                Ok(()) => {}
            }
            match many.send(&socket, &[]) {
                Err(error) if error.kind() == ErrorKind::ConnectionRefused => break,
                other => other.context("sending requests")?,
            }
        }
    }
    Ok(())
}

/// A batch of datagrams.
struct Many {
    octets: Vec<[u8; DATAGRAM]>,
    lengths: Vec<usize>,
    peers: Vec<Option<SockaddrIn>>,
}

impl Default for Many {
    fn default() -> Self {
        Self {
            // Not zeros: our driver's DHCP socket takes only what has an address in ciaddr or giaddr.
            octets: vec![[1; DATAGRAM]; IN_FLIGHT],
            lengths: Vec::with_capacity(IN_FLIGHT),
            peers: Vec::with_capacity(IN_FLIGHT),
        }
    }
}

impl Many {
    /// A full batch of requests.
    fn fill(&mut self) {
        self.lengths.clear();
        self.lengths.resize(IN_FLIGHT, DATAGRAM);
        for octets in &mut self.octets {
            octets[0] = 1; // BOOTREQUEST
        }
    }

    /// What is there; nothing where nothing is.
    fn receive(&mut self, socket: &UdpSocket) -> Result<()> {
        self.receive_with(socket, MsgFlags::MSG_DONTWAIT)
            .context("receiving")
    }

    /// At least one, within the socket's limit.
    fn receive_some(&mut self, socket: &UdpSocket) -> io::Result<()> {
        self.receive_with(socket, MsgFlags::MSG_WAITFORONE)
    }

    fn receive_with(&mut self, socket: &UdpSocket, flags: MsgFlags) -> io::Result<()> {
        self.lengths.clear();
        self.peers.clear();
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(IN_FLIGHT, None);
        let mut slices: Vec<[IoSliceMut; 1]> = self
            .octets
            .iter_mut()
            .map(|octets| [IoSliceMut::new(octets)])
            .collect();
        match recvmmsg(raw(socket), &mut headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                for message in messages {
                    self.lengths.push(message.bytes);
                    self.peers.push(message.address);
                }
                Ok(())
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn send_back(&mut self, socket: &UdpSocket) -> Result<()> {
        let peers = std::mem::take(&mut self.peers);
        let sent = self.send(socket, &peers);
        self.peers = peers;
        sent.context("answering")
    }

    /// To `peers`, or, without any, to where the socket is connected.
    fn send(&self, socket: &UdpSocket, peers: &[Option<SockaddrIn>]) -> io::Result<()> {
        let count = self.lengths.len();
        let nobody = [None; IN_FLIGHT];
        let peers = if peers.is_empty() {
            &nobody[..count]
        } else {
            peers
        };
        let mut headers = MultiHeaders::<SockaddrIn>::preallocate(count, None);
        let slices: Vec<[IoSlice; 1]> = self
            .octets
            .iter()
            .zip(&self.lengths)
            .map(|(octets, length)| [IoSlice::new(&octets[..*length])])
            .collect();
        sendmmsg(
            raw(socket),
            &mut headers,
            slices.iter(),
            peers,
            [],
            MsgFlags::empty(),
        )?;
        Ok(())
    }
}
