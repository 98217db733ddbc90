//! The engine: attach, messages in, outcomes in, time in; replies, writes and events out.
//!
//! `engine.rs` has the state and the way in; `engine/sender.rs` says whose word counts; `engine/message.rs` decides per
//! message type (RFC 2131 §4.3), a REQUEST in `engine/request.rs`, by the questions in `engine/rules.rs`, beside another
//! rack in `engine/peer.rs`; `engine/lease.rs` turns outcomes into ACKs and takes addresses back;
//! `engine/guard.rs` keeps one client, one port and all strangers within bounds; `engine/probes.rs` finds addresses
//! that somebody uses unasked; `engine/lend.rs` moves free ones between the rack's shards.

mod ask;
mod bootp;
mod guard;
mod lease;
mod lend;
mod message;
mod peer;
mod probes;
mod proxy;
mod release;
mod request;
mod rules;
mod sender;
mod waiting;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use ::lease::{
    Block, BlockId, Client, DECLINE_QUARANTINE, OFFER_HOLD, Row, TAKE_AWAY_GRACE, VlanId,
};
use wire::dhcp4::{MessageType, View};
use wire::ethernet::Mac;

use crate::clock::{Ms, Scale, trusted};
use crate::config::{BootReply, Config, Link, Mode, Received, Reservation, ReservationKey, Subnet};
use crate::counters::{Counters, Drop, Sent};
use crate::destination::reply_destination;
use crate::identity::shard_of;
use crate::limits::{Buckets, Circuits, Limits};
use crate::notice::Notices;
use crate::outbox::{Event, EventKind, Outbox};
use crate::pending::PendingTable;
use crate::probe::Prober;
use crate::relay::{circuit, link_selection, subnet_selection};
use crate::reply::{self, Terms};
use crate::table::{Binding, State, Table};

use lend::Wishes;
pub use lend::{Lent, Wish};

/// Which part of the rack's clients and addresses is this engine's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shard {
    pub index: u32,
    /// At least 1.
    pub count: u32,
}

impl Shard {
    /// How many of the rack's `count` clients may be this shard's, as they are hashed.
    fn share(self, count: usize) -> usize {
        let mean = count.div_ceil(self.count as usize);
        match self.count {
            1 => mean,
            // Four standard deviations.
            _ => (mean + 4 * mean.isqrt()).min(count),
        }
    }
}

/// How full the engine is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Addresses of this shard, and how many of them are free.
    pub addresses: usize,
    pub free: usize,
    pub offered: usize,
    pub bound: usize,
    /// Declined, quarantined or claimed.
    pub resting: usize,
    pub pending: usize,
}

pub struct Engine {
    shard: Shard,
    limits: Limits,
    scale: Scale,
    table: Table,
    pending: PendingTable,
    peers: peer::Peers,
    /// The rack may serve its blocks until then; None before an attach and after `forget`.
    until: Option<Ms>,
    next_scan: Ms,
    last_scan: Ms,
    /// Where the next scan for ended rows begins.
    cursor: u32,
    /// Held by somebody, and reserved for somebody else.
    wanted: Vec<u32>,
    /// Released, and to be taken back as soon as nobody answers for them.
    leaving: Vec<release::Leaving>,
    /// An address has come that somebody may wait for.
    came: bool,
    /// A VLAN's exhaustion is not told again before then. No more than the VLANs that were configured.
    exhausted_again: HashMap<VlanId, Ms>,
    clients: Buckets,
    /// What is beyond their rates.
    excess: Buckets,
    ports: Buckets,
    decliners: Buckets,
    /// DHCP servers that nobody told us of, Ethernet sources that speak for others, relays that nobody vouches for.
    rogues: Notices<(VlanId, Ipv4Addr)>,
    foreign: Notices<(VlanId, Mac)>,
    untrusted: Notices<Ipv4Addr>,
    /// Ranges, by VLAN and subnet, of which so much rests that no more is believed.
    disputed: Notices<(VlanId, u32)>,
    prober: Prober,
    wishes: Wishes,
    /// This shard's clients among those that the region knows: for each an address is kept from strangers.
    known: usize,
    counters: Counters,
}

/// Hops after which a message is taken for a loop (RFC 1542 §4.1.1).
const HOPS_MAX: u8 = 16;
/// Clients and ports whose rate is remembered at one time, 16 octets each.
const CLIENTS_LIMITED: usize = 1 << 15;
const PORTS_LIMITED: usize = 1 << 14;
/// Addresses that a client, or a port whose addresses are counted, may keep from everybody by declining them.
const DECLINES_AT_ONCE: u32 = 4;
const DECLINERS_LIMITED: usize = 1 << 12;

impl Engine {
    /// `seed` must be random: tables are keyed by what strangers send.
    pub fn new(shard: Shard, limits: Limits, seed: u64, now: Instant) -> Self {
        assert!(shard.index < shard.count, "a shard is one of its count");
        Self {
            shard,
            limits,
            scale: Scale::new(now),
            table: Table::new(seed, Circuits::new(limits.leases_per_circuit_max, seed)),
            pending: PendingTable::new(limits.pending_max, seed),
            peers: peer::Peers::new(seed),
            until: None,
            next_scan: Ms::NEVER,
            last_scan: Ms::PAST,
            cursor: 0,
            wanted: Vec::with_capacity(lease::WANTED_MAX),
            leaving: Vec::with_capacity(release::LEAVING_MAX),
            came: false,
            exhausted_again: HashMap::new(),
            clients: Buckets::new(limits.mac_rate, CLIENTS_LIMITED, seed),
            excess: Buckets::new(limits.excess_rate, 1, seed),
            ports: Buckets::new(limits.circuit_rate, PORTS_LIMITED, seed),
            decliners: Buckets::every(
                DECLINE_QUARANTINE / DECLINES_AT_ONCE,
                DECLINES_AT_ONCE,
                DECLINERS_LIMITED,
                seed,
            ),
            rogues: Notices::new(),
            foreign: Notices::new(),
            untrusted: Notices::new(),
            disputed: Notices::new(),
            prober: Prober::new(),
            wishes: Wishes::new(),
            known: usize::MAX,
            counters: Counters::default(),
        }
    }

    // ---------------------------------------------------------------- what the link thread says

    /// The region answered an attach: `blocks` and `rows` of the whole rack, of which this shard takes its part.
    /// `sent` is when the attach was sent: times remaining count from there. `until` is trusted as it is: the link
    /// thread has taken its 1 % off. Everything known before is forgotten, also offers and waiting grants: their
    /// epochs are stale.
    ///
    /// A row belongs to the shard of its client; a free address to shard `offset % count` of its block.
    pub fn attach<C: Config>(
        &mut self,
        blocks: &[Block],
        rows: &[Row],
        until: Instant,
        sent: Instant,
        config: &C,
        now: Instant,
    ) {
        self.forget();
        self.add_blocks(blocks);
        let own = self.table.len() / self.shard.count as usize + blocks.len();
        self.table
            .reserve(own + rows.len(), self.limits.probe_stock);
        self.free_own(config);
        // Of several rows of one client the last to end is the one it goes on with: it comes last.
        let mut order: Vec<&Row> = rows.iter().collect();
        order.sort_by_key(|row| (!row.released, row.remaining_ms, row.address));
        for row in order {
            self.add_row(row, self.scale.ms(sent), config);
        }
        self.table.count_totals();
        self.until = Some(self.scale.ms(until));
        self.next_scan = self.scale.ms(now);
    }

    /// What is withheld by the configuration of now stands aside from the start.
    fn free_own<C: Config>(&mut self, config: &C) {
        let mut link = None;
        for slot in 0..self.table.len() as u32 {
            let run = self.table.run(slot);
            let (offset, vlan) = (slot - run.base, run.vlan);
            if offset == 0 {
                let found = config.link_of(Ipv4Addr::from(run.first));
                link = found.filter(|link| link.vlan == vlan);
            }
            if offset % self.shard.count != self.shard.index {
                continue;
            }
            let address = self.table.address(slot);
            if link.is_some_and(|link| rules::is_withheld(config, link, address)) {
                self.table.free_aside(slot);
            } else {
                self.table.free(slot);
            }
        }
    }

    fn add_blocks(&mut self, blocks: &[Block]) {
        let mut order: Vec<&Block> = blocks.iter().collect();
        order.sort_by_key(|block| (block.vlan, block.first));
        for block in order {
            let room = self.limits.addresses_max.saturating_sub(self.table.len());
            let added = match block.first {
                IpAddr::V4(first) if block.count as usize <= room => self.table.add_run(
                    block.id,
                    block.epoch,
                    block.vlan,
                    block.subnet,
                    first,
                    block.count,
                ),
                _ => false,
            };
            if !added {
                self.counters.count(Sent::AttachIgnored);
            }
        }
    }

    fn add_row<C: Config>(&mut self, row: &Row, sent: Ms, config: &C) {
        let IpAddr::V4(address) = row.address else {
            return self.counters.count(Sent::AttachIgnored);
        };
        // A bare quarantine names no VLAN; its block does.
        let Some(slot) = self.table.find_in_block(row.block, address) else {
            return self.counters.count(Sent::AttachIgnored);
        };
        let quarantine_ends = |length: Duration| match length {
            Duration::ZERO => Ms::PAST,
            length => sent.plus(length).plus(length / 100).plus(TAKE_AWAY_GRACE),
        };
        let rests_until = quarantine_ends(row.quarantine);
        let Some(client) = &row.client else {
            if self.table.state(slot) == State::Free {
                // Whose doing it was is forgotten: on the strangers' account it takes nothing from a known client.
                self.table.rest(slot, None, rests_until, Ms::NEVER, true);
            }
            return;
        };
        // A client of another VLAN: the subnet was moved. It keeps the address, but cannot ask for it here.
        let elsewhere = client.vlan != self.table.run(slot).vlan;
        if elsewhere || shard_of(&client.key, self.shard.count) != self.shard.index {
            self.table.bar(slot);
            return;
        }
        let millis = Duration::from_millis(row.remaining_ms.unsigned_abs());
        let (durable, ended) = if row.remaining_ms > 0 {
            (sent.plus(trusted(millis)), sent.plus(millis))
        } else {
            (Ms::PAST, sent.minus(millis))
        };
        let binding = Binding {
            durable,
            ended,
            rests_until,
            released: row.released,
            ..Binding::BLANK
        };
        let stranger = mac_of(client).is_none_or(|mac| !config.is_known(mac));
        self.table.bind(slot, client, binding, stranger);
    }

    /// A heartbeat was answered: the rack may serve its blocks until then.
    pub fn set_until(&mut self, until: Instant) {
        if self.until.is_some() {
            self.until = Some(self.scale.ms(until));
        }
    }

    /// Mute: no dynamic answer before the next [`Self::attach`]. Reservations go on.
    pub fn forget(&mut self) {
        self.table.clear();
        self.pending.clear();
        self.peers.clear();
        self.prober.clear();
        self.wishes.clear();
        self.wanted.clear();
        self.leaving.clear();
        self.until = None;
        self.next_scan = Ms::NEVER;
        self.cursor = 0;
    }

    // ---------------------------------------------------------------- messages

    /// Answers one message, or says why it gets no answer (which is counted here already). A grant's answer
    /// leaves later, by [`Self::on_outcome`].
    #[allow(
        clippy::too_many_arguments,
        reason = "a sans-IO engine is handed its whole world"
    )]
    pub fn on_message<C: Config>(
        &mut self,
        query: &View<'_>,
        received: &Received<'_>,
        boot: &BootReply<'_>,
        config: &C,
        now: Instant,
        out: &mut Outbox,
    ) -> Option<Drop> {
        let now = self.scale.ms(now);
        let handled = if out.has_room() {
            self.handle(query, received, boot, config, now, out)
        } else {
            Err(Drop::OutboxFull)
        };
        let reason = handled.err()?;
        self.counters.drop(reason);
        Some(reason)
    }

    fn handle<C: Config>(
        &mut self,
        query: &View<'_>,
        received: &Received<'_>,
        boot: &BootReply<'_>,
        config: &C,
        now: Ms,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if !query.is_request() {
            self.notice_reply(query, received, now, out);
            return Err(Drop::NotARequest);
        }
        let kind = query.message_type();
        if kind.is_none() && !query.is_bootp() {
            return Err(Drop::NoMessageType);
        }
        if query.hops() > HOPS_MAX {
            return Err(Drop::TooManyHops);
        }
        self.known = self.shard.share(config.known_count());
        let (link, home) = self.place(query, received, config, now, out)?;
        self.check_rates(query, received, link, now)?;
        if link.mode == Mode::Proxy {
            return self.on_proxied_link(query, link, boot, out);
        }
        let client = crate::identity(query, link.vlan, home.client_id_identity)?;
        if shard_of(&client.key, self.shard.count) != self.shard.index {
            return Err(Drop::OtherShard);
        }
        let mac = crate::identity::mac(query);
        let ask = Ask {
            query,
            link,
            home,
            client,
            mac,
            host: reservation_of(query, link, config),
            boot,
            config,
            received,
            now,
        };
        let Some(kind) = kind else {
            self.take_turn(&ask)?;
            return self.on_bootp(&ask, out);
        };
        if kind == MessageType::Request {
            self.notice_choice(&ask, out);
        }
        let port = self.check_port(&ask, kind)?;
        let handled = self.decide(&ask, kind, out);
        if let Some(port) = port {
            self.count_port(&ask, port);
        }
        handled
    }

    /// The link and home subnet of a message whose sender may speak for its client.
    fn place<'a, C: Config>(
        &mut self,
        query: &View<'_>,
        received: &Received<'a>,
        config: &'a C,
        now: Ms,
        out: &mut Outbox,
    ) -> Result<(&'a Link, &'a Subnet), Drop> {
        let direct = query.giaddr().is_unspecified();
        let checked = match direct {
            true => sender::check_client(query, received),
            false => Ok(()),
        };
        checked
            .and_then(|()| choose_link(query, received, config))
            .inspect_err(|reason| self.notice_sender(*reason, query, received, now, out))
    }

    fn decide<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        kind: MessageType,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        match kind {
            MessageType::Discover => {
                self.take_turn(ask)?;
                self.on_discover(ask, out)
            }
            MessageType::Request => self.on_request(ask, out),
            MessageType::Decline => self.on_decline(ask, out),
            MessageType::Release => self.on_release(ask, out),
            MessageType::Inform => self.on_inform(ask, out),
            MessageType::Offer | MessageType::Ack | MessageType::Nak => Err(Drop::NotForServers),
        }
    }

    /// Whether dynamic addresses may be dealt in, and for how long.
    fn serving(&self, now: Ms) -> Result<Duration, Drop> {
        let left = self.until.map_or(Duration::ZERO, |until| until.left(now));
        if left.is_zero() {
            Err(Drop::Mute)
        } else {
            Ok(left)
        }
    }

    /// Writes a reply into the outbox.
    fn send<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        terms: &Terms<'_>,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let buffer = out.message_buffer();
        let written = reply::write(
            ask.query,
            ask.link,
            ask.boot,
            terms,
            &mut self.counters,
            buffer,
        )?;
        let destination = match (terms.kind, terms.lease_secs) {
            // An INFORM's ACK goes to the client's own address, whatever else it says (§4.3.5).
            (MessageType::Ack, None) if ask.query.giaddr().is_unspecified() => {
                crate::Destination::Udp {
                    ip: ask.informing(),
                    port: wire::dhcp4::CLIENT_PORT,
                }
            }
            _ => reply_destination(ask.query, terms.kind, terms.address),
        };
        out.reply(
            terms.kind,
            ask.link.vlan,
            ask.link.server,
            destination,
            written.length,
        );
        self.counters.count(match terms.kind {
            MessageType::Offer => Sent::Offer,
            _ => Sent::Ack,
        });
        Ok(())
    }

    fn send_nak<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        why: &str,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        let length = reply::write_nak(
            ask.query,
            ask.server_id(),
            why,
            &mut self.counters,
            out.message_buffer(),
        )?;
        let destination = reply_destination(ask.query, MessageType::Nak, Ipv4Addr::UNSPECIFIED);
        out.reply(
            MessageType::Nak,
            ask.link.vlan,
            ask.link.server,
            destination,
            length,
        );
        self.counters.count(Sent::Nak);
        self.event(EventKind::Nak, ask, address, Duration::ZERO, out);
        Ok(())
    }

    fn event<C: Config>(
        &mut self,
        kind: EventKind,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        lease: Duration,
        out: &mut Outbox,
    ) {
        if !out.event(Event {
            kind,
            vlan: ask.link.vlan,
            mac: ask.mac,
            address,
            lease,
        }) {
            self.counters.count(Sent::EventLost);
        }
    }

    // ---------------------------------------------------------------- looking in

    /// Whether an address has become free, or is known to be in use, since this was last asked: what was dropped as
    /// [`Drop::Probing`] or [`Drop::Borrowing`] may be answered now.
    pub fn take_came(&mut self) -> bool {
        std::mem::take(&mut self.came)
    }

    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    pub fn usage(&self) -> Usage {
        let pools = self.table.pools();
        Usage {
            addresses: pools.iter().map(|pool| pool.total).sum(),
            free: pools.iter().map(|pool| pool.free).sum(),
            offered: self.table.offered,
            bound: self.table.bound,
            resting: pools.iter().map(|pool| pool.resting()).sum(),
            pending: self.pending.count(),
        }
    }

    /// How many addresses of each block are dealt to nobody because some host answers for them.
    pub fn claimed(&self) -> Vec<(BlockId, u32)> {
        self.table.claimed()
    }

    /// The MAC that holds a live lease on this address: what a rack may vouch for. Reservations are the
    /// snapshot's business.
    pub fn mac_at(&self, vlan: VlanId, address: Ipv4Addr, now: Instant) -> Option<Mac> {
        let Some(slot) = self.table.find(vlan, address) else {
            return self.extended_mac_at(vlan, address, self.scale.ms(now));
        };
        let binding = self.table.binding(slot)?;
        (binding.durable > self.scale.ms(now))
            .then(|| self.table.mac(slot))
            .flatten()
    }
}

/// The shard, of `shards`, that owns the client of `query`. The kernel's filter steers by chaddr, so a client that
/// is known by its client id may have to be handed over; any other shard says [`Drop::OtherShard`].
pub fn owner<C: Config>(
    query: &View<'_>,
    received: &Received<'_>,
    config: &C,
    shards: u32,
) -> Result<u32, Drop> {
    let (link, home) = choose_link(query, received, config)?;
    let client = crate::identity(query, link.vlan, home.client_id_identity)?;
    Ok(shard_of(&client.key, shards))
}

/// One message with everything that belongs to it.
struct Ask<'a, C> {
    query: &'a View<'a>,
    link: &'a Link,
    /// The subnet that the client surely is in: the relay's, else that of the rack's own address.
    home: &'a Subnet,
    client: Client,
    mac: Option<Mac>,
    /// What is set aside for this client.
    host: Option<&'a Reservation>,
    boot: &'a BootReply<'a>,
    config: &'a C,
    received: &'a Received<'a>,
    now: Ms,
}

impl<'a, C: Config> Ask<'a, C> {
    /// Whether a reservation's key is this client's.
    fn is_key(&self, key: &ReservationKey) -> bool {
        match key {
            ReservationKey::Mac(mac) => self.mac == Some(*mac),
            ReservationKey::ClientId(id) => self.query.client_id() == Some(id),
            ReservationKey::Circuit {
                circuit: own,
                remote,
            } => circuit(self.query).is_some_and(|(theirs, from)| {
                theirs == &**own && (remote.is_empty() || from == &**remote)
            }),
        }
    }

    fn is_stranger(&self) -> bool {
        self.mac.is_none_or(|mac| !self.config.is_known(mac))
    }
}

/// What is set aside for a client: by MAC, else by its client id, else by the port it hangs on.
fn reservation_of<'a, C: Config>(
    query: &View<'_>,
    link: &Link,
    config: &'a C,
) -> Option<&'a Reservation> {
    let vlan = link.vlan;
    crate::identity::mac(query)
        .and_then(|mac| config.reservation(vlan, mac))
        .or_else(|| config.reservation_by_client_id(vlan, query.client_id()?))
        .or_else(|| {
            let (circuit, remote) = circuit(query)?;
            config.reservation_by_circuit(vlan, circuit, remote)
        })
}

fn mac_of(client: &Client) -> Option<Mac> {
    match client.key {
        ::lease::ClientKey::Mac(mac) => Some(Mac(mac)),
        _ => None,
    }
}

/// The link and the subnet that a message's client is in, as the engine will see it: for who chooses its boot file.
pub fn home<'a, C: Config>(
    query: &View<'_>,
    received: &Received<'a>,
    config: &'a C,
) -> Option<(&'a Link, &'a Subnet)> {
    choose_link(query, received, config).ok()
}

/// An address of the link that a relay's client is on: giaddr, or what link selection says (RFC 3527).
fn link_selected<C: Config>(
    query: &View<'_>,
    received: &Received<'_>,
    config: &C,
) -> Result<Ipv4Addr, Drop> {
    let giaddr = query.giaddr();
    let is_end = config
        .link_of(giaddr)
        .and_then(|link| link.subnet_of(giaddr))
        .is_some_and(|subnet| subnet.is_end(giaddr));
    if giaddr.is_broadcast() || giaddr.is_multicast() || is_end {
        return Err(Drop::UnknownRelay);
    }
    sender::check_relay(query, received, config)?;
    Ok(link_selection(query).unwrap_or(giaddr))
}

/// The link and home subnet of a message: by relay (RFC 3527 link selection before giaddr), by the address that
/// a client renews by unicast, else by where it came in.
fn choose_link<'a, C: Config>(
    query: &View<'_>,
    received: &Received<'a>,
    config: &'a C,
) -> Result<(&'a Link, &'a Subnet), Drop> {
    let hint = if !query.giaddr().is_unspecified() {
        Some(link_selected(query, received, config)?)
    } else if !query.ciaddr().is_unspecified() && !received.destination.is_broadcast() {
        Some(query.ciaddr())
    } else {
        None
    };
    let (link, inside) = match hint.map(|hint| (config.link_of(hint), hint)) {
        Some((Some(link), hint)) => (link, hint),
        Some((None, _)) if !query.giaddr().is_unspecified() => return Err(Drop::UnknownRelay),
        _ => (received.link, received.link.server),
    };
    let home = subnet_selection(query, link)
        .or_else(|| link.subnet_of(inside))
        .or_else(|| link.subnets.first())
        .ok_or(Drop::NoSubnet)?;
    Ok((link, home))
}
