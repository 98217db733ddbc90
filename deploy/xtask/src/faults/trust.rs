//! Who may ask what: racks without the right papers, machines and hosts that ask for what is another's.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{ApiKey, BmcKind, plan};
use serde_json::{Value, json};

use super::bench::{Bench, COMMISSIONING_LIMIT, Case, STEP_LIMIT, held_after};
use super::network::{RACK_HTTP, http, rack};

pub const CASES: &[(&str, Case)] = &[
    ("a second rack with the same token", second_rack),
    ("the racks' HTTPS without a certificate", no_certificate),
    (
        "another machine's metadata, and a preseed where no machine is",
        metadata,
    ),
    (
        "a machine with a reserved address, of which no lease is kept",
        reserved,
    ),
    ("an unknown machine enlists itself", enlistment),
];

const REGION_API: u16 = 5240;
const REGION_RACK_HTTP: u16 = 5251;

fn second_rack(bench: &mut Bench) -> Result<()> {
    let mut process = bench.lab.start_second_rack(&bench.binaries.clone(), 1)?;
    let log = process.log.clone();
    let read = || std::fs::read_to_string(&log).unwrap_or_default();
    let refused = bench.until("the second rack says why", STEP_LIMIT, |_| {
        let text = read();
        Ok(text
            .contains("this enrolment token was used already")
            .then_some(()))
    });
    // It may have ended by itself.
    if process.check().is_ok() {
        process.kill()?;
    }
    refused.with_context(|| format!("its log: {}", read()))?;
    let racks = bench.lab.region().get("rackcontrollers/", &[])?;
    let count = racks.as_array().map_or(0, Vec::len);
    ensure!(count == 1, "the region lists {count} racks");
    expect_log(bench, "regiond", "rack not enrolled")
}

fn no_certificate(bench: &mut Bench) -> Result<()> {
    // TLS 1.3: the client learns of the refusal when it reads.
    let script = format!(
        "import socket, ssl\n\
         context = ssl.create_default_context()\n\
         context.check_hostname, context.verify_mode = False, ssl.CERT_NONE\n\
         try:\n\
         \x20   raw = socket.create_connection(('{}', {REGION_RACK_HTTP}), 10)\n\
         \x20   tls = context.wrap_socket(raw)\n\
         \x20   tls.sendall(b'GET /MAAS/metadata/latest/ HTTP/1.0\\r\\n\\r\\n')\n\
         \x20   print('answered', tls.recv(4096))\n\
         except OSError as error:\n\
         \x20   print('refused', error)\n",
        plan::region_mgmt().addr()
    );
    let output = std::process::Command::new("ip")
        .args([
            "netns",
            "exec",
            &bench.lab.names().rack(1),
            "/usr/bin/python3",
            "-Ic",
            &script,
        ])
        .output()
        .context("starting python3")?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let certificate = said.to_lowercase().contains("certificate");
    ensure!(said.starts_with("refused") && certificate, "{said}");
    Ok(())
}

fn metadata(bench: &mut Bench) -> Result<()> {
    let known = bench.machine(BmcKind::IpmiSim, held_after("user-data"))?;
    let other = bench.machine(BmcKind::IpmiSim, json!({}))?;
    bench.commission(&known)?;
    bench.step(&known.machine, "user-data")?;
    let preseed = known.machine.preseed()?;
    let value = |key: &str| {
        let line = preseed
            .lines()
            .find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(':'));
        line.map(|text| text.trim().trim_matches('"').to_owned())
            .with_context(|| format!("the preseed has no {key}"))
    };
    let (consumer, token, secret) = (
        value("consumer_key")?,
        value("token_key")?,
        value("token_secret")?,
    );
    let key = ApiKey::parse(&format!("{consumer}:{token}:{secret}"))?;
    let client = bench.lab.names().client();
    let own = known.machine.namespace.clone();
    let rack = rack(RACK_HTTP);
    let region = SocketAddr::from((plan::region_mgmt().addr(), REGION_API));
    let on_mgmt = bench.lab.names().rack(1);
    let item = "/MAAS/metadata/2012-03-01/meta-data/local-hostname";
    let preseed_of = |id: &str| format!("/MAAS/metadata/latest/by-id/{id}/?op=get_preseed");
    let mac = known.machine.macs[0].clone();
    let claim = move |name: &str| format!("{name}: {mac}\r\n");
    let claims = claim("X-Muster-Client-Mac") + "X-Muster-Client-Vlan: 1\r\n";
    let signed = || Ok::<_, anyhow::Error>(format!("Authorization: {}\r\n", key.header()?));
    let (good, _) = http(&own, rack, item, &signed()?)?;
    ensure!(good == 200, "its own metadata, from its own place: {good}");
    let cases = [
        (
            "its token, from another host",
            &client,
            rack,
            item.to_owned(),
            signed()?,
        ),
        (
            "its token, directly at the region",
            &on_mgmt,
            region,
            item.to_owned(),
            signed()?,
        ),
        (
            "its token, and headers of a rack",
            &on_mgmt,
            region,
            item.to_owned(),
            signed()? + &claims,
        ),
        ("no token", &own, rack, item.to_owned(), String::new()),
        (
            "its preseed, from a host without a binding",
            &client,
            rack,
            preseed_of(&known.id),
            String::new(),
        ),
        (
            "the same, claiming its MAC",
            &client,
            rack,
            preseed_of(&known.id),
            claims.clone(),
        ),
        (
            "another machine's preseed",
            &own,
            rack,
            preseed_of(&other.id),
            String::new(),
        ),
        (
            "its preseed, directly at the region",
            &on_mgmt,
            region,
            preseed_of(&known.id),
            String::new(),
        ),
        (
            "the same, with headers of a rack",
            &on_mgmt,
            region,
            preseed_of(&known.id),
            claims,
        ),
    ];
    for (what, host, server, path, headers) in cases {
        let (status, text) = http(host, server, &path, &headers).context(what)?;
        ensure!(matches!(status, 401 | 403), "{what}: {status} {text}");
        ensure!(
            !text.contains("token_key"),
            "{what}: {status}, with a token"
        );
    }
    known.machine.go("user-data")?;
    bench.expect_ready(&known)
}

/// The rack answers it from its snapshot and keeps no lease: the reservation says whose the address is.
fn reserved(bench: &mut Bench) -> Result<()> {
    const ADDRESS: &str = "10.99.4.77";
    let known = bench.machine(BmcKind::Model { silent_after: None }, json!({}))?;
    let mac = known.machine.macs[0].clone();
    let fields = [("ip", ADDRESS), ("mac_address", &mac)];
    bench.lab.region().post("reservedips/", "", &fields)?;
    bench.commission(&known)?;
    let given = bench.step(&known.machine, "address")?;
    ensure!(given.text("address") == ADDRESS, "it got {}", given.line);
    let end = bench.end_of(&known, COMMISSIONING_LIMIT)?;
    ensure!(end.status == "Ready", "{}: {}", end.status, end.reason);
    let rows = bench.lease_rows(&known.machine)?;
    ensure!(rows.is_empty(), "it has a lease after all: {rows:?}");
    Ok(())
}

fn enlistment(bench: &mut Bench) -> Result<()> {
    let machine = bench.stranger(BmcKind::IpmiSim, json!({}))?;
    machine.press_power()?;
    // Only the card that the rack has seen is believed.
    let mac = machine.macs[0].clone();
    let found = bench.until("an enlisted machine", COMMISSIONING_LIMIT, |bench| {
        let all = bench.lab.region().get("machines/", &[])?;
        let has = |entry: &&Value, mac: &str| {
            let set = entry.get("interface_set").and_then(Value::as_array);
            set.is_some_and(|set| set.iter().any(|nic| nic["mac_address"] == *mac))
        };
        let list = all.as_array().map_or(&[][..], Vec::as_slice);
        Ok(list.iter().find(|entry| has(entry, &mac)).cloned())
    });
    let found = match found {
        Ok(found) => found,
        Err(error) => {
            let last: Vec<String> = machine
                .progress()
                .iter()
                .rev()
                .take(3)
                .map(|p| p.line.to_string())
                .collect();
            return Err(error.context(last.join(" < ")));
        }
    };
    ensure!(
        found["status_name"] == "New",
        "it is {}",
        found["status_name"]
    );
    let cards = found["interface_set"].as_array().map_or(0, Vec::len);
    ensure!(cards == 1, "it has {cards} cards by its own word");
    bench.step(&machine, "power-off")?;
    bench.expect_one_address(&machine).map(drop)
}

/// Asked last: what must never be in a log or in the database, whatever was done.
pub fn nothing_odd(bench: &mut Bench) -> Result<()> {
    for name in ["regiond", "rackd-1"] {
        let log = bench.lab.logs().join(format!("{name}.log"));
        let text = std::fs::read_to_string(&log).unwrap_or_default();
        let panic = text.lines().find(|line| line.contains("panicked at"));
        ensure!(
            panic.is_none(),
            "{}: {}",
            log.display(),
            panic.unwrap_or_default()
        );
    }
    let sql = "select count(*) from event where type = 'LEASE_CONFLICT'";
    let conflicts = bench.lab.query(sql)?;
    ensure!(conflicts == ["0"], "lease conflicts: {conflicts:?}");
    let twice = bench.lab.query(
        "select mac, count(*) from lease where mac is not null group by mac having count(*) > 1",
    )?;
    ensure!(twice.is_empty(), "more than one address: {twice:?}");
    Ok(())
}

fn expect_log(bench: &mut Bench, program: &str, words: &str) -> Result<()> {
    let log = bench.lab.logs().join(format!("{program}.log"));
    bench.until(
        &format!("{program} logs {words:?}"),
        Duration::from_secs(10),
        |_| {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            Ok(text.contains(words).then_some(()))
        },
    )
}
