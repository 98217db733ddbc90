//! `regiond run`: everything a region process does, started in order and stopped in order.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use anyhow::Context;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Router, middleware};
use ipnet::IpNet;
use library::Library;
use sqlx::PgPool;
use store::seal::Sealer;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::database::Database;
use crate::listener::Ends;
use crate::metrics::{self, Metrics};
use crate::{listener, rack_http};

/// Requests under way get this long to finish when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Between two looks for uploads that nobody goes on with.
const LIBRARY_SWEEP: Duration = Duration::from_secs(3600);
/// Database connections of the racks' link: it has a thread and a pool of its own.
const LINK_CONNECTIONS_MAX: u32 = 16;

pub async fn run(config: Config, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let descriptors = gate::descriptors::raise_limit();
    tracing::info!(descriptors, "open files allowed");
    let database = Database::open(&config).await?;
    let served = serve(&config, &database, metrics).await;
    database.close().await;
    served
}

async fn serve(config: &Config, database: &Database, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    let pool = database.pool.clone();
    let sealer = Arc::new(Sealer::load_or_create(&config.key_path())?);
    sealer.verify(&mut *pool.acquire().await?).await?;
    let library = Library::open(&config.library_dir(), pool.clone())?;
    let stop = CancellationToken::new();

    let names = match config.advertise.as_slice() {
        [] => host_addresses()?,
        given => given.to_vec(),
    };
    let rpc_listener = std::net::TcpListener::bind(config.rpc_listen)
        .with_context(|| format!("listening on {}", config.rpc_listen))?;
    let link_config = link::LinkConfig {
        listener: rpc_listener,
        names: names.iter().map(IpAddr::to_string).collect(),
        hostname: hostname(),
        rack_http_port: config.rack_http_listen.port(),
        database_connections: LINK_CONNECTIONS_MAX,
    };
    let (racks, mut link) = link::start(link_config, &pool, &sealer, stop.clone())
        .await
        .context("starting the racks' link")?;
    let sweep = workflow::Sweep::every(config.power.sweep());
    let mut runner = workflow::Runner::start(
        pool.clone(),
        sealer.clone(),
        racks.clone(),
        sweep.clone(),
        stop.clone(),
    );

    runner.spawn(sweep_library(library.clone(), stop.clone()));

    let app = api::App::new(pool.clone(), sealer, library.clone(), racks.clone());
    let region = api::router(app.clone());
    let limit = gate::descriptors::raise_limit();
    // Of three listeners each has a third of what the system allows.
    let connections = gate::descriptors::connections(limit, config.api_connections.into(), 1, 3);
    let room = listener::room(connections, config.api_connections_each.into());
    let api_counters = Arc::new(listener::Counters::default());
    let requests = rack_http::requests();
    let page = Page {
        metrics: metrics.clone(),
        pool: pool.clone(),
        app,
        racks: racks.clone(),
        rooms: [Arc::clone(&room), Arc::clone(&requests)],
        listener: Arc::clone(&api_counters),
        sweep,
        allowed: config.metrics_allow.clone(),
    };
    let page = Router::new()
        .route("/MAAS/metrics", get(Page::answer))
        .with_state(Arc::new(page));
    let count = middleware::from_fn_with_state(metrics, metrics::count);
    let public = region.clone().merge(page).layer(count.clone());
    let for_racks = rack_http::router(library, region, requests).layer(count);

    let api_listener = listener::bind(config.api_listen).await?;
    let rack_listener = listener::bind(config.rack_http_listen).await?;
    let mut tasks = tokio::task::JoinSet::new();
    let api_stop = stop.clone();
    tasks.spawn(listener::serve(
        api_listener,
        public,
        room,
        api_counters,
        api_stop,
    ));
    let rack_stop = stop.clone();
    tasks.spawn(async move {
        let served = link::https::serve(rack_listener, racks, pool, for_racks, rack_stop).await;
        served.context("serving racks")
    });
    tracing::info!(api = %config.api_listen, rpc = %config.rpc_listen, "region is up");

    let outcome = tokio::select! {
        signal = stop_signal() => signal,
        Some(ended) = tasks.join_next() => {
            ended.context("a listener's task")?.and_then(|()| anyhow::bail!("a listener ended"))
        }
        _ = &mut link => Err(anyhow::anyhow!("the racks' link ended")),
    };
    stop.cancel();
    let drained = tokio::time::timeout(DRAIN, async {
        while runner.join_next().await.is_some() {}
        while tasks.join_next().await.is_some() {}
    });
    if drained.await.is_err() {
        tracing::warn!("work was still under way; its claims run out by themselves");
    }
    outcome
}

/// Looks after what uploads leave, at the start and from time to time.
async fn sweep_library(library: Library, stop: CancellationToken) {
    let mut timer = tokio::time::interval(LIBRARY_SWEEP);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = timer.tick() => {}
        }
        if let Err(error) = library.sweep().await {
            let error = &error as &dyn std::error::Error;
            tracing::warn!(error, "sweeping the image library");
        }
    }
}

/// What the metrics page is written from.
struct Page {
    metrics: Arc<Metrics>,
    pool: PgPool,
    app: api::App,
    racks: link::Racks,
    rooms: [Arc<gate::Room>; 2],
    listener: Arc<listener::Counters>,
    sweep: workflow::Sweep,
    allowed: Vec<IpNet>,
}

impl Page {
    async fn answer(State(page): State<Arc<Page>>, ends: Option<Extension<Ends>>) -> Response {
        if !ends.is_some_and(|Extension(ends)| metrics::is_allowed(&ends, &page.allowed)) {
            let reason = "Metrics are not for this address: see metrics_allow in regiond.toml.\n";
            return (StatusCode::FORBIDDEN, reason).into_response();
        }
        page.text().await.into_response()
    }

    async fn text(&self) -> String {
        let mut rooms: Vec<_> = self.rooms.iter().map(|room| room.numbers()).collect();
        rooms.extend(self.app.places());
        rooms.extend(self.racks.places());
        let count = |value: &AtomicU64| value.load(Relaxed);
        let listener = [
            (
                "heads_too_slow",
                "connections to the API closed because no whole head came in time",
                count(&self.listener.heads_too_slow),
            ),
            (
                "accept_failed",
                "connections to the API that could not be accepted",
                count(&self.listener.accept_failed),
            ),
        ];
        self.metrics.text()
            + &metrics::places(&rooms)
            + &metrics::counters("api", listener)
            + &metrics::counters("api", self.app.counters().read())
            + &metrics::counters("database", store::again::counters())
            + &metrics::counters("library", self.app.library.counters().read())
            + &metrics::counters("link", self.racks.counters().read())
            + &metrics::counters("power", self.sweep.counters.read())
            + &metrics::power(&self.pool, self.sweep.every).await
            + &metrics::ranges(&self.pool).await
    }
}

async fn stop_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => tracing::info!("told to stop"),
        interrupted = tokio::signal::ctrl_c() => interrupted.context("waiting for ctrl-c")?,
    }
    Ok(())
}

/// The address by which this host reaches others. No packet is sent: connecting a datagram socket only asks
/// the routing table.
fn host_addresses() -> anyhow::Result<Vec<IpAddr>> {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let found = socket
        .connect("192.0.2.1:9")
        .and_then(|()| socket.local_addr());
    let address = found
        .context("this host has no route: set `advertise` in regiond.toml")?
        .ip();
    Ok(vec![address])
}

fn hostname() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}
