//! What all shards may have of one thing together, such as fills.
//!
//! Counted in one place (R8), so that a limit is what it says on every number of cores, and no
//! shard refuses what the others leave. Touched once for a fill or a connection, never by a hit.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Allowance {
    max: usize,
    taken: AtomicUsize,
}

impl Allowance {
    pub fn new(max: usize) -> Arc<Allowance> {
        let taken = AtomicUsize::new(0);
        Arc::new(Allowance { max, taken })
    }

    /// Leave for one more; `None` when all are taken.
    pub fn take(self: &Arc<Self>) -> Option<Taken> {
        let more = |taken| (taken < self.max).then_some(taken + 1);
        // Nothing else is ordered by the count.
        let taken = &self.taken;
        let took = taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        took.is_ok().then(|| Taken(self.clone()))
    }
}

/// Given back on drop.
pub struct Taken(Arc<Allowance>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::Allowance;

    #[test]
    fn no_more_than_allowed_are_taken_and_what_is_dropped_is_free() {
        let allowance = Allowance::new(2);
        let (first, second) = (allowance.take(), allowance.take());
        assert!(first.is_some() && second.is_some());
        assert!(allowance.take().is_none());
        drop(first);
        let third = allowance.take();
        assert!(third.is_some());
        assert!(allowance.take().is_none());
    }
}
