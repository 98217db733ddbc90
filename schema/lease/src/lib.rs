//! The lease protocol, pure: both ends and the spool as state machines without IO.
//!
//! The rules are those of docs/protocols.md (Leases), model-checked. Time comes in as arguments:
//! CLOCK_BOOTTIME at the rack ([`rack`]), the database's `now()` at the region ([`region`]). `rack::search`
//! (tests only) explores both ends together, exhaustively on a small instance, with guards removed in turn.

#[cfg(not(feature = "guards"))]
mod guards;
#[cfg(feature = "guards")]
pub mod guards;
pub mod message;
pub mod rack;
pub mod region;
pub mod share;
pub mod spool;
pub mod types;

pub use message::*;
pub use types::*;
