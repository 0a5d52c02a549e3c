//! Stores of several volumes: which of them make up the store, and what survives one of them.

mod drives;
mod machine;

use drives::{
    ALL_FAILS, BODY_LEN, CAPACITY, GONE, Machine, NO_FAULTS, NOW, Opened, READ_ONLY, content,
    digest, key, process, world,
};
use entrepot_storage::disk::sim::Faults;
use entrepot_storage::{
    BringBackError, FillSpec, ForgetKey, OpenError, Refusal, TagKeyRef, VolumeState,
};

const ALL_READS_FAIL: Faults = Faults {
    read: 1000,
    ..NO_FAULTS
};
const HANGS: Faults = Faults {
    hangs: true,
    ..NO_FAULTS
};

fn small_bytes(machine: &Machine, drive: usize) -> u64 {
    let files = machine.world.drive_files(drive);
    let small = files.iter().filter(|(name, _)| name.ends_with(".rec"));
    small.map(|(_, len)| len).sum()
}

fn bodies(machine: &Machine, drive: usize) -> usize {
    let files = machine.world.drive_files(drive);
    files
        .iter()
        .filter(|(name, _)| name.ends_with(".seg"))
        .count()
}

#[test]
fn bodies_spread_and_small_records_are_everywhere() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..6).await;
        opened.tag("t", 0, NOW).await;
        opened.forget(5).await;
        assert!(bodies(&machine, 0) >= 2 && bodies(&machine, 1) >= 2);
        assert_eq!(opened.store.usage().capacity, 2 * CAPACITY);
    });
    // In another order: numbers are of no account on the disk.
    process(&world, |machine| async move {
        let opened = machine.open(&[1, 0], 2).await;
        assert_eq!(opened.present(0..6), [0, 1, 2, 3, 4]);
        assert!(opened.tagged("t"));
        assert!(opened.recovered.emptied.is_empty() && opened.recovered.away.is_empty());
    });
    // Without one of them: the tag and the purge are on the other.
    process(&world, |machine| async move {
        let opened = machine.open(&[1], 3).await;
        assert!(opened.tagged("t") && !opened.has(5));
        assert!(!opened.present(0..5).is_empty());
    });
    // What comes back had been opened without it: it knows no purges of that time.
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 4).await;
        assert_eq!(opened.recovered.emptied, [0]);
        assert_eq!(bodies(&machine, 0), 0);
        assert!(opened.tagged("t"));
    });
}

#[test]
fn a_volume_that_cannot_be_read_is_away_and_belongs_again_later() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..6).await;
    });
    world.set_drive_faults(1, ALL_READS_FAIL);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert_eq!(opened.recovered.away, [1]);
        assert_eq!(opened.states(), [VolumeState::Online, VolumeState::Offline]);
        (0..6).for_each(|number| {
            let _ = opened.has(number);
        });
        for number in 0..6 {
            opened.forget(number).await;
        }
        opened.put([9]).await;
    });
    world.set_drive_faults(1, NO_FAULTS);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 3).await;
        assert!(opened.recovered.away.is_empty() && opened.recovered.emptied.is_empty());
        assert_eq!(opened.present(0..10), [9], "purged while it was away");
        assert!(opened.recovered.forgotten > 0, "it had some of them");
    });
}

#[test]
fn a_new_store_is_not_made_while_a_volume_is_away() {
    let world = world(2);
    world.set_drive_faults(1, GONE);
    process(&world, |machine| async move {
        let failure = machine.try_open(&[0, 1], 1).await.map(|_| ());
        let failure = failure.expect_err("refused");
        assert_eq!(failure.volume, 1);
        assert!(matches!(failure.error, OpenError::AwayFromNew(_)));
        let files = machine.world.drive_files(0);
        assert!(!files.iter().any(|(name, _)| name == "STORE"), "{files:?}");
    });
    world.set_drive_faults(1, NO_FAULTS);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert!(opened.recovered.away.is_empty());
    });
}

#[test]
fn two_that_were_opened_apart_do_not_mix() {
    let world = world(2);
    process(&world, |machine| async move {
        machine.open(&[0, 1], 1).await.put(0..6).await;
    });
    process(&world, |machine| async move {
        machine.open(&[0], 2).await.put([7]).await;
    });
    process(&world, |machine| async move {
        machine.open(&[1], 3).await.put([8]).await;
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 4).await;
        assert_eq!(opened.recovered.emptied.len(), 1);
        let both = opened.has(7) && opened.has(8);
        assert!(!both && (opened.has(7) || opened.has(8)));
    });
}

#[test]
fn another_store_is_refused_before_anything_is_changed() {
    let world = world(2);
    for (drive, random) in [(0, 1), (1, 9)] {
        process(&world, move |machine| async move {
            machine.open(&[drive], random).await.put([random]).await;
        });
    }
    let before = (world.drive_files(0), world.drive_files(1));
    process(&world, |machine| async move {
        let failure = machine.try_open(&[0, 1], 3).await.map(|_| ());
        let failure = failure.expect_err("two stores");
        assert_eq!(failure.volume, 1);
        assert!(matches!(failure.error, OpenError::AnotherStore));
    });
    assert_eq!((world.drive_files(0), world.drive_files(1)), before);
    process(&world, |machine| async move {
        let opened = machine.open(&[1], 4).await;
        assert!(opened.has(9));
        assert_eq!(opened.recovered.generation, 2, "not even counted");
    });
}

#[test]
fn the_same_place_twice_is_locked() {
    let world = world(1);
    process(&world, |machine| async move {
        let failure = machine.try_open(&[0, 0], 1).await.map(|_| ());
        let failure = failure.expect_err("one place");
        assert_eq!(failure.volume, 1);
        assert!(matches!(failure.error, OpenError::Locked));
        let none = machine.try_open(&[], 1).await.map(|_| ());
        assert!(matches!(
            none.expect_err("no volume").error,
            OpenError::VolumeCount { count: 0, .. }
        ));
    });
}

#[test]
fn a_checkpoint_bounds_the_small_log_and_keeps_what_lives() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..4).await;
        let mut largest = 0;
        for round in 0..600 {
            opened.tag("t", 0, NOW + round * 100).await;
            opened.forget(3).await;
            opened.commit().await;
            opened.writer.maintain(NOW + round).await;
            opened.writer.maintain(NOW + round).await;
            largest = largest.max(small_bytes(&machine, 0));
        }
        // 64 MiB / 64, and a segment or two on top.
        assert!(largest < 3 << 20, "{largest}");
        assert!(small_bytes(&machine, 1) < 3 << 20);
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert_eq!(opened.present(0..4), [0, 1, 2]);
        let tag = opened.store.tag(TagKeyRef::from(&key("t")));
        assert_eq!(tag.map(|tag| tag.checked), Some(NOW + 599 * 100));
    });
}

/// Makes the second drive fail until the store gives it up.
async fn fail_second(machine: &Machine, opened: &Opened) {
    machine.world.set_drive_faults(1, ALL_FAILS);
    for number in 100..130 {
        let spec = FillSpec {
            digest: digest(number),
            length: Some(BODY_LEN as u64),
            media_type: None,
        };
        if let Ok(mut fill) = opened.writer.fill(spec).await {
            let _ = fill.write(content(number)).await;
            let _ = fill.finish(NOW).await;
        }
        let _ = opened.writer.commit(NOW).await;
        opened.writer.maintain(NOW).await;
    }
    assert_eq!(opened.states(), [VolumeState::Online, VolumeState::Offline]);
}

#[test]
fn a_disk_that_keeps_failing_is_offline_and_comes_back() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..8).await;
        opened.tag("before", 0, NOW).await;
        opened.commit().await;
        let held = (0..8).filter_map(|n| opened.store.body(&digest(n)));
        let held: Vec<_> = held.collect();
        fail_second(&machine, &opened).await;
        let left = opened.present(0..8);
        assert!(!left.is_empty() && left.len() < 8, "{left:?}");
        assert!(held.iter().all(|body| !body.lease.revoked()));
        // Purges and new bodies go on, on the other one.
        opened.forget(0).await;
        opened.forget(1).await;
        opened.put([50]).await;
        opened.tag("meanwhile", 50, NOW).await;
        opened.commit().await;
        let busy = opened.writer.bring_back(0).await;
        assert!(matches!(busy, Err(BringBackError::Online)));
        let early = opened.writer.bring_back(1).await;
        assert!(matches!(early, Err(BringBackError::Volume(_))), "{early:?}");

        machine.world.set_drive_faults(1, NO_FAULTS);
        opened.writer.bring_back(1).await.expect("repaired");
        assert_eq!(opened.present(0..8), [2, 3, 4, 5, 6, 7]);
        assert!(
            opened
                .store
                .volumes()
                .iter()
                .all(|v| v.state == VolumeState::Online)
        );
        for _ in 0..3 {
            opened.writer.maintain(NOW + 60).await;
        }
    });
    // The one that was away has everything by now: alone it serves what it has.
    process(&world, |machine| async move {
        let opened = machine.open(&[1], 2).await;
        assert!(opened.tagged("before") && opened.tagged("meanwhile"));
        assert!(!opened.has(0) && !opened.has(1));
        assert!(!opened.present(2..8).is_empty());
    });
}

#[test]
fn what_was_purged_while_a_disk_was_offline_stays_purged_after_a_crash() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..8).await;
        fail_second(&machine, &opened).await;
        for number in 0..8 {
            opened.forget(number).await;
        }
    });
    world.set_drive_faults(1, NO_FAULTS);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert!(opened.present(0..8).is_empty());
        assert!(opened.recovered.forgotten > 0);
    });
}

#[test]
fn the_last_volume_stays_online() {
    let world = world(1);
    process(&world, |machine| async move {
        let opened = machine.open(&[0], 1).await;
        opened.put(0..4).await;
        opened.writer.seal_all(NOW).await.expect("sealed");
        machine.world.set_drive_faults(0, ALL_FAILS);
        for number in 10..20 {
            let key = ForgetKey::Body(digest(number));
            assert!(opened.writer.forget(key).await.is_err());
            opened.writer.maintain(NOW).await;
        }
        assert_eq!(opened.present(0..4), [0, 1, 2, 3]);
        machine.world.set_drive_faults(0, NO_FAULTS);
        opened.put([4]).await;
    });
}

#[test]
fn a_volume_that_was_away_at_the_start_comes_back_without_a_restart() {
    let world = world(2);
    process(&world, |machine| async move {
        machine.open(&[0, 1], 1).await.put(0..8).await;
    });
    world.set_drive_faults(1, ALL_READS_FAIL);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert_eq!(opened.recovered.away, [1]);
        opened.forget(0).await;
        machine.world.set_drive_faults(1, NO_FAULTS);
        let back = opened.writer.bring_back(1).await.expect("readable again");
        assert!(back.bodies > 0 && back.unreadable.is_empty());
        assert_eq!(opened.present(0..8), [1, 2, 3, 4, 5, 6, 7]);
    });
}

#[test]
fn a_read_only_file_system_is_offline_at_once() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..4).await;
        machine.world.set_drive_faults(1, READ_ONLY);
        opened.forget(3).await;
        assert_eq!(opened.states(), [VolumeState::Online, VolumeState::Offline]);
        opened.writer.maintain(NOW).await;
        assert!(!opened.has(3));
        opened.put([7]).await;
    });
}

#[test]
fn who_asks_a_disk_for_room_in_vain_takes_it_offline() {
    for (faults, staging) in [(HANGS, false), (HANGS, true), (READ_ONLY, true)] {
        let world = world(2);
        process(&world, move |machine| async move {
            let opened = machine.open(&[0, 1], 1).await;
            // The emptier one is asked first.
            opened.put(0..1).await;
            let asked = (0..2).max_by_key(|drive| bodies(&machine, 1 - drive));
            let asked = asked.expect("one of two");
            machine.world.set_drive_faults(asked, faults);
            let spec = FillSpec {
                digest: digest(9),
                length: Some(BODY_LEN as u64),
                media_type: None,
            };
            let fill = match staging {
                true => opened.writer.staging(spec).await,
                false => opened.writer.fill(spec).await,
            };
            fill.expect("the other disk takes it");
            assert_eq!(opened.states()[asked], VolumeState::Offline);
            assert_eq!(opened.states()[1 - asked], VolumeState::Online);
        });
    }
}

#[test]
fn a_disk_that_does_not_answer_is_offline_at_once_and_keeps_its_bodies() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..8).await;
        machine.world.set_drive_faults(1, HANGS);
        // Asked of a body there it says nothing; of the other disk's it is not asked.
        let mut number = 0;
        while opened.states()[1] == VolumeState::Online {
            opened.writer.suspect(&digest(number)).await;
            number += 1;
        }
        opened.writer.maintain(NOW).await;
        // The other has all that is durable from now on.
        opened.tag("meanwhile", 0, NOW).await;
        opened.forget(7).await;
        machine.world.set_drive_faults(1, NO_FAULTS);
        opened.writer.bring_back(1).await.expect("it answers again");
        assert_eq!(opened.present(0..8), [0, 1, 2, 3, 4, 5, 6]);
    });
}

/// The second volume lacks a purge when the first, which has them all, goes offline. Nothing is
/// durable from then on, and what was durable is on the first: it still counts as complete.
#[test]
fn the_last_complete_volume_stays_complete_when_it_goes_offline() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..6).await;
        opened.falls_behind(&machine).await;
        machine.world.set_drive_faults(0, READ_ONLY);
        let purge = opened.writer.forget(ForgetKey::Body(digest(4))).await;
        assert!(purge.is_err(), "only one that lacks some has this purge");
        assert_eq!(opened.states(), [VolumeState::Offline, VolumeState::Online]);
        // The superblock of the second says so; its checkpoint has begun and not ended.
        opened.writer.maintain(NOW).await;
    });
    world.set_drive_faults(0, NO_FAULTS);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert!(opened.recovered.emptied.is_empty(), "it knows all purges");
        assert_eq!(opened.present(0..4), [0, 1, 2, 3]);
        assert!(!opened.has(5));
    });
}

#[test]
fn bodies_that_cannot_be_read_count_against_their_disk() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..8).await;
        machine.world.set_drive_faults(1, ALL_READS_FAIL);
        for number in 0..8 {
            opened.writer.suspect(&digest(number)).await;
        }
        opened.writer.maintain(NOW).await;
        assert_eq!(opened.states(), [VolumeState::Online, VolumeState::Offline]);
        assert!(!opened.present(0..8).is_empty(), "the other disk is well");
    });
}

#[test]
fn too_many_open_files_are_no_failing_disk() {
    let world = world(2);
    let files = |files| Faults { files, ..NO_FAULTS };
    process(&world, move |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..6).await;
        machine.world.set_faults(files(1000));
        for number in 10..20 {
            let spec = FillSpec {
                digest: digest(number),
                length: Some(BODY_LEN as u64),
                media_type: None,
            };
            let refused = opened.writer.fill(spec).await.map(|_| ());
            assert_eq!(refused, Err(Refusal::Full));
        }
        assert_eq!(opened.states(), [VolumeState::Online; 2]);
        machine.world.set_faults(NO_FAULTS);
        opened.put(0..7).await;
    });
    for generation in 2..40 {
        world.set_faults(files(80));
        process(&world, move |machine| async move {
            match machine.try_open(&[0, 1], generation).await {
                Ok(opened) => assert!(opened.recovered.away.is_empty()),
                Err(failure) => {
                    assert!(
                        matches!(failure.error, OpenError::TooManyFiles(_)),
                        "{failure}"
                    );
                }
            }
        });
    }
    world.set_faults(NO_FAULTS);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 40).await;
        assert_eq!(opened.present(0..7), [0, 1, 2, 3, 4, 5, 6]);
    });
}
