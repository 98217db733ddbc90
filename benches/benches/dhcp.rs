//! One DHCP message, piece by piece: parse, decide, emit; beside dhcproto, which decodes into owned values.
//!
//! Floors: a datagram costs 1.7 us on loopback, nearly all of it the kernel's. `cargo xtask bench codec`, or
//! `cargo bench -p benches`.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use dhcp::{BootReply, Engine, Limits, Out, Outbox, Rate, Received, Sender, Shard};
use dhcproto::{Decodable, Encodable, Encoder, v4};
use lease::Outcome;
use wire::dhcp4::{Header, LeaseTimes, MessageType, OP_REPLY, View, Writer, code};
use wire::ethernet::Mac;

/// The engine's own tests' site and messages.
#[path = "../../dataplane/dhcp/tests/common/mod.rs"]
mod common;

use common::{Fixed, block, config, discover, mac, request, row};

/// OVMF's DISCOVER: 35 parameters asked for, architecture, UUID, vendor class.
const DISCOVER: &[u8] = include_bytes!("../../dataplane/wire/tests/data/ovmf-pxe-discover.bin");
const SERVER: Ipv4Addr = common::SERVER;
const CLIENTS: u8 = 100;

fn parse(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("parse a PXE DISCOVER");
    group.bench_function("view", |bench| {
        bench.iter(|| {
            let view = View::parse(black_box(DISCOVER)).expect("a captured message");
            black_box((
                view.message_type(),
                view.mac(),
                view.arch(),
                view.requested_address(),
            ))
        });
    });
    group.bench_function("view, every option", |bench| {
        bench.iter(|| {
            let view = View::parse(black_box(DISCOVER)).expect("a captured message");
            view.options()
                .map(|(code, octets)| usize::from(code) + octets.len())
                .sum::<usize>()
        });
    });
    group.bench_function("dhcproto", |bench| {
        bench.iter(|| v4::Message::from_bytes(black_box(DISCOVER)).expect("a captured message"));
    });
    group.finish();
}

fn emit(criterion: &mut Criterion) {
    let mut header = Header::new(OP_REPLY);
    header.xid.set(7);
    header.yiaddr = [10, 99, 0, 100];
    header.chaddr[..6].copy_from_slice(&[0x52, 0x54, 0, 0, 1, 0]);
    let write = |buffer: &mut [u8]| {
        let mut writer = Writer::new(buffer, 1472, &header, MessageType::Offer)?;
        writer.address(code::SERVER_ID, SERVER)?;
        writer.address(code::SUBNET_MASK, Ipv4Addr::new(255, 255, 255, 0))?;
        writer.addresses(code::ROUTERS, &[SERVER])?;
        writer.addresses(code::DNS_SERVERS, &[SERVER, SERVER])?;
        writer.lease_times(LeaseTimes::of(600))?;
        Ok::<usize, wire::dhcp4::WriteError>(writer.finish())
    };
    let mut buffer = vec![0; 1472];
    let length = write(&mut buffer).expect("it fits");
    let message = v4::Message::from_bytes(&buffer[..length]).expect("our own OFFER");

    let mut group = criterion.benchmark_group("emit an OFFER");
    group.bench_function("writer", |bench| {
        bench.iter(|| black_box(write(black_box(&mut buffer)).expect("it fits")));
    });
    let mut octets = Vec::with_capacity(1472);
    group.bench_function("dhcproto", |bench| {
        bench.iter(|| {
            octets.clear();
            let mut encoder = Encoder::new(&mut octets);
            black_box(&message).encode(&mut encoder).expect("it fits");
        });
    });
    group.finish();
}

/// An engine whose clients repeat themselves as fast as they like.
fn engine(now: Instant) -> (Engine, Fixed) {
    let limits = Limits {
        mac_rate: Rate::UNLIMITED,
        ..Limits::default()
    };
    (
        Engine::new(Shard { index: 0, count: 1 }, limits, 42, now),
        config(),
    )
}

fn decide(criterion: &mut Criterion) {
    let now = Instant::now();
    let until = now + Duration::from_secs(86_400);
    let clients: Vec<Mac> = (0..CLIENTS).map(mac).collect();
    let address = |number: u8| common::ip(100 + number);
    let discovers: Vec<Vec<u8>> = clients.iter().map(|mac| discover(*mac).octets()).collect();
    let requests: Vec<Vec<u8>> = clients
        .iter()
        .zip(0..)
        .map(|(mac, number)| request(*mac, address(number)).octets())
        .collect();
    let boot = BootReply::default();

    let mut group = criterion.benchmark_group("decide");
    for (name, messages) in [
        ("DISCOVER of a bound client: OFFER", &discovers),
        ("REQUEST of a bound client: ACK from memory", &requests),
    ] {
        let (mut engine, config) = engine(now);
        let rows: Vec<_> = clients
            .iter()
            .zip(0..)
            .map(|(mac, number)| row(address(number), *mac, 1_200_000))
            .collect();
        engine.attach(&[block(CLIENTS.into())], &rows, until, now, &config, now);
        let received = Received {
            link: &config.links[0],
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::BROADCAST,
            sender: Sender::Frame,
        };
        let views: Vec<View> = messages
            .iter()
            .map(|octets| View::parse(octets).expect("our own message"))
            .collect();
        let mut out = Outbox::new(64);
        let mut next = views.iter().cycle();
        group.bench_function(name, |bench| {
            bench.iter(|| {
                let view = next.next().expect("a cycle never ends");
                let dropped = engine.on_message(view, &received, &boot, &config, now, &mut out);
                assert!(dropped.is_none(), "{dropped:?}");
                black_box(out.drain().0.count())
            });
        });
    }

    group.throughput(Throughput::Elements(CLIENTS.into()));
    group.bench_function(
        "100 DORAs of new clients, each with its grant and the outcome",
        |bench| {
            bench.iter_batched_ref(
                || {
                    let (mut engine, config) = engine(now);
                    engine.attach(&[block(CLIENTS.into())], &[], until, now, &config, now);
                    (engine, config, Outbox::new(64))
                },
                |(engine, config, out)| {
                    for client in &clients {
                        dora(engine, config, out, *client, now);
                    }
                },
                BatchSize::LargeInput,
            );
        },
    );
    group.finish();
}

/// DISCOVER to ACK, messages made and parsed on the way.
fn dora(engine: &mut Engine, config: &Fixed, out: &mut Outbox, client: Mac, now: Instant) {
    let received = Received {
        link: &config.links[0],
        source: Ipv4Addr::UNSPECIFIED,
        destination: Ipv4Addr::BROADCAST,
        sender: Sender::Frame,
    };
    let boot = BootReply::default();
    let octets = discover(client).octets();
    let view = View::parse(&octets).expect("our own message");
    engine.on_message(&view, &received, &boot, config, now, out);
    let (mut items, buffer) = out.drain();
    let Some(Out::Reply(offer)) = items.next() else {
        panic!("no OFFER");
    };
    let offered = View::parse(offer.payload(buffer))
        .expect("our own OFFER")
        .yiaddr();
    drop(items);

    let octets = request(client, offered).octets();
    let view = View::parse(&octets).expect("our own message");
    engine.on_message(&view, &received, &boot, config, now, out);
    let ticket = out.drain().0.find_map(|item| match item {
        Out::Lease { ticket, .. } => Some(ticket),
        _ => None,
    });
    let durable = Outcome::Durable {
        remaining: Duration::from_secs(1_200),
    };
    engine.on_outcome(ticket.expect("a grant"), durable, now, out);
    let acked = out
        .drain()
        .0
        .any(|item| matches!(item, Out::Reply(reply) if reply.kind == MessageType::Ack));
    assert!(acked, "no ACK");
}

criterion_group!(benches, parse, emit, decide);
criterion_main!(benches);
