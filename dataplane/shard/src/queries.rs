//! Boot configs of machines that the snapshot does not have: one call to the region at a time for each, its answer kept
//! for a while, and the requests that wait for it.
//!
//! A packet waits for a region in two cases only; this is one of them, bounded in time and number.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use slab::Slab;

use crate::driver::StreamId;
use crate::mailbox::BootQuery;

/// Calls and answers kept at a time.
const ENTRIES_MAX: usize = 4096;
/// Requests waiting for one answer.
const WAITERS_MAX: usize = 16;
/// How long a request waits.
const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// How long an answer serves.
const ANSWER_KEEP: Duration = Duration::from_secs(30);
/// How long nobody asks again after silence.
const SILENCE_KEEP: Duration = Duration::from_secs(1);

/// Who waits for something that is not here yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Waiter {
    Tftp(tftp::Ticket),
    Http(StreamId),
}

/// What is known about a machine that is not in the snapshot.
#[derive(Clone, Debug)]
pub(crate) enum Answer {
    Machine(Arc<boot::Machine>),
    /// The region has nothing for it.
    Nothing,
    /// Asked, and to be answered.
    Waiting,
    /// Ask with this ticket; the waiter is noted.
    Ask(u64),
    /// The region does not answer, or too many wait.
    Unavailable,
}

/// The same machine asks by several names within one boot; a MAC is the best of them.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Mac([u8; 6]),
    Uuid(String),
    Address(IpAddr, String),
}

impl Key {
    fn of(query: &BootQuery) -> Self {
        match query.mac {
            Some(mac) => Self::Mac(mac),
            None if !query.uuid.is_empty() => Self::Uuid(query.uuid.clone()),
            None => Self::Address(query.address, query.arch.clone()),
        }
    }
}

#[derive(Debug)]
struct Entry {
    serial: u32,
    key: Key,
    state: State,
    /// When the state ends.
    until: Instant,
}

#[derive(Debug)]
enum State {
    Waiting(Vec<Waiter>),
    Answered(Option<Arc<boot::Machine>>),
    Silent,
}

#[derive(Debug, Default)]
pub(crate) struct Queries {
    entries: Slab<Entry>,
    by_key: HashMap<Key, usize>,
    /// Waits and keeps have one length each, so each queue is in order of its ends. Stale entries are skipped.
    waiting: VecDeque<(Instant, u64)>,
    kept: VecDeque<(Instant, u64)>,
    serial: u32,
    pub unanswered: u64,
    pub refused: u64,
}

impl Queries {
    /// Tickets are counted from `serial` on.
    pub fn new(serial: u32) -> Self {
        Self {
            serial,
            ..Self::default()
        }
    }

    /// What is known. On `Ask` the caller sends the call, or says `failed`.
    pub fn look_up(&mut self, query: &BootQuery, waiter: Waiter, now: Instant) -> Answer {
        let key = Key::of(query);
        if let Some(&index) = self.by_key.get(&key) {
            let entry = &mut self.entries[index];
            if now < entry.until {
                return match &mut entry.state {
                    State::Answered(Some(machine)) => Answer::Machine(Arc::clone(machine)),
                    State::Answered(None) => Answer::Nothing,
                    State::Silent => Answer::Unavailable,
                    State::Waiting(waiters) => {
                        if waiters.contains(&waiter) {
                            Answer::Waiting
                        } else if waiters.len() < WAITERS_MAX {
                            waiters.push(waiter);
                            Answer::Waiting
                        } else {
                            self.refused += 1;
                            Answer::Unavailable
                        }
                    }
                };
            }
            if matches!(entry.state, State::Waiting(_)) {
                return Answer::Unavailable; // `expire` of this turn will say so to all of them
            }
            self.remove(index);
        }
        if self.entries.len() >= ENTRIES_MAX && !self.make_room() {
            self.refused += 1;
            return Answer::Unavailable;
        }
        self.serial = self.serial.wrapping_add(1);
        let until = now + ANSWER_WAIT;
        let index = self.entries.insert(Entry {
            serial: self.serial,
            key: key.clone(),
            state: State::Waiting(vec![waiter]),
            until,
        });
        self.by_key.insert(key, index);
        let ticket = ticket(index, self.serial);
        self.waiting.push_back((until, ticket));
        Answer::Ask(ticket)
    }

    /// The region answered. Returns who waited for it.
    pub fn on_answer(
        &mut self,
        ticket: u64,
        machine: Option<Arc<boot::Machine>>,
        now: Instant,
    ) -> Vec<Waiter> {
        self.settle(ticket, State::Answered(machine), now + ANSWER_KEEP)
    }

    /// The call could not be sent.
    pub fn failed(&mut self, ticket: u64, now: Instant) {
        self.refused += 1;
        self.settle(ticket, State::Silent, now + SILENCE_KEEP);
    }

    /// Ends what is over. Returns who waited in vain.
    pub fn expire(&mut self, now: Instant) -> Vec<Waiter> {
        let mut disappointed = Vec::new();
        while let Some(&(until, ticket)) = self.waiting.front() {
            if until > now {
                break;
            }
            self.waiting.pop_front();
            if self
                .entry(ticket)
                .is_some_and(|entry| matches!(entry.state, State::Waiting(_)))
            {
                self.unanswered += 1;
                disappointed.extend(self.settle(ticket, State::Silent, now + SILENCE_KEEP));
            }
        }
        while let Some(&(until, ticket)) = self.kept.front() {
            if until > now {
                break;
            }
            self.kept.pop_front();
            if self.entry(ticket).is_some_and(|entry| entry.until <= now) {
                self.remove(index_of(ticket));
            }
        }
        disappointed
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.waiting.front().map(|(until, _)| *until)
    }

    fn entry(&mut self, ticket: u64) -> Option<&mut Entry> {
        let entry = self.entries.get_mut(index_of(ticket))?;
        (u64::from(entry.serial) == ticket >> 32).then_some(entry)
    }

    fn settle(&mut self, ticket: u64, state: State, until: Instant) -> Vec<Waiter> {
        let Some(entry) = self.entry(ticket) else {
            return Vec::new();
        };
        if !matches!(entry.state, State::Waiting(_)) && !matches!(entry.state, State::Silent) {
            return Vec::new();
        }
        entry.until = until;
        let old = std::mem::replace(&mut entry.state, state);
        self.kept.push_back((until, ticket));
        match old {
            State::Waiting(waiters) => waiters,
            _ => Vec::new(),
        }
    }

    /// Drops the oldest answer. False if there is none, only calls.
    fn make_room(&mut self) -> bool {
        while let Some((_, ticket)) = self.kept.pop_front() {
            if self
                .entry(ticket)
                .is_some_and(|entry| !matches!(entry.state, State::Waiting(_)))
            {
                self.remove(index_of(ticket));
                return true;
            }
        }
        false
    }

    fn remove(&mut self, index: usize) {
        let entry = self.entries.remove(index);
        self.by_key.remove(&entry.key);
    }
}

fn ticket(index: usize, serial: u32) -> u64 {
    u64::from(serial) << 32 | index as u64
}

fn index_of(ticket: u64) -> usize {
    (ticket & 0xffff_ffff) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn query(mac: u8) -> BootQuery {
        BootQuery {
            mac: Some([2, 0, 0, 0, 0, mac]),
            uuid: String::new(),
            arch: String::new(),
            address: [10, 0, 0, mac].into(),
            vlan: 0,
        }
    }

    fn stream(index: u32) -> Waiter {
        Waiter::Http(StreamId {
            index,
            generation: 0,
        })
    }

    #[test]
    fn one_call_serves_all_who_wait() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let Answer::Ask(ticket) = queries.look_up(&query(1), stream(1), now) else {
            panic!()
        };
        assert!(matches!(
            queries.look_up(&query(1), stream(2), now),
            Answer::Waiting
        ));
        assert!(matches!(
            queries.look_up(&query(1), stream(2), now),
            Answer::Waiting
        ));
        assert!(matches!(
            queries.look_up(&query(2), stream(3), now),
            Answer::Ask(_)
        ));
        assert_eq!(queries.on_answer(ticket, None, now), [stream(1), stream(2)]);
        assert!(queries.on_answer(ticket, None, now).is_empty());
        assert!(matches!(
            queries.look_up(&query(1), stream(1), now),
            Answer::Nothing
        ));
        let later = now + ANSWER_KEEP;
        assert!(matches!(
            queries.look_up(&query(1), stream(1), later),
            Answer::Ask(_)
        ));
    }

    #[test]
    fn silence_ends_the_wait_and_is_not_asked_again_at_once() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let Answer::Ask(ticket) = queries.look_up(&query(1), stream(1), now) else {
            panic!()
        };
        assert!(
            queries
                .expire(now + ANSWER_WAIT - Duration::from_millis(1))
                .is_empty()
        );
        let later = queries.next_deadline().unwrap();
        assert_eq!(queries.expire(later), [stream(1)]);
        assert!(matches!(
            queries.look_up(&query(1), stream(1), later),
            Answer::Unavailable
        ));
        // A late answer is still welcome.
        assert!(queries.on_answer(ticket, None, later).is_empty());
        assert!(matches!(
            queries.look_up(&query(1), stream(1), later),
            Answer::Nothing
        ));
        assert_eq!(queries.unanswered, 1);
    }

    #[test]
    fn everything_has_a_limit() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        queries.look_up(&query(1), stream(0), now);
        for index in 1..=WAITERS_MAX as u32 {
            let answer = queries.look_up(&query(1), stream(index), now);
            assert_eq!(
                matches!(answer, Answer::Unavailable),
                index as usize == WAITERS_MAX,
                "{index}"
            );
        }
        let other = |number: usize| BootQuery {
            mac: None,
            uuid: number.to_string(),
            ..query(0)
        };
        let mut tickets = Vec::new();
        for number in 1..ENTRIES_MAX {
            match queries.look_up(&other(number), stream(0), now) {
                Answer::Ask(ticket) => tickets.push(ticket),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(
            queries.look_up(&other(0), stream(0), now),
            Answer::Unavailable
        ));
        queries.on_answer(tickets[0], None, now);
        assert!(matches!(
            queries.look_up(&other(0), stream(0), now),
            Answer::Ask(_)
        ));
        queries.expire(now + ANSWER_WAIT);
        queries.expire(now + ANSWER_WAIT + SILENCE_KEEP);
        assert!(queries.entries.is_empty() && queries.by_key.is_empty());
    }
}
