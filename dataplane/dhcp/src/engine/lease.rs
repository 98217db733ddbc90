//! Outcomes of writes, and time: ACKs that waited, offers that ran out, addresses taken back.

use std::time::{Duration, Instant};

use ::lease::{Outcome, Refusal, TAKE_AWAY_GRACE, WriteKind};
use wire::dhcp4::{LeaseTimes, MessageType};

use super::{Engine, message, rules};
use crate::clock::{Ms, trusted};
use crate::counters::Sent;
use crate::outbox::{Event, EventKind, Outbox, Ticket};
use crate::pending::{Kind, Pending, Prepared};
use crate::table::{Binding, State};

/// Offers ended in one tick at most.
const OFFERS_PER_TICK_MAX: usize = 256;
/// Addresses looked at in one scan, and reclaims it may ask for.
const SCAN_SLOTS_MAX: usize = 4096;
const RECLAIMS_PER_SCAN_MAX: usize = 64;
const EXPIRED_PER_SCAN_MAX: usize = 64;
/// Addresses reserved for one client and held by another that are looked after at one time; the others wait for a scan.
pub(super) const WANTED_MAX: usize = 64;
/// How often to scan: while addresses run low and this round over the table is not at its end, or its last scan found
/// more than it may ask for; when they run low; and otherwise.
const SCAN_EVERY_BUSY: Duration = Duration::from_millis(50);
const SCAN_EVERY_LOW: Duration = Duration::from_secs(1);
const SCAN_EVERY: Duration = Duration::from_secs(30);
/// The link thread answers every write; one that it lost counts as unknown after this long.
const OUTCOME_LATEST: Duration = Duration::from_secs(60);

impl Engine {
    // ---------------------------------------------------------------- outcomes

    /// The region (or the spool) answered a write. A waiting ACK leaves now if its grant is durable; anything
    /// else is silence, and the client asks again.
    pub fn on_outcome(&mut self, ticket: Ticket, outcome: Outcome, now: Instant, out: &mut Outbox) {
        let now = self.scale.ms(now);
        if ticket == Ticket::UNAWAITED {
            return;
        }
        if self.on_extended(ticket, outcome, now, out) {
            return;
        }
        let Some((index, pending)) = self.pending.take(ticket) else {
            return self.counters.count(Sent::StrayOutcome);
        };
        self.settle(index, pending, outcome, now, out);
    }

    fn settle(
        &mut self,
        index: u32,
        mut pending: Pending,
        outcome: Outcome,
        now: Ms,
        out: &mut Outbox,
    ) {
        let (slot, since) = (pending.slot, pending.since);
        // Whatever this write was for, the address has moved on if it is no longer waiting for it.
        let waiting = self
            .table
            .binding_mut(slot)
            .filter(|binding| binding.writing == Some(index))
            .is_some();
        if waiting {
            match &mut pending.kind {
                Kind::Grant(ack) => self.settle_grant(slot, since, ack, outcome, now, out),
                Kind::Reclaim => self.settle_reclaim(slot, outcome, now),
            }
        } else {
            self.counters.count(Sent::StrayOutcome);
        }
        self.pending.reuse(pending);
    }

    fn settle_grant(
        &mut self,
        slot: u32,
        since: Ms,
        ack: &mut Prepared,
        outcome: Outcome,
        now: Ms,
        out: &mut Outbox,
    ) {
        let Some(binding) = self.table.binding_mut(slot) else {
            return;
        };
        binding.writing = None;
        match outcome {
            Outcome::Durable { remaining } => {
                // No write ever shortens an end, so an earlier word still holds.
                binding.durable = binding.durable.max(since.plus(trusted(remaining)));
                binding.ended = match binding.ended {
                    Ms::NEVER => now.plus(remaining),
                    ended => ended.max(now.plus(remaining)),
                };
                (binding.released, binding.gone) = (false, false);
                let durable_left = binding.durable.left(now);
                self.send_prepared(ack, durable_left, now, out);
            }
            Outcome::Refused(Refusal::Mute) => {
                // It never left the rack: the address is what it was before.
                if binding.is_blank() {
                    self.table.free(slot);
                }
            }
            Outcome::Refused(Refusal::OtherClient) => {
                self.counters.count(Sent::RefusedOtherClient);
                self.table.bar(slot);
                let (vlan, mac, address) = (ack.vlan, ack.mac, ack.address);
                let kind = EventKind::Conflict;
                if !out.event(Event {
                    kind,
                    vlan,
                    mac,
                    address,
                    lease: Duration::ZERO,
                }) {
                    self.counters.count(Sent::EventLost);
                }
            }
            Outcome::Refused(refusal) => {
                self.refused(slot, refusal);
                self.table.bar(slot);
            }
            // A grant is never just done: whoever said so left it open what was written.
            Outcome::Unknown | Outcome::Done => {
                binding.unknown = true;
                self.counters.count(Sent::Unknown);
            }
        }
    }

    /// ACK = min(lease, what is left of the durable end, what is left of until), computed as it leaves.
    pub(super) fn send_prepared(
        &mut self,
        ack: &mut Prepared,
        durable_left: Duration,
        now: Ms,
        out: &mut Outbox,
    ) {
        let until_left = self.until.map_or(Duration::ZERO, |until| until.left(now));
        let lease = ack.lease.min(durable_left).min(until_left);
        if lease < message::LEASE_MIN {
            return self.counters.drop(crate::Drop::TooLate);
        }
        if !out.has_room() {
            return self.counters.drop(crate::Drop::OutboxFull);
        }
        let message = ack.message(LeaseTimes::of(rules::secs(lease)));
        out.message_buffer()[..message.len()].copy_from_slice(message);
        out.reply(
            MessageType::Ack,
            ack.vlan,
            ack.server,
            ack.destination,
            ack.length,
        );
        self.counters.count(Sent::Ack);
        let (vlan, mac, address) = (ack.vlan, ack.mac, ack.address);
        if !out.event(Event {
            kind: EventKind::Ack,
            vlan,
            mac,
            address,
            lease,
        }) {
            self.counters.count(Sent::EventLost);
        }
    }

    fn settle_reclaim(&mut self, slot: u32, outcome: Outcome, now: Ms) {
        let Some(binding) = self.table.binding_mut(slot) else {
            return;
        };
        binding.writing = None;
        match outcome {
            Outcome::Done => {
                let probed = binding.ended > now;
                let is_only = self.table.pool_of(slot).dealable() == 0;
                self.table.free(slot);
                self.came = true;
                // What a probe found unused goes first: this one only where there is no other.
                if probed && is_only {
                    self.table.start_probe(slot);
                    self.table.end_probe(slot, Some(now));
                }
            }
            // It may run late: then it finds the row ended, or extended by its own client.
            Outcome::Unknown | Outcome::Durable { .. } => {
                binding.unknown = true;
                self.counters.count(Sent::Unknown);
            }
            // A survivor lengthened it, or the RELEASE never got there: it comes back at its end.
            Outcome::Refused(Refusal::NotEnded) if binding.ended > now => binding.gone = false,
            Outcome::Refused(Refusal::Mute) if binding.ended > now => {}
            // Extended by a survivor, quarantined, or we are detached: ask again later.
            Outcome::Refused(Refusal::NotEnded | Refusal::Mute) => binding.ended = now,
            Outcome::Refused(refusal) => {
                self.refused(slot, refusal);
                self.table.bar(slot);
            }
        }
    }

    fn refused(&mut self, slot: u32, refusal: Refusal) {
        match refusal {
            Refusal::OtherClient => return self.counters.count(Sent::RefusedOtherClient),
            Refusal::StaleEpoch | Refusal::NotOwner => self.table.refuse_run(slot),
            Refusal::NotFound | Refusal::NotEnded | Refusal::OutsideBlock | Refusal::Mute => {}
        }
        self.counters.count(Sent::RefusedOther);
    }

    // ---------------------------------------------------------------- time

    /// Ends offers whose hold is over and, every so often, looks for addresses to take back. Bounded work; call
    /// it when [`Self::next_deadline`] has passed.
    pub fn tick(&mut self, now: Instant, out: &mut Outbox) {
        let now = self.scale.ms(now);
        if self.table.next_offer_end().is_some_and(|due| due <= now) {
            self.table.expire_offers(now, OFFERS_PER_TICK_MAX);
        }
        if self.next_scan <= now {
            self.scan(now, out);
        }
    }

    /// When [`Self::tick`] has something to do; None while detached from everything.
    pub fn next_deadline(&self) -> Option<Instant> {
        let offers = self.table.next_offer_end().unwrap_or(Ms::NEVER);
        self.scale.instant(offers.min(self.next_scan))
    }

    fn scan(&mut self, now: Ms, out: &mut Outbox) {
        self.expire_pending(now, out);
        self.peers.sweep(now);
        self.reclaim_wanted(now, out);
        let pools = self.table.pools();
        let low = pools
            .iter()
            .any(|pool| pool.is_low() || pool.is_low_for_strangers(self.known));
        let slots = self.table.len();
        let mut reclaims = 0;
        let mut ended: [u32; RECLAIMS_PER_SCAN_MAX] = [0; RECLAIMS_PER_SCAN_MAX];
        let mut ended_count = 0;
        let mut round_ended = false;
        for _ in 0..slots.min(SCAN_SLOTS_MAX) {
            let slot = self.cursor;
            self.cursor = if slot as usize + 1 < slots {
                slot + 1
            } else {
                round_ended = true;
                0
            };
            self.wake_resting(slot, now);
            self.leave(slot);
            if !self.is_reclaimable(slot, now) {
                continue;
            }
            // What was released goes first; the rest of the scan's budget to what has only ended.
            if self
                .table
                .binding(slot)
                .is_some_and(|binding| binding.released)
            {
                if reclaims < RECLAIMS_PER_SCAN_MAX && self.reclaim(slot, false, now, out) {
                    reclaims += 1;
                }
            } else if ended_count < RECLAIMS_PER_SCAN_MAX {
                ended[ended_count] = slot;
                ended_count += 1;
            }
        }
        for slot in &ended[..ended_count] {
            if reclaims == RECLAIMS_PER_SCAN_MAX || !self.reclaim(*slot, false, now, out) {
                break;
            }
            reclaims += 1;
        }
        self.last_scan = now;
        self.next_scan = now.plus(match low {
            true if !round_ended || reclaims == RECLAIMS_PER_SCAN_MAX => SCAN_EVERY_BUSY,
            true => SCAN_EVERY_LOW,
            false => SCAN_EVERY,
        });
    }

    /// Somebody went without an address. However many do, a scan is due once a second.
    pub(super) fn hurry_scan(&mut self) {
        self.next_scan = self.next_scan.min(self.last_scan.plus(SCAN_EVERY_LOW));
    }

    /// A quarantine that is over: the address is free, unless a row must be reclaimed first.
    fn wake_resting(&mut self, slot: u32, now: Ms) {
        let Some((until, ended)) = self.table.resting(slot) else {
            return;
        };
        if until > now {
            return;
        }
        let Some(client) = self.table.client(slot) else {
            return self.table.free(slot);
        };
        let binding = Binding {
            // A grant that was on its way at the DECLINE may have run: the region will say.
            ended: if ended == Ms::NEVER { now } else { ended },
            released: true,
            ..Binding::BLANK
        };
        // The client may hold another address by now, which stays the one it is known by.
        let other = self.table.held_by(&client);
        let stranger = self.table.is_strangers(slot);
        self.table.bind(slot, &client, binding, stranger);
        if let Some(other) = other {
            self.table.remember(other);
        }
    }

    /// Its row has surely ended, by a minute, and its pool needs addresses.
    fn is_reclaimable(&self, slot: u32, now: Ms) -> bool {
        self.is_wanted(slot) && self.has_ended(slot, now)
    }

    /// Its pool needs addresses, or it is reserved for somebody else.
    pub(super) fn is_wanted(&self, slot: u32) -> bool {
        let pool = self.table.pool_of(slot);
        // Strangers that take all they may cost no known machine its address.
        let low = if self.table.is_strangers(slot) {
            pool.is_low_for_strangers(self.known)
        } else {
            pool.is_low()
        };
        low || self.wanted.contains(&slot)
    }

    fn has_ended(&self, slot: u32, now: Ms) -> bool {
        let Some(binding) = self.table.binding(slot) else {
            return false;
        };
        !self.table.run(slot).refused
            && !binding.unknown
            && binding.writing.is_none()
            && binding.ended != Ms::NEVER
            && binding.ended.plus(TAKE_AWAY_GRACE) < now
            && binding.rests_until < now
    }

    /// Somebody has an address that is reserved for another client: it comes back when its lease has ended, however many
    /// are free.
    pub(super) fn want(&mut self, slot: u32) {
        let is_held = self.table.state(slot) == State::Bound;
        if is_held && self.wanted.len() < WANTED_MAX && !self.wanted.contains(&slot) {
            self.wanted.push(slot);
            self.hurry_scan();
        }
    }

    fn reclaim_wanted(&mut self, now: Ms, out: &mut Outbox) {
        let mut at = 0;
        while let Some(slot) = self.wanted.get(at).copied() {
            if self.table.state(slot) != State::Bound {
                self.wanted.swap_remove(at);
                continue;
            }
            if self.has_ended(slot, now) {
                self.reclaim(slot, false, now, out);
            }
            at += 1;
        }
    }

    /// Asks the region for the address of a row that has ended or, `silent`, that nobody needs any more. False if there is
    /// no room to ask.
    pub(super) fn reclaim(&mut self, slot: u32, silent: bool, now: Ms, out: &mut Outbox) -> bool {
        if self.serving(now).is_err() || !out.has_item_room(1) {
            return false;
        }
        let pending = Pending {
            slot,
            since: now,
            kind: Kind::Reclaim,
        };
        let Some((index, ticket)) = self.pending.add(pending) else {
            return false;
        };
        let client = self.table.client(slot);
        let (Some(binding), Some(client)) = (self.table.binding_mut(slot), client) else {
            self.pending.cancel(index);
            return false;
        };
        binding.writing = Some(index);
        let write = self.write(slot, WriteKind::Reclaim { client, silent });
        out.lease(ticket, write);
        self.counters.count(Sent::Reclaim);
        true
    }

    /// Writes that were never answered.
    fn expire_pending(&mut self, now: Ms, out: &mut Outbox) {
        for _ in 0..EXPIRED_PER_SCAN_MAX {
            let oldest = self.pending.older_than(now.minus(OUTCOME_LATEST));
            let Some((index, pending)) = oldest.and_then(|ticket| self.pending.take(ticket)) else {
                break;
            };
            self.settle(index, pending, Outcome::Unknown, now, out);
        }
    }
}
