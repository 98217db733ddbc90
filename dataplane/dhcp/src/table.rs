//! Every address of the rack's blocks as this shard sees it, and who is on it.
//!
//! ```text
//!            allocate              grant
//!     Free ------------> Offered ---------> Bound
//!      ^                   | hold over        | ended, reclaimed
//!      +-------------------+------------------+
//!     any --refused, another shard's--> Barred (until the next attach)
//!     Offered, Bound --declined--> Resting --over--> Free, or Bound (ended) if a row must be reclaimed first
//! ```
//!
//! [`Table::set`] is the one place where an address changes state, so that counts, the free lists and the map of
//! clients cannot disagree. Taking a free address is O(1): each pool has a queue in which every slot stands at
//! most once; entries that were taken out of turn are skipped when they come up.

use std::collections::{HashMap, VecDeque};
use std::mem;
use std::net::Ipv4Addr;

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use lease::{BlockId, Client, Epoch, VlanId};

use crate::clock::Ms;

#[derive(Debug)]
pub(crate) enum State {
    /// Not ours to give before the next attach: another shard's, or a write to it was refused.
    Barred,
    Free,
    /// Held for a client that has not requested it yet; nothing is written.
    Offered {
        client: Client,
        until: Ms,
    },
    Bound(Binding),
    /// Declined or quarantined: nobody's until then. `client` is of the row that may stand in the database.
    Resting {
        until: Ms,
        client: Option<Client>,
        ended: Ms,
    },
}

/// An address with a row in the database, or with a grant on its way.
#[derive(Debug)]
pub(crate) struct Binding {
    pub client: Client,
    /// The end that an ACK may promise up to: 99 % of the durable time, counted from sending.
    pub durable: Ms,
    /// When the durable end has surely passed, by our clock. NEVER before the first row.
    pub ended: Ms,
    /// Quarantined by the region: the same client may go on, a reclaim may not.
    pub rests_until: Ms,
    pub released: bool,
    /// A write was sent and not answered: only this client's, until the next attach.
    pub unknown: bool,
    /// The write that is on its way.
    pub writing: Option<u32>,
}

impl Binding {
    /// Nothing of it stands in the database, as far as anyone knows.
    pub fn is_blank(&self) -> bool {
        self.ended == Ms::NEVER && !self.unknown
    }
}

#[derive(Debug)]
pub(crate) struct Slot {
    pub state: State,
    pub block: u32,
    pool: u32,
    /// Stands in its pool's queue.
    listed: bool,
    /// Has an entry in the queue of offers.
    timed: bool,
    /// Held by a client that the region does not know.
    stranger: bool,
}

/// A run of addresses.
#[derive(Debug)]
pub(crate) struct Run {
    pub id: BlockId,
    pub epoch: Epoch,
    pub vlan: VlanId,
    pub first: u32,
    pub count: u32,
    /// Slot of the first address.
    pub base: u32,
    /// A write was refused as not ours: no new grants before the next attach.
    pub refused: bool,
}

/// The addresses of one subnet that this shard deals in.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    queue: VecDeque<u32>,
    /// Free, but somebody's reservation or the gateway: looked at again by and by.
    aside: Vec<u32>,
    pub free: usize,
    /// All that were ours at the attach.
    pub total: usize,
    pub strangers: usize,
}

impl Pool {
    /// Ended leases are wanted back.
    pub fn is_low(&self) -> bool {
        self.free * 4 < self.total || self.is_full_of_strangers()
    }

    /// Clients that the region does not know hold their half.
    pub fn is_full_of_strangers(&self) -> bool {
        self.strangers >= self.total.div_ceil(2)
    }
}

pub(crate) struct Table {
    /// By (vlan, first address): the same network may stand behind two VLANs.
    runs: Vec<Run>,
    pub slots: Vec<Slot>,
    pools: Vec<Pool>,
    pool_index: HashMap<(VlanId, u32), u32, SeedableRandomState>,
    run_index: HashMap<BlockId, u32, SeedableRandomState>,
    clients: HashMap<Client, u32, SeedableRandomState>,
    /// When to look at an offer's end; each slot stands here at most once. An entry whose hold was prolonged
    /// goes to the back, so a hold may last up to twice its length.
    offers: VecDeque<(Ms, u32)>,
    pub offered: usize,
    pub bound: usize,
}

/// Tries before an allocation gives up on a queue of reserved addresses.
const TRIES_MAX: usize = 64;

impl Table {
    /// `seed` must be random: the tables are keyed by what strangers send.
    pub fn new(seed: u64) -> Self {
        let state = SeedableRandomState::with_seed(seed, SharedSeed::global_fixed());
        Self {
            runs: Vec::new(),
            slots: Vec::new(),
            pools: Vec::new(),
            pool_index: HashMap::with_hasher(state.clone()),
            run_index: HashMap::with_hasher(state.clone()),
            clients: HashMap::with_hasher(state),
            offers: VecDeque::new(),
            offered: 0,
            bound: 0,
        }
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.slots.clear();
        self.pools.clear();
        self.pool_index.clear();
        self.run_index.clear();
        self.clients.clear();
        self.offers.clear();
        self.offered = 0;
        self.bound = 0;
    }

    // ---------------------------------------------------------------- building

    /// Adds a block, every address Barred. Runs of one VLAN must come in order of address; false if this one
    /// overlaps the last.
    pub fn add_run(
        &mut self,
        id: BlockId,
        epoch: Epoch,
        vlan: VlanId,
        subnet: u32,
        first: Ipv4Addr,
        count: u32,
    ) -> bool {
        let first = u32::from(first);
        let fits = count > 0 && first.checked_add(count - 1).is_some();
        let known = self.run_index.contains_key(&id);
        let overlaps = self
            .runs
            .last()
            .is_some_and(|last| (last.vlan, last.first + (last.count - 1)) >= (vlan, first));
        if !fits || known || overlaps {
            return false;
        }
        let pool = *self.pool_index.entry((vlan, subnet)).or_insert_with(|| {
            self.pools.push(Pool::default());
            (self.pools.len() - 1) as u32 // fewer pools than blocks
        });
        let base = self.slots.len() as u32; // bounded by the caller
        let block = self.runs.len() as u32;
        self.run_index.insert(id, block);
        self.runs.push(Run {
            id,
            epoch,
            vlan,
            first,
            count,
            base,
            refused: false,
        });
        self.slots.extend((0..count).map(|_| Slot {
            state: State::Barred,
            block,
            pool,
            listed: false,
            timed: false,
            stranger: false,
        }));
        true
    }

    /// Counts what is ours now, after an attach has set the states.
    pub fn count_totals(&mut self) {
        for slot in &self.slots {
            if !matches!(slot.state, State::Barred) {
                self.pools[slot.pool as usize].total += 1;
            }
        }
    }

    // ---------------------------------------------------------------- looking up

    pub fn find(&self, vlan: VlanId, address: Ipv4Addr) -> Option<u32> {
        let address = u32::from(address);
        let after = self
            .runs
            .partition_point(|run| (run.vlan, run.first) <= (vlan, address));
        let run = &self.runs[after.checked_sub(1)?];
        (run.vlan == vlan && address - run.first < run.count)
            .then(|| run.base + (address - run.first))
    }

    /// The slot of an address of this block.
    pub fn find_in_block(&self, block: BlockId, address: Ipv4Addr) -> Option<u32> {
        let address = u32::from(address);
        let run = &self.runs[*self.run_index.get(&block)? as usize];
        (address >= run.first && address - run.first < run.count)
            .then(|| run.base + (address - run.first))
    }

    pub fn run(&self, slot: u32) -> &Run {
        &self.runs[self.slots[slot as usize].block as usize]
    }

    pub fn refuse_run(&mut self, slot: u32) {
        self.runs[self.slots[slot as usize].block as usize].refused = true;
    }

    pub fn address(&self, slot: u32) -> Ipv4Addr {
        let run = self.run(slot);
        Ipv4Addr::from(run.first + (slot - run.base))
    }

    pub fn pool(&self, vlan: VlanId, subnet: u32) -> Option<&Pool> {
        Some(&self.pools[*self.pool_index.get(&(vlan, subnet))? as usize])
    }

    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    pub fn pool_of(&self, slot: u32) -> &Pool {
        &self.pools[self.slots[slot as usize].pool as usize]
    }

    /// The address that the client holds, offered or bound.
    pub fn held_by(&self, client: &Client) -> Option<u32> {
        self.clients.get(client).copied()
    }

    /// Whether the slot is this client's, offered or bound.
    pub fn is_held_by(&self, slot: u32, client: &Client) -> bool {
        match &self.slots[slot as usize].state {
            State::Offered { client: holder, .. } => holder == client,
            State::Bound(binding) => &binding.client == client,
            _ => false,
        }
    }

    /// Makes this slot the one that its holder is known by, of several.
    pub fn remember(&mut self, index: u32) {
        let client = match &self.slots[index as usize].state {
            State::Offered { client, .. } => client.clone(),
            State::Bound(binding) => binding.client.clone(),
            _ => return,
        };
        self.clients.insert(client, index);
    }

    pub fn binding_mut(&mut self, slot: u32) -> Option<&mut Binding> {
        match &mut self.slots.get_mut(slot as usize)?.state {
            State::Bound(binding) => Some(binding),
            _ => None,
        }
    }

    // ---------------------------------------------------------------- changing

    /// Gives the slot a new state and returns the old one.
    pub fn set(&mut self, index: u32, state: State, stranger: bool) -> State {
        let slot = &mut self.slots[index as usize];
        let pool = &mut self.pools[slot.pool as usize];
        let old = mem::replace(&mut slot.state, state);
        let holder = match &old {
            State::Free => {
                pool.free -= 1;
                None
            }
            State::Offered { client, .. } => {
                self.offered -= 1;
                Some(client)
            }
            State::Bound(binding) => {
                self.bound -= 1;
                Some(&binding.client)
            }
            State::Barred | State::Resting { .. } => None,
        };
        let new_holder = match &slot.state {
            State::Offered { client, .. } => {
                self.offered += 1;
                Some(client)
            }
            State::Bound(binding) => {
                self.bound += 1;
                Some(&binding.client)
            }
            State::Free => {
                pool.free += 1;
                if !slot.listed {
                    slot.listed = true;
                    pool.queue.push_back(index);
                }
                None
            }
            State::Barred | State::Resting { .. } => None,
        };
        if holder != new_holder {
            if let Some(client) = holder
                && self.clients.get(client) == Some(&index)
            {
                self.clients.remove(client);
            }
            if let Some(client) = new_holder {
                self.clients.insert(client.clone(), index);
            }
        }
        let stranger = stranger && new_holder.is_some();
        pool.strangers = pool.strangers + usize::from(stranger) - usize::from(slot.stranger);
        slot.stranger = stranger;
        old
    }

    /// Whether the holder counts as unknown now; an enlisted machine stops doing so.
    pub fn set_stranger(&mut self, index: u32, stranger: bool) {
        let slot = &mut self.slots[index as usize];
        let pool = &mut self.pools[slot.pool as usize];
        pool.strangers = pool.strangers + usize::from(stranger) - usize::from(slot.stranger);
        slot.stranger = stranger;
    }

    /// Holds a free address for a client, or prolongs its hold.
    pub fn offer(&mut self, index: u32, client: Client, until: Ms, stranger: bool) {
        self.set(index, State::Offered { client, until }, stranger);
        let slot = &mut self.slots[index as usize];
        if !slot.timed {
            slot.timed = true;
            self.offers.push_back((until, index));
        }
    }

    /// Takes the longest free address that `allowed` accepts out of the subnet's queue. It stays Free until it
    /// is set; the caller must set it.
    pub fn allocate(
        &mut self,
        vlan: VlanId,
        subnet: u32,
        allowed: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<u32> {
        let pool = *self.pool_index.get(&(vlan, subnet))? as usize;
        let mut tries = 0;
        while tries < TRIES_MAX {
            let index = self.pools[pool].queue.pop_front()?;
            let slot = &mut self.slots[index as usize];
            slot.listed = false;
            if !matches!(slot.state, State::Free) {
                continue; // taken out of turn; it is listed again when it becomes free
            }
            tries += 1;
            if self.run(index).refused {
                continue; // nobody's before the next attach, which builds the queue anew
            }
            if allowed(self.address(index)) {
                return Some(index);
            }
            self.slots[index as usize].listed = true;
            self.pools[pool].aside.push(index);
        }
        None
    }

    /// Puts what was set aside back into the queues.
    pub fn requeue_aside(&mut self) {
        for pool in &mut self.pools {
            pool.queue.extend(pool.aside.drain(..));
        }
    }

    /// When the first offer may run out.
    pub fn next_offer_end(&self) -> Option<Ms> {
        self.offers.front().map(|(until, _)| *until)
    }

    /// Ends the first offer if its hold is over. False when nothing is due.
    pub fn expire_offer(&mut self, now: Ms) -> bool {
        let Some(&(due, index)) = self.offers.front() else {
            return false;
        };
        if due > now {
            return false;
        }
        self.offers.pop_front();
        let slot = &mut self.slots[index as usize];
        slot.timed = false;
        if let State::Offered { until, .. } = slot.state {
            if until <= now {
                self.set(index, State::Free, false);
            } else {
                slot.timed = true;
                self.offers.push_back((until, index));
            }
        }
        true
    }
}
