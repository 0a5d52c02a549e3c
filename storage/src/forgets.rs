//! What was forgotten for good, in memory: of each key the highest sequence that is killed.
//!
//! Whatever brings records into the index asks here first. A forget record is written again with
//! every checkpoint of the small log, and is let go only when no segment on any volume can hold
//! anything that it kills.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::digest::SLICES;
use crate::key::{ForgetKey, ScopeKey};

pub(crate) struct Forgets {
    slices: Box<[Mutex<HashMap<ForgetKey, u64>>]>,
    /// How many of them are scopes: mostly none, and then nobody looks for one.
    scopes: AtomicUsize,
}

impl Default for Forgets {
    fn default() -> Forgets {
        Forgets {
            slices: (0..SLICES).map(|_| Mutex::default()).collect(),
            scopes: AtomicUsize::new(0),
        }
    }
}

impl Forgets {
    fn lock(&self, slice: usize) -> MutexGuard<'_, HashMap<ForgetKey, u64>> {
        let slice = self.slices[slice].lock();
        slice.unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills records of the key up to `sequence`.
    pub(crate) fn note(&self, key: &ForgetKey, sequence: u64) {
        match self.lock(key.slice()).entry(key.clone()) {
            Entry::Occupied(mut highest) => {
                let highest = highest.get_mut();
                *highest = (*highest).max(sequence);
            }
            Entry::Vacant(empty) => {
                empty.insert(sequence);
                let scopes = usize::from(matches!(key, ForgetKey::Scope(_)));
                self.scopes.fetch_add(scopes, Ordering::Release);
            }
        }
    }

    pub(crate) fn kills(&self, key: &ForgetKey, sequence: u64) -> bool {
        let in_scope = |(project, repository): (&str, &str)| {
            self.kills_in_scope(project, repository, sequence)
        };
        self.noted(key, sequence) || key.repository().is_some_and(in_scope)
    }

    /// Whether the repository or its project was forgotten as a whole.
    pub(crate) fn kills_in_scope(&self, project: &str, repository: &str, sequence: u64) -> bool {
        if self.scopes.load(Ordering::Acquire) == 0 {
            return false;
        }
        let scopes = [Some(repository.into()), None].map(|repository| ScopeKey {
            project: project.into(),
            repository,
        });
        let noted = |scope| self.noted(&ForgetKey::Scope(scope), sequence);
        scopes.into_iter().any(noted)
    }

    fn noted(&self, key: &ForgetKey, sequence: u64) -> bool {
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
        self.lock(slice).retain(|key, sequence| {
            let stays = match key {
                ForgetKey::Body(_) => *sequence >= bodies,
                _ => *sequence >= small,
            };
            let scopes = usize::from(!stays && matches!(key, ForgetKey::Scope(_)));
            self.scopes.fetch_sub(scopes, Ordering::Release);
            stays
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
    #[test]
    fn a_scope_kills_what_is_in_it() {
        let forgets = Forgets::default();
        let statistics = |project: &str, repository: &str| {
            ForgetKey::Statistics(RepositoryKey {
                project: project.into(),
                repository: repository.into(),
            })
        };
        let scope = |project: &str, repository: Option<&str>| {
            ForgetKey::Scope(ScopeKey {
                project: project.into(),
                repository: repository.map(Into::into),
            })
        };
        assert!(!forgets.kills(&statistics("p", "r"), 1));
        forgets.note(&scope("p", Some("r")), 9);
        forgets.note(&scope("q", None), 5);
        let kills = |project, repository, sequence| {
            forgets.kills(&statistics(project, repository), sequence)
        };
        assert!(kills("p", "r", 9) && !kills("p", "r", 10) && !kills("p", "s", 9));
        assert!(kills("q", "r", 5) && kills("q", "s", 5) && !kills("q", "s", 6));
        (0..SLICES).for_each(|slice| forgets.let_go(slice, 0, 6));
        assert!(kills("p", "r", 9) && !kills("q", "r", 5));
        (0..SLICES).for_each(|slice| forgets.let_go(slice, 0, 10));
        assert_eq!(forgets.scopes.load(Ordering::Acquire), 0);
    }
}
