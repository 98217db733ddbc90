//! Commissioning where somebody else hands out the addresses: dnsmasq does, the rack speaks proxyDHCP.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{CLIENT_INTERFACE, Lab, Process};
use serde_json::Value;

use crate::commissioning::{self, Addresses};
use crate::packages;
use crate::screen::Screen;
use crate::workspace::{self, Profile};

/// What dnsmasq hands out; the rack's own range is elsewhere and stays unused.
const FIRST: &str = "10.99.8.10";
const LAST: &str = "10.99.8.200";
const PREFIX: &str = "10.99.8.";

/// Commissions known machines once more, at once, after the machines' VLAN was switched to proxyDHCP.
pub fn commission(
    lab: &mut Lab,
    machines: &[usize],
    ids: &[String],
    limit: Duration,
) -> Result<()> {
    import_ipxe(lab)?;
    set_mode(lab, "proxy")?;
    let leases = lab.logs().join("dnsmasq.leases");
    let other = dnsmasq(lab, &leases)?;
    let reports = commissioning::commission(
        lab,
        machines,
        ids,
        limit,
        Addresses::Elsewhere,
        &mut Screen::new(),
    )?;
    other.terminate(Duration::from_secs(5))?;
    for report in &reports {
        if let Some(failure) = &report.failure {
            bail!("{}", report.explain(failure));
        }
        let told = |kind: &str| report.events.iter().any(|event| event.kind == kind);
        ensure!(
            told("Boot file told beside another DHCP server"),
            "{}: no proxyDHCP",
            report.name
        );
    }
    let given = std::fs::read_to_string(&leases)
        .with_context(|| format!("reading {}", leases.display()))?;
    for index in machines {
        let mac = &lab.machines()[*index].macs[0];
        ensure!(
            given
                .lines()
                .any(|line| line.contains(mac) && line.contains(PREFIX)),
            "dnsmasq gave {mac} no address: {given}"
        );
    }
    set_mode(lab, "serve")
}

/// For UEFI: shim's GRUB looks for its configuration at the server that gave the address.
fn import_ipxe(lab: &Lab) -> Result<()> {
    let folder = lab.logs().with_extension("ipxe");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let program = packages::file_of("ipxe", "usr/lib/ipxe/snponly.efi")?;
    std::fs::copy(&program, folder.join("ipxe.efi"))
        .with_context(|| format!("copying {}", program.display()))?;
    let binaries = workspace::binaries(Profile::Dev)?;
    let mut import = lab.muster(&binaries, &["image", "import-loaders", "--dir"])?;
    let output = import.arg(&folder).output().context("starting muster")?;
    std::fs::remove_dir_all(&folder).ok();
    ensure!(
        output.status.success(),
        "importing iPXE: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn set_mode(lab: &Lab, mode: &str) -> Result<()> {
    let subnets = lab.region().get("subnets/", &[])?;
    let cidr = lab.network().subnet.to_string();
    let vlan = subnets
        .as_array()
        .into_iter()
        .flatten()
        .find(|subnet| subnet.get("cidr").and_then(Value::as_str) == Some(&cidr))
        .and_then(|subnet| subnet.get("vlan"))
        .with_context(|| format!("the region has no VLAN of {cidr}"))?;
    let number = |name: &str| {
        vlan.get(name)
            .and_then(Value::as_i64)
            .with_context(|| format!("the VLAN has no {name}: {vlan}"))
    };
    let path = format!("fabrics/{}/vlans/{}/", number("fabric_id")?, number("vid")?);
    lab.region().put(&path, &[("dhcp_mode", mode)])?;
    Ok(())
}

fn dnsmasq(lab: &Lab, leases: &Path) -> Result<Process> {
    let mut command = std::process::Command::new("ip");
    command.args(["netns", "exec", &lab.names().client(), "dnsmasq"]);
    command.args([
        "--keep-in-foreground",
        "--conf-file=/dev/null",
        "--pid-file",
    ]);
    command.args(["--user=root", "--log-dhcp", "--log-facility=-"]);
    // No DNS, and no word about booting.
    command.args([
        "--port=0",
        "--bind-interfaces",
        "--interface",
        CLIENT_INTERFACE,
    ]);
    command.arg(format!(
        "--dhcp-range={FIRST},{LAST},{},10m",
        lab.network().subnet.netmask()
    ));
    command.arg(format!("--dhcp-leasefile={}", leases.display()));
    let log = lab.logs().join("dnsmasq.log");
    let mut process = Process::start("dnsmasq", &log, &mut command, Stdio::null())?;
    process.check()?;
    Ok(process)
}
