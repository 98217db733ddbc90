//! `cargo xtask bench datagram`: the shard's loop beside the same echo on other engines. The work is done by the
//! program `datagram` of the crate `benches`; this builds it, runs it, and judges.

use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::median;
use super::report::{self, Goal, Setting};
use crate::workspace;

#[derive(Args)]
pub struct Datagram {
    /// Fewer datagrams and rounds.
    #[arg(long)]
    quick: bool,
    /// Write no file and change no page.
    #[arg(long)]
    dry: bool,
}

/// One run of one engine, as the program prints it: a line of JSON.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Run {
    engine: String,
    round: u32,
    requests: u64,
    /// Of the server's thread, per request.
    cpu_ns: f64,
    seconds: f64,
}

#[derive(Serialize)]
struct Report {
    name: &'static str,
    quick: bool,
    setting: Setting,
    runs: Vec<Run>,
    table: Vec<Row>,
    goals: Vec<Goal>,
}

#[derive(Debug, Serialize, PartialEq)]
struct Row {
    engine: String,
    cpu_ns_median: f64,
    cpu_ns_least: f64,
    /// By our own loop's median.
    of_ours: f64,
}

const OURS: &str = "uring";
/// A tie, allowing for noise.
const OF_EPOLL: f64 = 1.1;

impl Datagram {
    pub fn run(self) -> Result<ExitCode> {
        let mut command = workspace::cargo()?;
        command.args([
            "run",
            "--release",
            "--package",
            "benches",
            "--bin",
            "datagram",
            "--",
        ]);
        if self.quick {
            command.arg("--quick");
        }
        let output = command
            .stderr(std::process::Stdio::inherit())
            .output()
            .context("starting cargo")?;
        ensure!(
            output.status.success(),
            "the bench failed ({})",
            output.status
        );
        let runs = parse(&String::from_utf8_lossy(&output.stdout))?;
        let table = rows(&runs);
        let epoll = table
            .iter()
            .find(|row| row.engine == "epoll")
            .map(|row| 1.0 / row.of_ours);
        let goals = vec![Goal::at_most(
            "CPU per datagram, our loop by epoll's",
            OF_EPOLL,
            epoll,
        )];
        print!("{}", text(&table));
        print!("{}", report::goals_text(&goals));
        let markdown = markdown(&table);
        let report = Report {
            name: "datagram",
            quick: self.quick,
            setting: Setting::now(Vec::new())?,
            runs,
            table,
            goals,
        };
        if !self.dry {
            report::write("datagram", &report, !self.quick)?;
            if !self.quick {
                report::document("bench datagram", &markdown)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse(text: &str) -> Result<Vec<Run>> {
    let runs: Result<Vec<Run>> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no run: {line:?}")))
        .collect();
    let runs = runs?;
    ensure!(
        runs.iter().any(|run| run.engine == OURS),
        "our own engine did not run"
    );
    Ok(runs)
}

fn rows(runs: &[Run]) -> Vec<Row> {
    let mut engines: Vec<&str> = runs.iter().map(|run| run.engine.as_str()).collect();
    engines.sort_unstable();
    engines.dedup();
    let of = |engine: &str| -> Vec<f64> {
        runs.iter()
            .filter(|run| run.engine == engine)
            .map(|run| run.cpu_ns)
            .collect()
    };
    let ours = median(of(OURS));
    let mut rows: Vec<Row> = engines
        .iter()
        .map(|engine| Row {
            engine: (*engine).to_owned(),
            cpu_ns_median: median(of(engine)),
            cpu_ns_least: of(engine).into_iter().fold(f64::INFINITY, f64::min),
            of_ours: median(of(engine)) / ours,
        })
        .collect();
    rows.sort_by(|a, b| a.cpu_ns_median.total_cmp(&b.cpu_ns_median));
    rows
}

fn text(rows: &[Row]) -> String {
    let mut text = format!(
        "{:22} {:>10} {:>10} {:>8}\n",
        "engine", "ns median", "ns least", "of ours"
    );
    for row in rows {
        text += &format!(
            "{:22} {:>10.0} {:>10.0} {:>8.2}\n",
            row.engine, row.cpu_ns_median, row.cpu_ns_least, row.of_ours
        );
    }
    text
}

fn markdown(rows: &[Row]) -> String {
    let mut text =
        "| engine | CPU ns per request, median | least | of ours |\n|--|--|--|--|\n".to_owned();
    for row in rows {
        text += &format!(
            "| {} | {:.0} | {:.0} | {:.2} |\n",
            row.engine, row.cpu_ns_median, row.cpu_ns_least, row.of_ours
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_become_rows() {
        let line = |engine: &str, ns: f64| {
            format!(
                r#"{{"engine":"{engine}","round":1,"requests":10,"cpu_ns":{ns},"seconds":0.1}}"#
            )
        };
        let text = [
            line("uring", 2000.0),
            line("epoll", 1500.0),
            line("epoll", 2500.0),
            line("glommio", 3000.0),
        ];
        let rows = rows(&parse(&text.join("\n")).expect("it parses"));
        let found: Vec<(&str, f64)> = rows
            .iter()
            .map(|row| (row.engine.as_str(), row.of_ours))
            .collect();
        assert_eq!(found, [("epoll", 1.0), ("uring", 1.0), ("glommio", 1.5)]);
        assert!(parse("{}").is_err());
        assert!(parse(&line("epoll", 1.0)).is_err(), "ours is missing");
    }
}
