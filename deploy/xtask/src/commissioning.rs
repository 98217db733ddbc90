//! Commissions machines of a lab through the region's REST API, and judges what happened.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use lab::{Lab, Machine};
use serde_json::Value;

use crate::inventory;
use crate::screen::Screen;
use crate::timeline::{self, Event};

const POLL: Duration = Duration::from_secs(1);
/// After Ready the machine switches itself off; a rack has to see that, too.
const POWER_OFF_LIMIT: Duration = Duration::from_secs(90);
const EVENTS_SHOWN: usize = 12;
const ADDRESS_STEP: usize = 5;

/// Who hands out the machines' addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Addresses {
    Ours,
    /// Another DHCP server does, so the step of it is not seen.
    Elsewhere,
}

impl Addresses {
    /// The first step that did not happen, 1 to 12.
    fn missing(self, events: &[Event]) -> Option<usize> {
        let steps = timeline::steps(events);
        (1..).zip(steps).find_map(|(number, step)| {
            let not_ours = self == Addresses::Elsewhere && number == ADDRESS_STEP;
            (step.is_none() && !not_ours).then_some(number)
        })
    }
}

/// One machine's way, as far as it is known.
#[derive(Debug)]
pub struct Report {
    pub name: String,
    pub system_id: String,
    pub events: Vec<Event>,
    /// The region's last word on it.
    pub machine: Value,
    pub failure: Option<String>,
    addresses: Addresses,
    /// What happened before is not this commissioning's.
    before: i64,
    started: Instant,
    ended: bool,
    ready: Option<Instant>,
}

impl Report {
    fn new(name: &str, system_id: &str, addresses: Addresses) -> Self {
        Self {
            name: name.to_owned(),
            system_id: system_id.to_owned(),
            events: Vec::new(),
            machine: Value::Null,
            failure: None,
            addresses,
            before: 0,
            started: Instant::now(),
            ended: false,
            ready: None,
        }
    }

    fn text(&self, name: &str) -> &str {
        self.machine
            .get(name)
            .and_then(Value::as_str)
            .unwrap_or_default()
    }

    fn line(&self) -> String {
        let done = timeline::steps(&self.events).iter().flatten().count();
        let last = self.events.last().map_or("", Event::text);
        let bar: String = (0..12)
            .map(|step| if step < done { '#' } else { '.' })
            .collect();
        format!(
            "{:12} {:22} [{bar}] {done:>2}/12  {:>4.0} s  power {:7} {last}",
            self.name,
            self.text("status_name"),
            self.started.elapsed().as_secs_f64(),
            self.text("power_state"),
        )
    }

    fn fail(&mut self, why: String) {
        self.failure = Some(why);
        self.ended = true;
    }

    /// Which step is missing, what the region says of the machine, and the last events.
    pub fn explain(&self, why: &str) -> String {
        let mut text = format!("{}: {why}", self.name);
        if let Some(step) = self.addresses.missing(&self.events) {
            let name = timeline::step_name(step);
            text += &format!("\n  the first step that did not happen is {step}: {name}");
        }
        for field in [
            "status_name",
            "status_message",
            "error_description",
            "error",
            "power_state",
        ] {
            if !self.text(field).is_empty() {
                text += &format!("\n  {field}: {}", self.text(field));
            }
        }
        let first = self.events.len().saturating_sub(EVENTS_SHOWN);
        for event in &self.events[first..] {
            text += &format!(
                "\n  event {} {}: {}",
                event.level, event.kind, event.description
            );
        }
        text
    }
}

/// Tells the region of the machines by its REST API. Their ids, in the same order.
pub fn create(lab: &Lab, machines: &[usize]) -> Result<Vec<String>> {
    machines
        .iter()
        .map(|index| create_one(lab, &lab.machines()[*index]))
        .collect()
}

fn create_one(lab: &Lab, machine: &Machine) -> Result<String> {
    let address = machine.bmc_address.to_string();
    let fields = [
        ("hostname", machine.name.as_str()),
        ("architecture", "amd64/generic"),
        ("mac_addresses", &machine.macs[0]),
        ("power_type", "ipmi"),
        ("power_parameters_power_address", &address),
        ("power_parameters_power_user", &machine.bmc_user),
        ("power_parameters_power_pass", &machine.bmc_password.0),
        ("power_parameters_power_driver", "LAN_2_0"),
        ("power_parameters_cipher_suite_id", "3"),
        ("commission", "false"),
    ];
    let answer = lab
        .region()
        .post("machines/", "", &fields)
        .with_context(|| format!("creating {}", machine.name))?;
    let id = answer.get("system_id").and_then(Value::as_str);
    Ok(id
        .with_context(|| format!("the region gave {} no system_id", machine.name))?
        .to_owned())
}

/// Commissions these machines at once, and follows them until each is Ready and off, has failed, or is late.
pub fn commission(
    lab: &mut Lab,
    machines: &[usize],
    ids: &[String],
    limit: Duration,
    addresses: Addresses,
    screen: &mut Screen,
) -> Result<Vec<Report>> {
    let mut reports = Vec::new();
    for (index, id) in machines.iter().zip(ids) {
        let name = lab.machines()[*index].name.clone();
        let mut report = Report::new(&name, id, addresses);
        report.before = events_of(lab, id, 0)?.last().map_or(0, |event| event.id);
        lab.region()
            .post(&format!("machines/{id}/"), "commission", &[])
            .with_context(|| format!("asking for the commissioning of {name}"))?;
        reports.push(report);
    }
    let start = Instant::now();
    while reports.iter().any(|report| !report.ended) {
        lab.check()?;
        for (index, report) in machines.iter().zip(&mut reports) {
            if !report.ended {
                refresh(lab, report, screen)?;
                judge(
                    lab,
                    &lab.machines()[*index],
                    report,
                    start.elapsed() > limit,
                    limit,
                )?;
            }
        }
        let lines: Vec<String> = reports.iter().map(Report::line).collect();
        screen.draw(&lines);
        std::thread::sleep(POLL);
    }
    Ok(reports)
}

fn refresh(lab: &Lab, report: &mut Report, screen: &mut Screen) -> Result<()> {
    let region = lab.region();
    report.machine = region.get(&format!("machines/{}/", report.system_id), &[])?;
    let last = report.events.last().map_or(report.before, |event| event.id);
    let new = events_of(lab, &report.system_id, last)?;
    if !screen.is_terminal() {
        let seconds = report.started.elapsed().as_secs_f64();
        for event in &new {
            let step = event
                .step
                .map_or(String::new(), |step| format!("{step}/12"));
            let (name, kind, text) = (&report.name, &event.kind, &event.description);
            screen.line(&format!(
                "{seconds:>6.1} s  {name:12} {step:>5}  {kind}: {text}"
            ));
        }
    }
    report.events.extend(new);
    Ok(())
}

/// A machine's events after the one with this id, in order.
fn events_of(lab: &Lab, system_id: &str, after: i64) -> Result<Vec<Event>> {
    let text = after.to_string();
    let query = [
        ("op", "query"),
        ("id", system_id),
        ("after", &text),
        ("level", "DEBUG"),
        ("limit", "1000"),
    ];
    let answer = lab.region().get("events/", &query)?;
    let found = answer.get("events").and_then(Value::as_array);
    let mut events: Vec<Event> = found
        .into_iter()
        .flatten()
        .filter_map(Event::parse)
        .collect();
    events.retain(|event| event.id > after);
    events.sort_by_key(|event| event.id);
    Ok(events)
}

fn judge(
    lab: &Lab,
    machine: &Machine,
    report: &mut Report,
    late: bool,
    limit: Duration,
) -> Result<()> {
    let status = report.text("status_name").to_owned();
    match status.as_str() {
        "Ready" => {
            let since = *report.ready.get_or_insert_with(Instant::now);
            let off = report.text("power_state") == "off" && !machine.is_on()?;
            let all_steps = report.addresses.missing(&report.events).is_none();
            if off && all_steps {
                report.ended = true;
                report.failure =
                    inventory::missing(&report.machine, &machine.macs, &machine.disk_serials);
            } else if since.elapsed() > POWER_OFF_LIMIT {
                let why = match (all_steps, machine.is_on()?) {
                    (false, _) => "it is Ready, but not all twelve steps happened",
                    (true, true) => "it is Ready, but does not power off",
                    (true, false) => "it is off, and the region does not know",
                };
                report.fail(why.to_owned());
            }
        }
        status if status.starts_with("Failed") => {
            report.fail("the commissioning failed".to_owned())
        }
        _ if late => {
            let running = if lab.region().get("version/", &[]).is_ok() {
                ""
            } else {
                "; the region is silent"
            };
            report.fail(format!("not Ready within {} s{running}", limit.as_secs()));
        }
        _ => {}
    }
    Ok(())
}

/// Powers an unknown machine on, and waits until it has enlisted itself as New and is off again.
pub fn enlist(lab: &mut Lab, machine: usize, limit: Duration) -> Result<String> {
    let name = lab.machines()[machine].name.clone();
    let mac = lab.machines()[machine].macs[0].clone();
    lab.machines()[machine].press_power()?;
    let start = Instant::now();
    let mut found: Option<(String, String)> = None;
    loop {
        lab.check()?;
        let all = lab.region().get("machines/", &[])?;
        let of_mac = all
            .as_array()
            .map_or(&[][..], Vec::as_slice)
            .iter()
            .find(|entry| {
                let interfaces = entry.get("interface_set").and_then(Value::as_array);
                interfaces.is_some_and(|set| {
                    set.iter()
                        .any(|nic| nic.get("mac_address") == Some(&mac.clone().into()))
                })
            });
        if let Some(entry) = of_mac {
            let text = |name: &str| {
                entry
                    .get(name)
                    .and_then(Value::as_str)
                    .unwrap_or_default()
                    .to_owned()
            };
            found = Some((text("system_id"), text("status_name")));
        }
        if let Some((id, status)) = &found
            && status == "New"
            && !lab.machines()[machine].is_on()?
        {
            return Ok(id.clone());
        }
        if start.elapsed() > limit {
            let seconds = limit.as_secs();
            match found {
                None => bail!("{name} ({mac}) did not enlist within {seconds} s"),
                Some((id, status)) => {
                    bail!("{name} enlisted as {id}, and is {status} and on after {seconds} s")
                }
            }
        }
        std::thread::sleep(POLL);
    }
}

/// The log files of a lab that hold anything.
pub fn logs(lab_logs: &std::path::Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = std::fs::read_dir(lab_logs)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.metadata().is_ok_and(|file| file.len() > 0))
        .map(|entry| entry.path())
        .collect();
    files.sort();
    files
}
