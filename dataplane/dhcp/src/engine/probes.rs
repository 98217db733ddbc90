//! ARP probes before an address is first used (RFC 2131 §2.2, RFC 5227 §2.1.1), off the packets' way: the caller takes
//! what is to be asked with [`Engine::next_probe`], and says what came of it with [`Engine::on_probed`].

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use ::lease::VlanId;
use wire::ethernet::Mac;

use super::sender::is_on_link;
use super::{Ask, Engine, rules};
use crate::clock::Ms;
use crate::config::Config;
use crate::counters::Sent;
use crate::outbox::{Event, EventKind, Outbox};
use crate::probe::{CLAIMS_MAX, FRESH, IN_USE_REST, PAUSE, PROXY_PAUSE, Probe, Probed};
use crate::table::State;

/// Pools looked at in one call.
const POOLS_PER_CALL_MAX: usize = 8;

impl Engine {
    /// The next address to ask for; None when there is nothing to ask, or enough is asked already. Call it after
    /// each batch of messages until it says None.
    pub fn next_probe<C: Config>(&mut self, config: &C, now: Instant) -> Option<Probe> {
        let now = self.scale.ms(now);
        if self.limits.probe_stock == 0 || self.until.is_none() {
            return None;
        }
        while let Some(slot) = self.prober.overdue(now) {
            self.counters.count(Sent::ProbeFailed);
            self.end_probe(slot, None);
        }
        if !self.prober.has_room() {
            return None;
        }
        let slot = self
            .next_urgent(now)
            .or_else(|| self.next_leaving(config, now))
            .or_else(|| self.next_of_stock(config, now))?;
        self.prober.ask(slot, now);
        self.counters.count(Sent::Probe);
        Some(Probe {
            vlan: self.table.run(slot).vlan,
            address: self.table.address(slot),
        })
    }

    /// What was offered unprobed, as long as it is no more than that.
    fn next_urgent(&mut self, now: Ms) -> Option<u32> {
        loop {
            let slot = self.prober.next_urgent()?;
            let pool = self.table.pool_of(slot);
            if pool.probe_after <= now
                && self.table.state(slot) == State::Offered
                && !self.prober.is_asked(slot)
            {
                self.table.pool_of_mut(slot).probing += 1;
                return Some(slot);
            }
        }
    }

    fn next_of_stock<C: Config>(&mut self, config: &C, now: Ms) -> Option<u32> {
        let pools = self.table.pools().len();
        for _ in 0..pools.min(POOLS_PER_CALL_MAX) {
            let pool = self.prober.cursor % pools;
            self.prober.cursor = pool + 1;
            let target = self.limits.probe_stock;
            let Some(slot) = self.table.next_to_probe(pool, target, now, FRESH) else {
                continue;
            };
            let address = self.table.address(slot);
            let vlan = self.table.run(slot).vlan;
            let link = config.link_of(address).filter(|link| link.vlan == vlan);
            let Some(link) = link.filter(|link| is_on_link(link)) else {
                continue;
            };
            if rules::is_withheld(config, link, address) {
                self.table.set_aside(slot);
                continue;
            }
            self.table.start_probe(slot);
            self.table.pool_of_mut(slot).probing += 1;
            return Some(slot);
        }
        None
    }

    /// What came of a probe. An address in use rests for ten minutes, whatever it was; if it was offered, the
    /// client's REQUEST gets a NAK.
    pub fn on_probed(
        &mut self,
        vlan: VlanId,
        address: Ipv4Addr,
        probed: Probed,
        now: Instant,
        out: &mut Outbox,
    ) {
        let now = self.scale.ms(now);
        let Some(slot) = self.table.find(vlan, address) else {
            return;
        };
        if !self.prober.is_asked(slot) {
            return; // too late, or of before the attach
        }
        match probed {
            Probed::Unused => {
                self.table.pool_of_mut(slot).claims = 0;
                self.end_probe(slot, Some(now));
                self.take_back(slot, now, out);
            }
            Probed::Unknown => {
                self.counters.count(Sent::ProbeFailed);
                self.table.pool_of_mut(slot).probe_after = now.plus(PAUSE);
                self.end_probe(slot, None);
            }
            Probed::InUse(mac) => {
                self.end_probe(slot, None);
                // Its own client: no claim of anybody's, however often somebody sends a RELEASE in its name.
                if self.is_its_own(slot, mac) {
                    self.stay(slot);
                } else if self.is_believed(slot, mac, now) {
                    self.in_use(slot, mac, now, out);
                } else {
                    self.counters.count(Sent::ProbeFailed);
                }
            }
        }
    }

    /// A router that answers for every address must not take a range out of service.
    fn is_believed(&mut self, slot: u32, mac: Mac, now: Ms) -> bool {
        let pool = self.table.pool_of_mut(slot);
        if pool.claimant != Some(mac) {
            (pool.claimant, pool.claims) = (Some(mac), 0);
        }
        pool.claims += 1;
        if pool.claims > CLAIMS_MAX {
            pool.probe_after = now.plus(PROXY_PAUSE);
        }
        pool.claims <= CLAIMS_MAX
    }

    fn end_probe(&mut self, slot: u32, unused_at: Option<Ms>) {
        if self.prober.finish(slot) {
            self.came = true;
            self.table.pool_of_mut(slot).probing -= 1;
            self.table.end_probe(slot, unused_at);
        }
    }

    /// Its client was quick to use it, or never stopped.
    fn is_its_own(&self, slot: u32, mac: Mac) -> bool {
        let held = matches!(self.table.state(slot), State::Offered | State::Bound);
        held && self.table.mac(slot) == Some(mac)
    }

    fn in_use(&mut self, slot: u32, mac: Mac, now: Ms, out: &mut Outbox) {
        self.stay(slot);
        self.counters.count(Sent::AddressInUse);
        if matches!(self.table.state(slot), State::Free | State::Offered) {
            if self.table.pool_of(slot).is_full_of_resting(false) {
                // More would only cost the range: what is in use its next client finds out and declines.
                self.table.pool_of_mut(slot).probe_after = now.plus(PAUSE);
                let address = self.table.address(slot);
                return self.notice_disputed(slot, Some(mac), address, now, out);
            }
            self.table
                .rest(slot, None, now.plus(IN_USE_REST), Ms::PAST, false);
        }
        if !out.event(Event {
            kind: EventKind::AddressInUse,
            vlan: self.table.run(slot).vlan,
            mac: Some(mac),
            address: self.table.address(slot),
            lease: Duration::ZERO,
        }) {
            self.counters.count(Sent::EventLost);
        }
    }

    /// Whether an address is free as far as is known, but nobody has asked the wire. A grant at once is not for it.
    pub(super) fn is_unprobed<C: Config>(&self, slot: u32, ask: &Ask<'_, C>) -> bool {
        self.limits.probe_stock > 0
            && self.table.state(slot) == State::Free
            && is_on_link(ask.link)
            && !self.table.is_stocked(slot, ask.now.minus(FRESH))
    }

    /// Whether a free address of the subnet that the client may have is being asked for, and nothing else is free.
    pub(super) fn is_probing<C: Config>(&self, ask: &Ask<'_, C>, subnet: u32) -> bool {
        let vlan = ask.link.vlan;
        let free = self.prober.asked().filter(|slot| self.is_dealable(*slot));
        let leaving = self.leaving_soon(ask.now).filter(|_| is_on_link(ask.link));
        free.chain(leaving).any(|slot| {
            let address = self.table.address(slot);
            self.table.run(slot).vlan == vlan
                && self.subnet_of_slot(ask, slot).map(|own| own.id) == Some(subnet)
                && rules::is_allocatable(ask, address)
        })
    }

    /// An address that is about to be offered: if nobody knows whether it is used, it is asked for now.
    pub(super) fn note_unprobed<C: Config>(&mut self, slot: u32, ask: &Ask<'_, C>) {
        // Given as a last resort: what a probe would say was heard, and there is no other.
        let last_resort = self.table.pool_of_mut(slot).last_resort.take();
        if last_resort == Some(slot)
            || self.limits.probe_stock == 0
            || self.table.state(slot) == State::Offered
            || !is_on_link(ask.link)
            || self.table.is_stocked(slot, ask.now.minus(FRESH))
        {
            return;
        }
        self.counters.count(Sent::OfferUnprobed);
        if !self.prober.is_asked(slot) {
            self.prober.hurry(slot);
        }
    }
}
