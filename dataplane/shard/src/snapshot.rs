//! What a rack knows, as its shards see it: immutable, loaded once per turn, swapped in whole by the link thread.
//!
//! Versions share structure (`imbl`): a change of one machine copies a few nodes, not the table. The link thread clones
//! the last version, changes it with the methods here, and stores it in the `ArcSwap`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use bytes::Bytes;
use dhcp::ReservationKey;
use images::Object;
use lease::VlanId;
use wire::ethernet::Mac;

type Map<K, V> =
    imbl::GenericHashMap<K, V, foldhash::quality::RandomState, imbl::shared_ptr::DefaultSharedPtr>;

type HashMap<K, V> = std::collections::HashMap<K, V, foldhash::quality::RandomState>;

#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    links: Arc<Links>,
    /// By [`reservation_key`].
    reservations: Map<Box<[u8]>, Arc<dhcp::Reservation>>,
    reserved: Map<(VlanId, Ipv4Addr), Arc<dhcp::Reservation>>,
    by_mac: Map<[u8; 6], Arc<boot::Machine>>,
    by_id: Map<Arc<str>, Arc<boot::Machine>>,
    pub files: Map<[u8; 32], Arc<Object>>,
    /// By path without a leading slash.
    pub loaders: Map<Arc<str>, Arc<Loader>>,
    pub settings: Arc<boot::Settings>,
    /// Few, and mostly none.
    pub traces: Arc<[Trace]>,
}

/// A machine each of whose DHCP messages is reported, for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Trace {
    pub mac: Mac,
    pub until: Instant,
}

/// A link of this rack and the device it is reached by.
#[derive(Clone, Debug)]
pub struct Link {
    pub dhcp: dhcp::Link,
    /// Kernel name of the device.
    pub interface: String,
    /// Kernel index of the device; `None` while it is not there.
    pub index: Option<u32>,
}

/// A file served by TFTP and HTTP under its own name.
#[derive(Debug)]
pub struct Loader {
    pub sha256: [u8; 32],
    /// Verified content, set once by the work thread.
    pub bytes: OnceLock<Bytes>,
}

impl Loader {
    pub fn absent(sha256: [u8; 32]) -> Self {
        Self {
            sha256,
            bytes: OnceLock::new(),
        }
    }
}

/// The links, found by device, VLAN and address.
#[derive(Debug, Default)]
struct Links {
    all: Vec<Link>,
    by_index: HashMap<u32, usize>,
    by_vlan: HashMap<VlanId, usize>,
    /// By the rack's address on the link.
    boot_files: HashMap<Ipv4Addr, boot::BootFiles>,
    /// First address of a subnet to (last address, link). Subnets of one rack do not overlap.
    by_address: BTreeMap<Ipv4Addr, (Ipv4Addr, usize)>,
}

impl Snapshot {
    pub fn links(&self) -> &[Link] {
        &self.links.all
    }

    pub fn set_links(&mut self, all: Vec<Link>) {
        let mut links = Links::default();
        for (at, link) in all.iter().enumerate() {
            if let Some(index) = link.index {
                links.by_index.insert(index, at);
            }
            links.by_vlan.insert(link.dhcp.vlan, at);
            let server = link.dhcp.server;
            links
                .boot_files
                .entry(server)
                .or_insert_with(|| boot::BootFiles::of(IpAddr::V4(server)));
            for subnet in &link.dhcp.subnets {
                let net = subnet.net;
                links
                    .by_address
                    .insert(net.network(), (net.broadcast(), at));
            }
        }
        links.all = all;
        self.links = Arc::new(links);
    }

    /// The link of the device with this kernel index.
    pub fn link_by_interface(&self, index: u32) -> Option<&Link> {
        self.links
            .by_index
            .get(&index)
            .map(|at| &self.links.all[*at])
    }

    pub fn link_by_vlan(&self, vlan: VlanId) -> Option<&Link> {
        self.links.by_vlan.get(&vlan).map(|at| &self.links.all[*at])
    }

    /// What firmware is told to boot on a link where the rack has this address.
    pub fn boot_files(&self, server: Ipv4Addr) -> Option<&boot::BootFiles> {
        self.links.boot_files.get(&server)
    }

    /// The link with a subnet that holds the address.
    pub fn link_by_address(&self, address: Ipv4Addr) -> Option<&Link> {
        let (_, (last, at)) = self.links.by_address.range(..=address).next_back()?;
        (address <= *last).then(|| &self.links.all[*at])
    }

    /// Adds a reservation in place of those with the same address or the same key.
    pub fn insert_reservation(&mut self, reservation: dhcp::Reservation) {
        let (vlan, address) = (reservation.vlan, reservation.address);
        self.remove_reservation(vlan, address);
        let reservation = Arc::new(reservation);
        let key = with_key(vlan, &reservation.key, |key| Box::<[u8]>::from(key));
        if let Some(old) = self.reservations.insert(key, Arc::clone(&reservation)) {
            self.reserved.remove(&(vlan, old.address));
        }
        self.reserved.insert((vlan, address), reservation);
    }

    pub fn remove_reservation(&mut self, vlan: VlanId, address: Ipv4Addr) {
        if let Some(old) = self.reserved.remove(&(vlan, address)) {
            with_key(vlan, &old.key, |key| self.reservations.remove(key));
        }
    }

    pub fn clear_reservations(&mut self) {
        self.reservations.clear();
        self.reserved.clear();
    }

    pub fn is_traced(&self, mac: Mac, now: Instant) -> bool {
        self.traces
            .iter()
            .any(|trace| trace.mac == mac && now < trace.until)
    }

    /// The MAC an address is set aside for.
    pub fn reserved_mac(&self, vlan: VlanId, address: Ipv4Addr) -> Option<Mac> {
        match self.reserved.get(&(vlan, address))?.key {
            ReservationKey::Mac(mac) => Some(mac),
            ReservationKey::ClientId(_) | ReservationKey::Circuit { .. } => None,
        }
    }

    fn find_reservation(
        &self,
        vlan: VlanId,
        kind: u8,
        parts: [&[u8]; 2],
    ) -> Option<&dhcp::Reservation> {
        // A client id that came in parts (RFC 3396) is nobody's key, not that of whoever has its beginning.
        if parts.iter().any(|part| part.len() > KEY_PART_BYTES_MAX) {
            return None;
        }
        key_octets(vlan, kind, parts, |key| self.reservations.get(key)).map(Arc::as_ref)
    }

    pub fn machine_by_mac(&self, mac: &[u8; 6]) -> Option<&Arc<boot::Machine>> {
        self.by_mac.get(mac)
    }

    pub fn machine_by_id(&self, system_id: &str) -> Option<&Arc<boot::Machine>> {
        self.by_id.get(system_id)
    }

    /// Whether both say the same of what machines boot, because one was made from the other and that was left alone.
    pub fn boots_like(&self, other: &Self) -> bool {
        self.by_id.ptr_eq(&other.by_id)
            && self.by_mac.ptr_eq(&other.by_mac)
            && self.files.ptr_eq(&other.files)
            && Arc::ptr_eq(&self.settings, &other.settings)
    }

    pub fn machine_count(&self) -> usize {
        self.by_id.len()
    }

    /// Adds or replaces the machine with this system id, found by all its MACs.
    pub fn insert_machine(&mut self, machine: Arc<boot::Machine>) {
        self.remove_machine(&machine.system_id);
        for mac in &machine.macs {
            self.by_mac.insert(mac.0, Arc::clone(&machine));
        }
        self.by_id
            .insert(machine.system_id.as_str().into(), machine);
    }

    pub fn remove_machine(&mut self, system_id: &str) {
        let Some(old) = self.by_id.remove(system_id) else {
            return;
        };
        for mac in &old.macs {
            // The MAC may have moved to another machine since.
            if self
                .by_mac
                .get(&mac.0)
                .is_some_and(|machine| Arc::ptr_eq(machine, &old))
            {
                self.by_mac.remove(&mac.0);
            }
        }
    }
}

const BY_MAC: u8 = 0;
const BY_CLIENT_ID: u8 = 1;
const BY_CIRCUIT: u8 = 2;

/// One option's value.
const KEY_PART_BYTES_MAX: usize = 255;
/// VLAN, kind, length of the first part, both parts.
const KEY_BYTES_MAX: usize = 4 + 1 + 1 + 2 * KEY_PART_BYTES_MAX;

/// Calls `use_key` with the octets that stand for a key: no two keys share them, and finding one allocates nothing.
fn key_octets<R>(vlan: VlanId, kind: u8, parts: [&[u8]; 2], use_key: impl FnOnce(&[u8]) -> R) -> R {
    let mut octets = [0; KEY_BYTES_MAX];
    let mut length = 0;
    let parts = parts.map(|part| &part[..part.len().min(KEY_PART_BYTES_MAX)]);
    let first = parts[0].len() as u8; // cut above
    for part in [&vlan.to_be_bytes()[..], &[kind, first], parts[0], parts[1]] {
        octets[length..length + part.len()].copy_from_slice(part);
        length += part.len();
    }
    use_key(&octets[..length])
}

fn with_key<R>(vlan: VlanId, key: &ReservationKey, use_key: impl FnOnce(&[u8]) -> R) -> R {
    match key {
        ReservationKey::Mac(mac) => key_octets(vlan, BY_MAC, [&mac.0, &[]], use_key),
        ReservationKey::ClientId(id) => key_octets(vlan, BY_CLIENT_ID, [id, &[]], use_key),
        ReservationKey::Circuit { circuit, remote } => {
            key_octets(vlan, BY_CIRCUIT, [circuit, remote], use_key)
        }
    }
}

impl dhcp::Config for Snapshot {
    fn link_of(&self, address: Ipv4Addr) -> Option<&dhcp::Link> {
        self.link_by_address(address).map(|link| &link.dhcp)
    }

    fn reservation(&self, vlan: VlanId, mac: Mac) -> Option<&dhcp::Reservation> {
        self.find_reservation(vlan, BY_MAC, [&mac.0, &[]])
    }

    fn reservation_by_client_id(
        &self,
        vlan: VlanId,
        client_id: &[u8],
    ) -> Option<&dhcp::Reservation> {
        self.find_reservation(vlan, BY_CLIENT_ID, [client_id, &[]])
    }

    fn reservation_by_circuit(
        &self,
        vlan: VlanId,
        circuit: &[u8],
        remote: &[u8],
    ) -> Option<&dhcp::Reservation> {
        self.find_reservation(vlan, BY_CIRCUIT, [circuit, remote])
            .or_else(|| self.find_reservation(vlan, BY_CIRCUIT, [circuit, &[]]))
    }

    fn reserved(&self, vlan: VlanId, address: Ipv4Addr) -> Option<&dhcp::Reservation> {
        self.reserved
            .get(&(vlan, address))
            .map(|reservation| &**reservation)
    }

    fn is_known(&self, mac: Mac) -> bool {
        self.by_mac.contains_key(&mac.0)
    }

    fn known_count(&self) -> usize {
        self.by_mac.len()
    }
}
