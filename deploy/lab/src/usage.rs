//! What the programs of a lab used of CPU and memory, from /proc.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result};

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
    let found = all_of(namespaces)?;
    for stat in &found {
        let dead = stat.dead_ticks_of_head(&found);
        let usage = all.entry(stat.name.clone()).or_default();
        usage.processes += 1;
        usage.cpu_secs += (stat.ticks + dead) as f64 / ticks_per_second;
        usage.memory_bytes += memory(&stat.pid);
    }
    Ok(all)
}

/// Processor time since their start, in seconds.
#[derive(Clone, Debug, Default)]
pub struct Cpu {
    /// By program, ended threads and PostgreSQL's ended backends included. To the clock tick.
    pub programs: BTreeMap<String, f64>,
    /// By `program/thread`, of threads that live; PostgreSQL's processes by what they do. To the nanosecond.
    pub threads: BTreeMap<String, f64>,
    /// How far `programs` may be off in all: a clock tick for each process.
    pub rounding: f64,
}

impl Cpu {
    /// Seconds since `before`: what threads took, or, where more than rounding is missing in that because threads have
    /// ended, what programs took.
    pub fn since(&self, before: &Cpu) -> f64 {
        let sum = |of: &BTreeMap<String, f64>| of.values().sum::<f64>();
        let programs = sum(&self.programs) - sum(&before.programs);
        let threads = sum(&self.threads) - sum(&before.threads);
        if programs - threads > self.rounding {
            programs
        } else {
            threads.max(0.0)
        }
    }

    /// Seconds of each `program/thread` since `before`; of one that is new, all of it.
    pub fn threads_since(&self, before: &Cpu) -> BTreeMap<String, f64> {
        let of = |(label, seconds): (&String, &f64)| {
            let start = before.threads.get(label).copied().unwrap_or_default();
            (label.clone(), (seconds - start).max(0.0))
        };
        self.threads.iter().map(of).collect()
    }
}

/// The processor time of everything on these hosts.
pub fn cpu(namespaces: &[String]) -> Result<Cpu> {
    let ticks_per_second = rustix::param::clock_ticks_per_second() as f64;
    let found = all_of(namespaces)?;
    let mut cpu = Cpu {
        rounding: found.len() as f64 / ticks_per_second,
        ..Cpu::default()
    };
    for stat in &found {
        let ticks = stat.ticks + stat.dead_ticks_of_head(&found);
        *cpu.programs.entry(stat.name.clone()).or_default() += ticks as f64 / ticks_per_second;
        let tasks = std::fs::read_dir(format!("/proc/{}/task", stat.pid));
        for task in tasks.into_iter().flatten().flatten() {
            let text = |file: &str| std::fs::read_to_string(task.path().join(file));
            // Gone meanwhile, or a kernel without CONFIG_SCHED_INFO: the programs' sums hold without it.
            let (Ok(name), Ok(times)) = (text("comm"), text("schedstat")) else {
                continue;
            };
            let nanoseconds = times
                .split_whitespace()
                .next()
                .and_then(|n| n.parse::<f64>().ok());
            let label = match stat.name.as_str() {
                "postgres" => format!("postgres/{}", backend_type(&stat.pid)),
                program => format!("{program}/{}", name.trim()),
            };
            *cpu.threads.entry(label).or_default() += nanoseconds.unwrap_or_default() / 1e9;
        }
    }
    Ok(cpu)
}

/// What a process of PostgreSQL does, from its title: `postgres: walwriter`, `postgres: USER DATABASE ...`.
fn backend_type(pid: &str) -> String {
    let title = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let title = String::from_utf8_lossy(&title).replace('\0', " ");
    match title.strip_prefix("postgres: ") {
        None => "postmaster".to_owned(),
        Some(rest) if rest.contains("[local]") || rest.contains('(') => "backend".to_owned(),
        Some(rest) => rest.trim().to_owned(),
    }
}

/// The ids of the processes on a host.
pub fn processes(namespace: &str) -> Result<Vec<String>> {
    let pids = run(Command::new("ip").args(["netns", "pids", namespace]))?;
    Ok(pids.lines().map(|pid| pid.trim().to_owned()).collect())
}

/// The oldest process of this name on a host.
pub fn process_named(namespace: &str, name: &str) -> Result<String> {
    let found = processes(namespace)?
        .into_iter()
        .find(|pid| Stat::read(pid).is_some_and(|stat| stat.name == name));
    found.with_context(|| format!("no {name} runs on {namespace}"))
}

/// The most memory that a process has had resident (proc_pid_status(5)), since [`forget_peak`].
pub fn peak_bytes(pid: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("reading {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    Ok(kib.with_context(|| format!("{path} has no VmHWM"))? * 1024)
}

pub fn forget_peak(pid: &str) -> Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").with_context(|| format!("writing {path}"))
}

fn all_of(namespaces: &[String]) -> Result<Vec<Stat>> {
    let mut found: Vec<Stat> = Vec::new();
    for namespace in namespaces {
        found.extend(
            processes(namespace)?
                .iter()
                .filter_map(|pid| Stat::read(pid)),
        );
    }
    Ok(found)
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

    /// A parent's count of ended children overlaps nothing, as those are gone. Only a head of its group
    /// speaks for its dead: a program that merely started another one does not.
    fn dead_ticks_of_head(&self, all: &[Stat]) -> u64 {
        let heads = !all
            .iter()
            .any(|other| other.pid == self.parent && other.name == self.name);
        if heads && self.name == "postgres" {
            self.dead_ticks
        } else {
            0
        }
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
    fn time_of_ended_threads_is_not_lost() {
        let cpu = |program: f64, thread: f64| Cpu {
            programs: BTreeMap::from([("x".to_owned(), program)]),
            threads: BTreeMap::from([("x/x".to_owned(), thread)]),
            rounding: 0.01,
        };
        let before = cpu(1.0, 1.0);
        for (now, want) in [
            (cpu(1.51, 1.503), 0.503),
            (cpu(1.50, 1.508), 0.508),
            (cpu(2.0, 1.5), 1.0),
            (cpu(1.0, 0.9), 0.0),
        ] {
            let found = now.since(&before);
            assert!((found - want).abs() < 1e-9, "{found} {want}");
        }
        assert_eq!(cpu(2.0, 1.5).threads_since(&before)["x/x"], 0.5);
    }

    #[test]
    fn a_peak_is_remembered_until_it_is_forgotten() {
        let before = peak_bytes("self").expect("this process lives");
        drop(std::hint::black_box(vec![1_u8; 64 << 20]));
        assert!(peak_bytes("self").expect("it lives") >= before + (60 << 20));
        forget_peak("self").expect("its own");
        assert!(peak_bytes("self").expect("it lives") < before + (60 << 20));
        assert!(peak_bytes("0").is_err());
    }

    #[test]
    fn our_own_memory_is_not_nothing() {
        assert!(memory("self") > 100 * 1024);
        assert_eq!(memory("0"), 0);
    }
}
