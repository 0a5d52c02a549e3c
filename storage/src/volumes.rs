//! The volumes of a store together: which of them take what, and whose members they are.

use crate::budget::{Purpose, leaves_room};
use crate::disk::Disk;
use crate::page::Uuid;
use crate::store::{Store, refusal};
use crate::volume::{Floors, Volume, VolumeUsage};
use crate::writer::Refusal;

impl<D: Disk> Store<D> {
    /// Of each volume, by number.
    pub fn volumes(&self) -> Vec<VolumeUsage> {
        let now = self.clock.now();
        self.volumes
            .iter()
            .map(|volume| volume.usage(now))
            .collect()
    }

    pub(crate) fn volume(&self, number: u8) -> &Volume<D> {
        &self.volumes[usize::from(number)]
    }

    /// The volumes that take writes, the one with the largest free share first.
    pub(crate) fn writable(&self) -> Vec<u8> {
        let mut writable: Vec<(u64, u8)> = (0..)
            .zip(&self.volumes)
            .filter(|(_, volume)| volume.online())
            .map(|(number, volume)| (volume.free_share(), number))
            .collect();
        // Of equal ones the first: a run must not depend on anything else (S7).
        writable.sort_by_key(|(share, number)| (std::cmp::Reverse(*share), *number));
        writable.into_iter().map(|(_, number)| number).collect()
    }

    /// The volumes that take small records.
    pub(crate) fn online(&self) -> Vec<u8> {
        let numbers = (0..).zip(&self.volumes);
        let online = numbers.filter(|(_, volume)| volume.online());
        online.map(|(number, _)| number).collect()
    }

    /// Of all volumes, those that are away included.
    pub(crate) fn floors(&self) -> Floors {
        let missing = self.missing();
        if !missing.is_empty() {
            return Floors::UNKNOWN;
        }
        drop(missing);
        let floors = self.volumes.iter().map(Volume::floors);
        floors.fold(Floors::NONE, Floors::lowest)
    }

    /// The member is there after all.
    pub(crate) fn not_missing(&self, id: &Uuid) {
        let mut missing = self.missing();
        missing.retain(|member| member.id != *id);
        if self
            .volumes
            .iter()
            .all(|volume| volume.member().is_some() || volume.online())
        {
            missing.clear();
        }
    }

    /// How many files must go before one more may be made for bodies.
    pub(crate) fn files_over(&self) -> u64 {
        let files = self.volumes.iter().map(|volume| volume.budget.files());
        let files: u64 = files.sum();
        (files + 1).saturating_sub(self.files_max)
    }

    /// The longest file of bodies that any volume can ever hold.
    pub(crate) fn bodies_max(&self) -> u64 {
        let max = |volume: &Volume<D>| volume.budget.bodies_max();
        self.volumes.iter().map(max).max().unwrap_or(0)
    }

    pub(crate) fn staging_max(&self) -> u64 {
        let max = |volume: &Volume<D>| volume.budget.staging_max();
        self.volumes.iter().map(max).max().unwrap_or(0)
    }

    /// Takes `bytes` from the budget of a volume if its file system has them too, beside all that
    /// is promised: `promised` of them are, to the caller.
    pub(crate) async fn allocate(
        &self,
        disk: &D,
        volume: u8,
        (bytes, promised): (u64, u64),
        purpose: Purpose,
    ) -> Result<(), Refusal> {
        let budget = &self.volume(volume).budget;
        if !budget.take(bytes, purpose) {
            return Err(Refusal::Full);
        }
        let all = budget.promised();
        match disk.space().await {
            Ok(space) if leaves_room(space.less(all), bytes - promised, purpose) => Ok(()),
            Ok(_) => {
                budget.give_back(bytes, purpose);
                Err(Refusal::Full)
            }
            Err(error) => {
                budget.give_back(bytes, purpose);
                self.disk_failed(volume, &error);
                Err(refusal(&error))
            }
        }
    }
}
