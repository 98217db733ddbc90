//! Networks as MAAS writes them, and arithmetic on addresses that the network resources share.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::StoreError;
use store::network::{self, Fabric, Range, Subnet, Vlan};

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
        let vlan_index = vlans
            .iter()
            .enumerate()
            .map(|(index, vlan)| (vlan.id, index))
            .collect();
        Ok(Self {
            vlans,
            subnets,
            vlan_index,
        })
    }

    pub fn vlan(&self, id: i32) -> Option<&Vlan> {
        self.vlan_index.get(&id).map(|index| &self.vlans[*index])
    }

    pub fn subnet(&self, id: i32) -> Option<&Subnet> {
        self.subnets.iter().find(|subnet| subnet.id == id)
    }

    /// By id, network (with or without MAAS's `cidr:`) or name.
    pub fn named(&self, wanted: &str) -> Option<&Subnet> {
        let wanted = wanted
            .strip_prefix("cidr:")
            .or(wanted.strip_prefix("name:"))
            .unwrap_or(wanted);
        let by_id = wanted.parse().ok().and_then(|id| self.subnet(id));
        by_id.or_else(|| {
            self.subnets
                .iter()
                .find(|subnet| subnet.cidr.to_string() == wanted || subnet.name == wanted)
        })
    }

    /// The smallest subnet that holds the address.
    pub fn subnet_of(&self, address: IpAddr) -> Option<&Subnet> {
        self.subnets
            .iter()
            .filter(|subnet| subnet.cidr.contains(&address))
            .max_by_key(|subnet| subnet.cidr.prefix_len())
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
mod tests {
    use super::*;

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
