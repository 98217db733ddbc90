//! DHCP through packet sockets, in a network namespace of its own: who gets a packet, and what comes back.

mod support;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4, UdpSocket};
use std::os::fd::AsRawFd;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use lease::{Block, BlockId, Epoch, Outcome, WriteKind};
use shard::{Config, Snapshot, ToLink, ToShard};
use socket2::{Domain, Protocol, Socket, Type};
use support::*;
use uring::{Places, interface_index, open_link};
use wire::dhcp4::{FLAG_BROADCAST, Header, MessageType, OP_REQUEST, View, Writer, code};
use wire::ethernet::Mac;
use wire::udp::{Checksum, Datagram, HEADROOM_BYTES, frame};

const VLAN: u32 = 5001;

/// Runs `test` on a thread with a network of its own: ve0 (10.99.0.1, the rack) and ve1 (the clients' end). It goes
/// with the thread and what the thread started.
fn in_network(test: impl FnOnce() + Send + 'static) {
    let thread = thread::spawn(|| {
        // SAFETY: no pointers; this thread alone moves to another network.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("skipped: a network namespace needs CAP_SYS_ADMIN");
            return;
        }
        ip("link set lo up");
        ip("link add ve0 type veth peer name ve1");
        ip("addr add 10.99.0.1/24 dev ve0");
        ip("link set ve0 up");
        ip("link set ve1 up");
        test();
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split(' '))
        .status()
        .expect("iproute2 is there");
    assert!(status.success(), "ip {arguments}");
}

fn mac(number: u8) -> Mac {
    Mac([0x52, 0x54, 0, number, number.wrapping_mul(31), number])
}

/// A PXE client's message.
fn message(
    kind: MessageType,
    of: Mac,
    broadcast: bool,
    relay: Ipv4Addr,
    ask: Option<Ipv4Addr>,
) -> Vec<u8> {
    let mut header = Header::new(OP_REQUEST);
    (header.htype, header.hlen) = (1, 6);
    header.chaddr[..6].copy_from_slice(&of.0);
    header.giaddr = relay.octets();
    header.flags.set(if broadcast { FLAG_BROADCAST } else { 0 });
    let mut buffer = [0; 576];
    let mut writer = Writer::new(&mut buffer, 576, &header, kind).unwrap();
    writer
        .option(code::VENDOR_CLASS, b"PXEClient:Arch:00007:UNDI:003000")
        .unwrap();
    writer.option(code::CLIENT_ARCH, &[0, 7]).unwrap();
    if let Some(ask) = ask {
        writer.address(code::REQUESTED_ADDRESS, ask).unwrap();
        writer
            .address(code::SERVER_ID, Ipv4Addr::new(10, 99, 0, 1))
            .unwrap();
    }
    let length = writer.finish();
    buffer[..length].to_vec()
}

/// The clients' end of the wire.
struct Wire {
    socket: Socket,
    interface: u32,
}

/// A reply as a client saw it.
#[derive(Debug)]
struct Seen {
    kind: MessageType,
    mac: Mac,
    address: Ipv4Addr,
    to: Ipv4Addr,
    bootfile: Vec<u8>,
}

impl Wire {
    fn open(name: &str) -> Self {
        let interface = interface_index(name).unwrap();
        let protocol = Protocol::from(i32::from((libc::ETH_P_IP as u16).to_be()));
        let socket = Socket::new(Domain::PACKET, Type::DGRAM, Some(protocol)).unwrap();
        socket
            .set_read_timeout(Some(Duration::from_millis(1000)))
            .unwrap();
        Self { socket, interface }
    }

    fn broadcast(&self, payload: &[u8]) {
        self.send(payload, Ipv4Addr::BROADCAST, Mac::BROADCAST);
    }

    fn send(&self, payload: &[u8], to: Ipv4Addr, mac: Mac) {
        let mut packet = vec![0; HEADROOM_BYTES];
        packet.extend_from_slice(payload);
        let (from, to) = (
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            SocketAddrV4::new(to, 67),
        );
        frame(&mut packet, from, to, 1).unwrap();
        let [a, b, c, d, e, f] = mac.0;
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET as u16,
            sll_protocol: (libc::ETH_P_IP as u16).to_be(),
            sll_ifindex: self.interface as i32,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 6,
            sll_addr: [a, b, c, d, e, f, 0, 0],
        };
        // SAFETY: the packet and the address are valid for reads of their sizes for the call.
        let sent = unsafe {
            libc::sendto(
                self.socket.as_raw_fd(),
                packet.as_ptr().cast(),
                packet.len(),
                0,
                (&raw const address).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        assert_eq!(
            sent,
            packet.len() as isize,
            "{}",
            io::Error::last_os_error()
        );
    }

    /// All replies until the wire has been quiet for a while.
    fn replies(&mut self) -> Vec<Seen> {
        let mut seen = Vec::new();
        let mut buffer = [0; 2048];
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let Ok(length) = io::Read::read(&mut self.socket, &mut buffer) else {
                break;
            };
            let Ok(datagram) = Datagram::parse_packet(&buffer[..length], Checksum::Verify) else {
                continue;
            };
            if datagram.target.port() != 68 {
                continue; // our own, looped back
            }
            assert_eq!(
                datagram.source,
                SocketAddrV4::new([10, 99, 0, 1].into(), 67)
            );
            seen.push(read(datagram.payload, *datagram.target.ip()));
        }
        seen
    }
}

fn read(payload: &[u8], to: Ipv4Addr) -> Seen {
    let view = View::parse(payload).unwrap();
    let end = view
        .file()
        .iter()
        .position(|octet| *octet == 0)
        .unwrap_or(view.file().len());
    Seen {
        kind: view.message_type().unwrap(),
        mac: view.mac().unwrap(),
        address: view.yiaddr(),
        to,
        bootfile: view.file()[..end].to_vec(),
    }
}

fn rack(shards: u32) -> Rack {
    rack_in_mode(shards, dhcp::Mode::Serve)
}

/// The clients' end of the wire speaks for many, and for their relay.
fn rack_in_mode(shards: u32, mode: dhcp::Mode) -> Rack {
    let config = Config {
        any_source_devices: Arc::from(["ve0".to_owned()]),
        trusted_relays: Arc::from(["10.99.0.2/32".parse().unwrap()]),
        ..Config::default()
    };
    rack_as(shards, mode, config)
}

fn rack_as(shards: u32, mode: dhcp::Mode, config: Config) -> Rack {
    let index = interface_index("ve0").unwrap();
    let mut snapshot = Snapshot::default();
    for name in ["lpxelinux.0", "bootx64.efi"] {
        let loader = std::sync::Arc::new(shard::Loader::absent([3; 32]));
        snapshot.loaders.insert(name.into(), loader);
    }
    let mut link = dhcp_link(VLAN, index);
    link.dhcp.mode = mode;
    snapshot.set_links(vec![link]);
    let places = Places {
        dhcp: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 67)),
        proxy_dhcp: Some(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 4011)),
        tftp: None,
        http: None,
    };
    let links = open_link(index, shards)
        .unwrap()
        .into_iter()
        .map(|link| vec![link])
        .collect();
    let mut rack = Rack::start(
        snapshot,
        Setup {
            shards,
            places,
            links,
            config,
            ..Setup::default()
        },
    );
    let block = Block {
        id: BlockId(1),
        epoch: Epoch(1),
        vlan: VLAN,
        subnet: 1,
        first: [10, 99, 0, 64].into(),
        count: 64,
    };
    let now = Instant::now();
    for shard in 0..shards as usize {
        rack.tell(
            shard,
            ToShard::Attach {
                blocks: Arc::from([block.clone()]),
                rows: Arc::from([]),
                sent: now,
                until: now + Duration::from_secs(3600),
            },
        );
    }
    rack
}

/// Every client is answered once, by the shard its hash names, whichever way its reply has to go.
#[test]
fn a_broadcast_is_answered_once_by_its_shard() {
    in_network(|| {
        const SHARDS: u32 = 3;
        let mut rack = rack(SHARDS);
        let mut wire = Wire::open("ve1");
        // Strangers get half of a range, and each shard a third of it: 64 addresses are enough for these.
        let clients: Vec<Mac> = (1..=18).map(mac).collect();
        for (number, of) in clients.iter().enumerate() {
            let broadcast = number % 2 == 0;
            wire.broadcast(&message(
                MessageType::Discover,
                *of,
                broadcast,
                Ipv4Addr::UNSPECIFIED,
                None,
            ));
        }
        let mut offers = BTreeMap::new();
        for seen in wire.replies() {
            assert_eq!(seen.kind, MessageType::Offer);
            assert_eq!(seen.bootfile, b"bootx64.efi");
            let number = clients
                .iter()
                .position(|client| *client == seen.mac)
                .unwrap();
            let to = if number % 2 == 0 {
                Ipv4Addr::BROADCAST
            } else {
                seen.address
            };
            assert_eq!(seen.to, to);
            assert!(
                offers.insert(seen.mac, seen.address).is_none(),
                "{} twice",
                seen.mac
            );
        }
        assert_eq!(offers.len(), clients.len());
        let mut addresses: Vec<_> = offers.values().collect();
        addresses.sort();
        addresses.dedup();
        assert_eq!(addresses.len(), clients.len(), "no address twice");

        // REQUEST: the ACK waits for the region.
        let client = clients[0];
        let asked = Some(offers[&client]);
        wire.broadcast(&message(
            MessageType::Request,
            client,
            true,
            Ipv4Addr::UNSPECIFIED,
            asked,
        ));
        assert!(wire.replies().is_empty(), "nothing is durable yet");
        let owner = dhcp::shard_of_mac(client, SHARDS) as usize;
        let (ticket, write) = wait_for(|| {
            std::iter::from_fn(|| rack.link[owner].from_shard.pop()).find_map(|message| {
                match message {
                    ToLink::Lease { ticket, write } => Some((ticket, write)),
                    _ => None,
                }
            })
        });
        assert_eq!(write.address, IpAddr::V4(offers[&client]));
        assert!(matches!(write.kind, WriteKind::Grant { .. }), "{write:?}");
        let outcome = Outcome::Durable {
            remaining: Duration::from_secs(1200),
        };
        rack.tell(owner, ToShard::Outcome { ticket, outcome });
        let acks = wire.replies();
        assert_eq!(acks.len(), 1);
        assert_eq!(
            (acks[0].kind, acks[0].address),
            (MessageType::Ack, offers[&client])
        );
        let event = rack.event("DHCP_ACK");
        assert_eq!(
            (event.mac, event.address),
            (Some(client.0), offers[&client].into())
        );
        let event = rack.event("BOOT_FILE");
        assert!(
            event
                .detail
                .to_string()
                .contains("boot file bootx64.efi (uefi_amd64_tftp)"),
            "{event:?}"
        );

        rack.stats();
        for (index, shard) in rack.shards.iter().enumerate() {
            let own = clients
                .iter()
                .filter(|client| dhcp::shard_of_mac(**client, SHARDS) == index as u32)
                .count();
            let offered = shard.stats.get().dhcp.sent(dhcp::Sent::Offer);
            assert_eq!(offered, own as u64, "shard {index}");
        }
        rack.stop();
    });
}

/// The kernel says who sent a frame: chaddr must be that, by broadcast and by unicast alike.
#[test]
fn a_client_is_its_frames_ethernet_source() {
    in_network(|| {
        let (own, other) = (mac(1), mac(2));
        let rack_mac = mac(99);
        ip(&format!("link set ve1 address {own}"));
        ip(&format!("link set ve0 address {rack_mac}"));
        let mut rack = rack_as(2, dhcp::Mode::Serve, Config::default());
        let mut wire = Wire::open("ve1");
        let none = Ipv4Addr::UNSPECIFIED;
        let discover = |of| message(MessageType::Discover, of, true, none, None);
        let (all, server) = (Ipv4Addr::BROADCAST, Ipv4Addr::new(10, 99, 0, 1));
        wire.send(&discover(other), all, Mac::BROADCAST);
        wire.send(&discover(other), server, rack_mac);
        let event = rack.event("DHCP_FOREIGN_SOURCE");
        assert_eq!(event.mac, Some(other.0));
        wire.send(&discover(own), all, Mac::BROADCAST);
        wire.send(&discover(own), server, rack_mac);
        let seen: Vec<Mac> = wire.replies().into_iter().map(|seen| seen.mac).collect();
        assert_eq!(seen, [own, own], "once each, and nobody else");
        // For another host of the network, by way of this one.
        wire.send(&discover(own), Ipv4Addr::new(10, 99, 0, 7), rack_mac);
        assert!(wire.replies().is_empty());
        rack.stop();
    });
}

/// A relay's messages go by UDP 67, to one shard each, and back to the relay.
#[test]
fn a_relay_is_answered_once() {
    in_network(|| {
        ip("addr add 10.99.0.2/24 dev lo");
        let rack = rack(3);
        let relay: Ipv4Addr = [10, 99, 0, 2].into();
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_reuse_port(true).unwrap();
        socket.bind(&SocketAddrV4::new(relay, 67).into()).unwrap();
        let socket = UdpSocket::from(socket);
        socket
            .set_read_timeout(Some(Duration::from_millis(1000)))
            .unwrap();
        for number in 1..=20 {
            let discover = message(MessageType::Discover, mac(number), true, relay, None);
            socket.send_to(&discover, "10.99.0.1:67").unwrap();
        }
        let mut answered = Vec::new();
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            assert_eq!(from, "10.99.0.1:67".parse().unwrap());
            answered.push(read(&buffer[..length], relay).mac);
        }
        answered.sort();
        assert_eq!(answered, (1..=20).map(mac).collect::<Vec<_>>());
        rack.stop();
    });
}

/// A device that goes down and comes back is served again; one that is replaced gives way to the new sockets.
#[test]
fn links_come_and_go() {
    in_network(|| {
        let mut rack = rack(2);
        let discover = |number| {
            message(
                MessageType::Discover,
                mac(number),
                true,
                Ipv4Addr::UNSPECIFIED,
                None,
            )
        };
        ip("link set ve0 down");
        thread::sleep(Duration::from_millis(100));
        ip("link set ve0 up");
        // A veth pair takes a moment to carry again.
        let mut wire = Wire::open("ve1");
        let answers = wait_for(|| {
            wire.broadcast(&discover(1));
            let replies = wire.replies();
            (!replies.is_empty()).then_some(replies)
        });
        assert_eq!(answers.len(), 1);

        let index = interface_index("ve0").unwrap();
        for (shard, link) in open_link(index, 2).unwrap().into_iter().enumerate() {
            rack.tell(shard, ToShard::Links(vec![link]));
        }
        thread::sleep(Duration::from_millis(200));
        for number in 2..=9 {
            wire.broadcast(&discover(number));
        }
        assert_eq!(wire.replies().len(), 8, "once each, by the new sockets");
        for shard in 0..2 {
            rack.tell(shard, ToShard::Links(Vec::new()));
        }
        thread::sleep(Duration::from_millis(200));
        wire.broadcast(&discover(10));
        assert!(wire.replies().is_empty(), "no link, no answer");
        rack.stop();
    });
}

/// A sender on this host leaves the UDP checksum to hardware that a veth pair does not have: its packets arrive
/// without one, and are no less valid.
#[test]
fn a_checksum_left_to_hardware_is_not_missed() {
    in_network(|| {
        let rack = rack(1);
        let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).unwrap();
        socket.set_broadcast(true).unwrap();
        socket.bind_device(Some(b"ve1")).unwrap();
        socket
            .bind(&SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68).into())
            .unwrap();
        let mut wire = Wire::open("ve1");
        let discover = message(
            MessageType::Discover,
            mac(1),
            true,
            Ipv4Addr::UNSPECIFIED,
            None,
        );
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
        let replies = wait_for(|| {
            socket.send_to(&discover, &to.into()).unwrap();
            let replies = wire.replies();
            (!replies.is_empty()).then_some(replies)
        });
        assert_eq!(replies.len(), 1);
        rack.stop();
    });
}

/// Firmware beside somebody else's DHCP: its DISCOVER by broadcast, then port 4011, which answers from itself.
#[test]
fn port_4011_answers_from_port_4011() {
    in_network(|| {
        ip("addr add 10.99.0.2/24 dev lo");
        let rack = rack_in_mode(2, dhcp::Mode::Proxy);
        let mut wire = Wire::open("ve1");
        let none = Ipv4Addr::UNSPECIFIED;
        wire.broadcast(&message(MessageType::Discover, mac(1), false, none, None));
        let offers = wire.replies();
        assert_eq!(offers.len(), 1);
        assert_eq!(
            (offers[0].kind, offers[0].address),
            (MessageType::Offer, none)
        );
        assert_eq!(
            (offers[0].to, &offers[0].bootfile[..]),
            (Ipv4Addr::BROADCAST, &b"bootx64.efi"[..])
        );

        let client: Ipv4Addr = [10, 99, 0, 2].into();
        let socket = UdpSocket::bind(SocketAddrV4::new(client, 0)).unwrap();
        let patience = Some(Duration::from_millis(1000));
        socket.set_read_timeout(patience).unwrap();
        let request = message(MessageType::Request, mac(1), false, none, None);
        socket.send_to(&request, "10.99.0.1:4011").unwrap();
        let mut buffer = [0; 2048];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, "10.99.0.1:4011".parse().unwrap());
        let ack = read(&buffer[..length], client);
        assert_eq!((ack.kind, ack.address), (MessageType::Ack, none));
        assert_eq!(ack.bootfile, b"bootx64.efi");
        rack.stop();
    });
}
