//! Which free address is next: allocation, offers that run out or yield, and the stock of probed ones.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::time::Duration;

use lease::{BlockId, VlanId};

use super::list::{NONE, Place};
use super::records::What;
use super::{State, Table};
use crate::clock::Ms;

/// Addresses looked at before an allocation gives up. Each that may not be dealt goes aside, so that it costs the
/// next one nothing: only a reservation or range made since the attach is ever met here.
pub(super) const TRIES_MAX: usize = 1024;
/// Of those aside, how many are looked at again by one allocation: for what is no longer reserved.
const ASIDE_TRIES: usize = 2;
/// Of a pool's offers to strangers, so many of the oldest and of the newest are looked at for one that gives way; and so many
/// sources of them are told apart.
const OFFERS_LOOKED_AT: usize = 128;
const YIELDING_SOURCES: usize = 32;
/// Resting addresses looked at for one that may be given all the same.
const CLAIMED_TRIES: usize = 256;
pub(super) const ASIDE_TRIES_EMPTY: usize = 64;

impl Table {
    /// A free address of the subnet that `allowed` accepts: one that was probed after `probed_after`, else the
    /// longest free. It stays Free, and may be the next one's too, until the caller gives it another state.
    pub fn allocate(
        &mut self,
        vlan: VlanId,
        subnet: u32,
        probed_after: Ms,
        allowed: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<u32> {
        let pool = *self.pool_index.get(&(vlan, subnet))? as usize;
        // What goes aside only now need not be looked at again.
        let aside = self.pools[pool].aside.length;
        let found = self.first_free(pool, probed_after, &allowed);
        let again = match found {
            Some(_) => ASIDE_TRIES,
            None => ASIDE_TRIES_EMPTY,
        };
        let back = self.look_aside(pool, again.min(aside), &allowed);
        found.or(back)
    }

    fn first_free(
        &mut self,
        pool: usize,
        probed_after: Ms,
        allowed: &impl Fn(Ipv4Addr) -> bool,
    ) -> Option<u32> {
        for _ in 0..TRIES_MAX {
            let stocked = self.pools[pool].stock.addresses.first();
            let index = match stocked {
                Some((index, at)) if *at >= probed_after => *index,
                _ if self.pools[pool].queue.head != NONE => self.pools[pool].queue.head,
                Some((index, _)) => *index,
                None => return None,
            };
            self.count_step();
            if self.run(index).refused {
                self.put(index, Place::Nowhere); // nobody's before the next attach
            } else if allowed(self.address(index)) {
                return Some(index);
            } else {
                self.put(index, Place::Aside);
            }
        }
        None
    }

    /// Looks at so many of those aside; the first that may be dealt after all, back in the queue.
    fn look_aside(
        &mut self,
        pool: usize,
        tries: usize,
        allowed: &impl Fn(Ipv4Addr) -> bool,
    ) -> Option<u32> {
        for _ in 0..tries {
            let index = self.pools[pool].aside.head;
            if index == NONE {
                return None;
            }
            self.count_step();
            if allowed(self.address(index)) {
                self.put(index, Place::Queue);
                return Some(index);
            }
            self.put(index, Place::Aside); // to the end
        }
        None
    }

    #[cfg(test)]
    fn count_step(&mut self) {
        self.steps += 1;
    }

    #[cfg(not(test))]
    fn count_step(&self) {}

    // ---------------------------------------------------------------- offers

    /// When the first offer may run out.
    pub fn next_offer_end(&self) -> Option<Ms> {
        (self.offered > 0).then_some(self.offers_due)
    }

    /// Ends offers whose hold is over, at most so many.
    pub fn expire_offers(&mut self, now: Ms, mut most: usize) {
        let mut due = Ms::NEVER;
        for pool in 0..self.pools.len() {
            for place in [Place::KnownOffers, Place::StrangerOffers] {
                while let Some((slot, until)) = self.first_offer(pool, place) {
                    if until > now || most == 0 {
                        due = due.min(until);
                        break;
                    }
                    most -= 1;
                    self.free(slot);
                }
            }
        }
        self.offers_due = due;
    }

    fn first_offer(&mut self, pool: usize, place: Place) -> Option<(u32, Ms)> {
        let slot = self.pools[pool].list(place)?.head;
        match self.records.what(self.slots.get(slot as usize)?.record)? {
            What::Offered { until, .. } => Some((slot, *until)),
            _ => None,
        }
    }

    /// Frees an address of this subnet that was offered to a stranger, for a newcomer of that source.
    pub fn evict_stranger_offer(
        &mut self,
        vlan: VlanId,
        subnet: u32,
        newcomer: u64,
    ) -> Option<u32> {
        let pool = *self.pool_index.get(&(vlan, subnet))? as usize;
        let slot = self.offer_that_yields(pool, Some(newcomer))?;
        self.free(slot);
        Some(slot)
    }

    /// The oldest offer of the source that has the most, and two more than the newcomer's; else the newcomer's source's own oldest;
    /// else the oldest of all.
    fn offer_that_yields(&self, pool: usize, newcomer: Option<u64>) -> Option<u32> {
        let mut sources = [(0, 0, NONE); YIELDING_SOURCES];
        let mut count = 0;
        let mut own = (0, NONE);
        for slot in self.offers_looked_at(pool) {
            let source = self.source_of_offer(slot)?;
            if Some(source) == newcomer {
                own = (own.0 + 1, if own.1 == NONE { slot } else { own.1 });
                continue;
            }
            let known = sources[..count].iter().position(|of| of.0 == source);
            if let Some(at) = known {
                sources[at].1 += 1;
            } else if count < YIELDING_SOURCES {
                sources[count] = (source, 1, slot);
                count += 1;
            }
        }
        // Of those with as many, the one that has the oldest.
        let most = sources[..count].iter().rev().max_by_key(|of| of.1);
        match most {
            Some((_, held, oldest)) if *held >= own.0 + 2 => Some(*oldest),
            _ if own.0 > 0 => Some(own.1),
            _ => Some(self.pools[pool].stranger_offers.head).filter(|head| *head != NONE),
        }
    }

    /// Offers to strangers, the oldest first: all, or of very many the oldest and the newest. A flood's are among the latter.
    fn offers_looked_at(&self, pool: usize) -> impl Iterator<Item = u32> + use<> {
        let list = &self.pools[pool].stranger_offers;
        let mut found = [NONE; 2 * OFFERS_LOOKED_AT];
        let (oldest, newest) = match list.length {
            few if few <= 2 * OFFERS_LOOKED_AT => (few, 0),
            _ => (OFFERS_LOOKED_AT, OFFERS_LOOKED_AT),
        };
        let mut slot = list.head;
        for place in &mut found[..oldest] {
            *place = slot;
            slot = self.slots.get(slot as usize).map_or(NONE, |slot| slot.next);
        }
        slot = list.tail;
        for place in found[oldest..oldest + newest].iter_mut().rev() {
            *place = slot;
            slot = self
                .slots
                .get(slot as usize)
                .map_or(NONE, |slot| slot.previous);
        }
        found.into_iter().take(oldest + newest)
    }

    fn source_of_offer(&self, slot: u32) -> Option<u64> {
        match self.records.what(self.slots.get(slot as usize)?.record)? {
            What::Offered { source, .. } => Some(*source),
            _ => None,
        }
    }

    /// Takes one stranger's offer back, of the pool that has the most of them: a flood of one network makes room for
    /// all others.
    pub fn evict_any_stranger_offer(&mut self) -> bool {
        let fullest =
            (0..self.pools.len()).max_by_key(|pool| self.pools[*pool].stranger_offers.length);
        let found = fullest.and_then(|pool| self.offer_that_yields(pool, None));
        if let Some(slot) = found {
            self.free(slot);
        }
        found.is_some()
    }

    /// The address of the subnet that has rested the longest only because some host claimed it, free: nothing of it
    /// stands in the database.
    pub fn wake_claimed(
        &mut self,
        vlan: VlanId,
        subnet: u32,
        allowed: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<u32> {
        let pool = *self.pool_index.get(&(vlan, subnet))? as usize;
        let mut slot = self.pools[pool].resting.head;
        for _ in 0..CLAIMED_TRIES {
            let next = self.slots.get(slot as usize)?.next;
            let is_claimed = self.client(slot).is_none() && !self.is_quarantined(slot);
            if is_claimed && allowed(self.address(slot)) {
                self.free(slot);
                self.pools[pool].last_resort = Some(slot);
                return Some(slot);
            }
            slot = next;
        }
        None
    }

    /// How many addresses of each block rest only because some host claimed them.
    pub fn claimed(&self) -> Vec<(BlockId, u32)> {
        let mut of_runs = BTreeMap::new();
        for pool in &self.pools {
            let mut slot = pool.resting.head;
            while let Some(next) = self.slots.get(slot as usize).map(|slot| slot.next) {
                if self.client(slot).is_none() && !self.is_quarantined(slot) {
                    *of_runs.entry(self.run(slot).id).or_default() += 1;
                }
                slot = next;
            }
        }
        of_runs.into_iter().collect()
    }

    // ---------------------------------------------------------------- probes

    /// Whether nobody answered a probe for this free address since then.
    pub fn is_stocked(&self, slot: u32, probed_after: Ms) -> bool {
        self.slots[slot as usize].place == Place::Stock
            && self
                .pool_of(slot)
                .stock
                .addresses
                .iter()
                .any(|(other, at)| *other == slot && *at >= probed_after)
    }

    /// The next free address of a pool that wants to be probed: the oldest of the stock if it was probed longer ago
    /// than `fresh`, else the head of the queue if the stock is smaller than `target`.
    pub fn next_to_probe(
        &self,
        pool: usize,
        target: usize,
        now: Ms,
        fresh: Duration,
    ) -> Option<u32> {
        let pool = &self.pools[pool];
        if pool.probe_after > now {
            return None;
        }
        match pool.stock.addresses.first() {
            Some((slot, at)) if *at < now.minus(fresh) => Some(*slot),
            _ if pool.stocked() + pool.probing < target => {
                Some(pool.queue.head).filter(|head| *head != NONE)
            }
            _ => None,
        }
    }

    /// Out of its list while somebody may answer for it. It can still be taken out of turn.
    pub fn start_probe(&mut self, slot: u32) {
        if self.state(slot) == State::Free {
            self.put(slot, Place::Nowhere);
        }
    }

    pub fn set_aside(&mut self, slot: u32) {
        if self.state(slot) == State::Free {
            self.put(slot, Place::Aside);
        }
    }

    /// Back among the free: to the stock if it was found unused at that time, else to the queue.
    pub fn end_probe(&mut self, slot: u32, unused_at: Option<Ms>) {
        if self.state(slot) != State::Free || self.slots[slot as usize].place != Place::Nowhere {
            return;
        }
        match unused_at {
            Some(at) => {
                self.slots[slot as usize].place = Place::Stock;
                self.pool_of_mut(slot).stock.addresses.push((slot, at));
            }
            None => self.put(slot, Place::Queue),
        }
    }
}
