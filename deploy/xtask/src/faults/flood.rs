//! Many messages: events at an attacker's pace, DHCP in another's name, and false answers to ARP probes.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{BmcKind, BootNetwork};
use serde_json::json;

use super::attack::{Attack, neighbour, number, rack_numbers, wait_heard};
use super::bench::{Bench, Case, STEP_LIMIT};
use super::ordinary::{Clients, clients, setup};
use crate::checks::{Score, finish_logs};

pub const CASES: &[(&str, Case)] = &[
    (
        "ranged GETs and RRQs for random MACs: few events and log lines, leases and known machines go on",
        events,
    ),
    (
        "40 DISCOVERs a second with a victim's chaddr from another card: the victim gets its lease",
        silenced,
    ),
];

/// In a lab of its own: its range is small.
const FALSE_ANSWERS: &str =
    "false ARP answers for a whole range: at most half of it rests, known machines get addresses";

fn events(bench: &mut Bench) -> Result<()> {
    /// What the buckets let through in the time of a commissioning, with the machine's own.
    const EVENTS_MAX: u64 = 1_000;
    const LINES_MAX: usize = 300;
    /// At full pace so many come in a second or two.
    const REQUESTS: u64 = 10_000;
    let attacker = neighbour(bench, 1)?;
    let clients = clients(bench, &["new", "known"], 0.2)?;
    let before = rack_numbers(bench)?;
    let (rows, lines) = (event_rows(bench)?, log_lines(bench)?);
    let server = bench.lab.network().rack(1).addr();
    let kinds = ["ranges=50000", "configurations=50000"];
    let attack = Attack::start(&attacker, server, &kinds)?;
    let known = bench.machine(BmcKind::IpmiSim, json!({}))?;
    bench.commission(&known)?;
    bench.expect_ready(&known)?;
    wait_heard(bench, &before, "http_requests_total", REQUESTS)?;
    wait_heard(bench, &before, "tftp_requests_total", REQUESTS)?;
    wait_heard(bench, &before, "shard_events_left_out_total", 1_000)?;
    clients.expect(bench, "beside many events", 10, STEP_LIMIT)?;
    drop(clients);
    let did = attack.end()?;
    // All but the request itself and the power, which are the region's.
    for step in 4..=11 {
        bench.region_step(&known.id, step, STEP_LIMIT)?;
    }
    let now = rack_numbers(bench)?;
    for refused in ["lease_replies_refused_total", "shard_leases_refused_total"] {
        let more = number(&now, refused)? - number(&before, refused)?;
        ensure!(more == 0, "{more} {refused}");
    }
    let rows = event_rows(bench)? - rows;
    ensure!(rows <= EVENTS_MAX, "{rows} event rows of {did}");
    let lines = log_lines(bench)? - lines;
    ensure!(lines <= LINES_MAX, "{lines} log lines of {did}");
    println!("     {rows} event rows and {lines} log lines of {did}");
    Ok(())
}

fn event_rows(bench: &Bench) -> Result<u64> {
    let rows = bench.lab.query("select count(*) from event")?;
    let count = rows.first().and_then(|count| count.parse().ok());
    count.context("PostgreSQL counts no events")
}

fn log_lines(bench: &Bench) -> Result<usize> {
    let read = |name: &str| -> Result<usize> {
        let log = bench.lab.logs().join(format!("{name}.log"));
        let text = std::fs::read(&log).with_context(|| format!("reading {}", shown(&log)))?;
        Ok(text.iter().filter(|octet| **octet == b'\n').count())
    };
    Ok(read("rackd-1")? + read("regiond")?)
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

fn silenced(bench: &mut Bench) -> Result<()> {
    const DISCOVERS: u64 = 80;
    let attacker = neighbour(bench, 1)?;
    let mut setup = setup(bench, 0.2)?;
    let victim = bench.known_macs[0].clone();
    setup["known"] = json!([victim]);
    let host = bench.lab.names().client();
    let mut clients = Clients::default();
    clients.start(bench, &host, &["known"], &setup)?;
    clients.expect(bench, "in quiet", 1, STEP_LIMIT)?;
    let before = rack_numbers(bench)?;
    let server = bench.lab.network().rack(1).addr();
    let _attack = Attack::start(&attacker, server, &[&format!("silencers:{victim}=40")])?;
    let foreign = "dhcp_dropped_total{reason=\"foreign_source\"}";
    wait_heard(bench, &before, foreign, DISCOVERS)?;
    clients
        .expect(bench, "beside its double", 10, STEP_LIMIT)
        .map(drop)
}

/// The case in a small range, if it is wanted.
pub fn run(filters: &[String]) -> Result<Score> {
    if !filters.is_empty() && !filters.iter().any(|filter| FALSE_ANSWERS.contains(filter)) {
        return Ok(Score::default());
    }
    let range = ([10, 99, 16, 0].into(), [10, 99, 17, 255].into());
    let network = BootNetwork::new(BootNetwork::default().subnet, Some(range))?;
    let (mut bench, logs) = super::bench_on("flood", Vec::new(), network, &[])?;
    bench.case(FALSE_ANSWERS, false_answers);
    let score = bench.end();
    finish_logs(&logs, score);
    Ok(score)
}

fn false_answers(bench: &mut Bench) -> Result<()> {
    const ADDRESSES: u64 = 512;
    let attacker = neighbour(bench, 1)?;
    let known = clients(bench, &["known"], 0.2)?;
    let server = bench.lab.network().rack(1).addr();
    let kinds = ["false_answers=5000", "discovers=100"];
    let attack = Attack::start(&attacker, server, &kinds)?;
    bench.until("an answer is not believed", STEP_LIMIT, |bench| {
        let numbers = rack_numbers(bench)?;
        let disbelieved = number(&numbers, "dhcp_claim_not_believed_total")?;
        let resting = number(&numbers, "dhcp_resting")?;
        ensure!(disbelieved > 0, "{resting} addresses rest");
        Ok(Some(()))
    })?;
    // All of the known ones, twice.
    known.expect(bench, "beside false answers", 16, Duration::from_secs(60))?;
    let resting = number(&rack_numbers(bench)?, "dhcp_resting")?;
    let rests = resting > ADDRESSES / 8 && resting <= ADDRESSES / 2;
    let did = attack.end()?;
    ensure!(rests, "{resting} of {ADDRESSES} addresses rest after {did}");
    println!("     {resting} of {ADDRESSES} addresses rest after {did}");
    Ok(())
}
