//! One simulated file: as the page cache has it, and as the media do.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Random;
use super::fault::{Fault, Injected};

/// A disk writes these whole or not at all.
pub(super) const SECTOR_LEN: usize = 512;
/// What the cache keeps or drops.
const CACHED_LEN: usize = 4096;

/// An open file of the simulated disk.
#[derive(Clone, Debug)]
pub struct SimFile(pub(super) Arc<Mutex<Inode>>);

#[derive(Debug, Default)]
pub(super) struct Inode {
    /// Of this file and no other, ever.
    pub(super) number: u64,
    pub(super) drive: usize,
    pub(super) name: String,
    pub(super) cache: Vec<u8>,
    pub(super) media: Vec<u8>,
    pub(super) durable_len: usize,
    /// What a sync that lied said the length is.
    pub(super) lied_len: usize,
    /// Writes that completed and were not synced.
    pub(super) unsynced: Vec<Written>,
    pub(super) writes: u64,
    /// Where the media are not what was written and, as far as anyone was told, synced.
    pub(super) damage: Vec<Damage>,
}

#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) number: u64,
    pub(super) offset: usize,
    pub(super) bytes: Bytes,
    /// A sync said that it is durable, and lied.
    pub(super) lied: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Damage {
    pub(super) range: Range<usize>,
    /// Operations issued when a reader could first see it.
    pub(super) since: u64,
}

impl SimFile {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inode> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Of this file and no other, ever.
    pub fn number(&self) -> u64 {
        self.lock().number
    }

    pub fn drive(&self) -> usize {
        self.lock().drive
    }

    /// Whether the media damaged a byte of the range, and this could be seen only after `since`
    /// operations were issued.
    pub fn damaged(&self, range: Range<u64>, since: u64) -> bool {
        let inode = self.lock();
        inode.damage.iter().any(|damage| {
            damage.since >= since
                && (damage.range.start as u64) < range.end
                && range.start < damage.range.end as u64
        })
    }
}

impl Inode {
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cache.len() < end {
            // A superblock that somebody cut is made whole.
            assert!(
                !self.name.ends_with(".seg"),
                "{}: written where no space was allocated",
                self.name
            );
            self.cache.resize(end, 0);
        }
        self.cache[offset..end].copy_from_slice(bytes);
    }

    pub(super) fn persist(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.media.len() < end {
            self.media.resize(end, 0);
        }
        self.media[offset..end].copy_from_slice(bytes);
    }

    /// What a read past the cache sees: what was not synced goes to the media first.
    pub(super) fn read_direct(&self, range: Range<usize>) -> Vec<u8> {
        let mut bytes = vec![0; range.len()];
        let stored = range.start.min(self.media.len())..range.end.min(self.media.len());
        bytes[..stored.len()].copy_from_slice(&self.media[stored]);
        for written in &self.unsynced {
            let start = written.offset.max(range.start);
            let end = (written.offset + written.bytes.len()).min(range.end);
            if start < end {
                let part = &written.bytes[start - written.offset..end - written.offset];
                bytes[start - range.start..end - range.start].copy_from_slice(part);
            }
        }
        bytes
    }

    /// A write that was not synced meets a crash: lost, whole, or some of its sectors.
    fn tear(&mut self, written: &Written, random: &mut Random, injected: &mut Injected) {
        let range = written.offset..written.offset + written.bytes.len();
        match random.below(3) {
            0 => {
                injected.count(Fault::WriteLost);
                self.lied(written, range);
            }
            1 => self.persist(written.offset, &written.bytes),
            _ => {
                let mut at = 0;
                while at < written.bytes.len() {
                    let offset = written.offset + at;
                    let len = (SECTOR_LEN - offset % SECTOR_LEN).min(written.bytes.len() - at);
                    if random.chance(500) {
                        self.persist(offset, &written.bytes[at..at + len]);
                    }
                    at += len;
                }
                injected.count(Fault::WriteTorn);
                self.lied(written, range);
            }
        }
    }

    fn lied(&mut self, written: &Written, range: Range<usize>) {
        if written.lied {
            self.damaged(range, 0);
        }
    }

    pub(super) fn damaged(&mut self, range: Range<usize>, since: u64) {
        self.damage.push(Damage { range, since });
    }

    /// Takes out the writes before `writes`.
    pub(super) fn take_unsynced(&mut self, writes: u64) -> Vec<Written> {
        let (taken, left) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|w| w.number < writes);
        self.unsynced = left;
        taken
    }

    /// A sync that says it is done, and did nothing.
    pub(super) fn lie(&mut self, writes: u64, len: usize) {
        self.lied_len = self.lied_len.max(len);
        for written in &mut self.unsynced {
            written.lied |= written.number < writes;
        }
    }

    /// The pages count as clean from now on, whatever became of them.
    pub(super) fn fail_sync(&mut self, writes: u64, random: &mut Random, injected: &mut Injected) {
        for written in self.take_unsynced(writes) {
            self.tear(&written, random, injected);
        }
    }

    /// The page at `at` leaves the cache if it is clean: from now on readers see the media.
    /// Whether that changed anything.
    pub(super) fn uncache(&mut self, at: usize, now: u64) -> bool {
        let start = at / CACHED_LEN * CACHED_LEN;
        let page = start..(start + CACHED_LEN).min(self.cache.len());
        let dirty = |written: &Written| {
            written.offset < page.end && page.start < written.offset + written.bytes.len()
        };
        if page.is_empty() || self.unsynced.iter().any(dirty) {
            return false;
        }
        let bytes = self.read_direct(page.clone());
        let changed = self.cache[page.clone()] != bytes;
        self.cache[page.clone()].copy_from_slice(&bytes);
        for damage in &mut self.damage {
            if damage.range.start < page.end && page.start < damage.range.end {
                damage.since = now;
            }
        }
        changed
    }

    pub(super) fn lose_power(&mut self, random: &mut Random, injected: &mut Injected, now: u64) {
        let mut unsynced = std::mem::take(&mut self.unsynced);
        while !unsynced.is_empty() {
            let index = random.index(unsynced.len());
            let written = unsynced.swap_remove(index);
            self.tear(&written, random, injected);
        }
        let len = if random.chance(500) {
            self.cache.len()
        } else {
            self.durable_len
        };
        if len < self.cache.len() {
            injected.count(Fault::LengthLost);
        }
        if len < self.lied_len {
            self.damaged(len..self.lied_len, now);
        }
        self.lied_len = 0;
        self.media.resize(len, 0);
        self.durable_len = len;
        self.cache.clone_from(&self.media);
        for damage in &mut self.damage {
            damage.since = now;
        }
    }
}
