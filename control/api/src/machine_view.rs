//! A machine as MAAS writes it (3.8's fields), for any number of machines in a fixed number of statements.

use std::collections::HashMap;
use std::net::IpAddr;

use model::{Mac, NodeType, ScriptStatus};
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use store::lease;
use store::link::{self, Link};
use store::machine::{self, BlockDevice, Interface, Machine, NumaNode, ScriptState, from_db_mac};

use crate::constant;
use crate::domain;
use crate::error::ApiError;
use crate::network_view::Networks;

/// What "not found by commissioning" is in `hardware_info`.
const UNKNOWN: &str = "Unknown";
const HARDWARE_KEYS: [&str; 17] = [
    "system_vendor",
    "system_product",
    "system_family",
    "system_version",
    "system_sku",
    "system_serial",
    "cpu_model",
    "mainboard_vendor",
    "mainboard_product",
    "mainboard_serial",
    "mainboard_version",
    "mainboard_firmware_vendor",
    "mainboard_firmware_version",
    "mainboard_firmware_date",
    "chassis_vendor",
    "chassis_type",
    "chassis_serial",
];

/// The kinds of results that a machine shows, with the script set that each belongs to.
const RESULT_KINDS: [&str; 8] = [
    "commissioning",
    "testing",
    "cpu_test",
    "memory_test",
    "network_test",
    "storage_test",
    "other_test",
    "interface_test",
];

/// Everything that belongs to some machines, by system_id.
struct Parts {
    networks: Networks,
    interfaces: HashMap<String, Vec<Interface>>,
    block_devices: HashMap<String, Vec<BlockDevice>>,
    numa_nodes: HashMap<String, Vec<NumaNode>>,
    scripts: HashMap<String, Vec<ScriptState>>,
    /// By interface.
    links: HashMap<i32, Vec<Link>>,
    addresses: HashMap<Mac, Vec<IpAddr>>,
}

fn by_machine<T>(rows: Vec<T>, machine: impl Fn(&T) -> &str) -> HashMap<String, Vec<T>> {
    let mut map: HashMap<String, Vec<T>> = HashMap::new();
    for row in rows {
        map.entry(machine(&row).to_owned()).or_default().push(row);
    }
    map
}

/// The views of these machines, in their order.
pub async fn views(db: &mut PgConnection, machines: &[Machine]) -> Result<Vec<Value>, ApiError> {
    if machines.is_empty() {
        return Ok(Vec::new());
    }
    let ids: Vec<String> = machines
        .iter()
        .map(|machine| machine.system_id.to_string())
        .collect();
    let interfaces = machine::interfaces(&mut *db, &ids).await?;
    let addresses = addresses(&mut *db, &interfaces).await?;
    let mut links: HashMap<i32, Vec<Link>> = HashMap::new();
    for link in link::of_machines(&mut *db, &ids).await? {
        links.entry(link.interface_id).or_default().push(link);
    }
    let parts = Parts {
        links,
        networks: Networks::load(&mut *db).await?,
        interfaces: by_machine(interfaces, |row| &row.machine),
        block_devices: by_machine(machine::block_devices(&mut *db, &ids).await?, |r| {
            &r.machine
        }),
        numa_nodes: by_machine(machine::numa_nodes(&mut *db, &ids).await?, |row| {
            &row.machine
        }),
        scripts: by_machine(machine::script_states(db, &ids).await?, |row| &row.machine),
        addresses,
    };
    Ok(machines.iter().map(|machine| parts.view(machine)).collect())
}

async fn addresses(
    db: &mut PgConnection,
    interfaces: &[Interface],
) -> Result<HashMap<Mac, Vec<IpAddr>>, ApiError> {
    let macs: Vec<_> = interfaces.iter().map(|interface| interface.mac).collect();
    let mut addresses: HashMap<Mac, Vec<IpAddr>> = HashMap::new();
    for (mac, address) in lease::addresses_of_macs(db, &macs).await? {
        addresses.entry(from_db_mac(mac)).or_default().push(address);
    }
    Ok(addresses)
}

fn rows<'a, T>(map: &'a HashMap<String, Vec<T>>, id: &str) -> &'a [T] {
    map.get(id).map_or(&[], Vec::as_slice)
}

impl Parts {
    fn view(&self, machine: &Machine) -> Value {
        let id = machine.system_id.as_str();
        let interfaces = rows(&self.interfaces, id);
        let interface_set: Vec<Value> = interfaces
            .iter()
            .map(|interface| self.interface_view(interface))
            .collect();
        let boot_interface = interfaces
            .iter()
            .position(|interface| Some(interface.id) == machine.boot_interface_id)
            .or_else(|| (!interfaces.is_empty()).then_some(0))
            .map(|index| interface_set[index].clone());
        let ip_addresses: Vec<&IpAddr> = interfaces
            .iter()
            .flat_map(|interface| self.addresses_of(interface))
            .collect();
        let disks: Vec<Value> = rows(&self.block_devices, id)
            .iter()
            .map(block_device_view)
            .collect();
        let storage_bytes: i64 = rows(&self.block_devices, id)
            .iter()
            .map(|disk| disk.size_bytes)
            .sum();
        let numa_nodes: Vec<Value> = rows(&self.numa_nodes, id)
            .iter()
            .map(|node| {
                json!({
                    "index": node.index,
                    "memory": node.memory_mib,
                    "cores": node.cores,
                    "hugepages_set": [],
                })
            })
            .collect();
        let hardware_info: Map<String, Value> = HARDWARE_KEYS
            .iter()
            .map(|key| {
                let known = machine
                    .hardware_info
                    .get(*key)
                    .filter(|value| value.as_str().is_some_and(|value| !value.is_empty()));
                (
                    (*key).to_owned(),
                    known.cloned().unwrap_or_else(|| UNKNOWN.into()),
                )
            })
            .collect();

        let mut view = Map::new();
        let mut put = |name: &str, value: Value| {
            view.insert(name.to_owned(), value);
        };
        put("system_id", json!(id));
        put("hostname", json!(machine.hostname));
        put("description", json!(machine.description));
        put("hardware_uuid", json!(machine.hardware_uuid));
        put("domain", domain::view(machine.domain_id, &machine.domain));
        put("fqdn", json!(machine.fqdn()));
        put("owner", json!(machine.owner));
        put("owner_data", json!({}));
        put("locked", json!(machine.locked));
        for empty in [
            "cache_sets",
            "bcaches",
            "volume_groups",
            "raids",
            "special_filesystems",
        ] {
            put(empty, json!([]));
        }
        put("bios_boot_method", json!(machine.bios_boot_method));
        put("boot_interface", json!(boot_interface));
        put("architecture", json!(machine.architecture));
        put("min_hwe_kernel", json!(machine.min_hwe_kernel));
        put("hwe_kernel", json!(machine.hwe_kernel));
        put("cpu_count", json!(machine.cpu_count));
        put("cpu_speed", json!(machine.cpu_speed));
        put("memory", json!(machine.memory_mib));
        put("swap_size", Value::Null);
        put("storage", json!(storage_bytes as f64 / 1e6));
        put("status", json!(machine.status.number()));
        put("status_name", json!(machine.status.name()));
        put("status_action", json!(""));
        put("status_message", json!(machine.status_message));
        put("osystem", json!(machine.osystem));
        put("distro_series", json!(machine.distro_series));
        put("ephemeral_deploy", json!(false));
        put("error_description", json!(machine.error_description));
        put("netboot", json!(machine.netboot));
        put(
            "power_type",
            json!(
                machine
                    .power_type
                    .map_or("", |power_type| power_type.as_str())
            ),
        );
        put("power_state", json!(machine.power_state.as_str()));
        put("tag_names", json!([]));
        put("address_ttl", Value::Null);
        put("ip_addresses", json!(ip_addresses));
        put("interface_set", json!(interface_set));
        put("zone", constant::zone());
        put("pool", constant::pool());
        put("disable_ipv4", json!(false));
        put(
            "constraints_by_type",
            json!({"storage": {}, "interfaces": {}}),
        );
        put("boot_disk", disks.first().cloned().unwrap_or(Value::Null));
        put("blockdevice_set", json!(disks));
        put("physicalblockdevice_set", json!(disks));
        put("virtualblockdevice_set", json!([]));
        put("node_type", json!(NodeType::Machine.number()));
        put("node_type_name", json!(NodeType::Machine.name()));
        put("parent", Value::Null);
        put("pod", Value::Null);
        let no_gateway = json!({"gateway_ip": null, "link_id": null});
        put(
            "default_gateways",
            json!({"ipv4": no_gateway, "ipv6": no_gateway}),
        );
        self.put_results(id, &mut put);
        put("hardware_info", Value::Object(hardware_info));
        put("numanode_set", json!(numa_nodes));
        put("workload_annotations", json!({}));
        for none in ["last_sync", "sync_interval", "next_sync"] {
            put(none, Value::Null);
        }
        for off in ["enable_hw_sync", "enable_kernel_crash_dump", "is_dpu"] {
            put(off, json!(false));
        }
        put(
            "resource_uri",
            json!(format!("/MAAS/api/2.0/machines/{id}/")),
        );
        Value::Object(view)
    }

    /// `commissioning_status` and its like; -1 "Unknown" for what has not run.
    fn put_results(&self, id: &str, put: &mut impl FnMut(&str, Value)) {
        let sets = rows(&self.scripts, id);
        let set = |kind: &str| sets.iter().find(|set| set.kind == kind);
        for kind in ["commissioning", "testing", "installation"] {
            put(
                &format!("current_{kind}_result_id"),
                json!(set(kind).map(|set| set.set_id)),
            );
        }
        for kind in RESULT_KINDS {
            let status = set(kind).and_then(|set| {
                let statuses = set.statuses.iter().copied();
                ScriptStatus::summary(statuses.filter_map(ScriptStatus::from_number))
            });
            put(
                &format!("{kind}_status"),
                json!(status.map_or(-1, ScriptStatus::number)),
            );
            put(
                &format!("{kind}_status_name"),
                json!(status.map_or(UNKNOWN, ScriptStatus::name)),
            );
        }
    }

    fn addresses_of(&self, interface: &Interface) -> &[IpAddr] {
        self.addresses
            .get(&from_db_mac(interface.mac))
            .map_or(&[], Vec::as_slice)
    }

    fn interface_view(&self, interface: &Interface) -> Value {
        let vlan = interface.vlan_id.map(|id| self.networks.vlan_view(id));
        let mtu = interface
            .vlan_id
            .and_then(|id| self.networks.vlan(id))
            .map_or(1500, |v| v.mtu);
        let discovered: Vec<Value> = self
            .addresses_of(interface)
            .iter()
            .map(|address| {
                let subnet = self.networks.subnet_of(*address);
                json!({
                    "subnet": subnet.map(|subnet| self.networks.subnet_view(subnet)),
                    "ip_address": address,
                })
            })
            .collect();
        let links: Vec<Value> = self
            .links
            .get(&interface.id)
            .into_iter()
            .flatten()
            .map(|link| {
                let subnet = link.subnet_id.and_then(|id| self.networks.subnet(id));
                let mut view = json!({"id": link.id, "mode": link.mode});
                if let Some(subnet) = subnet {
                    view["subnet"] = self.networks.subnet_view(subnet);
                }
                view
            })
            .collect();
        let uri = format!(
            "/MAAS/api/2.0/nodes/{}/interfaces/{}/",
            interface.machine, interface.id
        );
        json!({
            "system_id": interface.machine,
            "id": interface.id,
            "name": interface.name,
            "type": interface.r#type,
            "vlan": vlan,
            "mac_address": from_db_mac(interface.mac).to_string(),
            "parents": [],
            "children": [],
            "tags": [],
            "enabled": interface.enabled,
            "links": links,
            "params": "",
            "discovered": if discovered.is_empty() { Value::Null } else { discovered.into() },
            "effective_mtu": mtu,
            "vendor": interface.vendor,
            "product": interface.product,
            "firmware_version": interface.firmware_version,
            "link_connected": interface.link_connected,
            "interface_speed": interface.interface_speed,
            "link_speed": interface.link_speed,
            "numa_node": interface.numa_node,
            "sriov_max_vf": 0,
            "resource_uri": uri,
        })
    }
}

/// As MAAS tags them: what a path of several leads to is no SSD that one could tell of.
fn disk_tags(disk: &BlockDevice) -> Vec<&'static str> {
    let rotary = disk.rotary.then_some("rotary");
    let kind = match disk.paths {
        ..=1 => rotary.or(Some("ssd")),
        _ => rotary,
    };
    kind.into_iter()
        .chain((disk.paths > 1).then_some("multipath"))
        .collect()
}

fn block_device_view(disk: &BlockDevice) -> Value {
    let uri = format!(
        "/MAAS/api/2.0/nodes/{}/blockdevices/{}/",
        disk.machine, disk.id
    );
    json!({
        "system_id": disk.machine,
        "id": disk.id,
        "name": disk.name,
        "type": "physical",
        "path": format!("/dev/disk/by-dname/{}", disk.name),
        "id_path": disk.id_path,
        "model": disk.model,
        "serial": disk.serial,
        "size": disk.size_bytes,
        "block_size": disk.block_bytes,
        "available_size": disk.size_bytes,
        "used_size": 0,
        "used_for": "Unused",
        "firmware_version": disk.firmware_version,
        "numa_node": disk.numa_node,
        "tags": disk_tags(disk),
        "filesystem": null,
        "partition_table_type": null,
        "partitions": [],
        "storage_pool": null,
        "uuid": null,
        "resource_uri": uri,
    })
}
