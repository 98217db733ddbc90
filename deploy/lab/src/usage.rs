//! What the programs of a lab used of CPU and memory, from /proc.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::Result;

use crate::command::run;

/// Of all processes of one name on the lab's hosts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    pub processes: usize,
    /// User and system time since their start, of ended children too.
    pub cpu_secs: f64,
    /// Resident memory; shared pages count by share (PSS), so that PostgreSQL's buffers count once.
    pub memory_bytes: u64,
}

/// Usage by program name, of everything on these hosts.
pub fn measure(namespaces: &[String]) -> Result<BTreeMap<String, Usage>> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let mut all: BTreeMap<String, Usage> = BTreeMap::new();
    let mut found: Vec<Stat> = Vec::new();
    for namespace in namespaces {
        let pids = run(Command::new("ip").args(["netns", "pids", namespace]))?;
        found.extend(pids.lines().filter_map(|pid| Stat::read(pid.trim())));
    }
    for stat in &found {
        // A parent's count of ended children overlaps nothing, as those are gone. Only a head of its group
        // speaks for its dead: a program that merely started another one does not.
        let heads = !found
            .iter()
            .any(|other| other.pid == stat.parent && other.name == stat.name);
        let dead = if heads && stat.name == "postgres" {
            stat.dead_ticks
        } else {
            0
        };
        let usage = all.entry(stat.name.clone()).or_default();
        usage.processes += 1;
        usage.cpu_secs += (stat.ticks + dead) as f64 / ticks_per_second;
        usage.memory_bytes += memory(&stat.pid);
    }
    Ok(all)
}

struct Stat {
    pid: String,
    parent: String,
    name: String,
    ticks: u64,
    dead_ticks: u64,
}

impl Stat {
    /// None when the process has ended meanwhile.
    fn read(pid: &str) -> Option<Self> {
        Self::parse(
            pid,
            &std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?,
        )
    }

    /// proc_pid_stat(5). The name, in parentheses, may hold anything.
    fn parse(pid: &str, text: &str) -> Option<Self> {
        let (head, rest) = text.rsplit_once(") ")?;
        let name = head.split_once('(')?.1.to_owned();
        // The rest begins with field 3.
        let fields: Vec<&str> = rest.split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        Some(Self {
            pid: pid.to_owned(),
            parent: (*fields.get(1)?).to_owned(),
            name,
            ticks: ticks(14)? + ticks(15)?,
            dead_ticks: ticks(16)? + ticks(17)?,
        })
    }
}

fn memory(pid: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kib.unwrap_or_default() * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stat_line_parses_whatever_the_name() {
        let line = "42 (a) b (c) S 7 42 42 0 -1 4194560 1 2 3 4 100 20 30 4 20 0 1 0 99 0 0";
        let stat = Stat::parse("42", line).expect("it parses");
        assert_eq!((stat.name.as_str(), stat.parent.as_str()), ("a) b (c", "7"));
        assert_eq!((stat.ticks, stat.dead_ticks), (120, 34));
        assert!(Stat::parse("1", "1 (x").is_none());
        assert!(Stat::parse("1", "1 (x) S 2").is_none());
    }

    #[test]
    fn our_own_memory_is_not_nothing() {
        assert!(memory("self") > 100 * 1024);
        assert_eq!(memory("0"), 0);
    }
}
