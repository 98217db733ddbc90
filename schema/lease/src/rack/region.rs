//! What goes to a region, and what comes back.

use super::*;
use crate::message::{AttachReply, Attachment, Batch, BatchKey, HeartbeatReply, digest};
use crate::types::{BATCH_ROWS_MAX, Row, WriteKind};

impl Rack {
    // ------------------------------------------------------------ batches

    /// A lone grant goes at once; soon after a batch the next is held back to fill; never more than two under way.
    pub(super) fn send_queue(&mut self, now: Boottime, out: &mut Vec<Action>) {
        while self.mode == Mode::Attached
            && self.batches.len() < BATCHES_MAX
            && !self.queue.is_empty()
        {
            if self.queue.len() < BATCH_ROWS_MAX && now < self.batch_due {
                return;
            }
            self.batch_due = now + BATCH_EVERY;
            let count = self.queue.len().min(BATCH_ROWS_MAX);
            let taken: Vec<Waiting> = self.queue.drain(..count).collect();
            let mut rows = Vec::with_capacity(count);
            for Waiting { ticket, write } in taken {
                if let WriteKind::Grant { client, .. } = &write.kind {
                    let known = self.known(write.address);
                    if known.holder == Holder::Nobody {
                        known.holder = Holder::Asked {
                            client: client.clone(),
                        };
                    }
                }
                rows.push((Origin::Shard(ticket), write));
            }
            self.counters.batches += 1;
            self.counters.batch_rows += rows.len() as u64;
            self.send_new_batch(now, false, rows, out);
        }
    }

    /// The oldest facts first, one batch at a time: what is granted meanwhile comes behind.
    pub(super) fn send_drain(&mut self, now: Boottime, out: &mut Vec<Action>) {
        if self.mode == Mode::Attached || self.spool.is_empty() || !self.batches.is_empty() {
            return;
        }
        let facts = self.spool.values().take(BATCH_ROWS_MAX);
        let rows = facts
            .map(|entry| (Origin::Spool(entry.seq), entry.write.clone()))
            .collect();
        self.send_new_batch(now, true, rows, out);
    }

    fn send_new_batch(
        &mut self,
        now: Boottime,
        drained: bool,
        rows: Vec<(Origin, Write)>,
        out: &mut Vec<Action>,
    ) {
        // Without the rule, a fact that took over a key drains under it.
        let old_key = !self.guards.stands(Guard::FreshKey) && drained;
        let seq = match rows.first() {
            Some((Origin::Spool(seq), _)) if old_key => *seq,
            _ => self.next_seq(),
        };
        self.batches.push(UnderWay {
            seq,
            drained,
            rows,
            first_sent: now,
            resend_at: now,
            calls: vec![],
        });
        let index = self.batches.len() - 1;
        self.send_batch(now, index, self.links[0], out);
    }

    fn send_batch(&mut self, now: Boottime, index: usize, link: LinkId, out: &mut Vec<Action>) {
        let call = self.next_call();
        self.silent_since.get_or_insert(now);
        let batch = &mut self.batches[index];
        batch.resend_at = now + RESEND_AFTER;
        batch.calls.push((call, link));
        let key = BatchKey {
            spool_id: self.spool_id,
            seq: batch.seq,
        };
        let writes = batch.rows.iter().map(|(_, write)| write.clone()).collect();
        out.push(Action::SendBatch {
            call,
            link,
            batch: Batch {
                key,
                drained: batch.drained,
                writes,
            },
        });
    }

    /// A link that the batch was not sent on.
    pub(super) fn other_link(&self, batch: &UnderWay) -> Option<LinkId> {
        self.links
            .iter()
            .copied()
            .find(|link| batch.calls.iter().all(|(_, used)| used != link))
    }

    pub(super) fn resend_batches(&mut self, now: Boottime, out: &mut Vec<Action>) {
        let given_up: Vec<UnderWay> = self
            .batches
            .extract_if(.., |batch| {
                !batch.drained && batch.first_sent + BATCH_PATIENCE <= now
            })
            .collect();
        for (origin, write) in given_up.into_iter().flat_map(|batch| batch.rows) {
            self.outcome_unknown(&write);
            if let Origin::Shard(ticket) = origin {
                self.reply(ticket, Outcome::Unknown, now, out);
            }
        }
        for index in 0..self.batches.len() {
            let batch = &self.batches[index];
            let other = self.other_link(batch);
            // A failed call is repeated at once elsewhere, and on the same link after a pause.
            let failed_here = batch.calls.is_empty();
            if now < batch.resend_at || (other.is_none() && !failed_here) {
                continue;
            }
            let link = other.unwrap_or(self.links[0]);
            self.counters.resends += 1;
            self.prefer(link);
            self.send_batch(now, index, link, out);
        }
    }

    fn prefer(&mut self, link: LinkId) {
        if let Some(index) = self.links.iter().position(|known| *known == link) {
            self.links.remove(index);
            self.links.push_front(link);
        }
    }

    pub(super) fn batch_answer(
        &mut self,
        now: Boottime,
        call: CallId,
        outcomes: Option<Vec<Outcome>>,
        out: &mut Vec<Action>,
    ) {
        let Some(index) = self
            .batches
            .iter()
            .position(|batch| batch.calls.iter().any(|(id, _)| *id == call))
        else {
            return;
        };
        let asked = self.batches[index].rows.len();
        let outcomes = match outcomes {
            Some(outcomes) if outcomes.len() == asked => outcomes,
            other => {
                if let Some(outcomes) = other {
                    out.push(Action::Alarm(Alarm::ShortAnswer {
                        asked,
                        got: outcomes.len(),
                    }));
                }
                self.batches[index].calls.retain(|(id, _)| *id != call);
                return;
            }
        };
        let batch = self.batches.remove(index);
        self.heard(now);
        if let Some((_, link)) = batch.calls.iter().find(|(id, _)| *id == call) {
            self.prefer(*link);
        }
        if batch.drained {
            self.drained(batch, outcomes, out);
            return;
        }
        let mut stale = false;
        for ((origin, write), outcome) in batch.rows.into_iter().zip(outcomes) {
            let outcome = match outcome {
                Outcome::Durable { remaining } => Outcome::Durable {
                    remaining: trust(remaining),
                },
                other => other,
            };
            stale |= matches!(
                outcome,
                Outcome::Refused(Refusal::StaleEpoch | Refusal::NotOwner)
            ) && !matches!(write.kind, WriteKind::Extend { .. } | WriteKind::Yield);
            self.learn(&write, outcome, batch.first_sent, out);
            if let Origin::Shard(ticket) = origin
                && (self.guards.stands(Guard::CommitBeforeReply)
                    || !matches!(write.kind, WriteKind::Grant { .. }))
            {
                self.reply(ticket, outcome, batch.first_sent, out);
            }
        }
        if stale {
            // The region knows better who owns what.
            self.forget(now, out);
            self.attach_not_before = now + ATTACH_PAUSE;
        }
    }

    /// What an answer says about its address.
    fn learn(&mut self, write: &Write, outcome: Outcome, sent: Boottime, out: &mut Vec<Action>) {
        let grant = matches!(write.kind, WriteKind::Grant { .. });
        if let WriteKind::Release { client } = &write.kind
            && outcome == Outcome::Done
            && let Some(known) = self.addresses.get_mut(&write.address)
            && matches!(&known.holder, Holder::Bound { client: holder, .. } if holder == client)
        {
            known.releasing = known.releasing.saturating_sub(1);
        }
        let (WriteKind::Grant { client, .. } | WriteKind::Reclaim { client, .. }) = &write.kind
        else {
            return;
        };
        if !self.blocks.contains_key(&write.block) {
            return;
        }
        let known = self.known(write.address);
        if !grant && outcome != Outcome::Unknown {
            known.recalled = false;
        }
        match outcome {
            Outcome::Unknown => return self.outcome_unknown(write),
            Outcome::Durable { remaining } if grant => {
                let end = sent + remaining;
                let end = match &known.holder {
                    Holder::Bound {
                        client: holder,
                        end: before,
                    } if holder == client => end.max(*before),
                    _ => end,
                };
                known.holder = Holder::Bound {
                    client: client.clone(),
                    end,
                };
                known.quarantined = known.quarantined.filter(|end| *end > sent);
            }
            Outcome::Done if !grant => known.holder = Holder::Nobody,
            // Too early; the binding is there as before.
            Outcome::Refused(Refusal::NotEnded) if !grant => known.released = false,
            _ => {
                known.holder = Holder::Closed;
                if outcome == Outcome::Refused(Refusal::OtherClient) {
                    out.push(Action::Alarm(Alarm::OtherClient {
                        write: Box::new(write.clone()),
                    }));
                }
            }
        }
        self.unlock(write.address);
    }

    fn drained(&mut self, batch: UnderWay, outcomes: Vec<Outcome>, out: &mut Vec<Action>) {
        let mut seqs = Vec::with_capacity(batch.rows.len());
        for ((origin, write), outcome) in batch.rows.into_iter().zip(outcomes) {
            let Origin::Spool(seq) = origin else { continue };
            match outcome {
                Outcome::Unknown => continue,
                Outcome::Refused(refusal) => {
                    self.counters.drained_refused += 1;
                    out.push(Action::Alarm(Alarm::FactRefused {
                        write: Box::new(write.clone()),
                        refusal,
                    }));
                }
                Outcome::Durable { .. } | Outcome::Done => self.counters.drained += 1,
            }
            if self.newest.get(&write.address) == Some(&seq) {
                self.newest.remove(&write.address);
            }
            self.spool.remove(&seq);
            seqs.push(seq);
        }
        if !seqs.is_empty() {
            out.push(Action::RemoveSpool { seqs });
        }
    }

    pub(super) fn link_down(&mut self, now: Boottime, link: LinkId) {
        self.links.retain(|known| *known != link);
        for batch in &mut self.batches {
            let before = batch.calls.len();
            batch.calls.retain(|(_, used)| *used != link);
            if batch.calls.len() < before && batch.calls.is_empty() {
                // Nothing is on its way any more: elsewhere at once.
                batch.resend_at = now;
            }
        }
        if self.beat.as_ref().is_some_and(|beat| beat.link == link) {
            self.beat = None;
            self.beat_due = now;
        }
        if let Some(attaching) = &mut self.attaching
            && attaching.call.is_some_and(|(_, used)| used == link)
        {
            attaching.call = None;
        }
    }

    // ------------------------------------------------------------ heartbeats

    /// Whether heartbeats are sent at all now: attached always; detached to learn that a region is back.
    pub(super) fn beats(&self) -> bool {
        match self.mode {
            Mode::Mute => false,
            // A yield under way makes the digests differ.
            Mode::Attached => {
                let mut queued = self.queue.iter().map(|waiting| &waiting.write);
                let mut rows = self
                    .batches
                    .iter()
                    .flat_map(|batch| batch.rows.iter().map(|(_, write)| write));
                let is_yield = |write: &Write| matches!(write.kind, WriteKind::Yield);
                !queued.any(is_yield) && !rows.any(is_yield)
            }
            Mode::Detached => {
                // Also with an attach under way: nobody else would notice that it is lost.
                self.spool.is_empty() && !self.region_answers
            }
        }
    }

    pub(super) fn send_heartbeat(&mut self, now: Boottime, out: &mut Vec<Action>) {
        if self
            .beat
            .as_ref()
            .is_some_and(|beat| beat.sent + DETACHED_AFTER <= now)
        {
            // Lost; ask another region.
            self.beat = None;
            self.beat_due = now;
            self.links.rotate_left(1);
        }
        if self.beat.is_some() || now < self.beat_due || !self.beats() {
            return;
        }
        let (call, link) = (self.next_call(), self.links[0]);
        self.beat = Some(Beat {
            call,
            link,
            sent: now,
        });
        self.beat_due = now
            + if self.mode == Mode::Attached {
                HEARTBEAT_EVERY
            } else {
                PROBE_EVERY
            };
        self.silent_since.get_or_insert(now);
        let digest = digest(self.blocks.values().map(|block| (block.id, block.epoch)));
        out.push(Action::SendHeartbeat {
            call,
            link,
            spool_id: self.spool_id,
            digest,
        });
    }

    pub(super) fn heartbeat_answer(
        &mut self,
        now: Boottime,
        call: CallId,
        reply: Option<HeartbeatReply>,
        out: &mut Vec<Action>,
    ) {
        let Some(beat) = self.beat.take_if(|beat| beat.call == call) else {
            return;
        };
        let Some(reply) = reply else {
            self.beat_due = now + RESEND_AFTER;
            self.links.rotate_left(1.min(self.links.len()));
            return;
        };
        self.heard(now);
        self.prefer(beat.link);
        match reply {
            HeartbeatReply::Until(length) => {
                let until = (beat.sent + trust(length)).max(self.until);
                if until != self.until {
                    self.until = until;
                    out.push(Action::Until(until));
                }
            }
            HeartbeatReply::Attach => self.forget(now, out),
            HeartbeatReply::Wait => {
                if self.mode == Mode::Attached {
                    self.detach(now, out);
                }
                self.region_answers = false;
                self.beat_due = now + WAIT_PAUSE;
                self.attach_not_before = now + WAIT_PAUSE;
            }
        }
    }

    // ------------------------------------------------------------ attach

    /// Whether the next thing to do is an attach.
    pub(super) fn may_attach(&self) -> bool {
        let drained = self.spool.is_empty() && self.appending.is_empty() && self.batches.is_empty();
        let drained = drained || !self.guards.stands(Guard::DrainBeforeAttach);
        match self.mode {
            Mode::Attached => false,
            _ if !drained || self.replacing => false,
            Mode::Mute => true,
            Mode::Detached => self.region_answers,
        }
    }

    pub(super) fn send_attach(&mut self, now: Boottime, out: &mut Vec<Action>) {
        if !self.may_attach() {
            return;
        }
        if let Some(attaching) = &mut self.attaching
            && attaching.call.is_some()
            && attaching.sent + attaching.patience() <= now
        {
            attaching.call = None;
            self.links.rotate_left(1);
        }
        let under_way = self
            .attaching
            .as_ref()
            .is_some_and(|attaching| attaching.call.is_some());
        if under_way || now < self.attach_not_before {
            return;
        }
        let (call, link, spool_seq) = (self.next_call(), self.links[0], self.next_seq());
        let attempts = self
            .attaching
            .as_ref()
            .map_or(1, |before| before.attempts + 1);
        self.attaching = Some(Attaching {
            call: Some((call, link)),
            sent: now,
            attempts,
        });
        self.attach_not_before = now + ATTACH_PAUSE;
        out.push(Action::SendAttach {
            call,
            link,
            spool_id: self.spool_id,
            spool_seq,
        });
    }

    pub(super) fn attach_answer(
        &mut self,
        now: Boottime,
        call: CallId,
        reply: Option<AttachReply>,
        out: &mut Vec<Action>,
    ) {
        let newest = self.attaching.as_ref().and_then(|attaching| attaching.call);
        if newest.is_none_or(|(newest, _)| newest != call) {
            return;
        }
        let Some(attaching) = self.attaching.as_mut() else {
            return;
        };
        attaching.call = None;
        let (sent, attempts) = (attaching.sent, attaching.attempts);
        match reply {
            None => {
                self.links.rotate_left(1.min(self.links.len()));
            }
            Some(AttachReply::Attached(attachment)) => self.attached(now, sent, attachment, out),
            Some(AttachReply::Wait) => {
                self.attach_not_before = now + WAIT_PAUSE;
                // Nothing was done by this one; an earlier one may still run.
                if attempts == 1 || self.mode == Mode::Mute {
                    self.attaching = None;
                    self.region_answers = false;
                    self.beat_due = now + WAIT_PAUSE;
                }
            }
            Some(AttachReply::Behind) => {
                out.push(Action::Alarm(Alarm::SpoolBehind));
                self.forget(now, out);
                self.spool_writable = false;
                self.replacing = true;
                self.spool_reset_due = Boottime::MAX;
                out.push(Action::ReplaceSpool);
            }
        }
    }

    fn attached(
        &mut self,
        now: Boottime,
        sent: Boottime,
        attachment: Attachment,
        out: &mut Vec<Action>,
    ) {
        let Attachment {
            until,
            blocks,
            mut rows,
        } = attachment;
        self.counters.attaches += 1;
        if self.mode == Mode::Detached {
            out.push(Action::Detached(false));
        }
        self.mode = Mode::Attached;
        self.attaching = None;
        self.beat = None;
        self.beat_due = now + HEARTBEAT_EVERY;
        self.silent_since = None;
        self.until = sent + trust(until);
        self.blocks = blocks
            .iter()
            .map(|block| (block.id, block.clone()))
            .collect();
        self.addresses.clear();
        for row in &mut rows {
            self.learn_row(now, sent, row);
        }
        out.push(Action::Attached {
            blocks,
            rows,
            sent,
            until: self.until,
        });
    }

    fn learn_row(&mut self, now: Boottime, sent: Boottime, row: &mut Row) {
        if !self
            .blocks
            .get(&row.block)
            .is_some_and(|block| block.contains(row.address))
        {
            return;
        }
        // 99 % of what is left; what has passed has passed.
        if row.remaining_ms > 0 {
            row.remaining_ms -= row.remaining_ms / 100;
        }
        if let Some(client) = &row.client {
            let left = Duration::from_millis(u64::try_from(row.remaining_ms).unwrap_or(0));
            let past = Duration::from_millis(
                u64::try_from(row.remaining_ms.saturating_neg()).unwrap_or(0),
            );
            let end = (sent + left).saturating_sub(past);
            let known = self.known(row.address);
            known.holder = Holder::Bound {
                client: client.clone(),
                end,
            };
            // A mark of an earlier session may be one that its client has refuted since.
            known.released = false;
        }
        if !row.quarantine.is_zero() {
            self.quarantine(now, row.address, row.quarantine);
            row.quarantine += row.quarantine / 50;
        }
    }
}
