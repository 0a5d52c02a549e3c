//! Checkpoints of the small log, one volume at a time.
//!
//! When the small records on a volume take far more room than those that live, or a volume came
//! back, every owner writes all of its own that live to new segments there: tags, links,
//! statistics, forget records, recency. When all owners' are durable, the older segments go.
//! Shard 0 begins and ends a checkpoint; each owner does its part in `maintain`, slice by slice.
//!
//! A crash at any point leaves the older segments, or the new ones, or both.

use std::rc::Rc;

use crate::Seconds;
use crate::digest::{SLICES, owner};
use crate::disk::Disk;
use crate::key::{ForgetKey, TagKey, TagKeyRef};
use crate::mirror::Pages;
use crate::page::Class;
use crate::record::{Kind, Recency, Record};
use crate::volume::{Floors, Volume};
use crate::writer::{Shared, WriteError};

/// Small records on a volume may take this many times what the last checkpoint left,
const GROWTH: u64 = 2;
/// and this much more: a restart reads as much in a few milliseconds.
const SLACK_BYTES: u64 = 4 << 20;
/// Of a tiny volume one part in this many.
const SLACK_PARTS: u64 = 64;
/// After one that failed.
const RETRY: Seconds = 10;

/// A checkpoint of one volume, for all owners.
#[derive(Default)]
pub(crate) struct Checkpoint {
    /// Counts them.
    number: u64,
    running: bool,
    /// Segments from this one on belong to it, or to later records.
    first: u64,
    /// `Volume::lacking` when it began.
    lacking: u64,
    /// Owners that have not ended their part.
    left: Vec<usize>,
    /// There is something that it does not have, whatever its size.
    wanted: bool,
    /// Bytes that the last one left.
    base: u64,
    /// Not begun before.
    retry: Seconds,
}

impl<D: Disk> Volume<D> {
    /// Whether this owner has a part to do, and in which checkpoint.
    fn asks(&self, shard: usize) -> Option<u64> {
        let checkpoint = self.checkpoint();
        (checkpoint.running && checkpoint.left.contains(&shard)).then_some(checkpoint.number)
    }

    fn part_ended(&self, shard: usize, number: u64) {
        let mut checkpoint = self.checkpoint();
        if checkpoint.number == number {
            checkpoint.left.retain(|left| *left != shard);
        }
    }

    fn part_failed(&self, number: u64, now: Seconds) {
        let mut checkpoint = self.checkpoint();
        if checkpoint.running && checkpoint.number == number {
            checkpoint.running = false;
            checkpoint.retry = now + RETRY;
        }
    }

    /// Bytes of small records, and the segments they are in.
    fn small_bytes(&self) -> u64 {
        let registry = self.registry();
        let small = registry.values().filter(|file| file.class == Class::Small);
        small.map(|file| file.charged()).sum()
    }

    /// Whether one is to begin now.
    fn due(&self, now: Seconds) -> bool {
        let checkpoint = self.checkpoint();
        if checkpoint.running || !self.online() || now < checkpoint.retry {
            return false;
        }
        let slack = SLACK_BYTES.min(self.budget.capacity() / SLACK_PARTS);
        let max = GROWTH * checkpoint.base + slack;
        let wanted = checkpoint.wanted;
        drop(checkpoint);
        wanted || !self.complete() || self.small_bytes() > max
    }

    /// One that begins from now on ends as one that has everything.
    pub(crate) fn want_checkpoint(&self) {
        self.misses();
        self.checkpoint().wanted = true;
    }

    fn begin_checkpoint(&self, first: u64, owners: usize) {
        let lacking = self.lacking();
        let mut checkpoint = self.checkpoint();
        checkpoint.number += 1;
        checkpoint.running = true;
        checkpoint.first = first;
        checkpoint.lacking = lacking;
        checkpoint.left = (0..owners).collect();
    }

    /// Once all parts have ended: the first segment that stays if nothing was missed meanwhile,
    /// and what tells that.
    fn ended(&self) -> Option<(u64, u64)> {
        let mut checkpoint = self.checkpoint();
        let ended = checkpoint.running && checkpoint.left.is_empty();
        checkpoint.running &= !ended;
        ended.then_some((checkpoint.first, checkpoint.lacking))
    }
}

impl<D: Disk> Shared<D> {
    /// What is due of all checkpoints. From `maintain`.
    pub(crate) async fn checkpoints(self: &Rc<Self>) {
        for number in 0..self.store.volumes.len() as u8 {
            let volume = self.store.volume(number);
            if self.shard == 0 {
                self.lead(number).await;
            }
            let Some(asked) = volume.asks(self.shard) else {
                continue;
            };
            if self.take_part(number, asked).await.is_err() {
                volume.part_failed(asked, self.now.get());
            }
        }
    }

    /// Begins one, or ends it: once the new segments have everything, the older ones go.
    async fn lead(self: &Rc<Self>, number: u8) {
        let (volume, now) = (self.store.volume(number), self.now.get());
        if volume.due(now) {
            volume.begin_checkpoint(self.store.segment(), self.store.owners);
        }
        let Some((first, lacking)) = volume.ended() else {
            return;
        };
        if !self.store.has_all_records(number, lacking) {
            volume.checkpoint().retry = now + RETRY;
            return;
        }
        self.tell().await;
        volume.checkpoint().wanted = false;
        let old = volume.small_before(first);
        for file in old {
            self.unlink(&file);
        }
        volume.checkpoint().base = volume.small_bytes();
    }

    /// Writes what this writer owns. What waits to be written is not durable yet: nobody misses
    /// it here, and the group that writes it writes it here too.
    async fn take_part(self: &Rc<Self>, volume: u8, number: u64) -> Result<(), WriteError> {
        self.let_go().await;
        let index = &self.store.index;
        let known = |tag: &TagKey| index.tags.get(TagKeyRef::from(tag), 0).is_some();
        self.small.prune_shadowed(known);
        {
            let _turn = self.small.writing.turn().await;
            self.seal_small(volume).await?;
        }
        // All that is written from now on was alive now: forget records that are older have
        // nothing to kill in it.
        let floor = self.store.sequence();
        for slice in (0..SLICES).filter(|slice| self.owns(*slice)) {
            let _turn = self.small.writing.turn().await;
            let pages = self.pages_of(slice, floor);
            if !pages.is_empty() {
                self.write_pages(volume, &pages).await?;
            }
        }
        if self.shard == 0 {
            let _turn = self.small.writing.turn().await;
            let mut pages = Pages::new(floor);
            let unknown = self.store.unknown();
            unknown.iter().for_each(|encoded| pages.add(encoded));
            pages.add(&self.clock_record().encoded());
            self.write_pages(volume, &pages).await?;
        }
        self.store.volume(volume).part_ended(self.shard, number);
        Ok(())
    }

    /// The age clock, if there is no body whose recency has it.
    fn clock_record(&self) -> Record {
        let sequence = self.store.next_sequence();
        let recency = Recency {
            clock: self.store.clock.now().into(),
            seen: Vec::new(),
        };
        let kind = Kind::Recency(recency);
        Record { sequence, kind }
    }

    fn owns(&self, slice: usize) -> bool {
        owner(slice, self.store.owners) == self.shard
    }

    /// Everything of one slice that is to be found after a restart.
    fn pages_of(&self, slice: usize, floor: u64) -> Pages {
        let (store, mut pages) = (&self.store, Pages::new(floor));
        for record in store.index.small_records(slice) {
            let record = match &record.kind {
                Kind::Tag(key, _) => self.on_disk(key),
                _ => Some(record),
            };
            // A project is forgotten by one owner, and what others have of it by each later; of a
            // purge that a volume brought, what only this writer still has on disk is not known.
            if let Some(record) = record.filter(|record| !self.forgotten(record)) {
                pages.add(&record.encoded());
            }
        }
        for (key, sequence) in store.forgets.of_slice(slice) {
            let kind = Kind::Forget(key);
            pages.add(&Record { sequence, kind }.encoded());
        }
        let sequence = store.next_sequence();
        for recency in self.recency_of(slice, |_| true) {
            let kind = Kind::Recency(recency);
            pages.add(&Record { sequence, kind }.encoded());
        }
        pages
    }

    fn forgotten(&self, record: &Record) -> bool {
        let key = match &record.kind {
            Kind::Tag(key, _) => ForgetKey::Tag(key.clone()),
            Kind::Link(key, _) => ForgetKey::Link(key.clone()),
            Kind::Statistics(key, _) => ForgetKey::Statistics(key.clone()),
            _ => return false,
        };
        self.store.forgets.kills(&key, record.sequence)
    }

    /// A tag as it is on disk: its latest value may wait for its body, or never come.
    fn on_disk(&self, key: &TagKey) -> Option<Record> {
        let shadowed = self.small.shadowed(key);
        if shadowed.is_some() || self.small.waits(key) {
            return shadowed;
        }
        let (tag, sequence) = self.store.index.tags.written(key)?;
        let kind = Kind::Tag(key.clone(), tag);
        Some(Record { sequence, kind })
    }

    /// Forget records that have nothing left to kill on any volume.
    async fn let_go(&self) {
        for (number, volume) in (0..).zip(&self.store.volumes) {
            if volume.online() {
                // What a failing disk still has, its forget records outlive.
                let _ = volume.forget_left(self.disk(number)).await;
            }
        }
        let Floors { bodies, small } = self.store.floors();
        for slice in (0..SLICES).filter(|slice| self.owns(*slice)) {
            self.store.forgets.let_go(slice, bodies, small);
        }
    }
}
