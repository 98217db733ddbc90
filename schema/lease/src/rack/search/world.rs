//! What can happen in a world, and what the racks do about it.

use super::*;

/// In `Site::asked`: grants are 0 and 1, reclaims 2 and 3, releases from here on.
const RELEASES: usize = 4;

impl World {
    /// Rack 0 owns the block and is attached; rack 1, if there is one, too, with nothing.
    pub(super) fn new(bounds: Bounds, guards: Guards) -> World {
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
                released: false,
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
            peer: [Duration::ZERO; 2],
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

    pub(super) fn time(&self) -> Time {
        Time(0).plus(self.now)
    }

    pub(super) fn acts(&self) -> Vec<Act> {
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
            let quiet = site.asked.values().all(|asked| *asked >= RELEASES);
            let back = site
                .bound
                .is_some_and(|(n, end)| end <= self.now || (site.released && self.is_silent(n)));
            if dealt && back && quiet {
                acts.push(Act::AskBack { rack });
            }
            if site.bound.is_some() && !site.released && used.releases < bounds.releases {
                acts.push(Act::Release { rack });
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
        for client in 0..2 {
            if bounds.releases > 0 && self.holds[client] > self.now {
                acts.push(Act::Down { client });
            }
            if self.peer[client] > self.now.max(self.holds[client]) {
                acts.push(Act::SurviveAgain { client });
            }
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

    pub(super) fn apply(&mut self, act: Act) {
        self.act_once(act);
        for rack in 0..self.sites.len() {
            if let Some((client, _)) = self.sites[rack].bound {
                self.ack(rack, client);
            }
        }
    }

    pub(super) fn act_once(&mut self, act: Act) {
        match act {
            Act::Ask { rack, client: n } => {
                if !self.guards.stands(Guard::ReleasedAsksAgain) {
                    self.ack_from_memory(rack, n, true);
                }
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
                let silent = self.sites[rack].released && self.is_silent(n);
                // No ACK from memory any more, whatever comes of it.
                if self.guards.stands(Guard::ReleasedAsksAgain) {
                    let now = self.now;
                    self.sites[rack].bound = Some((n, now));
                }
                let client = client(n);
                self.ask(rack, n + 2, WriteKind::Reclaim { client, silent });
            }
            Act::Release { rack } => {
                self.used.releases += 1;
                let (n, _) = self.sites[rack].bound.expect("bound");
                self.sites[rack].released = true;
                self.ask(rack, n + RELEASES, WriteKind::Release { client: client(n) });
            }
            Act::Down { client } => self.holds[client] = Duration::ZERO,
            Act::SurviveAgain { client } => self.holds[client] = self.peer[client],
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

    /// Nobody answers a probe for the address in that client's name.
    fn is_silent(&self, n: usize) -> bool {
        self.holds[n] <= self.now || !self.guards.stands(Guard::ReleasedIsSilent)
    }

    /// What a rack may do with the block once it has attached: another client's row must have ended.
    pub(super) fn grant_by_other(&mut self, n: usize) {
        let now = self.time();
        let released = self.db.row.as_ref().is_some_and(|row| row.released);
        let kind = WriteKind::Reclaim {
            client: client(1 - n),
            silent: released && self.is_silent(1 - n),
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
    pub(super) fn extend_by_peer(&mut self, n: usize) {
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
            if self.bounds.releases > 0 {
                self.peer[n] = self.holds[n];
            }
        }
    }

    pub(super) fn block(&self, rack: usize) -> BlockState {
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

    pub(super) fn ask(&mut self, rack: usize, what: usize, kind: WriteKind) {
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

    pub(super) fn restart(&mut self, rack: usize) {
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
        site.released = false;
        site.asked.clear();
        site.fsyncs.clear();
        self.answers.retain(|answer| answer.rack != rack);
        self.input(rack, Input::LinkUp(LINK));
    }

    pub(super) fn input(&mut self, rack: usize, input: Input) {
        let mut out = vec![];
        self.sites[rack].machine.handle(self.now, input, &mut out);
        for action in out {
            self.act(rack, action);
        }
    }

    pub(super) fn act(&mut self, rack: usize, action: Action) {
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
                        site.released = false;
                        site.bound = Some((what % 2, sent + remaining));
                        self.ack(rack, what % 2);
                    }
                    Outcome::Done if (2..RELEASES).contains(&what) => site.bound = None,
                    _ => {}
                }
            }
            Action::Attached {
                rows, sent, until, ..
            } => {
                site.until = until;
                site.released = rows.iter().any(|row| row.released);
                site.bound = rows.iter().find_map(|row| {
                    let left = Duration::from_millis(u64::try_from(row.remaining_ms).unwrap_or(0));
                    row.client
                        .as_ref()
                        .map(|client| (number(client), sent + left))
                });
            }
            Action::Until(until) => site.until = until,
            Action::Forget => {
                (site.bound, site.until) = (None, Duration::ZERO);
                site.released = false;
            }
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
    pub(super) fn ack(&mut self, rack: usize, client: usize) {
        self.ack_from_memory(rack, client, false);
    }

    /// `again`: although it was released.
    fn ack_from_memory(&mut self, rack: usize, client: usize, again: bool) {
        let site = &self.sites[rack];
        let Some((holder, end)) = site.bound else {
            return;
        };
        if site.released && !again {
            return;
        }
        if let Some(length) = ack_length(LEASE, end, site.until, self.now)
            && holder == client
        {
            self.holds[client] = self.holds[client].max(self.now + length);
        }
    }

    pub(super) fn send(&mut self, rack: usize, id: CallId, call: Call) {
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

    pub(super) fn deliver(&mut self, answer: usize) {
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
}
