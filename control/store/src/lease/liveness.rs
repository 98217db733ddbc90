//! Which racks are believed alive, for the racks beside them on a VLAN: as all region processes see it together.
//!
//! A process writes down the racks it hears ([`heard`]); any process concludes from all rows ([`conclude`]). Rows of a process
//! that is gone go stale, so that a rack which died with it is noticed by the others. A belief decides who answers a client,
//! never who may hold an address.

use std::time::Duration;

use sqlx::PgConnection;
use uuid::Uuid;

use crate::StoreError;
use crate::feed::{self, Kind};

/// A row that was not renewed for this long says nothing.
pub const STALE_AFTER: Duration = Duration::from_secs(4);

/// The caller's transaction need not be on disk when it commits.
pub async fn not_durably(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("set local synchronous_commit = off")
        .execute(db)
        .await?;
    Ok(())
}

/// The racks that share a VLAN with another: only of these does anybody need to know quickly.
pub async fn sharing_racks(db: &mut PgConnection) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "select distinct rack from vlan v cross join unnest(array[v.primary_rack, v.secondary_rack]) as rack
         where v.dhcp_on and v.primary_rack <> v.secondary_rack",
    )
    .fetch_all(db)
    .await?)
}

/// Says that this process hears exactly these of the racks.
pub async fn heard(
    db: &mut PgConnection,
    process: Uuid,
    racks: &[String],
) -> Result<(), StoreError> {
    sqlx::query("delete from rack_link where process = $1 and rack <> all($2)")
        .bind(process)
        .bind(racks)
        .execute(&mut *db)
        .await?;
    // A rack that was deleted meanwhile is nobody's peer.
    sqlx::query(
        "insert into rack_link (rack, process) select system_id, $1 from rack where system_id = any($2)
         on conflict (rack, process) do update set seen = clock_timestamp()",
    )
    .bind(process)
    .bind(racks)
    .execute(db)
    .await?;
    Ok(())
}

/// Of these racks, those that are believed alive.
pub async fn believed(db: &mut PgConnection, racks: &[String]) -> Result<Vec<String>, StoreError> {
    Ok(
        sqlx::query_scalar("select rack from rack_liveness where alive and rack = any($1)")
            .bind(racks)
            .fetch_all(db)
            .await?,
    )
}

/// Compares what is believed of the racks that share VLANs with what all processes hear, and tells the feed of what changed.
/// Gives the racks of which something else is believed now. `may_bury`: false for a process that has only just started, since
/// racks may still be on their way to it.
pub async fn conclude(
    db: &mut PgConnection,
    may_bury: bool,
) -> Result<Vec<(String, bool)>, StoreError> {
    let changed: Vec<(String, bool)> = sqlx::query_as(
        "with sharing as (
             select distinct r.system_id as rack from vlan v
             join rack r on r.system_id in (v.primary_rack, v.secondary_rack)
             where v.dhcp_on and v.primary_rack <> v.secondary_rack
         ), now_seen as (
             select s.rack, exists (
                 select from rack_link l
                 where l.rack = s.rack and l.seen > clock_timestamp() - make_interval(secs => $1)) as alive
             from sharing s
         )
         insert into rack_liveness as known (rack, alive) select rack, alive from now_seen n
         where not exists (select from rack_liveness k where k.rack = n.rack and k.alive = n.alive)
           and (n.alive or $2)
         order by rack
         on conflict (rack) do update set alive = excluded.alive, since = now()
             where known.alive <> excluded.alive
         returning known.rack, known.alive",
    )
    .bind(STALE_AFTER.as_secs_f64())
    .bind(may_bury)
    .fetch_all(&mut *db)
    .await?;
    if changed.is_empty() {
        return Ok(changed);
    }
    let racks: Vec<&str> = changed.iter().map(|(rack, _)| rack.as_str()).collect();
    let vlans: Vec<i32> = sqlx::query_scalar(
        "select id from vlan where dhcp_on and (primary_rack = any($1) or secondary_rack = any($1)) order by id",
    )
    .bind(&racks)
    .fetch_all(&mut *db)
    .await?;
    for vlan in vlans {
        feed::changed(db, Kind::Link, &vlan.to_string()).await?;
    }
    // What is relayed into them is served by the same racks.
    let relayed: Vec<i32> = sqlx::query_scalar(
        "select v.id from vlan v join vlan via on via.id = v.relay_vlan
         where not v.dhcp_on and via.dhcp_on
           and (via.primary_rack = any($1) or via.secondary_rack = any($1)) order by v.id",
    )
    .bind(&racks)
    .fetch_all(&mut *db)
    .await?;
    for vlan in relayed {
        feed::changed(db, Kind::Link, &vlan.to_string()).await?;
    }
    Ok(changed)
}

/// A process that ends hears nobody any more.
pub async fn forget_process(db: &mut PgConnection, process: Uuid) -> Result<(), StoreError> {
    sqlx::query("delete from rack_link where process = $1")
        .bind(process)
        .execute(db)
        .await?;
    Ok(())
}
