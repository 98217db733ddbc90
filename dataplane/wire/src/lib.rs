//! Octets to typed messages and back: ethernet, arp, ipv4, udp, dhcp4, tftp, http1.
//!
//! No IO, no clock, no unsafe, no allocation: views borrow the received octets, writers fill the caller's buffer.
//! Every parser is bounds-checked and ends on any input.

pub mod arp;
pub mod dhcp4;
pub mod ethernet;
pub mod http1;
pub mod ipv4;
pub mod tftp;
pub mod udp;
