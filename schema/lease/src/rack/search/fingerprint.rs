//! When two worlds are the same one, as far as what comes can tell.

use super::*;

impl World {
    /// Up to what makes no difference: time is relative to now and ended is ended; calls, tickets, seqs
    /// and epochs count by their order. So the horizon is open.
    pub(super) fn fingerprint(&self) -> u64 {
        let mut world = self.clone();
        world.forget_dead_messages();
        world.forget_answers();
        let mut names = [Names::default(), Names::default(), Names::default()];
        world.names(&mut |kind, name| names[kind].meet(*name));
        world.names(&mut |kind, name| *name = names[kind].of(*name));
        world.make_relative();
        let mut hash = DefaultHasher::new();
        for site in &mut world.sites {
            let machine = &mut site.machine;
            machine.counters = Counters::default();
            machine.next_call = 0;
            let asked: Vec<usize> = site.asked.values().copied().collect();
            asked.hash(&mut hash);
            site.asked.clear();
            (site.next_ticket, site.life) = (0, 0);
            machine
                .queue
                .iter_mut()
                .for_each(|waiting| waiting.ticket = 0);
            machine
                .appending
                .values_mut()
                .for_each(|fact| fact.ticket = fact.ticket.map(|_| 0));
            for (origin, _) in machine.batches.iter_mut().flat_map(|batch| &mut batch.rows) {
                if let Origin::Shard(ticket) = origin {
                    *ticket = 0;
                }
            }
        }
        for request in &mut world.requests {
            request.life = u32::from(request.life != self.sites[request.rack].life);
        }
        world.answers.iter_mut().for_each(|answer| answer.life = 0);
        // Their order makes no difference.
        let mut bags = [unordered(&world.requests), unordered(&world.answers)];
        bags.iter_mut().for_each(|bag| bag.sort_unstable());
        (
            bags,
            &world.sites,
            &world.holds,
            &world.peer,
            &world.used,
            self.met,
            &world.db,
        )
            .hash(&mut hash);
        hash.finish()
    }

    pub(super) fn make_relative(&mut self) {
        let (now, time) = (self.now, self.time());
        // Without moves `until` protects nothing.
        let moves = self.bounds.moves > 0;
        let until = |until: &mut Boottime| {
            *until = if moves {
                ahead(*until, now)
            } else {
                (*until).min(SECOND)
            };
        };
        for site in &mut self.sites {
            let machine = &mut site.machine;
            until(&mut machine.until);
            until(&mut site.until);
            if let Some((_, end)) = &mut site.bound {
                *end = ahead(*end, now);
            }
            for known in machine.addresses.values_mut() {
                if let Holder::Bound { end, .. } = &mut known.holder {
                    *end = ahead(*end, now);
                }
                known.quarantined = known.quarantined.map(|end| ahead(end, now));
            }
            for batch in &mut machine.batches {
                batch.first_sent = behind(batch.first_sent, now, 2 * LEASE);
                batch.resend_at = ahead(batch.resend_at, now);
            }
            for fact in machine.appending.values_mut() {
                fact.end = ahead(fact.end, now);
                fact.sent = behind(fact.sent, now, 2 * LEASE);
            }
            machine.batch_due = ahead(machine.batch_due, now);
            if let Some(attaching) = &mut machine.attaching {
                attaching.sent = behind(attaching.sent, now, 2 * LEASE);
                attaching.attempts = attaching.attempts.min(2);
            }
            if let Some(beat) = &mut machine.beat {
                (beat.sent, beat.call) = (behind(beat.sent, now, SECOND), 0);
            }
            machine.silent_since = machine.silent_since.map(|since| behind(since, now, SECOND));
            machine.beat_due = ahead(machine.beat_due, now);
            machine.attach_not_before = ahead(machine.attach_not_before, now);
            machine.spool_reset_due = Duration::ZERO;
        }
        let db = &mut self.db;
        // 61 s behind, every comparison has its last answer.
        let relative = |at: &mut Time| *at = Time(at.micros_since(time).max(-61_000_000));
        relative(&mut db.quarantined);
        if let Some(row) = &mut db.row {
            relative(&mut row.end);
            relative(&mut row.quarantined_until);
        }
        for session in db.sessions.iter_mut().flatten() {
            relative(&mut session.until);
            if !moves {
                session.until = Time(0);
            }
        }
        self.peer.iter_mut().for_each(|end| *end = ahead(*end, now));
        self.holds
            .iter_mut()
            .for_each(|end| *end = ahead(*end, now));
    }

    /// Answers that nobody waits for; and, while the guards against them stand, requests that can only be refused.
    pub(super) fn forget_dead_messages(&mut self) {
        let sites = &self.sites;
        self.answers.retain(|answer| {
            let machine = &sites[answer.rack].machine;
            match &answer.input {
                AnswerInput::Batch(id, _) => machine
                    .batches
                    .iter()
                    .any(|batch| batch.calls.iter().any(|(call, _)| call == id)),
                AnswerInput::Attach(id, _) => {
                    let newest = machine
                        .attaching
                        .as_ref()
                        .and_then(|attaching| attaching.call);
                    newest.is_some_and(|(call, _)| call == *id)
                }
            }
        });
        let fences = [
            Guard::EpochCompared,
            Guard::EpochAtAttach,
            Guard::AttachInOrder,
            Guard::DedupeKey,
        ];
        if !fences.iter().all(|guard| self.guards.stands(*guard)) {
            return;
        }
        let db = &self.db;
        self.requests.retain(|request| match &request.call {
            Call::Batch(batch) => {
                let floor = db.floors.get(&(request.rack, batch.key.spool_id));
                floor.is_some_and(|floor| *floor < batch.key.seq)
                    && batch.writes.iter().any(|write| write.epoch.0 == db.epoch)
            }
            Call::Attach(spool_id, seq) => {
                let current = db.sessions[request.rack]
                    .as_ref()
                    .map(|session| session.spool_id);
                let floor = db.floors.get(&(request.rack, *spool_id));
                floor.is_none_or(|floor| floor < seq)
                    && (floor.is_none() || current == Some(*spool_id))
            }
        });
    }

    /// Keys that no message and no rack can use again.
    pub(super) fn forget_answers(&mut self) {
        let mut used = BTreeSet::new();
        for request in &self.requests {
            if let Call::Batch(batch) = &request.call {
                used.insert((request.rack, batch.key.spool_id, batch.key.seq));
            }
        }
        for (rack, site) in self.sites.iter().enumerate() {
            let spooled = site
                .disk
                .keys()
                .chain(site.machine.appending.keys())
                .copied();
            for seq in site
                .machine
                .batches
                .iter()
                .map(|batch| batch.seq)
                .chain(spooled)
            {
                used.insert((rack, site.spool_id, seq));
            }
        }
        // The newest counts for the attach.
        let newest: Vec<_> = self.db.answers.keys().copied().collect();
        for (index, key) in newest.iter().enumerate() {
            let last = newest
                .get(index + 1)
                .is_none_or(|next| (next.0, next.1) != (key.0, key.1));
            if !last && !used.contains(key) {
                self.db.answers.remove(key);
            }
        }
    }

    /// Visits every call id (0), seq (1) and epoch (2) there is.
    pub(super) fn names(&mut self, name: &mut impl FnMut(usize, &mut u64)) {
        let (call, seq, epoch) = (0, 1, 2);
        for site in &mut self.sites {
            let machine = &mut site.machine;
            name(seq, &mut machine.seq);
            machine
                .blocks
                .values_mut()
                .for_each(|block| name(epoch, &mut block.epoch.0));
            for batch in &mut machine.batches {
                name(seq, &mut batch.seq);
                batch.calls.iter_mut().for_each(|(id, _)| name(call, id));
                for (origin, write) in &mut batch.rows {
                    name(epoch, &mut write.epoch.0);
                    if let Origin::Spool(spooled) = origin {
                        name(seq, spooled);
                    }
                }
            }
            machine
                .queue
                .iter_mut()
                .for_each(|waiting| name(epoch, &mut waiting.write.epoch.0));
            if let Some((id, _)) = machine
                .attaching
                .as_mut()
                .and_then(|attaching| attaching.call.as_mut())
            {
                name(call, id);
            }
            machine
                .newest
                .values_mut()
                .for_each(|newest| name(seq, newest));
            rename_entries(&mut machine.spool, name);
            rename_entries(&mut site.disk, name);
            for entry in &mut site.fsyncs {
                name(seq, &mut entry.seq);
                name(epoch, &mut entry.write.epoch.0);
            }
            machine.appending = std::mem::take(&mut machine.appending)
                .into_values()
                .map(|mut fact| {
                    name(seq, &mut fact.entry.seq);
                    name(epoch, &mut fact.entry.write.epoch.0);
                    (fact.entry.seq, fact)
                })
                .collect();
        }
        for request in &mut self.requests {
            name(call, &mut request.id);
            match &mut request.call {
                Call::Batch(batch) => {
                    name(seq, &mut batch.key.seq);
                    batch
                        .writes
                        .iter_mut()
                        .for_each(|write| name(epoch, &mut write.epoch.0));
                }
                Call::Attach(_, attach) => name(seq, attach),
            }
        }
        for answer in &mut self.answers {
            match &mut answer.input {
                AnswerInput::Batch(id, _) => name(call, id),
                AnswerInput::Attach(id, reply) => {
                    name(call, id);
                    if let AttachReply::Attached(attachment) = reply {
                        attachment
                            .blocks
                            .iter_mut()
                            .for_each(|block| name(epoch, &mut block.epoch.0));
                    }
                }
            }
        }
        name(epoch, &mut self.db.epoch);
        self.db
            .floors
            .values_mut()
            .for_each(|floor| name(seq, floor));
        self.db.answers = std::mem::take(&mut self.db.answers)
            .into_iter()
            .map(|((rack, spool_id, mut of), mut verdicts)| {
                name(seq, &mut of);
                // Only the rows themselves say when they end.
                for verdict in &mut verdicts {
                    if let Verdict::Durable { end } = verdict {
                        *end = Time(end.micros_since(Time(0).plus(self.now)).max(0));
                    }
                }
                ((rack, spool_id, of), verdicts)
            })
            .collect();
    }
}

fn rename_entries(entries: &mut BTreeMap<u64, Entry>, name: &mut impl FnMut(usize, &mut u64)) {
    *entries = std::mem::take(entries)
        .into_values()
        .map(|mut entry| {
            name(1, &mut entry.seq);
            name(2, &mut entry.write.epoch.0);
            (entry.seq, entry)
        })
        .collect();
}

/// What is left of it; nothing, if it has passed.
fn ahead(at: Boottime, now: Boottime) -> Boottime {
    at.saturating_sub(now)
}

/// How long ago, if that is less than `most`.
fn behind(at: Boottime, now: Boottime, most: Duration) -> Boottime {
    now.saturating_sub(at).min(most)
}

fn unordered<T: Hash>(items: &[T]) -> Vec<u64> {
    let hash = |item: &T| {
        let mut hash = DefaultHasher::new();
        item.hash(&mut hash);
        hash.finish()
    };
    items.iter().map(hash).collect()
}

/// Values by their rank.
#[derive(Default)]
struct Names {
    met: BTreeSet<u64>,
}

impl Names {
    fn meet(&mut self, value: u64) {
        self.met.insert(value);
    }

    fn of(&self, value: u64) -> u64 {
        self.met.range(..value).count() as u64
    }
}
