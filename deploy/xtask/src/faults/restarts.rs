//! Programs that die or go away in the middle of a commissioning, and come back.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{BmcKind, ModelMachine};
use serde_json::json;

use crate::commissioning;

use super::bench::{Bench, COMMISSIONING_LIMIT, Case, STEP_LIMIT, Slow, SlowCase, held_after};

/// Of the twelve, with [`SLOW_CASES`]: before the second nothing is promised, and after the eleventh it is Ready.
pub const STEPS: RangeInclusive<usize> = 4..=11;
/// The claim of a region that died with a rack at work runs out first, with the operation's own time (85 s).
const CLAIM_LIMIT: Duration = Duration::from_secs(150);
/// Machines that ask for an address while no region answers.
const DETACHED_MACHINES: usize = 3;

pub const CASES: &[(&str, Case)] = &[
    ("rackd killed in the middle of the image", rack_killed),
    ("PostgreSQL restarted before the metadata", |bench| {
        database_restarted(bench, "fast", "preseed")
    }),
    ("PostgreSQL crashed before the scripts", |bench| {
        database_restarted(bench, "immediate", "user-data")
    }),
    ("addresses given while the region is away", region_away),
];

/// With the rest of its boot beside other cases.
const QEMU_LIMIT: Duration = Duration::from_secs(240);

pub const SLOW_CASES: &[(&str, SlowCase)] = &[
    ("regiond killed in step 9 of a QEMU machine", qemu),
    ("regiond killed in step 2", |bench| before_power(bench, 2)),
    ("regiond killed in step 3", |bench| before_power(bench, 3)),
];

/// The work is queued in the transaction of the request, and is claimed and sent to a rack at once.
fn before_power(bench: &mut Bench, step: usize) -> Result<Slow> {
    let known = bench.machine(BmcKind::IpmiSim, json!({}))?;
    bench.commission(&known)?;
    bench.region_step(&known.id, step, STEP_LIMIT)?;
    bench.lab.kill_region()?;
    std::thread::sleep(Duration::from_secs(1));
    bench.lab.run_region(&bench.binaries.clone())?;
    Ok(Slow::new(known, |bench, _, known, at| {
        bench.end_of(known, CLAIM_LIMIT.saturating_sub(at.elapsed()))?;
        bench.expect_ready(known)
    }))
}

/// Real firmware, kernel and cloud-init over the same fault.
fn qemu(bench: &mut Bench) -> Result<Slow> {
    let id = commissioning::create(&bench.lab, &[0])?.remove(0);
    bench
        .lab
        .region()
        .post(&format!("machines/{id}/"), "commission", &[])?;
    bench.region_step(&id, 9, QEMU_LIMIT)?;
    bench.lab.kill_region()?;
    std::thread::sleep(Duration::from_secs(2));
    bench.lab.run_region(&bench.binaries.clone())?;
    Ok(Slow {
        at: Instant::now(),
        machines: Vec::new(),
        judge: Box::new(move |bench, _| {
            let end = bench.end_of_id("the QEMU machine", &id, QEMU_LIMIT)?;
            ensure!(
                end.status == "Ready",
                "it is {} ({})",
                end.status,
                end.reason
            );
            Ok(())
        }),
    })
}

/// Where a machine is to be held so that the region dies right after the step, and the next one is done without it.
fn hold_of(step: usize) -> Option<&'static str> {
    match step {
        4 => Some("power-on"),
        5 => Some("address"),
        6 => Some("boot-file"),
        7 | 8 => Some("config"),
        9 => Some("kernel"),
        10 => Some("instance-id"),
        _ => None,
    }
}

pub fn region_killed(bench: &mut Bench, step: usize) -> Result<()> {
    let hold = hold_of(step);
    // Both suites: the interrupted operation may be in either.
    let bmc = match step % 2 {
        0 => BmcKind::IpmiSim,
        _ => BmcKind::Model { silent_after: None },
    };
    let known = bench.machine(bmc, hold.map_or(json!({}), held_after))?;
    bench.commission(&known)?;
    match (step, hold) {
        (7, Some(hold)) => {
            bench.step(&known.machine, hold)?;
            bench.region_step(&known.id, step, STEP_LIMIT)?;
        }
        (_, Some(hold)) => drop(bench.step(&known.machine, hold)?),
        (_, None) => bench.region_step(&known.id, step, STEP_LIMIT)?,
    }
    bench.lab.kill_region()?;
    if let Some(hold) = hold {
        known.machine.go(hold)?;
    }
    // The fault itself: how long the region is away.
    std::thread::sleep(Duration::from_secs(1 + step as u64 % 3));
    bench.lab.run_region(&bench.binaries.clone())?;
    let end = bench.end_of(&known, COMMISSIONING_LIMIT)?;
    let named = end.status == "Failed commissioning" && !end.reason.is_empty();
    ensure!(
        end.status == "Ready" || named,
        "it is {:?} ({:?})",
        end.status,
        end.reason
    );
    if named {
        println!("     step {step}: {} ({})", end.status, end.reason);
        return Ok(());
    }
    bench.expect_ready(&known)
}

fn database_restarted(bench: &mut Bench, mode: &str, step: &str) -> Result<()> {
    let known = bench.machine(BmcKind::Model { silent_after: None }, held_after(step))?;
    bench.commission(&known)?;
    bench.step(&known.machine, step)?;
    known.machine.go(step)?;
    bench.lab.restart_database(mode)?;
    bench.expect_ready(&known)
}

/// Its cache goes with it: the fill begins anew while the machine asks again.
fn rack_killed(bench: &mut Bench) -> Result<()> {
    let known = bench.machine(BmcKind::IpmiSim, json!({"half": "squashfs"}))?;
    bench.commission(&known)?;
    bench.step(&known.machine, "squashfs-half")?;
    bench.lab.kill_rack(1)?;
    known.machine.go("squashfs-half")?;
    let cache = bench.lab.rack_state(1).join("cache");
    std::fs::remove_dir_all(&cache).with_context(|| format!("removing {}", cache.display()))?;
    std::thread::sleep(Duration::from_secs(1));
    bench.lab.run_rack(&bench.binaries.clone(), 1)?;
    bench.expect_ready(&known)
}

/// Detached grants come from the rack's own blocks, are spooled, and are in the region once it is back.
fn region_away(bench: &mut Bench) -> Result<()> {
    let mut machines = Vec::new();
    for _ in 0..DETACHED_MACHINES {
        let machine = bench.stranger(BmcKind::Off, json!({"stop_after": "address"}))?;
        machines.push(machine);
    }
    bench.lab.kill_region()?;
    for machine in &machines {
        machine.press_power()?;
    }
    let mut given = BTreeSet::new();
    for machine in &machines {
        let address = bench.step(machine, "address")?.text("address").to_owned();
        ensure!(given.insert(address.clone()), "{address} was given twice");
        ensure!(
            bench.lease_rows(machine)?.is_empty(),
            "no region could write that row"
        );
    }
    bench.lab.run_region(&bench.binaries.clone())?;
    for machine in &machines {
        let what = format!("{}'s lease in the region", machine.name);
        bench.until(&what, STEP_LIMIT, |bench| {
            Ok((!bench.lease_rows(machine)?.is_empty()).then_some(()))
        })?;
        bench.expect_one_address(machine)?;
    }
    // Attached again, the rack still knows whose they are.
    let again: &ModelMachine = &machines[0];
    again.press_power()?;
    bench.nth_step(again, "address", 2)?;
    bench.expect_one_address(again).map(drop)
}
