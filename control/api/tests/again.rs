//! Requests that met a deadlock are done again, and only when nothing of them was done.

mod support;

use support::Region;

/// The next `times` writes of fabrics end as a deadlock does. A sequence counts: it is not rolled back.
async fn fail_fabrics(region: &Region, code: &str, times: u32) {
    let function = format!(
        "create or replace function fail_some() returns trigger language plpgsql as $$
         begin
             if nextval('failures') <= {times} then
                 raise exception 'in the way' using errcode = '{code}';
             end if;
             return new;
         end $$"
    );
    for statement in [
        "create sequence if not exists failures".to_owned(),
        "alter sequence failures restart".to_owned(),
        function,
        "drop trigger if exists fail_some on fabric".to_owned(),
        "create trigger fail_some before insert on fabric for each row execute function fail_some()".to_owned(),
    ] {
        sqlx::query(sqlx::AssertSqlSafe(statement))
            .execute(&region.db.pool)
            .await
            .unwrap();
    }
}

async fn tries(region: &Region) -> i64 {
    sqlx::query_scalar("select last_value from failures")
        .fetch_one(&region.db.pool)
        .await
        .unwrap()
}

#[tokio::test]
async fn a_request_that_met_a_deadlock_is_done_again_within_reason() {
    let region = Region::start().await;
    for code in ["40P01", "40001"] {
        fail_fabrics(&region, code, 2).await;
        let made = region
            .post("fabrics/", &format!("name=f{code}"))
            .await
            .json();
        assert_eq!(made["name"], format!("f{code}"));
        assert_eq!(tries(&region).await, 3, "{code}");
    }
    fail_fabrics(&region, "40P01", 1000).await;
    let refused = region.post("fabrics/", "name=never").await;
    refused.refused(503, "Other requests change the same");
    assert_eq!(refused.header("retry-after"), "10");
    assert_eq!(tries(&region).await, i64::from(store::again::TRIES));
    // Another fault is not tried again.
    fail_fabrics(&region, "53200", 1000).await;
    region
        .post("fabrics/", "name=never")
        .await
        .refused(503, "The database");
    assert_eq!(tries(&region).await, 1);
    fail_fabrics(&region, "40P01", 0).await;
    let fabrics = region.get("fabrics/").await.json();
    let names: Vec<&str> = fabrics
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect();
    assert!(
        names.contains(&"f40P01") && !names.contains(&"never"),
        "{names:?}"
    );
    assert_eq!(
        names.iter().filter(|name| name.starts_with("f40")).count(),
        2,
        "each once"
    );
}
