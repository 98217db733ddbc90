//! A rack goes, deleted or revoked: its VLANs go on by another one. Where there is none it is not deleted, and DHCP ends
//! when it is revoked: what nobody trusts any more must not stay a VLAN's rack.

use model::EventType;
use sqlx::PgConnection;
use store::event::{self, NewEvent};
use store::network::{self, VlanChange};
use store::rack;
use time::OffsetDateTime;

use crate::dispatch::{Reply, Request, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::network_view::Networks;
use crate::rack::{is_alive, one_view};

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

/// The heirs of a rack. Of the racks that could take its place those that are there come first.
async fn found(
    db: &mut PgConnection,
    gone: &str,
    networks: &Networks,
) -> Result<Vec<Heirs>, ApiError> {
    let now = OffsetDateTime::now_utc();
    let alive: Vec<String> = rack::list(&mut *db)
        .await?
        .into_iter()
        .filter(|rack| is_alive(rack, now))
        .map(|rack| rack.system_id)
        .collect();
    let mut connected = rack::connected(db).await?;
    connected.sort_by_key(|(_, rack)| !alive.contains(rack));
    Ok(heirs(gone, networks, &connected))
}

fn name_of(networks: &Networks, vlan: i32) -> String {
    let vlan = networks.vlan(vlan);
    vlan.map_or(String::new(), |vlan| {
        format!("{}.{}", vlan.fabric, vlan.name)
    })
}

/// The names of a VLAN and of those that are relayed to it.
fn with_relayed(networks: &Networks, vlan: i32) -> String {
    let relayed = networks.vlans.iter();
    let relayed = relayed.filter(|other| other.relay_vlan == Some(vlan));
    let ids = std::iter::once(vlan).chain(relayed.map(|other| other.id));
    let names: Vec<String> = ids.map(|id| name_of(networks, id)).collect();
    names.join(" and ")
}

/// Gives the VLANs to the heirs; what became of each, in words.
async fn pass_on(
    db: &mut PgConnection,
    networks: &Networks,
    all: &[Heirs],
) -> Result<Vec<String>, ApiError> {
    let mut told = Vec::new();
    for heirs in all {
        let ends = heirs.dhcp_on && heirs.primary.is_none();
        let change = VlanChange {
            dhcp_on: ends.then_some(false),
            primary_rack: Some(heirs.primary.as_deref()),
            secondary_rack: Some(heirs.secondary.as_deref()),
            ..VlanChange::default()
        };
        network::update_vlan(db, heirs.vlan, &change).await?;
        let name = name_of(networks, heirs.vlan);
        told.push(match (&heirs.primary, heirs.dhcp_on) {
            (None, true) => format!("DHCP ends on {}", with_relayed(networks, heirs.vlan)),
            (None, false) => format!("{name} has no rack now"),
            (Some(primary), _) => format!("{primary} is primary on {name}"),
        });
    }
    Ok(told)
}

pub async fn delete(request: Request) -> Reply {
    let id = request.path("system_id");
    let force = request.query.boolean("force")?.unwrap_or(false);
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let gone = rack::get(&mut *tx, id).await?;
    let networks = Networks::load(&mut tx).await?;
    let heirs = found(&mut tx, id, &networks).await?;
    let ending: Vec<String> = heirs
        .iter()
        .filter(|heirs| heirs.dhcp_on && heirs.primary.is_none())
        .map(|heirs| with_relayed(&networks, heirs.vlan))
        .collect();
    if !force && !ending.is_empty() {
        return Err(ApiError::bad_request(format!(
            "Unable to delete '{}'; it is currently set as a primary rack controller on VLANs {} and no other rack \
             controller can provide DHCP. (Use the 'force' parameter to override: DHCP ends there.)",
            gone.hostname,
            ending.join(", ")
        )));
    }
    let told = pass_on(&mut tx, &networks, &heirs).await?;
    rack::delete(&mut tx, id).await?;
    let mut text = format!("Rack {} ({id}) deleted", gone.hostname);
    if !told.is_empty() {
        text = format!("{text}: {}", told.join(", "));
    }
    let mut event = changed(&request, text);
    event.kind = EventType::RackRevoked;
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    Ok(deleted())
}

/// Never refused: it is how a rack that somebody took is shut out.
pub async fn revoke(request: Request) -> Reply {
    let id = request.path("system_id");
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    rack::revoke(&mut tx, id).await?;
    let networks = Networks::load(&mut tx).await?;
    let heirs = found(&mut tx, id, &networks).await?;
    let told = pass_on(&mut tx, &networks, &heirs).await?;
    let mut text = format!("Rack {id} revoked");
    if !told.is_empty() {
        text = format!("{text}: {}", told.join(", "));
    }
    let event = NewEvent::new(EventType::RackRevoked)
        .rack(id)
        .by(request.username());
    event::record(&mut tx, event.text(text)).await?;
    tx.commit().await?;
    let mut view = one_view(&request).await?;
    view["passed_on"] = told.into();
    Ok(answer(&view))
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
