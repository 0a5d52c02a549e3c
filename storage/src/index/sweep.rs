//! Walks over the index, one slice at a time and under its lock.

use std::sync::atomic::Ordering;

use hashbrown::HashTable;

use super::small::Valued;
use super::{Index, IndexedBody, LINKS, STATISTICS, Stripes, TAGS};
use crate::clock::Age;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::key::{LinkKeyRef, RepositoryKeyRef, ScopeKey, TagKeyRef};

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
        let count = |kind: usize| self.counts[kind].load(Ordering::Relaxed);
        count(TAGS) + count(LINKS) + count(STATISTICS)
    }

    /// Shows when each tag, link and statistics of a slice was last used, and a number that tells
    /// it apart. Those that `goes` says yes to are removed.
    pub(crate) fn sift_records(&self, slice: usize, mut goes: impl FnMut(Age, u64) -> bool) -> u64 {
        let seed = self.seed;
        let tags = sift(&self.tags, slice, |tag| {
            goes(tag.recency(), TagKeyRef::from(&tag.key).hash(seed))
        });
        let links = sift(&self.links, slice, |link| {
            goes(link.recency(), LinkKeyRef::from(&link.key).hash(seed))
        });
        let statistics = sift(&self.statistics, slice, |found| {
            goes(
                found.recency(),
                RepositoryKeyRef::from(&found.key).hash(seed),
            )
        });
        for (kind, gone) in [(TAGS, tags), (LINKS, links), (STATISTICS, statistics)] {
            self.counts[kind].fetch_sub(gone, Ordering::Relaxed);
        }
        tags + links + statistics
    }

    /// Removes the tags, links and statistics of the scope up to `sequence`.
    pub(crate) fn remove_scope(&self, slice: usize, scope: &ScopeKey, sequence: u64) {
        let tags = sift(&self.tags, slice, |tag| {
            tag.sequence <= sequence && scope.holds(&tag.key.project, &tag.key.repository)
        });
        let links = sift(&self.links, slice, |link| {
            link.sequence <= sequence && scope.holds(&link.key.project, &link.key.repository)
        });
        let statistics = sift(&self.statistics, slice, |found| {
            found.sequence <= sequence && scope.holds(&found.key.project, &found.key.repository)
        });
        for (kind, gone) in [(TAGS, tags), (LINKS, links), (STATISTICS, statistics)] {
            self.counts[kind].fetch_sub(gone, Ordering::Relaxed);
        }
    }
}

/// Readers wait only if something goes.
fn sift<K, V>(
    stripes: &Stripes<Valued<K, V>>,
    slice: usize,
    mut goes: impl FnMut(&Valued<K, V>) -> bool,
) -> u64 {
    let table = stripes.read(slice);
    let mut going: Vec<u64> = table
        .iter()
        .filter(|valued| goes(valued))
        .map(|valued| valued.sequence)
        .collect();
    drop(table);
    if going.is_empty() {
        return 0;
    }
    going.sort_unstable();
    let table: &mut HashTable<_> = &mut stripes.write(slice);
    let before = table.len();
    // What was put again since has another sequence.
    table.retain(|valued| going.binary_search(&valued.sequence).is_err());
    (before - table.len()) as u64
}
