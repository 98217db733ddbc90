//! The daemon with the limit of open files that systemd gives (1,024) as its hard one: connections take their part of it and
//! no more, so that calls to regions, look-ups and probes always find a descriptor.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use support::{Wire, enter, ip};

const LIMIT: usize = 1_024;
/// What must stay free: a link's sockets, an ARP socket and a question to the kernel for each device, regions, images.
const KEPT: usize = 128;
const PATIENCE: Duration = Duration::from_secs(60);

struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl Daemon {
    fn open_files(&self) -> usize {
        let folder = format!("/proc/{}/fd", self.0.id());
        std::fs::read_dir(folder).expect("it runs").count()
    }
}

fn wait_for<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// A connection from 127.x.y.1.
fn connect(source: u16) -> Option<TcpStream> {
    let [x, y] = source.to_be_bytes();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let from = SocketAddr::from((Ipv4Addr::new(127, x, y, 1), 0));
    socket.bind(&from.into()).unwrap();
    let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 5248));
    socket.connect(&to.into()).ok()?;
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Some(stream)
}

fn metrics() -> Option<String> {
    let mut stream = connect(1)?;
    let request = "GET /metrics HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n";
    stream.write_all(request.as_bytes()).ok()?;
    let mut page = String::new();
    stream.read_to_string(&mut page).ok()?;
    page.starts_with("HTTP/1.1 200 ").then_some(page)
}

/// The sum over all shards.
fn count(page: &str, name: &str) -> u64 {
    let name = format!("muster_rack_{name}");
    let lines = page.lines().filter(|line| line.starts_with(&name));
    lines
        .filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok())
        .sum()
}

#[test]
fn a_rack_with_1024_open_files_refuses_connections_before_it_runs_out() {
    let Some(wire) = Wire::new() else { return };
    let rack = wire.rack.clone();
    std::thread::spawn(move || {
        ip(&format!("-n {rack} link set lo up")).unwrap();
        enter(&rack);
        test();
    })
    .join()
    .unwrap();
}

fn test() {
    // A region that never lets anybody in: each try of the rack to enrol is a connection that needs a descriptor.
    let region = TcpListener::bind("127.0.0.1:0").unwrap();
    region.set_nonblocking(true).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let token = format!(
        r#"{{"fingerprint":"{}","regions":["{}"]}}"#,
        "00".repeat(32),
        region.local_addr().unwrap()
    );
    let token_file = folder.path().join("token");
    std::fs::write(&token_file, URL_SAFE_NO_PAD.encode(token)).unwrap();
    let config = folder.path().join("rackd.toml");
    let text = format!(
        "state_dir = {:?}\ntoken_file = {token_file:?}\nshards = 2\n",
        folder.path().join("state")
    );
    std::fs::write(&config, text).unwrap();
    let script = format!(
        "ulimit -Sn 512; ulimit -Hn {LIMIT}; exec {} run --config {}",
        env!("CARGO_BIN_EXE_rackd"),
        config.display()
    );
    let child = Command::new("sh")
        .args(["-c", &script])
        .stderr(Stdio::null())
        .spawn();
    let mut rackd = Daemon(child.unwrap());
    wait_for("its HTTP", metrics);
    let quiet = rackd.open_files();

    // Heads that do not end, and requests for a region that is not there. Each source opens a few.
    let mut held = Vec::new();
    for source in 2..500 {
        for number in 0..4 {
            let Some(mut stream) = connect(source) else {
                continue;
            };
            let octets: &[u8] = match number % 2 {
                0 => b"GET /MAAS/a HTTP/1.1\r\nHost: h\r\n\r\n",
                _ => b"GET /images/a HTTP/1.1\r\nHost",
            };
            stream.write_all(octets).ok();
            held.push(stream);
        }
    }
    let mut most = 0;
    let tries = |region: &TcpListener| std::iter::from_fn(|| region.accept().ok()).count();
    tries(&region);
    let begun = Instant::now();
    // With all of them open it calls its region, answers others by HTTP and TFTP, and has descriptors left.
    wait_for("a try to enrol", || {
        most = most.max(rackd.open_files());
        (tries(&region) > 0).then_some(())
    });
    let tftp = UdpSocket::bind("127.0.0.1:0").unwrap();
    tftp.set_read_timeout(Some(PATIENCE)).unwrap();
    tftp.send_to(b"\x00\x01nosuch\0octet\0", "127.0.0.1:69")
        .unwrap();
    let mut answer = [0; 600];
    let (length, _) = tftp.recv_from(&mut answer).unwrap();
    assert_eq!(answer[..length.min(2)], [0, 5], "no such file");
    let page = wait_for("its metrics", metrics);
    most = most.max(rackd.open_files());
    assert!(most <= LIMIT - KEPT, "{most} open files, {quiet} in quiet");
    assert!(most >= quiet + 100, "{most} open files, {quiet} in quiet");
    assert_eq!(count(&page, "driver_accept_failed"), 0, "{page}");
    let gone = [
        "shard_connections_refused",
        "shard_displaced",
        "shard_hand_offs_refused",
        "proxy_refused",
        "proxy_displaced",
    ];
    let gone: u64 = gone.iter().map(|name| count(&page, name)).sum();
    assert!(gone > 0, "{page}");
    assert!(begun.elapsed() < PATIENCE);
    assert!(rackd.0.try_wait().unwrap().is_none(), "it runs");
    drop(held);
    wait_for("they are let go", || {
        (rackd.open_files() <= quiet + 8).then_some(())
    });
}
