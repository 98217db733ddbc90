//! The protocol's guards, by name. All stand, always; only the search of the tests can take one away to see that
//! it is needed.

/// One rule whose absence breaks the promise.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Guard {
    /// A write names its block's epoch, and the region compares it.
    EpochCompared,
    /// Every attach takes new epochs. (`store::lease` does it; here only the search's region.)
    #[cfg(test)]
    EpochAtAttach,
    /// An attach that was overtaken does nothing.
    AttachInOrder,
    /// A repeated key writes nothing. (Likewise.)
    #[cfg(test)]
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
    /// A rack whose until has passed forgets its blocks.
    MuteAfterUntil,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Guards {
    removed: u32,
}

impl Guards {
    pub(crate) const ALL: Guards = Guards { removed: 0 };

    #[inline]
    pub(crate) fn stands(self, guard: Guard) -> bool {
        self.removed & (1 << guard as u32) == 0
    }

    #[cfg(test)]
    pub(crate) fn without(guards: &[Guard]) -> Guards {
        Guards {
            removed: guards
                .iter()
                .fold(0, |removed, guard| removed | 1 << *guard as u32),
        }
    }
}
