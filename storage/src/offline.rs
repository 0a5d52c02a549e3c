//! Disks that fail: when a volume goes offline, and what every writer does then.
//!
//! Its bodies leave the index without forget records, nothing new goes there, and what was being
//! written to it has failed. Bytes under leases stay readable as long as the disk reads them. The
//! last volume never goes offline: each of its failures costs a segment and no more.

use std::io;
use std::rc::Rc;
use std::sync::atomic::Ordering;

use crate::Seconds;
use crate::disk::Disk;
use crate::segment::{Segment, State};
use crate::store::Store;
use crate::wait::Walk;
use crate::watermark::FillFailure;
use crate::writer::Shared;

/// So many segments given up and bodies not read
const FAILURES_MAX: usize = 3;
/// within this time are a failing disk and not a bad block.
const FAILURES_WINDOW: Seconds = 600;

/// Forgets the failures that are too old to count, and adds one. Whether it is one too many.
fn too_many(failures: &mut Vec<Seconds>, now: Seconds) -> bool {
    failures.retain(|at| at.saturating_add(FAILURES_WINDOW) > now && *at <= now);
    failures.push(now);
    failures.len() >= FAILURES_MAX
}

impl<D: Disk> Store<D> {
    /// A segment on this volume was given up.
    pub(crate) fn segment_failed(&self, number: u8, now: Seconds) {
        let volume = self.volume(number);
        volume.count_quarantined();
        if too_many(&mut volume.failures(), now) {
            self.take_offline(number);
        }
    }

    /// A body could not be read. It is dropped, so each counts once.
    pub(crate) fn read_failed(&self, number: u8, now: Seconds) {
        if too_many(&mut self.volume(number).failures(), now) {
            self.take_offline(number);
        }
    }

    /// A file system that the kernel made read-only takes no write until somebody repaired it, and
    /// for a disk that does not answer every group would wait.
    pub(crate) fn disk_failed(&self, number: u8, error: &io::Error) {
        let at_once = [io::ErrorKind::ReadOnlyFilesystem, io::ErrorKind::TimedOut];
        if at_once.contains(&error.kind()) {
            self.take_offline(number);
        }
    }

    pub(crate) fn take_offline(&self, number: u8) {
        let mut changes = self.offline_changes();
        let others = self.online().into_iter().any(|other| other != number);
        if others && self.volume(number).go_offline() {
            self.falls_behind(number);
            *changes += 1;
        }
    }
}

impl<D: Disk> Shared<D> {
    /// What is due if a volume went offline since the last call. From `maintain`.
    pub(crate) async fn lose_offline(self: &Rc<Self>) {
        let changes = *self.store.offline_changes();
        if self.offline_seen.get() == changes {
            return;
        }
        let segments = self.segments.borrow().clone();
        for segment in segments.iter().filter(|segment| segment.file.abandoned()) {
            self.lose(segment);
        }
        let online = |volume: &u8| self.store.volume(*volume).online();
        self.small
            .segments
            .borrow_mut()
            .retain(|volume, _| online(volume));
        let mut walk = Walk::default();
        for slice in self.slices() {
            walk.visit_all(self.store.index.remove_abandoned(slice));
            walk.rest(self.tasks()).await;
        }
        self.tell().await;
        let seen = self.offline_seen.replace(changes);
        self.store
            .losers
            .fetch_add(changes - seen, Ordering::AcqRel);
    }

    /// Nothing of it will be found until the volume is back; readers keep the file.
    fn lose(&self, segment: &Rc<Segment<D>>) {
        if segment.state.replace(State::GivenUp) == State::GivenUp {
            return;
        }
        self.drop_waiting(segment);
        for progress in self.running(|progress| progress.is_in(segment)) {
            self.end_fill(&progress, FillFailure::DiskFailed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_failures_in_ten_minutes_are_too_many() {
        let mut failures = Vec::new();
        assert!(!too_many(&mut failures, 1000));
        assert!(!too_many(&mut failures, 1599));
        assert!(!too_many(&mut failures, 1600), "the first is too long ago");
        assert!(too_many(&mut failures, 2000));
        assert!(!too_many(&mut failures, 5), "a clock that was set back");
    }
}
