//! Leases: the right to read an extent.
//!
//! A lease keeps its segment's file open, and with it the bytes, even after the segment is
//! unlinked, until it is dropped or revoked (S5). Whoever sends from a lease looks at `revoked`
//! before every slice and stops when it is set.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::{Budget, Counted};
use crate::clock::Age;
use crate::disk::Disk;
use crate::page::{Class, PAGE_LEN, round_up};

/// An open file of the store, shared by all who read it. It counts as used until the last of
/// them is gone, unlinked or not.
pub(crate) struct SegmentFile<D: Disk> {
    pub(crate) file: D::File,
    pub(crate) id: u64,
    pub(crate) class: Class,
    /// The number of its volume.
    pub(crate) volume: u8,
    /// A forget record with a lower sequence finds nothing to kill here.
    floor: AtomicU64,
    /// Its bodies are to be checked before they are served.
    unverified: AtomicBool,
    revoked: AtomicBool,
    opaque: AtomicBool,
    /// Its volume went offline.
    abandoned: AtomicBool,
    counts: Mutex<Counts>,
    budget: Arc<Budget>,
}

/// What a file holds, and as what the budget counts it. They change together.
struct Counts {
    stage: Stage,
    charged: u64,
    /// Of bodies that the index has here.
    live_bytes: u64,
    /// The same with their headers and padding.
    live_extents: u64,
    live_records: u64,
}

/// Bodies of one file, counted before their file hears of them.
#[derive(Clone, Default)]
pub(crate) struct Bodies {
    count: u64,
    bytes: u64,
    /// The same with their headers and padding.
    extents: u64,
}

impl Bodies {
    pub(crate) fn add(&mut self, len: u64) {
        self.count += 1;
        self.bytes += len;
        self.extents += extent_len(len);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Staging,
    /// Counts as live as a whole: what dies in it cannot be had back yet.
    Open,
    /// Nothing will be added to it: once nothing lives in it, it can go.
    Sealed,
    /// By the age clock. What is left of it belongs to its leases.
    Unlinked(Age),
}

/// Which file it is: what does not change.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    pub(crate) volume: u8,
    pub(crate) id: u64,
    pub(crate) class: Class,
    pub(crate) floor: u64,
}

impl<D: Disk> SegmentFile<D> {
    /// `charged` bytes are in `budget` already and return to it with the last lease.
    pub(crate) fn new(file: D::File, place: Place, charged: u64, budget: Arc<Budget>) -> Self {
        budget.open(charged);
        SegmentFile::at(Stage::Open, file, place, charged, budget)
    }

    /// Of a staging file, which has neither name nor id.
    pub(crate) fn staging(file: D::File, volume: u8, charged: u64, budget: Arc<Budget>) -> Self {
        let place = Place {
            volume,
            id: 0,
            class: Class::Solo,
            floor: 0,
        };
        SegmentFile::at(Stage::Staging, file, place, charged, budget)
    }

    fn at(stage: Stage, file: D::File, place: Place, charged: u64, budget: Arc<Budget>) -> Self {
        budget.file_opened();
        SegmentFile {
            file,
            id: place.id,
            class: place.class,
            volume: place.volume,
            floor: AtomicU64::new(place.floor),
            unverified: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            opaque: AtomicBool::new(false),
            abandoned: AtomicBool::new(false),
            counts: Mutex::new(Counts {
                stage,
                charged,
                live_bytes: 0,
                live_extents: 0,
                live_records: 0,
            }),
            budget,
        }
    }

    // Nothing that runs under the lock can leave the counts half changed: poison says nothing.
    fn counts(&self) -> MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The index took in a body of `len` bytes that is here.
    pub(crate) fn gained(&self, len: u64) {
        let mut bodies = Bodies::default();
        bodies.add(len);
        self.gained_all(&bodies);
    }

    pub(crate) fn gained_all(&self, bodies: &Bodies) {
        let mut counts = self.counts();
        counts.live_bytes += bodies.bytes;
        counts.live_extents += bodies.extents;
        counts.live_records += bodies.count;
        if counts.stage == Stage::Sealed {
            self.budget.live(bodies.extents);
        }
    }

    /// One of them left the index.
    pub(crate) fn lost(&self, len: u64) {
        let mut counts = self.counts();
        self.without(&mut counts, len);
        counts.live_records -= 1;
    }

    /// A later one took its place, which a crash may yet lose.
    pub(crate) fn replaced(self: &Arc<Self>, len: u64) -> Kept<D> {
        self.without(&mut self.counts(), len);
        Kept(Arc::clone(self))
    }

    fn without(&self, counts: &mut Counts, len: u64) {
        let extent = extent_len(len);
        counts.live_bytes -= len;
        counts.live_extents -= extent;
        if counts.stage == Stage::Sealed {
            self.budget.dead(extent);
        }
    }

    /// Keeps it from being unlinked as dead while the answer is kept.
    pub(crate) fn hold(self: &Arc<Self>) -> Kept<D> {
        self.counts().live_records += 1;
        Kept(Arc::clone(self))
    }

    /// Live bodies with their headers and padding.
    pub(crate) fn live_extents(&self) -> u64 {
        self.counts().live_extents
    }

    /// Live bodies, and what else keeps it from being dead.
    pub(crate) fn live_records(&self) -> u64 {
        self.counts().live_records
    }

    pub(crate) fn unverified(&self) -> bool {
        self.unverified.load(Ordering::Relaxed)
    }

    pub(crate) fn set_unverified(&self, unverified: bool) {
        self.unverified.store(unverified, Ordering::Relaxed);
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.counts().live_bytes
    }

    /// It has no body, and records of a later program.
    pub(crate) fn set_opaque(&self) {
        self.opaque.store(true, Ordering::Relaxed);
    }

    /// Whether it can go: sealed, and without a live body. Small records are not counted.
    pub(crate) fn dead(&self) -> bool {
        if self.opaque.load(Ordering::Relaxed) {
            return false;
        }
        let counts = self.counts();
        self.class != Class::Small && counts.stage == Stage::Sealed && counts.live_records == 0
    }

    /// Whether what dies in it is room that can be had back.
    pub(crate) fn sealed(&self) -> bool {
        self.counts().stage == Stage::Sealed
    }

    /// Before a record of this sequence is written to it.
    pub(crate) fn lower_floor(&self, sequence: u64) {
        self.floor.fetch_min(sequence, Ordering::AcqRel);
    }

    pub(crate) fn floor(&self) -> u64 {
        self.floor.load(Ordering::Acquire)
    }

    /// Only when all its bodies that live are in the index. Small records count as live as long
    /// as they have a file.
    pub(crate) fn seal(&self) {
        let mut counts = self.counts();
        if counts.stage == Stage::Open && self.class != Class::Small {
            counts.stage = Stage::Sealed;
            self.budget.sealed(counts.charged, counts.live_extents);
        }
    }

    /// Its name is gone: its bytes are now those of its leases.
    pub(crate) fn unlinked(&self, age: Age) {
        let mut counts = self.counts();
        let counted = match counts.stage {
            Stage::Open => Counted::Open,
            Stage::Sealed => Counted::Live(counts.live_extents),
            Stage::Staging | Stage::Unlinked(_) => return,
        };
        self.budget.pin(counts.charged, counted);
        counts.stage = Stage::Unlinked(age);
    }

    /// When it was unlinked, and the bytes that are held by its leases since.
    pub(crate) fn pinned(&self) -> Option<(Age, u64)> {
        let counts = self.counts();
        match counts.stage {
            Stage::Unlinked(age) => Some((age, counts.charged)),
            _ => None,
        }
    }

    pub(crate) fn charge(&self, bytes: u64) {
        let mut counts = self.counts();
        counts.charged += bytes;
        match counts.stage {
            Stage::Open => self.budget.open(bytes),
            Stage::Unlinked(_) => self.budget.pin(bytes, Counted::Live(0)),
            Stage::Sealed | Stage::Staging => {}
        }
    }

    pub(crate) fn charged(&self) -> u64 {
        self.counts().charged
    }

    /// Nothing is looked for in it any more.
    pub(crate) fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
    }

    pub(crate) fn abandoned(&self) -> bool {
        self.abandoned.load(Ordering::Acquire)
    }

    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    pub(crate) fn revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }
}

/// Counts as a live record of its segment until the one that replaced it is durable, or a job of
/// the compactor has ended.
pub(crate) struct Kept<D: Disk>(Arc<SegmentFile<D>>);

impl<D: Disk> Kept<D> {
    pub(crate) fn file(&self) -> Arc<SegmentFile<D>> {
        Arc::clone(&self.0)
    }
}

impl<D: Disk> Drop for Kept<D> {
    fn drop(&mut self) {
        self.0.counts().live_records -= 1;
    }
}

impl<D: Disk> Drop for SegmentFile<D> {
    fn drop(&mut self) {
        let counts = self.counts.get_mut();
        let counts = counts.unwrap_or_else(PoisonError::into_inner);
        self.budget.file_closed();
        match counts.stage {
            Stage::Staging => return self.budget.release_staging(counts.charged),
            Stage::Open => self.budget.pin(counts.charged, Counted::Open),
            Stage::Sealed => {
                let counted = Counted::Live(counts.live_extents);
                self.budget.pin(counts.charged, counted);
            }
            Stage::Unlinked(_) => {}
        }
        self.budget.unpin(counts.charged);
    }
}

/// What a body takes of its segment.
pub(crate) fn extent_len(len: u64) -> u64 {
    PAGE_LEN + round_up(len)
}

pub struct Lease<D: Disk> {
    pub(crate) file: Arc<SegmentFile<D>>,
    offset: u64,
    len: u64,
}

impl<D: Disk> Lease<D> {
    pub(crate) fn new(file: Arc<SegmentFile<D>>, offset: u64, len: u64) -> Lease<D> {
        Lease { file, offset, len }
    }

    pub fn file(&self) -> &D::File {
        &self.file.file
    }

    /// The number of the volume it is on, counted from 0.
    pub fn volume(&self) -> usize {
        usize::from(self.file.volume)
    }

    /// Where the body begins in the file.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Length of the body; of a running fill without a known length, 0.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The bytes may no longer be served from here: stop. If the body was moved, the index has the
    /// new place.
    pub fn revoked(&self) -> bool {
        self.file.revoked()
    }
}

impl<D: Disk> Clone for Lease<D> {
    fn clone(&self) -> Lease<D> {
        Lease {
            file: Arc::clone(&self.file),
            offset: self.offset,
            len: self.len,
        }
    }
}

impl<D: Disk> fmt::Debug for Lease<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lease")
            .field("offset", &self.offset)
            .field("len", &self.len)
            .finish()
    }
}
