//! What the benches share: a quiet thread, its processor time, and runs as lines of JSON.
//!
//! The programs here measure and print; `cargo xtask bench` runs them, makes tables and judges.

pub mod datagram;

use std::io::Write;

use anyhow::{Context, Result};
use rustix::process::setpriority_process;
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// Keeps the calling thread, and threads that it starts, on one core.
pub fn stay_on(core: usize) -> Result<()> {
    let mut cores = CpuSet::new();
    cores.set(core);
    sched_setaffinity(None, &cores).with_context(|| format!("pinning a thread to core {core}"))
}

/// Ahead of other work of the machine, where that is allowed: for the calling thread and those it starts.
pub fn go_first() {
    const NICE: i32 = -20;
    if setpriority_process(None, NICE).is_ok() {
        // Where the kernel shares time by sessions (sched(7), autogroup), the session's value counts.
        std::fs::write("/proc/self/autogroup", NICE.to_string()).ok();
    }
}

/// Processor time of the calling thread, in nanoseconds.
pub fn thread_cpu_ns() -> u64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs()
}

/// One line of JSON on stdout.
pub fn print(run: &impl Serialize) -> Result<()> {
    let line = serde_json::to_string(run).context("writing a run")?;
    writeln!(std::io::stdout(), "{line}").context("printing a run")
}
