//! Filters of machines with several values, and with values that are none.

mod support;

use support::Region;

/// One machine on one subnet, set to something that each filter can name.
async fn region() -> (Region, String) {
    let region = Region::start().await;
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
    ] {
        sqlx::query(statement)
            .execute(&region.db.pool)
            .await
            .unwrap();
    }
    (region, id)
}

/// A filter that is given several times asks for any of them, and a `not_` one for none of them; `=` and spaces around a
/// word are nothing, and words may be separated by commas where MAAS's are words of a set.
#[tokio::test]
async fn filters_with_several_values_mean_any_of_them() {
    let (region, id) = region().await;
    let id = id.as_str();
    for (query, found) in [
        ("hostname=nosuch&hostname=m1", 1),
        ("hostname=%20m1%20", 1),
        ("hostname=m1&hostname=", 1),
        ("hostname=", 1),
        ("hostname=M1%2Cm2", 0),
        ("not_hostname=nosuch&not_hostname=m1", 0),
        ("id=zzzzzz&id=ID", 1),
        ("not_id=zzzzzz&not_id=ID", 0),
        ("id=ID&not_id=ID", 0),
        ("system_id=zzzzzz&system_id=ID", 1),
        (
            "mac_address=52:54:00:00:00:77&mac_address=52:54:00:00:00:01",
            1,
        ),
        ("mac_address=52-54-00-00-00-01", 1),
        ("domain=maas&domain=example.com", 1),
        ("domain=maas", 0),
        ("not_domain=maas&not_domain=example.com", 0),
        ("status=ready&status=new", 1),
        ("status=ready,new", 1),
        ("status=%3Dnew", 1),
        ("not_status=ready&not_status=new", 0),
        ("simple_status=ready&simple_status=new", 1),
        ("status=new&simple_status=ready", 0),
        ("not_simple_status=ready&not_status=deployed", 1),
        ("arch=arm64&arch=amd64", 1),
        ("arch=amd64%2Fgeneric", 1),
        ("not_arch=arm64&not_arch=amd64", 0),
        ("owner=user&owner=admin", 1),
        ("not_owner=user&not_owner=admin", 0),
        ("power_state=on&power_state=unknown", 1),
        ("not_power_state=on&not_power_state=off", 1),
        ("fabrics=nosuch&fabrics=red", 1),
        ("not_fabrics=nosuch&not_fabrics=red", 0),
        ("fabric_classes=1g&fabric_classes=10g", 1),
        ("not_fabric_classes=1g", 1),
        ("vlans=vid:0&vlans=untagged", 1),
        ("zone=nosuch&zone=default", 1),
        ("pool=default&zone=default", 1),
        ("not_in_zone=nosuch", 1),
        ("not_in_pool=default&not_in_pool=nosuch", 0),
        ("cpu_count=2&cpu_count=4", 1),
        ("cpu_count=4.0", 1),
        ("mem=1024.5", 0),
        ("mem=512&cpu_count=1&link_speed=10&arch=amd64&status=new", 1),
        ("subnets=lab&not_vlans=untagged", 0),
        ("bridge_all=true&comment=x&agent_name=", 1),
    ] {
        let answer = region
            .get(&format!("machines/?{}", query.replace("ID", id)))
            .await;
        let list = answer.json();
        assert_eq!(list.as_array().unwrap().len(), found, "{query}");
    }
    for query in [
        "status=new&status=odd",
        "mac_address=52:54:00:00:00:01&mac_address=odd",
        "cpu_count=many",
        "mem=NaN",
        "link_speed=inf",
        "not_status=odd",
        "power_state=perhaps",
        "subnets=lab&subnets=nosuch",
        "not_vlans=nosuch",
        "hostnames=m1",
        "not_cpu_count=4",
        "Hostname=m1",
    ] {
        let answer = region.get(&format!("machines/?{query}")).await;
        assert_eq!(answer.status, 400, "{query}: {}", answer.text);
    }
}
