//! Two racks on one VLAN, end to end but for sockets: real shards and link threads, a real region and database, and clients on
//! a VLAN of channels. Every ACK on that wire is recorded: no address is anybody else's while it is somebody's.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener};
use std::sync::{Arc, Mutex, mpsc as channel};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use lease::rack::Mode;
use link::{LinkConfig, Racks};
use rackd::link::{Interface, LinkContext, LinkFailed, Ports, Status};
use shard::{
    Buffer, Close, Completion, Datagram, Driver, DriverCounters, LinkSocket, NoSlot, Service,
    Shard, SharedStats, Snapshot, StreamId, Target, Train,
};
use sqlx::PgPool;
use store::seal::Sealer;
use store::testing::TestDatabase;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use wire::dhcp4::{FLAG_BROADCAST, Header, MessageType, OP_REQUEST, View, Writer, code};
use wire::udp::{Checksum, HEADROOM_BYTES};

const PATIENCE: Duration = Duration::from_secs(60);
/// From the death of a rack to the last of its clients served.
const TAKEOVER: Duration = Duration::from_secs(5);
/// A client's retransmissions; firmware takes seconds.
const RETRY: Duration = Duration::from_millis(700);
const LEASE_SECS: u32 = 60;
const DEVICE: u32 = 7;

fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("info")
        .with_test_writer()
        .with_ansi(false)
        .try_init();
}

// ---------------------------------------------------------------- the VLAN

/// An ACK that left a rack.
#[derive(Clone, Debug)]
struct Acked {
    mac: [u8; 6],
    address: Ipv4Addr,
    at: Instant,
    lease: Duration,
}

/// A reply on the wire.
#[derive(Clone, Debug)]
struct Reply {
    kind: MessageType,
    mac: [u8; 6],
    xid: u32,
    address: Ipv4Addr,
    server: Ipv4Addr,
}

enum Packet {
    /// A broadcast, as the packet socket has it.
    Frame(Vec<u8>),
    /// To this rack's own address.
    Unicast(Ipv4Addr, Vec<u8>),
}

#[derive(Clone, Default)]
struct Vlan {
    racks: Arc<Mutex<BTreeMap<Ipv4Addr, channel::Sender<Packet>>>>,
    replies: Arc<Mutex<Vec<Reply>>>,
    acked: Arc<Mutex<Vec<Acked>>>,
}

impl Vlan {
    fn broadcast(&self, message: &[u8]) {
        let mut packet = vec![0; HEADROOM_BYTES + message.len()];
        packet[HEADROOM_BYTES..].copy_from_slice(message);
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        let to = SocketAddrV4::new(Ipv4Addr::BROADCAST, 67);
        wire::udp::frame(&mut packet, from, to, 1).unwrap();
        for rack in self.racks.lock().unwrap().values() {
            // A rack that ends just now hears nothing.
            let _ = rack.send(Packet::Frame(packet.clone()));
        }
    }

    fn unicast(&self, from: Ipv4Addr, server: Ipv4Addr, message: &[u8]) {
        if let Some(rack) = self.racks.lock().unwrap().get(&server) {
            let _ = rack.send(Packet::Unicast(from, message.to_vec()));
        }
    }

    fn carry(&self, message: &[u8]) {
        let view = View::parse(message).unwrap();
        let reply = Reply {
            kind: view.message_type().unwrap(),
            mac: view.mac().unwrap().0,
            xid: view.xid(),
            address: view.yiaddr(),
            server: view.server_id().unwrap(),
        };
        if reply.kind == MessageType::Ack {
            self.acked.lock().unwrap().push(Acked {
                mac: reply.mac,
                address: reply.address,
                at: Instant::now(),
                lease: Duration::from_secs(view.lease_secs().unwrap().into()),
            });
        }
        self.replies.lock().unwrap().push(reply);
    }

    fn replies_to(&self, xid: u32) -> Vec<Reply> {
        let replies = self.replies.lock().unwrap();
        replies
            .iter()
            .filter(|reply| reply.xid == xid)
            .cloned()
            .collect()
    }

    /// Whoever was ACKed an address had it alone for as long as it was told.
    fn assert_no_address_twice(&self) {
        let acked = self.acked.lock().unwrap();
        let mut holds: HashMap<Ipv4Addr, ([u8; 6], Instant)> = HashMap::new();
        for ack in acked.iter() {
            let end = ack.at + ack.lease;
            let hold = holds.entry(ack.address).or_insert((ack.mac, end));
            assert!(
                hold.0 == ack.mac || hold.1 <= ack.at,
                "{ack:?} while {hold:?}"
            );
            *hold = (ack.mac, end.max(hold.1));
        }
    }
}

/// A rack's side of the VLAN.
struct Port {
    vlan: Vlan,
    address: Ipv4Addr,
    inbox: channel::Receiver<Packet>,
    buffer: Vec<u8>,
}

impl Driver for Port {
    fn poll(&mut self, wait: Duration, done: &mut Vec<Completion>) -> io::Result<()> {
        // Mail has no way to wake a channel.
        let Ok(packet) = self.inbox.recv_timeout(wait.min(Duration::from_millis(2))) else {
            done.push(Completion::Mail);
            return Ok(());
        };
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let (service, from, local, octets) = match packet {
            Packet::Frame(octets) => (Service::DhcpFrame, any, any, octets),
            Packet::Unicast(from, octets) => {
                (Service::Dhcp, from.into(), self.address.into(), octets)
            }
        };
        self.buffer = octets;
        done.push(Completion::Datagram(Datagram {
            service,
            from: SocketAddr::new(from, 68),
            local,
            interface: DEVICE,
            ethernet: None,
            checksum_missing: false,
            buffer: Buffer {
                set: 0,
                index: 0,
                start: 0,
                length: u32::try_from(self.buffer.len()).unwrap(),
            },
        }));
        Ok(())
    }

    fn now(&self) -> Instant {
        Instant::now()
    }

    fn bytes(&self, _: &Buffer) -> &[u8] {
        &self.buffer
    }

    fn release(&mut self, _: Buffer) {}

    fn send(
        &mut self,
        target: &Target,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot> {
        let mut octets = vec![0; train.bytes];
        fill(&mut octets);
        match target {
            Target::Frame { .. } => {
                let packet = wire::udp::Datagram::parse_packet(&octets, Checksum::Verify).unwrap();
                self.vlan.carry(packet.payload);
            }
            Target::Dhcp { .. } => self.vlan.carry(&octets),
            other => panic!("nothing else is asked for here: {other:?}"),
        }
        Ok(())
    }

    fn set_links(&mut self, _: Vec<LinkSocket>) {}
    fn stop_accepting(&mut self) {}
    fn stream_send(&mut self, _: StreamId, _: bytes::Bytes, _: bool) {}
    fn stream_send_file(&mut self, _: StreamId, _: Arc<images::Object>, _: u64, _: u64) {}
    fn stream_take(&mut self, _: StreamId) {}
    fn stream_close(&mut self, _: StreamId, _: Close) {}

    fn counters(&self) -> DriverCounters {
        DriverCounters::default()
    }
}

// ---------------------------------------------------------------- clients

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Bound {
    address: Ipv4Addr,
    server: Ipv4Addr,
}

#[derive(Clone)]
struct Client {
    vlan: Vlan,
    mac: [u8; 6],
}

impl Client {
    fn new(vlan: &Vlan, n: u8) -> Client {
        Client {
            vlan: vlan.clone(),
            mac: [0x02, 0, 0, 0, 1, n],
        }
    }

    fn message(
        &self,
        kind: MessageType,
        xid: u32,
        ciaddr: Ipv4Addr,
        options: &[(u8, Ipv4Addr)],
    ) -> Vec<u8> {
        let mut header = Header::new(OP_REQUEST);
        header.htype = 1;
        header.hlen = 6;
        header.xid.set(xid);
        header.flags.set(FLAG_BROADCAST);
        header.ciaddr = ciaddr.octets();
        header.chaddr[..6].copy_from_slice(&self.mac);
        let mut buffer = vec![0; 600];
        let mut writer = Writer::new(&mut buffer, 600, &header, kind).unwrap();
        for (code, address) in options {
            writer.address(*code, *address).unwrap();
        }
        let length = writer.finish();
        buffer.truncate(length);
        buffer
    }

    /// The first reply of these kinds, within the time of a retransmission.
    async fn answer(&self, xid: u32, kinds: &[MessageType]) -> Option<Reply> {
        let begin = Instant::now();
        while begin.elapsed() < RETRY {
            let replies = self.vlan.replies_to(xid);
            assert!(
                replies.iter().all(|reply| reply.mac == self.mac),
                "{replies:?}"
            );
            if let Some(reply) = replies
                .into_iter()
                .find(|reply| kinds.contains(&reply.kind))
            {
                return Some(reply);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    }

    /// DISCOVER to ACK, with retransmissions.
    async fn boot(&self) -> Bound {
        use MessageType::{Ack, Discover, Nak, Offer, Request};
        let begin = Instant::now();
        loop {
            assert!(begin.elapsed() < PATIENCE, "{:?} gets no address", self.mac);
            let (none, xid) = (Ipv4Addr::UNSPECIFIED, xid());
            self.vlan.broadcast(&self.message(Discover, xid, none, &[]));
            let Some(offer) = self.answer(xid, &[Offer]).await else {
                continue;
            };
            let xid = self::xid();
            let options = [
                (code::REQUESTED_ADDRESS, offer.address),
                (code::SERVER_ID, offer.server),
            ];
            self.vlan
                .broadcast(&self.message(Request, xid, none, &options));
            if let Some(reply) = self.answer(xid, &[Ack, Nak]).await
                && reply.kind == Ack
            {
                return Bound {
                    address: reply.address,
                    server: reply.server,
                };
            }
        }
    }

    /// By unicast to its server as `renew`, by broadcast as rebind. `None`: silence or NAK.
    async fn keep(&self, bound: Bound, renew: bool) -> Option<Bound> {
        let xid = xid();
        let message = self.message(MessageType::Request, xid, bound.address, &[]);
        match renew {
            true => self.vlan.unicast(bound.address, bound.server, &message),
            false => self.vlan.broadcast(&message),
        }
        let reply = self
            .answer(xid, &[MessageType::Ack, MessageType::Nak])
            .await?;
        (reply.kind == MessageType::Ack).then_some(Bound {
            address: reply.address,
            server: reply.server,
        })
    }
}

/// Every message has its own, so that replies find it.
fn xid() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};
    static NEXT: AtomicU32 = AtomicU32::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// All of them at once; by number.
async fn boot_all(vlan: &Vlan, numbers: impl Iterator<Item = u8>) -> BTreeMap<u8, Bound> {
    let mut tasks = tokio::task::JoinSet::new();
    for n in numbers {
        let client = Client::new(vlan, n);
        tasks.spawn(async move { (n, client.boot().await) });
    }
    tasks.join_all().await.into_iter().collect()
}

// ---------------------------------------------------------------- a region and racks

struct Region {
    racks: Racks,
    cancel: CancellationToken,
    handle: tokio::task::JoinHandle<()>,
}

impl Region {
    async fn start(db: &TestDatabase, sealer: &Sealer) -> Region {
        log();
        let config = LinkConfig {
            listener: TcpListener::bind("127.0.0.1:0").unwrap(),
            names: vec!["127.0.0.1".into()],
            hostname: "region1".into(),
            rack_http_port: 5251,
            database_connections: 4,
        };
        let cancel = CancellationToken::new();
        let started = link::start(config, &db.pool, sealer, cancel.clone()).await;
        let (racks, handle) = started.expect("the link starts");
        Region {
            racks,
            cancel,
            handle,
        }
    }

    async fn token(&self, pool: &PgPool) -> String {
        let mut db = pool.acquire().await.unwrap();
        let token = self.racks.create_token(&mut db, None, None).await.unwrap();
        token.text().to_owned()
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.handle.await.unwrap();
    }
}

struct Rack {
    folder: Arc<tempfile::TempDir>,
    number: u8,
    vlan: Vlan,
    snapshot: Arc<ArcSwap<Snapshot>>,
    status: watch::Receiver<Status>,
    cancel: CancellationToken,
    link: std::thread::JoinHandle<Result<(), LinkFailed>>,
    shard: std::thread::JoinHandle<io::Result<()>>,
    _work: shard::WorkMailbox,
}

impl Rack {
    /// Rack `number` has the address 10.77.0.`number` there.
    fn start(
        vlan: &Vlan,
        number: u8,
        folder: Option<Arc<tempfile::TempDir>>,
        token: Option<String>,
    ) -> Rack {
        let folder = folder.unwrap_or_else(|| Arc::new(tempfile::tempdir().unwrap()));
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (status, seen) = watch::channel(Status::default());
        let cancel = CancellationToken::new();
        let (bell, work_bell) = (shard::Bell::new().unwrap(), shard::Bell::new().unwrap());
        let (mail, link_mail, work) = shard::mailboxes(&bell, &work_bell).unwrap();
        let state_dir = folder.path().to_owned();
        let context = LinkContext {
            token,
            hostname: format!("rack{number}"),
            version: "0.1".into(),
            mailboxes: vec![link_mail],
            bell,
            snapshot: Arc::clone(&snapshot),
            spool: rackd::spool::open(&state_dir).unwrap(),
            ports: Ports {
                state_dir,
                bindings: Default::default(),
                power: mpsc::channel(1).0,
                fills: mpsc::channel(16).0,
                replaced: mpsc::unbounded_channel().1,
                reported: mpsc::channel(1).1,
                tls: watch::Sender::new(None),
                regions: watch::Sender::new(Arc::from([])),
                status,
                numbers: Arc::new(Vec::new),
                claimed: Arc::new(Vec::new),
                sockets: Box::new(|_| Ok(vec![std::fs::File::open("/dev/null")?.into()])),
                interfaces: Box::new(move || {
                    Ok(vec![Interface {
                        index: DEVICE,
                        name: "test0".into(),
                        mac: Some([2, 0, 0, 0, 0, number]),
                        addresses: vec![(address(number).into(), 16)],
                    }])
                }),
            },
            cancel: cancel.clone(),
        };
        let link = std::thread::spawn(move || rackd::link::run(context));
        let (to, inbox) = channel::channel();
        vlan.racks.lock().unwrap().insert(address(number), to);
        let port = Port {
            vlan: vlan.clone(),
            address: address(number),
            inbox,
            buffer: Vec::new(),
        };
        let mut config = shard::Config {
            seed: u64::from(number),
            ..shard::Config::default()
        };
        // Nobody here answers ARP.
        config.dhcp.probe_stock = 0;
        let shared = Arc::clone(&snapshot);
        let shard = std::thread::spawn(move || {
            Shard::new(config, port, mail, shared, SharedStats::default()).run()
        });
        Rack {
            folder,
            number,
            vlan: vlan.clone(),
            snapshot,
            status: seen,
            cancel,
            link,
            shard,
            _work: work,
        }
    }

    /// Its id, once it has attached.
    async fn attached(&mut self) -> String {
        let seen = self.status.wait_for(|status| status.mode == Mode::Attached);
        let seen = tokio::time::timeout(PATIENCE, seen)
            .await
            .expect("it attaches");
        seen.unwrap().rack.clone()
    }

    /// Of a sudden: no more packets are heard, and its connections close as those of a killed process do.
    async fn kill(self) -> Arc<tempfile::TempDir> {
        self.vlan
            .racks
            .lock()
            .unwrap()
            .remove(&address(self.number));
        self.cancel.cancel();
        let joined = tokio::task::spawn_blocking(move || {
            self.link.join().unwrap().unwrap();
            self.shard.join().unwrap().unwrap();
        });
        joined.await.unwrap();
        self.folder
    }

    /// What its feed says of its only peer; `None`: it knows of none.
    fn peer_is_alive(&self) -> Option<bool> {
        let snapshot = self.snapshot.load();
        let link = snapshot.links().first()?;
        link.dhcp.peers.first().map(|peer| peer.alive)
    }
}

fn address(rack: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, rack)
}

async fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// A VLAN that the two serve, with twenty blocks of 64 addresses.
async fn serve(pool: &PgPool, racks: [&str; 2]) -> i32 {
    let mut tx = pool.begin().await.unwrap();
    let (vlan, range): (i32, i32) = sqlx::query_as(
        "with f as (insert into fabric (name) values ('f') returning id),
              v as (insert into vlan (fabric_id, vid, dhcp_on, primary_rack, secondary_rack)
                    select id, 10, true, $1, $2 from f returning id),
              s as (insert into subnet (vlan_id, name, cidr, lease_secs) select id, 's', '10.77.0.0/16', $3 from v
                    returning id, vlan_id),
              r as (insert into iprange (subnet_id, type, start_ip, end_ip)
                    select id, 'dynamic', '10.77.64.0', '10.77.68.255' from s returning id)
         select vlan_id, r.id from s, r",
    )
    .bind(racks[0])
    .bind(racks[1])
    .bind(LEASE_SECS.cast_signed())
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    store::lease::ensure_blocks(&mut tx, range).await.unwrap();
    store::feed::changed(&mut tx, store::feed::Kind::Link, &vlan.to_string())
        .await
        .unwrap();
    tx.commit().await.unwrap();
    vlan
}

/// Blocks by owner.
async fn owned(pool: &PgPool, rack: &str) -> i64 {
    sqlx::query_scalar("select count(*) from lease_block where owner = $1")
        .bind(rack)
        .fetch_one(pool)
        .await
        .unwrap()
}

struct Site {
    db: TestDatabase,
    sealer: Sealer,
    region: Region,
    vlan: Vlan,
    ids: [String; 2],
    one: Rack,
    two: Rack,
}

/// A region, and two racks that serve the VLAN and know each other alive.
async fn site() -> Site {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer).await;
    let vlan = Vlan::default();
    let mut one = Rack::start(&vlan, 2, None, Some(region.token(&db.pool).await));
    let mut two = Rack::start(&vlan, 3, None, Some(region.token(&db.pool).await));
    let ids = [one.attached().await, two.attached().await];
    serve(&db.pool, [&ids[0], &ids[1]]).await;
    until("both know each other", PATIENCE, || {
        one.peer_is_alive() == Some(true) && two.peer_is_alive() == Some(true)
    })
    .await;
    let begin = Instant::now();
    while [
        owned(&db.pool, &ids[0]).await,
        owned(&db.pool, &ids[1]).await,
    ] != [9, 9]
    {
        assert!(
            begin.elapsed() < PATIENCE,
            "each has its 45 %, and two blocks are held back"
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Site {
        db,
        sealer,
        region,
        vlan,
        ids,
        one,
        two,
    }
}

// ---------------------------------------------------------------- the tests

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_one_rack_dies_the_other_serves_its_clients_and_lets_it_back_in() {
    let Site {
        region,
        vlan,
        ids,
        one,
        two,
        db,
        ..
    } = site().await;

    // Both serve, each client is offered one address, and the two know nothing of each other's.
    let bound = boot_all(&vlan, 0..40).await;
    let of = |rack: u8| {
        bound
            .iter()
            .filter(move |(_, bound)| bound.server == address(rack))
    };
    assert!(of(2).count() >= 8 && of(3).count() >= 8, "{bound:?}");
    {
        let replies = vlan.replies.lock().unwrap();
        let offers = replies
            .iter()
            .filter(|reply| reply.kind == MessageType::Offer);
        let mut servers: BTreeMap<[u8; 6], BTreeSet<Ipv4Addr>> = BTreeMap::new();
        for offer in offers {
            servers.entry(offer.mac).or_default().insert(offer.server);
        }
        assert!(
            servers.values().all(|servers| servers.len() == 1),
            "{servers:?}"
        );
    }
    for (n, bound) in &bound {
        let client = Client::new(&vlan, *n);
        assert_eq!(client.keep(*bound, true).await, Some(*bound), "renewing");
    }

    let died = Instant::now();
    let folder = one.kill().await;
    let told = until("told of the death", TAKEOVER, || {
        two.peer_is_alive() == Some(false)
    })
    .await;
    // Its clients keep their addresses where they ask for them, new ones and rebooting ones get some.
    for (n, before) in of(2) {
        let client = Client::new(&vlan, *n);
        let mut kept = None;
        while kept.is_none() {
            assert!(died.elapsed() < TAKEOVER, "client {n} is not served");
            kept = client.keep(*before, false).await;
        }
        let want = Bound {
            server: address(3),
            ..*before
        };
        assert_eq!(kept, Some(want));
    }
    let begin = Instant::now();
    let new = boot_all(&vlan, 40..60).await;
    let rebooted = boot_all(&vlan, of(2).map(|(n, _)| *n).take(5)).await;
    assert!(died.elapsed() < TAKEOVER, "{:?}", died.elapsed());
    println!(
        "told after {told:?}; {} new clients and {} rebooting ones in {:?}; all after {:?}",
        new.len(),
        rebooted.len(),
        begin.elapsed(),
        died.elapsed()
    );
    let taken: BTreeSet<Ipv4Addr> = bound.values().map(|bound| bound.address).collect();
    for bound in new.values() {
        assert!(!taken.contains(&bound.address), "{bound:?} is somebody's");
        assert_eq!(bound.server, address(3));
    }
    vlan.assert_no_address_twice();

    // It comes back, with what it had.
    let mut one = Rack::start(&vlan, 2, Some(folder), None);
    assert_eq!(one.attached().await, ids[0]);
    let back = until("let back in", TAKEOVER, || {
        two.peer_is_alive() == Some(true)
    })
    .await;
    until("it knows its peer", TAKEOVER, || {
        one.peer_is_alive() == Some(true)
    })
    .await;
    assert_eq!(owned(&db.pool, &ids[0]).await, 9);
    let last = boot_all(&vlan, 60..80).await;
    let served = |rack: u8| {
        last.values()
            .filter(move |bound| bound.server == address(rack))
    };
    assert!(served(2).count() >= 3 && served(3).count() >= 3, "{last:?}");
    println!("let back in after {back:?}");
    // Whoever the survivor took over is the owner's again when it rebinds.
    let (n, before) = of(2).next_back().unwrap();
    let kept = Client::new(&vlan, *n).keep(*before, false).await;
    assert_eq!(kept, Some(*before));
    vlan.assert_no_address_twice();
    one.kill().await;
    two.kill().await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_region_that_goes_takes_nobodys_life() {
    let Site {
        db,
        sealer,
        region,
        vlan,
        one,
        mut two,
        ..
    } = site().await;
    // A second process, which both racks find.
    let other = Region::start(&db, &sealer).await;
    let linked = |status: &Status| status.regions.len() == 2;
    for rack in [&one, &two] {
        let mut status = rack.status.clone();
        let seen = tokio::time::timeout(PATIENCE, status.wait_for(linked)).await;
        seen.expect("both racks find it").unwrap();
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    region.stop().await;
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(8) {
        assert_eq!(
            (one.peer_is_alive(), two.peer_is_alive()),
            (Some(true), Some(true)),
            "after {:?}",
            begin.elapsed()
        );
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    two.attached().await;
    // The process that is left notices a death on its own.
    one.kill().await;
    until("told of the death", TAKEOVER, || {
        two.peer_is_alive() == Some(false)
    })
    .await;
    assert_eq!(boot_all(&vlan, 0..10).await.len(), 10);
    vlan.assert_no_address_twice();
    two.kill().await;
    other.stop().await;
}
