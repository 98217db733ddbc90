//! Who has which address: for DNS, the API, and the question whether a request comes from the machine it claims to be.

use std::net::IpAddr;

use ipnet::IpNet;
use lease::Client;
use mac_address::MacAddress;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;

use crate::StoreError;
use crate::lease::client_of_row;

/// A live lease: granted, and its end not passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Binding {
    pub address: IpAddr,
    /// The client's.
    pub vlan_id: i32,
    /// None: the range the address came from is gone.
    pub subnet_id: Option<i32>,
    pub client: Client,
    /// The client's hardware address, where the identity tells it.
    pub mac: Option<[u8; 6]>,
    /// What the client calls itself (option 12), "" if nothing. Not to be trusted.
    pub hostname: String,
    /// The last grant.
    pub granted: Option<OffsetDateTime>,
    pub ends: OffsetDateTime,
    /// The client gave it back; it may still be in use.
    pub released: bool,
}

macro_rules! bindings {
    ($tail:literal) => {
        concat!(
            "select l.address, l.vlan_id, b.subnet_id, l.client_kind, l.client_key, l.mac, l.hostname, l.granted, l.ends,
                    l.released
             from lease l left join lateral (
                 select k.subnet_id, k.first, k.count from lease_block k where k.first <= l.address
                 order by k.first desc limit 1
             ) b on l.address <= b.first + (b.count - 1)
             where l.client_kind is not null and l.ends > now() and ",
            $tail
        )
    };
}

/// The live binding of an address, if there is one.
pub async fn binding_of_address(
    db: &mut PgConnection,
    address: IpAddr,
) -> Result<Option<Binding>, StoreError> {
    let row = sqlx::query(bindings!("l.address = $1"))
        .bind(address)
        .fetch_optional(db)
        .await?;
    row.as_ref().map(binding).transpose()
}

/// The live bindings of a hardware address, newest grant first (one per VLAN that it was seen on).
pub async fn bindings_of_mac(
    db: &mut PgConnection,
    mac: [u8; 6],
) -> Result<Vec<Binding>, StoreError> {
    let rows = sqlx::query(bindings!(
        "l.mac = $1 order by l.granted desc nulls last limit 100"
    ))
    .bind(MacAddress::new(mac))
    .fetch_all(db)
    .await?;
    rows.iter().map(binding).collect()
}

/// The addresses that these hardware addresses have now, by one index look-up each.
pub async fn addresses_of_macs(
    db: &mut PgConnection,
    macs: &[MacAddress],
) -> Result<Vec<(MacAddress, IpAddr)>, StoreError> {
    Ok(sqlx::query_as(
        "select l.mac, l.address from unnest($1::macaddr[]) as asked (mac)
         cross join lateral (
             select l.mac, l.address from lease l
             where l.mac = asked.mac and l.client_kind is not null and l.ends > now()
             order by l.granted desc nulls last, l.address limit 100
         ) l",
    )
    .bind(macs)
    .fetch_all(db)
    .await?)
}

/// The leased addresses of a subnet that lie in none of its ranges, by address: what is in a range is nobody's to reserve
/// anyway, and may be tens of thousands.
pub async fn leased_outside_ranges(
    db: &mut PgConnection,
    subnet_id: i32,
    cidr: &IpNet,
) -> Result<Vec<IpAddr>, StoreError> {
    Ok(sqlx::query_scalar(
        "select address from lease l
         where address >= $1 and address <= $2 and client_kind is not null and ends > now()
           and not exists (select from iprange r
                           where r.subnet_id = $3 and l.address between r.start_ip and r.end_ip)
         order by address",
    )
    .bind(cidr.network())
    .bind(cidr.broadcast())
    .bind(subnet_id)
    .fetch_all(db)
    .await?)
}

/// The live leases of a subnet, or all, by address; at most `limit` of those after `after`.
pub async fn list(
    db: &mut PgConnection,
    subnet_id: Option<i32>,
    after: Option<IpAddr>,
    limit: u32,
) -> Result<Vec<Binding>, StoreError> {
    let rows = sqlx::query(bindings!(
        "($1::int is null or b.subnet_id = $1) and ($2::inet is null or l.address > $2)
         order by l.address limit $3"
    ))
    .bind(subnet_id)
    .bind(after)
    .bind(i64::from(limit))
    .fetch_all(db)
    .await?;
    rows.iter().map(binding).collect()
}

fn binding(row: &PgRow) -> Result<Binding, StoreError> {
    let mac: Option<MacAddress> = row.try_get("mac")?;
    Ok(Binding {
        address: row.try_get("address")?,
        vlan_id: row.try_get("vlan_id")?,
        subnet_id: row.try_get("subnet_id")?,
        client: client_of_row(row)?.ok_or(StoreError::Corrupt {
            what: "client of a lease",
        })?,
        mac: mac.map(|mac| mac.bytes()),
        hostname: row.try_get("hostname")?,
        granted: row.try_get("granted")?,
        ends: row.try_get("ends")?,
        released: row.try_get("released")?,
    })
}
