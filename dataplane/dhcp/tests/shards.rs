//! Several shards of one rack: an address is dealt in by one of them at most, and by the one that needs it.

mod common;

use std::collections::HashMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use common::*;
use dhcp::*;
use lease::{Block, ClientKey, Epoch, Outcome, Row, WriteKind};
use wire::dhcp4::MessageType::{self, Ack, Offer};
use wire::dhcp4::{View, code};
use wire::ethernet::Mac;

struct Shards {
    engines: Vec<Engine>,
    config: Fixed,
    now: Instant,
    out: Outbox,
    epoch: u64,
}

impl Shards {
    fn new(count: u32, addresses: u32, config: Fixed) -> Self {
        let now = Instant::now();
        let engine = |index| Engine::new(Shard { index, count }, Limits::default(), 42, now);
        let mut shards = Self {
            engines: (0..count).map(engine).collect(),
            config,
            now,
            out: Outbox::new(64),
            epoch: 0,
        };
        shards.attach(addresses, &[]);
        shards
    }

    fn attach(&mut self, addresses: u32, rows: &[Row]) {
        self.epoch += 1;
        let blocks = [Block {
            epoch: Epoch(self.epoch),
            ..block(addresses)
        }];
        let (until, now) = (self.now + secs(86_400), self.now);
        for engine in &mut self.engines {
            engine.attach(&blocks, rows, until, now, &self.config, now);
        }
    }

    /// To the shard that owns it; what a grant asks for becomes durable.
    fn send(&mut self, message: &Message) -> (Option<(MessageType, Ipv4Addr)>, Option<Drop>) {
        let octets = message.octets();
        let query = View::parse(&octets).unwrap();
        let received = Received {
            link: &self.config.links[0],
            source: NONE,
            destination: Ipv4Addr::BROADCAST,
            sender: message.sender(),
        };
        let count = self.engines.len() as u32;
        let owner = owner(&query, &received, &self.config, count).unwrap();
        let engine = &mut self.engines[owner as usize];
        let boot = BootReply::default();
        let dropped = engine.on_message(
            &query,
            &received,
            &boot,
            &self.config,
            self.now,
            &mut self.out,
        );
        let (mut reply, mut tickets) = (None, vec![]);
        loop {
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
                    Out::Event(_) => {}
                }
            }
            let Some(ticket) = tickets.pop() else {
                return (reply, dropped);
            };
            let outcome = Outcome::Durable {
                remaining: secs(1200),
            };
            engine.on_outcome(ticket, outcome, self.now, &mut self.out);
        }
    }

    /// Carries every wish around the ring until somebody lends; gives what was lent, undelivered.
    fn carry(&mut self) -> Vec<(usize, Vec<Lent>)> {
        let count = self.engines.len();
        let mut lent = vec![];
        for borrower in 0..count {
            while let Some(wish) = self.engines[borrower].next_wish() {
                for step in 1..count {
                    let lender = &mut self.engines[(borrower + step) % count];
                    let given = lender.lend(&wish, &self.config);
                    if !given.is_empty() {
                        lent.push((borrower, given));
                        break;
                    }
                }
            }
        }
        lent
    }

    fn deliver(&mut self, lent: &[(usize, Vec<Lent>)]) {
        for (borrower, lent) in lent {
            self.engines[*borrower].take(lent);
        }
    }

    /// The client asks until it is offered something, three times at most.
    fn discover(&mut self, message: &Message) -> Option<Ipv4Addr> {
        (0..3).find_map(|_| {
            self.now += secs(4);
            let reply = self.send(message).0;
            let lent = self.carry();
            self.deliver(&lent);
            reply.map(|(kind, address)| {
                assert_eq!(kind, Offer);
                address
            })
        })
    }

    /// The machine with this number gets an address.
    fn bind(&mut self, number: u32) -> Ipv4Addr {
        let mac = machine(number);
        let address = self.discover(&discover(mac));
        let address = address.unwrap_or_else(|| panic!("nothing for machine {number}"));
        let ack = self.send(&request(mac, address)).0;
        assert_eq!(ack, Some((Ack, address)));
        address
    }

    fn addresses(&self) -> usize {
        self.engines
            .iter()
            .map(|engine| engine.usage().addresses)
            .sum()
    }
}

fn machine(number: u32) -> Mac {
    let [a, b, c, d] = number.wrapping_mul(2_654_435_761).to_be_bytes();
    Mac([0x52, 0x54, a, b, c, d])
}

/// Eight shards have eight addresses each; 60 machines fall on them as they may, and all get one.
#[test]
fn the_last_address_of_a_range_is_found_wherever_it_is() {
    let mut shards = Shards::new(8, 64, config());
    let mut held = HashMap::new();
    for number in 0..64 {
        let (mac, address) = (machine(number), shards.bind(number));
        assert_eq!(held.insert(address, mac), None, "one client each");
    }
    assert_eq!(shards.discover(&discover(machine(64))), None);
    assert_eq!(shards.addresses(), 64);
    let lent: u64 = shards
        .engines
        .iter()
        .map(|engine| engine.counters().sent(Sent::Lent))
        .sum();
    assert!(lent > 0, "the hash is not that even");
}

/// Machines that enlist are strangers, all of them.
#[test]
fn strangers_find_the_last_address_of_a_range_too() {
    let mut fixed = config();
    fixed.strangers = (0..65).map(machine).collect();
    fixed.known = 0;
    let mut shards = Shards::new(8, 64, fixed);
    for number in 0..64 {
        shards.bind(number);
    }
    assert_eq!(shards.discover(&discover(machine(64))), None);
}

/// What is kept for known machines at another shard is not lent for a stranger, but for one of them it is.
#[test]
fn strangers_do_not_borrow_what_is_kept_for_known_machines() {
    const KNOWN: usize = 16;
    let mut fixed = config();
    fixed.strangers = (0..200).map(machine).collect();
    fixed.known = KNOWN;
    let mut shards = Shards::new(4, 64, fixed);
    let mut served = 0;
    for number in 0..200 {
        let mac = machine(number);
        if let Some(address) = shards.discover(&discover(mac)) {
            served += usize::from(shards.send(&request(mac, address)).0.is_some());
        }
    }
    assert!(
        (32..=64 - KNOWN).contains(&served),
        "{served} strangers of 64"
    );
    for number in 1_000..1_000 + KNOWN as u32 {
        let mac = machine(number);
        let address = shards.discover(&discover(mac));
        assert!(address.is_some(), "known machine {number}");
    }
}

/// BOOTP clients do not ask for leases, but their addresses may be in a range, and there another shard's.
#[test]
fn a_reserved_address_comes_to_its_bootp_client() {
    for last in 100..104 {
        let mut fixed = config();
        let key = ReservationKey::Mac(mac(1));
        fixed.reservations.push(reservation(key, last));
        let mut shards = Shards::new(4, 16, fixed);
        let answer = (0..2).find_map(|_| {
            let (_, dropped) = shards.send(&bootp(mac(1)));
            let lent = shards.carry();
            shards.deliver(&lent);
            dropped.is_none().then_some(())
        });
        assert_eq!(answer, Some(()), "{last}");
    }
}

#[test]
fn what_was_lent_before_an_attach_means_nothing_after_it() {
    let mut shards = Shards::new(2, 4, config());
    // Three clients of one shard, which has two addresses.
    let clients: Vec<Message> = (0..)
        .map(machine)
        .filter(|mac| shard_of_mac(*mac, 2) == 0)
        .map(discover)
        .take(3)
        .collect();
    for client in &clients[..2] {
        assert!(shards.send(client).0.is_some());
    }
    let (reply, dropped) = shards.send(&clients[2]);
    assert_eq!((reply, dropped), (None, Some(Drop::Borrowing)));
    let lent = shards.carry();
    assert_eq!(lent.len(), 1);
    assert_eq!(shards.addresses(), 3, "one is on its way");
    shards.attach(4, &[]);
    shards.deliver(&lent);
    assert_eq!(shards.addresses(), 4, "it is where it was before");
    let usage = |shard: usize| shards.engines[shard].usage().addresses;
    assert_eq!((usage(0), usage(1)), (2, 2));
}

/// Two clients lack an address at the same moment: one wish, and neither is told that the range is exhausted.
#[test]
fn who_waits_for_a_lent_address_is_not_out_of_addresses() {
    let mut shards = Shards::new(2, 4, config());
    let clients: Vec<Message> = (0..)
        .map(machine)
        .filter(|mac| shard_of_mac(*mac, 2) == 0)
        .map(discover)
        .take(5)
        .collect();
    for client in &clients[..2] {
        assert!(shards.send(client).0.is_some());
    }
    for client in &clients[2..4] {
        assert_eq!(shards.send(client).1, Some(Drop::Borrowing));
    }
    let lent = shards.carry();
    shards.deliver(&lent);
    assert!(shards.engines[0].take_came());
    assert!(shards.send(&clients[2]).0.is_some());
    assert_eq!(
        shards.send(&clients[3]).1,
        Some(Drop::Borrowing),
        "a wish again"
    );
    // Nobody has answered for a while: then there is none.
    shards.now += secs(1);
    assert_eq!(shards.send(&clients[4]).1, Some(Drop::NoFreeAddress));
}

fn reservation(key: ReservationKey, last: u8) -> Reservation {
    Reservation {
        vlan: VLAN,
        subnet: SUBNET,
        key,
        address: ip(last),
        hostname: String::new(),
        lease: None,
        options: [].into(),
    }
}

/// An address inside the dynamic range is set aside, before the attach or after it, by MAC, client id or port; its
/// client and it are different shards' by their hashes.
#[test]
fn a_reserved_address_comes_to_its_client() {
    let keys = [
        ReservationKey::Mac(mac(1)),
        ReservationKey::ClientId([0xff, 1, 2, 3].into()),
        ReservationKey::Circuit {
            circuit: (*b"ge-0").into(),
            remote: [].into(),
        },
    ];
    for (at, key) in keys.into_iter().enumerate() {
        // A port is a relay's word.
        let giaddr = match key {
            ReservationKey::Circuit { .. } => ip(253),
            _ => NONE,
        };
        for early in [false, true] {
            // Each of the shards has it once.
            for last in 100..104 {
                let case = format!("key {at}, early {early}, {last}");
                let mut fixed = config();
                if early {
                    fixed.reservations.push(reservation(key.clone(), last));
                }
                let mut shards = Shards::new(4, 16, fixed);
                if !early {
                    let late = reservation(key.clone(), last);
                    shards.config.reservations.push(late);
                }
                let ask = discover(mac(1)).with(code::CLIENT_ID, &[0xff, 1, 2, 3]);
                let ask = Message { giaddr, ..ask }.with(code::RELAY_INFO, b"\x01\x04ge-0");
                assert_eq!(shards.discover(&ask), Some(ip(last)), "{case}");
                let ask = Message {
                    kind: MessageType::Request,
                    requested: Some(ip(last)),
                    server: Some(SERVER),
                    ..ask
                };
                assert_eq!(shards.send(&ask).0, Some((Ack, ip(last))), "{case}");
                // The region's row brings it back to that client's shard.
                let mut row = row(ip(last), mac(1), 600_000);
                row.client.as_mut().unwrap().key = ClientKey::Mac(mac(1).0);
                shards.attach(16, &[row]);
                assert_eq!(shards.send(&ask).0, Some((Ack, ip(last))), "{case}");
            }
        }
    }
}

/// Somebody else holds it: one silence, then any other address.
#[test]
fn a_reserved_address_that_is_taken_is_not_waited_for() {
    let mut fixed = config();
    fixed
        .reservations
        .push(reservation(ReservationKey::Mac(mac(1)), 101));
    let holder = row(ip(101), mac(2), 600_000);
    let mut shards = Shards::new(4, 16, fixed);
    shards.attach(16, &[holder]);
    let offered = shards.discover(&discover(mac(1))).expect("an address");
    assert_ne!(offered, ip(101));
    // Later it is wished for once more. The client that has another one waits for the answer, which takes milliseconds,
    // and not for its own next message.
    for _ in 0..3 {
        shards.now += secs(6);
        let waits = shards.send(&discover(mac(1))).1;
        assert_eq!(waits, Some(Drop::Borrowing));
        let lent = shards.carry();
        shards.deliver(&lent);
        shards.now += Duration::from_millis(300);
        assert_eq!(shards.send(&discover(mac(1))).0, Some((Offer, offered)));
    }
}
