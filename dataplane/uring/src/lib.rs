//! The io_uring driver of a shard: one ring per thread and core. The only unsafe code of the product.
//!
//! ```text
//!  buffers.rs   provided-buffer rings, one per packet class      (kernel writes, we read, we give back)
//!  slots.rs     send slots: msghdr, addresses, octets; never move (we write, kernel reads, CQE frees)
//!  control.rs   socket addresses and control messages as octets
//!  queue.rs     submit, wait, reap; the inventory of what can be in flight
//!  ring.rs      sockets and memory behind it; datagrams; `impl Driver`
//!  streams.rs   accepted connections: receive, SEND, poll + sendfile, cancel, hand-off
//!  probe.rs     what the kernel must be able to do, by name
//!  filter.rs    classic BPF: which packets are DHCP for which shard
//!  sockets.rs   opens the sockets of all shards, in order
//!  start.rs     a shard on its own thread
//! ```
//! Measured on Linux 6.18 (docs: io_uring): multishot receives with provided buffers, SENDMSG from fixed slots, and one
//! GSO train per TFTP window; `SINGLE_ISSUER | DEFER_TASKRUN` saves 13 % of a datagram's cost.
//!
//! Needs Linux 6.1 or newer with io_uring allowed (`kernel.io_uring_disabled`); `Ring::new` says what is missing.
//! SIGPIPE must be ignored, as Rust's `main` does: sendfile(2) has no flag for it.

mod buffers;
mod control;
mod filter;
mod probe;
mod queue;
mod ring;
mod slots;
mod sockets;
mod start;
mod streams;

pub use probe::{Missing, RingError};
pub use ring::{Ring, RingLimits};
pub use sockets::{
    Places, ShardSockets, SocketError, interface_index, open, open_arp, open_link, opened_by,
};
pub use start::{Running, Start, StartError, start_shard};
