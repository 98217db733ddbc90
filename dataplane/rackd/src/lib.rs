//! The parts of rackd, as a library so that tests can run a rack in their own process. `main.rs` wires them.

pub mod config;
pub mod link;
pub mod spool;
pub mod work;
