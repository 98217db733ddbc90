//! `ipaddresses/`: what users reserved, and the live leases.
//!
//! A user's address is set aside like a reserved IP: with a MAC address racks give it to that client, without one they give
//! it to nobody.

use std::net::IpAddr;

use model::{Mac, Permission, Role};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::lease::{self, Binding};
use store::network::{self, Range, Subnet};
use store::reservation::{self, Key, NewReservation, Reservation};

use crate::address_list::{AddressList, Progress};
use crate::auth::Caller;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::event::timestamp;
use crate::fabric::changed;
use crate::handler;
use crate::network_view::{Networks, address_of, gaps, host_span, number_of};
use crate::reservation::{check_address, hostname_of, mac_of, subnet_of};

const VIEW: Access = Access::With(Permission::View);
/// MAAS's allocation types: what a user set aside, what DHCP handed out.
const USER_RESERVED: u8 = 4;
const DISCOVERED: u8 = 6;
/// Addresses that one account may hold.
const RESERVED_MAX: usize = 4_096;

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "IPAddresses",
        path: "ipaddresses/",
        aliases: &[],
        doc: "Manage IP addresses.",
        operations: vec![
            Operation::new(
                "GET",
                None,
                VIEW,
                "List one's reserved addresses and the leases.\n\n:param ip: Only this address.\n\
                 :param all: Everybody's reserved addresses (administrators).\n\
                 :param owner: This user's (administrators).",
                handler!(list),
            ),
            Operation::new(
                "POST",
                Some("reserve"),
                VIEW,
                "Reserve an address.\n\n:param subnet: The subnet to take it from, unless ip says it.\n\
                 :param ip: This address; the first free one where none is given.\n\
                 :param hostname: The name of what has it.\n\
                 :param mac: The MAC address that DHCP gives it to.",
                handler!(reserve),
            ),
            Operation::new(
                "POST",
                Some("release"),
                VIEW,
                "Release a reserved address.\n\n:param ip: The address.\n\
                 :param force: Also another user's (administrators).",
                handler!(release),
            ),
        ],
    }]
}

fn is_admin(caller: &Caller) -> bool {
    caller.role == Role::Admin
}

async fn list(request: Request) -> Reply {
    let caller = request.caller()?;
    let query = &request.query;
    let all = query.boolean("all")?.unwrap_or(false);
    let owner = query.filled("owner");
    if (all || owner.is_some_and(|owner| owner != caller.username)) && !is_admin(caller) {
        return Err(ApiError::Forbidden(
            "Listing IP addresses by/for all users requires admin privileges.".into(),
        ));
    }
    let ip: Option<IpAddr> = query.parsed("ip", "Enter a valid IPv4 or IPv6 address.")?;
    let owner = owner.unwrap_or(&caller.username);
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let mut reserved = reservation::list(&mut db).await?;
    reserved.retain(|reservation| {
        reservation.user_reserved
            && (all || reservation.owner.as_deref() == Some(owner))
            && ip.is_none_or(|ip| ip == reservation.ip)
    });
    let Some(ip) = ip else {
        drop(db);
        return respond(&request, networks, reserved, None, true).await;
    };
    let binding = lease::binding_of_address(&mut db, ip).await?;
    let views = reserved
        .iter()
        .map(|one| reserved_view(one, &networks))
        .chain(binding.iter().map(|one| lease_view(one, &networks)));
    Ok(answer(&views.collect()))
}

async fn respond(
    request: &Request,
    networks: Networks,
    reserved: Vec<Reservation>,
    subnet: Option<i32>,
    with_owner: bool,
) -> Reply {
    let list = AddressList {
        app: request.app.clone(),
        networks,
        reserved,
        subnet,
        with_owner,
        progress: Progress::default(),
        place: None,
    };
    list.respond(request.caller()?).await
}

/// Of a subnet: everybody's reserved addresses and the live leases.
pub async fn of_subnet(
    request: &Request,
    networks: Networks,
    subnet: i32,
    with_owner: bool,
) -> Reply {
    let mut reserved = reservation::of_subnets(&mut *request.app.db().await?, &[subnet]).await?;
    reserved.retain(|reservation| reservation.user_reserved);
    respond(request, networks, reserved, Some(subnet), with_owner).await
}

pub(crate) fn reserved_view(reservation: &Reservation, networks: &Networks) -> Value {
    let subnet = networks.subnet(reservation.subnet_id);
    let mac = match reservation.key {
        Some(Key::Mac(mac)) => Some(Mac::new(mac).to_string()),
        _ => None,
    };
    json!({
        "alloc_type": USER_RESERVED,
        "alloc_type_name": "User reserved",
        "created": timestamp(reservation.created),
        "hostname": reservation.hostname,
        "ip": reservation.ip,
        "subnet": subnet.map(|subnet| networks.subnet_view(subnet)),
        "owner": reservation.owner.as_ref().map(|owner| json!({ "username": owner })),
        "interface_set": [],
        // Ours.
        "mac_address": mac,
        "ends": null,
        "resource_uri": "/MAAS/api/2.0/ipaddresses/",
    })
}

pub(crate) fn lease_view(binding: &Binding, networks: &Networks) -> Value {
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
}

//---------------------------------------------------------------- reserve and release

async fn reserve(request: Request) -> Reply {
    let form = &request.form;
    let caller = request.caller()?;
    let name = match form.filled("ip") {
        Some(_) => "ip",
        // MAAS's former name of it.
        None => "ip_address",
    };
    let wanted: Option<IpAddr> = form.parsed(name, "Enter a valid IPv4 or IPv6 address.")?;
    let hostname = hostname_of(form)?;
    let mac = mac_of(form, "mac")?;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let subnet = match (wanted, form.filled("subnet")) {
        (Some(ip), _) => subnet_of(form, &networks, ip)?,
        (None, Some(subnet)) => networks
            .named(subnet)
            .ok_or_else(|| ApiError::field("subnet", "There is no such subnet."))?,
        (None, None) => return Err(ApiError::required("subnet")),
    };
    let ranges = network::ranges(&mut tx).await?;
    let taken = Taken::of(&mut tx, subnet, &ranges).await?;
    if taken.count_of(caller.id) >= RESERVED_MAX {
        return Err(ApiError::BoundMet(format!(
            "An account can hold {RESERVED_MAX} addresses of a subnet."
        )));
    }
    let ip = match wanted {
        Some(ip) => {
            check_address(&mut tx, subnet, ip).await?;
            taken.check(ip)?;
            ip
        }
        None => taken.first_free(&mut tx).await?,
    };
    if let Some(mac) = mac
        && !is_admin(caller)
        && store::card::owner(&mut tx, mac).await?.is_some()
    {
        return Err(ApiError::Forbidden(format!(
            "{mac} is a machine's network card: an administrator reserves addresses for it."
        )));
    }
    let key = mac.map(|mac| Key::Mac(mac.octets()));
    if let Some(key) = &key
        && let Some(other) = reservation::of_key(&mut tx, subnet.vlan_id, key).await?
    {
        return Err(ApiError::bad_request(format!(
            "This client has {} reserved on the same VLAN.",
            other.ip
        )));
    }
    let new = NewReservation {
        subnet_id: subnet.id,
        ip,
        key: key.as_ref(),
        hostname,
        comment: "",
        lease_secs: None,
        user_reserved: true,
        account_id: Some(caller.id),
    };
    let id = reservation::create(&mut tx, &new).await?;
    store::event::record(&mut tx, changed(&request, format!("Address {ip} reserved"))).await?;
    tx.commit().await?;
    let reservation = reservation::get(&mut *request.app.db().await?, id).await?;
    Ok(answer(&reserved_view(&reservation, &networks)))
}

/// What of a subnet is somebody's.
struct Taken<'a> {
    subnet: &'a Subnet,
    ranges: Vec<&'a Range>,
    reserved: Vec<Reservation>,
    /// Outside the ranges, which are taken as a whole.
    leased: Vec<IpAddr>,
    /// Of BMCs, regions and other DHCP servers: whoever is given one hears what is meant for it.
    services: Vec<IpAddr>,
}

impl<'a> Taken<'a> {
    async fn of(
        db: &mut PgConnection,
        subnet: &'a Subnet,
        ranges: &'a [Range],
    ) -> Result<Self, ApiError> {
        let leased = lease::leased_outside_ranges(&mut *db, subnet.id, &subnet.cidr).await?;
        Ok(Self {
            subnet,
            ranges: ranges
                .iter()
                .filter(|range| range.subnet_id == subnet.id)
                .collect(),
            reserved: reservation::of_subnets(db, &[subnet.id]).await?,
            leased,
            services: network::service_addresses(db, subnet.cidr).await?,
        })
    }

    fn count_of(&self, account: i32) -> usize {
        self.reserved
            .iter()
            .filter(|other| other.user_reserved && other.account_id == Some(account))
            .count()
    }

    /// Whether a user may have this very address. The answers are MAAS's.
    fn check(&self, ip: IpAddr) -> Result<(), ApiError> {
        let holds = |range: &&&Range| (range.start_ip..=range.end_ip).contains(&ip);
        if let Some(range) = self.ranges.iter().find(holds) {
            return Err(ApiError::Forbidden(format!(
                "The address {ip} is in the {} range {} to {}.",
                range.r#type, range.start_ip, range.end_ip
            )));
        }
        let is_reserved = self.reserved.iter().any(|other| other.ip == ip);
        let serves = self.subnet.dns_servers.contains(&ip) || self.services.contains(&ip);
        if is_reserved || self.leased.contains(&ip) || serves {
            return Err(ApiError::NotFound(format!(
                "The IP address {ip} is already in use."
            )));
        }
        Ok(())
    }

    async fn first_free(&self, db: &mut PgConnection) -> Result<IpAddr, ApiError> {
        const EXHAUSTED: ApiError = ApiError::Unavailable("No more IPs available in the subnet.");
        let single = |ip: IpAddr| (number_of(ip), number_of(ip));
        let mut taken: Vec<(u128, u128)> = self
            .ranges
            .iter()
            .map(|range| (number_of(range.start_ip), number_of(range.end_ip)))
            .collect();
        taken.extend(self.reserved.iter().map(|other| single(other.ip)));
        taken.extend(self.leased.iter().copied().map(single));
        let servers = self
            .subnet
            .gateway_ip
            .iter()
            .chain(&self.subnet.dns_servers)
            .chain(&self.services);
        taken.extend(servers.copied().map(single));
        let span = host_span(&self.subnet.cidr);
        let like = self.subnet.cidr.network();
        let (first, last) = (address_of(span.0, like), address_of(span.1, like));
        // As many as there are rack addresses inside, at most.
        while let Some((free, _)) = gaps(span, &taken).first() {
            let ip = address_of(*free, like);
            match store::rack::address_within(&mut *db, ip, ip).await? {
                None => return Ok(ip),
                Some(_) => taken.push(single(ip)),
            }
        }
        tracing::info!(%first, %last, "a user wants an address and there is none");
        Err(EXHAUSTED)
    }
}

async fn release(request: Request) -> Reply {
    let form = &request.form;
    let caller = request.caller()?;
    let ip: Option<IpAddr> = form.parsed("ip", "Enter a valid IPv4 or IPv6 address.")?;
    let ip = ip.ok_or_else(|| ApiError::required("ip"))?;
    let force = form.boolean("force")?.unwrap_or(false);
    if force && !is_admin(caller) {
        return Err(ApiError::Forbidden(
            "Force-releasing an IP address requires admin privileges.".into(),
        ));
    }
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let found = reservation::of_address(&mut tx, ip).await?;
    let own = found.filter(|reservation| {
        reservation.user_reserved && (force || reservation.account_id == Some(caller.id))
    });
    let Some(reservation) = own else {
        if form.boolean("discovered")?.unwrap_or(false)
            && let Some(binding) = lease::binding_of_address(&mut tx, ip).await?
        {
            // A lease is a promise to its client.
            return Err(ApiError::conflict(format!(
                "{ip} is leased until {}: a lease ends by itself.",
                timestamp(binding.ends)
            )));
        }
        return Err(ApiError::NotFound(format!(
            "IP address {ip} does not exist, is not the expected type, or does not belong to the requesting user."
        )));
    };
    reservation::delete(&mut tx, reservation.id).await?;
    store::event::record(&mut tx, changed(&request, format!("Address {ip} released"))).await?;
    tx.commit().await?;
    Ok(deleted())
}
