//! The lease protocol, pure: both ends and the spool as state machines without IO.
//!
//! The rules are those of docs/ARCHITECTURE.md (Leases), model-checked. Time comes in as arguments.

pub mod types;

pub use types::*;
