//! The region's end, as `store::lease` does it over PostgreSQL.

use super::*;

impl World {
    pub(super) fn run(&mut self, index: usize, again: bool) {
        let Request {
            rack,
            life,
            id,
            call,
        } = if again {
            self.requests[index].clone()
        } else {
            self.requests.remove(index)
        };
        let input = match call {
            Call::Batch(batch) => AnswerInput::Batch(id, self.commit(rack, &batch)),
            Call::Attach(spool_id, seq) => {
                AnswerInput::Attach(id, self.attach(rack, spool_id, seq))
            }
        };
        if life == self.sites[rack].life && self.answers.len() < NET_MAX {
            self.answers.push(Answer { rack, life, input });
        }
    }

    pub(super) fn commit(&mut self, rack: usize, batch: &Batch) -> Vec<Outcome> {
        let now = self.time();
        let key = (rack, batch.key.spool_id, batch.key.seq);
        let dedupe = self.guards.stands(Guard::DedupeKey);
        if dedupe && let Some(verdicts) = self.db.answers.get(&key) {
            return verdicts
                .iter()
                .map(|verdict| verdict.outcome(now))
                .collect();
        }
        let floor = self.db.floors.get(&(rack, batch.key.spool_id));
        if self.guards.stands(Guard::EpochCompared)
            && self.guards.stands(Guard::EpochAtAttach)
            && floor.is_none_or(|floor| batch.key.seq <= *floor)
        {
            return vec![Outcome::Refused(Refusal::StaleEpoch); batch.writes.len()];
        }
        let mut verdicts = vec![];
        for write in &batch.writes {
            let block = self.block(rack);
            let (verdict, effect) = decide_with(
                self.guards,
                write,
                batch.drained,
                Some(&block),
                self.db.row.as_ref(),
                now,
            );
            match effect {
                Effect::Keep | Effect::GiveUp => {}
                Effect::Put(row) => self.db.row = Some(row),
                Effect::Delete => self.db.row = None,
            }
            verdicts.push(verdict);
        }
        let outcomes = verdicts
            .iter()
            .map(|verdict| verdict.outcome(now))
            .collect();
        self.db.answers.insert(key, verdicts);
        outcomes
    }

    pub(super) fn attach(&mut self, rack: usize, spool_id: SpoolId, seq: u64) -> AttachReply {
        let now = self.time();
        let session = self.db.sessions[rack].clone();
        let of_spool =
            |(key, _): &(&(usize, SpoolId, u64), &Vec<Verdict>)| key.0 == rack && key.1 == spool_id;
        let newest = self
            .db
            .answers
            .iter()
            .filter(of_spool)
            .map(|(key, _)| key.2)
            .max()
            .unwrap_or(0);
        let known = self
            .db
            .floors
            .get(&(rack, spool_id))
            .map(|floor| SpoolSeen {
                current: session
                    .as_ref()
                    .is_some_and(|session| session.spool_id == spool_id),
                seq: newest.max(*floor),
            });
        let quarantine =
            match decide_attach_with(self.guards, None, known, session.is_some(), seq, now) {
                AttachDecision::Wait => return AttachReply::Wait,
                AttachDecision::Behind => return AttachReply::Behind,
                AttachDecision::Attach { quarantine } => quarantine,
            };
        let db = &mut self.db;
        let owned = db.owner == Some(rack);
        if owned && quarantine {
            db.quarantined = db.quarantined.max(now.plus(2 * LEASE));
        }
        if owned || (db.owner.is_none() && db.intended == rack) {
            db.owner = (db.intended == rack).then_some(rack);
            db.epoch += u64::from(self.guards.stands(Guard::EpochAtAttach));
        }
        let until = session
            .map_or(Time::NEVER, |session| session.until)
            .max(now.plus(self.bounds.until));
        db.sessions[rack] = Some(Session { spool_id, until });
        db.floors.insert((rack, spool_id), seq);
        db.answers.retain(|key, _| key.0 != rack);
        let mut attachment = Attachment {
            until: length(until, now),
            blocks: vec![],
            rows: vec![],
        };
        if db.owner == Some(rack) {
            let epoch = Epoch(db.epoch);
            attachment.blocks.push(Block {
                id: BLOCK,
                epoch,
                vlan: 1,
                subnet: 1,
                first: ADDRESS,
                count: 1,
            });
            let quarantined = db
                .row
                .as_ref()
                .map_or(Time::NEVER, |row| row.quarantined_until)
                .max(db.quarantined);
            if db.row.is_some() || quarantined > now {
                attachment.rows.push(Row {
                    block: BLOCK,
                    address: ADDRESS,
                    client: db.row.as_ref().and_then(|row| row.client.clone()),
                    remaining_ms: db
                        .row
                        .as_ref()
                        .map_or(0, |row| row.end.micros_since(now).div_euclid(1_000)),
                    quarantine: length(quarantined, now),
                    released: db.row.as_ref().is_some_and(|row| row.released),
                });
            }
        }
        AttachReply::Attached(attachment)
    }

    pub(super) fn heartbeat(
        &mut self,
        rack: usize,
        spool_id: SpoolId,
        theirs: &[u8; 32],
    ) -> HeartbeatReply {
        let (now, db) = (self.time(), &self.db);
        let owned = db.owner == Some(rack);
        let ours = digest(owned.then_some((BLOCK, Epoch(db.epoch))));
        let facts = HeartbeatFacts {
            hold: None,
            session: db.sessions[rack]
                .as_ref()
                .map(|session| (session.spool_id, session.until)),
            digest: &ours,
            pending: (owned && db.intended != rack) || (db.owner.is_none() && db.intended == rack),
        };
        match decide_heartbeat_with(self.guards, facts, spool_id, theirs, now, self.bounds.until) {
            HeartbeatDecision::Wait => HeartbeatReply::Wait,
            HeartbeatDecision::Attach => HeartbeatReply::Attach,
            HeartbeatDecision::Until(until) => {
                if let Some(session) = &mut self.db.sessions[rack] {
                    session.until = until;
                }
                HeartbeatReply::Until(length(until, now))
            }
        }
    }
}

fn length(end: Time, now: Time) -> Duration {
    Duration::from_micros(u64::try_from(end.micros_since(now)).unwrap_or(0))
}
