//! The metadata service: what cloud-init and the script runner of a booted machine ask and tell.
//!
//! Machines reach it through a rack, which attests where they are (protocols: Trust). The preseed is the only thing
//! with a secret in it that needs no token: it is answered to the attested card of a machine that is expected to boot,
//! and mints this boot's token. Everything else needs that token, from that place, and shows only that machine.

mod path;

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use gate::{Place, Source};
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use model::{EventType, Mac, MachineStatus, Signal, SystemId};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use store::event::{self, NewEvent};
use store::inventory::BootInterface;
use store::lifecycle::{self, Life};
use store::script::{self, Outputs, ScriptResult};
use store::token::{self, MachineToken};
use workflow::{SignalReport, scripts};

use crate::body::{self, Form, Limits};
use crate::dispatch::{deleted, text};
use crate::error::ApiError;
use crate::shares::{self, STRANGER_BYTES_MAX};
use crate::transaction;
use crate::{App, Attestation, machine_caller};
use path::{Item, Resource, locate, rack_base};

/// Of `op=signal`: four outputs of one script, with the frame around them.
const SIGNAL_BYTES_MAX: usize = 16 << 20;
/// Of a report of cloud-init's.
const REPORT_BYTES_MAX: usize = 1 << 20;
/// The same word of one machine is an event once in this time, however often it asks.
const SAME_EVENT_AFTER: Duration = Duration::from_secs(10);
/// Live tokens of one boot. cloud-init asks twice a boot, and a machine may start over.
const TOKENS_MAX: i64 = 8;

const OCTETS: &str = "application/octet-stream";
const PLAIN: &str = "text/plain; charset=utf-8";

/// Everything under `/MAAS/metadata/`, and the runner for machines that fetch it by hand.
pub fn router(app: App) -> Router {
    Router::new()
        .route("/MAAS/metadata", any(serve))
        .route("/MAAS/metadata/", any(serve))
        .route("/MAAS/metadata/{*path}", any(serve))
        .route(
            "/MAAS/maas-run-scripts",
            get(async || octets(scripts::runner())),
        )
        .route("/MAAS/machine-resources/{arch}", get(machine_resources))
        .with_state(app)
}

/// Ours is one script for every architecture.
async fn machine_resources() -> Response {
    octets(scripts::find(scripts::RESOURCES).map_or(&[], |script| script.content))
}

async fn serve(State(app): State<App>, request: axum::extract::Request) -> Response {
    let (parts, body) = request.into_parts();
    answer(&app, parts, body).await.unwrap_or_else(|error| {
        let count = |counter: fn(&crate::Counters) -> &std::sync::atomic::AtomicU64| {
            app.count(counter);
        };
        match &error {
            ApiError::BadRequest(_) | ApiError::Validation(_) => count(|c| &c.malformed),
            ApiError::Unauthorized(_) => count(|c| &c.unauthorized),
            ApiError::TooLarge | ApiError::QuotaFull(_) => count(|c| &c.too_large),
            ApiError::TooSlow => count(|c| &c.too_slow),
            ApiError::TooMany(_) => count(|c| &c.too_many_guesses),
            ApiError::Internal(_) => count(|c| &c.internal_errors),
            _ => {}
        }
        error.into_response()
    })
}

async fn answer(app: &App, parts: Parts, body: Body) -> Result<Response, ApiError> {
    let path = parts
        .uri
        .path()
        .strip_prefix("/MAAS/metadata")
        .unwrap_or_default();
    let query = Form::urlencoded(
        parts.uri.query().unwrap_or_default().as_bytes(),
        &Limits::default(),
    )?;
    let request = Asked {
        app,
        source: shares::source_of(&parts),
        attestation: parts.extensions.get(),
        parts: &parts,
        query,
    };
    match locate(&parts.method, path)? {
        Resource::Preseed(id) => match (request.query.get("op"), &parts.method) {
            (Some("get_preseed"), &Method::GET) => {
                transaction::again(app, |app| request.preseed(app, &id)).await
            }
            (_, &Method::POST) => {
                let form = request.small_form(body).await?;
                match request.query.filled("op").or(form.filled("op")) {
                    Some("netboot_off") => {
                        transaction::again(app, |app| request.netboot_by_id(app, &id, false)).await
                    }
                    op => Err(unrecognised(&parts.method, op)),
                }
            }
            (op, method) => Err(unrecognised(method, op)),
        },
        Resource::EnlistPreseed => match request.query.get("op") {
            Some("get_enlist_preseed") => request.enlist_preseed(),
            op => Err(unrecognised(&parts.method, op)),
        },
        Resource::EnlistIndex => Ok(text("meta-data\nuser-data")),
        Resource::EnlistMetaData => Ok(text("instance-id\nlocal-hostname")),
        Resource::EnlistItem(Item::InstanceId) => Ok(text("i-maas-enlistment")),
        Resource::EnlistItem(Item::LocalHostname) => Ok(text("maas-enlisting-node")),
        Resource::EnlistItem(_) => Err(nothing()),
        Resource::EnlistUserData => Ok(octets(scripts::enlister())),
        Resource::EnlistScripts => Ok(StatusCode::NO_CONTENT.into_response()),
        resource => request.of_machine(resource, body).await,
    }
}

/// A request, before it is known whose it is.
struct Asked<'a> {
    app: &'a App,
    source: Source,
    attestation: Option<&'a Attestation>,
    parts: &'a Parts,
    query: Form,
}

impl Asked<'_> {
    /// What needs the machine's token.
    async fn of_machine(&self, resource: Resource, body: Body) -> Result<Response, ApiError> {
        let headers = &self.parts.headers;
        let token = machine_caller(self.app, &self.source, headers, &[&self.query]).await?;
        let place = in_place(self.app, &token, self.attestation).await?;
        let life = lifecycle::get(&self.app.pool, &token.machine).await?;
        if life.boot_id != Some(token.boot_id) {
            return Err(ApiError::Forbidden(
                "The token is of an earlier boot.".into(),
            ));
        }
        match resource {
            Resource::Versions => Ok(text("latest\n2012-03-01")),
            Resource::Index => Ok(text(match user_data(&life) {
                Some(_) => "maas-commissioning-scripts\nmeta-data\nuser-data",
                None => "maas-commissioning-scripts\nmeta-data",
            })),
            Resource::MetaData => Ok(text("instance-id\nlocal-hostname")),
            Resource::Item(Item::InstanceId) => {
                self.booted(&token, &life, place).await?;
                Ok(plain(life.system_id.to_string()))
            }
            Resource::Item(Item::LocalHostname) => Ok(plain(life.fqdn())),
            Resource::Item(_) => Err(nothing()),
            Resource::UserData => {
                self.booted(&token, &life, place).await?;
                user_data(&life).map(octets).ok_or_else(nothing)
            }
            Resource::Scripts => self.scripts(&life).await,
            Resource::Root => {
                let room = self.place_for_body(&token)?;
                let octets = body::collect(body, SIGNAL_BYTES_MAX, &room).await?;
                let form = self.form(&octets)?;
                match self.query.filled("op").or(form.filled("op")) {
                    Some("signal") => self.signal(&token, place, &form).await,
                    Some("netboot_off") => self.netboot(&token.machine, false).await,
                    Some("netboot_on") => self.netboot(&token.machine, true).await,
                    op => Err(unrecognised(&Method::POST, op)),
                }
            }
            Resource::Status(id) if id == token.machine => self.report(&token, body).await,
            Resource::Status(_) => Err(ApiError::Forbidden(
                "A machine reports only on itself.".into(),
            )),
            _ => Err(nothing()),
        }
    }

    fn form(&self, octets: &[u8]) -> Result<Form, ApiError> {
        let content_type = self
            .parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let limits = Limits {
            body_bytes_max: SIGNAL_BYTES_MAX,
            fields_max: 100,
            ..Limits::default()
        };
        Ok(Form::parse(content_type, octets, &limits)?)
    }

    /// Room for what a machine posts, in its own share.
    fn place_for_body(&self, token: &MachineToken) -> Result<Place, ApiError> {
        let source = Source::Machine(token.machine.as_str().into());
        let place = self.app.state.shares.machines.enter(source, 0);
        place.map_err(shares::no_room)
    }

    async fn small_form(&self, body: Body) -> Result<Form, ApiError> {
        let place = self
            .app
            .state
            .shares
            .strangers
            .enter(self.source.clone(), 0);
        let place = place.map_err(shares::no_room)?;
        self.form(&body::collect(body, STRANGER_BYTES_MAX, &place).await?)
    }

    /// The first word of a boot is an event.
    async fn booted(
        &self,
        token: &MachineToken,
        life: &Life,
        place: &Attestation,
    ) -> Result<(), ApiError> {
        if life.since_heartbeat.is_none() {
            let mut tx = self.app.begin().await?;
            workflow::booted(&mut tx, &token.machine, token.boot_id, Some(&place.rack)).await?;
            tx.commit().await?;
        }
        Ok(())
    }

    // ------------------------------------------------------------ preseed

    async fn preseed(&self, app: App, id: &str) -> Result<Response, ApiError> {
        let (place, mac) = attested(self.attestation)?;
        let base = base_of(&self.parts.headers)?;
        let id = machine_id(id)?;
        let mut tx = app.begin().await?;
        own_mac(&mut tx, &id, mac).await?;
        served_there(&mut tx, place).await?;
        let life = lifecycle::lock(&mut tx, &id).await?;
        let (MachineStatus::Commissioning, Some(boot_id)) = (life.status, life.boot_id) else {
            // The rack should not have sent it here: worth a look.
            let text = format!("preseed refused in status {}", life.status);
            let refused = NewEvent::new(EventType::PreseedRefused)
                .machine(&id)
                .mac(mac);
            let refused = refused.rack(place.rack.as_str()).text(text);
            event::record_rarely(&mut tx, refused, SAME_EVENT_AFTER).await?;
            tx.commit().await?;
            let reason = format!(
                "The machine is not expected to boot: it is {}.",
                life.status
            );
            return Err(ApiError::Forbidden(reason));
        };
        lifecycle::trim_tokens(&mut *tx, &id, boot_id, TOKENS_MAX - 1).await?;
        let credentials =
            token::mint_machine(&mut tx, &id, boot_id, mac, place.client_address).await?;
        store::machine::set_boot_interface(&mut tx, &id, mac).await?;
        if let Some(vlan) = place.vlan {
            store::machine::set_interface_vlan(&mut tx, mac, vlan).await?;
        }
        let served = NewEvent::new(EventType::PreseedServed)
            .machine(&id)
            .mac(mac);
        let text = format!("to {}", place.client_address);
        let served = served.rack(place.rack.as_str()).text(text);
        event::record_rarely(&mut tx, served, SAME_EVENT_AFTER).await?;
        tx.commit().await?;
        let datasource = [
            ("metadata_url", format!("{base}/MAAS/metadata/")),
            ("consumer_key", credentials.consumer_key.clone()),
            ("token_key", credentials.token_key.clone()),
            ("token_secret", credentials.token_secret.clone()),
        ];
        Ok(cloud_config(&datasource, !life.enable_ssh))
    }

    /// Nothing secret: where the enlistment datasource is. It has no keys, so cloud-init signs nothing.
    fn enlist_preseed(&self) -> Result<Response, ApiError> {
        let base = base_of(&self.parts.headers)?;
        let datasource = [("metadata_url", format!("{base}/MAAS/metadata/enlist/"))];
        Ok(cloud_config(&datasource, true))
    }

    /// curtin's last word, without a token: from the machine's own card only.
    async fn netboot_by_id(&self, app: App, id: &str, netboot: bool) -> Result<Response, ApiError> {
        let (_, mac) = attested(self.attestation)?;
        let id = machine_id(id)?;
        let mut tx = app.begin().await?;
        own_mac(&mut tx, &id, mac).await?;
        lifecycle::lock(&mut tx, &id).await?;
        lifecycle::set_netboot(&mut tx, &id, netboot).await?;
        tx.commit().await?;
        Ok(text("OK"))
    }

    // ------------------------------------------------------------ scripts and signals

    async fn scripts(&self, life: &Life) -> Result<Response, ApiError> {
        let set = script::latest_set(&self.app.pool, &life.system_id, "commissioning").await?;
        let results = match set {
            Some(set) if Some(set.boot_id) == life.boot_id && set.finished.is_none() => {
                script::results(&self.app.pool, set.id).await?
            }
            _ => Vec::new(),
        };
        if results.is_empty() {
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        let archive = archive(&results).map_err(ApiError::internal)?;
        Ok(([(header::CONTENT_TYPE, "application/x-tar")], archive).into_response())
    }

    async fn signal(
        &self,
        token: &MachineToken,
        place: &Attestation,
        form: &Form,
    ) -> Result<Response, ApiError> {
        // The VLAN is that of the card that asks, which may be another of the machine's.
        let vlan = place.vlan.filter(|_| place.client_mac == Some(token.mac));
        let report = report_of(form, token.mac, vlan)?;
        let taken = transaction::again(self.app, async |app| {
            let mut tx = app.begin().await?;
            let status = workflow::signal(&mut tx, &token.machine, token.boot_id, &report).await?;
            tx.commit().await?;
            Ok(status)
        });
        let status = taken.await?;
        let signal = report.status.as_str();
        tracing::debug!(machine = %token.machine, signal, status = %status, "signal taken");
        Ok(text("OK"))
    }

    async fn netboot(&self, machine: &SystemId, netboot: bool) -> Result<Response, ApiError> {
        let mut tx = self.app.begin().await?;
        lifecycle::set_netboot(&mut tx, machine, netboot).await?;
        tx.commit().await?;
        Ok(text("OK"))
    }

    /// cloud-init's webhook. It shows that the machine lives and what it is at.
    async fn report(&self, token: &MachineToken, body: Body) -> Result<Response, ApiError> {
        let room = self.place_for_body(token)?;
        let octets = body::collect(body, REPORT_BYTES_MAX, &room).await?;
        let report: Value = serde_json::from_slice(&octets)
            .map_err(|_| ApiError::bad_request("The report is not JSON."))?;
        let field = |name: &'static str| {
            report[name]
                .as_str()
                .ok_or_else(|| ApiError::bad_request(format!("The report has no {name}.")))
        };
        let (event_type, name) = (field("event_type")?, field("name")?);
        field("origin")?;
        let description = field("description")?;
        if !report["timestamp"].is_number() {
            return Err(ApiError::bad_request("The report has no timestamp."));
        }
        if event_type == "start" {
            let mut tx = self.app.begin().await?;
            let message = format!("{name}: {description}");
            workflow::heard(&mut tx, &token.machine, token.boot_id, &message).await?;
            tx.commit().await?;
        }
        Ok(deleted())
    }
}

// ---------------------------------------------------------------- who and where

/// A token holds for its machine's own cards, as a rack attests them; where the rack knows no card, for the address it
/// was given to. Elsewhere it was carried off.
async fn in_place<'a>(
    app: &App,
    token: &MachineToken,
    attestation: Option<&'a Attestation>,
) -> Result<&'a Attestation, ApiError> {
    let place = attestation.ok_or_else(|| {
        ApiError::Forbidden("A machine's token is only valid through a rack.".into())
    })?;
    let own = match place.client_mac {
        Some(mac) if mac == token.mac => true,
        Some(mac) => {
            let owner = store::card::owner(&mut *app.db().await?, mac).await?;
            owner.is_some_and(|owner| owner.machine == token.machine)
        }
        None => place.client_address == token.address,
    };
    if own {
        Ok(place)
    } else {
        tracing::debug!(machine = %token.machine, from = %place.client_address, "a token used elsewhere");
        Err(ApiError::Forbidden(
            "The token was given to another machine's network card.".into(),
        ))
    }
}

fn attested(attestation: Option<&Attestation>) -> Result<(&Attestation, Mac), ApiError> {
    let place = attestation
        .ok_or_else(|| ApiError::Forbidden("A preseed is only answered through a rack.".into()))?;
    let mac = place.client_mac.ok_or_else(|| {
        let reason = format!(
            "The rack does not know whose address {} is: no preseed.",
            place.client_address
        );
        ApiError::Forbidden(reason)
    })?;
    Ok((place, mac))
}

/// Whoever has another card learns nothing of the machine, not even whether there is one, and holds no lock of it.
async fn own_mac(db: &mut sqlx::PgConnection, id: &SystemId, mac: Mac) -> Result<(), ApiError> {
    let owner = store::card::owner(db, mac).await?;
    if owner.is_some_and(|owner| owner.machine == *id) {
        return Ok(());
    }
    Err(ApiError::Forbidden(format!(
        "{mac} is no network card of this machine."
    )))
}

/// A rack speaks for cards on the VLANs that it serves, and for no others.
pub(crate) async fn served_there(
    db: &mut sqlx::PgConnection,
    place: &Attestation,
) -> Result<(), ApiError> {
    match place.vlan {
        Some(vlan) if !store::card::rack_serves(db, &place.rack, vlan).await? => {
            tracing::warn!(
                rack = place.rack,
                vlan,
                "a rack attests on a VLAN that it does not serve"
            );
            Err(ApiError::Forbidden(
                "The rack does not serve that VLAN.".into(),
            ))
        }
        _ => Ok(()),
    }
}

fn machine_id(id: &str) -> Result<SystemId, ApiError> {
    id.parse().map_err(|_| ApiError::no_such("Machine"))
}

/// The rack as the machine knows it: what it wrote as Host, which the rack passes on.
fn base_of(headers: &HeaderMap) -> Result<String, ApiError> {
    headers
        .get("x-forwarded-host")
        .or_else(|| headers.get(header::HOST))
        .and_then(|host| host.to_str().ok())
        .and_then(rack_base)
        .ok_or_else(|| ApiError::bad_request("The Host header names no rack."))
}

// ---------------------------------------------------------------- answers

fn plain(text: String) -> Response {
    ([(header::CONTENT_TYPE, PLAIN)], text).into_response()
}

fn octets(content: &'static [u8]) -> Response {
    ([(header::CONTENT_TYPE, OCTETS)], content).into_response()
}

fn nothing() -> ApiError {
    ApiError::NotFound("Nothing of that name.".into())
}

fn unrecognised(method: &Method, op: Option<&str>) -> ApiError {
    let op: String = op.unwrap_or("None").chars().take(64).collect();
    ApiError::bad_request(format!("Unrecognised signature: method={method} op={op}"))
}

/// What cloud-init runs on an ephemeral system, by status.
fn user_data(life: &Life) -> Option<&'static [u8]> {
    (life.status == MachineStatus::Commissioning).then(scripts::runner)
}

/// A cloud-config with the MAAS datasource. One `key: "value"` to a line: the runner reads it without a YAML parser.
/// Nothing in it makes cloud-init reach further than the rack.
fn cloud_config(datasource: &[(&str, String)], power_off: bool) -> Response {
    let mut yaml = String::from("#cloud-config\ndatasource:\n  MAAS:\n");
    for (key, value) in datasource {
        // A JSON string is a YAML string.
        yaml += &format!("    {key}: {}\n", Value::from(value.as_str()));
    }
    yaml += "manage_etc_hosts: true\n";
    if power_off {
        yaml += "power_state:\n  delay: now\n  mode: poweroff\n  timeout: 3600\n  \
                 condition: \"test ! -e /tmp/block-poweroff\"\n";
    }
    (
        [
            (header::CONTENT_TYPE, PLAIN),
            (header::CACHE_CONTROL, "no-store"),
        ],
        yaml,
    )
        .into_response()
}

/// The script archive: `index.json` in MAAS's form 1.0, and the files.
fn archive(results: &[ScriptResult]) -> std::io::Result<Vec<u8>> {
    let mut entries = Vec::new();
    let mut files = Vec::new();
    for result in results {
        // A script that this region does not have (any more) can't be run; its result stays open and is told.
        let Some(script) = scripts::find(&result.name) else {
            continue;
        };
        let path = format!("commissioning/{}", script.name);
        entries.push(json!({
            "name": script.name,
            "path": path,
            "script_result_id": result.id,
            "script_version_id": null,
            "timeout_seconds": result.timeout.as_secs(),
            "parallel": 0,
            "hardware_type": 0,
            "parameters": {},
            "packages": {},
            "for_hardware": [],
            "apply_configured_networking": false,
            "has_started": result.started.is_some(),
            "has_finished": result.status.is_finished(),
            "default": true,
            "tags": script.tags,
        }));
        files.push((path, script.content));
    }
    let index = json!({"1.0": {"commissioning_scripts": entries}}).to_string();
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, "index.json", 0o644, index.as_bytes())?;
    for (path, content) in files {
        append(&mut tar, &path, 0o755, content)?;
    }
    tar.into_inner()
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    path: &str,
    mode: u32,
    content: &[u8],
) -> std::io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_size(content.len() as u64);
    header.set_mode(mode);
    header.set_mtime(0);
    tar.append_data(&mut header, path, content)
}

/// A signal, from its form. `<script>` is the combined output; `.out`, `.err` and `.yaml` are beside it.
fn report_of(form: &Form, mac: Mac, vlan: Option<i32>) -> Result<SignalReport, ApiError> {
    let status: Signal = form
        .required("status")?
        .parse()
        .map_err(|_| ApiError::bad_request("Unknown commissioning status."))?;
    let script_result_id = form.integer("script_result_id")?;
    let exit_status = form.integer("exit_status")?;
    let mut digest = Sha256::new();
    let mut add = |octets: &[u8]| {
        digest.update((octets.len() as u64).to_be_bytes());
        digest.update(octets);
    };
    add(status.as_str().as_bytes());
    add(format!("{script_result_id:?} {exit_status:?}").as_bytes());
    let mut outputs = Outputs::default();
    for file in &form.files {
        add(file.name.as_bytes());
        add(&file.content);
        let content = file.content.to_vec();
        match file.name.rsplit_once('.').map(|(_, suffix)| suffix) {
            Some("out") => outputs.stdout = content,
            Some("err") => outputs.stderr = content,
            Some("yaml") => outputs.result = content,
            _ => outputs.combined = content,
        }
    }
    Ok(SignalReport {
        status,
        script_result_id,
        exit_status,
        error: form.get("error").unwrap_or_default().to_owned(),
        outputs: (!form.files.is_empty()).then_some(outputs),
        digest: digest.finalize().into(),
        boot: BootInterface {
            mac: Some(mac),
            vlan,
        },
    })
}
