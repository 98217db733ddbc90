//! `/accounts/authenticate/` and `account/`: password to API key, and one's own API keys.

use axum::extract::State;
use axum::response::Response;
use http::header;
use model::{EventType, Permission};
use serde_json::{Value, json};
use store::event::NewEvent;
use store::token::Credentials;
use store::{account, event, token};

use crate::body::{self, Form, Limits};
use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer, text};
use crate::error::ApiError;
use crate::shares::{self, ThroughRack};
use crate::{App, handler, password};

const OWN: Access = Access::With(Permission::OwnAccount);
/// Of a token's name.
const NAME_CHARS_MAX: usize = 255;

pub fn resources() -> Vec<Resource> {
    vec![Resource {
        name: "Account",
        path: "account/",
        aliases: &[],
        doc: "Manage the current logged-in user.",
        operations: vec![
            Operation::new(
                "POST",
                Some("create_authorisation_token"),
                OWN,
                "Create an API key.\n\n:param name: What the key is for.",
                handler!(create_token),
            ),
            Operation::new(
                "POST",
                Some("delete_authorisation_token"),
                OWN,
                "Delete an API key.\n\n:param token_key: The key's second part.",
                handler!(delete_token),
            ),
            Operation::new(
                "POST",
                Some("update_token_name"),
                OWN,
                "Rename an API key.\n\n:param token: The key, or its second part.\n:param name: Its new name.",
                handler!(rename_token),
            ),
            Operation::new(
                "GET",
                Some("list_authorisation_tokens"),
                OWN,
                "List one's API keys.",
                handler!(list_tokens),
            ),
        ],
    }]
}

fn view(credentials: &Credentials, name: &str) -> Value {
    json!({
        "consumer_key": credentials.consumer_key,
        "token_key": credentials.token_key,
        "token_secret": credentials.token_secret,
        "name": name,
    })
}

/// `POST /MAAS/accounts/authenticate/` (username, password, consumer): the API key of that name. 403 on a wrong
/// password, whatever is wrong with it; 429 to a source that was wrong too often, for that account or in all.
pub(crate) async fn authenticate(
    State(app): State<App>,
    request: axum::extract::Request,
) -> Response {
    authenticated(&app, request)
        .await
        .unwrap_or_else(|error| app.refuse(error))
}

async fn authenticated(app: &App, request: axum::extract::Request) -> Reply {
    let (parts, stream) = request.into_parts();
    if parts.extensions.get::<ThroughRack>().is_some() {
        return Err(ApiError::Forbidden(
            "Passwords are not taken through a rack: ask the region itself.".into(),
        ));
    }
    let shares = &app.state.shares;
    let source = shares::source_of(&parts);
    let limits = Limits {
        body_bytes_max: 16 << 10,
        ..Limits::default()
    };
    let place = shares.strangers.enter(source.clone(), 0);
    let place = place.map_err(shares::no_room)?;
    let body = body::collect(stream, limits.body_bytes_max, &place).await?;
    let content_type = parts
        .headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    let form = Form::parse(content_type, &body, &limits)?;
    let username = form.required("username")?.to_owned();
    // As it was typed: spaces count in a password.
    let password = form.get("password").unwrap_or_default().to_owned();
    let name = token_name(form.filled("consumer").unwrap_or_default())?;

    let turn = shares.login(&source, &username).await?;
    let found = account::find(&mut *app.db().await?, &username).await?;
    let stored = found.as_ref().map(|account| account.password_hash.clone());
    // A wrong guess is noted before the turn ends, also when the client has gone away meanwhile.
    let state = app.state.clone();
    let right = tokio::task::spawn_blocking(move || {
        let right = password::verify(&password, stored.as_deref());
        state.shares.login_was(right, &source, &username);
        drop(turn);
        right
    });
    let right = right.await.map_err(ApiError::internal)?;
    let Some(account) = found.filter(|_| right) else {
        app.count(|counters| &counters.logins_refused);
        return Err(ApiError::Forbidden("Invalid username or password.".into()));
    };

    let mut tx = app.begin().await?;
    let credentials = token::find_or_create(&mut tx, &app.sealer, account.id, &name).await?;
    tx.commit().await?;
    Ok(answer(&view(&credentials, &name)))
}

fn token_name(name: &str) -> Result<String, ApiError> {
    if name.chars().count() > NAME_CHARS_MAX {
        return Err(ApiError::field(
            "name",
            "Ensure this value has at most 255 characters.",
        ));
    }
    Ok(name.to_owned())
}

async fn create_token(request: Request) -> Reply {
    let caller = request.caller()?;
    let name = token_name(request.form.filled("name").unwrap_or_default())?;
    let app = &request.app;
    let mut tx = app.begin().await?;
    let credentials = token::create(&mut tx, &app.sealer, caller.id, &name).await?;
    let made = NewEvent::new(EventType::AccountChanged)
        .by(&caller.username)
        .text(format!("API key {} created", credentials.token_key));
    event::record(&mut tx, made).await?;
    tx.commit().await?;
    Ok(answer(&view(&credentials, &name)))
}

async fn delete_token(request: Request) -> Reply {
    let caller = request.caller()?;
    let token_key = request.form.required("token_key")?;
    let mut tx = request.app.begin().await?;
    if !token::delete(&mut tx, caller.id, token_key).await? {
        return Err(ApiError::no_such("Token"));
    }
    let gone = NewEvent::new(EventType::AccountChanged)
        .by(&caller.username)
        .text(format!("API key {token_key} deleted"));
    event::record(&mut tx, gone).await?;
    tx.commit().await?;
    Ok(deleted())
}

async fn rename_token(request: Request) -> Reply {
    let caller = request.caller()?;
    let token = request.form.required("token")?;
    let token_key = token.split(':').nth(1).unwrap_or(token);
    let name = token_name(request.form.required("name")?)?;
    let mut db = request.app.db().await?;
    if !token::rename(&mut db, caller.id, token_key, &name).await? {
        return Err(ApiError::no_such("Token"));
    }
    Ok(text("Accepted"))
}

async fn list_tokens(request: Request) -> Reply {
    let caller = request.caller()?;
    let mut db = request.app.db().await?;
    let tokens = token::list(&mut db, &request.app.sealer, caller.id).await?;
    let tokens: Vec<Value> = tokens
        .iter()
        .map(|token| json!({ "name": token.name, "token": token.credentials.api_key() }))
        .collect();
    Ok(answer(&Value::from(tokens)))
}
