//! A rack's shards on loopback, with the test in the place of the link and work threads.

#![allow(dead_code, reason = "each test file uses its part")]

use std::io::{Read, Seek, SeekFrom, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use images::Object;
use lease::VlanId;
use shard::{
    Bell, Config, LinkMailbox, LinkSocket, Loader, Snapshot, ToLink, ToShard, ToWork, WorkMailbox,
    mailboxes,
};
use uring::{Places, RingLimits, Running, Start, start_shard};
use wire::tftp::{ErrorCode, Mode, Options, Packet, Request, emit_ack, emit_error, emit_read};

/// Nothing here takes longer.
pub const PATIENCE: Duration = Duration::from_secs(20);

pub struct Rack {
    pub shards: Vec<Running>,
    pub link: Vec<LinkMailbox>,
    pub work: Vec<WorkMailbox>,
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub tftp: SocketAddr,
    pub http: SocketAddr,
}

pub struct Setup {
    pub shards: u32,
    pub places: Places,
    pub config: Config,
    pub limits: RingLimits,
    /// Per shard.
    pub links: Vec<Vec<LinkSocket>>,
    /// What the kernel keeps of a connection's octets to send; its own choice without.
    pub send_buffer_bytes: Option<usize>,
}

impl Default for Setup {
    fn default() -> Self {
        let any = "[::]:0".parse().unwrap();
        Self {
            shards: 1,
            places: Places {
                dhcp: None,
                proxy_dhcp: None,
                tftp: Some(any),
                http: Some(any),
            },
            config: Config::default(),
            limits: RingLimits {
                http_buffers: 64,
                ..RingLimits::default()
            },
            links: Vec::new(),
            send_buffer_bytes: None,
        }
    }
}

impl Rack {
    pub fn start(snapshot: Snapshot, mut setup: Setup) -> Self {
        let snapshot = Arc::new(ArcSwap::from_pointee(snapshot));
        let sockets = uring::open(&setup.places, setup.shards).expect("sockets open");
        if let Some(bytes) = setup.send_buffer_bytes {
            for fd in sockets.iter().filter_map(|sockets| sockets.http.as_ref()) {
                // Accepted connections inherit it.
                socket2::SockRef::from(fd)
                    .set_send_buffer_size(bytes)
                    .unwrap();
            }
        }
        let at = |address: Option<SocketAddr>| {
            SocketAddr::from(([127, 0, 0, 1], address.map_or(0, |address| address.port())))
        };
        let (tftp, http) = (at(sockets[0].tftp_address), at(sockets[0].http_address));
        let (link_bell, work_bell) = (Bell::new().unwrap(), Bell::new().unwrap());
        let mut rack = Self {
            shards: vec![],
            link: vec![],
            work: vec![],
            snapshot,
            tftp,
            http,
        };
        setup.links.resize_with(setup.shards as usize, Vec::new);
        for (index, (sockets, links)) in sockets.into_iter().zip(setup.links).enumerate() {
            let (mail, link, work) = mailboxes(&link_bell, &work_bell).unwrap();
            let start = Start {
                config: Config {
                    index: index as u32,
                    count: setup.shards,
                    ..setup.config.clone()
                },
                limits: setup.limits,
                core: None,
                sockets,
                links,
                mail,
                snapshot: Arc::clone(&rack.snapshot),
            };
            rack.shards
                .push(start_shard(start).expect("the shard starts"));
            rack.link.push(link);
            rack.work.push(work);
        }
        rack
    }

    pub fn tell(&mut self, shard: usize, message: ToShard) {
        self.link[shard]
            .to_shard
            .push(message)
            .expect("room in the mailbox");
    }

    /// The next message to the link thread that `pick` wants; others are dropped.
    pub fn next_to_link<T>(&mut self, pick: impl Fn(ToLink) -> Option<T>) -> T {
        wait_for(|| {
            self.link
                .iter_mut()
                .find_map(|link| std::iter::from_fn(|| link.from_shard.pop()).find_map(&pick))
        })
    }

    pub fn next_to_work<T>(&mut self, pick: impl Fn(ToWork) -> Option<T>) -> T {
        wait_for(|| {
            self.work
                .iter_mut()
                .find_map(|work| std::iter::from_fn(|| work.from_shard.pop()).find_map(&pick))
        })
    }

    pub fn event(&mut self, kind: &str) -> shard::Event {
        self.next_to_link(|message| match message {
            ToLink::Event(event) if event.kind == kind => Some(event),
            _ => None,
        })
    }

    /// Numbers as of a moment after the call.
    pub fn stats(&self) -> shard::Stats {
        thread::sleep(Duration::from_millis(2_200)); // published once a second, a turn at least as often
        self.shards[0].stats.get()
    }

    pub fn stop(mut self) {
        for link in &mut self.link {
            link.to_shard.push(ToShard::Stop).unwrap();
        }
        for shard in std::mem::take(&mut self.shards) {
            shard.join().unwrap();
        }
    }
}

pub fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "it never came");
        thread::sleep(Duration::from_millis(2));
    }
}

/// Octets that repeat nowhere near a block or piece boundary.
pub fn content(bytes: usize) -> Vec<u8> {
    (0..bytes as u64)
        .map(|at| (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as u8)
        .collect()
}

pub fn loader(bytes: &[u8]) -> Arc<Loader> {
    let loader = Loader {
        sha256: [9; 32],
        bytes: OnceLock::new(),
    };
    loader.bytes.set(bytes.to_vec().into()).unwrap();
    Arc::new(loader)
}

/// A file of the cache, with its content.
pub fn file(bytes: &[u8]) -> std::fs::File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    file
}

pub fn object(hash: u8, bytes: &[u8]) -> Arc<Object> {
    let fd: OwnedFd = file(bytes).into();
    Arc::new(Object::complete(
        [hash; 32],
        bytes.len() as u64,
        1 << 20,
        fd,
    ))
}

pub fn image_path(hash: u8) -> String {
    format!(
        "/images/{}/ubuntu/amd64/generic/noble/stable/squashfs",
        format!("{hash:02x}").repeat(32)
    )
}

pub fn snapshot(loaders: &[(&str, &[u8])], files: &[Arc<Object>]) -> Snapshot {
    let mut snapshot = Snapshot::default();
    for (name, bytes) in loaders {
        snapshot.loaders.insert((*name).into(), loader(bytes));
    }
    for object in files {
        snapshot.files.insert(*object.sha256(), Arc::clone(object));
    }
    snapshot
}

pub fn dhcp_link(vlan: VlanId, index: u32) -> shard::Link {
    shard::Link {
        dhcp: dhcp::Link {
            vlan,
            server: [10, 99, 0, 1].into(),
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
        interface: "ve0".into(),
        index: Some(index),
    }
}

// ---------------------------------------------------------------- TFTP

pub fn read_request(file: &str, options: Options) -> Vec<u8> {
    let mut out = [0; 512];
    let request = Request {
        file: file.as_bytes(),
        mode: Mode::Octet,
        options,
    };
    let length = emit_read(&request, &mut out).unwrap();
    out[..length].to_vec()
}

pub fn tftp_socket(place: &str) -> UdpSocket {
    let socket = UdpSocket::bind(place).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    socket
}

/// Downloads by RFC 7440. `Err`: the server's error code.
pub fn download(
    socket: &UdpSocket,
    server: SocketAddr,
    file: &str,
    options: Options,
) -> Result<Vec<u8>, ErrorCode> {
    let request = read_request(file, options);
    socket.send_to(&request, server).unwrap();
    let (mut content, mut block, mut in_window) = (Vec::new(), 0u16, 0);
    let (mut block_bytes, mut window) = (512, 1);
    let mut buffer = vec![0; 65_536];
    let mut peer = None;
    let ack = |block: u16, to: SocketAddr| {
        let mut out = [0; 4];
        emit_ack(block, &mut out).unwrap();
        socket.send_to(&out, to).unwrap();
    };
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert!(Instant::now() < deadline, "the transfer never ended");
        let (length, from) = match socket.recv_from(&mut buffer) {
            Ok(received) => received,
            Err(_) => {
                match peer {
                    None => drop(socket.send_to(&request, server).unwrap()),
                    Some(peer) => ack(block, peer),
                }
                continue;
            }
        };
        assert_eq!(
            from.ip(),
            server.ip(),
            "answers leave from the address that was asked"
        );
        let known = *peer.get_or_insert(from);
        if from != known {
            continue;
        }
        match Packet::parse(&buffer[..length]).unwrap() {
            Packet::Oack(agreed) => {
                block_bytes = usize::from(agreed.block_bytes.unwrap_or(512));
                window = usize::from(agreed.window_blocks.unwrap_or(1));
                ack(0, from);
            }
            Packet::Data {
                block: number,
                payload,
            } if number == block.wrapping_add(1) => {
                block = number;
                content.extend_from_slice(payload);
                in_window += 1;
                let last = payload.len() < block_bytes;
                if in_window == window || last {
                    in_window = 0;
                    ack(block, from);
                }
                if last {
                    return Ok(content);
                }
            }
            Packet::Data { .. } => {
                in_window = 0;
                ack(block, from);
            }
            Packet::Error { code, .. } => return Err(code),
            other => panic!("{other:?}"),
        }
    }
}

pub fn send_error(socket: &UdpSocket, to: SocketAddr) {
    let mut out = [0; 64];
    let length = emit_error(
        ErrorCode::OptionsRefused,
        "User aborted the transfer",
        &mut out,
    )
    .unwrap();
    socket.send_to(&out[..length], to).unwrap();
}

// ---------------------------------------------------------------- HTTP

pub fn connect(http: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(http).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

pub fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
}

/// Reads one response head, octet by octet.
pub fn head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut octet = [0];
        stream.read_exact(&mut octet).expect("a whole head comes");
        head.push(octet[0]);
    }
    String::from_utf8(head).unwrap()
}

/// Reads one response.
pub fn response(stream: &mut TcpStream) -> (String, Vec<u8>) {
    let head = head(stream);
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("Content-Length: "))
        .and_then(|text| text.parse().ok())
        .expect("a length");
    let mut body = vec![0; length];
    stream.read_exact(&mut body).expect("a whole body comes");
    (head, body)
}

pub fn ask(stream: &mut TcpStream, path: &str) -> (String, Vec<u8>) {
    stream.write_all(get(path).as_bytes()).unwrap();
    response(stream)
}
