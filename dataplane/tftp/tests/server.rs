//! The whole server against a client that loses, repeats and reorders.

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tftp::{Ended, Found, Host, Limits, NoSlot, Outcome, Peer, Server, Ticket, Train};
use wire::tftp::{ErrorCode, Mode, Options, Packet, Request, emit_ack, emit_error, emit_read};

#[derive(Default)]
struct World {
    files: HashMap<String, Found>,
    sent: VecDeque<(Peer, Vec<u8>)>,
    /// The transfer port of the last packet.
    tid: u16,
    ended: Vec<(String, Outcome)>,
    later: Vec<Ticket>,
    slots: usize,
}

impl Host for World {
    fn find(&mut self, ticket: Ticket, _: &Peer, file: &str) -> Found {
        let found = self.files.get(file).cloned().unwrap_or(Found::NotFound);
        if matches!(found, Found::Later) {
            self.later.push(ticket);
        }
        found
    }

    fn is_known(&mut self, _: IpAddr) -> bool {
        false
    }

    fn send(
        &mut self,
        peer: &Peer,
        tid: u16,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        if self.slots == 0 {
            return Err(NoSlot);
        }
        self.slots -= 1;
        self.tid = tid;
        let mut slot = vec![0; train.bytes];
        fill(&mut slot);
        for segment in slot.chunks(train.segment_bytes) {
            self.sent.push_back((*peer, segment.to_vec()));
        }
        Ok(())
    }

    fn ended(&mut self, ended: Ended<'_>) {
        self.ended.push((ended.file.into(), ended.outcome));
    }
}

fn world() -> World {
    let mut world = World {
        slots: usize::MAX,
        ..World::default()
    };
    world.files.insert("f".into(), Found::File(content(10_000)));
    world
}

fn content(bytes: usize) -> Bytes {
    (0..bytes)
        .map(|at| (at * 31 % 251) as u8)
        .collect::<Vec<_>>()
        .into()
}

fn peer(port: u16) -> Peer {
    Peer {
        client: SocketAddr::from(([10, 0, 0, 9], port)),
        local: [10, 0, 0, 1].into(),
    }
}

fn read(file: &str, options: Options) -> Vec<u8> {
    let mut out = [0; 512];
    let request = Request {
        file: file.as_bytes(),
        mode: Mode::Octet,
        options,
    };
    let length = emit_read(&request, &mut out).unwrap();
    out[..length].to_vec()
}

fn ack(block: u16) -> Vec<u8> {
    let mut out = [0; 4];
    emit_ack(block, &mut out).unwrap();
    out.to_vec()
}

fn next(world: &mut World) -> Vec<u8> {
    world.sent.pop_front().expect("a packet was sent").1
}

fn error_code(octets: &[u8]) -> ErrorCode {
    match Packet::parse(octets) {
        Ok(Packet::Error { code, .. }) => code,
        other => panic!("no error: {other:?}"),
    }
}

/// A client by RFC 7440 over a link that drops one in `lose` packets of either direction. The choice is a fixed
/// pseudo-random sequence: dropping every third packet exactly would drop the same retry for ever.
fn download(options: Options, bytes: usize, lose: Option<u64>) -> (Vec<u8>, Server) {
    let mut world = world();
    world.files.insert("f".into(), Found::File(content(bytes)));
    let mut server = Server::new(Limits::default(), 7);
    let mut now = Instant::now();
    let mut state = 0x9e37_79b9_u64;
    let mut lost = || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        lose.is_some_and(|one_in| (state >> 33).is_multiple_of(one_in))
    };
    let request = read("f", options);
    server.on_request(peer(1000), Some(1500), &request, now, &mut world);
    server.run(now, &mut world);

    let (mut file, mut block, mut block_bytes, mut window) = (Vec::new(), 0u16, 512, 1);
    let mut in_window = 0;
    for _ in 0..100_000 {
        let Some((_, octets)) = world.sent.pop_front() else {
            if !world.ended.is_empty() {
                break;
            }
            // Silence: the client repeats itself first, then the server's deadline passes.
            now += Duration::from_millis(600);
            let again = if file.is_empty() && block == 0 {
                request.clone()
            } else {
                ack(block)
            };
            if !lost() {
                if again == request {
                    server.on_request(peer(1000), Some(1500), &again, now, &mut world);
                } else {
                    server.on_transfer(peer(1000), 0, &again, now, &mut world);
                }
            }
            server.run(now, &mut world);
            continue;
        };
        if lost() {
            continue;
        }
        match Packet::parse(&octets).unwrap() {
            Packet::Oack(agreed) => {
                block_bytes = usize::from(agreed.block_bytes.unwrap_or(512));
                window = usize::from(agreed.window_blocks.unwrap_or(1));
                if !lost() {
                    server.on_transfer(peer(1000), 0, &ack(0), now, &mut world);
                }
            }
            Packet::Data {
                block: number,
                payload,
            } if number == block.wrapping_add(1) => {
                block = number;
                file.extend_from_slice(payload);
                in_window += 1;
                if in_window == window || payload.len() < block_bytes {
                    in_window = 0;
                    if !lost() {
                        server.on_transfer(peer(1000), 0, &ack(block), now, &mut world);
                    }
                }
            }
            Packet::Data { .. } => {
                in_window = 0;
                if !lost() {
                    server.on_transfer(peer(1000), 0, &ack(block), now, &mut world);
                }
            }
            other => panic!("{other:?}"),
        }
        server.run(now, &mut world);
    }
    (file, server)
}

#[test]
fn every_file_arrives_whole_whatever_is_lost() {
    for bytes in [0, 1, 511, 512, 513, 40_000] {
        for (block, window) in [(None, None), (Some(1468), Some(4)), (Some(8), Some(16))] {
            for lose in [None, Some(5), Some(7), Some(13)] {
                let options = Options {
                    block_bytes: block,
                    window_blocks: window,
                    ..Options::default()
                };
                let (file, server) = download(options, bytes, lose);
                assert!(
                    file == content(bytes),
                    "{bytes} {block:?} {window:?} {lose:?}"
                );
                assert!(server.transfer_count() <= 1);
                if lose.is_none() {
                    assert_eq!(server.counters.resent, 0, "{bytes} {block:?} {window:?}");
                    assert_eq!(server.transfer_count(), 0);
                }
            }
        }
    }
}

#[test]
fn requests_that_get_an_error() {
    let mut write = read("f", Options::default());
    write[1] = 2;
    let cases = [
        (
            "missing",
            read("nothing", Options::default()),
            ErrorCode::FileNotFound,
        ),
        (
            "climbing",
            read("../f", Options::default()),
            ErrorCode::AccessViolation,
        ),
        (
            "climbing inside",
            read("a/../../f", Options::default()),
            ErrorCode::AccessViolation,
        ),
        (
            "drive",
            read("c:\\f", Options::default()),
            ErrorCode::AccessViolation,
        ),
        ("write", write, ErrorCode::IllegalOperation),
        (
            "a name with a NUL in it",
            b"\0\x01f\0../g\0octet\0".to_vec(),
            ErrorCode::IllegalOperation,
        ),
        (
            "no end",
            b"\0\x01f\0octet".to_vec(),
            ErrorCode::IllegalOperation,
        ),
    ];
    for (case, octets, want) in cases {
        let (mut world, mut server) = (world(), Server::new(Limits::default(), 7));
        let now = Instant::now();
        server.on_request(peer(1), None, &octets, now, &mut world);
        server.run(now, &mut world);
        assert_eq!(error_code(&next(&mut world)), want, "{case}");
        assert_eq!(
            (server.transfer_count(), server.pending_count()),
            (0, 0),
            "{case}"
        );
    }
}

#[test]
fn what_is_no_request_gets_no_answer() {
    for octets in [
        &b""[..],
        b"\0",
        b"\0\x01",
        b"\0\x09abc",
        b"\0\x04\0\x01",
        b"\xff\xff\xff\xff",
    ] {
        let (mut world, mut server) = (world(), Server::new(Limits::default(), 7));
        let now = Instant::now();
        server.on_request(peer(1), None, octets, now, &mut world);
        server.run(now, &mut world);
        assert!(world.sent.is_empty(), "{octets:?}: {:?}", world.sent);
    }
}

/// OVMF asks for the size, gets the OACK, aborts with code 8 and asks again from the same port.
#[test]
fn a_size_probe_ends_quietly() {
    let (mut world, mut server) = (world(), Server::new(Limits::default(), 7));
    let now = Instant::now();
    let probe = Options {
        transfer_bytes: Some(0),
        block_bytes: Some(1468),
        window_blocks: Some(4),
        ..Options::default()
    };
    for _ in 0..2 {
        server.on_request(peer(1), Some(1500), &read("/f", probe), now, &mut world);
        server.run(now, &mut world);
        let octets = next(&mut world);
        let Ok(Packet::Oack(agreed)) = Packet::parse(&octets) else {
            panic!("{octets:?}")
        };
        assert_eq!(
            agreed,
            Options {
                transfer_bytes: Some(10_000),
                ..probe
            }
        );
        let mut out = [0; 64];
        let length = emit_error(
            ErrorCode::OptionsRefused,
            "User aborted the transfer",
            &mut out,
        )
        .unwrap();
        server.on_transfer(peer(1), 0, &out[..length], now, &mut world);
        assert!(world.sent.is_empty());
        assert_eq!(server.transfer_count(), 0);
    }
    assert_eq!(server.counters.aborted, 2);
    assert_eq!(world.ended, vec![("f".to_string(), Outcome::Aborted); 2]);
}

/// The same 4-tuple asks again: the first packet is repeated. After progress, or for another file, it is a new boot.
#[test]
fn repeated_requests() {
    let (mut world, mut server) = (world(), Server::new(Limits::default(), 7));
    world.files.insert("g".into(), Found::File(content(3)));
    let now = Instant::now();
    let request = read("f", Options::default());
    for _ in 0..3 {
        server.on_request(peer(1), None, &request, now, &mut world);
        server.run(now, &mut world);
        assert_eq!(next(&mut world)[..4], [0, 3, 0, 1]);
        assert!(world.sent.is_empty());
    }
    assert_eq!((server.transfer_count(), server.counters.repeated), (1, 2));

    server.on_transfer(peer(1), 0, &ack(1), now, &mut world);
    assert_eq!(next(&mut world)[..4], [0, 3, 0, 2]);
    server.on_request(peer(1), None, &request, now, &mut world);
    server.run(now, &mut world);
    assert_eq!(next(&mut world)[..4], [0, 3, 0, 1]);

    server.on_request(
        peer(1),
        None,
        &read("g", Options::default()),
        now,
        &mut world,
    );
    server.run(now, &mut world);
    assert_eq!(next(&mut world).len(), 7);
    assert_eq!((server.transfer_count(), server.counters.replaced), (1, 2));
}

#[test]
fn a_parked_request_is_served_once_the_file_is_there() {
    let (mut world, mut server) = (world(), Server::new(Limits::default(), 7));
    world.files.insert("l".into(), Found::Later);
    let now = Instant::now();
    server.on_request(
        peer(1),
        None,
        &read("l", Options::default()),
        now,
        &mut world,
    );
    server.on_request(
        peer(1),
        None,
        &read("l", Options::default()),
        now,
        &mut world,
    );
    server.run(now, &mut world);
    assert!(world.sent.is_empty());
    assert_eq!(world.later.len(), 1);
    world.files.insert("l".into(), Found::File(content(1)));
    server.run(now, &mut world);
    assert!(world.sent.is_empty(), "nobody said it is there");
    server.retry(world.later[0]);
    server.retry(world.later[0]);
    server.run(now, &mut world);
    assert_eq!(world.sent.len(), 1);
    server.retry(world.later[0]); // stale by now
    server.run(now, &mut world);
    assert_eq!(world.sent.len(), 1);

    // One that never comes is dropped at its deadline.
    world.files.insert("n".into(), Found::Later);
    server.on_request(
        peer(2),
        None,
        &read("n", Options::default()),
        now,
        &mut world,
    );
    server.run(now, &mut world);
    let later = now + Limits::default().pending_wait;
    assert!(server.next_deadline().unwrap() <= later);
    server.run(later, &mut world);
    assert_eq!((server.pending_count(), server.counters.expired), (0, 1));
}

#[test]
fn a_full_table_serves_retries_first_and_sheds_the_oldest_request() {
    let limits = Limits {
        transfers_max: 2,
        pending_max: 3,
        ..Limits::default()
    };
    let (mut world, mut server) = (world(), Server::new(limits, 7));
    let now = Instant::now();
    for port in 1..=2 {
        server.on_request(
            peer(port),
            None,
            &read("f", Options::default()),
            now,
            &mut world,
        );
    }
    server.run(now, &mut world);
    // Only those that answer have a place.
    for port in 1..=2 {
        server.on_transfer(peer(port), 0, &ack(1), now, &mut world);
    }
    for port in 3..=7 {
        server.on_request(
            peer(port),
            None,
            &read("f", Options::default()),
            now,
            &mut world,
        );
    }
    server.run(now, &mut world);
    assert_eq!((server.transfer_count(), server.pending_count()), (2, 3));
    assert_eq!(server.counters.shed, 2); // 3 and 4
    world.sent.clear();

    // A second later both transfers repeat their block; then one ends and 5 gets its place.
    let later = now + Duration::from_secs(1);
    server.run(later, &mut world);
    assert_eq!(
        world.sent.drain(..).map(|(to, _)| to).collect::<Vec<_>>(),
        [peer(1), peer(2)]
    );
    let mut out = [0; 64];
    let length = emit_error(ErrorCode::NotDefined, "", &mut out).unwrap();
    server.on_transfer(peer(1), 0, &out[..length], later, &mut world);
    server.run(later, &mut world);
    assert_eq!(world.sent.pop_front().unwrap().0, peer(5));
}

/// Without a free slot a window is cut, and goes on where it was cut.
#[test]
fn no_slot_delays_but_loses_nothing() {
    let limits = Limits {
        train_bytes_max: 1100,
        ..Limits::default()
    };
    let (mut world, mut server) = (world(), Server::new(limits, 7));
    let now = Instant::now();
    world.slots = 0;
    let options = Options {
        window_blocks: Some(8),
        ..Options::default()
    };
    server.on_request(peer(1), None, &read("f", options), now, &mut world);
    server.run(now, &mut world);
    assert!(world.sent.is_empty());
    world.slots = 1;
    server.run(now, &mut world);
    assert!(matches!(
        Packet::parse(&next(&mut world)),
        Ok(Packet::Oack(_))
    ));
    world.slots = 1;
    server.on_transfer(peer(1), 0, &ack(0), now, &mut world);
    let mut numbers: Vec<u8> = world.sent.drain(..).map(|(_, octets)| octets[3]).collect();
    assert_eq!(numbers, [1, 2]);
    for _ in 0..3 {
        world.slots = 1;
        server.run(now, &mut world);
        numbers.extend(world.sent.drain(..).map(|(_, octets)| octets[3]));
    }
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7, 8]);
    assert_eq!(server.counters.resent, 0);
}
