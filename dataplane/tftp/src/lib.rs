//! The TFTP server of one shard: read sessions, option negotiation, a fair scheduler. Sans-IO.
//!
//! It owns no socket, no file and no clock. The shard feeds it datagrams and the time, and implements [`Host`]: where a
//! file is found, how a datagram leaves. Writing to the rack is refused.
//!
//! RFC 1350 (protocol), 1123 §4.2.3 (sorcerer's apprentice), 2347, 2348, 2349, 7440 (options).
//!
//! Budget per ACK: one hash lookup, one copy of the blocks into the send slot, no allocation.

mod content;
mod host;
mod path;
mod sending;
mod server;
mod session;
mod shares;
mod terms;

pub use host::{Counters, Ended, Found, Host, Limits, NoSlot, Outcome, Peer, Ticket, Train};
pub use path::clean_path;
pub use server::Server;
pub use session::{Answer, ReadSession, Step};
pub use terms::{Terms, TermsLimits, negotiate};
