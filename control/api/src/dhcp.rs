//! `dhcp/`: what holds for DHCP everywhere (the lease time), and following single machines' exchanges.

use model::dhcp::LEASE_SECS;
use model::{EventType, Mac, Permission};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::dhcp::{self, Trace};
use store::event::NewEvent;
use store::network;

use crate::body::Form;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::error::ApiError;
use crate::event::timestamp;
use crate::fabric::changed;
use crate::handler;
use crate::reservation::mac_of;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);
const TRACE_SECS_DEFAULT: i32 = 600;
const TRACE_SECS_MAX: i32 = 86_400;

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "Dhcp",
        path: "dhcp/",
        aliases: &[],
        doc: "What holds for DHCP everywhere.",
        operations: vec![
            Operation::new(
                "GET",
                None,
                VIEW,
                "Read the lease time and the machines that are followed.",
                handler!(read),
            ),
            Operation::new(
                "PUT",
                None,
                EDIT,
                "Set what holds where no subnet says otherwise.\n\n\
                 :param lease_secs: Length of a lease, 30 to 86400.",
                handler!(update),
            ),
            Operation::new(
                "POST",
                Some("trace"),
                EDIT,
                "Follow a machine: racks report each of its DHCP messages and what became of it, as events of type \
                 DHCP_TRACE.\n\n:param mac_address: The machine.\n\
                 :param secs: For so long, 600 unless told, a day at most.",
                handler!(trace),
            ),
            Operation::new(
                "POST",
                Some("end_trace"),
                EDIT,
                "Stop following a machine.\n\n:param mac_address: The machine.",
                handler!(end_trace),
            ),
        ],
    }]
}

/// The lease time of a form. The outer `None`: it says nothing; the inner one: it is to be that of the wider scope.
pub(crate) fn lease_field(form: &Form) -> Result<Option<Option<i32>>, ApiError> {
    let Some(text) = form.get("lease_secs").map(str::trim) else {
        return Ok(None);
    };
    if text.is_empty() {
        return Ok(Some(None));
    }
    match text.parse() {
        Ok(secs) if LEASE_SECS.contains(&secs) => Ok(Some(Some(secs))),
        _ => Err(ApiError::field(
            "lease_secs",
            format!(
                "Must be between {} and {}.",
                LEASE_SECS.start(),
                LEASE_SECS.end()
            ),
        )),
    }
}

async fn view(db: &mut PgConnection) -> Result<Value, ApiError> {
    let traces = dhcp::traces(db).await?;
    let traces = traces.iter().map(
        |Trace {
             mac,
             until,
             username,
         }| {
            json!({
                "mac_address": Mac::new(*mac).to_string(),
                "until": timestamp(*until),
                "username": username,
            })
        },
    );
    Ok(json!({
        "traces": traces.collect::<Vec<_>>(),
        "lease_secs": dhcp::lease_secs(db).await?,
        "resource_uri": "/MAAS/api/2.0/dhcp/",
    }))
}

async fn read(request: Request) -> Reply {
    Ok(answer(&view(&mut *request.app.db().await?).await?))
}

async fn update(request: Request) -> Reply {
    let secs = lease_field(&request.form)?.flatten();
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    if let Some(secs) = secs {
        dhcp::set_lease_secs(&mut tx, secs).await?;
        let text = format!("Lease time set to {secs} s");
        store::event::record(&mut tx, changed(&request, text)).await?;
    }
    tx.commit().await?;
    read(request).await
}

/// The machine that a form names.
fn machine_of(form: &Form) -> Result<Mac, ApiError> {
    mac_of(form, "mac_address")?.ok_or_else(|| ApiError::required("mac_address"))
}

async fn trace(request: Request) -> Reply {
    let mac = machine_of(&request.form)?;
    let secs = request.form.integer("secs")?.unwrap_or(TRACE_SECS_DEFAULT);
    if !(1..=TRACE_SECS_MAX).contains(&secs) {
        return Err(ApiError::field("secs", "Must be between 1 and 86400."));
    }
    let mut tx = request.app.begin().await?;
    if !dhcp::trace(&mut tx, mac.octets(), secs, &request.username()).await? {
        request.app.count(|counters| &counters.bounds_met);
        return Err(ApiError::conflict(format!(
            "{} machines are followed already.",
            dhcp::TRACES_MAX
        )));
    }
    store::event::record(
        &mut tx,
        told(&request, mac, format!("Followed for {secs} s")),
    )
    .await?;
    tx.commit().await?;
    read(request).await
}

async fn end_trace(request: Request) -> Reply {
    let mac = machine_of(&request.form)?;
    let mut tx = request.app.begin().await?;
    dhcp::end_trace(&mut tx, mac.octets()).await?;
    store::event::record(&mut tx, told(&request, mac, "Followed no longer".into())).await?;
    tx.commit().await?;
    read(request).await
}

fn told(request: &Request, mac: Mac, text: String) -> NewEvent {
    NewEvent::new(EventType::DhcpTrace)
        .mac(mac)
        .by(request.username())
        .text(text)
}
