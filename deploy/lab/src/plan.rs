//! Names, networks and addresses of a lab. Pure: nothing here looks at the machine it runs on.

use std::net::Ipv4Addr;

use anyhow::{Result, bail, ensure};
use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

/// Hosts are named NAME-rack12 and such, and interfaces rack12-mgmt: Linux takes 15 octets.
pub const RACKS_MAX: usize = 16;
pub const MACHINES_MAX: usize = 64;
const NAME_LENGTH_MAX: usize = 20;

/// What a machine boots with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Firmware {
    /// SeaBIOS and QEMU's iPXE ROM.
    Bios,
    /// OVMF: UEFI, with its own PXE client.
    Uefi,
}

impl std::fmt::Display for Firmware {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Firmware::Bios => "BIOS",
            Firmware::Uefi => "UEFI",
        })
    }
}

impl std::str::FromStr for Firmware {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        match text.to_ascii_lowercase().as_str() {
            "bios" => Ok(Firmware::Bios),
            "uefi" => Ok(Firmware::Uefi),
            _ => bail!("{text:?} is not a firmware: uefi or bios"),
        }
    }
}

/// The VLAN that machines boot on, and what of it DHCP may give away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BootNetwork {
    pub subnet: Ipv4Net,
    /// First and last address of the dynamic range, both in it.
    pub first: Ipv4Addr,
    pub last: Ipv4Addr,
}

impl Default for BootNetwork {
    fn default() -> Self {
        Self {
            subnet: net([10, 99, 0, 0], 16),
            first: Ipv4Addr::new(10, 99, 16, 0),
            last: Ipv4Addr::new(10, 99, 255, 254),
        }
    }
}

impl BootNetwork {
    /// Without a range: all of the subnet but its first sixteenth (at least 32 addresses), which the hosts need.
    pub fn new(subnet: Ipv4Net, range: Option<(Ipv4Addr, Ipv4Addr)>) -> Result<Self> {
        let subnet = subnet.trunc();
        ensure!(
            subnet.prefix_len() <= 26,
            "{subnet} is too small for a lab: at least a /26"
        );
        for (what, other) in [("management", MGMT), ("BMC", BMC)] {
            let overlaps = subnet.contains(&other) || other.contains(&subnet);
            ensure!(
                !overlaps,
                "{subnet} overlaps the lab's {what} network, {other}"
            );
        }
        let base = u32::from(subnet.network());
        let broadcast = u32::from(subnet.broadcast());
        let skip = ((broadcast - base + 1) / 16).max(32);
        let default = (Ipv4Addr::from(base + skip), Ipv4Addr::from(broadcast - 1));
        let (first, last) = range.unwrap_or(default);
        ensure!(
            first <= last,
            "the range {first}-{last} ends before it begins"
        );
        for end in [first, last] {
            let usable = (base + 1..broadcast).contains(&u32::from(end));
            ensure!(usable, "{end} is not a host address of {subnet}");
        }
        // The client host has .1, racks follow.
        let hosts_end = base + 1 + u32::try_from(RACKS_MAX)?;
        ensure!(
            u32::from(first) > hosts_end,
            "the range must begin above {}: the lab's hosts have the addresses up to it",
            Ipv4Addr::from(hosts_end)
        );
        Ok(Self {
            subnet,
            first,
            last,
        })
    }

    /// The empty client host.
    pub fn client(&self) -> Ipv4Net {
        self.host(1)
    }

    /// Rack `number`, from 1.
    pub fn rack(&self, number: usize) -> Ipv4Net {
        self.host(number + 1)
    }

    /// The router with a relay agent, where a test has one: above all racks.
    pub fn relay(&self) -> Ipv4Net {
        self.host(RACKS_MAX + 3)
    }

    fn host(&self, offset: usize) -> Ipv4Net {
        nth(self.subnet, offset)
    }
}

/// Region and racks talk here.
pub const MGMT: Ipv4Net = net([10, 98, 0, 0], 24);
/// Racks reach BMCs here.
pub const BMC: Ipv4Net = net([10, 97, 0, 0], 24);
/// The prefix that the router advertisements announce on the machines' VLAN.
pub const BOOT_V6: &str = "fd99::";

/// The subnet behind a test's relay.
pub const BEHIND: Ipv4Net = net([10, 96, 0, 0], 24);

/// The relay's own address there.
pub fn behind_gateway() -> Ipv4Net {
    nth(BEHIND, 1)
}

pub fn region_mgmt() -> Ipv4Net {
    nth(MGMT, 1)
}

pub fn rack_mgmt(number: usize) -> Ipv4Net {
    nth(MGMT, 10 + number)
}

pub fn rack_bmc(number: usize) -> Ipv4Net {
    nth(BMC, 10 + number)
}

/// Another host's address `number` on the management network, from 1.
pub fn outsider_mgmt(number: usize) -> Ipv4Net {
    nth(MGMT, 100 + number)
}

/// The BMC of machine `number`, from 1.
pub fn machine_bmc(number: usize) -> Ipv4Net {
    nth(BMC, 100 + number)
}

/// The hosts of one lab, by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Names {
    pub lab: String,
}

impl Names {
    pub fn new(lab: &str) -> Result<Self> {
        let fits = !lab.is_empty()
            && lab.len() <= NAME_LENGTH_MAX
            && lab
                .bytes()
                .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !lab.starts_with('-');
        ensure!(
            fits,
            "{lab:?} can't name a lab: 1 to {NAME_LENGTH_MAX} of a-z, 0-9 and -"
        );
        Ok(Self {
            lab: lab.to_owned(),
        })
    }

    pub fn switch(&self) -> String {
        format!("{}-sw", self.lab)
    }

    pub fn region(&self) -> String {
        format!("{}-region", self.lab)
    }

    pub fn rack(&self, number: usize) -> String {
        format!("{}-rack{number}", self.lab)
    }

    pub fn client(&self) -> String {
        format!("{}-client", self.lab)
    }
}

/// Which networks a rack is on, besides management.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RackLinks {
    pub boot: bool,
    pub bmc: bool,
}

/// Power and DHCP come from different racks as soon as there are two.
pub fn rack_links(number: usize, racks: usize) -> RackLinks {
    match (number, racks) {
        (_, 1) => RackLinks {
            boot: true,
            bmc: true,
        },
        (1, _) => RackLinks {
            boot: true,
            bmc: false,
        },
        (2, _) => RackLinks {
            boot: false,
            bmc: true,
        },
        _ => RackLinks {
            boot: true,
            bmc: true,
        },
    }
}

/// MAC of a machine's NIC: 0 boots, 1 is the second one. QEMU's own prefix.
pub fn machine_mac(machine: usize, nic: u8) -> String {
    format!("52:54:00:4d:{nic:02x}:{machine:02x}")
}

/// MAC of a test's DHCP client.
pub fn client_mac(client: usize) -> String {
    format!("52:54:00:c1:{:02x}:{:02x}", client >> 8, client & 0xff)
}

const fn net(octets: [u8; 4], prefix: u8) -> Ipv4Net {
    Ipv4Net::new_assert(
        Ipv4Addr::new(octets[0], octets[1], octets[2], octets[3]),
        prefix,
    )
}

fn nth(subnet: Ipv4Net, offset: usize) -> Ipv4Net {
    let offset = u32::try_from(offset).expect("offsets are bounded by RACKS_MAX and MACHINES_MAX");
    let address = Ipv4Addr::from(u32::from(subnet.network()) + offset);
    Ipv4Net::new_assert(address, subnet.prefix_len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_boot_network_is_checked() {
        let new = |subnet: &str, range: Option<(&str, &str)>| {
            let ip = |text: &str| text.parse::<Ipv4Addr>().expect("an address");
            BootNetwork::new(
                subnet.parse().expect("a subnet"),
                range.map(|(a, b)| (ip(a), ip(b))),
            )
        };
        assert_eq!(
            new("10.99.0.0/16", None).expect("the default one"),
            BootNetwork::default()
        );
        let small = new("192.168.7.0/24", None).expect("a /24 will do");
        assert_eq!(small.first.to_string(), "192.168.7.32");
        assert_eq!(small.last.to_string(), "192.168.7.254");
        assert_eq!(small.rack(1).to_string(), "192.168.7.2/24");
        assert_eq!(small.client().to_string(), "192.168.7.1/24");

        let refused = [
            ("10.99.0.0/27", None, "too small"),
            ("10.0.0.0/8", None, "overlaps"),
            ("10.98.0.64/26", None, "overlaps"),
            (
                "10.99.0.0/16",
                Some(("10.99.9.9", "10.99.9.1")),
                "before it begins",
            ),
            (
                "10.99.0.0/16",
                Some(("10.98.9.9", "10.99.9.1")),
                "not a host address",
            ),
            (
                "10.99.0.0/16",
                Some(("10.99.9.9", "10.99.255.255")),
                "not a host address",
            ),
            (
                "10.99.0.0/16",
                Some(("10.99.0.5", "10.99.9.1")),
                "begin above 10.99.0.17",
            ),
        ];
        for (subnet, range, want) in refused {
            let error = new(subnet, range).expect_err(want).to_string();
            assert!(error.contains(want), "{subnet} {range:?}: {error}");
        }
    }

    #[test]
    fn power_and_dhcp_are_on_different_racks() {
        assert_eq!(
            rack_links(1, 1),
            RackLinks {
                boot: true,
                bmc: true
            }
        );
        assert_eq!(
            rack_links(1, 2),
            RackLinks {
                boot: true,
                bmc: false
            }
        );
        assert_eq!(
            rack_links(2, 2),
            RackLinks {
                boot: false,
                bmc: true
            }
        );
        assert_eq!(
            rack_links(3, 3),
            RackLinks {
                boot: true,
                bmc: true
            }
        );
    }

    #[test]
    fn names_are_safe_in_commands() {
        assert!(Names::new("demo-12").is_ok());
        for bad in ["", "-x", "a b", "a/b", "A", "a23456789012345678901"] {
            assert!(Names::new(bad).is_err(), "{bad:?}");
        }
    }
}
