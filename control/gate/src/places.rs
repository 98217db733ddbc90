//! Places of which there are only so many, each held by a source.
//!
//! A place is *open* until its holder has shown that it is worth one (a request that was found right, a certificate, a
//! whole body); then it is *firm*. Open places have a bound of their own, and when one is wanted and none is free, the
//! oldest open place is taken away: an asker that is quick always gets through, however many are slow. A source that
//! holds its share loses its own oldest open place, and only its own.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// How many; of connections, or of octets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bounds {
    pub total: u64,
    /// Of `total`, open ones.
    pub open: u64,
    /// Of one source.
    pub each: u64,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Full {
    /// The source holds its share.
    Source,
    /// Everything is held.
    All,
}

struct Entry<K> {
    source: K,
    weight: u64,
    /// Order of the open ones; none: firm.
    stamp: Option<u64>,
}

/// What one source holds.
#[derive(Default)]
struct Held {
    weight: u64,
    weight_open: u64,
    entries: usize,
    open: BTreeSet<(u64, u64)>,
}

/// The places and who holds them. Ids are never used again.
pub struct Places<K> {
    bounds: Bounds,
    clock: u64,
    held: u64,
    held_open: u64,
    entries: HashMap<u64, Entry<K>>,
    /// (stamp, id), the oldest first.
    open: BTreeSet<(u64, u64)>,
    sources: HashMap<K, Held>,
}

impl<K: Clone + Eq + Hash> Places<K> {
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            clock: 0,
            held: 0,
            held_open: 0,
            entries: HashMap::new(),
            open: BTreeSet::new(),
            sources: HashMap::new(),
        }
    }

    /// A new open place of this weight; also whose places were taken away for it.
    pub fn enter(&mut self, source: K, weight: u64) -> Result<(u64, Vec<u64>), Full> {
        self.clock += 1;
        let (id, stamp) = (self.clock, self.clock);
        let displaced = self.make_room(&source, weight, weight, None)?;
        self.held += weight;
        self.held_open += weight;
        self.open.insert((stamp, id));
        let held = self.sources.entry(source.clone()).or_default();
        held.weight += weight;
        held.weight_open += weight;
        held.entries += 1;
        held.open.insert((stamp, id));
        let entry = Entry {
            source,
            weight,
            stamp: Some(stamp),
        };
        self.entries.insert(id, entry);
        Ok((id, displaced))
    }

    /// Adds to a place; also whose places were taken away for it. A place that is gone grows no more.
    pub fn grow(&mut self, id: u64, weight: u64) -> Result<Vec<u64>, Full> {
        let Some(entry) = self.entries.get(&id) else {
            return Err(Full::All);
        };
        let (source, is_open) = (entry.source.clone(), entry.stamp.is_some());
        let weight_open = if is_open { weight } else { 0 };
        let displaced = self.make_room(&source, weight, weight_open, Some(id))?;
        self.held += weight;
        if is_open {
            self.held_open += weight;
        }
        if let Some(held) = self.sources.get_mut(&source) {
            held.weight += weight;
            held.weight_open += weight_open;
        }
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.weight += weight;
        }
        Ok(displaced)
    }

    /// The place is its holder's until it leaves.
    pub fn firm(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id)
            && let Some(stamp) = entry.stamp.take()
        {
            self.held_open -= entry.weight;
            self.open.remove(&(stamp, id));
            if let Some(held) = self.sources.get_mut(&entry.source) {
                held.weight_open -= entry.weight;
                held.open.remove(&(stamp, id));
            }
        }
    }

    /// The place is an open one again, or still, and the youngest.
    pub fn open(&mut self, id: u64) {
        self.firm(id);
        self.clock += 1;
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.stamp = Some(self.clock);
            self.held_open += entry.weight;
            self.open.insert((self.clock, id));
            if let Some(held) = self.sources.get_mut(&entry.source) {
                held.weight_open += entry.weight;
                held.open.insert((self.clock, id));
            }
        }
    }

    pub fn leave(&mut self, id: u64) {
        self.firm(id);
        let Some(entry) = self.entries.remove(&id) else {
            return;
        };
        self.held -= entry.weight;
        if let Some(held) = self.sources.get_mut(&entry.source) {
            held.weight -= entry.weight;
            held.entries -= 1;
            if held.entries == 0 {
                self.sources.remove(&entry.source);
            }
        }
    }

    /// In all; open ones; sources.
    pub fn held(&self) -> (u64, u64, usize) {
        (self.held, self.held_open, self.sources.len())
    }

    pub fn bounds(&self) -> Bounds {
        self.bounds
    }

    /// Takes open places away until `weight` fits, never that of `keep`; none at all when it cannot fit.
    fn make_room(
        &mut self,
        source: &K,
        weight: u64,
        weight_open: u64,
        keep: Option<u64>,
    ) -> Result<Vec<u64>, Full> {
        let Bounds { total, open, each } = self.bounds;
        let kept = keep
            .and_then(|id| self.entries.get(&id))
            .filter(|entry| entry.stamp.is_some())
            .map_or(0, |entry| entry.weight);
        let firm = |held: &Held| held.weight - held.weight_open;
        if self.sources.get(source).map_or(0, firm) + kept + weight > each {
            return Err(Full::Source);
        }
        if self.held - self.held_open + kept + weight > total || kept + weight_open > open {
            return Err(Full::All);
        }
        let mut displaced = Vec::new();
        loop {
            let own = self.sources.get(source);
            let oldest = if own.map_or(0, |held| held.weight) + weight > each {
                own.and_then(|held| oldest(&held.open, keep))
            } else if self.held_open + weight_open > open || self.held + weight > total {
                oldest(&self.open, keep)
            } else {
                return Ok(displaced);
            };
            // There is one: what cannot be taken away was counted above.
            let Some(id) = oldest else {
                return Ok(displaced);
            };
            self.leave(id);
            displaced.push(id);
        }
    }
}

fn oldest(open: &BTreeSet<(u64, u64)>, keep: Option<u64>) -> Option<u64> {
    let mut ids = open.iter().map(|(_, id)| *id);
    ids.find(|id| Some(*id) != keep)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(total: u64, open: u64, each: u64) -> Places<&'static str> {
        Places::new(Bounds { total, open, each })
    }

    #[test]
    fn the_oldest_open_place_goes_first_and_a_firm_one_never() {
        let mut places = places(3, 3, 3);
        let (a, _) = places.enter("a", 1).unwrap();
        let (b, _) = places.enter("b", 1).unwrap();
        let (c, _) = places.enter("c", 1).unwrap();
        places.firm(a);
        assert_eq!(places.enter("d", 1).unwrap().1, [b]);
        // Open again: the youngest of them.
        places.open(c);
        places.open(a);
        let (e, displaced) = places.enter("e", 1).unwrap();
        assert_eq!(displaced.len(), 1, "d went");
        assert!(![a, c].contains(&displaced[0]));
        for id in [a, c, e] {
            places.firm(id);
        }
        assert_eq!(places.enter("f", 1), Err(Full::All));
        places.leave(c);
        places.leave(c);
        assert!(places.enter("f", 1).unwrap().1.is_empty());
        assert_eq!(places.held().0, 3);
    }

    #[test]
    fn a_source_at_its_share_loses_its_own_places_only() {
        let mut places = places(8, 8, 2);
        let (other, _) = places.enter("other", 1).unwrap();
        let (first, _) = places.enter("many", 1).unwrap();
        let (second, _) = places.enter("many", 1).unwrap();
        assert_eq!(places.enter("many", 1).unwrap().1, [first]);
        places.firm(second);
        let (third, displaced) = places.enter("many", 1).unwrap();
        assert_eq!(displaced.len(), 1);
        places.firm(third);
        assert_eq!(places.enter("many", 1), Err(Full::Source));
        places.firm(other);
        places.leave(second);
        places.leave(third);
        places.leave(other);
        assert_eq!(places.held(), (0, 0, 0), "nothing of the gone is kept");
    }

    #[test]
    fn open_places_have_a_bound_of_their_own() {
        let mut places = places(4, 2, 4);
        let (a, _) = places.enter("a", 1).unwrap();
        let (b, _) = places.enter("b", 1).unwrap();
        assert_eq!(places.enter("c", 1).unwrap().1, [a]);
        places.firm(b);
        assert!(places.enter("d", 1).unwrap().1.is_empty());
    }

    #[test]
    fn octets_grow_and_what_cannot_fit_takes_nothing() {
        let mut places = places(100, 100, 60);
        let (slow, _) = places.enter("slow", 0).unwrap();
        assert_eq!(places.grow(slow, 50), Ok(vec![]));
        assert_eq!(places.grow(slow, 11), Err(Full::Source));
        let (quick, _) = places.enter("quick", 0).unwrap();
        assert_eq!(places.grow(quick, 60), Ok(vec![slow]));
        assert_eq!(places.grow(slow, 1), Err(Full::All), "it is gone");
        places.firm(quick);
        let (third, _) = places.enter("third", 0).unwrap();
        assert_eq!(places.grow(third, 41), Err(Full::All));
        assert_eq!(places.grow(third, 40), Ok(vec![]));
        places.leave(quick);
        places.leave(third);
        assert_eq!(places.held(), (0, 0, 0));
    }

    /// A flood from any number of sources, and one asker that needs its place for ten turns.
    #[test]
    fn a_quick_asker_gets_through_a_flood_of_slow_ones() {
        let mut places = Places::new(Bounds {
            total: 64,
            open: 32,
            each: 4,
        });
        for round in 0..1000_u32 {
            places.enter(round % 500, 1).unwrap();
        }
        let (quick, _) = places.enter(9999, 1).unwrap();
        for round in 0..10 {
            let (_, displaced) = places.enter(round, 1).unwrap();
            assert!(!displaced.contains(&quick), "round {round}");
        }
        places.firm(quick);
        for round in 0..1000 {
            assert!(!places.enter(round, 1).unwrap().1.contains(&quick));
        }
    }
}
