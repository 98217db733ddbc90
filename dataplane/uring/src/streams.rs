//! Accepted connections: multishot receive, SEND of octets, poll + sendfile(2) of files, cancel, hand-off.
//!
//! A stream's table entry lives until its last operation has completed, so that an index in user data never names
//! another connection than the one it was submitted for. The shard's name for it has a generation besides.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use images::Object;
use io_uring::opcode;
use io_uring::types::Fd;
use rustix::io::Errno;
use rustix::net::Shutdown;
use shard::{Buffer, Close, Completion, StreamId};
use slab::Slab;

use crate::buffers::Buffers;
use crate::queue::{Kind, Queue, Reaped, user_data};
use crate::ring::SET_HTTP;

/// How long a closed connection is read from, so that what the client still sends does not reset what we sent.
const LINGER: Duration = Duration::from_secs(2);
/// Octets kept of a connection that is being taken; its client sends a request body meanwhile.
const LATE_BYTES_MAX: usize = 1 << 20;

struct Stream {
    generation: u32,
    fd: OwnedFd,
    state: State,
    send: Outgoing,
    /// The multishot receive is in flight.
    receiving: bool,
    /// The client sends no more.
    ended: bool,
    /// Operations in flight, cancellations among them.
    pending: u32,
}

#[derive(Debug)]
enum State {
    Open,
    /// Leaving for the work thread with these octets.
    Taking(Vec<u8>),
    /// Everything was sent; reading until the client ends or the time is up.
    Lingering,
    /// Gone with its last completion.
    Closing,
}

enum Outgoing {
    None,
    /// Held until the completion: the kernel reads them.
    Bytes(Bytes),
    File {
        object: Arc<Object>,
        offset: u64,
        length: u64,
    },
}

pub(crate) struct Streams {
    table: Slab<Stream>,
    streams_max: usize,
    generation: u32,
    /// Files whose socket may be writable, in turn.
    ready: VecDeque<u32>,
    /// Receives that ended for want of a buffer.
    starved: Vec<u32>,
    /// Takes and closes that need no completion any more.
    finished: Vec<u32>,
    /// Broken by us: the shard is told in the next poll.
    broken: Vec<StreamId>,
    /// In order of their ends; past `lingering_max` the oldest go at once.
    lingering: VecDeque<(Instant, StreamId)>,
    lingering_max: usize,
    pub counters: StreamCounters,
}

#[derive(Clone, Copy, Default)]
pub(crate) struct StreamCounters {
    pub file_bytes: u64,
    pub buffers_exhausted: u64,
    /// Sends, and waits for room to send, that failed.
    pub sends_failed: u64,
    pub refused: u64,
    pub gone: u64,
}

/// An accepted descriptor becomes ours.
pub(crate) fn adopt(result: i32) -> OwnedFd {
    // SAFETY: `result` is the non-negative result of an accept completion: a new descriptor that nobody else owns.
    unsafe { OwnedFd::from_raw_fd(result) }
}

impl Streams {
    pub fn new(streams_max: usize) -> Self {
        Self {
            table: Slab::new(),
            streams_max,
            generation: 0,
            ready: VecDeque::new(),
            starved: Vec::new(),
            finished: Vec::new(),
            broken: Vec::new(),
            lingering: VecDeque::new(),
            lingering_max: streams_max / 8,
            counters: StreamCounters::default(),
        }
    }

    pub fn count(&self) -> usize {
        self.table.len()
    }

    pub fn in_flight_count(&self) -> usize {
        self.table
            .iter()
            .map(|(_, stream)| stream.pending as usize)
            .sum()
    }

    /// Receives are to be armed again.
    pub fn has_starved(&self) -> bool {
        !self.starved.is_empty()
    }

    pub fn has_files_ready(&self) -> bool {
        !self.ready.is_empty()
    }

    /// When a lingering connection ends.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.lingering.front().map(|(at, _)| *at)
    }

    /// A new connection, receiving. `None`, and counted: the table is full, or it is gone already.
    pub fn insert(
        &mut self,
        fd: OwnedFd,
        queue: &mut Queue,
    ) -> Option<(StreamId, SocketAddr, SocketAddr)> {
        if self.table.len() >= self.streams_max {
            self.counters.refused += 1;
            abort_on_drop(&fd);
            return None;
        }
        let peer = rustix::net::getpeername(&fd).ok().flatten();
        let local = rustix::net::getsockname(&fd).ok();
        let addresses = peer.and_then(to_address).zip(local.and_then(to_address));
        let Some((peer, local)) = addresses else {
            self.counters.gone += 1;
            return None;
        };
        self.generation = self.generation.wrapping_add(1);
        let generation = self.generation;
        let index = self.table.insert(Stream {
            generation,
            fd,
            state: State::Open,
            send: Outgoing::None,
            receiving: false,
            ended: false,
            pending: 0,
        }) as u32; // streams_max is far below
        self.receive(index, queue);
        Some((StreamId { index, generation }, peer, local))
    }

    /// Arms the multishot receive; without room in the queue it is tried again in the next poll.
    fn receive(&mut self, index: u32, queue: &mut Queue) {
        let Some(stream) = self.table.get_mut(index as usize) else {
            return;
        };
        if stream.receiving
            || stream.ended
            || !matches!(stream.state, State::Open | State::Lingering)
        {
            return;
        }
        let receive = opcode::RecvMulti::new(Fd(stream.fd.as_raw_fd()), SET_HTTP as u16)
            .build()
            .user_data(user_data(Kind::StreamReceive, index));
        if queue.push_plain(&receive).is_ok() {
            stream.receiving = true;
            stream.pending += 1;
        } else {
            self.starved.push(index);
        }
    }

    fn find(&mut self, id: StreamId) -> Option<&mut Stream> {
        let stream = self.table.get_mut(id.index as usize)?;
        (stream.generation == id.generation).then_some(stream)
    }

    // ---------------------------------------------------------------- what the shard asks

    pub fn send(&mut self, id: StreamId, bytes: Bytes, more: bool, queue: &mut Queue) {
        let Some(stream) = self
            .find(id)
            .filter(|stream| matches!(stream.state, State::Open))
        else {
            return;
        };
        assert!(
            matches!(stream.send, Outgoing::None),
            "one send at a time on a stream"
        );
        // What there is room for counts as progress: no MSG_WAITALL.
        let flags = libc::MSG_NOSIGNAL | if more { libc::MSG_MORE } else { 0 };
        let (start, length) = (bytes.as_ptr(), bytes.len() as u32); // chunks are far below 4 GiB
        let send = opcode::Send::new(Fd(stream.fd.as_raw_fd()), start, length)
            .flags(flags)
            .build()
            .user_data(user_data(Kind::StreamSend, id.index));
        // SAFETY: the octets belong to `bytes`, immutable and reference-counted, which `stream.send` holds from the
        // next line until the completion; the table entry lives as long as `pending` is not zero.
        if unsafe { queue.push(&send) }.is_ok() {
            stream.send = Outgoing::Bytes(bytes);
            stream.pending += 1;
        } else {
            // No room even after a submit: the connection is not worth more.
            self.fail(id.index);
        }
    }

    /// A send that failed, whatever the reason, is the end of the connection and never a send of 0 octets.
    fn on_sent(&mut self, id: StreamId, result: i32, done: &mut Vec<Completion>) {
        let Some(stream) = self.table.get_mut(id.index as usize) else {
            return;
        };
        let Outgoing::Bytes(bytes) = std::mem::replace(&mut stream.send, Outgoing::None) else {
            return;
        };
        if !matches!(stream.state, State::Open) {
            return;
        }
        match u64::try_from(result) {
            Ok(sent) if sent > 0 => {
                let sent = sent.min(bytes.len() as u64);
                done.push(Completion::StreamSent { stream: id, sent });
            }
            _ => {
                self.counters.sends_failed += 1;
                done.push(Completion::Ended {
                    stream: id,
                    broken: true,
                });
            }
        }
    }

    /// Octets in the socket that the client has not acknowledged.
    pub fn queued(&self, id: StreamId) -> u64 {
        let stream = self.table.get(id.index as usize);
        let Some(stream) = stream.filter(|stream| stream.generation == id.generation) else {
            return 0;
        };
        let mut queued: libc::c_int = 0;
        // SAFETY: TIOCOUTQ writes one int, to `queued`, which is valid for writes for the call.
        let result = unsafe { libc::ioctl(stream.fd.as_raw_fd(), libc::TIOCOUTQ, &raw mut queued) };
        // Without an answer all of it counts as taken, for the client's good.
        if result < 0 {
            return 0;
        }
        u64::try_from(queued).unwrap_or(0)
    }

    pub fn send_file(&mut self, id: StreamId, object: Arc<Object>, offset: u64, length: u64) {
        let Some(stream) = self
            .find(id)
            .filter(|stream| matches!(stream.state, State::Open))
        else {
            return;
        };
        assert!(
            matches!(stream.send, Outgoing::None),
            "one send at a time on a stream"
        );
        stream.send = Outgoing::File {
            object,
            offset,
            length,
        };
        // Most often there is room in the socket: no poll before the first try.
        self.ready.push_back(id.index);
    }

    pub fn take(&mut self, id: StreamId, queue: &mut Queue) {
        let Some(stream) = self
            .find(id)
            .filter(|stream| matches!(stream.state, State::Open))
        else {
            return;
        };
        stream.state = State::Taking(Vec::new());
        if stream.receiving {
            let target = user_data(Kind::StreamReceive, id.index);
            if queue
                .cancel(target, user_data(Kind::StreamCancel, id.index))
                .is_ok()
            {
                stream.pending += 1;
            } else {
                self.fail(id.index);
            }
        } else if stream.pending == 0 {
            self.finished.push(id.index);
        }
    }

    pub fn close(&mut self, id: StreamId, how: Close, now: Instant, queue: &mut Queue) {
        let Some(stream) = self.find(id) else { return };
        if matches!(stream.state, State::Closing | State::Lingering) {
            return;
        }
        if how == Close::Graceful && !stream.ended && matches!(stream.send, Outgoing::None) {
            // Already broken: then its receive says so at once.
            let _ = rustix::net::shutdown(&stream.fd, Shutdown::Write);
            stream.state = State::Lingering;
            self.lingering.push_back((now + LINGER, id));
            if self.lingering.len() > self.lingering_max
                && let Some((_, oldest)) = self.lingering.pop_front()
            {
                self.end_if_lingering(oldest, queue);
            }
            return;
        }
        if how == Close::Abort {
            abort_on_drop(&stream.fd);
        }
        self.end(id.index, queue);
    }

    /// Cancels what is in flight; the entry goes with the last completion.
    fn end(&mut self, index: u32, queue: &mut Queue) {
        let Some(stream) = self.table.get_mut(index as usize) else {
            return;
        };
        stream.state = State::Closing;
        if matches!(stream.send, Outgoing::File { .. }) {
            stream.send = Outgoing::None;
        }
        if stream.pending == 0 {
            self.finished.push(index);
            return;
        }
        let fd = stream.fd.as_raw_fd();
        if queue
            .cancel_fd(fd, user_data(Kind::StreamCancel, index))
            .is_ok()
        {
            stream.pending += 1;
        } else {
            // Ends all operations too, if less directly.
            let _ = rustix::net::shutdown(&stream.fd, Shutdown::Both);
        }
    }

    /// Broken by us. The shutdown ends every operation, and what is being taken is taken as it is; of an open one the
    /// shard hears in the next poll.
    fn fail(&mut self, index: u32) {
        if let Some(stream) = self.table.get_mut(index as usize) {
            let _ = rustix::net::shutdown(&stream.fd, Shutdown::Both);
            if matches!(stream.state, State::Open) {
                self.broken.push(StreamId {
                    index,
                    generation: stream.generation,
                });
            }
        }
    }

    fn end_if_lingering(&mut self, id: StreamId, queue: &mut Queue) {
        if self
            .find(id)
            .is_some_and(|stream| matches!(stream.state, State::Lingering))
        {
            self.end(id.index, queue);
        }
    }

    // ---------------------------------------------------------------- what the kernel says

    pub fn on_reaped(
        &mut self,
        reaped: Reaped,
        buffers: &mut Buffers,
        queue: &mut Queue,
        done: &mut Vec<Completion>,
    ) {
        let index = reaped.index;
        let Some(stream) = self.table.get_mut(index as usize) else {
            return;
        };
        if !reaped.goes_on() {
            stream.pending -= 1;
        }
        let id = StreamId {
            index,
            generation: stream.generation,
        };
        match reaped.kind {
            Kind::StreamReceive => self.on_received(id, reaped, buffers, queue, done),
            Kind::StreamSend => self.on_sent(id, reaped.result, done),
            Kind::StreamWritable if matches!(stream.state, State::Open) => {
                if reaped.result >= 0 {
                    self.ready.push_back(index);
                } else {
                    // A wait that failed says nothing of the socket: asked again at once it would fail again.
                    self.counters.sends_failed += 1;
                    self.fail(index);
                }
            }
            // The receive's last completion comes before the answer to its cancellation. If not, it goes on.
            Kind::StreamCancel
                if reaped.result < 0
                    && stream.receiving
                    && matches!(stream.state, State::Taking(_) | State::Closing) =>
            {
                self.fail(index);
            }
            _ => {}
        }
        self.settle(index, done);
    }

    fn on_received(
        &mut self,
        id: StreamId,
        reaped: Reaped,
        buffers: &mut Buffers,
        queue: &mut Queue,
        done: &mut Vec<Completion>,
    ) {
        let Some(stream) = self.table.get_mut(id.index as usize) else {
            return;
        };
        if !reaped.goes_on() {
            stream.receiving = false;
        }
        if let Some(index) = reaped.buffer() {
            buffers.take(index);
            let length = u32::try_from(reaped.result).unwrap_or(0);
            match &mut stream.state {
                State::Open if length > 0 => {
                    let buffer = Buffer {
                        set: buffers.group(),
                        index,
                        start: 0,
                        length,
                    };
                    done.push(Completion::Received { stream: id, buffer });
                }
                State::Taking(late) => {
                    late.extend_from_slice(&buffers.bytes(index)[..length as usize]);
                    buffers.give_back(index);
                }
                _ => buffers.give_back(index),
            }
        }
        let again = match reaped.result {
            0 => {
                stream.ended = true;
                if matches!(stream.state, State::Open) {
                    done.push(Completion::Ended {
                        stream: id,
                        broken: false,
                    });
                }
                false
            }
            result if result == -libc::ENOBUFS => {
                self.counters.buffers_exhausted += 1;
                true
            }
            result if result < 0 => {
                stream.ended = true;
                if matches!(stream.state, State::Open) {
                    done.push(Completion::Ended {
                        stream: id,
                        broken: true,
                    });
                }
                false
            }
            _ => true,
        };
        if !stream.receiving && again && matches!(stream.state, State::Open | State::Lingering) {
            self.starved.push(id.index);
        }
        // What a taken client sends beyond measure stays in its socket; the cancellation is on its way.
        if let State::Taking(late) = &stream.state
            && late.len() > LATE_BYTES_MAX
        {
            self.fail(id.index);
        }
        if let Some(stream) = self.table.get(id.index as usize)
            && stream.ended
            && matches!(stream.state, State::Lingering)
        {
            self.end(id.index, queue);
        }
    }

    /// Gives up an entry that nothing refers to any more.
    fn settle(&mut self, index: u32, done: &mut Vec<Completion>) {
        let Some(stream) = self.table.get(index as usize) else {
            return;
        };
        if stream.pending > 0 {
            return;
        }
        match stream.state {
            State::Taking(_) => {
                let stream = self.table.remove(index as usize);
                let State::Taking(read) = stream.state else {
                    return;
                };
                let id = StreamId {
                    index,
                    generation: stream.generation,
                };
                done.push(Completion::Taken {
                    stream: id,
                    socket: stream.fd,
                    read,
                });
            }
            State::Closing => drop(self.table.remove(index as usize)),
            State::Open | State::Lingering => {}
        }
    }

    /// Arms again what was starved and ends what is finished. Before each wait.
    pub fn resume(&mut self, buffers: &Buffers, queue: &mut Queue, done: &mut Vec<Completion>) {
        while let Some(index) = self.finished.pop() {
            self.settle(index, done);
        }
        for id in std::mem::take(&mut self.broken) {
            if self
                .find(id)
                .is_some_and(|stream| matches!(stream.state, State::Open))
            {
                done.push(Completion::Ended {
                    stream: id,
                    broken: true,
                });
            }
        }
        // The shard has given its buffers back by now.
        if !self.starved.is_empty() && !buffers.is_exhausted() {
            for index in std::mem::take(&mut self.starved) {
                self.receive(index, queue);
            }
        }
    }

    /// Sends files to sockets that have room, in turn, at most `budget` octets.
    pub fn send_files(&mut self, budget: u64, queue: &mut Queue, done: &mut Vec<Completion>) {
        let mut left = budget;
        for _ in 0..self.ready.len() {
            if left == 0 {
                break;
            }
            let Some(index) = self.ready.pop_front() else {
                break;
            };
            let Some(stream) = self.table.get_mut(index as usize) else {
                continue;
            };
            let id = StreamId {
                index,
                generation: stream.generation,
            };
            let (
                State::Open,
                Outgoing::File {
                    object,
                    offset,
                    length,
                },
            ) = (&stream.state, &stream.send)
            else {
                continue;
            };
            match send_some(stream, object, *offset, (*length).min(left)) {
                Ok(sent) if sent > 0 => {
                    left -= sent.min(left);
                    self.counters.file_bytes += sent;
                    stream.send = Outgoing::None;
                    done.push(Completion::StreamSent { stream: id, sent });
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    let poll =
                        opcode::PollAdd::new(Fd(stream.fd.as_raw_fd()), libc::POLLOUT as u32)
                            .build()
                            .user_data(user_data(Kind::StreamWritable, index));
                    if queue.push_plain(&poll).is_ok() {
                        stream.pending += 1;
                    } else {
                        self.ready.push_back(index);
                    }
                }
                // The file is shorter than it should be, or its disk fails; or the client is gone.
                outcome => {
                    if is_files_fault(&outcome) {
                        let file = object.sha256();
                        tracing::error!(
                            file = format_args!(
                                "{:02x}{:02x}{:02x}{:02x}...",
                                file[0], file[1], file[2], file[3]
                            ),
                            offset,
                            "a file of the cache cannot be read: it is fetched anew"
                        );
                        object.set_damaged();
                    }
                    self.counters.sends_failed += 1;
                    stream.send = Outgoing::None;
                    done.push(Completion::Ended {
                        stream: id,
                        broken: true,
                    });
                }
            }
        }
    }

    /// Ends connections that have lingered long enough.
    pub fn end_lingering(&mut self, now: Instant, queue: &mut Queue) {
        while let Some((at, id)) = self.lingering.front().copied() {
            if at > now {
                break;
            }
            self.lingering.pop_front();
            self.end_if_lingering(id, queue);
        }
    }

    /// The ring is closing: an operation of this stream is over.
    pub fn on_drained(&mut self, index: u32) {
        if let Some(stream) = self.table.get_mut(index as usize) {
            stream.pending = stream.pending.saturating_sub(1);
        }
    }
}

/// sendfile(2) into a non-blocking socket.
fn send_some(stream: &Stream, object: &Object, offset: u64, length: u64) -> io::Result<u64> {
    let file = object.file().ok_or(io::ErrorKind::NotFound)?;
    let mut offset = offset;
    let length = usize::try_from(length).unwrap_or(usize::MAX);
    match rustix::fs::sendfile(stream.fd.as_fd(), file, Some(&mut offset), length) {
        Ok(sent) => Ok(sent as u64),
        Err(Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
        Err(error) => Err(error.into()),
    }
}

/// What could not be sent was not there to be read. Everything else is the connection's end.
fn is_files_fault(outcome: &io::Result<u64>) -> bool {
    match outcome {
        Ok(sent) => *sent == 0,
        Err(error) => error.raw_os_error() == Some(libc::EIO),
    }
}

/// When the descriptor goes, the client gets a reset and unsent octets are dropped: a machine that lost its power never
/// reads them, and its next boot may use the same port.
fn abort_on_drop(fd: &OwnedFd) {
    // Fails only on what is no socket.
    let _ = rustix::net::sockopt::set_socket_linger(fd, Some(Duration::ZERO));
}

/// Mapped addresses become IPv4.
fn to_address(address: rustix::net::SocketAddrAny) -> Option<SocketAddr> {
    let address = SocketAddr::try_from(address).ok()?;
    Some(SocketAddr::new(address.ip().to_canonical(), address.port()))
}
