//! Counters: why a message got no answer, and what was sent. Small Copy enums index arrays; no strings.

/// Why nothing was answered. The order is the index of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Drop {
    /// A server's message (op 2).
    NotARequest,
    /// Plain BOOTP, or an unknown message type.
    NoMessageType,
    /// OFFER, ACK or NAK with op 1.
    NotForServers,
    TooManyHops,
    /// giaddr (or its link selection) is in no subnet of ours.
    UnknownRelay,
    /// The link has no subnet.
    NoSubnet,
    /// Neither a usable Ethernet address nor, with hlen 0, a client id.
    NoIdentity,
    /// Another shard owns this client.
    OtherShard,
    /// Not attached, or past `until`: only reservations are answered.
    Mute,
    NoFreeAddress,
    /// Unknown clients already hold their half of the range.
    StrangersFull,
    OffersFull,
    PendingFull,
    OutboxFull,
    /// The client chose another server.
    OtherServer,
    /// No address in a REQUEST, DECLINE, RELEASE or INFORM.
    NoAddress,
    /// Renewing by unicast from a network that is not ours.
    WrongNetwork,
    /// INIT-REBOOT, renewal, DECLINE or RELEASE by a client we have no record of (RFC 2131 §4.3.2: silence).
    NoRecord,
    /// The address is being reclaimed at this moment.
    Reclaiming,
    /// The region refused a write to this block: silence until the next attach.
    BlockRefused,
    /// Too little is left of a durable end or of `until` to be worth an ACK.
    TooLate,
    /// The answer does not fit (a relay's option 82 too long).
    ReplyTooLong,
}

impl Drop {
    pub const COUNT: usize = Self::ReplyTooLong as usize + 1;
}

/// What left the engine, and what the limits met.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Sent {
    Offer,
    /// All ACKs.
    Ack,
    /// Of them: inside a durable end, nothing written.
    AckFromMemory,
    Nak,
    Grant,
    /// A retransmitted REQUEST that joined a waiting grant.
    Joined,
    Reclaim,
    Quarantine,
    Release,
    /// Writes refused because another client holds the address: a bug or a stranger.
    RefusedOtherClient,
    RefusedOther,
    Unknown,
    /// Outcomes that nothing waited for.
    StrayOutcome,
    /// A wanted option that did not fit the client's message size.
    OptionLeftOut,
    /// A reservation inside a dynamic range whose address somebody else still holds.
    ReservationTaken,
    /// Blocks or rows of an attach that were ignored: overlapping, not IPv4, over the limit.
    AttachIgnored,
    EventLost,
}

impl Sent {
    pub const COUNT: usize = Self::EventLost as usize + 1;
}

#[derive(Clone, Debug)]
pub struct Counters {
    dropped: [u64; Drop::COUNT],
    sent: [u64; Sent::COUNT],
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            dropped: [0; Drop::COUNT],
            sent: [0; Sent::COUNT],
        }
    }
}

impl Counters {
    pub fn dropped(&self, reason: Drop) -> u64 {
        self.dropped[reason as usize]
    }

    pub fn sent(&self, what: Sent) -> u64 {
        self.sent[what as usize]
    }

    /// All messages that got no answer, whatever the reason.
    pub fn dropped_in_all(&self) -> u64 {
        self.dropped.iter().sum()
    }

    pub(crate) fn drop(&mut self, reason: Drop) {
        self.dropped[reason as usize] += 1;
    }

    pub(crate) fn count(&mut self, what: Sent) {
        self.sent[what as usize] += 1;
    }
}
