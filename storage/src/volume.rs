//! A volume: one data path of the store, with its budget and its segments.
//!
//! Volumes are numbered by the operator's order, which may change from one start to the next:
//! nothing on disk depends on the number. Which disk belongs to it is known to the writers only,
//! for a disk is used on one thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::Seconds;
use crate::budget::Budget;
use crate::checkpoint::Checkpoint;
use crate::clock::Age;
use crate::disk::Disk;
use crate::lease::SegmentFile;
use crate::page::Class;
use crate::pins::Pins;
use crate::superblock::{Member, Opening, Superblock, SuperblockFile};

/// Volumes of one store: a machine has no more data paths than that, and each costs every writer
/// an open segment of small records.
pub const VOLUMES_MAX: usize = 16;

/// What a volume is made of.
#[derive(Clone, Debug)]
pub struct VolumeSpec<D> {
    pub disk: D,
    /// Bytes the store may use on it.
    pub capacity: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeState {
    /// Reads and writes go there.
    Online,
    /// Its disk failed, or could not be read at the start. Nothing is written there and none of
    /// its bodies is found; bytes under leases stay readable.
    Offline,
}

/// One volume, for metrics and for the operator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VolumeUsage {
    pub state: VolumeState,
    /// It has every small record: what is durable in them survives all other volumes.
    pub complete: bool,
    pub capacity: u64,
    /// Bytes that are allocated, or promised to a body that comes in; unlinked files that are still
    /// read and what compaction writes included: for a while it may be a segment or so more than the capacity.
    pub used: u64,
    pub staging: u64,
    /// Bytes of bodies in the index.
    pub live: u64,
    /// Bytes that compaction gives back.
    pub dead: u64,
    /// Bytes of unlinked files that are still read.
    pub pinned: u64,
    /// How long the oldest of them is read already, in seconds.
    pub oldest_pin_s: u64,
    /// Unlinked files whose readers were stopped, since the start.
    pub revoked: u64,
    pub segments: u64,
    /// Segments given up since the start.
    pub quarantined: u64,
}

pub(crate) struct Volume<D: Disk> {
    pub(crate) budget: Arc<Budget>,
    offline: AtomicBool,
    /// It has every small record.
    complete: AtomicBool,
    /// Every segment that has a name, so that it counts as used whether anyone reads it or not.
    registry: Mutex<BTreeMap<u64, Arc<SegmentFile<D>>>>,
    pub(crate) pins: Pins<D>,
    /// Segments that are being unlinked, with their floors: a crash may bring them back until
    /// the directory was synced.
    leaving: Mutex<BTreeMap<u64, Leaving>>,
    /// Some segments could not be read: how old their records are is not known.
    unread: AtomicBool,
    /// It was away when the store was opened: what it has in small records nobody knows.
    never_read: AtomicBool,
    /// Counts the times there was something that a checkpoint which runs may not have.
    lacking: AtomicU64,
    checkpoint: Mutex<Checkpoint>,
    failures: Mutex<Vec<Seconds>>,
    quarantined: AtomicU64,
    own: Mutex<Option<Own<D>>>,
}

/// What this process has of a volume that was opened.
pub(crate) struct Own<D: Disk> {
    /// Held until the process ends: a second one on the same directory must not start.
    pub(crate) _lock: D::File,
    pub(crate) superblock: Superblock,
    pub(crate) file: SuperblockFile<D>,
}

struct Leaving {
    class: Class,
    floor: u64,
    unlinked: bool,
}

/// The lowest sequences that may be in segments of bodies, and of small records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Floors {
    pub(crate) bodies: u64,
    pub(crate) small: u64,
}

impl Floors {
    /// Of no segment at all.
    pub(crate) const NONE: Floors = Floors {
        bodies: u64::MAX,
        small: u64::MAX,
    };
    pub(crate) const UNKNOWN: Floors = Floors {
        bodies: 0,
        small: 0,
    };

    pub(crate) fn lowest(self, other: Floors) -> Floors {
        Floors {
            bodies: self.bodies.min(other.bodies),
            small: self.small.min(other.small),
        }
    }

    fn with(self, class: Class, floor: u64) -> Floors {
        match class {
            Class::Small => Floors {
                small: self.small.min(floor),
                ..self
            },
            Class::Shared | Class::Solo => Floors {
                bodies: self.bodies.min(floor),
                ..self
            },
        }
    }
}

impl<D: Disk> Volume<D> {
    /// Without `own` it is offline.
    pub(crate) fn new(budget: Budget, own: Option<Own<D>>, complete: bool) -> Volume<D> {
        Volume {
            budget: Arc::new(budget),
            offline: AtomicBool::new(own.is_none()),
            complete: AtomicBool::new(complete),
            registry: Mutex::default(),
            pins: Pins::default(),
            leaving: Mutex::default(),
            unread: AtomicBool::new(false),
            never_read: AtomicBool::new(own.is_none()),
            lacking: AtomicU64::new(0),
            checkpoint: Mutex::default(),
            failures: Mutex::default(),
            quarantined: AtomicU64::new(0),
            own: Mutex::new(own),
        }
    }

    pub(crate) fn state(&self) -> VolumeState {
        if self.online() {
            VolumeState::Online
        } else {
            VolumeState::Offline
        }
    }

    pub(crate) fn online(&self) -> bool {
        !self.offline.load(Ordering::Acquire)
    }

    /// As the superblocks of all volumes name it; `None` if that is not known.
    pub(crate) fn member(&self) -> Option<Member> {
        let own = self.own();
        own.as_ref().map(|own| Member {
            id: own.superblock.volume,
            complete: self.complete(),
        })
    }

    /// The last of these opens serves; if `settled`, all that those before it wrote here is
    /// durable. For the next superblock.
    pub(crate) fn serves(&self, opens: &[Opening], settled: bool) {
        if let Some(own) = self.own().as_mut() {
            own.superblock.opens = opens.to_vec();
            own.superblock.unserved = 0;
            if settled {
                own.superblock.settled = own.superblock.generation;
            }
        }
    }

    /// Durable when it returns. One task at a time, of all volumes; `change` is higher each time.
    pub(crate) async fn write_superblock(
        &self,
        disk: &D,
        members: &[Member],
        change: u64,
    ) -> io::Result<()> {
        let Some((superblock, mut file)) = self.own().as_mut().map(|own| {
            own.superblock.change = change;
            own.superblock.members = members.to_vec();
            (own.superblock.clone(), own.file.clone())
        }) else {
            return Ok(());
        };
        file.write(disk, &superblock).await?;
        if let Some(own) = self.own().as_mut() {
            own.file = file;
        }
        Ok(())
    }

    fn own(&self) -> MutexGuard<'_, Option<Own<D>>> {
        self.own.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// It is being unlinked.
    pub(crate) fn leave(&self, segment: u64, class: Class, floor: u64) {
        let leaving = Leaving {
            class,
            floor,
            unlinked: false,
        };
        self.leaving().insert(segment, leaving);
    }

    /// Its name is gone, if the machine goes on.
    pub(crate) fn left(&self, segment: u64) {
        if let Some(leaving) = self.leaving().get_mut(&segment) {
            leaving.unlinked = true;
        }
    }

    /// Makes durable that segments are gone, so that what they held counts no more.
    pub(crate) async fn forget_left(&self, disk: &D) -> io::Result<()> {
        let unlinked = |(id, leaving): (&u64, &Leaving)| leaving.unlinked.then_some(*id);
        let left: Vec<u64> = self.leaving().iter().filter_map(unlinked).collect();
        if left.is_empty() {
            return Ok(());
        }
        disk.sync_dir().await?;
        self.leaving().retain(|id, _| !left.contains(id));
        Ok(())
    }

    /// What may be on it is not known in full.
    pub(crate) fn has_unread(&self) {
        self.unread.store(true, Ordering::Release);
    }

    pub(crate) fn floors(&self) -> Floors {
        if !self.online() || self.unread.load(Ordering::Acquire) {
            return Floors::UNKNOWN;
        }
        // The registry first: a segment that goes is in both for a while.
        let mut floors = Floors::NONE;
        for file in self.registry().values() {
            floors = floors.with(file.class, file.floor());
        }
        for leaving in self.leaving().values() {
            floors = floors.with(leaving.class, leaving.floor);
        }
        floors
    }

    /// Whether it was online before. Its segments are not known any more; whether it has every
    /// small record still is for `Store::falls_behind` to say.
    pub(crate) fn go_offline(&self) -> bool {
        let mut registry = self.registry();
        if self.offline.swap(true, Ordering::AcqRel) {
            return false;
        }
        for file in std::mem::take(&mut *registry).into_values() {
            file.abandon();
        }
        drop(registry);
        self.leaving().clear();
        self.misses();
        true
    }

    pub(crate) fn never_read(&self) -> bool {
        self.never_read.load(Ordering::Acquire)
    }

    /// What is on it is registered, but for segments that could not be read if it is not `whole`.
    pub(crate) fn go_online(&self, whole: bool) {
        self.failures().clear();
        self.never_read.store(false, Ordering::Release);
        // Before it is online: what is not known in full has no floor.
        self.unread.store(!whole, Ordering::Release);
        self.offline.store(false, Ordering::Release);
    }

    /// When segments on it were given up.
    pub(crate) fn failures(&self) -> MutexGuard<'_, Vec<Seconds>> {
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn superblock(&self) -> Option<Superblock> {
        self.own().as_ref().map(|own| own.superblock.clone())
    }

    pub(crate) fn set_own(&self, own: Own<D>) {
        self.own().replace(own);
    }

    pub(crate) fn complete(&self) -> bool {
        self.complete.load(Ordering::Acquire)
    }

    /// How often there was something that a checkpoint may not have.
    pub(crate) fn lacking(&self) -> u64 {
        self.lacking.load(Ordering::Acquire)
    }

    /// Whether that is new.
    pub(crate) fn has_all_records(&self) -> bool {
        !self.complete.swap(true, Ordering::AcqRel)
    }

    /// Of a checkpoint that runs, something is missing.
    pub(crate) fn misses(&self) {
        self.lacking.fetch_add(1, Ordering::AcqRel);
    }

    /// A small record could not be written here. Whether it was complete.
    pub(crate) fn lacks_records(&self) -> bool {
        self.misses();
        self.complete.swap(false, Ordering::AcqRel)
    }

    /// Segments of small records that were made before this one.
    pub(crate) fn small_before(&self, segment: u64) -> Vec<Arc<SegmentFile<D>>> {
        let registry = self.registry();
        let older = registry.range(..segment).map(|(_, file)| file);
        let small = older.filter(|file| file.class == Class::Small);
        small.cloned().collect()
    }

    pub(crate) fn checkpoint(&self) -> MutexGuard<'_, Checkpoint> {
        let checkpoint = self.checkpoint.lock();
        checkpoint.unwrap_or_else(PoisonError::into_inner)
    }

    fn leaving(&self) -> MutexGuard<'_, BTreeMap<u64, Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn usage(&self, now: Age) -> VolumeUsage {
        let registry = self.registry();
        VolumeUsage {
            state: self.state(),
            complete: self.complete(),
            capacity: self.budget.capacity(),
            used: self.budget.used() + self.budget.survivors(),
            staging: self.budget.staging(),
            live: registry.values().map(|file| file.live_bytes()).sum(),
            dead: self.budget.dead_bytes(),
            pinned: self.budget.pinned_bytes(),
            oldest_pin_s: self.pins.oldest(now).into(),
            revoked: self.pins.revoked(),
            segments: registry.len() as u64,
            quarantined: self.quarantined.load(Ordering::Relaxed),
        }
    }

    /// Bytes that are free, in parts of 2^32 of the capacity: where a new segment goes.
    pub(crate) fn free_share(&self) -> u64 {
        let capacity = self.budget.capacity();
        let free = capacity.saturating_sub(self.budget.used());
        ((u128::from(free) << 32) / u128::from(capacity.max(1))) as u64
    }

    pub(crate) fn register(&self, file: Arc<SegmentFile<D>>) {
        let mut registry = self.registry();
        if self.online() {
            registry.insert(file.id, file);
        } else {
            file.abandon();
        }
    }

    /// Of a volume that is being brought back.
    pub(crate) fn register_returning(&self, file: Arc<SegmentFile<D>>) {
        self.registry().insert(file.id, file);
    }

    /// Whoever gets the file unlinks it: nobody else can any more.
    pub(crate) fn unregister(&self, segment: u64) -> Option<Arc<SegmentFile<D>>> {
        let mut registry = self.registry();
        let file = Arc::clone(registry.get(&segment)?);
        self.leave(segment, file.class, file.floor());
        registry.remove(&segment);
        Some(file)
    }

    /// A file that has no name any more, at this time of the age clock.
    pub(crate) fn unlinked(&self, file: &Arc<SegmentFile<D>>, age: Age) {
        file.unlinked(age);
        self.pins.add(file);
    }

    pub(crate) fn count_quarantined(&self) {
        self.quarantined.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn registry(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<SegmentFile<D>>>> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
