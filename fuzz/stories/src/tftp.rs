//! TFTP packets, and a server with a few clients that misbehave.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use arbitrary::Unstructured;
use bytes::Bytes;
use tftp::{Ended, Found, Host, Limits, NoSlot, Peer, Server, TermsLimits, Ticket, Train};
use wire::tftp::{
    BLOCK_BYTES_DEFAULT, CONTROL_BYTES_MAX, Mode, Options, Packet, Request, emit_ack, emit_error,
    emit_oack, emit_read,
};

use crate::{octets, one_of, pick};

/// Any octets as a datagram: no panic, and what was read is written back the same.
pub fn tftp_packet(octets: &[u8]) {
    let mut again = vec![0; octets.len() + CONTROL_BYTES_MAX];
    match Packet::parse(octets) {
        Ok(Packet::Read(request)) => {
            assert!(!request.file.is_empty() && !request.file.contains(&0));
            let length = emit_read(&request, &mut again).expect("the buffer is longer");
            assert_eq!(Packet::parse(&again[..length]), Ok(Packet::Read(request)));
        }
        Ok(Packet::Oack(options)) => {
            let length = emit_oack(&options, &mut again).expect("four options fit");
            assert_eq!(Packet::parse(&again[..length]), Ok(Packet::Oack(options)));
        }
        Ok(Packet::Ack { block }) => {
            let length = emit_ack(block, &mut again).expect("four octets fit");
            assert_eq!(Packet::parse(&again[..length]), Ok(Packet::Ack { block }));
        }
        Ok(Packet::Error { code, message }) => {
            let Ok(text) = str::from_utf8(message) else {
                return;
            };
            let length = emit_error(code, text, &mut again).expect("the buffer is longer");
            let read = Packet::parse(&again[..length]);
            assert_eq!(read, Ok(Packet::Error { code, message }));
        }
        Ok(Packet::Data { payload, .. }) => assert_eq!(payload.len() + 4, octets.len()),
        Ok(Packet::Write(_)) | Err(_) => {}
    }
}

// -------------------------------------------------------------------- a server

const STEPS_MAX: u32 = 300;
const CLIENTS: u32 = 6;
const TRAIN_BYTES_MAX: usize = 4096;
/// Numbers of eight digits: no two blocks are alike, and netascii leaves them as they are.
const FILE_NUMBERS: u32 = 2_000;
/// The transfer ports.
const TIDS: u16 = 3;

/// The shard, as the server sees it: checks what leaves.
struct Shard {
    file: Bytes,
    /// Sends that find no slot, from now.
    full: u32,
    parked: Vec<Ticket>,
    /// File and block size of each client's transfer.
    serves: HashMap<SocketAddr, (Bytes, usize)>,
    /// Where each client's last packet came from.
    tids: HashMap<SocketAddr, u16>,
    ended: u64,
}

impl Host for Shard {
    fn find(&mut self, ticket: Ticket, peer: &Peer, file: &str) -> Found {
        assert!(!file.starts_with('/') && file.split('/').all(|part| part != ".."));
        let mut serve = |file: Bytes| {
            let terms = (file.clone(), usize::from(BLOCK_BYTES_DEFAULT));
            self.serves.insert(peer.client, terms);
            Found::File(file)
        };
        match file.as_bytes().last() {
            Some(b'f') => serve(self.file.clone()),
            Some(b'e') => serve(Bytes::new()),
            Some(b'l') => {
                self.parked.push(ticket);
                Found::Later
            }
            Some(b's') => Found::Silent,
            _ => Found::NotFound,
        }
    }

    fn is_known(&mut self, client: IpAddr) -> bool {
        matches!(client, IpAddr::V4(v4) if v4.octets()[3] % 2 == 1)
    }

    fn send(
        &mut self,
        peer: &Peer,
        tid: u16,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        assert!(train.bytes > 0 && train.segment_bytes > 0);
        assert!(tid < TIDS);
        self.tids.insert(peer.client, tid);
        // What finds no slot is looked at all the same: a client may acknowledge an OACK that it never got.
        let mut slot = vec![0xaa; train.bytes];
        fill(&mut slot);
        for segment in slot.chunks(train.segment_bytes) {
            self.check(peer, segment);
        }
        let full = self.full > 0;
        self.full = self.full.saturating_sub(1);
        if full { Err(NoSlot) } else { Ok(()) }
    }

    fn ended(&mut self, _: Ended<'_>) {
        self.ended += 1;
    }
}

impl Shard {
    fn check(&mut self, peer: &Peer, segment: &[u8]) {
        match Packet::parse(segment).expect("the server's own packet") {
            Packet::Oack(options) => {
                if let (Some(serves), Some(bytes)) =
                    (self.serves.get_mut(&peer.client), options.block_bytes)
                {
                    serves.1 = bytes.into();
                }
            }
            Packet::Data { block, payload } => {
                let (file, bytes) = &self.serves[&peer.client];
                let start = (usize::from(block) - 1) * bytes;
                let end = file.len().min(start + bytes);
                assert_eq!(payload, &file[start..end], "block {block}");
            }
            Packet::Error { .. } => {}
            other => panic!("a server sends no {other:?}"),
        }
    }
}

fn peer(input: &mut Unstructured<'_>) -> Peer {
    let port = 1024 + pick(input, CLIENTS) as u16;
    let client = match port % 4 {
        0 => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, 1]),
        _ => Ipv4Addr::new(10, 99, 0, 7).into(),
    };
    Peer {
        client: (client, port).into(),
        local: Ipv4Addr::new(10, 99, 0, 1).into(),
    }
}

/// A datagram that a client may send, or none that anybody should.
fn datagram(input: &mut Unstructured<'_>) -> Vec<u8> {
    let mut out = vec![0; CONTROL_BYTES_MAX];
    let number = |input: &mut Unstructured<'_>| input.arbitrary::<u16>().unwrap_or_default();
    let some = |input: &mut Unstructured<'_>| {
        let value = number(input);
        (pick(input, 2) == 1).then_some(value)
    };
    let length = match pick(input, 6) {
        0 | 1 => {
            let names = ["a/f", "e", "l", "s", "n", "//g\\f", "../f", "x\u{7}f"];
            let request = Request {
                file: one_of(input, &names).as_bytes(),
                mode: one_of(input, &[Mode::Octet, Mode::Octet, Mode::Netascii]),
                options: Options {
                    block_bytes: some(input).filter(|bytes| (8..=65_464).contains(bytes)),
                    timeout_secs: some(input).map(|secs| (secs as u8).max(1)),
                    transfer_bytes: some(input).map(u64::from),
                    window_blocks: some(input).filter(|blocks| *blocks > 0),
                },
            };
            emit_read(&request, &mut out)
        }
        2 | 3 => emit_ack(pick(input, 70) as u16, &mut out),
        4 => emit_error(wire::tftp::ErrorCode::Other(number(input)), "", &mut out),
        _ => {
            let length = pick(input, 60) as usize;
            return octets(input, length).to_vec();
        }
    };
    let length = length.expect("short names and four options fit");
    out.truncate(length);
    out
}

/// Requests, acknowledgements in any order, full rings and time: limits hold, every transfer ends, and the server
/// always knows when it has to act.
pub fn tftp_server(input: &[u8]) {
    let mut input = Unstructured::new(input);
    let mut now = Instant::now();
    let limits = Limits {
        transfers_max: 1 + pick(&mut input, 4) as usize,
        pending_max: 1 + pick(&mut input, 3) as usize,
        pending_wait: Duration::from_secs(5),
        train_bytes_max: TRAIN_BYTES_MAX,
        unconfirmed_max: 2,
        unconfirmed_per_client: 2,
        tids: TIDS,
        terms: TermsLimits::default(),
        ..Limits::default()
    };
    let mut server = Server::new(limits, 7);
    let mut shard = Shard {
        file: (0..FILE_NUMBERS)
            .flat_map(|n| format!("{n:08}").into_bytes())
            .collect(),
        full: 0,
        parked: vec![],
        serves: HashMap::new(),
        tids: HashMap::new(),
        ended: 0,
    };
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        match pick(&mut input, 10) {
            0..=2 => {
                let (peer, octets) = (peer(&mut input), datagram(&mut input));
                let mtu = one_of(&mut input, &[None, Some(1500), Some(0), Some(60)]);
                server.on_request(peer, mtu, &octets, now, &mut shard);
            }
            3..=5 => {
                let (peer, octets) = (peer(&mut input), datagram(&mut input));
                let tid = shard.tids.get(&peer.client).copied().unwrap_or(0);
                server.on_transfer(peer, tid, &octets, now, &mut shard);
            }
            6 => {
                let parked = shard.parked.len() as u32;
                if parked > 0 {
                    let ticket = shard.parked.swap_remove(pick(&mut input, parked) as usize);
                    server.retry(ticket);
                }
            }
            7 => shard.full = pick(&mut input, 4),
            8 => {
                now += Duration::from_millis(one_of(&mut input, &[1, 200, 1000, 6000]));
                run(&mut server, now, &mut shard);
            }
            _ => run(&mut server, now, &mut shard),
        }
        assert!(server.unconfirmed_count() <= limits.unconfirmed_max);
        assert!(server.transfer_count() - server.unconfirmed_count() <= limits.transfers_max);
        assert!(server.pending_count() <= limits.pending_max);
        let counted = server.counters;
        assert_eq!(
            counted.started,
            shard.ended + server.transfer_count() as u64
        );
    }
    shard.full = 0;
    // The end of the turn. With everybody gone it comes to rest by itself.
    run(&mut server, now, &mut shard);
    while let Some(deadline) = server.next_deadline() {
        now = now.max(deadline);
        run(&mut server, now, &mut shard);
    }
    assert_eq!((server.transfer_count(), server.pending_count()), (0, 0));
}

fn run(server: &mut Server, now: Instant, shard: &mut Shard) {
    let full = shard.full > 0;
    server.run(now, shard);
    let due = server
        .next_deadline()
        .is_some_and(|deadline| deadline <= now);
    assert!(!due || full, "there is still something to do at {now:?}");
}
