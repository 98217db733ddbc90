//! Lists of addresses that run through the slots themselves: no memory of their own, any slot leaves in O(1).

use super::Slot;

/// No slot, no record.
pub(crate) const NONE: u32 = u32::MAX;

/// Which list of its pool a slot stands in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Place {
    #[default]
    Nowhere,
    /// Free, the longest free first.
    Queue,
    /// Free, and nobody answered an ARP probe for it; see [`super::Stock`].
    Stock,
    /// Free, but nobody's: reserved, excluded, the rack's or the gateway's.
    Aside,
    /// Offered to a client that the region knows, the first to run out first.
    KnownOffers,
    /// Offered to any other.
    StrangerOffers,
    /// Declined, quarantined or claimed, the first to rest first.
    Resting,
}

/// One list. Its links stand in [`Slot::next`] and [`Slot::previous`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct List {
    pub head: u32,
    pub tail: u32,
    pub length: usize,
}

impl Default for List {
    fn default() -> Self {
        Self {
            head: NONE,
            tail: NONE,
            length: 0,
        }
    }
}

impl List {
    pub fn push_back(&mut self, slots: &mut [Slot], index: u32) {
        let slot = &mut slots[index as usize];
        (slot.previous, slot.next) = (self.tail, NONE);
        match slots.get_mut(self.tail as usize) {
            Some(last) => last.next = index,
            None => self.head = index,
        }
        self.tail = index;
        self.length += 1;
    }

    /// The slot must stand in this list.
    pub fn remove(&mut self, slots: &mut [Slot], index: u32) {
        let Slot { previous, next, .. } = slots[index as usize];
        match slots.get_mut(previous as usize) {
            Some(slot) => slot.next = next,
            None => self.head = next,
        }
        match slots.get_mut(next as usize) {
            Some(slot) => slot.previous = previous,
            None => self.tail = previous,
        }
        self.length -= 1;
    }
}
