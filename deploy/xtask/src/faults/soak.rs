//! `cargo xtask soak`: machines commission while programs die at random moments, round after round; then the same
//! programs die under DHCP load.
//!
//! The choices come from a seed, which is printed; what happens when is the machine's own, so a seed does not replay a
//! run exactly. A round that fails ends the run, with the logs kept.

use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::BmcKind;
use serde_json::json;

use super::bench::{Bench, Known, Random};
use super::trust;
use crate::checks::{Score, finish_logs};
use crate::kills;
use crate::packages;
use crate::workspace::{self, Profile};

const MINUTES: u64 = 30;
const HOSTILE_MINUTES: u64 = 15;
const MACHINES: usize = 4;
/// A claim of a dead region runs out (85 s), a machine that was left alone is noticed (a minute), twice.
const ROUND_LIMIT: Duration = Duration::from_secs(400);
/// Instead of half an hour: a machine whose cloud-init gave up says nothing any more.
const NODE_TIMEOUT_MIN: u32 = 1;

#[derive(Args)]
pub struct Soak {
    /// How long machines commission under faults; 0: not at all [default: 30; with --hostile 15]
    #[arg(long)]
    minutes: Option<u64>,
    /// Instead: a hostile host on the machines' VLAN, and what an ordinary client notices of it.
    #[arg(long, conflicts_with_all = ["kills", "seed"])]
    hostile: bool,
    /// How often each program is killed under DHCP load; 0: not at all.
    #[arg(long, default_value_t = 30)]
    kills: usize,
    /// Of the random choices [default: the clock]
    #[arg(long)]
    seed: Option<u64>,
    /// Packages are there and everything is built.
    #[arg(long, hide = true)]
    prepared: bool,
}

impl Soak {
    pub fn run(self) -> Result<ExitCode> {
        if !self.prepared {
            packages::ensure()?;
            workspace::build(Profile::Dev)?;
        }
        if !workspace::is_root() {
            let mut arguments: Vec<String> = std::env::args().skip(1).collect();
            arguments.push("--prepared".to_owned());
            return workspace::as_root(&arguments);
        }
        if self.hostile {
            let score = super::hostile::run(self.minutes.unwrap_or(HOSTILE_MINUTES))?;
            return Ok(ending(score, ""));
        }
        let clock = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
        let seed = match self.seed {
            Some(seed) => seed,
            None => clock.context("the clock stands before 1970")?.as_secs(),
        };
        println!("seed {seed}");
        let mut score = Score::default();
        let minutes = self.minutes.unwrap_or(MINUTES);
        if minutes > 0 {
            score.add(machines_and_faults(seed, minutes)?);
        }
        if self.kills > 0 && score.failed == 0 {
            score.add(kills::rounds(self.kills, seed, &[])?);
        }
        Ok(ending(score, &format!(" (seed {seed})")))
    }
}

fn ending(score: Score, note: &str) -> ExitCode {
    println!("{} passed, {} failed{note}", score.passed, score.failed);
    if score.failed == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn machines_and_faults(seed: u64, minutes: u64) -> Result<Score> {
    let mut random = Random(seed.max(1));
    let (mut bench, logs) = super::bench("soak", Vec::new(), &[])?;
    bench.lab.query(&format!(
        "insert into setting values ('node_timeout', '{NODE_TIMEOUT_MIN}')
         on conflict (name) do update set value = excluded.value"
    ))?;
    let machines = machines(&mut bench)?;
    let end = Instant::now() + Duration::from_secs(60 * minutes);
    let mut rounds = 0;
    while Instant::now() < end && !bench.has_failed() {
        rounds += 1;
        bench.case(&format!("round {rounds}"), |bench| {
            round(bench, &mut random, &machines)
        });
    }
    bench.case(
        "no program panicked, no lease was in conflict",
        trust::nothing_odd,
    );
    let score = bench.end();
    finish_logs(&logs, score);
    Ok(score)
}

fn machines(bench: &mut Bench) -> Result<Vec<Known>> {
    (0..MACHINES)
        .map(|index| {
            let bmc = match index % 2 {
                0 => BmcKind::IpmiSim,
                _ => BmcKind::Model { silent_after: None },
            };
            bench.machine(bmc, json!({}))
        })
        .collect()
}

fn round(bench: &mut Bench, random: &mut Random, machines: &[Known]) -> Result<()> {
    bench.watch(machines);
    for known in machines {
        bench.commission(known)?;
    }
    let mut story = Vec::new();
    for _ in 0..1 + random.below(3) {
        std::thread::sleep(Duration::from_millis(random.below(3_000)));
        let away = Duration::from_millis(200 + random.below(3_500));
        story.push(strike(bench, random.below(4), away)?);
    }
    println!("     {}", story.join(", "));
    for known in machines {
        let end = bench.end_of(known, ROUND_LIMIT)?;
        let named = end.status == "Failed commissioning" && !end.reason.is_empty();
        ensure!(
            end.status == "Ready" || named,
            "it is {:?} ({:?})",
            end.status,
            end.reason
        );
        if named {
            println!("     {}: {}", known.machine.name, end.reason);
        }
    }
    for known in machines {
        let rows = bench.lease_rows(&known.machine)?;
        ensure!(
            rows.len() <= 1,
            "{} has the leases {rows:?}",
            known.machine.name
        );
    }
    Ok(())
}

/// One fault. What it was, for the reader.
fn strike(bench: &mut Bench, kind: u64, away: Duration) -> Result<String> {
    let binaries = bench.binaries.clone();
    let seconds = away.as_secs_f64();
    Ok(match kind {
        0 => {
            bench.lab.kill_region()?;
            std::thread::sleep(away);
            bench.lab.run_region(&binaries)?;
            format!("regiond killed for {seconds:.1} s")
        }
        1 => {
            bench.lab.kill_rack(1)?;
            std::thread::sleep(away);
            bench.lab.run_rack(&binaries, 1)?;
            format!("rackd killed for {seconds:.1} s")
        }
        2 => {
            bench.lab.restart_database("fast")?;
            "PostgreSQL restarted".to_owned()
        }
        _ => {
            bench.lab.restart_database("immediate")?;
            "PostgreSQL crashed".to_owned()
        }
    })
}
