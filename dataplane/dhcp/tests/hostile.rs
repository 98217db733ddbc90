//! What a client cannot get by lying: other clients' addresses, silence for them, replies to somebody else.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use lease::{ClientKey, Row, WriteKind};
use wire::dhcp4::MessageType::{Discover, Inform, Offer};
use wire::dhcp4::code;

/// RFC 3396 joins its parts to more than one length octet counts, which no lease's key may have.
#[test]
fn a_client_id_of_more_than_255_octets_is_no_key() {
    let by_mac = ClientKey::Mac(mac(1).0);
    for (hlen, octets, want) in [
        (0, 255, Some(ClientKey::ClientId(vec![7; 255].into()))),
        (0, 256, None),
        (6, 255, Some(ClientKey::ClientId(vec![7; 255].into()))),
        (6, 256, Some(by_mac)),
    ] {
        let mut config = config();
        config.links[0].subnets[0].client_id_identity = true;
        let mut rack = Rack::with_rows(config, 8, &[]);
        let asks = |message: Message| {
            let broadcast = true;
            Message {
                hlen,
                broadcast,
                ..message
            }
            .with(code::CLIENT_ID, &vec![7; octets])
        };
        let step = rack.send(&asks(discover(mac(1))));
        let Some(want) = want else {
            assert_eq!(step.dropped, Some(Drop::NoIdentity));
            continue;
        };
        let offered = step.replies[0].address;
        let step = rack.send(&asks(request(mac(1), offered)));
        let WriteKind::Grant { client, .. } = &step.write().1.kind else {
            panic!("no grant")
        };
        assert_eq!(client.key, want, "hlen {hlen}, {octets} octets");
    }
}

/// A router that answers ARP for every address makes a client decline all it gets.
#[test]
fn one_client_keeps_few_addresses_from_the_others_by_declining() {
    let mut rack = Rack::with_rows(config(), 16, &[]);
    let mut declined = 0;
    let mut last = None;
    for _ in 0..20 {
        rack.now += secs(10);
        let (_, address) = rack.send(&discover(mac(1))).reply().expect("an offer");
        let step = rack.send(&decline(mac(1), address));
        declined += step.writes.len();
        last = step.dropped;
    }
    // Four at once, and one more after each 150 s of the 200.
    assert_eq!((declined, last), (5, Some(Drop::DeclineLimited)));
}

/// Likewise a port whose addresses are counted, whoever its clients say they are.
#[test]
fn one_port_keeps_few_addresses_from_the_others_by_declining() {
    let limits = Limits {
        leases_per_circuit_max: 2,
        ..Limits::default()
    };
    let mut rack = Rack::limited(limits, 32);
    let on_port = |message: Message| {
        let giaddr = ip(253);
        Message { giaddr, ..message }.with(code::RELAY_INFO, &relay_info(&[(1, b"port-7")]))
    };
    let mut declined = 0;
    for n in 1..=20 {
        if let Some((_, address)) = rack.send(&on_port(discover(mac(n)))).reply() {
            let step = rack.send(&on_port(decline(mac(n), address)));
            declined += step.writes.len();
        }
    }
    assert_eq!(declined, 4);
}

/// An address that a stranger declines rests on the strangers' account.
#[test]
fn strangers_that_decline_leave_known_machines_their_share() {
    let mut config = config();
    config.strangers = (1..=40).map(mac).collect();
    let mut rack = Rack::with_rows(config, 8, &[]);
    let mut served = 0;
    for n in 1..=40 {
        if let Some((_, address)) = rack.send(&discover(mac(n))).reply() {
            rack.send(&decline(mac(n), address));
            served += 1;
        }
    }
    assert_eq!(served, 40, "what is not believed is dealt on");
    assert_eq!(rack.engine.usage().resting, 2, "a quarter of the range");
    // The region tells of them after an attach, and not whose doing they were.
    let bare: Vec<Row> = (100..104)
        .map(|last| Row {
            client: None,
            quarantine: secs(600),
            ..row(ip(last), mac(1), 0)
        })
        .collect();
    rack.attach(8, &bare);
    let step = rack.send(&discover(mac(40)));
    assert_eq!(step.dropped, Some(Drop::StrangersFull));
    for n in 50..54 {
        assert!(rack.send(&discover(mac(n))).reply().is_some(), "{n}");
    }
}

/// The port is the relay's word (RFC 3046 §5).
#[test]
fn without_a_relay_option_82_names_no_port() {
    let mut config = config();
    config.reservations.push(Reservation {
        key: ReservationKey::Circuit {
            circuit: b"port-7"[..].into(),
            remote: [][..].into(),
        },
        ..reservation(mac(9), ip(50))
    });
    let info = relay_info(&[(1, b"port-7")]);
    let step =
        Rack::with_rows(config, 8, &[]).send(&discover(mac(1)).with(code::RELAY_INFO, &info));
    assert_ne!(step.reply().expect("one of the range").1, ip(50));
}

#[test]
fn no_reply_goes_to_an_address_that_the_client_does_not_have() {
    let victim = Ipv4Addr::new(203, 0, 113, 9);
    let lie = Message {
        ciaddr: victim,
        broadcast: true,
        ..discover(mac(1))
    };
    let mut rack = Rack::with_rows(config(), 8, &[]);
    let step = rack.send(&lie);
    assert_eq!(step.replies[0].destination, Destination::BROADCAST);

    // Link selection names one of our links, giaddr somebody else.
    let selection = relay_info(&[(5, &ip(0).octets())]);
    let lie = |giaddr| {
        Message {
            giaddr,
            ..message(Discover, mac(2))
        }
        .with(code::RELAY_INFO, &selection)
    };
    let multicast = Ipv4Addr::new(224, 0, 0, 9);
    let (anybody, trusted) = (Sender::Datagram, Sender::TrustedRelay);
    for (giaddr, source, sender, dropped) in [
        (victim, ip(77), anybody, Some(Drop::UntrustedRelay)),
        (victim, victim, anybody, Some(Drop::UntrustedRelay)),
        (
            Ipv4Addr::BROADCAST,
            Ipv4Addr::BROADCAST,
            trusted,
            Some(Drop::UnknownRelay),
        ),
        (multicast, multicast, trusted, Some(Drop::UnknownRelay)),
        (victim, ip(77), trusted, None),
    ] {
        let step = rack.send_as(source, sender, &lie(giaddr));
        assert_eq!(step.dropped, dropped, "{giaddr} from {source}");
    }

    let everybody = Message {
        ciaddr: ip(255),
        ..message(Inform, mac(3))
    };
    assert_eq!(rack.send(&everybody).dropped, Some(Drop::WrongNetwork));
}

#[test]
fn an_offer_to_a_stale_ciaddr_still_reaches_its_client() {
    let stale = Message {
        ciaddr: ip(200),
        ..discover(mac(1))
    };
    let step = Rack::with_rows(config(), 8, &[]).send(&stale);
    let offer = &step.replies[0];
    assert_eq!(offer.kind, Offer);
    assert!(matches!(offer.destination, Destination::Frame { mac: to, .. } if to == mac(1)));
}
