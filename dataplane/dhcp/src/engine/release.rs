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
//! way (decisions/0013). A RELEASE of before the attach says nothing: what refuted it may not have been written. Where there is no probing, and behind relays, it comes back at its durable end.

use super::sender::is_on_link;
use super::{Engine, OFFER_HOLD};
use crate::clock::Ms;
use crate::config::Config;
use crate::outbox::Outbox;
use crate::table::{Binding, State};

/// Addresses looked after at one time; the others come by a later scan.
pub(super) const LEAVING_MAX: usize = 64;

/// A released address that is looked after.
pub(super) struct Leaving {
    slot: u32,
    /// A probe was sent since the RELEASE: what an earlier one says is of before.
    probed: bool,
}

impl Engine {
    /// Notes a released address. Those that no pool needs yet take half of the places.
    pub(super) fn leave(&mut self, slot: u32) {
        if self.limits.probe_stock == 0 || self.released(slot).is_none() {
            return;
        }
        let room = match self.is_wanted(slot) {
            true => LEAVING_MAX,
            false => LEAVING_MAX / 2,
        };
        let is_there = self.leaving.iter().any(|leaving| leaving.slot == slot);
        if !is_there && self.leaving.len() < room {
            let probed = false;
            self.leaving.push(Leaving { slot, probed });
        }
    }

    /// A RELEASE came: whatever is known of an earlier one is of no use.
    pub(super) fn leave_anew(&mut self, slot: u32) {
        self.leaving.retain(|leaving| leaving.slot != slot);
        self.leave(slot);
    }

    /// The client is still there, or is back: the RELEASE means nothing any more.
    pub(super) fn stay(&mut self, slot: u32) {
        if let Some(binding) = self.table.binding_mut(slot) {
            binding.gone = false;
        }
    }

    /// It is offered to its own client again: not before that had its time to ask for it.
    pub(super) fn hold_released(&mut self, slot: u32, now: Ms) {
        if let Some(binding) = self.table.binding_mut(slot)
            && binding.gone
        {
            binding.rests_until = binding.rests_until.max(now.plus(OFFER_HOLD));
        }
    }

    fn released(&self, slot: u32) -> Option<&Binding> {
        let is_bound = self.table.state(slot) == State::Bound;
        self.table
            .binding(slot)
            .filter(|binding| is_bound && binding.gone && !self.table.run(slot).refused)
    }

    fn may_leave(&self, slot: u32, now: Ms) -> bool {
        self.released(slot).is_some_and(|binding| {
            !binding.unknown && binding.writing.is_none() && binding.rests_until < now
        })
    }

    /// The next released address to ask for.
    pub(super) fn next_leaving<C: Config>(&mut self, config: &C, now: Ms) -> Option<u32> {
        let mut at = 0;
        while let Some(slot) = self.leaving.get(at).map(|leaving| leaving.slot) {
            if self.released(slot).is_none() {
                self.leaving.swap_remove(at);
                continue;
            }
            let vlan = self.table.run(slot).vlan;
            let link = config.link_of(self.table.address(slot));
            let on_link = link.is_some_and(|link| link.vlan == vlan && is_on_link(link));
            let open = self.table.pool_of(slot).probe_after <= now && !self.prober.is_asked(slot);
            if on_link && open && self.is_wanted(slot) && self.may_leave(slot, now) {
                self.leaving[at].probed = true;
                self.table.pool_of_mut(slot).probing += 1;
                return Some(slot);
            }
            at += 1;
        }
        None
    }

    /// Nobody answered for the address.
    pub(super) fn take_back(&mut self, slot: u32, now: Ms, out: &mut Outbox) {
        let probed = |leaving: &Leaving| leaving.slot == slot && leaving.probed;
        if !self.leaving.iter().any(probed) || !self.may_leave(slot, now) {
            return;
        }
        // The reclaim may run late: from now on no ACK leaves from memory, whatever comes of it.
        if let Some(binding) = self.table.binding_mut(slot) {
            binding.durable = Ms::PAST;
        }
        self.reclaim(slot, true, now, out);
    }

    /// Addresses that will be free in a moment.
    pub(super) fn leaving_soon(&self, now: Ms) -> impl Iterator<Item = u32> + '_ {
        let slots = self.leaving.iter().map(|leaving| leaving.slot);
        slots.filter(move |slot| {
            self.released(*slot)
                .is_some_and(|binding| !binding.unknown && binding.rests_until < now)
                && self.table.pool_of(*slot).probe_after <= now
        })
    }
}
