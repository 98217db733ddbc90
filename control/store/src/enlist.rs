//! Machines that enlisted themselves and wait for somebody to take them up.

use std::net::IpAddr;

use mac_address::MacAddress;
use model::{EventType, SystemId};
use sqlx::PgConnection;

use crate::StoreError;
use crate::event::{self, NewEvent};
use crate::machine::{self, from_db_mac};

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

/// Takes one waiting machine away, so that another may enlist: of those that came by the same rack from the same VLAN, or
/// without a place of all. The network with most gives first, then the address with most, then the oldest goes. A machine
/// that somebody changed since stays. `false`: there is none.
pub async fn make_room(
    db: &mut PgConnection,
    of_network: Option<Place<'_>>,
) -> Result<bool, StoreError> {
    // Two that enlist at once must not both take the same one; one that is being changed is somebody's.
    let oldest: Option<(String, String, Option<IpAddr>)> = sqlx::query_as(
        "select system_id, hostname, enlisted_address from machine
         where updated = created and status = 0 and system_id = (
             select system_id from (
                 select system_id, created,
                        count(*) over (partition by enlisted_rack, enlisted_vlan) as of_network,
                        count(*) over (partition by enlisted_rack, enlisted_vlan, enlisted_address) as of_address
                 from machine
                 where enlisted_rack is not null and status = 0
                   and updated = created and not locked and owner_id is null and bmc_id is null
                   and (not $1 or enlisted_rack = $2 and enlisted_vlan is not distinct from $3)) waiting
             order by of_network desc, of_address desc, created, system_id limit 1)
         for update skip locked",
    )
    .bind(of_network.is_some())
    .bind(of_network.map(|place| place.rack))
    .bind(of_network.and_then(|place| place.vlan))
    .fetch_optional(&mut *db)
    .await?;
    let Some((id, hostname, address)) = oldest else {
        return Ok(false);
    };
    let card: Option<MacAddress> =
        sqlx::query_scalar("select mac from interface where machine = $1 order by id limit 1")
            .bind(&id)
            .fetch_optional(&mut *db)
            .await?;
    let id: SystemId = id
        .parse()
        .map_err(|_| StoreError::Corrupt { what: "system id" })?;
    machine::delete(db, &id).await?;
    // Its own events are gone with it.
    let from = address.map_or(String::new(), |address| format!(" from {address}"));
    let mut event = NewEvent::new(EventType::EnlistedGone).text(format!(
        "Machine {hostname} ({id}){from}: nobody took it up"
    ));
    event.mac = card.map(from_db_mac);
    event.rack = of_network.map(|place| place.rack.to_owned());
    event::record(db, event).await?;
    Ok(true)
}
