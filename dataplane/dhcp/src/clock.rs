//! Milliseconds on the engine's own scale: eight octets where `Instant` takes sixteen.

use std::time::{Duration, Instant};

/// A point in time. Rounded down, so an end is never believed later than it is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Ms(u64);

impl Ms {
    pub const NEVER: Self = Self(u64::MAX);
    pub const PAST: Self = Self(0);

    pub fn plus(self, length: Duration) -> Self {
        Self(
            self.0
                .saturating_add(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    pub fn minus(self, length: Duration) -> Self {
        Self(
            self.0
                .saturating_sub(u64::try_from(length.as_millis()).unwrap_or(u64::MAX)),
        )
    }

    pub fn micros(self) -> u64 {
        self.0.saturating_mul(1000)
    }

    /// What is left at `now`; zero once it has passed.
    pub fn left(self, now: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(now.0))
    }
}

/// Turns the caller's `Instant`s into [`Ms`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scale {
    base: Instant,
}

impl Scale {
    /// Where `base` lies on the scale: what happened up to 100 days before the engine started can be said.
    const OFFSET_MS: u64 = 100 * 86_400_000;

    pub fn new(base: Instant) -> Self {
        Self { base }
    }

    pub fn ms(self, at: Instant) -> Ms {
        let offset = match at.checked_duration_since(self.base) {
            Some(after) => Duration::from_millis(Self::OFFSET_MS) + after,
            None => Duration::from_millis(Self::OFFSET_MS).saturating_sub(self.base - at),
        };
        Ms(u64::try_from(offset.as_millis()).unwrap_or(u64::MAX))
    }

    /// None for [`Ms::NEVER`] and for what `Instant` cannot hold.
    pub fn instant(self, at: Ms) -> Option<Instant> {
        if at == Ms::NEVER {
            return None;
        }
        match at.0.checked_sub(Self::OFFSET_MS) {
            // One more, as `ms` rounds down: a deadline must not come back before it is due.
            Some(after) => self
                .base
                .checked_add(Duration::from_millis(after.checked_add(1)?)),
            None => Some(self.base),
        }
    }
}

/// 99 % of a duration that another clock counted: ours may run slow by that much.
pub(crate) fn trusted(length: Duration) -> Duration {
    length - length / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_the_base_and_back() {
        let base = Instant::now();
        let scale = Scale::new(base);
        let (before, after) = (base - Duration::from_secs(5), base + Duration::from_secs(7));
        assert_eq!(
            scale.ms(after).left(scale.ms(before)),
            Duration::from_secs(12)
        );
        assert_eq!(scale.ms(before).left(scale.ms(after)), Duration::ZERO);
        let due = scale.instant(scale.ms(after)).unwrap();
        assert!(due >= after && scale.ms(due) >= scale.ms(after));
        assert_eq!(scale.instant(Ms::NEVER), None);
        assert_eq!(
            trusted(Duration::from_secs(1200)),
            Duration::from_secs(1188)
        );
    }
}
