//! MAAS's REST API 2.0 and metadata service, wire-compatible: one file per resource.
//!
//! ```text
//!   request -> dispatch: path, method, op -> table of operations (also the source of describe/)
//!           -> auth: OAuth 1.0 PLAINTEXT -> Caller
//!           -> body: urlencoded, multipart (base64 parts too), JSON -> Form, within its source's share
//!           -> permission of the operation
//!           -> handler -> store, workflow -> JSON as MAAS writes it
//! ```
//! Errors are MAAS's: text/plain, or JSON by field for what a form got wrong. Nothing here moves a machine between
//! statuses; that is `workflow`'s.

mod account;
mod address_list;
mod auth;
mod body;
pub mod boot_resources;
mod constant;
mod describe;
mod dhcp;
mod dhcp_option;
mod dispatch;
mod domain;
mod enlist;
mod error;
mod event;
mod fabric;
mod ipaddress;
mod iprange;
mod lacking;
mod lease;
mod machine;
mod machine_filter;
mod machine_view;
pub mod metadata;
mod multipart;
mod network_view;
mod oauth;
pub mod password;
mod power;
mod rack;
mod rack_delete;
mod rack_filter;
mod reservation;
pub mod results;
mod serving;
mod shares;
mod specifier;
mod subnet;
mod transaction;
mod user;
mod version;
mod vlan;

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::Router;
use library::Library;
use model::Mac;
use sqlx::PgPool;
use store::seal::Sealer;

pub use auth::Caller;
pub(crate) use auth::machine_caller;
pub use body::{File, Form, Limits};
pub use dispatch::{Access, Operation, Reply, Request, Resource};
pub use error::ApiError;
pub use shares::ThroughRack;
use transaction::{Committed, Tx};

/// What every handler may use. Cheap to clone.
#[derive(Clone)]
pub struct App {
    pub pool: PgPool,
    pub sealer: Arc<Sealer>,
    pub library: Library,
    pub racks: link::Racks,
    state: Arc<State>,
    /// Of the request that this is for.
    committed: Committed,
}

struct State {
    table: dispatch::Table,
    counters: Counters,
    shares: shares::Shares,
    nonces: auth::Nonces,
}

/// What this process has refused, for the metrics page.
#[derive(Debug, Default)]
pub struct Counters {
    pub unauthorized: AtomicU64,
    pub malformed: AtomicU64,
    pub too_large: AtomicU64,
    pub internal_errors: AtomicU64,
    /// Bodies that did not come in time.
    pub too_slow: AtomicU64,
    /// Requests of a source whose keys or passwords were wrong too often.
    pub too_many_guesses: AtomicU64,
    /// Passwords that were wrong.
    pub logins_refused: AtomicU64,
    /// Machines that may not enlist: too many wait.
    pub enlistments_refused: AtomicU64,
    /// What was not made as there are as many of it as there may be.
    pub bounds_met: AtomicU64,
}

impl Counters {
    /// (name, what it counts, value)
    pub fn read(&self) -> [(&'static str, &'static str, u64); 9] {
        [
            (
                "unauthorized",
                "requests with a wrong key or none",
                &self.unauthorized,
            ),
            (
                "malformed",
                "requests that were not understood",
                &self.malformed,
            ),
            ("too_large", "bodies that were too large", &self.too_large),
            (
                "internal_errors",
                "requests that met a fault of ours",
                &self.internal_errors,
            ),
            (
                "too_slow",
                "bodies that did not come in time",
                &self.too_slow,
            ),
            (
                "too_many_guesses",
                "requests refused after too many wrong keys or passwords of their source",
                &self.too_many_guesses,
            ),
            (
                "logins_refused",
                "logins with a wrong name or password",
                &self.logins_refused,
            ),
            (
                "enlistments_refused",
                "machines that may not enlist, as too many wait",
                &self.enlistments_refused,
            ),
            (
                "bounds_met",
                "domains, keys, addresses, options and traces not made, as there are as many as there may be",
                &self.bounds_met,
            ),
        ]
        .map(|(name, help, value)| (name, help, value.load(Ordering::Relaxed)))
    }
}

impl App {
    pub fn new(pool: PgPool, sealer: Arc<Sealer>, library: Library, racks: link::Racks) -> Self {
        let state = State {
            table: dispatch::Table::new(resources()),
            counters: Counters::default(),
            shares: shares::Shares::default(),
            nonces: auth::Nonces::default(),
        };
        Self {
            pool,
            sealer,
            library,
            racks,
            state: Arc::new(state),
            committed: Committed::default(),
        }
    }

    pub fn counters(&self) -> &Counters {
        &self.state.counters
    }

    /// What the shared places of requests hold and have refused, for the metrics page.
    pub fn places(&self) -> Vec<gate::Numbers> {
        let mut numbers = self.state.shares.numbers();
        numbers.push(self.state.nonces.numbers());
        numbers.push(self.uploads());
        numbers
    }

    /// Octets of files that arrive; `held` as of the last that was announced here.
    fn uploads(&self) -> gate::Numbers {
        let counters = self.library.counters();
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        gate::Numbers {
            name: "upload_octets",
            held: read(&counters.held_bytes),
            total: library::Counters::bytes_max(),
            entered: read(&counters.announced),
            refused_source: read(&counters.refused_account),
            refused_all: read(&counters.refused_all),
            ..gate::Numbers::default()
        }
    }

    pub(crate) fn count(&self, counter: impl FnOnce(&Counters) -> &AtomicU64) {
        counter(&self.state.counters).fetch_add(1, Ordering::Relaxed);
    }

    /// The answer, counted where its status alone does not say what it was.
    pub(crate) fn refuse(&self, error: ApiError) -> axum::response::Response {
        if matches!(error, ApiError::BoundMet(_)) {
            self.count(|counters| &counters.bounds_met);
        }
        axum::response::IntoResponse::into_response(error)
    }

    pub(crate) async fn db(&self) -> Result<sqlx::pool::PoolConnection<sqlx::Postgres>, ApiError> {
        self.pool.acquire().await.map_err(ApiError::from)
    }

    pub(crate) async fn begin(&self) -> Result<Tx, ApiError> {
        let tx = self.pool.begin().await?;
        Ok(Tx::new(tx, self.committed.clone()))
    }
}

/// What a rack says, over its certificate, of the machine whose request it passes on. Inserted as an extension by
/// the rack-facing listener only; whoever finds it may believe it.
#[derive(Clone, Debug)]
pub struct Attestation {
    /// system_id
    pub rack: String,
    pub client_address: IpAddr,
    /// Of the card that has this address, if the rack knows it.
    pub client_mac: Option<Mac>,
    pub vlan: Option<i32>,
}

/// Everything under `/MAAS/` but what the racks' listener and the metrics page add.
pub fn router(app: App) -> Router {
    dispatch::router(app.clone()).merge(metadata::router(app))
}

/// The whole API: what is dispatched, and what `describe/` tells.
fn resources() -> Vec<Resource> {
    [
        account::resources(),
        boot_resources::resources(),
        constant::resources(),
        dhcp::resources(),
        dhcp_option::resources(),
        domain::resources(),
        event::resources(),
        fabric::resources(),
        ipaddress::resources(),
        iprange::resources(),
        lease::resources(),
        machine::resources(),
        rack::resources(),
        reservation::resources(),
        results::resources(),
        subnet::resources(),
        user::resources(),
        version::resources(),
        vlan::resources(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
