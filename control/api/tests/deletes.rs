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
