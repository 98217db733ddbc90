//! Domains that machines are in.

use sqlx::PgConnection;

use crate::StoreError;

/// Past it no more are made.
pub const DOMAINS_MAX: i64 = 1_000;

#[derive(Clone, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Domain {
    pub id: i32,
    pub name: String,
}

/// By id: the default one is the first.
pub async fn list(db: &mut PgConnection) -> Result<Vec<Domain>, StoreError> {
    Ok(sqlx::query_as("select id, name from domain order by id")
        .fetch_all(db)
        .await?)
}

/// `None`: there is one of this name, or there are too many.
pub async fn create(db: &mut PgConnection, name: &str) -> Result<Option<Domain>, StoreError> {
    Ok(sqlx::query_as(
        "insert into domain (name) select $1 where (select count(*) from domain) < $2
         on conflict (name) do nothing returning id, name",
    )
    .bind(name)
    .bind(DOMAINS_MAX)
    .fetch_optional(db)
    .await?)
}

pub async fn machine_count(db: &mut PgConnection, name: &str) -> Result<i64, StoreError> {
    Ok(
        sqlx::query_scalar("select count(*) from machine where domain = $1")
            .bind(name)
            .fetch_one(db)
            .await?,
    )
}

/// One with machines: constraint `machine_domain_fkey`.
pub async fn delete(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    sqlx::query("delete from domain where id = $1")
        .bind(id)
        .execute(db)
        .await?;
    Ok(())
}
