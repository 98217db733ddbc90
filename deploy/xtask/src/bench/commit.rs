//! `cargo xtask bench commit`: what one commit of a rack's leases costs the region and its database, by rows per
//! commit. The work is done by the program `commit` of the crate `benches`, against a private PostgreSQL.

use std::process::{ExitCode, Stdio};

use anyhow::{Context, Result, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use super::report::{self, Goal, Setting};
use crate::workspace;

#[derive(Args)]
pub struct Commit {
    /// Fewer commits.
    #[arg(long)]
    quick: bool,
    /// Write no file and change no page.
    #[arg(long)]
    dry: bool,
}

/// One size of batch, as the program prints it.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
struct Row {
    rows: u32,
    commits: u32,
    /// What the rows do: "grant" (new) or "extend" (there already).
    kind: String,
    /// Processor time per row of PostgreSQL's processes and of the region's code, in microseconds.
    database_us: f64,
    region_us: f64,
    /// Wall-clock time of a commit, median, in milliseconds.
    commit_ms: f64,
}

#[derive(Serialize)]
struct Report {
    name: &'static str,
    quick: bool,
    setting: Setting,
    table: Vec<Row>,
    goals: Vec<Goal>,
}

/// Of the 14 us of a DORA, 7 are datagrams.
const BUDGET_US: f64 = 7.0;

impl Commit {
    pub fn run(self) -> Result<ExitCode> {
        let mut command = workspace::cargo()?;
        command.args([
            "run",
            "--release",
            "--package",
            "benches",
            "--bin",
            "commit",
            "--",
        ]);
        if self.quick {
            command.arg("--quick");
        }
        let output = command
            .stderr(Stdio::inherit())
            .output()
            .context("starting cargo")?;
        ensure!(
            output.status.success(),
            "the bench failed ({})",
            output.status
        );
        let table = parse(&String::from_utf8_lossy(&output.stdout))?;
        let goals = goals(&table);
        print!("{}", text(&table));
        print!("{}", report::goals_text(&goals));
        let markdown = markdown(&table);
        let report = Report {
            name: "commit",
            quick: self.quick,
            setting: Setting::now(Vec::new())?,
            table,
            goals,
        };
        if !self.dry {
            report::write("commit", &report, !self.quick)?;
            if !self.quick {
                report::document("bench commit", &markdown)?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn parse(text: &str) -> Result<Vec<Row>> {
    let rows: Result<Vec<Row>> = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| format!("no row: {line:?}")))
        .collect();
    let rows = rows?;
    ensure!(!rows.is_empty(), "nothing was measured");
    Ok(rows)
}

fn goals(table: &[Row]) -> Vec<Goal> {
    let largest = table
        .iter()
        .filter(|row| row.kind == "grant")
        .max_by_key(|row| row.rows);
    let cost = largest.map(|row| row.database_us + row.region_us);
    let rows = largest.map_or(0, |row| row.rows);
    vec![Goal::at_most(
        format!("CPU us per new lease in commits of {rows}"),
        BUDGET_US,
        cost,
    )]
}

fn text(table: &[Row]) -> String {
    let mut text = format!(
        "{:8} {:>6} {:>14} {:>12} {:>10} {:>10}\n",
        "kind", "rows", "PostgreSQL us", "region us", "sum us", "commit ms"
    );
    for row in table {
        text += &format!(
            "{:8} {:>6} {:>14.1} {:>12.1} {:>10.1} {:>10.2}\n",
            row.kind,
            row.rows,
            row.database_us,
            row.region_us,
            row.database_us + row.region_us,
            row.commit_ms
        );
    }
    text
}

fn markdown(table: &[Row]) -> String {
    let mut text =
        "| rows per commit | kind | PostgreSQL, us per row | region, us per row | commit, ms |\n|--|--|--|--|--|\n".to_owned();
    for row in table {
        text += &format!(
            "| {} | {} | {:.1} | {:.1} | {:.2} |\n",
            row.rows, row.kind, row.database_us, row.region_us, row.commit_ms
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_grant_is_judged() {
        let line = |rows: u32, kind: &str, us: f64| {
            format!(
                r#"{{"rows":{rows},"commits":9,"kind":"{kind}","database_us":{us},"region_us":1.0,"commit_ms":2.0}}"#
            )
        };
        let text = [
            line(1, "grant", 200.0),
            line(512, "grant", 5.0),
            line(512, "extend", 50.0),
        ]
        .join("\n");
        let table = parse(&text).expect("it parses");
        let goals = goals(&table);
        assert_eq!(
            (goals[0].measured, goals[0].met),
            (Some(6.0), true),
            "{goals:?}"
        );
        assert!(parse("").is_err() && parse("x").is_err());
    }
}
