//! Address blocks and leases (docs/ARCHITECTURE.md, Leases): the region's end of the lease protocol over PostgreSQL.
//!
//! What a write, an attach and a heartbeat do is decided by `lease::region`, on rows that are locked here; time is the database's
//! `now()`, the start of the transaction. In eight files: this one commits batches; `session` attaches racks, takes their
//! heartbeats and watches the database's identity; `block` cuts ranges and moves blocks; `binding` answers who has what;
//! `grant` is the short way of the common batch; `liveness` says which racks are heard;
//! `history` and `usage` are what operators see.
//!
//! Locks are taken in one order: a rack's session, then blocks by id, then addresses in order.

mod binding;
mod block;
mod grant;
pub mod history;
pub mod liveness;
mod session;
pub mod usage;

use std::collections::BTreeMap;
use std::net::IpAddr;

use lease::region::{Asker, BlockState, Effect, RowState, Time, Verdict, decide, within};
use lease::{
    BATCH_ROWS_MAX, Batch, BlockId, Client, ClientKey, Epoch, Outcome, Refusal, SpoolId, VlanId,
    Write, WriteKind,
};
use mac_address::MacAddress;
use sqlx::{PgConnection, PgPool, Row as _};
use time::OffsetDateTime;

use crate::StoreError;
use history::take_away;

pub use binding::{
    Binding, addresses_of_macs, binding_of_address, bindings_of_mac, leased_outside_ranges, list,
};
pub(crate) use block::note_longest;
pub use block::{BLOCKS_PER_RANGE_MAX, assign_blocks, ensure_blocks, settle};
pub use session::{
    DatabaseIdentity, HOLD, attach, check_database, end_hold, forget_rack, heartbeat,
};

/// `commitLeases`: one transaction, one outcome per write, in order. Durable when it returns.
///
/// A repeat of a key is answered as before and writes nothing; a batch may be refused in part. At most 512 writes;
/// what is more is refused.
pub async fn commit(pool: &PgPool, rack: &str, batch: &Batch) -> Result<Vec<Outcome>, StoreError> {
    crate::again(|| commit_once(pool, rack, batch)).await
}

async fn commit_once(pool: &PgPool, rack: &str, batch: &Batch) -> Result<Vec<Outcome>, StoreError> {
    let mut tx = pool.begin().await?;
    let state = key_state(&mut tx, rack, batch).await?;
    if let Some(verdicts) = state.answered {
        return Ok(outcomes(&verdicts, state.now));
    }
    let refused = vec![Outcome::Refused(Refusal::StaleEpoch); batch.writes.len()];
    let forgotten = state
        .floor
        .is_none_or(|floor| key_seq(batch.key.seq) <= floor);
    // A spool id that was never attached has no epochs; below the floor a repeat can't be told from a first time.
    // While the database may have lost commits, only facts are taken.
    if forgotten || (state.held && !batch.drained) || batch.writes.len() > BATCH_ROWS_MAX {
        return Ok(refused);
    }
    let verdicts = write_all(&mut tx, rack, batch, state.now).await?;
    if !remember(&mut tx, rack, batch, &verdicts).await? {
        // The same batch through another region process was first.
        tx.rollback().await?;
        let state = key_state(&mut *pool.acquire().await?, rack, batch).await?;
        return Ok(state
            .answered
            .map_or(refused, |verdicts| outcomes(&verdicts, state.now)));
    }
    tx.commit().await?;
    for (write, verdict) in batch.writes.iter().zip(&verdicts) {
        if let Verdict::Refused(refusal) = verdict
            && (batch.drained || *refusal == Refusal::OtherClient)
        {
            let (address, drained) = (write.address, batch.drained);
            tracing::error!(rack, %address, ?refusal, drained, "a lease was refused that should not have been asked for");
        }
    }
    Ok(outcomes(&verdicts, state.now))
}

/// Decides and writes: what the short way can't, the long one does.
async fn write_all(
    db: &mut PgConnection,
    rack: &str,
    batch: &Batch,
    now: Time,
) -> Result<Vec<Verdict>, StoreError> {
    let blocks = lock_blocks(db, rack, &batch.writes).await?;
    let mut verdicts = if grant::is_plain(&batch.writes, &blocks, now) {
        grant::put(db, &batch.writes, batch.drained, &blocks, now).await?
    } else {
        vec![None; batch.writes.len()]
    };
    let left: Vec<&Write> = batch
        .writes
        .iter()
        .zip(&verdicts)
        .filter_map(|(write, verdict)| verdict.is_none().then_some(write))
        .collect();
    if !left.is_empty() {
        let mut table = Table::lock(db, blocks, &left).await?;
        for (write, verdict) in batch.writes.iter().zip(&mut verdicts) {
            if verdict.is_none() {
                *verdict = Some(table.write(write, batch.drained, now));
            }
        }
        let taken = table.save(db, now).await?;
        for (write, verdict) in batch.writes.iter().zip(&mut verdicts) {
            // Came between our look and our write; the row's own condition refused it.
            if taken.contains(&write.address) && !matches!(write.kind, WriteKind::Yield) {
                *verdict = Some(Verdict::Refused(Refusal::OtherClient));
            }
        }
    }
    Ok(verdicts.into_iter().flatten().collect())
}

fn outcomes(verdicts: &[Verdict], now: Time) -> Vec<Outcome> {
    verdicts
        .iter()
        .map(|verdict| verdict.outcome(now))
        .collect()
}

// ---------------------------------------------------------------- keys

struct KeyState {
    now: Time,
    floor: Option<i64>,
    answered: Option<Vec<Verdict>>,
    held: bool,
}

async fn key_state(
    db: &mut PgConnection,
    rack: &str,
    batch: &Batch,
) -> Result<KeyState, StoreError> {
    let row = sqlx::query(
        "select now() as now, s.floor, b.verdicts, b.ends, d.hold_until is not null as held
         from (select 1) as one
         left join rack_spool s on s.rack = $1 and s.spool_id = $2
         left join lease_batch b on b.rack = $1 and b.spool_id = $2 and b.seq = $3
         left join lease_database d on true",
    )
    .bind(rack)
    .bind(&batch.key.spool_id.0[..])
    .bind(key_seq(batch.key.seq))
    .fetch_one(db)
    .await?;
    let verdicts: Option<Vec<i16>> = row.try_get("verdicts")?;
    let ends: Option<Vec<OffsetDateTime>> = row.try_get("ends")?;
    Ok(KeyState {
        now: from_database(row.try_get("now")?),
        floor: row.try_get("floor")?,
        answered: verdicts
            .zip(ends)
            .map(|(verdicts, ends)| decode_verdicts(&verdicts, &ends))
            .transpose()?,
        held: row.try_get("held")?,
    })
}

/// Writes the key with its answers. False: the key is there already, or was forgotten meanwhile.
async fn remember(
    db: &mut PgConnection,
    rack: &str,
    batch: &Batch,
    verdicts: &[Verdict],
) -> Result<bool, StoreError> {
    let codes: Vec<i16> = verdicts
        .iter()
        .map(|verdict| encode_verdict(*verdict))
        .collect();
    let ends: Vec<OffsetDateTime> = verdicts
        .iter()
        .filter_map(|verdict| {
            if let Verdict::Durable { end } = verdict {
                Some(to_database(*end))
            } else {
                None
            }
        })
        .collect();
    let done = sqlx::query(
        "insert into lease_batch (rack, spool_id, seq, verdicts, ends)
         select $1, $2, $3, $4, $5 from rack_spool s
         where s.rack = $1 and s.spool_id = $2 and s.floor < $3
         on conflict do nothing",
    )
    .bind(rack)
    .bind(&batch.key.spool_id.0[..])
    .bind(key_seq(batch.key.seq))
    .bind(codes)
    .bind(ends)
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

/// A seq as the database keeps it. Racks stay far below; one that does not has its requests refused.
fn key_seq(seq: u64) -> i64 {
    i64::try_from(seq).unwrap_or(i64::MAX)
}

const REFUSALS: [Refusal; 6] = [
    Refusal::StaleEpoch,
    Refusal::OtherClient,
    Refusal::NotOwner,
    Refusal::NotFound,
    Refusal::NotEnded,
    Refusal::OutsideBlock,
];

fn encode_verdict(verdict: Verdict) -> i16 {
    match verdict {
        Verdict::Durable { .. } => 0,
        Verdict::Done => 1,
        Verdict::Refused(Refusal::StaleEpoch) => 16,
        Verdict::Refused(Refusal::OtherClient) => 17,
        // `Mute` is a rack's word.
        Verdict::Refused(Refusal::NotOwner | Refusal::Mute) => 18,
        Verdict::Refused(Refusal::NotFound) => 19,
        Verdict::Refused(Refusal::NotEnded) => 20,
        Verdict::Refused(Refusal::OutsideBlock) => 21,
    }
}

fn decode_verdicts(codes: &[i16], ends: &[OffsetDateTime]) -> Result<Vec<Verdict>, StoreError> {
    let corrupt = || StoreError::Corrupt {
        what: "answer of a lease batch",
    };
    let mut ends = ends.iter();
    let decode = |code: &i16| match *code {
        0 => ends
            .next()
            .map(|end| Verdict::Durable {
                end: from_database(*end),
            })
            .ok_or_else(corrupt),
        1 => Ok(Verdict::Done),
        code => {
            let index = usize::try_from(code - 16).map_err(|_| corrupt())?;
            REFUSALS
                .get(index)
                .map(|refusal| Verdict::Refused(*refusal))
                .ok_or_else(corrupt)
        }
    };
    codes.iter().map(decode).collect()
}

// ---------------------------------------------------------------- rows under lock

/// By id.
type Blocks = BTreeMap<i64, BlockState>;

/// The blocks and addresses a batch touches: locked, changed in memory write by write, then saved in few statements.
struct Table {
    blocks: Blocks,
    rows: BTreeMap<IpAddr, Held>,
    given_up: Vec<i64>,
}

#[derive(Default)]
struct Held {
    row: Option<RowState>,
    /// Stood in the database before.
    stood: bool,
    changed: bool,
    vlan: VlanId,
    hostname: String,
    granted: bool,
}

impl Table {
    async fn lock(
        db: &mut PgConnection,
        blocks: Blocks,
        writes: &[&Write],
    ) -> Result<Table, StoreError> {
        let mut addresses: Vec<IpAddr> = writes.iter().map(|write| write.address).collect();
        addresses.sort_unstable();
        addresses.dedup();
        let mut rows = BTreeMap::new();
        let found = sqlx::query(
            "select address, vlan_id, client_kind, client_key, ends, quarantined_until, released
             from lease where address = any($1) order by address for update",
        )
        .bind(&addresses)
        .fetch_all(db)
        .await?;
        for row in found {
            let state = RowState {
                client: client_of_row(&row)?,
                end: from_database(row.try_get("ends")?),
                quarantined_until: optional_time(row.try_get("quarantined_until")?),
                released: row.try_get("released")?,
            };
            let held = Held {
                row: Some(state),
                stood: true,
                ..Held::default()
            };
            rows.insert(row.try_get("address")?, held);
        }
        Ok(Table {
            blocks,
            rows,
            given_up: Vec::new(),
        })
    }

    /// The block that a write is about: a survivor names none.
    fn block_of(&self, write: &Write) -> i64 {
        let holds = |block: &BlockState| within(block.first, block.count, write.address);
        let found = match write.kind {
            WriteKind::Extend { .. } => self.blocks.iter().find(|(_, block)| holds(block)),
            _ => None,
        };
        found.map_or(block_id(write.block), |(id, _)| *id)
    }

    fn write(&mut self, write: &Write, drained: bool, now: Time) -> Verdict {
        let id = self.block_of(write);
        let row = self
            .rows
            .get(&write.address)
            .and_then(|held| held.row.as_ref());
        let (verdict, effect) = decide(write, drained, self.blocks.get(&id), row, now);
        let change = match effect {
            Effect::Keep => return verdict,
            Effect::GiveUp => {
                // Nothing of this batch that comes behind touches the block any more.
                if let Some(block) = self.blocks.get_mut(&id) {
                    block.epoch.0 += 1;
                    block.asker = Asker::Stranger;
                }
                self.given_up.push(id);
                return verdict;
            }
            Effect::Put(row) => Some(row),
            Effect::Delete => None,
        };
        let held = self.rows.entry(write.address).or_default();
        held.row = change;
        held.changed = true;
        held.vlan = self.blocks.get(&id).map_or(0, |block| block.vlan);
        if let WriteKind::Grant { hostname, .. } = &write.kind {
            // NUL is the one character that PostgreSQL's text can't hold.
            held.hostname = hostname.replace('\0', "");
            held.granted = true;
        }
        verdict
    }

    /// Returns the addresses that somebody else took meanwhile.
    async fn save(self, db: &mut PgConnection, now: Time) -> Result<Vec<IpAddr>, StoreError> {
        let mut gone = Vec::new();
        let mut put = Columns::default();
        for (address, held) in &self.rows {
            match &held.row {
                Some(row) if held.changed => put.add(*address, held, row, now)?,
                None if held.changed && held.stood => gone.push(*address),
                _ => {}
            }
        }
        if !gone.is_empty() {
            sqlx::query(take_away!("where address = any($1)"))
                .bind(&gone)
                .execute(&mut *db)
                .await?;
        }
        let taken = put.save(&mut *db).await?;
        if !self.given_up.is_empty() {
            sqlx::query(
                "update lease_block set owner = null, epoch = epoch + 1 where id = any($1)",
            )
            .bind(&self.given_up)
            .execute(&mut *db)
            .await?;
        }
        Ok(taken)
    }
}

/// Held to commit: a move, an attach or a yield of the block waits, or is seen.
async fn lock_blocks(
    db: &mut PgConnection,
    rack: &str,
    writes: &[Write],
) -> Result<Blocks, StoreError> {
    const SHARED: &str = "select b.id, b.epoch, coalesce(b.owner = $2, false) as owned, b.vlan_id, b.first, b.count,
                b.quarantined_until,
                exists (select from vlan v
                        join vlan via on via.id = case when v.dhcp_on then v.id else v.relay_vlan end
                        where v.id = b.vlan_id and $2 in (via.primary_rack, via.secondary_rack)) as serves
         from lease_block b where b.id = any($1) order by b.id for share of b";
    // A batch that gives blocks up extends nothing.
    const EXCLUSIVE: &str =
        "select b.id, b.epoch, coalesce(b.owner = $2, false) as owned, b.vlan_id, b.first, b.count,
                b.quarantined_until, false as serves
         from lease_block b where b.id = any($1) order by b.id for update of b";
    let is_extend = |write: &&Write| matches!(write.kind, WriteKind::Extend { .. });
    let named = writes.iter().filter(|write| !is_extend(write));
    let mut ids: Vec<i64> = named.map(|write| block_id(write.block)).collect();
    let extended: Vec<IpAddr> = writes
        .iter()
        .filter(is_extend)
        .map(|write| write.address)
        .collect();
    if !extended.is_empty() {
        ids.extend(blocks_at(db, &extended).await?);
    }
    ids.sort_unstable();
    ids.dedup();
    let yields = writes
        .iter()
        .any(|write| matches!(write.kind, WriteKind::Yield));
    let rows = sqlx::query(if yields { EXCLUSIVE } else { SHARED })
        .bind(&ids)
        .bind(rack)
        .fetch_all(db)
        .await?;
    let mut blocks = BTreeMap::new();
    for row in rows {
        let asker = match (row.try_get("owned")?, row.try_get("serves")?) {
            (true, _) => Asker::Owner,
            (false, true) => Asker::Peer,
            (false, false) => Asker::Stranger,
        };
        let state = BlockState {
            epoch: Epoch(unsigned(row.try_get("epoch")?)),
            asker,
            vlan: vlan_of(row.try_get("vlan_id")?),
            first: row.try_get("first")?,
            count: u32::try_from(row.try_get::<i32, _>("count")?).unwrap_or(0),
            quarantined_until: optional_time(row.try_get("quarantined_until")?),
        };
        blocks.insert(row.try_get("id")?, state);
    }
    Ok(blocks)
}

/// The blocks that hold these addresses: a survivor does not know them.
async fn blocks_at(db: &mut PgConnection, addresses: &[IpAddr]) -> Result<Vec<i64>, StoreError> {
    Ok(sqlx::query_scalar(
        "select b.id from unnest($1::inet[]) as a(address) cross join lateral (
             select k.id, k.first, k.count from lease_block k where k.first <= a.address
             order by k.first desc limit 1) b
         where family(b.first) = family(a.address) and a.address <= b.first + (b.count - 1)",
    )
    .bind(addresses)
    .fetch_all(db)
    .await?)
}

/// Rows to be put, column by column.
#[derive(Default)]
struct Columns {
    addresses: Vec<IpAddr>,
    vlans: Vec<i32>,
    kinds: Vec<Option<i16>>,
    keys: Vec<Option<Vec<u8>>>,
    macs: Vec<Option<MacAddress>>,
    ends: Vec<OffsetDateTime>,
    quarantines: Vec<Option<OffsetDateTime>>,
    released: Vec<bool>,
    hostnames: Vec<String>,
    granted: Vec<Option<OffsetDateTime>>,
}

impl Columns {
    fn add(
        &mut self,
        address: IpAddr,
        held: &Held,
        row: &RowState,
        now: Time,
    ) -> Result<(), StoreError> {
        let vlan = row.client.as_ref().map_or(held.vlan, |client| client.vlan);
        let (kind, key) = row
            .client
            .as_ref()
            .map(|client| encode_key(&client.key))
            .unzip();
        self.addresses.push(address);
        self.vlans.push(vlan_column(vlan)?);
        self.kinds.push(kind);
        self.macs.push(
            row.client
                .as_ref()
                .and_then(|client| mac_of(&client.key))
                .map(MacAddress::new),
        );
        self.keys.push(key);
        self.ends.push(to_database(row.end));
        let rests = row.quarantined_until != Time::NEVER;
        self.quarantines
            .push(rests.then(|| to_database(row.quarantined_until)));
        self.released.push(row.released);
        self.hostnames.push(held.hostname.clone());
        self.granted.push(held.granted.then(|| to_database(now)));
        Ok(())
    }

    async fn save(self, db: &mut PgConnection) -> Result<Vec<IpAddr>, StoreError> {
        if self.addresses.is_empty() {
            return Ok(Vec::new());
        }
        // The rows that stood are locked and were decided on. The condition is the last line, for a row that was not there
        // a moment ago; `greatest` likewise.
        let written: Vec<IpAddr> = sqlx::query_scalar(
            "insert into lease as l (address, vlan_id, client_kind, client_key, mac, ends,
                                     quarantined_until, released, hostname, granted)
             select * from unnest($1::inet[], $2::int[], $3::smallint[], $4::bytea[], $5::macaddr[],
                                  $6::timestamptz[], $7::timestamptz[], $8::bool[], $9::text[], $10::timestamptz[])
             on conflict (address) do update set
                 vlan_id = case when excluded.client_kind is null then l.vlan_id else excluded.vlan_id end,
                 client_kind = coalesce(excluded.client_kind, l.client_kind),
                 client_key = coalesce(excluded.client_key, l.client_key),
                 mac = coalesce(excluded.mac, l.mac),
                 ends = greatest(l.ends, excluded.ends),
                 quarantined_until = greatest(l.quarantined_until, excluded.quarantined_until),
                 released = excluded.released,
                 hostname = case when excluded.granted is null then l.hostname else excluded.hostname end,
                 granted = coalesce(excluded.granted, l.granted),
                 since = case when l.client_kind is null and excluded.client_kind is not null then now() else l.since end
             where l.client_kind is null or excluded.client_kind is null
                or (l.vlan_id, l.client_kind, l.client_key)
                   = (excluded.vlan_id, excluded.client_kind, excluded.client_key)
             returning l.address",
        )
        .bind(&self.addresses)
        .bind(&self.vlans)
        .bind(&self.kinds)
        .bind(&self.keys)
        .bind(&self.macs)
        .bind(&self.ends)
        .bind(&self.quarantines)
        .bind(&self.released)
        .bind(&self.hostnames)
        .bind(&self.granted)
        .fetch_all(db)
        .await?;
        Ok(self
            .addresses
            .into_iter()
            .filter(|address| !written.contains(address))
            .collect())
    }
}

// ---------------------------------------------------------------- values

fn client_of_row(row: &sqlx::postgres::PgRow) -> Result<Option<Client>, StoreError> {
    let kind: Option<i16> = row.try_get("client_kind")?;
    let key: Option<Vec<u8>> = row.try_get("client_key")?;
    let (Some(kind), Some(key)) = (kind, key) else {
        return Ok(None);
    };
    let corrupt = StoreError::Corrupt {
        what: "client of a lease",
    };
    let key = match kind {
        0 => ClientKey::Mac(key.try_into().map_err(|_| corrupt)?),
        1 => ClientKey::ClientId(key.into()),
        2 => ClientKey::DuidIaid(key.into()),
        _ => return Err(corrupt),
    };
    Ok(Some(Client {
        vlan: vlan_of(row.try_get("vlan_id")?),
        key,
    }))
}

fn encode_key(key: &ClientKey) -> (i16, Vec<u8>) {
    match key {
        ClientKey::Mac(mac) => (0, mac.to_vec()),
        ClientKey::ClientId(id) => (1, id.to_vec()),
        ClientKey::DuidIaid(id) => (2, id.to_vec()),
    }
}

/// The hardware address that an identity tells: option 61 of type 1 (Ethernet) is one (RFC 2132 §9.14).
fn mac_of(key: &ClientKey) -> Option<[u8; 6]> {
    match key {
        ClientKey::Mac(mac) => Some(*mac),
        ClientKey::ClientId(id) => match **id {
            [1, ref mac @ ..] => mac.try_into().ok(),
            _ => None,
        },
        ClientKey::DuidIaid(_) => None,
    }
}

fn from_database(at: OffsetDateTime) -> Time {
    Time(i64::try_from(at.unix_timestamp_nanos() / 1_000).unwrap_or(i64::MAX))
}

fn optional_time(at: Option<OffsetDateTime>) -> Time {
    at.map_or(Time::NEVER, from_database)
}

fn to_database(at: Time) -> OffsetDateTime {
    let nanos = i128::from(at.0) * 1_000;
    // Out of the calendar only by a broken clock; the ends of the calendar will do.
    OffsetDateTime::from_unix_timestamp_nanos(nanos).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn block_id(block: BlockId) -> i64 {
    // No block has this id.
    i64::try_from(block.0).unwrap_or(-1)
}

/// Of ids and epochs, which the schema never makes negative.
fn unsigned(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}

fn vlan_column(vlan: VlanId) -> Result<i32, StoreError> {
    i32::try_from(vlan).map_err(|_| StoreError::Corrupt { what: "VLAN id" })
}

fn vlan_of(id: i32) -> u32 {
    u32::try_from(id).unwrap_or(0)
}

fn spool_id_of(octets: &[u8]) -> Result<SpoolId, StoreError> {
    octets
        .try_into()
        .map(SpoolId)
        .map_err(|_| StoreError::Corrupt { what: "spool id" })
}
