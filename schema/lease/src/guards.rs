//! The protocol's guards, by name. All stand, always; only the search of the tests and the simulator (feature `guards`, never
//! built into the product) can take one away to see that it is needed.

/// One rule whose absence breaks the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Guard {
    /// A write names its block's epoch, and the region compares it.
    EpochCompared,
    /// Every attach takes new epochs. (`store::lease` does it; here only the tests' regions.)
    #[cfg(any(test, feature = "guards"))]
    EpochAtAttach,
    /// An attach that was overtaken does nothing.
    AttachInOrder,
    /// A repeated key writes nothing. (Likewise.)
    #[cfg(any(test, feature = "guards"))]
    DedupeKey,
    /// A reclaim looks at the row's end.
    ReclaimConditional,
    /// A new spool id quarantines every address of the rack's blocks.
    QuarantineOnNewSpool,
    /// A heartbeat moves `until` only where the digests agree.
    HeartbeatDigest,
    /// A block moves only after until + 60 s.
    MoveAfterUntil,
    /// A rack reclaims only while attached.
    ReclaimWhileAttached,
    /// A detached rack gives an ended lease's address to nobody else.
    NoReuseDetached,
    /// An address whose write was not answered serves only that client.
    UnknownStaysUnknown,
    /// A grant that goes to the spool is a new fact with a new key.
    FreshKey,
    /// No new facts while an attach may be running.
    FrozenWhileAttaching,
    /// The spool is drained before the attach.
    DrainBeforeAttach,
    /// The reply waits for the region's commit.
    CommitBeforeReply,
    /// The reply waits for the spool's fsync.
    FsyncBeforeReply,
    /// A survivor's extend changes a row of that client, and makes none.
    SurvivorNeverAllocates,
    /// A rack whose until has passed forgets its blocks.
    MuteAfterUntil,
    /// A RELEASE and a reclaim that waits for no end are never under way together.
    ReleaseAlone,
    /// What a survivor has lengthened is taken back only at its end, be it released or not.
    ExtendHolds,
    /// A client that comes back after its RELEASE is ACKed only after a write. (The shard does it; here only the tests' shard.)
    #[cfg(any(test, feature = "guards"))]
    ReleasedAsksAgain,
    /// A released address is taken back only while nobody answers for it. (Likewise.)
    #[cfg(any(test, feature = "guards"))]
    ReleasedIsSilent,
}

/// Which of them stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Guards {
    removed: u32,
}

impl Guards {
    pub const ALL: Guards = Guards { removed: 0 };

    #[inline]
    pub fn stands(self, guard: Guard) -> bool {
        self.removed & (1 << guard as u32) == 0
    }

    #[cfg(any(test, feature = "guards"))]
    pub fn without(guards: &[Guard]) -> Guards {
        Guards {
            removed: guards
                .iter()
                .fold(0, |removed, guard| removed | 1 << *guard as u32),
        }
    }
}

/// Both ends of the protocol with guards taken away, and with an `until` of any length: virtual days are dear too.
#[cfg(feature = "guards")]
pub mod unguarded {
    use std::time::Duration;

    use super::Guards;
    use crate::message::SpoolId;
    use crate::rack::{Rack, Start};
    use crate::region::{
        self, AttachDecision, BlockState, Effect, HeartbeatDecision, HeartbeatFacts, RowState,
        SpoolSeen, Time, Verdict,
    };
    use crate::types::Write;

    pub fn rack(guards: Guards, start: Start) -> Rack {
        Rack::with_guards(start, guards)
    }

    pub fn decide(
        guards: Guards,
        write: &Write,
        drained: bool,
        block: Option<&BlockState>,
        row: Option<&RowState>,
        now: Time,
    ) -> (Verdict, Effect) {
        region::decide_with(guards, write, drained, block, row, now)
    }

    pub fn decide_attach(
        guards: Guards,
        hold: Option<Time>,
        known: Option<SpoolSeen>,
        attached_before: bool,
        seq: u64,
        now: Time,
    ) -> AttachDecision {
        region::decide_attach_with(guards, hold, known, attached_before, seq, now)
    }

    pub fn decide_heartbeat(
        guards: Guards,
        facts: HeartbeatFacts<'_>,
        spool_id: SpoolId,
        digest: &[u8; 32],
        now: Time,
        until: Duration,
    ) -> HeartbeatDecision {
        region::decide_heartbeat_with(guards, facts, spool_id, digest, now, until)
    }

    pub fn may_take(guards: Guards, until: Option<Time>, now: Time) -> bool {
        region::may_take_with(guards, until, now)
    }
}
