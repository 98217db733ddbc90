//! Whose network cards are: who has a MAC address, and who loses it to whom (docs/decisions/0016).

use mac_address::MacAddress;
use model::{EventType, Mac, SystemId};
use sqlx::PgConnection;

use crate::event::{self, NewEvent};
use crate::machine::{from_db_mac, to_db_mac};
use crate::{StoreError, feed, reservation};

/// The machine that has a card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Owner {
    pub machine: SystemId,
    /// Only its own inventory says so.
    pub reported: bool,
}

pub async fn owner(db: &mut PgConnection, mac: Mac) -> Result<Option<Owner>, StoreError> {
    let row: Option<(String, bool)> =
        sqlx::query_as("select machine, reported from interface where mac = $1")
            .bind(to_db_mac(mac))
            .fetch_optional(db)
            .await?;
    row.map(|(machine, reported)| {
        Ok(Owner {
            machine: system_id(&machine)?,
            reported,
        })
    })
    .transpose()
}

/// Which of these cards machines have.
pub async fn known(db: &mut PgConnection, macs: &[Mac]) -> Result<Vec<Mac>, StoreError> {
    let found: Vec<MacAddress> =
        sqlx::query_scalar("select mac from interface where mac = any($1) order by mac")
            .bind(octets(macs))
            .fetch_all(db)
            .await?;
    Ok(found.into_iter().map(from_db_mac).collect())
}

/// Whether a rack serves a VLAN, by itself or through a relay.
pub async fn rack_serves(db: &mut PgConnection, rack: &str, vlan: i32) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (
             select from vlan v join vlan via on via.id = case when v.dhcp_on then v.id else v.relay_vlan end
             where v.id = $2 and $1 in (via.primary_rack, via.secondary_rack))",
    )
    .bind(rack)
    .bind(vlan)
    .fetch_one(db)
    .await?)
}

/// Makes room for a machine that has these cards for sure: what only another's inventory named is taken from it, and
/// users' reservations name them no longer. Events tell of both.
pub(crate) async fn make_room(db: &mut PgConnection, macs: &[Mac]) -> Result<(), StoreError> {
    let taken: Vec<(String, MacAddress)> = sqlx::query_as(
        "delete from interface where mac = any($1) and reported returning machine, mac",
    )
    .bind(octets(macs))
    .fetch_all(&mut *db)
    .await?;
    for (machine, mac) in taken {
        let (machine, mac) = (system_id(&machine)?, from_db_mac(mac));
        feed::changed(db, feed::Kind::Machine, machine.as_str()).await?;
        let text = format!("network card {mac} is another machine's, which was made with it");
        let event = NewEvent::new(EventType::CardShared).machine(&machine);
        event::record(db, event.mac(mac).text(text)).await?;
    }
    take_from_users(db, macs).await
}

/// A user's reservation that names one of these cards keeps its address and loses the card.
pub(crate) async fn take_from_users(db: &mut PgConnection, macs: &[Mac]) -> Result<(), StoreError> {
    let taken: Vec<(i32, MacAddress, String)> = sqlx::query_as(
        "select r.id, r.mac, host(r.ip) from reserved_ip r left join account a on a.id = r.account_id
         where r.mac = any($1) and r.user_reserved and not coalesce(a.is_admin, false)
         order by r.id for update of r",
    )
    .bind(octets(macs))
    .fetch_all(&mut *db)
    .await?;
    for (id, mac, ip) in taken {
        reservation::told(db, id).await?;
        sqlx::query("update reserved_ip set mac = null where id = $1")
            .bind(id)
            .execute(&mut *db)
            .await?;
        let text = format!("{ip}: {} is a machine's", from_db_mac(mac));
        let event = NewEvent::new(EventType::ReservationTaken).mac(from_db_mac(mac));
        event::record(db, event.text(text)).await?;
    }
    Ok(())
}

fn octets(macs: &[Mac]) -> Vec<MacAddress> {
    macs.iter().copied().map(to_db_mac).collect()
}

fn system_id(text: &str) -> Result<SystemId, StoreError> {
    text.parse()
        .map_err(|_| StoreError::Corrupt { what: "system id" })
}
