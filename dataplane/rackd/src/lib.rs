//! The parts of rackd, as a library so that tests can run a rack in their own process.

pub mod config;
pub mod link;
pub mod metrics;
pub mod rack;
pub mod spool;
pub mod work;
