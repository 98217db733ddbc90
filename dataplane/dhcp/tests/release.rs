//! What becomes of a released address: it comes back when nobody answers for it, where its pool needs it (decisions/0013).

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use lease::{Outcome, Refusal, WriteKind};
use wire::dhcp4::MessageType::{Ack, Offer};
use wire::ethernet::Mac;

/// A pool of so many addresses with a lease of so many seconds, each found unused.
fn pool(count: u32, lease_secs: u64) -> Rack {
    let mut config = config();
    config.links[0].subnets[0].lease = secs(lease_secs);
    let mut rack = Rack::probing(config, count);
    for address in rack.probes() {
        rack.probed(address, Probed::Unused);
    }
    rack
}

/// The client has its lease, durable for two.
fn lease_to(rack: &mut Rack, mac: Mac, lease_secs: u64) -> Ipv4Addr {
    let (_, address) = rack.send(&discover(mac)).reply().expect("an OFFER");
    let step = rack.send(&request(mac, address));
    let (ticket, _) = step.write().clone();
    let remaining = secs(2 * lease_secs);
    let acked = rack.outcome(ticket, Outcome::Durable { remaining });
    assert_eq!(acked.reply(), Some((Ack, address)));
    address
}

/// The only address, released, wanted by another client, and asked for.
fn released_and_asked(lease_secs: u64) -> Rack {
    let mut rack = pool(1, lease_secs);
    lease_to(&mut rack, mac(1), lease_secs);
    rack.send(&release(mac(1), ip(100)));
    let wanted = rack.send(&discover(mac(2)));
    assert_eq!(wanted.dropped, Some(Drop::Probing));
    assert!(
        wanted
            .events
            .iter()
            .all(|event| event.kind != EventKind::Exhausted)
    );
    assert_eq!(rack.probes(), [ip(100)]);
    rack
}

#[test]
fn a_released_address_of_a_pool_of_one_comes_back_when_nobody_answers_for_it() {
    for lease_secs in [30, 600] {
        let mut rack = released_and_asked(lease_secs);
        let step = rack.probed(ip(100), Probed::Unused);
        let (ticket, write) = step.write().clone();
        let taken_back = WriteKind::Reclaim {
            client: client(mac(1)),
            silent: true,
        };
        assert_eq!(write.kind, taken_back);
        // Until it is known what came of it nobody has the address, its former client included.
        assert_eq!(rack.send(&discover(mac(2))).dropped, Some(Drop::Probing));
        let back = rack.send(&init_reboot(mac(1), ip(100)));
        assert_eq!(back.dropped, Some(Drop::Reclaiming));
        rack.engine.take_came();
        rack.outcome(ticket, Outcome::Done);
        assert!(rack.engine.take_came(), "who waits is answered now");
        assert_eq!(rack.now, rack.start, "no time has passed");
        assert_eq!(rack.send(&discover(mac(2))).reply(), Some((Offer, ip(100))));
        assert_eq!(lease_to(&mut rack, mac(2), lease_secs), ip(100));
    }
}

#[test]
fn a_released_address_comes_after_the_other_free_ones() {
    // Of eight one is free when the first is released: low enough to look after what was given up.
    let mut rack = pool(8, 600);
    for last in 1..=7 {
        lease_to(&mut rack, mac(last), 600);
    }
    rack.send(&release(mac(1), ip(100)));
    assert_eq!(rack.probes(), [ip(100)]);
    let step = rack.probed(ip(100), Probed::Unused);
    let (ticket, _) = step.write().clone();
    rack.outcome(ticket, Outcome::Done);
    assert_eq!(
        lease_to(&mut rack, mac(21), 600),
        ip(107),
        "the other one first"
    );
    assert_eq!(lease_to(&mut rack, mac(22), 600), ip(100));
}

#[test]
fn a_released_address_waits_while_others_are_free() {
    let mut rack = pool(8, 600);
    let address = lease_to(&mut rack, mac(1), 600);
    rack.send(&release(mac(1), address));
    assert!(!rack.probes().contains(&address));
    assert_eq!(
        rack.send(&discover(mac(1))).reply(),
        Some((Offer, address)),
        "its own again"
    );
}

#[test]
fn a_released_address_that_answers_stays() {
    let mut rack = released_and_asked(600);
    assert!(
        rack.probed(ip(100), Probed::InUse(mac(1)))
            .writes
            .is_empty()
    );
    assert!(rack.probes().is_empty());
    assert_eq!(
        rack.send(&discover(mac(2))).dropped,
        Some(Drop::NoFreeAddress)
    );
    // Only a write makes the mark go, and then the client is what it was.
    let step = rack.send(&renew(mac(1), ip(100)));
    assert_eq!(rack.durable(&step).reply(), Some((Ack, ip(100))));
    assert_eq!(
        rack.send(&renew(mac(1), ip(100))).reply(),
        Some((Ack, ip(100)))
    );
}

/// A host that sends RELEASEs in a machine's name, as often as it likes: the machine keeps its address, the range its probes, and
/// the other clients what they have.
#[test]
fn a_forged_release_of_a_living_client_costs_nobody_anything() {
    let mut rack = pool(2, 600);
    let mine = lease_to(&mut rack, mac(1), 600);
    let other = lease_to(&mut rack, mac(2), 600);
    for _ in 0..50 {
        rack.now += secs(1);
        rack.send(&release(mac(1), mine));
        rack.send(&discover(mac(3)));
        assert_eq!(rack.probes(), [mine]);
        let answered = rack.probed(mine, Probed::InUse(mac(1)));
        assert!(answered.writes.is_empty() && answered.events.is_empty());
    }
    let step = rack.send(&renew(mac(1), mine));
    assert_eq!(rack.durable(&step).reply(), Some((Ack, mine)));
    assert_eq!(rack.send(&renew(mac(2), other)).reply(), Some((Ack, other)));
    // Probing goes on: what is really given up still comes back.
    rack.send(&release(mac(2), other));
    rack.send(&discover(mac(3)));
    assert_eq!(rack.probes(), [other]);
    let step = rack.probed(other, Probed::Unused);
    let (ticket, _) = step.write().clone();
    rack.outcome(ticket, Outcome::Done);
    assert_eq!(rack.send(&discover(mac(3))).reply(), Some((Offer, other)));
}

/// A probe of before the RELEASE was sent before its client was on the address.
#[test]
fn what_a_probe_of_before_the_release_says_takes_nothing_back() {
    let mut rack = Rack::probing(config(), 1);
    // Offered while nobody knows yet whether it is used.
    assert_eq!(rack.probes(), [ip(100)]);
    rack.probed(ip(100), Probed::Unknown);
    rack.now += secs(61);
    rack.send(&discover(mac(1)));
    assert_eq!(rack.probes(), [ip(100)], "urgently");
    let step = rack.send(&request(mac(1), ip(100)));
    rack.durable(&step);
    rack.send(&release(mac(1), ip(100)));
    assert!(rack.probed(ip(100), Probed::Unused).writes.is_empty());
    assert_eq!(rack.probes(), [ip(100)], "asked for anew");
    assert_eq!(rack.probed(ip(100), Probed::Unused).writes.len(), 1);
}

#[test]
fn a_client_that_comes_back_before_the_probe_is_answered_keeps_its_address() {
    let mut rack = released_and_asked(600);
    let step = rack.send(&init_reboot(mac(1), ip(100)));
    // Durable for long, but only a write makes the address its own again.
    assert_eq!(rack.durable(&step).reply(), Some((Ack, ip(100))));
    assert!(rack.probed(ip(100), Probed::Unused).writes.is_empty());
}

/// The region says that a survivor has lengthened it; or nothing; or the rack is detached.
#[test]
fn a_reclaim_that_is_refused_or_lost_leaves_the_address_with_its_client() {
    let outcomes = [
        Outcome::Refused(Refusal::NotEnded),
        Outcome::Unknown,
        Outcome::Refused(Refusal::Mute),
    ];
    for outcome in outcomes {
        let mut rack = released_and_asked(600);
        let step = rack.probed(ip(100), Probed::Unused);
        let (ticket, _) = step.write().clone();
        rack.outcome(ticket, outcome);
        assert_eq!(rack.send(&discover(mac(2))).reply(), None, "{outcome:?}");
        // The reclaim may run late: no ACK leaves without a write.
        let step = rack.send(&renew(mac(1), ip(100)));
        assert!(step.replies.is_empty(), "{outcome:?}");
        assert_eq!(
            rack.durable(&step).reply(),
            Some((Ack, ip(100))),
            "{outcome:?}"
        );
    }
}

/// The mark that comes with an attach may be one that its client has refuted since: only a RELEASE heard here counts.
#[test]
fn a_release_of_before_the_attach_takes_nothing_back() {
    let mut rack = Rack::probing(config(), 1);
    let mut marked = row(ip(100), mac(1), 600_000);
    marked.released = true;
    rack.attach(1, &[marked]);
    rack.send(&discover(mac(2)));
    rack.now += secs(1);
    rack.tick();
    assert!(rack.probes().is_empty());
    // Its client gets no ACK without the write that takes the mark away.
    let step = rack.send(&renew(mac(1), ip(100)));
    assert_eq!(rack.durable(&step).reply(), Some((Ack, ip(100))));
}
