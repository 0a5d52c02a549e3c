//! What becomes of a job after it was given: the planner takes the reports of the compactor and of
//! the owners, and lets go of the segments at the end.

use std::io::ErrorKind;
use std::rc::Rc;
use std::sync::Arc;

use super::{Leftover, Pending};
use crate::budget::Purpose;
use crate::clock::Age;
use crate::disk::Disk;
use crate::exchange::{Copied, Report, ToOwner, offer};
use crate::lease::{Kept, Place, SegmentFile};
use crate::page::Class;
use crate::segment::file_name;
use crate::writer::Shared;

/// Segments of a job that failed are left alone for so long, in seconds of the age clock.
const AVOID: Age = 600;

impl<D: Disk> Shared<D> {
    /// Lets go of segments, of which those without a live body are unlinked.
    pub(super) fn release(self: &Rc<Self>, kept: Vec<Kept<D>>) {
        for kept in kept {
            let file = kept.file();
            drop(kept);
            self.reclaim(&file);
        }
    }

    pub(super) async fn take_report(self: &Rc<Self>, report: Report) {
        match report {
            Report::Copied {
                job,
                copied,
                unlisted,
                unread,
            } => {
                self.note_unlisted(unlisted);
                self.avoid(&unread);
                match copied {
                    Some(copied) => self.take_survivor(job, copied).await,
                    None => self.end(job, true),
                }
            }
            Report::Scrubbed {
                job,
                unlisted,
                unread,
            } => {
                self.note_unlisted(unlisted);
                self.note_verified(job, &unread);
                self.avoid(&unread);
                self.end(job, true);
            }
            Report::Failed { job, unread, kind } => {
                self.note_failure(job, kind);
                // Where it is known who is to blame, the others of the job are not.
                match unread.is_empty() {
                    true => self.avoid(&self.victims_of(job)),
                    false => self.avoid(&unread),
                }
                self.end(job, false);
            }
            Report::Switched { job } => self.switched(job),
        }
    }

    /// A full disk is no failing one, nor is one that was not asked.
    fn note_failure(&self, job: u64, kind: ErrorKind) {
        let pending = self.reclaim.pending.borrow();
        let failed = pending.iter().find(|pending| pending.is(job));
        let Some(volume) = failed.map(|pending| pending.volume) else {
            return;
        };
        let blameless = [
            ErrorKind::StorageFull,
            ErrorKind::QuotaExceeded,
            ErrorKind::Interrupted,
        ];
        if !blameless.contains(&kind) {
            self.store.disk_failed(volume, &kind.into());
            self.store.segment_failed(volume, self.now.get());
        }
    }

    fn note_unlisted(&self, unlisted: Vec<u64>) {
        self.reclaim.drained.borrow_mut().extend(unlisted);
    }

    /// What is left alone for a while.
    fn avoid(&self, segments: &[u64]) {
        let until = self.store.clock.now().saturating_add(AVOID);
        let mut avoided = self.reclaim.avoided.borrow_mut();
        avoided.extend(segments.iter().map(|segment| (*segment, until)));
    }

    fn victims_of(&self, job: u64) -> Vec<u64> {
        let pending = self.reclaim.pending.borrow();
        let pending = pending.iter().filter(|pending| pending.is(job));
        let victims = pending.flat_map(|pending| &pending.victims);
        victims.map(|kept| kept.file().id).collect()
    }

    /// All that was live in the segments of a scrub has been read, but in those that were not.
    fn note_verified(&self, job: u64, unread: &[u64]) {
        let pending = self.reclaim.pending.borrow();
        for kept in pending
            .iter()
            .filter(|p| p.is(job))
            .flat_map(|p| &p.victims)
            .filter(|kept| !unread.contains(&kept.file().id))
        {
            kept.file().set_unverified(false);
        }
    }

    /// Registers the survivor segment, whose copies are durable, and has the owners switch.
    async fn take_survivor(self: &Rc<Self>, job: u64, copied: Copied) {
        let find = |pending: &&Pending<D>| pending.is(job);
        let found = self
            .reclaim
            .pending
            .borrow()
            .iter()
            .find(find)
            .and_then(|pending| {
                let (segment, taken) = pending.target?;
                Some((pending.volume, segment, taken))
            });
        let Some((volume, segment, taken)) = found else {
            return;
        };
        let name = file_name(segment, Class::Shared);
        let opened = match self.online(volume) {
            true => self.disk(volume).open(&name).await.ok(),
            false => None,
        };
        let Some((file, _)) = opened else {
            self.avoid(&self.victims_of(job));
            return self.end(job, false);
        };
        let budget = Arc::clone(&self.store.volume(volume).budget);
        // The rest counts as used only when the victims may go.
        budget.give_back(taken - copied.len, Purpose::Survivors);
        let place = Place {
            volume,
            id: segment,
            class: Class::Shared,
            floor: copied.floor,
        };
        let file = Arc::new(SegmentFile::new(file, place, copied.len, budget));
        file.seal();
        let kept = file.hold();
        self.store.volume(volume).register(file);
        let mut all = self.reclaim.pending.borrow_mut();
        let Some(pending) = all.iter_mut().find(|pending| pending.is(job)) else {
            return;
        };
        pending.target = None;
        pending.survivor = Some(kept);
        pending.switching = copied.moves.len();
        pending.outgoing = copied
            .moves
            .into_iter()
            .enumerate()
            .map(|(owner, moves)| {
                let target = segment;
                (owner, ToOwner::Switch { job, target, moves })
            })
            .collect();
    }

    pub(super) fn send_switches(&self) {
        for pending in self.reclaim.pending.borrow_mut().iter_mut() {
            offer(&self.store.exchange, &mut pending.outgoing);
        }
    }

    fn switched(self: &Rc<Self>, job: u64) {
        let mut all = self.reclaim.pending.borrow_mut();
        let Some(pending) = all.iter_mut().find(|pending| pending.is(job)) else {
            return;
        };
        pending.switching -= 1;
        let done = pending.switching == 0;
        drop(all);
        if done {
            self.end(job, true);
        }
    }

    /// Gives back what was taken for a target that never came to be, or is to be removed first.
    fn leave_target(&self, ended: &Pending<D>, well: bool) {
        let Some((segment, taken)) = ended.target else {
            return;
        };
        let volume = self.store.volume(ended.volume);
        if well {
            return volume.budget.give_back(taken, Purpose::Survivors);
        }
        // Should it outlive its victims, purges of what is in it must outlive it.
        let floors = ended.victims.iter().map(|kept| kept.file().floor());
        volume.leave(segment, Class::Shared, floors.min().unwrap_or(0));
        self.reclaim.leftovers.borrow_mut().push(Leftover {
            volume: ended.volume,
            segment,
            taken,
        });
    }

    /// Removes what there is of targets that were given up. What stays is tried again later.
    pub(super) async fn unlink_leftovers(&self) {
        for leftover in self.reclaim.leftovers.take() {
            let volume = self.store.volume(leftover.volume);
            let name = file_name(leftover.segment, Class::Shared);
            // A volume that was away and is back has made a segment of it.
            let ours = volume.online() && self.store.file(leftover.segment).is_none();
            if ours {
                let removed = self.disk(leftover.volume).unlink(&name).await;
                if removed.is_err_and(|error| error.kind() != ErrorKind::NotFound) {
                    self.reclaim.leftovers.borrow_mut().push(leftover);
                    continue;
                }
            }
            volume.left(leftover.segment);
            volume.budget.give_back(leftover.taken, Purpose::Survivors);
        }
    }

    /// Only now may the victims go: every owner has what it needs of them elsewhere.
    fn end(self: &Rc<Self>, job: u64, well: bool) {
        let mut all = self.reclaim.pending.borrow_mut();
        let Some(at) = all.iter().position(|pending| pending.is(job)) else {
            return;
        };
        let ended = all.swap_remove(at);
        drop(all);
        self.leave_target(&ended, well);
        if let Some(kept) = &ended.survivor {
            let budget = &self.store.volume(ended.volume).budget;
            budget.survived(kept.file().charged());
        }
        self.reclaim.planned.set(None);
        self.release(ended.victims);
        self.release(ended.survivor.into_iter().collect());
        self.reclaim
            .drained
            .borrow_mut()
            .retain(|segment| self.store.file(*segment).is_some());
    }
}
