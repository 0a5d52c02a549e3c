//! Operations under way: what each will do, who waits for it, and how it looks to those who count
//! what a crash hit.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use bytes::Bytes;

use super::inode::SimFile;
use crate::disk::Space;

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
    pub drive: usize,
    /// Past the page cache: the compactor's.
    pub direct: bool,
    pub name: String,
    /// The first bytes of what a write writes, and of what a sync syncs.
    pub bytes: Vec<Bytes>,
    /// The first bytes of the file.
    pub head: Bytes,
}

/// Bytes of a write or file shown in `InFlight`.
const SHOWN_LEN: usize = 64;

pub(super) struct Issued {
    pub(super) drive: usize,
    pub(super) direct: bool,
    pub(super) effect: Effect,
    pub(super) slot: Slot,
    /// Not completed before so many others were, unless nothing else is left.
    pub(super) not_before: u64,
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
        /// Past the page cache.
        direct: bool,
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

    pub(super) fn operation(&self) -> Operation {
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

    /// Whether a drive that is mounted read-only refuses it.
    pub(super) fn changes(&self) -> bool {
        matches!(
            self,
            Effect::Create { .. }
                | Effect::Anonymous { .. }
                | Effect::Grow { .. }
                | Effect::Write { .. }
                | Effect::Sync { .. }
                | Effect::SyncDir { .. }
                | Effect::Rename { .. }
                | Effect::Unlink { .. }
        )
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

impl InFlight {
    pub(super) fn of(issued: &Issued) -> InFlight {
        let effect = &issued.effect;
        let head = effect.file().map_or(Bytes::new(), |file| {
            let inode = file.lock();
            Bytes::copy_from_slice(&inode.cache[..inode.cache.len().min(SHOWN_LEN)])
        });
        InFlight {
            operation: effect.operation(),
            drive: issued.drive,
            direct: issued.direct,
            name: effect.name(),
            bytes: effect.shown(),
            head,
        }
    }
}
