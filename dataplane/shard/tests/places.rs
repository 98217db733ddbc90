//! Who has a place at a shard's HTTP, and who goes for whom: many clients by script, on a driver that only notes.

use std::collections::BTreeMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use images::Object;
use shard::{
    Bell, Bound, Buffer, Close, Completion, Config, Driver, DriverCounters, Ends, LinkMailbox,
    LinkSocket, NoSlot, Shard, SharedStats, Snapshot, StreamId, Target, Train, WorkMailbox,
    mailboxes,
};

/// What a connection was told last.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Told {
    Answered(String),
    File,
    Taken,
    Closed(Close),
}

struct Notes {
    now: Instant,
    arrived: Vec<Completion>,
    buffers: Vec<Vec<u8>>,
    told: BTreeMap<u32, Told>,
}

impl Driver for Notes {
    fn poll(&mut self, _: Duration, done: &mut Vec<Completion>) -> io::Result<()> {
        done.append(&mut self.arrived);
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        &self.buffers[usize::from(buffer.index)]
    }

    fn release(&mut self, _: Buffer) {}

    fn send(&mut self, _: &Target, _: Train, _: &mut dyn FnMut(&mut [u8])) -> Result<(), NoSlot> {
        Err(NoSlot)
    }

    fn set_links(&mut self, _: Vec<LinkSocket>) {}
    fn stop_accepting(&mut self) {}

    /// All leaves at once.
    fn stream_send(&mut self, stream: StreamId, bytes: Bytes, _: bool) {
        let text = String::from_utf8_lossy(&bytes);
        let status = text.lines().next().unwrap_or_default().to_owned();
        self.told.insert(stream.index, Told::Answered(status));
        let sent = bytes.len() as u64;
        self.arrived.push(Completion::StreamSent { stream, sent });
    }

    /// For ever.
    fn stream_send_file(&mut self, stream: StreamId, _: Arc<Object>, _: u64, _: u64) {
        self.told.insert(stream.index, Told::File);
    }

    fn stream_take(&mut self, stream: StreamId) {
        self.told.insert(stream.index, Told::Taken);
    }

    fn stream_close(&mut self, stream: StreamId, how: Close) {
        self.told.insert(stream.index, Told::Closed(how));
    }

    fn counters(&self) -> DriverCounters {
        DriverCounters::default()
    }
}

struct Script {
    shard: Shard<Notes>,
    _link: LinkMailbox,
    _work: WorkMailbox,
    stats: SharedStats,
    next: u32,
    /// What opens connections from now.
    frame: Option<[u8; 6]>,
}

const FILE: &str = "GET /images/0000000000000000000000000000000000000000000000000000000000000000/squashfs HTTP/1.1\r\nHost: h\r\n\r\n";
const NONE: &str = "GET /images/none.efi HTTP/1.1\r\nHost: h\r\n\r\n";
const METADATA: &str = "GET /MAAS/metadata/ HTTP/1.1\r\nHost: h\r\n\r\n";
const HALF: &str = "GET /images/no";

const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 0, 1];

fn machine() -> Arc<boot::Machine> {
    Arc::new(boot::Machine {
        system_id: "abc123".into(),
        hostname: "m".into(),
        domain: "maas".into(),
        macs: vec![wire::ethernet::Mac(MAC)],
        purpose: boot::Purpose::Commissioning,
        arch: "amd64".into(),
        subarch: "generic".into(),
        osystem: String::new(),
        release: String::new(),
        label: String::new(),
        kernel: String::new(),
        initrd: String::new(),
        squashfs: String::new(),
        extra_options: String::new(),
        ephemeral_options: String::new(),
        boot_window: true,
    })
}

fn link(relayed: bool) -> shard::Link {
    let subnet = dhcp::Subnet {
        id: 1,
        net: "10.99.0.0/16".parse().unwrap(),
        gateway: None,
        dns: vec![],
        ntp: vec![],
        domain: String::new(),
        lease: Duration::from_secs(600),
        ranges: vec![],
        disabled_archs: vec![],
        client_id_identity: false,
        options: [].into(),
    };
    shard::Link {
        dhcp: dhcp::Link {
            vlan: 1,
            server: Ipv4Addr::new(10, 99, 0, 1),
            mtu: 1500,
            mode: dhcp::Mode::Serve,
            rack: 1,
            peers: vec![],
            subnets: vec![subnet],
        },
        interface: if relayed { "" } else { "eth1" }.into(),
        index: (!relayed).then_some(7),
    }
}

impl Script {
    fn new(config: Config) -> Self {
        Self::on(config, Snapshot::default())
    }

    /// The hosts' network is a link of the rack's own, or behind a relay.
    fn with_link(config: Config, relayed: bool) -> Self {
        let mut snapshot = Snapshot::default();
        snapshot.set_links(vec![link(relayed)]);
        Self::on(config, snapshot)
    }

    fn on(config: Config, mut snapshot: Snapshot) -> Self {
        snapshot.insert_machine(machine());
        let file = std::fs::File::open("/dev/null").unwrap().into();
        let object = Object::complete([0; 32], 1_000_000, 0, file);
        snapshot.files.insert([0; 32], Arc::new(object));
        let bell = Bell::new().unwrap();
        let (mail, link, work) = mailboxes(&bell, &bell).unwrap();
        let driver = Notes {
            now: Instant::now(),
            arrived: Vec::new(),
            buffers: Vec::new(),
            told: BTreeMap::new(),
        };
        let stats = SharedStats::default();
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        Self {
            shard: Shard::new(config, driver, mail, snapshot, stats.clone()),
            _link: link,
            _work: work,
            stats,
            next: 0,
            frame: None,
        }
    }

    fn turns(&mut self) {
        loop {
            self.shard.turn().unwrap();
            if self.shard.driver().arrived.is_empty() {
                return;
            }
        }
    }

    /// A client of this address connects; its stream.
    fn connect(&mut self, from: Ipv4Addr) -> u32 {
        let index = self.next;
        self.next += 1;
        self.shard.driver().arrived.push(Completion::Accepted {
            stream: stream(index),
            ends: Ends {
                peer: SocketAddr::from((from, 40_000)),
                local: SocketAddr::from(([10, 99, 0, 1], 5248)),
                frame: self.frame,
            },
        });
        self.turns();
        index
    }

    fn say(&mut self, index: u32, text: &str) {
        let driver = self.shard.driver();
        driver.buffers.push(text.into());
        let buffer = Buffer {
            set: 0,
            index: (driver.buffers.len() - 1) as u16,
            start: 0,
            length: text.len() as u32,
        };
        let stream = stream(index);
        driver.arrived.push(Completion::Received { stream, buffer });
        self.turns();
    }

    fn ask(&mut self, from: Ipv4Addr, text: &str) -> u32 {
        let index = self.connect(from);
        self.say(index, text);
        index
    }

    fn told(&mut self, index: u32) -> Option<Told> {
        self.shard.driver().told.get(&index).cloned()
    }

    fn stats(&mut self) -> shard::Stats {
        self.shard.driver().now += Duration::from_secs(2);
        self.turns();
        self.stats.get()
    }
}

fn stream(index: u32) -> StreamId {
    StreamId {
        index,
        generation: 1,
    }
}

fn host(number: usize) -> Ipv4Addr {
    Ipv4Addr::from(0x0a63_0000 + number as u32)
}

/// 16 are served, 4 of one source; 4 without a head, 1 of one source; 4 between requests.
fn config() -> Config {
    Config {
        connections_max: 16,
        connections_per_source_max: 4,
        ..Config::default()
    }
}

/// Heads that never end, of one address or of a hundred: they displace each other, and who is served goes on.
#[test]
fn half_heads_displace_each_other_and_nobody_else() {
    for addresses in [1, 100] {
        let mut script = Script::new(config());
        let served = script.ask(host(1), FILE);
        assert_eq!(script.told(served), Some(Told::File));
        let idle = script.ask(host(2), NONE);
        let halves: Vec<u32> = (0..100)
            .map(|number| script.ask(host(10 + number % addresses), HALF))
            .collect();
        let stats = script.stats();
        let open = halves.iter().filter(|half| script.told(**half).is_none());
        let open: Vec<u32> = open.copied().collect();
        let left = if addresses == 1 { 1 } else { 4 };
        assert_eq!(open, halves[100 - left..], "the youngest stay");
        assert_eq!(stats.http_new, left);
        assert_eq!(stats.shard.displaced_new, 100 - left as u64);
        assert_eq!(script.told(served), Some(Told::File));
        assert!(matches!(script.told(idle), Some(Told::Answered(_))));
        assert_eq!((stats.http_busy, stats.http_idle), (1, 1));
        // And whoever comes with a request is answered.
        let client = script.ask(host(3), FILE);
        assert_eq!(script.told(client), Some(Told::File));
    }
}

/// The head has one time limit, whatever comes of it meanwhile.
#[test]
fn a_head_that_trickles_ends_by_its_time_in_all() {
    let mut script = Script::new(config());
    let slow = script.connect(host(1));
    for octet in FILE.bytes().take(10) {
        assert_eq!(script.told(slow), None);
        script.say(slow, &char::from(octet).to_string());
        script.shard.driver().now += Duration::from_secs(1);
        script.turns();
    }
    assert_eq!(script.told(slow), Some(Told::Closed(Close::Graceful)));
    assert_eq!(script.stats().http.heads_late, 1);
}

#[test]
fn idle_connections_displace_each_other_and_nobody_else() {
    let mut script = Script::new(config());
    let served = script.ask(host(1), FILE);
    let idle: Vec<u32> = (0..50)
        .map(|number| script.ask(host(10 + number), NONE))
        .collect();
    let open = idle
        .iter()
        .filter(|idle| matches!(script.told(**idle), Some(Told::Answered(_))));
    assert_eq!(open.copied().collect::<Vec<u32>>(), idle[46..]);
    // In good order: the answer before may still be on its way.
    assert_eq!(script.told(idle[0]), Some(Told::Closed(Close::Graceful)));
    let stats = script.stats();
    assert_eq!((stats.http_idle, stats.shard.displaced_idle), (4, 46));
    assert_eq!(script.told(served), Some(Told::File));
}

/// A source that has its share gets 503; when all is taken, the oldest of whoever has the most goes for a newcomer.
#[test]
fn those_who_are_served_have_a_share_per_source() {
    let refused = Some(Told::Answered("HTTP/1.1 503 Service Unavailable".into()));
    let mut script = Script::new(config());
    for source in 0..4 {
        for _ in 0..4 {
            let client = script.ask(host(source), FILE);
            assert_eq!(script.told(client), Some(Told::File));
        }
        let beyond = script.ask(host(source), FILE);
        assert_eq!(script.told(beyond), refused, "of source {source}");
    }
    assert_eq!(script.stats().http_busy, 16);
    // Sixteen newcomers: each source keeps one, and then there is really no place.
    for source in 10..22 {
        let client = script.ask(host(source), FILE);
        assert_eq!(script.told(client), Some(Told::File), "{source}");
    }
    let beyond = script.ask(host(30), FILE);
    assert_eq!(script.told(beyond), refused);
    let stats = script.stats();
    assert_eq!((stats.http_busy, stats.shard.displaced_busy), (16, 12));
    assert_eq!(stats.shard.connections_refused, 5);
    // What needs no place is answered all the same.
    let missing = script.ask(host(31), NONE);
    assert_eq!(
        script.told(missing),
        Some(Told::Answered("HTTP/1.1 404 Not Found".into()))
    );
}

/// An address for each place is cheap; the region's knowing it is not to be had.
#[test]
fn a_known_machine_is_served_though_many_addresses_hold_every_place() {
    let refused = Some(Told::Answered("HTTP/1.1 503 Service Unavailable".into()));
    let mut script = Script::new(Config {
        bound: Bound::new(|address, _| (address == host(900)).then_some(MAC)),
        ..config()
    });
    let strangers: Vec<u32> = (0..16)
        .map(|number| script.ask(host(10 + number), FILE))
        .collect();
    let stranger = script.ask(host(99), FILE);
    assert_eq!(script.told(stranger), refused);
    let known = script.ask(host(900), FILE);
    assert_eq!(script.told(known), Some(Told::File));
    let aborted = Some(Told::Closed(Close::Abort));
    assert_eq!(script.told(strangers[0]), aborted, "the oldest goes");
    assert!(
        strangers[1..]
            .iter()
            .all(|stranger| script.told(*stranger) == Some(Told::File))
    );
    let stats = script.stats();
    assert_eq!((stats.http_busy, stats.shard.displaced_busy), (16, 1));
}

/// On a link of ours the frame that opens a connection shows the card, however many addresses it has.
#[test]
fn a_card_with_many_addresses_has_one_share() {
    let refused = Some(Told::Answered("HTTP/1.1 503 Service Unavailable".into()));
    for (relayed, served) in [(false, 4), (true, 16)] {
        let mut script = Script::with_link(config(), relayed);
        script.frame = Some([2, 0, 0, 0, 0, 66]);
        let told: Vec<Option<Told>> = (0..20)
            .map(|number| {
                let client = script.ask(host(10 + number), FILE);
                script.told(client)
            })
            .collect();
        assert!(told[..served].iter().all(|told| *told == Some(Told::File)));
        assert!(told[served..].iter().all(|told| *told == refused));
        // Half heads and idle connections likewise.
        for number in 0..20 {
            script.ask(host(40 + number), HALF);
        }
        let halves = if relayed { 4 } else { 1 };
        assert_eq!(script.stats().http_new, halves);
        script.frame = Some([2, 0, 0, 0, 0, 67]);
        let client = script.ask(host(90), FILE);
        let expected = if relayed {
            refused.clone()
        } else {
            Some(Told::File)
        };
        assert_eq!(
            script.told(client),
            expected,
            "behind a relay the router's card says nothing"
        );
    }
}

/// Connections on their way to the work thread do not fill its queue: wants and probes have the rest.
#[test]
fn handed_over_connections_are_bounded() {
    let mut script = Script::new(Config {
        hand_offs_max: 3,
        ..config()
    });
    let told: Vec<Option<Told>> = (0..5)
        .map(|number| {
            let client = script.ask(host(number), METADATA);
            script.told(client)
        })
        .collect();
    assert!(told[..3].iter().all(|told| *told == Some(Told::Taken)));
    let refused = Some(Told::Closed(Close::Graceful));
    assert!(told[3..].iter().all(|told| *told == refused), "{told:?}");
    let stats = script.stats();
    assert_eq!(stats.shard.hand_offs_refused, 2);
    assert_eq!((stats.http_new, stats.http_connections), (0, 3));
}
