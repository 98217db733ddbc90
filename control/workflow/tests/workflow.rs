//! The workflow against a real database; racks and BMCs are a model (`PowerLink`).

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use link::{LinkError, PowerFailure, PowerFailureClass, PowerOperation, PowerReport};
use model::{
    EventType, MachineStatus, PowerCommand, PowerState, PowerType, ScriptStatus, Signal, SystemId,
};
use sqlx::PgPool;
use store::inventory::BootInterface;
use store::lifecycle::{self, Life};
use store::script::{self, Outputs, ScriptResult};
use store::seal::Sealer;
use store::testing::TestDatabase;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;
use workflow::{CommissionOptions, PowerLink, Runner, SignalReport, WorkflowError};

// ---------------------------------------------------------------- racks and a BMC, modelled

/// How a rack of the model answers.
#[derive(Clone, Copy, Debug)]
enum Answer {
    Works,
    Fails(PowerFailureClass),
    /// The link breaks during the call.
    Lost,
    /// Never answers: the process that asks is killed meanwhile.
    Hangs,
}

#[derive(Clone, Default)]
struct Racks {
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    is_on: Arc<Mutex<bool>>,
    /// (rack, command) in order; and what was under way at once.
    calls: Arc<Mutex<Vec<(String, link::PowerCommand)>>>,
    active: Arc<Mutex<(usize, usize)>>,
    parameters: Arc<Mutex<String>>,
}

impl Racks {
    fn new(answers: &[(&str, Answer)]) -> Self {
        let racks = Racks::default();
        for (rack, answer) in answers {
            racks.set(rack, *answer);
        }
        racks
    }

    fn set(&self, rack: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(rack.to_owned(), answer);
    }

    fn calls(&self) -> Vec<String> {
        self.calls
            .lock()
            .unwrap()
            .iter()
            .map(|(rack, command)| format!("{rack} {command:?}"))
            .collect()
    }
}

impl PowerLink for Racks {
    fn connected(&self) -> Vec<String> {
        self.answers.lock().unwrap().keys().cloned().collect()
    }

    async fn power(&self, rack: &str, operation: PowerOperation) -> Result<PowerReport, LinkError> {
        self.calls
            .lock()
            .unwrap()
            .push((rack.to_owned(), operation.command));
        *self.parameters.lock().unwrap() = operation.parameters.expose().to_owned();
        {
            let mut active = self.active.lock().unwrap();
            active.0 += 1;
            active.1 = active.1.max(active.0);
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
        let answer = self.answers.lock().unwrap().get(rack).copied();
        let answer = answer.ok_or(LinkError::NotConnected)?;
        if matches!(answer, Answer::Hangs) {
            std::future::pending::<()>().await;
        }
        self.active.lock().unwrap().0 -= 1;
        let mut is_on = self.is_on.lock().unwrap();
        if matches!(answer, Answer::Works) {
            match operation.command {
                link::PowerCommand::Query => {}
                link::PowerCommand::Off => *is_on = false,
                _ => *is_on = true,
            }
        }
        let failure = match answer {
            Answer::Fails(class) => Some(PowerFailure {
                class,
                message: format!("{class:?}"),
            }),
            Answer::Lost => return Err(LinkError::Lost),
            Answer::Works | Answer::Hangs => None,
        };
        let state = if *is_on {
            link::PowerState::On
        } else {
            link::PowerState::Off
        };
        Ok(PowerReport {
            state,
            steps: vec![format!("is {state:?}")],
            failure,
        })
    }
}

// ---------------------------------------------------------------- a region

struct Region {
    db: TestDatabase,
    sealer: Arc<Sealer>,
    machine: SystemId,
    tasks: JoinSet<()>,
    cancel: CancellationToken,
}

const PASSWORD: &str = "correct horse";

impl Region {
    /// With racks "near" and "far" and one machine with an IPMI BMC.
    async fn new() -> Self {
        let db = store::testing::database().await;
        let sealer = Arc::new(Sealer::ephemeral());
        for rack in ["far", "near"] {
            sqlx::query("insert into rack (system_id, hostname) values ($1, $1)")
                .bind(rack)
                .execute(&db.pool)
                .await
                .unwrap();
        }
        sqlx::query("insert into rack_interface (rack, name, addresses) values ('near', 'bmc0', '{10.9.0.1/24}')")
            .execute(&db.pool)
            .await
            .unwrap();
        sqlx::query("insert into machine (system_id, hostname) values ('abc123', 'node-1')")
            .execute(&db.pool)
            .await
            .unwrap();
        sqlx::query("insert into interface (machine, name, mac) values ('abc123', 'eth0', '52:54:00:00:00:01')")
            .execute(&db.pool)
            .await
            .unwrap();
        let machine = "abc123".parse().unwrap();
        let region = Region {
            db,
            sealer,
            machine,
            tasks: JoinSet::new(),
            cancel: CancellationToken::new(),
        };
        region.set_power(PowerType::Ipmi).await;
        region
    }

    async fn set_power(&self, power_type: PowerType) {
        let mut parameters = serde_json::Map::new();
        if power_type == PowerType::Ipmi {
            parameters.insert("power_address".into(), "10.9.0.50".into());
            parameters.insert("power_pass".into(), PASSWORD.into());
        }
        let split = power_type.split(&parameters).unwrap();
        let mut tx = self.pool().begin().await.unwrap();
        store::bmc::set_for_machine(&mut tx, &self.sealer, &self.machine, power_type, &split)
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    fn pool(&self) -> &PgPool {
        &self.db.pool
    }

    fn start(&mut self, racks: &Racks) {
        let (pool, sealer) = (self.pool().clone(), self.sealer.clone());
        let sweep = workflow::Sweep::default();
        self.tasks = Runner::start(pool, sealer, racks.clone(), sweep, self.cancel.clone());
    }

    /// Looks at power in the background, each state when it is an hour old.
    fn start_sweeping(&mut self, racks: &Racks) {
        let (pool, sealer) = (self.pool().clone(), self.sealer.clone());
        let sweep = workflow::Sweep::every(Duration::from_secs(3600));
        self.tasks = Runner::start(pool, sealer, racks.clone(), sweep, self.cancel.clone());
    }

    /// As kill -9: nothing is drained, nothing recorded.
    async fn kill(&mut self) {
        self.tasks.shutdown().await;
    }

    async fn commission(&self) -> Result<workflow::Commissioned, WorkflowError> {
        let mut tx = self.pool().begin().await.unwrap();
        let done = workflow::commission(
            &mut tx,
            &self.machine,
            "admin",
            &CommissionOptions::default(),
        )
        .await;
        if done.is_ok() {
            tx.commit().await.unwrap();
        }
        done
    }

    async fn power(&self, command: PowerCommand) {
        let mut tx = self.pool().begin().await.unwrap();
        workflow::power(&mut tx, &self.machine, command, "admin")
            .await
            .unwrap();
        tx.commit().await.unwrap();
    }

    async fn life(&self) -> Life {
        lifecycle::get(self.pool(), &self.machine).await.unwrap()
    }

    async fn error(&self) -> String {
        sqlx::query_scalar("select error_description from machine")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }

    async fn events(&self) -> Vec<String> {
        sqlx::query_scalar("select type from event order by id")
            .fetch_all(self.pool())
            .await
            .unwrap()
    }

    async fn count(&self, event: EventType) -> usize {
        self.events()
            .await
            .into_iter()
            .filter(|name| name == event.name())
            .count()
    }

    async fn results(&self) -> BTreeMap<String, ScriptResult> {
        let set = script::latest_set(self.pool(), &self.machine, "commissioning")
            .await
            .unwrap()
            .unwrap();
        let results = script::results(self.pool(), set.id).await.unwrap();
        results
            .into_iter()
            .map(|result| (result.name.clone(), result))
            .collect()
    }

    async fn signal(&self, report: &SignalReport) -> Result<MachineStatus, WorkflowError> {
        let boot_id = self.life().await.boot_id.unwrap_or_default();
        self.signal_of(boot_id, report).await
    }

    async fn signal_of(
        &self,
        boot_id: Uuid,
        report: &SignalReport,
    ) -> Result<MachineStatus, WorkflowError> {
        let mut tx = self.pool().begin().await.unwrap();
        let status = workflow::signal(&mut tx, &self.machine, boot_id, report).await?;
        tx.commit().await.unwrap();
        Ok(status)
    }

    /// Runs every script as a well-behaved machine does, but for the final signal.
    async fn run_scripts(&self) {
        self.run_scripts_with(RESOURCES).await;
    }

    /// `inventory` is what the inventory script prints.
    async fn run_scripts_with(&self, inventory: &str) {
        for (name, result) in self.results().await {
            self.signal(&started(result.id)).await.unwrap();
            let output = if name == workflow::scripts::RESOURCES {
                inventory
            } else {
                "x"
            };
            self.signal(&ended(result.id, 0, output)).await.unwrap();
        }
    }

    async fn make_old(&self, column: &str, table: &str, secs: i64) {
        let sql = format!("update {table} set {column} = {column} - interval '{secs} seconds'");
        sqlx::query(sqlx::AssertSqlSafe(sql))
            .execute(self.pool())
            .await
            .unwrap();
    }

    async fn wait_for(&self, what: &str, done: impl AsyncFn(&Self) -> bool) {
        for _ in 0..400 {
            if done(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!(
            "not in time: {what}; {:?}; events {:?}",
            self.life().await,
            self.events().await
        );
    }

    async fn wait_status(&self, status: MachineStatus) {
        self.wait_for(status.name(), async |region| {
            region.life().await.status == status
        })
        .await;
    }
}

const RESOURCES: &str = r#"{"environment": {"kernel_architecture": "x86_64"}, "resources": {
    "cpu": {"sockets": [{"name": "CPU @ 2.00GHz", "cores": [{"threads": [{"id": 0}, {"id": 1}]}]}]},
    "memory": {"total": 1073741824},
    "network": {"cards": [{"vendor": "Red Hat", "ports": [
        {"id": "ens3", "address": "52:54:00:00:00:01", "link_detected": true, "link_speed": 1000},
        {"id": "ens4", "address": "52:54:00:00:00:02"}]}]},
    "storage": {"disks": [{"id": "vda", "size": 8589934592, "serial": "s1"}]},
    "system": {"uuid": "ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d", "vendor": "QEMU"}}}"#;

fn report(status: Signal, id: Option<i32>, exit_status: Option<i32>) -> SignalReport {
    let mut digest = [0; 32];
    digest[..4].copy_from_slice(&id.unwrap_or(0).to_be_bytes());
    digest[4] = exit_status.map_or(200, |exit| exit as u8);
    digest[5] = status as u8;
    SignalReport {
        status,
        script_result_id: id,
        exit_status,
        error: String::new(),
        outputs: None,
        digest,
        boot: BootInterface {
            mac: "52:54:00:00:00:01".parse().ok(),
            vlan: None,
        },
    }
}

fn started(id: i32) -> SignalReport {
    report(Signal::Working, Some(id), None)
}

fn ended(id: i32, exit_status: i32, output: &str) -> SignalReport {
    let outputs = Outputs {
        combined: output.into(),
        stdout: output.into(),
        stderr: Vec::new(),
        result: Vec::new(),
    };
    SignalReport {
        outputs: Some(outputs),
        ..report(Signal::Working, Some(id), Some(exit_status))
    }
}

fn finished(status: Signal) -> SignalReport {
    report(status, None, None)
}

// ---------------------------------------------------------------- intents

#[tokio::test]
async fn commissioning_begins_whole_or_not_at_all() {
    let region = Region::new().await;
    let begun = region.commission().await.unwrap();
    let life = region.life().await;
    assert_eq!(life.status, MachineStatus::Commissioning);
    assert_eq!(life.boot_id, Some(begun.boot_id));
    let results = region.results().await;
    assert!(
        results
            .values()
            .all(|result| result.status == ScriptStatus::Pending)
    );
    assert!(results.contains_key(workflow::scripts::RESOURCES));
    let work = store::work::get(region.pool(), begun.work).await.unwrap();
    assert_eq!(work.command, PowerCommand::PxeOn);
    assert_eq!(
        region.events().await,
        ["COMMISSIONING_REQUESTED", "WORK_QUEUED"]
    );
    let fed: i64 =
        sqlx::query_scalar("select count(*) from change where kind = 'machine' and key = 'abc123'")
            .fetch_one(region.pool())
            .await
            .unwrap();
    assert!(fed > 0, "racks must learn of the boot");
    // Again: not from here.
    assert!(matches!(
        region.commission().await,
        Err(WorkflowError::Illegal(_))
    ));
}

#[tokio::test]
async fn what_cannot_be_commissioned_is_refused() {
    let region = Region::new().await;
    let set = async |sql: &'static str| {
        sqlx::query(sql).execute(region.pool()).await.unwrap();
    };
    set("update machine set status = 6").await;
    let error = region.commission().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "Invalid transition: Deployed -> Commissioning."
    );
    set("update machine set status = 0, locked = true").await;
    assert!(matches!(
        region.commission().await,
        Err(WorkflowError::Locked)
    ));
    set("update machine set locked = false, bmc_id = null").await;
    assert!(matches!(
        region.commission().await,
        Err(WorkflowError::NoPower)
    ));
    region.set_power(PowerType::Manual).await;
    let mut tx = region.pool().begin().await.unwrap();
    let options = CommissionOptions {
        scripts: vec!["none".into(), "nope".into()],
        ..Default::default()
    };
    let refused = workflow::commission(&mut tx, &region.machine, "admin", &options).await;
    assert!(matches!(refused, Err(WorkflowError::UnknownScript(name)) if name == "nope"));
    drop(tx);
    assert_eq!(region.life().await.status, MachineStatus::New);
    assert!(region.commission().await.is_ok(), "manual power is allowed");
}

#[tokio::test]
async fn abort_ends_scripts_and_power() {
    let mut region = Region::new().await;
    let begun = region.commission().await.unwrap();
    let mut tx = region.pool().begin().await.unwrap();
    workflow::abort(&mut tx, &region.machine, "admin", "wrong one")
        .await
        .unwrap();
    tx.commit().await.unwrap();
    assert_eq!(region.life().await.status, MachineStatus::New);
    assert!(
        region
            .results()
            .await
            .values()
            .all(|result| result.status == ScriptStatus::Aborted)
    );
    let work = store::work::get(region.pool(), begun.work).await.unwrap();
    assert_eq!(work.state, store::work::WorkState::Cancelled);
    let mut tx = region.pool().begin().await.unwrap();
    let again = workflow::abort(&mut tx, &region.machine, "admin", "").await;
    assert!(matches!(
        again,
        Err(WorkflowError::NothingToAbort(MachineStatus::New))
    ));
    drop(tx);
    let racks = Racks::new(&[("near", Answer::Works)]);
    region.start(&racks);
    region
        .wait_for("off", async |region| {
            region.life().await.power_state == PowerState::Off
        })
        .await;
    assert_eq!(
        racks.calls(),
        ["near Off"],
        "what was queued before is not done"
    );
}

// ---------------------------------------------------------------- the runner

#[tokio::test]
async fn power_goes_through_the_rack_that_is_near() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("far", Answer::Works), ("near", Answer::Works)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    assert_eq!(racks.calls(), ["near PxeOn"]);
    assert!(
        racks.parameters.lock().unwrap().contains(PASSWORD),
        "opened for the operation"
    );
    assert_eq!(
        region.events().await,
        [
            "COMMISSIONING_REQUESTED",
            "WORK_QUEUED",
            "RACK_CHOSEN",
            "POWERED_ON"
        ]
    );
    let leaked: i64 =
        sqlx::query_scalar("select count(*) from event where description like '%' || $1 || '%'")
            .bind(PASSWORD)
            .fetch_one(region.pool())
            .await
            .unwrap();
    assert_eq!(leaked, 0);
}

#[tokio::test]
async fn a_rack_that_cannot_reach_the_bmc_is_followed_by_another_and_remembered() {
    let mut region = Region::new().await;
    let unreachable = Answer::Fails(PowerFailureClass::Unreachable);
    let racks = Racks::new(&[("far", Answer::Works), ("near", unreachable)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    assert_eq!(racks.calls(), ["near PxeOn", "far PxeOn"]);
    region.power(PowerCommand::Off).await;
    region
        .wait_for("off", async |region| {
            region.life().await.power_state == PowerState::Off
        })
        .await;
    assert_eq!(racks.calls()[2..], ["far Off"], "learned");
}

#[tokio::test]
async fn refused_credentials_fail_at_once() {
    let mut region = Region::new().await;
    let refused = Answer::Fails(PowerFailureClass::Credentials);
    let racks = Racks::new(&[("far", Answer::Works), ("near", refused)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region.wait_status(MachineStatus::FailedCommissioning).await;
    assert_eq!(racks.calls(), ["near PxeOn"]);
    assert!(
        region.error().await.contains("Credentials"),
        "{}",
        region.error().await
    );
    assert_eq!(region.count(EventType::CommissioningFailed).await, 1);
    assert_eq!(region.count(EventType::PowerFailed).await, 1);
    assert!(
        region
            .results()
            .await
            .values()
            .all(|result| result.status == ScriptStatus::Aborted)
    );
}

#[tokio::test]
async fn attempts_are_bounded() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Fails(PowerFailureClass::Timeout))]);
    region.commission().await.unwrap();
    region.start(&racks);
    region
        .wait_for("failed", async |region| {
            // Back-off is for the clock on the wall, not for a test.
            for sql in [
                "update work set not_before = now() where state = 'queued'",
                "notify muster_work",
            ] {
                sqlx::query(sql).execute(region.pool()).await.unwrap();
            }
            region.life().await.status == MachineStatus::FailedCommissioning
        })
        .await;
    assert_eq!(
        racks.calls().len(),
        workflow::outcome::ATTEMPTS_MAX as usize
    );
}

#[tokio::test]
async fn work_waits_for_a_rack() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[]);
    region.start(&racks);
    region.commission().await.unwrap();
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(region.life().await.status, MachineStatus::Commissioning);
    racks.set("far", Answer::Works);
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
}

#[tokio::test]
async fn a_killed_process_is_followed_by_another() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Hangs)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region
        .wait_for("asked", async |_| !racks.calls().is_empty())
        .await;
    region.kill().await;
    let held: f64 = sqlx::query_scalar(
        "select extract(epoch from claim_until - now())::float8 from work where state = 'claimed'",
    )
    .fetch_one(region.pool())
    .await
    .unwrap();
    assert!(held > 60.0, "held as long as the rack may act: {held} s");
    sqlx::query("update work set claim_until = now() - interval '1 s'")
        .execute(region.pool())
        .await
        .unwrap();
    racks.set("near", Answer::Works);
    region.start(&racks);
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    assert_eq!(racks.calls(), ["near PxeOn", "near PxeOn"]);
}

#[tokio::test]
async fn a_lost_link_is_not_followed_by_another_rack_at_once() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("far", Answer::Works), ("near", Answer::Lost)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region
        .wait_for("retry", async |region| {
            region.count(EventType::PowerRetried).await == 1
        })
        .await;
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(racks.calls(), ["near PxeOn"], "the rack may still be at it");
}

#[tokio::test]
async fn two_processes_never_use_one_bmc_at_once() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("far", Answer::Works), ("near", Answer::Works)]);
    region.start(&racks);
    let mut other = Runner::start(
        region.pool().clone(),
        region.sealer.clone(),
        racks.clone(),
        workflow::Sweep::default(),
        region.cancel.clone(),
    );
    for round in 0..10 {
        region
            .power(if round % 2 == 0 {
                PowerCommand::On
            } else {
                PowerCommand::Off
            })
            .await;
        let query = workflow::query_power(region.pool(), &region.machine)
            .await
            .unwrap();
        assert!(
            matches!(query.state, PowerState::On | PowerState::Off),
            "{query:?}"
        );
    }
    region
        .wait_for("rest", async |region| {
            let open: i64 = sqlx::query_scalar(
                "select count(*) from work where state in ('queued', 'claimed')",
            )
            .fetch_one(region.pool())
            .await
            .unwrap();
            open == 0
        })
        .await;
    assert_eq!(racks.active.lock().unwrap().1, 1, "at most one at a time");
    assert_eq!(
        region.life().await.power_state,
        PowerState::Off,
        "the newest intent holds"
    );
    region.cancel.cancel();
    while other.join_next().await.is_some() {}
}

// ---------------------------------------------------------------- sweeps

impl Region {
    /// Makes the power state, and the last look at it, `secs` old.
    async fn unseen_for(&self, secs: i64) {
        for (table, column) in [("machine", "power_state_updated"), ("bmc", "swept")] {
            self.make_old(column, table, secs).await;
        }
    }

    async fn sweep(&self, limit: i64, open_max: i64) -> u64 {
        let due = store::work::Due {
            every: Duration::from_secs(300),
            pause_max: Duration::from_secs(3600),
            limit,
            open_max,
        };
        let mut tx = self.pool().begin().await.unwrap();
        let queued = store::work::enqueue_sweep(&mut tx, due).await.unwrap();
        tx.commit().await.unwrap();
        queued
    }

    async fn work_count(&self) -> i64 {
        sqlx::query_scalar("select count(*) from work")
            .fetch_one(self.pool())
            .await
            .unwrap()
    }
}

/// Nobody asks: what was switched behind our back is seen, and leaves no work behind.
#[tokio::test]
async fn a_sweep_keeps_the_power_state_true() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Works)]);
    *racks.is_on.lock().unwrap() = true;
    region.start_sweeping(&racks);
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    region
        .wait_for("no work left", async |region| {
            region.work_count().await == 0
        })
        .await;
    assert_eq!(racks.calls(), ["near Query"]);
    assert_eq!(region.events().await, ["POWER_QUERIED"]);
    // The time of it is true as well, and a state that is young is not asked for again.
    let age: f64 = sqlx::query_scalar(
        "select extract(epoch from now() - power_state_updated)::float8 from machine",
    )
    .fetch_one(region.pool())
    .await
    .unwrap();
    assert!(age < 60.0, "{age}");
    assert_eq!(region.sweep(10, 10).await, 0);
}

#[tokio::test]
async fn a_machine_that_was_just_switched_is_not_asked() {
    let region = Region::new().await;
    let now = PowerState::On;
    lifecycle::set_power_state(region.pool(), &region.machine, now)
        .await
        .unwrap();
    assert_eq!(region.sweep(10, 10).await, 0);
    region.unseen_for(299).await;
    assert_eq!(region.sweep(10, 10).await, 0);
    region.unseen_for(10).await;
    assert_eq!(region.sweep(10, 10).await, 1);
    assert_eq!(region.sweep(10, 10).await, 0, "it is on its way");
}

#[tokio::test]
async fn a_sweep_is_bounded_and_leaves_manual_machines_alone() {
    let region = Region::new().await;
    assert_eq!(region.sweep(0, 10).await, 0, "its share of the interval");
    assert_eq!(region.sweep(10, 0).await, 0, "its place is taken");
    region.set_power(PowerType::Manual).await;
    assert_eq!(region.sweep(10, 10).await, 0);
}

/// Twice the time for each failure in a row, up to the longest; new parameters begin anew.
#[tokio::test]
async fn a_bmc_that_does_not_answer_is_swept_less_often() {
    let region = Region::new().await;
    let bmc = region.life().await.bmc_id.unwrap();
    let mut db = region.pool().acquire().await.unwrap();
    for pause in [600, 1200, 2400, 3600, 3600] {
        store::bmc::swept(&mut db, bmc, true).await.unwrap();
        sqlx::query("update bmc set swept = now()")
            .execute(&mut *db)
            .await
            .unwrap();
        region.make_old("swept", "bmc", pause - 5).await;
        assert_eq!(region.sweep(10, 10).await, 0, "before {pause} s");
        region.make_old("swept", "bmc", 10).await;
        assert_eq!(region.sweep(10, 10).await, 1, "after {pause} s");
        sqlx::query("delete from work")
            .execute(&mut *db)
            .await
            .unwrap();
    }
    region.set_power(PowerType::Ipmi).await;
    assert_eq!(region.sweep(10, 10).await, 1, "other parameters");
}

/// A BMC that gives no state: error, told once, and one rack asked once.
#[tokio::test]
async fn a_sweep_that_fails_says_error_and_tries_no_further() {
    let mut region = Region::new().await;
    let unreachable = Answer::Fails(PowerFailureClass::Unreachable);
    let racks = Racks::new(&[("far", unreachable), ("near", unreachable)]);
    region.start_sweeping(&racks);
    region
        .wait_for("error", async |region| {
            region.life().await.power_state == PowerState::Error
        })
        .await;
    assert_eq!(racks.calls().len(), 1, "{:?}", racks.calls());
    assert_eq!(region.count(EventType::PowerFailed).await, 1);
    let failures: i32 = sqlx::query_scalar("select sweep_failures from bmc")
        .fetch_one(region.pool())
        .await
        .unwrap();
    assert_eq!(failures, 1);
}

/// Whoever asks is told why there is no answer.
#[tokio::test]
async fn a_power_query_that_fails_says_why() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Fails(PowerFailureClass::Unreachable))]);
    region.start(&racks);
    let seen = workflow::query_power(region.pool(), &region.machine)
        .await
        .unwrap();
    assert_eq!(seen.state, PowerState::Error);
    assert_eq!(seen.reason, "Unreachable");
}

/// The command does not wait for the query, and the query's word is not taken.
#[tokio::test]
async fn a_command_takes_the_place_of_a_sweeps_query() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Hangs)]);
    region.start_sweeping(&racks);
    region
        .wait_for("the query", async |_| racks.calls() == ["near Query"])
        .await;
    racks.set("near", Answer::Works);
    region.power(PowerCommand::On).await;
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    assert_eq!(racks.calls(), ["near Query", "near On"]);
    assert_eq!(region.work_count().await, 1, "the command's own");
}

/// The rack saw which firmware asked; the BMC's flag is not.
#[tokio::test]
async fn boot_type_auto_follows_the_firmware_that_the_rack_saw() {
    for (learnt, chosen) in [
        (None, None),
        (Some("uefi"), Some("efi")),
        (Some("pxe"), Some("legacy")),
    ] {
        let mut region = Region::new().await;
        let racks = Racks::new(&[("near", Answer::Works)]);
        if let Some(method) = learnt {
            let learnt = [(region.machine.to_string(), method)];
            let changed = lifecycle::learn_boot_methods(region.pool(), &learnt).await;
            assert_eq!(changed.unwrap(), 1);
            let changed = lifecycle::learn_boot_methods(region.pool(), &learnt).await;
            assert_eq!(changed.unwrap(), 0, "written once");
        }
        region.start(&racks);
        region.commission().await.unwrap();
        region
            .wait_for("on", async |region| {
                region.life().await.power_state == PowerState::On
            })
            .await;
        let sent: serde_json::Value =
            serde_json::from_str(&racks.parameters.lock().unwrap()).unwrap();
        // "auto" is what the parameters hold by themselves.
        assert_eq!(
            sent["power_boot_type"],
            chosen.unwrap_or("auto"),
            "{learnt:?}"
        );
    }
}

#[tokio::test]
async fn a_manual_machine_s_power_is_unknown() {
    let region = Region::new().await;
    region.set_power(PowerType::Manual).await;
    let state = workflow::query_power(region.pool(), &region.machine)
        .await
        .unwrap()
        .state;
    assert_eq!(state, PowerState::Unknown);
}

// ---------------------------------------------------------------- signals

#[tokio::test]
async fn a_good_run_ends_ready_with_the_inventory_and_the_power_off() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Works)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    region.run_scripts().await;
    assert_eq!(
        region.signal(&finished(Signal::Ok)).await.unwrap(),
        MachineStatus::Ready
    );
    let (cpus, speed, memory, architecture, uuid, boot): (i32, i32, i64, String, String, Option<i32>) =
        sqlx::query_as(
            "select cpu_count, cpu_speed, memory_mib, architecture, hardware_uuid, boot_interface_id from machine",
        )
        .fetch_one(region.pool())
        .await
        .unwrap();
    assert_eq!(
        (cpus, speed, memory, architecture.as_str()),
        (2, 2000, 1024, "amd64/generic")
    );
    assert_eq!(uuid, "ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d");
    let cards: Vec<(i32, String, String)> =
        sqlx::query_as("select id, name, mac::text from interface order by name")
            .fetch_all(region.pool())
            .await
            .unwrap();
    let names: Vec<_> = cards
        .iter()
        .map(|(_, name, mac)| (name.as_str(), mac.as_str()))
        .collect();
    assert_eq!(
        names,
        [("ens3", "52:54:00:00:00:01"), ("ens4", "52:54:00:00:00:02")]
    );
    assert_eq!(boot, Some(cards[0].0), "the card that it booted from");
    let disks: Vec<String> = sqlx::query_scalar("select name from block_device")
        .fetch_all(region.pool())
        .await
        .unwrap();
    assert_eq!(disks, ["vda"]);
    // The machine switches itself off; the monitor sees it.
    *racks.is_on.lock().unwrap() = false;
    region
        .wait_for("off", async |region| {
            region.life().await.power_state == PowerState::Off
        })
        .await;
    assert!(
        !racks.calls().iter().any(|call| call.ends_with("Off")),
        "{:?}",
        racks.calls()
    );
    assert_eq!(region.count(EventType::PoweredOff).await, 1);
    assert_eq!(region.count(EventType::Commissioned).await, 1);
    assert_eq!(
        region.count(EventType::ScriptResult).await,
        region.results().await.len()
    );
}

/// A warning before it, a word that JSON does not have, a NUL, a speed of no cable, and disks that are none.
#[tokio::test]
async fn an_inventory_with_odd_fields_ends_ready_and_says_what_was_left_out() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    let odd = RESOURCES
        .replace("\"total\": 1073741824", "\"total\": NaN")
        .replace("\"link_speed\": 1000", "\"link_speed\": 2147483647")
        .replace(
            "\"vendor\": \"QEMU\"",
            "\"vendor\": \"QE\\u0000MU \\udcff\"",
        )
        .replace(
            "\"disks\": [",
            "\"disks\": [{\"id\": \"nvme0c0n1\", \"size\": 8589934592},
                {\"id\": \"sda\", \"size\": 8589934592, \"wwn\": \"naa.5000c500a1b2c3d4\"},
                {\"id\": \"sdb\", \"size\": 8589934592, \"wwn\": \"naa.5000c500a1b2c3d4\"},",
        );
    region
        .run_scripts_with(&format!("\u{feff}warning: {{odd}}\n{odd}\ngoodbye"))
        .await;
    let status = region.signal(&finished(Signal::Ok)).await.unwrap();
    assert_eq!(status, MachineStatus::Ready);
    let disks: Vec<(String, i32)> =
        sqlx::query_as("select name, paths from block_device order by name")
            .fetch_all(region.pool())
            .await
            .unwrap();
    assert_eq!(disks, [("sda".to_owned(), 2), ("vda".to_owned(), 1)]);
    let said: String =
        sqlx::query_scalar("select description from event where type = 'INVENTORY_NOTED'")
            .fetch_one(region.pool())
            .await
            .unwrap();
    for part in [
        "1 lines before the JSON skipped",
        "text after the JSON skipped",
        "2 values that JSON does not have skipped",
        "how much memory it has cannot be read",
        "sda is one disk on 2 paths",
        "a path of another disk: nvme0c0n1",
        "a link speed that cannot be: ens3",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[tokio::test]
async fn a_machine_that_stays_on_is_switched_off() {
    let mut region = Region::new().await;
    let racks = Racks::new(&[("near", Answer::Works)]);
    region.start(&racks);
    region.commission().await.unwrap();
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    region.run_scripts().await;
    region.signal(&finished(Signal::Ok)).await.unwrap();
    // Also its work: what is asked after Ready would count as an operator's wish.
    region.make_old("status_changed", "machine", 130).await;
    region.make_old("created", "work", 140).await;
    region
        .wait_for("off", async |region| {
            region.life().await.power_state == PowerState::Off
        })
        .await;
    assert!(
        racks.calls().contains(&"near Off".to_owned()),
        "{:?}",
        racks.calls()
    );
    // What an operator switches on stays on.
    region.power(PowerCommand::On).await;
    region
        .wait_for("on", async |region| {
            region.life().await.power_state == PowerState::On
        })
        .await;
    let before = racks.calls().len();
    workflow::tick(region.pool()).await.unwrap();
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(racks.calls().len(), before);
}

#[tokio::test]
async fn a_result_that_is_rewritten_without_end_is_refused_and_its_end_is_taken() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    let id = region.results().await["maas-lshw"].id;
    let working = |number: u8, octets: usize| SignalReport {
        digest: [number; 32],
        outputs: Some(Outputs {
            combined: vec![number; octets],
            ..Outputs::default()
        }),
        ..started(id)
    };
    let mut refused = None;
    for number in 1..=4 {
        if let Err(error) = region.signal(&working(number, 15 << 20)).await {
            refused = Some((number, error.to_string()));
            break;
        }
    }
    let (number, error) = refused.expect("refused");
    assert_eq!(number, 3, "{error}");
    assert!(error.contains("too large"), "{error}");
    let last = SignalReport {
        digest: [9; 32],
        outputs: working(9, 15 << 20).outputs,
        ..ended(id, 0, "")
    };
    region.signal(&last).await.unwrap();
    let result = &region.results().await["maas-lshw"];
    assert_eq!(result.status, ScriptStatus::Passed);
    assert!(result.error.contains("left out"), "{}", result.error);
    let outputs = script::outputs(region.pool(), id).await.unwrap();
    assert_eq!(outputs.combined[0], 2, "the last that had room");
}

#[tokio::test]
async fn signals_may_be_repeated_and_come_late() {
    let region = Region::new().await;
    let boot = region.commission().await.unwrap().boot_id;
    let results = region.results().await;
    let id = results["maas-lshw"].id;
    for _ in 0..2 {
        region.signal(&started(id)).await.unwrap();
    }
    for _ in 0..3 {
        region.signal(&ended(id, 0, "first")).await.unwrap();
    }
    // Neither a late start nor another result changes what is final.
    region.signal(&started(id)).await.unwrap();
    region.signal(&ended(id, 1, "second")).await.unwrap();
    let result = &region.results().await["maas-lshw"];
    assert_eq!(
        (result.status, result.exit_status),
        (ScriptStatus::Passed, Some(0))
    );
    let outputs = script::outputs(region.pool(), id).await.unwrap();
    assert_eq!(outputs.stdout, b"first");
    assert_eq!(region.count(EventType::ScriptResult).await, 1);
    assert_eq!(region.count(EventType::ScriptStarted).await, 1);

    region.run_scripts().await;
    for _ in 0..2 {
        assert_eq!(
            region.signal(&finished(Signal::Ok)).await.unwrap(),
            MachineStatus::Ready
        );
    }
    assert_eq!(
        region.signal(&finished(Signal::Failed)).await.unwrap(),
        MachineStatus::Ready
    );
    assert_eq!(region.count(EventType::Commissioned).await, 1);

    // A new run: words of the old boot do nothing in it.
    region.commission().await.unwrap();
    let status = region
        .signal_of(boot, &finished(Signal::Failed))
        .await
        .unwrap();
    assert_eq!(status, MachineStatus::Commissioning);
}

#[tokio::test]
async fn another_machine_s_result_is_not_found() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    let id = region.results().await["maas-lshw"].id;
    sqlx::query("insert into machine (system_id, hostname, status, boot_id) values ('zzz999', 'other', 1, gen_random_uuid())")
        .execute(region.pool())
        .await
        .unwrap();
    let other: SystemId = "zzz999".parse().unwrap();
    let boot = lifecycle::get(region.pool(), &other)
        .await
        .unwrap()
        .boot_id
        .unwrap();
    let mut tx = region.pool().begin().await.unwrap();
    let refused = workflow::signal(&mut tx, &other, boot, &ended(id, 0, "x")).await;
    assert!(
        matches!(
            refused,
            Err(WorkflowError::Store(store::StoreError::NotFound { .. }))
        ),
        "{refused:?}"
    );
}

#[tokio::test]
async fn failures_are_told_by_name() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    let results = region.results().await;
    region
        .signal(&ended(results["maas-lshw"].id, 3, "broken"))
        .await
        .unwrap();
    let garbage = region
        .signal(&ended(
            results[workflow::scripts::RESOURCES].id,
            0,
            "not json",
        ))
        .await;
    assert_eq!(
        garbage.unwrap(),
        MachineStatus::Commissioning,
        "the rest may still run"
    );
    region
        .signal(&ended(results["maas-kernel-cmdline"].id, 0, "x"))
        .await
        .unwrap();
    let status = region.signal(&finished(Signal::Failed)).await.unwrap();
    assert_eq!(status, MachineStatus::FailedCommissioning);
    let error = region.error().await;
    assert!(
        error.contains("maas-lshw") && error.contains("50-maas-01-commissioning"),
        "{error}"
    );
    assert_eq!(region.count(EventType::InventoryRefused).await, 1);
    assert_eq!(region.count(EventType::ScriptFailed).await, 2);
    assert!(region.commission().await.is_ok(), "and may be tried again");
}

#[tokio::test]
async fn a_card_of_another_machine_stays_there() {
    let region = Region::new().await;
    sqlx::query("insert into machine (system_id, hostname) values ('zzz999', 'other')")
        .execute(region.pool())
        .await
        .unwrap();
    sqlx::query(
        "insert into interface (machine, name, mac) values ('zzz999', 'eth0', '52:54:00:00:00:02')",
    )
    .execute(region.pool())
    .await
    .unwrap();
    region.commission().await.unwrap();
    region.run_scripts().await;
    assert_eq!(
        region.signal(&finished(Signal::Ok)).await.unwrap(),
        MachineStatus::Ready
    );
    let owner: String =
        sqlx::query_scalar("select machine from interface where mac = '52:54:00:00:00:02'")
            .fetch_one(region.pool())
            .await
            .unwrap();
    assert_eq!(owner, "zzz999");
    assert_eq!(region.count(EventType::CardShared).await, 1);
}

// ---------------------------------------------------------------- the monitor

#[tokio::test]
async fn silence_ends_in_failure_with_its_reason() {
    // What happened before the silence; how the clock is moved; the reason.
    let region = Region::new().await;
    region.commission().await.unwrap();
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(
        region.life().await.status,
        MachineStatus::Commissioning,
        "in time"
    );
    region.make_old("status_deadline", "machine", 1801).await;
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(region.error().await, "The machine did not start in time");
    assert!(
        region
            .results()
            .await
            .values()
            .all(|result| result.status == ScriptStatus::TimedOut)
    );
    assert_eq!(region.count(EventType::StatusTimeout).await, 1);
    let off: i64 =
        sqlx::query_scalar("select count(*) from work where command = 'off' and state = 'queued'")
            .fetch_one(region.pool())
            .await
            .unwrap();
    assert_eq!(off, 1);

    region.commission().await.unwrap();
    region.signal(&finished(Signal::Working)).await.unwrap();
    region.make_old("status_deadline", "machine", 1801).await;
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(
        region.error().await,
        "The machine stopped reporting before it had finished"
    );
}

#[tokio::test]
async fn a_script_over_its_time_is_timed_out() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    let results = region.results().await;
    region
        .signal(&started(results["maas-kernel-cmdline"].id))
        .await
        .unwrap();
    region.make_old("started", "script_result", 300).await;
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(
        region.life().await.status,
        MachineStatus::Commissioning,
        "within the grace"
    );
    region.make_old("started", "script_result", 31).await;
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(
        region.life().await.status,
        MachineStatus::FailedCommissioning
    );
    assert!(
        region.error().await.contains("maas-kernel-cmdline"),
        "{}",
        region.error().await
    );
    let results = region.results().await;
    assert_eq!(
        results["maas-kernel-cmdline"].status,
        ScriptStatus::TimedOut
    );
    assert_eq!(results["maas-lshw"].status, ScriptStatus::Aborted);
}

#[tokio::test]
async fn a_lost_final_signal_does_not_matter() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    region.run_scripts().await;
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(
        region.life().await.status,
        MachineStatus::Commissioning,
        "it may still come"
    );
    region.make_old("updated", "script_result", 61).await;
    workflow::tick(region.pool()).await.unwrap();
    assert_eq!(region.life().await.status, MachineStatus::Ready);
}

#[tokio::test]
async fn two_monitors_decide_once() {
    let region = Region::new().await;
    region.commission().await.unwrap();
    region.make_old("status_deadline", "machine", 1801).await;
    let ticks = (0..4).map(|_| workflow::tick(region.pool()));
    for done in futures_join(ticks).await {
        done.unwrap();
    }
    assert_eq!(region.count(EventType::CommissioningFailed).await, 1);
}

async fn futures_join<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    futures::future::join_all(all).await
}
