//! `fabrics/{id}/vlans/` and `vlans/{id}/`: VLANs, and switching DHCP on.

use model::Permission;
use model::dhcp::DhcpMode;
use sqlx::PgConnection;
use store::network::{self, Fabric, Vlan, VlanChange};

use crate::body::Form;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::{self, changed};
use crate::handler;
use crate::lacking::SPACE;
use crate::network_view::Networks;
use crate::serving::{self, Serving};
use crate::specifier;

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
                     :param description: A description.\n:param mtu: Its MTU.\n\
                     :param primary_rack: The rack controller that is to serve DHCP.\n\
                     :param secondary_rack: The one that is to when the first is away.\n\
                     :param relay_vlan: The VLAN whose racks serve this one through a relay.",
                    handler!(create),
                )
                .lacking(const { &[SPACE] }),
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
                     :param relay_vlan: The VLAN whose racks serve this one through a relay.\n\
                     :param fabric: The fabric that it goes to.",
                    handler!(update),
                )
                .lacking(const { &[SPACE] }),
                Operation::new("DELETE", None, EDIT, "Delete a VLAN.", handler!(delete)),
            ],
        },
    ]
}

/// The VLAN of the path: by its id, or by fabric and tag or name, as MAAS's specifiers have them.
fn find<'a>(
    request: &Request,
    networks: &'a Networks,
    fabrics: &[Fabric],
) -> Result<&'a Vlan, ApiError> {
    let id = request.path("vlan_id");
    if !id.is_empty() {
        let by_id = id.parse().ok().and_then(|id| networks.vlan(id));
        let named = || specifier::one(&specifier::vlans(networks, id), "VLAN");
        return by_id.map_or_else(named, Ok);
    }
    let fabric = fabric::find(request.path("fabric_id"), fabrics)?;
    let named = specifier::vlans(networks, request.path("vid"));
    let here: Vec<&Vlan> = named
        .into_iter()
        .filter(|vlan| vlan.fabric_id == fabric.id)
        .collect();
    specifier::one(&here, "VLAN")
}

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let fabrics = network::fabrics(&mut db).await?;
    let fabric = fabric::find(request.path("fabric_id"), &fabrics)?;
    let here = networks
        .vlans
        .iter()
        .filter(|vlan| vlan.fabric_id == fabric.id);
    Ok(answer(
        &here.map(|vlan| networks.vlan_view(vlan.id)).collect(),
    ))
}

async fn one(request: &Request, id: i32) -> Reply {
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    Ok(answer(&networks.vlan_view(id)))
}

async fn read(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let fabrics = network::fabrics(&mut db).await?;
    let id = find(&request, &networks, &fabrics)?.id;
    Ok(answer(&networks.vlan_view(id)))
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let vid = form
        .integer("vid")?
        .ok_or_else(|| ApiError::required("vid"))?;
    let new = VlanChange {
        vid: Some(vid),
        ..VlanChange::default()
    };
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let fabrics = network::fabrics(&mut tx).await?;
    let fabric_id = fabric::find(request.path("fabric_id"), &fabrics)?.id;
    let id = network::create_vlan(&mut tx, fabric_id, &new).await?;
    // Everything else is as in a change, rules and all.
    let networks = Networks::load(&mut tx).await?;
    let vlan = networks.vlan(id).ok_or_else(|| ApiError::no_such("VLAN"))?;
    apply(&mut tx, form, vlan, &networks, &fabrics).await?;
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
    let fabrics = network::fabrics(&mut tx).await?;
    let vlan = find(&request, &networks, &fabrics)?;
    apply(&mut tx, &request.form, vlan, &networks, &fabrics).await?;
    let id = vlan.id;
    let mut text = format!("VLAN {id} changed");
    if vlan.dhcp_on && request.form.boolean("dhcp_on")? == Some(false) {
        let with = [format!("{}.{}", vlan.fabric, vlan.name)];
        let with: Vec<String> = with
            .into_iter()
            .chain(relayed_here(vlan, &networks))
            .collect();
        text = format!("{text}: DHCP ends on {}", with.join(", "));
    }
    event(&mut tx, &request, text).await?;
    tx.commit().await?;
    one(&request, id).await
}

/// Makes a VLAN what the form asks for, if the rules let it.
async fn apply(
    tx: &mut PgConnection,
    form: &Form,
    vlan: &Vlan,
    networks: &Networks,
    fabrics: &[Fabric],
) -> Result<(), ApiError> {
    let primary = rack_field(tx, form, "primary_rack").await?;
    let secondary = rack_field(tx, form, "secondary_rack").await?;
    let change = VlanChange {
        vid: form.integer("vid")?,
        fabric_id: fabric_field(form, fabrics)?,
        // "" takes the name away.
        name: form.get("name").map(str::trim),
        description: form.get("description"),
        mtu: form.integer("mtu")?,
        dhcp_on: form.boolean("dhcp_on")?,
        dhcp_mode: form.parsed("dhcp_mode", "Must be serve or proxy.")?,
        primary_rack: primary.as_ref().map(|rack| rack.as_deref()),
        secondary_rack: secondary.as_ref().map(|rack| rack.as_deref()),
        relay_vlan: relay_field(form, networks)?,
    };
    let ranges = network::ranges(&mut *tx).await?;
    let has_dynamic_range = serving::stocked(networks, &ranges).contains(&vlan.id);
    check(vlan, &change, has_dynamic_range, networks)?;
    check_racks(vlan, &change, &Reach::load(tx).await?)?;
    let before = Serving::load(tx).await?;
    network::update_vlan(tx, vlan.id, &change).await?;
    match before.lost(tx).await? {
        Some(lost) => Err(ApiError::bad_request(lost)),
        None => Ok(()),
    }
}

fn fabric_field(form: &Form, fabrics: &[Fabric]) -> Result<Option<i32>, ApiError> {
    let name = if form.has("fabric") {
        "fabric"
    } else {
        "fabric_id"
    };
    let Some(text) = form.filled(name) else {
        return Ok(None);
    };
    let found = specifier::fabrics(fabrics, text);
    Ok(Some(specifier::one_in_field(&found, name, "fabric")?.id))
}

/// By id, or one of MAAS's specifiers; "" is none.
fn relay_field(form: &Form, networks: &Networks) -> Result<Option<Option<i32>>, ApiError> {
    const FIELD: &str = "relay_vlan";
    match form.get(FIELD).map(str::trim) {
        None => Ok(None),
        Some("") => Ok(Some(None)),
        Some(text) => {
            let by_id = text.parse().ok().and_then(|id| networks.vlan(id));
            let found = match by_id {
                Some(vlan) => vec![vlan],
                None if text.parse::<i64>().is_ok() => Vec::new(),
                None => specifier::vlans(networks, text),
            };
            Ok(Some(Some(
                specifier::one_in_field(&found, FIELD, "VLAN")?.id,
            )))
        }
    }
}

/// Which VLANs racks have an address on, and which racks have said where they are.
struct Reach {
    connected: Vec<(i32, String)>,
    known: Vec<String>,
}

impl Reach {
    async fn load(db: &mut PgConnection) -> Result<Self, ApiError> {
        Ok(Self {
            connected: store::rack::connected(&mut *db).await?,
            known: store::rack::all_interfaces(db).await?.into_keys().collect(),
        })
    }

    /// A rack that was never heard of since it enrolled may be anywhere.
    fn may_serve(&self, rack: &str, vlan: i32) -> bool {
        let is_on = |(on, name): &(i32, String)| *on == vlan && name == rack;
        self.connected.iter().any(is_on) || !self.known.iter().any(|known| known == rack)
    }
}

/// A rack serves DHCP on its own links only. Asked where DHCP or a rack of it is being set.
fn check_racks(vlan: &Vlan, change: &VlanChange<'_>, reach: &Reach) -> Result<(), ApiError> {
    let dhcp_on = change.dhcp_on.unwrap_or(vlan.dhcp_on);
    let begins = dhcp_on && !vlan.dhcp_on;
    for (field, said, stands) in [
        ("primary_rack", change.primary_rack, &vlan.primary_rack),
        (
            "secondary_rack",
            change.secondary_rack,
            &vlan.secondary_rack,
        ),
    ] {
        let rack = said.unwrap_or(stands.as_deref());
        let is_new = said.is_some() && rack != stands.as_deref();
        if let Some(rack) = rack
            && dhcp_on
            && (begins || is_new)
            && !reach.may_serve(rack, vlan.id)
        {
            return Err(ApiError::field(
                field,
                format!(
                    "The rack controller {rack} has no address on a subnet of this VLAN: it cannot serve DHCP there."
                ),
            ));
        }
    }
    Ok(())
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
        if let Some(other) = relayed_here(vlan, networks).first() {
            return Err(ApiError::field(
                "relay_vlan",
                format!("{other} is relayed to this VLAN: it cannot be relayed itself."),
            ));
        }
    }
    Ok(())
}

/// The names of the VLANs that are relayed to this one.
fn relayed_here(vlan: &Vlan, networks: &Networks) -> Vec<String> {
    let others = networks.vlans.iter();
    others
        .filter(|other| other.relay_vlan == Some(vlan.id))
        .map(|other| format!("{}.{}", other.fabric, other.name))
        .collect()
}

/// Its interfaces go to the fabric's default VLAN, as MAAS has it. What serves or is still used stays.
async fn delete(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let fabrics = network::fabrics(&mut tx).await?;
    let vlan = find(&request, &networks, &fabrics)?;
    let in_fabric = networks
        .vlans
        .iter()
        .filter(|other| other.fabric_id == vlan.fabric_id);
    let default = in_fabric.min_by_key(|other| other.id).map(|one| one.id);
    let default = match default {
        Some(default) if vlan.vid != 0 && default != vlan.id => default,
        _ => {
            return Err(ApiError::bad_request(
                "This VLAN is the default VLAN in the fabric, it cannot be deleted.",
            ));
        }
    };
    if vlan.dhcp_on {
        return Err(ApiError::bad_request(
            "Cannot delete a VLAN on which DHCP is on. (Disable DHCP first.)",
        ));
    }
    let subnets = networks.subnets.iter();
    let subnets: Vec<String> = subnets
        .filter(|subnet| subnet.vlan_id == vlan.id)
        .map(|subnet| subnet.cidr.to_string())
        .collect();
    if !subnets.is_empty() {
        return Err(ApiError::bad_request(format!(
            "Can't delete VLAN; the following subnets are still present: {}",
            subnets.join(", ")
        )));
    }
    let relayed = relayed_here(vlan, &networks);
    if !relayed.is_empty() {
        return Err(ApiError::bad_request(format!(
            "Can't delete VLAN; the following VLANs are relayed to it: {}",
            relayed.join(", ")
        )));
    }
    network::delete_vlan(&mut tx, vlan.id, default).await?;
    let text = format!(
        "VLAN {} deleted; its interfaces are on {default} now",
        vlan.id
    );
    event(&mut tx, &request, text).await?;
    tx.commit().await?;
    Ok(deleted())
}
