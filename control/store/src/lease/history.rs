//! Who had which address, and when.
//!
//! What stands in `lease` is history's newest part. A row that is taken away (its address is wanted, or its range is gone) is
//! kept in `lease_history` by the same statement: a grant and a renewal write nothing for it. Addresses of reservations outside
//! the dynamic ranges are given without a lease, and so are not here.

use std::net::IpAddr;

use lease::Client;
use mac_address::MacAddress;
use sqlx::postgres::PgRow;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;

use crate::StoreError;
use crate::lease::client_of_row;

/// Kept after a binding's end.
const KEPT: &str = "90 days";
/// Rows kept; the oldest go first.
const ROWS_MAX: i64 = 2_000_000;
/// Rows looked at in one sweep.
const SWEEP_ROWS: i64 = 50_000;

/// `delete from lease l <tail>`, with what was a binding kept as history.
macro_rules! take_away {
    ($tail:literal) => {
        concat!(
            "with gone as (delete from lease l ",
            $tail,
            " returning l.*)
             insert into lease_history (address, vlan_id, client_kind, client_key, mac, hostname, since, ended, released)
             select address, vlan_id, client_kind, client_key, mac, hostname, since, ends, released from gone
             where client_kind is not null order by address"
        )
    };
}
pub(super) use take_away;

/// A client's time on an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stay {
    pub address: IpAddr,
    pub vlan_id: i32,
    pub client: Client,
    /// The client's hardware address, where its identity tells it.
    pub mac: Option<[u8; 6]>,
    /// What the client called itself. Not to be trusted.
    pub hostname: String,
    /// The first grant.
    pub since: OffsetDateTime,
    /// The durable end: the client may have gone up to twice its lease earlier. None while it has not passed.
    pub ended: Option<OffsetDateTime>,
    /// The client gave it back.
    pub released: bool,
}

/// Which stays; every part that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub subnet_id: Option<i32>,
    pub address: Option<IpAddr>,
    pub mac: Option<[u8; 6]>,
    /// Those that had not ended by then.
    pub after: Option<OffsetDateTime>,
    /// Those that had begun by then.
    pub before: Option<OffsetDateTime>,
    /// Only what comes behind this stay in the list: its `since` and address.
    pub page: Option<(OffsetDateTime, IpAddr)>,
    pub limit: u32,
}

/// The newest stays first.
pub async fn stays(db: &mut PgConnection, filter: &Filter) -> Result<Vec<Stay>, StoreError> {
    macro_rules! part {
        ($table:literal, $end:literal, $is_binding:literal) => {
            concat!(
                "(select h.address, h.vlan_id, h.client_kind, h.client_key, h.mac, h.hostname, h.since, ", $end, " as ended,
                         h.released
                  from ", $table, " h
                  where ", $is_binding, "
                    and ($1::int is null or h.address <<= (select cidr from subnet where id = $1))
                    and ($2::inet is null or h.address = $2) and ($3::macaddr is null or h.mac = $3)
                    and ($4::timestamptz is null or ", $end, " is null or ", $end, " >= $4)
                    and ($5::timestamptz is null or h.since <= $5)
                    and ($6::timestamptz is null or (h.since, h.address) < ($6, $7))
                  order by h.since desc, h.address desc limit $8)"
            )
        };
    }
    let rows = sqlx::query(concat!(
        part!(
            "lease",
            "case when h.ends <= now() then h.ends end",
            "h.client_kind is not null"
        ),
        " union all ",
        part!("lease_history", "h.ended", "true"),
        " order by since desc, address desc limit $8"
    ))
    .bind(filter.subnet_id)
    .bind(filter.address)
    .bind(filter.mac.map(MacAddress::new))
    .bind(filter.after)
    .bind(filter.before)
    .bind(filter.page.map(|(since, _)| since))
    .bind(filter.page.map(|(_, address)| address))
    .bind(i64::from(filter.limit))
    // The parts that are not asked for are seen by the planner only with the values.
    .persistent(false)
    .fetch_all(db)
    .await?;
    rows.iter().map(stay).collect()
}

fn stay(row: &PgRow) -> Result<Stay, StoreError> {
    let mac: Option<MacAddress> = row.try_get("mac")?;
    Ok(Stay {
        address: row.try_get("address")?,
        vlan_id: row.try_get("vlan_id")?,
        client: client_of_row(row)?.ok_or(StoreError::Corrupt {
            what: "client of a lease",
        })?,
        mac: mac.map(|mac| mac.bytes()),
        hostname: row.try_get("hostname")?,
        since: row.try_get("since")?,
        ended: row.try_get("ended")?,
        released: row.try_get("released")?,
    })
}

/// Forgets what is too old or too much, some at a time.
pub(super) async fn forget(db: &mut PgConnection) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "with oldest as (select id, ended from lease_history order by id limit $1)
         delete from lease_history h using oldest o
         where h.id = o.id
           and (o.ended < now() - $2::interval or o.id <= (select max(id) from lease_history) - $3)",
    )
    .bind(SWEEP_ROWS)
    .bind(KEPT)
    .bind(ROWS_MAX)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}
