//! What machines are that no region has told of, as their firmware said it to DHCP: a loader that asks for a configuration
//! by its MAC may not say it.
//!
//! A note is for one card at one address, so nobody else's DHCP changes what a machine gets. The newest are kept. A host
//! beside another DHCP server has no address of ours, and names of its own making: those have a place of their own.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::net::IpAddr;

/// With an address of ours, and without one.
const WITH_ADDRESS_MAX: usize = 8_192;
const WITHOUT_MAX: usize = 1_024;

pub(super) struct Archs {
    with_address: Newest<(IpAddr, [u8; 6])>,
    without: Newest<[u8; 6]>,
}

impl Default for Archs {
    fn default() -> Self {
        Self {
            with_address: Newest::new(WITH_ADDRESS_MAX),
            without: Newest::new(WITHOUT_MAX),
        }
    }
}

impl Archs {
    /// `arch` is Debian's name, and one of a fixed list.
    pub fn note(&mut self, mac: [u8; 6], address: IpAddr, arch: &'static str) {
        match address.is_unspecified() {
            true => self.without.note(mac, arch),
            false => self.with_address.note((address.to_canonical(), mac), arch),
        }
    }

    /// "" where nothing was said.
    pub fn of(&self, mac: [u8; 6], address: IpAddr) -> &'static str {
        let with = self.with_address.get(&(address.to_canonical(), mac));
        with.or_else(|| self.without.get(&mac)).unwrap_or_default()
    }

    /// Notes that newer ones took the place of.
    pub fn displaced(&self) -> u64 {
        self.with_address.displaced + self.without.displaced
    }
}

struct Newest<K> {
    max: usize,
    notes: HashMap<K, (&'static str, u64)>,
    /// In the order of their serials; those of notes that were renewed are stale.
    order: VecDeque<(u64, K)>,
    serial: u64,
    displaced: u64,
}

impl<K: Copy + Eq + Hash> Newest<K> {
    fn new(max: usize) -> Self {
        Self {
            max,
            notes: HashMap::new(),
            order: VecDeque::new(),
            serial: 0,
            displaced: 0,
        }
    }

    fn note(&mut self, key: K, arch: &'static str) {
        self.serial += 1;
        self.notes.insert(key, (arch, self.serial));
        self.order.push_back((self.serial, key));
        while self.order.len() > self.max {
            let Some((serial, key)) = self.order.pop_front() else {
                return;
            };
            if self
                .notes
                .get(&key)
                .is_some_and(|(_, newest)| *newest == serial)
            {
                self.notes.remove(&key);
                self.displaced += 1;
            }
        }
    }

    fn get(&self, key: &K) -> Option<&'static str> {
        self.notes.get(key).map(|(arch, _)| *arch)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const NOWHERE: IpAddr = IpAddr::V4(Ipv4Addr::UNSPECIFIED);

    fn ip(number: u32) -> IpAddr {
        Ipv4Addr::from(0x0a00_0000 + number).into()
    }

    fn mac(number: u32) -> [u8; 6] {
        let [a, b, c, d] = number.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    #[test]
    fn a_machine_is_what_its_own_dhcp_said() {
        let mut archs = Archs::default();
        assert_eq!(archs.of(mac(1), ip(1)), "");
        archs.note(mac(1), ip(1), "arm64");
        assert_eq!(archs.of(mac(1), ip(1)), "arm64");
        // Neither another address with its MAC nor another MAC at its address is it.
        archs.note(mac(1), ip(2), "amd64");
        archs.note(mac(2), ip(1), "riscv64");
        assert_eq!(archs.of(mac(1), ip(1)), "arm64");
        assert_eq!(archs.of(mac(3), ip(1)), "");
        archs.note(mac(1), ip(1), "amd64");
        assert_eq!(archs.of(mac(1), ip(1)), "amd64", "its newest word");
        // Beside another DHCP server its address is not known.
        archs.note(mac(7), NOWHERE, "arm64");
        assert_eq!(archs.of(mac(7), ip(77)), "arm64");
    }

    #[test]
    fn a_million_cards_without_an_address_displace_each_other_and_nobody_else() {
        let mut archs = Archs::default();
        archs.note(mac(1), ip(1), "arm64");
        for number in 0..1_000_000 {
            archs.note(mac(number), NOWHERE, "amd64");
        }
        assert_eq!(archs.of(mac(1), ip(1)), "arm64");
        assert_eq!(archs.without.notes.len(), WITHOUT_MAX);
        assert_eq!(archs.displaced(), 1_000_000 - WITHOUT_MAX as u64);
        for number in 0..20_000 {
            archs.note(mac(number), ip(number), "amd64");
            archs.note(mac(1), ip(1), "arm64");
        }
        assert_eq!(
            archs.of(mac(1), ip(1)),
            "arm64",
            "one that comes again stays"
        );
        assert!(archs.with_address.order.len() <= WITH_ADDRESS_MAX);
    }
}
