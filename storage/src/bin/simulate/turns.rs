//! Drives take turns in what befalls them: each may stop to work, be away, or leave for good.
//!
//! One at a time may have missed something that nobody who is there knows of. From when the others
//! know, or all have everything, it may be another's turn.

use entrepot_storage::disk::sim::Faults;
use entrepot_storage::{BringBackError, BroughtBack, Recovered, VolumeState};

use super::client::Process;
use super::plan::Media;
use super::run::Run;
use super::steps::Done;

/// Rounds in which all drives that are there get everything: checkpoints begin and end, those that
/// failed after a while once more.
const ROUNDS: usize = 60;
/// Reads that fail, of a thousand, where a drive comes back badly.
const BADLY: u64 = 60;
/// And where it mostly does not come back at all.
const WORSE: u64 = 500;
/// Attempts until somebody sees to it.
const ATTEMPTS_MAX: usize = 4;
/// Times that a drive goes and returns until some of it can't be read.
const RETURNS_MAX: usize = 10;
/// Bodies that are purged when it is broken again.
const PURGED_AGAIN: usize = 4;

impl Run {
    /// Whether the only drive that had every small record is not there at the next start.
    pub fn leaves_alone(&mut self) -> bool {
        self.plan.turns && std::mem::take(&mut self.alone) && self.turns.chance(900)
    }

    /// Of the files of each drive.
    pub fn names(&self) -> Vec<Vec<String>> {
        let names = |drive| {
            let files = self.world.drive_files(drive).into_iter();
            files.map(|(name, _)| name).collect()
        };
        (0..self.plan.drives()).map(names).collect()
    }

    /// After a start without a drive that was cut off: a volume that cannot stand alone may have
    /// been emptied in it.
    pub fn excuse_emptied(&self, before: &[Vec<String>]) {
        let lenient = &mut self.model.borrow_mut().lenient;
        for (drive, (before, after)) in before.iter().zip(self.names()).enumerate() {
            lenient[drive] |= before.iter().any(|name| !after.contains(name));
        }
    }

    /// Before a start: if all drives have everything, one of them may be replaced by a blank one,
    /// and the next to miss something is anyone. Whether one was replaced.
    pub fn take_turns(&mut self) -> bool {
        if !std::mem::take(&mut self.settled) {
            return false;
        }
        let drives = self.plan.drives();
        let next = self.turns.index(drives);
        self.stale.set(next);
        if self.turns.chance(250) {
            return false;
        }
        // What the blank one misses the superblocks know.
        let leaves = (next + 1 + self.turns.index(drives - 1)) % drives;
        self.world.replace_drive(leaves);
        self.model.borrow_mut().lenient[leaves] = true;
        self.counts.borrow_mut().count(Done::DriveReplaced);
        true
    }
}

impl Process {
    /// The drive that may have missed something has every small record, and no other has.
    pub fn stale_alone(&self) -> bool {
        let volumes = self.store.volumes();
        let complete = volumes.iter().map(|volume| volume.complete);
        let stale = self.stale.get();
        complete.eq(self.drives().map(|drive| drive == stale))
    }

    /// All volumes are online.
    fn all_online(&self) -> bool {
        let volumes = self.store.volumes();
        volumes.iter().all(|v| v.state == VolumeState::Online)
    }

    /// Before a drive stops to work: it may be another one than before. The others have no errors
    /// from then on.
    pub fn take_turn(&self) {
        let may = self.plan.turns && !self.returning.get() && self.all_online();
        if !may || self.chance(400) {
            return;
        }
        let drive = self.below(self.disks.len() as u64) as usize;
        if drive == self.stale.replace(drive) {
            return;
        }
        for other in self.drives() {
            let faults = self.plan.faults(other, false);
            self.world.set_drive_faults(other, faults);
        }
        self.repaired.set(self.plan.faults(drive, false));
        let volumes = self.store.volumes();
        let mut counts = self.counts.borrow_mut();
        counts.count(Done::TurnTaken);
        if volumes[drive].complete && volumes.iter().any(|volume| !volume.complete) {
            counts.count(Done::CompleteBroken);
        }
    }

    /// After a purge that was durable although a drive does not work: that one may miss it, and
    /// the process ends before a writer was maintained.
    pub fn hurry(&self) {
        if self.plan.turns && self.broken.get() && !self.anew.get() && self.chance(150) {
            self.hurried.set(true);
            self.operations_left.set(0);
            self.counts.borrow_mut().count(Done::HurriedAfterPurge);
        }
    }

    /// What the start has to do with that.
    pub fn note_beginning(&self, recovered: &Recovered) {
        let anew = !recovered.emptied.is_empty() && !recovered.away.is_empty();
        self.anew.set(anew);
        if anew {
            self.counts.borrow_mut().count(Done::BegunAnew);
        }
    }

    /// Some segments may not be readable just then, or so many that it fails again and again.
    pub async fn bring_back_badly(&self) -> Result<BroughtBack, BringBackError> {
        if !self.plan.turns {
            return self.bring_back_with(0).await;
        }
        let reluctant = self.chance(200);
        self.reluctant.set(reluctant);
        for _ in 0..if reluctant { ATTEMPTS_MAX } else { 0 } {
            if let Ok(brought) = self.bring_back_with(WORSE).await {
                return Ok(brought);
            }
        }
        let read = if self.chance(600) { BADLY } else { 0 };
        self.bring_back_with(read).await
    }

    /// While so many reads of a thousand fail.
    async fn bring_back_with(&self, read: u64) -> Result<BroughtBack, BringBackError> {
        let drive = self.stale.get();
        let badly = read > 0 && !self.broken.get();
        if badly {
            let faults = self.repaired.get();
            self.world
                .set_drive_faults(drive, Faults { read, ..faults });
        }
        let outcome = self.writers[0].bring_back(drive).await;
        // It may have been broken meanwhile.
        if badly && !self.broken.get() {
            self.world.set_drive_faults(drive, self.repaired.get());
        }
        outcome
    }

    /// A drive that was just brought back stops to work again, misses purges, and the process
    /// ends: its superblock was written more often than those of the others, and before them.
    pub async fn break_again(&self) {
        let may = self.reluctant.take() && !self.anew.get() && self.operations_left.get() > 0;
        if !may || self.broken.get() || self.chance(400) {
            return;
        }
        self.broken.set(true);
        self.stop_working();
        for _ in 0..PURGED_AGAIN {
            self.forget_body(self.pick_content()).await;
        }
        self.hurried.set(true);
        self.operations_left.set(0);
        self.counts.borrow_mut().count(Done::BrokenAgain);
    }

    /// A drive goes and returns until some of its segments can't be read then, and everything is
    /// purged: no other segment keeps the forget records.
    async fn come_back_in_part(&self) {
        for _ in 0..RETURNS_MAX {
            if self.in_part.get() {
                return self.purge_all().await;
            }
            self.break_drive();
            self.forget_body(self.pick_content()).await;
            self.maintain().await;
            self.mend_drive().await;
        }
    }

    async fn purge_all(&self) {
        let count = self.model.borrow().contents.len();
        for content in 0..count {
            self.forget_body(content).await;
        }
        for writer in &self.writers {
            // What fails here shows in what is not found out.
            let _ = writer.seal_all(self.now()).await;
        }
        self.counts.borrow_mut().count(Done::PurgedInPart);
    }

    /// At the end of a process, with nobody else about. Whether all drives have everything.
    pub async fn settles(&self) -> bool {
        if !self.plan.turns {
            return false;
        }
        if self.anew.get() {
            self.mend_drive().await;
        }
        if self.chance(900) {
            self.check_complete_without().await;
        }
        if self.chance(200) {
            return false;
        }
        self.mend_drive().await;
        if self.chance(500) {
            self.come_back_in_part().await;
        }
        for _ in 0..ROUNDS {
            self.round().await;
            let volumes = self.store.volumes();
            if self.all_online() && volumes.iter().all(|volume| volume.complete) {
                return true;
            }
        }
        false
    }

    async fn round(&self) {
        for writer in &self.writers {
            // What fails is tried again by the next.
            let _ = writer.commit(self.now()).await;
        }
        self.maintain().await;
    }

    /// A drive is offline: the others come to have everything without it, and what waits is
    /// durable again.
    async fn check_complete_without(&self) {
        if self.stale_online() {
            return;
        }
        let errors = || {
            let others = self.drives().filter(|drive| *drive != self.stale.get());
            let injected = others.map(|drive| self.world.drive_injected(drive).errors());
            injected.sum::<u64>()
        };
        let before = errors();
        for _ in 0..ROUNDS {
            self.round().await;
        }
        let volumes = self.store.volumes();
        let complete =
            |v: &entrepot_storage::VolumeUsage| v.state == VolumeState::Offline || v.complete;
        let excused = errors() > before || self.may_be_full() || self.plan.media != Media::Sound;
        assert!(
            excused || volumes.iter().all(complete),
            "none is complete: {volumes:?}"
        );
        if !excused {
            self.counts.borrow_mut().count(Done::CompleteWithout);
        }
    }
}
