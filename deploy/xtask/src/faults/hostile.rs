//! `cargo xtask soak --hostile`: one host of the provisioning VLAN takes what it can get, and an ordinary client asks once a second
//! for everything that a boot needs.
//!
//! The client is measured in quiet first, then beside the attacker. None of its tries may fail, its slowest hundredth may
//! wait at most twice as long as in quiet, and both daemons give their memory back afterwards.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::BmcKind;

use super::attack::{Attack, neighbour};
use super::bench::{Bench, held_after};
use super::ordinary::{Clients, Try, metadata, setup};
use super::trust;
use crate::checks::{Score, finish_logs};

const QUIET: Duration = Duration::from_secs(120);
/// How long after the attack the daemons may still hold what it made them hold.
const SETTLE: Duration = Duration::from_secs(90);
/// What it may cost an ordinary client.
const SLOWER_MAX: f64 = 2.0;
const MEMORY_MAX: f64 = 1.2;
/// Below this, in milliseconds, a wait is the scheduler's of a shared machine.
const NOISE_MS: f64 = 20.0;
const DAEMONS: [&str; 2] = ["rackd", "regiond"];

pub fn run(minutes: u64) -> Result<Score> {
    let (mut bench, logs) = super::bench("hostile", Vec::new(), &[])?;
    bench.case("an ordinary client beside a hostile one", |bench| {
        beside(bench, Duration::from_secs(60 * minutes))
    });
    bench.case(
        "no program panicked, no lease was in conflict",
        trust::nothing_odd,
    );
    let score = bench.end();
    finish_logs(&logs, score);
    Ok(score)
}

fn beside(bench: &mut Bench, length: Duration) -> Result<()> {
    // The machine that asks for metadata stays where it is for as long as this takes.
    let minutes = length.as_secs() / 60 + 60;
    bench.lab.query(&format!(
        "insert into setting values ('node_timeout', '{minutes}')
         on conflict (name) do update set value = excluded.value"
    ))?;
    let setup = setup(bench, 1.0)?;
    let booting = bench.machine(BmcKind::IpmiSim, held_after("user-data"))?;
    bench.commission(&booting)?;
    bench.step(&booting.machine, "user-data")?;
    let metadata = metadata(&booting)?;

    let host = bench.lab.names().client();
    let kinds = ["new", "known", "tftp", "http"];
    let mut clients = Clients::default();
    clients.start(bench, &host, &kinds, &setup)?;
    let machine = booting.machine.namespace.clone();
    clients.start(bench, &machine, &["metadata"], &metadata)?;

    std::thread::sleep(QUIET);
    let quiet = clients.take();
    let before = memory(bench)?;
    println!("     {} s of quiet; now the attacker", QUIET.as_secs());

    let host = neighbour(bench, 1)?;
    let attacker = Attack::start(&host, bench.lab.network().rack(1).addr(), &[])?;
    let end = Instant::now() + length;
    let mut beside = Vec::new();
    while Instant::now() < end {
        std::thread::sleep(Duration::from_secs(60).min(end - Instant::now()));
        let new = clients.take();
        println!("     {}", summary(&new));
        beside.extend(new);
    }
    let did = attacker.end()?;
    std::thread::sleep(SETTLE);
    let after_attack = clients.take();
    let after = memory(bench)?;
    drop(clients);

    println!("     the attacker: {did}");
    let mut faults = judge_tries(&quiet, &beside);
    faults.extend(
        judge_tries(&quiet, &after_attack)
            .into_iter()
            .map(|fault| format!("afterwards {fault}")),
    );
    faults.extend(judge_memory(&before, &after));
    ensure!(faults.is_empty(), "{}", faults.join("; "));
    Ok(())
}

/// Octets that each daemon holds.
fn memory(bench: &Bench) -> Result<BTreeMap<&'static str, u64>> {
    let usage = bench.lab.usage()?;
    DAEMONS
        .into_iter()
        .map(|name| {
            let found = usage.get(name).with_context(|| format!("no {name} runs"))?;
            Ok((name, found.memory_bytes))
        })
        .collect()
}

fn judge_memory(before: &BTreeMap<&str, u64>, after: &BTreeMap<&str, u64>) -> Vec<String> {
    let mut faults = Vec::new();
    for (name, held) in before {
        let now = after.get(name).copied().unwrap_or_default();
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        println!(
            "     {name}: {:.1} MiB before, {:.1} MiB after",
            mib(*held),
            mib(now)
        );
        if now as f64 > *held as f64 * MEMORY_MAX {
            faults.push(format!(
                "{name} keeps {:.1} MiB of {:.1}",
                mib(now),
                mib(*held)
            ));
        }
    }
    faults
}

/// Waits in milliseconds by kind, shortest first, and the reasons of failures.
fn by_kind(tries: &[Try]) -> BTreeMap<&str, (Vec<f64>, Vec<&str>)> {
    let mut kinds: BTreeMap<&str, (Vec<f64>, Vec<&str>)> = BTreeMap::new();
    for one in tries {
        let (waits, reasons) = kinds.entry(&one.kind).or_default();
        match one.ms {
            Some(ms) => waits.push(ms),
            None => reasons.push(one.failed.as_deref().unwrap_or("no reason")),
        }
    }
    for (waits, _) in kinds.values_mut() {
        waits.sort_by(f64::total_cmp);
    }
    kinds
}

/// Of sorted waits, what all but a hundredth stay below; nothing of nothing.
fn p99(sorted: &[f64]) -> Option<f64> {
    let index = (sorted.len() * 99).div_ceil(100);
    sorted.get(index.checked_sub(1)?).copied()
}

fn summary(tries: &[Try]) -> String {
    let kinds = by_kind(tries);
    let parts: Vec<String> = kinds
        .iter()
        .map(|(kind, (waits, reasons))| {
            let slowest = p99(waits).unwrap_or(f64::NAN);
            format!(
                "{kind} {} p99 {slowest:.1} ms, {} failed",
                waits.len(),
                reasons.len()
            )
        })
        .collect();
    parts.join("; ")
}

fn judge_tries(quiet: &[Try], beside: &[Try]) -> Vec<String> {
    let (quiet, beside) = (by_kind(quiet), by_kind(beside));
    let mut faults = Vec::new();
    for (kind, (alone, reasons)) in &quiet {
        if let Some(reason) = reasons.first() {
            faults.push(format!("{kind} in quiet: {reason}"));
        }
        let none = (Vec::new(), Vec::new());
        let (waits, reasons) = beside.get(kind).unwrap_or(&none);
        if let Some(reason) = reasons.first() {
            faults.push(format!(
                "{kind}: {} of {} failed: {reason}",
                reasons.len(),
                waits.len() + reasons.len()
            ));
        }
        let (Some(before), Some(now)) = (p99(alone), p99(waits)) else {
            faults.push(format!("{kind}: no try ended well"));
            continue;
        };
        println!(
            "     {kind:9} {:4} tries in quiet, p99 {before:7.1} ms; {:4} beside, p99 {now:7.1} ms ({:.2})",
            alone.len(),
            waits.len(),
            now / before
        );
        if now > SLOWER_MAX * before.max(NOISE_MS) {
            faults.push(format!("{kind}: p99 {now:.1} ms instead of {before:.1}"));
        }
    }
    faults
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tries(kind: &str, waits: &[f64]) -> Vec<Try> {
        waits
            .iter()
            .map(|ms| Try {
                kind: kind.to_owned(),
                ms: Some(*ms),
                failed: None,
            })
            .collect()
    }

    #[test]
    fn a_slow_hundredth_a_failure_and_a_silent_kind_are_faults() {
        let quiet = tries("http", &[50.0; 100]);
        assert_eq!(judge_tries(&quiet, &tries("http", &[100.0; 100])), [""; 0]);
        let mut slow = vec![50.0; 98];
        slow.extend([120.0, 120.0]);
        assert_eq!(judge_tries(&quiet, &tries("http", &slow)).len(), 1);
        assert_eq!(judge_tries(&quiet, &[]).len(), 1);
        let mut failed = tries("http", &[50.0; 99]);
        failed.push(Try {
            kind: "http".to_owned(),
            ms: None,
            failed: Some("status 503".to_owned()),
        });
        assert_eq!(
            judge_tries(&quiet, &failed),
            ["http: 1 of 100 failed: status 503"]
        );
    }

    #[test]
    fn memory_that_is_kept_is_a_fault() {
        let before = BTreeMap::from([("rackd", 100_u64)]);
        assert_eq!(
            judge_memory(&before, &BTreeMap::from([("rackd", 120)])).len(),
            0
        );
        assert_eq!(
            judge_memory(&before, &BTreeMap::from([("rackd", 121)])).len(),
            1
        );
    }
}
