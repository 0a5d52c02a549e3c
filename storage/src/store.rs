//! The store: what every shard reads, and what its writers share.
//!
//! Opened once per process; everything here may be called from every thread and takes at most a
//! short lock. Ids and sequences begin with the generation, which every open raises: none is ever
//! used twice, whatever was lost in a crash.

use std::collections::BTreeSet;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::Seconds;
use crate::attest::Attest;
use crate::clock::AgeClock;
use crate::digest::Digest;
use crate::disk::{Disk, too_many_files};
use crate::evict::{
    Cause, Evicted, Eviction, IDLE_AFTER_S, PIN_MAX_S, Policy, SMALL_IDLE_AFTER_S,
    SMALL_RECORDS_MAX,
};
use crate::exchange::Exchange;
use crate::forgets::Forgets;
use crate::geometry::Geometry;
use crate::index::Index;
use crate::key::{
    LinkKey, LinkKeyRef, LinkRecord, RepositoryKey, RepositoryKeyRef, Statistics, TagKey,
    TagKeyRef, TagRecord,
};
use crate::lease::{Lease, SegmentFile};
use crate::open::Plan;
use crate::page::Uuid;
use crate::record::Record;
use crate::superblock::Member;
use crate::volume::{Volume, VolumeSpec, VolumeUsage};
use crate::writer::{Refusal, Writer};

/// The tail that is withheld until the digest matched (S2).
pub const WITHHELD_BYTES: u64 = 1 << 20;
/// Bodies up to this length are also held in RAM: manifests and configs.
pub const SMALL_MAX_BYTES: u32 = 64 << 10;
/// RAM for small bodies.
pub const SMALL_BUDGET_BYTES: u64 = 256 << 20;

/// Bounds how long decayed bytes go unnoticed: 30 days, 4 MB/s for 10 TB.
pub const SCRUB_EVERY: Seconds = 30 * 24 * 3600;

#[derive(Clone, Debug)]
pub struct Options {
    /// Length of a shared segment; from the capacities if not given.
    pub segment_len: Option<u64>,
    /// Bodies from this length on get a segment of their own; from the capacities if not given.
    pub solo_min: Option<u64>,
    /// Writers there will be: writer `n` owns the slices of which [`crate::owner`] says so. With
    /// fewer the compactor waits for answers that nobody gives.
    pub shards: usize,
    /// Random, and other bytes at every start: the name of a new store, and what tells apart two
    /// processes that opened different volumes of one store.
    pub uuid: [u8; 16],
    pub small_max: u32,
    pub small_budget: u64,
    pub withheld_len: u64,
    /// Every live byte is read and checked once in so many seconds of the age clock; 0: never.
    pub scrub_every: Seconds,
    /// Bodies nobody asks for are evicted after this; those up to `small_max`, tags and links
    /// after the other.
    pub idle_after: Seconds,
    pub small_idle_after: Seconds,
    /// Which bodies go first when a volume is full.
    pub policy: Policy,
    /// Tags, links and statistics that are kept; beyond it the oldest go.
    pub small_records_max: u64,
    /// How long a lease may hold a file that is unlinked.
    pub pin_max: Seconds,
    /// Files of all volumes that may be open when one more is made for bodies: each segment is
    /// one, and what it takes nobody else of the process has.
    pub files_max: u64,
}

impl Options {
    pub fn new(shards: usize, uuid: [u8; 16]) -> Options {
        Options {
            segment_len: None,
            solo_min: None,
            shards,
            uuid,
            small_max: SMALL_MAX_BYTES,
            small_budget: SMALL_BUDGET_BYTES,
            withheld_len: WITHHELD_BYTES,
            scrub_every: SCRUB_EVERY,
            idle_after: IDLE_AFTER_S,
            small_idle_after: SMALL_IDLE_AFTER_S,
            policy: Policy::default(),
            small_records_max: SMALL_RECORDS_MAX,
            pin_max: PIN_MAX_S,
            files_max: u64::MAX,
        }
    }
}

/// A body at rest.
#[derive(Debug)]
pub struct Body<D: Disk> {
    pub len: u64,
    pub media_type: Option<Arc<str>>,
    /// The whole body, where it is held in RAM.
    pub bytes: Option<Bytes>,
    /// Not to be served from its lease before `Writer::verify` said so.
    pub unverified: bool,
    pub lease: Lease<D>,
}

impl<D: Disk> Clone for Body<D> {
    fn clone(&self) -> Body<D> {
        Body {
            len: self.len,
            media_type: self.media_type.clone(),
            bytes: self.bytes.clone(),
            unverified: self.unverified,
            lease: self.lease.clone(),
        }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all volumes together, as everything here.
    pub capacity: u64,
    /// Allocated bytes, unlinked files that are still read included.
    pub used: u64,
    pub staging: u64,
    pub uncommitted_bytes: u64,
    pub uncommitted_records: u64,
    pub segments: u64,
    pub bodies: u64,
    pub tags: u64,
    pub links: u64,
    /// Segments given up since the start.
    pub quarantined: u64,
    /// Used bytes that compaction gives back, and those of unlinked files that are still read.
    pub dead: u64,
    pub pinned: u64,
    /// Unlinked files whose readers were stopped, since the start.
    pub revoked: u64,
    /// Bodies that nobody asked for, since the start;
    pub evicted_idle: Evicted,
    /// evicted because a volume was nearly full;
    pub evicted_pressure: Evicted,
    /// or because a file could not be made.
    pub evicted_room: Evicted,
    /// Tags, links and statistics that nobody used or that were too many, since the start.
    pub evicted_records: u64,
}

/// What `open` found and did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Recovered {
    pub uuid: [u8; 16],
    /// How often the store was opened, this time included.
    pub generation: u64,
    pub segments: u64,
    /// Segments that were open when the last process ended, sealed now.
    pub sealed: u64,
    /// Segments without a live record, unlinked.
    pub unlinked: u64,
    pub bodies: u64,
    pub body_bytes: u64,
    pub tags: u64,
    pub links: u64,
    /// Records that a forget record killed.
    pub forgotten: u64,
    /// Records that a later one of the same key replaced.
    pub superseded: u64,
    /// Commit entries whose extent or header is not what they say: dropped.
    pub invalid: u64,
    /// Segment files of another store, ignored.
    pub foreign: Vec<String>,
    /// Segments of small records of which some pages are lost.
    pub damaged: Vec<String>,
    /// Segments that could not be read or synced, ignored.
    pub unreadable: Vec<String>,
    /// Numbers of volumes that could not be read, and serve nothing.
    pub away: Vec<usize>,
    /// Numbers of volumes that had been opened without the others, so that what was on them had
    /// to go.
    pub emptied: Vec<usize>,
}

/// Which volume kept the store from opening, by its place in the list that `open` was given.
#[derive(Debug, thiserror::Error)]
#[error("volume {volume}: {error}")]
pub struct OpenFailure {
    pub volume: usize,
    #[source]
    pub error: OpenError,
}

impl OpenError {
    pub(crate) fn at(self, volume: usize) -> OpenFailure {
        OpenFailure {
            volume,
            error: self,
        }
    }
}

#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("{count} volumes; a store has 1 to {max}")]
    VolumeCount { count: usize, max: usize },
    #[error("it belongs to another store than the first volume")]
    AnotherStore,
    #[error("the store is in use by another process")]
    Locked,
    #[error("the store has format {found}; this program knows up to {known}")]
    NewerFormat { found: u32, known: u32 },
    #[error("the superblock of the store is damaged in both copies")]
    SuperblockDamaged,
    #[error("there are segments but no superblock: not a store, or not all of one")]
    SuperblockMissing,
    #[error("the capacity is too small: {capacity} bytes of at least {min}")]
    CapacityTooSmall { capacity: u64, min: u64 },
    #[error("the tags and purges in {name} cannot be read: {source}")]
    SmallRecordsUnreadable {
        name: String,
        source: std::io::Error,
    },
    #[error("the disk failed while {doing}: {source}")]
    Disk {
        doing: &'static str,
        source: std::io::Error,
    },
    /// Which files are there is not known then: nothing was changed but the superblock.
    #[error(
        "the store has more files than may be open; raise the limit of open files: {0}\n  \
             in a systemd unit:  LimitNOFILE="
    )]
    TooManyFiles(#[source] std::io::Error),
    /// Of a store that does not exist yet.
    #[error("a new store is not made without this volume: {0}")]
    AwayFromNew(#[source] Box<OpenError>),
}

pub struct Store<D: Disk> {
    pub(crate) uuid: Uuid,
    pub(crate) geometry: Geometry,
    /// By number.
    pub(crate) volumes: Box<[Volume<D>]>,
    pub(crate) index: Index<D>,
    pub(crate) clock: AgeClock,
    pub(crate) eviction: Eviction,
    pub(crate) uncommitted: Uncommitted,
    pub(crate) exchange: Arc<Exchange>,
    pub(crate) scrub_every: Seconds,
    pub(crate) files_max: u64,
    /// When it was opened, as it was told.
    pub(crate) opened: Seconds,
    pub(crate) forgets: Forgets,
    /// Writers there are: each owns its part of all keys.
    pub(crate) owners: usize,
    generation: u64,
    pub(crate) attest: Attest,
    /// How often a volume went offline. Locked by whoever changes what a volume has.
    offline_changes: Mutex<u64>,
    /// How often a writer noticed that, all together.
    pub(crate) losers: AtomicU64,
    /// Small records of a later program: kept as they are.
    unknown: Mutex<BTreeSet<Vec<u8>>>,
    /// Members that may be at a place that could not be read at the start.
    missing: Mutex<Vec<Member>>,
    segments_made: AtomicU64,
    records_made: AtomicU64,
}

/// What a crash would lose.
#[derive(Default)]
pub(crate) struct Uncommitted {
    bytes: AtomicU64,
    records: AtomicU64,
}

impl Uncommitted {
    pub(crate) fn add(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
        self.records.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn remove(&self, bytes: u64) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.records.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A generation numbers this many segments and records at most: 2^40 of either are centuries.
pub(crate) const GENERATION_SHIFT: u32 = 40;

impl<D: Disk> Store<D> {
    /// Takes the locks, reads what is there, seals what was open, and serves it. One to
    /// `VOLUMES_MAX` volumes; their order numbers them.
    pub async fn open(
        volumes: Vec<VolumeSpec<D>>,
        options: Options,
        now: Seconds,
    ) -> Result<(Arc<Store<D>>, Recovered), OpenFailure> {
        crate::open::open(&volumes, &options, now).await
    }

    pub(crate) fn new(
        plan: &Plan,
        geometry: Geometry,
        options: &Options,
        opened: Seconds,
        volumes: Vec<Volume<D>>,
    ) -> Store<D> {
        Store {
            opened,
            uuid: plan.uuid,
            geometry,
            eviction: Eviction::new(options, volumes.len()),
            volumes: volumes.into(),
            index: Index::new(&plan.uuid, options.small_max, options.small_budget),
            clock: AgeClock::new(0, opened),
            uncommitted: Uncommitted::default(),
            generation: plan.opening.generation,
            missing: Mutex::new(plan.missing.clone()),
            forgets: Forgets::default(),
            exchange: Exchange::new(plan.uuid, options.shards),
            scrub_every: options.scrub_every,
            files_max: options.files_max,
            owners: options.shards.max(1),
            attest: Attest::default(),
            offline_changes: Mutex::default(),
            losers: AtomicU64::new(0),
            unknown: Mutex::default(),
            segments_made: AtomicU64::new(0),
            records_made: AtomicU64::new(0),
        }
    }

    /// The writing side, for one shard and on its thread. All writes of one digest, and of the
    /// tags and links of one repository, are made through one writer: their owner's. `disks` are
    /// those of the volumes, in their order.
    pub fn writer(self: &Arc<Self>, disks: Vec<D>, shard: usize) -> Writer<D> {
        Writer::new(Arc::clone(self), disks, shard)
    }

    /// What the compactor and the writers talk by.
    pub fn exchange(&self) -> Arc<Exchange> {
        Arc::clone(&self.exchange)
    }

    /// The segment of this id, while it has a name.
    pub(crate) fn file(&self, segment: u64) -> Option<Arc<SegmentFile<D>>> {
        let find = |volume: &Volume<D>| volume.registry().get(&segment).cloned();
        self.volumes.iter().find_map(find)
    }

    /// The hit path: no allocation, no I/O. Makes the body recent.
    pub fn body(&self, digest: &Digest) -> Option<Body<D>> {
        self.index.body(digest, self.clock.now())
    }

    pub fn tag<'k>(&self, key: impl Into<TagKeyRef<'k>>) -> Option<TagRecord> {
        self.index.tags.get(key.into(), self.clock.now())
    }

    pub fn link<'k>(&self, key: impl Into<LinkKeyRef<'k>>) -> Option<LinkRecord> {
        self.index.links.get(key.into(), self.clock.now())
    }

    pub fn statistics<'k>(&self, key: impl Into<RepositoryKeyRef<'k>>) -> Option<Statistics> {
        self.index.statistics.get(key.into(), self.clock.now())
    }

    /// Shows every tag and listing of one of the [`crate::SLICES`] slices, under the slice's
    /// lock: `look` must be short and call nothing of the store.
    pub fn each_tag(&self, slice: usize, mut look: impl FnMut(&TagKey, &TagRecord)) {
        self.index
            .tags
            .each(slice, |found| look(&found.key, &found.value));
    }

    /// The same for links.
    pub fn each_link(&self, slice: usize, mut look: impl FnMut(&LinkKey, &LinkRecord)) {
        self.index
            .links
            .each(slice, |found| look(&found.key, &found.value));
    }

    /// The same for statistics.
    pub fn each_statistics(&self, slice: usize, mut look: impl FnMut(&RepositoryKey, &Statistics)) {
        self.index
            .statistics
            .each(slice, |found| look(&found.key, &found.value));
    }

    /// Bytes of one index entry of a body, digest included, and of the tables that hold them.
    #[doc(hidden)]
    pub fn index_memory(&self) -> (usize, usize) {
        self.index.body_memory()
    }

    pub fn usage(&self) -> Usage {
        let (bodies, tags, links) = self.index.counts();
        let volumes = self.volumes();
        let sum = |part: fn(&VolumeUsage) -> u64| volumes.iter().map(part).sum();
        Usage {
            capacity: sum(|volume| volume.capacity),
            used: sum(|volume| volume.used),
            staging: sum(|volume| volume.staging),
            uncommitted_bytes: self.uncommitted.bytes.load(Ordering::Relaxed),
            uncommitted_records: self.uncommitted.records.load(Ordering::Relaxed),
            segments: sum(|volume| volume.segments),
            bodies,
            tags,
            links,
            quarantined: sum(|volume| volume.quarantined),
            dead: sum(|volume| volume.dead),
            pinned: sum(|volume| volume.pinned),
            revoked: sum(|volume| volume.revoked),
            evicted_idle: self.eviction.evicted(Cause::Idle),
            evicted_pressure: self.eviction.evicted(Cause::Pressure),
            evicted_room: self.eviction.evicted(Cause::Room),
            evicted_records: self.eviction.evicted_records(),
        }
    }

    pub(crate) fn offline_changes(&self) -> MutexGuard<'_, u64> {
        let changes = self.offline_changes.lock();
        changes.unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn missing(&self) -> MutexGuard<'_, Vec<Member>> {
        self.missing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Every volume has its own copy of the record: one of them is enough.
    pub(crate) fn keep_unknown(&self, record: &Record) {
        let mut unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.insert(record.encoded());
    }

    /// Encoded.
    pub(crate) fn unknown(&self) -> BTreeSet<Vec<u8>> {
        let unknown = self.unknown.lock().unwrap_or_else(PoisonError::into_inner);
        unknown.clone()
    }

    /// That of the next segment: all that were made before have a lower one.
    pub(crate) fn segment(&self) -> u64 {
        (self.generation << GENERATION_SHIFT) + self.segments_made.load(Ordering::Acquire)
    }

    pub(crate) fn next_segment(&self) -> u64 {
        self.number(&self.segments_made)
    }

    pub(crate) fn next_sequence(&self) -> u64 {
        self.number(&self.records_made)
    }

    /// Records from this one on were made since the store was opened.
    pub(crate) fn first_sequence(&self) -> u64 {
        self.generation << GENERATION_SHIFT
    }

    /// That of the next record: all that were made before have a lower one.
    pub(crate) fn sequence(&self) -> u64 {
        (self.generation << GENERATION_SHIFT) + self.records_made.load(Ordering::Acquire)
    }

    fn number(&self, made: &AtomicU64) -> u64 {
        (self.generation << GENERATION_SHIFT) + made.fetch_add(1, Ordering::AcqRel)
    }
}

/// How a failed create or grow is told to whoever wanted to write. Where there are too many files,
/// those of the segments that are unlinked for room are given back too.
pub(crate) fn refusal(error: &io::Error) -> Refusal {
    match error.kind() {
        _ if too_many_files(error) => Refusal::Full,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Refusal::Full,
        _ => Refusal::DiskFailed,
    }
}
