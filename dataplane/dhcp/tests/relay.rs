//! Clients behind relays: option 82 (RFC 3046), link selection (RFC 3527), server identifier override (RFC 5107),
//! subnet selection (RFC 3011).

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::{Destination, Drop, Reservation, ReservationKey};
use lease::{BlockId, Outcome};
use wire::dhcp4::MessageType::{Ack, Inform, Nak, Offer};
use wire::dhcp4::{code, relay};

const RELAY: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
const OVERRIDE: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 2);

fn far(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 100, 0, last)
}

/// A rack with addresses on its own link and on the one behind the relay.
fn rack() -> Rack {
    let mut rack = Rack::new(4);
    attach(&mut rack);
    rack
}

fn attach(rack: &mut Rack) {
    let blocks = [
        block(4),
        lease::Block {
            id: BlockId(2),
            vlan: 5002,
            subnet: 8,
            first: far(10).into(),
            ..block(4)
        },
    ];
    let (until, now) = (rack.now + secs(100_000), rack.now);
    rack.engine
        .attach(&blocks, &[], until, now, &rack.config, now);
}

fn relayed(message: Message) -> Message {
    Message {
        giaddr: RELAY,
        ..message
    }
}

fn with_info(message: Message, sub_options: &[(u8, &[u8])]) -> Message {
    relayed(message).with(code::RELAY_INFO, &relay_info(sub_options))
}

fn to_relay() -> Destination {
    Destination::Udp {
        ip: RELAY,
        port: 67,
    }
}

#[test]
fn option_82_comes_back_octet_for_octet_and_last_in_every_reply() {
    // Unknown and repeated sub-options are no business of ours.
    let info = relay_info(&[
        (1, b"port-7"),
        (2, b"switch"),
        (151, &[0, 255, 0]),
        (1, &[]),
    ]);
    let with = |message| relayed(message).with(code::RELAY_INFO, &info);
    let mut rack = rack();
    let offer = rack.send(&with(discover(mac(1)).with(61, &[1, 2, 3])));
    assert_eq!(offer.reply(), Some((Offer, far(10))));
    let granted = rack.send(&with(request(mac(1), far(10))));
    let ack = rack.durable(&granted);
    assert_eq!(ack.reply(), Some((Ack, far(10))));
    let nak = rack.send(&with(init_reboot(mac(1), [10, 1, 1, 1].into())));
    assert_eq!(nak.reply(), Some((Nak, NONE)));
    let inform = rack.send(&with(Message {
        ciaddr: far(77),
        ..message(Inform, mac(2))
    }));
    for (case, step) in [
        ("offer", offer),
        ("ack", ack),
        ("nak", nak),
        ("inform", inform),
    ] {
        let reply = &step.replies[0];
        assert_eq!(reply.view().relay_info(), Some(&info[..]), "{case}");
        assert_eq!(reply.codes().last(), Some(&code::RELAY_INFO), "{case}");
        assert_eq!((reply.destination, reply.port), (to_relay(), 67), "{case}");
        assert_eq!(reply.view().giaddr(), RELAY, "{case}");
        assert_eq!(reply.view().hops(), 0, "{case}");
    }
}

#[test]
fn without_option_82_none_is_sent() {
    let step = rack().send(&relayed(discover(mac(1))));
    assert_eq!(step.replies[0].view().relay_info(), None);
}

#[test]
fn a_relays_option_in_parts_comes_back_whole() {
    let info = relay_info(&[(1, &[7; 200]), (2, &[8; 200])]);
    let message = relayed(discover(mac(1)))
        .with(code::RELAY_INFO, &info)
        .with(code::MESSAGE_BYTES_MAX, &1400u16.to_be_bytes());
    let step = rack().send(&message);
    assert_eq!(step.replies[0].option(code::RELAY_INFO), Some(info.clone()));
}

#[test]
fn a_relays_option_that_cannot_be_held_is_left_out_and_counted() {
    let info = relay_info(&[(1, &[7; 255])]);
    let long = |message| {
        relayed(message)
            .with(code::RELAY_INFO, &info)
            .with(code::CLIENT_ID, &[9; 100])
    };
    let mut rack = rack();
    let nak = init_reboot(mac(1), [10, 1, 1, 1].into());
    for (message, want) in [(discover(mac(1)), Offer), (nak, Nak)] {
        let step = rack.send(&long(message));
        assert_eq!(step.reply().map(|(kind, _)| kind), Some(want));
        let reply = &step.replies[0];
        assert_eq!(reply.view().relay_info(), None);
        assert!(reply.view().client_id().is_some());
        assert_eq!(reply.destination, to_relay());
    }
    let counters = rack.engine.counters();
    assert_eq!(counters.sent(dhcp::Sent::RelayInfoLeftOut), 2);
    // A client id that leaves no room is nobody's to leave out.
    let step = rack.send(
        &discover(mac(2))
            .with(code::CLIENT_ID, &[9; 255])
            .with(97, &[0; 17]),
    );
    assert_eq!(step.dropped, Some(Drop::ReplyTooLong));
}

#[test]
fn a_nak_through_a_relay_is_to_be_broadcast() {
    let step = rack().send(&relayed(init_reboot(mac(9), ip(100))));
    assert_eq!(step.reply(), Some((Nak, NONE)));
    assert_eq!(step.replies[0].destination, to_relay());
    assert!(step.replies[0].view().broadcast());
    // An OFFER keeps the client's flag as it is.
    let step = rack().send(&relayed(discover(mac(9))));
    assert!(!step.replies[0].view().broadcast());
}

#[test]
fn the_subnet_is_the_selected_links_then_the_relays() {
    let selected = |address: [u8; 4]| [(relay::LINK_SELECTION, address)];
    let cases = [
        ("giaddr", None, Ok(far(10))),
        ("link selection", Some([10, 99, 0, 0]), Ok(ip(100))),
        ("of giaddr's own link", Some([10, 100, 0, 0]), Ok(far(10))),
        ("unknown", Some([10, 7, 0, 0]), Err(Drop::UnknownRelay)),
        ("zeros", Some([0, 0, 0, 0]), Ok(far(10))),
    ];
    for (case, address, want) in cases {
        let mut message = relayed(discover(mac(1)));
        if let Some(address) = address {
            let [(code, octets)] = selected(address);
            message = with_info(discover(mac(1)), &[(1, b"p"), (code, &octets)]);
        }
        let step = rack().send(&message);
        match want {
            Ok(address) => {
                assert_eq!(step.reply(), Some((Offer, address)), "{case}");
                assert_eq!(step.replies[0].destination, to_relay(), "{case}");
            }
            Err(dropped) => assert_eq!(step.dropped, Some(dropped), "{case}"),
        }
    }
}

#[test]
fn a_client_may_select_a_subnet_of_its_own_link_only() {
    let second = dhcp::Subnet {
        id: 9,
        net: "10.101.0.0/24".parse().unwrap(),
        gateway: None,
        ..subnet()
    };
    let mut config = config();
    config.links[0].subnets.push(second);
    let mut rack = Rack::with_rows(config, 4, &[]);
    let blocks = [
        block(4),
        lease::Block {
            id: BlockId(3),
            subnet: 9,
            first: std::net::IpAddr::from([10, 101, 0, 10]),
            ..block(4)
        },
    ];
    let (until, now) = (rack.now + secs(1000), rack.now);
    rack.engine
        .attach(&blocks, &[], until, now, &rack.config, now);
    let selecting = |last, address: [u8; 4]| discover(mac(last)).with(118, &address);
    let step = rack.send(&selecting(1, [10, 101, 0, 0]));
    assert_eq!(step.reply(), Some((Offer, [10, 101, 0, 10].into())));
    let echoed = step.replies[0].option(118);
    assert_eq!(echoed, Some(vec![10, 101, 0, 0]), "honoured: it comes back");
    let step = rack.send(&selecting(2, [10, 100, 0, 0]));
    assert_eq!(step.reply(), Some((Offer, ip(100))), "another link's");
    assert_eq!(step.replies[0].option(118), None);
    // A relay's link selection goes before it.
    let both = Message {
        giaddr: ip(254),
        ..selecting(3, [10, 101, 0, 0])
    }
    .with(code::RELAY_INFO, &relay_info(&[(5, &[10, 99, 0, 0])]));
    assert_eq!(rack.send(&both).reply(), Some((Offer, ip(101))));
}

/// A leaf-spine network in full: giaddr is each leaf's loopback, the subnet's anycast gateway stands in as the server, and
/// either of two leaves may bring each message. One client, one address, and each answer to the leaf that asked.
#[test]
fn two_leaves_with_one_gateway_bring_one_client_through_its_lease() {
    const GATEWAY: [u8; 4] = [10, 100, 0, 1];
    let leaves = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2)];
    let by = |leaf: usize, message: Message| {
        let port = [b"leaf-".as_slice(), &[b'1' + leaf as u8]].concat();
        let info = relay_info(&[
            (1, &port),
            (relay::LINK_SELECTION, &[10, 100, 0, 0]),
            (relay::SERVER_ID_OVERRIDE, &GATEWAY),
        ]);
        Message {
            giaddr: leaves[leaf],
            ..message
        }
        .with(code::RELAY_INFO, &info)
    };
    let chosen = |message: Message| Message {
        server: Some(GATEWAY.into()),
        ..message
    };
    let mut rack = rack();
    // Both leaves bring the same broadcast.
    for leaf in [0, 1] {
        let step = rack.send(&by(leaf, discover(mac(1))));
        assert_eq!(step.reply(), Some((Offer, far(10))));
        let ip = leaves[leaf];
        let to = Destination::Udp { ip, port: 67 };
        assert_eq!(step.replies[0].destination, to);
        assert_eq!(step.replies[0].view().server_id(), Some(GATEWAY.into()));
    }
    let first = rack.send(&by(0, chosen(request(mac(1), far(10)))));
    assert_eq!(first.writes.len(), 1);
    let second = rack.send(&by(1, chosen(request(mac(1), far(10)))));
    assert_eq!((second.writes.len(), second.dropped), (0, None), "joined");
    assert_eq!(rack.durable(&first).reply(), Some((Ack, far(10))));
    // It renews at the gateway's address, rebinds through whichever leaf hears it, and is moved under the other one.
    for (leaf, message) in [
        (1, renew(mac(1), far(10))),
        (0, rebind(mac(1), far(10))),
        (1, init_reboot(mac(1), far(10))),
    ] {
        let step = rack.send(&by(leaf, message));
        assert_eq!(step.reply(), Some((Ack, far(10))), "{leaf}");
    }
    let step = rack.send(&by(1, init_reboot(mac(1), ip(100))));
    assert_eq!(step.reply(), Some((Nak, NONE)));
    let step = rack.send(&by(0, chosen(decline(mac(1), far(10)))));
    assert_eq!((step.dropped, step.writes.len()), (None, 1));
    let step = rack.send(&by(1, discover(mac(1))));
    assert_eq!(step.reply(), Some((Offer, far(11))));
}

// -------------------------------------------------------------------- RFC 5107

fn overridden(message: Message) -> Message {
    with_info(message, &[(relay::SERVER_ID_OVERRIDE, &OVERRIDE.octets())])
}

fn by_override(message: Message) -> Message {
    overridden(Message {
        server: Some(OVERRIDE),
        ..message
    })
}

#[test]
fn a_relay_may_stand_in_as_the_server() {
    let mut rack = rack();
    let step = rack.send(&overridden(discover(mac(1))));
    assert_eq!(step.reply(), Some((Offer, far(10))));
    let reply = &step.replies[0];
    assert_eq!(reply.view().server_id(), Some(OVERRIDE));
    assert_eq!(reply.destination, to_relay(), "it still goes to giaddr");

    let step = rack.send(&by_override(request(mac(1), far(10))));
    let step = rack.durable(&step);
    assert_eq!(step.reply(), Some((Ack, far(10))));
    assert_eq!(step.replies[0].view().server_id(), Some(OVERRIDE));

    // The client renews by unicast to the relay, which passes it on.
    let renewal = overridden(Message {
        ciaddr: far(10),
        ..message(wire::dhcp4::MessageType::Request, mac(1))
    });
    let step = rack.send(&renewal);
    assert_eq!(step.reply(), Some((Ack, far(10))));
    assert_eq!(step.replies[0].destination, to_relay());

    let step = rack.send(&overridden(init_reboot(mac(1), ip(100))));
    assert_eq!(step.reply(), Some((Nak, NONE)));
    assert_eq!(step.replies[0].view().server_id(), Some(OVERRIDE));

    let step = rack.send(&by_override(release(mac(1), far(10))));
    assert_eq!((step.dropped, step.writes.len()), (None, 1));
}

#[test]
fn without_a_relays_word_another_server_id_is_another_server() {
    let mut rack = rack();
    rack.send(&overridden(discover(mac(1))));
    let plain = relayed(Message {
        server: Some(OVERRIDE),
        ..request(mac(1), far(10))
    });
    assert_eq!(rack.send(&plain).dropped, Some(Drop::OtherServer));
    // Without giaddr nobody has spoken for a relay.
    let forged = Message {
        giaddr: NONE,
        ..overridden(discover(mac(2)))
    };
    let step = rack.send(&forged);
    assert_eq!(step.replies[0].view().server_id(), Some(SERVER));
}

#[test]
fn beside_another_rack_an_overridden_request_is_not_refused_by_who_offered_nothing() {
    let request = by_override(request(mac(1), far(12)));
    let mut alone = rack();
    assert_eq!(alone.send(&request).writes.len(), 1, "free: granted late");
    let other = by_override(self::request(mac(1), far(99)));
    assert_eq!(alone.send(&other).reply(), Some((Nak, NONE)));

    let mut pair = rack();
    pair.config.links[1].peers.push(dhcp::Peer {
        rack: 2,
        server: ip(2),
        alive: true,
    });
    let step = pair.send(&request);
    assert_eq!((step.reply(), step.writes.len()), (None, 0));
    assert!(step.dropped.is_some());
}

#[test]
fn any_address_of_the_rack_names_it() {
    // Server-ids of two links differ; the client was moved from one to the other's relay.
    let mut rack = rack();
    rack.config.links[1].server = far(1);
    rack.send(&relayed(discover(mac(1))));
    let by_other_name = relayed(Message {
        server: Some(SERVER),
        ..request(mac(1), far(10))
    });
    assert_eq!(rack.send(&by_other_name).writes.len(), 1);
}

fn of_port_7(address: Ipv4Addr) -> Reservation {
    Reservation {
        vlan: 5002,
        subnet: 8,
        key: ReservationKey::Circuit {
            circuit: b"port-7"[..].into(),
            remote: [][..].into(),
        },
        ..reservation(mac(1), address)
    }
}

#[test]
fn the_port_a_client_hangs_on_may_hold_its_address() {
    let mut rack = rack();
    rack.config.reservations.push(of_port_7(far(200)));
    let on_port = |message| with_info(message, &[(1, b"port-7"), (2, b"switch")]);
    for last in [1, 2] {
        let step = rack.send(&on_port(discover(mac(last))));
        assert_eq!(step.reply(), Some((Offer, far(200))), "whoever it is");
        let step = rack.send(&on_port(request(mac(last), far(200))));
        assert_eq!(step.reply(), Some((Ack, far(200))));
    }
    // At T1 it asks the server itself, and no relay names its port; at T2 one does.
    let step = rack.send(&renew(mac(2), far(200)));
    assert_eq!((step.reply(), step.dropped), (None, Some(Drop::NoRecord)));
    let step = rack.send(&on_port(rebind(mac(2), far(200))));
    assert_eq!(step.reply(), Some((Ack, far(200))));
}

#[test]
fn a_ports_address_within_the_range_is_renewed_by_whoever_holds_it() {
    let mut rack = rack();
    rack.config.reservations.push(of_port_7(far(11)));
    let on_port = |message| with_info(message, &[(1, b"port-7")]);
    rack.send(&on_port(discover(mac(1))));
    let step = rack.send(&on_port(request(mac(1), far(11))));
    let (ticket, _) = step.write().clone();
    let durable = Outcome::Durable {
        remaining: secs(1200),
    };
    assert_eq!(rack.outcome(ticket, durable).reply(), Some((Ack, far(11))));
    let step = rack.at(60).send(&renew(mac(1), far(11)));
    assert_eq!(step.reply(), Some((Ack, far(11))));
    let step = rack.send(&renew(mac(2), far(11)));
    assert_eq!(step.dropped, Some(Drop::NoRecord), "another client's");
}

/// Relays put option 82 into the options field (RFC 3046 §2.1), and may look for a client's nowhere else.
#[test]
fn option_82_in_the_file_field_is_no_relays_word() {
    let mut rack = rack();
    let home = relayed(discover(mac(1)))
        .with(code::OVERLOAD, &[1])
        .with(code::RELAY_INFO, &relay_info(&[(1, b"port-7")]));
    let mut octets = home.octets();
    // Link selection of the rack's own link, in `file`.
    let lie = [&[code::RELAY_INFO, 6, 5, 4][..], &ip(0).octets(), &[255]].concat();
    octets[108..108 + lie.len()].copy_from_slice(&lie);
    let step = rack.send_octets(&octets, SERVER, &dhcp::BootReply::default());
    assert_eq!(step.reply(), Some((Offer, far(10))), "of the relay's link");
    let echoed = step.replies[0].view().relay_info().map(<[u8]>::to_vec);
    assert_eq!(echoed, Some(relay_info(&[(1, b"port-7")])));
}

/// The reply would go to every host of the network.
#[test]
fn a_relay_is_a_host() {
    for giaddr in [
        far(0),
        far(255),
        Ipv4Addr::BROADCAST,
        Ipv4Addr::new(224, 0, 0, 9),
    ] {
        let message = Message {
            giaddr,
            ..discover(mac(1))
        };
        let step = rack().send(&message);
        assert_eq!(step.dropped, Some(Drop::UnknownRelay), "{giaddr}");
    }
}

#[test]
fn hops_beyond_a_loop_are_dropped() {
    let looped = |hops| Message {
        hops,
        ..relayed(discover(mac(1)))
    };
    assert_eq!(rack().send(&looped(16)).reply(), Some((Offer, far(10))));
    assert_eq!(rack().send(&looped(17)).dropped, Some(Drop::TooManyHops));
}

#[test]
fn a_stray_outcome_behind_a_relay_answers_nobody() {
    let mut rack = rack();
    rack.send(&relayed(discover(mac(1))));
    let step = rack.send(&relayed(request(mac(1), far(10))));
    let (ticket, _) = step.write().clone();
    attach(&mut rack);
    let step = rack.outcome(
        ticket,
        Outcome::Durable {
            remaining: secs(99),
        },
    );
    assert!(step.replies.is_empty());
}
