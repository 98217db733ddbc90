//! `nodes/{system_id}/results/`: what the scripts of a machine's boots gave.

pub(crate) mod stream;

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use http::header;
use model::{Permission, ScriptStatus, SystemId};
use serde_json::{Value, json};
use store::script::{self, Part, ScriptResult, ScriptSet};
use time::OffsetDateTime;
use time::macros::format_description;

use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted};
use crate::error::ApiError;
use crate::handler;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditMachines);

/// The places of those who read what scripts printed.
pub(crate) fn readers() -> std::sync::Arc<gate::Room> {
    stream::room()
}

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "NodeScriptResults",
            path: "nodes/{system_id}/results/",
            aliases: &[],
            doc: "Read script results of a node.",
            operations: vec![Operation::new(
                "GET",
                None,
                VIEW,
                "List script sets, newest first.\n\n:param type: Only commissioning, testing, release or \
                 deployment.\n:param include_output: Also what the scripts printed, in base64.\n\
                 :param filters: Only these script names, with commas between.\n\
                 :param hardware_type: Only results about this: node, cpu, memory, storage, network or gpu.",
                handler!(list),
            )],
        },
        Resource {
            name: "NodeScriptResult",
            path: "nodes/{system_id}/results/{id}/",
            aliases: &[],
            doc: "Read or delete one script set; id may be current-commissioning, current-testing or \
                  current-installation.",
            operations: vec![
                Operation::new(
                    "GET",
                    None,
                    VIEW,
                    "Read a script set.\n\n:param include_output: Also what the scripts printed.\n\
                     :param filters: Only these script names.\n:param hardware_type: Only results about this.",
                    handler!(read),
                ),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete a script set.",
                    handler!(delete),
                ),
                Operation::new(
                    "GET",
                    Some("download"),
                    VIEW,
                    "Download what the scripts printed, as text.\n\n:param output: combined (default), \
                     stdout, stderr, result or all.\n:param filters: Only these script names.\n\
                     :param hardware_type: Only results about this.\n:param filetype: txt.",
                    handler!(download),
                ),
            ],
        },
    ]
}

async fn list(request: Request) -> Reply {
    let machine = machine(&request).await?;
    let kind = match request.query.filled("type") {
        None => None,
        Some("0") => Some("commissioning"),
        Some("2") => Some("testing"),
        Some(kind @ ("commissioning" | "testing" | "release" | "deployment")) => Some(kind),
        Some("installation" | "1") => Some("deployment"),
        Some(_) => return Err(ApiError::field("type", "Not a type of results.")),
    };
    let wanted = Wanted::of(&request)?;
    let sets = script::sets(&request.app.pool, &machine, kind).await?;
    sets_as_json(&request, sets, wanted, true).await
}

async fn read(request: Request) -> Reply {
    let set = set_of(&request).await?;
    let wanted = Wanted::of(&request)?;
    sets_as_json(&request, vec![set], wanted, false).await
}

/// Written as the client takes it: a list with outputs may be hundreds of megabytes.
async fn sets_as_json(
    request: &Request,
    sets: Vec<ScriptSet>,
    wanted: Wanted,
    is_list: bool,
) -> Reply {
    let body = stream::body(request, async move |mut writer: stream::Writer| {
        let ids: Vec<i32> = sets.iter().map(|set| set.id).collect();
        let results = script::results_of_sets(writer.pool(), &ids).await?;
        if is_list {
            writer.text("[").await?;
        }
        for (index, set) in sets.iter().enumerate() {
            if index > 0 {
                writer.text(",").await?;
            }
            let of_set = results.iter().filter(|result| result.set_id == set.id);
            write_set(&mut writer, set, of_set.collect(), &wanted).await?;
        }
        if is_list {
            writer.text("]").await?;
        }
        writer.finish().await
    });
    let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    Ok((content_type, body.await?).into_response())
}

async fn delete(request: Request) -> Reply {
    let set = set_of(&request).await?;
    script::delete_set(&request.app.pool, &set.machine, set.id).await?;
    Ok(deleted())
}

async fn download(request: Request) -> Reply {
    let set = set_of(&request).await?;
    let wanted = Wanted::of(&request)?;
    if request
        .query
        .filled("filetype")
        .is_some_and(|filetype| filetype != "txt")
    {
        return Err(ApiError::field("filetype", "Only txt is offered."));
    }
    let parts: &'static [Part] = match request.query.filled("output").unwrap_or("combined") {
        "combined" => &[Part::Combined],
        "stdout" => &[Part::Stdout],
        "stderr" => &[Part::Stderr],
        "result" => &[Part::Result],
        "all" => &PARTS,
        _ => {
            return Err(ApiError::field(
                "output",
                "combined, stdout, stderr, result or all.",
            ));
        }
    };
    let mut results = script::results(&request.app.pool, set.id).await?;
    results.retain(|result| wanted.names(&result.name));
    let alone = results.len() == 1 && parts.len() == 1;
    let body = stream::body(&request, async move |mut writer: stream::Writer| {
        for result in &results {
            for part in parts {
                if !alone {
                    let rule = "-----------------------------------------------------------------";
                    let title = format!("{}{}\n{rule}\n", result.name, suffix(*part));
                    writer.text(&title).await?;
                }
                writer.output(result.id, *part).await?;
                if !alone {
                    writer.text("\n\n").await?;
                }
            }
        }
        writer.finish().await
    });
    Ok(attachment(&set, body.await?))
}

fn attachment(set: &ScriptSet, body: Body) -> Response {
    let name = format!(
        "attachment; filename=\"{}-{}-{}.txt\"",
        set.machine, set.kind, set.id
    );
    let headers = [
        (header::CONTENT_TYPE, "text/plain; charset=utf-8".to_owned()),
        (header::CONTENT_DISPOSITION, name),
    ];
    (headers, body).into_response()
}

// ---------------------------------------------------------------- what is asked for

/// Which results, and how much of them.
struct Wanted {
    names: Vec<String>,
    /// None: any.
    hardware_type: Option<&'static str>,
    outputs: bool,
}

/// MAAS's, in the order of their numbers.
const HARDWARE_TYPES: [&str; 6] = ["node", "cpu", "memory", "storage", "network", "gpu"];

impl Wanted {
    fn of(request: &Request) -> Result<Self, ApiError> {
        let hardware_type = match request.query.filled("hardware_type") {
            None => None,
            Some(text) => {
                let named = |(number, name): &(usize, &'static str)| {
                    *name == text || number.to_string() == text
                };
                let found = HARDWARE_TYPES.into_iter().enumerate().find(named);
                let wrong = || ApiError::field("hardware_type", "Not a type of hardware.");
                Some(found.ok_or_else(wrong)?.1)
            }
        };
        Ok(Wanted {
            hardware_type,
            names: request.query.list("filters").map(str::to_owned).collect(),
            outputs: request.query.boolean("include_output")?.unwrap_or(false),
        })
    }

    fn names(&self, name: &str) -> bool {
        let is_for = |wanted: &str| {
            let script = workflow::scripts::find(name);
            script.map_or("node", |script| script.hardware_type.as_str()) == wanted
        };
        (self.names.is_empty() || self.names.iter().any(|wanted| wanted == name))
            && self.hardware_type.is_none_or(is_for)
    }
}

async fn machine(request: &Request) -> Result<SystemId, ApiError> {
    let id: SystemId = request
        .path("system_id")
        .parse()
        .map_err(|_| ApiError::no_such("Node"))?;
    store::lifecycle::get(&request.app.pool, &id).await?;
    Ok(id)
}

async fn set_of(request: &Request) -> Result<ScriptSet, ApiError> {
    let machine = machine(request).await?;
    let none = || ApiError::no_such("ScriptSet");
    let kind = match request.path("id") {
        "current-commissioning" => "commissioning",
        "current-testing" => "testing",
        "current-installation" => "deployment",
        id => {
            let id = id.parse().map_err(|_| none())?;
            return Ok(script::set(&request.app.pool, &machine, id).await?);
        }
    };
    script::latest_set(&request.app.pool, &machine, kind)
        .await?
        .ok_or_else(none)
}

// ---------------------------------------------------------------- MAAS's form

const PARTS: [Part; 4] = [Part::Combined, Part::Stdout, Part::Stderr, Part::Result];

async fn write_set(
    writer: &mut stream::Writer,
    set: &ScriptSet,
    mut results: Vec<&ScriptResult>,
    wanted: &Wanted,
) -> Result<(), stream::Broken> {
    let head = head_of(set, &results);
    results.retain(|result| wanted.names(&result.name));
    writer.open_object(&head).await?;
    writer.text(",\"results\":[").await?;
    for (index, result) in results.iter().enumerate() {
        if index > 0 {
            writer.text(",").await?;
        }
        writer.open_object(&result_view(result)).await?;
        if wanted.outputs {
            for part in PARTS {
                writer.text(&format!(",\"{}\":\"", field(part))).await?;
                writer.output_base64(result.id, part).await?;
                writer.text("\"").await?;
            }
        }
        writer.text("}").await?;
    }
    writer.text("]}").await
}

/// All of a set but its results.
fn head_of(set: &ScriptSet, results: &[&ScriptResult]) -> Value {
    let status = ScriptStatus::summary(results.iter().map(|result| result.status));
    let started = results.iter().filter_map(|result| result.started).min();
    let ended = match status {
        Some(status) if status.is_finished() => {
            results.iter().filter_map(|result| result.ended).max()
        }
        _ => None,
    };
    let last_ping = results
        .iter()
        .filter(|result| result.started.is_some())
        .map(|r| r.updated)
        .max();
    let (number, name) = match set.kind.as_str() {
        "commissioning" => (0, "Commissioning"),
        "deployment" => (1, "Installation"),
        "testing" => (2, "Testing"),
        _ => (3, "Release"),
    };
    json!({
        "id": set.id,
        "system_id": set.machine.as_str(),
        "type": number,
        "type_name": name,
        "last_ping": last_ping.map(date),
        "status": status.map_or(-1, ScriptStatus::number),
        "status_name": status.map_or("", ScriptStatus::name),
        "started": started.map(date),
        "ended": ended.map(date),
        "runtime": runtime(started, ended),
        "resource_uri": format!("/MAAS/api/2.0/nodes/{}/results/{}/", set.machine, set.id),
    })
}

fn result_view(result: &ScriptResult) -> Value {
    let seconds = |at: Option<OffsetDateTime>| at.map(|at| at.unix_timestamp_nanos() as f64 / 1e9);
    json!({
        "id": result.id,
        "created": date(result.started.unwrap_or(result.updated)),
        "updated": date(result.updated),
        "name": result.name,
        "status": result.status.number(),
        "status_name": result.status.name(),
        "exit_status": result.exit_status,
        // Ours: why it failed.
        "error": result.error,
        "started": result.started.map(date),
        "ended": result.ended.map(date),
        "runtime": runtime(result.started, result.ended),
        "starttime": seconds(result.started),
        "endtime": seconds(result.ended),
        "estimated_runtime": runtime(result.started, result.ended),
        "parameters": {},
        "script_id": null,
        "script_revision_id": null,
        "suppressed": false,
    })
}

fn field(part: Part) -> &'static str {
    match part {
        Part::Combined => "output",
        Part::Stdout => "stdout",
        Part::Stderr => "stderr",
        Part::Result => "result",
    }
}

fn suffix(part: Part) -> &'static str {
    match part {
        Part::Combined => "",
        Part::Stdout => ".out",
        Part::Stderr => ".err",
        Part::Result => ".yaml",
    }
}

/// `Tue, 05 Mar. 2024 10:10:10 -0000`
fn date(at: OffsetDateTime) -> String {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short]. [year] [hour]:[minute]:[second] -0000"
    );
    at.to_offset(time::UtcOffset::UTC)
        .format(&format)
        .unwrap_or_default()
}

/// `H:MM:SS`; "" while it has not ended.
fn runtime(started: Option<OffsetDateTime>, ended: Option<OffsetDateTime>) -> String {
    match (started, ended) {
        (Some(started), Some(ended)) => {
            let secs = (ended - started).whole_seconds().max(0);
            format!("{}:{:02}:{:02}", secs / 3600, secs / 60 % 60, secs % 60)
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_maas_s() {
        let at = OffsetDateTime::from_unix_timestamp(1_709_633_410).unwrap();
        assert_eq!(date(at), "Tue, 05 Mar. 2024 10:10:10 -0000");
        for (secs, want) in [
            (0, "0:00:00"),
            (61, "0:01:01"),
            (3600, "1:00:00"),
            (-5, "0:00:00"),
        ] {
            assert_eq!(
                runtime(Some(at), Some(at + time::Duration::seconds(secs))),
                want
            );
        }
        assert_eq!(runtime(Some(at), None), "");
    }
}
