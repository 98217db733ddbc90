//! The ring: sockets and memory behind the queue, datagrams out, and `Driver` for the shard. What is always armed
//! ([`arm`]), what comes in ([`receive`]) and a ring's end ([`close`]) have files of their own.

mod arm;
mod close;
mod receive;

use std::collections::HashMap;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::Object;
use io_uring::types::Fd;
use io_uring::{IoUring, opcode};
use shard::{
    Bell, Buffer, Close, Completion, Driver, DriverCounters, LinkSocket, NoSlot, Service, StreamId,
    Target, Train,
};
use slab::Slab;

use arm::{Listener, RETRY_AFTER, Retry};

use crate::buffers::Buffers;
use crate::control::{CONTROL_BYTES, NAME_BYTES};
use crate::probe::{self, RingError};
use crate::queue::{Kind, Queue, Reaped, user_data};
use crate::slots::Slots;
use crate::sockets::ShardSockets;
use crate::streams::Streams;

/// Sizes of one ring. About 9 MiB a shard as they are.
#[derive(Clone, Copy, Debug)]
pub struct RingLimits {
    /// Submissions between two calls into the kernel.
    pub submissions: u32,
    /// Completions the kernel may hold for us; more wait in its own list, none is lost.
    pub completions: u32,
    /// Receive buffers for DHCP, TFTP and HTTP: powers of two.
    pub dhcp_buffers: u16,
    pub tftp_buffers: u16,
    pub http_buffers: u16,
    /// Sends of at most 2 KiB, and trains of at most 32 KiB, in flight.
    pub small_slots: u32,
    pub large_slots: u32,
    /// Connections, those that are closing included.
    pub streams_max: usize,
    /// File octets sent per poll, so that datagrams never wait longer than this takes.
    pub file_bytes_per_poll: u64,
}

impl Default for RingLimits {
    fn default() -> Self {
        Self {
            submissions: 2048,
            completions: 16_384,
            dhcp_buffers: 1024,
            tftp_buffers: 1024,
            http_buffers: 512,
            small_slots: 1024,
            large_slots: 64,
            streams_max: 8192,
            file_bytes_per_poll: 4 << 20,
        }
    }
}

const SMALL_SLOT_BYTES: usize = 2048;
const LARGE_SLOT_BYTES: usize = 32 * 1024;
/// UDP_SEGMENT cuts at most so many datagrams out of one (UDP_MAX_SEGMENTS of older kernels).
const TRAIN_SEGMENTS_MAX: usize = 64;
/// After so many refused trains in a row they are not tried again.
const TRAIN_REFUSALS_MAX: u32 = 16;

const SET_DHCP: usize = 0;
const SET_TFTP: usize = 1;
pub(crate) const SET_HTTP: usize = 2;
const DHCP_BUFFER_BYTES: usize = 2048;
const TFTP_BUFFER_BYTES: usize = 1024;
const HTTP_BUFFER_BYTES: usize = 4096;

/// A datagram socket this shard receives from.
struct Socket {
    fd: OwnedFd,
    service: Service,
    /// The device of a packet socket; 0 for others.
    interface: u32,
    armed: bool,
    /// Cancelled; gone with its last completion.
    leaving: bool,
    retry: Retry,
}

/// The memory that operations in flight point at. `Ring::drop` gives it up if they cannot be ended.
struct Memory {
    sets: [Buffers; 3],
    small: Slots,
    large: Slots,
    streams: Streams,
    /// Says how much room a datagram's address and control messages have. Boxed: the kernel reads it when a receive is
    /// submitted, wherever the ring has been moved to.
    template: Box<libc::msghdr>,
}

pub struct Ring {
    queue: Queue,
    /// For the next poll.
    gather: Duration,
    memory: ManuallyDrop<Memory>,
    sockets: Slab<Socket>,
    /// Packet sockets by device.
    links: HashMap<u32, u32>,
    listener: Option<Listener>,
    bell: Arc<Bell>,
    bell_armed: bool,
    bell_retry: Retry,
    /// Cancellations that found no room in the queue.
    uncancelled: Vec<u64>,
    /// Sockets for each way out.
    dhcp: Option<u32>,
    proxy_dhcp: Option<u32>,
    /// By their number in [`Service::TftpTransfer`].
    transfers: Vec<u32>,
    transfer_ipv6: bool,
    /// Sockets whose receive ended and is to be armed again.
    unarmed: Vec<u32>,
    trains: bool,
    train_refusals: u32,
    now: Instant,
    limits: RingLimits,
    reaped: Vec<Reaped>,
    counters: DriverCounters,
}

impl Ring {
    /// A ring for the calling thread, which must be the only one to use it, with the shard's sockets armed.
    pub fn new(
        limits: RingLimits,
        sockets: ShardSockets,
        bell: Arc<Bell>,
    ) -> Result<Self, RingError> {
        let ring: IoUring = IoUring::builder()
            .setup_cqsize(limits.completions)
            .setup_clamp()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .build(limits.submissions)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::ENOSYS | libc::EPERM) => RingError::Unavailable(error),
                _ => RingError::Setup(error),
            })?;
        probe::check(&ring)?;
        let register = |set: usize, count: u16, bytes: usize| {
            Buffers::register(&ring.submitter(), set as u16, count, bytes)
                .map_err(RingError::Buffers)
        };
        let sets = [
            register(SET_DHCP, limits.dhcp_buffers, DHCP_BUFFER_BYTES)?,
            register(SET_TFTP, limits.tftp_buffers, TFTP_BUFFER_BYTES)?,
            register(SET_HTTP, limits.http_buffers, HTTP_BUFFER_BYTES)?,
        ];
        // SAFETY: msghdr is plain integers and pointers; all zero is a valid empty one.
        let mut template: Box<libc::msghdr> = Box::new(unsafe { std::mem::zeroed() });
        template.msg_namelen = NAME_BYTES as u32;
        template.msg_controllen = CONTROL_BYTES;
        let mut ring = Self {
            queue: Queue::new(ring),
            gather: Duration::ZERO,
            memory: ManuallyDrop::new(Memory {
                sets,
                small: Slots::new(limits.small_slots, SMALL_SLOT_BYTES),
                large: Slots::new(limits.large_slots, LARGE_SLOT_BYTES),
                streams: Streams::new(limits.streams_max),
                template,
            }),
            sockets: Slab::new(),
            links: HashMap::new(),
            listener: None,
            bell,
            bell_armed: false,
            bell_retry: Retry::default(),
            uncancelled: Vec::new(),
            dhcp: None,
            proxy_dhcp: None,
            transfers: Vec::new(),
            transfer_ipv6: false,
            unarmed: Vec::new(),
            trains: true,
            train_refusals: 0,
            now: Instant::now(),
            limits,
            reaped: Vec::with_capacity(limits.completions as usize),
            counters: DriverCounters::default(),
        };
        if let Some(fd) = sockets.dhcp {
            ring.dhcp = Some(ring.add_socket(fd, Service::Dhcp, 0));
        }
        if let Some(fd) = sockets.proxy_dhcp {
            ring.proxy_dhcp = Some(ring.add_socket(fd, Service::ProxyDhcp, 0));
        }
        if let Some(fd) = sockets.tftp {
            ring.add_socket(fd, Service::TftpRequest, 0);
        }
        for (tid, fd) in (0..).zip(sockets.transfers) {
            ring.transfer_ipv6 = crate::sockets::is_ipv6(&fd); // they are all of one family
            let socket = ring.add_socket(fd, Service::TftpTransfer(tid), 0);
            ring.transfers.push(socket);
        }
        ring.listener = sockets.http.map(|fd| Listener {
            fd,
            armed: false,
            leaving: false,
            retry: Retry::default(),
        });
        ring.arm().map_err(RingError::Arm)?;
        ring.queue.submit().map_err(RingError::Arm)?;
        Ok(ring)
    }

    fn on_reaped(&mut self, reaped: Reaped, done: &mut Vec<Completion>) {
        match reaped.kind {
            Kind::Bell => {
                self.bell_armed = reaped.goes_on();
                if reaped.result < 0 {
                    self.counters.arms_failed += 1;
                    self.bell_retry.failed(self.now);
                } else {
                    self.bell_retry.succeeded();
                }
                self.bell.silence();
                done.push(Completion::Mail);
            }
            Kind::Datagrams => self.on_datagram(reaped, done),
            Kind::Accept => self.on_accept(reaped, done),
            Kind::SendSmall => {
                self.count_send(reaped.result);
                self.memory.small.free(reaped.index);
            }
            Kind::SendLarge => self.on_large_sent(reaped),
            Kind::StreamReceive | Kind::StreamSend | Kind::StreamWritable | Kind::StreamCancel => {
                let memory = &mut *self.memory;
                memory
                    .streams
                    .on_reaped(reaped, &mut memory.sets[SET_HTTP], &mut self.queue, done);
            }
            Kind::Cancel => {}
        }
    }

    fn count_send(&mut self, result: i32) {
        // Whatever the reason (no route, no neighbour, no memory): the peer's retry is the remedy.
        if result < 0 {
            self.counters.sends_failed += 1;
        } else {
            self.counters.datagrams_sent += 1;
        }
    }

    /// A train that the path refuses (EIO: the device cannot checksum it, EINVAL or EMSGSIZE: a segment is larger than
    /// the path's MTU) leaves one by one.
    fn on_large_sent(&mut self, reaped: Reaped) {
        let refused = matches!(-reaped.result, libc::EIO | libc::EINVAL | libc::EMSGSIZE);
        if refused && self.memory.large.is_train(reaped.index) {
            self.train_refusals += 1;
            self.trains = self.train_refusals < TRAIN_REFUSALS_MAX;
            self.send_split(reaped.index);
        } else {
            if reaped.result >= 0 {
                self.train_refusals = 0;
            }
            self.count_send(reaped.result);
        }
        self.memory.large.free(reaped.index);
    }

    /// Sends a slot's train without the kernel's help. The slot is not in flight.
    fn send_split(&mut self, index: u32) {
        let at = self.transfers.get(self.memory.large.tid(index));
        let Some(socket) = at.and_then(|at| self.sockets.get(*at as usize)) else {
            return;
        };
        self.counters.trains_split += 1;
        let sent = self.memory.large.send_split(index, socket.fd.as_raw_fd());
        self.counters.datagrams_sent += sent as u64;
        self.counters.sends_failed += (self.memory.large.segments(index) - sent) as u64;
    }
}

impl Driver for Ring {
    fn poll(&mut self, wait: Duration, done: &mut Vec<Completion>) -> io::Result<()> {
        self.now = Instant::now();
        if self.needs_arming() {
            self.arm()?;
        }
        let memory = &mut *self.memory;
        memory
            .streams
            .resume(&memory.sets[SET_HTTP], &mut self.queue, done);
        let busy = !done.is_empty() || memory.streams.has_files_ready();
        let wait = if busy {
            Duration::ZERO
        } else {
            let wait = match memory.streams.next_deadline() {
                Some(at) => wait.min(at.saturating_duration_since(self.now)),
                None => wait,
            };
            // Something waits to be tried again.
            match self.needs_arming() || self.memory.streams.has_starved() {
                true => wait.min(RETRY_AFTER),
                false => wait,
            }
        };
        let mut reaped = std::mem::take(&mut self.reaped);
        let gather = std::mem::take(&mut self.gather);
        let result = self.queue.reap(wait, gather, &mut reaped);
        self.now = Instant::now();
        for completion in reaped.drain(..) {
            self.on_reaped(completion, done);
        }
        self.reaped = reaped;
        let memory = &mut *self.memory;
        memory
            .streams
            .send_files(self.limits.file_bytes_per_poll, &mut self.queue, done);
        memory.streams.end_lingering(self.now, &mut self.queue);
        result
    }

    fn gather(&mut self, time: Duration) {
        self.gather = time;
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        let Some(set) = self.memory.sets.get(usize::from(buffer.set)) else {
            return &[];
        };
        let start = buffer.start as usize;
        set.bytes(buffer.index)
            .get(start..start + buffer.length as usize)
            .unwrap_or(&[])
    }

    fn release(&mut self, buffer: Buffer) {
        if let Some(set) = self.memory.sets.get_mut(usize::from(buffer.set)) {
            set.give_back(buffer.index);
        }
    }

    fn send(
        &mut self,
        target: &Target,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        let (socket, ipv6) = match target {
            Target::Frame { interface, .. } => (self.links.get(interface).copied(), false),
            Target::Dhcp { .. } => (self.dhcp, false),
            Target::ProxyDhcp { .. } => (self.proxy_dhcp, false),
            Target::Tftp { tid, .. } => {
                let at = self.transfers.get(usize::from(*tid)).copied();
                (at, self.transfer_ipv6)
            }
        };
        let Some(fd) = socket
            .and_then(|at| self.sockets.get(at as usize))
            .map(|at| at.fd.as_raw_fd())
        else {
            self.counters.sends_failed += 1;
            return Ok(()); // there is no way out, and waiting for a slot would not make one
        };
        let is_train = train.bytes > train.segment_bytes;
        let small = train.bytes <= SMALL_SLOT_BYTES && !is_train;
        let segments = train.bytes.div_ceil(train.segment_bytes.max(1));
        let trains = self.trains
            && segments <= TRAIN_SEGMENTS_MAX
            && train.segment_bytes <= usize::from(u16::MAX);
        let memory = &mut *self.memory;
        let (slots, kind) = if small {
            (&mut memory.small, Kind::SendSmall)
        } else {
            (&mut memory.large, Kind::SendLarge)
        };
        if train.bytes > slots.slot_bytes() {
            self.counters.sends_failed += 1;
            return Ok(()); // longer than any slot: our own bug, and no reason to wait either
        }
        let index = slots
            .fill(target, ipv6, train, trains, fill)
            .ok_or(NoSlot)?;
        if is_train && !trains {
            self.send_split(index);
            self.memory.large.free(index);
            return Ok(());
        }
        let send = opcode::SendMsg::new(Fd(fd), slots.header(index))
            .flags(libc::MSG_NOSIGNAL as u32)
            .build()
            .user_data(user_data(kind, index));
        // SAFETY: the header, and the name, control, vector and octets it points at, lie in slot `index`, which is
        // boxed, never moves, and is not written again before `free`, which `on_reaped` calls at its completion.
        // `Ring::drop` ends all operations before `memory` goes, or gives `memory` up.
        if unsafe { self.queue.push(&send) }.is_err() {
            slots.free(index); // never submitted
            return Err(NoSlot);
        }
        Ok(())
    }

    fn set_links(&mut self, links: Vec<LinkSocket>) {
        let old: Vec<usize> = self
            .sockets
            .iter()
            .filter(|(_, socket)| socket.service == Service::DhcpFrame && !socket.leaving)
            .map(|(index, _)| index)
            .collect();
        for index in old {
            let socket = &mut self.sockets[index];
            if !socket.armed {
                self.sockets.remove(index);
                continue;
            }
            socket.leaving = true;
            self.cancel(user_data(Kind::Datagrams, index as u32));
        }
        self.links.clear();
        for link in links {
            let index = self.add_socket(link.socket, Service::DhcpFrame, link.interface);
            self.links.insert(link.interface, index);
        }
    }

    fn stop_accepting(&mut self) {
        let Some(listener) = &mut self.listener else {
            return;
        };
        if listener.armed {
            listener.leaving = true;
            self.cancel(user_data(Kind::Accept, 0));
        } else {
            self.listener = None;
        }
    }

    fn stream_send(&mut self, stream: StreamId, bytes: Bytes, more: bool) {
        self.memory
            .streams
            .send(stream, bytes, more, &mut self.queue);
    }

    fn stream_send_file(
        &mut self,
        stream: StreamId,
        object: Arc<Object>,
        offset: u64,
        length: u64,
    ) {
        self.memory
            .streams
            .send_file(stream, object, offset, length);
    }

    fn stream_queued(&self, stream: StreamId) -> u64 {
        self.memory.streams.queued(stream)
    }

    fn stream_take(&mut self, stream: StreamId) {
        self.memory.streams.take(stream, &mut self.queue);
    }

    fn stream_close(&mut self, stream: StreamId, how: Close) {
        self.memory
            .streams
            .close(stream, how, self.now, &mut self.queue);
    }

    fn counters(&self) -> DriverCounters {
        let streams = &self.memory.streams;
        DriverCounters {
            streams: streams.count() as u64,
            file_bytes: streams.counters.file_bytes,
            stream_sends_failed: streams.counters.sends_failed,
            accept_refused: streams.counters.refused,
            accept_gone: streams.counters.gone,
            buffers_exhausted: self.counters.buffers_exhausted + streams.counters.buffers_exhausted,
            enters: self.queue.enters(),
            enters_refused: self.queue.refused(),
            ..self.counters
        }
    }
}
