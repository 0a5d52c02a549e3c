//! Maintenance: what a writer does beside its callers' work, a little at a time.
//!
//! `Writer::maintain` comes ten times a second and looks at what is due; most times that is
//! nothing. Long walks over the index give way after each slice, and no lock is held while they do.

use std::rc::Rc;

use crate::Seconds;
use crate::disk::Disk;
use crate::wait::detached;
use crate::writer::{Shared, Writer};

/// The shard whose writer gives the compactor its jobs.
const PLANNER: usize = 0;

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
        self.serve_compactor().await;
        if self.shard() == PLANNER {
            self.plan_reclaim().await;
        }
    }
}
