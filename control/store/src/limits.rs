//! How long a statement, a wait for a lock and an idle transaction may last, by kind of connection.
//!
//! What no client waits for may take longer, and says so by [`long_job`].

use std::time::Duration;

use sqlx::PgConnection;

use crate::StoreError;

/// Zero: no limit.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub statement: Duration,
    pub lock: Duration,
    /// A transaction that idles is a fault, and must not keep its locks: PostgreSQL ends its session.
    pub idle_in_transaction: Duration,
}

/// Requests, and the workflow's short transactions.
pub(crate) const API: Limits = Limits {
    statement: Duration::from_secs(30),
    lock: Duration::from_secs(10),
    idle_in_transaction: Duration::from_secs(15),
};
/// Racks: an attach reads every lease of a rack.
pub(crate) const LINK: Limits = Limits {
    statement: Duration::from_secs(60),
    lock: Duration::from_secs(10),
    idle_in_transaction: Duration::from_secs(15),
};
/// Migrations.
pub(crate) const NONE: Limits = Limits {
    statement: Duration::ZERO,
    lock: Duration::ZERO,
    idle_in_transaction: Duration::ZERO,
};
/// For a connection of the pool; then the request is told to come back.
pub(crate) const ACQUIRE: Duration = Duration::from_secs(10);
/// Of one statement of a long job.
const LONG: Duration = Duration::from_secs(600);

impl Limits {
    pub(crate) fn settings(self) -> [(&'static str, String); 3] {
        let ms = |limit: Duration| limit.as_millis().to_string();
        [
            ("statement_timeout", ms(self.statement)),
            ("lock_timeout", ms(self.lock)),
            (
                "idle_in_transaction_session_timeout",
                ms(self.idle_in_transaction),
            ),
        ]
    }
}

/// Lets the statements of this transaction take long; `pg_stat_activity` shows the name of the job meanwhile.
pub async fn long_job(tx: &mut PgConnection, name: &'static str) -> Result<(), StoreError> {
    sqlx::query(
        "select set_config('statement_timeout', $1, true), set_config('application_name', $2, true)",
    )
    .bind(LONG.as_millis().to_string())
    .bind(format!("regiond {name}"))
    .execute(tx)
    .await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;
    use sqlx::postgres::{PgConnectOptions, PgPoolOptions};

    async fn shown(db: &mut PgConnection, name: &str) -> String {
        sqlx::query_scalar("select current_setting($1)")
            .bind(name)
            .fetch_one(db)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn every_kind_of_connection_has_its_limits_and_long_jobs_are_named() {
        let db = testing::database().await;
        let main = crate::connect(&db.url, 1).await.unwrap();
        let options: PgConnectOptions = db.url.parse().unwrap();
        let link = PgPoolOptions::new().connect_lazy_with(crate::link_options(options));
        for (pool, statement) in [(&main, "30s"), (&link, "1min")] {
            let mut db = pool.acquire().await.unwrap();
            for (name, want) in [
                ("statement_timeout", statement),
                ("lock_timeout", "10s"),
                ("idle_in_transaction_session_timeout", "15s"),
                ("synchronous_commit", "on"),
            ] {
                assert_eq!(shown(&mut db, name).await, want, "{name}");
            }
        }
        let mut tx = main.begin().await.unwrap();
        long_job(&mut tx, "housekeeping").await.unwrap();
        assert_eq!(shown(&mut tx, "statement_timeout").await, "10min");
        assert_eq!(
            shown(&mut tx, "application_name").await,
            "regiond housekeeping"
        );
        tx.commit().await.unwrap();
        let mut db = main.acquire().await.unwrap();
        assert_eq!(shown(&mut db, "statement_timeout").await, "30s");
        assert_eq!(shown(&mut db, "application_name").await, "regiond");
    }

    #[tokio::test]
    async fn a_peer_s_stuck_transaction_ends_and_gives_its_locks_back() {
        let db = testing::database().await;
        let limits = Limits {
            idle_in_transaction: Duration::from_millis(100),
            ..API
        };
        let peer = crate::connect_within(&db.url, 1, limits).await.unwrap();
        let lock = "select id from fabric order by id limit 1 for update";
        sqlx::query("insert into fabric (name) values ('locked')")
            .execute(&peer)
            .await
            .unwrap();
        let mut stuck = peer.begin().await.unwrap();
        sqlx::query(lock).execute(&mut *stuck).await.unwrap();
        // It says nothing more, and the other gets the row by and by.
        let ours = crate::connect(&db.url, 1).await.unwrap();
        let mut tx = ours.begin().await.unwrap();
        sqlx::query(lock).execute(&mut *tx).await.unwrap();
        assert!(stuck.commit().await.is_err());
    }

    #[tokio::test]
    async fn a_statement_and_a_wait_for_a_lock_end_at_their_limits() {
        let db = testing::database().await;
        let limits = Limits {
            statement: Duration::from_millis(300),
            lock: Duration::from_millis(50),
            ..API
        };
        let pool = crate::connect_within(&db.url, 2, limits).await.unwrap();
        let slow = sqlx::query("select pg_sleep(600)").execute(&pool).await;
        let error = StoreError::from(slow.unwrap_err());
        assert!(error.is_transient(), "{error:?}");
        let mut holder = pool.begin().await.unwrap();
        let lock = "lock table fabric in exclusive mode";
        sqlx::query(lock).execute(&mut *holder).await.unwrap();
        let mut waiter = pool.begin().await.unwrap();
        let error = StoreError::from(sqlx::query(lock).execute(&mut *waiter).await.unwrap_err());
        assert!(error.is_transient(), "{error:?}");
    }
}
