//! Free addresses that go from one shard of the rack to another: where one has none left, or where an address is set
//! aside for a client of another's.
//!
//! ```text
//!   Engine::next_wish --> (the caller carries it) --> Engine::lend --> Engine::take
//!     who lacks one                                    who has one     who lacked it
//! ```
//!
//! At every moment an address is dealt in by one shard at most: the lender bars it before it is named, and the
//! borrower takes it only in the epoch it was lent in, so that nothing said before an attach is believed after it. An
//! address that is lost on the way is nobody's until the next attach. Not here: blocks, which are the rack's.

use std::net::Ipv4Addr;
use std::time::Duration;

use ::lease::{BlockId, Epoch, VlanId};

use super::{Ask, Engine, rules};
use crate::clock::Ms;
use crate::config::Config;
use crate::counters::Sent;
use crate::table::State;

/// What a shard lacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    pub vlan: VlanId,
    pub subnet: u32,
    /// This one; None: any of the subnet.
    pub address: Option<Ipv4Addr>,
    /// For a client that the region does not know: what is kept for known ones is not lent.
    pub stranger: bool,
}

/// An address on its way to another shard of the rack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lent {
    pub block: BlockId,
    /// It means something in this epoch only.
    pub epoch: Epoch,
    pub address: Ipv4Addr,
}

/// Wishes remembered at one time.
const WISHES_MAX: usize = 32;
/// The same wish again.
const WISH_AGAIN: Duration = Duration::from_secs(5);
/// Shards answer within milliseconds; a wish that nobody has answered after this is one that nobody can grant.
const WISH_ANSWERED: Duration = Duration::from_millis(250);
/// Addresses lent at once, and looked at for them.
const LENT_MAX: usize = 16;
const LOOKED_MAX: usize = 64;

#[derive(Debug)]
pub(super) struct Wishes {
    /// The first `told` of them were handed out.
    known: Vec<(Wish, Ms)>,
    told: usize,
}

impl Wishes {
    pub fn new() -> Self {
        Self {
            known: Vec::with_capacity(WISHES_MAX),
            told: 0,
        }
    }

    pub fn clear(&mut self) {
        self.known.clear();
        self.told = 0;
    }

    /// Whether what is wished for may still come: it is wished for now, or was a moment ago. False if nobody had it then,
    /// or too much is wished for.
    fn add(&mut self, wish: Wish, now: Ms) -> bool {
        let told = self.told;
        let mut at = 0;
        let mut left = 0;
        self.known.retain(|(_, since)| {
            let keep = at >= told || since.plus(WISH_AGAIN) > now;
            left += usize::from(!keep);
            at += 1;
            keep
        });
        self.told -= left;
        if let Some((_, since)) = self.known.iter().find(|(own, _)| *own == wish) {
            return since.plus(WISH_ANSWERED) > now;
        }
        let room = self.known.len() < WISHES_MAX;
        if room {
            self.known.push((wish, now));
        }
        room
    }

    fn next(&mut self) -> Option<Wish> {
        let (wish, _) = self.known.get(self.told)?;
        self.told += 1;
        Some(*wish)
    }
}

impl Engine {
    /// What this shard lacks, to be carried to the others until one can lend it. Call it after each batch of messages
    /// until it says None.
    pub fn next_wish(&mut self) -> Option<Wish> {
        self.wishes.next()
    }

    /// Gives what another shard wishes for, as far as it is free here; from now on it is the other's. Of a range half
    /// of what is free, and a few at most.
    pub fn lend<C: Config>(&mut self, wish: &Wish, config: &C) -> Vec<Lent> {
        let mut lent = Vec::new();
        match wish.address {
            Some(address) => {
                if let Some(slot) = self.table.find(wish.vlan, address) {
                    if self.is_dealable(slot) {
                        lent.push(self.give(slot));
                    } else {
                        self.want(slot);
                    }
                }
            }
            None => {
                let Some(pool) = self.table.pool(wish.vlan, wish.subnet) else {
                    return lent;
                };
                let mut count = pool.dealable().div_ceil(2).min(LENT_MAX);
                if wish.stranger {
                    let known = self.shard.share(config.known_count());
                    count = count.min(pool.left_for_strangers(known));
                }
                for _ in 0..LOOKED_MAX {
                    if lent.len() == count {
                        break;
                    }
                    let allowed = |address| {
                        let link = config.link_of(address);
                        link.is_some_and(|link| !rules::is_withheld(config, link, address))
                    };
                    let free = self
                        .table
                        .allocate(wish.vlan, wish.subnet, Ms::PAST, allowed);
                    let Some(slot) = free else { break };
                    lent.push(self.give(slot));
                }
            }
        }
        lent
    }

    fn give(&mut self, slot: u32) -> Lent {
        let run = self.table.run(slot);
        let (block, epoch) = (run.id, run.epoch);
        let address = self.table.address(slot);
        self.table.bar(slot);
        self.table.pool_of_mut(slot).total -= 1;
        self.counters.count(Sent::Lent);
        Lent {
            block,
            epoch,
            address,
        }
    }

    /// Takes what another shard gave. What is of another epoch is nobody's.
    pub fn take(&mut self, lent: &[Lent]) {
        for lent in lent {
            let slot = self.table.find_in_block(lent.block, lent.address);
            if let Some(slot) = slot
                && self.table.run(slot).epoch == lent.epoch
                && self.table.state(slot) == State::Barred
            {
                self.table.pool_of_mut(slot).total += 1;
                self.table.free(slot);
                self.counters.count(Sent::Borrowed);
                self.came = true;
            }
        }
    }

    /// Wishes for an address; true if it may come: a client that cannot be served otherwise waits for it.
    pub(super) fn wish<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        subnet: u32,
        address: Option<Ipv4Addr>,
    ) -> bool {
        let wish = Wish {
            vlan: ask.link.vlan,
            subnet,
            address,
            stranger: ask.is_stranger(),
        };
        self.shard.count > 1 && self.wishes.add(wish, ask.now)
    }

    /// A reserved address of a block of ours that is not here: it may be free at another shard.
    pub(super) fn wish_for_reserved<C: Config>(
        &mut self,
        ask: &Ask<'_, C>,
        subnet: u32,
        slot: u32,
    ) -> bool {
        let may_be_elsewhere =
            self.table.state(slot) == State::Barred && !self.table.run(slot).refused;
        may_be_elsewhere && self.wish(ask, subnet, Some(self.table.address(slot)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_is_told_once_in_a_while() {
        let mut wishes = Wishes::new();
        let at = |secs: u64| Ms::PAST.plus(Duration::from_secs(1000 + secs));
        let wish = |subnet| Wish {
            vlan: 1,
            subnet,
            address: None,
            stranger: false,
        };
        assert!(wishes.add(wish(1), at(0)) && !wishes.add(wish(1), at(4)));
        assert!(wishes.add(wish(2), at(4)));
        assert!(wishes.add(wish(2), at(4)), "it may still come");
        assert_eq!(
            (wishes.next(), wishes.next()),
            (Some(wish(1)), Some(wish(2)))
        );
        assert_eq!(wishes.next(), None);
        assert!(wishes.add(wish(1), at(5)), "again");
        assert_eq!((wishes.next(), wishes.next()), (Some(wish(1)), None));
        for subnet in 10..100 {
            wishes.add(wish(subnet), at(6));
        }
        assert_eq!(wishes.known.len(), WISHES_MAX);
        assert_eq!(std::iter::from_fn(|| wishes.next()).count(), WISHES_MAX - 2);
        assert!(wishes.add(wish(200), at(60)));
        assert_eq!(wishes.known.len(), 1);
    }
}
