//! The regiond processes that share this database, and the database's own identity.

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sqlx::{PgConnection, PgExecutor};
use uuid::Uuid;

use crate::StoreError;

/// What one regiond process says of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    pub id: Uuid,
    pub hostname: String,
    pub pid: i32,
    /// Where racks reach it; may be empty, then by its hostname.
    pub addresses: Vec<IpAddr>,
    pub rpc_port: u16,
    pub rack_http_port: u16,
}

/// Writes or renews a process's row and removes those not renewed for a minute.
pub async fn keep_alive(db: &mut PgConnection, process: &Process) -> Result<(), StoreError> {
    let addresses: Vec<IpNetwork> = process.addresses.iter().copied().map(IpNetwork::from).collect();
    sqlx::query(
        "insert into region_process (id, hostname, pid, addresses, rpc_port, rack_http_port)
         values ($1, $2, $3, $4, $5, $6)
         on conflict (id) do update set last_seen = now(), addresses = excluded.addresses,
             rpc_port = excluded.rpc_port, rack_http_port = excluded.rack_http_port",
    )
    .bind(process.id)
    .bind(&process.hostname)
    .bind(process.pid)
    .bind(addresses)
    .bind(i32::from(process.rpc_port))
    .bind(i32::from(process.rack_http_port))
    .execute(&mut *db)
    .await?;
    sqlx::query("delete from region_process where last_seen < now() - interval '1 minute'")
        .execute(&mut *db)
        .await?;
    Ok(())
}

/// A process that ends says so.
pub async fn remove(db: impl PgExecutor<'_>, id: Uuid) -> Result<(), StoreError> {
    sqlx::query("delete from region_process where id = $1").bind(id).execute(db).await?;
    Ok(())
}

/// Every live process (seen within 30 s), oldest first.
pub async fn live(db: impl PgExecutor<'_>) -> Result<Vec<Process>, StoreError> {
    type Row = (Uuid, String, i32, Vec<IpNetwork>, i32, i32);
    let rows: Vec<Row> = sqlx::query_as(
        "select id, hostname, pid, addresses, rpc_port, rack_http_port from region_process
         where last_seen > now() - interval '30 seconds' order by started, id",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|(id, hostname, pid, addresses, rpc_port, rack_http_port)| {
            let port = |port: i32| {
                u16::try_from(port).map_err(|_| StoreError::Corrupt { what: "region port" })
            };
            Ok(Process {
                id,
                hostname,
                pid,
                addresses: addresses.iter().map(IpNetwork::ip).collect(),
                rpc_port: port(rpc_port)?,
                rack_http_port: port(rack_http_port)?,
            })
        })
        .collect()
}

/// Which PostgreSQL this is: a rack that sees it change knows that commits may have been lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseIdentity {
    pub system: u64,
    pub timeline: u32,
}

pub async fn database_identity(db: impl PgExecutor<'_>) -> Result<DatabaseIdentity, StoreError> {
    let (system, timeline): (i64, i32) = sqlx::query_as(
        "select (select system_identifier from pg_control_system()),
                (select timeline_id from pg_control_checkpoint())",
    )
    .fetch_one(db)
    .await?;
    // PostgreSQL keeps both unsigned and shows them signed.
    Ok(DatabaseIdentity { system: system.cast_unsigned(), timeline: timeline.cast_unsigned() })
}

/// A region secret (the CA's key) as it was sealed; `None` before it was made.
pub async fn sealed_secret(
    db: impl PgExecutor<'_>,
    name: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar("select sealed from sealed_secret where name = $1")
        .bind(name)
        .fetch_optional(db)
        .await?)
}

/// Stores a secret unless there is one, and gives the one that is stored: of several processes that start at
/// once, all use the first one's.
pub async fn add_sealed_secret(
    db: &mut PgConnection,
    name: &str,
    sealed: &[u8],
) -> Result<Vec<u8>, StoreError> {
    sqlx::query("insert into sealed_secret (name, sealed) values ($1, $2) on conflict do nothing")
        .bind(name)
        .bind(sealed)
        .execute(&mut *db)
        .await?;
    sealed_secret(&mut *db, name).await?.ok_or(StoreError::Corrupt { what: "region secret" })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn live_processes_are_listed_and_the_first_secret_stays() {
        let db = testing::database().await;
        let mut db = db.pool.acquire().await.unwrap();
        let process = Process {
            id: Uuid::new_v4(),
            hostname: "region1".into(),
            pid: 7,
            addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            rpc_port: 5250,
            rack_http_port: 5251,
        };
        keep_alive(&mut db, &process).await.unwrap();
        keep_alive(&mut db, &process).await.unwrap();
        assert_eq!(live(&mut *db).await.unwrap(), [process.clone()]);
        remove(&mut *db, process.id).await.unwrap();
        assert_eq!(live(&mut *db).await.unwrap(), []);
        assert_eq!(add_sealed_secret(&mut db, "ca", b"first").await.unwrap(), b"first");
        assert_eq!(add_sealed_secret(&mut db, "ca", b"second").await.unwrap(), b"first");
        let identity = database_identity(&mut *db).await.unwrap();
        assert!(identity.system != 0 && identity.timeline >= 1, "{identity:?}");
    }
}
