//! Addresses that are set aside: reservations for one client each (MAAS's reserved IPs), and what users reserved.
//!
//! Rules between rows are the caller's to check under [`crate::network::lock_networks`].

use std::net::IpAddr;

use mac_address::MacAddress;
use model::dhcp::Identifier;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;

use crate::{StoreError, feed, lease};

/// Whom an address is set aside for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Key {
    Mac([u8; 6]),
    /// Option 61 as it is sent.
    ClientId(Identifier),
    /// Option 82: the port a relay names, and which relay if that matters.
    Circuit {
        circuit: Identifier,
        remote: Option<Identifier>,
    },
}

/// An address that is set aside.
#[derive(Clone, Debug)]
pub struct Reservation {
    pub id: i32,
    pub subnet_id: i32,
    /// The subnet's.
    pub vlan_id: i32,
    pub ip: IpAddr,
    /// None only for what a user reserved: nobody gets it.
    pub key: Option<Key>,
    pub hostname: String,
    pub comment: String,
    pub lease_secs: Option<i32>,
    /// By `ipaddresses`, not as a reserved IP.
    pub user_reserved: bool,
    pub account_id: Option<i32>,
    /// Of that account.
    pub owner: Option<String>,
    pub created: OffsetDateTime,
}

macro_rules! reservations {
    ($tail:literal) => {
        concat!(
            "select r.id, r.subnet_id, s.vlan_id, r.ip, r.mac, r.client_id, r.circuit_id, r.remote_id, r.hostname, r.comment,
                    r.lease_secs, r.user_reserved, r.account_id, a.username, r.created
             from reserved_ip r join subnet s on s.id = r.subnet_id left join account a on a.id = r.account_id ",
            $tail
        )
    };
}

/// All of them, by address.
pub async fn list(db: &mut PgConnection) -> Result<Vec<Reservation>, StoreError> {
    let rows = sqlx::query(reservations!("order by r.ip")).fetch_all(db);
    rows.await?.iter().map(reservation).collect()
}

/// Those of some subnets, by address.
pub async fn of_subnets(
    db: &mut PgConnection,
    subnets: &[i32],
) -> Result<Vec<Reservation>, StoreError> {
    let rows = sqlx::query(reservations!("where r.subnet_id = any($1) order by r.ip"))
        .bind(subnets)
        .fetch_all(db);
    rows.await?.iter().map(reservation).collect()
}

pub async fn get(db: &mut PgConnection, id: i32) -> Result<Reservation, StoreError> {
    let row = sqlx::query(reservations!("where r.id = $1"))
        .bind(id)
        .fetch_optional(db)
        .await?;
    reservation(&row.ok_or_else(|| StoreError::not_found("reserved_ip", id))?)
}

pub async fn of_address(
    db: &mut PgConnection,
    ip: IpAddr,
) -> Result<Option<Reservation>, StoreError> {
    let row = sqlx::query(reservations!("where r.ip = $1"))
        .bind(ip)
        .fetch_optional(db)
        .await?;
    row.as_ref().map(reservation).transpose()
}

/// The reservation on a VLAN for the same client: a client has one address there.
pub async fn of_key(
    db: &mut PgConnection,
    vlan_id: i32,
    key: &Key,
) -> Result<Option<Reservation>, StoreError> {
    let columns = Columns::of(Some(key));
    let row = sqlx::query(reservations!(
        "where s.vlan_id = $1 and r.mac is not distinct from $2 and r.client_id is not distinct from $3
           and r.circuit_id is not distinct from $4 and r.remote_id is not distinct from $5
         limit 1"
    ))
    .bind(vlan_id)
    .bind(columns.mac)
    .bind(columns.client_id)
    .bind(columns.circuit_id)
    .bind(columns.remote_id)
    .fetch_optional(db)
    .await?;
    row.as_ref().map(reservation).transpose()
}

#[derive(Clone, Debug)]
pub struct NewReservation<'a> {
    pub subnet_id: i32,
    pub ip: IpAddr,
    pub key: Option<&'a Key>,
    pub hostname: &'a str,
    pub comment: &'a str,
    pub lease_secs: Option<i32>,
    pub user_reserved: bool,
    pub account_id: Option<i32>,
}

/// An address that is set aside already: constraint `reserved_ip_ip_key`.
pub async fn create(db: &mut PgConnection, new: &NewReservation<'_>) -> Result<i32, StoreError> {
    let columns = Columns::of(new.key);
    let id: i32 = sqlx::query_scalar(
        "insert into reserved_ip (subnet_id, ip, mac, client_id, circuit_id, remote_id, hostname, comment, lease_secs,
                                  user_reserved, account_id)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11) returning id",
    )
    .bind(new.subnet_id)
    .bind(new.ip)
    .bind(columns.mac)
    .bind(columns.client_id)
    .bind(columns.circuit_id)
    .bind(columns.remote_id)
    .bind(new.hostname)
    .bind(new.comment)
    .bind(new.lease_secs)
    .bind(new.user_reserved)
    .bind(new.account_id)
    .fetch_one(&mut *db)
    .await?;
    changed(db, id, new.subnet_id).await?;
    Ok(id)
}

/// What a reservation says beside whom it is for. The address and the client stay: another is another reservation.
pub async fn update(
    db: &mut PgConnection,
    id: i32,
    hostname: &str,
    comment: &str,
    lease_secs: Option<i32>,
) -> Result<(), StoreError> {
    let subnet: Option<i32> = sqlx::query_scalar(
        "update reserved_ip set hostname = $2, comment = $3, lease_secs = $4 where id = $1 returning subnet_id",
    )
    .bind(id)
    .bind(hostname)
    .bind(comment)
    .bind(lease_secs)
    .fetch_optional(&mut *db)
    .await?;
    let subnet = subnet.ok_or_else(|| StoreError::not_found("reserved_ip", id))?;
    changed(db, id, subnet).await
}

async fn changed(db: &mut PgConnection, id: i32, subnet_id: i32) -> Result<(), StoreError> {
    told(db, id).await?;
    lease::note_longest(db, subnet_id).await
}

pub async fn delete(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    told(db, id).await?;
    let done = sqlx::query("delete from reserved_ip where id = $1")
        .bind(id)
        .execute(db)
        .await?;
    match done.rows_affected() {
        0 => Err(StoreError::not_found("reserved_ip", id)),
        _ => Ok(()),
    }
}

/// Tells racks of it; to be called while the row is there.
pub(crate) async fn told(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    let key: Option<String> = sqlx::query_scalar(
        "select s.vlan_id || ':' || host(r.ip) from reserved_ip r join subnet s on s.id = r.subnet_id where r.id = $1",
    )
    .bind(id)
    .fetch_optional(&mut *db)
    .await?;
    match key {
        Some(key) => feed::changed(db, feed::Kind::Reservation, &key).await,
        None => Ok(()),
    }
}

/// Tells racks of all of a subnet, which has come to this VLAN. A rack drops those of a subnet that left with the link.
pub(crate) async fn told_of_subnet(
    db: &mut PgConnection,
    subnet_id: i32,
    vlan_id: i32,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into change (kind, key)
         select 'reservation', $2 || ':' || host(ip) from reserved_ip where subnet_id = $1 order by ip",
    )
    .bind(subnet_id)
    .bind(vlan_id.to_string())
    .execute(db)
    .await?;
    Ok(())
}

//---------------------------------------------------------------- keys

#[derive(Default)]
struct Columns<'a> {
    mac: Option<MacAddress>,
    client_id: Option<&'a [u8]>,
    circuit_id: Option<&'a [u8]>,
    remote_id: Option<&'a [u8]>,
}

impl<'a> Columns<'a> {
    fn of(key: Option<&'a Key>) -> Self {
        let mut columns = Columns::default();
        match key {
            None => {}
            Some(Key::Mac(mac)) => columns.mac = Some(MacAddress::new(*mac)),
            Some(Key::ClientId(id)) => columns.client_id = Some(id.octets()),
            Some(Key::Circuit { circuit, remote }) => {
                columns.circuit_id = Some(circuit.octets());
                columns.remote_id = remote.as_ref().map(Identifier::octets);
            }
        }
        columns
    }
}

/// The key of a row with these columns.
pub(crate) fn key(row: &PgRow) -> Result<Option<Key>, StoreError> {
    let mac: Option<MacAddress> = row.try_get("mac")?;
    let identifier = |column| -> Result<Option<Identifier>, StoreError> {
        let octets: Option<Vec<u8>> = row.try_get(column)?;
        // Of 1 to 255 octets by the schema.
        Ok(octets.and_then(|octets| Identifier::new(&octets)))
    };
    if let Some(mac) = mac {
        return Ok(Some(Key::Mac(mac.bytes())));
    }
    if let Some(id) = identifier("client_id")? {
        return Ok(Some(Key::ClientId(id)));
    }
    let remote = identifier("remote_id")?;
    Ok(identifier("circuit_id")?.map(|circuit| Key::Circuit { circuit, remote }))
}

fn reservation(row: &PgRow) -> Result<Reservation, StoreError> {
    Ok(Reservation {
        id: row.try_get("id")?,
        subnet_id: row.try_get("subnet_id")?,
        vlan_id: row.try_get("vlan_id")?,
        ip: row.try_get("ip")?,
        key: key(row)?,
        hostname: row.try_get("hostname")?,
        comment: row.try_get("comment")?,
        lease_secs: row.try_get("lease_secs")?,
        user_reserved: row.try_get("user_reserved")?,
        account_id: row.try_get("account_id")?,
        owner: row.try_get("username")?,
        created: row.try_get("created")?,
    })
}
