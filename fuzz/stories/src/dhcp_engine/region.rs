//! The region's rows, changed by its real rules; only the transaction around them is left out.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use lease::region::{Asker, BlockState, Effect, RowState, Time, decide};
use lease::{Block, Client, Epoch, Outcome, Row, Write};

use super::site;

pub(super) struct Region {
    start: Instant,
    /// With the owner of each.
    blocks: Vec<(Block, usize)>,
    rows: BTreeMap<Ipv4Addr, RowState>,
}

impl Region {
    /// A lone rack owns all blocks.
    pub fn new(start: Instant, racks: usize) -> Self {
        let of = |(block, owner): (Block, usize)| (block, owner.min(racks - 1));
        Self {
            start,
            blocks: site::blocks().into_iter().map(of).collect(),
            rows: BTreeMap::new(),
        }
    }

    fn time(&self, at: Instant) -> Time {
        // A day after the clock's beginning, so that nothing is before it.
        let day = Duration::from_secs(86_400);
        Time(0).plus(day + at.duration_since(self.start))
    }

    /// New epochs for the rack's blocks, which it learns with their rows.
    pub fn attach(&mut self, rack: usize, now: Instant) -> (Vec<Block>, Vec<Row>) {
        let mut blocks = vec![];
        for (block, _) in self.blocks.iter_mut().filter(|(_, owner)| *owner == rack) {
            block.epoch = Epoch(block.epoch.0 + 1);
            blocks.push(block.clone());
        }
        let time = self.time(now);
        let row = |block: &Block, address: Ipv4Addr, row: &RowState| Row {
            block: block.id,
            address: address.into(),
            client: row.client.clone(),
            remaining_ms: row.end.micros_since(time).div_euclid(1000),
            quarantine: left(row.quarantined_until, time),
            released: row.released,
        };
        let rows = blocks
            .iter()
            .flat_map(|block| {
                let inside = |(address, _): &(&Ipv4Addr, _)| block.contains(IpAddr::V4(**address));
                let rows = self.rows.iter().filter(inside);
                rows.map(move |(address, of)| row(block, *address, of))
            })
            .collect();
        (blocks, rows)
    }

    pub fn commit(&mut self, rack: usize, write: &Write, now: Instant) -> Outcome {
        let IpAddr::V4(address) = write.address else {
            panic!("the engine knows IPv4 only")
        };
        let time = self.time(now);
        // A survivor does not know the block.
        let own = |(block, _): &&(Block, usize)| block.contains(write.address);
        let block = self
            .blocks
            .iter()
            .find(own)
            .map(|(block, owner)| BlockState {
                epoch: block.epoch,
                asker: if *owner == rack {
                    Asker::Owner
                } else {
                    Asker::Peer
                },
                vlan: block.vlan,
                first: block.first,
                count: block.count,
                quarantined_until: Time::NEVER,
            });
        let row = self.rows.get(&address);
        let (verdict, effect) = decide(write, false, block.as_ref(), row, time);
        match effect {
            Effect::Keep => {}
            Effect::Put(row) => drop(self.rows.insert(address, row)),
            Effect::Delete => drop(self.rows.remove(&address)),
            Effect::GiveUp => panic!("the engine yields nothing"),
        }
        verdict.outcome(time)
    }

    /// Who has the address, and what is left of its durable end.
    pub fn holder(&self, address: Ipv4Addr, now: Instant) -> Option<(&Client, Duration)> {
        let row = self.rows.get(&address)?;
        Some((row.client.as_ref()?, left(row.end, self.time(now))))
    }

    pub fn has(&self, address: Ipv4Addr) -> bool {
        let mut blocks = self.blocks.iter();
        blocks.any(|(block, _)| block.contains(IpAddr::V4(address)))
    }
}

fn left(until: Time, now: Time) -> Duration {
    Duration::from_micros(u64::try_from(until.micros_since(now)).unwrap_or(0))
}
