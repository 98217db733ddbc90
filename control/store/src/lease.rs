//! Address blocks and leases (docs/ARCHITECTURE.md, Leases): the region's end of the lease protocol over PostgreSQL.
//!
//! What a write does is decided by `lease::region`, on rows that this file locks; time is the database's `now()`.
//! This first cut fixes the signatures; the bodies follow.

use std::net::IpAddr;

use lease::{AttachReply, Batch, Client, HeartbeatReply, Outcome, SpoolId};
use sqlx::{PgConnection, PgPool};
use time::OffsetDateTime;

use crate::StoreError;

const SOON: StoreError = StoreError::Corrupt { what: "lease table (not there yet)" };

/// A lease as the API, DNS and the preseed check see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub address: IpAddr,
    pub vlan_id: i32,
    pub subnet_id: Option<i32>,
    pub client: Client,
    /// The client's hardware address, where the identity tells it.
    pub mac: Option<[u8; 6]>,
    pub hostname: String,
    /// Last grant.
    pub granted: OffsetDateTime,
    pub ends: OffsetDateTime,
    pub released: bool,
}

/// Identity of the database, for the hello and for noticing a promotion or restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseIdentity {
    pub system: u64,
    pub timeline: u32,
}

/// One transaction: `commitLeases`. One outcome per write, in order.
pub async fn commit(pool: &PgPool, rack: &str, batch: &Batch) -> Result<Vec<Outcome>, StoreError> {
    let (_, _, _) = (pool, rack, batch);
    Err(SOON)
}

/// `attach`: `seq` is the rack's newest.
pub async fn attach(pool: &PgPool, rack: &str, spool_id: SpoolId, seq: u64) -> Result<AttachReply, StoreError> {
    let (_, _, _, _) = (pool, rack, spool_id, seq);
    Err(SOON)
}

pub async fn heartbeat(
    pool: &PgPool,
    rack: &str,
    spool_id: SpoolId,
    digest: &[u8; 32],
) -> Result<HeartbeatReply, StoreError> {
    let (_, _, _, _) = (pool, rack, spool_id, digest);
    Err(SOON)
}

/// Cuts, adopts or lets go of blocks so that they fit the range. To be called after an `iprange` row was
/// inserted, changed or deleted, in the same transaction.
pub async fn ensure_blocks(db: &mut PgConnection, range_id: i32) -> Result<(), StoreError> {
    let (_, _) = (db, range_id);
    Err(SOON)
}

/// Says who should own the VLAN's blocks. To be called after the VLAN's dhcp_on, primary_rack or relay_vlan, or a
/// subnet's vlan or lease_secs changed, in the same transaction.
pub async fn assign_blocks(db: &mut PgConnection, vlan_id: i32) -> Result<(), StoreError> {
    let (_, _) = (db, vlan_id);
    Err(SOON)
}

/// Housekeeping, every few seconds by any region process: moves whose time has come, uncut ranges, old keys.
pub async fn settle(pool: &PgPool) -> Result<(), StoreError> {
    let _ = pool;
    Err(SOON)
}

/// The database's identity; a change since the last call (by any process) starts the wait after a promotion or restore.
/// To be called when a region process starts and after a lost database connection.
pub async fn check_database(pool: &PgPool) -> Result<DatabaseIdentity, StoreError> {
    let _ = pool;
    Err(SOON)
}

/// The live binding of an address, if there is one.
pub async fn binding_of_address(db: &mut PgConnection, address: IpAddr) -> Result<Option<Binding>, StoreError> {
    let (_, _) = (db, address);
    Err(SOON)
}

/// The live bindings of a hardware address, newest grant first (one per VLAN it was seen on).
pub async fn bindings_of_mac(db: &mut PgConnection, mac: [u8; 6]) -> Result<Vec<Binding>, StoreError> {
    let (_, _) = (db, mac);
    Err(SOON)
}

/// The live leases of a subnet, or all, by address; at most `limit` after `after`.
pub async fn list(
    db: &mut PgConnection,
    subnet_id: Option<i32>,
    after: Option<IpAddr>,
    limit: u32,
) -> Result<Vec<Binding>, StoreError> {
    let (_, _, _, _) = (db, subnet_id, after, limit);
    Err(SOON)
}

