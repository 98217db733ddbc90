//! `events/?op=query`.

use model::{EventType, Level, Mac, Permission};
use serde_json::{Value, json};
use store::event::{Event, Filter};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::dispatch::{Access, Operation, Reply, Request, Resource, json as answer};
use crate::error::ApiError;
use crate::handler;
use crate::machine_filter::constants;

const LIMIT_DEFAULT: i64 = 100;
const LIMIT_MAX: i64 = 1000;

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "Events",
        path: "events/",
        aliases: &[],
        doc: "Retrieve filtered node events.",
        operations: vec![Operation::new(
            "GET",
            Some("query"),
            Access::With(Permission::View),
            "List events, newest first.\n\n:param hostname: Only of these machines.\n\
             :param mac_address: Only of these MAC addresses.\n:param id: Only of these system ids.\n\
             :param level: At least DEBUG, INFO (default), WARNING, ERROR or CRITICAL; AUDIT for all.\n\
             :param limit: At most so many, 100 unless told, 1000 at most.\n\
             :param before: Only events older than this event id.\n\
             :param after: Only events newer than this event id.\n:param owner: Only by this user.\n\
             :param domain: Only of machines in these domains.\n:param zone: Only of machines in this zone.\n\
             :param pool: Only of machines in this pool.\n:param agent_name: Only of machines with this agent.",
            handler!(query),
        )],
    }]
}

fn view(event: &Event) -> Value {
    let kind: Option<EventType> = event.kind.parse().ok();
    let created = format_description!(
        "[weekday repr:short], [day] [month repr:short]. [year] [hour]:[minute]:[second]"
    );
    json!({
        "username": event.username,
        "node": event.machine,
        "hostname": event.hostname,
        "id": event.id,
        "level": Level::from_number(event.level).map(Level::name).unwrap_or("INFO"),
        "created": event.at.format(&created).unwrap_or_default(),
        "type": kind.map_or(event.kind.as_str(), |kind| kind.description()),
        "description": event.description,
        // Ours: the stable name, the step of a commissioning, the exact time, the rack, the MAC.
        "event_type": event.kind,
        "step": kind.and_then(EventType::step),
        "at": event.at.to_offset(time::UtcOffset::UTC).format(&Rfc3339).unwrap_or_default(),
        "rack": event.rack,
        "mac_address": event.mac.map(|mac| mac.to_string()),
    })
}

/// The exact time as text; for other files' answers.
pub(crate) fn timestamp(at: OffsetDateTime) -> String {
    at.to_offset(time::UtcOffset::UTC)
        .format(&Rfc3339)
        .unwrap_or_default()
}

async fn query(request: Request) -> Reply {
    let query = &request.query;
    let texts = |name: &str| query.all(name).map(str::to_owned).collect::<Vec<_>>();
    let macs: Result<Vec<Mac>, _> = query.list("mac_address").map(str::parse).collect();
    let limit = query
        .parsed::<i64>("limit", "Enter a whole number.")?
        .unwrap_or(LIMIT_DEFAULT);
    if !(1..=LIMIT_MAX).contains(&limit) {
        return Err(ApiError::bad_request(
            "Requested number of events must be between 1 and 1000.",
        ));
    }
    let level = match query.filled("level") {
        None => Level::Info,
        Some(level) => level.parse().map_err(|_| {
            ApiError::bad_request(
                "Unrecognised log level: must be one of DEBUG, INFO, WARNING, ERROR, CRITICAL, AUDIT.",
            )
        })?,
    };
    let filter = Filter {
        machines: texts("id"),
        hostnames: texts("hostname"),
        domains: texts("domain"),
        macs: macs.map_err(|_| ApiError::field("mac_address", "Enter a valid MAC address."))?,
        kinds: texts("type"),
        username: query.filled("owner").map(str::to_owned),
        level: Some(level),
        before: query.parsed("before", "Enter a whole number.")?,
        after: query.parsed("after", "Enter a whole number.")?,
        limit,
    };
    let events = match constants(query) {
        true => store::event::query(&mut *request.app.db().await?, &filter).await?,
        false => Vec::new(),
    };
    let newest = events
        .first()
        .map(|event| event.id)
        .or(filter.after)
        .unwrap_or(0);
    let oldest = events
        .last()
        .map(|event| event.id)
        .or(filter.before)
        .unwrap_or(0);
    Ok(answer(&json!({
        "count": events.len(),
        "events": events.iter().map(view).collect::<Vec<_>>(),
        "next_uri": page_uri(&request, "after", newest),
        "prev_uri": page_uri(&request, "before", oldest),
    })))
}

/// The same query from another event on.
fn page_uri(request: &Request, name: &str, id: i64) -> String {
    use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
    let mut uri = "/MAAS/api/2.0/events/?op=query".to_owned();
    for (field, value) in request.query.fields() {
        if !matches!(field, "op" | "before" | "after") && !field.starts_with("oauth_") {
            let field = utf8_percent_encode(field, NON_ALPHANUMERIC);
            let value = utf8_percent_encode(value, NON_ALPHANUMERIC);
            uri.push_str(&format!("&{field}={value}"));
        }
    }
    uri.push_str(&format!("&{name}={id}"));
    uri
}
