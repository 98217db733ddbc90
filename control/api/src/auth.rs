//! Who is calling: signatures against stored tokens, nonces, permissions.
//!
//! Whatever part of a key is wrong, the answer is the same. A nonce is remembered only after the signature was
//! found right, so that nobody can fill the table without a key.

use std::sync::atomic::{AtomicU64, Ordering};

use gate::Source;
use http::{HeaderMap, header};
use model::{Permission, Role};
use store::nonce::{self, Use};
use store::token::{self, MachineToken};
use subtle::ConstantTimeEq;
use time::OffsetDateTime;

use crate::App;
use crate::body::Form;
use crate::error::ApiError;
use crate::oauth::{self, Signed};

/// Signed requests between two clean-ups of old nonces.
const CLEANING_INTERVAL: u64 = 4096;

/// The account behind a request.
#[derive(Clone, Debug)]
pub struct Caller {
    pub id: i32,
    pub username: String,
    pub email: String,
    pub role: Role,
}

impl Caller {
    pub fn require(&self, permission: Permission) -> Result<(), ApiError> {
        Ok(self.role.require(permission)?)
    }
}

fn wrong_key() -> ApiError {
    ApiError::Unauthorized("Invalid API key.".into())
}

/// The credentials of a request: header first, then query, then form body.
pub(crate) fn signed(headers: &HeaderMap, forms: &[&Form]) -> Option<Result<Signed, ApiError>> {
    headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(oauth::from_header)
        .or_else(|| forms.iter().find_map(|form| oauth::from_form(form)))
}

/// The account that signed.
pub(crate) async fn caller(
    app: &App,
    source: &Source,
    signed: &Signed,
) -> Result<Caller, ApiError> {
    oauth::check_time(signed.timestamp, OffsetDateTime::now_utc().unix_timestamp())?;
    let shares = &app.state.shares;
    let turn = shares.key(source, &signed.token_key).await?;
    let mut db = app.db().await?;
    let found = token::lookup(&mut db, &app.sealer, &signed.token_key).await?;
    let right = |found: &token::ApiCaller| {
        let consumer = found
            .consumer_key
            .as_bytes()
            .ct_eq(signed.consumer_key.as_bytes());
        let secret = found.token_secret.ct_eq(signed.token_secret.as_bytes());
        bool::from(consumer & secret)
    };
    let found = found.filter(right);
    shares.key_was(found.is_some(), source, &signed.token_key);
    let account = found.ok_or_else(wrong_key)?.account;
    let owner = format!("account {}", account.id);
    use_nonce(app, &mut db, signed, &owner).await?;
    drop(turn);
    Ok(Caller {
        id: account.id,
        username: account.username,
        email: account.email,
        role: if account.is_admin {
            Role::Admin
        } else {
            Role::User
        },
    })
}

/// The machine whose token signed the request (metadata, results). Whether the machine is where the token was
/// given to is for the caller to compare.
pub(crate) async fn machine_caller(
    app: &App,
    source: &Source,
    headers: &HeaderMap,
    forms: &[&Form],
) -> Result<MachineToken, ApiError> {
    let signed = signed(headers, forms)
        .unwrap_or_else(|| Err(ApiError::Unauthorized("Missing OAuth credentials.".into())))?;
    oauth::check_time(signed.timestamp, OffsetDateTime::now_utc().unix_timestamp())?;
    let shares = &app.state.shares;
    let turn = shares.key(source, &signed.token_key).await?;
    let mut db = app.db().await?;
    let found = token::lookup_machine(&mut db, &signed.token_key).await?;
    let right = |found: &MachineToken| {
        let consumer = found
            .consumer_key
            .as_bytes()
            .ct_eq(signed.consumer_key.as_bytes());
        bool::from(consumer) && found.secret_matches(&signed.token_secret)
    };
    let found = found.filter(right);
    shares.key_was(found.is_some(), source, &signed.token_key);
    let found = found.ok_or_else(wrong_key)?;
    let owner = format!("machine {}", found.machine);
    use_nonce(app, &mut db, &signed, &owner).await?;
    drop(turn);
    Ok(found)
}

async fn use_nonce(
    app: &App,
    db: &mut sqlx::PgConnection,
    signed: &Signed,
    owner: &str,
) -> Result<(), ApiError> {
    let Signed {
        token_key,
        nonce,
        timestamp,
        ..
    } = signed;
    let nonces = &app.state.nonces;
    match nonce::remember(db, owner, token_key, nonce, *timestamp).await? {
        Use::Fresh => {}
        Use::Again => return Err(ApiError::Unauthorized("Nonce already used.".into())),
        Use::BelowFloor => {
            nonces.below_floor.fetch_add(1, Ordering::Relaxed);
            return Err(ApiError::Unauthorized(
                "Expired timestamp: so many requests are signed with these keys that only the latest are taken."
                    .into(),
            ));
        }
    }
    let count = nonces.used.fetch_add(1, Ordering::Relaxed);
    if count % CLEANING_INTERVAL == CLEANING_INTERVAL - 1 {
        if let Some(cleaned) = nonce::clean(db, nonce::BOUNDS).await? {
            nonces.note(cleaned);
        }
        token::forget_revoked(db).await?;
    }
    Ok(())
}

/// What this process knows of the nonces, for the metrics page.
#[derive(Default)]
pub(crate) struct Nonces {
    used: AtomicU64,
    below_floor: AtomicU64,
    held: AtomicU64,
    owners: AtomicU64,
    raised: AtomicU64,
}

impl Nonces {
    fn note(&self, cleaned: nonce::Cleaned) {
        self.held.store(cleaned.held, Ordering::Relaxed);
        self.owners.store(cleaned.owners, Ordering::Relaxed);
        self.raised.fetch_add(cleaned.raised, Ordering::Relaxed);
    }

    /// `held` and `sources` are of this process's last clean-up.
    pub fn numbers(&self) -> gate::Numbers {
        let read = |value: &AtomicU64| value.load(Ordering::Relaxed);
        gate::Numbers {
            name: "nonces",
            held: read(&self.held),
            sources: read(&self.owners),
            total: nonce::BOUNDS.total,
            entered: read(&self.used),
            displaced: read(&self.raised),
            refused_source: read(&self.below_floor),
            ..gate::Numbers::default()
        }
    }
}
