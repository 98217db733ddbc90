//! Reads the output of `50-maas-01-commissioning`: the LXD `resources` JSON, as MAAS's machine-resources prints it.
//!
//! The text is a machine's own: anything may be missing, of the wrong type, absurd or too much. What can't be read is
//! left out, and said so in the notes; only a text that is no inventory at all is an error. Never panics, and every
//! list is bounded.

mod cards;
mod disks;
mod notes;
mod output;

use std::collections::BTreeMap;

use serde_json::Value;
use store::inventory::{Inventory, NumaNode};

pub use notes::Notes;

/// Longest text kept, in characters.
const TEXT_MAX: usize = 255;
const NUMA_NODES_MAX: usize = 256;
const THREADS_MAX: usize = 65_536;
/// A pebibyte, in MiB: more memory is a number gone wrong.
const MEMORY_MIB_MAX: i64 = 1 << 30;
/// MHz.
const CPU_SPEED_MAX: i32 = 1_000_000;

/// The lists of the parts.
const LISTS: [(&str, &str); 4] = [
    ("cpu", "sockets"),
    ("memory", "nodes"),
    ("network", "cards"),
    ("storage", "disks"),
];

/// UUIDs that makers put into every board, besides those of one octet.
const NO_UUIDS: [&str; 6] = [
    "03000200-0400-0500-0006-000700080009",
    "00020003-0004-0005-0006-000700080009",
    "12345678-1234-5678-90ab-cddeefaabbcc",
    "01020304-0506-0708-090a-0b0c0d0e0f10",
    "00112233-4455-6677-8899-aabbccddeeff",
    "4c4c4544-0000-2010-8020-80c04f202020",
];

/// MAAS's `hardware_info` keys, and where their values are below `resources`.
const HARDWARE_INFO: [(&str, &str); 8] = [
    ("system_vendor", "/system/vendor"),
    ("system_product", "/system/product"),
    ("system_version", "/system/version"),
    ("system_serial", "/system/serial"),
    ("mainboard_vendor", "/system/motherboard/vendor"),
    ("mainboard_product", "/system/motherboard/product"),
    ("mainboard_firmware_version", "/system/firmware/version"),
    ("mainboard_firmware_date", "/system/firmware/date"),
];

#[derive(Debug, thiserror::Error)]
pub enum ResourcesError {
    #[error("not JSON (line {line}, column {column})")]
    NotJson { line: usize, column: usize },
    #[error("cut off after {octets} octets: the JSON does not end")]
    Cut { octets: usize },
    #[error("no resources with a CPU and memory in it")]
    NoResources,
}

/// The inventory in `output`, and what of it was not taken as it was said.
pub fn parse(output: &[u8]) -> Result<(Inventory, Notes), ResourcesError> {
    let mut notes = Notes::default();
    let root = output::find(output, &mut notes)?;
    let resources = output::resources(&root);
    for part in ["cpu", "memory", "network", "storage"] {
        if !resources[part].is_object() {
            notes.say(format!("nothing is told of {part}"));
        }
    }
    for (part, list) in LISTS {
        let list_there = &resources[part][list];
        if !list_there.is_null() && !list_there.is_array() && !list_there.is_object() {
            notes.say(format!("{list} of {part} cannot be read"));
        }
    }
    let threads = threads(&resources["cpu"], &mut notes);
    let cpu_model = text(&resources["cpu"]["sockets"][0]["name"]);
    let kernel_architecture = root["environment"]["kernel_architecture"]
        .as_str()
        .or_else(|| resources["cpu"]["architecture"].as_str())
        .unwrap_or_default();
    let mut hardware_info: BTreeMap<String, String> = HARDWARE_INFO
        .iter()
        .map(|(key, path)| {
            let value = resources.pointer(path).map(text).unwrap_or_default();
            ((*key).to_owned(), or_unknown(value))
        })
        .collect();
    hardware_info.insert("cpu_model".to_owned(), or_unknown(cpu_model.clone()));
    let memory = &resources["memory"];
    let memory_mib = memory_mib(memory);
    if memory_mib == 0 && memory.is_object() {
        notes.say("how much memory it has cannot be read");
    }
    let inventory = Inventory {
        architecture: architecture(kernel_architecture).to_owned(),
        cpu_count: cpu_count(&resources["cpu"], threads.len(), &mut notes),
        cpu_speed: cpu_speed(&cpu_model, &resources["cpu"]),
        memory_mib,
        hardware_uuid: uuid(&text(&resources["system"]["uuid"])),
        hardware_info,
        numa_nodes: numa_nodes(memory, &threads, &mut notes),
        disks: disks::disks(&resources["storage"], &mut notes),
        interfaces: cards::interfaces(&resources["network"], &root["networks"], &mut notes),
    };
    Ok((inventory, notes))
}

/// A kernel without a topology of its processors tells only how many there are.
fn cpu_count(cpu: &Value, threads: usize, notes: &mut Notes) -> i32 {
    if threads > 0 {
        return as_i32(threads);
    }
    let total = usize::try_from(number(&cpu["total"])).unwrap_or(0);
    if total == 0 && cpu.is_object() {
        notes.say("how many processors it has cannot be read");
    }
    as_i32(total.min(THREADS_MAX))
}

/// What is told in all, or else the sum of what the NUMA nodes have.
fn memory_mib(memory: &Value) -> i64 {
    let total = mib(&memory["total"]);
    if total > 0 {
        return total;
    }
    let nodes = items(&memory["nodes"]).map(|node| mib(&node["total"]));
    let sum = nodes.fold(0i64, i64::saturating_add);
    if sum <= MEMORY_MIB_MAX { sum } else { 0 }
}

/// A logical CPU.
struct Thread {
    id: i32,
    numa_node: i32,
}

fn threads(cpu: &Value, notes: &mut Notes) -> Vec<Thread> {
    let mut threads = Vec::new();
    for socket in items(&cpu["sockets"]) {
        for core in items(&socket["cores"]) {
            for thread in items(&core["threads"]) {
                if threads.len() == THREADS_MAX {
                    notes.leave_out("more processors than are kept", "");
                    continue;
                }
                threads.push(Thread {
                    id: small(&thread["id"]),
                    numa_node: small(&thread["numa_node"]).max(0),
                });
            }
        }
    }
    threads
}

/// MHz: what the model's name promises ("@ 2.40GHz"), else the fastest that the kernel tells of.
fn cpu_speed(model: &str, cpu: &Value) -> i32 {
    let named = model.rsplit_once('@').map_or("", |(_, speed)| speed).trim();
    let lower = named.to_ascii_lowercase();
    let number = |unit: &str| lower.strip_suffix(unit)?.trim().parse::<f64>().ok();
    let mhz = number("ghz")
        .map(|ghz| ghz * 1000.0)
        .or_else(|| number("mhz"));
    if let Some(mhz) = mhz.filter(|mhz| (1.0..1e6).contains(mhz)) {
        return mhz.round() as i32;
    }
    items(&cpu["sockets"])
        .flat_map(|socket| {
            [
                small(&socket["frequency_turbo"]),
                small(&socket["frequency"]),
            ]
        })
        .filter(|mhz| (0..CPU_SPEED_MAX).contains(mhz))
        .max()
        .unwrap_or(0)
}

fn numa_nodes(memory: &Value, threads: &[Thread], notes: &mut Notes) -> Vec<NumaNode> {
    let mut nodes: BTreeMap<i32, NumaNode> = BTreeMap::new();
    let mut node = |index: i32, change: &mut dyn FnMut(&mut NumaNode)| {
        if nodes.contains_key(&index) || nodes.len() < NUMA_NODES_MAX {
            change(nodes.entry(index).or_insert_with(|| NumaNode {
                index,
                ..NumaNode::default()
            }));
        } else {
            notes.leave_out("more NUMA nodes than are kept", "");
        }
    };
    for entry in items(&memory["nodes"]) {
        let total = mib(&entry["total"]);
        // A node named twice, or as -1, takes nothing from the one that has the memory.
        node(small(&entry["numa_node"]).max(0), &mut |node| {
            node.memory_mib = node.memory_mib.max(total)
        });
    }
    for thread in threads {
        node(thread.numa_node, &mut |node| node.cores.push(thread.id));
    }
    if let Some(only) = nodes.get_mut(&0)
        && only.memory_mib == 0
        && nodes.len() == 1
    {
        // A kernel without NUMA tells only the sum.
        nodes
            .entry(0)
            .and_modify(|node| node.memory_mib = mib(&memory["total"]));
    }
    nodes.into_values().collect()
}

fn architecture(kernel: &str) -> &'static str {
    match kernel {
        "x86_64" | "amd64" => "amd64/generic",
        "i386" | "i486" | "i586" | "i686" => "i386/generic",
        "aarch64" | "arm64" => "arm64/generic",
        "armv7l" | "armv8l" => "armhf/generic",
        "ppc64le" => "ppc64el/generic",
        "s390x" => "s390x/generic",
        "riscv64" => "riscv64/generic",
        _ => "",
    }
}

/// A machine's own UUID, in the one usual spelling. What makers leave in its place says nothing.
fn uuid(text: &str) -> Option<String> {
    let uuid = uuid::Uuid::parse_str(text).ok()?;
    let octets = uuid.as_bytes();
    let is_one_octet = octets.iter().all(|octet| *octet == octets[0]);
    let shown = uuid.hyphenated().to_string();
    (!is_one_octet && !NO_UUIDS.contains(&shown.as_str())).then_some(shown)
}

fn or_unknown(text: String) -> String {
    if text.is_empty() {
        "Unknown".to_owned()
    } else {
        text
    }
}

/// The members of a list. Some tools write a list of one as that one, and a list of named things as an object.
fn items(value: &Value) -> impl Iterator<Item = &Value> {
    let found: Vec<&Value> = match value {
        Value::Array(list) => list.iter().collect(),
        Value::Object(named) if named.is_empty() => Vec::new(),
        Value::Object(named) if named.values().all(Value::is_object) => named.values().collect(),
        Value::Object(_) => vec![value],
        _ => Vec::new(),
    };
    found.into_iter()
}

fn is_true(value: &Value) -> bool {
    match value {
        Value::Bool(value) => *value,
        Value::Number(_) => number(value) != 0,
        Value::String(text) => {
            let text = text.trim().to_ascii_lowercase();
            matches!(text.as_str(), "1" | "true" | "yes" | "on")
        }
        _ => false,
    }
}

/// A text without what PostgreSQL or a terminal can't take. Numbers are taken as text.
fn text(value: &Value) -> String {
    let number;
    let text = match value {
        Value::String(text) => text.as_str(),
        Value::Number(value) => {
            number = value.to_string();
            &number
        }
        _ => "",
    };
    text.trim()
        .chars()
        .filter(|c| !c.is_control() && !turns_text(*c))
        .take(TEXT_MAX)
        .collect()
}

/// Characters that change how others are shown, or are not shown.
fn turns_text(c: char) -> bool {
    matches!(c, '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{feff}')
}

fn some_text(value: &Value) -> Option<String> {
    Some(text(value)).filter(|text| !text.is_empty())
}

/// A whole number, from a number or its text; 0 otherwise.
fn number(value: &Value) -> i64 {
    match value {
        Value::Number(value) => value
            .as_i64()
            .or_else(|| value.as_f64().map(|value| value as i64))
            .unwrap_or(0),
        Value::String(text) => {
            let text = text.trim();
            let fraction = || text.parse::<f64>().ok().map(|value| value as i64);
            text.parse().ok().or_else(fraction).unwrap_or(0)
        }
        _ => 0,
    }
}

fn small(value: &Value) -> i32 {
    i32::try_from(number(value)).unwrap_or(0)
}

fn as_i32(count: usize) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// Octets to MiB, rounded: firmware keeps a little of what is plugged in. 0 for what cannot be.
fn mib(octets: &Value) -> i64 {
    let mib = number(octets).max(0).saturating_add(512 * 1024) / (1024 * 1024);
    if mib <= MEMORY_MIB_MAX { mib } else { 0 }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const DISK: u64 = 8 << 30;

    fn sample() -> Value {
        json!({
            "api_version": "1.0",
            "environment": {"kernel_architecture": "x86_64"},
            "resources": {
                "cpu": {"architecture": "x86_64", "total": 4, "sockets": [{
                    "name": "Xeon(R) Gold 6148 CPU @ 2.40GHz", "socket": 0, "frequency_turbo": 3700,
                    "cores": [
                        {"core": 0, "threads": [{"id": 0, "numa_node": 0}, {"id": 2, "numa_node": 0}]},
                        {"core": 1, "threads": [{"id": 1, "numa_node": 1}, {"id": 3, "numa_node": 1}]}]}]},
                "memory": {"total": 8_589_000_000u64, "nodes": [
                    {"numa_node": 0, "total": 4_294_967_296u64}, {"numa_node": 1, "total": 4_294_967_296u64}]},
                "network": {"cards": [{"vendor": "Intel", "product": "X550", "numa_node": 1, "ports": [
                    {"id": "eth0", "address": "52:54:00:00:00:01", "link_detected": true, "link_speed": 1000,
                     "supported_modes": ["100baseT/Full", "10000baseT/Full", "x"]},
                    {"id": "ib0", "address": "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:0a:6b:91"}, {"id": "lo", "address": "00:00:00:00:00:00"},
                    {"id": "eth1", "address": "52:54:00:00:00:01"}]}]},
                "storage": {"disks": [
                    {"id": "sda", "size": DISK, "model": "QEMU\u{0000} DISK ", "serial": "s1", "block_size": 4096,
                     "rpm": 1, "device_id": "ata-QEMU_s1"},
                    {"id": "sr0", "size": DISK, "type": "cdrom"}, {"id": "sdb", "size": 0}, {"id": "sda", "size": DISK}]},
                "system": {"uuid": "EC2D31C6-0B1A-4B39-9C53-6BBA1DBF7E6D", "vendor": "QEMU", "product": "Standard PC",
                           "version": "", "motherboard": {"vendor": "Intel"}, "firmware": {"version": "1.16", "date": "04/01/2014"}}
            },
            "networks": {"eth0": {"addresses": [
                {"address": "10.0.0.5", "scope": "global"}, {"address": "fe80::1", "scope": "link"}, {"address": "?"}]}}
        })
    }

    #[test]
    fn the_whole_contract_is_read() {
        let (got, notes) = parse(sample().to_string().as_bytes()).unwrap();
        assert_eq!(got.architecture, "amd64/generic");
        assert_eq!(
            (got.cpu_count, got.cpu_speed, got.memory_mib),
            (4, 2400, 8191)
        );
        assert_eq!(
            got.hardware_uuid.as_deref(),
            Some("ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d")
        );
        assert_eq!(got.hardware_info.len(), 9);
        assert_eq!(
            got.hardware_info["cpu_model"],
            "Xeon(R) Gold 6148 CPU @ 2.40GHz"
        );
        assert_eq!(got.hardware_info["system_version"], "Unknown");
        assert_eq!(got.numa_nodes.len(), 2);
        assert_eq!(
            got.numa_nodes[1],
            NumaNode {
                index: 1,
                memory_mib: 4096,
                cores: vec![1, 3]
            }
        );
        assert_eq!(got.disks.len(), 1, "{:?}", got.disks);
        let disk = &got.disks[0];
        assert_eq!(
            (disk.model.as_str(), disk.block_bytes, disk.rotary),
            ("QEMU DISK", 4096, true)
        );
        assert_eq!(disk.id_path, "/dev/disk/by-id/ata-QEMU_s1");
        assert_eq!(got.interfaces.len(), 1, "{:?}", got.interfaces);
        let card = &got.interfaces[0];
        assert_eq!(
            (card.interface_speed, card.link_speed, card.numa_node),
            (10_000, 1000, 1)
        );
        assert_eq!(card.addresses, ["10.0.0.5".parse::<IpAddr>().unwrap()]);
        assert_eq!(
            notes.text().unwrap(),
            "left out, a disk named twice: sda; \
             left out, a port whose MAC address another has: eth1; \
             left out, a port without an Ethernet address: ib0"
        );
    }

    /// One field gone wrong, of each kind: the rest is read, and what is missing is said.
    #[test]
    fn one_odd_field_costs_only_itself() {
        let cases: &[(&str, Value, &str)] = &[
            (
                "/resources/memory",
                json!(null),
                "nothing is told of memory",
            ),
            ("/resources/cpu", json!("x86"), "nothing is told of cpu"),
            (
                "/resources/storage",
                json!([]),
                "nothing is told of storage",
            ),
            (
                "/resources/network",
                json!(null),
                "nothing is told of network",
            ),
            (
                "/resources/memory",
                json!({"total": -5}),
                "how much memory it has cannot be read",
            ),
            (
                "/resources/memory",
                json!({"total": u64::MAX}),
                "how much memory it has cannot be read",
            ),
            (
                "/resources/memory",
                json!({"total": "8 GiB"}),
                "how much memory it has cannot be read",
            ),
            ("/resources/storage/disks", json!(null), ""),
            ("/resources/network/cards", json!(null), ""),
            (
                "/resources/cpu/sockets/0/frequency_turbo",
                json!(i32::MAX),
                "",
            ),
            (
                "/resources/system/vendor",
                json!("Ac\u{0}me\u{202e}\u{fffd}".repeat(400)),
                "",
            ),
            ("/resources/system/uuid", json!("Not Settable"), ""),
        ];
        for (place, odd, note) in cases {
            let mut json = sample();
            *json.pointer_mut(place).unwrap() = odd.clone();
            let (got, notes) = parse(json.to_string().as_bytes()).unwrap();
            assert_eq!(got.architecture, "amd64/generic", "{place}");
            assert!(
                got.cpu_speed < CPU_SPEED_MAX && got.memory_mib >= 0,
                "{place}"
            );
            let longest = got.hardware_info.values().map(|text| text.chars().count());
            assert!(longest.max() <= Some(TEXT_MAX), "{place}");
            let said = notes.text().unwrap_or_default();
            assert!(said.contains(note), "{place}: {said}");
        }
        let mut json = sample();
        json["resources"]["memory"]["total"] = json!("8589934592");
        let (got, _) = parse(json.to_string().as_bytes()).unwrap();
        assert_eq!(got.memory_mib, 8192, "a number as text");
    }

    #[test]
    fn what_is_told_otherwise_is_used() {
        let with = |place: &str, odd: Value| {
            let mut json = sample();
            *json.pointer_mut(place).unwrap() = odd;
            let (got, notes) = parse(json.to_string().as_bytes()).unwrap();
            (got, notes.text().unwrap_or_default())
        };
        // No topology: how many there are is told all the same.
        let (got, _) = with("/resources/cpu/sockets", json!([]));
        assert_eq!(got.cpu_count, 4);
        let (got, said) = with("/resources/cpu", json!({"sockets": null}));
        assert_eq!(got.cpu_count, 0);
        assert!(
            said.contains("how many processors it has cannot be read"),
            "{said}"
        );
        // No sum: the nodes have it.
        let (got, said) = with("/resources/memory/total", json!(0));
        assert_eq!((got.memory_mib, said.contains("memory")), (8192, false));
        // A node without memory, and one told twice.
        let (got, _) = with(
            "/resources/memory/nodes",
            json!([{"numa_node": 0, "total": 1u64 << 32}, {"numa_node": 2, "total": 0}, {"numa_node": -1, "total": 0}]),
        );
        let memory: Vec<(i32, i64)> = got
            .numa_nodes
            .iter()
            .map(|node| (node.index, node.memory_mib))
            .collect();
        assert_eq!(memory, [(0, 4096), (1, 0), (2, 0)]);
        // One in place of a list of one, and a list of named things.
        let disk = json!({"id": "sda", "size": DISK});
        for list in [disk.clone(), json!({"sda": disk.clone()})] {
            let (got, _) = with("/resources/storage/disks", list);
            assert_eq!(got.disks.len(), 1);
        }
        let (got, said) = with("/resources/storage/disks", json!("none"));
        assert_eq!(got.disks.len(), 0);
        assert!(said.contains("disks of storage cannot be read"), "{said}");
    }

    #[test]
    fn a_uuid_is_a_machines_own_or_none() {
        for (said, want) in [
            (
                "EC2D31C6-0B1A-4B39-9C53-6BBA1DBF7E6D",
                Some("ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d"),
            ),
            (
                "{ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d}",
                Some("ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d"),
            ),
            (
                "ec2d31c60b1a4b399c536bba1dbf7e6d",
                Some("ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d"),
            ),
            ("00000000-0000-0000-0000-000000000000", None),
            ("ffffffff-ffff-ffff-ffff-ffffffffffff", None),
            ("FEFEFEFE-FEFE-FEFE-FEFE-FEFEFEFEFEFE", None),
            ("03000200-0400-0500-0006-000700080009", None),
            ("12345678-1234-5678-90AB-CDDEEFAABBCC", None),
            ("Not Settable", None),
            ("", None),
        ] {
            assert_eq!(uuid(said).as_deref(), want, "{said}");
        }
    }

    #[test]
    fn more_than_is_kept_is_said() {
        let mut json = sample();
        let nodes: Vec<Value> = (0..300)
            .map(|n| json!({"numa_node": n, "total": 1 << 30}))
            .collect();
        json["resources"]["memory"]["nodes"] = json!(nodes);
        let threads: Vec<Value> = (0..70_000)
            .map(|n| json!({"id": n, "numa_node": 0}))
            .collect();
        json["resources"]["cpu"]["sockets"][0]["cores"] = json!([{"threads": threads}]);
        let (got, notes) = parse(json.to_string().as_bytes()).unwrap();
        assert_eq!(
            (got.numa_nodes.len(), got.cpu_count),
            (NUMA_NODES_MAX, 65_536)
        );
        let said = notes.text().unwrap();
        assert!(said.contains("more NUMA nodes than are kept: 44"), "{said}");
        assert!(
            said.contains("more processors than are kept: 4464"),
            "{said}"
        );
    }

    #[test]
    fn speed_comes_from_the_name_or_the_kernel() {
        for (name, turbo, want) in [
            ("Intel @ 2.40GHz", 3000, 2400),
            ("Intel @ 800 MHz", 0, 800),
            ("AMD EPYC 7702", 3350, 3350),
            ("Odd @ fastGHz", 1000, 1000),
            ("Odd @ 1e300GHz", 0, 0),
        ] {
            let cpu = json!({"sockets": [{"name": name, "frequency_turbo": turbo}]});
            assert_eq!(cpu_speed(name, &cpu), want, "{name}");
        }
    }

    #[test]
    fn what_is_no_inventory_is_refused() {
        for output in [
            "",
            "{",
            "[]",
            "null",
            "{}",
            "{\"resources\": 5}",
            "{\"resources\": {\"cpu\": {}}}",
            "\u{0}",
        ] {
            assert!(parse(output.as_bytes()).is_err(), "{output:?}");
        }
        let deep = "[".repeat(100_000);
        assert!(parse(deep.as_bytes()).is_err());
        assert!(parse(br#"{"resources": {"cpu": {}, "memory": {}}}"#).is_ok());
    }

    /// Any JSON in any place of the contract.
    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<f64>().prop_map(Value::from),
            ".{0,8}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::vec(("[a-z]{1,6}", inner), 0..4)
                    .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn a_strange_value_anywhere_never_panics(strange in any_json(), place in 0usize..40) {
            const PLACES: [&str; 20] = [
                "/resources/cpu/sockets", "/resources/cpu/sockets/0", "/resources/cpu/sockets/0/name",
                "/resources/cpu/sockets/0/cores/0/threads", "/resources/cpu/sockets/0/cores/0/threads/0/id",
                "/resources/memory/total", "/resources/memory/nodes", "/resources/memory/nodes/0/numa_node",
                "/resources/network", "/resources/network/cards/0/ports/0", "/resources/network/cards/0/ports/0/id",
                "/resources/network/cards/0/ports/0/supported_modes", "/resources/storage/disks/0/size",
                "/resources/storage/disks/0/device_id", "/resources/storage/disks", "/resources/system",
                "/resources/system/uuid", "/networks", "/networks/eth0/addresses", "/environment",
            ];
            let mut json = sample();
            *json.pointer_mut(PLACES[place % 20]).unwrap() = strange;
            let (inventory, _) = parse(json.to_string().as_bytes()).unwrap();
            for disk in &inventory.disks {
                prop_assert!(!disk.name.contains('\0') && disk.size_bytes > 0);
            }
        }

        #[test]
        fn a_cut_text_is_refused_or_read(cut in 0usize..2000) {
            let text = sample().to_string();
            let _ = parse(&text.as_bytes()[..cut.min(text.len())]);
        }
    }
}
