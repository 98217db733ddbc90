//! What the engine is told: links, subnets, reservations, and what `boot` chose for this client.
//!
//! These are the engine's part of the rack's snapshot. The engine keeps none of it: it is passed per call, so a
//! change is in force with the next packet.

use std::net::Ipv4Addr;
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
    pub role: Role,
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

/// Which of a VLAN's racks this one is. Both answer: each from its own blocks only.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Primary,
    Secondary,
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
}

impl Subnet {
    /// Whether `address` is in a dynamic range.
    pub fn is_dynamic(&self, address: Ipv4Addr) -> bool {
        self.ranges.iter().any(|range| {
            range.kind == RangeKind::Dynamic && (range.first..=range.last).contains(&address)
        })
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range {
    pub first: Ipv4Addr,
    /// Included.
    pub last: Ipv4Addr,
    pub kind: RangeKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RangeKind {
    Dynamic,
    Reserved,
}

/// An address set aside for one MAC. Outside the dynamic ranges it is answered from the snapshot and nothing is
/// written; inside one it is granted like any other, and nobody else gets it.
#[derive(Clone, Debug)]
pub struct Reservation {
    pub vlan: VlanId,
    pub subnet: u32,
    pub mac: Mac,
    pub address: Ipv4Addr,
    /// "" for none.
    pub hostname: String,
}

/// The engine's questions to the snapshot. Each must be answered in about constant time.
pub trait Config {
    /// The link with a subnet that holds this address: a relay's, or a renewing client's.
    fn link_of(&self, address: Ipv4Addr) -> Option<&Link>;
    fn reservation(&self, vlan: VlanId, mac: Mac) -> Option<&Reservation>;
    /// Whose reservation this address is.
    fn reserved(&self, vlan: VlanId, address: Ipv4Addr) -> Option<&Reservation>;
    /// Whether the region knows a machine or device with this MAC. All others together get half of a range.
    fn is_known(&self, mac: Mac) -> bool;
}

/// Where a message came in.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The link of the device it was received on.
    pub link: &'a Link,
    pub source: Ipv4Addr,
    pub destination: Ipv4Addr,
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
    /// Option 210, sent whether asked for or not.
    pub path_prefix: Option<&'a str>,
    /// Option 12 where asked for and no reservation says otherwise. "" for none.
    pub hostname: &'a str,
}
