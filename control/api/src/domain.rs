//! `domains/`: the names that follow machines' names. Nothing answers DNS for them yet.

use model::{EventType, Permission};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::StoreError;
use store::domain::{self, Domain};
use store::event::{self, NewEvent};

use crate::constant::DOMAIN;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::handler;
use crate::lacking::{Lacking, fixed, lacks};

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);
const LACKING: &[Lacking] = &[
    fixed("authoritative", &["true", "True", "1"]),
    lacks("ttl"),
    lacks("forward_dns_servers"),
];

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "Domains",
            path: "domains/",
            aliases: &[],
            doc: "Manage DNS domains.",
            operations: vec![
                Operation::new("GET", None, VIEW, "List DNS domains.", handler!(list)),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Create a DNS domain.\n\n:param name: Its name.",
                    handler!(create),
                )
                .lacking(LACKING),
            ],
        },
        Resource {
            name: "Domain",
            path: "domains/{id}/",
            aliases: &[],
            doc: "Manage a DNS domain.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a DNS domain.", handler!(read)),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete a DNS domain that no machine is in.",
                    handler!(delete),
                ),
            ],
        },
    ]
}

/// A domain as it is shown with what is in it.
pub fn view(id: i32, name: &str) -> Value {
    json!({
        "authoritative": true,
        "ttl": null,
        "is_default": name == DOMAIN,
        "id": id,
        "name": name,
        "resource_record_count": 0,
        "resource_uri": format!("/MAAS/api/2.0/domains/{id}/"),
    })
}

/// A DNS name (RFC 1123 §2.1): labels with dots between.
pub fn is_name(text: &str) -> bool {
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    text.len() <= 253 && text.split('.').all(is_label)
}

fn named<'a>(domains: &'a [Domain], text: &str) -> Option<&'a Domain> {
    let text = text.strip_prefix("name:").unwrap_or(text);
    let by_id = text.parse::<i32>().ok();
    domains
        .iter()
        .find(|domain| Some(domain.id) == by_id || domain.name == text)
}

/// The domain that a field names, by name or number.
pub async fn in_field(db: &mut PgConnection, text: &str, field: &str) -> Result<String, ApiError> {
    if !is_name(text) {
        return Err(ApiError::field(field, "Enter a valid domain."));
    }
    let domains = domain::list(db).await?;
    match named(&domains, text) {
        Some(domain) => Ok(domain.name.clone()),
        None => Err(ApiError::field(
            field,
            "Select a valid choice. That choice is not one of the available choices: see domains/.",
        )),
    }
}

async fn list(request: Request) -> Reply {
    let domains = domain::list(&mut *request.app.db().await?).await?;
    let views = domains.iter().map(|domain| view(domain.id, &domain.name));
    Ok(answer(&views.collect()))
}

async fn found(db: &mut PgConnection, request: &Request) -> Result<Domain, ApiError> {
    let domains = domain::list(db).await?;
    let found = named(&domains, request.path("id")).cloned();
    found.ok_or_else(|| ApiError::no_such("Domain"))
}

async fn read(request: Request) -> Reply {
    let domain = found(&mut *request.app.db().await?, &request).await?;
    Ok(answer(&view(domain.id, &domain.name)))
}

async fn create(request: Request) -> Reply {
    let name = request.form.required("name")?;
    // A number would be taken for an id.
    if !is_name(name) || name.parse::<i64>().is_ok() {
        return Err(ApiError::field("name", "Enter a valid domain name."));
    }
    let mut tx = request.app.begin().await?;
    let Some(domain) = domain::create(&mut tx, name).await? else {
        if domain::list(&mut tx).await?.len() as i64 >= domain::DOMAINS_MAX {
            return Err(StoreError::Full { what: "domains" }.into());
        }
        return Err(ApiError::field(
            "name",
            "Domain with this Name already exists.",
        ));
    };
    event::record(&mut tx, told(&request, format!("Domain {name} created"))).await?;
    tx.commit().await?;
    Ok(answer(&view(domain.id, &domain.name)))
}

async fn delete(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    let domain = found(&mut tx, &request).await?;
    if domain.name == DOMAIN {
        return Err(ApiError::bad_request(
            "This domain is the default domain, it cannot be deleted.",
        ));
    }
    let machines = domain::machine_count(&mut tx, &domain.name).await?;
    if machines > 0 {
        return Err(ApiError::bad_request(format!(
            "Cannot delete the domain {}: {machines} machine(s) are in it.",
            domain.name
        )));
    }
    domain::delete(&mut tx, domain.id).await?;
    let text = format!("Domain {} deleted", domain.name);
    event::record(&mut tx, told(&request, text)).await?;
    tx.commit().await?;
    Ok(deleted())
}

fn told(request: &Request, text: String) -> NewEvent {
    NewEvent::new(EventType::NetworkChanged)
        .by(request.username())
        .text(text)
}
