//! Places that many want, and a share of them for each source, so that no source takes what all need.
//!
//! Whoever holds a place is known by its source and an id of the caller's. When there is no place for a newcomer the
//! rules below say who goes in its stead; the caller ends that one and only then lets the newcomer in.
//!
//! | the newcomer's source | the places | [`Manner::Yields`]              | [`Manner::Holds`]         |
//! |-----------------------|------------|---------------------------------|---------------------------|
//! | has its share         |            | its own oldest goes             | refused                   |
//! | has less              | taken      | the oldest of the source with the most goes; if none has two more than the newcomer's, the oldest of all | the same; if none has two more, refused |
//! | has less              | free       | in                              | in                        |
//!
//! How many addresses it has is the sender's own choice, so where nobody has too much standing decides: a machine that
//! the region knows takes the place of the oldest stranger, and no stranger takes a known machine's while there is
//! another's to take.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Whose a place is. An IPv4 address is one source; of IPv6 a network of 64 bits is, which one host may fill. Where the
/// network shows the card behind addresses, the card is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source(u128);

impl Source {
    /// However many addresses it has.
    pub fn card(mac: [u8; 6]) -> Self {
        // No address begins so: of IPv4 the upper half is 0, of IPv6 the lower.
        let [a, b, c, d, e, f] = mac;
        Self(1 << 64 | u128::from(u64::from_be_bytes([1, 0, a, b, c, d, e, f])))
    }
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self(address.to_ipv6_mapped().to_bits()),
            IpAddr::V6(address) => Self(address.to_bits() >> 64 << 64),
        }
    }
}

/// What the network says of a newcomer beside its address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// The address was given to a card of a machine that the region knows.
    Known,
    /// Any host may have taken it.
    Stranger,
}

/// Whether somebody who has a place goes before a newcomer of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Manner {
    /// Nothing was shown yet or nothing is under way: the oldest goes.
    Yields,
    /// Work is under way, which goes before what wants to begin.
    Holds,
}

/// What there is for a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    Free,
    /// In the stead of this one.
    Instead(u32),
    None,
}

/// A place that is held; given back with [`Shares::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "a place is left with Shares::leave"]
pub struct Place {
    source: Source,
    age: u64,
}

#[derive(Debug)]
pub struct Shares {
    places_max: usize,
    share_max: usize,
    manner: Manner,
    /// The id of whoever came as the n-th.
    by_age: BTreeMap<u64, u32>,
    /// Those of them that are strangers.
    strangers: BTreeMap<u64, u32>,
    by_source: BTreeSet<(Source, u64)>,
    counts: BTreeMap<Source, usize>,
    heaviest: BTreeSet<(usize, Source)>,
    next: u64,
}

impl Shares {
    /// At least one place, and at least one for each source.
    pub fn new(places_max: usize, share_max: usize, manner: Manner) -> Self {
        Self {
            places_max: places_max.max(1),
            share_max: share_max.max(1),
            manner,
            by_age: BTreeMap::new(),
            strangers: BTreeMap::new(),
            by_source: BTreeSet::new(),
            counts: BTreeMap::new(),
            heaviest: BTreeSet::new(),
            next: 0,
        }
    }

    pub fn count(&self) -> usize {
        self.by_age.len()
    }

    pub fn count_of(&self, source: Source) -> usize {
        self.counts.get(&source).copied().unwrap_or(0)
    }

    pub fn room(&self, source: Source, standing: Standing) -> Room {
        let own = self.count_of(source);
        let yields = self.manner == Manner::Yields;
        let instead = if own >= self.share_max {
            yields.then(|| self.oldest_of(source)).flatten()
        } else if self.count() < self.places_max {
            return Room::Free;
        } else {
            let heaviest = self.heaviest.last();
            match heaviest.filter(|(count, _)| *count > own + 1) {
                Some((_, heaviest)) => self.oldest_of(*heaviest),
                None if yields => self.oldest_stranger().or_else(|| self.oldest()),
                None if standing == Standing::Known => self.oldest_stranger(),
                None => None,
            }
        };
        instead.map_or(Room::None, Room::Instead)
    }

    fn oldest(&self) -> Option<u32> {
        self.by_age.values().next().copied()
    }

    fn oldest_stranger(&self) -> Option<u32> {
        self.strangers.values().next().copied()
    }

    fn oldest_of(&self, source: Source) -> Option<u32> {
        let (_, age) = self.by_source.range((source, 0)..).next()?;
        self.by_age.get(age).copied()
    }

    /// Takes a place, which [`Self::room`] has said to be there.
    pub fn enter(&mut self, source: Source, standing: Standing, id: u32) -> Place {
        let age = self.next;
        self.next += 1;
        self.by_age.insert(age, id);
        if standing == Standing::Stranger {
            self.strangers.insert(age, id);
        }
        self.by_source.insert((source, age));
        self.recount(source, |count| count + 1);
        Place { source, age }
    }

    pub fn leave(&mut self, place: Place) {
        if self.by_age.remove(&place.age).is_some() {
            self.strangers.remove(&place.age);
            self.by_source.remove(&(place.source, place.age));
            self.recount(place.source, |count| count.saturating_sub(1));
        }
    }

    fn recount(&mut self, source: Source, change: impl Fn(usize) -> usize) {
        let before = self.count_of(source);
        self.heaviest.remove(&(before, source));
        match change(before) {
            0 => drop(self.counts.remove(&source)),
            count => {
                self.counts.insert(source, count);
                self.heaviest.insert((count, source));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(last: u8) -> Source {
        IpAddr::from([10, 0, 0, last]).into()
    }

    /// Lets a stranger in as a caller does; who went for it.
    fn come(shares: &mut Shares, places: &mut Vec<(u32, Place)>, from: u8, id: u32) -> Room {
        come_as(Standing::Stranger, shares, places, from, id)
    }

    fn come_as(
        standing: Standing,
        shares: &mut Shares,
        places: &mut Vec<(u32, Place)>,
        from: u8,
        id: u32,
    ) -> Room {
        let room = shares.room(source(from), standing);
        if let Room::Instead(victim) = room {
            let at = places.iter().position(|(id, _)| *id == victim).unwrap();
            shares.leave(places.remove(at).1);
        }
        if room != Room::None {
            places.push((id, shares.enter(source(from), standing, id)));
        }
        room
    }

    #[test]
    fn a_source_is_an_address_or_a_network_of_ipv6() {
        let of = |text: &str| Source::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of("::ffff:10.0.0.1"), of("10.0.0.1"));
        assert_ne!(of("10.0.0.2"), of("10.0.0.1"));
        assert_eq!(of("fd00::1"), of("fd00::9:8:7:6"));
        assert_ne!(of("fd00:0:0:1::1"), of("fd00::1"));
        assert_eq!(
            Source::card([2, 0, 0, 0, 0, 9]),
            Source::card([2, 0, 0, 0, 0, 9])
        );
        for address in ["0.0.0.9", "::9", "0:0:0:1::", "::"] {
            assert_ne!(Source::card([0, 0, 0, 0, 0, 9]), of(address));
            assert_ne!(Source::card([0; 6]), of(address));
        }
    }

    #[test]
    fn who_yields_loses_its_own_oldest_then_the_heaviest_sources_then_the_oldest_of_all() {
        let mut shares = Shares::new(5, 3, Manner::Yields);
        let mut places = Vec::new();
        for id in 0..3 {
            assert_eq!(come(&mut shares, &mut places, 1, id), Room::Free);
        }
        assert_eq!(come(&mut shares, &mut places, 1, 3), Room::Instead(0));
        assert_eq!(come(&mut shares, &mut places, 2, 4), Room::Free);
        assert_eq!(come(&mut shares, &mut places, 3, 5), Room::Free);
        // Full: of 1, which has three.
        assert_eq!(come(&mut shares, &mut places, 4, 6), Room::Instead(1));
        assert_eq!(come(&mut shares, &mut places, 5, 7), Room::Instead(2));
        // Everybody has one: many sources displace the oldest, whoever that is.
        assert_eq!(come(&mut shares, &mut places, 6, 8), Room::Instead(3));
        assert_eq!(come(&mut shares, &mut places, 7, 9), Room::Instead(4));
        assert_eq!(shares.count(), 5);
    }

    #[test]
    fn who_holds_goes_before_newcomers_but_not_with_many_before_one() {
        let mut shares = Shares::new(4, 3, Manner::Holds);
        let mut places = Vec::new();
        for id in 0..3 {
            assert_eq!(come(&mut shares, &mut places, 1, id), Room::Free);
        }
        assert_eq!(come(&mut shares, &mut places, 1, 3), Room::None);
        assert_eq!(come(&mut shares, &mut places, 2, 4), Room::Free);
        assert_eq!(come(&mut shares, &mut places, 3, 5), Room::Instead(0));
        // Two and one: nobody gains by an exchange with who has one already.
        assert_eq!(come(&mut shares, &mut places, 3, 6), Room::None);
        assert_eq!(come(&mut shares, &mut places, 4, 7), Room::Instead(1));
        assert_eq!(come(&mut shares, &mut places, 5, 8), Room::None);
    }

    /// One host with as many addresses as there are places: it chooses its addresses, but not its standing.
    #[test]
    fn a_known_machine_goes_before_a_stranger_of_many_addresses() {
        use Standing::{Known, Stranger};
        for manner in [Manner::Holds, Manner::Yields] {
            let mut shares = Shares::new(4, 2, manner);
            let mut places = Vec::new();
            for id in 0..4 {
                come_as(Stranger, &mut shares, &mut places, id as u8, id);
            }
            for id in 4..8 {
                let room = come_as(Known, &mut shares, &mut places, id as u8, id);
                assert_eq!(room, Room::Instead(id - 4), "{manner:?}");
            }
            // Known machines alone are left: they are told to wait, or go by age, as ever.
            let (holds, yields) = (Room::None, Room::Instead(4));
            let room = shares.room(source(9), Known);
            assert_eq!(
                room,
                if manner == Manner::Holds {
                    holds
                } else {
                    yields
                }
            );
            assert_eq!(shares.room(source(9), Stranger), room);
        }
        let mut shares = Shares::new(2, 2, Manner::Yields);
        let mut places = Vec::new();
        come_as(Known, &mut shares, &mut places, 1, 1);
        come_as(Stranger, &mut shares, &mut places, 2, 2);
        let room = shares.room(source(3), Stranger);
        assert_eq!(
            room,
            Room::Instead(2),
            "the stranger goes, though it came later"
        );
    }

    #[test]
    fn what_is_left_is_forgotten() {
        let mut shares = Shares::new(9, 9, Manner::Holds);
        let places: Vec<Place> = (0..9)
            .map(|id| shares.enter(source(id as u8 % 3), Standing::Stranger, id))
            .collect();
        for place in places {
            shares.leave(place);
            shares.leave(place);
        }
        assert_eq!(shares.count(), 0);
        assert!(shares.counts.is_empty() && shares.heaviest.is_empty());
        assert!(shares.by_source.is_empty() && shares.strangers.is_empty());
    }
}
