//! What the racks are told: two VLANs, one of them behind a relay, a few reservations, and changes of them.
//!
//! Ranges and blocks stay: an address of a range that an operator deletes may be promised to two, and that is the
//! operator's doing. So may one that is reserved for another, outside of the ranges, while its first owner has it.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use arbitrary::Unstructured;
use dhcp::{
    Config, DhcpOption, Link, Mode, Peer, Range, RangeKind, Reservation, ReservationKey, Subnet,
};
use lease::{Block, BlockId, Epoch, VlanId};
use wire::ethernet::Mac;

use super::message::mac;
use crate::{octets, one_of, pick};

pub(super) const VLAN: VlanId = 5001;
pub(super) const RELAYED: VlanId = 5002;
/// The racks' own addresses on the first VLAN; the second is reached through a relay.
pub(super) const SERVERS: [Ipv4Addr; 2] =
    [Ipv4Addr::new(10, 99, 0, 1), Ipv4Addr::new(10, 99, 0, 2)];
pub(super) const RELAY: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 2);

/// Addresses that may be reserved.
pub(super) const RESERVATIONS: usize = 5;

/// Blocks of the ranges, and which of two racks owns each.
pub(super) fn blocks() -> [(Block, usize); 3] {
    let block = |id, vlan, subnet, first: [u8; 4], count| Block {
        id: BlockId(id),
        epoch: Epoch(0),
        vlan,
        subnet,
        first: Ipv4Addr::from(first).into(),
        count,
    };
    [
        (block(1, VLAN, 7, [10, 99, 0, 100], 5), 0),
        (block(2, VLAN, 7, [10, 99, 0, 105], 3), 1),
        (block(3, RELAYED, 8, [10, 100, 0, 100], 3), 0),
    ]
}

/// One rack's view.
pub(super) struct Site {
    pub links: Vec<Link>,
    reservations: Vec<Reservation>,
    strangers: Vec<Mac>,
}

impl Site {
    pub fn new(rack: usize, racks: usize) -> Self {
        let peers: Vec<Peer> = (0..racks)
            .filter(|other| *other != rack)
            .map(|other| Peer {
                rack: other as u64,
                server: SERVERS[other],
                alive: true,
            })
            .collect();
        let link = |vlan, subnet| Link {
            vlan,
            server: SERVERS[rack],
            mtu: 1500,
            mode: Mode::Serve,
            rack: rack as u64,
            peers: peers.clone(),
            subnets: vec![subnet],
        };
        let subnet = |id, net: &str, first: [u8; 4], last: [u8; 4]| Subnet {
            id,
            net: net.parse().expect("written here"),
            gateway: Some(Ipv4Addr::new(10, 99, 0, 254)),
            dns: SERVERS.to_vec(),
            ntp: vec![],
            domain: "maas".into(),
            lease: Duration::from_secs(600),
            ranges: vec![Range {
                id,
                first: first.into(),
                last: last.into(),
                kind: RangeKind::Dynamic,
                lease: None,
                options: [].into(),
            }],
            disabled_archs: vec![],
            client_id_identity: false,
            options: [].into(),
        };
        let near = subnet(7, "10.99.0.0/24", [10, 99, 0, 100], [10, 99, 0, 119]);
        let far = subnet(8, "10.100.0.0/24", [10, 100, 0, 100], [10, 100, 0, 109]);
        Self {
            links: vec![link(VLAN, near), link(RELAYED, far)],
            reservations: vec![],
            strangers: vec![mac(1), mac(2)],
        }
    }

    /// The longest lease that anything here may give.
    pub fn lease_max(&self) -> Duration {
        let subnets = self.links.iter().flat_map(|link| &link.subnets);
        let ranges = subnets.flat_map(|subnet| {
            let ranges = subnet.ranges.iter().filter_map(|range| range.lease);
            ranges.chain([subnet.lease])
        });
        let hosts = self.reservations.iter().filter_map(|host| host.lease);
        ranges.chain(hosts).max().unwrap_or_default()
    }

    pub fn change(&mut self, change: &Change) {
        match change {
            Change::Reserve(reservation) => {
                let same = |other: &Reservation| other.address == reservation.address;
                match self.reservations.iter().position(same) {
                    Some(at) => drop(self.reservations.swap_remove(at)),
                    None => self.reservations.push(reservation.clone()),
                }
            }
            Change::Lease { subnet, range } => {
                for of in self.links.iter_mut().flat_map(|link| &mut link.subnets) {
                    of.lease = *subnet;
                    of.ranges[0].lease = *range;
                }
            }
            Change::Options(options) => {
                for of in self.links.iter_mut().flat_map(|link| &mut link.subnets) {
                    of.options = Arc::clone(options);
                }
            }
            Change::Identity => {
                for of in self.links.iter_mut().flat_map(|link| &mut link.subnets) {
                    of.client_id_identity = !of.client_id_identity;
                }
            }
            Change::Mode(mode) => self.links[0].mode = *mode,
            Change::Mtu(mtu) => self.links[0].mtu = *mtu,
            Change::Peers { alive } => {
                for peer in self.links.iter_mut().flat_map(|link| &mut link.peers) {
                    peer.alive = *alive;
                }
            }
            Change::Enlist(mac) => match self.strangers.iter().position(|known| known == mac) {
                Some(at) => drop(self.strangers.swap_remove(at)),
                None => self.strangers.push(*mac),
            },
        }
    }

    fn reservation_of(
        &self,
        vlan: VlanId,
        is_key: impl Fn(&ReservationKey) -> bool,
    ) -> Option<&Reservation> {
        let mut all = self.reservations.iter();
        all.find(|found| found.vlan == vlan && is_key(&found.key))
    }
}

impl Config for Site {
    fn link_of(&self, address: Ipv4Addr) -> Option<&Link> {
        let mut links = self.links.iter();
        links.find(|link| link.subnet_of(address).is_some())
    }

    fn reservation(&self, vlan: VlanId, mac: Mac) -> Option<&Reservation> {
        self.reservation_of(vlan, |key| *key == ReservationKey::Mac(mac))
    }

    fn reservation_by_client_id(&self, vlan: VlanId, client_id: &[u8]) -> Option<&Reservation> {
        let own = |key: &ReservationKey| matches!(key, ReservationKey::ClientId(id) if **id == *client_id);
        self.reservation_of(vlan, own)
    }

    fn reservation_by_circuit(
        &self,
        vlan: VlanId,
        circuit: &[u8],
        remote: &[u8],
    ) -> Option<&Reservation> {
        let by = |remote: &[u8]| ReservationKey::Circuit {
            circuit: circuit.into(),
            remote: remote.into(),
        };
        let (exact, any) = (by(remote), by(&[]));
        self.reservation_of(vlan, |key| *key == exact)
            .or_else(|| self.reservation_of(vlan, |key| *key == any))
    }

    fn reserved(&self, vlan: VlanId, address: Ipv4Addr) -> Option<&Reservation> {
        let mut all = self.reservations.iter();
        all.find(|found| found.vlan == vlan && found.address == address)
    }

    fn is_known(&self, mac: Mac) -> bool {
        !self.strangers.contains(&mac)
    }

    fn known_count(&self) -> usize {
        usize::MAX
    }
}

/// What an operator does.
pub(super) enum Change {
    /// Made if there is none of this address, else taken away.
    Reserve(Reservation),
    Lease {
        subnet: Duration,
        range: Option<Duration>,
    },
    Options(Arc<[DhcpOption]>),
    Identity,
    Mode(Mode),
    Mtu(u16),
    Peers {
        alive: bool,
    },
    Enlist(Mac),
}

impl Change {
    pub fn arbitrary(input: &mut Unstructured<'_>) -> Self {
        let secs = |input: &mut Unstructured<'_>| {
            Duration::from_secs(one_of(input, &[600, 60, 5, 86_400]))
        };
        match pick(input, 10) {
            0..=2 => Self::Reserve(reservation(input)),
            3 => Self::Lease {
                subnet: secs(input),
                range: (pick(input, 2) == 1).then(|| secs(input)),
            },
            4 => Self::Options((0..pick(input, 4)).map(|_| option(input)).collect()),
            5 => Self::Identity,
            6 => Self::Mode(one_of(input, &[Mode::Serve, Mode::Serve, Mode::Proxy])),
            7 => Self::Mtu(one_of(input, &[1500, 576, 9000, 0])),
            8 => Self::Peers {
                alive: pick(input, 2) == 1,
            },
            _ => Self::Enlist(mac(1 + pick(input, 8) as u8)),
        }
    }
}

fn option(input: &mut Unstructured<'_>) -> DhcpOption {
    let length = one_of(input, &[0, 4, 255, 256, 600]);
    DhcpOption {
        code: input.arbitrary().unwrap_or_default(),
        value: octets(input, length).into(),
        always: pick(input, 2) == 1,
    }
}

/// Each address is only ever one client's; those of ports and client ids are in the ranges, where the region sees to
/// it that only one of several claimants gets them.
fn reservation(input: &mut Unstructured<'_>) -> Reservation {
    let circuit = || ReservationKey::Circuit {
        circuit: message_circuit(6).into(),
        remote: [].into(),
    };
    let choices: [(VlanId, u32, ReservationKey, [u8; 4]); RESERVATIONS] = [
        (VLAN, 7, ReservationKey::Mac(mac(3)), [10, 99, 0, 101]),
        (VLAN, 7, ReservationKey::Mac(mac(4)), [10, 99, 0, 50]),
        (
            VLAN,
            7,
            ReservationKey::ClientId([0, 1, 2].into()),
            [10, 99, 0, 103],
        ),
        (RELAYED, 8, circuit(), [10, 100, 0, 101]),
        (RELAYED, 8, ReservationKey::Mac(mac(7)), [10, 100, 0, 50]),
    ];
    let [a, b, c, d, e] = choices;
    let (vlan, subnet, key, address) = match pick(input, 5) {
        0 => a,
        1 => b,
        2 => c,
        3 => d,
        _ => e,
    };
    Reservation {
        vlan,
        subnet,
        key,
        address: address.into(),
        hostname: one_of(input, &["", "reserved"]).into(),
        lease: one_of(input, &[None, Some(300), Some(7200)]).map(Duration::from_secs),
        options: (0..pick(input, 3)).map(|_| option(input)).collect(),
    }
}

/// The circuit id of the port that client `n` hangs on.
pub(super) fn message_circuit(n: u8) -> [u8; 2] {
    [b'p', n]
}
