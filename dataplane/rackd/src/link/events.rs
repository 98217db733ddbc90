//! Events on their way to a region: gathered, sent in batches, the oldest dropped when none is taken.
//!
//! Machines that the region knows have a lane of their own: strangers' events neither push theirs out nor go before
//! them. Each machine has a share of each kind, and all strangers together have one; what is left out is told as a
//! number. (A shard gives each address its share before that.)

use std::collections::{HashMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use shard::{Bucket, Buckets, Event, Rate};

/// Events waiting, of machines and of strangers; past it the oldest of the lane are dropped and counted.
const WAITING_MAX: [usize; 2] = [6_144, 2_048];
/// In one call.
pub(super) const BATCH_MAX: usize = 512;
/// Of these for strangers, however many machines wait.
const BATCH_OF_STRANGERS: usize = 64;
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
/// Of one machine and kind, and of all strangers and one kind.
const OF_MACHINE: Rate = Rate {
    burst: 128,
    every: Duration::from_secs(1),
};
const OF_STRANGERS: Rate = Rate {
    burst: 256,
    every: Duration::from_millis(50),
};
/// Machines and kinds with a bucket.
const MACHINES: usize = 8_192;
/// What was left out is told this long after the first of it.
const TOLD_AFTER: Duration = Duration::from_secs(10);
/// What an operator follows message by message, within a budget that shards keep.
const TRACE: &str = "DHCP_TRACE";

/// Whose events; indexes [`WAITING_MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    Machine = 0,
    Stranger = 1,
}

pub(super) struct Events {
    waiting: [VecDeque<Event>; 2],
    /// The batch that was sent and is not answered.
    sent: Vec<(Lane, Event)>,
    tries: u32,
    due: Option<Instant>,
    rogues: VecDeque<(IpAddr, Instant)>,
    of_machines: Buckets<([u8; 6], &'static str)>,
    /// By kind; kinds are few, and none is a sender's.
    of_strangers: HashMap<&'static str, Bucket>,
    left_out_due: Option<Instant>,
    pub counters: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub reported: u64,
    /// Found their lane full, or no region in time.
    pub dropped: u64,
    /// Of machines and strangers that have had their share.
    pub left_out: u64,
}

impl Default for Events {
    fn default() -> Self {
        Self {
            waiting: Default::default(),
            sent: Vec::new(),
            tries: 0,
            due: None,
            rogues: VecDeque::new(),
            of_machines: Buckets::new(MACHINES, OF_MACHINE),
            of_strangers: HashMap::new(),
            left_out_due: None,
            counters: Counters::default(),
        }
    }
}

impl Events {
    pub fn push(&mut self, event: Event, lane: Lane, now: Instant) {
        if event.kind == dhcp::EventKind::RogueServer.name() && self.is_told(event.address, now) {
            return;
        }
        if event.kind != TRACE && !self.has_share(&event, lane, now) {
            self.counters.left_out += 1;
            self.left_out_due.get_or_insert(now + TOLD_AFTER);
            return;
        }
        self.wait(event, lane, now);
    }

    fn wait(&mut self, event: Event, lane: Lane, now: Instant) {
        let waiting = &mut self.waiting[lane as usize];
        if waiting.len() >= WAITING_MAX[lane as usize] {
            waiting.pop_front();
            self.counters.dropped += 1;
        }
        waiting.push_back(event);
        self.due.get_or_insert(now + GATHER);
    }

    fn has_share(&mut self, event: &Event, lane: Lane, now: Instant) -> bool {
        match (lane, event.mac) {
            (Lane::Machine, Some(mac)) => self.of_machines.take((mac, event.kind), now),
            _ => self
                .of_strangers
                .entry(event.kind)
                .or_insert_with(|| Bucket::full(OF_STRANGERS, now))
                .take(OF_STRANGERS, now),
        }
    }

    /// How much of each was left out, as events of the same kind.
    fn tell_left_out(&mut self, now: Instant) {
        if self.left_out_due.is_none_or(|due| now < due) {
            return;
        }
        self.left_out_due = None;
        let mut told = Vec::new();
        self.of_machines
            .tell_left_out(|(mac, kind), count| told.push((Some(mac), kind, count)));
        for (kind, bucket) in &mut self.of_strangers {
            match bucket.left_out() {
                0 => {}
                count => told.push((None, *kind, count)),
            }
        }
        for (mac, kind, count) in told {
            let (lane, of) = match mac {
                Some(_) => (Lane::Machine, ""),
                None => (Lane::Stranger, ", of hosts that are no machines"),
            };
            let event = Event {
                kind,
                mac,
                address: Ipv4Addr::UNSPECIFIED.into(),
                detail: format!("{count} more of this kind{of}").into(),
                at: now,
            };
            self.wait(event, lane, now);
        }
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
        let due = [self.due, self.left_out_due].into_iter().flatten().min();
        due.filter(|_| self.sent.is_empty())
    }

    /// The next batch; one at a time, answered by `finish`.
    pub fn take(&mut self, now: Instant) -> Option<Vec<Event>> {
        if !self.sent.is_empty() {
            return None;
        }
        self.tell_left_out(now);
        if self.due.is_none_or(|due| now < due) {
            return None;
        }
        let [machines, strangers] = &mut self.waiting;
        let of_machines = machines
            .len()
            .min(BATCH_MAX - strangers.len().min(BATCH_OF_STRANGERS));
        let of_strangers = strangers.len().min(BATCH_MAX - of_machines);
        let machines = machines.drain(..of_machines).map(|e| (Lane::Machine, e));
        let strangers = strangers.drain(..of_strangers).map(|e| (Lane::Stranger, e));
        self.sent = machines.chain(strangers).collect();
        self.due = None;
        let batch: Vec<Event> = self.sent.iter().map(|(_, event)| event.clone()).collect();
        (!batch.is_empty()).then_some(batch)
    }

    pub fn finish(&mut self, taken: bool, now: Instant) {
        self.tries += 1;
        if taken {
            self.counters.reported += self.sent.len() as u64;
        } else if self.tries < TRIES_MAX {
            for (lane, event) in self.sent.drain(..).rev() {
                self.waiting[lane as usize].push_front(event);
            }
            for (waiting, max) in self.waiting.iter_mut().zip(WAITING_MAX) {
                while waiting.len() > max {
                    waiting.pop_front();
                    self.counters.dropped += 1;
                }
            }
            self.due = Some(now + RETRY_AFTER);
            return;
        } else {
            self.counters.dropped += self.sent.len() as u64;
        }
        self.tries = 0;
        self.sent.clear();
        if self.waiting.iter().any(|waiting| !waiting.is_empty()) {
            self.due = Some(now + if taken { Duration::ZERO } else { RETRY_AFTER });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mac(n: u32) -> [u8; 6] {
        let [a, b, c, d] = n.to_be_bytes();
        [2, 0, a, b, c, d]
    }

    fn event(n: u32) -> Event {
        let address = std::net::Ipv4Addr::from(n).into();
        Event {
            kind: "DHCP_ACK",
            mac: Some(mac(n)),
            address,
            detail: shard::Detail::None,
            at: Instant::now(),
        }
    }

    #[test]
    fn batches_gather_and_are_tried_again() {
        let (mut events, now) = (Events::default(), Instant::now());
        events.push(event(1), Lane::Machine, now);
        assert!(events.take(now).is_none());
        let later = now + GATHER;
        assert_eq!(events.take(later).unwrap().len(), 1);
        events.push(event(2), Lane::Machine, later);
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
            events.push(rogue(1), Lane::Stranger, now + Duration::from_millis(shard));
        }
        events.push(rogue(2), Lane::Stranger, now);
        assert_eq!(events.waiting[1].len(), 2);
        events.push(rogue(1), Lane::Stranger, now + Duration::from_secs(600));
        assert_eq!(events.waiting[1].len(), 3);
        for n in 0..1000 {
            events.push(rogue(n), Lane::Stranger, now);
        }
        assert_eq!(events.rogues.len(), ROGUES_MAX);
    }

    #[test]
    fn nobody_listening_costs_the_oldest() {
        let (mut events, now) = (Events::default(), Instant::now());
        for n in 0..WAITING_MAX[0] as u32 + 3 {
            events.push(event(n), Lane::Machine, now);
        }
        assert_eq!(events.counters.dropped, 3);
        for _ in 0..TRIES_MAX {
            let at = events.due().unwrap();
            assert_eq!(events.take(at).unwrap()[0].address, event(3).address);
            events.finish(false, at);
        }
        assert_eq!(events.counters.dropped, 3 + BATCH_MAX as u64);
    }

    /// Everything that waits, in the order of sending.
    fn all(events: &mut Events, now: Instant) -> Vec<Event> {
        let mut all = Vec::new();
        while let Some(batch) = events.take(now) {
            all.extend(batch);
            events.finish(true, now);
        }
        all
    }

    #[test]
    fn a_million_events_of_strangers_cost_no_machine_one_and_are_told_as_a_number() {
        let (mut events, now) = (Events::default(), Instant::now());
        let stranger = |n| Event {
            kind: "IMAGE_SERVED",
            mac: None,
            ..event(n)
        };
        for n in 0..1_000_000 {
            events.push(stranger(n), Lane::Stranger, now);
            if n % 1000 == 0 {
                events.push(event(n), Lane::Machine, now);
            }
        }
        let sent = all(&mut events, now + GATHER);
        let of_machines = sent.iter().filter(|event| event.mac.is_some()).count();
        assert_eq!((sent.len(), of_machines), (1000 + 256, 1000));
        assert_eq!(
            (events.counters.dropped, events.counters.left_out),
            (0, 999_744)
        );
        let at = events.due().unwrap();
        let told = all(&mut events, at + GATHER);
        assert_eq!(told.len(), 0, "gathered first");
        let told = all(&mut events, at + GATHER * 2);
        let [told] = &told[..] else {
            panic!("{told:?}")
        };
        assert_eq!(told.kind, "IMAGE_SERVED");
        assert!(
            told.detail
                .to_string()
                .starts_with("999744 more of this kind")
        );
        assert_eq!(events.due(), None);
    }

    #[test]
    fn one_machine_takes_no_others_share_and_no_kind_anothers() {
        let (mut events, now) = (Events::default(), Instant::now());
        for _ in 0..10_000 {
            events.push(event(1), Lane::Machine, now);
        }
        events.push(event(2), Lane::Machine, now);
        let other_kind = Event {
            kind: "DHCP_NAK",
            ..event(1)
        };
        events.push(other_kind, Lane::Machine, now);
        let sent = all(&mut events, now + GATHER);
        let of = |n, kind| {
            let is = |event: &&Event| event.mac == Some(mac(n)) && event.kind == kind;
            sent.iter().filter(is).count()
        };
        assert_eq!(
            [of(1, "DHCP_ACK"), of(2, "DHCP_ACK"), of(1, "DHCP_NAK")],
            [128, 1, 1]
        );
    }

    #[test]
    fn machines_go_first_and_strangers_are_not_starved() {
        let (mut events, now) = (Events::default(), Instant::now());
        for n in 0..200 {
            events.push(
                Event {
                    mac: None,
                    ..event(n)
                },
                Lane::Stranger,
                now,
            );
        }
        for n in 0..2000 {
            events.push(event(n), Lane::Machine, now);
        }
        let batch = events.take(now + GATHER).unwrap();
        assert!(batch[..448].iter().all(|event| event.mac.is_some()));
        assert!(batch[448..].iter().all(|event| event.mac.is_none()));
        assert_eq!(batch.len(), BATCH_MAX);
    }
}
