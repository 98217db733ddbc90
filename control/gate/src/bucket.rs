//! How often something may happen, for each of many sources.

use std::hash::Hash;
use std::time::{Duration, Instant};

use crate::recent::Recent;

/// A token bucket's terms: `burst` at once, then one every `every`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub burst: u32,
    pub every: Duration,
}

/// One bucket, as the time at which it will be full again.
#[derive(Clone, Copy)]
struct Bucket {
    full_at: Instant,
}

impl Bucket {
    fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + rate.every;
        let fits = full_at.saturating_duration_since(now) <= rate.every * rate.burst;
        if fits {
            self.full_at = full_at;
        }
        fits
    }
}

/// A bucket per source; the sources not seen for longest are forgotten when there are too many.
pub struct Buckets<K> {
    rate: Rate,
    recent: Recent<K, Bucket>,
}

impl<K: Clone + Eq + Hash> Buckets<K> {
    pub fn new(rate: Rate, sources_max: usize) -> Self {
        Self {
            rate,
            recent: Recent::new(sources_max),
        }
    }

    /// Whether it may happen once more now.
    pub fn take(&mut self, key: &K, now: Instant) -> bool {
        let rate = self.rate;
        self.recent
            .touch(key, || Bucket { full_at: now })
            .take(rate, now)
    }

    /// Whether it could happen now; takes nothing.
    pub fn has(&self, key: &K, now: Instant) -> bool {
        self.recent
            .peek(key)
            .is_none_or(|bucket| bucket.clone().take(self.rate, now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_pace_for_each() {
        let rate = Rate {
            burst: 3,
            every: Duration::from_secs(2),
        };
        let (mut buckets, start) = (Buckets::new(rate, 10), Instant::now());
        let mut take = |key, secs| buckets.take(&key, start + Duration::from_secs(secs));
        assert_eq!([0; 4].map(|at| take("a", at)), [true, true, true, false]);
        assert!(take("b", 0), "another's bucket is full");
        assert!(!take("a", 1));
        assert!(take("a", 2));
        assert!(!take("a", 2));
        assert_eq!([60; 4].map(|at| take("a", at)), [true, true, true, false]);
        let at = |secs| start + Duration::from_secs(secs);
        assert!(!buckets.has(&"a", at(60)));
        assert!(buckets.has(&"a", at(62)) && buckets.has(&"a", at(62)));
    }
}
