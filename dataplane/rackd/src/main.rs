//! `rackd`: the rack's process. It answers machines from memory and asks the region for the rest.
//!
//! ```text
//!   shards       DHCP, TFTP, images            one thread, ring and core each
//!   link thread  regions, leases, feed
//!   work thread  metadata proxy, image fills, BMC power
//! ```

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

use rackd::config::Config;

#[derive(Parser)]
#[command(name = "rackd", version, about = "Muster's rack controller")]
struct Arguments {
    /// Configuration file [default: /etc/muster/rackd.toml]
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Enrol if need be, and serve until told to stop.
    Run,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("rackd: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let filter = std::env::var("MUSTER_LOG").unwrap_or_else(|_| config.log.clone());
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_env_filter(filter.parse::<EnvFilter>()?)
        .init();
    // One crypto provider in the process. Err: it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match arguments.command {
        Command::Run => rackd::rack::run(&config),
    }
}
