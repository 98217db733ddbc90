//! What MAAS has and this region has one of, read-only: the default zone and pool; no spaces, tags,
//! devices. Clients read these lists and fail without them.

use model::Permission;
use serde_json::{Value, json};

use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::error::ApiError;
use crate::{handler, machine_filter};

const VIEW: Access = Access::With(Permission::View);
/// The domain that machines have until another is given.
pub const DOMAIN: &str = "maas";

pub fn zone() -> Value {
    json!({"name": "default", "description": "", "id": 1, "resource_uri": "/MAAS/api/2.0/zones/default/"})
}

pub fn pool() -> Value {
    json!({
        "name": "default",
        "description": "Default pool",
        "id": 0,
        "resource_uri": "/MAAS/api/2.0/resourcepool/0/",
    })
}

fn resource(
    name: &'static str,
    path: &'static str,
    doc: &'static str,
    handler: crate::dispatch::Handler,
) -> Resource {
    let operation = Operation::new("GET", None, VIEW, doc, handler);
    Resource {
        name,
        path,
        aliases: &[],
        doc,
        operations: vec![operation],
    }
}

pub fn resources() -> Vec<Resource> {
    vec![
        resource("Zones", "zones/", "List physical zones.", handler!(zones)),
        resource(
            "Zone",
            "zones/{name}/",
            "Read a physical zone.",
            handler!(one_zone),
        ),
        resource(
            "ResourcePools",
            "resourcepools/",
            "List resource pools.",
            handler!(pools),
        ),
        resource(
            "ResourcePool",
            "resourcepool/{id}/",
            "Read a resource pool.",
            handler!(one_pool),
        ),
        resource("Spaces", "spaces/", "List network spaces.", handler!(empty)),
        resource("Tags", "tags/", "List tags.", handler!(empty)),
        resource("Devices", "devices/", "List devices.", handler!(devices)),
        resource(
            "StaticRoutes",
            "static-routes/",
            "List static routes.",
            handler!(empty),
        ),
    ]
}

/// None, whatever they are asked for; a name that is no filter of nodes is refused as in MAAS.
async fn devices(request: Request) -> Reply {
    machine_filter::check_names(&request.query)?;
    empty(request).await
}

async fn empty(_: Request) -> Reply {
    Ok(answer(&json!([])))
}

async fn zones(_: Request) -> Reply {
    Ok(answer(&json!([zone()])))
}

async fn one_zone(request: Request) -> Reply {
    match request.path("name") {
        "default" => Ok(answer(&zone())),
        _ => Err(ApiError::no_such("Zone")),
    }
}

async fn pools(_: Request) -> Reply {
    Ok(answer(&json!([pool()])))
}

async fn one_pool(request: Request) -> Reply {
    match request.path("id") {
        "0" | "default" => Ok(answer(&pool())),
        _ => Err(ApiError::no_such("ResourcePool")),
    }
}
