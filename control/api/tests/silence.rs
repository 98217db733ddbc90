//! Nothing that MAAS knows is passed over in silence: each of its filters and fields is applied, or refused by name.
//!
//! The tables are MAAS's, not ours: FilterNodeForm and ReadNodesForm, and the forms of each resource.

mod support;

use std::collections::BTreeSet;

use serde_json::Value;
use support::Region;

const FORM: &str = "application/x-www-form-urlencoded";

/// One rack, one subnet with one machine on it, everything of both set to something that a filter can name.
async fn region() -> (Region, String) {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.1/24").await;
    region
        .post("fabrics/", "name=red&class_type=10g")
        .await
        .json();
    region
        .post("subnets/", "cidr=10.20.0.0/24&fabric=red&name=lab")
        .await
        .json();
    region.post("domains/", "name=example.com").await.json();
    let machine = region
        .post(
            "machines/",
            "hostname=m1.example.com&architecture=amd64&mac_addresses=52:54:00:00:00:01&cpu_count=4&memory=1024",
        )
        .await
        .json();
    let id = machine["system_id"].as_str().unwrap().to_owned();
    for statement in [
        "update interface set vlan_id = (select id from vlan), link_speed = 1000",
        "insert into interface_link (interface_id, subnet_id, mode)
             select i.id, s.id, 'auto' from interface i, subnet s",
        "update machine set cpu_speed = 2000, owner_id = (select id from account where username = 'admin')",
        "update rack_interface set mac = '52:54:00:00:00:99'",
    ] {
        sqlx::query(statement)
            .execute(&region.db.pool)
            .await
            .unwrap();
    }
    (region, id)
}

enum Filter {
    /// What excludes the one there is, and what it meets.
    Applied(&'static str, &'static str),
    Refused,
}
use Filter::{Applied, Refused};

/// ReadNodesForm.
const MACHINE_FILTERS: [(&str, Filter); 44] = [
    ("agent_name", Applied("maas", "")),
    ("arch", Applied("arm64", "amd64")),
    ("cpu_count", Applied("5", "4")),
    ("cpu_speed", Applied("2001", "2000")),
    ("deployment_target", Applied("memory", "disk")),
    ("devices", Refused),
    ("domain", Applied("nosuch", "example.com")),
    ("fabric_classes", Applied("nosuch", "10g")),
    ("fabrics", Applied("nosuch", "red")),
    ("hostname", Applied("nosuch", "m1")),
    ("id", Applied("zzzzzz", "ID")),
    ("interfaces", Refused),
    ("link_speed", Applied("1001", "1000")),
    (
        "mac_address",
        Applied("52:54:00:00:00:77", "52:54:00:00:00:01"),
    ),
    ("mem", Applied("1025", "1024")),
    ("not_agent_name", Applied("", "maas")),
    ("not_arch", Applied("amd64/generic", "arm64")),
    ("not_deployment_target", Applied("disk", "memory")),
    ("not_domain", Applied("example.com", "maas")),
    ("not_fabric_classes", Applied("10g", "nosuch")),
    ("not_fabrics", Applied("red", "nosuch")),
    ("not_hostname", Applied("m1", "nosuch")),
    ("not_id", Applied("ID", "zzzzzz")),
    ("not_in_pool", Applied("default", "")),
    ("not_in_zone", Applied("default", "")),
    ("not_owner", Applied("admin", "user")),
    ("not_power_state", Applied("unknown", "on")),
    ("not_simple_status", Applied("new", "ready")),
    ("not_status", Applied("new", "ready")),
    ("not_subnets", Applied("lab", "")),
    ("not_system_id", Applied("ID", "zzzzzz")),
    ("not_tags", Applied("", "nosuch")),
    ("not_vlans", Applied("untagged", "")),
    ("owner", Applied("nosuch", "admin")),
    ("pool", Applied("nosuch", "default")),
    ("power_state", Applied("on", "unknown")),
    ("simple_status", Applied("ready", "New")),
    ("status", Applied("ready", "new")),
    ("storage", Refused),
    ("subnets", Applied("nosuch", "cidr:10.20.0.0/24")),
    ("system_id", Applied("zzzzzz", "ID")),
    ("tags", Applied("nosuch", "")),
    ("vlans", Applied("nosuch", "vid:0")),
    ("zone", Applied("nosuch", "default")),
];

/// Where racks are told apart; the others are refused.
const RACK_FILTERS: [(&str, Filter); 20] = [
    ("arch", Applied("arm64", "amd64")),
    ("domain", Applied("nosuch", "maas")),
    ("fabrics", Applied("nosuch", "red")),
    ("hostname", Applied("nosuch", "rack1")),
    ("id", Applied("zzzzzz", "rack01")),
    (
        "mac_address",
        Applied("52:54:00:00:00:77", "52:54:00:00:00:99"),
    ),
    ("not_arch", Applied("amd64", "arm64")),
    ("not_domain", Applied("maas", "nosuch")),
    ("not_fabrics", Applied("red", "nosuch")),
    ("not_hostname", Applied("rack1", "nosuch")),
    ("not_id", Applied("rack01", "zzzzzz")),
    ("not_in_pool", Applied("default", "")),
    ("not_in_zone", Applied("default", "")),
    ("not_subnets", Applied("lab", "")),
    ("not_vlans", Applied("untagged", "")),
    ("pool", Applied("nosuch", "default")),
    ("subnets", Applied("nosuch", "lab")),
    ("system_id", Applied("zzzzzz", "rack01")),
    ("vlans", Applied("nosuch", "5001")),
    ("zone", Applied("nosuch", "default")),
];

const EVENT_FILTERS: [(&str, Filter); 13] = [
    ("after", Applied("999999999", "0")),
    ("agent_name", Applied("maas", "")),
    ("before", Applied("1", "999999999")),
    ("domain", Applied("nosuch", "example.com")),
    ("hostname", Applied("nosuch", "m1")),
    ("id", Applied("zzzzzz", "ID")),
    ("level", Applied("CRITICAL", "AUDIT")),
    ("limit", Applied("0", "1")),
    (
        "mac_address",
        Applied("52:54:00:00:00:77", "52:54:00:00:00:01"),
    ),
    ("owner", Applied("nosuch", "admin")),
    ("pool", Applied("nosuch", "default")),
    ("zone", Applied("nosuch", "default")),
    ("type", Applied("nosuch", "MACHINE_CREATED")),
];

/// How many of what a list has: 0 for a refusal that names the filter.
async fn count(region: &Region, path: &str, name: &str, value: &str, refused: bool) -> usize {
    let value = percent_encoding::utf8_percent_encode(value, percent_encoding::NON_ALPHANUMERIC);
    let separator = if path.contains('?') { '&' } else { '?' };
    let path = format!("{path}{separator}{name}={value}");
    let answer = region.get(&path).await;
    if answer.status == 400 {
        assert!(refused, "{path}: {}", answer.text);
        let named = answer.text.contains(name) || answer.text.contains("between 1 and 1000");
        assert!(named, "{path}: {}", answer.text);
        return 0;
    }
    assert!(
        !refused || value.to_string() != "refused",
        "{path}: {}",
        answer.text
    );
    let list = answer.json();
    let list = list.get("events").unwrap_or(&list);
    list.as_array().unwrap().len()
}

async fn walk(region: &Region, id: &str, path: &str, filters: &[(&str, Filter)]) {
    for (name, filter) in filters {
        let value = |value: &'static str| if value == "ID" { id } else { value };
        match filter {
            Applied(misses, meets) => {
                if !misses.is_empty() {
                    let left = count(region, path, name, value(misses), true).await;
                    assert_eq!(left, 0, "{path} {name}={misses}");
                }
                let found = count(region, path, name, value(meets), false).await;
                assert!(found > 0, "{path} {name}={meets}");
            }
            Refused => {
                let left = count(region, path, name, "refused", true).await;
                assert_eq!(left, 0, "{path} {name}");
            }
        }
    }
}

#[tokio::test]
async fn no_filter_of_machines_that_maas_knows_is_ignored() {
    let (region, id) = region().await;
    walk(&region, &id, "machines/", &MACHINE_FILTERS).await;
    // As in MAAS, a slip of the pen is no question about everything.
    let typo = region.get("machines/?fabirc=red").await;
    typo.refused(400, "No such constraint.");
}

#[tokio::test]
async fn no_filter_of_racks_that_maas_knows_is_ignored() {
    let (region, id) = region().await;
    walk(&region, &id, "rackcontrollers/", &RACK_FILTERS).await;
    for (name, _) in &MACHINE_FILTERS {
        let applied = RACK_FILTERS.iter().any(|(applied, _)| applied == name);
        let constant = [
            "tags",
            "not_tags",
            "agent_name",
            "not_agent_name",
            "not_system_id",
        ];
        if !applied && !constant.contains(name) {
            let left = count(&region, "rackcontrollers/", name, "refused", true).await;
            assert_eq!(left, 0, "{name}");
        }
    }
    let typo = region.get("rackcontrollers/?hostnam=x").await;
    typo.refused(400, "No such constraint.");
}

#[tokio::test]
async fn no_filter_of_events_that_maas_knows_is_ignored() {
    let (region, id) = region().await;
    walk(
        &region,
        &id,
        "events/?op=query&level=AUDIT",
        &EVENT_FILTERS[..5],
    )
    .await;
    walk(
        &region,
        &id,
        "events/?op=query",
        &[("level", Applied("CRITICAL", "AUDIT"))],
    )
    .await;
    walk(
        &region,
        &id,
        "events/?op=query&level=AUDIT",
        &EVENT_FILTERS[7..],
    )
    .await;
    walk(
        &region,
        &id,
        "events/?op=query&level=AUDIT",
        &EVENT_FILTERS[5..6],
    )
    .await;
}

#[tokio::test]
async fn no_filter_of_other_lists_that_maas_knows_is_ignored() {
    let (region, _) = region().await;
    for (path, name, misses, meets) in [
        ("machines/?op=list_allocated", "id", "zzzzzz", ""),
        ("boot-resources/", "type", "nosuch", ""),
        ("ipaddresses/", "ip", "nosuch", ""),
        ("ipaddresses/", "owner", "nosuch", ""),
        ("ipaddresses/", "all", "nosuch", ""),
        ("reservedips/", "subnet", "", "lab"),
    ] {
        let left = count(&region, path, name, misses, true).await;
        assert_eq!(left, 0, "{path} {name}={misses}");
        count(&region, path, name, meets, false).await;
    }
    for (path, part) in [
        (
            "subnets/lab/?op=statistics&include_suggestions=true",
            "include_suggestions",
        ),
        (
            "subnets/lab/?op=statistics&include_ranges=perhaps",
            "include_ranges",
        ),
        (
            "subnets/lab/?op=ip_addresses&with_username=perhaps",
            "with_username",
        ),
        (
            "subnets/lab/?op=ip_addresses&with_summary=perhaps",
            "with_summary",
        ),
        (
            "subnets/lab/?op=ip_addresses&with_node_summary=perhaps",
            "with_node_summary",
        ),
    ] {
        region.get(path).await.refused(400, part);
    }
    let statistics = region
        .get("subnets/lab/?op=statistics&include_ranges=1")
        .await;
    assert_eq!(statistics.json()["ranges"][0]["purpose"][0], "unused");
}

#[tokio::test]
async fn no_filter_of_results_that_maas_knows_is_ignored() {
    let region = Region::start().await;
    let machine = region
        .post(
            "machines/",
            "architecture=amd64&mac_addresses=52:54:00:00:00:01&power_type=manual",
        )
        .await
        .json();
    let path = format!("nodes/{}/results/", machine["system_id"].as_str().unwrap());
    let results = async |query: &str| {
        let sets = region.get(&format!("{path}?{query}")).await.json();
        let sets = sets.as_array().unwrap();
        let count = |set: &Value| set["results"].as_array().unwrap().len();
        sets.iter().map(count).sum::<usize>()
    };
    assert!(results("").await > 0);
    for (query, some) in [
        ("hardware_type=node", true),
        ("hardware_type=0", true),
        ("hardware_type=gpu", false),
        ("type=testing", false),
        ("filters=nosuch", false),
    ] {
        assert_eq!(results(query).await > 0, some, "{query}");
    }
    for query in [
        "hardware_type=nosuch",
        "type=nosuch",
        "include_output=perhaps",
    ] {
        let answer = region.get(&format!("{path}?{query}")).await;
        answer.refused(400, query.split('=').next().unwrap());
    }
    region
        .get("devices/?nosuch=1")
        .await
        .refused(400, "No such constraint.");
    // What is said with a power command is kept.
    let path = format!("machines/{}/", machine["system_id"].as_str().unwrap());
    region
        .post(&format!("{path}?op=power_off"), "comment=for+the+fan")
        .await
        .json();
    let told = region.get("events/?op=query&level=DEBUG").await;
    assert!(told.text.contains("for the fan"), "{}", told.text);
}

//---------------------------------------------------------------- fields

enum Field {
    /// Sent, and shown in the answer at this place.
    Shown(&'static str, &'static str, &'static str),
    /// This value is refused.
    Wrong(&'static str),
    /// What we do not have: this value is refused, this passes.
    Lacking(&'static str, &'static str),
    /// Held by a test of its own, or a matter of the other fields.
    Elsewhere,
}
use Field::{Elsewhere, Lacking, Shown, Wrong};

type Fields = &'static [(&'static str, Field)];

/// AdminMachineForm and the fields of CommissionForm.
const MACHINE_FIELDS: Fields = &[
    ("hostname", Shown("m-{n}", "/hostname", "m-{n}")),
    ("description", Shown("a", "/description", "a")),
    ("domain", Lacking("nosuch", "maas")),
    (
        "domain",
        Shown("example.com", "/domain/name", "example.com"),
    ),
    ("swap_size", Lacking("1", "")),
    ("disable_ipv4", Lacking("true", "false")),
    (
        "architecture",
        Shown("arm64/generic", "/architecture", "arm64/generic"),
    ),
    ("osystem", Lacking("ubuntu", "")),
    ("distro_series", Lacking("jammy", "")),
    ("license_key", Lacking("x", "")),
    ("hwe_kernel", Lacking("hwe-22.04", "")),
    (
        "min_hwe_kernel",
        Shown("hwe-22.04", "/min_hwe_kernel", "hwe-22.04"),
    ),
    ("ephemeral_deploy", Lacking("true", "False")),
    ("enable_kernel_crash_dump", Lacking("1", "0")),
    ("enable_hw_sync", Lacking("on", "off")),
    ("is_dpu", Lacking("true", "false")),
    ("zone", Lacking("nosuch", "default")),
    ("pool", Lacking("nosuch", "default")),
    ("cpu_count", Shown("7", "/cpu_count", "7")),
    ("cpu_count", Wrong("many")),
    ("memory", Shown("512", "/memory", "512")),
    ("memory", Wrong("-1")),
    ("power_type", Wrong("magic")),
    ("power_parameters", Wrong("[]")),
    ("deployed", Lacking("true", "false")),
];

const NEW_MACHINE_FIELDS: Fields = &[
    ("mac_addresses", Wrong("nosuch")),
    ("commission", Wrong("perhaps")),
    ("enable_ssh", Wrong("perhaps")),
    ("skip_bmc_config", Wrong("perhaps")),
    ("skip_networking", Wrong("perhaps")),
    ("skip_storage", Wrong("perhaps")),
    ("commissioning_scripts", Elsewhere),
    ("testing_scripts", Lacking("fio", "none")),
];

const SUBNET_FIELDS: Fields = &[
    ("name", Shown("x", "/name", "x")),
    ("description", Shown("x", "/description", "x")),
    ("vlan", Wrong("nosuch")),
    ("fabric", Wrong("nosuch")),
    ("vid", Wrong("77")),
    ("gateway_ip", Wrong("10.99.0.1")),
    ("dns_servers", Shown("9.9.9.9", "/dns_servers/0", "9.9.9.9")),
    ("rdns_mode", Shown("1", "/rdns_mode", "1")),
    ("allow_dns", Shown("false", "/allow_dns", "false")),
    ("allow_proxy", Shown("false", "/allow_proxy", "false")),
    (
        "active_discovery",
        Shown("true", "/active_discovery", "true"),
    ),
    ("managed", Shown("false", "/managed", "false")),
    ("disabled_boot_architectures", Wrong("nosuch")),
    ("space", Lacking("dmz", "undefined")),
];

const VLAN_FIELDS: Fields = &[
    ("name", Shown("x", "/name", "x")),
    ("description", Shown("x", "/description", "x")),
    ("mtu", Shown("9000", "/mtu", "9000")),
    ("dhcp_on", Wrong("true")),
    ("primary_rack", Wrong("nosuch")),
    ("primary_rack", Shown("rack01", "/primary_rack", "rack01")),
    ("secondary_rack", Wrong("nosuch")),
    ("relay_vlan", Wrong("nosuch")),
    ("relay_vlan", Wrong("99")),
    ("space", Lacking("dmz", "undefined")),
    ("fabric", Wrong("nosuch")),
];

/// (method, path, what it needs, its fields). `{n}` counts up, `{vlan}` is a VLAN of its own.
const FORMS: &[(&str, &str, &str, Fields)] = &[
    (
        "POST",
        "machines/",
        "architecture=amd64/generic&mac_addresses=52:54:00:00:01:{x}",
        MACHINE_FIELDS,
    ),
    (
        "POST",
        "machines/",
        "architecture=amd64/generic&mac_addresses=52:54:00:00:01:{x}",
        NEW_MACHINE_FIELDS,
    ),
    ("PUT", "machines/ID/", "", MACHINE_FIELDS),
    (
        "POST",
        "machines/ID/?op=power_on",
        "",
        &[("user_data", Lacking("x", ""))],
    ),
    (
        "POST",
        "machines/ID/?op=power_off",
        "",
        &[("stop_mode", Lacking("soft", "hard"))],
    ),
    (
        "PUT",
        "rackcontrollers/rack01/",
        "",
        &[
            ("description", Shown("x", "/description", "x")),
            ("zone", Lacking("nosuch", "default")),
            ("domain", Lacking("nosuch", "maas")),
            ("power_type", Lacking("ipmi", "")),
            ("power_parameters_power_address", Lacking("10.0.0.1", "")),
        ],
    ),
    (
        "POST",
        "fabrics/",
        "",
        &[
            ("name", Shown("f{n}", "/name", "f{n}")),
            ("description", Shown("x", "/description", "x")),
            ("class_type", Shown("1g", "/class_type", "1g")),
        ],
    ),
    (
        "PUT",
        "fabrics/red/",
        "",
        &[
            ("description", Shown("x", "/description", "x")),
            ("class_type", Shown("1g", "/class_type", "1g")),
            ("name", Wrong("77")),
        ],
    ),
    ("POST", "fabrics/red/vlans/", "vid={n}", VLAN_FIELDS),
    ("PUT", "vlans/5001/", "", VLAN_FIELDS),
    ("POST", "subnets/", "cidr=10.21.{n}.0/24", SUBNET_FIELDS),
    ("PUT", "subnets/name:lab/", "name=lab", &[]),
    ("PUT", "subnets/10.20.0.0/24/", "", SUBNET_FIELDS),
    (
        "POST",
        "ipranges/",
        "type=reserved&start_ip=10.20.0.{n}&end_ip=10.20.0.{n}",
        &[
            ("comment", Shown("x", "/comment", "x")),
            ("subnet", Wrong("nosuch")),
            ("type", Wrong("magic")),
            ("start_ip", Wrong("x")),
            ("end_ip", Wrong("x")),
        ],
    ),
    (
        "PUT",
        "ipranges/RANGE/",
        "",
        &[
            ("comment", Shown("x", "/comment", "x")),
            ("subnet", Wrong("nosuch")),
            (
                "subnet",
                Shown("10.20.0.0/24", "/subnet/cidr", "10.20.0.0/24"),
            ),
            ("type", Wrong("dynamic")),
            ("type", Shown("reserved", "/type", "reserved")),
            ("user", Wrong("nosuch")),
            ("user", Shown("admin", "/user/username", "admin")),
            ("end_ip", Shown("10.20.0.252", "/end_ip", "10.20.0.252")),
        ],
    ),
    (
        "POST",
        "reservedips/",
        "ip=10.20.0.{n}&mac_address=52:54:00:00:02:{x}",
        &[
            ("comment", Shown("x", "/comment", "x")),
            ("subnet", Wrong("nosuch")),
            ("mac_address", Wrong("x")),
        ],
    ),
    (
        "PUT",
        "reservedips/RESERVED/",
        "",
        &[
            ("comment", Shown("x", "/comment", "x")),
            ("subnet", Wrong("nosuch")),
            ("subnet", Shown("10.20.0.0/24", "/ip", "10.20.0.250")),
            ("ip", Wrong("10.20.0.9")),
            ("mac_address", Wrong("52:54:00:00:00:66")),
        ],
    ),
    (
        "POST",
        "users/",
        "username=u{n}&email=a@b&password=long-enough-{n}",
        &[
            ("is_superuser", Shown("1", "/is_superuser", "true")),
            ("key", Lacking("ssh-rsa AAAA", "")),
        ],
    ),
    (
        "POST",
        "domains/",
        "name=d{n}.example",
        &[
            ("ttl", Lacking("60", "")),
            ("authoritative", Lacking("false", "true")),
            ("forward_dns_servers", Lacking("9.9.9.9", "")),
        ],
    ),
    (
        "POST",
        "boot-resources/",
        "name=debian/bookworm&architecture=amd64/generic&filetype=squashfs&size=1&sha256=\
         e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        &[
            ("title", Shown("x", "/title", "x")),
            ("base_image", Lacking("ubuntu/jammy", "")),
            ("content", Lacking("x", "")),
        ],
    ),
];

#[tokio::test]
async fn no_field_that_maas_knows_is_dropped() {
    let (region, id) = region().await;
    let range = region
        .post(
            "ipranges/",
            "type=reserved&start_ip=10.20.0.252&end_ip=10.20.0.253",
        )
        .await
        .json();
    let reserved = region
        .post(
            "reservedips/",
            "ip=10.20.0.250&mac_address=52:54:00:00:00:55",
        )
        .await
        .json();
    let mut counter = 10;
    for (method, path, needs, fields) in FORMS {
        let path = path
            .replace("ID", &id)
            .replace("RANGE", &range["id"].to_string())
            .replace("RESERVED", &reserved["id"].to_string());
        for (name, field) in *fields {
            let (bad, good) = match field {
                Shown(value, ..) => (None, Some(*value)),
                Wrong(value) => (Some(*value), None),
                Lacking(bad, good) => (Some(*bad), Some(*good)),
                Elsewhere => (None, None),
            };
            counter += 1;
            let number = counter;
            let body = |value: &str| {
                let value = value.replace("{n}", &number.to_string());
                let needs = needs
                    .replace("{n}", &number.to_string())
                    .replace("{x}", &format!("{number:02x}"));
                let others = needs
                    .split('&')
                    .filter(|one| !one.starts_with(&format!("{name}=")));
                let others: Vec<&str> = others.collect();
                format!("{}&{name}={value}", others.join("&"))
            };
            if let Some(value) = bad {
                let body = body(value);
                let answer = region
                    .call(Some(&region.admin), method, &path, FORM, body.clone())
                    .await;
                assert_eq!(
                    answer.status, 400,
                    "{method} {path} {body}: {}",
                    answer.text
                );
            }
            if let Some(value) = good {
                let body = body(value);
                let answer = region
                    .call(Some(&region.admin), method, &path, FORM, body.clone())
                    .await;
                if let Shown(_, pointer, want) = field {
                    let answer: Value = serde_json::from_str(&answer.text)
                        .unwrap_or_else(|_| panic!("{method} {path} {body}: {}", answer.text));
                    let shown = answer.pointer(pointer).cloned().unwrap_or_default();
                    let shown = shown.as_str().map_or(shown.to_string(), str::to_owned);
                    let want = want.replace("{n}", &number.to_string());
                    assert_eq!(shown, want, "{method} {path} {body}");
                } else {
                    assert!(
                        answer.status.is_success() || !answer.text.contains(name),
                        "{method} {path} {body}: {}",
                        answer.text
                    );
                }
            }
        }
    }
}

/// A new operation comes with its rows above, or is said to be ours.
#[tokio::test]
async fn every_operation_that_takes_fields_is_in_the_table() {
    let region = Region::start().await;
    let described = region.get("describe/").await.json();
    let mut missing = BTreeSet::new();
    for handler in described["handlers"].as_array().unwrap() {
        let path = handler["path"].as_str().unwrap();
        let path = path.strip_prefix("/MAAS/api/2.0/").unwrap();
        for action in handler["actions"].as_array().unwrap() {
            let method = action["method"].as_str().unwrap();
            if action["op"].is_null() && ["POST", "PUT"].contains(&method) {
                missing.insert(format!("{method} {path}"));
            }
        }
    }
    let like = |pattern: &str, path: &str| {
        let path = path.replace("10.20.0.0/24", "lab");
        let parts: Vec<&str> = pattern.split('/').collect();
        let of_path: Vec<&str> = path.split('/').collect();
        parts.len() == of_path.len()
            && parts
                .iter()
                .zip(of_path)
                .all(|(a, b)| a.starts_with('{') || *a == b)
    };
    for (method, path, ..) in FORMS {
        missing.retain(|row| {
            let (its_method, pattern) = row.split_once(' ').unwrap();
            its_method != *method || !like(pattern, path)
        });
    }
    // VLANs are also changed by their id, as above; the rest is not MAAS's, or takes octets.
    let ours = [
        "PUT fabrics/{fabric_id}/vlans/{vid}/",
        "POST dhcp-options/",
        "PUT dhcp-options/{id}/",
        "PUT dhcp/",
        "PUT boot-resources/{resource_id}/upload/{id}/",
    ];
    let missing: Vec<String> = missing
        .into_iter()
        .filter(|row| !ours.contains(&row.as_str()))
        .collect();
    assert_eq!(missing, Vec::<String>::new());
}
