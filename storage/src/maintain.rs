//! Maintenance: what a writer does beside its callers' work, a little at a time.
//!
//! `Writer::maintain` comes ten times a second and looks at what is due; most times that is
//! nothing. Long walks over the index give way after each slice, and no lock is held while they do.

use std::cell::Cell;
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

/// When this writer last did what, by the age clock.
#[derive(Default)]
pub(crate) struct Upkeep {
    looked: Cell<Option<Age>>,
    swept: Cell<Option<Age>>,
    /// The reading that a recency record of this process has.
    pub(crate) clock_written: Cell<Option<Age>>,
    pub(crate) making_room: Gate,
}

impl Upkeep {
    /// Once for each second of the age clock.
    fn look(&self, age: Age) -> bool {
        self.looked.replace(Some(age)) != Some(age)
    }

    fn sweep_due(&self, age: Age) -> bool {
        let due = |swept: Age| age.saturating_sub(swept) >= SWEEP_STEP_S;
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
        if self.upkeep.look(age) {
            self.look(age).await;
        }
        self.serve_compactor().await;
        if self.shard() == PLANNER {
            self.plan_reclaim().await;
        }
    }

    /// What is looked at once a second.
    async fn look(&self, age: Age) {
        if self.shard() == PLANNER {
            self.revoke_pins(age);
        }
        let sweep = self.upkeep.sweep_due(age);
        self.evict(sweep).await;
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
        assert!(upkeep.look(7) && !upkeep.look(7) && upkeep.look(8));
        assert!(upkeep.sweep_due(7) && !upkeep.sweep_due(66));
        assert!(upkeep.sweep_due(67) && !upkeep.sweep_due(68));
    }
}
