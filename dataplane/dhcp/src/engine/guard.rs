//! Abuse: what one client, one relay's port and all strangers together may have, and servers nobody told us of.

use std::net::Ipv4Addr;
use std::time::Duration;

use wire::dhcp4::{MessageType, View};
use wire::ethernet::Mac;

use super::{Ask, Engine, rules};
use crate::clock::Ms;
use crate::config::{Config, Link, Mode, Received, Sender};
use crate::counters::{Drop, Sent};
use crate::outbox::{Event, EventKind, Outbox};
use crate::probe::FRESH;
use crate::relay::circuit;

impl Engine {
    // ---------------------------------------------------------------- rates

    /// A message beyond its sender's rate is still answered out of what all such share: whoever sends another's very
    /// frames takes of that, and not all that the other gets.
    pub(super) fn check_rates(
        &mut self,
        query: &View<'_>,
        received: &Received<'_>,
        link: &Link,
        now: Ms,
    ) -> Result<(), Drop> {
        let asker = Asker::of(query, received);
        if !self.clients.take((link.vlan, asker), now) && !self.excess.take((), now) {
            return Err(Drop::RateLimited);
        }
        match port(query) {
            Some(port) if !self.ports.take(port, now) => Err(Drop::CircuitLimited),
            _ => Ok(()),
        }
    }

    /// The port that the client hangs on, if ports' addresses are counted. An error if it has all it may.
    pub(super) fn check_port<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        kind: MessageType,
    ) -> Result<Option<u64>, Drop> {
        if !self.table.circuits.is_counting() {
            return Ok(None);
        }
        let Some(port) = port(ask.query) else {
            return Ok(None);
        };
        let hash = self.table.circuits.hash(port);
        let wants_one = matches!(kind, MessageType::Discover | MessageType::Request)
            && self.table.held_by(&ask.client).is_none()
            && ask.host.is_none();
        if wants_one && self.table.circuits.is_full(hash) {
            return Err(Drop::CircuitFull);
        }
        Ok(Some(hash))
    }

    /// What the client holds now is its port's. A row from the region does not say which port: the first message
    /// after an attach does.
    pub(super) fn count_port<C: Config>(&mut self, ask: &Ask<'_, C>, port: u64) {
        if let Some(slot) = self.table.held_by(&ask.client) {
            self.table.set_circuit(slot, port);
        }
    }

    /// One that declines whatever it gets, because a router answers ARP for all addresses or out of malice, does not take
    /// the range from the others.
    pub(super) fn check_declines<C: Config>(&mut self, ask: &Ask<'_, C>) -> Result<(), Drop> {
        if !self.decliners.take(&ask.client, ask.now) {
            return Err(Drop::DeclineLimited);
        }
        match port(ask.query) {
            Some(port)
                if self.table.circuits.is_counting() && !self.decliners.take(port, ask.now) =>
            {
                Err(Drop::DeclineLimited)
            }
            _ => Ok(()),
        }
    }

    // ---------------------------------------------------------------- shares

    /// The way a message came, for the share of a place that it may take: the relay's port, or the relay where it names none. All
    /// that come straight from a link are one source; its known machines are another.
    pub(super) fn source<C: Config>(&self, ask: &Ask<'_, C>) -> u64 {
        let giaddr = ask.query.giaddr();
        let relayed = !giaddr.is_unspecified();
        let behind = relayed.then(|| (giaddr, circuit(ask.query)));
        let way = (ask.link.vlan, behind, ask.is_stranger());
        self.table.circuits.hash(way)
    }

    // ---------------------------------------------------------------- strangers

    /// A free address of the subnet, or that of the oldest offer to a stranger.
    pub(super) fn take_free<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        subnet: u32,
        stranger: bool,
    ) -> Option<u32> {
        let vlan = ask.link.vlan;
        let fresh = ask.now.minus(FRESH);
        let allowed = |address| rules::is_allocatable(ask, address);
        let found = self.table.allocate(vlan, subnet, fresh, allowed);
        if found.is_some() || (stranger && self.is_probing(ask, subnet)) {
            return found;
        }
        self.displace_offer(ask, subnet)
    }

    /// For a known client that else would get none: an address that rests only because some host claimed it.
    pub(super) fn take_claimed<C: Config>(&mut self, ask: &Ask<'_, C>) -> Option<u32> {
        let vlan = ask.link.vlan;
        let allowed = |address| rules::is_allocatable(ask, address);
        let slot = rules::subnets(ask)
            .find_map(|subnet| self.table.wake_claimed(vlan, subnet.id, allowed))?;
        self.counters.count(Sent::ClaimedGiven);
        Some(slot)
    }

    /// An address that was offered to a stranger, one of the source that has the most. An offer lasts only until its client has
    /// shown that it receives, and others are not to wait for one that never does.
    pub(super) fn displace_offer<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        subnet: u32,
    ) -> Option<u32> {
        let source = self.source(ask);
        let slot = self
            .table
            .evict_stranger_offer(ask.link.vlan, subnet, source)?;
        self.counters.count(Sent::OfferEvicted);
        let is_allowed = rules::is_allocatable(ask, self.table.address(slot));
        (self.is_dealable(slot) && is_allowed).then_some(slot)
    }

    /// Takes an offer to a stranger back, that there may be another.
    pub(super) fn make_room_for_offer(&mut self) -> bool {
        let made = self.table.evict_any_stranger_offer();
        if made {
            self.counters.count(Sent::OfferEvicted);
        }
        made
    }

    /// Writes under way of which strangers may have one more. The link thread's queue is all shards': strangers fill
    /// half of it at most, so that a known machine's lease never waits for room.
    pub(super) fn strangers_pending_max(&self) -> usize {
        let of_queue = ::lease::rack::QUEUE_ROWS_MAX / 2 / self.shard.count as usize;
        of_queue.min(self.limits.pending_max / 2)
    }

    // ---------------------------------------------------------------- who says that an address is used

    /// So much of a range rests that no more of it is believed: told once in ten minutes of each range.
    pub(super) fn notice_disputed(
        &mut self,
        slot: u32,
        mac: Option<Mac>,
        address: Ipv4Addr,
        now: Ms,
        out: &mut Outbox,
    ) {
        self.counters.count(Sent::ClaimNotBelieved);
        let run = self.table.run(slot);
        let (vlan, subnet) = (run.vlan, run.subnet);
        if self.disputed.notice((vlan, subnet), None, now)
            && !out.event(Event {
                kind: EventKind::RangeDisputed,
                vlan,
                mac,
                address,
                lease: Duration::ZERO,
            })
        {
            self.counters.count(Sent::EventLost);
        }
    }

    // ---------------------------------------------------------------- who speaks for others

    /// Somebody sent a message that it may not send: told once in ten minutes of each.
    pub(super) fn notice_sender(
        &mut self,
        reason: Drop,
        query: &View<'_>,
        received: &Received<'_>,
        now: Ms,
        out: &mut Outbox,
    ) {
        let vlan = received.link.vlan;
        let (kind, is_new) = match (reason, received.sender) {
            (Drop::ForeignSource, Sender::Ethernet(from)) => (
                EventKind::ForeignSource { from },
                self.foreign.notice((vlan, from), Some(from), now),
            ),
            (Drop::UntrustedRelay, _) => (
                EventKind::UntrustedRelay {
                    giaddr: query.giaddr(),
                },
                self.untrusted.notice(received.source, None, now),
            ),
            _ => return,
        };
        if is_new
            && !out.event(Event {
                kind,
                vlan,
                mac: query.mac(),
                address: received.source,
                lease: Duration::ZERO,
            })
        {
            self.counters.count(Sent::EventLost);
        }
    }

    // ---------------------------------------------------------------- rogue servers

    /// A broadcast REQUEST says which server its client chose (RFC 2131 §4.3.2).
    pub(super) fn notice_choice<C: Config>(&mut self, ask: &Ask<'_, C>, out: &mut Outbox) {
        if ask.received.destination.is_broadcast()
            && ask.query.giaddr().is_unspecified()
            && let Some(server) = ask.query.server_id()
            && server != ask.link.server
            // Ours on another link: the client was moved between DISCOVER and REQUEST.
            && ask.config.link_of(server).is_none_or(|link| link.server != server)
        {
            self.notice_server(ask.link, server, ask.query, ask.now, out);
        }
    }

    /// Somebody's OFFER or ACK that came to our port.
    pub(super) fn notice_reply(
        &mut self,
        reply: &View<'_>,
        received: &Received<'_>,
        now: Ms,
        out: &mut Outbox,
    ) {
        if matches!(
            reply.message_type(),
            Some(MessageType::Offer | MessageType::Ack)
        ) && reply.giaddr().is_unspecified()
            && let Some(server) = reply.server_id()
        {
            self.notice_server(received.link, server, reply, now, out);
        }
    }

    fn notice_server(
        &mut self,
        link: &Link,
        server: Ipv4Addr,
        message: &View<'_>,
        now: Ms,
        out: &mut Outbox,
    ) {
        // Where somebody else deals the addresses, other servers are what the operator wants.
        let expected = link.mode == Mode::Proxy
            || server == link.server
            || server.is_unspecified()
            || link.peers.iter().any(|peer| peer.server == server);
        if expected {
            return;
        }
        self.counters.count(Sent::RogueServer);
        if self.rogues.notice((link.vlan, server), message.mac(), now)
            && !out.event(Event {
                kind: EventKind::RogueServer,
                vlan: link.vlan,
                mac: message.mac(),
                address: server,
                lease: Duration::ZERO,
            })
        {
            self.counters.count(Sent::EventLost);
        }
    }
}

/// Who asks, named by what it cannot choose as far as there is such a thing: a rate is no one's to use up who merely
/// writes another's hardware address into a message.
#[derive(Hash)]
enum Asker<'a> {
    /// The Ethernet source of its frame.
    Card(Mac),
    /// What it calls itself, where its frame says nothing.
    Named(Name<'a>),
    /// Who sends a datagram from this address.
    At(Ipv4Addr, Name<'a>),
    /// On this port of this relay, or on any where the relay names none.
    Behind(Ipv4Addr, Option<(&'a [u8], &'a [u8])>, Name<'a>),
}

/// Where there is a MAC another client id costs its sender nothing.
#[derive(Hash)]
enum Name<'a> {
    Mac(Mac),
    /// Client id, hardware type and address.
    Other(Option<&'a [u8]>, u8, &'a [u8]),
}

impl<'a> Asker<'a> {
    fn of(query: &View<'a>, received: &Received<'_>) -> Self {
        let name = match query.mac() {
            Some(mac) => Name::Mac(mac),
            None => Name::Other(query.client_id(), query.htype(), query.chaddr()),
        };
        if !query.giaddr().is_unspecified() {
            return Self::Behind(query.giaddr(), circuit(query), name);
        }
        match received.sender {
            Sender::Ethernet(source) => Self::Card(source),
            Sender::Frame => Self::Named(name),
            Sender::Datagram | Sender::TrustedRelay => Self::At(received.source, name),
        }
    }
}

/// The relay and the port that it says a message came in by (RFC 3046 §3.1).
fn port<'a>(query: &View<'a>) -> Option<(Ipv4Addr, &'a [u8], &'a [u8])> {
    let (circuit, remote) = circuit(query)?;
    Some((query.giaddr(), circuit, remote))
}
