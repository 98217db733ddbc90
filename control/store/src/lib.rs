//! Every SQL statement of the region, one file per table family.
//!
//! Functions take a connection; the caller owns the transaction, and a transaction spans SQL only.
//! Nothing here knows HTTP, Cap'n Proto or MAAS's JSON. Statements are checked when they run, by the
//! database tests, not by the compiler (docs/decisions/0002).

pub mod account;
pub mod again;
pub mod bmc;
pub mod card;
pub mod cluster;
pub mod dhcp;
pub mod domain;
pub mod enlist;
pub mod event;
pub mod feed;
pub mod image;
pub mod inventory;
pub mod lease;
pub mod lifecycle;
pub mod limits;
pub mod link;
pub mod machine;
pub mod network;
pub mod nonce;
pub mod rack;
pub mod region;
pub mod reservation;
pub mod script;
pub mod seal;
pub mod setting;
pub mod testing;
pub mod token;
pub mod work;

use sqlx::PgPool;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{ConnectOptions, Connection};

pub use again::{Conflict, again};

/// The embedded migrations of `schema/migrations`.
static MIGRATOR: sqlx::migrate::Migrator = sqlx::migrate!("../../schema/migrations");

/// Why a statement did not do what was asked. The cause chain is printed by the logger.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("no {kind} {id}")]
    NotFound { kind: &'static str, id: String },
    /// A unique or check constraint refused the row; `constraint` is its name in the schema.
    #[error("refused by constraint {constraint}")]
    Constraint { constraint: String },
    #[error("sealed data does not open with this region's key")]
    Sealed,
    /// As many as there may be.
    #[error("too many {what}: delete some first")]
    Full { what: &'static str },
    #[error("stored {what} cannot be read")]
    Corrupt { what: &'static str },
    #[error("talking to PostgreSQL")]
    Database(#[source] sqlx::Error),
}

impl From<sqlx::Error> for StoreError {
    fn from(error: sqlx::Error) -> Self {
        match error.as_database_error().and_then(|e| e.constraint()) {
            Some(constraint) => StoreError::Constraint {
                constraint: constraint.to_owned(),
            },
            None => StoreError::Database(error),
        }
    }
}

impl StoreError {
    pub fn not_found(kind: &'static str, id: impl ToString) -> Self {
        StoreError::NotFound {
            kind,
            id: id.to_string(),
        }
    }

    /// Whether the same statement may work if tried again: PostgreSQL restarting, a serialisation failure.
    pub fn is_transient(&self) -> bool {
        let StoreError::Database(error) = self else {
            return false;
        };
        match error {
            sqlx::Error::Io(_)
            | sqlx::Error::PoolTimedOut
            | sqlx::Error::PoolClosed
            | sqlx::Error::WorkerCrashed => true,
            // Classes 08 connection, 40 rollback, 53 resources, 55 locks, 57 operator intervention; 25P03 is a session that
            // was ended because its transaction idled.
            sqlx::Error::Database(error) => error.code().is_some_and(|code| {
                ["08", "25P03", "40", "53", "55", "57"]
                    .iter()
                    .any(|c| code.starts_with(c))
            }),
            _ => false,
        }
    }
}

impl again::Conflict for StoreError {
    fn is_conflict(&self) -> bool {
        let StoreError::Database(sqlx::Error::Database(error)) = self else {
            return false;
        };
        matches!(error.code().as_deref(), Some("40P01" | "40001"))
    }
}

/// A pool on `url` with the schema brought up to date.
///
/// Any number of regiond processes may do this at once: the migrator holds an advisory lock.
pub async fn connect(url: &str, connections_max: u32) -> Result<PgPool, StoreError> {
    connect_within(url, connections_max, limits::API).await
}

pub(crate) async fn connect_within(
    url: &str,
    connections_max: u32,
    limits: limits::Limits,
) -> Result<PgPool, StoreError> {
    let options: PgConnectOptions = url.parse().map_err(StoreError::Database)?;
    // On a connection of its own: a migration may take its time, and so may the wait for another process's.
    let migrating = session_options(options.clone(), "regiond migrate", limits::NONE);
    let mut connection = migrating.connect().await?;
    let migrated = MIGRATOR.run(&mut connection).await;
    connection.close().await?;
    migrated.map_err(|error| StoreError::Database(error.into()))?;
    Ok(PgPoolOptions::new()
        .max_connections(connections_max)
        .acquire_timeout(limits::ACQUIRE)
        .connect_with(session_options(options, "regiond", limits))
        .await?)
}

fn session_options(
    options: PgConnectOptions,
    name: &str,
    limits: limits::Limits,
) -> PgConnectOptions {
    let options = options.application_name(name).options(limits.settings());
    options.options([
        // An answer to a machine or a rack is a promise: durable before it is given.
        ("synchronous_commit", "on"),
        ("TimeZone", "UTC"),
        // Compiling a statement costs more than any of ours takes.
        ("jit", "off"),
    ])
}

/// For the link's own connections: the same few statements over and over, none of which waits for anything but SQL.
pub fn link_options(options: PgConnectOptions) -> PgConnectOptions {
    session_options(options, "regiond link", limits::LINK).options([
        // Planning the same statement anew for each batch was a tenth of a commit.
        ("plan_cache_mode", "force_generic_plan"),
    ])
}

pub async fn migrate(pool: &PgPool) -> Result<(), StoreError> {
    MIGRATOR
        .run(pool)
        .await
        .map_err(|error| StoreError::Database(error.into()))
}
