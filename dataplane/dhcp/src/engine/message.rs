//! What each message type gets (RFC 2131 §4.3), and how a grant becomes an ACK. A REQUEST is decided in `request.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use ::lease::{DECLINE_QUARANTINE, OFFER_HOLD, WriteKind};
use wire::dhcp4::MessageType;

use super::rules::{Reserved, claimed_hostname, is_allocatable, subnets};
use super::{Ask, Engine};
use crate::clock::Ms;
use crate::config::{Config, Subnet};
use crate::counters::{Drop, Sent};
use crate::destination::reply_destination;
use crate::outbox::{EventKind, Outbox, Ticket};
use crate::pending::{Kind, Pending, Prepared};
use crate::reply;
use crate::table::{Binding, State};

/// A shorter lease is not worth an ACK: the client would be renewing before its boot goes on.
pub(super) const LEASE_MIN: Duration = Duration::from_secs(10);

/// How often an exhausted range is worth an event.
const EXHAUSTED_EVERY: Duration = Duration::from_secs(10);

impl Engine {
    // ---------------------------------------------------------------- DISCOVER

    pub(super) fn on_discover<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let reserved = self.reserved(ask);
        if let Some(own) = &reserved
            && !own.dynamic
        {
            let lease = ask.lease(own.subnet, own.address).given;
            if ask.takes_rapid_commit() {
                self.counters.count(Sent::RapidCommit);
                return self.ack_now(ask, own.address, own.subnet, lease, false, out);
            }
            return self.send_offer(ask, own.address, own.subnet, lease, out);
        }
        let until_left = self.serving(ask.now)?;
        let slot = self.choose(ask, reserved.as_ref(), out)?;
        let subnet = self.subnet_of_slot(ask, slot).ok_or(Drop::NoSubnet)?;
        if ask.takes_rapid_commit() && !self.is_unprobed(slot, ask) {
            self.counters.count(Sent::RapidCommit);
            return self.grant(ask, slot, subnet, out);
        }
        let address = self.table.address(slot);
        let lease = ask.lease(subnet, address).given.min(until_left);
        self.send_offer(ask, address, subnet, lease, out)?;
        // State moves after the reply was written. A binding is kept as it is.
        if self.table.state(slot) == State::Bound {
            self.hold_released(slot, ask.now);
        } else {
            self.note_unprobed(slot, ask);
            let (until, source) = (ask.now.plus(OFFER_HOLD), self.source(ask));
            self.table
                .offer(slot, &ask.client, until, source, ask.is_stranger());
        }
        Ok(())
    }

    fn send_offer<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        subnet: &Subnet,
        lease: Duration,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let terms = ask.terms(MessageType::Offer, address, subnet, Some(lease));
        self.send(ask, &terms, out)
    }

    /// The address to offer (RFC 2131 §4.3.1): its reservation, what it holds, what it asks for, any free one.
    fn choose<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        reserved: Option<&Reserved<'_>>,
        out: &mut Outbox,
    ) -> Result<u32, Drop> {
        let vlan = ask.link.vlan;
        let mut borrowing = false;
        if let Some(own) = reserved {
            match self.table.find(vlan, own.address) {
                Some(slot)
                    if self.table.is_held_by(slot, &ask.client) || self.is_dealable(slot) =>
                {
                    return Ok(slot);
                }
                found => {
                    if let Some(slot) = found {
                        borrowing = self.wish_for_reserved(ask, own.subnet.id, slot);
                        self.want(slot);
                    }
                    self.counters.count(Sent::ReservationTaken);
                }
            }
        }
        if borrowing {
            // Its reserved address is on its way from another shard.
            return Err(Drop::Borrowing);
        }
        let held = self.table.held_by(&ask.client);
        if let Some(slot) = held
            && self.is_keepable(ask, slot)
        {
            return Ok(slot);
        }
        let stranger = ask.is_stranger();
        if self.table.offered >= self.limits.offers_max && !self.make_room_for_offer() {
            return Err(Drop::OffersFull);
        }
        if let Some(address) = ask.query.requested_address()
            && let Some(slot) = self.table.find(vlan, address)
            && self.is_dealable(slot)
            && self.subnet_of_slot(ask, slot).is_some()
            && is_allocatable(ask, address)
            && !(stranger && self.strangers_full(slot))
        {
            return Ok(slot);
        }
        let (mut strangers_full, mut probing) = (false, false);
        for subnet in subnets(ask) {
            let Some(pool) = self.table.pool(vlan, subnet.id) else {
                continue;
            };
            let full = stranger && pool.is_full_of_strangers(self.known);
            strangers_full |= full && pool.free > 0;
            let found = match full {
                true => {
                    borrowing |= self.wish(ask, subnet.id, None);
                    self.displace_offer(ask, subnet.id)
                }
                false => self.take_free(ask, subnet.id, stranger),
            };
            if let Some(slot) = found {
                return Ok(slot);
            }
            borrowing |= self.wish(ask, subnet.id, None);
            probing |= !full && self.is_probing(ask, subnet.id);
        }
        self.hurry_scan();
        if probing {
            return Err(Drop::Probing);
        }
        if borrowing {
            return Err(Drop::Borrowing);
        }
        if strangers_full {
            return Err(Drop::StrangersFull);
        }
        if !stranger && let Some(slot) = self.take_claimed(ask) {
            return Ok(slot);
        }
        let again = self.exhausted_again.entry(ask.link.vlan);
        let again = again.or_insert(Ms::PAST);
        if *again <= ask.now {
            *again = ask.now.plus(EXHAUSTED_EVERY);
            self.event(
                EventKind::Exhausted,
                ask,
                Ipv4Addr::UNSPECIFIED,
                Duration::ZERO,
                out,
            );
        }
        Err(Drop::NoFreeAddress)
    }

    // ---------------------------------------------------------------- grants

    /// ACKs from memory inside a durable end, else asks for a durable one first. The slot is this client's, or
    /// free for it.
    pub(super) fn grant<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        slot: u32,
        subnet: &Subnet,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let until_left = self.serving(ask.now)?;
        let stranger = ask.is_stranger();
        let address = self.table.address(slot);
        let lease = ask.lease(subnet, address);
        if let Some(binding) = self.table.binding_mut(slot) {
            let durable_left = binding.durable.left(ask.now);
            // After a RELEASE only a write says that it is in use again: the address may be about to be taken back.
            if durable_left >= lease.given && !binding.released {
                self.table.set_stranger(slot, stranger);
                let lease = lease.given.min(until_left);
                return self.ack_now(ask, address, subnet, lease, true, out);
            }
            if let Some(index) = binding.writing {
                return self.join(ask, slot, index, subnet);
            }
        }
        if self.table.run(slot).refused {
            return Err(Drop::BlockRefused);
        }
        if self.pending.is_full()
            || (stranger && self.pending.count() >= self.strangers_pending_max())
        {
            return Err(Drop::PendingFull);
        }
        let prepared = self.prepare(ask, address, subnet)?;
        let pending = Pending {
            slot,
            since: ask.now,
            kind: Kind::Grant(prepared),
        };
        let (index, ticket) = self.pending.add(pending).ok_or(Drop::PendingFull)?;
        match self.table.binding_mut(slot) {
            Some(binding) => {
                binding.writing = Some(index);
                self.table.set_stranger(slot, stranger);
            }
            None => {
                let binding = Binding {
                    writing: Some(index),
                    ..Binding::BLANK
                };
                self.table.bind(slot, &ask.client, binding, stranger);
            }
        }
        let kind = WriteKind::Grant {
            client: ask.client.clone(),
            lease: lease.allowed,
            hostname: claimed_hostname(ask.query.hostname()).into(),
        };
        out.lease(ticket, self.write(slot, kind));
        self.counters.count(Sent::Grant);
        Ok(())
    }

    /// A retransmitted REQUEST joins the waiting grant: the ACK will answer the latest.
    fn join<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        slot: u32,
        index: u32,
        subnet: &Subnet,
    ) -> Result<(), Drop> {
        match self.pending.get_mut(index).map(|pending| &pending.kind) {
            Some(Kind::Grant(_)) => {}
            Some(Kind::Reclaim) | None => return Err(Drop::Reclaiming),
        }
        let prepared = self.prepare(ask, self.table.address(slot), subnet)?;
        if let Some(Pending {
            kind: Kind::Grant(waiting),
            ..
        }) = self.pending.get_mut(index)
        {
            let old = std::mem::replace(waiting, prepared);
            self.pending.recycle(old.buffer);
        }
        self.counters.count(Sent::Joined);
        Ok(())
    }

    /// Writes the ACK that will leave when the grant is durable.
    pub(super) fn prepare<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        subnet: &Subnet,
    ) -> Result<Prepared, Drop> {
        let mut buffer = self.pending.buffer();
        let lease = ask.lease(subnet, address).given;
        let terms = ask.terms(MessageType::Ack, address, subnet, Some(lease));
        let (query, link) = (ask.query, ask.link);
        match reply::write(
            query,
            link,
            ask.boot,
            &terms,
            &mut self.counters,
            &mut buffer[..],
        ) {
            Ok(written) => Ok(Prepared {
                buffer,
                length: written.length,
                times_at: written.times_at,
                lease,
                vlan: link.vlan,
                server: link.server,
                destination: reply_destination(query, MessageType::Ack, address),
                mac: ask.mac,
                address,
            }),
            Err(reason) => {
                self.pending.recycle(buffer);
                Err(reason)
            }
        }
    }

    pub(super) fn ack_now<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        subnet: &Subnet,
        lease: Duration,
        from_memory: bool,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if lease < LEASE_MIN {
            return Err(Drop::TooLate);
        }
        let terms = ask.terms(MessageType::Ack, address, subnet, Some(lease));
        self.send(ask, &terms, out)?;
        if from_memory {
            self.counters.count(Sent::AckFromMemory);
        }
        self.event(EventKind::Ack, ask, address, lease, out);
        Ok(())
    }

    // ---------------------------------------------------------------- DECLINE, RELEASE, INFORM

    /// Somebody else uses the address: nobody gets it for ten minutes (§4.3.3).
    pub(super) fn on_decline<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if ask
            .query
            .server_id()
            .is_some_and(|server| !ask.is_mine(server))
        {
            return Err(Drop::OtherServer);
        }
        let address = ask.query.requested_address().ok_or(Drop::NoAddress)?;
        if self
            .reserved(ask)
            .is_some_and(|own| own.address == address && !own.dynamic)
        {
            self.event(EventKind::Decline, ask, address, Duration::ZERO, out);
            return Ok(());
        }
        self.serving(ask.now)?;
        let slot = self
            .table
            .find(ask.link.vlan, address)
            .filter(|slot| self.table.is_held_by(*slot, &ask.client))
            .ok_or(Drop::NoRecord)?;
        self.check_declines(ask)?;
        if self
            .table
            .pool_of(slot)
            .is_full_of_resting(ask.is_stranger())
        {
            // Not believed: but this client need not try it again.
            if self.table.state(slot) == State::Offered {
                self.table.free(slot);
            }
            self.notice_disputed(slot, ask.mac, address, ask.now, out);
            return Err(Drop::DeclineLimited);
        }
        let (client, ended) = match self.table.binding(slot) {
            // A grant on its way may still become a row, so a row is assumed.
            Some(binding) => (Some(&ask.client), binding.ended),
            None => (None, Ms::NEVER),
        };
        if let Some(index) = self.table.binding(slot).and_then(|binding| binding.writing) {
            self.pending.cancel(index);
        }
        let until = ask
            .now
            .plus(DECLINE_QUARANTINE)
            .plus(::lease::TAKE_AWAY_GRACE);
        self.table
            .rest(slot, client, until, ended, ask.is_stranger());
        let kind = WriteKind::Quarantine {
            length: DECLINE_QUARANTINE,
        };
        out.lease(Ticket::UNAWAITED, self.write(slot, kind));
        self.counters.count(Sent::Quarantine);
        self.event(EventKind::Decline, ask, address, Duration::ZERO, out);
        Ok(())
    }

    /// The client gives its address up (§4.3.4). Nothing is shortened: it is only the first to be reclaimed.
    pub(super) fn on_release<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if ask
            .query
            .server_id()
            .is_some_and(|server| !ask.is_mine(server))
        {
            return Err(Drop::OtherServer);
        }
        let address = ask.query.ciaddr();
        if address.is_unspecified() {
            return Err(Drop::NoAddress);
        }
        self.serving(ask.now)?;
        let slot = self
            .table
            .find(ask.link.vlan, address)
            .filter(|slot| self.table.is_held_by(*slot, &ask.client))
            .ok_or(Drop::NoRecord)?;
        match self.table.binding_mut(slot) {
            // Said before, or still being granted: that client has changed its mind already.
            Some(binding) if binding.gone || binding.writing.is_some() => return Ok(()),
            Some(binding) => (binding.released, binding.gone) = (true, true),
            None => {
                self.table.free(slot);
                return Ok(());
            }
        }
        let kind = WriteKind::Release {
            client: ask.client.clone(),
        };
        out.lease(Ticket::UNAWAITED, self.write(slot, kind));
        self.counters.count(Sent::Release);
        self.leave_anew(slot);
        self.event(EventKind::Release, ask, address, Duration::ZERO, out);
        Ok(())
    }

    /// A client with an address of its own wants the other parameters (§4.3.5): no yiaddr, no lease.
    pub(super) fn on_inform<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let address = ask.informing();
        let relayed = !ask.query.giaddr().is_unspecified();
        if address.is_unspecified() && !relayed {
            return Err(Drop::NoAddress);
        }
        if ask.received.destination.is_broadcast() {
            self.take_turn(ask)?;
        }
        let none = Ipv4Addr::UNSPECIFIED;
        if address.is_unspecified() {
            // It does not say where it is, but its relay does, and gets the answer.
            let terms = ask.terms(MessageType::Ack, none, ask.home, None);
            return self.send(ask, &terms, out);
        }
        // Another network's parameters would do it no good.
        let subnet = ask.link.subnet_of(address).ok_or(Drop::WrongNetwork)?;
        // Nor is it a host, where its ACK would go to all of them.
        if subnet.is_end(address) {
            return Err(Drop::WrongNetwork);
        }
        let terms = ask.terms(MessageType::Ack, none, subnet, None);
        self.send(ask, &terms, out)
    }
}
