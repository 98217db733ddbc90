//! `muster rack`: who serves the machines.

use clap::Subcommand;

use crate::client::Client;
use crate::output::{Column, Output, text};

#[derive(Subcommand)]
pub enum Command {
    /// The racks and whether they are connected.
    List,
    /// A one-time token with which a rack enrols within 24 hours.
    Token {
        /// Accept only a rack of this host name.
        #[arg(long)]
        hostname: Option<String>,
    },
    /// Withdraw a rack's certificates: its links close at once, and its VLANs go to another rack or DHCP ends there.
    Revoke {
        /// Its system_id, as `muster rack list` shows it.
        system_id: String,
    },
}

const COLUMNS: &[Column] = &[
    ("system id", |row| text(row, "/system_id")),
    ("hostname", |row| text(row, "/hostname")),
    ("version", |row| text(row, "/version")),
    ("last seen", |row| text(row, "/last_seen")),
    ("addresses", |row| text(row, "/ip_addresses")),
];

impl Command {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            Command::List => output.list(client.list("rackcontrollers/", &[]).await?, COLUMNS),
            Command::Token { hostname } => {
                let fields: Vec<_> = hostname
                    .map(|name| ("hostname", name))
                    .into_iter()
                    .collect();
                let answer = client
                    .post("rackcontrollers/?op=create_token", &fields)
                    .await?;
                output.done(&answer, &text(&answer, "/token"));
            }
            Command::Revoke { system_id } => {
                let path = format!("rackcontrollers/{system_id}/?op=revoke");
                let answer = client.post(&path, &[]).await?;
                let became = answer["passed_on"].as_array().into_iter().flatten();
                let became: Vec<&str> = became.filter_map(|what| what.as_str()).collect();
                let became = match became.as_slice() {
                    [] => String::new(),
                    became => format!(": {}", became.join(", ")),
                };
                output.done(&answer, &format!("Rack {system_id} is revoked{became}."));
            }
        }
        Ok(())
    }
}
