//! Small records of stores with several volumes: which volume may speak for the others, and what
//! stays purged when they come and go.

mod drives;
mod machine;

use drives::{
    ALL_FAILS, GONE, Machine, NO_FAULTS, NOW, Opened, READ_ONLY, content, digest, process, world,
};
use entrepot_storage::disk::sim::Faults;
use entrepot_storage::{Digest, Disk, ForgetKey, VolumeState};

/// Several of these share a segment.
fn little(number: u8) -> Vec<u8> {
    content(number)[..5000].to_vec()
}

impl Machine {
    /// All files of one drive are on the other then, and nothing else.
    async fn copy(&self, from: usize, to: usize) {
        let (from, to) = (self.disk(from), self.disk(to));
        for name in to.list().await.expect("there") {
            to.unlink(&name).await.expect("removed");
        }
        for name in from.list().await.expect("there") {
            let (file, len) = from.open(&name).await.expect("there");
            let bytes = from.read(&file, 0, len as usize).await.expect("read");
            let copy = to.create(&name, len).await.expect("room");
            to.write(&copy, 0, bytes.into()).await.expect("written");
            to.sync(&copy).await.expect("synced");
        }
        to.sync_dir().await.expect("synced");
    }
}

impl Opened {
    async fn put_little(&self, numbers: impl IntoIterator<Item = u8>) {
        self.put_bodies(numbers.into_iter().map(little)).await;
    }

    async fn forget_little(&self, number: u8) {
        let key = ForgetKey::Body(Digest::sha256(&little(number)));
        self.writer.forget(key).await.expect("durable");
    }

    fn present_little(&self) -> Vec<u8> {
        let there = |n: &u8| self.store.body(&Digest::sha256(&little(*n))).is_some();
        (0..10).filter(there).collect()
    }

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
        opened.falls_behind(&machine).await;
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

/// The first volume, with all that the store ever had, is away while the other is new: a start
/// without it begins anew. Then it comes back, with purges that only it knows.
#[test]
fn purges_that_a_returning_volume_knows_stay() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0], 1).await;
        opened.put([0]).await;
        opened.put_little(0..4).await;
        for name in ["kept", "moved", "forgotten", "forgotten since"] {
            opened.tag(name, 0, NOW).await;
        }
        opened.commit().await;
        opened.forget_little(1).await;
        let tag = ForgetKey::Tag(drives::key("forgotten"));
        opened.writer.forget(tag).await.expect("durable");
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert_eq!(opened.present_little(), [0, 2, 3]);
    });
    world.set_drive_faults(0, GONE);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 3).await;
        assert_eq!(
            (&opened.recovered.away[..], &opened.recovered.emptied[..]),
            (&[0][..], &[1][..])
        );
        opened.put([9]).await;
        opened.tag("moved", 9, NOW + 100).await;
        opened.commit().await;
        let tag = ForgetKey::Tag(drives::key("forgotten since"));
        opened.writer.forget(tag).await.expect("durable");
        machine.world.set_drive_faults(0, NO_FAULTS);
        opened.writer.bring_back(0).await.expect("there again");
        assert_eq!(opened.present_little(), [0, 2, 3]);
        opened.settle().await;
    });
    for alone in [false, true] {
        process(&world, move |machine| async move {
            let drives = if alone { &[1][..] } else { &[0, 1] };
            let opened = machine.open(drives, 4 + u8::from(alone)).await;
            let there = opened.present_little();
            assert_eq!(there, if alone { vec![] } else { vec![0, 2, 3] });
            assert!(opened.tagged("kept"), "on both volumes by now");
            assert!(!opened.tagged("forgotten") && !opened.tagged("forgotten since"));
            let key = drives::key("moved");
            let moved = opened.store.tag(&key).expect("there");
            assert_eq!(moved.digest, digest(9), "it had an older one");
        });
    }
}

/// What is in a segment that cannot be read when its volume comes back is not known: purges of
/// bodies that may be in it are kept.
#[test]
fn purges_of_what_could_not_be_read_stay() {
    let world = world(2);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 1).await;
        opened.put(0..8).await;
        opened.writer.seal_all(NOW).await.expect("sealed");
        let mut unreadable = Vec::new();
        while unreadable.is_empty() {
            machine.world.set_drive_faults(1, READ_ONLY);
            opened.forget(20).await;
            opened.settle().await;
            let badly = Faults {
                read: 150,
                ..NO_FAULTS
            };
            machine.world.set_drive_faults(1, badly);
            if let Ok(brought) = opened.writer.bring_back(1).await {
                unreadable = brought.unreadable;
            }
        }
        machine.world.set_drive_faults(1, NO_FAULTS);
        assert!(opened.present(0..8).len() < 8);
        for number in 0..8 {
            opened.forget(number).await;
        }
        // Until the small log was written anew.
        for round in 0..600 {
            opened.tag("t", 0, NOW + round * 100).await;
            opened.forget(20).await;
            opened.commit().await;
            opened.writer.maintain(NOW + round).await;
        }
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 2).await;
        assert!(opened.present(0..8).is_empty());
    });
}

/// Somebody copied the files of one volume to the place of another.
#[test]
fn a_copy_of_a_volume_does_not_come_back_as_another() {
    let world = world(2);
    process(&world, |machine| async move {
        machine.open(&[0], 1).await.put(0..4).await;
    });
    process(&world, |machine| async move {
        machine.open(&[0, 1], 2).await.settle().await;
    });
    world.set_drive_faults(1, GONE);
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 3).await;
        machine.world.set_drive_faults(1, NO_FAULTS);
        machine.copy(0, 1).await;
        let brought = opened.writer.bring_back(1).await.expect("emptied");
        assert_eq!(brought.bodies, 0);
        opened.settle().await;
    });
    process(&world, |machine| async move {
        let opened = machine.open(&[0, 1], 4).await;
        assert!(
            opened.recovered.emptied.is_empty(),
            "two volumes of one store"
        );
        assert_eq!(opened.present(0..4), [0, 1, 2, 3]);
    });
}
