//! Clients that the kernel cannot steer: two shards, and the test in the place of the link thread.

mod support;

use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use lease::{Block, BlockId, Epoch};
use shard::{
    Bell, Buffer, Completion, Config, Datagram, LinkMailbox, Service, Shard, SharedStats, Snapshot,
    TO_LINK_MAX, ToLink, ToShard, WorkMailbox, mailboxes,
};
use support::Still;
use wire::dhcp4::{FLAG_BROADCAST, Header, MessageType, OP_REQUEST, View, Writer, code};
use wire::udp::{self, Checksum, HEADROOM_BYTES};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const MAC: [u8; 6] = [0x52, 0x54, 0, 0, 1, 5];

struct End {
    shard: Shard<Still>,
    link: LinkMailbox,
    _work: WorkMailbox,
    stats: SharedStats,
}

/// A subnet whose clients are known by their client ids.
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
                ranges: vec![],
                disabled_archs: vec![],
                client_id_identity: true,
                options: [].into(),
            }],
        },
        interface: "br0".into(),
        index: Some(7),
    }]);
    snapshot
}

fn shards() -> Vec<End> {
    let bell = Bell::new().unwrap();
    let snapshot = Arc::new(ArcSwap::from_pointee(snapshot()));
    (0..2)
        .map(|index| {
            let (mail, link, work) = mailboxes(&bell, &bell).unwrap();
            let config = Config {
                index,
                count: 2,
                ..Config::default()
            };
            let stats = SharedStats::default();
            let shard = Shard::new(
                config,
                Still::new(),
                mail,
                Arc::clone(&snapshot),
                stats.clone(),
            );
            let mut end = End {
                shard,
                link,
                _work: work,
                stats,
            };
            let now = end.shard.driver().now;
            let block = Block {
                id: BlockId(1),
                epoch: Epoch(1),
                vlan: 5001,
                subnet: 1,
                first: [10, 99, 0, 64].into(),
                count: 64,
            };
            let attach = ToShard::Attach {
                blocks: Arc::from([block]),
                rows: Arc::from([]),
                sent: now,
                until: now + Duration::from_secs(3600),
            };
            end.link.to_shard.push(attach).unwrap();
            end.shard.turn().unwrap();
            end
        })
        .collect()
}

fn discover(client_id: &[u8]) -> Vec<u8> {
    discover_of(MAC, client_id)
}

fn discover_of(mac: [u8; 6], client_id: &[u8]) -> Vec<u8> {
    let mut header = Header::new(OP_REQUEST);
    (header.htype, header.hlen) = (1, 6);
    header.chaddr[..6].copy_from_slice(&mac);
    header.flags.set(FLAG_BROADCAST);
    let mut buffer = [0; 576];
    let mut writer = Writer::new(&mut buffer, 576, &header, MessageType::Discover).unwrap();
    writer.option(code::CLIENT_ID, client_id).unwrap();
    let length = writer.finish();
    buffer[..length].to_vec()
}

impl End {
    /// In a frame of the client's.
    fn receive(&mut self, payload: Vec<u8>) {
        self.receive_from(MAC, payload);
    }

    fn receive_from(&mut self, mac: [u8; 6], payload: Vec<u8>) {
        let mut octets = vec![0; HEADROOM_BYTES];
        octets.extend_from_slice(&payload);
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
        udp::frame(&mut octets, from, to, 1).unwrap();
        let driver = self.shard.driver();
        let length = octets.len() as u32;
        driver.received = octets.into();
        driver.sends = 0;
        driver.arrived = Some(Completion::Datagram(Datagram {
            service: Service::DhcpFrame,
            from: SocketAddr::from(([0, 0, 0, 0], 68)),
            local: IpAddr::V4(Ipv4Addr::BROADCAST),
            interface: 7,
            ethernet: Some(mac),
            checksum_missing: false,
            buffer: Buffer {
                set: 0,
                index: 0,
                start: 0,
                length,
            },
        }));
        self.shard.turn().unwrap();
    }

    fn offered(&mut self) -> Option<Ipv4Addr> {
        let driver = self.shard.driver();
        if driver.sends == 0 {
            return None;
        }
        let sent = &driver.sent[..driver.sent_bytes];
        let packet = udp::Datagram::parse_packet(sent, Checksum::Verify).unwrap();
        Some(View::parse(packet.payload).unwrap().yiaddr())
    }

    fn stats(&mut self) -> shard::Counters {
        self.shard.driver().now += Duration::from_secs(2);
        self.shard.turn().unwrap();
        self.stats.get().shard
    }
}

/// The same client by two messages at two shards: one of them answers both, with one address.
#[test]
fn a_client_known_by_its_id_is_answered_wherever_it_arrives() {
    let mut ends = shards();
    let mut handed = 0;
    for number in 0..16u8 {
        let octets = discover(&[0xff, 9, 9, number]);
        let mut addresses = vec![];
        for at in 0..2 {
            ends[at].receive(octets.clone());
            if let Some(address) = ends[at].offered() {
                addresses.push(address);
                continue;
            }
            let Some(ToLink::HandOver { shard, message }) = ends[at].link.from_shard.pop() else {
                panic!("neither answered nor handed over");
            };
            handed += 1;
            let owner = &mut ends[shard as usize];
            assert_eq!(shard as usize, 1 - at);
            owner.shard.driver().sends = 0;
            let message = ToShard::HandedOver(message);
            owner.link.to_shard.push(message).unwrap();
            owner.shard.turn().unwrap();
            addresses.push(owner.offered().expect("an OFFER"));
        }
        assert_eq!(addresses[0], addresses[1], "client {number}");
    }
    assert_eq!(handed, 16);
    let counted = ends.iter_mut().map(End::stats);
    let counted: Vec<_> = counted
        .map(|stats| (stats.dhcp_handed_over, stats.dhcp_taken_over))
        .collect();
    assert_eq!(counted[0].0 + counted[1].0, 16);
    assert_eq!(counted[0].1 + counted[1].1, 16);
}

/// What is not a shard's own takes at most half of its mailbox, and unknown clients half of that.
#[test]
fn a_flood_of_others_clients_leaves_room_for_leases() {
    let mut ends = shards();
    let foreign = (0..=255)
        .map(|number| discover(&[0xff, 7, 7, number]))
        .find(|octets| {
            ends[0].receive(octets.clone());
            ends[0].offered().is_none()
        })
        .expect("half of them are the other's");
    // Slowly: the rate of one client is not what is tried here.
    for _ in 0..TO_LINK_MAX {
        ends[0].shard.driver().now += Duration::from_millis(100);
        ends[0].receive(foreign.clone());
    }
    let mut waiting = 0;
    while ends[0].link.from_shard.pop().is_some() {
        waiting += 1;
    }
    assert_eq!(waiting, TO_LINK_MAX / 4);
    assert!(ends[0].stats().dhcp_hand_overs_refused > 4_000);
}

/// One source has its share of the hand-overs, however it calls its clients; another's are handed over all the same.
#[test]
fn a_source_has_a_share_of_the_hand_overs() {
    let mut ends = shards();
    let foreign = |end: &mut End, mac: [u8; 6]| {
        (0..=255)
            .map(|number| discover_of(mac, &[0xff, 8, 8, number]))
            .find(|octets| {
                end.receive_from(mac, octets.clone());
                end.link.from_shard.pop().is_some()
            })
            .expect("half of them are the other's")
    };
    let (flood, other) = ([0x52, 0x54, 0, 0, 2, 1], [0x52, 0x54, 0, 0, 2, 2]);
    let (from_flood, from_other) = (foreign(&mut ends[0], flood), foreign(&mut ends[0], other));
    ends[0].shard.driver().now += Duration::from_secs(10);
    // At once: of these its rate, and what all share beyond it, lets 564 through.
    for _ in 0..1_000 {
        ends[0].receive_from(flood, from_flood.clone());
    }
    let mut handed = 0;
    while ends[0].link.from_shard.pop().is_some() {
        handed += 1;
    }
    assert_eq!(handed, 512, "the rest of its 564 messages is refused");
    ends[0].receive_from(other, from_other);
    assert!(ends[0].link.from_shard.pop().is_some());
    assert_eq!(ends[0].stats().dhcp_hand_overs_refused, 52);
}
