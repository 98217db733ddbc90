//! What racks ask of a region over HTTPS: image pieces, and what their machines asked them for.
//!
//! The listener lets only enrolled racks in (`link::https`), so what a rack says of its client here, and
//! only here, is believed: it is the attestation of protocols.md (Trust).

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use api::{Attestation, ThroughRack};
use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use gate::{Bounds, Room, Source};
use library::{Library, LibraryError, PIECE_BYTES};
use link::RackIdentity;

/// A rack asks for images piece by piece; no range that is answered is longer than this.
const RANGE_BYTES_MAX: u64 = PIECE_BYTES as u64;

/// Requests of machines behind racks under way at once, in all and of one machine; a machine at its share waits.
const REQUESTS: Bounds = Bounds {
    total: 4096,
    open: 4096,
    each: 8,
};
const REQUEST_WAIT: Duration = Duration::from_secs(5);

/// The places of what machines ask through their racks.
pub fn requests() -> Arc<Room> {
    Room::new("requests_behind_racks", REQUESTS)
}

/// The whole of the rack listener: `region` serves everything but the images.
pub fn router(library: Library, region: Router, requests: Arc<Room>) -> Router {
    let images = Router::new()
        .route("/images/{sha256}", get(image))
        .with_state(library);
    let attest = middleware::from_fn_with_state(requests, attest);
    region.layer(attest).merge(images)
}

/// Turns what the rack says of its client into an extension that handlers may trust, and accounts the request to the
/// machine, not to the rack: a machine that asks for too much slows only itself.
async fn attest(State(requests): State<Arc<Room>>, mut request: Request, next: Next) -> Response {
    let Some(rack) = request.extensions().get::<RackIdentity>().cloned() else {
        return (StatusCode::FORBIDDEN, "Only racks are served here.").into_response();
    };
    let headers = request.headers();
    let vlan: Option<i32> =
        text(headers, "x-muster-client-vlan").and_then(|vlan| vlan.parse().ok());
    let attestation = text(headers, "x-muster-client-address")
        .and_then(|address| address.parse::<IpAddr>().ok())
        .map(|client_address| Attestation {
            rack: rack.system_id.clone(),
            client_address,
            // A card is believed on a VLAN that the rack serves: it must say which.
            client_mac: text(headers, "x-muster-client-mac")
                .and_then(|mac| mac.parse().ok())
                .filter(|_| vlan.is_some()),
            vlan,
        });
    let source = match &attestation {
        Some(attestation) => Source::behind(&attestation.rack, attestation.client_address),
        None => Source::Rack(rack.system_id.as_str().into()),
    };
    let Ok(_place) = requests.wait(source.clone(), 1, REQUEST_WAIT).await else {
        let reason = "Too many requests of this machine at once. Try again.\n";
        let retry = [(header::RETRY_AFTER, "10")];
        return (StatusCode::SERVICE_UNAVAILABLE, retry, reason).into_response();
    };
    let extensions = request.extensions_mut();
    extensions.insert(ThroughRack);
    extensions.insert(source);
    if let Some(attestation) = attestation {
        extensions.insert(attestation);
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

    fn told() -> (Router, Arc<Room>) {
        async fn tell(request: Request) -> String {
            let source = request.extensions().get::<Source>();
            let through = request.extensions().get::<ThroughRack>().is_some();
            format!("{source:?} {through}")
        }
        let (requests, region) = (requests(), Router::new().route("/", get(tell)));
        let attest = middleware::from_fn_with_state(Arc::clone(&requests), attest);
        (region.layer(attest), requests)
    }

    async fn ask(router: &Router, client: Option<&str>) -> (StatusCode, String) {
        let mut request = Request::builder().uri("/");
        if let Some(client) = client {
            request = request.header("x-muster-client-address", client);
        }
        let system_id = "abc123".to_owned();
        let request = request.extension(RackIdentity { system_id });
        let request = request.body(Body::empty()).unwrap();
        let answer = tower::ServiceExt::oneshot(router.clone(), request).await;
        let (parts, body) = answer.unwrap().into_parts();
        let text = axum::body::to_bytes(body, 1 << 20).await.unwrap();
        (parts.status, String::from_utf8(text.to_vec()).unwrap())
    }

    #[tokio::test]
    async fn requests_through_a_rack_are_accounted_to_the_machine_behind_it() {
        let (router, requests) = told();
        let of = |address: &str| Source::behind("abc123", address.parse().unwrap());
        let (status, text) = ask(&router, Some("10.0.0.9")).await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(text, format!("{:?} true", Some(of("10.0.0.9"))));
        let (_, text) = ask(&router, None).await;
        let rack = Source::Rack("abc123".into());
        assert_eq!(text, format!("{:?} true", Some(rack)));

        // One machine holds its share: it waits, another does not.
        let held: Vec<_> = (0..8)
            .map(|_| {
                let place = requests.enter(of("10.0.0.9"), 1).unwrap();
                place.firm();
                place
            })
            .collect();
        assert_eq!(ask(&router, Some("10.0.0.8")).await.0, StatusCode::OK);
        let waiting = ask(&router, Some("10.0.0.9"));
        let mut waiting = std::pin::pin!(waiting);
        assert!(futures::poll!(waiting.as_mut()).is_pending());
        drop(held);
        assert_eq!(waiting.await.0, StatusCode::OK);
        assert_eq!(requests.numbers().held, 0);
    }

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
