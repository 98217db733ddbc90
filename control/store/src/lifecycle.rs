//! A machine's life as the workflow sees and moves it: status, boot, deadline, power.
//!
//! `machine.rs` has what operators see and edit. Durations are computed by the database's clock, which also set the
//! stamps they are measured from.

use std::time::Duration;

use model::{MachineStatus, PowerState, SystemId};
use sqlx::postgres::PgRow;
use sqlx::{AssertSqlSafe, FromRow, PgConnection, PgExecutor, Row};
use uuid::Uuid;

use crate::StoreError;
use crate::feed::{self, Kind};

/// What decides a machine's next step.
#[derive(Clone, Debug, PartialEq)]
pub struct Life {
    pub system_id: SystemId,
    pub hostname: String,
    pub domain: String,
    pub status: MachineStatus,
    pub previous_status: MachineStatus,
    pub power_state: PowerState,
    pub bmc_id: Option<i32>,
    /// "" while none is configured.
    pub power_type: String,
    /// MAAS's word for the firmware that asked for an address: "uefi", "pxe"; "" while none did.
    pub bios_boot_method: String,
    /// Of the boot that is expected or running.
    pub boot_id: Option<Uuid>,
    pub enable_ssh: bool,
    pub locked: bool,
    /// In this status for so long.
    pub since_change: Duration,
    /// How long ago the machine last said something in this boot.
    pub since_heartbeat: Option<Duration>,
    pub deadline_passed: bool,
}

impl FromRow<'_, PgRow> for Life {
    fn from_row(row: &PgRow) -> Result<Self, sqlx::Error> {
        let status = |column: &str| -> Result<MachineStatus, sqlx::Error> {
            let number: i32 = row.try_get(column)?;
            MachineStatus::from_number(number).ok_or_else(|| sqlx::Error::ColumnDecode {
                index: column.to_owned(),
                source: format!("no machine status {number}").into(),
            })
        };
        let since = |secs: f64| Duration::from_secs_f64(secs.clamp(0.0, 1e9));
        Ok(Life {
            system_id: system_id_of(row, "system_id")?,
            hostname: row.try_get("hostname")?,
            domain: row.try_get("domain")?,
            status: status("status")?,
            previous_status: status("previous_status")?,
            power_state: row
                .try_get::<&str, _>("power_state")?
                .parse()
                .unwrap_or(PowerState::Unknown),
            bmc_id: row.try_get("bmc_id")?,
            power_type: row.try_get("power_type")?,
            bios_boot_method: row.try_get("bios_boot_method")?,
            boot_id: row.try_get("boot_id")?,
            enable_ssh: row.try_get("enable_ssh")?,
            locked: row.try_get("locked")?,
            since_change: since(row.try_get("since_change")?),
            since_heartbeat: row.try_get::<Option<f64>, _>("since_heartbeat")?.map(since),
            deadline_passed: row.try_get("deadline_passed")?,
        })
    }
}

pub(crate) fn system_id_of(row: &PgRow, column: &str) -> Result<SystemId, sqlx::Error> {
    row.try_get::<&str, _>(column)?
        .parse()
        .map_err(|error| sqlx::Error::ColumnDecode {
            index: column.to_owned(),
            source: Box::new(error),
        })
}

fn ids(texts: Vec<String>) -> Result<Vec<SystemId>, StoreError> {
    let parse = |text: String| {
        text.parse()
            .map_err(|_| StoreError::Corrupt { what: "system id" })
    };
    texts.into_iter().map(parse).collect()
}

impl Life {
    /// The machine's name with its domain.
    pub fn fqdn(&self) -> String {
        if self.domain.is_empty() {
            self.hostname.clone()
        } else {
            format!("{}.{}", self.hostname, self.domain)
        }
    }
}

const LIFE: &str =
    "m.system_id, m.hostname, m.domain, m.status, m.previous_status, m.power_state, m.bmc_id,
     coalesce((select b.power_type from bmc b where b.id = m.bmc_id), '') as power_type,
     m.bios_boot_method, m.boot_id, m.enable_ssh, m.locked,
     extract(epoch from now() - m.status_changed)::float8 as since_change,
     extract(epoch from now() - m.last_heartbeat)::float8 as since_heartbeat,
     coalesce(m.status_deadline < now(), false) as deadline_passed";

/// A boot that is expected.
#[derive(Clone, Copy, Debug)]
pub struct Boot {
    pub id: Uuid,
    /// The machine stays on and open afterwards.
    pub enable_ssh: bool,
    /// The links of its interfaces stay as they are.
    pub skip_networking: bool,
}

/// A change of status.
#[derive(Clone, Copy, Debug)]
pub struct Move<'a> {
    pub to: MachineStatus,
    /// From now; `None`: the new status may last.
    pub deadline: Option<Duration>,
    /// Why it failed, for people; "" when it did not.
    pub error: &'a str,
}

pub async fn get(db: impl PgExecutor<'_>, system_id: &SystemId) -> Result<Life, StoreError> {
    fetch(db, system_id, "").await
}

/// Reads a machine's life and locks its row until the transaction ends.
pub async fn lock(db: &mut PgConnection, system_id: &SystemId) -> Result<Life, StoreError> {
    fetch(db, system_id, "for update of m").await
}

async fn fetch(
    db: impl PgExecutor<'_>,
    system_id: &SystemId,
    lock: &'static str,
) -> Result<Life, StoreError> {
    sqlx::query_as(AssertSqlSafe(format!(
        "select {LIFE} from machine m where m.system_id = $1 {lock}"
    )))
    .bind(system_id.as_str())
    .fetch_optional(db)
    .await?
    .ok_or_else(|| StoreError::not_found("machine", system_id))
}

/// Moves a machine, which the caller has locked and whose transition it has checked, and tells the feed.
pub async fn move_to(
    db: &mut PgConnection,
    system_id: &SystemId,
    change: Move<'_>,
) -> Result<(), StoreError> {
    sqlx::query(
        "update machine set previous_status = status, status = $2, status_changed = now(),
             status_deadline = now() + make_interval(secs => $3), error_description = $4,
             status_message = '', updated = now()
         where system_id = $1",
    )
    .bind(system_id.as_str())
    .bind(change.to.number())
    .bind(change.deadline.map(|deadline| deadline.as_secs_f64()))
    .bind(change.error)
    .execute(&mut *db)
    .await?;
    feed::changed(db, Kind::Machine, system_id.as_str()).await
}

/// Expects a new boot: nothing of an earlier one counts for it.
pub async fn begin_boot(
    db: &mut PgConnection,
    system_id: &SystemId,
    boot: Boot,
) -> Result<(), StoreError> {
    sqlx::query(
        "update machine set boot_id = $2, enable_ssh = $3, skip_networking = $4, last_heartbeat = null,
             netboot = true
         where system_id = $1",
    )
    .bind(system_id.as_str())
    .bind(boot.id)
    .bind(boot.enable_ssh)
    .bind(boot.skip_networking)
    .execute(db)
    .await?;
    Ok(())
}

/// The machine said something: its deadline moves on. Written once a minute at most.
pub async fn heard(
    db: impl PgExecutor<'_>,
    system_id: &SystemId,
    deadline: Duration,
    message: &str,
) -> Result<(), StoreError> {
    sqlx::query(
        "update machine set last_heartbeat = now(), status_message = $3,
             status_deadline = now() + make_interval(secs => $2)
         where system_id = $1 and (last_heartbeat is null or status_message <> $3
                                   or last_heartbeat < now() - interval '1 minute')",
    )
    .bind(system_id.as_str())
    .bind(deadline.as_secs_f64())
    .bind(message)
    .execute(db)
    .await?;
    Ok(())
}

/// Stores what was seen of a machine's power. Returns whether it changed.
pub async fn set_power_state(
    db: impl PgExecutor<'_>,
    system_id: &SystemId,
    state: PowerState,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "update machine m set power_state = $2, power_state_updated = now()
         from (select system_id, power_state from machine where system_id = $1 for update) old
         where m.system_id = old.system_id returning old.power_state <> $2",
    )
    .bind(system_id.as_str())
    .bind(state.as_str())
    .fetch_optional(db)
    .await?
    .unwrap_or(false))
}

/// Stores which firmware machines booted with, as their racks saw it in DHCP. Says of how many that was new.
pub async fn learn_boot_methods(
    db: impl PgExecutor<'_>,
    learnt: &[(String, &'static str)],
) -> Result<u64, StoreError> {
    let (ids, methods): (Vec<&str>, Vec<&str>) = learnt
        .iter()
        .map(|(id, method)| (id.as_str(), *method))
        .unzip();
    let done = sqlx::query(
        "update machine m set bios_boot_method = l.method
         from unnest($1::text[], $2::text[]) as l (id, method)
         where m.system_id = l.id and m.bios_boot_method <> l.method",
    )
    .bind(ids)
    .bind(methods)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Racks are told of a change only: a machine that says the same again and again makes no work for them.
pub async fn set_netboot(
    db: &mut PgConnection,
    system_id: &SystemId,
    netboot: bool,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "update machine set netboot = $2 where system_id = $1 and netboot is distinct from $2",
    )
    .bind(system_id.as_str())
    .bind(netboot)
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Ok(());
    }
    feed::changed(db, Kind::Machine, system_id.as_str()).await
}

// ---------------------------------------------------------------- what the reconciler looks for

/// Machines in `status` that need a look: past their deadline, with a script past its own time (`grace` over it), or
/// with every result in and nothing heard for `quiet`.
pub async fn needing_a_decision(
    db: impl PgExecutor<'_>,
    status: MachineStatus,
    grace: Duration,
    quiet: Duration,
    limit: i64,
) -> Result<Vec<SystemId>, StoreError> {
    ids(sqlx::query_scalar(
        "select m.system_id from machine m
         where m.status = $1 and (
             m.status_deadline < now()
             or exists (
                 select 1 from script_result r join script_set s on s.id = r.set_id
                 where s.machine = m.system_id and s.boot_id = m.boot_id and r.status in (1, 7, 10)
                   and r.timeout_secs > 0
                   and r.started + make_interval(secs => r.timeout_secs + $2) < now())
             or exists (
                 select 1 from script_set s join script_result r on r.set_id = s.id
                 where s.machine = m.system_id and s.boot_id = m.boot_id and s.finished is null
                 group by s.id
                 having bool_and(r.status not in (0, 1, 7, 10))
                    and max(r.updated) < now() - make_interval(secs => $3)))
         order by m.status_deadline limit $4",
    )
    .bind(status.number())
    .bind(grace.as_secs_f64())
    .bind(quiet.as_secs_f64())
    .bind(limit)
    .fetch_all(db)
    .await?)
}

/// Machines that should be off after a boot of ours and were last seen on: since their status changed (within
/// `window`) nobody asked for power, no work of theirs is open, and the last ended `pause` ago (longer where the BMC
/// did not answer).
pub async fn to_be_switched_off(
    db: impl PgExecutor<'_>,
    statuses: &[MachineStatus],
    window: Duration,
    pause: Duration,
    limit: i64,
) -> Result<Vec<SystemId>, StoreError> {
    let statuses: Vec<i32> = statuses.iter().map(|status| status.number()).collect();
    ids(sqlx::query_scalar(
        "select m.system_id from machine m join bmc b on b.id = m.bmc_id
         where m.status = any($1) and m.power_state in ('on', 'error') and not m.enable_ssh
           and m.boot_id is not null and b.power_type <> 'manual'
           and m.status_changed > now() - make_interval(secs => $2)
           and not exists (
               select 1 from work w where w.machine = m.system_id and (
                   w.state in ('queued', 'claimed')
                   or (w.command in ('on', 'cycle', 'pxe_on') and w.created > m.status_changed)
                   or w.finished > now() - make_interval(
                       secs => case m.power_state when 'error' then $3 * 15 else $3 end)))
         order by m.status_changed limit $4",
    )
    .bind(statuses)
    .bind(window.as_secs_f64())
    .bind(pause.as_secs_f64())
    .bind(limit)
    .fetch_all(db)
    .await?)
}

/// Ends the tokens of machines that left `status` more than `grace` ago.
pub async fn end_tokens(
    db: impl PgExecutor<'_>,
    status: MachineStatus,
    grace: Duration,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update machine_token t set revoked = now() from machine m
         where t.machine = m.system_id and t.revoked is null and m.status <> $1
           and m.status_changed < now() - make_interval(secs => $2)",
    )
    .bind(status.number())
    .bind(grace.as_secs_f64())
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Ends the oldest tokens of a boot so that at most `keep` are alive.
pub async fn trim_tokens(
    db: impl PgExecutor<'_>,
    system_id: &SystemId,
    boot_id: Uuid,
    keep: i64,
) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update machine_token set revoked = now() where token_key in (
             select token_key from machine_token
             where machine = $1 and boot_id = $2 and revoked is null
             order by created desc, token_key offset $3)",
    )
    .bind(system_id.as_str())
    .bind(boot_id)
    .bind(keep)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
