//! What the region learned of a machine, for people to read, and what of it must not be missing.

use serde_json::Value;

fn list<'a>(machine: &'a Value, name: &str) -> &'a [Value] {
    machine
        .get(name)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

fn text(object: &Value, name: &str) -> String {
    match object.get(name) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "-".to_owned(),
        Some(other) => other.to_string(),
    }
}

pub fn print(name: &str, machine: &Value) {
    println!("\n{name}: {} inventory", text(machine, "system_id"));
    println!(
        "  {} cores, {} MiB memory",
        text(machine, "cpu_count"),
        text(machine, "memory")
    );
    for disk in list(machine, "blockdevice_set") {
        let gib = disk.get("size").and_then(Value::as_f64).unwrap_or(0.0) / f64::from(1 << 30);
        println!(
            "  disk {:8} {gib:>6.1} GiB  serial {}",
            text(disk, "name"),
            text(disk, "serial")
        );
    }
    for interface in list(machine, "interface_set") {
        println!(
            "  interface {:8} {}",
            text(interface, "name"),
            text(interface, "mac_address")
        );
    }
    if let Some(info) = machine.get("hardware_info").and_then(Value::as_object) {
        for (key, value) in info {
            println!("  {key}: {}", value.as_str().unwrap_or_default());
        }
    }
}

/// What a commissioned machine of the lab must have and this one lacks.
pub fn missing(machine: &Value, macs: &[String], disk_serials: &[String]) -> Option<String> {
    let positive = |name: &str| machine.get(name).and_then(Value::as_f64).unwrap_or(0.0) > 0.0;
    for name in ["cpu_count", "memory"] {
        if !positive(name) {
            return Some(format!("its inventory has no {name}"));
        }
    }
    let interfaces = list(machine, "interface_set");
    if let Some(mac) = macs.iter().find(|mac| !has(interfaces, "mac_address", mac)) {
        return Some(format!("its inventory has no interface {mac}"));
    }
    let disks = list(machine, "blockdevice_set");
    if let Some(serial) = disk_serials
        .iter()
        .find(|serial| !has(disks, "serial", serial))
    {
        return Some(format!(
            "its inventory has no disk with the serial {serial}"
        ));
    }
    let info = machine.get("hardware_info").and_then(Value::as_object);
    if info.is_none_or(|info| !info.values().any(|value| value == "Muster")) {
        return Some("its hardware_info does not name the manufacturer".to_owned());
    }
    None
}

fn has(list: &[Value], name: &str, wanted: &str) -> bool {
    list.iter()
        .any(|entry| entry.get(name).and_then(Value::as_str) == Some(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_said() {
        let whole = serde_json::json!({
            "cpu_count": 2, "memory": 1024,
            "interface_set": [{"name": "a", "mac_address": "m1"}],
            "blockdevice_set": [{"name": "vda", "serial": "s1", "size": 1}],
            "hardware_info": {"system_vendor": "Muster"},
        });
        let missing_of = |machine: &Value| missing(machine, &["m1".to_owned()], &["s1".to_owned()]);
        assert_eq!(missing_of(&whole), None);
        for name in [
            "cpu_count",
            "memory",
            "interface_set",
            "blockdevice_set",
            "hardware_info",
        ] {
            let mut machine = whole.clone();
            machine.as_object_mut().expect("an object").remove(name);
            assert!(missing_of(&machine).is_some(), "{name}");
        }
    }
}
