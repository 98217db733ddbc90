//! Whose word counts: clients by their frames and addresses, relays by where they send from.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::{Destination, Drop, EventKind, ReservationKey, Sender};
use lease::BlockId;
use wire::dhcp4::MessageType::{Ack, Discover, Inform, Offer};
use wire::dhcp4::{code, relay};
use wire::ethernet::Mac;

/// The victim's, the liar's.
const BOB: Mac = Mac([0x52, 0x54, 0, 0, 1, 1]);
const MALLORY: Mac = Mac([0x52, 0x54, 0, 0, 1, 66]);
/// The relay of the second link, and a loopback of it.
const GIADDR: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);
const LOOPBACK: Ipv4Addr = Ipv4Addr::new(10, 255, 0, 3);
const UPLINK: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);

/// Both links have addresses.
fn rack() -> Rack {
    let mut rack = Rack::new(8);
    let blocks = [
        block(8),
        lease::Block {
            id: BlockId(2),
            vlan: 5002,
            subnet: 8,
            first: std::net::IpAddr::from([10, 100, 0, 10]),
            ..block(64)
        },
    ];
    let (until, now) = (rack.now + secs(100_000), rack.now);
    let config = &rack.config;
    rack.engine.attach(&blocks, &[], until, now, config, now);
    rack
}

fn unicast(message: Message) -> Message {
    Message {
        unicast: true,
        ..message
    }
}

/// DHCP with another's hardware address from one's own card: neither its address nor what it may boot.
#[test]
fn a_client_is_its_frames_ethernet_source() {
    let mut rack = rack();
    let offer = rack.send_as(NONE, Sender::Ethernet(BOB), &discover(BOB));
    let own = offer.reply().expect("an OFFER").1;
    let granted = rack.send_as(NONE, Sender::Ethernet(BOB), &request(BOB, own));
    rack.durable(&granted);
    let messages = [
        discover(BOB),
        request(BOB, own),
        init_reboot(BOB, own),
        rebind(BOB, own),
        decline(BOB, own),
        bootp(BOB),
        Message {
            ciaddr: own,
            ..message(Inform, BOB)
        },
        // A frame by unicast is a frame.
        unicast(discover(BOB)),
    ];
    for lie in &messages {
        let step = rack.send_as(NONE, Sender::Ethernet(MALLORY), lie);
        assert_eq!(step.dropped, Some(Drop::ForeignSource), "{:?}", lie.kind);
        assert!(step.replies.is_empty() && step.writes.is_empty());
    }
    assert_eq!(rack.engine.counters().dropped(Drop::ForeignSource), 8);
    // Bob is served as ever; and a device that is said to carry others' messages tells nothing.
    let step = rack.send_as(NONE, Sender::Ethernet(BOB), &rebind(BOB, own));
    assert_eq!(step.reply(), Some((Ack, own)));
    let step = rack.send_as(NONE, Sender::Frame, &discover(BOB));
    assert_eq!(step.reply(), Some((Offer, own)));
}

#[test]
fn a_client_without_ethernet_address_is_not_held_against_its_frame() {
    let mut message = Message {
        hlen: 0,
        ..discover(BOB)
    };
    message = message.with(code::CLIENT_ID, &[0xff, 1, 2, 3]);
    let step = rack().send_as(NONE, Sender::Ethernet(MALLORY), &message);
    assert_eq!(step.dropped, None);
}

/// What a client may send by unicast it sends from the address that it is about (RFC 2131 §4.4.5).
#[test]
fn a_datagram_speaks_of_the_address_it_comes_from() {
    let mut rack = rack();
    let own = rack.send(&discover(BOB)).reply().expect("an OFFER").1;
    let granted = rack.send(&request(BOB, own));
    rack.durable(&granted);
    let theirs = ip(150);
    let inform = |ciaddr| {
        unicast(Message {
            ciaddr,
            ..message(Inform, BOB)
        })
    };
    // A DISCOVER with a ciaddr would be answered to that address.
    let pretending = |message| {
        unicast(Message {
            ciaddr: theirs,
            ..message
        })
    };
    for (case, source, message) in [
        ("renewal of another's", theirs, renew(BOB, own)),
        ("renewal from nowhere", NONE, renew(BOB, own)),
        ("release of another's", theirs, release(BOB, own)),
        ("DISCOVER", theirs, pretending(discover(BOB))),
        (
            "REQUEST for another's",
            theirs,
            pretending(request(BOB, own)),
        ),
        (
            "reboot of another",
            theirs,
            pretending(init_reboot(BOB, own)),
        ),
        ("DECLINE", own, pretending(decline(BOB, own))),
        ("new, but not in a frame", NONE, unicast(discover(BOB))),
        ("INFORM of another", theirs, inform(own)),
    ] {
        let step = rack.send_as(source, Sender::Datagram, &message);
        assert_eq!(step.dropped, Some(Drop::ForeignSource), "{case}");
        assert!(step.replies.is_empty() && step.writes.is_empty(), "{case}");
    }
    // By broadcast without its frame: an IPv4 header with options, made to miss the packet socket.
    let octets = rebind(BOB, own).octets();
    assert_eq!(
        rack.send_datagram(own, Ipv4Addr::BROADCAST, &octets)
            .dropped,
        Some(Drop::ForeignSource)
    );

    let step = rack.send_as(own, Sender::Datagram, &renew(BOB, own));
    assert_eq!(step.reply(), Some((Ack, own)));
    // Some fill in more than they should.
    let eager = Message {
        requested: Some(own),
        server: Some(SERVER),
        ..renew(BOB, own)
    };
    let step = rack.send_as(own, Sender::Datagram, &eager);
    assert_eq!(step.reply(), Some((Ack, own)));
    let step = rack.send_as(theirs, Sender::Datagram, &inform(theirs));
    assert_eq!(step.reply(), Some((Ack, NONE)));
    let step = rack.send_as(own, Sender::Datagram, &release(BOB, own));
    assert_eq!((step.dropped, step.writes.len()), (None, 1));
}

fn relayed(giaddr: Ipv4Addr, selects: Option<[u8; 4]>) -> Message {
    let message = Message {
        giaddr,
        ..discover(BOB)
    };
    match selects {
        Some(net) => {
            let selection = relay_info(&[(1, b"p"), (relay::LINK_SELECTION, &net)]);
            message.with(code::RELAY_INFO, &selection)
        }
        None => message,
    }
}

/// A relay is believed from its giaddr; from elsewhere, or for another link, only where the operator trusts it.
#[test]
fn a_relay_is_believed_at_giaddr_or_by_the_operators_word() {
    const HOME: Option<[u8; 4]> = Some([10, 100, 0, 0]);
    const RACKS: Option<[u8; 4]> = Some([10, 99, 0, 0]);
    let (anybody, trusted) = (Sender::Datagram, Sender::TrustedRelay);
    let served = None;
    let untrusted = Some(Drop::UntrustedRelay);
    for (case, giaddr, selects, source, sender, dropped) in [
        ("an ordinary relay", GIADDR, None, GIADDR, anybody, served),
        (
            "and its own link selected",
            GIADDR,
            HOME,
            GIADDR,
            anybody,
            served,
        ),
        ("from elsewhere", GIADDR, None, UPLINK, anybody, untrusted),
        (
            "from an uplink that is trusted",
            GIADDR,
            None,
            UPLINK,
            trusted,
            served,
        ),
        ("another link", GIADDR, RACKS, GIADDR, anybody, untrusted),
        (
            "another link, trusted",
            GIADDR,
            RACKS,
            GIADDR,
            trusted,
            served,
        ),
        (
            "leaf and spine, unknown",
            LOOPBACK,
            HOME,
            UPLINK,
            anybody,
            untrusted,
        ),
        (
            "from its loopback",
            LOOPBACK,
            HOME,
            LOOPBACK,
            anybody,
            untrusted,
        ),
        ("leaf and spine", LOOPBACK, HOME, UPLINK, trusted, served),
        (
            "nowhere",
            LOOPBACK,
            None,
            UPLINK,
            trusted,
            Some(Drop::UnknownRelay),
        ),
        (
            "nowhere, unknown",
            LOOPBACK,
            None,
            LOOPBACK,
            anybody,
            Some(Drop::UnknownRelay),
        ),
        // A host of the rack's own link that calls itself a relay would speak for all of them.
        (
            "on the rack's own link",
            ip(66),
            None,
            ip(66),
            anybody,
            untrusted,
        ),
        ("there, trusted", ip(66), None, ip(66), trusted, served),
    ] {
        let step = rack().send_as(source, sender, &relayed(giaddr, selects));
        assert_eq!(step.dropped, dropped, "{case}");
        if dropped.is_none() {
            let to = Destination::Udp {
                ip: giaddr,
                port: 67,
            };
            assert_eq!(step.replies[0].kind, Offer, "{case}");
            assert_eq!(step.replies[0].destination, to, "{case}: to giaddr");
        }
    }
}

/// 300 DISCOVERs by unicast from somewhere, for clients of a served subnet, hold nothing.
#[test]
fn a_stranger_in_a_relays_name_holds_no_offers() {
    let mut rack = rack();
    for number in 0..=255 {
        let message = Message {
            giaddr: GIADDR,
            ..discover(Mac([2, 6, 6, 6, 6, number]))
        };
        rack.send_as(UPLINK, Sender::Datagram, &message);
    }
    assert_eq!(rack.engine.usage().offered, 0);
    assert_eq!(rack.engine.counters().dropped(Drop::UntrustedRelay), 256);
}

#[test]
fn who_speaks_for_others_is_told_once_in_ten_minutes() {
    let mut rack = rack();
    let step = rack.send_as(NONE, Sender::Ethernet(MALLORY), &discover(BOB));
    let [event] = step.events.as_slice() else {
        panic!("{:?}", step.events)
    };
    let kind = EventKind::ForeignSource { from: MALLORY };
    assert_eq!((event.kind, event.mac), (kind, Some(BOB)));
    let step = rack.send_as(UPLINK, Sender::Datagram, &relayed(GIADDR, None));
    let [event] = step.events.as_slice() else {
        panic!("{:?}", step.events)
    };
    let kind = EventKind::UntrustedRelay { giaddr: GIADDR };
    assert_eq!((event.kind, event.address), (kind, UPLINK));
    let told = |rack: &mut Rack| {
        let mut told = 0;
        for number in 0..200 {
            let victim = discover(Mac([2, 0, 0, 0, 0, number]));
            told += rack
                .send_as(NONE, Sender::Ethernet(MALLORY), &victim)
                .events
                .len();
            let step = rack.send_as(UPLINK, Sender::Datagram, &relayed(GIADDR, None));
            told += step.events.len();
        }
        told
    };
    assert_eq!(told(&mut rack), 0);
    rack.at(600);
    assert_eq!(told(&mut rack), 2);
    // However many they say they are.
    let mut made_up = 0;
    for number in 0..=255 {
        let from = Sender::Ethernet(Mac([6, 0, 0, 0, 0, number]));
        made_up += rack.send_as(NONE, from, &discover(BOB)).events.len();
    }
    assert_eq!(made_up, 31);
}

/// Whoever floods with a machine's hardware address uses up its own rate.
#[test]
fn a_victim_is_served_while_others_flood_with_its_hardware_address() {
    let mut flooded = rack();
    flooded.config.strangers = vec![];
    let victims = |sender, source, message: &Message| (sender, source, message.clone());
    let port = |circuit: &[u8]| {
        Message {
            giaddr: GIADDR,
            ..discover(BOB)
        }
        .with(code::RELAY_INFO, &relay_info(&[(1, circuit)]))
    };
    let renewal = renew(BOB, ip(100));
    let cases = [
        (
            "another port of the relay",
            victims(Sender::TrustedRelay, GIADDR, &port(b"ge-1")),
            victims(Sender::TrustedRelay, GIADDR, &port(b"ge-2")),
        ),
        (
            "another address",
            victims(Sender::Datagram, ip(100), &renewal),
            victims(Sender::Datagram, ip(150), &renew(BOB, ip(150))),
        ),
    ];
    let own = flooded.send(&discover(BOB)).reply().expect("an OFFER").1;
    let granted = flooded.send(&request(BOB, own));
    flooded.durable(&granted);
    for (case, victim, forger) in cases {
        for _ in 0..5_000 {
            flooded.send_as(forger.1, forger.0, &forger.2);
        }
        let (sender, source, message) = victim;
        let step = flooded.send_as(source, sender, &message);
        assert_eq!(step.dropped, None, "{case}");
        flooded.now += secs(60);
    }
}

/// Even where its very frames are forged, at twice a client's rate and more.
#[test]
fn a_victim_whose_frames_are_forged_is_served_as_long_as_the_shard_has_time() {
    let mut rack = rack();
    let mut answered = 0;
    // 400 a second for a minute; the client itself asks once a second.
    for number in 0..24_000 {
        rack.now += std::time::Duration::from_micros(2_500);
        let step = rack.send_as(NONE, Sender::Ethernet(BOB), &discover(BOB));
        if number % 400 == 0 {
            answered += usize::from(step.dropped.is_none());
        }
    }
    assert_eq!(answered, 60);
}

/// Another client id costs its sender nothing where there is no hardware address.
#[test]
fn made_up_client_ids_share_their_cards_rate() {
    let limits = dhcp::Limits {
        excess_rate: dhcp::Rate {
            burst: 1,
            per_sec: 1,
        },
        ..dhcp::Limits::default()
    };
    let mut rack = Rack::limited(limits, 8);
    let taken = (0..1000u32).filter(|number| {
        let message = Message {
            hlen: 0,
            ..discover(BOB)
        }
        .with(code::CLIENT_ID, &number.to_be_bytes());
        let step = rack.send_as(NONE, Sender::Ethernet(MALLORY), &message);
        step.dropped != Some(Drop::RateLimited)
    });
    assert_eq!(taken.count(), 65);
}

#[test]
fn a_port_is_not_named_by_who_is_no_relay() {
    let mut config = config();
    config.reservations.push(dhcp::Reservation {
        vlan: 5002,
        subnet: 8,
        key: ReservationKey::Circuit {
            circuit: b"port-7"[..].into(),
            remote: [][..].into(),
        },
        ..reservation(BOB, [10, 100, 0, 77].into())
    });
    let mut rack = Rack::with_rows(config, 8, &[]);
    let message = Message {
        giaddr: GIADDR,
        ..message(Discover, MALLORY)
    }
    .with(code::RELAY_INFO, &relay_info(&[(1, b"port-7")]));
    let step = rack.send_as(UPLINK, Sender::Datagram, &message);
    assert_eq!(step.dropped, Some(Drop::UntrustedRelay));
    let step = rack.send_as(GIADDR, Sender::Datagram, &message);
    assert_eq!(step.replies[0].address, Ipv4Addr::new(10, 100, 0, 77));
}
