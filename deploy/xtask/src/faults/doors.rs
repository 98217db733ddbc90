//! The doors of rack and region, with a host in each that lets nobody through: HTTP, the API, passwords, the port of racks.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{BmcKind, plan, usage};
use serde_json::{Value, json};

use super::attack::{
    ATTACK_LIMIT, Attack, Growth, Numbers, REGION_API, neighbour, number, outsider, rack_numbers,
    region_numbers, wait_given_back, wait_heard,
};
use super::bench::{Bench, Case, STEP_LIMIT, held_after};
use super::network::{RACK_HTTP, http, rack, raw_http};
use super::ordinary::{clients, metadata};

pub const CASES: &[(&str, Case)] = &[
    (
        "8,700 half request heads keep nobody from an image, and all places are free again",
        half_heads,
    ),
    (
        "40 anonymous slow POSTs through the rack: metadata and loaders within a second",
        slow_posts,
    ),
    (
        "200 anonymous POSTs of 2 MiB at the region: little memory, and an operator is answered",
        large_posts,
    ),
    (
        "six password guessers, direct and through the rack: an operator logs in",
        guessers,
    ),
];

/// Racks and regions are started anew in these.
pub const RESTARTS: &[(&str, Case)] = &[
    (
        "64 strange and 4,100 silent connections at the racks' port: racks enrol and come back",
        racks_port,
    ),
    (
        "1,300 idle connections at 1,024 open files stop neither HTTP nor look-ups nor probes",
        few_files,
    ),
];

const LINK_PORT: u16 = 5250;
/// For a client beside an attack.
const AT_ONCE_MS: f64 = 1_000.0;

fn half_heads(bench: &mut Bench) -> Result<()> {
    const HEADS: u64 = 8_700;
    let attacker = neighbour(bench, 1)?;
    let clients = clients(bench, &["http", "tftp"], 0.2)?;
    let before = rack_numbers(bench)?;
    let server = bench.lab.network().rack(1).addr();
    let kind = format!("half_heads=4000/{HEADS}");
    let mut attack = Attack::start(&attacker, server, &[&kind])?;
    attack.wait_for(bench, "half_heads", HEADS)?;
    clients.expect(bench, "beside half heads", 10, STEP_LIMIT)?;
    drop(clients);
    wait_heard(bench, &before, "driver_accepted_total", HEADS * 9 / 10)?;
    // The attacker closes nothing.
    wait_given_back(bench, "http_connections_new", 1, Duration::from_secs(20))?;
    wait_given_back(bench, "driver_streams", 32, Duration::from_secs(20))
}

fn slow_posts(bench: &mut Bench) -> Result<()> {
    const POSTS: u64 = 40;
    let known = bench.machine(
        BmcKind::Model { silent_after: None },
        held_after("user-data"),
    )?;
    bench.commission(&known)?;
    bench.step(&known.machine, "user-data")?;
    let mut setup = metadata(&known)?;
    setup["period"] = json!(0.2);
    let attacker = neighbour(bench, 1)?;
    let mut clients = clients(bench, &["http"], 0.2)?;
    clients.start(bench, &known.machine.namespace, &["metadata"], &setup)?;
    clients.expect(bench, "in quiet", 1, STEP_LIMIT)?;

    let before = rack_numbers(bench)?;
    let server = bench.lab.network().rack(1).addr();
    let kind = format!("slow_posts=400/{POSTS}");
    let mut attack = Attack::start(&attacker, server, &[&kind])?;
    attack.wait_for(bench, "slow_posts", POSTS)?;
    // One that the rack has not: it asks its region for it.
    let start = Instant::now();
    let client = bench.lab.names().client();
    let (status, _) = http(&client, rack(RACK_HTTP), "/images/poweroff.c32", "")?;
    let ms = start.elapsed().as_secs_f64() * 1000.0;
    ensure!(
        status == 200 && ms < AT_ONCE_MS,
        "a new loader: {status}, {ms:.0} ms"
    );
    let waits = clients.expect(bench, "beside slow POSTs", 10, STEP_LIMIT)?;
    for (kind, ms) in waits {
        ensure!(ms < AT_ONCE_MS, "{kind} took {ms:.0} ms");
    }
    wait_heard(bench, &before, "proxy_connections_total", POSTS)?;
    drop((clients, attack));
    region_gives_back(bench, "requests_behind_racks")?;
    known.machine.go("user-data")?;
    bench.expect_ready(&known)
}

/// Waits until nobody holds a place of this name.
fn region_gives_back(bench: &mut Bench, place: &str) -> Result<()> {
    let what = format!("all places of {place} are free");
    bench.until(&what, STEP_LIMIT, |bench| {
        let held = held(&region_numbers(bench)?, place)?;
        ensure!(held == 0, "{held} are held");
        Ok(Some(()))
    })
}

/// An error unless so many more places of this name were taken: then nothing was tested.
fn region_let_in(bench: &Bench, before: &Numbers, place: &str, more: u64) -> Result<()> {
    let name = format!("places_entered_total{{of=\"{place}\"}}");
    let entered = number(&region_numbers(bench)?, &name)? - number(before, &name)?;
    ensure!(
        entered >= more,
        "{entered} of {place} were taken: nothing is tested"
    );
    Ok(())
}

fn held(numbers: &Numbers, place: &str) -> Result<u64> {
    number(numbers, &format!("places_held{{of=\"{place}\"}}"))
}

fn large_posts(bench: &mut Bench) -> Result<()> {
    const POSTS: u64 = 200;
    const HOSTS: u64 = 8;
    /// The strangers' budget is 8 MiB.
    const GROWTH_MIB: u64 = 50;
    let attacker = outsider(bench, 1)?;
    let before = region_numbers(bench)?;
    let growth = Growth::of_region(bench)?;
    let kind = format!("large_posts=100/{}", POSTS / HOSTS);
    let kinds = vec![kind.as_str(); HOSTS as usize];
    let mut attack = Attack::start(&attacker, plan::region_mgmt().addr(), &kinds)?;
    attack.wait_for(bench, "large_posts", POSTS)?;
    for _ in 0..5 {
        let start = Instant::now();
        bench.lab.region().get("machines/", &[])?;
        let ms = start.elapsed().as_secs_f64() * 1000.0;
        ensure!(ms < 2.0 * AT_ONCE_MS, "an operator waited {ms:.0} ms");
    }
    region_let_in(bench, &before, "api_connections", POSTS)?;
    growth.ensure_below("regiond", GROWTH_MIB)?;
    // The attacker closes nothing.
    region_gives_back(bench, "body_octets_strangers")
}

fn guessers(bench: &mut Bench) -> Result<()> {
    const GUESSERS: usize = 6;
    const GUESSES: u64 = 120;
    /// Free ones of the source, and what its waits let through meanwhile.
    const CHECKS_MAX: u64 = 12;
    let before = region_numbers(bench)?;
    let direct = outsider(bench, 1)?;
    let region = plan::region_mgmt().addr();
    let kind = format!("guesses:{REGION_API}=100");
    let mut direct = Attack::start(&direct, region, &[kind.as_str(); GUESSERS])?;
    let through = neighbour(bench, 1)?;
    let server = bench.lab.network().rack(1).addr();
    let mut through = Attack::start(&through, server, &["guesses=100"; GUESSERS])?;
    direct.wait_for(bench, "guesses", GUESSES)?;
    through.wait_for(bench, "guesses", GUESSES)?;
    for _ in 0..3 {
        let start = Instant::now();
        log_in(bench)?;
        let secs = start.elapsed().as_secs_f64();
        ensure!(secs < 5.0, "an operator's login took {secs:.1} s");
    }
    region_let_in(bench, &before, "api_connections", GUESSES)?;
    region_let_in(bench, &before, "password_checks", 1)?;
    let now = region_numbers(bench)?;
    let checks = |numbers: &Numbers| -> Result<u64> {
        number(numbers, "places_entered_total{of=\"password_checks\"}")
    };
    let made = checks(&now)? - checks(&before)?;
    ensure!(made <= CHECKS_MAX, "{made} passwords were checked");
    Ok(())
}

/// As the administrator, from the region's own host.
fn log_in(bench: &Bench) -> Result<()> {
    let file = bench.lab.folder().join("admin-password");
    let password = std::fs::read_to_string(file).context("reading the administrator's password")?;
    let body = format!("username=admin&password={}", password.trim());
    let request = format!(
        "POST /MAAS/accounts/authenticate/ HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\
         Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let server = SocketAddr::from((plan::region_mgmt().addr(), REGION_API));
    let (status, _) = raw_http(&bench.lab.names().region(), server, request.as_bytes())?;
    ensure!(status == 200, "an operator's login: {status}");
    Ok(())
}

fn racks_port(bench: &mut Bench) -> Result<()> {
    const NEW: &str = "newrack";
    let attacker = outsider(bench, 1)?;
    let host = outsider(bench, 1)?;
    let silent = format!("silent:{LINK_PORT}=3000");
    let before = region_numbers(bench)?;
    let kinds = ["strange_links=200/64", &silent];
    let mut attack = Attack::start(&attacker, plan::region_mgmt().addr(), &kinds)?;
    attack.wait_for(bench, "silent", 4_100)?;
    attack.wait_for(bench, "strange_links", 64)?;
    // One host may make few handshakes a second, and those that are silent are displaced by others.
    bench.until(
        "the attacker took its places",
        Duration::from_secs(30),
        |bench| Ok(region_let_in(bench, &before, "link_strangers", 64).ok()),
    )?;

    let binaries = bench.binaries.clone();
    bench.lab.kill_rack(1)?;
    bench.lab.run_rack(&binaries, 1)?;
    let process = bench.lab.start_new_rack(&binaries, &host, NEW)?;
    let back = attached(bench);
    let enrolled = bench.until("a new rack enrols", Duration::from_secs(20), |bench| {
        let racks = bench.lab.region().get("rackcontrollers/", &[])?;
        let all = racks.as_array().map_or(&[][..], Vec::as_slice);
        let found = all.iter().find(|rack| rack["hostname"] == NEW);
        Ok(found.and_then(|rack| rack["system_id"].as_str().map(str::to_owned)))
    });
    process.kill()?;
    let id = enrolled?;
    back?;
    let (status, text) = bench.lab.region().raw(
        "DELETE",
        &format!("/MAAS/api/2.0/rackcontrollers/{id}/"),
        None,
    )?;
    ensure!(status == 204, "deleting the new rack: {status} {text}");
    drop(attack);
    region_gives_back(bench, "link_strangers")
}

/// Waits until rack 1 has its leases from the region.
pub fn attached(bench: &mut Bench) -> Result<()> {
    bench.until("rack 1 is attached", Duration::from_secs(20), |bench| {
        Ok((number(&rack_numbers(bench)?, "attached")? == 1).then_some(()))
    })
}

fn few_files(bench: &mut Bench) -> Result<()> {
    bench.lab.limit_files(Some(1_024));
    let result = restart(bench).and_then(|()| with_few_files(bench));
    bench.lab.limit_files(None);
    restart(bench)?;
    result
}

fn restart(bench: &mut Bench) -> Result<()> {
    let binaries = bench.binaries.clone();
    if bench.lab.has_region() {
        bench.lab.kill_region()?;
    }
    bench.lab.run_region(&binaries)?;
    if bench.lab.has_rack(1) {
        bench.lab.kill_rack(1)?;
    }
    bench.lab.run_rack(&binaries, 1)?;
    attached(bench)
}

fn with_few_files(bench: &mut Bench) -> Result<()> {
    /// Of all kinds together 1,300 at the rack, and as many at the region.
    const EACH: u64 = 650;
    for (host, program) in [
        (bench.lab.names().rack(1), "rackd"),
        (bench.lab.names().region(), "regiond"),
    ] {
        let limits = format!("/proc/{}/limits", usage::process_named(&host, program)?);
        let text = std::fs::read_to_string(&limits).with_context(|| limits.clone())?;
        let files = text.lines().find(|line| line.starts_with("Max open files"));
        let files = files.unwrap_or_default();
        let both: Vec<&str> = files.split_whitespace().skip(3).take(2).collect();
        ensure!(both == ["1024", "1024"], "{program}: {files}");
    }
    let before = rack_numbers(bench)?;
    let (near, far) = (neighbour(bench, 12)?, outsider(bench, 12)?);
    let server = bench.lab.network().rack(1).addr();
    let kinds = [format!("silent=1000/{EACH}"), format!("kept=1000/{EACH}")];
    let mut rack = Attack::start(&near, server, &kinds.each_ref().map(String::as_str))?;
    let kinds = [REGION_API, LINK_PORT].map(|port| format!("silent:{port}=1000/{EACH}"));
    let kinds = kinds.each_ref().map(String::as_str);
    let mut region = Attack::start(&far, plan::region_mgmt().addr(), &kinds)?;
    rack.wait_for(bench, "silent", EACH)?;
    rack.wait_for(bench, "kept", EACH)?;
    region.wait_for(bench, "silent", 2 * EACH)?;

    let clients = clients(bench, &["http", "tftp", "new"], 0.2)?;
    clients.expect(bench, "beside idle connections", 10, ATTACK_LIMIT)?;
    let known = bench.machine(BmcKind::IpmiSim, Value::Object(serde_json::Map::new()))?;
    bench.commission(&known)?;
    bench.expect_ready(&known)?;
    let now = rack_numbers(bench)?;
    let more = |name: &str| -> Result<u64> { Ok(number(&now, name)? - number(&before, name)?) };
    let accepted = more("driver_accepted_total")?;
    ensure!(
        accepted >= 2 * EACH,
        "the rack accepted {accepted}: nothing is tested"
    );
    ensure!(more("arp_asked_total")? > 0, "no address was probed");
    ensure!(more("arp_failed_total")? == 0, "a probe failed");
    Ok(())
}
