//! Work for racks: intents, claims and their completion.
//!
//! A claim is a committed UPDATE with a token and an end; every later statement about it says
//! `claim_token = $t`, so a process that lost its claim can complete nothing. At least once, never exactly once.

use std::time::Duration;

use model::{PowerCommand, SystemId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::StoreError;

/// Channel of `NOTIFY` when something was queued.
pub const CHANNEL: &str = "muster_work";
/// How long finished work stays to be looked at.
const KEEP: &str = "7 days";

/// How far a piece of work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WorkState {
    Queued,
    Claimed,
    Done,
    Failed,
    Cancelled,
}

impl WorkState {
    fn as_str(self) -> &'static str {
        match self {
            WorkState::Queued => "queued",
            WorkState::Claimed => "claimed",
            WorkState::Done => "done",
            WorkState::Failed => "failed",
            WorkState::Cancelled => "cancelled",
        }
    }

    fn from_text(text: &str) -> Option<Self> {
        use WorkState::*;
        [Queued, Claimed, Done, Failed, Cancelled]
            .into_iter()
            .find(|state| state.as_str() == text)
    }
}

/// One intent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work {
    pub id: i64,
    pub machine: SystemId,
    pub bmc_id: Option<i32>,
    pub command: PowerCommand,
    pub state: WorkState,
    /// Claims so far, without those that found no rack.
    pub attempts: u32,
    pub claim_token: Option<Uuid>,
    pub rack: Option<String>,
    pub created: OffsetDateTime,
    pub finished: Option<OffsetDateTime>,
    pub error: String,
    /// Nobody's wish, only a look: deleted when it ends.
    pub sweep: bool,
}

impl FromRow<'_, PgRow> for Work {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let unreadable = |column: &'static str| sqlx::Error::ColumnDecode {
            index: column.into(),
            source: "not a word of this table".into(),
        };
        Ok(Work {
            id: row.try_get("id")?,
            machine: crate::lifecycle::system_id_of(row, "machine")?,
            bmc_id: row.try_get("bmc_id")?,
            command: row
                .try_get::<&str, _>("command")?
                .parse()
                .map_err(|_| unreadable("command"))?,
            state: WorkState::from_text(row.try_get("state")?)
                .ok_or_else(|| unreadable("state"))?,
            attempts: row.try_get::<i32, _>("attempts")?.max(0).unsigned_abs(),
            claim_token: row.try_get("claim_token")?,
            rack: row.try_get("rack")?,
            created: row.try_get("created")?,
            finished: row.try_get("finished")?,
            error: row.try_get("error")?,
            sweep: row.try_get("sweep")?,
        })
    }
}

const WORK: &str = "id, machine, bmc_id, command, state, attempts, claim_token, rack, created,
     finished, error, sweep";

// ---------------------------------------------------------------- intents

/// Queues a power command and wakes the runners at commit. A newer intent cancels the machine's older queued ones; a
/// query joins one that is queued already, and takes the place of a sweep's, also of one that a rack is at: what that
/// finds out then is not recorded. Returns the work's id.
pub async fn enqueue(
    db: &mut PgConnection,
    machine: &SystemId,
    bmc_id: i32,
    command: PowerCommand,
) -> Result<i64, StoreError> {
    sqlx::query("delete from work where machine = $1 and sweep")
        .bind(machine.as_str())
        .execute(&mut *db)
        .await?;
    if command == PowerCommand::Query {
        let queued: Option<i64> = sqlx::query_scalar(
            "select id from work where machine = $1 and state = 'queued' and command = 'query'
             order by id limit 1",
        )
        .bind(machine.as_str())
        .fetch_optional(&mut *db)
        .await?;
        if let Some(id) = queued {
            return Ok(id);
        }
    } else {
        cancel(db, machine, "a newer command was given").await?;
    }
    let id = sqlx::query_scalar(
        "insert into work (kind, machine, bmc_id, command) values ('power', $1, $2, $3) returning id",
    )
    .bind(machine.as_str())
    .bind(bmc_id)
    .bind(command.as_str())
    .fetch_one(&mut *db)
    .await?;
    sqlx::query("notify muster_work").execute(&mut *db).await?;
    Ok(id)
}

/// Which machines a sweep looks at.
#[derive(Clone, Copy, Debug)]
pub struct Due {
    /// Seen longer ago than this.
    pub every: Duration,
    /// Doubled for each failure in a row, up to this.
    pub pause_max: Duration,
    pub limit: i64,
    /// Sweeps' queries at once.
    pub open_max: i64,
}

/// Queues queries for machines whose power nobody has seen for a while and nobody works at, the longest unseen first.
/// Returns how many.
pub async fn enqueue_sweep(db: &mut PgConnection, due: Due) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "with due as (
             select m.system_id, b.id, greatest(b.swept, m.power_state_updated) as seen
             from bmc b join machine m on m.bmc_id = b.id
             where b.power_type <> 'manual'
               and coalesce(greatest(b.swept, m.power_state_updated), '-infinity')
                   < now() - make_interval(secs => least($1 * 2 ^ least(b.sweep_failures, 20), $2))
               and not exists (select 1 from work w where w.machine = m.system_id
                                                      and w.state in ('queued', 'claimed'))
             order by seen nulls first, b.id
             limit least($3, greatest($4 - (select count(*) from work where sweep), 0))
             for update of b skip locked),
         asked as (update bmc set swept = now() from due where bmc.id = due.id)
         insert into work (kind, machine, bmc_id, command, sweep)
         select 'power', system_id, id, 'query', true from due",
    )
    .bind(due.every.as_secs_f64())
    .bind(due.pause_max.as_secs_f64())
    .bind(due.limit)
    .bind(due.open_max)
    .execute(&mut *db)
    .await?;
    if done.rows_affected() > 0 {
        sqlx::query("notify muster_work").execute(&mut *db).await?;
    }
    Ok(done.rows_affected())
}

/// Cancels the machine's queued intents; queries stay. What is claimed runs to its end: a rack may be at it.
pub async fn cancel(
    db: &mut PgConnection,
    machine: &SystemId,
    reason: &str,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update work set state = 'cancelled', finished = now(), error = $2
         where machine = $1 and state = 'queued' and command <> 'query'",
    )
    .bind(machine.as_str())
    .bind(reason)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

pub async fn get(db: impl PgExecutor<'_>, id: i64) -> Result<Work, StoreError> {
    sqlx::query_as(AssertSqlSafe(format!(
        "select {WORK} from work where id = $1"
    )))
    .bind(id)
    .fetch_optional(db)
    .await?
    .ok_or_else(|| StoreError::not_found("work", id))
}

/// A machine's work, newest first.
pub async fn of_machine(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    limit: i64,
) -> Result<Vec<Work>, StoreError> {
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "select {WORK} from work where machine = $1 order by id desc limit $2"
    )))
    .bind(machine.as_str())
    .bind(limit)
    .fetch_all(db)
    .await?)
}

/// Whether an intent newer than `id` waits for this machine: the older one's outcome no longer matters.
pub async fn has_newer_intent(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    id: i64,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (select 1 from work where machine = $1 and id > $2 and command <> 'query'
                        and state in ('queued', 'claimed'))",
    )
    .bind(machine.as_str())
    .bind(id)
    .fetch_one(db)
    .await?)
}

// ---------------------------------------------------------------- claims

/// Gives expired claims back: their process died, or lost PostgreSQL for too long. Returns how many.
pub async fn release_expired(db: impl PgExecutor<'_>) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update work set state = 'queued', claim_token = null, claim_until = null,
                         error = 'the region process that was at it went away'
         where state = 'claimed' and claim_until < now()",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Claims up to `limit` queued pieces of work for `claim` from now, oldest first, one per BMC.
///
/// Two processes may want different rows of one BMC at the same moment; the unique index lets one through, and the
/// other gets `StoreError::Constraint` for the whole batch: it looks again.
pub async fn claim(
    db: impl PgExecutor<'_>,
    limit: i64,
    claim: Duration,
) -> Result<Vec<Work>, StoreError> {
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "update work set state = 'claimed', claim_token = gen_random_uuid(), attempts = attempts + 1,
                         claim_until = now() + make_interval(secs => $2), error = ''
         where state = 'queued' and id in (
             select w.id from work w
             where w.state = 'queued' and w.not_before <= now()
               and not exists (
                   select 1 from work o where o.bmc_id = w.bmc_id and o.id <> w.id
                      and (o.state = 'claimed'
                           or (o.state = 'queued' and o.not_before <= now() and o.id < w.id)))
             order by w.sweep, w.id limit $1 for update skip locked)
         returning {WORK}"
    )))
    .bind(limit)
    .bind(claim.as_secs_f64())
    .fetch_all(db)
    .await?)
}

/// Moves a claim's end to `claim` from now, never back. False: the claim is lost.
pub async fn extend(
    db: impl PgExecutor<'_>,
    token: Uuid,
    claim: Duration,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update work set claim_until = greatest(claim_until, now() + make_interval(secs => $2))
         where claim_token = $1 and state = 'claimed'",
    )
    .bind(token)
    .bind(claim.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Records which rack does it, and holds the claim until that operation must have ended. False: the claim is lost.
pub async fn chosen(
    db: impl PgExecutor<'_>,
    token: Uuid,
    rack: &str,
    claim: Duration,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update work set rack = $2,
                         claim_until = greatest(claim_until, now() + make_interval(secs => $3))
         where claim_token = $1 and state = 'claimed'",
    )
    .bind(token)
    .bind(rack)
    .bind(claim.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// Ends a piece of work: done, failed or cancelled. False: the claim is lost, and nothing else may be written.
pub async fn complete(
    db: impl PgExecutor<'_>,
    token: Uuid,
    state: WorkState,
    error: &str,
) -> Result<bool, StoreError> {
    let ended: i64 = sqlx::query_scalar(
        "with swept as (
             delete from work where claim_token = $1 and state = 'claimed' and sweep returning id),
         ended as (
             update work set state = $2, finished = now(), error = $3, claim_until = null
             where claim_token = $1 and state = 'claimed' and not sweep returning id)
         select count(*) from (select id from swept union all select id from ended) as one",
    )
    .bind(token)
    .bind(state.as_str())
    .bind(error)
    .fetch_one(db)
    .await?;
    Ok(ended == 1)
}

/// Queues it again, not before `delay` from now. With `counted` false the attempt is taken back: nothing was tried.
pub async fn retry(
    db: impl PgExecutor<'_>,
    token: Uuid,
    delay: Duration,
    counted: bool,
    error: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query(
        "update work set state = 'queued', claim_token = null, claim_until = null, error = $4,
                         not_before = now() + make_interval(secs => $2),
                         attempts = attempts - case when $3 then 0 else 1 end
         where claim_token = $1 and state = 'claimed'",
    )
    .bind(token)
    .bind(delay.as_secs_f64())
    .bind(counted)
    .bind(error)
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// How long until the next queued work may start; `None` when nothing is queued.
pub async fn next_due(db: impl PgExecutor<'_>) -> Result<Option<Duration>, StoreError> {
    let secs: Option<f64> = sqlx::query_scalar(
        "select extract(epoch from min(not_before) - now())::float8 from work where state = 'queued'",
    )
    .fetch_one(db)
    .await?;
    Ok(secs.map(|secs| Duration::from_secs_f64(secs.clamp(0.0, 86_400.0))))
}

/// Deletes work that ended long ago, a bounded number at a time.
pub async fn forget_old(db: impl PgExecutor<'_>) -> Result<u64, StoreError> {
    let done = sqlx::query(AssertSqlSafe(format!(
        "delete from work where id in (
             select id from work where finished < now() - interval '{KEEP}' order by id limit 1000)"
    )))
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
