//! The table of a DHCP bench, and the goals judged from it. Medians over the rounds.

use std::fmt::Write as _;

use serde::Serialize;

use super::case::{Case, Shape};
use super::dhcp::{Phase, Run};
use super::median;
use super::peers::Server;
use super::report::{Goal, Setting};

/// One server in one phase of one case.
#[derive(Clone, Debug, Serialize, PartialEq)]
pub struct Row {
    pub case: &'static str,
    pub server: Server,
    pub phase: Phase,
    pub rounds: usize,
    pub offered: Option<u32>,
    /// ACKs per second, from the first message to the last answer.
    pub completed: f64,
    /// Of 100 clients that began, how many have no ACK. In an avalanche: until the limit.
    pub lost_percent: f64,
    /// Microseconds per ACK.
    pub cpu_us: f64,
    /// `cpu_us` by that of Kea with one thread in the same case and phase.
    pub of_kea: Option<f64>,
    pub offer_p50_ms: f64,
    pub offer_p99_ms: f64,
    pub ack_p50_ms: f64,
    pub ack_p99_ms: f64,
    pub ack_max_ms: f64,
    pub seconds: f64,
    pub sent_again: Option<f64>,
    /// Worst round.
    pub given_twice: Option<u64>,
}

pub fn rows(cases: &[Case], servers: &[Server], runs: &[Run]) -> Vec<Row> {
    let mut rows = Vec::new();
    for case in cases {
        let phases: &[Phase] = match case.shape {
            Shape::Steady => &[Phase::New, Phase::Again],
            Shape::Avalanche => &[Phase::Avalanche],
        };
        for phase in phases {
            let first = rows.len();
            for server in servers {
                let of = |run: &&Run| {
                    run.case == case.name && run.server == *server && run.phase == *phase
                };
                let found: Vec<&Run> = runs.iter().filter(of).collect();
                rows.extend(row(case, *server, *phase, &found));
            }
            let kea = rows[first..]
                .iter()
                .find(|row: &&Row| row.server == Server::Kea);
            let kea = kea.map(|row| row.cpu_us);
            for row in &mut rows[first..] {
                row.of_kea = kea.map(|kea| row.cpu_us / kea);
            }
        }
    }
    rows
}

fn row(case: &Case, server: Server, phase: Phase, runs: &[&Run]) -> Option<Row> {
    let first = runs.first()?;
    let middle = |of: &dyn Fn(&Run) -> f64| median(runs.iter().map(|run| of(run)));
    let offer = |of: fn(&super::perfdhcp::Latency) -> f64| {
        median(runs.iter().filter_map(|run| run.offer_ms.as_ref().map(of)))
    };
    let ack = |of: fn(&super::perfdhcp::Latency) -> f64| {
        median(runs.iter().filter_map(|run| run.ack_ms.as_ref().map(of)))
    };
    Some(Row {
        case: case.name,
        server,
        phase,
        rounds: runs.len(),
        offered: first.offered,
        completed: middle(&|run| {
            if run.seconds > 0.0 {
                run.acks as f64 / run.seconds
            } else {
                0.0
            }
        }),
        lost_percent: middle(&|run| 100.0 * (1.0 - run.acks as f64 / run.discovers.max(1) as f64)),
        cpu_us: middle(&|run| run.cpu_us),
        of_kea: None,
        offer_p50_ms: offer(|latency| latency.p50),
        offer_p99_ms: offer(|latency| latency.p99),
        ack_p50_ms: ack(|latency| latency.p50),
        ack_p99_ms: ack(|latency| latency.p99),
        ack_max_ms: ack(|latency| latency.max),
        seconds: middle(&|run| run.seconds),
        sent_again: first
            .sent_again
            .map(|_| middle(&|run| run.sent_again.unwrap_or_default() as f64)),
        given_twice: runs.iter().filter_map(|run| run.given_twice).max(),
    })
}

// ---------------------------------------------------------------- goals

/// CPU of Muster by that of Kea with one thread.
const OF_KEA: f64 = 0.2;
/// The large pool by the small one.
const LARGE_BY_SMALL: f64 = 1.2;
const AVALANCHE_SECS: f64 = 4.0;

pub fn goals(cases: &[Case], rows: &[Row]) -> Vec<Goal> {
    let muster = |case: &str, phase: Phase| {
        let of =
            |row: &&Row| row.case == case && row.phase == phase && row.server == Server::Muster;
        rows.iter().find(of)
    };
    let mut goals = Vec::new();
    for case in cases.iter().filter(|case| case.shape == Shape::Steady) {
        let (path, reserved) = (
            &case.path,
            if case.reserved { ", 30 % reserved" } else { "" },
        );
        for (phase, whose) in [
            (Phase::New, "new clients"),
            (Phase::Again, "the same clients again"),
        ] {
            let name = format!(
                "CPU per DORA by Kea's with one thread: {} addresses, {path:?}{reserved}, {whose}",
                case.pool
            )
            .to_lowercase();
            let measured = muster(case.name, phase).and_then(|row| row.of_kea);
            goals.push(Goal::at_most(name, OF_KEA, measured));
        }
    }
    let by_pool = |large: &str, small: &str, phase: Phase| {
        Some(muster(large, phase)?.cpu_us / muster(small, phase)?.cpu_us)
    };
    let pairs = [
        ("64k", "2k", ""),
        ("64k-reserved", "2k-reserved", ", 30 % reserved"),
    ];
    for (large, small, what) in pairs {
        if !cases.iter().any(|case| case.name == small) {
            continue;
        }
        let name = format!("cpu per dora, 64k pool by 2k pool{what}, every client bound");
        goals.push(Goal::at_most(
            name,
            LARGE_BY_SMALL,
            by_pool(large, small, Phase::Again),
        ));
    }
    for avalanche in cases.iter().filter(|case| case.shape == Shape::Avalanche) {
        let lossy = match avalanche.lost {
            0 => String::new(),
            lost => format!(", {lost} % of messages lost"),
        };
        let row = muster(avalanche.name, Phase::Avalanche);
        let name = format!(
            "avalanche of {}{lossy}: seconds until all are bound",
            avalanche.clients
        );
        // One that was cut off has no such time.
        let whole = row.filter(|row| row.lost_percent == 0.0);
        goals.push(Goal::at_most(
            name,
            AVALANCHE_SECS,
            whole.map(|row| row.seconds),
        ));
        let lost = row.map(|row| row.lost_percent * f64::from(avalanche.clients) / 100.0);
        let name = format!("avalanche{lossy}: clients lost");
        goals.push(Goal::at_most(name, 0.0, lost));
    }
    let twice = rows
        .iter()
        .filter(|row| row.server == Server::Muster)
        .filter_map(|row| row.given_twice)
        .max();
    goals.push(Goal::at_most(
        "addresses given twice",
        0.0,
        twice.map(|count| count as f64),
    ));
    goals
}

// ---------------------------------------------------------------- for people

const HEADERS: [&str; 11] = [
    "case",
    "clients",
    "server",
    "offered/s",
    "done/s",
    "lost",
    "CPU us/DORA",
    "of Kea",
    "OFFER p50/p99 ms",
    "ACK p50/p99/max ms",
    "seconds",
];

fn cells(row: &Row) -> [String; 11] {
    let ms = |value: f64| match value {
        v if v.is_nan() => "-".to_owned(),
        v if v >= 10.0 => format!("{v:.0}"),
        v => format!("{v:.2}"),
    };
    let phase = match row.phase {
        Phase::New => "new",
        Phase::Again => "again",
        Phase::Avalanche => "at once",
    };
    let again = row
        .sent_again
        .map(|count| format!(" ({count:.0} sent again)"))
        .unwrap_or_default();
    [
        row.case.to_owned(),
        phase.to_owned(),
        row.server.name().to_owned(),
        row.offered.map_or("-".to_owned(), |rate| rate.to_string()),
        format!("{:.0}", row.completed),
        format!("{:.2} %", row.lost_percent),
        format!("{:.1}", row.cpu_us),
        row.of_kea
            .map_or("-".to_owned(), |ratio| format!("{ratio:.2}")),
        format!("{} / {}", ms(row.offer_p50_ms), ms(row.offer_p99_ms)),
        format!(
            "{} / {} / {}",
            ms(row.ack_p50_ms),
            ms(row.ack_p99_ms),
            ms(row.ack_max_ms)
        ),
        format!("{:.2}{again}", row.seconds),
    ]
}

pub fn text(rows: &[Row]) -> String {
    let mut lines: Vec<[String; 11]> = vec![HEADERS.map(str::to_owned)];
    lines.extend(rows.iter().map(cells));
    let width = |column: usize| lines.iter().map(|line| line[column].chars().count()).max();
    let widths: Vec<usize> = (0..HEADERS.len())
        .map(|column| width(column).unwrap_or(0))
        .collect();
    let mut text = String::new();
    let mut before: Option<(&String, &String)> = None;
    for line in &lines {
        // A line of space between groups.
        let group = (&line[0], &line[1]);
        if before.is_some_and(|before| before != group) {
            text.push('\n');
        }
        before = Some(group);
        for (column, (cell, width)) in line.iter().zip(&widths).enumerate() {
            let right = (3..8).contains(&column);
            if right {
                write!(text, "{cell:>width$}  ").ok();
            } else {
                write!(text, "{cell:width$}  ").ok();
            }
        }
        text.truncate(text.trim_end_matches(' ').len());
        text.push('\n');
    }
    text
}

pub fn markdown(rows: &[Row], goals: &[Goal], setting: &Setting) -> String {
    let mut text = format!(
        "Measured {} at commit {}{}, Linux {}, {} ({} cores), with `{}`",
        setting.date,
        setting.commit,
        if setting.dirty { " with changes" } else { "" },
        setting.kernel,
        setting.cpu,
        setting.cores,
        setting.command
    );
    let versions: Vec<String> = setting
        .versions
        .iter()
        .map(|(package, version)| format!("{package} {version}"))
        .collect();
    writeln!(text, " ({}).\n", versions.join(", ")).ok();
    writeln!(text, "| {} |", HEADERS.join(" | ")).ok();
    writeln!(text, "|{}|", ["--"; HEADERS.len()].join("|")).ok();
    for row in rows {
        writeln!(text, "| {} |", cells(row).join(" | ")).ok();
    }
    writeln!(text, "\n| goal | wanted | measured | met |\n|--|--|--|--|").ok();
    for goal in goals {
        let measured = goal
            .measured
            .map_or("-".to_owned(), |value| value.to_string());
        let met = if goal.met { "yes" } else { "**no**" };
        writeln!(
            text,
            "| {} | {} | {measured} | {met} |",
            goal.name, goal.goal
        )
        .ok();
    }
    text
}

/// One run, while they are made: where its processor time went, too.
pub fn print_run(run: &Run) {
    let latency = run.ack_ms.map_or(String::new(), |ms| {
        format!(", ACK p50 {:.2} p99 {:.2} ms", ms.p50, ms.p99)
    });
    println!(
        "  {:?}: {} of {} done in {:.2} s, {:.1} us CPU per DORA{latency}",
        run.phase, run.acks, run.discovers, run.seconds, run.cpu_us
    );
    let mut parts: Vec<(&String, &f64)> =
        run.cpu_us_of.iter().filter(|(_, us)| **us >= 0.5).collect();
    parts.sort_by(|a, b| b.1.total_cmp(a.1));
    let parts: Vec<String> = parts
        .iter()
        .map(|(name, us)| format!("{name} {us:.1}"))
        .collect();
    println!("    {}", parts.join(", "));
    if !run.counted.is_empty() {
        let counted: Vec<String> = run
            .counted
            .iter()
            .map(|(name, value)| format!("{} {value}", name.trim_start_matches("muster_")))
            .collect();
        println!("    {}", counted.join(", "));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::case::CASES;
    use super::super::perfdhcp::Latency;
    use super::*;

    fn run(case: &'static str, server: Server, phase: Phase, cpu_us: f64) -> Run {
        let latency = Latency {
            p50: 0.5,
            p90: 1.0,
            p99: 2.0,
            max: 12.0,
        };
        Run {
            case,
            server,
            round: 1,
            phase,
            command: "perfdhcp".to_owned(),
            offered: (phase != Phase::Avalanche).then_some(9_000),
            clients: 10_000,
            discovers: 10_000,
            offers: 10_000,
            requests: 10_000,
            acks: 10_000,
            given_twice: Some(0),
            seconds: 2.0,
            sent_again: (phase == Phase::Avalanche).then_some(7),
            cpu_seconds: 1.0,
            cpu_us,
            cpu_us_of: BTreeMap::new(),
            offer_ms: Some(latency),
            ack_ms: Some(latency),
            counted: BTreeMap::new(),
        }
    }

    #[test]
    fn goals_are_ratios_of_medians() {
        let mut runs = Vec::new();
        for phase in [Phase::New, Phase::Again] {
            for cpu in [10.0, 14.0, 90.0] {
                runs.push(run("64k", Server::Muster, phase, cpu));
            }
            runs.push(run("64k", Server::Kea, phase, 70.0));
            runs.push(run("2k", Server::Muster, phase, 10.0));
            runs.push(run("2k", Server::Kea, phase, 40.0));
        }
        runs.push(run("avalanche", Server::Muster, Phase::Avalanche, 20.0));
        let cases: Vec<Case> = CASES
            .into_iter()
            .filter(|c| ["64k", "2k", "avalanche"].contains(&c.name))
            .collect();
        let rows = rows(&cases, &[Server::Muster, Server::Kea], &runs);
        assert_eq!(rows.len(), 9);
        let goals = goals(&cases, &rows);
        let found: Vec<(Option<f64>, bool)> =
            goals.iter().map(|goal| (goal.measured, goal.met)).collect();
        let want = [
            (Some(0.2), true),
            (Some(0.2), true),
            (Some(0.25), false),
            (Some(0.25), false),
            (Some(1.4), false),
            (Some(2.0), true),
            (Some(0.0), true),
            (Some(0.0), true),
        ];
        assert_eq!(found, want, "{goals:?}");
        let table = text(&rows);
        assert!(
            table.contains("Kea, 1 thread") && table.contains("7 sent again"),
            "{table}"
        );
    }

    #[test]
    fn an_avalanche_that_was_cut_off_has_no_time() {
        let mut cut = run("avalanche", Server::Muster, Phase::Avalanche, 20.0);
        cut.acks = 9_990;
        let cases: Vec<Case> = CASES
            .into_iter()
            .filter(|case| case.name == "avalanche")
            .collect();
        let goals = goals(&cases, &rows(&cases, &[Server::Muster], &[cut]));
        let found: Vec<(Option<f64>, bool)> =
            goals.iter().map(|goal| (goal.measured, goal.met)).collect();
        assert_eq!(
            found,
            [(None, false), (Some(10.0), false), (Some(0.0), true)]
        );
    }
}
