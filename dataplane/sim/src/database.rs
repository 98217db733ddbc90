//! A model of the database with the region's transactions on it, as `store::lease` writes them in SQL: rows, blocks, sessions,
//! keys and floors, each call one atomic transaction. What a write does is `lease::region`'s to decide, here as there.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lease::guards::{Guard, Guards, unguarded};
use lease::region::{
    Asker, AttachDecision, BlockState, Effect, HeartbeatDecision, HeartbeatFacts, RowState,
    SpoolSeen, Time, Verdict,
};
use lease::{
    AttachReply, Attachment, BATCH_ROWS_MAX, Batch, Block, BlockId, Epoch, HeartbeatReply, Outcome,
    Refusal, Row, SpoolId, WriteKind, digest,
};

use crate::plan::{Place, Plan, vlan_id};

/// The database's clock at the simulation's start.
const START: Time = Time(1_700_000_000_000_000);
/// Keys are remembered this long; then the floor rises over them.
const KEYS_KEPT: Duration = Duration::from_secs(3_600);
/// Epochs jump by this after a hold.
const EPOCH_JUMP: u64 = 1_000;

#[derive(Clone, Debug)]
pub(crate) struct BlockRow {
    pub place: Place,
    pub owner: Option<usize>,
    pub intended: usize,
    pub epoch: u64,
    quarantined_until: Time,
}

#[derive(Clone, Debug)]
struct Session {
    spool_id: SpoolId,
    until: Time,
}

/// (rack, spool, seq).
type Key = (usize, SpoolId, u64);

/// What a promotion may set back.
#[derive(Clone, Debug, Default)]
struct Tables {
    rows: BTreeMap<Ipv4Addr, RowState>,
    blocks: Vec<BlockRow>,
    sessions: Vec<Option<Session>>,
    floors: BTreeMap<(usize, SpoolId), u64>,
    answers: BTreeMap<Key, (Vec<Verdict>, Time)>,
    hold: Option<Time>,
}

#[derive(Clone, Debug)]
pub(crate) struct Database {
    guards: Guards,
    until: Duration,
    lease: Duration,
    /// How far its clock is ahead of true time.
    ahead: Duration,
    tables: Tables,
    standby: Tables,
}

impl Database {
    pub fn new(plan: &Plan) -> Self {
        let blocks = plan.geometry().map(|place| BlockRow {
            place,
            owner: None,
            intended: place.rack,
            epoch: 1,
            quarantined_until: Time::NEVER,
        });
        let tables = Tables {
            blocks: blocks.collect(),
            sessions: vec![None; plan.racks as usize],
            ..Tables::default()
        };
        Self {
            guards: plan.guards,
            until: plan.until(),
            lease: plan.lease(),
            ahead: Duration::ZERO,
            standby: tables.clone(),
            tables,
        }
    }

    /// `now()` at this true time.
    pub fn time(&self, now: Duration) -> Time {
        START.plus(now + self.ahead)
    }

    /// Sets the clock: so much ahead of true time.
    pub fn set_clock(&mut self, ahead: Duration) {
        self.ahead = ahead;
    }

    pub fn row(&self, address: Ipv4Addr) -> Option<&RowState> {
        self.tables.rows.get(&address)
    }

    pub fn blocks(&self) -> &[BlockRow] {
        &self.tables.blocks
    }

    /// From a promotion on until the epochs have jumped, which is a little after its time: a session that began between
    /// would have its facts refused.
    fn hold(&self) -> Option<Time> {
        self.tables.hold.map(|_| Time(i64::MAX))
    }

    /// The operator or an automatic split says whose the block is to be.
    pub fn intend(&mut self, block: usize, rack: usize) {
        self.tables.blocks[block].intended = rack;
    }

    // ---------------------------------------------------------------- commitLeases

    pub fn commit(&mut self, rack: usize, batch: &Batch, now: Time) -> Vec<Outcome> {
        let key = (rack, batch.key.spool_id, batch.key.seq);
        if let Some((verdicts, _)) = self.tables.answers.get(&key)
            && self.guards.stands(Guard::DedupeKey)
        {
            return outcomes(verdicts, now);
        }
        let floor = self.tables.floors.get(&(rack, batch.key.spool_id));
        // The floor and the epochs fence the same requests: without the epochs it would hide that they are missing.
        let fenced =
            self.guards.stands(Guard::EpochCompared) && self.guards.stands(Guard::EpochAtAttach);
        let forgotten = fenced && floor.is_none_or(|floor| batch.key.seq <= *floor);
        let held = self.hold().is_some() && !batch.drained;
        if forgotten || held || batch.writes.len() > BATCH_ROWS_MAX {
            return vec![Outcome::Refused(Refusal::StaleEpoch); batch.writes.len()];
        }
        let verdicts: Vec<Verdict> = batch
            .writes
            .iter()
            .map(|write| self.write(rack, write, batch.drained, now))
            .collect();
        let outcomes = outcomes(&verdicts, now);
        self.tables.answers.insert(key, (verdicts, now));
        outcomes
    }

    fn write(&mut self, rack: usize, write: &lease::Write, drained: bool, now: Time) -> Verdict {
        let IpAddr::V4(address) = write.address else {
            return Verdict::Refused(Refusal::OutsideBlock);
        };
        // A survivor does not know the blocks of its peers: they are found by the address.
        let by_address = matches!(write.kind, WriteKind::Extend { .. });
        let index = self.tables.blocks.iter().position(|block| {
            if by_address {
                lease::region::within(block.place.first.into(), block.place.count, write.address)
            } else {
                block.place.id == write.block
            }
        });
        let block = index.map(|index| self.block_state(rack, &self.tables.blocks[index]));
        let row = self.tables.rows.get(&address);
        let (verdict, effect) =
            unguarded::decide(self.guards, write, drained, block.as_ref(), row, now);
        match effect {
            Effect::Keep => {}
            Effect::Put(row) => drop(self.tables.rows.insert(address, row)),
            Effect::Delete => drop(self.tables.rows.remove(&address)),
            Effect::GiveUp => {
                if let Some(index) = index {
                    let block = &mut self.tables.blocks[index];
                    block.owner = None;
                    block.epoch += 1;
                }
            }
        }
        verdict
    }

    fn block_state(&self, rack: usize, block: &BlockRow) -> BlockState {
        let asker = if block.owner == Some(rack) {
            Asker::Owner
        } else {
            Asker::Peer
        };
        BlockState {
            epoch: Epoch(block.epoch),
            asker,
            vlan: vlan_id(block.place.vlan),
            first: block.place.first.into(),
            count: block.place.count,
            quarantined_until: block.quarantined_until,
        }
    }

    // ---------------------------------------------------------------- attach, heartbeat

    pub fn attach(&mut self, rack: usize, spool_id: SpoolId, seq: u64, now: Time) -> AttachReply {
        let session = self.tables.sessions[rack].clone();
        let of_spool = (rack, spool_id, 0)..=(rack, spool_id, u64::MAX);
        let newest = self.tables.answers.range(of_spool).next_back();
        let newest = newest.map_or(0, |((_, _, seq), _)| *seq);
        let known = self
            .tables
            .floors
            .get(&(rack, spool_id))
            .map(|floor| SpoolSeen {
                current: session
                    .as_ref()
                    .is_some_and(|session| session.spool_id == spool_id),
                seq: newest.max(*floor),
            });
        let decision =
            unguarded::decide_attach(self.guards, self.hold(), known, session.is_some(), seq, now);
        let quarantine = match decision {
            AttachDecision::Wait => return AttachReply::Wait,
            AttachDecision::Behind => return AttachReply::Behind,
            AttachDecision::Attach { quarantine } => quarantine,
        };
        for block in &mut self.tables.blocks {
            let owned = block.owner == Some(rack);
            if owned && quarantine {
                let rests = now.plus(2 * self.lease);
                block.quarantined_until = block.quarantined_until.max(rests);
            }
            if owned || (block.owner.is_none() && block.intended == rack) {
                block.owner = (block.intended == rack).then_some(rack);
                block.epoch += u64::from(self.guards.stands(Guard::EpochAtAttach));
            }
        }
        let until = session
            .map_or(now, |session| session.until)
            .max(now.plus(self.until));
        self.tables.sessions[rack] = Some(Session { spool_id, until });
        self.tables.floors.insert((rack, spool_id), seq);
        self.tables.answers.retain(|key, _| key.0 != rack);
        AttachReply::Attached(self.attachment(rack, until, now))
    }

    fn attachment(&self, rack: usize, until: Time, now: Time) -> Attachment {
        let mut attachment = Attachment {
            until: length(until, now),
            blocks: vec![],
            rows: vec![],
        };
        for block in self
            .tables
            .blocks
            .iter()
            .filter(|block| block.owner == Some(rack))
        {
            let place = block.place;
            attachment.blocks.push(Block {
                id: place.id,
                epoch: Epoch(block.epoch),
                vlan: vlan_id(place.vlan),
                subnet: vlan_id(place.vlan),
                first: place.first.into(),
                count: place.count,
            });
            for n in 0..place.count {
                let address = Ipv4Addr::from(u32::from(place.first) + n);
                attachment.rows.extend(self.row_of(
                    place.id,
                    address,
                    block.quarantined_until,
                    now,
                ));
            }
        }
        attachment
    }

    fn row_of(&self, block: BlockId, address: Ipv4Addr, rests: Time, now: Time) -> Option<Row> {
        let row = self.tables.rows.get(&address);
        let rests = row.map_or(rests, |row| row.quarantined_until.max(rests));
        let client = row.and_then(|row| row.client.clone());
        (client.is_some() || rests > now).then(|| Row {
            block,
            address: address.into(),
            client,
            remaining_ms: row.map_or(0, |row| row.end.micros_since(now).div_euclid(1_000)),
            quarantine: length(rests, now),
            released: row.is_some_and(|row| row.released),
        })
    }

    pub fn heartbeat(
        &mut self,
        rack: usize,
        spool_id: SpoolId,
        theirs: &[u8; 32],
        now: Time,
    ) -> HeartbeatReply {
        let blocks = &self.tables.blocks;
        let owned = blocks.iter().filter(|block| block.owner == Some(rack));
        let ours = digest(owned.map(|block| (block.place.id, Epoch(block.epoch))));
        let pending = blocks.iter().any(|block| {
            let leaves = block.owner == Some(rack) && block.intended != rack;
            leaves || (block.owner.is_none() && block.intended == rack)
        });
        let session = self.tables.sessions[rack].as_ref();
        let facts = HeartbeatFacts {
            hold: self.hold(),
            session: session.map(|session| (session.spool_id, session.until)),
            digest: &ours,
            pending,
        };
        match unguarded::decide_heartbeat(self.guards, facts, spool_id, theirs, now, self.until) {
            HeartbeatDecision::Wait => HeartbeatReply::Wait,
            HeartbeatDecision::Attach => HeartbeatReply::Attach,
            HeartbeatDecision::Until(until) => {
                if let Some(session) = &mut self.tables.sessions[rack] {
                    session.until = until;
                }
                HeartbeatReply::Until(length(until, now))
            }
        }
    }

    // ---------------------------------------------------------------- housekeeping

    /// As regiond does every few seconds. Says which blocks were taken from whom.
    pub fn settle(&mut self, now: Time) -> Vec<(BlockId, usize)> {
        if self.tables.hold.is_some_and(|hold| hold <= now) {
            self.end_hold();
        }
        let mut taken = vec![];
        if self.hold().is_none() {
            for block in &mut self.tables.blocks {
                let Some(owner) = block.owner.filter(|owner| *owner != block.intended) else {
                    continue;
                };
                let until = self.tables.sessions[owner]
                    .as_ref()
                    .map(|session| session.until);
                if unguarded::may_take(self.guards, until, now) {
                    block.owner = None;
                    block.epoch += 1;
                    taken.push((block.place.id, owner));
                }
            }
        }
        self.forget_old(now);
        taken
    }

    fn forget_old(&mut self, now: Time) {
        let Tables {
            answers,
            floors,
            rows,
            ..
        } = &mut self.tables;
        answers.retain(|(rack, spool_id, seq), (_, at)| {
            let kept = now < at.plus(KEYS_KEPT);
            if !kept && let Some(floor) = floors.get_mut(&(*rack, *spool_id)) {
                *floor = (*floor).max(*seq);
            }
            kept
        });
        rows.retain(|_, row| {
            let over = row.end.plus(lease::TAKE_AWAY_GRACE) < now && row.quarantined_until < now;
            row.client.is_some() || !over
        });
    }

    fn end_hold(&mut self) {
        self.tables.hold = None;
        self.tables
            .blocks
            .iter_mut()
            .for_each(|block| block.epoch += EPOCH_JUMP);
    }

    // ---------------------------------------------------------------- the standby

    /// The standby has caught up.
    pub fn replicate(&mut self) {
        self.standby = self.tables.clone();
    }

    /// The standby becomes the database. `hold`: how long only drains are taken, as regions do that see another timeline.
    pub fn promote(&mut self, lossy: bool, hold: Option<Duration>, now: Time) {
        if lossy {
            self.tables = self.standby.clone();
        }
        let hold = hold.map(|length| now.plus(length));
        self.tables.hold = self.tables.hold.max(hold);
    }

    /// The operator knows that nothing was lost. No epoch jumps: racks that go on detached would have their facts refused.
    pub fn end_hold_now(&mut self) {
        self.tables.hold = None;
    }
}

fn outcomes(verdicts: &[Verdict], now: Time) -> Vec<Outcome> {
    verdicts
        .iter()
        .map(|verdict| verdict.outcome(now))
        .collect()
}

fn length(end: Time, now: Time) -> Duration {
    Duration::from_micros(u64::try_from(end.micros_since(now)).unwrap_or(0))
}
