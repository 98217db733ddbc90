//! Clients: the state machine of RFC 2131 figure 5, with retransmissions, and the ways in which clients differ from it. And
//! the network between them and the racks, relay included.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use lease::VlanId;

use crate::message::{Answer, Kind, Query};
use crate::plan::{Plan, ms, vlan_id};
use crate::rng::Rng;
use crate::world::{Event, World, note};

/// RFC 2131 §4.1.
const RETRY_MAX: Duration = Duration::from_secs(64);
/// A REQUEST is sent so often; then the client begins anew (§3.1.5 leaves the number open; four take a minute).
const REQUESTS_MAX: u32 = 4;
/// Until it begins anew after a DECLINE (§3.1.5) or a NAK.
const DECLINED_WAIT: Duration = Duration::from_secs(10);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Off,
    Init,
    Selecting,
    Requesting,
    Rebooting,
    Bound,
    Renewing,
    Rebinding,
}

/// What a lease is counted from.
#[derive(Clone, Copy, Debug)]
enum From {
    /// §4.4.1 wants the sending of the REQUEST: its first, or its last copy.
    First,
    Last,
    /// dhclient and most firmware.
    Arrival,
}

#[derive(Clone, Copy, Debug)]
struct Held {
    address: Ipv4Addr,
    server: Ipv4Addr,
    /// True times, as the client's clock has them.
    renew: Duration,
    rebind: Duration,
    end: Duration,
}

#[derive(Debug)]
pub(crate) struct Client {
    index: usize,
    pub vlan: usize,
    /// How fast its clock is (parts per million).
    fast: i64,
    from: From,
    /// Takes the first OFFER; else it waits a second for others.
    hasty: bool,
    /// Goes on with a lease that nobody confirmed after a reboot (§3.2.3: it may).
    trusting: bool,
    phase: Phase,
    xid: u32,
    began: Duration,
    first_sent: Duration,
    last_sent: Duration,
    tries: u32,
    /// What it asks for, and of whom.
    wanted: Option<(Ipv4Addr, Ipv4Addr)>,
    held: Option<Held>,
    /// What it last held; a stale client asks for it again.
    last: Option<(Ipv4Addr, Ipv4Addr)>,
    stale: bool,
    turn: u64,
}

impl fmt::Display for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "client {} is {:?} with {:?}",
            self.index, self.phase, self.held
        )
    }
}

impl Client {
    pub fn new(plan: &Plan, index: usize, rng: &mut Rng) -> Self {
        let drift = plan.client_drift_ppm;
        let compliant = if rng.coin() { From::First } else { From::Last };
        Self {
            index,
            vlan: usize::from(index as u64 >= plan.clients),
            fast: rng.below(2 * drift + 1) as i64 - drift as i64,
            from: if rng.permille(plan.sloppy) {
                From::Arrival
            } else {
                compliant
            },
            hasty: rng.coin(),
            trusting: rng.coin(),
            phase: Phase::Init,
            xid: 0,
            began: Duration::ZERO,
            first_sent: Duration::ZERO,
            last_sent: Duration::ZERO,
            tries: 0,
            wanted: None,
            held: None,
            last: None,
            stale: rng.permille(plan.stale),
            turn: 0,
        }
    }

    pub fn is_bound(&self, now: Duration) -> bool {
        let settled = matches!(
            self.phase,
            Phase::Bound | Phase::Renewing | Phase::Rebinding
        );
        settled && self.held.is_some_and(|held| held.end > now)
    }

    /// A true time, by its clock.
    fn lasts(&self, length: Duration) -> Duration {
        length.mul_f64(1_000_000.0 / (1_000_000 + self.fast) as f64)
    }
}

impl World<'_> {
    pub fn client_timer(&mut self, client: usize, at: Duration) {
        let found = &mut self.clients[client];
        found.turn += 1;
        let turn = found.turn;
        self.at(at.max(self.now), Event::ClientTimer { client, turn });
    }

    pub fn on_client_timer(&mut self, index: usize, turn: u64) {
        let (now, client) = (self.now, &self.clients[index]);
        if client.turn != turn {
            return;
        }
        let ended = client.held.is_some_and(|held| held.end <= now);
        match client.phase {
            Phase::Off => {
                if client.held.is_some() && !ended {
                    self.begin_exchange(index, Phase::Rebooting);
                    self.send_request(index);
                } else {
                    self.come_back(index);
                }
            }
            Phase::Init => self.discover(index),
            Phase::Selecting if client.wanted.is_some() => self.take_offer(index),
            Phase::Selecting => self.send_discover(index),
            Phase::Requesting | Phase::Rebooting if client.tries < REQUESTS_MAX => {
                self.send_request(index);
            }
            Phase::Rebooting if client.trusting && client.held.is_some() && !ended => {
                note!(self, "client {index} goes on with its old lease");
                self.bound(index);
            }
            Phase::Requesting | Phase::Rebooting => self.begin_anew(index),
            Phase::Bound | Phase::Renewing | Phase::Rebinding if ended => {
                note!(self, "client {index}: its lease has ended");
                self.come_back(index);
            }
            Phase::Bound => {
                self.begin_exchange(index, Phase::Renewing);
                self.renew(index);
            }
            Phase::Renewing | Phase::Rebinding => self.renew(index),
        }
    }

    // ---------------------------------------------------------------- what it sends

    fn begin_exchange(&mut self, index: usize, phase: Phase) {
        let xid = self.rng.next() as u32; // any 32 bits
        let client = &mut self.clients[index];
        (client.phase, client.xid, client.tries) = (phase, xid, 0);
        client.began = self.now;
        if let (Phase::Rebooting | Phase::Renewing, Some(held)) = (phase, client.held) {
            client.wanted = Some((held.address, held.server));
        }
    }

    /// Without an address, from the start.
    fn begin_anew(&mut self, index: usize) {
        self.clients[index].held = None;
        self.oracle.let_go(index);
        self.discover(index);
    }

    /// Without a lease.
    fn come_back(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let last = client.last.take().filter(|_| client.stale);
        if last.is_none() {
            return self.begin_anew(index);
        }
        client.held = None;
        self.oracle.let_go(index);
        self.begin_exchange(index, Phase::Rebooting);
        self.clients[index].wanted = last;
        self.send_request(index);
    }

    fn discover(&mut self, index: usize) {
        self.begin_exchange(index, Phase::Selecting);
        self.clients[index].wanted = None;
        self.send_discover(index);
    }

    fn send_discover(&mut self, index: usize) {
        let query = self.query(index, Kind::Discover);
        self.send(query);
        self.retry_later(index);
    }

    fn take_offer(&mut self, index: usize) {
        let client = &mut self.clients[index];
        (client.phase, client.tries) = (Phase::Requesting, 0);
        self.send_request(index);
    }

    /// In SELECTING's and INIT-REBOOT's form (§4.3.2, table 4).
    fn send_request(&mut self, index: usize) {
        self.stamp(index);
        let client = &self.clients[index];
        let Some((address, server)) = client.wanted else {
            return;
        };
        let query = Query {
            requested: Some(address),
            server: (client.phase == Phase::Requesting).then_some(server),
            ..self.query(index, Kind::Request)
        };
        self.send(query);
        self.retry_later(index);
    }

    /// In RENEWING to the server, in REBINDING to all; again after half of what is left (§4.4.5).
    fn renew(&mut self, index: usize) {
        let now = self.now;
        let Some(held) = self.clients[index].held else {
            return;
        };
        let rebinds = now >= held.rebind;
        let client = &mut self.clients[index];
        if rebinds && client.phase == Phase::Renewing {
            client.phase = Phase::Rebinding;
        }
        let next = if rebinds { held.end } else { held.rebind };
        self.stamp(index);
        self.clients[index].tries += 1;
        let query = Query {
            ciaddr: Some(held.address),
            server: (!rebinds).then_some(held.server),
            unicast: !rebinds,
            ..self.query(index, Kind::Request)
        };
        self.send(query);
        let half = next.saturating_sub(now) / 2;
        self.client_timer(index, (now + half.max(ms(self.plan.retry_ms))).min(next));
    }

    /// One more copy of the REQUEST leaves.
    fn stamp(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.tries == 0 {
            client.first_sent = self.now;
        }
        client.last_sent = self.now;
    }

    /// Doubled each time, give or take a quarter (§4.1).
    fn retry_later(&mut self, index: usize) {
        let client = &mut self.clients[index];
        let pause = (ms(self.plan.retry_ms) * (1 << client.tries.min(6))).min(RETRY_MAX);
        client.tries += 1;
        let wait = self.rng.between(pause * 3 / 4, pause * 5 / 4);
        self.client_timer(index, self.now + wait);
    }

    fn query(&self, index: usize, kind: Kind) -> Query {
        let client = &self.clients[index];
        Query {
            kind,
            client: index,
            vlan: client.vlan,
            xid: client.xid,
            secs: (self.now - client.began).as_secs().min(u16::MAX.into()) as u16,
            ciaddr: None,
            requested: None,
            server: None,
            unicast: false,
            relayed: false,
        }
    }

    // ---------------------------------------------------------------- what it gets

    pub fn at_client(&mut self, answer: &Answer) {
        let index = answer.client;
        let client = &mut self.clients[index];
        let heard = client.phase != Phase::Off && client.vlan == answer.vlan;
        if !heard || client.xid != answer.xid {
            return;
        }
        match (answer.kind, client.phase) {
            (Kind::Offer, Phase::Selecting) => {
                let first = client.wanted.is_none();
                if first || self.rng.coin() {
                    client.wanted = Some((answer.address, answer.server));
                }
                if client.hasty {
                    self.take_offer(index);
                } else if first {
                    self.client_timer(index, self.now + ms(1_000));
                }
            }
            (
                Kind::Ack,
                Phase::Requesting | Phase::Rebooting | Phase::Renewing | Phase::Rebinding,
            ) => self.acknowledged(index, answer),
            (
                Kind::Nak,
                Phase::Requesting | Phase::Rebooting | Phase::Renewing | Phase::Rebinding,
            ) => {
                (client.held, client.phase) = (None, Phase::Init);
                note!(self, "client {index} is refused");
                self.oracle.let_go(index);
                self.client_timer(index, self.now + ms(1_000));
            }
            _ => {}
        }
    }

    fn acknowledged(&mut self, index: usize, answer: &Answer) {
        let Some(lease) = answer.lease else { return };
        let client = &mut self.clients[index];
        let first_use = matches!(client.phase, Phase::Requesting | Phase::Rebooting);
        if first_use && !self.quiet && self.rng.permille(self.plan.decline) {
            return self.decline(index, answer);
        }
        let from = match client.from {
            From::First => client.first_sent,
            From::Last => client.last_sent,
            From::Arrival => self.now,
        };
        let lasts = client.lasts(lease);
        client.last = Some((answer.address, answer.server));
        client.held = Some(Held {
            address: answer.address,
            server: answer.server,
            renew: from + lasts / 2,
            rebind: from + lasts * 7 / 8,
            end: from + lasts,
        });
        note!(
            self,
            "client {index} holds {} until {:?}",
            answer.address,
            from + lasts
        );
        self.bound(index);
    }

    fn bound(&mut self, index: usize) {
        let client = &mut self.clients[index];
        client.phase = Phase::Bound;
        let Some(held) = client.held else { return };
        self.client_timer(index, held.renew);
        if let Err(both) = self.oracle.hold(index, held.address, held.end, self.now) {
            self.fail(both);
        }
    }

    /// Somebody answers ARP for the address (§3.1.5).
    fn decline(&mut self, index: usize, answer: &Answer) {
        note!(self, "client {index} finds {} in use", answer.address);
        let query = Query {
            requested: Some(answer.address),
            server: Some(answer.server),
            ..self.query(index, Kind::Decline)
        };
        self.send(query);
        let client = &mut self.clients[index];
        (client.held, client.phase) = (None, Phase::Init);
        self.oracle.let_go(index);
        self.client_timer(index, self.now + DECLINED_WAIT);
    }

    // ---------------------------------------------------------------- what it takes into its head

    pub fn on_whim(&mut self, index: usize) {
        if self.quiet {
            return;
        }
        let lease = self.plan.lease();
        let held = self.clients[index].held;
        match self.rng.below(9) {
            // Power off and on; it remembers its address.
            0 | 1 => {
                let wait = self.rng.skewed(ms(20_000));
                self.switch_off(index, wait);
            }
            2 => {
                let wait = self.rng.between(Duration::ZERO, 5 * lease + ms(180_000));
                self.switch_off(index, wait);
            }
            // It forgets its address: another system boots.
            3 => {
                note!(self, "client {index} forgets");
                self.begin_anew(index);
            }
            4 | 5 => {
                if let Some(held) = held {
                    self.release(index, held);
                }
            }
            // It does not renew any more.
            6 => {
                if let Some(held) = held {
                    note!(self, "client {index} falls silent");
                    self.clients[index].phase = Phase::Bound;
                    self.client_timer(index, held.end);
                }
            }
            7 if self.plan.relayed > 0 => {
                let client = &mut self.clients[index];
                client.vlan = 1 - client.vlan;
                note!(self, "client {index} moves");
                let wait = self.rng.skewed(ms(5_000));
                self.switch_off(index, wait);
            }
            _ => {
                if let Some(held) = held
                    && self.clients[index].phase == Phase::Bound
                {
                    let xid = self.rng.next() as u32;
                    let query = self.query(index, Kind::Inform);
                    self.send(Query {
                        xid,
                        ciaddr: Some(held.address),
                        ..query
                    });
                }
            }
        }
        let next = self.rng.gap(ms(self.plan.whim_ms));
        self.after(next, Event::Whim { client: index });
    }

    /// The lease is on its disk, and counts as held: it may come back to it.
    fn switch_off(&mut self, index: usize, wait: Duration) {
        note!(self, "client {index} is off for {wait:?}");
        self.clients[index].phase = Phase::Off;
        self.client_timer(index, self.now + wait);
    }

    fn release(&mut self, index: usize, held: Held) {
        note!(self, "client {index} gives {} back", held.address);
        let xid = self.rng.next() as u32;
        let query = Query {
            xid,
            ciaddr: Some(held.address),
            server: Some(held.server),
            unicast: true,
            ..self.query(index, Kind::Release)
        };
        self.send(query);
        self.clients[index].held = None;
        self.oracle.let_go(index);
        // Half of them think better of it at once.
        let wait = if self.rng.coin() {
            Duration::ZERO
        } else {
            self.rng.skewed(3 * self.plan.lease())
        };
        self.clients[index].phase = Phase::Init;
        self.client_timer(index, self.now + wait);
    }

    /// The client that is on and uses the address.
    pub fn user_of(&self, vlan: VlanId, address: Ipv4Addr) -> Option<usize> {
        let uses = |client: &Client| {
            let on = matches!(
                client.phase,
                Phase::Bound | Phase::Renewing | Phase::Rebinding
            );
            on && vlan_id(client.vlan) == vlan
                && (client.held).is_some_and(|held| held.address == address && held.end > self.now)
        };
        self.clients.iter().position(uses)
    }

    /// Nobody answers a probe. In whose name a RELEASE of the address was heard has lost it (decisions/0013): a client that is off
    /// or cut off, and whose RELEASE was older than its lease. What it would go on with it asks for, or begins anew.
    pub fn nobody_answers(&mut self, address: Ipv4Addr) {
        for index in self.oracle.gone(address) {
            let client = &mut self.clients[index];
            if client.held.is_some_and(|held| held.address == address) {
                client.held = None;
            }
        }
    }

    /// The faults are over: everybody is on, and asks.
    pub fn wake_clients(&mut self) {
        for index in 0..self.clients.len() {
            if matches!(self.clients[index].phase, Phase::Off | Phase::Init) {
                let wait = self.rng.between(Duration::ZERO, ms(5_000));
                self.client_timer(index, self.now + wait);
            }
        }
    }

    // ---------------------------------------------------------------- the network

    /// How long a packet is under way; twice for one that is doubled, not at all for one that is lost.
    fn passes(&mut self) -> Vec<Duration> {
        let plan = self.plan;
        let copies = 1 + usize::from(!self.quiet && self.rng.permille(plan.double));
        let mut passes = vec![];
        for _ in 0..copies {
            if !self.quiet && self.rng.permille(plan.loss) {
                continue;
            }
            let slow = !self.quiet && self.rng.permille(plan.slow);
            passes.push(if slow {
                self.rng.skewed(ms(plan.slow_ms))
            } else {
                self.rng
                    .between(Duration::from_micros(100), Duration::from_micros(2_000))
            });
        }
        passes
    }

    fn send(&mut self, query: Query) {
        note!(
            self,
            "client {} sends {:?} {:08x} ciaddr {:?} requested {:?} server {:?}",
            query.client,
            query.kind,
            query.xid,
            query.ciaddr,
            query.requested,
            query.server
        );
        self.report.queries += 1;
        if query.unicast {
            let rack = query
                .server
                .map(|server| server.octets()[3].wrapping_sub(1));
            // Who renews does not name the server in the message (§4.3.2).
            let server = query.server.filter(|_| query.kind != Kind::Request);
            let query = Query { server, ..query };
            if let Some(rack) = rack
                .map(usize::from)
                .filter(|rack| *rack < self.racks.len())
            {
                self.ask_rack(rack, &query);
            }
        } else if query.vlan == 0 {
            (0..self.racks.len()).for_each(|rack| self.ask_rack(rack, &query));
        } else {
            for pass in self.passes() {
                self.after(pass, Event::AtRelay(query.clone()));
            }
        }
    }

    fn ask_rack(&mut self, rack: usize, query: &Query) {
        for pass in self.passes() {
            self.after(
                pass,
                Event::AtRack {
                    rack,
                    query: query.clone(),
                },
            );
        }
    }

    pub fn at_relay(&mut self, query: Query) {
        if self.now < self.relay_down_until {
            return;
        }
        let query = Query {
            relayed: true,
            ..query
        };
        (0..self.racks.len()).for_each(|rack| self.ask_rack(rack, &query));
    }

    /// A rack's answer leaves.
    pub fn send_answer(&mut self, answer: &Answer) {
        for pass in self.passes() {
            let answer = answer.clone();
            let event = if answer.relayed {
                Event::FromRelay(answer)
            } else {
                Event::AtClient(answer)
            };
            self.after(pass, event);
        }
    }

    pub fn on_relayed(&mut self, answer: Answer) {
        if self.now < self.relay_down_until {
            return;
        }
        for pass in self.passes() {
            self.after(pass, Event::AtClient(answer.clone()));
        }
    }
}
