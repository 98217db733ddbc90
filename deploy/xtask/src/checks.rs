//! `cargo xtask test`: everything that must hold before a change is merged. `.ci/run` calls it.
//!
//! The last line is always `N passed, N failed`; the exit status says the same.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::{Args, ValueEnum};
use lab::{BootNetwork, Firmware, Lab, LabConfig};

use crate::clients;
use crate::commissioning::{self, Addresses};
use crate::database::TestDatabase;
use crate::differential;
use crate::faults;
use crate::kills;
use crate::packages;
use crate::proxied;
use crate::screen::Screen;
use crate::workspace::{self, Profile};

/// From the request to Ready and off, emulated, on a loaded machine.
const COMMISSIONING_LIMIT: Duration = Duration::from_secs(300);

#[derive(Args)]
pub struct Test {
    /// Only these stages, for a quick look.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Stage>,
    /// Of the stages with cases, only those whose name has one of these in it.
    #[arg(long, value_name = "WORDS")]
    case: Vec<String>,
    /// The part of this stage that needs root; everything is built.
    #[arg(long, hide = true)]
    prepared: Option<Stage>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Stage {
    /// cargo fmt --check
    Format,
    /// clippy over everything, warnings denied
    Lints,
    /// Unit, table, script and database tests
    Tests,
    /// Commissionings and an enlistment on real machines
    Lab,
    /// What breaks while region, rack and model machines work
    Faults,
    /// Real DHCP clients, and a relay agent
    Clients,
    /// The same DHCP exchanges with Kea
    Differential,
    /// SIGKILL to rackd, regiond and PostgreSQL under DHCP load
    Kills,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Score {
    pub passed: u32,
    pub failed: u32,
}

impl Score {
    pub fn of(success: bool) -> Self {
        Self {
            passed: u32::from(success),
            failed: u32::from(!success),
        }
    }

    pub fn add(&mut self, other: Self) {
        self.passed += other.passed;
        self.failed += other.failed;
    }
}

impl Test {
    pub fn run(self) -> Result<ExitCode> {
        if let Some(stage) = self.prepared {
            let score = match stage {
                Stage::Faults => faults::run(&self.case)?,
                Stage::Clients => clients::run(&self.case)?,
                Stage::Differential => differential::run(&self.case)?,
                Stage::Kills => kills::run(&self.case)?,
                _ => in_the_lab()?,
            };
            return Ok(if score.failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            });
        }
        let mut total = Score::default();
        let mut times = Vec::new();
        packages::ensure()?;
        for stage in Stage::value_variants().iter().copied() {
            if !self.only.is_empty() && !self.only.contains(&stage) {
                continue;
            }
            println!("\n== {stage:?}");
            let start = Instant::now();
            let score = match stage {
                Stage::Format => cargo(&["fmt", "--all", "--check"]),
                Stage::Lints => cargo(&[
                    "clippy",
                    "--workspace",
                    "--all-targets",
                    "--",
                    "--deny",
                    "warnings",
                ]),
                Stage::Tests => tests(),
                Stage::Lab => lab_stage(),
                Stage::Faults => self.rooted(stage, faults::run),
                Stage::Clients => self.rooted(stage, clients::run),
                Stage::Differential => self.rooted(stage, differential::run),
                Stage::Kills => self.rooted(stage, kills::run),
            };
            let score = score.unwrap_or_else(|error| {
                println!("{stage:?}: {error:#}");
                Score::of(false)
            });
            times.push((stage, start.elapsed(), score));
            total.add(score);
        }
        println!();
        for (stage, time, score) in times {
            let name = format!("{stage:?}");
            println!(
                "{name:12} {:>6.0} s  {} passed, {} failed",
                time.as_secs_f64(),
                score.passed,
                score.failed
            );
        }
        println!("{} passed, {} failed", total.passed, total.failed);
        Ok(if total.failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }
}

impl Test {
    /// A stage with cases: builds as the user, runs as root.
    fn rooted(&self, stage: Stage, run: fn(&[String]) -> Result<Score>) -> Result<Score> {
        workspace::build(Profile::Dev)?;
        if workspace::is_root() {
            return run(&self.case);
        }
        let name = format!("{stage:?}").to_lowercase();
        let mut arguments = vec!["test".to_owned(), "--prepared".to_owned(), name];
        arguments.extend(self.case.iter().map(|case| format!("--case={case}")));
        let done = workspace::as_root(&arguments)?;
        Ok(Score::of(done == ExitCode::SUCCESS))
    }
}

fn cargo(arguments: &[&str]) -> Result<Score> {
    let status = workspace::cargo()?
        .args(arguments)
        .status()
        .context("starting cargo")?;
    Ok(Score::of(status.success()))
}

/// All tests against one PostgreSQL, with nextest where it is installed.
fn tests() -> Result<Score> {
    let database = match std::env::var("MUSTER_TEST_DATABASE_URL") {
        Ok(_) => None,
        Err(_) => Some(TestDatabase::start().context("starting the tests' PostgreSQL")?),
    };
    let nextest = workspace::cargo()?
        .args(["nextest", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success());
    let mut command = workspace::cargo()?;
    if nextest {
        command.args([
            "nextest",
            "run",
            "--workspace",
            "--no-fail-fast",
            "--status-level",
            "slow",
        ]);
    } else {
        command.args(["test", "--workspace", "--no-fail-fast"]);
    }
    if let Some(database) = &database {
        command.env("MUSTER_TEST_DATABASE_URL", database.url());
    }
    command.env("MUSTER_LAB_CACHE", workspace::lab_cache()?);
    let (success, score) = run_counting(
        &mut command,
        if nextest {
            nextest_score
        } else {
            libtest_score
        },
    )?;
    // A build that fails has no summary; a process that dies may have one that looks good.
    Ok(if success == (score.failed == 0) {
        score
    } else {
        Score {
            passed: score.passed,
            failed: score.failed + 1,
        }
    })
}

/// Runs a command, shows what it says, and adds up the lines that count. nextest's are on stderr.
fn run_counting(command: &mut Command, count: fn(&str) -> Option<Score>) -> Result<(bool, Score)> {
    let (reader, writer) = std::io::pipe().context("a pipe")?;
    let mut child = command
        .stdin(Stdio::null())
        .stdout(writer.try_clone().context("a pipe's second end")?)
        .stderr(writer)
        .spawn()
        .context("starting cargo")?;
    // The command holds the pipe's ends, too.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut score = Score::default();
    for line in BufReader::new(reader).split(b'\n') {
        let line = String::from_utf8_lossy(&line.context("reading what cargo says")?).into_owned();
        println!("{line}");
        if let Some(found) = count(&line) {
            score.add(found);
        }
    }
    Ok((child.wait().context("waiting for cargo")?.success(), score))
}

/// `     Summary [   4.892s] 3 tests run: 2 passed (1 slow), 1 failed, 1 skipped`
fn nextest_score(line: &str) -> Option<Score> {
    let (_, counts) = line
        .trim_start()
        .strip_prefix("Summary [")?
        .split_once("run: ")?;
    let mut score = Score::default();
    for part in counts.split(", ") {
        let mut words = part.split_whitespace();
        let count: u32 = words.next()?.parse().ok()?;
        match words.next()? {
            "passed" => score.passed += count,
            "failed" | "timed" | "exec" => score.failed += count,
            _ => {}
        }
    }
    Some(score)
}

/// `test result: ok. 3 passed; 0 failed; 1 ignored; ...`
fn libtest_score(line: &str) -> Option<Score> {
    let (_, counts) = line.strip_prefix("test result: ")?.split_once(". ")?;
    let mut parts = counts.split("; ");
    let mut next = |word: &str| parts.next()?.strip_suffix(word)?.trim().parse().ok();
    Some(Score {
        passed: next("passed")?,
        failed: next("failed")?,
    })
}

/// Builds as the user, runs as root.
fn lab_stage() -> Result<Score> {
    workspace::build(Profile::Dev)?;
    if workspace::is_root() {
        return in_the_lab();
    }
    // Its lines go through to the user; its exit status is all that is needed of it here.
    let done = workspace::as_root(&["test", "--prepared", "lab"].map(str::to_owned))?;
    Ok(Score::of(done == ExitCode::SUCCESS))
}

fn in_the_lab() -> Result<Score> {
    let image = workspace::image()?;
    let name = format!("test{}", std::process::id());
    let config = LabConfig {
        name: name.clone(),
        racks: 1,
        machines: vec![Firmware::Bios, Firmware::Uefi, Firmware::Bios],
        network: BootNetwork::default(),
        base: workspace::lab_base(),
        logs: workspace::lab_logs(&name)?,
        accelerator: workspace::accelerator(&image)?,
    };
    let start = Instant::now();
    let mut says = |line: &str| println!("{:>6.1} s  {line}", start.elapsed().as_secs_f64());
    let mut lab = Lab::up(
        &config,
        &workspace::binaries(Profile::Dev)?,
        &image,
        None,
        &mut says,
    )?;
    let mut score = Score::default();
    let mut judge = |what: &str, lab: &Lab, start: Instant, result: Result<()>| {
        let seconds = start.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("PASS {what} ({seconds:.1} s)"),
            Err(error) => {
                lab.save_logs();
                println!("FAIL {what} ({seconds:.1} s): {error:#}");
            }
        }
        score.add(Score::of(result.is_ok()));
    };
    let mut known = Vec::new();
    for (index, firmware) in [(0, Firmware::Bios), (1, Firmware::Uefi)] {
        let start = Instant::now();
        let result = commission(&mut lab, index).map(|ids| known.extend(ids));
        judge(&format!("commissioning, {firmware}"), &lab, start, result);
    }
    let start = Instant::now();
    let result = commissioning::enlist(&mut lab, 2, COMMISSIONING_LIMIT).map(drop);
    judge("enlistment of an unknown machine", &lab, start, result);
    let start = Instant::now();
    let result = proxied::commission(&mut lab, &[0, 1], &known, COMMISSIONING_LIMIT);
    let what = "commissioning of both beside another DHCP server";
    judge(what, &lab, start, result);
    drop(lab);

    let score = score;
    finish_logs(&config.logs, score);
    Ok(score)
}

/// The machine's id.
fn commission(lab: &mut Lab, index: usize) -> Result<Vec<String>> {
    let ids = commissioning::create(lab, &[index])?;
    let reports = commissioning::commission(
        lab,
        &[index],
        &ids,
        COMMISSIONING_LIMIT,
        Addresses::Ours,
        &mut Screen::new(),
    )?;
    for report in reports {
        if let Some(failure) = &report.failure {
            bail!("{}", report.explain(failure));
        }
    }
    Ok(ids)
}

pub fn finish_logs(folder: &Path, score: Score) {
    if score.failed == 0 {
        std::fs::remove_dir_all(folder).ok();
        return;
    }
    println!("logs:");
    for file in commissioning::logs(folder) {
        println!("    {}", file.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn summaries_are_counted() {
        let cases = [
            (
                "     Summary [   4.892s] 3 tests run: 3 passed, 1 skipped",
                Some((3, 0)),
            ),
            (
                "     Summary [  41.298s] 16 tests run: 13 passed (2 slow), 3 failed, 1 skipped",
                Some((13, 3)),
            ),
            (
                "     Summary [   1.0s] 8/16 tests run: 7 passed, 1 timed out, 1 skipped",
                Some((7, 1)),
            ),
            ("        PASS [   0.014s] ( 1/16) lab x", None),
        ];
        for (line, want) in cases {
            let found = nextest_score(line).map(|score| (score.passed, score.failed));
            assert_eq!(found, want, "{line}");
        }
        let line = "test result: FAILED. 2 passed; 1 failed; 0 ignored; 0 measured; 0 filtered out";
        assert_eq!(
            libtest_score(line),
            Some(Score {
                passed: 2,
                failed: 1
            })
        );
        assert_eq!(libtest_score("running 3 tests"), None);
    }
}
