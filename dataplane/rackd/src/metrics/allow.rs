//! Who may read the rack's metrics: this host, the networks that the operator named, and management networks, which are
//! those that no machine is provisioned on.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ipnet::IpNet;
use shard::Snapshot;

/// The two ends of the connection that asks.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    pub peer: SocketAddr,
    pub local: SocketAddr,
}

/// A management network is one that this host is on: behind a router there may be machines of another rack.
/// `device_to`: the device by which an address is reached without a router.
///
/// While the rack knows of no link yet, it cannot tell a management network from another: then this host only, and
/// what the operator named.
pub fn is_allowed(
    ends: Ends,
    named: &[IpNet],
    snapshot: &Snapshot,
    device_to: impl Fn(Ipv4Addr) -> Option<u32>,
) -> bool {
    let (peer, local) = (
        ends.peer.ip().to_canonical(),
        ends.local.ip().to_canonical(),
    );
    if peer.is_loopback() || peer == local || named.iter().any(|network| network.contains(&peer)) {
        return true;
    }
    let provisions = |address: Ipv4Addr| snapshot.link_by_address(address).is_some();
    match (peer, local) {
        (IpAddr::V4(peer), IpAddr::V4(local)) => {
            let on_a_link = |device| {
                snapshot
                    .links()
                    .iter()
                    .any(|link| link.index == Some(device))
            };
            !snapshot.links().is_empty()
                && !provisions(peer)
                && !provisions(local)
                && device_to(peer).is_some_and(|device| !on_a_link(device))
        }
        // Links have IPv4 addresses: of an IPv6 address nobody knows which network it is on.
        _ => false,
    }
}
