//! The common batch: grants and nothing else, written without looking first.
//!
//! One statement puts all of them. Its condition is [`decide`]'s for a grant; whatever it turns away is looked at and
//! decided row by row like any other write. Why: a look at every row first costs as much as the write.

use std::collections::BTreeSet;
use std::net::IpAddr;

use lease::region::{Effect, Time, Verdict, decide};
use lease::{Write, WriteKind};
use mac_address::MacAddress;
use sqlx::{PgConnection, Row as _};
use time::OffsetDateTime;

use super::{Blocks, block_id, encode_key, from_database, mac_of, to_database, vlan_column};
use crate::StoreError;

/// What is decided of a batch; `None` is left for the long way.
pub(super) type Verdicts = Vec<Option<Verdict>>;

/// Whether the batch may go this way: grants only, no address twice, none of them in a block that rests.
pub(super) fn is_plain(writes: &[Write], blocks: &Blocks, now: Time) -> bool {
    let mut addresses = BTreeSet::new();
    writes.iter().all(|write| {
        matches!(write.kind, WriteKind::Grant { .. })
            && addresses.insert(write.address)
            && blocks
                .get(&block_id(write.block))
                .is_none_or(|block| block.quarantined_until <= now)
    })
}

/// Writes what can be written at once. Only for a batch that [`is_plain`].
pub(super) async fn put(
    db: &mut PgConnection,
    writes: &[Write],
    drained: bool,
    blocks: &Blocks,
    now: Time,
) -> Result<Verdicts, StoreError> {
    let mut verdicts: Verdicts = Vec::with_capacity(writes.len());
    let mut columns = Columns::default();
    for (index, write) in writes.iter().enumerate() {
        let block = blocks.get(&block_id(write.block));
        match (decide(write, drained, block, None, now), &write.kind) {
            (
                (_, Effect::Put(row)),
                WriteKind::Grant {
                    client, hostname, ..
                },
            ) => {
                columns.add(index, write.address, client, row.end, hostname)?;
                verdicts.push(None);
            }
            ((verdict, _), _) => verdicts.push(Some(verdict)),
        }
    }
    if columns.addresses.is_empty() {
        return Ok(verdicts);
    }
    // Addresses in order: every transaction locks rows in the same one. The answer is one row: hundreds of them cost as much as
    // a third of the writing.
    let written = sqlx::query(
        "with put as (
         insert into lease as l (address, vlan_id, client_kind, client_key, mac, ends, hostname, granted)
         select g.address, g.vlan, g.kind, g.key, g.mac, g.ends, g.hostname, $9
         from unnest($1::inet[], $2::int[], $3::smallint[], $4::bytea[], $5::macaddr[], $6::timestamptz[], $7::text[])
              as g(address, vlan, kind, key, mac, ends, hostname)
         order by g.address
         on conflict (address) do update set
             vlan_id = excluded.vlan_id, client_kind = excluded.client_kind, client_key = excluded.client_key,
             mac = excluded.mac, ends = greatest(l.ends, excluded.ends), released = false,
             hostname = excluded.hostname, granted = excluded.granted,
             since = case when l.client_kind is null then now() else l.since end
         where (l.vlan_id, l.client_kind, l.client_key)
                   = (excluded.vlan_id, excluded.client_kind, excluded.client_key)
            or (l.client_kind is null and (l.quarantined_until is null or l.quarantined_until <= $9 or $8))
         returning l.address, l.ends)
         select coalesce(array_agg(address), '{}'), coalesce(array_agg(ends), '{}') from put",
    )
    .bind(&columns.addresses)
    .bind(&columns.vlans)
    .bind(&columns.kinds)
    .bind(&columns.keys)
    .bind(&columns.macs)
    .bind(&columns.ends)
    .bind(&columns.hostnames)
    .bind(drained)
    .bind(to_database(now))
    .fetch_one(db)
    .await?;
    let (addresses, ends): (Vec<IpAddr>, Vec<OffsetDateTime>) =
        (written.try_get(0)?, written.try_get(1)?);
    // In the order they were put, less those that were turned away.
    let mut places = columns.places();
    for (address, end) in addresses.into_iter().zip(ends) {
        if let Some((_, index)) = places.find(|(at, _)| *at == address) {
            verdicts[index] = Some(Verdict::Durable {
                end: from_database(end),
            });
        }
    }
    Ok(verdicts)
}

#[derive(Default)]
struct Columns {
    /// Of the batch.
    indexes: Vec<usize>,
    addresses: Vec<IpAddr>,
    vlans: Vec<i32>,
    kinds: Vec<i16>,
    keys: Vec<Vec<u8>>,
    macs: Vec<Option<MacAddress>>,
    ends: Vec<OffsetDateTime>,
    hostnames: Vec<String>,
}

impl Columns {
    fn add(
        &mut self,
        index: usize,
        address: IpAddr,
        client: &lease::Client,
        end: Time,
        hostname: &str,
    ) -> Result<(), StoreError> {
        let (kind, key) = encode_key(&client.key);
        self.indexes.push(index);
        self.addresses.push(address);
        self.vlans.push(vlan_column(client.vlan)?);
        self.kinds.push(kind);
        self.keys.push(key);
        self.macs.push(mac_of(&client.key).map(MacAddress::new));
        self.ends.push(to_database(end));
        // NUL is the one character that PostgreSQL's text can't hold.
        self.hostnames.push(hostname.replace('\0', ""));
        Ok(())
    }

    /// (address, index in the batch) in the order of the addresses.
    fn places(&self) -> impl Iterator<Item = (IpAddr, usize)> {
        let mut places: Vec<(IpAddr, usize)> = self
            .addresses
            .iter()
            .copied()
            .zip(self.indexes.iter().copied())
            .collect();
        places.sort_unstable();
        places.into_iter()
    }
}
