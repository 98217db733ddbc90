//! `ipranges/`: what of a subnet is handed out by DHCP, and what is kept from it.

use std::net::IpAddr;

use model::Permission;
use serde_json::json;
use store::lease;
use store::network::{self, NewRange, Range, Subnet};

use crate::body::Form;
use crate::dhcp::lease_field;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::handler;
use crate::network_view::{Networks, host_span, number_of};
use crate::serving::Serving;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);
/// Addresses of one dynamic range: a /8.
const DYNAMIC_ADDRESSES_MAX: u128 = 1 << 24;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "IPRanges",
            path: "ipranges/",
            aliases: &[],
            doc: "Manage IP ranges.",
            operations: vec![
                Operation::new("GET", None, VIEW, "List IP ranges.", handler!(list)),
                Operation::new(
                    "GET",
                    Some("usage"),
                    VIEW,
                    "Count what became of the addresses of the dynamic ranges.\n\n:param subnet: Only of this subnet.",
                    handler!(usage),
                ),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Create an IP range.\n\n:param type: \"dynamic\" or \"reserved\".\n\
                     :param start_ip: Its first address.\n:param end_ip: Its last address.\n\
                     :param subnet: Its subnet, unless the addresses say it.\n:param comment: A comment.\n\
                     :param lease_secs: Length of a lease from it, 30 to 86400, in place of the subnet's.\n\
                     :param exclude: A reserved range may lie inside a dynamic one, and takes its addresses from it.\n\
                     :param force: Also when nothing is left to hand out on a VLAN that DHCP serves.",
                    handler!(create),
                ),
            ],
        },
        Resource {
            name: "IPRange",
            path: "ipranges/{id}/",
            aliases: &[],
            doc: "Manage an IP range.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read an IP range.", handler!(read)),
                Operation::new(
                    "PUT",
                    None,
                    EDIT,
                    "Update an IP range.\n\n:param start_ip: Its first address.\n\
                     :param end_ip: Its last address.\n:param comment: A comment.\n\
                     :param lease_secs: Length of a lease from it; empty: the subnet's.\n\
                     :param exclude: A reserved range may lie inside a dynamic one, and takes its addresses from it.\n\
                     :param force: Also when nothing is left to hand out on a VLAN that DHCP serves.",
                    handler!(update),
                ),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete an IP range.\n\n:param force: Also the only dynamic range of a VLAN that DHCP serves.",
                    handler!(delete),
                ),
            ],
        },
    ]
}

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let ranges = network::ranges(&mut db).await?;
    Ok(answer(
        &ranges
            .iter()
            .map(|range| networks.range_view(range))
            .collect(),
    ))
}

async fn usage(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let subnet = match request.query.filled("subnet") {
        None => None,
        Some(wanted) => {
            let subnet = networks.named(wanted);
            Some(subnet.ok_or_else(|| ApiError::no_such("Subnet"))?.id)
        }
    };
    let ranges = lease::usage::usage(&mut db).await?;
    let views = ranges
        .iter()
        .filter(|range| subnet.is_none_or(|subnet| range.subnet_id == subnet))
        .map(|range| {
            let subnet = networks.subnet(range.subnet_id);
            json!({
                "id": range.range_id,
                "subnet_id": range.subnet_id,
                "subnet": subnet.map(|subnet| subnet.cidr.to_string()),
                "start_ip": range.start_ip,
                "end_ip": range.end_ip,
                "total": range.total,
                "dealt": range.dealt,
                "bound": range.bound,
                "resting": range.resting,
                "claimed": range.claimed,
                "ended": range.ended,
                "free": range.free(),
                "percent": range.basis_points() as f64 / 100.0,
            })
        });
    Ok(answer(&views.collect()))
}

async fn one(request: &Request, id: i32) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let ranges = network::ranges(&mut db).await?;
    let range = ranges.iter().find(|range| range.id == id);
    Ok(answer(&networks.range_view(
        range.ok_or_else(|| ApiError::no_such("IPRange"))?,
    )))
}

async fn read(request: Request) -> Reply {
    let id = request.path_id("id", "IPRange")?;
    one(&request, id).await
}

fn address(form: &Form, name: &str) -> Result<Option<IpAddr>, ApiError> {
    form.parsed(name, "Enter a valid IPv4 or IPv6 address.")
}

/// What must hold between a range, its subnet, and the other ranges of it. `nests`: a reserved range may lie in a dynamic one.
fn check(
    id: Option<i32>,
    is_dynamic: bool,
    nests: bool,
    (start_ip, end_ip): (IpAddr, IpAddr),
    subnet: &Subnet,
    others: &[Range],
) -> Result<(), ApiError> {
    let refused = |message: String| Err(ApiError::bad_request(message));
    if start_ip.is_ipv4() != end_ip.is_ipv4() {
        return refused(
            "Start IP address and end IP address must be in the same address family.".into(),
        );
    }
    if end_ip < start_ip {
        return refused("End IP address must not be less than Start IP address.".into());
    }
    if !subnet.cidr.contains(&start_ip) || !subnet.cidr.contains(&end_ip) {
        return refused(format!(
            "IP addresses must be within subnet: {}.",
            subnet.cidr
        ));
    }
    let hosts = host_span(&subnet.cidr);
    if number_of(start_ip) < hosts.0 || number_of(end_ip) > hosts.1 {
        return refused("The network and broadcast addresses cannot be in a range.".into());
    }
    let kind = if is_dynamic { "dynamic" } else { "reserved" };
    let excludes = |other: &Range| {
        let (inner, outer) = match is_dynamic {
            true => ((other.start_ip, other.end_ip), (start_ip, end_ip)),
            false => ((start_ip, end_ip), (other.start_ip, other.end_ip)),
        };
        is_dynamic != other.is_dynamic() && outer.0 <= inner.0 && inner.1 <= outer.1
    };
    let overlaps = |other: &&Range| {
        Some(other.id) != id
            && other.subnet_id == subnet.id
            && other.start_ip <= end_ip
            && start_ip <= other.end_ip
            && !(nests && excludes(other))
    };
    if let Some(other) = others.iter().find(overlaps) {
        return refused(format!(
            "Requested {kind} range conflicts with an existing range: {} to {}.",
            other.start_ip, other.end_ip
        ));
    }
    if !is_dynamic {
        return Ok(());
    }
    if number_of(end_ip) - number_of(start_ip) >= DYNAMIC_ADDRESSES_MAX {
        return refused(format!(
            "A dynamic range has at most {DYNAMIC_ADDRESSES_MAX} addresses."
        ));
    }
    let in_use = subnet.gateway_ip.iter().chain(&subnet.dns_servers);
    for address in in_use {
        if (start_ip..=end_ip).contains(address) {
            return refused(format!(
                "Requested dynamic range conflicts with an existing IP address: {address}."
            ));
        }
    }
    Ok(())
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let is_dynamic = match form.required("type")? {
        "dynamic" => true,
        "reserved" => false,
        _ => return Err(ApiError::field("type", "Must be dynamic or reserved.")),
    };
    let start_ip = address(form, "start_ip")?.ok_or_else(|| ApiError::required("start_ip"))?;
    let end_ip = address(form, "end_ip")?.ok_or_else(|| ApiError::required("end_ip"))?;

    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let subnet = match form.filled("subnet") {
        None => networks.subnet_of(start_ip),
        Some(wanted) => networks.named(wanted),
    };
    let subnet = subnet.ok_or_else(|| ApiError::field("subnet", "No subnet holds this range."))?;
    let others = network::ranges(&mut tx).await?;
    let lease_secs = lease_secs(form, is_dynamic, None)?;
    let nests = form.boolean("exclude")?.unwrap_or(false);
    let span = (start_ip, end_ip);
    check(None, is_dynamic, nests, span, subnet, &others)?;
    if is_dynamic {
        no_rack_inside(&mut tx, start_ip, end_ip).await?;
    }
    let new = NewRange {
        subnet_id: subnet.id,
        is_dynamic,
        start_ip,
        end_ip,
        comment: form.get("comment").unwrap_or(""),
        account_id: request.caller.as_ref().map(|caller| caller.id),
        lease_secs,
    };
    let before = Serving::load(&mut tx).await?;
    let id = network::create_range(&mut tx, &new).await?;
    still_deals(&mut tx, &before, form.boolean("force")?).await?;
    let text = format!("Range {start_ip} to {end_ip} created");
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    one(&request, id).await
}

/// DHCP that is on keeps an address to hand out, unless the caller says that it need not.
async fn still_deals(
    db: &mut sqlx::PgConnection,
    before: &Serving,
    force: Option<bool>,
) -> Result<(), ApiError> {
    match before.lost(db).await? {
        Some(lost) if force != Some(true) => Err(ApiError::bad_request(format!(
            "{lost} (Or use the 'force' parameter to override.)"
        ))),
        _ => Ok(()),
    }
}

/// The lease time a form asks for; a reserved range has none.
fn lease_secs(form: &Form, is_dynamic: bool, before: Option<i32>) -> Result<Option<i32>, ApiError> {
    match lease_field(form)?.unwrap_or(before) {
        Some(_) if !is_dynamic => Err(ApiError::field(
            "lease_secs",
            "Nothing is leased from a reserved range.",
        )),
        secs => Ok(secs),
    }
}

/// A rack's own address must never be handed out, nor one that a user keeps from everybody.
async fn no_rack_inside(
    db: &mut sqlx::PgConnection,
    start_ip: IpAddr,
    end_ip: IpAddr,
) -> Result<(), ApiError> {
    // Racks do not know what is set aside for nobody, and would deal it.
    let nobodys = store::reservation::list(db)
        .await?
        .into_iter()
        .find(|other| other.key.is_none() && (start_ip..=end_ip).contains(&other.ip));
    if let Some(other) = nobodys {
        return Err(ApiError::bad_request(format!(
            "Requested dynamic range conflicts with an existing IP address: {}.",
            other.ip
        )));
    }
    match store::rack::address_within(db, start_ip, end_ip).await? {
        None => Ok(()),
        Some((address, rack)) => Err(ApiError::bad_request(format!(
            "Requested dynamic range conflicts with an existing IP address: {address} of the rack {rack}."
        ))),
    }
}

async fn update(request: Request) -> Reply {
    let id = request.path_id("id", "IPRange")?;
    let form = &request.form;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let ranges = network::ranges(&mut tx).await?;
    let range = ranges.iter().find(|range| range.id == id);
    let range = range.ok_or_else(|| ApiError::no_such("IPRange"))?;
    let subnet = networks
        .subnet(range.subnet_id)
        .ok_or_else(|| ApiError::no_such("Subnet"))?;
    let start_ip = address(form, "start_ip")?.unwrap_or(range.start_ip);
    let end_ip = address(form, "end_ip")?.unwrap_or(range.end_ip);
    stays(form, range, &networks)?;
    let is_dynamic = range.is_dynamic();
    // What lies inside another already may go on doing so.
    let span = (range.start_ip, range.end_ip);
    let stands = check(Some(id), is_dynamic, false, span, subnet, &ranges).is_err();
    let nests = form.boolean("exclude")?.unwrap_or(stands);
    let lease_secs = lease_secs(form, is_dynamic, range.lease_secs)?;
    check(
        Some(id),
        is_dynamic,
        nests,
        (start_ip, end_ip),
        subnet,
        &ranges,
    )?;
    if range.is_dynamic() {
        no_rack_inside(&mut tx, start_ip, end_ip).await?;
    }
    let comment = form.get("comment").unwrap_or(&range.comment);
    let before = Serving::load(&mut tx).await?;
    network::update_range(&mut tx, id, start_ip, end_ip, comment, lease_secs).await?;
    still_deals(&mut tx, &before, form.boolean("force")?).await?;
    let text = format!("Range {start_ip} to {end_ip} changed");
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    one(&request, id).await
}

/// Another kind or another subnet is another range; its owner is who made it.
fn stays(form: &Form, range: &Range, networks: &Networks) -> Result<(), ApiError> {
    let subnet = form.filled("subnet").map(|wanted| networks.named(wanted));
    for (name, same) in [
        (
            "type",
            form.filled("type").is_none_or(|kind| kind == range.r#type),
        ),
        (
            "subnet",
            subnet.is_none_or(|found| found.is_some_and(|found| found.id == range.subnet_id)),
        ),
        (
            "user",
            form.filled("user")
                .is_none_or(|user| Some(user) == range.owner.as_deref()),
        ),
    ] {
        if !same {
            return Err(ApiError::field(
                name,
                "This cannot be changed: delete the range and make another.",
            ));
        }
    }
    Ok(())
}

async fn delete(request: Request) -> Reply {
    let id = request.path_id("id", "IPRange")?;
    let force = request.query.boolean("force")?.unwrap_or(false);
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let ranges = network::ranges(&mut tx).await?;
    let range = ranges.iter().find(|range| range.id == id);
    let range = range.ok_or_else(|| ApiError::no_such("IPRange"))?;
    let before = Serving::load(&mut tx).await?;
    network::delete_range(&mut tx, id).await?;
    if let Some(lost) = before.lost(&mut tx).await?
        && !force
    {
        return Err(ApiError::bad_request(format!(
            "Cannot delete the only dynamic IP range of a VLAN that DHCP serves. {lost} (Or use the 'force' parameter to \
             override.)"
        )));
    }
    let text = format!(
        "Range {id} deleted: {} {} to {}",
        range.r#type, range.start_ip, range.end_ip
    );
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    Ok(deleted())
}
