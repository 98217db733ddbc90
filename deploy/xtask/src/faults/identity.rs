//! Who is who on the machines' VLAN: hosts that take another's address, and what they get of it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{BmcKind, BootNetwork};
use model::EventType;

use super::bench::{Bench, Case, STEP_LIMIT, held_after};
use super::network::{RACK_HTTP, http, rack};
use crate::timeline::Event;

pub const CASES: &[(&str, Case)] = &[(
    "a host that takes a machine's address gets nothing of it, not by poisoned ARP either",
    taken_address,
)];

/// What the rack says to the wrong card.
const REFUSAL: &str = "another network card's";

/// Takes `victim`'s address on device `boot`, asks the rack for `path` in two halves, and prints the answer. With a
/// MAC to restore, the rack is told in between that the address is there, and afterwards that it is here again: at the
/// moment of the question its neighbour table names the victim.
const THIEF: &str = r#"
import socket, struct, subprocess, sys, time
netns, server, victim, path, restore = sys.argv[1:]
octets = lambda mac: bytes.fromhex(mac.replace(':', ''))
own = open('/sys/class/net/boot/address').read().strip()
raw = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0806))
raw.bind(('boot', 0))
def says(mac):
    arp = struct.pack('!HHBBH6s4s6s4s', 1, 0x0800, 6, 4, 1, octets(mac), socket.inet_aton(victim), bytes(6), socket.inet_aton(server))
    for _ in range(100):
        raw.send(b'\xff' * 6 + octets(own) + b'\x08\x06' + arp)
        entry = subprocess.run(['ip', 'netns', 'exec', netns, 'ip', '-4', 'neigh', 'show', victim], capture_output=True, text=True).stdout
        if mac in entry:
            return
        time.sleep(0.1)
    sys.exit('the rack was not deceived: ' + entry)
says(own)
tcp = socket.socket()
tcp.bind((victim, 0))
tcp.settimeout(20)
tcp.connect((server, 5248))
tcp.sendall(('GET %s HTTP/1.1\r\nHost: %s:5248\r\n' % (path, server)).encode())
if restore:
    says(restore)
tcp.sendall(b'Connection: close\r\n\r\n')
if restore:
    time.sleep(1.2)  # the rack takes the question, then the kernel a new entry
    says(own)
answer = b''
while octets_read := tcp.recv(65536):
    answer += octets_read
print(answer.decode('utf-8', 'replace'))
"#;

fn taken_address(bench: &mut Bench) -> Result<()> {
    let known = bench.machine(
        BmcKind::Model { silent_after: None },
        held_after("user-data"),
    )?;
    bench.commission(&known)?;
    let given = bench.step(&known.machine, "address")?;
    let address = given.text("address").to_owned();
    bench.step(&known.machine, "user-data")?;
    let preseed = format!("/MAAS/metadata/latest/by-id/{}/?op=get_preseed", known.id);
    let (good, _) = http(&known.machine.namespace, rack(RACK_HTTP), &preseed, "")?;
    ensure!(good == 200, "its own preseed, from its own place: {good}");

    let refused = |said: &str, how: &str| {
        let is_refused = said.starts_with("HTTP/1.1 403") && said.contains(REFUSAL);
        ensure!(is_refused && !said.contains("token_key"), "{how}: {said}");
        Ok(())
    };
    let said = thief(bench, &address, &preseed, "")?;
    refused(&said, "a host with the machine's address")?;
    // The machine would answer what comes to it of the thief's connection with a reset.
    let own = known.machine.namespace.clone();
    ip(&own, &["link", "set", "boot", "down"])?;
    let said = thief(bench, &address, &preseed, &known.machine.macs[0]);
    ip(&own, &["link", "set", "boot", "up"])?;
    refused(&said?, "with poisoned ARP")?;
    bench.until("an event of the machine", STEP_LIMIT, |bench| {
        let events = bench.events(&known.id)?;
        let told = |event: &Event| event.kind == EventType::AddressDisputed.description();
        Ok(events.iter().any(told).then_some(()))
    })?;
    known.machine.go("user-data")?;
    bench.expect_ready(&known)
}

/// What the client host got from the rack with this address on its card.
fn thief(bench: &Bench, address: &str, path: &str, restore: &str) -> Result<String> {
    let client = bench.lab.names().client();
    let held = format!("{address}/{}", BootNetwork::default().rack(1).prefix_len());
    ip(&client, &["address", "add", &held, "dev", "boot"])?;
    let server = rack(RACK_HTTP).ip().to_string();
    let output = Command::new("ip")
        .args(["netns", "exec", &client, "/usr/bin/python3", "-Ic", THIEF])
        .args([&bench.lab.names().rack(1), &server, address, path, restore])
        .output()
        .context("starting python3");
    ip(&client, &["address", "del", &held, "dev", "boot"])?;
    let output = output?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let trouble = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{said}{trouble}");
    Ok(said)
}

fn ip(namespace: &str, arguments: &[&str]) -> Result<()> {
    let status = Command::new("ip")
        .args(["-n", namespace])
        .args(arguments)
        .status()
        .context("starting ip")?;
    ensure!(status.success(), "ip {}: {status}", arguments.join(" "));
    Ok(())
}
