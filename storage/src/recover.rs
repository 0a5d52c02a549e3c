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

use crate::disk::{Disk, too_many_files};
use crate::index::{Flags, IndexedBody};
use crate::key::ForgetKey;
use crate::lease::{Bodies, Lease, Place, SegmentFile};
use crate::live::{Live, body_entry};
use crate::media::MediaId;
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
    /// There was no room for more open files: it is not known what there is.
    pub(crate) too_many_files: Option<io::Error>,
    /// Segments of bodies that can't be read.
    pub(crate) unreadable: Vec<String>,
    emptied: u64,
}

impl<D: Disk> Gathered<D> {
    fn new(volume: u8) -> Gathered<D> {
        Gathered {
            volume,
            found: Vec::new(),
            small_unreadable: None,
            too_many_files: None,
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
            Err(error) if too_many_files(&error) => self.too_many_files = Some(error),
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
    let live = Live::of(store, &found, recovered);
    let mut unlinked = Vec::new();
    let mut opened = Vec::with_capacity(found.len());
    for (found, lives) in found.into_iter().zip(&live.segments) {
        opened.push(if lives.contains(&true) {
            recovered.segments += 1;
            Some(Opened::new(store, found))
        } else {
            let Scanned { segment, class, .. } = found.scanned;
            let floor = lowest(&found.scanned.records);
            store.volume(found.volume).leave(segment, class, floor);
            unlinked.push((found.volume, segment, found.name));
            None
        });
    }
    fill(store, &mut opened, &live, &remembered, recovered);
    for (opened, lives) in opened.into_iter().zip(live.segments) {
        if let Some(opened) = opened {
            opened.end(store, &lives, &remembered, recovered);
        }
    }
    (_, recovered.tags, recovered.links) = store.index.counts();
    unlinked
}

/// A segment with a live record, while its records join the index.
struct Opened<D: Disk> {
    file: Arc<SegmentFile<D>>,
    records: Vec<Record>,
    verified: bool,
    bodies: Bodies,
}

impl<D: Disk> Opened<D> {
    fn new(store: &Store<D>, found: Found<D>) -> Opened<D> {
        let (volume, scanned) = (store.volume(found.volume), found.scanned);
        volume.budget.found(scanned.len);
        let place = Place {
            volume: found.volume,
            id: scanned.segment,
            class: scanned.class,
            floor: lowest(&scanned.records),
        };
        let budget = Arc::clone(&volume.budget);
        let file = SegmentFile::new(found.file, place, scanned.len, budget);
        let file = Arc::new(file);
        file.set_unverified(!scanned.was_sealed);
        volume.register(Arc::clone(&file));
        Opened {
            file,
            records: scanned.records,
            verified: scanned.was_sealed,
            bodies: Bodies::default(),
        }
    }

    /// Takes in what is live and no body. Nothing will be added to the segment after that.
    fn end(
        self,
        store: &Store<D>,
        lives: &[bool],
        remembered: &Remembered,
        recovered: &mut Recovered,
    ) {
        self.file.gained_all(&self.bodies);
        for (record, _) in self.records.into_iter().zip(lives).filter(|(_, l)| **l) {
            if self.file.class == Class::Small && matches!(record.kind, Kind::Unknown { .. }) {
                store.keep_unknown(&record);
                continue;
            }
            take_small(store, record, remembered, recovered);
        }
        if self.file.live_records() == 0 {
            self.file.set_opaque();
        }
        self.file.seal();
    }
}

/// The lowest sequence of a record that a forget record can kill.
pub(crate) fn lowest(records: &[Record]) -> u64 {
    let kills = |record: &&Record| !matches!(record.kind, Kind::Forget(_) | Kind::Area { .. });
    let sequences = records.iter().filter(kills).map(|record| record.sequence);
    sequences.min().unwrap_or(u64::MAX)
}

/// Fills the index with the live bodies, slice by slice: a table of one slice fits a core's
/// cache, and one lock is taken for all of them.
fn fill<D: Disk>(
    store: &Store<D>,
    opened: &mut [Option<Opened<D>>],
    live: &Live,
    remembered: &Remembered,
    recovered: &mut Recovered,
) {
    // Of bodies near each other most are of one type.
    let mut last: Option<(Arc<str>, MediaId)> = None;
    let mut intern = |text: Option<&Arc<str>>| {
        let text = text?;
        if last.as_ref().is_none_or(|(known, _)| known != text) {
            let id = store.index.media_types.intern(Some(text));
            last = Some((Arc::clone(text), id));
        }
        last.as_ref().map(|(_, id)| *id)
    };
    for (slice, bodies) in live.bodies.iter().enumerate() {
        let bodies = bodies.iter().map(|body| {
            let opened = opened[body.segment as usize].as_mut();
            let opened = opened.expect("it has a live record");
            let record = &opened.records[body.record as usize];
            let entry = body_entry(record).expect("only bodies are in a slice");
            opened.bodies.add(entry.len);
            recovered.body_bytes += entry.len;
            let age = remembered.of(&entry.digest);
            // Written with the next times, or every restart would make it new again.
            let unknown = if age.is_some() { 0 } else { Flags::TOUCHED };
            let unverified = if opened.verified {
                0
            } else {
                Flags::UNVERIFIED
            };
            let flags = Flags::DURABLE | unverified | unknown;
            IndexedBody {
                digest: entry.digest,
                sequence: record.sequence,
                lease: Lease::new(Arc::clone(&opened.file), entry.offset, entry.len),
                media_type: intern(entry.media_type.as_ref()).unwrap_or(MediaId::NONE),
                bytes: None,
                recency: AtomicU32::new(age.unwrap_or(remembered.clock())),
                flags: Flags::new(flags),
            }
        });
        store.index.fill_slice(slice, bodies);
    }
    (recovered.bodies, _, _) = store.index.counts();
}

fn take_small<D: Disk>(
    store: &Store<D>,
    record: Record,
    remembered: &Remembered,
    recovered: &mut Recovered,
) {
    let sequence = record.sequence;
    match record.kind {
        Kind::Tag(key, tag) => {
            if store.forgets.kills(&ForgetKey::Tag(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                let age = remembered.or_now(&tag.digest);
                store.index.tags.put(key, tag, sequence, age);
            }
        }
        Kind::Link(key, link) => {
            if store.forgets.kills(&ForgetKey::Link(key.clone()), sequence) {
                recovered.forgotten += 1;
            } else {
                let age = remembered.or_now(&key.digest);
                store.index.links.put(key, link, sequence, age);
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
                    .statistics
                    .put(key, statistics, sequence, store.clock.now());
            }
        }
        // In the index by now, known above, or to a later program.
        Kind::Body(_)
        | Kind::Forget(_)
        | Kind::Area { .. }
        | Kind::Recency(_)
        | Kind::Unknown { .. } => {}
    }
}
