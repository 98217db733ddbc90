//! How much one client, one port and all strangers together may ask for. Pure: time comes in, memory is fixed.
//!
//! | limit                       | key                         | drop                          |
//! |-----------------------------|-----------------------------|-------------------------------|
//! | messages of a client        | Ethernet source; relay, port and hardware address; IP source and hardware address | [`crate::Drop::RateLimited`]  |
//! | messages beyond that        | all of a shard together     | the same                      |
//! | messages of a port          | relay and its circuit id    | [`crate::Drop::CircuitLimited`] |
//! | addresses of a port         | the same                    | [`crate::Drop::CircuitFull`]  |
//! | addresses it declines       | of both                     | [`crate::Drop::DeclineLimited`] |
//!
//! The tables have a fixed number of places and are keyed by a seeded hash: whoever sends many names only makes the
//! table forget whom it does not limit. A forgotten name starts with a full bucket, so no flood makes a limit tighter
//! for somebody else. Ports are the relay's word (option 82, RFC 3046), never the client's.
//!
//! Each shard counts for itself. All messages of a client are one shard's; a port's clients may be several shards',
//! and its limits then hold for each of them.

use std::hash::{BuildHasher, Hash};
use std::time::Duration;

use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;

use crate::clock::Ms;

/// A token bucket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Messages at once.
    pub burst: u32,
    /// And on and on; 0: no limit.
    pub per_sec: u32,
}

impl Rate {
    pub const UNLIMITED: Self = Self {
        burst: 0,
        per_sec: 0,
    };
}

/// Everything that grows stops here; each limit has its counter in [`crate::Drop`] or [`crate::Sent`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Addresses of all blocks, other shards' included.
    pub addresses_max: usize,
    /// OFFERs held at one time.
    pub offers_max: usize,
    /// Writes waiting for their outcome. Strangers' take half of them at most.
    pub pending_max: usize,
    /// Of one client.
    pub mac_rate: Rate,
    /// Of all clients together, beyond their own rates.
    pub excess_rate: Rate,
    /// Of one port of a relay (option 82).
    pub circuit_rate: Rate,
    /// Addresses held by the clients of one port; 0: no limit. A client with a reservation is not refused.
    pub leases_per_circuit_max: u32,
    /// Free addresses of each range that nobody answered an ARP probe for, kept ready; 0: no probes.
    pub probe_stock: usize,
}

impl Default for Limits {
    /// About 80 MiB when all are met.
    ///
    /// A client's rate stops loops, not clients: firmware, its loader, the installer's kernel and the system ask by
    /// four client ids with two messages each, and the most eager of them repeats four times a second; a load
    /// generator that shares 2,000 MACs at 10,000 exchanges a second sends ten messages of each. 20/s costs a shard
    /// 0.02 % of its time for each client that runs wild. Beyond their rates all of a shard's clients get 500/s together,
    /// which costs half a per cent: a host that forges a machine's frames as fast as that silences nobody.
    ///
    /// Ports have no limit: many relays name the VLAN, not the port, so that thousands of machines come by one
    /// circuit id.
    fn default() -> Self {
        Self {
            addresses_max: 1 << 19,
            offers_max: 1 << 16,
            pending_max: 16_384,
            mac_rate: Rate {
                burst: 64,
                per_sec: 20,
            },
            excess_rate: Rate {
                burst: 500,
                per_sec: 500,
            },
            circuit_rate: Rate::UNLIMITED,
            leases_per_circuit_max: 0,
            probe_stock: 0,
        }
    }
}

/// Names that share a line of a table; the least limited gives way.
const WAYS: usize = 8;

fn hasher(seed: u64) -> SeedableRandomState {
    SeedableRandomState::with_seed(seed, SharedSeed::global_fixed())
}

// -------------------------------------------------------------------- rates

/// Token buckets of many names, each one number: when it would be full again (the virtual scheduling of the generic
/// cell rate algorithm, ITU-T I.371).
pub(crate) struct Buckets {
    lines: Box<[[Bucket; WAYS]]>,
    hasher: SeedableRandomState,
    /// Between two messages, and how far ahead of time a bucket may be.
    interval_us: u64,
    ahead_us: u64,
}

#[derive(Clone, Copy, Default)]
struct Bucket {
    name: u64,
    full_at_us: u64,
}

impl Buckets {
    /// `names` is rounded up to a power of two; nothing is kept where there is no limit.
    pub fn new(rate: Rate, names: usize, seed: u64) -> Self {
        let names = if rate.per_sec == 0 { 0 } else { names };
        let interval = Duration::from_secs(1) / rate.per_sec.max(1);
        Self::every(interval, rate.burst, names, seed)
    }

    /// `burst` at once, and one more in each `interval`.
    pub fn every(interval: Duration, burst: u32, names: usize, seed: u64) -> Self {
        let lines = match names {
            0 => 0,
            _ => names.div_ceil(WAYS).next_power_of_two(),
        };
        let interval_us = interval.as_micros() as u64; // seconds to minutes
        Self {
            lines: vec![[Bucket::default(); WAYS]; lines].into(),
            hasher: hasher(seed),
            interval_us,
            ahead_us: interval_us * u64::from(burst.max(1)),
        }
    }

    /// Takes one token; false if there is none.
    pub fn take(&mut self, name: impl Hash, now: Ms) -> bool {
        if self.lines.is_empty() {
            return true;
        }
        let name = self.hasher.hash_one(name);
        let now_us = now.micros();
        let at = (name >> 32) as usize & (self.lines.len() - 1);
        let line = &mut self.lines[at];
        let place = line.iter().position(|bucket| bucket.name == name);
        let place = place.unwrap_or_else(|| {
            // The fullest: forgetting it costs nobody anything.
            let fullest = (0..WAYS).min_by_key(|place| line[*place].full_at_us);
            let place = fullest.unwrap_or_default();
            line[place] = Bucket {
                name,
                full_at_us: 0,
            };
            place
        });
        let bucket = &mut line[place];
        let full_at_us = bucket.full_at_us.max(now_us) + self.interval_us;
        if full_at_us > now_us + self.ahead_us {
            return false;
        }
        bucket.full_at_us = full_at_us;
        true
    }
}

// -------------------------------------------------------------------- addresses of a port

/// How many addresses the clients of each port hold. Ports that hold none take no place.
pub(crate) struct Circuits {
    lines: Box<[[Circuit; WAYS]]>,
    hasher: SeedableRandomState,
    max: u32,
    /// Ports that found no place: their clients are not counted.
    pub uncounted: u64,
}

#[derive(Clone, Copy, Default)]
struct Circuit {
    hash: u64,
    /// 0: the place is free.
    held: u32,
}

/// Ports that hold addresses at one time.
const CIRCUITS: usize = 1 << 14;

impl Circuits {
    pub fn new(max: u32, seed: u64) -> Self {
        let lines = if max == 0 { 0 } else { CIRCUITS / WAYS };
        Self {
            lines: vec![[Circuit::default(); WAYS]; lines].into(),
            hasher: hasher(seed),
            max,
            uncounted: 0,
        }
    }

    pub fn is_counting(&self) -> bool {
        self.max > 0
    }

    pub fn clear(&mut self) {
        self.lines.fill([Circuit::default(); WAYS]);
    }

    /// What a port is known by here.
    pub fn hash(&self, name: impl Hash) -> u64 {
        self.hasher.hash_one(name)
    }

    pub fn is_full(&self, hash: u64) -> bool {
        let line = self.lines.get(self.line(hash));
        let found =
            line.and_then(|line| line.iter().find(|port| port.held > 0 && port.hash == hash));
        found.is_some_and(|port| port.held >= self.max)
    }

    /// One more address. The place is to be given back to [`Self::leave`].
    pub fn enter(&mut self, hash: u64) -> Option<u32> {
        let at = self.line(hash);
        let line = self.lines.get_mut(at)?;
        let own = line
            .iter()
            .position(|port| port.held > 0 && port.hash == hash);
        let Some(way) = own.or_else(|| line.iter().position(|port| port.held == 0)) else {
            self.uncounted += 1;
            return None;
        };
        line[way].hash = hash;
        line[way].held += 1;
        Some((at * WAYS + way) as u32) // below CIRCUITS
    }

    pub fn leave(&mut self, place: u32) {
        let (at, way) = (place as usize / WAYS, place as usize % WAYS);
        if let Some(line) = self.lines.get_mut(at) {
            line[way].held = line[way].held.saturating_sub(1);
        }
    }

    pub fn is(&self, place: u32, hash: u64) -> bool {
        let (at, way) = (place as usize / WAYS, place as usize % WAYS);
        self.lines
            .get(at)
            .is_some_and(|line| line[way].hash == hash)
    }

    fn line(&self, hash: u64) -> usize {
        (hash >> 32) as usize & self.lines.len().saturating_sub(1)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(ms: u64) -> Ms {
        Ms::PAST.plus(Duration::from_millis(1_000_000 + ms))
    }

    #[test]
    fn a_bucket_gives_its_burst_and_then_its_rate() {
        let rate = Rate {
            burst: 10,
            per_sec: 4,
        };
        let mut buckets = Buckets::new(rate, 64, 7);
        let mut taken = |from: u64, messages: u64, every_ms: u64| {
            (0..messages)
                .filter(|number| buckets.take("wild", at(from + number * every_ms)))
                .count()
        };
        assert_eq!(taken(0, 50, 0), 10);
        assert_eq!(taken(10_000, 1000, 10), 10 + 39, "ten seconds of 100/s");
        assert_eq!(taken(60_000, 100, 250), 100, "within its rate for ever");
        assert!(buckets.take("tame", at(0)), "a bucket each");
        let mut none = Buckets::new(Rate::UNLIMITED, 64, 7);
        assert!((0..10_000).all(|_| none.take(1, at(0))));
    }

    #[test]
    fn a_flood_of_names_limits_nobody_else_and_forgets_no_culprit() {
        let rate = Rate {
            burst: 2,
            per_sec: 1,
        };
        let mut buckets = Buckets::new(rate, 64, 7);
        for _ in 0..10 {
            buckets.take("wild", at(0));
        }
        for name in 0..100_000u32 {
            assert!(buckets.take(name, at(1)), "{name}: its first message");
        }
        assert!(!buckets.take("wild", at(2)));
    }

    #[test]
    fn a_port_is_full_until_one_leaves() {
        let mut circuits = Circuits::new(2, 7);
        let port = circuits.hash("ge-0/0/1");
        let (first, second) = (circuits.enter(port), circuits.enter(port));
        assert!(circuits.is_full(port) && first == second);
        assert!(!circuits.is_full(circuits.hash("ge-0/0/2")));
        circuits.leave(first.unwrap());
        assert!(!circuits.is_full(port));
        // More ports than places: those are not counted, and nothing grows.
        for name in 0..100_000u32 {
            let hash = circuits.hash(name);
            circuits.enter(hash);
        }
        assert!(circuits.uncounted > 80_000);
        circuits.clear();
        assert!(!circuits.is_full(port));
        let mut off = Circuits::new(0, 7);
        assert!(off.enter(port).is_none() && !off.is_counting());
    }
}
