//! The index: key to extent or value, in memory, derived from the segments (S4).
//!
//! 256 stripes per kind of key, each written by the shard that owns its virtual shard and read by
//! every core under a short lock. Lookups take borrowed keys and allocate nothing.

mod sweep;

pub(crate) use sweep::Seen;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::clock::Age;
use crate::digest::{Digest, SLICES};
use crate::disk::Disk;
use crate::key::{
    LinkKey, LinkKeyRef, LinkRecord, RepositoryKey, RepositoryKeyRef, Statistics, TagKey,
    TagKeyRef, TagRecord,
};
use crate::lease::{Kept, Lease};
use crate::media::{MediaId, MediaTypes};
use crate::record::{Kind, Record};
use crate::store::Body;
use crate::{Seconds, mix};

/// Where a body is. There is one for each body of the store: every byte counts.
pub(crate) struct IndexedBody<D: Disk> {
    pub(crate) digest: Digest,
    pub(crate) sequence: u64,
    pub(crate) lease: Lease<D>,
    pub(crate) bytes: Option<Box<Bytes>>,
    /// When it was last asked for, by the age clock.
    pub(crate) recency: AtomicU32,
    pub(crate) media_type: MediaId,
    pub(crate) flags: Flags,
}

/// What is known of a body, one bit each.
#[derive(Default)]
pub(crate) struct Flags(AtomicU8);

impl Flags {
    /// Its commit entry survives a crash.
    pub(crate) const DURABLE: u8 = 1;
    /// Asked for since its recency was last written.
    pub(crate) const TOUCHED: u8 = 2;
    /// Of a segment that nobody sealed in time: to be checked before it is served.
    pub(crate) const UNVERIFIED: u8 = 4;

    pub(crate) fn new(flags: u8) -> Flags {
        Flags(AtomicU8::new(flags))
    }

    pub(crate) fn has(&self, flag: u8) -> bool {
        self.0.load(Ordering::Acquire) & flag != 0
    }

    pub(crate) fn set(&self, flag: u8) {
        self.0.fetch_or(flag, Ordering::Release);
    }

    pub(crate) fn clear(&self, flag: u8) {
        self.0.fetch_and(!flag, Ordering::Release);
    }

    /// Clears it. Whether it was set.
    pub(crate) fn take(&self, flag: u8) -> bool {
        self.has(flag) && self.0.fetch_and(!flag, Ordering::AcqRel) & flag != 0
    }
}

impl<D: Disk> IndexedBody<D> {
    pub(crate) fn recency(&self) -> Age {
        self.recency.load(Ordering::Relaxed)
    }

    /// A store of an equal value would still take the cache line from other cores.
    fn touch(&self, age: Age) {
        if self.recency() < age {
            self.recency.store(age, Ordering::Relaxed);
            // Set after the time: whoever clears it reads the time afterwards.
            if !self.flags.has(Flags::TOUCHED) {
                self.flags.set(Flags::TOUCHED);
            }
        }
    }
}

/// A small record in the index.
struct Valued<K, V> {
    key: K,
    value: V,
    sequence: u64,
    /// When the value that is on disk, or on its way there, was made.
    written: Seconds,
    /// When it was last used, by the age clock.
    recency: AtomicU32,
}

impl<K, V> Valued<K, V> {
    fn recency(&self) -> Age {
        self.recency.load(Ordering::Relaxed)
    }

    /// As with bodies, a store of an equal value is spared.
    fn touch(&self, age: Age) {
        if self.recency() < age {
            self.recency.store(age, Ordering::Relaxed);
        }
    }
}

/// A stripe has a cache line of its own, so that cores do not disturb their neighbours.
#[repr(align(64))]
struct Stripe<T>(RwLock<HashTable<T>>);

struct Stripes<T>(Box<[Stripe<T>]>);

impl<T> Stripes<T> {
    fn new() -> Stripes<T> {
        Stripes(
            (0..SLICES)
                .map(|_| Stripe(RwLock::new(HashTable::new())))
                .collect(),
        )
    }

    // Nothing that runs under the locks can leave a table half changed: poison says nothing.
    fn read(&self, slice: usize) -> RwLockReadGuard<'_, HashTable<T>> {
        self.0[slice]
            .0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, slice: usize) -> RwLockWriteGuard<'_, HashTable<T>> {
        self.0[slice]
            .0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

pub(crate) struct Index<D: Disk> {
    seed: u64,
    bodies: Stripes<IndexedBody<D>>,
    tags: Stripes<Valued<TagKey, TagRecord>>,
    links: Stripes<Valued<LinkKey, LinkRecord>>,
    statistics: Stripes<Valued<RepositoryKey, Statistics>>,
    pub(crate) media_types: MediaTypes,
    counts: [AtomicU64; 4],
    small_max: u64,
    small_budget: u64,
    small_used: AtomicU64,
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

const BODIES: usize = 0;
const TAGS: usize = 1;
const LINKS: usize = 2;
const STATISTICS: usize = 3;

impl<D: Disk> Index<D> {
    pub(crate) fn new(uuid: &[u8; 16], small_max: u32, small_budget: u64) -> Index<D> {
        Index {
            seed: mix::seed(uuid),
            bodies: Stripes::new(),
            tags: Stripes::new(),
            links: Stripes::new(),
            statistics: Stripes::new(),
            media_types: MediaTypes::default(),
            counts: Default::default(),
            small_max: u64::from(small_max),
            small_budget,
            small_used: AtomicU64::new(0),
        }
    }

    /// Bytes of one entry, and of the tables that hold them.
    pub(crate) fn body_memory(&self) -> (usize, usize) {
        let tables = (0..SLICES).map(|slice| self.bodies.read(slice).allocation_size());
        (size_of::<IndexedBody<D>>(), tables.sum())
    }

    /// How many bodies, tags and links there are.
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let count = |kind: usize| self.counts[kind].load(Ordering::Relaxed);
        (count(BODIES), count(TAGS), count(LINKS))
    }

    /// The hit path.
    pub(crate) fn body(&self, digest: &Digest, age: Age) -> Option<Body<D>> {
        self.with_body(digest, |found| {
            found.touch(age);
            Body {
                len: found.lease.len(),
                media_type: self.media_types.get(found.media_type),
                bytes: found.bytes.as_deref().cloned(),
                unverified: found.flags.has(Flags::UNVERIFIED),
                lease: found.lease.clone(),
            }
        })
    }

    pub(crate) fn with_body<T>(
        &self,
        digest: &Digest,
        look: impl FnOnce(&IndexedBody<D>) -> T,
    ) -> Option<T> {
        let hash = mix::digest(self.seed, digest);
        let table = self.bodies.read(digest.slice());
        table.find(hash, |body| body.digest == *digest).map(look)
    }

    /// Whether the digest is there, and if so whether its commit entry survives a crash.
    pub(crate) fn durable(&self, digest: &Digest) -> Option<bool> {
        self.with_body(digest, |found| found.flags.has(Flags::DURABLE))
    }

    pub(crate) fn set_durable(&self, digest: &Digest, sequence: u64) {
        self.with_body(digest, |found| {
            if found.sequence == sequence {
                found.flags.set(Flags::DURABLE);
            }
        });
    }

    pub(crate) fn set_verified(&self, digest: &Digest, sequence: u64) {
        self.with_body(digest, |found| {
            if found.sequence == sequence {
                found.flags.clear(Flags::UNVERIFIED);
            }
        });
    }

    /// Changes what is there of the digest, under the stripe's lock.
    pub(crate) fn change_body<T>(
        &self,
        digest: &Digest,
        change: impl FnOnce(&mut IndexedBody<D>) -> T,
    ) -> Option<T> {
        let hash = mix::digest(self.seed, digest);
        let mut table = self.bodies.write(digest.slice());
        let found = table.find_mut(hash, |body| body.digest == *digest);
        found.map(change)
    }

    /// Shows every body of a slice, under its lock.
    pub(crate) fn each_body(&self, slice: usize, look: impl FnMut(&IndexedBody<D>)) {
        self.bodies.read(slice).iter().for_each(look);
    }

    pub(crate) fn body_hash(&self, digest: &Digest) -> u64 {
        mix::digest(self.seed, digest)
    }

    /// Takes in bodies of one slice, none of which is there, under one lock and with room made at
    /// once. Their files do not hear of it.
    pub(crate) fn fill_slice(
        &self,
        slice: usize,
        bodies: impl ExactSizeIterator<Item = IndexedBody<D>>,
    ) {
        let hash = |body: &IndexedBody<D>| self.body_hash(&body.digest);
        let mut table = self.bodies.write(slice);
        table.reserve(bodies.len(), hash);
        self.counts[BODIES].fetch_add(bodies.len() as u64, Ordering::Relaxed);
        for body in bodies {
            table.insert_unique(hash(&body), body, hash);
        }
    }

    /// The highest sequence wins, whatever the order of insertion. What was replaced is kept on
    /// disk as long as the answer is.
    pub(crate) fn insert_body(&self, body: IndexedBody<D>) -> Option<Kept<D>> {
        let hash = mix::digest(self.seed, &body.digest);
        let mut table = self.bodies.write(body.digest.slice());
        let same = |other: &IndexedBody<D>| other.digest == body.digest;
        let (loser, kept) = match table.entry(hash, same, |b| mix::digest(self.seed, &b.digest)) {
            Entry::Occupied(mut found) if found.get().sequence < body.sequence => {
                body.lease.file.gained(body.lease.len());
                let loser = std::mem::replace(found.get_mut(), body);
                let kept = loser.lease.file.replaced(loser.lease.len());
                (loser, Some(kept))
            }
            Entry::Occupied(_) => (body, None),
            Entry::Vacant(empty) => {
                body.lease.file.gained(body.lease.len());
                empty.insert(body);
                self.counts[BODIES].fetch_add(1, Ordering::Relaxed);
                return None;
            }
        };
        drop(table);
        self.release_small(&loser);
        kept
    }

    /// Removes the digest if `which` says so of what is there.
    pub(crate) fn remove_body(
        &self,
        digest: &Digest,
        which: impl FnOnce(&IndexedBody<D>) -> bool,
    ) -> Option<IndexedBody<D>> {
        let hash = mix::digest(self.seed, digest);
        let mut table = self.bodies.write(digest.slice());
        let found = table.find_entry(hash, |body| body.digest == *digest).ok()?;
        if !which(found.get()) {
            return None;
        }
        let (removed, _) = found.remove();
        removed.lease.file.lost(removed.lease.len());
        drop(table);
        self.counts[BODIES].fetch_sub(1, Ordering::Relaxed);
        self.release_small(&removed);
        Some(removed)
    }

    /// Removes the bodies of a slice whose volume went offline.
    pub(crate) fn remove_abandoned(&self, slice: usize) {
        let mut gone = Vec::new();
        self.bodies.write(slice).retain(|body| {
            let stays = !body.lease.file.abandoned();
            if !stays {
                body.lease.file.lost(body.lease.len());
                gone.push(body.bytes.take());
            }
            stays
        });
        self.counts[BODIES].fetch_sub(gone.len() as u64, Ordering::Relaxed);
        for bytes in gone.into_iter().flatten() {
            let len = bytes.len() as u64;
            self.small_used.fetch_sub(len, Ordering::Relaxed);
        }
    }

    /// Whether a body of this length is to be held in RAM; if so, its bytes are counted.
    pub(crate) fn admit_small(&self, len: u64) -> bool {
        len <= self.small_max
            && self
                .small_used
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |used| {
                    used.checked_add(len)
                        .filter(|sum| *sum <= self.small_budget)
                })
                .is_ok()
    }

    pub(crate) fn small_max(&self) -> u64 {
        self.small_max
    }

    /// Gives a body the bytes that `admit_small` counted.
    pub(crate) fn hold(&self, digest: &Digest, sequence: u64, bytes: Bytes) {
        let len = bytes.len() as u64;
        let hash = mix::digest(self.seed, digest);
        let mut table = self.bodies.write(digest.slice());
        match table.find_mut(hash, |body| body.digest == *digest) {
            Some(body) if body.sequence == sequence && body.bytes.is_none() => {
                body.bytes = Some(Box::new(bytes));
            }
            _ => {
                self.small_used.fetch_sub(len, Ordering::Relaxed);
            }
        }
    }

    fn release_small(&self, body: &IndexedBody<D>) {
        if let Some(bytes) = &body.bytes {
            self.small_used
                .fetch_sub(bytes.len() as u64, Ordering::Relaxed);
        }
    }

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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::budget::Budget;
    use crate::disk::sim::{Executor, Random, SimDisk, SimFile, SimWorld};
    use crate::key::{Proof, TagKind};
    use crate::lease::{Place, SegmentFile};
    use crate::page::Class;

    fn file() -> SimFile {
        use crate::disk::Disk as _;
        let world = SimWorld::new(Random::new(1), 1 << 20);
        let executor = Executor::new(Random::new(1));
        let disk = SimDisk::new(&world, &executor);
        let (made, taken) = flume::bounded(1);
        executor.spawn(async move {
            made.send(disk.create("a", 0).await.expect("room"))
                .expect("taken");
        });
        while taken.is_empty() {
            executor.step(&world);
        }
        taken.recv().expect("created")
    }

    fn segment(file: &SimFile) -> Arc<SegmentFile<SimDisk>> {
        let budget = Arc::new(Budget::new(1, 1));
        let place = Place {
            volume: 0,
            id: 1,
            class: Class::Shared,
            floor: 0,
        };
        Arc::new(SegmentFile::new(file.clone(), place, 0, budget))
    }

    fn body(
        file: &Arc<SegmentFile<SimDisk>>,
        name: u64,
        sequence: u64,
        bytes: Option<Bytes>,
    ) -> IndexedBody<SimDisk> {
        IndexedBody {
            digest: Digest::sha256(&name.to_le_bytes()),
            sequence,
            lease: Lease::new(Arc::clone(file), 0, sequence),
            media_type: MediaId::NONE,
            bytes: bytes.map(Box::new),
            recency: AtomicU32::new(0),
            flags: Flags::default(),
        }
    }

    #[test]
    fn an_entry_is_64_bytes_beside_its_digest() {
        let entry = size_of::<IndexedBody<SimDisk>>();
        assert!(entry - size_of::<Digest>() <= 64, "{entry} bytes");
    }

    #[test]
    fn the_highest_sequence_wins_in_any_order() {
        let index = Index::<SimDisk>::new(&[5; 16], 100, 1000);
        let file = segment(&file());
        for name in 0..1000 {
            for sequence in if name % 2 == 0 { [1, 2] } else { [2, 1] } {
                index.insert_body(body(&file, name, sequence, None));
            }
        }
        assert_eq!(index.counts().0, 1000);
        let found = |name: u64| index.body(&Digest::sha256(&name.to_le_bytes()), 7);
        assert!((0..1000).all(|name| found(name).is_some_and(|body| body.len == 2)));
        assert!(found(1000).is_none());
        for name in 0..1000_u64 {
            let removed = index.remove_body(&Digest::sha256(&name.to_le_bytes()), |_| true);
            assert!(removed.is_some());
        }
        assert_eq!(index.counts().0, 0);
    }

    #[test]
    fn small_bodies_stay_within_their_budget() {
        let index = Index::<SimDisk>::new(&[5; 16], 100, 250);
        let file = segment(&file());
        assert!(!index.admit_small(101), "too long for one");
        for name in 0..2 {
            assert!(index.admit_small(100));
            index.insert_body(body(&file, name, 1, Some(vec![0; 100].into())));
        }
        assert!(!index.admit_small(100), "too much together");
        let digest = Digest::sha256(&0_u64.to_le_bytes());
        assert!(index.remove_body(&digest, |_| true).is_some());
        assert!(index.admit_small(100));
        index.insert_body(body(&file, 3, 1, None));
        let digest = Digest::sha256(&3_u64.to_le_bytes());
        index.hold(&digest, 1, vec![1; 100].into());
        assert_eq!(
            index
                .body(&digest, 1)
                .and_then(|b| b.bytes)
                .map(|b| b.len()),
            Some(100)
        );
        assert!(index.remove_body(&digest, |_| true).is_some());
        let digest = Digest::sha256(&1_u64.to_le_bytes());
        assert!(index.remove_body(&digest, |_| true).is_some());
        assert!((0..2).all(|_| index.admit_small(100)), "all was given back");
    }

    #[test]
    fn keys_are_told_apart_by_every_part() {
        let index = Index::<SimDisk>::new(&[5; 16], 0, 0);
        let digest = Digest::sha256(b"d");
        let kinds = [TagKind::Tag, TagKind::Listing];
        // The parts of these spell the same when they are strung together.
        for (project, repository, name) in [("a", "bc", "d"), ("ab", "c", "d"), ("a", "b", "cd")] {
            for kind in kinds {
                let key = TagKey {
                    project: project.into(),
                    repository: repository.into(),
                    kind,
                    name: name.into(),
                };
                let note = format!("{project}/{repository}/{kind:?}/{name}");
                let tag = TagRecord {
                    digest,
                    origin: "o".into(),
                    checked: 1,
                    note: note.as_str().into(),
                };
                index.put_tag(key.clone(), tag, 1, 0);
                let found = index.tag(TagKeyRef::from(&key), 0).expect("just put");
                assert_eq!(&*found.note, note);
            }
        }
        assert_eq!(index.counts().1, 6);
        let link = LinkKey {
            project: "a".into(),
            repository: "b".into(),
            digest,
        };
        let proof = Proof::Headed;
        let record = LinkRecord {
            origin: "o".into(),
            proof,
            at: 1,
        };
        index.put_link(link.clone(), record.clone(), 1, 0);
        assert_eq!(index.link(LinkKeyRef::from(&link), 0), Some(record));
        let other = LinkKeyRef {
            repository: "c",
            ..LinkKeyRef::from(&link)
        };
        assert_eq!(index.link(other, 0), None);
        index.remove_link(&link);
        assert_eq!(index.counts().2, 0);
    }

    #[test]
    fn a_time_alone_is_taken_over_without_a_write() {
        let index = Index::<SimDisk>::new(&[5; 16], 0, 0);
        let key = TagKey {
            project: "p".into(),
            repository: "r".into(),
            kind: TagKind::Tag,
            name: "t".into(),
        };
        let at = |checked| TagRecord {
            digest: Digest::sha256(b"d"),
            origin: "o".into(),
            checked,
            note: "".into(),
        };
        let limit = TouchLimit { first: 1, step: 60 };
        assert!(!index.touch_tag(&key, &at(100), limit));
        index.put_tag(key.clone(), at(100), 1, 0);
        assert!(index.touch_tag(&key, &at(159), limit));
        assert_eq!(
            index.tag(TagKeyRef::from(&key), 0).map(|tag| tag.checked),
            Some(159)
        );
        assert!(
            !index.touch_tag(&key, &at(160), limit),
            "from the one that was written"
        );
        let moved = TagRecord {
            digest: Digest::sha256(b"e"),
            ..at(101)
        };
        assert!(!index.touch_tag(&key, &moved, limit));
        let reopened = TouchLimit { first: 2, ..limit };
        assert!(
            !index.touch_tag(&key, &at(159), reopened),
            "who has what recovery found is not known"
        );
        index.tag_not_written(&key);
        assert!(
            !index.touch_tag(&key, &at(120), limit),
            "nothing is on disk"
        );
    }
}
