//! The planner: decides what the compactor does next, and follows each job to its end.
//!
//! Part of the maintenance of shard 0's writer. It keeps the segments of a job from being
//! unlinked, and from being taken for dead by those who drop forget records, until every owner
//! has switched; what has no live body then goes. Which segments are worth it: `pick`, `scrub`.

mod follow;
#[cfg(test)]
mod tests;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::budget::{self, Purpose};
use crate::clock::Age;
use crate::disk::Disk;
use crate::exchange::{JOBS_MAX, Job, Source, Target, ToOwner};
use crate::lease::{Kept, SegmentFile};
use crate::page::Class;
use crate::pick::{self, Candidate, Need};
use crate::scrub::{Pace, Scrubbable};
use crate::survivor;
use crate::writer::Shared;

/// Dead bytes below this part of a volume's capacity, in per cent, are not worth the writes.
const DEAD_PERCENT_MAX: u64 = 5;
/// The segments are looked through as often as this at most, in seconds of the age clock: a walk
/// over all of them. Sooner when a job has ended.
const PLAN_EVERY: Age = 10;
/// The same while room is needed.
const PLAN_EVERY_URGENT: Age = 1;

pub(crate) struct Reclaim<D: Disk> {
    pending: RefCell<Vec<Pending<D>>>,
    given: Cell<u64>,
    /// When the segments were looked through last.
    planned: Cell<Option<Age>>,
    avoided: RefCell<BTreeMap<u64, Age>>,
    /// Segments without a readable footer: their bodies go elsewhere.
    drained: RefCell<BTreeSet<u64>>,
    leftovers: RefCell<Vec<Leftover>>,
    pace: RefCell<Pace>,
}

impl<D: Disk> Default for Reclaim<D> {
    fn default() -> Reclaim<D> {
        Reclaim {
            pending: RefCell::default(),
            given: Cell::new(0),
            planned: Cell::new(None),
            avoided: RefCell::default(),
            drained: RefCell::default(),
            leftovers: RefCell::default(),
            pace: RefCell::default(),
        }
    }
}

/// A job that was given.
struct Pending<D: Disk> {
    number: u64,
    volume: u8,
    scrub: bool,
    /// Counted as live records of theirs, so that nobody unlinks them.
    victims: Vec<Kept<D>>,
    /// Of a compaction: the survivor segment, and what was taken from the budget for it.
    target: Option<(u64, u64)>,
    survivor: Option<Kept<D>>,
    /// Switches that an owner's queue had no room for, and those that are not acknowledged.
    outgoing: Vec<(usize, ToOwner)>,
    switching: usize,
}

/// The target of a job that was given up. There may be a file of it, even a whole one.
struct Leftover {
    volume: u8,
    segment: u64,
    /// From the budget.
    taken: u64,
}

impl<D: Disk> Pending<D> {
    fn is(&self, number: u64) -> bool {
        self.number == number
    }
}

impl<D: Disk> Shared<D> {
    /// Whether a job of this volume has not ended.
    pub(crate) fn compacts(&self, volume: u8) -> bool {
        let pending = self.reclaim.pending.borrow();
        pending.iter().any(|pending| pending.volume == volume)
    }

    /// Takes the compactor's reports and gives it jobs.
    pub(crate) async fn plan_reclaim(self: &Rc<Self>) {
        while let Some(report) = self.store.exchange.reports.pop() {
            self.take_report(report).await;
        }
        self.send_switches();
        let now = self.store.clock.now();
        let urgent =
            |volume: u8| self.online(volume) && self.store.volume(volume).budget.urgent(now);
        let any_urgent = self.volumes().any(urgent);
        self.store.exchange.set_urgent(any_urgent);
        let every = if any_urgent {
            PLAN_EVERY_URGENT
        } else {
            PLAN_EVERY
        };
        let planned = self.reclaim.planned.get();
        let due = planned.is_none_or(|planned| now >= planned.saturating_add(every));
        if !due {
            return;
        }
        self.reclaim.planned.set(Some(now));
        self.unlink_leftovers().await;
        self.unlink_dead();
        if !self.store.exchange.attended() {
            return;
        }
        self.reclaim
            .avoided
            .borrow_mut()
            .retain(|_, until| *until > now);
        for volume in self.volumes() {
            if self.online(volume) {
                let need = if urgent(volume) {
                    Need::Urgent
                } else {
                    Need::Idle
                };
                self.plan_compaction(volume, need).await;
            }
        }
        self.plan_scrub(now);
    }

    fn volumes(&self) -> std::ops::Range<u8> {
        0..self.store.volumes.len() as u8
    }

    fn online(&self, volume: u8) -> bool {
        self.store.volume(volume).online()
    }

    /// Jobs that may be under way: several when room is needed, so that the compactor does not
    /// wait for owners.
    fn may_give(&self, need: Need) -> bool {
        let max = match need {
            Need::Urgent => JOBS_MAX,
            Need::Idle => 1,
        };
        self.reclaim.pending.borrow().len() < max
    }

    /// Whatever kept them when their last body went, nothing does now.
    fn unlink_dead(&self) {
        for volume in self.volumes().filter(|volume| self.online(*volume)) {
            for file in self.settled(volume) {
                self.reclaim(&file);
            }
        }
    }

    /// The sealed segments of bodies that no job has, in the order of their ids.
    fn settled(&self, volume: u8) -> Vec<Arc<SegmentFile<D>>> {
        let pending = self.reclaim.pending.borrow();
        let busy: BTreeSet<u64> = pending
            .iter()
            // A survivor segment fills while the owners switch: what it seems to be now it is not.
            .flat_map(|pending| pending.victims.iter().chain(&pending.survivor))
            .map(|kept| kept.file().id)
            .collect();
        let avoided = self.reclaim.avoided.borrow();
        let free = |file: &&Arc<SegmentFile<D>>| {
            file.class != Class::Small
                && file.sealed()
                && !busy.contains(&file.id)
                && !avoided.contains_key(&file.id)
        };
        let volume = self.store.volume(volume);
        let registry = volume.registry();
        registry.values().filter(free).cloned().collect()
    }

    /// What a survivor segment may take now; `None`: as another one is under way there is not
    /// enough for a whole one, and less would be filled with what happens to fit.
    async fn survivors_room(&self, volume: u8) -> Option<u64> {
        let budget = &self.store.volume(volume).budget;
        let promised = budget.promised();
        let space = self.disk(volume).space().await.ok()?.less(promised);
        let taken = budget.survivors();
        // Those may not be allocated yet.
        let on_disk = budget::room(space, Purpose::Survivors).saturating_sub(taken);
        let room = budget.survivors_room().min(on_disk);
        (taken == 0 || room >= budget.survivor_len()).then_some(room)
    }

    async fn plan_compaction(self: &Rc<Self>, volume: u8, need: Need) {
        while self.may_give(need) {
            let Some(reserved) = self.survivors_room(volume).await else {
                return;
            };
            let settled = self.settled(volume);
            let room = pick::Room {
                copied: self.store.geometry.segment_len,
                reserved,
            };
            let (victims, dead) = self.victims(need, &settled, room);
            let drained = victims
                .iter()
                .any(|victim| self.reclaim.drained.borrow().contains(&victim.segment));
            let capacity = self.store.volume(volume).budget.capacity();
            let worth = need == Need::Urgent || drained || dead > capacity / 100 * DEAD_PERCENT_MAX;
            if victims.is_empty() || !worth {
                return;
            }
            let files: Vec<_> = settled
                .into_iter()
                .filter(|file| victims.iter().any(|victim| victim.segment == file.id))
                .collect();
            if !self.give_compaction(volume, &files).await {
                return;
            }
        }
    }

    /// What to compact of these, and how many dead bytes there are in all of them.
    fn victims(
        &self,
        need: Need,
        settled: &[Arc<SegmentFile<D>>],
        room: pick::Room,
    ) -> (Vec<Candidate>, u64) {
        let count = settled.len() as u64;
        let candidates: Vec<Candidate> = (1..)
            .zip(settled)
            .map(|(made, file): (u64, _)| Candidate {
                segment: file.id,
                len: file.charged(),
                live: file.live_extents(),
                bodies: file.live_records(),
                age: count - made,
            })
            .collect();
        let dead = candidates.iter().map(Candidate::dead).sum();
        // What counts as live and is not in the index waits for a later one to be durable.
        let ready = |candidate: &&Candidate| candidate.live > 0;
        let ready: Vec<Candidate> = candidates.iter().filter(ready).copied().collect();
        let drained = self.reclaim.drained.borrow();
        let first = ready.iter().find(|c| drained.contains(&c.segment));
        let picked = match first {
            Some(first) => pick::fitting(vec![*first], room),
            None => pick::victims(&ready, need, room),
        };
        (picked, dead)
    }

    /// Takes the room, keeps the segments, and gives the job. `false`: not now.
    async fn give_compaction(self: &Rc<Self>, volume: u8, files: &[Arc<SegmentFile<D>>]) -> bool {
        let victims: Vec<Kept<D>> = files.iter().map(|file| file.hold()).collect();
        let sum = |part: fn(&SegmentFile<D>) -> u64| files.iter().map(|file| part(file)).sum();
        let len_max = survivor::len_max(
            sum(SegmentFile::live_records),
            sum(SegmentFile::live_extents),
        );
        let (disk, purpose) = (self.disk(volume), Purpose::Survivors);
        let taken = self
            .store
            .allocate(disk, volume, (len_max, 0), purpose)
            .await;
        if taken.is_err() {
            self.release(victims);
            return false;
        }
        let segment = self.store.next_segment();
        let target = Target {
            segment,
            len_max,
            created: self.now.get(),
        };
        let given = self.give(volume, victims, Some(target));
        if !given {
            let budget = &self.store.volume(volume).budget;
            budget.give_back(len_max, purpose);
        }
        given
    }

    fn give(self: &Rc<Self>, volume: u8, victims: Vec<Kept<D>>, target: Option<Target>) -> bool {
        let number = self.reclaim.given.get() + 1;
        let drained = self.reclaim.drained.borrow();
        let source = |kept: &Kept<D>| {
            let file = kept.file();
            Source {
                segment: file.id,
                class: file.class,
                len: file.charged(),
                unlisted: drained.contains(&file.id),
                unverified: file.unverified(),
            }
        };
        let job = Job {
            number,
            volume,
            sources: victims.iter().map(source).collect(),
            target,
        };
        drop(drained);
        if self.store.exchange.jobs.push(job).is_err() {
            self.release(victims);
            return false;
        }
        self.reclaim.given.set(number);
        self.reclaim.pending.borrow_mut().push(Pending {
            number,
            volume,
            scrub: target.is_none(),
            victims,
            target: target.map(|target| (target.segment, target.len_max)),
            survivor: None,
            outgoing: Vec::new(),
            switching: 0,
        });
        true
    }

    /// One segment at a time, beside whatever is compacted.
    fn plan_scrub(self: &Rc<Self>, now: Age) {
        let pending = self.reclaim.pending.borrow();
        if pending.len() >= JOBS_MAX || pending.iter().any(|pending| pending.scrub) {
            return;
        }
        drop(pending);
        let mut segments = Vec::new();
        for volume in self.volumes().filter(|volume| self.online(*volume)) {
            let scrubbable = |file: &Arc<SegmentFile<D>>| Scrubbable {
                volume,
                segment: file.id,
                live: file.live_bytes(),
                unverified: file.unverified(),
            };
            segments.extend(self.settled(volume).iter().map(scrubbable));
        }
        let period = self.store.scrub_every;
        let next = self.reclaim.pace.borrow_mut().next(now, period, &segments);
        let file = next.and_then(|next| self.store.file(next.segment));
        if let Some(file) = file {
            self.give(file.volume, vec![file.hold()], None);
        }
    }
}
