//! `regiond run`: everything a region process does, started in order and stopped in order.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::middleware;
use axum::routing::get;
use library::Library;
use store::seal::Sealer;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::database::Database;
use crate::metrics::{self, Metrics};
use crate::rack_http;

/// Requests under way get this long to finish when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Database connections of the racks' link: it has a thread and a pool of its own.
const LINK_CONNECTIONS_MAX: u32 = 8;

pub async fn run(config: Config, metrics: Arc<Metrics>) -> anyhow::Result<()> {
    std::fs::create_dir_all(&config.state_dir)
        .with_context(|| format!("creating {}", config.state_dir.display()))?;
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
    let mut runner =
        workflow::Runner::start(pool.clone(), sealer.clone(), racks.clone(), stop.clone());

    let app = api::App::new(pool.clone(), sealer, library.clone(), racks.clone());
    let region = api::router(app);
    let counted = {
        let metrics = metrics.clone();
        let pool = pool.clone();
        let text = move || async move { metrics.text() + &metrics::ranges(&pool).await };
        region.clone().route("/MAAS/metrics", get(text))
    };
    let public = counted.layer(middleware::from_fn_with_state(
        metrics.clone(),
        metrics::count,
    ));
    let for_racks = rack_http::router(library, region)
        .layer(middleware::from_fn_with_state(metrics, metrics::count));

    let api_listener = TcpListener::bind(config.api_listen)
        .await
        .with_context(|| format!("listening on {}", config.api_listen))?;
    let rack_listener = TcpListener::bind(config.rack_http_listen)
        .await
        .with_context(|| format!("listening on {}", config.rack_http_listen))?;
    let mut tasks = tokio::task::JoinSet::new();
    tasks.spawn(serve_api(api_listener, public, stop.clone()));
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

async fn serve_api(
    listener: TcpListener,
    router: Router,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let router = router.into_make_service_with_connect_info::<std::net::SocketAddr>();
    axum::serve(listener, router)
        .with_graceful_shutdown(stop.cancelled_owned())
        .await
        .context("serving the API")
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
