//! `leases/`: who has which address now, and who had it when. Ours: MAAS tells live leases in `ipaddresses/` only.

use std::collections::HashMap;
use std::net::IpAddr;

use lease::ClientKey;
use model::dhcp::Identifier;
use model::{Mac, Permission};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::lease::history::{self, Filter, Stay};
use store::lease::{self as leases, Binding};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::body::Form;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::error::ApiError;
use crate::event::timestamp;
use crate::handler;
use crate::network_view::Networks;

const VIEW: Access = Access::With(Permission::View);
const LIMIT_DEFAULT: u32 = 1_000;
const LIMIT_MAX: u32 = 10_000;

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "Leases",
        path: "leases/",
        aliases: &[],
        doc: "Who has which address, and who had it.",
        operations: vec![
            Operation::new(
                "GET",
                None,
                VIEW,
                "List the live leases by address.\n\n:param subnet: Only of this subnet.\n:param ip: Only this address.\n\
                 :param mac_address: Only of this client.\n:param after: Only addresses above this one.\n\
                 :param limit: At most so many, 1000 unless told, 10000 at most.",
                handler!(list),
            ),
            Operation::new(
                "GET",
                Some("history"),
                VIEW,
                "List who had which address, the newest first; bindings that last are part of it.\n\n\
                 :param subnet: Only of this subnet.\n:param ip: Only this address.\n\
                 :param mac_address: Only of this client.\n:param at: Only what held at this time (RFC 3339).\n\
                 :param after: Only what had not ended by then.\n:param before: Only what had begun by then.\n\
                 :param page: From an answer's next_uri.\n\
                 :param limit: At most so many, 1000 unless told, 10000 at most.",
                handler!(history),
            ),
        ],
    }]
}

/// (mac_address, client_id) of a client.
fn client_view(key: &ClientKey, mac: Option<[u8; 6]>) -> (Option<String>, Option<String>) {
    let id = match key {
        ClientKey::Mac(_) => None,
        ClientKey::ClientId(id) | ClientKey::DuidIaid(id) => Identifier::new(id),
    };
    (
        mac.map(|mac| Mac::new(mac).to_string()),
        id.map(|id| id.to_string()),
    )
}

/// Which machines these MACs are.
async fn machines_of(
    db: &mut PgConnection,
    macs: impl Iterator<Item = Option<[u8; 6]>>,
) -> Result<HashMap<[u8; 6], String>, ApiError> {
    let mut macs: Vec<[u8; 6]> = macs.flatten().collect();
    macs.sort_unstable();
    macs.dedup();
    Ok(store::feed::machines_of_macs(db, &macs)
        .await?
        .into_iter()
        .collect())
}

type Machines = HashMap<[u8; 6], String>;

fn lease_view(binding: &Binding, machines: &Machines, networks: &Networks) -> Value {
    let (mac_address, client_id) = client_view(&binding.client.key, binding.mac);
    let subnet = binding.subnet_id.and_then(|id| networks.subnet(id));
    json!({
        "ip": binding.address,
        "mac_address": mac_address,
        "client_id": client_id,
        "hostname": binding.hostname,
        "system_id": binding.mac.and_then(|mac| machines.get(&mac)),
        "vlan_id": binding.vlan_id,
        "subnet_id": binding.subnet_id,
        "subnet": subnet.map(|subnet| subnet.cidr.to_string()),
        "granted": binding.granted.map(timestamp),
        "ends": timestamp(binding.ends),
        "released": binding.released,
    })
}

fn stay_view(stay: &Stay, machines: &Machines) -> Value {
    let (mac_address, client_id) = client_view(&stay.client.key, stay.mac);
    json!({
        "ip": stay.address,
        "mac_address": mac_address,
        "client_id": client_id,
        "hostname": stay.hostname,
        "system_id": stay.mac.and_then(|mac| machines.get(&mac)),
        "vlan_id": stay.vlan_id,
        "since": timestamp(stay.since),
        "ended": stay.ended.map(timestamp),
        "released": stay.released,
    })
}

//---------------------------------------------------------------- what is asked for

fn limit_of(query: &Form) -> Result<u32, ApiError> {
    let limit: Option<u32> = query.parsed("limit", "Enter a whole number.")?;
    match limit.unwrap_or(LIMIT_DEFAULT) {
        limit @ 1..=LIMIT_MAX => Ok(limit),
        _ => Err(ApiError::field(
            "limit",
            format!("Must be between 1 and {LIMIT_MAX}."),
        )),
    }
}

fn subnet_of(query: &Form, networks: &Networks) -> Result<Option<i32>, ApiError> {
    let Some(wanted) = query.filled("subnet") else {
        return Ok(None);
    };
    match networks.named(wanted) {
        Some(subnet) => Ok(Some(subnet.id)),
        None => Err(ApiError::no_such("Subnet")),
    }
}

fn ip_of(query: &Form, name: &str) -> Result<Option<IpAddr>, ApiError> {
    query.parsed(name, "Enter a valid IPv4 or IPv6 address.")
}

fn mac_of(query: &Form) -> Result<Option<[u8; 6]>, ApiError> {
    let mac: Option<Mac> = query.parsed("mac_address", "Enter a valid MAC address.")?;
    Ok(mac.map(Mac::octets))
}

fn time_of(query: &Form, name: &str) -> Result<Option<OffsetDateTime>, ApiError> {
    let Some(text) = query.filled(name) else {
        return Ok(None);
    };
    // A plus that was not encoded comes as a space.
    match OffsetDateTime::parse(&text.replace(' ', "+"), &Rfc3339) {
        Ok(at) => Ok(Some(at)),
        Err(_) => Err(ApiError::field(
            name,
            "Enter a time as RFC 3339 has it: 2026-01-31T12:00:00Z.",
        )),
    }
}

async fn list(request: Request) -> Reply {
    let query = &request.query;
    let limit = limit_of(query)?;
    let (ip, mac, after) = (ip_of(query, "ip")?, mac_of(query)?, ip_of(query, "after")?);
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let subnet = subnet_of(query, &networks)?;
    let narrow = |binding: &Binding| {
        subnet.is_none_or(|subnet| binding.subnet_id == Some(subnet))
            && mac.is_none_or(|mac| binding.mac == Some(mac))
            && after.is_none_or(|after| binding.address > after)
    };
    // One address and one client have few leases: they are narrowed down here.
    let (bindings, is_page) = match (ip, mac) {
        (Some(ip), _) => {
            let found = leases::binding_of_address(&mut db, ip).await?;
            (found.into_iter().filter(narrow).collect(), false)
        }
        (None, Some(mac)) => {
            let found = leases::bindings_of_mac(&mut db, mac).await?;
            (found.into_iter().filter(narrow).collect(), false)
        }
        (None, None) => (leases::list(&mut db, subnet, after, limit).await?, true),
    };
    let bindings: Vec<Binding> = bindings;
    let machines = machines_of(&mut db, bindings.iter().map(|binding| binding.mac)).await?;
    let is_full = is_page && bindings.len() == limit as usize;
    let last = bindings.last().filter(|_| is_full);
    let next = last.map(|last| page_uri(&request, "after", &last.address.to_string()));
    let views = bindings
        .iter()
        .map(|binding| lease_view(binding, &machines, &networks));
    Ok(answer(&json!({
        "count": bindings.len(),
        "leases": views.collect::<Vec<_>>(),
        "next_uri": next,
    })))
}

async fn history(request: Request) -> Reply {
    let query = &request.query;
    let at = time_of(query, "at")?;
    let page = match query.filled("page").map(|page| page.split_once(',')) {
        None => None,
        Some(page) => {
            let parts = page.and_then(|(since, address)| {
                let since = OffsetDateTime::parse(since, &Rfc3339).ok()?;
                Some((since, address.parse().ok()?))
            });
            let wrong = || ApiError::field("page", "Take this from an answer's next_uri.");
            Some(parts.ok_or_else(wrong)?)
        }
    };
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let filter = Filter {
        subnet_id: subnet_of(query, &networks)?,
        address: ip_of(query, "ip")?,
        mac: mac_of(query)?,
        after: at.or(time_of(query, "after")?),
        before: at.or(time_of(query, "before")?),
        page,
        limit: limit_of(query)?,
    };
    let stays = history::stays(&mut db, &filter).await?;
    let machines = machines_of(&mut db, stays.iter().map(|stay| stay.mac)).await?;
    let last = stays
        .last()
        .filter(|_| stays.len() == filter.limit as usize);
    let next = last.map(|last| {
        let page = format!("{},{}", timestamp(last.since), last.address);
        page_uri(&request, "page", &page)
    });
    let views = stays.iter().map(|stay| stay_view(stay, &machines));
    Ok(answer(&json!({
        "count": stays.len(),
        "history": views.collect::<Vec<_>>(),
        "next_uri": next,
    })))
}

/// The same query from another place on.
fn page_uri(request: &Request, name: &str, value: &str) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let encoded = |text: &str| utf8_percent_encode(text, NON_ALPHANUMERIC).to_string();
    let mut uri = "/MAAS/api/2.0/leases/?".to_owned();
    for (field, value) in request.query.fields() {
        if field != name && !field.starts_with("oauth_") {
            uri.push_str(&format!("{}={}&", encoded(field), encoded(value)));
        }
    }
    uri.push_str(&format!("{name}={}", encoded(value)));
    uri
}
