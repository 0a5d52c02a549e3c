//! A drive that stops to work while a process runs, is repaired, and is brought back.

use entrepot_storage::disk::sim::Faults;
use entrepot_storage::{BringBackError, BroughtBack, VolumeState};

use super::client::Process;
use super::plan::Media;
use super::steps::Done;

const ALWAYS: u64 = 1000;
/// So often the writers are asked to notice that it is offline, and the compactor to end what it
/// does, before somebody else tries later.
const ATTEMPTS: usize = 8;

impl Process {
    /// From now on a drive is not there, does not answer, or takes no write. Only one of several
    /// may.
    pub fn break_drive(&self) {
        if self.drives().len() > 1 && !self.broken.replace(true) {
            self.take_turn();
            self.stop_working();
        }
    }

    pub fn stop_working(&self) {
        let kinds = [
            Faults {
                gone: true,
                ..Faults::NONE
            },
            Faults {
                hangs: true,
                ..Faults::NONE
            },
            Faults {
                read_only: true,
                ..Faults::NONE
            },
            Faults {
                write: ALWAYS,
                sync: ALWAYS,
                sync_dir: ALWAYS,
                ..Faults::NONE
            },
        ];
        let faults = self.random.borrow_mut().pick(&kinds).to_owned();
        self.world.set_drive_faults(self.stale.get(), faults);
        self.counts.borrow_mut().count(Done::DriveBroken);
    }

    pub fn stale_online(&self) -> bool {
        self.store.volumes()[self.stale.get()].state == VolumeState::Online
    }

    /// Whether a copy of it is on a volume that is offline, and must not come back once purged.
    pub fn kept_offline(&self, content: usize) -> bool {
        let model = self.model.borrow();
        let mut files = model.bodies[content].files.iter();
        files.any(|(drive, _)| *drive == self.stale.get()) && !self.stale_online()
    }

    /// The drive is repaired; if it went offline it is brought back.
    pub async fn mend_drive(&self) {
        if self.broken.replace(false) {
            self.world
                .set_drive_faults(self.stale.get(), self.repaired.get());
        }
        if self.stale_online() || self.returning.replace(true) {
            return;
        }
        for _ in 0..ATTEMPTS {
            if self.bring_back().await {
                break;
            }
            self.maintain().await;
            self.compact_to_the_end().await;
        }
        self.returning.set(false);
    }

    /// With nobody else about nothing keeps it from coming back, if nothing fails again.
    pub async fn mend_at_last(&self) {
        let errors = || self.world.drive_injected(self.stale.get()).errors();
        let before = errors();
        self.mend_drive().await;
        let excused = errors() > before || self.plan.media != Media::Sound || self.may_be_full();
        assert!(self.stale_online() || excused, "the drive stays offline");
    }

    /// Whether that is all there is to do.
    async fn bring_back(&self) -> bool {
        let errors = || self.world.drive_injected(self.stale.get()).errors();
        let before = errors();
        // What was not found without it may be there again, and nothing that was purged.
        self.model.borrow_mut().may_return();
        let outcome = self.bring_back_badly().await;
        self.see_what_returned();
        let failed = errors() > before || self.plan.media != Media::Sound;
        match outcome {
            Ok(brought) => {
                self.note_brought(&brought);
                self.break_again().await;
                true
            }
            Err(BringBackError::Busy | BringBackError::Compacting) => false,
            Err(BringBackError::Online) => true,
            Err(BringBackError::Volume(error)) => {
                assert!(failed || self.may_be_full(), "not brought back: {error}");
                true
            }
            Err(error) => panic!("not brought back: {error}"),
        }
    }

    fn note_brought(&self, brought: &BroughtBack) {
        let in_part = !brought.unreadable.is_empty();
        self.in_part.set(in_part);
        let mut counts = self.counts.borrow_mut();
        counts.count(Done::BroughtBack);
        if self.anew.get() {
            counts.count(Done::BroughtBackAnew);
        }
        if in_part {
            counts.count(Done::BroughtBackInPart);
        }
        counts.add_to(Done::BodiesBroughtBack, brought.bodies);
    }
}
