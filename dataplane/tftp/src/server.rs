//! All transfers of one shard, and who is served next.
//!
//! ```text
//!  RRQ --> pending --find--> unconfirmed --first ACK--> confirmed --last ACK--> ended
//!              ^  parked while the Host says Later; `retry` brings it back
//! ```
//! Each of the three has a limit and a share per address ([`Shares`]); a client's own oldest goes first.
//!
//! | full        | who gives way                                                                                  |
//! |-------------|------------------------------------------------------------------------------------------------|
//! | pending     | the oldest stranger's, else the oldest                                                         |
//! | unconfirmed | the oldest: its client had more time to answer than any other                                  |
//! | confirmed   | whoever made no progress for `stalled_after`; if all did, the slowest stranger for a known machine, but for a stranger nobody: its request waits, and what runs goes on |
//!
//! A stranger is an address that was not given to a machine that the region knows ([`Host::is_known`]). How many addresses
//! a host has, and how often it answers, is its own choice; whom it is known as is not.
//!
//! Order within one `run`: sends that found no slot, then resends that are due, then new requests. So a full rack
//! finishes what it began, and a source that only asks takes nothing from those that answer.

mod waiting;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use bytes::Bytes;
use slab::Slab;
use wire::tftp::{ErrorCode, Mode, Options, Packet, Request};

use self::waiting::{Lanes, Pending};
use crate::content::Content;
use crate::host::{Counters, Ended, Found, Host, Limits, Outcome, Peer, Ticket};
use crate::path::clean_path;
use crate::sending::{send_blocks, send_error, send_oack};
use crate::session::{Answer, ReadSession, Step};
use crate::shares::Shares;
use crate::terms::{Terms, negotiate};

/// A full table is looked through for stalled transfers at most so often.
const STALLED_EVERY: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(crate) struct Transfer {
    serial: u32,
    pub peer: Peer,
    /// Which of the shard's transfer ports is ours.
    pub tid: u16,
    pub content: Content,
    name: Box<str>,
    is_known: bool,
    pub terms: Terms,
    pub oack: Options,
    pub session: ReadSession,
    /// What the last step asked for and no slot was free for.
    unsent: Option<Step>,
}

#[derive(Clone, Copy, Debug)]
enum Place {
    Pending(u32),
    Transfer(u32),
}

#[derive(Debug)]
pub struct Server {
    limits: Limits,
    /// Secret: which port a transfer gets.
    seed: u64,
    transfers: Slab<Transfer>,
    confirmed: usize,
    confirmed_strangers: usize,
    pending: Slab<Pending>,
    places: HashMap<Peer, Place, foldhash::quality::RandomState>,
    shares: Shares,
    /// Requests to be looked up, in order of arrival.
    ready: Lanes,
    /// All pending in order of arrival.
    arrivals: Lanes,
    /// All unconfirmed in order of their start, stale tickets among them.
    unanswered: VecDeque<Ticket>,
    /// One entry per transfer, at or before its deadline; stale ones are skipped.
    deadlines: BinaryHeap<Reverse<(Instant, u32, u32)>>,
    /// Transfers with something unsent.
    blocked: VecDeque<Ticket>,
    /// When a full table may be looked through again.
    stalled_at: Option<Instant>,
    serial: u32,
    pub counters: Counters,
}

impl Server {
    /// `seed` must be random: it says from which port a client is served.
    pub fn new(limits: Limits, seed: u64) -> Self {
        Self {
            limits,
            seed,
            transfers: Slab::with_capacity(limits.transfers_max + limits.unconfirmed_max),
            confirmed: 0,
            confirmed_strangers: 0,
            pending: Slab::with_capacity(limits.pending_max),
            places: HashMap::default(),
            shares: Shares::default(),
            ready: Lanes::default(),
            arrivals: Lanes::default(),
            unanswered: VecDeque::new(),
            deadlines: BinaryHeap::new(),
            blocked: VecDeque::new(),
            stalled_at: None,
            serial: 0,
            counters: Counters::default(),
        }
    }

    pub fn transfer_count(&self) -> usize {
        self.transfers.len()
    }

    pub fn unconfirmed_count(&self) -> usize {
        self.transfers.len() - self.confirmed
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
                let why = "this server is read only";
                self.refuse(&peer, ErrorCode::IllegalOperation, why, host);
            }
            Ok(_) => self.counters.stray += 1,
            Err(why) => {
                self.counters.malformed += 1;
                // RFC 1350 §1: most errors end the connection with an error packet.
                if matches!(octets, [0, 1 | 2, _, _, ..]) {
                    let (tid, code) = (self.next_tid(&peer), ErrorCode::IllegalOperation);
                    send_error(&peer, tid, code, &why.to_string(), host);
                }
            }
        }
    }

    /// A datagram to transfer port `tid`.
    pub fn on_transfer(
        &mut self,
        peer: Peer,
        tid: u16,
        octets: &[u8],
        now: Instant,
        host: &mut impl Host,
    ) {
        let Ok(packet) = Packet::parse(octets) else {
            self.counters.malformed += 1;
            return;
        };
        let Some(Place::Transfer(key)) = self.places.get(&peer).copied() else {
            // A client that aborts while its request still waits has no port of ours to say so to.
            self.counters.stray += 1;
            return;
        };
        if self.transfers[key as usize].tid != tid {
            // Whoever was sent something knows the port (RFC 1350 §4). The transfer goes on undisturbed.
            self.counters.wrong_tid += 1;
            return;
        }
        match packet {
            Packet::Ack { block } => self.on_ack(key, block, now, host),
            Packet::Error { .. } => self.end(key, Outcome::Aborted, host),
            _ => self.counters.stray += 1,
        }
    }

    fn on_ack(&mut self, key: u32, block: u16, now: Instant, host: &mut impl Host) {
        let transfer = &self.transfers[key as usize];
        let answer = transfer.session.answer(block);
        let is_first = answer != Answer::Nothing && !transfer.session.is_confirmed();
        let goes_on = matches!(answer, Answer::Progress(_));
        if is_first && goes_on && !self.make_place(key, now, host) {
            // The client repeats its ACK, or gives up and asks again.
            self.counters.no_place += 1;
            return;
        }
        let transfer = &mut self.transfers[key as usize];
        let step = transfer.session.on_ack(block, now);
        if step != Step::Wait {
            // The answer to what is still unsent would be older than this step.
            transfer.unsent = None;
        }
        if is_first {
            let is_confirmed = transfer.session.is_confirmed();
            self.confirmed += usize::from(is_confirmed);
            self.confirmed_strangers += usize::from(is_confirmed && !transfer.is_known);
            self.counters.confirmed += u64::from(is_confirmed);
            if transfer.oack.is_empty() {
                let client = transfer.peer.client.ip();
                self.shares.of(client).answered_first_block();
            }
        }
        self.take_step(key, step, host);
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
            self.refuse(&peer, ErrorCode::AccessViolation, "access violation", host);
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
                if *self.transfers[key as usize].name == *name && self.repeat_first(key, now, host)
                {
                    return;
                }
                self.end(key, Outcome::Replaced, host);
            }
            None => {}
        }
        self.make_pending_room(&peer);
        let is_known = host.is_known(peer.client.ip());
        let serial = self.next_serial();
        let key = self.pending.insert(Pending {
            serial,
            peer,
            name: name.into(),
            mode: request.mode,
            options: request.options,
            mtu,
            is_known,
            deadline: now + self.limits.pending_wait,
            queued: true,
        });
        let key = u32::try_from(key).expect("pending_max bounds the slab");
        self.places.insert(peer, Place::Pending(key));
        self.shares.of(peer.client.ip()).pending.push(key);
        let ticket = Ticket { key, serial };
        self.ready.of(is_known).push_back(ticket);
        self.arrivals.of(is_known).push_back(ticket);
    }

    /// Our first packet, or the client's patience, was lost. False: it has answered, so this is another boot.
    fn repeat_first(&mut self, key: u32, now: Instant, host: &mut impl Host) -> bool {
        let transfer = &mut self.transfers[key as usize];
        let Some(step) = transfer.session.on_repeated_request(now) else {
            return false;
        };
        self.counters.repeated += 1;
        let (client, is_block) = (transfer.peer.client.ip(), transfer.oack.is_empty());
        if is_block && !self.shares.of(client).may_send_first_block(now) {
            self.counters.rationed += 1;
            return true;
        }
        self.counters.resent += 1;
        self.take_step(key, step, host);
        true
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
        let first = |arrivals: &VecDeque<Ticket>| {
            let oldest = self.pending.get(arrivals.front()?.key as usize)?;
            Some(oldest.deadline)
        };
        let (known, stranger) = (first(&self.arrivals.known), first(&self.arrivals.strangers));
        [resend, known, stranger].into_iter().flatten().min()
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
        while let Some(ticket) = self.next_ready(now, host) {
            let Some(pending) = self.pending.get_mut(ticket.key as usize) else {
                continue;
            };
            if pending.serial != ticket.serial {
                continue;
            }
            pending.queued = false;
            match host.find(ticket, &pending.peer, &pending.name) {
                Found::Later => {}
                Found::Silent => drop(self.forget(ticket.key)),
                Found::NotFound => {
                    self.counters.not_found += 1;
                    let peer = pending.peer;
                    let tid = self.next_tid(&peer);
                    send_error(&peer, tid, ErrorCode::FileNotFound, "file not found", host);
                    self.forget(ticket.key);
                }
                Found::File(file) => self.start(ticket.key, file, now, host),
            }
        }
    }

    fn start(&mut self, pending_key: u32, file: Bytes, now: Instant, host: &mut impl Host) {
        let Some(pending) = self.forget(pending_key) else {
            return;
        };
        let (peer, client) = (pending.peer, pending.peer.client.ip());
        let content = match pending.mode {
            Mode::Octet => Some(Content::Octets(file)),
            Mode::Netascii => Content::text(file),
        };
        let Some(content) = content else {
            let why = "no short text: ask for it in octet mode";
            return self.refuse(&peer, ErrorCode::NotDefined, why, host);
        };
        let (terms, oack) = negotiate(
            &pending.options,
            &self.limits.terms,
            pending.mtu,
            peer.client.is_ipv6(),
            content.bytes(),
        );
        let is_block = oack.is_empty();
        if is_block && !self.shares.of(client).may_send_first_block(now) {
            self.counters.rationed += 1;
            return;
        }
        self.make_unconfirmed_room(&peer, host);
        let (session, step) = ReadSession::start(terms, content.bytes(), !is_block, now);
        let (serial, tid) = (self.next_serial(), self.next_tid(&peer));
        let deadline = session.deadline();
        let key = self.transfers.insert(Transfer {
            serial,
            peer,
            tid,
            content,
            name: pending.name,
            is_known: pending.is_known,
            terms,
            oack,
            session,
            unsent: None,
        });
        let key = u32::try_from(key).expect("the limits bound the slab");
        self.shares.of(client).transfers.push(key);
        self.places.insert(peer, Place::Transfer(key));
        self.unanswered.push_back(Ticket { key, serial });
        self.counters.started += 1;
        let entries_max = 2 * (self.limits.transfers_max + self.limits.unconfirmed_max) + 1024;
        if self.deadlines.len() > entries_max {
            self.rebuild_deadlines();
        } else {
            self.deadlines.push(Reverse((deadline, key, serial)));
        }
        self.take_step(key, step, host);
    }

    /// One more unconfirmed transfer of this client will have its place.
    fn make_unconfirmed_room(&mut self, peer: &Peer, host: &mut impl Host) {
        let (mut own, mut oldest) = (0, None);
        for held in self.shares.held(peer.client.ip()) {
            if !self.transfers[*held as usize].session.is_confirmed() {
                own += 1;
                oldest = oldest.or(Some(*held));
            }
        }
        if own >= self.limits.unconfirmed_per_client.max(1)
            && let Some(oldest) = oldest
        {
            self.counters.displaced_share += 1;
            self.end(oldest, Outcome::Displaced, host);
        }
        while self.unconfirmed_count() >= self.limits.unconfirmed_max.max(1) {
            let Some(ticket) = self.unanswered.pop_front() else {
                break;
            };
            if self.is_unanswered(ticket) {
                self.counters.displaced_unconfirmed += 1;
                self.end(ticket.key, Outcome::Displaced, host);
            }
        }
        // Tickets of those that answered at once pile up behind one that does not.
        if self.unanswered.len() > 2 * self.limits.unconfirmed_max + 64 {
            let all = std::mem::take(&mut self.unanswered);
            let kept = all.into_iter().filter(|ticket| self.is_unanswered(*ticket));
            self.unanswered = kept.collect();
        }
    }

    fn is_unanswered(&self, ticket: Ticket) -> bool {
        self.transfers
            .get(ticket.key as usize)
            .is_some_and(|transfer| {
                transfer.serial == ticket.serial && !transfer.session.is_confirmed()
            })
    }

    /// A place among the confirmed for this transfer, whose client has just answered. False: there is none now.
    fn make_place(&mut self, key: u32, now: Instant, host: &mut impl Host) -> bool {
        let client = self.transfers[key as usize].peer.client.ip();
        let mut own = 0;
        let mut longest: Option<(Duration, u32)> = None;
        for held in self.shares.held(client) {
            let session = &self.transfers[*held as usize].session;
            if session.is_confirmed() {
                own += 1;
                longest = longest.max(Some((session.silence(now), *held)));
            }
        }
        if own >= self.limits.transfers_per_client.max(1)
            && let Some((_, silent)) = longest
        {
            self.counters.displaced_share += 1;
            self.end(silent, Outcome::Displaced, host);
        }
        self.confirmed < self.limits.transfers_max
            || self.end_stalled(now, host)
            || self.transfers[key as usize].is_known && self.end_stranger(now, host)
    }

    /// Takes the place of the stranger that was silent for longest. False: known machines have all.
    fn end_stranger(&mut self, now: Instant, host: &mut impl Host) -> bool {
        if self.confirmed_strangers == 0 {
            return false;
        }
        let strangers = self
            .transfers
            .iter()
            .filter(|(_, transfer)| transfer.session.is_confirmed() && !transfer.is_known);
        let Some((key, _)) = strangers.max_by_key(|(_, transfer)| transfer.session.silence(now))
        else {
            return false;
        };
        self.counters.displaced_stranger += 1;
        self.end(key as u32, Outcome::Displaced, host); // the limits bound the slab
        true
    }

    /// Takes their places from all confirmed transfers that have been silent too long. True: there is a place now.
    fn end_stalled(&mut self, now: Instant, host: &mut impl Host) -> bool {
        if self.stalled_at.is_some_and(|at| now < at) {
            return false;
        }
        self.stalled_at = Some(now + STALLED_EVERY);
        let is_stalled = |transfer: &Transfer| {
            transfer.session.is_confirmed()
                && transfer.session.silence(now) >= self.limits.stalled_after
        };
        let stalled: Vec<u32> = self
            .transfers
            .iter()
            .filter(|(_, transfer)| is_stalled(transfer))
            .map(|(key, _)| key as u32) // the limits bound the slab
            .collect();
        for key in stalled {
            self.counters.displaced_stalled += 1;
            self.end(key, Outcome::Displaced, host);
        }
        self.confirmed < self.limits.transfers_max
    }

    /// Long timeouts leave stale entries behind; this drops them all.
    fn rebuild_deadlines(&mut self) {
        self.deadlines.clear();
        for (key, transfer) in &self.transfers {
            let key = u32::try_from(key).expect("the limits bound the slab");
            self.deadlines
                .push(Reverse((transfer.session.deadline(), key, transfer.serial)));
        }
    }

    fn end(&mut self, key: u32, outcome: Outcome, host: &mut impl Host) {
        let transfer = self.transfers.remove(key as usize);
        self.places.remove(&transfer.peer);
        let client = transfer.peer.client.ip();
        self.shares.drop_transfer(client, key);
        // One that ends with its first answer was never among the confirmed.
        let is_confirmed = transfer.session.is_confirmed();
        self.confirmed -= usize::from(is_confirmed);
        self.confirmed_strangers -= usize::from(is_confirmed && !transfer.is_known);
        match outcome {
            Outcome::Finished => self.counters.finished += 1,
            Outcome::Aborted => self.counters.aborted += 1,
            Outcome::GaveUp => self.counters.gave_up += 1,
            Outcome::Replaced => self.counters.replaced += 1,
            Outcome::Displaced => {} // counted by its reason
        }
        host.ended(Ended {
            peer: &transfer.peer,
            file: &transfer.name,
            file_bytes: transfer.content.bytes(),
            outcome,
        });
    }

    fn take_step(&mut self, key: u32, step: Step, host: &mut impl Host) {
        match step {
            Step::Wait => {}
            Step::Finished => self.end(key, Outcome::Finished, host),
            Step::GaveUp => self.end(key, Outcome::GaveUp, host),
            Step::SendOack { .. } => {
                if send_oack(&self.transfers[key as usize], host).is_err() {
                    self.block(key, step);
                }
            }
            Step::SendBlocks {
                first,
                last,
                deadline,
            } => {
                let transfer = &mut self.transfers[key as usize];
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

    fn refuse(&mut self, peer: &Peer, code: ErrorCode, why: &str, host: &mut impl Host) {
        self.counters.refused += 1;
        let tid = self.next_tid(peer);
        send_error(peer, tid, code, why, host);
    }

    fn next_serial(&mut self) -> u32 {
        self.serial = self.serial.wrapping_add(1);
        self.serial
    }

    /// A port that nobody can tell who does not know the seed.
    fn next_tid(&mut self, peer: &Peer) -> u16 {
        let mut hasher = DefaultHasher::new();
        (self.seed, self.next_serial(), peer).hash(&mut hasher);
        (hasher.finish() % u64::from(self.limits.tids.max(1))) as u16 // below `tids`
    }
}
