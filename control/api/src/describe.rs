//! `GET describe/`: the table of operations as python-libmaas and the `maas` command read it.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, header};
use ring::digest;
use serde_json::{Value, json};

use crate::App;
use crate::dispatch::{Access, Operation, Resource};

/// The answer. `Content-Type` is compared as a string by clients: no charset.
pub(crate) async fn describe(State(app): State<App>, headers: HeaderMap) -> Response {
    let host = headers
        .get(header::HOST)
        .and_then(|host| host.to_str().ok());
    let scheme = match headers
        .get("x-forwarded-proto")
        .and_then(|value| value.to_str().ok())
    {
        Some("https") => "https",
        _ => "http",
    };
    let origin = format!("{scheme}://{}", host.unwrap_or("localhost:5240"));
    let table = &app.state.table;
    let resources = resources(&table.resources, &origin);
    let handlers: Vec<Value> = resources
        .iter()
        .flat_map(|resource| [&resource["anon"], &resource["auth"]])
        .filter(|handler| !handler.is_null())
        .cloned()
        .collect();
    let description = json!({
        "doc": "MAAS API",
        "hash": table.hash,
        "resources": resources,
        "handlers": handlers,
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        description.to_string(),
    )
        .into_response()
}

/// 40 hex digits that change when the API does (RFC 3174; a name for a version, not a protection).
pub(crate) fn hash(table: &[Resource]) -> String {
    let text = Value::from(resources(table, "")).to_string();
    hex::encode(digest::digest(
        &digest::SHA1_FOR_LEGACY_USE_ONLY,
        text.as_bytes(),
    ))
}

fn resources(table: &[Resource], origin: &str) -> Vec<Value> {
    let mut sorted: Vec<&Resource> = table.iter().collect();
    sorted.sort_by_cached_key(|resource| format!("{}Handler", resource.name));
    sorted
        .into_iter()
        .map(|resource| {
            let all: Vec<&Operation> = resource.operations.iter().collect();
            let open: Vec<&Operation> = resource
                .operations
                .iter()
                .filter(|operation| operation.access == Access::Anonymous)
                .collect();
            let name = format!("{}Handler", resource.name);
            let anon = match open.is_empty() {
                true => Value::Null,
                false => handler(resource, &format!("Anon{name}"), &open, origin),
            };
            json!({ "name": name, "anon": anon, "auth": handler(resource, &name, &all, origin) })
        })
        .collect()
}

fn handler(resource: &Resource, name: &str, operations: &[&Operation], origin: &str) -> Value {
    let path = format!("/MAAS/api/2.0/{}", resource.path);
    let params: Vec<&str> = resource
        .path
        .split('/')
        .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
        .collect();
    let actions: Vec<Value> = operations
        .iter()
        .map(|operation| {
            json!({
                "name": operation.name(),
                "method": operation.method,
                "op": operation.op,
                "restful": operation.op.is_none(),
                "doc": operation.doc,
            })
        })
        .collect();
    json!({
        "name": name,
        "doc": resource.doc,
        "params": params,
        "uri": format!("{origin}{path}"),
        "path": path,
        "actions": actions,
    })
}
