//! The life of a machine: commission, abort, power; who does the work, and what happens when nobody does.
//!
//! ```text
//!   api --commission/abort/power--> [ machine, script_set, work, event ]   one transaction
//!   runner  claims work, picks a rack, asks it, records the outcome        (power)
//!   signal  a machine's word -> script results, inventory -> rules         (metadata)
//!   monitor reads full state on a timer -> the same rules                  (what a crash or silence left)
//!   sweep   asks for the power that nobody saw for a while                 (what was switched by others)
//! ```
//! Only this crate moves a machine between statuses. The rules are pure (`rules`, `route`, `outcome`, `resources`);
//! everything else reads facts, asks a rule and writes what it said, in the caller's transaction. No transaction is
//! open across a call to a rack.

mod life;
mod monitor;
pub mod outcome;
mod quota;
pub mod resources;
pub mod route;
pub mod rules;
mod runner;
pub mod scripts;
mod signal;
mod sweep;

pub use life::{
    CommissionOptions, Commissioned, PowerSeen, abort, booted, commission, heard, power,
    query_power,
};
pub use monitor::tick;
pub use runner::{PowerLink, Runner};
pub use signal::{SignalReport, signal};
pub use sweep::Sweep;

use model::{IllegalMove, MachineStatus};
use store::StoreError;

/// Why the workflow did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum WorkflowError {
    /// The lifecycle does not have that transition: HTTP 409.
    #[error(transparent)]
    Illegal(#[from] IllegalMove),
    /// HTTP 409.
    #[error("Machine cannot be aborted in status {0}.")]
    NothingToAbort(MachineStatus),
    /// HTTP 409.
    #[error("Machine has no power type configured: set power_type first.")]
    NoPower,
    /// HTTP 409.
    #[error("Machine is locked.")]
    Locked,
    /// HTTP 400.
    #[error("Unknown script: {0}.")]
    UnknownScript(String),
    /// HTTP 413.
    #[error("The results of this boot are too large: write less.")]
    ResultsFull,
    /// HTTP 503: no rack did it in time; it may still be done.
    #[error("The power of the machine was not reached in time.")]
    PowerTimeout,
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<sqlx::Error> for WorkflowError {
    fn from(error: sqlx::Error) -> Self {
        WorkflowError::Store(error.into())
    }
}

impl store::Conflict for WorkflowError {
    fn is_conflict(&self) -> bool {
        matches!(self, WorkflowError::Store(error) if error.is_conflict())
    }
}
