//! Makes the lab's hosts and networks: namespaces, bridges, veth pairs, taps. Removal is the reaper's.
//!
//! Every link is made directly inside its two namespaces: the host's own network never sees one.

use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use ipnet::Ipv4Net;

use crate::command::{in_namespace, run, run_with_input};
use crate::plan::{self, BootNetwork, Names};

/// The namespaces of a lab, in the order they are made.
pub fn namespaces(names: &Names, racks: usize) -> Vec<String> {
    let mut all = vec![names.switch(), names.region(), names.client()];
    all.extend((1..=racks).map(|number| names.rack(number)));
    all
}

pub fn create(names: &Names, racks: usize, machines: usize, boot: &BootNetwork) -> Result<()> {
    for namespace in namespaces(names, racks) {
        run(Command::new("ip").args(["netns", "add", &namespace]))
            .with_context(|| format!("making the namespace {namespace}"))?;
        // No duplicate address detection: it would keep addresses unusable for seconds.
        let quiet = "for f in all default; do echo 0 >/proc/sys/net/ipv6/conf/$f/accept_dad; done; \
                     ip link set lo up";
        run(in_namespace(&namespace, "sh").args(["-c", quiet]))?;
    }

    let switch = names.switch();
    let mut batch = String::new();
    for bridge in ["br-mgmt", "br-boot", "br-bmc", "br-spare"] {
        let options = "type bridge stp_state 0 forward_delay 0 mcast_snooping 0";
        writeln!(batch, "link add {bridge} {options}")?;
        writeln!(batch, "link set {bridge} up")?;
    }
    writeln!(batch, "address add {}1/64 dev br-boot nodad", plan::BOOT_V6)?;
    for machine in 1..=machines {
        writeln!(
            batch,
            "address add {} dev br-bmc",
            plan::machine_bmc(machine)
        )?;
        // The second NIC has a carrier and nobody to talk to.
        for (tap, bridge) in [("tap", "br-boot"), ("spare", "br-spare")] {
            writeln!(batch, "tuntap add {tap}{machine} mode tap")?;
            writeln!(batch, "link set {tap}{machine} master {bridge} up")?;
        }
    }
    in_batch(&switch, &batch)?;

    let region = names.region();
    plug(&switch, &region, "region", "mgmt", plan::region_mgmt())?;
    plug(&switch, &names.client(), "client", "boot", boot.client())?;
    for number in 1..=racks {
        let (namespace, host) = (names.rack(number), format!("rack{number}"));
        plug(&switch, &namespace, &host, "mgmt", plan::rack_mgmt(number))?;
        let links = plan::rack_links(number, racks);
        if links.boot {
            plug(&switch, &namespace, &host, "boot", boot.rack(number))?;
        }
        if links.bmc {
            plug(&switch, &namespace, &host, "bmc", plan::rack_bmc(number))?;
        }
    }
    Ok(())
}

/// A cable from a host's interface (named for its network) to that network's bridge.
fn plug(switch: &str, host: &str, label: &str, network: &str, address: Ipv4Net) -> Result<()> {
    let port = format!("{label}-{network}");
    run(Command::new("ip")
        .args([
            "link", "add", &port, "netns", switch, "type", "veth", "peer", "name",
        ])
        .args([network, "netns", host]))
    .with_context(|| format!("connecting {host} to the {network} network"))?;
    in_batch(switch, &format!("link set {port} master br-{network} up\n"))?;
    in_batch(
        host,
        &format!("address add {address} dev {network}\nlink set {network} up\n"),
    )
}

fn in_batch(namespace: &str, commands: &str) -> Result<()> {
    run_with_input(
        Command::new("ip").args(["-n", namespace, "-batch", "-"]),
        commands,
    )
    .with_context(|| format!("configuring {namespace}"))?;
    Ok(())
}
