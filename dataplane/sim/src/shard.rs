//! A shard of a rack: the real DHCP engine, or one without any caution.

use std::net::Ipv4Addr;
use std::time::Duration;

use lease::{Block, Outcome, Row, VlanId, Write};

use crate::engine::EngineShard;
use crate::message::{Answer, Query};
use crate::naive::NaiveShard;
use crate::rng::Rng;

/// Names a shard's write until its outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ticket {
    Engine(dhcp::Ticket),
    Naive(u64),
}

/// What a shard wants done.
#[derive(Debug)]
pub(crate) enum Wish {
    Answer(Answer),
    Write {
        ticket: Option<Ticket>,
        write: Write,
    },
    /// To be asked for by ARP.
    Probe {
        vlan: VlanId,
        address: Ipv4Addr,
    },
    /// For another shard of the rack.
    Pass {
        to: usize,
        word: Word,
    },
}

/// What the link thread says to its shards.
#[derive(Clone, Debug)]
pub(crate) enum Word {
    Attached {
        blocks: std::rc::Rc<[Block]>,
        rows: std::rc::Rc<[Row]>,
        sent: Duration,
        until: Duration,
    },
    Outcome {
        ticket: Ticket,
        outcome: Outcome,
        sent: Duration,
    },
    Until(Duration),
    Forget,
    /// By rack: whether the region sees it.
    Alive([bool; 2]),
    /// Another shard lacks an address; `asked` have none to spare.
    Lacks {
        borrower: usize,
        asked: usize,
        lack: dhcp::Wish,
    },
    Lent(Vec<dhcp::Lent>),
    /// What came of an ARP probe.
    Probed {
        vlan: VlanId,
        address: Ipv4Addr,
        /// The client that answered.
        by: Option<usize>,
    },
}

pub(crate) enum Shard {
    Engine(Box<EngineShard>),
    Naive(NaiveShard),
}

impl Shard {
    /// Times are the rack's CLOCK_BOOTTIME.
    pub fn hear(&mut self, word: Word, now: Duration, wishes: &mut Vec<Wish>) {
        match self {
            Self::Engine(shard) => shard.hear(word, now, wishes),
            Self::Naive(shard) => shard.hear(word, now, wishes),
        }
    }

    pub fn query(&mut self, query: &Query, now: Duration, rng: &mut Rng, wishes: &mut Vec<Wish>) {
        match self {
            Self::Engine(shard) => shard.query(query, now, wishes),
            Self::Naive(shard) => shard.query(query, now, rng, wishes),
        }
    }

    pub fn tick(&mut self, now: Duration, wishes: &mut Vec<Wish>) {
        match self {
            Self::Engine(shard) => shard.tick(now, wishes),
            Self::Naive(_) => {}
        }
    }

    pub fn next_tick(&self) -> Option<Duration> {
        match self {
            Self::Engine(shard) => shard.next_tick(),
            Self::Naive(_) => None,
        }
    }
}
