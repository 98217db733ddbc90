//! Calls for machines that the feed did not bring: one call per machine however many shards ask, each bounded in time.
//!
//! Two lanes, so that questions about anybody do not keep a machine from its own answer: a question about the card that
//! the asker's address is bound to (there are no more of these than bindings), and all others, of which one address has
//! a share. Both lanes together leave the region room for other calls of this rack ([`CALLS_MAX`]).

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use shard::{BootAnswer, BootQuery};

/// Calls under way. A region takes 128 calls of a rack at a time (`control/link`): the rest is for leases and the like.
const OWN_MAX: usize = 64;
const STRANGERS_MAX: usize = 24;
const CALLS_MAX: usize = OWN_MAX + STRANGERS_MAX;
const _: () = assert!(CALLS_MAX < 96);
/// Waiting for a call to end.
const OWN_WAITING_MAX: usize = 1024;
const STRANGERS_WAITING_MAX: usize = 64;
/// Of one address, under way and waiting.
const STRANGERS_PER_ADDRESS: usize = 4;
/// What has waited so long has nobody who waits for it.
const WAIT_MAX: Duration = Duration::from_secs(2);
/// Askers of one call.
const ASKERS_MAX: usize = 64;

/// What tells two calls apart.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    pub mac: [u8; 6],
    pub arch: String,
    pub vlan: u32,
}

/// (shard, its ticket)
pub(super) type Asker = (usize, u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Lane {
    /// About the asker's own card.
    Own,
    Stranger,
}

/// A call to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Call {
    pub key: Key,
    pub query: BootQuery,
}

#[derive(Default)]
pub(super) struct Boots {
    askers: HashMap<Key, Asked>,
    own: Waiting,
    strangers: Waiting,
    /// Whose the strangers' calls are, under way and waiting.
    addresses: Vec<IpAddr>,
    pub counters: Counters,
}

struct Asked {
    by: Vec<Asker>,
    lane: Lane,
    address: IpAddr,
}

#[derive(Default)]
struct Waiting {
    under_way: usize,
    queue: VecDeque<(Instant, Call)>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub calls: u64,
    /// Joined a call that was under way.
    pub joined: u64,
    /// Had to wait for another call to end.
    pub queued: u64,
    /// Strangers and own, for want of room.
    pub refused: u64,
    pub unanswered: u64,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ask {
    /// Make the call, and report to `finish`.
    Call(Call),
    /// The answer will come.
    Later,
    /// Answer `Busy` now.
    Refused,
}

/// What is to be done when a call has ended.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Finished {
    /// Whoever waits for its answer.
    pub askers: Vec<Asker>,
    /// The call to be made next.
    pub next: Option<Call>,
    /// Whoever waited in vain meanwhile.
    pub late: Vec<Asker>,
}

impl Boots {
    pub fn ask(&mut self, call: Call, lane: Lane, asker: Asker, now: Instant) -> Ask {
        if let Some(asked) = self.askers.get_mut(&call.key) {
            if asked.by.len() >= ASKERS_MAX {
                self.counters.refused += 1;
                return Ask::Refused;
            }
            asked.by.push(asker);
            self.counters.joined += 1;
            return Ask::Later;
        }
        let address = call.query.address;
        let is_greedy = lane == Lane::Stranger && !self.takes_stranger(address);
        let (waiting, under_way_max, waiting_max) = match lane {
            Lane::Own => (&mut self.own, OWN_MAX, OWN_WAITING_MAX),
            Lane::Stranger => (&mut self.strangers, STRANGERS_MAX, STRANGERS_WAITING_MAX),
        };
        let goes = waiting.under_way < under_way_max;
        if is_greedy || (!goes && waiting.queue.len() >= waiting_max) {
            self.counters.refused += 1;
            return Ask::Refused;
        }
        if lane == Lane::Stranger {
            self.addresses.push(address);
        }
        let asked = Asked {
            by: vec![asker],
            lane,
            address,
        };
        self.askers.insert(call.key.clone(), asked);
        if goes {
            waiting.under_way += 1;
            self.counters.calls += 1;
            Ask::Call(call)
        } else {
            waiting.queue.push_back((now, call));
            self.counters.queued += 1;
            Ask::Later
        }
    }

    /// A shard that begins anew waits for nothing.
    pub fn forget(&mut self, shard: usize) {
        for asked in self.askers.values_mut() {
            asked.by.retain(|(asker, _)| *asker != shard);
        }
    }

    /// Whether a stranger's question would be taken: what is asked to find out whom it is about is work, too.
    pub fn takes_stranger(&self, address: IpAddr) -> bool {
        let held = self.addresses.iter().filter(|held| **held == address);
        held.count() < STRANGERS_PER_ADDRESS
            && self.addresses.len() < STRANGERS_MAX + STRANGERS_WAITING_MAX
    }

    /// A call has ended.
    pub fn finish(&mut self, key: &Key, answer: &BootAnswer, now: Instant) -> Finished {
        if matches!(answer, BootAnswer::Busy) {
            self.counters.unanswered += 1;
        }
        let mut finished = Finished::default();
        let Some(asked) = self.remove(key) else {
            return finished;
        };
        finished.askers = asked.by;
        let waiting = match asked.lane {
            Lane::Own => &mut self.own,
            Lane::Stranger => &mut self.strangers,
        };
        waiting.under_way -= 1;
        let mut late = Vec::new();
        while let Some((since, call)) = waiting.queue.pop_front() {
            if now < since + WAIT_MAX {
                waiting.under_way += 1;
                self.counters.calls += 1;
                finished.next = Some(call);
                break;
            }
            late.push(call.key);
        }
        for key in late {
            self.counters.unanswered += 1;
            finished
                .late
                .extend(self.remove(&key).map(|asked| asked.by).unwrap_or_default());
        }
        finished
    }

    fn remove(&mut self, key: &Key) -> Option<Asked> {
        let asked = self.askers.remove(key)?;
        if asked.lane == Lane::Stranger {
            let at = self
                .addresses
                .iter()
                .position(|held| *held == asked.address);
            at.map(|at| self.addresses.swap_remove(at));
        }
        Some(asked)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(mac: u16, address: u32) -> Call {
        let [high, low] = mac.to_be_bytes();
        let mac = [2, 0, 0, 0, high, low];
        Call {
            key: Key {
                mac,
                arch: String::new(),
                vlan: 1,
            },
            query: BootQuery {
                mac: Some(mac),
                arch: String::new(),
                address: std::net::Ipv4Addr::from(address).into(),
                vlan: 1,
            },
        }
    }

    #[test]
    fn askers_share_a_call() {
        let (mut boots, now) = (Boots::default(), Instant::now());
        let of = |mac| call(mac, 1);
        let made = boots.ask(of(1), Lane::Own, (0, 10), now);
        assert_eq!(made, Ask::Call(of(1)));
        assert_eq!(boots.ask(of(1), Lane::Stranger, (1, 20), now), Ask::Later);
        let finished = boots.finish(&of(1).key, &BootAnswer::Nothing, now);
        assert_eq!(finished.askers, [(0, 10), (1, 20)]);
        let again = boots.finish(&of(1).key, &BootAnswer::Nothing, now);
        assert_eq!(again, Finished::default());
        boots.ask(of(1), Lane::Own, (0, 0), now);
        for _ in 1..ASKERS_MAX {
            assert_eq!(boots.ask(of(1), Lane::Own, (0, 0), now), Ask::Later);
        }
        assert_eq!(boots.ask(of(1), Lane::Own, (0, 0), now), Ask::Refused);
    }

    #[test]
    fn one_address_that_asks_for_random_macs_has_a_share() {
        let (mut boots, now) = (Boots::default(), Instant::now());
        for mac in 0..1000 {
            let asked = boots.ask(call(mac, 9), Lane::Stranger, (0, 0), now);
            let refused = usize::from(mac) >= STRANGERS_PER_ADDRESS;
            assert_eq!(asked == Ask::Refused, refused, "{mac}");
        }
        let other = boots.ask(call(5000, 8), Lane::Stranger, (0, 0), now);
        assert!(matches!(other, Ask::Call(_)), "{other:?}");
        boots.finish(&call(0, 9).key, &BootAnswer::Nothing, now);
        let next = boots.ask(call(6000, 9), Lane::Stranger, (0, 0), now);
        assert!(matches!(next, Ask::Call(_)), "its share is free again");
    }

    #[test]
    fn own_cards_are_asked_for_however_many_strangers_there_are() {
        let (mut boots, now) = (Boots::default(), Instant::now());
        let count = |asked: &[Ask]| {
            let made = asked.iter().filter(|ask| matches!(ask, Ask::Call(_)));
            let later = asked.iter().filter(|ask| **ask == Ask::Later);
            (made.count(), later.count())
        };
        let strangers: Vec<Ask> = (0..5000u16)
            .map(|n| boots.ask(call(n, u32::from(n)), Lane::Stranger, (0, 0), now))
            .collect();
        assert_eq!(count(&strangers), (STRANGERS_MAX, STRANGERS_WAITING_MAX));
        let own: Vec<Ask> = (10_000..15_000u16)
            .map(|n| boots.ask(call(n, u32::from(n)), Lane::Own, (0, 0), now))
            .collect();
        assert_eq!(count(&own), (OWN_MAX, OWN_WAITING_MAX));
        assert_eq!(boots.addresses.len(), STRANGERS_MAX + STRANGERS_WAITING_MAX);
        // Those that wait are called in order, and not once nobody waits for them any more.
        let done = boots.finish(&call(10_000, 0).key, &BootAnswer::Busy, now);
        assert_eq!(done.next, Some(call(10_064, 10_064)));
        let done = boots.finish(&call(0, 0).key, &BootAnswer::Busy, now + WAIT_MAX);
        assert_eq!((done.next, done.late.len()), (None, STRANGERS_WAITING_MAX));
        assert_eq!(boots.addresses.len(), STRANGERS_MAX - 1);
    }
}
