//! How many BMCs a rack talks to at once.
//!
//! At most [`SESSIONS_MAX`] operations; one at a time per BMC (a second waits, a third is refused); and
//! BMCs whose last attempt got no answer share a tenth of the sessions, so that a dead rack of BMCs
//! cannot keep the living ones waiting.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::{ErrorClass, PowerError, Report};

/// Operations at once.
pub const SESSIONS_MAX: usize = 512;
/// Of these, for BMCs that did not answer last time: 10 %.
pub const SILENT_SESSIONS_MAX: usize = SESSIONS_MAX / 10;
/// Operations that may wait for one BMC behind the one that runs.
const WAITING_PER_BMC_MAX: usize = 1;
/// Silent BMCs remembered. A rack serves fewer; one more would simply count as new each time.
const SILENT_MAX: usize = 65_536;

/// Shared by all operations of a rack. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    sessions: Arc<Semaphore>,
    silent_sessions: Arc<Semaphore>,
    bmcs: Arc<Mutex<Bmcs>>,
}

#[derive(Default)]
struct Bmcs {
    /// By BMC: who may run, and how many hold or wait for it.
    active: HashMap<String, (Arc<Semaphore>, usize)>,
    silent: HashSet<String>,
    refused: u64,
}

/// Leave to talk to one BMC until dropped.
pub struct Pass {
    gate: Gate,
    bmc: String,
    _turn: OwnedSemaphorePermit,
    _silent: Option<OwnedSemaphorePermit>,
    _session: OwnedSemaphorePermit,
    // Declared last: the BMC is forgotten after its permits are back.
    _place: Place,
}

/// A place at one BMC, running or waiting. Given back also when the one who waits gives up.
struct Place {
    gate: Gate,
    bmc: String,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(SESSIONS_MAX, SILENT_SESSIONS_MAX)
    }
}

impl Gate {
    pub fn new(sessions: usize, silent_sessions: usize) -> Self {
        Self {
            sessions: Arc::new(Semaphore::new(sessions)),
            silent_sessions: Arc::new(Semaphore::new(silent_sessions.max(1))),
            bmcs: Arc::default(),
        }
    }

    /// Waits for this BMC's turn and a session, first come first served.
    ///
    /// Errors: [`PowerError::Busy`] at once when the BMC has an operation running and one waiting. The
    /// caller bounds the wait with the operation's own deadline.
    pub async fn enter(&self, bmc: &str) -> Result<Pass, PowerError> {
        let (turn, place) = self.place(bmc)?;
        let closed = "the gate's semaphores are never closed";
        let turn = turn.acquire_owned().await.expect(closed);
        let silent = match self.bmcs().silent.contains(bmc) {
            true => Some(self.silent_sessions.clone()),
            false => None,
        };
        let silent = match silent {
            Some(silent) => Some(silent.acquire_owned().await.expect(closed)),
            None => None,
        };
        let session = self.sessions.clone().acquire_owned().await.expect(closed);
        Ok(Pass {
            gate: self.clone(),
            bmc: bmc.to_owned(),
            _turn: turn,
            _silent: silent,
            _session: session,
            _place: place,
        })
    }

    fn place(&self, bmc: &str) -> Result<(Arc<Semaphore>, Place), PowerError> {
        let mut bmcs = self.bmcs();
        let (turn, held) = bmcs
            .active
            .entry(bmc.to_owned())
            .or_insert_with(|| (Arc::new(Semaphore::new(1)), 0));
        if *held > WAITING_PER_BMC_MAX {
            bmcs.refused += 1;
            let reason = "an operation runs and another waits";
            // The caller knows its name; the key may hold a secret.
            return Err(PowerError::Busy {
                bmc: String::new(),
                reason,
            });
        }
        *held += 1;
        Ok((
            turn.clone(),
            Place {
                gate: self.clone(),
                bmc: bmc.to_owned(),
            },
        ))
    }

    /// Operations turned away, for the rack's counters.
    pub fn refused(&self) -> u64 {
        self.bmcs().refused
    }

    /// Sessions in use.
    pub fn in_use(&self, sessions: usize) -> usize {
        sessions.saturating_sub(self.sessions.available_permits())
    }

    fn bmcs(&self) -> MutexGuard<'_, Bmcs> {
        // Nothing panics while it is held; if it did, the maps would still be whole.
        self.bmcs.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass {
    /// Tells the gate how the operation went, and gives the pass back.
    pub fn finish(self, report: &Report) {
        let silent = matches!(&report.result, Err(e) if e.class() == ErrorClass::Unreachable);
        let mut bmcs = self.gate.bmcs();
        if !silent {
            bmcs.silent.remove(&self.bmc);
        } else if bmcs.silent.len() < SILENT_MAX {
            bmcs.silent.insert(self.bmc.clone());
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut bmcs = self.gate.bmcs();
        if let Some((_, held)) = bmcs.active.get_mut(&self.bmc) {
            *held -= 1;
            if *held == 0 {
                bmcs.active.remove(&self.bmc);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PowerState;
    use std::time::Duration;
    use tokio::time::timeout;

    fn report(answered: bool) -> Report {
        let result = match answered {
            true => Ok(()),
            false => Err(PowerError::Unreachable {
                bmc: String::new(),
                source: None,
            }),
        };
        Report {
            state: PowerState::Unknown,
            steps: Vec::new(),
            result,
        }
    }

    async fn waits(gate: &Gate, bmc: &str) -> bool {
        timeout(Duration::from_millis(20), gate.enter(bmc))
            .await
            .is_err()
    }

    #[tokio::test]
    async fn one_operation_per_bmc_one_waits_the_third_is_refused() {
        let gate = Gate::new(10, 1);
        let first = gate.enter("a").await.unwrap();
        let second = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter("a").await }
        });
        tokio::task::yield_now().await;
        let third = gate.enter("a").await;
        assert!(matches!(third, Err(PowerError::Busy { .. })));
        assert_eq!(gate.refused(), 1);
        assert!(
            gate.enter("b").await.is_ok(),
            "another BMC is not in the way"
        );
        first.finish(&report(true));
        let second = second.await.unwrap().unwrap();
        second.finish(&report(true));
        assert!(gate.bmcs().active.is_empty(), "places are given back");
    }

    #[tokio::test]
    async fn a_waiter_that_gives_up_leaves_no_trace() {
        let gate = Gate::new(10, 1);
        let first = gate.enter("a").await.unwrap();
        assert!(waits(&gate, "a").await);
        assert!(waits(&gate, "a").await, "its place was free again");
        drop(first);
        assert!(gate.bmcs().active.is_empty());
        assert_eq!(gate.in_use(10), 0);
    }

    #[tokio::test]
    async fn silent_bmcs_share_few_sessions() {
        let gate = Gate::new(10, 1);
        for bmc in ["dead-1", "dead-2"] {
            gate.enter(bmc).await.unwrap().finish(&report(false));
        }
        let dead = gate.enter("dead-1").await.unwrap();
        assert!(waits(&gate, "dead-2").await);
        assert!(!waits(&gate, "alive").await);
        dead.finish(&report(true));
        let dead = gate.enter("dead-2").await.unwrap();
        assert!(!waits(&gate, "dead-1").await, "an answer clears the name");
        drop(dead);
    }
}
