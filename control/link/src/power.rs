//! Power operations in the region's own words; `wire.rs` turns them into Cap'n Proto and back.

use std::fmt;
use std::time::Duration;

use model::{PowerCommand, PowerState};

/// Text that must not reach a log: BMC passwords travel in it, with one operation only.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    pub fn new(text: impl Into<String>) -> Self {
        Secret(text.into())
    }

    /// The text itself, for the one call that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(text: String) -> Self {
        Secret(text)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// One power operation. The same `id` may arrive at a rack twice; it is done once there.
#[derive(Clone, Debug)]
pub struct PowerOperation {
    pub id: [u8; 16],
    /// "ipmi", "webhook", "manual".
    pub driver: String,
    pub command: PowerCommand,
    /// JSON object of MAAS power parameter names, secret ones included.
    pub parameters: Secret,
    /// From the call to the rack's report.
    pub deadline: Duration,
}

/// What a rack saw and did. With `failure` set, `state` is the last one seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerReport {
    pub state: PowerState,
    /// In order, for the machine's events.
    pub steps: Vec<String>,
    pub failure: Option<PowerFailure>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PowerFailure {
    pub class: PowerFailureClass,
    pub message: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PowerFailureClass {
    /// No answer from the BMC: another rack may have a way to it.
    Unreachable,
    /// The BMC refused the user or password: no other rack will do better.
    Credentials,
    /// The BMC answered and would not.
    Refused,
    Timeout,
    /// The parameters are wrong or incomplete for this driver.
    Parameters,
    /// The rack has as many operations under way as it takes.
    Busy,
}
