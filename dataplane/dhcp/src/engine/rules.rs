//! The questions that every message type asks: whose address is this, may it be dealt, what is the client called.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ::lease::{Write, WriteKind};

use super::{Ask, Engine};
use crate::config::{Config, Subnet};
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
        let reservation = ask.reservation()?;
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
        matches!(self.table.slots[slot as usize].state, State::Free)
            && !self.table.run(slot).refused
    }

    /// Whether the client's present address may be offered to it again.
    pub(super) fn is_keepable<C: Config>(&mut self, ask: &Ask<'_, C>, slot: u32) -> bool {
        let address = self.table.address(slot);
        let theirs = ask.config.reserved(ask.link.vlan, address);
        if theirs.is_some_and(|theirs| !ask.is_key(&theirs.key))
            || self.subnet_of_slot(ask, slot).is_none()
            || self.table.run(slot).refused
        {
            return false;
        }
        match self
            .table
            .binding_mut(slot)
            .and_then(|binding| binding.writing)
        {
            Some(index) => self
                .pending
                .get_mut(index)
                .is_none_or(|pending| matches!(pending.kind, Kind::Grant(_))),
            None => true,
        }
    }

    pub(super) fn strangers_full(&self, slot: u32) -> bool {
        self.table.pool_of(slot).is_full_of_strangers()
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

/// Never dealt: what is reserved for another, the rack's and the gateway's own addresses, and the subnet's ends.
pub(super) fn is_allocatable<C: Config>(ask: &Ask<'_, C>, address: Ipv4Addr) -> bool {
    let reserved = ask.config.reserved(ask.link.vlan, address);
    let Some(subnet) = ask.link.subnet_of(address) else {
        return false;
    };
    reserved.is_none_or(|theirs| ask.is_key(&theirs.key))
        && address != ask.link.server
        && Some(address) != subnet.gateway
        && (subnet.net.prefix_len() >= 31
            || (address != subnet.net.network() && address != subnet.net.broadcast()))
}

/// What the client is to call itself: its reservation's name, else what the machine is called.
pub(super) fn hostname<'a, C: Config>(ask: &Ask<'a, C>) -> &'a str {
    let reservation = ask
        .mac
        .and_then(|mac| ask.config.reservation(ask.link.vlan, mac));
    match reservation {
        Some(reservation) if !reservation.hostname.is_empty() => &reservation.hostname,
        _ => ask.boot.hostname,
    }
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
