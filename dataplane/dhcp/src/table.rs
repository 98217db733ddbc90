//! Every address of the rack's blocks as this shard sees it, and who is on it.
//!
//! ```text
//!            allocate              grant
//!     Free ------------> Offered ---------> Bound
//!      ^                   | hold over        | ended, reclaimed
//!      +-------------------+------------------+
//!     any --refused, another shard's--> Barred (until the next attach)
//!     any --declined, or in use--> Resting --over--> Free, or Bound (ended) if a row must be reclaimed first
//! ```
//!
//! [`Table::change`] is the one place where an address changes state, so that counts, lists and the index of clients
//! cannot disagree. Taking a free address is O(1) however full the range is: the free ones of a pool are a list in
//! which each stands once ([`list`]), and what must not be dealt stands aside, where it costs nothing.
//!
//! Budget: 20 octets an address, free or another shard's; an address that is held takes 72 more in [`records`] and up
//! to 8 for its place in the index. A range of 262,144 (as many as a region deals of one at first, also of a /8) is 5 MiB
//! empty and 26 MiB full.

mod free;
mod list;
mod pool;
mod records;

use std::collections::HashMap;
use std::net::Ipv4Addr;

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use lease::{BlockId, Client, Epoch, VlanId};
use wire::ethernet::Mac;

use crate::clock::Ms;
use crate::limits::Circuits;
use list::{NONE, Place};
pub(crate) use pool::Pool;
use records::{Records, What};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum State {
    /// Not ours to give before the next attach: another shard's, or a write to it was refused.
    Barred,
    Free,
    /// Held for a client that has not requested it yet; nothing is written.
    Offered,
    Bound,
    /// Declined, quarantined or in use by a stranger: nobody's for a while.
    Resting,
}

/// What is known of an address with a row in the database, or with a grant on its way.
#[derive(Clone, Debug)]
pub(crate) struct Binding {
    /// The end that an ACK may promise up to: 99 % of the durable time, counted from sending.
    pub durable: Ms,
    /// When the durable end has surely passed, by our clock. NEVER before the first row.
    pub ended: Ms,
    /// Quarantined by the region: the same client may go on, a reclaim may not.
    pub rests_until: Ms,
    /// The write that is on its way.
    pub writing: Option<u32>,
    /// As the region has it: the first to be reclaimed at its end, and ACKed only after a write.
    pub released: bool,
    /// The RELEASE was heard here, since the attach, and nothing has been heard of the client since.
    pub gone: bool,
    /// A write was sent and not answered: only this client's, until the next attach.
    pub unknown: bool,
}

impl Binding {
    /// Before the first word of the region.
    pub const BLANK: Self = Self {
        durable: Ms::PAST,
        ended: Ms::NEVER,
        rests_until: Ms::PAST,
        writing: None,
        released: false,
        gone: false,
        unknown: false,
    };

    /// Nothing of it stands in the database, as far as anyone knows.
    pub fn is_blank(&self) -> bool {
        self.ended == Ms::NEVER && !self.unknown
    }
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Slot {
    /// What is known of it, or NONE.
    record: u32,
    next: u32,
    previous: u32,
    block: u32,
    state: State,
    place: Place,
    /// Held by a client that the region does not know.
    stranger: bool,
}

/// A run of addresses.
#[derive(Debug)]
pub(crate) struct Run {
    pub id: BlockId,
    pub epoch: Epoch,
    pub vlan: VlanId,
    pub subnet: u32,
    pub first: u32,
    pub count: u32,
    /// Slot of the first address.
    pub base: u32,
    pool: u32,
    /// A write was refused as not ours: no new grants before the next attach.
    pub refused: bool,
}

pub(crate) struct Table {
    /// By (vlan, first address): the same network may stand behind two VLANs.
    runs: Vec<Run>,
    slots: Vec<Slot>,
    pools: Vec<Pool>,
    records: Records,
    pool_index: HashMap<(VlanId, u32), u32, SeedableRandomState>,
    run_index: HashMap<BlockId, u32, SeedableRandomState>,
    /// Who hangs on which port; counted as records come and go.
    pub circuits: Circuits,
    /// No offer runs out before then.
    offers_due: Ms,
    pub offered: usize,
    pub bound: usize,
    /// Addresses looked at by [`Self::allocate`].
    #[cfg(test)]
    steps: usize,
}

impl Table {
    /// `seed` must be random: the tables are keyed by what strangers send.
    pub fn new(seed: u64, circuits: Circuits) -> Self {
        let state = SeedableRandomState::with_seed(seed, SharedSeed::global_fixed());
        Self {
            runs: Vec::new(),
            slots: Vec::new(),
            pools: Vec::new(),
            records: Records::new(state.clone()),
            pool_index: HashMap::with_hasher(state.clone()),
            run_index: HashMap::with_hasher(state),
            circuits,
            offers_due: Ms::NEVER,
            offered: 0,
            bound: 0,
            #[cfg(test)]
            steps: 0,
        }
    }

    pub fn clear(&mut self) {
        self.runs.clear();
        self.slots.clear();
        self.pools.clear();
        self.records.clear();
        self.pool_index.clear();
        self.run_index.clear();
        self.circuits.clear();
        self.offers_due = Ms::NEVER;
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
            subnet,
            first,
            count,
            base,
            pool,
            refused: false,
        });
        let slot = Slot {
            record: NONE,
            next: NONE,
            previous: NONE,
            block,
            state: State::Barred,
            place: Place::Nowhere,
            stranger: false,
        };
        self.slots.resize(self.slots.len() + count as usize, slot);
        true
    }

    /// Takes the memory for as many held addresses as there can be: so many of ours, and so many rows. After the
    /// last [`Self::add_run`], before the first address is anybody's. `stock`: of each pool.
    pub fn reserve(&mut self, addresses: usize, stock: usize) {
        self.records.reserve(addresses.min(self.slots.len()));
        for pool in &mut self.pools {
            pool.stock.addresses.reserve_exact(stock);
        }
    }

    /// Counts what is ours now, after an attach has set the states.
    pub fn count_totals(&mut self) {
        for slot in &self.slots {
            if slot.state != State::Barred {
                self.pools[self.runs[slot.block as usize].pool as usize].total += 1;
            }
        }
    }

    // ---------------------------------------------------------------- looking up

    /// Addresses of all blocks, other shards' included.
    pub fn len(&self) -> usize {
        self.slots.len()
    }

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
        &self.pools[self.run(slot).pool as usize]
    }

    pub fn pool_of_mut(&mut self, slot: u32) -> &mut Pool {
        let pool = self.run(slot).pool as usize;
        &mut self.pools[pool]
    }

    pub fn state(&self, slot: u32) -> State {
        self.slots[slot as usize].state
    }

    pub fn is_strangers(&self, slot: u32) -> bool {
        self.slots[slot as usize].stranger
    }

    /// The address that the client holds, offered or bound.
    pub fn held_by(&self, client: &Client) -> Option<u32> {
        self.records.find(client)
    }

    /// Whether the slot is this client's, offered or bound.
    pub fn is_held_by(&self, slot: u32, client: &Client) -> bool {
        let slot = &self.slots[slot as usize];
        matches!(slot.state, State::Offered | State::Bound)
            && self.records.is_of(slot.record, client)
    }

    /// Whose the slot is, or whose row may still stand for it.
    pub fn client(&self, slot: u32) -> Option<Client> {
        self.records.client(self.slots[slot as usize].record)
    }

    /// The same, where it is known by its MAC.
    pub fn mac(&self, slot: u32) -> Option<Mac> {
        self.records.mac(self.slots[slot as usize].record)
    }

    /// Makes this slot the one that its holder is known by, of several.
    pub fn remember(&mut self, slot: u32) {
        let slot = &self.slots[slot as usize];
        if matches!(slot.state, State::Offered | State::Bound) {
            self.records.prefer(slot.record);
        }
    }

    pub fn binding(&self, slot: u32) -> Option<&Binding> {
        match self.records.what(self.slots.get(slot as usize)?.record)? {
            What::Bound(binding) => Some(binding),
            _ => None,
        }
    }

    pub fn binding_mut(&mut self, slot: u32) -> Option<&mut Binding> {
        match self
            .records
            .what_mut(self.slots.get(slot as usize)?.record)?
        {
            What::Bound(binding) => Some(binding),
            _ => None,
        }
    }

    /// Of a resting address: until when, and when its row ended.
    pub fn resting(&self, slot: u32) -> Option<(Ms, Ms)> {
        match self.records.what(self.slots[slot as usize].record)? {
            What::Resting { until, ended } => Some((*until, *ended)),
            _ => None,
        }
    }

    /// Whether a resting address without a client rests in the database as well.
    fn is_quarantined(&self, slot: u32) -> bool {
        self.resting(slot)
            .is_none_or(|(_, ended)| ended == Ms::NEVER)
    }

    // ---------------------------------------------------------------- changing

    /// Nobody's before the next attach.
    pub fn bar(&mut self, slot: u32) {
        self.change(slot, State::Barred, None, false);
    }

    /// To the end of its pool's queue.
    pub fn free(&mut self, slot: u32) {
        self.change(slot, State::Free, None, false);
        self.put(slot, Place::Queue);
    }

    /// Free, but not to be dealt.
    pub fn free_aside(&mut self, slot: u32) {
        self.change(slot, State::Free, None, false);
        self.put(slot, Place::Aside);
    }

    /// Holds an address for a client, or prolongs its hold.
    pub fn offer(&mut self, slot: u32, client: &Client, until: Ms, source: u64, stranger: bool) {
        let what = What::Offered { until, source };
        self.change(slot, State::Offered, Some((Some(client), what)), stranger);
        self.put_offer(slot, stranger);
        self.offers_due = self.offers_due.min(until);
    }

    fn put_offer(&mut self, slot: u32, stranger: bool) {
        self.put(
            slot,
            if stranger {
                Place::StrangerOffers
            } else {
                Place::KnownOffers
            },
        );
    }

    pub fn bind(&mut self, slot: u32, client: &Client, binding: Binding, stranger: bool) {
        let what = What::Bound(binding);
        self.change(slot, State::Bound, Some((Some(client), what)), stranger);
    }

    /// Nobody's until then. `client`: of the row that may stand in the database, which ended at `ended`. `stranger`: it
    /// is a stranger's doing, and stays on the strangers' account.
    pub fn rest(
        &mut self,
        slot: u32,
        client: Option<&Client>,
        until: Ms,
        ended: Ms,
        stranger: bool,
    ) {
        let what = What::Resting { until, ended };
        self.change(slot, State::Resting, Some((client, what)), stranger);
        self.put(slot, Place::Resting);
        if stranger {
            self.pool_of_mut(slot).declined_by_strangers += 1;
        }
    }

    fn change(
        &mut self,
        index: u32,
        state: State,
        record: Option<(Option<&Client>, What)>,
        stranger: bool,
    ) {
        self.put(index, Place::Nowhere);
        let slot = &mut self.slots[index as usize];
        let pool = &mut self.pools[self.runs[slot.block as usize].pool as usize];
        match slot.state {
            State::Free => pool.free -= 1,
            State::Offered => self.offered -= 1,
            State::Bound => self.bound -= 1,
            State::Resting => pool.declined_by_strangers -= usize::from(slot.stranger),
            State::Barred => {}
        }
        match state {
            State::Free => pool.free += 1,
            State::Offered => self.offered += 1,
            State::Bound => self.bound += 1,
            State::Barred | State::Resting => {}
        }
        pool.strangers = pool.strangers + usize::from(stranger) - usize::from(slot.stranger);
        slot.stranger = stranger;
        slot.state = state;
        let old = slot.record;
        match record {
            // From an offer to its grant, and so on: the holder stays where it is.
            Some((Some(client), what)) if self.records.is_of(old, client) => {
                if let Some(place) = self.records.what_mut(old) {
                    *place = what;
                }
                if state == State::Resting {
                    self.leave_circuit(old);
                }
            }
            Some((client, what)) => {
                self.forget(old);
                self.slots[index as usize].record = self.records.add(index, client, what);
            }
            None => {
                self.forget(old);
                self.slots[index as usize].record = NONE;
            }
        }
    }

    fn forget(&mut self, record: u32) {
        if record != NONE {
            self.leave_circuit(record);
            self.records.remove(record);
        }
    }

    fn leave_circuit(&mut self, record: u32) {
        if let Some(circuit) = self.records.circuit(record) {
            self.circuits.leave(circuit);
            self.records.set_circuit(record, None);
        }
    }

    /// The holder of this slot hangs on the port that `hash` stands for.
    pub fn set_circuit(&mut self, slot: u32, hash: u64) {
        let record = self.slots[slot as usize].record;
        let old = self.records.circuit(record);
        if record == NONE || old.is_some_and(|old| self.circuits.is(old, hash)) {
            return;
        }
        self.leave_circuit(record);
        let new = self.circuits.enter(hash);
        self.records.set_circuit(record, new);
    }

    /// Whether the holder counts as unknown now; an enlisted machine stops doing so.
    pub fn set_stranger(&mut self, index: u32, stranger: bool) {
        let slot = &mut self.slots[index as usize];
        let pool = &mut self.pools[self.runs[slot.block as usize].pool as usize];
        pool.strangers = pool.strangers + usize::from(stranger) - usize::from(slot.stranger);
        slot.stranger = stranger;
        if slot.state == State::Offered {
            self.put_offer(index, stranger);
        }
    }

    /// Moves the slot from the list it stands in to the end of another.
    fn put(&mut self, index: u32, to: Place) {
        let slots = &mut self.slots[..];
        let slot = &mut slots[index as usize];
        let pool = &mut self.pools[self.runs[slot.block as usize].pool as usize];
        let from = std::mem::replace(&mut slot.place, to);
        if from == Place::Stock {
            pool.stock.addresses.retain(|(other, _)| *other != index);
        } else if let Some(list) = pool.list(from) {
            list.remove(slots, index);
        }
        if let Some(list) = pool.list(to) {
            list.push_back(slots, index);
        }
    }
}

#[cfg(test)]
mod tests {
    use lease::ClientKey;

    use super::free::{ASIDE_TRIES_EMPTY, TRIES_MAX};
    use super::*;

    fn table(addresses: u32) -> Table {
        let mut table = Table::new(7, Circuits::new(0, 7));
        let count = 64.min(addresses);
        for block in 0..addresses / count {
            let first = Ipv4Addr::from(0x0a00_0000 + block * count);
            assert!(table.add_run(BlockId(block.into()), Epoch(1), 1, 1, first, count));
        }
        table.reserve(addresses as usize, 4);
        for slot in 0..addresses {
            table.free(slot);
        }
        table.count_totals();
        table
    }

    fn client(number: u32) -> Client {
        let [a, b, c, d] = number.to_be_bytes();
        Client {
            vlan: 1,
            key: ClientKey::Mac([2, 0, a, b, c, d]),
        }
    }

    /// Steps of so many allocations, each of which is bound.
    fn steps(
        table: &mut Table,
        from: u32,
        count: u32,
        allowed: impl Fn(Ipv4Addr) -> bool,
    ) -> usize {
        let before = table.steps;
        for number in from..from + count {
            let slot = table
                .allocate(1, 1, Ms::PAST, &allowed)
                .expect("a free one");
            table.bind(slot, &client(number), Binding::BLANK, false);
        }
        table.steps - before
    }

    #[test]
    fn an_address_costs_one_step_in_an_empty_and_in_a_full_range() {
        // A /16, and all that a region deals of one range, be it a /8.
        for addresses in [65_536, 262_144] {
            let mut table = table(addresses);
            assert_eq!(steps(&mut table, 0, 64, |_| true), 64, "empty");
            let nearly = addresses - addresses / 1000 - 64;
            steps(&mut table, 64, nearly, |_| true);
            let left = addresses - 64 - nearly;
            assert!(left * 900 < addresses, "99.9 % full");
            assert_eq!(steps(&mut table, addresses, left, |_| true), left as usize);
            assert_eq!(table.allocate(1, 1, Ms::PAST, |_| true), None);
            // One comes back somewhere in the middle.
            table.free(addresses / 2);
            let before = table.steps;
            assert_eq!(
                table.allocate(1, 1, Ms::PAST, |_| true),
                Some(addresses / 2)
            );
            assert_eq!(table.steps - before, 1);
            assert_eq!(table.held_by(&client(1)), Some(1));
        }
    }

    #[test]
    fn what_is_reserved_costs_once() {
        // The first 20,000 of a /16 were reserved after the attach.
        let reserved = 0x0a00_0000 + 20_000;
        let allowed = |address: Ipv4Addr| u32::from(address) >= reserved;
        let mut table = table(65_536);
        let mut tries = 0;
        let first = loop {
            tries += 1;
            if let Some(slot) = table.allocate(1, 1, Ms::PAST, allowed) {
                break slot;
            }
        };
        assert!(tries <= 20_000_usize.div_ceil(TRIES_MAX), "{tries}");
        assert_eq!(u32::from(table.address(first)), reserved);
        assert!(table.steps <= 20_000 + tries * ASIDE_TRIES_EMPTY + 1);
        // From now on each costs its own step and two looks aside.
        assert_eq!(steps(&mut table, 0, 1000, allowed), 3 * 1000);
        assert!(
            table
                .pool(1, 1)
                .is_some_and(|pool| pool.dealable() == 65_536 - 21_000)
        );
        // No longer reserved: found by and by, at once where nothing else is left.
        steps(&mut table, 1000, 65_536 - 21_000, allowed);
        assert_eq!(table.allocate(1, 1, Ms::PAST, allowed), None);
        assert!(table.allocate(1, 1, Ms::PAST, |_| true).is_some());
    }

    #[test]
    fn an_address_stands_in_one_list() {
        let mut table = table(8);
        let before = table.steps;
        table.offer(3, &client(1), Ms::PAST, 0, true);
        table.offer(4, &client(2), Ms::PAST, 0, false);
        assert_eq!(table.pools[0].queue.length, 6);
        // Prolonged: the other may run out first, and does.
        table.offer(
            3,
            &client(1),
            Ms::PAST.plus(std::time::Duration::from_secs(9)),
            0,
            true,
        );
        table.expire_offers(Ms::PAST, 10);
        assert_eq!(
            (table.state(3), table.state(4)),
            (State::Offered, State::Free)
        );
        assert_eq!(table.evict_stranger_offer(1, 1, 0), Some(3));
        assert_eq!(table.evict_stranger_offer(1, 1, 0), None);
        assert_eq!((table.offered, table.pools[0].strangers), (0, 0));
        assert_eq!(table.held_by(&client(1)), None);
        // Taken out of turn, it is not met again.
        table.bind(0, &client(3), Binding::BLANK, false);
        assert_eq!(table.allocate(1, 1, Ms::PAST, |_| true), Some(1));
        assert_eq!(table.steps - before, 1);
        // What was probed goes first, while that is fresh.
        table.start_probe(5);
        table.end_probe(5, Some(Ms::PAST));
        assert_eq!(table.allocate(1, 1, Ms::PAST, |_| true), Some(5));
        assert_eq!(table.allocate(1, 1, Ms::NEVER, |_| true), Some(1));
        assert!(table.is_stocked(5, Ms::PAST) && !table.is_stocked(5, Ms::NEVER));
        table.bar(5);
        assert_eq!(table.pools[0].stocked(), 0);
    }

    #[test]
    fn an_address_stays_small() {
        assert_eq!((size_of::<Slot>(), records::RECORD_BYTES), (20, 72));
    }
}
