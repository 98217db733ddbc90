//! What racks ask of a region over HTTPS: image pieces, and what their machines asked them for.
//!
//! The listener lets only enrolled racks in (`link::https`), so what a rack says of its client here, and
//! only here, is believed: it is the attestation of protocols.md (Trust).

use std::net::IpAddr;

use api::Attestation;
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use library::{Library, LibraryError, PIECE_BYTES};
use link::RackIdentity;

/// A rack asks for images piece by piece; no range that is answered is longer than this.
const RANGE_BYTES_MAX: u64 = PIECE_BYTES as u64;

/// The whole of the rack listener: `region` serves everything but the images.
pub fn router(library: Library, region: Router) -> Router {
    let images = Router::new()
        .route("/images/{sha256}", get(image))
        .with_state(library);
    region.layer(middleware::from_fn(attest)).merge(images)
}

/// Turns what the rack says of its client into an extension that handlers may trust.
async fn attest(mut request: Request, next: Next) -> Response {
    let Some(rack) = request.extensions().get::<RackIdentity>().cloned() else {
        return (StatusCode::FORBIDDEN, "Only racks are served here.").into_response();
    };
    let headers = request.headers();
    let attestation = text(headers, "x-muster-client-address")
        .and_then(|address| address.parse::<IpAddr>().ok())
        .map(|client_address| Attestation {
            rack: rack.system_id,
            client_address,
            client_mac: text(headers, "x-muster-client-mac").and_then(|mac| mac.parse().ok()),
            vlan: text(headers, "x-muster-client-vlan").and_then(|vlan| vlan.parse().ok()),
        });
    if let Some(attestation) = attestation {
        request.extensions_mut().insert(attestation);
    }
    next.run(request).await
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// `GET /images/<sha256>`: one byte range of at most a piece, or the whole (boot loaders).
async fn image(
    State(library): State<Library>,
    Path(sha256): Path<String>,
    headers: HeaderMap,
) -> Response {
    let mut hash = [0; 32];
    if hex::decode_to_slice(&sha256, &mut hash).is_err() {
        return (StatusCode::NOT_FOUND, "Not a SHA-256.").into_response();
    }
    let manifest = match library.manifest(&hash).await {
        Ok(manifest) => manifest,
        Err(error) => return refuse(error),
    };
    let Some(range) = text(&headers, "range") else {
        return whole(library, hash, manifest.size_bytes);
    };
    let Some((first, last)) = byte_range(range, manifest.size_bytes) else {
        let all = format!("bytes */{}", manifest.size_bytes);
        let reply = (
            StatusCode::RANGE_NOT_SATISFIABLE,
            [(header::CONTENT_RANGE, all)],
        );
        return reply.into_response();
    };
    let length = (last - first + 1).min(RANGE_BYTES_MAX);
    let octets = match library
        .read(&hash, first, usize::try_from(length).unwrap_or(0))
        .await
    {
        Ok(octets) if octets.len() as u64 == length => octets,
        Ok(_) => return refuse(LibraryError::NotFound), // shorter than its manifest: damaged
        Err(error) => return refuse(error),
    };
    let end = first + length - 1;
    let range = format!("bytes {first}-{end}/{}", manifest.size_bytes);
    let mut reply = Response::new(Body::from(octets));
    *reply.status_mut() = StatusCode::PARTIAL_CONTENT;
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    if let Ok(range) = HeaderValue::from_str(&range) {
        headers.insert(header::CONTENT_RANGE, range);
    }
    reply
}

/// The whole file, read a piece at a time as the rack takes it.
fn whole(library: Library, hash: [u8; 32], size_bytes: u64) -> Response {
    let pieces = futures::stream::try_unfold(0, move |offset| {
        let library = library.clone();
        async move {
            if offset >= size_bytes {
                return Ok(None);
            }
            let octets = library.read(&hash, offset, PIECE_BYTES as usize).await?;
            if octets.is_empty() {
                return Err(LibraryError::NotFound); // shorter than its manifest: damaged
            }
            let next = offset + octets.len() as u64;
            Ok(Some((octets, next)))
        }
    });
    let mut reply = Response::new(Body::from_stream(pieces));
    let headers = reply.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/octet-stream"),
    );
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(size_bytes));
    reply
}

fn refuse(error: LibraryError) -> Response {
    match error {
        LibraryError::NotFound => (StatusCode::NOT_FOUND, "Not in the library.").into_response(),
        error => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "reading the image library"
            );
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}

/// `bytes=FIRST-[LAST]` within a file (RFC 9110 §14.1.2); racks send nothing else.
fn byte_range(range: &str, size_bytes: u64) -> Option<(u64, u64)> {
    let (first, last) = range.strip_prefix("bytes=")?.split_once('-')?;
    let first: u64 = first.parse().ok()?;
    let end = size_bytes.checked_sub(1)?;
    let last = if last.is_empty() {
        end
    } else {
        last.parse::<u64>().ok()?.min(end)
    };
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_stay_inside_the_file() {
        let cases = [
            ("bytes=0-", 10, Some((0, 9))),
            ("bytes=4-7", 10, Some((4, 7))),
            ("bytes=4-70", 10, Some((4, 9))),
            ("bytes=10-", 10, None),
            ("bytes=7-4", 10, None),
            ("bytes=-4", 10, None),
            ("bytes=0-", 0, None),
            ("bytes=0-1,3-4", 10, None),
            ("lines=0-1", 10, None),
        ];
        for (range, size, want) in cases {
            assert_eq!(byte_range(range, size), want, "{range}");
        }
    }
}
