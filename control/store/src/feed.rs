//! The feed's outbox: which keys changed. The values are read by the publisher (`link`).

use sqlx::PgConnection;

use crate::StoreError;

/// What a changed key belongs to; the prefix of its key in the feed (`machine:abc123`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A VLAN with its subnets and ranges; key: the VLAN's id.
    Link,
    /// Key: system_id.
    Machine,
    /// Key: hex SHA-256.
    File,
    /// Key: the path that firmware asks for.
    Loader,
    /// Key: "".
    Settings,
    /// Key: `<vlan id>:<mac>`.
    Reservation,
    /// A rack's own row (revoked, interfaces); key: system_id.
    Rack,
}

impl Kind {
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Link => "link",
            Kind::Machine => "machine",
            Kind::File => "file",
            Kind::Loader => "loader",
            Kind::Settings => "settings",
            Kind::Reservation => "reservation",
            Kind::Rack => "rack",
        }
    }
}

/// Records the change in the caller's transaction and wakes the publishers at its commit.
pub async fn changed(db: &mut PgConnection, kind: Kind, key: &str) -> Result<(), StoreError> {
    sqlx::query("insert into change (kind, key) values ($1, $2)")
        .bind(kind.as_str())
        .bind(key)
        .execute(&mut *db)
        .await?;
    sqlx::query("notify muster_feed").execute(&mut *db).await?;
    Ok(())
}
