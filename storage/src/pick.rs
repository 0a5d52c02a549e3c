//! Which segments to compact: pure functions of what is known of them.
//!
//! When room is needed, greedily those with the least live bytes; when there is time, by
//! cost-benefit (Rosenblum and Ousterhout, LFS, §3.5), which lets young segments decay first.

use crate::page::PAGE_LEN;
use crate::survivor;

/// Segments with more live bytes than this, in per cent of their file, cost more than they give.
pub(crate) const LIVE_PERCENT_MAX: u64 = 90;
/// Of a commit entry, usually.
const ENTRY_LEN: u64 = 256;
/// Header, commit area, footer and trailer, less what the entries take of them.
const OWN_LEN: u64 = 5 * PAGE_LEN;
/// Victims of one job: bounds the files it holds open.
const VICTIMS_MAX: usize = 64;

/// A sealed segment of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub segment: u64,
    /// Of its file, in bytes.
    pub len: u64,
    /// Bytes of live bodies with their headers and padding.
    pub live: u64,
    /// Live bodies.
    pub bodies: u64,
    /// Segments made after it.
    pub age: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Room, now: the most bytes for the least copying.
    Urgent,
    /// None: segments that will not empty themselves.
    Idle,
}

impl Candidate {
    /// Bytes of a copy, about: each body has two entries.
    fn copied(&self) -> u64 {
        self.live + self.bodies * 2 * ENTRY_LEN
    }

    /// Bytes that compacting it alone would win, about. A survivor segment wins nothing.
    pub(crate) fn dead(&self) -> u64 {
        self.len.saturating_sub(self.copied() + OWN_LEN)
    }

    fn worthwhile(&self) -> bool {
        self.dead() * 100 > self.len * (100 - LIVE_PERCENT_MAX)
    }

    /// Benefit over cost, scaled to whole numbers: `(1 - u) * age / (1 + u)`.
    fn benefit(&self) -> u128 {
        let (copied, len) = (u128::from(self.copied()), u128::from(self.len));
        (len - copied.min(len)) * u128::from(self.age + 1) * 1_000_000 / (len + copied).max(1)
    }
}

/// How much one survivor segment may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// Bytes of copies.
    pub copied: u64,
    /// Bytes that can be taken from the budget for it: the most it may turn out to need.
    pub reserved: u64,
}

/// The segments whose live bodies go into one survivor segment, best first. None if nothing would
/// be won.
pub fn victims(candidates: &[Candidate], need: Need, room: Room) -> Vec<Candidate> {
    let mut order: Vec<Candidate> = candidates.to_vec();
    order.retain(Candidate::worthwhile);
    match need {
        // Shares as fractions of equal denominator, so that no rounding changes the order.
        Need::Urgent => order.sort_by(|a, b| {
            let share = |a: &Candidate, b: &Candidate| u128::from(a.copied()) * u128::from(b.len);
            share(a, b)
                .cmp(&share(b, a))
                .then(a.segment.cmp(&b.segment))
        }),
        Need::Idle => order.sort_by(|a, b| {
            let (a_benefit, b_benefit) = (a.benefit(), b.benefit());
            b_benefit.cmp(&a_benefit).then(a.segment.cmp(&b.segment))
        }),
    }
    fitting(order, room)
}

/// As many of these, in their order, as fit one survivor segment; the first may be larger.
pub(crate) fn fitting(order: Vec<Candidate>, room: Room) -> Vec<Candidate> {
    let mut taken = Vec::new();
    let (mut bodies, mut live, mut copied) = (0, 0, 0);
    for candidate in order {
        let (all_bodies, all_live) = (bodies + candidate.bodies, live + candidate.live);
        let all_copied = copied + candidate.copied();
        let fits = taken.is_empty() || all_copied <= room.copied;
        let reserved = survivor::len_max(all_bodies, all_live);
        if taken.len() < VICTIMS_MAX && fits && reserved <= room.reserved {
            (bodies, live, copied) = (all_bodies, all_live, all_copied);
            taken.push(candidate);
        }
    }
    taken
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn candidate(segment: u64, live: u64, age: u64) -> Candidate {
        Candidate {
            segment,
            len: 100 * MIB,
            live: live * MIB,
            bodies: 10,
            age,
        }
    }

    fn room(len: u64) -> Room {
        Room {
            copied: len,
            reserved: len,
        }
    }

    fn ids(victims: Vec<Candidate>) -> Vec<u64> {
        victims.into_iter().map(|victim| victim.segment).collect()
    }

    #[test]
    fn urgent_takes_the_least_live_share_first() {
        let half_as_long = Candidate {
            len: 50 * MIB,
            ..candidate(5, 20, 0)
        };
        let candidates = [
            candidate(1, 50, 0),
            candidate(2, 10, 0),
            candidate(3, 30, 9),
            half_as_long,
        ];
        assert_eq!(
            ids(victims(&candidates, Need::Urgent, room(1000 * MIB))),
            [2, 3, 5, 1]
        );
    }

    #[test]
    fn idle_prefers_age_and_emptiness_together() {
        let candidates = [
            candidate(1, 50, 1),
            candidate(2, 50, 100),
            candidate(3, 10, 1),
            candidate(4, 10, 100),
        ];
        assert_eq!(
            ids(victims(&candidates, Need::Idle, room(1000 * MIB))),
            [4, 2, 3, 1]
        );
    }

    #[test]
    fn what_is_nearly_full_of_live_bodies_stays() {
        for need in [Need::Urgent, Need::Idle] {
            assert!(victims(&[candidate(1, 90, 5)], need, room(1000 * MIB)).is_empty());
            assert!(victims(&[], need, room(1000 * MIB)).is_empty());
        }
        // Small bodies take more than their extents: 20,000 entries, twice.
        let small = Candidate {
            bodies: 20_000,
            ..candidate(1, 82, 5)
        };
        assert!(victims(&[small], Need::Urgent, room(1000 * MIB)).is_empty());
    }

    #[test]
    fn all_that_is_picked_fits_one_segment() {
        for count in [1, 7, 50, 200] {
            let candidates: Vec<Candidate> = (0..count)
                .map(|n| candidate(n, (n * 37) % 60, n % 11))
                .collect();
            for need in [Need::Urgent, Need::Idle] {
                for len in [0, MIB, 20 * MIB, 64 * MIB, 256 * MIB] {
                    let victims = victims(&candidates, need, room(len));
                    let (bodies, live) = victims
                        .iter()
                        .fold((0, 0), |(b, l), v| (b + v.bodies, l + v.live));
                    assert!(victims.is_empty() || survivor::len_max(bodies, live) <= len);
                    assert!(victims.len() <= VICTIMS_MAX);
                }
            }
        }
    }

    #[test]
    fn an_empty_one_costs_no_room() {
        let empty = Candidate {
            bodies: 0,
            ..candidate(1, 0, 0)
        };
        assert_eq!(ids(victims(&[empty], Need::Urgent, room(MIB))), [1]);
    }
}
