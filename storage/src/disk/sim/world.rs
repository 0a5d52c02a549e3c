//! What is on the simulated machine: files as the page cache and as the media have them, names
//! as the directory and as the media have them, and operations under way.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::Waker;

use bytes::Bytes;

use super::Random;
use super::inode::{Inode, SimFile, Written};
use crate::disk::Space;

/// How often things fail, in a thousand.
#[derive(Clone, Copy, Debug, Default)]
pub struct Faults {
    pub read: u64,
    pub write: u64,
    pub sync: u64,
    pub sync_dir: u64,
    /// A create or grow that finds the file system full.
    pub full: u64,
}

/// How a process ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// The machine loses power.
    PowerLoss,
    /// The kernel goes on: nothing that was written is lost.
    Kill,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    Lock,
    List,
    Create,
    Anonymous,
    Grow,
    Open,
    Read,
    Write,
    Sync,
    SyncDir,
    Rename,
    Unlink,
    Space,
}

/// An operation under way, for those who count what a crash hit.
#[derive(Clone, Debug)]
pub struct InFlight {
    pub operation: Operation,
    pub name: String,
    /// The first bytes of what a write writes, and of what a sync syncs.
    pub bytes: Vec<Bytes>,
    /// The first bytes of the file.
    pub head: Bytes,
}

/// Bytes of a write or file shown in `InFlight`.
const SHOWN_LEN: usize = 64;

/// What survives a process. Clones are the same world.
#[derive(Clone)]
pub struct SimWorld(Arc<Mutex<World>>);

struct World {
    random: Random,
    faults: Faults,
    faults_injected: u64,
    total: u64,
    process: u64,
    lock: Weak<Mutex<Inode>>,
    names: BTreeMap<String, SimFile>,
    durable_names: BTreeMap<String, SimFile>,
    /// Changes of names since the last `sync_dir`.
    changes: Vec<Change>,
    changes_made: u64,
    inodes: Vec<Weak<Mutex<Inode>>>,
    operations: Vec<Issued>,
    issued: u64,
}

struct Change {
    number: u64,
    name: String,
    /// `None`: removed.
    file: Option<SimFile>,
    /// Of a rename: the name that goes in the same stroke.
    from: Option<String>,
}

struct Issued {
    effect: Effect,
    slot: Slot,
}

#[derive(Clone, Default)]
pub(super) struct Slot(Arc<Mutex<SlotState>>);

#[derive(Default)]
pub(super) struct SlotState {
    pub(super) answer: Option<io::Result<Answer>>,
    pub(super) waker: Option<Waker>,
}

impl Slot {
    pub(super) fn lock(&self) -> MutexGuard<'_, SlotState> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
pub(super) enum Answer {
    Done,
    Names(Vec<String>),
    File(SimFile, u64),
    Bytes(Vec<u8>),
    Space(Space),
}

#[derive(Debug)]
pub(super) enum Effect {
    Lock,
    List,
    Create {
        name: String,
        len: u64,
    },
    Anonymous {
        len: u64,
    },
    Grow {
        file: SimFile,
        len: u64,
    },
    Open {
        name: String,
    },
    Read {
        file: SimFile,
        offset: u64,
        len: usize,
    },
    Write {
        file: SimFile,
        offset: u64,
        bytes: Bytes,
    },
    /// Of the writes that were complete when it was issued.
    Sync {
        file: SimFile,
        writes: u64,
        len: usize,
    },
    SyncDir {
        changes: u64,
    },
    Rename {
        from: String,
        to: String,
    },
    Unlink {
        name: String,
    },
    Space,
}

impl Effect {
    pub(super) fn sync(file: &SimFile) -> Effect {
        let inode = file.lock();
        let (writes, len) = (inode.writes, inode.cache.len());
        drop(inode);
        Effect::Sync {
            file: file.clone(),
            writes,
            len,
        }
    }

    fn operation(&self) -> Operation {
        match self {
            Effect::Lock => Operation::Lock,
            Effect::List => Operation::List,
            Effect::Create { .. } => Operation::Create,
            Effect::Anonymous { .. } => Operation::Anonymous,
            Effect::Grow { .. } => Operation::Grow,
            Effect::Open { .. } => Operation::Open,
            Effect::Read { .. } => Operation::Read,
            Effect::Write { .. } => Operation::Write,
            Effect::Sync { .. } => Operation::Sync,
            Effect::SyncDir { .. } => Operation::SyncDir,
            Effect::Rename { .. } => Operation::Rename,
            Effect::Unlink { .. } => Operation::Unlink,
            Effect::Space => Operation::Space,
        }
    }

    fn file(&self) -> Option<&SimFile> {
        match self {
            Effect::Grow { file, .. }
            | Effect::Read { file, .. }
            | Effect::Write { file, .. }
            | Effect::Sync { file, .. } => Some(file),
            _ => None,
        }
    }

    fn name(&self) -> String {
        match self {
            Effect::Create { name, .. } | Effect::Open { name } | Effect::Unlink { name } => {
                name.clone()
            }
            Effect::Rename { to, .. } => to.clone(),
            _ => self
                .file()
                .map_or(String::new(), |file| file.lock().name.clone()),
        }
    }

    fn shown(&self) -> Vec<Bytes> {
        let shown = |bytes: &Bytes| bytes.slice(..bytes.len().min(SHOWN_LEN));
        match self {
            Effect::Write { bytes, .. } => vec![shown(bytes)],
            Effect::Sync { file, .. } => file
                .lock()
                .unsynced
                .iter()
                .map(|written| shown(&written.bytes))
                .collect(),
            _ => Vec::new(),
        }
    }
}

impl SimWorld {
    /// A machine with a file system of `total` bytes.
    pub fn new(random: Random, total: u64) -> SimWorld {
        SimWorld(Arc::new(Mutex::new(World {
            random,
            faults: Faults::default(),
            faults_injected: 0,
            total,
            process: 0,
            lock: Weak::new(),
            names: BTreeMap::new(),
            durable_names: BTreeMap::new(),
            changes: Vec::new(),
            changes_made: 0,
            inodes: Vec::new(),
            operations: Vec::new(),
            issued: 0,
        })))
    }

    fn lock(&self) -> MutexGuard<'_, World> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn set_faults(&self, faults: Faults) {
        self.lock().faults = faults;
    }

    /// Errors made up so far, a full file system not counted.
    pub fn faults_injected(&self) -> u64 {
        self.lock().faults_injected
    }

    pub(super) fn process(&self) -> u64 {
        self.lock().process
    }

    /// Operations issued so far.
    pub fn issued(&self) -> u64 {
        self.lock().issued
    }

    pub fn in_flight(&self) -> Vec<InFlight> {
        let world = self.lock();
        world
            .operations
            .iter()
            .map(|issued| InFlight::of(&issued.effect))
            .collect()
    }

    /// Bytes of all files whose names end so.
    pub fn bytes_of(&self, suffix: &str) -> u64 {
        let world = self.lock();
        let files = world
            .names
            .iter()
            .filter(|(name, _)| name.ends_with(suffix));
        files.map(|(_, file)| file.lock().cache.len() as u64).sum()
    }

    /// The files there are, with their lengths.
    pub fn files(&self) -> Vec<(String, u64)> {
        let world = self.lock();
        let len = |file: &SimFile| file.lock().cache.len() as u64;
        world
            .names
            .iter()
            .map(|(name, file)| (name.clone(), len(file)))
            .collect()
    }

    /// The media change one byte on their own.
    pub fn flip(&self, name: &str, offset: u64) {
        let world = self.lock();
        let mut inode = world.names.get(name).expect("a file there is").lock();
        let at = offset as usize;
        inode.cache[at] ^= 1;
        if let Some(byte) = inode.media.get_mut(at) {
            *byte ^= 1;
        }
    }

    pub(super) fn operations(&self) -> usize {
        self.lock().operations.len()
    }

    pub(super) fn sync_dir(&self) -> Effect {
        Effect::SyncDir {
            changes: self.lock().changes_made,
        }
    }

    pub(super) fn issue(&self, process: u64, effect: Effect) -> io::Result<Slot> {
        let mut world = self.lock();
        if process != world.process {
            return Err(io::Error::other("the process has ended"));
        }
        let slot = Slot::default();
        world.operations.push(Issued {
            effect,
            slot: slot.clone(),
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

    pub(super) fn complete(&self, index: usize) {
        let mut world = self.lock();
        let issued = world.operations.swap_remove(index);
        let answer = world.apply(issued.effect);
        drop(world);
        let mut slot = issued.slot.lock();
        slot.answer = Some(answer);
        let waker = slot.waker.take();
        drop(slot);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Ends the process, and with a power loss the machine. Drop its executor first.
    pub fn end(&self, ending: Ending) {
        let mut world = self.lock();
        world.process += 1;
        world.lock = Weak::new();
        let operations = std::mem::take(&mut world.operations);
        world.end_operations(operations);
        if ending == Ending::PowerLoss {
            world.lose_power();
        }
    }
}

impl World {
    fn apply(&mut self, effect: Effect) -> io::Result<Answer> {
        match effect {
            Effect::Lock => self.take_lock(),
            Effect::List => Ok(Answer::Names(self.names.keys().cloned().collect())),
            Effect::Create { name, len } => {
                if self.names.contains_key(&name) {
                    return Err(io::ErrorKind::AlreadyExists.into());
                }
                let file = self.allocate(name.clone(), len)?;
                self.change(name, Some(file.clone()), None);
                Ok(Answer::File(file, len))
            }
            Effect::Anonymous { len } => {
                let file = self.allocate("(anonymous)".to_owned(), len)?;
                Ok(Answer::File(file, len))
            }
            Effect::Grow { file, len } => {
                let more = len.saturating_sub(file.lock().cache.len() as u64);
                self.check_space(more)?;
                file.lock().cache.resize(len as usize, 0);
                Ok(Answer::Done)
            }
            Effect::Open { name } => {
                let file = self
                    .names
                    .get(&name)
                    .ok_or(io::ErrorKind::NotFound)?
                    .clone();
                let len = file.lock().cache.len() as u64;
                Ok(Answer::File(file, len))
            }
            Effect::Read { file, offset, len } => {
                self.fault(self.faults.read)?;
                let inode = file.lock();
                let start = (offset as usize).min(inode.cache.len());
                let end = (start + len).min(inode.cache.len());
                Ok(Answer::Bytes(inode.cache[start..end].to_vec()))
            }
            Effect::Write {
                file,
                offset,
                bytes,
            } => self.write(&file, offset, bytes),
            Effect::Sync { file, writes, len } => {
                let outcome = self.fault(self.faults.sync);
                match &outcome {
                    Ok(()) => file.lock().sync(writes, len),
                    Err(_) => file.lock().fail_sync(writes, &mut self.random),
                }
                outcome.map(|()| Answer::Done)
            }
            Effect::SyncDir { changes } => {
                self.fault(self.faults.sync_dir)?;
                self.persist_changes(|change, _| change.number < changes);
                Ok(Answer::Done)
            }
            Effect::Rename { from, to } => {
                let file = self.names.remove(&from).ok_or(io::ErrorKind::NotFound)?;
                file.lock().name.clone_from(&to);
                self.change(to, Some(file), Some(from));
                Ok(Answer::Done)
            }
            Effect::Unlink { name } => {
                self.names.remove(&name).ok_or(io::ErrorKind::NotFound)?;
                self.change(name, None, None);
                Ok(Answer::Done)
            }
            Effect::Space => Ok(Answer::Space(self.space())),
        }
    }

    fn fault(&mut self, parts: u64) -> io::Result<()> {
        if self.random.chance(parts) {
            self.faults_injected += 1;
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

    fn write(&mut self, file: &SimFile, offset: u64, bytes: Bytes) -> io::Result<Answer> {
        let outcome = self.fault(self.faults.write);
        let mut inode = file.lock();
        // One that failed may still have reached the cache.
        if outcome.is_ok() || self.random.chance(500) {
            let offset = offset as usize;
            inode.write(offset, &bytes);
            let number = inode.writes;
            inode.writes += 1;
            inode.unsynced.push(Written {
                number,
                offset,
                bytes,
            });
        }
        outcome.map(|()| Answer::Done)
    }

    fn allocate(&mut self, name: String, len: u64) -> io::Result<SimFile> {
        self.check_space(len)?;
        let cache = vec![0; len as usize];
        let file = SimFile(Arc::new(Mutex::new(Inode {
            name,
            cache,
            ..Inode::default()
        })));
        self.inodes.push(Arc::downgrade(&file.0));
        Ok(file)
    }

    fn check_space(&mut self, more: u64) -> io::Result<()> {
        if self.random.chance(self.faults.full) || self.space().free < more {
            return Err(io::ErrorKind::StorageFull.into());
        }
        Ok(())
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

    fn persist_changes(&mut self, mut which: impl FnMut(&Change, &mut Random) -> bool) {
        let mut left = Vec::new();
        for change in std::mem::take(&mut self.changes) {
            if !which(&change, &mut self.random) {
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

    /// Whatever was under way is done, not done, or, of a write, lies in the cache in part.
    fn end_operations(&mut self, operations: Vec<Issued>) {
        let faults = std::mem::take(&mut self.faults);
        for Issued { effect, .. } in operations {
            let changes = !matches!(effect, Effect::Sync { .. } | Effect::SyncDir { .. });
            if changes && self.random.chance(500) {
                let _ = self.apply(effect);
            }
        }
        self.faults = faults;
    }

    fn lose_power(&mut self) {
        self.persist_changes(|_, random| random.chance(500));
        self.changes.clear();
        self.names.clone_from(&self.durable_names);
        for (name, file) in &self.names {
            let mut inode = file.lock();
            inode.name.clone_from(name);
            inode.lose_power(&mut self.random);
        }
    }
}

impl InFlight {
    fn of(effect: &Effect) -> InFlight {
        let head = effect.file().map_or(Bytes::new(), |file| {
            let inode = file.lock();
            Bytes::copy_from_slice(&inode.cache[..inode.cache.len().min(SHOWN_LEN)])
        });
        InFlight {
            operation: effect.operation(),
            name: effect.name(),
            bytes: effect.shown(),
            head,
        }
    }
}
