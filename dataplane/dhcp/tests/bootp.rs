//! BOOTP clients (RFC 951, RFC 1534, RFC 1542): reservations only.

mod common;

use common::*;
use dhcp::*;
use wire::dhcp4::{OP_REPLY, View, code};

fn reserved() -> Fixed {
    let mut config = config();
    config.reservations.push(Reservation {
        hostname: "old-switch".into(),
        ..reservation(mac(1), ip(50))
    });
    config
}

#[test]
fn a_reservation_is_answered_in_300_octets_without_dhcps_own_options() {
    let mut rack = Rack::unattached(reserved());
    let boot = BootReply {
        next_server: Some(SERVER),
        file: "lpxelinux.0",
        ..BootReply::default()
    };
    let octets = bootp(mac(1)).octets();
    let step = rack.send_octets(&octets, std::net::Ipv4Addr::BROADCAST, &boot);
    let reply = &step.replies[0];
    assert_eq!((reply.address, reply.octets.len()), (ip(50), 300));
    let view = reply.view();
    assert!(view.is_bootp());
    assert_eq!(view.header().op, OP_REPLY);
    assert_eq!((view.file(), view.siaddr()), (&b"lpxelinux.0"[..], SERVER));
    assert_eq!(
        view.option(code::SUBNET_MASK),
        Some(&[255, 255, 255, 0][..])
    );
    assert_eq!(view.option(code::ROUTERS), Some(&ip(254).octets()[..]));
    assert_eq!(view.hostname(), Some(&b"old-switch"[..]));
    for code in [51, 52, 53, 54, 57, 58, 59, 61] {
        assert_eq!(view.option(code), None, "{code}");
    }
    let framed = Destination::Frame {
        mac: mac(1),
        ip: ip(50),
        port: 68,
    };
    assert_eq!(reply.destination, framed);
    assert_eq!(step.events[0].kind, EventKind::Bootp);
    assert_eq!(rack.engine.counters().sent(Sent::Bootp), 1);
}

#[test]
fn who_has_no_reservation_gets_nothing() {
    let mut rack = Rack::with_rows(reserved(), 8, &[]);
    let step = rack.send(&bootp(mac(2)));
    assert_eq!(step.dropped, Some(Drop::NoReservation));
    assert_eq!(rack.engine.usage().offered, 0, "no dynamic BOOTP");
}

#[test]
fn an_unused_vendor_field_is_answered_too() {
    let mut octets = bootp(mac(1)).octets();
    octets[236..].fill(0);
    let step = Rack::unattached(reserved()).send_octets(&octets, NONE, &BootReply::default());
    assert_eq!(step.replies[0].address, ip(50));
}

#[test]
fn a_reservation_inside_a_range_waits_until_its_address_is_free() {
    let mut config = config();
    config.reservations.push(reservation(mac(1), ip(101)));
    let mut rack = Rack::unattached(config);
    assert_eq!(rack.send(&bootp(mac(1))).dropped, Some(Drop::Mute));
    rack.attach(4, &[row(ip(101), mac(9), 600_000)]);
    let step = rack.send(&bootp(mac(1)));
    assert_eq!(step.dropped, Some(Drop::NoFreeAddress));
    rack.attach(4, &[]);
    assert_eq!(rack.send(&bootp(mac(1))).replies[0].address, ip(101));
    // And nobody is offered it.
    let mut offered = vec![];
    for last in 2..=4 {
        offered.extend(rack.send(&discover(mac(last))).reply());
    }
    assert!(offered.iter().all(|(_, address)| *address != ip(101)));
}

#[test]
fn a_relays_option_comes_back() {
    let info = relay_info(&[(1, b"port-7")]);
    let message = Message {
        giaddr: ip(254),
        ..bootp(mac(1))
    }
    .with(code::RELAY_INFO, &info);
    let step = Rack::unattached(reserved()).send(&message);
    let reply = &step.replies[0];
    assert_eq!(reply.view().relay_info(), Some(&info[..]));
    // On top of the 300 that the client takes: the relay removes it.
    assert!(reply.octets.len() <= 300 + info.len() + 2);
    let relay = Destination::Udp {
        ip: ip(254),
        port: 67,
    };
    assert_eq!(reply.destination, relay);
}

#[test]
fn a_client_that_knows_its_address_is_answered_there() {
    let message = Message {
        ciaddr: ip(50),
        ..bootp(mac(1))
    };
    let step = Rack::unattached(reserved()).send(&message);
    let reply = &step.replies[0];
    assert_eq!(reply.view().ciaddr(), ip(50));
    let there = Destination::Udp {
        ip: ip(50),
        port: 68,
    };
    assert_eq!(reply.destination, there);
}

#[test]
fn what_does_not_fit_the_vendor_field_is_left_out_and_counted() {
    let mut config = reserved();
    config.links[0].subnets[0].dns = (1..=20).map(ip).collect();
    let mut rack = Rack::unattached(config);
    let step = rack.send(&bootp(mac(1)));
    let octets = &step.replies[0].octets;
    assert_eq!(octets.len(), 300);
    let view = View::parse(octets).unwrap();
    assert_eq!(view.option(code::DNS_SERVERS), None);
    assert_eq!(view.option(code::OVERLOAD), None);
    assert!(view.option(code::ROUTERS).is_some());
    assert_eq!(rack.engine.counters().sent(Sent::OptionLeftOut), 1);
}
