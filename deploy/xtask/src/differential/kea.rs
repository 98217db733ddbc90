//! Kea's DHCPv4 server, configured as Muster is in this stage, on a network of its own.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};
use lab::{Process, ServerPair, plan};
use serde_json::{Value, json};

use super::{DNS, GATEWAY, LEASE_SECS, NTP, RESERVED, operator_options};
use crate::dhcp_lab::{DhcpLab, behind_range};

const START_LIMIT: Duration = Duration::from_secs(20);
const STARTED: &str = "DHCP4_STARTED";
/// Kea answers BOOTP only with this hook.
const BOOTP_HOOK: &str = "/usr/lib/x86_64-linux-gnu/kea/hooks/libdhcp_bootp.so";

pub fn start(here: &DhcpLab, pair: &ServerPair) -> Result<Process> {
    let folder = here.lab.folder().join("kea");
    std::fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let path = folder.join("kea.json");
    let text =
        serde_json::to_string_pretty(&config(here)).context("writing Kea's configuration")?;
    std::fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", &pair.server, "kea-dhcp4", "-c"])
        .arg(&path)
        .env("KEA_PIDFILE_DIR", &folder)
        .env("KEA_LOCKFILE_DIR", "none");
    let log = here.logs.join("kea.log");
    let mut process = Process::start("kea-dhcp4", &log, &mut command, Stdio::null())?;
    process.wait_until("waiting for its start", START_LIMIT, || {
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        Ok(text.contains(STARTED).then_some(()))
    })?;
    Ok(process)
}

/// The same subnets, ranges, reservations, options and boot files. Timers are Kea's own affair: it sends T1 and T2 only
/// where it is told them. `match-client-id` is off, because Muster knows a client by its MAC.
fn config(here: &DhcpLab) -> Value {
    let network = here.lab.network();
    let server = network.rack(1).addr().to_string();
    let rack_url = format!("http://{server}:5248/");
    let reservations = |behind: bool| -> Vec<Value> {
        let within = |address: &str| {
            let address = address.parse().expect("a table of addresses");
            plan::BEHIND.contains::<&std::net::Ipv4Addr>(&address) == behind
        };
        RESERVED
            .iter()
            .filter(|reserved| within(reserved.address))
            .map(|reserved| {
                let (_, identifier, value) = reserved.key;
                let value = value.strip_prefix("0x").unwrap_or(value);
                json!({identifier: value, "ip-address": reserved.address})
            })
            .collect()
    };
    let option = |name: &str, data: &str| json!({"name": name, "data": data});
    let of_network = |gateway: &str, broadcast: std::net::Ipv4Addr| {
        vec![
            option("routers", gateway),
            option("broadcast-address", &broadcast.to_string()),
        ]
    };
    let mut machines = of_network(GATEWAY, network.subnet.broadcast());
    machines.extend(
        operator_options()
            .into_iter()
            .map(|(code, hex)| json!({"code": code, "csv-format": false, "data": hex})),
    );
    let (behind_first, behind_last) = behind_range();
    let boot = |test: &str, name: &str, file: &str, mut options: Vec<Value>| {
        options.push(option("boot-file-name", file));
        json!({"name": name, "test": test, "boot-file-name": file, "option-data": options})
    };
    let http_class = json!({
        "name": "vendor-class-identifier", "data": "HTTPClient", "always-send": true
    });
    let prefix = json!({
        "code": 210, "csv-format": false, "data": hex_of(&rack_url), "always-send": true
    });
    let hooks = match Path::new(BOOTP_HOOK).exists() {
        true => json!([{"library": BOOTP_HOOK}]),
        false => json!([]),
    };
    json!({"Dhcp4": {
        "interfaces-config": {"interfaces": ["boot"], "dhcp-socket-type": "raw"},
        "lease-database": {"type": "memfile", "persist": false},
        "hooks-libraries": hooks,
        "match-client-id": false,
        "authoritative": false,
        "valid-lifetime": LEASE_SECS,
        "renew-timer": LEASE_SECS / 2,
        "rebind-timer": LEASE_SECS * 7 / 8,
        "next-server": server,
        "host-reservation-identifiers": ["hw-address", "client-id", "circuit-id"],
        "option-data": [
            option("domain-name-servers", DNS),
            option("ntp-servers", NTP),
            option("domain-name", "maas"),
            option("domain-search", "maas"),
            option("tftp-server-name", &server),
        ],
        "client-classes": [
            boot("option[77].hex == 'iPXE'", "ipxe", &format!("{rack_url}ipxe.cfg"), vec![]),
            boot("option[93].hex == 0x0010", "uefi-http", &format!("{rack_url}images/bootx64.efi"), vec![http_class]),
            boot("option[93].hex == 0x0007 and not member('ipxe')", "uefi", "bootx64.efi", vec![]),
            boot(
                "not member('ipxe') and not member('uefi-http') and not member('uefi')",
                "bios", "lpxelinux.0", vec![prefix],
            ),
        ],
        "subnet4": [
            {
                "id": 1,
                "subnet": network.subnet,
                "pools": [{"pool": format!("{} - {}", network.first, network.last)}],
                "reservations-in-subnet": true,
                "reservations": reservations(false),
                "option-data": machines,
            },
            {
                "id": 2,
                "subnet": plan::BEHIND,
                "pools": [{"pool": format!("{behind_first} - {behind_last}")}],
                "reservations": reservations(true),
                "option-data": of_network(&plan::behind_gateway().addr().to_string(), plan::BEHIND.broadcast()),
            },
        ],
        "loggers": [{
            "name": "kea-dhcp4", "severity": "DEBUG", "debuglevel": 40,
            "output_options": [{"output": "stdout"}],
        }],
    }})
}

fn hex_of(text: &str) -> String {
    text.bytes().map(|octet| format!("{octet:02x}")).collect()
}
