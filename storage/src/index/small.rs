//! Tags, links and statistics in the index: one kind of table for all three.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::Stripes;
use crate::Seconds;
use crate::clock::Age;
use crate::key::{
    LinkKey, LinkKeyRef, LinkRecord, RepositoryKey, RepositoryKeyRef, ScopeKey, Statistics, TagKey,
    TagKeyRef, TagRecord,
};

/// A key of small records: what a table has to know of it and of its values.
pub(crate) trait SmallKey: PartialEq {
    /// The key as a lookup borrows it.
    type Ref<'k>: Copy;
    type Value: Clone + PartialEq;

    fn borrowed(&self) -> Self::Ref<'_>;
    fn is(&self, key: Self::Ref<'_>) -> bool;
    fn hash(key: Self::Ref<'_>, seed: u64) -> u64;
    /// The virtual shard that owns it.
    fn slice(key: Self::Ref<'_>) -> usize;
    /// Project and repository.
    fn repository(&self) -> (&str, &str);
    /// When the value was made; `None` if a value never differs by its time alone.
    fn time(value: &mut Self::Value) -> Option<&mut Seconds>;
}

impl SmallKey for TagKey {
    type Ref<'k> = TagKeyRef<'k>;
    type Value = TagRecord;

    fn borrowed(&self) -> TagKeyRef<'_> {
        self.into()
    }

    fn is(&self, key: TagKeyRef<'_>) -> bool {
        self.borrowed() == key
    }

    fn hash(key: TagKeyRef<'_>, seed: u64) -> u64 {
        key.hash(seed)
    }

    fn slice(key: TagKeyRef<'_>) -> usize {
        key.slice()
    }

    fn repository(&self) -> (&str, &str) {
        (&self.project, &self.repository)
    }

    fn time(value: &mut TagRecord) -> Option<&mut Seconds> {
        Some(&mut value.checked)
    }
}

impl SmallKey for LinkKey {
    type Ref<'k> = LinkKeyRef<'k>;
    type Value = LinkRecord;

    fn borrowed(&self) -> LinkKeyRef<'_> {
        self.into()
    }

    fn is(&self, key: LinkKeyRef<'_>) -> bool {
        self.borrowed() == key
    }

    fn hash(key: LinkKeyRef<'_>, seed: u64) -> u64 {
        key.hash(seed)
    }

    fn slice(key: LinkKeyRef<'_>) -> usize {
        key.slice()
    }

    fn repository(&self) -> (&str, &str) {
        (&self.project, &self.repository)
    }

    fn time(value: &mut LinkRecord) -> Option<&mut Seconds> {
        Some(&mut value.at)
    }
}

impl SmallKey for RepositoryKey {
    type Ref<'k> = RepositoryKeyRef<'k>;
    type Value = Statistics;

    fn borrowed(&self) -> RepositoryKeyRef<'_> {
        self.into()
    }

    fn is(&self, key: RepositoryKeyRef<'_>) -> bool {
        self.borrowed() == key
    }

    fn hash(key: RepositoryKeyRef<'_>, seed: u64) -> u64 {
        key.hash(seed)
    }

    fn slice(key: RepositoryKeyRef<'_>) -> usize {
        key.slice()
    }

    fn repository(&self) -> (&str, &str) {
        (&self.project, &self.repository)
    }

    fn time(_value: &mut Statistics) -> Option<&mut Seconds> {
        None
    }
}

/// A small record in the index.
pub(crate) struct Valued<K: SmallKey> {
    pub(crate) key: K,
    pub(crate) value: K::Value,
    pub(crate) sequence: u64,
    /// When the value that is on disk, or on its way there, was made.
    written: Seconds,
    /// When it was last used, by the age clock.
    recency: AtomicU32,
}

impl<K: SmallKey> Valued<K> {
    pub(super) fn recency(&self) -> Age {
        self.recency.load(Ordering::Relaxed)
    }

    /// As with bodies, a store of an equal value is spared.
    fn touch(&self, age: Age) {
        if self.recency() < age {
            self.recency.store(age, Ordering::Relaxed);
        }
    }
}

/// In place of a time: the value is in memory only.
const NOT_WRITTEN: Seconds = 0;

/// When a value of which only the time changed is not written again.
#[derive(Clone, Copy)]
pub(crate) struct TouchLimit {
    /// The record on disk has this sequence at least,
    pub(crate) first: u64,
    /// and its time is less than this away.
    pub(crate) step: Seconds,
}

impl TouchLimit {
    fn passed(self, sequence: u64, written: Seconds, time: Seconds) -> bool {
        sequence < self.first || written.abs_diff(time) >= self.step
    }
}

/// All small records of one kind, striped as the bodies are.
pub(crate) struct SmallTable<K: SmallKey> {
    seed: u64,
    stripes: Stripes<Valued<K>>,
    count: AtomicU64,
}

impl<K: SmallKey> SmallTable<K> {
    pub(super) fn new(seed: u64) -> SmallTable<K> {
        SmallTable {
            seed,
            stripes: Stripes::new(),
            count: AtomicU64::new(0),
        }
    }

    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// The value; that it was asked for counts as a use.
    pub(crate) fn get(&self, key: K::Ref<'_>, age: Age) -> Option<K::Value> {
        let table = self.stripes.read(K::slice(key));
        let found = table.find(K::hash(key, self.seed), |valued| valued.key.is(key))?;
        found.touch(age);
        Some(found.value.clone())
    }

    /// The value and its sequence, unless it was given up before it was written.
    pub(crate) fn written(&self, key: &K) -> Option<(K::Value, u64)> {
        let key = key.borrowed();
        let table = self.stripes.read(K::slice(key));
        let found = table.find(K::hash(key, self.seed), |valued| valued.key.is(key))?;
        (found.written != NOT_WRITTEN).then(|| (found.value.clone(), found.sequence))
    }

    /// Takes over the time if nothing else changed and what is on disk is within the limit.
    pub(crate) fn touch(&self, key: &K, value: &K::Value, limit: TouchLimit) -> bool {
        let mut given = value.clone();
        let Some(time) = K::time(&mut given).copied() else {
            return false;
        };
        let change = |found: &mut Valued<K>| {
            let mut touched = found.value.clone();
            if let Some(at) = K::time(&mut touched) {
                *at = time;
            }
            if touched != *value || limit.passed(found.sequence, found.written, time) {
                return false;
            }
            found.value = touched;
            true
        };
        self.change(key, change).unwrap_or(false)
    }

    /// What is in the index is not on disk and will not be.
    pub(crate) fn not_written(&self, key: &K) {
        self.change(key, |found| found.written = NOT_WRITTEN);
    }

    fn change<T>(&self, key: &K, change: impl FnOnce(&mut Valued<K>) -> T) -> Option<T> {
        let key = key.borrowed();
        let mut table = self.stripes.write(K::slice(key));
        let found = table.find_mut(K::hash(key, self.seed), |valued| valued.key.is(key));
        found.map(change)
    }

    /// Inserts, or replaces a lower sequence.
    pub(crate) fn put(&self, key: K, mut value: K::Value, sequence: u64, age: Age) {
        let written = K::time(&mut value).map_or(NOT_WRITTEN, |time| *time);
        let slice = K::slice(key.borrowed());
        let hash = |valued: &Valued<K>| K::hash(valued.key.borrowed(), self.seed);
        let valued = Valued {
            key,
            value,
            sequence,
            written,
            recency: AtomicU32::new(age),
        };
        let mut table = self.stripes.write(slice);
        match table.entry(hash(&valued), |other| other.key == valued.key, hash) {
            Entry::Occupied(mut found) => {
                if found.get().sequence <= valued.sequence {
                    *found.get_mut() = valued;
                }
            }
            Entry::Vacant(empty) => {
                empty.insert(valued);
                self.count.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    pub(crate) fn remove(&self, key: &K) {
        self.remove_up_to(key, u64::MAX);
    }

    /// The same unless it has a higher sequence.
    pub(crate) fn remove_up_to(&self, key: &K, sequence: u64) {
        let key = key.borrowed();
        let mut table = self.stripes.write(K::slice(key));
        let goes = |valued: &Valued<K>| valued.key.is(key) && valued.sequence <= sequence;
        if let Ok(found) = table.find_entry(K::hash(key, self.seed), goes) {
            found.remove();
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(super) fn len(&self, slice: usize) -> u64 {
        self.stripes.read(slice).len() as u64
    }

    /// Shows every record of a slice, under its lock: `look` only looks.
    pub(crate) fn each(&self, slice: usize, look: impl FnMut(&Valued<K>)) {
        self.stripes.read(slice).iter().for_each(look);
    }

    /// Removes those records of a slice that `goes` says yes to. How many went.
    pub(super) fn sift(&self, slice: usize, mut goes: impl FnMut(&Valued<K>, u64) -> bool) -> u64 {
        let table = self.stripes.read(slice);
        let mut going: Vec<u64> = table
            .iter()
            .filter(|valued| goes(valued, K::hash(valued.key.borrowed(), self.seed)))
            .map(|valued| valued.sequence)
            .collect();
        drop(table);
        // Readers wait only if something goes.
        if going.is_empty() {
            return 0;
        }
        going.sort_unstable();
        let table: &mut HashTable<_> = &mut self.stripes.write(slice);
        let before = table.len();
        // What was put again since has another sequence.
        table.retain(|valued| going.binary_search(&valued.sequence).is_err());
        let gone = (before - table.len()) as u64;
        self.count.fetch_sub(gone, Ordering::Relaxed);
        gone
    }

    /// Removes what the scope holds, up to `sequence`.
    pub(super) fn remove_scope(&self, slice: usize, scope: &ScopeKey, sequence: u64) {
        self.sift(slice, |valued, _| {
            let (project, repository) = valued.key.repository();
            valued.sequence <= sequence && scope.holds(project, repository)
        });
    }
}
