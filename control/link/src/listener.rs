//! The link thread: accepts racks, and keeps what belongs to the process rather than to one connection.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use store::region::Process;
use time::OffsetDateTime;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::{JoinSet, LocalSet};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::counters::count;
use crate::doors::Refused;
use crate::liveness::Liveness;
use crate::racks::Racks;
use crate::tls::{self, Admit};
use crate::{StartError, connection, feed, liveness, revoke};

const KEEP_ALIVE_EVERY: Duration = Duration::from_secs(10);
const SETTLE_EVERY: Duration = Duration::from_secs(5);
const SERVER_CERTIFICATE_EVERY: Duration = Duration::from_secs(7 * 24 * 3600);
/// What is under way at the end gets this long.
const DRAIN: Duration = Duration::from_secs(2);

pub(crate) struct Setup {
    pub racks: Racks,
    pub process: Process,
    /// For the server certificate.
    pub names: Vec<String>,
    pub database: Arc<PgConnectOptions>,
    pub database_connections: u32,
    pub cancel: CancellationToken,
}

/// What every connection of this process shares; stays on the link thread.
pub(crate) struct Region {
    pub racks: Racks,
    pub process: Process,
    pub pool: PgPool,
    pub feed: feed::Handle,
    pub liveness: Liveness,
    /// The work of calls under way: goes on when the connection that asked is closed.
    pub calls: TaskTracker,
    pub cancel: CancellationToken,
}

/// Starts the thread; the receiver hears when it is over.
pub(crate) fn start(
    listener: std::net::TcpListener,
    setup: Setup,
) -> Result<oneshot::Receiver<()>, StartError> {
    listener.set_nonblocking(true)?;
    let trust = setup.racks.trust().ok_or(StartError::NotStarted)?;
    let config = tls::server_config(&trust.authority, Arc::clone(&trust.identity), Admit::Anyone)?;
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let (over, done) = oneshot::channel();
    std::thread::Builder::new()
        .name("link".into())
        .spawn(move || {
            let local = LocalSet::new();
            if let Err(error) = local.block_on(&runtime, run(listener, acceptor, setup)) {
                tracing::error!(%error, "the rack listener could not start");
            }
            // Ends what the set still holds before the receiver hears.
            drop(local);
            runtime.shutdown_timeout(DRAIN);
            let _ = over.send(());
        })?;
    Ok(done)
}

async fn run(
    listener: std::net::TcpListener,
    acceptor: tokio_rustls::TlsAcceptor,
    setup: Setup,
) -> std::io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let pool = local_pool(&setup);
    let (feed, publisher) = feed::new(pool.clone(), setup.racks.clone(), setup.cancel.clone());
    let region = Rc::new(Region {
        racks: setup.racks,
        process: setup.process,
        pool: pool.clone(),
        feed,
        liveness: Liveness::default(),
        calls: TaskTracker::new(),
        cancel: setup.cancel.clone(),
    });
    let mut tasks = JoinSet::new();
    tasks.spawn_local(publisher.run());
    tasks.spawn_local(revoke::run(Rc::clone(&region)));
    tasks.spawn_local(keep_alive(Rc::clone(&region)));
    tasks.spawn_local(settle(Rc::clone(&region)));
    tasks.spawn_local(liveness::run(Rc::clone(&region)));
    tasks.spawn_local(renew_identity(Rc::clone(&region), setup.names));

    let counters = region.racks.counters();
    loop {
        let accepted = tokio::select! {
            () = setup.cancel.cancelled() => break,
            accepted = listener.accept() => accepted,
            Some(ended) = tasks.join_next() => {
                if ended.is_err_and(|error| error.is_panic()) {
                    count(&counters.panicked);
                }
                continue;
            }
        };
        let (stream, from) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of descriptors, most likely: racks try again, and so does this.
                tracing::error!(%error, "accepting a rack's connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        count(&counters.accepted);
        let doors = region.racks.doors();
        let place = match doors.enter(&doors.link, from.ip(), Instant::now()) {
            Ok(place) => place,
            Err(Refused::Full) => {
                count(&counters.refused_full);
                continue;
            }
            Err(Refused::TooOften) => {
                count(&counters.refused_often);
                continue;
            }
        };
        let region = Rc::clone(&region);
        let acceptor = acceptor.clone();
        tasks.spawn_local(async move {
            connection::serve(region, acceptor, stream, from, place).await;
        });
    }
    let ended = tokio::time::timeout(DRAIN, async { while tasks.join_next().await.is_some() {} });
    if ended.await.is_err() {
        tracing::warn!(left = tasks.len(), "connections were still open at the end");
    }
    tasks.shutdown().await;
    region.calls.close();
    if tokio::time::timeout(DRAIN, region.calls.wait())
        .await
        .is_err()
    {
        tracing::warn!(
            left = region.calls.len(),
            "calls were still under way at the end"
        );
    }
    if let Err(error) = unlist(&region).await {
        tracing::warn!(%error, "this process stays listed for half a minute");
    }
    // Connections whose work was cut off may take their time to come back.
    if tokio::time::timeout(DRAIN, pool.close()).await.is_err() {
        tracing::warn!("database connections were still in use at the end");
    }
    Ok(())
}

/// Says that this process is gone, and hears no rack any more.
async fn unlist(region: &Region) -> Result<(), store::StoreError> {
    let mut db = region.pool.acquire().await?;
    store::lease::liveness::forget_process(&mut db, region.process.id).await?;
    store::region::remove(&mut *db, region.process.id).await
}

/// The link's own connections, on the link thread's reactor: the API's load does not make leases wait.
fn local_pool(setup: &Setup) -> PgPool {
    let options = store::link_options((*setup.database).clone());
    PgPoolOptions::new()
        .max_connections(setup.database_connections.max(2))
        .acquire_timeout(Duration::from_secs(5))
        .connect_lazy_with(options)
}

/// A connection of its own for notifications: it is held for good, so it must not be one of the pool's.
pub(crate) async fn listen(
    options: Arc<PgConnectOptions>,
    channel: &str,
) -> Result<PgListener, store::StoreError> {
    let one = PgPoolOptions::new()
        .max_connections(1)
        .max_lifetime(None)
        .idle_timeout(None)
        .connect_lazy_with((*options).clone());
    let mut listener = PgListener::connect_with(&one).await?;
    listener.listen(channel).await?;
    Ok(listener)
}

/// Keeps this process and its racks listed as alive, and removes old rows of the feed.
async fn keep_alive(region: Rc<Region>) {
    let mut every = tokio::time::interval(KEEP_ALIVE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = region.cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        let kept: Result<(), store::StoreError> = async {
            let mut db = region.pool.acquire().await?;
            store::region::keep_alive(&mut db, &region.process).await?;
            let racks = region.racks.connected();
            if !racks.is_empty() {
                store::rack::seen(&mut *db, &racks).await?;
            }
            store::feed::prune(&mut db).await?;
            Ok(())
        }
        .await;
        if let Err(error) = kept {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "keeping this process listed"
            );
        }
    }
}

/// Lease housekeeping; any process may do it at any time.
async fn settle(region: Rc<Region>) {
    let mut every = tokio::time::interval(SETTLE_EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = region.cancel.cancelled() => return,
            _ = every.tick() => {}
        }
        if let Err(error) = store::lease::settle(&region.pool).await {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "lease housekeeping"
            );
        }
    }
}

async fn renew_identity(region: Rc<Region>, names: Vec<String>) {
    loop {
        tokio::select! {
            () = region.cancel.cancelled() => return,
            () = tokio::time::sleep(SERVER_CERTIFICATE_EVERY) => {}
        }
        let Some(trust) = region.racks.trust() else {
            return;
        };
        match trust
            .authority
            .server_identity(&names, OffsetDateTime::now_utc())
        {
            Ok(identity) => trust.identity.replace(identity),
            Err(error) => tracing::error!(%error, "renewing the server certificate"),
        }
    }
}
