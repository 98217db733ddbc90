//! Rapid commit (RFC 4039): an ACK for a DISCOVER, after the grant is durable and not before.

mod common;

use common::*;
use dhcp::{Limits, Sent};
use lease::{Outcome, Refusal};
use wire::dhcp4::MessageType::{Ack, Offer};
use wire::dhcp4::code;

fn rapid(last: u8) -> Message {
    discover(mac(last)).with(code::RAPID_COMMIT, &[])
}

#[test]
fn the_ack_waits_for_its_grant() {
    let mut rack = Rack::new(4);
    let step = rack.send(&rapid(1));
    assert_eq!((step.reply(), step.writes.len()), (None, 1));
    let step = rack.durable(&step);
    assert_eq!(step.reply(), Some((Ack, ip(100))));
    let view = step.replies[0].view();
    assert_eq!(view.option(code::RAPID_COMMIT), Some(&[][..]));
    assert_eq!(view.lease_secs(), Some(LEASE_SECS));
    assert_eq!(rack.engine.usage().bound, 1);
    assert_eq!(rack.engine.counters().sent(Sent::RapidCommit), 1);
}

#[test]
fn a_repeat_joins_and_a_later_one_is_answered_from_memory() {
    let mut rack = Rack::new(4);
    let first = rack.send(&rapid(1));
    let again = rack.send(&Message {
        xid: 99,
        ..rapid(1)
    });
    assert_eq!((again.reply(), again.writes.len()), (None, 0));
    let step = rack.durable(&first);
    assert_eq!(step.replies[0].view().xid(), 99);
    let step = rack.at(20).send(&rapid(1));
    assert_eq!(step.reply(), Some((Ack, ip(100))));
    assert!(step.replies[0].option(code::RAPID_COMMIT).is_some());
}

#[test]
fn a_refused_grant_is_silence() {
    let mut rack = Rack::new(1);
    let step = rack.send(&rapid(1));
    let (ticket, _) = step.write().clone();
    let step = rack.outcome(ticket, Outcome::Refused(Refusal::Mute));
    assert_eq!(step.reply(), None);
    assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
}

#[test]
fn a_reservation_is_acked_at_once() {
    let mut config = config();
    config.reservations.push(reservation(mac(1), ip(50)));
    let step = Rack::unattached(config).send(&rapid(1));
    assert_eq!(step.reply(), Some((Ack, ip(50))));
    assert!(step.replies[0].option(code::RAPID_COMMIT).is_some());
}

#[test]
fn beside_another_rack_only_the_one_whose_turn_it_is_commits() {
    let (mut acked, mut offered) = (0, 0);
    for last in 1..=40 {
        let mut config = config();
        config.links[0].peers.push(dhcp::Peer {
            rack: 2,
            server: ip(2),
            alive: true,
        });
        let mut rack = Rack::with_rows(config, 4, &[]);
        let step = rack.send(&rapid(last));
        if step.dropped.is_none() {
            acked += step.writes.len();
            continue;
        }
        // Its peer is to answer; after its third message this rack does, by an OFFER.
        rack.at(4).send(&rapid(last));
        let step = rack.at(12).send(&rapid(last));
        assert_eq!(
            (step.reply(), step.writes.len()),
            (Some((Offer, ip(100))), 0)
        );
        offered += 1;
    }
    assert!(acked > 5 && offered > 5, "{acked} {offered}");
    assert_eq!(acked + offered, 40);
}

#[test]
fn an_address_that_nobody_has_asked_the_wire_for_is_offered_first() {
    let limits = Limits {
        probe_stock: 4,
        ..Limits::default()
    };
    let mut rack = Rack::limited(limits, 4);
    let step = rack.send(&rapid(1));
    assert_eq!(step.reply(), Some((Offer, ip(100))));
    // Asking again, it has waited for the probe long enough.
    assert_eq!(rack.at(4).send(&rapid(1)).writes.len(), 1);
}

#[test]
fn only_a_discover_that_asks_for_it_gets_it() {
    let mut rack = Rack::new(4);
    let step = rack.send(&discover(mac(1)));
    assert_eq!(step.reply(), Some((Offer, ip(100))));
    let step = rack.send(&request(mac(1), ip(100)).with(code::RAPID_COMMIT, &[]));
    let step = rack.durable(&step);
    assert_eq!(step.reply(), Some((Ack, ip(100))));
    assert_eq!(step.replies[0].option(code::RAPID_COMMIT), None);
}
