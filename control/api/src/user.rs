//! `users/`: accounts.

use model::{EventType, Permission};
use serde_json::{Value, json};
use store::account::{self, Account, NewAccount};
use store::event::{self, NewEvent};

use crate::dispatch::{Access, Operation, Reply, Request, Resource, deleted, json as answer};
use crate::error::ApiError;
use crate::lacking::lacks;
use crate::{handler, password};

const VIEW: Access = Access::With(Permission::View);
const ADMINISTER: Access = Access::With(Permission::Administer);
/// Of a username (Django's limit).
const USERNAME_CHARS_MAX: usize = 150;

pub fn resources() -> Vec<Resource> {
    vec![
        Resource {
            name: "Users",
            path: "users/",
            aliases: &[],
            doc: "Manage the user accounts of this region.",
            operations: vec![
                Operation::new("GET", None, VIEW, "List users.", handler!(list)),
                Operation::new(
                    "POST",
                    None,
                    ADMINISTER,
                    "Create a user.\n\n:param username: Its name.\n:param email: Its e-mail address.\n\
                     :param password: Its password.\n:param is_superuser: Whether it is an administrator.",
                    handler!(create),
                )
                .lacking(const { &[lacks("key")] }),
                Operation::new(
                    "GET",
                    Some("whoami"),
                    VIEW,
                    "Read the current user.",
                    handler!(whoami),
                ),
            ],
        },
        Resource {
            name: "User",
            path: "users/{username}/",
            aliases: &[],
            doc: "Manage a user account.",
            operations: vec![
                Operation::new("GET", None, VIEW, "Read a user.", handler!(read)),
                Operation::new(
                    "DELETE",
                    None,
                    ADMINISTER,
                    "Delete a user that holds nothing any more.\n\n\
                     :param transfer_resources_to: The user who gets its machines, addresses and ranges.",
                    handler!(delete),
                ),
            ],
        },
    ]
}

fn view(username: &str, email: &str, is_admin: bool) -> Value {
    let path = percent_encoding::utf8_percent_encode(username, percent_encoding::NON_ALPHANUMERIC);
    json!({
        "username": username,
        "email": email,
        "is_superuser": is_admin,
        "is_local": true,
        "resource_uri": format!("/MAAS/api/2.0/users/{path}/"),
    })
}

fn account_view(account: &Account) -> Value {
    view(&account.username, &account.email, account.is_admin)
}

async fn list(request: Request) -> Reply {
    let accounts = account::list(&mut *request.app.db().await?).await?;
    Ok(answer(&accounts.iter().map(account_view).collect()))
}

async fn whoami(request: Request) -> Reply {
    let caller = request.caller()?;
    let is_admin = caller.role == model::Role::Admin;
    Ok(answer(&view(&caller.username, &caller.email, is_admin)))
}

async fn read(request: Request) -> Reply {
    let found = account::find(&mut *request.app.db().await?, request.path("username")).await?;
    Ok(answer(&account_view(
        &found.ok_or_else(|| ApiError::no_such("User"))?,
    )))
}

async fn create(request: Request) -> Reply {
    let form = &request.form;
    let username = form.required("username")?;
    let allowed = |c: char| c.is_alphanumeric() || "@.+-_".contains(c);
    if username.chars().count() > USERNAME_CHARS_MAX || !username.chars().all(allowed) {
        return Err(ApiError::field(
            "username",
            "Enter a valid username: letters, digits and @/./+/-/_ only, at most 150.",
        ));
    }
    let email = form.required("email")?;
    if !email.contains('@') || email.len() > 254 {
        return Err(ApiError::field("email", "Enter a valid email address."));
    }
    let is_admin = form.boolean("is_superuser")?.unwrap_or(false);
    let secret = form.required("password")?.to_owned();
    let by = gate::Source::Account(request.caller()?.id);
    let turn = request.app.state.shares.hashing(by).await?;
    let hash = tokio::task::spawn_blocking(move || {
        let hash = password::hash(&secret);
        drop(turn);
        hash
    })
    .await
    .map_err(ApiError::internal)?
    .map_err(|error| ApiError::field("password", error.to_string()))?;

    let mut tx = request.app.begin().await?;
    let new = NewAccount {
        username,
        email,
        password_hash: &hash,
        is_admin,
    };
    let made = account::create(&mut tx, &new).await?;
    let text = format!("User {username} created");
    let event = NewEvent::new(EventType::AccountChanged)
        .by(request.username())
        .text(text);
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    Ok(answer(&account_view(&made)))
}

async fn delete(request: Request) -> Reply {
    let username = request.path("username");
    if username == request.username() {
        return Err(ApiError::bad_request(
            "An administrator cannot delete itself.",
        ));
    }
    let mut tx = request.app.begin().await?;
    let found = account::find(&mut tx, username).await?;
    let found = found.ok_or_else(|| ApiError::no_such("User"))?;
    if let Some(heir) = request.query.filled("transfer_resources_to") {
        let heir = account::find(&mut tx, heir).await?;
        let heir = heir.ok_or_else(|| ApiError::no_such("User"))?;
        if heir.id == found.id {
            return Err(ApiError::field(
                "transfer_resources_to",
                "Must be another user.",
            ));
        }
        account::transfer(&mut tx, found.id, heir.id).await?;
    }
    let holdings = account::holdings(&mut tx, found.id).await?;
    if !holdings.is_empty() {
        return Err(ApiError::bad_request(format!(
            "User {username} cannot be deleted: {} are still allocated",
            holdings.join(", ")
        )));
    }
    account::delete(&mut tx, username).await?;
    let text = format!("User {username} deleted");
    let event = NewEvent::new(EventType::AccountChanged)
        .by(request.username())
        .text(text);
    event::record(&mut tx, event).await?;
    tx.commit().await?;
    Ok(deleted())
}
