//! A model BMC at a port of its own, and operations on it.

#![allow(dead_code, reason = "each test file uses its part")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use power::ipmi::crypto::Suite;
use power::{ErrorClass, Operation, PowerCommand, Report};
use tokio::net::UdpSocket;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use crate::model::{Account, Faults, MemoryChassis, Model, Seen};

pub const USER: &str = "maas";
pub const PASSWORD: &str = "secret";

pub struct Bench {
    pub address: SocketAddr,
    pub faults: Arc<Faults>,
    pub seen: Arc<Seen>,
    task: JoinHandle<()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Bench {
    pub async fn new(on: bool) -> Self {
        Self::with(on, &[Suite::Sha256, Suite::Sha1], None).await
    }

    pub async fn with(on: bool, suites: &[Suite], k_g: Option<&[u8]>) -> Self {
        Self::of(on, suites, k_g, PASSWORD).await
    }

    pub async fn of(on: bool, suites: &[Suite], k_g: Option<&[u8]>, password: &str) -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let (faults, seen) = (Arc::new(Faults::default()), Arc::new(Seen::default()));
        let model = Model {
            account: Account {
                user: USER.into(),
                password: password.into(),
                k_g: k_g.map(<[u8]>::to_vec),
                privilege: 4,
            },
            suites: suites.to_vec(),
            chassis: Arc::new(MemoryChassis::new(on, Duration::from_millis(300))),
            faults: faults.clone(),
            seen: seen.clone(),
        };
        let task = tokio::spawn(model.serve(socket));
        Self {
            address,
            faults,
            seen,
            task,
        }
    }

    pub async fn run(&self, command: PowerCommand, more: &str) -> Report {
        self.run_for(command, more, Duration::from_secs(20)).await
    }

    pub async fn run_for(&self, command: PowerCommand, more: &str, limit: Duration) -> Report {
        let json = format!(
            r#"{{"power_address":"{}","power_user":"{USER}","power_pass":"{PASSWORD}"{more}}}"#,
            self.address
        );
        let operation = Operation::parse([0; 16], "ipmi", command, &json).unwrap();
        run(&operation, limit).await
    }
}

/// Runs, and insists that the deadline is kept.
pub async fn run(operation: &Operation, limit: Duration) -> Report {
    let report = power::run(operation, Instant::now() + limit);
    timeout(limit + Duration::from_millis(500), report)
        .await
        .expect("the deadline was kept")
}

pub fn class(report: &Report) -> ErrorClass {
    report.result.as_ref().expect_err("should fail").class()
}
