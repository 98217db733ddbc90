//! Does the queued work: claims it, picks a rack, has it act, records the outcome.
//!
//! ```text
//!   queued --claim--> claimed --done--> done
//!     ^                  |---failed for good, or not wanted any more--> failed, cancelled
//!     |---- later -------|
//!     `---- claim ended (this process died) : any process may take it
//! ```
//! A claim ends 30 s after its last heartbeat, and not before the rack's own time limit: two racks never act on one BMC
//! at once. No database connection is held while a rack is at work.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use link::{LinkError, PowerOperation, PowerReport, Racks, Secret};
use model::{EventType, MachineStatus, PowerCommand, PowerState};
use sqlx::postgres::PgListener;
use sqlx::{PgConnection, PgPool};
use store::bmc::{self, Bmc};
use store::event::{self, NewEvent};
use store::lifecycle::Life;
use store::seal::Sealer;
use store::work::{self, Work, WorkState};
use store::{StoreError, lifecycle};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::life::consider;
use crate::outcome::{self, ATTEMPTS_MAX, Next};
use crate::route::{Reason, choose_rack};
use crate::rules::Cause;
use crate::sweep::{self, Sweep};
use crate::{WorkflowError, monitor};

/// Operations of this process under way at once, over all racks.
const OPERATIONS_MAX: usize = 1024;
/// Claimed in one statement.
const CLAIM_BATCH: usize = 64;
const CLAIM: Duration = Duration::from_secs(30);
const HEARTBEAT: Duration = Duration::from_secs(10);
/// Over the rack's time limit: the way there and back, and the record of the outcome.
const CLAIM_MARGIN: Duration = Duration::from_secs(10);
/// Longest sleep of the loop.
const TIMER: Duration = Duration::from_secs(5);
/// Between two looks for claims of processes that died.
const RELEASE: Duration = Duration::from_secs(1);
const MONITOR: Duration = Duration::from_secs(3);
const HOUSEKEEPING: Duration = Duration::from_secs(600);
/// While no rack is connected.
const NO_RACK_DELAY: Duration = Duration::from_secs(3);
/// How long operations may finish when the process is told to stop.
const DRAIN: Duration = Duration::from_secs(10);
/// Tries to record an outcome while PostgreSQL is away; after them the claim runs out and the work is done again.
const RECORD_TRIES: u32 = 10;

/// Racks, as the runner needs them: `link::Racks`, and a model of racks and BMCs in tests.
pub trait PowerLink: Clone + Send + Sync + 'static {
    /// The racks that can be asked now.
    fn connected(&self) -> Vec<String>;

    /// Has `rack` do one operation.
    fn power(
        &self,
        rack: &str,
        operation: PowerOperation,
    ) -> impl Future<Output = Result<PowerReport, LinkError>> + Send;
}

impl PowerLink for Racks {
    fn connected(&self) -> Vec<String> {
        Racks::connected(self)
    }

    async fn power(&self, rack: &str, operation: PowerOperation) -> Result<PowerReport, LinkError> {
        Racks::power(self, rack, operation).await
    }
}

/// The tasks that do the workflow's work in a region process.
#[derive(Clone)]
pub struct Runner<L> {
    pool: PgPool,
    sealer: Arc<Sealer>,
    racks: L,
    sweep: Sweep,
}

impl<L: PowerLink> Runner<L> {
    /// Starts the work loop and the monitor. They end, their operations drained, after `cancel`.
    pub fn start(
        pool: PgPool,
        sealer: Arc<Sealer>,
        racks: L,
        sweep: Sweep,
        cancel: CancellationToken,
    ) -> JoinSet<()> {
        let runner = Runner {
            pool,
            sealer,
            racks,
            sweep,
        };
        let mut tasks = JoinSet::new();
        tasks.spawn(runner.clone().watch(cancel.clone()));
        tasks.spawn(runner.run(cancel));
        tasks
    }

    async fn watch(self, cancel: CancellationToken) {
        let mut monitor = tokio::time::interval(MONITOR);
        let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
        let mut sweep = tokio::time::interval(sweep::TICK);
        sweep.set_missed_tick_behavior(MissedTickBehavior::Delay);
        monitor.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let done = tokio::select! {
                () = cancel.cancelled() => return,
                _ = monitor.tick() => monitor::tick(&self.pool).await,
                // Nobody to ask: what is due stays due.
                _ = sweep.tick(), if !self.racks.connected().is_empty() => {
                    self.sweep.tick(&self.pool).await
                }
                _ = housekeeping.tick() => monitor::housekeeping(&self.pool).await,
            };
            if let Err(error) = done {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "reconciling machines"
                );
            }
        }
    }

    async fn run(self, cancel: CancellationToken) {
        let mut operations = JoinSet::new();
        let mut listener = None;
        let mut released = None;
        while !cancel.is_cancelled() {
            if listener.is_none() {
                listener = self.listen().await;
            }
            while operations.try_join_next().is_some() {}
            if released.is_none_or(|at: Instant| at.elapsed() >= RELEASE) {
                released = Some(Instant::now());
                if let Err(error) = work::release_expired(&self.pool).await {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "releasing expired claims"
                    );
                }
            }
            let free = OPERATIONS_MAX - operations.len();
            let claimed = self.claim(free.min(CLAIM_BATCH)).await;
            let full = claimed.len() == CLAIM_BATCH;
            for work in claimed {
                operations.spawn(self.clone().operate(work));
            }
            if full {
                continue;
            }
            let timer = self.until_due().await;
            tokio::select! {
                () = cancel.cancelled() => {}
                () = tokio::time::sleep(timer) => {}
                Some(_) = operations.join_next(), if !operations.is_empty() => {}
                alive = next_notification(&mut listener) => if !alive {
                    listener = None;
                    tokio::time::sleep(Duration::from_millis(500)).await;
                },
            }
        }
        let drain = async { while operations.join_next().await.is_some() {} };
        if tokio::time::timeout(DRAIN, drain).await.is_err() {
            tracing::warn!("power operations left to run; their claims end by themselves");
        }
    }

    /// None while PostgreSQL is away: the timer does, and the next turn tries again.
    async fn listen(&self) -> Option<PgListener> {
        let mut listener = PgListener::connect_with(&self.pool).await.ok()?;
        listener.listen(work::CHANNEL).await.ok()?;
        Some(listener)
    }

    async fn claim(&self, limit: usize) -> Vec<Work> {
        // Without a rack nothing can be done here; another region process may have one.
        if limit == 0 || self.racks.connected().is_empty() {
            return Vec::new();
        }
        match work::claim(&self.pool, limit as i64, CLAIM).await {
            Ok(claimed) => claimed,
            // Another process took a BMC between our look and our write: look again on the next turn.
            Err(StoreError::Constraint { .. }) => Vec::new(),
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "claiming work");
                Vec::new()
            }
        }
    }

    async fn until_due(&self) -> Duration {
        let due = work::next_due(&self.pool)
            .await
            .ok()
            .flatten()
            .unwrap_or(TIMER);
        // What is due already is held back by a busy BMC or a missing rack: no spinning.
        due.clamp(Duration::from_millis(250), TIMER)
    }

    /// One claimed piece of work, with its heartbeat.
    async fn operate(self, work: Work) {
        let Some(token) = work.claim_token else {
            return;
        };
        let mut beat = tokio::time::interval_at(Instant::now() + HEARTBEAT, HEARTBEAT);
        let operation = self.attempt(&work, token);
        tokio::pin!(operation);
        loop {
            tokio::select! {
                done = &mut operation => {
                    if let Err(error) = done {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(machine = %work.machine, work = work.id, error, "power work");
                    }
                    return;
                }
                _ = beat.tick() => match work::extend(&self.pool, token, CLAIM).await {
                    Ok(true) => {}
                    // Done by now, or taken over: whoever holds the claim records the outcome.
                    Ok(false) => {}
                    Err(error) => {
                        let error = &error as &dyn std::error::Error;
                        tracing::warn!(work = work.id, error, "extending a claim");
                    }
                },
            }
        }
    }

    /// Asks racks, one after another, until one of them settles it.
    async fn attempt(&self, work: &Work, token: Uuid) -> Result<(), WorkflowError> {
        if work.sweep {
            return self.look(work, token).await;
        }
        let limit = outcome::time_limit(work.command);
        let mut tried = Vec::new();
        let mut attempts = work.attempts;
        if work.command == PowerCommand::Query {
            attempts = ATTEMPTS_MAX; // whoever asks wants an answer, not a repeat
        }
        loop {
            let Some((rack, bmc, life)) =
                store::again(|| self.prepare(work, token, &tried, limit)).await?
            else {
                return Ok(());
            };
            let answer = match self.operation(work, token, &bmc, &life, limit) {
                Ok(operation) => self.racks.power(&rack, operation).await,
                Err(error) => {
                    let reason = error.to_string();
                    return self.record(work, token, None, Next::Fail { reason }).await;
                }
            };
            tried.push(rack.clone());
            if let Some(reached) = outcome::reached(&answer) {
                let mut connection = self.pool.acquire().await?;
                bmc::record_route(&mut connection, bmc.id, &rack, reached).await?;
            }
            let others = self
                .racks
                .connected()
                .iter()
                .any(|rack| !tried.contains(rack));
            match outcome::next(&answer, work.command, attempts, others) {
                Next::OtherRack { reason } => {
                    tracing::info!(machine = %work.machine, rack, reason, "trying another rack");
                }
                next => {
                    let steps = answer
                        .map(|report| report.steps.join("; "))
                        .unwrap_or_default();
                    return self.record(work, token, Some((&rack, &steps)), next).await;
                }
            }
        }
    }

    /// A sweep's query: one rack, one try, and nothing is said of the machine when the rack had no time.
    async fn look(&self, work: &Work, token: Uuid) -> Result<(), WorkflowError> {
        let limit = sweep::TIME_LIMIT;
        let Some((rack, bmc, life)) =
            store::again(|| self.prepare(work, token, &[], limit)).await?
        else {
            return Ok(());
        };
        let operation = self.operation(work, token, &bmc, &life, limit)?;
        let answer = self.racks.power(&rack, operation).await;
        if let Some(reached) = outcome::reached(&answer) {
            let mut connection = self.pool.acquire().await?;
            bmc::record_route(&mut connection, bmc.id, &rack, reached).await?;
        }
        let Some(next) = sweep::next(&answer) else {
            let why = "the rack had no time for it";
            work::complete(&self.pool, token, WorkState::Cancelled, why).await?;
            return Ok(());
        };
        self.sweep.counters.count(&next);
        self.record(work, token, Some((&rack, "")), next).await
    }

    /// Chooses the rack and says so; `None` when there is nothing to do now.
    async fn prepare(
        &self,
        work: &Work,
        token: Uuid,
        tried: &[String],
        limit: Duration,
    ) -> Result<Option<(String, Bmc, Life)>, WorkflowError> {
        let mut tx = self.pool.begin().await?;
        let life = lifecycle::lock(&mut tx, &work.machine).await?;
        let booting = life.status == MachineStatus::Commissioning;
        let unwanted = work::has_newer_intent(&mut *tx, &work.machine, work.id).await?
            || (work.command == PowerCommand::PxeOn && !booting);
        let bmc_id = match work.bmc_id {
            Some(bmc_id) if !unwanted => bmc_id,
            _ => {
                work::complete(&mut *tx, token, WorkState::Cancelled, "no longer wanted").await?;
                tx.commit().await?;
                return Ok(None);
            }
        };
        let bmc = bmc::get(&mut tx, bmc_id).await?;
        let routes = bmc::routes(&mut tx, bmc_id).await?;
        let Some((rack, reason)) = choose_rack(bmc_id, &routes, &self.racks.connected(), tried)
        else {
            work::retry(
                &mut *tx,
                token,
                NO_RACK_DELAY,
                false,
                "no rack is connected",
            )
            .await?;
            tx.commit().await?;
            return Ok(None);
        };
        if !work::chosen(&mut *tx, token, rack, limit + CLAIM_MARGIN).await? {
            return Ok(None);
        }
        if work.command != PowerCommand::Query {
            record_choice(&mut tx, work, rack, reason).await?;
        }
        tx.commit().await?;
        Ok(Some((rack.to_owned(), bmc, life)))
    }

    fn operation(
        &self,
        work: &Work,
        token: Uuid,
        bmc: &Bmc,
        life: &Life,
        deadline: Duration,
    ) -> Result<PowerOperation, StoreError> {
        let mut parameters = bmc.parameters_with_secrets(&self.sealer)?;
        if let Some(boot_type) = outcome::boot_type(&parameters, &life.bios_boot_method) {
            parameters.insert("power_boot_type".to_owned(), boot_type.into());
        }
        Ok(PowerOperation {
            // The same claim asks with the same id, so a rack that gets it twice does it once.
            id: *token.as_bytes(),
            driver: bmc.power_type.as_str().to_owned(),
            command: command_of(work.command),
            parameters: Secret::new(serde_json::Value::Object(parameters).to_string()),
            deadline,
        })
    }

    /// Writes the outcome, trying again while PostgreSQL is away.
    async fn record(
        &self,
        work: &Work,
        token: Uuid,
        by: Option<(&str, &str)>,
        next: Next,
    ) -> Result<(), WorkflowError> {
        let mut tries = 1;
        loop {
            match self.record_once(work, token, by, &next).await {
                Err(WorkflowError::Store(error))
                    if error.is_transient() && tries < RECORD_TRIES =>
                {
                    tries += 1;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                done => return done,
            }
        }
    }

    async fn record_once(
        &self,
        work: &Work,
        token: Uuid,
        by: Option<(&str, &str)>,
        next: &Next,
    ) -> Result<(), WorkflowError> {
        let (rack, steps) = by.unzip();
        let mut tx = self.pool.begin().await?;
        // Machine first, then its work: everyone who queues work takes the locks in this order.
        let life = lifecycle::lock(&mut tx, &work.machine).await?;
        let overtaken = work::has_newer_intent(&mut *tx, &work.machine, work.id).await?;
        let event = |kind, text: String| {
            let mut event = NewEvent::new(kind).machine(&work.machine).text(text);
            event.rack = rack.map(str::to_owned);
            event
        };
        let held = match next {
            Next::Done(_) => work::complete(&mut *tx, token, WorkState::Done, "").await?,
            Next::Fail { reason } if !overtaken => {
                work::complete(&mut *tx, token, WorkState::Failed, reason).await?
            }
            Next::Retry { delay, reason } if !overtaken => {
                work::retry(&mut *tx, token, *delay, true, reason).await?
            }
            _ => {
                let why = "a newer command was given";
                work::complete(&mut *tx, token, WorkState::Cancelled, why).await?
            }
        };
        if !held && work.sweep {
            return Ok(()); // a command took its place
        }
        if !held {
            tracing::warn!(
                work = work.id,
                "the claim was lost; its outcome is not recorded"
            );
            return Ok(());
        }
        if let (true, Some(bmc_id)) = (work.sweep, work.bmc_id) {
            bmc::swept(&mut tx, bmc_id, sweep::is_failure(next)).await?;
        }
        match next {
            Next::Done(state) => {
                let changed = lifecycle::set_power_state(&mut *tx, &work.machine, *state).await?;
                if let Some((kind, text)) = done_event(work.command, *state, changed) {
                    let steps = steps.filter(|steps| !steps.is_empty());
                    event::record(&mut tx, event(kind, steps.unwrap_or(text).to_owned())).await?;
                }
                if *state == PowerState::Off && life.status != MachineStatus::Commissioning {
                    // Its boot is over.
                    store::token::revoke_machine(&mut tx, &work.machine).await?;
                }
            }
            Next::Fail { reason } if !overtaken => {
                let error = PowerState::Error;
                let changed = lifecycle::set_power_state(&mut *tx, &work.machine, error).await?;
                // The same silence is told once, however often it is looked at.
                if changed || work.command != PowerCommand::Query {
                    let text = format!("{}: {reason}", work.command.as_str());
                    event::record(&mut tx, event(EventType::PowerFailed, text)).await?;
                }
                if switches_on(work.command) {
                    consider(&mut tx, &life, Cause::PowerFailed(reason)).await?;
                }
            }
            Next::Retry { delay, reason } if !overtaken => {
                let text = format!(
                    "{}: {reason}; attempt {} of {ATTEMPTS_MAX}, again in {} s",
                    work.command.as_str(),
                    work.attempts,
                    delay.as_secs()
                );
                event::record(&mut tx, event(EventType::PowerRetried, text)).await?;
            }
            _ => {}
        }
        tx.commit().await?;
        Ok(())
    }
}

async fn record_choice(
    tx: &mut PgConnection,
    work: &Work,
    rack: &str,
    reason: Reason,
) -> Result<(), StoreError> {
    let text = format!("{} by rack {rack}: {reason}", work.command.as_str());
    let event = NewEvent::new(EventType::RackChosen)
        .machine(&work.machine)
        .rack(rack)
        .text(text);
    event::record(tx, event).await
}

/// What is worth an event: a command that was given, or a state that changed by itself.
fn done_event(
    command: PowerCommand,
    state: PowerState,
    changed: bool,
) -> Option<(EventType, &'static str)> {
    match (command, state) {
        (PowerCommand::Query, PowerState::Off) if changed => {
            Some((EventType::PoweredOff, "it switched itself off"))
        }
        (PowerCommand::Query, _) if changed => Some((EventType::PowerQueried, state.as_str())),
        (PowerCommand::Query, _) => None,
        (PowerCommand::Off, PowerState::Off) => Some((EventType::PoweredOff, "")),
        (PowerCommand::Off, _) => Some((EventType::PowerRequested, "switch it off by hand")),
        (_, PowerState::On) => Some((EventType::PoweredOn, "")),
        (_, _) => Some((EventType::PowerRequested, "switch it on by hand")),
    }
}

fn switches_on(command: PowerCommand) -> bool {
    matches!(
        command,
        PowerCommand::On | PowerCommand::Cycle | PowerCommand::PxeOn
    )
}

fn command_of(command: PowerCommand) -> link::PowerCommand {
    match command {
        PowerCommand::Query => link::PowerCommand::Query,
        PowerCommand::On => link::PowerCommand::On,
        PowerCommand::Off => link::PowerCommand::Off,
        PowerCommand::Cycle => link::PowerCommand::Cycle,
        PowerCommand::PxeOn => link::PowerCommand::PxeOn,
    }
}

/// Whether the listener lives: its connection may have gone with PostgreSQL.
async fn next_notification(listener: &mut Option<PgListener>) -> bool {
    match listener {
        Some(listener) => {
            let alive = matches!(listener.try_recv().await, Ok(Some(_)));
            // One look serves all that was queued meanwhile.
            while listener.next_buffered().is_some() {}
            alive
        }
        None => std::future::pending().await,
    }
}
