//! Writes on their way to the region, and the ACKs that wait for them.
//!
//! An ACK is written when its REQUEST arrives; only its lease times are set when it leaves. Buffers are kept and
//! used again, so memory is bounded by the most writes ever waiting at once.

use std::net::Ipv4Addr;
use std::time::Duration;

use lease::VlanId;
use wire::dhcp4::{LeaseTimes, MESSAGE_BYTES_MAX};
use wire::ethernet::Mac;

use crate::clock::Ms;
use crate::destination::Destination;
use crate::outbox::Ticket;

/// One write that was handed out and not answered.
#[derive(Debug)]
pub(crate) struct Pending {
    /// The address it is about.
    pub slot: u32,
    /// When it was handed out: durations in its outcome count from here.
    pub since: Ms,
    pub kind: Kind,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Grant(Prepared),
    Reclaim,
}

/// An ACK, complete but for its lease times.
#[derive(Debug)]
pub(crate) struct Prepared {
    pub buffer: Box<[u8; MESSAGE_BYTES_MAX]>,
    pub length: usize,
    /// Where [`LeaseTimes::patch`] writes.
    pub times_at: usize,
    pub lease: Duration,
    pub vlan: VlanId,
    pub server: Ipv4Addr,
    pub destination: Destination,
    pub mac: Option<Mac>,
    pub address: Ipv4Addr,
}

impl Prepared {
    pub fn message(&mut self, times: LeaseTimes) -> &[u8] {
        times.patch(&mut self.buffer[..self.length], self.times_at);
        &self.buffer[..self.length]
    }
}

#[derive(Debug)]
struct Entry {
    /// +1 at every use, so that a late outcome finds nothing.
    generation: u32,
    pending: Option<Pending>,
}

#[derive(Debug, Default)]
pub(crate) struct PendingTable {
    entries: Vec<Entry>,
    free: Vec<u32>,
    #[expect(clippy::vec_box, reason = "they move to and fro without a copy")]
    buffers: Vec<Box<[u8; MESSAGE_BYTES_MAX]>>,
    max: usize,
    /// Tickets are counted from here on, so that an outcome for an engine that was names nothing in the one after it.
    first: u32,
}

impl PendingTable {
    pub fn new(max: usize, seed: u64) -> Self {
        // An index of all ones is kept for Ticket::UNAWAITED.
        Self {
            max: max.min(u32::MAX as usize - 1),
            first: seed as u32, // any half of it
            ..Self::default()
        }
    }

    pub fn is_full(&self) -> bool {
        self.free.is_empty() && self.entries.len() >= self.max
    }

    pub fn is_half_full(&self) -> bool {
        self.count() * 2 >= self.max
    }

    pub fn count(&self) -> usize {
        self.entries.len() - self.free.len()
    }

    /// A buffer for a [`Prepared`] ACK.
    pub fn buffer(&mut self) -> Box<[u8; MESSAGE_BYTES_MAX]> {
        self.buffers
            .pop()
            .unwrap_or_else(|| Box::new([0; MESSAGE_BYTES_MAX]))
    }

    pub fn recycle(&mut self, buffer: Box<[u8; MESSAGE_BYTES_MAX]>) {
        if self.buffers.len() < self.max {
            self.buffers.push(buffer);
        }
    }

    /// None when full.
    pub fn add(&mut self, pending: Pending) -> Option<(u32, Ticket)> {
        let index = match self.free.pop() {
            Some(index) => index,
            None if self.entries.len() < self.max => {
                self.entries.push(Entry {
                    generation: self.first,
                    pending: None,
                });
                (self.entries.len() - 1) as u32 // below max, which fits
            }
            None => return None,
        };
        let entry = &mut self.entries[index as usize];
        entry.generation = entry.generation.wrapping_add(1);
        entry.pending = Some(pending);
        Some((
            index,
            Ticket(u64::from(entry.generation) << 32 | u64::from(index)),
        ))
    }

    pub fn get_mut(&mut self, index: u32) -> Option<&mut Pending> {
        self.entries.get_mut(index as usize)?.pending.as_mut()
    }

    /// The entry of a ticket; None if it was taken, or belongs to the past.
    pub fn take(&mut self, ticket: Ticket) -> Option<(u32, Pending)> {
        let index = ticket.0 as u32; // the low half
        let entry = self.entries.get_mut(index as usize)?;
        if u64::from(entry.generation) != ticket.0 >> 32 {
            return None;
        }
        let pending = entry.pending.take()?;
        self.free.push(index);
        Some((index, pending))
    }

    /// Drops an entry whose outcome is no longer wanted.
    pub fn cancel(&mut self, index: u32) {
        if let Some(entry) = self.entries.get_mut(index as usize)
            && let Some(pending) = entry.pending.take()
        {
            self.free.push(index);
            self.reuse(pending);
        }
    }

    pub fn reuse(&mut self, pending: Pending) {
        if let Kind::Grant(prepared) = pending.kind {
            self.recycle(prepared.buffer);
        }
    }

    pub fn clear(&mut self) {
        for index in 0..self.entries.len() as u32 {
            self.cancel(index);
        }
    }

    /// The ticket of some entry handed out before `since`.
    pub fn older_than(&self, since: Ms) -> Option<Ticket> {
        self.entries.iter().enumerate().find_map(|(index, entry)| {
            let pending = entry.pending.as_ref()?;
            (pending.since < since)
                .then_some(Ticket(u64::from(entry.generation) << 32 | index as u64))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_used_ticket_names_nothing() {
        let mut table = PendingTable::new(2, 0);
        let reclaim = |slot| Pending {
            slot,
            since: Ms::PAST,
            kind: Kind::Reclaim,
        };
        let (_, first) = table.add(reclaim(1)).unwrap();
        let (second_index, second) = table.add(reclaim(2)).unwrap();
        assert!(table.add(reclaim(3)).is_none() && table.is_full());
        assert_eq!(table.take(first).map(|(_, pending)| pending.slot), Some(1));
        assert!(table.take(first).is_none());
        let (_, third) = table.add(reclaim(3)).unwrap();
        assert_ne!(first, third);
        assert!(table.take(first).is_none(), "same place, other generation");
        table.cancel(second_index);
        assert!(table.take(second).is_none());
        assert!(table.take(Ticket::UNAWAITED).is_none());
        table.clear();
        assert_eq!((table.count(), table.take(third).is_none()), (0, true));
    }

    /// A shard that begins anew uses the mailbox of the one that was.
    #[test]
    fn a_ticket_of_the_engine_before_names_nothing() {
        let reclaim = || Pending {
            slot: 1,
            since: Ms::PAST,
            kind: Kind::Reclaim,
        };
        let mut before = PendingTable::new(2, 7);
        let (_, ticket) = before.add(reclaim()).unwrap();
        let mut after = PendingTable::new(2, 0xdead_beef);
        after.add(reclaim()).unwrap();
        assert!(after.take(ticket).is_none());
    }
}
