//! `cargo xtask bench`: side by side against peers, in the same run. See docs/performance.md.
//!
//! A claim is a ratio against a named peer doing the same work, alternating, with the processor time of the server
//! per unit of work. Absolute rates mean little on shared machines. Each bench prints one table and writes
//! `benches/results/latest/NAME.json`, which ends in `goals`, measured also where they are missed.

mod case;
mod commit;
mod datagram;
mod dhcp;
mod peers;
mod perfdhcp;
mod plot;
mod report;
mod table;

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;

use crate::workspace;

#[derive(Subcommand)]
pub enum Command {
    /// Leases per processor second: Muster with its region and PostgreSQL, Kea, isc-dhcpd, dnsmasq.
    Dhcp(dhcp::Dhcp),
    /// What a datagram costs in the shard's loop, on epoll, in glommio and in tokio-uring.
    Datagram(datagram::Datagram),
    /// What a lease costs the region's database, by rows per commit.
    Commit(commit::Commit),
    /// Criterion's micro-benchmarks: parse, decide and emit of one DHCP message.
    Codec,
}

impl Command {
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Command::Dhcp(bench) => bench.run(),
            Command::Datagram(bench) => bench.run(),
            Command::Commit(bench) => bench.run(),
            Command::Codec => codec(),
        }
    }
}

/// Builds what measures: the programs of the crate `benches`.
fn build_programs() -> Result<()> {
    let status = workspace::cargo()?
        .args(["build", "--release", "--package", "benches", "--bins"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the build failed ({status})");
    Ok(())
}

fn codec() -> Result<ExitCode> {
    let status = workspace::cargo()?
        .args(["bench", "--package", "benches", "--bench", "dhcp"])
        .status()
        .context("starting cargo")?;
    ensure!(status.success(), "the benchmarks failed ({status})");
    Ok(ExitCode::SUCCESS)
}

/// Of an odd number of values the middle one, of an even number the mean of the two. NaN of none.
fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    let half = values.len() / 2;
    match (values.get(half), values.len() % 2) {
        (None, _) => f64::NAN,
        (Some(value), 1) => *value,
        (Some(value), _) => (values[half - 1] + value) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians() {
        for (values, want) in [
            (vec![3.0, 1.0, 2.0], 2.0),
            (vec![4.0, 1.0], 2.5),
            (vec![7.0], 7.0),
        ] {
            assert_eq!(median(values.clone()), want, "{values:?}");
        }
        assert!(median([]).is_nan());
    }
}
