//! `machines/`: creating by every client's body, the JSON, power parameters, enlistment, the workflow's errors.

#![recursion_limit = "256"]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use api::Attestation;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use support::Region;
use tracing_subscriber::layer::{Context, SubscriberExt};

const IPMI: &str = "power_type=ipmi&power_parameters_power_address=10.99.0.1:9001\
    &power_parameters_power_user=maas&power_parameters_power_pass=hush-hush&power_parameters_k_g=deep-hush";

async fn create(region: &Region, hostname: &str, mac: &str) -> String {
    let body = format!(
        "hostname={hostname}&mac_addresses={mac}&architecture=amd64/generic&commission=false&{IPMI}"
    );
    let machine = region.post("machines/?op=", &body).await.json();
    machine["system_id"].as_str().unwrap().to_owned()
}

/// python-libmaas and the `maas` command: each part in base64, a quoted boundary.
fn libmaas_body(fields: &[(&str, &str)]) -> (String, String) {
    let boundary = "===============7580012345678901234==";
    let mut body = String::new();
    for (name, value) in fields {
        body.push_str(&format!(
            "--{boundary}\r\nContent-Type: text/plain; charset=\"utf-8\"\r\nMIME-Version: 1.0\r\n\
             Content-Transfer-Encoding: base64\r\nContent-Disposition: form-data; name=\"{name}\"\r\n\r\n{}\r\n\r\n",
            STANDARD.encode(value)
        ));
    }
    if fields.is_empty() {
        body.push_str(&format!("--{boundary}\r\n\r\n"));
    }
    body.push_str(&format!("--{boundary}--"));
    (
        format!("multipart/form-data; boundary=\"{boundary}\""),
        body,
    )
}

#[tokio::test]
async fn every_client_can_create_and_commission() {
    let region = Region::start().await;
    let form = "application/x-www-form-urlencoded".to_owned();
    let (libmaas, libmaas_form) = libmaas_body(&[
        ("hostname", "two"),
        ("architecture", "amd64/generic"),
        ("mac_addresses", "52:54:00:00:00:02"),
        ("power_type", "manual"),
        ("commission", "false"),
    ]);
    let bodies = [
        (
            form,
            "hostname=one&architecture=amd64&mac_addresses=52-54-00-00-00-01&power_type=manual&commission=0"
                .to_owned(),
        ),
        (libmaas, libmaas_form),
        (
            "application/json".to_owned(),
            json!({
                "hostname": "three", "architecture": "amd64/generic",
                "mac_addresses": ["52:54:00:00:00:03", "52:54:00:00:00:04"], "power_type": "manual",
                "commission": false,
            })
            .to_string(),
        ),
    ];
    for (content_type, body) in bodies {
        let made = region
            .call(
                Some(&region.admin),
                "POST",
                "machines/?op=",
                &content_type,
                body,
            )
            .await;
        let machine = made.json();
        assert_eq!(machine["status_name"], "New");
        assert_eq!(machine["architecture"], "amd64/generic");
        // An operation without fields, as libmaas sends it.
        let (content_type, body) = libmaas_body(&[]);
        let path = format!(
            "machines/{}/?op=commission",
            machine["system_id"].as_str().unwrap()
        );
        let commissioning = region
            .call(Some(&region.admin), "POST", &path, &content_type, body)
            .await
            .json();
        assert_eq!(commissioning["status_name"], "Commissioning");
        assert_eq!(commissioning["commissioning_status_name"], "Pending");
        // Twice is once too often.
        let (content_type, body) = libmaas_body(&[]);
        let again = region
            .call(Some(&region.admin), "POST", &path, &content_type, body)
            .await;
        again.refused(409, "Invalid transition: Commissioning -> Commissioning.");
        assert_eq!(again.header("content-type"), "text/plain; charset=utf-8");
    }
    let three = region.get("machines/?hostname=three").await.json();
    assert_eq!(three[0]["interface_set"].as_array().unwrap().len(), 2);
    let id = three[0]["system_id"].as_str().unwrap();
    let aborted = region
        .post(&format!("machines/{id}/?op=abort"), "")
        .await
        .json();
    assert_eq!(aborted["status_name"], "New");
}

/// The whole of a new machine, so that no field is lost that a strict client needs.
#[tokio::test]
async fn a_new_machine_reads_as_maas_writes_it() {
    let region = Region::start().await;
    let domain = region.post("domains/", "name=example.com").await.json();
    let domain = domain["id"].as_i64().unwrap();
    let id = create(&region, "node1.example.com", "52:54:00:00:00:01").await;
    let machine = region.get(&format!("machines/{id}/")).await.json();
    assert_eq!(region.get("machines/").await.json(), json!([machine]));
    let interface_id = machine["boot_interface"]["id"].clone();
    let want = json!({
        "system_id": id, "hostname": "node1", "description": "", "hardware_uuid": null,
        "fqdn": "node1.example.com", "owner": null, "owner_data": {}, "locked": false,
        "domain": {
            "authoritative": true, "ttl": null, "is_default": false, "id": domain, "name": "example.com",
            "resource_record_count": 0, "resource_uri": format!("/MAAS/api/2.0/domains/{domain}/"),
        },
        "cache_sets": [], "bcaches": [], "volume_groups": [], "raids": [], "special_filesystems": [],
        "bios_boot_method": "", "architecture": "amd64/generic", "min_hwe_kernel": "",
        "hwe_kernel": "", "cpu_count": 0, "cpu_speed": 0, "memory": 0, "swap_size": null, "storage": 0.0,
        "status": 0, "status_name": "New", "status_action": "", "status_message": "",
        "osystem": "", "distro_series": "", "ephemeral_deploy": false, "error_description": "",
        "netboot": true, "power_type": "ipmi", "power_state": "unknown", "tag_names": [],
        "address_ttl": null, "ip_addresses": [],
        "zone": {
            "name": "default", "description": "", "id": 1,
            "resource_uri": "/MAAS/api/2.0/zones/default/",
        },
        "pool": {
            "name": "default", "description": "Default pool", "id": 0,
            "resource_uri": "/MAAS/api/2.0/resourcepool/0/",
        },
        "disable_ipv4": false, "constraints_by_type": {"storage": {}, "interfaces": {}},
        "boot_disk": null, "blockdevice_set": [], "physicalblockdevice_set": [],
        "virtualblockdevice_set": [], "node_type": 0, "node_type_name": "Machine", "parent": null,
        "pod": null,
        "default_gateways": {
            "ipv4": {"gateway_ip": null, "link_id": null},
            "ipv6": {"gateway_ip": null, "link_id": null},
        },
        "numanode_set": [], "workload_annotations": {}, "last_sync": null, "sync_interval": null,
        "next_sync": null, "enable_hw_sync": false, "enable_kernel_crash_dump": false, "is_dpu": false,
        "current_commissioning_result_id": null, "current_testing_result_id": null,
        "current_installation_result_id": null,
        "resource_uri": format!("/MAAS/api/2.0/machines/{id}/"),
    });
    let interface = json!({
        "system_id": id, "id": interface_id, "name": "eth0", "type": "physical", "vlan": null,
        "mac_address": "52:54:00:00:00:01", "parents": [], "children": [], "tags": [],
        "enabled": true, "links": [], "params": "", "discovered": null, "effective_mtu": 1500,
        "vendor": null, "product": null, "firmware_version": null, "link_connected": true,
        "interface_speed": 0, "link_speed": 0, "numa_node": 0, "sriov_max_vf": 0,
        "resource_uri": format!("/MAAS/api/2.0/nodes/{id}/interfaces/{interface_id}/"),
    });
    let mut want = want.as_object().unwrap().clone();
    want.insert("boot_interface".into(), interface.clone());
    want.insert("interface_set".into(), json!([interface]));
    for kind in [
        "commissioning",
        "testing",
        "cpu_test",
        "memory_test",
        "network_test",
        "storage_test",
        "other_test",
        "interface_test",
    ] {
        want.insert(format!("{kind}_status"), json!(-1));
        want.insert(format!("{kind}_status_name"), json!("Unknown"));
    }
    let mut machine = machine.as_object().unwrap().clone();
    let hardware = machine.remove("hardware_info").unwrap();
    for key in [
        "system_vendor",
        "cpu_model",
        "mainboard_product",
        "mainboard_firmware_version",
    ] {
        assert_eq!(hardware[key], "Unknown");
    }
    assert_eq!(Value::Object(machine), Value::Object(want));
}

#[tokio::test]
async fn wrong_forms_say_which_field() {
    let region = Region::start().await;
    create(&region, "taken", "52:54:00:00:00:01").await;
    let fine = "architecture=amd64&mac_addresses=52:54:00:00:00:02";
    let cases = [
        ("architecture=amd64".to_owned(), "mac_addresses", "required"),
        (
            "mac_addresses=52:54:00:00:00:02".to_owned(),
            "architecture",
            "required",
        ),
        (
            "architecture=vax&mac_addresses=52:54:00:00:00:02".to_owned(),
            "architecture",
            "'vax' is not a valid",
        ),
        (
            "architecture=amd64&mac_addresses=nonsense".to_owned(),
            "mac_addresses",
            "'nonsense' is not",
        ),
        (
            "architecture=amd64&mac_addresses=ff:ff:ff:ff:ff:ff".to_owned(),
            "mac_addresses",
            "is not",
        ),
        (
            "architecture=amd64&mac_addresses=52:54:00:00:00:01".to_owned(),
            "mac_addresses",
            "already in use",
        ),
        (
            format!("{fine}&hostname=taken"),
            "hostname",
            "already exists",
        ),
        (format!("{fine}&hostname=a_b"), "hostname", "valid hostname"),
        (format!("{fine}&hostname=-a"), "hostname", "valid hostname"),
        (format!("{fine}&domain=a/b"), "domain", "valid domain"),
        (
            format!("{fine}&power_type=magic"),
            "power_type",
            "valid choice",
        ),
        (
            format!("{fine}&power_type=ipmi"),
            "power_address",
            "required",
        ),
        (
            format!("{fine}&power_type=ipmi&power_parameters=[]"),
            "power_parameters",
            "JSON object",
        ),
        (
            format!("{fine}&power_parameters_power_pass=hush"),
            "power_type",
            "power type",
        ),
        (format!("{fine}&commission=maybe"), "commission", "boolean"),
        (
            format!("{fine}&power_type=manual&commission=1&testing_scripts=fio"),
            "testing_scripts",
            "fio",
        ),
    ];
    for (body, field, part) in cases {
        let answer = region.post("machines/", &body).await;
        assert_eq!(answer.status, 400, "{body}: {}", answer.text);
        assert_eq!(
            answer.header("content-type"),
            "application/json; charset=utf-8",
            "{body}"
        );
        let errors: Value = serde_json::from_str(&answer.text).unwrap();
        let message = errors[field][0].as_str().unwrap_or_default();
        assert!(message.contains(part), "{body}: {}", answer.text);
        assert!(!answer.text.contains("hush"), "{}", answer.text);
    }
    // Nothing of them was kept.
    assert_eq!(
        region
            .get("machines/")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    // No power type, no commissioning; and no machine either.
    let refused = region
        .post("machines/", &format!("{fine}&commission=true"))
        .await;
    refused.refused(409, "power type");
    assert_eq!(
        region
            .get("machines/")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
}

/// Ansible and Terraform create a machine and wait for it to be Ready.
#[tokio::test]
async fn an_administrators_machine_is_commissioned_unless_told_not_to() {
    let region = Region::start().await;
    let cases = [
        ("power_type=manual", "Commissioning"),
        ("power_type=manual&commission=true", "Commissioning"),
        ("power_type=manual&commission=", "Commissioning"),
        ("power_type=manual&commission=False", "New"),
        // MAAS cannot either, and leaves it New.
        ("description=no power type", "New"),
    ];
    for (index, (fields, status)) in cases.into_iter().enumerate() {
        let body = format!("architecture=amd64&mac_addresses=52:54:00:00:00:0{index}&{fields}");
        let machine = region.post("machines/", &body).await.json();
        assert_eq!(machine["status_name"], status, "{fields}");
    }
    // Its options are the commissioning's.
    let body = "architecture=amd64&mac_addresses=52:54:00:00:00:09&power_type=manual&enable_ssh=1&skip_networking=1\
        &skip_bmc_config=1&skip_storage=1&testing_scripts=none";
    let machine = region.post("machines/", body).await.json();
    let kept: (bool, bool) =
        sqlx::query_as("select enable_ssh, skip_networking from machine where system_id = $1")
            .bind(machine["system_id"].as_str().unwrap())
            .fetch_one(&region.db.pool)
            .await
            .unwrap();
    assert_eq!(kept, (true, true));
}

#[tokio::test]
async fn power_parameters_of_another_driver_do_no_harm() {
    let region = Region::start().await;
    let body = "architecture=amd64&mac_addresses=52:54:00:00:00:01&commission=false&power_type=manual\
        &power_parameters_power_address=10.0.0.1&power_parameters_power_pass=hush&power_parameters_power_id=3";
    let machine = region.post("machines/", body).await.json();
    let path = format!("machines/{}/", machine["system_id"].as_str().unwrap());
    let body = "power_type=ipmi&power_parameters_power_address=10.0.0.1&power_parameters_node_id=1";
    region.put(&path, body).await.json();
    let all = region.get(&format!("{path}?op=power_parameters")).await;
    assert_eq!(all.json()["power_address"], "10.0.0.1");
    assert!(all.json().get("node_id").is_none(), "{}", all.text);
    let wrong = region.put(&path, "power_parameters_nosuch=1").await;
    wrong.refused(400, "nosuch");
}

#[tokio::test]
async fn power_secrets_are_sealed_kept_and_shown_to_administrators_only() {
    let region = Region::start().await;
    let id = create(&region, "node1", "52:54:00:00:00:01").await;
    let path = format!("machines/{id}/");
    let parameters = region
        .get(&format!("{path}?op=power_parameters"))
        .await
        .json();
    assert_eq!(parameters["power_pass"], "hush-hush");
    assert_eq!(parameters["k_g"], "deep-hush");
    assert_eq!(parameters["power_address"], "10.99.0.1:9001");
    let all = region.get("machines/?op=power_parameters").await.json();
    assert_eq!(all[&id], parameters);
    // What is not said stays.
    let changed = region
        .put(&path, "power_parameters_power_user=root&description=hello")
        .await;
    assert!(!changed.text.contains("hush"));
    assert_eq!(changed.json()["description"], "hello");
    let parameters = region
        .get(&format!("{path}?op=power_parameters"))
        .await
        .json();
    assert_eq!(
        (&parameters["power_user"], &parameters["power_pass"]),
        (&"root".into(), &"hush-hush".into())
    );
    // Another type keeps only what it knows.
    region.put(&path, "power_type=manual").await.json();
    assert_eq!(
        region
            .get(&format!("{path}?op=power_parameters"))
            .await
            .json(),
        json!({})
    );
    let dump: Vec<(String, Option<Vec<u8>>)> =
        sqlx::query_as("select parameters::text, secrets_sealed from bmc")
            .fetch_all(&region.db.pool)
            .await
            .unwrap();
    assert!(!format!("{dump:?}").contains("hush"));
    let events: Vec<String> = sqlx::query_scalar("select description from event")
        .fetch_all(&region.db.pool)
        .await
        .unwrap();
    assert!(!format!("{events:?}").contains("hush"));

    assert_eq!(region.delete(&path).await.status, 204);
    region
        .get(&path)
        .await
        .refused(404, "No Machine matches the given query.");
    let bmcs: i64 = sqlx::query_scalar("select count(*) from bmc")
        .fetch_one(&region.db.pool)
        .await
        .unwrap();
    assert_eq!(bmcs, 0);
}

#[tokio::test]
async fn filters_pick_machines() {
    let region = Region::start().await;
    let one = create(&region, "one", "52:54:00:00:00:01").await;
    let two = create(&region, "two", "52:54:00:00:00:02").await;
    region
        .post(&format!("machines/{two}/?op=commission"), "")
        .await
        .json();
    let cases = [
        ("", vec!["one", "two"]),
        ("hostname=one", vec!["one"]),
        ("hostname=one&hostname=two", vec!["one", "two"]),
        (&format!("id={one}"), vec!["one"]),
        (&format!("system_id={two}"), vec!["two"]),
        ("mac_address=52-54-00-00-00-02", vec!["two"]),
        ("status=new", vec!["one"]),
        ("status=commissioning", vec!["two"]),
        ("not_status=new", vec!["two"]),
        ("status=1", vec!["two"]),
        ("power_state=off", vec![]),
        ("arch=amd64", vec!["one", "two"]),
        ("owner=admin", vec![]),
        ("zone=default&pool=default", vec!["one", "two"]),
        ("zone=elsewhere", vec![]),
        ("mem=1", vec![]),
        ("domain=maas", vec!["one", "two"]),
    ];
    for (query, want) in cases {
        let list = region.get(&format!("machines/?{query}")).await.json();
        let names: Vec<&str> = list
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["hostname"].as_str().unwrap())
            .collect();
        assert_eq!(names, want, "{query}");
    }
    let known = |mac: &str| format!("machines/?op=is_registered&mac_address={mac}");
    // Strangers are told of their own cards only: see identity.rs.
    for (mac, want) in [("52:54:00:00:00:01", true), ("52:54:00:00:00:77", false)] {
        assert_eq!(region.get(&known(mac)).await.json(), json!(want));
    }
}

#[tokio::test]
async fn a_machine_enlists_through_a_rack_and_only_once() {
    let mut region = Region::start().await;
    region.rack("rack1", "rack01", "10.0.0.1/24").await;
    let body = "architecture=amd64/generic&mac_addresses=52:54:00:00:00:02,52:54:00:00:00:01\
        &power_type=ipmi&commission=True\
        &power_parameters={\"power_address\":\"10.99.0.1\",\"power_user\":\"maas\",\"power_pass\":\"hush\"}";
    let form = "application/x-www-form-urlencoded";
    region
        .call(None, "POST", "machines/", form, body)
        .await
        .refused(401, "through a rack");

    let vlan = region.post("fabrics/", "").await.json()["vlans"][0]["id"]
        .as_i64()
        .unwrap();
    region.attestation = Some(Attestation {
        rack: "rack01".into(),
        client_address: "10.0.0.50".parse().unwrap(),
        client_mac: Some("52:54:00:00:00:01".parse().unwrap()),
        vlan: Some(i32::try_from(vlan).unwrap()),
    });
    region
        .call(None, "POST", "machines/", form, body)
        .await
        .refused(403, "does not serve that VLAN");
    sqlx::query("update vlan set dhcp_on = true, primary_rack = 'rack01' where id = $1")
        .bind(i32::try_from(vlan).unwrap())
        .execute(&region.db.pool)
        .await
        .unwrap();
    let answer = region.call(None, "POST", "machines/", form, body).await;
    let machine = answer.json();
    assert!(!answer.text.contains("hush"));
    let made = machine["system_id"].as_str().unwrap();
    let attestation = region.attestation.take();
    let machine = region.get(&format!("machines/{made}/")).await.json();
    region.attestation = attestation;
    assert_eq!(
        (&machine["status_name"], &machine["owner"]),
        (&"New".into(), &Value::Null)
    );
    assert_eq!(
        machine["boot_interface"]["mac_address"],
        "52:54:00:00:00:01"
    );
    assert_eq!(machine["boot_interface"]["vlan"]["id"], vlan);
    // Only what the rack has seen is believed.
    assert_eq!(machine["interface_set"].as_array().unwrap().len(), 1);
    assert_eq!(machine["power_type"], "");
    let again = region.call(None, "POST", "machines/", form, body).await;
    assert_eq!(again.json()["system_id"], machine["system_id"]);
    // With a wrong key nobody is anonymous.
    let mut key = region.admin.clone();
    key.token_secret.push('x');
    region
        .call(Some(&key), "POST", "machines/", form, body)
        .await
        .refused(401, "Invalid API key");

    region.attestation = None;
    let events = region.get("events/?op=query").await.json();
    assert_eq!(events["events"][0]["event_type"], "MACHINE_ENLISTED");
    assert_eq!(events["events"][0]["rack"], "rack01");
}

#[tokio::test]
async fn events_are_paged_and_numbered_as_steps() {
    let region = Region::start().await;
    let id = create(&region, "node1", "52:54:00:00:00:01").await;
    region
        .post(&format!("machines/{id}/?op=commission"), "")
        .await
        .json();
    let page = region
        .get(&format!("events/?op=query&id={id}&limit=1"))
        .await
        .json();
    assert_eq!(page["count"], 1);
    let event = &page["events"][0];
    assert_eq!(
        (&event["event_type"], &event["step"]),
        (&"WORK_QUEUED".into(), &2.into())
    );
    assert_eq!(
        (&event["level"], &event["username"]),
        (&"INFO".into(), &"admin".into())
    );
    assert_eq!(
        (&event["node"], &event["hostname"]),
        (&id.as_str().into(), &"node1".into())
    );
    // "Fri, 07 Dec. 2018 20:11:08"
    let created = event["created"].as_str().unwrap();
    assert_eq!(
        (created.len(), &created[3..5], &created[11..13]),
        (26, ", ", ". "),
        "{created}"
    );
    let older = region.get(page["prev_uri"].as_str().unwrap()).await.json();
    assert_eq!(older["events"][0]["event_type"], "COMMISSIONING_REQUESTED");
    let newer = region.get(older["next_uri"].as_str().unwrap()).await.json();
    assert_eq!(newer["events"][0]["id"], event["id"]);
    let none = region.get(newer["next_uri"].as_str().unwrap()).await.json();
    assert_eq!(
        (&none["count"], &none["next_uri"]),
        (&0.into(), &newer["next_uri"])
    );
    let audit = region
        .get("events/?op=query&level=AUDIT&owner=admin")
        .await
        .json();
    assert!(audit["events"].to_string().contains("MACHINE_CREATED"));
    region
        .get("events/?op=query&limit=1001")
        .await
        .refused(400, "between 1 and 1000");
    region
        .get("events/?op=query&level=LOUD")
        .await
        .refused(400, "log level");
}

#[tokio::test]
async fn the_workflow_refuses_in_plain_text() {
    let region = Region::start().await;
    let made = region
        .post(
            "machines/",
            "hostname=bare&architecture=amd64&mac_addresses=52:54:00:00:00:01",
        )
        .await
        .json();
    let path = format!("machines/{}/", made["system_id"].as_str().unwrap());
    region
        .post(&format!("{path}?op=commission"), "")
        .await
        .refused(409, "power type");
    region
        .post(&format!("{path}?op=power_on"), "")
        .await
        .refused(409, "power type");
    region
        .post(&format!("{path}?op=abort"), "")
        .await
        .refused(409, "New");
    let state = region
        .get(&format!("{path}?op=query_power_state"))
        .await
        .json();
    assert_eq!(state, json!({"state": "unknown"}));
    region.put(&path, "power_type=manual").await.json();
    let body = "commissioning_scripts=no-such-script";
    region
        .post(&format!("{path}?op=commission"), body)
        .await
        .refused(400, "no-such-script");
    region
        .post("machines/zzzzzz/?op=power_off", "")
        .await
        .refused(404, "No Machine");
}

/// Counts the statements that sqlx runs on this thread.
struct Statements(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[tokio::test]
async fn a_list_of_two_hundred_costs_as_many_statements_as_a_list_of_five() {
    let region = Region::start().await;
    sqlx::query(
        "with m as (insert into machine (system_id, hostname)
                    select 'm' || lpad(n::text, 5, '0'), 'node' || n from generate_series(1, 200) n
                    returning system_id),
              d as (insert into block_device (machine, name, size_bytes)
                    select system_id, 'sda', 1000000 from m)
         insert into interface (machine, name, mac)
         select system_id, 'eth0', ('5254' || lpad(to_hex(row_number() over ()), 8, '0'))::macaddr from m",
    )
    .execute(&region.db.pool)
    .await
    .unwrap();
    let few: String = (1..=5).map(|n| format!("&hostname=node{n}")).collect();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = tracing_subscriber::registry().with(Statements(count.clone()));
    let _guard = tracing::subscriber::set_default(counting);
    let list = region.get(&format!("machines/?{few}")).await.json();
    let for_few = count.swap(0, Ordering::Relaxed);
    assert_eq!(list.as_array().unwrap().len(), 5);
    let list = region.get("machines/").await.json();
    let for_all = count.swap(0, Ordering::Relaxed);
    assert_eq!(list.as_array().unwrap().len(), 200);
    assert_eq!(list[0]["storage"], 1.0);
    assert!(for_few > 0, "statements are seen");
    assert_eq!(for_few, for_all);
    assert!(for_all <= 12, "{for_all} statements");
}

/// An earlier default filled in suite 3: the field is emptied as docs/operations/hardware.md says, and the rest stays.
#[tokio::test]
async fn an_emptied_cipher_suite_is_asked_from_the_bmc_again() {
    let region = Region::start().await;
    let body = "architecture=amd64&mac_addresses=52:54:00:00:00:01&power_type=ipmi&commission=false\
                &power_parameters_power_address=10.0.0.9&power_parameters_power_pass=hush\
                &power_parameters_cipher_suite_id=3";
    let id = region.post("machines/", body).await.json()["system_id"].clone();
    let id = id.as_str().unwrap();
    let parameters = async || {
        let all = region.get("machines/?op=power_parameters").await.json();
        all[id].clone()
    };
    assert_eq!(parameters().await["cipher_suite_id"], "3");
    region
        .put(
            &format!("machines/{id}/"),
            "power_parameters_cipher_suite_id=",
        )
        .await
        .json();
    let emptied = parameters().await;
    let suite = emptied["cipher_suite_id"].as_str().unwrap_or_default();
    assert_eq!((suite, &emptied["power_pass"]), ("", &"hush".into()));
}
