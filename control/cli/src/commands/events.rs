//! `muster events`: what happened, a page at a time.

use std::time::Duration;

use clap::{Args, ValueEnum};
use serde_json::Value;

use crate::client::{Client, event_id, patient};
use crate::output::{Output, complain, say, text};

const WATCH_EVERY: Duration = Duration::from_secs(1);

#[derive(Args)]
pub struct Events {
    /// Only of this machine: system_id or host name. Repeat for more.
    #[arg(long = "machine", value_name = "MACHINE")]
    machines: Vec<String>,
    /// Only of this MAC address; also of machines that are not known. Repeat for more.
    #[arg(long = "mac", value_name = "MAC")]
    macs: Vec<String>,
    /// Only of this type, by its stable name: POWER_FAILED. Repeat for more.
    #[arg(long = "type", value_name = "NAME")]
    types: Vec<String>,
    /// Only what this user did.
    #[arg(long, value_name = "USER")]
    by: Option<String>,
    /// Only what matters at least so much.
    #[arg(long, value_enum, default_value = "info")]
    level: Level,
    /// Events of one page, 1000 at most.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// The page of events older than the one with this id.
    #[arg(long, value_name = "ID", conflicts_with_all = ["after", "watch"])]
    before: Option<u64>,
    /// Only events newer than the one with this id.
    #[arg(long, value_name = "ID")]
    after: Option<u64>,
    /// Go on printing as things happen.
    #[arg(long)]
    watch: bool,
}

#[derive(Clone, Copy, ValueEnum)]
pub enum Level {
    Audit,
    Debug,
    Info,
    Warning,
    Error,
    Critical,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Level::Audit => "AUDIT",
            Level::Debug => "DEBUG",
            Level::Info => "INFO",
            Level::Warning => "WARNING",
            Level::Error => "ERROR",
            Level::Critical => "CRITICAL",
        }
    }
}

impl Events {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        let mut filters = vec![
            ("op", "query".to_owned()),
            ("level", self.level.name().to_owned()),
            ("limit", self.limit.to_string()),
        ];
        for machine in &self.machines {
            filters.push(("id", super::machine::find_id(client, machine).await?));
        }
        filters.extend(self.macs.into_iter().map(|mac| ("mac_address", mac)));
        filters.extend(self.types.into_iter().map(|kind| ("type", kind)));
        filters.extend(self.by.map(|user| ("owner", user)));
        let mut query = filters.clone();
        query.extend(self.before.map(|id| ("before", id.to_string())));
        query.extend(self.after.map(|id| ("after", id.to_string())));
        let page = client.events(&query).await?;
        page.iter().for_each(|event| print(event, output));
        // A full page: there may be more. Told beside the list, so that a program reads only the list.
        if let (true, Some(oldest)) = (page.len() >= self.limit as usize, page.first()) {
            complain(format_args!("older ones: --before {}", event_id(oldest)));
        }
        let mut newest = page.last().map(event_id).or(self.after);
        if !self.watch {
            return Ok(());
        }
        let mut failures = 0;
        loop {
            tokio::time::sleep(WATCH_EVERY).await;
            let mut query = filters.clone();
            query.extend(newest.map(|id| ("after", id.to_string())));
            let events = patient(&mut failures, client.events(&query).await)?;
            for event in events.into_iter().flatten() {
                print(&event, output);
                newest = Some(event_id(&event));
            }
        }
    }
}

fn print(event: &Value, output: Output) {
    match output {
        Output::Json => say(event),
        Output::Table => {
            let whose = ["/hostname", "/mac_address", "/rack", "/username"]
                .iter()
                .map(|field| text(event, field))
                .find(|name| !name.is_empty());
            say(format_args!(
                "{:>8}  {}  {:<8} {:<20} {:<28} {}",
                event_id(event),
                text(event, "/created"),
                text(event, "/level"),
                whose.unwrap_or_default(),
                text(event, "/type"),
                text(event, "/description")
            ));
        }
    }
}
