//! The engine by the book: RFC 2131 §4.3.

mod common;

use common::*;
use dhcp::{Destination, Drop, EventKind, Sent};
use lease::{BlockId, Outcome, WriteKind};
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
            "init-reboot, nobody's block",
            init_reboot(mac(1), ip(150)),
            Some(Nak),
            None,
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
            client: client(mac(1)),
            silent: false,
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

#[test]
fn inform_is_answered_where_the_client_is_and_for_its_own_network_only() {
    let inform = |message: Message| Message {
        kind: Inform,
        ..message
    };
    // Through a relay it goes to the relay, as every reply does (§4.1).
    let relayed = inform(Message {
        ciaddr: ip(77),
        giaddr: ip(254),
        ..discover(mac(1))
    });
    let step = Rack::new(1).send(&relayed);
    let relay = Destination::Udp {
        ip: ip(254),
        port: 67,
    };
    assert_eq!(step.replies[0].destination, relay);
    assert_eq!(step.replies[0].view().ciaddr(), ip(77));
    // Some clients leave ciaddr empty and send from their address.
    let bare = inform(Message {
        source: ip(77),
        ..discover(mac(1))
    });
    let step = Rack::new(1).send(&bare);
    assert_eq!(step.reply(), Some((Ack, NONE)));
    let there = Destination::Udp {
        ip: ip(77),
        port: 68,
    };
    assert_eq!(step.replies[0].destination, there);
    // Another network's parameters are of no use to it.
    let strange = inform(Message {
        ciaddr: [10, 7, 0, 9].into(),
        ..discover(mac(1))
    });
    assert_eq!(
        Rack::new(1).send(&strange).dropped,
        Some(Drop::WrongNetwork)
    );
    let nowhere = inform(discover(mac(1)));
    assert_eq!(Rack::new(1).send(&nowhere).dropped, Some(Drop::NoAddress));
    // It needs no lease, and no attach: nothing is looked up.
    let mut mute = Rack::unattached(config());
    let local = inform(Message {
        ciaddr: ip(77),
        ..discover(mac(1))
    });
    assert_eq!(mute.send(&local).reply(), Some((Ack, NONE)));
    let lease = local.with(code::LEASE_TIME, &[0, 0, 1, 0]);
    let step = mute.send(&lease);
    for code in [51, 58, 59] {
        assert_eq!(step.replies[0].option(code), None, "{code}");
    }
}

// -------------------------------------------------------------------- table 3

#[test]
fn fields_and_options_of_the_replies_are_those_of_table_3() {
    let ask = |message: Message| {
        Message {
            xid: 0xfeed_beef,
            secs: 9,
            hops: 3,
            broadcast: true,
            ..message
        }
        .with(code::PARAMETER_LIST, &[50, 55, 57, 61, 3])
        .with(code::MESSAGE_BYTES_MAX, &576u16.to_be_bytes())
    };
    let mut rack = Rack::new(4);
    let offer = rack.send(&ask(discover(mac(1))));
    let step = rack.send(&ask(request(mac(1), ip(100))));
    let ack = rack.durable(&step);
    let renewal = rack.send(&ask(renew(mac(1), ip(100))));
    let nak = rack.send(&ask(init_reboot(mac(1), [10, 1, 1, 1].into())));
    let cases = [
        ("OFFER", offer, NONE, ip(100)),
        ("ACK", ack, NONE, ip(100)),
        ("ACK of a renewal", renewal, ip(100), ip(100)),
        ("NAK", nak, NONE, NONE),
    ];
    for (case, step, ciaddr, yiaddr) in cases {
        let reply = &step.replies[0];
        let view = reply.view();
        let header = view.header();
        assert_eq!((header.op, header.htype, header.hlen), (2, 1, 6), "{case}");
        assert_eq!((view.hops(), view.secs()), (0, 0), "{case}");
        assert_eq!(view.xid(), 0xfeed_beef, "{case}");
        assert!(view.broadcast(), "{case}: flags from the client");
        assert_eq!((view.ciaddr(), view.yiaddr()), (ciaddr, yiaddr), "{case}");
        assert_eq!(view.mac(), Some(mac(1)), "{case}");
        assert_eq!(view.server_id(), Some(SERVER), "{case}");
        for must_not in [50, 55, 57] {
            assert_eq!(view.option(must_not), None, "{case}: {must_not}");
        }
        let is_nak = case == "NAK";
        assert_eq!(view.lease_secs().is_none(), is_nak, "{case}");
        assert_eq!(view.option(code::MESSAGE).is_some(), is_nak, "{case}");
        assert_eq!(view.option(code::OVERLOAD), None, "{case}");
        if is_nak {
            assert_eq!(reply.codes(), [53, 54, 56], "nothing else");
            assert_eq!((view.siaddr(), view.file()), (NONE, &b""[..]));
        }
    }
}

#[test]
fn a_long_lease_ends_before_infinity() {
    let mut config = config();
    config.links[0].subnets[0].lease = secs(u64::from(u32::MAX) + 9);
    let step = Rack::with_rows(config, 1, &[]).send(&discover(mac(1)));
    assert!(step.replies[0].lease() < u32::MAX);
}
