//! What is computed over a body as it comes in: its digest, and a CRC of each stride.
//!
//! Used by `fill`. Pieces are taken in order, on the thread of the fill or on a hashing thread that
//! waits: SHA-256 takes longer than all else that a fill costs, and whoever is served by the fill's
//! own core waits for it. A hashing thread goes on with a body for as long as there are pieces of it.

use std::collections::VecDeque;
use std::mem;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::disk::{Disk, Work};
use crate::record::CRC_STRIDE_BYTES;

/// Pieces of a body that wait for a hashing thread: with what is handed over at once the thread
/// sleeps after every piece, and waking it takes as long as a fifth of the hashing. They stay in
/// memory meanwhile.
const BACKLOG_PIECES_MAX: usize = 4;

struct Sums {
    hasher: Hasher,
    crc: crc32fast::Hasher,
    crcs: Vec<u32>,
    /// Bytes taken.
    at: u64,
}

impl Sums {
    fn new(algorithm: Algorithm) -> Sums {
        Sums {
            hasher: Hasher::new(algorithm),
            crc: crc32fast::Hasher::new(),
            crcs: Vec::new(),
            at: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = CRC_STRIDE_BYTES - self.at % CRC_STRIDE_BYTES;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.crc.update(now);
            self.at += now.len() as u64;
            rest = later;
            if self.at.is_multiple_of(CRC_STRIDE_BYTES) {
                let crc = mem::take(&mut self.crc);
                self.crcs.push(crc.finalize());
            }
        }
    }

    /// Of the bytes taken so far.
    fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    fn take_crcs(&mut self) -> Vec<u32> {
        if !self.at.is_multiple_of(CRC_STRIDE_BYTES) {
            self.crcs.push(mem::take(&mut self.crc).finalize());
        }
        mem::take(&mut self.crcs)
    }
}

/// The sums of one body, and what is still to be added to them.
pub(crate) struct Summing {
    backlog: Arc<Mutex<Backlog>>,
    /// From the work that is under way: a piece was taken, or all were. Closed when it has ended.
    moved: flume::Receiver<()>,
}

struct Backlog {
    pieces: VecDeque<Bytes>,
    /// `None`: work on them is under way, and takes the pieces too.
    sums: Option<Box<Sums>>,
}

impl Summing {
    pub(crate) fn new(algorithm: Algorithm) -> Summing {
        let (_, moved) = flume::bounded(1);
        let backlog = Backlog {
            pieces: VecDeque::new(),
            sums: Some(Box::new(Sums::new(algorithm))),
        };
        Summing {
            backlog: Arc::new(Mutex::new(backlog)),
            moved,
        }
    }

    /// Waits until a piece can be added. Dropped before its end, nothing is lost.
    pub(crate) async fn room(&self) {
        self.until(|backlog| backlog.pieces.len() < BACKLOG_PIECES_MAX)
            .await;
    }

    /// Adds a piece, here or elsewhere; call it after [`Summing::room`].
    pub(crate) fn add(&mut self, disk: &impl Disk, bytes: &Bytes) {
        let mut backlog = lock(&self.backlog);
        backlog.pieces.push_back(bytes.clone());
        let Some(sums) = backlog.sums.take() else {
            return;
        };
        drop(backlog);
        let (moving, moved) = flume::bounded(1);
        self.moved = moved;
        let backlog = Arc::clone(&self.backlog);
        let work: Work = Box::new(move || add_all(sums, &backlog, &moving));
        if let Err(work) = disk.elsewhere(bytes.len(), work) {
            work();
        }
    }

    /// Of all that was added.
    pub(crate) async fn digest(&self) -> Digest {
        self.settled(|sums| sums.digest()).await
    }

    /// The CRCs of all strides, the last one included, which may be short. The body ends here.
    pub(crate) async fn take_crcs(&self) -> Vec<u32> {
        self.settled(Sums::take_crcs).await
    }

    async fn settled<T>(&self, of: impl FnOnce(&mut Sums) -> T) -> T {
        self.until(|backlog| backlog.sums.is_some()).await;
        let mut backlog = lock(&self.backlog);
        of(backlog.sums.as_mut().expect("nobody else takes them"))
    }

    async fn until(&self, holds: impl Fn(&Backlog) -> bool) {
        while !holds(&lock(&self.backlog)) {
            let told = self.moved.recv_async().await;
            assert!(
                told.is_ok() || holds(&lock(&self.backlog)),
                "work that was taken is done"
            );
        }
    }
}

impl Drop for Summing {
    fn drop(&mut self) {
        // Nobody waits for them any more.
        lock(&self.backlog).pieces.clear();
    }
}

/// Takes pieces until there are none. Whoever adds one either is seen here or finds the sums.
fn add_all(mut sums: Box<Sums>, backlog: &Mutex<Backlog>, moving: &flume::Sender<()>) {
    loop {
        let mut held = lock(backlog);
        let piece = held.pieces.pop_front();
        let Some(piece) = piece else {
            held.sums = Some(sums);
            drop(held);
            // The fill may be gone, or was told already and has not looked.
            let _ = moving.try_send(());
            return;
        };
        drop(held);
        let _ = moving.try_send(());
        sums.update(&piece);
    }
}

/// Nothing that can panic runs under it.
fn lock(backlog: &Mutex<Backlog>) -> MutexGuard<'_, Backlog> {
    backlog.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::cores::{Cores, HANDED_LEN_MIN};
    use crate::disk::uring::UringDisk;

    const ATTEMPTS_MAX: usize = 1000;

    fn ring() -> monoio::Runtime<monoio::time::TimeDriver<monoio::IoUringDriver>> {
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("io_uring is available")
    }

    #[test]
    fn a_stride_has_its_crc_wherever_pieces_end() {
        let stride = CRC_STRIDE_BYTES as usize;
        let body: Vec<u8> = (0..stride * 2 + 7).map(|at| at as u8).collect();
        let expected: Vec<u32> = body.chunks(stride).map(crc32fast::hash).collect();
        for piece_len in [1 << 10, stride - 1, stride, body.len()] {
            let mut sums = Sums::new(Algorithm::Sha256);
            body.chunks(piece_len).for_each(|piece| sums.update(piece));
            assert_eq!(
                sums.digest(),
                Digest::sha256(&body),
                "pieces of {piece_len}"
            );
            assert_eq!(sums.take_crcs(), expected, "pieces of {piece_len}");
        }
        let mut whole = Sums::new(Algorithm::Sha256);
        whole.update(&body[..stride]);
        assert_eq!(whole.take_crcs(), expected[..1]);
    }

    #[test]
    fn pieces_wait_for_a_thread_at_work_and_none_is_passed_over() {
        let name = format!("entrepot-sums-{}", std::process::id());
        let path = std::env::temp_dir().join(name);
        let disk = UringDisk::open(&path).expect("a directory");
        let disk = disk.with_cores(Cores::start(1).expect("a thread"));
        let body: Vec<u8> = (0..16 << 20).map(|at: u32| (at / 7) as u8).collect();
        let strides = body.chunks(CRC_STRIDE_BYTES as usize).map(crc32fast::hash);
        let expected = (Digest::sha256(&body), strides.collect());
        let body = Bytes::from(body);
        let mut waited = 0;
        // The thread may not wait yet, or be faster than this one.
        for _ in 0..ATTEMPTS_MAX {
            let sums = ring().block_on(async {
                let mut summing = Summing::new(Algorithm::Sha256);
                for at in (0..body.len()).step_by(HANDED_LEN_MIN) {
                    summing.room().await;
                    summing.add(&disk, &body.slice(at..at + HANDED_LEN_MIN));
                    let waiting = lock(&summing.backlog).pieces.len();
                    assert!(waiting <= BACKLOG_PIECES_MAX);
                    waited += waiting;
                }
                (summing.digest().await, summing.take_crcs().await)
            });
            assert_eq!(sums, expected);
            if waited > 0 {
                break;
            }
        }
        std::fs::remove_dir_all(&path).expect("removed");
        assert!(waited > 0, "a thread was at work");
    }
}
