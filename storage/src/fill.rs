//! A fill: the writing side of one body.
//!
//! Made by `Writer`, fed by one task, followed by any number through its watermark. Each piece is
//! hashed while it is being written, by a hashing thread if one waits, which may be some pieces
//! behind; writes run as tasks of the disk, so that dropping a fill loses none that was issued (R2).
//! A fill that is dropped has failed.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

use crate::Seconds;
use crate::digest::Digest;
use crate::disk::Disk;
use crate::lease::{Lease, SegmentFile};
use crate::page::round_up;
use crate::record::BodyEntry;
use crate::segment::Segment;
use crate::store::Body;
use crate::sums::Summing;
use crate::wait::{Gate, Waiters};
use crate::watermark::{FillFailure, FillState, Watermark};
use crate::writer::Shared;

/// Writes of one fill under way at once: one is written while the next comes in.
const WRITES_MAX: usize = 2;
/// Written bytes between two hints to start writeback: keeps the sync of the group short.
const WRITEBACK_STEP_BYTES: u64 = 16 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FillError {
    #[error("the body is longer than its length")]
    TooLong,
    #[error("the body is shorter than its length")]
    TooShort,
    #[error("the body has another digest")]
    WrongDigest,
    #[error("the digest was purged while the body came in")]
    Forgotten,
    #[error("the store is full")]
    Full,
    #[error("the disk failed")]
    DiskFailed,
}

impl From<FillFailure> for FillError {
    fn from(failure: FillFailure) -> FillError {
        match failure {
            FillFailure::TooLong => FillError::TooLong,
            FillFailure::TooShort => FillError::TooShort,
            FillFailure::WrongDigest => FillError::WrongDigest,
            FillFailure::Forgotten => FillError::Forgotten,
            FillFailure::Full => FillError::Full,
            // The other ends are made by the owner of the fill, who then has no fill to ask.
            FillFailure::Dropped
            | FillFailure::Upstream
            | FillFailure::Timeout
            | FillFailure::DiskFailed => FillError::DiskFailed,
        }
    }
}

/// What a fill shares with its writes and with its writer.
pub(crate) struct Progress<D: Disk> {
    pub(crate) digest: Digest,
    pub(crate) sequence: u64,
    /// `None`: staging.
    pub(crate) segment: Option<Rc<Segment<D>>>,
    pub(crate) file: Arc<SegmentFile<D>>,
    /// Of the body.
    pub(crate) offset: u64,
    pub(crate) watermark: Arc<Watermark<D>>,
    /// The file of a body of unknown length grows once at a time.
    pub(crate) growing: Gate,
    /// Of the file: so much of it has its space already.
    pub(crate) allocated: Cell<u64>,
    /// and so much is waited for.
    wanted: Cell<u64>,
    failure: Cell<Option<FillFailure>>,
    verified: Cell<bool>,
    pieces: RefCell<VecDeque<Piece>>,
    pieces_done: Cell<u64>,
    written: Cell<u64>,
    written_back: Cell<u64>,
    changed: Waiters,
}

/// A write that was issued: where it ends in the body, and whether it is complete.
struct Piece {
    end: u64,
    complete: bool,
}

impl<D: Disk> Progress<D> {
    pub(crate) fn new(
        digest: Digest,
        sequence: u64,
        segment: Option<Rc<Segment<D>>>,
        file: Arc<SegmentFile<D>>,
        offset: u64,
        watermark: Arc<Watermark<D>>,
    ) -> Progress<D> {
        Progress {
            digest,
            sequence,
            segment,
            file,
            offset,
            watermark,
            growing: Gate::default(),
            allocated: Cell::new(u64::MAX),
            wanted: Cell::new(0),
            failure: Cell::new(None),
            verified: Cell::new(false),
            pieces: RefCell::default(),
            pieces_done: Cell::new(0),
            written: Cell::new(0),
            written_back: Cell::new(0),
            changed: Waiters::default(),
        }
    }

    pub(crate) fn ended(&self) -> bool {
        self.verified.get() || self.failure.get().is_some()
    }

    /// Of a body of unknown length: whether its file can take it up to `end`. If so, it is taken.
    pub(crate) fn has_room(&self, end: u64) -> bool {
        let Some(segment) = &self.segment else {
            return end <= self.file.charged();
        };
        let room = segment.file_len_for(self.offset, end) <= segment.len.get();
        if room {
            segment.extend_to(self.offset + round_up(end));
        }
        room
    }

    pub(crate) fn is_in(&self, segment: &Rc<Segment<D>>) -> bool {
        self.segment
            .as_ref()
            .is_some_and(|own| Rc::ptr_eq(own, segment))
    }

    pub(crate) fn verified(&self) -> bool {
        self.verified.get()
    }

    /// The first end counts. Whether this is it.
    pub(crate) fn fail(&self, why: FillFailure) -> bool {
        if self.ended() {
            return false;
        }
        self.failure.set(Some(why));
        self.watermark.failed(why);
        self.changed.wake_all();
        true
    }

    fn check(&self) -> Result<(), FillError> {
        self.failure.get().map_or(Ok(()), |why| Err(why.into()))
    }

    /// Starts a write at `at`, which ends at `end` of the body.
    pub(crate) fn issue(self: &Rc<Self>, shared: &Rc<Shared<D>>, at: u64, end: u64, bytes: Bytes) {
        let number = self.pieces_done.get() + self.pieces.borrow().len() as u64;
        self.pieces.borrow_mut().push_back(Piece {
            end,
            complete: false,
        });
        if let Some(segment) = &self.segment {
            segment.write_issued();
        }
        let (progress, task_shared) = (Rc::clone(self), Rc::clone(shared));
        shared.tasks().spawn(async move {
            let disk = task_shared.disk(progress.file.volume);
            let outcome = disk.write(&progress.file.file, at, bytes).await;
            // The kernel may still write what `TimedOut`: harmless, for `write_failed` gives the
            // place up before anybody else runs.
            if let Some(segment) = &progress.segment {
                segment.write_completed();
            }
            match outcome {
                Ok(()) => progress.completed(number, disk),
                Err(error) => task_shared.write_failed(&progress, &error),
            }
        });
    }

    /// Writes may complete in any order; the watermark moves with the contiguous ones.
    fn completed(&self, number: u64, disk: &D) {
        let mut pieces = self.pieces.borrow_mut();
        let first = self.pieces_done.get();
        pieces[(number - first) as usize].complete = true;
        let mut done = first;
        while pieces.front().is_some_and(|piece| piece.complete) {
            let piece = pieces.pop_front().expect("just seen");
            self.written.set(piece.end);
            done += 1;
        }
        self.pieces_done.set(done);
        drop(pieces);
        if !self.ended() {
            self.watermark.advance(self.written.get());
        }
        let (from, to) = (self.written_back.get(), self.written.get());
        if to - from >= WRITEBACK_STEP_BYTES {
            disk.writeback(&self.file.file, self.offset + from, to - from);
            self.written_back.set(to);
        }
        self.changed.wake_all();
    }

    /// Waits until the first bytes of the body are there, or wait for space. False if it ends
    /// before.
    pub(crate) async fn needs_space(&self) -> bool {
        let waits = || self.wanted.get() > self.allocated.get();
        let begun = self.until(|| self.written.get() > 0 || waits());
        begun.await.is_ok()
    }

    pub(crate) fn allocated_now(&self, file_end: u64) {
        self.allocated.set(file_end);
        self.changed.wake_all();
    }

    /// Waits until the file has its space up to there.
    async fn allocated_to(&self, file_end: u64) -> Result<(), FillError> {
        if self.allocated.get() < file_end {
            self.wanted.set(file_end);
            self.changed.wake_all();
        }
        self.until(|| self.allocated.get() >= file_end).await
    }

    /// Waits until fewer than `max` writes are under way.
    async fn writes_below(&self, max: usize) -> Result<(), FillError> {
        self.until(|| self.pieces.borrow().len() < max).await
    }

    async fn until(&self, holds: impl Fn() -> bool) -> Result<(), FillError> {
        self.changed
            .until(|| {
                let failed = self.failure.get().map(|why| Err(why.into()));
                failed.or_else(|| holds().then_some(Ok(())))
            })
            .await
    }
}

pub struct Fill<D: Disk> {
    shared: Rc<Shared<D>>,
    progress: Rc<Progress<D>>,
    length: Option<u64>,
    media_type: Option<Arc<str>>,
    taken: u64,
    sums: Summing,
    /// The pieces so far, while the body may be one that is held in RAM.
    small: Option<Vec<Bytes>>,
}

impl<D: Disk> Fill<D> {
    pub(crate) fn new(
        shared: Rc<Shared<D>>,
        progress: Rc<Progress<D>>,
        length: Option<u64>,
        media_type: Option<Arc<str>>,
    ) -> Fill<D> {
        let small = progress.segment.is_some()
            && length.is_none_or(|length| length <= shared.store.index.small_max());
        Fill {
            length,
            media_type,
            taken: 0,
            sums: Summing::new(progress.digest.algorithm()),
            small: small.then(Vec::new),
            shared,
            progress,
        }
    }

    pub(crate) fn progress(&self) -> &Rc<Progress<D>> {
        &self.progress
    }

    pub fn watermark(&self) -> Arc<Watermark<D>> {
        Arc::clone(&self.progress.watermark)
    }

    /// Bytes taken so far, all written and hashed or about to be: a resumed source continues
    /// here.
    pub fn written(&self) -> u64 {
        self.taken
    }

    /// Takes the next piece of the body. Returns while it is still being written. If the future
    /// is dropped, the piece was not taken.
    pub async fn write(&mut self, bytes: impl Into<Bytes>) -> Result<(), FillError> {
        let bytes = bytes.into();
        self.progress.check()?;
        let end = self.taken + bytes.len() as u64;
        if self.length.is_some_and(|length| end > length) {
            self.end_badly(FillFailure::TooLong);
            return Err(FillError::TooLong);
        }
        match self.length {
            None => self.make_room(end).await?,
            Some(_) => {
                let file_end = self.progress.offset + end;
                self.progress.allocated_to(file_end).await?;
            }
        }
        self.sums.room().await;
        self.progress.writes_below(WRITES_MAX).await?;
        if bytes.is_empty() {
            return Ok(());
        }
        // No await from here on: sums and file never disagree.
        let disk = self.shared.disk(self.progress.file.volume);
        self.sums.add(disk, &bytes);
        if let Some(pieces) = &mut self.small {
            pieces.push(bytes.clone());
            if end > self.shared.store.index.small_max() {
                self.small = None;
            }
        }
        let at = self.progress.offset + self.taken;
        self.progress.issue(&self.shared, at, end, bytes);
        self.taken = end;
        Ok(())
    }

    /// Grows the file of a body of unknown length.
    async fn make_room(&mut self, end: u64) -> Result<(), FillError> {
        match self.shared.grow_for(&self.progress, end).await {
            Ok(()) => Ok(()),
            Err(why) => {
                self.end_badly(why);
                Err(why.into())
            }
        }
    }

    /// Says at the end of the body whether length and digest are right, before `finish` lets
    /// anybody find it. After an error the fill has failed.
    pub async fn verify(&mut self) -> Result<(), FillError> {
        self.progress.check()?;
        if self.length.is_some_and(|length| self.taken < length) {
            self.end_badly(FillFailure::TooShort);
            return Err(FillError::TooShort);
        }
        let digest = self.sums.digest().await;
        self.progress.writes_below(1).await?;
        // The footer comes at its end.
        self.progress
            .allocated_to(self.progress.file.charged())
            .await?;
        if digest != self.progress.digest {
            self.end_badly(FillFailure::WrongDigest);
            return Err(FillError::WrongDigest);
        }
        Ok(())
    }

    /// Ends the body. If length and digest are right it is in the index when this returns, and
    /// survives a crash once its group is committed.
    pub async fn finish(mut self, now: Seconds) -> Result<Body<D>, FillError> {
        self.verify().await?;
        let crcs = self.sums.take_crcs().await;
        let body = self.settle(crcs, now);
        self.progress.verified.set(true);
        self.progress.watermark.verified(self.taken);
        self.shared.fill_ended(&self.progress);
        Ok(body)
    }

    /// The body as it will be found, in the index unless it is staging.
    fn settle(&mut self, crcs: Vec<u32>, now: Seconds) -> Body<D> {
        let progress = &self.progress;
        let lease = Lease::new(Arc::clone(&progress.file), progress.offset, self.taken);
        let media_type = self.media_type.clone();
        if progress.segment.is_none() {
            return Body {
                len: self.taken,
                media_type,
                bytes: None,
                unverified: false,
                lease,
            };
        }
        let entry = BodyEntry {
            digest: progress.digest,
            offset: progress.offset,
            len: self.taken,
            created: now,
            media_type: media_type.clone(),
            crcs,
        };
        let pieces = self.small.take();
        let bytes = pieces
            .filter(|_| self.shared.store.index.admit_small(self.taken))
            .map(join);
        let body = Body {
            len: self.taken,
            media_type,
            bytes,
            unverified: false,
            lease,
        };
        self.shared.settle(progress, entry, &body, now);
        body
    }

    /// Ends the fill without a body; every follower is told why.
    pub fn fail(mut self, why: FillFailure) {
        self.end_badly(why);
    }

    fn end_badly(&mut self, why: FillFailure) {
        if self.progress.fail(why) {
            self.shared.fill_ended(&self.progress);
        }
    }
}

impl<D: Disk> Drop for Fill<D> {
    fn drop(&mut self) {
        self.end_badly(FillFailure::Dropped);
        debug_assert!(self.progress.watermark.state() != FillState::Running);
    }
}

/// One buffer of exactly the body's length: a received piece may sit in a far larger one.
fn join(pieces: Vec<Bytes>) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(Bytes::len).sum());
    for piece in pieces {
        joined.extend_from_slice(&piece);
    }
    joined.freeze()
}
