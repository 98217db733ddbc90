//! Shards that end and begin anew on their threads: by a panic, by a ring that fails, several together and again and
//! again; and sockets that fail for a while or for good.

mod support;

use std::fs::File;
use std::io::Read;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bytes::Bytes;
use shard::{LinkSocket, Loader, Snapshot, ToLink, ToShard};
use support::*;

const MIB: usize = 1 << 20;

/// Octets whose end is a panic on the thread of a shard: what a fault of ours would be.
struct Bomb;

impl AsRef<[u8]> for Bomb {
    fn as_ref(&self) -> &[u8] {
        b"bomb"
    }
}

impl Drop for Bomb {
    fn drop(&mut self) {
        let name = thread::current().name().map(str::to_owned);
        if name.is_some_and(|name| name.starts_with("shard-")) {
            panic!("the shard is made to panic");
        }
    }
}

/// The shard that lets go of the snapshot last panics.
fn panic_a_shard(rack: &mut Rack, now: impl Fn() -> Snapshot) {
    let mut bombed = now();
    let loader = Loader {
        sha256: [8; 32],
        bytes: std::sync::OnceLock::new(),
    };
    loader.bytes.set(Bytes::from_owner(Bomb)).unwrap();
    bombed.loaders.insert("bomb".into(), Arc::new(loader));
    rack.snapshot.store(Arc::new(bombed));
    // A turn that begins after this has it.
    for shard in 0..rack.shards.len() {
        let turns = |rack: &Rack| rack.shards[shard].stats.get().shard.turns;
        let before = turns(rack);
        wait_for(|| {
            rack.tell(shard, ToShard::Progress);
            thread::sleep(Duration::from_millis(20)); // a mailbox has an end
            (turns(rack) > before + 2).then_some(())
        });
    }
    rack.snapshot.store(Arc::new(now()));
}

/// Puts another file in the place of these of this process's rings: every call into one fails from now on.
fn break_rings() -> usize {
    let null = File::open("/dev/null").unwrap();
    let mut broken = 0;
    for entry in std::fs::read_dir("/proc/self/fd").unwrap() {
        let entry = entry.unwrap();
        let Ok(target) = std::fs::read_link(entry.path()) else {
            continue;
        };
        if target.to_str() != Some("anon_inode:[io_uring]") {
            continue;
        }
        let ring: i32 = entry.file_name().into_string().unwrap().parse().unwrap();
        // SAFETY: dup2 replaces one descriptor by another; who uses the first gets errors from then on, which is the fault.
        assert_eq!(unsafe { libc::dup2(null.as_raw_fd(), ring) }, ring);
        broken += 1;
    }
    broken
}

/// Waits until the shard has begun anew so often.
fn restarted(rack: &mut Rack, shard: usize, times: u64) {
    wait_for(|| {
        // A shard that sleeps notices with the next thing that happens. Full: it has plenty.
        let _ = rack.link[shard].to_shard.push(ToShard::Progress);
        thread::sleep(Duration::from_millis(20));
        (rack.shards[shard].stats.get().shard.restarts == times).then_some(())
    });
}

fn served(http: SocketAddr, path: &str) -> Option<Vec<u8>> {
    let mut stream = connect(http);
    let (head, body) = ask(&mut stream, path);
    head.starts_with("HTTP/1.1 200 ").then_some(body)
}

/// In the middle of a download by HTTP and of one by TFTP: both clients are let go, and get their files when they ask again.
#[test]
fn a_shard_that_panics_begins_anew_and_its_clients_begin_again() {
    let (image, loader) = (content(16 * MIB), content(200_000));
    let object = object(1, &image);
    let now = || snapshot(&[("f", &loader)], &[Arc::clone(&object)]);
    let setup = Setup {
        send_buffer_bytes: Some(64 << 10),
        ..Setup::default()
    };
    let mut rack = Rack::start(now(), setup);
    let mut stream = connect(rack.http);
    std::io::Write::write_all(&mut stream, get(&image_path(1)).as_bytes()).unwrap();
    let mut front = [0; 1000];
    stream.read_exact(&mut front).unwrap();
    let transfer = tftp_socket("127.0.0.2:0");
    let request = read_request("f", wire::tftp::Options::default());
    transfer.send_to(&request, rack.tftp).unwrap();
    let mut block = [0; 600];
    let (length, from) = transfer.recv_from(&mut block).unwrap();
    assert_eq!(length, 4 + 512);

    panic_a_shard(&mut rack, now);
    restarted(&mut rack, 0, 1);
    rack.next_to_link(|message| matches!(message, ToLink::Restarted).then_some(()));

    let mut got = front.len();
    let mut buffer = vec![0; MIB];
    let cut = wait_for(|| match stream.read(&mut buffer) {
        Ok(0) | Err(_) => Some(got),
        Ok(length) => {
            got += length;
            None
        }
    });
    assert!(cut < image.len(), "{cut} octets of a connection that went");
    let mut ack = [0; 4];
    wire::tftp::emit_ack(1, &mut ack).unwrap();
    transfer.send_to(&ack, from).unwrap();
    let other = tftp_socket("127.0.0.3:0");
    let file = download(&other, rack.tftp, "f", wire::tftp::Options::default()).unwrap();
    assert!(file == loader, "another client's");
    // What the shard that was had repeated meanwhile is no answer to what is asked now.
    while transfer.recv_from(&mut block).is_ok() {}
    let again = download(&transfer, rack.tftp, "f", wire::tftp::Options::default()).unwrap();
    assert!(again == loader, "the same client's");
    assert!(served(rack.http, &image_path(1)) == Some(image));
    wait_for(|| (rack.shards[0].stats.get().driver.streams <= 1).then_some(()));
    rack.stop();
}

#[test]
fn shards_that_fail_together_all_begin_anew() {
    let image = content(100_000);
    let mut rack = Rack::start(
        snapshot(&[("f", b"loader")], &[object(1, &image)]),
        Setup {
            shards: 3,
            ..Setup::default()
        },
    );
    assert_eq!(break_rings(), 3);
    for shard in 0..3 {
        restarted(&mut rack, shard, 1);
    }
    for shard in 0..3 {
        let first = rack.link[shard].from_shard.pop();
        assert!(matches!(first, Some(ToLink::Restarted)), "{first:?}");
    }
    let served_by = |rack: &Rack| -> Vec<u64> {
        let shards = rack.shards.iter();
        shards.map(|shard| shard.stats.get().http.served).collect()
    };
    wait_for(|| {
        assert_eq!(served(rack.http, &image_path(1)), Some(image.clone()));
        served_by(&rack)
            .iter()
            .all(|count| *count > 0)
            .then_some(())
    });
    rack.stop();
}

/// A fault that does not pass costs a try after 100, 200, 400 ms and so on, and a shard that waits hears that all is to
/// end.
#[test]
fn a_shard_that_fails_again_and_again_waits_longer_each_time() {
    let mut rack = Rack::start(snapshot(&[], &[object(1, b"x")]), Setup::default());
    for times in 0..3u32 {
        let failed = Instant::now();
        assert_eq!(break_rings(), 1);
        restarted(&mut rack, 0, u64::from(times) + 1);
        let pause = Duration::from_millis(100 << times);
        assert!(failed.elapsed() >= pause, "{:?}", failed.elapsed());
    }
    assert_eq!(served(rack.http, &image_path(1)), Some(b"x".to_vec()));
    break_rings();
    rack.stop();
}

/// A link's socket that fails at every try is tried ten times a second; all else goes on.
#[test]
fn a_socket_that_fails_for_good_is_tried_with_pauses() {
    let socket = File::open("/dev/null").unwrap().into();
    let setup = Setup {
        links: vec![vec![LinkSocket {
            interface: 7,
            socket,
        }]],
        ..Setup::default()
    };
    let rack = Rack::start(snapshot(&[], &[object(1, b"x")]), setup);
    let before = rack.stats().driver;
    let after = rack.stats().driver;
    let tries = after.arms_failed - before.arms_failed;
    assert!((3..=40).contains(&tries), "{tries} tries in 2 s");
    let enters = after.enters - before.enters;
    assert!(enters <= 200, "{enters} calls in 2 s");
    assert_eq!(served(rack.http, &image_path(1)), Some(b"x".to_vec()));
    rack.stop();
}

/// No descriptor is left for a connection: it waits, without a turn for nothing, and is served when there is one.
#[test]
fn a_listener_without_descriptors_waits_and_goes_on() {
    // Before the rack starts: an accept keeps the limit that it was armed with.
    let mut limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    limit.current = Some(500);
    rustix::process::setrlimit(rustix::process::Resource::Nofile, limit).unwrap();
    let rack = Rack::start(snapshot(&[], &[object(1, b"x")]), Setup::default());
    let client = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let all: Vec<File> = std::iter::from_fn(|| File::open("/dev/null").ok()).collect();
    assert!(!all.is_empty());
    client.connect(&rack.http.into()).unwrap();
    wait_for(|| (rack.shards[0].stats.get().driver.accept_failed > 1).then_some(()));
    let first = rack.stats().driver;
    let second = rack.stats().driver;
    let tries = second.accept_failed - first.accept_failed;
    assert!((3..=40).contains(&tries), "{tries} tries in 2 s");
    drop(all);
    let mut stream: std::net::TcpStream = client.into();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(ask(&mut stream, &image_path(1)).1, b"x");
    rack.stop();
}
