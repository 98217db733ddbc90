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
//! address goes to another client only after a reclaim that the region answered. RFC 951, 1534, 2131, 2132,
//! 3011, 3046, 3396, 3397, 3527, 4039, 4578, 5071, 5107, 6842 and PXE 2.1's proxyDHCP; the ledgers are in docs/spec.
//! Not here: DHCPv6, dynamic BOOTP.
//!
//! Budget: an OFFER or an ACK from memory allocates nothing; a grant allocates only what crosses to the region.

mod clock;
mod config;
mod counters;
mod destination;
mod engine;
mod identity;
mod limits;
mod notice;
mod options;
mod outbox;
mod pending;
mod probe;
mod relay;
mod reply;
mod table;

pub use config::{
    BootReply, Config, DhcpOption, Link, Mode, Peer, Range, RangeKind, Received, Reservation,
    ReservationKey, Sender, Subnet,
};
pub use counters::{Counters, Drop, Sent};
pub use destination::{Destination, reply_destination};
pub use engine::{Engine, Lent, Shard, Usage, Wish, home, owner};
pub use identity::{identity, shard_of, shard_of_mac};
pub use limits::{Limits, Rate};
pub use outbox::{Event, EventKind, Out, Outbox, Reply, Ticket};
pub use probe::{Probe, Probed};
