//! Beside another rack on the VLAN: who answers whom and when, and what a survivor does for its peer's clients.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use lease::{BlockId, Outcome, Refusal, WriteKind};
use wire::dhcp4::MessageType::{Ack, Inform, Nak, Offer};
use wire::ethernet::Mac;

const PEER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
/// Rack numbers are hashes.
const NUMBERS: [u64; 2] = [0xba78_16bf_8f01_cfea, 0x2413_fb37_09b0_5939];

fn config_of(own: usize, alive: bool) -> Fixed {
    let mut config = config();
    config.links[0].rack = NUMBERS[own];
    config.links[0].peers = vec![Peer {
        rack: NUMBERS[1 - own],
        server: PEER,
        alive,
    }];
    config
}

/// Its own are .100 to .109 of a range to .199.
fn rack(alive: bool) -> Rack {
    Rack::with_rows(config_of(0, alive), 10, &[])
}

fn set_alive(rack: &mut Rack, alive: bool) {
    rack.config.links[0].peers[0].alive = alive;
}

/// A client that this rack answers, or one that its peer does.
fn client_of(own: bool) -> Mac {
    let answers = |mac: &Mac| rack(true).send(&discover(*mac)).reply().is_some();
    let mut macs = (1..200).map(mac);
    macs.find(|mac| answers(mac) == own)
        .expect("about half of them are")
}

fn durable(secs_left: u64) -> Outcome {
    Outcome::Durable {
        remaining: secs(secs_left),
    }
}

// -------------------------------------------------------------------- who answers

#[test]
fn each_client_is_answered_by_one_of_two_racks() {
    let mut counts = [0; 2];
    for n in 1..200 {
        let answers = [0, 1].map(|own| {
            let mut rack = Rack::with_rows(config_of(own, true), 10, &[]);
            rack.send(&discover(mac(n))).reply().is_some()
        });
        assert_ne!(answers[0], answers[1], "client {n}");
        counts[usize::from(answers[1])] += 1;
    }
    assert!(counts.iter().all(|count| *count > 70), "{counts:?}");
}

#[test]
fn the_other_answers_the_second_repeat_or_when_the_peer_is_dead() {
    let client = client_of(false);
    let mut rack = rack(true);
    for at in [0, 4] {
        let step = rack.at(at).send(&discover(client));
        assert_eq!(
            (step.reply(), step.dropped),
            (None, Some(Drop::PeerAnswers)),
            "at {at} s"
        );
    }
    assert_eq!(
        rack.at(12).send(&discover(client)).reply(),
        Some((Offer, ip(100)))
    );
    assert_eq!(
        rack.at(20).send(&discover(client)).reply(),
        Some((Offer, ip(100))),
        "and the rest of the boot"
    );

    let other = (1..200)
        .map(mac)
        .rfind(|other| rack.send(&discover(*other)).reply().is_none());
    let other = other.expect("a client of the peer's");
    set_alive(&mut rack, false);
    assert!(rack.send(&discover(other)).reply().is_some(), "at once");
    set_alive(&mut rack, true);
    assert_eq!(
        rack.at(100).send(&discover(other)).reply(),
        None,
        "let back in"
    );
}

#[test]
fn a_client_that_chose_the_peer_does_not_wait_for_it() {
    let client = client_of(false);
    let mut rack = rack(true);
    rack.send(&discover(client));
    rack.at(4).send(&discover(client));
    let chosen = Message {
        server: Some(PEER),
        ..request(client, ip(150))
    };
    let step = rack.at(5).send(&chosen);
    assert_eq!(
        (step.reply(), step.dropped),
        (None, Some(Drop::OtherServer))
    );
    // iPXE asks anew, after the ROM.
    for at in [10, 14] {
        assert_eq!(rack.at(at).send(&discover(client)).reply(), None);
    }
    assert!(rack.at(22).send(&discover(client)).reply().is_some());
}

#[test]
fn what_both_racks_know_one_says() {
    let reserved = |own: bool, alive: bool| {
        let client = client_of(own);
        let mut rack = rack(alive);
        rack.config.reservations.push(reservation(client, ip(20)));
        (rack, client)
    };
    let (mut rack, client) = reserved(false, true);
    for message in [
        discover(client),
        init_reboot(client, ip(20)),
        rebind(client, ip(20)),
        init_reboot(client, ip(21)),
    ] {
        assert_eq!(rack.send(&message).dropped, Some(Drop::PeerAnswers));
    }
    // What comes to this very rack is for it.
    for message in [renew(client, ip(20)), request(client, ip(20))] {
        assert_eq!(rack.send(&message).reply(), Some((Ack, ip(20))));
    }
    for (own, alive) in [(true, true), (false, false)] {
        let (mut rack, client) = reserved(own, alive);
        assert_eq!(rack.send(&discover(client)).reply(), Some((Offer, ip(20))));
        assert_eq!(
            rack.send(&init_reboot(client, ip(20))).reply(),
            Some((Ack, ip(20)))
        );
        assert_eq!(
            rack.send(&init_reboot(client, ip(21))).reply(),
            Some((Nak, NONE))
        );
    }
    let inform = |client, unicast| Message {
        ciaddr: ip(30),
        unicast,
        ..message(Inform, client)
    };
    let (mut rack, client) = reserved(false, true);
    assert_eq!(
        rack.send(&inform(client, false)).dropped,
        Some(Drop::PeerAnswers)
    );
    assert_eq!(rack.send(&inform(client, true)).reply(), Some((Ack, NONE)));
}

#[test]
fn an_address_set_aside_in_a_range_is_its_blocks_owners_to_give() {
    for own in [true, false] {
        let client = client_of(own);
        // In our block: whatever the rendezvous says.
        let mut rack = rack(true);
        rack.config.reservations.push(reservation(client, ip(105)));
        assert_eq!(rack.send(&discover(client)).reply(), Some((Offer, ip(105))));
        // In the peer's: it gives it, and only if it can't does the client get another.
        let mut rack = self::rack(true);
        rack.config.reservations.push(reservation(client, ip(155)));
        assert_eq!(
            rack.send(&discover(client)).dropped,
            Some(Drop::PeerAnswers)
        );
        rack.at(4).send(&discover(client));
        assert_eq!(
            rack.at(8).send(&discover(client)).reply(),
            Some((Offer, ip(100)))
        );
        let mut rack = self::rack(false);
        rack.config.reservations.push(reservation(client, ip(155)));
        assert_eq!(rack.send(&discover(client)).reply(), Some((Offer, ip(100))));
    }
}

// -------------------------------------------------------------------- the survivor

#[test]
fn a_survivor_extends_through_the_region_and_acks_from_its_answer() {
    for message in [renew, rebind, init_reboot] {
        let mut rack = rack(false);
        let step = rack.send(&message(mac(1), ip(150)));
        assert_eq!(step.reply(), None, "not before the region's word");
        let (ticket, write) = step.write().clone();
        let want = WriteKind::Extend {
            client: client(mac(1)),
            lease: secs(LEASE_SECS.into()),
        };
        assert_eq!((write.block, write.kind), (BlockId::NONE, want));
        assert_eq!(write.address, std::net::IpAddr::from(ip(150)));
        let step = rack.outcome(ticket, durable(1_200));
        assert_eq!(step.reply(), Some((Ack, ip(150))));
        assert_eq!(step.replies[0].lease(), LEASE_SECS);
        assert_eq!(step.events[0].kind, EventKind::Ack);
        let at = |rack: &Rack, secs_later| {
            let later = rack.start + secs(secs_later);
            rack.engine.mac_at(VLAN, ip(150), later)
        };
        assert_eq!(at(&rack, 1_000), Some(mac(1)), "what the rack vouches for");
        assert_eq!(at(&rack, 1_200), None);

        // Inside the durable end from memory; past it the region is asked again.
        let step = rack.at(300).send(&renew(mac(1), ip(150)));
        assert_eq!((step.reply(), step.writes.len()), (Some((Ack, ip(150))), 0));
        let step = rack.at(650).send(&renew(mac(1), ip(150)));
        let (ticket, _) = step.write().clone();
        // Less is left than a lease: the ACK does not outlast it.
        let step = rack.outcome(ticket, durable(100));
        let lease = step.replies[0].lease();
        assert!(
            (500..=539).contains(&lease),
            "{lease}: the earlier end still holds"
        );
    }
}

#[test]
fn a_live_peers_clients_are_its_own_until_they_ask_a_third_time() {
    let mut rack = rack(true);
    for at in [0, 4] {
        let step = rack.at(at).send(&rebind(mac(1), ip(150)));
        assert_eq!(
            (step.writes.len(), step.dropped),
            (0, Some(Drop::PeerAnswers))
        );
    }
    assert_eq!(rack.at(12).send(&rebind(mac(1), ip(150))).writes.len(), 1);
}

#[test]
fn the_owner_that_is_back_gets_its_clients_back() {
    let mut rack = rack(false);
    let step = rack.send(&rebind(mac(1), ip(150)));
    let (ticket, _) = *step.write();
    rack.outcome(ticket, durable(1_200));
    set_alive(&mut rack, true);
    // Its client renews with us until it has to look around; then the owner hears it.
    let step = rack.at(300).send(&renew(mac(1), ip(150)));
    assert_eq!(step.reply(), Some((Ack, ip(150))));
    for message in [rebind, init_reboot] {
        let step = rack.at(525).send(&message(mac(1), ip(150)));
        assert_eq!(
            (step.reply(), step.dropped),
            (None, Some(Drop::PeerAnswers))
        );
    }
    let step = rack.at(650).send(&renew(mac(1), ip(150)));
    assert_eq!(
        (step.writes.len(), step.dropped),
        (0, Some(Drop::PeerAnswers))
    );
}

#[test]
fn a_lone_rack_extends_what_a_removed_one_gave() {
    let mut rack = rack(true);
    rack.config.links[0].peers.clear();
    for at in [0, 4] {
        let step = rack.at(at).send(&rebind(mac(1), ip(150)));
        assert_eq!((step.writes.len(), step.dropped), (0, Some(Drop::NoRecord)));
    }
    assert_eq!(rack.at(12).send(&rebind(mac(1), ip(150))).writes.len(), 1);
    let outside = rack.at(90).send(&rebind(mac(1), ip(50)));
    assert_eq!(outside.dropped, Some(Drop::NoRecord), "no dynamic address");
}

#[test]
fn anything_but_a_durable_end_is_silence() {
    let refused = Outcome::Refused;
    for outcome in [
        refused(Refusal::NotFound),
        refused(Refusal::OtherClient),
        refused(Refusal::NotOwner),
        refused(Refusal::Mute),
        Outcome::Unknown,
        Outcome::Done,
        durable(5),
    ] {
        let mut rack = rack(false);
        let step = rack.send(&rebind(mac(1), ip(150)));
        let (ticket, _) = *step.write();
        let step = rack.outcome(ticket, outcome);
        assert_eq!((step.reply(), step.writes.len()), (None, 0), "{outcome:?}");
        // It may ask again, and nobody else has got the address.
        let again = rack.send(&rebind(mac(1), ip(150)));
        assert_eq!(again.writes.len(), 1, "{outcome:?}");
        assert_eq!(
            rack.outcome(ticket, durable(1_200)).reply(),
            None,
            "an old answer"
        );
    }
}

#[test]
fn a_survivor_never_allocates_a_peers_address_nor_says_no() {
    let mut rack = rack(false);
    let wanting = discover(mac(1)).with(50, &ip(150).octets());
    assert_eq!(rack.send(&wanting).reply(), Some((Offer, ip(100))));
    // Named, it says that it never offered this.
    assert_eq!(
        rack.send(&request(mac(2), ip(150))).reply(),
        Some((Nak, NONE))
    );
    for client in 2..5 {
        let step = rack.send(&rebind(mac(client), ip(160 + client)));
        let (ticket, _) = *step.write();
        let step = rack.outcome(ticket, Outcome::Refused(Refusal::OtherClient));
        assert_eq!(step.reply(), None);
    }
    // A wrong network is everybody's to say.
    let elsewhere = Ipv4Addr::new(10, 55, 0, 1);
    assert_eq!(
        rack.send(&init_reboot(mac(6), elsewhere)).reply(),
        Some((Nak, NONE))
    );
    // And for its own block it is the owner.
    rack.boot(mac(7));
    let held = rack.send(&init_reboot(mac(7), ip(105)));
    assert_eq!(held.reply(), Some((Nak, NONE)));
}

#[test]
fn repeats_join_the_extend_and_two_clients_do_not_share_one() {
    let mut rack = rack(false);
    let first = rack.send(&rebind(mac(1), ip(150)));
    let (ticket, _) = *first.write();
    let again = Message {
        xid: 7,
        ..rebind(mac(1), ip(150))
    };
    assert_eq!(rack.send(&again).writes.len(), 0);
    let other = rack.send(&rebind(mac(2), ip(150)));
    assert_eq!(
        (other.writes.len(), other.dropped),
        (0, Some(Drop::NoRecord))
    );
    let step = rack.outcome(ticket, durable(1_200));
    assert_eq!(step.replies.len(), 1);
    assert_eq!(step.replies[0].view().xid(), 7, "the latest is answered");
    let other = rack.send(&rebind(mac(2), ip(150)));
    assert_eq!(
        (other.writes.len(), other.dropped),
        (0, Some(Drop::NoRecord))
    );
    // Ended, it may be the other's: the region knows.
    assert_eq!(
        rack.at(1_300).send(&rebind(mac(2), ip(150))).writes.len(),
        1
    );
}

#[test]
fn a_mute_rack_is_no_survivor_and_a_forgetful_one_asks_again() {
    let mut rack = Rack::unattached(config_of(0, false));
    assert_eq!(
        rack.send(&rebind(mac(1), ip(150))).dropped,
        Some(Drop::Mute)
    );
    rack.attach(10, &[]);
    let step = rack.send(&rebind(mac(1), ip(150)));
    let (ticket, _) = *step.write();
    rack.outcome(ticket, durable(1_200));
    rack.engine.forget();
    rack.attach(10, &[]);
    assert_eq!(rack.engine.mac_at(VLAN, ip(150), rack.now), None);
    assert_eq!(rack.send(&rebind(mac(1), ip(150))).writes.len(), 1);
}

#[test]
fn extends_have_a_limit_and_those_nobody_answers_are_given_up() {
    let mut rack = rack(false);
    rack.config.links[0].subnets[0].net = "10.99.0.0/16".parse().unwrap();
    rack.config.links[0].subnets[0].ranges[0].last = Ipv4Addr::new(10, 99, 255, 254);
    let ask = |rack: &mut Rack, n: u16| {
        let [high, low] = n.to_be_bytes();
        let mac = Mac([0x52, 0x54, 1, 0, high, low]);
        rack.send(&rebind(mac, Ipv4Addr::new(10, 99, 10 + high, low)))
    };
    for n in 0..1_024 {
        assert_eq!(ask(&mut rack, n).writes.len(), 1, "{n}");
    }
    assert_eq!(ask(&mut rack, 1_024).dropped, Some(Drop::PendingFull));
    assert!(
        rack.send(&discover(mac(1))).reply().is_some(),
        "grants have their own room"
    );
    rack.at(200).tick();
    assert_eq!(ask(&mut rack, 1_024).writes.len(), 1);
    assert_eq!(
        ask(&mut rack, 0).writes.len(),
        1,
        "forgotten, so asked anew"
    );
}
