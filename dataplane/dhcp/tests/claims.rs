//! A REQUEST in every state of its client, for every kind of address, whatever is known of the client (RFC 2131 §4.3.2).

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use lease::{Outcome, Row, WriteKind};
use wire::dhcp4::MessageType::{Ack, Nak, Offer};
use wire::ethernet::Mac;

/// What the rack knows of client 1 before it asks. Its block is .100 to .107 of a range to .199.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    Nothing,
    /// .100, all of them.
    Offered,
    Lease,
    Ended,
    Released,
    Declined,
    /// Its row rests by the region's word: nobody else may have it.
    Quarantined,
    /// A lease, and the address was taken out of the range since.
    Excluded,
    /// A lease, and the address was reserved for client 9 since.
    ReservedForOther,
    /// .20, outside the range.
    Static,
    /// .103, inside it.
    Inside,
    /// The same, and client 2 still has it.
    InsideTaken,
    LeaseAndStatic,
    LeaseAndInside,
    LeaseAndTaken,
    EndedAndInside,
    /// .103 declined by client 1 itself, and a lease of .100.
    LeaseAndResting,
}

use Known::*;

/// How client 1 is told from others, and how an address is reserved for it.
#[derive(Clone, Copy, Debug, PartialEq)]
enum By {
    Mac,
    /// It has no Ethernet address (IPoIB), and is known by its client id.
    Ipoib,
    /// Its subnet tells clients apart by client id.
    ClientId,
    /// The same, and the reservation is for its MAC address.
    ClientIdKeptByMac,
    /// By its MAC address, and the reservation is for its client id.
    MacKeptByClientId,
    /// By its MAC address, and the reservation is for the port that its relay names.
    MacKeptByPort,
}

const ID: &[u8] = b"\xff\x00\x00\x00\x01\x00\x02node-1";
const PORT: &[u8] = b"leaf-7/port-1";

impl By {
    fn client(self) -> lease::Client {
        match self {
            By::Ipoib | By::ClientId | By::ClientIdKeptByMac => lease::Client {
                vlan: VLAN,
                key: lease::ClientKey::ClientId(ID.into()),
            },
            By::Mac | By::MacKeptByClientId | By::MacKeptByPort => client(mac(1)),
        }
    }

    fn reservation(self, address: Ipv4Addr) -> Reservation {
        let key = match self {
            By::Mac | By::ClientIdKeptByMac => ReservationKey::Mac(mac(1)),
            By::Ipoib | By::ClientId | By::MacKeptByClientId => ReservationKey::ClientId(ID.into()),
            By::MacKeptByPort => ReservationKey::Circuit {
                circuit: PORT.into(),
                remote: [].into(),
            },
        };
        Reservation {
            key,
            ..reservation(mac(1), address)
        }
    }

    /// The message as this client sends it.
    fn says(self, message: Message) -> Message {
        match self {
            By::Mac => message,
            By::Ipoib => Message {
                htype: 32,
                hlen: 0,
                ..message
            }
            .with(61, ID),
            By::ClientId | By::ClientIdKeptByMac | By::MacKeptByClientId => message.with(61, ID),
            By::MacKeptByPort => relayed(message).with(82, &relay_info(&[(1, PORT)])),
        }
    }
}

fn inside(known: Known) -> bool {
    matches!(
        known,
        Inside | InsideTaken | LeaseAndInside | LeaseAndTaken | EndedAndInside | LeaseAndResting
    )
}

fn rack_that_knows(known: Known, by: By) -> Rack {
    let mut rows = vec![];
    let lease = |remaining_ms| lease::Row {
        client: Some(by.client()),
        ..row(ip(100), mac(1), remaining_ms)
    };
    match known {
        Lease | Declined | Excluded | ReservedForOther | LeaseAndStatic | LeaseAndInside
        | LeaseAndTaken | LeaseAndResting => rows.push(lease(1_200_000)),
        Ended | EndedAndInside => rows.push(lease(-3_600_000)),
        Released => rows.push(lease::Row {
            released: true,
            ..lease(1_200_000)
        }),
        Quarantined => rows.push(lease::Row {
            quarantine: secs(600),
            ..lease(1_200_000)
        }),
        Nothing | Offered | Static | Inside | InsideTaken => {}
    }
    if matches!(known, InsideTaken | LeaseAndTaken) {
        rows.push(row(ip(103), mac(2), 1_200_000));
    }
    if known == LeaseAndResting {
        rows.push(lease::Row {
            client: None,
            quarantine: secs(600),
            ..row(ip(103), mac(1), -1)
        });
    }
    let mut config = config();
    config.links[0].subnets[0].client_id_identity =
        matches!(by, By::ClientId | By::ClientIdKeptByMac);
    let mut rack = Rack::with_rows(config, 8, &rows);
    match known {
        Offered => {
            let step = rack.send(&by.says(discover(mac(1))));
            assert_eq!(step.reply(), Some((Offer, ip(100))));
        }
        Declined => assert_eq!(
            rack.send(&by.says(decline(mac(1), ip(100)))).writes.len(),
            1
        ),
        Excluded => rack.config.links[0].subnets[0].ranges.push(Range {
            id: 2,
            first: ip(100),
            last: ip(101),
            kind: RangeKind::Reserved,
            lease: None,
            options: [].into(),
        }),
        ReservedForOther => rack.config.reservations.push(reservation(mac(9), ip(100))),
        Static | LeaseAndStatic => rack.config.reservations.push(by.reservation(ip(20))),
        known if inside(known) => rack.config.reservations.push(by.reservation(ip(103))),
        _ => {}
    }
    rack
}

/// A: an ACK, now or when its grant is durable. N: a NAK. -: silence.
fn answer(rack: &mut Rack, message: &Message) -> char {
    let step = rack.send(message);
    match step.reply() {
        Some((Ack, _)) => 'A',
        Some((Nak, _)) => 'N',
        Some(other) => panic!("{other:?}"),
        None if step.writes.is_empty() => '-',
        None => {
            let grants = matches!(step.write().1.kind, WriteKind::Grant { .. });
            assert!(grants, "{:?}", step.writes);
            let (ticket, _) = *step.write();
            let remaining = secs(1_200);
            let step = rack.outcome(ticket, Outcome::Durable { remaining });
            assert_eq!(step.reply().map(|(kind, _)| kind), Some(Ack));
            'A'
        }
    }
}

type Ask = fn(wire::ethernet::Mac, Ipv4Addr) -> Message;

const RELAY: u8 = 254;

fn relayed(message: Message) -> Message {
    Message {
        giaddr: ip(RELAY),
        ..message
    }
}

/// SELECTING, INIT-REBOOT, RENEWING, REBINDING, and the last three through a relay.
const STATES: [(&str, Ask); 6] = [
    ("selecting", request),
    ("init-reboot", init_reboot),
    ("renewing", renew),
    ("rebinding", rebind),
    ("relayed init-reboot", |mac, address| {
        relayed(init_reboot(mac, address))
    }),
    ("relayed rebinding", |mac, address| {
        relayed(rebind(mac, address))
    }),
];

/// The columns: .100 (its lease, where it has one), .103 (its reservation inside), .20 (its reservation outside), .105
/// (free), .50 (of no range), an address of another network. Each has two answers: when it selects this server, and in
/// the other states.
const TABLE: [(Known, &str); 17] = [
    //                   .100  .103  .20  .105  .50  other
    (Nothing, /*      */ "A- A- N- A- N- N*"),
    (Offered, /*      */ "AA NN NN NN NN NN"),
    (Lease, /*        */ "AA NN NN NN NN NN"),
    (Ended, /*        */ "AA NN NN NN NN NN"),
    (Released, /*     */ "AA NN NN NN NN NN"),
    (Declined, /*     */ "NN A- N- A- N- N*"),
    (Quarantined, /*  */ "AA NN NN NN NN NN"),
    (Excluded, /*     */ "NN NN NN NN NN NN"),
    (ReservedForOther, "NN NN NN NN NN NN"),
    (Static, /*       */ "NN NN AA NN NN NN"),
    (Inside, /*       */ "NN AA NN NN NN NN"),
    (InsideTaken, /*  */ "A- NN NN A- NN NN"),
    (LeaseAndStatic, "NN NN AA NN NN NN"),
    (LeaseAndInside, "NN AA NN NN NN NN"),
    (LeaseAndTaken, "AA NN NN NN NN NN"),
    (EndedAndInside, "NN AA NN NN NN NN"),
    (LeaseAndResting, "AA NN NN NN NN NN"),
];

#[test]
fn a_request_is_answered_by_what_is_known_of_its_client() {
    check_table(By::Mac);
}

/// However a client is known, and however its address is reserved.
#[test]
fn a_request_is_answered_alike_however_its_client_is_known() {
    for by in [
        By::Ipoib,
        By::ClientId,
        By::ClientIdKeptByMac,
        By::MacKeptByClientId,
        By::MacKeptByPort,
    ] {
        check_table(by);
    }
}

fn check_table(by: By) {
    let columns = [
        ip(100),
        ip(103),
        ip(20),
        ip(105),
        ip(50),
        Ipv4Addr::new(10, 1, 1, 1),
    ];
    for (known, answers) in TABLE {
        for (address, want) in columns.into_iter().zip(answers.split(' ')) {
            for (state, ask) in STATES {
                let mut want = want.as_bytes()[usize::from(state != "selecting")] as char;
                if want == '*' {
                    // Of another network, and not known here: only its own message by unicast may be meant for another.
                    let alone = state == "renewing" && by != By::MacKeptByPort;
                    want = if alone { '-' } else { 'N' };
                }
                let mut rack = rack_that_knows(known, by);
                let got = answer(&mut rack, &by.says(ask(mac(1), address)));
                assert_eq!(got, want, "{by:?}, {known:?}, {state}, {address}");
            }
        }
    }
}

/// The reservation lies in another shard's part of the block: as if it were here.
#[test]
fn a_reservation_of_another_shards_address_decides_the_same() {
    for (state, ask) in STATES {
        let shard = Shard { index: 0, count: 2 };
        let own = (1..200)
            .map(mac)
            .find(|mac| shard_of_mac(*mac, 2) == 0)
            .unwrap();
        let mut rack = Rack::sharded(shard, config(), 8, &[row(ip(100), own, 1_200_000)]);
        // Addresses of odd places are the other's.
        rack.config.reservations.push(reservation(own, ip(103)));
        assert_eq!(answer(&mut rack, &ask(own, ip(100))), 'N', "{state}");
        let wish = rack.engine.next_wish().expect("it is fetched");
        assert_eq!(wish.address, Some(ip(103)));
    }
}

/// Who was given an address before it was reserved for somebody else loses it when its lease has ended, however many
/// addresses are free.
#[test]
fn a_reserved_address_comes_back_when_its_lease_has_ended() {
    let mut rack = Rack::with_rows(config(), 8, &[row(ip(103), mac(2), 600_000)]);
    rack.config.reservations.push(reservation(mac(1), ip(103)));
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(100))));
    assert!(
        rack.at(659).tick().writes.is_empty(),
        "a minute past its end"
    );
    let step = rack.at(700).tick();
    let (ticket, write) = step.write().clone();
    let client = client(mac(2));
    assert_eq!(
        write.kind,
        WriteKind::Reclaim {
            client,
            silent: false
        }
    );
    rack.outcome(ticket, Outcome::Done);
    assert_eq!(rack.send(&discover(mac(1))).reply(), Some((Offer, ip(103))));
}

// -------------------------------------------------------------------- two racks

/// This rack's block is .100 to .107; the peer has the rest of the range.
fn beside_a_peer(rows: &[lease::Row], alive: bool) -> Rack {
    let mut config = config();
    config.links[0].rack = 0xba78_16bf_8f01_cfea;
    config.links[0].peers = vec![Peer {
        rack: 0x2413_fb37_09b0_5939,
        server: ip(2),
        alive,
    }];
    Rack::with_rows(config, 8, rows)
}

#[test]
fn beside_a_peer_who_has_the_block_of_the_reservation_says_nak() {
    let rows = [row(ip(100), mac(1), 1_200_000)];
    // In our block: ours to say, whatever the rendezvous says and whosever the address is that it asks for.
    for address in [ip(100), ip(150), ip(50)] {
        for (state, ask) in STATES {
            let mut rack = beside_a_peer(&rows, true);
            rack.config.reservations.push(reservation(mac(1), ip(103)));
            let got = answer(&mut rack, &ask(mac(1), address));
            assert_eq!(got, 'N', "{state}, {address}");
        }
    }
    // In the peer's: what comes to this very rack is answered, the rest is the peer's.
    for (state, ask) in STATES {
        let mut rack = beside_a_peer(&rows, true);
        rack.config.reservations.push(reservation(mac(1), ip(150)));
        let want = match state {
            "selecting" => 'A', // what it was offered
            "renewing" => 'N',
            _ => '-',
        };
        assert_eq!(answer(&mut rack, &ask(mac(1), ip(100))), want, "{state}");
        if want != '-' {
            continue;
        }
        // The peer has said nothing: the address is somebody else's, or the peer does not hear.
        assert_eq!(answer(rack.at(4), &ask(mac(1), ip(100))), '-', "{state}");
        assert_eq!(answer(rack.at(12), &ask(mac(1), ip(100))), 'A', "{state}");
        // It is dead: nobody can give the reserved address.
        let mut rack = beside_a_peer(&rows, false);
        rack.config.reservations.push(reservation(mac(1), ip(150)));
        assert_eq!(answer(&mut rack, &ask(mac(1), ip(100))), 'A', "{state}");
    }
}

#[test]
fn beside_a_peer_only_who_knows_the_client_says_nak_to_an_address_of_no_range() {
    let rows = [row(ip(100), mac(1), 1_200_000)];
    for (state, ask) in STATES {
        let mut rack = beside_a_peer(&rows, true);
        assert_eq!(answer(&mut rack, &ask(mac(1), ip(50))), 'N', "{state}");
        // An address of the peer's block is the peer's to deny.
        let want = if state == "selecting" { 'N' } else { '-' };
        assert_eq!(answer(&mut rack, &ask(mac(1), ip(150))), want, "{state}");
        assert_eq!(answer(&mut rack, &ask(mac(3), ip(50))), want, "{state}");
    }
}

/// What hosts claim is told by block, so that a range out of service is seen; a quarantine is the region's own knowledge.
#[test]
fn claimed_addresses_are_told_by_block() {
    let mut rack = Rack::probing(config(), 16);
    assert!(rack.engine.claimed().is_empty());
    let quarantine = Row {
        client: None,
        quarantine: secs(600),
        ..row(ip(115), mac(1), 0)
    };
    rack.attach(16, &[quarantine]);
    let theirs = Mac([0x02, 9, 9, 9, 9, 9]);
    for address in rack.probes().into_iter().take(3) {
        rack.probed(address, Probed::InUse(theirs));
    }
    assert_eq!(rack.engine.claimed(), [(block(1).id, 3)]);
}
