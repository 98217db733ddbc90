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
use crate::mailbox::{BootAnswer, BootQuery};

/// Calls and answers kept at a time.
const ENTRIES_MAX: usize = 4096;
/// Requests waiting for one answer.
const WAITERS_MAX: usize = 16;
/// How long a request waits.
const ANSWER_WAIT: Duration = Duration::from_secs(3);
/// How long an answer serves, unless the feed brings something new before.
const ANSWER_KEEP: Duration = Duration::from_secs(30);
/// The same of one that was asked for an address, which may be another machine's soon, and of one that may be older than
/// what the feed has brought: for those who wait, and their next packet.
const ANSWER_KEEP_BRIEFLY: Duration = Duration::from_secs(1);
/// Of all entries, those that wait for an answer about a card that is not known to be the asker's own.
const STRANGERS_WAITING_MAX: usize = ENTRIES_MAX / 2;
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

/// Who is asked about, and as what. The rack knows the card behind an address better than this shard, so that is asked for
/// where the shard knows none. A UUID is nobody's name: boards share them.
///
/// The address is a part of it: what a machine is, the rack knows from its own DHCP only, so what others are answered about
/// its card is not for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    mac: Option<[u8; 6]>,
    address: IpAddr,
    arch: String,
}

impl Key {
    fn of(query: &BootQuery) -> Self {
        Self {
            mac: query.mac,
            address: query.address,
            arch: query.arch.clone(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    serial: u32,
    key: Key,
    /// About a card that is not known to be the asker's own.
    is_stranger: bool,
    /// What the feed had brought when it was asked for: [`Queries::news`].
    news: u64,
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
    strangers_waiting: usize,
    /// How often the feed brought something about machines.
    news: u64,
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
    /// `is_own`: the query is about the card that the asker's address is bound to.
    pub fn look_up(
        &mut self,
        query: &BootQuery,
        is_own: bool,
        waiter: Waiter,
        now: Instant,
    ) -> Answer {
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
        let is_stranger = !is_own;
        if is_stranger && self.strangers_waiting >= STRANGERS_WAITING_MAX
            || self.entries.len() >= ENTRIES_MAX && !self.make_room()
        {
            self.refused += 1;
            return Answer::Unavailable;
        }
        self.strangers_waiting += usize::from(is_stranger);
        self.serial = self.serial.wrapping_add(1);
        let until = now + ANSWER_WAIT;
        let index = self.entries.insert(Entry {
            serial: self.serial,
            key: key.clone(),
            is_stranger,
            news: self.news,
            state: State::Waiting(vec![waiter]),
            until,
        });
        self.by_key.insert(key, index);
        let ticket = ticket(index, self.serial);
        self.waiting.push_back((until, ticket));
        Answer::Ask(ticket)
    }

    /// The region answered. Returns who waited for it.
    pub fn on_answer(&mut self, ticket: u64, answer: BootAnswer, now: Instant) -> Vec<Waiter> {
        let machine = match answer {
            BootAnswer::Machine(machine) => Some(machine),
            BootAnswer::Nothing => None,
            BootAnswer::Busy => {
                self.refused += 1;
                return self.settle(ticket, State::Silent, now + SILENCE_KEEP);
            }
        };
        let news = self.news;
        let lasts = self
            .entry(ticket)
            .is_some_and(|entry| entry.news == news && entry.key.mac.is_some());
        let keep = if lasts {
            ANSWER_KEEP
        } else {
            ANSWER_KEEP_BRIEFLY
        };
        self.settle(ticket, State::Answered(machine), now + keep)
    }

    /// The feed brought something about machines: what was answered before may no longer be so.
    pub fn on_news(&mut self) {
        self.news += 1;
        let is_old = |(_, entry): &(usize, &Entry)| matches!(entry.state, State::Answered(_));
        let old: Vec<usize> = self
            .entries
            .iter()
            .filter(is_old)
            .map(|(at, _)| at)
            .collect();
        for index in old {
            self.remove(index);
        }
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
        let was_stranger = entry.is_stranger && matches!(entry.state, State::Waiting(_));
        let old = std::mem::replace(&mut entry.state, state);
        self.strangers_waiting -= usize::from(was_stranger);
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
        let Answer::Ask(ticket) = queries.look_up(&query(1), true, stream(1), now) else {
            panic!()
        };
        assert!(matches!(
            queries.look_up(&query(1), true, stream(2), now),
            Answer::Waiting
        ));
        assert!(matches!(
            queries.look_up(&query(1), true, stream(2), now),
            Answer::Waiting
        ));
        assert!(matches!(
            queries.look_up(&query(2), true, stream(3), now),
            Answer::Ask(_)
        ));
        assert_eq!(
            queries.on_answer(ticket, BootAnswer::Nothing, now),
            [stream(1), stream(2)]
        );
        assert!(
            queries
                .on_answer(ticket, BootAnswer::Nothing, now)
                .is_empty()
        );
        assert!(matches!(
            queries.look_up(&query(1), true, stream(1), now),
            Answer::Nothing
        ));
        let later = now + ANSWER_KEEP;
        assert!(matches!(
            queries.look_up(&query(1), true, stream(1), later),
            Answer::Ask(_)
        ));
    }

    #[test]
    fn silence_ends_the_wait_and_is_not_asked_again_at_once() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let Answer::Ask(ticket) = queries.look_up(&query(1), true, stream(1), now) else {
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
            queries.look_up(&query(1), true, stream(1), later),
            Answer::Unavailable
        ));
        // A late answer is still welcome.
        assert!(
            queries
                .on_answer(ticket, BootAnswer::Nothing, later)
                .is_empty()
        );
        assert!(matches!(
            queries.look_up(&query(1), true, stream(1), later),
            Answer::Nothing
        ));
        assert_eq!(queries.unanswered, 1);
    }

    #[test]
    fn everything_has_a_limit() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        queries.look_up(&query(1), true, stream(0), now);
        for index in 1..=WAITERS_MAX as u32 {
            let answer = queries.look_up(&query(1), true, stream(index), now);
            assert_eq!(
                matches!(answer, Answer::Unavailable),
                index as usize == WAITERS_MAX,
                "{index}"
            );
        }
        let other = |number: usize| BootQuery {
            mac: None,
            arch: number.to_string(),
            ..query(0)
        };
        let mut tickets = Vec::new();
        for number in 1..ENTRIES_MAX {
            match queries.look_up(&other(number), true, stream(0), now) {
                Answer::Ask(ticket) => tickets.push(ticket),
                other => panic!("{other:?}"),
            }
        }
        assert!(matches!(
            queries.look_up(&other(0), true, stream(0), now),
            Answer::Unavailable
        ));
        queries.on_answer(tickets[0], BootAnswer::Nothing, now);
        assert!(matches!(
            queries.look_up(&other(0), true, stream(0), now),
            Answer::Ask(_)
        ));
        queries.expire(now + ANSWER_WAIT);
        queries.expire(now + ANSWER_WAIT + SILENCE_KEEP);
        assert!(queries.entries.is_empty() && queries.by_key.is_empty());
    }

    fn machine(system_id: &str) -> BootAnswer {
        BootAnswer::Machine(Arc::new(boot::Machine {
            system_id: system_id.into(),
            hostname: String::new(),
            domain: String::new(),
            macs: vec![],
            purpose: boot::Purpose::Poweroff,
            arch: String::new(),
            subarch: String::new(),
            osystem: String::new(),
            release: String::new(),
            label: String::new(),
            kernel: String::new(),
            initrd: String::new(),
            squashfs: String::new(),
            extra_options: String::new(),
            ephemeral_options: String::new(),
            boot_window: false,
        }))
    }

    fn is_asked(queries: &mut Queries, query: &BootQuery, now: Instant) -> Option<u64> {
        match queries.look_up(query, true, stream(1), now) {
            Answer::Ask(ticket) => Some(ticket),
            _ => None,
        }
    }

    #[test]
    fn answers_are_dropped_when_the_feed_brings_news() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let ticket = is_asked(&mut queries, &query(1), now).unwrap();
        queries.on_answer(ticket, machine("a"), now);
        assert_eq!(is_asked(&mut queries, &query(1), now), None, "kept");
        queries.on_news();
        let ticket = is_asked(&mut queries, &query(1), now).expect("dropped");
        // The region may have answered before the change that the feed has brought meanwhile.
        queries.on_news();
        queries.on_answer(ticket, machine("a"), now);
        assert_eq!(
            is_asked(&mut queries, &query(1), now),
            None,
            "for who waits"
        );
        let later = now + ANSWER_KEEP_BRIEFLY;
        assert!(is_asked(&mut queries, &query(1), later).is_some());
    }

    #[test]
    fn what_is_said_of_an_address_is_soon_forgotten() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let of_address = BootQuery {
            mac: None,
            ..query(1)
        };
        let ticket = is_asked(&mut queries, &of_address, now).unwrap();
        queries.on_answer(ticket, machine("a"), now);
        assert_eq!(is_asked(&mut queries, &of_address, now), None);
        let later = now + ANSWER_KEEP_BRIEFLY;
        assert!(is_asked(&mut queries, &of_address, later).is_some());
    }

    #[test]
    fn a_busy_region_is_no_answer() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let ticket = is_asked(&mut queries, &query(1), now).unwrap();
        assert_eq!(
            queries.on_answer(ticket, BootAnswer::Busy, now),
            [stream(1)]
        );
        assert!(matches!(
            queries.look_up(&query(1), true, stream(1), now),
            Answer::Unavailable
        ));
        assert!(is_asked(&mut queries, &query(1), now + SILENCE_KEEP).is_some());
    }

    #[test]
    fn strangers_leave_room_for_those_who_ask_about_their_own_card() {
        let (mut queries, now) = (Queries::default(), Instant::now());
        let of_stranger = |number: usize| BootQuery {
            arch: number.to_string(),
            ..query(9)
        };
        let mut tickets = Vec::new();
        for number in 0..ENTRIES_MAX {
            if let Answer::Ask(ticket) =
                queries.look_up(&of_stranger(number), false, stream(0), now)
            {
                tickets.push(ticket);
            }
        }
        assert_eq!(tickets.len(), STRANGERS_WAITING_MAX);
        assert!(is_asked(&mut queries, &query(1), now).is_some());
        queries.on_answer(tickets[0], BootAnswer::Nothing, now);
        assert!(matches!(
            queries.look_up(&of_stranger(9999), false, stream(0), now),
            Answer::Ask(_)
        ));
        queries.expire(now + ANSWER_WAIT);
        assert_eq!(queries.strangers_waiting, 0);
    }
}
