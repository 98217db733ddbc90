//! BMCs: how a machine's power is reached, with what secrets, and from which racks.

use std::fmt;
use std::net::IpAddr;

use model::{PowerType, SplitParameters, SystemId};
use serde_json::{Map, Value};
use sqlx::PgConnection;
use sqlx::types::Json;
use time::OffsetDateTime;

use crate::StoreError;
use crate::seal::Sealer;

/// A BMC as stored. Its secrets are sealed: see [`Bmc::parameters_with_secrets`].
#[derive(Clone)]
pub struct Bmc {
    pub id: i32,
    pub power_type: PowerType,
    pub address: Option<IpAddr>,
    /// MAAS power parameter names, without the secret ones.
    pub parameters: Map<String, Value>,
    secrets_sealed: Option<Vec<u8>>,
}

impl fmt::Debug for Bmc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bmc")
            .field("id", &self.id)
            .field("power_type", &self.power_type)
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Bmc {
    /// All parameters. For one power operation, or for an administrator who asks; never logged.
    pub fn parameters_with_secrets(
        &self,
        sealer: &Sealer,
    ) -> Result<Map<String, Value>, StoreError> {
        let mut parameters = self.parameters.clone();
        if let Some(sealed) = &self.secrets_sealed {
            let secrets = sealer.open(&context_of(self.id), sealed)?;
            let secrets: Map<String, Value> =
                serde_json::from_slice(&secrets).map_err(|_| StoreError::Corrupt {
                    what: "BMC secrets",
                })?;
            parameters.extend(secrets);
        }
        Ok(parameters)
    }
}

fn context_of(id: i32) -> String {
    format!("bmc:{id}")
}

#[derive(sqlx::FromRow)]
struct BmcRow {
    id: i32,
    power_type: String,
    address: Option<IpAddr>,
    parameters: Json<Map<String, Value>>,
    secrets_sealed: Option<Vec<u8>>,
}

impl TryFrom<BmcRow> for Bmc {
    type Error = StoreError;

    fn try_from(row: BmcRow) -> Result<Self, StoreError> {
        Ok(Bmc {
            id: row.id,
            power_type: row
                .power_type
                .parse()
                .map_err(|_| StoreError::Corrupt { what: "power type" })?,
            address: row.address,
            parameters: row.parameters.0,
            secrets_sealed: row.secrets_sealed,
        })
    }
}

pub async fn get(db: &mut PgConnection, id: i32) -> Result<Bmc, StoreError> {
    let row: Option<BmcRow> = sqlx::query_as(
        "select id, power_type, address, parameters, secrets_sealed from bmc where id = $1",
    )
    .bind(id)
    .fetch_optional(db)
    .await?;
    row.ok_or_else(|| StoreError::not_found("BMC", id))?
        .try_into()
}

pub async fn of_machine(
    db: &mut PgConnection,
    machine: &SystemId,
) -> Result<Option<Bmc>, StoreError> {
    let row: Option<BmcRow> = sqlx::query_as(
        "select b.id, b.power_type, b.address, b.parameters, b.secrets_sealed
         from bmc b join machine m on m.bmc_id = b.id where m.system_id = $1",
    )
    .bind(machine.as_str())
    .fetch_optional(db)
    .await?;
    row.map(Bmc::try_from).transpose()
}

/// The BMCs of these machines, by system_id.
pub async fn of_machines(
    db: &mut PgConnection,
    machines: &[String],
) -> Result<Vec<(String, Bmc)>, StoreError> {
    #[derive(sqlx::FromRow)]
    struct Row {
        system_id: String,
        #[sqlx(flatten)]
        bmc: BmcRow,
    }
    let rows: Vec<Row> = sqlx::query_as(
        "select m.system_id, b.id, b.power_type, b.address, b.parameters, b.secrets_sealed
         from bmc b join machine m on m.bmc_id = b.id
         where m.system_id = any($1) order by m.system_id",
    )
    .bind(machines)
    .fetch_all(db)
    .await?;
    let with_id = |row: Row| Ok((row.system_id, row.bmc.try_into()?));
    rows.into_iter().map(with_id).collect()
}

/// Gives a machine its BMC, or changes the one it has. Routes stay unless the address changes.
pub async fn set_for_machine(
    db: &mut PgConnection,
    sealer: &Sealer,
    machine: &SystemId,
    power_type: PowerType,
    parameters: &SplitParameters,
) -> Result<i32, StoreError> {
    let old: Option<(Option<i32>, Option<IpAddr>)> = sqlx::query_as(
        "select m.bmc_id, b.address from machine m left join bmc b on b.id = m.bmc_id
         where m.system_id = $1 for update of m",
    )
    .bind(machine.as_str())
    .fetch_optional(&mut *db)
    .await?;
    let Some((bmc_id, old_address)) = old else {
        return Err(StoreError::not_found("machine", machine));
    };
    let id: i32 = match bmc_id {
        Some(id) => {
            if old_address != parameters.address {
                sqlx::query("delete from bmc_route where bmc_id = $1")
                    .bind(id)
                    .execute(&mut *db)
                    .await?;
            }
            id
        }
        None => {
            let id = sqlx::query_scalar("insert into bmc (power_type) values ($1) returning id")
                .bind(power_type.as_str())
                .fetch_one(&mut *db)
                .await?;
            sqlx::query("update machine set bmc_id = $2, updated = now() where system_id = $1")
                .bind(machine.as_str())
                .bind(id)
                .execute(&mut *db)
                .await?;
            id
        }
    };
    let sealed = if parameters.secret.is_empty() {
        None
    } else {
        let secrets = serde_json::to_vec(&parameters.secret).map_err(|_| StoreError::Corrupt {
            what: "BMC secrets",
        })?;
        Some(sealer.seal(&context_of(id), &secrets)?)
    };
    sqlx::query(
        "update bmc set power_type = $2, address = $3, parameters = $4, secrets_sealed = $5,
             swept = null, sweep_failures = 0
         where id = $1",
    )
    .bind(id)
    .bind(power_type.as_str())
    .bind(parameters.address)
    .bind(Json(&parameters.open))
    .bind(sealed)
    .execute(db)
    .await?;
    Ok(id)
}

/// Deletes a BMC that no machine has any more.
pub async fn delete_unused(db: &mut PgConnection, id: i32) -> Result<(), StoreError> {
    sqlx::query(
        "delete from bmc where id = $1 and not exists (select from machine where bmc_id = $1)",
    )
    .bind(id)
    .execute(db)
    .await?;
    Ok(())
}

//---------------------------------------------------------------- sweeps

/// BMCs that a rack can ask.
pub async fn count_driven(db: impl sqlx::PgExecutor<'_>) -> Result<i64, StoreError> {
    Ok(
        sqlx::query_scalar("select count(*) from bmc where power_type <> 'manual'")
            .fetch_one(db)
            .await?,
    )
}

/// Records what a sweep's query of it came to.
pub async fn swept(db: &mut PgConnection, id: i32, failed: bool) -> Result<(), StoreError> {
    sqlx::query(
        "update bmc set sweep_failures = case when $2 then least(sweep_failures + 1, 20) else 0 end
         where id = $1",
    )
    .bind(id)
    .bind(failed)
    .execute(db)
    .await?;
    Ok(())
}

/// Machines with a driven power type, and those of them whose power was last seen longer ago than `age`.
pub async fn seen(
    db: &mut PgConnection,
    age: std::time::Duration,
) -> Result<(i64, i64), StoreError> {
    Ok(sqlx::query_as(
        "select count(*), count(*) filter (
                where coalesce(m.power_state_updated < now() - make_interval(secs => $1), true))
         from machine m join bmc b on b.id = m.bmc_id where b.power_type <> 'manual'",
    )
    .bind(age.as_secs_f64())
    .fetch_one(db)
    .await?)
}

//---------------------------------------------------------------- routes

/// What is known of one rack's way to one BMC.
#[derive(Clone, Debug, sqlx::FromRow)]
pub struct Route {
    pub rack: String,
    /// Said by the operator.
    pub configured: bool,
    /// The rack has an address in a network that holds the BMC's.
    pub on_subnet: bool,
    pub last_ok: Option<OffsetDateTime>,
    pub last_failure: Option<OffsetDateTime>,
    /// Since the last success.
    pub failures: i32,
}

/// Every rack that is not revoked, best way first: on the BMC's network, then configured, then learned,
/// then untried; fewer failures before more.
pub async fn routes(db: &mut PgConnection, bmc_id: i32) -> Result<Vec<Route>, StoreError> {
    Ok(sqlx::query_as(
        "select r.system_id as rack, coalesce(w.configured, false) as configured,
                exists (select from rack_interface i, unnest(i.addresses) as a
                        where i.rack = r.system_id and network(a) >>= b.address) as on_subnet,
                w.last_ok, w.last_failure, coalesce(w.failures, 0) as failures
         from bmc b cross join rack r
         left join bmc_route w on w.bmc_id = b.id and w.rack = r.system_id
         where b.id = $1 and r.revoked is null
         order by coalesce(w.failures, 0) > 0 and coalesce(w.last_failure > w.last_ok, true),
                  on_subnet desc, configured desc, w.last_ok desc nulls last, failures, rack",
    )
    .bind(bmc_id)
    .fetch_all(db)
    .await?)
}

/// Records that the rack reached the BMC, or that it did not.
pub async fn record_route(
    db: &mut PgConnection,
    bmc_id: i32,
    rack: &str,
    reached: bool,
) -> Result<(), StoreError> {
    sqlx::query(
        "insert into bmc_route as w (bmc_id, rack, last_ok, last_failure, failures)
         values ($1, $2, case when $3 then now() end, case when not $3 then now() end,
                 case when $3 then 0 else 1 end)
         on conflict (bmc_id, rack) do update
         set last_ok = coalesce(excluded.last_ok, w.last_ok),
             last_failure = coalesce(excluded.last_failure, w.last_failure),
             failures = case when $3 then 0 else least(w.failures + 1, 1000000) end",
    )
    .bind(bmc_id)
    .bind(rack)
    .bind(reached)
    .execute(db)
    .await?;
    Ok(())
}
