//! What one way into the rack may take of what all share: a relay's port, a relay, or a link.

mod common;

use std::net::Ipv4Addr;

use common::*;
use dhcp::*;
use wire::dhcp4::MessageType::{Ack, Offer};
use wire::dhcp4::code;
use wire::ethernet::Mac;

/// By which way a client's messages come.
#[derive(Clone, Copy, Debug)]
enum Way {
    Link,
    /// A relay, and the port that it names.
    Port(u8, &'static [u8]),
}

use Way::{Link, Port};

fn by(way: Way, message: Message) -> Message {
    match way {
        Link => message,
        Port(relay, circuit) => Message {
            giaddr: ip(relay),
            ..message
        }
        .with(code::RELAY_INFO, &relay_info(&[(1, circuit)])),
    }
}

fn stranger(number: u16) -> Mac {
    let [high, low] = number.to_be_bytes();
    Mac([0x02, 0xaa, 0, 0, high, low])
}

/// Flood, and the way of those who must not suffer from it.
const FLOODS: [(Way, Way); 6] = [
    (Port(2, b"port 1"), Port(2, b"port 2")),
    (Port(2, b"port 1"), Port(3, b"port 1")),
    (Port(2, b""), Port(3, b"")),
    (Port(2, b"port 1"), Link),
    (Link, Port(2, b"port 1")),
    (Link, Port(2, b"")),
];

/// 500 new names by one way, while three clients of another have their offers and are about to ask for them.
#[test]
fn one_port_displaces_no_offers_of_its_neighbours() {
    for (flood, neighbours) in FLOODS {
        let case = format!("{flood:?} floods {neighbours:?}");
        let mut config = config();
        config.strangers = (0..600).map(stranger).collect();
        // Of sixteen strangers may have eight.
        let mut rack = Rack::with_rows(config, 16, &[]);
        let offered: Vec<Ipv4Addr> = (500..503)
            .map(|number| {
                let step = rack.send(&by(neighbours, discover(stranger(number))));
                let (kind, address) = step.reply().expect("an OFFER");
                assert_eq!(kind, Offer, "{case}");
                address
            })
            .collect();
        for number in 0..500 {
            let step = rack.send(&by(flood, discover(stranger(number))));
            assert!(step.reply().is_some(), "{case}: {number}");
        }
        // One more of them is served all the same, out of what the flood has.
        let late = rack.send(&by(neighbours, discover(stranger(503))));
        let (_, late) = late.reply().expect("an OFFER");
        assert!(!offered.contains(&late), "{case}");
        let all = offered.iter().chain([&late]);
        for (number, address) in (500..).zip(all) {
            let step = rack.send(&by(neighbours, request(stranger(number), *address)));
            assert_eq!(rack.durable(&step).reply(), Some((Ack, *address)), "{case}");
        }
    }
}

/// A client of the peer's is answered at its third message, whatever comes by other ways between them.
#[test]
fn one_port_makes_no_neighbour_wait_anew_for_the_peer() {
    let (own, other) = (0xba78_16bf_8f01_cfea, 0x2413_fb37_09b0_5939);
    for (flood, neighbours) in FLOODS {
        let mut config = config();
        config.strangers = (0..100).map(stranger).collect();
        config.links[0].rack = own;
        config.links[0].peers = vec![Peer {
            rack: other,
            server: ip(9),
            alive: true,
        }];
        let mut rack = Rack::with_rows(config, 100, &[]);
        let is_peers = |number: &u16| {
            let step = rack.send(&by(neighbours, discover(stranger(*number))));
            step.dropped == Some(Drop::PeerAnswers)
        };
        let waiting: Vec<u16> = (0..40).filter(is_peers).collect();
        assert!(waiting.len() > 10);
        for at in [4, 12] {
            for number in 100..10_000 {
                rack.send(&by(flood, discover(stranger(number))));
            }
            rack.at(at);
            for number in &waiting {
                let step = rack.send(&by(neighbours, discover(stranger(*number))));
                let answered = step.dropped != Some(Drop::PeerAnswers);
                assert_eq!(
                    answered,
                    at == 12,
                    "{flood:?} floods {neighbours:?}: {number}"
                );
            }
        }
    }
}
