//! BMCs: both cipher suites from end to end, and those that are off, unreachable, refuse, or fall silent.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use lab::BmcKind;
use serde_json::json;

use super::bench::{Bench, Case, Known, Slow, SlowCase};

/// Six tries with their pauses, each of a few seconds; a busy machine.
const SILENCE_LIMIT: Duration = Duration::from_secs(240);
/// A password does not get better: no second try.
const REFUSAL_LIMIT: Duration = Duration::from_secs(40);

/// Commissionings that are to fail.
pub const SLOW_CASES: &[(&str, SlowCase)] = &[
    ("BMC refuses the password, suite 3", |bench| {
        refuse(bench, BmcKind::IpmiSim)
    }),
    ("BMC refuses the password, suite 17", |bench| {
        refuse(bench, BmcKind::Model { silent_after: None })
    }),
    ("BMC is off", |bench| fail(bench, BmcKind::Off)),
    ("BMC's address does not exist", |bench| {
        fail(bench, BmcKind::Absent)
    }),
    // Privilege and one more are answered.
    ("BMC goes silent in mid-session", |bench| {
        fail(
            bench,
            BmcKind::Model {
                silent_after: Some(2),
            },
        )
    }),
];

pub const CASES: &[(&str, Case)] = &[
    (
        "commissioning of a model machine, cipher suite 3",
        |bench| ready(bench, BmcKind::IpmiSim),
    ),
    (
        "commissioning of a model machine, cipher suite 17",
        |bench| ready(bench, BmcKind::Model { silent_after: None }),
    ),
];

fn ready(bench: &mut Bench, bmc: BmcKind) -> Result<()> {
    let known = bench.machine(bmc, json!({}))?;
    bench.commission(&known)?;
    bench.expect_ready(&known)
}

fn fail(bench: &mut Bench, bmc: BmcKind) -> Result<Slow> {
    let known = bench.machine(bmc, json!({}))?;
    bench.commission(&known)?;
    Ok(Slow::new(known, judge))
}

fn refuse(bench: &mut Bench, bmc: BmcKind) -> Result<Slow> {
    let machine = bench.stranger(bmc, json!({}))?;
    let known = bench.create(machine, "not-the-password")?;
    bench.commission(&known)?;
    Ok(Slow::new(known, judge))
}

fn judge(bench: &mut Bench, name: &str, known: &Known, at: Instant) -> Result<()> {
    let refused = name.contains("password");
    let limit = if refused {
        REFUSAL_LIMIT
    } else {
        SILENCE_LIMIT
    };
    let end = bench.end_of(
        known,
        limit
            .saturating_sub(at.elapsed())
            .max(Duration::from_secs(1)),
    )?;
    ensure!(
        end.status == "Failed commissioning",
        "it is {} ({})",
        end.status,
        end.reason
    );
    let words: &[&str] = if refused {
        &["password", "refused", "credential"]
    } else {
        &["answer", "reach", "silent"]
    };
    let reason = end.reason.to_lowercase();
    ensure!(
        reason.starts_with("power: ") && words.iter().any(|word| reason.contains(word)),
        "the reason says nothing of it: {:?}",
        end.reason
    );
    ensure!(!known.machine.is_on()?, "the machine is on");
    println!("     {name}: {}", end.reason);
    Ok(())
}
