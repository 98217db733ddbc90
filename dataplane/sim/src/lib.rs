//! The lease protocol under everything that can go wrong, on one seed and with virtual time.
//!
//! ```text
//!   clients --- relay ---+--- shards (dhcp::Engine) --- lease::rack::Rack --+-- region --+-- database
//!      (RFC 2131 §4.4)   +--- shards               --- Rack + spool's disk -+-- region --+   (atomic, one clock)
//!                  loss, doubles,       crash, pause, drift             late, lost,          steps,
//!                  lateness             wipe, set back                  doubled calls        promotion
//! ```
//!
//! Real: the DHCP engine (octets in, octets out), the rack's lease machine, the region's rules, the spool's file format. Modelled:
//! clients, relay, network, processes, and the SQL around the rules ([`database`]). A run is a function of its seed and
//! [`Plan`]; a failing one is run again with a trace.
//!
//! What must hold at every step ([`oracle`]): no two clients hold one address, by their own clocks; what an ACK promised is
//! covered by the region's row or by a fact in a spool for as long as it promised; every reply answers a query. At the end,
//! with the faults off, every client gets a lease within bounded time.
//!
//! Not here: io_uring, RPC encoding, PostgreSQL's isolation (the `lab` and `store`'s tests), DHCPv6. `lease::rack::search` is
//! exhaustive where this is random; this has two real racks, real shards, and time that flows.

mod client;
mod clock;
mod database;
mod disk;
mod engine;
mod message;
mod naive;
mod nemesis;
mod oracle;
mod plan;
mod rack;
mod region;
mod rng;
mod shard;
mod trace;
mod world;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

pub use lease::guards::Guard;
pub use plan::{Plan, PlanError};
pub use world::Report;

use world::World;

/// Lines of a failure's trace.
const TRACE_LINES_MAX: usize = 200;

/// A run in which something that must hold did not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub seed: u64,
    pub plan: String,
    /// True time since the start.
    pub at: Duration,
    pub what: String,
    /// The last things that happened, oldest first.
    pub trace: Vec<String>,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for line in &self.trace {
            writeln!(f, "{line}")?;
        }
        writeln!(f, "{:?}: {}", self.at, self.what)?;
        write!(f, "{} {}", self.seed, self.plan)
    }
}

impl std::error::Error for Failure {}

/// Runs the plan with this seed, to its end or to the first thing that must not be.
pub fn run(seed: u64, plan: &Plan) -> Result<Report, Failure> {
    World::new(seed, plan, None).live().or_else(|_| {
        // The same again, this time writing down what happens.
        let mut world = World::new(seed, plan, Some(VecDeque::new()));
        world.trace_max = TRACE_LINES_MAX;
        world.live()
    })
}

/// Everything that happens in the run.
pub fn trace(seed: u64, plan: &Plan) -> Vec<String> {
    let mut world = World::new(seed, plan, Some(VecDeque::new()));
    match world.live() {
        Ok(_) => world.take_trace(),
        Err(failure) => failure.trace,
    }
}
