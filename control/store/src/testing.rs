//! A fresh, migrated database for a test: real PostgreSQL, one database per test.
//!
//! With `MUSTER_TEST_DATABASE_URL` (a superuser's URL of a running cluster) a database is made in it and
//! dropped afterwards; without, a private cluster is started for this process in a temporary folder.

use std::str::FromStr;

use sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection, PgPool};

use crate::cluster::Cluster;

pub struct TestDatabase {
    pub pool: PgPool,
    /// For what opens its own connections (another pool, a regiond process).
    pub url: String,
    name: String,
    admin: PgConnectOptions,
    /// Ended, and its folder removed, when the test is over.
    cluster: Option<(Cluster, std::path::PathBuf)>,
}

/// Makes the database. Panics where a test could not go on anyway.
pub async fn database() -> TestDatabase {
    let (admin_url, cluster) = match std::env::var("MUSTER_TEST_DATABASE_URL") {
        Ok(url) => (url, None),
        Err(_) => {
            let folder =
                std::env::temp_dir().join(format!("muster-test-{}", uuid::Uuid::new_v4().simple()));
            let cluster = Cluster::start(&folder)
                .await
                .expect("a private PostgreSQL cluster starts");
            (cluster.url(), Some((cluster, folder)))
        }
    };
    let admin = PgConnectOptions::from_str(&admin_url).expect("the database URL parses");
    let name = format!("test_{}", uuid::Uuid::new_v4().simple());
    let mut connection = admin.connect().await.expect("PostgreSQL answers");
    sqlx::query(AssertSqlSafe(format!("create database {name}")))
        .execute(&mut connection)
        .await
        .expect("a database for the test");
    connection.close().await.expect("the connection closes");
    let options = admin.clone().database(&name);
    let url = options.to_url_lossy().to_string();
    let pool = PgPoolOptions::new()
        .max_connections(8)
        .connect_with(options)
        .await
        .expect("the new database answers");
    crate::migrate(&pool).await.expect("the migrations apply");
    TestDatabase {
        pool,
        url,
        name,
        admin,
        cluster,
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let (name, admin) = (self.name.clone(), self.admin.clone());
        let cluster = self.cluster.take();
        // Drop can't await and the test's runtime may be a current-thread one: a thread of its own.
        let cleanup = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            let Ok(runtime) = runtime else { return };
            runtime.block_on(async move {
                if let Some((mut cluster, folder)) = cluster {
                    cluster.stop().await.ok();
                    std::fs::remove_dir_all(folder).ok();
                } else if let Ok(mut connection) = PgConnection::connect_with(&admin).await {
                    let sql = format!("drop database if exists {name} with (force)");
                    sqlx::query(AssertSqlSafe(sql))
                        .execute(&mut connection)
                        .await
                        .ok();
                }
            });
        });
        cleanup.join().ok();
    }
}
