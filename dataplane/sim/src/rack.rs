//! A rack: the lease machine on its link thread, its shards, its spool, and a process that ends and begins.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::rc::Rc;
use std::time::Duration;

use lease::guards::{Guards, unguarded};
use lease::rack::{Action, Counters, Input, LinkId, Rack};
use lease::{VlanId, Write, WriteKind};

use crate::clock::Clock;
use crate::disk::{Disk, Job};
use crate::engine::EngineShard;
use crate::message::{Kind, Query, mac_of};
use crate::naive::NaiveShard;
use crate::plan::{Plan, ms};
use crate::region::Call;
use crate::rng::Rng;
use crate::shard::{Shard, Ticket, Wish, Word};
use crate::trace;
use crate::world::{Event, Report, World, note};

/// How often a rack hears whether its peer lives.
const FEED_EVERY: Duration = Duration::from_secs(2);
/// Between two attempts to connect.
const CONNECT_EVERY: Duration = Duration::from_secs(1);

/// One shard's place beside the link thread. Messages each way keep their order.
struct Seat {
    shard: Shard,
    tick_due: Option<Duration>,
    to_link_at: Duration,
    to_shard_at: Duration,
}

pub(crate) struct Site {
    /// +1 with each process.
    pub life: u32,
    pub up: bool,
    pub paused_until: Duration,
    pub isolated_until: Duration,
    /// By region: cut off until then.
    pub cut_until: [Duration; 2],
    pub clock: Clock,
    pub disk: Disk,
    pub machine: Option<Rack>,
    links: [Option<LinkId>; 2],
    next_link: LinkId,
    tick_due: Option<Duration>,
    seats: Vec<Seat>,
    waiting: BTreeMap<u64, (usize, Ticket)>,
    next_ticket: u64,
    /// Of processes that have ended.
    pub past: Report,
}

impl Site {
    pub fn new(plan: &Plan, rack: usize, rng: &mut Rng) -> Self {
        let drift = plan.drift_ppm;
        // Hosts were booted at some time.
        let shown = Duration::from_secs(86_400 * 10 * (rack as u64 + 1));
        Self {
            life: 0,
            up: false,
            paused_until: Duration::ZERO,
            isolated_until: Duration::ZERO,
            cut_until: [Duration::ZERO; 2],
            clock: Clock::new(shown, rng.below(2 * drift + 1) as i64 - drift as i64),
            disk: Disk::new(rng),
            machine: None,
            links: [None; 2],
            next_link: 0,
            tick_due: None,
            seats: vec![],
            waiting: BTreeMap::new(),
            next_ticket: 0,
            past: Report::default(),
        }
    }

    pub fn link_to(&self, region: usize) -> Option<LinkId> {
        self.links[region]
    }

    /// Adds what the process has counted.
    pub fn count(&self, report: &mut Report) {
        let Counters {
            attaches,
            detached,
            spooled,
            drained_refused,
            ..
        } = self
            .machine
            .as_ref()
            .map(Rack::counters)
            .unwrap_or_default();
        report.attaches += attaches;
        report.detached += detached;
        report.spooled += spooled;
        report.drained_refused += drained_refused;
    }
}

impl World<'_> {
    // ---------------------------------------------------------------- the process

    /// The process ends without a word.
    pub fn stop_rack(&mut self, rack: usize) {
        let site = &mut self.racks[rack];
        let mut past = site.past;
        site.count(&mut past);
        (site.past, site.machine) = (past, None);
        (site.up, site.links, site.tick_due) = (false, [None; 2], None);
        site.paused_until = Duration::ZERO;
        site.life += 1;
        site.seats.clear();
        site.waiting.clear();
        site.disk.crash(&mut self.rng);
        self.oracle.forget_queries(rack);
        self.oracle.dirty = true;
    }

    pub fn start_rack(&mut self, rack: usize) {
        if self.racks[rack].up {
            return;
        }
        let start = match self.racks[rack].disk.open(&mut self.rng) {
            Ok(start) => start,
            Err(error) => {
                return self.fail(format!("the spool of rack {rack} cannot be read: {error}"));
            }
        };
        note!(
            self,
            "rack {rack} starts with {} facts",
            start.entries.len()
        );
        let (plan, now, base) = (self.plan, self.now, self.base);
        let site = &mut self.racks[rack];
        let boot = site.clock.read(now);
        site.machine = Some(unguarded::rack(plan.guards, start));
        site.up = true;
        site.seats = (0..plan.shards as usize)
            .map(|index| {
                let seed = self.rng.next();
                let shard = if plan.naive > 0 {
                    Shard::Naive(NaiveShard::new(plan, rack))
                } else {
                    let shard = EngineShard::new(plan, rack, index, seed, base, boot);
                    Shard::Engine(Box::new(shard))
                };
                Seat {
                    shard,
                    tick_due: None,
                    to_link_at: now,
                    to_shard_at: now,
                }
            })
            .collect();
        let life = site.life;
        if plan.racks > 1 {
            self.after(FEED_EVERY, Event::Feed { rack, life });
        }
        for region in 0..2 {
            let wait = self.rng.between(ms(1), ms(50));
            self.after(wait, Event::Connect { rack, life, region });
        }
        self.oracle.dirty = true;
    }

    fn lives(&self, rack: usize, life: u32) -> bool {
        self.racks[rack].up && self.racks[rack].life == life
    }

    // ---------------------------------------------------------------- connections

    pub fn connect(&mut self, rack: usize, life: u32, region: usize) {
        if !self.lives(rack, life) || self.racks[rack].links[region].is_some() {
            return;
        }
        let cut = self.racks[rack].cut_until[region] > self.now;
        if cut || !self.regions[region].answers(self.now) {
            let wait = CONNECT_EVERY + self.rng.between(Duration::ZERO, CONNECT_EVERY);
            return self.after(wait, Event::Connect { rack, life, region });
        }
        let site = &mut self.racks[rack];
        site.next_link += 1;
        let link = site.next_link;
        site.links[region] = Some(link);
        self.tell_machine(rack, Input::LinkUp(link));
    }

    pub fn link_down(&mut self, rack: usize, life: u32, region: usize, link: LinkId) {
        if !self.lives(rack, life) || self.racks[rack].links[region] != Some(link) {
            return;
        }
        note!(self, "rack {rack} has lost region {region}");
        self.racks[rack].links[region] = None;
        self.tell_machine(rack, Input::LinkDown(link));
        let wait = self.rng.between(ms(50), ms(1_000));
        self.after(wait, Event::Connect { rack, life, region });
    }

    pub fn answered(
        &mut self,
        rack: usize,
        life: u32,
        link: Option<(usize, LinkId)>,
        input: Input,
    ) {
        if !self.lives(rack, life) {
            return;
        }
        if let Some((region, link)) = link {
            let site = &self.racks[rack];
            let healed = site.cut_until[region];
            // A reply reaches only the session that asked.
            if site.links[region] != Some(link) {
                return;
            }
            if healed > self.now {
                let wait = self.rng.between(ms(1), ms(400));
                let link = Some((region, link));
                return self.at(
                    healed + wait,
                    Event::Answered {
                        rack,
                        life,
                        link,
                        input,
                    },
                );
            }
        }
        self.tell_machine(rack, input);
    }

    // ---------------------------------------------------------------- the link thread

    pub fn tell_machine(&mut self, rack: usize, input: Input) {
        let now = self.now;
        let site = &mut self.racks[rack];
        let Some(machine) = &mut site.machine else {
            return;
        };
        let mut actions = vec![];
        let heard = if self.trace.is_some() {
            trace::input(&input)
        } else {
            None
        };
        machine.handle(site.clock.read(now), input, &mut actions);
        if let Some(heard) = heard {
            self.note(format!("rack {rack} < {heard}"));
        }
        for action in actions {
            if self.trace.is_some()
                && let Some(does) = trace::action(&action)
            {
                self.note(format!("rack {rack} > {does}"));
            }
            self.act(rack, action);
        }
        self.plan_rack_tick(rack);
    }

    fn plan_rack_tick(&mut self, rack: usize) {
        let now = self.now;
        let site = &mut self.racks[rack];
        let Some(next) = site.machine.as_ref().and_then(Rack::next_tick) else {
            return;
        };
        let mut at = site.clock.when(next, now);
        // Without some guards the machine would tick without end.
        if at == now && self.plan.guards != Guards::ALL {
            at += ms(250);
        }
        if site.tick_due.is_none_or(|due| at < due) {
            site.tick_due = Some(at);
            let life = site.life;
            self.at(at, Event::RackTick { rack, life });
        }
    }

    pub fn on_rack_tick(&mut self, rack: usize, life: u32) {
        if !self.lives(rack, life) {
            return;
        }
        let now = self.now;
        let site = &mut self.racks[rack];
        if site.tick_due.is_some_and(|due| due <= now) {
            site.tick_due = None;
        }
        let boot = site.clock.read(now);
        let next = site.machine.as_ref().and_then(Rack::next_tick);
        if next.is_some_and(|next| next <= boot) {
            self.tell_machine(rack, Input::Tick);
        } else {
            self.plan_rack_tick(rack);
        }
    }

    pub fn on_doubt(&mut self, rack: usize, life: u32) {
        if self.lives(rack, life) {
            self.tell_machine(rack, Input::ClocksDisagree);
        }
    }

    fn act(&mut self, rack: usize, action: Action) {
        let life = self.racks[rack].life;
        match action {
            Action::SendBatch { call, link, batch } => {
                self.call(rack, link, Call::Batch(call, batch));
            }
            Action::SendHeartbeat {
                call,
                link,
                spool_id,
                digest,
            } => {
                self.call(rack, link, Call::Heartbeat(call, spool_id, digest));
            }
            Action::SendAttach {
                call,
                link,
                spool_id,
                spool_seq,
            } => {
                self.call(rack, link, Call::Attach(call, spool_id, spool_seq));
            }
            Action::AppendSpool(entry) => self.spool(rack, Job::Append(entry)),
            Action::RemoveSpool { seqs } => self.spool(rack, Job::Remove(seqs)),
            Action::ResetSpool => self.spool(rack, Job::Reset),
            Action::ReplaceSpool => self.spool(rack, Job::Replace),
            Action::Reply {
                ticket,
                outcome,
                sent,
            } => {
                if let Some((shard, ticket)) = self.racks[rack].waiting.remove(&ticket) {
                    self.tell_shard(
                        rack,
                        shard,
                        Word::Outcome {
                            ticket,
                            outcome,
                            sent,
                        },
                    );
                }
            }
            Action::Attached {
                blocks,
                rows,
                sent,
                until,
            } => {
                self.racks[rack].disk.attached();
                let (blocks, rows) = (Rc::from(blocks), Rc::from(rows));
                self.tell_shards(
                    rack,
                    &Word::Attached {
                        blocks,
                        rows,
                        sent,
                        until,
                    },
                );
            }
            // As rackd: shards have no word for one block less, so all is learnt anew.
            Action::ForgetBlock(_) => {
                self.tell_shards(rack, &Word::Forget);
                self.after(Duration::ZERO, Event::Doubt { rack, life });
            }
            Action::Forget => self.tell_shards(rack, &Word::Forget),
            Action::Until(until) => self.tell_shards(rack, &Word::Until(until)),
            Action::Detached(_) | Action::Alarm(_) => {}
        }
    }

    fn spool(&mut self, rack: usize, job: Job) {
        let site = &mut self.racks[rack];
        let idle = site.disk.jobs.is_empty();
        site.disk.jobs.push_back(job);
        if idle {
            let life = site.life;
            let wait = self
                .rng
                .between(Duration::from_micros(50), ms(self.plan.fsync_ms));
            self.after(wait, Event::Spool { rack, life });
        }
    }

    pub fn on_spool(&mut self, rack: usize, life: u32) {
        if !self.lives(rack, life) {
            return;
        }
        let mut told = vec![];
        let disk = &mut self.racks[rack].disk;
        let replaces = disk.jobs.iter().any(|job| matches!(job, Job::Replace));
        disk.work(self.now, &mut self.rng, &mut told);
        if replaces {
            self.oracle.forgive(&self.database);
        }
        self.oracle.dirty = true;
        told.into_iter()
            .for_each(|input| self.tell_machine(rack, input));
    }

    /// A block is given back, as the machine may be asked to.
    pub fn give(&mut self, rack: usize, nth: usize) {
        let Some(machine) = &self.racks[rack].machine else {
            return;
        };
        let blocks: Vec<_> = machine.blocks().cloned().collect();
        if let Some(block) = blocks.get(nth % blocks.len().max(1)) {
            let write = Write {
                block: block.id,
                epoch: block.epoch,
                address: block.first,
                kind: WriteKind::Yield,
            };
            self.ask_machine(rack, None, write);
        }
    }

    // ---------------------------------------------------------------- shards

    /// Between link thread and shard: quick, but for a thread that does not get to run.
    fn mail(&mut self) -> Duration {
        let stalls = !self.quiet && self.rng.permille(self.plan.mail);
        if stalls {
            self.rng.skewed(ms(self.plan.mail_ms))
        } else {
            self.rng
                .between(Duration::from_micros(10), Duration::from_micros(90))
        }
    }

    fn tell_shards(&mut self, rack: usize, word: &Word) {
        for shard in 0..self.racks[rack].seats.len() {
            self.tell_shard(rack, shard, word.clone());
        }
    }

    fn tell_shard(&mut self, rack: usize, shard: usize, word: Word) {
        let at = self.now + self.mail();
        let site = &mut self.racks[rack];
        let seat = &mut site.seats[shard];
        seat.to_shard_at = seat.to_shard_at.max(at);
        let (at, life) = (seat.to_shard_at, site.life);
        self.at(
            at,
            Event::ToShard {
                rack,
                life,
                shard,
                word,
            },
        );
    }

    pub fn at_shard(&mut self, rack: usize, life: u32, shard: usize, word: Word) {
        if self.lives(rack, life) {
            self.with_shard(rack, shard, |shard, now, _, wishes| {
                shard.hear(word, now, wishes)
            });
        }
    }

    pub fn on_shard_tick(&mut self, rack: usize, life: u32, shard: usize) {
        if !self.lives(rack, life) {
            return;
        }
        let now = self.now;
        let seat = &mut self.racks[rack].seats[shard];
        if seat.tick_due.is_some_and(|due| due <= now) {
            seat.tick_due = None;
        }
        self.with_shard(rack, shard, |shard, now, _, wishes| {
            if shard.next_tick().is_some_and(|next| next <= now) {
                shard.tick(now, wishes);
            }
        });
    }

    pub fn at_rack(&mut self, rack: usize, query: &Query) {
        let site = &self.racks[rack];
        if !site.up || self.now < site.isolated_until {
            return;
        }
        self.oracle.asked(rack, query);
        if let (Kind::Release, Some(address)) = (query.kind, query.ciaddr) {
            self.oracle.released(address, query.client);
        }
        let mac = wire::ethernet::Mac(mac_of(query.client));
        let shard = dhcp::shard_of_mac(mac, self.plan.shards as u32) as usize;
        self.with_shard(rack, shard, |shard, now, rng, wishes| {
            shard.query(query, now, rng, wishes);
        });
    }

    fn with_shard(
        &mut self,
        rack: usize,
        index: usize,
        act: impl FnOnce(&mut Shard, Duration, &mut Rng, &mut Vec<Wish>),
    ) {
        let site = &mut self.racks[rack];
        let boot = site.clock.read(self.now);
        let mut wishes = vec![];
        act(
            &mut site.seats[index].shard,
            boot,
            &mut self.rng,
            &mut wishes,
        );
        for wish in wishes {
            self.grant_wish(rack, index, wish);
        }
        self.plan_shard_tick(rack, index);
    }

    fn plan_shard_tick(&mut self, rack: usize, shard: usize) {
        let site = &mut self.racks[rack];
        let seat = &mut site.seats[shard];
        let Some(next) = seat.shard.next_tick() else {
            return;
        };
        let at = site.clock.when(next, self.now);
        if seat.tick_due.is_none_or(|due| at < due) {
            seat.tick_due = Some(at);
            let life = site.life;
            self.at(at, Event::ShardTick { rack, life, shard });
        }
    }

    fn grant_wish(&mut self, rack: usize, shard: usize, wish: Wish) {
        match wish {
            Wish::Answer(answer) => {
                note!(
                    self,
                    "rack {rack} answers client {} {:?} {:08x} {} {:?}",
                    answer.client,
                    answer.kind,
                    answer.xid,
                    answer.address,
                    answer.lease
                );
                match answer.kind {
                    Kind::Ack => self.report.acks += 1,
                    Kind::Nak => self.report.naks += 1,
                    _ => {}
                }
                if let Err(why) = self.oracle.replied(&answer) {
                    self.fail(why);
                }
                self.oracle.promised(&answer, &self.database, self.now);
                if self.now >= self.racks[rack].isolated_until {
                    self.send_answer(&answer);
                }
            }
            Wish::Probe { vlan, address } => {
                let life = self.racks[rack].life;
                let wait = self.rng.between(ms(200), ms(1_500));
                self.after(
                    wait,
                    Event::Probed {
                        rack,
                        life,
                        shard,
                        vlan,
                        address,
                    },
                );
            }
            Wish::Pass { to, word } => {
                let (at, life) = self.leaves(rack, shard);
                self.at(
                    at,
                    Event::Pass {
                        rack,
                        life,
                        to,
                        word,
                    },
                );
            }
            Wish::Write { ticket, write } => {
                if matches!(write.kind, WriteKind::Reclaim { silent: true, .. }) {
                    self.report.taken_back += 1;
                }
                let (at, life) = self.leaves(rack, shard);
                self.at(
                    at,
                    Event::ToLink {
                        rack,
                        life,
                        shard,
                        ticket,
                        write,
                    },
                );
            }
        }
    }

    /// When what the shard says reaches the link thread of this life.
    fn leaves(&mut self, rack: usize, shard: usize) -> (Duration, u32) {
        let at = self.now + self.mail();
        let site = &mut self.racks[rack];
        let seat = &mut site.seats[shard];
        seat.to_link_at = seat.to_link_at.max(at);
        (seat.to_link_at, site.life)
    }

    pub fn on_pass(&mut self, rack: usize, life: u32, to: usize, word: Word) {
        if self.lives(rack, life) {
            self.tell_shard(rack, to, word);
        }
    }

    /// Who uses the address now answers, if the rack is not cut off from it.
    pub fn on_probed(
        &mut self,
        rack: usize,
        life: u32,
        shard: usize,
        vlan: VlanId,
        address: Ipv4Addr,
    ) {
        if !self.lives(rack, life) {
            return;
        }
        let heard = self.now >= self.racks[rack].isolated_until;
        let by = self.user_of(vlan, address).filter(|_| heard);
        note!(self, "rack {rack} asked for {address}: {by:?}");
        if by.is_none() {
            self.nobody_answers(address);
        }
        let word = Word::Probed { vlan, address, by };
        self.with_shard(rack, shard, |shard, now, _, wishes| {
            shard.hear(word, now, wishes)
        });
    }

    /// The feed says which racks a region sees; or what it last saw, or what is not so: nothing may depend on it.
    pub fn on_feed(&mut self, rack: usize, life: u32) {
        if !self.lives(rack, life) {
            return;
        }
        let hears = |site: &Site| site.links.iter().any(Option::is_some);
        if hears(&self.racks[rack]) {
            let mut alive = [true; 2];
            for (peer, site) in self.racks.iter().enumerate() {
                alive[peer] = site.up && hears(site);
            }
            if !self.quiet && self.rng.permille(self.plan.lies) {
                alive = [self.rng.coin(), self.rng.coin()];
            }
            self.tell_shards(rack, &Word::Alive(alive));
        }
        self.after(FEED_EVERY, Event::Feed { rack, life });
    }

    pub fn at_link(
        &mut self,
        rack: usize,
        life: u32,
        shard: usize,
        ticket: Option<Ticket>,
        write: Write,
    ) {
        if self.lives(rack, life) {
            self.ask_machine(rack, ticket.map(|ticket| (shard, ticket)), write);
        }
    }

    fn ask_machine(&mut self, rack: usize, whose: Option<(usize, Ticket)>, write: Write) {
        let site = &mut self.racks[rack];
        site.next_ticket += 1;
        let ticket = site.next_ticket;
        if let Some(whose) = whose {
            site.waiting.insert(ticket, whose);
        }
        self.tell_machine(rack, Input::Request { ticket, write });
    }
}
