//! Two racks on a VLAN: which of them answers a client, and what a survivor does for the clients of its peer
//! (docs/protocols.md, Two racks and Survivor).
//!
//! ```text
//!   DISCOVER, BOOTP, broadcast INFORM:  rendezvous of chaddr over the live racks -> this one answers
//!                                       another does -> silence, until the client has asked a third time
//!   REQUEST for an address of ours:     as on a lone rack; only the block's owner says NAK
//!   REQUEST for one of a peer's block:  the peer is dead, or the client asks a third time -> Extend -> ACK
//! ```
//!
//! Safety never depends on who is believed dead: both racks may answer at once, each from its own blocks; and a peer's
//! binding is only ever lengthened by the region, which has the row, and ACKed from its answer.
//!
//! A client that waits is known by its repeats, not by `secs`: much firmware leaves that 0, some swaps its octets, and a
//! relay in a hurry doubles messages, so that only repeats which lie apart count.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ::lease::{BlockId, Client, ClientKey, Epoch, Outcome, Refusal, VlanId, Write, WriteKind};
use foldhash::SharedSeed;
use foldhash::quality::SeedableRandomState;
use wire::ethernet::Mac;

use super::waiting::Waiting;
use super::{Ask, Engine, mac_of};
use crate::clock::{Ms, trusted};
use crate::config::{Config, Link, Subnet};
use crate::counters::{Drop, Sent};
use crate::outbox::{Outbox, Ticket};
use crate::pending::{Kind, Pending, PendingTable, Prepared};

/// Bindings of peers' blocks in memory, and extends on their way: the latter must leave room for grants.
const EXTENDED_MAX: usize = 1 << 16;
const EXTENDING_MAX: usize = 1_024;
/// Ended ones are looked for this often.
const SWEEP_EVERY: Duration = Duration::from_secs(60);
/// An extend that the link thread lost.
const OUTCOME_LATEST: Duration = Duration::from_secs(60);

/// In the low half of a ticket, where the table of grants has its index, which never gets there.
const EXTEND_BIT: u64 = 1 << 31;

/// What this rack knows of its peers' clients.
pub(super) struct Peers {
    waiting: Waiting,
    extended: HashMap<(VlanId, Ipv4Addr), Extended, SeedableRandomState>,
    extending: PendingTable,
    sweep_at: Ms,
}

/// A binding of a peer's block that the region has lengthened for us.
struct Extended {
    client: Client,
    /// An ACK may promise up to it.
    durable: Ms,
    /// The extend that is on its way.
    writing: Option<u32>,
}

impl Peers {
    pub fn new(seed: u64) -> Self {
        let state = SeedableRandomState::with_seed(seed, SharedSeed::global_fixed());
        Self {
            waiting: Waiting::new(state.clone()),
            extended: HashMap::with_hasher(state),
            extending: PendingTable::new(EXTENDING_MAX, seed),
            sweep_at: Ms::PAST,
        }
    }

    /// Times can't be trusted any more, or the blocks are others.
    pub fn clear(&mut self) {
        self.extended.clear();
        self.extending.clear();
    }

    /// The client that holds a live extended binding.
    pub fn client_at(&self, vlan: VlanId, address: Ipv4Addr, now: Ms) -> Option<&Client> {
        let extended = self.extended.get(&(vlan, address))?;
        (extended.durable > now).then_some(&extended.client)
    }

    /// Lets go of what has ended.
    pub fn sweep(&mut self, now: Ms) {
        if self.sweep_at > now {
            return;
        }
        self.sweep_at = now.plus(SWEEP_EVERY);
        while let Some(lost) = self.extending.older_than(now.minus(OUTCOME_LATEST)) {
            let Some((index, pending)) = self.extending.take(lost) else {
                break;
            };
            if let Kind::Grant(ack) = &pending.kind
                && let Some(extended) = self.extended.get_mut(&(ack.vlan, ack.address))
            {
                extended.writing = extended.writing.filter(|writing| *writing != index);
            }
            self.extending.reuse(pending);
        }
        self.extended
            .retain(|_, extended| extended.durable > now || extended.writing.is_some());
    }
}

// -------------------------------------------------------------------- who answers

impl Engine {
    /// Whether this rack is to answer a message that names no server: `Err` where a peer will.
    pub(super) fn take_turn<C: Config>(&mut self, ask: &Ask<'_, C>) -> Result<(), Drop> {
        let link = ask.link;
        if link.peers.is_empty() {
            return Ok(());
        }
        // An address set aside inside a range is the block owner's to give, whatever the rendezvous says.
        let ours = match self.reserved(ask) {
            Some(own) if own.dynamic => {
                self.table.find(link.vlan, own.address).is_some() || is_alone(link)
            }
            _ => is_winner(link, &ask.client, ask.mac),
        };
        if ours || self.has_waited(ask) {
            Ok(())
        } else {
            Err(Drop::PeerAnswers)
        }
    }

    /// Counts a message, and says whether its client has waited long enough for a peer.
    fn has_waited<C: Config>(&mut self, ask: &Ask<'_, C>) -> bool {
        let source = self.source(ask);
        let waiting = &mut self.peers.waiting;
        waiting.is_due(&ask.client, source, ask.now, &mut self.counters)
    }

    /// The client has chosen another server, so it was answered.
    pub(super) fn stop_waiting<C: Config>(&mut self, ask: &Ask<'_, C>) {
        self.peers.waiting.forget(&ask.client);
    }
}

/// All peers are believed dead.
pub(super) fn is_alone(link: &Link) -> bool {
    link.peers.iter().all(|peer| !peer.alive)
}

/// Rendezvous (highest random weight) over the racks that live: each client has its place whoever comes or goes.
pub(super) fn is_winner(link: &Link, client: &Client, mac: Option<Mac>) -> bool {
    let own = weight(link.rack, client, mac);
    link.peers
        .iter()
        .filter(|peer| peer.alive)
        .all(|peer| (weight(peer.rack, client, mac), peer.rack) < (own, link.rack))
}

/// The same in every process and version: racks of one VLAN must agree. FNV-1a of chaddr, mixed with the rack's number
/// (the finalizer of SplitMix64).
fn weight(rack: u64, client: &Client, mac: Option<Mac>) -> u64 {
    let octets = match (&mac, &client.key) {
        (Some(mac), _) => &mac.0[..],
        (None, ClientKey::Mac(mac)) => &mac[..],
        (None, ClientKey::ClientId(id) | ClientKey::DuidIaid(id)) => id,
    };
    let hash = octets
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash: u64, octet| {
            (hash ^ u64::from(*octet)).wrapping_mul(0x0000_0100_0000_01b3)
        });
    let mut mixed = hash ^ rack;
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

// -------------------------------------------------------------------- the survivor

impl Engine {
    /// A client wants to keep an address of the range that is in none of our blocks: a peer's, or one between two
    /// owners. If that peer seems to be gone, the region is asked to lengthen the client's own binding, if it has one.
    pub(super) fn survive<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        address: Ipv4Addr,
        subnet: &Subnet,
        out: &mut Outbox,
    ) -> Result<(), Drop> {
        if !subnet.is_dynamic(address) {
            return Err(Drop::NoRecord);
        }
        let until_left = self.serving(ask.now)?;
        let lease = ask.lease(subnet, address);
        let (mut durable, mut writing) = (Ms::PAST, None);
        if let Some(known) = self.peers.extended.get(&(ask.link.vlan, address)) {
            let same = known.client == ask.client;
            if !same && (known.durable > ask.now || known.writing.is_some()) {
                return Err(Drop::NoRecord);
            }
            if same {
                (durable, writing) = (known.durable, known.writing);
            }
        }
        // Who broadcasts is heard by the owner, too: once that lives again, its clients are its own.
        let to_us = !ask.received.destination.is_broadcast() && ask.query.giaddr().is_unspecified();
        let known = durable.left(ask.now) >= lease.given || writing.is_some();
        let gone = ask.link.peers.iter().any(|peer| !peer.alive);
        let now_ours = gone || (to_us && known);
        if !now_ours && !self.has_waited(ask) {
            // §4.3.2: no record of this client, so silence.
            let alone = ask.link.peers.is_empty();
            return Err(if alone {
                Drop::NoRecord
            } else {
                Drop::PeerAnswers
            });
        }
        if durable.left(ask.now) >= lease.given {
            let lease = lease.given.min(until_left);
            return self.ack_now(ask, address, subnet, lease, true, out);
        }
        if let Some(index) = writing {
            return self.join_extend(ask, index, address, subnet);
        }
        let full = self.peers.extended.len() >= EXTENDED_MAX;
        let strangers_full = ask.is_stranger() && self.peers.extending.is_half_full();
        if self.peers.extending.is_full() || strangers_full || (full && durable == Ms::PAST) {
            return Err(Drop::PendingFull);
        }
        let prepared = self.prepare(ask, address, subnet)?;
        let pending = Pending {
            slot: u32::MAX,
            since: ask.now,
            kind: Kind::Grant(prepared),
        };
        let added = self.peers.extending.add(pending);
        let (index, ticket) = added.ok_or(Drop::PendingFull)?;
        let extended = Extended {
            client: ask.client.clone(),
            durable,
            writing: Some(index),
        };
        self.peers
            .extended
            .insert((ask.link.vlan, address), extended);
        let write = Write {
            block: BlockId::NONE,
            epoch: Epoch(0),
            address: IpAddr::V4(address),
            kind: WriteKind::Extend {
                client: ask.client.clone(),
                lease: lease.allowed,
            },
        };
        out.lease(Ticket(ticket.0 | EXTEND_BIT), write);
        self.counters.count(Sent::Extend);
        Ok(())
    }

    /// The ACK will answer the latest of a client's messages.
    fn join_extend<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        index: u32,
        address: Ipv4Addr,
        subnet: &Subnet,
    ) -> Result<(), Drop> {
        let prepared = self.prepare(ask, address, subnet)?;
        if let Some(Pending {
            kind: Kind::Grant(waiting),
            ..
        }) = self.peers.extending.get_mut(index)
        {
            let old = std::mem::replace(waiting, prepared);
            self.pending.recycle(old.buffer);
        }
        self.counters.count(Sent::Joined);
        Ok(())
    }

    /// True if the ticket was an extend's: then it is dealt with.
    pub(super) fn on_extended(
        &mut self,
        ticket: Ticket,
        outcome: Outcome,
        now: Ms,
        out: &mut Outbox,
    ) -> bool {
        if ticket.0 & EXTEND_BIT == 0 {
            return false;
        }
        let taken = self.peers.extending.take(Ticket(ticket.0 & !EXTEND_BIT));
        let Some((index, mut pending)) = taken else {
            self.counters.count(Sent::StrayOutcome);
            return true;
        };
        if let Kind::Grant(ack) = &mut pending.kind {
            self.settle_extend(index, pending.since, ack, outcome, now, out);
        }
        if let Kind::Grant(ack) = pending.kind {
            self.pending.recycle(ack.buffer);
        }
        true
    }

    fn settle_extend(
        &mut self,
        index: u32,
        since: Ms,
        ack: &mut Prepared,
        outcome: Outcome,
        now: Ms,
        out: &mut Outbox,
    ) {
        let key = (ack.vlan, ack.address);
        let extended = self.peers.extended.get_mut(&key);
        let Some(extended) = extended.filter(|extended| extended.writing == Some(index)) else {
            return self.counters.count(Sent::StrayOutcome);
        };
        extended.writing = None;
        match outcome {
            Outcome::Durable { remaining } => {
                // No write ever shortens an end, so an earlier word still holds.
                extended.durable = extended.durable.max(since.plus(trusted(remaining)));
                let durable_left = extended.durable.left(now);
                self.counters.count(Sent::Extended);
                self.send_prepared(ack, durable_left, now, out);
            }
            // Nothing was promised from it; what was promised before still holds.
            Outcome::Unknown | Outcome::Done => self.counters.count(Sent::Unknown),
            Outcome::Refused(Refusal::Mute) => {}
            // No such binding: silence, and the client begins anew.
            Outcome::Refused(_) => {
                self.counters.count(Sent::ExtendRefused);
                self.peers.extended.remove(&key);
            }
        }
    }

    /// The MAC of a client of a peer's that we have taken care of.
    pub(super) fn extended_mac_at(&self, vlan: VlanId, address: Ipv4Addr, now: Ms) -> Option<Mac> {
        mac_of(self.peers.client_at(vlan, address, now)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Mode, Peer};

    fn link(rack: u64, peers: &[(u64, bool)]) -> Link {
        let peer = |(rack, alive): &(u64, bool)| Peer {
            rack: *rack,
            server: Ipv4Addr::LOCALHOST,
            alive: *alive,
        };
        Link {
            vlan: 1,
            server: Ipv4Addr::LOCALHOST,
            mtu: 1500,
            mode: Mode::Serve,
            rack,
            peers: peers.iter().map(peer).collect(),
            subnets: vec![],
        }
    }

    fn client(n: u16) -> Client {
        let [a, b] = n.to_be_bytes();
        Client {
            vlan: 1,
            key: ClientKey::Mac([0x52, 0x54, 0, 0, a, b]),
        }
    }

    fn wins(link: &Link, n: u16) -> bool {
        is_winner(link, &client(n), None)
    }

    #[test]
    fn one_live_rack_answers_each_client_and_half_of_them_each() {
        let racks = [0x1111_u64, 0x2222, 0x3333];
        let link_of = |own: u64, alive: &dyn Fn(u64) -> bool| {
            let others: Vec<(u64, bool)> = racks
                .iter()
                .filter(|rack| **rack != own)
                .map(|rack| (*rack, alive(*rack)))
                .collect();
            link(own, &others)
        };
        let mut counts = [0; 3];
        for n in 0..3_000 {
            let winners: Vec<usize> = (0..3)
                .filter(|at| wins(&link_of(racks[*at], &|_| true), n))
                .collect();
            assert_eq!(winners.len(), 1, "client {n}");
            counts[winners[0]] += 1;
            // When one dies only its clients move.
            let dead = racks[2];
            let left = (0..2).filter(|at| wins(&link_of(racks[*at], &|rack| rack != dead), n));
            let left: Vec<usize> = left.collect();
            assert_eq!(left.len(), 1, "client {n}");
            assert!(winners[0] == 2 || left == winners, "client {n} moved");
        }
        assert!(
            counts.iter().all(|count| (900..1_100).contains(count)),
            "{counts:?}"
        );
    }

    #[test]
    fn weights_are_the_same_for_ever() {
        // Racks of two versions must agree: if this fails, the code changes, not the test.
        let weights = [1, 2].map(|rack| weight(rack, &client(1), None));
        // The hardware address goes before a client id.
        let mac = Some(Mac([0x52, 0x54, 0, 0, 0, 1]));
        assert_eq!(weight(1, &client(9), mac), weights[0]);
        assert_eq!(weights, [0x78c0_a536_01b8_949e, 0xb23f_3da8_fab6_a9d1]);
    }
}
