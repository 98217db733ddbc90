//! Log lines that others cause: one of a kind in a while, with how many were left out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

const EVERY: Duration = Duration::from_secs(10);

/// One for each place that logs.
pub struct Rarely(Mutex<State>);

struct State {
    last: Option<Instant>,
    left_out: u64,
}

impl Rarely {
    pub const fn new() -> Self {
        Self(Mutex::new(State {
            last: None,
            left_out: 0,
        }))
    }

    /// Whether it is time for a line again; how many there would have been since the last one.
    pub fn may(&self, now: Instant) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if state.last.is_some_and(|last| now < last + EVERY) {
            state.left_out += 1;
            return None;
        }
        state.last = Some(now);
        Some(std::mem::take(&mut state.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fifty_thousand_lines_are_two_and_a_number() {
        let (rarely, start) = (Rarely::new(), Instant::now());
        let lines: Vec<u64> = (0..50_000)
            .filter_map(|n| rarely.may(start + Duration::from_micros(n * 300)))
            .collect();
        assert_eq!(lines, [0, 33_333]);
    }
}
