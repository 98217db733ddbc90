//! `dhcp-options/`: options that racks send, for everybody, a subnet, a range or a reservation. Ours: MAAS has snippets of
//! isc-dhcpd's configuration here.

use std::net::IpAddr;

use model::Permission;
use model::dhcp_option::{OptionCode, OptionError, ValueType};
use serde_json::{Value, json};
use sqlx::PgConnection;
use store::dhcp::{self, DhcpOption, OptionContent, Scope};
use store::network;

use crate::body::Form;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::fabric::changed;
use crate::handler;
use crate::network_view::Networks;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditNetworks);

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "DhcpOptions",
            path: "dhcp-options/",
            aliases: &[],
            doc: "Manage DHCP options.",
            operations: vec![
                Operation::new(
                    "GET",
                    None,
                    VIEW,
                    "List DHCP options.\n\n:param scope: Only global, subnet, iprange or reserved_ip.\n\
                     :param scope_id: Only of this subnet, range or reservation.\n:param code: Only this option.",
                    handler!(list),
                ),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Create a DHCP option. The closest scope wins: reserved_ip, iprange, subnet, global.\n\n\
                     :param code: Its code, or its standard name (\"ntp-servers\").\n\
                     :param value: Text of the option's type, or its octets as 0x0a0b.\n\
                     :param type: How the value is written, if not as is standard: ip, ips, ip-pairs, bool, u8, u16, u32, i32, u16s, text, domains, routes or hex.\n\
                     :param scope: global (default), subnet, iprange or reserved_ip.\n\
                     :param scope_id: Which: its id; of a subnet also its network or name, of a reservation also its address.\n\
                     :param always: Send it whether the client asks for it or not.\n\
                     :param suppress: In place of a value: leave the option out here.\n:param comment: A comment.",
                    handler!(create),
                ),
            ],
        },
        Resource {
            name: "DhcpOption",
            path: "dhcp-options/{id}/",
            aliases: &[],
            doc: "Manage a DHCP option.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a DHCP option.", handler!(read)),
                Operation::new(
                    "PUT",
                    None,
                    EDIT,
                    "Update a DHCP option.\n\n:param value: Its value.\n:param type: How the value is written.\n\
                     :param always: Send it whether the client asks for it or not.\n\
                     :param suppress: In place of a value: leave the option out here.\n:param comment: A comment.",
                    handler!(update),
                ),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete a DHCP option.",
                    handler!(delete),
                ),
            ],
        },
    ]
}

fn view(option: &DhcpOption) -> Value {
    let (scope, scope_id) = words_of(option.scope());
    let name = OptionCode::new(option.code()).map_or("", OptionCode::name);
    json!({
        "id": option.id,
        "scope": scope,
        "scope_id": scope_id,
        "code": option.code(),
        "name": name,
        "value": option.text,
        "type": option.r#type,
        "hex": format!("0x{}", hex::encode(&option.value)),
        "always": option.always,
        "suppress": option.value.is_empty(),
        "comment": option.comment,
        "resource_uri": format!("/MAAS/api/2.0/dhcp-options/{}/", option.id),
    })
}

fn words_of(scope: Scope) -> (&'static str, Option<i32>) {
    match scope {
        Scope::Global => ("global", None),
        Scope::Subnet(id) => ("subnet", Some(id)),
        Scope::Range(id) => ("iprange", Some(id)),
        Scope::Host(id) => ("reserved_ip", Some(id)),
    }
}

async fn list(request: Request) -> Reply {
    let query = &request.query;
    let code = query.filled("code").map(str::parse::<OptionCode>);
    let code = code.transpose().map_err(|error| refused("code", &error))?;
    let scope_id: Option<i32> = query.integer("scope_id")?;
    let options = dhcp::options(&mut *request.app.db().await?).await?;
    let is_wanted = |option: &&DhcpOption| {
        let (scope, id) = words_of(option.scope());
        query.filled("scope").is_none_or(|wanted| wanted == scope)
            && scope_id.is_none_or(|wanted| id == Some(wanted))
            && code.is_none_or(|code| code.number() == option.code())
    };
    Ok(answer(
        &options.iter().filter(is_wanted).map(view).collect(),
    ))
}

async fn one(db: &mut PgConnection, id: i32) -> Reply {
    Ok(answer(&view(&dhcp::option(db, id).await?)))
}

async fn read(request: Request) -> Reply {
    let id = request.path_id("id", "DHCPOption")?;
    one(&mut *request.app.db().await?, id).await
}

fn refused(field: &str, error: &OptionError) -> ApiError {
    ApiError::field(field, error.to_string())
}

/// What a form asks an option to be.
struct Wanted {
    value: Vec<u8>,
    text: String,
    r#type: String,
    always: bool,
    comment: String,
}

const COMMENT_CHARS_MAX: usize = 255;

impl Wanted {
    /// What the form leaves open is as it was `before`.
    fn read(form: &Form, code: OptionCode, before: Option<&DhcpOption>) -> Result<Self, ApiError> {
        let always = form
            .boolean("always")?
            .unwrap_or_else(|| before.is_some_and(|before| before.always));
        let comment = form.get("comment");
        let comment = comment
            .or(before.map(|before| before.comment.as_str()))
            .unwrap_or("")
            .to_owned();
        if comment.chars().count() > COMMENT_CHARS_MAX {
            return Err(ApiError::field("comment", "At most 255 characters."));
        }
        let given = form.filled("type");
        let named = match given.or(before.map(|before| before.r#type.as_str())) {
            None | Some("") => None,
            Some(name) => Some(
                name.parse::<ValueType>()
                    .map_err(|error| ApiError::field("type", format!("{error}.")))?,
            ),
        };
        let text = form.get("value").map(str::trim);
        let suppress = form.boolean("suppress")?;
        let (value, text) = match (suppress, text, before) {
            (Some(true), None | Some(""), _) => (Vec::new(), String::new()),
            (Some(true), Some(_), _) => {
                return Err(ApiError::field(
                    "suppress",
                    "An option that is left out has no value.",
                ));
            }
            (None, None, Some(before)) if before.value.is_empty() => (Vec::new(), String::new()),
            (_, text, before) => {
                let text = text.or(before.map(|before| before.text.as_str()));
                let text = text.ok_or_else(|| ApiError::required("value"))?;
                let octets = code.encode(text, named);
                (
                    octets.map_err(|error| refused("value", &error))?,
                    text.to_owned(),
                )
            }
        };
        Ok(Self {
            value,
            text,
            r#type: named.map_or("", ValueType::name).to_owned(),
            always,
            comment,
        })
    }

    fn content(&self) -> OptionContent<'_> {
        OptionContent {
            value: &self.value,
            text: &self.text,
            r#type: &self.r#type,
            always: self.always,
            comment: &self.comment,
        }
    }
}

/// The scope a form names.
async fn scope_of(db: &mut PgConnection, form: &Form) -> Result<Scope, ApiError> {
    let scope = form.filled("scope").unwrap_or("global");
    if scope == "global" {
        return match form.filled("scope_id") {
            None => Ok(Scope::Global),
            Some(_) => Err(ApiError::field("scope_id", "The global scope has no id.")),
        };
    }
    let wanted = form.required("scope_id")?;
    let id = wanted.parse::<i32>().ok();
    let found = match scope {
        "subnet" => Networks::load(db)
            .await?
            .named(wanted)
            .map(|subnet| Scope::Subnet(subnet.id)),
        "iprange" => network::ranges(db)
            .await?
            .into_iter()
            .find(|range| Some(range.id) == id)
            .map(|range| Scope::Range(range.id)),
        "reserved_ip" => match (id, wanted.parse::<IpAddr>()) {
            (Some(id), _) => Some(store::reservation::get(db, id).await?),
            (None, Ok(ip)) => store::reservation::of_address(db, ip).await?,
            (None, Err(_)) => None,
        }
        .map(|reservation| Scope::Host(reservation.id)),
        _ => {
            return Err(ApiError::field(
                "scope",
                "Must be global, subnet, iprange or reserved_ip.",
            ));
        }
    };
    found.ok_or_else(|| ApiError::field("scope_id", format!("There is no such {scope}.")))
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let code: OptionCode = form
        .required("code")?
        .parse()
        .map_err(|error| refused("code", &error))?;
    let wanted = Wanted::read(form, code, None)?;
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let scope = scope_of(&mut tx, form).await?;
    if dhcp::option_count(&mut tx, scope).await? >= dhcp::OPTIONS_PER_SCOPE_MAX {
        return Err(ApiError::BoundMet(format!(
            "At most {} options in one scope.",
            dhcp::OPTIONS_PER_SCOPE_MAX
        )));
    }
    let id = dhcp::create_option(&mut tx, scope, code.number(), &wanted.content()).await?;
    let text = format!("DHCP option {code} set for {}", told(scope));
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    one(&mut *request.app.db().await?, id).await
}

fn told(scope: Scope) -> String {
    match words_of(scope) {
        (scope, None) => scope.to_owned(),
        (scope, Some(id)) => format!("{scope} {id}"),
    }
}

/// The option of the path and its code, for a change.
async fn found(
    request: &Request,
    db: &mut PgConnection,
) -> Result<(DhcpOption, OptionCode), ApiError> {
    let option = dhcp::option(db, request.path_id("id", "DHCPOption")?).await?;
    let code = OptionCode::new(option.code()).map_err(|error| refused("code", &error))?;
    Ok((option, code))
}

async fn update(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let (option, code) = found(&request, &mut tx).await?;
    let wanted = Wanted::read(&request.form, code, Some(&option))?;
    dhcp::update_option(&mut tx, &option, &wanted.content()).await?;
    let text = format!("DHCP option {code} changed for {}", told(option.scope()));
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    one(&mut *request.app.db().await?, option.id).await
}

async fn delete(request: Request) -> Reply {
    let mut tx = request.app.begin().await?;
    network::lock_networks(&mut tx).await?;
    let (option, code) = found(&request, &mut tx).await?;
    dhcp::delete_option(&mut tx, &option).await?;
    let text = format!("DHCP option {code} deleted for {}", told(option.scope()));
    store::event::record(&mut tx, changed(&request, text)).await?;
    tx.commit().await?;
    Ok(deleted())
}
