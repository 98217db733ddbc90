//! BMC power: one async driver per protocol, no process per command.
//!
//! A rack gets an [`Operation`] (which BMC, what to do, with which secrets), passes the [`gate::Gate`]
//! and calls [`run`]. The [`Report`] says what was seen and done, in order, and how it ended.
//!
//! Every command is a script over what the BMC *says*, never over what was sent (`steps`): the state is
//! read, acted on if it differs, and read again until it is as wanted. So an operation may be repeated,
//! by us or by a region that lost the answer, and a machine that is on already is not touched by `On`.
//!
//! Not here: which rack reaches which BMC, retries over racks and rate limits per zone (region), and
//! in-band BMC set-up. IPMI v2.0 (RMCP+) is in `ipmi`; its packet codec (`ipmi::wire`, `ipmi::handshake`,
//! `ipmi::crypto`, `ipmi::command`) is pure: octets in, octets out, randomness and sequence as arguments.

pub mod error;
pub mod gate;
pub mod ipmi;
mod parameters;
mod pattern;
mod steps;
mod webhook;

use std::time::Duration;

use tokio::time::Instant;

pub use error::{ErrorClass, PowerError};
pub use parameters::{
    BmcAddress, BootType, Driver, IpmiParameters, Operation, PowerOffMode, Privilege,
    WebhookParameters,
};

use steps::{Actuator, Pace, Progress, Switch};

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerCommand {
    Query,
    On,
    Off,
    /// Off, seen off, on, seen on. A machine that is off is only powered on.
    Cycle,
    /// Next boot from the network, then on; a machine that is on goes off first.
    PxeOn,
}

/// What was seen last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum PowerState {
    #[default]
    Unknown,
    On,
    Off,
    /// The BMC answered, and the answer was a fault.
    Error,
}

/// How an operation went.
#[derive(Debug)]
pub struct Report {
    pub state: PowerState,
    /// What was seen and done, in order. No secrets.
    pub steps: Vec<String>,
    pub result: Result<(), PowerError>,
}

/// Steps kept in a report; a BMC that makes us repeat ourselves does not fill memory.
const STEPS_MAX: usize = 64;
/// Kept back from the deadline for closing the session.
const CLOSING: Duration = Duration::from_millis(600);

/// Carries out `operation` and answers at `deadline` at the latest.
///
/// Never panics on what a BMC sends. Dropping the future is safe: an IPMI session that is open then gets
/// a last, unanswered Close Session.
pub async fn run(operation: &Operation, deadline: Instant) -> Report {
    let pace = Pace::default();
    match &operation.driver {
        Driver::Ipmi(parameters) => {
            let left = deadline.saturating_duration_since(Instant::now());
            let work_until = deadline - CLOSING.min(left / 4);
            let mut bmc = ipmi::Bmc::new(parameters, work_until);
            let report = perform(&mut bmc, operation, pace, work_until).await;
            let _ = tokio::time::timeout_at(deadline, bmc.close()).await;
            report
        }
        Driver::Webhook(parameters) => match webhook::Webhook::new(parameters) {
            Ok(mut hook) => perform(&mut hook, operation, pace, deadline).await,
            Err(error) => Report {
                state: PowerState::Unknown,
                steps: Vec::new(),
                result: Err(error),
            },
        },
        Driver::Manual => manual(operation.command),
    }
}

async fn perform<A: Actuator>(
    bmc: &mut A,
    operation: &Operation,
    pace: Pace,
    until: Instant,
) -> Report {
    let mut progress = Progress::default();
    let done = tokio::time::timeout_at(
        until,
        steps::perform(
            bmc,
            operation.command,
            operation.off_switch(),
            pace,
            &mut progress,
        ),
    )
    .await;
    let result = done.unwrap_or_else(|_| {
        let bmc_name = operation.driver.bmc();
        Err(match bmc.answered() {
            true => PowerError::Timeout {
                bmc: bmc_name,
                waiting_for: progress.waiting_for,
            },
            false => PowerError::Unreachable {
                bmc: bmc_name,
                source: None,
            },
        })
    });
    if result.is_err() && progress.state == PowerState::Unknown && bmc.answered() {
        progress.state = PowerState::Error;
    }
    Report {
        state: progress.state,
        steps: progress.steps,
        result,
    }
}

/// The driver for machines that only a person can switch: nothing fails, nothing is known.
fn manual(command: PowerCommand) -> Report {
    let steps = match command {
        PowerCommand::Query => Vec::new(),
        PowerCommand::On => vec!["ask a person to power the machine on".to_owned()],
        PowerCommand::Off => vec!["ask a person to power the machine off".to_owned()],
        PowerCommand::Cycle => vec!["ask a person to power-cycle the machine".to_owned()],
        PowerCommand::PxeOn => {
            vec!["ask a person to boot the machine from the network".to_owned()]
        }
    };
    Report {
        state: PowerState::Unknown,
        steps,
        result: Ok(()),
    }
}

impl Operation {
    /// How `Off` is done. Cycle and PxeOn always switch hard, as MAAS does: a hung system must not keep
    /// its machine from being reinstalled.
    fn off_switch(&self) -> Switch {
        match (&self.driver, self.command) {
            (Driver::Ipmi(p), PowerCommand::Off) if p.power_off_mode == PowerOffMode::Soft => {
                Switch::SoftOff
            }
            _ => Switch::Off,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn manual_machines_ask_a_person() {
        let operation = Operation::parse([1; 16], "manual", PowerCommand::On, "{}").unwrap();
        let report = run(&operation, Instant::now() + Duration::from_secs(1)).await;
        assert!(report.result.is_ok());
        assert_eq!(report.state, PowerState::Unknown);
        assert_eq!(report.steps, ["ask a person to power the machine on"]);
    }
}
