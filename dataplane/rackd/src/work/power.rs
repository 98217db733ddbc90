//! Runs BMC power operations for the link thread, through the gate, each once.
//!
//! A region may send an operation twice (another link, a lost answer). By its id the second joins the
//! first, or gets its report: a second cycle would be a second cycle.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use power::gate::Gate;
use power::{Operation, PowerError, PowerState, Report};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Counter;

/// One operation, and who wants to know how it went.
pub struct Ask {
    pub operation: Operation,
    pub deadline: Instant,
    pub reply: oneshot::Sender<Arc<Report>>,
}

#[derive(Debug, Default)]
pub struct Counters {
    pub asked: Counter,
    pub done: Counter,
    pub failed: Counter,
    /// Answered with another one's report.
    pub repeated: Counter,
    /// Turned away: too many operations wait.
    pub refused: Counter,
}

/// Operations running or waiting at the gate.
const OPERATIONS_MAX: usize = 4_096;
/// Reports kept for repeats: the longest a region keeps asking for one.
const REPORT_KEPT: Duration = Duration::from_secs(300);
const REPORTS_MAX: usize = 4_096;
/// Askers of one operation: a link each, and some repeats.
const ASKERS_MAX: usize = 32;

type Id = [u8; 16];

#[derive(Default)]
struct Desk {
    /// Who waits for which running operation.
    running: HashMap<Id, Vec<oneshot::Sender<Arc<Report>>>>,
    finished: HashMap<Id, Arc<Report>>,
    /// The ids of `finished`, oldest first.
    age: VecDeque<(Instant, Id)>,
}

/// Serves until the mailbox ends and the last operation is reported.
pub async fn run(mut inbox: mpsc::Receiver<Ask>, counters: Arc<super::Counters>) {
    let counters = &counters.power;
    let gate = Gate::default();
    let mut desk = Desk::default();
    let mut operations = JoinSet::new();
    loop {
        tokio::select! {
            ask = inbox.recv() => {
                let Some(ask) = ask else { break };
                counters.asked.add(1);
                desk.take(ask, &gate, &mut operations, counters);
            }
            Some(finished) = operations.join_next() => desk.finish(finished, counters),
        }
    }
    while let Some(finished) = operations.join_next().await {
        desk.finish(finished, counters);
    }
}

impl Desk {
    fn take(
        &mut self,
        ask: Ask,
        gate: &Gate,
        operations: &mut JoinSet<(Id, Report)>,
        counters: &Counters,
    ) {
        self.forget_old(Instant::now());
        let Ask {
            operation,
            deadline,
            reply,
        } = ask;
        let id = operation.id;
        if let Some(report) = self.finished.get(&id) {
            counters.repeated.add(1);
            let _ = reply.send(report.clone());
        } else if let Some(waiting) = self.running.get_mut(&id) {
            counters.repeated.add(1);
            // Askers that gave up make room; one too many sees its channel close.
            waiting.retain(|asker| !asker.is_closed());
            if waiting.len() < ASKERS_MAX {
                waiting.push(reply);
            }
        } else if operations.len() >= OPERATIONS_MAX {
            counters.refused.add(1);
            let error = PowerError::Busy {
                bmc: operation.driver.bmc(),
                reason: "too many power operations wait at this rack",
            };
            let _ = reply.send(Arc::new(failed(error)));
        } else {
            self.running.insert(id, vec![reply]);
            let gate = gate.clone();
            operations.spawn(async move { (id, carry_out(&operation, deadline, &gate).await) });
        }
    }

    fn finish(
        &mut self,
        finished: Result<(Id, Report), tokio::task::JoinError>,
        counters: &Counters,
    ) {
        // A panic of ours: the askers see their channel close.
        let Ok((id, report)) = finished else {
            self.running
                .retain(|_, waiting| waiting.iter().any(|asker| !asker.is_closed()));
            return;
        };
        match &report.result {
            Ok(()) => counters.done.add(1),
            Err(error) => {
                counters.failed.add(1);
                tracing::info!(%error, class = ?error.class(), "power operation failed");
            }
        }
        let report = Arc::new(report);
        for asker in self.running.remove(&id).unwrap_or_default() {
            let _ = asker.send(report.clone());
        }
        if self.age.len() == REPORTS_MAX
            && let Some((_, oldest)) = self.age.pop_front()
        {
            self.finished.remove(&oldest);
        }
        self.finished.insert(id, report);
        self.age.push_back((Instant::now(), id));
    }

    fn forget_old(&mut self, now: Instant) {
        while let Some((since, id)) = self.age.front().copied()
            && now.duration_since(since) > REPORT_KEPT
        {
            self.age.pop_front();
            self.finished.remove(&id);
        }
    }
}

async fn carry_out(operation: &Operation, deadline: Instant, gate: &Gate) -> Report {
    let Some(key) = operation.driver.gate_key() else {
        return power::run(operation, deadline).await;
    };
    let busy = |reason| PowerError::Busy {
        bmc: operation.driver.bmc(),
        reason,
    };
    match timeout_at(deadline, gate.enter(&key)).await {
        Err(_) => failed(busy("the deadline passed while it waited for its turn")),
        Ok(Err(_)) => failed(busy("an operation runs and another waits")),
        Ok(Ok(pass)) => {
            let report = power::run(operation, deadline).await;
            pass.finish(&report);
            report
        }
    }
}

fn failed(error: PowerError) -> Report {
    Report {
        state: PowerState::Unknown,
        steps: Vec::new(),
        result: Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use power::PowerCommand;

    async fn ask(
        mailbox: &mpsc::Sender<Ask>,
        id: u8,
        driver: &str,
        json: &str,
    ) -> oneshot::Receiver<Arc<Report>> {
        let operation = Operation::parse([id; 16], driver, PowerCommand::On, json).unwrap();
        let (reply, answer) = oneshot::channel();
        let deadline = Instant::now() + Duration::from_secs(1);
        let ask = Ask {
            operation,
            deadline,
            reply,
        };
        assert!(mailbox.send(ask).await.is_ok());
        answer
    }

    #[tokio::test]
    async fn a_repeated_operation_is_carried_out_once() {
        let counters = Arc::new(super::super::Counters::default());
        let (mailbox, inbox) = mpsc::channel(8);
        let desk = tokio::spawn(run(inbox, counters.clone()));
        // Nobody answers there, so the second arrives while the first runs.
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let json = format!(r#"{{"power_address":"{}"}}"#, socket.local_addr().unwrap());
        let first = ask(&mailbox, 1, "ipmi", &json).await;
        let second = ask(&mailbox, 1, "ipmi", &json).await;
        let (first, second) = (first.await.unwrap(), second.await.unwrap());
        assert!(Arc::ptr_eq(&first, &second));
        assert!(first.result.is_err());
        let third = ask(&mailbox, 1, "ipmi", &json).await.await.unwrap();
        assert!(Arc::ptr_eq(&first, &third));
        let other = ask(&mailbox, 2, "manual", "{}").await.await.unwrap();
        assert!(other.result.is_ok());
        drop(mailbox);
        desk.await.unwrap();
        assert_eq!(counters.power.asked.get(), 4);
        assert_eq!(counters.power.repeated.get(), 2);
        assert_eq!(
            (counters.power.done.get(), counters.power.failed.get()),
            (1, 1)
        );
    }
}
