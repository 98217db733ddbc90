//! Shard events on their way to a region: gathered, sent in batches, the oldest dropped when none is taken.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shard::Event;

/// Events waiting; past it the oldest are dropped and counted.
const WAITING_MAX: usize = 8_192;
/// In one call.
pub(super) const BATCH_MAX: usize = 512;
/// A lone event waits this long for company.
const GATHER: Duration = Duration::from_millis(200);
/// After a call that failed.
const RETRY_AFTER: Duration = Duration::from_secs(2);
/// Calls of one batch before it is given up.
const TRIES_MAX: u32 = 3;
/// Each shard notices a strange DHCP server by itself; the rack tells of it once in this time.
const ROGUE_AGAIN: Duration = Duration::from_secs(590);
/// Strange servers remembered, the last ones told of.
const ROGUES_MAX: usize = 64;

#[derive(Default)]
pub(super) struct Events {
    waiting: VecDeque<Event>,
    /// The batch that was sent and is not answered.
    sent: Vec<Event>,
    tries: u32,
    due: Option<Instant>,
    rogues: VecDeque<(IpAddr, Instant)>,
    pub counters: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub reported: u64,
    pub dropped: u64,
}

impl Events {
    pub fn push(&mut self, event: Event, now: Instant) {
        if event.kind == dhcp::EventKind::RogueServer.name() && self.is_told(event.address, now) {
            return;
        }
        if self.waiting.len() >= WAITING_MAX {
            self.waiting.pop_front();
            self.counters.dropped += 1;
        }
        self.waiting.push_back(event);
        self.due.get_or_insert(now + GATHER);
    }

    /// Whether another shard told of this server a moment ago; it counts as told from now on.
    fn is_told(&mut self, server: IpAddr, now: Instant) -> bool {
        let lately = |at: Instant| now < at + ROGUE_AGAIN;
        self.rogues.retain(|(_, at)| lately(*at));
        let told = self.rogues.iter().any(|(other, _)| *other == server);
        if !told {
            self.rogues.truncate(ROGUES_MAX - 1);
            self.rogues.push_front((server, now));
        }
        told
    }

    /// When `take` may have something.
    pub fn due(&self) -> Option<Instant> {
        self.due.filter(|_| self.sent.is_empty())
    }

    /// The next batch; one at a time, answered by `finish`.
    pub fn take(&mut self, now: Instant) -> Option<Vec<Event>> {
        if !self.sent.is_empty() || self.due.is_none_or(|due| now < due) {
            return None;
        }
        let count = self.waiting.len().min(BATCH_MAX);
        self.sent = self.waiting.drain(..count).collect();
        self.due = None;
        (count > 0).then(|| self.sent.clone())
    }

    pub fn finish(&mut self, taken: bool, now: Instant) {
        self.tries += 1;
        if taken {
            self.counters.reported += self.sent.len() as u64;
        } else if self.tries < TRIES_MAX {
            for event in self.sent.drain(..).rev() {
                self.waiting.push_front(event);
            }
            while self.waiting.len() > WAITING_MAX {
                self.waiting.pop_front();
                self.counters.dropped += 1;
            }
            self.due = Some(now + RETRY_AFTER);
            return;
        } else {
            self.counters.dropped += self.sent.len() as u64;
        }
        self.tries = 0;
        self.sent.clear();
        if !self.waiting.is_empty() {
            self.due = Some(now + if taken { Duration::ZERO } else { RETRY_AFTER });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(n: u32) -> Event {
        let address = std::net::Ipv4Addr::from(n).into();
        Event {
            kind: "DHCP_ACK",
            mac: None,
            address,
            detail: shard::Detail::None,
            at: Instant::now(),
        }
    }

    #[test]
    fn batches_gather_and_are_tried_again() {
        let (mut events, now) = (Events::default(), Instant::now());
        events.push(event(1), now);
        assert!(events.take(now).is_none());
        let later = now + GATHER;
        assert_eq!(events.take(later).unwrap().len(), 1);
        events.push(event(2), later);
        assert!(events.take(later + GATHER).is_none(), "one batch at a time");
        events.finish(false, later);
        assert!(events.take(later).is_none());
        assert_eq!(events.take(later + RETRY_AFTER).unwrap().len(), 2);
        events.finish(true, later);
        assert_eq!((events.counters.reported, events.due()), (2, None));
    }

    #[test]
    fn all_shards_together_tell_of_a_strange_server_once() {
        let (mut events, now) = (Events::default(), Instant::now());
        let rogue = |n| Event {
            kind: "ROGUE_DHCP_SERVER",
            ..event(n)
        };
        for shard in 0..8 {
            events.push(rogue(1), now + Duration::from_millis(shard));
        }
        events.push(rogue(2), now);
        assert_eq!(events.waiting.len(), 2);
        events.push(rogue(1), now + Duration::from_secs(600));
        assert_eq!(events.waiting.len(), 3);
        for n in 0..1000 {
            events.push(rogue(n), now);
        }
        assert_eq!(events.rogues.len(), ROGUES_MAX);
    }

    #[test]
    fn nobody_listening_costs_the_oldest() {
        let (mut events, now) = (Events::default(), Instant::now());
        for n in 0..WAITING_MAX as u32 + 3 {
            events.push(event(n), now);
        }
        assert_eq!(events.counters.dropped, 3);
        for _ in 0..TRIES_MAX {
            let at = events.due().unwrap();
            assert_eq!(events.take(at).unwrap()[0].address, event(3).address);
            events.finish(false, at);
        }
        assert_eq!(events.counters.dropped, 3 + BATCH_MAX as u64);
    }
}
