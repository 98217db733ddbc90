//! From a request to its operation: path, then method, then `op`.
//!
//! One table says what there is; `describe/` is written from it. `op` is taken from the query, else from the form
//! body, else from a path suffix `op-<name>`; empty means none. Trailing slashes do not matter.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use futures::future::BoxFuture;
use gate::{Place, Source};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method, header};
use model::Permission;
use percent_encoding::percent_decode_str;
use serde_json::Value;
use time::OffsetDateTime;
use time::macros::format_description;

use crate::auth::{self, Caller};
use crate::body::{self, Form, Limits};
use crate::describe;
use crate::error::ApiError;
use crate::lacking::{self, Lacking};
use crate::shares::{self, STRANGER_BYTES_MAX};
use crate::transaction;
use crate::{App, Attestation};

pub type Reply = Result<Response, ApiError>;
pub type Handler = fn(Request) -> BoxFuture<'static, Reply>;

/// Makes a [`Handler`] of an `async fn(Request) -> Reply`.
#[macro_export]
macro_rules! handler {
    ($function:path) => {
        |request| ::std::boxed::Box::pin($function(request))
    };
}

/// Who may call an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody; a caller that signs is known to the handler.
    Anonymous,
    /// Accounts with this permission.
    With(Permission),
}

/// One operation of a resource.
#[derive(Clone, Copy)]
pub struct Operation {
    pub method: &'static str,
    /// None: the plain method.
    pub op: Option<&'static str>,
    pub access: Access,
    /// Shown by clients; `:param x:` lines are understood by MAAS's own.
    pub doc: &'static str,
    pub handler: Handler,
    /// The body is handed over unread, as [`Request::take_stream`]; `op` can't come from it then.
    pub streams: bool,
    /// What MAAS has here and this region has not.
    pub lacking: &'static [Lacking],
}

impl Operation {
    pub const fn new(
        method: &'static str,
        op: Option<&'static str>,
        access: Access,
        doc: &'static str,
        handler: Handler,
    ) -> Self {
        Self {
            method,
            op,
            access,
            doc,
            handler,
            streams: false,
            lacking: &[],
        }
    }

    pub const fn lacking(mut self, lacking: &'static [Lacking]) -> Self {
        self.lacking = lacking;
        self
    }

    pub const fn streaming(mut self) -> Self {
        self.streams = true;
        self
    }

    /// MAAS's name: the op, or create, read, update, delete.
    pub fn name(&self) -> &'static str {
        self.op.unwrap_or(match self.method {
            "POST" => "create",
            "GET" => "read",
            "PUT" => "update",
            _ => "delete",
        })
    }
}

/// What is at a path.
pub struct Resource {
    /// MAAS's handler name without `Handler`: "Machines".
    pub name: &'static str,
    /// Under `/MAAS/api/2.0/`, `{x}` for what is to be captured.
    pub path: &'static str,
    /// Further paths, which `describe/` does not tell.
    pub aliases: &'static [&'static str],
    pub doc: &'static str,
    pub operations: Vec<Operation>,
}

/// A request on its way to a handler.
pub struct Request {
    pub app: App,
    pub caller: Option<Caller>,
    pub attestation: Option<Attestation>,
    captured: Vec<(&'static str, String)>,
    pub query: Arc<Form>,
    /// Of a POST or PUT.
    pub form: Arc<Form>,
    /// The octets of `form`: its source's until the request is answered.
    _octets: Arc<Option<Place>>,
    /// In a lock only because a body is not `Sync`, and a `&Request` is held across awaits.
    stream: Mutex<Body>,
    pub headers: HeaderMap,
}

impl Request {
    /// The unread body, once; only for an operation that streams.
    pub fn take_stream(&mut self) -> Body {
        let stream = self
            .stream
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(stream)
    }

    /// Room for the octets of a streamed body, in the caller's share.
    pub fn place_for_body(&self) -> Result<Place, ApiError> {
        let source = Source::Account(self.caller()?.id);
        let place = self.app.state.shares.callers.enter(source, 0);
        place.map_err(shares::no_room)
    }

    /// What a `{name}` of the path stands for.
    pub fn path(&self, name: &str) -> &str {
        self.captured
            .iter()
            .find(|(captured, _)| *captured == name)
            .map_or("", |(_, value)| value.as_str())
    }

    /// A numeric part of the path: what is no number is not there.
    pub fn path_id(&self, name: &str, kind: &str) -> Result<i32, ApiError> {
        self.path(name).parse().map_err(|_| ApiError::no_such(kind))
    }

    /// The caller; the table made sure of one where the operation is not anonymous.
    pub fn caller(&self) -> Result<&Caller, ApiError> {
        self.caller
            .as_ref()
            .ok_or_else(|| ApiError::Unauthorized("Missing OAuth credentials.".into()))
    }

    pub fn username(&self) -> String {
        self.caller
            .as_ref()
            .map(|caller| caller.username.clone())
            .unwrap_or_default()
    }

    /// `http://host:port`, as the client wrote it.
    pub fn origin(&self) -> String {
        let header = |name: &str| self.headers.get(name).and_then(|value| value.to_str().ok());
        // What a proxy in front says is only written into links that go back to the same client.
        let scheme = match header("x-forwarded-proto") {
            Some("https") => "https",
            _ => "http",
        };
        format!("{scheme}://{}", header("host").unwrap_or("localhost:5240"))
    }
}

/// `application/json; charset=utf-8`, as every MAAS answer but `describe/`.
pub fn json(value: &Value) -> Response {
    let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
    (content_type, value.to_string()).into_response()
}

pub fn text(text: &'static str) -> Response {
    ([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], text).into_response()
}

/// 204, MAAS's answer to DELETE. The `maas` command reads its Content-Type, which it must have.
pub fn deleted() -> Response {
    let content_type = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (http::StatusCode::NO_CONTENT, content_type).into_response()
}

//---------------------------------------------------------------- the table

/// Every resource, and the hash of what `describe/` says of them.
pub(crate) struct Table {
    pub resources: Vec<Resource>,
    pub hash: String,
}

struct Found<'a> {
    resource: &'a Resource,
    captured: Vec<(&'static str, String)>,
    /// From a suffix `op-<name>`.
    op: Option<String>,
}

impl Table {
    pub fn new(resources: Vec<Resource>) -> Self {
        let hash = describe::hash(&resources);
        Self { resources, hash }
    }

    /// The resource at a path under `/MAAS/api/2.0/`.
    fn find(&self, path: &str) -> Option<Found<'_>> {
        let mut segments: Vec<&str> = path
            .split('/')
            .filter(|segment| !segment.is_empty())
            .collect();
        let op = segments
            .last()
            .and_then(|last| last.strip_prefix("op-"))
            .map(str::to_owned);
        if op.is_some() {
            segments.pop();
        }
        self.resources.iter().find_map(|resource| {
            std::iter::once(&resource.path)
                .chain(resource.aliases)
                .find_map(|pattern| capture(pattern, &segments))
                .map(|captured| Found {
                    resource,
                    captured,
                    op: op.clone(),
                })
        })
    }
}

fn capture(pattern: &'static str, segments: &[&str]) -> Option<Vec<(&'static str, String)>> {
    let parts = pattern.split('/').filter(|part| !part.is_empty());
    if parts.clone().count() != segments.len() {
        return None;
    }
    let mut captured = Vec::new();
    for (part, segment) in parts.zip(segments) {
        match part
            .strip_prefix('{')
            .and_then(|part| part.strip_suffix('}'))
        {
            Some(name) => {
                let value = percent_decode_str(segment).decode_utf8().ok()?;
                if value.contains('\0') {
                    return None;
                }
                captured.push((name, value.into_owned()));
            }
            None if part == *segment => {}
            None => return None,
        }
    }
    Some(captured)
}

//---------------------------------------------------------------- serving

pub(crate) fn router(app: App) -> Router {
    use axum::routing::{any, get, post};
    Router::new()
        .route("/MAAS/api/version", get(plain_version))
        .route("/MAAS/api/version/", get(plain_version))
        .route("/MAAS/api/1.0", any(gone))
        .route("/MAAS/api/1.0/", any(gone))
        .route("/MAAS/api/1.0/{*rest}", any(gone))
        .route("/MAAS/api/2.0", any(serve))
        .route("/MAAS/api/2.0/", any(serve))
        .route("/MAAS/api/2.0/describe", get(describe::describe))
        .route("/MAAS/api/2.0/describe/", get(describe::describe))
        .route("/MAAS/api/2.0/{*path}", any(serve))
        .route(
            "/MAAS/accounts/authenticate",
            post(crate::account::authenticate),
        )
        .route(
            "/MAAS/accounts/authenticate/",
            post(crate::account::authenticate),
        )
        .layer(axum::middleware::from_fn_with_state(app.clone(), finish))
        .with_state(app)
}

async fn plain_version() -> Response {
    text("2.0")
}

async fn gone() -> Response {
    ApiError::Gone("The 1.0 API is no longer available. Please use API version 2.0.")
        .into_response()
}

/// What every answer carries: Date (clients mend their clocks by it) and the hash of `describe/`.
async fn finish(
    State(app): State<App>,
    request: axum::extract::Request,
    next: axum::middleware::Next,
) -> Response {
    let mut response = next.run(request).await;
    match response.status().as_u16() {
        400 => app.count(|counters| &counters.malformed),
        401 => app.count(|counters| &counters.unauthorized),
        408 => app.count(|counters| &counters.too_slow),
        413 => app.count(|counters| &counters.too_large),
        429 => app.count(|counters| &counters.too_many_guesses),
        500 => app.count(|counters| &counters.internal_errors),
        _ => {}
    }
    let headers = response.headers_mut();
    if let Ok(hash) = HeaderValue::from_str(&app.state.table.hash) {
        headers.insert("x-maas-api-hash", hash);
    }
    headers.entry(header::DATE).or_insert_with(date);
    headers.insert(header::VARY, HeaderValue::from_static("Authorization"));
    response
}

/// IMF-fixdate (RFC 9110 §5.6.7).
fn date() -> HeaderValue {
    let format = format_description!(
        "[weekday repr:short], [day] [month repr:short] [year] [hour]:[minute]:[second] GMT"
    );
    let text = OffsetDateTime::now_utc()
        .format(&format)
        .unwrap_or_default();
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static(""))
}

async fn serve(State(app): State<App>, request: axum::extract::Request) -> Response {
    dispatch(app.clone(), request)
        .await
        .unwrap_or_else(|error| app.refuse(error))
}

async fn dispatch(app: App, request: axum::extract::Request) -> Reply {
    let (parts, stream) = request.into_parts();
    let path = parts
        .uri
        .path()
        .strip_prefix("/MAAS/api/2.0/")
        .unwrap_or_default();
    let state = app.state.clone();
    let found = state.table.find(path);
    let found = found.ok_or_else(|| ApiError::NotFound("Unknown API endpoint.".into()))?;
    let method = if parts.method == Method::HEAD {
        Method::GET
    } else {
        parts.method.clone()
    };
    let operations = &found.resource.operations;
    if !operations
        .iter()
        .any(|operation| operation.method == method.as_str())
    {
        let methods: BTreeSet<&str> = operations
            .iter()
            .map(|operation| operation.method)
            .collect();
        let allow: Vec<&str> = methods.into_iter().collect();
        return Err(ApiError::MethodNotAllowed(allow.join(", ")));
    }

    // At most 64 KiB: `http` takes no longer URI.
    let query = parts.uri.query().unwrap_or_default();
    let query = Form::urlencoded(query.as_bytes(), &Limits::default())?;
    let choose = |op: Option<&str>| {
        operations
            .iter()
            .find(|operation| operation.method == method.as_str() && operation.op == op)
            .copied()
    };
    let named = query.filled("op").map(str::to_owned).or(found.op);
    let early = choose(named.as_deref()).filter(|operation| operation.streams);
    let has_body = method == Method::POST || method == Method::PUT;

    // Who asks is settled from the head, before any of the body is read.
    let source = shares::source_of(&parts);
    let connection = parts.extensions.get::<gate::http::Connection>();
    let mut caller = match auth::signed(&parts.headers, &[&query]) {
        Some(signed) => Some(caller_of(&app, &source, connection, &signed?).await),
        None => None,
    };
    let (operation, form, octets, stream) = match early {
        Some(operation) => (Some(operation), Form::default(), None, stream),
        None => {
            let mut form = Form::default();
            let mut octets = None;
            if has_body {
                let takes_strangers = operations.iter().any(|operation| {
                    operation.method == method.as_str() && operation.access == Access::Anonymous
                });
                let room = match caller.take().transpose()? {
                    Some(known) => {
                        let room = BodyRoom::Of(known.id);
                        caller = Some(Ok(known));
                        room
                    }
                    None => BodyRoom::Stranger { takes_strangers },
                };
                let read = read_form(&app, &parts, stream, room, &source).await?;
                form = read.0;
                octets = Some(read.1);
            }
            let named = named.or_else(|| form.filled("op").map(str::to_owned));
            let operation = choose(named.as_deref());
            if operation.is_none() {
                return Err(ApiError::bad_request(format!(
                    "Unrecognised signature: method={method} op={}",
                    named
                        .as_deref()
                        .unwrap_or("None")
                        .chars()
                        .take(64)
                        .collect::<String>()
                )));
            }
            (operation, form, octets, Body::empty())
        }
    };
    let operation = operation.ok_or_else(|| ApiError::bad_request("Unrecognised signature."))?;

    if caller.is_none() {
        caller = match (auth::signed(&HeaderMap::new(), &[&form]), operation.access) {
            (Some(signed), _) => Some(caller_of(&app, &source, connection, &signed?).await),
            (None, Access::Anonymous) => None,
            (None, Access::With(_)) => {
                return Err(ApiError::Unauthorized("Missing OAuth credentials.".into()));
            }
        };
    }
    let caller = match (caller, operation.access) {
        // A client with an old key may still ask for the version.
        (Some(Err(ApiError::Unauthorized(_))), Access::Anonymous) if method == Method::GET => None,
        (Some(caller), _) => Some(caller?),
        (None, _) => None,
    };
    if let (Access::With(permission), Some(caller)) = (operation.access, &caller) {
        caller.require(permission)?;
    }
    lacking::check(operation.lacking, [&query, &form])?;
    let (query, form, octets) = (Arc::new(query), Arc::new(form), Arc::new(octets));
    let request = |app: App, stream: Body| Request {
        caller: caller.clone(),
        attestation: parts.extensions.get::<Attestation>().cloned(),
        captured: found.captured.clone(),
        query: Arc::clone(&query),
        form: Arc::clone(&form),
        _octets: Arc::clone(&octets),
        stream: Mutex::new(stream),
        headers: parts.headers.clone(),
        app,
    };
    if operation.streams {
        // Its body is there once.
        return (operation.handler)(request(app, stream)).await;
    }
    transaction::again(&app, |app| (operation.handler)(request(app, Body::empty()))).await
}

/// Whose key signed. From here on the request has its connection until it is answered, however many others come.
async fn caller_of(
    app: &App,
    source: &Source,
    connection: Option<&gate::http::Connection>,
    signed: &crate::oauth::Signed,
) -> Result<Caller, ApiError> {
    let caller = auth::caller(app, source, signed).await?;
    if let Some(connection) = connection {
        connection.firm();
    }
    Ok(caller)
}

/// In whose share a body is read.
enum BodyRoom {
    /// An account's.
    Of(i32),
    /// Of whoever has not shown a key: it may be in the body, or none may be needed.
    Stranger { takes_strangers: bool },
}

async fn read_form(
    app: &App,
    parts: &Parts,
    stream: Body,
    room: BodyRoom,
    source: &Source,
) -> Result<(Form, Place), ApiError> {
    let shares = &app.state.shares;
    let (place, limits) = match room {
        BodyRoom::Of(account) => {
            let place = shares.callers.enter(Source::Account(account), 0);
            (place, Limits::default())
        }
        BodyRoom::Stranger { .. } => {
            let limits = Limits {
                body_bytes_max: STRANGER_BYTES_MAX,
                ..Limits::default()
            };
            (shares.strangers.enter(source.clone(), 0), limits)
        }
    };
    let place = place.map_err(shares::no_room)?;
    let body = match (
        body::collect(stream, limits.body_bytes_max, &place).await,
        room,
    ) {
        (
            Err(ApiError::TooLarge),
            BodyRoom::Stranger {
                takes_strangers: false,
            },
        ) => {
            return Err(ApiError::Unauthorized("Missing OAuth credentials.".into()));
        }
        (body, _) => body?,
    };
    let content_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    Ok((Form::parse(content_type, &body, &limits)?, place))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_capture_segments() {
        type Case = (
            &'static str,
            &'static str,
            Option<&'static [(&'static str, &'static str)]>,
        );
        let cases: [Case; 6] = [
            ("machines/", "machines", Some(&[])),
            (
                "machines/{system_id}/",
                "machines/abc123",
                Some(&[("system_id", "abc123")]),
            ),
            ("machines/{system_id}/", "machines", None),
            (
                "users/{username}/",
                "users/a%20b",
                Some(&[("username", "a b")]),
            ),
            ("users/{username}/", "users/%00", None),
            ("users/{username}/", "users/%FF", None),
        ];
        for (pattern, path, want) in cases {
            let segments: Vec<&str> = path.split('/').collect();
            let want = want.map(|want| {
                want.iter()
                    .map(|(name, value)| (*name, (*value).to_owned()))
                    .collect::<Vec<_>>()
            });
            assert_eq!(capture(pattern, &segments), want, "{pattern} {path}");
        }
    }

    #[test]
    fn no_two_operations_have_the_same_key() {
        let resources = crate::resources();
        for resource in &resources {
            assert!(
                resource.path.ends_with('/') && !resource.path.starts_with('/'),
                "{}",
                resource.path
            );
            for (index, operation) in resource.operations.iter().enumerate() {
                assert!(
                    !resource.operations[..index].iter().any(|other| {
                        (other.method, other.op) == (operation.method, operation.op)
                    }),
                    "{} {} {:?}",
                    resource.path,
                    operation.method,
                    operation.op
                );
            }
        }
    }
}
