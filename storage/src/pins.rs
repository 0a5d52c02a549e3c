//! Pins: unlinked files that leases keep open. Their bytes are used, and nobody can find them.
//!
//! A reader that is too slow loses its lease (S5): after a time in any case, and sooner when no
//! body can be admitted because of it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::clock::Age;
use crate::disk::Disk;
use crate::lease::SegmentFile;

/// A reader keeps what it began to read for this long, whatever is needed: 1 GiB at 20 MB/s.
const PIN_MIN_S: Age = 60;

pub(crate) struct Pins<D: Disk> {
    files: Mutex<Vec<Weak<SegmentFile<D>>>>,
    revoked: AtomicU64,
}

impl<D: Disk> Default for Pins<D> {
    fn default() -> Pins<D> {
        Pins {
            files: Mutex::default(),
            revoked: AtomicU64::new(0),
        }
    }
}

impl<D: Disk> Pins<D> {
    pub(crate) fn add(&self, file: &Arc<SegmentFile<D>>) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.push(Arc::downgrade(file));
    }

    /// Files whose leases were revoked because they were held too long.
    pub(crate) fn revoked(&self) -> u64 {
        self.revoked.load(Ordering::Relaxed)
    }

    /// How long the oldest pin has lasted, in seconds of the age clock.
    pub(crate) fn oldest(&self, now: Age) -> Age {
        let files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        let open: Vec<_> = files.iter().filter_map(Weak::upgrade).collect();
        drop(files);
        let since = open.iter().filter_map(|file| file.pinned());
        since
            .map(|(since, _)| now.saturating_sub(since))
            .max()
            .unwrap_or(0)
    }

    /// Revokes what is older than `pin_max_s`, and as much more as makes `needed` bytes.
    pub(crate) fn revoke(&self, now: Age, pin_max_s: Age, needed: u64) {
        let mut files = self.files.lock().unwrap_or_else(PoisonError::into_inner);
        files.retain(|file| file.strong_count() > 0);
        let open: Vec<_> = files.iter().filter_map(Weak::upgrade).collect();
        // Dropped after the lock: the last one closes its file.
        drop(files);
        let read: Vec<_> = open.iter().filter(|file| !file.revoked()).collect();
        let pins: Vec<_> = read.iter().filter_map(|file| file.pinned()).collect();
        let going = open.iter().filter(|file| file.revoked());
        let going = going.filter_map(|file| file.pinned());
        let needed = lacking(needed, going.map(|(_, bytes)| bytes));
        let Some(limit) = overdue(&pins, now, pin_max_s, needed) else {
            return;
        };
        for file in read {
            if file.pinned().is_some_and(|(since, _)| since <= limit) {
                file.revoke();
                self.revoked.fetch_add(1, Ordering::Relaxed);
            }
        }
    }
}

/// What is revoked and still open goes as soon as whoever reads it looks.
fn lacking(needed: u64, going: impl Iterator<Item = u64>) -> u64 {
    needed.saturating_sub(going.sum())
}

/// Pins are given up that began at this time of the age clock or before; `pins` are {since, bytes}.
fn overdue(pins: &[(Age, u64)], now: Age, pin_max_s: Age, needed: u64) -> Option<Age> {
    let mut limit = now.checked_sub(pin_max_s.saturating_add(1));
    let mut oldest_first = pins.to_vec();
    oldest_first.sort_unstable();
    let mut bytes = 0;
    for (since, len) in oldest_first {
        if bytes >= needed || now.saturating_sub(since) < PIN_MIN_S {
            break;
        }
        bytes += len;
        limit = limit.max(Some(since));
    }
    limit
}

#[cfg(test)]
mod tests {

    #[test]
    fn what_goes_already_is_not_needed_again() {
        assert_eq!(super::lacking(100, [30, 20].into_iter()), 50);
        assert_eq!(super::lacking(100, [30, 90].into_iter()), 0);
    }

    #[test]
    fn the_oldest_go_first_and_none_too_soon() {
        let pins = [(900, 10), (500, 10), (960, 10), (700, 10)];
        let overdue = |pin_max_s, needed| super::overdue(&pins, 1000, pin_max_s, needed);
        assert_eq!(overdue(500, 0), Some(499), "none is too old");
        assert_eq!(overdue(499, 0), Some(500));
        assert_eq!(overdue(1000, 0), None);
        assert_eq!(overdue(600, 1), Some(500));
        assert_eq!(overdue(600, 11), Some(700));
        assert_eq!(overdue(600, 1000), Some(900), "the youngest has its minute");
    }
}
