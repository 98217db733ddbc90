//! The nonces of OAuth 1.0: a request is taken once.
//!
//! What is remembered is bounded by age, by owner and in all. To forget a nonce before its time would let its request be
//! sent again; so an owner with more than its share gets a *floor* first: its requests with timestamps up to the floor
//! are refused from then on, and only nonces at or below it are forgotten. Other owners notice nothing of it, and neither
//! do the owner's own clients whose clocks are right.

use sqlx::PgConnection;

use crate::StoreError;

/// How long a nonce is remembered: twice the age at which its timestamp is refused, and some.
pub const MEMORY_SECS: i64 = 900;
/// Between a floor and the deletes below it: longer than a statement of a request can last, so that none is left that
/// did not see the floor.
const SETTLE_SECS: i64 = 40;

/// How many are remembered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub each: u64,
    pub total: u64,
}

/// Some 150 MiB with their indexes.
pub const BOUNDS: Bounds = Bounds {
    each: 1 << 16,
    total: 1_000_000,
};

/// What became of a nonce.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Use {
    /// First seen now.
    Fresh,
    /// This token has used it before.
    Again,
    /// The timestamp is at or below the owner's floor.
    BelowFloor,
}

/// What a clean-up found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cleaned {
    pub held: u64,
    pub owners: u64,
    /// Floors raised.
    pub raised: u64,
    pub deleted: u64,
}

/// Remembers the nonce. Only after the signature was found right: nobody fills the table without a key.
pub async fn remember(
    db: &mut PgConnection,
    owner: &str,
    token_key: &str,
    nonce: &str,
    timestamp: i64,
) -> Result<Use, StoreError> {
    let (made, below): (bool, bool) = sqlx::query_as(
        "with floor as (select from oauth_floor where owner = $3 and at >= $4),
              made as (insert into oauth_nonce (token_key, nonce, owner, at)
                       select $1, $2, $3, $4 where not exists (select from floor)
                       on conflict do nothing returning true)
         select exists (select from made), exists (select from floor)",
    )
    .bind(token_key)
    .bind(nonce)
    .bind(owner)
    .bind(timestamp)
    .fetch_one(db)
    .await?;
    Ok(match (made, below) {
        (true, _) => Use::Fresh,
        (false, true) => Use::BelowFloor,
        (false, false) => Use::Again,
    })
}

/// Forgets what may be forgotten, and gives floors to owners that hold more than their share. `None`: another process
/// is at it.
pub async fn clean(db: &mut PgConnection, bounds: Bounds) -> Result<Option<Cleaned>, StoreError> {
    use sqlx::Connection;
    let mut tx = db.begin().await?;
    let is_ours: bool = sqlx::query_scalar(
        "select pg_try_advisory_xact_lock(hashtextextended('muster nonces', 0))",
    )
    .fetch_one(&mut *tx)
    .await?;
    if !is_ours {
        return Ok(None);
    }
    let aged = sqlx::query(
        "delete from oauth_nonce where ctid = any(array(
             select ctid from oauth_nonce
             where seen < now() - make_interval(secs => $1) limit 50000))",
    )
    .bind(MEMORY_SECS as f64)
    .execute(&mut *tx)
    .await?;
    let below = sqlx::query(
        "delete from oauth_nonce n using oauth_floor f
         where n.owner = f.owner and n.at <= f.at and f.raised < now() - make_interval(secs => $1)",
    )
    .bind(SETTLE_SECS as f64)
    .execute(&mut *tx)
    .await?;
    // Timestamps so old are refused from anybody.
    sqlx::query("delete from oauth_floor where at < extract(epoch from now())::bigint - $1")
        .bind(MEMORY_SECS)
        .execute(&mut *tx)
        .await?;
    let owners: Vec<(String, i64)> =
        sqlx::query_as("select owner, count(*) from oauth_nonce group by owner order by owner")
            .fetch_all(&mut *tx)
            .await?;
    let counts: Vec<u64> = owners.iter().map(|(_, n)| n.unsigned_abs()).collect();
    let share = share_of(&counts, bounds);
    let greedy: Vec<&str> = owners
        .iter()
        .filter(|(_, count)| count.unsigned_abs() > share)
        .map(|(owner, _)| owner.as_str())
        .collect();
    let raised = sqlx::query(
        "insert into oauth_floor as f (owner, at)
         select owner, (select at from oauth_nonce n where n.owner = g.owner order by at desc offset $2 limit 1)
         from unnest($1::text[]) as g (owner)
         on conflict (owner) do update set at = greatest(f.at, excluded.at), raised = now()
         where f.raised < now() - make_interval(secs => $3)",
    )
    .bind(greedy)
    .bind(share.cast_signed())
    .bind(SETTLE_SECS as f64)
    .execute(&mut *tx)
    .await?;
    tx.commit().await?;
    Ok(Some(Cleaned {
        held: counts.iter().sum(),
        owners: counts.len() as u64,
        raised: raised.rows_affected(),
        deleted: aged.rows_affected() + below.rows_affected(),
    }))
}

/// How many nonces each owner may keep, so that none has more than `each` and all together no more than `total`: those
/// with few keep all of theirs, those with many are cut to one level.
fn share_of(counts: &[u64], bounds: Bounds) -> u64 {
    let mut counts: Vec<u64> = counts
        .iter()
        .map(|count| *count.min(&bounds.each))
        .collect();
    counts.sort_unstable();
    let mut left = bounds.total;
    for (index, count) in counts.iter().enumerate() {
        let level = left / (counts.len() - index) as u64;
        if *count > level {
            return level;
        }
        left -= count;
    }
    bounds.each
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_with_few_nonces_keep_theirs_and_those_with_many_share_the_rest() {
        let bounds = Bounds {
            each: 100,
            total: 250,
        };
        for (counts, want) in [
            (&[][..], 100),
            (&[10, 20], 100),
            (&[1000, 20], 100),
            (&[90, 90, 60], 100),
            (&[90, 90, 90], 83),
            (&[1000, 1000, 1000, 10], 80),
            (&[1000, 10, 10, 10], 100),
        ] {
            let share = share_of(counts, bounds);
            assert_eq!(share, want, "{counts:?}");
            let kept: u64 = counts.iter().map(|count| *count.min(&share)).sum();
            assert!(kept <= bounds.total, "{counts:?}");
        }
    }
}
