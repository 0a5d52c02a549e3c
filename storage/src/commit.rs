//! Groups: what makes finished bodies survive a crash.
//!
//! The order is S3: bodies, sync, and only then their commit entries, which the next group's sync
//! makes durable. Segments of a group go side by side. A failed sync or write is never retried:
//! the segment is given up, its records forgotten, its leases revoked.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use crate::Seconds;
use crate::disk::Disk;
use crate::fill::Progress;
use crate::key::ForgetKey;
use crate::lease::SegmentFile;
use crate::page::Class;
use crate::segment::{Entered, Finished, Segment, Slot, State, file_name};
use crate::wait::all;
use crate::watermark::FillFailure;
use crate::writer::{Shared, WriteError};

/// Groups until a drain has sealed everything: bodies, entries, footers.
const DRAIN_GROUPS: usize = 3;

impl<D: Disk> Shared<D> {
    pub(crate) async fn commit(self: Rc<Self>, now: Seconds) -> Result<(), WriteError> {
        let _turn = self.committing.turn().await;
        self.now.set(now);
        let segments = self.segments.borrow().clone();
        let failed = Rc::new(Cell::new(false));
        let tasks = segments.into_iter().map(|segment| {
            let (shared, failed) = (Rc::clone(&self), Rc::clone(&failed));
            async move {
                if let Err(Stop::DiskFailed) = shared.commit_segment(&segment).await {
                    failed.set(true);
                }
            }
        });
        all(self.tasks(), tasks.collect()).await;
        let small = self.commit_small().await;
        if failed.get() {
            Err(WriteError::DiskFailed)
        } else {
            small
        }
    }

    async fn commit_segment(&self, segment: &Rc<Segment<D>>) -> Result<(), Stop> {
        let finished = segment.finished.take();
        let syncing = finished.iter().map(|body| body.entry.digest);
        segment.syncing.replace(syncing.collect());
        let entered = segment.entered.take();
        let entered_bytes = entered
            .iter()
            .map(|entered| entered.waiting)
            .collect::<Vec<_>>();
        let outcome = self.commit_group(segment, &finished, entered).await;
        // However it went, these do not wait any more.
        for waiting in entered_bytes {
            self.remove_uncommitted(waiting);
        }
        match outcome {
            Ok(()) => self.enter(segment, finished).await,
            Err(stop) => {
                for finished in &finished {
                    self.remove_uncommitted(finished.waiting());
                }
                Err(stop)
            }
        }
    }

    /// Makes durable what was written before: bodies of `finished`, pages of `entered`.
    async fn commit_group(
        &self,
        segment: &Rc<Segment<D>>,
        finished: &[Finished<D>],
        entered: Vec<Entered<D>>,
    ) -> Result<(), Stop> {
        let unsynced = segment.unsynced.replace(false);
        if finished.is_empty() && !unsynced {
            return Ok(());
        }
        self.sync(segment).await?;
        for entered in entered {
            self.store
                .index
                .set_durable(&entered.digest, entered.sequence);
            if let Some(kept) = entered.replaces {
                let file = kept.file();
                drop(kept);
                self.reclaim(&file);
            }
        }
        if segment.state.get() == State::Footed {
            segment.state.set(State::Sealed);
            self.remove(segment);
            segment.file.seal();
            self.reclaim(&segment.file);
        }
        Ok(())
    }

    /// One sync of the file, and one of the directory before anything in it can count.
    async fn sync(&self, segment: &Rc<Segment<D>>) -> Result<(), Stop> {
        let disk = self.disk(segment.file.volume);
        let mut outcome = disk.sync(&segment.file.file).await;
        if outcome.is_ok() && !segment.named.get() {
            outcome = disk.sync_dir().await;
            segment.named.set(outcome.is_ok());
        }
        self.check(segment, outcome)
    }

    /// Writes the commit entries of bodies that are durable now (S3), and the footer after the
    /// last one.
    async fn enter(
        &self,
        segment: &Rc<Segment<D>>,
        finished: Vec<Finished<D>>,
    ) -> Result<(), Stop> {
        // A purge that came meanwhile took the body out of the index.
        let (wanted, purged): (Vec<_>, Vec<_>) = finished.into_iter().partition(|finished| {
            let found = |sequence| sequence >= finished.sequence;
            let digest = &finished.entry.digest;
            self.store
                .index
                .with_body(digest, |body| found(body.sequence))
                .unwrap_or(false)
        });
        for purged in &purged {
            segment.release_promise();
            self.remove_uncommitted(purged.waiting());
        }
        if !wanted.is_empty() {
            let slots = segment.enter(wanted);
            self.write(segment, slots).await?;
        }
        if segment.settled() {
            self.foot(segment).await?;
        }
        Ok(())
    }

    async fn foot(&self, segment: &Rc<Segment<D>>) -> Result<(), Stop> {
        if !segment.has_records() {
            self.give_up(segment);
            return Ok(());
        }
        segment.state.set(State::Footed);
        self.write(segment, segment.footer()).await
    }

    async fn write(&self, segment: &Rc<Segment<D>>, slots: Vec<Slot>) -> Result<(), Stop> {
        segment.unsynced.set(true);
        for slot in slots {
            let outcome = self
                .disk(segment.file.volume)
                .write(&segment.file.file, slot.offset, slot.bytes)
                .await;
            self.check(segment, outcome)?;
        }
        Ok(())
    }

    /// Meanwhile a body's write may have failed, or a purge have taken all there was.
    fn check(&self, segment: &Rc<Segment<D>>, outcome: io::Result<()>) -> Result<(), Stop> {
        if let Err(error) = &outcome {
            self.store.disk_failed(segment.file.volume, error);
            self.quarantine(segment);
        }
        match segment.state.get() {
            State::GivenUp if segment.file.revoked() => Err(Stop::DiskFailed),
            State::GivenUp => Err(Stop::Purged),
            _ => Ok(()),
        }
    }

    pub(crate) async fn seal_all(self: Rc<Self>, now: Seconds) -> Result<(), WriteError> {
        if let Some(open) = self.open.take() {
            open.state.set(State::Full);
        }
        // A failure costs times.
        let _ = self.write_recency().await;
        let mut outcome = Ok(());
        for _ in 0..DRAIN_GROUPS {
            let segments = self.segments.borrow().clone();
            for segment in segments {
                let quiet = || (segment.writes.get() == 0).then_some(());
                segment.changed.until(quiet).await;
            }
            outcome = outcome.and(Rc::clone(&self).commit(now).await);
        }
        outcome.and(self.end_small().await)
    }

    pub(crate) fn write_failed(&self, progress: &Progress<D>, error: &io::Error) {
        self.store.disk_failed(progress.file.volume, error);
        match &progress.segment {
            Some(segment) => self.quarantine(segment),
            None => self.end_fill(progress, FillFailure::DiskFailed),
        }
    }

    /// After a failed write or sync nothing in the segment is trusted.
    fn quarantine(&self, segment: &Rc<Segment<D>>) {
        if matches!(segment.state.get(), State::GivenUp | State::Sealed) {
            return;
        }
        self.store
            .segment_failed(segment.file.volume, self.now.get());
        segment.file.revoke();
        for (digest, sequence) in segment.bodies() {
            // Its own sequence: a later body of this digest elsewhere is not meant.
            self.queue_forget(ForgetKey::Body(digest), sequence);
        }
        for digest in segment.indexed() {
            let index = &self.store.index;
            index.remove_body(&digest, |body| Arc::ptr_eq(&body.lease.file, &segment.file));
        }
        self.give_up(segment);
        for progress in self.running(|progress| progress.is_in(segment)) {
            self.end_fill(&progress, FillFailure::DiskFailed);
        }
    }

    /// Drops a segment nobody will find anything in any more; readers keep the file.
    pub(crate) fn give_up(&self, segment: &Rc<Segment<D>>) {
        if segment.state.replace(State::GivenUp) == State::GivenUp {
            return;
        }
        self.drop_waiting(segment);
        self.unlink(&segment.file);
    }

    /// What waits in a segment that was given up waits no more.
    pub(crate) fn drop_waiting(&self, segment: &Rc<Segment<D>>) {
        for finished in segment.finished.take() {
            self.remove_uncommitted(finished.waiting());
        }
        for entered in segment.entered.take() {
            self.remove_uncommitted(entered.waiting);
        }
        self.remove(segment);
    }

    fn remove(&self, segment: &Rc<Segment<D>>) {
        self.segments
            .borrow_mut()
            .retain(|other| !Rc::ptr_eq(other, segment));
        let mut open = self.open.borrow_mut();
        if open.as_ref().is_some_and(|open| Rc::ptr_eq(open, segment)) {
            *open = None;
        }
    }

    /// Unlinks the segment if a body that left the index was its last.
    pub(crate) fn reclaim(&self, file: &SegmentFile<D>) {
        if file.dead() {
            self.unlink(file);
        }
    }

    /// Once, whoever asks; readers keep the file.
    pub(crate) fn unlink(&self, file: &SegmentFile<D>) {
        let Some(file) = self.store.volume(file.volume).unregister(file.id) else {
            return;
        };
        let age = self.store.clock.now();
        self.store.volume(file.volume).unlinked(&file, age);
        let disk = self.disk(file.volume).clone();
        let store = Arc::clone(&self.store);
        self.tasks().spawn(async move {
            // A name that stays is found and removed by the next recovery.
            if disk.unlink(&file_name(file.id, file.class)).await.is_ok() {
                store.volume(file.volume).left(file.id);
            }
            drop(file);
        });
    }

    /// A body that left the index leaves its writer too, and its segment if it was the last.
    pub(crate) fn withdraw(&self, sequence: u64, file: &Arc<SegmentFile<D>>) {
        let segments = self.segments.borrow().clone();
        let is_own = |segment: &Rc<Segment<D>>| Arc::ptr_eq(&segment.file, file);
        let Some(segment) = segments.into_iter().find(is_own) else {
            return self.reclaim(file);
        };
        if segment.class == Class::Solo {
            self.give_up(&segment);
            return;
        }
        segment.finished.borrow_mut().retain(|finished| {
            let stays = finished.sequence != sequence;
            if !stays {
                segment.release_promise();
                self.remove_uncommitted(finished.waiting());
            }
            stays
        });
    }
}

/// The segment was given up.
enum Stop {
    DiskFailed,
    Purged,
}
