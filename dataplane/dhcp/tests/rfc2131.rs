//! The engine by the book: RFC 2131 §4.3, and the lease protocol's rules about what may be ACKed.

mod common;

use common::*;
use dhcp::{Config as _, Destination, Drop, EventKind, Reservation, Sent};
use lease::{BlockId, Outcome, Refusal, Row, WriteKind};
use wire::dhcp4::MessageType::{Ack, Inform, Nak, Offer};
use wire::dhcp4::code;

// -------------------------------------------------------------------- DISCOVER

#[test]
fn an_offer_holds_its_address_for_a_minute_and_writes_nothing() {
    let mut rack = Rack::new(1);
    let step = rack.send(&discover(mac(1)));
    assert_eq!(
        (step.reply(), step.writes.len()),
        (Some((Offer, ip(100))), 0)
    );
    assert_eq!(step.replies[0].lease(), LEASE_SECS);
    assert_eq!(
        rack.send(&discover(mac(2))).dropped,
        Some(Drop::NoFreeAddress)
    );
    rack.at(59).tick();
    assert_eq!(rack.send(&discover(mac(2))).reply(), None);
    rack.at(61).tick();
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn a_repeated_discover_prolongs_the_hold() {
    let mut rack = Rack::new(1);
    rack.send(&discover(mac(1)));
    rack.at(50).send(&discover(mac(1)));
    rack.at(70).tick();
    assert_eq!(
        rack.send(&discover(mac(2))).dropped,
        Some(Drop::NoFreeAddress)
    );
    rack.at(111).tick();
    rack.at(122).tick();
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn offers_prefer_the_binding_then_the_request_then_any() {
    let mut rack = Rack::new(8);
    assert_eq!(rack.boot(mac(1)), ip(100));
    let wants = |last| Message {
        requested: Some(ip(last)),
        ..discover(mac(1))
    };
    assert_eq!(
        rack.send(&wants(105)).reply(),
        Some((Offer, ip(100))),
        "it has a binding"
    );
    let other = Message {
        requested: Some(ip(105)),
        ..discover(mac(2))
    };
    assert_eq!(rack.send(&other).reply(), Some((Offer, ip(105))));
    for (case, last) in [("held", 100), ("offered", 105), ("outside", 50)] {
        let message = Message {
            requested: Some(ip(last)),
            ..discover(mac(3))
        };
        let (kind, address) = rack.send(&message).reply().unwrap();
        assert_eq!(kind, Offer);
        assert!(address != ip(last), "{case}");
    }
}

#[test]
fn the_racks_and_gateways_own_addresses_are_never_dealt() {
    let mut config = config();
    config.links[0].server = ip(100);
    config.links[0].subnets[0].gateway = Some(ip(101));
    let mut rack = Rack::with_rows(config, 3, &[]);
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(102))));
    assert_eq!(
        rack.send(&discover(mac(2))).dropped,
        Some(Drop::NoFreeAddress)
    );
}

// -------------------------------------------------------------------- REQUEST, selecting

#[test]
fn an_ack_waits_for_its_durable_end() {
    let mut rack = Rack::new(4);
    rack.send(&discover(mac(1)));
    let step = rack
        .at(1)
        .send(&request(mac(1), ip(100)).with(code::HOSTNAME, b"node-1"));
    assert_eq!(step.reply(), None);
    let (ticket, write) = step.write().clone();
    assert_eq!(
        (write.block, write.epoch.0, write.address),
        (BlockId(1), 3, ip(100).into())
    );
    let grant = WriteKind::Grant {
        client: client(mac(1)),
        lease: secs(LEASE_SECS.into()),
        hostname: "node-1".into(),
    };
    assert_eq!(write.kind, grant);

    let step = rack.at(2).outcome(
        ticket,
        Outcome::Durable {
            remaining: secs(1200),
        },
    );
    assert_eq!(step.reply(), Some((Ack, ip(100))));
    assert_eq!(step.replies[0].lease(), LEASE_SECS);
    assert_eq!(step.events[0].kind, EventKind::Ack);
    assert_eq!(step.events[0].mac, Some(mac(1)));
}

#[test]
fn a_retransmitted_request_joins_the_waiting_grant() {
    let mut rack = Rack::new(4);
    rack.send(&discover(mac(1)));
    let first = rack.send(&request(mac(1), ip(100)));
    let again = rack.at(2).send(&Message {
        xid: 99,
        ..request(mac(1), ip(100))
    });
    assert_eq!(
        (again.writes.len(), again.dropped, again.reply()),
        (0, None, None)
    );
    let step = rack.durable(&first);
    assert_eq!(step.reply(), Some((Ack, ip(100))));
    assert_eq!(step.replies[0].view().xid(), 99, "the latest is answered");
    assert_eq!(rack.durable(&first).reply(), None, "the ticket is used up");
}

#[test]
fn an_ack_promises_the_least_of_lease_durable_end_and_until() {
    let cases = [
        // case                        durable  until    late  ACK
        ("the subnet's lease", 1200, 86_400, 0, Some(600)),
        ("99 % of the durable end", 400, 86_400, 0, Some(396)),
        ("counted from sending", 400, 86_400, 100, Some(296)),
        ("until", 1200, 50, 0, Some(50)),
        ("too little is silence", 9, 86_400, 0, None),
        ("past the end is silence", 400, 86_400, 500, None),
    ];
    for (case, durable, until, late, want) in cases {
        let mut rack = Rack::new(4);
        rack.send(&discover(mac(1)));
        let step = rack.send(&request(mac(1), ip(100)));
        let now = rack.now;
        rack.engine.set_until(now + secs(until));
        rack.at(late);
        let (ticket, _) = *step.write();
        let step = rack.outcome(
            ticket,
            Outcome::Durable {
                remaining: secs(durable),
            },
        );
        assert_eq!(step.replies.first().map(Seen::lease), want, "{case}");
    }
}

#[test]
fn a_boot_of_four_exchanges_costs_one_write() {
    let mut rack = Rack::new(4);
    rack.boot(mac(1));
    for second in [10, 20, 40] {
        rack.at(second);
        rack.boot(mac(1));
    }
    assert_eq!(rack.engine.counters().sent(Sent::Grant), 1);
    assert_eq!(rack.engine.counters().sent(Sent::AckFromMemory), 3);
}

#[test]
fn renewals_write_every_other_time() {
    let mut rack = Rack::new(4);
    rack.boot(mac(1));
    let mut writes = vec![];
    for half_lease in 1..=6u64 {
        let step = rack.at(half_lease * 300).send(&renew(mac(1), ip(100)));
        writes.push(step.writes.len());
        let step = if step.writes.is_empty() {
            step
        } else {
            rack.durable(&step)
        };
        assert_eq!(
            (step.reply(), step.replies[0].lease()),
            (Some((Ack, ip(100))), LEASE_SECS)
        );
        let to = Destination::Udp {
            ip: ip(100),
            port: 68,
        };
        assert_eq!(step.replies[0].destination, to);
    }
    assert_eq!(writes, [0, 1, 0, 1, 0, 1]);
}

#[test]
fn a_client_that_chose_another_server_frees_its_offer_in_silence() {
    let mut rack = Rack::new(1);
    rack.send(&discover(mac(1)));
    let elsewhere = Message {
        server: Some(ip(9)),
        ..request(mac(1), ip(77))
    };
    assert_eq!(rack.send(&elsewhere).dropped, Some(Drop::OtherServer));
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn a_late_request_gets_its_address_if_nobody_has_it_and_else_a_nak() {
    let mut rack = Rack::new(1);
    rack.send(&discover(mac(1)));
    rack.at(200).tick();
    assert_eq!(rack.engine.usage().offered, 0);
    assert_eq!(rack.send(&request(mac(1), ip(100))).writes.len(), 1);

    let mut rack = Rack::new(1);
    rack.send(&discover(mac(1)));
    rack.at(200).tick();
    assert_eq!(rack.boot(mac(2)), ip(100));
    let step = rack.send(&request(mac(1), ip(100)));
    assert_eq!(step.reply(), Some((Nak, NONE)));
    assert_eq!(step.replies[0].destination, Destination::BROADCAST);
}

// -------------------------------------------------------------------- REQUEST, the other states

#[test]
fn init_reboot_and_renewal_by_the_table() {
    // mac(1) holds .100; mac(2) holds nothing.
    let cases = [
        (
            "init-reboot, its own",
            init_reboot(mac(1), ip(100)),
            Some(Ack),
            None,
        ),
        (
            "init-reboot, another",
            init_reboot(mac(1), ip(103)),
            Some(Nak),
            None,
        ),
        (
            "init-reboot, no record",
            init_reboot(mac(2), ip(103)),
            None,
            Some(Drop::NoRecord),
        ),
        (
            "init-reboot, other's",
            init_reboot(mac(2), ip(100)),
            None,
            Some(Drop::NoRecord),
        ),
        (
            "init-reboot, peer's block",
            init_reboot(mac(1), ip(150)),
            None,
            Some(Drop::NoRecord),
        ),
        (
            "init-reboot, wrong net",
            init_reboot(mac(2), [10, 1, 1, 1].into()),
            Some(Nak),
            None,
        ),
        ("renew, its own", renew(mac(1), ip(100)), Some(Ack), None),
        ("renew, another", renew(mac(1), ip(103)), Some(Nak), None),
        (
            "renew, no record",
            renew(mac(2), ip(103)),
            None,
            Some(Drop::NoRecord),
        ),
        (
            "renew, wrong net",
            renew(mac(2), [10, 1, 1, 1].into()),
            None,
            Some(Drop::WrongNetwork),
        ),
        ("rebind, its own", rebind(mac(1), ip(100)), Some(Ack), None),
        (
            "rebind, no record",
            rebind(mac(2), ip(103)),
            None,
            Some(Drop::NoRecord),
        ),
        (
            "rebind, wrong net",
            rebind(mac(2), [10, 1, 1, 1].into()),
            Some(Nak),
            None,
        ),
        (
            "no address at all",
            Message {
                requested: None,
                ..init_reboot(mac(1), NONE)
            },
            None,
            Some(Drop::NoAddress),
        ),
    ];
    for (case, message, want, dropped) in cases {
        let mut rack = Rack::new(4);
        rack.boot(mac(1));
        let step = rack.at(5).send(&message);
        assert_eq!(step.reply().map(|(kind, _)| kind), want, "{case}");
        assert_eq!(step.dropped, dropped, "{case}");
    }
}

#[test]
fn a_client_that_ended_long_ago_gets_its_address_back_while_nobody_has_it() {
    let mut rack = Rack::with_rows(config(), 4, &[row(ip(102), mac(1), -3_600_000)]);
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(102))));
    assert_eq!(rack.send(&request(mac(1), ip(102))).writes.len(), 1);
}

#[test]
fn a_relayed_client_gets_its_relays_subnet() {
    let relay: std::net::Ipv4Addr = [10, 100, 0, 1].into();
    let mut rack = Rack::new(4);
    let blocks = [
        block(4),
        lease::Block {
            id: BlockId(2),
            vlan: 5002,
            subnet: 8,
            first: std::net::IpAddr::from([10, 100, 0, 10]),
            ..block(4)
        },
    ];
    let (until, now) = (rack.now + secs(1000), rack.now);
    rack.engine
        .attach(&blocks, &[], until, now, &rack.config, now);
    let circuit = [1, 2, 7, 7];
    let message = Message {
        giaddr: relay,
        ..discover(mac(1))
    }
    .with(code::RELAY_INFO, &circuit);
    let step = rack.send(&message);
    assert_eq!(step.reply(), Some((Offer, [10, 100, 0, 10].into())));
    assert_eq!(
        step.replies[0].destination,
        Destination::Udp {
            ip: relay,
            port: 67
        }
    );
    let view = step.replies[0].view();
    assert_eq!(view.relay_info(), Some(&circuit[..]));
    assert_eq!(
        view.options().last().map(|(code, _)| code),
        Some(code::RELAY_INFO)
    );
    assert_eq!(view.giaddr(), relay);

    let selected = [5, 4, 10, 99, 0, 0];
    let message = Message {
        giaddr: relay,
        ..discover(mac(1))
    }
    .with(code::RELAY_INFO, &selected);
    assert_eq!(
        rack.send(&message).reply(),
        Some((Offer, ip(100))),
        "RFC 3527 link selection"
    );

    let strange = Message {
        giaddr: [10, 7, 0, 1].into(),
        ..discover(mac(1))
    };
    assert_eq!(rack.send(&strange).dropped, Some(Drop::UnknownRelay));

    let moved = Message {
        giaddr: relay,
        ..init_reboot(mac(9), ip(100))
    };
    let step = rack.send(&moved);
    assert_eq!(step.reply(), Some((Nak, NONE)));
    assert!(
        step.replies[0].view().broadcast(),
        "the relay must broadcast a NAK"
    );
}

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
        mac: mac(client),
        address: ip(address),
        hostname: "reserved-1".into(),
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

// -------------------------------------------------------------------- DECLINE, RELEASE, INFORM

#[test]
fn a_declined_address_rests_and_is_nobodys() {
    let mut rack = Rack::new(1);
    rack.boot(mac(1));
    let step = rack.send(&decline(mac(1), ip(100)));
    let (_, write) = step.write();
    assert_eq!(write.kind, WriteKind::Quarantine { length: secs(600) });
    assert_eq!(step.events[0].kind, EventKind::Decline);
    assert_eq!(rack.send(&discover(mac(1))).reply(), None);
    assert_eq!(
        rack.at(650).tick().writes.len(),
        0,
        "ten minutes and a margin"
    );
    // Its row has ended at 1200 s: reclaimed first, then free.
    rack.at(700).tick();
    assert_eq!(rack.send(&discover(mac(2))).reply(), None);
    let step = rack.at(1_300).tick();
    let (ticket, write) = step.write().clone();
    assert_eq!(
        write.kind,
        WriteKind::Reclaim {
            client: client(mac(1))
        }
    );
    assert_eq!(
        rack.send(&discover(mac(2))).reply(),
        None,
        "not before the region answered"
    );
    rack.outcome(ticket, Outcome::Done);
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn only_the_holder_can_decline_or_release() {
    let mut rack = Rack::new(1);
    rack.boot(mac(1));
    assert_eq!(
        rack.send(&decline(mac(2), ip(100))).dropped,
        Some(Drop::NoRecord)
    );
    assert_eq!(
        rack.send(&release(mac(2), ip(100))).dropped,
        Some(Drop::NoRecord)
    );
    let elsewhere = Message {
        server: Some(ip(9)),
        ..release(mac(1), ip(100))
    };
    assert_eq!(rack.send(&elsewhere).dropped, Some(Drop::OtherServer));
    assert_eq!(
        rack.send(&renew(mac(1), ip(100))).reply(),
        Some((Ack, ip(100)))
    );
}

#[test]
fn a_release_shortens_nothing() {
    let mut rack = Rack::new(1);
    rack.boot(mac(1));
    let step = rack.send(&release(mac(1), ip(100)));
    assert_eq!(
        step.write().1.kind,
        WriteKind::Release {
            client: client(mac(1))
        }
    );
    assert!(
        rack.send(&release(mac(1), ip(100))).writes.is_empty(),
        "said once"
    );
    assert_eq!(rack.send(&discover(mac(2))).reply(), None);
    assert!(
        rack.at(1_200).tick().writes.is_empty(),
        "its end has just passed"
    );
    let step = rack.at(1_270).tick();
    let (ticket, _) = *step.write();
    rack.outcome(ticket, Outcome::Done);
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn inform_gets_parameters_without_an_address() {
    let mut rack = Rack::new(1);
    let message = Message {
        ciaddr: ip(77),
        ..message(Inform, mac(1))
    };
    let step = rack.send(&message);
    assert_eq!(step.reply(), Some((Ack, NONE)));
    assert_eq!(
        step.replies[0].destination,
        Destination::Udp {
            ip: ip(77),
            port: 68
        }
    );
    let view = step.replies[0].view();
    assert_eq!(view.lease_secs(), None);
    assert_eq!(view.option(code::ROUTERS), Some(&ip(254).octets()[..]));
    assert_eq!(rack.engine.usage().bound, 0);
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
fn strangers_get_half_of_the_range() {
    let mut config = config();
    config.strangers = (1..=10).map(mac).collect();
    let mut rack = Rack::with_rows(config, 8, &[]);
    for n in 1..=4 {
        assert!(rack.send(&discover(mac(n))).reply().is_some(), "{n}");
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
        "its own offer again"
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
        ("BOOTP", untyped, Some(Drop::NoMessageType)),
        (
            "a group address",
            discover(wire::ethernet::Mac([1, 0, 0x5e, 0, 0, 1])).octets(),
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
        let step = rack.send_octets(
            &octets,
            std::net::Ipv4Addr::BROADCAST,
            &dhcp::BootReply::default(),
        );
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
