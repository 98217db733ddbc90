//! HTTP through the real ring, on loopback.

mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use images::Object;
use sha2::{Digest, Sha256};
use shard::{Config, ToShard, ToWork};
use support::*;
use uring::RingLimits;

const MIB: usize = 1 << 20;

#[test]
fn images_loaders_and_ranges() {
    let (image, loader) = (content(20 * MIB + 12_345), content(900_000));
    let rack = Rack::start(
        snapshot(&[("bootx64.efi", &loader)], &[object(1, &image)]),
        Setup {
            shards: 2,
            ..Setup::default()
        },
    );
    let want = Sha256::digest(&image);
    for _ in 0..4 {
        let mut stream = connect(rack.http);
        let (head, body) = ask(&mut stream, &image_path(1));
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\n") && head.contains("keep-alive"),
            "{head}"
        );
        assert_eq!(Sha256::digest(&body), want);
        // The same connection goes on.
        let (_, body) = ask(&mut stream, "/images/bootx64.efi");
        assert!(body == loader);
        let (_, body) = ask(&mut stream, "/bootx64.efi");
        assert!(body == loader);
        let range = format!(
            "GET {} HTTP/1.1\r\nHost: h\r\nRange: bytes=1000000-9999999\r\n\r\n",
            image_path(1)
        );
        stream.write_all(range.as_bytes()).unwrap();
        let (head, body) = response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 206"), "{head}");
        assert!(body == image[1_000_000..10_000_000]);
        let probe = format!("HEAD {} HTTP/1.1\r\nHost: h\r\n\r\n", image_path(1));
        stream.write_all(probe.as_bytes()).unwrap();
        assert!(support::head(&mut stream).contains(&format!("Content-Length: {}", image.len())));
        assert!(
            ask(&mut stream, &image_path(2))
                .0
                .starts_with("HTTP/1.1 404")
        );
        let old = format!("GET {} HTTP/1.0\r\n\r\n", image_path(1));
        stream.write_all(old.as_bytes()).unwrap();
        let mut all = Vec::new();
        stream
            .read_to_end(&mut all)
            .expect("closed in good order, not reset");
        assert!(all.ends_with(&image));
    }
    rack.stop();
}

/// A client that half-closes after its request still gets the answer.
#[test]
fn a_half_closed_client_is_answered() {
    let image = content(3 * MIB);
    let mut rack = Rack::start(snapshot(&[], &[object(1, &image)]), Setup::default());
    let mut stream = connect(rack.http);
    stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    assert!(all.ends_with(&image));
    let event = rack.event("IMAGE_SERVED");
    assert!(
        event
            .detail
            .to_string()
            .ends_with(&format!("squashfs {} octets by HTTP", 3 * MIB)),
        "{event:?}"
    );
    rack.stop();
}

/// Clients that take nothing cost their own connection, and nobody else's.
#[test]
fn stalled_clients_stop_nobody_and_are_dropped() {
    let image = content(32 * MIB);
    let mut config = Config::default();
    config.http.stall = Duration::from_secs(3);
    let rack = Rack::start(
        snapshot(&[("f", &content(100_000))], &[object(1, &image)]),
        Setup {
            config,
            ..Setup::default()
        },
    );
    let stalled: Vec<TcpStream> = (0..20)
        .map(|_| {
            let mut stream = connect(rack.http);
            stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
            stream
        })
        .collect();
    thread::sleep(Duration::from_millis(200));
    let started = Instant::now();
    let mut stream = connect(rack.http);
    assert!(ask(&mut stream, &image_path(1)).1 == image);
    let socket = tftp_socket("127.0.0.1:0");
    let file = download(&socket, rack.tftp, "f", wire::tftp::Options::default()).unwrap();
    assert_eq!(file.len(), 100_000);
    assert!(
        started.elapsed() < Duration::from_secs(3),
        "{:?}",
        started.elapsed()
    );

    let dropped = wait_for(|| {
        let stats = rack.shards[0].stats.get();
        (stats.http.stalled == 20).then_some(stats)
    });
    assert!(dropped.http_connections <= 1);
    for mut stream in stalled {
        // Reset, not left hanging: what was in the socket is gone as well.
        let mut buffer = vec![0; 64 * MIB];
        let mut got = 0;
        let end = loop {
            match stream.read(&mut buffer) {
                Ok(0) => break None,
                Ok(length) => got += length,
                Err(error) => break Some(error.kind()),
            }
        };
        assert_eq!(
            end,
            Some(std::io::ErrorKind::ConnectionReset),
            "after {got}"
        );
    }
    rack.stop();
}

/// A machine that lost its power in mid-download, and whose next boot uses the same port.
#[test]
fn a_power_cycled_client_may_use_its_port_again() {
    let image = content(32 * MIB);
    let rack = Rack::start(snapshot(&[], &[object(1, &image)]), Setup::default());
    let dead = socket_on(0);
    let port = local_port(&dead);
    let mut dead = into_connected(dead, rack.http);
    dead.write_all(get(&image_path(1)).as_bytes()).unwrap();
    let mut some = vec![0; MIB];
    dead.read_exact(&mut some).unwrap();
    thread::sleep(Duration::from_millis(300)); // its window is closed by now
    if !vanish(dead) {
        eprintln!("skipped: TCP_REPAIR needs CAP_NET_ADMIN");
        rack.stop();
        return;
    }
    let again = socket_on(port);
    let mut again = into_connected(again, rack.http);
    again.set_read_timeout(Some(PATIENCE)).unwrap();
    assert!(ask(&mut again, &image_path(1)).1 == image);
    rack.stop();
}

fn socket_on(port: u16) -> socket2::Socket {
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )
    .unwrap();
    socket.set_reuse_address(true).unwrap();
    socket
        .bind(&SocketAddr::from(([127, 0, 0, 1], port)).into())
        .unwrap();
    socket
}

fn local_port(socket: &socket2::Socket) -> u16 {
    socket.local_addr().unwrap().as_socket().unwrap().port()
}

fn into_connected(socket: socket2::Socket, to: SocketAddr) -> TcpStream {
    socket
        .connect_timeout(&to.into(), PATIENCE)
        .expect("the port is usable again");
    socket.into()
}

/// Closes a connection without a word to its peer. False without the privilege.
fn vanish(stream: TcpStream) -> bool {
    let on: libc::c_int = 1;
    // SAFETY: the option's value is a valid int for the call; the kernel copies it.
    let result = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_REPAIR,
            (&raw const on).cast(),
            size_of::<libc::c_int>() as libc::socklen_t,
        )
    };
    result == 0
}

/// Pieces leave as they appear: the client has the first while the last is not even there.
#[test]
fn a_fill_in_progress_is_streamed_piece_by_piece() {
    let image = content(4 * MIB + 5);
    let piece = MIB as u32;
    let object = Arc::new(Object::absent([1; 32], image.len() as u64, piece));
    let mut rack = Rack::start(snapshot(&[], &[Arc::clone(&object)]), Setup::default());
    let mut streams: Vec<TcpStream> = (0..3)
        .map(|_| {
            let mut stream = connect(rack.http);
            stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
            stream
        })
        .collect();
    let wanted = rack.next_to_work(|message| match message {
        ToWork::Want(sha256) => Some(sha256),
        ToWork::HandOff { .. } | ToWork::Probe { .. } => None,
    });
    assert_eq!(wanted, [1; 32]);
    assert!(object.set_filling());
    let file = tempfile::tempfile().unwrap();
    object.open(OwnedFd::from(file.try_clone().unwrap()));
    let mut got = vec![Vec::new(); 3];
    for number in 0..object.piece_count() {
        let start = number as usize * MIB;
        let end = image.len().min(start + MIB);
        file.write_all_at(&image[start..end], start as u64).unwrap();
        object.set_present(number);
        rack.work[0].to_shard.push(ToShard::Progress).unwrap();
        for (stream, got) in streams.iter_mut().zip(&mut got) {
            if number == 0 {
                assert!(head(stream).starts_with("HTTP/1.1 200"));
            }
            let mut part = vec![0; end - start];
            stream.read_exact(&mut part).unwrap();
            got.extend(part);
        }
    }
    assert!(got.iter().all(|got| *got == image));
    // One fill for any number of askers.
    assert!(rack.work[0].from_shard.pop().is_none());
    rack.stop();
}

/// The file is shorter than it was: the client is let go, and the next one is not served from it.
#[test]
fn a_file_of_the_cache_that_was_cut_short_is_damaged_and_wanted_anew() {
    let image = content(100_000);
    let cut = Object::complete([3; 32], 200_000, 1 << 20, file(&image).into());
    let cut = Arc::new(cut);
    let mut rack = Rack::start(snapshot(&[], &[Arc::clone(&cut)]), Setup::default());
    let mut stream = connect(rack.http);
    stream.write_all(get(&image_path(3)).as_bytes()).unwrap();
    let mut octets = Vec::new();
    // An end or a reset, but no whole body.
    let _ = stream.read_to_end(&mut octets);
    assert!(octets.len() < 200_000);
    wait_for(|| (cut.state() == images::State::Damaged).then_some(()));
    let mut next = connect(rack.http);
    next.write_all(get(&image_path(3)).as_bytes()).unwrap();
    let wanted = rack.next_to_work(|message| match message {
        ToWork::Want(sha256) => Some(sha256),
        _ => None,
    });
    assert_eq!(wanted, [3; 32]);
    // As the work thread does when it has put another in its place.
    cut.give_up();
    rack.tell(0, ToShard::Progress);
    assert!(head(&mut next).starts_with("HTTP/1.1 503 "));
    rack.stop();
}

#[test]
fn a_fill_that_fails_is_a_503() {
    let object = Arc::new(Object::absent([1; 32], 1_000, 0));
    let mut rack = Rack::start(snapshot(&[], &[Arc::clone(&object)]), Setup::default());
    let mut stream = connect(rack.http);
    stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
    rack.next_to_work(|message| matches!(message, ToWork::Want(_)).then_some(()));
    object.set_filling();
    object.set_failed();
    rack.work[0].to_shard.push(ToShard::Progress).unwrap();
    let (head, _) = response(&mut stream);
    assert!(
        head.starts_with("HTTP/1.1 503") && head.contains("Retry-After"),
        "{head}"
    );
    rack.stop();
}

/// What is not ours leaves with every octet the client has sent, however it came in pieces.
#[test]
fn a_handed_off_connection_keeps_its_octets() {
    let image = content(100_000);
    let mut rack = Rack::start(snapshot(&[], &[object(1, &image)]), Setup::default());
    for round in 0..20 {
        let mut stream = connect(rack.http);
        // On a connection that has already served something.
        assert!(ask(&mut stream, &image_path(1)).1 == image);
        let body = content(200_000 + round);
        let mut request = format!(
            "POST /MAAS/metadata/2012-03-01/ HTTP/1.1\r\nHost: h\r\nContent-Length: {}\r\n\r\n",
            body.len()
        )
        .into_bytes();
        request.extend(&body);
        let client = thread::spawn({
            let request = request.clone();
            move || {
                for part in request.chunks(7_001 + round) {
                    stream.write_all(part).unwrap();
                    if round % 3 == 0 {
                        thread::yield_now();
                    }
                }
                let mut answer = String::new();
                stream.read_to_string(&mut answer).unwrap();
                answer
            }
        });
        let (socket, peer, local, mut read) = rack.next_to_work(|message| match message {
            ToWork::HandOff {
                socket, ends, read, ..
            } => Some((socket, ends.peer, ends.local, read)),
            ToWork::Want(_) | ToWork::Probe { .. } => None,
        });
        assert_eq!(
            (peer.ip(), local.port()),
            (rack.http.ip(), rack.http.port())
        );
        let mut owner = TcpStream::from(socket);
        let timeout = socket2::SockRef::from(&owner).tcp_user_timeout().unwrap();
        assert_eq!(
            timeout,
            Some(Duration::from_secs(10)),
            "inherited from the listener"
        );
        owner.set_nonblocking(false).unwrap();
        let mut rest = vec![0; request.len() - read.len()];
        owner.read_exact(&mut rest).unwrap();
        read.extend(rest);
        assert!(read == request, "round {round}");
        owner
            .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            .unwrap();
        drop(owner);
        assert!(client.join().unwrap().starts_with("HTTP/1.1 200"));
    }
    let stats = rack.stats();
    assert_eq!((stats.shard.hand_offs, stats.driver.streams), (20, 0));
    rack.stop();
}

/// Fewer buffers than clients, and every place taken: everybody is served or told so.
#[test]
fn limits_delay_or_refuse_and_lose_nothing() {
    let image = content(MIB);
    let config = Config {
        connections_max: 50,
        connections_per_source_max: 200,
        ..Config::default()
    };
    let limits = RingLimits {
        http_buffers: 2,
        submissions: 16,
        ..RingLimits::default()
    };
    let rack = Rack::start(
        snapshot(&[], &[object(1, &image)]),
        Setup {
            config,
            limits,
            send_buffer_bytes: Some(16 * 1024),
            ..Setup::default()
        },
    );
    let mut served = Vec::new();
    for number in 0..60 {
        let mut stream = connect(rack.http);
        stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
        let head = head(&mut stream);
        if head.starts_with("HTTP/1.1 200") {
            served.push(stream);
        } else {
            assert!(number >= 50 && head.starts_with("HTTP/1.1 503"), "{head}");
        }
    }
    assert_eq!(served.len(), 50);
    // All at once: a buffer for each receive there is not.
    for stream in &mut served {
        stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
    }
    for mut stream in served {
        let mut body = vec![0; image.len()];
        stream.read_exact(&mut body).expect("a whole body comes");
        assert!(body == image);
        let (head, body) = response(&mut stream);
        assert!(head.starts_with("HTTP/1.1 200") && body == image, "{head}");
    }
    let stats = rack.stats();
    assert_eq!(stats.shard.connections_refused, 10);
    wait_for(|| (rack.shards[0].stats.get().driver.streams == 0).then_some(()));
    rack.stop();
}

/// The driver's table is full of connections that are being closed: their lingering ends early, oldest first.
#[test]
fn lingering_connections_are_bounded() {
    let limits = RingLimits {
        streams_max: 64,
        ..RingLimits::default()
    };
    let rack = Rack::start(
        snapshot(&[("f", b"loader")], &[]),
        Setup {
            limits,
            ..Setup::default()
        },
    );
    // Each says that it is the last request, and stays open on its side.
    let mut open = Vec::new();
    for _ in 0..200 {
        let mut stream = connect(rack.http);
        stream
            .write_all(b"GET /f HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
            .unwrap();
        assert!(response(&mut stream).1 == b"loader");
        open.push(stream);
    }
    assert_eq!(rack.stats().driver.accept_refused, 0);
    rack.stop();
}

/// An end in the middle of everything: nothing hangs, and a drain lets what runs finish.
#[test]
fn stop_and_drain() {
    let image = content(64 * MIB);
    for drain in [true, false] {
        let mut rack = Rack::start(snapshot(&[], &[object(1, &image)]), Setup::default());
        let mut stream = connect(rack.http);
        stream.write_all(get(&image_path(1)).as_bytes()).unwrap();
        let mut some = vec![0; MIB];
        stream.read_exact(&mut some).unwrap();
        let reader = thread::spawn(move || {
            let mut rest = Vec::new();
            let result = stream.read_to_end(&mut rest);
            (result.is_ok(), rest.len())
        });
        let started = Instant::now();
        if drain {
            rack.tell(
                0,
                ToShard::Drain {
                    deadline: Instant::now() + PATIENCE,
                },
            );
        } else {
            rack.tell(0, ToShard::Stop);
        }
        let shard = rack.shards.pop().unwrap();
        shard.join().unwrap();
        assert!(started.elapsed() < PATIENCE / 2, "{:?}", started.elapsed());
        let (_, length) = reader.join().unwrap();
        if drain {
            assert!(length + MIB > image.len(), "{length}");
            assert!(TcpStream::connect(rack.http).is_err(), "nobody listens");
        }
    }
}

/// How a client can go in the middle of a body.
#[derive(Clone, Copy, Debug)]
enum Going {
    /// RST.
    Reset,
    /// FIN, which says that it sends no more, then RST.
    EndThenReset,
    /// close(2) with octets unread: the kernel's RST.
    Unread,
}

/// However a client goes, and whether its body comes from memory or from a file: its connection goes too, and the shard
/// sleeps again.
#[test]
fn a_client_that_goes_away_in_mid_body_costs_nothing_afterwards() {
    let (image, loader) = (content(32 * MIB), content(32 * MIB));
    let rack = Rack::start(
        snapshot(&[("bootx64.efi", &loader)], &[object(1, &image)]),
        Setup::default(),
    );
    let mut went = 0;
    for path in ["/images/bootx64.efi".into(), image_path(1)] {
        for going in [Going::Reset, Going::EndThenReset, Going::Unread] {
            for _ in 0..3 {
                let mut stream = connect(rack.http);
                stream.write_all(get(&path).as_bytes()).unwrap();
                let mut some = vec![0; 64 * 1024];
                stream.read_exact(&mut some).unwrap();
                let reset = |stream: &TcpStream| {
                    let socket = socket2::SockRef::from(stream);
                    socket.set_linger(Some(Duration::ZERO)).unwrap();
                };
                match going {
                    Going::Reset => reset(&stream),
                    Going::EndThenReset => {
                        stream.shutdown(Shutdown::Write).unwrap();
                        // The shard sees the end before the reset: the fault itself.
                        thread::sleep(Duration::from_millis(50));
                        reset(&stream);
                    }
                    Going::Unread => {}
                }
                drop(stream);
                went += 1;
            }
        }
    }
    let stats = wait_for(|| {
        let stats = rack.shards[0].stats.get();
        let accepted = stats.driver.accepted == went;
        (accepted && stats.driver.streams == 0 && stats.http_connections == 0).then_some(stats)
    });
    assert!(stats.driver.stream_sends_failed > 0, "{:?}", stats.driver);
    let before = rack.stats();
    let after = rack.stats();
    let turns = after.shard.turns - before.shard.turns;
    assert!(turns < 40, "{turns} turns in 2 s");
    assert_eq!(after.http.stalled, 0, "none waited for its deadline");
    rack.stop();
}

/// What a client takes counts, not whether a whole chunk left: one that is slower than a chunk a stretch gets all of it.
#[test]
fn a_slow_client_gets_a_large_loader_whole() {
    let loader = content(900_000);
    let mut config = Config::default();
    config.http.stall = Duration::from_millis(500);
    config.http.take_bytes_min = 1024;
    let rack = Rack::start(
        snapshot(&[("grubx64.efi", &loader)], &[]),
        Setup {
            config,
            send_buffer_bytes: Some(16 * 1024),
            ..Setup::default()
        },
    );
    let socket = socket2::Socket::new(
        socket2::Domain::IPV4,
        socket2::Type::STREAM,
        Some(socket2::Protocol::TCP),
    )
    .unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(&rack.http.into()).unwrap();
    let mut stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
        .write_all(get("/images/grubx64.efi").as_bytes())
        .unwrap();
    assert!(head(&mut stream).starts_with("HTTP/1.1 200"));
    let started = Instant::now();
    let mut got = vec![0; loader.len()];
    for part in got.chunks_mut(4 * 1024) {
        stream.read_exact(part).expect("it goes on");
        thread::sleep(Duration::from_millis(10)); // the client's pace
    }
    assert!(got == loader);
    assert!(started.elapsed() > Duration::from_secs(2), "slow enough");
    assert_eq!(rack.stats().http.stalled, 0);
    rack.stop();
}

/// A client that takes next to nothing is dropped, though now and then an octet leaves.
#[test]
fn a_client_that_trickles_is_dropped() {
    let loader = content(900_000);
    let mut config = Config::default();
    config.http.stall = Duration::from_millis(500);
    config.http.take_bytes_min = 200_000;
    let rack = Rack::start(
        snapshot(&[("grubx64.efi", &loader)], &[]),
        Setup {
            config,
            send_buffer_bytes: Some(16 * 1024),
            ..Setup::default()
        },
    );
    let mut stream = connect(rack.http);
    stream
        .write_all(get("/images/grubx64.efi").as_bytes())
        .unwrap();
    let mut octet = [0];
    wait_for(|| {
        let _ = stream.read(&mut octet);
        (rack.shards[0].stats.get().http.stalled == 1).then_some(())
    });
    rack.stop();
}

/// One shard's ring fails for good: that shard begins anew with its sockets and its mailbox, the other one goes on.
#[test]
fn a_shard_whose_ring_fails_begins_anew_alone() {
    let image = content(100_000);
    let mut rack = Rack::start(
        snapshot(&[("f", b"loader")], &[object(1, &image)]),
        Setup {
            shards: 2,
            ..Setup::default()
        },
    );
    let before: Vec<shard::Stats> = wait_for(|| {
        let stats: Vec<_> = rack.shards.iter().map(|shard| shard.stats.get()).collect();
        stats
            .iter()
            .all(|stats| stats.shard.turns > 0)
            .then_some(stats)
    });
    break_a_ring();
    // Its sleep ends with the next thing that happens.
    let failed = wait_for(|| {
        for shard in 0..2 {
            rack.tell(shard, ToShard::Progress);
        }
        thread::sleep(Duration::from_millis(20)); // a mailbox has an end
        (0..2).find(|shard| rack.shards[*shard].stats.get().shard.restarts == 1)
    });
    let other = rack.shards[1 - failed].stats.get();
    assert_eq!(other.shard.restarts, 0);
    assert!(other.shard.turns >= before[1 - failed].shard.turns);
    let message = rack.link[failed].from_shard.pop();
    assert!(
        matches!(message, Some(shard::ToLink::Restarted)),
        "{message:?}"
    );
    assert!(rack.link[1 - failed].from_shard.pop().is_none());
    // Both answer, on the addresses they had.
    for _ in 0..2 {
        let ended = || {
            rack.shards
                .iter()
                .map(|shard| shard.stats.get().http.served)
        };
        let first: Vec<u64> = ended().collect();
        wait_for(|| {
            let mut stream = connect(rack.http);
            assert!(ask(&mut stream, &image_path(1)).1 == image);
            let more = ended().zip(&first).all(|(now, first)| now > *first);
            more.then_some(())
        });
    }
    for number in 0..8 {
        let socket = tftp_socket(&format!("127.0.0.{}:0", number + 1));
        let file = download(&socket, rack.tftp, "f", wire::tftp::Options::default()).unwrap();
        assert_eq!(file, b"loader");
    }
    rack.stop();
}

/// Puts another file in the place of one of this process's rings: every call into it fails from now on.
fn break_a_ring() {
    let ring = std::fs::read_dir("/proc/self/fd")
        .unwrap()
        .filter_map(|entry| {
            let entry = entry.unwrap();
            let target = std::fs::read_link(entry.path()).ok()?;
            let number = entry
                .file_name()
                .into_string()
                .unwrap()
                .parse::<i32>()
                .ok()?;
            (target.to_str() == Some("anon_inode:[io_uring]")).then_some(number)
        })
        .next()
        .expect("a ring");
    let null = std::fs::File::open("/dev/null").unwrap();
    // SAFETY: dup2 replaces one descriptor by another; who uses the first gets errors from then on, which is the fault.
    let result = unsafe { libc::dup2(null.as_raw_fd(), ring) };
    assert_eq!(result, ring);
}

/// Nothing to do costs nothing: no shard spins, with connections or without.
#[test]
fn an_idle_shard_sleeps() {
    let rack = Rack::start(snapshot(&[], &[object(1, b"x")]), Setup::default());
    let mut idle = connect(rack.http);
    assert_eq!(ask(&mut idle, &image_path(1)).1, b"x");
    let closed = connect(rack.http);
    drop(closed);
    let before = rack.stats().driver.enters;
    let after = rack.stats().driver.enters;
    assert!(after - before < 40, "{} calls in 2 s", after - before);
    rack.stop();
}
