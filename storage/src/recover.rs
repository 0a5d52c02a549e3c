//! Recovery: what the segments on the disk say, and nothing else, becomes the index (S4).
//!
//! What the last process wrote is synced before it is believed, because a page cache is not a
//! disk. Sealed segments are read from their end; the others are walked page by page up to the
//! first that is not valid, sealed, and never appended to again. Running it again, or after a
//! crash within it, finds the same.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicU32;

use hashbrown::HashTable;
use hashbrown::hash_table::Entry;

use crate::digest::{Digest, SLICES};
use crate::disk::Disk;
use crate::index::{Flags, IndexedBody};
use crate::key::ForgetKey;
use crate::lease::{Lease, Place, SegmentFile};
use crate::page::{Class, Uuid};
use crate::recency::Remembered;
use crate::record::{Kind, Record};
use crate::scan::{Candidate, Scan, Scanned, scan};
use crate::segment::{is_small, parse_file_name};
use crate::store::{GENERATION_SHIFT, Recovered, Store};
use crate::wait::all;

/// Segments of one volume that are read at once: what keeps a drive busy.
const IN_FLIGHT_MAX: usize = 32;

/// Where segments are read from.
pub(crate) struct Source<D: Disk> {
    pub(crate) disk: D,
    pub(crate) volume: u8,
    pub(crate) names: Vec<String>,
    /// Generations before this one are known to be durable.
    pub(crate) settled: u64,
}

/// A segment of this store and what it says.
pub(crate) struct Found<D: Disk> {
    pub(crate) volume: u8,
    pub(crate) name: String,
    pub(crate) file: D::File,
    pub(crate) scanned: Scanned,
}

/// What the segments of one volume say.
pub(crate) struct Gathered<D: Disk> {
    pub(crate) volume: u8,
    pub(crate) found: Vec<Found<D>>,
    /// Segments of small records that can't be read: there may be purges in them.
    pub(crate) small_unreadable: Option<(String, io::Error)>,
    foreign: Vec<String>,
    unreadable: Vec<String>,
    emptied: u64,
}

impl<D: Disk> Gathered<D> {
    fn new(volume: u8) -> Gathered<D> {
        Gathered {
            volume,
            found: Vec::new(),
            small_unreadable: None,
            foreign: Vec::new(),
            unreadable: Vec::new(),
            emptied: 0,
        }
    }

    fn add(&mut self, name: String, scanned: io::Result<(D::File, Scan)>) {
        let later = |record: &Record| record.kind.is_later_forget();
        match scanned {
            Ok((_, Scan::Ours(scanned))) if scanned.records.iter().any(later) => {
                let why = "it has a forget record of a later program";
                let error = io::Error::new(io::ErrorKind::Unsupported, why);
                self.small_unreadable.get_or_insert((name, error));
            }
            Ok((file, Scan::Ours(scanned))) => self.found.push(Found {
                volume: self.volume,
                name,
                file,
                scanned,
            }),
            Ok((_, Scan::Foreign)) => self.foreign.push(name),
            Ok((_, Scan::Empty)) => self.emptied += 1,
            Err(error) if is_small(&name) => {
                self.small_unreadable.get_or_insert((name, error));
            }
            Err(_) => self.unreadable.push(name),
        }
    }

    pub(crate) fn report(self, recovered: &mut Recovered) -> Vec<Found<D>> {
        for found in &self.found {
            recovered.sealed += u64::from(found.scanned.sealed_now);
            recovered.invalid += found.scanned.invalid;
            let damaged = found.scanned.damaged.then(|| found.name.clone());
            recovered.damaged.extend(damaged);
        }
        recovered.unlinked += self.emptied;
        recovered.foreign.extend(self.foreign);
        recovered.unreadable.extend(self.unreadable);
        self.found
    }
}

/// A segment to read: which source, its id, its name.
type Task = (usize, u64, String);

/// Reads the segments of all sources, those of each side by side. In order, whatever the disks do.
pub(crate) async fn gather<D: Disk>(
    tasks: &D,
    uuid: Uuid,
    mut sources: Vec<Source<D>>,
) -> Vec<Gathered<D>> {
    let mut queues = Vec::new();
    for (index, source) in sources.iter_mut().enumerate() {
        let names = std::mem::take(&mut source.names).into_iter();
        let mut queue: Vec<Task> = names
            .filter_map(|name| Some((index, parse_file_name(&name)?, name)))
            .collect();
        queue.sort();
        queues.push(Rc::new(RefCell::new(queue.into_iter())));
    }
    let sources = Rc::new(sources);
    let scanned = Rc::new(RefCell::new(BTreeMap::new()));
    let mut workers = Vec::new();
    for queue in &queues {
        let len = queue.borrow().len();
        for _ in 0..len.min(IN_FLIGHT_MAX) {
            let (queue, sources) = (Rc::clone(queue), Rc::clone(&sources));
            let scanned = Rc::clone(&scanned);
            workers.push(async move {
                loop {
                    let next = queue.borrow_mut().next();
                    let Some((index, segment, name)) = next else {
                        break;
                    };
                    let outcome = read_one(&sources[index], uuid, segment, &name).await;
                    scanned.borrow_mut().insert((index, segment, name), outcome);
                }
            });
        }
    }
    all(tasks, workers).await;
    let gathered = sources.iter().map(|source| Gathered::new(source.volume));
    let mut gathered: Vec<Gathered<D>> = gathered.collect();
    for ((index, _, name), outcome) in scanned.take() {
        gathered[index].add(name, outcome);
    }
    gathered
}

async fn read_one<D: Disk>(
    source: &Source<D>,
    uuid: Uuid,
    segment: u64,
    name: &str,
) -> io::Result<(D::File, Scan)> {
    let disk = &source.disk;
    let (file, len) = disk.open(name).await?;
    let candidate = Candidate {
        segment,
        small: is_small(name),
        len,
        uuid: &uuid,
        recent: segment >> GENERATION_SHIFT >= source.settled,
    };
    let scan = scan(disk, &file, candidate).await?;
    if matches!(scan, Scan::Empty) {
        // A name that stays is found again next time.
        let _ = disk.unlink(name).await;
    }
    Ok((file, scan))
}

/// Fills the index and the registries. Returns the segments without a live record.
pub(crate) fn merge<D: Disk>(
    store: &Store<D>,
    found: Vec<Found<D>>,
    recovered: &mut Recovered,
) -> Vec<(u8, u64, String)> {
    let mut remembered = Remembered::new(&store.uuid);
    for record in found.iter().flat_map(|found| &found.scanned.records) {
        match &record.kind {
            Kind::Forget(key) => store.forgets.note(key, record.sequence),
            Kind::Recency(recency) => remembered.learn(recency),
            _ => {}
        }
    }
    store.clock.resume(remembered.clock());
    let live = live_records(store, &found, recovered);
    let mut unlinked = Vec::new();
    for (found, live) in found.into_iter().zip(live) {
        let volume = store.volume(found.volume);
        let Scanned {
            segment,
            class,
            len,
            records,
            was_sealed,
            ..
        } = found.scanned;
        let floor = lowest(&records);
        if !live.contains(&true) {
            volume.leave(segment, class, floor);
            unlinked.push((found.volume, segment, found.name));
            continue;
        }
        volume.budget.found(len);
        let place = Place {
            volume: found.volume,
            id: segment,
            class,
            floor,
        };
        let budget = Arc::clone(&volume.budget);
        let file = Arc::new(SegmentFile::new(found.file, place, len, budget));
        file.set_unverified(!was_sealed);
        volume.register(Arc::clone(&file));
        recovered.segments += 1;
        let live = records.into_iter().zip(live).filter(|(_, live)| *live);
        for (record, _) in live {
            if class == Class::Small && matches!(record.kind, Kind::Unknown { .. }) {
                store.keep_unknown(&record);
                continue;
            }
            index(store, record, (&file, was_sealed), &remembered, recovered);
        }
        if file.live_records() == 0 {
            file.set_opaque();
        }
        file.seal();
    }
    (_, recovered.tags, recovered.links) = store.index.counts();
    unlinked
}

/// The lowest sequence of a record that a forget record can kill.
pub(crate) fn lowest(records: &[Record]) -> u64 {
    let kills = |record: &&Record| !matches!(record.kind, Kind::Forget(_) | Kind::Area { .. });
    let sequences = records.iter().filter(kills).map(|record| record.sequence);
    sequences.min().unwrap_or(u64::MAX)
}

/// Where a record is: the place of its segment among those found, and its own in there.
type At = (u32, u32);

/// Of each segment's records, which are live: of each digest that is not forgotten the one with
/// the highest sequence, of copies of one record the one in the later segment, and all that are
/// not of bodies. Makes room in the index for them.
fn live_records<D: Disk>(
    store: &Store<D>,
    found: &[Found<D>],
    recovered: &mut Recovered,
) -> Vec<Vec<bool>> {
    let scanned = |at: At| &found[at.0 as usize].scanned;
    let record = |at: At| &scanned(at).records[at.1 as usize];
    let rank = |at: At| (record(at).sequence, scanned(at).segment);
    let digest = |at: At| body_digest(record(at)).expect("only bodies are in the table");
    let hash = |digest: &Digest| store.index.body_hash(digest);
    let any_forgets = !store.forgets.is_empty();
    let bodies = found
        .iter()
        .filter(|found| found.scanned.class != Class::Small);
    // Places, not digests: a table that grew with its keys would cost more than all the rest.
    let mut newest = HashTable::with_capacity(bodies.map(|f| f.scanned.records.len()).sum());
    let mut live = Vec::with_capacity(found.len());
    let mut slices = [0; SLICES];
    for (segment, found) in (0_u32..).zip(found) {
        let records = &found.scanned.records;
        live.push(records.iter().map(lives_by_itself).collect::<Vec<bool>>());
        for (number, this) in (0_u32..).zip(records) {
            let Some(name) = body_digest(this) else {
                continue;
            };
            if any_forgets && store.forgets.kills(&ForgetKey::Body(*name), this.sequence) {
                recovered.forgotten += 1;
                continue;
            }
            let at = (segment, number);
            match newest.entry(
                hash(name),
                |other| digest(*other) == name,
                |o| hash(digest(*o)),
            ) {
                Entry::Occupied(mut other) => {
                    recovered.superseded += 1;
                    if rank(at) > rank(*other.get()) {
                        *other.get_mut() = at;
                    }
                }
                Entry::Vacant(empty) => {
                    empty.insert(at);
                    slices[name.slice()] += 1;
                }
            }
        }
    }
    store.index.reserve_bodies(&slices);
    for (segment, number) in newest {
        live[segment as usize][number as usize] = true;
    }
    live
}

fn body_digest(record: &Record) -> Option<&Digest> {
    match &record.kind {
        Kind::Body(entry) => Some(&entry.digest),
        _ => None,
    }
}

/// Bodies live if no other record of theirs is newer.
fn lives_by_itself(record: &Record) -> bool {
    !matches!(record.kind, Kind::Body(_) | Kind::Area { .. })
}

fn index<D: Disk>(
    store: &Store<D>,
    record: Record,
    (file, verified): (&Arc<SegmentFile<D>>, bool),
    remembered: &Remembered,
    recovered: &mut Recovered,
) {
    let sequence = record.sequence;
    match record.kind {
        Kind::Body(entry) => {
            recovered.bodies += 1;
            recovered.body_bytes += entry.len;
            let age = remembered.of(&entry.digest);
            // Written with the next times, or every restart would make it new again.
            let unknown = if age.is_some() { 0 } else { Flags::TOUCHED };
            let unverified = if verified { 0 } else { Flags::UNVERIFIED };
            let flags = Flags::DURABLE | unverified | unknown;
            store.index.insert_body(IndexedBody {
                digest: entry.digest,
                sequence,
                lease: Lease::new(Arc::clone(file), entry.offset, entry.len),
                media_type: store.index.media_types.intern(entry.media_type.as_ref()),
                bytes: None,
                recency: AtomicU32::new(age.unwrap_or(remembered.clock())),
                flags: Flags::new(flags),
            });
        }
        Kind::Tag(key, tag) => {
            if store.forgets.kills(&ForgetKey::Tag(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                let age = remembered.or_now(&tag.digest);
                store.index.put_tag(key, tag, sequence, age);
            }
        }
        Kind::Link(key, link) => {
            if store.forgets.kills(&ForgetKey::Link(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                let age = remembered.or_now(&key.digest);
                store.index.put_link(key, link, sequence, age);
            }
        }
        Kind::Statistics(key, statistics) => {
            if store
                .forgets
                .kills(&ForgetKey::Statistics(key.clone()), sequence)
            {
                recovered.forgotten += 1;
            } else {
                store
                    .index
                    .put_statistics(key, statistics, sequence, store.clock.now());
            }
        }
        // Known above, or to a later program.
        Kind::Forget(_) | Kind::Area { .. } | Kind::Recency(_) | Kind::Unknown { .. } => {}
    }
}
