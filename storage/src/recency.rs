//! Recency over a restart: written every minute as records of the small log, read at recovery.
//!
//! A lost record makes some bodies look as old as their last one says, or as new as the start of
//! the process; nothing else depends on it.

use std::rc::Rc;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::clock::Age;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::index::{Flags, IndexedBody};
use crate::maintain::PLANNER;
use crate::mix;
use crate::page::Uuid;
use crate::record::Recency;
use crate::writer::{Shared, WriteError};

/// The age clock is written this often though nobody asked for anything, so that a restart of an
/// idle store loses no more of it.
const CLOCK_STEP_S: Age = 300;
/// Records between two groups: bounds the memory they take together, 1.5 MiB.
const GROUP_RECORDS: usize = 64;

/// What all recency records of a store say together.
pub(crate) struct Remembered {
    clock: Age,
    seed: u64,
    seen: HashTable<(Digest, Age)>,
}

impl Remembered {
    pub(crate) fn new(uuid: &Uuid) -> Remembered {
        Remembered {
            clock: 0,
            seed: mix::seed(uuid),
            seen: HashTable::new(),
        }
    }

    pub(crate) fn learn(&mut self, recency: &Recency) {
        self.clock = self
            .clock
            .max(Age::try_from(recency.clock).unwrap_or(Age::MAX));
        for (digest, age) in &recency.seen {
            let (seed, hash) = (self.seed, mix::digest(self.seed, digest));
            let same = |known: &(Digest, Age)| known.0 == *digest;
            match self
                .seen
                .entry(hash, same, |known| mix::digest(seed, &known.0))
            {
                Entry::Occupied(mut known) => known.get_mut().1 = known.get().1.max(*age),
                Entry::Vacant(empty) => {
                    empty.insert((*digest, *age));
                }
            }
        }
    }

    /// Where the age clock stood when it was last written.
    pub(crate) fn clock(&self) -> Age {
        self.clock
    }

    /// When the body was last asked for, if somebody wrote it down.
    pub(crate) fn of(&self, digest: &Digest) -> Option<Age> {
        let hash = mix::digest(self.seed, digest);
        let known = self.seen.find(hash, |known| known.0 == *digest);
        known.map(|(_, age)| self.clock.min(*age))
    }

    /// What nobody wrote down is as new as the process.
    pub(crate) fn or_now(&self, digest: &Digest) -> Age {
        self.of(digest).unwrap_or(self.clock)
    }
}

impl<D: Disk> Shared<D> {
    /// Writes when bodies were asked for since this was last done.
    pub(crate) async fn write_recency(self: &Rc<Self>) -> Result<(), WriteError> {
        let mut records = 0;
        for slice in self.slices() {
            // The flag before the time: a hit between them sets it again.
            let touched = |body: &IndexedBody<D>| body.flags.take(Flags::TOUCHED);
            for recency in self.recency_of(slice, touched) {
                self.queue_recency(recency)?;
                records += 1;
                if records % GROUP_RECORDS == 0 {
                    self.commit_small().await?;
                }
            }
            self.tasks().give_way().await;
        }
        if records == 0 && self.clock_due() {
            self.queue_recency(Recency {
                clock: self.store.clock.now().into(),
                seen: Vec::new(),
            })?;
        }
        self.commit_small().await
    }

    /// The times of the bodies of a slice that `which` says yes to, in records of a page at most.
    pub(crate) fn recency_of(
        &self,
        slice: usize,
        which: impl Fn(&IndexedBody<D>) -> bool,
    ) -> Vec<Recency> {
        let mut seen = Vec::new();
        self.store.index.each_body(slice, |body| {
            if which(body) {
                seen.push((body.digest, body.recency()));
            }
        });
        let clock = self.store.clock.now().into();
        let record = |seen: &[_]| Recency {
            clock,
            seen: seen.to_vec(),
        };
        seen.chunks(Recency::SEEN_MAX).map(record).collect()
    }

    fn clock_due(&self) -> bool {
        let now = self.store.clock.now();
        let due = |at: Age| now.saturating_sub(at) >= CLOCK_STEP_S;
        let due = self.shard() == PLANNER && self.upkeep.clock_written.get().is_none_or(due);
        if due {
            self.upkeep.clock_written.set(Some(now));
        }
        due
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
        let mut remembered = Remembered::new(&[0; 16]);
        records.iter().rev().for_each(|r| remembered.learn(r));
        assert_eq!(remembered.clock(), 70);
        assert_eq!(remembered.of(&a), Some(60));
        assert_eq!(remembered.of(&b), Some(70));
        assert_eq!((remembered.of(&c), remembered.or_now(&c)), (None, 70));
        let clock = u64::MAX;
        let seen = vec![(c, 9)];
        remembered.learn(&Recency { clock, seen });
        assert_eq!((remembered.clock(), remembered.of(&c)), (Age::MAX, Some(9)));
    }
}
