//! What operators ask for: commission, abort, power. Everything of one request is in the caller's transaction.

use std::time::Duration;

use model::{EventType, MachineStatus, PowerCommand, PowerState, ScriptStatus, SystemId};
use sqlx::{PgConnection, PgPool};
use store::event::{self, NewEvent};
use store::lifecycle::{self, Boot, Life, Move};
use store::script::{self, NewScript, ScriptResult};
use store::work::{self, WorkState};
use store::{setting, token};
use uuid::Uuid;

use crate::rules::{Action, Cause, Facts, ScriptFact, decide, failure_reason};
use crate::{WorkflowError, scripts};

/// MAAS's `node_timeout`, in minutes, while the setting is not set.
const NODE_TIMEOUT_MIN: f64 = 30.0;
/// How long a synchronous power query is waited for.
const QUERY_WAIT: Duration = Duration::from_secs(45);

/// MAAS's parameters of `op=commission` that mean something here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CommissionOptions {
    /// Stay on and open after the scripts.
    pub enable_ssh: bool,
    /// Leave the interfaces' links as they are.
    pub skip_networking: bool,
    /// Names or tags besides the built-in scripts; "none" and "" are nothing.
    pub scripts: Vec<String>,
}

/// What a commissioning began with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Commissioned {
    pub script_set: i32,
    pub work: i64,
    pub boot_id: Uuid,
}

/// Asks for a commissioning: New, Ready, Failed commissioning, ... -> Commissioning, with its scripts, its boot and the
/// power work, in this transaction.
pub async fn commission(
    tx: &mut PgConnection,
    machine: &SystemId,
    by: &str,
    options: &CommissionOptions,
) -> Result<Commissioned, WorkflowError> {
    let life = lifecycle::lock(tx, machine).await?;
    life.status.check_move(MachineStatus::Commissioning)?;
    if life.locked {
        return Err(WorkflowError::Locked);
    }
    let bmc_id = life.bmc_id.ok_or(WorkflowError::NoPower)?;
    for wanted in options
        .scripts
        .iter()
        .filter(|name| !name.is_empty() && *name != "none")
    {
        let known =
            |script: &scripts::Script| script.name == wanted || script.tags.contains(wanted);
        if !scripts::builtin().iter().any(known) {
            return Err(WorkflowError::UnknownScript(
                wanted.chars().take(64).collect(),
            ));
        }
    }
    let boot_id = Uuid::new_v4();
    let deadline = node_timeout(tx).await?;
    token::revoke_machine(tx, machine).await?;
    let boot = Boot {
        id: boot_id,
        enable_ssh: options.enable_ssh,
        skip_networking: options.skip_networking,
    };
    lifecycle::begin_boot(tx, machine, boot).await?;
    let change = Move {
        to: MachineStatus::Commissioning,
        deadline: Some(deadline),
        error: "",
    };
    lifecycle::move_to(tx, machine, change).await?;
    let list: Vec<NewScript<'_>> = scripts::builtin()
        .iter()
        .map(|script| NewScript {
            name: script.name,
            timeout: script.timeout,
        })
        .collect();
    let set = script::create_set(tx, machine, "commissioning", boot_id, &list).await?;
    let work = work::enqueue(tx, machine, bmc_id, PowerCommand::PxeOn).await?;
    let events = [
        NewEvent::new(EventType::CommissioningRequested)
            .machine(machine)
            .by(by),
        NewEvent::new(EventType::WorkQueued)
            .machine(machine)
            .by(by)
            .text("power on, booting from the network"),
    ];
    event::record_all(tx, &events).await?;
    Ok(Commissioned {
        script_set: set.id,
        work,
        boot_id,
    })
}

/// Stops a commissioning: back to New, results Aborted, power off where a region can switch it.
pub async fn abort(
    tx: &mut PgConnection,
    machine: &SystemId,
    by: &str,
    comment: &str,
) -> Result<(), WorkflowError> {
    let life = lifecycle::lock(tx, machine).await?;
    if life.status != MachineStatus::Commissioning {
        return Err(WorkflowError::NothingToAbort(life.status));
    }
    life.status.check_move(MachineStatus::New)?;
    let change = Move {
        to: MachineStatus::New,
        deadline: None,
        error: "",
    };
    lifecycle::move_to(tx, machine, change).await?;
    end_scripts(tx, &life, ScriptStatus::Aborted, "aborted by an operator").await?;
    token::revoke_machine(tx, machine).await?;
    power_off(tx, &life).await?;
    let event = NewEvent::new(EventType::CommissioningAborted)
        .machine(machine)
        .by(by)
        .text(comment);
    event::record(tx, event).await?;
    Ok(())
}

/// Queues a power command that an operator asked for. Returns the work's id.
pub async fn power(
    tx: &mut PgConnection,
    machine: &SystemId,
    command: PowerCommand,
    by: &str,
) -> Result<i64, WorkflowError> {
    let life = lifecycle::lock(tx, machine).await?;
    if life.locked && command != PowerCommand::Query {
        return Err(WorkflowError::Locked);
    }
    let bmc_id = life.bmc_id.ok_or(WorkflowError::NoPower)?;
    // A machine that should boot from the network is told so at each start.
    let command = match command {
        PowerCommand::On if life.status == MachineStatus::Commissioning => PowerCommand::PxeOn,
        command => command,
    };
    let work = work::enqueue(tx, machine, bmc_id, command).await?;
    if command != PowerCommand::Query {
        let event = NewEvent::new(EventType::PowerRequested)
            .machine(machine)
            .by(by);
        event::record(tx, event.text(command.as_str())).await?;
    }
    Ok(work)
}

/// What asking a BMC came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerSeen {
    pub state: PowerState,
    /// Why no state was given; "" when one was.
    pub reason: String,
}

impl PowerSeen {
    fn state(state: PowerState) -> Self {
        let reason = String::new();
        Self { state, reason }
    }
}

/// Asks the BMC, through a rack, for the power state, and waits for it. A manual machine's is unknown at once.
pub async fn query_power(pool: &PgPool, machine: &SystemId) -> Result<PowerSeen, WorkflowError> {
    let mut tx = pool.begin().await.map_err(WorkflowError::from)?;
    let life = lifecycle::get(&mut *tx, machine).await?;
    if life.power_type.is_empty() || life.power_type == "manual" {
        return Ok(PowerSeen::state(PowerState::Unknown));
    }
    let id = power(&mut tx, machine, PowerCommand::Query, "").await?;
    tx.commit().await.map_err(WorkflowError::from)?;
    let asked = tokio::time::Instant::now();
    let mut pause = Duration::from_millis(25);
    loop {
        tokio::time::sleep(pause).await;
        let work = work::get(pool, id).await?;
        match work.state {
            WorkState::Queued | WorkState::Claimed if asked.elapsed() < QUERY_WAIT => {}
            WorkState::Queued | WorkState::Claimed => return Err(WorkflowError::PowerTimeout),
            WorkState::Failed => {
                return Ok(PowerSeen {
                    state: PowerState::Error,
                    reason: work.error,
                });
            }
            WorkState::Done | WorkState::Cancelled => {
                let life = lifecycle::get(pool, machine).await?;
                return Ok(PowerSeen::state(life.power_state));
            }
        }
        pause = (pause * 2).min(Duration::from_millis(500));
    }
}

/// The machine asked for its metadata: recorded once a boot. Its deadline counts anew.
pub async fn booted(
    tx: &mut PgConnection,
    machine: &SystemId,
    boot_id: Uuid,
    rack: Option<&str>,
) -> Result<(), WorkflowError> {
    let life = lifecycle::lock(tx, machine).await?;
    if life.boot_id != Some(boot_id) || life.since_heartbeat.is_some() {
        return Ok(());
    }
    let deadline = node_timeout(tx).await?;
    lifecycle::heard(&mut *tx, machine, deadline, "Loading the ephemeral system").await?;
    let mut event = NewEvent::new(EventType::MetadataServed).machine(machine);
    event.rack = rack.map(str::to_owned);
    event::record(tx, event).await?;
    Ok(())
}

/// The machine said something that is no signal (cloud-init's reports): it lives.
pub async fn heard(
    tx: &mut PgConnection,
    machine: &SystemId,
    boot_id: Uuid,
    message: &str,
) -> Result<(), WorkflowError> {
    let life = lifecycle::lock(tx, machine).await?;
    if life.boot_id == Some(boot_id) && life.status == MachineStatus::Commissioning {
        let deadline = node_timeout(tx).await?;
        lifecycle::heard(&mut *tx, machine, deadline, &crate::signal::clean(message)).await?;
    }
    Ok(())
}

pub(crate) async fn node_timeout(db: &mut PgConnection) -> Result<Duration, WorkflowError> {
    let minutes = setting::get(db, "node_timeout")
        .await?
        .and_then(|value| value.as_f64().or_else(|| value.as_str()?.parse().ok()))
        .filter(|minutes| minutes.is_finite())
        .unwrap_or(NODE_TIMEOUT_MIN);
    Ok(Duration::from_secs_f64(
        minutes.clamp(0.05, 10_080.0) * 60.0,
    ))
}

/// Reads the facts, asks the rules, and writes what they say. The caller holds the machine's lock.
pub(crate) async fn consider(
    tx: &mut PgConnection,
    life: &Life,
    cause: Cause<'_>,
) -> Result<MachineStatus, WorkflowError> {
    let results = results_of_boot(tx, life).await?;
    let scripts: Vec<ScriptFact<'_>> = results.iter().map(fact).collect();
    let facts = Facts {
        cause,
        scripts: &scripts,
        booted: life.since_heartbeat.is_some(),
        deadline_passed: life.deadline_passed,
    };
    let (to, actions) = decide(life.status, &facts);
    if to == life.status {
        return Ok(to);
    }
    life.status.check_move(to)?;
    let change = Move {
        to,
        deadline: None,
        error: failure_reason(&actions),
    };
    lifecycle::move_to(tx, &life.system_id, change).await?;
    for action in &actions {
        enact(tx, life, action).await?;
    }
    Ok(to)
}

fn fact(result: &ScriptResult) -> ScriptFact<'_> {
    ScriptFact {
        id: result.id,
        name: &result.name,
        status: result.status,
        timeout: result.timeout,
        running_for: result.running_for,
        idle_for: result.idle_for,
    }
}

async fn results_of_boot(
    tx: &mut PgConnection,
    life: &Life,
) -> Result<Vec<ScriptResult>, WorkflowError> {
    match script::latest_set(&mut *tx, &life.system_id, "commissioning").await? {
        Some(set) if Some(set.boot_id) == life.boot_id => Ok(script::results(tx, set.id).await?),
        _ => Ok(Vec::new()),
    }
}

async fn enact(tx: &mut PgConnection, life: &Life, action: &Action) -> Result<(), WorkflowError> {
    let machine = &life.system_id;
    match action {
        Action::TimeOutScript { id } => {
            let progress = script::Progress {
                status: ScriptStatus::TimedOut,
                exit_status: None,
                error: "no result in time",
                started: false,
                applied: None,
            };
            script::update(tx, *id, progress, None).await?;
        }
        Action::EndScripts { status, reason } => end_scripts(tx, life, *status, reason).await?,
        Action::CancelPower => {
            work::cancel(tx, machine, "no longer wanted").await?;
        }
        Action::RevokeTokens => {
            token::revoke_machine(tx, machine).await?;
        }
        Action::PowerOff => power_off(tx, life).await?,
        Action::Record { event, text } => {
            event::record(
                tx,
                NewEvent::new(*event).machine(machine).text(text.as_str()),
            )
            .await?;
        }
    }
    Ok(())
}

async fn end_scripts(
    tx: &mut PgConnection,
    life: &Life,
    status: ScriptStatus,
    reason: &str,
) -> Result<(), WorkflowError> {
    if let Some(set) = script::latest_set(&mut *tx, &life.system_id, "commissioning").await?
        && Some(set.boot_id) == life.boot_id
    {
        script::finish_set(tx, set.id, status, reason).await?;
    }
    Ok(())
}

/// Off over the BMC, where there is one that a region can switch. Cancels what was queued before.
async fn power_off(tx: &mut PgConnection, life: &Life) -> Result<(), WorkflowError> {
    match life.bmc_id {
        Some(bmc_id) if life.power_type != "manual" => {
            work::enqueue(tx, &life.system_id, bmc_id, PowerCommand::Off).await?;
        }
        _ => {
            work::cancel(tx, &life.system_id, "no longer wanted").await?;
        }
    }
    Ok(())
}
