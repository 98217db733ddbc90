//! The region's settings: named JSON values (MAAS's config keys).

use serde_json::Value;
use sqlx::PgConnection;

use crate::{StoreError, feed};

/// The value of `name`; none while nobody has set it.
pub async fn get(db: &mut PgConnection, name: &str) -> Result<Option<Value>, StoreError> {
    Ok(
        sqlx::query_scalar("select value from setting where name = $1")
            .bind(name)
            .fetch_optional(db)
            .await?,
    )
}

/// A text setting, or `default` while it is unset or not a text.
pub async fn text(db: &mut PgConnection, name: &str, default: &str) -> Result<String, StoreError> {
    Ok(match get(db, name).await? {
        Some(Value::String(value)) => value,
        _ => default.to_owned(),
    })
}

/// All settings that have been set.
pub async fn all(db: &mut PgConnection) -> Result<Vec<(String, Value)>, StoreError> {
    Ok(
        sqlx::query_as("select name, value from setting order by name")
            .fetch_all(db)
            .await?,
    )
}

pub async fn set(db: &mut PgConnection, name: &str, value: &Value) -> Result<(), StoreError> {
    sqlx::query(
        "insert into setting (name, value) values ($1, $2)
         on conflict (name) do update set value = excluded.value",
    )
    .bind(name)
    .bind(value)
    .execute(&mut *db)
    .await?;
    feed::changed(db, feed::Kind::Settings, "").await
}

/// Sets `name` unless it is set already; says what holds then.
pub async fn get_or_insert(
    db: &mut PgConnection,
    name: &str,
    value: &Value,
) -> Result<Value, StoreError> {
    Ok(sqlx::query_scalar(
        "insert into setting (name, value) values ($1, $2)
         on conflict (name) do update set name = excluded.name
         returning value",
    )
    .bind(name)
    .bind(value)
    .fetch_one(db)
    .await?)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn settings_come_back() {
        let db = crate::testing::database().await;
        let mut connection = db.pool.acquire().await.unwrap();
        assert_eq!(get(&mut connection, "maas_name").await.unwrap(), None);
        assert_eq!(text(&mut connection, "maas_name", "x").await.unwrap(), "x");
        assert_eq!(
            get_or_insert(&mut connection, "uuid", &json!("a"))
                .await
                .unwrap(),
            "a"
        );
        assert_eq!(
            get_or_insert(&mut connection, "uuid", &json!("b"))
                .await
                .unwrap(),
            "a"
        );
        set(&mut connection, "maas_name", &json!("lab"))
            .await
            .unwrap();
        assert_eq!(
            text(&mut connection, "maas_name", "x").await.unwrap(),
            "lab"
        );
        let names: Vec<_> = all(&mut connection)
            .await
            .unwrap()
            .into_iter()
            .map(|(name, _)| name)
            .collect();
        assert_eq!(names, ["maas_name", "uuid"]);
    }
}
