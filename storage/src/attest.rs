//! What the superblocks say of the volumes: which of them have every small record.
//!
//! A start believes the newest superblock that it finds, if only that of one volume. So a group that
//! did not reach a volume which was complete is durable only when all superblocks say that this is
//! so no more; where that can't be written the volume is offline. Where all volumes take all
//! records, nothing is written for that.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::disk::Disk;
use crate::store::Store;
use crate::superblock::Member;
use crate::wait::SharedGate;
use crate::writer::Shared;

#[derive(Default)]
pub(crate) struct Attest {
    /// Superblocks are written by one task of all writers at a time.
    turn: SharedGate,
    /// Superblocks written since the start: each has its own number, so that of two the one that
    /// was written later is known (`Superblock::change`).
    written: AtomicU64,
    /// How often a volume ceased to have every small record, had them all again, or came back.
    changes: AtomicU64,
    /// Of these, those that the superblocks of all volumes that are online know of.
    told: AtomicU64,
}

impl Attest {
    pub(crate) fn changed(&self) {
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// The number of a superblock that is about to be written.
    pub(crate) fn next(&self) -> u64 {
        1 + self.written.fetch_add(1, Ordering::AcqRel)
    }

    /// Whether the superblocks say what is so.
    pub(crate) fn all_told(&self) -> bool {
        self.told.load(Ordering::Acquire) == self.changes.load(Ordering::Acquire)
    }
}

impl<D: Disk> Store<D> {
    /// A group was written to the volumes that are named, or was not. Whether one that has every
    /// small record has it. If so, those that have it not are not complete any more.
    pub(crate) fn reached(&self, outcomes: &[(u8, bool)]) -> bool {
        // With the lock: of two groups that reached one volume each, one has reached none that
        // is complete.
        let _changes = self.offline_changes();
        let took = |number: u8| outcomes.contains(&(number, true));
        let numbers = 0..self.volumes.len() as u8;
        let complete = |number: &u8| self.volume(*number).complete();
        if !numbers
            .clone()
            .any(|number| complete(&number) && took(number))
        {
            return false;
        }
        for number in numbers.filter(|number| !took(*number)) {
            self.lacks_records(number);
        }
        true
    }

    /// With `offline_changes` locked. A small record is not there.
    fn lacks_records(&self, number: u8) {
        if self.volume(number).lacks_records() {
            self.attest.changed();
        }
    }

    /// With `offline_changes` locked. It is offline: what is written from now on it misses. But if
    /// no other volume has every small record, nothing is durable until one has, and it stays the
    /// one that knows all purges.
    pub(crate) fn falls_behind(&self, number: u8) {
        let others = (0..).zip(&self.volumes).filter(|(n, _)| *n != number);
        if others.into_iter().any(|(_, other)| other.complete()) {
            self.lacks_records(number);
        }
    }

    /// It is about to be brought back, and has missed what was written meanwhile.
    pub(crate) fn stays_behind(&self, number: u8) {
        let _changes = self.offline_changes();
        self.falls_behind(number);
    }

    /// A checkpoint ended that began when the volume lacked records for the `lacking`th time. If
    /// it did not since and is online, it has every small record from now on; volumes that are not
    /// online fall behind.
    pub(crate) fn has_all_records(&self, number: u8, lacking: u64) -> bool {
        let _changes = self.offline_changes();
        let volume = self.volume(number);
        if !volume.online() || volume.lacking() != lacking {
            return false;
        }
        if volume.has_all_records() {
            self.attest.changed();
        }
        let volumes = (0..).zip(&self.volumes);
        for (other, _) in volumes.filter(|(_, volume)| !volume.online()) {
            self.falls_behind(other);
        }
        true
    }

    /// As the superblocks name them.
    pub(crate) fn members(&self) -> Vec<Member> {
        // With the lock: of two that become the only one that is complete, one after the other,
        // each could be looked at while it is the other, and a start that finds none empties all.
        let _changes = self.offline_changes();
        let missing = self.missing();
        let known = self.volumes.iter().filter_map(|volume| volume.member());
        known.chain(missing.iter().copied()).collect()
    }
}

impl<D: Disk> Shared<D> {
    /// Has the superblocks say what is so by now; mostly they do. Whether they do.
    pub(crate) async fn tell(&self) -> bool {
        // One more each time that one of them fails, which is offline then.
        for _ in 0..=self.store.volumes.len() {
            if self.store.attest.all_told() {
                return true;
            }
            self.write_superblocks().await;
        }
        self.store.attest.all_told()
    }

    /// Says on every volume that is online which ones have all small records.
    async fn write_superblocks(&self) {
        let _turn = self.store.attest.turn.turn().await;
        self.write_all().await;
    }

    /// A volume that comes back takes writes from now on, and counts when its superblock says what
    /// the others say: a round that passed over it while it was offline has not told it. What of
    /// it could not be read, it is not `whole` without.
    pub(crate) async fn put_online(&self, number: u8, whole: bool) {
        let attest = &self.store.attest;
        let _turn = attest.turn.turn().await;
        // Before it is online: nobody is to find that all is told.
        attest.changed();
        self.store.volume(number).go_online(whole);
        self.write_all().await;
    }

    /// Within a turn.
    async fn write_all(&self) {
        let attest = &self.store.attest;
        let changes = attest.changes.load(Ordering::Acquire);
        let mut all = true;
        for (number, volume) in (0..).zip(&self.store.volumes) {
            if volume.online() && self.write_one(number).await.is_err() {
                self.store.take_offline(number);
                // The last one stays, and says what it said.
                all &= !volume.online();
            }
        }
        if all {
            attest.told.store(changes, Ordering::Release);
        }
    }

    /// The same on one volume, whether it is online or not.
    pub(crate) async fn write_superblock(&self, number: u8) -> io::Result<()> {
        let _turn = self.store.attest.turn.turn().await;
        self.write_one(number).await
    }

    async fn write_one(&self, number: u8) -> io::Result<()> {
        let (store, disk) = (&self.store, self.disk(number));
        let (members, change) = (store.members(), store.attest.next());
        let volume = store.volume(number);
        volume.write_superblock(disk, &members, change).await
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;
    use crate::bring_back::tests::process;
    use crate::disk::sim::SimDisk;
    use crate::volume::VOLUMES_MAX;

    /// With the store of two new volumes.
    fn with_store(look: impl FnOnce(&Store<SimDisk>)) {
        look(&process(2).store);
    }

    #[test]
    fn of_two_groups_that_reached_one_volume_each_one_is_not_durable() {
        with_store(|store| {
            assert!(store.reached(&[(0, true), (1, true)]) && store.attest.all_told());
            assert!(store.reached(&[(0, true), (1, false)]));
            assert!(!store.attest.all_told(), "the second lacks something now");
            assert!(!store.reached(&[(0, false), (1, true)]));
            assert!(store.volume(0).complete() && !store.volume(1).complete());
        });
    }

    #[test]
    fn a_volume_that_missed_something_during_its_checkpoint_is_not_complete() {
        with_store(|store| {
            assert!(store.reached(&[(0, true), (1, false)]));
            let begun = store.volume(1).lacking();
            assert!(store.reached(&[(0, true), (1, false)]));
            assert!(!store.has_all_records(1, begun) && !store.volume(1).complete());
            let begun = store.volume(1).lacking();
            assert!(store.has_all_records(1, begun) && store.volume(1).complete());
        });
    }

    /// Two of many volumes are by turns the only one that is complete.
    #[test]
    fn no_superblock_says_that_no_volume_is_complete() {
        const LOOKS: usize = 50_000;
        // The others make a look long.
        const LAST: u8 = VOLUMES_MAX as u8 - 1;
        let process = process(VOLUMES_MAX);
        let store = &*process.store;
        thread::scope(|scope| {
            let looks = scope.spawn(|| {
                let found = |_| store.members().iter().any(|member| member.complete);
                (0..LOOKS).all(found)
            });
            while !looks.is_finished() {
                for (whole, other) in [(0, LAST), (LAST, 0)] {
                    assert!(store.reached(&[(whole, true), (other, false)]));
                    let lacking = store.volume(other).lacking();
                    assert!(store.has_all_records(other, lacking));
                }
            }
            assert!(looks.join().expect("no panic"));
        });
    }
}
