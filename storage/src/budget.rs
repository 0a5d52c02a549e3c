//! The budget: how many bytes the store may hold, and how many it does.
//!
//! Used is what is allocated, unlinked files that are still open included. New files are admitted
//! up to a share of the capacity; the small records may use the rest, so that a purge can be
//! written to a store that is full.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Space;

/// Bodies are admitted up to this share of the capacity, in per cent.
const ADMIT_PERCENT: u64 = 98;
/// Nor when less than this share of the file system, in per cent, would stay free.
const FREE_PERCENT_MIN: u64 = 5;
/// Staging files together, in per cent of the capacity.
const STAGING_PERCENT: u64 = 2;

pub(crate) struct Budget {
    capacity: u64,
    used: AtomicU64,
    staging: AtomicU64,
}

/// Which part of the budget an allocation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Bodies,
    SmallRecords,
    Staging,
}

impl Budget {
    pub(crate) fn new(capacity: u64) -> Budget {
        Budget {
            capacity,
            used: AtomicU64::new(0),
            staging: AtomicU64::new(0),
        }
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    pub(crate) fn staging(&self) -> u64 {
        self.staging.load(Ordering::Relaxed)
    }

    /// The most that bodies may ever take together.
    pub(crate) fn bodies_max(&self) -> u64 {
        percent(self.capacity, ADMIT_PERCENT)
    }

    pub(crate) fn staging_max(&self) -> u64 {
        percent(self.capacity, STAGING_PERCENT)
    }

    /// Takes `bytes` if they fit. What was taken is released by the file that was made of it.
    pub(crate) fn take(&self, bytes: u64, purpose: Purpose) -> bool {
        let (taken, max) = match purpose {
            Purpose::Bodies => (&self.used, self.bodies_max()),
            Purpose::SmallRecords => (&self.used, self.capacity),
            Purpose::Staging => (&self.staging, self.staging_max()),
        };
        taken
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |now| {
                now.checked_add(bytes).filter(|sum| *sum <= max)
            })
            .is_ok()
    }

    /// Counts what recovery found on the disk, whether it fits or not.
    pub(crate) fn found(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn release(&self, bytes: u64) {
        self.used.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn release_staging(&self, bytes: u64) {
        self.staging.fetch_sub(bytes, Ordering::Relaxed);
    }

    pub(crate) fn give_back(&self, bytes: u64, purpose: Purpose) {
        match purpose {
            Purpose::Staging => self.release_staging(bytes),
            Purpose::Bodies | Purpose::SmallRecords => self.release(bytes),
        }
    }
}

/// Whether the file system can lose `bytes` and stay healthy. A purge is written to the last byte.
pub(crate) fn leaves_room(space: Space, bytes: u64, purpose: Purpose) -> bool {
    let kept = match purpose {
        Purpose::SmallRecords => 0,
        Purpose::Bodies | Purpose::Staging => percent(space.total, FREE_PERCENT_MIN),
    };
    space.free >= bytes && space.free - bytes >= kept
}

fn percent(whole: u64, percent: u64) -> u64 {
    whole / 100 * percent + whole % 100 * percent / 100
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_room_for_small_records() {
        let budget = Budget::new(1000);
        assert!(budget.take(980, Purpose::Bodies));
        assert!(!budget.take(1, Purpose::Bodies));
        assert!(budget.take(20, Purpose::SmallRecords));
        assert!(!budget.take(1, Purpose::SmallRecords));
        budget.give_back(980, Purpose::Bodies);
        assert_eq!(budget.used(), 20);
    }

    #[test]
    fn bounds_staging_apart() {
        let budget = Budget::new(1000);
        assert!(budget.take(20, Purpose::Staging));
        assert!(!budget.take(1, Purpose::Staging));
        assert_eq!((budget.staging(), budget.used()), (20, 0));
        budget.give_back(20, Purpose::Staging);
        assert_eq!(budget.staging(), 0);
    }

    #[test]
    fn a_nearly_full_file_system_is_full() {
        let space = Space {
            free: 60,
            total: 1000,
        };
        assert!(leaves_room(space, 10, Purpose::Bodies));
        assert!(!leaves_room(space, 11, Purpose::Bodies));
        assert!(leaves_room(space, 60, Purpose::SmallRecords));
        assert!(!leaves_room(space, 61, Purpose::SmallRecords));
    }
}
