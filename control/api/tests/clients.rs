//! What the `maas` command, python-libmaas and the Go clients need of names, descriptions and paths.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::body::Body;
use support::Region;
use tracing_subscriber::layer::{Context, SubscriberExt};

/// MAAS 3.8's handlers (urls_api.py), as far as there are such here.
const HANDLERS: [&str; 34] = [
    "AccountHandler",
    "BootResourceFileUploadHandler",
    "BootResourceHandler",
    "BootResourcesHandler",
    "DevicesHandler",
    "DomainHandler",
    "DomainsHandler",
    "EventsHandler",
    "FabricHandler",
    "FabricsHandler",
    "IPAddressesHandler",
    "IPRangeHandler",
    "IPRangesHandler",
    "MachineHandler",
    "MachinesHandler",
    "NodeScriptResultHandler",
    "NodeScriptResultsHandler",
    "RackControllerHandler",
    "RackControllersHandler",
    "ReservedIpHandler",
    "ReservedIpsHandler",
    "ResourcePoolHandler",
    "ResourcePoolsHandler",
    "SpacesHandler",
    "StaticRoutesHandler",
    "SubnetHandler",
    "SubnetsHandler",
    "TagsHandler",
    "UserHandler",
    "UsersHandler",
    "VersionHandler",
    "VlanHandler",
    "VlansHandler",
    "ZoneHandler",
];
const MORE_HANDLERS: [&str; 1] = ["ZonesHandler"];
/// What MAAS has not.
const OURS: [&str; 4] = [
    "DhcpHandler",
    "DhcpOptionHandler",
    "DhcpOptionsHandler",
    "LeasesHandler",
];

#[tokio::test]
async fn handlers_are_named_as_in_maas() {
    let region = Region::start().await;
    let described = region.get("describe/").await.json();
    for resource in described["resources"].as_array().unwrap() {
        let name = resource["name"].as_str().unwrap();
        assert!(
            HANDLERS.contains(&name) || MORE_HANDLERS.contains(&name) || OURS.contains(&name),
            "{name}: not MAAS's name, nor said to be ours"
        );
    }
}

/// The command takes what precedes the first `:param` for the title, and the parameters from what follows.
#[tokio::test]
async fn no_description_begins_with_its_parameters() {
    let region = Region::start().await;
    let described = region.get("describe/").await.json();
    let mut count = 0;
    for handler in described["handlers"].as_array().unwrap() {
        for action in handler["actions"].as_array().unwrap() {
            let doc = action["doc"].as_str().expect("a text");
            let name = format!("{} {}", handler["name"], action["name"]);
            assert!(!doc.trim_start().starts_with(':'), "{name}");
            if let Some((title, _)) = doc.split_once(":param") {
                assert!(title.ends_with("\n\n") && title.len() > 4, "{name}");
            }
            count += 1;
        }
    }
    assert!(count > 60, "{count} actions");
}

#[tokio::test]
async fn networks_are_found_by_every_name_of_maas() {
    let region = Region::start().await;
    let fabric = region.post("fabrics/", "name=red").await.json();
    region
        .post("fabrics/red/vlans/", "vid=10&name=prod")
        .await
        .json();
    let subnet = region
        .post(
            "subnets/",
            "cidr=10.20.0.0/24&name=lab&fabric=name:red&vid=10",
        )
        .await
        .json();
    let six = region
        .post("subnets/", "cidr=fd00:20::/64&fabric=red&vlan=prod")
        .await
        .json();
    let id = &subnet["id"];
    for path in [
        "subnets/lab/".to_owned(),
        "subnets/name:lab/".to_owned(),
        format!("subnets/{id}/"),
        format!("subnets/id:{id}"),
        "subnets/10.20.0.0%2F24/".to_owned(),
        "subnets/10.20.0.0/24/".to_owned(),
        "subnets/10.20.0.0/24".to_owned(),
        "subnets/cidr:10.20.0.0/24/".to_owned(),
        "subnets/cidr%3A10.20.0.0%2F24/".to_owned(),
        "subnets/ip:10.20.0.7/".to_owned(),
    ] {
        assert_eq!(region.get(&path).await.json()["id"], *id, "{path}");
    }
    for path in ["subnets/fd00:20::/64/", "subnets/cidr:fd00:20::%2F64/"] {
        assert_eq!(region.get(path).await.json()["id"], six["id"], "{path}");
    }
    let free = region
        .get("subnets/10.20.0.0/24/?op=unreserved_ip_ranges")
        .await;
    assert_eq!(free.json()[0]["start"], "10.20.0.1");
    let free = region
        .get("subnets/10.20.0.0/24/op-unreserved_ip_ranges")
        .await;
    assert_eq!(free.json()[0]["start"], "10.20.0.1");
    // Several are meant: none is chosen.
    region
        .get("subnets/vid:10/")
        .await
        .refused(400, "More than one Subnet");
    region
        .delete("subnets/vid:10/")
        .await
        .refused(400, "More than one Subnet");
    region
        .get("subnets/nosuch/")
        .await
        .refused(404, "No Subnet");
    for path in ["fabrics/red/", "fabrics/name:red/", "fabrics/0/"] {
        assert_eq!(region.get(path).await.json()["id"], fabric["id"], "{path}");
    }
    let vlan = &subnet["vlan"]["id"];
    for path in [
        "fabrics/red/vlans/10/".to_owned(),
        "fabrics/0/vlans/prod/".to_owned(),
        "fabrics/red/vlans/vid:10/".to_owned(),
        format!("vlans/{vlan}/"),
    ] {
        assert_eq!(region.get(&path).await.json()["id"], *vlan, "{path}");
    }
    assert_eq!(
        region.get("fabrics/red/vlans/").await.json()[1]["id"],
        *vlan
    );
    // In bodies, too.
    let range = region
        .post(
            "ipranges/",
            "type=reserved&start_ip=10.20.0.5&end_ip=10.20.0.6&subnet=cidr:10.20.0.0/24",
        )
        .await
        .json();
    assert_eq!(range["subnet"]["id"], *id);
    let reserved = region
        .post(
            "reservedips/",
            "ip=10.20.0.9&mac_address=52:54:00:00:00:01&subnet=cidr:10.20.0.0/24",
        )
        .await
        .json();
    assert_eq!(reserved["subnet"]["id"], *id);
}

//---------------------------------------------------------------- what a request costs

struct Statements(Arc<AtomicUsize>);

impl<S: tracing::Subscriber> tracing_subscriber::Layer<S> for Statements {
    fn on_event(&self, event: &tracing::Event<'_>, _: Context<'_, S>) {
        if event.metadata().target() == "sqlx::query" {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}

async fn fill(region: &Region, statement: &'static str) {
    sqlx::query(statement)
        .execute(&region.db.pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn no_list_asks_row_by_row() {
    let region = Region::start().await;
    fill(
        &region,
        "with m as (insert into machine (system_id, hostname)
                    select 'm' || lpad(n::text, 5, '0'), 'node' || n from generate_series(1, 50) n returning system_id),
              b as (insert into bmc (power_type) select 'manual' from generate_series(1, 50) returning id)
         select 1 from m, b",
    )
    .await;
    fill(
        &region,
        "update machine m set bmc_id = b.id
         from (select id, row_number() over (order by id) as n from bmc) b where 'node' || b.n = m.hostname",
    )
    .await;
    fill(
        &region,
        "with r as (insert into rack (system_id, hostname)
                    select 'r' || lpad(n::text, 5, '0'), 'rack' || n from generate_series(1, 50) n returning system_id)
         insert into rack_interface select system_id, 'eth0', null, '{10.20.0.1/24}' from r",
    )
    .await;
    region.post("subnets/", "cidr=10.20.0.0/24").await.json();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = tracing_subscriber::registry().with(Statements(count.clone()));
    let _guard = tracing::subscriber::set_default(counting);
    for (path, most) in [
        ("machines/?op=power_parameters", 4),
        ("rackcontrollers/", 6),
        ("machines/", 13),
    ] {
        count.store(0, Ordering::Relaxed);
        let answer = region.get(path).await.json();
        let found = answer
            .as_array()
            .map_or_else(|| answer.as_object().unwrap().len(), Vec::len);
        assert_eq!(found, 50, "{path}");
        let statements = count.load(Ordering::Relaxed);
        assert!(
            (1..=most).contains(&statements),
            "{path}: {statements} statements"
        );
    }
    // An address of a rack's is looked for in one statement, however many racks there are.
    count.store(0, Ordering::Relaxed);
    region
        .post(
            "ipranges/",
            "type=dynamic&start_ip=10.20.0.1&end_ip=10.20.0.9",
        )
        .await
        .refused(400, "of the rack");
    let statements = count.load(Ordering::Relaxed);
    assert!((1..=14).contains(&statements), "{statements} statements");
}

/// The list of a machine's script sets is one query of results, however many sets there are.
#[tokio::test]
async fn results_of_all_sets_are_one_query() {
    let region = Region::start().await;
    fill(
        &region,
        "with m as (insert into machine (system_id, hostname) values ('abc123', 'node') returning system_id),
              s as (insert into script_set (machine, type, boot_id)
                    select system_id, kind, gen_random_uuid()
                    from m, unnest(array['commissioning', 'testing', 'release', 'deployment']) kind,
                         generate_series(1, 10) returning id)
         insert into script_result (set_id, name) select id, 'script-' || n from s, generate_series(1, 5) n",
    )
    .await;
    let count = Arc::new(AtomicUsize::new(0));
    let counting = tracing_subscriber::registry().with(Statements(count.clone()));
    let _guard = tracing::subscriber::set_default(counting);
    let sets = region.get("nodes/abc123/results/").await.json();
    let sets = sets.as_array().unwrap();
    assert_eq!(sets.len(), 40);
    for set in sets {
        let results = set["results"].as_array().unwrap();
        let names: Vec<&str> = results
            .iter()
            .map(|one| one["name"].as_str().unwrap())
            .collect();
        assert_eq!(
            names,
            ["script-1", "script-2", "script-3", "script-4", "script-5"]
        );
    }
    let statements = count.load(Ordering::Relaxed);
    assert!((1..=5).contains(&statements), "{statements} statements");
}

/// Lists that anybody with a key may ask for, each of a few statements however much there is.
#[tokio::test]
async fn every_list_is_a_few_statements() {
    let region = Region::start().await;
    for statement in [
        "insert into fabric (name) select 'f' || n from generate_series(1, 40) n",
        "insert into vlan (fabric_id, vid, name) select id, 7, 'v7' from fabric where name like 'f%'",
        "insert into subnet (vlan_id, cidr, name)
         select id, ('10.' || row_number() over () || '.0.0/16')::cidr, 's' || id from vlan where vid = 7",
        "insert into iprange (subnet_id, type, start_ip, end_ip)
         select id, 'reserved', cidr + 10, cidr + 20 from subnet",
        "insert into reserved_ip (subnet_id, ip, mac)
         select id, cidr + 30, ('5254' || lpad(to_hex(id), 8, '0'))::macaddr from subnet",
        "insert into rack (system_id, hostname) select 'r' || lpad(n::text, 5, '0'), 'rack' || n from generate_series(1, 40) n",
        "insert into rack_interface select system_id, 'eth0', null, '{10.1.0.1/16}' from rack",
        "insert into account (username, email, password_hash, is_admin)
         select 'u' || n, '', '!', false from generate_series(1, 40) n",
        "insert into domain (name) select 'd' || n from generate_series(1, 40) n",
        "insert into machine (system_id, hostname, domain, owner_id)
         select 'm' || lpad(n::text, 5, '0'), 'node' || n, 'd' || n,
                (select id from account where username = 'u' || n) from generate_series(1, 40) n",
        "insert into interface (machine, name, mac, vlan_id)
         select system_id, 'eth0', ('5255' || lpad(to_hex(row_number() over ()), 8, '0'))::macaddr,
                (select min(id) from vlan where vid = 7) from machine",
        "insert into library_file (sha256, size_bytes, piece_bytes, complete)
         select decode(lpad(to_hex(n), 64, '0'), 'hex'), 1, 1, true from generate_series(1, 40) n",
        "insert into boot_resource (osystem, release, architecture) select 'os', 'r' || n, 'amd64' from generate_series(1, 40) n",
        "insert into boot_resource_file (resource_id, filetype, sha256)
         select id, 'squashfs', decode(lpad(to_hex(1), 64, '0'), 'hex') from boot_resource",
        "insert into event (type, level, at, machine, description)
         select 'MACHINE_CREATED', 20, now(), system_id, '' from machine",
    ] {
        fill(&region, statement).await;
    }
    let described = region.get("describe/").await.json();
    let count = Arc::new(AtomicUsize::new(0));
    let counting = tracing_subscriber::registry().with(Statements(count.clone()));
    let _guard = tracing::subscriber::set_default(counting);
    let (mut lists, mut too_many) = (0, Vec::new());
    for handler in described["handlers"].as_array().unwrap() {
        if !handler["params"].as_array().unwrap().is_empty() {
            continue;
        }
        for action in handler["actions"].as_array().unwrap() {
            if action["method"] != "GET" {
                continue;
            }
            let path = handler["path"].as_str().unwrap();
            let op = action["op"]
                .as_str()
                .map_or(String::new(), |op| format!("?op={op}"));
            count.store(0, Ordering::Relaxed);
            let answer = region.get(&format!("{path}{op}")).await;
            let statements = count.load(Ordering::Relaxed);
            if statements > 13 {
                too_many.push(format!("{path}{op}: {statements}"));
            }
            lists += usize::from(answer.status.is_success());
        }
    }
    assert_eq!(too_many, Vec::<String>::new());
    assert!(lists >= 20, "{lists} lists");
}

/// 20,000 leases: nobody holds them all in memory.
#[tokio::test]
async fn a_long_list_of_addresses_comes_in_pieces() {
    let region = Region::start().await;
    region
        .post("subnets/", "cidr=10.20.0.0/16&name=lab")
        .await
        .json();
    fill(
        &region,
        "insert into lease (address, vlan_id, client_kind, client_key, mac, ends, granted)
         select '10.20.0.0'::inet + n, 5001, 0, decode('5254' || lpad(to_hex(n), 8, '0'), 'hex'),
                ('5254' || lpad(to_hex(n), 8, '0'))::macaddr, now() + interval '1 hour', now()
         from generate_series(1, 20000) n",
    )
    .await;
    let macs: Vec<String> = (1..=8)
        .map(|n| format!("mac_addresses=52:54:00:00:00:0{n}"))
        .collect();
    region
        .post(
            "machines/",
            &format!("architecture=amd64&{}", macs.join("&")),
        )
        .await
        .json();
    let machine = region.get("machines/").await.json();
    assert_eq!(machine[0]["ip_addresses"].as_array().unwrap().len(), 8);

    let request = http::Request::builder()
        .uri("/MAAS/api/2.0/ipaddresses/")
        .header("authorization", region.signature(&region.admin))
        .body(Body::empty())
        .unwrap();
    let answer = tower::ServiceExt::oneshot(region.router.clone(), request)
        .await
        .unwrap();
    let mut pieces = answer.into_body().into_data_stream();
    let (mut all, mut largest, mut count) = (Vec::new(), 0, 0);
    while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
        let piece = piece.unwrap();
        largest = largest.max(piece.len());
        count += 1;
        all.extend_from_slice(&piece);
    }
    let list: serde_json::Value = serde_json::from_slice(&all).unwrap();
    let list = list.as_array().unwrap();
    let mut addresses: Vec<&str> = list.iter().map(|one| one["ip"].as_str().unwrap()).collect();
    assert_eq!((addresses.len(), addresses[0]), (20_000, "10.20.0.1"));
    addresses.sort_unstable();
    addresses.dedup();
    assert_eq!(addresses.len(), 20_000, "none is told twice");
    assert!(
        largest < 1 << 20 && count >= 40,
        "{count} pieces, {largest} octets"
    );
}

/// More than 100,000, where it once ended without a word.
#[tokio::test]
async fn a_very_long_list_of_addresses_is_whole() {
    let region = Region::start().await;
    region
        .post("subnets/", "cidr=10.64.0.0/10&name=lab")
        .await
        .json();
    fill(
        &region,
        "insert into lease (address, vlan_id, client_kind, client_key, mac, ends, granted)
         select '10.64.0.0'::inet + n, 5001, 0, decode('5254' || lpad(to_hex(n), 8, '0'), 'hex'),
                ('5254' || lpad(to_hex(n), 8, '0'))::macaddr, now() + interval '1 hour', now()
         from generate_series(1, 100777) n",
    )
    .await;
    let request = http::Request::builder()
        .uri("/MAAS/api/2.0/ipaddresses/")
        .header("authorization", region.signature(&region.admin))
        .body(Body::empty())
        .unwrap();
    let answer = tower::ServiceExt::oneshot(region.router.clone(), request)
        .await
        .unwrap();
    let held = || {
        let places = region.app.places();
        places
            .iter()
            .find(|place| place.name == "result_readers")
            .unwrap()
            .held
    };
    assert_eq!(held(), 1, "a long list is read in a place");
    let mut pieces = answer.into_body().into_data_stream();
    let mut count = 0;
    while let Some(piece) = futures::StreamExt::next(&mut pieces).await {
        count += String::from_utf8_lossy(&piece.unwrap())
            .matches("\"mac_address\":")
            .count();
    }
    assert_eq!(count, 100_777);
    drop(pieces);
    assert_eq!(held(), 0);
}

/// Of any length.
#[tokio::test]
async fn a_short_list_of_addresses_is_a_list() {
    let region = Region::start().await;
    region
        .post("subnets/", "cidr=10.20.0.0/24&name=lab")
        .await
        .json();
    for path in ["ipaddresses/", "subnets/lab/?op=ip_addresses"] {
        assert_eq!(region.get(path).await.text, "[]", "{path}");
    }
    region
        .post("ipaddresses/?op=reserve", "ip=10.20.0.9")
        .await
        .json();
    for path in ["ipaddresses/", "subnets/lab/?op=ip_addresses"] {
        let list = region.get(path).await.json();
        assert_eq!(list.as_array().unwrap().len(), 1, "{path}");
        assert_eq!(list[0]["owner"]["username"], "admin", "{path}");
    }
    let path = "subnets/lab/?op=ip_addresses&with_username=false";
    assert!(region.get(path).await.json()[0]["owner"].is_null());
}
