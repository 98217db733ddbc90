//! `cargo xtask lab`: a lab that stays after the command, for load tools and for whoever wants to look.

use std::process::ExitCode;

use anyhow::{Result, ensure};
use clap::{Args, Subcommand};
use lab::{Firmware, Lab, LabConfig, Summary, reaper};

use crate::workspace::{self, Profile};
use crate::{NetworkArguments, packages, parse_firmware};

#[derive(Subcommand)]
pub enum Command {
    /// Bring region and racks up, with images and DHCP; no machine unless asked for.
    Up(Up),
    /// Remove a lab, whatever is left of it.
    Down(Down),
    /// Which labs stand here, and whether they live.
    Status,
}

#[derive(Args)]
pub struct Up {
    #[arg(long, default_value = "lab")]
    name: String,
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(1..=16))]
    racks: u8,
    #[command(flatten)]
    network: NetworkArguments,
    /// Machines with BMCs, powered off and unknown to the region.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u8).range(0..=64))]
    machines: u8,
    #[arg(long, default_value = "uefi", value_parser = parse_firmware)]
    firmware: Firmware,
    /// Packet threads of each rack [default: the rack's own]
    #[arg(long)]
    shards: Option<usize>,
    /// Build and run with the dev profile.
    #[arg(long)]
    dev: bool,
    /// Print what stands as JSON, and nothing else on stdout.
    #[arg(long)]
    json: bool,
    /// Packages are there and the binaries are built.
    #[arg(long, hide = true)]
    prepared: bool,
}

#[derive(Args)]
pub struct Down {
    /// Which one [default: the only one]
    #[arg(long)]
    name: Option<String>,
    /// Every lab of this host.
    #[arg(long, conflicts_with = "name")]
    all: bool,
}

impl Command {
    pub fn run(self) -> Result<ExitCode> {
        match self {
            Command::Up(up) => up.run(),
            Command::Down(down) => down.run(),
            Command::Status => status(),
        }
    }
}

impl Up {
    fn run(self) -> Result<ExitCode> {
        let profile = if self.dev {
            Profile::Dev
        } else {
            Profile::Release
        };
        let network = self.network.network()?;
        if !self.prepared {
            packages::ensure()?;
            workspace::build(profile)?;
        }
        if !workspace::is_root() {
            let mut arguments: Vec<String> = std::env::args().skip(1).collect();
            arguments.push("--prepared".to_owned());
            return workspace::as_root(&arguments);
        }
        let image = workspace::image()?;
        let config = LabConfig {
            racks: usize::from(self.racks),
            machines: vec![self.firmware; usize::from(self.machines)],
            network,
            base: workspace::lab_base(),
            logs: workspace::lab_logs(&self.name)?,
            accelerator: workspace::accelerator(&image)?,
            name: self.name,
        };
        let mut says = |line: &str| eprintln!("{line}");
        let lab = Lab::up(
            &config,
            &workspace::binaries(profile)?,
            &image,
            self.shards,
            &mut says,
        )?;
        let summary = lab.keep()?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&summary)?);
        } else {
            print(&summary);
            println!("  API key   {}", summary.api_key);
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Down {
    fn run(self) -> Result<ExitCode> {
        if !workspace::is_root() {
            return workspace::as_root(&std::env::args().skip(1).collect::<Vec<_>>());
        }
        let mut labs = reaper::labs(&workspace::lab_base());
        if let Some(name) = &self.name {
            labs.retain(|folder| {
                folder
                    .file_name()
                    .is_some_and(|found| found == name.as_str())
            });
            ensure!(!labs.is_empty(), "there is no lab named {name}");
        }
        let which = "there are several labs: choose with --name, or --all";
        ensure!(self.all || labs.len() <= 1, which);
        if labs.is_empty() {
            println!("there is no lab");
        }
        for folder in labs {
            reaper::remove(&folder)?;
            println!("removed {}", folder.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn status() -> Result<ExitCode> {
    let labs = reaper::labs(&workspace::lab_base());
    if labs.is_empty() {
        println!("there is no lab");
    }
    for folder in labs {
        match Summary::read(&folder) {
            Ok(summary) => print(&summary),
            // Of a demo or test that runs now, or of one that was killed together with its reaper.
            Err(_) => println!("{}: not one that stays, or not wholly up", folder.display()),
        }
        for (host, programs) in reaper::programs(&folder) {
            println!(
                "  {host}: {}",
                if programs.is_empty() {
                    "nothing runs"
                } else {
                    &programs
                }
            );
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn print(summary: &Summary) {
    println!("{}: region {}", summary.name, summary.region_url);
    println!(
        "  region on {} (ip netns exec {} ...)",
        summary.region_namespace, summary.region_namespace
    );
    for rack in &summary.racks {
        let addresses: Vec<String> = rack
            .interfaces
            .iter()
            .map(|(name, address)| format!("{name} {address}"))
            .collect();
        println!(
            "  {} {} on {}: {}",
            rack.hostname,
            rack.system_id,
            rack.namespace,
            addresses.join(", ")
        );
    }
    let (client, network) = (&summary.client, &summary.network);
    println!(
        "  client on {}: {} {}",
        client.namespace,
        client.interface,
        client.addresses.join(", ")
    );
    println!(
        "  machines  {}, dynamic {} to {}",
        network.subnet, network.first, network.last
    );
    println!("  logs      {}", summary.logs.display());
}
