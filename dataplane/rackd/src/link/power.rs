//! `Rack.power`, handed to the work thread and answered when it is done; `Rack.ping` and `Rack.stats`, answered at once.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use capnp::Error;
use power::{ErrorClass, Operation, PowerCommand, PowerState};
use rpc::muster_capnp as wire;
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::metrics::{Claimed, Numbers};
use crate::work::power::Ask;

const DEADLINE_MAX: Duration = Duration::from_secs(600);
const TEXT_BYTES_MAX: usize = 4096;
const PARAMETERS_BYTES_MAX: usize = 65_536;

/// The capability that one region holds.
pub(super) struct RackCalls {
    pub asks: mpsc::Sender<Ask>,
    /// When the region last called: it pings, so silence means that the link is dead.
    pub heard: Rc<Cell<Instant>>,
    pub numbers: Numbers,
    pub claimed: Claimed,
}

impl wire::rack::Server for RackCalls {
    async fn power(
        self: Rc<Self>,
        params: wire::rack::PowerParams,
        mut results: wire::rack::PowerResults,
    ) -> Result<(), Error> {
        self.heard.set(Instant::now());
        let reader = params.get()?.get_operation()?;
        let deadline = Duration::from_millis(u64::from(reader.get_deadline_ms())).min(DEADLINE_MAX);
        let deadline = Instant::now() + deadline;
        let operation = match operation(reader)? {
            Ok(operation) => operation,
            Err(error) => {
                let builder = results.get().init_report();
                put_failure(error.class(), &error.to_string(), builder);
                return Ok(());
            }
        };
        let (reply, report) = oneshot::channel();
        self.asks
            .try_send(Ask {
                operation,
                deadline,
                reply,
            })
            .map_err(|_| Error::overloaded("the rack has too many power operations".into()))?;
        let report = tokio::time::timeout_at(deadline + Duration::from_secs(1), report)
            .await
            .map_err(|_| Error::failed("the operation ran into its deadline".into()))?
            .map_err(|_| Error::failed("the operation was lost in the rack".into()))?;
        put_report(&report, results.get().init_report());
        Ok(())
    }

    async fn ping(
        self: Rc<Self>,
        _: wire::rack::PingParams,
        _: wire::rack::PingResults,
    ) -> Result<(), Error> {
        self.heard.set(Instant::now());
        Ok(())
    }

    async fn stats(
        self: Rc<Self>,
        _: wire::rack::StatsParams,
        results: wire::rack::StatsResults,
    ) -> Result<(), Error> {
        self.heard.set(Instant::now());
        put_stats(&(self.numbers)(), results);
        Ok(())
    }

    async fn claimed(
        self: Rc<Self>,
        _: wire::rack::ClaimedParams,
        mut results: wire::rack::ClaimedResults,
    ) -> Result<(), Error> {
        self.heard.set(Instant::now());
        let claimed = (self.claimed)();
        let mut list = results.get().init_blocks(claimed.len() as u32);
        for (i, (block, addresses)) in claimed.into_iter().enumerate() {
            let mut builder = list.reborrow().get(i as u32);
            builder.set_block(block.0);
            builder.set_addresses(addresses);
        }
        Ok(())
    }
}

fn put_stats(numbers: &[(String, u64)], mut results: wire::rack::StatsResults) {
    let mut list = results.get().init_stats(numbers.len() as u32);
    for (i, (name, value)) in numbers.iter().enumerate() {
        let mut builder = list.reborrow().get(i as u32);
        builder.set_name(name);
        builder.set_value(*value);
    }
}

/// The outer error: no operation at all; the inner one: parameters that the driver refuses.
fn operation(
    reader: wire::power_operation::Reader<'_>,
) -> Result<Result<Operation, power::PowerError>, Error> {
    use wire::PowerCommand as W;
    let id = reader
        .get_id()?
        .try_into()
        .map_err(|_| Error::failed("malformed operation id".into()))?;
    let parameters = reader.get_parameters()?.to_str()?;
    if parameters.len() > PARAMETERS_BYTES_MAX {
        return Err(Error::failed("the power parameters are too long".into()));
    }
    let command = match reader.get_command()? {
        W::Query => PowerCommand::Query,
        W::On => PowerCommand::On,
        W::Off => PowerCommand::Off,
        W::Cycle => PowerCommand::Cycle,
        W::PxeOn => PowerCommand::PxeOn,
    };
    Ok(Operation::parse(
        id,
        reader.get_driver()?.to_str()?,
        command,
        parameters,
    ))
}

fn put_report(report: &power::Report, mut builder: wire::power_report::Builder<'_>) {
    builder.set_state(match report.state {
        PowerState::Unknown => wire::PowerState::Unknown,
        PowerState::On => wire::PowerState::On,
        PowerState::Off => wire::PowerState::Off,
        PowerState::Error => wire::PowerState::Error,
    });
    let mut steps = builder.reborrow().init_steps(report.steps.len() as u32);
    for (i, step) in report.steps.iter().enumerate() {
        steps.set(i as u32, cut(step));
    }
    match &report.result {
        Ok(()) => builder.set_done(()),
        Err(error) => put_failure(error.class(), &error.to_string(), builder),
    }
}

fn put_failure(class: ErrorClass, message: &str, builder: wire::power_report::Builder<'_>) {
    use wire::PowerFailureClass as W;
    let mut builder = builder.init_failed();
    builder.set_class(match class {
        ErrorClass::Unreachable => W::Unreachable,
        ErrorClass::Credentials => W::Credentials,
        ErrorClass::Refused => W::Refused,
        ErrorClass::Timeout => W::Timeout,
        ErrorClass::Parameters => W::Parameters,
        ErrorClass::Busy => W::Busy,
    });
    builder.set_message(cut(message));
}

fn cut(text: &str) -> &str {
    let mut end = text.len().min(TEXT_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
