//! Histograms over ages, from which owners find together where to cut.
//!
//! Eight buckets per octave: the last bucket that goes is an eighth wide at most, and of that one
//! a share goes.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::clock::Age;

/// Buckets per octave, as a power of two.
const OCTAVE_SHIFT: u32 = 3;
const PER_OCTAVE: usize = 1 << OCTAVE_SHIFT;
/// Ages below one octave's buckets have one each; above, an octave for each bit that is left.
pub(crate) const BUCKETS: usize = PER_OCTAVE * (1 + (Age::BITS - OCTAVE_SHIFT) as usize);

pub(crate) fn bucket(age: Age) -> usize {
    let Some(exponent) = age.checked_ilog2().filter(|bits| *bits >= OCTAVE_SHIFT) else {
        return age as usize;
    };
    let octave = (exponent - OCTAVE_SHIFT) as usize;
    let within = (age >> (exponent - OCTAVE_SHIFT)) as usize - PER_OCTAVE;
    (octave + 1) * PER_OCTAVE + within
}

/// How many bytes, or records, there are of each age.
#[derive(Clone)]
pub(crate) struct Histogram {
    amounts: Box<[u64]>,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            amounts: vec![0; BUCKETS].into(),
        }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, age: Age, amount: u64) {
        self.amounts[bucket(age)] += amount;
    }

    pub(crate) fn total(&self) -> u64 {
        self.amounts.iter().sum()
    }

    pub(crate) fn add_all(&mut self, other: &Histogram) {
        for (amount, more) in self.amounts.iter_mut().zip(&other.amounts) {
            *amount += more;
        }
    }

    /// Adds what one owner published.
    pub(crate) fn merge(&mut self, other: &Published) {
        for (amount, published) in self.amounts.iter_mut().zip(&other.amounts) {
            *amount = amount.saturating_add(published.load(Ordering::Relaxed));
        }
    }

    /// Where to cut so that about `excess` goes, oldest first.
    pub(crate) fn cut(&self, excess: u64) -> Cut {
        let mut left = excess;
        for (bucket, amount) in self.amounts.iter().enumerate().rev() {
            if left < *amount {
                // Rounded up: what is wanted goes, and a little more.
                let share = u128::from(left) * u128::from(SHARE_ALL);
                let share = share.div_ceil(u128::from(*amount)) as u32;
                return Cut { bucket, share };
            }
            left -= amount;
        }
        Cut::ALL
    }
}

/// The whole of a bucket, in the units of a share.
const SHARE_ALL: u32 = 1 << 16;

/// What is too old: everything in higher buckets, and of one bucket a share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cut {
    bucket: usize,
    share: u32,
}

impl Cut {
    pub(crate) const NONE: Cut = Cut {
        bucket: BUCKETS,
        share: 0,
    };
    pub(crate) const ALL: Cut = Cut {
        bucket: 0,
        share: SHARE_ALL,
    };

    /// `lot` says which of equal age go: evenly spread, and another one in the next round, so
    /// that no body stays for ever because of its lot.
    pub(crate) fn takes(&self, age: Age, lot: u16) -> bool {
        let bucket = bucket(age);
        bucket > self.bucket || (bucket == self.bucket && u32::from(lot) < self.share)
    }
}

/// A histogram of one owner, as all can read it. Its amounts are of about the same moment.
pub(crate) struct Published {
    amounts: Box<[AtomicU64]>,
}

impl Default for Published {
    fn default() -> Published {
        Published {
            amounts: (0..BUCKETS).map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Published {
    pub(crate) fn publish(&self, histogram: &Histogram) {
        for (published, amount) in self.amounts.iter().zip(&histogram.amounts) {
            published.store(*amount, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::sim::Random;

    #[test]
    fn buckets_are_in_order_and_an_eighth_wide() {
        assert_eq!((bucket(0), bucket(7), bucket(8), bucket(15)), (0, 7, 8, 15));
        assert_eq!((bucket(16), bucket(17), bucket(18)), (16, 16, 17));
        assert_eq!(bucket(Age::MAX), BUCKETS - 1);
        let mut random = Random::new(1);
        for _ in 0..10_000 {
            let age = (random.draw() as u32) >> (random.draw() % 32);
            let next = age.saturating_add(age / 8 + 1);
            assert!(bucket(age) <= bucket(age.saturating_add(1)), "{age}");
            assert!(bucket(next) <= bucket(age) + 2, "{age}");
            assert!(bucket(age) < bucket(next) || next == Age::MAX, "{age}");
        }
    }

    /// Ages and lengths of bodies with the lot of each.
    fn bodies(random: &mut Random) -> Vec<(Age, u64, u16)> {
        let body = |random: &mut Random| {
            let age = (random.draw() as u32) >> (random.draw() % 32);
            let len = 1 + random.draw() % 1000;
            (age, len, random.draw() as u16)
        };
        (0..1000).map(|_| body(random)).collect()
    }

    #[test]
    fn a_cut_takes_the_excess_and_the_oldest() {
        for seed in 0..100 {
            let mut random = Random::new(seed);
            let bodies = bodies(&mut random);
            let mut histogram = Histogram::default();
            for (age, len, _) in &bodies {
                histogram.add(*age, *len);
            }
            let total = histogram.total();
            let excess = random.draw() % total;
            let cut = histogram.cut(excess);
            let taken = |body: &&(Age, u64, u16)| cut.takes(body.0, body.2);
            let goes: u64 = bodies.iter().filter(taken).map(|body| body.1).sum();
            let edge: u64 = bodies
                .iter()
                .filter(|body| bucket(body.0) == cut.bucket)
                .map(|body| body.1)
                .sum();
            assert!(goes.abs_diff(excess) <= edge, "{seed}: {goes} of {excess}");
            let oldest_kept = bodies.iter().filter(|body| !taken(body)).map(|b| b.0).max();
            let youngest_gone = bodies.iter().filter(taken).map(|body| body.0).min();
            if let (Some(kept), Some(gone)) = (oldest_kept, youngest_gone) {
                assert!(bucket(kept) <= bucket(gone), "{seed}: {kept} {gone}");
            }
        }
    }

    #[test]
    fn owners_cut_together_what_one_would() {
        let mut random = Random::new(3);
        let bodies = bodies(&mut random);
        let (mut whole, mut parts) = (Histogram::default(), vec![Histogram::default(); 3]);
        for (number, (age, len, _)) in bodies.iter().enumerate() {
            whole.add(*age, *len);
            parts[number % 3].add(*age, *len);
        }
        let mut merged = Histogram::default();
        for part in &parts {
            let published = Published::default();
            published.publish(&Histogram::default());
            published.publish(part);
            merged.merge(&published);
        }
        for excess in [0, 1, whole.total() / 2, whole.total() - 1] {
            assert_eq!(merged.cut(excess), whole.cut(excess));
        }
    }

    #[test]
    fn the_ends_of_a_cut() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.cut(1), Cut::ALL, "there is too little");
        histogram.add(5, 100);
        assert!(!histogram.cut(0).takes(5, 0), "nothing is wanted");
        assert!(histogram.cut(1).takes(5, 0), "rounded up");
        assert!(!histogram.cut(1).takes(5, u16::MAX));
        assert_eq!(histogram.cut(100), Cut::ALL);
        assert!(Cut::ALL.takes(0, u16::MAX));
        assert!(!Cut::NONE.takes(Age::MAX, 0));
    }
}
