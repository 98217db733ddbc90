//! A machine's word (`op=signal`): script results, inventory, and what the rules make of them, in one transaction.
//!
//! Safe to repeat: a body that was applied is recognised by its digest, a result that is final stays, and a machine
//! that has left Commissioning no longer listens (the answer is still OK: its client must not fail on a late word).

use model::{EventType, MachineStatus, ScriptStatus, Signal, SystemId};
use sqlx::PgConnection;
use store::event::{self, NewEvent};
use store::inventory::{self, BootInterface};
use store::lifecycle;
use store::script::{self, Outputs, Progress, ScriptResult};
use uuid::Uuid;

use crate::life::{consider, node_timeout};
use crate::rules::{Cause, script_status, yaml_status};
use crate::{WorkflowError, quota, resources, scripts};

/// Longest `error` kept of a signal, in octets.
const ERROR_BYTES_MAX: usize = 2000;

/// A signal, as its body said it.
pub struct SignalReport {
    pub status: Signal,
    pub script_result_id: Option<i32>,
    pub exit_status: Option<i32>,
    pub error: String,
    /// The script's files, if there were any.
    pub outputs: Option<Outputs>,
    /// SHA-256 over the body's meaning.
    pub digest: [u8; 32],
    /// Where the machine is plugged in, as the rack attests it.
    pub boot: BootInterface,
}

/// Takes a signal of `machine` in the boot that its token belongs to. Returns the machine's status then.
pub async fn signal(
    tx: &mut PgConnection,
    machine: &SystemId,
    boot_id: Uuid,
    report: &SignalReport,
) -> Result<MachineStatus, WorkflowError> {
    let mut life = lifecycle::lock(tx, machine).await?;
    let result = match report.script_result_id {
        // Also for a machine that no longer listens: an id that is not its own is an error at any time.
        Some(id) => Some(script::lock_result(tx, machine, id).await?),
        None => None,
    };
    if life.status != MachineStatus::Commissioning || life.boot_id != Some(boot_id) {
        tracing::debug!(%machine, status = %life.status, "late signal ignored");
        return Ok(life.status);
    }
    let error = clean(&report.error);
    let deadline = node_timeout(tx).await?;
    lifecycle::heard(&mut *tx, machine, deadline, &error).await?;
    life.since_heartbeat = Some(std::time::Duration::ZERO);
    life.deadline_passed = false;
    if let Some(result) = &result {
        on_result(tx, machine, boot_id, report, result, &error).await?;
    }
    let cause = match report.status {
        Signal::Ok => Cause::SignalledOk,
        Signal::Failed => Cause::SignalledFailed(&error),
        // Of the whole boot, not of one script.
        Signal::TimedOut if result.is_none() => Cause::SignalledFailed(&error),
        _ => Cause::Look,
    };
    consider(tx, &life, cause).await
}

async fn on_result(
    tx: &mut PgConnection,
    machine: &SystemId,
    boot_id: Uuid,
    report: &SignalReport,
    result: &ScriptResult,
    error: &str,
) -> Result<(), WorkflowError> {
    if result.applied == Some(report.digest) || result.status.is_finished() {
        return Ok(());
    }
    if script::set(&mut *tx, machine, result.set_id).await?.boot_id != boot_id {
        return Ok(());
    }
    let mut outputs = report.outputs.as_ref();
    let more = outputs.map_or(0, Outputs::size_bytes);
    let boot_bytes = script::written_bytes(&mut *tx, result.set_id).await?;
    let has_room = quota::has_room(result.written_bytes, boot_bytes, more);
    let yaml = report
        .outputs
        .as_ref()
        .and_then(|outputs| yaml_status(&outputs.result));
    let mut status = script_status(report.status, report.exit_status, yaml.as_deref());
    if !has_room && !status.is_finished() {
        return Err(WorkflowError::ResultsFull);
    }
    let mut error = error.to_owned();
    if status == ScriptStatus::Passed && result.name == scripts::RESOURCES {
        let output = report
            .outputs
            .as_ref()
            .map_or(&[][..], |outputs| &outputs.stdout);
        if let Err(reason) = store_inventory(tx, machine, output, report.boot).await? {
            status = ScriptStatus::Failed;
            error = format!("the inventory cannot be read: {reason}");
            let text = format!("{}: {error}", result.name);
            let event = NewEvent::new(EventType::InventoryRefused)
                .machine(machine)
                .text(text);
            event::record(tx, event).await?;
        }
    }
    if !has_room {
        // The end of a script is news all the same.
        outputs = None;
        let left_out = format!("{more} octets of output left out: the results are too large");
        error = [left_out, error]
            .join("; ")
            .trim_end_matches("; ")
            .to_owned();
    }
    let progress = Progress {
        status,
        exit_status: report.exit_status,
        error: &error,
        started: true,
        applied: Some(&report.digest),
    };
    script::update(&mut *tx, result.id, progress, outputs).await?;
    let event = if status.is_failure() {
        let exit = report
            .exit_status
            .map(|exit| format!(", exit status {exit}"))
            .unwrap_or_default();
        let text = format!("{}: {}{exit}: {error}", result.name, status.name());
        NewEvent::new(EventType::ScriptFailed).text(text)
    } else if status.is_finished() {
        NewEvent::new(EventType::ScriptResult).text(format!("{}: {}", result.name, status.name()))
    } else if result.status == ScriptStatus::Pending {
        NewEvent::new(EventType::ScriptStarted).text(result.name.as_str())
    } else {
        return Ok(());
    };
    event::record(tx, event.machine(machine)).await?;
    Ok(())
}

/// The inner error is the machine's: its text is no inventory.
async fn store_inventory(
    tx: &mut PgConnection,
    machine: &SystemId,
    output: &[u8],
    boot: BootInterface,
) -> Result<Result<(), resources::ResourcesError>, WorkflowError> {
    let (inventory, notes) = match resources::parse(output) {
        Ok(read) => read,
        Err(reason) => return Ok(Err(reason)),
    };
    if let Some(text) = notes.text() {
        let event = NewEvent::new(EventType::InventoryNoted).machine(machine);
        event::record(tx, event.text(clean(&text))).await?;
    }
    let strangers = inventory::replace(tx, machine, &inventory, boot).await?;
    for mac in strangers {
        let text = format!("network card {mac} belongs to another machine; left there");
        let event = NewEvent::new(EventType::CardShared)
            .machine(machine)
            .mac(mac);
        event::record(tx, event.text(text)).await?;
    }
    Ok(Ok(()))
}

/// A machine's text, as PostgreSQL and people can take it.
pub(crate) fn clean(text: &str) -> String {
    let mut end = text.len().min(ERROR_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end]
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_machines_are_cut_and_cleaned() {
        assert_eq!(clean("a\0b\nc"), "a b c");
        let long = clean(&"ä".repeat(ERROR_BYTES_MAX));
        assert!(long.len() <= ERROR_BYTES_MAX && long.chars().all(|c| c == 'ä'));
    }
}
