//! The engine under abuse: floods, starvation, ports that want too much, addresses in use, servers nobody knows.

mod common;

use std::collections::HashSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::*;
use dhcp::*;
use lease::{Outcome, VlanId, WriteKind};
use wire::dhcp4::MessageType::{Ack, Nak, Offer};
use wire::dhcp4::{View, code};
use wire::ethernet::Mac;

/// The usual configuration, where only these machines are known.
struct Site {
    fixed: Fixed,
    known: HashSet<Mac>,
}

impl Config for Site {
    fn link_of(&self, address: Ipv4Addr) -> Option<&Link> {
        self.fixed.link_of(address)
    }

    fn reservation(&self, vlan: VlanId, mac: Mac) -> Option<&Reservation> {
        self.fixed.reservation(vlan, mac)
    }

    fn reservation_by_client_id(&self, vlan: VlanId, client_id: &[u8]) -> Option<&Reservation> {
        self.fixed.reservation_by_client_id(vlan, client_id)
    }

    fn reservation_by_circuit(
        &self,
        vlan: VlanId,
        circuit: &[u8],
        remote: &[u8],
    ) -> Option<&Reservation> {
        self.fixed.reservation_by_circuit(vlan, circuit, remote)
    }

    fn reserved(&self, vlan: VlanId, address: Ipv4Addr) -> Option<&Reservation> {
        self.fixed.reserved(vlan, address)
    }

    fn is_known(&self, mac: Mac) -> bool {
        self.known.contains(&mac)
    }

    fn known_count(&self) -> usize {
        usize::MAX
    }
}

/// A shard of a rack, by script.
struct Guarded {
    engine: Engine,
    site: Site,
    now: Instant,
    out: Outbox,
}

impl Guarded {
    fn new(limits: Limits, known: &[Mac]) -> Self {
        let now = Instant::now();
        let site = Site {
            fixed: config(),
            known: known.iter().copied().collect(),
        };
        let mut engine = Engine::new(Shard { index: 0, count: 1 }, limits, 42, now);
        engine.attach(&[block(100)], &[], now + secs(86_400), now, &site, now);
        Self {
            engine,
            site,
            now,
            out: Outbox::new(64),
        }
    }

    /// The reply's kind and address, and why there was none. Grants become durable at once.
    fn send(
        &mut self,
        message: &Message,
    ) -> (Option<(wire::dhcp4::MessageType, Ipv4Addr)>, Option<Drop>) {
        let octets = message.octets();
        let query = View::parse(&octets).unwrap();
        let relayed = message.giaddr != NONE;
        let received = Received {
            link: &self.site.fixed.links[0],
            source: message.ciaddr,
            destination: if relayed || message.unicast {
                SERVER
            } else {
                Ipv4Addr::BROADCAST
            },
            sender: message.sender(),
        };
        let boot = BootReply::default();
        let dropped = self.engine.on_message(
            &query,
            &received,
            &boot,
            &self.site,
            self.now,
            &mut self.out,
        );
        let mut reply = self.collect().0;
        let durable = Outcome::Durable {
            remaining: secs(1200),
        };
        for ticket in std::mem::take(&mut reply.1) {
            self.engine
                .on_outcome(ticket, durable, self.now, &mut self.out);
            reply.0 = self.collect().0.0;
        }
        (reply.0, dropped)
    }

    #[allow(clippy::type_complexity, reason = "a test's own")]
    fn collect(
        &mut self,
    ) -> (
        (Option<(wire::dhcp4::MessageType, Ipv4Addr)>, Vec<Ticket>),
        Vec<Event>,
    ) {
        let (mut reply, mut tickets, mut events) = (None, vec![], vec![]);
        let (items, buffer) = self.out.drain();
        for item in items {
            match item {
                Out::Reply(sent) => {
                    let view = View::parse(sent.payload(buffer)).unwrap();
                    reply = Some((sent.kind, view.yiaddr()));
                }
                Out::Lease { ticket, write } => {
                    if matches!(write.kind, WriteKind::Grant { .. }) {
                        tickets.push(ticket);
                    }
                }
                Out::Event(event) => events.push(event),
            }
        }
        ((reply, tickets), events)
    }

    fn events(&mut self, message: &Message) -> Vec<Event> {
        let octets = message.octets();
        let query = View::parse(&octets).unwrap();
        let received = Received {
            link: &self.site.fixed.links[usize::from(message.giaddr.octets()[1] == 100)],
            source: message.giaddr,
            destination: Ipv4Addr::BROADCAST,
            sender: Sender::Frame,
        };
        let boot = BootReply::default();
        self.engine.on_message(
            &query,
            &received,
            &boot,
            &self.site,
            self.now,
            &mut self.out,
        );
        self.collect().1
    }

    fn probes(&mut self) -> Vec<Ipv4Addr> {
        std::iter::from_fn(|| self.engine.next_probe(&self.site, self.now))
            .map(|probe| probe.address)
            .collect()
    }

    fn probed(&mut self, address: Ipv4Addr, probed: Probed) -> Vec<Event> {
        self.engine
            .on_probed(VLAN, address, probed, self.now, &mut self.out);
        self.collect().1
    }
}

/// As little as there can be.
const NO_EXCESS: Rate = Rate {
    burst: 1,
    per_sec: 1,
};

/// A MAC that nobody has sent before.
fn stranger(number: u32) -> Mac {
    let [a, b, c, d] = number.wrapping_mul(2_654_435_761).to_be_bytes();
    Mac([0x02, 0xaa, a, b, c, d])
}

// -------------------------------------------------------------------- starvation

/// A new MAC in each DISCOVER, 10,000 a second, some of which go on to bind their address: a machine that the region
/// knows gets an address at every moment, and one that has an address keeps it.
#[test]
fn starvation_costs_no_known_machine_its_address() {
    let known: Vec<Mac> = (1..=40).map(mac).collect();
    let limits = Limits {
        offers_max: 60,
        ..Limits::default()
    };
    let mut rack = Guarded::new(limits, &known);
    let early = rack.send(&discover(known[0])).0.unwrap().1;
    rack.send(&request(known[0], early));
    let mut served = 1;
    for number in 0..100_000 {
        rack.now += Duration::from_micros(100);
        rack.engine.tick(rack.now, &mut rack.out);
        rack.out.drain();
        let mac = stranger(number);
        if let (Some((Offer, address)), _) = rack.send(&discover(mac))
            && number % 3 == 0
        {
            rack.send(&request(mac, address));
        }
        if number % 2_500 == 2_499 && served < known.len() {
            let machine = known[served];
            let (offer, dropped) = rack.send(&discover(machine));
            let (kind, address) = offer.unwrap_or_else(|| panic!("{number}: {dropped:?}"));
            assert_eq!(kind, Offer);
            let ack = rack.send(&request(machine, address)).0;
            assert_eq!(ack, Some((Ack, address)), "{number}");
            served += 1;
        }
    }
    assert_eq!(served, 40);
    assert_eq!(rack.send(&discover(known[0])).0, Some((Offer, early)));
    assert_eq!(rack.send(&renew(known[0], early)).0, Some((Ack, early)));
    let counters = rack.engine.counters();
    assert!(counters.dropped(Drop::StrangersFull) > 90_000);
    assert!(
        rack.engine.usage().bound <= 50 + 40,
        "strangers have their half"
    );
    // An hour later it was on the whole time, and all others have gone: its ended row is not the first to be taken.
    for _ in 0..400 {
        rack.now += secs(10);
        rack.engine.tick(rack.now, &mut rack.out);
        rack.out.drain();
    }
    assert_eq!(rack.send(&discover(known[0])).0, Some((Offer, early)));
}

#[test]
fn an_offer_to_a_stranger_yields_to_a_known_machine() {
    // Every address is offered or bound, 50 to strangers.
    let known: Vec<Mac> = (1..=60).map(mac).collect();
    let mut rack = Guarded::new(Limits::default(), &known);
    for number in 0..50 {
        assert!(rack.send(&discover(stranger(number))).0.is_some());
    }
    // One more stranger gets the address of the first, which has not come back for it; what strangers may hold stays.
    assert!(rack.send(&discover(stranger(50))).0.is_some());
    assert_eq!(rack.engine.usage().offered, 50);
    for machine in &known {
        let (_, address) = rack.send(&discover(*machine)).0.expect("an OFFER");
        assert_eq!(
            rack.send(&request(*machine, address)).0,
            Some((Ack, address))
        );
    }
    assert_eq!(rack.engine.counters().sent(Sent::OfferEvicted), 11);
    assert_eq!(rack.engine.usage().offered, 40);
}

// -------------------------------------------------------------------- rates and ports

#[test]
fn a_client_that_runs_wild_is_slowed_and_no_other() {
    let limits = Limits {
        excess_rate: NO_EXCESS,
        ..Limits::default()
    };
    let mut rack = Guarded::new(limits, &[mac(1), mac(2)]);
    // The one message that all may send beyond their rates.
    let spent = (0..65).filter(|_| rack.send(&discover(mac(3))).0.is_some());
    assert_eq!(spent.count(), 65);
    let answered = (0..1000)
        .filter(|_| rack.send(&discover(mac(1))).0.is_some())
        .count();
    assert_eq!(answered, 64);
    assert_eq!(rack.engine.counters().dropped(Drop::RateLimited), 936);
    assert!(rack.send(&discover(mac(2))).0.is_some());
    rack.now += secs(1);
    let answered = (0..1000)
        .filter(|_| rack.send(&discover(mac(1))).0.is_some())
        .count();
    assert_eq!(answered, 20 + 1);
}

/// PXE, iPXE, the kernel and the system, each by its own client id, each repeating as it does.
#[test]
fn a_boot_never_meets_its_limit() {
    let mut rack = Guarded::new(Limits::default(), &[mac(1)]);
    let mut address = None;
    for stage in 0..4u8 {
        for (wait_ms, repeats) in [(250, 4), (1000, 3)] {
            for _ in 0..repeats {
                rack.now += Duration::from_millis(wait_ms);
                let ask = discover(mac(1)).with(code::CLIENT_ID, &[stage, 1, 2, 3]);
                let (_, offered) = rack.send(&ask).0.expect("an OFFER");
                assert_eq!(*address.get_or_insert(offered), offered);
            }
            let ask = request(mac(1), address.unwrap()).with(code::CLIENT_ID, &[stage, 1, 2, 3]);
            assert!(matches!(rack.send(&ask).0, Some((Ack, _))));
        }
    }
    assert_eq!(rack.engine.counters().dropped_in_all(), 0);
}

fn relayed(message: Message, circuit: &[u8]) -> Message {
    let option = [&[1, circuit.len() as u8][..], circuit].concat();
    Message {
        giaddr: ip(2),
        ..message
    }
    .with(code::RELAY_INFO, &option)
}

#[test]
fn a_port_has_its_own_rate_and_its_own_number_of_addresses() {
    let limits = Limits {
        circuit_rate: Rate {
            burst: 30,
            per_sec: 1,
        },
        leases_per_circuit_max: 3,
        ..Limits::default()
    };
    let known: Vec<Mac> = (1..=50).map(mac).collect();
    let mut rack = Guarded::new(limits, &known);
    rack.site.fixed.reservations.push(Reservation {
        vlan: VLAN,
        subnet: SUBNET,
        key: ReservationKey::Mac(mac(9)),
        address: ip(150),
        hostname: String::new(),
        lease: None,
        options: [].into(),
    });
    let mut held = vec![];
    for number in 1..=3 {
        let (_, address) = rack
            .send(&relayed(discover(mac(number)), b"ge-0"))
            .0
            .expect("an OFFER");
        let ack = rack.send(&relayed(request(mac(number), address), b"ge-0"));
        assert_eq!(ack.0, Some((Ack, address)));
        held.push(address);
    }
    let fourth = rack.send(&relayed(discover(mac(4)), b"ge-0"));
    assert_eq!(fourth.1, Some(Drop::CircuitFull));
    // Another port, a reservation, who holds one already: all as ever.
    assert!(rack.send(&relayed(discover(mac(4)), b"ge-1")).0.is_some());
    let own = rack.send(&relayed(discover(mac(9)), b"ge-0")).0;
    assert_eq!(own, Some((Offer, ip(150))));
    let again = rack.send(&relayed(discover(mac(1)), b"ge-0")).0;
    assert_eq!(again, Some((Offer, held[0])));
    // One moves to another port, two are gone with their offers.
    rack.send(&relayed(renew(mac(1), held[0]), b"ge-1"));
    assert!(
        rack.send(&relayed(discover(mac(5)), b"ge-0")).1.is_some(),
        "the reserved one counts as well"
    );
    rack.now += secs(121);
    rack.engine.tick(rack.now, &mut rack.out);
    rack.out.drain();
    assert!(rack.send(&relayed(discover(mac(5)), b"ge-0")).0.is_some());
    // So many messages by one port, whoever sends them.
    rack.now += secs(60);
    let answered = (10..50)
        .filter(|number| {
            let dropped = rack.send(&relayed(discover(mac(*number)), b"ge-0")).1;
            dropped != Some(Drop::CircuitLimited)
        })
        .count();
    assert_eq!(answered, 30);
}

// -------------------------------------------------------------------- excluded addresses

#[test]
fn what_is_excluded_is_never_dealt() {
    let mut rack = Guarded::new(Limits::default(), &[]);
    let machines: Vec<Mac> = (0..100).map(stranger).collect();
    rack.site.known = machines.iter().copied().collect();
    let subnet = &mut rack.site.fixed.links[0].subnets[0];
    subnet.gateway = Some(ip(107));
    let excluded = Range {
        id: 2,
        first: ip(110),
        last: ip(129),
        kind: RangeKind::Reserved,
        ..subnet.ranges[0].clone()
    };
    // Half of it stands before the attach, half comes after it.
    subnet.ranges.push(excluded.clone());
    rack.site.fixed.links[0].peers.push(Peer {
        rack: 2,
        server: ip(108),
        alive: false,
    });
    let (until, now) = (rack.now + secs(86_400), rack.now);
    rack.engine
        .attach(&[block(100)], &[], until, now, &rack.site, now);
    rack.site.fixed.links[0].subnets[0].ranges.push(Range {
        id: 3,
        first: ip(140),
        last: ip(149),
        ..excluded
    });
    let mut seen = HashSet::new();
    for machine in &machines {
        if let Some((Offer, address)) = rack.send(&discover(*machine)).0 {
            assert!(seen.insert(address));
        }
    }
    let last = |address: &Ipv4Addr| address.octets()[3];
    assert_eq!(seen.len(), 100 - 2 - 20 - 10);
    let withheld = |last: u8| matches!(last, 107 | 108 | 110..=129 | 140..=149);
    assert!(
        !seen.iter().any(|address| withheld(last(address))),
        "{seen:?}"
    );
    // Nor to who asks for one.
    let ask = Message {
        requested: Some(ip(115)),
        ..discover(mac(77))
    };
    rack.site.known.insert(mac(77));
    assert_eq!(rack.send(&ask).0, None);
    // A range that is no longer excluded comes back.
    rack.site.fixed.links[0].subnets[0].ranges.pop();
    let (_, address) = rack.send(&ask).0.expect("an OFFER");
    assert!(matches!(last(&address), 140..=149), "{address}");
}

// -------------------------------------------------------------------- probes

fn probing(stock: usize) -> Guarded {
    let limits = Limits {
        probe_stock: stock,
        ..Limits::default()
    };
    Guarded::new(limits, &(1..=99).map(mac).collect::<Vec<_>>())
}

#[test]
fn a_stock_is_probed_ahead_and_offered_first() {
    let mut rack = probing(4);
    assert_eq!(rack.probes(), [ip(100), ip(101), ip(102), ip(103)]);
    assert!(rack.probes().is_empty(), "enough are asked for");
    for last in 100..103 {
        assert!(rack.probed(ip(last), Probed::Unused).is_empty());
    }
    // The fourth is somebody's.
    let theirs = Mac([0x02, 9, 9, 9, 9, 9]);
    let events = rack.probed(ip(103), Probed::InUse(theirs));
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (event.kind, event.address, event.mac),
        (EventKind::AddressInUse, ip(103), Some(theirs))
    );
    assert_eq!(rack.probes(), [ip(104)]);
    rack.probed(ip(104), Probed::Unused);
    for (machine, last) in [(1, 100), (2, 101), (3, 102), (4, 104)] {
        assert_eq!(
            rack.send(&discover(mac(machine))).0,
            Some((Offer, ip(last)))
        );
    }
    assert_eq!(rack.engine.counters().sent(Sent::OfferUnprobed), 0);
    // Nobody answers these in time: they are offered all the same, and asked for at once.
    assert_eq!(rack.send(&discover(mac(5))).0, Some((Offer, ip(105))));
    assert_eq!(rack.engine.counters().sent(Sent::OfferUnprobed), 1);
    assert_eq!(rack.probes()[0], ip(105));
    // In use: the REQUEST gets a NAK, the next DISCOVER another address.
    rack.probed(ip(105), Probed::InUse(theirs));
    assert_eq!(rack.send(&request(mac(5), ip(105))).0, Some((Nak, NONE)));
    let (_, address) = rack.send(&discover(mac(5))).0.unwrap();
    assert_ne!(address, ip(105));
    // After ten minutes they are free again, and probed again before anybody gets them.
    for _ in 0..70 {
        rack.now += secs(10);
        rack.engine.tick(rack.now, &mut rack.out);
        rack.out.drain();
    }
    assert_eq!(rack.engine.usage().free, 100);
}

#[test]
fn an_old_probe_is_repeated_and_a_lost_one_forgotten() {
    let mut rack = probing(2);
    assert_eq!(rack.probes(), [ip(100), ip(101)]);
    rack.probed(ip(100), Probed::Unused);
    rack.now += secs(6); // the other was lost
    assert_eq!(rack.probes(), [ip(102)], "the lost one went to the end");
    rack.probed(ip(102), Probed::Unused);
    rack.probed(ip(101), Probed::InUse(mac(9)));
    assert_eq!(
        rack.engine.counters().sent(Sent::AddressInUse),
        0,
        "too late"
    );
    rack.now += secs(599);
    assert_eq!(rack.probes(), [ip(100)]);
    rack.probed(ip(100), Probed::Unknown);
    assert!(rack.probes().is_empty(), "it cannot be sent: a pause");
    rack.now += secs(61);
    assert_eq!(rack.probes().len(), 2);
    assert_eq!(rack.engine.counters().sent(Sent::ProbeFailed), 2);
}

/// All that is free is being asked for: the client waits, and nobody is told of an exhausted range.
#[test]
fn each_vlan_tells_of_its_own_exhaustion() {
    let mut rack = Guarded::new(Limits::default(), &[]);
    let far = &mut rack.site.fixed.links[1].subnets[0];
    far.ranges = subnet().ranges;
    far.ranges[0].first = Ipv4Addr::new(10, 100, 0, 100);
    far.ranges[0].last = Ipv4Addr::new(10, 100, 0, 199);
    // No block of either is this rack's yet.
    rack.engine.attach(
        &[],
        &[],
        rack.now + secs(600),
        rack.now,
        &rack.site,
        rack.now,
    );
    let kinds = |events: Vec<Event>| events.iter().map(|event| event.kind).collect::<Vec<_>>();
    let near = |n| discover(stranger(n));
    let far = |n| Message {
        giaddr: Ipv4Addr::new(10, 100, 0, 1),
        ..discover(stranger(n))
    };
    assert_eq!(kinds(rack.events(&near(1))), [EventKind::Exhausted]);
    assert_eq!(kinds(rack.events(&near(2))), [], "told a moment ago");
    assert_eq!(kinds(rack.events(&far(3))), [EventKind::Exhausted]);
    assert_eq!(kinds(rack.events(&far(4))), []);
    rack.now += secs(10);
    assert_eq!(kinds(rack.events(&near(5))), [EventKind::Exhausted]);
}

#[test]
fn a_probe_is_no_exhaustion() {
    let attached = |addresses: u32| {
        let mut rack = probing(8);
        let (until, now) = (rack.now + secs(86_400), rack.now);
        rack.engine
            .attach(&[block(addresses)], &[], until, now, &rack.site, now);
        rack.engine.take_came();
        rack
    };
    // A pool that is new.
    let mut rack = attached(2);
    assert_eq!(rack.probes(), [ip(100), ip(101)]);
    assert_eq!(rack.send(&discover(mac(1))), (None, Some(Drop::Probing)));
    assert!(rack.events(&discover(mac(2))).is_empty());
    assert!(!rack.engine.take_came());
    rack.probed(ip(100), Probed::Unused);
    assert!(rack.engine.take_came());
    assert_eq!(rack.send(&discover(mac(1))).0, Some((Offer, ip(100))));
    // The other one is still asked for; if somebody uses it, there is none.
    assert_eq!(rack.send(&discover(mac(2))).1, Some(Drop::Probing));
    rack.probed(ip(101), Probed::InUse(Mac([2, 9, 9, 9, 9, 9])));
    assert!(rack.engine.take_came());
    let [event] = rack.events(&discover(stranger(2)))[..] else {
        panic!("one event")
    };
    assert_eq!(event.kind, EventKind::Exhausted);
    // But for a known machine, which has it sooner than nothing.
    assert_eq!(rack.send(&discover(mac(2))).0, Some((Offer, ip(101))));
    // A lone free address whose probe is old.
    let mut rack = attached(1);
    rack.probes();
    rack.probed(ip(100), Probed::Unused);
    rack.now += secs(601);
    assert_eq!(rack.probes(), [ip(100)]);
    assert_eq!(rack.send(&discover(mac(1))).1, Some(Drop::Probing));
    // It could not be asked for after all: better unprobed than not at all.
    rack.probed(ip(100), Probed::Unknown);
    assert_eq!(rack.send(&discover(mac(1))).0, Some((Offer, ip(100))));
    // What is being asked for and reserved for somebody else is nothing to wait for.
    let mut rack = attached(1);
    rack.probes();
    let reserved = reservation(mac(9), ip(100));
    rack.site.fixed.reservations.push(reserved);
    assert_eq!(rack.send(&discover(mac(1))).1, Some(Drop::NoFreeAddress));
}

#[test]
fn its_own_client_may_answer_a_probe() {
    let mut rack = probing(1);
    rack.probes();
    rack.probed(ip(100), Probed::Unused);
    rack.send(&discover(mac(1)));
    let (_, second) = rack.send(&discover(mac(2))).0.unwrap();
    assert_eq!(rack.probes()[0], second);
    assert_eq!(rack.send(&request(mac(2), second)).0, Some((Ack, second)));
    assert!(rack.probed(second, Probed::InUse(mac(2))).is_empty());
    assert_eq!(rack.send(&renew(mac(2), second)).0, Some((Ack, second)));
}

/// A router answers for every address (proxy ARP): a few are lost for ten minutes, not the range.
#[test]
fn a_host_that_answers_for_all_is_not_believed() {
    let mut rack = probing(32);
    let router = Mac([0x02, 1, 1, 1, 1, 1]);
    let asked = rack.probes();
    assert_eq!(asked.len(), 32);
    let told: usize = asked
        .into_iter()
        .map(|address| rack.probed(address, Probed::InUse(router)).len())
        .sum();
    assert_eq!(told, 8);
    assert!(rack.probes().is_empty(), "not for an hour");
    assert_eq!(rack.engine.usage().free, 92);
    assert!(rack.send(&discover(mac(1))).0.is_some());
    rack.now += secs(3601);
    assert!(!rack.probes().is_empty());
}

#[test]
fn nothing_is_probed_behind_a_relay_or_before_an_attach() {
    let mut rack = probing(4);
    rack.engine.forget();
    assert!(rack.probes().is_empty());
    rack.site.fixed.links[0].subnets[0].net = "10.99.0.64/26".parse().unwrap();
    let (until, now) = (rack.now + secs(86_400), rack.now);
    rack.engine
        .attach(&[block(20)], &[], until, now, &rack.site, now);
    assert!(rack.probes().is_empty());
    rack.send(&relayed(discover(mac(1)), b"x"));
    assert_eq!(rack.engine.counters().sent(Sent::OfferUnprobed), 0);
}

// -------------------------------------------------------------------- rogue servers

#[test]
fn a_server_nobody_knows_is_told_once_in_ten_minutes() {
    let mut rack = Guarded::new(Limits::default(), &[mac(1)]);
    let chose = |server| Message {
        server: Some(server),
        ..request(mac(1), ip(50))
    };
    let events = rack.events(&chose(ip(66)));
    let [event] = events.as_slice() else {
        panic!("{events:?}")
    };
    assert_eq!(
        (event.kind, event.address, event.mac),
        (EventKind::RogueServer, ip(66), Some(mac(1)))
    );
    rack.now += secs(599);
    assert!(rack.events(&chose(ip(66))).is_empty());
    rack.now += secs(1);
    assert_eq!(rack.events(&chose(ip(66))).len(), 1);
    assert_eq!(rack.engine.counters().sent(Sent::RogueServer), 3);
    // The other rack's server, and one that a proxied link is there for, are none.
    rack.site.fixed.links[0].peers.push(Peer {
        rack: 2,
        server: ip(3),
        alive: false,
    });
    assert!(rack.events(&chose(ip(3))).is_empty());
    rack.site.fixed.links[0].mode = Mode::Proxy;
    let rogues = |events: Vec<Event>| {
        events
            .iter()
            .filter(|event| event.kind == EventKind::RogueServer)
            .count()
    };
    let events = rack.events(&chose(ip(67)));
    assert_eq!(rogues(events), 0);
    // An OFFER that came to our port.
    rack.site.fixed.links[0].mode = Mode::Serve;
    let mut octets = Message {
        server: Some(ip(68)),
        ..message(Offer, mac(2))
    }
    .octets();
    octets[0] = 2;
    let reply = View::parse(&octets).unwrap();
    let received = Received {
        link: &rack.site.fixed.links[0],
        source: ip(68),
        destination: Ipv4Addr::BROADCAST,
        sender: Sender::Frame,
    };
    let dropped = rack.engine.on_message(
        &reply,
        &received,
        &BootReply::default(),
        &rack.site,
        rack.now,
        &mut rack.out,
    );
    assert_eq!(dropped, Some(Drop::NotARequest));
    let events = rack.collect().1;
    assert_eq!((rogues(events.clone()), events[0].address), (1, ip(68)));
}

// -------------------------------------------------------------------- what costs a stranger nothing

/// DISCOVERs of made-up clients, ten for each address that there is, and one of each kind that means it: its OFFER
/// lasts until its REQUEST.
#[test]
fn a_flood_of_new_clients_holds_no_address_from_one_that_means_it() {
    let mut rack = Guarded::new(Limits::default(), &[mac(1)]);
    for round in 0..20u32 {
        for number in 0..50 {
            rack.now += Duration::from_millis(1);
            rack.send(&discover(stranger(round * 50 + number)));
        }
        let honest = Mac([2, 0xbb, 0, 0, 0, round as u8]);
        let (kind, address) = rack.send(&discover(honest)).0.expect("an OFFER");
        assert_eq!(kind, Offer);
        rack.send(&discover(stranger(100_000 + round)));
        assert_eq!(rack.send(&request(honest, address)).0, Some((Ack, address)));
    }
    assert!(rack.send(&discover(mac(1))).0.is_some());
    assert_eq!(rack.engine.usage().bound, 20);
    assert!(rack.engine.usage().offered <= 50 + 1);
}

/// OFFERs are limited in all: a flood of one network makes room for another's.
#[test]
fn a_flood_of_one_network_costs_another_no_offer() {
    let limits = Limits {
        offers_max: 20,
        ..Limits::default()
    };
    let mut rack = Guarded::new(limits, &[]);
    let far = lease::Block {
        id: lease::BlockId(2),
        vlan: 5002,
        subnet: 8,
        first: std::net::IpAddr::from([10, 100, 0, 10]),
        ..block(20)
    };
    let (until, now) = (rack.now + secs(86_400), rack.now);
    let blocks = [block(100), far];
    rack.engine
        .attach(&blocks, &[], until, now, &rack.site, now);
    let behind = |mac| Message {
        giaddr: Ipv4Addr::new(10, 100, 0, 1),
        ..discover(mac)
    };
    assert!(rack.send(&behind(stranger(1_000))).0.is_some());
    for number in 0..500 {
        assert!(rack.send(&discover(stranger(number))).0.is_some());
    }
    assert_eq!(rack.engine.usage().offered, 20);
    let again = rack.send(&request(stranger(499), ip(100)));
    assert!(again.0.is_some());
    // The other network's one has stood all the while: no new offer was needed for it.
    let evicted = rack.engine.counters().sent(Sent::OfferEvicted);
    let held = Ipv4Addr::new(10, 100, 0, 10);
    assert_eq!(rack.send(&behind(stranger(1_000))).0, Some((Offer, held)));
    assert_eq!(rack.engine.counters().sent(Sent::OfferEvicted), evicted);
}

/// Each made-up host claims one address only, so no one is a proxy: half of the range goes on, and at last what
/// rests is given to machines that the region knows.
#[test]
fn made_up_hosts_that_claim_addresses_take_no_range_out_of_service() {
    let mut rack = probing(32);
    let mut claims = 0u32;
    let mut disputed = 0;
    for _ in 0..20 {
        for address in rack.probes() {
            claims += 1;
            let events = rack.probed(address, Probed::InUse(stranger(claims)));
            let told = |event: &&Event| event.kind == EventKind::RangeDisputed;
            disputed += events.iter().filter(told).count();
        }
        rack.now += secs(61); // past the pause
    }
    assert!(claims > 60, "{claims}");
    assert_eq!((rack.engine.usage().resting, disputed), (50, 2));
    // The known get the free half, then what rests; and nobody is asked whether that is used.
    let mut given = HashSet::new();
    for number in 1..=90 {
        let (offer, dropped) = rack.send(&discover(mac(number)));
        let (_, address) = offer.unwrap_or_else(|| panic!("{number}: {dropped:?}"));
        for claimed in rack.probes() {
            claims += 1;
            rack.probed(claimed, Probed::InUse(stranger(claims)));
        }
        let ack = rack.send(&request(mac(number), address)).0;
        assert_eq!(ack, Some((Ack, address)), "{number}");
        assert!(given.insert(address));
    }
    assert_eq!(rack.engine.counters().sent(Sent::ClaimedGiven), 40);
    // A stranger waits until they have rested.
    assert!(rack.send(&discover(stranger(9_999_999))).0.is_none());
}

/// Clients that nobody knows, each declining what it is offered: a quarter of the range and no more.
#[test]
fn made_up_clients_that_decline_take_a_quarter_of_the_range() {
    let mut rack = Guarded::new(Limits::default(), &[mac(1), mac(2)]);
    for number in 0..300 {
        if let Some((_, address)) = rack.send(&discover(stranger(number))).0 {
            rack.send(&decline(stranger(number), address));
        }
    }
    assert_eq!(rack.engine.usage().resting, 25);
    assert!(rack.engine.counters().sent(Sent::ClaimNotBelieved) > 100);
    // A known machine is believed when it finds an address used; and an honest stranger gets one.
    let (_, address) = rack.send(&discover(mac(1))).0.expect("an OFFER");
    rack.send(&decline(mac(1), address));
    assert_eq!(rack.engine.usage().resting, 26);
    assert!(rack.send(&discover(mac(1))).0.is_some());
    assert!(rack.send(&discover(stranger(1_000))).0.is_some());
}

/// The link thread's queue has 8,192 rows for all shards: strangers' leases fill half of it, each shard its part.
#[test]
fn known_machines_leases_have_a_lane_of_their_own() {
    for (count, most) in [(1, 4_096), (4, 1_024)] {
        let now = Instant::now();
        let limits = Limits {
            mac_rate: Rate::UNLIMITED,
            ..Limits::default()
        };
        let site = Site {
            fixed: config(),
            known: HashSet::new(),
        };
        let shard = Shard { index: 0, count };
        let mut engine = Engine::new(shard, limits, 42, now);
        let blocks: Vec<_> = (0..256u32)
            .map(|number| lease::Block {
                id: lease::BlockId(number.into()),
                vlan: 5002,
                subnet: 8,
                first: Ipv4Addr::from(0x0a64_0000 + number * 256).into(),
                ..block(256)
            })
            .collect();
        let mut site = site;
        site.fixed.links[1].subnets[0].net = "10.100.0.0/16".parse().unwrap();
        site.fixed.known = 0;
        engine.attach(&blocks, &[], now + secs(86_400), now, &site, now);
        let mut out = Outbox::new(64);
        let mut ask = |engine: &mut Engine, site: &Site, mac: Mac| {
            let mut writes = 0;
            let mut address = NONE;
            for step in 0..2 {
                let message = match step {
                    0 => discover(mac),
                    _ => request(mac, address),
                };
                let octets = Message {
                    giaddr: Ipv4Addr::new(10, 100, 0, 1),
                    ..message
                }
                .octets();
                let query = View::parse(&octets).unwrap();
                let received = Received {
                    link: &site.fixed.links[0],
                    source: NONE,
                    destination: SERVER,
                    sender: Sender::TrustedRelay,
                };
                engine.on_message(
                    &query,
                    &received,
                    &BootReply::default(),
                    site,
                    now,
                    &mut out,
                );
                let (items, buffer) = out.drain();
                for item in items {
                    match item {
                        Out::Reply(sent) => {
                            address = View::parse(sent.payload(buffer)).unwrap().yiaddr();
                        }
                        Out::Lease { .. } => writes += 1,
                        Out::Event(_) => {}
                    }
                }
            }
            writes
        };
        let own = |mac: &Mac| shard_of_mac(*mac, count) == 0;
        let strangers: Vec<Mac> = (0..).map(stranger).filter(own).take(6_000).collect();
        let granted: usize = strangers
            .iter()
            .map(|mac| ask(&mut engine, &site, *mac))
            .sum();
        assert_eq!(granted, most, "{count} shards");
        let machine = (1..=255).map(mac).find(own).unwrap();
        site.known.insert(machine);
        assert_eq!(ask(&mut engine, &site, machine), 1);
    }
}
