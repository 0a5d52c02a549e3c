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
