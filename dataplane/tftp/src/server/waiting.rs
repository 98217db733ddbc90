//! Requests that wait for a file or a place, known machines' before strangers'.

use std::collections::VecDeque;
use std::time::Instant;

use wire::tftp::{Mode, Options};

use super::Server;
use crate::host::{Host, Peer, Ticket};

#[derive(Debug)]
pub(super) struct Pending {
    pub serial: u32,
    pub peer: Peer,
    pub name: Box<str>,
    pub mode: Mode,
    pub options: Options,
    pub mtu: Option<u16>,
    pub is_known: bool,
    pub deadline: Instant,
    /// In `ready`; otherwise parked with the host.
    pub queued: bool,
}

/// Tickets of requests in order, stale ones among them: known machines' and strangers' apart.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    pub known: VecDeque<Ticket>,
    pub strangers: VecDeque<Ticket>,
}

impl Lanes {
    pub fn of(&mut self, is_known: bool) -> &mut VecDeque<Ticket> {
        match is_known {
            true => &mut self.known,
            false => &mut self.strangers,
        }
    }

    fn both(&mut self) -> [&mut VecDeque<Ticket>; 2] {
        [&mut self.known, &mut self.strangers]
    }
}

impl Server {
    pub(super) fn make_pending_room(&mut self, peer: &Peer) {
        let held = &self.shares.of(peer.client.ip()).pending;
        if held.len() >= self.limits.pending_per_client.max(1) {
            let oldest = held[0];
            self.counters.shed += 1;
            self.forget(oldest);
        } else if self.pending.len() >= self.limits.pending_max {
            self.shed_oldest();
        }
    }

    /// The file of a parked request may be here now; it is looked up in the next `run`.
    pub fn retry(&mut self, ticket: Ticket) {
        if let Some(pending) = self.pending.get_mut(ticket.key as usize)
            && pending.serial == ticket.serial
            && !pending.queued
        {
            pending.queued = true;
            self.ready.of(pending.is_known).push_back(ticket);
        }
    }

    /// The next request that would find a place: while strangers hold some, a known machine's always does.
    pub(super) fn next_ready(&mut self, now: Instant, host: &mut impl Host) -> Option<Ticket> {
        let [known, strangers] = self.ready.both();
        if known.is_empty() && strangers.is_empty() {
            return None;
        }
        let has_room = self.confirmed < self.limits.transfers_max || self.end_stalled(now, host);
        let mut next = None;
        if has_room || self.confirmed_strangers > 0 {
            next = self.ready.known.pop_front();
        }
        if has_room {
            next = next.or_else(|| self.ready.strangers.pop_front());
        }
        next
    }

    pub(super) fn expire(&mut self, now: Instant) {
        for is_known in [true, false] {
            while let Some(ticket) = self.arrivals.of(is_known).front().copied() {
                match self.pending.get(ticket.key as usize) {
                    Some(pending) if pending.serial == ticket.serial => {
                        if pending.deadline > now {
                            break;
                        }
                        self.counters.expired += 1;
                        self.forget(ticket.key);
                    }
                    _ => {}
                }
                self.arrivals.of(is_known).pop_front();
            }
        }
        // Tickets of requests that were served at once pile up behind one that waits.
        let pending = &self.pending;
        let waits = |ticket: &Ticket| {
            pending
                .get(ticket.key as usize)
                .is_some_and(|waits| waits.serial == ticket.serial)
        };
        for queue in self.arrivals.both().into_iter().chain(self.ready.both()) {
            if queue.len() > 2 * self.limits.pending_max {
                queue.retain(waits);
            }
        }
    }

    /// Forgets the oldest stranger's request, or, if none waits, the oldest of all.
    fn shed_oldest(&mut self) {
        for is_known in [false, true] {
            while let Some(ticket) = self.arrivals.of(is_known).pop_front() {
                let waits = self.pending.get(ticket.key as usize);
                if waits.is_some_and(|pending| pending.serial == ticket.serial) {
                    self.counters.shed += 1;
                    self.forget(ticket.key);
                    return;
                }
            }
        }
    }

    pub(super) fn forget(&mut self, pending_key: u32) -> Option<Pending> {
        let pending = self.pending.try_remove(pending_key as usize)?;
        self.places.remove(&pending.peer);
        let client = pending.peer.client.ip();
        self.shares.drop_pending(client, pending_key);
        Some(pending)
    }
}
