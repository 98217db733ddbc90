//! What a shard needs from outside: datagrams in and out, streams, time. `uring::Ring` is the real one.
//!
//! A driver knows sockets and buffers and nothing of protocols; the shard knows protocols and no socket. The octets of
//! a datagram stay in the driver's buffer until `release`. Streams are TCP connections that were accepted: at most one
//! send is in flight on each, and every send is answered once: by [`Completion::StreamSent`] if octets left, by
//! [`Completion::Ended`] with `broken` if it failed. The two are never the same.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::Object;
pub use tftp::{NoSlot, Train};

pub trait Driver {
    /// Sends what is queued, waits at most `wait` for something to happen, then appends what did, oldest first.
    fn poll(&mut self, wait: Duration, done: &mut Vec<Completion>) -> io::Result<()>;

    /// The next poll may wait so long before it looks, if more is likely to come meanwhile: a wake-up costs as much as
    /// several datagrams. A driver that cannot need not.
    fn gather(&mut self, _time: Duration) {}

    /// Monotonic time, read once per poll.
    fn now(&self) -> Instant;

    /// The received octets, valid until `release`.
    fn bytes(&self, buffer: &Buffer) -> &[u8];

    /// Gives a buffer back. Every buffer of a completion is given back exactly once.
    fn release(&mut self, buffer: Buffer);

    /// Queues one datagram, or a train of equal ones, which `fill` writes into a slot of `train.bytes` octets.
    fn send(
        &mut self,
        target: &Target,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot>;

    /// The packet sockets of this shard's links, in place of those it had.
    fn set_links(&mut self, links: Vec<LinkSocket>);

    /// No new connections from now on.
    fn stop_accepting(&mut self);

    /// Sends some or all of `bytes`; the completion says how many octets it was. `more`: something follows at once, so the
    /// last segment may wait for it.
    fn stream_send(&mut self, stream: StreamId, bytes: Bytes, more: bool);

    /// Sends at most `length` octets of the object's file; the completion says how many it was.
    fn stream_send_file(&mut self, stream: StreamId, object: Arc<Object>, offset: u64, length: u64);

    /// Octets sent that the client has not taken yet, as far as the driver can tell.
    fn stream_queued(&self, _stream: StreamId) -> u64 {
        0
    }

    /// Takes the connection away; [`Completion::Taken`] brings it with whatever arrived meanwhile.
    fn stream_take(&mut self, stream: StreamId);

    /// The shard is done with the connection; nothing more is reported about it.
    fn stream_close(&mut self, stream: StreamId, how: Close);

    /// What the driver counted.
    fn counters(&self) -> DriverCounters;
}

/// What is known of a connection from its first frame.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: SocketAddr,
    /// The Ethernet source of the frame that opened it, where the kernel kept that.
    pub frame: Option<[u8; 6]>,
}

/// Everything that can happen to a shard.
#[derive(Debug)]
pub enum Completion {
    Datagram(Datagram),
    /// A client connected.
    Accepted {
        stream: StreamId,
        ends: Ends,
    },
    /// Octets of a client.
    Received {
        stream: StreamId,
        buffer: Buffer,
    },
    /// The client sends no more (`broken: false`), or the connection is no longer usable.
    Ended {
        stream: StreamId,
        broken: bool,
    },
    /// The send in flight is over: so many octets left, one at least.
    StreamSent {
        stream: StreamId,
        sent: u64,
    },
    /// The answer to `stream_take`.
    Taken {
        stream: StreamId,
        socket: OwnedFd,
        read: Vec<u8>,
    },
    /// Somebody left something in the mailbox.
    Mail,
}

/// A received datagram.
#[derive(Debug)]
pub struct Datagram {
    pub service: Service,
    /// For [`Service::DhcpFrame`] unspecified: the packet says it.
    pub from: SocketAddr,
    /// Our address it was sent to; unspecified for frames.
    pub local: IpAddr,
    /// Kernel index of the device it came in on.
    pub interface: u32,
    /// The Ethernet address that a [`Service::DhcpFrame`] came from; `None` where the device has none, and for datagrams.
    pub ethernet: Option<[u8; 6]>,
    /// The sender's checksum was left to hardware: it is not in the packet yet.
    pub checksum_missing: bool,
    pub buffer: Buffer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Service {
    /// A whole IPv4 packet from a link's packet socket: without relay, and by broadcast or from a client without address.
    DhcpFrame,
    /// The payload of a datagram to UDP 67: relays, and renewals by unicast.
    Dhcp,
    /// To UDP 4011: firmware on a link whose addresses somebody else hands out.
    ProxyDhcp,
    /// To the TFTP request port.
    TftpRequest,
    /// To this one of the shard's transfer ports.
    TftpTransfer(u16),
}

/// Where a datagram goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A whole IPv4 packet out of a link's device, to this hardware address.
    Frame { interface: u32, mac: [u8; 6] },
    /// A DHCP message from UDP 67.
    Dhcp { from: Ipv4Addr, to: SocketAddrV4 },
    /// A DHCP message from UDP 4011: firmware takes the answer from no other port.
    ProxyDhcp { from: Ipv4Addr, to: SocketAddrV4 },
    /// From transfer port `tid` of the shard's.
    Tftp {
        from: IpAddr,
        to: SocketAddr,
        tid: u16,
    },
}

/// A received range of one of the driver's buffers. Not `Clone`: it is given back once.
#[derive(Debug)]
#[must_use = "buffers are given back with Driver::release"]
pub struct Buffer {
    /// Which set of buffers, and which of it: the driver's business.
    pub set: u16,
    pub index: u16,
    pub start: u32,
    pub length: u32,
}

/// A connection as the driver counts them: an index that is used again, and how often it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct StreamId {
    pub index: u32,
    pub generation: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Close {
    /// Everything was sent; the client may still be reading.
    Graceful,
    /// Now, unsent octets and all.
    Abort,
}

/// One link's packet socket of one shard.
#[derive(Debug)]
pub struct LinkSocket {
    /// Kernel index of the device.
    pub interface: u32,
    pub socket: OwnedFd,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DriverCounters {
    pub datagrams_received: u64,
    pub datagrams_sent: u64,
    /// Sends that the kernel refused.
    pub sends_failed: u64,
    /// Trains that had to be sent one by one because the path does not take them.
    pub trains_split: u64,
    /// Frames with a VLAN tag that no device of ours carries.
    pub frames_tagged: u64,
    /// Received datagrams that did not fit their buffer or lacked their addresses.
    pub datagrams_unusable: u64,
    /// Multishot receives that ended because every buffer was in use, and were armed again.
    pub buffers_exhausted: u64,
    pub accepted: u64,
    /// Sends and waits of streams that failed: the client is gone, or its file is.
    pub stream_sends_failed: u64,
    /// Connections beyond the driver's table.
    pub accept_refused: u64,
    /// Connections that were gone before they were looked at.
    pub accept_gone: u64,
    pub accept_failed: u64,
    pub streams: u64,
    pub file_bytes: u64,
    /// Calls into the kernel, and those that it could not serve for want of memory or of room for completions.
    pub enters: u64,
    pub enters_refused: u64,
    /// Operations that found no room in the queue, or that the kernel ended with an error and that were armed again.
    pub arms_failed: u64,
}
