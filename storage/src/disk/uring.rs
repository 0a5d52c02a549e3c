//! The real disk of the shards.
//!
//! Reads, writes and syncs go through the io_uring of the thread that asks (monoio). What has no
//! ring operation, or blocks even there, is done by helper threads: open, allocate, unlink,
//! directory syncs, and closing, since the last close of an unlinked large file takes long (R3).
//!
//! An operation runs as a task of its own that owns the buffer and keeps the file open until the
//! kernel is done with both, whoever stops waiting (R2). What takes longer than `PATIENCE`, and for
//! a sync the time that its file takes to write, has failed for whoever waits for it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::future::Future;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, RawFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Buf, Bytes};

use super::cores::Cores;
pub use super::threads::PATIENCE;
use super::threads::{SYNC_PACE, SYNC_PATIENCE_MAX, Threads, closer};
use super::{Disk, Space, Work, too_many_files};

/// One read of a larger range: bounds the buffer the kernel has at a time.
const READ_LEN_MAX: usize = 4 << 20;
/// `EAGAIN` of a ring operation on a regular file is transient; more of it in a row is an error.
const RETRIES_MAX: usize = 16;
/// The shortest a timer of the runtime takes.
const GIVE_WAY: Duration = Duration::from_millis(1);
/// The store holds what only its owner may read.
const FILE_MODE: u32 = 0o600;
const DIRECTORY_MODE: u32 = 0o700;
const LOCK_NAME: &str = "LOCK";

/// A directory on a file system of this machine. Clones share the helpers.
#[derive(Clone)]
pub struct UringDisk {
    inner: Arc<Inner>,
    cores: Option<Cores>,
}

struct Inner {
    path: PathBuf,
    /// Open for when no more files can be: making room takes a look at the space, and what is
    /// named already is made durable.
    directory: Mutex<Option<File>>,
    threads: Threads,
    /// An operation that takes longer is given up by whoever waits for it; a sync has more.
    patience: Duration,
    /// Not bounded by itself: it holds at most the files that were open.
    closer: flume::Sender<File>,
}

/// An open file of the store, readable from every thread.
pub struct UringFile {
    shared: Arc<SharedFile>,
}

struct SharedFile {
    file: ManuallyDrop<File>,
    /// Bytes, as it was made or opened and grown since; of the lock 0.
    len: AtomicU64,
    locked: bool,
    closer: flume::Sender<File>,
}

impl Drop for SharedFile {
    fn drop(&mut self) {
        // SAFETY: `file` is not used after this, for this is the drop of what holds it, and it is
        // taken nowhere else.
        let file = unsafe { ManuallyDrop::take(&mut self.file) };
        if self.locked {
            // So that a store can be opened again before the helper has closed the file.
            let _ = file.unlock();
        }
        // Without a closer the disk is gone as well, and closing here blocks nobody who matters.
        let _ = self.closer.send(file);
    }
}

impl AsFd for UringFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.file.as_fd()
    }
}

/// A new file that loses its name again if whoever asked for it has stopped waiting: nobody would
/// count it. Dropped by the helper that made it, but for an answer that is given up unread.
struct Made {
    file: UringFile,
    /// `None`: it is kept.
    path: Option<PathBuf>,
}

impl Made {
    fn keep(mut self) -> UringFile {
        self.path = None;
        self.file.share()
    }
}

impl Drop for Made {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = std::fs::remove_file(path);
        }
    }
}

impl UringDisk {
    /// The directory of a store, made if it is not there. Blocks: for the start of a process.
    pub fn open(path: &Path) -> io::Result<UringDisk> {
        DirBuilder::new()
            .recursive(true)
            .mode(DIRECTORY_MODE)
            .create(path)?;
        UringDisk::at(path)
    }

    /// The same without a look at it: a directory that is away fails every operation, and may
    /// come back, on another file system even.
    pub fn at(path: &Path) -> io::Result<UringDisk> {
        UringDisk::with_patience(path, PATIENCE)
    }

    fn with_patience(path: &Path, patience: Duration) -> io::Result<UringDisk> {
        let inner = Inner {
            path: path.to_owned(),
            directory: Mutex::new(File::open(path).ok()),
            threads: Threads::start()?,
            patience,
            closer: closer()?,
        };
        Ok(UringDisk {
            inner: Arc::new(inner),
            cores: None,
        })
    }

    /// The same, with other cores to compute on.
    pub fn with_cores(self, cores: Cores) -> UringDisk {
        UringDisk {
            cores: Some(cores),
            ..self
        }
    }

    pub fn path(&self) -> &Path {
        &self.inner.path
    }

    /// Has a helper do `work`.
    async fn help<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Inner) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let inner = Arc::clone(&self.inner);
        let work = move || work(&inner);
        self.inner.threads.run(self.inner.patience, work).await
    }

    /// How long a sync of this file may take.
    fn sync_patience(&self, file: &UringFile) -> Duration {
        let len = file.shared.len.load(Ordering::Relaxed);
        self.inner.patience + Duration::from_secs(len / SYNC_PACE).min(SYNC_PATIENCE_MAX)
    }

    /// Has the ring of this thread do `work`, which goes on to its end in any case (R2).
    async fn ring<T: 'static>(
        &self,
        patience: Duration,
        work: impl Future<Output = io::Result<T>> + 'static,
    ) -> io::Result<T> {
        let done = monoio::time::timeout(patience, monoio::spawn(work)).await;
        done.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl Inner {
    fn file(&self, file: File, len: u64) -> UringFile {
        let closer = self.closer.clone();
        let shared = SharedFile {
            file: ManuallyDrop::new(file),
            len: AtomicU64::new(len),
            locked: false,
            closer,
        };
        UringFile {
            shared: Arc::new(shared),
        }
    }

    fn create(&self, name: &str, len: u64) -> io::Result<Made> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)?;
        match allocate(&file, 0, len) {
            Ok(()) => Ok(Made {
                file: self.file(file, len),
                path: Some(path),
            }),
            Err(error) => {
                let _ = std::fs::remove_file(&path);
                Err(error)
            }
        }
    }

    fn anonymous(&self, len: u64) -> io::Result<UringFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .mode(FILE_MODE)
            .custom_flags(libc::O_TMPFILE)
            .open(&self.path)?;
        allocate(&file, 0, len)?;
        Ok(self.file(file, len))
    }

    fn lock(&self) -> io::Result<UringFile> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(self.path.join(LOCK_NAME))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let closer = self.closer.clone();
        let shared = SharedFile {
            file: ManuallyDrop::new(file),
            len: AtomicU64::new(0),
            locked: true,
            closer,
        };
        Ok(UringFile {
            shared: Arc::new(shared),
        })
    }

    fn open(&self, name: &str) -> io::Result<(UringFile, u64)> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open(self.path.join(name))?;
        let len = file.metadata()?.len();
        Ok((self.file(file, len), len))
    }

    /// The directory that is there now; the one that was, only while no more files can be opened.
    fn in_directory<T>(&self, act: impl Fn(&File) -> io::Result<T>) -> io::Result<T> {
        match File::open(&self.path) {
            Ok(directory) => act(&directory),
            Err(error) if too_many_files(&error) => {
                let kept = self.directory.lock();
                match &*kept.unwrap_or_else(PoisonError::into_inner) {
                    Some(directory) => act(directory),
                    None => Err(error),
                }
            }
            Err(error) => Err(error),
        }
    }

    fn list(&self) -> io::Result<Vec<String>> {
        // A volume that is opened or comes back may be on another file system.
        let directory = File::open(&self.path)?;
        *self
            .directory
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = Some(directory);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            // A name that is not text is not one of ours.
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }
}

/// Lengthens a file to `len` with the space for what is beyond `from`.
fn allocate(file: &File, from: u64, len: u64) -> io::Result<()> {
    let signed = |len: u64| i64::try_from(len).map_err(|_| io::ErrorKind::FileTooLarge);
    let (at, more) = (signed(from)?, signed(len.saturating_sub(from))?);
    if more == 0 {
        return Ok(());
    }
    loop {
        // SAFETY: fallocate(2) takes a descriptor, which `file` keeps open during the call, and
        // numbers; it touches no memory of ours.
        let outcome = unsafe { libc::fallocate(file.as_raw_fd(), 0, at, more) };
        if outcome == 0 {
            return Ok(());
        }
        let error = io::Error::last_os_error();
        match error.raw_os_error() {
            Some(libc::EINTR) => {}
            // A file system without it (ZFS): a full disk is then met by a write.
            Some(libc::EOPNOTSUPP) => return file.set_len(len),
            _ => return Err(error),
        }
    }
}

fn space(directory: &File) -> io::Result<Space> {
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: fstatvfs(3) writes one `statvfs` to the pointer, which is to memory of that type;
    // `directory` keeps the descriptor open.
    let outcome = unsafe { libc::fstatvfs(directory.as_raw_fd(), stat.as_mut_ptr()) };
    if outcome != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call succeeded, so it has filled the structure in.
    let stat = unsafe { stat.assume_init() };
    Ok(Space {
        free: stat.f_bavail * stat.f_frsize,
        total: stat.f_blocks * stat.f_frsize,
    })
}

thread_local! {
    /// The runtime's view of a descriptor: its number and no state. One for each number this
    /// thread ever used, so as many as the process may have open at most.
    static RING_FILES: RefCell<HashMap<RawFd, Rc<ManuallyDrop<monoio::fs::File>>>> =
        RefCell::default();
}

/// For operations of this thread's ring on `file`, which must stay open until they are complete.
fn ring_file(file: &UringFile) -> io::Result<Rc<ManuallyDrop<monoio::fs::File>>> {
    let fd = file.shared.file.as_raw_fd();
    RING_FILES.with_borrow_mut(|files| {
        if let Some(found) = files.get(&fd) {
            return Ok(Rc::clone(found));
        }
        // SAFETY: from_raw_fd requires the ownership of the descriptor, so that it is closed once.
        // Ours stays with `SharedFile`; this second owner is wrapped in `ManuallyDrop` before
        // anything else can happen to it and never dropped, so it never closes. It is only used
        // by tasks that hold the `SharedFile`, so the number means that file while it is used.
        let second = unsafe { File::from_raw_fd(fd) };
        let ring = Rc::new(ManuallyDrop::new(monoio::fs::File::from_std(second)?));
        files.insert(fd, Rc::clone(&ring));
        Ok(ring)
    })
}

/// Counts the transient errors of one operation.
#[derive(Default)]
struct Retries(usize);

impl Retries {
    fn again(&mut self, error: io::Error) -> io::Result<()> {
        self.0 += 1;
        let transient = matches!(
            error.kind(),
            io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock
        );
        if transient && self.0 <= RETRIES_MAX {
            Ok(())
        } else {
            Err(error)
        }
    }
}

async fn write_all(file: UringFile, mut offset: u64, mut bytes: Bytes) -> io::Result<()> {
    let ring = ring_file(&file)?;
    let mut retries = Retries::default();
    while !bytes.is_empty() {
        let (outcome, back) = ring.write_at(bytes, offset).await;
        bytes = back;
        match outcome {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => {
                bytes.advance(written);
                offset += written as u64;
            }
            Err(error) => retries.again(error)?,
        }
    }
    Ok(())
}

async fn read_up_to(file: UringFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
    let ring = ring_file(&file)?;
    let mut all = Vec::new();
    let mut retries = Retries::default();
    while all.len() < len {
        let buffer = Vec::with_capacity((len - all.len()).min(READ_LEN_MAX));
        let (outcome, mut part) = ring.read_at(buffer, offset + all.len() as u64).await;
        match outcome {
            Ok(0) => break,
            Ok(read) => {
                // The buffer may be longer than what was asked for.
                part.truncate(read.min(len - all.len()));
                if all.is_empty() {
                    all = part;
                } else {
                    all.append(&mut part);
                }
            }
            Err(error) => retries.again(error)?,
        }
    }
    Ok(all)
}

impl UringFile {
    fn share(&self) -> UringFile {
        UringFile {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl Disk for UringDisk {
    type File = UringFile;

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        drop(monoio::spawn(task));
    }

    async fn lock(&self) -> io::Result<UringFile> {
        self.help(Inner::lock).await
    }

    async fn list(&self) -> io::Result<Vec<String>> {
        self.help(Inner::list).await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<UringFile> {
        let name = name.to_owned();
        let made = self.help(move |inner| inner.create(&name, len)).await?;
        Ok(made.keep())
    }

    async fn anonymous(&self, len: u64) -> io::Result<UringFile> {
        self.help(move |inner| inner.anonymous(len)).await
    }

    async fn grow(&self, file: &UringFile, len: u64) -> io::Result<()> {
        let file = file.share();
        let grow = move |_: &Inner| {
            let from = file.shared.len.load(Ordering::Relaxed);
            allocate(&file.shared.file, from, len)?;
            file.shared.len.fetch_max(len, Ordering::Relaxed);
            Ok(())
        };
        self.help(grow).await
    }

    async fn open(&self, name: &str) -> io::Result<(UringFile, u64)> {
        let name = name.to_owned();
        self.help(move |inner| inner.open(&name)).await
    }

    async fn read(&self, file: &UringFile, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let patience = self.inner.patience;
        self.ring(patience, read_up_to(file.share(), offset, len))
            .await
    }

    async fn write(&self, file: &UringFile, offset: u64, bytes: Bytes) -> io::Result<()> {
        let patience = self.inner.patience;
        self.ring(patience, write_all(file.share(), offset, bytes))
            .await
    }

    async fn sync(&self, file: &UringFile) -> io::Result<()> {
        let (patience, file) = (self.sync_patience(file), file.share());
        self.ring(patience, async move { ring_file(&file)?.sync_data().await })
            .await
    }

    async fn sync_dir(&self) -> io::Result<()> {
        self.help(|inner| inner.in_directory(File::sync_all)).await
    }

    async fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        let (from, to) = (self.inner.path.join(from), self.inner.path.join(to));
        self.help(move |_| std::fs::rename(from, to)).await
    }

    async fn unlink(&self, name: &str) -> io::Result<()> {
        let path = self.inner.path.join(name);
        self.help(move |_| std::fs::remove_file(path)).await
    }

    fn writeback(&self, file: &UringFile, offset: u64, len: u64) {
        let (Ok(offset), Ok(len)) = (i64::try_from(offset), i64::try_from(len)) else {
            return;
        };
        let file = file.share();
        let hint = move || {
            let fd = file.shared.file.as_raw_fd();
            // SAFETY: sync_file_range(2) takes a descriptor, which `file` keeps open during the
            // call, and numbers; it touches no memory of ours. Its result is of no use: errors
            // are reported by the sync of the group.
            unsafe { libc::sync_file_range(fd, offset, len, libc::SYNC_FILE_RANGE_WRITE) };
        };
        self.inner.threads.hint(hint);
    }

    async fn space(&self) -> io::Result<Space> {
        self.help(|inner| inner.in_directory(space)).await
    }

    /// By a timer: a task that wakes itself is the next one that monoio runs, so nobody else
    /// would be.
    async fn give_way(&self) {
        monoio::time::sleep(GIVE_WAY).await;
    }

    fn elsewhere(&self, len: usize, work: Work) -> Result<(), Work> {
        match &self.cores {
            Some(cores) => cores.take(len, work),
            None => Err(work),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::sync::mpsc::channel;

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);
    const LEN: u64 = 4096;

    fn block_on<T>(task: impl Future<Output = T>) -> T {
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("io_uring is available")
            .block_on(task)
    }

    #[test]
    fn a_file_that_nobody_waits_for_any_more_is_not_left() {
        let name = format!("entrepot-late-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        UringDisk::open(&path).expect("a directory");
        let hasty = UringDisk::with_patience(&path, SHORT).expect("threads");
        let (release, released) = channel::<()>();
        let (told, tells) = channel();
        let late = path.join("late");
        let given_up = block_on(hasty.help(move |inner| {
            let _ = released.recv();
            let made = inner.create("late", LEN)?;
            told.send(late.exists()).expect("it is waited for");
            // In this order they are dropped.
            Ok((made, told))
        }));
        assert!(given_up.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut));
        drop(release);
        assert_eq!(tells.recv(), Ok(true), "it was made");
        assert!(tells.recv().is_err());
        assert!(!path.join("late").exists());
        let disk = UringDisk::open(&path).expect("a directory");
        block_on(disk.create("kept", LEN)).expect("room");
        assert!(path.join("kept").exists());
        std::fs::remove_dir_all(&path).expect("removed");
    }

    #[test]
    fn a_sync_has_the_time_that_its_file_takes() {
        let name = format!("entrepot-sync-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let disk = UringDisk::open(&path).expect("a directory");
        let more = |file: &UringFile| (disk.sync_patience(file) - PATIENCE).as_secs();
        block_on(async {
            let file = disk.create("grown", 2 * SYNC_PACE).await.expect("room");
            assert_eq!(more(&file), 2);
            disk.grow(&file, 3 * SYNC_PACE).await.expect("room");
            assert_eq!(more(&file), 3);
            let (again, _) = disk.open("grown").await.expect("there");
            assert_eq!(more(&again), 3);
            disk.sync(&again).await.expect("durable");
            let file = disk.anonymous(SYNC_PACE - 1).await.expect("room");
            assert_eq!(more(&file), 0);
            file.shared.len.store(1 << 40, Ordering::Relaxed);
            assert_eq!(more(&file), SYNC_PATIENCE_MAX.as_secs());
        });
        std::fs::remove_dir_all(&path).expect("removed");
    }

    /// Reading a pipe that nobody writes to hangs as a disk does that does not answer.
    #[test]
    fn a_read_that_hangs_is_given_up_and_goes_on() {
        let name = format!("entrepot-patience-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let disk = UringDisk::open(&path).expect("a directory");
        let hasty = UringDisk::with_patience(&path, SHORT).expect("threads");
        let made = Command::new("mkfifo").arg(path.join("pipe")).status();
        assert!(made.expect("mkfifo").success());
        let (given_up, left) = block_on(async {
            let (file, _) = disk.open("pipe").await.expect("both its ends");
            let given_up = hasty.read(&file, 0, 4).await;
            let bytes = Bytes::from_static(b"takeleft");
            disk.write(&file, 0, bytes).await.expect("it has room");
            (given_up, disk.read(&file, 0, 4).await)
        });
        std::fs::remove_dir_all(&path).expect("removed");
        let kind = given_up.map_err(|error| error.kind());
        assert_eq!(kind, Err(io::ErrorKind::TimedOut));
        assert_eq!(left.expect("more is there"), b"left");
    }
}
