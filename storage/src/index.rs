//! The index: key to extent or value, in memory, derived from the segments (S4).
//!
//! 256 stripes per kind of key, each written by the shard that owns its virtual shard and read by
//! every core under a short lock. Lookups take borrowed keys and allocate nothing.

mod small;
mod sweep;
#[cfg(test)]
mod tests;

pub(crate) use small::TouchLimit;
pub(crate) use sweep::Seen;

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use bytes::Bytes;
use hashbrown::HashTable;
use hashbrown::hash_table::Entry;
use small::SmallTable;

use crate::clock::Age;
use crate::digest::{Digest, SLICES};
use crate::disk::Disk;
use crate::key::{LinkKey, RepositoryKey, TagKey};
use crate::lease::{Kept, Lease};
use crate::media::{MediaId, MediaTypes};
use crate::mix;
use crate::store::Body;

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
    body_count: AtomicU64,
    pub(crate) tags: SmallTable<TagKey>,
    pub(crate) links: SmallTable<LinkKey>,
    pub(crate) statistics: SmallTable<RepositoryKey>,
    pub(crate) media_types: MediaTypes,
    small_max: u64,
    small_budget: u64,
    small_used: AtomicU64,
}

impl<D: Disk> Index<D> {
    pub(crate) fn new(uuid: &[u8; 16], small_max: u32, small_budget: u64) -> Index<D> {
        let seed = mix::seed(uuid);
        Index {
            seed,
            bodies: Stripes::new(),
            body_count: AtomicU64::new(0),
            tags: SmallTable::new(seed),
            links: SmallTable::new(seed),
            statistics: SmallTable::new(seed),
            media_types: MediaTypes::default(),
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
        let bodies = self.body_count.load(Ordering::Relaxed);
        (bodies, self.tags.count(), self.links.count())
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
        self.body_count
            .fetch_add(bodies.len() as u64, Ordering::Relaxed);
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
                self.body_count.fetch_add(1, Ordering::Relaxed);
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
        self.body_count.fetch_sub(1, Ordering::Relaxed);
        self.release_small(&removed);
        Some(removed)
    }

    /// Removes the bodies of a slice whose volume went offline. How many it looked at.
    pub(crate) fn remove_abandoned(&self, slice: usize) -> u64 {
        let mut gone = Vec::new();
        let mut looked = 0;
        self.bodies.write(slice).retain(|body| {
            looked += 1;
            let stays = !body.lease.file.abandoned();
            if !stays {
                body.lease.file.lost(body.lease.len());
                gone.push(body.bytes.take());
            }
            stays
        });
        self.body_count
            .fetch_sub(gone.len() as u64, Ordering::Relaxed);
        for bytes in gone.into_iter().flatten() {
            let len = bytes.len() as u64;
            self.small_used.fetch_sub(len, Ordering::Relaxed);
        }
        looked
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
}
