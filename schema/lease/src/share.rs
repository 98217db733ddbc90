//! How the blocks of one range are shared between the racks of its VLAN: a pure function of who has what and how full it is.
//!
//! A lone rack gets all. Of two, each gets 45 %, and the rest is held back for the one that runs low: a region looks every few
//! seconds, at the leases it has on record. Nothing here takes a block from anybody: it says who *should* have it; how it gets
//! there is the protocol's (yield, attach, until + 60 s).
//!
//! Moves cost both racks an attach, so as few blocks as possible move, the emptiest first, and what was handed out comes back
//! only when it is clearly not missed.

/// Of a range's blocks, what the racks of a VLAN with several get together, in percent.
const DEALT_PERCENT: usize = 90;
/// A rack with less of its addresses free than this gets blocks that are held back,
const LOW_PERCENT: u64 = 10;
/// until it has this much free.
const REFILLED_PERCENT: u64 = 20;
/// It gives them back when this much would be free without them.
const AMPLE_PERCENT: u64 = 40;

/// One block of a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share<R> {
    pub addresses: u32,
    /// Of them: leased or resting, ended by less than the 60 s of grace, or reserved.
    pub used: u32,
    /// Who serves it.
    pub owner: Option<R>,
    /// Who should, as last decided; None: held back.
    pub intended: Option<R>,
}

/// One rack of the VLAN, the primary first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sharer<R> {
    pub rack: R,
    /// A dead one is given nothing that is held back.
    pub alive: bool,
}

/// Who should have each block, in the order of `blocks`.
pub fn share<R: Copy + Eq>(blocks: &[Share<R>], racks: &[Sharer<R>]) -> Vec<Option<R>> {
    match racks {
        [] => vec![None; blocks.len()],
        [lone] => vec![Some(lone.rack); blocks.len()],
        _ => Sharing::of(blocks, racks).settle(),
    }
}

/// What each of `racks` gets of `blocks` at least: 45 % for two. A single block is the primary's.
fn least(blocks: usize, racks: usize, index: usize) -> usize {
    // To the nearest whole block, and down where there are two.
    let parts = 100 * racks;
    let each = (blocks * DEALT_PERCENT + parts.div_ceil(2) - 1) / parts;
    if blocks < racks {
        usize::from(index < blocks)
    } else {
        each.max(1)
    }
}

struct Sharing<'a, R> {
    blocks: &'a [Share<R>],
    racks: &'a [Sharer<R>],
    /// Index of the rack, for each block.
    intended: Vec<Option<usize>>,
}

impl<'a, R: Copy + Eq> Sharing<'a, R> {
    fn of(blocks: &'a [Share<R>], racks: &'a [Sharer<R>]) -> Self {
        let index = |rack: R| racks.iter().position(|sharer| sharer.rack == rack);
        let intended = blocks.iter().map(|block| index(block.intended?)).collect();
        Sharing {
            blocks,
            racks,
            intended,
        }
    }

    fn settle(mut self) -> Vec<Option<R>> {
        self.give_least();
        self.place_used();
        self.take_back();
        self.hand_out();
        let rack = |index: usize| self.racks[index].rack;
        self.intended.iter().map(|at| at.map(rack)).collect()
    }

    fn least(&self, rack: usize) -> usize {
        least(self.blocks.len(), self.racks.len(), rack)
    }

    fn count(&self, rack: usize) -> usize {
        self.intended.iter().filter(|at| **at == Some(rack)).count()
    }

    /// Everyone gets the least that it must have, from what is held back, else from what others have above theirs.
    fn give_least(&mut self) {
        for rack in 0..self.racks.len() {
            for _ in self.count(rack)..self.least(rack) {
                let spare: Vec<bool> = (0..self.racks.len())
                    .map(|other| self.count(other) > self.least(other))
                    .collect();
                let block = self
                    .best_held_back(rack)
                    .or_else(|| self.emptiest(|at| at.is_some_and(|at| spare[at])));
                let Some(block) = block else { return };
                self.intended[block] = Some(rack);
            }
        }
    }

    /// A block that somebody is in, or that somebody's reservation is in, has someone to serve it: who does already, else
    /// who has the fewest.
    fn place_used(&mut self) {
        for block in 0..self.blocks.len() {
            if self.intended[block].is_some() || self.blocks[block].used == 0 {
                continue;
            }
            let owner = self.blocks[block].owner;
            let serves = |rack: &usize| owner == Some(self.racks[*rack].rack);
            let all = 0..self.racks.len();
            let rack = all
                .clone()
                .find(serves)
                .or_else(|| all.min_by_key(|rack| self.count(*rack)));
            self.intended[block] = rack;
        }
    }

    /// What a rack has above its least is held back again, where nobody is in it and it is not missed.
    fn take_back(&mut self) {
        for rack in 0..self.racks.len() {
            for _ in self.least(rack)..self.count(rack) {
                let Some(block) = self.emptiest(|at| at == Some(rack)) else {
                    break;
                };
                if self.blocks[block].used > 0 {
                    break;
                }
                self.intended[block] = None;
                if self.free_percent(rack) < AMPLE_PERCENT {
                    self.intended[block] = Some(rack);
                    break;
                }
            }
        }
    }

    /// Who runs low is given of what is held back: at most half of what is left at a time, for the other may run low too.
    fn hand_out(&mut self) {
        let mut low: Vec<usize> = (0..self.racks.len())
            .filter(|rack| self.racks[*rack].alive && self.free_percent(*rack) < LOW_PERCENT)
            .collect();
        low.sort_by_key(|rack| self.free_percent(*rack));
        for rack in low {
            let left = self.intended.iter().filter(|at| at.is_none()).count();
            for _ in 0..left.div_ceil(2) {
                let Some(block) = self.best_held_back(rack) else {
                    break;
                };
                self.intended[block] = Some(rack);
                if self.free_percent(rack) >= REFILLED_PERCENT {
                    break;
                }
            }
        }
    }

    /// The block to give to `rack`: one that it serves already, else one that nobody serves, for another's may be long in
    /// coming; of these one that somebody is in, else the first.
    fn best_held_back(&self, rack: usize) -> Option<usize> {
        let rack = Some(self.racks[rack].rack);
        let held_back = |index: &usize| self.intended[*index].is_none();
        (0..self.blocks.len())
            .filter(held_back)
            .min_by_key(|index| {
                let block = &self.blocks[*index];
                let moves = block.owner.is_some() && block.owner != rack;
                (moves, block.owner != rack, std::cmp::Reverse(block.used))
            })
    }

    /// Of equally empty ones the last.
    fn emptiest(&self, is_wanted: impl Fn(Option<usize>) -> bool) -> Option<usize> {
        (0..self.blocks.len())
            .rev()
            .filter(|index| is_wanted(self.intended[*index]))
            .min_by_key(|index| self.blocks[*index].used)
    }

    /// Of a rack without addresses: all.
    fn free_percent(&self, rack: usize) -> u64 {
        let own = self.blocks.iter().zip(&self.intended);
        let own = own.filter(|(_, at)| **at == Some(rack));
        let (used, all) = own.fold((0, 0), |(used, all), (block, _)| {
            (
                used + u64::from(block.used),
                all + u64::from(block.addresses),
            )
        });
        (100 * all)
            .saturating_sub(100 * used)
            .checked_div(all)
            .unwrap_or(100)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Sharer<char> = Sharer {
        rack: 'a',
        alive: true,
    };
    const B: Sharer<char> = Sharer {
        rack: 'b',
        alive: true,
    };

    /// One character a block: who should have it ('-': nobody); `used` of 64 addresses each, owned as intended.
    fn blocks(intended: &str, used: &[u32]) -> Vec<Share<char>> {
        let block = |(index, rack): (usize, char)| {
            let rack = Some(rack).filter(|rack| *rack != '-');
            Share {
                addresses: 64,
                used: used.get(index).copied().unwrap_or(0),
                owner: rack,
                intended: rack,
            }
        };
        intended.chars().enumerate().map(block).collect()
    }

    fn shared(intended: &str, used: &[u32], racks: &[Sharer<char>]) -> String {
        share(&blocks(intended, used), racks)
            .iter()
            .map(|rack| rack.unwrap_or('-'))
            .collect()
    }

    #[test]
    fn a_lone_rack_gets_all_and_two_get_45_percent_each() {
        for (case, before, racks, want) in [
            ("nobody serves", "aab", &[][..], "---"),
            ("a lone rack", "-b-", &[A][..], "aaa"),
            (
                "twenty new",
                "--------------------",
                &[A, B],
                "aaaaaaaaabbbbbbbbb--",
            ),
            ("seven", "-------", &[A, B], "aaabbb-"),
            ("two", "--", &[A, B], "ab"),
            ("one is the primary's", "-", &[A, B], "a"),
            ("none", "", &[A, B], ""),
            // The last ones go, and a tenth is held back again.
            ("a second rack comes", "aaaaaaaaaa", &[A, B], "aaaa--bbbb"),
            ("the first one goes", "aaaabbbb--", &[B], "bbbbbbbbbb"),
            (
                "another comes in its place",
                "aaaaxxxx--",
                &[A, B],
                "aaaabb--bb",
            ),
            ("nothing to change", "abababab--", &[A, B], "abababab--"),
        ] {
            assert_eq!(shared(before, &[], racks), want, "{case}");
        }
    }

    #[test]
    fn what_nobody_serves_goes_first() {
        let mut blocks = blocks("aaaaxxxx--", &[]);
        blocks[7].owner = Some('b');
        let decided: String = share(&blocks, &[A, B])
            .iter()
            .map(|rack| rack.unwrap_or('-'))
            .collect();
        // Its own, the two without owner, and one that the rack before it still has.
        assert_eq!(decided, "aaaab--bbb");
    }

    #[test]
    fn shares_are_45_percent_to_the_nearest_block() {
        for (blocks, want) in [
            (1, [1, 0]),
            (2, [1, 1]),
            (3, [1, 1]),
            (7, [3, 3]),
            (10, [4, 4]),
        ] {
            assert_eq!(
                [0, 1].map(|index| least(blocks, 2, index)),
                want,
                "{blocks}"
            );
        }
        for blocks in [20_usize, 100, 2_800, 4_096] {
            let each = least(blocks, 2, 0);
            assert!(
                (2 * 100 * each).abs_diff(90 * blocks) <= 100,
                "{each} of {blocks}"
            );
        }
    }

    #[test]
    fn full_blocks_stay_where_they_are() {
        // The second rack gets the empty ones; the first keeps what is in use, above its share, until it is empty.
        let used = [64, 64, 64, 64, 64, 0, 0, 0, 0, 64];
        assert_eq!(shared("aaaaaaaaaa", &used, &[A, B]), "aaaaabbbba");
    }

    #[test]
    fn the_one_that_runs_low_is_handed_blocks_and_gives_them_back() {
        let full = |n: usize| [vec![64; n], vec![0; 20 - n]].concat();
        let (two, dead) = ("aaaaaaaaabbbbbbbbb--", Sharer { alive: false, ..A });
        // Nine blocks: 576 addresses, of which 10 % are 57.6.
        let mut used = full(8);
        used[8] = 6;
        assert_eq!(shared(two, &used, &[A, B]), two, "10 % are free");
        used[8] = 7;
        assert_eq!(shared(two, &used, &[A, B]), "aaaaaaaaabbbbbbbbba-");
        assert_eq!(
            shared(two, &used, &[dead, B]),
            two,
            "a dead one is given nothing"
        );
        assert_eq!(
            shared(two, &full(18), &[A, B]),
            "aaaaaaaaabbbbbbbbbab",
            "both run low"
        );
        // It is in use, or still needed; then it is not.
        let handed = "aaaaaaaaabbbbbbbbba-";
        used[18] = 1;
        assert_eq!(shared(handed, &used, &[A, B]), handed);
        assert_eq!(
            shared(handed, &full(6), &[A, B]),
            handed,
            "33 % would be free"
        );
        assert_eq!(shared(handed, &full(5), &[A, B]), two, "44 % are");
    }

    #[test]
    fn a_block_with_somebody_in_it_is_not_held_back() {
        let mut used = [0; 20];
        (used[18], used[19]) = (1, 1);
        assert_eq!(
            shared("aaaaaaaaabbbbbbbbb--", &used, &[A, B]),
            "aaaaaaaa-bbbbbbbb-ab",
            "an empty one of each is held back in its place"
        );
        let mut blocks = blocks("aaaaaaaaabbbbbbbbb--", &used);
        blocks[18].owner = Some('b');
        let decided = share(&blocks, &[A, B]);
        assert_eq!(decided[18..], [Some('b'), Some('a')], "its owner goes on");
    }

    #[test]
    fn deciding_again_changes_nothing() {
        // Every share of six blocks, each empty or full, among two racks.
        for case in 0..6_usize.pow(6) {
            let digit = |n: u32| case / 6_usize.pow(n) % 6;
            let block = |n| {
                let rack = [None, Some('a'), Some('b')][digit(n) % 3];
                Share {
                    addresses: 64,
                    used: if digit(n) < 3 { 0 } else { 64 },
                    owner: rack,
                    intended: rack,
                }
            };
            let mut blocks: Vec<Share<char>> = (0..6).map(block).collect();
            let mut rounds = 0;
            loop {
                let decided = share(&blocks, &[A, B]);
                for rack in ['a', 'b'] {
                    let count = decided.iter().filter(|at| **at == Some(rack)).count();
                    assert!(count >= least(6, 2, 0), "{case}: {decided:?}");
                }
                let before: Vec<_> = blocks.iter().map(|block| block.intended).collect();
                if decided == before {
                    break;
                }
                rounds += 1;
                assert!(rounds <= 4, "{case}: it goes to and fro");
                for (block, rack) in blocks.iter_mut().zip(decided) {
                    block.intended = rack;
                }
            }
        }
    }
}
