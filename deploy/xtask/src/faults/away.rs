//! Clients that go away in the middle of a download, and one that is slow.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::attack::{Attack, neighbour, number, rack_numbers, wait_given_back, wait_heard};
use super::bench::{Bench, Case, STEP_LIMIT, Slow, SlowCase, Stop};
use super::ordinary::clients;

pub const CASES: &[(&str, Case)] = &[(
    "120 downloads given up by RST, FIN and RST, and unread: no shard spins, all places are free again",
    leavers,
)];

pub const SLOW_CASES: &[(&str, SlowCase)] = &[(
    "a reader of 20 KB a second gets a whole loader",
    slow_reader,
)];

fn leavers(bench: &mut Bench) -> Result<()> {
    const LEAVERS: u64 = 120;
    const LOOK: Duration = Duration::from_secs(2);
    /// One shard that spins turns a million times a second; machines that boot beside this cost some thousands.
    const TURNS_MAX: u64 = 100_000;
    let attacker = neighbour(bench, 1)?;
    let clients = clients(bench, &["http"], 0.2)?;
    let before = rack_numbers(bench)?;
    let server = bench.lab.network().rack(1).addr();
    let kind = format!("leavers=200/{LEAVERS}");
    let mut attack = Attack::start(&attacker, server, &[&kind])?;
    attack.wait_for(bench, "leavers", LEAVERS)?;
    clients.expect(bench, "beside those who leave", 5, STEP_LIMIT)?;
    drop(clients);
    wait_heard(bench, &before, "http_requests_total", LEAVERS)?;
    wait_given_back(bench, "driver_streams", 16, Duration::from_secs(30))?;
    let turns = |bench: &Bench| number(&rack_numbers(bench)?, "shard_turns_total");
    let first = turns(bench)?;
    std::thread::sleep(LOOK);
    let more = turns(bench)? - first;
    ensure!(more < TURNS_MAX, "{more} turns in {} s", LOOK.as_secs());
    Ok(())
}

/// Longer than any single send may take.
fn slow_reader(bench: &mut Bench) -> Result<Slow> {
    const LIMIT: Duration = Duration::from_secs(90);
    let host = neighbour(bench, 1)?;
    let server = bench.lab.network().rack(1).addr();
    let mut reader = Attack::start(&host, server, &["slow_readers:20000=1/1"])?;
    let at = Instant::now();
    Ok(Slow {
        at,
        machines: Vec::new(),
        judge: Box::new(move |bench, _| {
            let left = LIMIT.saturating_sub(at.elapsed());
            bench.until("the whole loader", left, |_| {
                let counts = reader.counts()?;
                if counts.contains_key("slow_readers refused") {
                    return Err(Stop("it was cut".to_owned()).into());
                }
                Ok(counts.contains_key("slow_readers").then_some(()))
            })
        }),
    })
}
