//! `muster vlan`, `subnet` and `range`: where machines live, and which addresses they get.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use serde_json::Value;

use crate::client::Client;
use crate::output::{Column, Output, text};

#[derive(Subcommand)]
pub enum VlanCommand {
    /// The VLANs of every fabric.
    List,
    /// Switch DHCP on for a VLAN.
    DhcpOn {
        /// The VLAN's id, as `muster vlan list` shows it.
        vlan: u32,
        /// system_id of the rack that serves it.
        #[arg(long)]
        primary_rack: String,
        /// system_id of the rack that stands by.
        #[arg(long)]
        secondary_rack: Option<String>,
        /// Somebody else hands out the addresses: only tell machines what to boot.
        #[arg(long)]
        proxy: bool,
    },
    /// Switch DHCP off.
    DhcpOff {
        /// The VLAN's id, as `muster vlan list` shows it.
        vlan: u32,
    },
}

const VLANS: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("fabric", |row| text(row, "/fabric")),
    ("vid", |row| text(row, "/vid")),
    ("name", |row| text(row, "/name")),
    ("dhcp", |row| text(row, "/dhcp_on")),
    ("mode", |row| text(row, "/dhcp_mode")),
    ("primary rack", |row| text(row, "/primary_rack")),
    ("secondary rack", |row| text(row, "/secondary_rack")),
];

impl VlanCommand {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            VlanCommand::List => {
                let fabrics = client.list("fabrics/", &[]).await?;
                let vlans = fabrics.iter();
                let vlans = vlans.filter_map(|fabric| fabric.get("vlans")?.as_array());
                output.list(vlans.flatten().cloned().collect(), VLANS);
            }
            VlanCommand::DhcpOn {
                vlan,
                primary_rack,
                secondary_rack,
                proxy,
            } => {
                let mode = if proxy { "proxy" } else { "serve" };
                let mut fields = vec![
                    ("dhcp_mode", mode.to_owned()),
                    ("dhcp_on", "true".to_owned()),
                    ("primary_rack", primary_rack),
                ];
                fields.extend(secondary_rack.map(|rack| ("secondary_rack", rack)));
                let answer = client.put(&format!("vlans/{vlan}/"), &fields).await?;
                output.one(&answer, VLANS);
            }
            VlanCommand::DhcpOff { vlan } => {
                let fields = [("dhcp_on", "false".to_owned())];
                let answer = client.put(&format!("vlans/{vlan}/"), &fields).await?;
                output.one(&answer, VLANS);
            }
        }
        Ok(())
    }
}

#[derive(Subcommand)]
pub enum SubnetCommand {
    /// All subnets.
    List,
    /// Add a subnet.
    Create(SubnetCreate),
    /// Remove a subnet. What would go with it is told first.
    Delete {
        /// Id, CIDR or name.
        subnet: String,
        /// Do not ask.
        #[arg(long, alias = "force")]
        yes: bool,
    },
}

#[derive(Args)]
pub struct SubnetCreate {
    /// 10.0.0.0/24
    cidr: String,
    /// A name for people; the CIDR when not given.
    #[arg(long)]
    name: Option<String>,
    /// The VLAN's id; without one, the default VLAN of a new fabric.
    #[arg(long)]
    vlan: Option<u32>,
    /// The router's address.
    #[arg(long)]
    gateway: Option<String>,
    /// A name server's address; repeat for more.
    #[arg(long = "dns")]
    dns_servers: Vec<String>,
}

const SUBNETS: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("cidr", |row| text(row, "/cidr")),
    ("name", |row| text(row, "/name")),
    ("fabric", |row| text(row, "/vlan/fabric")),
    ("vlan", |row| text(row, "/vlan/id")),
    ("gateway", |row| text(row, "/gateway_ip")),
    ("dns", |row| text(row, "/dns_servers")),
];

impl SubnetCommand {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            SubnetCommand::List => output.list(client.list("subnets/", &[]).await?, SUBNETS),
            SubnetCommand::Create(create) => {
                output.one(&create.send(client).await?, SUBNETS);
            }
            SubnetCommand::Delete { subnet, yes } => {
                let id = find_subnet(client, &subnet).await?;
                delete(client, output, &subnet, id, yes).await?;
            }
        }
        Ok(())
    }
}

impl SubnetCreate {
    async fn send(self, client: &Client) -> anyhow::Result<Value> {
        // (the new fabric, its VLAN)
        let made = match self.vlan {
            Some(_) => None,
            None => Some(new_fabric(client).await?),
        };
        let vlan = self.vlan.map(u64::from).or(made.map(|(_, vlan)| vlan));
        let mut fields = vec![("cidr", self.cidr)];
        fields.extend(self.name.map(|name| ("name", name)));
        fields.extend(vlan.map(|vlan| ("vlan", vlan.to_string())));
        fields.extend(self.gateway.map(|gateway| ("gateway_ip", gateway)));
        fields.extend(
            self.dns_servers
                .into_iter()
                .map(|server| ("dns_servers", server)),
        );
        let created = client.post("subnets/", &fields).await;
        if let (Err(_), Some((fabric, _))) = (&created, made) {
            // Nothing is left of a subnet that was refused. The refusal is what the operator is told.
            let _ = client.delete(&format!("fabrics/{fabric}/")).await;
        }
        created
    }
}

/// A new fabric's id, and that of the VLAN it begins with.
async fn new_fabric(client: &Client) -> anyhow::Result<(u64, u64)> {
    let fabric = client.post("fabrics/", &[]).await?;
    let id = |pointer: &str| fabric.pointer(pointer).and_then(Value::as_u64);
    let ids = id("/id").zip(id("/vlans/0/id"));
    ids.context("the region's new fabric has no VLAN")
}

/// The region knows what goes with a subnet, and refuses until somebody agreed to that.
async fn delete(
    client: &Client,
    output: Output,
    subnet: &str,
    id: u64,
    yes: bool,
) -> anyhow::Result<()> {
    let path = format!("subnets/{id}/");
    let refused = match client.delete(&path).await {
        Ok(answer) => {
            output.done(&answer, &format!("Subnet {subnet} is gone."));
            return Ok(());
        }
        Err(refused) => refused,
    };
    let why = refused.to_string();
    // Where force is no help, nobody is asked.
    if !why.contains("'force'") {
        return Err(refused);
    }
    if !yes && !agrees(&why)? {
        bail!("subnet {subnet} stays");
    }
    let answer = client.delete(&format!("{path}?force=true")).await?;
    let with = match went(&why) {
        Some(all) => format!(", and with it {all}"),
        None => String::new(),
    };
    output.done(&answer, &format!("Subnet {subnet} is gone{with}."));
    Ok(())
}

/// What the region's refusal names.
fn went(refusal: &str) -> Option<&str> {
    let (_, all) = refusal.split_once("with it would go ")?;
    Some(all.split_once(". (").map_or(all, |(all, _)| all))
}

/// Asks a person. Where there is none, nobody has agreed.
fn agrees(what: &str) -> anyhow::Result<bool> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        bail!("{what} Say --yes: nobody can be asked here");
    }
    let _ = write!(std::io::stderr(), "{what} Go on? [y/N] ");
    let mut line = String::new();
    stdin.read_line(&mut line).context("reading the answer")?;
    Ok(matches!(line.trim(), "y" | "Y" | "yes"))
}

/// A subnet by id, CIDR or name.
async fn find_subnet(client: &Client, subnet: &str) -> anyhow::Result<u64> {
    if let Ok(id) = subnet.parse() {
        return Ok(id);
    }
    let subnets = client.list("subnets/", &[]).await?;
    let matches = |row: &&Value| {
        ["/cidr", "/name"]
            .iter()
            .any(|field| text(row, field) == subnet)
    };
    let found: Vec<&Value> = subnets.iter().filter(matches).collect();
    match found.as_slice() {
        [one] => one
            .get("id")
            .and_then(Value::as_u64)
            .context("a subnet without an id"),
        [] => bail!("no subnet {subnet}"),
        _ => bail!("several subnets are called {subnet}: say its id"),
    }
}

#[derive(Clone, Copy, ValueEnum)]
pub enum RangeType {
    /// Dealt by DHCP to machines without a reservation.
    Dynamic,
    /// Never dealt.
    Reserved,
}

#[derive(Subcommand)]
pub enum RangeCommand {
    /// All ranges.
    List,
    /// Add a range.
    Create {
        /// Its first address.
        first: String,
        /// Its last address.
        last: String,
        /// What it is for.
        #[arg(long, value_enum, default_value = "dynamic")]
        r#type: RangeType,
        /// Id, CIDR or name; found from the addresses when not given.
        #[arg(long)]
        subnet: Option<String>,
        /// For people: what it is for.
        #[arg(long)]
        comment: Option<String>,
        /// Length of a lease from it in seconds, in place of the subnet's.
        #[arg(long)]
        lease_secs: Option<u32>,
        /// A reserved range may lie inside a dynamic one, and takes its addresses from it.
        #[arg(long)]
        exclude: bool,
    },
    /// Remove a range.
    Delete {
        /// Its id, as `muster range list` shows it.
        range: u32,
        /// Also the only dynamic one of a VLAN that DHCP serves.
        #[arg(long)]
        force: bool,
    },
}

const RANGES: &[Column] = &[
    ("id", |row| text(row, "/id")),
    ("type", |row| text(row, "/type")),
    ("first", |row| text(row, "/start_ip")),
    ("last", |row| text(row, "/end_ip")),
    ("subnet", |row| text(row, "/subnet/cidr")),
    ("comment", |row| text(row, "/comment")),
];

impl RangeCommand {
    pub async fn run(self, client: &Client, output: Output) -> anyhow::Result<()> {
        match self {
            RangeCommand::List => output.list(client.list("ipranges/", &[]).await?, RANGES),
            RangeCommand::Create {
                first,
                last,
                r#type,
                subnet,
                comment,
                lease_secs,
                exclude,
            } => {
                let kind = match r#type {
                    RangeType::Dynamic => "dynamic",
                    RangeType::Reserved => "reserved",
                };
                let mut fields = vec![
                    ("type", kind.to_owned()),
                    ("start_ip", first),
                    ("end_ip", last),
                ];
                if let Some(subnet) = subnet {
                    fields.push(("subnet", find_subnet(client, &subnet).await?.to_string()));
                }
                fields.extend(comment.map(|comment| ("comment", comment)));
                fields.extend(lease_secs.map(|secs| ("lease_secs", secs.to_string())));
                fields.extend(exclude.then(|| ("exclude", "true".to_owned())));
                output.one(&client.post("ipranges/", &fields).await?, RANGES);
            }
            RangeCommand::Delete { range, force } => {
                let path = format!("ipranges/{range}/?force={force}");
                let answer = client.delete(&path).await?;
                output.done(&answer, &format!("Range {range} is gone."));
            }
        }
        Ok(())
    }
}
