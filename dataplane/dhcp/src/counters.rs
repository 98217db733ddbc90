//! Counters: why a message got no answer, and what was sent. Small Copy enums index arrays; no strings.

/// Why nothing was answered. The order is the index of the counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Drop {
    /// A server's message (op 2).
    NotARequest,
    /// An unknown message type.
    NoMessageType,
    /// A BOOTP client that no address is reserved for.
    NoReservation,
    /// Not answered in this mode of the link: addresses are somebody else's, or port 4011 is not for it.
    LinkMode,
    /// proxyDHCP: there is nothing to boot for this firmware here.
    NoBootFile,
    /// OFFER, ACK or NAK with op 1.
    NotForServers,
    TooManyHops,
    /// giaddr (or its link selection) is in no subnet of ours.
    UnknownRelay,
    /// A relay's message that came from elsewhere than giaddr, or that selects another link, and of no relay that the
    /// operator trusts.
    UntrustedRelay,
    /// A client's hardware address that is not the Ethernet source of its frame, or a datagram about an address that it
    /// was not sent from.
    ForeignSource,
    /// The link has no subnet.
    NoSubnet,
    /// Neither a usable Ethernet address nor, with hlen 0, a client id.
    NoIdentity,
    /// Another shard owns this client; it is handed over where that shard can be reached.
    OtherShard,
    /// Not attached, or past `until`: only reservations are answered.
    Mute,
    NoFreeAddress,
    /// Unknown clients already hold all of the range that they may.
    StrangersFull,
    OffersFull,
    PendingFull,
    OutboxFull,
    /// The client chose another server.
    OtherServer,
    /// Another rack of the VLAN is to answer this client, and has not had its time yet.
    PeerAnswers,
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
    /// The answer does not fit: a client id or the like is too long.
    ReplyTooLong,
    /// More messages of this client than its rate.
    RateLimited,
    /// More messages of this relay's port than its rate.
    CircuitLimited,
    /// The clients of this relay's port hold as many addresses as they may.
    CircuitFull,
    /// The client, or its relay's port, has declined as many addresses as it may.
    DeclineLimited,
    /// This shard has no free address, or not the client's own: another shard was asked for one. The message is kept until
    /// it comes, within bounds, and then answered.
    Borrowing,
    /// The only free addresses are being asked for by ARP: kept likewise.
    Probing,
}

impl Drop {
    /// The message is worth keeping: it may be answered soon.
    pub fn waits(self) -> bool {
        matches!(self, Self::Borrowing | Self::Probing | Self::BlockRefused)
    }

    pub const COUNT: usize = Self::Probing as usize + 1;
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
    /// Bindings of a peer's blocks that the region was asked to lengthen, and how it answered.
    Extend,
    Extended,
    ExtendRefused,
    /// Clients that wait for a peer, forgotten because there were too many.
    WaiterForgotten,
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
    /// Replies without the relay's option 82, which was too long for them.
    RelayInfoLeftOut,
    /// A reservation inside a dynamic range whose address somebody else still holds.
    ReservationTaken,
    /// DISCOVERs that got an ACK (RFC 4039), or the grant that it waits for.
    RapidCommit,
    /// BOOTREPLYs.
    Bootp,
    /// proxyDHCP OFFERs, and ACKs from port 4011.
    ProxyOffer,
    ProxyAck,
    /// Blocks or rows of an attach that were ignored: overlapping, not IPv4, over the limit.
    AttachIgnored,
    EventLost,
    /// Addresses that were asked for by ARP, and those that could not be.
    Probe,
    ProbeFailed,
    /// An OFFER of an address that was not probed: a storm outran the stock.
    OfferUnprobed,
    /// A host that nobody told us of answered for an address.
    AddressInUse,
    /// A stranger's OFFER that made room for another's, the oldest first.
    OfferEvicted,
    /// An address that a host claimed, given to a known machine all the same because there was no other.
    ClaimedGiven,
    /// Claims and DECLINEs that were not believed: too much of the range rests.
    ClaimNotBelieved,
    /// Messages that name a server nobody told us of.
    RogueServer,
    /// Free addresses given to another shard of the rack, and got from one.
    Lent,
    Borrowed,
}

impl Sent {
    pub const COUNT: usize = Self::Borrowed as usize + 1;
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
