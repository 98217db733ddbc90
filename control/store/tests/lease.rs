//! The region's end of the lease protocol against a real PostgreSQL: what racks may do, in which order, and at once.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use lease::{
    AttachReply, Attachment, Batch, BatchKey, Block, BlockId, Client, ClientKey, Epoch,
    HeartbeatReply, Outcome, Refusal, Row, SpoolId, Write, WriteKind, digest,
};
use sqlx::{AssertSqlSafe, PgPool};
use store::lease as db;
use store::testing::TestDatabase;

const LEASE: Duration = Duration::from_secs(600);
const SPOOL: SpoolId = SpoolId([1; 16]);

/// A VLAN that rack `ra` serves, with the subnet 10.0.0.0/24 (lease 600 s) and the dynamic range .64 to .95.
struct Site {
    test: TestDatabase,
    vlan: i32,
    subnet: i32,
    range: i32,
}

impl Site {
    async fn new() -> Site {
        let test = store::testing::database().await;
        let pool = &test.pool;
        run(
            pool,
            "insert into rack (system_id, hostname) values ('ra', 'ra'), ('rb', 'rb')",
        )
        .await;
        let vlan = number(
            pool,
            "with f as (insert into fabric (name) values ('f') returning id)
             insert into vlan (fabric_id, vid, dhcp_on, primary_rack) select id, 0, true, 'ra' from f returning id",
        )
        .await;
        let subnet = number(
            pool,
            &format!("insert into subnet (vlan_id, name, cidr) values ({vlan}, 's', '10.0.0.0/24') returning id"),
        )
        .await;
        let range = add_range(pool, subnet, "10.0.0.64", "10.0.0.95").await;
        Site {
            vlan,
            subnet,
            range,
            test,
        }
    }

    fn pool(&self) -> &PgPool {
        &self.test.pool
    }

    async fn attach(&self, rack: &str, spool: SpoolId, seq: u64) -> Attachment {
        match db::attach(self.pool(), rack, spool, seq).await.unwrap() {
            AttachReply::Attached(attachment) => attachment,
            other => panic!("attached, not {other:?}"),
        }
    }

    async fn commit(&self, rack: &str, seq: u64, writes: Vec<Write>) -> Vec<Outcome> {
        let batch = Batch {
            key: BatchKey {
                spool_id: SPOOL,
                seq,
            },
            drained: false,
            writes,
        };
        db::commit(self.pool(), rack, &batch).await.unwrap()
    }

    async fn heartbeat(&self, rack: &str, blocks: &[Block]) -> HeartbeatReply {
        let digest = digest(blocks.iter().map(|block| (block.id, block.epoch)));
        db::heartbeat(self.pool(), rack, SPOOL, &digest)
            .await
            .unwrap()
    }

    /// As if the row had been written this much earlier.
    async fn age(&self, secs: i64) {
        run(
            self.pool(),
            &format!("update lease set ends = ends - interval '{secs} seconds'"),
        )
        .await;
    }

    async fn set_vlan(&self, set: &str) {
        let mut tx = self.pool().begin().await.unwrap();
        let sql = format!("update vlan set {set} where id = {}", self.vlan);
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut *tx)
            .await
            .unwrap();
        db::assign_blocks(&mut tx, self.vlan).await.unwrap();
        tx.commit().await.unwrap();
    }
}

async fn run(pool: &PgPool, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned()))
        .execute(pool)
        .await
        .unwrap();
}

async fn number(pool: &PgPool, sql: &str) -> i32 {
    sqlx::query_scalar(AssertSqlSafe(sql.to_owned()))
        .fetch_one(pool)
        .await
        .unwrap()
}

async fn add_range(pool: &PgPool, subnet: i32, start: &str, end: &str) -> i32 {
    let mut tx = pool.begin().await.unwrap();
    let id: i32 = sqlx::query_scalar(
        "insert into iprange (subnet_id, type, start_ip, end_ip) values ($1, 'dynamic', $2, $3) returning id",
    )
    .bind(subnet)
    .bind(ip(start))
    .bind(ip(end))
    .fetch_one(&mut *tx)
    .await
    .unwrap();
    db::ensure_blocks(&mut tx, id).await.unwrap();
    tx.commit().await.unwrap();
    id
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn client(block: &Block, n: u8) -> Client {
    Client {
        vlan: block.vlan,
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
        client: client(block, n),
        lease: LEASE,
        hostname: format!("c{n}").into(),
    };
    write(block, address, kind)
}

fn reclaim(block: &Block, address: &str, n: u8) -> Write {
    write(
        block,
        address,
        WriteKind::Reclaim {
            client: client(block, n),
            silent: false,
        },
    )
}

fn refused(refusal: Refusal) -> Outcome {
    Outcome::Refused(refusal)
}

#[track_caller]
fn assert_durable(outcome: Outcome, secs: u64) {
    assert_durable_by(outcome, secs, Duration::ZERO);
}

/// `apart`: how much later than the answer's transaction the writing one may have begun.
#[track_caller]
fn assert_durable_by(outcome: Outcome, secs: u64, apart: Duration) {
    let Outcome::Durable { remaining } = outcome else {
        panic!("durable, not {outcome:?}")
    };
    let want = Duration::from_secs(secs);
    assert!(
        remaining <= want + apart && remaining + Duration::from_secs(5) > want,
        "{remaining:?}, not {want:?}"
    );
}

fn row_of<'a>(attachment: &'a Attachment, address: &str) -> Option<&'a Row> {
    attachment
        .rows
        .iter()
        .find(|row| row.address == ip(address))
}

#[tokio::test]
async fn a_rack_attaches_grants_renews_and_is_told_after_a_restart() {
    let site = Site::new().await;
    let first = site.attach("ra", SPOOL, 1).await;
    assert_eq!(
        first.blocks.iter().map(|b| b.count).collect::<Vec<_>>(),
        [16, 16],
        "a small range, in small blocks"
    );
    assert_eq!(
        (first.blocks[0].first, first.blocks[1].first),
        (ip("10.0.0.64"), ip("10.0.0.80"))
    );
    assert!(
        first.rows.is_empty(),
        "the first attach of all quarantines nothing"
    );
    assert_eq!(first.until, lease::UNTIL);

    let block = &first.blocks[0];
    let outcomes = site
        .commit(
            "ra",
            2,
            vec![grant(block, "10.0.0.64", 1), grant(block, "10.0.0.65", 2)],
        )
        .await;
    assert_durable(outcomes[0], 1200);
    assert_durable(outcomes[1], 1200);
    site.age(1000).await;
    assert_durable(
        site.commit("ra", 3, vec![grant(block, "10.0.0.64", 1)])
            .await[0],
        1200,
    );

    let again = site.attach("ra", SPOOL, 4).await;
    assert_eq!(again.blocks[0].epoch.0, block.epoch.0 + 1);
    let row = row_of(&again, "10.0.0.64").unwrap();
    assert_eq!(row.client, Some(client(block, 1)));
    assert!(
        (1_195_000..=1_200_000).contains(&row.remaining_ms),
        "{}",
        row.remaining_ms
    );
    assert!((195_000..=200_000).contains(&row_of(&again, "10.0.0.65").unwrap().remaining_ms));
    assert!(row.quarantine.is_zero());
}

#[tokio::test]
async fn another_clients_address_is_refused_and_the_rest_of_the_batch_is_not() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    site.commit("ra", 2, vec![grant(block, "10.0.0.64", 1)])
        .await;
    let outcomes = site
        .commit(
            "ra",
            3,
            vec![
                grant(block, "10.0.0.64", 2),
                grant(block, "10.0.0.65", 2),
                // Within the batch, too.
                grant(block, "10.0.0.65", 3),
                grant(block, "10.0.0.80", 3),
                reclaim(block, "10.0.0.64", 1),
            ],
        )
        .await;
    assert_eq!(outcomes[0], refused(Refusal::OtherClient));
    assert_durable(outcomes[1], 1200);
    assert_eq!(outcomes[2], refused(Refusal::OtherClient));
    assert_eq!(outcomes[3], refused(Refusal::OutsideBlock));
    assert_eq!(outcomes[4], refused(Refusal::NotEnded));
}

#[tokio::test]
async fn a_repeated_key_answers_as_before_and_writes_nothing() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    let writes = vec![
        grant(block, "10.0.0.64", 1),
        reclaim(block, "10.0.0.65", 9),
        grant(block, "10.0.0.66", 2),
    ];
    let first = site.commit("ra", 2, writes.clone()).await;
    assert_durable(first[0], 1200);
    assert_eq!(first[1], refused(Refusal::NotFound));
    // The row ends and is reclaimed; the late copy must not bring it back.
    site.age(1300).await;
    assert_eq!(
        site.commit("ra", 3, vec![reclaim(block, "10.0.0.64", 1)])
            .await,
        [Outcome::Done]
    );
    let repeat = site.commit("ra", 2, writes).await;
    assert_durable(repeat[0], 1200);
    assert_eq!(repeat[1], first[1]);
    let rows = number(
        site.pool(),
        "select count(*)::int from lease where address = '10.0.0.64'",
    )
    .await;
    assert_eq!(rows, 0);
}

#[tokio::test]
async fn the_same_batch_through_two_regions_at_once_is_written_once() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    for seq in 2..20 {
        let writes = vec![grant(block, "10.0.0.64", 1), grant(block, "10.0.0.65", 2)];
        let asked = Instant::now();
        let (a, b) = tokio::join!(
            site.commit("ra", seq, writes.clone()),
            site.commit("ra", seq, writes)
        );
        // What is left counts from the transaction that answers, and the one that wrote may have begun after it.
        let apart = asked.elapsed();
        assert_durable_by(a[0], 1200, apart);
        assert_durable_by(b[1], 1200, apart);
    }
    assert_eq!(
        number(site.pool(), "select count(*)::int from lease_batch").await,
        18
    );
}

#[tokio::test]
async fn requests_of_an_earlier_session_do_nothing() {
    let site = Site::new().await;
    let old = site.attach("ra", SPOOL, 1).await.blocks[0].clone();
    site.commit("ra", 2, vec![grant(&old, "10.0.0.64", 1)])
        .await;
    let new = site.attach("ra", SPOOL, 10).await.blocks[0].clone();
    site.age(1300).await;
    // Late, and below the floor of the attach; and with a fresh key.
    for seq in [3, 11] {
        let writes = vec![
            grant(&old, "10.0.0.65", 2),
            reclaim(&old, "10.0.0.64", 1),
            write(&old, "::", WriteKind::Yield),
        ];
        assert_eq!(
            site.commit("ra", seq, writes).await,
            [refused(Refusal::StaleEpoch); 3],
            "{seq}"
        );
    }
    assert_durable(
        site.commit("ra", 12, vec![grant(&new, "10.0.0.65", 3)])
            .await[0],
        1200,
    );
    // Another rack, or a spool that was never registered, has no epochs at all.
    assert_eq!(
        site.commit("rb", 13, vec![grant(&new, "10.0.0.66", 3)])
            .await,
        [refused(Refusal::StaleEpoch)]
    );
}

/// A commit that is running while the rack attaches again either comes before it, and is told, or does nothing.
#[tokio::test]
async fn a_commit_races_an_attach_and_is_either_told_or_refused() {
    let site = Site::new().await;
    let mut blocks = site.attach("ra", SPOOL, 1).await.blocks;
    let (mut told, mut fenced) = (0, 0);
    for round in 0..40_u64 {
        let old = blocks[0].clone();
        let seq = 2 + 10 * round;
        let n = u8::try_from(round).unwrap();
        let address = format!("10.0.0.{}", 64 + n % 16);
        run(site.pool(), "delete from lease").await;
        let (outcomes, attachment) = tokio::join!(
            site.commit("ra", seq, vec![grant(&old, &address, n)]),
            async {
                tokio::time::sleep(Duration::from_micros(150 * (round % 20))).await;
                site.attach("ra", SPOOL, seq + 1).await
            }
        );
        match outcomes[0] {
            Outcome::Durable { .. } => {
                told += 1;
                assert!(
                    row_of(&attachment, &address).is_some(),
                    "durable, but the attach did not see it"
                );
            }
            Outcome::Refused(Refusal::StaleEpoch) => {
                fenced += 1;
                assert!(row_of(&attachment, &address).is_none());
            }
            other => panic!("{other:?}"),
        }
        blocks = attachment.blocks;
    }
    assert_eq!(told + fenced, 40);
    assert!(
        told > 0,
        "no commit came before its attach: the race was not run"
    );
}

/// The same, held open at its most dangerous point: the commit has compared the epoch and not yet written.
#[tokio::test]
async fn an_attach_waits_for_a_commit_that_has_compared_its_epoch() {
    let site = Site::new().await;
    let block = site.attach("ra", SPOOL, 1).await.blocks[0].clone();
    // A row that is not committed stops the commit at its write.
    let mut stop = site.pool().begin().await.unwrap();
    sqlx::query("insert into lease (address, vlan_id, ends) values ('10.0.0.64', 1, now())")
        .execute(&mut *stop)
        .await
        .unwrap();
    let waiting = async |count: i32| {
        let sql = "select count(*)::int from pg_stat_activity
                   where datname = current_database() and wait_event_type = 'Lock'";
        for _ in 0..500 {
            if number(site.pool(), sql).await >= count {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("{count} statements should wait for a lock");
    };
    let (outcomes, attachment, ()) = tokio::join!(
        site.commit("ra", 2, vec![grant(&block, "10.0.0.64", 1)]),
        async {
            waiting(1).await;
            site.attach("ra", SPOOL, 3).await
        },
        async {
            waiting(2).await;
            stop.rollback().await.unwrap();
        }
    );
    assert_durable(outcomes[0], 1200);
    assert!(
        row_of(&attachment, "10.0.0.64").is_some(),
        "durable, but the attach did not see it"
    );
}

/// Two batches at once, with a row that neither saw: the second one is refused by the row itself.
#[tokio::test]
async fn two_commits_at_once_never_give_one_address_to_two_clients() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    for round in 0..30_u64 {
        run(site.pool(), "delete from lease").await;
        let seq = 2 + 2 * round;
        let (a, b) = tokio::join!(
            site.commit("ra", seq, vec![grant(block, "10.0.0.70", 1)]),
            site.commit("ra", seq + 1, vec![grant(block, "10.0.0.70", 2)])
        );
        let winners = [a[0], b[0]]
            .iter()
            .filter(|outcome| matches!(outcome, Outcome::Durable { .. }))
            .count();
        assert_eq!(winners, 1, "{a:?} {b:?}");
        assert!([a[0], b[0]].contains(&refused(Refusal::OtherClient)));
    }
}

#[tokio::test]
async fn reclaim_waits_for_the_end_the_sixty_seconds_and_the_quarantine() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    site.commit("ra", 2, vec![grant(block, "10.0.0.64", 1)])
        .await;
    site.age(1200).await;
    assert_eq!(
        site.commit("ra", 3, vec![reclaim(block, "10.0.0.64", 1)])
            .await,
        [refused(Refusal::NotEnded)]
    );
    site.age(61).await;
    let declined = write(
        block,
        "10.0.0.64",
        WriteKind::Quarantine {
            length: Duration::from_secs(600),
        },
    );
    assert_eq!(site.commit("ra", 4, vec![declined]).await, [Outcome::Done]);
    assert_eq!(
        site.commit("ra", 5, vec![reclaim(block, "10.0.0.64", 1)])
            .await,
        [refused(Refusal::NotEnded)]
    );
    assert_eq!(
        site.commit("ra", 6, vec![reclaim(block, "10.0.0.64", 2)])
            .await,
        [refused(Refusal::OtherClient)]
    );
    run(
        site.pool(),
        "update lease set quarantined_until = now() - interval '1 second'",
    )
    .await;
    assert_eq!(
        site.commit("ra", 7, vec![reclaim(block, "10.0.0.64", 1)])
            .await,
        [Outcome::Done]
    );
    assert_durable(
        site.commit("ra", 8, vec![grant(block, "10.0.0.64", 2)])
            .await[0],
        1200,
    );
}

#[tokio::test]
async fn a_release_only_marks_and_a_quarantined_address_is_given_to_nobody() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    site.commit("ra", 2, vec![grant(block, "10.0.0.64", 1)])
        .await;
    let release = write(
        block,
        "10.0.0.64",
        WriteKind::Release {
            client: client(block, 1),
        },
    );
    let rest = write(
        block,
        "10.0.0.65",
        WriteKind::Quarantine {
            length: Duration::from_secs(600),
        },
    );
    assert_eq!(
        site.commit("ra", 3, vec![release, rest]).await,
        [Outcome::Done; 2]
    );
    assert_eq!(
        site.commit("ra", 4, vec![grant(block, "10.0.0.65", 2)])
            .await,
        [refused(Refusal::NotEnded)]
    );

    let attachment = site.attach("ra", SPOOL, 5).await;
    let row = row_of(&attachment, "10.0.0.64").unwrap();
    assert!(row.released && row.remaining_ms > 1_190_000, "{row:?}");
    let row = row_of(&attachment, "10.0.0.65").unwrap();
    assert!(
        row.client.is_none() && row.quarantine > Duration::from_secs(590),
        "{row:?}"
    );
    // A fresh grant takes the mark away, and keeps the name.
    let block = &attachment.blocks[0];
    site.commit("ra", 6, vec![grant(block, "10.0.0.64", 1)])
        .await;
    let mut connection = site.pool().acquire().await.unwrap();
    let binding = db::binding_of_address(&mut connection, ip("10.0.0.64"))
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (binding.released, &*binding.hostname, binding.mac),
        (false, "c1", Some([2, 0, 0, 0, 0, 1]))
    );
}

#[tokio::test]
async fn a_new_spool_quarantines_every_address_of_the_racks_blocks() {
    let site = Site::new().await;
    let old = site.attach("ra", SPOOL, 1).await;
    // An ended row is quarantined like all others: its client may have been renewed in the lost spool.
    site.commit("ra", 2, vec![grant(&old.blocks[0], "10.0.0.64", 1)])
        .await;
    site.age(1300).await;
    run(site.pool(), "update subnet set lease_secs = 30").await;

    let new = SpoolId([2; 16]);
    let attachment = site.attach("ra", new, 1).await;
    assert_eq!(attachment.rows.len(), 32);
    for row in &attachment.rows {
        // Two of the longest lease that was in force: it was shortened only after the blocks were cut.
        assert!(
            row.quarantine > Duration::from_secs(1190)
                && row.quarantine <= Duration::from_secs(1200),
            "{row:?}"
        );
    }
    assert!(row_of(&attachment, "10.0.0.64").unwrap().client.is_some());

    let block = &attachment.blocks[0];
    let batch = |seq, drained, write| Batch {
        key: BatchKey { spool_id: new, seq },
        drained,
        writes: vec![write],
    };
    let commit = async |batch: &Batch| db::commit(site.pool(), "ra", batch).await.unwrap()[0];
    let reclaimed = commit(&batch(2, false, reclaim(block, "10.0.0.64", 1))).await;
    assert_eq!(reclaimed, refused(Refusal::NotEnded));
    let given = commit(&batch(3, false, grant(block, "10.0.0.70", 5))).await;
    assert_eq!(given, refused(Refusal::NotEnded));
    // Its own client, and a fact, are taken.
    assert_durable(
        commit(&batch(4, false, grant(block, "10.0.0.64", 1))).await,
        1200,
    );
    assert_durable(
        commit(&batch(5, true, grant(block, "10.0.0.71", 5))).await,
        1200,
    );
    // The lost spool's requests come to nothing, and it never returns.
    let late = Batch {
        key: BatchKey {
            spool_id: SPOOL,
            seq: 9,
        },
        ..batch(9, true, grant(&old.blocks[0], "10.0.0.72", 6))
    };
    assert_eq!(commit(&late).await, refused(Refusal::StaleEpoch));
    assert_eq!(
        db::attach(site.pool(), "ra", SPOOL, 99).await.unwrap(),
        AttachReply::Behind
    );
}

#[tokio::test]
async fn an_attach_that_was_overtaken_or_set_back_does_nothing() {
    let site = Site::new().await;
    site.attach("ra", SPOOL, 5).await;
    let blocks = site.attach("ra", SPOOL, 7).await.blocks;
    site.commit("ra", 9, vec![grant(&blocks[0], "10.0.0.64", 1)])
        .await;
    for seq in [1, 6, 7, 9] {
        assert_eq!(
            db::attach(site.pool(), "ra", SPOOL, seq).await.unwrap(),
            AttachReply::Behind,
            "{seq}"
        );
    }
    // The session is as it was.
    assert_durable(
        site.commit("ra", 10, vec![grant(&blocks[0], "10.0.0.65", 2)])
            .await[0],
        1200,
    );
    assert!(matches!(
        site.heartbeat("ra", &blocks).await,
        HeartbeatReply::Until(_)
    ));
}

#[tokio::test]
async fn a_heartbeat_moves_until_only_for_the_session_that_is() {
    let site = Site::new().await;
    let old = site.attach("ra", SPOOL, 1).await.blocks;
    run(
        site.pool(),
        "update rack_session set until = now() + interval '1 minute'",
    )
    .await;
    let HeartbeatReply::Until(until) = site.heartbeat("ra", &old).await else {
        panic!("the digests agree")
    };
    assert_eq!(until, lease::UNTIL);
    run(
        site.pool(),
        "update rack_session set until = now() + interval '1 minute'",
    )
    .await;
    let new = site.attach("ra", SPOOL, 2).await.blocks;
    run(
        site.pool(),
        "update rack_session set until = now() + interval '1 minute'",
    )
    .await;
    assert_eq!(site.heartbeat("ra", &old).await, HeartbeatReply::Attach);
    assert_eq!(
        site.heartbeat("ra", &new[..1]).await,
        HeartbeatReply::Attach
    );
    assert_eq!(
        site.heartbeat("rb", &[]).await,
        HeartbeatReply::Attach,
        "never attached"
    );
    let moved = number(
        site.pool(),
        "select count(*)::int from rack_session where until > now() + interval '1 hour'",
    )
    .await;
    assert_eq!(moved, 0, "no refused heartbeat moved until");
    assert!(matches!(
        site.heartbeat("ra", &new).await,
        HeartbeatReply::Until(_)
    ));
}

#[tokio::test]
async fn blocks_follow_the_primary_when_the_former_owner_has_attached() {
    let site = Site::new().await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    assert!(
        site.attach("rb", SPOOL, 1).await.blocks.is_empty(),
        "it does not serve here"
    );
    site.commit("ra", 2, vec![grant(&blocks[0], "10.0.0.64", 1)])
        .await;
    site.set_vlan("primary_rack = 'rb'").await;
    db::settle(site.pool()).await.unwrap();
    // The owner goes on until it is told; the new one waits.
    assert_durable(
        site.commit("ra", 3, vec![grant(&blocks[0], "10.0.0.64", 1)])
            .await[0],
        1200,
    );
    assert!(site.attach("rb", SPOOL, 2).await.blocks.is_empty());
    assert!(matches!(
        site.heartbeat("rb", &[]).await,
        HeartbeatReply::Until(_)
    ));
    assert_eq!(site.heartbeat("ra", &blocks).await, HeartbeatReply::Attach);
    assert!(site.attach("ra", SPOOL, 4).await.blocks.is_empty());
    assert_eq!(
        site.heartbeat("rb", &[]).await,
        HeartbeatReply::Attach,
        "blocks wait for it"
    );
    let moved = site.attach("rb", SPOOL, 3).await;
    assert_eq!(moved.blocks.len(), 2);
    assert!(moved.blocks[0].epoch > blocks[0].epoch);
    assert!(
        row_of(&moved, "10.0.0.64").unwrap().client.is_some(),
        "with its rows"
    );
    assert_eq!(
        site.commit("ra", 5, vec![grant(&blocks[0], "10.0.0.65", 2)])
            .await,
        [refused(Refusal::StaleEpoch)]
    );
    // Knowing the epoch does not help a stranger.
    assert_eq!(
        site.commit("ra", 6, vec![grant(&moved.blocks[0], "10.0.0.65", 2)])
            .await,
        [refused(Refusal::NotOwner)]
    );
    // A peer may lengthen a binding, not make one. It need not know the block.
    run(
        site.pool(),
        &format!(
            "update vlan set secondary_rack = 'ra' where id = {}",
            site.vlan
        ),
    )
    .await;
    let extend = |address, n| {
        let kind = WriteKind::Extend {
            client: client(&blocks[0], n),
            lease: LEASE,
        };
        Write {
            block: BlockId::NONE,
            epoch: Epoch(0),
            address: ip(address),
            kind,
        }
    };
    let outcomes = site
        .commit(
            "ra",
            7,
            vec![
                extend("10.0.0.64", 1),
                extend("10.0.0.65", 2),
                extend("10.0.0.64", 2),
                extend("10.0.0.96", 1),
                extend("fd00::1", 1),
            ],
        )
        .await;
    assert_durable(outcomes[0], 1200);
    assert_eq!(
        outcomes[1..],
        [
            Refusal::NotFound,
            Refusal::OtherClient,
            Refusal::NotOwner,
            Refusal::NotOwner
        ]
        .map(refused)
    );
    run(
        site.pool(),
        &format!(
            "update vlan set secondary_rack = null where id = {}",
            site.vlan
        ),
    )
    .await;
    assert_eq!(
        site.commit("ra", 8, vec![extend("10.0.0.64", 1)]).await,
        [refused(Refusal::NotOwner)],
        "a stranger extends nothing"
    );
}

#[tokio::test]
async fn a_silent_owner_loses_its_blocks_sixty_seconds_after_until() {
    let site = Site::new().await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    site.attach("rb", SPOOL, 1).await;
    site.set_vlan("primary_rack = 'rb', secondary_rack = null")
        .await;
    run(
        site.pool(),
        "update rack_session set until = now() - interval '59 seconds' where rack = 'ra'",
    )
    .await;
    db::settle(site.pool()).await.unwrap();
    assert!(site.attach("rb", SPOOL, 2).await.blocks.is_empty());
    run(
        site.pool(),
        "update rack_session set until = now() - interval '61 seconds' where rack = 'ra'",
    )
    .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.attach("rb", SPOOL, 3).await.blocks.len(), 2);
    // What comes late from the one that was away does nothing.
    assert_eq!(site.heartbeat("ra", &blocks).await, HeartbeatReply::Attach);
    let drained = Batch {
        key: BatchKey {
            spool_id: SPOOL,
            seq: 2,
        },
        drained: true,
        writes: vec![grant(&blocks[0], "10.0.0.64", 1)],
    };
    assert_eq!(
        db::commit(site.pool(), "ra", &drained).await.unwrap(),
        [refused(Refusal::StaleEpoch)]
    );
}

#[tokio::test]
async fn a_yield_frees_the_block_at_once() {
    let site = Site::new().await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    site.set_vlan("primary_rack = 'rb', secondary_rack = null")
        .await;
    let writes = vec![
        write(&blocks[0], "::", WriteKind::Yield),
        grant(&blocks[0], "10.0.0.64", 1),
    ];
    assert_eq!(
        site.commit("ra", 2, writes).await,
        [Outcome::Done, refused(Refusal::StaleEpoch)]
    );
    let taken = site.attach("rb", SPOOL, 1).await.blocks;
    assert_eq!(
        taken.iter().map(|block| block.id).collect::<Vec<_>>(),
        [blocks[0].id]
    );
}

#[tokio::test]
async fn ranges_grow_shrink_and_go_without_taking_anything_from_an_owner() {
    let site = Site::new().await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    site.commit("ra", 2, vec![grant(&blocks[1], "10.0.0.90", 1)])
        .await;
    let change = async |set: &str| {
        let mut tx = site.pool().begin().await.unwrap();
        let sql = format!("update iprange set {set} where id = {}", site.range);
        sqlx::query(AssertSqlSafe(sql))
            .execute(&mut *tx)
            .await
            .unwrap();
        db::ensure_blocks(&mut tx, site.range).await.unwrap();
        tx.commit().await.unwrap();
    };
    let spans = |blocks: &[Block]| {
        blocks
            .iter()
            .map(|b| (b.first.to_string(), b.count))
            .collect::<Vec<_>>()
    };
    let span = |first: &str, count| (first.to_owned(), count);

    change("end_ip = '10.0.0.105'").await;
    assert_eq!(
        site.heartbeat("ra", &blocks).await,
        HeartbeatReply::Attach,
        "new blocks wait"
    );
    let grown = site.attach("ra", SPOOL, 3).await.blocks;
    assert_eq!(
        spans(&grown),
        [
            span("10.0.0.64", 16),
            span("10.0.0.80", 16),
            span("10.0.0.96", 10)
        ]
    );

    // The middle block no longer fits; it is the owner's until the owner has attached.
    change("end_ip = '10.0.0.85'").await;
    db::settle(site.pool()).await.unwrap();
    assert_durable(
        site.commit("ra", 4, vec![grant(&grown[1], "10.0.0.90", 1)])
            .await[0],
        1200,
    );
    assert_eq!(site.heartbeat("ra", &grown).await, HeartbeatReply::Attach);
    assert_eq!(
        spans(&site.attach("ra", SPOOL, 5).await.blocks),
        [span("10.0.0.64", 16)]
    );
    db::settle(site.pool()).await.unwrap();
    let cut_again = site.attach("ra", SPOOL, 6).await.blocks;
    assert_eq!(
        spans(&cut_again),
        [span("10.0.0.64", 16), span("10.0.0.80", 6)]
    );

    // The range grows over a lease that outlived its block: the lease is found in the new one.
    change("end_ip = '10.0.0.95'").await;
    let whole = site.attach("ra", SPOOL, 7).await;
    let row = row_of(&whole, "10.0.0.90").expect("the lease of .90");
    assert_eq!(row.block, whole.blocks[2].id);

    run(
        site.pool(),
        &format!("delete from iprange where id = {}", site.range),
    )
    .await;
    let mut connection = site.pool().acquire().await.unwrap();
    db::ensure_blocks(&mut connection, site.range)
        .await
        .unwrap();
    // A new range over the same addresses waits until the owner has given them up; what it kept is taken over.
    add_range(site.pool(), site.subnet, "10.0.0.64", "10.0.0.127").await;
    assert_eq!(
        site.attach("ra", SPOOL, 8)
            .await
            .blocks
            .iter()
            .map(|b| b.count)
            .sum::<u32>(),
        64
    );
}

#[tokio::test]
async fn a_vlan_without_dhcp_has_no_owner_and_a_relayed_one_has_its_relays() {
    let site = Site::new().await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    site.set_vlan("dhcp_on = false").await;
    assert_eq!(site.heartbeat("ra", &blocks).await, HeartbeatReply::Attach);
    assert!(site.attach("ra", SPOOL, 2).await.blocks.is_empty());
    run(
        site.pool(),
        "insert into vlan (id, fabric_id, vid, dhcp_on, primary_rack) select 6000, fabric_id, 7, true, 'rb' from vlan",
    )
    .await;
    site.set_vlan("relay_vlan = 6000").await;
    let relayed = site.attach("rb", SPOOL, 1).await.blocks;
    assert_eq!(relayed.len(), 2);
    assert_eq!(relayed[0].vlan, site.vlan.cast_unsigned());
}

#[tokio::test]
async fn bindings_are_found_by_address_mac_and_subnet() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    let id = Client {
        vlan: block.vlan,
        key: ClientKey::ClientId([1, 2, 0, 0, 0, 0, 7].into()),
    };
    let by_id = WriteKind::Grant {
        client: id,
        lease: LEASE,
        hostname: "nul\0name".into(),
    };
    site.commit(
        "ra",
        2,
        vec![
            grant(block, "10.0.0.64", 1),
            write(block, "10.0.0.66", by_id),
        ],
    )
    .await;
    let rest = write(block, "10.0.0.67", WriteKind::Quarantine { length: LEASE });
    site.commit("ra", 3, vec![rest]).await;
    let mut connection = site.pool().acquire().await.unwrap();
    let connection = &mut *connection;

    let all = db::list(connection, Some(site.subnet), None, 10)
        .await
        .unwrap();
    assert_eq!(
        all.iter().map(|b| b.address).collect::<Vec<_>>(),
        [ip("10.0.0.64"), ip("10.0.0.66")]
    );
    let rest = db::list(connection, None, Some(ip("10.0.0.64")), 1)
        .await
        .unwrap();
    assert_eq!((rest.len(), &*rest[0].hostname), (1, "nulname"));
    assert!(
        db::list(connection, Some(site.subnet + 1), None, 10)
            .await
            .unwrap()
            .is_empty()
    );
    let of_mac = db::bindings_of_mac(connection, [2, 0, 0, 0, 0, 7])
        .await
        .unwrap();
    assert_eq!(
        of_mac[0].address,
        ip("10.0.0.66"),
        "an Ethernet client id tells its MAC"
    );
    assert!(
        db::binding_of_address(connection, ip("10.0.0.67"))
            .await
            .unwrap()
            .is_none()
    );
    site.age(1201).await;
    assert!(
        db::binding_of_address(connection, ip("10.0.0.64"))
            .await
            .unwrap()
            .is_none(),
        "ended"
    );
}

#[tokio::test]
async fn after_a_promotion_only_drains_are_taken_then_every_epoch_jumps() {
    let site = Site::new().await;
    let identity = db::check_database(site.pool()).await.unwrap();
    assert_eq!(db::check_database(site.pool()).await.unwrap(), identity);
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    run(
        site.pool(),
        "update lease_database set timeline = timeline + 1",
    )
    .await;
    assert_eq!(db::check_database(site.pool()).await.unwrap(), identity);

    assert_eq!(
        db::attach(site.pool(), "ra", SPOOL, 2).await.unwrap(),
        AttachReply::Wait
    );
    assert_eq!(site.heartbeat("ra", &blocks).await, HeartbeatReply::Wait);
    assert_eq!(
        site.commit("ra", 3, vec![grant(&blocks[0], "10.0.0.64", 1)])
            .await,
        [refused(Refusal::StaleEpoch)]
    );
    let drained = Batch {
        key: BatchKey {
            spool_id: SPOOL,
            seq: 4,
        },
        drained: true,
        writes: vec![grant(&blocks[0], "10.0.0.64", 1)],
    };
    assert_durable(
        db::commit(site.pool(), "ra", &drained).await.unwrap()[0],
        1200,
    );
    // Nothing moves either, even from one whose until has passed.
    site.set_vlan("primary_rack = 'rb'").await;
    run(
        site.pool(),
        "update rack_session set until = now() - interval '1 hour'",
    )
    .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(
        number(
            site.pool(),
            "select count(*)::int from lease_block where owner = 'ra'"
        )
        .await,
        2
    );

    run(
        site.pool(),
        "update lease_database set hold_until = now() - interval '1 second'",
    )
    .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(site.heartbeat("ra", &blocks).await, HeartbeatReply::Attach);
    let after = site.attach("rb", SPOOL, 1).await.blocks;
    assert!(after[0].epoch.0 > blocks[0].epoch.0 + 1_000);
}

#[tokio::test]
async fn forgotten_keys_are_refused_and_ended_rests_are_cleared() {
    let site = Site::new().await;
    let block = &site.attach("ra", SPOOL, 1).await.blocks[0];
    site.commit("ra", 2, vec![grant(block, "10.0.0.64", 1)])
        .await;
    site.commit(
        "ra",
        3,
        vec![write(
            block,
            "10.0.0.65",
            WriteKind::Quarantine { length: LEASE },
        )],
    )
    .await;
    run(
        site.pool(),
        "update lease_batch set at = now() - interval '2 hours';
         update lease set quarantined_until = now() - interval '1 second', ends = now() - interval '2 hours'",
    )
    .await;
    db::settle(site.pool()).await.unwrap();
    assert_eq!(
        number(site.pool(), "select count(*)::int from lease_batch").await,
        0
    );
    // Too late to be told from a first time; the lease itself is the owner's to reclaim.
    assert_eq!(
        site.commit("ra", 3, vec![grant(block, "10.0.0.66", 2)])
            .await,
        [refused(Refusal::StaleEpoch)]
    );
    assert_eq!(
        number(site.pool(), "select count(*)::int from lease").await,
        1
    );
    assert_durable(
        site.commit("ra", 4, vec![grant(block, "10.0.0.66", 2)])
            .await[0],
        1200,
    );
}

#[tokio::test]
async fn an_operator_can_declare_a_rack_gone() {
    let site = Site::new().await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    site.set_vlan("primary_rack = 'rb'").await;
    let mut tx = site.pool().begin().await.unwrap();
    db::forget_rack(&mut tx, "ra").await.unwrap();
    tx.commit().await.unwrap();
    assert_eq!(site.attach("rb", SPOOL, 1).await.blocks.len(), 2);
    assert_eq!(
        site.commit("ra", 2, vec![grant(&blocks[0], "10.0.0.64", 1)])
            .await,
        [refused(Refusal::StaleEpoch)]
    );
}

/// A batch of 512 is one transaction of few statements, and a larger one is refused.
#[tokio::test]
async fn a_full_batch_is_written_and_a_larger_one_is_not() {
    let site = Site::new().await;
    add_range(site.pool(), site.subnet, "10.0.0.128", "10.0.0.254").await;
    let wide = number(
        site.pool(),
        &format!(
            "insert into subnet (vlan_id, name, cidr) values ({}, 'w', '10.1.0.0/16') returning id",
            site.vlan
        ),
    )
    .await;
    add_range(site.pool(), wide, "10.1.0.0", "10.1.7.255").await;
    let blocks = site.attach("ra", SPOOL, 1).await.blocks;
    let large: Vec<&Block> = blocks.iter().filter(|block| block.count == 64).collect();
    assert_eq!(large.len(), 32);
    let mut writes = Vec::new();
    for block in &large[..9] {
        let IpAddr::V4(first) = block.first else {
            panic!("IPv4")
        };
        for n in 0..64_u32 {
            let key = ClientKey::Mac([
                2,
                0,
                0,
                0,
                first.octets()[2],
                (first.octets()[3] as u32 + n) as u8,
            ]);
            let client = Client {
                vlan: block.vlan,
                key,
            };
            let address = std::net::Ipv4Addr::from(u32::from(first) + n).to_string();
            let kind = WriteKind::Grant {
                client,
                lease: LEASE,
                hostname: "".into(),
            };
            writes.push(write(block, &address, kind));
        }
    }
    let too_many = site.commit("ra", 2, writes.clone()).await;
    assert_eq!(too_many, vec![refused(Refusal::StaleEpoch); 576]);
    writes.truncate(512);
    let outcomes = site.commit("ra", 3, writes).await;
    assert!(
        outcomes
            .iter()
            .all(|outcome| matches!(outcome, Outcome::Durable { .. }))
    );
    assert_eq!(site.attach("ra", SPOOL, 4).await.rows.len(), 512);
}
