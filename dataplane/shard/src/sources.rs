//! Whom TFTP is served: an address may be forged, so an answer goes only where a machine of ours may be.

use std::net::IpAddr;

use ipnet::IpNet;

use crate::snapshot::Snapshot;

/// Whether `address` is a host's of a subnet that the feed brought (on a link of this rack or behind its relays), is in
/// `allow`, or is this host's own.
pub(crate) fn is_served(address: IpAddr, snapshot: &Snapshot, allow: &[IpNet]) -> bool {
    let address = address.to_canonical();
    // No other host's: the kernel takes none of these from a wire.
    if address.is_loopback() {
        return true;
    }
    let is_host = match address {
        IpAddr::V4(address) => snapshot
            .link_by_address(address)
            .and_then(|link| link.dhcp.subnet_of(address))
            .is_some_and(|subnet| !subnet.is_end(address)),
        IpAddr::V6(_) => false,
    };
    is_host || allow.iter().any(|net| net.contains(&address))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn link(vlan: u32, index: Option<u32>, net: &str) -> crate::Link {
        let subnet = dhcp::Subnet {
            id: vlan,
            net: net.parse().unwrap(),
            gateway: None,
            dns: vec![],
            ntp: vec![],
            domain: String::new(),
            lease: Duration::from_secs(600),
            ranges: vec![],
            disabled_archs: vec![],
            client_id_identity: false,
            options: [].into(),
        };
        crate::Link {
            dhcp: dhcp::Link {
                vlan,
                server: Ipv4Addr::new(10, 99, 0, 1),
                mtu: 1500,
                mode: dhcp::Mode::Serve,
                rack: 1,
                peers: vec![],
                subnets: vec![subnet],
            },
            interface: String::new(),
            index,
        }
    }

    #[test]
    fn tftp_is_served_to_our_subnets_and_the_operators_networks_alone() {
        let mut snapshot = Snapshot::default();
        snapshot.set_links(vec![
            link(1, Some(7), "10.99.0.0/24"),
            link(2, None, "10.50.0.0/16"),
        ]);
        let allow: Vec<IpNet> = ["192.168.0.0/16", "fd00::/8"]
            .map(|net| net.parse().unwrap())
            .into();
        for (address, allowed, want, why) in [
            ("10.99.0.9", false, true, "on a link of ours"),
            ("::ffff:10.99.0.9", false, true, "the same, seen as IPv6"),
            ("10.50.3.9", false, true, "behind a relay"),
            ("10.99.0.255", false, false, "everybody's"),
            ("10.99.0.0", false, false, "nobody's"),
            ("10.98.0.9", false, false, "of no subnet of ours"),
            ("192.0.2.1", true, false, "somebody else's"),
            ("192.168.7.7", false, false, "not yet the operator's"),
            ("192.168.7.7", true, true, "the operator's"),
            ("fd00::9", true, true, "the operator's, IPv6"),
            ("fe80::9", true, false, "any link's"),
            ("127.0.0.1", false, true, "this host's"),
            ("::1", false, true, "this host's, IPv6"),
            ("0.0.0.0", true, false, "no address"),
        ] {
            let allow = if allowed { &allow[..] } else { &[] };
            let served = is_served(address.parse().unwrap(), &snapshot, allow);
            assert_eq!(served, want, "{address}: {why}");
        }
    }
}
