//! Fabrics, VLANs, subnets and address ranges.
//!
//! Networks are few (thousands at most): lists are whole tables. Every change writes the feed's outbox under
//! the VLANs it touches, and keeps the lease blocks in step. Rules between rows (overlap, "a range belongs to
//! its subnet") are the caller's to check under `lock_networks`.

use std::net::IpAddr;

use ipnet::IpNet;
use model::dhcp::DhcpMode;
use sqlx::PgConnection;

use crate::{StoreError, dhcp, feed, lease, reservation};

/// One writer at a time changes networks, so that checks between rows hold until commit.
pub async fn lock_networks(db: &mut PgConnection) -> Result<(), StoreError> {
    sqlx::query("select pg_advisory_xact_lock(hashtextextended('muster networks', 0))")
        .execute(db)
        .await?;
    Ok(())
}

async fn link_changed(db: &mut PgConnection, vlan_id: i32) -> Result<(), StoreError> {
    feed::changed(db, feed::Kind::Link, &vlan_id.to_string()).await
}

//---------------------------------------------------------------- fabrics

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Fabric {
    pub id: i32,
    pub name: String,
    pub description: String,
    pub class_type: String,
}

pub async fn fabrics(db: &mut PgConnection) -> Result<Vec<Fabric>, StoreError> {
    Ok(
        sqlx::query_as("select id, name, description, class_type from fabric order by id")
            .fetch_all(db)
            .await?,
    )
}

/// Creates a fabric with its untagged VLAN. Without a name it is called `fabric-<id>`.
/// A name that is taken: constraint `fabric_name_key`.
pub async fn create_fabric(
    db: &mut PgConnection,
    name: Option<&str>,
    description: &str,
    class_type: &str,
) -> Result<i32, StoreError> {
    let id: i32 = sqlx::query_scalar("select nextval(pg_get_serial_sequence('fabric', 'id'))::int")
        .fetch_one(&mut *db)
        .await?;
    sqlx::query("insert into fabric (id, name, description, class_type) values ($1, $2, $3, $4)")
        .bind(id)
        .bind(name.map_or_else(|| format!("fabric-{id}"), str::to_owned))
        .bind(description)
        .bind(class_type)
        .execute(&mut *db)
        .await?;
    create_vlan(
        db,
        id,
        &VlanChange {
            vid: Some(0),
            name: Some("untagged"),
            ..VlanChange::default()
        },
    )
    .await?;
    Ok(id)
}

pub async fn update_fabric(
    db: &mut PgConnection,
    id: i32,
    name: Option<&str>,
    description: Option<&str>,
    class_type: Option<&str>,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "update fabric set name = coalesce($2, name), description = coalesce($3, description),
             class_type = coalesce($4, class_type)
         where id = $1",
    )
    .bind(id)
    .bind(name)
    .bind(description)
    .bind(class_type)
    .execute(db)
    .await?;
    found(done, "fabric", id)
}

/// Interfaces on the VLANs of a fabric, as "eth0 (physical) on node1"; the first few.
pub async fn interfaces_of_fabric(
    db: &mut PgConnection,
    id: i32,
) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar(
        "select i.name || ' (' || i.type || ') on ' || m.hostname
         from interface i join vlan v on v.id = i.vlan_id join machine m on m.system_id = i.machine
         where v.fabric_id = $1 order by m.hostname, i.name limit $2",
    )
    .bind(id)
    .bind(NAMED_MAX)
    .fetch_all(db)
    .await?)
}

/// Of what a refusal names; more are counted only.
const NAMED_MAX: i64 = 10;

/// Deletes a fabric and its VLANs. One with subnets: constraint `subnet_vlan_id_fkey`.
pub async fn delete_fabric(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    let vlans: Vec<i32> = sqlx::query_scalar("select id from vlan where fabric_id = $1")
        .bind(id)
        .fetch_all(&mut *db)
        .await?;
    let done = sqlx::query("delete from fabric where id = $1")
        .bind(id)
        .execute(&mut *db)
        .await?;
    found(done, "fabric", id)?;
    for vlan in vlans {
        link_changed(db, vlan).await?;
    }
    Ok(())
}

fn found(
    done: sqlx::postgres::PgQueryResult,
    kind: &'static str,
    id: i32,
) -> Result<(), StoreError> {
    if done.rows_affected() == 0 {
        Err(StoreError::not_found(kind, id))
    } else {
        Ok(())
    }
}

//---------------------------------------------------------------- VLANs

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Vlan {
    pub id: i32,
    pub fabric_id: i32,
    pub fabric: String,
    pub vid: i32,
    pub name: String,
    pub description: String,
    pub mtu: i32,
    pub dhcp_on: bool,
    /// `model::dhcp::DhcpMode`'s word.
    pub dhcp_mode: String,
    pub external_dhcp: Option<IpAddr>,
    pub primary_rack: Option<String>,
    pub secondary_rack: Option<String>,
    pub relay_vlan: Option<i32>,
}

pub async fn vlans(db: &mut PgConnection) -> Result<Vec<Vlan>, StoreError> {
    Ok(sqlx::query_as(
        "select v.id, v.fabric_id, f.name as fabric, v.vid, v.name, v.description, v.mtu, v.dhcp_on, v.dhcp_mode,
                v.external_dhcp, v.primary_rack, v.secondary_rack, v.relay_vlan
         from vlan v join fabric f on f.id = v.fabric_id order by v.fabric_id, v.vid",
    )
    .fetch_all(db)
    .await?)
}

/// What is to change; none leaves it as it is, `Some(None)` clears it.
#[derive(Clone, Debug, Default)]
pub struct VlanChange<'a> {
    pub vid: Option<i32>,
    pub fabric_id: Option<i32>,
    pub name: Option<&'a str>,
    pub description: Option<&'a str>,
    pub mtu: Option<i32>,
    pub dhcp_on: Option<bool>,
    pub dhcp_mode: Option<DhcpMode>,
    pub primary_rack: Option<Option<&'a str>>,
    pub secondary_rack: Option<Option<&'a str>>,
    pub relay_vlan: Option<Option<i32>>,
}

/// Creates a VLAN. A vid that the fabric has: constraint `vlan_fabric_id_vid_key`.
pub async fn create_vlan(
    db: &mut PgConnection,
    fabric_id: i32,
    new: &VlanChange<'_>,
) -> Result<i32, StoreError> {
    let id = sqlx::query_scalar(
        "insert into vlan (fabric_id, vid, name, description, mtu)
         values ($1, $2, $3, $4, coalesce($5, 1500)) returning id",
    )
    .bind(fabric_id)
    .bind(new.vid.unwrap_or(0))
    .bind(new.name.unwrap_or(""))
    .bind(new.description.unwrap_or(""))
    .bind(new.mtu)
    .fetch_one(&mut *db)
    .await?;
    link_changed(db, id).await?;
    Ok(id)
}

pub async fn update_vlan(
    db: &mut PgConnection,
    id: i32,
    change: &VlanChange<'_>,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "update vlan
         set vid = coalesce($2, vid), fabric_id = coalesce($3, fabric_id), name = coalesce($4, name),
             description = coalesce($5, description), mtu = coalesce($6, mtu),
             dhcp_on = coalesce($7, dhcp_on),
             primary_rack = case when $8 then $9 else primary_rack end,
             secondary_rack = case when $10 then $11 else secondary_rack end,
             relay_vlan = case when $12 then $13 else relay_vlan end,
             dhcp_mode = coalesce($14, dhcp_mode)
         where id = $1",
    )
    .bind(id)
    .bind(change.vid)
    .bind(change.fabric_id)
    .bind(change.name)
    .bind(change.description)
    .bind(change.mtu)
    .bind(change.dhcp_on)
    .bind(change.primary_rack.is_some())
    .bind(change.primary_rack.flatten())
    .bind(change.secondary_rack.is_some())
    .bind(change.secondary_rack.flatten())
    .bind(change.relay_vlan.is_some())
    .bind(change.relay_vlan.flatten())
    .bind(change.dhcp_mode.map(DhcpMode::as_str))
    .execute(&mut *db)
    .await?;
    found(done, "vlan", id)?;
    lease::assign_blocks(db, id).await?;
    link_changed(db, id).await
}

/// Deletes a VLAN; its interfaces go to another one. One with subnets: constraint `subnet_vlan_id_fkey`.
pub async fn delete_vlan(
    db: &mut PgConnection,
    id: i32,
    interfaces_to: i32,
) -> Result<(), StoreError> {
    let machines: Vec<String> = sqlx::query_scalar(
        "update interface set vlan_id = $2 where vlan_id = $1 returning machine",
    )
    .bind(id)
    .bind(interfaces_to)
    .fetch_all(&mut *db)
    .await?;
    for machine in machines {
        feed::changed(db, feed::Kind::Machine, &machine).await?;
    }
    let done = sqlx::query("delete from vlan where id = $1")
        .bind(id)
        .execute(&mut *db)
        .await?;
    found(done, "vlan", id)?;
    link_changed(db, id).await
}

//---------------------------------------------------------------- subnets

#[derive(Clone, Debug)]
pub struct Subnet {
    pub id: i32,
    pub vlan_id: i32,
    pub name: String,
    pub description: String,
    pub cidr: IpNet,
    pub gateway_ip: Option<IpAddr>,
    pub dns_servers: Vec<IpAddr>,
    pub ntp_servers: Vec<IpAddr>,
    pub rdns_mode: i32,
    pub allow_dns: bool,
    pub allow_proxy: bool,
    pub active_discovery: bool,
    pub managed: bool,
    pub disabled_boot_architectures: Vec<String>,
    /// In force: its own, or the region's.
    pub lease_secs: i32,
    pub lease_own: bool,
    pub client_id_identity: bool,
}

#[derive(sqlx::FromRow)]
struct SubnetRow {
    id: i32,
    vlan_id: i32,
    name: String,
    description: String,
    cidr: String,
    gateway_ip: Option<IpAddr>,
    dns_servers: Vec<IpAddr>,
    ntp_servers: Vec<IpAddr>,
    rdns_mode: i32,
    allow_dns: bool,
    allow_proxy: bool,
    active_discovery: bool,
    managed: bool,
    disabled_boot_architectures: Vec<String>,
    lease_secs: i32,
    lease_own: bool,
    client_id_identity: bool,
}

/// By network address.
pub async fn subnets(db: &mut PgConnection) -> Result<Vec<Subnet>, StoreError> {
    let rows: Vec<SubnetRow> = sqlx::query_as(
        "select id, vlan_id, name, description, cidr::text as cidr, gateway_ip, dns_servers,
                ntp_servers, rdns_mode, allow_dns, allow_proxy, active_discovery, managed,
                disabled_boot_architectures, lease_secs, lease_own, client_id_identity
         from subnet order by subnet.cidr",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Subnet {
                cidr: row
                    .cidr
                    .parse()
                    .map_err(|_| StoreError::Corrupt { what: "subnet" })?,
                id: row.id,
                vlan_id: row.vlan_id,
                name: row.name,
                description: row.description,
                gateway_ip: row.gateway_ip,
                dns_servers: row.dns_servers,
                ntp_servers: row.ntp_servers,
                rdns_mode: row.rdns_mode,
                allow_dns: row.allow_dns,
                allow_proxy: row.allow_proxy,
                active_discovery: row.active_discovery,
                managed: row.managed,
                disabled_boot_architectures: row.disabled_boot_architectures,
                lease_secs: row.lease_secs,
                lease_own: row.lease_own,
                client_id_identity: row.client_id_identity,
            })
        })
        .collect()
}

/// What is to change; none leaves it as it is, `Some(None)` clears it.
#[derive(Clone, Debug, Default)]
pub struct SubnetChange<'a> {
    pub vlan_id: Option<i32>,
    pub name: Option<&'a str>,
    pub description: Option<&'a str>,
    pub cidr: Option<IpNet>,
    pub gateway_ip: Option<Option<IpAddr>>,
    pub dns_servers: Option<&'a [IpAddr]>,
    pub ntp_servers: Option<&'a [IpAddr]>,
    pub rdns_mode: Option<i32>,
    pub allow_dns: Option<bool>,
    pub allow_proxy: Option<bool>,
    pub active_discovery: Option<bool>,
    pub managed: Option<bool>,
    pub disabled_boot_architectures: Option<&'a [String]>,
    /// `Some(None)`: the region's.
    pub lease_secs: Option<Option<i32>>,
    pub client_id_identity: Option<bool>,
}

/// Creates a subnet; the other parts of `new` count too. A network that is there already: constraint
/// `subnet_cidr_key`.
pub async fn create_subnet(
    db: &mut PgConnection,
    vlan_id: i32,
    cidr: IpNet,
    new: &SubnetChange<'_>,
) -> Result<i32, StoreError> {
    let cidr = cidr.trunc().to_string();
    let lease_secs = dhcp::lease_secs(&mut *db).await?;
    let id: i32 = sqlx::query_scalar(
        "insert into subnet (vlan_id, cidr, name, lease_secs) values ($1, $2::text::cidr, $3, $4) returning id",
    )
    .bind(vlan_id)
    .bind(&cidr)
    .bind(new.name.unwrap_or(&cidr))
    .bind(lease_secs)
    .fetch_one(&mut *db)
    .await?;
    update_subnet(
        db,
        id,
        &SubnetChange {
            vlan_id: None,
            cidr: None,
            name: None,
            ..new.clone()
        },
    )
    .await?;
    Ok(id)
}

pub async fn update_subnet(
    db: &mut PgConnection,
    id: i32,
    change: &SubnetChange<'_>,
) -> Result<(), StoreError> {
    let vlan_before: Option<i32> =
        sqlx::query_scalar("select vlan_id from subnet where id = $1 for update")
            .bind(id)
            .fetch_optional(&mut *db)
            .await?;
    let vlan_before = vlan_before.ok_or_else(|| StoreError::not_found("subnet", id))?;
    let lease_secs = match change.lease_secs {
        Some(None) => Some(dhcp::lease_secs(&mut *db).await?),
        Some(own) => own,
        None => None,
    };
    let vlan_now: i32 = sqlx::query_scalar(
        "update subnet
         set vlan_id = coalesce($2, vlan_id), name = coalesce($3, name),
             description = coalesce($4, description), cidr = coalesce($5::text::cidr, cidr),
             gateway_ip = case when $6 then $7 else gateway_ip end,
             dns_servers = coalesce($8, dns_servers), ntp_servers = coalesce($9, ntp_servers),
             rdns_mode = coalesce($10, rdns_mode), allow_dns = coalesce($11, allow_dns),
             allow_proxy = coalesce($12, allow_proxy),
             active_discovery = coalesce($13, active_discovery), managed = coalesce($14, managed),
             disabled_boot_architectures = coalesce($15, disabled_boot_architectures),
             lease_secs = coalesce($16, lease_secs), lease_own = coalesce($17, lease_own),
             client_id_identity = coalesce($18, client_id_identity)
         where id = $1 returning vlan_id",
    )
    .bind(id)
    .bind(change.vlan_id)
    .bind(change.name)
    .bind(change.description)
    .bind(change.cidr.map(|cidr| cidr.trunc().to_string()))
    .bind(change.gateway_ip.is_some())
    .bind(change.gateway_ip.flatten())
    .bind(change.dns_servers)
    .bind(change.ntp_servers)
    .bind(change.rdns_mode)
    .bind(change.allow_dns)
    .bind(change.allow_proxy)
    .bind(change.active_discovery)
    .bind(change.managed)
    .bind(change.disabled_boot_architectures)
    .bind(lease_secs)
    .bind(change.lease_secs.map(|own| own.is_some()))
    .bind(change.client_id_identity)
    .fetch_one(&mut *db)
    .await?;
    lease::assign_blocks(db, vlan_now).await?;
    link_changed(db, vlan_now).await?;
    if vlan_before != vlan_now {
        lease::assign_blocks(db, vlan_before).await?;
        link_changed(db, vlan_before).await?;
        reservation::told_of_subnet(db, id, vlan_now).await?;
    }
    Ok(())
}

/// What goes when a subnet goes, in words: "the range 10.0.0.10 to 10.0.0.19". The first few of each kind.
pub async fn goes_with_subnet(db: &mut PgConnection, id: i32) -> Result<Vec<String>, StoreError> {
    let mut all = Vec::new();
    for (one, statement) in [
        (
            "the range",
            "select host(start_ip) || ' to ' || host(end_ip) from iprange where subnet_id = $1 order by start_ip limit $2",
        ),
        (
            "the reserved address",
            "select host(ip) from reserved_ip where subnet_id = $1 order by ip limit $2",
        ),
        (
            "the DHCP option",
            "select code::text from dhcp_option where subnet_id = $1 order by code limit $2",
        ),
        (
            "the link of",
            "select i.name || ' on ' || m.hostname from interface_link k
             join interface i on i.id = k.interface_id join machine m on m.system_id = i.machine
             where k.subnet_id = $1 order by m.hostname, i.name limit $2",
        ),
    ] {
        let found: Vec<String> = sqlx::query_scalar(statement)
            .bind(id)
            .bind(NAMED_MAX + 1)
            .fetch_all(&mut *db)
            .await?;
        let more = found.len() as i64 > NAMED_MAX;
        let named = found.into_iter().take(NAMED_MAX as usize);
        all.extend(named.map(|name| format!("{one} {name}")));
        if more {
            all.push(format!("{one}s further on"));
        }
    }
    Ok(all)
}

/// Deletes a subnet with its ranges.
pub async fn delete_subnet(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    let ranges: Vec<i32> = sqlx::query_scalar("select id from iprange where subnet_id = $1")
        .bind(id)
        .fetch_all(&mut *db)
        .await?;
    for range in ranges {
        delete_range(db, range).await?;
    }
    let vlan: Option<i32> =
        sqlx::query_scalar("delete from subnet where id = $1 returning vlan_id")
            .bind(id)
            .fetch_optional(&mut *db)
            .await?;
    link_changed(db, vlan.ok_or_else(|| StoreError::not_found("subnet", id))?).await
}

//---------------------------------------------------------------- ranges

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Range {
    pub id: i32,
    pub subnet_id: i32,
    pub r#type: String,
    pub start_ip: IpAddr,
    pub end_ip: IpAddr,
    pub comment: String,
    pub owner: Option<String>,
    /// In place of the subnet's.
    pub lease_secs: Option<i32>,
}

impl Range {
    pub fn is_dynamic(&self) -> bool {
        self.r#type == "dynamic"
    }
}

/// By subnet and address.
pub async fn ranges(db: &mut PgConnection) -> Result<Vec<Range>, StoreError> {
    Ok(sqlx::query_as(
        "select r.id, r.subnet_id, r.type, r.start_ip, r.end_ip, r.comment, a.username as owner,
                r.lease_secs
         from iprange r left join account a on a.id = r.account_id
         order by r.subnet_id, r.start_ip",
    )
    .fetch_all(db)
    .await?)
}

pub struct NewRange<'a> {
    pub subnet_id: i32,
    pub is_dynamic: bool,
    pub start_ip: IpAddr,
    pub end_ip: IpAddr,
    pub comment: &'a str,
    pub account_id: Option<i32>,
    pub lease_secs: Option<i32>,
}

/// A lease time that may not be: constraint `iprange_lease_secs_check`.
pub async fn create_range(db: &mut PgConnection, new: &NewRange<'_>) -> Result<i32, StoreError> {
    let id = sqlx::query_scalar(
        "insert into iprange (subnet_id, type, start_ip, end_ip, comment, account_id, lease_secs)
         values ($1, $2, $3, $4, $5, $6, $7) returning id",
    )
    .bind(new.subnet_id)
    .bind(if new.is_dynamic {
        "dynamic"
    } else {
        "reserved"
    })
    .bind(new.start_ip)
    .bind(new.end_ip)
    .bind(new.comment)
    .bind(new.account_id)
    .bind(new.lease_secs)
    .fetch_one(&mut *db)
    .await?;
    range_changed(db, id, new.subnet_id).await?;
    Ok(id)
}

pub async fn update_range(
    db: &mut PgConnection,
    id: i32,
    start_ip: IpAddr,
    end_ip: IpAddr,
    comment: &str,
    lease_secs: Option<i32>,
) -> Result<(), StoreError> {
    let subnet_id: Option<i32> = sqlx::query_scalar(
        "update iprange set start_ip = $2, end_ip = $3, comment = $4, lease_secs = $5 where id = $1
         returning subnet_id",
    )
    .bind(id)
    .bind(start_ip)
    .bind(end_ip)
    .bind(comment)
    .bind(lease_secs)
    .fetch_optional(&mut *db)
    .await?;
    range_changed(
        db,
        id,
        subnet_id.ok_or_else(|| StoreError::not_found("iprange", id))?,
    )
    .await
}

pub async fn delete_range(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    let subnet_id: Option<i32> =
        sqlx::query_scalar("delete from iprange where id = $1 returning subnet_id")
            .bind(id)
            .fetch_optional(&mut *db)
            .await?;
    range_changed(
        db,
        id,
        subnet_id.ok_or_else(|| StoreError::not_found("iprange", id))?,
    )
    .await
}

async fn range_changed(db: &mut PgConnection, id: i32, subnet_id: i32) -> Result<(), StoreError> {
    lease::ensure_blocks(db, id).await?;
    // A reserved range that came, moved or went excludes other addresses of a dynamic one now.
    let others: Vec<i32> = sqlx::query_scalar(
        "select id from iprange where subnet_id = $1 and type = 'dynamic' and id <> $2 order by id",
    )
    .bind(subnet_id)
    .bind(id)
    .fetch_all(&mut *db)
    .await?;
    for other in others {
        lease::ensure_blocks(db, other).await?;
    }
    let vlan: i32 = sqlx::query_scalar("select vlan_id from subnet where id = $1")
        .bind(subnet_id)
        .fetch_one(&mut *db)
        .await?;
    link_changed(db, vlan).await
}

/// Addresses inside a subnet at which something of ours, or that we talk to, is found: BMCs, regions, DHCP servers of
/// others.
pub async fn service_addresses(
    db: &mut PgConnection,
    cidr: IpNet,
) -> Result<Vec<IpAddr>, StoreError> {
    Ok(sqlx::query_scalar(
        "select host(address)::inet from (
             select address from bmc
             union select unnest(addresses) from region_process
             union select external_dhcp from vlan) as a (address)
         where host(address)::inet <<= $1::inet",
    )
    .bind(cidr.to_string())
    .fetch_all(db)
    .await?)
}
