//! The DHCPv4 server engine of one shard, sans-IO: bindings, pools, options, reply destinations.
//!
//! ```text
//!   View ---> Engine::on_message ---> Out::Reply   (OFFER, ACK, NAK: at once)
//!                                 \-> Out::Lease   (a write that must be durable first)
//!   Outcome -> Engine::on_outcome --> Out::Reply   (the ACK that waited for it)
//!   time ---> Engine::tick       ---> Out::Lease   (reclaims)
//! ```
//!
//! The caller owns sockets, the clock, the link to the region and the configuration; the engine owns who holds
//! which address of the blocks that its rack was given. **No ACK promises longer than a durable end**, and an
//! address goes to another client only after a reclaim that the region answered. RFC 2131, 2132, 3046, 3397,
//! 3527, 4578, 5071, 6842. Not here: DHCPv6, dynamic BOOTP, extending a peer rack's bindings.
//!
//! Budget: an OFFER or an ACK from memory allocates nothing; a grant allocates only what crosses to the region.

mod clock;
mod config;
mod counters;
mod destination;
mod engine;
mod identity;
mod outbox;
mod pending;
mod reply;
mod table;

pub use config::{
    BootReply, Config, DhcpOption, Link, Mode, Peer, Range, RangeKind, Received, Reservation,
    ReservationKey, Subnet,
};
pub use counters::{Counters, Drop, Sent};
pub use destination::{Destination, reply_destination};
pub use engine::{Engine, Limits, Shard, Usage, owner};
pub use identity::{identity, shard_of, shard_of_mac};
pub use outbox::{Event, EventKind, Out, Outbox, Reply, Ticket};
