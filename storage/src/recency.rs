//! Recency over a restart: written every minute as records of the small log, read at recovery.
//!
//! A lost record makes some bodies look as old as their last one says, or as new as the start of
//! the process; nothing else depends on it.

use std::collections::HashMap;

use crate::clock::Age;
use crate::digest::Digest;
use crate::record::Recency;

/// What all recency records of a store say together.
#[derive(Default)]
pub(crate) struct Remembered {
    clock: Age,
    seen: HashMap<Digest, Age>,
}

impl Remembered {
    pub(crate) fn learn(&mut self, recency: &Recency) {
        self.clock = self
            .clock
            .max(Age::try_from(recency.clock).unwrap_or(Age::MAX));
        for (digest, age) in &recency.seen {
            let known = self.seen.entry(*digest).or_insert(*age);
            *known = (*known).max(*age);
        }
    }

    /// Where the age clock stood when it was last written.
    pub(crate) fn clock(&self) -> Age {
        self.clock
    }

    /// When the body was last asked for. Of what nobody wrote down it is now.
    pub(crate) fn of(&self, digest: &Digest) -> Age {
        self.seen
            .get(digest)
            .map_or(self.clock, |age| self.clock.min(*age))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_latest_time_counts_in_any_order() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|name| Digest::sha256(name));
        let (seen, older) = (vec![(a, 40), (b, 70)], vec![(a, 60), (b, 20)]);
        let records = [
            Recency { clock: 70, seen },
            Recency {
                clock: 60,
                seen: older,
            },
        ];
        let mut remembered = Remembered::default();
        records.iter().rev().for_each(|r| remembered.learn(r));
        assert_eq!(remembered.clock(), 70);
        assert_eq!(remembered.of(&a), 60);
        assert_eq!(remembered.of(&b), 70);
        assert_eq!(remembered.of(&c), 70, "not known");
        let clock = u64::MAX;
        let seen = vec![(c, 9)];
        remembered.learn(&Recency { clock, seen });
        assert_eq!((remembered.clock(), remembered.of(&c)), (Age::MAX, 9));
    }
}
