//! OAuth tokens: API keys of accounts, tokens of booted machines.
//!
//! API keys are shown again on demand, so their secrets are sealed. A machine's token is minted for one boot
//! and never shown again, so only the SHA-256 of its secret is kept (it has 190 bits of randomness: a slow
//! hash would add nothing).

use std::fmt;
use std::net::IpAddr;

use model::{Mac, SystemId};
use rand::distr::{Alphanumeric, SampleString};
use sha2::{Digest, Sha256};
use sqlx::PgConnection;
use time::OffsetDateTime;
use uuid::Uuid;

use crate::machine::{from_db_mac, to_db_mac};
use crate::seal::Sealer;
use crate::{StoreError, account};

// MAAS's lengths.
const KEY_CHARS: usize = 18;
const SECRET_CHARS: usize = 32;
/// API keys of one account.
const KEYS_MAX: i64 = 200;

/// The three parts of an API key (the consumer's secret is always empty).
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    pub consumer_key: String,
    pub token_key: String,
    pub token_secret: String,
}

impl Credentials {
    fn random() -> Self {
        let mut rng = rand::rng();
        let mut text = |chars| Alphanumeric.sample_string(&mut rng, chars);
        Self {
            consumer_key: text(KEY_CHARS),
            token_key: text(KEY_CHARS),
            token_secret: text(SECRET_CHARS),
        }
    }

    /// `consumer:token:secret`, the form that people copy.
    pub fn api_key(&self) -> String {
        format!(
            "{}:{}:{}",
            self.consumer_key, self.token_key, self.token_secret
        )
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("token_key", &self.token_key)
            .finish_non_exhaustive()
    }
}

//---------------------------------------------------------------- API keys

/// An API key with its name.
#[derive(Clone, Debug)]
pub struct ApiToken {
    pub name: String,
    pub credentials: Credentials,
}

/// What a signature is checked against.
#[derive(Clone)]
pub struct ApiCaller {
    pub consumer_key: String,
    pub token_secret: Vec<u8>,
    pub account: account::Account,
}

fn context_of(token_key: &str) -> String {
    format!("api_token:{token_key}")
}

/// Makes a new API key for an account; [`StoreError::Full`] when it has too many.
pub async fn create(
    db: &mut PgConnection,
    sealer: &Sealer,
    account_id: i32,
    name: &str,
) -> Result<Credentials, StoreError> {
    // One after another, so that the count holds.
    sqlx::query("select id from account where id = $1 for update")
        .bind(account_id)
        .execute(&mut *db)
        .await?;
    let count: i64 = sqlx::query_scalar("select count(*) from api_token where account_id = $1")
        .bind(account_id)
        .fetch_one(&mut *db)
        .await?;
    if count >= KEYS_MAX {
        return Err(StoreError::Full { what: "API keys" });
    }
    let credentials = Credentials::random();
    let sealed = sealer.seal(
        &context_of(&credentials.token_key),
        credentials.token_secret.as_bytes(),
    )?;
    sqlx::query(
        "insert into api_token (token_key, consumer_key, secret_sealed, account_id, name)
         values ($1, $2, $3, $4, $5)",
    )
    .bind(&credentials.token_key)
    .bind(&credentials.consumer_key)
    .bind(sealed)
    .bind(account_id)
    .bind(name)
    .execute(db)
    .await?;
    Ok(credentials)
}

/// The account's oldest key of this name, or a new one: the same consumer gets the same token.
pub async fn find_or_create(
    db: &mut PgConnection,
    sealer: &Sealer,
    account_id: i32,
    name: &str,
) -> Result<Credentials, StoreError> {
    // Two logins at once must not make two tokens.
    sqlx::query("select id from account where id = $1 for update")
        .bind(account_id)
        .execute(&mut *db)
        .await?;
    match list(db, sealer, account_id)
        .await?
        .into_iter()
        .find(|token| token.name == name)
    {
        Some(token) => Ok(token.credentials),
        None => create(db, sealer, account_id, name).await,
    }
}

/// The account's keys, oldest first.
pub async fn list(
    db: &mut PgConnection,
    sealer: &Sealer,
    account_id: i32,
) -> Result<Vec<ApiToken>, StoreError> {
    let rows: Vec<(String, String, Vec<u8>, String)> = sqlx::query_as(
        "select token_key, consumer_key, secret_sealed, name
         from api_token where account_id = $1 order by created, token_key",
    )
    .bind(account_id)
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|(token_key, consumer_key, sealed, name)| {
            let secret = sealer.open(&context_of(&token_key), &sealed)?;
            let token_secret =
                String::from_utf8(secret).map_err(|_| StoreError::Corrupt { what: "API token" })?;
            Ok(ApiToken {
                name,
                credentials: Credentials {
                    consumer_key,
                    token_key,
                    token_secret,
                },
            })
        })
        .collect()
}

/// Says whether the account had that key.
pub async fn delete(
    db: &mut PgConnection,
    account_id: i32,
    token_key: &str,
) -> Result<bool, StoreError> {
    let done = sqlx::query("delete from api_token where account_id = $1 and token_key = $2")
        .bind(account_id)
        .bind(token_key)
        .execute(db)
        .await?;
    Ok(done.rows_affected() > 0)
}

/// Says whether the account had that key.
pub async fn rename(
    db: &mut PgConnection,
    account_id: i32,
    token_key: &str,
    name: &str,
) -> Result<bool, StoreError> {
    let done =
        sqlx::query("update api_token set name = $3 where account_id = $1 and token_key = $2")
            .bind(account_id)
            .bind(token_key)
            .bind(name)
            .execute(db)
            .await?;
    Ok(done.rows_affected() > 0)
}

#[derive(sqlx::FromRow)]
struct CallerRow {
    consumer_key: String,
    secret_sealed: Vec<u8>,
    #[sqlx(flatten)]
    account: account::Account,
}

/// The key and account behind an OAuth token, whatever the signature says.
pub async fn lookup(
    db: &mut PgConnection,
    sealer: &Sealer,
    token_key: &str,
) -> Result<Option<ApiCaller>, StoreError> {
    let row: Option<CallerRow> = sqlx::query_as(
        "select t.consumer_key, t.secret_sealed,
                a.id, a.username, a.email, a.password_hash, a.is_admin, a.created
         from api_token t join account a on a.id = t.account_id
         where t.token_key = $1",
    )
    .bind(token_key)
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        let token_secret = sealer.open(&context_of(token_key), &row.secret_sealed)?;
        Ok(ApiCaller {
            consumer_key: row.consumer_key,
            token_secret,
            account: row.account,
        })
    })
    .transpose()
}

//---------------------------------------------------------------- tokens of machines

/// A machine's token of one boot.
#[derive(Clone, Debug)]
pub struct MachineToken {
    pub token_key: String,
    pub consumer_key: String,
    pub machine: SystemId,
    pub boot_id: Uuid,
    pub mac: Mac,
    /// Where the machine that got the token was then.
    pub address: IpAddr,
    pub created: OffsetDateTime,
    secret_hash: Vec<u8>,
}

impl MachineToken {
    /// Whether this is the token's secret. Takes as long for any secret of the same length.
    pub fn secret_matches(&self, secret: &str) -> bool {
        let hash = Sha256::digest(secret.as_bytes());
        self.secret_hash.len() == hash.len()
            && hash
                .iter()
                .zip(&self.secret_hash)
                .fold(0, |sum, (a, b)| sum | (a ^ b))
                == 0
    }
}

/// Mints the token of a boot. Earlier tokens of other boots of this machine stop working.
pub async fn mint_machine(
    db: &mut PgConnection,
    machine: &SystemId,
    boot_id: Uuid,
    mac: Mac,
    address: IpAddr,
) -> Result<Credentials, StoreError> {
    let credentials = Credentials::random();
    sqlx::query(
        "update machine_token set revoked = now()
         where machine = $1 and boot_id <> $2 and revoked is null",
    )
    .bind(machine.as_str())
    .bind(boot_id)
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "insert into machine_token (token_key, consumer_key, secret_hash, machine, boot_id, mac, address)
         values ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(&credentials.token_key)
    .bind(&credentials.consumer_key)
    .bind(Sha256::digest(credentials.token_secret.as_bytes()).as_slice())
    .bind(machine.as_str())
    .bind(boot_id)
    .bind(to_db_mac(mac))
    .bind(address)
    .execute(db)
    .await?;
    Ok(credentials)
}

#[derive(sqlx::FromRow)]
struct MachineTokenRow {
    token_key: String,
    consumer_key: String,
    secret_hash: Vec<u8>,
    machine: String,
    boot_id: Uuid,
    mac: mac_address::MacAddress,
    address: IpAddr,
    created: OffsetDateTime,
}

/// The live token with this key, whatever the signature says.
pub async fn lookup_machine(
    db: &mut PgConnection,
    token_key: &str,
) -> Result<Option<MachineToken>, StoreError> {
    let row: Option<MachineTokenRow> = sqlx::query_as(
        "select token_key, consumer_key, secret_hash, machine, boot_id, mac, address, created
         from machine_token where token_key = $1 and revoked is null",
    )
    .bind(token_key)
    .fetch_optional(db)
    .await?;
    row.map(|row| {
        Ok(MachineToken {
            machine: row
                .machine
                .parse()
                .map_err(|_| StoreError::Corrupt { what: "system id" })?,
            token_key: row.token_key,
            consumer_key: row.consumer_key,
            boot_id: row.boot_id,
            mac: from_db_mac(row.mac),
            address: row.address,
            created: row.created,
            secret_hash: row.secret_hash,
        })
    })
    .transpose()
}

/// Ends every token of a machine (its boot is over). Says how many there were.
pub async fn revoke_machine(db: &mut PgConnection, machine: &SystemId) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "update machine_token set revoked = now() where machine = $1 and revoked is null",
    )
    .bind(machine.as_str())
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Removes tokens that ended over a day ago; at most 10,000 at a time.
pub async fn forget_revoked(db: &mut PgConnection) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from machine_token where token_key = any(array(
             select token_key from machine_token
             where revoked < now() - interval '1 day' limit 10000))",
    )
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
