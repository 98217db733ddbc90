//! Whose card is behind an address: what the rack tells the region of a machine whose request it passes on
//! (docs/protocols.md, Trust; docs/decisions/0016).
//!
//! Two questions, and only the second one proves anything:
//!
//! | question                           | answered by                                                              |
//! |------------------------------------|--------------------------------------------------------------------------|
//! | who was given this address?        | a live binding under a MAC, else a reservation for a MAC, else the neighbour table |
//! | whose connection is this, surely?  | on a link of the rack's own: the neighbour table, with which the frame that opened the connection and the binding or reservation must agree; behind a relay: the binding, or a reservation for a machine's card |
//!
//! That the kernel could not be asked, or has not found out yet, is neither "nobody" nor "somebody else": the question is
//! asked again, and whoever cannot wait is told to come back.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use arc_swap::ArcSwap;
use shard::{Link, Snapshot, Standing};

use crate::neighbour::{self, Entry};
use crate::rarely::Rarely;

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
    kernel: Kernel,
}

/// What is asked of the kernel; the real one but in tests.
#[derive(Clone, Copy)]
pub(crate) struct Kernel {
    pub(crate) entry: fn(u32, Ipv4Addr) -> io::Result<Entry>,
    pub(crate) is_direct: fn(u32, Ipv4Addr) -> io::Result<bool>,
}

impl Kernel {
    const REAL: Self = Self {
        entry: neighbour::entry,
        is_direct: neighbour::is_direct,
    };

    fn entry(self, device: u32, address: Ipv4Addr) -> io::Result<Entry> {
        (self.entry)(device, address)
    }

    fn is_direct(self, device: u32, address: Ipv4Addr) -> io::Result<bool> {
        (self.is_direct)(device, address)
    }
}

/// The kernel could not be asked, or has not found out yet: asked again it may say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unclear;

impl Attester {
    pub fn new(bindings: Bindings, snapshot: Arc<ArcSwap<Snapshot>>) -> Self {
        Self {
            bindings,
            snapshot,
            kernel: Kernel::REAL,
        }
    }

    #[cfg(test)]
    pub(crate) fn asking(self, kernel: Kernel) -> Self {
        Self { kernel, ..self }
    }

    /// The card that was given `address`, or that answers for it. No proof: the source of a datagram says nothing.
    pub fn card(&self, address: IpAddr, now: Instant) -> Result<Option<[u8; 6]>, Unclear> {
        if let Some(mac) = self.given(address, now) {
            return Ok(Some(mac));
        }
        let IpAddr::V4(address) = address.to_canonical() else {
            return Ok(None);
        };
        let snapshot = self.snapshot.load();
        let device = snapshot
            .link_by_address(address)
            .and_then(|link| link.index);
        let Some(device) = device else {
            return Ok(None);
        };
        match self.kernel.entry(device, address) {
            Ok(Entry::Card(mac)) => Ok(Some(mac)),
            Ok(Entry::None) => Ok(None),
            Ok(Entry::Asking) => Err(Unclear),
            Err(error) => {
                complain(address, &error);
                Err(Unclear)
            }
        }
    }

    /// The card that was given `address`, by lease or reservation; the neighbours are not asked.
    pub fn given(&self, address: IpAddr, now: Instant) -> Option<[u8; 6]> {
        let address = address.to_canonical();
        if let Some(card) = self.bound(address, now) {
            return Some(card.mac);
        }
        let IpAddr::V4(address) = address else {
            return None;
        };
        let snapshot = self.snapshot.load();
        let link = snapshot.link_by_address(address)?;
        let reserved = snapshot.reserved_mac(link.dhcp.vlan, address);
        reserved.map(|mac| mac.0)
    }

    /// The card behind a TCP connection from `address`. `frame`: the Ethernet source of what opened it, where the
    /// kernel has kept that.
    pub fn attest(&self, address: IpAddr, frame: Option<[u8; 6]>, now: Instant) -> Verdict {
        let address = address.to_canonical();
        let bound = self.bound(address, now);
        let IpAddr::V4(v4) = address else {
            return Verdict::Unknown;
        };
        let snapshot = self.snapshot.load();
        let Some(link) = snapshot.link_by_address(v4) else {
            return Verdict::Unknown;
        };
        let vlan = link.dhcp.vlan;
        let reserved = snapshot.reserved_mac(vlan, v4).map(|mac| mac.0);
        let machine_of = |mac: [u8; 6]| snapshot.machine_by_mac(&mac).map(|m| &m.system_id);
        // A relay brings the queries of a link without a device: nobody of it is our neighbour.
        if link.interface.is_empty() {
            let reserved = reserved.filter(|mac| machine_of(*mac).is_some());
            let reserved = reserved.map(|mac| Card { mac, vlan });
            return bound.or(reserved).map_or(Verdict::Unknown, Verdict::Card);
        }
        let seen = Seen {
            given: bound.map(|card| card.mac).or(reserved),
            frame,
            neighbour: self.neighbour(link, v4),
        };
        seen.judge(vlan, |a, b| {
            machine_of(a).is_some() && machine_of(a) == machine_of(b)
        })
    }

    /// It is the card of a machine that the region has told of.
    pub fn knows(&self, card: &Card) -> bool {
        self.snapshot.load().machine_by_mac(&card.mac).is_some()
    }

    /// Who answers for the address, as a witness: on a network of the rack's own somebody must.
    fn neighbour(&self, link: &Link, address: Ipv4Addr) -> Neighbour {
        let Some(device) = link.index else {
            return Neighbour::Elsewhere;
        };
        let found = match self.kernel.entry(device, address) {
            Ok(Entry::Card(mac)) => return Neighbour::Card(mac),
            // A client that has shaken hands over TCP has got frames from here: on this device its card was known.
            Ok(Entry::Asking | Entry::None) => self.kernel.is_direct(device, address),
            Err(error) => Err(error),
        };
        match found {
            Ok(false) => Neighbour::Elsewhere,
            Ok(true) => Neighbour::Unclear,
            Err(error) => {
                complain(address, &error);
                Neighbour::Unclear
            }
        }
    }

    /// Whether `address` was given to a machine that the region knows. It decides who waits for whom and nothing else.
    pub fn standing(&self, address: IpAddr, now: Instant) -> Standing {
        let mac = self.given(address, now);
        match mac.and_then(|mac| self.snapshot.load().machine_by_mac(&mac).map(drop)) {
            Some(()) => Standing::Known,
            None => Standing::Stranger,
        }
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

/// What a rack concludes of a connection's sender.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    Card(Card),
    /// Nothing says whose card it is.
    Unknown,
    /// Not known now whose card it is, and soon it may be: nothing is passed on before it is.
    Unclear,
    /// The address is another card's: nothing is answered.
    Disputed(Dispute),
}

/// Two witnesses that contradict each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Dispute {
    /// The card that the address was given to, else the one that frames to it are sent to.
    pub rightful: [u8; 6],
    /// The card that talks to us.
    pub seen: [u8; 6],
}

/// What is known of a host on a link of the rack's own.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    /// Whom a binding or a reservation names.
    given: Option<[u8; 6]>,
    /// Whose frame opened the connection.
    frame: Option<[u8; 6]>,
    /// Whom frames to the address are sent to now.
    neighbour: Neighbour,
}

/// What the neighbour table says of an address on a device of the rack's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Neighbour {
    Card([u8; 6]),
    /// No frames are sent to it on this device: it is this host's own, or behind a router.
    #[default]
    Elsewhere,
    /// Somebody's on this very network, and the kernel does not say now whose.
    Unclear,
}

impl Seen {
    /// All that speak must name one card, or cards of one known machine: a host with two cards on a network answers
    /// for both addresses with either. Without a neighbour nothing is proven; where there must be one, it can still be
    /// seen that the address is another's.
    fn judge(self, vlan: u32, same_machine: impl Fn([u8; 6], [u8; 6]) -> bool) -> Verdict {
        let neighbour = match self.neighbour {
            Neighbour::Card(mac) => Some(mac),
            Neighbour::Elsewhere => return Verdict::Unknown,
            Neighbour::Unclear => None,
        };
        let Some(rightful) = self.given.or(neighbour) else {
            return Verdict::Unclear;
        };
        for seen in [neighbour, self.frame].into_iter().flatten() {
            if seen != rightful && !same_machine(seen, rightful) {
                return Verdict::Disputed(Dispute { rightful, seen });
            }
        }
        let mac = rightful;
        match neighbour {
            Some(_) => Verdict::Card(Card { mac, vlan }),
            None => Verdict::Unclear,
        }
    }
}

fn complain(address: Ipv4Addr, error: &io::Error) {
    static RARELY: Rarely = Rarely::new();
    if let Some(left_out) = RARELY.may(Instant::now()) {
        tracing::warn!(%address, %error, left_out, "asking for the neighbour");
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::time::Duration;

    use super::*;

    const VLAN: u32 = 5001;

    /// Without a device: a relay's.
    pub(crate) fn relayed(net: &str) -> Link {
        let mut link = link_of(net);
        link.interface = String::new();
        link.index = None;
        link
    }

    pub(crate) fn link() -> Link {
        link_of("10.99.0.0/24")
    }

    pub(crate) fn link_of(net: &str) -> Link {
        let subnet = dhcp::Subnet {
            id: 1,
            net: net.parse().unwrap(),
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
    fn all_witnesses_on_a_link_must_name_one_card_or_one_machine() {
        const A: [u8; 6] = [0xa; 6];
        const A2: [u8; 6] = [0xa2; 6];
        const X: [u8; 6] = [0x66; 6];
        // A and A2 are cards of one machine; nobody knows X.
        let same = |a: [u8; 6], b: [u8; 6]| [A, A2].contains(&a) && [A, A2].contains(&b);
        let card = |mac| Verdict::Card(Card { mac, vlan: VLAN });
        let disputed = |rightful, seen| Verdict::Disputed(Dispute { rightful, seen });
        let unknown = Verdict::Unknown;
        let unclear = Verdict::Unclear;
        let on = Neighbour::Card;
        let (away, silent) = (Neighbour::Elsewhere, Neighbour::Unclear);
        for (given, frame, neighbour, want, why) in [
            (Some(A), Some(A), on(A), card(A), "the holder itself"),
            (Some(A), None, on(A), card(A), "a kernel that kept no frame"),
            (
                None,
                Some(X),
                on(X),
                card(X),
                "no lease of ours: its own card",
            ),
            (
                Some(A),
                Some(X),
                on(X),
                disputed(A, X),
                "a thief of the address",
            ),
            (
                Some(A),
                None,
                on(X),
                disputed(A, X),
                "the same, no frame kept",
            ),
            (
                Some(A),
                Some(X),
                on(A),
                disputed(A, X),
                "a thief that poisons ARP",
            ),
            (
                None,
                Some(X),
                on(A),
                disputed(A, X),
                "the same, no lease of ours",
            ),
            (
                Some(A),
                Some(A),
                on(A2),
                card(A),
                "answers ARP with its second card",
            ),
            (
                Some(A2),
                Some(A),
                on(A),
                card(A2),
                "talks with its first card",
            ),
            (Some(A), Some(A), away, unknown, "behind a router"),
            (Some(A), Some(X), away, unknown, "the frame is the router's"),
            (
                Some(A),
                None,
                away,
                unknown,
                "a lease alone attests nothing",
            ),
            (None, None, away, unknown, "nothing"),
            (Some(A), Some(A), silent, unclear, "its ARP is late"),
            (
                Some(A),
                Some(A2),
                silent,
                unclear,
                "the same, from its second card",
            ),
            (
                Some(A),
                Some(X),
                silent,
                disputed(A, X),
                "a thief that is silent to ARP",
            ),
            (Some(A), None, silent, unclear, "the same, no frame kept"),
            (
                None,
                Some(X),
                silent,
                unclear,
                "a stranger whose ARP is late",
            ),
            (None, None, silent, unclear, "nobody that is known"),
            // The address was leased to A2's machine while X's connection lived on.
            (
                Some(A2),
                Some(X),
                on(A2),
                disputed(A2, X),
                "a connection older than the lease",
            ),
        ] {
            let seen = Seen {
                given,
                frame,
                neighbour,
            };
            assert_eq!(seen.judge(VLAN, same), want, "{why}");
        }
    }

    fn machine(id: &str, mac: u8) -> Arc<boot::Machine> {
        Arc::new(boot::Machine {
            system_id: id.into(),
            hostname: id.into(),
            domain: String::new(),
            macs: vec![wire::ethernet::Mac([mac; 6])],
            purpose: boot::Purpose::Local,
            arch: "amd64".into(),
            subarch: "generic".into(),
            osystem: String::new(),
            release: String::new(),
            label: String::new(),
            kernel: String::new(),
            initrd: String::new(),
            squashfs: String::new(),
            extra_options: String::new(),
            ephemeral_options: String::new(),
            boot_window: false,
        })
    }

    #[test]
    fn behind_a_relay_a_binding_attests_and_a_reservation_only_for_a_machines_card() {
        let mut snapshot = Snapshot::default();
        snapshot.set_links(vec![relayed("10.99.0.0/24")]);
        let mac = |n: u8| dhcp::ReservationKey::Mac(wire::ethernet::Mac([n; 6]));
        snapshot.insert_reservation(reservation(7, mac(7)));
        snapshot.insert_reservation(reservation(8, mac(8)));
        snapshot.insert_machine(machine("abc123", 7));
        let (bindings, now) = (Bindings::default(), Instant::now());
        let binding = Binding {
            mac: [5; 6],
            vlan: VLAN,
            end: now + Duration::from_secs(10),
        };
        bindings
            .write()
            .unwrap()
            .insert([10, 99, 0, 5].into(), binding);
        let attester = Attester::new(bindings, Arc::new(ArcSwap::from_pointee(snapshot)));
        for (last, want, why) in [
            (5, Some(5), "bound"),
            (7, Some(7), "reserved for a machine's card"),
            (8, None, "reserved for nobody that is known"),
            (9, None, "nobody's"),
        ] {
            let card = want.map(|n| Card {
                mac: [n; 6],
                vlan: VLAN,
            });
            let want = card.map_or(Verdict::Unknown, Verdict::Card);
            let address = IpAddr::from([10, 99, 0, last]);
            assert_eq!(attester.attest(address, None, now), want, "{why}");
        }
    }

    /// The device is loopback, where nobody is a neighbour.
    #[test]
    fn on_a_link_of_our_own_neither_lease_nor_reservation_attests_alone() {
        let mut snapshot = Snapshot::default();
        snapshot.set_links(vec![link()]);
        let mac = |n: u8| dhcp::ReservationKey::Mac(wire::ethernet::Mac([n; 6]));
        snapshot.insert_reservation(reservation(7, mac(7)));
        snapshot.insert_machine(machine("abc123", 7));
        let (bindings, now) = (Bindings::default(), Instant::now());
        let binding = Binding {
            mac: [5; 6],
            vlan: VLAN,
            end: now + Duration::from_secs(10),
        };
        bindings
            .write()
            .unwrap()
            .insert([10, 99, 0, 5].into(), binding);
        let attester = Attester::new(bindings, Arc::new(ArcSwap::from_pointee(snapshot)));
        for last in [5, 7, 9] {
            let address = IpAddr::from([10, 99, 0, last]);
            assert_eq!(attester.attest(address, None, now), Verdict::Unknown);
            let frame = Some([last; 6]);
            assert_eq!(attester.attest(address, frame, now), Verdict::Unknown);
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
        let card =
            |address: &str, at: Instant| attester.card(address.parse().unwrap(), at).unwrap();
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

    fn with_kernel(kernel: Kernel) -> Attester {
        let mut snapshot = Snapshot::default();
        snapshot.set_links(vec![link()]);
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        Attester::new(Bindings::default(), snapshot).asking(kernel)
    }

    /// "No neighbour" would be: attest nobody, and boot nothing.
    #[test]
    fn a_neighbour_that_could_not_be_looked_up_is_not_nobody() {
        let failed = |_: u32, _: Ipv4Addr| Err(io::Error::from(rustix::io::Errno::NOBUFS));
        let address = IpAddr::from([10, 99, 0, 5]);
        let now = Instant::now();
        let nobody: fn(u32, Ipv4Addr) -> io::Result<Entry> = |_, _| Ok(Entry::None);
        let asking: fn(u32, Ipv4Addr) -> io::Result<Entry> = |_, _| Ok(Entry::Asking);
        let found: fn(u32, Ipv4Addr) -> io::Result<Entry> = |_, _| Ok(Entry::Card([5; 6]));
        let straight: fn(u32, Ipv4Addr) -> io::Result<bool> = |_, _| Ok(true);
        let routed: fn(u32, Ipv4Addr) -> io::Result<bool> = |_, _| Ok(false);
        let is_card = Verdict::Card(Card {
            mac: [5; 6],
            vlan: VLAN,
        });
        type Route = fn(u32, Ipv4Addr) -> io::Result<bool>;
        for (entry, is_direct, card, verdict, why) in [
            (found, straight, Ok(Some([5; 6])), is_card, "a card"),
            (
                asking,
                straight,
                Err(Unclear),
                Verdict::Unclear,
                "being asked",
            ),
            (
                nobody,
                straight,
                Ok(None),
                Verdict::Unclear,
                "gone from the table",
            ),
            (
                nobody,
                routed,
                Ok(None),
                Verdict::Unknown,
                "behind a router",
            ),
            (
                nobody,
                failed as Route,
                Ok(None),
                Verdict::Unclear,
                "no word of its route",
            ),
            (
                |_, _| Err(rustix::io::Errno::NOBUFS.into()),
                straight,
                Err(Unclear),
                Verdict::Unclear,
                "no word",
            ),
        ] {
            let attester = with_kernel(Kernel { entry, is_direct });
            assert_eq!(attester.card(address, now), card, "{why}");
            assert_eq!(attester.attest(address, None, now), verdict, "{why}");
        }
    }
}
