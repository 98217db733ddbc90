//! Everything there is, and time: a queue of what happens next.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use lease::rack::{Input, LinkId};
use lease::{DECLINE_QUARANTINE, TAKE_AWAY_GRACE, VlanId, Write};

use crate::Failure;
use crate::client::Client;
use crate::database::Database;
use crate::message::{Answer, Query};
use crate::oracle::Oracle;
use crate::plan::{Plan, ms};
use crate::rack::Site;
use crate::region::{Region, Request};
use crate::rng::Rng;
use crate::shard::{Ticket, Word};

/// Writes a line of the trace; costs nothing where none is kept.
macro_rules! note {
    ($world:expr, $($arg:tt)*) => {
        if $world.trace.is_some() {
            let line = format!($($arg)*);
            $world.note(line);
        }
    };
}
pub(crate) use note;

/// Events at one moment at most: beyond, something spins.
const EVENTS_AT_ONCE_MAX: u32 = 20_000;
/// How often regions look after blocks and keys.
const SETTLE_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub(crate) enum Event {
    AtRelay(Query),
    AtRack {
        rack: usize,
        query: Query,
    },
    FromRelay(Answer),
    AtClient(Answer),
    ClientTimer {
        client: usize,
        turn: u64,
    },
    Whim {
        client: usize,
    },

    RackTick {
        rack: usize,
        life: u32,
    },
    ShardTick {
        rack: usize,
        life: u32,
        shard: usize,
    },
    ToLink {
        rack: usize,
        life: u32,
        shard: usize,
        ticket: Option<Ticket>,
        write: Write,
    },
    ToShard {
        rack: usize,
        life: u32,
        shard: usize,
        word: Word,
    },
    /// From one shard to another.
    Pass {
        rack: usize,
        life: u32,
        to: usize,
        word: Word,
    },
    /// An ARP probe is at its end.
    Probed {
        rack: usize,
        life: u32,
        shard: usize,
        vlan: VlanId,
        address: Ipv4Addr,
    },
    Feed {
        rack: usize,
        life: u32,
    },
    Spool {
        rack: usize,
        life: u32,
    },
    Doubt {
        rack: usize,
        life: u32,
    },
    Restart {
        rack: usize,
    },
    Connect {
        rack: usize,
        life: u32,
        region: usize,
    },
    LinkDown {
        rack: usize,
        life: u32,
        region: usize,
        link: LinkId,
    },
    /// `link`: the connection it comes by; None: the rack gave up waiting.
    Answered {
        rack: usize,
        life: u32,
        link: Option<(usize, LinkId)>,
        input: Input,
    },

    Request(Request),
    RestartRegion {
        region: usize,
    },
    Settle,
    Replicate,
    EndHold,

    Nemesis,
    CutOff {
        rack: usize,
    },
    Quiet,
}

struct Due {
    at: Duration,
    /// Of two at one time the first that was planned.
    order: u64,
    event: Event,
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}

impl Eq for Due {}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Due {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// What happened in a run that went well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub events: u64,
    /// How long it took until every client had a lease, once the faults were off.
    pub recovery: Duration,
    /// True time in all.
    pub length: Duration,
    pub faults: u64,
    pub queries: u64,
    pub acks: u64,
    pub naks: u64,
    pub commits: u64,
    pub attaches: u64,
    pub detached: u64,
    pub spooled: u64,
    pub drained_refused: u64,
    pub moves: u64,
    /// Released addresses asked for because nobody answered for them.
    pub taken_back: u64,
}

impl std::ops::AddAssign for Report {
    fn add_assign(&mut self, other: Self) {
        self.events += other.events;
        self.recovery = self.recovery.max(other.recovery);
        self.length += other.length;
        self.faults += other.faults;
        self.queries += other.queries;
        self.acks += other.acks;
        self.naks += other.naks;
        self.commits += other.commits;
        self.attaches += other.attaches;
        self.detached += other.detached;
        self.spooled += other.spooled;
        self.drained_refused += other.drained_refused;
        self.moves += other.moves;
        self.taken_back += other.taken_back;
    }
}

pub(crate) struct World<'p> {
    pub seed: u64,
    pub plan: &'p Plan,
    pub rng: Rng,
    /// True time.
    pub now: Duration,
    /// What the racks' clocks are counted from; differences only, so that no run depends on it.
    pub base: Instant,
    queue: BinaryHeap<Reverse<Due>>,
    order: u64,

    pub database: Database,
    pub regions: [Region; 2],
    pub racks: Vec<Site>,
    pub clients: Vec<Client>,
    pub relay_down_until: Duration,
    /// What racks asked for, the newest last.
    pub history: VecDeque<Request>,
    /// The database has lost commits that a rack may still count on until then.
    pub lost_until: Duration,
    pub quiet: bool,

    pub oracle: Oracle,
    pub report: Report,
    pub trace: Option<VecDeque<String>>,
    pub trace_max: usize,
    pub failure: Option<String>,
}

impl<'p> World<'p> {
    pub fn new(seed: u64, plan: &'p Plan, trace: Option<VecDeque<String>>) -> Self {
        let mut rng = Rng::new(seed);
        let racks = (0..plan.racks as usize)
            .map(|rack| Site::new(plan, rack, &mut rng))
            .collect();
        let clients = (0..plan.clients_in_all()).map(|index| Client::new(plan, index, &mut rng));
        let mut world = Self {
            seed,
            plan,
            clients: clients.collect(),
            rng,
            now: Duration::ZERO,
            base: Instant::now(),
            queue: BinaryHeap::new(),
            order: 0,
            database: Database::new(plan),
            regions: [Region::default(); 2],
            racks,
            relay_down_until: Duration::ZERO,
            history: VecDeque::new(),
            lost_until: Duration::ZERO,
            quiet: false,
            oracle: Oracle::new(plan),
            report: Report::default(),
            trace,
            trace_max: usize::MAX,
            failure: None,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        for rack in 0..self.racks.len() {
            self.after(Duration::ZERO, Event::Restart { rack });
        }
        for client in 0..self.clients.len() {
            let wait = self.rng.between(Duration::ZERO, ms(10_000));
            self.client_timer(client, self.now + wait);
            let whim = self.rng.gap(ms(self.plan.whim_ms));
            self.after(whim, Event::Whim { client });
        }
        self.after(SETTLE_EVERY, Event::Settle);
        if self.plan.promote_lossy > 0 {
            self.after(Duration::ZERO, Event::Replicate);
        }
        let first = self.rng.gap(ms(self.plan.fault_every_ms));
        self.after(first, Event::Nemesis);
        self.after(ms(self.plan.length_ms), Event::Quiet);
    }

    /// To the end: all clients have their leases, or something went wrong.
    pub fn live(&mut self) -> Result<Report, Failure> {
        let quiet_from = ms(self.plan.length_ms);
        let end = quiet_from + self.patience();
        let mut at_once = 0;
        while let Some(Reverse(due)) = self.queue.pop() {
            at_once = if self.now == due.at { at_once + 1 } else { 0 };
            if at_once > EVENTS_AT_ONCE_MAX {
                self.fail(format!("spins: {:?}", due.event));
            }
            self.now = due.at;
            self.report.events += 1;
            self.happen(due.event);
            if let Some(violation) = self.oracle.look(&self.database, &self.racks, self.now) {
                self.fail(violation);
            }
            if self.quiet && self.failure.is_none() && self.all_have_leases() {
                self.report.recovery = self.now - quiet_from;
                break;
            }
            if self.now > end {
                let waiting: Vec<String> = self.clients.iter().map(Client::to_string).collect();
                self.fail(format!(
                    "liveness: the faults are over, but {}",
                    waiting.join(", ")
                ));
            }
            if let Some(what) = self.failure.take() {
                return Err(self.failed(what));
            }
        }
        self.report.length = self.now;
        for site in &self.racks {
            self.report += site.past;
            site.count(&mut self.report);
        }
        Ok(self.report)
    }

    /// Within what time everybody must have a lease again: what may still be held back for good reason, one after the other.
    fn patience(&self) -> Duration {
        let plan = self.plan;
        let hold = if plan.promote + plan.promote_lossy > 0 {
            plan.hold()
        } else {
            Duration::ZERO
        };
        let leases = 8 * plan.lease() + 4 * TAKE_AWAY_GRACE + 2 * DECLINE_QUARANTINE;
        (hold + leases).mul_f64(1.05) + ms(plan.late_ms) + ms(1_200_000)
    }

    /// As many of each VLAN as there are addresses.
    fn all_have_leases(&self) -> bool {
        let addresses = self.plan.racks * self.plan.blocks * self.plan.addresses;
        (0..self.plan.vlans()).all(|vlan| {
            let there = self.clients.iter().filter(|client| client.vlan == vlan);
            let (all, bound) = there.fold((0, 0), |(all, bound), client| {
                (all + 1, bound + u64::from(client.is_bound(self.now)))
            });
            bound >= all.min(addresses)
        })
    }

    fn failed(&mut self, what: String) -> Failure {
        Failure {
            seed: self.seed,
            plan: self.plan.to_string(),
            at: self.now,
            what,
            trace: self.take_trace(),
        }
    }

    pub fn fail(&mut self, what: String) {
        self.failure.get_or_insert(what);
    }

    pub fn take_trace(&mut self) -> Vec<String> {
        self.trace.take().map(Vec::from).unwrap_or_default()
    }

    pub fn note(&mut self, line: String) {
        let now = self.now;
        if let Some(trace) = &mut self.trace {
            if trace.len() >= self.trace_max {
                trace.pop_front();
            }
            trace.push_back(format!("{:>12.6} {line}", now.as_secs_f64()));
        }
    }

    // ---------------------------------------------------------------- time

    pub fn at(&mut self, at: Duration, event: Event) {
        self.order += 1;
        self.queue.push(Reverse(Due {
            at,
            order: self.order,
            event,
        }));
    }

    pub fn after(&mut self, wait: Duration, event: Event) {
        self.at(self.now + wait, event);
    }

    fn happen(&mut self, event: Event) {
        if let Some(later) = self.paused(&event) {
            return self.at(later, event);
        }
        match event {
            Event::AtRelay(query) => self.at_relay(query),
            Event::AtRack { rack, query } => self.at_rack(rack, &query),
            Event::FromRelay(answer) => self.on_relayed(answer),
            Event::AtClient(answer) => self.at_client(&answer),
            Event::ClientTimer { client, turn } => self.on_client_timer(client, turn),
            Event::Whim { client } => self.on_whim(client),
            Event::RackTick { rack, life } => self.on_rack_tick(rack, life),
            Event::ShardTick { rack, life, shard } => self.on_shard_tick(rack, life, shard),
            Event::ToLink {
                rack,
                life,
                shard,
                ticket,
                write,
            } => {
                self.at_link(rack, life, shard, ticket, write);
            }
            Event::ToShard {
                rack,
                life,
                shard,
                word,
            } => self.at_shard(rack, life, shard, word),
            Event::Pass {
                rack,
                life,
                to,
                word,
            } => self.on_pass(rack, life, to, word),
            Event::Probed {
                rack,
                life,
                shard,
                vlan,
                address,
            } => self.on_probed(rack, life, shard, vlan, address),
            Event::Feed { rack, life } => self.on_feed(rack, life),
            Event::Spool { rack, life } => self.on_spool(rack, life),
            Event::Doubt { rack, life } => self.on_doubt(rack, life),
            Event::Restart { rack } => self.start_rack(rack),
            Event::Connect { rack, life, region } => self.connect(rack, life, region),
            Event::LinkDown {
                rack,
                life,
                region,
                link,
            } => {
                self.link_down(rack, life, region, link);
            }
            Event::Answered {
                rack,
                life,
                link,
                input,
            } => self.answered(rack, life, link, input),
            Event::Request(request) => self.on_request(request),
            Event::RestartRegion { region } => self.start_region(region),
            Event::Settle => {
                self.on_settle();
                self.after(SETTLE_EVERY, Event::Settle);
            }
            Event::Replicate => self.on_replicate(),
            Event::EndHold => self.on_end_hold(),
            Event::Nemesis => self.on_nemesis(),
            Event::CutOff { rack } => {
                let length = self.rng.skewed(ms(self.plan.fault_ms));
                self.cut_off(rack, length);
            }
            Event::Quiet => self.on_quiet(),
        }
    }

    /// What happens to a process that stands still happens when it goes on, in order.
    fn paused(&self, event: &Event) -> Option<Duration> {
        let until = match event {
            Event::AtRack { rack, .. }
            | Event::RackTick { rack, .. }
            | Event::ShardTick { rack, .. }
            | Event::ToLink { rack, .. }
            | Event::ToShard { rack, .. }
            | Event::Pass { rack, .. }
            | Event::Probed { rack, .. }
            | Event::Feed { rack, .. }
            | Event::Spool { rack, .. }
            | Event::Doubt { rack, .. }
            | Event::Connect { rack, .. }
            | Event::LinkDown { rack, .. }
            | Event::Answered { rack, .. } => self.racks[*rack].paused_until,
            Event::Request(request) => self.regions[request.region].paused_until,
            _ => return None,
        };
        (until > self.now).then_some(until)
    }
}
