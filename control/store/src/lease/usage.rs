//! How full the dynamic ranges are: counted when somebody asks, and twice a minute by housekeeping, which tells of
//! thresholds that are crossed.

use std::net::IpAddr;

use model::EventType;
use model::dhcp::UsageLevel;
use sqlx::{FromRow, PgConnection, PgPool};

use crate::event::{self, NewEvent};
use crate::{StoreError, lease::history};

/// Between two counts of housekeeping.
const EVERY: &str = "30 seconds";

/// What a rack has not said again for so long is not so any more.
const CLAIMED_FOR: &str = "2 minutes";

/// A dynamic range and what became of its addresses.
#[derive(Clone, Debug, PartialEq, Eq, FromRow)]
pub struct Usage {
    pub range_id: i32,
    pub subnet_id: i32,
    pub start_ip: IpAddr,
    pub end_ip: IpAddr,
    /// Without what is excluded.
    pub total: i64,
    /// Cut into blocks; more of a large range is as it fills.
    pub dealt: i64,
    pub bound: i64,
    /// Declined, or quarantined with their block.
    pub resting: i64,
    /// Dealt to nobody by their rack, because some host answers for them.
    pub claimed: i64,
    /// Ended, and not yet somebody else's: free when it is wanted.
    pub ended: i64,
}

impl Usage {
    pub fn taken(&self) -> i64 {
        self.bound + self.resting + self.claimed
    }

    pub fn free(&self) -> i64 {
        (self.total - self.taken()).max(0)
    }

    /// In hundredths of a percent.
    pub fn basis_points(&self) -> i64 {
        if self.total == 0 {
            return 0;
        }
        self.taken().saturating_mul(10_000) / self.total
    }
}

/// Every dynamic range, by subnet and address, counted now.
pub async fn usage(db: &mut PgConnection) -> Result<Vec<Usage>, StoreError> {
    Ok(sqlx::query_as(
        "select id as range_id, subnet_id, start_ip, end_ip, total, dealt, bound, ended,
                least(resting + resting_blocks, total - bound) as resting,
                least(claimed, greatest(total - bound - resting - resting_blocks, 0)) as claimed
         from (
             select r.id, r.subnet_id, r.start_ip, r.end_ip, r.total, b.dealt, b.resting_blocks, b.claimed, l.resting, l.ended,
                    least(l.bound, r.total) as bound
             from (
                 select r.id, r.subnet_id, r.start_ip, r.end_ip,
                        r.end_ip - r.start_ip + 1 - coalesce((
                            select sum(x.end_ip - x.start_ip + 1)::bigint from iprange x
                            where x.subnet_id = r.subnet_id and x.type = 'reserved'
                              and x.start_ip >= r.start_ip and x.end_ip <= r.end_ip), 0) as total
                 from iprange r where r.type = 'dynamic' and family(r.start_ip) = 4
             ) r
             cross join lateral (
                 select coalesce(sum(b.count), 0)::bigint as dealt,
                        coalesce(sum(b.count) filter (where b.quarantined_until > now()), 0)::bigint as resting_blocks,
                        coalesce(sum(b.claimed) filter (where b.owner is not null and b.claimed_at > now() - $1::interval), 0)::bigint
                            as claimed
                 from lease_block b where b.range_id = r.id
             ) b
             cross join lateral (
                 select count(*) filter (where l.client_kind is not null and l.ends > now()) as bound,
                        count(*) filter (where l.quarantined_until > now()
                                           and (l.client_kind is null or l.ends <= now())) as resting,
                        count(*) filter (where l.client_kind is not null and l.ends <= now()
                                           and coalesce(l.quarantined_until <= now(), true)) as ended
                 from lease l where l.address >= r.start_ip and l.address <= r.end_ip
             ) l
         ) as counted
         order by subnet_id, start_ip",
    )
    .bind(CLAIMED_FOR)
    .fetch_all(db)
    .await?)
}

/// What a rack says of its own blocks: how many addresses of each some host answers for. Of the others it is none.
pub async fn note_claimed(
    db: &mut PgConnection,
    rack: &str,
    blocks: &[(i64, i32)],
) -> Result<(), StoreError> {
    let (ids, counts): (Vec<i64>, Vec<i32>) = blocks.iter().copied().unzip();
    sqlx::query(
        "update lease_block b set claimed = n.claimed, claimed_at = now()
         from (select o.id, least(coalesce(s.claimed, 0), o.count) as claimed
               from lease_block o left join unnest($2::bigint[], $3::int[]) as s(id, claimed) on s.id = o.id
               where o.owner = $1 and (o.claimed > 0 or s.claimed > 0)
               order by o.id for update of o) n
         where b.id = n.id",
    )
    .bind(rack)
    .bind(ids)
    .bind(counts)
    .execute(db)
    .await?;
    Ok(())
}

/// A range as housekeeping last saw it; for metrics.
#[derive(Clone, Debug, FromRow)]
pub struct Seen {
    pub range_id: i32,
    pub start_ip: IpAddr,
    pub end_ip: IpAddr,
    pub total: i64,
    pub bound: i64,
    pub resting: i64,
}

pub async fn seen(db: &mut PgConnection) -> Result<Vec<Seen>, StoreError> {
    Ok(sqlx::query_as(
        "select u.range_id, r.start_ip, r.end_ip, u.total, u.bound, u.resting
         from range_usage u join iprange r on r.id = u.range_id order by u.range_id",
    )
    .fetch_all(db)
    .await?)
}

/// Counts, tells of thresholds, and sweeps the history: by one process, twice a minute.
pub(super) async fn note(pool: &PgPool) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    let is_due: bool = sqlx::query_scalar(
        "select pg_try_advisory_xact_lock(hashtextextended('muster range usage', 0))
                and coalesce((select max(at) from range_usage) < now() - $1::interval, true)",
    )
    .bind(EVERY)
    .fetch_one(&mut *tx)
    .await?;
    if !is_due {
        return Ok(());
    }
    note_now(&mut tx).await?;
    history::forget(&mut tx).await?;
    tx.commit().await?;
    Ok(())
}

/// As [`note`], without waiting for its time.
pub async fn note_now(db: &mut PgConnection) -> Result<(), StoreError> {
    let usage = usage(db).await?;
    let told: Vec<(i32, i16)> = sqlx::query_as("select range_id, level from range_usage")
        .fetch_all(&mut *db)
        .await?;
    let mut levels = Vec::with_capacity(usage.len());
    let mut events = Vec::new();
    for range in &usage {
        let before = told
            .iter()
            .find(|(id, _)| *id == range.range_id)
            .and_then(|(_, level)| UsageLevel::from_percent(*level))
            .unwrap_or_default();
        let level = before.next(range.taken().unsigned_abs(), range.total.unsigned_abs());
        levels.push(i16::from(level.percent()));
        if level != before {
            events.push(event_of(range, before, level));
        }
    }
    let column = |of: fn(&Usage) -> i64| usage.iter().map(of).collect::<Vec<i64>>();
    sqlx::query(
        "insert into range_usage (range_id, total, bound, resting, level)
         select * from unnest($1::int[], $2::bigint[], $3::bigint[], $4::bigint[], $5::smallint[])
         on conflict (range_id) do update set
             at = now(), total = excluded.total, bound = excluded.bound, resting = excluded.resting,
             level = excluded.level",
    )
    .bind(usage.iter().map(|range| range.range_id).collect::<Vec<_>>())
    .bind(column(|range| range.total))
    .bind(column(|range| range.bound))
    .bind(column(|range| range.resting + range.claimed))
    .bind(levels)
    .execute(&mut *db)
    .await?;
    event::record_all(db, &events).await
}

fn event_of(range: &Usage, before: UsageLevel, level: UsageLevel) -> NewEvent {
    let kind = match level {
        _ if level < before => EventType::RangeEased,
        UsageLevel::NearlyFull => EventType::RangeNearlyFull,
        UsageLevel::Filling | UsageLevel::Normal => EventType::RangeFilling,
    };
    let Usage {
        start_ip,
        end_ip,
        total,
        resting,
        claimed,
        ..
    } = range;
    NewEvent::new(kind).text(format!(
        "Range {start_ip} to {end_ip}: {} of {total} addresses in use ({}.{:02} %), of them {} resting",
        range.taken(),
        range.basis_points() / 100,
        range.basis_points() % 100,
        resting + claimed,
    ))
}
