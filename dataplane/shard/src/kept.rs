//! DHCP messages whose answer will come in a moment: the only free addresses are being asked for by ARP, or one is on
//! its way from another shard. Without them a client would wait for its own next message, which takes it 4 s and more.
//!
//! A client has one place, its last message; all together have a fixed number of them, of which clients that the region
//! does not know take half at most. What finds no place is dropped: its client asks again.

use std::time::{Duration, Instant};

use crate::dhcp_side::Arrival;

/// Messages kept at one time, and those of strangers among them.
const KEPT_MAX: usize = 64;
const STRANGERS_MAX: usize = KEPT_MAX / 2;
/// From its arrival on: longer than an ARP probe can take.
const KEPT_FOR: Duration = Duration::from_secs(6);
/// Another look without a reason: whatever was wished for from other shards has come, or nobody has it.
const LOOK_AGAIN: Duration = Duration::from_millis(300);

/// Longer messages are not kept: what fits an Ethernet frame is enough.
const OCTETS_MAX: usize = 1500;

pub(crate) struct Kept {
    messages: Vec<Message>,
    /// Rooms that are not in use, so that a storm allocates nothing; one more for the message that is looked at.
    spare: Vec<Vec<u8>>,
}

pub(crate) struct Message {
    pub arrival: Arrival,
    pub octets: Vec<u8>,
    /// htype, and chaddr filled up with zeros.
    client: (u8, [u8; 16]),
    is_known: bool,
    due: Instant,
}

impl Kept {
    pub fn new() -> Self {
        let room = || Vec::with_capacity(OCTETS_MAX);
        Self {
            messages: Vec::with_capacity(KEPT_MAX),
            spare: std::iter::repeat_with(room).take(KEPT_MAX + 1).collect(),
        }
    }

    pub fn count(&self) -> usize {
        self.messages.len()
    }

    /// False if it is not kept: its time is over, or others fill the places.
    pub fn keep(
        &mut self,
        arrival: &Arrival,
        client: (u8, [u8; 16]),
        is_known: bool,
        octets: &[u8],
        now: Instant,
    ) -> bool {
        let since = arrival.kept_since.unwrap_or(now);
        if since + KEPT_FOR <= now || octets.len() > OCTETS_MAX {
            return false;
        }
        if let Some(at) = self.position(|message| message.client == client) {
            let earlier = self.messages.remove(at);
            self.give_back(earlier);
        }
        let strangers = self.messages.iter().filter(|message| !message.is_known);
        let full = self.messages.len() >= KEPT_MAX;
        if full || (!is_known && strangers.count() >= STRANGERS_MAX) {
            return false;
        }
        let Some(mut room) = self.spare.pop() else {
            return false;
        };
        room.extend_from_slice(octets);
        self.messages.push(Message {
            arrival: arrival.kept(since),
            octets: room,
            client,
            is_known,
            due: now + LOOK_AGAIN,
        });
        true
    }

    /// A message to look at again, the first to come first: all of them where an address `came`, else those whose time
    /// it is. It is given back to [`Self::give_back`].
    pub fn next(&mut self, came: bool, now: Instant) -> Option<Message> {
        let at = self.position(|message| came || message.due <= now)?;
        Some(self.messages.remove(at))
    }

    pub fn give_back(&mut self, message: Message) {
        let mut room = message.octets;
        room.clear();
        self.spare.push(room);
    }

    pub fn next_deadline(&self) -> Option<Instant> {
        self.messages.iter().map(|message| message.due).min()
    }

    fn position(&self, is_it: impl Fn(&Message) -> bool) -> Option<usize> {
        self.messages.iter().position(is_it)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    fn arrival() -> Arrival {
        let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
        Arrival::of_frame(1, from, Ipv4Addr::BROADCAST)
    }

    fn client(name: u32) -> (u8, [u8; 16]) {
        (1, u128::from(name).to_be_bytes())
    }

    #[test]
    fn one_message_of_a_client_is_kept_for_a_while() {
        let (mut kept, start) = (Kept::new(), Instant::now());
        let at = |ms| start + Duration::from_millis(ms);
        assert!(kept.keep(&arrival(), client(1), true, b"first", at(0)));
        assert!(kept.keep(&arrival(), client(1), true, b"again", at(100)));
        assert!(kept.keep(&arrival(), client(2), false, b"other", at(150)));
        assert_eq!(kept.count(), 2);
        assert!(kept.next(false, at(200)).is_none(), "nothing came");
        let message = kept.next(true, at(200)).expect("something came");
        assert_eq!(message.octets, b"again");
        let arrival = message.arrival;
        assert_eq!(arrival.kept_since, Some(at(100)));
        kept.give_back(message);
        // It waits on, until its time is over.
        assert!(kept.keep(&arrival, client(1), true, b"again", at(200)));
        assert_eq!(kept.next_deadline(), Some(at(450)));
        let message = kept.next(false, at(450)).expect("it is time");
        assert_eq!(message.octets, b"other");
        assert!(!kept.keep(&message.arrival, client(2), false, b"other", at(6_150)));
        assert!(!kept.keep(&arrival, client(3), true, &[0; 1501], at(300)));
    }

    #[test]
    fn strangers_take_half_of_the_places_and_nobody_more_than_there_are() {
        let (mut kept, now) = (Kept::new(), Instant::now());
        let mut keep =
            |name: u32, is_known| kept.keep(&arrival(), client(name), is_known, b"octets", now);
        let strangers = (0..10_000).filter(|name| keep(*name, false)).count();
        assert_eq!(strangers, STRANGERS_MAX);
        let known = (20_000..30_000).filter(|name| keep(*name, true)).count();
        assert_eq!(known, KEPT_MAX - STRANGERS_MAX);
        assert!(keep(20_000, true), "in its own place");
        // Each place can be used again.
        while let Some(message) = kept.next(true, now) {
            kept.give_back(message);
        }
        assert_eq!((kept.count(), kept.spare.len()), (0, KEPT_MAX + 1));
    }
}
