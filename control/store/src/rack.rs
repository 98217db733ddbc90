//! Racks: enrolment tokens, certificates, interfaces, revocation.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use ipnetwork::IpNetwork;
use mac_address::MacAddress;
use rand::Rng;
use sqlx::{PgConnection, PgExecutor};
use time::OffsetDateTime;

use crate::StoreError;
use crate::feed::{self, Kind};

/// Channel of `NOTIFY` with a rack's system_id when its certificates may have been revoked.
pub const REVOKED_CHANNEL: &str = "muster_rack";
/// Certificates of one rack that have not ended; past it a renewal is refused.
pub const CERTIFICATES_MAX: i64 = 32;

/// A rack's row.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Rack {
    pub system_id: String,
    pub hostname: String,
    pub description: String,
    pub version: String,
    pub created: OffsetDateTime,
    pub last_seen: Option<OffsetDateTime>,
    pub revoked: Option<OffsetDateTime>,
}

/// A kernel interface as the rack reported it.
#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Interface {
    pub name: String,
    pub mac: Option<MacAddress>,
    /// With prefix length.
    pub addresses: Vec<IpNetwork>,
}

/// Why a token does not enrol. Told to the rack as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenRefusal {
    #[error("unknown enrolment token")]
    Unknown,
    #[error("this enrolment token was used already: make a new one")]
    Used,
    #[error("this enrolment token has expired: make a new one")]
    Expired,
    #[error("this enrolment token is for another host")]
    OtherHost,
    #[error(
        "a rack of this name is enrolled, or VLANs name it: make a token for this name (muster rack token --hostname \
         NAME), or revoke the rack first"
    )]
    Enrolled,
}

const RACK: &str = "system_id, hostname, description, version, created, last_seen, revoked";

pub async fn get(db: impl PgExecutor<'_>, system_id: &str) -> Result<Rack, StoreError> {
    sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select {RACK} from rack where system_id = $1"
    )))
    .bind(system_id)
    .fetch_optional(db)
    .await?
    .ok_or_else(|| StoreError::not_found("rack", system_id))
}

/// All racks, by hostname.
pub async fn list(db: impl PgExecutor<'_>) -> Result<Vec<Rack>, StoreError> {
    Ok(sqlx::query_as(sqlx::AssertSqlSafe(format!(
        "select {RACK} from rack order by hostname"
    )))
    .fetch_all(db)
    .await?)
}

/// Where racks that are not revoked were at their last hello.
pub async fn addresses(db: impl PgExecutor<'_>) -> Result<Vec<std::net::IpAddr>, StoreError> {
    let networks: Vec<IpNetwork> = sqlx::query_scalar(
        "select unnest(i.addresses) from rack_interface i
         join rack r on r.system_id = i.rack where r.revoked is null",
    )
    .fetch_all(db)
    .await?;
    Ok(networks.iter().map(IpNetwork::ip).collect())
}

pub async fn set_description(
    db: impl PgExecutor<'_>,
    system_id: &str,
    description: &str,
) -> Result<(), StoreError> {
    let done = sqlx::query("update rack set description = $2 where system_id = $1")
        .bind(system_id)
        .bind(description)
        .execute(db)
        .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::not_found("rack", system_id));
    }
    Ok(())
}

/// Forgets a rack with its certificates. Its links close as after `revoke`.
pub async fn delete(db: &mut PgConnection, system_id: &str) -> Result<(), StoreError> {
    revoke(db, system_id).await?;
    sqlx::query("delete from rack where system_id = $1")
        .bind(system_id)
        .execute(&mut *db)
        .await?;
    Ok(())
}

// ---------------------------------------------------------------- enrolment

/// Remembers a one-time token by its SHA-256, for `valid` from now.
pub async fn create_token(
    db: &mut PgConnection,
    token_hash: &[u8; 32],
    hostname: Option<&str>,
    created_by: Option<i32>,
    valid: Duration,
) -> Result<(), StoreError> {
    // Old tokens can enrol nobody; a month of them is kept for the operator.
    sqlx::query("delete from rack_token where expires < now() - interval '30 days'")
        .execute(&mut *db)
        .await?;
    sqlx::query(
        "insert into rack_token (token_hash, hostname, created_by, expires)
         values ($1, $2, $3, now() + make_interval(secs => $4))",
    )
    .bind(token_hash.as_slice())
    .bind(hostname)
    .bind(created_by)
    .bind(valid.as_secs_f64())
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// Uses a token up and gives the system_id of the rack called `hostname`.
///
/// A host that was enrolled before keeps its system_id; its older certificates end here. While it is not revoked, or a
/// VLAN still names it, only a token made for its name does that: any other would let its bearer take the rack's place. Inside the caller's
/// transaction: a certificate that cannot be made must not use the token up.
pub async fn enrol(
    db: &mut PgConnection,
    token_hash: &[u8; 32],
    hostname: &str,
) -> Result<Result<String, TokenRefusal>, StoreError> {
    // The condition and the write are one statement: of two racks with one token the second waits here and finds it used.
    let taken = sqlx::query(
        "update rack_token set used = now()
         where token_hash = $1 and used is null and expires > now()
           and (hostname = $2 or hostname is null
                and not exists (select from rack r where r.hostname = $2
                                and (r.revoked is null
                                     or exists (select from vlan v
                                                where r.system_id in (v.primary_rack, v.secondary_rack)))))",
    )
    .bind(token_hash.as_slice())
    .bind(hostname)
    .execute(&mut *db)
    .await?;
    if taken.rows_affected() == 0 {
        let found: Option<(bool, bool, bool)> = sqlx::query_as(
            "select used is not null, expires <= now(), hostname is null
             from rack_token where token_hash = $1",
        )
        .bind(token_hash.as_slice())
        .fetch_optional(&mut *db)
        .await?;
        return Ok(Err(match found {
            None => TokenRefusal::Unknown,
            Some((true, _, _)) => TokenRefusal::Used,
            Some((_, true, _)) => TokenRefusal::Expired,
            Some((_, _, false)) => TokenRefusal::OtherHost,
            Some((_, _, true)) => TokenRefusal::Enrolled,
        }));
    }
    let known: Option<String> =
        sqlx::query_scalar("select system_id from rack where hostname = $1 for update")
            .bind(hostname)
            .fetch_optional(&mut *db)
            .await?;
    let system_id = match known {
        Some(system_id) => {
            revoke_certificates(db, &system_id).await?;
            sqlx::query("update rack set revoked = null where system_id = $1")
                .bind(&system_id)
                .execute(&mut *db)
                .await?;
            system_id
        }
        None => insert(db, hostname).await?,
    };
    sqlx::query("update rack_token set used_by = $2 where token_hash = $1")
        .bind(token_hash.as_slice())
        .bind(&system_id)
        .execute(&mut *db)
        .await?;
    feed::changed(db, Kind::Rack, &system_id).await?;
    Ok(Ok(system_id))
}

/// A new row under an id that no rack and no machine has.
async fn insert(db: &mut PgConnection, hostname: &str) -> Result<String, StoreError> {
    for _ in 0..SYSTEM_ID_TRIES {
        let system_id = model::SystemId::from_random(rand::rng().random()).to_string();
        let inserted = sqlx::query(
            "insert into rack (system_id, hostname) select $1, $2
             where not exists (select from machine where system_id = $1)
             on conflict (system_id) do nothing",
        )
        .bind(&system_id)
        .bind(hostname)
        .execute(&mut *db)
        .await?;
        if inserted.rows_affected() == 1 {
            return Ok(system_id);
        }
    }
    Err(StoreError::Corrupt {
        what: "list of rack ids (no free one found)",
    })
}

/// Two billion ids: sixteen taken ones in a row do not happen by chance.
const SYSTEM_ID_TRIES: usize = 16;

// ---------------------------------------------------------------- certificates

/// Records a certificate before it is handed out. `false`: the rack has too many that have not ended.
pub async fn add_certificate(
    db: &mut PgConnection,
    system_id: &str,
    serial: &[u8],
    not_after: OffsetDateTime,
) -> Result<bool, StoreError> {
    sqlx::query("delete from rack_certificate where rack = $1 and not_after < now()")
        .bind(system_id)
        .execute(&mut *db)
        .await?;
    let added = sqlx::query(
        "insert into rack_certificate (serial, rack, not_after)
         select $1, $2, $3
         where (select count(*) from rack_certificate where rack = $2 and revoked is null) < $4",
    )
    .bind(serial)
    .bind(system_id)
    .bind(not_after)
    .bind(CERTIFICATES_MAX)
    .execute(&mut *db)
    .await?;
    Ok(added.rows_affected() == 1)
}

/// Whether this certificate still stands for this rack.
pub async fn is_certificate_valid(
    db: impl PgExecutor<'_>,
    system_id: &str,
    serial: &[u8],
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (
             select from rack_certificate c join rack r on r.system_id = c.rack
             where c.serial = $1 and c.rack = $2 and c.revoked is null and r.revoked is null
               and c.not_after > now())",
    )
    .bind(serial)
    .bind(system_id)
    .fetch_one(db)
    .await?)
}

/// Which of these (serial, rack) pairs stand no longer.
pub async fn invalid_certificates(
    db: impl PgExecutor<'_>,
    serials: &[Vec<u8>],
) -> Result<Vec<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar(
        "select serial from unnest($1::bytea[]) as asked(serial)
         where not exists (
             select from rack_certificate c join rack r on r.system_id = c.rack
             where c.serial = asked.serial and c.revoked is null and r.revoked is null
               and c.not_after > now())",
    )
    .bind(serials)
    .fetch_all(db)
    .await?)
}

/// Ends a rack's certificates; its links close within a second of the commit.
pub async fn revoke(db: &mut PgConnection, system_id: &str) -> Result<(), StoreError> {
    let done =
        sqlx::query("update rack set revoked = coalesce(revoked, now()) where system_id = $1")
            .bind(system_id)
            .execute(&mut *db)
            .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::not_found("rack", system_id));
    }
    revoke_certificates(db, system_id).await?;
    feed::changed(db, Kind::Rack, system_id).await
}

async fn revoke_certificates(db: &mut PgConnection, system_id: &str) -> Result<(), StoreError> {
    sqlx::query("update rack_certificate set revoked = now() where rack = $1 and revoked is null")
        .bind(system_id)
        .execute(&mut *db)
        .await?;
    sqlx::query("select pg_notify($1, $2)")
        .bind(REVOKED_CHANNEL)
        .bind(system_id)
        .execute(&mut *db)
        .await?;
    Ok(())
}

// ---------------------------------------------------------------- hello

/// Records what a rack says of itself. `true`: its interfaces changed (the feed has been told).
pub async fn hello(
    db: &mut PgConnection,
    system_id: &str,
    version: &str,
    interfaces: &[Interface],
) -> Result<bool, StoreError> {
    // Locks the row, so that two links of one rack do not interleave their interfaces.
    let done = sqlx::query("update rack set version = $2, last_seen = now() where system_id = $1")
        .bind(system_id)
        .bind(version)
        .execute(&mut *db)
        .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::not_found("rack", system_id));
    }
    let known = self::interfaces(&mut *db, system_id).await?;
    let mut sorted = interfaces.to_vec();
    sorted.sort_by(|a, b| a.name.cmp(&b.name));
    sorted.dedup_by(|a, b| a.name == b.name);
    if known == sorted {
        return Ok(false);
    }
    sqlx::query("delete from rack_interface where rack = $1")
        .bind(system_id)
        .execute(&mut *db)
        .await?;
    for interface in &sorted {
        sqlx::query(
            "insert into rack_interface (rack, name, mac, addresses) values ($1, $2, $3, $4)",
        )
        .bind(system_id)
        .bind(&interface.name)
        .bind(interface.mac)
        .bind(&interface.addresses)
        .execute(&mut *db)
        .await?;
    }
    feed::changed(db, Kind::Rack, system_id).await?;
    Ok(true)
}

/// A rack's interfaces, by name in byte order.
pub async fn interfaces(
    db: impl PgExecutor<'_>,
    system_id: &str,
) -> Result<Vec<Interface>, StoreError> {
    Ok(sqlx::query_as(
        "select name, mac, addresses from rack_interface where rack = $1 order by name collate \"C\"",
    )
    .bind(system_id)
    .fetch_all(db)
    .await?)
}

/// Every rack's interfaces, by rack and name.
pub async fn all_interfaces(
    db: impl PgExecutor<'_>,
) -> Result<HashMap<String, Vec<Interface>>, StoreError> {
    #[derive(sqlx::FromRow)]
    struct Row {
        rack: String,
        #[sqlx(flatten)]
        interface: Interface,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select rack, name, mac, addresses from rack_interface order by rack, name collate \"C\"",
    )
    .fetch_all(db)
    .await?;
    let mut racks: HashMap<String, Vec<Interface>> = HashMap::new();
    for row in rows {
        racks.entry(row.rack).or_default().push(row.interface);
    }
    Ok(racks)
}

/// An address of a rack's own inside this span, and the rack's hostname.
pub async fn address_within(
    db: impl PgExecutor<'_>,
    first: IpAddr,
    last: IpAddr,
) -> Result<Option<(IpAddr, String)>, StoreError> {
    Ok(sqlx::query_as(
        "select host(a)::inet, r.hostname
         from rack r join rack_interface i on i.rack = r.system_id, unnest(i.addresses) a
         where host(a)::inet between $1 and $2 order by 1 limit 1",
    )
    .bind(first)
    .bind(last)
    .fetch_optional(db)
    .await?)
}

/// The racks that have an address in a subnet of each VLAN, from which DHCP could serve it: (VLAN, system_id). Not those
/// whose certificates ended.
pub async fn connected(db: impl PgExecutor<'_>) -> Result<Vec<(i32, String)>, StoreError> {
    Ok(sqlx::query_as(
        "select distinct s.vlan_id, r.system_id
         from rack r join rack_interface i on i.rack = r.system_id, unnest(i.addresses) a, subnet s
         where r.revoked is null and family(a) = 4 and host(a)::inet <<= s.cidr order by 1, 2",
    )
    .fetch_all(db)
    .await?)
}

/// Marks racks as alive; called by the link for all it holds, not per heartbeat.
pub async fn seen(db: impl PgExecutor<'_>, system_ids: &[String]) -> Result<(), StoreError> {
    sqlx::query("update rack set last_seen = now() where system_id = any($1)")
        .bind(system_ids)
        .execute(db)
        .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn a_token_enrols_once_and_says_why_not_again() {
        let db = testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        let hour = Duration::from_secs(3600);
        create_token(&mut tx, &[1; 32], None, None, hour)
            .await
            .unwrap();
        create_token(&mut tx, &[2; 32], Some("r2"), None, hour)
            .await
            .unwrap();
        create_token(&mut tx, &[3; 32], None, None, Duration::ZERO)
            .await
            .unwrap();
        let first = enrol(&mut tx, &[1; 32], "r1").await.unwrap().unwrap();
        assert_eq!(first.len(), 6);
        for (hash, host, refusal) in [
            ([1; 32], "r1", TokenRefusal::Used),
            ([2; 32], "r1", TokenRefusal::OtherHost),
            ([3; 32], "r1", TokenRefusal::Expired),
            ([9; 32], "r1", TokenRefusal::Unknown),
        ] {
            assert_eq!(enrol(&mut tx, &hash, host).await.unwrap(), Err(refusal));
        }
    }

    #[tokio::test]
    async fn the_same_host_keeps_its_id_and_loses_its_old_certificates() {
        let db = testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        let hour = Duration::from_secs(3600);
        create_token(&mut tx, &[1; 32], None, None, hour)
            .await
            .unwrap();
        create_token(&mut tx, &[2; 32], Some("r1"), None, hour)
            .await
            .unwrap();
        let id = enrol(&mut tx, &[1; 32], "r1").await.unwrap().unwrap();
        let end = OffsetDateTime::now_utc() + hour;
        assert!(add_certificate(&mut tx, &id, b"one", end).await.unwrap());
        assert!(is_certificate_valid(&mut *tx, &id, b"one").await.unwrap());
        assert!(
            !is_certificate_valid(&mut *tx, "other", b"one")
                .await
                .unwrap()
        );
        assert_eq!(enrol(&mut tx, &[2; 32], "r1").await.unwrap().unwrap(), id);
        assert!(!is_certificate_valid(&mut *tx, &id, b"one").await.unwrap());
        assert!(add_certificate(&mut tx, &id, b"two", end).await.unwrap());
        let asked = [b"one".to_vec(), b"two".to_vec(), b"three".to_vec()];
        let mut invalid = invalid_certificates(&mut *tx, &asked).await.unwrap();
        invalid.sort();
        assert_eq!(invalid, [b"one".to_vec(), b"three".to_vec()]);
        revoke(&mut tx, &id).await.unwrap();
        assert!(!is_certificate_valid(&mut *tx, &id, b"two").await.unwrap());
    }

    #[tokio::test]
    async fn a_token_for_no_name_takes_no_enrolled_rack_over() {
        let db = testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        let hour = Duration::from_secs(3600);
        for hash in 1..=3 {
            create_token(&mut tx, &[hash; 32], None, None, hour)
                .await
                .unwrap();
        }
        create_token(&mut tx, &[4; 32], Some("r1"), None, hour)
            .await
            .unwrap();
        let id = enrol(&mut tx, &[1; 32], "r1").await.unwrap().unwrap();
        let end = OffsetDateTime::now_utc() + hour;
        assert!(add_certificate(&mut tx, &id, b"one", end).await.unwrap());
        assert_eq!(
            enrol(&mut tx, &[2; 32], "r1").await.unwrap(),
            Err(TokenRefusal::Enrolled)
        );
        assert!(is_certificate_valid(&mut *tx, &id, b"one").await.unwrap());
        // The refused token is not used up, and a token for the name does it.
        let other = enrol(&mut tx, &[2; 32], "r2").await.unwrap().unwrap();
        assert_ne!(other, id);
        assert_eq!(
            enrol(&mut tx, &[4; 32], "r1").await.unwrap(),
            Ok(id.clone())
        );
        // As does a revocation before it.
        revoke(&mut tx, &id).await.unwrap();
        assert_eq!(enrol(&mut tx, &[3; 32], "r1").await.unwrap(), Ok(id));
    }

    #[tokio::test]
    async fn a_token_for_no_name_takes_no_revoked_rack_that_a_vlan_names() {
        let db = testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        let hour = Duration::from_secs(3600);
        for (hash, name) in [(1, None), (2, None), (3, Some("r1"))] {
            create_token(&mut tx, &[hash; 32], name, None, hour)
                .await
                .unwrap();
        }
        let id = enrol(&mut tx, &[1; 32], "r1").await.unwrap().unwrap();
        sqlx::query("insert into fabric (id, name) overriding system value values (1, 'lab')")
            .execute(&mut *tx)
            .await
            .unwrap();
        for places in ["$1, null", "'other1', $1"] {
            let text = format!(
                "insert into vlan (fabric_id, vid, primary_rack, secondary_rack) values (1, 7, {places})"
            );
            revoke(&mut tx, &id).await.unwrap();
            sqlx::query(sqlx::AssertSqlSafe(
                "insert into rack (system_id, hostname) values ('other1', 'other1') on conflict do nothing"
                    .to_owned(),
            ))
            .execute(&mut *tx)
            .await
            .unwrap();
            sqlx::query(sqlx::AssertSqlSafe(text))
                .bind(&id)
                .execute(&mut *tx)
                .await
                .unwrap();
            assert_eq!(
                enrol(&mut tx, &[2; 32], "r1").await.unwrap(),
                Err(TokenRefusal::Enrolled),
                "{places}"
            );
            sqlx::query("delete from vlan")
                .execute(&mut *tx)
                .await
                .unwrap();
        }
        assert_eq!(enrol(&mut tx, &[2; 32], "r1").await.unwrap(), Ok(id));
    }

    #[tokio::test]
    async fn hello_reports_changed_interfaces_once() {
        let db = testing::database().await;
        let mut tx = db.pool.begin().await.unwrap();
        create_token(&mut tx, &[1; 32], None, None, Duration::from_secs(60))
            .await
            .unwrap();
        let id = enrol(&mut tx, &[1; 32], "r1").await.unwrap().unwrap();
        let eth = |name: &str, address: &str| Interface {
            name: name.into(),
            mac: Some(MacAddress::new([2, 0, 0, 0, 0, 1])),
            addresses: vec![address.parse().unwrap()],
        };
        let two = [eth("eth1", "10.1.0.2/24"), eth("eth0", "10.0.0.2/24")];
        assert!(hello(&mut tx, &id, "0.1", &two).await.unwrap());
        assert!(!hello(&mut tx, &id, "0.2", &two).await.unwrap());
        assert!(hello(&mut tx, &id, "0.2", &two[..1]).await.unwrap());
        assert_eq!(interfaces(&mut *tx, &id).await.unwrap(), two[..1]);
        assert_eq!(get(&mut *tx, &id).await.unwrap().version, "0.2");
    }
}
