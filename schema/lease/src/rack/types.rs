//! What goes into the rack's machine and what comes out of it.

use std::time::Duration;

use crate::message::{AttachReply, Batch, HeartbeatReply, SpoolId};
use crate::spool::Entry;
use crate::types::{Block, Outcome, Row, Write};

/// A reading of CLOCK_BOOTTIME, which goes on while the host sleeps.
pub type Boottime = Duration;

/// Names a waiting request; chosen by the caller, given back with the reply. Not interpreted.
pub type Ticket = u64;

/// One connection to one regiond process; chosen by the caller, not used again after [`Input::LinkDown`].
pub type LinkId = u32;

/// Names one call on one link; chosen by the machine. The caller gives it back with the answer.
pub type CallId = u64;

/// Everything that can happen to the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Input {
    /// The hello on this connection was answered. Earlier links are preferred.
    LinkUp(LinkId),
    /// The connection is gone. Its open calls need no answers of their own.
    LinkDown(LinkId),
    /// A shard asks for a write. Answered exactly once, by [`Action::Reply`].
    Request { ticket: Ticket, write: Write },
    /// Answers to calls; `None`: the call failed (error, deadline, cancelled), its effect is not known.
    BatchAnswer {
        call: CallId,
        outcomes: Option<Vec<Outcome>>,
    },
    HeartbeatAnswer {
        call: CallId,
        reply: Option<HeartbeatReply>,
    },
    AttachAnswer {
        call: CallId,
        reply: Option<AttachReply>,
    },
    /// The entry is on disk: fsync has returned. Entries may be reported in any order.
    SpoolDurable { seq: u64 },
    /// Writing or fsyncing failed; what was to be appended may be on disk or not. Nothing more is spooled until
    /// [`Input::SpoolReplaced`].
    SpoolFailed,
    /// A file that can be written: fresh and empty, or with the entries that the old one held. With a new spool id the machine forgets and attaches. `seq`: [`crate::spool::first_seq`].
    SpoolReplaced { spool_id: SpoolId, seq: u64 },
    /// CLOCK_BOOTTIME and CLOCK_REALTIME disagree by over 1 % since the last heartbeat, or the virtual machine's
    /// generation changed: time can't be trusted, so the machine forgets and attaches.
    ClocksDisagree,
    /// The feed brought another view of the rack's VLANs, so its blocks may be others: the heartbeat that tells is due
    /// now. Only sooner than else: nothing depends on it.
    LinksChanged,
    /// Time has passed; due at [`super::Rack::next_tick`] at the latest.
    Tick,
}

/// What the caller does. In order; none of them fails back into the machine but by an [`Input`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// `commitLeases`. The same batch may be sent on several links: same key.
    SendBatch {
        call: CallId,
        link: LinkId,
        batch: Batch,
    },
    /// `heartbeat`.
    SendHeartbeat {
        call: CallId,
        link: LinkId,
        spool_id: SpoolId,
        digest: [u8; 32],
    },
    /// `attach`.
    SendAttach {
        call: CallId,
        link: LinkId,
        spool_id: SpoolId,
        spool_seq: u64,
    },
    /// Append and fsync, off the link thread; then [`Input::SpoolDurable`]. Several may share one fsync.
    AppendSpool(Entry),
    /// The facts are the region's now (or were refused by it). No fsync is needed: a fact drained twice does no harm.
    RemoveSpool { seqs: Vec<u64> },
    /// The spool could not be written: write the file anew, with the entries that were reported durable and not removed
    /// since, under the same spool id; then [`Input::SpoolReplaced`] with it, or [`Input::SpoolFailed`].
    ResetSpool,
    /// Set the spool aside and start a new one with a new id; then [`Input::SpoolReplaced`].
    ReplaceSpool,
    /// The answer for a shard. `Durable { remaining }` counts from `sent` (99 % is taken already), not from the arrival of
    /// this reply: the durable end is `sent + remaining` on CLOCK_BOOTTIME.
    Reply {
        ticket: Ticket,
        outcome: Outcome,
        sent: Boottime,
    },
    /// The rack owns exactly these blocks now; whatever a shard knew of blocks and bindings is void. `remaining_ms` of the rows
    /// counts from `sent` (99 % taken), `quarantine` from now (lengthened by 2 %).
    Attached {
        blocks: Vec<Block>,
        rows: Vec<Row>,
        sent: Boottime,
        until: Boottime,
    },
    /// One block less (it was yielded).
    ForgetBlock(crate::types::BlockId),
    /// Mute: nothing dynamic is dealt or ACKed until the next `Attached`.
    Forget,
    /// No ACK promises past this.
    Until(Boottime),
    /// True: no region answers; renewals and free addresses are served from the spool, RELEASE is dropped. Ends with
    /// `Detached(false)` or `Forget`. Only to be told to people.
    Detached(bool),
    /// A person must look.
    Alarm(Alarm),
}

/// What a person must look at; the caller logs it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Alarm {
    #[error("the region refused a spooled fact for {}: {refusal:?}", write.address)]
    FactRefused {
        write: Box<Write>,
        refusal: crate::types::Refusal,
    },
    #[error("the region refused a grant of {}: another client has it", write.address)]
    OtherClient { write: Box<Write> },
    #[error("the spool could not be written; no new lease is given while no region answers")]
    SpoolFailed,
    #[error("the region has seen later facts of this spool: it was set back; a new one is started")]
    SpoolBehind,
    #[error("an answer had {got} outcomes for {asked} writes")]
    ShortAnswer { asked: usize, got: usize },
    #[error("until has passed without a region's answer: mute")]
    UntilPassed,
}

/// Things that were counted since the machine was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Counters {
    pub requests: u64,
    pub replies_durable: u64,
    pub replies_refused: u64,
    pub replies_unknown: u64,
    /// Refused because the rack was mute or attaching.
    pub mute: u64,
    /// Refused because the queue ([`super::QUEUE_ROWS_MAX`]) or the spool ([`super::SPOOL_ENTRIES_MAX`]) was full.
    pub full: u64,
    pub batches: u64,
    pub batch_rows: u64,
    pub resends: u64,
    pub spooled: u64,
    pub drained: u64,
    pub drained_refused: u64,
    pub detached: u64,
    pub attaches: u64,
    pub forgets: u64,
    pub releases_dropped: u64,
}
