//! The regiond processes that share this database.

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
    let addresses: Vec<IpNetwork> = process
        .addresses
        .iter()
        .copied()
        .map(IpNetwork::from)
        .collect();
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
    sqlx::query("delete from region_process where id = $1")
        .bind(id)
        .execute(db)
        .await?;
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
                u16::try_from(port).map_err(|_| StoreError::Corrupt {
                    what: "region port",
                })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn live_processes_are_listed_once() {
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
        assert_eq!(
            live(&mut *db).await.unwrap(),
            std::slice::from_ref(&process)
        );
        remove(&mut *db, process.id).await.unwrap();
        assert_eq!(live(&mut *db).await.unwrap(), []);
    }
}
