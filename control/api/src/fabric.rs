//! `fabrics/`.

use model::{EventType, Permission};
use serde_json::Value;
use sqlx::PgConnection;
use store::event::{self, NewEvent};
use store::network::{self, Fabric};

use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::handler;
use crate::network_view::Networks;
use crate::specifier;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "Fabrics",
            path: "fabrics/",
            aliases: &[],
            doc: "Manage fabrics.",
            operations: vec![
                Operation::new("GET", None, VIEW, "List fabrics.", handler!(list)),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Create a fabric with its untagged VLAN.\n\n:param name: Its name.\n\
                     :param description: A description.\n:param class_type: Its class.",
                    handler!(create),
                ),
            ],
        },
        Resource {
            name: "Fabric",
            path: "fabrics/{id}/",
            aliases: &[],
            doc: "Manage a fabric.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a fabric.", handler!(read)),
                Operation::new(
                    "PUT",
                    None,
                    EDIT,
                    "Update a fabric.\n\n:param name: Its name.\n:param description: A description.\n\
                     :param class_type: Its class.",
                    handler!(update),
                ),
                Operation::new("DELETE", None, EDIT, "Delete a fabric.", handler!(delete)),
            ],
        },
    ]
}

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let fabrics = network::fabrics(&mut db).await?;
    Ok(answer(
        &fabrics
            .iter()
            .map(|fabric| networks.fabric_view(fabric))
            .collect(),
    ))
}

async fn one(request: &Request, id: i32) -> Result<Value, ApiError> {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let fabrics = network::fabrics(&mut db).await?;
    let fabric = fabrics.iter().find(|fabric| fabric.id == id);
    Ok(networks.fabric_view(fabric.ok_or_else(|| ApiError::no_such("Fabric"))?))
}

/// The fabric that a path names, by any of MAAS's specifiers.
pub(crate) fn find<'a>(text: &str, fabrics: &'a [Fabric]) -> Result<&'a Fabric, ApiError> {
    specifier::one(&specifier::fabrics(fabrics, text), "Fabric")
}

/// Its id.
async fn id_of(db: &mut PgConnection, request: &Request) -> Result<i32, ApiError> {
    Ok(find(request.path("id"), &network::fabrics(db).await?)?.id)
}

async fn read(request: Request) -> Reply {
    let id = id_of(&mut *request.app.db().await?, &request).await?;
    Ok(answer(&one(&request, id).await?))
}

/// Names are shown in paths and texts: no numbers, nothing odd.
fn checked_name(name: Option<&str>) -> Result<Option<&str>, ApiError> {
    let fine = |name: &str| {
        name.len() <= 256
            && name.parse::<i64>().is_err()
            && name
                .chars()
                .all(|c| c.is_alphanumeric() || " -_.".contains(c))
    };
    match name {
        Some(name) if !fine(name) => Err(ApiError::field("name", "Invalid fabric name.")),
        name => Ok(name),
    }
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let name = checked_name(form.filled("name"))?;
    let (description, class_type) = (
        form.get("description").unwrap_or(""),
        form.get("class_type").unwrap_or(""),
    );
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let id = network::create_fabric(&mut tx, name, description, class_type).await?;
    event::record(&mut tx, changed(&request, format!("Fabric {id} created"))).await?;
    tx.commit().await?;
    Ok(answer(&one(&request, id).await?))
}

async fn update(request: Request) -> Reply {
    let form = &request.form;
    let name = checked_name(form.filled("name"))?;
    let mut tx = request.app.begin().await?;
    let id = id_of(&mut tx, &request).await?;
    network::update_fabric(
        &mut tx,
        id,
        name,
        form.get("description"),
        form.get("class_type"),
    )
    .await?;
    event::record(&mut tx, changed(&request, format!("Fabric {id} changed"))).await?;
    tx.commit().await?;
    Ok(answer(&one(&request, id).await?))
}

async fn delete(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let id = id_of(&mut tx, &request).await?;
    let networks = Networks::load(&mut tx).await?;
    let here = |vlan: Option<i32>| {
        let vlan = vlan.and_then(|vlan| networks.vlan(vlan));
        vlan.is_some_and(|vlan| vlan.fabric_id == id)
    };
    let subnets = networks.subnets.iter();
    let subnets: Vec<String> = subnets
        .filter(|subnet| here(Some(subnet.vlan_id)))
        .map(|subnet| subnet.cidr.to_string())
        .collect();
    let vlans = networks.vlans.iter().filter(|vlan| here(Some(vlan.id)));
    let serving: Vec<String> = vlans
        .filter(|vlan| vlan.dhcp_on)
        .map(|vlan| vlan.id.to_string())
        .collect();
    let others = networks.vlans.iter().filter(|vlan| !here(Some(vlan.id)));
    let relayed: Vec<String> = others
        .filter(|vlan| here(vlan.relay_vlan))
        .map(|vlan| vlan.id.to_string())
        .collect();
    for (what, found) in [
        ("the following subnets are still present", subnets),
        ("DHCP is on on the following VLANs", serving),
        ("the following VLANs are relayed to it", relayed),
        (
            "the following interfaces are still connected",
            network::interfaces_of_fabric(&mut tx, id).await?,
        ),
    ] {
        if !found.is_empty() {
            return Err(ApiError::bad_request(format!(
                "Can't delete fabric; {what}: {}",
                found.join(", ")
            )));
        }
    }
    network::delete_fabric(&mut tx, id).await?;
    event::record(&mut tx, changed(&request, format!("Fabric {id} deleted"))).await?;
    tx.commit().await?;
    Ok(deleted())
}

/// The audit event of a change to networks.
pub(crate) fn changed(request: &Request, text: String) -> NewEvent {
    NewEvent::new(EventType::NetworkChanged)
        .by(request.username())
        .text(text)
}
