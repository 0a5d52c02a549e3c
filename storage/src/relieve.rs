//! A writer's part of eviction: walks over its own slices of the index.
//!
//! A body goes only if it is durable and nobody asked for it since the walk saw it. Under pressure
//! it must also be in a sealed segment, for one that is still written gives nothing back. Readers
//! keep what they have (S5); a later fill of the digest is a new body.

use crate::clock::Age;
use crate::disk::Disk;
use crate::evict::{Ages, Cause, Cuts};
use crate::histogram::Cut;
use crate::index::{Flags, IndexedBody, Seen};
use crate::mix;
use crate::writer::Shared;

impl<D: Disk> Shared<D> {
    /// Evicts what is idle, and what must go. `whole`: also looks at what nobody presses for.
    pub(crate) async fn evict(&self, whole: bool) {
        let volumes = self.store.volumes.len();
        if !whole && self.pressed().is_none() {
            return;
        }
        self.sweep(&Cuts::none(volumes)).await;
        if let Some(cuts) = self.pressed() {
            self.sweep(&cuts).await;
        }
    }

    /// Where to cut, if there is too much of anything.
    fn pressed(&self) -> Option<Cuts> {
        let (store, mut pressed) = (&self.store, false);
        let mut cuts = Cuts::none(store.volumes.len());
        for (number, volume) in store.volumes.iter().enumerate() {
            if let Some(excess) = volume.budget.excess() {
                cuts.bodies[number] = store.eviction.body_cuts(number, excess);
                pressed = true;
            }
        }
        if let Some(excess) = store.eviction.records_excess(store.index.records()) {
            cuts.records = store.eviction.records_cut(excess);
            pressed = true;
        }
        pressed.then_some(cuts)
    }

    /// One walk: evicts, and publishes the ages of what stays.
    async fn sweep(&self, cuts: &Cuts) {
        let now = self.store.clock.now();
        let mut ages = Ages::new(self.store.volumes.len());
        for slice in self.slices() {
            let mut going = Vec::new();
            self.store.index.each_body(slice, |body| {
                if let Some(cause) = self.verdict(body, now, cuts, &mut ages) {
                    going.push((Seen::of(body), cause));
                }
            });
            for (seen, cause) in going {
                self.evict_body(seen, cause);
            }
            let gone = self.store.index.sift_records(slice, |recency, number| {
                let age = now.saturating_sub(recency);
                let goes = self.store.eviction.record_idle(age)
                    || cuts.records.takes(age, lot(now, number));
                if !goes {
                    ages.records.add(age, 1);
                }
                goes
            });
            self.store.eviction.count_records(gone);
            self.tasks().give_way().await;
        }
        self.store.eviction.publish(self.shard(), &ages);
    }

    /// Why a body goes. One that stays, and could go under pressure, is counted in `ages`.
    fn verdict(
        &self,
        body: &IndexedBody<D>,
        now: Age,
        cuts: &Cuts,
        ages: &mut Ages,
    ) -> Option<Cause> {
        if !body.flags.has(Flags::DURABLE) {
            return None;
        }
        let age = now.saturating_sub(body.recency());
        if self.store.eviction.idle(body, age) {
            return Some(Cause::Idle);
        }
        if !body.lease.file.sealed() {
            return None;
        }
        let class = self.store.eviction.class_of(body.lease.len());
        let cut: Cut = cuts.bodies[usize::from(body.lease.file.volume)][class];
        if cut.takes(age, lot(now, body.sequence)) {
            return Some(Cause::Pressure);
        }
        ages.add(class, body, age);
        None
    }

    /// Out of the index and, if it was the last of its segment, off the disk; without a forget
    /// record.
    fn evict_body(&self, seen: Seen, cause: Cause) {
        if let Some(removed) = self.take_out(seen, cause) {
            self.withdraw(removed.sequence, &removed.lease.file);
        }
    }

    /// `None`: it was asked for since, or is another one now.
    pub(crate) fn take_out(&self, seen: Seen, cause: Cause) -> Option<IndexedBody<D>> {
        let same = |body: &IndexedBody<D>| seen.is_still(body);
        let removed = self.store.index.remove_body(&seen.digest, same)?;
        self.store.eviction.count(cause, removed.lease.len());
        Some(removed)
    }
}

/// Which of equal age go, other ones at each time.
fn lot(now: Age, number: u64) -> u16 {
    mix::word(u64::from(now), number) as u16
}
