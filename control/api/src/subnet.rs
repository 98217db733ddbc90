//! `subnets/`.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use model::Permission;
use model::dhcp::boot_method;
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::network::{self, Fabric, Range, Subnet, SubnetChange, Vlan};
use store::reservation;

use crate::body::Form;
use crate::dhcp::lease_field;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::handler;
use crate::ipaddress;
use crate::lacking::{Lacking, SPACE, off};
use crate::network_view::{Networks, address_of, gaps, host_span, number_of};
use crate::serving::Serving;
use crate::specifier;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);
/// Servers that one subnet may name, of each kind.
const SERVERS_MAX: usize = 16;

/// The parameters, after a line of their own: clients miss those that a text begins with.
macro_rules! described {
    ($what:literal) => {
        concat!(
            $what,
            "\n\n",
            ":param cidr: The network.\n:param name: Its name.\n\
             :param description: A description.\n:param vlan: The id of its VLAN.\n\
             :param fabric: The fabric of its VLAN, with vid.\n:param vid: The tag of its VLAN.\n\
             :param gateway_ip: Its gateway.\n:param dns_servers: Its DNS servers.\n\
             :param ntp_servers: Its time servers.\n:param rdns_mode: 0 off, 1 on, 2 RFC 2317.\n\
             :param allow_dns: Whether the region answers DNS there.\n\
             :param allow_proxy: Whether machines there may use the proxy.\n\
             :param managed: Whether addresses are handed out there.\n\
             :param disabled_boot_architectures: Boot methods that DHCP does not offer.\n\
             :param lease_secs: Length of a DHCP lease, 30 to 86400; empty: the region's.\n\
             :param client_id_identity: Whether clients are told apart by option 61, where they send it, in place of their MAC."
        )
    };
}

const CREATE: &str = described!("Create a subnet.");
const UPDATE: &str = described!("Update a subnet.");
/// MAAS's own refuse it, too: a space is its VLAN's.
const LACKING: &[Lacking] = &[SPACE];

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "Subnets",
            path: "subnets/",
            aliases: &[],
            doc: "Manage subnets.",
            operations: vec![
                Operation::new("GET", None, VIEW, "List subnets.", handler!(list)),
                Operation::new("POST", None, EDIT, CREATE, handler!(create)).lacking(LACKING),
            ],
        },
        Resource {
            name: "Subnet",
            path: "subnets/{id}/",
            // A network may be written as it is: subnets/10.0.0.0/24/.
            aliases: &["subnets/{id}/{prefix}/"],
            doc: "Manage a subnet.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a subnet.", handler!(read)),
                Operation::new("PUT", None, EDIT, UPDATE, handler!(update)).lacking(LACKING),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete a subnet. One whose dynamic range DHCP serves stays, and one on which its only rack stands.\n\n\
                     :param force: With its ranges, reserved addresses, DHCP options and links.",
                    handler!(delete),
                ),
                Operation::new(
                    "GET",
                    Some("statistics"),
                    VIEW,
                    "Count a subnet's addresses.\n\n:param include_ranges: Also list its ranges, used and free.",
                    handler!(statistics),
                )
                .lacking(const { &[off("include_suggestions")] }),
                Operation::new(
                    "GET",
                    Some("reserved_ip_ranges"),
                    VIEW,
                    "List what of a subnet is reserved.",
                    handler!(reserved),
                ),
                Operation::new(
                    "GET",
                    Some("unreserved_ip_ranges"),
                    VIEW,
                    "List what of a subnet is free.",
                    handler!(unreserved),
                ),
                Operation::new(
                    "GET",
                    Some("ip_addresses"),
                    VIEW,
                    "List a subnet's addresses in use.\n\n:param with_username: Also whose they are, unless false.",
                    handler!(ip_addresses),
                ),
            ],
        },
    ]
}

/// The subnet of the path, by any of MAAS's specifiers.
fn find<'a>(request: &Request, networks: &'a Networks) -> Result<&'a Subnet, ApiError> {
    let (id, prefix) = (request.path("id"), request.path("prefix"));
    let whole = match prefix {
        "" => id.to_owned(),
        prefix => format!("{id}/{prefix}"),
    };
    specifier::one(&specifier::subnets(networks, &whole), "Subnet")
}

async fn list(request: Request) -> Reply {
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    let views = networks
        .subnets
        .iter()
        .map(|subnet| networks.subnet_view(subnet));
    Ok(answer(&views.collect()))
}

async fn one(request: &Request, id: i32) -> Reply {
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    let subnet = networks
        .subnet(id)
        .ok_or_else(|| ApiError::no_such("Subnet"))?;
    Ok(answer(&networks.subnet_view(subnet)))
}

async fn read(request: Request) -> Reply {
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    Ok(answer(&networks.subnet_view(find(&request, &networks)?)))
}

//---------------------------------------------------------------- what a form asks for

/// The parts of a [`SubnetChange`] that need a home.
struct Wanted {
    cidr: Option<IpNet>,
    vlan_id: Option<i32>,
    gateway_ip: Option<Option<IpAddr>>,
    dns_servers: Option<Vec<IpAddr>>,
    ntp_servers: Option<Vec<IpAddr>>,
    disabled_boot_architectures: Option<Vec<String>>,
}

impl Wanted {
    fn read(form: &Form, networks: &Networks, fabrics: &[Fabric]) -> Result<Self, ApiError> {
        let cidr: Option<IpNet> = form.parsed("cidr", "Enter a valid network: 10.0.0.0/24.")?;
        if let Some(cidr) = cidr
            && cidr.trunc() != cidr
        {
            return Err(ApiError::field("cidr", "The network has host bits set."));
        }
        Ok(Self {
            cidr,
            vlan_id: vlan_field(form, networks, fabrics)?,
            gateway_ip: match form.get("gateway_ip").map(str::trim) {
                None => None,
                Some("") => Some(None),
                Some(_) => Some(form.parsed("gateway_ip", "Enter a valid IPv4 or IPv6 address.")?),
            },
            dns_servers: servers_field(form, "dns_servers")?,
            ntp_servers: servers_field(form, "ntp_servers")?,
            disabled_boot_architectures: archs_field(form)?,
        })
    }

    fn change<'a>(&'a self, form: &'a Form) -> Result<SubnetChange<'a>, ApiError> {
        let rdns_mode = form.integer("rdns_mode")?;
        if rdns_mode.is_some_and(|mode| !(0..=2).contains(&mode)) {
            return Err(ApiError::field("rdns_mode", "Must be 0, 1 or 2."));
        }
        Ok(SubnetChange {
            vlan_id: self.vlan_id,
            name: form.filled("name"),
            description: form.get("description"),
            cidr: self.cidr,
            gateway_ip: self.gateway_ip,
            dns_servers: self.dns_servers.as_deref(),
            ntp_servers: self.ntp_servers.as_deref(),
            rdns_mode,
            allow_dns: form.boolean("allow_dns")?,
            allow_proxy: form.boolean("allow_proxy")?,
            active_discovery: form.boolean("active_discovery")?,
            managed: form.boolean("managed")?,
            disabled_boot_architectures: self.disabled_boot_architectures.as_deref(),
            lease_secs: lease_field(form)?,
            client_id_identity: form.boolean("client_id_identity")?,
        })
    }
}

/// `vlan=5001`, or `fabric` and `vid`. None: nothing is said.
fn vlan_field(
    form: &Form,
    networks: &Networks,
    fabrics: &[Fabric],
) -> Result<Option<i32>, ApiError> {
    let fabric = match form.filled("fabric") {
        None => None,
        Some(text) => Some(specifier::one_in_field(
            &specifier::fabrics(fabrics, text),
            "fabric",
            "fabric",
        )?),
    };
    let on = |vlan: &&Vlan| fabric.is_none_or(|fabric| fabric.id == vlan.fabric_id);
    if let Some(text) = form.filled("vlan") {
        // MAAS's field is an id; its specifiers do no harm.
        let by_id = text.parse().ok().and_then(|id| networks.vlan(id));
        let named = specifier::vlans(networks, text);
        let found: Vec<&Vlan> = match by_id {
            Some(vlan) => vec![vlan],
            None if text.parse::<i32>().is_ok() => Vec::new(),
            None => named.into_iter().filter(on).collect(),
        };
        return Ok(Some(specifier::one_in_field(&found, "vlan", "VLAN")?.id));
    }
    let vid = form.integer("vid")?;
    if fabric.is_none() && vid.is_none() {
        return Ok(None);
    }
    let mut vlans = networks.vlans.iter().filter(on);
    match vlans.find(|vlan| vlan.vid == vid.unwrap_or(0)) {
        Some(vlan) => Ok(Some(vlan.id)),
        None => Err(ApiError::field(
            "vid",
            "No VLAN with this vid in this fabric.",
        )),
    }
}

fn archs_field(form: &Form) -> Result<Option<Vec<String>>, ApiError> {
    const FIELD: &str = "disabled_boot_architectures";
    if !form.has(FIELD) {
        return Ok(None);
    }
    let methods: Result<BTreeSet<&str>, _> = form.list(FIELD).map(boot_method).collect();
    let methods = methods.map_err(|error| ApiError::field(FIELD, format!("{error}.")))?;
    Ok(Some(methods.into_iter().map(str::to_owned).collect()))
}

fn servers_field(form: &Form, name: &str) -> Result<Option<Vec<IpAddr>>, ApiError> {
    if !form.has(name) {
        return Ok(None);
    }
    let servers: Result<Vec<IpAddr>, _> = form.list(name).map(str::parse).collect();
    let servers =
        servers.map_err(|_| ApiError::field(name, "Enter valid IPv4 or IPv6 addresses."))?;
    if servers.len() > SERVERS_MAX {
        return Err(ApiError::field(name, "Too many servers: at most 16."));
    }
    Ok(Some(servers))
}

/// What must hold between a subnet, its gateway, its ranges and the other subnets.
fn check(
    id: Option<i32>,
    cidr: IpNet,
    gateway: Option<IpAddr>,
    networks: &Networks,
    ranges: &[Range],
) -> Result<(), ApiError> {
    if gateway.is_some_and(|gateway| !cidr.contains(&gateway)) {
        return Err(ApiError::field(
            "gateway_ip",
            "gateway IP must be within CIDR range.",
        ));
    }
    let overlaps = |other: &&Subnet| {
        Some(other.id) != id && (other.cidr.contains(&cidr) || cidr.contains(&other.cidr))
    };
    if let Some(other) = networks.subnets.iter().find(overlaps) {
        let message = if other.cidr == cidr {
            "Subnet with this Cidr already exists.".to_owned()
        } else {
            format!("Overlaps with the subnet {}.", other.cidr)
        };
        return Err(ApiError::field("cidr", message));
    }
    for range in ranges.iter().filter(|range| Some(range.subnet_id) == id) {
        if !cidr.contains(&range.start_ip) || !cidr.contains(&range.end_ip) {
            return Err(ApiError::field(
                "cidr",
                format!(
                    "The range {} to {} would be outside.",
                    range.start_ip, range.end_ip
                ),
            ));
        }
        let inside = |gateway| (range.start_ip..=range.end_ip).contains(&gateway);
        if range.is_dynamic() && gateway.is_some_and(inside) {
            return Err(ApiError::field(
                "gateway_ip",
                "The gateway is inside a dynamic range.",
            ));
        }
    }
    Ok(())
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let mut networks = Networks::load(&mut tx).await?;
    let fabrics = network::fabrics(&mut tx).await?;
    let wanted = Wanted::read(form, &networks, &fabrics)?;
    let cidr = wanted.cidr.ok_or_else(|| ApiError::required("cidr"))?;
    check(None, cidr, wanted.gateway_ip.flatten(), &networks, &[])?;
    if networks.vlans.is_empty() && wanted.vlan_id.is_none() {
        // A region begins with one fabric, as MAAS does.
        network::create_fabric(&mut tx, None, "", "").await?;
        networks = Networks::load(&mut tx).await?;
    }
    let first = networks
        .vlans
        .iter()
        .find(|vlan| vlan.vid == 0)
        .map(|vlan| vlan.id);
    let vlan_id = wanted
        .vlan_id
        .or(first)
        .ok_or_else(|| ApiError::required("vlan"))?;
    let id = network::create_subnet(&mut tx, vlan_id, cidr, &wanted.change(form)?).await?;
    event(&mut tx, &request, format!("Subnet {cidr} created")).await?;
    tx.commit().await?;
    one(&request, id).await
}

async fn event(db: &mut PgConnection, request: &Request, text: String) -> Result<(), ApiError> {
    Ok(store::event::record(db, changed(request, text)).await?)
}

async fn update(request: Request) -> Reply {
    let form = &request.form;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let subnet = find(&request, &networks)?;
    let fabrics = network::fabrics(&mut tx).await?;
    let wanted = Wanted::read(form, &networks, &fabrics)?;
    let ranges = network::ranges(&mut tx).await?;
    let (cidr, gateway) = (
        wanted.cidr.unwrap_or(subnet.cidr),
        wanted.gateway_ip.unwrap_or(subnet.gateway_ip),
    );
    check(Some(subnet.id), cidr, gateway, &networks, &ranges)?;
    for other in reservation::of_subnets(&mut tx, &[subnet.id]).await? {
        if !cidr.contains(&other.ip) {
            let message = format!("The reserved address {} would be outside.", other.ip);
            return Err(ApiError::field("cidr", message));
        }
    }
    let before = Serving::load(&mut tx).await?;
    let id = subnet.id;
    network::update_subnet(&mut tx, id, &wanted.change(form)?).await?;
    if let Some(lost) = before.lost(&mut tx).await? {
        let moves = wanted.vlan_id.is_some_and(|vlan| vlan != subnet.vlan_id);
        return Err(ApiError::field(if moves { "vlan" } else { "cidr" }, lost));
    }
    event(&mut tx, &request, format!("Subnet {cidr} changed")).await?;
    tx.commit().await?;
    one(&request, id).await
}

/// A served subnet stays; what goes with another one is named, unless `force` says that it may.
async fn delete(request: Request) -> Reply {
    let force = request.query.boolean("force")?.unwrap_or(false);
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let subnet = find(&request, &networks)?;
    let ranges = network::ranges(&mut tx).await?;
    let has_dynamic = ranges
        .iter()
        .any(|range| range.subnet_id == subnet.id && range.is_dynamic());
    if has_dynamic && networks.served_by(subnet.vlan_id).is_some() {
        return Err(ApiError::bad_request(
            "Cannot delete a subnet that is actively servicing a dynamic IP range. (Delete the dynamic range or disable \
             DHCP first.)",
        ));
    }
    let goes = network::goes_with_subnet(&mut tx, subnet.id).await?;
    if !goes.is_empty() && !force {
        return Err(ApiError::bad_request(format!(
            "Cannot delete a subnet that has IP addresses in use: with it would go {}. (Use the 'force' parameter to \
             override.)",
            goes.join(", ")
        )));
    }
    let before = Serving::load(&mut tx).await?;
    network::delete_subnet(&mut tx, subnet.id).await?;
    if let Some(lost) = before.lost(&mut tx).await? {
        return Err(ApiError::bad_request(format!(
            "Cannot delete a subnet that DHCP needs. {lost}"
        )));
    }
    let mut text = format!("Subnet {} deleted", subnet.cidr);
    if !goes.is_empty() {
        text = format!("{text}, and with it {}", goes.join(", "));
    }
    event(&mut tx, &request, text).await?;
    tx.commit().await?;
    Ok(deleted())
}

//---------------------------------------------------------------- what is free

/// A subnet's hosts, what is reserved of them and for what.
struct Use {
    cidr: IpNet,
    span: (u128, u128),
    taken: Vec<((u128, u128), &'static str)>,
}

impl Use {
    async fn load(request: &Request) -> Result<Self, ApiError> {
        let mut db = request.app.db().await?;
        let networks = Networks::load(&mut db).await?;
        let subnet = find(request, &networks)?;
        let mut taken: Vec<_> = network::ranges(&mut db)
            .await?
            .iter()
            .filter(|range| range.subnet_id == subnet.id)
            .map(|range| {
                let span = (number_of(range.start_ip), number_of(range.end_ip));
                (
                    span,
                    if range.is_dynamic() {
                        "dynamic"
                    } else {
                        "reserved"
                    },
                )
            })
            .collect();
        let single = |ip| (number_of(ip), number_of(ip));
        for other in reservation::of_subnets(&mut db, &[subnet.id]).await? {
            let (at, _) = single(other.ip);
            let is_told = taken
                .iter()
                .any(|((first, last), _)| (*first..=*last).contains(&at));
            if !is_told {
                let purpose = match other.user_reserved {
                    true => "assigned-ip",
                    false => "reserved",
                };
                taken.push((single(other.ip), purpose));
            }
        }
        if let Some(gateway) = subnet.gateway_ip {
            taken.push(((number_of(gateway), number_of(gateway)), "gateway-ip"));
        }
        taken.sort_unstable();
        Ok(Self {
            cidr: subnet.cidr,
            span: host_span(&subnet.cidr),
            taken,
        })
    }

    fn free(&self) -> Vec<(u128, u128)> {
        let taken: Vec<_> = self.taken.iter().map(|(span, _)| *span).collect();
        gaps(self.span, &taken)
    }

    fn range_view(&self, span: (u128, u128), purpose: Option<&str>) -> Value {
        let like = self.cidr.network();
        let mut view = json!({
            "start": address_of(span.0, like),
            "end": address_of(span.1, like),
            "num_addresses": count(span),
        });
        if let Some(purpose) = purpose {
            view["purpose"] = json!([purpose]);
        }
        view
    }
}

/// Addresses of an inclusive span, as far as JSON's whole numbers reach.
fn count(span: (u128, u128)) -> u64 {
    u64::try_from((span.1 - span.0).saturating_add(1)).unwrap_or(u64::MAX)
}

async fn reserved(request: Request) -> Reply {
    let used = Use::load(&request).await?;
    let views = used
        .taken
        .iter()
        .map(|(span, purpose)| used.range_view(*span, Some(purpose)));
    Ok(answer(&views.collect()))
}

async fn unreserved(request: Request) -> Reply {
    let used = Use::load(&request).await?;
    Ok(answer(
        &used
            .free()
            .into_iter()
            .map(|span| used.range_view(span, None))
            .collect(),
    ))
}

async fn statistics(request: Request) -> Reply {
    let used = Use::load(&request).await?;
    let free = used.free();
    let available = free
        .iter()
        .fold(0u64, |sum, span| sum.saturating_add(count(*span)));
    let largest = free.iter().map(|span| count(*span)).max().unwrap_or(0);
    let total = count(used.span);
    let usage = if total == 0 {
        0.0
    } else {
        1.0 - available as f64 / total as f64
    };
    let like = used.cidr.network();
    let mut view = json!({
        "num_available": available,
        "largest_available": largest,
        "num_unavailable": total - available.min(total),
        "total_addresses": total,
        "usage": usage,
        "usage_string": format!("{:.0}%", usage * 100.0),
        "available_string": format!("{:.0}%", (1.0 - usage) * 100.0),
        "first_address": address_of(used.span.0, like),
        "last_address": address_of(used.span.1, like),
        "ip_version": if like.is_ipv4() { 4 } else { 6 },
    });
    if request.query.boolean("include_ranges")?.unwrap_or(false) {
        let taken = used.taken.iter().map(|(span, purpose)| (*span, *purpose));
        let mut all: Vec<_> = taken
            .chain(free.iter().map(|span| (*span, "unused")))
            .collect();
        all.sort_unstable();
        let views = all
            .iter()
            .map(|(span, purpose)| used.range_view(*span, Some(purpose)));
        view["ranges"] = views.collect();
    }
    Ok(answer(&view))
}

async fn ip_addresses(request: Request) -> Reply {
    let query = &request.query;
    let with_username = query.boolean("with_username")?.unwrap_or(true);
    // There are no summaries to leave out.
    for name in ["with_summary", "with_node_summary"] {
        query.boolean(name)?;
    }
    let networks = Networks::load(&mut *request.app.db().await?).await?;
    let id = find(&request, &networks)?.id;
    ipaddress::of_subnet(&request, networks, id, with_username).await
}
