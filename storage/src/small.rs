//! Small records: tags, links, statistics and forget records, in segments of their own class.
//!
//! Queued by key, so that only the last value of a key is written; a tag waits until the body it
//! points to is durable. A group's records are durable when its `commit_small` returns: they are
//! self-contained, so one sync is enough. If it fails, the segment is left to the next recovery
//! and its last records are written again elsewhere. How they reach every volume: `mirror`.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use crate::Seconds;
use crate::codec::Reader;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::index::TouchLimit;
use crate::key::{
    ForgetKey, LinkKey, LinkRecord, RepositoryKey, ScopeKey, Statistics, TagKey, TagRecord,
};
use crate::mirror::Pages;
use crate::record::{Kind, Recency, Record, SMALL_RECORD_LEN_MAX};
use crate::segment::Segment;
use crate::wait::Gate;
use crate::watermark::FillFailure;
use crate::writer::{Shared, WriteError};

/// Records that may wait; far more than a second brings, so only a failing disk gets there.
const PENDING_MAX: usize = 65_536;
/// A tag or link of which only the time changed is written this often at most. A crash makes it
/// older by as much, which costs one revalidation.
const TIME_STEP: Seconds = 60;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum SmallKey {
    Tag(TagKey),
    Link(LinkKey),
    Statistics(RepositoryKey),
    Forget(ForgetKey),
    /// By its sequence: a later one does not replace it.
    Recency(u64),
}

struct Pending {
    sequence: u64,
    encoded: Vec<u8>,
    /// Not written before this body is durable.
    needs: Option<Digest>,
}

pub(crate) struct SmallLog<D: Disk> {
    /// By volume, the one that takes pages.
    pub(crate) segments: RefCell<BTreeMap<u8, Rc<Segment<D>>>>,
    pending: RefCell<BTreeMap<SmallKey, Pending>>,
    /// What is on disk of tags whose later value waits or was given up: a checkpoint must not
    /// lose it.
    shadowed: RefCell<BTreeMap<TagKey, Record>>,
    /// Tags that are being written.
    in_flight: RefCell<BTreeSet<TagKey>>,
    pub(crate) writing: Gate,
}

impl<D: Disk> Default for SmallLog<D> {
    fn default() -> SmallLog<D> {
        SmallLog {
            segments: RefCell::default(),
            pending: RefCell::default(),
            shadowed: RefCell::default(),
            in_flight: RefCell::default(),
            writing: Gate::default(),
        }
    }
}

impl<D: Disk> SmallLog<D> {
    /// Whether the value that the index has is still to be written.
    pub(crate) fn waits(&self, tag: &TagKey) -> bool {
        let key = SmallKey::Tag(tag.clone());
        self.pending.borrow().contains_key(&key)
    }

    /// What is on disk of a tag, if the index has something else.
    pub(crate) fn shadowed(&self, tag: &TagKey) -> Option<Record> {
        self.shadowed.borrow().get(tag).cloned()
    }

    /// Of tags that nobody knows any more nothing is kept.
    pub(crate) fn prune_shadowed(&self, known: impl Fn(&TagKey) -> bool) {
        self.shadowed.borrow_mut().retain(|tag, _| known(tag));
    }

    pub(crate) fn drop_shadowed(&self, scope: &ScopeKey, sequence: u64) {
        let stays = |tag: &TagKey, record: &mut Record| {
            record.sequence > sequence || !scope.holds(&tag.project, &tag.repository)
        };
        self.shadowed.borrow_mut().retain(stays);
    }

    fn written(&self, tag: &TagKey, pending: &Pending, superseded: bool) {
        let mut shadowed = self.shadowed.borrow_mut();
        let record = Record::decode(&mut Reader::new(&pending.encoded));
        match record.filter(|_| superseded) {
            Some(record) => shadowed.insert(tag.clone(), record),
            None => shadowed.remove(tag),
        };
    }
}

impl<D: Disk> Shared<D> {
    pub(crate) fn put_tag(&self, key: TagKey, tag: TagRecord) -> Result<(), WriteError> {
        if self.store.index.tags.touch(&key, &tag, self.touch_limit()) {
            return Ok(());
        }
        let sequence = self.store.next_sequence();
        let record = Record {
            sequence,
            kind: Kind::Tag(key.clone(), tag.clone()),
        };
        let needs = Some(tag.digest);
        self.shadow(&key);
        let age = self.store.clock.now();
        self.store.index.tags.put(key.clone(), tag, sequence, age);
        self.queue(SmallKey::Tag(key), &record, needs)
    }

    /// What recovery found may be on one volume only, never said to be durable: the first put
    /// after it is always written.
    fn touch_limit(&self) -> TouchLimit {
        TouchLimit {
            first: self.store.first_sequence(),
            step: TIME_STEP,
        }
    }

    /// The index is about to have a value that is not on disk.
    fn shadow(&self, key: &TagKey) {
        let small = &self.small;
        if small.waits(key) || small.in_flight.borrow().contains(key) {
            return;
        }
        if let Some((tag, sequence)) = self.store.index.tags.written(key) {
            let kind = Kind::Tag(key.clone(), tag);
            let record = Record { sequence, kind };
            small.shadowed.borrow_mut().insert(key.clone(), record);
        }
    }

    pub(crate) fn put_link(&self, key: LinkKey, link: LinkRecord) -> Result<(), WriteError> {
        if self
            .store
            .index
            .links
            .touch(&key, &link, self.touch_limit())
        {
            return Ok(());
        }
        let sequence = self.store.next_sequence();
        let record = Record {
            sequence,
            kind: Kind::Link(key.clone(), link.clone()),
        };
        let age = self.store.clock.now();
        self.store.index.links.put(key.clone(), link, sequence, age);
        self.queue(SmallKey::Link(key), &record, None)
    }

    pub(crate) fn put_statistics(
        &self,
        key: RepositoryKey,
        statistics: Statistics,
    ) -> Result<(), WriteError> {
        let sequence = self.store.next_sequence();
        let record = Record {
            sequence,
            kind: Kind::Statistics(key.clone(), statistics),
        };
        let age = self.store.clock.now();
        self.store
            .index
            .statistics
            .put(key.clone(), statistics, sequence, age);
        self.queue(SmallKey::Statistics(key), &record, None)
    }

    pub(crate) fn queue_recency(&self, recency: Recency) -> Result<(), WriteError> {
        let sequence = self.store.next_sequence();
        let kind = Kind::Recency(recency);
        let record = Record { sequence, kind };
        self.queue(SmallKey::Recency(sequence), &record, None)
    }

    pub(crate) async fn forget(self: &Rc<Self>, all: Vec<ForgetKey>) -> Result<(), WriteError> {
        let mut scopes = Vec::new();
        for what in all {
            let sequence = self.store.next_sequence();
            if let ForgetKey::Scope(scope) = &what {
                scopes.push((scope.clone(), sequence));
            }
            self.forget_one(what, sequence);
        }
        for (scope, sequence) in scopes {
            self.leave_scope(&scope, sequence).await;
        }
        self.commit_small().await
    }

    fn forget_one(&self, what: ForgetKey, sequence: u64) {
        // Before the index: what a returning volume brings is checked after it is in the index.
        self.store.forgets.note(&what, sequence);
        match &what {
            ForgetKey::Body(digest) => self.forget_body(digest),
            ForgetKey::Tag(key) => {
                self.store.index.tags.remove(key);
                self.small.shadowed.borrow_mut().remove(key);
                self.unqueue(&SmallKey::Tag(key.clone()));
            }
            ForgetKey::Link(key) => {
                self.store.index.links.remove(key);
                self.unqueue(&SmallKey::Link(key.clone()));
            }
            ForgetKey::Statistics(key) => {
                self.store.index.statistics.remove(key);
                self.unqueue(&SmallKey::Statistics(key.clone()));
            }
            // Slice by slice, by the caller.
            ForgetKey::Scope(_) => {}
        }
        self.queue_forget(what, sequence);
    }

    fn forget_body(&self, digest: &Digest) {
        for progress in self.running(|progress| progress.digest == *digest) {
            self.end_fill(&progress, FillFailure::Forgotten);
        }
        if let Some(removed) = self.store.index.remove_body(digest, |_| true) {
            self.withdraw(removed.sequence, &removed.lease.file);
        }
    }

    /// Drops one record of a body that turned out to be unreadable; a fill that replaces it goes
    /// on. Losing a record costs a miss (S4).
    pub(crate) async fn drop_body(self: &Rc<Self>, digest: &Digest, sequence: u64) {
        self.drop_record(digest, sequence);
        // If this cannot be written the body is out of the index all the same.
        let _ = self.commit_small().await;
    }

    /// The same, for good with the next `commit_small`.
    pub(crate) fn drop_record(&self, digest: &Digest, sequence: u64) {
        let removed = self
            .store
            .index
            .remove_body(digest, |body| body.sequence == sequence);
        let Some(removed) = removed else { return };
        self.withdraw(removed.sequence, &removed.lease.file);
        self.queue_forget(ForgetKey::Body(*digest), sequence);
    }

    /// Kills records of the key up to `sequence`, now and at every recovery.
    pub(crate) fn queue_forget(&self, what: ForgetKey, sequence: u64) {
        self.store.forgets.note(&what, sequence);
        let key = SmallKey::Forget(what.clone());
        if self
            .small
            .pending
            .borrow()
            .get(&key)
            .is_some_and(|other| other.sequence > sequence)
        {
            return;
        }
        let record = Record {
            sequence,
            kind: Kind::Forget(what),
        };
        self.insert(
            key,
            Pending {
                sequence,
                encoded: record.encoded(),
                needs: None,
            },
        );
    }

    fn queue(
        &self,
        key: SmallKey,
        record: &Record,
        needs: Option<Digest>,
    ) -> Result<(), WriteError> {
        let encoded = record.encoded();
        if encoded.len() > SMALL_RECORD_LEN_MAX {
            return Err(WriteError::TooLong);
        }
        let pending = self.small.pending.borrow();
        if pending.len() >= PENDING_MAX && !pending.contains_key(&key) {
            return Err(WriteError::Behind);
        }
        drop(pending);
        self.insert(
            key,
            Pending {
                sequence: record.sequence,
                encoded,
                needs,
            },
        );
        Ok(())
    }

    fn insert(&self, key: SmallKey, pending: Pending) {
        self.add_uncommitted(pending.encoded.len() as u64);
        let replaced = self.small.pending.borrow_mut().insert(key, pending);
        if let Some(replaced) = replaced {
            self.remove_uncommitted(replaced.encoded.len() as u64);
        }
    }

    fn unqueue(&self, key: &SmallKey) {
        let removed = self.small.pending.borrow_mut().remove(key);
        if let Some(removed) = removed {
            self.remove_uncommitted(removed.encoded.len() as u64);
        }
    }

    /// Makes all records durable that may be.
    pub(crate) async fn commit_small(self: &Rc<Self>) -> Result<(), WriteError> {
        let _turn = self.small.writing.turn().await;
        let ready = self.take_ready();
        if ready.is_empty() {
            return Ok(());
        }
        let tags = ready.iter().filter_map(|(key, _)| match key {
            SmallKey::Tag(key) => Some(key.clone()),
            _ => None,
        });
        self.small.in_flight.replace(tags.collect());
        let outcome = self.write_small(&ready).await;
        self.small.in_flight.take();
        for (key, pending) in ready {
            // A later value of the key, if there is one, counts for itself.
            let superseded = self.small.pending.borrow().contains_key(&key);
            let len = pending.encoded.len() as u64;
            if let (Ok(()), SmallKey::Tag(tag)) = (&outcome, &key) {
                self.small.written(tag, &pending, superseded);
            }
            // Nor must what was forgotten meanwhile be written once its forget record is let go.
            if outcome.is_err() && !superseded && !self.killed(&key, pending.sequence) {
                self.small.pending.borrow_mut().insert(key, pending);
            } else {
                self.remove_uncommitted(len);
            }
        }
        outcome
    }

    /// Whether a forget record that came later meant this record.
    fn killed(&self, key: &SmallKey, sequence: u64) -> bool {
        let forget = match key {
            SmallKey::Tag(key) => ForgetKey::Tag(key.clone()),
            SmallKey::Link(key) => ForgetKey::Link(key.clone()),
            SmallKey::Statistics(key) => ForgetKey::Statistics(key.clone()),
            SmallKey::Forget(_) | SmallKey::Recency(_) => return false,
        };
        self.store.forgets.kills(&forget, sequence)
    }

    /// The records that may be written now, oldest first. Tags whose body is gone are given up.
    fn take_ready(&self) -> Vec<(SmallKey, Pending)> {
        let mut ready = Vec::new();
        let mut waiting = BTreeMap::new();
        for (key, pending) in self.small.pending.take() {
            if self.left_scope(&key, pending.sequence) {
                self.remove_uncommitted(pending.encoded.len() as u64);
                continue;
            }
            match pending
                .needs
                .map(|digest| self.store.index.durable(&digest))
            {
                None | Some(Some(true)) => ready.push((key, pending)),
                Some(Some(false)) => {
                    waiting.insert(key, pending);
                }
                Some(None) => {
                    self.remove_uncommitted(pending.encoded.len() as u64);
                    if let SmallKey::Tag(key) = &key {
                        self.store.index.tags.not_written(key);
                    }
                }
            }
        }
        self.small.pending.replace(waiting);
        ready.sort_by_key(|(_, pending)| pending.sequence);
        ready
    }

    /// Whether its repository was forgotten meanwhile.
    fn left_scope(&self, key: &SmallKey, sequence: u64) -> bool {
        let (project, repository) = match key {
            SmallKey::Tag(key) => (&key.project, &key.repository),
            SmallKey::Link(key) => (&key.project, &key.repository),
            SmallKey::Statistics(key) => (&key.project, &key.repository),
            SmallKey::Forget(_) | SmallKey::Recency(_) => return false,
        };
        let forgets = &self.store.forgets;
        forgets.kills_in_scope(project, repository, sequence)
    }

    async fn write_small(self: &Rc<Self>, ready: &[(SmallKey, Pending)]) -> Result<(), WriteError> {
        let lowest = ready.iter().map(|(_, pending)| pending.sequence).min();
        let mut pages = Pages::new(lowest.unwrap_or(u64::MAX));
        for (_, pending) in ready {
            pages.add(&pending.encoded);
        }
        self.write_mirrored(pages).await
    }
}
