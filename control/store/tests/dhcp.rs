//! What operators see of leases and how ranges are cut around what they exclude, against a real PostgreSQL.

use std::net::IpAddr;
use std::time::Duration;

use lease::{
    AttachReply, Attachment, Batch, BatchKey, Block, Client, ClientKey, Outcome, SpoolId, Write,
    WriteKind,
};
use sqlx::{AssertSqlSafe, PgPool};
use store::lease as db;
use store::lease::history::{Filter, Stay, stays};
use store::lease::usage;
use store::network::{self, NewRange};
use store::testing::TestDatabase;

const SPOOL: SpoolId = SpoolId([1; 16]);

struct Site {
    test: TestDatabase,
}

impl Site {
    /// A VLAN that rack `ra` serves, with a subnet 10.0.0.0/8.
    async fn new() -> Site {
        let test = store::testing::database().await;
        let site = Site { test };
        site.run(
            "insert into rack (system_id, hostname) values ('ra', 'ra');
             insert into fabric (id, name) values (1, 'f');
             insert into vlan (id, fabric_id, vid, dhcp_on, primary_rack) values (1, 1, 0, true, 'ra');
             insert into subnet (id, vlan_id, name, cidr) values (1, 1, 's', '10.0.0.0/8')",
        )
        .await;
        site
    }

    fn pool(&self) -> &PgPool {
        &self.test.pool
    }

    async fn run(&self, sql: &str) {
        sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
            .execute(self.pool())
            .await
            .unwrap();
    }

    async fn range(&self, is_dynamic: bool, first: &str, last: &str) -> i32 {
        let mut tx = self.pool().begin().await.unwrap();
        let new = NewRange {
            subnet_id: 1,
            is_dynamic,
            start_ip: ip(first),
            end_ip: ip(last),
            comment: "",
            account_id: None,
            lease_secs: None,
        };
        let id = network::create_range(&mut tx, &new).await.unwrap();
        tx.commit().await.unwrap();
        id
    }

    async fn attach(&self, seq: u64) -> Attachment {
        match db::attach(self.pool(), "ra", SPOOL, seq).await.unwrap() {
            AttachReply::Attached(attachment) => attachment,
            other => panic!("attached, not {other:?}"),
        }
    }

    async fn commit(&self, seq: u64, writes: Vec<Write>) -> Vec<Outcome> {
        let key = BatchKey {
            spool_id: SPOOL,
            seq,
        };
        let batch = Batch {
            key,
            drained: false,
            writes,
        };
        db::commit(self.pool(), "ra", &batch).await.unwrap()
    }

    async fn blocks(&self) -> Vec<String> {
        sqlx::query_scalar(
            "select host(first) || '+' || count || case when range_id is null then ' left' else '' end
             from lease_block order by first",
        )
        .fetch_all(self.pool())
        .await
        .unwrap()
    }

    async fn events(&self) -> Vec<String> {
        sqlx::query_scalar("delete from event returning type || ': ' || description")
            .fetch_all(self.pool())
            .await
            .unwrap()
    }

    async fn note(&self) {
        let mut db = self.pool().acquire().await.unwrap();
        usage::note_now(&mut db).await.unwrap();
    }

    async fn stays(&self, filter: Filter) -> Vec<Stay> {
        let filter = Filter {
            limit: 100,
            ..filter
        };
        let mut db = self.pool().acquire().await.unwrap();
        stays(&mut db, &filter).await.unwrap()
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(n: u8) -> Client {
    Client {
        vlan: 1,
        key: ClientKey::Mac([2, 0, 0, 0, 0, n]),
    }
}

fn write(block: &Block, address: &str, kind: WriteKind) -> Write {
    Write {
        block: block.id,
        epoch: block.epoch,
        address: ip(address),
        kind,
    }
}

fn grant(block: &Block, address: &str, n: u8) -> Write {
    let kind = WriteKind::Grant {
        client: client(n),
        lease: Duration::from_secs(600),
        hostname: format!("c{n}").into(),
    };
    write(block, address, kind)
}

fn reclaim(block: &Block, address: &str, n: u8) -> Write {
    write(
        block,
        address,
        WriteKind::Reclaim {
            client: client(n),
            silent: false,
        },
    )
}

#[tokio::test]
async fn what_was_a_binding_is_remembered_when_its_address_is_taken_back() {
    let site = Site::new().await;
    site.range(true, "10.0.0.64", "10.0.0.79").await;
    let block = &site.attach(1).await.blocks[0];
    site.commit(
        2,
        vec![grant(block, "10.0.0.64", 1), grant(block, "10.0.0.65", 2)],
    )
    .await;
    let count = "select count(*) from lease_history";
    let remembered = || sqlx::query_scalar::<_, i64>(count).fetch_one(site.pool());
    let first = site.stays(Filter::default()).await;
    assert_eq!(first.len(), 2);
    assert_eq!(
        first.iter().map(|stay| stay.ended).collect::<Vec<_>>(),
        [None, None]
    );

    // A renewal goes on with the same stay, and so does a grant to the same client after its end.
    site.commit(3, vec![grant(block, "10.0.0.64", 1)]).await;
    site.run(
        "update lease set ends = now() - interval '2 minutes', since = since - interval '1 hour'",
    )
    .await;
    let ended = site.stays(Filter::default()).await;
    assert!(
        ended.iter().all(|stay| stay.ended.is_some()),
        "not yet taken back"
    );
    site.commit(4, vec![grant(block, "10.0.0.65", 2)]).await;
    let filter = Filter {
        mac: Some([2, 0, 0, 0, 0, 2]),
        ..Filter::default()
    };
    let again = site.stays(filter).await;
    assert_eq!((again.len(), again[0].ended), (1, None));
    assert_eq!(remembered().await.unwrap(), 0, "grants write no history");

    let outcomes = site
        .commit(
            5,
            vec![
                reclaim(block, "10.0.0.64", 1),
                reclaim(block, "10.0.0.65", 2),
            ],
        )
        .await;
    assert_eq!(outcomes[0], Outcome::Done);
    assert_eq!(remembered().await.unwrap(), 1, "the other one lasts");
    site.commit(6, vec![grant(block, "10.0.0.64", 3)]).await;
    let filter = Filter {
        address: Some(ip("10.0.0.64")),
        ..Filter::default()
    };
    let both = site.stays(filter).await;
    let told: Vec<_> = both
        .iter()
        .map(|stay| (stay.client.clone(), &*stay.hostname, stay.ended.is_some()))
        .collect();
    assert_eq!(told, [(client(3), "c3", false), (client(1), "c1", true)]);
    assert!(both[0].since > both[1].since);

    // A quarantine that turns into somebody's address is no part of that client's time on it.
    let decline = WriteKind::Quarantine {
        length: Duration::from_secs(1),
    };
    site.commit(7, vec![write(block, "10.0.0.70", decline)])
        .await;
    site.run(
        "update lease set quarantined_until = now() - interval '1 second', since = since - interval '1 day'
         where address = '10.0.0.70'",
    )
    .await;
    site.commit(8, vec![grant(block, "10.0.0.70", 4)]).await;
    let filter = Filter {
        address: Some(ip("10.0.0.70")),
        ..Filter::default()
    };
    let stay = &site.stays(filter).await[0];
    assert!(time::OffsetDateTime::now_utc() - stay.since < time::Duration::hours(1));
}

#[tokio::test]
async fn what_is_excluded_is_not_dealt_and_comes_back() {
    let site = Site::new().await;
    site.range(true, "10.0.0.64", "10.0.0.127").await;
    assert_eq!(
        site.blocks().await,
        [
            "10.0.0.64+16",
            "10.0.0.80+16",
            "10.0.0.96+16",
            "10.0.0.112+16"
        ]
    );
    let block = &site.attach(1).await.blocks[1];
    site.commit(2, vec![grant(block, "10.0.0.85", 1)]).await;
    let excluded = site.range(false, "10.0.0.84", "10.0.0.99").await;
    assert_eq!(
        site.blocks().await,
        [
            "10.0.0.64+16",
            "10.0.0.80+16 left",
            "10.0.0.96+16 left",
            "10.0.0.112+16"
        ],
        "their owner serves them until it knows"
    );
    let attached = site.attach(3).await;
    let firsts: Vec<IpAddr> = attached.blocks.iter().map(|block| block.first).collect();
    assert_eq!(firsts, [ip("10.0.0.64"), ip("10.0.0.112")]);
    db::settle(site.pool()).await.unwrap();
    assert_eq!(
        site.blocks().await,
        [
            "10.0.0.64+16",
            "10.0.0.80+4",
            "10.0.0.100+12",
            "10.0.0.112+16"
        ]
    );
    let mut db = site.pool().acquire().await.unwrap();
    let counted = usage::usage(&mut db).await.unwrap();
    assert_eq!((counted[0].total, counted[0].dealt), (48, 48));
    let mut tx = site.pool().begin().await.unwrap();
    network::delete_range(&mut tx, excluded).await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(site.blocks().await.len(), 5);
    assert!(site.blocks().await.contains(&"10.0.0.84+16".to_owned()));
}

#[tokio::test]
async fn a_range_that_fills_says_so_once_and_says_when_it_has_room_again() {
    let site = Site::new().await;
    site.range(true, "10.0.0.1", "10.0.0.100").await;
    // Leases whose number and state are what matters here.
    let fill = async |count: i32| {
        site.run(&format!(
            "delete from lease;
             insert into lease (address, vlan_id, client_kind, client_key, ends)
             select '10.0.0.0'::inet + n, 1, 0, decode(lpad(to_hex(n), 12, '0'), 'hex'), now() + interval '1 hour'
             from generate_series(1, {count}) n"
        ))
        .await;
        site.note().await;
        site.events().await
    };
    assert!(fill(79).await.is_empty());
    assert_eq!(
        fill(80).await,
        [
            "DHCP_RANGE_FILLING: Range 10.0.0.1 to 10.0.0.100: 80 of 100 addresses in use (80.00 %), of them 0 resting"
        ]
    );
    for count in [80, 78, 81, 94] {
        assert!(fill(count).await.is_empty(), "{count}");
    }
    assert!(fill(95).await[0].starts_with("DHCP_RANGE_NEARLY_FULL: "));
    assert!(fill(91).await.is_empty());
    assert!(fill(89).await[0].starts_with("DHCP_RANGE_EASED: "));
    assert!(fill(70).await[0].starts_with("DHCP_RANGE_EASED: "));
    // What was declined counts, what has ended does not.
    site.run(
        "update lease set ends = now() - interval '2 minutes';
         update lease set client_kind = null, client_key = null, quarantined_until = now() + interval '5 minutes'
         where address <= '10.0.0.5'",
    )
    .await;
    let mut db = site.pool().acquire().await.unwrap();
    let counted = &usage::usage(&mut db).await.unwrap()[0];
    assert_eq!((counted.bound, counted.resting, counted.ended), (0, 5, 65));
    assert_eq!((counted.free(), counted.basis_points()), (95, 500));
    site.run("update lease_block set quarantined_until = now() + interval '1 hour' where first = '10.0.0.17'")
        .await;
    let counted = &usage::usage(&mut db).await.unwrap()[0];
    assert_eq!(counted.resting, 5 + 16, "a block that rests");
}

/// What a false host claims is out of service, and the range's numbers say so; not for longer than its rack does.
#[tokio::test]
async fn addresses_that_a_false_host_claims_are_in_the_ranges_numbers() {
    let site = Site::new().await;
    site.range(true, "10.0.0.1", "10.0.0.100").await;
    site.run("update lease_block set owner = 'r1' where first <= '10.0.0.33'; update lease_block set owner = 'r2' where first > '10.0.0.33'")
        .await;
    let mut db = site.pool().acquire().await.unwrap();
    let blocks: Vec<(i64, i32)> =
        sqlx::query_as("select id, count from lease_block order by first")
            .fetch_all(&mut *db)
            .await
            .unwrap();
    let claimed = async |db: &mut sqlx::PgConnection| {
        let counted = &usage::usage(db).await.unwrap()[0];
        assert_eq!(counted.free(), 100 - counted.claimed);
        counted.claimed
    };
    let (own, own_too, others) = (blocks[0], blocks[1], blocks[blocks.len() - 1]);
    // More than a block has, and one of another rack's: a rack speaks of what is its own.
    let said = [(own.0, 10), (own_too.0, 1_000), (others.0, 3)];
    usage::note_claimed(&mut db, "r1", &said).await.unwrap();
    assert_eq!(claimed(&mut db).await, 10 + i64::from(own_too.1));
    usage::note_claimed(&mut db, "r2", &[(others.0, 3)])
        .await
        .unwrap();
    assert_eq!(claimed(&mut db).await, 13 + i64::from(own_too.1));
    usage::note_claimed(&mut db, "r1", &[(own.0, 4)])
        .await
        .unwrap();
    assert_eq!(
        claimed(&mut db).await,
        7,
        "what is not named any more is none"
    );
    usage::note_now(&mut db).await.unwrap();
    let seen = &usage::seen(&mut db).await.unwrap()[0];
    assert_eq!((seen.bound, seen.resting), (0, 7), "the metrics page");
    site.run("update lease_block set claimed_at = now() - interval '3 minutes' where owner = 'r2'")
        .await;
    assert_eq!(claimed(&mut db).await, 4, "a rack that says no more");
}

#[tokio::test]
async fn a_large_range_is_dealt_as_it_fills() {
    let site = Site::new().await;
    let range = site.range(true, "10.0.0.1", "10.255.255.254").await;
    let dealt = async || {
        let mut db = site.pool().acquire().await.unwrap();
        let counted = &usage::usage(&mut db).await.unwrap()[0];
        (counted.total, counted.dealt)
    };
    assert_eq!(dealt().await, (16_777_214, 262_144));
    let taken = async |bound: i64| {
        site.run(&format!(
            "insert into range_usage (range_id, total, bound, resting) values ({range}, 16777214, {bound}, 8)
             on conflict (range_id) do update set at = now(), bound = {bound}"
        ))
        .await;
        db::settle(site.pool()).await.unwrap();
    };
    taken(196_599).await;
    assert_eq!(dealt().await.1, 262_144);
    taken(196_600).await;
    assert_eq!(dealt().await.1, 524_288, "twice as many");
    taken(196_600).await;
    assert_eq!(dealt().await.1, 524_288);
    let attached = site.attach(1).await;
    assert_eq!(attached.blocks.len(), 8_192);
}

#[tokio::test]
async fn old_history_is_forgotten() {
    let site = Site::new().await;
    site.run(
        "insert into lease_history (address, vlan_id, client_kind, client_key, hostname, since, ended, released) values
            ('10.0.0.1', 1, 0, '\\x020000000001', 'old', now() - interval '100 days', now() - interval '91 days', false),
            ('10.0.0.2', 1, 0, '\\x020000000001', 'long', now() - interval '100 days', now() - interval '1 day', false)",
    )
    .await;
    db::settle(site.pool()).await.unwrap();
    let left = site.stays(Filter::default()).await;
    assert_eq!(left.len(), 1);
    assert_eq!(left[0].hostname, "long");
}
