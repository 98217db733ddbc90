//! `muster dhcp`: leases, how full ranges are, what racks count, and following one machine; options and reservations.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::client::{Client, event_id, patient};
use crate::output::{Column, Output, complain, say, text};

const FOLLOW_EVERY: Duration = Duration::from_secs(1);

#[derive(Subcommand)]
pub enum Command {
    /// Who has which address, or had it.
    Leases(Leases),
    /// How full the dynamic ranges are.
    Ranges {
        /// Only of this subnet: id, CIDR or name.
        #[arg(long)]
        subnet: Option<String>,
    },
    /// What racks count: sent, and not answered by reason.
    Stats {
        /// system_id or hostname; every connected rack when not given.
        rack: Option<String>,
        /// Also what is zero.
        #[arg(long)]
        all: bool,
    },
    /// Follow one machine's DHCP messages.
    Trace(Trace),
    /// Options that racks send.
    #[command(subcommand)]
    Option(OptionCommand),
    /// Addresses for one client each.
    #[command(subcommand)]
    Reservation(ReservationCommand),
}

impl Command {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Command::Leases(leases) => leases.run(client, output).await,
            Command::Ranges { subnet } => {
                let mut query = vec![("op", "usage".to_owned())];
                query.extend(subnet.map(|subnet| ("subnet", subnet)));
                output.list(client.list("ipranges/", &query).await?, RANGES);
                Ok(())
            }
            Command::Stats { rack, all } => stats(client, output, rack.as_deref(), all).await,
            Command::Trace(trace) => trace.run(client, output).await,
            Command::Option(command) => command.run(client, output).await,
            Command::Reservation(command) => command.run(client, output).await,
        }
    }
}

//---------------------------------------------------------------- leases

#[derive(Args)]
pub struct Leases {
    /// Only of this subnet: id, CIDR or name.
    #[arg(long)]
    subnet: Option<String>,
    /// Only of the client with this MAC address.
    #[arg(long)]
    mac: Option<String>,
    /// Only of this address.
    #[arg(long)]
    address: Option<String>,
    /// Also those that are over, the newest first.
    #[arg(long)]
    history: bool,
    /// With --history: only what held at this time, 2026-01-31T12:00:00Z.
    #[arg(long, requires = "history")]
    at: Option<String>,
    /// Rows to print at most.
    #[arg(long, default_value_t = 1000)]
    limit: usize,
}

const LEASES: &[Column] = &[
    ("address", |row| text(row, "/ip")),
    ("mac", |row| text(row, "/mac_address")),
    ("client id", |row| text(row, "/client_id")),
    ("hostname", |row| text(row, "/hostname")),
    ("machine", |row| text(row, "/system_id")),
    ("subnet", |row| text(row, "/subnet")),
    ("granted", |row| text(row, "/granted")),
    ("ends", |row| text(row, "/ends")),
    ("released", |row| text(row, "/released")),
];

const HISTORY: &[Column] = &[
    ("address", |row| text(row, "/ip")),
    ("mac", |row| text(row, "/mac_address")),
    ("client id", |row| text(row, "/client_id")),
    ("hostname", |row| text(row, "/hostname")),
    ("machine", |row| text(row, "/system_id")),
    ("since", |row| text(row, "/since")),
    ("ended", |row| text(row, "/ended")),
];

/// The region's largest page.
const PAGE_MAX: usize = 10_000;

impl Leases {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let (list, columns) = match self.history {
            true => ("history", HISTORY),
            false => ("leases", LEASES),
        };
        let limit = self.limit;
        let mut query = vec![("limit", limit.clamp(1, PAGE_MAX).to_string())];
        query.extend(self.history.then(|| ("op", "history".to_owned())));
        query.extend(self.subnet.map(|subnet| ("subnet", subnet)));
        query.extend(self.mac.map(|mac| ("mac_address", mac)));
        query.extend(self.address.map(|address| ("ip", address)));
        query.extend(self.at.map(|at| ("at", at)));
        let mut page = client.get("leases/", &query).await?;
        let mut rows = Vec::new();
        loop {
            let Some(Value::Array(found)) = page.get_mut(list).map(Value::take) else {
                bail!("the region's answer holds no {list}");
            };
            let none = found.is_empty();
            rows.extend(found);
            let next = text(&page, "/next_uri");
            if none || next.is_empty() || rows.len() >= limit {
                break;
            }
            page = client.get(&next, &[]).await?;
        }
        rows.truncate(limit);
        output.list(rows, columns);
        Ok(())
    }
}

const RANGES: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("subnet", |row| text(row, "/subnet")),
    ("first", |row| text(row, "/start_ip")),
    ("last", |row| text(row, "/end_ip")),
    ("total", |row| text(row, "/total")),
    ("bound", |row| text(row, "/bound")),
    ("resting", |row| text(row, "/resting")),
    ("claimed", |row| text(row, "/claimed")),
    ("ended", |row| text(row, "/ended")),
    ("free", |row| text(row, "/free")),
    ("%", |row| text(row, "/percent")),
];

//---------------------------------------------------------------- statistics

const STATS: &[Column] = &[
    ("rack", |row| text(row, "/rack")),
    ("counter", |row| text(row, "/counter")),
    ("value", |row| text(row, "/value")),
];

async fn stats(
    client: &Client,
    output: Output,
    rack: Option<&str>,
    all: bool,
) -> anyhow::Result<()> {
    let racks = client.list("rackcontrollers/", &[]).await?;
    let is_asked = |row: &&Value| match rack {
        Some(rack) => text(row, "/system_id") == rack || text(row, "/hostname") == rack,
        None => row.get("connected") == Some(&Value::Bool(true)),
    };
    let racks: Vec<&Value> = racks.iter().filter(is_asked).collect();
    if let (Some(rack), []) = (rack, &*racks) {
        bail!("no rack {rack}");
    }
    let (mut answers, mut failure) = (Vec::new(), None);
    for rack in racks {
        let path = format!("rackcontrollers/{}/", text(rack, "/system_id"));
        let query = [("op", "dhcp_stats".to_owned())];
        let answer = client.get(&path, &query).await;
        let name = text(rack, "/hostname");
        match answer.with_context(|| format!("asking the rack {name}")) {
            Ok(answer) => answers.push(answer),
            // The others are shown all the same.
            Err(error) => {
                if let Some(earlier) = failure.replace(error) {
                    complain(format_args!("{earlier:#}"));
                }
            }
        }
    }
    if output == Output::Json {
        output.list(answers, STATS);
    } else {
        let rows = answers.iter().flat_map(|answer| stats_rows(answer, all));
        output.list(rows.collect(), STATS);
    }
    failure.map_or(Ok(()), Err)
}

/// A row per counter; drops by their reason.
fn stats_rows(answer: &Value, all: bool) -> Vec<Value> {
    let rack = text(answer, "/hostname");
    let mut rows = Vec::new();
    for (group, prefix) in [("counters", ""), ("drops", "no answer: ")] {
        let group = answer.get(group).and_then(Value::as_object);
        for (name, value) in group.into_iter().flatten() {
            if all || value.as_u64() != Some(0) {
                let counter = format!("{prefix}{name}");
                rows.push(serde_json::json!({"rack": rack, "counter": counter, "value": value}));
            }
        }
    }
    rows
}

//---------------------------------------------------------------- following a machine

#[derive(Args)]
pub struct Trace {
    /// The machine's MAC address.
    mac: String,
    /// For so long: 90s, 10m, 2h.
    #[arg(long = "for", default_value = "10m", value_parser = duration)]
    length: Duration,
    /// Print what racks report until the time is over.
    #[arg(long)]
    follow: bool,
    /// Stop following it.
    #[arg(long, conflicts_with_all = ["length", "follow"])]
    end: bool,
}

/// `90s`, `10m`, `2h` or seconds.
fn duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = match text.char_indices().next_back() {
        Some((at, 's')) => (&text[..at], 1),
        Some((at, 'm')) => (&text[..at], 60),
        Some((at, 'h')) => (&text[..at], 3600),
        _ => (text, 1),
    };
    let secs = number.parse::<u64>().ok();
    secs.and_then(|secs| secs.checked_mul(unit))
        .filter(|secs| (1..=86_400).contains(secs))
        .map(Duration::from_secs)
        .ok_or_else(|| "a time from 1s to 24h: 90s, 10m, 2h".to_owned())
}

impl Trace {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let mac = ("mac_address", self.mac.clone());
        if self.end {
            let answer = client.post("dhcp/?op=end_trace", &[mac]).await?;
            output.done(&answer, &format!("{} is followed no longer.", self.mac));
            return Ok(());
        }
        // What was reported before is not part of it.
        let mut seen: BTreeSet<u64> = BTreeSet::new();
        let mut after = self.events(client, None).await?.iter().map(event_id).max();
        let secs = ("secs", self.length.as_secs().to_string());
        let answer = client.post("dhcp/?op=trace", &[mac, secs]).await?;
        if !self.follow {
            let sentence = format!(
                "{} is followed for {} s; see it by `muster dhcp trace {} --follow`.",
                self.mac,
                self.length.as_secs(),
                self.mac
            );
            output.done(&answer, &sentence);
            return Ok(());
        }
        // Racks hold reports back for a moment.
        let end = tokio::time::Instant::now() + self.length + 3 * FOLLOW_EVERY;
        let mut failures = 0;
        while tokio::time::Instant::now() < end {
            let events = patient(&mut failures, self.events(client, after).await)?;
            let events = events.unwrap_or_default();
            for event in &events {
                if seen.insert(event_id(event)) {
                    print(event, output);
                }
            }
            after = events.iter().map(event_id).max().or(after);
            tokio::time::sleep(FOLLOW_EVERY).await;
        }
        Ok(())
    }

    /// The machine's reports above an id, the oldest first.
    async fn events(&self, client: &Client, after: Option<u64>) -> anyhow::Result<Vec<Value>> {
        let mut query = vec![
            ("op", "query".to_owned()),
            ("mac_address", self.mac.clone()),
            ("type", "DHCP_TRACE".to_owned()),
            ("level", "AUDIT".to_owned()),
            ("limit", "1000".to_owned()),
        ];
        query.extend(after.map(|after| ("after", after.to_string())));
        client.events(&query).await
    }
}

fn print(event: &Value, output: Output) {
    match output {
        Output::Json => say(event),
        Output::Table => say(format_args!(
            "{}  {:<8} {}",
            text(event, "/at"),
            text(event, "/rack"),
            text(event, "/description")
        )),
    }
}

//---------------------------------------------------------------- options

#[derive(Subcommand)]
pub enum OptionCommand {
    /// All options.
    List,
    /// Set an option.
    Set {
        /// Its code, or its name: ntp-servers.
        code: String,
        /// Text of the option's type, or octets as 0x0a0b. Without one the option is left out in this scope.
        value: Option<String>,
        #[command(flatten)]
        scope: Scope,
        /// How the value is written, if not as is standard: ip, ips, u16, text, hex, ...
        #[arg(long)]
        r#type: Option<String>,
        /// Send it whether the client asks for it or not.
        #[arg(long)]
        always: bool,
    },
    /// Remove an option.
    Delete {
        /// Its id, as `muster dhcp option list` shows it.
        option: u32,
    },
}

/// Where an option is set; for everybody when nothing is said.
#[derive(Args)]
#[group(multiple = false)]
pub struct Scope {
    /// For this subnet: id, CIDR or name.
    #[arg(long)]
    subnet: Option<String>,
    /// For this range: its id.
    #[arg(long)]
    range: Option<u32>,
    /// For this reservation: its id or address.
    #[arg(long)]
    reservation: Option<String>,
}

impl Scope {
    fn fields(self) -> Vec<(&'static str, String)> {
        let named = |scope: &str, id: String| vec![("scope", scope.to_owned()), ("scope_id", id)];
        match self {
            Scope {
                subnet: Some(id), ..
            } => named("subnet", id),
            Scope {
                range: Some(id), ..
            } => named("iprange", id.to_string()),
            Scope {
                reservation: Some(id),
                ..
            } => named("reserved_ip", id),
            _ => vec![("scope", "global".to_owned())],
        }
    }
}

const OPTIONS: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("scope", |row| {
        let id = text(row, "/scope_id");
        format!("{} {id}", text(row, "/scope"))
            .trim_end()
            .to_owned()
    }),
    ("code", |row| text(row, "/code")),
    ("name", |row| text(row, "/name")),
    ("value", |row| match row.get("suppress") {
        Some(Value::Bool(true)) => "(left out)".to_owned(),
        _ => text(row, "/value"),
    }),
    ("always", |row| text(row, "/always")),
    ("comment", |row| text(row, "/comment")),
];

impl OptionCommand {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            OptionCommand::List => output.list(client.list("dhcp-options/", &[]).await?, OPTIONS),
            OptionCommand::Set {
                code,
                value,
                scope,
                r#type,
                always,
            } => {
                let mut fields = scope.fields();
                fields.push(("code", code));
                fields.push(("always", always.to_string()));
                fields.push(match value {
                    Some(value) => ("value", value),
                    None => ("suppress", "true".to_owned()),
                });
                fields.extend(r#type.map(|name| ("type", name)));
                output.one(&client.post("dhcp-options/", &fields).await?, OPTIONS);
            }
            OptionCommand::Delete { option } => {
                let answer = client.delete(&format!("dhcp-options/{option}/")).await?;
                output.done(&answer, &format!("Option {option} is gone."));
            }
        }
        Ok(())
    }
}

//---------------------------------------------------------------- reservations

#[derive(Subcommand)]
pub enum ReservationCommand {
    /// All reservations.
    List,
    /// Set an address aside for one client.
    Create(Create),
    /// Remove a reservation.
    Delete {
        /// Its id, as `muster dhcp reservation list` shows it.
        reservation: u32,
    },
}

#[derive(Args)]
pub struct Create {
    /// The address that is set aside.
    address: String,
    #[command(flatten)]
    client: Whom,
    /// With --circuit-id: only behind the relay that says this (option 82, sub-option 2).
    #[arg(long, requires = "circuit_id")]
    remote_id: Option<String>,
    /// What the client is to call itself.
    #[arg(long)]
    hostname: Option<String>,
    /// Length of its lease in seconds.
    #[arg(long)]
    lease_secs: Option<u32>,
    /// For people: what it is for.
    #[arg(long)]
    comment: Option<String>,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
pub struct Whom {
    /// The client's MAC address.
    #[arg(long)]
    mac: Option<String>,
    /// The client's identifier (option 61): text, or octets as 0x01525400.
    #[arg(long)]
    client_id: Option<String>,
    /// The port that a relay names (option 82, sub-option 1).
    #[arg(long)]
    circuit_id: Option<String>,
}

const RESERVATIONS: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("address", |row| text(row, "/ip")),
    ("mac", |row| text(row, "/mac_address")),
    ("client id", |row| text(row, "/client_id")),
    ("circuit", |row| text(row, "/circuit_id")),
    ("remote", |row| text(row, "/remote_id")),
    ("hostname", |row| text(row, "/hostname")),
    ("subnet", |row| text(row, "/subnet/cidr")),
    ("comment", |row| text(row, "/comment")),
];

impl ReservationCommand {
    async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            ReservationCommand::List => {
                output.list(client.list("reservedips/", &[]).await?, RESERVATIONS);
            }
            ReservationCommand::Create(create) => {
                let answer = client.post("reservedips/", &create.fields()).await?;
                output.one(&answer, RESERVATIONS);
            }
            ReservationCommand::Delete { reservation } => {
                let answer = client
                    .delete(&format!("reservedips/{reservation}/"))
                    .await?;
                output.done(&answer, &format!("Reservation {reservation} is gone."));
            }
        }
        Ok(())
    }
}

impl Create {
    fn fields(self) -> Vec<(&'static str, String)> {
        let given = [
            ("mac_address", self.client.mac),
            ("client_id", self.client.client_id),
            ("circuit_id", self.client.circuit_id),
            ("remote_id", self.remote_id),
            ("hostname", self.hostname),
            ("lease_secs", self.lease_secs.map(|secs| secs.to_string())),
            ("comment", self.comment),
        ];
        let mut fields = vec![("ip", self.address)];
        fields.extend(
            given
                .into_iter()
                .filter_map(|(name, value)| Some((name, value?))),
        );
        fields
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_have_units_and_an_end() {
        for (text, want) in [
            ("90", Some(90)),
            ("90s", Some(90)),
            ("10m", Some(600)),
            ("24h", Some(86_400)),
            ("25h", None),
            ("0s", None),
            ("", None),
            ("m", None),
            ("1d", None),
            ("-1s", None),
            ("99999999999999999999h", None),
            ("5ä", None),
        ] {
            assert_eq!(duration(text).ok().map(|d| d.as_secs()), want, "{text}");
        }
    }

    #[test]
    fn zeros_are_shown_when_asked_for() {
        let answer = json!({
            "hostname": "rack1",
            "counters": {"dhcp_acks_total": 3, "dhcp_naks_total": 0},
            "drops": {"mute": 2, "no_subnet": 0},
        });
        let told = |all| -> Vec<String> {
            stats_rows(&answer, all)
                .iter()
                .map(|row| format!("{} {}", text(row, "/counter"), text(row, "/value")))
                .collect()
        };
        assert_eq!(told(false), ["dhcp_acks_total 3", "no answer: mute 2"]);
        assert_eq!(told(true).len(), 4);
    }
}
