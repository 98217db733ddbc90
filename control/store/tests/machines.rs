//! Machines, BMCs and their routes, events.

use model::{EventType, Level, Mac, PowerType, SystemId};
use serde_json::json;
use sqlx::PgConnection;
use store::event::{self, NewEvent};
use store::machine::{self, Filter, MachineChange, NewMachine};
use store::seal::Sealer;
use store::{StoreError, bmc};

async fn create(db: &mut PgConnection, id: &str, macs: &[Mac]) -> Result<SystemId, StoreError> {
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
    machine::create(db, &new).await.map(|()| system_id)
}

fn mac(last: u8) -> Mac {
    Mac::new([0x52, 0x54, 0, 0, 0, last])
}

async fn told(db: &mut PgConnection) -> Vec<String> {
    sqlx::query_scalar("delete from change returning kind || ':' || key")
        .fetch_all(db)
        .await
        .unwrap()
}

#[tokio::test]
async fn racks_are_not_told_of_a_netboot_that_is_as_it_was() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let id = create(&mut db, "abc123", &[mac(1)]).await.unwrap();
    told(&mut db).await;
    for (netboot, expected) in [
        (false, &["machine:abc123"][..]),
        (false, &[]),
        (true, &["machine:abc123"]),
        (true, &[]),
    ] {
        store::lifecycle::set_netboot(&mut db, &id, netboot)
            .await
            .unwrap();
        assert_eq!(told(&mut db).await, expected, "{netboot}");
    }
}

#[tokio::test]
async fn racks_are_told_of_what_they_must_know() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let id = create(&mut db, "abc123", &[mac(1), mac(2)]).await.unwrap();
    assert_eq!(told(&mut db).await, ["machine:abc123"]);
    assert_eq!(machine::macs(&mut db, &id).await.unwrap(), [mac(1), mac(2)]);
    assert_eq!(
        machine::find_by_mac(&mut db, mac(2)).await.unwrap(),
        Some(id)
    );
    assert_eq!(machine::find_by_mac(&mut db, mac(3)).await.unwrap(), None);
    assert_eq!(
        machine::find_by_hostname(&mut db, "abc123").await.unwrap(),
        Some(id)
    );

    let change = MachineChange {
        description: Some("rack 5"),
        ..MachineChange::default()
    };
    machine::update(&mut db, &id, &change).await.unwrap();
    assert_eq!(told(&mut db).await, ["machine:abc123"]);
    let read = machine::get(&mut db, &id).await.unwrap();
    assert_eq!(
        (read.description.as_str(), read.hostname.as_str()),
        ("rack 5", "abc123")
    );
    assert_eq!((read.arch(), read.subarch()), ("amd64", "generic"));
    let first = machine::interfaces(&mut db, &["abc123".into()])
        .await
        .unwrap();
    assert_eq!(read.boot_interface_id, Some(first[0].id));
    machine::set_boot_interface(&mut db, &id, mac(2))
        .await
        .unwrap();
    machine::set_boot_interface(&mut db, &id, mac(9))
        .await
        .unwrap();
    let read = machine::get(&mut db, &id).await.unwrap();
    assert_eq!(read.boot_interface_id, Some(first[1].id));

    for (constraint, id, macs) in [
        ("machine_pkey", "abc123", &[mac(8)][..]),
        ("interface_mac_key", "abc124", &[mac(1)]),
    ] {
        let mut tx = sqlx::Connection::begin(&mut *db).await.unwrap();
        let refused = create(&mut tx, id, macs).await;
        let Err(StoreError::Constraint { constraint: found }) = refused else {
            panic!("{constraint} was not checked")
        };
        assert_eq!(found, constraint);
    }
    machine::delete(&mut db, &id).await.unwrap();
    assert_eq!(told(&mut db).await, ["machine:abc123"]);
    assert!(matches!(
        machine::get(&mut db, &id).await,
        Err(StoreError::NotFound { .. })
    ));
    assert!(machine::delete(&mut db, &id).await.is_err());
    assert_eq!(
        machine::count(&mut db, &Filter::default()).await.unwrap(),
        0
    );
}

#[tokio::test]
async fn bmc_secrets_are_sealed_to_their_row() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let sealer = Sealer::ephemeral();
    let id = create(&mut db, "abc123", &[mac(1)]).await.unwrap();
    let parameters =
        |value: serde_json::Value| PowerType::Ipmi.split(value.as_object().unwrap()).unwrap();
    let first = parameters(json!({"power_address": "10.0.0.9", "power_pass": "hush"}));
    let bmc_id = bmc::set_for_machine(&mut db, &sealer, &id, PowerType::Ipmi, &first)
        .await
        .unwrap();
    let stored = bmc::of_machine(&mut db, &id).await.unwrap().unwrap();
    assert_eq!(stored.address, Some("10.0.0.9".parse().unwrap()));
    assert!(!format!("{stored:?}{:?}", stored.parameters).contains("hush"));
    assert_eq!(
        stored.parameters_with_secrets(&sealer).unwrap()["power_pass"],
        "hush"
    );
    assert!(matches!(
        stored.parameters_with_secrets(&Sealer::ephemeral()),
        Err(StoreError::Sealed)
    ));

    sqlx::query("insert into rack (system_id, hostname) values ('rack01', 'r')")
        .execute(&mut *db)
        .await
        .unwrap();
    bmc::record_route(&mut db, bmc_id, "rack01", false)
        .await
        .unwrap();
    // The same address keeps what was learned, another one does not.
    let same = parameters(json!({"power_address": "10.0.0.9", "power_user": "root"}));
    let again = bmc::set_for_machine(&mut db, &sealer, &id, PowerType::Ipmi, &same)
        .await
        .unwrap();
    assert_eq!(again, bmc_id);
    assert_eq!(bmc::routes(&mut db, bmc_id).await.unwrap()[0].failures, 1);
    let stored = bmc::get(&mut db, bmc_id).await.unwrap();
    assert!(
        !stored
            .parameters_with_secrets(&sealer)
            .unwrap()
            .contains_key("power_pass")
    );
    let moved = parameters(json!({"power_address": "10.0.0.10"}));
    bmc::set_for_machine(&mut db, &sealer, &id, PowerType::Ipmi, &moved)
        .await
        .unwrap();
    assert_eq!(bmc::routes(&mut db, bmc_id).await.unwrap()[0].failures, 0);

    machine::delete(&mut db, &id).await.unwrap();
    assert!(bmc::get(&mut db, bmc_id).await.is_err());
}

#[tokio::test]
async fn the_best_route_comes_first() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    let sealer = Sealer::ephemeral();
    let id = create(&mut db, "abc123", &[mac(1)]).await.unwrap();
    let power = json!({"power_address": "10.0.0.9"});
    let power = PowerType::Ipmi.split(power.as_object().unwrap()).unwrap();
    let bmc_id = bmc::set_for_machine(&mut db, &sealer, &id, PowerType::Ipmi, &power)
        .await
        .unwrap();
    sqlx::raw_sql(
        "insert into rack (system_id, hostname, revoked) values
             ('far001', 'a', null), ('near01', 'b', null), ('conf01', 'c', null),
             ('gone01', 'd', now()), ('know01', 'e', null);
         insert into rack_interface values
             ('near01', 'eth0', null, '{10.0.0.1/24}'), ('far001', 'eth0', null, '{10.1.0.1/24}'),
             ('gone01', 'eth0', null, '{10.0.0.2/24}')",
    )
    .execute(&mut *db)
    .await
    .unwrap();
    sqlx::query("insert into bmc_route (bmc_id, rack, configured) values ($1, 'conf01', true)")
        .bind(bmc_id)
        .execute(&mut *db)
        .await
        .unwrap();
    bmc::record_route(&mut db, bmc_id, "know01", true)
        .await
        .unwrap();
    async fn order(db: &mut PgConnection, bmc_id: i32) -> Vec<String> {
        bmc::routes(db, bmc_id)
            .await
            .unwrap()
            .into_iter()
            .map(|route| route.rack)
            .collect()
    }
    assert_eq!(
        order(&mut db, bmc_id).await,
        ["near01", "conf01", "know01", "far001"]
    );
    bmc::record_route(&mut db, bmc_id, "near01", false)
        .await
        .unwrap();
    assert_eq!(
        order(&mut db, bmc_id).await,
        ["conf01", "know01", "far001", "near01"]
    );
    bmc::record_route(&mut db, bmc_id, "near01", true)
        .await
        .unwrap();
    assert_eq!(
        order(&mut db, bmc_id).await,
        ["near01", "conf01", "know01", "far001"]
    );
}

#[tokio::test]
async fn events_are_found_by_machine_mac_and_level() {
    let db = store::testing::database().await;
    let mut db = db.pool.acquire().await.unwrap();
    // Seen before anybody knows whose it is.
    let early = NewEvent::new(EventType::DhcpAck)
        .mac(mac(1))
        .text("10.0.0.5\0");
    let lost = NewEvent::new(EventType::PoweredOn)
        .machine(&"nobody".parse().unwrap())
        .rack("norack");
    event::record_all(&mut db, &[early, lost]).await.unwrap();
    let id = create(&mut db, "abc123", &[mac(1)]).await.unwrap();
    assert_eq!(event::adopt(&mut db, &id, &[mac(1)]).await.unwrap(), 1);
    let audit = NewEvent::new(EventType::MachineCreated)
        .machine(&id)
        .by("ada");
    event::record(&mut db, audit).await.unwrap();

    let any = event::Filter {
        limit: 10,
        ..event::Filter::default()
    };
    let cases = [
        (
            "all",
            any.clone(),
            vec!["MACHINE_CREATED", "POWERED_ON", "DHCP_ACK"],
        ),
        (
            "limited",
            event::Filter {
                limit: 1,
                ..any.clone()
            },
            vec!["MACHINE_CREATED"],
        ),
        (
            "of a machine",
            event::Filter {
                machines: vec!["abc123".into()],
                ..any.clone()
            },
            vec!["MACHINE_CREATED", "DHCP_ACK"],
        ),
        (
            "by hostname and level",
            event::Filter {
                hostnames: vec!["abc123".into()],
                level: Some(Level::Info),
                ..any.clone()
            },
            vec!["DHCP_ACK"],
        ),
        (
            "by MAC",
            event::Filter {
                macs: vec![mac(1)],
                ..any.clone()
            },
            vec!["MACHINE_CREATED", "DHCP_ACK"],
        ),
        (
            "by type",
            event::Filter {
                kinds: vec!["POWERED_ON".into()],
                ..any.clone()
            },
            vec!["POWERED_ON"],
        ),
        (
            "by user",
            event::Filter {
                username: Some("ada".into()),
                ..any.clone()
            },
            vec!["MACHINE_CREATED"],
        ),
    ];
    for (case, filter, want) in cases {
        let found = event::query(&mut db, &filter).await.unwrap();
        let kinds: Vec<&str> = found.iter().map(|event| event.kind.as_str()).collect();
        assert_eq!(kinds, want, "{case}");
    }
    let all = event::query(&mut db, &any).await.unwrap();
    assert_eq!(all[2].description, "10.0.0.5\u{fffd}");
    assert_eq!((&all[1].machine, &all[1].rack), (&None, &None));
    // The page after the oldest begins with the next one, not with the newest.
    let after = event::Filter {
        after: Some(all[2].id),
        limit: 1,
        ..any.clone()
    };
    assert_eq!(
        event::query(&mut db, &after).await.unwrap()[0].kind,
        "POWERED_ON"
    );
    let before = event::Filter {
        before: Some(all[0].id),
        limit: 1,
        ..any
    };
    assert_eq!(
        event::query(&mut db, &before).await.unwrap()[0].kind,
        "POWERED_ON"
    );
    assert_eq!(event::forget(&mut db, 1).await.unwrap(), 0);
    sqlx::query("update event set at = now() - interval '2 days' where machine is null")
        .execute(&mut *db)
        .await
        .unwrap();
    assert_eq!(event::forget(&mut db, 1).await.unwrap(), 1);
}
