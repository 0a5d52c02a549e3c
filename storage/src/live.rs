//! Which of the records that a recovery found live.
//!
//! Of each body that is not forgotten the record with the highest sequence, of copies of one
//! record the one in the later segment; of everything else all, for the index to choose.

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::digest::SLICES;
use crate::disk::Disk;
use crate::key::ForgetKey;
use crate::record::{BodyEntry, Kind, Record};
use crate::recover::Found;
use crate::store::{Recovered, Store};

pub(crate) struct Live {
    /// Whether each record of each segment lives.
    pub(crate) segments: Vec<Vec<bool>>,
    /// The live bodies of each slice.
    pub(crate) bodies: Vec<Vec<FoundBody>>,
}

/// Where the record of a body is. The hash stands here too: what compares bodies does not look
/// for their records in memory.
#[derive(Clone, Copy)]
pub(crate) struct FoundBody {
    hash: u64,
    /// Its place among those found.
    pub(crate) segment: u32,
    /// Its place in there.
    pub(crate) record: u32,
}

impl Live {
    pub(crate) fn of<D: Disk>(
        store: &Store<D>,
        found: &[Found<D>],
        recovered: &mut Recovered,
    ) -> Live {
        let lives = |found: &Found<D>| {
            let records = found.scanned.records.iter();
            records.map(lives_by_itself).collect()
        };
        let mut segments: Vec<Vec<bool>> = found.iter().map(lives).collect();
        let mut bodies = by_slice(store, found, recovered);
        let mut newest = HashTable::new();
        for bodies in &mut bodies {
            newest_of(bodies, found, &mut newest, recovered);
            for body in newest.drain() {
                segments[body.segment as usize][body.record as usize] = true;
            }
            bodies.retain(|body| segments[body.segment as usize][body.record as usize]);
        }
        Live { segments, bodies }
    }
}

/// All bodies that are not forgotten.
fn by_slice<D: Disk>(
    store: &Store<D>,
    found: &[Found<D>],
    recovered: &mut Recovered,
) -> Vec<Vec<FoundBody>> {
    let any_forgets = !store.forgets.is_empty();
    let mut slices = vec![Vec::new(); SLICES];
    for (segment, found) in (0..).zip(found) {
        for (record, this) in (0..).zip(&found.scanned.records) {
            let Some(BodyEntry { digest, .. }) = body_entry(this) else {
                continue;
            };
            if any_forgets
                && store
                    .forgets
                    .kills(&ForgetKey::Body(*digest), this.sequence)
            {
                recovered.forgotten += 1;
                continue;
            }
            slices[digest.slice()].push(FoundBody {
                hash: store.index.body_hash(digest),
                segment,
                record,
            });
        }
    }
    slices
}

/// Of each digest in a slice, the record that counts. `newest` is empty, and reused.
fn newest_of<D: Disk>(
    bodies: &[FoundBody],
    found: &[Found<D>],
    newest: &mut HashTable<FoundBody>,
    recovered: &mut Recovered,
) {
    let segment = |body: &FoundBody| &found[body.segment as usize].scanned;
    let record = |body: &FoundBody| &segment(body).records[body.record as usize];
    let rank = |body: &FoundBody| (record(body).sequence, segment(body).segment);
    let digest = |body: &FoundBody| body_entry(record(body)).map(|entry| entry.digest);
    newest.reserve(bodies.len(), |body| body.hash);
    for body in bodies {
        let same = |other: &FoundBody| other.hash == body.hash && digest(other) == digest(body);
        match newest.entry(body.hash, same, |body| body.hash) {
            Entry::Occupied(mut other) => {
                recovered.superseded += 1;
                if rank(body) > rank(other.get()) {
                    *other.get_mut() = *body;
                }
            }
            Entry::Vacant(empty) => {
                empty.insert(*body);
            }
        }
    }
}

pub(crate) fn body_entry(record: &Record) -> Option<&BodyEntry> {
    match &record.kind {
        Kind::Body(entry) => Some(entry),
        _ => None,
    }
}

/// Bodies live if no other record of theirs is newer.
fn lives_by_itself(record: &Record) -> bool {
    !matches!(record.kind, Kind::Body(_) | Kind::Area { .. })
}
