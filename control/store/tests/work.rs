//! Claims: one process at a time does a piece of work, one piece at a time uses a BMC.

use std::time::Duration;

use model::{PowerCommand, SystemId};
use sqlx::PgPool;
use store::work::{self, WorkState};
use uuid::Uuid;

const CLAIM: Duration = Duration::from_secs(30);

/// A machine with a BMC of its own.
async fn machine(pool: &PgPool, id: &str) -> (SystemId, i32) {
    let bmc: i32 = sqlx::query_scalar("insert into bmc (power_type) values ('ipmi') returning id")
        .fetch_one(pool)
        .await
        .unwrap();
    sqlx::query("insert into machine (system_id, hostname, bmc_id) values ($1, $1, $2)")
        .bind(id)
        .bind(bmc)
        .execute(pool)
        .await
        .unwrap();
    (id.parse().unwrap(), bmc)
}

async fn enqueue(pool: &PgPool, (machine, bmc): &(SystemId, i32), command: PowerCommand) -> i64 {
    let mut tx = pool.begin().await.unwrap();
    let id = work::enqueue(&mut tx, machine, *bmc, command)
        .await
        .unwrap();
    tx.commit().await.unwrap();
    id
}

async fn state(pool: &PgPool, id: i64) -> WorkState {
    work::get(pool, id).await.unwrap().state
}

async fn expire(pool: &PgPool, id: i64) {
    sqlx::query("update work set claim_until = now() - interval '1 second' where id = $1")
        .bind(id)
        .execute(pool)
        .await
        .unwrap();
}

#[tokio::test]
async fn work_is_claimed_once_however_many_ask() {
    let db = store::testing::database().await;
    let mut ids = Vec::new();
    for number in 0..20 {
        let machine = machine(&db.pool, &format!("m{number:05}")).await;
        ids.push(enqueue(&db.pool, &machine, PowerCommand::On).await);
    }
    let claims = (0..6).map(|_| async {
        let mut got = Vec::new();
        for _ in 0..10 {
            got.extend(
                work::claim(&db.pool, 3, CLAIM)
                    .await
                    .unwrap()
                    .into_iter()
                    .map(|w| w.id),
            );
        }
        got
    });
    let mut got: Vec<i64> = futures::future::join_all(claims).await.concat();
    got.sort_unstable();
    assert_eq!(got, ids);
}

#[tokio::test]
async fn one_bmc_has_one_claim() {
    let db = store::testing::database().await;
    let one = machine(&db.pool, "aaaaaa").await;
    // Two machines in one chassis.
    let two = machine(&db.pool, "bbbbbb").await;
    let two = (two.0, one.1);
    enqueue(&db.pool, &one, PowerCommand::On).await;
    enqueue(&db.pool, &two, PowerCommand::On).await;
    let first = work::claim(&db.pool, 10, CLAIM).await.unwrap();
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].machine, one.0, "the older one");
    assert_eq!(work::claim(&db.pool, 10, CLAIM).await.unwrap(), []);
    let token = first[0].claim_token.unwrap();
    assert!(
        work::complete(&db.pool, token, WorkState::Done, "")
            .await
            .unwrap()
    );
    assert_eq!(
        work::claim(&db.pool, 10, CLAIM).await.unwrap()[0].machine,
        two.0
    );
}

#[tokio::test]
async fn a_race_for_one_bmc_has_one_winner() {
    let db = store::testing::database().await;
    let one = machine(&db.pool, "aaaaaa").await;
    let two = machine(&db.pool, "bbbbbb").await;
    let two = (two.0, one.1);
    for round in 0..20 {
        enqueue(&db.pool, &one, PowerCommand::On).await;
        enqueue(&db.pool, &two, PowerCommand::On).await;
        let (a, b) = tokio::join!(
            work::claim(&db.pool, 1, CLAIM),
            work::claim(&db.pool, 1, CLAIM)
        );
        let won: usize = [a, b]
            .into_iter()
            .map(|claimed| claimed.map_or(0, |c| c.len()))
            .sum();
        assert!(won <= 1, "round {round}: {won} claims on one BMC");
        sqlx::query("delete from work")
            .execute(&db.pool)
            .await
            .unwrap();
    }
}

#[tokio::test]
async fn an_expired_claim_is_taken_over_and_the_first_token_is_worth_nothing() {
    let db = store::testing::database().await;
    let machine = machine(&db.pool, "aaaaaa").await;
    let id = enqueue(&db.pool, &machine, PowerCommand::PxeOn).await;
    let first = work::claim(&db.pool, 1, CLAIM).await.unwrap()[0]
        .claim_token
        .unwrap();
    assert_eq!(
        work::release_expired(&db.pool).await.unwrap(),
        0,
        "it is held"
    );
    expire(&db.pool, id).await;
    assert_eq!(work::release_expired(&db.pool).await.unwrap(), 1);
    let again = work::claim(&db.pool, 1, CLAIM).await.unwrap();
    let second = again[0].claim_token.unwrap();
    assert_eq!((again[0].id, again[0].attempts), (id, 2));

    assert!(!work::extend(&db.pool, first, CLAIM).await.unwrap());
    assert!(
        !work::complete(&db.pool, first, WorkState::Done, "")
            .await
            .unwrap()
    );
    assert!(!work::retry(&db.pool, first, CLAIM, true, "").await.unwrap());
    assert!(
        !work::complete(&db.pool, Uuid::new_v4(), WorkState::Done, "")
            .await
            .unwrap()
    );
    assert_eq!(state(&db.pool, id).await, WorkState::Claimed);

    assert!(
        work::complete(&db.pool, second, WorkState::Done, "")
            .await
            .unwrap()
    );
    assert!(
        !work::complete(&db.pool, second, WorkState::Failed, "")
            .await
            .unwrap(),
        "once"
    );
    assert_eq!(state(&db.pool, id).await, WorkState::Done);
}

#[tokio::test]
async fn a_heartbeat_moves_the_end_and_never_back() {
    let db = store::testing::database().await;
    let machine = machine(&db.pool, "aaaaaa").await;
    let id = enqueue(&db.pool, &machine, PowerCommand::On).await;
    let token = work::claim(&db.pool, 1, CLAIM).await.unwrap()[0]
        .claim_token
        .unwrap();
    let left = async || -> f64 {
        let sql = "select extract(epoch from claim_until - now())::float8 from work where id = $1";
        sqlx::query_scalar(sql)
            .bind(id)
            .fetch_one(&db.pool)
            .await
            .unwrap()
    };
    assert!(work::extend(&db.pool, token, CLAIM * 3).await.unwrap());
    assert!(left().await > 80.0);
    assert!(work::extend(&db.pool, token, CLAIM).await.unwrap());
    assert!(left().await > 80.0);
}

#[tokio::test]
async fn a_newer_intent_cancels_older_ones_and_queries_join() {
    let db = store::testing::database().await;
    let machine = machine(&db.pool, "aaaaaa").await;
    let query = enqueue(&db.pool, &machine, PowerCommand::Query).await;
    let on = enqueue(&db.pool, &machine, PowerCommand::On).await;
    let off = enqueue(&db.pool, &machine, PowerCommand::Off).await;
    assert_eq!(
        enqueue(&db.pool, &machine, PowerCommand::Query).await,
        query
    );
    assert_eq!(state(&db.pool, on).await, WorkState::Cancelled);
    assert_eq!(state(&db.pool, off).await, WorkState::Queued);
    assert_eq!(state(&db.pool, query).await, WorkState::Queued);
    assert!(
        work::has_newer_intent(&db.pool, &machine.0, on)
            .await
            .unwrap()
    );
    assert!(
        !work::has_newer_intent(&db.pool, &machine.0, off)
            .await
            .unwrap()
    );
}

#[tokio::test]
async fn a_retry_waits_and_counts_only_real_attempts() {
    let db = store::testing::database().await;
    let machine = machine(&db.pool, "aaaaaa").await;
    let id = enqueue(&db.pool, &machine, PowerCommand::On).await;
    let token = work::claim(&db.pool, 1, CLAIM).await.unwrap()[0]
        .claim_token
        .unwrap();
    assert!(
        work::retry(&db.pool, token, Duration::from_secs(60), false, "no rack")
            .await
            .unwrap()
    );
    let waiting = work::get(&db.pool, id).await.unwrap();
    assert_eq!((waiting.attempts, waiting.state), (0, WorkState::Queued));
    assert_eq!(waiting.error, "no rack");
    assert_eq!(
        work::claim(&db.pool, 1, CLAIM).await.unwrap(),
        [],
        "not yet"
    );
    let due = work::next_due(&db.pool).await.unwrap().unwrap();
    assert!(
        due > Duration::from_secs(50) && due <= Duration::from_secs(60),
        "{due:?}"
    );
}
