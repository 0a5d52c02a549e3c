//! Maintenance: what a writer does beside its callers' work, a little at a time.
//!
//! `Writer::maintain` comes ten times a second and looks at what is due; most times that is
//! nothing. Long walks over the index give way between slices (`wait::Walk`), and no lock is held
//! while they do.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use crate::Seconds;
use crate::clock::Age;
use crate::disk::Disk;
use crate::wait::{Gate, detached};
use crate::writer::{Shared, Writer};

/// The shard whose writer gives the compactor its jobs, and sees to what all share.
pub(crate) const PLANNER: usize = 0;
/// The whole index is walked this often: for what is idle, and for the times that a restart
/// should know. A crash loses as much of them.
const SWEEP_STEP_S: Age = 60;
/// And this often within the time after which bodies are idle, if that is short.
const SWEEPS_WITHIN_IDLE: Age = 4;
/// Under pressure there is a look before its second is over, once the calls of `maintain` since the
/// last one are as many as the entries it visited divided by this: a millisecond's worth of the
/// hundred between two calls. A small store, which fills within a second, has room again at the
/// next call, and a large one is not walked more often for it.
const VISITED_PER_CALL: u64 = 20_000;

/// When this writer last did what, by the age clock.
#[derive(Default)]
pub(crate) struct Upkeep {
    looked: Cell<Option<Age>>,
    /// Entries that the last look visited and the calls since have not made up for.
    owed: Cell<u64>,
    /// Walks over the index since the start.
    pub(crate) walks: Cell<u64>,
    swept: Cell<Option<Age>>,
    /// The reading that a recency record of this process has.
    pub(crate) clock_written: Cell<Option<Age>>,
    pub(crate) making_room: Gate,
    pub(crate) bringing_back: Gate,
    /// When no room could be made, and for how many bytes, by volume.
    pub(crate) no_room: RefCell<BTreeMap<u8, (Age, u64)>>,
}

impl Upkeep {
    /// Once for each second of the age clock, and when there is pressure.
    fn look(&self, age: Age, pressed: impl FnOnce() -> bool) -> bool {
        let owed = self.owed.get().saturating_sub(VISITED_PER_CALL);
        self.owed.set(owed);
        self.looked.replace(Some(age)) != Some(age) || owed == 0 && pressed()
    }

    fn sweep_due(&self, age: Age, idle_after: Age) -> bool {
        let step = SWEEP_STEP_S.min(idle_after / SWEEPS_WITHIN_IDLE);
        let due = |swept: Age| age.saturating_sub(swept) >= step;
        let due = self.swept.get().is_none_or(due);
        if due {
            self.swept.set(Some(age));
        }
        due
    }
}

impl<D: Disk> Writer<D> {
    /// Does what is due by the age clock, which this moves on. Call it ten times a second or so;
    /// one call at a time does its work, others wait. What fails is tried again by a later call.
    pub async fn maintain(&self, now: Seconds) {
        let shared = Rc::clone(&self.shared);
        detached(
            self.shared.tasks(),
            async move { shared.maintain(now).await },
        )
        .await;
    }
}

impl<D: Disk> Shared<D> {
    async fn maintain(self: Rc<Self>, now: Seconds) {
        let _turn = self.maintaining.turn().await;
        self.now.set(now);
        self.store.clock.advance(now);
        let age = self.store.clock.now();
        if self.upkeep.look(age, || self.pressed()) {
            self.look(age).await;
        }
        self.serve_compactor().await;
        if self.shard() == PLANNER {
            self.plan_reclaim().await;
        }
        self.lose_offline().await;
        self.checkpoints().await;
    }

    /// What is looked at once a second, and sooner when there is too much of anything.
    async fn look(self: &Rc<Self>, age: Age) {
        if self.shard() == PLANNER {
            self.revoke_pins(age);
        }
        let sweep = self.upkeep.sweep_due(age, self.store.eviction.idle_after);
        self.upkeep.owed.set(self.evict(sweep).await);
        if sweep {
            // A failure costs times, which the next one may yet write.
            let _ = self.write_recency().await;
        }
    }

    fn revoke_pins(&self, age: Age) {
        for volume in &self.store.volumes {
            let needed = volume.budget.crowded_by();
            volume.pins.revoke(age, self.store.eviction.pin_max, needed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_is_looked_at_once_and_swept_once_a_minute() {
        let upkeep = Upkeep::default();
        let look = |age| upkeep.look(age, || false);
        assert!(look(7) && !look(7) && look(8));
        let week = 7 * 24 * 3600;
        assert!(upkeep.sweep_due(7, week) && !upkeep.sweep_due(66, week));
        assert!(upkeep.sweep_due(67, week) && !upkeep.sweep_due(68, week));
        assert!(!upkeep.sweep_due(68, 8) && upkeep.sweep_due(69, 8));
    }

    #[test]
    fn pressure_is_looked_at_as_often_as_the_index_is_small() {
        let upkeep = Upkeep::default();
        let looks = |age| (0..10).filter(|_| upkeep.look(age, || true)).count();
        assert_eq!(looks(7), 10);
        upkeep.owed.set(3 * VISITED_PER_CALL);
        assert_eq!(looks(7), 8);
        upkeep.owed.set(100 * VISITED_PER_CALL);
        assert_eq!(looks(8), 1, "once a second however large it is");
        upkeep.owed.set(0);
        assert!(!upkeep.look(8, || false));
    }
}
