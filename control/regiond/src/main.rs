//! `regiond`: the region's process. Wiring and configuration; the rules are in `workflow`, the SQL in `store`.

mod account;
mod config;
mod database;
mod folder;
mod listener;
mod metrics;
mod rack_http;
mod region;

use std::io::IsTerminal;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::{Parser, Subcommand};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Layer, filter};

use config::Config;
use metrics::{Metrics, STATEMENT_TARGET, StatementCounter};

#[derive(Parser)]
#[command(name = "regiond", version, about = "Muster's region controller")]
struct Arguments {
    /// Configuration file [default: /etc/muster/regiond.toml]
    #[arg(long, global = true)]
    config: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the API, the racks and the machines until told to stop.
    Run,
    /// Make an administrator's account.
    Createadmin(account::CreateAdmin),
    /// Print a user's API key, making one if there is none.
    Apikey(account::ApiKey),
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    match run(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("regiond: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(arguments: Arguments) -> anyhow::Result<()> {
    let config = Config::load(arguments.config.as_deref())?;
    let metrics = Arc::new(Metrics::default());
    start_logging(&config, &metrics)?;
    // One crypto provider in the process. Err: it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    folder::prepare(&config)?;
    runtime.block_on(async {
        match arguments.command {
            Command::Run => region::run(config, metrics).await,
            Command::Createadmin(create) => create.run(&config).await,
            Command::Apikey(key) => key.run(&config).await,
        }
    })
}

/// Logs go to standard error; statements are counted whatever the log's filter says.
fn start_logging(config: &Config, metrics: &Arc<Metrics>) -> anyhow::Result<()> {
    let filter = match std::env::var("MUSTER_LOG") {
        Ok(filter) => filter,
        Err(_) => config.log.clone(),
    };
    let log = tracing_subscriber::fmt::layer()
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_filter(filter.parse::<EnvFilter>()?);
    let statements = StatementCounter(metrics.clone())
        .with_filter(filter::Targets::new().with_target(STATEMENT_TARGET, tracing::Level::DEBUG));
    tracing_subscriber::registry()
        .with(log)
        .with(statements)
        .init();
    Ok(())
}
