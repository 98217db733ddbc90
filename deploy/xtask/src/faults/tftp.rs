//! TFTP under attack: transfers that nobody takes, and requests from where nobody is served.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::plan;

use super::attack::{
    Attack, Growth, neighbour, number, outsider, rack_numbers, wait_given_back, wait_heard,
};
use super::bench::{Bench, Case, STEP_LIMIT};
use super::network::{TFTP, tftp};
use super::ordinary::{Clients, setup};

pub const CASES: &[(&str, Case)] = &[
    (
        "9,000 half-open TFTP transfers leave room for others, and are gone after seconds",
        |bench| half_open(bench, "octet"),
    ),
    (
        "9,000 half-open netascii transfers cost neither memory nor time",
        |bench| half_open(bench, "netascii"),
    ),
    (
        "TFTP and offers are for the rack's own links and their relays",
        outside,
    ),
];

const REFUSED: &str = "dhcp_dropped_total{reason=\"untrusted_relay\"}";
const TRANSFERS: u64 = 9_000;
const DOWNLOADS: usize = 20;
/// What the requests and what they start may take of memory.
const GROWTH_MIB: u64 = 50;
/// DHCP is the same thread's.
const LEASE_MS: f64 = 2_000.0;

fn half_open(bench: &mut Bench, mode: &str) -> Result<()> {
    let attacker = neighbour(bench, 1)?;
    let rack = bench.lab.network().rack(1).addr();
    let mut setup = setup(bench, 0.1)?;
    setup["tftp"] = "bootx64.efi".into();
    let client = bench.lab.names().client();
    let mut clients = Clients::default();
    clients.start(bench, &client, &["tftp", "new"], &setup)?;
    clients.expect(bench, "in quiet", 1, STEP_LIMIT)?;
    let before = rack_numbers(bench)?;
    let growth = Growth::of_rack(bench)?;

    let kind = format!("half_transfers:{mode}=2000/{TRANSFERS}");
    let mut attack = Attack::start(&attacker, rack, &[&kind])?;
    attack.wait_for(bench, "half_transfers", TRANSFERS)?;
    let waits = clients.expect(bench, "beside them", DOWNLOADS, STEP_LIMIT)?;
    let lease = waits.get("new").copied().unwrap_or_default();
    ensure!(lease < LEASE_MS, "a lease took {lease:.0} ms");
    wait_heard(bench, &before, "tftp_requests_total", TRANSFERS * 9 / 10)?;
    growth.ensure_below("rackd", GROWTH_MIB)?;
    // The attacker's sockets are still open: nobody tells the rack that they are of no use.
    drop(clients);
    wait_given_back(bench, "tftp_transfers", 0, Duration::from_secs(15))?;
    wait_given_back(bench, "tftp_unconfirmed", 0, Duration::from_secs(15))
}

/// From the management network: silence, and no offer that would be held for anybody.
fn outside(bench: &mut Bench) -> Result<()> {
    const DISCOVERS: u64 = 300;
    let outsider = outsider(bench, 1)?;
    let rack = plan::rack_mgmt(1).addr();
    let before = rack_numbers(bench)?;
    let answer = tftp(&outsider, SocketAddr::from((rack, TFTP)), b"bootx64.efi")?;
    ensure!(answer.is_none(), "TFTP answers a stranger: {answer:?}");

    // What is forged comes first: when the honest ones have been heard, the others have been, too.
    let giaddr = bench.lab.network().relay().addr();
    let mut attack = None;
    for kind in ["forged_relays", "false_relays"] {
        let all = format!("{kind}:{giaddr}=300/{DISCOVERS}");
        let mut running = Attack::start(&outsider, rack, &[&all])?;
        running.wait_for(bench, kind, DISCOVERS)?;
        attack = Some(running);
    }
    let heard = number(&before, REFUSED)? + DISCOVERS;
    let now = bench.until("the rack has heard them all", STEP_LIMIT, |bench| {
        let now = rack_numbers(bench)?;
        Ok((number(&now, REFUSED)? >= heard).then_some(now))
    })?;
    drop(attack);
    let (held, had) = (
        number(&now, "dhcp_offered")?,
        number(&before, "dhcp_offered")?,
    );
    ensure!(
        held < had + DISCOVERS / 10,
        "{held} offers are held, {had} before"
    );
    let silent = "shard_tftp_not_served_total";
    ensure!(
        number(&now, silent)? > number(&before, silent)?,
        "the rack counts no request that it did not serve"
    );
    Ok(())
}
