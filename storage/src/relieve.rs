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
use crate::wait::Walk;
use crate::writer::Shared;

/// What must go: bytes of bodies by volume, and small records.
struct Excess {
    bodies: Vec<Option<u64>>,
    records: Option<u64>,
}

impl Excess {
    fn any(&self) -> bool {
        self.records.is_some() || self.bodies.iter().any(Option::is_some)
    }
}

impl<D: Disk> Shared<D> {
    /// Evicts what is idle, and what must go. `whole`: also looks at what nobody presses for.
    /// Returns how many entries of the index it visited.
    pub(crate) async fn evict(&self, whole: bool) -> u64 {
        let pressed = self.pressed();
        if !whole && !pressed {
            return 0;
        }
        let mut visited = self.sweep(&self.no_cuts()).await;
        if let Some(cuts) = self.cuts() {
            visited += self.sweep(&cuts).await;
        }
        visited
    }

    /// Whether there is too much of anything.
    pub(crate) fn pressed(&self) -> bool {
        self.excess().any()
    }

    fn no_cuts(&self) -> Cuts {
        let reference = self.store.eviction.reference(self.store.clock.now());
        Cuts::none(self.store.volumes.len(), reference)
    }

    /// How much there is too much of what; notes since when.
    fn excess(&self) -> Excess {
        let store = &self.store;
        let (volumes, now) = (store.volumes.iter(), store.clock.now());
        let excess = Excess {
            bodies: volumes.map(|volume| volume.budget.excess(now)).collect(),
            records: store.eviction.records_excess(store.index.records()),
        };
        if excess.any() {
            store.eviction.press(now);
        } else {
            store.eviction.relieved();
        }
        excess
    }

    /// Where to cut, if there is too much of anything.
    fn cuts(&self) -> Option<Cuts> {
        let (excess, eviction) = (self.excess(), &self.store.eviction);
        if !excess.any() || !eviction.may_cut(self.store.clock.now()) {
            return None;
        }
        let mut cuts = self.no_cuts();
        for (volume, excess) in excess.bodies.into_iter().enumerate() {
            if let Some(excess) = excess {
                cuts.bodies[volume] = eviction.body_cuts(volume, excess);
            }
        }
        if let Some(excess) = excess.records {
            cuts.records = eviction.records_cut(excess);
        }
        Some(cuts)
    }

    /// One walk: evicts, and publishes the ages of what stays. Returns how many entries it visited.
    async fn sweep(&self, cuts: &Cuts) -> u64 {
        let now = self.store.clock.now();
        let number = self.upkeep.walks.get() + 1;
        self.upkeep.walks.set(number);
        let mut walk = Walk::default();
        let mut ages = Ages::new(self.store.volumes.len());
        for slice in self.slices() {
            let mut going = Vec::new();
            self.store.index.each_body(slice, |body| {
                walk.visit();
                if let Some(cause) = self.verdict(body, now, cuts, &mut ages) {
                    going.push((Seen::of(body), cause));
                }
            });
            for (seen, cause) in going {
                self.evict_body(seen, cause);
            }
            let gone = self.store.index.sift_records(slice, |recency, hash| {
                walk.visit();
                let age = now.saturating_sub(recency);
                let idle = self.store.eviction.record_idle(age);
                let age = cuts.reference.saturating_sub(recency);
                let goes = idle || cuts.records.takes(age, lot(number, hash));
                if !goes {
                    ages.records.add(age, 1);
                }
                goes
            });
            self.store.eviction.count_records(gone);
            walk.rest(self.tasks()).await;
        }
        self.store
            .eviction
            .publish(self.shard(), &ages, cuts.reference);
        walk.visited()
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
        let age = cuts.reference.saturating_sub(body.recency());
        let class = self.store.eviction.class_of(body.lease.len());
        let cut: Cut = cuts.bodies[usize::from(body.lease.file.volume)][class];
        if cut.takes(age, lot(self.upkeep.walks.get(), body.sequence)) {
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

/// Which of equal age go, other ones in each walk: who was spared by one is not by all.
fn lot(walk: u64, number: u64) -> u16 {
    mix::word(walk, number) as u16
}
