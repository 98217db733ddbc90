//! What a client cannot get by lying: other clients' addresses, silence for them, replies to somebody else.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use wire::dhcp4::MessageType::{Discover, Inform, Offer};
use wire::dhcp4::code;

/// RFC 3396 joins its parts to more than one length octet counts, which no lease's key may have.
#[test]
fn a_client_id_of_more_than_255_octets_is_nobody() {
    for (octets, dropped) in [(255, None), (256, Some(Drop::NoIdentity))] {
        let long = Message {
            hlen: 0,
            broadcast: true,
            ..discover(mac(1))
        }
        .with(code::CLIENT_ID, &vec![7; octets]);
        let step = Rack::with_rows(config(), 8, &[]).send(&long);
        assert_eq!(step.dropped, dropped, "{octets}");
    }
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
    assert_eq!(served, 4, "half of the range");
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
    let lie = |giaddr, source| {
        Message {
            giaddr,
            source,
            ..message(Discover, mac(2))
        }
        .with(code::RELAY_INFO, &selection)
    };
    for (giaddr, source, dropped) in [
        (victim, NONE, Some(Drop::UnknownRelay)),
        (
            Ipv4Addr::BROADCAST,
            Ipv4Addr::BROADCAST,
            Some(Drop::UnknownRelay),
        ),
        (Ipv4Addr::new(224, 0, 0, 9), NONE, Some(Drop::UnknownRelay)),
        (victim, victim, None),
    ] {
        assert_eq!(rack.send(&lie(giaddr, source)).dropped, dropped, "{giaddr}");
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
