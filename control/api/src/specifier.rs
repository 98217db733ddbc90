//! MAAS's specifiers: how a path, a field or a filter names a subnet, a VLAN or a fabric.
//!
//! `10.0.0.0/24`, `cidr:10.0.0.0/24`, `name:lab`, `vid:10`, `fabric:blue`, `id:3`; with commas between, all must hold.
//! A text before a colon that is no kind of specifier belongs to the value: `fd00::/64` is a network.

use std::net::IpAddr;

use ipnet::IpNet;
use store::network::{Fabric, Subnet, Vlan};

use crate::error::ApiError;
use crate::network_view::{Networks, SPACE};

/// Splits `kind:value` where the kind is one of these.
fn split<'a>(text: &'a str, kinds: &[&str]) -> (&'a str, &'a str) {
    match text.split_once(':') {
        Some((kind, value)) if kinds.contains(&kind) => (kind, value.trim()),
        _ => ("", text),
    }
}

/// Whether all of a text's specifiers hold. An empty text names nothing.
fn all(text: &str, holds: impl Fn(&str) -> bool) -> bool {
    !text.trim().is_empty() && text.split(',').all(|part| holds(part.trim()))
}

fn vid_of(text: &str) -> Option<i32> {
    match text {
        "untagged" => Some(0),
        text => text.parse().ok(),
    }
}

/// The network that a text writes; octets of a host are left out.
fn network_of(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>().ok().map(|network| network.trunc())
}

fn is_of_fabric(vlan: &Vlan, fabric: &str) -> bool {
    vlan.fabric == fabric || fabric.parse() == Ok(vlan.fabric_id)
}

/// The subnets that a text names.
pub fn subnets<'a>(networks: &'a Networks, text: &str) -> Vec<&'a Subnet> {
    let holds = |subnet: &Subnet, part: &str| {
        let on = |rule: &dyn Fn(&Vlan) -> bool| networks.vlan(subnet.vlan_id).is_some_and(rule);
        match split(
            part,
            &["cidr", "name", "id", "ip", "vid", "vlan", "fabric", "space"],
        ) {
            ("cidr", value) => network_of(value) == Some(subnet.cidr),
            ("name", value) => subnet.name == value,
            ("id", value) => value.parse() == Ok(subnet.id),
            ("ip", value) => value
                .parse::<IpAddr>()
                .is_ok_and(|ip| subnet.cidr.contains(&ip)),
            ("vid" | "vlan", value) => on(&|vlan| vid_of(value) == Some(vlan.vid)),
            ("fabric", value) => on(&|vlan| is_of_fabric(vlan, value)),
            ("space", value) => value == SPACE,
            (_, value) => match (value.parse::<i32>(), network_of(value)) {
                (Ok(id), _) => id == subnet.id,
                (Err(_), Some(network)) => network == subnet.cidr,
                (Err(_), None) => subnet.name == value,
            },
        }
    };
    let named = networks.subnets.iter();
    named
        .filter(|subnet| all(text, |part| holds(subnet, part)))
        .collect()
}

/// The VLANs that a text names. A number is a tag, one that is too large for a tag an id.
pub fn vlans<'a>(networks: &'a Networks, text: &str) -> Vec<&'a Vlan> {
    const TAG_MAX: i32 = 4094;
    let holds = |vlan: &Vlan, part: &str| match split(
        part,
        &["id", "vid", "vlan", "name", "fabric", "space"],
    ) {
        ("id", value) => value.parse() == Ok(vlan.id),
        ("vid" | "vlan", value) => vid_of(value) == Some(vlan.vid),
        ("name", value) => vlan.name == value,
        ("fabric", value) => is_of_fabric(vlan, value),
        ("space", value) => value == SPACE,
        (_, value) => match vid_of(value) {
            Some(number) if number > TAG_MAX => number == vlan.id,
            Some(number) => number == vlan.vid,
            None => vlan.name == value,
        },
    };
    let named = networks.vlans.iter();
    named
        .filter(|vlan| all(text, |part| holds(vlan, part)))
        .collect()
}

/// The fabrics that a text names. Number 0 is the default one, which is the first.
pub fn fabrics<'a>(fabrics: &'a [Fabric], text: &str) -> Vec<&'a Fabric> {
    let first = fabrics.iter().map(|fabric| fabric.id).min();
    let is = |fabric: &Fabric, id: i32| match id {
        0 => Some(fabric.id) == first,
        id => fabric.id == id,
    };
    let holds = |fabric: &Fabric, part: &str| match split(part, &["id", "name", "class"]) {
        ("id", value) => value.parse().is_ok_and(|id| is(fabric, id)),
        ("name", value) => fabric.name == value,
        ("class", value) => fabric.class_type == value,
        (_, value) => match value.parse() {
            Ok(id) => is(fabric, id),
            Err(_) => fabric.name == value,
        },
    };
    let named = fabrics.iter();
    named
        .filter(|fabric| all(text, |part| holds(fabric, part)))
        .collect()
}

/// The one that was named in a path: 404 where there is none, 400 where there are several.
pub fn one<'a, T>(found: &[&'a T], kind: &str) -> Result<&'a T, ApiError> {
    match found {
        [one] => Ok(one),
        [] => Err(ApiError::no_such(kind)),
        _ => Err(ApiError::bad_request(format!(
            "More than one {kind} matches the given query: say its id."
        ))),
    }
}

/// The one that a field names: 400 unless it is exactly one.
pub fn one_in_field<'a, T>(found: &[&'a T], field: &str, kind: &str) -> Result<&'a T, ApiError> {
    match found {
        [one] => Ok(one),
        [] => Err(ApiError::field(field, format!("No such {kind}."))),
        _ => Err(ApiError::field(
            field,
            format!("More than one {kind} is called so: say its id."),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network_view::tests::networks;

    #[test]
    fn subnets_are_named_as_in_maas() {
        let networks = networks();
        for (text, want) in [
            ("1", &[1][..]),
            ("id:1", &[1]),
            ("10.0.0.0/24", &[1]),
            ("cidr:10.0.0.0/24", &[1]),
            ("10.0.0.7/24", &[1]),
            ("fd00::/64", &[3]),
            ("cidr:fd00::/64", &[3]),
            ("name:lab", &[2]),
            ("lab", &[2]),
            ("ip:10.1.0.9", &[2]),
            ("vid:10", &[2]),
            ("vlan:10,fabric:blue", &[2]),
            ("vid:0", &[1, 3]),
            ("vid:untagged,ip:10.0.0.1", &[1]),
            ("fabric:red", &[1, 3]),
            ("space:undefined,id:1", &[1]),
            ("space:dmz", &[]),
            ("name:nosuch", &[]),
            ("cidr:nonsense", &[]),
            ("", &[]),
            ("9", &[]),
        ] {
            let ids: Vec<i32> = subnets(&networks, text).iter().map(|one| one.id).collect();
            assert_eq!(ids, want, "{text}");
        }
    }

    #[test]
    fn vlans_are_named_as_in_maas() {
        let networks = networks();
        for (text, want) in [
            ("5001", &[5001][..]),
            ("id:5002", &[5002]),
            ("10", &[5002]),
            ("untagged", &[5001]),
            ("0", &[5001]),
            ("name:prod", &[5002]),
            ("prod", &[5002]),
            ("fabric:red", &[5001]),
            ("vid:10,fabric:red", &[]),
            ("nosuch", &[]),
        ] {
            let ids: Vec<i32> = vlans(&networks, text).iter().map(|one| one.id).collect();
            assert_eq!(ids, want, "{text}");
        }
    }

    #[test]
    fn fabrics_are_named_as_in_maas() {
        let fabric = |id, name: &str, class: &str| Fabric {
            id,
            name: name.into(),
            description: String::new(),
            class_type: class.into(),
        };
        let all = [fabric(7, "red", "10g"), fabric(9, "blue", "")];
        for (text, want) in [
            ("7", &[7][..]),
            ("0", &[7]),
            ("id:9", &[9]),
            ("blue", &[9]),
            ("name:blue", &[9]),
            ("class:10g", &[7]),
            ("8", &[]),
            ("nosuch", &[]),
        ] {
            let ids: Vec<i32> = fabrics(&all, text).iter().map(|one| one.id).collect();
            assert_eq!(ids, want, "{text}");
        }
    }
}
