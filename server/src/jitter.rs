//! Pauses of random length: what failed together must not come back together.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

/// Between half of `longest` and all of it, evenly.
pub fn jittered(longest: Duration) -> Duration {
    // The keys differ from call to call, and the hash spreads them. No secret depends on it.
    let random = RandomState::new().hash_one(());
    let part = random as f64 / u64::MAX as f64;
    longest.mul_f64(0.5 + part / 2.0)
}

#[cfg(test)]
mod tests {
    use super::{Duration, jittered};

    #[test]
    fn pauses_differ_and_stay_within_bounds() {
        let longest = Duration::from_secs(1);
        let pauses: Vec<Duration> = (0..100).map(|_| jittered(longest)).collect();
        assert!(
            pauses
                .iter()
                .all(|pause| (longest / 2..=longest).contains(pause))
        );
        let early = pauses.iter().filter(|pause| **pause < longest * 3 / 4);
        assert!((20..80).contains(&early.count()), "{pauses:?}");
    }
}
