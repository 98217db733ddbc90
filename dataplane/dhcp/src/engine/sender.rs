//! Who sent a message: what a client says of itself counts only as far as its frame, or the relay that brought it, bears
//! it out. Pure.
//!
//! | came as                                | believed                                                              |
//! |----------------------------------------|-----------------------------------------------------------------------|
//! | frame                                  | a hardware address that is the frame's Ethernet source                |
//! | frame of a device that tells nothing   | anything                                                              |
//! | datagram without relay                 | a client that speaks of the address it sends from, and of no other    |
//! | datagram with giaddr, from that giaddr | a subnet of ours that the rack is not on itself                       |
//! | datagram with giaddr, from elsewhere   | nothing, but of relays that the operator trusts                       |

use wire::dhcp4::{MessageType, View};

use crate::config::{Config, Link, Received, Sender};
use crate::counters::Drop;
use crate::identity;
use crate::relay::link_selection;

/// Whether a message that no relay brought may be its client's.
pub(super) fn check_client(query: &View<'_>, received: &Received<'_>) -> Result<(), Drop> {
    match received.sender {
        Sender::Ethernet(source) if identity::mac(query).is_some_and(|mac| mac != source) => {
            Err(Drop::ForeignSource)
        }
        Sender::Ethernet(_) | Sender::Frame => Ok(()),
        // What a client may send by unicast it sends from its address (RFC 2131 §4.4.5). All else comes in a frame; what
        // does not was made to go around the packet socket.
        Sender::Datagram | Sender::TrustedRelay => {
            let own = query.ciaddr();
            let from_own = !own.is_unspecified() && own == received.source;
            let of_another = query.requested_address().is_some_and(|other| other != own);
            let frames_only = matches!(
                query.message_type(),
                Some(MessageType::Discover | MessageType::Decline)
            );
            if from_own && !of_another && !frames_only && !received.destination.is_broadcast() {
                Ok(())
            } else {
                Err(Drop::ForeignSource)
            }
        }
    }
}

/// Whether a relay's message may be one: replies go to giaddr, and what they hold is held for whoever is there.
pub(super) fn check_relay<C: Config>(
    query: &View<'_>,
    received: &Received<'_>,
    config: &C,
) -> Result<(), Drop> {
    if received.sender == Sender::TrustedRelay {
        return Ok(());
    }
    let giaddr = query.giaddr();
    let selected = link_selection(query).and_then(|selected| config.link_of(selected));
    let Some(home) = config.link_of(giaddr) else {
        let is_selecting = selected.is_some();
        return Err(if is_selecting {
            Drop::UntrustedRelay
        } else {
            Drop::UnknownRelay
        });
    };
    // Whoever selects the link of another VLAN could drain any.
    let selects_another = selected.is_some_and(|link| link.vlan != home.vlan);
    // A host of the rack's own link that calls itself a relay would speak for all others there.
    if received.source != giaddr || is_on_link(home) || selects_another {
        return Err(Drop::UntrustedRelay);
    }
    Ok(())
}

/// Whether the rack itself is on the link's wire, rather than behind a relay.
pub(super) fn is_on_link(link: &Link) -> bool {
    link.subnet_of(link.server).is_some()
}
