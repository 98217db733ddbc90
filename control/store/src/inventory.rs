//! What a machine is made of, as its commissioning found it: written whole, over what was known before.

use std::collections::BTreeMap;
use std::net::IpAddr;

use mac_address::MacAddress;
use model::{Mac, SystemId};
use sqlx::{PgConnection, PgExecutor};

use crate::feed::{self, Kind};
use crate::{StoreError, card, link};

/// A machine's hardware. Texts are clean (no NUL) and lists bounded: `workflow` made it so.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Inventory {
    /// "amd64/generic"; "" keeps what is stored.
    pub architecture: String,
    pub cpu_count: i32,
    /// MHz.
    pub cpu_speed: i32,
    pub memory_mib: i64,
    pub hardware_uuid: Option<String>,
    /// MAAS's nine keys.
    pub hardware_info: BTreeMap<String, String>,
    pub numa_nodes: Vec<NumaNode>,
    pub disks: Vec<Disk>,
    pub interfaces: Vec<Interface>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct NumaNode {
    pub index: i32,
    pub memory_mib: i64,
    pub cores: Vec<i32>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Disk {
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

#[derive(Clone, Debug, PartialEq)]
pub struct Interface {
    pub name: String,
    pub mac: Mac,
    pub link_connected: bool,
    /// Mbit/s.
    pub interface_speed: i32,
    pub link_speed: i32,
    pub vendor: Option<String>,
    pub product: Option<String>,
    pub firmware_version: Option<String>,
    pub numa_node: i32,
    pub addresses: Vec<IpAddr>,
}

/// How the machine booted, as the rack attested it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootInterface {
    pub mac: Option<Mac>,
    pub vlan: Option<i32>,
}

/// Replaces a machine's inventory and tells the feed. Interfaces keep their row (and id) by MAC; MACs that another
/// machine has stay there and are returned, for a person to look at. A card that nobody but this inventory has seen is
/// noted as `reported`: it keeps no other machine out ([`crate::card`]).
pub async fn replace(
    db: &mut PgConnection,
    machine: &SystemId,
    inventory: &Inventory,
    boot: BootInterface,
) -> Result<Vec<Mac>, StoreError> {
    let hardware_info =
        serde_json::to_value(&inventory.hardware_info).map_err(|_| StoreError::Corrupt {
            what: "hardware_info",
        })?;
    sqlx::query(
        "update machine set architecture = case when $2 = '' then architecture else $2 end,
             cpu_count = $3, cpu_speed = $4, memory_mib = $5,
             hardware_uuid = coalesce($6, hardware_uuid), hardware_info = $7, updated = now()
         where system_id = $1",
    )
    .bind(machine.as_str())
    .bind(&inventory.architecture)
    .bind(inventory.cpu_count)
    .bind(inventory.cpu_speed)
    .bind(inventory.memory_mib)
    .bind(&inventory.hardware_uuid)
    .bind(hardware_info)
    .execute(&mut *db)
    .await?;
    replace_numa_nodes(db, machine, &inventory.numa_nodes).await?;
    replace_disks(db, machine, &inventory.disks).await?;
    let strangers = merge_interfaces(db, machine, &inventory.interfaces, boot).await?;
    link::of_boot_interface(db, machine, &inventory.interfaces).await?;
    feed::changed(db, Kind::Machine, machine.as_str()).await?;
    Ok(strangers)
}

async fn replace_numa_nodes(
    db: &mut PgConnection,
    machine: &SystemId,
    nodes: &[NumaNode],
) -> Result<(), StoreError> {
    sqlx::query("delete from numa_node where machine = $1")
        .bind(machine.as_str())
        .execute(&mut *db)
        .await?;
    for node in nodes {
        sqlx::query(
            "insert into numa_node (machine, index, memory_mib, cores) values ($1, $2, $3, $4)
             on conflict do nothing",
        )
        .bind(machine.as_str())
        .bind(node.index)
        .bind(node.memory_mib)
        .bind(&node.cores)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

/// Disks keep their row (and id) by name.
async fn replace_disks(
    db: &mut PgConnection,
    machine: &SystemId,
    disks: &[Disk],
) -> Result<(), StoreError> {
    let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
    sqlx::query("delete from block_device where machine = $1 and name <> all($2)")
        .bind(machine.as_str())
        .bind(names)
        .execute(&mut *db)
        .await?;
    for disk in disks {
        sqlx::query(
            "insert into block_device (machine, name, id_path, model, serial, size_bytes, block_bytes,
                                       rotary, firmware_version, numa_node, paths)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)
             on conflict (machine, name) do update set
                 id_path = excluded.id_path, model = excluded.model, serial = excluded.serial,
                 size_bytes = excluded.size_bytes, block_bytes = excluded.block_bytes,
                 rotary = excluded.rotary, firmware_version = excluded.firmware_version,
                 numa_node = excluded.numa_node, paths = excluded.paths",
        )
        .bind(machine.as_str())
        .bind(&disk.name)
        .bind(&disk.id_path)
        .bind(&disk.model)
        .bind(&disk.serial)
        .bind(disk.size_bytes)
        .bind(disk.block_bytes)
        .bind(disk.rotary)
        .bind(&disk.firmware_version)
        .bind(disk.numa_node)
        .bind(disk.paths)
        .execute(&mut *db)
        .await?;
    }
    Ok(())
}

async fn merge_interfaces(
    db: &mut PgConnection,
    machine: &SystemId,
    interfaces: &[Interface],
    boot: BootInterface,
) -> Result<Vec<Mac>, StoreError> {
    // A machine that reported no card at all keeps what it booted with.
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    // The card that it booted from is there, whatever it reported.
    let reported = interfaces.iter().map(|interface| interface.mac);
    let macs: Vec<MacAddress> = reported
        .chain(boot.mac)
        .map(|mac| MacAddress::new(mac.octets()))
        .collect();
    sqlx::query(
        "delete from interface where machine = $1 and type = 'physical' and mac <> all($2)",
    )
    .bind(machine.as_str())
    .bind(macs)
    .execute(&mut *db)
    .await?;
    // Names may have changed places (eth0, eth1): all make room first.
    sqlx::query(
        "update interface set name = 'card-' || id where machine = $1 and type = 'physical'",
    )
    .bind(machine.as_str())
    .execute(&mut *db)
    .await?;
    let shown = shown(db, machine, boot).await?;
    card::take_from_users(db, &shown).await?;
    // Two inventories that name each other's cards must not wait for each other: another machine's rows are not touched,
    // and new ones come in the order of their MACs.
    let mut strangers = of_others(db, machine, interfaces).await?;
    let mut own: Vec<&Interface> = interfaces
        .iter()
        .filter(|interface| !strangers.contains(&interface.mac))
        .collect();
    own.sort_by_key(|interface| interface.mac.octets());
    for interface in own {
        let mac = MacAddress::new(interface.mac.octets());
        let vlan = vlan_of(db, interface, boot).await?;
        let id: Option<i32> = sqlx::query_scalar(
            "insert into interface (machine, name, mac, vlan_id, link_connected, interface_speed,
                                    link_speed, vendor, product, firmware_version, numa_node, reported)
             values ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)
             on conflict (mac) do update set
                 name = excluded.name, vlan_id = coalesce(excluded.vlan_id, interface.vlan_id),
                 link_connected = excluded.link_connected, interface_speed = excluded.interface_speed,
                 link_speed = excluded.link_speed, vendor = excluded.vendor,
                 product = excluded.product, firmware_version = excluded.firmware_version,
                 numa_node = excluded.numa_node, reported = interface.reported and excluded.reported
             where interface.machine = excluded.machine
             returning id",
        )
        .bind(machine.as_str())
        .bind(&interface.name)
        .bind(mac)
        .bind(vlan)
        .bind(interface.link_connected)
        .bind(interface.interface_speed)
        .bind(interface.link_speed)
        .bind(&interface.vendor)
        .bind(&interface.product)
        .bind(&interface.firmware_version)
        .bind(interface.numa_node)
        .bind(boot.mac != Some(interface.mac))
        .fetch_optional(&mut *db)
        .await?;
        match id {
            None => strangers.push(interface.mac),
            Some(id) if boot.mac == Some(interface.mac) => {
                sqlx::query("update machine set boot_interface_id = $2 where system_id = $1")
                    .bind(machine.as_str())
                    .bind(id)
                    .execute(&mut *db)
                    .await?;
            }
            Some(_) => {}
        }
    }
    strangers.sort_by_key(|mac| mac.octets());
    Ok(strangers)
}

/// The cards that others have seen the machine use. What it merely reports takes nothing from anybody.
async fn shown(
    db: &mut PgConnection,
    machine: &SystemId,
    boot: BootInterface,
) -> Result<Vec<Mac>, StoreError> {
    let known: Vec<MacAddress> =
        sqlx::query_scalar("select mac from interface where machine = $1 and not reported")
            .bind(machine.as_str())
            .fetch_all(db)
            .await?;
    let known = known.into_iter().map(|mac| Mac::new(mac.bytes()));
    Ok(known.chain(boot.mac).collect())
}

/// Which of these cards another machine has.
async fn of_others(
    db: &mut PgConnection,
    machine: &SystemId,
    interfaces: &[Interface],
) -> Result<Vec<Mac>, StoreError> {
    let macs: Vec<MacAddress> = interfaces
        .iter()
        .map(|interface| MacAddress::new(interface.mac.octets()))
        .collect();
    let others: Vec<MacAddress> =
        sqlx::query_scalar("select mac from interface where mac = any($2) and machine <> $1")
            .bind(machine.as_str())
            .bind(macs)
            .fetch_all(db)
            .await?;
    Ok(others
        .into_iter()
        .map(|mac| Mac::new(mac.bytes()))
        .collect())
}

/// The VLAN that the rack attested for the card that booted, else that of an address the card has.
async fn vlan_of(
    db: &mut PgConnection,
    interface: &Interface,
    boot: BootInterface,
) -> Result<Option<i32>, StoreError> {
    if boot.mac == Some(interface.mac)
        && let Some(vlan) = boot.vlan
    {
        let known: bool = sqlx::query_scalar("select exists (select 1 from vlan where id = $1)")
            .bind(vlan)
            .fetch_one(&mut *db)
            .await?;
        if known {
            return Ok(Some(vlan));
        }
    }
    for address in &interface.addresses {
        if let Some(vlan) = vlan_of_address(&mut *db, *address).await? {
            return Ok(Some(vlan));
        }
    }
    Ok(None)
}

/// The VLAN of the smallest subnet that holds `address`.
async fn vlan_of_address(
    db: impl PgExecutor<'_>,
    address: IpAddr,
) -> Result<Option<i32>, StoreError> {
    Ok(sqlx::query_scalar(
        "select vlan_id from subnet where cidr >>= $1 order by masklen(cidr) desc limit 1",
    )
    .bind(ipnetwork::IpNetwork::from(address))
    .fetch_optional(db)
    .await?)
}
