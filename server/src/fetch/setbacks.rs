//! What is remembered of fills that failed, so that the next ask does not repeat them at once.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::Digest;

/// Remembered mismatches; beyond it a new one is not remembered and only costs a refetch.
const REFUSED_MAX: usize = 1024;
/// Remembered bodies that outgrew the room for them; beyond it a new one costs its askers a cut pull.
const OUTGROWN_MAX: usize = 1024;
/// How long a body counts as outgrown. Room may come back; a failed fill costs its followers. Shorter
/// than the store's wish for room counts (60 s): under it the next fill is refused in time.
const OUTGROWN_HOLDOFF: Duration = Duration::from_secs(30);

pub struct Setbacks {
    /// How long a source that sent wrong bytes is not asked for that digest again.
    mismatch_holdoff: Duration,
    /// By who was asked: an upstream's origin, or a place that a manifest named, whose neighbours
    /// on its host may be right. With places of 8 KiB, the longest, 8 MiB.
    refused: RefCell<HashMap<(Digest, Arc<str>), Instant>>,
    /// Bodies that the store turned out to have no room for while they came in, and until when that
    /// is believed.
    outgrown: RefCell<HashMap<Digest, Instant>>,
}

impl Setbacks {
    pub fn new(mismatch_holdoff: Duration) -> Setbacks {
        Setbacks {
            mismatch_holdoff,
            refused: RefCell::default(),
            outgrown: RefCell::default(),
        }
    }

    /// Who was asked sent other bytes than those of the digest.
    pub fn refuse(&self, digest: Digest, asked: Arc<str>) {
        let mut refused = self.refused.borrow_mut();
        let now = Instant::now();
        refused.retain(|_, until| *until > now);
        if refused.len() < REFUSED_MAX {
            refused.insert((digest, asked), now + self.mismatch_holdoff);
        }
    }

    pub fn is_refused(&self, digest: &Digest, asked: &Arc<str>) -> bool {
        let refused = self.refused.borrow();
        !refused.is_empty()
            && refused
                .get(&(*digest, asked.clone()))
                .is_some_and(|until| *until > Instant::now())
    }

    /// It will not fit the next time either: whoever asks then fetches for itself.
    pub fn outgrew(&self, digest: Digest) {
        let mut outgrown = self.outgrown.borrow_mut();
        let now = Instant::now();
        outgrown.retain(|_, until| *until > now);
        if outgrown.len() < OUTGROWN_MAX {
            outgrown.insert(digest, now + OUTGROWN_HOLDOFF);
        }
    }

    pub fn has_outgrown(&self, digest: &Digest) -> bool {
        let outgrown = self.outgrown.borrow();
        let until = outgrown.get(digest);
        until.is_some_and(|until| *until > Instant::now())
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, REFUSED_MAX, Setbacks};
    use entrepot_storage::Digest;

    #[test]
    fn one_place_of_a_host_says_nothing_of_another_and_their_number_is_bounded() {
        let setbacks = Setbacks::new(Duration::from_secs(600));
        let digest = Digest::sha256(b"a layer");
        let place = |nth: usize| format!("https://m.example/{nth}").into();
        for nth in 0..2 * REFUSED_MAX {
            setbacks.refuse(digest, place(nth));
        }
        assert!(setbacks.is_refused(&digest, &place(0)));
        assert!(!setbacks.is_refused(&digest, &"https://m.example".into()));
        assert!(!setbacks.is_refused(&Digest::sha256(b"another"), &place(0)));
        assert_eq!(setbacks.refused.borrow().len(), REFUSED_MAX);
    }
}
