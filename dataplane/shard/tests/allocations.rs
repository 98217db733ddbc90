//! The packet path allocates nothing: a shard turned by hand, every allocation of its thread counted.
//!
//! What may allocate, once, is a grant whose client says its name: the name crosses to the region.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use lease::{Block, BlockId, Epoch, Outcome};
use shard::{
    Bell, Buffer, Completion, Config, Datagram, LinkMailbox, Service, Shard, SharedStats, Snapshot,
    ToLink, ToShard, WorkMailbox, mailboxes,
};
use support::Still;
use wire::dhcp4::{Header, MessageType, OP_REQUEST, View, Writer, code};
use wire::ethernet::Mac;
use wire::udp::{self, Checksum, HEADROOM_BYTES};

// -------------------------------------------------------------------- counting

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

fn count() {
    // A thread that is ending has nothing left to count with.
    let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
}

#[allow(unsafe_code, reason = "an allocator is unsafe by its trait")]
// SAFETY: every call is handed to `System` as it came, and what `System` gave is given back unchanged; counting
// touches a thread-local integer without a destructor and allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `GlobalAlloc::alloc`'s promises, which are `System`'s.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: as for `alloc`.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, place: *mut u8, layout: Layout) {
        // SAFETY: `place` came from `System` with this layout, for all of ours do.
        unsafe { System.dealloc(place, layout) }
    }

    unsafe fn realloc(&self, place: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: as for `dealloc`; the caller keeps the promise about `size`.
        unsafe { System.realloc(place, layout, size) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Allocations of this thread while `act` runs.
fn allocations(act: impl FnOnce()) -> usize {
    let before = ALLOCATIONS.get();
    act();
    ALLOCATIONS.get() - before
}

// -------------------------------------------------------------------- a rack

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const NONE: Ipv4Addr = Ipv4Addr::UNSPECIFIED;

struct Rack {
    shard: Shard<Still>,
    link: LinkMailbox,
    _work: WorkMailbox,
    /// Where the next datagram comes from.
    from: Ipv4Addr,
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot::default();
    let loader = std::sync::Arc::new(shard::Loader::absent([3; 32]));
    snapshot.loaders.insert("bootx64.efi".into(), loader);
    let range = dhcp::Range {
        id: 1,
        first: [10, 99, 1, 0].into(),
        last: [10, 99, 16, 255].into(),
        kind: dhcp::RangeKind::Dynamic,
        lease: None,
        options: [].into(),
    };
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
                net: "10.99.0.0/16".parse().unwrap(),
                gateway: Some([10, 99, 0, 254].into()),
                dns: vec![SERVER],
                ntp: vec![SERVER],
                domain: "maas".into(),
                lease: Duration::from_secs(600),
                ranges: vec![range],
                disabled_archs: vec![],
                client_id_identity: false,
                options: [dhcp::DhcpOption {
                    code: code::DOMAIN,
                    value: b"lab".to_vec().into(),
                    always: true,
                }]
                .into(),
            }],
        },
        interface: "br0".into(),
        index: Some(7),
    }]);
    for number in 0..8 {
        snapshot.insert_machine(Arc::new(boot::Machine {
            system_id: format!("known{number}"),
            hostname: format!("node-{number}"),
            domain: "maas".into(),
            macs: vec![mac(number)],
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
        }));
    }
    snapshot.insert_reservation(dhcp::Reservation {
        vlan: 5001,
        subnet: 1,
        key: dhcp::ReservationKey::Mac(mac(1)),
        address: [10, 99, 0, 20].into(),
        hostname: "fixed".into(),
        lease: None,
        options: [].into(),
    });
    snapshot
}

impl Rack {
    fn new() -> Self {
        let driver = Still::new();
        let bell = Bell::new().unwrap();
        let (mail, link, work) = mailboxes(&bell, &bell).unwrap();
        let config = Config {
            dhcp: dhcp::Limits {
                mac_rate: dhcp::Rate {
                    burst: 1000,
                    per_sec: 1000,
                },
                circuit_rate: dhcp::Rate {
                    burst: 50,
                    per_sec: 10,
                },
                leases_per_circuit_max: 100,
                probe_stock: 8,
                ..dhcp::Limits::default()
            },
            trusted_relays: Arc::from(["10.99.0.0/16".parse().unwrap()]),
            ..Config::default()
        };
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()));
        let shard = Shard::new(config, driver, mail, snapshot, SharedStats::default());
        let mut rack = Self {
            shard,
            link,
            _work: work,
            from: NONE,
        };
        let now = rack.shard.driver().now;
        let block = |number: u32| Block {
            id: BlockId(number.into()),
            epoch: Epoch(1),
            vlan: 5001,
            subnet: 1,
            first: IpAddr::V4(Ipv4Addr::from(0x0a63_0100 + number * 64)),
            count: 64,
        };
        rack.tell(ToShard::Attach {
            blocks: (0..64).map(block).collect(),
            rows: Arc::from([]),
            sent: now,
            until: now + Duration::from_secs(86_400),
        });
        rack.turn();
        rack
    }

    fn tell(&mut self, message: ToShard) {
        self.link.to_shard.push(message).unwrap();
    }

    fn turn(&mut self) {
        self.shard.turn().unwrap();
    }

    fn receive(&mut self, service: Service, octets: Vec<u8>) {
        let driver = self.shard.driver();
        let length = octets.len() as u32;
        driver.received = octets.into();
        driver.sends = 0;
        driver.arrived = Some(Completion::Datagram(Datagram {
            service,
            from: SocketAddr::from((self.from, 68)),
            local: IpAddr::V4(SERVER),
            interface: 7,
            ethernet: None,
            checksum_missing: false,
            buffer: Buffer {
                set: 0,
                index: 0,
                start: 0,
                length,
            },
        }));
    }

    /// What a turn with this frame allocates.
    fn frame(&mut self, message: &Message) -> usize {
        let mut packet = vec![0; HEADROOM_BYTES];
        packet.extend(message.octets());
        let from = SocketAddrV4::new(NONE, 68);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
        udp::frame(&mut packet, from, to, 1).unwrap();
        self.receive(Service::DhcpFrame, packet);
        allocations(|| self.turn())
    }

    /// The same, sent to the rack's own address.
    fn datagram(&mut self, message: &Message) -> usize {
        self.from = match message.giaddr {
            NONE => message.ciaddr,
            giaddr => giaddr,
        };
        self.receive(Service::Dhcp, message.octets());
        allocations(|| self.turn())
    }

    /// The kind and address of the one reply that left; None if none did.
    fn reply(&mut self) -> Option<(MessageType, Ipv4Addr)> {
        let driver = self.shard.driver();
        if driver.sends == 0 {
            return None;
        }
        let octets = &driver.sent[..driver.sent_bytes];
        let payload = match udp::Datagram::parse_packet(octets, Checksum::Verify) {
            Ok(packet) => packet.payload,
            Err(_) => octets,
        };
        let view = View::parse(payload).unwrap();
        Some((view.message_type().unwrap(), view.yiaddr()))
    }

    /// Everything that waits for the link thread: the ticket of a grant, and how many events.
    fn mail(&mut self) -> (Option<dhcp::Ticket>, usize) {
        let (mut ticket, mut events) = (None, 0);
        while let Some(message) = self.link.from_shard.pop() {
            match message {
                ToLink::Lease { ticket: of, .. } => ticket = Some(of),
                ToLink::Event(_) => events += 1,
                ToLink::Arch { .. } => {}
                other => panic!("{other:?}"),
            }
        }
        (ticket, events)
    }

    /// DISCOVER, OFFER, REQUEST, grant, ACK; the address, and what (the grant, all else) allocated.
    fn boot(&mut self, number: u32, hostname: Option<&[u8]>) -> (Ipv4Addr, (usize, usize)) {
        let discover = self.frame(&message(MessageType::Discover, number));
        let (kind, address) = self.reply().expect("an OFFER");
        assert_eq!(kind, MessageType::Offer);
        let ask = Message {
            requested: Some(address),
            server: Some(SERVER),
            hostname: hostname.map(<[u8]>::to_vec),
            ..message(MessageType::Request, number)
        };
        let grant = self.frame(&ask);
        assert_eq!(self.reply(), None, "nothing leaves before its commit");
        let again = self.frame(&ask);
        let ticket = self.mail().0.expect("a grant");
        self.tell(ToShard::Outcome {
            ticket,
            outcome: Outcome::Durable {
                remaining: Duration::from_secs(1200),
            },
        });
        let ack = allocations(|| self.turn());
        assert_eq!(self.reply(), Some((MessageType::Ack, address)));
        assert_eq!(self.mail().1, 2, "DHCP_ACK and BOOT_FILE");
        (address, (grant, discover + again + ack))
    }
}

fn mac(number: u32) -> Mac {
    let [a, b, c, d] = number.to_be_bytes();
    Mac([0x52, 0x54, a, b, c, d])
}

#[derive(Clone)]
struct Message {
    kind: MessageType,
    number: u32,
    ciaddr: Ipv4Addr,
    giaddr: Ipv4Addr,
    requested: Option<Ipv4Addr>,
    server: Option<Ipv4Addr>,
    hostname: Option<Vec<u8>>,
}

fn message(kind: MessageType, number: u32) -> Message {
    Message {
        kind,
        number,
        ciaddr: NONE,
        giaddr: NONE,
        requested: None,
        server: None,
        hostname: None,
    }
}

impl Message {
    fn octets(&self) -> Vec<u8> {
        let mut header = Header::new(OP_REQUEST);
        (header.htype, header.hlen) = (1, 6);
        header.chaddr[..6].copy_from_slice(&mac(self.number).0);
        header.ciaddr = self.ciaddr.octets();
        header.giaddr = self.giaddr.octets();
        let mut buffer = [0; 1024];
        let mut writer = Writer::new(&mut buffer, 1024, &header, self.kind).unwrap();
        let id = [1, 0x52, 0x54, 0, 0, 1, 5];
        let uuid = [0; 17];
        let list = [1, 3, 6, 12, 15, 42, 43, 51, 54, 58, 59, 60, 66, 67, 97, 119];
        for (code, value) in [
            (code::CLIENT_ID, &id[..]),
            (code::MACHINE_UUID, &uuid),
            (code::PARAMETER_LIST, &list),
            (code::VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003016"),
            (code::CLIENT_ARCH, &[0, 7]),
        ] {
            writer.option(code, value).unwrap();
        }
        if let Some(name) = &self.hostname {
            writer.option(code::HOSTNAME, name).unwrap();
        }
        if let Some(address) = self.requested {
            writer.address(code::REQUESTED_ADDRESS, address).unwrap();
        }
        if let Some(server) = self.server {
            writer.address(code::SERVER_ID, server).unwrap();
        }
        if !self.giaddr.is_unspecified() {
            writer
                .option(code::RELAY_INFO, &[1, 4, b'g', b'e', b'-', b'0'])
                .unwrap();
        }
        let length = writer.finish();
        buffer[..length].to_vec()
    }
}

// -------------------------------------------------------------------- what is promised

#[test]
fn the_counter_counts() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

/// Every way through that needs no region, and the whole way through one that does.
#[test]
fn the_packet_path_allocates_nothing() {
    let mut rack = Rack::new();
    // Warm: the buffers of waiting ACKs, the outbox, the mailboxes' first use.
    for number in 100..110 {
        rack.boot(number, Some(b"warm"));
    }

    for number in 2..8 {
        let (address, (grant, rest)) = rack.boot(number, None);
        assert_eq!((grant, rest), (0, 0), "a boot, machine {number}");
        let hold = message(MessageType::Discover, number);
        let ask = Message {
            requested: Some(address),
            server: Some(SERVER),
            ..message(MessageType::Request, number)
        };
        let reboot = Message {
            server: None,
            ..ask.clone()
        };
        let renew = Message {
            ciaddr: address,
            ..message(MessageType::Request, number)
        };
        for repeat in 0..3 {
            let case = format!("machine {number}, repeat {repeat}");
            assert_eq!(rack.frame(&hold), 0, "DISCOVER, {case}");
            assert_eq!(rack.reply(), Some((MessageType::Offer, address)));
            assert_eq!(rack.frame(&ask), 0, "REQUEST, {case}");
            assert_eq!(rack.reply(), Some((MessageType::Ack, address)));
            assert_eq!(rack.frame(&reboot), 0, "INIT-REBOOT, {case}");
            assert_eq!(rack.reply(), Some((MessageType::Ack, address)));
            assert_eq!(rack.datagram(&renew), 0, "renewal, {case}");
            assert_eq!(rack.reply(), Some((MessageType::Ack, address)));
            rack.mail();
        }
    }

    let named = rack.boot(50, Some(b"node-50")).1;
    assert_eq!(
        named,
        (1, 0),
        "its name crosses to the region, nothing else"
    );

    let reserved = message(MessageType::Discover, 1);
    assert_eq!(rack.frame(&reserved), 0, "a reservation");
    let own = Some((MessageType::Offer, [10, 99, 0, 20].into()));
    assert_eq!(rack.reply(), own);

    let relayed = Message {
        giaddr: [10, 99, 0, 2].into(),
        ..message(MessageType::Discover, 60)
    };
    assert_eq!(rack.datagram(&relayed), 0, "through a relay");
    assert!(rack.reply().is_some());

    let inform = Message {
        ciaddr: [10, 99, 0, 77].into(),
        ..message(MessageType::Inform, 61)
    };
    assert_eq!(rack.datagram(&inform), 0, "INFORM");
    assert!(rack.reply().is_some());
}

#[test]
fn what_is_dropped_or_refused_allocates_nothing() {
    let mut rack = Rack::new();
    rack.boot(100, None);
    // A NAK, and the silences.
    let foreign = Message {
        requested: Some([10, 99, 1, 99].into()),
        server: Some(SERVER),
        ..message(MessageType::Request, 5)
    };
    let moved = Message {
        requested: Some([192, 168, 0, 1].into()),
        ..message(MessageType::Request, 5)
    };
    let elsewhere = Message {
        server: Some([10, 99, 0, 66].into()),
        ..foreign.clone()
    };
    let nowhere = message(MessageType::Request, 5);
    rack.frame(&elsewhere); // remembers the server
    for case in [&moved, &elsewhere, &nowhere] {
        assert_eq!(rack.frame(case), 0, "{:?}", case.requested);
    }
    rack.receive(Service::DhcpFrame, vec![7; 300]);
    assert_eq!(allocations(|| rack.turn()), 0, "no packet at all");
    rack.receive(Service::Dhcp, vec![0; 10]);
    assert_eq!(allocations(|| rack.turn()), 0, "no message at all");
    rack.mail();
    // More than its rate.
    let wild = message(MessageType::Discover, 6);
    let spent: usize = (0..2000).map(|_| rack.frame(&wild)).sum();
    assert_eq!((spent, rack.reply()), (0, None));
    // A storm of strangers, past their half.
    rack.frame(&message(MessageType::Discover, 999));
    let spent: usize = (1000..8000)
        .map(|number| rack.frame(&message(MessageType::Discover, number)))
        .sum();
    assert_eq!((spent, rack.reply()), (0, None));
    rack.mail();
    // Their offers run out, and a second passes: statistics are published.
    rack.shard.driver().now += Duration::from_secs(61);
    assert_eq!(allocations(|| rack.turn()), 0, "offers that run out");
}

#[test]
fn a_thousand_boots_allocate_nothing_after_the_first() {
    let mut rack = Rack::new();
    rack.boot(100, None);
    let mut spent = 0;
    for number in 1_000..2_000 {
        let (grant, rest) = rack.boot(number, None).1;
        spent += grant + rest;
    }
    assert_eq!(spent, 0);
}
