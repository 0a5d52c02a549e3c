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

/// An open file of the store, shared by all who read it. It counts as used until the last of
/// them is gone, unlinked or not.
pub(crate) struct SegmentFile<D: Disk> {
    pub(crate) file: D::File,
    charged: AtomicU64,
    revoked: AtomicBool,
    budget: Arc<Budget>,
    staging: bool,
}

impl<D: Disk> SegmentFile<D> {
    /// `charged` bytes are in `budget` already and return to it with the last lease.
    pub(crate) fn new(file: D::File, charged: u64, staging: bool, budget: Arc<Budget>) -> Self {
        SegmentFile {
            file,
            charged: AtomicU64::new(charged),
            revoked: AtomicBool::new(false),
            budget,
            staging,
        }
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
