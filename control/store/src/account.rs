//! Accounts: who may call the API. Passwords arrive here already hashed.

use sqlx::PgConnection;
use time::OffsetDateTime;

use crate::StoreError;

/// An account. Not `Debug`: it holds the password's hash.
#[derive(Clone, sqlx::FromRow)]
pub struct Account {
    pub id: i32,
    pub username: String,
    pub email: String,
    /// A PHC string, or something that no password matches.
    pub password_hash: String,
    pub is_admin: bool,
    pub created: OffsetDateTime,
}

pub struct NewAccount<'a> {
    pub username: &'a str,
    pub email: &'a str,
    pub password_hash: &'a str,
    pub is_admin: bool,
}

/// A username that is taken: [`StoreError::Constraint`] `account_username_key`.
pub async fn create(db: &mut PgConnection, new: &NewAccount<'_>) -> Result<Account, StoreError> {
    Ok(sqlx::query_as(
        "insert into account (username, email, password_hash, is_admin) values ($1, $2, $3, $4)
         returning id, username, email, password_hash, is_admin, created",
    )
    .bind(new.username)
    .bind(new.email)
    .bind(new.password_hash)
    .bind(new.is_admin)
    .fetch_one(db)
    .await?)
}

pub async fn find(db: &mut PgConnection, username: &str) -> Result<Option<Account>, StoreError> {
    Ok(sqlx::query_as(
        "select id, username, email, password_hash, is_admin, created
         from account where username = $1",
    )
    .bind(username)
    .fetch_optional(db)
    .await?)
}

pub async fn list(db: &mut PgConnection) -> Result<Vec<Account>, StoreError> {
    Ok(sqlx::query_as(
        "select id, username, email, password_hash, is_admin, created from account order by username",
    )
    .fetch_all(db)
    .await?)
}

/// Sets a new password and ends nothing else: API tokens stay.
pub async fn set_password(
    db: &mut PgConnection,
    username: &str,
    password_hash: &str,
) -> Result<(), StoreError> {
    let done = sqlx::query("update account set password_hash = $2 where username = $1")
        .bind(username)
        .bind(password_hash)
        .execute(db)
        .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::not_found("account", username));
    }
    Ok(())
}

/// What an account holds, in words: "2 machine(s)". An owner is not deleted.
pub async fn holdings(db: &mut PgConnection, id: i32) -> Result<Vec<String>, StoreError> {
    let (machines, addresses, ranges): (i64, i64, i64) = sqlx::query_as(
        "select (select count(*) from machine where owner_id = $1),
                (select count(*) from reserved_ip where account_id = $1),
                (select count(*) from iprange where account_id = $1)",
    )
    .bind(id)
    .fetch_one(db)
    .await?;
    let kinds = [
        (addresses, "static IP address(es)"),
        (ranges, "IP range(s)"),
        (machines, "node(s)"),
    ];
    let held = kinds.into_iter().filter(|(count, _)| *count > 0);
    Ok(held
        .map(|(count, kind)| format!("{count} {kind}"))
        .collect())
}

/// Gives what an account holds to another one.
pub async fn transfer(db: &mut PgConnection, from: i32, to: i32) -> Result<(), StoreError> {
    for statement in [
        "update machine set owner_id = $2 where owner_id = $1",
        "update reserved_ip set account_id = $2 where account_id = $1",
        "update iprange set account_id = $2 where account_id = $1",
    ] {
        sqlx::query(statement)
            .bind(from)
            .bind(to)
            .execute(&mut *db)
            .await?;
    }
    Ok(())
}

/// Deletes the account and its tokens. Says whether there was one.
pub async fn delete(db: &mut PgConnection, username: &str) -> Result<bool, StoreError> {
    let done = sqlx::query("delete from account where username = $1")
        .bind(username)
        .execute(db)
        .await?;
    Ok(done.rows_affected() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn accounts_are_unique_by_name() {
        let db = crate::testing::database().await;
        let mut connection = db.pool.acquire().await.unwrap();
        let new = NewAccount {
            username: "ada",
            email: "ada@example.com",
            password_hash: "!",
            is_admin: true,
        };
        let made = create(&mut connection, &new).await.unwrap();
        assert_eq!(
            find(&mut connection, "ada").await.unwrap().unwrap().id,
            made.id
        );
        let again = create(&mut connection, &new).await;
        assert!(
            matches!(&again, Err(StoreError::Constraint { constraint }) if constraint == "account_username_key")
        );
        assert!(set_password(&mut connection, "bob", "x").await.is_err());
        set_password(&mut connection, "ada", "x").await.unwrap();
        assert_eq!(list(&mut connection).await.unwrap()[0].password_hash, "x");
        assert!(delete(&mut connection, "ada").await.unwrap());
        assert!(!delete(&mut connection, "ada").await.unwrap());
    }
}
