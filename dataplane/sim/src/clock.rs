//! Clocks that are wrong: one that runs fast or slow (a rack's, a client's), one that is set (the database's).
//!
//! True time is the simulation's own, from 0.

use std::time::Duration;

/// Counts up, at a rate of its own.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// True time of the last change, and what the clock showed then.
    since: Duration,
    shown: Duration,
    /// Parts per million that it is fast.
    fast: i64,
}

const MILLION: i128 = 1_000_000;

impl Clock {
    pub fn new(shown: Duration, fast: i64) -> Self {
        Self {
            since: Duration::ZERO,
            shown,
            fast,
        }
    }

    pub fn read(&self, now: Duration) -> Duration {
        self.shown
            + scaled(
                now.saturating_sub(self.since),
                MILLION + i128::from(self.fast),
                MILLION,
            )
    }

    /// When it shows this; now, if that is past.
    pub fn when(&self, shows: Duration, now: Duration) -> Duration {
        let ahead = shows.saturating_sub(self.shown);
        let at = self.since + scaled(ahead, MILLION, MILLION + i128::from(self.fast));
        // Rounded up: at that time it does show it.
        (at + Duration::from_micros(1)).max(now)
    }

    pub fn set_rate(&mut self, now: Duration, fast: i64) {
        (self.shown, self.since, self.fast) = (self.read(now), now, fast);
    }
}

fn scaled(length: Duration, by: i128, of: i128) -> Duration {
    let nanos = length.as_nanos() as i128 * by / of;
    Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fast_clock_shows_more_and_shows_what_it_was_asked_for() {
        let mut clock = Clock::new(Duration::from_secs(50), 10_000);
        let at = Duration::from_secs(100);
        assert_eq!(clock.read(at), Duration::from_secs(151));
        clock.set_rate(at, -10_000);
        assert_eq!(clock.read(2 * at), Duration::from_secs(250));
        for nanos in [0, 1, 999, 8_000_000_001, 900_000_000_000] {
            let shows = Duration::from_secs(151) + Duration::from_nanos(nanos);
            let when = clock.when(shows, at);
            assert!(clock.read(when) >= shows && when >= at);
        }
    }
}
