//! Walks over the index, one slice at a time and under its lock.

use super::{Index, IndexedBody};
use crate::clock::Age;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::key::ScopeKey;
use crate::record::{Kind, Record};

/// A body that a walk has seen: it is the same one as long as nobody asked for it since.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) digest: Digest,
    pub(crate) sequence: u64,
    pub(crate) recency: Age,
}

impl Seen {
    pub(crate) fn of<D: Disk>(body: &IndexedBody<D>) -> Seen {
        Seen {
            digest: body.digest,
            sequence: body.sequence,
            recency: body.recency(),
        }
    }

    pub(crate) fn is_still<D: Disk>(&self, body: &IndexedBody<D>) -> bool {
        self.sequence == body.sequence && self.recency == body.recency()
    }
}

impl<D: Disk> Index<D> {
    /// Tags, links and statistics together.
    pub(crate) fn records(&self) -> u64 {
        self.tags.count() + self.links.count() + self.statistics.count()
    }

    /// Shows when each tag, link and statistics of a slice was last used, and a number that tells
    /// it apart. Those that `goes` says yes to are removed.
    pub(crate) fn sift_records(&self, slice: usize, mut goes: impl FnMut(Age, u64) -> bool) -> u64 {
        let tags = self.tags.sift(slice, |tag, hash| goes(tag.recency(), hash));
        let links = self
            .links
            .sift(slice, |link, hash| goes(link.recency(), hash));
        let statistics = self
            .statistics
            .sift(slice, |found, hash| goes(found.recency(), hash));
        tags + links + statistics
    }

    /// Removes the tags, links and statistics of the scope up to `sequence`.
    pub(crate) fn remove_scope(&self, slice: usize, scope: &ScopeKey, sequence: u64) {
        self.tags.remove_scope(slice, scope, sequence);
        self.links.remove_scope(slice, scope, sequence);
        self.statistics.remove_scope(slice, scope, sequence);
    }

    /// How many tags, links and statistics a slice has.
    pub(crate) fn small_count(&self, slice: usize) -> u64 {
        self.tags.len(slice) + self.links.len(slice) + self.statistics.len(slice)
    }

    /// The tags, links and statistics of a slice as records, oldest first. Some may not be
    /// on disk.
    pub(crate) fn small_records(&self, slice: usize) -> Vec<Record> {
        let mut records = Vec::new();
        let mut add = |sequence, kind| records.push(Record { sequence, kind });
        self.tags.each(slice, |tag| {
            add(tag.sequence, Kind::Tag(tag.key.clone(), tag.value.clone()));
        });
        self.links.each(slice, |link| {
            add(
                link.sequence,
                Kind::Link(link.key.clone(), link.value.clone()),
            );
        });
        self.statistics.each(slice, |found| {
            add(
                found.sequence,
                Kind::Statistics(found.key.clone(), found.value),
            );
        });
        records.sort_by_key(|record| record.sequence);
        records
    }
}
