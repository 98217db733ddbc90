//! The domain's words and rules: ids, statuses and their transitions, events, power, boot purpose.
//!
//! Pure: no IO, no clock, no SQL, no HTTP. Names and numbers that MAAS's clients read are exactly MAAS's.
//! Types here are not `Serialize`: each edge (store, api, link) has its own form.

mod boot;
pub mod dhcp;
pub mod dhcp_option;
mod event;
mod id;
mod mac;
mod permission;
mod power;
mod script;
mod status;

pub use boot::{Purpose, boot_purpose};
pub use event::{EventType, Level, STEPS};
pub use id::SystemId;
pub use mac::Mac;
pub use permission::{Denied, Permission, Role};
pub use power::{
    POWER_TYPES, Parameter, ParameterKind, PowerCommand, PowerParametersError, PowerState,
    PowerType, SplitParameters,
};
pub use script::{ScriptStatus, Signal};
pub use status::{IllegalMove, MachineStatus, NodeType, can_move};

/// Why a text is not one of the domain's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not {expected}")]
pub struct ParseError {
    pub text: String,
    pub expected: &'static str,
}

impl ParseError {
    /// Keeps at most 64 characters of the text: it may be a client's.
    pub(crate) fn new(text: &str, expected: &'static str) -> Self {
        Self {
            text: text.chars().take(64).collect(),
            expected,
        }
    }
}
