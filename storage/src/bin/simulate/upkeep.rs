//! What a process does beside its clients: maintenance, compaction, scrubbing.

use std::rc::Rc;

use super::client::Process;
use super::model::{AGE_SLACK, BodyState};
use super::plan::Media;

/// What one turn of maintenance moves the age clock at most.
const AGE_STEP_MAX: u64 = 60;
const YEAR: u64 = 365 * 24 * 3600;

/// Turns of every writer, with a burst of the compactor after each, in which a job that was given
/// is done: planned, copied, switched, unlinked.
const QUIET_ROUNDS: usize = 5;
/// Far more than any store here has work for.
const ROUNDS_MAX: usize = 300;

impl Process {
    /// One turn of every writer, as each shard takes ten times a second.
    pub async fn maintain(&self) {
        // One of a writer at a time.
        if self.maintaining.get() > 0 {
            return;
        }
        self.maintaining.set(1);
        let now = self.now();
        for writer in &self.writers {
            writer.maintain(now).await;
        }
        let mut model = self.model.borrow_mut();
        let step = now.saturating_sub(self.maintained.replace(now));
        model.ages.earliest += step.min(AGE_STEP_MAX);
        let usage = self.store.usage();
        model.evicted |= usage.evicted_pressure.bodies + usage.evicted_room.bodies > 0;
        self.maintaining.set(0);
    }

    /// The clock of the machine is wrong by a year from now on.
    pub fn jump(&self) {
        let clock = self.clock.get();
        self.clock.set(if self.chance(500) {
            clock + YEAR
        } else {
            clock - YEAR
        });
        self.model.borrow_mut().ages.latest += AGE_STEP_MAX;
    }

    /// Whether bodies may be evicted at all.
    pub fn may_evict(&self) -> bool {
        self.plan.may_refuse_bodies() || self.plan.idle_after(usize::MAX).is_some()
    }

    /// Whether the body may have been evicted: for room, or because it was not used.
    pub fn evictable(&self, content: usize, body: &BodyState) -> bool {
        let usage = self.store.usage();
        let room = usage.evicted_pressure.bodies + usage.evicted_room.bodies > 0;
        let model = self.model.borrow();
        let len = model.contents[content].bytes.len();
        let after = self.plan.idle_after(len);
        let idle = after.is_some_and(|after| {
            // What cannot be written down is not known after a crash.
            model.idle(body, after) || self.lenient() || self.may_be_full()
        });
        (room || model.evicted) && self.plan.may_refuse_bodies() || idle
    }

    /// All was looked up, and nobody uses anything any more: nothing is immortal, and nothing goes
    /// too early.
    pub async fn check_mortal(&self) {
        let Some(after) = self.plan.idle_after(usize::MAX) else {
            return;
        };
        let begun = self.model.borrow().ages.latest;
        let evicted = self.store.usage().evicted_idle.bodies;
        for _ in 0..after / AGE_STEP_MAX + 4 {
            self.clock.set(self.clock.get() + AGE_STEP_MAX);
            self.model.borrow_mut().ages.latest += AGE_STEP_MAX;
            self.maintain().await;
            let idle = self.model.borrow().ages.latest - begun;
            let evicted = self.store.usage().evicted_idle.bodies - evicted;
            assert!(
                evicted == 0 || idle + AGE_SLACK > after,
                "{evicted} bodies were evicted after {idle} of {after} seconds"
            );
        }
        let count = self.model.borrow().contents.len();
        for content in 0..count {
            let len = self.model.borrow().contents[content].bytes.len();
            let digest = self.digest(content);
            let mortal = self.plan.idle_after(len).is_some();
            assert!(
                !mortal || self.store.body(&digest).is_none(),
                "body {content} is immortal"
            );
            if mortal {
                self.model.borrow_mut().evicted(content);
            }
        }
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

    /// A burst that is waited for, unless there is one already.
    pub async fn compact_to_the_end(&self) {
        if let Some(mut compactor) = self.compactor.take() {
            while compactor.step().await {}
            self.compactor.replace(Some(compactor));
        }
    }

    /// Nobody else is about: what the planner wants is done, and ends.
    pub async fn tidy(self: &Rc<Self>) {
        let mut quiet = 0;
        for _ in 0..ROUNDS_MAX {
            let before = self.store.exchange().compaction();
            self.maintain().await;
            self.compact_to_the_end().await;
            let after = self.store.exchange().compaction();
            let same = before.segments == after.segments && before.failed == after.failed;
            quiet = if same { quiet + 1 } else { 0 };
            let strict = !self.lenient() && self.plan.media == Media::Sound;
            if quiet >= QUIET_ROUNDS && (self.accounted() || !strict) {
                return;
            }
        }
        panic!(
            "compaction does not end: {:?}",
            self.store.exchange().compaction()
        );
    }

    /// Notes what was done beside the clients in this process.
    pub fn count_upkeep(&self) {
        let usage = self.store.usage();
        let done = self.store.exchange().compaction();
        let mut counts = self.counts.borrow_mut();
        counts.compacted += done.segments;
        counts.scrubbed += done.scrubbed_segments;
        counts.mismatches += done.mismatches;
        counts.evicted_idle += usage.evicted_idle.bodies;
        counts.evicted_room += usage.evicted_pressure.bodies + usage.evicted_room.bodies;
        let mut model = self.model.borrow_mut();
        model.moved |= done.written_bytes > 0;
        model.evicted |= usage.evicted_pressure.bodies + usage.evicted_room.bodies > 0;
    }
}
