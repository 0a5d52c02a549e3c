//! Eviction: which bodies, tags and links go, and why.
//!
//! What is idle goes. Under pressure all owners cut at one age, taken from the histograms that
//! each publishes of what it has: nobody has an order of everything. On layers recency beats what
//! cleverer policies do for bytes (measured over a registry's requests). Nothing here is written
//! to disk: what is evicted may be back after a restart, as old as it was.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Seconds;
use crate::clock::Age;
use crate::disk::Disk;
use crate::histogram::{Cut, Histogram, Published};
use crate::index::IndexedBody;
use crate::lease::extent_len;
use crate::store::Options;

/// A body nobody asked for in a week is not asked for again soon enough.
pub const IDLE_AFTER_S: Seconds = 7 * 24 * 3600;
/// Manifests, configs, tags and links are small, and each saves a round trip upstream.
pub const SMALL_IDLE_AFTER_S: Seconds = 90 * 24 * 3600;
/// A lease on an unlinked file is revoked after this: 10 GiB at 3 MB/s.
pub const PIN_MAX_S: Seconds = 3600;
/// Tags, links and statistics together: half a GiB of RAM at about 500 bytes each.
pub const SMALL_RECORDS_MAX: u64 = 1 << 20;
/// Down to this share of the bound, in per cent, so that not every put is over it again.
const RECORDS_TO_PERCENT: u64 = 95;

/// An owner that does not publish keeps the others from cutting for so long, in seconds of the age
/// clock: its disk may hang. What it published before then counts.
const PUBLISH_WAIT_S: Age = 30;
/// Ages are counted from one reading for so long: what is younger counts as equal.
const ROUND_S: Age = 60;
/// No reading of the age clock that is ever stamped.
const NEVER: Age = Age::MAX;

/// In which order bodies go under pressure.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// Small bodies only when no large one is left: they are many, and take next to nothing.
    #[default]
    LargeFirst,
    /// By age alone.
    OldestFirst,
}

/// Bodies are counted apart by these.
pub(crate) const LARGE: usize = 0;
pub(crate) const SMALL: usize = 1;

/// Where to cut among the large and the small bodies of a volume so that `excess` bytes go.
pub(crate) fn cuts(policy: Policy, ages: &[Histogram; 2], excess: u64) -> [Cut; 2] {
    let large = ages[LARGE].total();
    match policy {
        Policy::LargeFirst if excess <= large => [ages[LARGE].cut(excess), Cut::NONE],
        Policy::LargeFirst => [Cut::ALL, ages[SMALL].cut(excess - large)],
        Policy::OldestFirst => {
            let mut both = ages[LARGE].clone();
            both.add_all(&ages[SMALL]);
            [both.cut(excess); 2]
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cause {
    Idle,
    Pressure,
    /// A file could not be made.
    Room,
}

/// What was evicted for one cause since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Evicted {
    pub bodies: u64,
    /// Of the bodies themselves.
    pub bytes: u64,
}

#[derive(Default)]
struct Count {
    bodies: AtomicU64,
    bytes: AtomicU64,
}

/// What the owners share to evict together.
pub(crate) struct Eviction {
    pub(crate) policy: Policy,
    pub(crate) idle_after: Age,
    small_idle_after: Age,
    small_max: u64,
    pub(crate) pin_max: Age,
    records_max: u64,
    /// By shard.
    owners: Box<[Posted]>,
    /// Since when there is too much of anything, or when the last round of that began; or `NEVER`.
    pressed: AtomicU32,
    counts: [Count; 3],
    records: AtomicU64,
}

/// What one owner has, by age.
struct Posted {
    /// By volume, large and small.
    bodies: Box<[[Published; 2]]>,
    records: Published,
    /// When it was published, or `NEVER`.
    at: AtomicU32,
}

/// The same before it is published.
pub(crate) struct Ages {
    pub(crate) bodies: Vec<[Histogram; 2]>,
    pub(crate) records: Histogram,
}

/// Where an owner cuts.
pub(crate) struct Cuts {
    /// By volume, large and small.
    pub(crate) bodies: Vec<[Cut; 2]>,
    pub(crate) records: Cut,
    /// The reading from which ages count.
    pub(crate) reference: Age,
}

impl Cuts {
    pub(crate) fn none(volumes: usize, reference: Age) -> Cuts {
        Cuts {
            reference,
            bodies: vec![[Cut::NONE; 2]; volumes],
            records: Cut::NONE,
        }
    }
}

impl Eviction {
    pub(crate) fn new(options: &Options, volumes: usize) -> Eviction {
        let age = |seconds: Seconds| Age::try_from(seconds).unwrap_or(Age::MAX);
        let posted = || Posted {
            bodies: (0..volumes).map(|_| Default::default()).collect(),
            records: Published::default(),
            at: AtomicU32::new(NEVER),
        };
        Eviction {
            policy: options.policy,
            idle_after: age(options.idle_after),
            small_idle_after: age(options.small_idle_after),
            small_max: u64::from(options.small_max),
            pin_max: age(options.pin_max),
            records_max: options.small_records_max,
            owners: (0..options.shards.max(1)).map(|_| posted()).collect(),
            pressed: AtomicU32::new(NEVER),
            counts: Default::default(),
            records: AtomicU64::new(0),
        }
    }

    pub(crate) fn class_of(&self, len: u64) -> usize {
        if len <= self.small_max { SMALL } else { LARGE }
    }

    pub(crate) fn idle<D: Disk>(&self, body: &IndexedBody<D>, age: Age) -> bool {
        let after = [self.idle_after, self.small_idle_after];
        age > after[self.class_of(body.lease.len())]
    }

    pub(crate) fn record_idle(&self, age: Age) -> bool {
        age > self.small_idle_after
    }

    /// What a walk found, with ages from this reading.
    pub(crate) fn publish(&self, shard: usize, ages: &Ages, at: Age) {
        let posted = &self.owners[shard];
        for (published, ages) in posted.bodies.iter().zip(&ages.bodies) {
            published[LARGE].publish(&ages[LARGE]);
            published[SMALL].publish(&ages[SMALL]);
        }
        posted.records.publish(&ages.records);
        posted.at.store(at.min(NEVER - 1), Ordering::Release);
    }

    /// There is too much of something.
    pub(crate) fn press(&self, now: Age) {
        let (now, since) = (now.min(NEVER - 1), self.pressed.load(Ordering::Acquire));
        if since == NEVER || now.saturating_sub(since) >= ROUND_S {
            // Whoever is first says when it began.
            let _ = self
                .pressed
                .compare_exchange(since, now, Ordering::AcqRel, Ordering::Relaxed);
        }
    }

    /// The reading from which all owners count ages now: counted from different ones, what is of
    /// equal age would seem older where it is looked at later, and go from there alone.
    pub(crate) fn reference(&self, now: Age) -> Age {
        now.min(NEVER - 1).min(self.pressed.load(Ordering::Acquire))
    }

    /// Whether owners may cut: not before each has published what it has since there is too much.
    /// Without the others' an owner would let go of all that is its own for what is a small part
    /// of the whole.
    pub(crate) fn may_cut(&self, now: Age) -> bool {
        let since = self.reference(now);
        let waited = now.saturating_sub(since) >= PUBLISH_WAIT_S;
        self.owners.iter().all(|posted| {
            let at = posted.at.load(Ordering::Acquire);
            at != NEVER && (at >= since || waited)
        })
    }

    /// There is too much of nothing.
    pub(crate) fn relieved(&self) {
        self.pressed.store(NEVER, Ordering::Release);
    }

    /// Where to cut on a volume, from what all owners published.
    pub(crate) fn body_cuts(&self, volume: usize, excess: u64) -> [Cut; 2] {
        let mut ages = <[Histogram; 2]>::default();
        for posted in &self.owners {
            ages[LARGE].merge(&posted.bodies[volume][LARGE]);
            ages[SMALL].merge(&posted.bodies[volume][SMALL]);
        }
        cuts(self.policy, &ages, excess)
    }

    /// How many of `records` tags, links and statistics must go.
    pub(crate) fn records_excess(&self, records: u64) -> Option<u64> {
        let to = self.records_max / 100 * RECORDS_TO_PERCENT;
        (records > self.records_max).then(|| records - to)
    }

    pub(crate) fn records_cut(&self, excess: u64) -> Cut {
        let mut ages = Histogram::default();
        for posted in &self.owners {
            ages.merge(&posted.records);
        }
        ages.cut(excess)
    }

    pub(crate) fn count(&self, cause: Cause, len: u64) {
        let count = &self.counts[cause as usize];
        count.bodies.fetch_add(1, Ordering::Relaxed);
        count.bytes.fetch_add(len, Ordering::Relaxed);
    }

    pub(crate) fn count_records(&self, records: u64) {
        self.records.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn evicted(&self, cause: Cause) -> Evicted {
        let count = &self.counts[cause as usize];
        Evicted {
            bodies: count.bodies.load(Ordering::Relaxed),
            bytes: count.bytes.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn evicted_records(&self) -> u64 {
        self.records.load(Ordering::Relaxed)
    }
}

impl Ages {
    pub(crate) fn new(volumes: usize) -> Ages {
        Ages {
            bodies: vec![Default::default(); volumes],
            records: Histogram::default(),
        }
    }

    pub(crate) fn add<D: Disk>(&mut self, class: usize, body: &IndexedBody<D>, age: Age) {
        let volume = usize::from(body.lease.file.volume);
        self.bodies[volume][class].add(age, extent_len(body.lease.len()));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ages() -> [Histogram; 2] {
        let mut ages = <[Histogram; 2]>::default();
        ages[LARGE].add(10, 1000);
        ages[LARGE].add(1000, 1000);
        ages[SMALL].add(100_000, 100);
        ages
    }

    #[test]
    fn small_bodies_stay_until_the_large_are_gone() {
        let [large, small] = cuts(Policy::LargeFirst, &ages(), 1000);
        assert!(large.takes(1000, u16::MAX) && !large.takes(10, 0));
        assert!(!small.takes(100_000, 0));
        let [large, small] = cuts(Policy::LargeFirst, &ages(), 2050);
        assert_eq!(large, Cut::ALL);
        assert!(small.takes(100_000, 0) && !small.takes(100_000, u16::MAX));
    }

    #[test]
    fn or_go_by_their_age() {
        let [large, small] = cuts(Policy::OldestFirst, &ages(), 1100);
        assert!(small.takes(100_000, u16::MAX) && large.takes(1000, u16::MAX));
        assert!(!small.takes(10, 0) && !large.takes(10, 0));
    }

    #[test]
    fn nobody_cuts_before_all_have_published() {
        let eviction = Eviction::new(&Options::new(2, [1; 16]), 1);
        let ages = Ages::new(1);
        eviction.press(100);
        eviction.publish(0, &ages, 100);
        assert!(!eviction.may_cut(100), "the other has what nobody knows of");
        assert!(!eviction.may_cut(159), "however long it takes");
        assert_eq!(eviction.reference(110), 100);
        eviction.publish(1, &ages, 100);
        assert!(eviction.may_cut(110));
        eviction.relieved();
        assert_eq!(eviction.reference(111), 111);
        eviction.press(111);
        assert!(!eviction.may_cut(111), "that was before");
        eviction.publish(0, &ages, 111);
        eviction.publish(1, &ages, 111);
        assert!(eviction.may_cut(111));
        eviction.press(171);
        eviction.publish(0, &ages, 171);
        assert!(!eviction.may_cut(171), "another round");
        assert!(
            eviction.may_cut(201),
            "one that hangs does not keep the others"
        );
    }

    #[test]
    fn records_have_a_bound() {
        let mut options = Options::new(2, [1; 16]);
        options.small_records_max = 1000;
        let eviction = Eviction::new(&options, 1);
        assert_eq!(eviction.records_excess(1000), None);
        assert_eq!(eviction.records_excess(1001), Some(51));
        let mut ages = Ages::new(1);
        for (shard, age) in [(0, 5), (1, 5000)] {
            ages.records = Histogram::default();
            ages.records.add(age, 51);
            eviction.publish(shard, &ages, 0);
        }
        let cut = eviction.records_cut(51);
        assert!(
            cut.takes(5000, u16::MAX) && !cut.takes(5, 0),
            "the oldest of all owners"
        );
    }
}
