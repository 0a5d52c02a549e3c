//! Small records of stores with several volumes: which volume may speak for the others, and what
//! stays purged when they come and go.

mod drives;
mod machine;

use drives::{ALL_FAILS, GONE, NO_FAULTS, NOW, Opened, READ_ONLY, digest, process, world};
use entrepot_storage::{ForgetKey, VolumeState};

impl Opened {
    /// What is due is done, with time to try again what failed.
    async fn settle(&self) {
        for step in 0..40 {
            let _ = self.writer.commit(NOW + step).await;
            self.writer.maintain(NOW + step).await;
        }
    }
}

/// The second volume lacks a purge when the first, which has them all, goes for good. What is
/// written from then on waits until the second has all that is known.
#[test]
fn the_last_volume_becomes_complete_when_the_one_that_was_is_offline() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..6).await;
        opened.tag("t", 0, NOW).await;
        opened.commit().await;
        machine.world.set_drive_faults(1, ALL_FAILS);
        opened.forget(5).await;
        machine.world.set_drive_faults(1, NO_FAULTS);
        machine.world.set_drive_faults(0, READ_ONLY);
        let early = opened.writer.forget(ForgetKey::Body(digest(4))).await;
        assert!(early.is_err(), "no complete volume has it");
        assert_eq!(opened.states(), [VolumeState::Offline, VolumeState::Online]);
        opened.settle().await;
        assert_eq!(opened.writer.uncommitted(), 0);
        opened.forget(3).await;
        opened.put([7]).await;
    });
    world.set_drive_faults(0, GONE);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert!(opened.recovered.emptied.is_empty());
        assert!(opened.tagged("t"));
        assert!(opened.present(3..6).is_empty());
        assert!(opened.has(7));
    });
}

/// The second volume misses purges, and power is lost before any maintenance: by then the
/// superblock of the other says that it is not complete.
#[test]
fn what_a_volume_misses_is_known_before_a_purge_is_durable() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[1, 0], 1).await;
        opened.put(0..6).await;
        machine.world.set_drive_faults(1, ALL_FAILS);
        for number in 0..6 {
            opened.forget(number).await;
        }
        machine.world.set_drive_faults(1, NO_FAULTS);
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[1, 0], 2).await;
        assert!(opened.present(0..6).is_empty());
        opened.settle().await;
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[1], 3).await;
        assert!(
            opened.present(0..6).is_empty(),
            "alone, with what it missed"
        );
    });
}

/// Two volumes that were offline miss rounds of superblocks, each other ones. What the third has
/// written since must not pass for older than what it knew when it went.
#[test]
fn the_superblock_that_was_written_last_counts() {
    let world = world(3);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1, 2], 1).await;
        opened.put(0..9).await;
        machine.world.set_drive_faults(1, READ_ONLY);
        opened.forget(20).await;
        opened.settle().await;
        machine.world.set_drive_faults(2, READ_ONLY);
        opened.forget(21).await;
        opened.settle().await;
        let [online, offline] = [VolumeState::Online, VolumeState::Offline];
        assert_eq!(opened.states(), [online, offline, offline]);
        for volume in [1, 2] {
            machine.world.set_drive_faults(volume, NO_FAULTS);
            opened.writer.bring_back(volume).await.expect("repaired");
        }
        opened.settle().await;
        machine.world.set_drive_faults(0, READ_ONLY);
        for number in 0..9 {
            opened.forget(number).await;
        }
        assert_eq!(opened.states(), [offline, online, online]);
        opened.settle().await;
    });
    world.set_drive_faults(0, NO_FAULTS);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1, 2], 2).await;
        assert!(opened.recovered.emptied.is_empty());
        assert!(opened.present(0..9).is_empty());
        opened.settle().await;
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[0], 3).await;
        assert!(opened.present(0..9).is_empty(), "it has them all by now");
    });
}
