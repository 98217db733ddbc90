//! What region and rack say to each other about leases, as values. The wire form is `schema/rpc/muster.capnp`.

use std::time::Duration;

use sha2::{Digest as _, Sha256};

use crate::types::{Block, BlockId, Epoch, Row, Write};

/// Names one spool file. A rack whose spool is new or lost has a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpoolId(pub [u8; 16]);

/// With the rack's name, the key of a batch: a repeat answers as before and writes nothing.
///
/// `seq` only grows within a spool id, over crashes too (see [`crate::spool`]), and is never used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BatchKey {
    pub spool_id: SpoolId,
    pub seq: u64,
}

/// One `commitLeases` call: 1..=512 writes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Batch {
    pub key: BatchKey,
    /// Every write of the batch comes from the spool: it was ACKed already. Never mixed.
    pub drained: bool,
    pub writes: Vec<Write>,
}

/// The answer to a heartbeat.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum HeartbeatReply {
    /// How long the rack may serve its blocks, from the sending of the heartbeat.
    Until(Duration),
    /// The region sees other blocks or epochs: forget the blocks and attach.
    Attach,
    /// The database may have lost commits: only drains are taken for now.
    Wait,
}

/// The answer to an attach.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum AttachReply {
    Attached(Attachment),
    /// The database may have lost commits: nothing was done.
    Wait,
    /// The seq is behind what the region has seen of this spool id, or the spool id is a former one: a stale
    /// request (nobody listens), or a spool that was set back (it must be replaced). Nothing was done.
    Behind,
}

/// What a rack holds after an attach. Durations are the region's; they count from the sending of the request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Attachment {
    pub until: Duration,
    pub blocks: Vec<Block>,
    /// Every address of the blocks that has a binding or a quarantine.
    pub rows: Vec<Row>,
}

/// SHA-256 over (block, epoch) pairs, each 8 octets big-endian, sorted by block.
pub fn digest(pairs: impl IntoIterator<Item = (BlockId, Epoch)>) -> [u8; 32] {
    let mut pairs: Vec<_> = pairs.into_iter().collect();
    pairs.sort_unstable();
    let mut hash = Sha256::new();
    for (block, epoch) in pairs {
        hash.update(block.0.to_be_bytes());
        hash.update(epoch.0.to_be_bytes());
    }
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_digest_does_not_depend_on_the_order_but_on_each_value() {
        let a = (BlockId(1), Epoch(7));
        let b = (BlockId(2), Epoch(3));
        assert_eq!(digest([a, b]), digest([b, a]));
        assert_ne!(digest([a, b]), digest([a]));
        assert_ne!(digest([a]), digest([(BlockId(1), Epoch(8))]));
        assert_ne!(digest([a]), digest([(BlockId(7), Epoch(1))]));
        // SHA-256 of nothing: a rack without blocks.
        assert_eq!(digest([])[..4], [0xe3, 0xb0, 0xc4, 0x42]);
    }
}
