//! A volume: one data path of the store, with its budget and its segments.
//!
//! Volumes are numbered by the operator's order, which may change from one start to the next:
//! nothing on disk depends on the number. Which disk belongs to it is known to the writers only,
//! for a disk is used on one thread.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::budget::Budget;
use crate::clock::Age;
use crate::disk::Disk;
use crate::lease::SegmentFile;
use crate::pins::Pins;
use crate::superblock::{Member, Superblock, SuperblockFile};

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
    pub capacity: u64,
    /// Allocated bytes, unlinked files that are still read included.
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
    quarantined: AtomicU64,
    own: Mutex<Option<Own<D>>>,
}

/// What this process has of a volume that was opened.
pub(crate) struct Own<D: Disk> {
    /// Held until the process ends: a second one on the same directory must not start.
    pub(crate) lock: D::File,
    pub(crate) superblock: Superblock,
    pub(crate) file: SuperblockFile<D>,
}

struct Leaving {
    floor: u64,
    unlinked: bool,
}

impl<D: Disk> Volume<D> {
    /// Without `own` it is offline.
    pub(crate) fn new(capacity: u64, own: Option<Own<D>>, complete: bool) -> Volume<D> {
        Volume {
            budget: Arc::new(Budget::new(capacity)),
            offline: AtomicBool::new(own.is_none()),
            complete: AtomicBool::new(complete),
            registry: Mutex::default(),
            pins: Pins::default(),
            leaving: Mutex::default(),
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
            complete: self.complete.load(Ordering::Acquire),
        })
    }

    /// What generations before this one wrote here is durable.
    pub(crate) fn settled(&self, generation: u64) {
        if let Some(own) = self.own().as_mut() {
            own.superblock.settled = generation;
        }
    }

    /// Durable when it returns. One task at a time.
    pub(crate) async fn write_superblock(&self, disk: &D, members: &[Member]) -> io::Result<()> {
        let Some((superblock, mut file)) = self.own().as_mut().map(|own| {
            own.superblock.change += 1;
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
    pub(crate) fn leave(&self, segment: u64, floor: u64) {
        let unlinked = false;
        self.leaving().insert(segment, Leaving { floor, unlinked });
    }

    fn leaving(&self) -> MutexGuard<'_, BTreeMap<u64, Leaving>> {
        self.leaving.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn usage(&self, now: Age) -> VolumeUsage {
        let registry = self.registry();
        VolumeUsage {
            state: self.state(),
            capacity: self.budget.capacity(),
            used: self.budget.used(),
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
        self.registry().insert(file.id, file);
    }

    /// Whoever gets the file unlinks it: nobody else can any more.
    pub(crate) fn unregister(&self, segment: u64) -> Option<Arc<SegmentFile<D>>> {
        let file = self.registry().remove(&segment)?;
        self.leave(segment, file.floor());
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
