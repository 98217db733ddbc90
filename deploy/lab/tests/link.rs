//! A rack's link thread against a region's, over loopback TLS, with a real database.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use link::{LinkConfig, LinkError, PowerCommand, PowerOperation, PowerState, Racks};
use rackd::link::{Interface, LinkContext, LinkFailed, Ports, Status};
use rackd::work::power::Ask;
use shard::Snapshot;
use sqlx::PgPool;
use store::seal::Sealer;
use store::testing::TestDatabase;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// What both ends say of themselves: shown only for a test that fails.
fn log() {
    let _ = tracing_subscriber::fmt()
        .with_env_filter("info,rackd=debug,link=debug")
        .with_test_writer()
        .with_ansi(false)
        .try_init();
}

// ---------------------------------------------------------------- a region and a rack

struct Region {
    racks: Racks,
    port: u16,
    cancel: CancellationToken,
    handle: tokio::task::JoinHandle<()>,
}

impl Region {
    async fn start(db: &TestDatabase, sealer: &Sealer, port: u16) -> Region {
        log();
        // The port of a region that just ended may need a moment.
        let listener = loop {
            match TcpListener::bind(("127.0.0.1", port)) {
                Ok(listener) => break listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        };
        let port = listener.local_addr().unwrap().port();
        let config = LinkConfig {
            listener,
            names: vec!["127.0.0.1".into()],
            hostname: "region1".into(),
            rack_http_port: 5251,
            database_connections: 4,
        };
        let cancel = CancellationToken::new();
        let (racks, handle) = link::start(config, &db.pool, sealer, cancel.clone())
            .await
            .expect("the link starts");
        Region {
            racks,
            port,
            cancel,
            handle,
        }
    }

    async fn token(&self, pool: &PgPool) -> String {
        let mut db = pool.acquire().await.unwrap();
        self.racks
            .create_token(&mut db, Some("rack1"), None)
            .await
            .unwrap()
            .text()
            .to_owned()
    }

    async fn stop(self) {
        self.cancel.cancel();
        self.handle.await.unwrap();
    }
}

struct Rack {
    folder: Arc<tempfile::TempDir>,
    snapshot: Arc<ArcSwap<Snapshot>>,
    status: watch::Receiver<Status>,
    power: mpsc::Receiver<Ask>,
    cancel: CancellationToken,
    thread: std::thread::JoinHandle<Result<(), LinkFailed>>,
    _shard: shard::ShardMailbox,
    _fills: mpsc::Receiver<rackd::work::fill::Letter>,
}

impl Rack {
    fn start(token: Option<String>) -> Rack {
        Self::start_in(Arc::new(tempfile::tempdir().unwrap()), token)
    }

    fn start_in(folder: Arc<tempfile::TempDir>, token: Option<String>) -> Rack {
        let snapshot = Arc::new(ArcSwap::from_pointee(Snapshot::default()));
        let (status, seen) = watch::channel(Status::default());
        let (asks, power) = mpsc::channel(16);
        let (fills, letters) = mpsc::channel(1024);
        let cancel = CancellationToken::new();
        let (bell, work) = (shard::Bell::new().unwrap(), shard::Bell::new().unwrap());
        let (shard, link, _work) = shard::mailboxes(&bell, &work).unwrap();
        let state_dir = folder.path().to_owned();
        let context = LinkContext {
            token,
            hostname: "rack1".into(),
            version: "0.1".into(),
            mailboxes: vec![link],
            bell,
            snapshot: Arc::clone(&snapshot),
            spool: rackd::spool::open(&state_dir).unwrap(),
            ports: Ports {
                state_dir,
                bindings: Default::default(),
                power: asks,
                fills,
                replaced: mpsc::unbounded_channel().1,
                reported: mpsc::channel(1).1,
                tls: watch::Sender::new(None),
                regions: watch::Sender::new(Arc::from([])),
                status,
                numbers: Arc::new(Vec::new),
                claimed: Arc::new(Vec::new),
                sockets: Box::new(|_| Ok(vec![std::fs::File::open("/dev/null")?.into()])),
                interfaces: Box::new(|| {
                    Ok(vec![Interface {
                        index: 7,
                        name: "test0".into(),
                        mac: Some([2, 0, 0, 0, 0, 7]),
                        addresses: vec![("10.77.0.2".parse().unwrap(), 24)],
                    }])
                }),
            },
            cancel: cancel.clone(),
        };
        let thread = std::thread::spawn(move || rackd::link::run(context));
        Rack {
            folder,
            snapshot,
            status: seen,
            power,
            cancel,
            thread,
            _shard: shard,
            _fills: letters,
        }
    }

    async fn wait(&mut self, what: &str, is_so: impl FnMut(&Status) -> bool) -> Status {
        let seen = tokio::time::timeout(PATIENCE, self.status.wait_for(is_so)).await;
        let seen = seen.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"));
        seen.unwrap_or_else(|_| panic!("{what}: the rack's link ended"))
            .clone()
    }

    /// Its id, once it is linked.
    async fn linked(&mut self) -> String {
        self.wait("linked", |status| !status.regions.is_empty())
            .await
            .rack
    }

    async fn stop(self) -> Arc<tempfile::TempDir> {
        self.cancel.cancel();
        join(self.thread).await.unwrap();
        self.folder
    }
}

async fn join(thread: std::thread::JoinHandle<Result<(), LinkFailed>>) -> Result<(), LinkFailed> {
    tokio::task::spawn_blocking(move || thread.join().unwrap())
        .await
        .unwrap()
}

async fn until(what: &str, limit: Duration, mut is_so: impl FnMut() -> bool) -> Duration {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < limit, "{what}: not within {limit:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    start.elapsed()
}

/// A VLAN with a subnet that the test rack's interface is in; DHCP is off.
async fn network(pool: &PgPool) -> i32 {
    let vlan: i32 = sqlx::query_scalar(
        "with f as (insert into fabric (name) values ('f') returning id),
              v as (insert into vlan (fabric_id, vid) select id, 10 from f returning id),
              s as (insert into subnet (vlan_id, name, cidr) select id, 's', '10.77.0.0/24' from v
                    returning id, vlan_id),
              r as (insert into iprange (subnet_id, type, start_ip, end_ip)
                    select id, 'dynamic', '10.77.0.100', '10.77.0.199' from s)
         select vlan_id from s",
    )
    .fetch_one(pool)
    .await
    .unwrap();
    vlan
}

async fn serve_dhcp(pool: &PgPool, vlan: i32, rack: Option<&str>) {
    let mut tx = pool.begin().await.unwrap();
    sqlx::query("update vlan set dhcp_on = $2 is not null, primary_rack = $2 where id = $1")
        .bind(vlan)
        .bind(rack)
        .execute(&mut *tx)
        .await
        .unwrap();
    store::feed::changed(&mut tx, store::feed::Kind::Link, &vlan.to_string())
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

async fn add_machine(pool: &PgPool, n: u32, vlan: i32) {
    let mut tx = pool.begin().await.unwrap();
    let (id, [_, a, b, c]) = (format!("m{n:05}"), n.to_be_bytes());
    let mac = format!("02:01:00:{a:02x}:{b:02x}:{c:02x}");
    sqlx::query("insert into machine (system_id, hostname) values ($1, $2)")
        .bind(&id)
        .bind(format!("host{n}"))
        .execute(&mut *tx)
        .await
        .unwrap();
    sqlx::query(
        "insert into interface (machine, name, mac, vlan_id) values ($1, 'e', $2::macaddr, $3)",
    )
    .bind(&id)
    .bind(mac)
    .bind(vlan)
    .execute(&mut *tx)
    .await
    .unwrap();
    store::feed::changed(&mut tx, store::feed::Kind::Machine, &id)
        .await
        .unwrap();
    tx.commit().await.unwrap();
}

// ---------------------------------------------------------------- the tests

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rack_enrols_once_links_attaches_and_comes_back_without_a_token() {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer, 0).await;
    let token = region.token(&db.pool).await;
    let mut rack = Rack::start(Some(token.clone()));
    let id = rack.linked().await;
    assert_eq!(region.racks.connected(), std::slice::from_ref(&id));
    rack.wait("attached", |status| {
        status.mode == lease::rack::Mode::Attached
    })
    .await;
    let interfaces = store::rack::interfaces(&db.pool, &id).await.unwrap();
    assert_eq!(interfaces[0].addresses[0].to_string(), "10.77.0.2/24");

    let second = Rack::start(Some(token.clone()));
    let refused = join(second.thread).await.unwrap_err();
    let LinkFailed::Enrol(error) = refused else {
        panic!("{refused:?}")
    };
    assert!(error.to_string().contains("used already"), "{error}");

    // The same token in the same place is no second use.
    let folder = rack.stop().await;
    until("unlinked", PATIENCE, || region.racks.connected().is_empty()).await;
    let mut rack = Rack::start_in(folder, Some(token));
    assert_eq!(rack.linked().await, id);
    let folder = rack.stop().await;
    let mut rack = Rack::start_in(folder, None);
    assert_eq!(rack.linked().await, id);
    // A new token enrols it anew, under its old id.
    let folder = rack.stop().await;
    let mut rack = Rack::start_in(folder, Some(region.token(&db.pool).await));
    assert_eq!(rack.linked().await, id);
    rack.stop().await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn revocation_closes_the_link_within_a_second_and_for_good() {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer, 0).await;
    let mut rack = Rack::start(Some(region.token(&db.pool).await));
    let id = rack.linked().await;
    let mut tx = db.pool.begin().await.unwrap();
    store::rack::revoke(&mut tx, &id).await.unwrap();
    tx.commit().await.unwrap();
    until("closed", Duration::from_secs(1), || {
        region.racks.connected().is_empty()
    })
    .await;
    rack.wait("seen by the rack", |status| status.regions.is_empty())
        .await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(region.racks.connected().is_empty());
    rack.stop().await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_comes_back_when_the_region_does() {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer, 0).await;
    let mut rack = Rack::start(Some(region.token(&db.pool).await));
    let id = rack.linked().await;
    rack.wait("fed", |status| status.feed.snapshots == 1).await;
    let port = region.port;
    region.stop().await;
    rack.wait("down", |status| status.regions.is_empty()).await;
    let region = Region::start(&db, &sealer, port).await;
    assert_eq!(rack.linked().await, id);
    let status = rack
        .wait("fed again", |status| status.feed.snapshots == 2)
        .await;
    assert_eq!(status.feed.gaps, 0);
    // A process that comes later is found, and linked too; the feed goes on over it when the first one goes.
    let other = Region::start(&db, &sealer, 0).await;
    rack.wait("both", |status| status.regions.len() == 2).await;
    until("both", PATIENCE, || {
        other.racks.connected() == std::slice::from_ref(&id)
    })
    .await;
    region.stop().await;
    rack.wait("fed by the other", |status| status.feed.snapshots == 3)
        .await;
    assert_eq!(other.racks.connected(), [id]);
    rack.stop().await;
    other.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn power_goes_there_and_back_and_a_silent_rack_costs_its_deadline_only() {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer, 0).await;
    let mut rack = Rack::start(Some(region.token(&db.pool).await));
    let id = rack.linked().await;
    let operation = |deadline| PowerOperation {
        id: [9; 16],
        driver: "manual".into(),
        command: PowerCommand::On,
        parameters: String::from("{}").into(),
        deadline,
    };
    let call = tokio::spawn({
        let (racks, id) = (region.racks.clone(), id.clone());
        let operation = operation(Duration::from_secs(5));
        async move { racks.power(&id, operation).await }
    });
    let ask = rack.power.recv().await.unwrap();
    assert_eq!(
        (ask.operation.id, ask.operation.command),
        ([9; 16], power::PowerCommand::On)
    );
    let report = power::Report {
        state: power::PowerState::On,
        steps: vec!["seen on".into()],
        result: Ok(()),
    };
    ask.reply.send(Arc::new(report)).unwrap();
    let report = call.await.unwrap().unwrap();
    assert_eq!(
        (report.state, report.steps, report.failure),
        (PowerState::On, vec!["seen on".into()], None)
    );

    let start = Instant::now();
    let kept = tokio::spawn({
        let mut asks = rack.power;
        async move { asks.recv().await }
    });
    let error = region
        .racks
        .power(&id, operation(Duration::from_millis(300)))
        .await
        .unwrap_err();
    assert!(
        start.elapsed() < Duration::from_secs(5),
        "{:?}",
        start.elapsed()
    );
    assert!(
        matches!(error, LinkError::Refused(_) | LinkError::Deadline),
        "{error}"
    );
    drop(kept.await);

    let nobody = region
        .racks
        .power("zzzzzz", operation(Duration::from_secs(1)))
        .await;
    assert!(matches!(nobody, Err(LinkError::NotConnected)));
    rack.cancel.cancel();
    join(rack.thread).await.unwrap();
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_feed_follows_concurrent_changes_without_a_gap() {
    const MACHINES: u32 = 300;
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer, 0).await;
    let vlan = network(&db.pool).await;
    for n in 0..MACHINES {
        add_machine(&db.pool, n, vlan).await;
    }
    let mut rack = Rack::start(Some(region.token(&db.pool).await));
    let id = rack.linked().await;
    serve_dhcp(&db.pool, vlan, Some(&id)).await;
    let all = MACHINES as usize;
    rack.wait("all machines", |status| status.machines == all)
        .await;

    // Some transactions stay open while many others come and go, so that commit order is not id order.
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..4u32 {
        let pool = db.pool.clone();
        writers.spawn(async move {
            for round in 0..60u32 {
                let n = (round * 37 + writer * 75) % MACHINES;
                let mut tx = pool.begin().await.unwrap();
                let id = format!("m{n:05}");
                sqlx::query("update machine set hostname = $2 where system_id = $1")
                    .bind(&id)
                    .bind(format!("w{writer}-r{round}-n{n}"))
                    .execute(&mut *tx)
                    .await
                    .unwrap();
                let kind = store::feed::Kind::Machine;
                store::feed::changed(&mut tx, kind, &id).await.unwrap();
                if round % 7 == writer {
                    tokio::time::sleep(Duration::from_millis(60)).await;
                }
                tx.commit().await.unwrap();
            }
        });
    }
    writers.join_all().await;
    let wanted: BTreeMap<String, String> =
        sqlx::query_as("select system_id, hostname from machine")
            .fetch_all(&db.pool)
            .await
            .unwrap()
            .into_iter()
            .collect();
    until("the last changes", Duration::from_secs(5), || {
        let snapshot = rack.snapshot.load();
        wanted.iter().all(|(id, hostname)| {
            snapshot
                .machine_by_id(id)
                .is_some_and(|machine| machine.hostname == *hostname)
        })
    })
    .await;
    let status = rack.status.borrow().clone();
    assert_eq!(
        (status.feed.gaps, status.feed.snapshots, status.feed.unknown),
        (0, 1, 0)
    );
    // Nothing is rebuilt: what was sent is the first snapshot and what changed.
    assert!(
        status.feed.items < u64::from(MACHINES) * 2 + 300,
        "{}",
        status.feed.items
    );

    // An open transaction keeps nobody else's change waiting, and its own comes when it commits.
    let mut open = db.pool.begin().await.unwrap();
    sqlx::query("update machine set hostname = 'late' where system_id = 'm00000'")
        .execute(&mut *open)
        .await
        .unwrap();
    store::feed::changed(&mut open, store::feed::Kind::Machine, "m00000")
        .await
        .unwrap();
    let hostname = |id: &str| {
        rack.snapshot
            .load()
            .machine_by_id(id)
            .map(|m| m.hostname.clone())
    };
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::query("update machine set hostname = 'soon' where system_id = 'm00001'")
        .execute(&mut *tx)
        .await
        .unwrap();
    store::feed::changed(&mut tx, store::feed::Kind::Machine, "m00001")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    until("soon", Duration::from_secs(2), || {
        hostname("m00001").as_deref() == Some("soon")
    })
    .await;
    assert_ne!(hostname("m00000").as_deref(), Some("late"));
    open.commit().await.unwrap();
    until("late", Duration::from_secs(2), || {
        hostname("m00000").as_deref() == Some("late")
    })
    .await;

    // Gone from the region, gone from the rack.
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::query("delete from machine where system_id = 'm00002'")
        .execute(&mut *tx)
        .await
        .unwrap();
    store::feed::changed(&mut tx, store::feed::Kind::Machine, "m00002")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    until("deleted", Duration::from_secs(2), || {
        hostname("m00002").is_none()
    })
    .await;
    rack.stop().await;
    region.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn links_reservations_and_machines_come_and_go_with_dhcp() {
    let db = store::testing::database().await;
    let sealer = Sealer::ephemeral();
    let region = Region::start(&db, &sealer, 0).await;
    let vlan = network(&db.pool).await;
    add_machine(&db.pool, 1, vlan).await;
    sqlx::query(
        "insert into reserved_ip (subnet_id, ip, mac, hostname)
         select id, '10.77.0.50', '02:00:00:00:00:50', 'r' from subnet",
    )
    .execute(&db.pool)
    .await
    .unwrap();
    let mut rack = Rack::start(Some(region.token(&db.pool).await));
    let id = rack.linked().await;
    rack.wait("fed", |status| status.feed.snapshots == 1).await;
    let vlan_id = u32::try_from(vlan).unwrap();
    let sees = |rack: &Rack| {
        let snapshot = rack.snapshot.load();
        let reserved = snapshot
            .reserved_mac(vlan_id, "10.77.0.50".parse().unwrap())
            .is_some();
        (snapshot.links().len(), reserved, snapshot.machine_count())
    };
    assert_eq!(sees(&rack), (0, false, 0));
    serve_dhcp(&db.pool, vlan, Some(&id)).await;
    until("served", PATIENCE, || sees(&rack) == (1, true, 1)).await;
    {
        let snapshot = rack.snapshot.load();
        let link = snapshot
            .link_by_interface(7)
            .expect("the device was found by its name");
        assert_eq!(
            (link.dhcp.server.to_string(), link.dhcp.mode),
            ("10.77.0.2".into(), dhcp::Mode::Serve)
        );
        assert_eq!(link.dhcp.subnets[0].ranges.len(), 1);
    }
    let mut tx = db.pool.begin().await.unwrap();
    sqlx::query("delete from reserved_ip")
        .execute(&mut *tx)
        .await
        .unwrap();
    let key = format!("{vlan}:10.77.0.50");
    store::feed::changed(&mut tx, store::feed::Kind::Reservation, &key)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    until("unreserved", PATIENCE, || sees(&rack) == (1, false, 1)).await;
    serve_dhcp(&db.pool, vlan, None).await;
    until("not served", PATIENCE, || sees(&rack) == (0, false, 0)).await;
    let status = rack.status.borrow().clone();
    assert_eq!((status.feed.snapshots, status.feed.gaps), (1, 0));
    rack.stop().await;
    region.stop().await;
}
