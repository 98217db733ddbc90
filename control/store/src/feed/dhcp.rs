//! Subnets, ranges, reservations and options, as DHCP needs them.
//!
//! Global options are merged into each subnet's; the closer scope wins. Ranges and hosts keep their own apart: which of them
//! a client belongs to is the rack's to see.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use ipnetwork::IpNetwork;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};

use crate::StoreError;
use crate::reservation::{self, Key};

/// A subnet with its ranges.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SubnetValue {
    pub id: i32,
    pub vlan: i32,
    pub prefix: IpNetwork,
    pub gateway: Option<IpAddr>,
    pub dns_servers: Vec<IpAddr>,
    pub ntp_servers: Vec<IpAddr>,
    pub lease_secs: u32,
    pub disabled_archs: Vec<String>,
    pub client_id_identity: bool,
    /// By first address.
    pub ranges: Vec<RangeValue>,
    /// By code; global ones included.
    pub options: Vec<OptionValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RangeValue {
    pub id: i32,
    pub first: IpAddr,
    pub last: IpAddr,
    pub is_dynamic: bool,
    /// In place of the subnet's.
    pub lease_secs: Option<u32>,
    /// By code.
    pub options: Vec<OptionValue>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OptionValue {
    pub code: u8,
    /// As on the wire; empty: left out.
    pub value: Vec<u8>,
    pub always: bool,
}

/// An address that is set aside for one client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReservationValue {
    pub vlan: i32,
    pub subnet: i32,
    pub key: Key,
    pub address: IpAddr,
    pub hostname: String,
    pub lease_secs: Option<u32>,
    /// By code.
    pub options: Vec<OptionValue>,
}

pub async fn subnets(db: &mut PgConnection, vlans: &[i32]) -> Result<Vec<SubnetValue>, StoreError> {
    let rows = sqlx::query(
        "select id, vlan_id, cidr::inet as cidr, gateway_ip, dns_servers, ntp_servers, lease_secs,
                disabled_boot_architectures, client_id_identity
         from subnet where vlan_id = any($1) order by id",
    )
    .bind(vlans)
    .fetch_all(&mut *db)
    .await?;
    let mut subnets = rows.iter().map(subnet).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<i32> = subnets.iter().map(|subnet| subnet.id).collect();
    let mut options = Options::of_subnets(db, &ids).await?;
    for subnet in &mut subnets {
        subnet.options = options.of_subnet(subnet.id);
    }
    let ranges = sqlx::query(
        "select id, subnet_id, type, start_ip, end_ip, lease_secs from iprange where subnet_id = any($1)
         order by subnet_id, start_ip",
    )
    .bind(&ids)
    .fetch_all(db)
    .await?;
    for row in &ranges {
        let subnet_id: i32 = row.try_get("subnet_id")?;
        let (first, last): (IpNetwork, IpNetwork) =
            (row.try_get("start_ip")?, row.try_get("end_ip")?);
        let id = row.try_get("id")?;
        let range = RangeValue {
            id,
            first: first.ip(),
            last: last.ip(),
            is_dynamic: row.try_get::<&str, _>("type")? == "dynamic",
            lease_secs: secs(row)?,
            options: options.of_range(id),
        };
        // Sorted by id above.
        if let Ok(at) = subnets.binary_search_by_key(&subnet_id, |subnet| subnet.id) {
            subnets[at].ranges.push(range);
        }
    }
    Ok(subnets)
}

fn subnet(row: &PgRow) -> Result<SubnetValue, StoreError> {
    let ips = |column| -> Result<Vec<IpAddr>, StoreError> {
        let list: Vec<IpNetwork> = row.try_get(column)?;
        Ok(list.iter().map(IpNetwork::ip).collect())
    };
    let gateway: Option<IpNetwork> = row.try_get("gateway_ip")?;
    Ok(SubnetValue {
        id: row.try_get("id")?,
        vlan: row.try_get("vlan_id")?,
        prefix: row.try_get("cidr")?,
        gateway: gateway.map(|gateway| gateway.ip()),
        dns_servers: ips("dns_servers")?,
        ntp_servers: ips("ntp_servers")?,
        lease_secs: row.try_get::<i32, _>("lease_secs")?.unsigned_abs(),
        disabled_archs: row.try_get("disabled_boot_architectures")?,
        client_id_identity: row.try_get("client_id_identity")?,
        ranges: Vec::new(),
        options: Vec::new(),
    })
}

fn secs(row: &PgRow) -> Result<Option<u32>, StoreError> {
    let secs: Option<i32> = row.try_get("lease_secs")?;
    Ok(secs.map(i32::unsigned_abs))
}

/// The reservations on these VLANs. Addresses that are nobody's are not told: they are in no dynamic range.
pub async fn reservations(
    db: &mut PgConnection,
    vlans: &[i32],
) -> Result<Vec<ReservationValue>, StoreError> {
    let rows = sqlx::query(
        "select r.id, s.vlan_id, r.subnet_id, r.mac, r.client_id, r.circuit_id, r.remote_id, r.ip, r.hostname, r.lease_secs
         from reserved_ip r join subnet s on s.id = r.subnet_id
         where s.vlan_id = any($1) order by s.vlan_id, r.ip",
    )
    .bind(vlans)
    .fetch_all(&mut *db)
    .await?;
    let mut options = Options::of_hosts(db, vlans).await?;
    let mut values = Vec::with_capacity(rows.len());
    for row in &rows {
        let Some(key) = reservation::key(row)? else {
            continue;
        };
        let address: IpNetwork = row.try_get("ip")?;
        values.push(ReservationValue {
            vlan: row.try_get("vlan_id")?,
            subnet: row.try_get("subnet_id")?,
            key,
            address: address.ip(),
            hostname: row.try_get("hostname")?,
            lease_secs: secs(row)?,
            options: options
                .hosts
                .remove(&row.try_get("id")?)
                .unwrap_or_default(),
        });
    }
    Ok(values)
}

/// The options of some scopes, each list by code.
#[derive(Default)]
struct Options {
    global: Vec<OptionValue>,
    subnets: HashMap<i32, Vec<OptionValue>>,
    ranges: HashMap<i32, Vec<OptionValue>>,
    hosts: HashMap<i32, Vec<OptionValue>>,
}

impl Options {
    async fn of_subnets(db: &mut PgConnection, subnets: &[i32]) -> Result<Self, StoreError> {
        let rows = sqlx::query(
            "select o.subnet_id, o.iprange_id, o.reserved_ip_id, o.code, o.value, o.always
             from dhcp_option o left join iprange r on r.id = o.iprange_id
             where o.reserved_ip_id is null
               and (coalesce(o.subnet_id, r.subnet_id) = any($1) or (o.subnet_id is null and o.iprange_id is null))
             order by o.code",
        )
        .bind(subnets)
        .fetch_all(db)
        .await?;
        Self::read(&rows)
    }

    async fn of_hosts(db: &mut PgConnection, vlans: &[i32]) -> Result<Self, StoreError> {
        let rows = sqlx::query(
            "select o.subnet_id, o.iprange_id, o.reserved_ip_id, o.code, o.value, o.always
             from dhcp_option o join reserved_ip h on h.id = o.reserved_ip_id join subnet s on s.id = h.subnet_id
             where s.vlan_id = any($1) order by o.code",
        )
        .bind(vlans)
        .fetch_all(db)
        .await?;
        Self::read(&rows)
    }

    fn read(rows: &[PgRow]) -> Result<Self, StoreError> {
        let mut options = Self::default();
        for row in rows {
            let corrupt = |_| StoreError::Corrupt {
                what: "DHCP option",
            };
            let option = OptionValue {
                code: u8::try_from(row.try_get::<i16, _>("code")?).map_err(corrupt)?,
                value: row.try_get("value")?,
                always: row.try_get("always")?,
            };
            let id = |column| row.try_get::<Option<i32>, _>(column);
            let (subnet, range, host) =
                (id("subnet_id")?, id("iprange_id")?, id("reserved_ip_id")?);
            let list = match (subnet, range, host) {
                (Some(id), ..) => options.subnets.entry(id).or_default(),
                (_, Some(id), _) => options.ranges.entry(id).or_default(),
                (.., Some(id)) => options.hosts.entry(id).or_default(),
                _ => &mut options.global,
            };
            list.push(option);
        }
        Ok(options)
    }

    fn of_subnet(&mut self, id: i32) -> Vec<OptionValue> {
        let own = self.subnets.remove(&id).unwrap_or_default();
        let merged: BTreeMap<u8, OptionValue> = self
            .global
            .iter()
            .cloned()
            .chain(own)
            .map(|option| (option.code, option))
            .collect();
        merged.into_values().collect()
    }

    fn of_range(&mut self, id: i32) -> Vec<OptionValue> {
        self.ranges.remove(&id).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    #[tokio::test]
    async fn options_and_lease_times_come_by_scope_and_the_closest_wins() {
        let db = testing::database().await;
        let mut db = db.pool.acquire().await.unwrap();
        for sql in [
            "insert into fabric (id, name) values (1, 'f')",
            "insert into vlan (id, fabric_id, vid) values (1, 1, 1), (2, 1, 2)",
            "insert into subnet (id, vlan_id, name, cidr) values (1, 1, 'one', '10.1.0.0/24'), (2, 2, 'two', '10.2.0.0/24')",
            "insert into iprange (id, subnet_id, type, start_ip, end_ip, lease_secs) values
                (1, 1, 'dynamic', '10.1.0.10', '10.1.0.99', 60), (2, 1, 'reserved', '10.1.0.20', '10.1.0.29', null)",
            "insert into reserved_ip (id, subnet_id, ip, mac, client_id, circuit_id, remote_id, hostname, lease_secs, user_reserved) values
                (1, 1, '10.1.0.5', '02:00:00:00:00:01', null, null, null, 'h1', 7200, false),
                (2, 1, '10.1.0.6', null, '\\x01aa', null, null, '', null, false),
                (3, 1, '10.1.0.7', null, null, '\\x70', '\\x72', '', null, false),
                (4, 1, '10.1.0.8', null, null, null, null, '', null, true)",
            "insert into dhcp_option (subnet_id, iprange_id, reserved_ip_id, code, value, text, always) values
                (null, null, null, 42, '\\x0a000001', '', false), (null, null, null, 15, '\\x61', '', false),
                (1, null, null, 42, '\\x', '', true), (null, 1, null, 66, '\\x62', '', false),
                (null, null, 1, 67, '\\x63', '', true), (2, null, null, 26, '\\x05dc', '', false)",
        ] {
            sqlx::query(sql).execute(&mut *db).await.unwrap();
        }
        let option = |code, value: &[u8], always| OptionValue {
            code,
            value: value.to_vec(),
            always,
        };
        let subnets = subnets(&mut db, &[1, 2]).await.unwrap();
        assert_eq!(
            subnets[0].options,
            [option(15, b"a", false), option(42, b"", true)]
        );
        assert_eq!(
            subnets[1].options,
            [
                option(15, b"a", false),
                option(26, &[5, 0xdc], false),
                option(42, &[10, 0, 0, 1], false)
            ]
        );
        let ranges = &subnets[0].ranges;
        assert_eq!(
            (ranges[0].id, ranges[0].lease_secs, &*ranges[0].options),
            (1, Some(60), &[option(66, b"b", false)][..])
        );
        assert_eq!((ranges[1].is_dynamic, ranges[1].lease_secs), (false, None));

        let hosts = reservations(&mut db, &[1]).await.unwrap();
        let id = |octets: &[u8]| model::dhcp::Identifier::new(octets).unwrap();
        let keys: Vec<&Key> = hosts.iter().map(|host| &host.key).collect();
        assert_eq!(
            keys,
            [
                &Key::Mac([2, 0, 0, 0, 0, 1]),
                &Key::ClientId(id(&[1, 0xaa])),
                &Key::Circuit {
                    circuit: id(b"p"),
                    remote: Some(id(b"r"))
                },
            ],
            "an address that is nobody's is not told"
        );
        assert_eq!(
            (hosts[0].lease_secs, &*hosts[0].options),
            (Some(7200), &[option(67, b"c", true)][..])
        );
    }
}
