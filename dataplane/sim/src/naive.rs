//! A shard without caution: it offers any address of the rack's blocks to anybody, asks for any write at any time, and
//! extends what is a peer's. Only what it ACKs from memory it has been told to be durable. So what keeps two clients from
//! one address is the lease protocol alone, not the engine's good manners.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use lease::rack::ack_length;
use lease::{Block, BlockId, DECLINE_QUARANTINE, Epoch, Outcome, Write, WriteKind};

use crate::message::{Answer, Kind, Query, lease_client};
use crate::plan::{Plan, server_of, vlan_id};
use crate::rng::Rng;
use crate::shard::{Ticket, Wish, Word};

struct Bound {
    client: lease::Client,
    end: Duration,
}

enum Asked {
    Grant { query: Query, address: Ipv4Addr },
    Extend { query: Query, address: Ipv4Addr },
    Reclaim { address: Ipv4Addr },
}

pub(crate) struct NaiveShard {
    rack: usize,
    lease: Duration,
    survives: bool,
    blocks: Vec<Block>,
    bound: BTreeMap<Ipv4Addr, Bound>,
    until: Duration,
    asked: BTreeMap<u64, Asked>,
    next_ticket: u64,
}

impl NaiveShard {
    pub fn new(plan: &Plan, rack: usize) -> Self {
        Self {
            rack,
            lease: plan.lease(),
            survives: plan.racks > 1,
            blocks: vec![],
            bound: BTreeMap::new(),
            until: Duration::ZERO,
            asked: BTreeMap::new(),
            next_ticket: 0,
        }
    }

    pub fn hear(&mut self, word: Word, now: Duration, wishes: &mut Vec<Wish>) {
        match word {
            Word::Attached {
                blocks,
                rows,
                sent,
                until,
            } => {
                self.forget();
                self.until = until;
                self.blocks = blocks.to_vec();
                for row in rows.iter() {
                    let (IpAddr::V4(address), Some(client)) = (row.address, &row.client) else {
                        continue;
                    };
                    let left = u64::try_from(row.remaining_ms).unwrap_or(0);
                    let end = sent + Duration::from_millis(left);
                    let client = client.clone();
                    self.bound.insert(address, Bound { client, end });
                }
            }
            Word::Until(until) => {
                if !self.until.is_zero() {
                    self.until = until;
                }
            }
            Word::Forget => self.forget(),
            Word::Outcome {
                ticket: Ticket::Naive(ticket),
                outcome,
                sent,
            } => {
                if let Some(asked) = self.asked.remove(&ticket) {
                    self.outcome(asked, outcome, sent, now, wishes);
                }
            }
            Word::Outcome { .. }
            | Word::Alive(_)
            | Word::Lacks { .. }
            | Word::Lent(_)
            | Word::Probed { .. } => {}
        }
    }

    fn forget(&mut self) {
        self.until = Duration::ZERO;
        self.blocks.clear();
        self.bound.clear();
        self.asked.clear();
    }

    fn outcome(
        &mut self,
        asked: Asked,
        outcome: Outcome,
        sent: Duration,
        now: Duration,
        wishes: &mut Vec<Wish>,
    ) {
        match (asked, outcome) {
            (Asked::Grant { query, address }, Outcome::Durable { remaining }) => {
                let client = lease_client(query.client, query.vlan);
                let end = sent + remaining;
                self.bound.insert(address, Bound { client, end });
                self.ack(&query, address, end, now, wishes);
            }
            (Asked::Extend { query, address }, Outcome::Durable { remaining }) => {
                self.ack(&query, address, sent + remaining, now, wishes);
            }
            (Asked::Reclaim { address }, Outcome::Done) => drop(self.bound.remove(&address)),
            _ => {}
        }
    }

    // ---------------------------------------------------------------- queries

    pub fn query(&mut self, query: &Query, now: Duration, rng: &mut Rng, wishes: &mut Vec<Wish>) {
        if rng.permille(200) {
            self.reclaim_any(now, rng, wishes);
        }
        let client = lease_client(query.client, query.vlan);
        match query.kind {
            Kind::Discover => {
                if let Some(address) = self.choose(query, &client, rng) {
                    let answer = self.answer(query, Kind::Offer, address, Some(self.lease));
                    wishes.push(Wish::Answer(answer));
                }
            }
            Kind::Request
                if query
                    .server
                    .is_none_or(|server| server == server_of(self.rack)) =>
            {
                if let Some(address) = query.requested.or(query.ciaddr) {
                    self.request(query, address, now, rng, wishes);
                }
            }
            Kind::Decline => {
                if let Some(address) = query.requested {
                    let length = DECLINE_QUARANTINE;
                    self.tell(address, WriteKind::Quarantine { length }, wishes);
                }
            }
            Kind::Release => {
                if let Some(address) = query.ciaddr {
                    self.tell(address, WriteKind::Release { client }, wishes);
                }
            }
            _ => {}
        }
    }

    fn reclaim_any(&mut self, now: Duration, rng: &mut Rng, wishes: &mut Vec<Wish>) {
        let ended: Vec<Ipv4Addr> = self
            .bound
            .iter()
            .filter(|(_, bound)| bound.end <= now)
            .map(|(address, _)| *address)
            .collect();
        if ended.is_empty() {
            return;
        }
        let address = rng.pick(&ended);
        if let Some(bound) = self.bound.get(&address) {
            let kind = WriteKind::Reclaim {
                client: bound.client.clone(),
                silent: false,
            };
            self.ask(address, kind, Asked::Reclaim { address }, wishes);
        }
    }

    fn choose(&self, query: &Query, client: &lease::Client, rng: &mut Rng) -> Option<Ipv4Addr> {
        let own = self.bound.iter().find(|(_, bound)| bound.client == *client);
        if let Some((address, _)) = own.filter(|_| rng.permille(900)) {
            return Some(*address);
        }
        let vlan = vlan_id(query.vlan);
        let blocks: Vec<&Block> = self
            .blocks
            .iter()
            .filter(|block| block.vlan == vlan)
            .collect();
        if blocks.is_empty() {
            return None;
        }
        let block = rng.pick(&blocks);
        let IpAddr::V4(first) = block.first else {
            return None;
        };
        Some(Ipv4Addr::from(
            u32::from(first) + rng.below(block.count.into()) as u32,
        ))
    }

    fn request(
        &mut self,
        query: &Query,
        address: Ipv4Addr,
        now: Duration,
        rng: &mut Rng,
        wishes: &mut Vec<Wish>,
    ) {
        let client = lease_client(query.client, query.vlan);
        if self.block_of(address).is_none() {
            let claims = query.server.is_none() && self.survives && !self.until.is_zero();
            if claims && rng.permille(700) {
                let lease = self.lease;
                let asked = Asked::Extend {
                    query: query.clone(),
                    address,
                };
                self.ask(address, WriteKind::Extend { client, lease }, asked, wishes);
            }
            return;
        }
        match self.bound.get(&address) {
            Some(bound) if bound.client == client => {
                let length = ack_length(self.lease, bound.end, self.until, now);
                if length.is_some_and(|length| length == self.lease || rng.coin()) {
                    return self.ack(query, address, bound.end, now, wishes);
                }
            }
            Some(bound) if bound.end <= now => {
                let kind = WriteKind::Reclaim {
                    client: bound.client.clone(),
                    silent: false,
                };
                self.ask(address, kind, Asked::Reclaim { address }, wishes);
                if rng.coin() {
                    return;
                }
            }
            _ => {}
        }
        // A retransmission joins the waiting grant.
        for asked in self.asked.values_mut() {
            if let Asked::Grant {
                query: waiting,
                address: of,
            } = asked
                && *of == address
                && (waiting.client, waiting.vlan) == (query.client, query.vlan)
            {
                *waiting = query.clone();
                return;
            }
        }
        let kind = WriteKind::Grant {
            client,
            lease: self.lease,
            hostname: "".into(),
        };
        let asked = Asked::Grant {
            query: query.clone(),
            address,
        };
        self.ask(address, kind, asked, wishes);
    }

    fn block_of(&self, address: Ipv4Addr) -> Option<&Block> {
        self.blocks
            .iter()
            .find(|block| block.contains(address.into()))
    }

    fn write(&self, address: Ipv4Addr, kind: WriteKind) -> Write {
        let block = self.block_of(address);
        Write {
            block: block.map_or(BlockId(0), |block| block.id),
            epoch: block.map_or(Epoch(0), |block| block.epoch),
            address: address.into(),
            kind,
        }
    }

    fn ask(&mut self, address: Ipv4Addr, kind: WriteKind, asked: Asked, wishes: &mut Vec<Wish>) {
        self.next_ticket += 1;
        self.asked.insert(self.next_ticket, asked);
        let ticket = Some(Ticket::Naive(self.next_ticket));
        wishes.push(Wish::Write {
            ticket,
            write: self.write(address, kind),
        });
    }

    fn tell(&self, address: Ipv4Addr, kind: WriteKind, wishes: &mut Vec<Wish>) {
        if self.block_of(address).is_some() {
            wishes.push(Wish::Write {
                ticket: None,
                write: self.write(address, kind),
            });
        }
    }

    fn ack(
        &self,
        query: &Query,
        address: Ipv4Addr,
        end: Duration,
        now: Duration,
        wishes: &mut Vec<Wish>,
    ) {
        // In whole seconds, as on the wire.
        let length =
            ack_length(self.lease, end, self.until, now).map_or(0, |length| length.as_secs());
        if length > 0 {
            let lease = Some(Duration::from_secs(length));
            wishes.push(Wish::Answer(self.answer(query, Kind::Ack, address, lease)));
        }
    }

    fn answer(
        &self,
        query: &Query,
        kind: Kind,
        address: Ipv4Addr,
        lease: Option<Duration>,
    ) -> Answer {
        Answer {
            kind,
            rack: self.rack,
            client: query.client,
            vlan: query.vlan,
            xid: query.xid,
            address,
            server: server_of(self.rack),
            lease,
            relayed: query.relayed,
        }
    }
}
