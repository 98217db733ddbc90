//! Two racks on the machines' VLAN, one of which is killed: a lab of its own, with real sockets and scripted clients.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::kvm::Accelerator;
use lab::{BootNetwork, CLIENT_INTERFACE, Lab, LabConfig};
use serde_json::Value;

use crate::checks::{Score, finish_logs};
use crate::dhcp_lab::{Recorder, Seen, tool, until};
use crate::kills::promises;
use crate::workspace::{self, Profile};

const NAME: &str =
    "one of two racks killed: its clients are served within 5 s, no address twice, it comes back";
/// From the kill to the last ACK.
const TAKEOVER: Duration = Duration::from_secs(5);
/// For both racks to know of each other, and for one that starts again to serve.
const KNOWN_LIMIT: Duration = Duration::from_secs(30);
/// Of three racks in a lab, these are on the machines' VLAN.
const PAIR: [usize; 2] = [1, 3];
/// Leases do not end while the case runs.
const LEASE_SECS: u32 = 600;

/// Who has which address from whom, by MAC.
type Bound = BTreeMap<String, Lease>;

#[derive(Clone, Debug)]
struct Lease {
    address: Ipv4Addr,
    server: Ipv4Addr,
}

/// The case, if it is wanted.
pub fn run(filters: &[String]) -> Result<Score> {
    if !filters.is_empty() && !filters.iter().any(|filter| NAME.contains(filter)) {
        return Ok(Score::default());
    }
    let start = Instant::now();
    let name = format!("pair{}", std::process::id());
    let config = LabConfig {
        name: name.clone(),
        racks: 3,
        machines: Vec::new(),
        network: BootNetwork::default(),
        base: workspace::lab_base(),
        logs: workspace::lab_logs(&name)?,
        // No machine will ask.
        accelerator: Accelerator::Tcg,
    };
    let mut lab = Lab::start(&config)?;
    let result = case(&mut lab);
    let seconds = start.elapsed().as_secs_f64();
    match &result {
        Ok(remark) => println!("PASS {NAME} ({seconds:.1} s): {remark}"),
        Err(error) => println!("FAIL {NAME} ({seconds:.1} s): {error:#}"),
    }
    lab.save_logs();
    drop(lab);
    let score = Score::of(result.is_ok());
    finish_logs(&config.logs, score);
    Ok(score)
}

fn case(lab: &mut Lab) -> Result<String> {
    let binaries = workspace::binaries(Profile::Dev)?;
    lab.start_region(&binaries)?;
    lab.import_loaders(&binaries)?;
    lab.start_racks(&binaries, None)?;
    let vlan = lab.define_subnet()?;
    let id = |number: usize| lab.racks()[number - 1].system_id.clone();
    let racks = PAIR.map(id);
    lab.region().put(
        &vlan,
        &[
            ("dhcp_on", "true"),
            ("primary_rack", &racks[0]),
            ("secondary_rack", &racks[1]),
        ],
    )?;
    let client = lab.names().client();
    let file = lab.logs().join("pair.json");
    let record = Recorder::start(&client, CLIENT_INTERFACE, &file, &["OFFER", "ACK", "NAK"])?;
    let mut crowd = Crowd {
        namespace: client,
        next: 0,
    };

    share(&mut crowd, &record)?;
    let before = crowd.boot(40, KNOWN_LIMIT)?;
    let dead = lab.network().rack(PAIR[1]).addr();
    let alive = lab.network().rack(PAIR[0]).addr();
    let orphans: Bound = before
        .iter()
        .filter(|(_, lease)| lease.server == dead)
        .map(|(mac, lease)| (mac.clone(), lease.clone()))
        .collect();
    ensure!(orphans.len() >= 8, "few clients of each: {before:?}");

    lab.kill_rack(PAIR[1])?;
    let died = Instant::now();
    let left = |died: Instant| TAKEOVER.saturating_sub(died.elapsed());
    let new = crowd.boot(40, left(died)).context("new clients")?;
    let new_secs = died.elapsed().as_secs_f64();
    let kept = crowd
        .keep(&orphans, left(died))
        .context("the dead rack's clients")?;
    let all_secs = died.elapsed().as_secs_f64();
    for (mac, lease) in &kept {
        ensure!(
            lease.address == orphans[mac].address,
            "{mac} lost {:?}",
            orphans[mac]
        );
    }
    ensure!(
        new.values()
            .chain(kept.values())
            .all(|lease| lease.server == alive),
        "a dead rack ACKs"
    );

    lab.run_rack(&binaries, PAIR[1])?;
    let back = Instant::now();
    share(&mut crowd, &record).context("after its return")?;
    let back_secs = back.elapsed().as_secs_f64();
    let again = crowd
        .keep(&orphans, TAKEOVER)
        .context("its clients, after its return")?;
    for (mac, lease) in &again {
        let was = &orphans[mac];
        ensure!(
            (lease.address, lease.server) == (was.address, was.server),
            "{mac}: {lease:?}, not {was:?}"
        );
    }
    lab.check()?;
    let seen = record.end()?;
    let acks = promises::of(&seen, LEASE_SECS);
    let twice = promises::duplicates(&acks);
    ensure!(twice.is_empty(), "{}", twice.join("; "));
    ensure!(
        !seen.iter().any(|seen| seen.kind == "NAK"),
        "somebody was told NAK"
    );
    Ok(format!(
        "after the kill {} new clients had an address in {new_secs:.2} s, the dead rack's {} theirs again in {all_secs:.2} s; \
         it served again {back_secs:.1} s after its start; {} ACKs",
        new.len(),
        kept.len(),
        acks.len()
    ))
}

/// Waits until both racks serve and each client hears from one of them.
fn share(crowd: &mut Crowd, record: &Recorder) -> Result<()> {
    until(
        "both racks serve, and each answers its own clients",
        KNOWN_LIMIT,
        || {
            let bound = crowd.boot(12, KNOWN_LIMIT)?;
            // A second offer would be on its way by now.
            std::thread::sleep(Duration::from_millis(100));
            let servers: BTreeSet<Ipv4Addr> = bound.values().map(|lease| lease.server).collect();
            let mut offers: BTreeMap<&str, BTreeSet<Ipv4Addr>> = BTreeMap::new();
            let seen = record.seen()?;
            let theirs = |seen: &&Seen| seen.kind == "OFFER" && bound.contains_key(&seen.mac);
            for offer in seen.iter().filter(theirs) {
                offers.entry(&offer.mac).or_default().insert(offer.source);
            }
            let one_each = offers.values().all(|servers| servers.len() == 1);
            Ok((servers.len() == 2 && one_each).then_some(()))
        },
    )
}

/// `deploy/lab/dhcp/crowd` on a host.
struct Crowd {
    namespace: String,
    next: usize,
}

impl Crowd {
    /// So many new clients, all ACKed within the limit.
    fn boot(&mut self, count: usize, limit: Duration) -> Result<Bound> {
        let first = self.next;
        self.next += count;
        let numbers = [first, count].map(|number| number.to_string());
        self.run(
            &[&numbers[0], &numbers[1], &limit.as_secs_f64().to_string()],
            "",
        )
    }

    /// These clients rebind, and are all ACKed within the limit.
    fn keep(&self, bound: &Bound, limit: Duration) -> Result<Bound> {
        let held: serde_json::Map<String, Value> = bound
            .iter()
            .map(|(mac, lease)| {
                (
                    mac.clone(),
                    serde_json::json!({"address": lease.address.to_string()}),
                )
            })
            .collect();
        let held = Value::Object(held).to_string();
        self.run(&["keep", &limit.as_secs_f64().to_string()], &held)
    }

    fn run(&self, arguments: &[&str], input: &str) -> Result<Bound> {
        let mut command = tool(&self.namespace, "crowd")?;
        command
            .arg(CLIENT_INTERFACE)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let mut child = command.spawn().context("starting the clients")?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin
                .write_all(input.as_bytes())
                .context("telling the clients")?;
        }
        let output = child
            .wait_with_output()
            .context("waiting for the clients")?;
        let said: Value =
            serde_json::from_slice(&output.stdout).context("understanding the clients")?;
        let bound: Bound = said
            .as_object()
            .context("the clients print an object")?
            .iter()
            .filter_map(|(mac, lease)| Some((mac.clone(), Lease::parse(lease)?)))
            .collect();
        ensure!(
            output.status.success(),
            "only {} clients were served",
            bound.len()
        );
        Ok(bound)
    }
}

impl Lease {
    fn parse(value: &Value) -> Option<Self> {
        let ip = |name: &str| value.get(name)?.as_str()?.parse().ok();
        Some(Self {
            address: ip("address")?,
            server: ip("server")?,
        })
    }
}
