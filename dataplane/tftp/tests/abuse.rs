//! Those that only ask, those that answer and fall silent, and those that guess: what they take from all others.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tftp::{Ended, Found, Host, Limits, NoSlot, Outcome, Peer, Server, Ticket, Train};
use wire::tftp::{Mode, Options, Packet, Request, emit_ack, emit_read};

/// IPv4 and UDP headers.
const HEADERS_BYTES: usize = 28;

#[derive(Default)]
struct World {
    files: HashMap<String, Found>,
    known: Vec<IpAddr>,
    /// By client: packets and where they came from.
    sent: HashMap<SocketAddr, Vec<(u16, Vec<u8>)>>,
    octets: usize,
    ended: Vec<(Peer, Outcome)>,
    later: Vec<Ticket>,
}

impl Host for World {
    fn find(&mut self, ticket: Ticket, _: &Peer, file: &str) -> Found {
        let found = self.files.get(file).cloned().unwrap_or(Found::NotFound);
        if matches!(found, Found::Later) {
            self.later.push(ticket);
        }
        found
    }

    fn is_known(&mut self, client: IpAddr) -> bool {
        self.known.contains(&client)
    }

    fn send(
        &mut self,
        peer: &Peer,
        tid: u16,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        let mut slot = vec![0; train.bytes];
        fill(&mut slot);
        for segment in slot.chunks(train.segment_bytes) {
            self.octets += HEADERS_BYTES + segment.len();
            let to = self.sent.entry(peer.client).or_default();
            to.push((tid, segment.to_vec()));
        }
        Ok(())
    }

    fn ended(&mut self, ended: Ended<'_>) {
        self.ended.push((*ended.peer, ended.outcome));
    }
}

struct Story {
    server: Server,
    world: World,
    now: Instant,
}

const FILE_BYTES: usize = 100_000;

impl Story {
    fn new(limits: Limits) -> Self {
        let mut world = World::default();
        let file = Bytes::from(vec![7; FILE_BYTES]);
        world.files.insert("f".into(), Found::File(file));
        world.files.insert("parked".into(), Found::Later);
        Self {
            server: Server::new(limits, 7),
            world,
            now: Instant::now(),
        }
    }

    fn ask(&mut self, peer: Peer, file: &str, options: Options) -> usize {
        let octets = request(file, Mode::Octet, options);
        self.ask_with(peer, &octets)
    }

    fn ask_with(&mut self, peer: Peer, octets: &[u8]) -> usize {
        let (server, world) = (&mut self.server, &mut self.world);
        server.on_request(peer, Some(1500), octets, self.now, world);
        server.run(self.now, world);
        HEADERS_BYTES + octets.len()
    }

    fn ack(&mut self, peer: Peer, tid: u16, block: u16) -> usize {
        let mut out = [0; 4];
        emit_ack(block, &mut out).unwrap();
        let (server, world) = (&mut self.server, &mut self.world);
        server.on_transfer(peer, tid, &out, self.now, world);
        server.run(self.now, world);
        HEADERS_BYTES + out.len()
    }

    fn wait(&mut self, time: Duration) {
        self.now += time;
        self.server.run(self.now, &mut self.world);
    }

    /// The port that the last packet to this client came from.
    fn tid(&self, peer: Peer) -> u16 {
        self.world.sent[&peer.client].last().unwrap().0
    }

    /// Asks with options and confirms: the first window is out.
    fn confirm(&mut self, peer: Peer, options: Options) {
        self.ask(peer, "f", options);
        let tid = self.tid(peer);
        self.ack(peer, tid, 0);
    }

    /// Downloads the file in windows of eight, as firmware does. Every packet is there at once.
    fn download(&mut self, peer: Peer) -> bool {
        let options = Options {
            block_bytes: Some(1468),
            window_blocks: Some(8),
            ..Options::default()
        };
        self.world.sent.remove(&peer.client);
        self.ask(peer, "f", options);
        let mut octets = 0;
        let mut block = 0;
        loop {
            let Some(packets) = self.world.sent.remove(&peer.client) else {
                return octets == FILE_BYTES;
            };
            let tid = packets[0].0;
            for (_, packet) in packets {
                if let Ok(Packet::Data { block: of, payload }) = Packet::parse(&packet) {
                    (block, octets) = (of, octets + payload.len());
                }
            }
            self.ack(peer, tid, block);
        }
    }
}

fn request(file: &str, mode: Mode, options: Options) -> Vec<u8> {
    let mut out = [0; 512];
    let file = file.as_bytes();
    let length = emit_read(
        &Request {
            file,
            mode,
            options,
        },
        &mut out,
    )
    .unwrap();
    out[..length].to_vec()
}

fn peer(host: u32, port: u16) -> Peer {
    let [_, a, b, c] = host.to_be_bytes();
    Peer {
        client: SocketAddr::from(([10, a, b, c], port)),
        local: [10, 255, 0, 1].into(),
    }
}

fn timeout(secs: u8) -> Options {
    Options {
        timeout_secs: Some(secs),
        ..Options::default()
    }
}

#[test]
fn nine_thousand_ports_that_ask_for_timeout_255_hold_one_share_for_seconds() {
    let limits = Limits::default();
    let mut story = Story::new(limits);
    for port in 0..9_000 {
        story.ask(peer(9, 1000 + port), "f", timeout(255));
        assert!(story.server.transfer_count() <= limits.unconfirmed_per_client);
    }
    assert!(story.download(peer(1, 1000)), "a normal client");
    assert!(story.download(peer(9, 999)), "the same address, answering");
    story.wait(Duration::from_secs(5));
    assert_eq!(story.server.transfer_count(), 0, "our time, not theirs");
    assert_eq!(story.server.next_deadline(), None);
}

#[test]
fn addresses_that_only_ask_displace_each_other_and_nobody_who_answers() {
    let limits = Limits::default();
    let mut story = Story::new(limits);
    let running = peer(1, 1000);
    story.confirm(running, timeout(10));
    for host in 0..20_000 {
        story.ask(peer(100 + host, 1000), "f", timeout(255));
    }
    assert_eq!(story.server.unconfirmed_count(), limits.unconfirmed_max);
    assert!(story.download(peer(2, 1000)), "a new client");
    let tid = story.tid(running);
    let before = story.world.octets;
    story.ack(running, tid, 1);
    assert!(story.world.octets > before, "what runs goes on");
    assert_eq!(story.server.counters.displaced_stalled, 0);
}

#[test]
fn confirmed_transfers_of_one_address_are_a_share() {
    let limits = Limits {
        transfers_max: 100,
        transfers_per_client: 4,
        ..Limits::default()
    };
    let mut story = Story::new(limits);
    for port in 0..200 {
        story.confirm(peer(9, 1000 + port), timeout(10));
        story.now += Duration::from_millis(1);
    }
    assert_eq!(story.server.transfer_count(), 4);
    assert_eq!(story.server.counters.displaced_share, 196);
    // The longest silent one went: the newest are there.
    let last = story.world.ended.last().unwrap();
    assert_eq!(*last, (peer(9, 1000 + 195), Outcome::Displaced));
}

#[test]
fn with_every_place_taken_the_stalled_give_way_and_the_running_stay() {
    let limits = Limits {
        transfers_max: 8,
        ..Limits::default()
    };
    let mut story = Story::new(limits);
    for host in 0..8 {
        story.confirm(peer(host, 1000), timeout(10));
    }
    story.wait(Duration::from_millis(1_500));
    // One has 16 KiB, the others a block.
    for host in 0..8 {
        let tid = story.tid(peer(host, 1000));
        for block in 1..=if host == 3 { 32 } else { 1 } {
            story.ack(peer(host, 1000), tid, block);
        }
    }
    assert!(!story.download(peer(50, 1000)), "nobody is stalled yet");
    story.wait(Duration::from_millis(600));
    assert!(story.download(peer(51, 1000)), "seven places are free");
    assert_eq!(story.server.counters.displaced_stalled, 7);
    assert!(!story.world.ended.iter().any(|(of, _)| *of == peer(3, 1000)));
}

/// One host with an address for every place, each of which answers in time: how many addresses it has is its own choice,
/// whether the region knows them is not.
#[test]
fn a_known_machine_boots_though_many_addresses_hold_every_place_and_answer() {
    let limits = Limits {
        transfers_max: 64,
        pending_max: 32,
        ..Limits::default()
    };
    let mut story = Story::new(limits);
    story.world.known = vec![peer(1, 0).client.ip(), peer(2, 0).client.ip()];
    let strangers: Vec<Peer> = (0..64).map(|host| peer(100 + host, 1000)).collect();
    for peer in &strangers {
        story.confirm(*peer, timeout(10));
    }
    for block in 1..4 {
        story.wait(Duration::from_millis(900));
        for peer in &strangers {
            if story.world.ended.iter().any(|(ended, _)| ended == peer) {
                continue;
            }
            let tid = story.tid(*peer);
            for part in 1..=32 {
                story.ack(*peer, tid, 32 * (block - 1) + part);
            }
        }
        // More of them wait than may.
        for host in 0..40 {
            story.ask(peer(1000 + host, 1000), "f", timeout(10));
        }
        assert!(story.download(peer(1, 1000 + block)), "a known machine");
        // Its place is free now, and a stranger takes it again.
        story.confirm(peer(300 + u32::from(block), 1000), timeout(10));
    }
    assert_eq!(story.server.counters.displaced_stranger, 3);
    assert!(!story.download(peer(99, 1000)), "a stranger waits");
    assert_eq!(story.server.counters.displaced_stalled, 0);
    // Known machines alone hold the places: then one of them waits like anybody.
    let all: Vec<Peer> = (0..64).map(|host| peer(200 + host, 1000)).collect();
    let mut story = Story::new(limits);
    story.world.known = all.iter().map(|peer| peer.client.ip()).collect();
    story.world.known.push(peer(1, 0).client.ip());
    for peer in &all {
        story.confirm(*peer, timeout(10));
    }
    assert!(!story.download(peer(1, 1000)));
    assert_eq!(story.server.counters.displaced_stranger, 0);
}

#[test]
fn a_transfer_that_trickles_has_a_lifetime_of_ours() {
    let mut story = Story::new(Limits::default());
    let slow = peer(9, 1000);
    story.confirm(slow, timeout(10));
    let tid = story.tid(slow);
    // 196 blocks: a minute and 49 s.
    for block in 1..=12 {
        story.wait(Duration::from_secs(9));
        story.ack(slow, tid, block);
        assert_eq!(story.server.transfer_count(), 1, "{block}");
    }
    story.wait(Duration::from_secs(9));
    assert_eq!(story.world.ended, [(slow, Outcome::GaveUp)]);
}

#[test]
fn a_confirmed_transfer_that_falls_silent_is_given_up() {
    let mut story = Story::new(Limits::default());
    story.confirm(peer(9, 1000), timeout(255));
    for _ in 0..6 {
        story.wait(Duration::from_secs(1));
    }
    assert_eq!(story.world.ended, [(peer(9, 1000), Outcome::GaveUp)]);
}

#[test]
fn before_the_first_answer_three_packets_leave() {
    for (options, packet_bytes) in [
        (Options::default(), 516),
        (timeout(255), 0),
        (timeout(1), 12),
    ] {
        let mut story = Story::new(Limits::default());
        let client = peer(9, 1000);
        story.ask(client, "f", options);
        for _ in 0..100 {
            story.wait(Duration::from_millis(100));
        }
        let sent = &story.world.sent[&client.client];
        assert_eq!(sent.len(), 3, "{options:?}");
        // A timeout that is not acknowledged leaves no option: then it is the first block.
        let want = if packet_bytes == 0 { 516 } else { packet_bytes };
        assert!(sent.iter().all(|(_, octets)| octets.len() == want));
        assert_eq!(story.server.transfer_count(), 0);
    }
}

#[test]
fn first_blocks_to_an_address_that_never_answers_are_rationed() {
    let mut story = Story::new(Limits::default());
    let mut asked = 0;
    for port in 0..5_000 {
        asked += story.ask(peer(9, 1000 + port), "f", Options::default());
    }
    assert!(story.world.octets <= 16 * 544, "{}", story.world.octets);
    assert!(story.world.octets < asked / 10);
    // What is no larger than its question is answered still: the address's own client, if it has one, boots.
    assert!(story.download(peer(9, 999)));
}

#[test]
fn repeated_requests_do_not_make_a_transfer_last() {
    let mut story = Story::new(Limits::default());
    let client = peer(9, 1000);
    for _ in 0..10 {
        story.ask(client, "f", timeout(1));
        story.wait(Duration::from_millis(900));
    }
    assert_eq!(story.server.counters.started, 2);
    assert!(story.server.counters.gave_up + story.server.counters.replaced >= 1);
}

#[test]
fn an_answer_to_another_port_than_the_transfers_confirms_nothing() {
    let limits = Limits {
        tids: 64,
        ..Limits::default()
    };
    let mut story = Story::new(limits);
    let client = peer(1, 1000);
    story.ask(client, "f", timeout(1));
    let tid = story.tid(client);
    story.world.sent.clear();
    for other in (0..64).filter(|other| *other != tid) {
        story.ack(client, other, 0);
    }
    assert!(story.world.sent.is_empty());
    assert_eq!(story.server.counters.wrong_tid, 63);
    story.ack(client, tid, 0);
    assert_eq!(story.world.sent[&client.client].len(), 1, "undisturbed");
    let ports: std::collections::HashSet<u16> = (0..500)
        .map(|host| {
            story.ask(peer(host, 2000), "f", timeout(1));
            story.tid(peer(host, 2000))
        })
        .collect();
    assert!(ports.len() > 60, "every port is used: {}", ports.len());
}

/// A source that is not there asks in another's name and acknowledges what it cannot see.
#[test]
fn guessed_acks_bring_little_more_than_they_cost() {
    let limits = Limits {
        tids: 256,
        ..Limits::default()
    };
    let mut story = Story::new(limits);
    let options = Options {
        block_bytes: Some(1468),
        window_blocks: Some(16),
        ..Options::default()
    };
    let mut asked = 0;
    for guess in 0..4_000u16 {
        let victim = peer(u32::from(guess % 50), 1000 + guess);
        asked += story.ask(victim, "f", options);
        for block in [0, 16, 32, 48, 64] {
            asked += story.ack(victim, guess % 256, block);
        }
    }
    let times = story.world.octets as f64 / asked as f64;
    assert!(times < 4.0, "{times}");
    assert!(
        story.server.counters.confirmed > 0,
        "some guesses are right"
    );
}

#[test]
fn waiting_requests_of_one_address_are_a_share() {
    let limits = Limits::default();
    let mut story = Story::new(limits);
    story.ask(peer(1, 1000), "parked", Options::default());
    let ticket = story.world.later[0];
    for port in 0..9_000 {
        story.ask(peer(9, 1000 + port), "parked", Options::default());
    }
    assert_eq!(story.server.pending_count(), 1 + limits.pending_per_client);
    let file = Found::File(Bytes::from_static(b"here"));
    story.world.files.insert("parked".into(), file);
    story.server.retry(ticket);
    story.wait(Duration::ZERO);
    assert_eq!(story.world.sent[&peer(1, 1000).client].len(), 1);
}

#[test]
fn netascii_is_for_short_texts_and_copies_nothing() {
    let mut story = Story::new(Limits::default());
    let script = Bytes::from_static(b"DEFAULT x\nLABEL x\r\n");
    story.world.files.insert("s".into(), Found::File(script));
    let size = Options {
        transfer_bytes: Some(0),
        ..Options::default()
    };
    let client = peer(1, 1000);
    story.ask_with(client, &request("s", Mode::Netascii, size));
    let (tid, oack) = story.world.sent[&client.client][0].clone();
    let Ok(Packet::Oack(agreed)) = Packet::parse(&oack) else {
        panic!("{oack:?}")
    };
    assert_eq!(agreed.transfer_bytes, Some(20), "as many as are sent");
    story.ack(client, tid, 0);
    let (_, data) = &story.world.sent[&client.client][1];
    assert_eq!(&data[4..], b"DEFAULT x\r\nLABEL x\r\n");

    for port in 0..2_000 {
        let client = peer(9, 1000 + port);
        story.ask_with(client, &request("f", Mode::Netascii, timeout(255)));
        let (_, answer) = &story.world.sent[&client.client][0];
        let Ok(Packet::Error { message, .. }) = Packet::parse(answer) else {
            panic!("{answer:?}")
        };
        assert_eq!(message, b"no short text: ask for it in octet mode");
    }
    assert_eq!(story.server.transfer_count(), 1);
}
