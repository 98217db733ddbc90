//! `cargo xtask`: the project's one entry point for people and CI.
//!
//! `demo` shows a commissioning from nothing, `test` proves everything, `lab` keeps a lab for load tools.

mod bench;
mod checks;
mod clients;
mod commissioning;
mod database;
mod demo;
mod dhcp_lab;
mod differential;
mod faults;
mod fuzz;
mod inventory;
mod kills;
mod packages;
mod proxied;
mod screen;
mod standing;
mod timeline;
mod workspace;

use std::net::Ipv4Addr;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use ipnet::Ipv4Net;
use lab::{BootNetwork, Firmware};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "Builds, shows and tests Muster")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Commission machines for real: from powered off to Ready.
    Demo(demo::Demo),
    /// Format, lints, all tests, and real commissionings with BIOS and UEFI.
    Test(checks::Test),
    /// What takes longer than a test may: kills at random moments, for as long as asked.
    Soak(faults::soak::Soak),
    /// A lab that stays: region and racks for load tools and for having a look.
    #[command(subcommand)]
    Lab(standing::Command),
    /// Side by side with peers: what a lease, a datagram, a commit costs.
    #[command(subcommand)]
    Bench(bench::Command),
    /// Random inputs to parsers and engines, for as long as asked (nightly Rust, cargo-fuzz).
    Fuzz(fuzz::Fuzz),
    /// Build the ephemeral image into the cache, unless it is there.
    Image,
    /// Install the Debian packages that lab and build need, where they are missing.
    Packages {
        /// Those of the benches, too.
        #[arg(long)]
        bench: bool,
    },
}

/// Where machines boot.
#[derive(Args)]
struct NetworkArguments {
    /// The machines' subnet [default: 10.99.0.0/16]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Ipv4Net>,
    /// Its dynamic range [default: the subnet without its first sixteenth]
    #[arg(long, value_name = "FIRST-LAST", value_parser = parse_range)]
    range: Option<(Ipv4Addr, Ipv4Addr)>,
}

impl NetworkArguments {
    fn network(&self) -> Result<BootNetwork> {
        let subnet = self.subnet.unwrap_or(BootNetwork::default().subnet);
        BootNetwork::new(subnet, self.range)
    }
}

fn parse_range(text: &str) -> Result<(Ipv4Addr, Ipv4Addr)> {
    let (first, last) = text.split_once('-').context("a range is FIRST-LAST")?;
    Ok((first.trim().parse()?, last.trim().parse()?))
}

fn parse_firmware(text: &str) -> Result<Firmware> {
    text.parse()
}

/// `cargo xtask test | head` is not an error worth a panic: whoever reads has enough, and that ends it quietly. What a lab
/// left is put away by its reaper, as after a kill.
fn end_quietly_on_closed_pipes() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let text = panic.payload_as_str().unwrap_or_default();
        if is_closed_pipe(text) {
            std::process::exit(0);
        }
        report(panic);
    }));
}

/// The standard library's words for a `println!` that nobody reads.
fn is_closed_pipe(panic: &str) -> bool {
    panic.starts_with("failed printing to std") && panic.contains("Broken pipe")
}

fn main() -> ExitCode {
    end_quietly_on_closed_pipes();
    let done = match Arguments::parse().command {
        Command::Demo(demo) => demo.run(),
        Command::Test(test) => test.run(),
        Command::Soak(soak) => soak.run(),
        Command::Lab(command) => command.run(),
        Command::Image => workspace::image().map(|image| {
            println!("{}", image.folder.display());
            ExitCode::SUCCESS
        }),
        Command::Bench(command) => command.run(),
        Command::Fuzz(fuzz) => fuzz.run(),
        Command::Packages { bench: false } => packages::ensure().map(|()| ExitCode::SUCCESS),
        Command::Packages { bench: true } => packages::ensure_bench().map(|()| ExitCode::SUCCESS),
    };
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    /// The words are the standard library's: this fails when they change.
    #[test]
    fn a_closed_pipe_is_told_from_other_panics() {
        use std::process::{Command, Stdio};
        const INNER: &str = "XTASK_PRINTS_FOR_EVER";
        if std::env::var_os(INNER).is_some() {
            end_quietly_on_closed_pipes();
            loop {
                // Past the harness, which captures what `println!` says.
                std::thread::spawn(|| println!("{}", "x".repeat(4096)))
                    .join()
                    .ok();
            }
        }
        let name = "tests::a_closed_pipe_is_told_from_other_panics";
        let mut child = Command::new(std::env::current_exe().expect("this test"))
            .args(["--exact", name, "--nocapture"])
            .env(INNER, "1")
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        // Until it prints by itself: the harness says what it runs before.
        let mut begun = [0; 8192];
        let mut stdout = child.stdout.take().expect("a pipe");
        std::io::Read::read_exact(&mut stdout, &mut begun).expect("prints");
        drop(stdout);
        let ended = child.wait_with_output().expect("ends");
        assert!(ended.status.success(), "{:?}", ended.status);
        assert_eq!(String::from_utf8_lossy(&ended.stderr), "");
        assert!(!is_closed_pipe("index out of bounds: Broken pipe"));
    }

    #[test]
    fn the_command_line_is_well_formed() {
        Arguments::command().debug_assert();
        assert!(parse_range("10.0.0.1-10.0.0.9").is_ok());
        for bad in ["10.0.0.1", "10.0.0.1-x", "-"] {
            assert!(parse_range(bad).is_err(), "{bad:?}");
        }
    }
}
