//! Who is who: what strangers and users may do to machines, their cards and their addresses.

mod support;

use api::Attestation;
use model::{Mac, SystemId};
use serde_json::{Value, json};
use store::inventory::{BootInterface, Interface, Inventory};
use support::{Answer, Region};

const FORM: &str = "application/x-www-form-urlencoded";
const OWN: &str = "52:54:00:00:00:01";

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

async fn region() -> Region {
    let region = Region::start().await;
    region.rack("rack1", "rack01", "10.0.0.1/24").await;
    region
}

/// A request without a signature, through a rack that knows this card.
async fn stranger(
    region: &mut Region,
    card: Option<&str>,
    last: u8,
    method: &str,
    path: &str,
    body: &str,
) -> Answer {
    region.attestation = Some(Attestation {
        rack: "rack01".into(),
        client_address: [10, 0, 0, last].into(),
        client_mac: card.map(mac),
        vlan: None,
    });
    let answer = region.call(None, method, path, FORM, body.to_owned()).await;
    region.attestation = None;
    answer
}

async fn enlist(region: &mut Region, card: &str, more: &str) -> Answer {
    let body = format!("architecture=amd64/generic{more}");
    stranger(region, Some(card), 50, "POST", "machines/", &body).await
}

async fn create(region: &Region, card: &str) -> Answer {
    let body = format!(
        "architecture=amd64/generic&power_type=manual&commission=false&mac_addresses={card}"
    );
    region.post("machines/", &body).await
}

async fn rows(region: &Region, sql: &'static str) -> i64 {
    sqlx::query_scalar(sql)
        .fetch_one(&region.db.pool)
        .await
        .unwrap()
}

async fn macs(region: &Region, id: &str) -> Vec<String> {
    let machine = region.get(&format!("machines/{id}/")).await.json();
    let set = machine["interface_set"].as_array().unwrap();
    set.iter()
        .map(|card| card["mac_address"].as_str().unwrap().to_owned())
        .collect()
}

/// What a commissioning that booted from `boot` found.
async fn commissioned(region: &Region, id: &str, boot: &str, cards: &[&str]) -> Vec<Mac> {
    let interfaces = (0..).zip(cards).map(|(n, card)| Interface {
        name: format!("eth{n}"),
        mac: mac(card),
        link_connected: true,
        interface_speed: 0,
        link_speed: 0,
        vendor: None,
        product: None,
        firmware_version: None,
        numa_node: 0,
        addresses: Vec::new(),
    });
    let inventory = Inventory {
        interfaces: interfaces.collect(),
        ..Inventory::default()
    };
    let boot = BootInterface {
        mac: Some(mac(boot)),
        vlan: None,
    };
    let id: SystemId = id.parse().unwrap();
    let mut tx = region.db.pool.begin().await.unwrap();
    let left = store::inventory::replace(&mut tx, &id, &inventory, boot)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    left
}

#[tokio::test]
async fn without_an_attested_card_nothing_is_created_and_nothing_told() {
    let mut region = region().await;
    create(&region, OWN).await.json();
    let body = format!("architecture=amd64/generic&mac_addresses={OWN}");
    let registered = format!("machines/?op=is_registered&mac_address={OWN}");
    for (what, answer, status) in [
        (
            "directly",
            region
                .call(None, "POST", "machines/", FORM, body.clone())
                .await,
            401,
        ),
        (
            "directly, asked",
            region.call(None, "GET", &registered, "", "").await,
            401,
        ),
        (
            "no card",
            stranger(&mut region, None, 50, "POST", "machines/", &body).await,
            403,
        ),
        (
            "no card, asked",
            stranger(&mut region, None, 50, "GET", &registered, "").await,
            403,
        ),
        (
            "another's card, asked",
            stranger(
                &mut region,
                Some("52:54:00:00:00:02"),
                50,
                "GET",
                &registered,
                "",
            )
            .await,
            403,
        ),
    ] {
        assert_eq!(answer.status.as_u16(), status, "{what}: {}", answer.text);
        assert!(
            !answer.text.contains("system_id") && answer.text != "true",
            "{what}"
        );
    }
    assert_eq!(rows(&region, "select count(*) from machine").await, 1);
    let own = stranger(&mut region, Some(OWN), 50, "GET", &registered, "").await;
    assert_eq!(own.json(), json!(true), "of its own card it is told");
    assert_eq!(
        region.get(&registered).await.json(),
        json!(true),
        "users are told of all"
    );
}

#[tokio::test]
async fn the_answer_to_one_that_enlists_is_who_it_is_and_no_more() {
    let mut region = region().await;
    let known = create(&region, OWN).await.json();
    for card in [OWN, "52:54:00:00:00:02"] {
        let answer = enlist(&mut region, card, "").await.json();
        let mut names: Vec<&String> = answer.as_object().unwrap().keys().collect();
        names.sort();
        assert_eq!(names, ["resource_uri", "system_id"]);
        let is_known = answer["system_id"] == known["system_id"];
        assert_eq!(is_known, card == OWN);
    }
}

#[tokio::test]
async fn only_the_attested_card_is_bound_and_hints_keep_no_administrator_out() {
    let mut region = region().await;
    let hints =
        "&mac_addresses=52:54:00:00:00:02&mac_addresses=52:54:00:00:00:03&mac_addresses=bad";
    let made = enlist(&mut region, OWN, hints).await.json();
    assert_eq!(
        macs(&region, made["system_id"].as_str().unwrap()).await,
        [OWN]
    );
    create(&region, "52:54:00:00:00:02").await.json();
    let events = region
        .get("events/?op=query&type=MACHINE_ENLISTED")
        .await
        .json();
    let text = events["events"][0]["description"].as_str().unwrap();
    assert!(text.contains("52:54:00:00:00:03"), "{text}");
}

#[tokio::test]
async fn a_card_that_another_machine_has_is_left_out_and_told() {
    let mut region = region().await;
    create(&region, "02:00:00:00:00:bc").await.json();
    let made = enlist(&mut region, OWN, "&mac_addresses=02:00:00:00:00:bc")
        .await
        .json();
    let id = made["system_id"].as_str().unwrap();
    assert_eq!(macs(&region, id).await, [OWN]);
    let events = region
        .get(&format!("events/?op=query&id={id}"))
        .await
        .json()
        .to_string();
    assert!(
        events.contains("CARD_SHARED") && events.contains("02:00:00:00:00:bc"),
        "{events}"
    );
}

#[tokio::test]
async fn a_stranger_chooses_no_power_driver_no_name_and_no_uuid() {
    let mut region = region().await;
    let more = "&power_type=webhook&power_parameters_power_on_uri=http://10.9.9.9/on&hostname=db1&domain=evil.example\
        &power_parameters_power_off_uri=http://10.9.9.9/off&power_parameters_power_query_uri=http://10.9.9.9/query\
        &hardware_uuid=ec2d31c6-0b1a-4b39-9c53-6bba1dbf7e6d&description=x&commission=true";
    let made = enlist(&mut region, OWN, more).await.json();
    let path = format!("machines/{}/", made["system_id"].as_str().unwrap());
    let machine = region.get(&path).await.json();
    assert_eq!(
        (
            &machine["power_type"],
            &machine["hardware_uuid"],
            &machine["description"],
            &machine["status_name"]
        ),
        (&json!(""), &Value::Null, &json!(""), &json!("New"))
    );
    assert!(
        machine["hostname"]
            .as_str()
            .unwrap()
            .starts_with("machine-"),
        "{}",
        machine["hostname"]
    );
    assert_eq!(machine["domain"]["name"], "maas");
    assert_eq!(rows(&region, "select count(*) from bmc").await, 0);
    // What a reader asks reaches nobody.
    let user = region.user.clone();
    let state = region
        .call(
            Some(&user),
            "GET",
            &format!("{path}?op=query_power_state"),
            "",
            "",
        )
        .await;
    assert_eq!(state.json(), json!({"state": "unknown"}));
    assert_eq!(rows(&region, "select count(*) from work").await, 0);
}

#[tokio::test]
async fn one_address_enlists_few_machines_and_others_go_on() {
    let mut region = region().await;
    for n in 0..8 {
        enlist(&mut region, &format!("52:54:00:00:01:{n:02x}"), "")
            .await
            .json();
    }
    enlist(&mut region, "52:54:00:00:01:ff", "")
        .await
        .refused(503, "from this address");
    assert_eq!(
        region
            .app
            .counters()
            .enlistments_refused
            .load(std::sync::atomic::Ordering::Relaxed),
        1
    );
    let body = "architecture=amd64/generic";
    stranger(
        &mut region,
        Some("52:54:00:00:01:ff"),
        51,
        "POST",
        "machines/",
        body,
    )
    .await
    .json();
    // One that is known already is answered all the same.
    enlist(&mut region, "52:54:00:00:01:00", "").await.json();
}

/// Machines that enlisted at address 10.0.0.`last` long ago.
async fn waiting(region: &Region, prefix: &'static str, count: i32, last: u8) {
    sqlx::query(
        "insert into machine (system_id, hostname, enlisted_rack, enlisted_address, created, updated)
         select $1 || lpad(n::text, 5, '0'), $1 || n, 'rack01', ('10.0.0.' || $3)::inet, at, at
         from generate_series(1, $2) n, lateral (select now() - interval '1 hour' + n * interval '1 ms' as at) a",
    )
    .bind(prefix)
    .bind(count)
    .bind(i32::from(last))
    .execute(&region.db.pool)
    .await
    .unwrap();
}

/// One host with as many cards and leases as it likes fills the network; real machines enlist all the same.
#[tokio::test]
async fn machines_that_nobody_took_up_make_room_the_oldest_of_the_heaviest_address_first() {
    let mut region = region().await;
    waiting(&region, "o", 2, 60).await;
    waiting(&region, "f", 4_094, 61).await;
    // Somebody looked after one of the flood.
    sqlx::query("update machine set description = 'mine', updated = now() where hostname = 'f1'")
        .execute(&region.db.pool)
        .await
        .unwrap();
    for n in 0..2 {
        enlist(&mut region, &format!("52:54:00:00:01:{n:02x}"), "")
            .await
            .json();
    }
    let left: Vec<String> = sqlx::query_scalar(
        "select hostname from machine where hostname in ('o1', 'o2', 'f1', 'f2', 'f3', 'f4') order by 1",
    )
    .fetch_all(&region.db.pool)
    .await
    .unwrap();
    assert_eq!(left, ["f1", "f4", "o1", "o2"]);
    assert_eq!(rows(&region, "select count(*) from machine").await, 4_096);
    let told = "select count(*) from event where type = 'ENLISTED_GONE'";
    assert_eq!(rows(&region, told).await, 2);
    // Where somebody looked after all of them nothing goes.
    sqlx::query("update machine set updated = now() + interval '1 s'")
        .execute(&region.db.pool)
        .await
        .unwrap();
    enlist(&mut region, "52:54:00:00:01:77", "")
        .await
        .refused(503, "wait to be accepted");
    assert_eq!(rows(&region, "select count(*) from machine").await, 4_096);
}

#[tokio::test]
async fn a_card_that_only_an_inventory_names_keeps_nobody_out() {
    let mut region = region().await;
    let first = create(&region, OWN).await.json()["system_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let reported: Vec<String> = (0..200)
        .map(|n| format!("52:54:00:00:02:{n:02x}"))
        .collect();
    let mut cards = vec![OWN];
    cards.extend(reported.iter().map(String::as_str));
    assert!(commissioned(&region, &first, OWN, &cards).await.is_empty());
    assert_eq!(macs(&region, &first).await.len(), 201);
    // An administrator's machine gets one, and a machine that shows one.
    let second = create(&region, &reported[0]).await.json();
    assert_eq!(
        macs(&region, second["system_id"].as_str().unwrap()).await,
        [reported[0].as_str()]
    );
    let third = enlist(&mut region, &reported[1], "").await.json();
    assert_ne!(third["system_id"], first);
    assert_eq!(macs(&region, &first).await.len(), 199);
    let events = region
        .get(&format!("events/?op=query&id={first}&type=CARD_SHARED"))
        .await
        .json();
    assert_eq!(events["count"], 2, "{events}");
    // The first one's next inventory does not take them back.
    let left = commissioned(&region, &first, OWN, &cards).await;
    assert_eq!(left, [mac(&reported[0]), mac(&reported[1])]);
    // What it booted from is its own for good.
    create(&region, OWN).await.refused(400, "mac_addresses");
}

#[tokio::test]
async fn a_user_reserves_no_address_for_a_machines_card() {
    let region = region().await;
    region.post("subnets/", "cidr=10.20.0.0/24").await.json();
    let id = create(&region, OWN).await.json()["system_id"]
        .as_str()
        .unwrap()
        .to_owned();
    commissioned(&region, &id, OWN, &[OWN, "52:54:00:00:00:02"]).await;
    let user = region.user.clone();
    let reserve = async |card: &str| {
        let body = format!("subnet=10.20.0.0/24&mac={card}");
        region
            .call(Some(&user), "POST", "ipaddresses/?op=reserve", FORM, body)
            .await
    };
    for card in [OWN, "52:54:00:00:00:02"] {
        reserve(card)
            .await
            .refused(403, "an administrator reserves");
    }
    assert_eq!(rows(&region, "select count(*) from reserved_ip").await, 0);
    reserve("52:54:00:00:00:03").await.json();
    let body = format!("subnet=10.20.0.0/24&mac={OWN}");
    region.post("ipaddresses/?op=reserve", &body).await.json();
}

#[tokio::test]
async fn a_users_reservation_loses_the_card_that_turns_out_to_be_a_machines() {
    let mut region = region().await;
    region.post("subnets/", "cidr=10.20.0.0/24").await.json();
    let user = region.user.clone();
    let cards = [
        OWN,
        "52:54:00:00:00:02",
        "52:54:00:00:00:03",
        "52:54:00:00:00:04",
    ];
    for card in cards {
        let body = format!("subnet=10.20.0.0/24&mac={card}");
        region
            .call(Some(&user), "POST", "ipaddresses/?op=reserve", FORM, body)
            .await
            .json();
    }
    let admins = "subnet=10.20.0.0/24&mac=52:54:00:00:00:05";
    region.post("ipaddresses/?op=reserve", admins).await.json();
    let before = rows(
        &region,
        "select count(*) from change where kind = 'reservation'",
    )
    .await;
    // By an administrator, by enlisting, and by booting from it.
    let id = create(&region, OWN).await.json()["system_id"]
        .as_str()
        .unwrap()
        .to_owned();
    enlist(&mut region, cards[1], "").await.json();
    let all = [OWN, cards[2], "52:54:00:00:00:05"];
    commissioned(&region, &id, OWN, &all).await;
    let reserved = "select count(*) from reserved_ip where mac = '52:54:00:00:00:03'";
    assert_eq!(
        rows(&region, reserved).await,
        1,
        "a mere report takes nothing"
    );
    commissioned(&region, &id, cards[2], &all).await;
    let left: Vec<String> =
        sqlx::query_scalar("select mac::text from reserved_ip where mac is not null order by mac")
            .fetch_all(&region.db.pool)
            .await
            .unwrap();
    assert_eq!(
        left,
        [cards[3], "52:54:00:00:00:05"],
        "nobody's, and an administrator's"
    );
    assert_eq!(
        rows(&region, "select count(*) from reserved_ip").await,
        5,
        "the addresses stay theirs"
    );
    let told = rows(
        &region,
        "select count(*) from change where kind = 'reservation'",
    )
    .await
        - before;
    assert_eq!(told, 3, "racks are told");
    assert_eq!(
        rows(
            &region,
            "select count(*) from event where type = 'RESERVATION_TAKEN'"
        )
        .await,
        3
    );
}

#[tokio::test]
async fn a_preseed_asked_for_without_end_is_few_events() {
    let mut region = region().await;
    let id = create(&region, OWN).await.json()["system_id"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("/MAAS/metadata/latest/by-id/{id}/?op=get_preseed");
    let count = async |region: &Region, kind: &str| -> i64 {
        let sql = "select count(*) from event where type = $1";
        sqlx::query_scalar(sql)
            .bind(kind)
            .fetch_one(&region.db.pool)
            .await
            .unwrap()
    };
    region.attestation = Some(Attestation {
        rack: "rack01".into(),
        client_address: [10, 0, 0, 5].into(),
        client_mac: Some(mac(OWN)),
        vlan: None,
    });
    let preseed = async |region: &Region| {
        let request = http::Request::get(&path).header("host", "10.0.0.1:5248");
        region
            .send(request.body(axum::body::Body::empty()).unwrap())
            .await
    };
    for _ in 0..20 {
        preseed(&region).await.refused(403, "not expected to boot");
    }
    assert_eq!(count(&region, "PRESEED_REFUSED").await, 1);
    region
        .post(&format!("machines/{id}/?op=commission"), "")
        .await
        .json();
    for _ in 0..20 {
        let answer = preseed(&region).await;
        assert!(answer.text.contains("token_key"), "{}", answer.text);
    }
    assert_eq!(count(&region, "PRESEED_SERVED").await, 1);
}

#[tokio::test]
async fn a_user_is_given_no_address_of_a_bmc_a_region_or_a_dhcp_server() {
    let region = region().await;
    region.post("subnets/", "cidr=10.20.0.0/28").await.json();
    for sql in [
        "insert into bmc (power_type, address) values ('ipmi', '10.20.0.1'), ('ipmi', '10.20.0.9')",
        "insert into region_process (id, hostname, pid, addresses, rpc_port, rack_http_port)
         values (gen_random_uuid(), 'r', 1, '{10.20.0.2}', 5250, 5251)",
        "update vlan set external_dhcp = '10.20.0.3'",
    ] {
        sqlx::query(sql).execute(&region.db.pool).await.unwrap();
    }
    let user = region.user.clone();
    let reserve = async |body: &str| {
        let path = "ipaddresses/?op=reserve";
        region
            .call(Some(&user), "POST", path, FORM, body.to_owned())
            .await
    };
    for last in [1, 2, 3, 9] {
        reserve(&format!("ip=10.20.0.{last}&mac=02:00:00:00:00:09"))
            .await
            .refused(404, "already in use");
    }
    let first = reserve("subnet=10.20.0.0/28").await.json();
    assert_eq!(first["ip"], "10.20.0.4");
}
