//! Whose card is behind an address: what the rack tells the region of a machine whose request it passes on
//! (docs/protocols.md, Trust; docs/decisions/0010).
//!
//! | in this order                              | known of                                                       |
//! |--------------------------------------------|----------------------------------------------------------------|
//! | a live binding under a MAC                 | clients that this rack, or one it attached after, gave a lease |
//! | a reservation for a MAC                    | clients of which no lease is kept                              |
//! | the neighbour table of the link's device   | whoever else talks to the rack from a link of its own          |

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use shard::{Link, Snapshot};

use crate::neighbour;

/// A network card, and where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Card {
    pub mac: [u8; 6],
    /// The region's VLAN id.
    pub vlan: u32,
}

/// Who was given an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Binding {
    pub mac: [u8; 6],
    /// The region's VLAN id.
    pub vlan: u32,
    /// The binding proves nothing from here on.
    pub end: Instant,
}

/// By the client's address. Written by the link thread, which also bounds it (the rack's own ranges).
pub type Bindings = Arc<RwLock<HashMap<IpAddr, Binding>>>;

#[derive(Clone)]
pub struct Attester {
    bindings: Bindings,
    snapshot: Arc<ArcSwap<Snapshot>>,
}

impl Attester {
    pub fn new(bindings: Bindings, snapshot: Arc<ArcSwap<Snapshot>>) -> Self {
        Self { bindings, snapshot }
    }

    /// The card that has `address` now, or `None` where nothing says so.
    pub fn card(&self, address: IpAddr, now: Instant) -> Option<Card> {
        let address = address.to_canonical();
        if let Some(card) = self.bound(address, now) {
            return Some(card);
        }
        let IpAddr::V4(address) = address else {
            return None;
        };
        let snapshot = self.snapshot.load();
        let link = snapshot.link_by_address(address)?;
        let vlan = link.dhcp.vlan;
        let mac = match snapshot.reserved_mac(vlan, address) {
            Some(mac) => mac.0,
            None => neighbour(link, address)?,
        };
        Some(Card { mac, vlan })
    }

    fn bound(&self, address: IpAddr, now: Instant) -> Option<Card> {
        let bindings = self.bindings.read().unwrap_or_else(PoisonError::into_inner);
        let binding = bindings.get(&address).filter(|binding| now < binding.end)?;
        Some(Card {
            mac: binding.mac,
            vlan: binding.vlan,
        })
    }
}

/// A client that has shaken hands over TCP has got frames that were sent to this card.
fn neighbour(link: &Link, address: Ipv4Addr) -> Option<[u8; 6]> {
    neighbour::mac_of(link.index?, address).unwrap_or_else(|error| {
        tracing::warn!(%address, %error, "asking for the neighbour");
        None
    })
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const VLAN: u32 = 5001;

    fn link() -> Link {
        let subnet = dhcp::Subnet {
            id: 1,
            net: "10.99.0.0/24".parse().unwrap(),
            gateway: None,
            dns: vec![],
            ntp: vec![],
            domain: String::new(),
            lease: Duration::from_secs(600),
            ranges: vec![],
            disabled_archs: vec![],
            client_id_identity: false,
            options: [].into(),
        };
        Link {
            dhcp: dhcp::Link {
                vlan: VLAN,
                server: [10, 99, 0, 1].into(),
                mtu: 1500,
                mode: dhcp::Mode::Serve,
                rack: 1,
                peers: vec![],
                subnets: vec![subnet],
            },
            interface: "lo".into(),
            index: Some(1),
        }
    }

    fn reservation(last: u8, key: dhcp::ReservationKey) -> dhcp::Reservation {
        dhcp::Reservation {
            vlan: VLAN,
            subnet: 1,
            key,
            address: [10, 99, 0, last].into(),
            hostname: String::new(),
            lease: None,
            options: [].into(),
        }
    }

    #[test]
    fn a_live_binding_a_reservation_for_a_mac_and_nothing_else_without_a_neighbour() {
        let mut snapshot = Snapshot::default();
        snapshot.set_links(vec![link()]);
        let mac = |n: u8| dhcp::ReservationKey::Mac(wire::ethernet::Mac([n; 6]));
        snapshot.insert_reservation(reservation(7, mac(7)));
        snapshot.insert_reservation(reservation(8, mac(8)));
        let by_client_id = dhcp::ReservationKey::ClientId([1, 2, 3].into());
        snapshot.insert_reservation(reservation(9, by_client_id));
        let (bindings, now) = (Bindings::default(), Instant::now());
        let attester = Attester::new(bindings.clone(), Arc::new(ArcSwap::from_pointee(snapshot)));
        let end = now + Duration::from_secs(10);
        for (last, mac) in [(5, [5; 6]), (8, [0x88; 6])] {
            let binding = Binding {
                mac,
                vlan: VLAN,
                end,
            };
            let address = IpAddr::from([10, 99, 0, last]);
            bindings.write().unwrap().insert(address, binding);
        }
        let card = |address: &str, at: Instant| {
            let found = attester.card(address.parse().unwrap(), at)?;
            assert_eq!(found.vlan, VLAN);
            Some(found.mac)
        };
        for (address, at, want, why) in [
            ("10.99.0.5", now, Some([5; 6]), "bound"),
            ("::ffff:10.99.0.5", now, Some([5; 6]), "bound, seen as IPv6"),
            ("10.99.0.5", end, None, "the binding has ended"),
            ("10.99.0.7", now, Some([7; 6]), "reserved"),
            (
                "10.99.0.8",
                now,
                Some([0x88; 6]),
                "what was given comes first",
            ),
            (
                "10.99.0.8",
                end,
                Some([8; 6]),
                "and the reservation after it",
            ),
            ("10.99.0.9", now, None, "a client id is no card"),
            ("10.99.0.10", now, None, "nobody's"),
            ("10.98.0.7", now, None, "no subnet of ours"),
            ("fd00::7", now, None, "no IPv6 links"),
        ] {
            assert_eq!(card(address, at), want, "{address}: {why}");
        }
    }
}
