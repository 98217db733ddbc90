//! The reconciler: reads full state on a timer and asks the rules, so that silence ends and a crash between any two
//! steps is repaired. Any number of region processes may do it at once: each decision is made again under the lock.

use std::time::Duration;

use model::{MachineStatus, PowerCommand, SystemId};
use sqlx::{PgConnection, PgPool};
use store::{event, lifecycle, nonce, token, work};

use crate::WorkflowError;
use crate::life::consider;
use crate::rules::{Cause, QUIET, SCRIPT_GRACE, settle_power};

/// Machines looked at in one tick.
const BATCH: i64 = 500;
/// An event is history after this; the log of a machine that commissions daily stays a page of a few thousand.
const EVENTS_KEPT_DAYS: i32 = 90;
/// Deletes of events in one housekeeping.
const FORGET_ROUNDS: usize = 100;
/// Between two looks at the power of a machine that should switch itself off.
const SETTLE_PAUSE: Duration = Duration::from_secs(4);
/// After this long the power of a machine whose boot ended is its operator's.
const SETTLE_WINDOW: Duration = Duration::from_secs(900);
/// Statuses that a machine gets into when its boot of ours has ended.
const ENDED: [MachineStatus; 3] = [
    MachineStatus::Ready,
    MachineStatus::FailedCommissioning,
    MachineStatus::New,
];
/// How long a token outlives Commissioning, for a final signal whose answer was lost.
const TOKEN_GRACE: Duration = Duration::from_secs(300);

/// One pass. Errors of one machine do not keep the others waiting.
pub async fn tick(pool: &PgPool) -> Result<(), WorkflowError> {
    let commissioning = MachineStatus::Commissioning;
    let late =
        lifecycle::needing_a_decision(pool, commissioning, SCRIPT_GRACE, QUIET, BATCH).await?;
    for machine in late {
        if let Err(error) = store::again(|| look(pool, &machine)).await {
            tracing::warn!(%machine, error = &error as &dyn std::error::Error, "looking at a machine");
        }
    }
    let on =
        lifecycle::to_be_switched_off(pool, &ENDED, SETTLE_WINDOW, SETTLE_PAUSE, BATCH).await?;
    for machine in on {
        if let Err(error) = store::again(|| settle(pool, &machine)).await {
            tracing::warn!(%machine, error = &error as &dyn std::error::Error, "settling its power");
        }
    }
    lifecycle::end_tokens(pool, commissioning, TOKEN_GRACE).await?;
    Ok(())
}

async fn look(pool: &PgPool, machine: &SystemId) -> Result<(), WorkflowError> {
    let mut tx = pool.begin().await?;
    let life = lifecycle::lock(&mut tx, machine).await?;
    let status = consider(&mut tx, &life, Cause::Look).await?;
    tx.commit().await?;
    if status != life.status {
        tracing::info!(%machine, from = %life.status, to = %status, "the status monitor moved a machine");
    }
    Ok(())
}

async fn settle(pool: &PgPool, machine: &SystemId) -> Result<(), WorkflowError> {
    let mut tx = pool.begin().await?;
    let life = lifecycle::lock(&mut tx, machine).await?;
    let (true, Some(bmc_id)) = (ENDED.contains(&life.status), life.bmc_id) else {
        return Ok(());
    };
    let Some(command) = settle_power(life.power_state, life.since_change) else {
        return Ok(());
    };
    if command != PowerCommand::Query && work::has_newer_intent(&mut *tx, machine, 0).await? {
        return Ok(());
    }
    work::enqueue(&mut tx, machine, bmc_id, command).await?;
    tx.commit().await?;
    Ok(())
}

/// What ended long ago is deleted, some at a time.
pub(crate) async fn housekeeping(pool: &PgPool) -> Result<(), WorkflowError> {
    work::forget_old(pool).await?;
    let mut connection = pool.acquire().await?;
    token::forget_revoked(&mut connection).await?;
    nonce::clean(&mut connection, nonce::BOUNDS).await?;
    forget_events(&mut connection).await
}

/// Some thousands in a statement, as often as it takes, within reason: the next housekeeping goes on.
async fn forget_events(db: &mut PgConnection) -> Result<(), WorkflowError> {
    for _ in 0..FORGET_ROUNDS {
        let old = event::forget(db, EVENTS_KEPT_DAYS).await?;
        let strangers = event::forget_strangers(db, event::OF_RACK_MAX).await?;
        if old + strangers == 0 {
            break;
        }
    }
    let mut after = Some(String::new());
    while let Some(machine) = after {
        after = event::forget_of_machines(db, &machine, event::OF_MACHINE_MAX).await?;
    }
    Ok(())
}
