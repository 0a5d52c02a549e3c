//! What a process does beside its clients: maintenance, compaction, scrubbing.

use std::rc::Rc;

use super::client::Process;

/// Turns of every writer, with a burst of the compactor after each, in which a job that was given
/// is done: planned, copied, switched, unlinked.
const QUIET_ROUNDS: usize = 5;
/// Far more than any store here has work for.
const ROUNDS_MAX: usize = 300;

impl Process {
    pub async fn maintain(&self) {
        let number = self.below(self.writers.len() as u64) as usize;
        self.maintain_one(number).await;
    }

    async fn maintain_one(&self, number: usize) {
        self.maintaining.set(self.maintaining.get() + 1);
        self.writers[number].maintain(self.now()).await;
        self.maintaining.set(self.maintaining.get() - 1);
    }

    /// A burst of the compactor, beside everything else, until it has nothing to do.
    pub fn compact(self: &Rc<Self>) {
        let Some(mut compactor) = self.compactor.take() else {
            return;
        };
        let process = Rc::clone(self);
        self.spawn(async move {
            while compactor.step().await {}
            process.compactor.replace(Some(compactor));
        });
    }

    /// Nobody else is about: what the planner wants is done, and ends.
    pub async fn tidy(self: &Rc<Self>) {
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            let before = self.store.exchange().compaction();
            for number in 0..self.writers.len() {
                self.maintain_one(number).await;
            }
            if let Some(mut compactor) = self.compactor.take() {
                while compactor.step().await {}
                self.compactor.replace(Some(compactor));
            }
            let after = self.store.exchange().compaction();
            let same = before.segments == after.segments && before.failed == after.failed;
            quiet = if same { quiet + 1 } else { 0 };
            if quiet == QUIET_ROUNDS {
                return;
            }
        }
        panic!(
            "compaction does not end: {:?}",
            self.store.exchange().compaction()
        );
    }

    /// Notes what the compactor did in this process.
    pub fn count_compaction(&self) {
        let done = self.store.exchange().compaction();
        let mut counts = self.counts.borrow_mut();
        counts.compacted += done.segments;
        counts.scrubbed += done.scrubbed_segments;
        counts.mismatches += done.mismatches;
        self.model.borrow_mut().moved |= done.segments > 0;
    }
}
