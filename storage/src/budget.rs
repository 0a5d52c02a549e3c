//! The budget: how many bytes the store may hold, and how many it does.
//!
//! Used is what is allocated, unlinked files that are still open included, and what was promised to
//! a body that comes in. Bodies are admitted up
//! to a share of the capacity that leaves room for a survivor segment. Small records are always
//! admitted: a purge can be written to a store that is full, and checkpoints bound them. The
//! compactor's survivor segments are counted apart until what they replace may go, so that neither
//! bodies nor small records nor readers have to give way for them; only a store that holds more
//! than it may, because the operator lowered its capacity, is taken further over it.
//!
//! Used is live, open, pinned or dead. Live are the extents that the index has in sealed
//! segments; open are segments that are not sealed, and small records; pinned are unlinked files
//! that are still read. The rest is dead: compaction gives it back. Eviction looks at live and
//! open only, for the others go by themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::clock::Age;
use crate::disk::Space;
use crate::pick::LIVE_PERCENT_MAX;
use crate::wish::Wish;

/// Bodies are admitted up to this share of the usable capacity, in per cent.
const ADMIT_PERCENT: u64 = 98;
/// Nor when less than this share of the file system, in per cent, would stay free.
const FREE_PERCENT_MIN: u64 = 5;
/// Survivor segments leave less, for small records.
const SURVIVORS_FREE_PERCENT_MIN: u64 = 1;
/// Room for one of them at least, in quarters of a shared segment: a copy, with its entries, of
/// segments of which a tenth is dead.
const SURVIVOR_QUARTERS: u64 = 6;
/// Staging files together, in per cent of the capacity.
const STAGING_PERCENT: u64 = 2;

/// Bodies are evicted when live and open bytes are over this share of what is usable, in
/// thousandths. A cache that is let fall to 90 per cent hits 1.6 points of bytes less than an LRU
/// of the same capacity (`bench/README.md`).
const EVICT_ABOVE_PERMILLE: u64 = 965;
/// and until they are at this one, so that it is not begun again at once.
const EVICT_TO_PERMILLE: u64 = 960;
/// For a wish, until they are at this share of what may be used then, in per cent: compaction
/// leaves segments alone of which more is live.
const WISH_LIVE_PERCENT: u64 = LIVE_PERCENT_MAX;
/// Room is needed, and compaction urgent, from this share of what is usable on, in thousandths.
/// The later, the more of a segment is dead when it is copied.
const URGENT_PERMILLE: u64 = 975;

const _: () =
    assert!(EVICT_TO_PERMILLE < EVICT_ABOVE_PERMILLE && EVICT_ABOVE_PERMILLE < URGENT_PERMILLE);
const _: () = assert!(URGENT_PERMILLE < ADMIT_PERCENT * 10);

pub(crate) struct Budget {
    capacity: u64,
    /// What the marks are shares of: all of it, unless a survivor segment needs more than bodies
    /// would leave.
    usable: u64,
    /// What one survivor segment may need.
    survivor_len: u64,
    used: AtomicU64,
    survivors: AtomicU64,
    live: AtomicU64,
    open: AtomicU64,
    pinned: AtomicU64,
    evicting: AtomicBool,
    staging: AtomicU64,
    /// Of what is used, not taken from the file system yet.
    promised: AtomicU64,
    /// Open ones, with a name or without.
    files: AtomicU64,
    pub(crate) wish: Wish,
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

/// Bytes of a file that count as used and will be allocated while its body comes in.
pub(crate) struct Promise {
    budget: Arc<Budget>,
    left: u64,
}

impl Promise {
    pub(crate) fn new(budget: &Arc<Budget>, bytes: u64) -> Promise {
        budget.promised.fetch_add(bytes, Ordering::Relaxed);
        Promise {
            budget: Arc::clone(budget),
            left: bytes,
        }
    }

    pub(crate) fn left(&self) -> u64 {
        self.left
    }

    /// So many bytes were allocated.
    pub(crate) fn keep(&mut self, bytes: u64) {
        self.left -= bytes;
        self.budget.promised.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Promise {
    fn drop(&mut self) {
        self.keep(self.left);
    }
}

/// As what a file was counted before it was unlinked.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Counted {
    Open,
    /// With this many bytes of live extents.
    Live(u64),
}

impl Budget {
    /// `segment_len`: of a shared segment.
    pub(crate) fn new(capacity: u64, segment_len: u64) -> Budget {
        let survivor_len = segment_len / 4 * SURVIVOR_QUARTERS;
        let left = capacity.saturating_sub(survivor_len);
        Budget {
            capacity,
            usable: capacity.min(left / ADMIT_PERCENT * 100 + left % ADMIT_PERCENT),
            survivor_len,
            used: AtomicU64::new(0),
            survivors: AtomicU64::new(0),
            live: AtomicU64::new(0),
            open: AtomicU64::new(0),
            pinned: AtomicU64::new(0),
            evicting: AtomicBool::new(false),
            staging: AtomicU64::new(0),
            promised: AtomicU64::new(0),
            files: AtomicU64::new(0),
            wish: Wish::none(),
        }
    }

    /// What will be taken of the file system. Asked before a look at its space: what is taken
    /// between the two then counts twice, which only refuses.
    pub(crate) fn promised(&self) -> u64 {
        self.promised.load(Ordering::Relaxed)
    }

    pub(crate) fn capacity(&self) -> u64 {
        self.capacity
    }

    pub(crate) fn used(&self) -> u64 {
        self.used.load(Ordering::Relaxed)
    }

    /// Bytes of survivor segments that do not count as used yet.
    pub(crate) fn survivors(&self) -> u64 {
        self.survivors.load(Ordering::Relaxed)
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

    /// How many live bytes must go at this time: from the upper mark on until the lower one is
    /// reached, and for a wish.
    pub(crate) fn excess(&self, now: Age) -> Option<u64> {
        let held = self.held();
        if held > permille(self.usable, EVICT_ABOVE_PERMILLE) {
            self.evicting.store(true, Ordering::Relaxed);
        }
        let over = held.saturating_sub(permille(self.usable, EVICT_TO_PERMILLE));
        if over == 0 {
            self.evicting.store(false, Ordering::Relaxed);
        }
        let evicting = self.evicting.load(Ordering::Relaxed);
        let over = if evicting { over } else { 0 };
        let wished = self.wish.ceiling(now).map_or(0, |ceiling| {
            held.saturating_sub(percent(ceiling, WISH_LIVE_PERCENT))
        });
        Some(over.max(wished)).filter(|excess| *excess > 0)
    }

    /// Whether dead bytes are needed as room.
    pub(crate) fn urgent(&self, now: Age) -> bool {
        self.used() >= permille(self.usable, URGENT_PERMILLE) || self.wish.ceiling(now).is_some()
    }

    /// `len` bytes for bodies were refused, by this budget or by the file system, which is as
    /// `space` says. What can never fit is not wished for.
    ///
    /// `going` of what is used go by themselves.
    pub(crate) fn wish_for(&self, len: u64, going: u64, space: Space, now: Age) {
        let (used, max) = (self.used(), self.bodies_max());
        if len > max {
            return;
        }
        let kept = percent(space.total, FREE_PERCENT_MIN);
        let lacking = len.saturating_add(kept).saturating_sub(space.free);
        let ceiling = if used + len > max || lacking > 0 {
            (max - len).min(used.saturating_sub(lacking))
        } else {
            // A quota, or whatever else is not shown.
            used.saturating_sub(going).saturating_sub(len)
        };
        self.wish.refused(now, len, ceiling);
    }

    /// How many bytes of unlinked files must go so that bodies are admitted.
    pub(crate) fn crowded_by(&self) -> u64 {
        (self.used() + 1).saturating_sub(self.bodies_max())
    }

    /// Open files, staging files and unlinked ones that are still read included.
    pub(crate) fn files(&self) -> u64 {
        self.files.load(Ordering::Relaxed)
    }

    pub(crate) fn file_opened(&self) {
        self.files.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn file_closed(&self) {
        self.files.fetch_sub(1, Ordering::Relaxed);
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
        percent(self.usable, ADMIT_PERCENT)
    }

    pub(crate) fn staging_max(&self) -> u64 {
        percent(self.capacity, STAGING_PERCENT)
    }

    /// What survivor segments may still take. As if bodies took all they may: they are admitted
    /// meanwhile. Beyond the capacity only where waiting for readers would not help.
    pub(crate) fn survivors_room(&self) -> u64 {
        let (used, bodies) = (self.used(), self.bodies_max());
        let over = used.saturating_sub(self.pinned_bytes()) > bodies;
        let max = self
            .capacity
            .max(if over { used + self.survivor_len } else { 0 });
        let taken = bodies.max(used).saturating_add(self.survivors());
        max.saturating_sub(taken)
    }

    /// What one survivor segment may need.
    pub(crate) fn survivor_len(&self) -> u64 {
        self.survivor_len
    }

    /// A survivor segment counts as used from now on, for what it replaces may go.
    pub(crate) fn survived(&self, bytes: u64) {
        self.used.fetch_add(bytes, Ordering::Relaxed);
        self.survivors.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Takes `bytes` if they fit. What was taken is released by the file that was made of it.
    pub(crate) fn take(&self, bytes: u64, purpose: Purpose) -> bool {
        let (taken, max) = match purpose {
            Purpose::Bodies => (&self.used, self.bodies_max()),
            Purpose::SmallRecords => (&self.used, u64::MAX),
            Purpose::Survivors => {
                let max = self.survivors().saturating_add(self.survivors_room());
                (&self.survivors, max)
            }
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
            Purpose::Survivors => {
                self.survivors.fetch_sub(bytes, Ordering::Relaxed);
            }
            Purpose::Bodies | Purpose::SmallRecords => self.release(bytes),
        }
    }
}

/// Whether the file system can lose `bytes` and stay healthy. A purge is written to the last byte.
pub(crate) fn leaves_room(space: Space, bytes: u64, purpose: Purpose) -> bool {
    bytes <= room(space, purpose)
}

/// What may be taken of the file system.
pub(crate) fn room(space: Space, purpose: Purpose) -> u64 {
    let kept = match purpose {
        Purpose::SmallRecords => 0,
        Purpose::Survivors => percent(space.total, SURVIVORS_FREE_PERCENT_MIN),
        Purpose::Bodies | Purpose::Staging => percent(space.total, FREE_PERCENT_MIN),
    };
    space.free.saturating_sub(kept)
}

fn percent(whole: u64, percent: u64) -> u64 {
    whole / 100 * percent + whole % 100 * percent / 100
}

fn permille(whole: u64, permille: u64) -> u64 {
    whole / 1000 * permille + whole % 1000 * permille / 1000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_room_for_small_records() {
        let budget = Budget::new(1000, 8);
        assert!(budget.take(980, Purpose::Bodies));
        assert!(!budget.take(1, Purpose::Bodies));
        assert!(budget.take(20, Purpose::SmallRecords));
        assert!(budget.take(1, Purpose::SmallRecords), "a purge, always");
        budget.give_back(980, Purpose::Bodies);
        assert_eq!(budget.used(), 21);
    }

    #[test]
    fn counts_survivors_apart_and_always_has_room_for_one() {
        let budget = Budget::new(1000, 8);
        assert!(budget.take(970, Purpose::Bodies));
        assert_eq!(budget.survivors_room(), 20);
        assert!(budget.take(20, Purpose::Survivors));
        assert!(!budget.take(1, Purpose::Survivors));
        assert!(
            budget.take(10, Purpose::Bodies),
            "bodies have what is theirs"
        );
        assert_eq!(budget.crowded_by(), 1, "by bodies alone");
        budget.give_back(5, Purpose::Survivors);
        budget.survived(15);
        assert_eq!((budget.used(), budget.survivors()), (995, 0));
        assert!(budget.take(1, Purpose::SmallRecords));
        // The operator wants less than there is.
        let budget = Budget::new(1000, 8);
        budget.found(5000);
        assert!(budget.take(12, Purpose::Survivors));
        assert!(!budget.take(1, Purpose::Survivors));
    }

    #[test]
    fn what_bodies_leave_is_enough_for_a_survivor_segment() {
        let budget = Budget::new(1000, 100);
        let bodies_max = budget.bodies_max();
        assert!((840..=850).contains(&bodies_max));
        assert!(budget.take(bodies_max, Purpose::Bodies));
        assert!(budget.survivors_room() >= 150);
        budget.open(836);
        assert!(
            budget.excess(0).is_some(),
            "the marks are shares of what is usable"
        );
    }

    #[test]
    fn a_wish_presses_until_compaction_can_make_it_true() {
        let roomy = Space {
            free: 10_000,
            total: 20_000,
        };
        let budget = Budget::new(1000, 8);
        budget.found(900);
        budget.open(800);
        assert_eq!((budget.excess(0), budget.urgent(0)), (None, false));
        budget.wish_for(981, 0, roomy, 0);
        assert!(!budget.urgent(0), "it can never be");
        budget.wish_for(180, 0, roomy, 0);
        // At nine tenths live no more than 800 are used.
        assert_eq!((budget.excess(0), budget.urgent(0)), (Some(80), true));
        budget.sealed(800, 720);
        assert_eq!((budget.excess(0), budget.urgent(0)), (None, true));
        assert_eq!((budget.excess(60), budget.urgent(60)), (None, false));
        // Others have filled the file system: 40 bytes of what is kept free are gone.
        let filled = Space {
            free: 960,
            total: 20_000,
        };
        budget.wish_for(70, 0, filled, 100);
        assert_eq!(budget.excess(100), Some(9), "110 less, and then a tenth");
    }

    #[test]
    fn eviction_goes_from_one_mark_to_the_other() {
        let budget = Budget::new(1000, 8);
        budget.found(990);
        budget.open(965);
        assert_eq!(budget.excess(0), None);
        budget.open(1);
        assert_eq!(budget.excess(0), Some(6));
        budget.sealed(966, 961);
        assert_eq!((budget.excess(0), budget.dead_bytes()), (Some(1), 29));
        budget.dead(1);
        assert_eq!(budget.excess(0), None);
        budget.live(5);
        assert_eq!(budget.excess(0), None, "not before the upper mark");
        budget.pin(500, Counted::Live(400));
        assert_eq!(
            (budget.held(), budget.pinned_bytes(), budget.dead_bytes()),
            (565, 500, 0)
        );
        assert_eq!(budget.crowded_by(), 11);
        budget.unpin(500);
        assert_eq!((budget.used(), budget.pinned_bytes()), (490, 0));
        assert_eq!(budget.crowded_by(), 0);
    }

    #[test]
    fn bounds_staging_apart() {
        let budget = Budget::new(1000, 8);
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
        assert!(leaves_room(space, 50, Purpose::Survivors));
        assert!(!leaves_room(space, 51, Purpose::Survivors));
        assert!(leaves_room(space, 60, Purpose::SmallRecords));
        assert!(!leaves_room(space, 61, Purpose::SmallRecords));
    }
}
