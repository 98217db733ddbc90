//! `rackcontrollers/`: racks, and operations of ours: enrolment tokens, revocation, what a rack counts.

use std::collections::BTreeMap;

use link::LinkError;
use model::{EventType, NodeType, POWER_TYPES, Parameter, ParameterKind, Permission};
use serde_json::{Value, json};
use store::event::{self, NewEvent};
use store::rack::{self, Interface, Rack};
use time::OffsetDateTime;

use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::error::ApiError;
use crate::event::timestamp;
use crate::lacking::{Lacking, ZONE, fixed, lacks};
use crate::network_view::Networks;
use crate::rack_filter::{ARCHITECTURE, RackFilter};
use crate::{constant, domain, handler, machine_filter, rack_delete};

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditRacks);

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "RackControllers",
            path: "rackcontrollers/",
            aliases: &[],
            doc: "Manage all rack controllers.",
            operations: vec![
                Operation::new(
                    "GET",
                    None,
                    VIEW,
                    "List rack controllers.\n\n:param hostname: Only these.\n:param id: Only these system ids.\n\
                     :param mac_address: Only with these MAC addresses.\n:param domain: Only in these domains.\n\
                     :param arch: Only of these architectures.\n:param zone: Only in these zones.\n\
                     :param fabrics: Only on these fabrics.\n:param vlans: Only on these VLANs.\n\
                     :param subnets: Only on each of these subnets.\n\
                     Most have a counterpart that leaves out: not_hostname, not_subnets, not_in_zone.",
                    handler!(list),
                )
                .lacking(machine_filter::RACKS_LACKING),
                Operation::new(
                    "GET",
                    Some("describe_power_types"),
                    VIEW,
                    "List the power types and their parameters.",
                    handler!(describe_power_types),
                ),
                Operation::new(
                    "POST",
                    Some("create_token"),
                    EDIT,
                    "Create a one-time token that enrols a rack within 24 hours.\n\n\
                     :param hostname: Only a rack of this name may use it.",
                    handler!(create_token),
                ),
            ],
        },
        Resource {
            name: "RackController",
            path: "rackcontrollers/{system_id}/",
            aliases: &[],
            doc: "Manage a rack controller.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a rack controller.", handler!(read)),
                Operation::new(
                    "PUT",
                    None,
                    EDIT,
                    "Update a rack controller.\n\n:param description: A description.",
                    handler!(update),
                )
                .lacking(LACKING),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Forget a rack controller. Its VLANs go on by another rack; where there is none, it stays.\n\n\
                     :param force: Also where DHCP ends with it.",
                    handler!(rack_delete::delete),
                ),
                Operation::new(
                    "GET",
                    Some("dhcp_stats"),
                    VIEW,
                    "Ask a rack what its DHCP has counted: sent, granted, and not answered by reason.",
                    handler!(dhcp_stats),
                ),
                Operation::new(
                    "POST",
                    Some("revoke"),
                    EDIT,
                    "End a rack's certificates; its links close at once.",
                    handler!(rack_delete::revoke),
                ),
            ],
        },
    ]
}

const LACKING: &[Lacking] = &[
    ZONE,
    fixed("domain", &[constant::DOMAIN, "0"]),
    lacks("power_type"),
    lacks("power_parameters"),
    // It asks for nothing by itself.
    fixed(
        "power_parameters_skip_check",
        &["true", "false", "True", "False", "1", "0"],
    ),
    lacks("power_parameters_*"),
];

/// A rack's last word older than this: it is not there.
const ALIVE_SECS: i64 = 30;

pub(crate) fn is_alive(rack: &Rack, now: OffsetDateTime) -> bool {
    let heard = |seen: OffsetDateTime| (now - seen).whole_seconds() < ALIVE_SECS;
    rack.revoked.is_none() && rack.last_seen.is_some_and(heard)
}

fn view(rack: &Rack, interfaces: &[Interface], now: OffsetDateTime) -> Value {
    let is_alive = is_alive(rack, now);
    let addresses: Vec<String> = interfaces
        .iter()
        .flat_map(|interface| &interface.addresses)
        .map(|address| address.ip().to_string())
        .collect();
    let interface_set: Vec<Value> = interfaces
        .iter()
        .enumerate()
        .map(|(index, interface)| {
            let links: Vec<Value> = interface
                .addresses
                .iter()
                .map(|address| json!({"mode": "static", "ip_address": address.ip()}))
                .collect();
            json!({
                "id": index,
                "name": interface.name,
                "type": "physical",
                "mac_address": interface.mac.map(|mac| mac.to_string().to_ascii_lowercase()),
                "links": links,
                "system_id": rack.system_id,
            })
        })
        .collect();
    let state = if is_alive { "running" } else { "dead" };
    json!({
        "system_id": rack.system_id,
        "hostname": rack.hostname,
        "fqdn": format!("{}.{}", rack.hostname, constant::DOMAIN),
        "description": rack.description,
        "domain": domain::view(0, constant::DOMAIN),
        "zone": constant::zone(),
        "architecture": ARCHITECTURE,
        "node_type": NodeType::Rack.number(),
        "node_type_name": NodeType::Rack.name(),
        "ip_addresses": addresses,
        "interface_set": interface_set,
        "service_set": [{"name": "rackd", "status": state, "status_info": ""}],
        "tag_names": [],
        "version": rack.version,
        // Ours.
        "connected": is_alive,
        "last_seen": rack.last_seen.map(timestamp),
        "revoked": rack.revoked.map(timestamp),
        "resource_uri": format!("/MAAS/api/2.0/rackcontrollers/{}/", rack.system_id),
    })
}

async fn list(request: Request) -> Reply {
    machine_filter::check_names(&request.query)?;
    let mut db = request.app.db().await?;
    let now = OffsetDateTime::now_utc();
    let networks = Networks::load(&mut db).await?;
    let filter = RackFilter::read(&request.query, &networks)?;
    let all = rack::all_interfaces(&mut *db).await?;
    let racks = rack::list(&mut *db).await?;
    let views = racks
        .iter()
        .map(|rack| {
            (
                rack,
                all.get(&rack.system_id).map_or(&[][..], Vec::as_slice),
            )
        })
        .filter(|(rack, interfaces)| filter.holds(rack, interfaces, &networks))
        .map(|(rack, interfaces)| view(rack, interfaces, now));
    Ok(answer(&views.collect()))
}

async fn read(request: Request) -> Reply {
    one(&request).await
}

async fn one(request: &Request) -> Reply {
    Ok(answer(&one_view(request).await?))
}

pub(crate) async fn one_view(request: &Request) -> Result<Value, ApiError> {
    let mut db = request.app.db().await?;
    let rack = rack::get(&mut *db, request.path("system_id")).await?;
    let interfaces = rack::interfaces(&mut *db, &rack.system_id).await?;
    Ok(view(&rack, &interfaces, OffsetDateTime::now_utc()))
}

async fn update(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    if let Some(description) = request.form.get("description") {
        rack::set_description(&mut *db, request.path("system_id"), description).await?;
    }
    drop(db);
    one(&request).await
}

//---------------------------------------------------------------- what a rack counts

async fn dhcp_stats(request: Request) -> Reply {
    let id = request.path("system_id");
    let rack = rack::get(&mut *request.app.db().await?, id).await?;
    let stats = request.app.racks.stats(&rack.system_id).await;
    let stats = stats.map_err(|error| match error {
        LinkError::NotConnected => ApiError::Unavailable("The rack is not linked to this region."),
        error => {
            tracing::warn!(rack = id, %error, "asking a rack what it counts");
            ApiError::Unavailable("The rack did not answer.")
        }
    })?;
    let mut view = stats_view(&stats);
    view["system_id"] = rack.system_id.into();
    view["hostname"] = rack.hostname.into();
    Ok(answer(&view))
}

/// The DHCP counters, all shards together; drops by reason.
fn stats_view(stats: &[(String, u64)]) -> Value {
    let (mut counters, mut drops) = (BTreeMap::new(), BTreeMap::new());
    for (name, value) in stats {
        let (name, labels) = name.split_once('{').unwrap_or((name, ""));
        let reason = labels
            .split_once("reason=\"")
            .and_then(|(_, rest)| rest.split_once('"'));
        let (map, key): (&mut BTreeMap<&str, u64>, &str) = match (name, reason) {
            ("dhcp_dropped_total", Some((reason, _))) => (&mut drops, reason),
            _ if name.starts_with("dhcp_") || name.starts_with("shard_dhcp_") => {
                (&mut counters, name)
            }
            _ => continue,
        };
        let sum = map.entry(key).or_default();
        *sum = sum.saturating_add(*value);
    }
    json!({ "counters": counters, "drops": drops })
}

async fn create_token(request: Request) -> Reply {
    let hostname = request.form.filled("hostname");
    let is_fine = |name: &str| {
        name.len() <= 253
            && name
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
    };
    if hostname.is_some_and(|name| !is_fine(name)) {
        return Err(ApiError::field("hostname", "Enter a valid hostname."));
    }
    let by = request.caller.as_ref().map(|caller| caller.id);
    let app = &request.app;
    let mut tx = app.begin().await?;
    let token = app
        .racks
        .create_token(&mut tx, hostname, by)
        .await
        .map_err(ApiError::internal)?;
    let text = match hostname {
        Some(hostname) => format!("Enrolment token for {hostname} created"),
        None => "Enrolment token created".to_owned(),
    };
    let event = NewEvent::new(EventType::RackTokenCreated)
        .by(request.username())
        .text(text);
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    let expires = OffsetDateTime::now_utc() + link::token::VALID;
    Ok(answer(
        &json!({ "token": token.text(), "expires": timestamp(expires) }),
    ))
}

//---------------------------------------------------------------- power types

fn parameter_view(parameter: &Parameter) -> Value {
    let (field_type, choices) = match parameter.kind {
        ParameterKind::Text => ("string", &[][..]),
        ParameterKind::Secret => ("password", &[][..]),
        ParameterKind::MacAddress => ("mac_address", &[][..]),
        ParameterKind::Choice(choices) => ("choice", choices),
    };
    let choices: Vec<Value> = choices
        .iter()
        .map(|choice| json!([choice, choice]))
        .collect();
    json!({
        "name": parameter.name,
        "label": parameter.label,
        "required": parameter.required,
        "field_type": field_type,
        "choices": choices,
        "default": parameter.default,
        "scope": "bmc",
        "secret": parameter.kind == ParameterKind::Secret,
    })
}

async fn describe_power_types(_: Request) -> Reply {
    let types: Vec<Value> = POWER_TYPES
        .iter()
        .map(|power_type| {
            let fields: Vec<Value> = power_type.parameters().iter().map(parameter_view).collect();
            json!({
                "name": power_type.as_str(),
                "description": power_type.description(),
                "driver_type": "power",
                "fields": fields,
                "missing_packages": [],
                "can_probe": false,
                "chassis": false,
                "queryable": power_type.is_driven(),
            })
        })
        .collect();
    Ok(answer(&types.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shards_are_added_up_and_drops_are_told_by_reason() {
        let stats = [
            ("dhcp_acks_total{shard=\"0\"}", 3),
            ("dhcp_acks_total{shard=\"1\"}", 4),
            ("dhcp_dropped_total{shard=\"0\",reason=\"mute\"}", 1),
            ("dhcp_dropped_total{shard=\"1\",reason=\"mute\"}", u64::MAX),
            ("tftp_requests_total{shard=\"0\"}", 9),
            ("machines", 5),
            ("dhcp_odd{", 1),
        ];
        let stats: Vec<(String, u64)> = stats
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        assert_eq!(
            stats_view(&stats),
            json!({
                "counters": {"dhcp_acks_total": 7, "dhcp_odd": 1},
                "drops": {"mute": u64::MAX},
            })
        );
    }
}
