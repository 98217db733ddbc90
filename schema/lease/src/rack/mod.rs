//! The rack's end of the lease protocol: one state machine, [`Rack`], for all shards of a rack.
//!
//! No IO, no clock, no randomness. The link thread tells it what happened ([`Input`]) with a reading of CLOCK_BOOTTIME, does
//! what it asks ([`Action`]), and calls it again at [`Rack::next_tick`]. It does not know packets: a shard asks for writes,
//! computes its ACKs with [`ack_length`], and forgets when told to.
//!
//! ```text
//!            Attached          1 s without a reply         until passed, doubt, heartbeat says "attach"
//!   Mute ------------> Attached -------------> Detached ----------------------------------------> Mute
//!                          ^                      | a region answers: drain the spool, then attach;
//!                          +----------------------+ nothing new is granted while the attach runs
//! ```
//! Per address it knows: nobody's at the region's last word (no entry), bound with a durable end, asked for and not
//! answered (only that client, until the next attach), or closed. One write per address is under way at a time.
//!
//! In four files: this one holds state and time; `request` what shards ask; `region` what goes to a region and comes back;
//! `types` the words.

mod region;
mod request;
#[cfg(test)]
mod search;
mod types;

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::time::Duration;

pub use types::*;

use crate::guards::{Guard, Guards};
use crate::message::SpoolId;
use crate::spool::Entry;
use crate::types::{
    Block, BlockId, Client, DETACHED_AFTER, HEARTBEAT_EVERY, Outcome, Refusal, Write,
};

/// Under load a batch that is not full leaves this long after the one before it: a commit costs as much as fifty rows.
pub const BATCH_EVERY: Duration = Duration::from_millis(40);
/// Batches under way at a time.
pub const BATCHES_MAX: usize = 2;
/// An unanswered batch goes through another region after this.
pub const RESEND_AFTER: Duration = Duration::from_millis(250);
/// A batch that stays unanswered while others are answered is given up after this: outcome unknown.
pub const BATCH_PATIENCE: Duration = Duration::from_secs(5);
/// An unanswered attach is tried again, elsewhere if possible, after this times the attempt.
pub const ATTACH_PATIENCE: Duration = Duration::from_secs(10);
/// Between two attaches, after a failure, a refusal or a stale epoch.
pub const ATTACH_PAUSE: Duration = Duration::from_millis(250);
/// A detached rack with nothing to drain asks this often whether a region is back.
pub const PROBE_EVERY: Duration = Duration::from_secs(1);
/// After a region said "wait".
pub const WAIT_PAUSE: Duration = Duration::from_secs(5);
/// After the spool could not be written, it is written anew at once, then after the first of these, and then after twice
/// as long each time, up to the second.
pub const SPOOL_RESET_FIRST: Duration = Duration::from_secs(1);
pub const SPOOL_RESET_EVERY: Duration = Duration::from_secs(60);
/// Requests waiting to be sent, at most.
pub const QUEUE_ROWS_MAX: usize = 8_192;
/// Facts in the spool, at most (renewals of one address count once).
pub const SPOOL_ENTRIES_MAX: usize = 131_072;

/// What of a duration a rack trusts: its clock may be 1 % slow.
pub fn trust(length: Duration) -> Duration {
    length - length / 100
}

/// How long an ACK that leaves now may promise: `lease`, but not past the durable end nor `until`.
/// None: there is nothing to promise, a write is needed first.
pub fn ack_length(
    lease: Duration,
    durable_end: Boottime,
    until: Boottime,
    now: Boottime,
) -> Option<Duration> {
    let left = durable_end.min(until).saturating_sub(now);
    (!left.is_zero()).then(|| lease.min(left))
}

/// Whether the rack deals, and from what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mode {
    /// Knows no blocks.
    Mute,
    Attached,
    /// No region answers: facts go to the spool.
    Detached,
}

/// Where a restarted rack begins: what its spool file held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Start {
    pub spool_id: SpoolId,
    /// [`crate::spool::first_seq`] of this incarnation.
    pub seq: u64,
    pub entries: Vec<Entry>,
}

/// Who an address is for, as far as this rack knows.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    Nobody,
    /// A durable end is known: in the database or, detached, in the spool.
    Bound {
        client: Client,
        end: Boottime,
    },
    /// A write was sent and its outcome is not known.
    Asked {
        client: Client,
    },
    /// Refused, or not free at the region's last word.
    Closed,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Known {
    holder: Holder,
    quarantined: Option<Boottime>,
    /// Its client gave it up, and has not asked for it again: it may be taken back before its end.
    released: bool,
    /// RELEASEs that the region has not answered. One that runs late would mark a binding that was renewed since.
    releasing: u32,
    /// A reclaim that waits for no end was sent and not answered: a RELEASE from now on would let it run.
    recalled: bool,
    /// A grant or reclaim of this address is queued, under way or being fsynced.
    locked: bool,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Waiting {
    ticket: Ticket,
    write: Write,
}

/// What a row of a batch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Origin {
    Shard(Ticket),
    Spool(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct UnderWay {
    seq: u64,
    drained: bool,
    rows: Vec<(Origin, Write)>,
    first_sent: Boottime,
    resend_at: Boottime,
    calls: Vec<(CallId, LinkId)>,
}

/// A fact that waits for its fsync.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Appending {
    entry: Entry,
    /// None: nobody waits any more.
    ticket: Option<Ticket>,
    end: Boottime,
    sent: Boottime,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Attaching {
    /// Only the newest attach's answer counts: an older one may be overtaken in the database.
    call: Option<(CallId, LinkId)>,
    sent: Boottime,
    attempts: u32,
}

impl Attaching {
    /// Longer with every attempt: an attach that takes its time must not be overtaken by the next for ever.
    fn patience(&self) -> Duration {
        ATTACH_PATIENCE * self.attempts.min(6)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Beat {
    call: CallId,
    link: LinkId,
    sent: Boottime,
}

/// The rack's machine. See the module.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rack {
    guards: Guards,
    spool_id: SpoolId,
    /// The newest seq used, for a batch, an attach or a spooled fact.
    seq: u64,
    mode: Mode,
    until: Boottime,
    blocks: BTreeMap<BlockId, Block>,
    /// No entry: nobody's, not quarantined.
    addresses: BTreeMap<IpAddr, Known>,
    /// In order of preference; the first one is used.
    links: VecDeque<LinkId>,
    next_call: CallId,
    queue: VecDeque<Waiting>,
    /// A batch that is not full waits until then.
    batch_due: Boottime,
    batches: Vec<UnderWay>,
    /// Facts on disk that no region has taken.
    spool: BTreeMap<u64, Entry>,
    appending: BTreeMap<u64, Appending>,
    /// The newest fact on disk about an address.
    newest: BTreeMap<IpAddr, u64>,
    spool_writable: bool,
    spool_reset_due: Boottime,
    /// From the next try to the one after it.
    spool_reset_pause: Duration,
    /// The spool was set back: nothing goes on before it is replaced. Tried again at `spool_reset_due`; never, while a try is
    /// under way.
    replacing: bool,
    attaching: Option<Attaching>,
    attach_not_before: Boottime,
    /// A region has answered since the rack was detached.
    region_answers: bool,
    beat: Option<Beat>,
    beat_due: Boottime,
    /// Since when an answer is missing; any answer begins it anew.
    silent_since: Option<Boottime>,
    counters: Counters,
}

impl Rack {
    pub fn new(start: Start) -> Self {
        Self::with_guards(start, Guards::ALL)
    }

    pub(crate) fn with_guards(start: Start, guards: Guards) -> Self {
        let newest_seq = start
            .entries
            .iter()
            .map(|entry| entry.seq)
            .max()
            .unwrap_or(0);
        Self {
            guards,
            spool_id: start.spool_id,
            seq: start.seq.max(newest_seq),
            mode: Mode::Mute,
            until: Duration::ZERO,
            blocks: BTreeMap::new(),
            addresses: BTreeMap::new(),
            links: VecDeque::new(),
            next_call: 1,
            queue: VecDeque::new(),
            batch_due: Duration::ZERO,
            batches: Vec::new(),
            spool: start
                .entries
                .into_iter()
                .map(|entry| (entry.seq, entry))
                .collect(),
            appending: BTreeMap::new(),
            newest: BTreeMap::new(),
            spool_writable: true,
            spool_reset_due: Duration::ZERO,
            spool_reset_pause: SPOOL_RESET_FIRST,
            replacing: false,
            attaching: None,
            attach_not_before: Duration::ZERO,
            region_answers: false,
            beat: None,
            beat_due: Duration::ZERO,
            silent_since: None,
            counters: Counters::default(),
        }
    }

    /// Takes what happened at `now` and appends what is to be done to `out`. Never fails; inputs that make no sense
    /// any more (answers to forgotten calls) do nothing.
    pub fn handle(&mut self, now: Boottime, input: Input, out: &mut Vec<Action>) {
        // First of all: what has run out by now must not be used below.
        self.expire(now, out);
        match input {
            Input::LinkUp(link) => {
                if !self.links.contains(&link) {
                    self.links.push_back(link);
                }
                if self.silent_since.is_some() {
                    self.beat_due = self.beat_due.min(now);
                }
            }
            Input::LinkDown(link) => self.link_down(now, link),
            Input::Request { ticket, write } => self.request(now, ticket, write, out),
            Input::BatchAnswer { call, outcomes } => self.batch_answer(now, call, outcomes, out),
            Input::HeartbeatAnswer { call, reply } => self.heartbeat_answer(now, call, reply, out),
            Input::AttachAnswer { call, reply } => self.attach_answer(now, call, reply, out),
            Input::SpoolDurable { seq } => self.spool_durable(now, seq, out),
            Input::SpoolFailed => self.spool_failed(now, out),
            Input::SpoolReplaced { spool_id, seq } => self.spool_replaced(now, spool_id, seq, out),
            Input::ClocksDisagree => self.forget(now, out),
            Input::LinksChanged => self.beat_due = self.beat_due.min(now),
            Input::Tick => {}
        }
        self.pump(now, out);
    }

    /// Before this only a full batch leaves.
    pub fn batch_due(&self) -> Boottime {
        self.batch_due
    }

    /// When [`Input::Tick`] is due at the latest, if nothing else happens.
    pub fn next_tick(&self) -> Option<Boottime> {
        let mut next: Option<Boottime> = None;
        let mut at = |time: Boottime| next = Some(next.map_or(time, |next| next.min(time)));
        if self.mode != Mode::Mute {
            at(self.until);
        }
        if let Some(since) = self.silent_since
            && (self.mode == Mode::Attached || self.region_answers)
        {
            at(since + DETACHED_AFTER);
        }
        if self.resets_spool() || (self.replacing && self.spool_reset_due != Boottime::MAX) {
            at(self.spool_reset_due);
        }
        if !self.links.is_empty() {
            if self.mode == Mode::Attached
                && self.batches.len() < BATCHES_MAX
                && !self.queue.is_empty()
            {
                at(self.batch_due);
            }
            for batch in &self.batches {
                if batch.calls.is_empty() || self.other_link(batch).is_some() {
                    at(batch.resend_at);
                }
                if !batch.drained {
                    at(batch.first_sent + BATCH_PATIENCE);
                }
            }
            if self.may_attach() {
                let under_way = self
                    .attaching
                    .as_ref()
                    .filter(|attaching| attaching.call.is_some());
                at(under_way.map_or(self.attach_not_before, |attaching| {
                    attaching.sent + attaching.patience()
                }));
            }
            match &self.beat {
                Some(beat) if self.mode != Mode::Mute => at(beat.sent + DETACHED_AFTER),
                None if self.beats() => at(self.beat_due),
                _ => {}
            }
        }
        next
    }

    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// No ACK promises past this; zero while mute.
    pub fn until(&self) -> Boottime {
        self.until
    }

    pub fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.values()
    }

    /// Facts that no region has taken yet.
    pub fn spooled(&self) -> usize {
        self.spool.len() + self.appending.len()
    }

    pub fn queued(&self) -> usize {
        self.queue.len()
    }

    pub fn counters(&self) -> Counters {
        self.counters
    }

    // ------------------------------------------------------------ state changes

    /// What time alone does: `until` and the second without a reply.
    fn expire(&mut self, now: Boottime, out: &mut Vec<Action>) {
        if self.mode != Mode::Mute && self.until <= now && self.guards.stands(Guard::MuteAfterUntil)
        {
            out.push(Action::Alarm(Alarm::UntilPassed));
            self.forget(now, out);
        }
        if self.mode == Mode::Attached
            && self
                .silent_since
                .is_some_and(|since| since + DETACHED_AFTER <= now)
        {
            self.detach(now, out);
        }
        let silent = self
            .silent_since
            .is_some_and(|since| since + DETACHED_AFTER <= now);
        if self.mode != Mode::Attached && silent {
            self.region_answers = false;
            self.silent_since = None;
        }
    }

    /// Everything that can be sent now is sent.
    fn pump(&mut self, now: Boottime, out: &mut Vec<Action>) {
        self.expire(now, out);
        if self.resets_spool() && self.spool_reset_due <= now {
            self.spool_reset_due = now + self.spool_reset_pause;
            self.spool_reset_pause = (self.spool_reset_pause * 2).min(SPOOL_RESET_EVERY);
            out.push(Action::ResetSpool);
        }
        if self.replacing && self.spool_reset_due <= now {
            self.spool_reset_due = Boottime::MAX;
            out.push(Action::ReplaceSpool);
        }
        if self.links.is_empty() {
            if self.mode == Mode::Attached {
                self.silent_since.get_or_insert(now);
            }
            return;
        }
        self.resend_batches(now, out);
        self.send_queue(now, out);
        self.send_drain(now, out);
        self.send_attach(now, out);
        self.send_heartbeat(now, out);
    }

    /// A second without a reply: what is under way becomes facts of this rack, or stays unknown.
    fn detach(&mut self, now: Boottime, out: &mut Vec<Action>) {
        self.mode = Mode::Detached;
        self.counters.detached += 1;
        self.region_answers = false;
        self.beat_due = now;
        out.push(Action::Detached(true));
        for batch in std::mem::take(&mut self.batches) {
            for (origin, write) in batch.rows {
                let Origin::Shard(ticket) = origin else {
                    continue;
                };
                self.outcome_unknown(&write);
                self.fact_or_unknown(now, ticket, write, batch.seq, out);
            }
        }
        for waiting in std::mem::take(&mut self.queue) {
            self.unlock(waiting.write.address);
            self.request_detached(now, waiting.ticket, waiting.write, out);
        }
    }

    /// Mute until the next attach. The facts in the spool stay.
    fn forget(&mut self, now: Boottime, out: &mut Vec<Action>) {
        let batches = std::mem::take(&mut self.batches);
        let (drains, batches): (Vec<_>, Vec<_>) =
            batches.into_iter().partition(|batch| batch.drained);
        self.batches = drains;
        for batch in batches {
            for (origin, _) in batch.rows {
                if let Origin::Shard(ticket) = origin {
                    self.reply(ticket, Outcome::Unknown, now, out);
                }
            }
        }
        for waiting in std::mem::take(&mut self.queue) {
            self.reply(waiting.ticket, Outcome::Refused(Refusal::Mute), now, out);
        }
        let tickets: Vec<Ticket> = self
            .appending
            .values_mut()
            .filter_map(|appending| appending.ticket.take())
            .collect();
        for ticket in tickets {
            self.reply(ticket, Outcome::Unknown, now, out);
        }
        let dealt = self.mode != Mode::Mute;
        self.mode = Mode::Mute;
        self.until = Duration::ZERO;
        self.blocks.clear();
        self.addresses.clear();
        self.beat = None;
        self.silent_since = None;
        // An attach under way stays the newest: its answer, or the next one's, ends the silence.
        if dealt {
            self.counters.forgets += 1;
            out.push(Action::Forget);
        }
    }

    fn reply(&mut self, ticket: Ticket, outcome: Outcome, sent: Boottime, out: &mut Vec<Action>) {
        match outcome {
            Outcome::Durable { .. } | Outcome::Done => self.counters.replies_durable += 1,
            Outcome::Refused(_) => self.counters.replies_refused += 1,
            Outcome::Unknown => self.counters.replies_unknown += 1,
        }
        out.push(Action::Reply {
            ticket,
            outcome,
            sent,
        });
    }

    /// The spool could not be written. What it holds is written anew with it: a disk that was full for a moment must not
    /// keep a rack silent that has nobody to drain to.
    fn resets_spool(&self) -> bool {
        !self.spool_writable && !self.replacing
    }

    fn next_seq(&mut self) -> u64 {
        self.seq += 1;
        self.seq
    }

    fn next_call(&mut self) -> CallId {
        let call = self.next_call;
        self.next_call += 1;
        call
    }

    /// An answer has come: the second without one begins anew, if something is still missing.
    fn heard(&mut self, now: Boottime) {
        self.region_answers = true;
        let missing = !self.batches.is_empty() || self.beat.is_some() || self.links.is_empty();
        self.silent_since = missing.then_some(now);
    }
}
