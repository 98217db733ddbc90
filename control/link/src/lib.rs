//! The region's end of the Cap'n Proto link: listener, enrolment, sessions, feed, power calls.
//!
//! No capnp type leaves this crate. All of them live on one thread of their own with a current-thread runtime
//! (capnp-rpc is not `Send`) and their own small database pool; the rest of regiond holds a [`Racks`].
//!
//! ```text
//!   listener -> connection: TLS, peer -> Door (enrol, hello) -> Session (leases, bootConfig, renew, report)
//!                                                            -> FeedSink <- outbox <- publisher <- change table
//!   Racks::power -> the connection's own task -> Rack.power
//! ```

mod authority;
mod connection;
mod counters;
mod door;
mod doors;
mod events;
mod feed;
pub mod https;
mod lanes;
mod listener;
mod liveness;
mod power;
mod racks;
mod registry;
mod revoke;
mod session;
mod tls;
pub mod token;
mod wire;

use std::net::{IpAddr, TcpListener};

use sqlx::PgPool;
use store::region::Process;
use store::seal::Sealer;
use time::OffsetDateTime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use authority::{Authority, REGION_NAME};
pub use counters::Counters;
pub use https::RackIdentity;
pub use model::{PowerCommand, PowerState};
pub use power::{PowerFailure, PowerFailureClass, PowerOperation, PowerReport, Secret};
pub use racks::Racks;

/// How racks reach this process.
#[derive(Debug)]
pub struct LinkConfig {
    /// Bound to the rack-facing address; port 5250 by convention.
    pub listener: TcpListener,
    /// Hosts or addresses under which racks reach this process, the best first. In the server certificate
    /// and, for the other racks, in every Welcome. Empty: `hostname` alone.
    pub names: Vec<String>,
    pub hostname: String,
    /// Where this process serves [`https::serve`]; port 5251 by convention.
    pub rack_http_port: u16,
    /// Database connections of the link's own pool.
    pub database_connections: u32,
}

/// Why the link did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("reading or keeping the link's state")]
    Store(#[from] store::StoreError),
    #[error("making or reading certificates")]
    Authority(#[source] rcgen::Error),
    #[error("setting up TLS")]
    Tls(#[source] rustls::Error),
    #[error("starting the link thread or its listener")]
    Io(#[from] std::io::Error),
    #[error("the link was not started in this process")]
    NotStarted,
}

/// Starts the link thread. It ends, and the handle with it, when `cancel` is cancelled.
///
/// The region's authority is made here if this is the first process of a new region.
pub async fn start(
    config: LinkConfig,
    pool: &PgPool,
    sealer: &Sealer,
    cancel: CancellationToken,
) -> Result<(Racks, JoinHandle<()>), StartError> {
    let authority = Authority::open(pool, sealer).await?;
    let mut names = config.names.clone();
    if !names.contains(&config.hostname) {
        names.push(config.hostname.clone());
    }
    let identity = authority.server_identity(&names, OffsetDateTime::now_utc())?;
    let trust = racks::Trust {
        authority,
        identity: tls::ServerIdentity::new(identity),
    };
    let process = Process {
        id: uuid::Uuid::new_v4(),
        hostname: public_hostname(&config),
        pid: std::process::id().cast_signed(),
        addresses: config
            .names
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect(),
        rpc_port: config.listener.local_addr()?.port(),
        rack_http_port: config.rack_http_port,
    };
    // Before the first hello is answered, and so that a token made right now leads here.
    let mut db = pool.acquire().await.map_err(store::StoreError::from)?;
    store::region::keep_alive(&mut db, &process).await?;
    drop(db);
    let racks = Racks::new(trust, config.database_connections);
    // A flood of strangers right after a restart does not keep the racks from coming back.
    for address in store::rack::addresses(pool).await? {
        racks.doors().know(address);
    }
    let done = listener::start(
        config.listener,
        listener::Setup {
            racks: racks.clone(),
            process,
            names,
            database: pool.connect_options(),
            database_connections: config.database_connections,
            cancel,
        },
    )?;
    let handle = tokio::spawn(async move {
        // An error: the thread is gone without a word, which is an end all the same.
        done.await.ok();
    });
    Ok((racks, handle))
}

/// The first configured name that is no address, else the machine's own.
fn public_hostname(config: &LinkConfig) -> String {
    let is_host = |name: &&String| name.parse::<IpAddr>().is_err();
    config
        .names
        .iter()
        .find(is_host)
        .unwrap_or(&config.hostname)
        .clone()
}

/// Where racks reach a process: its addresses, or its hostname if it has none.
fn region_hosts(process: &Process) -> Vec<(String, &Process)> {
    if process.addresses.is_empty() {
        return vec![(process.hostname.clone(), process)];
    }
    process
        .addresses
        .iter()
        .map(|address| (address.to_string(), process))
        .collect()
}

/// "host:port", IPv6 in brackets.
fn host_and_port(host: &str, port: u16) -> String {
    if host.contains(':') {
        format!("[{host}]:{port}")
    } else {
        format!("{host}:{port}")
    }
}

/// Why a rack gave no report.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    #[error("the rack has no link to this region process")]
    NotConnected,
    #[error("the rack has too many operations waiting")]
    Busy,
    #[error("the rack did not report in time")]
    Deadline,
    #[error("the link to the rack broke during the call")]
    Lost,
    #[error("the rack refused the call: {0}")]
    Refused(String),
    #[error("the rack sent a report that cannot be read")]
    Malformed,
}

impl LinkError {
    /// Whether the rack may have begun the operation all the same: read the state before repeating it elsewhere.
    pub fn may_have_acted(&self) -> bool {
        matches!(
            self,
            LinkError::Deadline | LinkError::Lost | LinkError::Malformed
        )
    }
}
