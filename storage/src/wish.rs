//! A wish: room on a volume that a file was refused for, so that all owners help to make it.
//!
//! Who is refused can only let go of its own segments. What is wished for here counts as pressure
//! for a while: every owner evicts for it, and the compactor turns what is dead into room.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::clock::Age;

/// A wish that is not repeated is forgotten after this, in seconds of the age clock. A client that
/// was refused comes back sooner, and compaction makes some gigabytes of room meanwhile.
const WISH_S: Age = 60;

pub(crate) struct Wish {
    /// The longest that was refused, in bytes.
    len: AtomicU64,
    /// With more bytes used than this it is refused again.
    ceiling: AtomicU64,
    /// By the age clock; before this it counts.
    until: AtomicU32,
}

impl Wish {
    pub(crate) fn none() -> Wish {
        Wish {
            len: AtomicU64::new(0),
            ceiling: AtomicU64::new(u64::MAX),
            until: AtomicU32::new(0),
        }
    }

    /// `len` bytes could not be had, but could if no more than `ceiling` were used.
    pub(crate) fn refused(&self, now: Age, len: u64, ceiling: u64) {
        if self.ceiling(now).is_none() {
            self.clear();
        }
        self.len.fetch_max(len, Ordering::Relaxed);
        self.ceiling.fetch_min(ceiling, Ordering::Relaxed);
        let until = now.saturating_add(WISH_S);
        self.until.store(until, Ordering::Relaxed);
    }

    /// `len` bytes were had: nothing shorter is wished for any more.
    pub(crate) fn granted(&self, len: u64) {
        if len >= self.len.load(Ordering::Relaxed) {
            self.clear();
        }
    }

    /// How many bytes may be used for the wish to come true.
    pub(crate) fn ceiling(&self, now: Age) -> Option<u64> {
        let counts = now < self.until.load(Ordering::Relaxed);
        counts.then(|| self.ceiling.load(Ordering::Relaxed))
    }

    fn clear(&self) {
        self.until.store(0, Ordering::Relaxed);
        self.len.store(0, Ordering::Relaxed);
        self.ceiling.store(u64::MAX, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_counts_until_it_is_granted_or_given_up() {
        let wish = Wish::none();
        assert_eq!(wish.ceiling(0), None);
        wish.refused(10, 100, 800);
        wish.refused(11, 50, 850);
        assert_eq!(wish.ceiling(11), Some(800));
        wish.granted(99);
        assert_eq!(wish.ceiling(70), Some(800));
        assert_eq!(wish.ceiling(71), None);
        wish.refused(100, 50, 850);
        assert_eq!(wish.ceiling(100), Some(850), "the other one is forgotten");
        wish.granted(50);
        assert_eq!(wish.ceiling(100), None);
    }
}
