//! What is on the simulated machine and survives its processes: drives, and operations under way.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::drive::{Applied, Drive};
use super::effect::{Effect, InFlight, Issued, Slot};
use super::fault::{Fault, Faults, Injected};
use super::inode::{SimFile, Written};
use super::{Random, SimDisk};

/// By how many others an operation that is slow is overtaken, at most.
const OVERTAKEN_MAX: u64 = 300;

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The machine loses power.
    PowerLoss,
    /// The kernel goes on: nothing that was written is lost.
    Kill,
}

/// What survives a process. Clones are the same world.
#[derive(Clone)]
pub struct SimWorld(Arc<Mutex<World>>);

struct World {
    random: Random,
    process: u64,
    drives: Vec<Drive>,
    operations: Vec<Issued>,
    issued: u64,
    completed: u64,
}

impl SimWorld {
    /// A machine with one drive with a file system of `total` bytes.
    pub fn new(random: Random, total: u64) -> SimWorld {
        SimWorld::with_drives(random, &[total])
    }

    pub fn with_drives(random: Random, totals: &[u64]) -> SimWorld {
        let drives = totals.iter().enumerate();
        SimWorld(Arc::new(Mutex::new(World {
            random,
            process: 0,
            drives: drives.map(|(n, total)| Drive::new(n, *total)).collect(),
            operations: Vec::new(),
            issued: 0,
            completed: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn drives(&self) -> usize {
        self.lock().drives.len()
    }

    /// Of all drives.
    pub fn set_faults(&self, faults: Faults) {
        for drive in &mut self.lock().drives {
            drive.faults = faults;
        }
    }

    pub fn set_drive_faults(&self, drive: usize, faults: Faults) {
        self.lock().drives[drive].faults = faults;
    }

    /// What was injected so far, on all drives.
    pub fn injected(&self) -> Injected {
        let mut all = Injected::default();
        for drive in &self.lock().drives {
            all.add(&drive.injected);
        }
        all
    }

    pub fn drive_injected(&self, drive: usize) -> Injected {
        self.lock().drives[drive].injected.clone()
    }

    pub(super) fn process(&self) -> u64 {
        self.lock().process
    }

    /// Operations issued so far.
    pub fn issued(&self) -> u64 {
        self.lock().issued
    }

    pub fn in_flight(&self) -> Vec<InFlight> {
        self.lock().operations.iter().map(InFlight::of).collect()
    }

    /// Bytes of all files whose names end so.
    pub fn bytes_of(&self, suffix: &str) -> u64 {
        let files = self.files().into_iter();
        let named = files.filter(|(name, _)| name.ends_with(suffix));
        named.map(|(_, len)| len).sum()
    }

    /// The files there are on all drives, with their lengths.
    pub fn files(&self) -> Vec<(String, u64)> {
        let drives = self.drives();
        (0..drives).flat_map(|n| self.drive_files(n)).collect()
    }

    pub fn drive_files(&self, drive: usize) -> Vec<(String, u64)> {
        let world = self.lock();
        let files = world.drives[drive].names.iter();
        files
            .map(|(name, file)| (name.clone(), file.lock().cache.len() as u64))
            .collect()
    }

    /// What is in a file, as the cache has it.
    pub fn contents(&self, drive: usize, name: &str) -> Option<Vec<u8>> {
        let world = self.lock();
        let file = world.drives[drive].names.get(name)?;
        Some(file.lock().cache.clone())
    }

    /// The media have something else in the file from now on, and the cache has it too. Only
    /// while no process runs and nothing waits to be written.
    pub fn replace(&self, drive: usize, name: &str, bytes: Vec<u8>) {
        let world = self.lock();
        let mut inode = world.drives[drive].names[name].lock();
        assert!(inode.unsynced.is_empty(), "nothing waits to be written");
        inode.cache.clone_from(&bytes);
        inode.media = bytes;
    }

    /// Somebody else takes all that is free of the file system.
    pub fn fill_drive(&self, drive: usize) {
        self.lock().drives[drive].shrink();
    }

    /// A blank drive takes the place of this one. Only while no process runs.
    pub fn replace_drive(&self, drive: usize) {
        self.lock().drives[drive].blank();
    }

    /// The media change one byte on their own, and the cache had not kept it.
    pub fn flip(&self, name: &str, offset: u64) {
        let mut world = self.lock();
        let now = world.issued;
        let with_name = |drive: &&mut Drive| drive.names.contains_key(name);
        let drive = world.drives.iter_mut().find(with_name);
        let drive = drive.expect("a file there is");
        drive.injected.count(Fault::BitFlipped);
        let mut inode = drive.names[name].lock();
        let at = offset as usize;
        inode.cache[at] ^= 1;
        if let Some(byte) = inode.media.get_mut(at) {
            *byte ^= 1;
        }
        inode.damaged(at..at + 1, now);
        drive.damaged.insert(inode.number);
    }

    /// Whether the media damaged that file, also if it is gone.
    pub fn file_damaged(&self, drive: usize, number: u64) -> bool {
        self.lock().drives[drive].damaged.contains(&number)
    }

    pub(super) fn operations(&self) -> usize {
        self.lock().operations.len()
    }

    pub(super) fn sync_dir(&self, drive: usize) -> Effect {
        Effect::SyncDir {
            changes: self.lock().drives[drive].changes_made,
        }
    }

    pub(super) fn issue(&self, disk: &SimDisk, effect: Effect) -> io::Result<Slot> {
        let mut world = self.lock();
        let (drive, direct) = (disk.drive, disk.direct);
        if disk.process != world.process {
            return Err(io::Error::other("the process has ended"));
        }
        let World {
            random,
            drives,
            completed,
            ..
        } = &mut *world;
        let on = &mut drives[drive];
        let slow = on
            .injected
            .draw(random, on.faults.slow, Fault::SlowOperation);
        let not_before = if slow {
            *completed + 1 + random.below(OVERTAKEN_MAX)
        } else {
            0
        };
        let slot = Slot::default();
        world.operations.push(Issued {
            drive,
            direct,
            effect,
            slot: slot.clone(),
            not_before,
        });
        world.issued += 1;
        Ok(slot)
    }

    /// The kernel may write back what it likes: some of the range becomes durable early.
    pub(super) fn writeback(&self, process: u64, file: &SimFile, offset: u64, len: u64) {
        let mut world = self.lock();
        if process != world.process {
            return;
        }
        let mut inode = file.lock();
        let range = offset as usize..(offset + len) as usize;
        let due: Vec<Written> = inode
            .unsynced
            .iter()
            .filter(|w| range.contains(&w.offset))
            .cloned()
            .collect();
        for written in due {
            if world.random.chance(500) {
                inode.persist(written.offset, &written.bytes);
            }
        }
    }

    /// One of the operations under way comes to its end.
    pub(super) fn complete(&self, random: &mut Random) {
        let mut world = self.lock();
        let index = world.draw_operation(random);
        let mut issued = world.operations.swap_remove(index);
        world.completed += 1;
        let World {
            random,
            drives,
            issued: now,
            ..
        } = &mut *world;
        let drive = &mut drives[issued.drive];
        drive.now = *now;
        match drive.complete(issued.effect, random) {
            Applied::Rest(effect) => {
                issued.effect = effect;
                world.operations.push(issued);
            }
            Applied::Answer(answer) => {
                drop(world);
                let mut slot = issued.slot.lock();
                slot.answer = Some(answer);
                let waker = slot.waker.take();
                drop(slot);
                if let Some(waker) = waker {
                    waker.wake();
                }
            }
        }
    }

    /// Ends the process, and with a power loss the machine. Drop its executor first.
    pub fn end(&self, ending: Ending) {
        let mut world = self.lock();
        world.process += 1;
        let operations = std::mem::take(&mut world.operations);
        let World {
            random,
            drives,
            issued,
            ..
        } = &mut *world;
        let mut by_drive: Vec<Vec<Issued>> = drives.iter().map(|_| Vec::new()).collect();
        for operation in operations {
            by_drive[operation.drive].push(operation);
        }
        for (drive, operations) in drives.iter_mut().zip(by_drive) {
            drive.now = *issued;
            drive.end(operations, random);
            if ending == Ending::PowerLoss {
                drive.lose_power(random);
            }
        }
    }
}

impl World {
    fn draw_operation(&self, random: &mut Random) -> usize {
        let drawn = random.index(self.operations.len());
        if self.operations[drawn].not_before <= self.completed {
            return drawn;
        }
        let ready = |issued: &Issued| issued.not_before <= self.completed;
        let first = self.operations.iter().position(ready);
        let soonest = || {
            let all = self.operations.iter().enumerate();
            all.min_by_key(|(_, issued)| issued.not_before)
                .map_or(drawn, |(index, _)| index)
        };
        first.unwrap_or_else(soonest)
    }
}
