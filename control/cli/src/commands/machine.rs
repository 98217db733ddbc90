//! `muster machine`: the machines and what is done with them.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::client::{Client, event_id, patient};
use crate::output::{Column, Output, complain, say, text};

const WATCH_EVERY: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub enum Command {
    /// All machines.
    List,
    /// One machine with its inventory.
    Show {
        /// system_id or host name.
        machine: String,
    },
    /// Add a machine.
    Create(Create),
    /// Inventory a machine: boot it from the network and run the commissioning scripts.
    Commission {
        /// system_id or host name.
        machine: String,
        /// Follow it until it is Ready or has failed.
        #[arg(long)]
        watch: bool,
    },
    /// Stop what a machine is doing.
    Abort {
        /// system_id or host name.
        machine: String,
    },
    /// Read or change a machine's power.
    Power {
        /// system_id or host name.
        machine: String,
        /// What to do.
        #[arg(value_enum)]
        action: PowerAction,
    },
    /// What happened to a machine.
    Events {
        /// system_id or host name.
        machine: String,
        /// Go on printing as things happen.
        #[arg(long)]
        watch: bool,
        /// Events to begin with, the newest ones.
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Remove a machine.
    Delete {
        /// system_id or host name.
        machine: String,
    },
}

#[derive(Clone, Copy, ValueEnum)]
pub enum PowerAction {
    Status,
    On,
    Off,
}

/// Power parameters that nobody but the region is to see.
const SECRETS: [&str; 3] = ["power_pass", "power_token", "k_g"];

#[derive(Args)]
pub struct Create {
    /// Its host name.
    hostname: String,
    /// MAC address of an interface; repeat for more, the one that boots first.
    #[arg(long = "mac", required = true)]
    macs: Vec<String>,
    /// Its architecture: amd64/generic, arm64/generic.
    #[arg(long, default_value = "amd64/generic")]
    architecture: String,
    /// ipmi, webhook or manual.
    #[arg(long, default_value = "manual")]
    power_type: String,
    /// A power parameter: `power_address=10.0.0.1`. Give secrets by --power-parameters-file.
    #[arg(long = "power", value_name = "NAME=VALUE")]
    power_parameters: Vec<String>,
    /// A JSON object of power parameters; `-` reads standard input.
    #[arg(long, value_name = "FILE")]
    power_parameters_file: Option<PathBuf>,
    /// Do not commission it now. Otherwise it is commissioned at once.
    #[arg(long)]
    no_commission: bool,
}

const LIST: &[Column] = &[
    ("system id", |row| text(row, "/system_id")),
    ("hostname", |row| text(row, "/hostname")),
    ("status", |row| text(row, "/status_name")),
    ("power", |row| text(row, "/power_state")),
    ("arch", |row| text(row, "/architecture")),
    ("cpus", |row| text(row, "/cpu_count")),
    ("memory MiB", |row| text(row, "/memory")),
    ("addresses", |row| text(row, "/ip_addresses")),
];

const SHOW: &[Column] = &[
    ("System id", |row| text(row, "/system_id")),
    ("Hostname", |row| text(row, "/hostname")),
    ("Status", |row| text(row, "/status_name")),
    ("Status message", |row| text(row, "/status_message")),
    ("Error", |row| text(row, "/error_description")),
    ("Power", |row| {
        format!(
            "{} ({})",
            text(row, "/power_state"),
            text(row, "/power_type")
        )
    }),
    ("Architecture", |row| text(row, "/architecture")),
    ("CPUs", |row| {
        format!(
            "{} {}",
            text(row, "/cpu_count"),
            text(row, "/hardware_info/cpu_model")
        )
    }),
    ("Memory MiB", |row| text(row, "/memory")),
    ("Disks", |row| {
        each(row, "/physicalblockdevice_set", |disk| {
            format!(
                "{} {} B {}",
                text(disk, "/name"),
                text(disk, "/size"),
                text(disk, "/model")
            )
        })
    }),
    ("Interfaces", |row| {
        each(row, "/interface_set", |nic| {
            format!("{} {}", text(nic, "/name"), text(nic, "/mac_address"))
        })
    }),
    ("Addresses", |row| text(row, "/ip_addresses")),
    ("System", |row| {
        format!(
            "{} {}",
            text(row, "/hardware_info/system_vendor"),
            text(row, "/hardware_info/system_product")
        )
    }),
    ("Serial", |row| text(row, "/hardware_info/system_serial")),
];

fn each(row: &Value, pointer: &str, one: fn(&Value) -> String) -> String {
    let items = row.pointer(pointer).and_then(Value::as_array);
    items
        .into_iter()
        .flatten()
        .map(one)
        .collect::<Vec<_>>()
        .join("\n")
}

impl Command {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Command::List => output.list(client.list("machines/", &[]).await?, LIST),
            Command::Show { machine } => output.one(&find(client, &machine).await?, SHOW),
            Command::Create(create) => output.one(&create.send(client).await?, SHOW),
            Command::Commission { machine, watch } => {
                let found = find(client, &machine).await?;
                let id = text(&found, "/system_id");
                let racks = serving_racks(client, &found).await;
                if let Some(warning) = boot_warning(&found, racks.as_deref()) {
                    complain(format_args!("warning: {warning}"));
                }
                if text(&found, "/power_type") == "manual" {
                    complain(format_args!(
                        "{machine} has manual power: switch it on, so that it boots from the network"
                    ));
                }
                let after = newest_event(client, &id).await?;
                let answer = client
                    .post(&format!("machines/{id}/?op=commission"), &[])
                    .await?;
                if !watch {
                    output.done(&answer, &format!("{machine} is commissioning."));
                    return Ok(());
                }
                return follow(client, &id, after, output).await;
            }
            Command::Abort { machine } => {
                let id = find_id(client, &machine).await?;
                let answer = client
                    .post(&format!("machines/{id}/?op=abort"), &[])
                    .await?;
                output.done(
                    &answer,
                    &format!("{machine}: {}.", text(&answer, "/status_name")),
                );
            }
            Command::Power { machine, action } => {
                let found = find(client, &machine).await?;
                power(client, &machine, &found, action, output).await?;
            }
            Command::Events {
                machine,
                watch,
                limit,
            } => {
                let id = find_id(client, &machine).await?;
                let mut after = print_events(client, &id, None, limit, output).await?;
                if !watch {
                    return Ok(());
                }
                let mut failures = 0;
                loop {
                    tokio::time::sleep(WATCH_EVERY).await;
                    let printed = print_events(client, &id, after, limit, output).await;
                    after = patient(&mut failures, printed)?.unwrap_or(after);
                }
            }
            Command::Delete { machine } => {
                let id = find_id(client, &machine).await?;
                let answer = client.delete(&format!("machines/{id}/")).await?;
                output.done(&answer, &format!("{machine} is gone."));
            }
        }
        Ok(())
    }
}

/// The VLAN whose racks serve a machine where it boots: that VLAN itself, or the one it is relayed to.
fn serving_vlan(machine: &Value) -> Option<&Value> {
    let vlan = machine.pointer("/boot_interface/vlan")?;
    let served = |vlan: &&Value| {
        vlan.get("dhcp_on") == Some(&Value::Bool(true)) && !text(vlan, "/primary_rack").is_empty()
    };
    [Some(vlan), vlan.get("relay_vlan")]
        .into_iter()
        .flatten()
        .find(served)
}

/// The racks that should serve a machine where it boots. `None`: none is set, or they could not be asked for.
async fn serving_racks(client: &Client, machine: &Value) -> Option<Vec<Value>> {
    let ids: Vec<(&str, String)> = serving_vlan(machine)
        .into_iter()
        .flat_map(|vlan| ["/primary_rack", "/secondary_rack"].map(|field| text(vlan, field)))
        .filter(|id| !id.is_empty())
        .map(|id| ("id", id))
        .collect();
    if ids.is_empty() {
        return None;
    }
    let racks = client.get("rackcontrollers/", &ids).await.ok()?;
    racks.as_array().cloned()
}

/// Why a machine may not get an address where it boots. `None`: as far as is known it does.
fn boot_warning(machine: &Value, racks: Option<&[Value]>) -> Option<String> {
    let vlan = machine.pointer("/boot_interface/vlan")?;
    if vlan.is_null() {
        let mac = text(machine, "/boot_interface/mac_address");
        return Some(format!(
            "no rack has seen {mac} yet: it boots only on a VLAN that a rack serves"
        ));
    }
    let (id, fabric) = (text(vlan, "/id"), text(vlan, "/fabric"));
    if serving_vlan(machine).is_some() {
        let racks = racks?;
        let is_away = |rack: &Value| rack.get("connected") != Some(&Value::Bool(true));
        let names: Vec<String> = racks.iter().map(|rack| text(rack, "/hostname")).collect();
        return racks.iter().all(is_away).then(|| {
            format!(
                "no rack that serves VLAN {id} ({fabric}), where it boots, is connected ({}): until one is, it may get no \
                 address and no boot file",
                names.join(", ")
            )
        });
    }
    Some(format!(
        "no rack serves VLAN {id} ({fabric}), where it boots: it gets no address and no boot file. \
         `muster vlan dhcp-on {id} --primary-rack RACK` changes that"
    ))
}

async fn power(
    client: &Client,
    name: &str,
    machine: &Value,
    action: PowerAction,
    output: Output,
) -> anyhow::Result<()> {
    let path = format!("machines/{}/", text(machine, "/system_id"));
    let manual = text(machine, "/power_type") == "manual";
    let (operation, word) = match action {
        PowerAction::Status => {
            let query = [("op", "query_power_state".to_owned())];
            let answer = client.get(&path, &query).await?;
            let state = text(&answer, "/state");
            if state == "error" {
                let reason = match text(&answer, "/reason") {
                    reason if reason.is_empty() => "its BMC gave no state".to_owned(),
                    reason => reason,
                };
                bail!("the power of {name} is not known: {reason}");
            }
            let why = if manual { ": its power is manual" } else { "" };
            output.done(&answer, &format!("{name} is {state}{why}."));
            return Ok(());
        }
        PowerAction::On => ("power_on", "on"),
        PowerAction::Off => ("power_off", "off"),
    };
    let answer = client.post(&format!("{path}?op={operation}"), &[]).await?;
    let sentence = match manual {
        true => format!("{name} has manual power: a person must switch it {word}."),
        false => format!("{name} is asked to power {word}."),
    };
    output.done(&answer, &sentence);
    Ok(())
}

impl Create {
    async fn send(self, client: &Client) -> anyhow::Result<Value> {
        let mut fields = vec![
            ("hostname", self.hostname),
            ("architecture", self.architecture),
            ("power_type", self.power_type),
            ("commission", (!self.no_commission).to_string()),
        ];
        fields.extend(self.macs.into_iter().map(|mac| ("mac_addresses", mac)));
        let mut parameters = match self.power_parameters_file {
            Some(path) => read_parameters(&path)?,
            None => serde_json::Map::new(),
        };
        for parameter in &self.power_parameters {
            let Some((name, value)) = parameter.split_once('=') else {
                bail!("a power parameter is NAME=VALUE");
            };
            // Whoever lists this machine's processes reads it.
            if SECRETS.contains(&name) && !value.is_empty() {
                bail!(
                    "{name} is a secret: give it by --power-parameters-file, or by `-` from standard input"
                );
            }
            parameters.insert(name.to_owned(), value.into());
        }
        fields.push(("power_parameters", Value::Object(parameters).to_string()));
        client.post("machines/", &fields).await
    }
}

fn read_parameters(path: &PathBuf) -> anyhow::Result<serde_json::Map<String, Value>> {
    let mut text = String::new();
    if path.as_os_str() == "-" {
        std::io::stdin().take(1 << 20).read_to_string(&mut text)?;
    } else {
        text =
            std::fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
    }
    // It may hold a password, and the parser quotes what is not an object: it is told what it is not, and where it ends.
    match serde_json::from_str(&text) {
        Ok(Value::Object(parameters)) => Ok(parameters),
        Ok(_) => bail!("power parameters are one JSON object"),
        Err(error) => bail!(
            "power parameters are one JSON object: line {}, column {} is not JSON",
            error.line(),
            error.column()
        ),
    }
}

/// The machine with this system_id or host name, and no other: what is asked for next may delete it.
async fn find(client: &Client, machine: &str) -> anyhow::Result<Value> {
    if machine.trim().is_empty() {
        bail!("which machine? An empty name is nobody's");
    }
    let mut found = Vec::new();
    for filter in ["hostname", "id"] {
        let rows = client
            .list("machines/", &[(filter, machine.to_owned())])
            .await?;
        found.extend(rows.into_iter().filter(|row| is_called(row, machine)));
        if !found.is_empty() {
            break;
        }
    }
    match found.as_slice() {
        [one] => Ok(one.clone()),
        [] => bail!("no machine {machine}"),
        several => {
            let ids: Vec<String> = several.iter().map(|row| text(row, "/system_id")).collect();
            bail!(
                "several machines are called {machine}: say one of {}",
                ids.join(", ")
            )
        }
    }
}

fn is_called(row: &Value, machine: &str) -> bool {
    let names = ["/hostname", "/fqdn", "/system_id"];
    names
        .iter()
        .any(|name| text(row, name).eq_ignore_ascii_case(machine))
}

pub(super) async fn find_id(client: &Client, machine: &str) -> anyhow::Result<String> {
    Ok(text(&find(client, machine).await?, "/system_id"))
}

/// Events after the one given, oldest first.
async fn events(
    client: &Client,
    id: &str,
    after: Option<u64>,
    limit: u32,
) -> anyhow::Result<Vec<Value>> {
    let mut query = vec![
        ("op", "query".to_owned()),
        ("id", id.to_owned()),
        ("limit", limit.to_string()),
        ("level", "DEBUG".to_owned()),
    ];
    query.extend(after.map(|after| ("after", after.to_string())));
    client.events(&query).await
}

async fn newest_event(client: &Client, id: &str) -> anyhow::Result<Option<u64>> {
    Ok(events(client, id, None, 1).await?.last().map(event_id))
}

async fn print_events(
    client: &Client,
    id: &str,
    after: Option<u64>,
    limit: u32,
    output: Output,
) -> anyhow::Result<Option<u64>> {
    let events = events(client, id, after, limit).await?;
    for event in &events {
        match output {
            Output::Json => say(event),
            Output::Table => say(format_args!(
                "{}  {:<22} {}",
                text(event, "/created"),
                text(event, "/type"),
                text(event, "/description")
            )),
        }
    }
    Ok(events.last().map(event_id).or(after))
}

/// Prints events until the machine has left Commissioning; an error unless it is Ready then.
async fn follow(
    client: &Client,
    id: &str,
    mut after: Option<u64>,
    output: Output,
) -> anyhow::Result<()> {
    let mut failures = 0;
    loop {
        let path = format!("machines/{id}/");
        let looked = async {
            let machine = client.get(&path, &[]).await?;
            let after = print_events(client, id, after, 1000, output).await?;
            Ok((machine, after))
        };
        let Some((machine, newest)) = patient(&mut failures, looked.await)? else {
            tokio::time::sleep(WATCH_EVERY).await;
            continue;
        };
        after = newest;
        match text(&machine, "/status_name").as_str() {
            "Commissioning" | "Testing" => tokio::time::sleep(WATCH_EVERY).await,
            "Ready" => return Ok(()),
            other => bail!("{id} is {other}: {}", text(&machine, "/error_description")),
        }
    }
}
