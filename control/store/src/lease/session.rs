//! Racks' sessions: attach, heartbeat, and the wait after the database may have lost commits.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lease::region::{
    AttachDecision, HeartbeatDecision, HeartbeatFacts, SpoolSeen, Time, decide_attach,
    decide_heartbeat,
};
use lease::{
    AttachReply, Attachment, Block, BlockId, Epoch, HeartbeatReply, Row, SpoolId, TAKE_AWAY_GRACE,
    UNTIL,
};
use sqlx::{PgConnection, PgPool, Row as _};
use time::OffsetDateTime;

use crate::StoreError;
use crate::lease::{
    client_of_row, from_database, key_seq, optional_time, spool_id_of, to_database, unsigned,
    vlan_of,
};

/// How long only drains are taken once the database may have lost commits: every rack's `until` has passed then.
pub const HOLD: Duration = Duration::from_secs(UNTIL.as_secs() + TAKE_AWAY_GRACE.as_secs());
/// Epochs jump by this after a hold: above whatever the lost commits had counted to.
const EPOCH_JUMP: i64 = 1_000;

/// `attach`, one transaction: registers the spool, moves until, takes new epochs for the rack's blocks, gives up those it
/// should not have, takes those that wait for it, and tells it all. `seq`: the rack's newest.
pub async fn attach(
    pool: &PgPool,
    rack: &str,
    spool_id: SpoolId,
    seq: u64,
) -> Result<AttachReply, StoreError> {
    crate::again(|| attach_once(pool, rack, spool_id, seq)).await
}

async fn attach_once(
    pool: &PgPool,
    rack: &str,
    spool_id: SpoolId,
    seq: u64,
) -> Result<AttachReply, StoreError> {
    let mut tx = pool.begin().await?;
    let state = attach_state(&mut tx, rack, spool_id).await?;
    let now = state.now;
    let quarantine = match decide_attach(state.hold, state.known, state.attached_before, seq, now) {
        AttachDecision::Wait => return Ok(AttachReply::Wait),
        AttachDecision::Behind => return Ok(AttachReply::Behind),
        AttachDecision::Attach { quarantine } => quarantine,
    };
    sqlx::query("select from lease_block where owner = $1 or (owner is null and intended = $1) order by id for update")
        .bind(rack)
        .execute(&mut *tx)
        .await?;
    if quarantine {
        tracing::warn!(
            rack,
            "a new spool: every address of the rack's blocks is quarantined"
        );
        sqlx::query(
            "update lease_block
             set quarantined_until = greatest(quarantined_until, now() + make_interval(secs => 2 * (
                 select greatest((select max(lease_secs) from subnet), max(longest_lease_secs))
                 from lease_block where owner = $1)))
             where owner = $1",
        )
        .bind(rack)
        .execute(&mut *tx)
        .await?;
    }
    // An attach is as good as a yield: the rack has forgotten everything, and nothing of it is in its spool.
    sqlx::query(
        "update lease_block set owner = case when intended = $1 then $1 end, epoch = epoch + 1
         where owner = $1 or (owner is null and intended = $1)",
    )
    .bind(rack)
    .execute(&mut *tx)
    .await?;
    let until = state.until.max(now.plus(UNTIL));
    register(&mut tx, rack, spool_id, seq, until).await?;
    let blocks = blocks_of(&mut tx, rack).await?;
    let rows = rows_of(&mut tx, &blocks, now).await?;
    tx.commit().await?;
    let until = duration_to(until, now);
    Ok(AttachReply::Attached(Attachment {
        until,
        blocks: blocks.into_iter().map(|(block, _)| block).collect(),
        rows,
    }))
}

struct AttachState {
    now: Time,
    hold: Option<Time>,
    known: Option<SpoolSeen>,
    attached_before: bool,
    until: Time,
}

/// Locks the rack's session (and makes it, if this is the first).
async fn attach_state(
    db: &mut PgConnection,
    rack: &str,
    spool_id: SpoolId,
) -> Result<AttachState, StoreError> {
    sqlx::query("insert into rack_session (rack, until) values ($1, now()) on conflict do nothing")
        .bind(rack)
        .execute(&mut *db)
        .await?;
    let session = sqlx::query(
        "select now() as now, s.spool_id, s.until, (select case when hold_until is not null then greatest(hold_until, now() + interval '1 s') end
                 from lease_database) as hold_until
         from rack_session s where s.rack = $1 for update",
    )
    .bind(rack)
    .fetch_one(&mut *db)
    .await?;
    let current: Option<Vec<u8>> = session.try_get("spool_id")?;
    let seen: Option<i64> = sqlx::query_scalar(
        "select greatest(s.floor, (select max(seq) from lease_batch b where b.rack = $1 and b.spool_id = $2))
         from rack_spool s where s.rack = $1 and s.spool_id = $2",
    )
    .bind(rack)
    .bind(&spool_id.0[..])
    .fetch_optional(&mut *db)
    .await?;
    let hold: Option<OffsetDateTime> = session.try_get("hold_until")?;
    let is_current = current.as_deref() == Some(&spool_id.0[..]);
    Ok(AttachState {
        now: from_database(session.try_get("now")?),
        hold: hold.map(from_database),
        known: seen.map(|seq| SpoolSeen {
            current: is_current,
            seq: unsigned(seq),
        }),
        attached_before: current.is_some(),
        until: from_database(session.try_get("until")?),
    })
}

/// Everything of earlier sessions is fenced by the new epochs: their keys can go, and their seqs are below the floor.
async fn register(
    db: &mut PgConnection,
    rack: &str,
    spool_id: SpoolId,
    seq: u64,
    until: Time,
) -> Result<(), StoreError> {
    sqlx::query(
        "update rack_session set spool_id = $2, until = $3, attached = now() where rack = $1",
    )
    .bind(rack)
    .bind(&spool_id.0[..])
    .bind(to_database(until))
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "insert into rack_spool (rack, spool_id, floor) values ($1, $2, $3)
         on conflict (rack, spool_id) do update set floor = excluded.floor",
    )
    .bind(rack)
    .bind(&spool_id.0[..])
    .bind(key_seq(seq))
    .execute(&mut *db)
    .await?;
    sqlx::query("delete from lease_batch where rack = $1")
        .bind(rack)
        .execute(db)
        .await?;
    Ok(())
}

/// The rack's blocks, each with the end of its quarantine.
async fn blocks_of(db: &mut PgConnection, rack: &str) -> Result<Vec<(Block, Time)>, StoreError> {
    let rows = sqlx::query(
        "select id, epoch, vlan_id, subnet_id, first, count, quarantined_until from lease_block
         where owner = $1 and subnet_id is not null order by id",
    )
    .bind(rack)
    .fetch_all(db)
    .await?;
    rows.iter()
        .map(|row| {
            let block = Block {
                id: BlockId(unsigned(row.try_get("id")?)),
                epoch: Epoch(unsigned(row.try_get("epoch")?)),
                vlan: vlan_of(row.try_get("vlan_id")?),
                subnet: vlan_of(row.try_get("subnet_id")?),
                first: row.try_get("first")?,
                count: u32::try_from(row.try_get::<i32, _>("count")?).unwrap_or(0),
            };
            Ok((block, optional_time(row.try_get("quarantined_until")?)))
        })
        .collect()
}

/// Every address of the blocks that has a binding or rests.
async fn rows_of(
    db: &mut PgConnection,
    blocks: &[(Block, Time)],
    now: Time,
) -> Result<Vec<Row>, StoreError> {
    let ids: Vec<i64> = blocks
        .iter()
        .map(|(block, _)| crate::lease::block_id(block.id))
        .collect();
    // By block, through `offset 0`: what a planner without statistics, as after a crash, makes of the plain join looks at
    // every block for every lease.
    let found = sqlx::query(
        "select l.address, b.id as block_id, l.vlan_id, l.client_kind, l.client_key, l.ends, l.quarantined_until, l.released
         from lease_block b
         cross join lateral (
             select * from lease
             where address between b.first and b.first + (b.count - 1)
               and (client_kind is not null or quarantined_until > now())
             offset 0) l
         where b.id = any($1) order by l.address",
    )
    .bind(&ids)
    .fetch_all(db)
    .await?;
    let mut rows = Vec::with_capacity(found.len());
    for row in &found {
        let end = from_database(row.try_get("ends")?);
        rows.push(Row {
            block: BlockId(unsigned(row.try_get("block_id")?)),
            address: row.try_get("address")?,
            client: client_of_row(row)?,
            remaining_ms: end.micros_since(now).div_euclid(1_000),
            quarantine: duration_to(optional_time(row.try_get("quarantined_until")?), now),
            released: row.try_get("released")?,
        });
    }
    // A resting block is told address by address: the rack knows quarantines of addresses only.
    for (block, until) in blocks.iter().filter(|(_, until)| *until > now) {
        let rest = duration_to(*until, now);
        for address in addresses_of(block) {
            match rows.binary_search_by(|row| row.address.cmp(&address)) {
                Ok(index) => rows[index].quarantine = rows[index].quarantine.max(rest),
                Err(index) => rows.insert(
                    index,
                    Row {
                        block: block.id,
                        address,
                        client: None,
                        remaining_ms: 0,
                        quarantine: rest,
                        released: false,
                    },
                ),
            }
        }
    }
    Ok(rows)
}

fn addresses_of(block: &Block) -> Vec<IpAddr> {
    match block.first {
        IpAddr::V4(first) => {
            let first = u32::from(first);
            (0..block.count)
                .map(|n| Ipv4Addr::from(first.saturating_add(n)).into())
                .collect()
        }
        // Ranges of IPv6 are not cut yet.
        IpAddr::V6(_) => Vec::new(),
    }
}

fn duration_to(end: Time, now: Time) -> Duration {
    Duration::from_micros(u64::try_from(end.micros_since(now)).unwrap_or(0))
}

/// `heartbeat`: moves until, if the rack sees its blocks as the database does.
pub async fn heartbeat(
    pool: &PgPool,
    rack: &str,
    spool_id: SpoolId,
    digest: &[u8; 32],
) -> Result<HeartbeatReply, StoreError> {
    crate::again(|| heartbeat_once(pool, rack, spool_id, digest)).await
}

async fn heartbeat_once(
    pool: &PgPool,
    rack: &str,
    spool_id: SpoolId,
    digest: &[u8; 32],
) -> Result<HeartbeatReply, StoreError> {
    let mut tx = pool.begin().await?;
    // Whoever takes blocks from a rack locks its session first: they stay as they are until we commit.
    let session = sqlx::query(
        "select s.spool_id, s.until from rack_session s where s.rack = $1 and s.spool_id is not null for update",
    )
    .bind(rack)
    .fetch_optional(&mut *tx)
    .await?;
    let session = match session {
        Some(row) => {
            let id: Vec<u8> = row.try_get("spool_id")?;
            Some((spool_id_of(&id)?, from_database(row.try_get("until")?)))
        }
        None => None,
    };
    let facts = sqlx::query(
        "select now() as now, (select case when hold_until is not null then greatest(hold_until, now() + interval '1 s') end
                 from lease_database) as hold_until,
                exists (select from lease_block where owner = $1 and intended is distinct from $1)
                or exists (select from lease_block where owner is null and intended = $1) as pending",
    )
    .bind(rack)
    .fetch_one(&mut *tx)
    .await?;
    let pairs: Vec<(i64, i64)> =
        sqlx::query_as("select id, epoch from lease_block where owner = $1")
            .bind(rack)
            .fetch_all(&mut *tx)
            .await?;
    let pairs = pairs
        .into_iter()
        .map(|(id, epoch)| (BlockId(unsigned(id)), Epoch(unsigned(epoch))));
    let hold: Option<OffsetDateTime> = facts.try_get("hold_until")?;
    let now = from_database(facts.try_get("now")?);
    let ours = lease::digest(pairs);
    let judged = HeartbeatFacts {
        hold: hold.map(from_database),
        session,
        digest: &ours,
        pending: facts.try_get("pending")?,
    };
    Ok(match decide_heartbeat(judged, spool_id, digest, now) {
        HeartbeatDecision::Wait => HeartbeatReply::Wait,
        HeartbeatDecision::Attach => HeartbeatReply::Attach,
        HeartbeatDecision::Until(until) => {
            sqlx::query("update rack_session set until = $2 where rack = $1")
                .bind(rack)
                .bind(to_database(until))
                .execute(&mut *tx)
                .await?;
            tx.commit().await?;
            HeartbeatReply::Until(duration_to(until, now))
        }
    })
}

/// The operator says that this rack is gone for good and serves nobody: its blocks are free at once. To be used only when
/// it is switched off, since nothing else keeps it from serving until its `until`.
pub async fn forget_rack(db: &mut PgConnection, rack: &str) -> Result<(), StoreError> {
    sqlx::query("select from rack_session where rack = $1 for update")
        .bind(rack)
        .execute(&mut *db)
        .await?;
    sqlx::query("update lease_block set owner = null, epoch = epoch + 1 where owner = $1")
        .bind(rack)
        .execute(&mut *db)
        .await?;
    sqlx::query("update rack_session set until = now() where rack = $1")
        .bind(rack)
        .execute(db)
        .await?;
    Ok(())
}

// ---------------------------------------------------------------- the database's identity

/// Names the database that answers, for the hello and to notice a promotion or a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DatabaseIdentity {
    pub system: u64,
    pub timeline: u32,
}

/// Reads the identity. If it is another than the last seen (by any region process), commits may be lost: a hold begins.
/// To be called when a region process starts, and after it lost its database.
pub async fn check_database(pool: &PgPool) -> Result<DatabaseIdentity, StoreError> {
    let mut tx = pool.begin().await?;
    // The timeline that is written now; the control file's may lag behind a promotion.
    let (system, timeline): (i64, String) = sqlx::query_as(
        "select system_identifier, substr(pg_walfile_name(pg_current_wal_insert_lsn()), 1, 8)
         from pg_control_system()",
    )
    .fetch_one(&mut *tx)
    .await?;
    let timeline =
        u32::from_str_radix(&timeline, 16).map_err(|_| StoreError::Corrupt { what: "timeline" })?;
    let known: Option<(i64, i32)> =
        sqlx::query_as("select system_identifier, timeline from lease_database for update")
            .fetch_optional(&mut *tx)
            .await?;
    let current = (system, timeline.cast_signed());
    if known != Some(current) {
        let hold = known.map(|_| i64::try_from(HOLD.as_secs()).unwrap_or(i64::MAX));
        if hold.is_some() {
            tracing::error!(
                ?known,
                ?current,
                "the database was promoted or restored and may have lost commits: for {} hours racks may only deliver",
                HOLD.as_secs() / 3600
            );
        }
        sqlx::query(
            "insert into lease_database (system_identifier, timeline) values ($1, $2)
             on conflict (one) do update set system_identifier = $1, timeline = $2,
                 hold_until = greatest(lease_database.hold_until, now() + make_interval(secs => $3))",
        )
        .bind(current.0)
        .bind(current.1)
        .bind(hold.map(|secs| secs as f64))
        .execute(&mut *tx)
        .await?;
    }
    tx.commit().await?;
    Ok(DatabaseIdentity {
        system: system.cast_unsigned(),
        timeline,
    })
}

/// Ends a hold: when it has run out (housekeeping), or because the operator knows that nothing was lost or that no rack
/// can still hold an `until` (`now`). Every epoch jumps, so all racks attach.
pub async fn end_hold(db: &mut PgConnection, now: bool) -> Result<bool, StoreError> {
    let ended = sqlx::query("update lease_database set hold_until = null where hold_until <= now() or ($1 and hold_until is not null)")
        .bind(now)
        .execute(&mut *db)
        .await?;
    if ended.rows_affected() == 0 {
        return Ok(false);
    }
    sqlx::query("update lease_block set epoch = epoch + $1")
        .bind(EPOCH_JUMP)
        .execute(db)
        .await?;
    Ok(true)
}
