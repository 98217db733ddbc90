//! What is known of the addresses that are not simply free, and the way from a client to its address.
//!
//! Records lie in one array that has its final room from the attach on, so that a packet never makes it grow; the
//! index of clients is a chained hash through the records, without tombstones and without a moment of rehashing.

use std::hash::BuildHasher;

use foldhash::quality::SeedableRandomState;
use lease::{Client, ClientKey, VlanId};
use wire::ethernet::Mac;

use super::{Binding, NONE};
use crate::clock::Ms;

/// A client in 16 octets; only one that is known by a client id needs memory elsewhere.
#[derive(Debug)]
enum Holder {
    Mac { vlan: VlanId, mac: [u8; 6] },
    Other(Box<Client>),
}

impl Holder {
    fn new(client: &Client) -> Self {
        match client.key {
            ClientKey::Mac(mac) => Self::Mac {
                vlan: client.vlan,
                mac,
            },
            _ => Self::Other(Box::new(client.clone())),
        }
    }

    fn is(&self, client: &Client) -> bool {
        match self {
            Self::Mac { vlan, mac } => {
                *vlan == client.vlan && matches!(&client.key, ClientKey::Mac(other) if other == mac)
            }
            Self::Other(own) => **own == *client,
        }
    }

    fn client(&self) -> Client {
        match self {
            Self::Mac { vlan, mac } => Client {
                vlan: *vlan,
                key: ClientKey::Mac(*mac),
            },
            Self::Other(client) => (**client).clone(),
        }
    }
}

/// What an address that is not free is about.
#[derive(Debug)]
pub(crate) enum What {
    Offered {
        until: Ms,
        /// By which way its client came.
        source: u64,
    },
    Bound(Binding),
    /// Nobody's until then. The holder is that of the row that may stand in the database, which ended then.
    Resting {
        until: Ms,
        ended: Ms,
    },
}

#[derive(Debug)]
struct Record {
    holder: Option<Holder>,
    slot: u32,
    /// The next record of the same bucket, or of the free ones.
    next: u32,
    /// Where the holder hangs, as [`crate::limits::Circuits`] counts it.
    circuit: Option<u32>,
    what: What,
}

pub(crate) struct Records {
    all: Vec<Record>,
    free: u32,
    /// Heads of chains; a power of two of them.
    buckets: Vec<u32>,
    hasher: SeedableRandomState,
}

/// Buckets where nothing was reserved: a table that is still empty.
const BUCKETS_MIN: usize = 16;

impl Records {
    pub fn new(hasher: SeedableRandomState) -> Self {
        Self {
            all: Vec::new(),
            free: NONE,
            buckets: vec![NONE; BUCKETS_MIN],
            hasher,
        }
    }

    pub fn clear(&mut self) {
        self.all.clear();
        self.free = NONE;
        self.buckets.clear();
        self.buckets.resize(BUCKETS_MIN, NONE);
    }

    /// Takes room for so many records at once. Memory that is never used is never touched. Only while empty.
    pub fn reserve(&mut self, count: usize) {
        debug_assert!(self.all.is_empty(), "chains are not moved");
        self.all.reserve_exact(count);
        let buckets = count.next_power_of_two().max(BUCKETS_MIN);
        self.buckets.resize(buckets, NONE);
    }

    fn bucket(&self, client: &Client) -> usize {
        let hash = match &client.key {
            ClientKey::Mac(mac) => self.hasher.hash_one((client.vlan, mac)),
            _ => self.hasher.hash_one(client),
        };
        hash as usize & (self.buckets.len() - 1)
    }

    fn bucket_of_holder(&self, holder: &Holder) -> usize {
        match holder {
            Holder::Mac { .. } => self.bucket(&holder.client()),
            Holder::Other(client) => self.bucket(client),
        }
    }

    /// The slot of the client's newest record.
    pub fn find(&self, client: &Client) -> Option<u32> {
        let mut at = self.buckets[self.bucket(client)];
        while let Some(record) = self.all.get(at as usize) {
            let rests = matches!(record.what, What::Resting { .. });
            if !rests
                && record
                    .holder
                    .as_ref()
                    .is_some_and(|holder| holder.is(client))
            {
                return Some(record.slot);
            }
            at = record.next;
        }
        None
    }

    pub fn add(&mut self, slot: u32, client: Option<&Client>, what: What) -> u32 {
        let record = Record {
            holder: client.map(Holder::new),
            slot,
            next: NONE,
            circuit: None,
            what,
        };
        let index = match self.all.get(self.free as usize) {
            Some(vacant) => {
                let index = self.free;
                self.free = vacant.next;
                self.all[index as usize] = record;
                index
            }
            None => {
                self.all.push(record);
                (self.all.len() - 1) as u32 // at most one for each slot
            }
        };
        self.chain(index);
        index
    }

    pub fn remove(&mut self, index: u32) {
        self.unchain(index);
        let record = &mut self.all[index as usize];
        record.holder = None;
        record.next = self.free;
        self.free = index;
    }

    /// Makes this record the first to be found of its holder's.
    pub fn prefer(&mut self, index: u32) {
        self.unchain(index);
        self.chain(index);
    }

    fn chain(&mut self, index: u32) {
        let Some(holder) = &self.all[index as usize].holder else {
            return;
        };
        let bucket = self.bucket_of_holder(holder);
        self.all[index as usize].next = self.buckets[bucket];
        self.buckets[bucket] = index;
    }

    fn unchain(&mut self, index: u32) {
        let Some(holder) = &self.all[index as usize].holder else {
            return;
        };
        let bucket = self.bucket_of_holder(holder);
        let after = self.all[index as usize].next;
        let mut at = self.buckets[bucket];
        if at == index {
            self.buckets[bucket] = after;
            return;
        }
        while let Some(record) = self.all.get_mut(at as usize) {
            if record.next == index {
                record.next = after;
                return;
            }
            at = record.next;
        }
    }

    // ---------------------------------------------------------------- one record

    pub fn what(&self, index: u32) -> Option<&What> {
        self.all.get(index as usize).map(|record| &record.what)
    }

    pub fn what_mut(&mut self, index: u32) -> Option<&mut What> {
        self.all
            .get_mut(index as usize)
            .map(|record| &mut record.what)
    }

    pub fn is_of(&self, index: u32, client: &Client) -> bool {
        let holder = self
            .all
            .get(index as usize)
            .and_then(|record| record.holder.as_ref());
        holder.is_some_and(|holder| holder.is(client))
    }

    pub fn client(&self, index: u32) -> Option<Client> {
        let holder = self.all.get(index as usize)?.holder.as_ref();
        holder.map(Holder::client)
    }

    pub fn mac(&self, index: u32) -> Option<Mac> {
        match self.all.get(index as usize)?.holder.as_ref()? {
            Holder::Mac { mac, .. } => Some(Mac(*mac)),
            Holder::Other(_) => None,
        }
    }

    pub fn circuit(&self, index: u32) -> Option<u32> {
        self.all.get(index as usize)?.circuit
    }

    pub fn set_circuit(&mut self, index: u32, circuit: Option<u32>) {
        if let Some(record) = self.all.get_mut(index as usize) {
            record.circuit = circuit;
        }
    }
}

/// What one address that is not free takes, without its slot and its bucket.
#[cfg(test)]
pub(crate) const RECORD_BYTES: usize = size_of::<Record>();

#[cfg(test)]
mod tests {
    use foldhash::SharedSeed;

    use super::*;

    fn client(number: u8) -> Client {
        Client {
            vlan: 1,
            key: ClientKey::Mac([2, 0, 0, 0, 0, number]),
        }
    }

    #[test]
    fn clients_are_found_until_they_leave() {
        let hasher = SeedableRandomState::with_seed(7, SharedSeed::global_fixed());
        let mut records = Records::new(hasher);
        records.reserve(4); // fewer buckets than clients: chains
        let by_id = Client {
            vlan: 1,
            key: ClientKey::ClientId([9; 20].into()),
        };
        let offered = || What::Offered {
            until: Ms::PAST,
            source: 0,
        };
        let indices: Vec<u32> = (0..100)
            .map(|number| records.add(number, Some(&client(number as u8)), offered()))
            .collect();
        let other = records.add(200, Some(&by_id), offered());
        assert_eq!(records.find(&by_id), Some(200));
        for number in (0..100).step_by(3) {
            records.remove(indices[number]);
        }
        for number in 0..100u32 {
            let want = (!number.is_multiple_of(3)).then_some(number);
            assert_eq!(records.find(&client(number as u8)), want, "{number}");
        }
        records.remove(other);
        assert_eq!(records.find(&by_id), None);
        // Two of one client: the newest, or the preferred one.
        let first = records.add(300, Some(&client(200)), offered());
        records.add(301, Some(&client(200)), offered());
        assert_eq!(records.find(&client(200)), Some(301));
        records.prefer(first);
        assert_eq!(records.find(&client(200)), Some(300));
    }
}
