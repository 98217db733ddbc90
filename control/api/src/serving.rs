//! What DHCP serves, before a change of the networks and after it: no change ends it in silence.
//!
//! Looked at in the transaction of the change, whatever was changed: a subnet's network or VLAN, a range, a rack.

use std::collections::{BTreeMap, BTreeSet};

use sqlx::PgConnection;
use store::StoreError;
use store::network::{self, Range};

use crate::network_view::{Networks, gaps, number_of};

/// What DHCP serves at one moment. VLANs are by id, with the name of the VLAN whose DHCP serves them.
#[derive(Debug, PartialEq, Eq)]
pub struct Serving {
    /// DHCP is on there, or on the VLAN that it is relayed to.
    on: BTreeMap<i32, String>,
    /// Those where the racks hand out the addresses themselves.
    dealing: BTreeSet<i32>,
    /// Those whose DHCP has a rack with an address on its subnets.
    standing: BTreeSet<i32>,
    /// Those whose dynamic ranges have an address that no reserved range takes.
    stocked: BTreeSet<i32>,
}

impl Serving {
    pub async fn load(db: &mut PgConnection) -> Result<Self, StoreError> {
        let networks = Networks::load(&mut *db).await?;
        let ranges = network::ranges(&mut *db).await?;
        Ok(Self::of(
            &networks,
            &ranges,
            &store::rack::connected(db).await?,
        ))
    }

    /// `connected`: the racks that have an address on each VLAN.
    fn of(networks: &Networks, ranges: &[Range], connected: &[(i32, String)]) -> Self {
        let mut serving = Self {
            on: BTreeMap::new(),
            dealing: BTreeSet::new(),
            standing: BTreeSet::new(),
            stocked: stocked(networks, ranges),
        };
        let connected: BTreeSet<(i32, &str)> = connected
            .iter()
            .map(|(vlan, rack)| (*vlan, rack.as_str()))
            .collect();
        for vlan in &networks.vlans {
            let Some(via) = networks.serving(vlan.id).filter(|via| via.dhcp_on) else {
                continue;
            };
            serving
                .on
                .insert(vlan.id, format!("{}.{}", via.fabric, via.name));
            if networks.served_by(vlan.id).is_some() {
                serving.dealing.insert(vlan.id);
            }
            let racks = [&via.primary_rack, &via.secondary_rack];
            if racks
                .into_iter()
                .flatten()
                .any(|rack| connected.contains(&(via.id, rack.as_str())))
            {
                serving.standing.insert(vlan.id);
            }
        }
        serving
    }

    /// What is served no more, though DHCP is still on: why the change cannot be.
    pub async fn lost(&self, db: &mut PgConnection) -> Result<Option<String>, StoreError> {
        Ok(self.lost_in(&Self::load(db).await?))
    }

    fn lost_in(&self, after: &Self) -> Option<String> {
        for (vlan, name) in &after.on {
            if self.dealing.contains(vlan)
                && after.dealing.contains(vlan)
                && self.stocked.contains(vlan)
                && !after.stocked.contains(vlan)
            {
                return Some(format!(
                    "DHCP of {name} serves its dynamic range, and would have no address left to hand out. (Disable \
                     DHCP first.)"
                ));
            }
            if self.standing.contains(vlan) && !after.standing.contains(vlan) {
                return Some(format!(
                    "DHCP of {name} would have no rack with an address on its subnets any more. (Disable DHCP first.)"
                ));
            }
        }
        None
    }
}

/// The VLANs that have an address to hand out by DHCP, which is of IPv4: one that is dynamic, and in no reserved range.
pub fn stocked(networks: &Networks, ranges: &[Range]) -> BTreeSet<i32> {
    let mut reserved: BTreeMap<i32, Vec<(u128, u128)>> = BTreeMap::new();
    for range in ranges.iter().filter(|range| !range.is_dynamic()) {
        reserved
            .entry(range.subnet_id)
            .or_default()
            .push(span(range));
    }
    let has_room = |range: &&Range| {
        let taken = reserved
            .get(&range.subnet_id)
            .map_or(&[][..], Vec::as_slice);
        range.is_dynamic() && range.start_ip.is_ipv4() && !gaps(span(range), taken).is_empty()
    };
    ranges
        .iter()
        .filter(has_room)
        .filter_map(|range| networks.subnet(range.subnet_id))
        .map(|subnet| subnet.vlan_id)
        .collect()
}

fn span(range: &Range) -> (u128, u128) {
    (number_of(range.start_ip), number_of(range.end_ip))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network_view::tests::networks;

    fn range(kind: &str, subnet_id: i32, first: &str, last: &str) -> Range {
        Range {
            id: 1,
            subnet_id,
            r#type: kind.into(),
            start_ip: first.parse().unwrap(),
            end_ip: last.parse().unwrap(),
            comment: String::new(),
            owner: None,
            lease_secs: None,
        }
    }

    #[test]
    fn a_vlan_has_stock_while_one_dynamic_address_is_in_no_reserved_range() {
        let dynamic = range("dynamic", 1, "10.0.0.100", "10.0.0.199");
        let cases: [(&str, Vec<Range>, bool); 7] = [
            ("none", vec![], false),
            ("dynamic", vec![dynamic.clone()], true),
            (
                "all of it reserved",
                vec![
                    dynamic.clone(),
                    range("reserved", 1, "10.0.0.100", "10.0.0.199"),
                ],
                false,
            ),
            (
                "in two parts",
                vec![
                    range("reserved", 1, "10.0.0.150", "10.0.0.199"),
                    range("reserved", 1, "10.0.0.100", "10.0.0.149"),
                    dynamic.clone(),
                ],
                false,
            ),
            (
                "all but one",
                vec![
                    dynamic.clone(),
                    range("reserved", 1, "10.0.0.100", "10.0.0.198"),
                ],
                true,
            ),
            (
                "of another subnet",
                vec![dynamic, range("reserved", 2, "10.0.0.100", "10.0.0.199")],
                true,
            ),
            (
                "IPv6 is not dealt",
                vec![range("dynamic", 3, "fd00::10", "fd00::20")],
                false,
            ),
        ];
        for (case, ranges, want) in cases {
            let found = stocked(&networks(), &ranges);
            assert_eq!(found.contains(&5001), want, "{case}");
        }
    }

    /// Red is on by rack a, blue is relayed to it; both have a dynamic range.
    fn relayed() -> Networks {
        let mut networks = networks();
        networks.vlans[0].dhcp_on = true;
        networks.vlans[0].primary_rack = Some("a".into());
        networks.vlans[0].secondary_rack = Some("b".into());
        networks.vlans[1].relay_vlan = Some(5001);
        networks
    }

    #[test]
    fn what_dhcp_serves_is_lost_only_while_it_is_on() {
        let ranges = || {
            vec![
                range("dynamic", 1, "10.0.0.100", "10.0.0.199"),
                range("dynamic", 2, "10.1.0.100", "10.1.0.199"),
            ]
        };
        let at = |racks: &[(i32, &str)]| -> Vec<(i32, String)> {
            racks
                .iter()
                .map(|(vlan, rack)| (*vlan, (*rack).to_owned()))
                .collect()
        };
        let before = Serving::of(&relayed(), &ranges(), &at(&[(5001, "a"), (5001, "b")]));
        type Change = fn(&mut Networks, &mut Vec<Range>, &mut Vec<(i32, String)>);
        let cases: [(&str, Change, Option<&str>); 10] = [
            ("nothing", |_, _, _| {}, None),
            ("one rack", |_, _, racks| racks.truncate(1), None),
            (
                "both racks",
                |_, _, racks| racks.clear(),
                Some("no rack with an address"),
            ),
            (
                "both are elsewhere",
                |_, _, racks| racks.iter_mut().for_each(|rack| rack.0 = 5002),
                Some("no rack with an address"),
            ),
            (
                "another rack that is not there",
                |networks, _, _| {
                    networks.vlans[0].primary_rack = Some("c".into());
                    networks.vlans[0].secondary_rack = None;
                },
                Some("no rack with an address"),
            ),
            (
                "its range",
                |_, ranges, _| drop(ranges.remove(0)),
                Some("no address left"),
            ),
            (
                "a relayed VLAN's range",
                |_, ranges, _| drop(ranges.remove(1)),
                Some("no address left"),
            ),
            (
                "its subnet goes to another VLAN",
                |networks, _, _| networks.subnets[0].vlan_id = 5002,
                Some("no address left"),
            ),
            (
                "somebody else hands out the addresses",
                |networks, ranges, _| {
                    networks.vlans[0].dhcp_mode = "proxy".into();
                    ranges.clear();
                },
                None,
            ),
            (
                "off",
                |networks, ranges, racks| {
                    networks.vlans[0].dhcp_on = false;
                    ranges.clear();
                    racks.clear();
                },
                None,
            ),
        ];
        for (case, change, want) in cases {
            let (mut networks, mut ranges) = (relayed(), ranges());
            let mut racks = at(&[(5001, "a"), (5001, "b")]);
            change(&mut networks, &mut ranges, &mut racks);
            let lost = before.lost_in(&Serving::of(&networks, &ranges, &racks));
            match (&lost, want) {
                (None, None) => {}
                (Some(text), Some(part)) => assert!(text.contains(part), "{case}: {text}"),
                _ => panic!("{case}: {lost:?}"),
            }
        }
        // What was not served before cannot be lost.
        let nothing = Serving::of(&relayed(), &[], &[]);
        assert_eq!(nothing.lost_in(&Serving::of(&relayed(), &[], &[])), None);
    }
}
