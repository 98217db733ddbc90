//! What the server and its shard say to each other.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;

use crate::terms::TermsLimits;

/// The two ends of a transfer. The client's port tells its transfers apart; ours is one of the shard's (`tid`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Peer {
    pub client: SocketAddr,
    /// Our address the client asked; every reply leaves from it.
    pub local: IpAddr,
}

/// Names a waiting request; stale once that request is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ticket {
    pub(crate) key: u32,
    pub(crate) serial: u32,
}

#[derive(Clone, Debug)]
pub enum Found {
    File(Bytes),
    /// The client is told (error 1), so that it goes on to its next name at once.
    NotFound,
    /// Not here yet. The host calls [`crate::Server::retry`] with the ticket when it is.
    Later,
    /// Say nothing: the client asks again.
    Silent,
}

/// One or more datagrams of equal size to one client; the last may be shorter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Train {
    pub bytes: usize,
    pub segment_bytes: usize,
}

/// No send slot is free.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoSlot;

/// What the server needs from the shard.
pub trait Host {
    /// Looks a file up; `file` has no leading slash and does not climb.
    fn find(&mut self, ticket: Ticket, peer: &Peer, file: &str) -> Found;
    /// Whether the address was given to a machine that the region knows: it goes before strangers where places are few.
    fn is_known(&mut self, client: IpAddr) -> bool;
    /// Sends `train.bytes` octets, which `fill` writes, from transfer port `tid` of the shard's.
    fn send(
        &mut self,
        peer: &Peer,
        tid: u16,
        train: Train,
        fill: &mut dyn FnMut(&mut [u8]),
    ) -> Result<(), NoSlot>;
    /// A transfer is over, one way or the other.
    fn ended(&mut self, ended: Ended<'_>);
}

#[derive(Clone, Copy, Debug)]
pub struct Ended<'a> {
    pub peer: &'a Peer,
    pub file: &'a str,
    pub file_bytes: u64,
    pub outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Finished,
    /// The client sent an ERROR. After a size probe that is how firmware says thank you.
    Aborted,
    GaveUp,
    /// The same client port asked for something else: it was power-cycled.
    Replaced,
    /// Another one needed its place.
    Displaced,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Confirmed transfers: their client has answered.
    pub transfers_max: usize,
    pub transfers_per_client: usize,
    /// Transfers whose client has not answered yet; the oldest makes room for the next.
    pub unconfirmed_max: usize,
    pub unconfirmed_per_client: usize,
    /// With every place taken, a confirmed transfer without progress for so long gives its place up.
    pub stalled_after: Duration,
    /// Requests that wait for a file or a place; the oldest makes room for the next.
    pub pending_max: usize,
    pub pending_per_client: usize,
    /// How long a request may wait for a place or a file.
    pub pending_wait: Duration,
    /// Largest train handed to the host, in octets.
    pub train_bytes_max: usize,
    /// Transfer ports of the shard, at least 1; each transfer is sent from one chosen at random.
    pub tids: u16,
    pub terms: TermsLimits,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            transfers_max: 4096,
            transfers_per_client: 16,
            unconfirmed_max: 1024,
            unconfirmed_per_client: 8,
            stalled_after: Duration::from_secs(2),
            pending_max: 2048,
            pending_per_client: 8,
            pending_wait: Duration::from_secs(5),
            train_bytes_max: 32 * 1024,
            tids: 1,
            terms: TermsLimits::default(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub requests: u64,
    pub started: u64,
    /// Transfers that went on after their client's first answer.
    pub confirmed: u64,
    pub finished: u64,
    pub aborted: u64,
    pub gave_up: u64,
    pub replaced: u64,
    /// Transfers that lost their place: unconfirmed ones, ones beyond their address's share, stalled ones, and strangers'
    /// to known machines.
    pub displaced_unconfirmed: u64,
    pub displaced_share: u64,
    pub displaced_stalled: u64,
    pub displaced_stranger: u64,
    /// First answers that found no place; the client repeats them.
    pub no_place: u64,
    /// First blocks not sent: their address has been sent enough that it did not answer.
    pub rationed: u64,
    /// DATA packets sent, resends included.
    pub blocks: u64,
    /// Windows and OACKs sent again.
    pub resent: u64,
    pub not_found: u64,
    pub refused: u64,
    pub malformed: u64,
    /// Packets that belong to no transfer, and packets a server never gets.
    pub stray: u64,
    /// Packets of a transfer's client to another port than its own: leftovers, or guesses.
    pub wrong_tid: u64,
    /// Requests that were already waiting or being served.
    pub repeated: u64,
    /// The oldest waiting request was dropped because the queue was full, or its address's share of it.
    pub shed: u64,
    /// Requests that waited until their deadline.
    pub expired: u64,
    /// Sends that found no slot and wait for the next run.
    pub no_slot: u64,
}
