//! `cargo xtask demo`: from a powered-off machine to Ready, with every real part on the way, and proof.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use clap::Args;
use lab::usage::Usage;
use lab::{BootNetwork, Firmware, Lab, LabConfig};

use crate::commissioning::{self, Addresses, Report};
use crate::screen::Screen;
use crate::workspace::{self, Profile};
use crate::{inventory, packages, parse_firmware, timeline};

/// One machine takes 45 s emulated on a quiet machine with two cores; more of them share those.
const LIMIT: Duration = Duration::from_secs(300);
const LIMIT_PER_FURTHER_MACHINE: Duration = Duration::from_secs(120);

#[derive(Args)]
pub struct Demo {
    /// uefi or bios
    #[arg(long, default_value = "uefi", value_parser = parse_firmware)]
    firmware: Firmware,
    /// Machines to commission at once.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    machines: u8,
    /// With two or more, power and DHCP come from different racks.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    racks: u8,
    /// Leave everything running, and print URL and API key.
    #[arg(long)]
    keep: bool,
    /// Packages are there and the binaries are built.
    #[arg(long, hide = true)]
    prepared: bool,
}

impl Demo {
    pub fn run(self) -> Result<ExitCode> {
        if !self.prepared {
            packages::ensure()?;
            workspace::build(Profile::Release)?;
        }
        if !workspace::is_root() {
            return workspace::as_root(&self.arguments());
        }
        let image = workspace::image()?;
        let accelerator = workspace::accelerator(&image)?;
        let name = if self.keep {
            "demo".to_owned()
        } else {
            format!("demo{}", std::process::id())
        };
        let config = LabConfig {
            name: name.clone(),
            racks: usize::from(self.racks),
            machines: vec![self.firmware; usize::from(self.machines)],
            network: BootNetwork::default(),
            base: workspace::lab_base(),
            logs: workspace::lab_logs(&name)?,
            accelerator,
        };
        println!("Ctrl-C ends the demo and removes everything it started");
        let binaries = workspace::binaries(Profile::Release)?;
        let start = Instant::now();
        let mut says = |line: &str| println!("{:>6.1} s  {line}", start.elapsed().as_secs_f64());
        let done = Lab::up(&config, &binaries, &image, None, &mut says).and_then(|mut lab| {
            let judged = self.commission(&mut lab);
            if judged.is_err() {
                lab.save_logs();
            }
            if self.keep {
                let summary = lab.keep()?;
                println!("\nThe lab stays. Its region: {}", summary.region_url);
                println!(
                    "reach it with: ip netns exec {} ...",
                    summary.region_namespace
                );
                println!("API key: {}", summary.api_key);
                println!("logs: {}", summary.logs.display());
                println!(
                    "remove it with: cargo xtask lab down --name {}",
                    summary.name
                );
            }
            judged
        });
        match done {
            Ok(()) => {
                if !self.keep {
                    std::fs::remove_dir_all(&config.logs).ok();
                }
                Ok(ExitCode::SUCCESS)
            }
            Err(error) => {
                println!("\nlogs:");
                for file in commissioning::logs(&config.logs) {
                    println!("    {}", file.display());
                }
                Err(error)
            }
        }
    }

    /// The same command for the part that runs as root.
    fn arguments(&self) -> Vec<String> {
        let mut arguments = vec!["demo".to_owned(), "--prepared".to_owned()];
        arguments.push(format!("--firmware={}", self.firmware));
        arguments.push(format!("--machines={}", self.machines));
        arguments.push(format!("--racks={}", self.racks));
        if self.keep {
            arguments.push("--keep".to_owned());
        }
        arguments
    }

    fn commission(&self, lab: &mut Lab) -> Result<()> {
        let machines: Vec<usize> = (0..usize::from(self.machines)).collect();
        println!(
            "creating and commissioning {} {} machine(s)\n",
            self.machines, self.firmware
        );
        let ids = commissioning::create(lab, &machines)?;
        let (usage, counters) = (lab.usage()?, counters(lab));
        let started = Instant::now();
        let limit = LIMIT + LIMIT_PER_FURTHER_MACHINE * u32::from(self.machines - 1);
        let reports = commissioning::commission(
            lab,
            &machines,
            &ids,
            limit,
            Addresses::Ours,
            &mut Screen::new(),
        )?;
        let seconds = started.elapsed().as_secs_f64();

        for report in &reports {
            timeline::print(&report.name, &report.events);
            inventory::print(&report.name, &report.machine);
        }
        println!("\nduring the {seconds:.0} s of commissioning:");
        print_usage(&usage, &lab.usage()?);
        print_counters(&counters, &self::counters(lab), reports.len());
        verdict(&reports)
    }
}

fn verdict(reports: &[Report]) -> Result<()> {
    let failures: Vec<String> = reports
        .iter()
        .filter_map(|report| Some(report.explain(report.failure.as_deref()?)))
        .collect();
    if !failures.is_empty() {
        bail!("not all of it happened\n\n{}", failures.join("\n\n"));
    }
    ensure!(!reports.is_empty(), "there was nothing to commission");
    println!(
        "\nall twelve steps happened for {} machine(s); each is Ready and off",
        reports.len()
    );
    Ok(())
}

fn print_usage(before: &BTreeMap<String, Usage>, after: &BTreeMap<String, Usage>) {
    for name in ["regiond", "rackd", "postgres"] {
        let Some(end) = after.get(name) else { continue };
        let start = before.get(name).copied().unwrap_or_default();
        println!(
            "  {name:9} {:>6.2} s CPU  {:>6.1} MiB memory  {} process(es)",
            (end.cpu_secs - start.cpu_secs).max(0.0),
            end.memory_bytes as f64 / f64::from(1 << 20),
            end.processes,
        );
    }
}

/// What the region counts of itself. Empty where it offers nothing.
fn counters(lab: &Lab) -> BTreeMap<String, f64> {
    match lab.region().raw("GET", "/MAAS/metrics", None) {
        Ok((200, text)) => parse_counters(&text),
        _ => BTreeMap::new(),
    }
}

fn parse_counters(text: &str) -> BTreeMap<String, f64> {
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

fn print_counters(before: &BTreeMap<String, f64>, after: &BTreeMap<String, f64>, machines: usize) {
    for (label, name) in [
        ("HTTP requests", "muster_http_requests_total"),
        ("SQL statements", "muster_sql_statements_total"),
    ] {
        let Some(end) = after.get(name) else { continue };
        let count = end - before.get(name).copied().unwrap_or_default();
        let each = count / machines.max(1) as f64;
        println!(
            "  {count:.0} {label}, {each:.0} per machine (this command's own polling included)"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_parse() {
        let text = "# HELP a b\n# TYPE a counter\na_total 12\nb{x=\"1 2\"} 3.5\nbroken\n";
        let counters = parse_counters(text);
        assert_eq!(counters.get("a_total"), Some(&12.0));
        assert_eq!(counters.get("b{x=\"1 2\"}"), Some(&3.5));
        assert_eq!(counters.len(), 2);
    }
}
