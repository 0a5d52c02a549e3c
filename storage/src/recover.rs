//! Recovery: what the segments on the disk say, and nothing else, becomes the index (S4).
//!
//! What the last process wrote is synced before it is believed, because a page cache is not a
//! disk. Sealed segments are read from their end; the others are walked page by page up to the
//! first that is not valid, sealed, and never appended to again. Running it again, or after a
//! crash within it, finds the same.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use crate::Seconds;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::geometry::Geometry;
use crate::index::{Flags, IndexedBody};
use crate::key::ForgetKey;
use crate::lease::{Lease, SegmentFile};
use crate::page::Uuid;
use crate::record::{BodyEntry, Kind, Record};
use crate::scan::{Candidate, Scan, Scanned, scan};
use crate::segment::{is_small, parse_file_name};
use crate::store::{GENERATION_SHIFT, OpenError, Options, Recovered, Store};
use crate::superblock::{self, Superblock, SuperblockFile};

pub(crate) async fn open<D: Disk>(
    disk: &D,
    options: &Options,
    now: Seconds,
) -> Result<(Arc<Store<D>>, Recovered), OpenError> {
    let geometry = Geometry::new(options)?;
    let lock = disk.lock().await.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked,
        _ => OpenError::Disk {
            doing: "taking the lock",
            source,
        },
    })?;
    let failed = |doing| move |source| OpenError::Disk { doing, source };
    let names = disk.list().await.map_err(failed("listing the store"))?;
    let (mut superblock, mut file) = read_superblock(disk, options, &names, now).await?;
    let settled = superblock.settled;
    superblock.generation += 1;
    superblock.capacity = options.capacity;
    superblock.segment_len = geometry.segment_len;
    let writing = failed("writing the superblock");
    file.write(disk, &superblock).await.map_err(writing)?;
    // Names that the last process made or removed.
    disk.sync_dir()
        .await
        .map_err(failed("syncing the directory"))?;

    let (uuid, generation) = (superblock.uuid, superblock.generation);
    let store = Arc::new(Store::new(uuid, generation, geometry, options, now, lock));
    let mut recovered = Recovered {
        uuid,
        generation,
        ..Recovered::default()
    };
    let found = read_segments(disk, &uuid, settled, names, &mut recovered).await?;
    let unlinked = merge(&store, found, &mut recovered);
    for name in unlinked {
        recovered.unlinked += 1;
        // A name that stays is found again next time.
        let _ = disk.unlink(&name).await;
    }
    if recovered.unreadable.is_empty() {
        superblock.settled = generation;
        let writing = failed("writing the superblock");
        file.write(disk, &superblock).await.map_err(writing)?;
    }
    Ok((store, recovered))
}

/// The superblock as the last process left it, or that of a new store.
async fn read_superblock<D: Disk>(
    disk: &D,
    options: &Options,
    names: &[String],
    now: Seconds,
) -> Result<(Superblock, SuperblockFile<D>), OpenError> {
    if names.iter().any(|name| name == superblock::NAME) {
        return SuperblockFile::read(disk).await;
    }
    if names.iter().any(|name| parse_file_name(name).is_some()) {
        return Err(OpenError::SuperblockMissing);
    }
    let first = Superblock {
        uuid: options.uuid,
        generation: 0,
        settled: 0,
        created: now,
        capacity: 0,
        segment_len: 0,
    };
    let made = SuperblockFile::create(disk, &first).await;
    let file = made.map_err(|source| OpenError::Disk {
        doing: "creating the superblock",
        source,
    })?;
    Ok((first, file))
}

/// A segment of this store and what it says.
struct Found<D: Disk> {
    name: String,
    file: D::File,
    scanned: Scanned,
}

async fn read_segments<D: Disk>(
    disk: &D,
    uuid: &Uuid,
    settled: u64,
    names: Vec<String>,
    recovered: &mut Recovered,
) -> Result<Vec<Found<D>>, OpenError> {
    let mut found = Vec::new();
    let mut segments: Vec<(u64, String)> = names
        .into_iter()
        .filter_map(|name| Some((parse_file_name(&name)?, name)))
        .collect();
    segments.sort();
    for (segment, name) in segments {
        let scanned = match disk.open(&name).await {
            Ok((file, len)) => {
                let candidate = Candidate {
                    segment,
                    small: is_small(&name),
                    len,
                    uuid,
                    recent: segment >> GENERATION_SHIFT >= settled,
                };
                let scanned = scan(disk, &file, candidate).await;
                scanned.map(|scan| (file, scan))
            }
            Err(error) => Err(error),
        };
        match scanned {
            Ok((file, Scan::Ours(scanned))) => {
                recovered.sealed += u64::from(scanned.sealed_now);
                recovered.invalid += scanned.invalid;
                recovered
                    .damaged
                    .extend(scanned.damaged.then(|| name.clone()));
                found.push(Found {
                    name,
                    file,
                    scanned,
                });
            }
            Ok((_, Scan::Foreign)) => recovered.foreign.push(name),
            Ok((_, Scan::Empty)) => {
                recovered.unlinked += 1;
                let _ = disk.unlink(&name).await;
            }
            // A forget record may be among them: what it killed must not come back.
            Err(source) if is_small(&name) => {
                return Err(OpenError::SmallRecordsUnreadable { name, source });
            }
            Err(_) => recovered.unreadable.push(name),
        }
    }
    Ok(found)
}

/// Of the forget records of a key, the highest sequence.
type Forgets = HashMap<ForgetKey, u64>;

/// Fills the index and the registry. Returns the names of segments without a live record.
fn merge<D: Disk>(
    store: &Store<D>,
    found: Vec<Found<D>>,
    recovered: &mut Recovered,
) -> Vec<String> {
    let mut forgets = Forgets::new();
    for record in found.iter().flat_map(|found| &found.scanned.records) {
        if let Kind::Forget(key) = &record.kind {
            let highest = forgets.entry(key.clone()).or_insert(record.sequence);
            *highest = (*highest).max(record.sequence);
        }
    }
    let newest = newest_bodies(&found, &forgets, recovered);
    let mut unlinked = Vec::new();
    for found in found {
        let Scanned {
            segment,
            class,
            len,
            records,
            ..
        } = found.scanned;
        let live = |record: &Record| match &record.kind {
            Kind::Body(entry) => newest.get(&entry.digest) == Some(&record.sequence),
            Kind::Area { .. } => false,
            _ => true,
        };
        if !records.iter().any(live) {
            unlinked.push(found.name);
            continue;
        }
        store.budget.found(len);
        let budget = Arc::clone(&store.budget);
        let file = Arc::new(SegmentFile::new(found.file, len, false, budget));
        store.register(segment, class, Arc::clone(&file));
        recovered.segments += 1;
        for record in records.into_iter().filter(live) {
            index(store, record, segment, &file, &forgets, recovered);
        }
    }
    (_, recovered.tags, recovered.links) = store.index.counts();
    unlinked
}

/// Of each digest that is not forgotten, the highest sequence.
fn newest_bodies<D: Disk>(
    found: &[Found<D>],
    forgets: &Forgets,
    recovered: &mut Recovered,
) -> HashMap<Digest, u64> {
    let mut newest = HashMap::new();
    for record in found.iter().flat_map(|found| &found.scanned.records) {
        let Kind::Body(BodyEntry { digest, .. }) = &record.kind else {
            continue;
        };
        if forgotten(forgets, &ForgetKey::Body(*digest), record.sequence) {
            recovered.forgotten += 1;
            continue;
        }
        let newer = |other: &mut u64| {
            recovered.superseded += 1;
            *other = (*other).max(record.sequence);
        };
        newest
            .entry(*digest)
            .and_modify(newer)
            .or_insert(record.sequence);
    }
    newest
}

fn forgotten(forgets: &Forgets, key: &ForgetKey, sequence: u64) -> bool {
    forgets.get(key).is_some_and(|forget| sequence <= *forget)
}

fn index<D: Disk>(
    store: &Store<D>,
    record: Record,
    segment: u64,
    file: &Arc<SegmentFile<D>>,
    forgets: &Forgets,
    recovered: &mut Recovered,
) {
    let sequence = record.sequence;
    match record.kind {
        Kind::Body(entry) => {
            recovered.bodies += 1;
            recovered.body_bytes += entry.len;
            store.index.insert_body(IndexedBody {
                digest: entry.digest,
                sequence,
                segment,
                lease: Lease::new(Arc::clone(file), entry.offset, entry.len),
                media_type: store.index.media_types.intern(entry.media_type.as_ref()),
                bytes: None,
                recency: AtomicU32::new(store.clock.now()),
                flags: Flags::new(Flags::DURABLE),
            });
        }
        Kind::Tag(key, tag) => {
            if forgotten(forgets, &ForgetKey::Tag(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                store.index.put_tag(key, tag, sequence);
            }
        }
        Kind::Link(key, link) => {
            if forgotten(forgets, &ForgetKey::Link(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                store.index.put_link(key, link, sequence);
            }
        }
        Kind::Statistics(key, statistics) => {
            if forgotten(forgets, &ForgetKey::Statistics(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                store.index.put_statistics(key, statistics, sequence);
            }
        }
        // Known above, or to a later program.
        Kind::Forget(_) | Kind::Area { .. } | Kind::Unknown { .. } => {}
    }
}
