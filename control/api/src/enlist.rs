//! A machine that the region does not know asks to be known: `POST machines/` without a signature, through a rack.
//!
//! The rack attests the card that asks. That card, and what every machine has, is all that is taken: a stranger chooses
//! no name, no power driver and no further card, and is told no more than which machine it is (docs/decisions/0016).

use model::{EventType, Mac, SystemId};
use serde_json::json;
use store::card::{self, Owner};
use store::enlist::{self, Place, Waiting};
use store::event::{self, NewEvent};

use crate::Attestation;
use crate::body::Form;
use crate::dispatch::{Reply, Request, json as answer};
use crate::error::ApiError;
use crate::machine::{Said, architecture_field, insert};
use crate::metadata::served_there;

/// Machines that wait to be taken up: in all, of one VLAN of one rack, and from one address in ten minutes (a lease
/// goes from one machine that enlists to the next). Beyond the first two an older one makes room.
const WAITING_MAX: i64 = 20_000;
const WAITING_OF_NETWORK_MAX: i64 = 4_096;
const RECENT_OF_ADDRESS_MAX: i64 = 8;
/// Further cards that a machine says it has, in its event.
const HINTS_MAX: usize = 16;

/// The machine behind the attested card asks to be known. Asking again gives the same answer.
pub async fn enlist(request: &Request, attestation: &Attestation) -> Reply {
    let mac = own_card(Some(attestation))?;
    let app = &request.app;
    let place = Place {
        rack: &attestation.rack,
        vlan: attestation.vlan,
        address: attestation.client_address,
    };
    let mut db = app.db().await?;
    served_there(&mut db, attestation).await?;
    if let Some(known) = registered(&mut db, mac).await? {
        return identity(&known);
    }
    let refused = |refused: ApiError| {
        app.count(|counters| &counters.enlistments_refused);
        refused
    };
    let room = room(enlist::waiting(&mut db, place).await?).map_err(refused)?;
    drop(db);
    let architecture =
        architecture_field(&request.form)?.ok_or_else(|| ApiError::required("architecture"))?;
    let said = Said::of_architecture(&architecture);
    let made = insert(app, &said, &[mac], attestation.vlan).await;
    let (mut tx, id) = match made {
        Ok(made) => made,
        // It asked twice at once.
        Err(error) => match registered(&mut *app.db().await?, mac).await? {
            Some(known) => return identity(&known),
            None => return Err(error),
        },
    };
    let has_room = match room {
        Room::Free => true,
        Room::OfNetwork => enlist::make_room(&mut tx, Some(place)).await?,
        Room::OfAll => enlist::make_room(&mut tx, None).await?,
    };
    if !has_room {
        return Err(refused(TOO_MANY));
    }
    enlist::note(&mut tx, &id, place).await?;
    event::adopt(&mut tx, &id, &[mac]).await?;
    let hints = hints(&request.form, mac);
    let mut text = format!("from {}", attestation.client_address);
    if !hints.is_empty() {
        text += &format!("; it says that it also has {}", list(&hints));
    }
    let event = NewEvent::new(EventType::MachineEnlisted)
        .machine(&id)
        .rack(&attestation.rack)
        .mac(mac)
        .text(text);
    event::record(&mut tx, event).await?;
    let shared = card::known(&mut tx, &hints).await?;
    if !shared.is_empty() {
        let text = format!("{}: enlisted without", list(&shared));
        let event = NewEvent::new(EventType::CardShared).machine(&id);
        event::record(&mut tx, event.text(text)).await?;
    }
    tx.commit().await?;
    identity(&id)
}

/// Whether a machine has the card that asks: of other cards strangers learn nothing.
pub async fn is_registered(request: &Request, mac: Mac) -> Reply {
    if request.caller.is_none() && own_card(request.attestation.as_ref())? != mac {
        return Err(ApiError::Forbidden(
            "Without a signature a machine may ask for its own network card only.".into(),
        ));
    }
    let owner = card::owner(&mut *request.app.db().await?, mac).await?;
    Ok(answer(&json!(owner.is_some())))
}

fn own_card(attestation: Option<&Attestation>) -> Result<Mac, ApiError> {
    let attestation = attestation.ok_or_else(|| {
        ApiError::Unauthorized("Without a signature machines are heard through a rack only.".into())
    })?;
    attestation.client_mac.ok_or_else(|| {
        ApiError::Forbidden(format!(
            "The rack does not know whose network card has {}.",
            attestation.client_address
        ))
    })
}

/// The machine that has this card for sure; what another's inventory says of it does not count.
async fn registered(db: &mut sqlx::PgConnection, mac: Mac) -> Result<Option<SystemId>, ApiError> {
    let owner = card::owner(db, mac).await?;
    let sure = owner.filter(|Owner { reported, .. }| !reported);
    Ok(sure.map(|owner| owner.machine))
}

fn identity(id: &SystemId) -> Reply {
    Ok(answer(&json!({
        "system_id": id.as_str(),
        "resource_uri": format!("/MAAS/api/2.0/machines/{id}/"),
    })))
}

/// Whose place one that enlists takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Room {
    Free,
    /// A waiting machine's of its own network.
    OfNetwork,
    /// A waiting machine's of the network that has most.
    OfAll,
}

const TOO_MANY: ApiError = ApiError::Unavailable("Too many machines wait to be accepted.");

fn room(waiting: Waiting) -> Result<Room, ApiError> {
    if waiting.of_address >= RECENT_OF_ADDRESS_MAX {
        return Err(ApiError::Unavailable(
            "Too many machines enlisted from this address. Try again later.",
        ));
    }
    if waiting.of_network >= WAITING_OF_NETWORK_MAX {
        return Ok(Room::OfNetwork);
    }
    if waiting.all >= WAITING_MAX {
        return Ok(Room::OfAll);
    }
    Ok(Room::Free)
}

/// Further cards that a machine says it has; what is none is left out.
fn hints(form: &Form, own: Mac) -> Vec<Mac> {
    let mut hints: Vec<Mac> = Vec::new();
    for text in form.list("mac_addresses").chain(form.list("macaddresses")) {
        let Ok(mac) = text.parse::<Mac>() else {
            continue;
        };
        if mac.is_unicast() && mac != own && !hints.contains(&mac) && hints.len() < HINTS_MAX {
            hints.push(mac);
        }
    }
    hints
}

fn list(macs: &[Mac]) -> String {
    let texts: Vec<String> = macs.iter().map(Mac::to_string).collect();
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_that_enlist_are_bounded_in_all_by_network_and_by_address() {
        let waiting = |all, of_network, of_address| Waiting {
            all,
            of_network,
            of_address,
        };
        for (waiting, want, why) in [
            (waiting(0, 0, 0), Some(Room::Free), "none"),
            (waiting(19_999, 4_095, 7), Some(Room::Free), "just so"),
            (waiting(20_000, 0, 0), Some(Room::OfAll), "in all"),
            (
                waiting(20_000, 4_096, 0),
                Some(Room::OfNetwork),
                "of the network",
            ),
            (waiting(8, 8, 8), None, "of the address"),
        ] {
            assert_eq!(room(waiting).ok(), want, "{why}");
        }
    }

    #[test]
    fn hints_are_few_and_what_is_no_card_is_none() {
        let own: Mac = "52:54:00:00:00:01".parse().unwrap();
        let macs: String = (0..40)
            .map(|n| format!("&mac_addresses=52:54:00:00:01:{n:02x}"))
            .collect();
        let body = format!(
            "mac_addresses=52:54:00:00:00:01&mac_addresses=ff:ff:ff:ff:ff:ff&mac_addresses=x{macs}{macs}"
        );
        let form = Form::urlencoded(body.as_bytes(), &crate::Limits::default()).unwrap();
        let hints = hints(&form, own);
        assert_eq!(hints.len(), HINTS_MAX);
        assert!(!hints.contains(&own) && hints.iter().all(|mac| mac.is_unicast()));
    }
}
