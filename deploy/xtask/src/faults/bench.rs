//! What the cases share: the lab, machines that the region knows, waits that end, and the score.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use lab::{BmcKind, Lab, ModelMachine, ModelSetup, Progress};
use serde_json::{Value, json};

use crate::checks::Score;
use crate::timeline::Event;

/// From the request to the machine's end, with a region that is away for some seconds.
pub const COMMISSIONING_LIMIT: Duration = Duration::from_secs(90);
/// For one step of a machine, or one fact in the region.
pub const STEP_LIMIT: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(20);

pub type Case = fn(&mut Bench) -> Result<()>;
pub type SlowCase = fn(&mut Bench) -> Result<Slow>;

/// A case that was begun, and is judged when others are done.
pub struct Slow {
    pub at: Instant,
    /// Model machines of it, whose traces are kept when it fails.
    pub machines: Vec<ModelMachine>,
    pub judge: Judge,
}

/// Told the case's name.
pub type Judge = Box<dyn FnOnce(&mut Bench, &str) -> Result<()>>;

impl Slow {
    pub fn new(
        known: Known,
        judge: impl FnOnce(&mut Bench, &str, &Known, Instant) -> Result<()> + 'static,
    ) -> Self {
        let at = Instant::now();
        Self {
            at,
            machines: vec![known.machine.clone()],
            judge: Box::new(move |bench, name| judge(bench, name, &known, at)),
        }
    }
}

pub struct Bench {
    pub lab: Lab,
    pub binaries: PathBuf,
    pub setup: ModelSetup,
    filters: Vec<String>,
    score: Score,
    /// Of the case that runs now: their traces are kept when it fails.
    machines: Vec<ModelMachine>,
    /// Of machines that ordinary clients are, and how many new ones there were.
    pub known_macs: Vec<String>,
    pub new_macs: u64,
    /// Addresses that attackers were given on the machines' VLAN and on the management network.
    pub neighbours: u32,
    pub outsiders: usize,
}

/// A model machine that the region knows.
#[derive(Clone)]
pub struct Known {
    pub machine: ModelMachine,
    pub id: String,
}

/// How a commissioning ended.
pub struct End {
    pub status: String,
    pub reason: String,
}

impl Bench {
    pub fn new(lab: Lab, binaries: PathBuf, setup: ModelSetup, filters: &[String]) -> Self {
        Self {
            lab,
            binaries,
            setup,
            filters: filters.to_vec(),
            score: Score::default(),
            machines: Vec::new(),
            known_macs: Vec::new(),
            new_macs: 0,
            neighbours: 0,
            outsiders: 0,
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.filters.is_empty() || self.filters.iter().any(|filter| name.contains(filter))
    }

    /// Runs one case, prints its line, and has region and rack run again whatever it left.
    pub fn case(&mut self, name: &str, case: impl FnOnce(&mut Self) -> Result<()>) {
        if self.is_wanted(name) {
            self.judge(name, Instant::now(), &[], case);
        }
    }

    /// Begins those of the cases that are wanted.
    pub fn start_all(
        &mut self,
        cases: &[(&'static str, SlowCase)],
    ) -> Vec<(&'static str, Result<Slow>)> {
        let wanted: Vec<_> = cases
            .iter()
            .filter(|(name, _)| self.is_wanted(name))
            .collect();
        wanted
            .into_iter()
            .map(|(name, start)| (*name, start(self)))
            .collect()
    }

    /// Waits for what [`Bench::start_all`] began.
    pub fn slow_case(&mut self, name: &str, started: Result<Slow>) {
        match started {
            Ok(Slow {
                at,
                machines,
                judge,
            }) => {
                self.judge(name, at, &machines, |bench| judge(bench, name));
            }
            Err(error) => self.judge(name, Instant::now(), &[], |_| Err(error)),
        }
    }

    fn judge(
        &mut self,
        name: &str,
        start: Instant,
        machines: &[ModelMachine],
        case: impl FnOnce(&mut Self) -> Result<()>,
    ) {
        self.machines = machines.to_vec();
        let result = case(self);
        let seconds = start.elapsed().as_secs_f64();
        match &result {
            Ok(()) => println!("PASS {name} ({seconds:.1} s)"),
            Err(error) => {
                let kept = self.keep_traces(name);
                println!(
                    "FAIL {name} ({seconds:.1} s): {error:#} (logs at {})",
                    kept.display()
                );
            }
        }
        self.score.add(Score::of(result.is_ok()));
        if let Err(error) = self.restore() {
            println!("     after {name}: {error:#}");
        }
    }

    pub fn has_failed(&self) -> bool {
        self.score.failed > 0
    }

    /// Machines of an earlier case belong to this one, too.
    pub fn watch(&mut self, machines: &[Known]) {
        self.machines
            .extend(machines.iter().map(|known| known.machine.clone()));
    }

    pub fn end(self) -> Score {
        self.lab.save_logs();
        self.score
    }

    fn restore(&mut self) -> Result<()> {
        for machine in std::mem::take(&mut self.machines) {
            machine.pull_plug()?;
        }
        if !self.lab.has_region() {
            self.lab.run_region(&self.binaries)?;
        }
        if !self.lab.has_rack(1) {
            self.lab.run_rack(&self.binaries, 1)?;
        }
        self.lab.check()
    }

    fn keep_traces(&self, case: &str) -> PathBuf {
        self.lab.save_logs();
        let name: String = case
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c } else { '-' })
            .collect();
        let folder = self.lab.logs().join(name);
        std::fs::create_dir_all(&folder).ok();
        for machine in &self.machines {
            for log in machine.logs() {
                let file = log
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .into_owned();
                std::fs::copy(&log, folder.join(format!("{}.{file}", machine.name))).ok();
            }
        }
        folder
    }

    // ------------------------------------------------------------ machines

    /// A new machine, off, that the region does not know.
    pub fn stranger(&mut self, bmc: BmcKind, options: Value) -> Result<ModelMachine> {
        let machine = self.lab.add_model(&self.setup, bmc)?;
        machine.set_options(&options)?;
        self.machines.push(machine.clone());
        Ok(machine)
    }

    /// A new machine, off, created through the API.
    pub fn machine(&mut self, bmc: BmcKind, options: Value) -> Result<Known> {
        let machine = self.stranger(bmc, options)?;
        let password = machine.bmc_password.0.clone();
        self.create(machine, &password)
    }

    /// Tells the region of a machine, with this BMC password.
    pub fn create(&mut self, machine: ModelMachine, password: &str) -> Result<Known> {
        let address = machine.bmc_address.to_string();
        let suite = if matches!(machine.bmc, BmcKind::Model { .. }) {
            "17"
        } else {
            "3"
        };
        let fields = [
            ("hostname", machine.name.as_str()),
            ("architecture", "amd64/generic"),
            ("mac_addresses", &machine.macs[0]),
            ("power_type", "ipmi"),
            ("power_parameters_power_address", &address),
            ("power_parameters_power_user", &machine.bmc_user),
            ("power_parameters_power_pass", password),
            ("power_parameters_power_driver", "LAN_2_0"),
            ("power_parameters_cipher_suite_id", suite),
            ("commission", "false"),
        ];
        let answer = self.lab.region().post("machines/", "", &fields)?;
        let id = answer.get("system_id").and_then(Value::as_str);
        let id = id.context("the region gave no system_id")?.to_owned();
        Ok(Known { machine, id })
    }

    pub fn commission(&self, known: &Known) -> Result<()> {
        self.lab
            .region()
            .post(&format!("machines/{}/", known.id), "commission", &[])
            .context("asking for the commissioning")?;
        Ok(())
    }

    // ------------------------------------------------------------ waits

    /// Waits until `seen` finds something. Its errors are waited out: a region may be away.
    pub fn until<T>(
        &mut self,
        what: &str,
        limit: Duration,
        mut seen: impl FnMut(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        let start = Instant::now();
        loop {
            let last = match seen(self) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => String::new(),
                Err(error) if error.is::<Stop>() => return Err(error),
                Err(error) => format!(": {error:#}"),
            };
            if start.elapsed() > limit {
                bail!("{what}: not within {} s{last}", limit.as_secs());
            }
            self.lab.check()?;
            std::thread::sleep(POLL);
        }
    }

    /// Waits for the `n`-th report (from 1) of a machine's step. A machine that can't go on ends the wait.
    pub fn nth_step(&mut self, machine: &ModelMachine, step: &str, n: usize) -> Result<Progress> {
        let what = format!("{}: {step}", machine.name);
        self.until(&what, STEP_LIMIT, |_| {
            let progress = machine.progress();
            let odd = progress.iter().find(|line| line.step == "other-address");
            if let Some(line) = odd {
                return Err(Stop(format!("{}: it got {}", machine.name, line.line)).into());
            }
            let found = progress
                .iter()
                .filter(|line| line.step == step)
                .nth(n - 1)
                .cloned();
            let stuck = progress.iter().rev().find(|line| line.step == "stuck");
            match (found, stuck) {
                (None, Some(stuck)) if n == 1 => {
                    let why = stuck.text("why");
                    Err(Stop(format!("{} is stuck: {why}", machine.name)).into())
                }
                (found, _) => Ok(found),
            }
        })
    }

    pub fn step(&mut self, machine: &ModelMachine, step: &str) -> Result<Progress> {
        self.nth_step(machine, step, 1)
    }

    pub fn events(&self, id: &str) -> Result<Vec<Event>> {
        let query = [
            ("op", "query"),
            ("id", id),
            ("level", "DEBUG"),
            ("limit", "1000"),
        ];
        let answer = self.lab.region().get("events/", &query)?;
        let found = answer.get("events").and_then(Value::as_array);
        Ok(found
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .filter_map(Event::parse)
            .collect())
    }

    /// Waits until the region knows of the step of the machine with this id.
    pub fn region_step(&mut self, id: &str, step: usize, limit: Duration) -> Result<()> {
        self.until(
            &format!("{id}: step {step} in the region"),
            limit,
            |bench| {
                let events = bench.events(id)?;
                let has = |event: &Event| event.step == Some(step);
                Ok(events.iter().any(has).then_some(()))
            },
        )
    }

    /// Waits until the commissioning has ended, one way or the other.
    pub fn end_of(&mut self, known: &Known, limit: Duration) -> Result<End> {
        let name = known.machine.name.clone();
        let end = self.end_of_id(&name, &known.id, limit);
        end.map_err(|error| anyhow!("{error:#}; {}", self.story(known)))
    }

    pub fn end_of_id(&mut self, name: &str, id: &str, limit: Duration) -> Result<End> {
        let path = format!("machines/{id}/");
        self.until(&format!("{name}: Ready or failed"), limit, |bench| {
            let machine = bench.lab.region().get(&path, &[])?;
            let text = |field: &str| {
                machine
                    .get(field)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            let status = text("status_name");
            let reason = match text("error_description") {
                empty if empty.is_empty() => text("status_message"),
                reason => reason,
            };
            let over = status == "Ready" || status.starts_with("Failed");
            Ok(over.then_some(End { status, reason }))
        })
    }

    /// Ready, whole, and off.
    pub fn expect_ready(&mut self, known: &Known) -> Result<()> {
        let end = self.end_of(known, COMMISSIONING_LIMIT)?;
        if end.status != "Ready" {
            bail!("{}: {}; {}", end.status, end.reason, self.story(known));
        }
        let machine = &known.machine;
        self.until(&format!("{} is off", machine.name), STEP_LIMIT, |_| {
            Ok((!machine.is_on()?).then_some(()))
        })?;
        self.expect_one_address(machine).map(drop)
    }

    /// The one address that a machine was given in all its boots, which is also that of its one lease row. The row of
    /// an address that was given while the region was away comes when the rack has attached again.
    pub fn expect_one_address(&mut self, machine: &ModelMachine) -> Result<String> {
        let given: BTreeSet<String> = machine
            .progress()
            .iter()
            .filter(|line| line.step == "address")
            .map(|line| line.text("address").to_owned())
            .collect();
        let what = format!("a lease row of {}, which was given {given:?}", machine.name);
        let rows = self.until(&what, STEP_LIMIT, |bench| {
            let rows = bench.lease_rows(machine)?;
            Ok((!rows.is_empty()).then_some(rows))
        })?;
        match (given.iter().next(), rows.as_slice()) {
            (Some(address), [row]) if given.len() == 1 && address == row => Ok(row.clone()),
            _ => bail!(
                "{} was given {given:?}, and has the leases {rows:?}",
                machine.name
            ),
        }
    }

    pub fn lease_rows(&self, machine: &ModelMachine) -> Result<Vec<String>> {
        let mac = &machine.macs[0];
        self.lab.query(&format!(
            "select host(address) from lease where mac = '{mac}'"
        ))
    }

    /// What is known of a machine, for a failure.
    fn story(&self, known: &Known) -> String {
        let last: Vec<String> = known
            .machine
            .progress()
            .iter()
            .rev()
            .take(4)
            .map(|line| line.line.to_string())
            .collect();
        let events: Vec<String> = self
            .events(&known.id)
            .unwrap_or_default()
            .iter()
            .rev()
            .take(6)
            .map(|event| format!("{}: {}", event.kind, event.text()))
            .collect();
        format!(
            "the machine's last: {}; last events: {}",
            last.join(" < "),
            events.join(" < ")
        )
    }
}

/// An error that no waiting mends.
#[derive(Debug)]
pub struct Stop(pub String);

impl std::fmt::Display for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Stop {}

/// Options of a machine that waits after `step`.
pub fn held_after(step: &str) -> Value {
    json!({"hold": [step]})
}

/// xorshift64*: the same numbers in every run with a seed, which may not be 0.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    /// Fewer than `max` of them.
    pub fn octets(&mut self, max: usize) -> Vec<u8> {
        let length = self.next() as usize % max;
        (0..length).map(|_| (self.next() >> 56) as u8).collect()
    }
}
