//! The DHCP engine in arbitrary stories: clients of every kind, one or two racks of one or two shards, a region that
//! decides by its real rules and answers late or never, crashes, a configuration that changes, a clock that goes
//! forward.
//!
//! ```text
//!   input --> message --> Engine(s) --> Reply  --> checks: what does it answer? may it promise that?
//!                            ^     \--> Lease  --> Region (lease::region::decide) --+
//!                            +--------------------- Outcome ------------------------+
//! ```
//! What is checked: no address is promised to two clients at once; no ACK promises longer than a durable end or
//! `until`; every reply answers one query, once, with its xid, chaddr, giaddr and echoes; every message is answered,
//! counted as dropped, or waits; limits hold; no panic. Not here: the spool and detached racks (`lease_rack`).
//!
//! In five files: this one has the story; `site` the configuration; `message` what clients send; `region` the rows;
//! `check` what is promised and answered.

mod check;
mod message;
mod region;
mod site;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use dhcp::{
    BootReply, Engine, Limits, Mode, Out, Outbox, Probe, Probed, Rate, Received, Sender, Sent,
    Shard, Ticket, owner,
};
use lease::{Outcome, Refusal, Write};
use wire::dhcp4::{Joined, MessageType, View};

use self::check::{Ledger, Tally};
use self::message::Message;
use self::region::Region;
use self::site::{Change, SERVERS, Site};
use crate::{one_of, pick};

const STEPS_MAX: u32 = 500;
/// Writes on their way; the oldest is lost when there are more.
const FLIGHTS_MAX: usize = 12;
/// The engine's own bound on probes under way.
const PROBES_MAX: usize = 32;
/// Replies between two drains of an outbox: few, so that it fills up now and then.
const OUTBOX_REPLIES: usize = 3;

/// An arbitrary story.
pub fn dhcp_engine(input: &[u8]) {
    tell(input);
}

/// The story's last state.
fn tell(input: &[u8]) -> Story {
    let mut input = Unstructured::new(input);
    let mut story = Story::new(&mut input);
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        story.step(&mut input);
    }
    story.end();
    story
}

/// A write on its way to the region.
struct Flight {
    rack: usize,
    shard: usize,
    ticket: Ticket,
    write: Write,
}

/// One shard of a rack.
struct Station {
    engine: Engine,
    out: Outbox,
    /// Under way.
    probes: Vec<Probe>,
    tally: Tally,
}

struct Rack {
    stations: Vec<Station>,
    site: Site,
    /// The latest that its shards were told.
    until: Instant,
}

struct Story {
    racks: Vec<Rack>,
    shards: u32,
    region: Region,
    flights: Vec<Flight>,
    now: Instant,
    ledger: Ledger,
    limits: Limits,
    seed: u64,
}

/// What `boot` may have chosen.
const BOOTS: [BootReply<'static>; 3] = [
    BootReply {
        next_server: None,
        file: "",
        vendor_class: None,
        vendor_options: None,
        vendor_identifying: None,
        path_prefix: None,
        hostname: "",
    },
    BootReply {
        next_server: Some(SERVERS[0]),
        file: "bootx64.efi",
        vendor_class: Some(b"HTTPClient"),
        vendor_options: None,
        vendor_identifying: None,
        path_prefix: Some("http://10.99.0.1:5248/"),
        hostname: "node-1",
    },
    BootReply {
        next_server: Some(SERVERS[0]),
        // Longer than the field it would stand in.
        file: "http://10.99.0.1:5248/a/name/that/is/longer/than/the/one/hundred/and/twenty/eight/octets/of/\
               the/file/field/of/a/message/and/goes/on/bootaa64.efi",
        vendor_class: None,
        vendor_options: Some(&[6, 1, 8, 255]),
        vendor_identifying: Some(&[0, 0, 0x9f, 0x7f, 2, 1, 0]),
        path_prefix: None,
        hostname: "",
    },
];

/// What the rack knows of who sent it.
fn sender(message: &Message, giaddr: Ipv4Addr) -> Sender {
    match (giaddr.is_unspecified(), message.source.is_unspecified()) {
        (false, _) => Sender::TrustedRelay,
        (true, false) if !message.destination.is_broadcast() => Sender::Datagram,
        (true, _) => Sender::Frame,
    }
}

fn limits(input: &mut Unstructured<'_>) -> Limits {
    let rate = |input: &mut Unstructured<'_>| Rate {
        burst: 5,
        per_sec: one_of(input, &[0, 0, 0, 0, 1]),
    };
    Limits {
        addresses_max: one_of(input, &[1 << 10, 1 << 10, 1 << 10, 6]),
        offers_max: one_of(input, &[4, 1]),
        pending_max: one_of(input, &[64, 3]),
        mac_rate: rate(input),
        excess_rate: Rate {
            burst: 1,
            per_sec: 1,
        },
        circuit_rate: rate(input),
        leases_per_circuit_max: one_of(input, &[0, 0, 1]),
        probe_stock: one_of(input, &[0, 2]),
    }
}

impl Story {
    fn new(input: &mut Unstructured<'_>) -> Self {
        let now = Instant::now();
        let racks = 1 + pick(input, 2) as usize;
        let rack = |rack| Rack {
            stations: vec![],
            site: Site::new(rack, racks),
            until: now,
        };
        let mut story = Self {
            racks: (0..racks).map(rack).collect(),
            shards: 1 + pick(input, 2),
            region: Region::new(now, racks),
            flights: vec![],
            now,
            ledger: Ledger::default(),
            limits: limits(input),
            seed: u64::from(pick(input, 256)),
        };
        for rack in 0..racks {
            story.start(rack);
            story.attach(rack, input);
        }
        story
    }

    fn step(&mut self, input: &mut Unstructured<'_>) {
        match pick(input, 32) {
            0..=13 => {
                for _ in 0..one_of(input, &[1, 1, 1, 6]) {
                    self.client_speaks(input);
                }
                self.collect();
            }
            14..=20 => self.region_answers(input),
            21 | 22 => self.region_is_silent(input),
            23..=25 => {
                let secs = match pick(input, 20) {
                    19 => 90_000,
                    n => [1, 5, 30, 61, 300, 601, 1_300][n as usize % 7],
                };
                self.now += Duration::from_secs(secs);
            }
            26 | 27 => self.time_passes(),
            28 => self.probe_ends(input),
            29 => {
                let change = Change::arbitrary(input);
                for rack in &mut self.racks {
                    rack.site.change(&change);
                }
            }
            30 => {
                let rack = self.rack(input);
                self.attach(rack, input);
            }
            _ => self.misfortune(input),
        }
    }

    fn rack(&self, input: &mut Unstructured<'_>) -> usize {
        pick(input, self.racks.len() as u32) as usize
    }

    // ---------------------------------------------------------------- a rack's life

    fn start(&mut self, rack: usize) {
        let count = self.shards;
        let station = |index| Station {
            engine: Engine::new(Shard { index, count }, self.limits, self.seed, self.now),
            out: Outbox::new(OUTBOX_REPLIES),
            probes: vec![],
            tally: Tally::default(),
        };
        self.racks[rack].stations = (0..count).map(station).collect();
    }

    fn attach(&mut self, rack: usize, input: &mut Unstructured<'_>) {
        // The request was sent before the region answered.
        let sent = self.now;
        self.now += Duration::from_secs(pick(input, 3).into());
        let (blocks, rows) = self.region.attach(rack, self.now);
        self.now += Duration::from_secs(pick(input, 3).into());
        let until = sent + Duration::from_secs(one_of(input, &[86_400, 86_400, 5_000, 300]));
        let Rack { stations, site, .. } = &mut self.racks[rack];
        for station in stations {
            station.probes.clear();
            let engine = &mut station.engine;
            engine.attach(&blocks, &rows, until, sent, site, self.now);
        }
        self.racks[rack].until = until;
    }

    fn misfortune(&mut self, input: &mut Unstructured<'_>) {
        let rack = self.rack(input);
        match pick(input, 4) {
            0 => {
                // The process dies: its writes may still run, but nobody hears of them.
                self.start(rack);
                let own = |flight: &&mut Flight| flight.rack == rack;
                for flight in self.flights.iter_mut().filter(own) {
                    flight.ticket = Ticket::UNAWAITED;
                }
            }
            1 => {
                let shard = pick(input, self.shards) as usize;
                let station = &mut self.racks[rack].stations[shard];
                station.probes.clear();
                station.engine.forget();
            }
            _ => {
                // A heartbeat is answered.
                let rack = &mut self.racks[rack];
                rack.until = rack.until.max(self.now + Duration::from_secs(5_000));
                for station in &mut rack.stations {
                    station.engine.set_until(rack.until);
                }
            }
        }
    }

    fn time_passes(&mut self) {
        for Rack { stations, site, .. } in &mut self.racks {
            for station in stations {
                station.engine.tick(self.now, &mut station.out);
                while let Some(probe) = station.engine.next_probe(site, self.now) {
                    // Those that are overdue are the engine's no more.
                    if station.probes.len() >= PROBES_MAX {
                        station.probes.remove(0);
                    }
                    station.probes.push(probe);
                }
            }
        }
        self.collect();
    }

    fn probe_ends(&mut self, input: &mut Unstructured<'_>) {
        let (rack, shard) = (self.rack(input), pick(input, self.shards) as usize);
        let station = &mut self.racks[rack].stations[shard];
        if station.probes.is_empty() {
            return;
        }
        let chosen = pick(input, station.probes.len() as u32) as usize;
        let Probe { vlan, address } = station.probes.swap_remove(chosen);
        let probed = match pick(input, 4) {
            0 => Probed::InUse(message::mac(1 + pick(input, 12) as u8)),
            1 => Probed::Unknown,
            _ => Probed::Unused,
        };
        let (engine, out) = (&mut station.engine, &mut station.out);
        engine.on_probed(vlan, address, probed, self.now, out);
        self.collect();
    }

    // ---------------------------------------------------------------- clients

    fn client_speaks(&mut self, input: &mut Unstructured<'_>) {
        let who = 1 + pick(input, message::CLIENTS) as u8;
        let known = self.ledger.known(who, input);
        let message = Message::arbitrary(input, who, self.ledger.next_xid(), &known);
        let boot = &BOOTS[pick(input, 3) as usize];
        // A broadcast may be lost on its way to one of two racks.
        let deaf = pick(input, 5) as usize;
        for rack in 0..self.racks.len() {
            let addressed = SERVERS
                .iter()
                .position(|server| *server == message.destination);
            let elsewhere = addressed.is_some_and(|addressed| addressed != rack);
            if !elsewhere && deaf != rack + 3 {
                self.deliver(rack, &message, boot);
            }
        }
        self.ledger.ask(who, message.octets);
    }

    fn deliver(&mut self, rack: usize, message: &Message, boot: &BootReply<'_>) {
        let mut room = Joined::default();
        let parsed = View::parse(&message.octets).and_then(|view| view.joined(&mut room));
        let Ok(view) = parsed else {
            return;
        };
        let Rack { stations, site, .. } = &mut self.racks[rack];
        let received = Received {
            link: &site.links[0],
            source: message.source,
            destination: message.destination,
            sender: sender(message, view.giaddr()),
        };
        let shard = owner(&view, &received, site, self.shards).unwrap_or(0);
        let Station { engine, out, .. } = &mut stations[shard as usize];
        let before = (check::waits(engine), check::replies(engine));
        let dropped = engine.counters().dropped_in_all();
        let to_proxy =
            message.destination != Ipv4Addr::BROADCAST && site.links[0].mode == Mode::Proxy;
        let why = if to_proxy {
            let from = SocketAddrV4::new(message.source, 68);
            engine.on_proxy_request(&view, &received, from, boot, site, self.now, out)
        } else {
            engine.on_message(&view, &received, boot, site, self.now, out)
        };
        let counted = engine.counters().dropped_in_all() - dropped;
        assert_eq!(counted, u64::from(why.is_some()), "{why:?} counts once");
        let answered = check::replies(engine) - before.1;
        let waits = check::waits(engine) - before.0;
        let silent = matches!(
            view.message_type(),
            Some(MessageType::Decline | MessageType::Release)
        );
        match why {
            Some(why) => assert_eq!(answered, 0, "dropped as {why:?}, and answered"),
            None => assert!(
                answered == 1 || (answered == 0 && (waits > 0 || silent)),
                "neither answered nor dropped, and nothing waits: {view:?}"
            ),
        }
        let usage = engine.usage();
        assert!(usage.free + usage.offered + usage.bound <= usage.addresses);
        // Who has a reservation gets its offer beyond the limit.
        let offers_max = self.limits.offers_max + site::RESERVATIONS;
        assert!(usage.offered <= offers_max, "{usage:?}");
    }

    // ---------------------------------------------------------------- the region

    /// A write runs at the region. Its answer arrives, or is lost on the way back.
    fn region_answers(&mut self, input: &mut Unstructured<'_>) {
        if self.flights.is_empty() {
            return;
        }
        let chosen = pick(input, self.flights.len() as u32) as usize;
        let flight = self.flights.remove(chosen);
        let outcome = self.region.commit(flight.rack, &flight.write, self.now);
        let lost = pick(input, 6) == 5;
        self.now += Duration::from_secs(one_of(input, &[0, 0, 0, 1, 9]));
        self.tell(flight, if lost { Outcome::Unknown } else { outcome });
    }

    /// The rack gives a write up: it was never sent, or it was and is still running.
    fn region_is_silent(&mut self, input: &mut Unstructured<'_>) {
        if self.flights.is_empty() {
            return;
        }
        let chosen = pick(input, self.flights.len() as u32) as usize;
        let flight = self.flights.remove(chosen);
        let outcome = match pick(input, 3) {
            0 => Outcome::Refused(Refusal::Mute),
            1 => {
                self.flights.push(Flight {
                    ticket: Ticket::UNAWAITED,
                    write: flight.write.clone(),
                    ..flight
                });
                Outcome::Unknown
            }
            // Nobody ever says anything.
            _ => return,
        };
        self.tell(flight, outcome);
    }

    fn tell(&mut self, flight: Flight, outcome: Outcome) {
        let Station { engine, out, .. } = &mut self.racks[flight.rack].stations[flight.shard];
        engine.on_outcome(flight.ticket, outcome, self.now, out);
        self.collect();
    }

    // ---------------------------------------------------------------- what came out

    fn collect(&mut self) {
        for (rack, of) in self.racks.iter_mut().enumerate() {
            for (shard, station) in of.stations.iter_mut().enumerate() {
                let (items, buffer) = station.out.drain();
                for item in items {
                    match item {
                        Out::Reply(reply) => {
                            station.tally.replies += 1;
                            let world = check::World {
                                rack,
                                site: &of.site,
                                until: of.until,
                                region: &self.region,
                                now: self.now,
                                relay_info_left_out: &mut station.tally.relay_info_left_out,
                            };
                            self.ledger.answer(&reply, buffer, world);
                        }
                        Out::Lease { ticket, write } => self.flights.push(Flight {
                            rack,
                            shard,
                            ticket,
                            write,
                        }),
                        _ => {}
                    }
                }
                let Station { engine, tally, .. } = station;
                assert_eq!(tally.replies, check::replies(engine));
                let counted = engine.counters().sent(Sent::RelayInfoLeftOut);
                assert!(tally.relay_info_left_out <= counted);
            }
        }
        let lost = self.flights.len().saturating_sub(FLIGHTS_MAX);
        self.flights.drain(..lost);
    }

    /// Every write is answered: nothing is left waiting.
    fn end(&mut self) {
        while let Some(flight) = self.flights.pop() {
            self.tell(flight, Outcome::Unknown);
        }
        // What was lost counts as unknown by and by.
        for _ in 0..8 {
            self.now += Duration::from_secs(61);
            self.time_passes();
            while let Some(flight) = self.flights.pop() {
                self.tell(flight, Outcome::Unknown);
            }
        }
        for station in self.racks.iter().flat_map(|rack| &rack.stations) {
            let usage = station.engine.usage();
            assert_eq!(usage.pending, 0, "writes wait for ever");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The stories are not too dull to prove anything.
    #[test]
    fn everything_happens_in_some_story() {
        use Sent::*;
        let kinds = [
            Offer,
            Ack,
            AckFromMemory,
            Nak,
            Grant,
            Joined,
            Extend,
            Extended,
            Reclaim,
            Quarantine,
            Release,
            Unknown,
            StrayOutcome,
            OptionLeftOut,
            ReservationTaken,
            RapidCommit,
            Bootp,
            ProxyOffer,
            ProxyAck,
            AttachIgnored,
            Probe,
            ProbeFailed,
            OfferUnprobed,
            AddressInUse,
            OfferEvicted,
            RogueServer,
        ];
        let mut seen = vec![0; kinds.len()];
        let mut random = 1u64;
        for _ in 0..1_500 {
            let input: Vec<u8> = (0..2_000)
                .map(|_| {
                    // xorshift64*
                    random ^= random >> 12;
                    random ^= random << 25;
                    random ^= random >> 27;
                    (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 56) as u8
                })
                .collect();
            let story = tell(&input);
            for station in story.racks.iter().flat_map(|rack| &rack.stations) {
                for (kind, seen) in kinds.iter().zip(&mut seen) {
                    *seen += station.engine.counters().sent(*kind);
                }
            }
        }
        for (kind, seen) in kinds.iter().zip(seen) {
            println!("{kind:?}: {seen}");
            assert!(seen > 0, "{kind:?} never happened");
        }
    }
}
