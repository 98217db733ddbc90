//! The parts of rackd, as a library so that tests can run a rack in their own process.

pub mod attest;
pub mod config;
pub mod descriptors;
pub mod link;
pub mod metrics;
mod neighbour;
mod netlink;
pub mod rack;
mod rarely;
pub mod spool;
pub mod work;
