//! Leases: the right to read an extent.
//!
//! A lease keeps its segment's file open, and with it the bytes, even after the segment is
//! unlinked, until it is dropped or revoked (S5). Whoever sends from a lease looks at `revoked`
//! before every slice and closes short when it is set.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::budget::Budget;
use crate::disk::Disk;
use crate::page::Class;

/// An open file of the store, shared by all who read it. It counts as used until the last of
/// them is gone, unlinked or not.
pub(crate) struct SegmentFile<D: Disk> {
    pub(crate) file: D::File,
    pub(crate) id: u64,
    pub(crate) class: Class,
    /// The number of its volume.
    pub(crate) volume: u8,
    charged: AtomicU64,
    /// Of bodies that the index has here.
    live_bytes: AtomicU64,
    live_records: AtomicU64,
    /// A forget record with a lower sequence finds nothing to kill here.
    #[expect(dead_code, reason = "read once forget records are kept in memory")]
    floor: AtomicU64,
    /// Nothing will be added to it: once nothing lives in it, it can go.
    sealed: AtomicBool,
    revoked: AtomicBool,
    budget: Arc<Budget>,
    staging: bool,
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
        SegmentFile {
            file,
            id: place.id,
            class: place.class,
            volume: place.volume,
            charged: AtomicU64::new(charged),
            live_bytes: AtomicU64::new(0),
            live_records: AtomicU64::new(0),
            floor: AtomicU64::new(place.floor),
            sealed: AtomicBool::new(false),
            revoked: AtomicBool::new(false),
            budget,
            staging: false,
        }
    }

    /// Of a staging file, which has neither name nor id.
    pub(crate) fn staging(file: D::File, volume: u8, charged: u64, budget: Arc<Budget>) -> Self {
        let place = Place {
            volume,
            id: 0,
            class: Class::Solo,
            floor: 0,
        };
        let mut staging = SegmentFile::new(file, place, charged, budget);
        staging.staging = true;
        staging
    }

    /// The index took in a body of `len` bytes that is here.
    pub(crate) fn gained(&self, len: u64) {
        self.live_bytes.fetch_add(len, Ordering::Relaxed);
        self.live_records.fetch_add(1, Ordering::AcqRel);
    }

    /// One of them left the index.
    pub(crate) fn lost(&self, len: u64) {
        self.live_bytes.fetch_sub(len, Ordering::Relaxed);
        self.live_records.fetch_sub(1, Ordering::AcqRel);
    }

    /// A later one took its place, which a crash may yet lose.
    pub(crate) fn replaced(self: &Arc<Self>, len: u64) -> Kept<D> {
        self.live_bytes.fetch_sub(len, Ordering::Relaxed);
        Kept(Arc::clone(self))
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes.load(Ordering::Relaxed)
    }

    /// Whether it can go: sealed, and without a live body. Small records are not counted.
    pub(crate) fn dead(&self) -> bool {
        let sealed = self.sealed.load(Ordering::Acquire);
        self.class != Class::Small && sealed && self.live_records.load(Ordering::Acquire) == 0
    }

    /// Only when all its bodies that live are in the index.
    pub(crate) fn seal(&self) {
        self.sealed.store(true, Ordering::Release);
    }

    pub(crate) fn charge(&self, bytes: u64) {
        self.charged.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn charged(&self) -> u64 {
        self.charged.load(Ordering::Relaxed)
    }

    pub(crate) fn revoke(&self) {
        self.revoked.store(true, Ordering::Release);
    }

    pub(crate) fn revoked(&self) -> bool {
        self.revoked.load(Ordering::Acquire)
    }
}

/// Counts as a live record of its segment until the one that replaced it is durable.
pub(crate) struct Kept<D: Disk>(Arc<SegmentFile<D>>);

impl<D: Disk> Kept<D> {
    pub(crate) fn file(&self) -> Arc<SegmentFile<D>> {
        Arc::clone(&self.0)
    }
}

impl<D: Disk> Drop for Kept<D> {
    fn drop(&mut self) {
        self.0.lost(0);
    }
}

impl<D: Disk> Drop for SegmentFile<D> {
    fn drop(&mut self) {
        let charged = *self.charged.get_mut();
        if self.staging {
            self.budget.release_staging(charged);
        } else {
            self.budget.release(charged);
        }
    }
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

    /// The bytes may no longer be served: stop, and close short.
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
