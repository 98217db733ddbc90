//! The fault stage of `cargo xtask test`: region, rack and machines together, while something breaks.
//!
//! One lab with one rack serves all cases but those of two racks (`pair`) and of a small range (`flood`); the machines are models (see `lab::ModelMachine`), a new one for each case.
//! Every wait is for something that is seen, and has an end. What a crate's own tests show is not shown again here.

mod attack;
mod away;
mod bench;
mod disk;
mod doors;
mod flood;
mod hostile;
mod identity;
mod network;
mod ordinary;
mod pair;
mod power;
mod restarts;
pub mod soak;
mod tftp;
mod trust;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::Result;
use lab::{BootNetwork, Firmware, Lab, LabConfig, ModelSetup};

use crate::checks::{Score, finish_logs};
use crate::workspace::{self, Profile};
use bench::Bench;
pub use bench::Random;

/// All cases whose name contains one of `filters`, or all; needs root and everything built.
pub fn run(filters: &[String]) -> Result<Score> {
    let (mut bench, logs) = bench("faults", vec![Firmware::Uefi], filters)?;
    // What takes minutes goes on beside the cases that break nothing else: a claim of a dead region runs out, and a
    // BMC that does not answer is tried again.
    let mut slow = bench.start_all(restarts::SLOW_CASES);
    slow.extend(bench.start_all(power::SLOW_CASES));
    slow.extend(bench.start_all(away::SLOW_CASES));
    for (name, case) in power::CASES
        .iter()
        .chain(trust::CASES)
        .chain(identity::CASES)
        .chain(network::CASES)
        .chain(away::CASES)
        .chain(tftp::CASES)
        .chain(doors::CASES)
        .chain(flood::CASES)
    {
        bench.case(name, case);
    }
    for (name, started) in slow {
        bench.slow_case(name, started);
    }
    for (name, case) in restarts::CASES
        .iter()
        .chain(doors::RESTARTS)
        .chain(disk::CASES)
    {
        bench.case(name, case);
    }
    for step in restarts::STEPS {
        let name = format!("regiond killed in step {step}");
        bench.case(&name, |bench| restarts::region_killed(bench, step));
    }
    bench.case(
        "no program panicked, no lease was in conflict",
        trust::nothing_odd,
    );
    let mut score = bench.end();
    finish_logs(&logs, score);
    score.add(flood::run(filters)?);
    score.add(pair::run(filters)?);
    Ok(score)
}

/// A lab with one rack, and the folder of its logs.
fn bench(name: &str, machines: Vec<Firmware>, filters: &[String]) -> Result<(Bench, PathBuf)> {
    bench_on(name, machines, BootNetwork::default(), filters)
}

fn bench_on(
    name: &str,
    machines: Vec<Firmware>,
    network: BootNetwork,
    filters: &[String],
) -> Result<(Bench, PathBuf)> {
    let image = workspace::image()?;
    let name = format!("{name}{}", std::process::id());
    let binaries = workspace::binaries(Profile::Dev)?;
    let config = LabConfig {
        name: name.clone(),
        racks: 1,
        machines,
        network,
        base: workspace::lab_base(),
        logs: workspace::lab_logs(&name)?,
        accelerator: workspace::accelerator(&image)?,
    };
    let setup = ModelSetup::new(binaries.join("examples/bmc_model"), &image)?;
    let start = Instant::now();
    let mut says = |line: &str| println!("{:>6.1} s  {line}", start.elapsed().as_secs_f64());
    let lab = Lab::up(&config, &binaries, &image, None, &mut says)?;
    Ok((Bench::new(lab, binaries, setup, filters), config.logs))
}
