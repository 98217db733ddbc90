//! Which free addresses are being asked for by ARP (RFC 5227 §2.1.1), ahead of demand and with a bound.
//!
//! Nothing here waits: a few addresses of each range are found unused before anybody wants them, and a storm that
//! outruns this stock is offered addresses unprobed, which are asked for then; an answer that comes before the
//! REQUEST makes it a NAK.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::time::Duration;

use lease::VlanId;
use wire::ethernet::Mac;

use crate::clock::Ms;

/// Probes on their way at one time.
const ASKED_MAX: usize = 32;
/// Offered unprobed, and to be asked for.
const URGENT_MAX: usize = 64;
/// Who asks answers within a second; a probe that was lost counts as unanswered after this.
const ANSWER_LATEST: Duration = Duration::from_secs(5);
/// That nobody used an address is believed so long.
pub(crate) const FRESH: Duration = Duration::from_secs(600);
/// After a probe that could not be sent; for the range it was for.
pub(crate) const PAUSE: Duration = Duration::from_secs(60);
/// Addresses of one range that one host answers for, one after the other, before it is taken for a proxy that answers
/// for all (RFC 1027): probes say nothing there, and are left for so long.
pub(crate) const CLAIMS_MAX: u32 = 8;
pub(crate) const PROXY_PAUSE: Duration = Duration::from_secs(3600);
/// An address in use by a stranger rests so long.
pub(crate) const IN_USE_REST: Duration = Duration::from_secs(600);

/// Ask whether anybody uses this address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Probe {
    pub vlan: VlanId,
    pub address: Ipv4Addr,
}

/// What came of a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Probed {
    Unused,
    /// This host answers for it.
    InUse(Mac),
    /// The probe could not be sent.
    Unknown,
}

#[derive(Debug)]
pub(crate) struct Prober {
    asked: Vec<(u32, Ms)>,
    urgent: VecDeque<u32>,
    /// The pool to look at next.
    pub cursor: usize,
}

impl Prober {
    pub fn new() -> Self {
        Self {
            asked: Vec::with_capacity(ASKED_MAX),
            urgent: VecDeque::with_capacity(URGENT_MAX),
            cursor: 0,
        }
    }

    pub fn clear(&mut self) {
        self.asked.clear();
        self.urgent.clear();
        self.cursor = 0;
    }

    pub fn has_room(&self) -> bool {
        self.asked.len() < ASKED_MAX
    }

    /// Offered unprobed. Those that find no room are not asked for.
    pub fn hurry(&mut self, slot: u32) {
        if self.urgent.len() < URGENT_MAX {
            self.urgent.push_back(slot);
        }
    }

    pub fn next_urgent(&mut self) -> Option<u32> {
        self.urgent.pop_front()
    }

    pub fn asked(&self) -> impl Iterator<Item = u32> + '_ {
        self.asked.iter().map(|(slot, _)| *slot)
    }

    pub fn is_asked(&self, slot: u32) -> bool {
        self.asked.iter().any(|(other, _)| *other == slot)
    }

    pub fn ask(&mut self, slot: u32, now: Ms) {
        self.asked.push((slot, now));
    }

    /// False if nobody asked.
    pub fn finish(&mut self, slot: u32) -> bool {
        let at = self.asked.iter().position(|(other, _)| *other == slot);
        if let Some(at) = at {
            self.asked.swap_remove(at);
        }
        at.is_some()
    }

    /// A probe whose answer is overdue.
    pub fn overdue(&self, now: Ms) -> Option<u32> {
        let due = |(_, at): &&(u32, Ms)| at.plus(ANSWER_LATEST) <= now;
        self.asked.iter().find(due).map(|(slot, _)| *slot)
    }
}
