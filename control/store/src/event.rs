//! The event log: what happened to machines and racks, and when.

use model::{EventType, Level, Mac, SystemId};
use sqlx::{PgConnection, Postgres, QueryBuilder};
use time::OffsetDateTime;

use crate::StoreError;
use crate::machine::{from_db_mac, to_db_mac};

/// Longest description kept, in octets; the rest is cut off.
const DESCRIPTION_BYTES_MAX: usize = 4096;

/// An event to record. `NewEvent::new(kind).machine(&id).by("admin").text("...")`
#[derive(Clone, Debug)]
pub struct NewEvent {
    pub kind: EventType,
    pub machine: Option<SystemId>,
    pub rack: Option<String>,
    /// Of a machine that is not known yet, or the interface that was seen.
    pub mac: Option<Mac>,
    pub username: String,
    pub description: String,
    /// None: now, by the database's clock.
    pub at: Option<OffsetDateTime>,
}

impl NewEvent {
    pub fn new(kind: EventType) -> Self {
        Self {
            kind,
            machine: None,
            rack: None,
            mac: None,
            username: String::new(),
            description: String::new(),
            at: None,
        }
    }

    pub fn machine(mut self, machine: &SystemId) -> Self {
        self.machine = Some(*machine);
        self
    }

    pub fn rack(mut self, rack: impl Into<String>) -> Self {
        self.rack = Some(rack.into());
        self
    }

    pub fn mac(mut self, mac: Mac) -> Self {
        self.mac = Some(mac);
        self
    }

    pub fn by(mut self, username: impl Into<String>) -> Self {
        self.username = username.into();
        self
    }

    pub fn text(mut self, description: impl Into<String>) -> Self {
        self.description = description.into();
        self
    }

    pub fn at(mut self, at: OffsetDateTime) -> Self {
        self.at = Some(at);
        self
    }
}

pub async fn record(db: &mut PgConnection, event: NewEvent) -> Result<(), StoreError> {
    record_all(db, &[event]).await
}

/// Records it unless the same machine has one of its type that is younger than `after`.
pub async fn record_rarely(
    db: &mut PgConnection,
    event: NewEvent,
    after: std::time::Duration,
) -> Result<(), StoreError> {
    let lately: Option<bool> = sqlx::query_scalar(
        "select at > clock_timestamp() - make_interval(secs => $3) from event
         where machine = $1 and type = $2 order by id desc limit 1",
    )
    .bind(event.machine.as_ref().map(|machine| machine.as_str()))
    .bind(event.kind.name())
    .bind(after.as_secs_f64())
    .fetch_optional(&mut *db)
    .await?;
    match lately {
        Some(true) => Ok(()),
        _ => record(db, event).await,
    }
}

/// Records many in one statement. An event of a machine that is gone by now is kept without it.
pub async fn record_all(db: &mut PgConnection, events: &[NewEvent]) -> Result<(), StoreError> {
    if events.is_empty() {
        return Ok(());
    }
    let texts: Vec<String> = events
        .iter()
        .map(|event| storable(&event.description))
        .collect();
    sqlx::query(
        "insert into event (at, type, level, machine, rack, mac, username, description)
         select coalesce(e.at, clock_timestamp()), e.type, e.level, m.system_id, r.system_id,
                e.mac, e.username, e.description
         from unnest($1::timestamptz[], $2::text[], $3::int[], $4::text[], $5::text[],
                     $6::macaddr[], $7::text[], $8::text[]) with ordinality
              as e (at, type, level, machine, rack, mac, username, description, position)
         left join machine m on m.system_id = e.machine
         left join rack r on r.system_id = e.rack
         order by e.position",
    )
    .bind(events.iter().map(|event| event.at).collect::<Vec<_>>())
    .bind(
        events
            .iter()
            .map(|event| event.kind.name())
            .collect::<Vec<_>>(),
    )
    .bind(
        events
            .iter()
            .map(|event| event.kind.level().number())
            .collect::<Vec<_>>(),
    )
    .bind(
        events
            .iter()
            .map(|event| event.machine.map(|machine| machine.to_string()))
            .collect::<Vec<_>>(),
    )
    .bind(
        events
            .iter()
            .map(|event| event.rack.as_deref())
            .collect::<Vec<_>>(),
    )
    .bind(
        events
            .iter()
            .map(|event| event.mac.map(to_db_mac))
            .collect::<Vec<_>>(),
    )
    .bind(
        events
            .iter()
            .map(|event| event.username.as_str())
            .collect::<Vec<_>>(),
    )
    .bind(texts)
    .execute(db)
    .await?;
    Ok(())
}

/// PostgreSQL's text holds no NUL; a description may come from a machine.
fn storable(text: &str) -> String {
    let mut end = text.len().min(DESCRIPTION_BYTES_MAX);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].replace('\0', "\u{fffd}")
}

/// Gives the events of MACs without a machine to the machine that has them now (it has enlisted).
pub async fn adopt(
    db: &mut PgConnection,
    machine: &SystemId,
    macs: &[Mac],
) -> Result<u64, StoreError> {
    let done = sqlx::query("update event set machine = $1 where machine is null and mac = any($2)")
        .bind(machine.as_str())
        .bind(macs.iter().copied().map(to_db_mac).collect::<Vec<_>>())
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}

/// A recorded event.
#[derive(Clone, Debug)]
pub struct Event {
    pub id: i64,
    pub at: OffsetDateTime,
    /// [`EventType::name`]; a text, as an older or newer region may have written it.
    pub kind: String,
    pub level: i32,
    pub machine: Option<String>,
    /// Of the machine, "" without one.
    pub hostname: String,
    pub rack: Option<String>,
    pub mac: Option<Mac>,
    pub username: String,
    pub description: String,
}

/// Which events; every part that is set must hold.
#[derive(Clone, Debug, Default)]
pub struct Filter {
    pub machines: Vec<String>,
    pub hostnames: Vec<String>,
    /// Of machines.
    pub domains: Vec<String>,
    pub macs: Vec<Mac>,
    pub kinds: Vec<String>,
    pub username: Option<String>,
    /// At least this level; audit events (0) only when asked for by `Some(Level::Audit)`, which means all.
    pub level: Option<Level>,
    /// Only ids below.
    pub before: Option<i64>,
    /// Only ids above.
    pub after: Option<i64>,
    /// Newest first, at most this many. With `after` alone: the oldest ones above it, still newest first.
    pub limit: i64,
}

#[derive(sqlx::FromRow)]
struct EventRow {
    id: i64,
    at: OffsetDateTime,
    kind: String,
    level: i32,
    machine: Option<String>,
    hostname: Option<String>,
    rack: Option<String>,
    mac: Option<mac_address::MacAddress>,
    username: String,
    description: String,
}

pub async fn query(db: &mut PgConnection, filter: &Filter) -> Result<Vec<Event>, StoreError> {
    let mut sql = QueryBuilder::<Postgres>::new(
        "select e.id, e.at, e.type as kind, e.level, e.machine, m.hostname, e.rack, e.mac,
                e.username, e.description
         from event e left join machine m on m.system_id = e.machine where true",
    );
    if !filter.machines.is_empty() {
        sql.push(" and e.machine = any(")
            .push_bind(filter.machines.clone())
            .push(")");
    }
    if !filter.hostnames.is_empty() {
        sql.push(" and m.hostname = any(")
            .push_bind(filter.hostnames.clone())
            .push(")");
    }
    if !filter.domains.is_empty() {
        sql.push(" and m.domain = any(")
            .push_bind(filter.domains.clone())
            .push(")");
    }
    if !filter.macs.is_empty() {
        let macs: Vec<_> = filter.macs.iter().copied().map(to_db_mac).collect();
        sql.push(" and (e.mac = any(")
            .push_bind(macs.clone())
            .push(") or e.machine in (select machine from interface where mac = any(")
            .push_bind(macs)
            .push(")))");
    }
    if !filter.kinds.is_empty() {
        sql.push(" and e.type = any(")
            .push_bind(filter.kinds.clone())
            .push(")");
    }
    if let Some(username) = &filter.username {
        sql.push(" and e.username = ").push_bind(username.clone());
    }
    if let Some(level) = filter.level {
        sql.push(" and e.level >= ").push_bind(level.number());
    }
    if let Some(before) = filter.before {
        sql.push(" and e.id < ").push_bind(before);
    }
    if let Some(after) = filter.after {
        sql.push(" and e.id > ").push_bind(after);
    }
    let oldest_first = filter.after.is_some() && filter.before.is_none();
    sql.push(if oldest_first {
        " order by e.id limit "
    } else {
        " order by e.id desc limit "
    });
    sql.push_bind(filter.limit);
    let mut rows: Vec<EventRow> = sql.build_query_as().fetch_all(db).await?;
    if oldest_first {
        rows.reverse();
    }
    Ok(rows
        .into_iter()
        .map(|row| Event {
            id: row.id,
            at: row.at,
            kind: row.kind,
            level: row.level,
            machine: row.machine,
            hostname: row.hostname.unwrap_or_default(),
            rack: row.rack,
            mac: row.mac.map(from_db_mac),
            username: row.username,
            description: row.description,
        })
        .collect())
}

/// Whether a machine has an event of this type newer than `since`.
pub async fn has_since(
    db: &mut PgConnection,
    machine: &SystemId,
    kind: EventType,
    since: OffsetDateTime,
) -> Result<bool, StoreError> {
    Ok(sqlx::query_scalar(
        "select exists (select from event where machine = $1 and type = $2 and at >= $3)",
    )
    .bind(machine.as_str())
    .bind(kind.name())
    .bind(since)
    .fetch_one(db)
    .await?)
}

/// Events of one machine that are kept, the newest.
pub const OF_MACHINE_MAX: i64 = 10_000;
/// Events that one rack saw of no machine that is known.
pub const OF_RACK_MAX: i64 = 50_000;
/// Rows of one delete.
const FORGET_ROWS: i64 = 10_000;
/// Machines looked at in one statement.
const FORGET_MACHINES: i64 = 500;

/// Removes events older than so many days; says how many, at most 10,000 at a time.
pub async fn forget(db: &mut PgConnection, days: i32) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from event where id = any(array(
             select id from event where at < now() - make_interval(days => $1)
             order by at limit $2))",
    )
    .bind(days)
    .bind(FORGET_ROWS)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Removes the oldest events of racks that told of more strangers than is kept of each; says how many.
pub async fn forget_strangers(db: &mut PgConnection, kept: i64) -> Result<u64, StoreError> {
    let done = sqlx::query(
        "delete from event where id = any(array(
             select e.id from rack r cross join lateral (
                 select id from event where rack = r.system_id and machine is null
                 order by id desc offset $1 limit $2) e))",
    )
    .bind(kept)
    .bind(FORGET_ROWS)
    .execute(db)
    .await?;
    Ok(done.rows_affected())
}

/// Removes the oldest events of machines after `after` in order of their ids that have more than is kept of each; the
/// last machine looked at, if there may be more.
pub async fn forget_of_machines(
    db: &mut PgConnection,
    after: &str,
    kept: i64,
) -> Result<Option<String>, StoreError> {
    let machines: Vec<String> = sqlx::query_scalar(
        "select system_id from machine where system_id > $1 order by system_id limit $2",
    )
    .bind(after)
    .bind(FORGET_MACHINES)
    .fetch_all(&mut *db)
    .await?;
    sqlx::query(
        "delete from event where id = any(array(
             select e.id from unnest($1::text[]) as m(machine) cross join lateral (
                 select id from event where event.machine = m.machine
                 order by id desc offset $2 limit $3) e))",
    )
    .bind(&machines)
    .bind(kept)
    .bind(FORGET_ROWS)
    .execute(db)
    .await?;
    let may_be_more = machines.len() as i64 == FORGET_MACHINES;
    Ok(machines.into_iter().next_back().filter(|_| may_be_more))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing;

    async fn run(db: &mut PgConnection, statement: &'static str) {
        sqlx::query(statement).execute(db).await.unwrap();
    }

    async fn count(db: &mut PgConnection, condition: &str) -> i64 {
        let sql = format!("select count(*) from event where {condition}");
        sqlx::query_scalar(sqlx::AssertSqlSafe(sql))
            .fetch_one(db)
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn a_rack_or_machine_with_too_many_events_loses_its_own_oldest_only() {
        let db = testing::database().await;
        let mut db = db.pool.acquire().await.unwrap();
        run(
            &mut db,
            "insert into rack (system_id, hostname) values ('rackaa', 'a'), ('rackbb', 'b')",
        )
        .await;
        run(
            &mut db,
            "insert into machine (system_id, hostname) values ('mmmmm1', 'm1'), ('mmmmm2', 'm2')",
        )
        .await;
        for statement in [
            "insert into event (type, rack) values ('DHCP_ACK', 'rackbb')",
            "insert into event (type, machine, rack) values ('DHCP_ACK', 'mmmmm2', 'rackaa')",
            "insert into event (type, rack) select 'BOOT_UNKNOWN', 'rackaa' from generate_series(1, 50)",
            "insert into event (type, machine, rack)
             select 'BOOT_FILE', 'mmmmm1', 'rackaa' from generate_series(1, 40)",
            "insert into event (type, username) values ('NETWORK_CHANGED', 'admin')",
        ] {
            run(&mut db, statement).await;
        }
        assert_eq!(forget_strangers(&mut db, 20).await.unwrap(), 30);
        assert_eq!(forget_of_machines(&mut db, "", 15).await.unwrap(), None);
        for (condition, want) in [
            ("rack = 'rackaa' and machine is null", 20),
            ("machine = 'mmmmm1'", 15),
            ("machine = 'mmmmm2'", 1),
            ("rack = 'rackbb'", 1),
            ("rack is null", 1),
            // The newest stay.
            (
                "machine = 'mmmmm1' and id > (select max(id) - 16 from event)",
                15,
            ),
        ] {
            assert_eq!(count(&mut db, condition).await, want, "{condition}");
        }
    }

    #[tokio::test]
    async fn housekeeping_of_events_reads_an_index_and_not_the_table() {
        let db = testing::database().await;
        let mut db = db.pool.acquire().await.unwrap();
        run(
            &mut db,
            "insert into rack (system_id, hostname) values ('rackaa', 'a')",
        )
        .await;
        run(
            &mut db,
            "insert into event (type, rack, at) select 'BOOT_UNKNOWN', 'rackaa', now() - n * interval '1 s'
             from generate_series(1, 20000) n",
        )
        .await;
        run(&mut db, "analyze event").await;
        for query in [
            "select id from event where at < now() - interval '90 days' order by at limit 10000",
            "select e.id from rack r cross join lateral (
                 select id from event where rack = r.system_id and machine is null
                 order by id desc offset 50000 limit 10000) e",
            "select e.id from unnest('{mmmmm1}'::text[]) as m(machine) cross join lateral (
                 select id from event where event.machine = m.machine
                 order by id desc offset 10000 limit 10000) e",
        ] {
            let plan: Vec<String> =
                sqlx::query_scalar(sqlx::AssertSqlSafe(format!("explain {query}")))
                    .fetch_all(&mut *db)
                    .await
                    .unwrap();
            let plan = plan.join("\n");
            assert!(!plan.contains("Seq Scan on event"), "{plan}");
        }
    }
}
