//! `machines/`: list, create (also by a machine that enlists itself), change, delete, and what is asked of one.

use model::{EventType, Mac, MachineStatus, Permission, PowerCommand, PowerState, SystemId};
use rand::Rng;
use serde_json::{Map, Value, json};
use sqlx::PgConnection;
use store::event::{self, NewEvent};
use store::machine::{self, Filter, Machine, MachineChange, NewMachine};
use store::{StoreError, bmc};
use workflow::CommissionOptions;

use crate::body::Form;
use crate::constant;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::machine_view::views;
use crate::power::{self, PowerForm};
use crate::{App, enlist, handler};

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditMachines);
const SECRETS: Access = Access::With(Permission::ViewPowerSecrets);

/// Of one machine.
const MACS_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 4096;
/// New ids to try before giving up.
const ID_TRIES: usize = 8;

const ARCHITECTURES: [&str; 7] = [
    "amd64", "arm64", "armhf", "i386", "ppc64el", "riscv64", "s390x",
];

const PARAMETERS: &str = ":param hostname: Its name.\n:param domain: Its DNS domain.\n\
    :param description: A description.\n:param architecture: \"amd64/generic\".\n\
    :param min_hwe_kernel: The oldest kernel that may run on it.\n\
    :param power_type: ipmi, webhook or manual.\n\
    :param power_parameters_{param}: A parameter of the power type.\n\
    :param power_parameters: All of them, as a JSON object.";

pub fn resources() -> Vec<Resource> {
    let post = |op, doc, handler| Operation::new("POST", Some(op), EDIT, doc, handler);
    vec![
        Resource {
            name: "Machines",
            path: "machines/",
            aliases: &[],
            doc: "Manage the collection of all the machines.",
            operations: vec![
                Operation::new(
                    "GET",
                    None,
                    VIEW,
                    "List machines.\n\n:param hostname: Only these.\n:param id: Only these system ids.\n\
                     :param mac_address: Only with these MAC addresses.\n:param status: Only in these statuses.\n\
                     :param power_state: Only in these power states.\n:param domain: Only in these domains.\n\
                     :param owner: Only of these users.\n:param arch: Only of these architectures.",
                    handler!(list),
                ),
                Operation::new(
                    "POST",
                    None,
                    Access::Anonymous,
                    "Create a machine.\n\n:param mac_addresses: Its MAC addresses.\n\
                     :param commission: Whether to commission it at once.\n\
                     :param hostname: Its name.\n:param domain: Its DNS domain.\n\
                     :param description: A description.\n:param architecture: \"amd64/generic\".\n\
                     :param power_type: ipmi, webhook or manual.\n\
                     :param power_parameters_{param}: A parameter of the power type.",
                    handler!(create),
                ),
                Operation::new(
                    "GET",
                    Some("is_registered"),
                    Access::Anonymous,
                    "Say whether a MAC address belongs to a machine.\n\n:param mac_address: The address.",
                    handler!(is_registered),
                ),
                Operation::new(
                    "GET",
                    Some("list_allocated"),
                    VIEW,
                    "List the machines allocated to oneself.",
                    handler!(list_allocated),
                ),
                Operation::new(
                    "GET",
                    Some("power_parameters"),
                    SECRETS,
                    "Read the power parameters of machines, secrets too.\n\n:param id: Which machines.",
                    handler!(many_power_parameters),
                ),
            ],
        },
        Resource {
            name: "Machine",
            path: "machines/{system_id}/",
            aliases: &[],
            doc: "Manage an individual machine.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a machine.", handler!(read)),
                Operation::new("PUT", None, EDIT, PARAMETERS, handler!(update)),
                Operation::new("DELETE", None, EDIT, "Delete a machine.", handler!(delete)),
                post(
                    "commission",
                    "Begin commissioning a machine.\n\n:param enable_ssh: Stay on and open afterwards.\n\
                     :param commissioning_scripts: Further scripts, by name or tag.",
                    handler!(commission),
                ),
                post(
                    "abort",
                    "Abort what the machine is doing.\n\n:param comment: Why.",
                    handler!(abort),
                ),
                post(
                    "power_on",
                    "Turn a machine on.\n\n:param comment: Why.",
                    handler!(power_on),
                ),
                post(
                    "power_off",
                    "Turn a machine off.\n\n:param comment: Why.",
                    handler!(power_off),
                ),
                Operation::new(
                    "GET",
                    Some("query_power_state"),
                    VIEW,
                    "Ask a machine's BMC for its power state.",
                    handler!(query_power_state),
                ),
                Operation::new(
                    "GET",
                    Some("power_parameters"),
                    SECRETS,
                    "Read a machine's power parameters, secrets too.",
                    handler!(power_parameters),
                ),
            ],
        },
    ]
}

//---------------------------------------------------------------- reading

fn words<T>(form: &Form, name: &str, word: impl Fn(&str) -> Option<T>) -> Result<Vec<T>, ApiError> {
    form.list(name)
        .map(|text| {
            word(text).ok_or_else(|| {
                let shown: String = text.chars().take(64).collect();
                ApiError::field(name, format!("'{shown}' is not a valid {name}."))
            })
        })
        .collect()
}

fn status_of(word: &str) -> Option<MachineStatus> {
    MachineStatus::ALL
        .into_iter()
        .find(|status| status.filter_word() == word || status.number().to_string() == word)
}

/// `None`: a condition that no machine here can meet.
fn filter(query: &Form) -> Result<Option<Filter>, ApiError> {
    let texts = |name: &str| query.all(name).map(str::to_owned).collect::<Vec<_>>();
    // There is one zone, one pool, and no tag.
    let only_default = |name: &str| query.all(name).all(|value| value == "default");
    let has = |name: &str| query.filled(name).is_some();
    if !only_default("zone") || !only_default("pool") || has("tags") || has("agent_name") {
        return Ok(None);
    }
    if query
        .all("not_in_zone")
        .chain(query.all("not_in_pool"))
        .any(|name| name == "default")
    {
        return Ok(None);
    }
    let mut ids = texts("id");
    ids.extend(texts("system_id"));
    Ok(Some(Filter {
        ids,
        hostnames: texts("hostname"),
        macs: words(query, "mac_address", |text| text.parse().ok())?,
        domains: texts("domain"),
        architectures: query
            .list("arch")
            .map(|arch| {
                if arch.contains('/') {
                    arch.to_owned()
                } else {
                    format!("{arch}/generic")
                }
            })
            .collect(),
        owners: texts("owner"),
        statuses: words(query, "status", status_of)?,
        not_statuses: words(query, "not_status", status_of)?,
        power_states: words(query, "power_state", |text| text.parse().ok())?,
        vlans: words(query, "vlans", |text| {
            text.strip_prefix("id:")
                .or(text.strip_prefix("vlan:"))
                .unwrap_or(text)
                .parse()
                .ok()
        })?,
        cpu_count: query.parsed("cpu_count", "Enter a whole number.")?,
        memory_mib: query.parsed("mem", "Enter a whole number.")?,
    }))
}

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let machines = match filter(&request.query)? {
        Some(filter) => machine::list(&mut db, &filter).await?,
        None => Vec::new(),
    };
    Ok(answer(&views(&mut db, &machines).await?.into()))
}

async fn list_allocated(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let filter = Filter {
        owners: vec![request.username()],
        statuses: vec![MachineStatus::Allocated],
        ..Filter::default()
    };
    let machines = machine::list(&mut db, &filter).await?;
    Ok(answer(&views(&mut db, &machines).await?.into()))
}

fn id_of(request: &Request) -> Result<SystemId, ApiError> {
    request
        .path("system_id")
        .parse()
        .map_err(|_| ApiError::no_such("Machine"))
}

async fn one(db: &mut PgConnection, id: &SystemId) -> Reply {
    let machine = machine::get(&mut *db, id).await?;
    Ok(answer(
        &views(db, &[machine]).await?.pop().unwrap_or_default(),
    ))
}

async fn read(request: Request) -> Reply {
    one(&mut *request.app.db().await?, &id_of(&request)?).await
}

async fn is_registered(request: Request) -> Reply {
    let mac: Mac = request
        .query
        .required("mac_address")?
        .parse()
        .map_err(|_| ApiError::field("mac_address", "Enter a valid MAC address."))?;
    enlist::is_registered(&request, mac).await
}

async fn power_parameters(request: Request) -> Reply {
    let id = id_of(&request)?;
    let mut db = request.app.db().await?;
    machine::get(&mut db, &id).await?;
    Ok(answer(
        &power::parameters(&mut db, &request.app.sealer, &id).await?,
    ))
}

async fn many_power_parameters(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let filter = Filter {
        ids: request.query.all("id").map(str::to_owned).collect(),
        ..Filter::default()
    };
    let machines: Vec<Machine> = machine::list(&mut db, &filter).await?;
    let mut all = Map::new();
    for machine in &machines {
        let id = machine.system_id;
        all.insert(
            id.to_string(),
            power::parameters(&mut db, &request.app.sealer, &id).await?,
        );
    }
    Ok(answer(&Value::Object(all)))
}

//---------------------------------------------------------------- what a form asks for

/// A name and the domain that may follow it (RFC 1123 §2.1).
fn hostname_field(form: &Form) -> Result<Option<(&str, Option<&str>)>, ApiError> {
    let Some(text) = form.filled("hostname") else {
        return Ok(None);
    };
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label
                .bytes()
                .all(|c| c.is_ascii_alphanumeric() || c == b'-')
    };
    if text.len() > 253 || !text.split('.').all(is_label) {
        return Err(ApiError::field("hostname", "Enter a valid hostname."));
    }
    Ok(Some(match text.split_once('.') {
        Some((name, domain)) => (name, Some(domain)),
        None => (text, None),
    }))
}

fn domain_field(form: &Form) -> Result<Option<&str>, ApiError> {
    match form.filled("domain") {
        Some("0") => Ok(Some(constant::DOMAIN)),
        Some(text)
            if text.len() > 253
                || !text
                    .bytes()
                    .all(|c| c.is_ascii_alphanumeric() || b"-.".contains(&c)) =>
        {
            Err(ApiError::field("domain", "Enter a valid domain."))
        }
        domain => Ok(domain),
    }
}

/// "amd64/generic"; the second part may be a field of its own, or missing.
pub(crate) fn architecture_field(form: &Form) -> Result<Option<String>, ApiError> {
    let Some(text) = form.filled("architecture") else {
        return Ok(None);
    };
    let (arch, subarch) = match text.split_once('/') {
        Some((arch, subarch)) => (arch, subarch),
        None => (text, form.filled("subarchitecture").unwrap_or("generic")),
    };
    let is_fine = |c: u8| c.is_ascii_alphanumeric() || b"-_.".contains(&c);
    if !ARCHITECTURES.contains(&arch) || subarch.is_empty() || !subarch.bytes().all(is_fine) {
        let shown: String = text.chars().take(64).collect();
        let known = ARCHITECTURES
            .map(|arch| format!("'{arch}/generic'"))
            .join(", ");
        return Err(ApiError::field(
            "architecture",
            format!("'{shown}' is not a valid architecture. It should be one of: {known}."),
        ));
    }
    Ok(Some(format!("{arch}/{subarch}")))
}

fn description_field(form: &Form) -> Result<Option<&str>, ApiError> {
    match form.get("description") {
        Some(text) if text.chars().count() > DESCRIPTION_CHARS_MAX => {
            Err(ApiError::field("description", "At most 4096 characters."))
        }
        description => Ok(description),
    }
}

fn macs_field(form: &Form) -> Result<Vec<Mac>, ApiError> {
    let mut macs: Vec<Mac> = Vec::new();
    for text in form.list("mac_addresses").chain(form.list("macaddresses")) {
        let mac: Mac = text
            .parse()
            .ok()
            .filter(|mac: &Mac| mac.is_unicast())
            .ok_or_else(|| {
                let shown: String = text.chars().take(64).collect();
                ApiError::field(
                    "mac_addresses",
                    format!("'{shown}' is not a valid MAC address."),
                )
            })?;
        if !macs.contains(&mac) {
            macs.push(mac);
        }
    }
    if macs.len() > MACS_MAX {
        return Err(ApiError::field(
            "mac_addresses",
            "Too many MAC addresses: at most 64.",
        ));
    }
    Ok(macs)
}

fn options(form: &Form) -> Result<CommissionOptions, ApiError> {
    if let Some(test) = form.list("testing_scripts").find(|name| *name != "none") {
        let shown: String = test.chars().take(64).collect();
        return Err(ApiError::field(
            "testing_scripts",
            format!("No such script: '{shown}'."),
        ));
    }
    Ok(CommissionOptions {
        enable_ssh: form.boolean("enable_ssh")?.unwrap_or(false),
        scripts: form
            .list("commissioning_scripts")
            .map(str::to_owned)
            .collect(),
    })
}

//---------------------------------------------------------------- creating, changing, deleting

/// An administrator's machine, or one that enlists itself through a rack that says who it is.
async fn create(request: Request) -> Reply {
    match (&request.caller, &request.attestation) {
        (Some(caller), _) => {
            caller.require(Permission::EditMachines)?;
            create_by(&request).await
        }
        (None, Some(attestation)) => enlist::enlist(&request, attestation).await,
        (None, None) => Err(ApiError::Unauthorized(
            "Machines enlist through a rack only.".into(),
        )),
    }
}

async fn create_by(request: &Request) -> Reply {
    let form = &request.form;
    let macs = macs_field(form)?;
    if macs.is_empty() && form.boolean("deployed")? != Some(true) {
        return Err(ApiError::required("mac_addresses"));
    }
    let power = PowerForm::read(form)?.create()?;
    let commission = form.boolean("commission")?.unwrap_or(false);
    let options = options(form)?;
    let app = &request.app;
    let username = request.username();

    let hostname = hostname_field(form)?;
    let architecture =
        architecture_field(form)?.ok_or_else(|| ApiError::required("architecture"))?;
    let said = Said {
        hostname: hostname.map(|(name, _)| name),
        domain: domain_field(form)?.or(hostname.and_then(|(_, domain)| domain)),
        description: description_field(form)?.unwrap_or(""),
        architecture: &architecture,
        min_hwe_kernel: form.filled("min_hwe_kernel").unwrap_or(""),
        hardware_uuid: form.filled("hardware_uuid"),
    };
    let (mut tx, id) = insert(app, &said, &macs, None).await?;
    if let Some((power_type, parameters)) = &power {
        bmc::set_for_machine(&mut tx, &app.sealer, &id, *power_type, parameters).await?;
    }
    let event = NewEvent::new(EventType::MachineCreated)
        .machine(&id)
        .by(&username);
    event::record(&mut tx, event).await?;
    event::adopt(&mut tx, &id, &macs).await?;
    if commission {
        workflow::commission(&mut tx, &id, &username, &options).await?;
    }
    tx.commit().await?;
    one(&mut *app.db().await?, &id).await
}

/// What a form says of a new machine.
pub(crate) struct Said<'a> {
    hostname: Option<&'a str>,
    domain: Option<&'a str>,
    description: &'a str,
    architecture: &'a str,
    min_hwe_kernel: &'a str,
    hardware_uuid: Option<&'a str>,
}

impl<'a> Said<'a> {
    /// Nothing but this.
    pub(crate) fn of_architecture(architecture: &'a str) -> Self {
        Said {
            hostname: None,
            domain: None,
            description: "",
            architecture,
            min_hwe_kernel: "",
            hardware_uuid: None,
        }
    }
}

/// Inserts a machine under a new id. The transaction is open.
pub(crate) async fn insert(
    app: &App,
    said: &Said<'_>,
    macs: &[Mac],
    vlan: Option<i32>,
) -> Result<(sqlx::Transaction<'static, sqlx::Postgres>, SystemId), ApiError> {
    for _ in 0..ID_TRIES {
        let system_id = SystemId::from_random(rand::rng().random());
        let generated = format!("machine-{system_id}");
        let new = NewMachine {
            system_id,
            hostname: said.hostname.unwrap_or(&generated),
            description: said.description,
            domain: said.domain.unwrap_or(constant::DOMAIN),
            architecture: said.architecture,
            min_hwe_kernel: said.min_hwe_kernel,
            hardware_uuid: said.hardware_uuid,
            macs,
            vlan_id: vlan,
        };
        let mut tx = app.begin().await?;
        match machine::create(&mut tx, &new).await {
            Ok(()) => return Ok((tx, system_id)),
            Err(StoreError::Constraint { constraint }) if constraint == "machine_pkey" => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(ApiError::Unavailable(
        "No free system id was found. Try again.",
    ))
}

async fn update(request: Request) -> Reply {
    let id = id_of(&request)?;
    let form = &request.form;
    let hostname = hostname_field(form)?;
    let architecture = architecture_field(form)?;
    let change = MachineChange {
        hostname: hostname.map(|(name, _)| name),
        domain: domain_field(form)?.or(hostname.and_then(|(_, domain)| domain)),
        description: description_field(form)?,
        architecture: architecture.as_deref(),
        min_hwe_kernel: form.get("min_hwe_kernel"),
        ..MachineChange::default()
    };
    let power = PowerForm::read(form)?;
    let app = &request.app;
    let mut tx = app.begin().await?;
    refuse_locked(&machine::lock(&mut tx, &id).await?)?;
    machine::update(&mut tx, &id, &change).await?;
    if !power.is_empty() {
        let old = bmc::of_machine(&mut tx, &id).await?;
        if let Some((power_type, parameters)) = power.update(&app.sealer, old.as_ref())? {
            bmc::set_for_machine(&mut tx, &app.sealer, &id, power_type, &parameters).await?;
        }
    }
    let event = NewEvent::new(EventType::MachineChanged)
        .machine(&id)
        .by(request.username());
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    one(&mut *app.db().await?, &id).await
}

fn refuse_locked(machine: &Machine) -> Result<(), ApiError> {
    if machine.locked {
        Err(ApiError::conflict("Machine is locked."))
    } else {
        Ok(())
    }
}

async fn delete(request: Request) -> Reply {
    let id = id_of(&request)?;
    let mut tx = request.app.begin().await?;
    let machine = machine::lock(&mut tx, &id).await?;
    refuse_locked(&machine)?;
    machine::delete(&mut tx, &id).await?;
    // Its own events are gone with it; that it was there is not.
    let text = format!("Machine {} ({id}) deleted", machine.hostname);
    let event = NewEvent::new(EventType::MachineDeleted)
        .by(request.username())
        .text(text);
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    Ok(deleted())
}

//---------------------------------------------------------------- what is asked of a machine

async fn commission(request: Request) -> Reply {
    let id = id_of(&request)?;
    let options = options(&request.form)?;
    let mut tx = request.app.begin().await?;
    workflow::commission(&mut tx, &id, &request.username(), &options).await?;
    tx.commit().await?;
    one(&mut *request.app.db().await?, &id).await
}

async fn abort(request: Request) -> Reply {
    let id = id_of(&request)?;
    let comment = request.form.get("comment").unwrap_or("");
    let mut tx = request.app.begin().await?;
    workflow::abort(&mut tx, &id, &request.username(), comment).await?;
    tx.commit().await?;
    one(&mut *request.app.db().await?, &id).await
}

async fn power_on(request: Request) -> Reply {
    power_command(request, PowerCommand::On).await
}

async fn power_off(request: Request) -> Reply {
    power_command(request, PowerCommand::Off).await
}

async fn power_command(request: Request, command: PowerCommand) -> Reply {
    let id = id_of(&request)?;
    let mut tx = request.app.begin().await?;
    workflow::power(&mut tx, &id, command, &request.username()).await?;
    tx.commit().await?;
    one(&mut *request.app.db().await?, &id).await
}

async fn query_power_state(request: Request) -> Reply {
    let id = id_of(&request)?;
    let state: PowerState = workflow::query_power(&request.app.pool, &id).await?;
    Ok(answer(&json!({ "state": state.as_str() })))
}
