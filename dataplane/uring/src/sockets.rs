//! Opens the sockets of all shards of a rack. Order matters: an index in a group is an order of joining.
//!
//! | service     | socket                                | who gets a packet                           |
//! |-------------|---------------------------------------|---------------------------------------------|
//! | DHCP, local | AF_PACKET SOCK_DGRAM, one per link and shard | fanout by chaddr ([`open_link`])     |
//! | DHCP, rest  | UDP 67, one per shard, reuseport      | filter and group program by chaddr          |
//! | proxyDHCP   | UDP 4011, one per shard, reuseport    | the kernel's hash of the 4-tuple            |
//! | TFTP        | UDP 69, one per shard, reuseport      | the kernel's hash of the 4-tuple            |
//! | TFTP data   | UDP, many ports per shard             | the shard that owns the port                |
//! | HTTP        | TCP, one listener per shard, reuseport | the kernel's hash of the 4-tuple           |
//!
//! UDP 67 is one wildcard socket per shard with packet information, not one per device: a relay's message comes in on
//! whatever device leads to its network, often no link of ours, and links come and go without touching it.
//!
//! A socket that closes loses its place in its group and the indices of the others move. So a shard that begins anew uses
//! the same ones, of which its thread keeps descriptors (start.rs).

use std::ffi::c_void;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use libc::{c_int, sock_filter};
use shard::LinkSocket;
use socket2::{Domain, Protocol, Socket, Type};

use crate::filter;

/// Where a rack listens. `None`: not at all. Port 0: one free port for all shards (tests).
#[derive(Clone, Copy, Debug)]
pub struct Places {
    pub dhcp: Option<SocketAddrV4>,
    pub proxy_dhcp: Option<SocketAddrV4>,
    pub tftp: Option<SocketAddr>,
    pub http: Option<SocketAddr>,
}

impl Default for Places {
    /// Everything on its own port, both families.
    fn default() -> Self {
        let any = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
        Self {
            dhcp: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67)),
            proxy_dhcp: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 4011)),
            tftp: Some(any(69)),
            http: Some(any(5248)),
        }
    }
}

/// The sockets of one shard but its links'.
#[derive(Debug)]
pub struct ShardSockets {
    pub dhcp: Option<OwnedFd>,
    pub proxy_dhcp: Option<OwnedFd>,
    pub tftp: Option<OwnedFd>,
    /// The ports that transfers of this shard are sent from. A transfer's port is what its client proves to have received
    /// from us, so there are many.
    pub transfers: Vec<OwnedFd>,
    pub http: Option<OwnedFd>,
    /// Where the two with a port of their own ended up.
    pub tftp_address: Option<SocketAddr>,
    pub http_address: Option<SocketAddr>,
}

impl ShardSockets {
    /// The same sockets by other descriptors: as long as one is open a socket keeps its place in its group.
    pub fn try_clone(&self) -> io::Result<Self> {
        let again = |fd: &Option<OwnedFd>| fd.as_ref().map(OwnedFd::try_clone).transpose();
        Ok(Self {
            dhcp: again(&self.dhcp)?,
            proxy_dhcp: again(&self.proxy_dhcp)?,
            tftp: again(&self.tftp)?,
            transfers: self
                .transfers
                .iter()
                .map(OwnedFd::try_clone)
                .collect::<io::Result<_>>()?,
            http: again(&self.http)?,
            tftp_address: self.tftp_address,
            http_address: self.http_address,
        })
    }
}

#[derive(Debug, thiserror::Error)]
#[error("{action} ({what})")]
pub struct SocketError {
    action: &'static str,
    what: String,
    #[source]
    source: io::Error,
}

/// Octets the kernel keeps of a burst. Without privilege it is cut to net.core.rmem_max.
const BUFFER_BYTES: usize = 4 << 20;
/// The same of one transfer port, which has a small part of the transfers.
const TRANSFER_BUFFER_BYTES: usize = 256 << 10;
/// Transfer ports of a rack, and at least so many of each shard; never more than this part of all descriptors.
const TRANSFER_PORTS: u32 = 512;
const TRANSFER_PORTS_PER_SHARD: u32 = 64;
const TRANSFER_DESCRIPTORS_PART: u64 = 16;
/// Connections that wait to be accepted. The kernel accepts all that wait before a shard sees the first of them, so they
/// are no more than this part of all descriptors.
const BACKLOG: u64 = 4096;
const BACKLOG_MIN: u64 = 16;
const BACKLOG_DESCRIPTORS_PART: u64 = 16;
/// `TCP_SAVE_SYN`: from the Ethernet header on.
const SAVE_FRAME: c_int = 2;
/// Ethernet, IP and TCP headers with all their options.
const SYN_BYTES_MAX: usize = 256;
/// A machine that lost its power in mid-download must not hold its connection: its next boot uses the same port.
const USER_TIMEOUT: Duration = Duration::from_secs(10);

/// Opens the sockets of all shards, in order of their indices.
pub fn open(places: &Places, shards: u32) -> Result<Vec<ShardSockets>, SocketError> {
    let (mut tftp_place, mut http_place) = (places.tftp, places.http);
    let mut all = Vec::new();
    for shard in 0..shards {
        let mut sockets = ShardSockets {
            dhcp: None,
            proxy_dhcp: None,
            tftp: None,
            transfers: Vec::new(),
            http: None,
            tftp_address: None,
            http_address: None,
        };
        if let Some(place) = places.dhcp {
            sockets.dhcp = Some(open_dhcp(place, shard, shards)?.into());
        }
        if let Some(place) = places.proxy_dhcp {
            sockets.proxy_dhcp = Some(open_datagram(place.into(), true, BUFFER_BYTES)?.into());
        }
        if let Some(place) = tftp_place {
            let socket = open_datagram(place, true, BUFFER_BYTES)?;
            let address = local_address(&socket, "tftp")?;
            sockets.transfers = open_transfers(address.ip(), shards)?;
            tftp_place = Some(address);
            sockets.tftp_address = Some(address);
            sockets.tftp = Some(socket.into());
        }
        if let Some(place) = http_place {
            let socket = open_listener(place, shards)?;
            let address = local_address(&socket, "http")?;
            http_place = Some(address);
            sockets.http_address = Some(address);
            sockets.http = Some(socket.into());
        }
        all.push(sockets);
    }
    if let Some(first) = all.first().and_then(|sockets| sockets.dhcp.as_ref()) {
        let program = filter::udp_group(shards);
        attach(
            first,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_REUSEPORT_CBPF,
            &program,
        )
        .map_err(fault("attaching the shard program", "dhcp"))?;
    }
    Ok(all)
}

/// The packet sockets of one link, one per shard in order: DHCP broadcasts on this device.
pub fn open_link(interface: u32, shards: u32) -> Result<Vec<LinkSocket>, SocketError> {
    let what = || format!("device {interface}");
    let mut all = Vec::new();
    let mut group = None;
    for _ in 0..shards {
        // Protocol 0: deaf until it is bound, so that nothing unfiltered ever gets in.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM.cloexec(), None)
            .map_err(fault("opening a packet socket", what()))?;
        let fd: OwnedFd = socket.into();
        attach(
            &fd,
            libc::SOL_SOCKET,
            libc::SO_ATTACH_FILTER,
            &filter::link_filter(),
        )
        .map_err(fault("attaching the DHCP filter", what()))?;
        for (name, action) in [
            (libc::PACKET_IGNORE_OUTGOING, "ignoring outgoing packets"),
            (libc::PACKET_AUXDATA, "asking for auxiliary data"),
        ] {
            set(&fd, libc::SOL_PACKET, name, &1i32).map_err(fault(action, what()))?;
        }
        large_buffers(&fd, BUFFER_BYTES);
        bind_link(&fd, interface, libc::ETH_P_IP)
            .map_err(fault("binding to the device", what()))?;
        let joined = match group {
            None => join_first(&fd, shards).map(|id| group = Some(id)),
            Some(id) => set(&fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &fanout(id, 0)),
        };
        joined.map_err(fault("joining the fanout group", what()))?;
        all.push(LinkSocket {
            interface,
            socket: fd,
        });
    }
    Ok(all)
}

/// The kernel's index of a device, by name.
pub fn interface_index(name: &str) -> io::Result<u32> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), None)?;
    Ok(rustix::net::netdevice::name_to_index(&socket, name)?)
}

/// `PACKET_FANOUT` takes a group id and, above it, kind and flags.
fn fanout(id: u16, flags: u32) -> u32 {
    u32::from(id) | (libc::PACKET_FANOUT_CBPF | flags) << 16
}

/// Makes a group of its own and gives it its program; returns its id.
fn join_first(fd: &OwnedFd, shards: u32) -> io::Result<u16> {
    let unique = fanout(0, libc::PACKET_FANOUT_FLAG_UNIQUEID);
    set(fd, libc::SOL_PACKET, libc::PACKET_FANOUT, &unique)?;
    attach(
        fd,
        libc::SOL_PACKET,
        libc::PACKET_FANOUT_DATA,
        &filter::link_fanout(shards),
    )?;
    let mut value: u32 = 0;
    let mut length = size_of::<u32>() as libc::socklen_t;
    // SAFETY: `value` and `length` are valid for writes for the call, and `length` says the size of `value`.
    let result = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_PACKET,
            libc::PACKET_FANOUT,
            (&raw mut value).cast::<c_void>(),
            &raw mut length,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok((value & 0xffff) as u16)
    }
}

/// A socket for whole ARP frames on one device, and the device's hardware address: to ask whether an address is used.
pub fn open_arp(interface: u32) -> Result<(OwnedFd, [u8; 6]), SocketError> {
    let what = || format!("device {interface}");
    let socket = Socket::new(Domain::PACKET, Type::RAW.cloexec().nonblocking(), None)
        .map_err(fault("opening a packet socket", what()))?;
    let fd: OwnedFd = socket.into();
    set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, &1i32)
        .map_err(fault("ignoring outgoing packets", what()))?;
    bind_link(&fd, interface, libc::ETH_P_ARP).map_err(fault("binding to the device", what()))?;
    let mac = hardware_address(&fd).map_err(fault("asking for the hardware address", what()))?;
    Ok((fd, mac))
}

/// The Ethernet address of the device that a packet socket is bound to.
fn hardware_address(fd: &OwnedFd) -> io::Result<[u8; 6]> {
    let mut address = libc::sockaddr_ll {
        sll_family: 0,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let mut length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `address` and `length` are valid for writes for the call, and `length` says the size of `address`.
    let result = unsafe {
        libc::getsockname(
            fd.as_raw_fd(),
            (&raw mut address).cast::<libc::sockaddr>(),
            &raw mut length,
        )
    };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    if address.sll_hatype != libc::ARPHRD_ETHER || address.sll_halen != 6 {
        return Err(io::ErrorKind::Unsupported.into());
    }
    let [a, b, c, d, e, f, ..] = address.sll_addr;
    Ok([a, b, c, d, e, f])
}

fn bind_link(fd: &OwnedFd, interface: u32, protocol: c_int) -> io::Result<()> {
    let index = c_int::try_from(interface).map_err(|_| io::ErrorKind::InvalidInput)?;
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (protocol as u16).to_be(),
        sll_ifindex: index,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a valid sockaddr_ll of the length given, read only during the call.
    let result = unsafe {
        libc::bind(
            fd.as_raw_fd(),
            (&raw const address).cast::<libc::sockaddr>(),
            size_of::<libc::sockaddr_ll>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn open_dhcp(place: SocketAddrV4, shard: u32, shards: u32) -> Result<Socket, SocketError> {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM.cloexec(), Some(Protocol::UDP))
        .map_err(fault("opening the DHCP socket", place))?;
    socket
        .set_reuse_port(true)
        .map_err(fault("sharing the port among shards", place))?;
    socket
        .set_broadcast(true)
        .map_err(fault("allowing broadcasts", place))?;
    set(&socket, libc::IPPROTO_IP, libc::IP_PKTINFO, &1i32)
        .map_err(fault("asking for packet information", place))?;
    // Before the bind: nothing unfiltered gets in.
    attach(
        &socket,
        libc::SOL_SOCKET,
        libc::SO_ATTACH_FILTER,
        &filter::udp_filter(shard, shards),
    )
    .map_err(fault("attaching the DHCP filter", place))?;
    large_buffers(&socket, BUFFER_BYTES);
    socket
        .bind(&SocketAddr::from(place).into())
        .map_err(fault("binding", place))?;
    Ok(socket)
}

/// The transfer ports of one shard, each chosen by the kernel at random. With few descriptors there are fewer ports, and
/// guessing is easier; without any there is no TFTP.
fn open_transfers(place: IpAddr, shards: u32) -> Result<Vec<OwnedFd>, SocketError> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let count = transfer_ports(shards, limit);
    let place = SocketAddr::new(place, 0);
    let open = || open_datagram(place, false, TRANSFER_BUFFER_BYTES).map(OwnedFd::from);
    (0..count).map(|_| open()).collect()
}

/// Of one shard, where the process may have so many descriptors (`None`: any number).
fn transfer_ports(shards: u32, descriptors: Option<u64>) -> u32 {
    let shards = shards.max(1);
    let wanted = (TRANSFER_PORTS / shards).max(TRANSFER_PORTS_PER_SHARD);
    let share = descriptors.map_or(u64::MAX, |limit| {
        limit / TRANSFER_DESCRIPTORS_PART / u64::from(shards)
    });
    wanted.min(u32::try_from(share).unwrap_or(u32::MAX)).max(1)
}

fn open_datagram(
    place: SocketAddr,
    shared: bool,
    receive_bytes: usize,
) -> Result<Socket, SocketError> {
    let (socket, place) = open_family(place, Type::DGRAM, Protocol::UDP)?;
    if shared {
        socket
            .set_reuse_port(true)
            .map_err(fault("sharing the port among shards", place))?;
    }
    let (level, name) = match place {
        SocketAddr::V4(_) => (libc::IPPROTO_IP, libc::IP_PKTINFO),
        SocketAddr::V6(_) => (libc::IPPROTO_IPV6, libc::IPV6_RECVPKTINFO),
    };
    set(&socket, level, name, &1i32).map_err(fault("asking for packet information", place))?;
    // A block that does not fit some tunnel on its way is better fragmented than refused: no DF bit.
    let free: c_int = libc::IP_PMTUDISC_DONT;
    set(&socket, libc::IPPROTO_IP, libc::IP_MTU_DISCOVER, &free)
        .map_err(fault("allowing fragments", place))?;
    if place.is_ipv6() {
        set(&socket, libc::IPPROTO_IPV6, libc::IPV6_MTU_DISCOVER, &free)
            .map_err(fault("allowing fragments", place))?;
    }
    large_buffers(&socket, receive_bytes);
    socket
        .bind(&place.into())
        .map_err(fault("binding", place))?;
    Ok(socket)
}

/// Of one shard, where the process may have so many descriptors (`None`: any number).
fn backlog(shards: u32, descriptors: Option<u64>) -> c_int {
    let share = descriptors.map_or(BACKLOG, |limit| {
        limit / BACKLOG_DESCRIPTORS_PART / u64::from(shards.max(1))
    });
    share.clamp(BACKLOG_MIN, BACKLOG) as c_int // far below
}

fn open_listener(place: SocketAddr, shards: u32) -> Result<Socket, SocketError> {
    let (socket, place) = open_family(place, Type::STREAM, Protocol::TCP)?;
    socket
        .set_reuse_port(true)
        .map_err(fault("sharing the port among shards", place))?;
    // A restart must not wait for connections of the last run.
    socket
        .set_reuse_address(true)
        .map_err(fault("reusing the address", place))?;
    // Accepted connections inherit both.
    socket
        .set_tcp_user_timeout(Some(USER_TIMEOUT))
        .map_err(fault("setting the user timeout", place))?;
    socket
        .set_tcp_nodelay(true)
        .map_err(fault("sending at once", place))?;
    // For `opened_by`.
    set(&socket, libc::IPPROTO_TCP, libc::TCP_SAVE_SYN, &SAVE_FRAME)
        .map_err(fault("keeping the frames that open connections", place))?;
    socket
        .bind(&place.into())
        .map_err(fault("binding", place))?;
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    socket
        .listen(backlog(shards, limit))
        .map_err(fault("listening", place))?;
    Ok(socket)
}

/// The Ethernet source of the frame that opened an accepted connection. `None` where the kernel did not keep it (a
/// connection that it took by SYN cookie), and where the link is no Ethernet. Asking forgets it.
pub fn opened_by(connection: &impl AsRawFd) -> Option<[u8; 6]> {
    let mut octets = [0u8; SYN_BYTES_MAX];
    let mut length = SYN_BYTES_MAX as libc::socklen_t;
    // SAFETY: `octets` and `length` are valid for writes for the call, and `length` says the size of `octets`.
    let result = unsafe {
        libc::getsockopt(
            connection.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SAVED_SYN,
            octets.as_mut_ptr().cast::<c_void>(),
            &raw mut length,
        )
    };
    if result < 0 {
        return None;
    }
    ethernet_source(octets.get(..length as usize)?)
}

/// Of a frame that carries IP.
fn ethernet_source(frame: &[u8]) -> Option<[u8; 6]> {
    let (source, rest) = frame.get(6..)?.split_first_chunk()?;
    let is_ip = matches!(
        rest,
        [0x08, 0x00, 0x40..=0x4f, ..] | [0x86, 0xdd, 0x60..=0x6f, ..]
    );
    // Loopback's has no source.
    (is_ip && *source != [0; 6]).then_some(*source)
}

/// A socket for this place. `[::]` takes IPv4 as well, and becomes 0.0.0.0 where there is no IPv6.
fn open_family(
    place: SocketAddr,
    kind: Type,
    protocol: Protocol,
) -> Result<(Socket, SocketAddr), SocketError> {
    let opened = Socket::new(Domain::for_address(place), kind.cloexec(), Some(protocol));
    let (socket, place) = match opened {
        Err(error)
            if error.raw_os_error() == Some(libc::EAFNOSUPPORT)
                && place.ip() == IpAddr::V6(Ipv6Addr::UNSPECIFIED) =>
        {
            let place = SocketAddr::from((Ipv4Addr::UNSPECIFIED, place.port()));
            let socket = Socket::new(Domain::IPV4, kind.cloexec(), Some(protocol))
                .map_err(fault("opening a socket", place))?;
            (socket, place)
        }
        opened => (opened.map_err(fault("opening a socket", place))?, place),
    };
    if place.is_ipv6() {
        socket
            .set_only_v6(false)
            .map_err(fault("taking both families", place))?;
    }
    Ok((socket, place))
}

/// Whether a socket is of the IPv6 family.
pub(crate) fn is_ipv6(fd: &OwnedFd) -> bool {
    rustix::net::sockopt::socket_domain(fd)
        .is_ok_and(|domain| domain == rustix::net::AddressFamily::INET6)
}

fn local_address(socket: &Socket, what: &'static str) -> Result<SocketAddr, SocketError> {
    let address = socket
        .local_addr()
        .map_err(fault("asking for the address", what))?;
    address
        .as_socket()
        .ok_or(io::ErrorKind::AddrNotAvailable.into())
        .map_err(fault("asking for the address", what))
}

/// As much as we may. A smaller one loses more of a burst; a full send buffer sends a datagram through a kernel worker.
fn large_buffers(fd: &impl AsRawFd, receive_bytes: usize) {
    for (forced, plain, bytes) in [
        (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF, receive_bytes),
        (libc::SO_SNDBUFFORCE, libc::SO_SNDBUF, BUFFER_BYTES),
    ] {
        let bytes = bytes as c_int;
        if set(fd, libc::SOL_SOCKET, forced, &bytes).is_err() {
            let _ = set(fd, libc::SOL_SOCKET, plain, &bytes);
        }
    }
}

/// Gives a classic BPF program to a socket option that takes one.
fn attach(fd: &impl AsRawFd, level: c_int, name: c_int, program: &[sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        filter: program.as_ptr().cast_mut(),
    };
    set(fd, level, name, &program)
}

/// setsockopt(2) with a plain value.
fn set<T: Copy>(fd: &impl AsRawFd, level: c_int, name: c_int, value: &T) -> io::Result<()> {
    // SAFETY: `value` is valid for reads of its size for the call; the kernel copies it. A `sock_fprog` points at a
    // program that its caller, `attach`, borrows for as long, and the kernel only reads it.
    let result = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            name,
            std::ptr::from_ref(value).cast::<c_void>(),
            size_of::<T>() as libc::socklen_t,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

fn fault(action: &'static str, what: impl ToString) -> impl FnOnce(io::Error) -> SocketError {
    move |source| SocketError {
        action,
        what: what.to_string(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transfer_ports_are_many_and_leave_descriptors_for_all_else() {
        for (shards, descriptors, want) in [
            (1, None, 512),
            (2, None, 256),
            (31, None, 64),
            (2, Some(1024), 32),
            (8, Some(1024), 8),
            (2, Some(524_288), 256),
            (64, Some(256), 1),
        ] {
            let ports = transfer_ports(shards, descriptors);
            assert_eq!(ports, want, "{shards} shards, {descriptors:?} descriptors");
        }
    }

    #[test]
    fn connections_that_wait_leave_descriptors_for_all_else() {
        for (shards, descriptors, want) in [
            (1, None, 4096),
            (2, Some(524_288), 4096),
            (2, Some(1024), 32),
            (63, Some(1024), 16),
        ] {
            let waiting = backlog(shards, descriptors);
            assert_eq!(
                waiting, want,
                "{shards} shards, {descriptors:?} descriptors"
            );
        }
    }

    #[test]
    fn the_source_of_an_ethernet_frame_with_ip_in_it_and_of_nothing_else() {
        let mac = [0x52, 0x54, 0, 0, 1, 2];
        let frame = |source: [u8; 6], rest: &[u8]| [&[0xff; 6][..], &source, rest].concat();
        let v4 = frame(mac, &[0x08, 0x00, 0x45, 0]);
        let v6 = frame(mac, &[0x86, 0xdd, 0x60, 0]);
        for (frame, want, why) in [
            (&v4, Some(mac), "IPv4"),
            (&v6, Some(mac), "IPv6"),
            (&frame(mac, &[0x08, 0x06, 0, 1]), None, "ARP"),
            (&frame([0; 6], &[0x08, 0x00, 0x45, 0]), None, "loopback"),
            (&vec![0x45; 40], None, "an IP header alone"),
        ] {
            assert_eq!(ethernet_source(frame), want, "{why}");
        }
        for cut in 0..v4.len() - 1 {
            assert_eq!(ethernet_source(&v4[..cut]), None, "{cut}");
        }
    }

    #[test]
    fn a_connection_over_loopback_was_opened_by_no_card() {
        let place = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        let listener: std::net::TcpListener = open_listener(place, 1).unwrap().into();
        let address = listener.local_addr().unwrap();
        let _client = std::net::TcpStream::connect(address).unwrap();
        let (server, _) = listener.accept().unwrap();
        assert_eq!(opened_by(&server), None);
    }
}
