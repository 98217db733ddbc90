//! `muster`: the operator's command line, a client of the region's REST API and nothing more.

mod client;
mod commands;
mod output;
mod profile;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use commands::{dhcp, image, login, machine, network, rack};
use output::Output;

#[derive(Parser)]
#[command(
    name = "muster",
    version,
    about = "Provision bare metal: the operator's command line"
)]
struct Arguments {
    /// Tables for people, or JSON for programs.
    #[arg(long, short, global = true, value_enum, default_value_t)]
    output: Output,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Remember a region and an API key.
    Login(login::Login),
    /// Forget them.
    Logout,
    /// Machines: list, create, commission, power, events.
    #[command(subcommand)]
    Machine(machine::Command),
    /// Racks: list, enrolment tokens, revocation.
    #[command(subcommand)]
    Rack(rack::Command),
    /// Images and boot loaders: import, list.
    #[command(subcommand)]
    Image(image::Command),
    /// Fabrics and VLANs: list, switch DHCP on or off.
    #[command(subcommand)]
    Vlan(network::VlanCommand),
    /// Subnets: list, create, delete.
    #[command(subcommand)]
    Subnet(network::SubnetCommand),
    /// DHCP: leases, ranges' use, racks' statistics, traces; options and reservations.
    #[command(subcommand)]
    Dhcp(dhcp::Command),
    /// Address ranges: list, create, delete.
    #[command(subcommand)]
    Range(network::RangeCommand),
    /// Print a completion script for a shell.
    Completion { shell: Shell },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    // `muster ... | head` is not an error worth a panic: end as other tools do.
    let arguments = Arguments::parse();
    // One crypto provider, also where the API is behind TLS. Err: already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(arguments).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("muster: {error:#}");
            std::process::ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> anyhow::Result<()> {
    let output = arguments.output;
    let command = match arguments.command {
        Command::Login(login) => return login.run(output).await,
        Command::Logout => return profile::Profile::forget(),
        Command::Completion { shell } => {
            let mut command = Arguments::command();
            clap_complete::generate(shell, &mut command, "muster", &mut std::io::stdout());
            return Ok(());
        }
        other => other,
    };
    let client = profile::Profile::load()?.client()?;
    match command {
        Command::Machine(command) => command.run(&client, output).await,
        Command::Rack(command) => command.run(&client, output).await,
        Command::Image(command) => command.run(&client, output).await,
        Command::Vlan(command) => command.run(&client, output).await,
        Command::Subnet(command) => command.run(&client, output).await,
        Command::Range(command) => command.run(&client, output).await,
        Command::Dhcp(command) => command.run(&client, output).await,
        Command::Login(_) | Command::Logout | Command::Completion { .. } => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
    }
}
