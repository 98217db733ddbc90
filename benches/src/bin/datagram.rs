//! What a datagram costs in the shard's loop and elsewhere; `cargo xtask bench datagram` runs it.

use anyhow::Result;
use benches::datagram::{ENGINES, measure};
use clap::Parser;

#[derive(Parser)]
struct Arguments {
    /// Fewer rounds and datagrams.
    #[arg(long)]
    quick: bool,
    /// Only these engines.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let (rounds, requests) = if arguments.quick {
        (2, 50_000)
    } else {
        (5, 150_000)
    };
    for round in 1..=rounds {
        for (name, engine) in ENGINES {
            if !arguments.only.is_empty() && !arguments.only.iter().any(|only| only == name) {
                continue;
            }
            benches::print(&measure(name, *engine, round, requests)?)?;
        }
    }
    Ok(())
}
