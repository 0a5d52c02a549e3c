//! The budget: how many bytes the store may hold, and how many it does.
//!
//! Used is what is allocated, unlinked files that are still open included. New files are admitted
//! up to a share of the capacity; the small records and the compactor may use the rest, so that a
//! purge can be written to a store that is full, and room be made in it.
//!
//! Used is live, open, pinned or dead. Live are the extents that the index has in sealed
//! segments; open are segments that are not sealed, and small records; pinned are unlinked files
//! that are still read. The rest is dead: compaction gives it back. Eviction looks at live and
//! open only, for the others go by themselves.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::disk::Space;

/// Bodies are admitted up to this share of the capacity, in per cent.
const ADMIT_PERCENT: u64 = 98;
/// Nor when less than this share of the file system, in per cent, would stay free.
const FREE_PERCENT_MIN: u64 = 5;
/// Staging files together, in per cent of the capacity.
const STAGING_PERCENT: u64 = 2;

/// Bodies are evicted when live and open bytes are over this share of the capacity, in per cent,
const EVICT_ABOVE_PERCENT: u64 = 95;
/// and until they are at this one, so that it is not begun again at once.
const EVICT_TO_PERCENT: u64 = 90;

const _: () =
    assert!(EVICT_TO_PERCENT < EVICT_ABOVE_PERCENT && EVICT_ABOVE_PERCENT < ADMIT_PERCENT);

pub(crate) struct Budget {
    capacity: u64,
    used: AtomicU64,
    live: AtomicU64,
    open: AtomicU64,
    pinned: AtomicU64,
    evicting: AtomicBool,
    staging: AtomicU64,
}

/// Which part of the budget an allocation comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    Bodies,
    SmallRecords,
    /// Copies that replace what they are made of.
    Survivors,
    Staging,
}

/// As what a file was counted before it was unlinked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Open,
    /// With this many bytes of live extents.
    Live(u64),
}

impl Budget {
    pub(crate) fn new(capacity: u64) -> Budget {
        Budget {
            capacity,
            used: AtomicU64::new(0),
            live: AtomicU64::new(0),
            open: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            evicting: AtomicBool::new(false),
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

    /// Used bytes that compaction gives back.
    pub(crate) fn dead_bytes(&self) -> u64 {
        let others = self.held().saturating_add(self.pinned_bytes());
        self.used().saturating_sub(others)
    }

    pub(crate) fn pinned_bytes(&self) -> u64 {
        self.pinned.load(Ordering::Relaxed)
    }

    /// Live and open bytes: what only eviction makes less.
    pub(crate) fn held(&self) -> u64 {
        self.live.load(Ordering::Relaxed) + self.open.load(Ordering::Relaxed)
    }

    /// How many live bytes must go; from the upper mark on until the lower one is reached.
    pub(crate) fn excess(&self) -> Option<u64> {
        let held = self.held();
        if held > percent(self.capacity, EVICT_ABOVE_PERCENT) {
            self.evicting.store(true, Ordering::Relaxed);
        }
        let evicting = self.evicting.load(Ordering::Relaxed);
        let excess = held.saturating_sub(percent(self.capacity, EVICT_TO_PERCENT));
        if evicting && excess == 0 {
            self.evicting.store(false, Ordering::Relaxed);
        }
        (evicting && excess > 0).then_some(excess)
    }

    /// How many bytes of unlinked files must go so that bodies are admitted.
    pub(crate) fn crowded_by(&self) -> u64 {
        (self.used() + 1).saturating_sub(self.bodies_max())
    }

    /// A file of which nothing is dead as long as it is written.
    pub(crate) fn open(&self, charged: u64) {
        self.open.fetch_add(charged, Ordering::Relaxed);
    }

    pub(crate) fn sealed(&self, charged: u64, live: u64) {
        self.live.fetch_add(live, Ordering::Relaxed);
        self.open.fetch_sub(charged, Ordering::Relaxed);
    }

    pub(crate) fn live(&self, bytes: u64) {
        self.live.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(crate) fn dead(&self, bytes: u64) {
        self.live.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// An unlinked file counts as used until it is closed.
    pub(crate) fn pin(&self, charged: u64, counted: Counted) {
        self.pinned.fetch_add(charged, Ordering::Relaxed);
        match counted {
            Counted::Open => self.open.fetch_sub(charged, Ordering::Relaxed),
            Counted::Live(bytes) => self.live.fetch_sub(bytes, Ordering::Relaxed),
        };
    }

    /// The last one to read it has closed it.
    pub(crate) fn unpin(&self, charged: u64) {
        self.pinned.fetch_sub(charged, Ordering::Relaxed);
        self.release(charged);
    }

    /// The most that bodies may ever take together.
    pub(crate) fn bodies_max(&self) -> u64 {
        percent(self.capacity, ADMIT_PERCENT)
    }

    pub(crate) fn staging_max(&self) -> u64 {
        percent(self.capacity, STAGING_PERCENT)
    }

    /// What copies may take: without them a full store could not be compacted.
    pub(crate) fn survivors_room(&self) -> u64 {
        self.capacity.saturating_sub(self.used())
    }

    /// Takes `bytes` if they fit. What was taken is released by the file that was made of it.
    pub(crate) fn take(&self, bytes: u64, purpose: Purpose) -> bool {
        let (taken, max) = match purpose {
            Purpose::Bodies => (&self.used, self.bodies_max()),
            Purpose::SmallRecords | Purpose::Survivors => (&self.used, self.capacity),
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
            Purpose::Bodies | Purpose::SmallRecords | Purpose::Survivors => self.release(bytes),
        }
    }
}

/// Whether the file system can lose `bytes` and stay healthy. A purge is written to the last byte.
pub(crate) fn leaves_room(space: Space, bytes: u64, purpose: Purpose) -> bool {
    let kept = match purpose {
        Purpose::SmallRecords | Purpose::Survivors => 0,
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
    fn eviction_goes_from_one_mark_to_the_other() {
        let budget = Budget::new(1000);
        budget.found(990);
        budget.open(950);
        assert_eq!(budget.excess(), None);
        budget.open(1);
        assert_eq!(budget.excess(), Some(51));
        budget.sealed(951, 901);
        assert_eq!((budget.excess(), budget.dead_bytes()), (Some(1), 89));
        budget.dead(1);
        assert_eq!(budget.excess(), None);
        budget.live(20);
        assert_eq!(budget.excess(), None, "not before the upper mark");
        budget.pin(500, Counted::Live(400));
        assert_eq!(
            (budget.held(), budget.pinned_bytes(), budget.dead_bytes()),
            (520, 500, 0)
        );
        assert_eq!(budget.crowded_by(), 11);
        budget.unpin(500);
        assert_eq!((budget.used(), budget.pinned_bytes()), (490, 0));
        assert_eq!(budget.crowded_by(), 0);
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
