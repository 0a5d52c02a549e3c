//! What happens to superblocks while nobody runs: copies torn by the crash, damaged by the media.
//!
//! Knows of the file that it has two pages, each with a CRC over the whole page.

use entrepot_storage::disk::sim::{Ending, Executor, Faults, Random, SimDisk, Step as Ran};
use entrepot_storage::{OpenError, Options, Store, VolumeSpec};

use super::run::Run;
use super::steps::Done;

const NAME: &str = "STORE";
const PAGE_LEN: usize = 4096;
const COPIES: usize = 2;
const SECTOR_LEN: usize = 512;
/// Where a page has its CRC, which counts as zero in it.
const CRC_AT: std::ops::Range<usize> = 12..16;

fn whole(page: &[u8]) -> bool {
    let mut zeroed = page.to_vec();
    zeroed[CRC_AT].fill(0);
    page[CRC_AT] == crc32fast::hash(&zeroed).to_le_bytes()
}

impl Run {
    /// Before a start: one copy of a superblock is damaged, or both for a start that is refused.
    pub fn harm_superblocks(&mut self) {
        // What the kernel has and the media do not is nobody's business here.
        if !self.rebooted {
            return;
        }
        for drive in 0..self.plan.drives() {
            let Some(bytes) = self.world.contents(drive, NAME) else {
                continue;
            };
            let copies: Vec<usize> = (0..COPIES)
                .filter(|copy| whole(&bytes[copy * PAGE_LEN..][..PAGE_LEN]))
                .collect();
            if copies.len() < COPIES {
                self.counts.borrow_mut().count(Done::SuperblockTorn);
            }
            if self.apart.chance(self.plan.harms) {
                if copies.len() == COPIES && self.apart.chance(500) {
                    let copy = self.apart.index(COPIES);
                    self.harm(drive, &bytes, &[copy]);
                    self.counts.borrow_mut().count(Done::SuperblockMended);
                } else {
                    self.harm(drive, &bytes, &copies);
                    self.refused(drive);
                    self.world.replace(drive, NAME, bytes);
                    self.counts.borrow_mut().count(Done::SuperblockRefused);
                }
            }
        }
    }

    /// A bit flips in each of the copies, or its end is that of the other one.
    fn harm(&mut self, drive: usize, bytes: &[u8], copies: &[usize]) {
        let mut harmed = bytes.to_vec();
        for copy in copies {
            let page = copy * PAGE_LEN..(copy + 1) * PAGE_LEN;
            let other = (1 - copy) * PAGE_LEN;
            if self.apart.chance(500) {
                let torn = SECTOR_LEN * self.apart.index(PAGE_LEN / SECTOR_LEN);
                let end = &bytes[other + torn..other + PAGE_LEN];
                harmed[page.start + torn..page.end].copy_from_slice(end);
            }
            // Where the two say the same, or the whole page was replaced, nothing is broken yet.
            if whole(&harmed[page.clone()]) {
                let at = page.start + self.apart.index(PAGE_LEN);
                harmed[at] ^= 1 << self.apart.below(8);
            }
            assert!(!whole(&harmed[page]), "a damage that nobody can see");
        }
        self.world.replace(drive, NAME, harmed);
    }

    /// The store does not open, says why, and leaves everything as it is.
    fn refused(&mut self, drive: usize) {
        let drives = 0..self.plan.drives();
        let files = |run: &Run| -> Vec<_> {
            let world = &run.world;
            let contents = |drive, name: &str| world.contents(drive, name);
            let of = |drive| {
                let names = world.drive_files(drive).into_iter();
                names.map(move |(name, _)| contents(drive, &name).map(|bytes| (name, bytes)))
            };
            drives.clone().flat_map(of).collect()
        };
        let before = files(self);
        self.world.set_faults(Faults::NONE);
        let executor = Executor::new(self.apart.fork());
        let (world, plan) = (self.world.clone(), &self.plan);
        let volume = |drive| VolumeSpec {
            disk: SimDisk::of_drive(&world, &executor, drive),
            capacity: plan.capacity,
        };
        let volumes = drives.clone().map(volume).collect();
        let options = Options {
            uuid: uuid(&mut self.apart),
            ..plan.options.clone()
        };
        let now = self.clock.get();
        executor.spawn(async move {
            let opened = Store::open(volumes, options, now).await;
            let failure = opened.map(|_| ()).expect_err("no superblock is whole");
            assert_eq!(failure.volume, drive, "{failure}");
            let damaged = matches!(failure.error, OpenError::SuperblockDamaged);
            assert!(damaged, "refused for another reason: {failure}");
        });
        while executor.step(&self.world) != Ran::Idle {}
        drop(executor);
        self.world.end(Ending::Kill);
        assert!(files(self) == before, "what was refused was changed");
    }
}

fn uuid(random: &mut Random) -> [u8; 16] {
    std::array::from_fn(|_| random.draw() as u8)
}
