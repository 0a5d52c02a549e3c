//! The real disk of the compactor: direct I/O through glommio, within a budget of bytes.
//!
//! Lives on one thread, inside the executor that `executor` makes. What has no ring operation
//! blocks this thread, where nobody waits. Where a file system refuses O_DIRECT, or the machine
//! hides what glommio insists to know of a device, the page cache is used instead.

use std::cell::Cell;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use glommio::io::{BufferedFile, DmaBuffer, DmaFile, OpenOptions as RingOptions, ReadResult};
use glommio::{LocalExecutor, LocalExecutorBuilder, Placement};

use super::bulk::{BulkDisk, whole_pages};
use crate::page::PAGE_LEN;

/// A wake-up that the runtime lost costs this much at most; what is idle wakes as often anyway.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// Memory for reads and writes, registered with the ring and so locked: two buffers of a MiB are
/// in use at a time.
const MEMORY_BYTES: usize = 4 << 20;
/// One operation is under way at a time; a ring takes locked memory by its depth.
const RING_DEPTH: usize = 16;
/// Reads or writes of one range that may come back short before it counts as an error.
const ATTEMPTS_MAX: usize = 4;
/// The store holds what only its owner may read.
const FILE_MODE: u32 = 0o600;
/// What may be moved at once after a time of rest, in parts of a second's budget.
const BURST_PARTS: u64 = 4;

/// How many bytes a second the compactor may move, reads and writes together. Shared by all its
/// disks and by whoever sets it.
#[derive(Debug)]
pub struct Rate {
    /// 0: as fast as it goes.
    bytes_per_second: AtomicU64,
}

impl Rate {
    pub fn new(bytes_per_second: u64) -> Arc<Rate> {
        Arc::new(Rate {
            bytes_per_second: AtomicU64::new(bytes_per_second),
        })
    }

    /// Takes effect with the next bytes that are moved.
    pub fn set(&self, bytes_per_second: u64) {
        self.bytes_per_second
            .store(bytes_per_second, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.bytes_per_second.load(Ordering::Relaxed)
    }
}

/// The executor the compactor runs in, on the thread that calls this.
pub fn executor() -> io::Result<LocalExecutor> {
    let builder = LocalExecutorBuilder::new(Placement::Unbound)
        .name("compactor")
        .io_memory(MEMORY_BYTES)
        .ring_depth(RING_DEPTH);
    Ok(builder.make()?)
}

/// Inside `executor`: wakes it again and again, until this is dropped. It was seen to sleep on when
/// an operation had ended, and with nothing else to wake it for ever.
pub struct Awake {
    _beats: glommio::Task<()>,
}

pub fn keep_awake() -> Awake {
    let beats = async {
        loop {
            sleep(HEARTBEAT).await;
        }
    };
    Awake {
        _beats: glommio::spawn_local(beats),
    }
}

/// Rests inside `executor`.
pub async fn sleep(time: Duration) {
    glommio::timer::sleep(time).await;
}

/// The directory of one volume, which need not be there yet.
pub struct DirectDisk {
    path: PathBuf,
    /// The device it was on last, and whether direct I/O works there.
    probed: Cell<Option<(u64, bool)>>,
    bucket: Rc<Bucket>,
}

pub struct DirectFile {
    ring: RingFile,
    /// Stays open: `ring` was opened by its descriptor.
    file: File,
}

enum RingFile {
    Direct(DmaFile),
    Buffered(BufferedFile),
}

/// What a read gives.
pub struct DirectRead(ReadResult);

impl AsRef<[u8]> for DirectRead {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

/// Token bucket: what was moved beyond the budget is waited for.
struct Bucket {
    rate: Arc<Rate>,
    filled: Cell<Instant>,
    tokens: Cell<i64>,
}

impl Bucket {
    /// Takes `bytes` and says how long to wait for them.
    fn take(&self, bytes: u64, now: Instant) -> Duration {
        let rate = self.rate.get();
        if rate == 0 {
            return Duration::ZERO;
        }
        let elapsed = now.duration_since(self.filled.replace(now));
        let more = (elapsed.as_secs_f64() * rate as f64) as i64;
        let burst = (rate / BURST_PARTS) as i64;
        let tokens = self.tokens.get().saturating_add(more).min(burst) - bytes as i64;
        self.tokens.set(tokens);
        Duration::from_secs_f64((-tokens).max(0) as f64 / rate as f64)
    }
}

impl DirectDisk {
    pub fn new(path: &Path, rate: Arc<Rate>) -> DirectDisk {
        let bucket = Bucket {
            rate,
            filled: Cell::new(Instant::now()),
            tokens: Cell::new(0),
        };
        DirectDisk::with(path, Rc::new(bucket))
    }

    /// That of another volume of the same compactor, within the same budget.
    pub fn another(&self, path: &Path) -> DirectDisk {
        DirectDisk::with(path, Rc::clone(&self.bucket))
    }

    fn with(path: &Path, bucket: Rc<Bucket>) -> DirectDisk {
        DirectDisk {
            path: path.to_owned(),
            probed: Cell::new(None),
            bucket,
        }
    }

    async fn ring(&self, file: File, options: &RingOptions) -> io::Result<DirectFile> {
        let device = file.metadata()?.dev();
        let direct = match self.probed.get() {
            Some((probed, direct)) if probed == device => direct,
            _ => {
                let direct = takes_direct(&self.path, device).await;
                self.probed.set(Some((device, direct)));
                direct
            }
        };
        let path = path_of(&file);
        let ring = if direct {
            RingFile::Direct(options.dma_open(&path).await.map_err(by_number)?)
        } else {
            RingFile::Buffered(options.buffered_open(&path).await.map_err(by_number)?)
        };
        Ok(DirectFile { ring, file })
    }
}

/// By which the ring opens a file that is open: glommio asks by path for what it wants to know of
/// it, and panics if that has been unlinked meanwhile.
fn path_of(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Whether direct I/O works on this file system, found by trying.
///
/// With bytes that are on the media: glommio tries its polled ring with the first file that it
/// opens on a device, and if that is empty, believes in it for good.
async fn takes_direct(path: &Path, device: u64) -> bool {
    if !device_is_readable(device) {
        return false;
    }
    let options = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(FILE_MODE)
        .custom_flags(libc::O_TMPFILE)
        .open(path);
    let Ok(file) = options else {
        return false;
    };
    let len = PAGE_LEN as usize;
    if file.write_all_at(&vec![1; len], 0).is_err() || file.sync_all().is_err() {
        return false;
    }
    let mut options = RingOptions::new();
    let Ok(ring) = options.read(true).dma_open(path_of(&file)).await else {
        return false;
    };
    let read = ring.read_at_aligned(0, len).await;
    read.is_ok_and(|read| read.len() == len)
}

/// Whether glommio finds in sysfs what it reads there of the first minor of a device: it takes a
/// device it does not find for memory, and panics at one it finds only in part.
fn device_is_readable(device: u64) -> bool {
    let base = PathBuf::from(format!("/sys/dev/block/{}:0", libc::major(device)));
    match base.canonicalize() {
        Ok(found) => {
            let readable = |name: &str| File::open(found.join("queue").join(name)).is_ok();
            let known = std::fs::read_to_string(found.join("queue/write_cache"));
            let known = known.is_ok_and(|text| {
                matches!(text.trim_end_matches('\n'), "write back" | "write through")
            });
            known && QUEUE_FILES.into_iter().all(readable) && found.join("slaves").is_dir()
        }
        Err(error) => error.kind() == io::ErrorKind::NotFound,
    }
}

const QUEUE_FILES: [&str; 7] = [
    "rotational",
    "minimum_io_size",
    "optimal_io_size",
    "logical_block_size",
    "physical_block_size",
    "max_sectors_kb",
    "max_segment_size",
];

impl DirectFile {
    async fn allocate(&self, len: u64) -> io::Result<()> {
        let allocated = match &self.ring {
            RingFile::Direct(ring) => ring.pre_allocate(len, false).await,
            RingFile::Buffered(ring) => ring.pre_allocate(len, false).await,
        };
        match allocated {
            // A file system without it (ZFS): a full disk is then met by a write.
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => self.file.set_len(len),
            outcome => outcome.map_err(by_number),
        }
    }

    async fn read_once(&self, offset: u64, len: usize) -> io::Result<ReadResult> {
        let read = match &self.ring {
            RingFile::Direct(ring) => ring.read_at_aligned(offset, len).await,
            RingFile::Buffered(ring) => ring.read_at(offset, len).await,
        };
        read.map_err(by_number)
    }
}

/// Keeps the error of the kernel, whose kind decides what becomes of a volume.
fn by_number<T>(error: glommio::GlommioError<T>) -> io::Error {
    match error.raw_os_error() {
        Some(number) => io::Error::from_raw_os_error(number),
        None => error.into(),
    }
}

impl BulkDisk for DirectDisk {
    type File = DirectFile;
    type Read = DirectRead;
    type Buffer = DmaBuffer;

    fn buffer(&self, len: usize) -> DmaBuffer {
        glommio::allocate_dma_buffer(len)
    }

    async fn open(&self, name: &str) -> io::Result<DirectFile> {
        let file = File::open(self.path.join(name))?;
        self.ring(file, RingOptions::new().read(true)).await
    }

    async fn create(&self, name: &str, len: u64) -> io::Result<DirectFile> {
        let path = self.path.join(name);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(&path)?;
        let options = &mut RingOptions::new();
        let made = self.ring(file, options.read(true).write(true)).await;
        let made = match made {
            Ok(made) => made.allocate(len).await.map(|()| made),
            Err(error) => Err(error),
        };
        if made.is_err() {
            let _ = std::fs::remove_file(&path);
        }
        made
    }

    async fn read(&self, file: &DirectFile, offset: u64, len: usize) -> io::Result<DirectRead> {
        debug_assert!(whole_pages(offset) && whole_pages(len as u64));
        for _ in 0..ATTEMPTS_MAX {
            let read = file.read_once(offset, len).await?;
            if read.len() == len {
                return Ok(DirectRead(read));
            }
        }
        Err(io::ErrorKind::UnexpectedEof.into())
    }

    async fn write(
        &self,
        file: &DirectFile,
        offset: u64,
        mut buffer: DmaBuffer,
        len: usize,
    ) -> io::Result<()> {
        debug_assert!(whole_pages(offset) && whole_pages(len as u64));
        buffer.trim_to_size(len);
        match &file.ring {
            RingFile::Direct(ring) => write_direct(ring, offset, buffer).await,
            RingFile::Buffered(ring) => {
                write_buffered(ring, offset, buffer.as_bytes().to_vec()).await
            }
        }
    }

    async fn sync(&self, file: &DirectFile) -> io::Result<()> {
        let synced = match &file.ring {
            RingFile::Direct(ring) => ring.fdatasync().await,
            RingFile::Buffered(ring) => ring.fdatasync().await,
        };
        synced.map_err(by_number)
    }

    async fn sync_dir(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    async fn unlink(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path.join(name))
    }

    async fn pause(&self, bytes: u64) {
        let wait = self.bucket.take(bytes, Instant::now());
        if !wait.is_zero() {
            sleep(wait).await;
        }
    }
}

async fn write_direct(ring: &DmaFile, mut offset: u64, mut buffer: DmaBuffer) -> io::Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        let whole = Rc::new(buffer);
        let written = ring.write_rc_at(Rc::clone(&whole), offset).await;
        let written = written.map_err(by_number)?;
        let rest = &whole.as_bytes()[written.min(whole.len())..];
        if rest.is_empty() {
            return Ok(());
        }
        // What was written of a direct write is whole sectors, so the rest can be one again.
        buffer = glommio::allocate_dma_buffer(rest.len());
        buffer.as_bytes_mut().copy_from_slice(rest);
        offset += written as u64;
    }
    Err(io::ErrorKind::WriteZero.into())
}

async fn write_buffered(
    ring: &BufferedFile,
    mut offset: u64,
    mut bytes: Vec<u8>,
) -> io::Result<()> {
    for _ in 0..ATTEMPTS_MAX {
        let written = ring.write_at(bytes.clone(), offset).await;
        let written = written.map_err(by_number)?.min(bytes.len());
        bytes.drain(..written);
        if bytes.is_empty() {
            return Ok(());
        }
        offset += written as u64;
    }
    Err(io::ErrorKind::WriteZero.into())
}
