//! The DHCP engine's counters under the names that metrics have.

use dhcp::{Drop, Sent};

/// Every reason for silence.
pub(super) const DROPS: &[Drop] = &[
    Drop::NotARequest,
    Drop::NoMessageType,
    Drop::NoReservation,
    Drop::LinkMode,
    Drop::NoBootFile,
    Drop::NotForServers,
    Drop::TooManyHops,
    Drop::UnknownRelay,
    Drop::UntrustedRelay,
    Drop::ForeignSource,
    Drop::NoSubnet,
    Drop::NoIdentity,
    Drop::OtherShard,
    Drop::Mute,
    Drop::NoFreeAddress,
    Drop::StrangersFull,
    Drop::OffersFull,
    Drop::PendingFull,
    Drop::OutboxFull,
    Drop::OtherServer,
    Drop::PeerAnswers,
    Drop::NoAddress,
    Drop::WrongNetwork,
    Drop::NoRecord,
    Drop::Reclaiming,
    Drop::BlockRefused,
    Drop::TooLate,
    Drop::ReplyTooLong,
    Drop::RateLimited,
    Drop::CircuitLimited,
    Drop::CircuitFull,
    Drop::DeclineLimited,
    Drop::Borrowing,
    Drop::Probing,
];

/// Everything else that is counted.
pub(super) const SENT: &[Sent] = &[
    Sent::Offer,
    Sent::Ack,
    Sent::AckFromMemory,
    Sent::Nak,
    Sent::Grant,
    Sent::Joined,
    Sent::Extend,
    Sent::Extended,
    Sent::ExtendRefused,
    Sent::WaiterForgotten,
    Sent::Reclaim,
    Sent::Quarantine,
    Sent::Release,
    Sent::RefusedOtherClient,
    Sent::RefusedOther,
    Sent::Unknown,
    Sent::StrayOutcome,
    Sent::OptionLeftOut,
    Sent::RelayInfoLeftOut,
    Sent::ReservationTaken,
    Sent::RapidCommit,
    Sent::Bootp,
    Sent::ProxyOffer,
    Sent::ProxyAck,
    Sent::AttachIgnored,
    Sent::EventLost,
    Sent::Probe,
    Sent::ProbeFailed,
    Sent::OfferUnprobed,
    Sent::AddressInUse,
    Sent::OfferEvicted,
    Sent::ClaimedGiven,
    Sent::ClaimNotBelieved,
    Sent::RogueServer,
    Sent::Lent,
    Sent::Borrowed,
];

/// `no_free_address`
pub(super) fn reason(drop: Drop) -> String {
    snake(&format!("{drop:?}"))
}

/// `dhcp_acks_from_memory_total`
pub(super) fn name(sent: Sent) -> String {
    let name = match sent {
        Sent::Offer => "offers".to_owned(),
        Sent::Ack => "acks".to_owned(),
        Sent::AckFromMemory => "acks_from_memory".to_owned(),
        Sent::Nak => "naks".to_owned(),
        Sent::Grant => "grants".to_owned(),
        other => snake(&format!("{other:?}")),
    };
    format!("dhcp_{name}_total")
}

/// `NoFreeAddress` as `no_free_address`.
pub(super) fn snake(name: &str) -> String {
    let mut text = String::new();
    for letter in name.chars() {
        if letter.is_ascii_uppercase() && !text.is_empty() {
            text.push('_');
        }
        text.push(letter.to_ascii_lowercase());
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_counter_of_the_engine_is_told_once() {
        assert_eq!(DROPS.len(), Drop::COUNT);
        assert_eq!(SENT.len(), Sent::COUNT);
        let distinct =
            |names: Vec<String>| names.iter().collect::<std::collections::HashSet<_>>().len();
        assert_eq!(
            distinct(DROPS.iter().copied().map(reason).collect()),
            Drop::COUNT
        );
        assert_eq!(
            distinct(SENT.iter().copied().map(name).collect()),
            Sent::COUNT
        );
        assert_eq!(reason(Drop::NoFreeAddress), "no_free_address");
        assert_eq!(reason(Drop::NotARequest), "not_a_request");
        assert_eq!(
            name(Sent::RefusedOtherClient),
            "dhcp_refused_other_client_total"
        );
    }
}
