//! The rack's clocks: CLOCK_BOOTTIME, which goes on while the host sleeps, beside `Instant` and the wall clock.

use std::time::{Duration, Instant, SystemTime};

use rustix::time::{ClockId, clock_gettime};

/// Less than this is no disagreement, whatever its share: reading two clocks takes time.
const SLACK: Duration = Duration::from_millis(100);

/// CLOCK_BOOTTIME.
pub fn boottime() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    )
}

/// One reading of both scales, to turn points of CLOCK_BOOTTIME into `Instant`s.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub boot: Duration,
    pub instant: Instant,
}

impl Now {
    pub fn read() -> Now {
        Now {
            boot: boottime(),
            instant: Instant::now(),
        }
    }

    /// The `Instant` of a point of CLOCK_BOOTTIME. `Instant` stands still while the host sleeps, so a future point is
    /// right only until then; after a sleep the clocks disagree, and everything is learnt anew.
    pub fn instant_of(self, boot: Duration) -> Instant {
        match boot.checked_sub(self.boot) {
            Some(ahead) => self.instant.checked_add(ahead).unwrap_or(self.instant),
            None => self
                .instant
                .checked_sub(self.boot - boot)
                .unwrap_or(self.instant),
        }
    }
}

/// Watches CLOCK_BOOTTIME and the wall clock against each other.
#[derive(Clone, Copy, Debug)]
pub struct Watch {
    boot: Duration,
    wall: SystemTime,
}

impl Watch {
    pub fn start(boot: Duration, wall: SystemTime) -> Watch {
        Watch { boot, wall }
    }

    /// Whether they disagree by over 1 % of the time since the last look that found them together.
    pub fn disagrees(&mut self, boot: Duration, wall: SystemTime) -> bool {
        let by_boot = boot.saturating_sub(self.boot);
        let apart = match wall.duration_since(self.wall) {
            Ok(by_wall) => by_wall.abs_diff(by_boot),
            Err(back) => back.duration() + by_boot,
        };
        *self = Watch { boot, wall };
        apart > (by_boot / 100).max(SLACK)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[test]
    fn points_of_boottime_become_instants() {
        let now = Now {
            boot: 100 * S,
            instant: Instant::now(),
        };
        assert_eq!(now.instant_of(103 * S), now.instant + 3 * S);
        assert_eq!(now.instant_of(99 * S), now.instant - S);
        assert!(boottime() > Duration::ZERO);
    }

    #[test]
    fn steps_and_drift_are_seen() {
        let wall = SystemTime::UNIX_EPOCH + 1_000_000 * S;
        let mut watch = Watch::start(50 * S, wall);
        assert!(!watch.disagrees(60 * S, wall + 10 * S + Duration::from_millis(90)));
        assert!(watch.disagrees(70 * S, wall + 25 * S), "a step forward");
        assert!(
            !watch.disagrees(80 * S, wall + 35 * S),
            "and from there on as before"
        );
        assert!(watch.disagrees(90 * S, wall), "a step back");
        assert!(watch.disagrees(1090 * S, wall + 1011 * S), "over 1 %");
    }
}
