//! A released address comes back as soon as nobody answers an ARP probe for it, where its pool needs addresses.
//!
//! ```text
//!   RELEASE --> written (released) --> probe --silent--> reclaim --> free, behind the others
//!                                        |                 | refused: a survivor has lengthened it
//!                                        +--answered-------+--> it comes back at its durable end
//! ```
//!
//! A RELEASE may be late, or forged. Its client is on the address and answers; or it is not, and asks before it goes on:
//! then it gets no ACK without a write, which makes the address its own again, and none at all while the reclaim is under
//! way (decisions/0013). Where there is no probing, and behind relays, it comes back at its durable end.

use super::sender::is_on_link;
use super::{Engine, OFFER_HOLD};
use crate::clock::Ms;
use crate::config::Config;
use crate::outbox::Outbox;
use crate::table::{Binding, State};

/// Addresses looked after at one time; the others come by a later scan.
pub(super) const LEAVING_MAX: usize = 64;

impl Engine {
    /// Notes a released address.
    pub(super) fn leave(&mut self, slot: u32) {
        let is_released = self.released(slot).is_some();
        let room = self.limits.probe_stock > 0 && self.leaving.len() < LEAVING_MAX;
        if is_released && room && !self.leaving.contains(&slot) && self.is_wanted(slot) {
            self.leaving.push(slot);
        }
    }

    /// The client is still there, or is back: the RELEASE means nothing any more.
    pub(super) fn stay(&mut self, slot: u32) {
        if let Some(binding) = self.table.binding_mut(slot) {
            binding.released = false;
        }
    }

    /// It is offered to its own client again: not before that had its time to ask for it.
    pub(super) fn hold_released(&mut self, slot: u32, now: Ms) {
        if let Some(binding) = self.table.binding_mut(slot)
            && binding.released
        {
            binding.rests_until = binding.rests_until.max(now.plus(OFFER_HOLD));
        }
    }

    fn released(&self, slot: u32) -> Option<&Binding> {
        let is_bound = self.table.state(slot) == State::Bound;
        self.table
            .binding(slot)
            .filter(|binding| is_bound && binding.released && !self.table.run(slot).refused)
    }

    fn may_leave(&self, slot: u32, now: Ms) -> bool {
        self.released(slot).is_some_and(|binding| {
            !binding.unknown && binding.writing.is_none() && binding.rests_until < now
        })
    }

    /// The next released address to ask for.
    pub(super) fn next_leaving<C: Config>(&mut self, config: &C, now: Ms) -> Option<u32> {
        let mut at = 0;
        while let Some(slot) = self.leaving.get(at).copied() {
            if self.released(slot).is_none() {
                self.leaving.swap_remove(at);
                continue;
            }
            at += 1;
            let vlan = self.table.run(slot).vlan;
            let link = config.link_of(self.table.address(slot));
            let on_link = link.is_some_and(|link| link.vlan == vlan && is_on_link(link));
            let open = self.table.pool_of(slot).probe_after <= now && !self.prober.is_asked(slot);
            if on_link && open && self.is_wanted(slot) && self.may_leave(slot, now) {
                self.table.pool_of_mut(slot).probing += 1;
                return Some(slot);
            }
        }
        None
    }

    /// Nobody answered for the address.
    pub(super) fn take_back(&mut self, slot: u32, now: Ms, out: &mut Outbox) {
        if !self.leaving.contains(&slot) || !self.may_leave(slot, now) {
            return;
        }
        // The reclaim may run late: from now on no ACK leaves from memory, whatever comes of it.
        if let Some(binding) = self.table.binding_mut(slot) {
            binding.durable = Ms::PAST;
        }
        self.reclaim(slot, now, out);
    }

    /// Addresses that will be free in a moment.
    pub(super) fn leaving_soon(&self, now: Ms) -> impl Iterator<Item = u32> + '_ {
        self.leaving.iter().copied().filter(move |slot| {
            self.released(*slot)
                .is_some_and(|binding| !binding.unknown && binding.rests_until < now)
                && self.table.pool_of(*slot).probe_after <= now
        })
    }
}
