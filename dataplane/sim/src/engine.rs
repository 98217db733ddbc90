//! The real engine as a shard: messages as octets in, replies as octets out. As thin as it can be.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcp::{
    BootReply, Config, Destination, Engine, Limits, Link, Mode, Out, Outbox, Peer, Probed, Range,
    RangeKind, Received, Reservation, Sender, Subnet,
};
use lease::VlanId;
use wire::dhcp4::{Header, MessageType, OP_REQUEST, View, Writer, code};
use wire::ethernet::Mac;

use crate::message::{Answer, Query, client_of, mac_of};
use crate::plan::{Plan, address, relay_of, server_of, vlan_id};
use crate::shard::{Ticket, Wish, Word};

/// Longer than any message the engine writes to a client that does not ask for more.
const MESSAGE_BYTES: usize = 576;
const MTU: u16 = 1_500;
/// Addresses found unused ahead of demand.
const PROBE_STOCK: usize = 2;
const CIRCUIT: &[u8] = &[1, 4, b'p', b'o', b'r', b't'];

/// A rack's configuration, and what the feed says of its peer: two VLANs, one of them behind a relay.
#[derive(Debug)]
struct Links(Vec<Link>);

impl Links {
    fn new(plan: &Plan, rack: usize) -> Self {
        let peer = |rack: usize| Peer {
            rack: number(rack),
            server: server_of(rack),
            alive: true,
        };
        let link = |vlan: usize| Link {
            vlan: vlan_id(vlan),
            server: server_of(rack),
            mtu: MTU,
            mode: Mode::Serve,
            rack: number(rack),
            peers: (0..plan.racks as usize)
                .filter(|peer| *peer != rack)
                .map(peer)
                .collect(),
            subnets: vec![Subnet {
                id: vlan_id(vlan),
                net: ipnet::Ipv4Net::new_assert(address(vlan, 0), 24),
                gateway: Some(relay_of(vlan)),
                dns: vec![],
                ntp: vec![],
                domain: String::new(),
                lease: plan.lease(),
                ranges: vec![Range {
                    id: vlan_id(vlan),
                    first: address(vlan, 10),
                    last: address(vlan, 200),
                    kind: RangeKind::Dynamic,
                    lease: None,
                    options: [].into(),
                }],
                disabled_archs: vec![],
                client_id_identity: false,
                options: [].into(),
            }],
        };
        Self((0..plan.vlans()).map(link).collect())
    }
}

/// A rack's number in the rendezvous.
fn number(rack: usize) -> u64 {
    rack as u64 + 1
}

impl Config for Links {
    fn link_of(&self, address: Ipv4Addr) -> Option<&Link> {
        self.0.iter().find(|link| link.subnet_of(address).is_some())
    }

    fn reservation(&self, _: VlanId, _: Mac) -> Option<&Reservation> {
        None
    }

    fn reservation_by_client_id(&self, _: VlanId, _: &[u8]) -> Option<&Reservation> {
        None
    }

    fn reservation_by_circuit(&self, _: VlanId, _: &[u8], _: &[u8]) -> Option<&Reservation> {
        None
    }

    fn reserved(&self, _: VlanId, _: Ipv4Addr) -> Option<&Reservation> {
        None
    }

    fn is_known(&self, _: Mac) -> bool {
        true
    }

    fn known_count(&self) -> usize {
        usize::MAX
    }
}

pub(crate) struct EngineShard {
    engine: Engine,
    outbox: Outbox,
    links: Links,
    rack: usize,
    index: usize,
    shards: usize,
    /// The rack's clock counts from here.
    base: Instant,
}

impl EngineShard {
    pub fn new(
        plan: &Plan,
        rack: usize,
        index: usize,
        seed: u64,
        base: Instant,
        now: Duration,
    ) -> Self {
        let shard = dhcp::Shard {
            index: index as u32,
            count: plan.shards as u32,
        };
        let limits = Limits {
            probe_stock: if plan.probe > 0 { PROBE_STOCK } else { 0 },
            ..Limits::default()
        };
        Self {
            engine: Engine::new(shard, limits, seed, base + now),
            outbox: Outbox::new(8),
            links: Links::new(plan, rack),
            rack,
            index,
            shards: plan.shards as usize,
            base,
        }
    }

    pub fn hear(&mut self, word: Word, now: Duration, wishes: &mut Vec<Wish>) {
        let (base, at) = (self.base, self.base + now);
        match word {
            Word::Attached {
                blocks,
                rows,
                sent,
                until,
            } => {
                self.engine
                    .attach(&blocks, &rows, base + until, base + sent, &self.links, at);
            }
            Word::Outcome {
                ticket, outcome, ..
            } => {
                if let Ticket::Engine(ticket) = ticket {
                    self.engine
                        .on_outcome(ticket, outcome, at, &mut self.outbox);
                }
            }
            Word::Until(until) => self.engine.set_until(base + until),
            Word::Forget => self.engine.forget(),
            Word::Alive(alive) => {
                let peers = self.links.0.iter_mut().flat_map(|link| &mut link.peers);
                peers.for_each(|peer| peer.alive = alive[peer.rack as usize - 1]);
            }
            Word::Lacks {
                borrower,
                asked,
                lack,
            } => {
                let lent = self.engine.lend(&lack, &self.links);
                if lent.is_empty() {
                    self.pass_on(borrower, asked + 1, lack, wishes);
                } else {
                    wishes.push(Wish::Pass {
                        to: borrower,
                        word: Word::Lent(lent),
                    });
                }
            }
            Word::Lent(lent) => self.engine.take(&lent),
            Word::Probed { vlan, address, by } => {
                let probed = by.map_or(Probed::Unused, |by| Probed::InUse(Mac(mac_of(by))));
                self.engine
                    .on_probed(vlan, address, probed, at, &mut self.outbox);
            }
        }
        self.collect(now, wishes);
    }

    pub fn query(&mut self, query: &Query, now: Duration, wishes: &mut Vec<Wish>) {
        let octets = octets_of(query);
        let Ok(view) = View::parse(&octets) else {
            unreachable!("written by the writer of the same crate")
        };
        let direct = query.unicast || query.relayed;
        let received = Received {
            link: &self.links.0[0],
            source: query.ciaddr.unwrap_or(Ipv4Addr::UNSPECIFIED),
            destination: if direct {
                server_of(self.rack)
            } else {
                Ipv4Addr::BROADCAST
            },
            sender: match (query.relayed, query.unicast) {
                (true, _) => Sender::TrustedRelay,
                (false, true) => Sender::Datagram,
                (false, false) => Sender::Frame,
            },
        };
        let boot = BootReply::default();
        let at = self.base + now;
        self.engine
            .on_message(&view, &received, &boot, &self.links, at, &mut self.outbox);
        self.collect(now, wishes);
    }

    pub fn tick(&mut self, now: Duration, wishes: &mut Vec<Wish>) {
        self.engine.tick(self.base + now, &mut self.outbox);
        self.collect(now, wishes);
    }

    pub fn next_tick(&self) -> Option<Duration> {
        let deadline = self.engine.next_deadline()?;
        Some(deadline.saturating_duration_since(self.base))
    }

    /// To the next shard; it ends when it is back.
    fn pass_on(&self, borrower: usize, asked: usize, lack: dhcp::Wish, wishes: &mut Vec<Wish>) {
        let to = (borrower + asked + 1) % self.shards;
        if to != borrower {
            wishes.push(Wish::Pass {
                to,
                word: Word::Lacks {
                    borrower,
                    asked,
                    lack,
                },
            });
        }
    }

    fn collect(&mut self, now: Duration, wishes: &mut Vec<Wish>) {
        while let Some(probe) = self.engine.next_probe(&self.links, self.base + now) {
            let (vlan, address) = (probe.vlan, probe.address);
            wishes.push(Wish::Probe { vlan, address });
        }
        while let Some(lack) = self.engine.next_wish() {
            self.pass_on(self.index, 0, lack, wishes);
        }
        let (items, buffer) = self.outbox.drain();
        for item in items {
            match item {
                Out::Reply(reply) => {
                    let answer = answer_of(reply.payload(buffer), self.rack, reply.destination);
                    wishes.push(Wish::Answer(answer));
                }
                Out::Lease { ticket, write } => {
                    let awaited = ticket != dhcp::Ticket::UNAWAITED;
                    let ticket = awaited.then_some(Ticket::Engine(ticket));
                    wishes.push(Wish::Write { ticket, write });
                }
                Out::Event(_) => {}
            }
        }
    }
}

fn octets_of(query: &Query) -> Vec<u8> {
    let mut header = Header::new(OP_REQUEST);
    (header.htype, header.hlen) = (1, 6);
    header.xid.set(query.xid);
    header.secs.set(query.secs);
    header.chaddr[..6].copy_from_slice(&mac_of(query.client));
    if let Some(address) = query.ciaddr {
        header.ciaddr = address.octets();
    }
    if query.relayed {
        header.giaddr = relay_of(query.vlan).octets();
        header.hops = 1;
    }
    let mut octets = vec![0; MESSAGE_BYTES];
    let fits = "a few options of a few octets";
    let mut writer = Writer::new(&mut octets, MESSAGE_BYTES, &header, query.kind).expect(fits);
    if let Some(address) = query.requested {
        writer
            .address(code::REQUESTED_ADDRESS, address)
            .expect(fits);
    }
    if let Some(server) = query.server {
        writer.address(code::SERVER_ID, server).expect(fits);
    }
    if query.relayed {
        writer.option(code::RELAY_INFO, CIRCUIT).expect(fits);
    }
    let length = writer.finish();
    octets.truncate(length);
    octets
}

fn answer_of(octets: &[u8], rack: usize, to: Destination) -> Answer {
    let view = View::parse(octets).expect("the engine writes whole messages");
    let kind = view.message_type().expect("every reply has its type");
    let mac = view.mac().expect("clients have Ethernet addresses");
    // To the relay, to the client's own address, or to all on the rack's own VLAN.
    let vlan = if to.ip().is_broadcast() {
        0
    } else {
        usize::from(to.ip().octets()[1])
    };
    let lease = view.lease_secs().filter(|_| kind != MessageType::Nak);
    Answer {
        kind,
        rack,
        client: client_of(mac.0),
        vlan,
        xid: view.xid(),
        address: view.yiaddr(),
        server: view.server_id().unwrap_or(Ipv4Addr::UNSPECIFIED),
        lease: lease.map(|secs| Duration::from_secs(secs.into())),
        relayed: to.port() == wire::dhcp4::SERVER_PORT,
    }
}
