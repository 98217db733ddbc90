//! `fabrics/{id}/vlans/` and `vlans/{id}/`: VLANs, and switching DHCP on.

use model::Permission;
use model::dhcp::DhcpMode;
use serde_json::Value;
use sqlx::PgConnection;
use store::network::{self, Vlan, VlanChange};

use crate::body::Form;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::handler;
use crate::network_view::Networks;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "Vlans",
            path: "fabrics/{fabric_id}/vlans/",
            aliases: &[],
            doc: "Manage the VLANs of a fabric.",
            operations: vec![
                Operation::new("GET", None, VIEW, "List a fabric's VLANs.", handler!(list)),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Create a VLAN.\n\n:param vid: Its tag, 0 to 4094.\n:param name: Its name.\n\
                     :param description: A description.\n:param mtu: Its MTU.",
                    handler!(create),
                ),
            ],
        },
        Resource {
            name: "Vlan",
            path: "fabrics/{fabric_id}/vlans/{vid}/",
            aliases: &["vlans/{vlan_id}/"],
            doc: "Manage a VLAN.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a VLAN.", handler!(read)),
                Operation::new(
                    "PUT",
                    None,
                    EDIT,
                    "Update a VLAN.\n\n:param name: Its name.\n:param description: A description.\n\
                     :param vid: Its tag.\n:param mtu: Its MTU.\n\
                     :param dhcp_on: Whether DHCP is served; needs a primary rack and a dynamic range.\n\
                     :param dhcp_mode: \"serve\", or \"proxy\" where somebody else hands out the addresses and racks only \
                     tell machines what to boot.\n\
                     :param primary_rack: The rack controller that serves DHCP.\n\
                     :param secondary_rack: The one that does when the first is away.\n\
                     :param relay_vlan: The VLAN whose racks serve this one through a relay.",
                    handler!(update),
                ),
                Operation::new("DELETE", None, EDIT, "Delete a VLAN.", handler!(delete)),
            ],
        },
    ]
}

/// The VLAN of the path: by its id, or by fabric and tag.
fn find<'a>(request: &Request, networks: &'a Networks) -> Result<&'a Vlan, ApiError> {
    if !request.path("vlan_id").is_empty() {
        let id = request.path_id("vlan_id", "VLAN")?;
        return networks.vlan(id).ok_or_else(|| ApiError::no_such("VLAN"));
    }
    let fabric_id = request.path_id("fabric_id", "Fabric")?;
    let vid = match request.path("vid") {
        "untagged" => 0,
        _ => request.path_id("vid", "VLAN")?,
    };
    networks
        .vlans
        .iter()
        .find(|vlan| vlan.fabric_id == fabric_id && vlan.vid == vid)
        .ok_or_else(|| ApiError::no_such("VLAN"))
}

async fn list(request: Request) -> Reply {
    let fabric_id = request.path_id("fabric_id", "Fabric")?;
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    let vlans: Vec<Value> = networks
        .vlans
        .iter()
        .filter(|vlan| vlan.fabric_id == fabric_id)
        .map(|vlan| networks.vlan_view(vlan.id))
        .collect();
    // A fabric always has its untagged VLAN.
    if vlans.is_empty() {
        return Err(ApiError::no_such("Fabric"));
    }
    Ok(answer(&vlans.into()))
}

async fn one(request: &Request, id: i32) -> Reply {
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    Ok(answer(&networks.vlan_view(id)))
}

async fn read(request: Request) -> Reply {
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    let id = find(&request, &networks)?.id;
    Ok(answer(&networks.vlan_view(id)))
}

async fn create(request: Request) -> Reply {
    let fabric_id = request.path_id("fabric_id", "Fabric")?;
    let form = &request.form;
    let vid = form
        .integer("vid")?
        .ok_or_else(|| ApiError::required("vid"))?;
    let change = VlanChange {
        vid: Some(vid),
        name: form.filled("name"),
        description: form.get("description"),
        mtu: form.integer("mtu")?,
        ..VlanChange::default()
    };
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    if !network::fabrics(&mut tx)
        .await?
        .iter()
        .any(|fabric| fabric.id == fabric_id)
    {
        return Err(ApiError::no_such("Fabric"));
    }
    let id = network::create_vlan(&mut tx, fabric_id, &change).await?;
    event(
        &mut tx,
        &request,
        format!("VLAN {vid} created on fabric {fabric_id}"),
    )
    .await?;
    tx.commit().await?;
    one(&request, id).await
}

async fn event(db: &mut PgConnection, request: &Request, text: String) -> Result<(), ApiError> {
    Ok(store::event::record(db, changed(request, text)).await?)
}

async fn update(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let vlan = find(&request, &networks)?;
    let form = &request.form;
    let primary = rack_field(&mut tx, form, "primary_rack").await?;
    let secondary = rack_field(&mut tx, form, "secondary_rack").await?;
    let relay = match form.get("relay_vlan").map(str::trim) {
        None => None,
        Some("") => Some(None),
        Some(_) => Some(form.integer("relay_vlan")?),
    };
    let change = VlanChange {
        vid: form.integer("vid")?,
        fabric_id: form.integer("fabric")?.or(form.integer("fabric_id")?),
        name: form.filled("name"),
        description: form.get("description"),
        mtu: form.integer("mtu")?,
        dhcp_on: form.boolean("dhcp_on")?,
        dhcp_mode: form.parsed("dhcp_mode", "Must be serve or proxy.")?,
        primary_rack: primary.as_ref().map(|rack| rack.as_deref()),
        secondary_rack: secondary.as_ref().map(|rack| rack.as_deref()),
        relay_vlan: relay,
    };
    if let Some(fabric) = change.fabric_id
        && !networks.vlans.iter().any(|vlan| vlan.fabric_id == fabric)
    {
        return Err(ApiError::field("fabric", "No such fabric."));
    }
    let has_dynamic_range = network::ranges(&mut tx).await?.iter().any(|range| {
        range.is_dynamic()
            && networks
                .subnet(range.subnet_id)
                .is_some_and(|subnet| subnet.vlan_id == vlan.id)
    });
    check(vlan, &change, has_dynamic_range, &networks)?;
    let id = vlan.id;
    network::update_vlan(&mut tx, id, &change).await?;
    event(&mut tx, &request, format!("VLAN {id} changed")).await?;
    tx.commit().await?;
    one(&request, id).await
}

/// A rack by system_id or hostname; "" is none. The outer `None`: the field is not there.
async fn rack_field(
    db: &mut PgConnection,
    form: &Form,
    name: &str,
) -> Result<Option<Option<String>>, ApiError> {
    let Some(value) = form.get(name).map(str::trim) else {
        return Ok(None);
    };
    if value.is_empty() {
        return Ok(Some(None));
    }
    let racks = store::rack::list(db).await?;
    let rack = racks
        .into_iter()
        .filter(|rack| rack.revoked.is_none())
        .find(|rack| rack.system_id == value || rack.hostname == value);
    match rack {
        Some(rack) => Ok(Some(Some(rack.system_id))),
        None => Err(ApiError::field(
            name,
            "Select a valid choice. That choice is not one of the available choices.",
        )),
    }
}

fn mode_of(vlan: &Vlan) -> DhcpMode {
    // One of a newer region: racks are told to serve.
    vlan.dhcp_mode.parse().unwrap_or_default()
}

/// MAAS's rules of what DHCP needs, over what the VLAN would be after the change.
fn check(
    vlan: &Vlan,
    change: &VlanChange<'_>,
    has_dynamic_range: bool,
    networks: &Networks,
) -> Result<(), ApiError> {
    let dhcp_on = change.dhcp_on.unwrap_or(vlan.dhcp_on);
    let primary = change.primary_rack.unwrap_or(vlan.primary_rack.as_deref());
    let secondary = change
        .secondary_rack
        .unwrap_or(vlan.secondary_rack.as_deref());
    let relay = change.relay_vlan.unwrap_or(vlan.relay_vlan);
    if dhcp_on && relay.is_some() {
        return Err(ApiError::field(
            "relay_vlan",
            "'relay_vlan' can only be set when dhcp is off.",
        ));
    }
    if dhcp_on && primary.is_none() {
        return Err(ApiError::field(
            "dhcp_on",
            "dhcp can only be turned on when a primary rack controller is set.",
        ));
    }
    let serves = change.dhcp_mode.unwrap_or(mode_of(vlan)) == DhcpMode::Serve;
    let begins = !vlan.dhcp_on || mode_of(vlan) != DhcpMode::Serve;
    if dhcp_on && serves && begins && !has_dynamic_range {
        return Err(ApiError::field(
            "dhcp_on",
            "dhcp can only be turned on when a dynamic IP range is defined.",
        ));
    }
    if secondary.is_some() && primary.is_none() {
        return Err(ApiError::field(
            "secondary_rack",
            "A secondary rack can only be set when there is a primary rack.",
        ));
    }
    if secondary.is_some() && secondary == primary {
        return Err(ApiError::field(
            "secondary_rack",
            "The primary and secondary rack must be different.",
        ));
    }
    if let Some(relay) = relay {
        let target = networks.vlan(relay);
        if relay == vlan.id || target.is_none_or(|target| target.relay_vlan.is_some()) {
            return Err(ApiError::field(
                "relay_vlan",
                "Must be another VLAN, one that is not relayed itself.",
            ));
        }
    }
    Ok(())
}

async fn delete(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let vlan = find(&request, &networks)?;
    if vlan.vid == 0 {
        return Err(ApiError::bad_request(
            "This VLAN is the default VLAN in the fabric; it cannot be deleted.",
        ));
    }
    network::delete_vlan(&mut tx, vlan.id).await?;
    event(&mut tx, &request, format!("VLAN {} deleted", vlan.id)).await?;
    tx.commit().await?;
    Ok(deleted())
}
