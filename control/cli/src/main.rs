//! `muster`: the operator's command line, a client of the region's REST API and nothing more.

mod client;
mod commands;
mod output;
mod profile;
mod secret;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use commands::{dhcp, events, image, login, machine, network, rack};
use output::{Output, complain, say};

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
    /// What happened: of all machines and racks, or of some.
    Events(events::Events),
    /// Print a completion script for a shell.
    Completion {
        /// The shell it is for.
        shell: Shell,
    },
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::process::ExitCode {
    let arguments = Arguments::parse();
    // One crypto provider, also where the API is behind TLS. Err: already installed.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match run(arguments).await {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            complain(format_args!("{error:#}"));
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
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut command, "muster", &mut script);
            say(String::from_utf8_lossy(&script).trim_end());
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
        Command::Events(events) => events.run(&client, output).await,
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

    #[test]
    fn every_argument_and_command_has_its_help() {
        fn walk(command: &clap::Command, path: &str, bare: &mut Vec<String>) {
            let path = format!("{path} {}", command.get_name());
            if command.get_about().is_none() {
                bare.push(path.clone());
            }
            for argument in command.get_arguments() {
                let help = argument.get_help().map(ToString::to_string);
                if help.is_none_or(|help| help.trim().is_empty()) {
                    bare.push(format!("{path} {}", argument.get_id()));
                }
            }
            for inner in command.get_subcommands() {
                walk(inner, &path, bare);
            }
        }
        let mut bare = Vec::new();
        walk(&Arguments::command(), "", &mut bare);
        assert_eq!(bare, Vec::<String>::new());
    }
}
