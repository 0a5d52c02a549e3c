//! Lengths of segments and of what is in them, derived from the options once.
//!
//! Nothing persisted depends on them: each segment says where its own parts are (S8).

use crate::page::{PAGE_LEN, records_page_len, round_up};
use crate::record::{BodyEntry, SMALL_RECORD_LEN_MAX};
use crate::store::{OpenError, OpenFailure, Options};

/// Below this a store could hold little beside its own pages.
pub const CAPACITY_MIN_BYTES: u64 = 1 << 20;

const SEGMENT_LEN: u64 = 1 << 30;
/// Of stores below `CAPACITY_SMALL_BYTES`: a smaller unit of compaction.
const SEGMENT_LEN_SMALL: u64 = 256 << 20;
const CAPACITY_SMALL_BYTES: u64 = 500_000_000_000;
const SEGMENT_LEN_MIN: u64 = 8 << 20;
/// Bodies from this length on get a segment of their own: what is dead of it is room at once, and
/// nothing is copied.
const SOLO_MIN: u64 = 4 << 20;
/// From this one on at any rate.
const SOLO_MIN_LARGE: u64 = 32 << 20;
/// Between them the capacity decides. Every segment is an open file, and a process may have about
/// a million: with bodies ten times as long as the shortest a tenth of that is used.
const SOLOS_MAX: u64 = 1 << 20;
/// Open segments of all shards take at most one part in this many of the capacity.
const OPEN_PARTS: u64 = 20;
/// What an operator asks for is taken, down to what holds one body and its pages.
const SEGMENT_LEN_FLOOR: u64 = 128 << 10;

/// Files grow by this part of a segment: what a restart leaves unused is at most one step.
const STEP_PARTS: u64 = 16;
const STEP_MIN_BYTES: u64 = 64 << 10;
const STEP_MAX_BYTES: u64 = 64 << 20;

/// Part of a shared segment set aside at first for commit pages; more is chained when needed.
const AREA_PARTS: u64 = 1024;
const AREA_LEN_MIN: u64 = 4 * PAGE_LEN;
const AREA_LEN_MAX: u64 = 1 << 20;

const SMALL_PARTS: u64 = 16;
const SMALL_LEN_MIN: u64 = 128 << 10;
const SMALL_LEN_MAX: u64 = 16 << 20;
const SMALL_STEP_PARTS: u64 = 16;

/// A body of unknown length can have as many CRCs as fit what is set aside for its entry.
const UNKNOWN_LEN_MAX: u64 = 32 << 30;

const UNKNOWN_STEP_BYTES: u64 = 1 << 20;

const _: () = assert!(SMALL_LEN_MIN > SMALL_RECORD_LEN_MAX as u64 + 4 * PAGE_LEN);
const _: () = assert!(SEGMENT_LEN_FLOOR > 2 * STEP_MIN_BYTES - 1);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Geometry {
    pub(crate) segment_len: u64,
    pub(crate) step: u64,
    pub(crate) area_len: u64,
    pub(crate) small_len: u64,
    pub(crate) small_step: u64,
    pub(crate) solo_min: u64,
    pub(crate) withheld_len: u64,
    pub(crate) unknown_len_max: u64,
    /// What a body of unknown length gets at first: most of them are small.
    pub(crate) unknown_step: u64,
}

impl Geometry {
    /// `capacities`: of the volumes, one at least.
    pub(crate) fn new(capacities: &[u64], options: &Options) -> Result<Geometry, OpenFailure> {
        let small = |capacity: &u64| *capacity < CAPACITY_MIN_BYTES;
        if let Some(volume) = capacities.iter().position(small) {
            let capacity = capacities[volume];
            let min = CAPACITY_MIN_BYTES;
            return Err(OpenError::CapacityTooSmall { capacity, min }.at(volume));
        }
        // All open segments may be on the smallest volume, a large body on the largest.
        let smallest = capacities.iter().copied().min().unwrap_or(0);
        let largest = capacities.iter().copied().max().unwrap_or(0);
        let segment_len = round_up(match options.segment_len {
            Some(len) => len.max(SEGMENT_LEN_FLOOR),
            None => default_segment_len(smallest, options.shards as u64),
        });
        let small_len = round_up((segment_len / SMALL_PARTS).clamp(SMALL_LEN_MIN, SMALL_LEN_MAX));
        let step = round_up((segment_len / STEP_PARTS).clamp(STEP_MIN_BYTES, STEP_MAX_BYTES));
        Ok(Geometry {
            segment_len,
            step,
            unknown_step: step.min(UNKNOWN_STEP_BYTES),
            area_len: round_up((segment_len / AREA_PARTS).clamp(AREA_LEN_MIN, AREA_LEN_MAX)),
            small_len,
            small_step: round_up(small_len / SMALL_STEP_PARTS),
            solo_min: options.solo_min.unwrap_or(default_solo_min(capacities)),
            withheld_len: options.withheld_len,
            unknown_len_max: UNKNOWN_LEN_MAX.min(largest),
        })
    }

    /// Whether a body gets a segment of its own. A quarter of a segment at most is lost at the
    /// end of a shared one, where an entry always fits one page.
    pub(crate) fn solo(&self, len: Option<u64>) -> bool {
        len.is_none_or(|len| {
            let entry_len = records_page_len(BodyEntry::encoded_max(len));
            len >= self.solo_min || len > self.segment_len / 4 || entry_len > PAGE_LEN
        })
    }
}

/// So many segments a store of these capacities may come to, each a file that stays open: if it
/// is full of bodies that just have their own. Most have far fewer.
pub fn segments_max(capacities: &[u64], solo_min: Option<u64>) -> u64 {
    let solo_min = solo_min.unwrap_or(default_solo_min(capacities)).max(1);
    let of = |capacity: &u64| capacity / solo_min;
    capacities.iter().map(of).fold(0, u64::saturating_add)
}

fn default_solo_min(capacities: &[u64]) -> u64 {
    let capacity: u64 = capacities
        .iter()
        .fold(0, |sum, len| sum.saturating_add(*len));
    (capacity / SOLOS_MAX).clamp(SOLO_MIN, SOLO_MIN_LARGE)
}

fn default_segment_len(capacity: u64, shards: u64) -> u64 {
    let len = if capacity < CAPACITY_SMALL_BYTES {
        SEGMENT_LEN_SMALL
    } else {
        SEGMENT_LEN
    };
    let share = capacity / OPEN_PARTS / shards.max(1) / PAGE_LEN * PAGE_LEN;
    len.min(share).max(SEGMENT_LEN_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn geometry(capacity: u64, shards: usize) -> Geometry {
        Geometry::new(&[capacity], &Options::new(shards, [1; 16])).expect("large enough")
    }

    #[test]
    fn large_stores_do_not_have_more_files_than_a_process_may_open() {
        assert_eq!(
            segments_max(&[1 << 40, 1 << 30], None),
            (1 << 18) + (1 << 8)
        );
        assert_eq!(segments_max(&[1 << 40], Some(1 << 30)), 1 << 10);
        assert_eq!(geometry(64 << 20, 1).solo_min, 4 << 20);
        assert_eq!(geometry(4 << 40, 1).solo_min, 4 << 20);
        assert_eq!(geometry(12 << 40, 1).solo_min, 12 << 20);
        assert_eq!(geometry(100 << 40, 1).solo_min, 32 << 20);
    }

    #[test]
    fn open_segments_stay_a_small_part_of_the_store() {
        assert_eq!(geometry(2 << 40, 16).segment_len, 1 << 30);
        assert_eq!(geometry(400 << 30, 16).segment_len, 256 << 20);
        assert_eq!(geometry(10 << 30, 16).segment_len, 32 << 20);
        assert_eq!(geometry(64 << 20, 2).segment_len, 8 << 20);
        for (capacity, shards) in [(1 << 30, 1), (100 << 30, 64), (4 << 40, 8)] {
            let geometry = geometry(capacity, shards);
            let open = geometry.segment_len * shards as u64;
            assert!(open <= capacity / OPEN_PARTS || geometry.segment_len == SEGMENT_LEN_MIN);
            assert!(geometry.step <= geometry.segment_len);
        }
    }

    #[test]
    fn large_and_unknown_bodies_are_alone() {
        let geometry = geometry(2 << 40, 4);
        assert!(geometry.solo(None));
        assert!(geometry.solo(Some(4 << 20)));
        assert!(!geometry.solo(Some((4 << 20) - 1)));
        let tiny = self::geometry(64 << 20, 1);
        assert!(tiny.solo(Some((2 << 20) + 1)));
    }

    #[test]
    fn too_small_a_store_is_refused() {
        let options = Options::new(1, [1; 16]);
        let failure = Geometry::new(&[1 << 30, 1000], &options).expect_err("too small");
        assert_eq!(failure.volume, 1);
        assert!(matches!(
            failure.error,
            OpenError::CapacityTooSmall { capacity: 1000, .. }
        ));
    }
}
