//! Calls for machines that the feed did not bring: one call per machine however many shards ask, each bounded in time.

use std::collections::HashMap;
use std::sync::Arc;

/// Calls under way; more are answered "nothing boots there" at once.
const CALLS_MAX: usize = 256;
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

#[derive(Default)]
pub(super) struct Boots {
    calls: HashMap<Key, Vec<Asker>>,
    pub counters: Counters,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub calls: u64,
    /// Joined a call that was under way.
    pub joined: u64,
    pub refused: u64,
    pub unanswered: u64,
}

pub(super) enum Asked {
    /// Make the call, and report to `finish`.
    Call,
    /// The answer comes with an earlier one's.
    Joined,
    /// Answer `None` now.
    Refused,
}

impl Boots {
    pub fn ask(&mut self, key: Key, asker: Asker) -> Asked {
        if let Some(askers) = self.calls.get_mut(&key) {
            if askers.len() >= ASKERS_MAX {
                self.counters.refused += 1;
                return Asked::Refused;
            }
            askers.push(asker);
            self.counters.joined += 1;
            return Asked::Joined;
        }
        if self.calls.len() >= CALLS_MAX {
            self.counters.refused += 1;
            return Asked::Refused;
        }
        self.calls.insert(key, vec![asker]);
        self.counters.calls += 1;
        Asked::Call
    }

    /// A shard that begins anew waits for nothing.
    pub fn forget(&mut self, shard: usize) {
        for askers in self.calls.values_mut() {
            askers.retain(|(asker, _)| *asker != shard);
        }
    }

    /// Whoever waits for this call.
    pub fn finish(&mut self, key: &Key, machine: Option<&Arc<boot::Machine>>) -> Vec<Asker> {
        if machine.is_none() {
            self.counters.unanswered += 1;
        }
        self.calls.remove(key).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(last: u16) -> Key {
        let [high, low] = last.to_be_bytes();
        Key {
            mac: [2, 0, 0, 0, high, low],
            arch: String::new(),
            vlan: 1,
        }
    }

    #[test]
    fn askers_share_a_call_and_calls_are_bounded() {
        let mut boots = Boots::default();
        assert!(matches!(boots.ask(key(1), (0, 10)), Asked::Call));
        assert!(matches!(boots.ask(key(1), (1, 20)), Asked::Joined));
        assert_eq!(boots.finish(&key(1), None), [(0, 10), (1, 20)]);
        assert_eq!(boots.finish(&key(1), None), []);
        for n in 0..CALLS_MAX as u16 {
            assert!(matches!(boots.ask(key(n), (0, 0)), Asked::Call));
        }
        assert!(matches!(boots.ask(key(9999), (0, 0)), Asked::Refused));
        for _ in 1..ASKERS_MAX {
            assert!(matches!(boots.ask(key(0), (0, 0)), Asked::Joined));
        }
        assert!(matches!(boots.ask(key(0), (0, 0)), Asked::Refused));
    }
}
