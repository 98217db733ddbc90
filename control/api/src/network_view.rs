//! Networks as MAAS writes them, and arithmetic on addresses that the network resources share.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use model::dhcp::DhcpMode;
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::StoreError;
use store::network::{self, Fabric, Range, Subnet, Vlan};

use crate::specifier;

/// What MAAS writes where a VLAN has no space.
pub const SPACE: &str = "undefined";

/// Every VLAN and subnet: two statements, whatever is drawn from them.
pub struct Networks {
    pub vlans: Vec<Vlan>,
    pub subnets: Vec<Subnet>,
    vlan_index: HashMap<i32, usize>,
}

impl Networks {
    pub async fn load(db: &mut PgConnection) -> Result<Self, StoreError> {
        let vlans = network::vlans(&mut *db).await?;
        let subnets = network::subnets(db).await?;
        Ok(Self::of(vlans, subnets))
    }

    pub fn none() -> Self {
        Self::of(Vec::new(), Vec::new())
    }

    fn of(vlans: Vec<Vlan>, subnets: Vec<Subnet>) -> Self {
        let indexes = vlans.iter().enumerate();
        let vlan_index = indexes.map(|(index, vlan)| (vlan.id, index)).collect();
        Self {
            vlans,
            subnets,
            vlan_index,
        }
    }

    pub fn vlan(&self, id: i32) -> Option<&Vlan> {
        self.vlan_index.get(&id).map(|index| &self.vlans[*index])
    }

    pub fn subnet(&self, id: i32) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.id == id)
    }

    /// The one subnet that a specifier of MAAS's names.
    pub fn named(&self, wanted: &str) -> Option<&Subnet> {
        match specifier::subnets(self, wanted)[..] {
            [one] => Some(one),
            _ => None,
        }
    }

    /// The smallest subnet that holds the address.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets
            .iter()
            .filter(|subnet| subnet.cidr.contains(&address))
            .max_by_key(|subnet| subnet.cidr.prefix_len())
    }

    /// The VLAN whose DHCP serves the clients of this one, where it is on: itself, or the one it relays to.
    pub fn serving(&self, vlan: i32) -> Option<&Vlan> {
        let vlan = self.vlan(vlan)?;
        let relay = vlan.relay_vlan.and_then(|relay| self.vlan(relay));
        Some(relay.unwrap_or(vlan))
    }

    /// The name of the VLAN whose DHCP serves the clients of this one. `None`: nobody hands out addresses here.
    pub fn served_by(&self, vlan: i32) -> Option<String> {
        let serving = self.serving(vlan)?;
        let serves = serving.dhcp_on && serving.dhcp_mode != DhcpMode::Proxy.as_str();
        serves.then(|| format!("{}.{}", serving.fabric, serving.name))
    }

    pub fn vlan_view(&self, id: i32) -> Value {
        let Some(vlan) = self.vlan(id) else {
            return Value::Null;
        };
        let mut view = self.flat_vlan_view(vlan);
        // One level only: a relay does not lead to a relay.
        if let Some(relay) = vlan.relay_vlan.and_then(|relay| self.vlan(relay)) {
            view["relay_vlan"] = self.flat_vlan_view(relay);
        }
        view
    }

    fn flat_vlan_view(&self, vlan: &Vlan) -> Value {
        json!({
            "id": vlan.id,
            "vid": vlan.vid,
            "mtu": vlan.mtu,
            "dhcp_on": vlan.dhcp_on,
            "external_dhcp": vlan.external_dhcp,
            "relay_vlan": null,
            "name": vlan.name,
            "description": vlan.description,
            "fabric": vlan.fabric,
            "fabric_id": vlan.fabric_id,
            "primary_rack": vlan.primary_rack,
            "secondary_rack": vlan.secondary_rack,
            "space": SPACE,
            // Ours.
            "dhcp_mode": vlan.dhcp_mode,
            "resource_uri": format!("/MAAS/api/2.0/vlans/{}/", vlan.id),
        })
    }

    pub fn subnet_view(&self, subnet: &Subnet) -> Value {
        json!({
            "id": subnet.id,
            "name": subnet.name,
            "description": subnet.description,
            "vlan": self.vlan_view(subnet.vlan_id),
            "cidr": subnet.cidr.to_string(),
            "rdns_mode": subnet.rdns_mode,
            "gateway_ip": subnet.gateway_ip,
            "dns_servers": subnet.dns_servers,
            "allow_dns": subnet.allow_dns,
            "allow_proxy": subnet.allow_proxy,
            "active_discovery": subnet.active_discovery,
            "managed": subnet.managed,
            "disabled_boot_architectures": subnet.disabled_boot_architectures,
            "space": SPACE,
            // Ours.
            "ntp_servers": subnet.ntp_servers,
            "lease_secs": subnet.lease_secs,
            "lease_own": subnet.lease_own,
            "client_id_identity": subnet.client_id_identity,
            "resource_uri": format!("/MAAS/api/2.0/subnets/{}/", subnet.id),
        })
    }

    pub fn fabric_view(&self, fabric: &Fabric) -> Value {
        let vlans: Vec<Value> = self
            .vlans
            .iter()
            .filter(|vlan| vlan.fabric_id == fabric.id)
            .map(|vlan| self.vlan_view(vlan.id))
            .collect();
        let class_type = (!fabric.class_type.is_empty()).then_some(&fabric.class_type);
        json!({
            "id": fabric.id,
            "name": fabric.name,
            "description": fabric.description,
            "class_type": class_type,
            "vlans": vlans,
            "resource_uri": format!("/MAAS/api/2.0/fabrics/{}/", fabric.id),
        })
    }

    pub fn range_view(&self, range: &Range) -> Value {
        let subnet = self.subnet(range.subnet_id);
        json!({
            "id": range.id,
            "type": range.r#type,
            "start_ip": range.start_ip,
            "end_ip": range.end_ip,
            "comment": range.comment,
            "user": range.owner.as_ref().map(|owner| json!({ "username": owner })),
            "subnet": subnet.map(|subnet| self.subnet_view(subnet)),
            // Ours.
            "lease_secs": range.lease_secs,
            "resource_uri": format!("/MAAS/api/2.0/ipranges/{}/", range.id),
        })
    }
}

//---------------------------------------------------------------- addresses as numbers

pub fn number_of(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Of the family of `like`; a number that is too large for it ends at its last address.
pub fn address_of(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX)).into(),
        IpAddr::V6(_) => Ipv6Addr::from(number).into(),
    }
}

/// First and last address that a host may have, as numbers: without network and broadcast address where the
/// subnet has them.
pub fn host_span(cidr: &IpNet) -> (u128, u128) {
    let (first, last) = (number_of(cidr.network()), number_of(cidr.broadcast()));
    match cidr {
        IpNet::V4(_) if last - first > 1 => (first + 1, last - 1),
        // The subnet-router anycast address (RFC 4291 §2.6.1).
        IpNet::V6(_) if last - first > 1 => (first + 1, last),
        _ => (first, last),
    }
}

/// What of `span` is in none of `taken` (inclusive spans, in any order).
pub fn gaps(span: (u128, u128), taken: &[(u128, u128)]) -> Vec<(u128, u128)> {
    let mut taken = taken.to_vec();
    taken.sort_unstable();
    let mut gaps = Vec::new();
    let mut next = span.0;
    for (first, last) in taken {
        if first > next && next <= span.1 {
            gaps.push((next, (first - 1).min(span.1)));
        }
        next = next.max(last.saturating_add(1));
        if next > span.1 || next == 0 {
            return gaps;
        }
    }
    if next <= span.1 {
        gaps.push((next, span.1));
    }
    gaps
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Two fabrics: red with 10.0.0.0/24 and fd00::/64 untagged, blue with 10.1.0.0/24 on VLAN 10.
    pub fn networks() -> Networks {
        let vlan = |id, fabric_id, fabric: &str, vid, name: &str| Vlan {
            id,
            fabric_id,
            fabric: fabric.into(),
            vid,
            name: name.into(),
            description: String::new(),
            mtu: 1500,
            dhcp_on: false,
            dhcp_mode: "serve".into(),
            external_dhcp: None,
            primary_rack: None,
            secondary_rack: None,
            relay_vlan: None,
        };
        let subnet = |id, vlan_id, cidr: &str, name: &str| Subnet {
            id,
            vlan_id,
            name: name.into(),
            description: String::new(),
            cidr: cidr.parse().unwrap(),
            gateway_ip: None,
            dns_servers: Vec::new(),
            ntp_servers: Vec::new(),
            rdns_mode: 2,
            allow_dns: true,
            allow_proxy: true,
            active_discovery: false,
            managed: true,
            disabled_boot_architectures: Vec::new(),
            lease_secs: 600,
            lease_own: false,
            client_id_identity: false,
        };
        Networks::of(
            vec![
                vlan(5001, 7, "red", 0, "untagged"),
                vlan(5002, 9, "blue", 10, "prod"),
            ],
            vec![
                subnet(1, 5001, "10.0.0.0/24", "10.0.0.0/24"),
                subnet(2, 5002, "10.1.0.0/24", "lab"),
                subnet(3, 5001, "fd00::/64", "fd00::/64"),
            ],
        )
    }

    #[test]
    fn gaps_are_what_is_left() {
        type Spans = &'static [(u128, u128)];
        let cases: [(Spans, Spans); 6] = [
            (&[], &[(10, 20)]),
            (&[(10, 20)], &[]),
            (&[(12, 13), (15, 15)], &[(10, 11), (14, 14), (16, 20)]),
            (&[(15, 18), (5, 11), (17, 30)], &[(12, 14)]),
            (&[(1, 5), (25, 30)], &[(10, 20)]),
            (&[(10, u128::MAX)], &[]),
        ];
        for (taken, want) in cases {
            assert_eq!(gaps((10, 20), taken), want, "{taken:?}");
        }
    }

    #[test]
    fn hosts_have_no_network_or_broadcast_address() {
        for (cidr, first, last) in [
            ("10.0.0.0/24", "10.0.0.1", "10.0.0.254"),
            ("10.0.0.0/31", "10.0.0.0", "10.0.0.1"),
            ("10.0.0.7/32", "10.0.0.7", "10.0.0.7"),
            ("fd00::/126", "fd00::1", "fd00::3"),
        ] {
            let cidr: IpNet = cidr.parse().unwrap();
            let span = host_span(&cidr);
            let like = cidr.network();
            assert_eq!(address_of(span.0, like).to_string(), first, "{cidr}");
            assert_eq!(address_of(span.1, like).to_string(), last, "{cidr}");
        }
    }
}
