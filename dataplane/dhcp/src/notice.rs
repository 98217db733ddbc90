//! What is worth an event once in ten minutes and no oftener: DHCP servers that nobody told us of, hosts that speak as
//! others, relays that nobody vouches for.
//!
//! A table is small and gives a young entry up for nobody, so that made-up names cost the event log a few lines and no
//! more; and one host may bring in a few only, so that it cannot fill the table with names and have the real one go
//! untold.

use std::time::Duration;

use wire::ethernet::Mac;

use crate::clock::Ms;

/// An event about one of them at most so often.
const AGAIN: Duration = Duration::from_secs(600);
/// Known at one time, and of them brought in by one host.
const NOTICES_MAX: usize = 32;
const NOTICES_PER_HOST_MAX: usize = 4;

pub(crate) struct Notices<K> {
    known: Vec<Notice<K>>,
}

struct Notice<K> {
    key: K,
    /// Who brought it in, where that is known.
    by: Option<Mac>,
    told: Ms,
}

impl<K: PartialEq> Notices<K> {
    pub fn new() -> Self {
        Self {
            known: Vec::with_capacity(NOTICES_MAX),
        }
    }

    /// True if that is worth an event. `by`: the host whose message said so.
    pub fn notice(&mut self, key: K, by: Option<Mac>, now: Ms) -> bool {
        let is_due = |told: Ms| told.plus(AGAIN) <= now;
        if let Some(known) = self.known.iter_mut().find(|known| known.key == key) {
            let due = is_due(known.told);
            if due {
                known.told = now;
            }
            return due;
        }
        let of_host = |known: &&Notice<K>| known.by == by && !is_due(known.told);
        if by.is_some() && self.known.iter().filter(of_host).count() >= NOTICES_PER_HOST_MAX {
            return false;
        }
        let new = Notice { key, by, told: now };
        if self.known.len() < NOTICES_MAX {
            self.known.push(new);
            return true;
        }
        match self.known.iter_mut().find(|known| is_due(known.told)) {
            Some(old) => *old = new,
            None => return false,
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_is_told_once_in_ten_minutes_and_few_of_them() {
        let mut notices = Notices::new();
        let at = |secs: u64| Ms::PAST.plus(Duration::from_secs(10_000 + secs));
        let host = |number: u32| Mac([2, 0, 0, 0, (number >> 8) as u8, number as u8]);
        let by = |number: u32| Some(host(number));
        assert!(notices.notice((1, 1), by(1), at(0)));
        assert!(!notices.notice((1, 1), by(1), at(599)));
        assert!(notices.notice((2, 1), by(1), at(599)), "another VLAN's");
        assert!(notices.notice((1, 1), by(1), at(600)));
        let told = (0..10_000).filter(|n| notices.notice((3, *n), by(*n), at(601)));
        assert_eq!(told.count(), NOTICES_MAX - 2);
        assert!(
            notices.notice((3, 20_000), by(2), at(1300)),
            "the old make room"
        );
        assert_eq!(notices.known.len(), NOTICES_MAX);
    }

    #[test]
    fn one_host_with_many_names_leaves_room_for_the_next() {
        let mut notices = Notices::new();
        let now = Ms::PAST.plus(Duration::from_secs(10_000));
        let (liar, honest) = (Mac([2; 6]), Mac([4; 6]));
        let told = (0..1000).filter(|n| notices.notice(*n, Some(liar), now));
        assert_eq!(told.count(), NOTICES_PER_HOST_MAX);
        assert!(notices.notice(5000, Some(honest), now));
    }
}
