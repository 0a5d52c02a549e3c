//! Which of the volumes that are found make up the store: decided before anything is changed.
//!
//! The newest superblock knows the members and the last opens. A volume belongs if it is a
//! member and the open that it served in last is among those; if it is not, it served without the
//! others, so its records say nothing that can be compared with theirs: it is emptied and joins
//! as a new one. A volume of another store is never touched.

use crate::digest::Digest;
use crate::page::Uuid;
use crate::store::{OpenError, OpenFailure};
use crate::superblock::{Member, Superblock};

/// What a volume is to the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Standing {
    /// One of its volumes, and what is on it counts.
    Belongs,
    /// Of this store, but went its own way.
    Diverged,
    /// Nothing is on it yet.
    New,
    /// It can't be read: whether it belongs is not known.
    Away,
}

/// What was found at the place of a volume.
pub(crate) enum Found<'s> {
    Superblock(&'s Superblock),
    Empty,
    Away,
}

#[derive(Debug)]
pub(crate) struct Membership {
    pub(crate) standings: Vec<Standing>,
    /// The volume with the newest superblock; none of a new store.
    pub(crate) newest: Option<usize>,
    /// Members that were not found, but may be at a place that can't be read now.
    pub(crate) missing: Vec<Member>,
}

pub(crate) fn decide(found: &[Found<'_>]) -> Result<Membership, OpenFailure> {
    let mut newest: Option<(usize, &Superblock)> = None;
    for (number, found) in found.iter().enumerate() {
        let Found::Superblock(superblock) = found else {
            continue;
        };
        match newest {
            Some((_, other)) if other.uuid != superblock.uuid => {
                return Err(OpenError::AnotherStore.at(number));
            }
            Some((_, other)) if other.age() >= superblock.age() => {}
            _ => newest = Some((number, superblock)),
        }
    }
    let known = newest.map(|(_, superblock)| superblock);
    let mut seen = Vec::new();
    let standings = found.iter().map(|found| match found {
        Found::Empty => Standing::New,
        Found::Away => Standing::Away,
        // A copy of a volume is not that volume.
        Found::Superblock(superblock) if seen.contains(&superblock.volume) => Standing::Diverged,
        Found::Superblock(superblock) if known.is_some_and(|known| belongs(superblock, known)) => {
            seen.push(superblock.volume);
            Standing::Belongs
        }
        Found::Superblock(_) => Standing::Diverged,
    });
    let mut standings: Vec<Standing> = standings.collect();
    let complete = |id: &Uuid| {
        let known = known.map_or(&[][..], |known| &known.members);
        known
            .iter()
            .any(|member| member.id == *id && member.complete)
    };
    if !seen.iter().any(complete) {
        // Purges that nobody here knows of may have killed what is on these.
        for standing in &mut standings {
            if *standing == Standing::Belongs {
                *standing = Standing::Diverged;
            }
        }
    }
    let away = standings.contains(&Standing::Away);
    let missing = known
        .filter(|_| away)
        .map_or(&[][..], |known| &known.members)
        .iter()
        .filter(|member| !seen.contains(&member.id))
        .map(|member| member.without_all())
        .collect();
    Ok(Membership {
        standings,
        newest: newest.map(|(number, _)| number),
        missing,
    })
}

/// Whether what is on the volume counts in the store that `newest` knows.
pub(crate) fn belongs(superblock: &Superblock, newest: &Superblock) -> bool {
    let member = |member: &Member| member.id == superblock.volume;
    newest.members.iter().any(member)
        && superblock
            .served()
            .is_some_and(|open| newest.opens.contains(&open))
}

/// Different for every open if `random` is.
pub(crate) fn stamp(random: &Uuid, generation: u64) -> u64 {
    u64::from_le_bytes(
        derived(random, generation, 0)[..8]
            .try_into()
            .expect("8 bytes"),
    )
}

/// The id of a volume that joins in this generation.
pub(crate) fn new_id(random: &Uuid, generation: u64, number: usize) -> Uuid {
    derived(random, generation, 1 + number as u64)
}

fn derived(random: &Uuid, generation: u64, number: u64) -> Uuid {
    let mut bytes = random.to_vec();
    bytes.extend(generation.to_le_bytes());
    bytes.extend(number.to_le_bytes());
    let digest = Digest::sha256(&bytes);
    digest.as_bytes()[..16].try_into().expect("16 of 32 bytes")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::superblock::Opening;

    /// Of a store with volumes 1 and 2, opened in `opens`, which are {generation, stamp}.
    fn superblock(volume: u8, opens: &[(u64, u64)]) -> Superblock {
        let member = |id| Member {
            id: [id; 16],
            complete: true,
        };
        let opening = |(generation, stamp): &(u64, u64)| Opening {
            generation: *generation,
            stamp: *stamp,
        };
        Superblock {
            uuid: [9; 16],
            generation: opens.last().map_or(0, |open| open.0),
            settled: 0,
            created: 0,
            capacity: 0,
            segment_len: 0,
            change: 0,
            volume: [volume; 16],
            members: vec![member(1), member(2)],
            opens: opens.iter().map(opening).collect(),
            unserved: 0,
        }
    }

    fn standings(found: &[Found<'_>]) -> Vec<Standing> {
        decide(found).expect("one store").standings
    }

    #[test]
    fn a_volume_that_missed_opens_belongs_and_one_opened_apart_does_not() {
        use Standing::{Belongs, Diverged};
        let newest = superblock(1, &[(1, 5), (2, 6), (3, 7)]);
        for (opens, standing) in [
            (&[(1, 5), (2, 6), (3, 7)][..], Belongs),
            (&[(1, 5)], Belongs),
            (&[(1, 5), (2, 8)], Diverged),
            (&[(1, 5), (2, 6), (3, 8)], Diverged),
            (&[(0, 4)], Diverged),
        ] {
            let other = superblock(2, opens);
            let found = [Found::Superblock(&newest), Found::Superblock(&other)];
            assert_eq!(standings(&found), [Belongs, standing], "{opens:?}");
        }
        let stranger = superblock(3, &[(1, 5), (2, 6)]);
        let found = [Found::Superblock(&stranger), Found::Superblock(&newest)];
        assert_eq!(standings(&found), [Diverged, Belongs]);
    }

    #[test]
    fn a_copy_of_a_volume_is_emptied() {
        let volume = superblock(1, &[(1, 5)]);
        let found = [Found::Superblock(&volume), Found::Superblock(&volume)];
        assert_eq!(standings(&found), [Standing::Belongs, Standing::Diverged]);
    }

    #[test]
    fn another_store_is_named_and_nothing_is_decided() {
        let ours = superblock(1, &[(1, 5)]);
        let mut theirs = superblock(2, &[(1, 5)]);
        theirs.uuid = [8; 16];
        let found = [
            Found::Empty,
            Found::Superblock(&ours),
            Found::Superblock(&theirs),
        ];
        let failure = decide(&found).expect_err("two stores");
        assert_eq!(failure.volume, 2);
        assert!(matches!(failure.error, OpenError::AnotherStore));
    }

    #[test]
    fn a_missing_member_is_kept_only_while_a_volume_is_away() {
        let known = superblock(1, &[(1, 5)]);
        let away = [Found::Superblock(&known), Found::Away];
        let membership = decide(&away).expect("one store");
        assert_eq!(membership.missing, [known.members[1].without_all()]);
        let gone = [Found::Superblock(&known), Found::Empty];
        let membership = decide(&gone).expect("one store");
        assert_eq!(membership.standings, [Standing::Belongs, Standing::New]);
        assert!(membership.missing.is_empty());
        assert_eq!(decide(&[Found::Empty]).expect("new").newest, None);
    }

    #[test]
    fn without_one_that_has_all_purges_nothing_counts() {
        let mut known = superblock(1, &[(1, 5)]);
        known.members[0].complete = false;
        let other = superblock(2, &[(1, 5)]);
        let both = [Found::Superblock(&known), Found::Superblock(&other)];
        assert_eq!(standings(&both), [Standing::Belongs, Standing::Belongs]);
        let alone = [Found::Superblock(&known), Found::Away];
        assert_eq!(standings(&alone), [Standing::Diverged, Standing::Away]);
    }

    /// Noted one open more, and ended before it served.
    fn cut_off(mut superblock: Superblock, generation: u64, stamp: u64) -> Superblock {
        superblock.note(Opening { generation, stamp });
        superblock
    }

    #[test]
    fn starts_that_did_not_serve_part_no_volumes() {
        use Standing::Belongs;
        let (one, two) = (superblock(1, &[(1, 5)]), superblock(2, &[(1, 5)]));
        let one = cut_off(one, 2, 6);
        let two = cut_off(cut_off(two, 2, 7), 3, 8);
        let both = [Found::Superblock(&one), Found::Superblock(&two)];
        let membership = decide(&both).expect("one store");
        assert_eq!(membership.standings, [Belongs, Belongs]);
        assert_eq!(membership.newest, Some(1));
    }

    #[test]
    fn what_served_is_newer_than_any_start_that_did_not() {
        use Standing::Belongs;
        let idle = cut_off(cut_off(superblock(1, &[(1, 5)]), 2, 6), 3, 7);
        let served = superblock(2, &[(1, 5), (2, 8)]);
        let both = [Found::Superblock(&idle), Found::Superblock(&served)];
        let membership = decide(&both).expect("one store");
        assert_eq!(membership.standings, [Belongs, Belongs]);
        assert_eq!(membership.newest, Some(1));
    }

    #[test]
    fn a_start_cut_off_when_one_volume_had_noted_that_it_serves_parts_none() {
        use Standing::Belongs;
        let noted = superblock(1, &[(1, 5), (2, 6)]);
        let mut alone = cut_off(cut_off(superblock(2, &[(1, 5)]), 2, 6), 3, 7);
        alone.unserved = 0;
        let both = [Found::Superblock(&noted), Found::Superblock(&alone)];
        let membership = decide(&both).expect("one store");
        assert_eq!(membership.standings, [Belongs, Belongs]);
        assert_eq!(membership.newest, Some(1));
    }

    #[test]
    fn stamps_and_ids_differ() {
        assert_ne!(stamp(&[1; 16], 1), stamp(&[2; 16], 1));
        assert_ne!(new_id(&[1; 16], 1, 0), new_id(&[1; 16], 1, 1));
    }
}
