//! What shards ask for, and what the spool says about it.

use super::*;
use crate::region::client_of;
use crate::types::{BATCH_ROWS_MAX, WriteKind};

impl Rack {
    pub(super) fn request(
        &mut self,
        now: Boottime,
        ticket: Ticket,
        write: Write,
        out: &mut Vec<Action>,
    ) {
        self.counters.requests += 1;
        match self.mode {
            Mode::Mute => self.refuse_mute(now, ticket, out),
            Mode::Attached => self.request_attached(now, ticket, write, out),
            Mode::Detached => self.request_detached(now, ticket, write, out),
        }
    }

    fn refuse_mute(&mut self, now: Boottime, ticket: Ticket, out: &mut Vec<Action>) {
        self.counters.mute += 1;
        self.reply(ticket, Outcome::Refused(Refusal::Mute), now, out);
    }

    fn refuse_full(&mut self, now: Boottime, ticket: Ticket, out: &mut Vec<Action>) {
        self.counters.full += 1;
        self.reply(ticket, Outcome::Refused(Refusal::Mute), now, out);
    }

    fn request_attached(
        &mut self,
        now: Boottime,
        ticket: Ticket,
        write: Write,
        out: &mut Vec<Action>,
    ) {
        if self.queue.len() >= QUEUE_ROWS_MAX {
            return self.refuse_full(now, ticket, out);
        }
        if let Err(refusal) = self.permit(now, &write) {
            return self.reply(ticket, Outcome::Refused(refusal), now, out);
        }
        match &write.kind {
            WriteKind::Grant { .. } => {
                let known = self.known(write.address);
                (known.locked, known.released) = (true, false);
            }
            WriteKind::Reclaim { silent, .. } => {
                let known = self.known(write.address);
                known.locked = true;
                known.recalled |= *silent;
            }
            WriteKind::Release { client } => {
                if !self.release(write.address, client) {
                    self.counters.releases_dropped += 1;
                    return self.reply(ticket, Outcome::Done, now, out);
                }
            }
            WriteKind::Quarantine { length } => self.quarantine(now, write.address, *length),
            WriteKind::Yield => {
                // Forgotten before the yield is sent: nothing of this block can follow it.
                if let Some(block) = self.blocks.remove(&write.block) {
                    self.addresses
                        .retain(|address, _| !block.contains(*address));
                }
                out.push(Action::ForgetBlock(write.block));
            }
            WriteKind::Extend { .. } => {}
        }
        if !self.guards.stands(Guard::CommitBeforeReply)
            && let WriteKind::Grant { lease, .. } = &write.kind
        {
            self.reply(ticket, Outcome::Durable { remaining: *lease }, now, out);
        }
        self.queue.push_back(Waiting { ticket, write });
    }

    /// Detached: renewals of own bindings and addresses that were free at the region's last word, at most one lease,
    /// never past until. Each is a new fact.
    pub(super) fn request_detached(
        &mut self,
        now: Boottime,
        ticket: Ticket,
        write: Write,
        out: &mut Vec<Action>,
    ) {
        if self.frozen(now) {
            return self.refuse_mute(now, ticket, out);
        }
        match &write.kind {
            WriteKind::Release { .. } => {
                self.counters.releases_dropped += 1;
                self.reply(ticket, Outcome::Done, now, out);
            }
            WriteKind::Reclaim { client, .. }
                if !self.guards.stands(Guard::ReclaimWhileAttached) =>
            {
                let client = client.clone();
                let known = self.known(write.address);
                if matches!(&known.holder, Holder::Bound { client: holder, end } if *holder == client && *end <= now)
                {
                    known.holder = Holder::Nobody;
                }
                self.reply(ticket, Outcome::Done, now, out);
            }
            WriteKind::Extend { .. } | WriteKind::Reclaim { .. } | WriteKind::Yield => {
                self.refuse_mute(now, ticket, out);
            }
            WriteKind::Grant { .. } | WriteKind::Quarantine { .. } => {
                match self.permit(now, &write) {
                    Err(refusal) => self.reply(ticket, Outcome::Refused(refusal), now, out),
                    Ok(()) if !self.spool_has_room() => self.refuse_full(now, ticket, out),
                    Ok(()) => {
                        let seq = self.next_seq();
                        self.append(now, ticket, Entry { seq, write }, out);
                    }
                }
            }
        }
    }

    /// A write that was under way when the rack was detached. Its key may still run: what is promised now
    /// is a new fact, with a new key and an end counted from now.
    pub(super) fn fact_or_unknown(
        &mut self,
        now: Boottime,
        ticket: Ticket,
        write: Write,
        old_seq: u64,
        out: &mut Vec<Action>,
    ) {
        let becomes_fact = matches!(
            write.kind,
            WriteKind::Grant { .. } | WriteKind::Quarantine { .. }
        );
        if becomes_fact && self.spool_has_room() && self.permit(now, &write).is_ok() {
            let seq = if self.guards.stands(Guard::FreshKey) {
                self.next_seq()
            } else {
                old_seq
            };
            self.append(now, ticket, Entry { seq, write }, out);
        } else {
            self.reply(ticket, Outcome::Unknown, now, out);
        }
    }

    /// No new facts: an attach may be running, and a fact of the old epochs would come too late; or one is about to
    /// be sent, as soon as the last facts are drained (else, under load, the spool would never be empty).
    fn frozen(&self, now: Boottime) -> bool {
        let attaching = self.attaching.is_some() && self.guards.stands(Guard::FrozenWhileAttaching);
        let closing = self.region_answers
            && self.spool.len() <= BATCH_ROWS_MAX
            && self.attach_not_before <= now;
        attaching || closing
    }

    fn spool_has_room(&self) -> bool {
        self.spool_writable && self.spool.len() + self.appending.len() < SPOOL_ENTRIES_MAX
    }

    fn append(&mut self, now: Boottime, ticket: Ticket, entry: Entry, out: &mut Vec<Action>) {
        let mut end = now;
        match &entry.write.kind {
            WriteKind::Grant { client, lease, .. } => {
                end = now + (*lease).min(self.until.saturating_sub(now));
                let client = client.clone();
                let known = self.known(entry.write.address);
                (known.locked, known.released) = (true, false);
                if !matches!(&known.holder, Holder::Bound { client: holder, .. } if *holder == client)
                {
                    known.holder = Holder::Asked { client };
                }
            }
            WriteKind::Quarantine { length } => self.quarantine(now, entry.write.address, *length),
            _ => {}
        }
        self.counters.spooled += 1;
        out.push(Action::AppendSpool(entry.clone()));
        let seq = entry.seq;
        let appending = Appending {
            entry,
            ticket: Some(ticket),
            end,
            sent: now,
        };
        if self.guards.stands(Guard::FsyncBeforeReply) {
            self.appending.insert(seq, appending);
        } else {
            let early = Appending {
                ticket: None,
                ..appending.clone()
            };
            self.fact_is_durable(now, appending, out);
            self.appending.insert(seq, early);
        }
    }

    pub(super) fn spool_durable(&mut self, now: Boottime, seq: u64, out: &mut Vec<Action>) {
        let Some(appending) = self.appending.remove(&seq) else {
            return;
        };
        let entry = appending.entry.clone();
        let address = entry.write.address;
        if let WriteKind::Grant { .. } = entry.write.kind {
            // The fact before it says the same of the same client and less of time: the newest is enough.
            let before = self.newest.insert(address, seq);
            let draining = |seq| {
                let mut rows = self.batches.iter().flat_map(|batch| &batch.rows);
                rows.any(|(origin, _)| *origin == Origin::Spool(seq))
            };
            if let Some(before) = before
                && !draining(before)
                && let Some(older) = self.spool.get(&before)
                && older.write.epoch == entry.write.epoch
                && client_of(&older.write.kind) == client_of(&entry.write.kind)
            {
                self.spool.remove(&before);
                out.push(Action::RemoveSpool { seqs: vec![before] });
            }
        }
        self.spool.insert(seq, entry);
        self.fact_is_durable(now, appending, out);
    }

    fn fact_is_durable(&mut self, now: Boottime, fact: Appending, out: &mut Vec<Action>) {
        let write = &fact.entry.write;
        // Forgotten meanwhile: the fact stays in the spool, but nobody may build on it.
        let ours = self
            .blocks
            .get(&write.block)
            .is_some_and(|block| block.epoch == write.epoch);
        let Some(ticket) = fact.ticket else { return };
        if !ours {
            return self.reply(ticket, Outcome::Unknown, now, out);
        }
        let WriteKind::Grant { client, .. } = &write.kind else {
            return self.reply(ticket, Outcome::Done, now, out);
        };
        let client = client.clone();
        let known = self.known(write.address);
        known.locked = false;
        let end = match &known.holder {
            Holder::Bound {
                client: holder,
                end,
            } if *holder == client => fact.end.max(*end),
            _ => fact.end,
        };
        known.holder = Holder::Bound { client, end };
        let remaining = end.saturating_sub(fact.sent);
        self.reply(ticket, Outcome::Durable { remaining }, fact.sent, out);
    }

    pub(super) fn spool_failed(&mut self, now: Boottime, out: &mut Vec<Action>) {
        if self.replacing {
            self.spool_reset_due = now + SPOOL_RESET_EVERY;
        }
        if !self.spool_writable {
            return;
        }
        self.spool_writable = false;
        self.spool_reset_due = now;
        self.spool_reset_pause = SPOOL_RESET_FIRST;
        out.push(Action::Alarm(Alarm::SpoolFailed));
        // On disk or not: nobody was told, so the address stays asked for, and the fact is not sent.
        for (_, appending) in std::mem::take(&mut self.appending) {
            self.unlock(appending.entry.write.address);
            if let Some(ticket) = appending.ticket {
                self.reply(ticket, Outcome::Unknown, now, out);
            }
        }
    }

    pub(super) fn spool_replaced(
        &mut self,
        now: Boottime,
        spool_id: SpoolId,
        seq: u64,
        out: &mut Vec<Action>,
    ) {
        if spool_id == self.spool_id {
            // Written anew before the word that it is set back: it waits for its replacement.
            self.spool_writable = !self.replacing;
            return;
        }
        self.spool_writable = true;
        self.replacing = false;
        self.attach_not_before = now;
        self.spool_id = spool_id;
        self.seq = seq;
        self.spool.clear();
        self.appending.clear();
        self.newest.clear();
        self.batches.retain(|batch| !batch.drained);
        self.attaching = None;
        self.forget(now, out);
    }

    // ------------------------------------------------------------ what is known of an address

    /// Whether the write may be asked for at all. `Err` is the rack's own refusal: nothing was sent.
    fn permit(&self, now: Boottime, write: &Write) -> Result<(), Refusal> {
        let block = match (self.blocks.get(&write.block), &write.kind) {
            (None, WriteKind::Extend { .. }) => return Ok(()),
            (Some(_), WriteKind::Extend { .. }) => return Err(Refusal::NotOwner),
            (None, _) => return Err(Refusal::StaleEpoch),
            (Some(block), _) => block,
        };
        if block.epoch != write.epoch {
            return Err(Refusal::StaleEpoch);
        }
        let outside = !matches!(write.kind, WriteKind::Yield) && !block.contains(write.address);
        let elsewhere =
            matches!(&write.kind, WriteKind::Grant { client, .. } if client.vlan != block.vlan);
        if outside || elsewhere {
            return Err(Refusal::OutsideBlock);
        }
        let known = self.addresses.get(&write.address);
        let locked = known.is_some_and(|known| known.locked);
        match &write.kind {
            WriteKind::Grant { .. } | WriteKind::Reclaim { .. } if locked => Err(Refusal::Mute),
            WriteKind::Grant { client, .. } => self.permit_grant(now, known, client),
            WriteKind::Reclaim { client, silent } => match known.map(|known| &known.holder) {
                Some(Holder::Bound {
                    client: holder,
                    end,
                }) if holder == client => {
                    // A RELEASE under way may yet run late: after a grant, and before this.
                    let alone = known.is_some_and(|known| known.releasing == 0)
                        || !self.guards.stands(Guard::ReleaseAlone);
                    let over = match silent {
                        true => alone && known.is_some_and(|known| known.released),
                        false => *end <= now,
                    };
                    if over { Ok(()) } else { Err(Refusal::NotEnded) }
                }
                Some(Holder::Bound { .. }) => Err(Refusal::OtherClient),
                Some(Holder::Asked { .. } | Holder::Closed) => Err(Refusal::NotEnded),
                Some(Holder::Nobody) | None => Err(Refusal::NotFound),
            },
            WriteKind::Yield if self.busy(block) => Err(Refusal::NotEnded),
            _ => Ok(()),
        }
    }

    fn permit_grant(
        &self,
        now: Boottime,
        known: Option<&Known>,
        client: &Client,
    ) -> Result<(), Refusal> {
        let Some(known) = known else { return Ok(()) };
        let detached = self.mode == Mode::Detached;
        match &known.holder {
            Holder::Bound { client: holder, .. } if holder == client => Ok(()),
            Holder::Bound { end, .. } => {
                let reuse = detached && *end <= now && !self.guards.stands(Guard::NoReuseDetached);
                if reuse {
                    Ok(())
                } else {
                    Err(Refusal::OtherClient)
                }
            }
            Holder::Asked { client: asked } if asked == client => Ok(()),
            Holder::Asked { .. } | Holder::Closed => Err(Refusal::OtherClient),
            // Detached, it was not free at the region's last word.
            Holder::Nobody => match known.quarantined {
                Some(end) if detached || end > now => Err(Refusal::NotEnded),
                _ => Ok(()),
            },
        }
    }

    /// Something of the block is queued, under way or in the spool.
    fn busy(&self, block: &Block) -> bool {
        let queued = self.queue.iter().map(|waiting| &waiting.write);
        let under_way = self
            .batches
            .iter()
            .flat_map(|batch| batch.rows.iter().map(|(_, write)| write));
        let appending = self
            .appending
            .values()
            .map(|appending| &appending.entry.write);
        let spooled = self.spool.values().map(|entry| &entry.write);
        let mut writes = queued.chain(under_way).chain(appending).chain(spooled);
        writes.any(|write| write.block == block.id)
    }

    pub(super) fn known(&mut self, address: IpAddr) -> &mut Known {
        let nobody = Known {
            holder: Holder::Nobody,
            quarantined: None,
            released: false,
            releasing: 0,
            recalled: false,
            locked: false,
        };
        self.addresses.entry(address).or_insert(nobody)
    }

    /// False: the RELEASE must not be sent, since a reclaim may still run that would make more of it.
    fn release(&mut self, address: IpAddr, client: &Client) -> bool {
        let alone = self.guards.stands(Guard::ReleaseAlone);
        let Some(known) = self.addresses.get_mut(&address) else {
            return true;
        };
        if known.recalled && alone {
            return false;
        }
        if matches!(&known.holder, Holder::Bound { client: holder, .. } if holder == client) {
            known.released = true;
            known.releasing += 1;
        }
        true
    }

    pub(super) fn unlock(&mut self, address: IpAddr) {
        let Some(known) = self.addresses.get_mut(&address) else {
            return;
        };
        known.locked = false;
        if known.holder == Holder::Nobody && known.quarantined.is_none() {
            self.addresses.remove(&address);
        }
    }

    /// The outcome of a write that was sent is not known: the address serves only its client until the next attach.
    pub(super) fn outcome_unknown(&mut self, write: &Write) {
        let stays = self.guards.stands(Guard::UnknownStaysUnknown);
        match &write.kind {
            WriteKind::Grant { client, .. } => {
                let known = self.known(write.address);
                if known.holder == Holder::Nobody && stays {
                    known.holder = Holder::Asked {
                        client: client.clone(),
                    };
                } else if !stays && matches!(known.holder, Holder::Asked { .. }) {
                    known.holder = Holder::Nobody;
                }
            }
            // The row may be gone, so its end says nothing any more.
            WriteKind::Reclaim { client, .. } => {
                let holder = if stays {
                    Holder::Asked {
                        client: client.clone(),
                    }
                } else {
                    Holder::Nobody
                };
                self.known(write.address).holder = holder;
            }
            _ => return,
        }
        self.unlock(write.address);
    }

    pub(super) fn quarantine(&mut self, now: Boottime, address: IpAddr, length: Duration) {
        // Counted from now and lengthened: this clock may be 1 % fast.
        let end = now + length + length / 50;
        let known = self.known(address);
        known.quarantined = Some(known.quarantined.map_or(end, |before| before.max(end)));
    }
}
