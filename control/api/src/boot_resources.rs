//! `boot-resources/`: what machines boot. Uploads go by MAAS's own protocol: announce, then PUT chunks.
//!
//! A file with `filetype=bootloader` is a firmware loader; its `name` is the path that firmware asks for. That is
//! ours: MAAS has its loaders from a stream.

use http::StatusCode;
use library::{CHUNK_BYTES_MAX, LibraryError};
use model::Permission;
use serde_json::{Value, json};
use store::image::{self, BootResource, BootResourceFile, ResourceName};

use axum::response::IntoResponse;

use crate::body;
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::handler;
use crate::lacking::lacks;

const VIEW: Access = Access::With(Permission::View);
const EDIT: Access = Access::With(Permission::EditImages);
/// What a machine boots from, in MAAS's words.
const FILETYPES: [&str; 3] = ["boot-kernel", "boot-initrd", "squashfs"];
const BOOTLOADER: &str = "bootloader";
/// Uploaded by an operator, not synchronised from a stream.
const LABEL: &str = "uploaded";
/// In the path of an upload, where a boot resource's id stands: the file is a loader.
const LOADER: &str = "loader";
const NAME_CHARS_MAX: usize = 200;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "BootResources",
            path: "boot-resources/",
            aliases: &[],
            doc: "Manage the boot resources.",
            operations: vec![
                Operation::new(
                    "GET",
                    None,
                    VIEW,
                    "List boot resources.\n\n:param type: Only synced, uploaded or generated ones.",
                    handler!(list),
                ),
                Operation::new(
                    "POST",
                    None,
                    EDIT,
                    "Announce a file; its content goes to upload_uri in chunks.\n\n\
                     :param name: os/release, or a loader's path.\n\
                     :param architecture: amd64/generic\n\
                     :param filetype: boot-kernel, boot-initrd, squashfs or bootloader.\n\
                     :param sha256: of the whole file, hexadecimal.\n\
                     :param size: in octets.\n\
                     :param title: for people.",
                    handler!(create),
                )
                .lacking(const { &[lacks("base_image"), lacks("content")] }),
            ],
        },
        Resource {
            name: "BootResource",
            path: "boot-resources/{id}/",
            aliases: &[],
            doc: "Manage a boot resource.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a boot resource.", handler!(read)),
                Operation::new(
                    "DELETE",
                    None,
                    EDIT,
                    "Delete a boot resource.\n\n\
                     :param force: Also the only one that machines of its architecture can boot.",
                    handler!(delete),
                ),
            ],
        },
        Resource {
            name: "BootResourceFileUpload",
            path: "boot-resources/{resource_id}/upload/{id}/",
            aliases: &[],
            doc: "Upload a boot resource's file.",
            operations: vec![
                Operation::new("PUT", None, EDIT, "Append a chunk.", handler!(upload)).streaming(),
            ],
        },
    ]
}

/// A file as MAAS shows it.
fn file_view(file: &BootResourceFile, uri: &str) -> Value {
    json!({
        "filename": file.filetype,
        "filetype": file.filetype,
        "sha256": hex::encode(file.sha256),
        "size": file.size_bytes,
        "complete": file.complete,
        "progress": file.received_bytes,
        "upload_uri": uri,
    })
}

/// The sets of an answer to an upload: the `maas` command goes on with the one file that it finds in them.
fn sets_of_upload(file: &BootResourceFile, uri: &str) -> Value {
    json!({
        LABEL: {
            "version": LABEL,
            "label": LABEL,
            "size": file.size_bytes,
            "complete": file.complete,
            "files": { &file.filetype: file_view(file, uri) },
        }
    })
}

fn view(resource: &BootResource) -> Value {
    let files: serde_json::Map<String, Value> = resource
        .files
        .iter()
        .map(|file| {
            let uri = upload_uri(&resource.id.to_string(), &file.id.to_string());
            (file.filetype.clone(), file_view(file, &uri))
        })
        .collect();
    let complete = is_complete(resource);
    let size: u64 = resource.files.iter().map(|file| file.size_bytes).sum();
    json!({
        "id": resource.id,
        "type": "Uploaded",
        "name": format!("{}/{}", resource.osystem, resource.release),
        "title": resource.title,
        "architecture": format!("{}/{}", resource.architecture, resource.subarchitecture),
        "subarches": resource.subarchitecture,
        "complete": complete,
        "sets": {
            LABEL: {
                "version": LABEL,
                "label": resource.label,
                "size": size,
                "complete": complete,
                "files": files,
            }
        },
        "resource_uri": format!("/MAAS/api/2.0/boot-resources/{}/", resource.id),
    })
}

/// Whether a machine can boot it.
fn is_complete(resource: &BootResource) -> bool {
    let has = |filetype: &&str| {
        let mut files = resource.files.iter();
        files.any(|file| file.filetype == **filetype && file.complete)
    };
    FILETYPES.iter().all(has)
}

fn upload_uri(resource: &str, file: &str) -> String {
    format!("/MAAS/api/2.0/boot-resources/{resource}/upload/{file}/")
}

async fn list(request: Request) -> Reply {
    // All there is was uploaded.
    match request
        .query
        .filled("type")
        .map(str::to_ascii_lowercase)
        .as_deref()
    {
        None | Some("uploaded") => {}
        Some("synced" | "generated") => return Ok(answer(&json!([]))),
        Some(_) => {
            return Err(ApiError::field(
                "type",
                "Is not a valid value: 'synced', 'uploaded', 'generated'.",
            ));
        }
    }
    let resources = image::resources(&mut *request.app.db().await?).await?;
    Ok(answer(&Value::Array(resources.iter().map(view).collect())))
}

async fn find(request: &Request, id: i32) -> Result<BootResource, ApiError> {
    let resources = image::resources(&mut *request.app.db().await?).await?;
    let found = resources.into_iter().find(|resource| resource.id == id);
    found.ok_or_else(|| ApiError::no_such("BootResource"))
}

async fn read(request: Request) -> Reply {
    let id = request.path_id("id", "BootResource")?;
    Ok(answer(&view(&find(&request, id).await?)))
}

async fn delete(request: Request) -> Reply {
    let id = request.path_id("id", "BootResource")?;
    let force = request.query.boolean("force")?.unwrap_or(false);
    let mut tx = request.app.begin().await?;
    let resources = image::resources(&mut tx).await?;
    let found = resources.iter().find(|resource| resource.id == id);
    let found = found.ok_or_else(|| ApiError::no_such("BootResource"))?;
    let like_it = |other: &&BootResource| {
        other.id != id && other.architecture == found.architecture && is_complete(other)
    };
    if !force && is_complete(found) && !resources.iter().any(|other| like_it(&other)) {
        return Err(ApiError::bad_request(format!(
            "Cannot delete the only boot resource that {} machines can boot. (Use the 'force' parameter to override.)",
            found.architecture
        )));
    }
    image::delete_resource(&mut tx, id).await?;
    tx.commit().await?;
    Ok(deleted())
}

/// Announces a file. 201; without `upload_uri` when the library has its content already.
async fn create(request: Request) -> Reply {
    let form = &request.form;
    let name = form.required("name")?;
    let filetype = form.required("filetype")?;
    let sha256 = sha256(form.required("sha256")?)
        .ok_or_else(|| ApiError::field("sha256", "Enter 64 hexadecimal digits."))?;
    form.required("size")?;
    let size_bytes: u64 = form
        .parsed("size", "Enter a whole number of octets.")?
        .unwrap_or_default();

    let known = request
        .app
        .library
        .announce(sha256, size_bytes, Some(request.caller()?.id))
        .await
        .map_err(refusal)?;
    let mut tx = request.app.begin().await?;
    let (mut reply, uri) = if filetype == BOOTLOADER {
        if !is_loader_path(name) {
            return Err(ApiError::field(
                "name",
                "Enter a relative path without `..`.",
            ));
        }
        image::set_loader(&mut tx, name, &sha256).await?;
        (
            json!({ "name": name }),
            upload_uri(LOADER, &hex::encode(sha256)),
        )
    } else {
        let (id, file) = create_file(&mut tx, &request, name, filetype, &sha256).await?;
        let resources = image::resources(&mut tx).await?;
        let resource = resources.iter().find(|resource| resource.id == id);
        let reply = resource
            .map(view)
            .ok_or_else(|| ApiError::no_such("BootResource"))?;
        (reply, upload_uri(&id.to_string(), &file.to_string()))
    };
    let manifest = image::manifest(&mut tx, &sha256).await?;
    let manifest = manifest.ok_or_else(|| ApiError::no_such("BootResourceFile"))?;
    tx.commit().await?;
    let file = BootResourceFile {
        id: 0,
        filetype: filetype.to_owned(),
        sha256,
        size_bytes: manifest.size_bytes,
        received_bytes: manifest.received_bytes,
        complete: manifest.complete,
    };
    reply["sets"] = sets_of_upload(&file, &uri);
    if !known {
        reply["upload_uri"] = uri.into();
        reply["received"] = manifest.received_bytes.into();
    }
    Ok((StatusCode::CREATED, answer(&reply)).into_response())
}

/// The boot resource's id and its file's.
async fn create_file(
    tx: &mut sqlx::PgConnection,
    request: &Request,
    name: &str,
    filetype: &str,
    sha256: &[u8; 32],
) -> Result<(i32, i32), ApiError> {
    if !FILETYPES.contains(&filetype) {
        let message = format!("Choose one of {}, {BOOTLOADER}.", FILETYPES.join(", "));
        return Err(ApiError::field("filetype", message));
    }
    let architecture = request.form.required("architecture")?;
    let (architecture, subarchitecture) = architecture
        .split_once('/')
        .unwrap_or((architecture, "generic"));
    let (osystem, release) = name
        .split_once('/')
        .ok_or_else(|| ApiError::field("name", "Enter os/release, as in debian/bookworm."))?;
    // They become parts of a URL and of a kernel command line.
    for (field, value) in [
        ("name", osystem),
        ("name", release),
        ("architecture", architecture),
        ("architecture", subarchitecture),
    ] {
        if !is_word(value) {
            let message = "Use letters, digits, `.`, `-`, `_` and `+` only.";
            return Err(ApiError::field(field, message));
        }
    }
    let name = ResourceName {
        osystem,
        release,
        architecture,
        subarchitecture,
        label: LABEL,
    };
    let title = request.form.get("title").unwrap_or_default();
    let id = image::ensure_resource(tx, name, title).await?;
    let file = image::set_resource_file(tx, id, filetype, sha256).await?;
    Ok((id, file))
}

/// Appends a chunk, as libmaas and the CLI send them. 200; 400 when the whole is not what was announced.
async fn upload(mut request: Request) -> Reply {
    let body = request.take_stream();
    let place = request.place_for_body()?;
    let chunk = body::collect(body, CHUNK_BYTES_MAX, &place).await?;
    let sha256 = if request.path("resource_id") == LOADER {
        sha256(request.path("id")).ok_or_else(|| ApiError::no_such("BootResourceFile"))?
    } else {
        let resource = request.path_id("resource_id", "BootResource")?;
        let file = request.path_id("id", "BootResourceFile")?;
        let found = image::resource_file(&mut *request.app.db().await?, resource, file).await?;
        found
            .ok_or_else(|| ApiError::no_such("BootResourceFile"))?
            .sha256
    };
    let complete = request
        .app
        .library
        .append(sha256, &chunk)
        .await
        .map_err(refusal)?;
    Ok(answer(&json!({ "complete": complete })))
}

fn refusal(error: LibraryError) -> ApiError {
    match error {
        LibraryError::NotFound => ApiError::no_such("BootResourceFile"),
        LibraryError::Busy | LibraryError::Complete => ApiError::conflict(error),
        LibraryError::Size { .. } => ApiError::field("size", error.to_string()),
        LibraryError::TooLong { .. } | LibraryError::Mismatch { .. } => {
            ApiError::bad_request(error.to_string())
        }
        LibraryError::Store(error) => error.into(),
        LibraryError::GivenUp => ApiError::conflict(error),
        LibraryError::NoRoom { of_account: true } => ApiError::Unavailable(
            "Your unfinished uploads hold all the room there is for them: finish some, or give them a day to be given up.",
        ),
        LibraryError::NoRoom { of_account: false } => ApiError::Unavailable(
            "Unfinished uploads hold all the room there is for them: finish some, or give them a day to be given up.",
        ),
        LibraryError::DiskFull { .. } => {
            ApiError::Unavailable("The region's disk has no room for this file.")
        }
        LibraryError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
            ApiError::Unavailable("The region's disk is full.")
        }
        LibraryError::Io { .. } => ApiError::internal(error),
    }
}

fn sha256(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    Some(hash)
}

fn is_word(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || ".-_+".contains(c);
    (1..=NAME_CHARS_MAX).contains(&text.len()) && text.chars().all(allowed)
}

fn is_loader_path(path: &str) -> bool {
    path.len() <= NAME_CHARS_MAX
        && path
            .split('/')
            .all(|part| is_word(part) && part != "." && part != "..")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loader_paths_stay_inside() {
        for good in ["bootx64.efi", "grub/x86_64-efi/http.mod", "lpxelinux.0"] {
            assert!(is_loader_path(good), "{good}");
        }
        for bad in [
            "",
            "/bootx64.efi",
            "a//b",
            "../a",
            "a/..",
            ".",
            "a b",
            "a\n",
        ] {
            assert!(!is_loader_path(bad), "{bad}");
        }
    }
}
