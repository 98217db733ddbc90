//! Machines that enlisted themselves and wait for somebody to take them up.

use std::net::IpAddr;

use model::SystemId;
use sqlx::PgConnection;

use crate::StoreError;

/// Where a machine asks to be known.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    pub rack: &'a str,
    pub vlan: Option<i32>,
    pub address: IpAddr,
}

/// Machines that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, sqlx::FromRow)]
pub struct Waiting {
    pub all: i64,
    /// That came by the same rack from the same VLAN.
    pub of_network: i64,
    /// That came from the same address in the last ten minutes.
    pub of_address: i64,
}

pub async fn waiting(db: &mut PgConnection, place: Place<'_>) -> Result<Waiting, StoreError> {
    Ok(sqlx::query_as(
        "select count(*) as all,
                count(*) filter (where enlisted_rack = $1 and enlisted_vlan is not distinct from $2) as of_network,
                count(*) filter (where enlisted_address = $3 and created > now() - interval '10 minutes') as of_address
         from machine where enlisted_rack is not null and status = 0",
    )
    .bind(place.rack)
    .bind(place.vlan)
    .bind(place.address)
    .fetch_one(db)
    .await?)
}

/// Notes where a machine that was made a moment ago came from.
pub async fn note(
    db: &mut PgConnection,
    machine: &SystemId,
    place: Place<'_>,
) -> Result<(), StoreError> {
    sqlx::query(
        "update machine set enlisted_rack = $2, enlisted_vlan = $3, enlisted_address = $4 where system_id = $1",
    )
    .bind(machine.as_str())
    .bind(place.rack)
    .bind(place.vlan)
    .bind(place.address)
    .execute(db)
    .await?;
    Ok(())
}
