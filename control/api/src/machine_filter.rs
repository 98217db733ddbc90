//! Which machines or racks a list is asked for: MAAS's filters of nodes.
//!
//! As in MAAS a name that is no filter is refused here, so that a slip of the pen does not list everything.

use std::collections::BTreeMap;

use model::{MachineStatus, PowerState};
use sqlx::PgConnection;
use store::machine::Filter;

use crate::body::Form;
use crate::error::ApiError;
use crate::lacking::{Lacking, lacks};
use crate::network_view::Networks;
use crate::specifier;

/// MAAS's filters of nodes that lists here apply or, by [`LACKING`], refuse.
const KNOWN: [&str; 50] = [
    "agent_name",
    "arch",
    "cpu_count",
    "cpu_speed",
    "deployment_target",
    "devices",
    "domain",
    "fabric_classes",
    "fabrics",
    "hostname",
    "id",
    "interfaces",
    "link_speed",
    "mac_address",
    "mem",
    "not_agent_name",
    "not_arch",
    "not_deployment_target",
    "not_domain",
    "not_fabric_classes",
    "not_fabrics",
    "not_hostname",
    "not_id",
    "not_in_pool",
    "not_in_zone",
    "not_owner",
    "not_power_state",
    "not_simple_status",
    "not_status",
    "not_subnets",
    "not_system_id",
    "not_tags",
    "not_vlans",
    "owner",
    "pool",
    "power_state",
    "simple_status",
    "status",
    "storage",
    "subnets",
    "system_id",
    "tags",
    "vlans",
    "zone",
    // What MAAS takes and leaves alone.
    "bridge_all",
    "bridge_fd",
    "bridge_stp",
    "bridge_type",
    "comment",
    "op",
];

/// Constraints in MAAS's little languages.
pub const LACKING: &[Lacking] = &[lacks("storage"), lacks("interfaces"), lacks("devices")];

/// What is known of racks is less.
pub const RACKS_LACKING: &[Lacking] = &[
    lacks("storage"),
    lacks("interfaces"),
    lacks("devices"),
    lacks("cpu_count"),
    lacks("cpu_speed"),
    lacks("mem"),
    lacks("link_speed"),
    lacks("fabric_classes"),
    lacks("not_fabric_classes"),
    lacks("owner"),
    lacks("not_owner"),
    lacks("power_state"),
    lacks("not_power_state"),
    lacks("deployment_target"),
    lacks("not_deployment_target"),
    lacks("status"),
    lacks("not_status"),
    lacks("simple_status"),
    lacks("not_simple_status"),
];

/// Refuses a name that is no filter, in MAAS's words.
pub fn check_names(query: &Form) -> Result<(), ApiError> {
    let is_known = |name: &str| KNOWN.contains(&name) || name.starts_with("oauth_");
    let unknown: BTreeMap<String, Vec<String>> = query
        .fields()
        .filter(|(name, _)| !is_known(name))
        .map(|(name, _)| {
            let shown = name.chars().take(64).collect();
            (shown, vec!["No such constraint.".to_owned()])
        })
        .collect();
    match unknown.is_empty() {
        true => Ok(()),
        false => Err(ApiError::Validation(unknown)),
    }
}

fn shown(text: &str) -> String {
    text.chars().take(64).collect()
}

/// The filled values of a filter. MAAS lets `=` stand before a word.
fn values<'a>(query: &'a Form, name: &'a str) -> impl Iterator<Item = &'a str> {
    let values = query
        .all(name)
        .map(|value| value.strip_prefix('=').unwrap_or(value).trim());
    values.filter(|value| !value.is_empty())
}

fn texts(query: &Form, name: &str) -> Vec<String> {
    values(query, name).map(str::to_owned).collect()
}

fn words<T>(query: &Form, name: &str, word: impl Fn(&str) -> Vec<T>) -> Result<Vec<T>, ApiError> {
    let mut found = Vec::new();
    for text in values(query, name).flat_map(|value| value.split([',', ' '])) {
        let meant = word(text.strip_prefix('=').unwrap_or(text));
        if meant.is_empty() && !text.is_empty() {
            let text = shown(text);
            return Err(ApiError::field(
                name,
                format!("'{text}' is not a valid {name}."),
            ));
        }
        found.extend(meant);
    }
    Ok(found)
}

fn statuses_of(word: &str) -> Vec<MachineStatus> {
    let is = |status: &MachineStatus| {
        status.filter_word() == word || status.number().to_string() == word
    };
    MachineStatus::ALL.into_iter().filter(is).collect()
}

/// The statuses of one of MAAS's simple ones.
fn simple_statuses_of(word: &str) -> Vec<MachineStatus> {
    let word = word.to_ascii_lowercase().replace('_', " ");
    let is = |status: &MachineStatus| status.simple_name().to_ascii_lowercase() == word;
    MachineStatus::ALL.into_iter().filter(is).collect()
}

fn number(query: &Form, name: &str) -> Result<Option<f64>, ApiError> {
    let wrong = || ApiError::field(name, format!("Invalid {name}: number required."));
    let mut least: Option<f64> = None;
    for value in values(query, name) {
        let value: f64 = value.parse().map_err(|_| wrong())?;
        if !value.is_finite() {
            return Err(wrong());
        }
        // Each must hold: the greatest does for all.
        least = Some(least.map_or(value, |least| least.max(value)));
    }
    Ok(least)
}

/// One list of statuses that fulfils both filters; `None` if nothing does.
fn both(statuses: Vec<MachineStatus>, simple: Vec<MachineStatus>) -> Option<Vec<MachineStatus>> {
    if statuses.is_empty() || simple.is_empty() {
        return Some(if statuses.is_empty() {
            simple
        } else {
            statuses
        });
    }
    let both: Vec<_> = statuses
        .into_iter()
        .filter(|status| simple.contains(status))
        .collect();
    (!both.is_empty()).then_some(both)
}

/// Filters by what is the same for every node here: its zone, its pool, no tag, no agent. `false`: no node meets them.
pub fn constants(query: &Form) -> bool {
    let is_default = |value: &str| value == "default";
    let has = |name: &str| values(query, name).next().is_some();
    let named = |name: &str| values(query, name).any(is_default);
    let meets = |name: &str| !has(name) || named(name);
    meets("zone")
        && meets("pool")
        && !named("not_in_zone")
        && !named("not_in_pool")
        && !has("tags")
        && !has("agent_name")
}

/// Of each value of the filter, the networks that it names; what names none is refused, as MAAS does.
fn named(
    query: &Form,
    name: &str,
    kind: &str,
    ids: impl Fn(&str) -> Vec<i32>,
) -> Result<Vec<Vec<i32>>, ApiError> {
    values(query, name)
        .map(|text| match ids(text) {
            ids if ids.is_empty() => {
                Err(ApiError::field(name, format!("No matching {kind} found.")))
            }
            ids => Ok(ids),
        })
        .collect()
}

/// Where a node's interfaces may be.
pub struct Places {
    /// Any of them.
    pub vlans: Vec<i32>,
    /// Each of these.
    pub subnets: Vec<Vec<i32>>,
}

/// The networks of the filters whose names begin with `not`, which is "" or "not_".
pub fn places(query: &Form, networks: &Networks, not: &str) -> Result<Places, ApiError> {
    let subnets = |text: &str| {
        let found = specifier::subnets(networks, text);
        found.iter().map(|subnet| subnet.id).collect()
    };
    let vlans = |text: &str| {
        let found = specifier::vlans(networks, text);
        found.iter().map(|vlan| vlan.id).collect()
    };
    Ok(Places {
        vlans: named(query, &format!("{not}vlans"), "VLANs", vlans)?.concat(),
        subnets: named(query, &format!("{not}subnets"), "subnets", subnets)?,
    })
}

/// What the machines of a list must be; `None`: no machine here can be so.
pub async fn of_machines(db: &mut PgConnection, query: &Form) -> Result<Option<Filter>, ApiError> {
    check_names(query)?;
    let mut possible = constants(query);
    // No machine here runs from memory.
    let target = |word: &str| match word {
        "memory" | "disk" => vec![word == "disk"],
        _ => Vec::new(),
    };
    let wanted = words(query, "deployment_target", target)?;
    possible &= wanted.is_empty() || wanted.contains(&true);
    possible &= !words(query, "not_deployment_target", target)?.contains(&true);
    let names_networks = ["vlans", "subnets", "not_vlans", "not_subnets"]
        .into_iter()
        .any(|name| query.has(name));
    let networks = match names_networks {
        true => Networks::load(db).await?,
        false => Networks::none(),
    };
    let Some(filter) = parts(query, &networks, "")? else {
        return Ok(None);
    };
    let not = parts(query, &networks, "not_")?.unwrap_or_default();
    Ok(possible.then(|| Filter {
        not: Some(Box::new(not)),
        ..filter
    }))
}

/// The parts whose filters' names begin with `not`, which is "" or "not_".
fn parts(query: &Form, networks: &Networks, not: &str) -> Result<Option<Filter>, ApiError> {
    let name = |name: &str| format!("{not}{name}");
    let texts = |filter: &str| texts(query, &name(filter));
    let power_state = |word: &str| word.parse::<PowerState>().into_iter().collect();
    let mut ids = texts("id");
    ids.extend(texts("system_id"));
    let macs = words(query, &name("mac_address"), |text| {
        text.parse().into_iter().collect()
    })?;
    let statuses = words(query, &name("status"), statuses_of)?;
    let simple = words(query, &name("simple_status"), simple_statuses_of)?;
    let statuses = match not {
        "" => both(statuses, simple),
        // Neither of them.
        _ => Some([statuses, simple].concat()),
    };
    let Some(statuses) = statuses else {
        return Ok(None);
    };
    let places = places(query, networks, not)?;
    let number = |filter: &str| match not {
        "" => number(query, filter),
        _ => Ok(None),
    };
    Ok(Some(Filter {
        ids,
        hostnames: texts("hostname"),
        macs,
        domains: texts("domain"),
        architectures: query.list(&name("arch")).map(str::to_owned).collect(),
        owners: texts("owner"),
        statuses,
        power_states: words(query, &name("power_state"), power_state)?,
        fabrics: texts("fabrics"),
        fabric_classes: texts("fabric_classes"),
        vlans: match places.vlans.is_empty() {
            true => Vec::new(),
            false => vec![places.vlans],
        },
        subnets: places.subnets,
        cpu_count: number("cpu_count")?,
        cpu_speed: number("cpu_speed")?,
        memory_mib: number("mem")?,
        link_speed: number("link_speed")?,
        not: None,
    }))
}
