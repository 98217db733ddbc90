//! The differential stage of `cargo xtask test`: the same scripted exchanges to Muster and to Kea.
//!
//! Both are configured alike, both are asked by the same program from the same addresses (`deploy/lab/dhcp/exchange`
//! plays the table in `scripts.py`), and what came back is compared in words. Every difference must be in
//! docs/spec/kea-differences.md with its reason. A difference that is not listed fails, and so does a listed one that
//! no longer occurs. Kea is no oracle: where it does not do what the RFC says, the list says so.

mod kea;
mod ledger;

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{BootNetwork, plan};
use serde_json::{Value, json};

use crate::checks::{Score, finish_logs};
use crate::dhcp_lab::{DhcpLab, behind_range, tool, until};
use crate::workspace;
use ledger::Ledger;

const LEDGER: &str = "docs/spec/kea-differences.md";
pub const LEASE_SECS: u32 = 600;
pub const GATEWAY: &str = "10.99.0.9";
pub const DNS: &str = "10.99.0.53";
pub const NTP: &str = "10.99.0.123";
/// Until a change in the region is at the rack.
const FEED_LIMIT: Duration = Duration::from_secs(15);

/// An address that is set aside; `scripts.py` has the same.
pub struct Reserved {
    pub address: &'static str,
    /// The API's field, Kea's identifier, and the value of both.
    pub key: (&'static str, &'static str, &'static str),
}

pub const RESERVED: [Reserved; 4] = [
    Reserved {
        address: "10.99.1.1",
        key: ("mac_address", "hw-address", "02:4b:45:41:ff:01"),
    },
    Reserved {
        address: "10.99.20.20",
        key: ("mac_address", "hw-address", "02:4b:45:41:ff:02"),
    },
    Reserved {
        address: "10.99.1.3",
        key: ("client_id", "client-id", "0x00726573657276656421"),
    },
    Reserved {
        address: "10.96.0.20",
        key: ("circuit_id", "circuit-id", "0x706f72742d32"),
    },
];

/// Options an operator set for the machines' subnet: code and octets in hex. One is longer than an option may be.
pub fn operator_options() -> Vec<(u8, String)> {
    let mut all: Vec<(u8, String)> = (224..244).map(|code| (code, "5a".repeat(40))).collect();
    all.push((244, "a5".repeat(400)));
    all
}

/// All scripts whose name contains one of `filters`, or all; needs root and everything built. The list is only held
/// against all of them.
pub fn run(filters: &[String]) -> Result<Score> {
    let path = workspace::root()?.join(LEDGER);
    let text =
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
    let mut ledger = Ledger::parse(&text).with_context(|| format!("understanding {LEDGER}"))?;

    let (ours, theirs, logs) = exchanges(filters)?;
    let mut score = Score::default();
    for (script, our_steps) in &ours {
        let their_steps = theirs
            .get(script)
            .with_context(|| format!("Kea's side has no {script:?}"))?;
        let differences = ledger::compare(script, our_steps, their_steps);
        let (listed, unlisted): (Vec<_>, Vec<_>) =
            differences.into_iter().partition(|one| ledger.has(one));
        match (listed.len(), unlisted.len()) {
            (0, 0) => println!("PASS {script}: the same"),
            (listed, 0) => println!("PASS {script}: {listed} listed differences"),
            (_, count) => {
                println!("FAIL {script}: {count} differences that {LEDGER} does not list:");
                unlisted
                    .iter()
                    .for_each(|one| println!("     {}", one.as_row()));
            }
        }
        score.add(Score::of(unlisted.is_empty()));
    }
    if filters.is_empty() {
        let stale = ledger.unused();
        match stale.is_empty() {
            true => println!("PASS every listed difference occurs ({})", ledger.len()),
            false => {
                println!("FAIL differences that {LEDGER} lists and that do not occur:");
                stale.iter().for_each(|row| println!("     {row}"));
            }
        }
        score.add(Score::of(stale.is_empty()));
    }
    finish_logs(&logs, score);
    Ok(score)
}

/// Steps of each script, by its name.
type Answers = BTreeMap<String, Vec<ledger::Step>>;

/// What both answer, and the folder of the logs.
fn exchanges(filters: &[String]) -> Result<(Answers, Answers, std::path::PathBuf)> {
    let network = BootNetwork::default();
    let lease = LEASE_SECS.to_string();
    let fields = [
        ("dns_servers", DNS),
        ("ntp_servers", NTP),
        ("lease_secs", lease.as_str()),
    ];
    let mut machines = vec![("gateway_ip", GATEWAY)];
    machines.extend(fields);
    let mut here = DhcpLab::up("differ", network, &machines)?;
    here.define_behind(&fields)?;
    for reserved in &RESERVED {
        let (field, _, value) = reserved.key;
        here.lab.region().post(
            "reservedips/",
            "",
            &[("ip", reserved.address), (field, value)],
        )?;
    }
    for (code, hex) in operator_options() {
        let (code, value) = (code.to_string(), format!("0x{hex}"));
        let scope = network.subnet.to_string();
        let option = [
            ("code", code.as_str()),
            ("value", &value),
            ("scope", "subnet"),
            ("scope_id", &scope),
        ];
        here.lab.region().post("dhcp-options/", "", &option)?;
    }
    let rack = here.lab.names().rack(1);
    let client = here.lab.names().client();
    here.lab.can_relay(&client, &rack)?;
    let pair = here.lab.add_server_pair()?;
    here.lab.can_relay(&pair.client, &pair.server)?;
    let mut server = kea::start(&here, &pair)?;

    let place = here.logs.join("place.json");
    std::fs::write(&place, place_of(&network)?.to_string())
        .with_context(|| format!("writing {}", place.display()))?;
    here.wait_serving()?;
    wait_for_feed(&client, &place)?;
    let play = |namespace: &str, name: &str| -> Result<Answers> {
        let said = exchange(namespace, &place, filters)
            .with_context(|| format!("playing the scripts to {name}"))?;
        std::fs::write(here.logs.join(format!("{name}.json")), &said).ok();
        ledger::answers(&said)
    };
    let (ours, theirs) = std::thread::scope(|scope| {
        let theirs = scope.spawn(|| play(&pair.client, "kea"));
        (play(&client, "muster"), theirs.join())
    });
    server.check()?;
    here.lab.check()?;
    here.lab.save_logs();
    let theirs = theirs.map_err(|_| anyhow::anyhow!("a thread panicked"))?;
    Ok((ours?, theirs?, here.logs.clone()))
}

fn exchange(namespace: &str, place: &Path, filters: &[String]) -> Result<String> {
    let output = tool(namespace, "exchange")?
        .arg(place)
        .args(filters)
        .stdin(Stdio::null())
        .output()
        .context("starting the exchange")?;
    ensure!(
        output.status.success(),
        "it failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The newest of what was configured is the last option.
fn wait_for_feed(client: &str, place: &Path) -> Result<()> {
    let script = ["a long option".to_owned()];
    until("the operator's options at the rack", FEED_LIMIT, || {
        let said = exchange(client, place, &script)?;
        Ok(said.contains("option 244").then_some(()))
    })
}

/// What the scripts are told of where they stand: the same for both servers.
fn place_of(network: &BootNetwork) -> Result<Value> {
    let relay = plan::behind_gateway().addr().to_string();
    let (behind_first, behind_last) = behind_range();
    let server = network.rack(1).addr().to_string();
    let host = network.client().addr().to_string();
    Ok(json!({
        "interface": "boot",
        "address": host,
        "server": server,
        "relay": relay,
        "captures": workspace::root()?.join("dataplane/wire/tests/data"),
        "first": network.first,
        "last": network.last,
        "relayed_first": behind_first,
        "relayed_last": behind_last,
        "lease_secs": LEASE_SECS,
        "names": {
            server: "server", host: "host", relay: "relay",
            "0.0.0.0": "-", "255.255.255.255": "broadcast",
            GATEWAY: "gateway", DNS: "dns", NTP: "ntp",
            RESERVED[0].address: "reserved by MAC",
            RESERVED[1].address: "reserved inside the range",
            RESERVED[2].address: "reserved by client id",
            RESERVED[3].address: "reserved by circuit",
        },
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_differences_is_well_formed() {
        let path = workspace::root().expect("a workspace").join(LEDGER);
        let text = std::fs::read_to_string(path).expect("the list");
        Ledger::parse(&text).expect("every row has six columns and a reason");
    }

    #[test]
    fn a_row_can_be_pasted_from_what_a_failure_prints() {
        let one = ledger::Difference {
            script: "renewing".into(),
            step: "2 REQUEST".into(),
            field: "order".into(),
            ours: "53,54".into(),
            theirs: String::new(),
        };
        let text = format!("{}\n", one.as_row().replace("why?", "because"));
        let mut ledger = Ledger::parse(&text).expect("a row");
        assert!(ledger.has(&one));
    }
}
