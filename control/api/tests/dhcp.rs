//! DHCP as an operator sets it and sees it: options, lease times, reservations, excluded ranges, proxy mode, leases.

mod support;

use serde_json::{Value, json};
use support::Region;

/// A subnet 10.20.0.0/24 with its gateway, on a VLAN with a rack at .1.
async fn site() -> (Region, i64, i64) {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.1/24").await;
    let subnet = region
        .post("subnets/", "cidr=10.20.0.0/24&gateway_ip=10.20.0.254")
        .await
        .json();
    let (id, vlan) = (&subnet["id"], &subnet["vlan"]["id"]);
    let (id, vlan) = (id.as_i64().unwrap(), vlan.as_i64().unwrap());
    changes(&region).await;
    (region, id, vlan)
}

/// "kind key" of what racks are to hear since the last look.
async fn changes(region: &Region) -> Vec<String> {
    let keys = sqlx::query_scalar("delete from change returning kind || ' ' || key")
        .fetch_all(&region.db.pool)
        .await;
    let mut keys: Vec<String> = keys.unwrap();
    keys.sort();
    keys.dedup();
    keys
}

async fn run(region: &Region, sql: &str) {
    sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned()))
        .execute(&region.db.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn options_are_set_by_scope_and_racks_are_told() {
    let (region, subnet, vlan) = site().await;
    let range = "type=dynamic&start_ip=10.20.0.100&end_ip=10.20.0.199&lease_secs=120";
    let range = region.post("ipranges/", range).await.json();
    assert_eq!(range["lease_secs"], 120);
    let host = "ip=10.20.0.7&mac_address=02:00:00:00:00:07&lease_secs=7200";
    let host = region.post("reservedips/", host).await.json();
    changes(&region).await;

    let link = format!("link {vlan}");
    let cases = [
        ("code=ntp-servers&value=10.20.0.9".to_owned(), &*link),
        (
            format!("code=42&value=10.20.0.8,10.20.0.9&scope=subnet&scope_id={subnet}&always=true"),
            &*link,
        ),
        (
            format!(
                "code=67&value=ztp.cfg&scope=iprange&scope_id={}",
                range["id"]
            ),
            &*link,
        ),
        (
            "code=224&value=0x0a0b&scope=reserved_ip&scope_id=10.20.0.7".to_owned(),
            "reservation V:10.20.0.7",
        ),
        (
            "code=15&suppress=true&scope=subnet&scope_id=10.20.0.0/24".to_owned(),
            &*link,
        ),
    ];
    for (body, told) in cases {
        let made = region.post("dhcp-options/", &body).await.json();
        assert!(made["id"].is_i64(), "{made}");
        let told = told.replace('V', &vlan.to_string());
        assert_eq!(changes(&region).await, [told], "{body}");
    }
    let all = region.get("dhcp-options/").await.json();
    let told: Vec<String> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            format!(
                "{} {} {} {} {} {}",
                row["scope"], row["code"], row["name"], row["hex"], row["always"], row["suppress"]
            )
        })
        .collect();
    assert_eq!(
        told,
        [
            r#""global" 42 "ntp-servers" "0x0a140009" false false"#,
            r#""subnet" 15 "domain-name" "0x" false true"#,
            r#""subnet" 42 "ntp-servers" "0x0a1400080a140009" true false"#,
            r#""iprange" 67 "bootfile-name" "0x7a74702e636667" false false"#,
            r#""reserved_ip" 224 "" "0x0a0b" false false"#,
        ]
    );
    for (query, count) in [
        ("code=42", 2),
        ("code=ntp-servers&scope=global", 1),
        ("scope=subnet", 2),
        (&format!("scope=reserved_ip&scope_id={}", host["id"]), 1),
        ("code=3", 0),
    ] {
        let rows = region.get(&format!("dhcp-options/?{query}")).await.json();
        assert_eq!(rows.as_array().unwrap().len(), count, "{query}");
    }

    let path = format!("dhcp-options/{}/", all[2]["id"]);
    let changed = region
        .put(&path, "value=10.20.0.5&comment=mine")
        .await
        .json();
    assert_eq!(
        (&changed["value"], &changed["always"], &changed["comment"]),
        (&json!("10.20.0.5"), &json!(true), &json!("mine"))
    );
    let left_out = region.put(&path, "suppress=true").await.json();
    assert_eq!(
        (&left_out["hex"], &left_out["value"]),
        (&json!("0x"), &json!(""))
    );
    assert_eq!(
        region.put(&path, "always=false").await.json()["suppress"],
        true
    );
    assert_eq!(changes(&region).await, [&*link]);
    assert_eq!(region.delete(&path).await.status, 204);
    assert_eq!(changes(&region).await, [&*link]);
    region.get(&path).await.refused(404, "No DHCPOption");
    // What belonged to a range goes with it.
    region.delete(&format!("ipranges/{}/", range["id"])).await;
    let rows = region.get("dhcp-options/?scope=iprange").await.json();
    assert_eq!(rows, json!([]));
}

#[tokio::test]
async fn wrong_options_are_refused_with_what_is_right() {
    let (region, _, _) = site().await;
    region
        .post("dhcp-options/", "code=42&value=10.0.0.1")
        .await
        .json();
    for (body, part) in [
        ("value=1", "code"),
        ("code=53&value=1", "part of the protocol"),
        ("code=51&value=60", "lease_secs"),
        ("code=82&value=0x01", "echoed"),
        ("code=255&value=0x01", "no option"),
        ("code=nonsense&value=1", "ntp-servers"),
        ("code=3&value=router", "IPv4 addresses"),
        ("code=224&value=abc", "no standard type"),
        ("code=224&value=abc&type=words", "type"),
        ("code=3", "required"),
        ("code=3&value=10.0.0.1&suppress=true", "no value"),
        ("code=42&value=10.0.0.2", "already"),
        ("code=3&value=10.0.0.1&scope=subnet", "required"),
        (
            "code=3&value=10.0.0.1&scope=subnet&scope_id=99",
            "no such subnet",
        ),
        (
            "code=3&value=10.0.0.1&scope=iprange&scope_id=99",
            "no such iprange",
        ),
        (
            "code=3&value=10.0.0.1&scope=reserved_ip&scope_id=10.9.9.9",
            "no such reserved_ip",
        ),
        (
            "code=3&value=10.0.0.1&scope=vlan&scope_id=1",
            "global, subnet",
        ),
        ("code=3&value=10.0.0.1&scope_id=1", "no id"),
    ] {
        region.post("dhcp-options/", body).await.refused(400, part);
    }
    let user = region.user.clone();
    let form = "application/x-www-form-urlencoded";
    let refused = region
        .call(
            Some(&user),
            "POST",
            "dhcp-options/",
            form,
            "code=3&value=10.0.0.1",
        )
        .await;
    assert_eq!(refused.status, 403);
    for code in 150..150 + 63 {
        let body = format!("code={code}&value=0x01");
        if !(151..=157).contains(&code) {
            region.post("dhcp-options/", &body).await.json();
        }
    }
    for code in [224, 225, 226, 227, 228, 229, 230] {
        region
            .post("dhcp-options/", &format!("code={code}&value=0x01"))
            .await
            .json();
    }
    region
        .post("dhcp-options/", "code=250&value=0x01")
        .await
        .refused(400, "At most 64");
}

#[tokio::test]
async fn lease_times_follow_the_closest_scope() {
    let (region, subnet, vlan) = site().await;
    let path = format!("subnets/{subnet}/");
    let other = region.post("subnets/", "cidr=10.21.0.0/24").await.json();
    region.put(&path, "lease_secs=900").await.json();
    changes(&region).await;
    assert_eq!(region.get("dhcp/").await.json()["lease_secs"], 600);
    for bad in ["lease_secs=29", "lease_secs=86401", "lease_secs=x"] {
        region
            .put("dhcp/", bad)
            .await
            .refused(400, "between 30 and 86400");
    }
    assert_eq!(
        region.put("dhcp/", "lease_secs=1200").await.json()["lease_secs"],
        1200
    );
    let lease = |view: &Value| (view["lease_secs"].clone(), view["lease_own"].clone());
    let read = region.get(&path).await.json();
    assert_eq!(lease(&read), (json!(900), json!(true)), "its own stays");
    let read = region
        .get(&format!("subnets/{}/", other["id"]))
        .await
        .json();
    assert_eq!(lease(&read), (json!(1200), json!(false)));
    let told = changes(&region).await;
    assert!(
        told.contains(&format!("link {}", other["vlan"]["id"])),
        "{told:?}"
    );
    let read = region.put(&path, "lease_secs=").await.json();
    assert_eq!(lease(&read), (json!(1200), json!(false)));
    let new = region.post("subnets/", "cidr=10.22.0.0/24").await.json();
    assert_eq!(lease(&new), (json!(1200), json!(false)));

    let range = "type=dynamic&start_ip=10.20.0.100&end_ip=10.20.0.199&lease_secs=3600";
    let range = region.post("ipranges/", range).await.json();
    let longest = "select max(longest_lease_secs) from lease_block";
    let secs = || sqlx::query_scalar::<_, i32>(longest).fetch_one(&region.db.pool);
    assert_eq!(secs().await.unwrap(), 3600, "a quarantine outlasts it");
    let host = "ip=10.20.0.7&mac_address=02:00:00:00:00:07&lease_secs=7200";
    region.post("reservedips/", host).await.json();
    assert_eq!(secs().await.unwrap(), 7200);
    let path = format!("ipranges/{}/", range["id"]);
    region
        .put(&path, "lease_secs=5")
        .await
        .refused(400, "lease_secs");
    assert_eq!(
        region.put(&path, "comment=x").await.json()["lease_secs"],
        3600
    );
    assert_eq!(
        region.put(&path, "lease_secs=").await.json()["lease_secs"],
        Value::Null
    );
    region
        .post(
            "ipranges/",
            "type=reserved&start_ip=10.20.0.20&end_ip=10.20.0.29&lease_secs=60",
        )
        .await
        .refused(400, "reserved range");
    let _ = vlan;
}

#[tokio::test]
async fn reservations_are_for_a_mac_a_client_id_or_a_port() {
    let (region, subnet, vlan) = site().await;
    let made = region
        .post(
            "reservedips/",
            "ip=10.20.0.7&mac_address=02-00-00-00-00-07&comment=first&hostname=node-7",
        )
        .await
        .json();
    assert_eq!(
        (
            &made["mac_address"],
            &made["comment"],
            &made["subnet"]["id"],
            &made["hostname"]
        ),
        (
            &json!("02:00:00:00:00:07"),
            &json!("first"),
            &json!(subnet),
            &json!("node-7")
        )
    );
    assert_eq!(
        changes(&region).await,
        [format!("reservation {vlan}:10.20.0.7")]
    );
    let by_id = region
        .post("reservedips/", "ip=10.20.0.8&client_id=0x01520054000001")
        .await
        .json();
    assert_eq!(
        (&by_id["client_id"], &by_id["mac_address"]),
        (&json!("0x01520054000001"), &Value::Null)
    );
    let by_port = region
        .post(
            "reservedips/",
            "ip=10.20.0.9&circuit_id=rack1/port7&remote_id=switch-1",
        )
        .await
        .json();
    assert_eq!(
        (&by_port["circuit_id"], &by_port["remote_id"]),
        (&json!("rack1/port7"), &json!("switch-1"))
    );
    region
        .post("reservedips/", "ip=10.20.0.10&circuit_id=rack1/port7")
        .await
        .json();
    changes(&region).await;

    for (body, part) in [
        ("mac_address=02:00:00:00:00:09", "ip"),
        ("ip=10.20.0.20", "mac_address"),
        (
            "ip=10.20.0.20&mac_address=02:00:00:00:00:09&client_id=x",
            "Only one",
        ),
        ("ip=10.20.0.20&remote_id=x", "circuit_id"),
        ("ip=10.20.0.20&mac_address=x", "valid MAC"),
        ("ip=10.20.0.20&mac_address=ff:ff:ff:ff:ff:ff", "one machine"),
        ("ip=10.20.0.20&client_id=0xabc", "octets"),
        (
            "ip=10.20.0.7&mac_address=02:00:00:00:00:09",
            "already exists",
        ),
        (
            "ip=10.20.0.20&mac_address=02:00:00:00:00:07",
            "10.20.0.7 reserved",
        ),
        (
            "ip=10.20.0.20&client_id=01:52:00:54:00:00:01",
            "10.20.0.8 reserved",
        ),
        (
            "ip=10.20.0.20&circuit_id=rack1/port7",
            "10.20.0.10 reserved",
        ),
        ("ip=10.20.0.255&mac_address=02:00:00:00:00:09", "broadcast"),
        ("ip=10.20.0.254&mac_address=02:00:00:00:00:09", "gateway"),
        ("ip=10.20.0.1&mac_address=02:00:00:00:00:09", "rack1"),
        (
            "ip=10.99.0.1&mac_address=02:00:00:00:00:09",
            "no such subnet",
        ),
        (
            "ip=10.20.0.20&mac_address=02:00:00:00:00:09&hostname=a b",
            "hostname",
        ),
        (
            "ip=10.20.0.20&mac_address=02:00:00:00:00:09&lease_secs=5",
            "lease_secs",
        ),
    ] {
        region.post("reservedips/", body).await.refused(400, part);
    }
    assert!(changes(&region).await.is_empty());

    let path = format!("reservedips/{}/", made["id"]);
    let changed = region
        .put(
            &path,
            "comment=second&lease_secs=60&ip=10.20.0.7&mac_address=020000000007",
        )
        .await
        .json();
    assert_eq!(
        (
            &changed["comment"],
            &changed["lease_secs"],
            &changed["hostname"]
        ),
        (&json!("second"), &json!(60), &json!("node-7"))
    );
    region
        .put(&path, "ip=10.20.0.77")
        .await
        .refused(400, "cannot be changed");
    region
        .put(&path, "client_id=x")
        .await
        .refused(400, "cannot be changed");
    assert_eq!(
        changes(&region).await,
        [format!("reservation {vlan}:10.20.0.7")]
    );
    let list = region.get("reservedips/?subnet=10.20.0.0/24").await.json();
    let ips: Vec<&Value> = list
        .as_array()
        .unwrap()
        .iter()
        .map(|row| &row["ip"])
        .collect();
    assert_eq!(ips, ["10.20.0.7", "10.20.0.8", "10.20.0.9", "10.20.0.10"]);
    let used = region
        .get(&format!("subnets/{subnet}/?op=reserved_ip_ranges"))
        .await
        .json();
    assert_eq!(used.as_array().unwrap().len(), 5, "{used}");
    region
        .put(
            &format!("subnets/{subnet}/"),
            "cidr=10.20.0.0/29&gateway_ip=",
        )
        .await
        .refused(400, "would be outside");

    // Racks of the VLAN that a subnet comes to hear of its reservations.
    let fabric = region.post("fabrics/", "name=blue").await.json();
    let to = &fabric["vlans"][0]["id"];
    changes(&region).await;
    region
        .put(&format!("subnets/{subnet}/"), &format!("vlan={to}"))
        .await
        .json();
    let told = changes(&region).await;
    assert!(
        told.contains(&format!("reservation {to}:10.20.0.8")),
        "{told:?}"
    );
    assert_eq!(region.delete(&path).await.status, 204);
    assert_eq!(
        changes(&region).await,
        [format!("reservation {to}:10.20.0.7")]
    );
    region.get(&path).await.refused(404, "No ReservedIP");
}

#[tokio::test]
async fn a_proxy_vlan_needs_no_range_and_subnets_say_how_clients_are_told_apart() {
    let (region, subnet, vlan) = site().await;
    let path = format!("vlans/{vlan}/");
    assert_eq!(region.get(&path).await.json()["dhcp_mode"], "serve");
    region
        .put(&path, "dhcp_on=true&primary_rack=rack01")
        .await
        .refused(400, "dynamic IP range");
    region
        .put(&path, "dhcp_mode=relay")
        .await
        .refused(400, "serve or proxy");
    let on = region
        .put(&path, "dhcp_on=true&primary_rack=rack01&dhcp_mode=proxy")
        .await
        .json();
    assert_eq!(
        (&on["dhcp_on"], &on["dhcp_mode"]),
        (&json!(true), &json!("proxy"))
    );
    let mut db = region.db.pool.acquire().await.unwrap();
    let served = store::feed::served_vlans(&mut db, &["rack01".to_owned()], None).await;
    assert!(served.unwrap()[0].is_proxy);
    region
        .put(&path, "dhcp_mode=serve")
        .await
        .refused(400, "dynamic IP range");

    let path = format!("subnets/{subnet}/");
    let body =
        "client_id_identity=true&disabled_boot_architectures=0x07,00:0B uefi_amd64_tftp ipxe";
    let set = region.put(&path, body).await.json();
    assert_eq!(set["client_id_identity"], true);
    assert_eq!(
        set["disabled_boot_architectures"],
        json!(["ipxe", "uefi_amd64_tftp", "uefi_arm64_tftp"])
    );
    region
        .put(&path, "disabled_boot_architectures=toaster")
        .await
        .refused(400, "boot architecture");
    let cleared = region
        .put(&path, "disabled_boot_architectures=")
        .await
        .json();
    assert_eq!(cleared["disabled_boot_architectures"], json!([]));
}

#[tokio::test]
async fn a_reserved_range_takes_its_addresses_from_a_dynamic_one_when_that_is_said() {
    let (region, _, _) = site().await;
    let dynamic = region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.100&end_ip=10.20.0.199",
        )
        .await
        .json();
    let inside = "type=reserved&start_ip=10.20.0.120&end_ip=10.20.0.129";
    region
        .post("ipranges/", inside)
        .await
        .refused(400, "conflicts with an existing range");
    let across = "type=reserved&start_ip=10.20.0.90&end_ip=10.20.0.129&exclude=true";
    region
        .post("ipranges/", across)
        .await
        .refused(400, "conflicts with an existing range");
    let twice = "type=dynamic&start_ip=10.20.0.120&end_ip=10.20.0.129&exclude=true";
    region
        .post("ipranges/", twice)
        .await
        .refused(400, "conflicts with an existing range");
    let made = region
        .post("ipranges/", &format!("{inside}&exclude=true"))
        .await
        .json();
    // It stands, so other changes need not say it again.
    region
        .put(&format!("ipranges/{}/", made["id"]), "comment=printer")
        .await
        .json();
    region
        .put(
            &format!("ipranges/{}/", dynamic["id"]),
            "end_ip=10.20.0.198",
        )
        .await
        .json();
    let usage = region.get("ipranges/?op=usage").await.json();
    assert_eq!(
        (&usage[0]["total"], &usage[0]["free"]),
        (&json!(89), &json!(89))
    );
    assert_eq!(
        (&usage[0]["dealt"], &usage[0]["percent"]),
        (&json!(89), &json!(0.0))
    );
    // What hosts claim, as their rack says, is out of service.
    let claimed = "update lease_block set owner = 'r1', claimed = 9, claimed_at = now()
                   where id = (select min(id) from lease_block)";
    sqlx::raw_sql(claimed)
        .execute(&region.db.pool)
        .await
        .unwrap();
    let usage = region.get("ipranges/?op=usage").await.json();
    assert_eq!(
        (&usage[0]["claimed"], &usage[0]["free"]),
        (&json!(9), &json!(80))
    );
    let big = region.post("subnets/", "cidr=11.0.0.0/8").await.json();
    region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=11.0.0.1&end_ip=11.255.255.254",
        )
        .await
        .json();
    let usage = region
        .get(&format!("ipranges/?op=usage&subnet={}", big["id"]))
        .await
        .json();
    assert_eq!(
        (&usage[0]["total"], &usage[0]["dealt"]),
        (&json!(16_777_214), &json!(262_144))
    );
}

#[tokio::test]
async fn users_reserve_addresses_and_release_them() {
    let (region, _, vlan) = site().await;
    let range = "type=dynamic&start_ip=10.20.0.4&end_ip=10.20.0.199";
    region.post("ipranges/", range).await.json();
    changes(&region).await;
    let user = region.user.clone();
    let form = "application/x-www-form-urlencoded";
    let reserve = async |body: &str| {
        region
            .call(
                Some(&user),
                "POST",
                "ipaddresses/?op=reserve",
                form,
                body.to_owned(),
            )
            .await
    };
    let first = reserve("subnet=10.20.0.0/24&hostname=printer").await.json();
    assert_eq!(
        (
            &first["ip"],
            &first["alloc_type"],
            &first["owner"]["username"],
            &first["hostname"]
        ),
        (
            &json!("10.20.0.2"),
            &json!(4),
            &json!("user"),
            &json!("printer")
        ),
        "the first that is not the rack's"
    );
    let second = reserve("subnet=10.20.0.0/24&mac=02:00:00:00:00:09")
        .await
        .json();
    assert_eq!(second["ip"], "10.20.0.3");
    let told = changes(&region).await;
    assert!(
        told.contains(&format!("reservation {vlan}:10.20.0.3")),
        "{told:?}"
    );
    reserve("ip=10.20.0.5").await.refused(403, "dynamic range");
    reserve("ip=10.20.0.2").await.refused(404, "already in use");
    reserve("ip=10.20.0.254").await.refused(400, "gateway");
    reserve("").await.refused(400, "subnet");
    reserve("ip=10.20.0.210&mac=02:00:00:00:00:09")
        .await
        .refused(400, "10.20.0.3 reserved");
    assert_eq!(reserve("ip=10.20.0.210").await.json()["ip"], "10.20.0.210");
    region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.205&end_ip=10.20.0.220",
        )
        .await
        .refused(400, "existing IP address: 10.20.0.210");

    run(&region, &format!(
        "insert into lease (address, vlan_id, client_kind, client_key, mac, ends, hostname, granted)
         values ('10.20.0.50', {vlan}, 0, '\\x020000000001', '02:00:00:00:00:01', now() + interval '1 hour', 'n', now())"
    )).await;
    let own = region
        .call(Some(&user), "GET", "ipaddresses/", "", "")
        .await
        .json();
    let told: Vec<(String, i64)> = own
        .as_array()
        .unwrap()
        .iter()
        .map(|row| {
            (
                row["ip"].as_str().unwrap().to_owned(),
                row["alloc_type"].as_i64().unwrap(),
            )
        })
        .collect();
    let row = |ip: &str, kind| (ip.to_owned(), kind);
    assert_eq!(
        told,
        [
            row("10.20.0.2", 4),
            row("10.20.0.3", 4),
            row("10.20.0.210", 4),
            row("10.20.0.50", 6)
        ]
    );
    assert_eq!(
        region
            .get("ipaddresses/")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        region
            .get("ipaddresses/?all=true")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        4
    );
    assert_eq!(
        region
            .get("ipaddresses/?ip=10.20.0.2&owner=user")
            .await
            .json()[0]["ip"],
        "10.20.0.2"
    );
    let denied = region
        .call(Some(&user), "GET", "ipaddresses/?all=true", "", "")
        .await;
    denied.refused(403, "admin");
    assert_eq!(region.get("reservedips/").await.json(), json!([]));

    region
        .post("ipaddresses/?op=release", "ip=10.20.0.2")
        .await
        .refused(404, "10.20.0.2");
    region
        .post("ipaddresses/?op=release", "ip=10.20.0.50&discovered=true")
        .await
        .refused(409, "leased");
    let release = async |body: &str| {
        region
            .call(
                Some(&user),
                "POST",
                "ipaddresses/?op=release",
                form,
                body.to_owned(),
            )
            .await
    };
    release("ip=10.20.0.3&force=true")
        .await
        .refused(403, "admin");
    assert_eq!(release("ip=10.20.0.3").await.status, 204);
    let forced = region
        .post("ipaddresses/?op=release", "ip=10.20.0.2&force=true")
        .await;
    assert_eq!(forced.status, 204);
    assert_eq!(
        reserve("subnet=10.20.0.0/24").await.json()["ip"],
        "10.20.0.2",
        "free again"
    );
}

#[tokio::test]
async fn leases_are_listed_and_remembered_page_by_page() {
    let (region, subnet, vlan) = site().await;
    region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.100&end_ip=10.20.0.199",
        )
        .await
        .json();
    for n in 0..5 {
        run(&region, &format!(
            "insert into lease (address, vlan_id, client_kind, client_key, mac, ends, hostname, granted, since)
             values ('10.20.0.10{n}', {vlan}, 0, '\\x02000000000{n}', '02:00:00:00:00:0{n}',
                     now() + interval '1 hour', 'n{n}', now(), '2026-01-02T00:00:0{n}Z')"
        )).await;
    }
    run(&region, &format!(
        "insert into lease_history (address, vlan_id, client_kind, client_key, mac, hostname, since, ended, released)
         values ('10.20.0.100', {vlan}, 1, '\\x0001', null, 'old', '2026-01-01T00:00:00Z', '2026-01-01T12:00:00Z', true)"
    )).await;
    let addresses = |answer: &Value, list: &str| -> Vec<String> {
        let rows = answer[list].as_array().unwrap();
        rows.iter()
            .map(|row| {
                row["ip"]
                    .as_str()
                    .unwrap()
                    .rsplit('.')
                    .next()
                    .unwrap()
                    .to_owned()
            })
            .collect()
    };
    let page = region.get("leases/?limit=3").await.json();
    assert_eq!(addresses(&page, "leases"), ["100", "101", "102"]);
    assert_eq!(page["leases"][1]["mac_address"], "02:00:00:00:00:01");
    assert_eq!(page["leases"][1]["subnet"], "10.20.0.0/24");
    let page = region.get(page["next_uri"].as_str().unwrap()).await.json();
    assert_eq!(addresses(&page, "leases"), ["103", "104"]);
    assert_eq!(page["next_uri"], Value::Null);
    for (query, want) in [
        ("mac_address=02:00:00:00:00:03", vec!["103"]),
        ("ip=10.20.0.102", vec!["102"]),
        ("ip=10.20.0.102&mac_address=02:00:00:00:00:03", vec![]),
        ("subnet=10.20.0.0/24&after=10.20.0.102", vec!["103", "104"]),
    ] {
        let answer = region.get(&format!("leases/?{query}")).await.json();
        assert_eq!(addresses(&answer, "leases"), want, "{query}");
    }
    for bad in ["limit=0", "limit=10001", "ip=x", "mac_address=x"] {
        region.get(&format!("leases/?{bad}")).await.refused(400, "");
    }
    region
        .get("leases/?subnet=nowhere")
        .await
        .refused(404, "No Subnet");

    let mut seen = Vec::new();
    let mut uri = "leases/?op=history&limit=2".to_owned();
    loop {
        let page = region.get(&uri).await.json();
        seen.extend(addresses(&page, "history"));
        match page["next_uri"].as_str() {
            Some(next) => uri = next.to_owned(),
            None => break,
        }
    }
    assert_eq!(
        seen,
        ["104", "103", "102", "101", "100", "100"],
        "the newest first"
    );
    for (query, want) in [
        ("ip=10.20.0.100", vec!["100", "100"]),
        ("mac_address=02:00:00:00:00:01", vec!["101"]),
        ("at=2026-01-01T06:00:00Z", vec!["100"]),
        ("at=2026-01-01T18:00:00%2B00:00", vec![]),
        ("at=2026-01-02T00:00:01Z", vec!["101", "100"]),
        (
            "before=2026-01-02T00:00:00Z&after=2026-01-01T12:00:00Z",
            vec!["100", "100"],
        ),
        (&format!("subnet={subnet}&limit=1"), vec!["104"]),
    ] {
        let answer = region
            .get(&format!("leases/?op=history&{query}"))
            .await
            .json();
        assert_eq!(addresses(&answer, "history"), want, "{query}");
    }
    let old = region
        .get("leases/?op=history&at=2026-01-01T06:00:00Z")
        .await
        .json();
    let old = &old["history"][0];
    assert_eq!(
        (
            &old["client_id"],
            &old["mac_address"],
            &old["ended"],
            &old["released"]
        ),
        (
            &json!("0x0001"),
            &Value::Null,
            &json!("2026-01-01T12:00:00Z"),
            &json!(true)
        )
    );
    region
        .get("leases/?op=history&at=yesterday")
        .await
        .refused(400, "RFC 3339");
    region
        .get("leases/?op=history&page=x")
        .await
        .refused(400, "next_uri");
}

#[tokio::test]
async fn machines_are_followed_for_a_while() {
    let (region, _, _) = site().await;
    let on = region
        .post("dhcp/?op=trace", "mac_address=02:00:00:00:00:01&secs=60")
        .await
        .json();
    assert_eq!(on["traces"][0]["mac_address"], "02:00:00:00:00:01");
    assert_eq!(on["traces"][0]["username"], "admin");
    assert_eq!(changes(&region).await, ["settings "]);
    for n in 2..=16 {
        let body = format!("mac_address=02:00:00:00:00:{n:02x}");
        region.post("dhcp/?op=trace", &body).await.json();
    }
    region
        .post("dhcp/?op=trace", "mac_address=02:00:00:00:01:00")
        .await
        .refused(409, "16 machines");
    region
        .post("dhcp/?op=trace", "mac_address=02:00:00:00:00:01")
        .await
        .json();
    region
        .post("dhcp/?op=trace", "mac_address=02:00:00:00:00:01&secs=0")
        .await
        .refused(400, "secs");
    region
        .post("dhcp/?op=trace", "secs=5")
        .await
        .refused(400, "mac_address");
    let off = region
        .post("dhcp/?op=end_trace", "mac_address=02:00:00:00:00:01")
        .await
        .json();
    assert_eq!(off["traces"].as_array().unwrap().len(), 15);
    run(&region, "update dhcp_trace set until = now()").await;
    assert_eq!(region.get("dhcp/").await.json()["traces"], json!([]));
}
