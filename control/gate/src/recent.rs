//! A map that remembers what was touched last, and no more than it may.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

/// At most so many entries; the one that was not touched for longest goes first.
pub struct Recent<K, V> {
    entries_max: usize,
    clock: u64,
    entries: HashMap<K, (u64, V)>,
    by_age: BTreeMap<u64, K>,
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    pub fn new(entries_max: usize) -> Self {
        Self {
            entries_max: entries_max.max(1),
            clock: 0,
            entries: HashMap::new(),
            by_age: BTreeMap::new(),
        }
    }

    /// The value, not touched.
    pub fn peek(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(_, value)| value)
    }

    /// The value of the key, made if there is none. Touches it.
    pub fn touch(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        self.clock += 1;
        let clock = self.clock;
        if let Some((stamp, _)) = self.entries.get_mut(key) {
            self.by_age.remove(stamp);
            *stamp = clock;
        } else {
            if self.entries.len() >= self.entries_max
                && let Some((_, oldest)) = self.by_age.pop_first()
            {
                self.entries.remove(&oldest);
            }
            self.entries.insert(key.clone(), (clock, make()));
        }
        self.by_age.insert(clock, key.clone());
        // It was put there above.
        &mut self.entries.get_mut(key).expect("an entry just made").1
    }

    pub fn remove(&mut self, key: &K) -> Option<V> {
        let (stamp, value) = self.entries.remove(key)?;
        self.by_age.remove(&stamp);
        Some(value)
    }

    pub fn len(&self) -> usize {
        self.entries.len()
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_recently_touched_goes() {
        let mut recent = Recent::new(2);
        *recent.touch(&"a", || 0) += 1;
        *recent.touch(&"b", || 0) += 1;
        *recent.touch(&"a", || 0) += 1;
        recent.touch(&"c", || 7);
        assert_eq!(recent.peek(&"a"), Some(&2));
        assert_eq!(recent.peek(&"b"), None);
        assert_eq!(recent.len(), 2);
        assert_eq!(recent.remove(&"c"), Some(7));
        assert_eq!(recent.remove(&"c"), None);
        recent.touch(&"d", || 1);
        assert_eq!(recent.peek(&"a"), Some(&2));
    }
}
