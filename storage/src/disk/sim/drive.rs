//! One simulated drive: a directory of files, how its names become durable, and how it fails.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::{Arc, Mutex, Weak};

use bytes::Bytes;

use super::Random;
use super::effect::{Answer, Effect, Issued, Operation};
use super::fault::{Fault, Faults, Injected};
use super::inode::{Inode, SECTOR_LEN, SimFile, Written};
use crate::disk::Space;

pub(super) struct Drive {
    pub(super) number: usize,
    pub(super) faults: Faults,
    pub(super) injected: Injected,
    /// Operations issued in the whole world.
    pub(super) now: u64,
    total: u64,
    lock: Weak<Mutex<Inode>>,
    pub(super) names: BTreeMap<String, SimFile>,
    durable_names: BTreeMap<String, SimFile>,
    /// Changes of names since the last `sync_dir`.
    changes: Vec<Change>,
    pub(super) changes_made: u64,
    inodes: Vec<Weak<Mutex<Inode>>>,
    inodes_made: u64,
    /// Numbers of the files that the media damaged, those that are gone included.
    pub(super) damaged: BTreeSet<u64>,
}

struct Change {
    number: u64,
    name: String,
    /// `None`: removed.
    file: Option<SimFile>,
    /// Of a rename: the name that goes in the same stroke.
    from: Option<String>,
}

/// What comes of an operation: an answer, or more of it to do.
pub(super) enum Applied {
    Answer(io::Result<Answer>),
    Rest(Effect),
}

impl Drive {
    /// With a file system of `total` bytes.
    pub(super) fn new(number: usize, total: u64) -> Drive {
        Drive {
            number,
            faults: Faults::default(),
            injected: Injected::default(),
            now: 0,
            total,
            lock: Weak::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            changes_made: 0,
            inodes: Vec::new(),
            inodes_made: 0,
            damaged: BTreeSet::new(),
        }
    }

    /// Nothing is on it any more.
    pub(super) fn blank(&mut self) {
        self.names.clear();
        self.durable_names.clear();
        self.changes.clear();
    }

    /// Does it, unless it fails; then the media may decay a little.
    pub(super) fn complete(&mut self, effect: Effect, random: &mut Random) -> Applied {
        if let Err(error) = self.refuse(&effect, random) {
            return Applied::Answer(Err(error));
        }
        // The lock is the process's own.
        if self.faults.hangs && effect.operation() != Operation::Lock {
            self.injected.count(Fault::Hung);
            if random.chance(500) {
                let _ = self.apply(effect, random);
            }
            return Applied::Answer(Err(io::ErrorKind::TimedOut.into()));
        }
        let applied = match effect {
            Effect::Write {
                file,
                offset,
                bytes,
            } if bytes.len() > SECTOR_LEN
                && self
                    .injected
                    .draw(random, self.faults.short, Fault::ShortWrite) =>
            {
                let first = 1 + random.index(bytes.len() - 1);
                self.write_cache(&file, offset, bytes.slice(..first));
                let (offset, bytes) = (offset + first as u64, bytes.slice(first..));
                Applied::Rest(Effect::Write {
                    file,
                    offset,
                    bytes,
                })
            }
            effect => Applied::Answer(self.apply(effect, random)),
        };
        self.decay(random);
        applied
    }

    fn refuse(&mut self, effect: &Effect, random: &mut Random) -> io::Result<()> {
        // The lock is the process's own.
        if self.faults.gone && effect.operation() != Operation::Lock {
            self.injected.count(Fault::Gone);
            return Err(io::Error::other("the drive is gone"));
        }
        if self.faults.read_only && effect.changes() {
            self.injected.count(Fault::ReadOnly);
            return Err(io::ErrorKind::ReadOnlyFilesystem.into());
        }
        let opens = [
            Operation::Create,
            Operation::Anonymous,
            Operation::Open,
            Operation::List,
            Operation::Space,
        ];
        if opens.contains(&effect.operation())
            && self
                .injected
                .draw(random, self.faults.files, Fault::TooManyFiles)
        {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        Ok(())
    }

    pub(super) fn apply(&mut self, effect: Effect, random: &mut Random) -> io::Result<Answer> {
        match effect {
            Effect::Lock => self.take_lock(),
            Effect::List => Ok(Answer::Names(self.names.keys().cloned().collect())),
            Effect::Create { name, len } => {
                if self.names.contains_key(&name) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                let file = self.allocate(name.clone(), len, random)?;
                self.change(name, Some(file.clone()), None);
                Ok(Answer::File(file, len))
            }
            Effect::Anonymous { len } => {
                let file = self.allocate("(anonymous)".to_owned(), len, random)?;
                Ok(Answer::File(file, len))
            }
            Effect::Grow { file, len } => {
                let more = len.saturating_sub(file.lock().cache.len() as u64);
                self.check_space(more, random)?;
                file.lock().cache.resize(len as usize, 0);
                Ok(Answer::Done)
            }
            Effect::Open { name } => {
                let file = self.names.get(&name).ok_or(io::ErrorKind::NotFound)?;
                let len = file.lock().cache.len() as u64;
                Ok(Answer::File(file.clone(), len))
            }
            Effect::Read {
                file,
                offset,
                len,
                direct,
            } => {
                self.fail(random, self.faults.read, Fault::ReadFailed)?;
                if self.faults.busy > 0 && random.below(1000) < self.faults.busy {
                    return Err(io::ErrorKind::WouldBlock.into());
                }
                let inode = file.lock();
                let start = (offset as usize).min(inode.cache.len());
                let end = (start + len).min(inode.cache.len());
                Ok(Answer::Bytes(if direct {
                    inode.read_direct(start..end)
                } else {
                    inode.cache[start..end].to_vec()
                }))
            }
            Effect::Write {
                file,
                offset,
                bytes,
            } => self.write(&file, offset, bytes, random),
            Effect::Sync { file, writes, len } => self.sync(&file, writes, len, random),
            Effect::SyncDir { changes } => {
                self.fail(random, self.faults.sync_dir, Fault::DirectorySyncFailed)?;
                self.persist_changes(|change| change.number < changes);
                Ok(Answer::Done)
            }
            Effect::Rename { from, to } => {
                let file = self.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
                file.lock().name.clone_from(&to);
                self.change(to, Some(file), Some(from));
                Ok(Answer::Done)
            }
            Effect::Unlink { name } => {
                self.fail(random, self.faults.unlink, Fault::UnlinkFailed)?;
                self.names.remove(&name).ok_or(io::ErrorKind::NotFound)?;
                self.change(name, None, None);
                Ok(Answer::Done)
            }
            Effect::Space => Ok(Answer::Space(self.space())),
        }
    }

    fn fail(&mut self, random: &mut Random, parts: u64, fault: Fault) -> io::Result<()> {
        if self.injected.draw(random, parts, fault) {
            return Err(io::Error::other("injected"));
        }
        Ok(())
    }

    fn take_lock(&mut self) -> io::Result<Answer> {
        if self.lock.strong_count() > 0 {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        let file = SimFile(Arc::default());
        self.lock = Arc::downgrade(&file.0);
        Ok(Answer::File(file, 0))
    }

    fn write(
        &mut self,
        file: &SimFile,
        offset: u64,
        bytes: Bytes,
        random: &mut Random,
    ) -> io::Result<Answer> {
        let outcome = self.fail(random, self.faults.write, Fault::WriteFailed);
        let reached = match outcome {
            Ok(()) => bytes.len(),
            Err(_) => random.index(bytes.len() + 1),
        };
        if reached > 0 {
            self.write_cache(file, offset, bytes.slice(..reached));
        }
        outcome.map(|()| Answer::Done)
    }

    fn write_cache(&self, file: &SimFile, offset: u64, bytes: Bytes) {
        let offset = offset as usize;
        let mut inode = file.lock();
        inode.write(offset, &bytes);
        let number = inode.writes;
        inode.writes += 1;
        inode.unsynced.push(Written {
            number,
            offset,
            bytes,
            lied: false,
        });
    }

    fn sync(
        &mut self,
        file: &SimFile,
        writes: u64,
        len: usize,
        random: &mut Random,
    ) -> io::Result<Answer> {
        if let Err(error) = self.fail(random, self.faults.sync, Fault::SyncFailed) {
            file.lock().fail_sync(writes, random, &mut self.injected);
            return Err(error);
        }
        let lie = if decays(&file.lock().name, true) {
            self.faults.lie
        } else {
            0
        };
        if self.injected.draw(random, lie, Fault::SyncLied) {
            file.lock().lie(writes, len);
            return Ok(Answer::Done);
        }
        let synced = file.lock().take_unsynced(writes);
        let misdirect = if decays(&file.lock().name, self.faults.decay_small) {
            self.faults.misdirect
        } else {
            0
        };
        for written in synced {
            let lost = self
                .injected
                .draw(random, misdirect, Fault::WriteMisdirected)
                && self.misdirect(file, &written, random);
            if !lost {
                file.lock().persist(written.offset, &written.bytes);
            }
        }
        let mut inode = file.lock();
        inode.durable_len = inode.durable_len.max(len);
        Ok(Answer::Done)
    }

    /// The write reaches another place of the media. The caches go on showing both as they were.
    fn misdirect(&mut self, meant: &SimFile, written: &Written, random: &mut Random) -> bool {
        let Some(victim) = self.draw_file(random) else {
            return false;
        };
        let mut inode = victim.lock();
        let sectors = inode.media.len() / SECTOR_LEN;
        if sectors == 0 {
            return false;
        }
        let offset = random.index(sectors) * SECTOR_LEN;
        let len = written.bytes.len().min(inode.media.len() - offset);
        inode.persist(offset, &written.bytes[..len]);
        inode.damaged(offset..offset + len, self.now);
        self.damaged.insert(inode.number);
        drop(inode);
        let end = written.offset + written.bytes.len();
        let mut inode = meant.lock();
        inode.damaged(written.offset..end, self.now);
        self.damaged.insert(inode.number);
        true
    }

    /// A file the media may damage.
    fn draw_file(&self, random: &mut Random) -> Option<SimFile> {
        let files: Vec<&SimFile> = self
            .names
            .iter()
            .filter_map(|(name, file)| decays(name, self.faults.decay_small).then_some(file))
            .collect();
        (!files.is_empty()).then(|| (*random.pick(&files)).clone())
    }

    fn decay(&mut self, random: &mut Random) {
        if self.faults.flip > 0
            && random.chance(self.faults.flip)
            && let Some(file) = self.draw_file(random)
        {
            let mut inode = file.lock();
            if !inode.media.is_empty() {
                let at = random.index(inode.media.len());
                inode.media[at] ^= 1 << random.below(8);
                inode.damaged(at..at + 1, self.now);
                self.damaged.insert(inode.number);
                self.injected.count(Fault::BitFlipped);
                if random.chance(500) {
                    inode.uncache(at, self.now);
                }
            }
        }
        if self.faults.uncached > 0
            && random.chance(self.faults.uncached)
            && let Some(file) = self.draw_file(random)
        {
            let mut inode = file.lock();
            if !inode.cache.is_empty() {
                let at = random.index(inode.cache.len());
                if inode.uncache(at, self.now) {
                    self.injected.count(Fault::PagesUncached);
                }
            }
        }
    }

    fn allocate(&mut self, name: String, len: u64, random: &mut Random) -> io::Result<SimFile> {
        self.check_space(len, random)?;
        let cache = vec![0; len as usize];
        self.inodes_made += 1;
        let file = SimFile(Arc::new(Mutex::new(Inode {
            number: self.inodes_made,
            drive: self.number,
            name,
            cache,
            ..Inode::default()
        })));
        self.inodes.push(Arc::downgrade(&file.0));
        Ok(file)
    }

    fn check_space(&mut self, more: u64, random: &mut Random) -> io::Result<()> {
        let quota = self.faults.quota;
        if self.injected.draw(random, quota, Fault::QuotaExceeded) {
            return Err(io::ErrorKind::QuotaExceeded.into());
        }
        let full = self.faults.full;
        if self.injected.draw(random, full, Fault::StorageFull) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        if self.space().free < more {
            self.injected.count(Fault::StorageFull);
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
    }

    pub(super) fn shrink(&mut self) {
        self.total -= self.space().free;
    }

    fn space(&mut self) -> Space {
        self.inodes.retain(|inode| inode.strong_count() > 0);
        let alive = self.inodes.iter().filter_map(Weak::upgrade);
        let used: u64 = alive
            .map(|inode| SimFile(inode).lock().cache.len() as u64)
            .sum();
        Space {
            free: self.total.saturating_sub(used),
            total: self.total,
        }
    }

    fn change(&mut self, name: String, file: Option<SimFile>, from: Option<String>) {
        match &file {
            Some(file) => self.names.insert(name.clone(), file.clone()),
            None => self.names.remove(&name),
        };
        let number = self.changes_made;
        self.changes_made += 1;
        self.changes.push(Change {
            number,
            name,
            file,
            from,
        });
    }

    /// Those that `which` says become durable.
    fn persist_changes(&mut self, mut which: impl FnMut(&Change) -> bool) {
        let mut left = Vec::new();
        for change in std::mem::take(&mut self.changes) {
            if !which(&change) {
                left.push(change);
                continue;
            }
            if let Some(from) = &change.from {
                self.durable_names.remove(from);
            }
            match change.file {
                Some(file) => self.durable_names.insert(change.name, file),
                None => self.durable_names.remove(&change.name),
            };
        }
        self.changes = left;
    }

    /// What was under way when the process ended is done, not done, or, of a write, lies in the
    /// cache in part.
    pub(super) fn end(&mut self, operations: Vec<Issued>, random: &mut Random) {
        self.lock = Weak::new();
        let faults = std::mem::take(&mut self.faults);
        for Issued { effect, .. } in operations {
            match effect {
                Effect::Sync { .. } | Effect::SyncDir { .. } => {}
                effect if faults.gone || faults.read_only && effect.changes() => {}
                Effect::Write {
                    file,
                    offset,
                    bytes,
                } => {
                    let reached = match random.below(3) {
                        0 => 0,
                        1 => bytes.len(),
                        _ => random.index(bytes.len() + 1),
                    };
                    if reached > 0 {
                        self.write_cache(&file, offset, bytes.slice(..reached));
                    }
                }
                effect => {
                    if random.chance(500) {
                        // It fails or not: nobody is left to be told.
                        let _ = self.apply(effect, random);
                    }
                }
            }
        }
        self.faults = faults;
    }

    pub(super) fn lose_power(&mut self, random: &mut Random) {
        self.persist_changes(|_| random.chance(500));
        for _ in std::mem::take(&mut self.changes) {
            self.injected.count(Fault::NameLost);
        }
        self.names.clone_from(&self.durable_names);
        for (name, file) in &self.names {
            let mut inode = file.lock();
            inode.name.clone_from(name);
            inode.lose_power(random, &mut self.injected, self.now);
            if !inode.damage.is_empty() {
                self.damaged.insert(inode.number);
            }
        }
    }
}

/// The superblock only while no process runs: see `SimWorld::replace`.
fn decays(name: &str, small: bool) -> bool {
    name.ends_with(".seg") || small && name.ends_with(".rec")
}
