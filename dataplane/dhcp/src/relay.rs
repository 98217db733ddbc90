//! What a relay says of a client: option 82 (RFC 3046) and the sub-options a server acts on.

use std::net::Ipv4Addr;

use wire::dhcp4::{Field, View, relay};

use crate::config::{Link, Subnet};

/// A sub-option of option 82 (RFC 3046 §2.0).
fn sub_option<'a>(query: &View<'a>, wanted: u8) -> Option<&'a [u8]> {
    Field(query.relay_info()?)
        .map_while(Result::ok)
        .find(|(code, _)| *code == wanted)
        .map(|(_, octets)| octets)
}

fn address(query: &View<'_>, wanted: u8) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(sub_option(query, wanted)?)
        .ok()
        .map(Ipv4Addr::from)
}

/// Circuit id and remote id: the port a client hangs on. The remote id may be empty. Only a relay's word counts: what
/// a client says of its port is worth nothing (RFC 3046 §5).
pub(crate) fn circuit<'a>(query: &View<'a>) -> Option<(&'a [u8], &'a [u8])> {
    if query.giaddr().is_unspecified() {
        return None;
    }
    let remote = sub_option(query, relay::REMOTE_ID).unwrap_or_default();
    Some((sub_option(query, relay::CIRCUIT_ID)?, remote))
}

/// The link that the client is on, where giaddr does not tell it (RFC 3527). Zeros say nothing.
pub(crate) fn link_selection(query: &View<'_>) -> Option<Ipv4Addr> {
    address(query, relay::LINK_SELECTION).filter(|link| !link.is_unspecified())
}

/// What the relay wants to stand in option 54, so that renewals come through it (RFC 5107). Only a relay's word
/// counts, and only its own address makes sense.
pub(crate) fn server_id_override(query: &View<'_>) -> Option<Ipv4Addr> {
    if query.giaddr().is_unspecified() {
        return None;
    }
    address(query, relay::SERVER_ID_OVERRIDE).filter(|address| !address.is_unspecified())
}

/// The subnet that option 118 names (RFC 3011), if it is one of the client's own link: a client that could name any
/// would drain the others. A relay's link selection goes before it (RFC 3527 §3).
pub(crate) fn subnet_selection<'a>(query: &View<'_>, link: &'a Link) -> Option<&'a Subnet> {
    if link_selection(query).is_some() {
        return None;
    }
    link.subnet_of(query.subnet_selection()?)
}
