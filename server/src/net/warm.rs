//! Reads cold pages of the store into the page cache on threads of its own.
//!
//! `sendfile` of a page that is not cached stops the whole shard for the time of a disk read
//! (R3), so `sendfile` probes first and asks here when the probe misses. A pool is small: it
//! exists to wait, and the disk's queue is deep enough with a few readers. Each volume has its own,
//! so that a disk that does not answer keeps nobody from the others.

use std::io;
use std::sync::Arc;
use std::thread;

use bytes::Bytes;
use entrepot_storage::disk::uring::{PATIENCE, UringDisk};
use entrepot_storage::{Body, Lease};
use monoio::time::timeout;
use rustix::io::pread;

/// Threads that wait for one disk.
const THREADS: usize = 4;
/// Requests that may wait for a thread; more than this and a sender waits, which only slows
/// cold reads down.
const QUEUE_LEN: usize = 256;
/// Bytes read for one request: what a `sendfile` slice needs, and the next one.
pub const WINDOW_LEN: u64 = 2 << 20;

/// Bytes read in one call; a whole number of the kernel's read-ahead units.
const READ_LEN: usize = 128 << 10;

struct Request {
    lease: Lease<UringDisk>,
    offset: u64,
    len: u64,
    /// Whether the bytes are wanted, or only their pages.
    keep: bool,
    done: flume::Sender<Option<Vec<u8>>>,
}

/// Sends requests to the pools; cheap to clone, one for the process.
#[derive(Clone)]
pub struct Warmer {
    /// By volume.
    pools: Arc<[flume::Sender<Request>]>,
}

impl Warmer {
    /// For a store of so many volumes.
    pub fn start(volumes: usize) -> io::Result<Warmer> {
        let pools = (0..volumes).map(pool).collect::<io::Result<Vec<_>>>()?;
        Ok(Warmer {
            pools: pools.into(),
        })
    }

    /// Returns when the pages of a range of the lease's file were read, or could not be: the
    /// caller's `sendfile` meets the error itself, except for a disk that does not answer
    /// (`TimedOut`), of which it would never return.
    pub async fn warm(&self, lease: Lease<UringDisk>, offset: u64, len: u64) -> io::Result<()> {
        self.ask(lease, offset, len, false).await.map(drop)
    }

    /// A whole body as bytes, for the few that are not sent by `sendfile`. `None` when it can't
    /// be read.
    pub async fn read(&self, body: &Body<UringDisk>) -> Option<Bytes> {
        if let Some(bytes) = &body.bytes {
            return Some(bytes.clone());
        }
        let (lease, len) = (body.lease.clone(), body.len);
        let offset = lease.offset();
        let bytes = self.ask(lease, offset, len, true).await.ok()??;
        (bytes.len() as u64 == len && !body.lease.revoked()).then(|| bytes.into())
    }

    async fn ask(
        &self,
        lease: Lease<UringDisk>,
        offset: u64,
        len: u64,
        keep: bool,
    ) -> io::Result<Option<Vec<u8>>> {
        let (done, answer) = flume::bounded(1);
        let pool = &self.pools[lease.volume()];
        let request = Request {
            lease,
            offset,
            len,
            keep,
            done,
        };
        let asked = async {
            pool.send_async(request).await.ok()?;
            answer.recv_async().await.ok()?
        };
        let timed_out = |_| io::ErrorKind::TimedOut.into();
        // In a box, since each connection would hold its timer's 2 KB.
        Box::pin(timeout(PATIENCE, asked)).await.map_err(timed_out)
    }
}

fn pool(volume: usize) -> io::Result<flume::Sender<Request>> {
    let (requests, queue) = flume::bounded::<Request>(QUEUE_LEN);
    for number in 0..THREADS {
        let queue = queue.clone();
        thread::Builder::new()
            .name(format!("warm-{volume}-{number}"))
            .spawn(move || run(&queue))?;
    }
    Ok(requests)
}

fn run(queue: &flume::Receiver<Request>) {
    let mut buffer = vec![0; READ_LEN];
    while let Ok(request) = queue.recv() {
        // Whoever asked may have been told that the disk does not answer.
        if request.done.is_disconnected() {
            continue;
        }
        let end = request.offset + request.len;
        let mut kept = request.keep.then(Vec::new);
        let mut at = request.offset;
        while at < end {
            let want = buffer.len().min((end - at) as usize);
            match pread(request.lease.file(), &mut buffer[..want], at) {
                Ok(count) if count > 0 => {
                    if let Some(kept) = &mut kept {
                        kept.extend_from_slice(&buffer[..count]);
                    }
                    at += count as u64;
                }
                _ => break,
            }
        }
        let _ = request.done.send(kept);
    }
}
