//! `cargo xtask bench dhcp`: what a lease costs, here and there.
//!
//! Each run has a server of its own, fresh, in a pair of namespaces joined by one veth cable: server on one core,
//! perfdhcp on another, both with the best nice value. A steady load is offered twice: to new clients, each of whom needs a new lease, and to the
//! same clients again. An avalanche is 10,000 clients at once. Servers alternate within each case.
//!
//! CPU is user and system time of every process of the server, regiond and PostgreSQL included, from before the first
//! message to after the last, divided by the ACKs that perfdhcp saw.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Args;
use lab::kvm::Accelerator;
use lab::usage::{self, Cpu};
use lab::{BootNetwork, Lab, LabConfig};
use rustix::process::{getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::Serialize;

use super::case::{CASES, Case, Shape};
use super::peers::{self, Server, Site};
use super::perfdhcp::{self, FIRST_MAC, Latency, Load, Output, PROBE_MAC, Path4, Plan};
use super::report::{self, Goal, Setting};
use super::{plot, table};
use crate::packages;
use crate::workspace::{self, Profile};

const ROUNDS: u8 = 3;
/// How long a steady load is offered.
const SECONDS: u32 = 6;
const QUICK_SECONDS: u32 = 3;
/// A server that has not served them all by then does not.
const AVALANCHE_LIMIT_SECS: u32 = 60;
const START_LIMIT: Duration = Duration::from_secs(30);
/// What starts beside a server (feeds, caches, housekeeping) is over by then.
const SETTLE: Duration = Duration::from_secs(1);
/// Server and load alike: other work of the machine disturbs them less.
const NICE: i32 = -20;
const RACK_HTTP_PORT: u16 = 5248;
const SERVER_CORE: usize = 0;
const CLIENT_CORE: usize = 1;

#[derive(Args)]
pub struct Dhcp {
    /// Only these servers.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Server>,
    /// One round of the large pool and the avalanche, Muster, Kea and the floor: about a minute.
    #[arg(long)]
    quick: bool,
    /// Only cases whose name has one of these in it, such as "64k" or "avalanche".
    #[arg(long, value_name = "WORDS", value_delimiter = ',')]
    case: Vec<String>,
    #[arg(long, default_value_t = ROUNDS, value_parser = clap::value_parser!(u8).range(1..=20))]
    rounds: u8,
    /// Exchanges per second that Muster and Kea are offered.
    #[arg(long)]
    rate: Option<u32>,
    /// Measure what stands in the target folder, without building.
    #[arg(long)]
    no_build: bool,
    /// Write no file and change no page.
    #[arg(long)]
    dry: bool,
    /// Packages are there, the binaries are built, and the report goes to this program's target folder.
    #[arg(long, hide = true)]
    prepared: bool,
}

/// What the clients of a run were.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Every client is new: each needs a lease written.
    New,
    /// Every client has its lease already.
    Again,
    Avalanche,
}

/// One run of perfdhcp against one server.
#[derive(Clone, Debug, Serialize)]
pub struct Run {
    pub case: &'static str,
    pub server: Server,
    pub round: u8,
    pub phase: Phase,
    pub command: String,
    /// Exchanges per second; none in an avalanche.
    pub offered: Option<u32>,
    pub clients: u32,
    pub discovers: u64,
    pub offers: u64,
    pub requests: u64,
    pub acks: u64,
    /// Addresses that perfdhcp saw given twice; none where clients come again.
    pub given_twice: Option<u64>,
    /// From the first message to the last answer.
    pub seconds: f64,
    pub sent_again: Option<u64>,
    pub cpu_seconds: f64,
    /// Microseconds per ACK.
    pub cpu_us: f64,
    /// The same by program and thread.
    pub cpu_us_of: BTreeMap<String, f64>,
    pub offer_ms: Option<Latency>,
    pub ack_ms: Option<Latency>,
    /// Of Muster: what its rack counted of DHCP meanwhile, and commits and rows that reached the database.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub counted: BTreeMap<String, f64>,
}

/// What is written. The goals stay last.
#[derive(Serialize)]
struct Report {
    name: &'static str,
    quick: bool,
    rounds: u8,
    setting: Setting,
    cases: Vec<Case>,
    failures: Vec<String>,
    runs: Vec<Run>,
    table: Vec<table::Row>,
    goals: Vec<Goal>,
}

impl Dhcp {
    pub fn run(self) -> Result<ExitCode> {
        if !self.prepared {
            packages::ensure_bench()?;
            if !self.no_build {
                workspace::build(Profile::Release)?;
                super::build_programs()?;
            }
        }
        if !workspace::is_root() {
            let mut arguments: Vec<String> = std::env::args().skip(1).collect();
            arguments.push("--prepared".to_owned());
            return workspace::as_root(&arguments);
        }
        ensure!(
            std::thread::available_parallelism()?.get() > CLIENT_CORE,
            "this needs two cores: one for the server, one for the load"
        );
        let servers = self.servers();
        let cases = self.cases();
        ensure!(
            !cases.is_empty(),
            "no case has that name: {}",
            CASES.map(|case| case.name).join(", ")
        );
        let rounds = if self.quick { 1 } else { self.rounds };
        let (mut runs, mut failures) = (Vec::new(), Vec::new());
        sessions_nice("self", NICE);
        for case in &cases {
            for round in 1..=rounds {
                for server in &servers {
                    println!(
                        "{}, round {round} of {rounds}: {}",
                        case.name,
                        server.name()
                    );
                    match self.measure(*case, *server, round) {
                        Ok(found) => {
                            found.iter().for_each(table::print_run);
                            runs.extend(found);
                        }
                        Err(error) => {
                            let failure = format!(
                                "{}, {}, round {round}: {error:#}",
                                case.name,
                                server.name()
                            );
                            println!("  FAILED: {failure}");
                            failures.push(failure);
                        }
                    }
                }
            }
        }
        sessions_nice("self", 0);
        let table = table::rows(&cases, &servers, &runs);
        let goals = table::goals(&cases, &table);
        println!("\n{}", table::text(&table));
        println!("{}", report::goals_text(&goals));
        let report = Report {
            name: "dhcp",
            quick: self.quick,
            rounds,
            setting: Setting::now(peers::versions()?)?,
            cases,
            failures,
            runs,
            table,
            goals,
        };
        let whole = !self.quick
            && self.only.is_empty()
            && self.case.is_empty()
            && report.failures.is_empty();
        if !self.dry {
            self.write(&report, whole)?;
        }
        Ok(if report.failures.is_empty() {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        })
    }

    fn write(&self, report: &Report, whole: bool) -> Result<()> {
        report::write("dhcp", report, whole)?;
        if whole {
            report::document(
                "bench dhcp",
                &table::markdown(&report.table, &report.goals, &report.setting),
            )?;
            let docs = workspace::root()?.join("docs/performance-dhcp.svg");
            report::put(docs, &plot::svg(&report.table))?;
        }
        Ok(())
    }

    fn servers(&self) -> Vec<Server> {
        match (&self.only[..], self.quick) {
            ([], true) => vec![Server::Muster, Server::Kea, Server::Floor],
            ([], false) => vec![
                Server::Muster,
                Server::Kea,
                Server::Kea2,
                Server::Isc,
                Server::Dnsmasq,
                Server::Floor,
            ],
            (only, _) => only.to_vec(),
        }
    }

    fn cases(&self) -> Vec<Case> {
        let wanted = |case: &Case| match (&self.case[..], self.quick) {
            ([], true) => ["64k", "avalanche"].contains(&case.name),
            ([], false) => true,
            (words, _) => words.iter().any(|word| case.name.contains(word.as_str())),
        };
        CASES.into_iter().filter(wanted).collect()
    }

    /// A fresh server, and all phases of the case.
    fn measure(&self, case: Case, server: Server, round: u8) -> Result<Vec<Run>> {
        let stand = Stand::up(case, server)?;
        let mut runs = Vec::new();
        match case.shape {
            Shape::Avalanche => {
                runs.push(stand.load(round, Phase::Avalanche, Load::Avalanche, None)?);
            }
            Shape::Steady => {
                let rate = match (server, self.rate) {
                    (Server::Muster | Server::Kea | Server::Kea2 | Server::Floor, Some(rate)) => {
                        rate
                    }
                    _ => server.rate(case.clients),
                };
                let most = rate * if self.quick { QUICK_SECONDS } else { SECONDS };
                let new = case.clients.min(most);
                // The large pool is not all asked for again: the same clients as before are.
                let again = if new < case.clients { new } else { most };
                for (phase, exchanges) in [(Phase::New, new), (Phase::Again, again)] {
                    let load = Load::Steady { rate, exchanges };
                    runs.push(stand.load(round, phase, load, Some(rate))?);
                    std::thread::sleep(SETTLE);
                }
            }
        }
        Ok(runs)
    }
}

/// One server and the clients' host beside it. Dropping it removes both.
struct Stand {
    lab: Lab,
    case: Case,
    server: Server,
}

impl Stand {
    fn up(case: Case, server: Server) -> Result<Self> {
        let network = network(case.pool)?;
        let name = format!("bench{}", std::process::id());
        let config = LabConfig {
            name: name.clone(),
            racks: 1,
            machines: Vec::new(),
            network,
            base: workspace::lab_base(),
            logs: workspace::lab_logs(&name)?,
            // There is no machine.
            accelerator: Accelerator::Tcg,
        };
        let binaries = workspace::binaries(Profile::Release)?;
        // Whatever starts from here on, and its children and threads, stay on the server's core.
        let pinned = Pinned::to(SERVER_CORE)?;
        let mut lab = Lab::start(&config)?;
        lab.connect_directly()?;
        perfdhcp::write_templates(lab.folder())?;
        let site = Site {
            network,
            reservations: reservations(&case),
        };
        let mut process = server.start(&mut lab, &site, &binaries)?;
        drop(pinned);
        for host in [lab.names().region(), lab.names().rack(1)] {
            usage::processes(&host)?
                .iter()
                .for_each(|pid| sessions_nice(pid, NICE));
        }
        let stand = Self { lab, case, server };
        if case.path == Path4::Local {
            stand.apply_client_rules()?;
        }
        stand.wait_until_it_serves(process.as_mut())?;
        std::thread::sleep(SETTLE);
        Ok(stand)
    }

    fn on_client(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.lab.names().client()]);
        command.args(["nice", "-n", &NICE.to_string()]);
        command.args(["taskset", "-c", &CLIENT_CORE.to_string(), program]);
        command
    }

    fn apply_client_rules(&self) -> Result<()> {
        let file = self.lab.folder().join("client.nft");
        let client = self.lab.network().client().addr();
        let rules = perfdhcp::client_rules(client, self.case.lost);
        std::fs::write(&file, rules).with_context(|| format!("writing {}", file.display()))?;
        let output = self
            .on_client("nft")
            .arg("-f")
            .arg(&file)
            .output()
            .context("starting nft")?;
        ensure!(
            output.status.success(),
            "nft: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        Ok(())
    }

    fn plan<'a>(&self, load: Load, clients: u32, unique: bool, folder: &'a Path) -> Plan<'a> {
        let network = self.lab.network();
        Plan {
            path: self.case.path,
            load,
            clients,
            first_mac: FIRST_MAC,
            server: network.rack(1).addr(),
            client: network.client().addr(),
            unique,
            folder,
        }
    }

    fn wait_until_it_serves(&self, mut process: Option<&mut lab::Process>) -> Result<()> {
        let start = Instant::now();
        let probe = Load::Steady {
            rate: 100,
            exchanges: 1,
        };
        let mut plan = self.plan(probe, 1, false, self.lab.folder());
        plan.first_mac = PROBE_MAC;
        loop {
            if let Some(process) = process.as_deref_mut() {
                process.check()?;
            }
            let (output, _) = self.perfdhcp(&plan)?;
            // It may send a few more than it was asked for.
            if output.request.received >= 1 {
                return Ok(());
            }
            ensure!(
                start.elapsed() < START_LIMIT,
                "{} gives no lease after {} s",
                self.server.name(),
                START_LIMIT.as_secs()
            );
        }
    }

    fn perfdhcp(&self, plan: &Plan) -> Result<(Output, String)> {
        let mut command = self.on_client("timeout");
        let limit = AVALANCHE_LIMIT_SECS.to_string();
        let arguments = plan.arguments();
        command
            .args(["--signal=INT", &limit, perfdhcp::PROGRAM])
            .args(&arguments);
        let room = Room::make()?;
        let output = command
            .stdin(Stdio::null())
            .output()
            .context("starting perfdhcp")?;
        drop(room);
        let text = String::from_utf8_lossy(&output.stdout);
        let output = Output::parse(&text).with_context(|| {
            format!(
                "perfdhcp ({}): {}",
                output.status,
                String::from_utf8_lossy(&output.stderr).trim()
            )
        })?;
        Ok((
            output,
            format!("{} {}", perfdhcp::PROGRAM, arguments.join(" ")),
        ))
    }

    fn cpu(&self) -> Result<Cpu> {
        let names = self.lab.names();
        usage::cpu(&[names.region(), names.rack(1)])
    }

    fn load(&self, round: u8, phase: Phase, load: Load, offered: Option<u32>) -> Result<Run> {
        let unique = phase != Phase::Again;
        let plan = self.plan(load, self.case.clients, unique, self.lab.folder());
        let counted_before = self.counted();
        let before = self.cpu()?;
        let (output, command) = self.perfdhcp(&plan)?;
        let after = self.cpu()?;
        let mut counted = self.counted();
        for (name, value) in &mut counted {
            *value -= counted_before.get(name).copied().unwrap_or_default();
        }
        counted.retain(|_, value| *value != 0.0);
        let acks = output.request.received;
        let per_ack = |seconds: f64| seconds * 1e6 / acks.max(1) as f64;
        let cpu_seconds = after.since(&before);
        let mut cpu_us_of = after.threads_since(&before);
        cpu_us_of
            .values_mut()
            .for_each(|seconds| *seconds = per_ack(*seconds));
        cpu_us_of.retain(|_, us| *us >= 0.05);
        Ok(Run {
            case: self.case.name,
            server: self.server,
            round,
            phase,
            // The lab's folder has this process's number in it.
            command: command.replace(&*self.lab.folder().to_string_lossy(), "LAB"),
            offered,
            clients: self.case.clients,
            discovers: output.discover.sent,
            offers: output.discover.received,
            requests: output.request.sent,
            acks,
            given_twice: unique.then_some(output.request.non_unique),
            seconds: output.seconds().unwrap_or_default(),
            sent_again: output.avalanche.map(|avalanche| avalanche.sent_again),
            cpu_seconds,
            cpu_us: per_ack(cpu_seconds),
            cpu_us_of,
            offer_ms: output.discover.latency(),
            ack_ms: output.request.latency(),
            counted,
        })
    }

    /// Of Muster, as far as it says: it explains a figure, it does not make one.
    fn counted(&self) -> BTreeMap<String, f64> {
        let mut counted = BTreeMap::new();
        if self.server != Server::Muster {
            return counted;
        }
        let host = self.lab.names().rack(1);
        let page = lab::host::on_network_of(&host, || {
            let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, RACK_HTTP_PORT))?;
            stream.set_read_timeout(Some(Duration::from_secs(2)))?;
            stream
                .write_all(b"GET /metrics HTTP/1.1\r\nHost: rack\r\nConnection: close\r\n\r\n")?;
            let mut page = String::new();
            // What came before a connection that stays open is the page.
            stream.read_to_string(&mut page).ok();
            Ok(page)
        });
        let page = page.unwrap_or_default();
        let lines = page
            .lines()
            .filter(|line| line.starts_with("muster_") && line.contains("dhcp"));
        counted.extend(lines.filter_map(|line| {
            let (name, value) = line.rsplit_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        }));
        let sql = "select count(*), coalesce(sum(cardinality(verdicts)), 0) from lease_batch";
        let rows = self.lab.query(sql).unwrap_or_default();
        if let Some((commits, rows)) = rows.first().and_then(|row| row.split_once('|')) {
            for (name, value) in [("lease commits", commits), ("lease rows", rows)] {
                counted.extend(value.parse().map(|value| (name.to_owned(), value)));
            }
        }
        counted
    }
}

/// This thread, and what it starts, on one core and ahead of others for as long as this lives.
struct Pinned {
    before: CpuSet,
    nice: i32,
}

impl Pinned {
    fn to(core: usize) -> Result<Self> {
        let before = sched_getaffinity(None).context("asking for this thread's cores")?;
        let mut one = CpuSet::new();
        one.set(core);
        sched_setaffinity(None, &one).context("pinning this thread")?;
        let nice = getpriority_process(None).context("asking for this thread's nice value")?;
        let pinned = Self { before, nice };
        setpriority_process(None, NICE).context("changing this thread's nice value")?;
        Ok(pinned)
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        sched_setaffinity(None, &self.before).ok();
        setpriority_process(None, self.nice).ok();
    }
}

/// Room in the receive buffers of sockets that are opened while this lives, which are perfdhcp's: the servers' are
/// open already. Its one socket stands for thousands of machines, and takes 160 messages by default: a server whose
/// answers come in bursts would be charged with what is lost there.
struct Room {
    before: String,
}

impl Room {
    const SETTING: &str = "/proc/sys/net/core/rmem_default";
    const BYTES: &str = "33554432";

    fn make() -> Result<Self> {
        let before = std::fs::read_to_string(Self::SETTING).context("reading rmem_default")?;
        std::fs::write(Self::SETTING, Self::BYTES).context("setting rmem_default")?;
        Ok(Self { before })
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        std::fs::write(Self::SETTING, &self.before).ok();
    }
}

/// The nice value of the whole session of a process, where the kernel shares time by sessions (sched(7), autogroup):
/// PostgreSQL makes a session of its own, in which its own value would mean nothing to others.
fn sessions_nice(pid: &str, nice: i32) {
    std::fs::write(format!("/proc/{pid}/autogroup"), nice.to_string()).ok();
}

/// A /14, which has room for the hosts, the range, and reservations outside of it.
fn network(pool: u32) -> Result<BootNetwork> {
    let subnet = "172.20.0.0/14".parse().context("a subnet")?;
    let first = u32::from(Ipv4Addr::new(172, 20, 16, 0));
    let range = (Ipv4Addr::from(first), Ipv4Addr::from(first + pool - 1));
    BootNetwork::new(subnet, Some(range))
}

fn reservations(case: &Case) -> Vec<([u8; 6], Ipv4Addr)> {
    if !case.reserved {
        return Vec::new();
    }
    let first = u32::from(Ipv4Addr::new(172, 22, 0, 1));
    let clients = (0..case.clients).filter(|number| number % 10 < 3);
    let reserved = clients.zip(first..);
    reserved
        .map(|(number, address)| (perfdhcp::mac_of(FIRST_MAC, number), Ipv4Addr::from(address)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_clients_in_ten_are_reserved_outside_of_the_range() {
        for case in CASES {
            let found = reservations(&case);
            let want = if case.reserved {
                case.clients * 3 / 10
            } else {
                0
            };
            assert_eq!(found.len(), want as usize, "{}", case.name);
            let network = network(case.pool).expect("a network");
            assert_eq!(
                u32::from(network.last) - u32::from(network.first) + 1,
                case.pool
            );
            assert!(
                found
                    .iter()
                    .all(|(_, ip)| *ip > network.last && network.subnet.contains(ip))
            );
        }
    }

    #[test]
    fn the_report_ends_in_its_goals() {
        let report = Report {
            name: "dhcp",
            quick: true,
            rounds: 1,
            setting: Setting {
                date: "2026-11-22".to_owned(),
                commit: String::new(),
                dirty: false,
                kernel: String::new(),
                cpu: String::new(),
                cores: 2,
                command: String::new(),
                versions: Vec::new(),
            },
            cases: vec![CASES[0]],
            failures: Vec::new(),
            runs: Vec::new(),
            table: Vec::new(),
            goals: vec![Goal::at_most("x", 0.2, Some(0.3))],
        };
        let text = serde_json::to_string(&report).expect("it is JSON");
        let want = r#""goals":[{"name":"x","goal":"<= 0.2","measured":0.3,"met":false}]}"#;
        assert!(text.ends_with(want), "{text}");
    }
}
