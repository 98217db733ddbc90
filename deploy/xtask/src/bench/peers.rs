//! The servers that are measured, set up alike: one subnet, one range, no options of our own, 10-minute leases.
//!
//! Peers get their best: no DNS updates, no clean-up of lease files during a run, no ping before an OFFER (isc-dhcpd
//! and dnsmasq would answer no new client for a second), reservations outside of the range. Muster runs as it is:
//! region, private PostgreSQL with fsync, rack with one shard.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use lab::{BootNetwork, LOAD_INTERFACE, Lab, Process};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::perfdhcp::colons;

const LEASE_SECS: u32 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Server {
    /// rackd, regiond and PostgreSQL
    Muster,
    /// Kea 2.2, memfile, one thread
    Kea,
    /// Kea 2.2, memfile, two threads
    Kea2,
    /// isc-dhcpd 4.4, which MAAS drives
    Isc,
    Dnsmasq,
    /// No server: a loop that answers everything and keeps nothing (benches/src/bin/responder.rs)
    Floor,
}

impl Server {
    pub fn name(self) -> &'static str {
        match self {
            Server::Muster => "Muster",
            Server::Kea => "Kea, 1 thread",
            Server::Kea2 => "Kea, 2 threads",
            Server::Isc => "isc-dhcpd",
            Server::Dnsmasq => "dnsmasq",
            Server::Floor => "(floor)",
        }
    }

    /// What it is offered per second. isc-dhcpd and dnsmasq drop most of more on a large pool.
    pub fn rate(self, clients: u32) -> u32 {
        match (self, clients) {
            (Server::Muster | Server::Kea | Server::Kea2 | Server::Floor, _) => 9_000,
            (Server::Isc, 0..=4_000) => 2_000,
            (Server::Isc | Server::Dnsmasq, _) => 400,
        }
    }

    /// Starts it on rack 1's host; it may need a moment until it answers. The processes live as long as the lab.
    pub fn start(self, lab: &mut Lab, site: &Site, binaries: &Path) -> Result<Option<Process>> {
        if self == Server::Muster {
            muster(lab, site, binaries)?;
            return Ok(None);
        }
        let folder = lab.folder().join("peer");
        std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &lab.names().rack(1)]);
        match self {
            Server::Kea => kea(&mut command, site, &folder, None)?,
            Server::Kea2 => kea(&mut command, site, &folder, Some(2))?,
            Server::Isc => isc(&mut command, site, &folder)?,
            Server::Dnsmasq => dnsmasq(&mut command, site, &folder)?,
            Server::Floor => floor(&mut command, site, binaries),
            Server::Muster => {}
        }
        let log = lab.logs().join("peer.log");
        Process::start(self.name(), &log, &mut command, Stdio::null()).map(Some)
    }
}

/// What all of them are told.
#[derive(Clone, Debug)]
pub struct Site {
    pub network: BootNetwork,
    pub reservations: Vec<([u8; 6], Ipv4Addr)>,
}

fn muster(lab: &mut Lab, site: &Site, binaries: &Path) -> Result<()> {
    lab.start_region(binaries)?;
    lab.start_racks(binaries, Some(1))?;
    let vlan = lab.define_subnet()?;
    lab.import_reservations(&site.reservations)?;
    lab.switch_dhcp_on(&vlan)
}

fn kea(command: &mut Command, site: &Site, folder: &Path, threads: Option<u32>) -> Result<()> {
    let config = folder.join("kea.json");
    std::fs::write(&config, kea_config(site, folder, threads).to_string())
        .with_context(|| format!("writing {}", config.display()))?;
    command.arg("kea-dhcp4").arg("-c").arg(config);
    command
        .env("KEA_PIDFILE_DIR", folder)
        .env("KEA_LOCKFILE_DIR", folder);
    Ok(())
}

fn kea_config(site: &Site, folder: &Path, threads: Option<u32>) -> serde_json::Value {
    let network = &site.network;
    let reservations: Vec<_> = site
        .reservations
        .iter()
        .map(|(mac, address)| json!({"hw-address": colons(*mac), "ip-address": address}))
        .collect();
    let mut subnet = json!({
        "id": 1,
        "subnet": network.subnet,
        "pools": [{"pool": format!("{}-{}", network.first, network.last)}],
        "reservations": reservations,
    });
    // They are outside of the pool, and Kea need not look for each of the pool's addresses.
    for mode in ["reservations-out-of-pool", "reservations-in-subnet"] {
        subnet[mode] = json!(!site.reservations.is_empty());
    }
    json!({"Dhcp4": {
        "interfaces-config": {"interfaces": [format!("{LOAD_INTERFACE}/{}", network.rack(1).addr())]},
        "lease-database": {"type": "memfile", "persist": true, "lfc-interval": 0, "name": folder.join("leases.csv")},
        "valid-lifetime": LEASE_SECS,
        "host-reservation-identifiers": ["hw-address"],
        "multi-threading": {
            "enable-multi-threading": threads.is_some(),
            "thread-pool-size": threads.unwrap_or(0),
        },
        "subnet4": [subnet],
        "loggers": [{"name": "kea-dhcp4", "severity": "WARN", "output_options": [{"output": "stdout"}]}],
    }})
}

fn isc(command: &mut Command, site: &Site, folder: &Path) -> Result<()> {
    let (config, leases) = (folder.join("dhcpd.conf"), folder.join("dhcpd.leases"));
    let network = &site.network;
    let mut text = format!(
        "authoritative;\nddns-update-style none;\nping-check false;\ndefault-lease-time {LEASE_SECS};\n\
         max-lease-time {LEASE_SECS};\nsubnet {} netmask {} {{ range {} {}; }}\n",
        network.subnet.network(),
        network.subnet.netmask(),
        network.first,
        network.last,
    );
    for (number, (mac, address)) in site.reservations.iter().enumerate() {
        let mac = colons(*mac);
        writeln!(
            text,
            "host h{number} {{ hardware ethernet {mac}; fixed-address {address}; }}"
        )?;
    }
    for (file, text) in [(&config, text.as_str()), (&leases, "")] {
        std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    }
    command
        .args(["dhcpd", "-4", "-f", "-q", "--no-pid", "-cf"])
        .arg(config);
    command.arg("-lf").arg(leases).arg(LOAD_INTERFACE);
    Ok(())
}

fn dnsmasq(command: &mut Command, site: &Site, folder: &Path) -> Result<()> {
    let network = &site.network;
    let hosts = folder.join("hosts");
    let mut text = String::new();
    for (mac, address) in &site.reservations {
        writeln!(text, "{},{address}", colons(*mac))?;
    }
    std::fs::write(&hosts, text).with_context(|| format!("writing {}", hosts.display()))?;
    command.args([
        "dnsmasq",
        "-C",
        "/dev/null",
        "--keep-in-foreground",
        "--port=0",
        "--user=root",
    ]);
    command.args([
        "--bind-interfaces",
        "--dhcp-authoritative",
        "--no-ping",
        "--quiet-dhcp",
    ]);
    command.args(["--dhcp-lease-max=200000", "--log-facility=-", "--pid-file="]);
    command.arg(format!("--interface={LOAD_INTERFACE}"));
    command.arg(format!(
        "--dhcp-range={},{},{},{LEASE_SECS}",
        network.first,
        network.last,
        network.subnet.netmask()
    ));
    command.arg(format!("--dhcp-hostsfile={}", hosts.display()));
    command.arg(format!(
        "--dhcp-leasefile={}",
        folder.join("leases").display()
    ));
    Ok(())
}

fn floor(command: &mut Command, site: &Site, binaries: &Path) {
    command
        .arg(binaries.join("responder"))
        .args(["--interface", LOAD_INTERFACE]);
    command.args(["--server", &site.network.rack(1).addr().to_string()]);
    command.args(["--first", &site.network.first.to_string()]);
}

/// (package, version) of what is installed of the peers and their generator.
pub fn versions() -> Result<Vec<(String, String)>> {
    let packages = [
        "kea-dhcp4-server",
        "kea-admin",
        "isc-dhcp-server",
        "dnsmasq-base",
        "postgresql-15",
    ];
    let output = Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package} ${Version}\n"])
        .args(packages)
        .stdin(Stdio::null())
        .output()
        .context("asking dpkg for versions")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let found: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.split_once(' '))
        .map(|(package, version)| (package.to_owned(), version.to_owned()))
        .collect();
    ensure!(!found.is_empty(), "none of the peers is installed");
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kea_is_told_of_threads_and_reservations() {
        let mut site = Site {
            network: BootNetwork::default(),
            reservations: vec![([0, 12, 1, 0, 0, 3], Ipv4Addr::new(10, 99, 1, 1))],
        };
        let config = kea_config(&site, Path::new("/x"), Some(2));
        let dhcp4 = &config["Dhcp4"];
        assert_eq!(dhcp4["multi-threading"]["thread-pool-size"], 2);
        assert_eq!(
            dhcp4["subnet4"][0]["reservations"][0]["hw-address"],
            "00:0c:01:00:00:03"
        );
        assert_eq!(dhcp4["subnet4"][0]["reservations-out-of-pool"], true);
        site.reservations.clear();
        let config = kea_config(&site, Path::new("/x"), None);
        assert_eq!(
            config["Dhcp4"]["multi-threading"]["enable-multi-threading"],
            false
        );
        assert_eq!(
            config["Dhcp4"]["subnet4"][0]["reservations-in-subnet"],
            false
        );
    }
}
