//! Thousands of seeds, each with a plan of its own. `MUSTER_SIM_SEEDS=n` runs n; `MUSTER_SIM_FROM=s` begins at seed s;
//! `MUSTER_SIM_SEED=s` with `MUSTER_SIM_PLAN=...` runs one and prints all of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use sim::{Plan, Report, run, trace};

const SEEDS: u64 = 4_000;

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|_| panic!("{name}={text} is no number")),
    )
}

fn plan(text: &str, seed: u64) -> Plan {
    if text.trim() == "swarm" {
        return Plan::swarm(seed);
    }
    text.parse().unwrap_or_else(|error| panic!("{error}"))
}

/// What once failed is tried first.
#[test]
fn old_failures_stay_away() {
    let lines = include_str!("../seeds.txt").lines();
    let mut tried = 0;
    for line in lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        let mut parts = line.splitn(3, '|');
        let mut part = || {
            parts
                .next()
                .unwrap_or_else(|| panic!("seed | plan | why: {line}"))
        };
        let seed = part().trim().parse().expect("a seed is a number");
        let (plan, why) = (plan(part(), seed), part());
        if let Err(failure) = run(seed, &plan) {
            panic!("{failure}\n{why}");
        }
        tried += 1;
    }
    println!("{tried} old failures stay away");
}

#[test]
fn seeds() {
    if let Some(seed) = number("MUSTER_SIM_SEED") {
        let text = std::env::var("MUSTER_SIM_PLAN").unwrap_or("swarm".into());
        let plan = plan(&text, seed);
        trace(seed, &plan)
            .iter()
            .for_each(|line| println!("{line}"));
        run(seed, &plan).unwrap_or_else(|failure| panic!("{failure}"));
        return;
    }
    let count = number("MUSTER_SIM_SEEDS").unwrap_or(SEEDS);
    let from = number("MUSTER_SIM_FROM").unwrap_or(0);
    let begun = Instant::now();
    let next = AtomicU64::new(from);
    let threads = std::thread::available_parallelism().map_or(1, |count| count.get());
    let worker = || {
        let (mut sum, mut failures) = (Report::default(), vec![]);
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= from + count || failures.len() >= 10 {
                return (sum, failures);
            }
            match run(seed, &Plan::swarm(seed)) {
                Ok(report) => {
                    if report.recovery.as_secs() > 4000 && std::env::var("R").is_ok() {
                        println!("slow {seed} {:?} {}", report.recovery, Plan::swarm(seed));
                    }
                    sum += report
                }
                Err(failure) => failures.push(failure),
            }
        }
    };
    let (sum, failures) = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        let mut all = (Report::default(), vec![]);
        for worker in workers {
            let (sum, failures) = worker.join().expect("no seed panics");
            all.0 += sum;
            all.1.extend(failures);
        }
        all
    });
    println!(
        "{count} seeds in {:?} on {threads} threads: {sum:#?}",
        begun.elapsed()
    );
    for failure in &failures {
        println!(
            "{} | {} | {:?} {}",
            failure.seed, failure.plan, failure.at, failure.what
        );
    }
    if let Some(failure) = failures.first() {
        panic!(
            "{} of {count} seeds failed; the first:\n{failure}",
            failures.len()
        );
    }
    assert!(
        sum.acks > 10 * count && sum.spooled > count && sum.taken_back * 4 > count,
        "the seeds did not get anywhere"
    );
}

#[test]
fn a_seed_is_always_the_same_run() {
    for seed in 0..20 {
        let plan = Plan::swarm(seed);
        assert_eq!(trace(seed, &plan), trace(seed, &plan), "seed {seed}");
        assert_eq!(run(seed, &plan).ok(), run(seed, &plan).ok());
    }
}
