//! perfdhcp on the clients' host: exchanges and renewals of new clients, and its own check for addresses given twice.
//!
//! Each round has clients of its own (`-b`), and every client asks once: perfdhcp's check (`-u`) takes an address that
//! one client is given again for a duplicate.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use lab::{CLIENT_INTERFACE, Process};

use crate::dhcp_lab::DhcpLab;

/// Exchanges and renewals a second.
const RATE: u32 = 100;
const RENEWALS: u32 = 35;
/// More than a round asks for.
const CLIENTS: u32 = 60_000;
/// After the last query; its answers may wait for a region.
const TAIL: Duration = Duration::from_secs(1);
const END_LIMIT: Duration = Duration::from_secs(20);

pub struct Load {
    process: Process,
    log: PathBuf,
    length: Duration,
    started: f64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    pub sent: u64,
    pub received: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Report {
    /// Of REQUESTs, without the renewals.
    pub exchanges: Count,
    pub renewals: Count,
    pub not_unique: u64,
    /// About when it sent its last query, Unix time.
    pub last_query_secs: f64,
}

impl Load {
    /// Starts to ask; `number` makes the round's MACs.
    pub fn start(here: &DhcpLab, number: usize, length: Duration) -> Result<Self> {
        let log = here.logs.join(format!("perfdhcp-{number}.log"));
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &here.lab.names().client(), "perfdhcp"]);
        command.args(["-4", "-u", "-l", CLIENT_INTERFACE, "-g", "single"]);
        command.args(["-r", &RATE.to_string(), "-f", &RENEWALS.to_string()]);
        command.args(["-R", &CLIENTS.to_string()]);
        let (high, low) = (number >> 8 & 0xff, number & 0xff);
        command.args(["-b", &format!("mac=02:4c:{high:02x}:{low:02x}:00:00")]);
        command.args(["-p", &length.as_secs().to_string()]);
        command.args(["-W", &TAIL.as_micros().to_string()]);
        let process = Process::start("perfdhcp", &log, &mut command, Stdio::null())?;
        let started = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .context("the clock stands before 1970")?;
        Ok(Self {
            process,
            log,
            length,
            started: started.as_secs_f64(),
        })
    }

    /// Waits for its end. Losses are no failure: its exit status says that there were some.
    pub fn end(mut self) -> Result<Report> {
        self.process.wait_end(self.length + TAIL + END_LIMIT)?;
        let text = std::fs::read_to_string(&self.log)
            .with_context(|| format!("reading {}", self.log.display()))?;
        let mut report = parse(&text)
            .with_context(|| format!("perfdhcp gave no report: {}", self.log.display()))?;
        report.last_query_secs = self.started + self.length.as_secs_f64();
        Ok(report)
    }
}

/// The final report. None: there is none.
fn parse(text: &str) -> Option<Report> {
    const SECTION: &str = "***Statistics for: ";
    let mut report = None;
    let mut section = "";
    for line in text.lines() {
        if let Some(name) = line.strip_prefix(SECTION) {
            section = name.trim_end_matches('*');
            continue;
        }
        let Some((name, value)) = line.split_once(": ") else {
            continue;
        };
        let Ok(value) = value.trim().parse::<u64>() else {
            continue;
        };
        let report = report.get_or_insert_with(Report::default);
        let count = match section {
            "REQUEST-ACK" => &mut report.exchanges,
            "REQUEST-ACK (renewal)" => &mut report.renewals,
            _ => continue,
        };
        match name {
            "sent packets" => count.sent = value,
            "received packets" => count.received = value,
            "non unique addresses" => report.not_unique += value,
            _ => {}
        }
    }
    report.filter(|report| report.exchanges.sent > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_understood() {
        let text = "***Statistics for: DISCOVER-OFFER***\nsent packets: 1999\nreceived packets: 1990\n\
                    non unique addresses: 0\n\n***Statistics for: REQUEST-ACK***\nsent packets: 1990\n\
                    received packets: 1980\ndrops: 10\nnon unique addresses: 2\n\n\
                    ***Statistics for: REQUEST-ACK (renewal)***\nsent packets: 398\nreceived packets: 390\n\
                    non unique addresses: 1\n";
        let want = Report {
            exchanges: Count {
                sent: 1990,
                received: 1980,
            },
            renewals: Count {
                sent: 398,
                received: 390,
            },
            not_unique: 3,
            last_query_secs: 0.0,
        };
        assert_eq!(parse(text), Some(want));
        assert_eq!(parse("interface boot not found"), None);
    }
}
