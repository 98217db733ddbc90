//! Why a power operation did not happen. No variant holds a secret, and none is built from text a BMC
//! or a caller sent.

use std::io;

use crate::ipmi::command::completion_name;
use crate::ipmi::handshake::status_name;

/// Why an operation ended without its aim. The cause chain is printed by the logger.
#[derive(Debug, thiserror::Error)]
pub enum PowerError {
    #[error("no answer from BMC {bmc}")]
    Unreachable {
        bmc: String,
        #[source]
        source: Option<io::Error>,
    },
    #[error("BMC {bmc} refused the credentials: {reason}")]
    Credentials { bmc: String, reason: &'static str },
    #[error("BMC {bmc} refused {command}: {} ({code:#04x})", completion_name(*code))]
    Refused {
        bmc: String,
        command: &'static str,
        code: u8,
    },
    #[error("BMC {bmc} refused a session: {} ({status:#04x})", status_name(*status))]
    SessionRefused { bmc: String, status: u8 },
    #[error("BMC {bmc} and we have no cipher suite in common")]
    NoCipherSuite { bmc: String },
    #[error("BMC {bmc} broke the protocol: {what}")]
    Protocol { bmc: String, what: &'static str },
    #[error("webhook at {bmc} answered {command} with HTTP status {status}")]
    HttpStatus {
        bmc: String,
        command: &'static str,
        status: u16,
    },
    #[error("BMC {bmc}: the deadline passed while waiting for {waiting_for}")]
    Timeout {
        bmc: String,
        waiting_for: &'static str,
    },
    #[error(
        "BMC {bmc} opens a session and says nothing to {to}: many are silent to a user or privilege level that they do not have"
    )]
    Mute { bmc: String, to: &'static str },
    #[error("power parameter {name}: {problem}")]
    Parameters {
        name: &'static str,
        problem: &'static str,
    },
    #[error("BMC {bmc} is busy: {reason}")]
    Busy { bmc: String, reason: &'static str },
}

/// The classes the link carries (`PowerFailureClass` in the schema).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    Unreachable,
    Credentials,
    Refused,
    Timeout,
    Parameters,
    Busy,
}

impl PowerError {
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::Unreachable { .. } => ErrorClass::Unreachable,
            Self::Credentials { .. } => ErrorClass::Credentials,
            Self::Refused { .. }
            | Self::SessionRefused { .. }
            | Self::NoCipherSuite { .. }
            | Self::Protocol { .. } => ErrorClass::Refused,
            Self::HttpStatus {
                status: 401 | 403, ..
            } => ErrorClass::Credentials,
            // Not now: too early, too often, or something behind the service is away.
            Self::HttpStatus {
                status: 408 | 423 | 425 | 429 | 502..=504,
                ..
            } => ErrorClass::Busy,
            Self::HttpStatus { .. } => ErrorClass::Refused,
            Self::Mute { .. } | Self::Timeout { .. } => ErrorClass::Timeout,
            Self::Parameters { .. } => ErrorClass::Parameters,
            Self::Busy { .. } => ErrorClass::Busy,
        }
    }

    /// Whether it is an answer that says nothing, and may say something a moment later.
    pub fn is_not_now(&self) -> bool {
        matches!(self.class(), ErrorClass::Refused | ErrorClass::Busy)
    }

    /// Whether the same operation may work if tried again, here or from another rack.
    pub fn is_transient(&self) -> bool {
        matches!(
            self.class(),
            ErrorClass::Unreachable | ErrorClass::Timeout | ErrorClass::Busy
        )
    }
}
