//! The words of the lease protocol, shared by both ends. Their wire form is `schema/rpc/muster.capnp`.

use std::net::IpAddr;
use std::time::Duration;

/// A VLAN's MAAS id. Identity and blocks are per VLAN (the "link" of the protocol).
pub type VlanId = u32;

/// Who holds an address: (link, chaddr), or option 61 where a subnet opts in or hlen is 0.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Client {
    pub vlan: VlanId,
    pub key: ClientKey,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ClientKey {
    Mac([u8; 6]),
    /// Option 61, 1..=255 octets.
    ClientId(Box<[u8]>),
    /// DHCPv6, later.
    DuidIaid(Box<[u8]>),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlockId(pub u64);

impl BlockId {
    /// No block has it. A survivor does not know the blocks of its peers: the region finds them by the address.
    pub const NONE: BlockId = BlockId(0);
}

/// +1 at every move of a block and at every attach of its owner. Every write carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Epoch(pub u64);

/// A run of addresses of one dynamic range with one owner.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Block {
    pub id: BlockId,
    pub epoch: Epoch,
    pub vlan: VlanId,
    pub subnet: u32,
    pub first: IpAddr,
    pub count: u32,
}

/// One address as the region has it, told to an attaching rack.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Row {
    pub block: BlockId,
    pub address: IpAddr,
    /// None: the row is only a quarantine.
    pub client: Option<Client>,
    /// Milliseconds to the durable end at the region's answer; negative once it has passed.
    pub remaining_ms: i64,
    pub quarantine: Duration,
    pub released: bool,
}

/// What a rack asks of the region for one address. `block` and `epoch` as the asking shard knew them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Write {
    pub block: BlockId,
    pub epoch: Epoch,
    pub address: IpAddr,
    pub kind: WriteKind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum WriteKind {
    /// A new or renewed binding; durable for twice `lease` from the region's now.
    Grant {
        client: Client,
        lease: Duration,
        hostname: Box<str>,
    },
    /// A survivor lengthens a peer's binding; never allocates. Block and epoch are not looked at.
    Extend { client: Client, lease: Duration },
    /// Takes back an address whose row has ended (by 60 s) and is not quarantined. `silent`: its client has released it, and
    /// nobody answers for it, so that its end is not waited for.
    Reclaim { client: Client, silent: bool },
    /// Keeps the address from everyone (DECLINE: 10 minutes).
    Quarantine { length: Duration },
    /// The client gave it up: reclaim it first. Never shortens the end.
    Release { client: Client },
    /// The owner gives the whole block back; `address` is ignored.
    Yield,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// Grant or extend: what is left of the durable end, counted from *sending* the request.
    Durable {
        remaining: Duration,
    },
    /// Reclaim, quarantine, release, yield: done.
    Done,
    Refused(Refusal),
    /// Sent and not answered: the address serves only that client until the next attach.
    Unknown,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Refusal {
    StaleEpoch,
    OtherClient,
    NotOwner,
    NotFound,
    NotEnded,
    OutsideBlock,
    /// The rack itself refused: it is mute (not attached, or past its until), or its queue is full.
    Mute,
}

/// Rows in one commitLeases call at most.
pub const BATCH_ROWS_MAX: usize = 512;
/// A client id (option 61) that is a key: one length octet, in the spool and in the link's messages.
pub const CLIENT_ID_BYTES_MAX: usize = 255;
/// Added before anything is taken away from a rack or client: clock step plus late ACK.
pub const TAKE_AWAY_GRACE: Duration = Duration::from_secs(60);
/// How far a heartbeat moves `until`.
pub const UNTIL: Duration = Duration::from_secs(24 * 3600);
pub const HEARTBEAT_EVERY: Duration = Duration::from_secs(5);
/// A declined address rests this long.
pub const DECLINE_QUARANTINE: Duration = Duration::from_secs(600);
/// An OFFER holds its address this long, in shard memory only.
pub const OFFER_HOLD: Duration = Duration::from_secs(60);
/// Without a region's reply for this long, a rack is detached.
pub const DETACHED_AFTER: Duration = Duration::from_secs(1);
