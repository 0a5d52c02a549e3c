//! One simulated file: as the page cache has it, and as the media do.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::Random;

/// A disk writes these whole or not at all.
const SECTOR_LEN: usize = 512;

/// An open file of the simulated disk.
#[derive(Clone, Debug)]
pub struct SimFile(pub(super) Arc<Mutex<Inode>>);

#[derive(Debug, Default)]
pub(super) struct Inode {
    pub(super) name: String,
    pub(super) cache: Vec<u8>,
    pub(super) media: Vec<u8>,
    pub(super) durable_len: usize,
    /// Writes that completed and were not synced.
    pub(super) unsynced: Vec<Written>,
    pub(super) writes: u64,
}

#[derive(Clone, Debug)]
pub(super) struct Written {
    pub(super) number: u64,
    pub(super) offset: usize,
    pub(super) bytes: Bytes,
}

impl SimFile {
    pub(super) fn lock(&self) -> MutexGuard<'_, Inode> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inode {
    pub(super) fn write(&mut self, offset: usize, bytes: &[u8]) {
        let end = offset + bytes.len();
        if self.cache.len() < end {
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

    /// A write that was not synced meets a crash: lost, whole, or some of its sectors.
    pub(super) fn tear(&mut self, written: &Written, random: &mut Random) {
        match random.below(3) {
            0 => {}
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
            }
        }
    }

    pub(super) fn sync(&mut self, writes: u64, len: usize) {
        let (synced, left) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|w| w.number < writes);
        self.unsynced = left;
        let synced: Vec<Written> = synced;
        for written in &synced {
            self.persist(written.offset, &written.bytes);
        }
        self.durable_len = self.durable_len.max(len);
    }

    /// The pages count as clean from now on, whatever became of them.
    pub(super) fn fail_sync(&mut self, writes: u64, random: &mut Random) {
        let (failed, left) = std::mem::take(&mut self.unsynced)
            .into_iter()
            .partition(|w| w.number < writes);
        self.unsynced = left;
        let failed: Vec<Written> = failed;
        for written in &failed {
            self.tear(written, random);
        }
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) {
        let mut unsynced = std::mem::take(&mut self.unsynced);
        while !unsynced.is_empty() {
            let index = random.index(unsynced.len());
            let written = unsynced.swap_remove(index);
            self.tear(&written, random);
        }
        let len = if random.chance(500) {
            self.cache.len()
        } else {
            self.durable_len
        };
        self.media.resize(len, 0);
        self.durable_len = len;
        self.cache.clone_from(&self.media);
    }
}
