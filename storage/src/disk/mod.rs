//! Disk: all that storage asks of the world.
//!
//! Called by the store and by nobody else. The verbs promise as little as disks do: a write that
//! completed may be lost, or be torn at 512-byte sectors, until a `sync` of its file that began
//! after it has succeeded; a name may be lost until `sync_dir`. After a failed `sync` nothing is
//! known of what was not synced before (it is never retried). What answers `TimedOut` may yet be
//! done.
//!
//! Futures are not `Send`: a disk is cloned once per shard and used there. Files may be read and
//! dropped on any thread. `SimDisk` breaks everything that is not promised here.

use std::future::Future;
use std::io;

use bytes::Bytes;

pub mod bulk;
pub mod cores;
pub mod direct;
pub mod sim;
mod threads;
pub mod uring;

/// Room of the file system that holds the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    pub free: u64,
    pub total: u64,
}

impl Space {
    /// As it will be when so many bytes are taken.
    pub(crate) fn less(self, bytes: u64) -> Space {
        Space {
            free: self.free.saturating_sub(bytes),
            ..self
        }
    }
}

/// What only computes, over bytes that it has.
pub type Work = Box<dyn FnOnce() + Send>;

pub trait Disk: Clone + 'static {
    /// An open file. Dropping it closes it without blocking the thread that drops it.
    type File: Send + Sync + 'static;

    /// Runs a task on this thread until it ends, whoever stops waiting for it.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// Takes the lock of the store for this process, until the file is dropped or the process
    /// ends. `WouldBlock`: another process has it.
    fn lock(&self) -> impl Future<Output = io::Result<Self::File>>;

    /// The names of all files of the store.
    fn list(&self) -> impl Future<Output = io::Result<Vec<String>>>;

    /// A new file of `len` allocated bytes that read as zero. Fails if the name is taken, and
    /// with `StorageFull` if the file system cannot hold it; then nothing is left of it.
    fn create(&self, name: &str, len: u64) -> impl Future<Output = io::Result<Self::File>>;

    /// The same without a name: gone when dropped.
    fn anonymous(&self, len: u64) -> impl Future<Output = io::Result<Self::File>>;

    /// Lengthens a file to `len` allocated bytes; the new ones read as zero.
    fn grow(&self, file: &Self::File, len: u64) -> impl Future<Output = io::Result<()>>;

    /// An existing file and its length.
    fn open(&self, name: &str) -> impl Future<Output = io::Result<(Self::File, u64)>>;

    /// Reads up to `len` bytes; fewer only where the file ends.
    fn read(
        &self,
        file: &Self::File,
        offset: u64,
        len: usize,
    ) -> impl Future<Output = io::Result<Vec<u8>>>;

    /// Writes all bytes. Once polled the write goes on to its end, and the bytes and the file
    /// stay alive until then, even if the future is dropped (R2).
    fn write(
        &self,
        file: &Self::File,
        offset: u64,
        bytes: Bytes,
    ) -> impl Future<Output = io::Result<()>>;

    /// Makes every completed write of the file, and its length, durable.
    fn sync(&self, file: &Self::File) -> impl Future<Output = io::Result<()>>;

    /// Makes every completed create, rename and unlink durable.
    fn sync_dir(&self) -> impl Future<Output = io::Result<()>>;

    fn rename(&self, from: &str, to: &str) -> impl Future<Output = io::Result<()>>;

    /// Removes the name; the bytes stay until the last `File` is dropped.
    fn unlink(&self, name: &str) -> impl Future<Output = io::Result<()>>;

    /// A hint: start writing this range back, so that the next `sync` is short.
    fn writeback(&self, file: &Self::File, offset: u64, len: u64);

    fn space(&self) -> impl Future<Output = io::Result<Space>>;

    /// Lets the other tasks of this thread run: between the parts of a long walk (R3).
    fn give_way(&self) -> impl Future<Output = ()>;

    /// Has a hashing thread that waits do `work` over `len` bytes, to its end, whoever waits for
    /// that. Handed back if none waits: then it is done here.
    fn elsewhere(&self, len: usize, work: Work) -> Result<(), Work> {
        let _ = len;
        Err(work)
    }
}

/// The process, or the machine, has as many files open as it may: no disk is to blame.
pub(crate) fn too_many_files(error: &io::Error) -> bool {
    let number = error.raw_os_error();
    number.is_some_and(|number| [libc::EMFILE, libc::ENFILE].contains(&number))
}
