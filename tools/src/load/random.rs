//! Pseudo-random numbers from a seed, and the distributions of registry traffic.

use std::f64::consts::TAU;

/// Vigna's SplitMix64.
#[derive(Clone)]
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between 0 and 1, neither of them.
    pub fn fraction(&mut self) -> f64 {
        ((self.draw() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    pub fn below(&mut self, count: usize) -> usize {
        (self.draw() % count as u64) as usize
    }

    /// Box and Muller's.
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (self.fraction(), self.fraction());
        (-2.0 * u.ln()).sqrt() * (TAU * v).cos()
    }

    /// How often in a row something happens that happens `mean` times on average.
    pub fn geometric(&mut self, mean: f64) -> usize {
        (self.fraction().ln() / (mean / (1.0 + mean)).ln()) as usize
    }

    /// A rank below `count`, each the less likely the higher, by Zipf's law with this exponent
    /// (not 1): the continuous law, rounded down.
    pub fn zipf(&mut self, count: usize, exponent: f64) -> usize {
        let rest = 1.0 - exponent;
        let span = (count as f64 + 1.0).powf(rest) - 1.0;
        let rank = (self.fraction() * span + 1.0).powf(1.0 / rest);
        (rank as usize - 1).min(count - 1)
    }

    pub fn shuffle<T>(&mut self, values: &mut [T]) {
        for last in (1..values.len()).rev() {
            values.swap(last, self.below(last + 1));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distributions() {
        let mut random = Random::new(1);
        let count = 20_000;
        let total: usize = (0..count).map(|_| random.geometric(1.96)).sum();
        let mean = total as f64 / count as f64;
        assert!((1.85..2.07).contains(&mean), "mean {mean}");
        for (exponent, tenth) in [(0.99, 0.6..0.9), (1.66, 0.95..1.0)] {
            let ranks: Vec<usize> = (0..count).map(|_| random.zipf(1000, exponent)).collect();
            assert!(ranks.iter().all(|rank| *rank < 1000));
            let first = ranks.iter().filter(|rank| **rank < 100).count();
            let share = first as f64 / count as f64;
            assert!(tenth.contains(&share), "{exponent}: {share}");
        }
        assert_eq!(random.zipf(1, 0.99), 0);
        let mut values: Vec<usize> = (0..100).collect();
        random.shuffle(&mut values);
        assert_ne!(values[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        values.sort_unstable();
        assert!(values.into_iter().eq(0..100));
    }
}
