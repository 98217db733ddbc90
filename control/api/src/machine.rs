//! `machines/`: list, create (also by a machine that enlists itself), change, delete, and what is asked of one.

use model::{EventType, Mac, MachineStatus, Permission, PowerCommand, SystemId};
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
use crate::domain;
use crate::error::ApiError;
use crate::lacking::{Lacking, POOL, ZONE, fixed, lacks, off};
use crate::machine_filter;
use crate::machine_view::views;
use crate::power::{self, PowerForm};
use crate::transaction::Tx;
use crate::{App, enlist, handler};

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditMachines);
const SECRETS: Access = Access::With(Permission::ViewPowerSecrets);

/// Of one machine.
const MACS_MAX: usize = 64;
const DESCRIPTION_CHARS_MAX: usize = 4096;
/// New ids to try before giving up.
const ID_TRIES: usize = 8;

const LACKING: &[Lacking] = &[
    ZONE,
    POOL,
    lacks("swap_size"),
    off("disable_ipv4"),
    lacks("osystem"),
    lacks("distro_series"),
    lacks("license_key"),
    lacks("hwe_kernel"),
    off("ephemeral_deploy"),
    off("enable_kernel_crash_dump"),
    off("enable_hw_sync"),
    off("is_dpu"),
    off("deployed"),
];

const ARCHITECTURES: [&str; 7] = [
    "amd64", "arm64", "armhf", "i386", "ppc64el", "riscv64", "s390x",
];

const UPDATE: &str = "Update a machine.\n\n:param hostname: Its name.\n:param domain: Its DNS domain.\n\
    :param description: A description.\n:param architecture: \"amd64/generic\".\n\
    :param min_hwe_kernel: The oldest kernel that may run on it.\n\
    :param cpu_count: How many CPUs it has, until a commissioning counts them.\n\
    :param memory: How much memory it has, in MiB, until a commissioning says it.\n\
    :param power_type: ipmi, webhook or manual.\n\
    :param power_parameters_{param}: A parameter of the power type.\n\
    :param power_parameters: All of them, as a JSON object.";

pub fn resources() -> Vec<Resource> {
    let post = |op, lacking, doc, handler| {
        Operation::new("POST", Some(op), EDIT, doc, handler).lacking(lacking)
    };
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
                     :param owner: Only of these users.\n:param arch: Only of these architectures.\n\
                     :param fabrics: Only on these fabrics.\n:param fabric_classes: Only on fabrics of these classes.\n\
                     :param vlans: Only on these VLANs.\n:param subnets: Only on each of these subnets.\n\
                     :param simple_status: Only in these groups of statuses.\n\
                     :param cpu_count: With so many CPUs at least.\n:param cpu_speed: So fast at least, in MHz.\n\
                     :param mem: With so many MiB at least.\n:param link_speed: With a card so fast at least, in Mbit/s.\n\
                     :param zone: Only in these zones.\n:param pool: Only in these pools.\n\
                     Most have a counterpart that leaves out: not_status, not_subnets, not_in_zone.",
                    handler!(list),
                )
                .lacking(machine_filter::LACKING),
                Operation::new(
                    "POST",
                    None,
                    Access::Anonymous,
                    "Create a machine.\n\n:param mac_addresses: Its MAC addresses.\n\
                     :param commission: Whether to commission it at once: an administrator's machine is, unless this is \
                     false or it has no power type.\n\
                     :param enable_ssh: Stay on and open after the commissioning.\n\
                     :param skip_networking: Leave the interfaces' links as they are.\n\
                     :param skip_bmc_config: Leave the BMC as it is, which is so anyhow.\n\
                     :param skip_storage: Leave the storage as it is, which is so anyhow.\n\
                     :param commissioning_scripts: Further scripts, by name or tag.\n\
                     :param testing_scripts: none.\n\
                     :param cpu_count: How many CPUs it has.\n:param memory: How much memory it has, in MiB.\n\
                     :param hostname: Its name.\n:param domain: Its DNS domain.\n\
                     :param description: A description.\n:param architecture: \"amd64/generic\".\n\
                     :param power_type: ipmi, webhook or manual.\n\
                     :param power_parameters_{param}: A parameter of the power type.",
                    handler!(create),
                )
                .lacking(LACKING),
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
                    "List the machines allocated to oneself.\n\n:param id: Only these.",
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
                Operation::new("PUT", None, EDIT, UPDATE, handler!(update)).lacking(LACKING),
                Operation::new("DELETE", None, EDIT, "Delete a machine.", handler!(delete)),
                post(
                    "commission",
                    &[],
                    "Begin commissioning a machine.\n\n:param enable_ssh: Stay on and open afterwards.\n\
                     :param skip_networking: Leave the interfaces' links as they are.\n\
                     :param skip_bmc_config: Leave the BMC as it is, which is so anyhow.\n\
                     :param skip_storage: Leave the storage as it is, which is so anyhow.\n\
                     :param commissioning_scripts: Further scripts, by name or tag.\n\
                     :param testing_scripts: none.",
                    handler!(commission),
                ),
                post(
                    "abort",
                    &[],
                    "Abort what the machine is doing.\n\n:param comment: Why.",
                    handler!(abort),
                ),
                post(
                    "power_on",
                    const { &[lacks("user_data")] },
                    "Turn a machine on.\n\n:param comment: Why.",
                    handler!(power_on),
                ),
                post(
                    "power_off",
                    const { &[fixed("stop_mode", &["hard"])] },
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

async fn list(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let machines = match machine_filter::of_machines(&mut db, &request.query).await? {
        Some(filter) => machine::list(&mut db, &filter).await?,
        None => Vec::new(),
    };
    Ok(answer(&views(&mut db, &machines).await?.into()))
}

async fn list_allocated(request: Request) -> Reply {
    let mut db = request.app.db().await?;
    let filter = Filter {
        ids: request.query.all("id").map(str::to_owned).collect(),
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
    let ids: Vec<String> = machines
        .iter()
        .map(|machine| machine.system_id.to_string())
        .collect();
    let mut all: Map<String, Value> = ids.iter().map(|id| (id.clone(), json!({}))).collect();
    for (id, bmc) in bmc::of_machines(&mut db, &ids).await? {
        let parameters = bmc.parameters_with_secrets(&request.app.sealer)?;
        all.insert(id, Value::Object(parameters));
    }
    Ok(answer(&Value::Object(all)))
}

//---------------------------------------------------------------- what a form asks for

/// A name and the domain that may follow it (RFC 1123 §2.1).
fn hostname_field(form: &Form) -> Result<Option<(&str, Option<&str>)>, ApiError> {
    let Some(text) = form.filled("hostname") else {
        return Ok(None);
    };
    if !domain::is_name(text) {
        return Err(ApiError::field("hostname", "Enter a valid hostname."));
    }
    Ok(Some(match text.split_once('.') {
        Some((name, domain)) => (name, Some(domain)),
        None => (text, None),
    }))
}

/// The domain that a form names: by its field, else after the hostname.
async fn domain_field(
    db: &mut PgConnection,
    form: &Form,
    of_hostname: Option<&str>,
) -> Result<Option<String>, ApiError> {
    let (field, text) = match (form.filled("domain"), of_hostname) {
        (Some(text), _) => ("domain", text),
        (None, Some(text)) => ("hostname", text),
        (None, None) => return Ok(None),
    };
    domain::in_field(db, text, field).await.map(Some)
}

/// Counts that stand until a commissioning finds the true ones.
fn sizes(form: &Form) -> Result<(Option<i32>, Option<i64>), ApiError> {
    let cpu_count: Option<i32> = form.integer("cpu_count")?;
    let memory: Option<i64> = form.parsed("memory", "Enter a whole number.")?;
    for (field, is_fine) in [
        ("cpu_count", cpu_count.is_none_or(|count| count >= 0)),
        (
            "memory",
            memory.is_none_or(|mib| (0..=1 << 40).contains(&mib)),
        ),
    ] {
        if !is_fine {
            return Err(ApiError::field(field, "Ensure this value is at least 0."));
        }
    }
    Ok((cpu_count, memory))
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
    // A commissioning here touches neither the BMC nor what is on the disks.
    for name in ["skip_bmc_config", "skip_storage"] {
        form.boolean(name)?;
    }
    Ok(CommissionOptions {
        enable_ssh: form.boolean("enable_ssh")?.unwrap_or(false),
        skip_networking: form.boolean("skip_networking")?.unwrap_or(false),
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
    if macs.is_empty() {
        return Err(ApiError::required("mac_addresses"));
    }
    let power = PowerForm::read(form)?.create()?;
    // Said by nobody: as far as it can be.
    let commission = form.boolean("commission")?.unwrap_or(power.is_some());
    let options = options(form)?;
    let (cpu_count, memory_mib) = sizes(form)?;
    let app = &request.app;
    let username = request.username();

    let hostname = hostname_field(form)?;
    let architecture =
        architecture_field(form)?.ok_or_else(|| ApiError::required("architecture"))?;
    let of_hostname = hostname.and_then(|(_, domain)| domain);
    let domain = domain_field(&mut *app.db().await?, form, of_hostname).await?;
    let said = Said {
        hostname: hostname.map(|(name, _)| name),
        domain: domain.as_deref(),
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
    if cpu_count.is_some() || memory_mib.is_some() {
        let change = MachineChange {
            cpu_count,
            memory_mib,
            ..MachineChange::default()
        };
        machine::update(&mut tx, &id, &change).await?;
    }
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
) -> Result<(Tx, SystemId), ApiError> {
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
    let (cpu_count, memory_mib) = sizes(form)?;
    let app = &request.app;
    let mut tx = app.begin().await?;
    let domain = domain_field(&mut tx, form, hostname.and_then(|(_, domain)| domain)).await?;
    let change = MachineChange {
        hostname: hostname.map(|(name, _)| name),
        domain: domain.as_deref(),
        cpu_count,
        memory_mib,
        description: description_field(form)?,
        architecture: architecture.as_deref(),
        min_hwe_kernel: form.get("min_hwe_kernel"),
        ..MachineChange::default()
    };
    let power = PowerForm::read(form)?;
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
    if let Some(comment) = request.form.filled("comment") {
        let said = NewEvent::new(EventType::PowerRequested)
            .machine(&id)
            .by(request.username());
        event::record(&mut tx, said.text(comment)).await?;
    }
    tx.commit().await?;
    one(&mut *request.app.db().await?, &id).await
}

async fn query_power_state(request: Request) -> Reply {
    let id = id_of(&request)?;
    let seen = workflow::query_power(&request.app.pool, &id).await?;
    let mut view = json!({ "state": seen.state.as_str() });
    if !seen.reason.is_empty() {
        // Ours: MAAS says only "error".
        view["reason"] = seen.reason.into();
    }
    Ok(answer(&view))
}
