//! Who may try a secret now: a source that guessed wrong waits, longer each time; who was right before does not.
//!
//! Failures count for a source and an account together: nobody locks an account's owner out from elsewhere. Because an
//! asker chooses the account's name, each source also has a rate for failures under any name. An account's name is
//! kept as a hash.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::Source;
use crate::bucket::{Buckets, Rate};
use crate::recent::Recent;

/// How patient it is.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// Failures of one source and account that cost no waiting.
    pub free: u32,
    /// The first wait; each further failure doubles it.
    pub wait: Duration,
    pub wait_max: Duration,
    /// Failures of one source, whatever the accounts.
    pub rate: Rate,
    /// How long a success counts as one.
    pub good: Duration,
}

/// What a try gets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// This source was right about this account not long ago.
    Known,
    Stranger,
    /// Not before this time has passed.
    Wait(Duration),
}

#[derive(Clone, Copy)]
struct Failed {
    count: u32,
    until: Instant,
}

type Key = (Source, u64);

pub struct Guesses {
    patience: Patience,
    hasher: RandomState,
    failed: Recent<Key, Failed>,
    good: Recent<Key, Instant>,
    sources: Buckets<Source>,
}

impl Guesses {
    /// `remembered_max`: of each kind of memory.
    pub fn new(patience: Patience, remembered_max: usize) -> Self {
        Self {
            patience,
            hasher: RandomState::new(),
            failed: Recent::new(remembered_max),
            good: Recent::new(remembered_max),
            sources: Buckets::new(patience.rate, remembered_max),
        }
    }

    fn key(&self, source: &Source, account: &str) -> Key {
        (source.clone(), self.hasher.hash_one(account))
    }

    pub fn may_try(&self, source: &Source, account: &str, now: Instant) -> Verdict {
        let key = self.key(source, account);
        if let Some(failed) = self.failed.peek(&key)
            && failed.until > now
        {
            return Verdict::Wait(failed.until - now);
        }
        let is_good = |at: &Instant| now.saturating_duration_since(*at) < self.patience.good;
        if self.good.peek(&key).is_some_and(is_good) {
            return Verdict::Known;
        }
        if !self.sources.has(source, now) {
            return Verdict::Wait(self.patience.rate.every);
        }
        Verdict::Stranger
    }

    pub fn succeeded(&mut self, source: &Source, account: &str, now: Instant) {
        let key = self.key(source, account);
        self.failed.remove(&key);
        *self.good.touch(&key, || now) = now;
    }

    pub fn failed(&mut self, source: &Source, account: &str, now: Instant) {
        let key = self.key(source, account);
        self.sources.take(source, now);
        let Patience {
            free,
            wait,
            wait_max,
            ..
        } = self.patience;
        let start = Failed {
            count: 0,
            until: now,
        };
        let failed = self.failed.touch(&key, || start);
        // After a long rest it starts over.
        if now.saturating_duration_since(failed.until) > wait_max {
            *failed = start;
        }
        failed.count = failed.count.saturating_add(1);
        failed.until = match failed.count.checked_sub(free + 1) {
            None => now,
            Some(doublings) => now + wait.saturating_mul(1 << doublings.min(20)).min(wait_max),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn guesses() -> (Guesses, Instant) {
        let patience = Patience {
            free: 2,
            wait: SECOND,
            wait_max: 60 * SECOND,
            rate: Rate {
                burst: 10,
                every: 30 * SECOND,
            },
            good: 3600 * SECOND,
        };
        (Guesses::new(patience, 100), Instant::now())
    }

    fn host(last: u8) -> Source {
        Source::host([10, 0, 0, last].into())
    }

    #[test]
    fn each_wrong_guess_waits_longer_and_only_there() {
        let (mut guesses, start) = guesses();
        let mut now = start;
        let mut waits = Vec::new();
        for _ in 0..7 {
            guesses.failed(&host(1), "ada", now);
            let wait = match guesses.may_try(&host(1), "ada", now) {
                Verdict::Wait(wait) => wait,
                _ => Duration::ZERO,
            };
            waits.push(wait.as_secs());
            now += wait;
        }
        assert_eq!(waits, [0, 0, 1, 2, 4, 8, 16]);
        assert_eq!(guesses.may_try(&host(1), "ada", now), Verdict::Stranger);
        guesses.failed(&host(1), "ada", now);
        // The owner elsewhere, and another account from here, do not wait.
        assert_eq!(guesses.may_try(&host(2), "ada", now), Verdict::Stranger);
        assert_eq!(guesses.may_try(&host(1), "bob", now), Verdict::Stranger);
    }

    #[test]
    fn names_made_up_share_the_rate_of_their_source() {
        let (mut guesses, now) = guesses();
        for name in 0..10 {
            let name = name.to_string();
            assert_eq!(guesses.may_try(&host(1), &name, now), Verdict::Stranger);
            guesses.failed(&host(1), &name, now);
        }
        assert_eq!(
            guesses.may_try(&host(1), "another", now),
            Verdict::Wait(30 * SECOND)
        );
        assert_eq!(guesses.may_try(&host(2), "another", now), Verdict::Stranger);
        let later = now + 31 * SECOND;
        assert_eq!(guesses.may_try(&host(1), "more", later), Verdict::Stranger);
    }

    #[test]
    fn who_was_right_goes_on_while_others_guess_from_the_same_host() {
        let (mut guesses, now) = guesses();
        guesses.succeeded(&host(1), "ada", now);
        for name in 0..20 {
            guesses.failed(&host(1), &name.to_string(), now);
        }
        assert_eq!(guesses.may_try(&host(1), "ada", now), Verdict::Known);
        for _ in 0..3 {
            guesses.failed(&host(1), "ada", now);
        }
        assert_eq!(
            guesses.may_try(&host(1), "ada", now),
            Verdict::Wait(SECOND),
            "but its own wrong guesses count"
        );
        let much_later = now + 7200 * SECOND;
        assert_eq!(
            guesses.may_try(&host(1), "ada", much_later),
            Verdict::Stranger
        );
    }

    #[test]
    fn a_flood_of_names_stays_within_the_memory() {
        let (mut guesses, now) = guesses();
        for name in 0..10_000 {
            guesses.failed(&host(1), &name.to_string(), now);
        }
        assert_eq!(guesses.failed.len(), 100);
    }
}
