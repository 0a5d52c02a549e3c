//! Tags, links and statistics in the index.

use std::sync::atomic::{AtomicU32, Ordering};

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use super::{Index, LINKS, STATISTICS, TAGS};
use crate::Seconds;
use crate::clock::Age;
use crate::disk::Disk;
use crate::key::{
    LinkKey, LinkKeyRef, LinkRecord, RepositoryKey, RepositoryKeyRef, Statistics, TagKey,
    TagKeyRef, TagRecord,
};
use crate::record::{Kind, Record};

/// A small record in the index.
pub(super) struct Valued<K, V> {
    pub(super) key: K,
    value: V,
    pub(super) sequence: u64,
    /// When the value that is on disk, or on its way there, was made.
    written: Seconds,
    /// When it was last used, by the age clock.
    recency: AtomicU32,
}

impl<K, V> Valued<K, V> {
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

impl<D: Disk> Index<D> {
    pub(crate) fn tag(&self, key: TagKeyRef<'_>, age: Age) -> Option<TagRecord> {
        let hash = key.hash(self.seed);
        let table = self.tags.read(key.slice());
        let found = table.find(hash, |tag| TagKeyRef::from(&tag.key) == key)?;
        found.touch(age);
        Some(found.value.clone())
    }

    /// Takes over the time if nothing else changed and what is on disk is within the limit.
    pub(crate) fn touch_tag(&self, key: &TagKey, value: &TagRecord, limit: TouchLimit) -> bool {
        let key = TagKeyRef::from(key);
        let mut table = self.tags.write(key.slice());
        let same = |tag: &Valued<TagKey, _>| TagKeyRef::from(&tag.key) == key;
        let Some(found) = table.find_mut(key.hash(self.seed), same) else {
            return false;
        };
        let mut touched = found.value.clone();
        touched.checked = value.checked;
        if touched != *value || limit.passed(found.sequence, found.written, value.checked) {
            return false;
        }
        found.value = touched;
        true
    }

    /// What is in the index is not on disk and will not be.
    pub(crate) fn tag_not_written(&self, key: &TagKey) {
        let key = TagKeyRef::from(key);
        let mut table = self.tags.write(key.slice());
        let same = |tag: &Valued<TagKey, _>| TagKeyRef::from(&tag.key) == key;
        if let Some(found) = table.find_mut(key.hash(self.seed), same) {
            found.written = NOT_WRITTEN;
        }
    }

    pub(crate) fn put_tag(&self, key: TagKey, value: TagRecord, sequence: u64, age: Age) {
        let (seed, written) = (self.seed, value.checked);
        let rehash = move |tag: &Valued<TagKey, _>| TagKeyRef::from(&tag.key).hash(seed);
        let (hash, slice) = (
            TagKeyRef::from(&key).hash(seed),
            TagKeyRef::from(&key).slice(),
        );
        if put(
            &mut self.tags.write(slice),
            hash,
            Valued {
                key,
                value,
                sequence,
                written,
                recency: AtomicU32::new(age),
            },
            rehash,
        ) {
            self.counts[TAGS].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn remove_tag(&self, key: &TagKey) {
        let key = TagKeyRef::from(key);
        let mut table = self.tags.write(key.slice());
        let same = |tag: &Valued<TagKey, _>| TagKeyRef::from(&tag.key) == key;
        if let Ok(found) = table.find_entry(key.hash(self.seed), same) {
            found.remove();
            self.counts[TAGS].fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn link(&self, key: LinkKeyRef<'_>, age: Age) -> Option<LinkRecord> {
        let hash = key.hash(self.seed);
        let table = self.links.read(key.slice());
        let found = table.find(hash, |link| LinkKeyRef::from(&link.key) == key)?;
        found.touch(age);
        Some(found.value.clone())
    }

    /// The same as `touch_tag`.
    pub(crate) fn touch_link(&self, key: &LinkKey, value: &LinkRecord, limit: TouchLimit) -> bool {
        let key = LinkKeyRef::from(key);
        let mut table = self.links.write(key.slice());
        let same = |link: &Valued<LinkKey, _>| LinkKeyRef::from(&link.key) == key;
        let Some(found) = table.find_mut(key.hash(self.seed), same) else {
            return false;
        };
        let mut touched = found.value.clone();
        touched.at = value.at;
        if touched != *value || limit.passed(found.sequence, found.written, value.at) {
            return false;
        }
        found.value = touched;
        true
    }

    pub(crate) fn put_link(&self, key: LinkKey, value: LinkRecord, sequence: u64, age: Age) {
        let (seed, written) = (self.seed, value.at);
        let rehash = move |link: &Valued<LinkKey, _>| LinkKeyRef::from(&link.key).hash(seed);
        let (hash, slice) = (
            LinkKeyRef::from(&key).hash(seed),
            LinkKeyRef::from(&key).slice(),
        );
        if put(
            &mut self.links.write(slice),
            hash,
            Valued {
                key,
                value,
                sequence,
                written,
                recency: AtomicU32::new(age),
            },
            rehash,
        ) {
            self.counts[LINKS].fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn remove_link(&self, key: &LinkKey) {
        let key = LinkKeyRef::from(key);
        let mut table = self.links.write(key.slice());
        let same = |link: &Valued<LinkKey, _>| LinkKeyRef::from(&link.key) == key;
        if let Ok(found) = table.find_entry(key.hash(self.seed), same) {
            found.remove();
            self.counts[LINKS].fetch_sub(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn statistics(&self, key: RepositoryKeyRef<'_>, age: Age) -> Option<Statistics> {
        let table = self.statistics.read(key.slice());
        let same = |found: &Valued<RepositoryKey, _>| RepositoryKeyRef::from(&found.key) == key;
        let found = table.find(key.hash(self.seed), same)?;
        found.touch(age);
        Some(found.value)
    }

    pub(crate) fn put_statistics(
        &self,
        key: RepositoryKey,
        value: Statistics,
        sequence: u64,
        age: Age,
    ) {
        let (seed, written) = (self.seed, 0);
        let rehash = move |s: &Valued<RepositoryKey, _>| RepositoryKeyRef::from(&s.key).hash(seed);
        let hash = RepositoryKeyRef::from(&key).hash(seed);
        let slice = RepositoryKeyRef::from(&key).slice();
        if put(
            &mut self.statistics.write(slice),
            hash,
            Valued {
                key,
                value,
                sequence,
                written,
                recency: AtomicU32::new(age),
            },
            rehash,
        ) {
            self.counts[STATISTICS].fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Enumeration, one slice at a time and under its lock: `look` only looks.
impl<D: Disk> Index<D> {
    pub(crate) fn each_tag(&self, slice: usize, mut look: impl FnMut(&TagKey, &TagRecord)) {
        let table = self.tags.read(slice);
        table.iter().for_each(|tag| look(&tag.key, &tag.value));
    }

    pub(crate) fn each_link(&self, slice: usize, mut look: impl FnMut(&LinkKey, &LinkRecord)) {
        let table = self.links.read(slice);
        table.iter().for_each(|link| look(&link.key, &link.value));
    }

    pub(crate) fn each_statistics(
        &self,
        slice: usize,
        mut look: impl FnMut(&RepositoryKey, &Statistics),
    ) {
        let table = self.statistics.read(slice);
        table
            .iter()
            .for_each(|found| look(&found.key, &found.value));
    }

    /// The tag and its sequence, unless it was given up before it was written.
    pub(crate) fn written_tag(&self, key: &TagKey) -> Option<(TagRecord, u64)> {
        let key = TagKeyRef::from(key);
        let table = self.tags.read(key.slice());
        let same = |tag: &Valued<TagKey, _>| TagKeyRef::from(&tag.key) == key;
        let found = table.find(key.hash(self.seed), same)?;
        (found.written != NOT_WRITTEN).then(|| (found.value.clone(), found.sequence))
    }

    /// The tags, links and statistics of a slice as records, oldest first. Some may not be
    /// on disk.
    pub(crate) fn small_records(&self, slice: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let mut add = |sequence, kind| records.push(Record { sequence, kind });
        for tag in self.tags.read(slice).iter() {
            add(tag.sequence, Kind::Tag(tag.key.clone(), tag.value.clone()));
        }
        for link in self.links.read(slice).iter() {
            let kind = Kind::Link(link.key.clone(), link.value.clone());
            add(link.sequence, kind);
        }
        for found in self.statistics.read(slice).iter() {
            let kind = Kind::Statistics(found.key.clone(), found.value);
            add(found.sequence, kind);
        }
        records.sort_by_key(|record| record.sequence);
        records
    }

    pub(crate) fn remove_statistics(&self, key: &RepositoryKey) {
        let key = RepositoryKeyRef::from(key);
        let mut table = self.statistics.write(key.slice());
        let same = |found: &Valued<RepositoryKey, _>| RepositoryKeyRef::from(&found.key) == key;
        if let Ok(found) = table.find_entry(key.hash(self.seed), same) {
            found.remove();
            self.counts[STATISTICS].fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Inserts, or replaces a lower sequence. Whether the key is new.
fn put<K: PartialEq, V>(
    table: &mut HashTable<Valued<K, V>>,
    hash: u64,
    valued: Valued<K, V>,
    rehash: impl Fn(&Valued<K, V>) -> u64,
) -> bool {
    match table.entry(hash, |other| other.key == valued.key, rehash) {
        Entry::Occupied(mut found) => {
            if found.get().sequence <= valued.sequence {
                *found.get_mut() = valued;
            }
            false
        }
        Entry::Vacant(empty) => {
            empty.insert(valued);
            true
        }
    }
}
