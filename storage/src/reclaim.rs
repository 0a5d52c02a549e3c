//! The planner: decides what the compactor does next, and follows each job to its end.
//!
//! Part of the maintenance of shard 0's writer. It keeps the segments of a job from being
//! unlinked, and from being taken for dead by those who drop forget records, until every owner
//! has switched; what has no live body then goes. Which segments are worth it: `pick`, `scrub`.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use crate::budget::Purpose;
use crate::clock::Age;
use crate::disk::Disk;
use crate::exchange::{Copied, JOBS_MAX, Job, Report, Source, Target, ToOwner};
use crate::lease::{Kept, Place, SegmentFile};
use crate::page::Class;
use crate::pick::{self, Candidate, Need};
use crate::scrub::{Pace, Scrubbable};
use crate::segment::file_name;
use crate::survivor;
use crate::writer::Shared;

/// Room is needed from this part of a volume's capacity on, in per cent: where eviction begins.
const URGENT_PERCENT: u64 = 95;
/// Dead bytes below this part of a volume's capacity, in per cent, are not worth the writes.
const DEAD_PERCENT_MAX: u64 = 5;
/// The segments are looked through as often as this at most, in seconds of the age clock: a walk
/// over all of them. Sooner when a job has ended.
const PLAN_EVERY: Age = 10;
/// The same while room is needed.
const PLAN_EVERY_URGENT: Age = 1;
/// Segments of a job that failed are left alone for so long.
const AVOID: Age = 600;

pub(crate) struct Reclaim<D: Disk> {
    pending: RefCell<Vec<Pending<D>>>,
    given: Cell<u64>,
    /// When the segments were looked through last.
    planned: Cell<Option<Age>>,
    avoided: RefCell<BTreeMap<u64, Age>>,
    /// Segments without a readable footer: their bodies go elsewhere.
    drained: RefCell<BTreeSet<u64>>,
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

impl<D: Disk> Pending<D> {
    fn is(&self, number: u64) -> bool {
        self.number == number
    }
}

impl<D: Disk> Shared<D> {
    /// Takes the compactor's reports and gives it jobs.
    pub(crate) async fn plan_reclaim(self: &Rc<Self>) {
        while let Some(report) = self.store.exchange.reports.pop() {
            self.take_report(report).await;
        }
        self.send_switches();
        let urgent =
            |volume: u8| self.online(volume) && self.used_percent(volume) >= URGENT_PERCENT;
        let any_urgent = self.volumes().any(urgent);
        self.store.exchange.set_urgent(any_urgent);
        let now = self.store.clock.now();
        let every = if any_urgent {
            PLAN_EVERY_URGENT
        } else {
            PLAN_EVERY
        };
        let planned = self.reclaim.planned.get();
        let due = planned.is_none_or(|planned| now >= planned.saturating_add(every));
        if !due || !self.store.exchange.attended() {
            return;
        }
        self.reclaim.planned.set(Some(now));
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

    fn used_percent(&self, volume: u8) -> u64 {
        let budget = &self.store.volume(volume).budget;
        (u128::from(budget.used()) * 100 / u128::from(budget.capacity().max(1))) as u64
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

    /// The sealed segments of bodies that no job has, in the order of their ids.
    fn settled(&self, volume: u8) -> Vec<Arc<SegmentFile<D>>> {
        let pending = self.reclaim.pending.borrow();
        let busy: BTreeSet<u64> = pending
            .iter()
            .flat_map(|pending| pending.victims.iter().map(|kept| kept.file().id))
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

    async fn plan_compaction(self: &Rc<Self>, volume: u8, need: Need) {
        while self.may_give(need) {
            let settled = self.settled(volume);
            let (victims, dead) = self.victims(volume, need, &settled);
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
        volume: u8,
        need: Need,
        settled: &[Arc<SegmentFile<D>>],
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
        let budget = &self.store.volume(volume).budget;
        let room = pick::Room {
            copied: self.store.geometry.segment_len,
            reserved: budget.survivors_room(),
        };
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
        let taken = self.store.allocate(disk, volume, len_max, purpose).await;
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

    /// Lets go of segments, of which those without a live body are unlinked.
    fn release(self: &Rc<Self>, kept: Vec<Kept<D>>) {
        for kept in kept {
            let file = kept.file();
            drop(kept);
            self.reclaim(&file);
        }
    }

    async fn take_report(self: &Rc<Self>, report: Report) {
        match report {
            Report::Copied {
                job,
                copied,
                unlisted,
            } => {
                self.note_unlisted(unlisted);
                match copied {
                    Some(copied) => self.take_survivor(job, copied).await,
                    None => self.end(job, true),
                }
            }
            Report::Scrubbed { job, unlisted } => {
                self.note_unlisted(unlisted);
                self.note_verified(job);
                self.end(job, true);
            }
            Report::Failed { job } => self.end(job, false),
            Report::Switched { job } => self.switched(job),
        }
    }

    fn note_unlisted(&self, unlisted: Vec<u64>) {
        self.reclaim.drained.borrow_mut().extend(unlisted);
    }

    /// All that was live in the segments of a scrub has been read.
    fn note_verified(&self, job: u64) {
        let pending = self.reclaim.pending.borrow();
        for kept in pending
            .iter()
            .filter(|p| p.is(job))
            .flat_map(|p| &p.victims)
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
        let Ok((file, _)) = self.disk(volume).open(&name).await else {
            // What is in it is in the victims too; its name is removed by the next recovery.
            let _ = self.disk(volume).unlink(&name).await;
            return self.end(job, false);
        };
        let budget = Arc::clone(&self.store.volume(volume).budget);
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

    fn send_switches(&self) {
        for pending in self.reclaim.pending.borrow_mut().iter_mut() {
            crate::exchange::offer(&self.store.exchange, &mut pending.outgoing);
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

    /// Only now may the victims go: every owner has what it needs of them elsewhere.
    fn end(self: &Rc<Self>, job: u64, well: bool) {
        let mut all = self.reclaim.pending.borrow_mut();
        let Some(at) = all.iter().position(|pending| pending.is(job)) else {
            return;
        };
        let ended = all.swap_remove(at);
        drop(all);
        if let Some((_, taken)) = ended.target {
            let budget = &self.store.volume(ended.volume).budget;
            budget.give_back(taken, Purpose::Survivors);
        }
        let until = self.store.clock.now().saturating_add(AVOID);
        for kept in &ended.victims {
            let segment = kept.file().id;
            if !well {
                self.reclaim.avoided.borrow_mut().insert(segment, until);
            }
        }
        self.reclaim.planned.set(None);
        self.release(ended.victims);
        self.release(ended.survivor.into_iter().collect());
        self.reclaim
            .drained
            .borrow_mut()
            .retain(|segment| self.store.file(*segment).is_some());
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
