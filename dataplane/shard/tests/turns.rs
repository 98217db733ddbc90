//! A shard by script, on a driver of plain vectors: what arrives, what leaves, what the other threads hear.

use std::collections::VecDeque;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use bytes::Bytes;
use images::Object;
use lease::{Block, BlockId, Epoch, Outcome};
use shard::{
    Bell, BootAnswer, Buffer, Close, Completion, Config, Datagram, Driver, DriverCounters, Ends,
    LinkMailbox, LinkSocket, Loader, NoSlot, Service, Shard, SharedStats, Snapshot, StreamId,
    TO_LINK_MAX, Target, ToLink, ToShard, ToWork, Train, WorkMailbox, mailboxes_of,
};
use wire::dhcp4::{FLAG_BROADCAST, Header, MessageType, OP_REQUEST, View, Writer, code};
use wire::ethernet::Mac;
use wire::tftp::{Mode, Options, Packet, Request, emit_read};
use wire::udp::{self, Checksum, HEADROOM_BYTES};

const MAC: Mac = Mac([0x52, 0x54, 0, 0, 1, 5]);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const STREAM: StreamId = StreamId {
    index: 0,
    generation: 1,
};

/// What left the shard.
#[derive(Debug)]
enum Left {
    Datagram(Target, Vec<u8>),
    Stream(String),
    File(StreamId, u64, u64),
    Taken(StreamId),
    Closed(StreamId, Close),
}

struct Memory {
    now: Instant,
    arrived: VecDeque<Completion>,
    buffers: Vec<Option<Vec<u8>>>,
    left: Vec<Left>,
    slots: usize,
    waited: Duration,
}

impl Memory {
    fn buffer(&mut self, octets: &[u8]) -> Buffer {
        self.buffers.push(Some(octets.to_vec()));
        Buffer {
            set: 0,
            index: (self.buffers.len() - 1) as u16,
            start: 0,
            length: octets.len() as u32,
        }
    }
}

impl Driver for Memory {
    fn poll(&mut self, wait: Duration, done: &mut Vec<Completion>) -> io::Result<()> {
        self.waited = wait;
        done.extend(self.arrived.drain(..));
        Ok(())
    }

    fn now(&self) -> Instant {
        self.now
    }

    fn bytes(&self, buffer: &Buffer) -> &[u8] {
        self.buffers[usize::from(buffer.index)]
            .as_deref()
            .expect("not given back yet")
    }

    fn release(&mut self, buffer: Buffer) {
        let old = self.buffers[usize::from(buffer.index)].take();
        assert!(old.is_some(), "given back once");
    }

    fn send(
        &mut self,
        target: &Target,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        if self.slots == 0 {
            return Err(NoSlot);
        }
        self.slots -= 1;
        let mut octets = vec![0; train.bytes];
        fill(&mut octets);
        self.left.push(Left::Datagram(*target, octets));
        Ok(())
    }

    fn set_links(&mut self, _: Vec<LinkSocket>) {}

    fn stop_accepting(&mut self) {}

    fn stream_send(&mut self, stream: StreamId, bytes: Bytes, _: bool) {
        let text = String::from_utf8_lossy(&bytes).into_owned();
        self.arrived.push_back(Completion::StreamSent {
            stream,
            sent: bytes.len() as u64,
        });
        self.left.push(Left::Stream(text));
    }

    fn stream_send_file(&mut self, stream: StreamId, _: Arc<Object>, offset: u64, length: u64) {
        self.left.push(Left::File(stream, offset, length));
    }

    fn stream_take(&mut self, stream: StreamId) {
        self.left.push(Left::Taken(stream));
    }

    fn stream_close(&mut self, stream: StreamId, how: Close) {
        self.left.push(Left::Closed(stream, how));
    }

    fn counters(&self) -> DriverCounters {
        DriverCounters::default()
    }
}

struct Script {
    shard: Shard<Memory>,
    link: LinkMailbox,
    work: WorkMailbox,
    snapshot: Arc<ArcSwap<Snapshot>>,
    stats: SharedStats,
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    snapshot.set_links(vec![shard::Link {
        dhcp: dhcp::Link {
            vlan: 5001,
            server: SERVER,
            mtu: 1500,
            mode: dhcp::Mode::Serve,
            rack: 1,
            peers: vec![],
            subnets: vec![dhcp::Subnet {
                id: 1,
                net: "10.99.0.0/24".parse().unwrap(),
                gateway: None,
                dns: vec![],
                ntp: vec![],
                domain: String::new(),
                lease: Duration::from_secs(600),
                ranges: vec![dhcp::Range {
                    id: 1,
                    first: [10, 99, 0, 64].into(),
                    last: [10, 99, 0, 127].into(),
                    kind: dhcp::RangeKind::Dynamic,
                    lease: None,
                    options: [].into(),
                }],
                disabled_archs: vec![],
                client_id_identity: false,
                options: [].into(),
            }],
        },
        interface: "br0".into(),
        index: Some(7),
    }]);
    let loader = Arc::new(Loader::absent([3; 32]));
    snapshot.loaders.insert("lpxelinux.0".into(), loader);
    snapshot
}

fn machine() -> Arc<boot::Machine> {
    Arc::new(boot::Machine {
        system_id: "abc123".into(),
        hostname: "node-1".into(),
        domain: "maas".into(),
        macs: vec![MAC],
        purpose: boot::Purpose::Local,
        arch: "amd64".into(),
        subarch: "generic".into(),
        osystem: "ubuntu".into(),
        release: "noble".into(),
        label: "stable".into(),
        kernel: String::new(),
        initrd: String::new(),
        squashfs: String::new(),
        extra_options: String::new(),
        ephemeral_options: String::new(),
        boot_window: true,
    })
}

impl Script {
    fn new(snapshot: Snapshot) -> Self {
        Self::configured(Config::default(), snapshot, TO_LINK_MAX)
    }

    fn with_room(snapshot: Snapshot, to_link: usize) -> Self {
        Self::configured(Config::default(), snapshot, to_link)
    }

    fn with(config: Config, snapshot: Snapshot) -> Self {
        Self::configured(config, snapshot, TO_LINK_MAX)
    }

    fn configured(config: Config, snapshot: Snapshot, to_link: usize) -> Self {
        let driver = Memory {
            now: Instant::now(),
            arrived: VecDeque::new(),
            buffers: Vec::new(),
            left: Vec::new(),
            slots: 1000,
            waited: Duration::ZERO,
        };
        let (link_bell, work_bell) = (Bell::new().unwrap(), Bell::new().unwrap());
        let (mail, link, work) = mailboxes_of(&link_bell, &work_bell, to_link).unwrap();
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let stats = SharedStats::default();
        let shard = Shard::new(config, driver, mail, Arc::clone(&snapshot), stats.clone());
        Self {
            shard,
            link,
            work,
            snapshot,
            stats,
        }
    }

    fn tell(&mut self, message: ToShard) {
        self.link.to_shard.push(message).unwrap();
    }

    fn attach(&mut self) {
        self.attach_block(64);
    }

    fn attach_block(&mut self, count: u32) {
        let now = self.shard.driver().now;
        let block = Block {
            id: BlockId(1),
            epoch: Epoch(1),
            vlan: 5001,
            subnet: 1,
            first: [10, 99, 0, 64].into(),
            count,
        };
        self.tell(ToShard::Attach {
            blocks: Arc::from([block]),
            rows: Arc::from([]),
            sent: now,
            until: now + Duration::from_secs(3600),
        });
    }

    fn turn(&mut self) -> Vec<Left> {
        self.shard.turn().unwrap();
        std::mem::take(&mut self.shard.driver().left)
    }

    fn after(&mut self, time: Duration) -> Vec<Left> {
        self.shard.driver().now += time;
        self.turn()
    }

    fn frame(&mut self, payload: &[u8]) -> Vec<Left> {
        self.frame_arrives(payload);
        self.turn()
    }

    /// A frame of this card's.
    fn frame_from(&mut self, mac: Mac, payload: &[u8]) -> Vec<Left> {
        self.frame_arrives(payload);
        let arrived = &mut self.shard.driver().arrived;
        if let Some(Completion::Datagram(frame)) = arrived.back_mut() {
            frame.ethernet = Some(mac.0);
        }
        self.turn()
    }

    /// For the next turn.
    fn frame_arrives(&mut self, payload: &[u8]) {
        let mut packet = vec![0; HEADROOM_BYTES];
        packet.extend_from_slice(payload);
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
        udp::frame(&mut packet, from, to, 1).unwrap();
        self.arrives(Service::DhcpFrame, &packet);
    }

    fn datagram(&mut self, service: Service, octets: &[u8]) -> Vec<Left> {
        self.arrives(service, octets);
        self.turn()
    }

    fn arrives(&mut self, service: Service, octets: &[u8]) {
        self.arrives_from(SocketAddr::from(([10, 99, 0, 9], 2070)), service, octets);
    }

    fn arrives_from(&mut self, from: SocketAddr, service: Service, octets: &[u8]) {
        let driver = self.shard.driver();
        let buffer = driver.buffer(octets);
        driver.arrived.push_back(Completion::Datagram(Datagram {
            service,
            from,
            local: IpAddr::V4(SERVER),
            interface: 7,
            ethernet: None,
            checksum_missing: false,
            buffer,
        }));
    }

    fn read(&mut self, file: &str) -> Vec<Left> {
        let mut out = [0; 512];
        let options = Options::default();
        let request = Request {
            file: file.as_bytes(),
            mode: Mode::Octet,
            options,
        };
        let length = emit_read(&request, &mut out).unwrap();
        self.datagram(Service::TftpRequest, &out[..length])
    }

    fn connect(&mut self) {
        self.shard.driver().arrived.push_back(Completion::Accepted {
            stream: STREAM,
            ends: Ends {
                peer: SocketAddr::from(([10, 99, 0, 9], 49152)),
                local: SocketAddr::from((SERVER, 5248)),
                frame: None,
            },
        });
        assert!(self.turn().is_empty());
    }

    fn http(&mut self, text: &str) -> Vec<Left> {
        let driver = self.shard.driver();
        let buffer = driver.buffer(text.as_bytes());
        driver.arrived.push_back(Completion::Received {
            stream: STREAM,
            buffer,
        });
        self.turn()
    }

    fn next_to_link(&mut self) -> ToLink {
        self.link
            .from_shard
            .pop()
            .expect("a message to the link thread")
    }

    fn arch(&mut self) -> ([u8; 6], IpAddr, &'static str) {
        match self.next_to_link() {
            ToLink::Arch { mac, address, arch } => (mac, address, arch),
            other => panic!("{other:?}"),
        }
    }

    fn event(&mut self) -> (&'static str, Option<[u8; 6]>, String) {
        match self.next_to_link() {
            ToLink::Event(event) => (event.kind, event.mac, event.detail.to_string()),
            other => panic!("{other:?}"),
        }
    }
}

fn discover(kind: MessageType, ask: Option<Ipv4Addr>) -> Vec<u8> {
    message_of(MAC, kind, ask)
}

fn message_of(mac: Mac, kind: MessageType, ask: Option<Ipv4Addr>) -> Vec<u8> {
    firmware(mac, 0, kind, ask)
}

fn firmware(mac: Mac, arch: u8, kind: MessageType, ask: Option<Ipv4Addr>) -> Vec<u8> {
    let mut header = Header::new(OP_REQUEST);
    (header.htype, header.hlen) = (1, 6);
    header.chaddr[..6].copy_from_slice(&mac.0);
    header.flags.set(FLAG_BROADCAST);
    let mut buffer = [0; 576];
    let mut writer = Writer::new(&mut buffer, 576, &header, kind).unwrap();
    writer.option(code::VENDOR_CLASS, b"PXEClient").unwrap();
    writer.option(code::CLIENT_ARCH, &[0, arch]).unwrap();
    if let Some(ask) = ask {
        writer.address(code::REQUESTED_ADDRESS, ask).unwrap();
        writer.address(code::SERVER_ID, SERVER).unwrap();
    }
    let length = writer.finish();
    buffer[..length].to_vec()
}

/// The one DHCP frame that left: its kind and address.
fn dhcp_reply(left: &[Left]) -> (MessageType, Ipv4Addr) {
    let [Left::Datagram(target, packet)] = left else {
        panic!("{left:?}")
    };
    assert_eq!(
        *target,
        Target::Frame {
            interface: 7,
            mac: [0xff; 6]
        }
    );
    let datagram = udp::Datagram::parse_packet(packet, Checksum::Verify).unwrap();
    let view = View::parse(datagram.payload).unwrap();
    (view.message_type().unwrap(), view.yiaddr())
}

/// The text of the one DATA packet that left.
fn tftp_text(left: &[Left]) -> String {
    let [Left::Datagram(target, packet)] = left else {
        panic!("{left:?}")
    };
    let to = SocketAddr::from(([10, 99, 0, 9], 2070));
    assert_eq!(
        *target,
        Target::Tftp {
            from: IpAddr::V4(SERVER),
            to,
            tid: 0,
        }
    );
    match Packet::parse(packet) {
        Ok(Packet::Data { block: 1, payload }) => String::from_utf8(payload.to_vec()).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n")
}

/// Mute until it has attached; then OFFER, a lease to commit, and the ACK with its event.
#[test]
fn dhcp_waits_for_its_attach_and_for_the_commit() {
    let mut script = Script::new(snapshot());
    assert!(
        script
            .frame(&discover(MessageType::Discover, None))
            .is_empty()
    );
    script.attach();
    let left = script.frame(&discover(MessageType::Discover, None));
    let (kind, address) = dhcp_reply(&left);
    assert_eq!(kind, MessageType::Offer);
    assert!(
        script
            .frame(&discover(MessageType::Request, Some(address)))
            .is_empty()
    );
    let ToLink::Lease { ticket, write } = script.next_to_link() else {
        panic!()
    };
    assert_eq!(write.address, IpAddr::V4(address));
    let outcome = Outcome::Durable {
        remaining: Duration::from_secs(1200),
    };
    script.tell(ToShard::Outcome { ticket, outcome });
    assert_eq!(dhcp_reply(&script.turn()), (MessageType::Ack, address));
    let (kind, mac, detail) = script.event();
    assert_eq!((kind, mac), ("DHCP_ACK", Some(MAC.0)));
    assert_eq!(detail, "for 600 s");
    assert_eq!(script.arch(), (MAC.0, address.into(), "amd64"));
    let (kind, mac, detail) = script.event();
    assert_eq!((kind, mac), ("BOOT_FILE", Some(MAC.0)));
    assert_eq!(detail, "next server 10.99.0.1, boot file lpxelinux.0 (pxe)");

    script.tell(ToShard::Forget);
    script.turn();
    assert!(
        script
            .frame(&discover(MessageType::Request, Some(address)))
            .is_empty()
    );
}

/// Whoever follows a machine sees each of its messages, why one got no answer, and what was sent; until the time is over.
/// A small range whose only free address is being asked for by ARP: the client is answered when that is over, by its
/// first message.
#[test]
fn a_discover_waits_for_the_end_of_a_probe() {
    let mut config = Config::default();
    config.dhcp.probe_stock = 8;
    let mut script = Script::configured(config, snapshot(), TO_LINK_MAX);
    script.attach_block(1);
    assert!(script.turn().is_empty());
    let probe = match script.work.from_shard.pop() {
        Some(ToWork::Probe { probe, .. }) => probe,
        other => panic!("{other:?}"),
    };
    let left = script.frame(&discover(MessageType::Discover, None));
    assert!(left.is_empty(), "{left:?}");
    assert!(
        script.link.from_shard.pop().is_none(),
        "no event: nothing is exhausted"
    );
    assert!(script.after(Duration::from_millis(600)).is_empty());
    script.tell(ToShard::Probed {
        vlan: probe.vlan,
        address: probe.address,
        probed: dhcp::Probed::Unused,
    });
    let left = script.after(Duration::from_millis(400));
    assert_eq!(
        dhcp_reply(&left),
        (MessageType::Offer, [10, 99, 0, 64].into())
    );
    assert!(script.turn().is_empty(), "once");
    assert!(script.link.from_shard.pop().is_none());
}

#[test]
fn a_traced_machine_is_told_of_message_by_message() {
    let mut snapshot = snapshot();
    snapshot.traces = Arc::new([shard::Trace {
        mac: MAC,
        until: Instant::now() + Duration::from_secs(60),
    }]);
    let mut script = Script::new(snapshot);
    script.frame(&discover(MessageType::Discover, None));
    let (kind, mac, detail) = script.event();
    assert_eq!((kind, mac), ("DHCP_TRACE", Some(MAC.0)));
    assert!(
        detail.starts_with("got DISCOVER") && detail.ends_with("no answer: Mute"),
        "{detail}"
    );
    script.attach();
    script.frame(&discover(MessageType::Discover, None));
    let (_, _, detail) = script.event();
    assert!(detail.ends_with("taken"), "{detail}");
    let (kind, _, detail) = script.event();
    assert!(
        kind == "DHCP_TRACE" && detail.starts_with("sent OFFER"),
        "{detail}"
    );
    script.after(Duration::from_secs(61));
    script.frame(&discover(MessageType::Discover, None));
    assert!(script.link.from_shard.pop().is_none(), "its time is over");
}

/// A full mailbox drops the lease, and the client's next REQUEST tries again.
#[test]
fn a_full_mailbox_loses_nothing_that_matters() {
    let mut script = Script::with_room(snapshot(), 1);
    script.attach();
    let other = Mac([2, 0, 0, 0, 0, 9]);
    let offered = |script: &mut Script, mac| {
        dhcp_reply(&script.frame(&message_of(mac, MessageType::Discover, None))).1
    };
    let (first, second) = (offered(&mut script, other), offered(&mut script, MAC));
    // One lease fills it.
    for (mac, address) in [(other, first), (MAC, second), (MAC, second)] {
        let request = message_of(mac, MessageType::Request, Some(address));
        assert!(script.frame(&request).is_empty());
        if mac == MAC {
            assert!(matches!(script.next_to_link(), ToLink::Lease { .. }));
        }
    }
    script.after(Duration::from_secs(2));
    assert_eq!(script.stats.get().shard.leases_refused, 1);
}

/// A client makes as many events as it has requests. It has a share of each kind, and the rest is told as a number.
#[test]
fn a_client_that_asks_without_end_takes_no_leases_place_in_the_mailbox() {
    let mut with = snapshot();
    with.insert_machine(machine());
    let mut script = Script::new(with);
    script.attach();
    let (_, address) = dhcp_reply(&script.frame(&discover(MessageType::Discover, None)));
    while script.link.from_shard.pop().is_some() {}
    for _ in 0..TO_LINK_MAX {
        script.read("pxelinux.cfg/01-52-54-00-00-01-05");
        script.datagram(Service::TftpTransfer(0), &[0, 5, 0, 0, 0]);
    }
    let mut told = 0;
    while script.link.from_shard.pop().is_some() {
        told += 1;
    }
    assert!((64..1000).contains(&told), "{told}");
    assert!(
        script
            .frame(&discover(MessageType::Request, Some(address)))
            .is_empty()
    );
    assert!(matches!(script.next_to_link(), ToLink::Lease { .. }));
    script.after(Duration::from_secs(11));
    script.after(Duration::from_secs(1));
    let stats = script.stats.get().shard;
    assert_eq!((stats.leases_refused, stats.events_lost), (0, 0));
    let left_out = stats.events_left_out;
    assert!(left_out > TO_LINK_MAX as u64, "{left_out}");
    let mut more = 0;
    while let Some(message) = script.link.from_shard.pop() {
        if let ToLink::Event(event) = message
            && let Some(count) = event.detail.to_string().strip_suffix(" more of this kind")
        {
            more += count.parse::<u64>().unwrap();
        }
    }
    assert_eq!(more, left_out);
}

#[test]
fn a_known_machine_is_answered_from_the_snapshot() {
    let mut with = snapshot();
    with.insert_machine(machine());
    let mut script = Script::new(with);
    let script_text = tftp_text(&script.read("/grub/grub.cfg-52:54:00:00:01:05"));
    assert!(!script_text.is_empty());
    let told = "local from the snapshot".to_string();
    assert_eq!(script.event(), ("BOOT_PARAMETERS", Some(MAC.0), told));
    let told = "grub grub/grub.cfg-52:54:00:00:01:05".to_string();
    assert_eq!(script.event(), ("BOOT_CONFIG", Some(MAC.0), told));
    assert!(script.link.from_shard.is_empty());
    // The same by HTTP.
    script.connect();
    let left = script.http(&get("/grub/grub.cfg-52:54:00:00:01:05"));
    let [Left::Stream(answer)] = left.as_slice() else {
        panic!("{left:?}")
    };
    assert!(
        answer.starts_with("HTTP/1.1 200") && answer.contains(&script_text),
        "{answer}"
    );
    // It leaves the snapshot: the region is asked.
    script.snapshot.store(Arc::new(snapshot()));
    script.datagram(Service::TftpTransfer(0), &[0, 5, 0, 0, 0]);
    script.read("/grub/grub.cfg-52:54:00:00:01:05");
    let asked = std::iter::from_fn(|| script.link.from_shard.pop())
        .any(|message| matches!(message, ToLink::BootConfig { .. }));
    assert!(asked);
}

/// TFTP and HTTP wait for one call; without an answer one is left to ask again, the other hears 503.
#[test]
fn an_unknown_machine_waits_for_the_region() {
    for answered in [true, false] {
        let mut script = Script::new(snapshot());
        assert!(script.read("pxelinux.cfg/01-52-54-00-00-01-05").is_empty());
        script.connect();
        assert!(
            script
                .http(&get("/pxelinux.cfg/01-52-54-00-00-01-05"))
                .is_empty()
        );
        let ToLink::BootConfig { ticket, query } = script.next_to_link() else {
            panic!()
        };
        assert_eq!((query.mac, query.vlan), (Some(MAC.0), 5001));
        assert!(script.link.from_shard.is_empty(), "one call");
        if answered {
            script.tell(ToShard::Machine {
                ticket,
                answer: BootAnswer::Machine(machine()),
            });
            let left = script.turn();
            assert_eq!(left.len(), 2, "{left:?}");
            assert!(left.iter().any(|left| matches!(
                left,
                Left::Stream(text) if text.starts_with("HTTP/1.1 200")
            )));
        } else {
            let left = script.after(Duration::from_secs(3));
            let [Left::Stream(text)] = left.as_slice() else {
                panic!("{left:?}")
            };
            assert!(text.starts_with("HTTP/1.1 503"), "{text}");
            assert!(
                script.link.from_shard.is_empty(),
                "nobody asks again at once"
            );
        }
        if !answered {
            continue;
        }
        // The region's "nothing boots there" sends the client to its next name.
        let mut script = Script::new(snapshot());
        assert!(script.read("pxelinux.cfg/01-52-54-00-00-01-05").is_empty());
        let ToLink::BootConfig { ticket, .. } = script.next_to_link() else {
            panic!()
        };
        script.tell(ToShard::Machine {
            ticket,
            answer: BootAnswer::Nothing,
        });
        let left = script.turn();
        let [Left::Datagram(_, packet)] = left.as_slice() else {
            panic!("{left:?}")
        };
        assert!(matches!(Packet::parse(packet), Ok(Packet::Error { .. })));
    }
}

#[test]
fn a_loader_that_appears_wakes_who_waits() {
    let mut with = snapshot();
    let loader = Arc::new(Loader::absent([3; 32]));
    with.loaders
        .insert("lpxelinux.0".into(), Arc::clone(&loader));
    let mut script = Script::new(with);
    assert!(script.read("lpxelinux.0").is_empty());
    script.connect();
    assert!(script.http(&get("/images/lpxelinux.0")).is_empty());
    let Some(ToWork::Want(sha256)) = script.work.from_shard.pop() else {
        panic!()
    };
    assert_eq!(sha256, [3; 32]);
    assert!(script.work.from_shard.pop().is_none(), "asked for once");
    loader.bytes.set(Bytes::from_static(b"loader")).unwrap();
    script.work.to_shard.push(ToShard::Progress).unwrap();
    let left = script.turn();
    assert_eq!(left.len(), 2, "{left:?}");
    assert!(
        left.iter()
            .any(|left| matches!(left, Left::Stream(text) if text.ends_with("\r\n\r\nloader")))
    );
    // Who serves is told when it has arrived.
    script.datagram(Service::TftpTransfer(0), &[0, 4, 0, 1]);
    let mut told = Vec::new();
    while !script.link.from_shard.is_empty() {
        told.push(script.event().2);
    }
    told.sort();
    assert_eq!(
        told,
        [
            "images/lpxelinux.0 6 octets by HTTP",
            "lpxelinux.0 6 octets by TFTP"
        ]
    );
}

#[test]
fn what_is_nobodys_and_what_is_not_ours() {
    let mut script = Script::new(snapshot());
    script.connect();
    let missing = format!("/images/{}/x", "0".repeat(64));
    for path in [
        missing.as_str(),
        "/images/none.efi",
        "/pxelinux.cfg/0A630009",
        "/grub/x.mod",
    ] {
        let left = script.http(&get(path));
        let [Left::Stream(text)] = left.as_slice() else {
            panic!("{path}: {left:?}")
        };
        assert!(text.starts_with("HTTP/1.1 404"), "{path}: {text}");
        script.turn();
    }
    let request = get("/MAAS/metadata/latest/enlist-preseed/?op=get_enlist_preseed");
    // The head is whole with the second of three parts that came at once.
    let driver = script.shard.driver();
    for part in [&request[..10], &request[10..], "body "] {
        let buffer = driver.buffer(part.as_bytes());
        driver.arrived.push_back(Completion::Received {
            stream: STREAM,
            buffer,
        });
    }
    let left = script.turn();
    assert!(matches!(left.as_slice(), [Left::Taken(STREAM)]), "{left:?}");
    // What arrives while it leaves goes along.
    let socket = std::fs::File::open("/dev/null").unwrap().into();
    let read = b"more".to_vec();
    script.shard.driver().arrived.push_back(Completion::Taken {
        stream: STREAM,
        socket,
        read,
    });
    assert!(script.turn().is_empty());
    let Some(ToWork::HandOff { read, ends, .. }) = script.work.from_shard.pop() else {
        panic!()
    };
    assert_eq!(String::from_utf8(read).unwrap(), request + "body more");
    assert_eq!(ends.peer, SocketAddr::from(([10, 99, 0, 9], 49152)));
}

#[test]
fn a_silent_connection_is_closed_and_a_stalled_one_dropped() {
    let mut script = Script::new(snapshot());
    script.connect();
    assert!(script.after(Duration::from_secs(9)).is_empty());
    let left = script.after(Duration::from_secs(1));
    assert!(
        matches!(left.as_slice(), [Left::Closed(STREAM, Close::Graceful)]),
        "{left:?}"
    );

    let mut with = snapshot();
    let file = std::fs::File::open("/dev/null").unwrap().into();
    with.files.insert(
        [0; 32],
        Arc::new(Object::complete([0; 32], 1_000_000, 0, file)),
    );
    let mut script = Script::new(with);
    script.connect();
    let left = script.http(&get(&format!("/images/{}/squashfs", "0".repeat(64))));
    assert!(matches!(left.as_slice(), [Left::Stream(..)]), "{left:?}");
    let left = script.turn();
    assert!(
        matches!(left.as_slice(), [Left::File(STREAM, 0, 524_288)]),
        "{left:?}"
    );
    let left = script.after(Duration::from_secs(20));
    assert!(
        matches!(left.as_slice(), [Left::Closed(STREAM, Close::Abort)]),
        "{left:?}"
    );
    script.after(Duration::from_secs(1));
    let stats = script.stats.get();
    assert_eq!((stats.http.stalled, stats.http_connections), (1, 0));
}

/// Nothing to do: it sleeps. Something in the mailbox: it does not.
#[test]
fn it_sleeps_only_with_an_empty_mailbox() {
    let mut script = Script::new(snapshot());
    script.turn();
    assert!(script.shard.driver().waited > Duration::from_millis(900));
    script.tell(ToShard::Progress);
    script.turn();
    assert_eq!(script.shard.driver().waited, Duration::ZERO);
    script.tell(ToShard::Stop);
    script.turn();
    assert!(script.shard.is_stopped());
}

/// Draining: nothing new begins, what runs goes on, and it ends when that has ended.
#[test]
fn a_drain_finishes_what_runs() {
    let mut with = snapshot();
    let loader = Arc::new(Loader::absent([3; 32]));
    loader.bytes.set(vec![b'x'; 600].into()).unwrap();
    with.loaders.insert("f".into(), loader);
    let mut script = Script::new(with);
    script.attach();
    assert_eq!(script.read("f").len(), 1);
    let deadline = script.shard.driver().now + Duration::from_secs(600);
    script.tell(ToShard::Drain { deadline });
    assert!(
        script
            .frame(&discover(MessageType::Discover, None))
            .is_empty()
    );
    assert!(!script.shard.is_stopped());
    assert_eq!(
        script
            .datagram(Service::TftpTransfer(0), &[0, 4, 0, 1])
            .len(),
        1
    );
    assert!(!script.shard.is_stopped());
    assert!(
        script
            .datagram(Service::TftpTransfer(0), &[0, 4, 0, 2])
            .is_empty()
    );
    assert!(script.shard.is_stopped());
}

#[test]
fn on_a_proxied_link_firmware_is_told_what_to_boot_on_both_ports() {
    let mut snapshot = snapshot();
    let mut link = snapshot.link_by_vlan(5001).unwrap().clone();
    link.dhcp.mode = dhcp::Mode::Proxy;
    snapshot.set_links(vec![link]);
    let mut script = Script::new(snapshot);
    let left = script.frame(&discover(MessageType::Discover, None));
    assert_eq!(
        dhcp_reply(&left),
        (MessageType::Offer, Ipv4Addr::UNSPECIFIED)
    );
    assert_eq!(script.event().0, "PROXY_DHCP");
    let nowhere = Ipv4Addr::UNSPECIFIED.into();
    assert_eq!(script.arch(), (MAC.0, nowhere, "amd64"));
    let (kind, mac, detail) = script.event();
    assert_eq!((kind, mac), ("BOOT_FILE", Some(MAC.0)));
    assert!(detail.contains("lpxelinux.0"), "{detail}");

    let query = discover(MessageType::Request, None);
    let left = script.datagram(Service::ProxyDhcp, &query);
    let [Left::Datagram(target, octets)] = &left[..] else {
        panic!("{left:?}")
    };
    let (from, to) = (SERVER, SocketAddrV4::new([10, 99, 0, 9].into(), 2070));
    assert_eq!(*target, Target::ProxyDhcp { from, to });
    let view = View::parse(octets).unwrap();
    assert_eq!(view.message_type(), Some(MessageType::Ack));
    assert_eq!(view.file(), b"lpxelinux.0");
    // The same to port 67 is the other server's business.
    assert!(script.frame(&query).is_empty());
}

/// As many ACKs as one flush takes may come by mail first: the message behind them is not dropped.
#[test]
fn a_turn_full_of_acks_has_room_for_a_message() {
    // A flush takes 768 items less the three of one message; an ACK is two.
    for acks in 380..=386 {
        assert_eq!(replies_of_a_turn(acks), acks + 1, "{acks}");
    }
}

/// Of a turn with so many outcomes in its mail and one DISCOVER behind them.
fn replies_of_a_turn(clients: u32) -> u32 {
    let mut config = snapshot();
    let mut links = config.links().to_vec();
    let subnet = &mut links[0].dhcp.subnets[0];
    subnet.net = "10.99.0.0/16".parse().unwrap();
    subnet.ranges[0].last = [10, 99, 3, 255].into();
    config.set_links(links);
    let mut script = Script::new(config);
    let now = script.shard.driver().now;
    script.tell(ToShard::Attach {
        blocks: Arc::from([Block {
            id: BlockId(1),
            epoch: Epoch(1),
            vlan: 5001,
            subnet: 1,
            first: [10, 99, 1, 0].into(),
            count: 512,
        }]),
        rows: Arc::from([]),
        sent: now,
        until: now + Duration::from_secs(3600),
    });
    let mac = |n: u32| Mac([2, 0, 0, 0, (n >> 8) as u8, n as u8]);
    for n in 0..clients {
        let left = script.frame(&message_of(mac(n), MessageType::Discover, None));
        let (_, address) = dhcp_reply(&left);
        script.frame(&message_of(mac(n), MessageType::Request, Some(address)));
        script.shard.driver().slots = 1000;
    }
    let outcome = Outcome::Durable {
        remaining: Duration::from_secs(1200),
    };
    while let Some(message) = script.link.from_shard.pop() {
        if let ToLink::Lease { ticket, .. } = message {
            script.tell(ToShard::Outcome { ticket, outcome });
        }
    }
    script.frame_arrives(&message_of(mac(clients), MessageType::Discover, None));
    script.turn().len() as u32
}

#[test]
fn a_frame_of_another_card_is_answered_only_where_the_operator_says_so() {
    let liar = Mac([2, 6, 6, 6, 6, 6]);
    let octets = discover(MessageType::Discover, None);
    let mut script = Script::new(snapshot());
    script.attach();
    assert!(script.frame_from(liar, &octets).is_empty());
    let (kind, mac, detail) = script.event();
    assert_eq!((kind, mac), ("DHCP_FOREIGN_SOURCE", Some(MAC.0)));
    assert!(detail.contains("02:06:06:06:06:06"), "{detail}");
    assert_eq!(script.frame_from(MAC, &octets).len(), 1);
    let bridged = Config {
        any_source_devices: Arc::from(["br0".to_owned()]),
        ..Config::default()
    };
    let mut script = Script::with(bridged, snapshot());
    script.attach();
    assert_eq!(script.frame_from(liar, &octets).len(), 1);
}

#[test]
fn a_relay_elsewhere_is_answered_only_where_the_operator_trusts_it() {
    let mut octets = discover(MessageType::Discover, None);
    // Of the rack's own link, and not where the datagram comes from.
    octets[24..28].copy_from_slice(&[10, 99, 0, 200]);
    let mut script = Script::new(snapshot());
    script.attach();
    assert!(script.datagram(Service::Dhcp, &octets).is_empty());
    let (kind, _, detail) = script.event();
    assert_eq!(kind, "DHCP_UNTRUSTED_RELAY");
    assert!(detail.contains("10.99.0.200"), "{detail}");
    let trusting = Config {
        trusted_relays: Arc::from(["10.99.0.8/30".parse().unwrap()]),
        ..Config::default()
    };
    let mut script = Script::with(trusting, snapshot());
    script.attach();
    assert_eq!(script.datagram(Service::Dhcp, &octets).len(), 1);
}

/// An address may be forged: what is in no subnet of ours gets nothing, not even an error.
#[test]
fn tftp_answers_no_address_outside_our_subnets() {
    let mut script = Script::new(snapshot());
    let mut out = [0; 512];
    let request = Request {
        file: b"nothing",
        mode: Mode::Octet,
        options: Options::default(),
    };
    let length = emit_read(&request, &mut out).unwrap();
    for (from, answers) in [
        ([10, 99, 0, 9], 1),
        ([192, 0, 2, 1], 0),
        ([10, 99, 0, 255], 0),
    ] {
        let from = SocketAddr::from((from, 2070));
        script.arrives_from(from, Service::TftpRequest, &out[..length]);
        assert_eq!(script.turn().len(), answers, "{from}");
    }
}

const PXELINUX_BY_UUID: &[u8] = b"pxelinux.cfg/03000200-0400-0500-0006-000700080009";

fn asks_by_uuid(script: &mut Script, host: u8, port: u16) -> Vec<Left> {
    asks_for(PXELINUX_BY_UUID, script, host, port)
}

fn asks_for(file: &[u8], script: &mut Script, host: u8, port: u16) -> Vec<Left> {
    let mut out = [0; 512];
    let request = Request {
        file,
        mode: Mode::Octet,
        options: Options::default(),
    };
    let length = emit_read(&request, &mut out).unwrap();
    let from = SocketAddr::from(([10, 99, 0, host], port));
    script.arrives_from(from, Service::TftpRequest, &out[..length]);
    script.turn()
}

fn text_to(left: &[Left], host: u8) -> String {
    let mut texts = left.iter().filter_map(|left| match left {
        Left::Datagram(Target::Tftp { to, .. }, packet)
            if to.ip() == IpAddr::from([10, 99, 0, host]) =>
        {
            Some(String::from_utf8_lossy(&packet[4..]).into_owned())
        }
        _ => None,
    });
    texts.next().expect("an answer")
}

fn machine_that(purpose: boot::Purpose, mac: u8) -> Arc<boot::Machine> {
    let mut machine = (*machine()).clone();
    machine.purpose = purpose;
    machine.macs = vec![Mac([0x52, 0x54, 0, 0, 1, mac])];
    machine.system_id = format!("id{mac}");
    Arc::new(machine)
}

/// Boards of one make share their UUID: whose address it is decides.
#[test]
fn two_machines_with_one_uuid_each_get_their_own_configuration() {
    let mut script = Script::new(snapshot());
    let mut tickets = Vec::new();
    for host in [9, 10] {
        assert!(asks_by_uuid(&mut script, host, 2070).is_empty());
        let ToLink::BootConfig { ticket, query } = script.next_to_link() else {
            panic!()
        };
        assert_eq!((query.mac, query.address), (None, [10, 99, 0, host].into()));
        tickets.push(ticket);
    }
    for (ticket, purpose) in tickets
        .into_iter()
        .zip([boot::Purpose::Poweroff, boot::Purpose::Local])
    {
        let answer = BootAnswer::Machine(machine_that(purpose, ticket as u8));
        script.tell(ToShard::Machine { ticket, answer });
    }
    let left = script.turn();
    assert!(text_to(&left, 9).contains("poweroff.c32"), "{left:?}");
    assert!(text_to(&left, 10).contains("chain.c32"), "{left:?}");
}

/// Poweroff a moment ago, commissioned since: what was answered is not said again, nor is an answer that is overtaken.
#[test]
fn a_boot_answer_is_dropped_when_the_feed_changes_what_it_says() {
    let mut script = Script::new(snapshot());
    assert!(asks_by_uuid(&mut script, 9, 2070).is_empty());
    let ToLink::BootConfig { ticket, .. } = script.next_to_link() else {
        panic!()
    };
    let answer = BootAnswer::Machine(machine_that(boot::Purpose::Poweroff, 5));
    script.tell(ToShard::Machine { ticket, answer });
    assert!(text_to(&script.turn(), 9).contains("poweroff.c32"));
    while script.link.from_shard.pop().is_some() {}

    let mut changed = snapshot();
    changed.insert_machine(machine_that(boot::Purpose::Local, 5));
    script.snapshot.store(Arc::new(changed));
    assert!(asks_by_uuid(&mut script, 9, 2071).is_empty(), "asked anew");
    let ToLink::BootConfig { ticket, .. } = script.next_to_link() else {
        panic!()
    };
    let answer = BootAnswer::Machine(machine_that(boot::Purpose::Poweroff, 5));
    script.tell(ToShard::Machine { ticket, answer });
    assert!(
        text_to(&script.turn(), 9).contains("chain.c32"),
        "overtaken"
    );
}

/// Events and boot calls are anybody's to cause; half of the mailbox is for leases.
#[test]
fn requests_for_random_macs_leave_room_for_leases() {
    let mut script = Script::new(snapshot());
    for number in 0..20_000u32 {
        let mac = number
            .to_be_bytes()
            .map(|octet| format!("{octet:02x}"))
            .join("-");
        let file = format!("pxelinux.cfg/01-52-54-{mac}");
        script.read(&file);
        script.shard.driver().left.clear();
    }
    let mut waiting = 0;
    while script.link.from_shard.pop().is_some() {
        waiting += 1;
    }
    assert!(waiting <= shard::TO_LINK_MAX / 2, "{waiting}");
}

/// A machine of an architecture that nothing here boots.
fn no_loaders(message: &[u8], script: &mut Script) -> Vec<String> {
    let left = script.frame(message);
    for left in &left {
        let Left::Datagram(_, packet) = left else {
            panic!("{left:?}")
        };
        let datagram = udp::Datagram::parse_packet(packet, Checksum::Verify).unwrap();
        let view = View::parse(datagram.payload).unwrap();
        assert_eq!((view.file(), view.option(code::BOOTFILE)), (&b""[..], None));
    }
    let mut told = Vec::new();
    while let Some(message) = script.link.from_shard.pop() {
        if let ToLink::Event(event) = message
            && event.kind == "BOOT_NO_LOADER"
        {
            told.push(event.detail.to_string());
        }
    }
    told
}

#[test]
fn firmware_that_nothing_boots_gets_no_file_and_one_event_that_says_why() {
    let mut script = Script::new(snapshot());
    script.attach();
    for (arch, why) in [
        (
            6,
            "no boot file: x86 UEFI (0x06) boots bootia32.efi, which is not among the imported loaders",
        ),
        (
            7,
            "no boot file: x64 UEFI (0x07) boots bootx64.efi, which is not among the imported loaders",
        ),
        (
            0x22,
            "no boot file: nothing here boots MIPS 64-bit UEFI (0x22)",
        ),
    ] {
        let mac = Mac([0x52, 0x54, 0, 0, 2, arch]);
        let ask = firmware(mac, arch, MessageType::Discover, None);
        assert_eq!(no_loaders(&ask, &mut script), [why]);
        // It asks again, as firmware does.
        for _ in 0..3 {
            script.after(Duration::from_secs(4));
            assert_eq!(no_loaders(&ask, &mut script), [""; 0]);
        }
    }
    script.after(Duration::from_secs(600));
    let ask = firmware(
        Mac([0x52, 0x54, 0, 0, 2, 6]),
        6,
        MessageType::Discover,
        None,
    );
    assert_eq!(
        no_loaders(&ask, &mut script).len(),
        1,
        "once in ten minutes"
    );
    // An operator names a file for it: there is nothing to tell.
    let mut named = snapshot();
    let mut link = named.link_by_vlan(5001).unwrap().clone();
    link.dhcp.subnets[0].options = [dhcp::DhcpOption {
        code: code::BOOTFILE,
        value: b"grubia32.efi"[..].into(),
        always: false,
    }]
    .into();
    named.set_links(vec![link]);
    let mut script = Script::new(named);
    script.attach();
    script.frame(&ask);
    assert!(script.link.from_shard.is_empty());
}

#[test]
fn made_up_firmware_keeps_no_machine_of_ours_from_its_event() {
    let mut with = snapshot();
    with.insert_machine(machine());
    let mut script = Script::new(with);
    script.attach();
    let mut told = 0;
    for number in 0..3_000u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let ask = firmware(Mac([2, 0, 0, b, c, d]), 6, MessageType::Discover, None);
        told += no_loaders(&ask, &mut script).len();
    }
    assert!((1..=64).contains(&told), "{told}");
    let ask = firmware(MAC, 6, MessageType::Discover, None);
    assert_eq!(no_loaders(&ask, &mut script).len(), 1);
}

#[test]
fn what_an_unknown_machine_says_to_dhcp_that_it_is_goes_to_the_link_thread() {
    for (arch, want) in [
        (11, "arm64"),
        (0x16, "arm64"),
        (0x1b, "riscv64"),
        (7, "amd64"),
    ] {
        for is_known in [false, true] {
            let mut with = snapshot();
            if is_known {
                with.insert_machine(machine());
            }
            let mut script = Script::new(with);
            script.attach();
            script.frame(&firmware(MAC, arch, MessageType::Discover, None));
            let ask = Ipv4Addr::new(10, 99, 0, 64);
            script.frame(&firmware(MAC, arch, MessageType::Request, Some(ask)));
            let mut lease = None;
            while let Some(message) = script.link.from_shard.pop() {
                if let ToLink::Lease { ticket, .. } = message {
                    lease = Some(ticket);
                }
            }
            let outcome = Outcome::Durable {
                remaining: Duration::from_secs(1200),
            };
            script.tell(ToShard::Outcome {
                ticket: lease.unwrap(),
                outcome,
            });
            script.turn();
            let mut told = Vec::new();
            while let Some(message) = script.link.from_shard.pop() {
                if let ToLink::Arch { mac, address, arch } = message {
                    assert_eq!((mac, address), (MAC.0, ask.into()));
                    told.push(arch);
                }
            }
            let want = if is_known { &[][..] } else { &[want] };
            assert_eq!(told, want, "the region knows what a machine of its own is");
        }
    }
}

#[test]
fn an_unknown_machine_is_asked_for_as_what_its_loader_is_built_for() {
    for (path, want) in [
        ("/ipxe.cfg-52-54-00-00-01-05-arm64", "arm64"),
        ("/ipxe.cfg-52-54-00-00-01-05-i386", "amd64"),
        ("/grub/grub.cfg-52:54:00:00:01:05-arm64", "arm64"),
        ("/grub/grub.cfg-52:54:00:00:01:05", ""),
        ("/pxelinux.cfg/01-52-54-00-00-01-05", ""),
        ("/pxelinux.cfg/default", ""),
        ("/pxelinux.cfg/default-arm-bcm283x-rpi", "armhf"),
        ("/grub/grub.cfg-default-arm64", "arm64"),
    ] {
        let mut script = Script::new(snapshot());
        script.connect();
        assert!(script.http(&get(path)).is_empty(), "{path}");
        let ToLink::BootConfig { ticket, query } = script.next_to_link() else {
            panic!()
        };
        assert_eq!(query.arch, want, "{path}");
        // The region has no image for it.
        let nothing = boot::Machine::without_image("arm64");
        let answer = BootAnswer::Machine(Arc::new(nothing));
        script.tell(ToShard::Machine { ticket, answer });
        let left = script.turn();
        let [Left::Stream(text)] = left.as_slice() else {
            panic!("{left:?}")
        };
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        assert!(
            text.contains("There is no image to boot for arm64."),
            "{text}"
        );
    }
}

#[test]
fn an_architecture_that_no_region_has_images_for_is_told_so_at_once() {
    for path in [
        "/ipxe.cfg-52-54-00-00-01-05-mips64",
        "/ipxe.cfg-default-mips64",
        "/grub/grub.cfg-default-mips64",
        "/pxelinux.cfg/default-mips64-board",
    ] {
        let mut script = Script::new(snapshot());
        script.connect();
        let left = script.http(&get(path));
        let [Left::Stream(text)] = left.as_slice() else {
            panic!("{left:?}")
        };
        assert!(
            text.contains("There is no image to boot for mips64."),
            "{text}"
        );
        while let Some(message) = script.link.from_shard.pop() {
            assert!(!matches!(message, ToLink::BootConfig { .. }), "{message:?}");
        }
    }
    // One that is known boots what its record says.
    let mut with = snapshot();
    with.insert_machine(machine());
    let mut script = Script::new(with);
    script.connect();
    let left = script.http(&get("/ipxe.cfg-52-54-00-00-01-05-mips64"));
    let [Left::Stream(text)] = left.as_slice() else {
        panic!("{left:?}")
    };
    assert!(text.contains("sanboot"), "{text}");
}

/// Another's question about a machine, from an address whose architecture is not known, is no answer to its own.
#[test]
fn what_another_host_asks_about_a_machine_is_not_kept_for_it() {
    let mut script = Script::new(snapshot());
    for host in [10, 9] {
        asks_for(
            b"pxelinux.cfg/01-52-54-00-00-01-05",
            &mut script,
            host,
            2070,
        );
        let ToLink::BootConfig { ticket, query } = script.next_to_link() else {
            panic!("{host}")
        };
        assert_eq!(query.address, IpAddr::from([10, 99, 0, host]));
        let answer = BootAnswer::Machine(machine_that(boot::Purpose::Local, 5));
        script.tell(ToShard::Machine { ticket, answer });
        script.turn();
        while script.link.from_shard.pop().is_some() {}
    }
}
