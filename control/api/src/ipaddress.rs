//! `ipaddresses/`: addresses in use, which are the live leases.

use model::{Mac, Permission};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::lease;

use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::error::ApiError;
use crate::event::timestamp;
use crate::handler;
use crate::network_view::Networks;

/// Addresses in one answer.
pub const LEASES_MAX: u32 = 100_000;
/// MAAS's allocation type "discovered": what DHCP handed out.
const DISCOVERED: u8 = 6;

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "IPAddresses",
        path: "ipaddresses/",
        aliases: &[],
        doc: "List IP addresses in use.",
        operations: vec![Operation::new(
            "GET",
            None,
            Access::With(Permission::View),
            "List IP addresses in use.\n\n:param ip: Only this address.",
            handler!(list),
        )],
    }]
}

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let mut views = views(&mut db, &networks, None).await?;
    if let Some(ip) = request.query.filled("ip") {
        views.retain(|view| view["ip"] == ip);
    }
    Ok(answer(&views.into()))
}

/// The live leases of a subnet, or all.
pub async fn views(
    db: &mut PgConnection,
    networks: &Networks,
    subnet_id: Option<i32>,
) -> Result<Vec<Value>, ApiError> {
    let bindings = lease::list(db, subnet_id, None, LEASES_MAX).await?;
    Ok(bindings
        .iter()
        .map(|binding| {
            let subnet = binding.subnet_id.and_then(|id| networks.subnet(id));
            json!({
                "alloc_type": DISCOVERED,
                "alloc_type_name": "Discovered",
                "created": binding.granted.map(timestamp),
                "hostname": binding.hostname,
                "ip": binding.address,
                "subnet": subnet.map(|subnet| networks.subnet_view(subnet)),
                "owner": null,
                "interface_set": [],
                // Ours.
                "mac_address": binding.mac.map(|mac| Mac::new(mac).to_string()),
                "ends": timestamp(binding.ends),
                "resource_uri": "/MAAS/api/2.0/ipaddresses/",
            })
        })
        .collect())
}
