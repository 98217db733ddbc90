//! All transfers of one shard, and who is served next.
//!
//! ```text
//!  RRQ --> pending (bounded) --find--> transfer table (bounded) --ACK/deadline--> ended
//!              ^  parked while the Host says Later; `retry` brings it back
//! ```
//! Order within one `run`: sends that found no slot, then resends that are due, then new requests while the table has
//! room. So a full rack finishes what it began; the oldest waiting request is shed and counted when the queue is full.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use wire::tftp::{
    CONTROL_BYTES_MAX, DATA_HEADER_BYTES, ErrorCode, Mode, Options, Packet, Request,
    emit_data_header, emit_error, emit_oack,
};

use crate::path::clean_path;
use crate::session::{ReadSession, Step};
use crate::terms::{Terms, TermsLimits, negotiate};

/// A larger file is not converted to netascii; nothing that boots asks for it.
const NETASCII_BYTES_MAX: usize = 1 << 20;

/// The two ends of a transfer. Our port is one for all transfers of the shard, so the client's tells them apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub client: SocketAddr,
    /// Our address the client asked; every reply leaves from it.
    pub local: IpAddr,
}

/// Names a waiting request; stale once that request is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    key: u32,
    serial: u32,
}

#[derive(Clone, Debug)]
pub enum Found {
    File(Bytes),
    /// The client is told (error 1), so that it goes on to its next name at once.
    NotFound,
    /// Not here yet. The host calls [`Server::retry`] with the ticket when it is.
    Later,
    /// Say nothing: the client asks again.
    Silent,
}

/// One or more datagrams of equal size to one client; the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    pub bytes: usize,
    pub segment_bytes: usize,
}

/// No send slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSlot;

/// What the server needs from the shard.
pub trait Host {
    /// Looks a file up; `file` has no leading slash and does not climb.
    fn find(&mut self, ticket: Ticket, peer: &Peer, file: &str) -> Found;
    /// Sends `train.bytes` octets, which `fill` writes, from the transfer port.
    fn send(
        &mut self,
        peer: &Peer,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot>;
    /// A transfer is over, one way or the other.
    fn ended(&mut self, ended: Ended<'_>);
}

#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub peer: &'a Peer,
    pub file: &'a str,
    pub file_bytes: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// The client sent an ERROR. After a size probe that is how firmware says thank you.
    Aborted,
    GaveUp,
    /// The same client port asked for something else: it was power-cycled.
    Replaced,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub transfers_max: usize,
    pub pending_max: usize,
    /// How long a request may wait for a place or a file.
    pub pending_wait: Duration,
    /// Largest train handed to the host, in octets.
    pub train_bytes_max: usize,
    pub terms: TermsLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfers_max: 4096,
            pending_max: 2048,
            pending_wait: Duration::from_secs(5),
            train_bytes_max: 32 * 1024,
            terms: TermsLimits::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub requests: u64,
    pub started: u64,
    pub finished: u64,
    pub aborted: u64,
    pub gave_up: u64,
    pub replaced: u64,
    /// DATA packets sent, resends included.
    pub blocks: u64,
    /// Windows and OACKs sent again.
    pub resent: u64,
    pub not_found: u64,
    pub refused: u64,
    pub malformed: u64,
    /// Packets that belong to no transfer, and packets a server never gets.
    pub stray: u64,
    /// Requests that were already waiting or being served.
    pub repeated: u64,
    /// The oldest waiting request was dropped because the queue was full.
    pub shed: u64,
    /// Requests that waited until their deadline.
    pub expired: u64,
    /// Sends that found no slot and wait for the next run.
    pub no_slot: u64,
}

#[derive(Debug)]
struct Transfer {
    serial: u32,
    peer: Peer,
    file: Bytes,
    name: Box<str>,
    terms: Terms,
    oack: Options,
    session: ReadSession,
    /// What the last step asked for and no slot was free for.
    unsent: Option<Step>,
}

#[derive(Debug)]
struct Pending {
    serial: u32,
    peer: Peer,
    name: Box<str>,
    mode: Mode,
    options: Options,
    mtu: Option<u16>,
    deadline: Instant,
    /// In `ready`; otherwise parked with the host.
    queued: bool,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Pending(u32),
    Transfer(u32),
}

#[derive(Debug)]
pub struct Server {
    limits: Limits,
    transfers: Slab<Transfer>,
    pending: Slab<Pending>,
    places: HashMap<Peer, Place, foldhash::fast::RandomState>,
    /// Requests to be looked up, in order of arrival.
    ready: VecDeque<Ticket>,
    /// All pending in order of arrival, stale tickets among them.
    arrivals: VecDeque<Ticket>,
    /// One entry per transfer, at or before its deadline; stale ones are skipped.
    deadlines: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Transfers with something unsent.
    blocked: VecDeque<Ticket>,
    serial: u32,
    pub counters: Counters,
}

impl Server {
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            transfers: Slab::with_capacity(limits.transfers_max),
            pending: Slab::with_capacity(limits.pending_max),
            places: HashMap::default(),
            ready: VecDeque::new(),
            arrivals: VecDeque::new(),
            deadlines: BinaryHeap::new(),
            blocked: VecDeque::new(),
            serial: 0,
            counters: Counters::default(),
        }
    }

    pub fn transfer_count(&self) -> usize {
        self.transfers.len()
    }

    pub fn pending_count(&self) -> usize {
        self.pending.len()
    }

    /// A datagram to the request port. `mtu` is that of the link it came in on.
    pub fn on_request(
        &mut self,
        peer: Peer,
        mtu: Option<u16>,
        octets: &[u8],
        now: Instant,
        host: &mut impl Host,
    ) {
        match Packet::parse(octets) {
            Ok(Packet::Read(request)) => self.on_read(peer, mtu, &request, now, host),
            Ok(Packet::Write(_)) => {
                self.counters.refused += 1;
                send_error(
                    &peer,
                    ErrorCode::IllegalOperation,
                    "this server is read only",
                    host,
                );
            }
            Ok(packet) => self.on_packet(peer, packet, now, host),
            Err(why) => {
                self.counters.malformed += 1;
                // RFC 1350 §1: most errors end the connection with an error packet.
                if matches!(octets, [0, 1 | 2, _, _, ..]) {
                    send_error(&peer, ErrorCode::IllegalOperation, &why.to_string(), host);
                }
            }
        }
    }

    /// A datagram to the transfer port.
    pub fn on_transfer(&mut self, peer: Peer, octets: &[u8], now: Instant, host: &mut impl Host) {
        match Packet::parse(octets) {
            Ok(packet) => self.on_packet(peer, packet, now, host),
            Err(_) => self.counters.malformed += 1,
        }
    }

    fn on_packet(&mut self, peer: Peer, packet: Packet<'_>, now: Instant, host: &mut impl Host) {
        let place = self.places.get(&peer).copied();
        match (packet, place) {
            (Packet::Ack { block }, Some(Place::Transfer(key))) => {
                let transfer = &mut self.transfers[key as usize];
                let step = transfer.session.on_ack(block, now);
                if step != Step::Wait {
                    // The answer to what is still unsent would be older than this step.
                    transfer.unsent = None;
                }
                self.take_step(key, step, host);
            }
            (Packet::Error { .. }, Some(Place::Transfer(key))) => {
                self.end(key, Outcome::Aborted, host);
            }
            (Packet::Error { .. }, Some(Place::Pending(key))) => {
                self.counters.aborted += 1;
                self.forget(key);
            }
            _ => self.counters.stray += 1,
        }
    }

    fn on_read(
        &mut self,
        peer: Peer,
        mtu: Option<u16>,
        request: &Request<'_>,
        now: Instant,
        host: &mut impl Host,
    ) {
        self.counters.requests += 1;
        let mut scratch = String::new();
        let Some(name) = clean_path(request.file, &mut scratch) else {
            self.counters.refused += 1;
            send_error(&peer, ErrorCode::AccessViolation, "access violation", host);
            return;
        };
        match self.places.get(&peer).copied() {
            Some(Place::Pending(key)) => {
                let pending = &mut self.pending[key as usize];
                if *pending.name == *name {
                    self.counters.repeated += 1;
                    return;
                }
                self.forget(key);
            }
            Some(Place::Transfer(key)) => {
                let transfer = &mut self.transfers[key as usize];
                if *transfer.name == *name
                    && let Some(step) = transfer.session.on_repeated_request(now)
                {
                    // Our first packet, or the client's patience, was lost.
                    self.counters.repeated += 1;
                    self.counters.resent += 1;
                    self.take_step(key, step, host);
                    return;
                }
                self.end(key, Outcome::Replaced, host);
            }
            None => {}
        }
        if self.pending.len() >= self.limits.pending_max {
            self.shed_oldest();
        }
        let serial = self.next_serial();
        let key = self.pending.insert(Pending {
            serial,
            peer,
            name: name.into(),
            mode: request.mode,
            options: request.options,
            mtu,
            deadline: now + self.limits.pending_wait,
            queued: true,
        });
        let key = u32::try_from(key).expect("pending_max bounds the slab");
        self.places.insert(peer, Place::Pending(key));
        let ticket = Ticket { key, serial };
        self.ready.push_back(ticket);
        self.arrivals.push_back(ticket);
    }

    /// The file of a parked request may be here now; it is looked up in the next `run`.
    pub fn retry(&mut self, ticket: Ticket) {
        if let Some(pending) = self.pending.get_mut(ticket.key as usize)
            && pending.serial == ticket.serial
            && !pending.queued
        {
            pending.queued = true;
            self.ready.push_back(ticket);
        }
    }

    /// Does what is due. Called once per turn, after the turn's datagrams.
    pub fn run(&mut self, now: Instant, host: &mut impl Host) {
        self.send_blocked(host);
        self.resend_due(now, host);
        self.start_ready(now, host);
        self.expire(now);
    }

    /// When `run` has something to do without any datagram. Possibly early, never late.
    pub fn next_deadline(&self) -> Option<Instant> {
        let resend = self.deadlines.peek().map(|Reverse((at, ..))| *at);
        let expiry = self
            .arrivals
            .front()
            .and_then(|ticket| self.pending.get(ticket.key as usize))
            .map(|pending| pending.deadline);
        [resend, expiry].into_iter().flatten().min()
    }

    fn send_blocked(&mut self, host: &mut impl Host) {
        for _ in 0..self.blocked.len() {
            let Some(ticket) = self.blocked.pop_front() else {
                break;
            };
            let Some(transfer) = self.transfers.get_mut(ticket.key as usize) else {
                continue;
            };
            if transfer.serial != ticket.serial {
                continue;
            }
            if let Some(step) = transfer.unsent.take() {
                self.take_step(ticket.key, step, host);
                if self.blocked.back() == Some(&ticket) {
                    break; // still no slot; the others would find none either
                }
            }
        }
    }

    fn resend_due(&mut self, now: Instant, host: &mut impl Host) {
        while let Some(Reverse((at, key, serial))) = self.deadlines.peek().copied() {
            if at > now {
                break;
            }
            self.deadlines.pop();
            let Some(transfer) = self.transfers.get_mut(key as usize) else {
                continue;
            };
            if transfer.serial != serial {
                continue;
            }
            let step = transfer.session.on_deadline(now);
            if matches!(step, Step::SendOack { .. } | Step::SendBlocks { .. }) {
                self.counters.resent += 1;
            }
            self.take_step(key, step, host);
            // One entry per transfer: this one is popped, the next is at the deadline as it is now.
            if let Some(transfer) = self.transfers.get(key as usize)
                && transfer.serial == serial
            {
                self.deadlines
                    .push(Reverse((transfer.session.deadline(), key, serial)));
            }
        }
    }

    fn start_ready(&mut self, now: Instant, host: &mut impl Host) {
        while self.transfers.len() < self.limits.transfers_max {
            let Some(ticket) = self.ready.pop_front() else {
                break;
            };
            let Some(pending) = self.pending.get_mut(ticket.key as usize) else {
                continue;
            };
            if pending.serial != ticket.serial {
                continue;
            }
            pending.queued = false;
            match host.find(ticket, &pending.peer, &pending.name) {
                Found::Later => {}
                Found::Silent => self.forget(ticket.key),
                Found::NotFound => {
                    self.counters.not_found += 1;
                    send_error(
                        &pending.peer,
                        ErrorCode::FileNotFound,
                        "file not found",
                        host,
                    );
                    self.forget(ticket.key);
                }
                Found::File(file) => self.start(ticket.key, file, now, host),
            }
        }
    }

    fn start(&mut self, pending_key: u32, file: Bytes, now: Instant, host: &mut impl Host) {
        let pending = self.pending.remove(pending_key as usize);
        self.places.remove(&pending.peer);
        let file = match pending.mode {
            Mode::Octet => file,
            Mode::Netascii if file.len() > NETASCII_BYTES_MAX => {
                self.counters.refused += 1;
                send_error(
                    &pending.peer,
                    ErrorCode::NotDefined,
                    "too large for netascii",
                    host,
                );
                return;
            }
            Mode::Netascii => to_netascii(&file),
        };
        let file_bytes = file.len() as u64;
        let (terms, oack) = negotiate(
            &pending.options,
            &self.limits.terms,
            pending.mtu,
            pending.peer.client.is_ipv6(),
            file_bytes,
        );
        let (session, step) = ReadSession::start(terms, file_bytes, !oack.is_empty(), now);
        let serial = self.next_serial();
        let deadline = session.deadline();
        let key = self.transfers.insert(Transfer {
            serial,
            peer: pending.peer,
            file,
            name: pending.name,
            terms,
            oack,
            session,
            unsent: None,
        });
        let key = u32::try_from(key).expect("transfers_max bounds the slab");
        self.places.insert(pending.peer, Place::Transfer(key));
        self.counters.started += 1;
        if self.deadlines.len() > 2 * self.limits.transfers_max + 1024 {
            self.rebuild_deadlines();
        } else {
            self.deadlines.push(Reverse((deadline, key, serial)));
        }
        self.take_step(key, step, host);
    }

    /// Long timeouts leave stale entries behind; this drops them all.
    fn rebuild_deadlines(&mut self) {
        self.deadlines.clear();
        for (key, transfer) in &self.transfers {
            let key = u32::try_from(key).expect("transfers_max bounds the slab");
            self.deadlines
                .push(Reverse((transfer.session.deadline(), key, transfer.serial)));
        }
    }

    fn expire(&mut self, now: Instant) {
        while let Some(ticket) = self.arrivals.front().copied() {
            match self.pending.get(ticket.key as usize) {
                Some(pending) if pending.serial == ticket.serial => {
                    if pending.deadline > now {
                        break;
                    }
                    self.counters.expired += 1;
                    self.forget(ticket.key);
                }
                _ => {}
            }
            self.arrivals.pop_front();
        }
        // Tickets of requests that were served at once pile up behind one that waits.
        if self.arrivals.len() > 2 * self.limits.pending_max {
            let pending = &self.pending;
            self.arrivals.retain(|ticket| {
                pending
                    .get(ticket.key as usize)
                    .is_some_and(|waits| waits.serial == ticket.serial)
            });
        }
    }

    fn shed_oldest(&mut self) {
        while let Some(ticket) = self.arrivals.pop_front() {
            let waits = self.pending.get(ticket.key as usize);
            if waits.is_some_and(|pending| pending.serial == ticket.serial) {
                self.counters.shed += 1;
                self.forget(ticket.key);
                return;
            }
        }
    }

    /// Drops a waiting request without a word.
    fn forget(&mut self, key: u32) {
        let pending = self.pending.remove(key as usize);
        self.places.remove(&pending.peer);
    }

    fn end(&mut self, key: u32, outcome: Outcome, host: &mut impl Host) {
        let transfer = self.transfers.remove(key as usize);
        self.places.remove(&transfer.peer);
        match outcome {
            Outcome::Finished => self.counters.finished += 1,
            Outcome::Aborted => self.counters.aborted += 1,
            Outcome::GaveUp => self.counters.gave_up += 1,
            Outcome::Replaced => self.counters.replaced += 1,
        }
        host.ended(Ended {
            peer: &transfer.peer,
            file: &transfer.name,
            file_bytes: transfer.file.len() as u64,
            outcome,
        });
    }

    fn take_step(&mut self, key: u32, step: Step, host: &mut impl Host) {
        match step {
            Step::Wait => {}
            Step::Finished => self.end(key, Outcome::Finished, host),
            Step::GaveUp => self.end(key, Outcome::GaveUp, host),
            Step::SendOack { .. } => {
                let transfer = &mut self.transfers[key as usize];
                let mut out = [0; CONTROL_BYTES_MAX];
                let length = emit_oack(&transfer.oack, &mut out)
                    .expect("four options with decimal values fit");
                let train = Train {
                    bytes: length,
                    segment_bytes: length,
                };
                let sent = host.send(&transfer.peer, train, &mut |slot| {
                    slot.copy_from_slice(&out[..length])
                });
                if sent.is_err() {
                    self.block(key, step);
                }
            }
            Step::SendBlocks {
                first,
                last,
                deadline,
            } => {
                let transfer = &self.transfers[key as usize];
                match send_blocks(transfer, first, last, self.limits.train_bytes_max, host) {
                    Ok(()) => self.counters.blocks += last - first + 1,
                    Err(unsent) => {
                        self.counters.blocks += unsent - first;
                        self.block(
                            key,
                            Step::SendBlocks {
                                first: unsent,
                                last,
                                deadline,
                            },
                        );
                    }
                }
            }
        }
    }

    /// Keeps a step that found no slot; it goes first in the next `run`.
    fn block(&mut self, key: u32, step: Step) {
        self.counters.no_slot += 1;
        let transfer = &mut self.transfers[key as usize];
        transfer.unsent = Some(step);
        let ticket = Ticket {
            key,
            serial: transfer.serial,
        };
        if !self.blocked.contains(&ticket) {
            self.blocked.push_back(ticket);
        }
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }
}

/// Sends DATA `first..=last` in trains; `Err` holds the first block that found no slot.
fn send_blocks(
    transfer: &Transfer,
    first: u64,
    last: u64,
    train_bytes_max: usize,
    host: &mut impl Host,
) -> Result<(), u64> {
    let block_bytes = usize::from(transfer.terms.block_bytes);
    let segment_bytes = DATA_HEADER_BYTES + block_bytes;
    let train_blocks = (train_bytes_max / segment_bytes).max(1) as u64;
    let mut block = first;
    while block <= last {
        let train_last = last.min(block + train_blocks - 1);
        let (start, _) = block_range(transfer, block);
        let (_, end) = block_range(transfer, train_last);
        let headers = (train_last - block + 1) as usize * DATA_HEADER_BYTES;
        let train = Train {
            bytes: headers + (end - start),
            segment_bytes,
        };
        let sent = host.send(&transfer.peer, train, &mut |slot| {
            for (number, segment) in (block..=train_last).zip(slot.chunks_mut(segment_bytes)) {
                let (start, end) = block_range(transfer, number);
                let (header, payload) = segment
                    .split_first_chunk_mut::<DATA_HEADER_BYTES>()
                    .expect("every segment of the train has a header");
                emit_data_header(number as u16, header); // the wire carries the low 16 bits
                payload.copy_from_slice(&transfer.file[start..end]);
            }
        });
        if sent.is_err() {
            return Err(block);
        }
        block = train_last + 1;
    }
    Ok(())
}

/// Where block `number` (from 1) lies in the file.
fn block_range(transfer: &Transfer, number: u64) -> (usize, usize) {
    let block_bytes = usize::from(transfer.terms.block_bytes);
    let start = (number - 1) as usize * block_bytes;
    (start, transfer.file.len().min(start + block_bytes))
}

/// Tells the client; if no slot is free it will find out by its own timeout.
fn send_error(peer: &Peer, code: ErrorCode, message: &str, host: &mut impl Host) {
    let mut out = [0; 64];
    let length = emit_error(code, message, &mut out).expect("our messages are short");
    let train = Train {
        bytes: length,
        segment_bytes: length,
    };
    let _ = host.send(peer, train, &mut |slot| {
        slot.copy_from_slice(&out[..length])
    });
}

/// LF becomes CR LF, a lone CR becomes CR NUL; CR LF stays (RFC 764).
fn to_netascii(file: &[u8]) -> Bytes {
    let mut out = Vec::with_capacity(file.len() + file.len() / 32);
    let mut octets = file.iter().copied().peekable();
    while let Some(octet) = octets.next() {
        match octet {
            b'\n' => out.extend_from_slice(b"\r\n"),
            b'\r' if octets.peek() == Some(&b'\n') => {
                octets.next();
                out.extend_from_slice(b"\r\n");
            }
            b'\r' => out.extend_from_slice(b"\r\0"),
            other => out.push(other),
        }
    }
    out.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn netascii() {
        assert_eq!(to_netascii(b"a\nb\r\nc\rd"), &b"a\r\nb\r\nc\r\0d"[..]);
    }
}
