//! Clients without an Ethernet address, and with odd ones: who they are, and where their answers go.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use lease::{ClientKey, Outcome, WriteKind};
use wire::dhcp4::MessageType::{Ack, Offer};
use wire::dhcp4::code;
use wire::ethernet::Mac;

const ETHERNET: u8 = 1;
const IEEE_802: u8 = 6;
const INFINIBAND: u8 = 32;

fn client(htype: u8, hlen: u8, chaddr: Mac, id: &[u8]) -> Message {
    let message = Message {
        htype,
        hlen,
        ..discover(chaddr)
    };
    match id {
        [] => message,
        id => message.with(code::CLIENT_ID, id),
    }
}

/// DISCOVER to ACK; gives the key under which it was written, and where the OFFER went.
fn boot(rack: &mut Rack, message: &Message) -> Option<(ClientKey, Destination)> {
    let step = rack.send(message);
    let (kind, address) = step.reply()?;
    assert_eq!(kind, Offer);
    let reply = &step.replies[0];
    let header = reply.view();
    assert_eq!(
        (header.htype(), header.hlen()),
        (message.htype, message.hlen),
        "as it was asked"
    );
    let offer_to = reply.destination;
    let chosen = Message {
        kind: wire::dhcp4::MessageType::Request,
        requested: Some(address),
        server: Some(SERVER),
        ..message.clone()
    };
    let step = rack.send(&chosen);
    let (ticket, write) = step.write().clone();
    let WriteKind::Grant { client, .. } = write.kind else {
        panic!("{write:?}")
    };
    let remaining = secs(1_200);
    let step = rack.outcome(ticket, Outcome::Durable { remaining });
    assert_eq!(step.reply(), Some((Ack, address)));
    assert_eq!(step.replies[0].destination, offer_to);
    Some((client.key, offer_to))
}

#[test]
fn a_client_without_an_ethernet_address_is_known_by_its_client_id() {
    let own = mac(1);
    let group = Mac([0x53, 0x54, 0, 0, 1, 1]);
    let id: &[u8] = &[0xff, 1, 2, 3, 4, 0, 2, 9, 9];
    let by_id = ClientKey::ClientId(id.into());
    let by_mac = ClientKey::Mac(own.0);
    let hardware = |htype: u8, hlen: usize| {
        let mut octets = vec![htype];
        octets.extend([own.0.as_slice(), &[0; 10]].concat().iter().take(hlen));
        ClientKey::ClientId(octets.into())
    };
    let framed = Destination::Frame {
        mac: own,
        ip: ip(100),
        port: 68,
    };
    let all = Destination::BROADCAST;
    let none: &[u8] = &[];
    let zero = Mac::ZERO;
    let cases = [
        (
            "RFC 4390",
            INFINIBAND,
            0,
            own,
            id,
            Some((by_id.clone(), all)),
        ),
        (
            "IPoIB, 8 octets",
            INFINIBAND,
            8,
            own,
            id,
            Some((by_id.clone(), all)),
        ),
        (
            "IPoIB, all 16",
            INFINIBAND,
            16,
            own,
            id,
            Some((by_id.clone(), all)),
        ),
        (
            "IPoIB, no id",
            INFINIBAND,
            8,
            own,
            none,
            Some((hardware(INFINIBAND, 8), all)),
        ),
        ("IPoIB, nothing", INFINIBAND, 0, own, none, None),
        ("IPoIB, zeros", INFINIBAND, 8, zero, none, None),
        (
            "IEEE 802",
            IEEE_802,
            6,
            own,
            id,
            Some((by_mac.clone(), framed)),
        ),
        (
            "IEEE 802, no id",
            IEEE_802,
            6,
            own,
            none,
            Some((by_mac.clone(), framed)),
        ),
        ("Ethernet", ETHERNET, 6, own, id, Some((by_mac, framed))),
        (
            "Ethernet, hlen 8",
            ETHERNET,
            8,
            own,
            id,
            Some((by_id.clone(), all)),
        ),
        (
            "Ethernet, hlen 8, no id",
            ETHERNET,
            8,
            own,
            none,
            Some((hardware(ETHERNET, 8), all)),
        ),
        ("FireWire", 24, 8, own, id, Some((by_id.clone(), all))),
        (
            "group bit",
            ETHERNET,
            6,
            group,
            none,
            Some((ClientKey::Mac(group.0), all)),
        ),
        (
            "everybody, with an id",
            ETHERNET,
            6,
            Mac::BROADCAST,
            id,
            Some((by_id.clone(), all)),
        ),
        ("everybody", ETHERNET, 6, Mac::BROADCAST, none, None),
        (
            "nobody, with an id",
            ETHERNET,
            6,
            zero,
            id,
            Some((by_id, all)),
        ),
        ("nobody", ETHERNET, 6, zero, none, None),
    ];
    for (case, htype, hlen, chaddr, id, want) in cases {
        let mut rack = Rack::new(4);
        let got = boot(&mut rack, &client(htype, hlen, chaddr, id));
        assert_eq!(got, want, "{case}");
        let dropped = rack.dropped(Drop::NoIdentity);
        assert_eq!(dropped, u64::from(want.is_none()), "{case}");
    }
}

/// Two IPoIB clients with the same leading octets are two, and each keeps its address; it renews by unicast.
#[test]
fn ipoib_clients_are_told_apart_and_renew() {
    let mut rack = Rack::new(8);
    let of = |id: u8| client(INFINIBAND, 8, mac(1), &[0xff, 0, 0, 0, id]);
    boot(&mut rack, &of(1)).expect("an address");
    boot(&mut rack, &of(2)).expect("an address");
    assert_eq!(rack.send(&of(1)).reply(), Some((Offer, ip(100))));
    assert_eq!(rack.send(&of(2)).reply(), Some((Offer, ip(101))));
    let renewal = Message {
        kind: wire::dhcp4::MessageType::Request,
        ciaddr: ip(101),
        unicast: true,
        ..of(2)
    };
    let step = rack.send(&renewal);
    assert_eq!(step.reply(), Some((Ack, ip(101))));
    let to = Destination::Udp {
        ip: ip(101),
        port: 68,
    };
    assert_eq!(step.replies[0].destination, to);
    // Through a relay the relay delivers it.
    let relayed = Message {
        giaddr: ip(254),
        ..of(3)
    };
    let step = rack.send(&relayed);
    let relay = Destination::Udp {
        ip: ip(254),
        port: 67,
    };
    assert_eq!(step.replies[0].destination, relay);
}

/// What the address of one client id costs is its own rate, not that of all without a MAC.
#[test]
fn one_that_runs_wild_without_a_mac_slows_no_other() {
    let mut rack = Rack::new(8);
    let wild = client(INFINIBAND, 8, mac(1), &[]);
    let mut dropped = None;
    for _ in 0..1000 {
        dropped = rack.send(&wild).dropped;
    }
    assert_eq!(dropped, Some(Drop::RateLimited));
    let other = client(INFINIBAND, 8, mac(2), &[]);
    assert!(rack.send(&other).reply().is_some());
}

/// INFORM through a relay without the client's address: the relay says where it is, and gets the answer.
#[test]
fn a_relayed_inform_without_an_address_is_answered_by_the_relays_subnet() {
    let mut rack = Rack::new(1);
    let inform = Message {
        giaddr: ip(253),
        ..message(wire::dhcp4::MessageType::Inform, mac(1))
    };
    let step = rack.send(&inform);
    assert_eq!(step.reply(), Some((Ack, Ipv4Addr::UNSPECIFIED)));
    let relay = Destination::Udp {
        ip: ip(253),
        port: 67,
    };
    assert_eq!(step.replies[0].destination, relay);
    let view = step.replies[0].view();
    assert_eq!(view.option(code::ROUTERS), Some(&ip(254).octets()[..]));
    assert_eq!(view.lease_secs(), None);
}
