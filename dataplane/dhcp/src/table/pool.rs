//! The addresses of one subnet that a shard deals in: how many there are, who may have them, and the lists they stand in.

use wire::ethernet::Mac;

use super::list::{List, Place};
use crate::clock::Ms;

/// Free addresses of one pool that nobody answered an ARP probe for, the first asked first.
#[derive(Debug, Default)]
pub(crate) struct Stock {
    /// At most a few dozen: searching them is cheaper than keeping links.
    pub(super) addresses: Vec<(u32, Ms)>,
}

/// The addresses of one subnet that this shard deals in.
#[derive(Debug, Default)]
pub(crate) struct Pool {
    pub(super) queue: List,
    pub(super) stock: Stock,
    pub(super) aside: List,
    pub(super) known_offers: List,
    pub(super) stranger_offers: List,
    pub(super) resting: List,
    /// Of the resting, those that clients unknown to the region declined.
    pub declined_by_strangers: usize,
    /// Given out though a host claimed it, as there was no other: not to be asked for again.
    pub last_resort: Option<u32>,
    pub free: usize,
    /// All that were ours at the attach.
    pub total: usize,
    pub strangers: usize,
    /// Probes on their way.
    pub probing: usize,
    /// None before then: the last one could not be sent, or answers mean nothing here.
    pub probe_after: Ms,
    /// Who answered for the last address in use, and for how many without an unused one between them.
    pub claimant: Option<Mac>,
    pub claims: u32,
}

impl Pool {
    /// What of it may be dealt at all.
    fn usable(&self) -> usize {
        self.total.saturating_sub(self.aside.length)
    }

    /// Free addresses that may be dealt.
    pub fn dealable(&self) -> usize {
        self.free - self.aside.length
    }

    /// Ended leases of clients that the region knows are wanted back. An offer to a stranger counts as free: it
    /// yields to a known client ([`Table::evict_stranger_offer`]).
    pub fn is_low(&self) -> bool {
        (self.dealable() + self.stranger_offers.length) * 4 < self.usable()
    }

    /// What strangers may hold: all but one address for each of the `known` clients, at least half.
    fn for_strangers(&self, known: usize) -> usize {
        self.usable() - known.min(self.usable() / 2)
    }

    /// What is left of it once every one of the `known` clients could have an address here.
    pub fn left_for_strangers(&self, known: usize) -> usize {
        let held = self.strangers.saturating_add(known);
        self.usable().saturating_sub(held)
    }

    /// Ended leases of strangers are wanted back: from three quarters of what they may hold on. At the whole of it
    /// somebody would go without an address for every few that come back.
    pub fn is_low_for_strangers(&self, known: usize) -> bool {
        self.dealable() * 4 < self.usable()
            || (self.usable() > 0 && self.strangers * 4 >= self.for_strangers(known) * 3)
    }

    /// Clients that the region does not know hold all they may.
    pub fn is_full_of_strangers(&self, known: usize) -> bool {
        self.strangers >= self.for_strangers(known)
    }

    /// Whether no more of it may rest for what hosts and clients say: half in all, a quarter by clients that the region
    /// does not know. Their word costs nothing, and is no reason to serve nobody.
    pub fn is_full_of_resting(&self, by_stranger: bool) -> bool {
        let half = (self.usable() / 2).max(1);
        let quarter = (self.usable() / 4).max(1);
        self.resting.length >= half || (by_stranger && self.declined_by_strangers >= quarter)
    }

    pub fn resting(&self) -> usize {
        self.resting.length
    }

    pub fn stocked(&self) -> usize {
        self.stock.addresses.len()
    }

    /// The list of that place; the stock is none.
    pub(super) fn list(&mut self, place: Place) -> Option<&mut List> {
        match place {
            Place::Queue => Some(&mut self.queue),
            Place::Aside => Some(&mut self.aside),
            Place::KnownOffers => Some(&mut self.known_offers),
            Place::StrangerOffers => Some(&mut self.stranger_offers),
            Place::Resting => Some(&mut self.resting),
            Place::Nowhere | Place::Stock => None,
        }
    }
}
