//! DHCP options by scope, the region's lease time, and whose exchanges are followed.
//!
//! What an option may be is `model`'s rule; which scope wins is the reader's ([`crate::feed`]). Callers hold
//! [`crate::network::lock_networks`] where they check before they write.

use mac_address::MacAddress;
use sqlx::{FromRow, PgConnection};
use time::OffsetDateTime;

use crate::{StoreError, feed, lease, setting};

/// Options of one scope.
pub const OPTIONS_PER_SCOPE_MAX: i64 = 64;
/// Machines followed at once.
pub const TRACES_MAX: i64 = 16;
/// The region's lease time: what subnets without their own have.
const LEASE_SECS: &str = "dhcp_lease_secs";

/// For whom an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Global,
    Subnet(i32),
    Range(i32),
    /// A reservation.
    Host(i32),
}

impl Scope {
    /// Subnet, range, reservation: at most one is set.
    fn columns(self) -> (Option<i32>, Option<i32>, Option<i32>) {
        match self {
            Scope::Global => (None, None, None),
            Scope::Subnet(id) => (Some(id), None, None),
            Scope::Range(id) => (None, Some(id), None),
            Scope::Host(id) => (None, None, Some(id)),
        }
    }
}

#[derive(Clone, Debug, FromRow)]
pub struct DhcpOption {
    pub id: i32,
    subnet_id: Option<i32>,
    iprange_id: Option<i32>,
    reserved_ip_id: Option<i32>,
    code: i16,
    /// As on the wire; empty: left out, whatever a wider scope says.
    pub value: Vec<u8>,
    /// As it was written.
    pub text: String,
    /// How the text was read, "" for the option's own type.
    pub r#type: String,
    pub always: bool,
    pub comment: String,
}

impl DhcpOption {
    pub fn scope(&self) -> Scope {
        match (self.subnet_id, self.iprange_id, self.reserved_ip_id) {
            (Some(id), ..) => Scope::Subnet(id),
            (_, Some(id), _) => Scope::Range(id),
            (.., Some(id)) => Scope::Host(id),
            _ => Scope::Global,
        }
    }

    pub fn code(&self) -> u8 {
        // 1 to 254 by the schema.
        u8::try_from(self.code).unwrap_or(0)
    }
}

/// What an option is to be.
#[derive(Clone, Debug)]
pub struct OptionContent<'a> {
    pub value: &'a [u8],
    pub text: &'a str,
    pub r#type: &'a str,
    pub always: bool,
    pub comment: &'a str,
}

macro_rules! options {
    ($tail:literal) => {
        concat!(
            "select id, subnet_id, iprange_id, reserved_ip_id, code, value, text, type, always, comment
             from dhcp_option ",
            $tail
        )
    };
}

/// Global ones first, then by subnet, range and host; by code.
pub async fn options(db: &mut PgConnection) -> Result<Vec<DhcpOption>, StoreError> {
    Ok(sqlx::query_as(options!(
        "order by reserved_ip_id nulls first, iprange_id nulls first, subnet_id nulls first, code"
    ))
    .fetch_all(db)
    .await?)
}

pub async fn option(db: &mut PgConnection, id: i32) -> Result<DhcpOption, StoreError> {
    sqlx::query_as(options!("where id = $1"))
        .bind(id)
        .fetch_optional(db)
        .await?
        .ok_or_else(|| StoreError::not_found("dhcp_option", id))
}

/// How many options a scope has.
pub async fn option_count(db: &mut PgConnection, scope: Scope) -> Result<i64, StoreError> {
    let (subnet, range, host) = scope.columns();
    Ok(sqlx::query_scalar(
        "select count(*) from dhcp_option
         where subnet_id is not distinct from $1 and iprange_id is not distinct from $2
           and reserved_ip_id is not distinct from $3",
    )
    .bind(subnet)
    .bind(range)
    .bind(host)
    .fetch_one(db)
    .await?)
}

/// A code that the scope has already: constraint `dhcp_option_once`. A scope that is not there: `dhcp_option_…_fkey`.
pub async fn create_option(
    db: &mut PgConnection,
    scope: Scope,
    code: u8,
    content: &OptionContent<'_>,
) -> Result<i32, StoreError> {
    let (subnet, range, host) = scope.columns();
    let id = sqlx::query_scalar(
        "insert into dhcp_option (subnet_id, iprange_id, reserved_ip_id, code, value, text, type, always, comment)
         values ($1, $2, $3, $4, $5, $6, $7, $8, $9) returning id",
    )
    .bind(subnet)
    .bind(range)
    .bind(host)
    .bind(i16::from(code))
    .bind(content.value)
    .bind(content.text)
    .bind(content.r#type)
    .bind(content.always)
    .bind(content.comment)
    .fetch_one(&mut *db)
    .await?;
    scope_changed(db, scope).await?;
    Ok(id)
}

pub async fn update_option(
    db: &mut PgConnection,
    option: &DhcpOption,
    content: &OptionContent<'_>,
) -> Result<(), StoreError> {
    let done = sqlx::query(
        "update dhcp_option set value = $2, text = $3, type = $4, always = $5, comment = $6 where id = $1",
    )
    .bind(option.id)
    .bind(content.value)
    .bind(content.text)
    .bind(content.r#type)
    .bind(content.always)
    .bind(content.comment)
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 0 {
        return Err(StoreError::not_found("dhcp_option", option.id));
    }
    scope_changed(db, option.scope()).await
}

pub async fn delete_option(db: &mut PgConnection, option: &DhcpOption) -> Result<(), StoreError> {
    sqlx::query("delete from dhcp_option where id = $1")
        .bind(option.id)
        .execute(&mut *db)
        .await?;
    scope_changed(db, option.scope()).await
}

/// Tells racks that what belongs to this scope has changed.
pub(crate) async fn scope_changed(db: &mut PgConnection, scope: Scope) -> Result<(), StoreError> {
    let vlans: Vec<i32> = match scope {
        Scope::Global => {
            sqlx::query_scalar("select distinct vlan_id from subnet order by 1")
                .fetch_all(&mut *db)
                .await?
        }
        Scope::Subnet(id) => {
            sqlx::query_scalar("select vlan_id from subnet where id = $1")
                .bind(id)
                .fetch_all(&mut *db)
                .await?
        }
        Scope::Range(id) => sqlx::query_scalar(
            "select s.vlan_id from iprange r join subnet s on s.id = r.subnet_id where r.id = $1",
        )
        .bind(id)
        .fetch_all(&mut *db)
        .await?,
        Scope::Host(id) => return crate::reservation::told(db, id).await,
    };
    for vlan in vlans {
        feed::changed(db, feed::Kind::Link, &vlan.to_string()).await?;
    }
    Ok(())
}

//---------------------------------------------------------------- the region's lease time

/// Seconds that a lease has where no subnet, range or host says otherwise.
pub async fn lease_secs(db: &mut PgConnection) -> Result<i32, StoreError> {
    let value = setting::get(db, LEASE_SECS).await?;
    let secs = value
        .and_then(|value| value.as_i64())
        .and_then(|secs| i32::try_from(secs).ok());
    Ok(secs.unwrap_or(model::dhcp::LEASE_SECS_DEFAULT))
}

/// Sets it, and with it the subnets that have none of their own. Seconds outside `model::dhcp::LEASE_SECS`: constraint
/// `subnet_lease_secs_check`, if there is a subnet.
pub async fn set_lease_secs(db: &mut PgConnection, secs: i32) -> Result<(), StoreError> {
    setting::set(db, LEASE_SECS, &secs.into()).await?;
    let vlans: Vec<i32> = sqlx::query_scalar(
        "with changed as (
             update subnet set lease_secs = $1 where not lease_own and lease_secs <> $1 returning vlan_id
         )
         select distinct vlan_id from changed order by 1",
    )
    .bind(secs)
    .fetch_all(&mut *db)
    .await?;
    for vlan in vlans {
        lease::assign_blocks(db, vlan).await?;
        feed::changed(db, feed::Kind::Link, &vlan.to_string()).await?;
    }
    Ok(())
}

//---------------------------------------------------------------- traces

/// A machine whose every exchange is reported.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    pub mac: [u8; 6],
    pub until: OffsetDateTime,
    pub username: String,
}

/// Those that are not over.
pub async fn traces(db: &mut PgConnection) -> Result<Vec<Trace>, StoreError> {
    let rows: Vec<(MacAddress, OffsetDateTime, String)> = sqlx::query_as(
        "select mac, until, username from dhcp_trace where until > now() order by until, mac",
    )
    .fetch_all(db)
    .await?;
    Ok(rows
        .into_iter()
        .map(|(mac, until, username)| Trace {
            mac: mac.bytes(),
            until,
            username,
        })
        .collect())
}

/// Follows a machine for so long, or so much longer. `false`: as many as can be are followed.
pub async fn trace(
    db: &mut PgConnection,
    mac: [u8; 6],
    secs: i32,
    username: &str,
) -> Result<bool, StoreError> {
    // One at a time, so that the count holds.
    sqlx::query("lock table dhcp_trace in share row exclusive mode")
        .execute(&mut *db)
        .await?;
    sqlx::query("delete from dhcp_trace where until <= now()")
        .execute(&mut *db)
        .await?;
    let done = sqlx::query(
        "insert into dhcp_trace (mac, until, username)
         select $1, now() + make_interval(secs => $2), $3
         where (select count(*) from dhcp_trace where mac <> $1) < $4
         on conflict (mac) do update set until = excluded.until, username = excluded.username",
    )
    .bind(MacAddress::new(mac))
    .bind(f64::from(secs))
    .bind(username)
    .bind(TRACES_MAX)
    .execute(&mut *db)
    .await?;
    feed::changed(db, feed::Kind::Settings, "").await?;
    Ok(done.rows_affected() == 1)
}

pub async fn end_trace(db: &mut PgConnection, mac: [u8; 6]) -> Result<(), StoreError> {
    sqlx::query("delete from dhcp_trace where mac = $1")
        .bind(MacAddress::new(mac))
        .execute(&mut *db)
        .await?;
    feed::changed(db, feed::Kind::Settings, "").await
}
