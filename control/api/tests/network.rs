//! Networks: what it takes to switch DHCP on, the checks on the way, and what racks are told.

mod support;

use serde_json::json;
use support::Region;

async fn changes(region: &Region) -> Vec<String> {
    let keys = sqlx::query_scalar("delete from change where kind = 'link' returning key")
        .fetch_all(&region.db.pool)
        .await;
    let mut keys: Vec<String> = keys.unwrap();
    keys.sort();
    keys.dedup();
    keys
}

#[tokio::test]
async fn from_nothing_to_a_vlan_with_dhcp() {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.1/24").await;
    region.rack("rack2", "rack02", "10.20.0.2/24").await;

    let subnet = region
        .post(
            "subnets/?op=",
            "cidr=10.20.0.0/24&gateway_ip=10.20.0.254&dns_servers=10.20.0.1 10.20.0.2",
        )
        .await
        .json();
    assert_eq!(subnet["name"], "10.20.0.0/24");
    assert_eq!(subnet["dns_servers"], json!(["10.20.0.1", "10.20.0.2"]));
    let vlan = subnet["vlan"]["id"].as_i64().unwrap();
    assert!(vlan >= 5001);
    let (fabric, vid) = (
        subnet["vlan"]["fabric_id"].as_i64().unwrap(),
        &subnet["vlan"]["vid"],
    );
    let by_vid = format!("fabrics/{fabric}/vlans/{vid}/");
    let by_id = format!("vlans/{vlan}/");
    assert_eq!(
        region.get(&by_vid).await.json(),
        region.get(&by_id).await.json()
    );
    assert_eq!(changes(&region).await, [vlan.to_string()]);

    region
        .put(&by_vid, "dhcp_on=true")
        .await
        .refused(400, "primary rack controller");
    region
        .put(&by_vid, "dhcp_on=true&primary_rack=rack01")
        .await
        .refused(400, "dynamic IP range");
    region
        .put(&by_vid, "primary_rack=nobody")
        .await
        .refused(400, "valid choice");
    region
        .put(&by_vid, "secondary_rack=rack02")
        .await
        .refused(400, "primary");
    region
        .put(&by_vid, "primary_rack=rack01&secondary_rack=rack01")
        .await
        .refused(400, "different");
    assert!(changes(&region).await.is_empty());

    let range = region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.100&end_ip=10.20.0.199&comment=pxe",
        )
        .await
        .json();
    assert_eq!(range["subnet"]["id"], subnet["id"]);
    assert_eq!(range["user"]["username"], "admin");
    let on = region
        .put(
            &by_vid,
            "dhcp_on=True&primary_rack=rack1&secondary_rack=rack02",
        )
        .await
        .json();
    assert_eq!(
        (&on["dhcp_on"], &on["primary_rack"], &on["secondary_rack"]),
        (&true.into(), &"rack01".into(), &"rack02".into())
    );
    assert_eq!(changes(&region).await, [vlan.to_string()]);
    region
        .put(&by_id, "primary_rack=")
        .await
        .refused(400, "primary rack");
    region
        .put(&by_id, "relay_vlan=5001")
        .await
        .refused(400, "relay_vlan");
    let off = region
        .put(&by_id, "dhcp_on=false&secondary_rack=")
        .await
        .json();
    assert_eq!(
        (&off["dhcp_on"], &off["secondary_rack"]),
        (&false.into(), &serde_json::Value::Null)
    );

    let fabrics = region.get("fabrics/").await.json();
    assert_eq!(fabrics[0]["vlans"][0]["id"], vlan);
    assert_eq!(
        region.get("subnets/").await.json()[0]["vlan"]["primary_rack"],
        "rack01"
    );
}

#[tokio::test]
async fn ranges_stay_inside_and_apart() {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.20/24").await;
    let subnet = region
        .post("subnets/", "cidr=10.20.0.0/24&gateway_ip=10.20.0.5")
        .await
        .json();
    let made = region
        .post(
            "ipranges/",
            "type=reserved&start_ip=10.20.0.10&end_ip=10.20.0.19",
        )
        .await
        .json();
    let range = |kind: &str, start: &str, end: &str| {
        format!("type={kind}&start_ip=10.20.{start}&end_ip=10.20.{end}")
    };
    let cases = [
        (
            range("dynamic", "0.19", "0.30"),
            "conflicts with an existing range",
        ),
        (
            range("reserved", "0.1", "0.10"),
            "conflicts with an existing range",
        ),
        (
            range("dynamic", "0.1", "0.9"),
            "conflicts with an existing IP address: 10.20.0.5",
        ),
        (
            range("dynamic", "0.20", "0.30"),
            "10.20.0.20 of the rack rack1",
        ),
        (range("dynamic", "0.250", "0.255"), "broadcast"),
        (range("dynamic", "0.0", "0.3"), "broadcast"),
        (range("dynamic", "0.40", "0.30"), "must not be less"),
        (range("dynamic", "0.250", "1.3"), "within subnet"),
        (range("dynamic", "9.1", "9.3"), "No subnet"),
        (range("magic", "0.30", "0.40"), "dynamic or reserved"),
        (
            "type=dynamic&start_ip=10.20.0.30&end_ip=fd00::1".into(),
            "same address family",
        ),
        (
            "type=dynamic&start_ip=nonsense&end_ip=10.20.0.3".into(),
            "valid IPv4",
        ),
        ("start_ip=10.20.0.1&end_ip=10.20.0.3".into(), "required"),
    ];
    for (body, part) in cases {
        region.post("ipranges/", &body).await.refused(400, part);
    }
    let path = format!("ipranges/{}/", made["id"]);
    let longer = region.put(&path, "end_ip=10.20.0.18").await.json();
    assert_eq!(
        (&longer["start_ip"], &longer["end_ip"]),
        (&"10.20.0.10".into(), &"10.20.0.18".into())
    );
    let id = subnet["id"].as_i64().unwrap();
    region
        .put(&format!("subnets/{id}/"), "cidr=10.20.0.0/29")
        .await
        .refused(400, "outside");

    let reserved = region
        .get(&format!("subnets/{id}/?op=reserved_ip_ranges"))
        .await
        .json();
    assert_eq!(
        reserved,
        json!([
            {"start": "10.20.0.5", "end": "10.20.0.5", "num_addresses": 1, "purpose": ["gateway-ip"]},
            {"start": "10.20.0.10", "end": "10.20.0.18", "num_addresses": 9, "purpose": ["reserved"]},
        ])
    );
    let free = region
        .get(&format!("subnets/{id}/?op=unreserved_ip_ranges"))
        .await
        .json();
    assert_eq!(
        free[1],
        json!({"start": "10.20.0.6", "end": "10.20.0.9", "num_addresses": 4})
    );
    let statistics = region
        .get(&format!("subnets/{id}/?op=statistics"))
        .await
        .json();
    assert_eq!(
        (
            &statistics["total_addresses"],
            &statistics["num_available"],
            &statistics["largest_available"]
        ),
        (&254.into(), &244.into(), &236.into())
    );
    assert_eq!(region.delete(&path).await.status, 204);
    region.get(&path).await.refused(404, "No IPRange");
}

#[tokio::test]
async fn subnets_and_vlans_are_checked() {
    let region = Region::start().await;
    let fabric = region.post("fabrics/", "name=blue").await.json();
    let id = fabric["id"].as_i64().unwrap();
    let vlan = region
        .post(&format!("fabrics/{id}/vlans/"), "vid=10&name=prod&mtu=9000")
        .await
        .json();
    assert_eq!(
        (&vlan["vid"], &vlan["fabric"], &vlan["mtu"]),
        (&10.into(), &"blue".into(), &9000.into())
    );
    let subnet = region
        .post("subnets/", "cidr=10.1.0.0/16&fabric=blue&vid=10&name=prod")
        .await
        .json();
    assert_eq!(subnet["vlan"]["id"], vlan["id"]);
    let cases = [
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.1.0.0/16",
            400,
            "already exists",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.1.2.0/24",
            400,
            "Overlaps with the subnet 10.1.0.0/16",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.0.0.0/8",
            400,
            "Overlaps",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.2.0.1/16",
            400,
            "host bits",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=nonsense",
            400,
            "valid network",
        ),
        ("POST", "subnets/".to_owned(), "name=x", 400, "cidr"),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.2.0.0/16&gateway_ip=10.3.0.1",
            400,
            "within CIDR",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.2.0.0/16&vlan=1",
            400,
            "No such VLAN",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.2.0.0/16&vid=77",
            400,
            "No VLAN with this vid",
        ),
        (
            "POST",
            "subnets/".to_owned(),
            "cidr=10.2.0.0/16&lease_secs=1",
            400,
            "lease_secs",
        ),
        (
            "POST",
            "fabrics/".to_owned(),
            "name=blue",
            400,
            "already exists",
        ),
        ("POST", "fabrics/".to_owned(), "name=7", 400, "name"),
        (
            "POST",
            format!("fabrics/{id}/vlans/"),
            "vid=10",
            400,
            "already exists",
        ),
        (
            "POST",
            format!("fabrics/{id}/vlans/"),
            "vid=4095",
            400,
            "between 0 and 4094",
        ),
        (
            "POST",
            format!("fabrics/{id}/vlans/"),
            "vid=11&mtu=5",
            400,
            "MTU must be",
        ),
        (
            "POST",
            "fabrics/99/vlans/".to_owned(),
            "vid=11",
            404,
            "No Fabric",
        ),
        (
            "DELETE",
            format!("fabrics/{id}/vlans/0/"),
            "",
            400,
            "default VLAN",
        ),
        (
            "DELETE",
            format!("fabrics/{id}/vlans/10/"),
            "",
            400,
            "subnets are still present: 10.1.0.0/16",
        ),
        (
            "DELETE",
            format!("fabrics/{id}/"),
            "",
            400,
            "subnets are still present: 10.1.0.0/16",
        ),
    ];
    for (method, path, body, status, part) in cases {
        let form = "application/x-www-form-urlencoded";
        let answer = region
            .call(Some(&region.admin), method, &path, form, body)
            .await;
        assert_eq!(
            answer.status.as_u16(),
            status,
            "{method} {path} {body}: {}",
            answer.text
        );
        assert!(
            answer.text.contains(part),
            "{method} {path} {body}: {}",
            answer.text
        );
    }
    assert_eq!(
        region
            .get("subnets/")
            .await
            .json()
            .as_array()
            .unwrap()
            .len(),
        1
    );
    assert_eq!(
        region.get("subnets/cidr:10.1.0.0%2F16/").await.json()["id"],
        subnet["id"]
    );
    assert_eq!(
        region
            .delete(&format!("subnets/{}/", subnet["id"]))
            .await
            .status,
        204
    );
    assert_eq!(region.delete(&format!("fabrics/{id}/")).await.status, 204);
}

#[tokio::test]
async fn racks_are_listed_and_revoked() {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.1/24").await;
    let racks = region.get("rackcontrollers/").await.json();
    assert_eq!(racks[0]["ip_addresses"], json!(["10.20.0.1"]));
    assert_eq!(
        (&racks[0]["node_type"], &racks[0]["connected"]),
        (&2.into(), &false.into())
    );
    assert_eq!(region.get("rackcontrollers/rack01/").await.json(), racks[0]);
    let described = region
        .put("rackcontrollers/rack01/", "description=row%205")
        .await
        .json();
    assert_eq!(described["description"], "row 5");
    let revoked = region
        .post("rackcontrollers/rack01/?op=revoke", "")
        .await
        .json();
    assert!(revoked["revoked"].is_string());
    region
        .get("rackcontrollers/nobody/")
        .await
        .refused(404, "No RackController");
    let types = region
        .get("rackcontrollers/?op=describe_power_types")
        .await
        .json();
    let ipmi = types
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "ipmi")
        .unwrap();
    let pass = ipmi["fields"]
        .as_array()
        .unwrap()
        .iter()
        .find(|one| one["name"] == "power_pass")
        .unwrap();
    assert_eq!(pass["field_type"], "password");
    assert_eq!(region.get("ipaddresses/").await.json(), json!([]));
    for path in ["zones/", "resourcepools/", "domains/"] {
        assert_eq!(
            region.get(path).await.json().as_array().unwrap().len(),
            1,
            "{path}"
        );
    }
}
