//! What a request may get instead of an answer, in MAAS's words and types.

use std::collections::BTreeMap;
use std::error::Error;
use std::time::Duration;

use axum::response::{IntoResponse, Response};
use http::{HeaderValue, StatusCode, header};
use store::{Conflict, StoreError};
use workflow::WorkflowError;

/// A refusal. Its text goes to the client as it is: no causes, no secrets. Causes are logged here.
#[derive(Debug)]
pub enum ApiError {
    /// 400, text.
    BadRequest(String),
    /// 400, text: there are as many of these as there may be.
    BoundMet(String),
    /// 400, JSON: what is wrong with which field.
    Validation(BTreeMap<String, Vec<String>>),
    /// 401, with the reason after "Authorization Error: ".
    Unauthorized(String),
    Forbidden(String),
    NotFound(String),
    /// 405 with the methods that are there.
    MethodNotAllowed(String),
    /// 409
    Conflict(String),
    /// 410
    Gone(&'static str),
    TooLarge,
    /// 413: the sender has written as much as it may.
    QuotaFull(String),
    /// 408: the body did not come in time.
    TooSlow,
    /// 429: wrong keys or passwords too often; how long to wait.
    TooMany(Duration),
    /// 503: the same request may work in ten seconds.
    Unavailable(&'static str),
    /// 503, when it is not tried again here: another transaction was in the way, and nothing was done.
    InTheWay,
    Internal(Box<dyn Error + Send + Sync>),
}

impl ApiError {
    pub fn bad_request(text: impl Into<String>) -> Self {
        ApiError::BadRequest(text.into())
    }

    /// One field, one message.
    pub fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        ApiError::Validation(BTreeMap::from([(field.into(), vec![message.into()])]))
    }

    pub fn required(field: &str) -> Self {
        Self::field(field, "This field is required.")
    }

    /// MAAS's text for an object that is not there: `kind` is its class, "Machine".
    pub fn no_such(kind: &str) -> Self {
        ApiError::NotFound(format!("No {kind} matches the given query."))
    }

    pub fn conflict(text: impl ToString) -> Self {
        ApiError::Conflict(text.to_string())
    }

    pub fn internal(error: impl Error + Send + Sync + 'static) -> Self {
        ApiError::Internal(Box::new(error))
    }
}

/// The class name that MAAS's 404 texts have.
fn class_of(kind: &str) -> &str {
    match kind {
        "machine" => "Machine",
        "rack" => "RackController",
        "fabric" => "Fabric",
        "vlan" => "VLAN",
        "subnet" => "Subnet",
        "iprange" => "IPRange",
        "reserved_ip" => "ReservedIP",
        "dhcp_option" => "DHCPOption",
        "account" => "User",
        other => other,
    }
}

/// What a constraint of the schema means to whoever filled in the form.
fn refusal_of(constraint: &str) -> Option<ApiError> {
    let (field, message) = match constraint {
        "machine_hostname_key" => ("hostname", "Node with this Hostname already exists."),
        "interface_mac_key" => (
            "mac_addresses",
            "One or more MAC addresses is already in use.",
        ),
        "account_username_key" => ("username", "A user with that username already exists."),
        "fabric_name_key" => ("name", "Fabric with this Name already exists."),
        "vlan_fabric_id_vid_key" => (
            "vid",
            "A VLAN with the specified VID already exists in the fabric.",
        ),
        "vlan_vid_check" => ("vid", "VID must be between 0 and 4094."),
        "vlan_mtu_check" => ("mtu", "MTU must be between 552 and 65535."),
        "subnet_cidr_key" => ("cidr", "Subnet with this Cidr already exists."),
        "subnet_lease_secs_check" | "iprange_lease_secs_check" | "reserved_ip_lease_secs_check" => {
            ("lease_secs", "Must be between 30 and 86400.")
        }
        "reserved_ip_ip_key" => ("ip", "Reserved IP with this IP address already exists."),
        "reserved_ip_subnet_id_mac_key" => (
            "mac_address",
            "Reserved IP with this MAC address and Subnet already exists.",
        ),
        "reserved_ip_client_id_key" => (
            "client_id",
            "Reserved IP with this client id and Subnet already exists.",
        ),
        "reserved_ip_circuit_key" => (
            "circuit_id",
            "Reserved IP with this circuit id and Subnet already exists.",
        ),
        "dhcp_option_once" => ("code", "This option is set in this scope already."),
        "subnet_vlan_id_fkey" => return Some(ApiError::conflict("The VLAN still has subnets.")),
        _ => return None,
    };
    Some(ApiError::field(field, message))
}

impl Conflict for ApiError {
    fn is_conflict(&self) -> bool {
        matches!(self, ApiError::InTheWay)
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        match &error {
            StoreError::NotFound { kind, .. } => ApiError::no_such(class_of(kind)),
            StoreError::Constraint { constraint } => {
                refusal_of(constraint).unwrap_or_else(|| ApiError::internal(error))
            }
            StoreError::Full { what } => {
                ApiError::BoundMet(format!("Too many {what}: delete some first."))
            }
            error if error.is_conflict() => ApiError::InTheWay,
            error if error.is_transient() => {
                tracing::warn!(error = error as &dyn Error, "the database did not answer");
                ApiError::Unavailable("The database is not available. Try again.")
            }
            _ => ApiError::internal(error),
        }
    }
}

impl From<sqlx::Error> for ApiError {
    fn from(error: sqlx::Error) -> Self {
        StoreError::from(error).into()
    }
}

impl From<WorkflowError> for ApiError {
    fn from(error: WorkflowError) -> Self {
        match error {
            WorkflowError::Store(error) => error.into(),
            WorkflowError::UnknownScript(_) => ApiError::bad_request(error.to_string()),
            WorkflowError::ResultsFull => ApiError::QuotaFull(error.to_string()),
            WorkflowError::PowerTimeout => {
                ApiError::Unavailable("The power of the machine was not reached in time.")
            }
            WorkflowError::Illegal(_)
            | WorkflowError::NothingToAbort(_)
            | WorkflowError::NoPower
            | WorkflowError::Locked => ApiError::conflict(error),
        }
    }
}

impl From<model::Denied> for ApiError {
    fn from(error: model::Denied) -> Self {
        ApiError::Forbidden(error.to_string())
    }
}

fn text(status: StatusCode, text: String) -> Response {
    let text_plain = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
    (status, text_plain, text).into_response()
}

fn with_header(mut response: Response, name: header::HeaderName, value: &str) -> Response {
    if let Ok(value) = HeaderValue::from_str(value) {
        response.headers_mut().insert(name, value);
    }
    response
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        match self {
            ApiError::BadRequest(reason) | ApiError::BoundMet(reason) => {
                text(StatusCode::BAD_REQUEST, reason)
            }
            ApiError::Validation(fields) => {
                let json = serde_json::to_string(&fields).unwrap_or_default();
                let content_type = [(header::CONTENT_TYPE, "application/json; charset=utf-8")];
                (StatusCode::BAD_REQUEST, content_type, json).into_response()
            }
            ApiError::Unauthorized(reason) => with_header(
                text(
                    StatusCode::UNAUTHORIZED,
                    format!("Authorization Error: {reason}"),
                ),
                header::WWW_AUTHENTICATE,
                r#"OAuth realm="OAuth""#,
            ),
            ApiError::Forbidden(reason) => text(StatusCode::FORBIDDEN, reason),
            ApiError::NotFound(reason) => text(StatusCode::NOT_FOUND, reason),
            ApiError::MethodNotAllowed(allow) => with_header(
                text(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed".into()),
                header::ALLOW,
                &allow,
            ),
            ApiError::Conflict(reason) => text(StatusCode::CONFLICT, reason),
            ApiError::Gone(reason) => text(StatusCode::GONE, reason.into()),
            ApiError::TooLarge => text(
                StatusCode::PAYLOAD_TOO_LARGE,
                "The request body is too large.".into(),
            ),
            ApiError::QuotaFull(reason) => text(StatusCode::PAYLOAD_TOO_LARGE, reason),
            ApiError::TooSlow => text(
                StatusCode::REQUEST_TIMEOUT,
                "The request body came too slowly.".into(),
            ),
            ApiError::TooMany(wait) => {
                // The part of a second rounds up.
                let secs = wait.as_millis().div_ceil(1000).max(1);
                let reason = format!("Too many wrong attempts. Try again in {secs} s.");
                let refusal = text(StatusCode::TOO_MANY_REQUESTS, reason);
                with_header(refusal, header::RETRY_AFTER, &secs.to_string())
            }
            ApiError::Unavailable(reason) => with_header(
                text(StatusCode::SERVICE_UNAVAILABLE, reason.into()),
                header::RETRY_AFTER,
                "10",
            ),
            ApiError::InTheWay => {
                ApiError::Unavailable("Other requests change the same. Try again.").into_response()
            }
            ApiError::Internal(error) => {
                tracing::error!(error = &*error as &dyn Error, "answering a request");
                text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Internal server error.".into(),
                )
            }
        }
    }
}
