//! How slow a client may be, with its request's body and with the answer it takes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

/// For the first octets, and what each KiB adds: 1 KiB/s, as the images' own rule is.
const GRACE: Duration = Duration::from_secs(20);
const BYTES_PER_SEC: u64 = 1024;
/// For a body, and for an answer, in all.
const LONGEST: Duration = Duration::from_secs(300);
/// For the rest of an answer that is too long to be gathered: a region's lane is held as long.
const STREAM: Duration = Duration::from_secs(60);

/// When a client that has moved so many octets must have moved more, from when it began.
pub fn allowance(moved: u64) -> Duration {
    (GRACE + Duration::from_secs(moved / BYTES_PER_SEC)).min(LONGEST)
}

/// The same of an answer. `streams`: its region waits for the client.
fn allowed(taken: u64, streams: bool) -> Duration {
    match streams {
        true => allowance(taken).min(STREAM),
        false => allowance(taken),
    }
}

/// What a client has taken of its answer.
#[derive(Debug, Default)]
pub struct Pace {
    begun: Mutex<Option<Instant>>,
    changed: Notify,
    taken: AtomicU64,
    streams: AtomicBool,
}

impl Pace {
    /// The answer is there, if it was not already. `streams`: not all of it, and the region waits for the client to take
    /// it.
    pub fn begin(&self, streams: bool) {
        let mut begun = self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        if begun.is_some() {
            return;
        }
        *begun = Some(Instant::now());
        self.streams.store(streams, Ordering::Relaxed);
        self.changed.notify_one();
    }

    pub fn took(&self, bytes: usize) {
        self.taken.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn end(&self) -> Option<Instant> {
        let begun = *self.begun.lock().unwrap_or_else(PoisonError::into_inner);
        let taken = self.taken.load(Ordering::Relaxed);
        let allowed = allowed(taken, self.streams.load(Ordering::Relaxed));
        begun.map(|begun| begun + allowed)
    }

    /// Returns when the client has been too slow.
    pub async fn lost(&self) {
        loop {
            match self.end() {
                Some(end) if end <= Instant::now() => return,
                Some(end) => sleep_until(end).await,
                None => self.changed.notified().await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn octets_buy_time_but_not_for_ever() {
        for (moved, secs) in [
            (0, 20),
            (1, 20),
            (1024, 21),
            (100 << 10, 120),
            (64 << 20, 300),
        ] {
            assert_eq!(allowance(moved), Duration::from_secs(secs), "{moved}");
        }
    }

    #[test]
    fn a_client_that_takes_an_octet_now_and_then_is_lost() {
        for (streams, each, lives_secs) in
            [(false, 1, 20), (false, 20_000, 300), (true, 1 << 20, 60)]
        {
            // So much every second.
            let lost = (1..).find(|secs| allowed(secs * each, streams).as_secs() <= *secs);
            assert_eq!(lost, Some(lives_secs), "{each}");
        }
    }
}
