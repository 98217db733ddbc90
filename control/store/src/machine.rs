//! Machines with their interfaces, disks and NUMA nodes, as operators see and edit them.
//!
//! Status, boot and power belong to the workflow (`lifecycle.rs`), hardware to `inventory.rs`. What racks must
//! see (MACs, names, architecture) writes the feed's outbox in the same transaction.

use mac_address::MacAddress;
use model::{Mac, MachineStatus, PowerState, PowerType, SystemId};
use serde_json::{Map, Value};
use sqlx::types::Json;
use sqlx::{PgConnection, Postgres, QueryBuilder};
use time::OffsetDateTime;
use uuid::Uuid;

use crate::{StoreError, bmc, card, feed};

pub fn to_db_mac(mac: Mac) -> MacAddress {
    MacAddress::new(mac.octets())
}

pub fn from_db_mac(mac: MacAddress) -> Mac {
    Mac::new(mac.bytes())
}

fn to_db_macs(macs: &[Mac]) -> Vec<MacAddress> {
    macs.iter().copied().map(to_db_mac).collect()
}

/// A machine's own row, with its owner's name and power type.
#[derive(Clone, Debug)]
pub struct Machine {
    pub system_id: SystemId,
    pub hostname: String,
    pub description: String,
    pub domain: String,
    pub domain_id: i32,
    /// "amd64/generic"
    pub architecture: String,
    pub min_hwe_kernel: String,
    pub hwe_kernel: String,
    pub status: MachineStatus,
    pub previous_status: MachineStatus,
    pub status_message: String,
    pub error_description: String,
    pub status_changed: OffsetDateTime,
    pub status_deadline: Option<OffsetDateTime>,
    pub last_heartbeat: Option<OffsetDateTime>,
    pub owner: Option<String>,
    pub bmc_id: Option<i32>,
    pub power_type: Option<PowerType>,
    pub power_state: PowerState,
    pub power_state_updated: Option<OffsetDateTime>,
    pub netboot: bool,
    pub locked: bool,
    pub enable_ssh: bool,
    pub osystem: String,
    pub distro_series: String,
    pub bios_boot_method: String,
    pub hardware_uuid: Option<String>,
    pub cpu_count: i32,
    /// MHz.
    pub cpu_speed: i32,
    pub memory_mib: i64,
    pub hardware_info: Map<String, Value>,
    pub boot_interface_id: Option<i32>,
    /// Of the boot that is expected or running: its boot window is open.
    pub boot_id: Option<Uuid>,
    pub created: OffsetDateTime,
    pub updated: OffsetDateTime,
}

impl Machine {
    /// "amd64" of "amd64/generic".
    pub fn arch(&self) -> &str {
        self.architecture
            .split_once('/')
            .map_or(self.architecture.as_str(), |(arch, _)| arch)
    }

    /// "generic" of "amd64/generic".
    pub fn subarch(&self) -> &str {
        self.architecture
            .split_once('/')
            .map_or("generic", |(_, subarch)| subarch)
    }

    pub fn fqdn(&self) -> String {
        format!("{}.{}", self.hostname, self.domain)
    }
}

#[derive(sqlx::FromRow)]
struct MachineRow {
    system_id: String,
    hostname: String,
    description: String,
    domain: String,
    domain_id: i32,
    architecture: String,
    min_hwe_kernel: String,
    hwe_kernel: String,
    status: i32,
    previous_status: i32,
    status_message: String,
    error_description: String,
    status_changed: OffsetDateTime,
    status_deadline: Option<OffsetDateTime>,
    last_heartbeat: Option<OffsetDateTime>,
    owner: Option<String>,
    bmc_id: Option<i32>,
    power_type: Option<String>,
    power_state: String,
    power_state_updated: Option<OffsetDateTime>,
    netboot: bool,
    locked: bool,
    enable_ssh: bool,
    osystem: String,
    distro_series: String,
    bios_boot_method: String,
    hardware_uuid: Option<String>,
    cpu_count: i32,
    cpu_speed: i32,
    memory_mib: i64,
    hardware_info: Json<Map<String, Value>>,
    boot_interface_id: Option<i32>,
    boot_id: Option<Uuid>,
    created: OffsetDateTime,
    updated: OffsetDateTime,
}

const SELECT: &str =
    "select m.system_id, m.hostname, m.description, m.domain, d.id as domain_id, m.architecture, m.min_hwe_kernel,
            m.hwe_kernel, m.status, m.previous_status, m.status_message, m.error_description,
            m.status_changed, m.status_deadline, m.last_heartbeat, a.username as owner, m.bmc_id,
            b.power_type, m.power_state, m.power_state_updated, m.netboot, m.locked, m.enable_ssh,
            m.osystem, m.distro_series, m.bios_boot_method, m.hardware_uuid, m.cpu_count, m.cpu_speed,
            m.memory_mib, m.hardware_info, m.boot_interface_id, m.boot_id, m.created, m.updated
     from machine m
     join domain d on d.name = m.domain
     left join account a on a.id = m.owner_id
     left join bmc b on b.id = m.bmc_id
     where true";

fn system_id(text: &str) -> Result<SystemId, StoreError> {
    text.parse()
        .map_err(|_| StoreError::Corrupt { what: "system id" })
}

fn status(number: i32) -> Result<MachineStatus, StoreError> {
    MachineStatus::from_number(number).ok_or(StoreError::Corrupt {
        what: "machine status",
    })
}

impl TryFrom<MachineRow> for Machine {
    type Error = StoreError;

    fn try_from(row: MachineRow) -> Result<Self, StoreError> {
        let corrupt = |what| move |_| StoreError::Corrupt { what };
        Ok(Machine {
            system_id: system_id(&row.system_id)?,
            hostname: row.hostname,
            description: row.description,
            domain: row.domain,
            domain_id: row.domain_id,
            architecture: row.architecture,
            min_hwe_kernel: row.min_hwe_kernel,
            hwe_kernel: row.hwe_kernel,
            status: status(row.status)?,
            previous_status: status(row.previous_status)?,
            status_message: row.status_message,
            error_description: row.error_description,
            status_changed: row.status_changed,
            status_deadline: row.status_deadline,
            last_heartbeat: row.last_heartbeat,
            owner: row.owner,
            bmc_id: row.bmc_id,
            power_type: row
                .power_type
                .map(|text| text.parse())
                .transpose()
                .map_err(corrupt("power type"))?,
            power_state: row.power_state.parse().map_err(corrupt("power state"))?,
            power_state_updated: row.power_state_updated,
            netboot: row.netboot,
            locked: row.locked,
            enable_ssh: row.enable_ssh,
            osystem: row.osystem,
            distro_series: row.distro_series,
            bios_boot_method: row.bios_boot_method,
            hardware_uuid: row.hardware_uuid,
            cpu_count: row.cpu_count,
            cpu_speed: row.cpu_speed,
            memory_mib: row.memory_mib,
            hardware_info: row.hardware_info.0,
            boot_interface_id: row.boot_interface_id,
            boot_id: row.boot_id,
            created: row.created,
            updated: row.updated,
        })
    }
}

//---------------------------------------------------------------- reading

pub async fn get(db: &mut PgConnection, id: &SystemId) -> Result<Machine, StoreError> {
    one(db, id, "").await
}

/// Reads a machine and locks its row until the transaction ends.
pub async fn lock(db: &mut PgConnection, id: &SystemId) -> Result<Machine, StoreError> {
    one(db, id, " for update of m").await
}

async fn one(
    db: &mut PgConnection,
    id: &SystemId,
    locking: &'static str,
) -> Result<Machine, StoreError> {
    let mut sql = QueryBuilder::<Postgres>::new(SELECT);
    sql.push(" and m.system_id = ")
        .push_bind(id.as_str())
        .push(locking);
    let row: Option<MachineRow> = sql.build_query_as().fetch_optional(db).await?;
    row.ok_or_else(|| StoreError::not_found("machine", id))?
        .try_into()
}

/// Which machines; every part that is said must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub ids: Vec<String>,
    pub hostnames: Vec<String>,
    pub macs: Vec<Mac>,
    pub domains: Vec<String>,
    /// "amd64/generic", or "amd64" for all of its kind.
    pub architectures: Vec<String>,
    pub owners: Vec<String>,
    pub statuses: Vec<MachineStatus>,
    pub power_states: Vec<PowerState>,
    /// Names.
    pub fabrics: Vec<String>,
    pub fabric_classes: Vec<String>,
    /// Of each of these lists, an interface is on one of the VLANs.
    pub vlans: Vec<Vec<i32>>,
    /// Of each of these lists, an interface is linked to one of the subnets, or has a lease in it.
    pub subnets: Vec<Vec<i32>>,
    /// At least.
    pub cpu_count: Option<f64>,
    /// At least, in MHz.
    pub cpu_speed: Option<f64>,
    /// At least.
    pub memory_mib: Option<f64>,
    /// At least, in Mbit/s, of one interface.
    pub link_speed: Option<f64>,
    /// Machines of which any part of this holds are left out.
    pub not: Option<Box<Filter>>,
}

/// In the order of their hostnames.
pub async fn list(db: &mut PgConnection, filter: &Filter) -> Result<Vec<Machine>, StoreError> {
    let mut sql = QueryBuilder::<Postgres>::new(SELECT);
    push_conditions(&mut sql, filter);
    sql.push(" order by m.hostname");
    let rows: Vec<MachineRow> = sql.build_query_as().fetch_all(db).await?;
    rows.into_iter().map(Machine::try_from).collect()
}

pub async fn count(db: &mut PgConnection, filter: &Filter) -> Result<i64, StoreError> {
    let mut sql = QueryBuilder::<Postgres>::new(
        "select count(*) from machine m left join account a on a.id = m.owner_id where true",
    );
    push_conditions(&mut sql, filter);
    Ok(sql.build_query_scalar().fetch_one(db).await?)
}

fn push_conditions(sql: &mut QueryBuilder<Postgres>, filter: &Filter) {
    push_parts(sql, " and (", filter);
    if let Some(not) = &filter.not {
        push_parts(sql, " and not (", not);
    }
}

/// Each part that is said, after `before` and with a closing bracket. No part is ever null.
fn push_parts(sql: &mut QueryBuilder<Postgres>, before: &str, filter: &Filter) {
    let texts = [
        ("m.system_id = any(", &filter.ids),
        ("m.hostname = any(", &filter.hostnames),
        ("m.domain = any(", &filter.domains),
        (
            "array[m.architecture, split_part(m.architecture, '/', 1)] && (",
            &filter.architectures,
        ),
        ("coalesce(a.username, '') = any(", &filter.owners),
        (
            "m.system_id in (select i.machine from interface i join vlan v on v.id = i.vlan_id
                 join fabric f on f.id = v.fabric_id and f.name = any(",
            &filter.fabrics,
        ),
        (
            "m.system_id in (select i.machine from interface i join vlan v on v.id = i.vlan_id
                 join fabric f on f.id = v.fabric_id and f.class_type = any(",
            &filter.fabric_classes,
        ),
    ];
    for (condition, values) in texts {
        if !values.is_empty() {
            sql.push(before).push(condition).push_bind(values.clone());
            sql.push(if condition.contains(" in (") {
                ")))"
            } else {
                "))"
            });
        }
    }
    if !filter.statuses.is_empty() {
        let statuses = filter.statuses.iter().map(|status| status.number());
        sql.push(before).push("m.status = any(");
        sql.push_bind(statuses.collect::<Vec<i32>>()).push("))");
    }
    if !filter.power_states.is_empty() {
        let states = filter.power_states.iter().map(|state| state.as_str());
        sql.push(before).push("m.power_state = any(");
        sql.push_bind(states.collect::<Vec<_>>()).push("))");
    }
    if !filter.macs.is_empty() {
        sql.push(before)
            .push("m.system_id in (select machine from interface where mac = any(");
        sql.push_bind(to_db_macs(&filter.macs)).push(")))");
    }
    for vlans in &filter.vlans {
        sql.push(before)
            .push("m.system_id in (select machine from interface where vlan_id = any(");
        sql.push_bind(vlans.clone()).push(")))");
    }
    for subnets in &filter.subnets {
        sql.push(before).push(
            "m.system_id in (
                 select i.machine from interface i join interface_link k on k.interface_id = i.id
                 where k.subnet_id = any(",
        );
        sql.push_bind(subnets.clone()).push(
            ") union
                 select i.machine from interface i join lease l on l.mac = i.mac
                 join subnet s on l.address <<= s.cidr
                 where l.client_kind is not null and l.ends > now() and s.id = any(",
        );
        sql.push_bind(subnets.clone()).push(")))");
    }
    let least = [
        ("m.cpu_count >= ", filter.cpu_count),
        ("m.cpu_speed >= ", filter.cpu_speed),
        ("m.memory_mib >= ", filter.memory_mib),
    ];
    for (condition, value) in least {
        if let Some(value) = value {
            sql.push(before).push(condition).push_bind(value).push(")");
        }
    }
    if let Some(speed) = filter.link_speed {
        sql.push(before)
            .push("m.system_id in (select machine from interface where link_speed >= ");
        sql.push_bind(speed).push("))");
    }
}

pub async fn find_by_mac(db: &mut PgConnection, mac: Mac) -> Result<Option<SystemId>, StoreError> {
    let id: Option<String> = sqlx::query_scalar("select machine from interface where mac = $1")
        .bind(to_db_mac(mac))
        .fetch_optional(db)
        .await?;
    id.map(|id| system_id(&id)).transpose()
}

pub async fn find_by_hostname(
    db: &mut PgConnection,
    hostname: &str,
) -> Result<Option<SystemId>, StoreError> {
    let id: Option<String> =
        sqlx::query_scalar("select system_id from machine where hostname = $1")
            .bind(hostname)
            .fetch_optional(db)
            .await?;
    id.map(|id| system_id(&id)).transpose()
}

/// By interface id: the first is the one that the machine was created with.
pub async fn macs(db: &mut PgConnection, id: &SystemId) -> Result<Vec<Mac>, StoreError> {
    let macs: Vec<MacAddress> =
        sqlx::query_scalar("select mac from interface where machine = $1 order by id")
            .bind(id.as_str())
            .fetch_all(db)
            .await?;
    Ok(macs.into_iter().map(from_db_mac).collect())
}

//---------------------------------------------------------------- creating, changing, deleting

pub struct NewMachine<'a> {
    pub system_id: SystemId,
    pub hostname: &'a str,
    pub description: &'a str,
    pub domain: &'a str,
    pub architecture: &'a str,
    pub min_hwe_kernel: &'a str,
    pub hardware_uuid: Option<&'a str>,
    /// The first one is taken for the boot interface.
    pub macs: &'a [Mac],
    /// Where the first MAC was seen.
    pub vlan_id: Option<i32>,
}

/// Creates a machine, status New, with interfaces `eth0`... Cards that only another's inventory named become its own.
///
/// [`StoreError::Constraint`]: `machine_pkey` (take another system id), `machine_hostname_key`,
/// `interface_mac_key`; the transaction is of no more use then.
pub async fn create(db: &mut PgConnection, new: &NewMachine<'_>) -> Result<(), StoreError> {
    sqlx::query(
        "insert into machine (system_id, hostname, description, domain, architecture, min_hwe_kernel,
                              hardware_uuid)
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(new.system_id.as_str())
    .bind(new.hostname)
    .bind(new.description)
    .bind(new.domain)
    .bind(new.architecture)
    .bind(new.min_hwe_kernel)
    .bind(new.hardware_uuid)
    .execute(&mut *db)
    .await?;
    card::make_room(db, new.macs).await?;
    sqlx::query(
        "insert into interface (machine, name, mac, vlan_id)
         select $1, 'eth' || (position - 1), mac, case when position = 1 then $3::int end
         from unnest($2::macaddr[]) with ordinality as u (mac, position)
         order by position",
    )
    .bind(new.system_id.as_str())
    .bind(to_db_macs(new.macs))
    .bind(new.vlan_id)
    .execute(&mut *db)
    .await?;
    if let Some(first) = new.macs.first() {
        set_boot_interface(db, &new.system_id, *first).await?;
    }
    changed(db, &new.system_id).await
}

/// What is to change; none leaves it as it is.
#[derive(Clone, Debug, Default)]
pub struct MachineChange<'a> {
    pub hostname: Option<&'a str>,
    pub description: Option<&'a str>,
    pub domain: Option<&'a str>,
    pub architecture: Option<&'a str>,
    pub min_hwe_kernel: Option<&'a str>,
    pub cpu_count: Option<i32>,
    pub memory_mib: Option<i64>,
    pub enable_ssh: Option<bool>,
    pub netboot: Option<bool>,
    pub locked: Option<bool>,
    pub bios_boot_method: Option<&'a str>,
    pub hardware_uuid: Option<&'a str>,
    pub osystem: Option<&'a str>,
    pub distro_series: Option<&'a str>,
}

pub async fn update(
    db: &mut PgConnection,
    id: &SystemId,
    change: &MachineChange<'_>,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "update machine
         set hostname = coalesce($2, hostname), description = coalesce($3, description),
             domain = coalesce($4, domain), architecture = coalesce($5, architecture),
             min_hwe_kernel = coalesce($6, min_hwe_kernel), enable_ssh = coalesce($7, enable_ssh),
             netboot = coalesce($8, netboot), locked = coalesce($9, locked),
             bios_boot_method = coalesce($10, bios_boot_method),
             hardware_uuid = coalesce($11, hardware_uuid), osystem = coalesce($12, osystem),
             distro_series = coalesce($13, distro_series), cpu_count = coalesce($14, cpu_count),
             memory_mib = coalesce($15, memory_mib), updated = now()
         where system_id = $1",
    )
    .bind(id.as_str())
    .bind(change.hostname)
    .bind(change.description)
    .bind(change.domain)
    .bind(change.architecture)
    .bind(change.min_hwe_kernel)
    .bind(change.enable_ssh)
    .bind(change.netboot)
    .bind(change.locked)
    .bind(change.bios_boot_method)
    .bind(change.hardware_uuid)
    .bind(change.osystem)
    .bind(change.distro_series)
    .bind(change.cpu_count)
    .bind(change.memory_mib)
    .execute(&mut *db)
    .await?;
    found(done, id)?;
    changed(db, id).await
}

/// Deletes a machine with everything of it; its BMC too, if no other machine has that.
pub async fn delete(db: &mut PgConnection, id: &SystemId) -> Result<(), StoreError> {
    let bmc_id: Option<Option<i32>> =
        sqlx::query_scalar("delete from machine where system_id = $1 returning bmc_id")
            .bind(id.as_str())
            .fetch_optional(&mut *db)
            .await?;
    let bmc_id = bmc_id.ok_or_else(|| StoreError::not_found("machine", id))?;
    if let Some(bmc_id) = bmc_id {
        bmc::delete_unused(db, bmc_id).await?;
    }
    changed(db, id).await
}

fn found(done: sqlx::postgres::PgQueryResult, id: &SystemId) -> Result<(), StoreError> {
    if done.rows_affected() == 0 {
        Err(StoreError::not_found("machine", id))
    } else {
        Ok(())
    }
}

async fn changed(db: &mut PgConnection, id: &SystemId) -> Result<(), StoreError> {
    feed::changed(db, feed::Kind::Machine, id.as_str()).await
}

//---------------------------------------------------------------- where a machine was seen

/// Makes the interface with this MAC the boot interface, if the machine has it. It has been seen now, not only reported.
pub async fn set_boot_interface(
    db: &mut PgConnection,
    id: &SystemId,
    mac: Mac,
) -> Result<(), StoreError> {
    let seen = sqlx::query(
        "update interface set reported = false where machine = $1 and mac = $2 and reported",
    )
    .bind(id.as_str())
    .bind(to_db_mac(mac))
    .execute(&mut *db)
    .await?;
    if seen.rows_affected() > 0 {
        card::take_from_users(db, &[mac]).await?;
    }
    sqlx::query(
        "update machine m set boot_interface_id = i.id
         from interface i
         where m.system_id = $1 and i.machine = $1 and i.mac = $2
           and m.boot_interface_id is distinct from i.id",
    )
    .bind(id.as_str())
    .bind(to_db_mac(mac))
    .execute(db)
    .await?;
    Ok(())
}

/// Records the VLAN on which an interface was seen.
pub async fn set_interface_vlan(
    db: &mut PgConnection,
    mac: Mac,
    vlan_id: i32,
) -> Result<(), StoreError> {
    sqlx::query(
        "update interface set vlan_id = $2
         where mac = $1 and vlan_id is distinct from $2 and exists (select from vlan where id = $2)",
    )
    .bind(to_db_mac(mac))
    .bind(vlan_id)
    .execute(db)
    .await?;
    Ok(())
}

//---------------------------------------------------------------- parts of many machines at once

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Interface {
    pub id: i32,
    pub machine: String,
    pub name: String,
    pub r#type: String,
    pub mac: MacAddress,
    pub vlan_id: Option<i32>,
    pub enabled: bool,
    pub link_connected: bool,
    pub interface_speed: i32,
    pub link_speed: i32,
    pub vendor: Option<String>,
    pub product: Option<String>,
    pub firmware_version: Option<String>,
    pub numa_node: i32,
}

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct BlockDevice {
    pub id: i32,
    pub machine: String,
    pub name: String,
    pub id_path: String,
    pub model: String,
    pub serial: String,
    pub size_bytes: i64,
    pub block_bytes: i32,
    pub rotary: bool,
    pub firmware_version: String,
    pub numa_node: i32,
    /// Ways to it: more than 1 for a LUN that several paths lead to.
    pub paths: i32,
}

#[derive(Clone, Debug, sqlx::FromRow)]
pub struct NumaNode {
    pub machine: String,
    pub index: i32,
    pub memory_mib: i64,
    pub cores: Vec<i32>,
}

/// Of these machines, by machine and id.
pub async fn interfaces(
    db: &mut PgConnection,
    machines: &[String],
) -> Result<Vec<Interface>, StoreError> {
    Ok(sqlx::query_as(
        "select id, machine, name, type, mac, vlan_id, enabled, link_connected, interface_speed,
                link_speed, vendor, product, firmware_version, numa_node
         from interface where machine = any($1) order by machine, id",
    )
    .bind(machines)
    .fetch_all(db)
    .await?)
}

/// Of these machines, by machine and id.
pub async fn block_devices(
    db: &mut PgConnection,
    machines: &[String],
) -> Result<Vec<BlockDevice>, StoreError> {
    Ok(sqlx::query_as(
        "select id, machine, name, id_path, model, serial, size_bytes, block_bytes, rotary,
                firmware_version, numa_node, paths
         from block_device where machine = any($1) order by machine, id",
    )
    .bind(machines)
    .fetch_all(db)
    .await?)
}

/// Of these machines, by machine and index.
pub async fn numa_nodes(
    db: &mut PgConnection,
    machines: &[String],
) -> Result<Vec<NumaNode>, StoreError> {
    Ok(sqlx::query_as(
        "select machine, index, memory_mib, cores
         from numa_node where machine = any($1) order by machine, index",
    )
    .bind(machines)
    .fetch_all(db)
    .await?)
}

/// The newest script set of one machine and type, with the statuses of its scripts.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct ScriptState {
    pub machine: String,
    pub kind: String,
    pub set_id: i32,
    /// [`model::ScriptStatus`] numbers.
    pub statuses: Vec<i32>,
}

/// Of these machines.
pub async fn script_states(
    db: &mut PgConnection,
    machines: &[String],
) -> Result<Vec<ScriptState>, StoreError> {
    Ok(sqlx::query_as(
        "select distinct on (s.machine, s.type) s.machine, s.type as kind, s.id as set_id,
                array(select r.status from script_result r where r.set_id = s.id) as statuses
         from script_set s where s.machine = any($1)
         order by s.machine, s.type, s.id desc",
    )
    .bind(machines)
    .fetch_all(db)
    .await?)
}
