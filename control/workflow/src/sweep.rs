//! The background look at the power of machines: what nobody switched through us is seen within the operator's interval.
//!
//! Slow and out of the way: a few queries at once over all region processes, spread over the interval, none for a
//! machine whose power was just seen or whose BMC is busy with a command. A command takes a query's place at once, and
//! a BMC that does not answer is asked less and less often.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use link::{LinkError, PowerFailureClass, PowerReport};
use model::PowerState;
use sqlx::PgPool;
use store::work;

use crate::WorkflowError;
use crate::outcome::{Next, state_of};

/// Between two looks for machines that are due.
pub(crate) const TICK: Duration = Duration::from_secs(5);
/// Queries at once, over all processes: fewer than the sessions that a rack keeps for BMCs that do not answer.
const OPEN_MAX: i64 = 32;
/// Longest pause before a BMC that does not answer, or refuses us, is asked again.
const PAUSE_MAX: Duration = Duration::from_secs(3600);
/// What a rack may spend on one: a living BMC answers in a fraction of a second.
pub(crate) const TIME_LIMIT: Duration = Duration::from_secs(8);

/// How often power is looked at, and what came of it.
#[derive(Clone, Debug, Default)]
pub struct Sweep {
    /// Zero: never.
    pub every: Duration,
    pub counters: Arc<Counters>,
}

#[derive(Debug, Default)]
pub struct Counters {
    asked: AtomicU64,
    failed: AtomicU64,
}

impl Counters {
    /// Name, help, value.
    pub fn read(&self) -> [(&'static str, &'static str, u64); 2] {
        [
            (
                "swept",
                "BMCs asked for the power of their machine in the background",
                self.asked.load(Ordering::Relaxed),
            ),
            (
                "sweeps_failed",
                "of these without an answer, or refused",
                self.failed.load(Ordering::Relaxed),
            ),
        ]
    }

    pub(crate) fn count(&self, next: &Next) {
        self.asked.fetch_add(1, Ordering::Relaxed);
        if matches!(next, Next::Fail { .. }) {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Sweep {
    pub fn every(every: Duration) -> Self {
        Self {
            every,
            counters: Arc::default(),
        }
    }

    /// Queues what is due.
    pub(crate) async fn tick(&self, pool: &PgPool) -> Result<(), WorkflowError> {
        if self.every.is_zero() {
            return Ok(());
        }
        let mut tx = pool.begin().await?;
        let bmcs = store::bmc::count_driven(&mut *tx).await?;
        let due = work::Due {
            every: self.every,
            pause_max: PAUSE_MAX.max(self.every),
            limit: batch(bmcs, self.every),
            open_max: OPEN_MAX,
        };
        work::enqueue_sweep(&mut tx, due).await?;
        tx.commit().await?;
        Ok(())
    }
}

/// Queries to queue in one tick: twice what an even pace needs, so that a late start is made up for, but never all
/// BMCs of a site at once.
fn batch(bmcs: i64, every: Duration) -> i64 {
    let ticks = (every.as_secs() / TICK.as_secs()).max(1);
    let even = bmcs.max(0).unsigned_abs().div_ceil(ticks);
    i64::try_from(2 * even).unwrap_or(i64::MAX)
}

/// What a query of a sweep says about the machine. `None`: nothing; the rack had no time for it.
pub(crate) fn next(answer: &Result<PowerReport, LinkError>) -> Option<Next> {
    let report = answer.as_ref().ok()?;
    match &report.failure {
        None => Some(Next::Done(state_of(report.state))),
        Some(failure) if failure.class == PowerFailureClass::Busy => None,
        Some(failure) => Some(Next::Fail {
            reason: failure.message.clone(),
        }),
    }
}

/// Whether the BMC was reached: if it was not, the next sweep waits longer.
pub(crate) fn is_failure(next: &Next) -> bool {
    !matches!(next, Next::Done(state) if *state != PowerState::Error)
}

#[cfg(test)]
mod tests {
    use link::PowerFailure;

    use super::*;

    #[test]
    fn a_sweep_is_spread_over_its_interval() {
        let minutes = |n: u64| Duration::from_secs(60 * n);
        for (bmcs, every, want) in [
            (0, minutes(5), 0),
            (1, minutes(5), 2),
            (60, minutes(5), 2),
            (10_000, minutes(5), 334),
            (10_000, minutes(60), 28),
            (7, Duration::from_secs(1), 14),
        ] {
            assert_eq!(batch(bmcs, every), want, "{bmcs} {every:?}");
        }
    }

    #[test]
    fn a_rack_without_time_says_nothing_of_the_machine() {
        let report = |failure: Option<PowerFailureClass>| {
            Ok(PowerReport {
                state: link::PowerState::On,
                steps: Vec::new(),
                failure: failure.map(|class| PowerFailure {
                    class,
                    message: "why".into(),
                }),
            })
        };
        let fail = Some(Next::Fail {
            reason: "why".into(),
        });
        use PowerFailureClass::*;
        assert_eq!(next(&report(None)), Some(Next::Done(PowerState::On)));
        assert_eq!(next(&report(Some(Busy))), None);
        for class in [Unreachable, Credentials, Refused, Timeout, Parameters] {
            assert_eq!(next(&report(Some(class))), fail, "{class:?}");
        }
        for error in [
            LinkError::NotConnected,
            LinkError::Lost,
            LinkError::Deadline,
        ] {
            assert_eq!(next(&Err(error)), None);
        }
    }
}
