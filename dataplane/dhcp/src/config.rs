//! What the engine is told: links, subnets, reservations, and what `boot` chose for this client.
//!
//! These are the engine's part of the rack's snapshot. The engine keeps none of it: it is passed per call, so a
//! change is in force with the next packet.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::Ipv4Net;
use lease::VlanId;
use wire::ethernet::Mac;

/// A VLAN this rack serves, with its subnets.
#[derive(Clone, Debug)]
pub struct Link {
    pub vlan: VlanId,
    /// The rack's own address there: server-id and next-server.
    pub server: Ipv4Addr,
    pub mtu: u16,
    pub mode: Mode,
    /// This rack's number in the rendezvous of the VLAN's racks: a hash of its system id.
    pub rack: u64,
    /// The VLAN's other racks; empty where this one is alone.
    pub peers: Vec<Peer>,
    pub subnets: Vec<Subnet>,
}

impl Link {
    /// The subnet that holds `address`.
    pub fn subnet_of(&self, address: Ipv4Addr) -> Option<&Subnet> {
        self.subnets
            .iter()
            .find(|subnet| subnet.net.contains(&address))
    }
}

/// What the rack does on a link.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    #[default]
    Serve,
    /// Somebody else hands out the addresses: only boot information is given (PXE 2.1 §2.2.3, proxyDHCP).
    Proxy,
}

/// Another rack that serves the same VLAN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub rack: u64,
    /// Its server-id there.
    pub server: Ipv4Addr,
    /// What the region last said. Safety never depends on it.
    pub alive: bool,
}

/// An option an operator set, for a subnet (global ones included), a range or a host; the closest one wins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DhcpOption {
    pub code: u8,
    /// As it goes on the wire, of any length (RFC 3396). Empty: the option is left out, whatever a wider scope says.
    pub value: Box<[u8]>,
    /// Sent whether asked for or not.
    pub always: bool,
}

#[derive(Clone, Debug)]
pub struct Subnet {
    pub id: u32,
    pub net: Ipv4Net,
    pub gateway: Option<Ipv4Addr>,
    pub dns: Vec<Ipv4Addr>,
    pub ntp: Vec<Ipv4Addr>,
    /// "" for none.
    pub domain: String,
    pub lease: Duration,
    pub ranges: Vec<Range>,
    /// MAAS names of boot methods that get no boot file here.
    pub disabled_archs: Vec<String>,
    /// Clients of this subnet are told apart by option 61 where they send one.
    pub client_id_identity: bool,
    pub options: Arc<[DhcpOption]>,
}

impl Subnet {
    /// The network's own address and its broadcast address are no host's (RFC 1122 §3.2.1.3; not so in a /31, RFC 3021).
    pub fn is_end(&self, address: Ipv4Addr) -> bool {
        let ends = [self.net.network(), self.net.broadcast()];
        self.net.prefix_len() < 31 && ends.contains(&address)
    }

    /// Whether `address` is in a dynamic range.
    pub fn is_dynamic(&self, address: Ipv4Addr) -> bool {
        self.is_in(RangeKind::Dynamic, address)
    }

    /// Whether `address` is in a range that is reserved: it may lie within a dynamic one.
    pub fn is_excluded(&self, address: Ipv4Addr) -> bool {
        self.is_in(RangeKind::Reserved, address)
    }

    fn is_in(&self, kind: RangeKind, address: Ipv4Addr) -> bool {
        self.ranges
            .iter()
            .any(|range| range.kind == kind && (range.first..=range.last).contains(&address))
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Range {
    pub id: u32,
    pub first: Ipv4Addr,
    /// Included.
    pub last: Ipv4Addr,
    pub kind: RangeKind,
    /// In place of the subnet's.
    pub lease: Option<Duration>,
    pub options: Arc<[DhcpOption]>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    Dynamic,
    Reserved,
}

/// Whom an address is set aside for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ReservationKey {
    Mac(Mac),
    /// Option 61 as it is sent, type octet included.
    ClientId(Box<[u8]>),
    /// Sub-options 1 and 2 of option 82; an empty `remote` matches any.
    Circuit {
        circuit: Box<[u8]>,
        remote: Box<[u8]>,
    },
}

/// An address set aside for one client. Outside the dynamic ranges it is answered from the snapshot and nothing is
/// written; inside one it is granted like any other, and nobody else gets it.
#[derive(Clone, Debug)]
pub struct Reservation {
    pub vlan: VlanId,
    pub subnet: u32,
    pub key: ReservationKey,
    pub address: Ipv4Addr,
    /// "" for none.
    pub hostname: String,
    /// In place of the subnet's.
    pub lease: Option<Duration>,
    pub options: Arc<[DhcpOption]>,
}

/// The engine's questions to the snapshot. Each must be answered in about constant time.
pub trait Config {
    /// The link with a subnet that holds this address: a relay's, or a renewing client's.
    fn link_of(&self, address: Ipv4Addr) -> Option<&Link>;
    fn reservation(&self, vlan: VlanId, mac: Mac) -> Option<&Reservation>;
    fn reservation_by_client_id(&self, vlan: VlanId, client_id: &[u8]) -> Option<&Reservation>;
    /// By the port a relay names. The entry with this very remote id wins over one for any.
    fn reservation_by_circuit(
        &self,
        vlan: VlanId,
        circuit: &[u8],
        remote: &[u8],
    ) -> Option<&Reservation>;
    /// Whose reservation this address is.
    fn reserved(&self, vlan: VlanId, address: Ipv4Addr) -> Option<&Reservation>;
    /// Whether the region knows a machine or device with this MAC. All others are strangers.
    fn is_known(&self, mac: Mac) -> bool;
    /// How many such MACs there are at most. Of every range so many addresses are kept from strangers, at most half of it.
    fn known_count(&self) -> usize;
}

/// Where a message came in.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The link of the device it was received on.
    pub link: &'a Link,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
    pub sender: Sender,
}

/// What is known of a message's sender that it cannot choose itself, or that an operator vouches for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The frame's Ethernet source.
    Ethernet(Mac),
    /// A frame whose source says nothing: of a device without Ethernet addresses, or one that other hosts' messages
    /// come through unmarked.
    Frame,
    /// A datagram without its frame: the IP source is all there is.
    Datagram,
    /// A datagram of a relay that the operator trusts.
    TrustedRelay,
}

/// What `boot` chose for this client. `BootReply::default()` is a client that boots from its disk.
#[derive(Clone, Copy, Debug, Default)]
pub struct BootReply<'a> {
    /// siaddr and option 66.
    pub next_server: Option<Ipv4Addr>,
    /// The `file` field, and option 67 if asked for or too long for the field. "" for none.
    pub file: &'a str,
    /// Option 60. Only HTTP boot wants it: "PXEClient" without option 43 would send EDK2 to port 4011.
    pub vendor_class: Option<&'a [u8]>,
    /// Option 43.
    pub vendor_options: Option<&'a [u8]>,
    /// Option 125: where ONIE finds its installer.
    pub vendor_identifying: Option<&'a [u8]>,
    /// Option 210, sent whether asked for or not.
    pub path_prefix: Option<&'a str>,
    /// Option 12 where asked for and no reservation says otherwise. "" for none.
    pub hostname: &'a str,
}
