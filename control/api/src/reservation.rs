//! `reservedips/`: an address for one client, by its MAC as in MAAS, or by what option 61 or 82 says.

use std::net::IpAddr;

use model::dhcp::Identifier;
use model::{Mac, Permission};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::network::{self, Subnet};
use store::reservation::{self, Key, NewReservation, Reservation};

use crate::body::Form;
use crate::dhcp::lease_field;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::handler;
use crate::network_view::{Networks, host_span, number_of};

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);
const COMMENT_CHARS_MAX: usize = 255;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "ReservedIps",
            path: "reservedips/",
            aliases: &[],
            doc: "Manage reserved IPs.",
            operations: vec![
                Operation::new(
                    "GET",
                    None,
                    VIEW,
                    "List reserved IPs.\n\n:param subnet: Only of this subnet.",
                    handler!(list),
                ),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Create a reserved IP. One of mac_address, client_id and circuit_id says for whom.\n\n\
                     :param ip: The address.\n:param subnet: Its subnet, unless the address says it.\n\
                     :param mac_address: The client's MAC address.\n\
                     :param client_id: The client's identifier (option 61): text, or octets as 0x01525400.\n\
                     :param circuit_id: The port that the relay names (option 82, sub-option 1).\n\
                     :param remote_id: With circuit_id: only behind the relay that says this (sub-option 2).\n\
                     :param hostname: What the client is to call itself.\n\
                     :param lease_secs: Length of its lease, 30 to 86400.\n:param comment: A comment.",
                    handler!(create),
                ),
            ],
        },
        Resource {
            name: "ReservedIp",
            path: "reservedips/{id}/",
            aliases: &[],
            doc: "Manage a reserved IP.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a reserved IP.", handler!(read)),
                Operation::new(
                    "PUT",
                    None,
                    EDIT,
                    "Update a reserved IP; its address and client stay.\n\n\
                     :param hostname: What the client is to call itself.\n\
                     :param lease_secs: Length of its lease; empty: the range's or the subnet's.\n\
                     :param comment: A comment.",
                    handler!(update),
                ),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete a reserved IP.",
                    handler!(delete),
                ),
            ],
        },
    ]
}

/// (mac_address, client_id, circuit_id, remote_id) as they are written.
pub(crate) fn key_view(key: Option<&Key>) -> [Option<String>; 4] {
    match key {
        None => [None, None, None, None],
        Some(Key::Mac(mac)) => [Some(Mac::new(*mac).to_string()), None, None, None],
        Some(Key::ClientId(id)) => [None, Some(id.to_string()), None, None],
        Some(Key::Circuit { circuit, remote }) => [
            None,
            None,
            Some(circuit.to_string()),
            remote.as_ref().map(ToString::to_string),
        ],
    }
}

fn view(reservation: &Reservation, networks: &Networks) -> Value {
    let subnet = networks.subnet(reservation.subnet_id);
    let [mac_address, client_id, circuit_id, remote_id] = key_view(reservation.key.as_ref());
    json!({
        "id": reservation.id,
        "subnet": subnet.map(|subnet| networks.subnet_view(subnet)),
        "ip": reservation.ip,
        "mac_address": mac_address,
        "comment": reservation.comment,
        // Ours.
        "client_id": client_id,
        "circuit_id": circuit_id,
        "remote_id": remote_id,
        "hostname": reservation.hostname,
        "lease_secs": reservation.lease_secs,
        "resource_uri": format!("/MAAS/api/2.0/reservedips/{}/", reservation.id),
    })
}

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let networks = Networks::load(&mut db).await?;
    let reservations = match request.query.filled("subnet") {
        None => reservation::list(&mut db).await?,
        Some(wanted) => {
            let subnet = networks.named(wanted);
            let subnet = subnet.ok_or_else(|| ApiError::no_such("Subnet"))?;
            reservation::of_subnets(&mut db, &[subnet.id]).await?
        }
    };
    let views = reservations
        .iter()
        .filter(|reservation| !reservation.user_reserved)
        .map(|reservation| view(reservation, &networks));
    Ok(answer(&views.collect()))
}

async fn found(request: &Request, db: &mut PgConnection) -> Result<Reservation, ApiError> {
    let id = request.path_id("id", "ReservedIP")?;
    let reservation = reservation::get(db, id).await?;
    match reservation.user_reserved {
        false => Ok(reservation),
        true => Err(ApiError::no_such("ReservedIP")),
    }
}

async fn read(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let reservation = found(&request, &mut db).await?;
    let networks = Networks::load(&mut db).await?;
    Ok(answer(&view(&reservation, &networks)))
}

//---------------------------------------------------------------- what a form asks for

/// Whom a form names: exactly one of MAC, client id and circuit id.
fn key_of(form: &Form) -> Result<Key, ApiError> {
    let identifier = |name: &str| -> Result<Option<Identifier>, ApiError> {
        form.parsed(
            name,
            "Enter 1 to 255 octets: text, or hex as 0x0a0b or 0a:0b.",
        )
    };
    let mac = mac_of(form, "mac_address")?;
    let (client_id, circuit, remote) = (
        identifier("client_id")?,
        identifier("circuit_id")?,
        identifier("remote_id")?,
    );
    if remote.is_some() && circuit.is_none() {
        return Err(ApiError::field(
            "remote_id",
            "A remote id says which relay's circuit_id is meant: give that too.",
        ));
    }
    match (mac, client_id, circuit) {
        (Some(mac), None, None) => Ok(Key::Mac(mac.octets())),
        (None, Some(id), None) => Ok(Key::ClientId(id)),
        (None, None, Some(circuit)) => Ok(Key::Circuit { circuit, remote }),
        (None, None, None) => Err(ApiError::required("mac_address")),
        _ => Err(ApiError::bad_request(
            "Only one of mac_address, client_id and circuit_id can say for whom the address is.",
        )),
    }
}

/// A MAC address that one host can have.
pub(crate) fn mac_of(form: &Form, name: &str) -> Result<Option<Mac>, ApiError> {
    let mac: Option<Mac> = form.parsed(name, "Enter a valid MAC address.")?;
    match mac {
        Some(mac) if !mac.is_unicast() => Err(ApiError::field(
            name,
            "This MAC address cannot be one machine's.",
        )),
        mac => Ok(mac),
    }
}

/// A host name (RFC 1123 §2.1), or "".
pub(crate) fn hostname_of(form: &Form) -> Result<&str, ApiError> {
    let name = form.filled("hostname").unwrap_or("");
    let plain = |octet: u8| octet.is_ascii_alphanumeric() || octet == b'-';
    let is_fine = name.len() <= 63
        && name.bytes().all(plain)
        && !name.starts_with('-')
        && !name.ends_with('-');
    match is_fine {
        true => Ok(name),
        false => Err(ApiError::field("hostname", "Enter a valid hostname.")),
    }
}

/// The subnet that a form names, else the one that holds the address.
pub(crate) fn subnet_of<'a>(
    form: &Form,
    networks: &'a Networks,
    ip: IpAddr,
) -> Result<&'a Subnet, ApiError> {
    let subnet = match form.filled("subnet") {
        Some(wanted) => networks.named(wanted),
        None => networks.subnet_of(ip),
    };
    subnet.ok_or_else(|| ApiError::field("subnet", "There is no such subnet."))
}

/// Whether the address can be set aside in its subnet at all.
pub(crate) async fn check_address(
    db: &mut PgConnection,
    subnet: &Subnet,
    ip: IpAddr,
) -> Result<(), ApiError> {
    let refused = |message: String| Err(ApiError::field("ip", message));
    if !subnet.cidr.contains(&ip) {
        return refused(format!(
            "The address must be within the subnet {}.",
            subnet.cidr
        ));
    }
    let hosts = host_span(&subnet.cidr);
    if !(hosts.0..=hosts.1).contains(&number_of(ip)) {
        return refused("The network and broadcast addresses cannot be reserved.".into());
    }
    if subnet.gateway_ip == Some(ip) {
        return refused("The address is the subnet's gateway.".into());
    }
    match store::rack::address_within(&mut *db, ip, ip).await? {
        Some((_, rack)) => refused(format!("The address is the rack {rack}'s own.")),
        None => Ok(()),
    }
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let ip: Option<IpAddr> = form.parsed("ip", "Enter a valid IPv4 or IPv6 address.")?;
    let ip = ip.ok_or_else(|| ApiError::required("ip"))?;
    let key = key_of(form)?;
    let hostname = hostname_of(form)?;
    let comment = comment_of(form)?.unwrap_or("");
    let lease_secs = lease_field(form)?.flatten();
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let networks = Networks::load(&mut tx).await?;
    let subnet = subnet_of(form, &networks, ip)?;
    check_address(&mut tx, subnet, ip).await?;
    if let Some(other) = reservation::of_key(&mut tx, subnet.vlan_id, &key).await? {
        return Err(ApiError::bad_request(format!(
            "This client has {} reserved on the same VLAN.",
            other.ip
        )));
    }
    let new = NewReservation {
        subnet_id: subnet.id,
        ip,
        key: Some(&key),
        hostname,
        comment,
        lease_secs,
        user_reserved: false,
        account_id: request.caller.as_ref().map(|caller| caller.id),
    };
    let id = reservation::create(&mut tx, &new).await?;
    store::event::record(&mut tx, changed(&request, format!("Address {ip} reserved"))).await?;
    tx.commit().await?;
    let reservation = reservation::get(&mut *request.app.db().await?, id).await?;
    Ok(answer(&view(&reservation, &networks)))
}

fn comment_of(form: &Form) -> Result<Option<&str>, ApiError> {
    let comment = form.get("comment");
    match comment.is_some_and(|text| text.chars().count() > COMMENT_CHARS_MAX) {
        true => Err(ApiError::field("comment", "At most 255 characters.")),
        false => Ok(comment),
    }
}

async fn update(request: Request) -> Reply {
    let form = &request.form;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let before = found(&request, &mut tx).await?;
    stays(form, &before)?;
    if let Some(wanted) = form.filled("subnet") {
        let networks = Networks::load(&mut tx).await?;
        if networks.named(wanted).map(|subnet| subnet.id) != Some(before.subnet_id) {
            return Err(ApiError::field("subnet", UNCHANGEABLE));
        }
    }
    let hostname = match form.has("hostname") {
        true => hostname_of(form)?,
        false => &before.hostname,
    };
    let comment = comment_of(form)?.unwrap_or(&before.comment);
    let lease_secs = lease_field(form)?.unwrap_or(before.lease_secs);
    reservation::update(&mut tx, before.id, hostname, comment, lease_secs).await?;
    let text = format!("Reservation of {} changed", before.ip);
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    read(request).await
}

const UNCHANGEABLE: &str = "This cannot be changed: delete the reservation and make another.";

/// Another address or another client is another reservation.
fn stays(form: &Form, before: &Reservation) -> Result<(), ApiError> {
    let [mac, client_id, circuit_id, remote_id] = key_view(before.key.as_ref());
    let ip = Some(before.ip.to_string());
    for (name, value) in [
        ("ip", ip),
        ("mac_address", mac),
        ("client_id", client_id),
        ("circuit_id", circuit_id),
        ("remote_id", remote_id),
    ] {
        let given = form.filled(name);
        let same = given.is_none_or(|given| {
            value.as_deref() == Some(given)
                || (name == "mac_address"
                    && given.parse::<Mac>().ok().map(|mac| mac.to_string()) == value)
        });
        if !same {
            return Err(ApiError::field(name, UNCHANGEABLE));
        }
    }
    Ok(())
}

async fn delete(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let reservation = found(&request, &mut tx).await?;
    reservation::delete(&mut tx, reservation.id).await?;
    let text = format!("Reservation of {} deleted", reservation.ip);
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    Ok(deleted())
}
