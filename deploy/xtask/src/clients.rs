//! The client stage of `cargo xtask test`: real DHCP clients against region and rack, each on a host of its own.
//!
//! dhclient, udhcpc, dhcpcd and systemd-networkd each live through a lease (get it, renew it, lose power and come back,
//! give it up), decline an address that somebody else has, and do the first again behind a relay agent. All cases run
//! at the same time. iPXE's and OVMF's own clients are in the stage `lab`, where real firmware boots with them.

mod life;
mod programs;

use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{BootNetwork, CLIENT_INTERFACE, DhcpHost, Process, RELAY_INTERFACES, RelayHost};
use std::process::Stdio;

use crate::checks::{Score, finish_logs};
use crate::dhcp_lab::{DhcpLab, Recorder, tool};
use life::Stage;
use programs::{DHCLIENT, DHCPCD, NETWORKD, Program, UDHCPC};

/// The shortest the API allows: T1 is at 15 s, so that a client that can't be told to renew does it in time.
pub const LEASE_SECS: u32 = 30;
const DNS: &str = "10.99.0.53";
const PROGRAMS: [&Program; 4] = [&DHCLIENT, &UDHCPC, &DHCPCD, &NETWORKD];

/// What a client lives through.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Whole,
    Declines,
    Relayed,
}

const CASES: [(Case, &str); 3] = [
    (Case::Whole, "gets, renews, keeps and releases an address"),
    (Case::Declines, "declines an address that is in use"),
    (Case::Relayed, "the same through a relay with option 82"),
];

/// All cases whose name contains one of `filters`, or all; needs root and everything built.
pub fn run(filters: &[String]) -> Result<Score> {
    let network = BootNetwork::default();
    // No router is there; the client's host has that address, and the clients set their routes to it.
    let gateway = network.client().addr().to_string();
    let lease = LEASE_SECS.to_string();
    let subnet = [
        ("gateway_ip", gateway.as_str()),
        ("dns_servers", DNS),
        ("lease_secs", &lease),
    ];
    let mut here = DhcpLab::up("clients", network, &subnet)?;
    let wanted =
        |name: &str| filters.is_empty() || filters.iter().any(|filter| name.contains(filter));

    let relay = here.lab.add_relay()?;
    let lease = LEASE_SECS.to_string();
    let subnet = [("dns_servers", DNS), ("lease_secs", lease.as_str())];
    here.define_behind(&subnet)?;
    let mut cases: Vec<(String, &Program, Case, DhcpHost)> = Vec::new();
    let (mut victims, mut behind) = (Vec::new(), false);
    for program in PROGRAMS {
        for (case, what) in CASES {
            let name = format!("{}: {what}", program.name);
            if !wanted(&name) {
                continue;
            }
            if let (Case::Declines, Some(reason)) = (case, program.no_decline) {
                println!("SKIP {name}: {reason}");
                continue;
            }
            let host = match case {
                Case::Relayed => here.lab.add_client_behind(&relay)?,
                Case::Whole | Case::Declines => here.lab.add_client()?,
            };
            match case {
                Case::Whole => {}
                Case::Declines => victims.push(host.mac.clone()),
                Case::Relayed => behind = true,
            }
            cases.push((name, program, case, host));
        }
    }
    let squatter = here.lab.add_client()?;
    here.wait_serving()?;
    let _squatter = squat(&here, &squatter, &victims)?;
    let _relay = if behind {
        Some(relay_agent(&here, &relay)?)
    } else {
        None
    };
    let record = Recorder::start(
        &here.lab.names().rack(1),
        CLIENT_INTERFACE,
        &here.logs.join("wire.json"),
        &[],
    )?;
    let stage = Stage::new(&here.lab, &record, &relay, LEASE_SECS, DNS.parse()?);
    let results: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> = cases
            .iter()
            .map(|(name, program, case, host)| {
                let stage = &stage;
                let start = Instant::now();
                let done =
                    scope.spawn(move || (live(*case, stage, program, host), start.elapsed()));
                (name, done)
            })
            .collect();
        running
            .into_iter()
            .map(|(name, done)| (name, done.join()))
            .collect()
    });
    let mut score = Score::default();
    for (name, joined) in results {
        let Ok((result, time)) = joined else {
            println!("FAIL {name}: the case panicked");
            score.add(Score::of(false));
            continue;
        };
        let seconds = time.as_secs_f64();
        match &result {
            Ok(remark) => println!("PASS {name} ({seconds:.1} s): {remark}"),
            Err(error) => println!("FAIL {name} ({seconds:.1} s): {error:#}"),
        }
        score.add(Score::of(result.is_ok()));
    }
    record.end()?;
    here.lab.save_logs();
    let DhcpLab { lab, logs, .. } = here;
    drop(lab);
    finish_logs(&logs, score);
    Ok(score)
}

fn live(case: Case, stage: &Stage<'_>, program: &Program, host: &DhcpHost) -> Result<String> {
    match case {
        Case::Whole => life::whole(stage, program, host),
        Case::Declines => life::declines(stage, program, host),
        Case::Relayed => life::relayed(stage, program, host),
    }
}

/// ISC's relay agent, which adds option 82 (-a) with the name of the interface as circuit id.
fn relay_agent(here: &DhcpLab, relay: &RelayHost) -> Result<Process> {
    let [up, down] = RELAY_INTERFACES;
    let server = here.lab.network().rack(1).addr().to_string();
    let mut command = std::process::Command::new("ip");
    command.args(["netns", "exec", &relay.namespace, "dhcrelay", "-4", "-d"]);
    command.args(["--no-pid", "-a", "-iu", up, "-id", down, &server]);
    let log = here.logs.join("dhcrelay.log");
    let mut process = Process::start("dhcrelay", &log, &mut command, Stdio::null())?;
    process.check()?;
    ensure!(log.exists(), "dhcrelay has no log");
    Ok(process)
}

fn squat(here: &DhcpLab, host: &DhcpHost, victims: &[String]) -> Result<Process> {
    let mut command = tool(&host.namespace, "squat")?;
    command.arg(CLIENT_INTERFACE).args(victims);
    let log = here.logs.join("squatter.log");
    Process::start("the squatter", &log, &mut command, Stdio::null())
}
