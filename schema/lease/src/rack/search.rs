//! Exhaustive search: the rack's machine, the region's rules and a spool disk together, with loss, delay, duplication,
//! detachment, crashes, wipes and moves, on one address and two clients. Breadth first, so a counterexample is a shortest one.
//!
//! Time goes in ticks of a lease (and single seconds, to be detached). A batch or an attach may be late
//! for ever, which is loss; a duplicate runs twice; a heartbeat runs when it is sent, and its answer comes
//! at once or never. A client is ACKed from memory whenever that is possible: a longer hold only makes a
//! violation more likely. The shard is a naive one: it asks for anything at any time, so that only the
//! machine's guards stand between two clients and one address.
//!
//! The rack that a block moves to is an ideal one, which attaches, grants and ACKs at once. So is the survivor, a peer that
//! believes the owner dead at any time: it extends through the region and ACKs up to the durable end. A block may also be
//! held back: nobody's, until it is handed to one of the two.
//!
//! A. No two clients hold one address. B. What a client holds is covered by a durable end or a fact on a disk.

use std::collections::hash_map::DefaultHasher;
use std::collections::{BTreeSet, HashSet};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};

use super::*;
use crate::message::{AttachReply, Attachment, Batch, HeartbeatReply, digest};
use crate::region::{
    Asker, AttachDecision, BlockState, Effect, HeartbeatDecision, HeartbeatFacts, RowState,
    SpoolSeen, Time, Verdict, decide_attach_with, decide_heartbeat_with, decide_with,
    may_take_with,
};
use crate::spool::first_seq;
use crate::types::{ClientKey, Epoch, Row, WriteKind};

const LEASE: Duration = Duration::from_secs(600);
const TICK: Duration = Duration::from_secs(600);
const SECOND: Duration = Duration::from_secs(1);
const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 0, 64));
const BLOCK: BlockId = BlockId(1);
const LINK: LinkId = 1;
const START: Duration = Duration::from_secs(100_000);
/// In `Db::intended`: the block is held back.
const NOBODY: usize = 2;
/// Messages on their way at once, each way; what is more is lost.
const NET_MAX: usize = 2;

fn client(n: usize) -> Client {
    Client {
        vlan: 1,
        key: ClientKey::Mac([n as u8; 6]),
    }
}

fn number(client: &Client) -> usize {
    match client.key {
        ClientKey::Mac(mac) => mac[0].into(),
        _ => unreachable!("only MACs here"),
    }
}

/// What may happen, and how often.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    seconds: u32,
    crashes: u32,
    wipes: u32,
    duplicates: u32,
    moves: u32,
    /// A move may also be one to nobody.
    held_back: bool,
    /// A peer extends bindings of the block.
    survivor: bool,
    /// Time may pass without the rack noticing.
    pauses: bool,
    until: Duration,
    states_max: usize,
}

const SMALL: Bounds = Bounds {
    seconds: 1,
    crashes: 0,
    wipes: 0,
    duplicates: 0,
    moves: 0,
    held_back: false,
    survivor: false,
    pauses: false,
    until: Duration::from_secs(86_400),
    states_max: 200_000,
};

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Call {
    Batch(Batch),
    Attach(SpoolId, u64),
}

/// On its way to the region.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Request {
    rack: usize,
    /// Of the rack's process: a reply reaches only the session that asked.
    life: u32,
    id: CallId,
    call: Call,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Answer {
    rack: usize,
    life: u32,
    input: AnswerInput,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum AnswerInput {
    Batch(CallId, Vec<Outcome>),
    Attach(CallId, AttachReply),
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Session {
    spool_id: SpoolId,
    until: Time,
}

/// The database: one block, one address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Db {
    owner: Option<usize>,
    intended: usize,
    epoch: u64,
    quarantined: Time,
    row: Option<RowState>,
    sessions: Vec<Option<Session>>,
    /// (rack, spool id) to the floor.
    floors: BTreeMap<(usize, SpoolId), u64>,
    answers: BTreeMap<(usize, SpoolId, u64), Vec<Verdict>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Site {
    machine: Rack,
    life: u32,
    /// The shard's memory of the address.
    bound: Option<(usize, Boottime)>,
    until: Boottime,
    asked: BTreeMap<Ticket, usize>,
    next_ticket: Ticket,
    disk: BTreeMap<u64, Entry>,
    spool_id: SpoolId,
    incarnation: u32,
    fsyncs: Vec<Entry>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Used {
    seconds: u32,
    crashes: u32,
    wipes: u32,
    duplicates: u32,
    moves: u32,
}

#[derive(Clone, Debug)]
struct World {
    bounds: Bounds,
    guards: Guards,
    now: Duration,
    db: Db,
    sites: Vec<Site>,
    requests: Vec<Request>,
    answers: Vec<Answer>,
    holds: [Duration; 2],
    used: Used,
    /// Heartbeats that are sent now are answered.
    heard: bool,
    /// A client has asked.
    met: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Ask {
        rack: usize,
        client: usize,
    },
    AskBack {
        rack: usize,
    },
    Run {
        request: usize,
        again: bool,
    },
    Deliver {
        answer: usize,
    },
    Fsync {
        rack: usize,
    },
    /// `heard`: heartbeats sent now are answered.
    Tick {
        heard: bool,
    },
    Second {
        heard: bool,
    },
    Pause,
    /// The rack that the block was moved to: it attaches, grants and ACKs at once.
    Other {
        client: usize,
    },
    /// The peer extends that client's binding, and ACKs from the answer.
    Survive {
        client: usize,
    },
    Crash {
        rack: usize,
    },
    Wipe {
        rack: usize,
    },
    Intend {
        rack: usize,
    },
    Take,
}

impl World {
    /// Rack 0 owns the block and is attached; rack 1, if there is one, too, with nothing.
    fn new(bounds: Bounds, guards: Guards) -> World {
        let site = |n: u8| {
            let spool_id = SpoolId([n; 16]);
            Site {
                machine: Rack::with_guards(
                    Start {
                        spool_id,
                        seq: first_seq(1),
                        entries: vec![],
                    },
                    guards,
                ),
                life: 0,
                bound: None,
                until: Duration::ZERO,
                asked: BTreeMap::new(),
                next_ticket: 0,
                disk: BTreeMap::new(),
                spool_id,
                incarnation: 1,
                fsyncs: vec![],
            }
        };
        let mut world = World {
            bounds,
            guards,
            now: START,
            db: Db {
                owner: Some(0),
                intended: 0,
                epoch: 1,
                quarantined: Time::NEVER,
                row: None,
                sessions: vec![None],
                floors: BTreeMap::new(),
                answers: BTreeMap::new(),
            },
            sites: vec![site(0)],
            requests: vec![],
            answers: vec![],
            holds: [Duration::ZERO; 2],
            used: Used::default(),
            heard: true,
            met: false,
        };
        world.input(0, Input::LinkUp(LINK));
        world.run(0, false);
        world.deliver(0);
        assert_eq!(world.sites[0].machine.mode(), Mode::Attached);
        world
    }

    fn time(&self) -> Time {
        Time(0).plus(self.now)
    }

    fn acts(&self) -> Vec<Act> {
        let (bounds, used) = (&self.bounds, &self.used);
        let mut acts = vec![];
        for (rack, site) in self.sites.iter().enumerate() {
            let dealt = site.machine.mode() != Mode::Mute;
            for client in 0..2 {
                // Until one of them has asked, they are the same.
                let asks = client == 0 || self.met;
                if dealt && asks && !site.asked.values().any(|asked| *asked == client) {
                    acts.push(Act::Ask { rack, client });
                }
            }
            if dealt && site.bound.is_some_and(|(_, end)| end <= self.now) && site.asked.is_empty()
            {
                acts.push(Act::AskBack { rack });
            }
            if !site.fsyncs.is_empty() {
                acts.push(Act::Fsync { rack });
            }
            if used.crashes < bounds.crashes {
                acts.push(Act::Crash { rack });
            }
            if used.wipes < bounds.wipes {
                acts.push(Act::Wipe { rack });
            }
        }
        for request in 0..self.requests.len() {
            acts.push(Act::Run {
                request,
                again: false,
            });
            if used.duplicates < bounds.duplicates {
                acts.push(Act::Run {
                    request,
                    again: true,
                });
            }
        }
        acts.extend((0..self.answers.len()).map(|answer| Act::Deliver { answer }));
        for heard in [true, false] {
            acts.push(Act::Tick { heard });
            if used.seconds < bounds.seconds {
                acts.push(Act::Second { heard });
            }
        }
        if bounds.pauses {
            acts.push(Act::Pause);
        }
        if used.moves < bounds.moves {
            let last = if bounds.held_back { NOBODY } else { 1 };
            let others = (0..=last).filter(|rack| *rack != self.db.intended);
            acts.extend(others.map(|rack| Act::Intend { rack }));
        }
        if self.db.owner.is_none() && self.db.intended == 1 {
            acts.extend((0..2).map(|client| Act::Other { client }));
        }
        if bounds.survivor && self.met {
            acts.extend((0..2).map(|client| Act::Survive { client }));
        }
        if let Some(owner) = self.db.owner
            && owner != self.db.intended
            && may_take_with(
                self.guards,
                self.db.sessions[owner].as_ref().map(|s| s.until),
                self.time(),
            )
        {
            acts.push(Act::Take);
        }
        acts
    }

    fn apply(&mut self, act: Act) {
        self.act_once(act);
        for rack in 0..self.sites.len() {
            if let Some((client, _)) = self.sites[rack].bound {
                self.ack(rack, client);
            }
        }
    }

    fn act_once(&mut self, act: Act) {
        match act {
            Act::Ask { rack, client: n } => {
                let kind = WriteKind::Grant {
                    client: client(n),
                    lease: LEASE,
                    hostname: "".into(),
                };
                self.ask(rack, n, kind);
            }
            Act::AskBack { rack } => {
                let (n, _) = self.sites[rack]
                    .bound
                    .expect("bound, or it was not enabled");
                self.ask(rack, n + 2, WriteKind::Reclaim { client: client(n) });
            }
            Act::Run { request, again } => {
                self.used.duplicates += u32::from(again);
                self.run(request, again);
            }
            Act::Deliver { answer } => self.deliver(answer),
            Act::Fsync { rack } => {
                let entry = self.sites[rack].fsyncs.remove(0);
                let seq = entry.seq;
                self.sites[rack].disk.insert(seq, entry);
                self.input(rack, Input::SpoolDurable { seq });
            }
            Act::Tick { heard } | Act::Second { heard } => {
                let second = matches!(act, Act::Second { .. });
                self.used.seconds += u32::from(second);
                self.now += if second { SECOND } else { TICK };
                self.heard = heard;
                (0..self.sites.len()).for_each(|rack| self.input(rack, Input::Tick));
                self.heard = true;
            }
            Act::Crash { rack } => {
                self.used.crashes += 1;
                self.sites[rack].incarnation += 1;
                self.restart(rack);
            }
            Act::Wipe { rack } => {
                self.used.wipes += 1;
                let site = &mut self.sites[rack];
                site.spool_id.0[15] += 1;
                (site.incarnation, site.disk) = (1, BTreeMap::new());
                self.restart(rack);
            }
            Act::Pause => self.now += TICK,
            Act::Other { client } => self.grant_by_other(client),
            Act::Survive { client } => self.extend_by_peer(client),
            Act::Intend { rack } => {
                self.used.moves += 1;
                self.db.intended = rack;
            }
            Act::Take => {
                self.db.owner = None;
                self.db.epoch += 1;
            }
        }
    }

    /// What a rack may do with the block once it has attached: another client's row must have ended.
    fn grant_by_other(&mut self, n: usize) {
        let now = self.time();
        let kind = WriteKind::Reclaim {
            client: client(1 - n),
        };
        let write = |kind| Write {
            block: BLOCK,
            epoch: Epoch(self.db.epoch),
            address: ADDRESS,
            kind,
        };
        let (reclaim, grant) = (
            write(kind),
            write(WriteKind::Grant {
                client: client(n),
                lease: LEASE,
                hostname: "".into(),
            }),
        );
        let block = BlockState {
            asker: Asker::Owner,
            ..self.block(1)
        };
        for write in [reclaim, grant] {
            match decide_with(
                self.guards,
                &write,
                false,
                Some(&block),
                self.db.row.as_ref(),
                now,
            ) {
                (Verdict::Durable { .. }, Effect::Put(row)) => {
                    self.db.row = Some(row);
                    self.holds[n] = self.holds[n].max(self.now + LEASE);
                    self.met = true;
                }
                (_, Effect::Delete) => self.db.row = None,
                _ => {}
            }
        }
    }

    /// The rule of a survivor: it needs no block, and promises what the region answers, to its end.
    fn extend_by_peer(&mut self, n: usize) {
        let write = Write {
            block: BlockId::NONE,
            epoch: Epoch(0),
            address: ADDRESS,
            kind: WriteKind::Extend {
                client: client(n),
                lease: LEASE,
            },
        };
        let decided = decide_with(
            self.guards,
            &write,
            false,
            Some(&self.block(1)),
            self.db.row.as_ref(),
            self.time(),
        );
        if let (Verdict::Durable { .. }, Effect::Put(row)) = decided {
            self.db.row = Some(row);
            self.holds[n] = self.holds[n].max(self.now + trust(2 * LEASE));
        }
    }

    fn block(&self, rack: usize) -> BlockState {
        BlockState {
            epoch: Epoch(self.db.epoch),
            asker: if self.db.owner == Some(rack) {
                Asker::Owner
            } else {
                Asker::Peer
            },
            vlan: 1,
            first: ADDRESS,
            count: 1,
            quarantined_until: self.db.quarantined,
        }
    }

    // ------------------------------------------------------------ a rack

    fn ask(&mut self, rack: usize, what: usize, kind: WriteKind) {
        let site = &mut self.sites[rack];
        // The shard knows the epoch; a machine without the block refuses.
        let epoch = site
            .machine
            .blocks()
            .next()
            .map_or(Epoch(0), |block| block.epoch);
        let ticket = site.next_ticket;
        site.next_ticket += 1;
        site.asked.insert(ticket, what);
        self.met = true;
        let write = Write {
            block: BLOCK,
            epoch,
            address: ADDRESS,
            kind,
        };
        self.input(rack, Input::Request { ticket, write });
    }

    fn restart(&mut self, rack: usize) {
        let site = &mut self.sites[rack];
        let entries = site.disk.values().cloned().collect();
        let start = Start {
            spool_id: site.spool_id,
            seq: first_seq(site.incarnation),
            entries,
        };
        site.machine = Rack::with_guards(start, self.guards);
        site.life += 1;
        (site.bound, site.until) = (None, Duration::ZERO);
        site.asked.clear();
        site.fsyncs.clear();
        self.answers.retain(|answer| answer.rack != rack);
        self.input(rack, Input::LinkUp(LINK));
    }

    fn input(&mut self, rack: usize, input: Input) {
        let mut out = vec![];
        self.sites[rack].machine.handle(self.now, input, &mut out);
        for action in out {
            self.act(rack, action);
        }
    }

    fn act(&mut self, rack: usize, action: Action) {
        let site = &mut self.sites[rack];
        match action {
            Action::SendBatch { call, batch, .. } => self.send(rack, call, Call::Batch(batch)),
            Action::SendHeartbeat {
                call,
                spool_id,
                digest,
                ..
            } => {
                let reply = Some(self.heartbeat(rack, spool_id, &digest));
                if self.heard {
                    self.input(rack, Input::HeartbeatAnswer { call, reply });
                }
            }
            Action::SendAttach {
                call,
                spool_id,
                spool_seq,
                ..
            } => {
                self.send(rack, call, Call::Attach(spool_id, spool_seq));
            }
            Action::AppendSpool(entry) => {
                site.fsyncs.push(entry);
                // The moment between is only worth looking at where something can go wrong in it.
                if self.bounds.crashes + self.bounds.wipes == 0
                    && self.guards.stands(Guard::FsyncBeforeReply)
                {
                    self.act_once(Act::Fsync { rack });
                }
            }
            Action::RemoveSpool { seqs } => seqs.iter().for_each(|seq| drop(site.disk.remove(seq))),
            Action::Reply {
                ticket,
                outcome,
                sent,
            } => {
                let Some(what) = site.asked.remove(&ticket) else {
                    return;
                };
                match outcome {
                    Outcome::Durable { remaining } => {
                        site.bound = Some((what % 2, sent + remaining));
                        self.ack(rack, what % 2);
                    }
                    Outcome::Done if what >= 2 => site.bound = None,
                    _ => {}
                }
            }
            Action::Attached {
                rows, sent, until, ..
            } => {
                site.until = until;
                site.bound = rows.iter().find_map(|row| {
                    let left = Duration::from_millis(u64::try_from(row.remaining_ms).unwrap_or(0));
                    row.client
                        .as_ref()
                        .map(|client| (number(client), sent + left))
                });
            }
            Action::Until(until) => site.until = until,
            Action::Forget => (site.bound, site.until) = (None, Duration::ZERO),
            Action::ReplaceSpool => {
                site.spool_id.0[15] += 1;
                (site.incarnation, site.disk) = (1, BTreeMap::new());
                let spool_id = site.spool_id;
                self.input(
                    rack,
                    Input::SpoolReplaced {
                        spool_id,
                        seq: first_seq(1),
                    },
                );
            }
            Action::ForgetBlock(_)
            | Action::Detached(_)
            | Action::Alarm(_)
            | Action::ResetSpool => {}
        }
    }

    /// An ACK leaves.
    fn ack(&mut self, rack: usize, client: usize) {
        let site = &self.sites[rack];
        let Some((holder, end)) = site.bound else {
            return;
        };
        if let Some(length) = ack_length(LEASE, end, site.until, self.now)
            && holder == client
        {
            self.holds[client] = self.holds[client].max(self.now + length);
        }
    }

    fn send(&mut self, rack: usize, id: CallId, call: Call) {
        let life = self.sites[rack].life;
        if self.requests.len() < NET_MAX {
            self.requests.push(Request {
                rack,
                life,
                id,
                call,
            });
        }
    }

    fn deliver(&mut self, answer: usize) {
        let Answer { rack, life, input } = self.answers.remove(answer);
        assert_eq!(
            life, self.sites[rack].life,
            "answers of a former life are gone"
        );
        let input = match input {
            AnswerInput::Batch(call, outcomes) => Input::BatchAnswer {
                call,
                outcomes: Some(outcomes),
            },
            AnswerInput::Attach(call, reply) => Input::AttachAnswer {
                call,
                reply: Some(reply),
            },
        };
        self.input(rack, input);
    }

    // ------------------------------------------------------------ the region, as store::lease does it

    fn run(&mut self, index: usize, again: bool) {
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

    fn commit(&mut self, rack: usize, batch: &Batch) -> Vec<Outcome> {
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

    fn attach(&mut self, rack: usize, spool_id: SpoolId, seq: u64) -> AttachReply {
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
                    released: false,
                });
            }
        }
        AttachReply::Attached(attachment)
    }

    fn heartbeat(&mut self, rack: usize, spool_id: SpoolId, theirs: &[u8; 32]) -> HeartbeatReply {
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

    // ------------------------------------------------------------ what must hold

    fn violation(&self) -> Option<&'static str> {
        let held = |n: usize| self.holds[n] > self.now;
        if held(0) && held(1) {
            return Some("A: two clients hold one address");
        }
        // A wiped spool excuses: what it held is what the quarantine is for.
        let covered = |n: usize| {
            let row = self.db.row.as_ref();
            let in_row = row.is_some_and(|row| {
                row.client == Some(client(n)) && row.end >= Time(0).plus(self.holds[n])
            });
            let on_disk = self.sites.iter().flat_map(|site| site.disk.values());
            let mut facts = on_disk.filter_map(|entry| crate::region::client_of(&entry.write.kind));
            self.used.wipes > 0 || in_row || facts.any(|fact| *fact == client(n))
        };
        (0..2)
            .any(|n| held(n) && !covered(n))
            .then_some("B: a lease without a durable end")
    }

    /// Up to what makes no difference: time is relative to now and ended is ended; calls, tickets, seqs
    /// and epochs count by their order. So the horizon is open.
    fn fingerprint(&self) -> u64 {
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
            &world.used,
            self.met,
            &world.db,
        )
            .hash(&mut hash);
        hash.finish()
    }

    fn make_relative(&mut self) {
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
        self.holds
            .iter_mut()
            .for_each(|end| *end = ahead(*end, now));
    }

    /// Answers that nobody waits for; and, while the guards against them stand, requests that can only be refused.
    fn forget_dead_messages(&mut self) {
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
    fn forget_answers(&mut self) {
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
    fn names(&mut self, name: &mut impl FnMut(usize, &mut u64)) {
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

fn length(end: Time, now: Time) -> Duration {
    Duration::from_micros(u64::try_from(end.micros_since(now)).unwrap_or(0))
}

// ---------------------------------------------------------------- the search

struct Found {
    states: usize,
    depth: usize,
    complete: bool,
    violation: Option<(&'static str, Vec<Act>)>,
}

fn search(bounds: Bounds, guards: Guards) -> Found {
    let first = World::new(bounds, guards);
    let mut seen = HashSet::from([first.fingerprint()]);
    // The way to each world: the index of the world before it, and the act.
    let mut ways: Vec<(usize, Act)> = vec![(0, Act::Pause)];
    let mut level = vec![(first, 0)];
    let mut depth = 0;
    while !level.is_empty() {
        let mut next = vec![];
        for (world, way) in level {
            for act in world.acts() {
                let mut after = world.clone();
                after.apply(act);
                if !seen.insert(after.fingerprint()) {
                    continue;
                }
                ways.push((way, act));
                if let Some(violation) = after.violation() {
                    let mut path = vec![];
                    let mut at = ways.len() - 1;
                    while at != 0 {
                        path.push(ways[at].1);
                        at = ways[at].0;
                    }
                    path.reverse();
                    let violation = Some((violation, path));
                    return Found {
                        states: seen.len(),
                        depth: depth + 1,
                        complete: false,
                        violation,
                    };
                }
                next.push((after, ways.len() - 1));
            }
            if seen.len() > bounds.states_max {
                return Found {
                    states: seen.len(),
                    depth,
                    complete: false,
                    violation: None,
                };
            }
        }
        level = next;
        depth += 1;
    }
    Found {
        states: seen.len(),
        depth,
        complete: true,
        violation: None,
    }
}

/// Explores to the end: every state there is within the bounds, with time without end.
#[track_caller]
fn holds(case: &str, bounds: Bounds) {
    let found = search(bounds, Guards::ALL);
    println!("{case}: {} states, depth {}", found.states, found.depth);
    assert!(found.violation.is_none(), "{case}: {:#?}", found.violation);
    assert!(
        found.complete,
        "{case}: not finished after {} states",
        found.states
    );
    assert!(
        found.states > 1_000,
        "{case}: the search did not get anywhere"
    );
}

#[track_caller]
fn breaks(removed: &[Guard], bounds: Bounds) {
    let found = search(bounds, Guards::without(removed));
    let Some((what, path)) = found.violation else {
        panic!(
            "without {removed:?} nothing breaks in {} states",
            found.states
        )
    };
    println!(
        "without {removed:?}: {what}, after {} states: {path:?}",
        found.states
    );
}

const NO_SECONDS: Bounds = Bounds {
    seconds: 0,
    ..SMALL
};
const MOVE: Bounds = Bounds {
    moves: 1,
    until: Duration::from_secs(1_200),
    ..NO_SECONDS
};

/// To nobody, and on to one of the two.
const HANDED: Bounds = Bounds {
    moves: 2,
    held_back: true,
    ..MOVE
};

#[test]
fn nothing_breaks_by_detachment() {
    holds("detached for a second", SMALL);
}

#[test]
fn nothing_breaks_by_a_crash() {
    holds(
        "crash",
        Bounds {
            crashes: 1,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_a_duplicate() {
    holds(
        "duplicate",
        Bounds {
            duplicates: 1,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_a_pause() {
    holds(
        "pauses",
        Bounds {
            pauses: true,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_a_move() {
    holds("move", MOVE);
}

#[test]
fn nothing_breaks_by_a_survivor() {
    holds(
        "survivor",
        Bounds {
            survivor: true,
            ..NO_SECONDS
        },
    );
}

#[test]
fn nothing_breaks_by_holding_back_and_handing_out() {
    holds("held back, handed out", HANDED);
}

/// Larger ones, each to its end.
#[test]
#[ignore = "60 s: every pair of faults to its end (cargo nextest run -p lease --run-ignored all)"]
fn nothing_breaks_by_two_faults() {
    let until = Duration::from_secs(1_800);
    for (case, bounds) in [
        (
            "wipe",
            Bounds {
                wipes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "two short detachments",
            Bounds {
                seconds: 2,
                ..SMALL
            },
        ),
        (
            "crash, detached",
            Bounds {
                crashes: 1,
                ..SMALL
            },
        ),
        (
            "two crashes",
            Bounds {
                crashes: 2,
                ..NO_SECONDS
            },
        ),
        (
            "pauses and a crash",
            Bounds {
                pauses: true,
                crashes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "duplicate, detached",
            Bounds {
                duplicates: 1,
                ..SMALL
            },
        ),
        (
            "duplicate and a crash",
            Bounds {
                duplicates: 1,
                crashes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "move, detached",
            Bounds {
                seconds: 1,
                until,
                ..MOVE
            },
        ),
        (
            "move and pauses",
            Bounds {
                pauses: true,
                ..MOVE
            },
        ),
        ("move and a crash", Bounds { crashes: 1, ..MOVE }),
        (
            "move and a duplicate",
            Bounds {
                duplicates: 1,
                ..MOVE
            },
        ),
        (
            "survivor and a crash",
            Bounds {
                survivor: true,
                crashes: 1,
                ..NO_SECONDS
            },
        ),
        (
            "survivor and a move",
            Bounds {
                survivor: true,
                ..MOVE
            },
        ),
        (
            "survivor and a duplicate",
            Bounds {
                survivor: true,
                duplicates: 1,
                ..NO_SECONDS
            },
        ),
        (
            "survivor and pauses",
            Bounds {
                survivor: true,
                pauses: true,
                ..NO_SECONDS
            },
        ),
        (
            "handed out and a crash",
            Bounds {
                crashes: 1,
                ..HANDED
            },
        ),
    ] {
        holds(
            case,
            Bounds {
                states_max: 2_000_000,
                ..bounds
            },
        );
    }
}

/// Each guard removed in turn makes some run fail.
#[test]
fn every_guard_is_needed() {
    use Guard::*;
    let crash = Bounds {
        crashes: 1,
        ..NO_SECONDS
    };
    let duplicate = Bounds {
        duplicates: 1,
        ..NO_SECONDS
    };
    let wipe = Bounds {
        wipes: 1,
        ..NO_SECONDS
    };
    let pauses = Bounds {
        pauses: true,
        ..NO_SECONDS
    };
    for (guard, bounds) in [
        (EpochCompared, MOVE),
        (EpochAtAttach, MOVE),
        (AttachInOrder, NO_SECONDS),
        (DedupeKey, duplicate),
        (ReclaimConditional, NO_SECONDS),
        (QuarantineOnNewSpool, wipe),
        (MoveAfterUntil, MOVE),
        (ReclaimWhileAttached, NO_SECONDS),
        (NoReuseDetached, NO_SECONDS),
        (UnknownStaysUnknown, NO_SECONDS),
        (FreshKey, pauses),
        (FrozenWhileAttaching, NO_SECONDS),
        (DrainBeforeAttach, crash),
        (CommitBeforeReply, NO_SECONDS),
        (FsyncBeforeReply, NO_SECONDS),
        (
            SurvivorNeverAllocates,
            Bounds {
                survivor: true,
                ..NO_SECONDS
            },
        ),
    ] {
        breaks(&[guard], bounds);
    }
}

/// Two that stand in for each other where clocks are good: a rack past its until sends no heartbeat, and
/// a heartbeat of a rack that lost its block does nothing. Without both it goes on serving.
#[test]
fn the_heartbeats_condition_and_the_silence_past_until_back_each_other() {
    // A heartbeat always reaches the region here; only a rack that stands still lets its until pass.
    let paused = Bounds {
        pauses: true,
        ..MOVE
    };
    breaks(&[Guard::HeartbeatDigest, Guard::MuteAfterUntil], paused);
    for guard in [Guard::HeartbeatDigest, Guard::MuteAfterUntil] {
        let found = search(MOVE, Guards::without(&[guard]));
        assert!(
            found.complete && found.violation.is_none(),
            "{guard:?}: {:#?}",
            found.violation
        );
    }
}

/// What takes an address back must look at the region's row, for a survivor may have lengthened it: without a single fault
/// else, these break as soon as there is one.
#[test]
fn a_survivor_needs_the_owner_to_ask_the_region() {
    let survivor = Bounds {
        survivor: true,
        ..NO_SECONDS
    };
    for guard in [
        Guard::ReclaimConditional,
        Guard::ReclaimWhileAttached,
        Guard::NoReuseDetached,
    ] {
        breaks(&[guard], survivor);
    }
}
