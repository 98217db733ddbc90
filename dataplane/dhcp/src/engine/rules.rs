//! The questions that every message type asks: whose address is this, may it be dealt, what is the client called.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ::lease::{Write, WriteKind};

use super::{Ask, Engine};
use crate::config::{Config, Link, Subnet};
use crate::pending::Kind;
use crate::table::State;

/// An address of the client's own by reservation.
pub(super) struct Reserved<'a> {
    pub address: Ipv4Addr,
    pub subnet: &'a Subnet,
    /// Inside a dynamic range or a block: granted like any other.
    pub dynamic: bool,
}

impl Engine {
    pub(super) fn reserved<'a, C: Config>(&self, ask: &Ask<'a, C>) -> Option<Reserved<'a>> {
        let reservation = ask.host?;
        let address = reservation.address;
        let subnet = ask.link.subnet_of(address)?;
        let dynamic =
            subnet.is_dynamic(address) || self.table.find(ask.link.vlan, address).is_some();
        Some(Reserved {
            address,
            subnet,
            dynamic,
        })
    }

    /// Free, and of a block that the region still lets us grant from.
    pub(super) fn is_dealable(&self, slot: u32) -> bool {
        self.table.state(slot) == State::Free && !self.table.run(slot).refused
    }

    /// Whether the client's present address may be offered to it again.
    pub(super) fn is_keepable<C: Config>(&mut self, ask: &Ask<'_, C>, slot: u32) -> bool {
        let address = self.table.address(slot);
        if !is_allocatable(ask, address) || self.table.run(slot).refused {
            return false;
        }
        match self.table.binding(slot).and_then(|binding| binding.writing) {
            Some(index) => self
                .pending
                .get_mut(index)
                .is_none_or(|pending| matches!(pending.kind, Kind::Grant(_))),
            None => true,
        }
    }

    pub(super) fn strangers_full(&self, slot: u32) -> bool {
        self.table.pool_of(slot).is_full_of_strangers(self.known)
    }

    pub(super) fn subnet_of_slot<'a, C: Config>(
        &self,
        ask: &Ask<'a, C>,
        slot: u32,
    ) -> Option<&'a Subnet> {
        ask.link.subnet_of(self.table.address(slot))
    }

    /// The write of `kind` for this address, with its block's epoch.
    pub(super) fn write(&self, slot: u32, kind: WriteKind) -> Write {
        let run = self.table.run(slot);
        let address = IpAddr::V4(self.table.address(slot));
        Write {
            block: run.id,
            epoch: run.epoch,
            address,
            kind,
        }
    }
}

/// The link's subnets, the client's own first: a VLAN may carry several.
pub(super) fn subnets<'a, C: Config>(ask: &Ask<'a, C>) -> impl Iterator<Item = &'a Subnet> {
    let home = ask.home;
    std::iter::once(home).chain(
        ask.link
            .subnets
            .iter()
            .filter(move |other| other.id != home.id),
    )
}

/// Whether the client may be given this address: not what is reserved for another, excluded, or no client's at all.
pub(super) fn is_allocatable<C: Config>(ask: &Ask<'_, C>, address: Ipv4Addr) -> bool {
    let Some(subnet) = ask.link.subnet_of(address) else {
        return false;
    };
    let is_open = match ask.config.reserved(ask.link.vlan, address) {
        Some(reservation) => ask.is_key(&reservation.key),
        None => !subnet.is_excluded(address),
    };
    is_open && !is_infrastructure(ask.link, subnet, address)
}

/// Whether an address is nobody's but perhaps one client's, by reservation.
pub(super) fn is_withheld<C: Config>(config: &C, link: &Link, address: Ipv4Addr) -> bool {
    link.subnet_of(address).is_none_or(|subnet| {
        config.reserved(link.vlan, address).is_some()
            || subnet.is_excluded(address)
            || is_infrastructure(link, subnet, address)
    })
}

/// The racks' and the gateway's own addresses, and the subnet's ends.
fn is_infrastructure(link: &Link, subnet: &Subnet, address: Ipv4Addr) -> bool {
    subnet.is_end(address)
        || address == link.server
        || Some(address) == subnet.gateway
        || link.peers.iter().any(|peer| peer.server == address)
}

/// What the client calls itself, if that is a host name; else "". It ends in logs and zones.
pub(super) fn claimed_hostname(octets: Option<&[u8]>) -> &str {
    let name = octets.unwrap_or_default();
    let name = name.split(|octet| *octet == 0).next().unwrap_or_default();
    let plain = |octet: &u8| octet.is_ascii_alphanumeric() || matches!(octet, b'-' | b'.' | b'_');
    match std::str::from_utf8(name) {
        Ok(text) if text.len() <= 63 && name.iter().all(plain) => text,
        _ => "",
    }
}

/// Whole seconds, rounded down; 0xffff_ffff would mean for ever (RFC 2131 §3.3).
pub(super) fn secs(length: Duration) -> u32 {
    u32::try_from(length.as_secs())
        .unwrap_or(u32::MAX)
        .min(u32::MAX - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_host_names_are_believed() {
        let cases: [(&[u8], &str); 6] = [
            (b"node-1", "node-1"),
            (b"node-1\0", "node-1"),
            (b"", ""),
            (b"a b", ""),
            (b"x\nDROP", ""),
            (&[b'a'; 64], ""),
        ];
        for (octets, want) in cases {
            assert_eq!(claimed_hostname(Some(octets)), want, "{octets:?}");
        }
    }

    #[test]
    fn seconds_are_rounded_down_and_end() {
        assert_eq!(secs(Duration::from_millis(1_999)), 1);
        assert_eq!(secs(Duration::MAX), u32::MAX - 1);
    }
}
