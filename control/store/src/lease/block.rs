//! Blocks: how ranges are cut, who should own which, and when one changes hands.
//!
//! A block has an `owner`, who may grant from it, and an `intended` owner. Nothing here takes a block from a rack that may
//! be serving it: the owner gives it up when it attaches (its heartbeats say "attach" once the two differ), or by a yield, or
//! it is taken 60 s after the owner's until. The intended owner takes a block without owner when it attaches. Of a VLAN with
//! two racks each owns its share; a block that is held back has neither owner nor intended owner.

use std::net::{IpAddr, Ipv4Addr};

use lease::region::may_take;
use lease::share::{Share, Sharer, share};
use sqlx::{PgConnection, PgPool, Row as _};
use time::OffsetDateTime;

use crate::StoreError;
use crate::feed::{self, Kind};
use crate::lease::history::take_away;
use crate::lease::{from_database, usage};

/// A range is cut into this many blocks at most: 4,194,304 addresses. The rest of a larger one is not dealt.
pub const BLOCKS_PER_RANGE_MAX: u32 = 65_536;
/// A large range begins with these (262,144 addresses) and has twice as many each time three quarters are taken: what
/// nobody needs costs no row, and no memory of a rack.
const BLOCKS_AT_FIRST: u32 = 4_096;
const BLOCK_ADDRESSES: u32 = 64;
const SMALL_BLOCK_ADDRESSES: u32 = 16;
/// A range below this is small.
const SMALL_RANGE_ADDRESSES: u32 = 256;
/// Keys are remembered this long; then the floor below which nothing is taken rises over them.
const KEYS_KEPT: &str = "1 hour";

/// Cuts, adopts or lets go of blocks so that they fit the range. To be called after an `iprange` row was inserted, changed
/// or deleted, in the same transaction.
///
/// Addresses that leave a range stay with their block, without use, until its owner has given it up; addresses of a
/// block that is being given up are cut again afterwards ([`settle`]). Reserved ranges inside are left out.
pub async fn ensure_blocks(db: &mut PgConnection, range_id: i32) -> Result<(), StoreError> {
    lock_cutting(db).await?;
    let range = sqlx::query(
        "select r.start_ip, r.end_ip, r.subnet_id, s.vlan_id from iprange r join subnet s on s.id = r.subnet_id
         where r.id = $1 and r.type = 'dynamic' and family(r.start_ip) = 4 and family(r.end_ip) = 4",
    )
    .bind(range_id)
    .fetch_optional(&mut *db)
    .await?;
    let Some(range) = range else {
        sqlx::query("update lease_block set range_id = null where range_id = $1")
            .bind(range_id)
            .execute(&mut *db)
            .await?;
        return let_go_of_orphans(db).await;
    };
    let (start, end): (IpAddr, IpAddr) = (range.try_get("start_ip")?, range.try_get("end_ip")?);
    let (subnet_id, vlan_id): (i32, i32) = (range.try_get("subnet_id")?, range.try_get("vlan_id")?);
    // What is not wholly inside, or was cut for another place, goes; a block of a former range that fits is taken over.
    sqlx::query(
        "update lease_block set range_id = null
         where range_id = $1
           and (first < $2 or first + (count - 1) > $3 or subnet_id is distinct from $4 or vlan_id <> $5
                or exists (select from iprange x where x.subnet_id = $4 and x.type = 'reserved'
                           and x.start_ip <= first + (count - 1) and x.end_ip >= first))",
    )
    .bind(range_id)
    .bind(start)
    .bind(end)
    .bind(subnet_id)
    .bind(vlan_id)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "update lease_block set range_id = $1
         where range_id is null and first >= $2 and first + (count - 1) <= $3 and subnet_id = $4 and vlan_id = $5
           and not exists (select from iprange x where x.subnet_id = $4 and x.type = 'reserved'
                           and x.start_ip <= first + (count - 1) and x.end_ip >= first)",
    )
    .bind(range_id)
    .bind(start)
    .bind(end)
    .bind(subnet_id)
    .bind(vlan_id)
    .execute(&mut *db)
    .await?;
    // What nobody owns is cut again at once.
    let_go_of_orphans(db).await?;
    cut(db, range_id, start, end).await?;
    note_longest(db, subnet_id).await?;
    assign_blocks(db, vlan_id).await
}

/// How many blocks more a range may be cut into now.
async fn room(db: &mut PgConnection, range_id: i32) -> Result<u32, StoreError> {
    let (blocks, dealt, taken): (i64, i64, i64) = sqlx::query_as(
        "select count(*), coalesce(sum(count), 0)::bigint,
                coalesce((select bound + resting from range_usage where range_id = $1), 0)
         from lease_block where range_id = $1",
    )
    .bind(range_id)
    .fetch_one(db)
    .await?;
    let blocks = u32::try_from(blocks).unwrap_or(u32::MAX);
    let is_wanted = taken.saturating_mul(4) >= dealt.saturating_mul(3);
    let cap = match blocks >= BLOCKS_AT_FIRST && is_wanted {
        true => blocks.saturating_mul(2).min(BLOCKS_PER_RANGE_MAX),
        false => BLOCKS_AT_FIRST,
    };
    Ok(cap.saturating_sub(blocks))
}

/// Cuts what no block covers yet and no reserved range excludes.
async fn cut(
    db: &mut PgConnection,
    range_id: i32,
    start: IpAddr,
    end: IpAddr,
) -> Result<(), StoreError> {
    let (IpAddr::V4(start), IpAddr::V4(end)) = (start, end) else {
        return Ok(());
    };
    let room = room(db, range_id).await?;
    let covered: Vec<(IpAddr, i64)> = sqlx::query_as(
        "select first, count::bigint from lease_block
         where family(first) = 4 and first <= $2 and first + (count - 1) >= $1
         union all
         select x.start_ip, x.end_ip - x.start_ip + 1 from iprange r
         join iprange x on x.subnet_id = r.subnet_id and x.type = 'reserved' and family(x.start_ip) = 4
         where r.id = $3 and x.start_ip <= $2 and x.end_ip >= $1
         order by 1",
    )
    .bind(IpAddr::V4(start))
    .bind(IpAddr::V4(end))
    .bind(range_id)
    .fetch_all(&mut *db)
    .await?;
    let covered = covered
        .into_iter()
        .filter_map(|(first, count)| match first {
            IpAddr::V4(first) => Some((u32::from(first), u32::try_from(count).unwrap_or(0))),
            IpAddr::V6(_) => None,
        });
    let pieces = pieces(u32::from(start), u32::from(end), covered, room);
    if pieces.is_empty() {
        return Ok(());
    }
    let firsts: Vec<IpAddr> = pieces
        .iter()
        .map(|(first, _)| Ipv4Addr::from(*first).into())
        .collect();
    let counts: Vec<i32> = pieces
        .iter()
        .map(|(_, count)| count.cast_signed())
        .collect();
    sqlx::query(
        "insert into lease_block (range_id, subnet_id, vlan_id, first, count, longest_lease_secs)
         select r.id, s.id, s.vlan_id, piece.first, piece.count, s.lease_secs
         from iprange r join subnet s on s.id = r.subnet_id
         cross join unnest($2::inet[], $3::int[]) as piece(first, count)
         where r.id = $1",
    )
    .bind(range_id)
    .bind(firsts)
    .bind(counts)
    .execute(&mut *db)
    .await?;
    Ok(())
}

/// The gaps of `start..=end` between what is covered (in order), in pieces of a block's size.
fn pieces(
    start: u32,
    end: u32,
    covered: impl Iterator<Item = (u32, u32)>,
    room: u32,
) -> Vec<(u32, u32)> {
    let (mut next, end) = (u64::from(start), u64::from(end));
    let small = end - next.min(end) + 1 < u64::from(SMALL_RANGE_ADDRESSES);
    let size = u64::from(if small {
        SMALL_BLOCK_ADDRESSES
    } else {
        BLOCK_ADDRESSES
    });
    let mut pieces = Vec::new();
    let beyond = std::iter::once((end + 1, 0));
    for (first, count) in covered
        .map(|(first, count)| (u64::from(first), u64::from(count)))
        .chain(beyond)
    {
        while next < first.min(end + 1) && pieces.len() < room as usize {
            let count = size.min(first.min(end + 1) - next);
            // Both fit: next <= end, count <= 64.
            pieces.push((next as u32, count as u32));
            next += count;
        }
        next = next.max(first + count);
    }
    pieces
}

/// Says who should own the VLAN's blocks: the rack that serves it, or the two that share it. To be called after the VLAN's dhcp_on, racks or
/// relay_vlan, or a subnet's vlan or lease_secs changed, in the same transaction.
pub async fn assign_blocks(db: &mut PgConnection, vlan_id: i32) -> Result<(), StoreError> {
    lock_cutting(db).await?;
    // A subnet that went to another VLAN is cut anew there, once the old blocks are given up.
    sqlx::query(
        "update lease_block b set range_id = null from subnet s
         where b.subnet_id = s.id and b.vlan_id <> s.vlan_id and $1 in (b.vlan_id, s.vlan_id)",
    )
    .bind(vlan_id)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "update lease_block b set intended = coalesce(via.primary_rack, via.secondary_rack)
         from vlan v left join vlan via
           on via.id = case when v.dhcp_on then v.id else v.relay_vlan end and via.dhcp_on
         where b.vlan_id = v.id and b.range_id is not null and (v.id = $1 or v.relay_vlan = $1)
           and (via.primary_rack <> via.secondary_rack) is not true
           and b.intended is distinct from coalesce(via.primary_rack, via.secondary_rack)",
    )
    .bind(vlan_id)
    .execute(&mut *db)
    .await?;
    share_out(db, Some(vlan_id)).await?;
    let subnets: Vec<i32> =
        sqlx::query_scalar("select id from subnet where vlan_id = $1 order by id")
            .bind(vlan_id)
            .fetch_all(&mut *db)
            .await?;
    for subnet in subnets {
        note_longest(db, subnet).await?;
    }
    let_go_of_orphans(db).await
}

/// Remembers the longest lease that is in force in a subnet: its own, a range's or a host's. To be called when one of them
/// was set, in the same transaction.
pub(crate) async fn note_longest(db: &mut PgConnection, subnet_id: i32) -> Result<(), StoreError> {
    sqlx::query(
        "update lease_block b set longest_lease_secs = longest.secs
         from (select greatest(s.lease_secs,
                               (select max(r.lease_secs) from iprange r where r.subnet_id = s.id),
                               (select max(h.lease_secs) from reserved_ip h where h.subnet_id = s.id)) as secs
               from subnet s where s.id = $1) as longest
         where b.subnet_id = $1 and b.longest_lease_secs < longest.secs",
    )
    .bind(subnet_id)
    .execute(db)
    .await?;
    Ok(())
}

/// Shares the blocks of VLANs with two racks, range by range ([`share`]): of one VLAN and those relayed into it, or of all.
/// Says on which VLANs something changed.
async fn share_out(db: &mut PgConnection, vlan_id: Option<i32>) -> Result<Vec<i32>, StoreError> {
    // What has ended is its owner's to take back; what is reserved is dealt to one client only.
    let rows: Vec<SharedBlock> = sqlx::query_as(
        "select b.id, b.range_id, b.vlan_id, b.count, b.owner, b.intended, via.primary_rack, via.secondary_rack,
                coalesce(p.alive, false) as primary_alive, coalesce(s.alive, false) as secondary_alive,
                case when b.quarantined_until > now() then b.count else
                    (select count(*) from lease l
                     where l.address between b.first and b.first + (b.count - 1)
                       and (l.client_kind is not null and l.ends > now() - interval '60 seconds'
                            or l.quarantined_until > now()))
                    + (select count(*) from reserved_ip r
                       where r.ip between b.first and b.first + (b.count - 1))
                end as used
         from lease_block b
         join vlan v on v.id = b.vlan_id
         join vlan via on via.id = case when v.dhcp_on then v.id else v.relay_vlan end and via.dhcp_on
         left join rack_liveness p on p.rack = via.primary_rack
         left join rack_liveness s on s.rack = via.secondary_rack
         where b.range_id is not null and via.primary_rack <> via.secondary_rack
           and ($1::int is null or v.id = $1 or v.relay_vlan = $1)
         order by b.range_id, b.first",
    )
    .bind(vlan_id)
    .fetch_all(&mut *db)
    .await?;
    let (mut ids, mut racks, mut vlans) = (Vec::new(), Vec::new(), Vec::new());
    for range in rows.chunk_by(|a, b| a.range_id == b.range_id) {
        let blocks: Vec<Share<&str>> = range.iter().map(SharedBlock::share).collect();
        for (block, rack) in range.iter().zip(share(&blocks, &range[0].sharers())) {
            if block.intended.as_deref() != rack {
                ids.push(block.id);
                racks.push(rack.map(str::to_owned));
                vlans.push(block.vlan_id);
            }
        }
    }
    if !ids.is_empty() {
        sqlx::query(
            "update lease_block b set intended = decided.rack
             from unnest($1::bigint[], $2::text[]) as decided(id, rack) where b.id = decided.id",
        )
        .bind(&ids)
        .bind(&racks)
        .execute(db)
        .await?;
    }
    vlans.dedup();
    Ok(vlans)
}

#[derive(sqlx::FromRow)]
struct SharedBlock {
    id: i64,
    range_id: i32,
    vlan_id: i32,
    count: i32,
    owner: Option<String>,
    intended: Option<String>,
    primary_rack: String,
    secondary_rack: String,
    primary_alive: bool,
    secondary_alive: bool,
    used: i64,
}

impl SharedBlock {
    fn share(&self) -> Share<&str> {
        let addresses = self.count.unsigned_abs();
        Share {
            addresses,
            used: u32::try_from(self.used).map_or(addresses, |used| used.min(addresses)),
            owner: self.owner.as_deref(),
            intended: self.intended.as_deref(),
        }
    }

    fn sharers(&self) -> [Sharer<&str>; 2] {
        [
            Sharer {
                rack: &self.primary_rack,
                alive: self.primary_alive,
            },
            Sharer {
                rack: &self.secondary_rack,
                alive: self.secondary_alive,
            },
        ]
    }
}

/// Blocks without a range belong to nobody, as soon as their owner has given them up.
async fn let_go_of_orphans(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query(
        "update lease_block set intended = null where range_id is null and intended is not null",
    )
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "delete from lease_block
         where range_id is null and owner is null and coalesce(quarantined_until < now(), true)",
    )
    .execute(db)
    .await?;
    Ok(())
}

/// One transaction at a time cuts: two would cut the same gap.
async fn lock_cutting(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('muster lease blocks', 0))")
        .execute(db)
        .await?;
    Ok(())
}

/// Housekeeping, every few seconds, by any region process: takes blocks whose owner's until has passed, cuts what became
/// free, hands out what is held back to racks that run low, forgets old keys and rows, ends a hold that has run out.
pub async fn settle(pool: &PgPool) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    if super::end_hold(&mut tx, false).await? {
        tracing::warn!(
            "the wait after the database's promotion or restore is over: all racks attach"
        );
    }
    tx.commit().await?;

    let late: Vec<String> = sqlx::query_scalar(
        "select distinct b.owner from lease_block b left join rack_session s on s.rack = b.owner
         where b.owner is not null and b.owner is distinct from b.intended
           and coalesce(s.until < now() - interval '60 seconds', true)",
    )
    .fetch_all(pool)
    .await?;
    for owner in late {
        take_blocks(pool, &owner).await?;
    }
    cut_and_share(pool).await?;
    usage::note(pool).await?;
    forget_old(pool).await
}

/// Takes what the rack should not own, if its time is over.
async fn take_blocks(pool: &PgPool, owner: &str) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    // Again, under the session's lock: a heartbeat may have come between.
    let session = sqlx::query(
        "select now() as now, s.until, coalesce((select hold_until > now() from lease_database), false) as held
         from (select 1) as one left join rack_session s on s.rack = $1",
    );
    sqlx::query("select from rack_session where rack = $1 for update")
        .bind(owner)
        .execute(&mut *tx)
        .await?;
    let row = session.bind(owner).fetch_one(&mut *tx).await?;
    let until: Option<OffsetDateTime> = row.try_get("until")?;
    let now = from_database(row.try_get("now")?);
    if row.try_get("held")? || !may_take(until.map(from_database), now) {
        return Ok(());
    }
    let taken = sqlx::query(
        "update lease_block set owner = null, epoch = epoch + 1
         where id in (select id from lease_block where owner = $1 and intended is distinct from $1
                      order by id for update)",
    )
    .bind(owner)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    tracing::info!(
        rack = owner,
        blocks = taken.rows_affected(),
        "blocks taken: the rack's until has passed"
    );
    Ok(())
}

async fn cut_and_share(pool: &PgPool) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    lock_cutting(&mut tx).await?;
    let_go_of_orphans(&mut tx).await?;
    let uncut: Vec<i32> = sqlx::query_scalar(
        "select r.id from iprange r left join lease_block b on b.range_id = r.id
         left join range_usage u on u.range_id = r.id
         where r.type = 'dynamic' and family(r.start_ip) = 4
         group by r.id, u.range_id
         having coalesce(sum(b.count), 0) < r.end_ip - r.start_ip + 1 - coalesce((
                    select sum(x.end_ip - x.start_ip + 1) from iprange x
                    where x.subnet_id = r.subnet_id and x.type = 'reserved'
                      and x.start_ip >= r.start_ip and x.end_ip <= r.end_ip), 0)
            and (count(b.id) < $1
                 or (count(b.id) < $2 and (u.bound + u.resting) * 4 >= sum(b.count) * 3))",
    )
    .bind(i64::from(BLOCKS_AT_FIRST))
    .bind(i64::from(BLOCKS_PER_RANGE_MAX))
    .fetch_all(&mut *tx)
    .await?;
    for range_id in uncut {
        ensure_blocks(&mut tx, range_id).await?;
    }
    for vlan in share_out(&mut tx, None).await? {
        // Racks send a heartbeat when they hear of a changed link, and so attach to what waits for them.
        feed::changed(&mut tx, Kind::Link, &vlan.to_string()).await?;
    }
    tx.commit().await?;
    Ok(())
}

async fn forget_old(pool: &PgPool) -> Result<(), StoreError> {
    let mut tx = pool.begin().await?;
    sqlx::query(
        "with old as (
             delete from lease_batch where at < now() - $1::interval returning rack, spool_id, seq
         )
         update rack_spool s set floor = greatest(s.floor, o.seq)
         from (select rack, spool_id, max(seq) as seq from old group by rack, spool_id) o
         where s.rack = o.rack and s.spool_id = o.spool_id",
    )
    .bind(KEYS_KEPT)
    .execute(&mut *tx)
    .await?;
    // Rows outside every block, and quarantines that are over.
    sqlx::query(
        take_away!(
        "where l.ends < now() - interval '60 seconds' and coalesce(l.quarantined_until < now(), true)
           and (l.client_kind is null
                or coalesce((select b.first + (b.count - 1) from lease_block b where b.first <= l.address
                             order by b.first desc limit 1) < l.address, true))"
        ),
    )
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_in_the_gaps() {
        let cases = [
            // case                 start end   covered               want
            ("small", 10, 50, vec![], vec![(10, 16), (26, 16), (42, 9)]),
            ("one address", 7, 7, vec![], vec![(7, 1)]),
            (
                "whole",
                0,
                255,
                vec![],
                vec![(0, 64), (64, 64), (128, 64), (192, 64)],
            ),
            ("covered", 10, 25, vec![(10, 16)], vec![]),
            (
                "a gap between",
                10,
                40,
                vec![(10, 10), (25, 16)],
                vec![(20, 5)],
            ),
            (
                "covered over both ends",
                10,
                40,
                vec![(5, 10), (30, 60)],
                vec![(15, 15)],
            ),
            ("extended", 10, 50, vec![(10, 16), (26, 16)], vec![(42, 9)]),
            (
                "the end of the world",
                u32::MAX - 1,
                u32::MAX,
                vec![],
                vec![(u32::MAX - 1, 2)],
            ),
        ];
        for (case, start, end, covered, want) in cases {
            assert_eq!(
                pieces(start, end, covered.into_iter(), 4096),
                want,
                "{case}"
            );
        }
        assert_eq!(pieces(0, u32::MAX, std::iter::empty(), 3).len(), 3);
    }
}
