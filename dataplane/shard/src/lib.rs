//! The per-core loop of a rack: joins the engines (`dhcp tftp images boot`) to a driver, a snapshot and two mailboxes.
//!
//! ```text
//!            snapshot (ArcSwap, loaded once per turn)
//!                |
//!  Driver --> Shard::turn --> dhcp | tftp | images | boot --> Driver
//!                ^ |
//!        ToShard | | ToLink, ToWork
//!         link thread, work thread
//! ```
//! One turn: wait, receive, decide, send. It never awaits, never blocks, and takes nothing from a region but through
//! its mailbox. A shard is one thread's; nothing in it is shared but the snapshot, the objects and the statistics.

mod buckets;
mod choices;
mod config;
mod dhcp_side;
mod driver;
mod events;
mod http_side;
mod kept;
mod lookup;
mod mailbox;
mod queries;
mod shares;
mod snapshot;
mod sources;
mod stats;
mod tftp_side;
mod trace;
mod turn;

pub use buckets::{Bucket, Buckets, Rate};
pub use choices::Told;
pub use config::{Bound, Config};
pub use driver::{
    Buffer, Close, Completion, Datagram, Driver, DriverCounters, Ends, LinkSocket, NoSlot, Service,
    StreamId, Target, Train,
};
pub use mailbox::{
    Bell, BootAnswer, BootQuery, Detail, Event, HandOver, LinkMailbox, Receiver, Sender,
    ShardMailbox, TO_LINK_MAX, TO_SHARD_MAX, TO_WORK_MAX, ToLink, ToShard, ToWork, Wish,
    WorkMailbox, mailboxes, mailboxes_of,
};
pub use shares::{Manner, Place, Room, Shares, Source, Standing};
pub use snapshot::{Link, Loader, Snapshot, Trace};
pub use stats::{Counters, SharedStats, Stats};
pub use turn::Shard;
