//! Clients that a peer should answer, and how often they have asked.
//!
//! Of a fixed size, in sets of [`WAYS`]. Where a set is full the source with the most in it gives way, so that whoever floods it
//! makes those wait for the region's word that the peer is dead who come the same way, and nobody else.

use std::hash::BuildHasher;
use std::time::Duration;

use ::lease::Client;
use foldhash::quality::SeedableRandomState;

use crate::clock::Ms;
use crate::counters::{Counters, Sent};

/// The client's second repeat is its third message.
const MESSAGES_UNTIL_ANSWERED: u8 = 3;
/// Copies that come closer together are one message: two relays, a bridge's loop, firmware that sends in bursts.
const REPEAT_APART: Duration = Duration::from_millis(250);
/// A client that was silent this long begins anew. RFC 2131 §4.1 lets it leave 64 s and some between two DISCOVERs; one may be
/// lost.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(150);
/// Waiting clients that are remembered: 8,192 in sets of eight.
const SETS: usize = 1_024;
const WAYS: usize = 8;

pub(super) struct Waiting {
    /// Empty until the first one.
    places: Vec<Waiter>,
    state: SeedableRandomState,
}

#[derive(Clone, Copy)]
struct Waiter {
    /// 0: free.
    client: u64,
    /// By which way it came ([`super::Engine::source`]).
    source: u64,
    messages: u8,
    last: Ms,
}

impl Waiter {
    const FREE: Self = Self {
        client: 0,
        source: 0,
        messages: 0,
        last: Ms::PAST,
    };

    fn is_fresh(&self, now: Ms) -> bool {
        self.client != 0 && self.last.plus(FORGOTTEN_AFTER) > now
    }
}

impl Waiting {
    pub fn new(state: SeedableRandomState) -> Self {
        Self {
            places: Vec::new(),
            state,
        }
    }

    fn set_of(&mut self, client: &Client) -> (u64, &mut [Waiter]) {
        if self.places.is_empty() {
            self.places = vec![Waiter::FREE; SETS * WAYS];
        }
        let hash = self.state.hash_one(client) | 1;
        let set = (hash >> 32) as usize % SETS;
        (hash, &mut self.places[set * WAYS..][..WAYS])
    }

    /// Counts a message, and says whether its client has waited long enough for a peer.
    pub fn is_due(
        &mut self,
        client: &Client,
        source: u64,
        now: Ms,
        counters: &mut Counters,
    ) -> bool {
        let (hash, set) = self.set_of(client);
        let known = set.iter().position(|waiter| waiter.client == hash);
        let at = known.unwrap_or_else(|| place_for(source, set, now));
        let waiter = &mut set[at];
        if waiter.client != hash || !waiter.is_fresh(now) {
            if waiter.client != hash && waiter.is_fresh(now) {
                counters.count(Sent::WaiterForgotten);
            }
            *waiter = Waiter {
                client: hash,
                source,
                messages: 1,
                last: now,
            };
            return false;
        }
        if waiter.last.plus(REPEAT_APART) <= now {
            waiter.messages = waiter.messages.saturating_add(1);
            waiter.last = now;
        }
        waiter.messages >= MESSAGES_UNTIL_ANSWERED
    }

    pub fn forget(&mut self, client: &Client) {
        if self.places.is_empty() {
            return;
        }
        let (hash, set) = self.set_of(client);
        for waiter in set.iter_mut().filter(|waiter| waiter.client == hash) {
            *waiter = Waiter::FREE;
        }
    }
}

/// A free place; else the oldest of the source that has two more than the newcomer's; else the newcomer's source's own oldest; else
/// the oldest.
fn place_for(source: u64, set: &[Waiter], now: Ms) -> usize {
    let held = |source| {
        let of_source = set.iter().filter(|waiter| waiter.source == source);
        of_source.filter(|waiter| waiter.is_fresh(now)).count()
    };
    let oldest = |of: Option<u64>| {
        (0..set.len())
            .filter(|at| of.is_none_or(|source| set[*at].source == source))
            .min_by_key(|at| set[*at].last)
    };
    let free = set.iter().position(|waiter| !waiter.is_fresh(now));
    let most = set.iter().max_by_key(|waiter| held(waiter.source));
    let own = held(source);
    let yields = match most {
        Some(most) if held(most.source) >= own + 2 => Some(most.source),
        _ if own > 0 => Some(source),
        _ => None,
    };
    free.or_else(|| oldest(yields)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use ::lease::ClientKey;
    use foldhash::SharedSeed;

    use super::*;

    fn client(number: u32) -> Client {
        let [a, b, c, d] = number.to_be_bytes();
        Client {
            vlan: 1,
            key: ClientKey::Mac([2, 0, a, b, c, d]),
        }
    }

    fn waiting() -> Waiting {
        Waiting::new(SeedableRandomState::with_seed(
            7,
            SharedSeed::global_fixed(),
        ))
    }

    fn at(ms: u64) -> Ms {
        Ms::PAST.plus(Duration::from_millis(10_000_000 + ms))
    }

    /// One source sends 50,000 names between two messages of each of these: all of them are answered at their third.
    #[test]
    fn a_flood_of_one_source_makes_nobody_else_wait_anew() {
        let (flood, port, relay, known) = (1, 2, 3, 4);
        let cases = [
            ("another port of the relay", vec![port; 40]),
            ("another relay", vec![relay; 40]),
            ("the link's known machines", vec![known; 200]),
            ("a few of each", [port, relay, known].repeat(30)),
        ];
        for (case, sources) in cases {
            let (mut waiting, mut counters) = (waiting(), Counters::default());
            let mut due = vec![false; sources.len()];
            for round in 0..3u32 {
                let now = at(u64::from(round) * 5_000);
                for (number, source) in sources.iter().enumerate() {
                    due[number] =
                        waiting.is_due(&client(number as u32), *source, now, &mut counters);
                }
                for number in 0..50_000 {
                    let name = client(1_000_000 + round * 50_000 + number);
                    assert!(!waiting.is_due(&name, flood, now, &mut counters));
                }
            }
            assert!(due.iter().all(|due| *due), "{case}: {due:?}");
            assert!(counters.sent(Sent::WaiterForgotten) > 100_000, "{case}");
        }
    }

    #[test]
    fn who_is_alone_may_fill_it() {
        let (mut waiting, mut counters) = (waiting(), Counters::default());
        let mut due = 0;
        for round in 0..3u64 {
            let now = at(round * 5_000);
            let asks = (0..2_000).map(client);
            due = asks
                .filter(|client| waiting.is_due(client, 1, now, &mut counters))
                .count();
        }
        assert!(due > 1_950, "{due} of 2,000");
    }

    #[test]
    fn repeats_count_when_they_lie_apart_and_are_forgotten_in_time() {
        let mut waiting = waiting();
        let mut counters = Counters::default();
        let mut at = |waiting: &mut Waiting, ms: u64, n: u32| {
            let now = Ms::PAST.plus(Duration::from_secs(1_000) + Duration::from_millis(ms));
            waiting.is_due(&client(n), 1, now, &mut counters)
        };
        for (ms, due) in [
            (0, false),
            (100, false),
            (200, false),
            (4_000, false),
            (4_100, false),
            (8_000, true),
            (8_001, true),
        ] {
            assert_eq!(at(&mut waiting, ms, 1), due, "{ms} ms");
        }
        assert!(!at(&mut waiting, 8_002, 2), "another client");
        assert!(at(&mut waiting, 60_000, 1), "still the same boot");
        assert!(at(&mut waiting, 190_000, 1), "at its slowest, one lost");
        assert!(!at(&mut waiting, 341_000, 1), "long silence");
        waiting.forget(&client(2));
        assert!(!at(&mut waiting, 341_001, 2));
    }

    #[test]
    fn a_flood_of_clients_costs_no_memory() {
        let mut waiting = waiting();
        let mut counters = Counters::default();
        assert!(waiting.places.is_empty(), "a lone rack needs none");
        for n in 0..65_535 {
            waiting.is_due(&client(n), 1, Ms::PAST.plus(FORGOTTEN_AFTER), &mut counters);
        }
        assert_eq!(waiting.places.len(), SETS * WAYS);
        let kept = (SETS * WAYS) as u64;
        assert_eq!(counters.sent(Sent::WaiterForgotten), 65_535 - kept);
    }
}
