//! What can go wrong, how often, and how often it did.

use std::collections::BTreeMap;

use super::Random;

/// How often things fail, in a thousand. Where nothing else is said, of the operations named.
#[derive(Clone, Copy, Debug)]
pub struct Faults {
    pub read: u64,
    /// Reads the machine has no room for just now.
    pub busy: u64,
    /// A part may still have reached the cache.
    pub write: u64,
    pub sync: u64,
    pub sync_dir: u64,
    pub unlink: u64,
    /// A create or grow that finds the file system full.
    pub full: u64,
    /// A create or grow that meets a quota.
    pub quota: u64,
    /// What opens a file, or the directory, when the process has as many files as it may.
    pub files: u64,
    /// Writes that reach the cache in two strokes, with everything else in between.
    pub short: u64,
    /// Operations that are overtaken by many others.
    pub slow: u64,
    /// Operations of any kind after which clean pages of some file leave the cache.
    pub uncached: u64,
    /// Operations of any kind after which the media change a bit of some file on their own.
    pub flip: u64,
    /// Synced writes that reach another place on the media than they were meant for.
    pub misdirect: u64,
    /// Syncs that say they are done and are not.
    pub lie: u64,
    /// Segments of small records decay too, and not only those of bodies.
    pub decay_small: bool,
    /// Everything that changes the drive fails: it is mounted read-only.
    pub read_only: bool,
    /// Everything fails: the drive is not there.
    pub gone: bool,
    /// Nothing is answered in time; some of it is done all the same.
    pub hangs: bool,
}

impl Faults {
    pub const NONE: Faults = Faults {
        read: 0,
        busy: 0,
        write: 0,
        sync: 0,
        sync_dir: 0,
        unlink: 0,
        full: 0,
        quota: 0,
        files: 0,
        short: 0,
        slow: 0,
        uncached: 0,
        flip: 0,
        misdirect: 0,
        lie: 0,
        decay_small: false,
        read_only: false,
        gone: false,
        hangs: false,
    };
}

impl Default for Faults {
    fn default() -> Faults {
        Faults::NONE
    }
}

/// What was injected, each kind counted for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    ReadFailed,
    WriteFailed,
    SyncFailed,
    DirectorySyncFailed,
    UnlinkFailed,
    ReadOnly,
    Gone,
    Hung,
    StorageFull,
    QuotaExceeded,
    TooManyFiles,
    ShortWrite,
    SlowOperation,
    PagesUncached,
    BitFlipped,
    WriteMisdirected,
    SyncLied,
    /// At a power loss: a write that was not synced.
    WriteLost,
    WriteTorn,
    NameLost,
    LengthLost,
}

impl Fault {
    pub const ALL: [Fault; 21] = [
        Fault::ReadFailed,
        Fault::WriteFailed,
        Fault::SyncFailed,
        Fault::DirectorySyncFailed,
        Fault::UnlinkFailed,
        Fault::ReadOnly,
        Fault::Gone,
        Fault::Hung,
        Fault::StorageFull,
        Fault::QuotaExceeded,
        Fault::TooManyFiles,
        Fault::ShortWrite,
        Fault::SlowOperation,
        Fault::PagesUncached,
        Fault::BitFlipped,
        Fault::WriteMisdirected,
        Fault::SyncLied,
        Fault::WriteLost,
        Fault::WriteTorn,
        Fault::NameLost,
        Fault::LengthLost,
    ];

    /// Told to the store as an error that is not about room.
    fn is_error(self) -> bool {
        matches!(
            self,
            Fault::ReadFailed
                | Fault::WriteFailed
                | Fault::SyncFailed
                | Fault::DirectorySyncFailed
                | Fault::UnlinkFailed
                | Fault::ReadOnly
                | Fault::Gone
                | Fault::Hung
        )
    }
}

#[derive(Clone, Debug, Default)]
pub struct Injected(BTreeMap<Fault, u64>);

impl Injected {
    pub(super) fn count(&mut self, fault: Fault) {
        *self.0.entry(fault).or_default() += 1;
    }

    /// Counts the fault if it is drawn, `parts` times in a thousand.
    pub(super) fn draw(&mut self, random: &mut Random, parts: u64, fault: Fault) -> bool {
        // No draw for what cannot be: faults that are off change no run.
        let drawn = parts > 0 && random.chance(parts);
        if drawn {
            self.count(fault);
        }
        drawn
    }

    pub fn of(&self, fault: Fault) -> u64 {
        self.0.get(&fault).copied().unwrap_or(0)
    }

    /// Errors, those about room not counted.
    pub fn errors(&self) -> u64 {
        let errors = self.0.iter().filter(|(fault, _)| fault.is_error());
        errors.map(|(_, count)| count).sum()
    }

    pub fn add(&mut self, other: &Injected) {
        for (fault, count) in &other.0 {
            *self.0.entry(*fault).or_default() += count;
        }
    }
}
