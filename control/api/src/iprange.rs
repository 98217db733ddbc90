//! `ipranges/`: what of a subnet is handed out by DHCP, and what is kept from it.

use std::net::IpAddr;

use model::Permission;
use store::network::{self, NewRange, Range, Subnet};

use crate::body::Form;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::handler;
use crate::network_view::{Networks, host_span, number_of};

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);
/// Addresses of one dynamic range: its blocks are rows.
const DYNAMIC_ADDRESSES_MAX: u128 = 1 << 20;

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
                    "POST",
                    None,
                    EDIT,
                    "Create an IP range.\n\n:param type: \"dynamic\" or \"reserved\".\n\
                     :param start_ip: Its first address.\n:param end_ip: Its last address.\n\
                     :param subnet: Its subnet, unless the addresses say it.\n:param comment: A comment.",
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
                     :param end_ip: Its last address.\n:param comment: A comment.",
                    handler!(update),
                ),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete an IP range.",
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

/// What must hold between a range, its subnet, and the other ranges of it.
fn check(
    id: Option<i32>,
    is_dynamic: bool,
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
    let overlaps = |other: &&Range| {
        Some(other.id) != id
            && other.subnet_id == subnet.id
            && other.start_ip <= end_ip
            && start_ip <= other.end_ip
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
        Some(wanted) => networks
            .subnets
            .iter()
            .find(|subnet| wanted.parse() == Ok(subnet.id) || wanted == subnet.cidr.to_string()),
    };
    let subnet = subnet.ok_or_else(|| ApiError::field("subnet", "No subnet holds this range."))?;
    let others = network::ranges(&mut tx).await?;
    check(None, is_dynamic, (start_ip, end_ip), subnet, &others)?;
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
    };
    let id = network::create_range(&mut tx, &new).await?;
    let text = format!("Range {start_ip} to {end_ip} created");
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    one(&request, id).await
}

/// A rack's own address must never be handed out.
async fn no_rack_inside(
    db: &mut sqlx::PgConnection,
    start_ip: IpAddr,
    end_ip: IpAddr,
) -> Result<(), ApiError> {
    for rack in store::rack::list(&mut *db).await? {
        for interface in store::rack::interfaces(&mut *db, &rack.system_id).await? {
            let inside = interface
                .addresses
                .iter()
                .map(|address| address.ip())
                .find(|address| (start_ip..=end_ip).contains(address));
            if let Some(address) = inside {
                return Err(ApiError::bad_request(format!(
                    "Requested dynamic range conflicts with an existing IP address: {address} of the rack {}.",
                    rack.hostname
                )));
            }
        }
    }
    Ok(())
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
    check(
        Some(id),
        range.is_dynamic(),
        (start_ip, end_ip),
        subnet,
        &ranges,
    )?;
    if range.is_dynamic() {
        no_rack_inside(&mut tx, start_ip, end_ip).await?;
    }
    let comment = form.get("comment").unwrap_or(&range.comment);
    network::update_range(&mut tx, id, start_ip, end_ip, comment).await?;
    let text = format!("Range {start_ip} to {end_ip} changed");
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    one(&request, id).await
}

async fn delete(request: Request) -> Reply {
    let id = request.path_id("id", "IPRange")?;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    network::delete_range(&mut tx, id).await?;
    store::event::record(&mut tx, changed(&request, format!("Range {id} deleted"))).await?;
    tx.commit().await?;
    Ok(deleted())
}
