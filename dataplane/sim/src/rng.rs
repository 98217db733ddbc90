//! All chance there is: SplitMix64, the same numbers for the same seed on every machine and in every version.

use std::time::Duration;

#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `end`, which is at least 1.
    pub fn below(&mut self, end: u64) -> u64 {
        // The bias of a remainder is far below what any test of ours could see.
        self.next() % end.max(1)
    }

    pub fn index(&mut self, length: usize) -> usize {
        self.below(length as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.index(of.len())]
    }

    /// True this many times in a thousand.
    pub fn permille(&mut self, chance: u64) -> bool {
        chance > 0 && self.below(1_000) < chance
    }

    pub fn coin(&mut self) -> bool {
        self.next() & 1 == 0
    }

    pub fn between(&mut self, least: Duration, most: Duration) -> Duration {
        let width = most.saturating_sub(least).as_micros() as u64;
        least + Duration::from_micros(self.below(width + 1))
    }

    /// Short ones often, long ones seldom: uniform on a logarithmic scale from a thousandth of `most` up to it.
    pub fn skewed(&mut self, most: Duration) -> Duration {
        let halvings = self.below(10);
        self.between(Duration::ZERO, most / (1 << halvings))
    }

    /// The time to the next of events that come once every `mean`. Capped at eight times that.
    pub fn gap(&mut self, mean: Duration) -> Duration {
        // -ln(u) by halves and a linear rest: whole numbers, so the same on every machine.
        let mut gap = 0.0;
        let mut draw = self.next();
        while draw & 1 == 0 && gap < 8.0 {
            gap += std::f64::consts::LN_2;
            draw = draw >> 1 | 1 << 63;
        }
        let rest = (self.below(1 << 20) as f64) / f64::from(1u32 << 20) * std::f64::consts::LN_2;
        mean.mul_f64(gap + rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_have_their_mean_and_permille_its_share() {
        let mut rng = Rng::new(1);
        let mean = Duration::from_secs(100);
        let sum: Duration = (0..10_000).map(|_| rng.gap(mean)).sum();
        assert!((95..115).contains(&(sum.as_secs() / 10_000)), "{sum:?}");
        let hits = (0..10_000).filter(|_| rng.permille(100)).count();
        assert!((900..1_100).contains(&hits), "{hits}");
        assert!((0..1_000).all(|_| rng.skewed(mean) <= mean));
    }
}
