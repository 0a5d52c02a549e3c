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
use crate::lease::{Lease, Place, SegmentFile};
use crate::page::Uuid;
use crate::recency::Remembered;
use crate::record::{BodyEntry, Kind, Record};
use crate::scan::{Candidate, Scan, Scanned, scan};
use crate::segment::{is_small, parse_file_name};
use crate::store::{GENERATION_SHIFT, OpenError, OpenFailure, Options, Recovered, Store};
use crate::superblock::{self, Superblock, SuperblockFile};
use crate::volume::{VOLUMES_MAX, Volume, VolumeSpec};

pub(crate) async fn open<D: Disk>(
    specs: &[VolumeSpec<D>],
    options: &Options,
    now: Seconds,
) -> Result<(Arc<Store<D>>, Recovered), OpenFailure> {
    let (count, max) = (specs.len(), VOLUMES_MAX);
    if count == 0 || count > max {
        return Err(OpenError::VolumeCount { count, max }.at(0));
    }
    let capacities: Vec<u64> = specs.iter().map(|spec| spec.capacity).collect();
    let geometry = Geometry::new(&capacities, options)?;
    let mut entered = Vec::new();
    for (number, spec) in specs.iter().enumerate() {
        let volume = enter(&spec.disk, options, now).await;
        entered.push(volume.map_err(|error| error.at(number))?);
    }
    let newest = entered.iter().map(|entered| entered.superblock.generation);
    let generation = newest.max().unwrap_or(0) + 1;
    let uuid = entered[0].superblock.uuid;
    let settled: Vec<u64> = entered.iter().map(|e| e.superblock.settled).collect();
    for (number, (entered, spec)) in entered.iter_mut().zip(specs).enumerate() {
        if entered.superblock.uuid != uuid {
            return Err(OpenError::AnotherStore.at(number));
        }
        entered.superblock.generation = generation;
        entered.superblock.capacity = spec.capacity;
        entered.superblock.segment_len = geometry.segment_len;
        let begun = entered.begin(&spec.disk).await;
        begun.map_err(|error| error.at(number))?;
    }
    let mut recovered = Recovered {
        uuid,
        generation,
        ..Recovered::default()
    };
    let mut found = Vec::new();
    for (number, (entered, spec)) in entered.iter_mut().zip(specs).enumerate() {
        let source = Source {
            disk: &spec.disk,
            volume: number as u8,
            uuid: &uuid,
            settled: settled[number],
        };
        let unreadable = recovered.unreadable.len();
        let names = std::mem::take(&mut entered.names);
        let segments = read_segments(&source, names, &mut recovered).await;
        found.extend(segments.map_err(|error| error.at(number))?);
        entered.whole = recovered.unreadable.len() == unreadable;
    }
    let (volumes, mut files): (Vec<_>, Vec<_>) = entered
        .into_iter()
        .zip(specs)
        .map(|(entered, spec)| {
            (
                Volume::new(spec.capacity, entered.lock),
                (entered.superblock, entered.file, entered.whole),
            )
        })
        .unzip();
    let store = Arc::new(Store::new(
        uuid, generation, geometry, options, now, volumes,
    ));
    for (volume, name) in merge(&store, found, &mut recovered) {
        recovered.unlinked += 1;
        // A name that stays is found again next time.
        let _ = specs[usize::from(volume)].disk.unlink(&name).await;
    }
    for (number, ((superblock, file, whole), spec)) in files.iter_mut().zip(specs).enumerate() {
        if *whole {
            superblock.settled = generation;
            let written = file.write(&spec.disk, superblock).await;
            written.map_err(|source| failed("writing the superblock", source).at(number))?;
        }
    }
    Ok((store, recovered))
}

fn failed(doing: &'static str, source: io::Error) -> OpenError {
    OpenError::Disk { doing, source }
}

/// A volume whose lock this process has.
struct Entered<D: Disk> {
    lock: D::File,
    names: Vec<String>,
    superblock: Superblock,
    file: SuperblockFile<D>,
    /// Every segment could be read.
    whole: bool,
}

async fn enter<D: Disk>(
    disk: &D,
    options: &Options,
    now: Seconds,
) -> Result<Entered<D>, OpenError> {
    let lock = disk.lock().await.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => OpenError::Locked,
        _ => failed("taking the lock", source),
    })?;
    let listed = disk.list().await;
    let names = listed.map_err(|source| failed("listing the store", source))?;
    let (superblock, file) = read_superblock(disk, options, &names, now).await?;
    Ok(Entered {
        lock,
        names,
        superblock,
        file,
        whole: true,
    })
}

impl<D: Disk> Entered<D> {
    /// Makes the new generation durable, and the names that the last process made or removed.
    async fn begin(&mut self, disk: &D) -> Result<(), OpenError> {
        let written = self.file.write(disk, &self.superblock).await;
        written.map_err(|source| failed("writing the superblock", source))?;
        let synced = disk.sync_dir().await;
        synced.map_err(|source| failed("syncing the directory", source))
    }
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

/// Where segments are read from.
struct Source<'s, D: Disk> {
    disk: &'s D,
    volume: u8,
    uuid: &'s Uuid,
    settled: u64,
}

/// A segment of this store and what it says.
struct Found<D: Disk> {
    volume: u8,
    name: String,
    file: D::File,
    scanned: Scanned,
}

async fn read_segments<D: Disk>(
    source: &Source<'_, D>,
    names: Vec<String>,
    recovered: &mut Recovered,
) -> Result<Vec<Found<D>>, OpenError> {
    let Source { disk, volume, .. } = *source;
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
                    uuid: source.uuid,
                    recent: segment >> GENERATION_SHIFT >= source.settled,
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
                    volume,
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

/// Fills the index and the registries. Returns the segments without a live record.
fn merge<D: Disk>(
    store: &Store<D>,
    found: Vec<Found<D>>,
    recovered: &mut Recovered,
) -> Vec<(u8, String)> {
    let mut forgets = Forgets::new();
    let mut remembered = Remembered::default();
    for record in found.iter().flat_map(|found| &found.scanned.records) {
        match &record.kind {
            Kind::Forget(key) => {
                let highest = forgets.entry(key.clone()).or_insert(record.sequence);
                *highest = (*highest).max(record.sequence);
            }
            Kind::Recency(recency) => remembered.learn(recency),
            _ => {}
        }
    }
    store.clock.resume(remembered.clock());
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
            unlinked.push((found.volume, found.name));
            continue;
        }
        let volume = store.volume(found.volume);
        volume.budget.found(len);
        let place = Place {
            volume: found.volume,
            id: segment,
            class,
            floor: lowest(&records),
        };
        let budget = Arc::clone(&volume.budget);
        let file = Arc::new(SegmentFile::new(found.file, place, len, budget));
        volume.register(Arc::clone(&file));
        recovered.segments += 1;
        for record in records.into_iter().filter(live) {
            index(store, record, &file, (&forgets, &remembered), recovered);
        }
        file.seal();
    }
    (_, recovered.tags, recovered.links) = store.index.counts();
    unlinked
}

/// The lowest sequence of a record that a forget record can kill.
fn lowest(records: &[Record]) -> u64 {
    let kills = |record: &&Record| !matches!(record.kind, Kind::Forget(_) | Kind::Area { .. });
    let sequences = records.iter().filter(kills).map(|record| record.sequence);
    sequences.min().unwrap_or(u64::MAX)
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
    file: &Arc<SegmentFile<D>>,
    (forgets, remembered): (&Forgets, &Remembered),
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
                lease: Lease::new(Arc::clone(file), entry.offset, entry.len),
                media_type: store.index.media_types.intern(entry.media_type.as_ref()),
                bytes: None,
                recency: AtomicU32::new(remembered.of(&entry.digest)),
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
        Kind::Forget(_) | Kind::Area { .. } | Kind::Recency(_) | Kind::Unknown { .. } => {}
    }
}
