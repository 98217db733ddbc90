//! What a commissioning leaves at a machine's interfaces, and what looking its addresses up costs.

use mac_address::MacAddress;
use model::{Mac, SystemId};
use sqlx::{Connection, PgConnection};
use store::inventory::{self, BootInterface, Interface, Inventory};
use store::link;
use store::machine::{self, NewMachine};

fn mac(last: u8) -> Mac {
    Mac::new([0x52, 0x54, 0, 0, 0, last])
}

async fn create(db: &mut PgConnection, id: &str, macs: &[Mac]) -> SystemId {
    let system_id = id.parse().unwrap();
    let new = NewMachine {
        system_id,
        hostname: id,
        description: "",
        domain: "maas",
        architecture: "amd64/generic",
        min_hwe_kernel: "",
        hardware_uuid: None,
        macs,
        vlan_id: None,
    };
    machine::create(db, &new).await.unwrap();
    system_id
}

fn card(last: u8, address: Option<&str>) -> Interface {
    Interface {
        name: format!("eth{last}"),
        mac: mac(last),
        link_connected: true,
        interface_speed: 0,
        link_speed: 0,
        vendor: None,
        product: None,
        firmware_version: None,
        numa_node: 0,
        addresses: address
            .into_iter()
            .map(|text| text.parse().unwrap())
            .collect(),
    }
}

fn inventory(interfaces: Vec<Interface>) -> Inventory {
    Inventory {
        interfaces,
        ..Inventory::default()
    }
}

/// Two subnets on one VLAN; the VLAN's id.
async fn networks(db: &mut PgConnection) -> i32 {
    sqlx::query_scalar(
        "with f as (insert into fabric (name) values ('red') returning id),
              v as (insert into vlan (fabric_id, vid) select id, 0 from f returning id),
              s as (insert into subnet (id, vlan_id, name, cidr)
                    select n, v.id, 's' || n, ('10.2' || n || '.0.0/24')::cidr from v, generate_series(1, 2) n)
         select id from v",
    )
    .fetch_one(db)
    .await
    .unwrap()
}

async fn links(db: &mut PgConnection, id: &SystemId) -> Vec<(String, Option<i32>)> {
    let links = link::of_machines(db, &[id.to_string()]).await.unwrap();
    links
        .into_iter()
        .map(|link| (link.mode, link.subnet_id))
        .collect()
}

#[tokio::test]
async fn after_a_commissioning_the_boot_interface_has_its_auto_link() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let vlan = networks(&mut db).await;
    let id = create(&mut db, "abc123", &[mac(1)]).await;
    let boot = BootInterface {
        mac: Some(mac(1)),
        vlan: Some(vlan),
    };
    for (case, cards, subnet) in [
        (
            "the first subnet of its VLAN",
            vec![card(1, None), card(2, None)],
            1,
        ),
        (
            "the subnet of its address",
            vec![card(1, Some("10.22.0.9")), card(2, None)],
            2,
        ),
        (
            "again, and it is one link",
            vec![card(1, Some("10.22.0.9")), card(2, None)],
            2,
        ),
    ] {
        inventory::replace(&mut db, &id, &inventory(cards), boot)
            .await
            .unwrap();
        assert_eq!(
            links(&mut db, &id).await,
            [("auto".to_owned(), Some(subnet))],
            "{case}"
        );
    }
    // What the operator wants left alone is.
    sqlx::query("update machine set skip_networking = true")
        .execute(&mut *db)
        .await
        .unwrap();
    let cards = inventory(vec![card(1, Some("10.21.0.9")), card(2, None)]);
    inventory::replace(&mut db, &id, &cards, boot)
        .await
        .unwrap();
    assert_eq!(links(&mut db, &id).await, [("auto".to_owned(), Some(2))]);
}

/// Each names the other's card, and neither has committed: a wait for the other would be one for ever.
#[tokio::test]
async fn two_inventories_that_name_each_others_cards_do_not_wait_for_each_other() {
    let db = store::testing::database().await;
    let (one, two) = {
        let mut db = db.pool.acquire().await.unwrap();
        (
            create(&mut db, "abc123", &[mac(1)]).await,
            create(&mut db, "abc124", &[mac(2)]).await,
        )
    };
    let boot = |last| BootInterface {
        mac: Some(mac(last)),
        vlan: None,
    };
    let mut first = db.pool.begin().await.unwrap();
    let mut second = db.pool.begin().await.unwrap();
    let (of_one, of_two) = (
        inventory(vec![card(1, None), card(2, None)]),
        inventory(vec![card(2, None), card(1, None)]),
    );
    let (left, right) = tokio::join!(
        inventory::replace(&mut first, &one, &of_one, boot(1)),
        inventory::replace(&mut second, &two, &of_two, boot(2)),
    );
    assert_eq!(
        (left.unwrap(), right.unwrap()),
        (vec![mac(2)], vec![mac(1)])
    );
    first.commit().await.unwrap();
    second.commit().await.unwrap();
}

/// PostgreSQL counts the rows that were read one after the other.
#[tokio::test]
async fn the_addresses_of_many_cards_are_found_without_reading_all_leases() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    for statement in [
        "insert into lease (address, vlan_id, client_kind, client_key, mac, ends, granted)
         select '10.20.0.0'::inet + n, 5001, 0, decode('5254' || lpad(to_hex(n), 8, '0'), 'hex'),
                ('5254' || lpad(to_hex(n), 8, '0'))::macaddr, now() + interval '1 hour', now()
         from generate_series(1, 20000) n",
        "analyze lease",
    ] {
        sqlx::query(statement).execute(&mut *db).await.unwrap();
    }
    let mut tx = db.begin().await.unwrap();
    let macs: Vec<MacAddress> = (1..=200)
        .map(|last| MacAddress::new(mac(last).octets()))
        .collect();
    let found = store::lease::addresses_of_macs(&mut tx, &macs)
        .await
        .unwrap();
    assert_eq!(found.len(), 200);
    let read: i64 = sqlx::query_scalar(
        "select coalesce(seq_tup_read, 0) from pg_stat_xact_user_tables where relname = 'lease'",
    )
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    assert_eq!(read, 0);
}
