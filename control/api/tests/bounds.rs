//! What there may only be so many of: refused past its bound, and counted.

mod support;

use std::sync::atomic::Ordering;

use support::Region;

#[tokio::test]
async fn every_bound_that_is_met_is_told_and_counted() {
    let region = Region::start().await;
    let met = || region.app.counters().bounds_met.load(Ordering::Relaxed);
    let filled = [
        "insert into domain (name) select 'd' || n from generate_series(1, 999) n",
        "insert into api_token (token_key, consumer_key, secret_sealed, account_id)
         select 'k' || n, 'c', '', (select id from account where username = 'user') from generate_series(1, 199) n",
    ];
    for statement in filled {
        sqlx::query(statement)
            .execute(&region.db.pool)
            .await
            .unwrap();
    }
    region
        .post("domains/", "name=one-more")
        .await
        .refused(400, "Too many domains");
    assert_eq!(met(), 1);
    region
        .post("domains/", "name=maas")
        .await
        .refused(400, "Too many domains");
    assert_eq!(met(), 2);
    let form = "application/x-www-form-urlencoded";
    let create = "account/?op=create_authorisation_token";
    let more = region
        .call(Some(&region.user), "POST", create, form, "name=x")
        .await;
    more.refused(400, "Too many API keys");
    assert_eq!(met(), 3);
    let others = region.post(create, "name=x").await;
    assert_eq!(others.status, 200, "another account's share");
}

/// Logging in under ever new names makes no keys without end.
#[tokio::test]
async fn a_login_makes_no_more_keys_than_an_account_may_have() {
    let region = Region::start().await;
    region
        .post("users/", "username=ada&email=a@b&password=long-enough-pw")
        .await
        .json();
    let login = async |consumer: &str| {
        let body = format!("username=ada&password=long-enough-pw&consumer={consumer}");
        let form = "application/x-www-form-urlencoded";
        region
            .call(None, "POST", "/MAAS/accounts/authenticate/", form, body)
            .await
    };
    let first = login("first").await.json();
    // 198 more, as quick as they can be made.
    let mut db = region.db.pool.acquire().await.unwrap();
    let id: i32 = sqlx::query_scalar("select id from account where username = 'ada'")
        .fetch_one(&mut *db)
        .await
        .unwrap();
    for number in 1..200 {
        let name = format!("n{number}");
        store::token::create(&mut db, &region.app.sealer, id, &name)
            .await
            .unwrap();
    }
    login("one-more").await.refused(400, "Too many API keys");
    assert_eq!(
        login("first").await.json()["token_key"],
        first["token_key"],
        "the old one is there"
    );
    let count: i64 = sqlx::query_scalar("select count(*) from api_token where account_id = $1")
        .bind(id)
        .fetch_one(&mut *db)
        .await
        .unwrap();
    assert_eq!(count, 200);
}
