//! The writing side of the store, one per shard: fills, tags, links, forgetting.
//!
//! Many fills run at once; everything else of a writer is serialised by its gates. What a caller
//! starts here goes on to its end if the caller stops waiting, so that nothing is left half made.
//! Groups are committed in `commit`, small records in `small`.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use bytes::Bytes;

use crate::Seconds;
use crate::compact::transient;
use crate::digest::{Digest, Hasher};
use crate::disk::Disk;
use crate::fill::{Fill, Progress};
use crate::index::{Flags, IndexedBody};
use crate::key::{ForgetKey, LinkKey, LinkRecord, RepositoryKey, Statistics, TagKey, TagRecord};
use crate::maintain::Upkeep;
use crate::page::Class;
use crate::reclaim::Reclaim;
use crate::record::BodyEntry;
use crate::reserve::Order;
use crate::segment::{Finished, Segment};
use crate::small::SmallLog;
use crate::store::{Body, Store};
use crate::wait::{Gate, detached};
use crate::watermark::FillFailure;

/// A group is committed at the latest when this many bytes wait for it: bounds what the kernel
/// must write within one sync, and what a crash can lose.
const COMMIT_BYTES: u64 = 256 << 20;
/// And of all writers together at the latest when they are this part of the store: what is not
/// durable cannot be evicted, and a small store would be full of it.
const COMMIT_PARTS: u64 = 16;

#[derive(Clone, Copy, Debug)]
pub struct FillSpec<'s> {
    pub digest: Digest,
    /// `None`: unknown until the end.
    pub length: Option<u64>,
    pub media_type: Option<&'s str>,
}

/// Why a body is not admitted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("the store is full")]
    Full,
    #[error("the body can never fit")]
    TooLarge,
    #[error("the media type is too long")]
    MediaTypeTooLong,
    #[error("the disk failed")]
    DiskFailed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    #[error("the disk failed; what was not durable is lost or will be written again")]
    DiskFailed,
    #[error("the store is full")]
    Full,
    #[error("the record is too long")]
    TooLong,
    #[error("too many records wait to be written")]
    Behind,
}

impl From<Refusal> for WriteError {
    fn from(refusal: Refusal) -> WriteError {
        match refusal {
            Refusal::Full | Refusal::TooLarge => WriteError::Full,
            Refusal::MediaTypeTooLong => WriteError::TooLong,
            Refusal::DiskFailed => WriteError::DiskFailed,
        }
    }
}

pub struct Writer<D: Disk> {
    pub(crate) shared: Rc<Shared<D>>,
}

/// What the writer, its fills and its tasks share. One thread, no lock held across an await.
pub(crate) struct Shared<D: Disk> {
    pub(crate) store: Arc<Store<D>>,
    /// Of the volumes, by number.
    pub(crate) disks: Box<[D]>,
    /// The segment that takes reservations.
    pub(crate) open: RefCell<Option<Rc<Segment<D>>>>,
    /// All segments with bodies that are not sealed yet, the open one included.
    pub(crate) segments: RefCell<Vec<Rc<Segment<D>>>>,
    pub(crate) small: SmallLog<D>,
    pub(crate) committing: Gate,
    /// Bytes of this writer that a crash would lose.
    pub(crate) uncommitted: Cell<u64>,
    /// Serialises what changes the open segment or makes files.
    pub(crate) reserving: Gate,
    pub(crate) maintaining: Gate,
    pub(crate) upkeep: Upkeep,
    running: RefCell<BTreeMap<u64, Rc<Progress<D>>>>,
    /// The latest time it was told.
    pub(crate) now: Cell<Seconds>,
    pub(crate) reclaim: Reclaim<D>,
    /// `Store::offline_changes` as this writer last saw it.
    pub(crate) offline_seen: Cell<u64>,
    pub(crate) shard: usize,
}

impl<D: Disk> Writer<D> {
    pub(crate) fn new(store: Arc<Store<D>>, disks: Vec<D>, shard: usize) -> Writer<D> {
        assert_eq!(disks.len(), store.volumes.len(), "a disk of each volume");
        let now = Cell::new(store.opened);
        Writer {
            shared: Rc::new(Shared {
                store,
                disks: disks.into(),
                open: RefCell::default(),
                segments: RefCell::default(),
                small: SmallLog::default(),
                committing: Gate::default(),
                uncommitted: Cell::new(0),
                running: RefCell::default(),
                reserving: Gate::default(),
                maintaining: Gate::default(),
                upkeep: Upkeep::default(),
                now,
                reclaim: Reclaim::default(),
                offline_seen: Cell::new(0),
                shard,
            }),
        }
    }

    /// The shard this writer was made for.
    pub fn shard(&self) -> usize {
        self.shared.shard
    }

    /// Reserves room for a body. A refusal leaves nothing behind.
    pub async fn fill(&self, spec: FillSpec<'_>) -> Result<Fill<D>, Refusal> {
        self.shared.fill(Order::new(&spec)?).await
    }

    /// The same fill into a file without a name: never committed, never in the index, gone with
    /// its last lease.
    pub async fn staging(&self, spec: FillSpec<'_>) -> Result<Fill<D>, Refusal> {
        self.shared.stage(Order::new(&spec)?).await
    }

    /// In the index at once; written with a later group, but not before the body it points to is
    /// durable. A tag whose body the store does not hold is never written.
    pub async fn put_tag(&self, key: TagKey, record: TagRecord) -> Result<(), WriteError> {
        self.shared.put_tag(key, record)
    }

    pub async fn put_link(&self, key: LinkKey, record: LinkRecord) -> Result<(), WriteError> {
        self.shared.put_link(key, record)
    }

    pub async fn put_statistics(
        &self,
        key: RepositoryKey,
        statistics: Statistics,
    ) -> Result<(), WriteError> {
        self.shared.put_statistics(key, statistics)
    }

    /// Forgets for good: gone from the index at once, running fills of the digest fail; when this
    /// returns `Ok` no restart brings it back. Leases stay readable.
    ///
    /// A scope is forgotten by the owner of `ScopeKey::slice`, on disk everything of it, from the
    /// index what this writer owns. What other writers have in the index they forget after it.
    pub async fn forget(&self, what: ForgetKey) -> Result<(), WriteError> {
        self.forget_all(vec![what]).await
    }

    /// The same for many keys of this writer, with one group for all of them. It holds their
    /// records in memory: some thousand at a time are enough.
    pub async fn forget_all(&self, all: Vec<ForgetKey>) -> Result<(), WriteError> {
        let shared = Rc::clone(&self.shared);
        detached(self.shared.tasks(), async move { shared.forget(all).await }).await
    }

    /// The bytes of a small body: from RAM, or read, checked against the digest and held in RAM
    /// from now on. A body with another digest is forgotten.
    pub async fn load(&self, digest: &Digest) -> Option<Bytes> {
        let body = self.shared.store.body(digest)?;
        if body.bytes.is_some() {
            return body.bytes;
        }
        if body.len > self.shared.store.index.small_max() {
            return None;
        }
        let (shared, digest) = (Rc::clone(&self.shared), *digest);
        detached(
            self.shared.tasks(),
            async move { shared.load(digest).await },
        )
        .await
    }

    /// Bytes of bodies and small records that a crash would lose.
    pub fn uncommitted(&self) -> u64 {
        self.shared.uncommitted.get()
    }

    /// Whether a commit is due before its time, for what waits for it.
    pub fn wants_commit(&self) -> bool {
        let store = &self.shared.store;
        let volumes = store.volumes.iter();
        let capacity: u64 = volumes.map(|volume| volume.budget.capacity()).sum();
        let share = capacity / COMMIT_PARTS / store.owners as u64;
        self.uncommitted() >= COMMIT_BYTES.min(share)
    }

    /// Commits a group: syncs what was finished, then writes its commit entries, which the next
    /// group's sync makes durable. So two calls make everything durable that was finished before
    /// the first; tags whose digest another writer owns may need that writer's two calls first.
    /// A failed sync costs the segment, never a retry: `Err` says that this happened.
    pub async fn commit(&self, now: Seconds) -> Result<(), WriteError> {
        let shared = Rc::clone(&self.shared);
        detached(self.shared.tasks(), async move { shared.commit(now).await }).await
    }

    /// Commits everything and seals every segment no fill runs in: for a drain.
    pub async fn seal_all(&self, now: Seconds) -> Result<(), WriteError> {
        let shared = Rc::clone(&self.shared);
        detached(
            self.shared.tasks(),
            async move { shared.seal_all(now).await },
        )
        .await
    }
}

impl<D: Disk> Shared<D> {
    pub(crate) fn shard(&self) -> usize {
        self.shard
    }

    pub(crate) fn disk(&self, volume: u8) -> &D {
        &self.disks[usize::from(volume)]
    }

    /// What runs tasks on this thread: any disk does, a failing one too.
    pub(crate) fn tasks(&self) -> &D {
        &self.disks[0]
    }

    /// Puts a verified body into the index and into the next group.
    pub(crate) fn settle(
        &self,
        progress: &Progress<D>,
        entry: BodyEntry,
        body: &Body<D>,
        now: Seconds,
    ) {
        let segment = progress.segment.as_ref().expect("staging is not settled");
        self.now.set(now);
        let replaces = self.store.index.insert_body(IndexedBody {
            digest: entry.digest,
            sequence: progress.sequence,
            lease: body.lease.clone(),
            media_type: self
                .store
                .index
                .media_types
                .intern(body.media_type.as_ref()),
            bytes: body.bytes.clone().map(Box::new),
            recency: AtomicU32::new(self.store.clock.now()),
            flags: Flags::new(Flags::TOUCHED),
        });
        let finished = Finished {
            sequence: progress.sequence,
            entry,
            replaces,
        };
        self.add_uncommitted(finished.waiting());
        segment.finished.borrow_mut().push(finished);
    }

    pub(crate) fn add_uncommitted(&self, bytes: u64) {
        self.uncommitted.set(self.uncommitted.get() + bytes);
        self.store.uncommitted.add(bytes);
    }

    pub(crate) fn remove_uncommitted(&self, bytes: u64) {
        self.uncommitted.set(self.uncommitted.get() - bytes);
        self.store.uncommitted.remove(bytes);
    }

    pub(crate) fn run(&self, progress: &Rc<Progress<D>>) {
        let progress = Rc::clone(progress);
        self.running
            .borrow_mut()
            .insert(progress.sequence, progress);
    }

    pub(crate) fn end_fill(&self, progress: &Progress<D>, why: FillFailure) {
        if progress.fail(why) {
            self.fill_ended(progress);
        }
    }

    /// Called once for each fill, whatever its end.
    pub(crate) fn fill_ended(&self, progress: &Progress<D>) {
        self.running.borrow_mut().remove(&progress.sequence);
        let Some(segment) = &progress.segment else {
            return;
        };
        if !progress.verified() {
            segment.release_promise();
            if segment.class == Class::Solo {
                self.give_up(segment);
            }
        }
        segment.fill_ended();
    }

    pub(crate) fn running(&self, which: impl Fn(&Progress<D>) -> bool) -> Vec<Rc<Progress<D>>> {
        let running = self.running.borrow();
        running
            .values()
            .filter(|progress| which(progress))
            .cloned()
            .collect()
    }

    async fn load(self: Rc<Self>, digest: Digest) -> Option<Bytes> {
        let found = |found: &IndexedBody<D>| (found.sequence, found.lease.clone());
        let (sequence, lease) = self.store.index.with_body(&digest, found)?;
        let len = usize::try_from(lease.len()).ok()?;
        let disk = self.disk(lease.file.volume);
        let read = disk.read(lease.file(), lease.offset(), len).await;
        if let Err(error) = &read {
            let volume = lease.file.volume;
            if transient(error) {
                self.store.disk_failed(volume, error);
                return None;
            }
            self.store.read_failed(volume, self.now.get());
        }
        let bytes = Bytes::from(read.unwrap_or_default());
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        if hasher.finish() != digest {
            self.drop_body(&digest, sequence).await;
            return None;
        }
        if self.store.index.admit_small(lease.len()) {
            self.store.index.hold(&digest, sequence, bytes.clone());
        }
        Some(bytes)
    }
}
