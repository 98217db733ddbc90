//! Token buckets by source, in memory that does not grow: what each source may take of something that all share.
//!
//! Sources are many and choose their own names, so the table is one of four places to a row: a source that is not in its
//! row displaces the one that was heard of longest ago. That one begins anew when it comes again, so the buckets alone
//! bound each source, and never all of them together: what all share needs a limit of its own.

use std::hash::{BuildHasher, Hash};
use std::time::{Duration, Instant};

use foldhash::quality::RandomState;

const PLACES_OF_A_ROW: usize = 4;

/// `burst` at once, and one more each `every`.
#[derive(Clone, Copy, Debug)]
pub struct Rate {
    pub burst: u32,
    pub every: Duration,
}

/// One source's tokens, and what it was refused.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    tokens: u32,
    filled: Instant,
    left_out: u64,
}

impl Bucket {
    pub fn full(rate: Rate, now: Instant) -> Self {
        Self {
            tokens: rate.burst,
            filled: now,
            left_out: 0,
        }
    }

    /// Whether there is one more; counted if not.
    pub fn take(&mut self, rate: Rate, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.filled);
        let more = since.as_micros() / rate.every.as_micros().max(1);
        let more = u32::try_from(more).unwrap_or(u32::MAX);
        let tokens = self.tokens.saturating_add(more);
        if tokens >= rate.burst {
            (self.tokens, self.filled) = (rate.burst, now);
        } else {
            (self.tokens, self.filled) = (tokens, self.filled + rate.every * more);
        }
        match self.tokens.checked_sub(1) {
            Some(tokens) => self.tokens = tokens,
            None => self.left_out += 1,
        }
        // Nothing was taken exactly when it was counted.
        tokens > 0
    }

    /// What was refused since it was last asked for.
    pub fn left_out(&mut self) -> u64 {
        std::mem::take(&mut self.left_out)
    }
}

/// A bucket for each source.
pub struct Buckets<K> {
    rate: Rate,
    /// Rows of [`PLACES_OF_A_ROW`].
    places: Box<[Option<Place<K>>]>,
    hasher: RandomState,
    refused: bool,
    /// Refused of sources that were displaced before that was told.
    pub forgotten: u64,
}

#[derive(Clone, Copy)]
struct Place<K> {
    key: K,
    heard: Instant,
    bucket: Bucket,
}

impl<K: Copy + Eq + Hash> Buckets<K> {
    /// For so many sources, at least one row.
    pub fn new(sources: usize, rate: Rate) -> Self {
        let rows = sources.div_ceil(PLACES_OF_A_ROW).max(1);
        Self {
            rate,
            places: (0..rows * PLACES_OF_A_ROW).map(|_| None).collect(),
            hasher: RandomState::default(),
            refused: false,
            forgotten: 0,
        }
    }

    /// Whether `key` may have one more; counted if not.
    pub fn take(&mut self, key: K, now: Instant) -> bool {
        let rate = self.rate;
        let place = self.place(key, now);
        place.heard = now;
        let may = place.bucket.take(rate, now);
        self.refused |= !may;
        may
    }

    fn place(&mut self, key: K, now: Instant) -> &mut Place<K> {
        let rows = self.places.len() / PLACES_OF_A_ROW;
        let row = (self.hasher.hash_one(key) % rows as u64) as usize; // below `rows`
        let row = &mut self.places[row * PLACES_OF_A_ROW..][..PLACES_OF_A_ROW];
        let own = row
            .iter()
            .position(|place| place.as_ref().is_some_and(|p| p.key == key));
        let at = own.unwrap_or_else(|| {
            // An empty place is older than any.
            let heard = |at: &usize| row[*at].as_ref().map(|place| place.heard);
            (0..row.len()).min_by_key(heard).unwrap_or(0)
        });
        if own.is_none() {
            let new = Place {
                key,
                heard: now,
                bucket: Bucket::full(self.rate, now),
            };
            if let Some(old) = row[at].replace(new) {
                self.forgotten += old.bucket.left_out;
            }
        }
        row[at].get_or_insert_with(|| Place {
            key,
            heard: now,
            bucket: Bucket::full(self.rate, now),
        })
    }

    /// Tells what each source was refused since this was last called.
    pub fn tell_left_out(&mut self, mut tell: impl FnMut(K, u64)) {
        if !std::mem::take(&mut self.refused) {
            return;
        }
        for place in self.places.iter_mut().flatten() {
            match place.bucket.left_out() {
                0 => {}
                count => tell(place.key, count),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate {
        burst: 3,
        every: Duration::from_secs(2),
    };

    #[test]
    fn a_source_has_its_burst_and_then_its_rate_and_what_is_refused_is_counted() {
        let (mut buckets, start) = (Buckets::new(4, RATE), Instant::now());
        let mut take = |key: u8, secs: u64| buckets.take(key, start + Duration::from_secs(secs));
        assert_eq!([0; 5].map(|_| take(1, 0)), [true, true, true, false, false]);
        assert!(take(2, 0), "another source has its own");
        assert!(!take(1, 1));
        assert!(take(1, 2) && !take(1, 3), "one each two seconds");
        assert!(take(1, 4), "and no time is lost in between");
        assert_eq!([0; 4].map(|_| take(1, 1000)), [true, true, true, false]);
        let mut told = Vec::new();
        buckets.tell_left_out(|key, count| told.push((key, count)));
        assert_eq!(told, [(1, 5)]);
        buckets.tell_left_out(|key, _| panic!("{key} twice"));
    }

    #[test]
    fn any_number_of_sources_takes_no_more_memory_and_displaces_the_longest_silent() {
        let (mut buckets, start) = (Buckets::new(4, RATE), Instant::now());
        for _ in 0..10 {
            buckets.take(0u32, start);
        }
        for key in 1..100_000 {
            assert!(buckets.take(key, start + Duration::from_millis(1)));
        }
        assert_eq!((buckets.places.len(), buckets.forgotten), (4, 7));
        // One that goes on is not displaced by those that come once.
        let mut may = 0;
        for key in 0..10_000u64 {
            let now = start + Duration::from_secs(1) + Duration::from_nanos(key);
            may += u32::from(buckets.take(7, now));
            buckets.take(1_000_000 + key as u32, now);
        }
        assert_eq!(may, 3);
    }
}
