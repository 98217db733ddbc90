//! What comes over the wire: paths that climb, and a machine that was cut off and comes back with the same ports.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::host::on_network_of;
use lab::{BmcKind, BootNetwork, plan};
use serde_json::json;

use super::bench::{Bench, Case, Random};

pub const CASES: &[(&str, Case)] = &[
    ("TFTP paths that climb or name other files", tftp_paths),
    ("HTTP paths that climb or name other files", http_paths),
    ("garbage on every port", garbage),
    (
        "a machine cut off in mid-download boots again from the same ports",
        same_ports,
    ),
];

const ANSWER_LIMIT: Duration = Duration::from_secs(15);
pub const RACK_HTTP: u16 = 5248;
pub const TFTP: u16 = 69;
const DHCP: u16 = 67;
/// Names of it are in no answer, whatever the path.
const SECRET: &str = "root:x:0:0";

/// Rack 1 as machines see it.
pub fn rack(port: u16) -> SocketAddr {
    SocketAddr::from((BootNetwork::default().rack(1).addr(), port))
}

/// GET by hand from a host of the lab: status and the whole answer.
pub fn http(host: &str, server: SocketAddr, path: &str, headers: &str) -> Result<(u16, String)> {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: {server}\r\nConnection: close\r\n{headers}\r\n");
    raw_http(host, server, request.as_bytes())
}

pub fn raw_http(host: &str, server: SocketAddr, request: &[u8]) -> Result<(u16, String)> {
    let answer = on_network_of(host, || {
        let mut stream = TcpStream::connect_timeout(&server, ANSWER_LIMIT).context("connecting")?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.write_all(request)?;
        let mut answer = Vec::new();
        // A refusal may come as a reset behind its answer.
        match stream.read_to_end(&mut answer) {
            Err(error) if answer.is_empty() => Err(error).context("reading the answer"),
            _ => Ok(answer),
        }
    })?;
    let text = String::from_utf8_lossy(&answer).into_owned();
    let status = text
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    Ok((
        status.with_context(|| format!("not HTTP: {text:.200}"))?,
        text,
    ))
}

/// One RRQ, and what comes back first: None is silence.
pub fn tftp(host: &str, server: SocketAddr, file: &[u8]) -> Result<Option<Vec<u8>>> {
    let request = [b"\0\x01", file, b"\0octet\0"].concat();
    on_network_of(host, || {
        let socket = UdpSocket::bind("0.0.0.0:0").context("binding")?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let mut packet = vec![0; 2048];
        for _ in 0..3 {
            socket.send_to(&request, server)?;
            match socket.recv_from(&mut packet) {
                Ok((length, _)) => {
                    packet.truncate(length);
                    return Ok(Some(packet));
                }
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("reading the answer"),
            }
        }
        Ok(None)
    })
}

/// What is planted in the rack's own folders under this name leads to a file of the host.
const LINK: &str = "link-to-passwd";

fn plant(bench: &Bench) -> Result<()> {
    for folder in [
        bench.lab.rack_state(1),
        bench.lab.rack_state(1).join("cache"),
    ] {
        let link = folder.join(LINK);
        if std::fs::symlink_metadata(&link).is_err() {
            std::os::unix::fs::symlink("/etc/passwd", &link)
                .with_context(|| format!("making {}", link.display()))?;
        }
    }
    Ok(())
}

fn tftp_paths(bench: &mut Bench) -> Result<()> {
    plant(bench)?;
    let client = bench.lab.names().client();
    let whole =
        tftp(&client, rack(TFTP), b"bootx64.efi")?.context("no answer for a file that is there")?;
    ensure!(
        whole.starts_with(&[0, 3, 0, 1]),
        "no DATA for a file that is there: {whole:?}"
    );
    let link = format!("cache/{LINK}");
    let paths: &[&[u8]] = &[
        b"../../etc/passwd",
        b"../../../../../../../../etc/passwd",
        b"/etc/passwd",
        b"//etc/passwd",
        b"grub/../../../../etc/passwd",
        b"..\\..\\etc\\passwd",
        b"C:\\etc\\passwd",
        b"file:///etc/passwd",
        b"%2e%2e/%2e%2e/etc/passwd",
        b"bootx64.efi/../../../etc/passwd",
        LINK.as_bytes(),
        link.as_bytes(),
        // The name ends at its NUL, and what follows is no transfer mode.
        b"bootx64.efi\0../../etc/passwd",
        b"\0/etc/passwd",
        b"",
        &[b'a'; 480],
    ];
    for path in paths {
        let shown = String::from_utf8_lossy(&path[..path.len().min(60)]).into_owned();
        let answer =
            tftp(&client, rack(TFTP), path)?.with_context(|| format!("{shown:?}: silence"))?;
        ensure!(
            answer.starts_with(&[0, 5]),
            "{shown:?}: no ERROR but {answer:?}"
        );
    }
    Ok(())
}

fn http_paths(bench: &mut Bench) -> Result<()> {
    plant(bench)?;
    let client = bench.lab.names().client();
    let server = rack(RACK_HTTP);
    let (status, _) = http(&client, server, "/images/bootx64.efi", "")?;
    ensure!(status == 200, "{status} for a file that is there");
    let link = format!("/images/{LINK}");
    let cache = format!("/cache/{LINK}");
    let paths: &[&str] = &[
        "/../../etc/passwd",
        "/images/../../../../etc/passwd",
        "/images/%2e%2e/%2e%2e/etc/passwd",
        "/etc/passwd",
        "//etc/passwd",
        "/images//etc/passwd",
        "/images/..\\..\\etc\\passwd",
        "http://elsewhere/etc/passwd",
        "file:///etc/passwd",
        "/images/bootx64.efi%00/../../etc/passwd",
        "/images/bootx64.efi\0/etc/passwd",
        "../../etc/passwd",
        "/MAAS/../../etc/passwd",
        "/MAAS/metadata/latest/../../../../etc/passwd",
        &link,
        &cache,
    ];
    for path in paths {
        let (status, text) =
            http(&client, server, path, "").with_context(|| format!("{path:?}"))?;
        ensure!((400..500).contains(&status), "{path:?}: {status}");
        ensure!(!text.contains(SECRET), "{path:?}: {status}, with the file");
    }
    let hash = "0".repeat(64);
    let (status, _) = http(&client, server, &format!("/images/{hash}"), "")?;
    ensure!(status == 404, "{status} for an image that nobody knows");
    Ok(())
}

/// Every port of region and rack, in turn: nothing is answered with a crash, and a machine boots afterwards.
fn garbage(bench: &mut Bench) -> Result<()> {
    const PACKETS: usize = 400;
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let client = bench.lab.names().client();
    on_network_of(&client, || {
        let socket = UdpSocket::bind("0.0.0.0:0").context("binding")?;
        socket.set_broadcast(true)?;
        let everyone = SocketAddr::from((Ipv4Addr::BROADCAST, DHCP));
        for target in [rack(DHCP), rack(TFTP), everyone] {
            for _ in 0..PACKETS {
                let mut packet = random.octets(600);
                if target.port() == DHCP {
                    dress_as_dhcp(&mut packet);
                } else if packet.len() > 2 {
                    (packet[0], packet[1]) = (0, packet[1] % 8);
                }
                // A full socket is the other side's business.
                socket.send_to(&packet, target).ok();
            }
        }
        Ok(())
    })?;
    let region = |port| SocketAddr::from((plan::region_mgmt().addr(), port));
    let host = bench.lab.names().rack(1);
    let targets = [
        (&client, rack(RACK_HTTP)),
        (&host, region(5240)),
        (&host, region(5250)),
        (&host, region(5251)),
    ];
    for (host, server) in targets {
        for start in [
            &b""[..],
            b"GET /MAAS/",
            b"POST /MAAS/metadata/latest/ HTTP/1.1\r\n",
            b"\x16\x03\x01\x02\x00\x01",
        ] {
            let octets = [start, &random.octets(4000)].concat();
            on_network_of(host, || {
                let mut stream = TcpStream::connect_timeout(&server, ANSWER_LIMIT)
                    .with_context(|| format!("connecting to {server}"))?;
                stream.write_all(&octets).ok();
                stream.shutdown(std::net::Shutdown::Write).ok();
                stream.set_read_timeout(Some(ANSWER_LIMIT))?;
                // Whatever it says: it must come to an end.
                let mut answer = Vec::new();
                match stream.read_to_end(&mut answer) {
                    Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                        bail!("{server} holds a connection with garbage open")
                    }
                    _ => Ok(()),
                }
            })?;
        }
    }
    let known = bench.machine(BmcKind::IpmiSim, json!({}))?;
    bench.commission(&known)?;
    bench.expect_ready(&known)
}

/// So that more than the first look is passed: BOOTREQUEST over Ethernet with the cookie, and then anything.
fn dress_as_dhcp(packet: &mut Vec<u8>) {
    packet.resize(packet.len().max(241), 0);
    packet[..4].copy_from_slice(&[1, 1, 6, 0]);
    packet[24..28].fill(0);
    packet[236..240].copy_from_slice(&[0x63, 0x82, 0x53, 0x63]);
    // Every other one is a known message type.
    if packet.len() > 243 && packet[4].is_multiple_of(2) {
        let kind = packet[5] % 9;
        packet[240..243].copy_from_slice(&[53, 1, kind]);
    }
}

/// The loader's TCP is one that never resets: the dead connection is the rack's to end.
fn same_ports(bench: &mut Bench) -> Result<()> {
    const INITRD_PORT: u16 = 49153;
    let options = json!({"firmware_tcp": true, "stall": "initrd"});
    let known = bench.machine(BmcKind::Model { silent_after: None }, options)?;
    bench.commission(&known)?;
    bench.step(&known.machine, "stalled")?;
    known.machine.pull_plug()?;
    let left = connections(&bench.lab.names().rack(1), INITRD_PORT)?;
    ensure!(
        left > 0,
        "the rack has no dead connection: nothing is tested"
    );
    known.machine.set_options(&json!({"firmware_tcp": true}))?;
    known.machine.press_power()?;
    bench.nth_step(&known.machine, "kernel", 2)?;
    // Of the first boot, the initrd did not come that far.
    bench.step(&known.machine, "initrd")?;
    let progress = known.machine.progress();
    let failed = progress
        .iter()
        .find(|line| line.step == "retry" && line.text("of") == "boot");
    ensure!(
        failed.is_none(),
        "a boot failed: {}",
        failed.map_or("", |line| line.text("why"))
    );
    bench.expect_ready(&known)
}

/// Established connections of a host with this port at the other end.
fn connections(host: &str, port: u16) -> Result<usize> {
    let tables = on_network_of(host, || {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok(read("tcp")? + &read("tcp6").unwrap_or_default())
    })?;
    let end = format!(":{port:04X}");
    let is_one = |line: &&str| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.len() > 3 && fields[2].ends_with(&end) && fields[3] == "01"
    };
    if tables.is_empty() {
        bail!("{host} has no table of connections");
    }
    Ok(tables.lines().filter(is_one).count())
}
