//! What was forgotten for good, in memory: of each key the highest sequence that is killed.
//!
//! Whatever brings records into the index asks here first. A forget record is written again with
//! every checkpoint of the small log, and is let go only when no segment on any volume can hold
//! anything that it kills.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::SLICES;
use crate::key::ForgetKey;

pub(crate) struct Forgets(Box<[Mutex<HashMap<ForgetKey, u64>>]>);

impl Default for Forgets {
    fn default() -> Forgets {
        Forgets((0..SLICES).map(|_| Mutex::default()).collect())
    }
}

impl Forgets {
    fn lock(&self, slice: usize) -> MutexGuard<'_, HashMap<ForgetKey, u64>> {
        self.0[slice].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills records of the key up to `sequence`.
    pub(crate) fn note(&self, key: &ForgetKey, sequence: u64) {
        let mut slice = self.lock(key.slice());
        let highest = slice.entry(key.clone()).or_insert(sequence);
        *highest = (*highest).max(sequence);
    }

    pub(crate) fn kills(&self, key: &ForgetKey, sequence: u64) -> bool {
        let slice = self.lock(key.slice());
        slice.get(key).is_some_and(|forget| sequence <= *forget)
    }

    pub(crate) fn is_empty(&self) -> bool {
        (0..SLICES).all(|slice| self.lock(slice).is_empty())
    }

    pub(crate) fn of_slice(&self, slice: usize) -> Vec<(ForgetKey, u64)> {
        let slice = self.lock(slice);
        let mut all: Vec<(ForgetKey, u64)> = slice.iter().map(|(k, s)| (k.clone(), *s)).collect();
        // The map's order is not that of the seed (S7).
        all.sort_by_key(|(_, sequence)| *sequence);
        all
    }

    /// Lets go of what has nothing left to kill: no segment of bodies begins before `bodies`,
    /// none of small records before `small`.
    pub(crate) fn let_go(&self, slice: usize, bodies: u64, small: u64) {
        self.lock(slice).retain(|key, sequence| match key {
            ForgetKey::Body(_) => *sequence >= bodies,
            _ => *sequence >= small,
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::key::RepositoryKey;

    #[test]
    fn is_kept_while_there_may_be_something_to_kill() {
        let forgets = Forgets::default();
        let body = ForgetKey::Body(Digest::sha256(b"b"));
        let statistics = ForgetKey::Statistics(RepositoryKey {
            project: "p".into(),
            repository: "r".into(),
        });
        forgets.note(&body, 9);
        forgets.note(&body, 7);
        forgets.note(&statistics, 9);
        assert!(forgets.kills(&body, 9) && !forgets.kills(&body, 10));
        let let_go = |bodies, small| {
            (0..SLICES).for_each(|slice| forgets.let_go(slice, bodies, small));
            (forgets.kills(&body, 9), forgets.kills(&statistics, 9))
        };
        assert_eq!(let_go(9, 9), (true, true));
        assert_eq!(let_go(10, 9), (false, true));
        assert_eq!(let_go(10, 10), (false, false));
        assert!((0..SLICES).all(|slice| forgets.of_slice(slice).is_empty()));
    }
}
