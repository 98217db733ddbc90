//! Script sets and their results: what a boot should run, what came back.
//!
//! A set belongs to one boot of one machine. Statuses move forward only; a repeat of a signal is recognised by
//! `applied` (protocols: Metadata and results), so it writes nothing.

use std::time::Duration;

use model::{ScriptStatus, SystemId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::StoreError;

/// Sets kept for one machine and type, as MAAS's `max_node_commissioning_results`; older ones are deleted.
pub const SETS_MAX: i64 = 10;

/// The scripts of one boot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptSet {
    pub id: i32,
    pub machine: SystemId,
    /// "commissioning", "testing", "release", "deployment".
    pub kind: String,
    pub boot_id: Uuid,
    pub requested: OffsetDateTime,
    pub finished: Option<OffsetDateTime>,
}

impl FromRow<'_, PgRow> for ScriptSet {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        Ok(ScriptSet {
            id: row.try_get("id")?,
            machine: crate::lifecycle::system_id_of(row, "machine")?,
            kind: row.try_get("type")?,
            boot_id: row.try_get("boot_id")?,
            requested: row.try_get("requested")?,
            finished: row.try_get("finished")?,
        })
    }
}

/// One script of a set, without what it printed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScriptResult {
    pub id: i32,
    pub set_id: i32,
    pub name: String,
    pub status: ScriptStatus,
    pub exit_status: Option<i32>,
    pub error: String,
    /// Zero: no limit.
    pub timeout: Duration,
    pub started: Option<OffsetDateTime>,
    pub ended: Option<OffsetDateTime>,
    pub updated: OffsetDateTime,
    /// Since it started, by the database's clock.
    pub running_for: Option<Duration>,
    /// Since its row was last written.
    pub idle_for: Duration,
    /// Of the last body that was applied.
    pub applied: Option<[u8; 32]>,
    /// Octets of outputs ever written to it.
    pub written_bytes: u64,
}

impl FromRow<'_, PgRow> for ScriptResult {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let number: i32 = row.try_get("status")?;
        let status =
            ScriptStatus::from_number(number).ok_or_else(|| sqlx::Error::ColumnDecode {
                index: "status".into(),
                source: format!("no script status {number}").into(),
            })?;
        let applied: Option<Vec<u8>> = row.try_get("applied")?;
        Ok(ScriptResult {
            id: row.try_get("id")?,
            set_id: row.try_get("set_id")?,
            name: row.try_get("name")?,
            status,
            exit_status: row.try_get("exit_status")?,
            error: row.try_get("error")?,
            timeout: Duration::from_secs(row.try_get::<i32, _>("timeout_secs")?.max(0) as u64),
            started: row.try_get("started")?,
            ended: row.try_get("ended")?,
            updated: row.try_get("updated")?,
            running_for: row.try_get::<Option<f64>, _>("running_for")?.map(since),
            idle_for: since(row.try_get("idle_for")?),
            applied: applied.and_then(|hash| hash.try_into().ok()),
            written_bytes: row.try_get::<i64, _>("written_bytes")?.unsigned_abs(),
        })
    }
}

/// What a script printed and wrote.
#[derive(Clone, Default, PartialEq, Eq, FromRow)]
pub struct Outputs {
    /// stdout and stderr in the order of arrival.
    #[sqlx(rename = "output")]
    pub combined: Vec<u8>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// The script's YAML.
    pub result: Vec<u8>,
}

impl Outputs {
    pub fn size_bytes(&self) -> u64 {
        [&self.combined, &self.stdout, &self.stderr, &self.result]
            .iter()
            .map(|part| part.len() as u64)
            .sum()
    }
}

/// A script that a new set should hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewScript<'a> {
    pub name: &'a str,
    pub timeout: Duration,
}

/// What a signal changes in a result.
#[derive(Clone, Copy, Debug)]
pub struct Progress<'a> {
    pub status: ScriptStatus,
    pub exit_status: Option<i32>,
    pub error: &'a str,
    /// The script has begun: its clock starts, once.
    pub started: bool,
    pub applied: Option<&'a [u8; 32]>,
}

const SET: &str = "id, machine, type, boot_id, requested, finished";
const RESULT: &str = "r.id, r.set_id, r.name, r.status, r.exit_status, r.error, r.timeout_secs, r.started, \
                      r.ended, r.updated, r.applied, r.written_bytes, \
                      extract(epoch from now() - r.started)::float8 as running_for, \
                      extract(epoch from now() - r.updated)::float8 as idle_for";

// ---------------------------------------------------------------- sets

/// Makes a set with its pending results. Unfinished sets of the same machine and type end here (their open results
/// are Aborted), and all but the newest `SETS_MAX` are deleted.
pub async fn create_set(
    db: &mut PgConnection,
    machine: &SystemId,
    kind: &str,
    boot_id: Uuid,
    scripts: &[NewScript<'_>],
) -> Result<ScriptSet, StoreError> {
    let open: Vec<i32> = sqlx::query_scalar(
        "select id from script_set where machine = $1 and type = $2 and finished is null for update",
    )
    .bind(machine.as_str())
    .bind(kind)
    .fetch_all(&mut *db)
    .await?;
    for set in open {
        finish_set(db, set, ScriptStatus::Aborted, "a newer run was asked for").await?;
    }
    let set: ScriptSet = sqlx::query_as(AssertSqlSafe(format!(
        "insert into script_set (machine, type, boot_id) values ($1, $2, $3) returning {SET}"
    )))
    .bind(machine.as_str())
    .bind(kind)
    .bind(boot_id)
    .fetch_one(&mut *db)
    .await?;
    let names: Vec<&str> = scripts.iter().map(|script| script.name).collect();
    let timeouts: Vec<i32> = scripts
        .iter()
        .map(|script| seconds(script.timeout))
        .collect();
    sqlx::query(
        "insert into script_result (set_id, name, timeout_secs)
         select $1, name, timeout from unnest($2::text[], $3::int[]) as script (name, timeout)",
    )
    .bind(set.id)
    .bind(names)
    .bind(timeouts)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "delete from script_set where id in (
             select id from script_set where machine = $1 and type = $2 order by id desc offset $3)",
    )
    .bind(machine.as_str())
    .bind(kind)
    .bind(SETS_MAX)
    .execute(&mut *db)
    .await?;
    Ok(set)
}

/// The newest set of a machine and type.
pub async fn latest_set(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    kind: &str,
) -> Result<Option<ScriptSet>, StoreError> {
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "select {SET} from script_set where machine = $1 and type = $2 order by id desc limit 1"
    )))
    .bind(machine.as_str())
    .bind(kind)
    .fetch_optional(db)
    .await?)
}

/// All sets of a machine, newest first; `kind` narrows to one type.
pub async fn sets(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    kind: Option<&str>,
) -> Result<Vec<ScriptSet>, StoreError> {
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "select {SET} from script_set where machine = $1 and ($2::text is null or type = $2)
         order by id desc"
    )))
    .bind(machine.as_str())
    .bind(kind)
    .fetch_all(db)
    .await?)
}

/// One set, if it is this machine's.
pub async fn set(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    id: i32,
) -> Result<ScriptSet, StoreError> {
    sqlx::query_as(AssertSqlSafe(format!(
        "select {SET} from script_set where id = $1 and machine = $2"
    )))
    .bind(id)
    .bind(machine.as_str())
    .fetch_optional(db)
    .await?
    .ok_or_else(|| StoreError::not_found("script set", id))
}

/// Ends a set: what has no result yet gets `status` with the reason. Returns the names of those.
pub async fn finish_set(
    db: &mut PgConnection,
    id: i32,
    status: ScriptStatus,
    reason: &str,
) -> Result<Vec<String>, StoreError> {
    let open = numbers(|status| !status.is_finished());
    let names = sqlx::query_scalar(
        "update script_result set status = $2, error = $3, ended = now(), updated = now()
         where set_id = $1 and status = any($4) returning name",
    )
    .bind(id)
    .bind(status.number())
    .bind(reason)
    .bind(open)
    .fetch_all(&mut *db)
    .await?;
    sqlx::query("update script_set set finished = coalesce(finished, now()) where id = $1")
        .bind(id)
        .execute(&mut *db)
        .await?;
    Ok(names)
}

pub async fn delete_set(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    id: i32,
) -> Result<(), StoreError> {
    let done = sqlx::query("delete from script_set where id = $1 and machine = $2")
        .bind(id)
        .bind(machine.as_str())
        .execute(db)
        .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::not_found("script set", id));
    }
    Ok(())
}

// ---------------------------------------------------------------- results

/// The results of a set, by name.
pub async fn results(
    db: impl PgExecutor<'_>,
    set_id: i32,
) -> Result<Vec<ScriptResult>, StoreError> {
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "select {RESULT} from script_result r where r.set_id = $1 order by r.name"
    )))
    .bind(set_id)
    .fetch_all(db)
    .await?)
}

/// The results of these sets, by set and name, in one statement.
pub async fn results_of_sets(
    db: impl PgExecutor<'_>,
    sets: &[i32],
) -> Result<Vec<ScriptResult>, StoreError> {
    Ok(sqlx::query_as(AssertSqlSafe(format!(
        "select {RESULT} from script_result r where r.set_id = any($1) order by r.set_id, r.name"
    )))
    .bind(sets)
    .fetch_all(db)
    .await?)
}

/// Reads one result of this machine's set and locks it until the transaction ends.
pub async fn lock_result(
    db: &mut PgConnection,
    machine: &SystemId,
    id: i32,
) -> Result<ScriptResult, StoreError> {
    sqlx::query_as(AssertSqlSafe(format!(
        "select {RESULT} from script_result r join script_set s on s.id = r.set_id
         where r.id = $1 and s.machine = $2 for update of r"
    )))
    .bind(id)
    .bind(machine.as_str())
    .fetch_optional(db)
    .await?
    .ok_or_else(|| StoreError::not_found("script result", id))
}

/// Octets of outputs ever written to the results of a set.
pub async fn written_bytes(db: impl PgExecutor<'_>, set_id: i32) -> Result<u64, StoreError> {
    let written: i64 = sqlx::query_scalar(
        "select coalesce(sum(written_bytes), 0)::bigint from script_result where set_id = $1",
    )
    .bind(set_id)
    .fetch_one(db)
    .await?;
    Ok(written.unsigned_abs())
}

/// Which of a result's outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// stdout and stderr in the order of arrival.
    Combined,
    Stdout,
    Stderr,
    Result,
}

/// `length` octets of an output at `offset`, less at its end; none of a result that is gone.
pub async fn output_piece(
    db: impl PgExecutor<'_>,
    id: i32,
    part: Part,
    offset: usize,
    length: usize,
) -> Result<Vec<u8>, StoreError> {
    let column = match part {
        Part::Combined => "output",
        Part::Stdout => "stdout",
        Part::Stderr => "stderr",
        Part::Result => "result",
    };
    let number = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    let piece: Option<Vec<u8>> = sqlx::query_scalar(AssertSqlSafe(format!(
        "select substring({column} from $2 for $3) from script_result where id = $1"
    )))
    .bind(id)
    .bind(number(offset).saturating_add(1))
    .bind(number(length))
    .fetch_optional(db)
    .await?;
    Ok(piece.unwrap_or_default())
}

/// What a result's script printed.
pub async fn outputs(db: impl PgExecutor<'_>, id: i32) -> Result<Outputs, StoreError> {
    sqlx::query_as("select output, stdout, stderr, result from script_result where id = $1")
        .bind(id)
        .fetch_optional(db)
        .await?
        .ok_or_else(|| StoreError::not_found("script result", id))
}

/// What the newest result of this name printed to stdout.
pub async fn latest_stdout(
    db: impl PgExecutor<'_>,
    machine: &SystemId,
    name: &str,
) -> Result<Option<Vec<u8>>, StoreError> {
    Ok(sqlx::query_scalar(
        "select r.stdout from script_result r join script_set s on s.id = r.set_id
         where s.machine = $1 and r.name = $2 and r.status = 2 order by s.id desc limit 1",
    )
    .bind(machine.as_str())
    .bind(name)
    .fetch_optional(db)
    .await?)
}

/// Writes a signal's word on a result; `outputs` replaces what was stored, when there is something.
pub async fn update(
    db: impl PgExecutor<'_>,
    id: i32,
    progress: Progress<'_>,
    outputs: Option<&Outputs>,
) -> Result<(), StoreError> {
    sqlx::query(
        "update script_result set
             status = $2, exit_status = coalesce($3, exit_status), error = $4, updated = now(),
             started = case when $5 then coalesce(started, now()) else started end,
             ended = case when $6 then now() else ended end,
             applied = coalesce($7, applied),
             output = coalesce($8, output), stdout = coalesce($9, stdout),
             stderr = coalesce($10, stderr), result = coalesce($11, result),
             written_bytes = written_bytes + $12
         where id = $1",
    )
    .bind(id)
    .bind(progress.status.number())
    .bind(progress.exit_status)
    .bind(progress.error)
    .bind(progress.started)
    .bind(progress.status.is_finished())
    .bind(progress.applied.map(|hash| hash.as_slice()))
    .bind(outputs.map(|outputs| &outputs.combined))
    .bind(outputs.map(|outputs| &outputs.stdout))
    .bind(outputs.map(|outputs| &outputs.stderr))
    .bind(outputs.map(|outputs| &outputs.result))
    .bind(outputs.map_or(0, |outputs| outputs.size_bytes().cast_signed()))
    .execute(db)
    .await?;
    Ok(())
}

fn numbers(which: impl Fn(ScriptStatus) -> bool) -> Vec<i32> {
    ScriptStatus::ALL
        .into_iter()
        .filter(|status| which(*status))
        .map(ScriptStatus::number)
        .collect()
}

fn since(secs: f64) -> Duration {
    Duration::from_secs_f64(secs.clamp(0.0, 1e9))
}

fn seconds(duration: Duration) -> i32 {
    i32::try_from(duration.as_secs()).unwrap_or(i32::MAX)
}
