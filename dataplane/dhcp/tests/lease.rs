//! The engine by the lease protocol: outcomes, silence without a durable end, reservations, reclaims, limits.

mod common;

use common::*;
use std::net::Ipv4Addr;

use dhcp::{Config as _, *};
use lease::{BlockId, Outcome, Refusal, Row};
use wire::dhcp4::MessageType::{Ack, Nak, Offer};
use wire::dhcp4::{View, code};

// -------------------------------------------------------------------- outcomes

#[test]
fn outcomes_other_than_durable_are_silence() {
    let refused = Outcome::Refused;
    // outcome, then: what the same client's next REQUEST gets, what another client is offered
    let cases = [
        (
            "other client",
            refused(Refusal::OtherClient),
            Some(Nak),
            None,
        ),
        ("stale epoch", refused(Refusal::StaleEpoch), Some(Nak), None),
        (
            "mute: never sent",
            refused(Refusal::Mute),
            None,
            Some(ip(100)),
        ),
        ("unknown", Outcome::Unknown, None, None),
    ];
    for (case, outcome, again, other) in cases {
        let mut rack = Rack::new(1);
        rack.send(&discover(mac(1)));
        let step = rack.send(&request(mac(1), ip(100)));
        let (ticket, _) = *step.write();
        assert_eq!(rack.outcome(ticket, outcome).reply(), None, "{case}");
        let offered = rack
            .send(&discover(mac(2)))
            .reply()
            .map(|(_, address)| address);
        assert_eq!(offered, other, "{case}");
        if other.is_none() {
            let step = rack.send(&request(mac(1), ip(100)));
            assert_eq!(step.reply().map(|(kind, _)| kind), again, "{case}");
            assert_eq!(
                step.writes.len(),
                usize::from(outcome == Outcome::Unknown),
                "{case}"
            );
        }
    }
}

#[test]
fn an_unknown_address_is_its_clients_until_the_next_attach() {
    let mut rack = Rack::new(1);
    rack.send(&discover(mac(1)));
    let step = rack.send(&request(mac(1), ip(100)));
    let (ticket, _) = *step.write();
    rack.outcome(ticket, Outcome::Unknown);
    for day in 1..3 {
        let step = rack.at(day * 40_000).tick();
        assert!(step.writes.is_empty(), "never reclaimed");
        assert_eq!(rack.send(&discover(mac(2))).reply(), None);
    }
    rack.attach(1, &[]);
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn a_refused_block_deals_nothing_but_keeps_its_promises() {
    let mut rack = Rack::new(4);
    rack.boot(mac(1));
    rack.send(&discover(mac(2)));
    let step = rack.send(&request(mac(2), ip(101)));
    let (ticket, _) = *step.write();
    rack.outcome(ticket, Outcome::Refused(Refusal::StaleEpoch));
    assert_eq!(rack.send(&discover(mac(3))).reply(), None);
    assert_eq!(
        rack.send(&renew(mac(1), ip(100))).reply(),
        Some((Ack, ip(100)))
    );
    let step = rack.at(700).send(&renew(mac(1), ip(100)));
    assert_eq!(
        (step.reply(), step.dropped),
        (None, Some(Drop::BlockRefused))
    );
    // The attach that the refusal brings is a moment away: the message is kept for it, as behind a probe.
    assert!(Drop::BlockRefused.waits());
}

#[test]
fn a_write_that_nobody_answers_becomes_unknown() {
    let mut rack = Rack::new(1);
    rack.send(&discover(mac(1)));
    let step = rack.send(&request(mac(1), ip(100)));
    rack.at(100).tick();
    assert_eq!(rack.engine.usage().pending, 0);
    assert_eq!(rack.engine.counters().sent(Sent::Unknown), 1);
    assert_eq!(rack.durable(&step).reply(), None, "too late");
    assert_eq!(rack.send(&request(mac(1), ip(100))).writes.len(), 1);
}

// -------------------------------------------------------------------- mute

#[test]
fn an_unattached_rack_answers_reservations_only() {
    let mut config = config();
    config.reservations.push(reservation(1, 20));
    let mut rack = Rack::unattached(config);
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(20))));
    assert_eq!(
        rack.send(&request(mac(1), ip(20))).reply(),
        Some((Ack, ip(20)))
    );
    assert_eq!(rack.send(&discover(mac(2))).dropped, Some(Drop::Mute));
    assert_eq!(
        rack.send(&request(mac(2), ip(100))).dropped,
        Some(Drop::Mute)
    );
    rack.engine.set_until(rack.now + secs(100));
    assert_eq!(
        rack.send(&discover(mac(2))).dropped,
        Some(Drop::Mute),
        "only an attach helps"
    );
    assert_eq!(rack.engine.next_deadline(), None);
}

#[test]
fn past_until_and_after_forget_there_is_silence() {
    let mut rack = Rack::new(4);
    rack.boot(mac(1));
    assert_eq!(
        rack.at(86_401).send(&renew(mac(1), ip(100))).dropped,
        Some(Drop::Mute)
    );

    let mut rack = Rack::new(4);
    rack.boot(mac(1));
    rack.send(&discover(mac(2)));
    let waiting = rack.send(&request(mac(2), ip(101)));
    rack.engine.forget();
    assert_eq!(rack.durable(&waiting).reply(), None);
    assert_eq!(rack.send(&renew(mac(1), ip(100))).dropped, Some(Drop::Mute));
}

// -------------------------------------------------------------------- reservations

fn reservation(client: u8, address: u8) -> Reservation {
    Reservation {
        vlan: VLAN,
        subnet: SUBNET,
        key: ReservationKey::Mac(mac(client)),
        address: ip(address),
        hostname: "reserved-1".into(),
        lease: None,
        options: [].into(),
    }
}

#[test]
fn a_reservation_is_acked_from_the_snapshot() {
    let mut config = config();
    config.reservations.push(reservation(1, 20));
    let mut rack = Rack::with_rows(config, 4, &[]);
    let step = rack.send(&discover(mac(1)));
    assert_eq!(step.reply(), Some((Offer, ip(20))));
    assert_eq!(step.replies[0].view().hostname(), Some(&b"reserved-1"[..]));
    let step = rack.send(&request(mac(1), ip(20)));
    assert_eq!((step.reply(), step.writes.len()), (Some((Ack, ip(20))), 0));
    assert_eq!(
        rack.send(&renew(mac(1), ip(101))).reply(),
        Some((Nak, NONE))
    );
    assert_eq!(
        rack.send(&init_reboot(mac(2), ip(20))).reply(),
        Some((Nak, NONE))
    );
}

#[test]
fn a_reservation_inside_a_block_is_granted_and_dealt_to_nobody_else() {
    let mut config = config();
    config.reservations.push(reservation(1, 100));
    let mut rack = Rack::with_rows(config, 2, &[]);
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(101))));
    assert_eq!(
        rack.send(&discover(mac(3))).dropped,
        Some(Drop::NoFreeAddress)
    );
    let wants = Message {
        requested: Some(ip(100)),
        ..discover(mac(3))
    };
    assert_eq!(rack.send(&wants).dropped, Some(Drop::NoFreeAddress));
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(100))));
    assert_eq!(
        rack.send(&request(mac(1), ip(100))).writes.len(),
        1,
        "granted, not just said"
    );
}

#[test]
fn a_reservation_inside_a_block_waits_for_who_holds_the_address() {
    let mut config = config();
    config.reservations.push(reservation(1, 100));
    let mut rack = Rack::with_rows(config, 2, &[row(ip(100), mac(2), 900_000)]);
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(101))));
    assert_eq!(rack.engine.counters().sent(Sent::ReservationTaken), 1);
    assert_eq!(
        rack.send(&renew(mac(2), ip(100))).reply(),
        Some((Nak, NONE)),
        "it must move"
    );
}

// -------------------------------------------------------------------- reclaiming

#[test]
fn ended_rows_come_back_only_by_reclaim_and_only_when_wanted() {
    let rows: Vec<Row> = (0..7)
        .map(|n| row(ip(100 + n), mac(n + 1), -120_000))
        .collect();
    let mut rack = Rack::with_rows(config(), 8, &rows);
    let step = rack.at(1).tick();
    assert_eq!(step.writes.len(), 7, "one of eight free is low");
    let step_again = rack.at(3).tick();
    assert!(step_again.writes.is_empty(), "already asked");
    // While the reclaim is on its way the old client is not served either.
    assert_eq!(
        rack.send(&init_reboot(mac(1), ip(100))).dropped,
        Some(Drop::Reclaiming)
    );
    let outcomes = [
        Outcome::Done,
        Outcome::Refused(Refusal::NotEnded),
        Outcome::Refused(Refusal::NotFound),
        Outcome::Unknown,
    ];
    for ((ticket, _), outcome) in step.writes.iter().zip(outcomes) {
        rack.outcome(*ticket, outcome);
    }
    assert_eq!(rack.engine.usage().free, 2);
    assert_eq!(
        rack.send(&init_reboot(mac(1), ip(100))).dropped,
        Some(Drop::NoRecord),
        "done"
    );
    assert_eq!(
        rack.send(&init_reboot(mac(2), ip(101))).writes.len(),
        1,
        "not ended"
    );
    assert_eq!(
        rack.send(&init_reboot(mac(3), ip(102))).dropped,
        Some(Drop::NoRecord),
        "gone"
    );
    assert_eq!(
        rack.send(&init_reboot(mac(4), ip(103))).writes.len(),
        1,
        "unknown: still its own"
    );

    let mut plenty = Rack::with_rows(config(), 8, &rows[..2]);
    assert!(
        plenty.at(1).tick().writes.is_empty(),
        "a returning client keeps its address"
    );
}

#[test]
fn a_full_range_comes_back_within_a_second() {
    let rows: Vec<Row> = (0..150)
        .map(|n| row(ip(100 + n), mac(n), -120_000))
        .collect();
    let mut rack = Rack::with_rows(config(), 150, &rows);
    rack.at(1);
    let mut asked = rack.tick().writes.len();
    assert!(asked < 150, "one scan asks for so many only");
    while asked < 150 {
        rack.now = rack.engine.next_deadline().expect("a scan is due");
        assert!(rack.now <= rack.start + secs(2), "{asked} asked for");
        asked += rack.tick().writes.len();
    }
}

#[test]
fn strangers_addresses_come_back_before_their_half_is_full() {
    for (ended, want) in [(2, 0), (3, 3)] {
        let rows: Vec<Row> = (0..ended)
            .map(|n| row(ip(100 + n), mac(n + 1), -120_000))
            .collect();
        let strangers = (1..=8).map(mac).collect();
        let config = Fixed {
            strangers,
            ..config()
        };
        let mut rack = Rack::with_rows(config, 8, &rows);
        assert_eq!(rack.at(1).tick().writes.len(), want, "{ended} of 4");
    }
}

#[test]
fn what_was_released_is_reclaimed_first_and_nothing_before_its_minute() {
    let ended = |n: u8, remaining_ms, released| Row {
        released,
        ..row(ip(100 + n), mac(n + 1), remaining_ms)
    };
    let rows = [
        ended(0, -61_000, false),
        ended(1, -61_000, true),
        ended(2, -59_000, true),
    ];
    let mut rack = Rack::with_rows(config(), 3, &rows);
    let step = rack.tick();
    let order: Vec<_> = step.writes.iter().map(|(_, write)| write.address).collect();
    assert_eq!(order, [ip(101), ip(100)]);
}

#[test]
fn quarantined_rows_rest_but_serve_their_own_client() {
    let bare = Row {
        client: None,
        quarantine: secs(600),
        ..row(ip(100), mac(1), 0)
    };
    let own = Row {
        quarantine: secs(600),
        ..row(ip(100), mac(1), -120_000)
    };
    let mut rack = Rack::with_rows(config(), 1, std::slice::from_ref(&bare));
    for (second, want) in [(1, None), (600, None), (700, Some((Offer, ip(100))))] {
        rack.at(second).tick();
        assert_eq!(rack.send(&discover(mac(2))).reply(), want, "{second}");
    }
    let mut rack = Rack::with_rows(config(), 1, std::slice::from_ref(&own));
    for (second, want) in [(1, 0), (600, 0), (700, 1)] {
        assert_eq!(
            rack.at(second).tick().writes.len(),
            want,
            "reclaimed at {second}"
        );
    }
    let mut rack = Rack::with_rows(config(), 1, &[own]);
    assert_eq!(rack.send(&init_reboot(mac(1), ip(100))).writes.len(), 1);
    assert_eq!(rack.send(&discover(mac(2))).reply(), None);
}

// -------------------------------------------------------------------- limits

#[test]
fn strangers_get_what_is_not_kept_for_known_machines() {
    for (known, want) in [(0, 8), (2, 6), (4, 4), (100, 4)] {
        let mut config = config();
        config.strangers = (1..=10).map(mac).collect();
        config.known = known;
        let mut rack = Rack::with_rows(config, 8, &[]);
        for n in 1..=10 {
            rack.send(&discover(mac(n)));
        }
        let held = rack.engine.usage().offered;
        assert_eq!(held, want, "{known} known machines");
    }
}

#[test]
fn strangers_get_half_of_the_range() {
    let mut config = config();
    config.strangers = (1..=10).map(mac).collect();
    let mut rack = Rack::with_rows(config, 8, &[]);
    for n in 1..=4 {
        rack.boot(mac(n));
    }
    assert_eq!(
        rack.send(&discover(mac(5))).dropped,
        Some(Drop::StrangersFull)
    );
    let wants = Message {
        requested: Some(ip(107)),
        ..discover(mac(5))
    };
    assert_eq!(rack.send(&wants).dropped, Some(Drop::StrangersFull));
    assert!(
        rack.send(&discover(mac(1))).reply().is_some(),
        "its own again"
    );
    assert!(
        rack.send(&discover(mac(20))).reply().is_some(),
        "a known machine"
    );
    // One of them is enlisted and comes again: it counts as known from then on.
    rack.config.strangers.retain(|known| *known != mac(1));
    assert!(rack.config.is_known(mac(1)));
    rack.boot(mac(1));
    assert!(rack.send(&discover(mac(5))).reply().is_some());
}

#[test]
fn ended_leases_of_strangers_make_room_for_other_strangers() {
    let mut config = config();
    config.strangers = (1..=10).map(mac).collect();
    let rows: Vec<Row> = (0..4)
        .map(|n| row(ip(100 + n), mac(n + 1), -120_000))
        .collect();
    let mut rack = Rack::with_rows(config, 8, &rows);
    assert_eq!(
        rack.send(&discover(mac(9))).dropped,
        Some(Drop::StrangersFull)
    );
    let step = rack.tick();
    assert_eq!(step.writes.len(), 4);
    let (ticket, _) = step.writes[0];
    rack.outcome(ticket, Outcome::Done);
    assert!(rack.send(&discover(mac(9))).reply().is_some());
}

#[test]
fn odd_clients_are_turned_away_by_name() {
    let by_id = |id: &[u8]| {
        Message {
            hlen: 0,
            ..discover(mac(1))
        }
        .with(code::CLIENT_ID, id)
    };
    let mut server_message = discover(mac(1)).octets();
    server_message[0] = 2;
    let mut hopping = discover(mac(1)).octets();
    hopping[3] = 17;
    let mut untyped = discover(mac(1)).octets();
    untyped[240..243].fill(0);
    let cases = [
        ("a server's", server_message, Some(Drop::NotARequest)),
        (
            "an ACK with op 1",
            message(Ack, mac(1)).octets(),
            Some(Drop::NotForServers),
        ),
        ("a loop", hopping, Some(Drop::TooManyHops)),
        ("BOOTP", untyped, Some(Drop::NoReservation)),
        (
            "everybody's address",
            discover(wire::ethernet::Mac::BROADCAST).octets(),
            Some(Drop::NoIdentity),
        ),
        (
            "hlen 0, no id",
            Message {
                hlen: 0,
                ..discover(mac(1))
            }
            .octets(),
            Some(Drop::NoIdentity),
        ),
        ("hlen 0 with an id", by_id(&[1, 2, 3]).octets(), None),
    ];
    for (case, octets, want) in cases {
        let mut rack = Rack::new(4);
        let step = rack.send_octets(&octets, Ipv4Addr::BROADCAST, &BootReply::default());
        assert_eq!(step.dropped, want, "{case}");
        if let Some(reason) = want {
            assert_eq!(rack.dropped(reason), 1, "{case}");
        }
    }
}

#[test]
fn client_ids_count_only_where_the_subnet_says_so() {
    let mut config = config();
    let ids: [&[u8]; 2] = [b"\x01first", b"\x01second"];
    for (opted_in, want_same) in [(false, true), (true, false)] {
        config.links[0].subnets[0].client_id_identity = opted_in;
        let mut rack = Rack::with_rows(
            Fixed {
                links: config.links.clone(),
                reservations: vec![],
                strangers: vec![],
                known: usize::MAX,
            },
            4,
            &[],
        );
        let offers = ids.map(|id| {
            let step = rack.send(&discover(mac(1)).with(code::CLIENT_ID, id));
            assert_eq!(step.replies[0].view().client_id(), Some(id), "RFC 6842");
            step.reply().unwrap().1
        });
        assert_eq!(offers[0] == offers[1], want_same);
    }
}

// -------------------------------------------------------------------- attaching

#[test]
fn shards_share_out_the_addresses_and_the_clients() {
    let config = config();
    let rows = [row(ip(100), mac(1), 900_000), row(ip(101), mac(2), 900_000)];
    let now = std::time::Instant::now();
    let mut offered: Vec<(u32, Ipv4Addr)> = vec![];
    for index in 0..2 {
        let shard = Shard { index, count: 2 };
        let mut engine = Engine::new(shard, Limits::default(), 1, now);
        engine.attach(&[block(10)], &rows, now + secs(1_000), now, &config, now);
        let mut out = Outbox::new(64);
        for client in 1..=40 {
            let octets = discover(mac(client)).octets();
            let query = View::parse(&octets).unwrap();
            let received = Received {
                link: &config.links[0],
                source: NONE,
                destination: Ipv4Addr::BROADCAST,
                sender: Sender::Frame,
            };
            let boot = BootReply::default();
            let dropped = engine.on_message(&query, &received, &boot, &config, now, &mut out);
            let mine = shard_of_mac(mac(client), 2) == index;
            assert_eq!(owner(&query, &received, &config, 2) == Ok(index), mine);
            assert_eq!(dropped == Some(Drop::OtherShard), !mine, "{client}");
        }
        let (items, buffer) = out.drain();
        for item in items {
            if let Out::Reply(reply) = item {
                let view = View::parse(reply.payload(buffer)).unwrap();
                offered.push((view.mac().unwrap().0[5].into(), view.yiaddr()));
            }
        }
        assert_eq!(engine.usage().free, 0);
    }
    assert!(offered.contains(&(1, ip(100))) && offered.contains(&(2, ip(101))));
    let mut addresses: Vec<_> = offered.iter().map(|(_, address)| *address).collect();
    addresses.sort_unstable();
    let all: Vec<_> = (100..110).map(ip).collect();
    assert_eq!(addresses, all, "each address by exactly one shard");
}

#[test]
fn what_an_attach_cannot_mean_is_ignored_and_counted() {
    let other = |id, first: std::net::IpAddr| lease::Block {
        id: BlockId(id),
        first,
        ..block(4)
    };
    let blocks = [
        block(4),
        other(2, ip(102).into()),
        other(3, "fd99::1".parse().unwrap()),
        other(4, Ipv4Addr::BROADCAST.into()),
        other(1, ip(120).into()),
    ];
    let moved = lease::Client {
        vlan: 9,
        ..client(mac(1))
    };
    let rows = [
        Row {
            client: Some(moved),
            ..row(ip(100), mac(1), 900_000)
        },
        row(ip(150), mac(2), 900_000),
        Row {
            block: BlockId(77),
            ..row(ip(101), mac(3), 900_000)
        },
    ];
    let mut rack = Rack::unattached(config());
    let (now, until) = (rack.now, rack.now + secs(1_000));
    rack.engine
        .attach(&blocks, &rows, until, now, &rack.config, now);
    assert_eq!(rack.engine.counters().sent(Sent::AttachIgnored), 4 + 2);
    assert_eq!(
        rack.engine.usage().addresses,
        3,
        "the moved client keeps its address"
    );
    let wants = Message {
        requested: Some(ip(100)),
        ..discover(mac(5))
    };
    assert!(
        rack.send(&wants)
            .reply()
            .is_some_and(|(_, address)| address != ip(100))
    );
}

#[test]
fn what_a_live_lease_vouches_for() {
    let mut rack = Rack::new(4);
    let address = rack.boot(mac(1));
    assert_eq!(rack.engine.mac_at(VLAN, address, rack.now), Some(mac(1)));
    assert_eq!(rack.engine.mac_at(VLAN, ip(103), rack.now), None);
    assert_eq!(rack.engine.mac_at(9, address, rack.now), None);
    rack.at(1_189);
    assert_eq!(rack.engine.mac_at(VLAN, address, rack.now), None);
}

#[test]
fn limits_are_met_by_name() {
    let now = std::time::Instant::now();
    let limits = Limits {
        addresses_max: 10,
        offers_max: 2,
        pending_max: 1,
        ..Limits::default()
    };
    let mut rack = Rack::unattached(config());
    rack.engine = Engine::new(Shard { index: 0, count: 1 }, limits, 1, now);
    rack.attach(11, &[]);
    assert_eq!(
        (
            rack.engine.usage().addresses,
            rack.dropped(Drop::NoFreeAddress)
        ),
        (0, 0)
    );
    rack.attach(10, &[]);
    rack.send(&discover(mac(1)));
    rack.send(&discover(mac(2)));
    assert_eq!(rack.send(&discover(mac(3))).dropped, Some(Drop::OffersFull));
    assert_eq!(rack.send(&request(mac(1), ip(100))).writes.len(), 1);
    assert_eq!(
        rack.send(&request(mac(2), ip(101))).dropped,
        Some(Drop::PendingFull)
    );
}
