//! What a shard tells the link thread of its clients: each source's share of it, and room kept for leases.
//!
//! Events lie in the queue that leases take. A client makes as many as it has requests, so each source and kind has a
//! bucket, what is left out is told as a number, and events take no more than half of the queue.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use boot::Unserved;
use wire::ethernet::Mac;

use crate::buckets::{Buckets, Rate};
use crate::lookup::Core;
use crate::mailbox::{Detail, Event, KEPT_FOR_LEASES, ToLink};
use crate::trace;

/// Of one address and kind: a loader that fetches its modules one by one, then what a boot takes.
const RATE: Rate = Rate {
    burst: 64,
    every: Duration::from_secs(1),
};
const SOURCES: usize = 2_048;
/// Of firmware that gets no boot file, and asks for one again and again.
const UNSERVED_RATE: Rate = Rate {
    burst: 1,
    every: Duration::from_secs(600),
};
const UNSERVED: usize = 1_024;
/// What was left out is told so often.
const TOLD_EVERY: Duration = Duration::from_secs(10);

/// Who may tell what.
pub(crate) struct Gate {
    buckets: Buckets<(IpAddr, &'static str)>,
    /// Firmware that was told of: machines of ours, and all others.
    unserved: [Buckets<Mac>; 2],
    told: Instant,
}

impl Gate {
    pub fn new(now: Instant) -> Self {
        Self {
            buckets: Buckets::new(SOURCES, RATE),
            unserved: [(); 2].map(|()| Buckets::new(UNSERVED, UNSERVED_RATE)),
            told: now,
        }
    }
}

impl Core {
    /// An event of the client at `address`, if it has not had its share.
    pub fn event(
        &mut self,
        kind: &'static str,
        mac: Option<[u8; 6]>,
        address: IpAddr,
        detail: impl Into<Detail>,
    ) {
        // What an operator follows has a budget of its own.
        if kind != trace::KIND && !self.gate.buckets.take((address, kind), self.now) {
            self.counters.events_left_out += 1;
            return;
        }
        self.push_event(kind, mac, address, detail.into());
    }

    /// Firmware that gets no boot file, once in a while. It has no address yet, so all of it that nobody knows has one
    /// share; machines of ours are not kept waiting for that.
    pub fn tell_unserved(&mut self, mac: Mac, why: Unserved) {
        const KIND: &str = "BOOT_NO_LOADER";
        let (is_known, nowhere) = (
            self.snapshot.machine_by_mac(&mac.0).is_some(),
            IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        );
        let lane = &mut self.gate.unserved[usize::from(is_known)];
        if !lane.take(mac, self.now) {
            return;
        }
        match is_known {
            true => self.push_event(KIND, Some(mac.0), nowhere, why.to_string().into()),
            false => self.event(KIND, Some(mac.0), nowhere, why.to_string()),
        }
    }

    /// What a machine is that no region has told of.
    pub fn tell_arch(&mut self, mac: [u8; 6], address: IpAddr, arch: &'static str) {
        let has_room = self.mail.to_link.free_slots() > KEPT_FOR_LEASES;
        if has_room && self.snapshot.machine_by_mac(&mac).is_none() {
            let _ = self.mail.to_link.push(ToLink::Arch { mac, address, arch });
        }
    }

    fn push_event(
        &mut self,
        kind: &'static str,
        mac: Option<[u8; 6]>,
        address: IpAddr,
        detail: Detail,
    ) {
        let event = Event {
            kind,
            mac,
            address,
            detail,
            at: self.now,
        };
        let has_room = self.mail.to_link.free_slots() > KEPT_FOR_LEASES;
        if !has_room || self.mail.to_link.push(ToLink::Event(event)).is_err() {
            self.counters.events_lost += 1;
        }
    }

    /// Once in a while: how many events each source was refused.
    pub fn tell_left_out(&mut self) {
        if self.now.saturating_duration_since(self.gate.told) < TOLD_EVERY {
            return;
        }
        self.gate.told = self.now;
        let mut told = Vec::new();
        self.gate
            .buckets
            .tell_left_out(|(address, kind), count| told.push((address, kind, count)));
        for (address, kind, count) in told {
            let detail = format!("{count} more of this kind");
            self.push_event(kind, None, address, detail.into());
        }
    }
}
