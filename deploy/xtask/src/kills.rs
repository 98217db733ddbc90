//! The kill stage of `cargo xtask test`: SIGKILL to rackd, regiond and PostgreSQL while perfdhcp asks for addresses.
//!
//! Every ACK that reaches the clients' host is recorded. After each kill the program is started again, service must
//! come back within a bound, and what was promised is held against what the region knows:
//! - no address is promised to two clients at one time,
//! - no promise is forgotten: it is in the region's lease table once the rack has handed over what it kept, and no
//!   client that holds one is told NAK.
//!
//! `cargo xtask soak` does the same for longer. The moments are random; the seed is printed.

mod load;
pub mod promises;

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use lab::{BootNetwork, CLIENT_INTERFACE};

use crate::checks::{Score, finish_logs};
use crate::dhcp_lab::{DhcpLab, Recorder, Seen, until};
use crate::faults::Random;
use load::{Load, Report};
use promises::{Promise, Row};

/// Of each program, in the tests.
const KILLS: usize = 3;
/// The shortest the API allows, so that leases end and addresses come back while the rounds go on.
const LEASE_SECS: u32 = 30;
/// Strangers get at most half of it, and hold an address for two minutes from their last ACK: enough for the load, and
/// small enough that a soak gives every address again and again.
const RANGE: (Ipv4Addr, Ipv4Addr) = (
    Ipv4Addr::new(10, 99, 16, 0),
    Ipv4Addr::new(10, 99, 143, 255),
);
/// How long the load of a round lasts, and when in it the program dies, at random.
const LOAD: Duration = Duration::from_secs(12);
const BEFORE_MS: (u64, u64) = (1_500, 3_500);
const AWAY_MS: (u64, u64) = (100, 2_500);
/// For no longer may no new client get an ACK, from the kill on: with the time the program is away.
/// A bound for "it came back", not for how fast: that is printed. Under a load of 12 on two cores 35 s were seen.
const SILENCE_LIMIT: Duration = Duration::from_secs(60);
/// Then the rack must have handed over all that it promised while it was alone.
const DRAIN_LIMIT: Duration = Duration::from_secs(60);
/// At the end of a round's load its last ACK to a new client is no older than this.
const STEADY_SECS: f64 = 1.0;
/// If it is, more clients ask, so often.
const MORE: Duration = Duration::from_secs(2);
const MORE_MAX: usize = 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Rack,
    Region,
    Database,
}

const VICTIMS: [(Victim, &str); 3] = [
    (Victim::Rack, "rackd"),
    (Victim::Region, "regiond"),
    (Victim::Database, "PostgreSQL"),
];

/// The stage; needs root and everything built.
pub fn run(filters: &[String]) -> Result<Score> {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH);
    let seed = clock.context("the clock stands before 1970")?.as_secs();
    println!("seed {seed}");
    rounds(KILLS, seed, filters)
}

/// Kills each of the three `count` times, in a lab of its own.
pub fn rounds(count: usize, seed: u64, filters: &[String]) -> Result<Score> {
    let mut random = Random(seed.max(1));
    let lease = LEASE_SECS.to_string();
    let network = BootNetwork::new(BootNetwork::default().subnet, Some(RANGE))?;
    let mut here = DhcpLab::up("kills", network, &[("lease_secs", lease.as_str())])?;
    here.wait_serving()?;
    let client = here.lab.names().client();
    let record = Recorder::start(
        &client,
        CLIENT_INTERFACE,
        &here.logs.join("acks.json"),
        &["ACK", "NAK"],
    )?;
    let mut score = Score::default();
    let mut number = 0;
    for kill in 1..=count {
        for (victim, name) in VICTIMS {
            number += 1;
            let name = format!("{name} killed under load, {kill} of {count}");
            let is_wanted = filters.is_empty() || filters.iter().any(|one| name.contains(one));
            if !is_wanted {
                continue;
            }
            let start = Instant::now();
            let result = round(&mut here, &record, victim, number, &mut random);
            let seconds = start.elapsed().as_secs_f64();
            match &result {
                Ok(remark) => println!("PASS {name} ({seconds:.1} s): {remark}"),
                Err(error) => println!("FAIL {name} ({seconds:.1} s): {error:#}"),
            }
            score.add(Score::of(result.is_ok()));
            here.lab.save_logs();
            mend(&mut here)?;
        }
    }
    let seen = record.end()?;
    let promises = promises::of(&seen, LEASE_SECS);
    let result = whole_run(&here, &promises, promises::refusals(&seen));
    match &result {
        Ok(remark) => println!("PASS no address twice, nothing forgotten, no panic: {remark}"),
        Err(error) => println!("FAIL no address twice, nothing forgotten, no panic: {error:#}"),
    }
    score.add(Score::of(result.is_ok()));
    here.lab.save_logs();
    let DhcpLab { lab, logs, .. } = here;
    drop(lab);
    finish_logs(&logs, score);
    Ok(score)
}

/// One kill under load; what was seen.
fn round(
    here: &mut DhcpLab,
    record: &Recorder,
    victim: Victim,
    number: usize,
    random: &mut Random,
) -> Result<String> {
    let load = Load::start(here, number, LOAD)?;
    let between = |random: &mut Random, (low, high): (u64, u64)| {
        Duration::from_millis(low + random.below(high - low))
    };
    std::thread::sleep(between(random, BEFORE_MS));
    let killed = unix_secs()?;
    let away = between(random, AWAY_MS);
    strike(here, victim, away)?;
    let started = unix_secs()?;
    let report = load.end()?;
    let (seen, silence, back) = served(here, record, number, killed, started, report)?;
    ensure!(
        silence <= SILENCE_LIMIT.as_secs_f64(),
        "no new client got an ACK for {silence:.1} s"
    );
    ensure!(
        report.not_unique == 0,
        "perfdhcp saw {} addresses twice",
        report.not_unique
    );
    let start = Instant::now();
    let missing = |seen: &[Seen]| -> Result<Vec<String>> {
        let rows = rows(here)?;
        let now = unix_secs()?;
        Ok(promises::forgotten(
            &promises::of(seen, LEASE_SECS),
            &rows,
            now,
        ))
    };
    let mut last = Vec::new();
    until("every promise in the region", DRAIN_LIMIT, || {
        last = missing(&seen)?;
        Ok(last.is_empty().then_some(()))
    })
    .with_context(|| format!("{} are missing: {}", last.len(), first_few(&last)))?;
    let drained = start.elapsed().as_secs_f64();
    Ok(format!(
        "away {:.1} s, no new client served for {silence:.1} s, the first {back:.1} s after its start, all in the region {drained:.1} s \
         after the load; {} of {} exchanges and {} of {} renewals done",
        started - killed,
        report.exchanges.received,
        report.exchanges.sent,
        report.renewals.received,
        report.renewals.sent,
    ))
}

/// Sees to it that new clients are served at the end, with more of them where the load did not last for it. The record,
/// the longest time in which none was, and how long after the start the first was; seconds.
fn served(
    here: &DhcpLab,
    record: &Recorder,
    number: usize,
    killed: f64,
    started: f64,
    report: Report,
) -> Result<(Vec<Seen>, f64, f64)> {
    let mut ended = report.last_query_secs;
    let mut more = 0;
    loop {
        let seen = record.seen()?;
        // Renewals within a durable end need no region: it is the new clients who wait.
        let acks: Vec<f64> = promises::first_of_each(&promises::of(&seen, LEASE_SECS))
            .into_iter()
            .filter(|at| (killed..=ended).contains(at))
            .collect();
        if acks.last().is_some_and(|last| ended - last < STEADY_SECS) {
            let back = acks.iter().copied().find(|at| *at >= started);
            let silence = promises::longest_silence(killed, &acks, ended);
            return Ok((seen, silence, back.map_or(0.0, |at| at - started)));
        }
        more += 1;
        ensure!(more <= MORE_MAX, "no new client is served any more");
        ended = Load::start(here, number + (more << 8), MORE)?
            .end()?
            .last_query_secs;
    }
}

fn strike(here: &mut DhcpLab, victim: Victim, away: Duration) -> Result<()> {
    let binaries = here.binaries.clone();
    match victim {
        Victim::Rack => {
            here.lab.kill_rack(1)?;
            std::thread::sleep(away);
            here.lab.run_rack(&binaries, 1)
        }
        Victim::Region => {
            here.lab.kill_region()?;
            std::thread::sleep(away);
            here.lab.run_region(&binaries)
        }
        Victim::Database => {
            here.lab.kill_database()?;
            std::thread::sleep(away);
            here.lab.start_database()
        }
    }
}

/// Everything runs again, whatever a failed round left.
fn mend(here: &mut DhcpLab) -> Result<()> {
    let binaries = here.binaries.clone();
    if here.lab.query("select 1").is_err() {
        here.lab.start_database()?;
    }
    if !here.lab.has_region() {
        here.lab.run_region(&binaries)?;
    }
    if !here.lab.has_rack(1) {
        here.lab.run_rack(&binaries, 1)?;
    }
    here.lab.check()
}

/// What only the whole record shows.
fn whole_run(here: &DhcpLab, promises: &[Promise], refusals: Vec<String>) -> Result<String> {
    let twice = promises::duplicates(promises);
    ensure!(
        twice.is_empty(),
        "{} addresses were promised twice: {}",
        twice.len(),
        first_few(&twice)
    );
    ensure!(
        refusals.is_empty(),
        "{} clients were told NAK for an address they held: {}",
        refusals.len(),
        first_few(&refusals)
    );
    for log in ["rackd-1", "regiond"] {
        let path = here.logs.join(format!("{log}.log"));
        let text = std::fs::read_to_string(&path)
            .with_context(|| format!("reading {}", path.display()))?;
        let panic = text.lines().find(|line| line.contains("panicked at"));
        ensure!(panic.is_none(), "{log}: {}", panic.unwrap_or_default());
    }
    let conflicts = here
        .lab
        .query("select count(*) from event where type = 'LEASE_CONFLICT'")?;
    ensure!(conflicts == ["0"], "lease conflicts: {conflicts:?}");
    let clients: std::collections::BTreeSet<&str> = promises
        .iter()
        .map(|promise| promise.mac.as_str())
        .collect();
    let addresses: std::collections::BTreeSet<Ipv4Addr> =
        promises.iter().map(|promise| promise.address).collect();
    Ok(format!(
        "{} ACKs, {} clients, {} addresses",
        promises.len(),
        clients.len(),
        addresses.len()
    ))
}

/// The region's lease table.
fn rows(here: &DhcpLab) -> Result<BTreeMap<Ipv4Addr, Row>> {
    let sql =
        "select host(address), mac, extract(epoch from ends) from lease where mac is not null";
    let lines = here.lab.query(sql)?;
    lines
        .iter()
        .filter(|line| !line.is_empty())
        .map(|line| {
            let mut columns = line.split('|');
            let mut next = || {
                columns
                    .next()
                    .with_context(|| format!("a short row: {line}"))
            };
            let address = next()?.parse()?;
            let mac = next()?.to_owned();
            let ends_secs = next()?.parse()?;
            Ok((address, Row { mac, ends_secs }))
        })
        .collect()
}

fn unix_secs() -> Result<f64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    Ok(since.context("the clock stands before 1970")?.as_secs_f64())
}

fn first_few(all: &[String]) -> String {
    const FEW: usize = 4;
    let few = &all[..all.len().min(FEW)];
    few.join("; ") + if all.len() > FEW { "; .." } else { "" }
}
