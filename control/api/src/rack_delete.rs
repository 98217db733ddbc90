//! Deleting a rack: its VLANs go on by another one, or it stays.

use store::network::{self, VlanChange};
use store::{event, rack};

use crate::dispatch::{Reply, Request, deleted};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::network_view::Networks;

/// Who serves a VLAN once a rack is gone.
#[derive(Debug, PartialEq, Eq)]
struct Heirs {
    vlan: i32,
    primary: Option<String>,
    secondary: Option<String>,
    /// DHCP is on: without a primary it ends.
    dhcp_on: bool,
}

/// For each VLAN that names the rack: its secondary moves up, and another rack of the VLAN takes the free place.
fn heirs(gone: &str, networks: &Networks, connected: &[(i32, String)]) -> Vec<Heirs> {
    let named = networks.vlans.iter().filter(|vlan| {
        [&vlan.primary_rack, &vlan.secondary_rack]
            .into_iter()
            .any(|rack| rack.as_deref() == Some(gone))
    });
    named
        .map(|vlan| {
            let stays = |rack: &&String| rack.as_str() != gone;
            let racks = [&vlan.primary_rack, &vlan.secondary_rack];
            let mut left = racks.into_iter().flatten().filter(stays).cloned();
            let (first, second) = (left.next(), left.next());
            let other = connected
                .iter()
                .find(|(on, rack)| *on == vlan.id && stays(&rack) && first.as_ref() != Some(rack))
                .map(|(_, rack)| rack.clone())
                .filter(|_| vlan.dhcp_on);
            let (primary, secondary) = match first {
                Some(first) => (Some(first), second.or(other)),
                None => (other, None),
            };
            // Without a secondary before there is none afterwards either.
            let secondary = secondary.filter(|_| vlan.secondary_rack.is_some());
            Heirs {
                vlan: vlan.id,
                primary,
                secondary,
                dhcp_on: vlan.dhcp_on,
            }
        })
        .collect()
}

pub async fn delete(request: Request) -> Reply {
    let id = request.path("system_id");
    let force = request.query.boolean("force")?.unwrap_or(false);
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let gone = rack::get(&mut *tx, id).await?;
    let networks = Networks::load(&mut tx).await?;
    let heirs = heirs(id, &networks, &rack::connected(&mut *tx).await?);
    let name_of = |vlan: i32| {
        let vlan = networks.vlan(vlan);
        vlan.map_or(String::new(), |vlan| {
            format!("{}.{}", vlan.fabric, vlan.name)
        })
    };
    let ending: Vec<String> = heirs
        .iter()
        .filter(|heirs| heirs.dhcp_on && heirs.primary.is_none())
        .map(|heirs| name_of(heirs.vlan))
        .collect();
    if !force && !ending.is_empty() {
        return Err(ApiError::bad_request(format!(
            "Unable to delete '{}'; it is currently set as a primary rack controller on VLANs {} and no other rack \
             controller can provide DHCP. (Use the 'force' parameter to override: DHCP ends there.)",
            gone.hostname,
            ending.join(", ")
        )));
    }
    let mut told = Vec::new();
    for heirs in &heirs {
        let ends = heirs.dhcp_on && heirs.primary.is_none();
        let change = VlanChange {
            dhcp_on: ends.then_some(false),
            primary_rack: Some(heirs.primary.as_deref()),
            secondary_rack: Some(heirs.secondary.as_deref()),
            ..VlanChange::default()
        };
        network::update_vlan(&mut tx, heirs.vlan, &change).await?;
        told.push(match (&heirs.primary, heirs.dhcp_on) {
            (None, true) => format!("DHCP ends on {}", name_of(heirs.vlan)),
            (None, false) => format!("{} has no rack now", name_of(heirs.vlan)),
            (Some(primary), _) => format!("{primary} is primary on {}", name_of(heirs.vlan)),
        });
    }
    rack::delete(&mut tx, id).await?;
    let mut text = format!("Rack {} ({id}) deleted", gone.hostname);
    if !told.is_empty() {
        text = format!("{text}: {}", told.join(", "));
    }
    let mut event = changed(&request, text);
    event.kind = model::EventType::RackRevoked;
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    Ok(deleted())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network_view::tests::networks;

    /// MAAS's rule: the secondary first, then another rack of the VLAN; none, and DHCP would end.
    #[test]
    fn another_rack_takes_over_where_there_is_one() {
        type Racks = [Option<&'static str>; 2];
        let cases: [(&str, Racks, &[&str], Racks); 7] = [
            ("alone", [Some("a"), None], &["a"], [None, None]),
            ("another", [Some("a"), None], &["a", "b"], [Some("b"), None]),
            (
                "secondary",
                [Some("a"), Some("b")],
                &["a", "b"],
                [Some("b"), None],
            ),
            (
                "three",
                [Some("a"), Some("b")],
                &["a", "b", "c"],
                [Some("b"), Some("c")],
            ),
            (
                "is secondary",
                [Some("b"), Some("a")],
                &["a", "b"],
                [Some("b"), None],
            ),
            (
                "is secondary of three",
                [Some("b"), Some("a")],
                &["a", "b", "c"],
                [Some("b"), Some("c")],
            ),
            (
                "unreachable secondary",
                [Some("a"), Some("b")],
                &["a"],
                [Some("b"), None],
            ),
        ];
        for (case, [primary, secondary], connected, want) in cases {
            let mut networks = networks();
            let vlan = &mut networks.vlans[0];
            vlan.dhcp_on = true;
            vlan.primary_rack = primary.map(str::to_owned);
            vlan.secondary_rack = secondary.map(str::to_owned);
            let connected: Vec<(i32, String)> = connected
                .iter()
                .map(|rack| (5001, (*rack).to_owned()))
                .chain([(5002, "z".to_owned())])
                .collect();
            let found = heirs("a", &networks, &connected);
            assert_eq!(found.len(), 1, "{case}");
            let racks = [&found[0].primary, &found[0].secondary].map(|rack| rack.as_deref());
            assert_eq!(racks, want, "{case}");
        }
        assert!(heirs("nobody", &networks(), &[]).is_empty());
    }
}
