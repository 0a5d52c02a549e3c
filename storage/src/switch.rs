//! The owner's side of compaction: says which bodies are live, takes the copies for those that
//! still are, and drops what a check found to be broken.
//!
//! Everything here compares and sets: a body that was purged, evicted or fetched again since is
//! not where it was, and what was found out about its old bytes does not matter any more.

use std::rc::Rc;
use std::sync::Arc;

use crate::digest::{Digest, SLICES};
use crate::disk::Disk;
use crate::exchange::{Answer, Finding, Listed, Move, Place, Question, Report, ToOwner, count};
use crate::index::{Flags, IndexedBody};
use crate::lease::{Lease, SegmentFile};
use crate::writer::Shared;

/// Bodies looked up in one go: a tenth of a millisecond.
const BATCH: usize = 1024;

impl Place {
    /// Whether this is where the index has the body.
    fn is<D: Disk>(&self, body: &IndexedBody<D>) -> bool {
        body.sequence == self.sequence && body.lease.file.id == self.segment
    }
}

impl<D: Disk> Shared<D> {
    /// Does what the compactor and the planner asked of this owner.
    pub(crate) async fn serve_compactor(self: &Rc<Self>) {
        let exchange = &self.store.exchange;
        let Some(inbox) = exchange.owners.get(self.shard()) else {
            return;
        };
        while let Some(message) = inbox.pop() {
            match message {
                // Whoever asked may be gone.
                ToOwner::Ask(question) if !exchange.asks_for(question.job) => {}
                ToOwner::Ask(question) => {
                    let answer = self.answer(question).await;
                    let answered = exchange.answers.push(answer);
                    answered.expect("room for one answer of each owner");
                }
                ToOwner::Switch { job, target, moves } => {
                    self.switch(target, &moves).await;
                    let told = exchange.reports.push(Report::Switched { job });
                    told.expect("room for each owner's part in each job");
                }
                ToOwner::Found(findings) => self.judge(findings).await,
            }
        }
    }

    async fn answer(&self, question: Question) -> Answer {
        let mut live = Vec::new();
        for batch in question.places.chunks(BATCH) {
            live.extend(batch.iter().filter_map(|(number, place)| {
                let recency = |body: &IndexedBody<D>| place.is(body).then(|| body.recency());
                let recency = self.store.index.with_body(&place.digest, recency)?;
                Some((*number, recency?))
            }));
            self.tasks().give_way().await;
        }
        let mut listed = Vec::new();
        if !question.segments.is_empty() {
            for slice in self.slices() {
                self.list(slice, &question.segments, &mut listed);
                self.tasks().give_way().await;
            }
        }
        let job = question.job;
        Answer { job, live, listed }
    }

    /// Those of the index that this writer owns.
    pub(crate) fn slices(&self) -> impl Iterator<Item = usize> {
        let (shard, shards) = (self.shard(), self.store.exchange.owners.len());
        (0..SLICES).filter(move |slice| crate::owner(*slice, shards) == shard)
    }

    fn list(&self, slice: usize, segments: &[u64], listed: &mut Vec<Listed>) {
        let index = &self.store.index;
        index.each_body(slice, |body| {
            let segment = body.lease.file.id;
            if segments.contains(&segment) {
                listed.push(Listed {
                    place: Place {
                        digest: body.digest,
                        sequence: body.sequence,
                        segment,
                    },
                    offset: body.lease.offset(),
                    len: body.lease.len(),
                    media_type: index.media_types.get(body.media_type),
                    recency: body.recency(),
                });
            }
        });
    }

    async fn switch(&self, target: u64, moves: &[Move]) {
        // Without it the planner gave the job up, and the old bodies stay.
        let Some(file) = self.store.file(target) else {
            return;
        };
        for batch in moves.chunks(BATCH) {
            for moved in batch {
                self.switch_body(moved, &file);
            }
            self.tasks().give_way().await;
        }
    }

    fn switch_body(&self, moved: &Move, file: &Arc<SegmentFile<D>>) {
        self.store.index.change_body(&moved.place.digest, |body| {
            if !moved.place.is(body) {
                return None;
            }
            let len = body.lease.len();
            let lease = Lease::new(Arc::clone(file), moved.offset, len);
            file.gained(len);
            body.lease.file.lost(len);
            // The copy was checked on its way.
            body.flags.clear(Flags::UNVERIFIED);
            // Dropped after the lock: it may be the file's last.
            Some(std::mem::replace(&mut body.lease, lease))
        });
    }

    async fn judge(self: &Rc<Self>, findings: Vec<Finding>) {
        let index = &self.store.index;
        for batch in findings.chunks(BATCH) {
            let mut dropped = false;
            for Finding { place, sound } in batch {
                let found = |body: &IndexedBody<D>| place.is(body);
                if !index.with_body(&place.digest, found).unwrap_or(false) {
                    continue;
                }
                if *sound {
                    index.set_verified(&place.digest, place.sequence);
                } else {
                    self.drop_broken(&place.digest, place.sequence);
                    dropped = true;
                }
            }
            if dropped {
                // What cannot be written is out of the index all the same.
                let _ = self.commit_small().await;
            }
            self.tasks().give_way().await;
        }
    }

    /// Forgets a body whose bytes are not what was written, for good with the next `commit_small`.
    pub(crate) fn drop_broken(&self, digest: &Digest, sequence: u64) {
        count(&self.store.exchange.counters.mismatches, 1);
        self.drop_record(digest, sequence);
    }
}
