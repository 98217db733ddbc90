//! What serves is not deleted, and what goes along is named: each DELETE, as MAAS refuses it.

mod support;

use support::{Answer, Region};

/// rack1 serves 10.20.0.0/24 from a dynamic range; the VLAN's id.
async fn serving() -> (Region, i64) {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.1/24").await;
    let subnet = region
        .post("subnets/", "cidr=10.20.0.0/24&name=lab")
        .await
        .json();
    let vlan = subnet["vlan"]["id"].as_i64().unwrap();
    region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.100&end_ip=10.20.0.199",
        )
        .await
        .json();
    let on = region
        .put(
            &format!("vlans/{vlan}/"),
            "dhcp_on=true&primary_rack=rack01",
        )
        .await;
    assert_eq!(on.json()["dhcp_on"], true);
    (region, vlan)
}

#[track_caller]
fn gone(answer: &Answer) {
    assert_eq!(answer.status, 204, "{}", answer.text);
    // The `maas` command reads it and fails without.
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8");
    assert_eq!(answer.text, "");
}

async fn events(region: &Region) -> String {
    region.get("events/?op=query&level=AUDIT").await.text
}

#[tokio::test]
async fn a_subnet_that_dhcp_serves_stays() {
    let (region, vlan) = serving().await;
    for path in ["subnets/lab/", "subnets/lab/?force=true"] {
        let refused = region.delete(path).await;
        refused.refused(400, "actively servicing a dynamic IP range");
        assert_eq!(refused.header("content-type"), "text/plain; charset=utf-8");
    }
    region
        .put(&format!("vlans/{vlan}/"), "dhcp_on=false")
        .await
        .json();
    region
        .delete("subnets/lab/")
        .await
        .refused(400, "the range 10.20.0.100 to 10.20.0.199");
    gone(&region.delete("subnets/lab/?force=1").await);
}

#[tokio::test]
async fn a_subnet_whose_vlan_is_relayed_to_one_with_dhcp_stays() {
    let (region, vlan) = serving().await;
    let fabric = region.get("fabrics/").await.json()[0]["id"].to_string();
    let far = region
        .post(
            &format!("fabrics/{fabric}/vlans/"),
            &format!("vid=10&name=far&relay_vlan={vlan}"),
        )
        .await
        .json();
    let body = format!("cidr=10.30.0.0/24&name=far&vlan={}", far["id"]);
    region.post("subnets/", &body).await.json();
    let range = region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.30.0.10&end_ip=10.30.0.20",
        )
        .await
        .json();
    region
        .delete("subnets/far/?force=true")
        .await
        .refused(400, "actively servicing");
    region
        .delete(&format!("ipranges/{}/", range["id"]))
        .await
        .refused(400, "only dynamic IP range");
    // Nor does the VLAN go that is relayed to, nor become a relayed one itself.
    let third = region
        .post(&format!("fabrics/{fabric}/vlans/"), "vid=11&name=third")
        .await
        .json();
    region
        .put(&format!("vlans/{vlan}/"), "dhcp_on=false")
        .await
        .json();
    region
        .put(
            &format!("vlans/{vlan}/"),
            &format!("relay_vlan={}", third["id"]),
        )
        .await
        .refused(400, "is relayed to this VLAN");
    region
        .put(
            &format!("vlans/{}/", third["id"]),
            &format!("relay_vlan={}", far["id"]),
        )
        .await
        .refused(400, "not relayed itself");
}

#[tokio::test]
async fn what_goes_with_a_subnet_is_named_first() {
    let region = Region::start().await;
    region
        .post("subnets/", "cidr=10.20.0.0/24&name=lab")
        .await
        .json();
    for (path, body) in [
        (
            "ipranges/",
            "type=reserved&start_ip=10.20.0.10&end_ip=10.20.0.19",
        ),
        (
            "reservedips/",
            "ip=10.20.0.50&mac_address=52:54:00:00:00:01",
        ),
        (
            "dhcp-options/",
            "code=42&value=10.20.0.9&scope=subnet&scope_id=lab",
        ),
    ] {
        region.post(path, body).await.json();
    }
    let refused = region.delete("subnets/lab/").await;
    for part in [
        "the range 10.20.0.10 to 10.20.0.19",
        "the reserved address 10.20.0.50",
        "the DHCP option 42",
        "'force'",
    ] {
        refused.refused(400, part);
    }
    gone(&region.delete("subnets/lab/?force=true").await);
    let told = events(&region).await;
    assert!(
        told.contains("and with it the range 10.20.0.10 to 10.20.0.19"),
        "{told}"
    );
    region
        .post("subnets/", "cidr=10.21.0.0/24&name=empty")
        .await
        .json();
    gone(&region.delete("subnets/empty/").await);
}

#[tokio::test]
async fn the_only_range_that_dhcp_serves_from_stays() {
    let (region, _) = serving().await;
    let ranges = region.get("ipranges/").await.json();
    let path = format!("ipranges/{}/", ranges[0]["id"]);
    region
        .delete(&path)
        .await
        .refused(400, "only dynamic IP range");
    let second = region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.200&end_ip=10.20.0.210",
        )
        .await
        .json();
    gone(&region.delete(&path).await);
    let path = format!("ipranges/{}/", second["id"]);
    gone(&region.delete(&format!("{path}?force=true")).await);
}

#[tokio::test]
async fn a_served_subnet_does_not_leave_its_vlan_without_addresses() {
    let (region, _) = serving().await;
    let fabric = region.get("fabrics/").await.json()[0]["id"].to_string();
    let other = region
        .post(&format!("fabrics/{fabric}/vlans/"), "vid=10")
        .await
        .json();
    region
        .put("subnets/lab/", &format!("vlan={}", other["id"]))
        .await
        .refused(400, "serves its dynamic range");
    // Nor where the other VLAN is served as well.
    region.rack("rack2", "rack02", "10.30.0.1/24").await;
    let body = format!("cidr=10.30.0.0/24&name=far&vlan={}", other["id"]);
    region.post("subnets/", &body).await.json();
    let range = "type=dynamic&start_ip=10.30.0.10&end_ip=10.30.0.20";
    region.post("ipranges/", range).await.json();
    let on = "dhcp_on=true&primary_rack=rack02";
    let path = format!("vlans/{}/", other["id"]);
    assert_eq!(region.put(&path, on).await.json()["dhcp_on"], true);
    region
        .put("subnets/lab/", &format!("vlan={}", other["id"]))
        .await
        .refused(400, "no address left to hand out");
}

/// The rack's address is in one subnet of its VLAN, the dynamic range in another.
#[tokio::test]
async fn the_subnet_on_which_a_vlans_rack_stands_stays() {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.20.0.200/24").await;
    let standing = region
        .post("subnets/", "cidr=10.20.0.0/24&name=lab")
        .await
        .json();
    let vlan = standing["vlan"]["id"].as_i64().unwrap();
    let fabric = standing["vlan"]["fabric_id"].as_i64().unwrap();
    let body = format!("cidr=10.21.0.0/24&name=dealt&vlan={vlan}");
    region.post("subnets/", &body).await.json();
    let range = "type=dynamic&start_ip=10.21.0.10&end_ip=10.21.0.99";
    region.post("ipranges/", range).await.json();
    let (path, on) = (format!("vlans/{vlan}/"), "dhcp_on=true&primary_rack=rack01");
    region.put(&path, on).await.json();
    let other = region
        .post(&format!("fabrics/{fabric}/vlans/"), "vid=10")
        .await
        .json();
    let lost = "no rack with an address on its subnets";
    for path in ["subnets/lab/", "subnets/lab/?force=true"] {
        region.delete(path).await.refused(400, lost);
    }
    for body in [
        "cidr=10.20.0.0/25".to_owned(),
        format!("vlan={}", other["id"]),
    ] {
        region.put("subnets/lab/", &body).await.refused(400, lost);
    }
    // Nothing of it happened.
    assert_eq!(
        region.get("subnets/lab/").await.json(),
        standing_now(&region, standing).await
    );
    // With a second rack elsewhere on the VLAN the first may go.
    region.rack("rack2", "rack02", "10.21.0.2/24").await;
    region.put(&path, "secondary_rack=rack02").await.json();
    // While it is the only one that stands there, it stays.
    gone(&region.delete("subnets/lab/").await);
    region
        .put(&path, "secondary_rack=")
        .await
        .refused(400, lost);
    region.put(&path, "dhcp_on=false").await.json();
    let told = events(&region).await;
    assert!(told.contains("DHCP ends on"), "{told}");
}

/// A subnet as it was made, with its VLAN as it is.
async fn standing_now(region: &Region, mut subnet: serde_json::Value) -> serde_json::Value {
    let vlan = format!("vlans/{}/", subnet["vlan"]["id"]);
    subnet["vlan"] = region.get(&vlan).await.json();
    subnet
}

#[tokio::test]
async fn a_reserved_range_leaves_something_to_hand_out_where_dhcp_is_on() {
    let (region, vlan) = serving().await;
    let left = "no address left to hand out";
    let all = "type=reserved&start_ip=10.20.0.100&end_ip=10.20.0.199&exclude=true";
    region.post("ipranges/", all).await.refused(400, left);
    let most = "type=reserved&start_ip=10.20.0.100&end_ip=10.20.0.198&exclude=true";
    let most = region.post("ipranges/", most).await.json();
    let path = format!("ipranges/{}/", most["id"]);
    region
        .put(&path, "end_ip=10.20.0.199")
        .await
        .refused(400, left);
    // Nor does the dynamic one shrink to what is reserved.
    let ranges = region.get("ipranges/").await.json();
    let mut ranges = ranges.as_array().unwrap().iter();
    let dynamic = ranges.find(|range| range["type"] == "dynamic").unwrap();
    region
        .put(
            &format!("ipranges/{}/", dynamic["id"]),
            "end_ip=10.20.0.198&exclude=true",
        )
        .await
        .refused(400, left);
    region
        .put(&path, "end_ip=10.20.0.199&force=true")
        .await
        .json();
    // DHCP is not switched on over nothing either.
    let vlan = format!("vlans/{vlan}/");
    region.put(&vlan, "dhcp_on=false").await.json();
    region
        .put(&vlan, "dhcp_on=true")
        .await
        .refused(400, "when a dynamic IP range is defined");
}

#[tokio::test]
async fn a_revoked_racks_vlans_go_to_another_rack_or_dhcp_ends_there() {
    let (region, vlan) = serving().await;
    let path = format!("vlans/{vlan}/");
    region.rack("rack2", "rack02", "10.20.0.2/24").await;
    let revoked = region
        .post("rackcontrollers/rack01/?op=revoke", "")
        .await
        .json();
    assert!(revoked["revoked"].is_string());
    let told = revoked["passed_on"].to_string();
    assert!(told.contains("rack02 is primary on"), "{told}");
    let after = region.get(&path).await.json();
    assert_eq!(
        (&after["dhcp_on"], &after["primary_rack"]),
        (&true.into(), &"rack02".into())
    );
    // A revoked rack is nobody's heir.
    let revoked = region
        .post("rackcontrollers/rack02/?op=revoke", "")
        .await
        .json();
    let told = revoked["passed_on"].to_string();
    assert!(told.contains("DHCP ends on"), "{told}");
    let after = region.get(&path).await.json();
    assert_eq!(
        (&after["dhcp_on"], after["primary_rack"].is_null()),
        (&false.into(), true)
    );
    let events = events(&region).await;
    assert!(
        events.contains("Rack rack02 revoked: DHCP ends on"),
        "{events}"
    );
}

#[tokio::test]
async fn a_vlans_only_rack_stays_and_another_takes_over_where_there_is_one() {
    let (region, vlan) = serving().await;
    let path = format!("vlans/{vlan}/");
    let refused = region.delete("rackcontrollers/rack01/").await;
    refused.refused(
        400,
        "Unable to delete 'rack1'; it is currently set as a primary rack controller on VLANs",
    );
    refused.refused(400, "no other rack controller can provide DHCP");
    // One that is elsewhere is no help.
    region.rack("rack9", "rack09", "10.99.0.1/24").await;
    region
        .delete("rackcontrollers/rack01/")
        .await
        .refused(400, "no other rack");
    region.rack("rack2", "rack02", "10.20.0.2/24").await;
    gone(&region.delete("rackcontrollers/rack01/").await);
    let after = region.get(&path).await.json();
    assert_eq!(
        (&after["dhcp_on"], &after["primary_rack"]),
        (&true.into(), &"rack02".into())
    );
    // By force DHCP ends, and the VLAN says so.
    gone(&region.delete("rackcontrollers/rack02/?force=true").await);
    let after = region.get(&path).await.json();
    assert_eq!(
        (&after["dhcp_on"], after["primary_rack"].is_null()),
        (&false.into(), true)
    );
    let told = events(&region).await;
    assert!(told.contains("DHCP ends on"), "{told}");
}

#[tokio::test]
async fn a_rack_serves_only_where_it_has_an_address() {
    let (region, vlan) = serving().await;
    region.rack("rack2", "rack02", "10.99.0.1/24").await;
    let path = format!("vlans/{vlan}/");
    region
        .put(&path, "primary_rack=rack02")
        .await
        .refused(400, "no address on a subnet of this VLAN");
    region
        .put(&path, "secondary_rack=rack02")
        .await
        .refused(400, "no address on a subnet of this VLAN");
    region.put(&path, "dhcp_on=false").await.json();
    region
        .put(&path, "dhcp_on=true&primary_rack=rack02")
        .await
        .refused(400, "no address on a subnet of this VLAN");
    region
        .put(&path, "dhcp_on=true&primary_rack=rack01")
        .await
        .json();
}

#[tokio::test]
async fn vlans_and_fabrics_stay_while_they_are_used() {
    let (region, vlan) = serving().await;
    let fabric = region.get("fabrics/").await.json()[0]["id"].to_string();
    region
        .delete(&format!("fabrics/{fabric}/"))
        .await
        .refused(400, "subnets are still present: 10.20.0.0/24");
    region
        .delete(&format!("vlans/{vlan}/"))
        .await
        .refused(400, "default VLAN in the fabric");
    let other = region
        .post(&format!("fabrics/{fabric}/vlans/"), "vid=10")
        .await
        .json();
    region
        .post(
            "machines/",
            "architecture=amd64&hostname=m1&mac_addresses=52:54:00:00:00:01",
        )
        .await
        .json();
    sqlx::query("update interface set vlan_id = $1")
        .bind(other["id"].as_i64().unwrap() as i32)
        .execute(&region.db.pool)
        .await
        .unwrap();
    // As in MAAS its interfaces go to the default VLAN.
    gone(&region.delete(&format!("vlans/{}/", other["id"])).await);
    let machine = region.get("machines/").await.json();
    assert_eq!(machine[0]["interface_set"][0]["vlan"]["id"], vlan);
    region
        .put(&format!("vlans/{vlan}/"), "dhcp_on=false")
        .await
        .json();
    gone(&region.delete("subnets/lab/?force=true").await);
    region
        .delete(&format!("fabrics/{fabric}/"))
        .await
        .refused(400, "interfaces are still connected: eth0 (physical) on m1");
}

#[tokio::test]
async fn users_domains_and_images_stay_while_they_are_used() {
    let region = Region::start().await;
    region
        .post("subnets/", "cidr=10.20.0.0/24&name=lab")
        .await
        .json();
    let form = "application/x-www-form-urlencoded";
    let path = "ipaddresses/?op=reserve";
    region
        .call(Some(&region.user), "POST", path, form, "ip=10.20.0.9")
        .await
        .json();
    region
        .delete("users/user/")
        .await
        .refused(400, "1 static IP address(es) are still allocated");
    region
        .delete("users/user/?transfer_resources_to=nobody")
        .await
        .refused(404, "No User");
    gone(
        &region
            .delete("users/user/?transfer_resources_to=admin")
            .await,
    );
    let mine = region.get("ipaddresses/").await.json();
    assert_eq!(mine[0]["owner"]["username"], "admin");

    let domain = region.post("domains/", "name=example.com").await.json();
    region
        .post(
            "machines/",
            "architecture=amd64&hostname=a.example.com&mac_addresses=52:54:00:00:00:01",
        )
        .await
        .json();
    region
        .delete(&format!("domains/{}/", domain["id"]))
        .await
        .refused(400, "1 machine(s) are in it");
    region
        .delete("domains/0/")
        .await
        .refused(400, "default domain");
    let machine = region.get("machines/").await.json();
    let machine = machine[0]["system_id"].as_str().unwrap();
    gone(&region.delete(&format!("machines/{machine}/")).await);
    gone(&region.delete("domains/example.com/").await);

    for (release, name) in [("bookworm", "one"), ("trixie", "two")] {
        for statement in [
            format!(
                "insert into library_file (sha256, size_bytes, received_bytes, piece_bytes, complete)
                 values (sha256('{name}'), 1, 1, 4, true)"
            ),
            format!(
                "with r as (insert into boot_resource (osystem, release, architecture)
                            values ('debian', '{release}', 'amd64') returning id)
                 insert into boot_resource_file (resource_id, filetype, sha256)
                 select id, kind, sha256('{name}') from r, unnest(array['boot-kernel', 'boot-initrd', 'squashfs']) kind"
            ),
        ] {
            sqlx::query(sqlx::AssertSqlSafe(statement))
                .execute(&region.db.pool)
                .await
                .unwrap();
        }
    }
    let images = region.get("boot-resources/").await.json();
    gone(
        &region
            .delete(&format!("boot-resources/{}/", images[0]["id"]))
            .await,
    );
    let last = format!("boot-resources/{}/", images[1]["id"]);
    region
        .delete(&last)
        .await
        .refused(400, "only boot resource that amd64 machines can boot");
    gone(&region.delete(&format!("{last}?force=true")).await);
}
