//! Network cards: every port with an Ethernet address of its own.

use std::collections::BTreeSet;
use std::net::IpAddr;

use serde_json::Value;
use store::inventory::Interface;

use super::notes::Notes;
use super::{is_true, items, small, some_text, text};

/// A hypervisor host with a few hundred virtual functions has them all.
const INTERFACES_MAX: usize = 1024;
const ADDRESSES_MAX: usize = 16;
/// 10 Tbit/s, in Mbit/s. Drivers that know no speed say -1, 65535, 2147483647 or 4294967295.
const SPEED_MAX: i32 = 10_000_000;
const SPEED_UNKNOWN: i32 = 65_535;

pub(super) fn interfaces(network: &Value, networks: &Value, notes: &mut Notes) -> Vec<Interface> {
    let (mut names, mut macs) = (BTreeSet::new(), BTreeSet::new());
    let mut interfaces = Vec::new();
    for card in items(&network["cards"]) {
        let functions = small(&card["sriov"]["current_vfs"]);
        if functions > 0 {
            let card = text(&card["ports"][0]["id"]);
            notes.say(format!(
                "{functions} virtual functions of {card} are not listed"
            ));
        }
        // One without a driver, or whose firmware the image has not.
        if card.is_object() && items(&card["ports"]).next().is_none() {
            let names = ["product", "vendor", "pci_address"].map(|field| text(&card[field]));
            let name = names.into_iter().find(|name| !name.is_empty());
            notes.leave_out("a network card without a port", &name.unwrap_or_default());
        }
        for port in items(&card["ports"]) {
            let name = text(&port["id"]);
            if name == "lo" {
                continue;
            }
            let mac = port["address"]
                .as_str()
                .and_then(|mac| mac.trim().parse::<model::Mac>().ok());
            let Some(mac) = mac.filter(|mac| mac.is_unicast()) else {
                notes.leave_out("a port without an Ethernet address", &name);
                continue;
            };
            if name.is_empty() {
                notes.leave_out("a port without a name", &mac.to_string());
                continue;
            }
            // Names that the store gives to ports of which it knows none.
            if name.starts_with("card-") {
                notes.leave_out("a port with a name that is kept for others", &name);
                continue;
            }
            // One of each: a bond's members, or a liar, may show the same twice.
            if !macs.insert(mac) {
                notes.leave_out("a port whose MAC address another has", &name);
                continue;
            }
            if !names.insert(name.clone()) {
                notes.leave_out("a port named twice", &name);
                continue;
            }
            interfaces.push(read(name, mac, card, port, networks, notes));
        }
    }
    if interfaces.len() > INTERFACES_MAX {
        // Those with a cable first, else in the order told.
        interfaces.sort_by_key(|interface| !interface.link_connected);
        for interface in interfaces.drain(INTERFACES_MAX..) {
            notes.leave_out("more network ports than are kept", &interface.name);
        }
    }
    interfaces
}

fn read(
    name: String,
    mac: model::Mac,
    card: &Value,
    port: &Value,
    networks: &Value,
    notes: &mut Notes,
) -> Interface {
    let link_connected = is_true(&port["link_detected"]);
    let link_speed = speed(&port["link_speed"]);
    if link_connected && link_speed.is_none() && !port["link_speed"].is_null() {
        notes.leave_out("a link speed that cannot be", &name);
    }
    let link_speed = link_speed.unwrap_or(0);
    Interface {
        mac,
        link_connected,
        interface_speed: supported_speed(&port["supported_modes"]).max(link_speed),
        link_speed: if link_connected { link_speed } else { 0 },
        vendor: some_text(&card["vendor"]),
        product: some_text(&card["product"]),
        firmware_version: some_text(&card["firmware_version"]),
        numa_node: small(&card["numa_node"]).max(0),
        addresses: addresses(&networks[name.as_str()]),
        name,
    }
}

/// Mbit/s; `None` for what a driver says when it does not know.
fn speed(value: &Value) -> Option<i32> {
    let speed = i32::try_from(super::number(value)).ok()?;
    (speed >= 0 && speed != SPEED_UNKNOWN && speed <= SPEED_MAX).then_some(speed)
}

/// Addresses that say where the card is plugged in.
fn addresses(state: &Value) -> Vec<IpAddr> {
    items(&state["addresses"])
        .filter(|address| {
            address["scope"]
                .as_str()
                .is_none_or(|scope| scope == "global")
        })
        .filter_map(|address| address["address"].as_str()?.parse().ok())
        .take(ADDRESSES_MAX)
        .collect()
}

/// The highest of modes like "1000baseT/Full", in Mbit/s.
fn supported_speed(modes: &Value) -> i32 {
    items(modes)
        .filter_map(|mode| {
            let mode = mode.as_str()?;
            let digits = mode
                .find(|c: char| !c.is_ascii_digit())
                .unwrap_or(mode.len());
            mode[..digits].parse::<i32>().ok()
        })
        .filter(|speed| *speed <= SPEED_MAX)
        .max()
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(ports: Value) -> (Vec<Interface>, String) {
        let mut notes = Notes::default();
        let network = json!({"cards": [{"ports": ports}]});
        let found = interfaces(&network, &Value::Null, &mut notes);
        (found, notes.text().unwrap_or_default())
    }

    #[test]
    fn link_speeds_that_cannot_be_are_unknown() {
        for (said, want) in [
            (json!(1000), 1000),
            (json!("25000"), 25_000),
            (json!(800_000), 800_000),
            (json!(2_147_483_647), 0),
            (json!(4_294_967_295u32), 0),
            (json!(u64::MAX), 0),
            (json!(65_535), 0),
            (json!(-1), 0),
            (json!("fast"), 0),
            (json!(null), 0),
            (json!([10]), 0),
        ] {
            let port = json!({"id": "eth0", "address": "52:54:00:00:00:01", "link_detected": true,
                "link_speed": said, "supported_modes": ["2147483647baseT/Full"]});
            let (found, _) = read(json!([port]));
            assert_eq!(
                (found[0].link_speed, found[0].interface_speed),
                (want, want),
                "{said}"
            );
        }
        let port = json!({"id": "eth0", "address": "52:54:00:00:00:01", "link_detected": true, "link_speed": -1});
        assert_eq!(
            read(json!([port])).1,
            "left out, a link speed that cannot be: eth0"
        );
    }

    #[test]
    fn a_card_without_a_driver_is_said_and_a_cable_told_as_text_counts() {
        let mut notes = Notes::default();
        let network = json!({"cards": [
            {"product": "BCM57508", "ports": []}, {"vendor": "Mellanox"}, {},
            {"ports": {"id": "eth0", "address": "52-54-00-00-00-01", "link_detected": "true", "link_speed": 400_000}},
        ]});
        let found = interfaces(&network, &Value::Null, &mut notes);
        assert_eq!((found.len(), found[0].link_speed), (1, 400_000));
        assert!(found[0].link_connected);
        let said = "left out, a network card without a port: BCM57508, Mellanox and 1 more";
        assert_eq!(notes.text().as_deref(), Some(said));
    }

    #[test]
    fn ports_that_cannot_be_kept_are_said() {
        let (found, said) = read(json!([
            {"id": "eth0", "address": "52:54:00:00:00:01"},
            {"id": "eth1", "address": "52:54:00:00:00:01"},
            {"id": "eth0", "address": "52:54:00:00:00:02"},
            {"id": "ib0", "address": "80:00:02:08:fe:80:00:00:00:00:00:00:00:02:c9:03:00:0a:6b:91"},
            {"id": "wwan0"}, {"id": "usb0", "address": ""}, {"id": "eth9", "address": "01:00:5e:00:00:01"},
            {"address": "52:54:00:00:00:03"}, {"id": "card-7", "address": "52:54:00:00:00:04"}, {"id": "lo", "address": "00:00:00:00:00:00"}, null, 5, "eth7",
        ]));
        assert_eq!(found.len(), 1);
        for part in [
            "a port whose MAC address another has: eth1",
            "a port named twice: eth0",
            "a port without an Ethernet address: ib0, wwan0, usb0, eth9",
            "a port without a name: 52:54:00:00:00:03",
            "a port with a name that is kept for others: card-7",
        ] {
            assert!(said.contains(part), "{part}: {said}");
        }
    }

    #[test]
    fn four_hundred_virtual_functions_are_kept_and_five_thousand_said() {
        let ports = |count: u32| -> Value {
            (0..count)
                .map(|n| {
                    let [_, _, high, low] = n.to_be_bytes();
                    json!({"id": format!("ens1f0v{n}"), "address": format!("52:54:00:00:{high:02x}:{low:02x}"),
                           "link_detected": n == 4999})
                })
                .collect()
        };
        let (found, said) = read(ports(401));
        assert_eq!((found.len(), said.as_str()), (401, ""));
        let mut notes = Notes::default();
        let card = json!({"ports": ports(1), "sriov": {"current_vfs": 400, "maximum_vfs": 512}});
        let found = interfaces(&json!({"cards": [card]}), &Value::Null, &mut notes);
        assert_eq!(found.len(), 1);
        let said = "400 virtual functions of ens1f0v0 are not listed";
        assert_eq!(notes.text().as_deref(), Some(said));
        let (found, said) = read(ports(5000));
        assert_eq!(found.len(), INTERFACES_MAX);
        assert_eq!(found[0].name, "ens1f0v4999", "a port with a cable is kept");
        assert!(
            said.contains("more network ports than are kept") && said.contains("and 3968 more"),
            "{said}"
        );
    }
}
