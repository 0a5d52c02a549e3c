//! The watermark of a fill: how many of its bytes may be read now, and by whom that is awaited.
//!
//! Moved by the fill on its own thread; followed from every thread. Bytes are released only
//! behind the withheld tail until the digest matched (S2). A fill ends in one of three ways:
//! verified, failed, or dropped, which is failed. No end is ever missed: a follower registers
//! under the lock and looks again before it sleeps; the fill publishes before it takes the lock.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll, Waker};

use crate::disk::Disk;
use crate::lease::{Lease, SegmentFile};

/// How a fill can end badly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FillFailure {
    /// The fill was dropped before its end.
    Dropped = 2,
    /// The source failed or went away.
    Upstream,
    /// The source stalled.
    Timeout,
    TooShort,
    TooLong,
    WrongDigest,
    /// A purge came first.
    Forgotten,
    DiskFailed,
    /// The file of the body could not grow: the length was unknown and the budget at its end, or a
    /// quota or somebody else took the disk's room.
    Full,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FillState {
    Running,
    Verified,
    Failed(FillFailure),
}

const RUNNING: u8 = 0;
const VERIFIED: u8 = 1;
const FAILURES: [FillFailure; 9] = [
    FillFailure::Dropped,
    FillFailure::Upstream,
    FillFailure::Timeout,
    FillFailure::TooShort,
    FillFailure::TooLong,
    FillFailure::WrongDigest,
    FillFailure::Forgotten,
    FillFailure::DiskFailed,
    FillFailure::Full,
];

/// Stands for a length that is not known yet.
const LEN_UNKNOWN: u64 = u64::MAX;

pub struct Watermark<D: Disk> {
    file: Arc<SegmentFile<D>>,
    offset: u64,
    withheld_len: u64,
    len: AtomicU64,
    readable: AtomicU64,
    state: AtomicU8,
    followers: AtomicUsize,
    waiting: Mutex<Waiting>,
    ended: OnceLock<()>,
}

#[derive(Default)]
struct Waiting {
    slots: Vec<Slot>,
    free: Vec<usize>,
}

/// One follower: what it waits for, while it does.
#[derive(Default)]
struct Slot {
    beyond: u64,
    waker: Option<Waker>,
}

impl<D: Disk> Watermark<D> {
    pub(crate) fn new(
        file: Arc<SegmentFile<D>>,
        offset: u64,
        len: Option<u64>,
        withheld_len: u64,
    ) -> Arc<Watermark<D>> {
        Arc::new(Watermark {
            file,
            offset,
            withheld_len,
            len: AtomicU64::new(len.unwrap_or(LEN_UNKNOWN)),
            readable: AtomicU64::new(0),
            state: AtomicU8::new(RUNNING),
            followers: AtomicUsize::new(0),
            waiting: Mutex::default(),
            ended: OnceLock::new(),
        })
    }

    /// Length of the body: known from the start, or once verified.
    pub fn len(&self) -> Option<u64> {
        Some(self.len.load(Ordering::Acquire)).filter(|len| *len != LEN_UNKNOWN)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == Some(0)
    }

    /// How many bytes of the body may be read now. They never change (S1).
    pub fn readable(&self) -> u64 {
        self.readable.load(Ordering::Acquire)
    }

    pub fn state(&self) -> FillState {
        match self.state.load(Ordering::Acquire) {
            RUNNING => FillState::Running,
            VERIFIED => FillState::Verified,
            code => FillState::Failed(FAILURES[usize::from(code) - 2]),
        }
    }

    /// The extent of the body. Only the first `readable` bytes may be read.
    pub fn lease(&self) -> Lease<D> {
        Lease::new(Arc::clone(&self.file), self.offset, self.len().unwrap_or(0))
    }

    pub fn followers(&self) -> usize {
        self.followers.load(Ordering::Acquire)
    }

    pub fn follow(self: &Arc<Self>) -> Follower<D> {
        self.followers.fetch_add(1, Ordering::AcqRel);
        let mut waiting = self.lock();
        let slot = waiting.free.pop().unwrap_or_else(|| {
            waiting.slots.push(Slot::default());
            waiting.slots.len() - 1
        });
        drop(waiting);
        Follower {
            watermark: Arc::clone(self),
            slot,
        }
    }

    /// Publishes that `written` contiguous bytes are on the disk's side.
    pub(crate) fn advance(&self, written: u64) {
        let released = match self.len() {
            // S2: the tail stays unreadable until the digest matched.
            Some(len) => written.min(len.saturating_sub(self.withheld_len)),
            None => written.saturating_sub(self.withheld_len),
        };
        if released > self.readable.load(Ordering::Relaxed) {
            // Release before waking: a follower that sees the wake must see the bytes.
            self.readable.store(released, Ordering::Release);
            self.wake(|slot| slot.beyond < released);
        }
    }

    /// The digest matched: all `len` bytes may be read.
    pub(crate) fn verified(&self, len: u64) {
        self.end(|| {
            self.len.store(len, Ordering::Release);
            self.readable.store(len, Ordering::Release);
            self.state.store(VERIFIED, Ordering::Release);
        });
    }

    pub(crate) fn failed(&self, why: FillFailure) {
        self.end(|| self.state.store(why as u8, Ordering::Release));
    }

    /// The first end counts.
    fn end(&self, publish: impl FnOnce()) {
        if self.ended.set(()).is_ok() {
            publish();
            self.wake(|_| true);
        }
    }

    /// Wakes outside of the lock: a waker may run anything.
    fn wake(&self, due: impl Fn(&Slot) -> bool) {
        let mut waiting = self.lock();
        let wakers: Vec<Waker> = waiting
            .slots
            .iter_mut()
            .filter(|slot| slot.waker.is_some() && due(slot))
            .filter_map(|slot| slot.waker.take())
            .collect();
        drop(waiting);
        for waker in wakers {
            waker.wake();
        }
    }

    // Nothing that runs under the lock can leave it half changed, so poison says nothing.
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The reading side of a fill. Dropping it is free and affects nobody.
pub struct Follower<D: Disk> {
    watermark: Arc<Watermark<D>>,
    slot: usize,
}

impl<D: Disk> Follower<D> {
    pub fn watermark(&self) -> &Arc<Watermark<D>> {
        &self.watermark
    }

    /// Waits until more than `beyond` bytes are readable or the fill has ended.
    pub fn wait(&mut self, beyond: u64) -> Wait<'_, D> {
        Wait {
            follower: self,
            beyond,
        }
    }
}

impl<D: Disk> Drop for Follower<D> {
    fn drop(&mut self) {
        let mut waiting = self.watermark.lock();
        let waker = waiting.slots[self.slot].waker.take();
        waiting.free.push(self.slot);
        drop(waiting);
        drop(waker);
        self.watermark.followers.fetch_sub(1, Ordering::AcqRel);
    }
}

pub struct Wait<'f, D: Disk> {
    follower: &'f mut Follower<D>,
    beyond: u64,
}

impl<D: Disk> Wait<'_, D> {
    fn look(&self) -> Option<(u64, FillState)> {
        let watermark = &self.follower.watermark;
        // The state first: an end seen implies that its `readable` is seen.
        let state = watermark.state();
        let readable = watermark.readable();
        (readable > self.beyond || state != FillState::Running).then_some((readable, state))
    }
}

impl<D: Disk> Future for Wait<'_, D> {
    type Output = (u64, FillState);

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<(u64, FillState)> {
        if let Some(seen) = self.look() {
            return Poll::Ready(seen);
        }
        let watermark = &self.follower.watermark;
        let mut waiting = watermark.lock();
        let slot = &mut waiting.slots[self.follower.slot];
        slot.beyond = self.beyond;
        match &mut slot.waker {
            Some(waker) => waker.clone_from(cx.waker()),
            empty => *empty = Some(cx.waker().clone()),
        }
        // Look again under the lock: what was published since then has no waker to wake.
        match self.look() {
            Some(seen) => {
                waiting.slots[self.follower.slot].waker = None;
                Poll::Ready(seen)
            }
            None => Poll::Pending,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Condvar;
    use std::task::Wake;
    use std::thread;

    use super::*;
    use crate::budget::Budget;
    use crate::disk::sim::{Executor, Random, SimDisk, SimWorld};

    fn watermark(len: Option<u64>, withheld_len: u64) -> Arc<Watermark<SimDisk>> {
        let world = SimWorld::new(Random::new(1), 1 << 20);
        let executor = Executor::new(Random::new(1));
        let disk = SimDisk::new(&world, &executor);
        let file = Arc::new(Mutex::new(None));
        let made = Arc::clone(&file);
        executor.spawn(async move {
            let created = disk.create("a", 4096).await.expect("room");
            *made.lock().expect("not poisoned") = Some(created);
        });
        while file.lock().expect("not poisoned").is_none() {
            executor.step(&world);
        }
        let file = file.lock().expect("not poisoned").take().expect("created");
        let file = SegmentFile::staging(file, 0, 0, Arc::new(Budget::new(1 << 20, 1)));
        Watermark::new(Arc::new(file), 0, len, withheld_len)
    }

    #[test]
    fn the_tail_is_withheld_until_verified() {
        for (len, written, readable) in [
            (Some(100), 100, 0),
            (Some(1000), 1000, 900),
            (Some(1000), 500, 500),
            (Some(1000), 950, 900),
            (None, 100, 0),
            (None, 950, 850),
        ] {
            let watermark = watermark(len, 100);
            watermark.advance(written);
            assert_eq!(watermark.readable(), readable, "{len:?} {written}");
            assert_eq!(watermark.state(), FillState::Running);
            watermark.verified(written);
            assert_eq!(watermark.readable(), written);
            assert_eq!(watermark.len(), Some(written));
        }
    }

    #[test]
    fn the_first_end_counts_and_every_failure_is_told() {
        for why in FAILURES {
            let watermark = watermark(Some(10), 0);
            watermark.failed(why);
            watermark.verified(10);
            watermark.failed(FillFailure::Dropped);
            assert_eq!(watermark.state(), FillState::Failed(why));
            assert_eq!(watermark.readable(), 0);
        }
    }

    /// Parks a thread until it is woken.
    #[derive(Default)]
    struct Parked(Mutex<bool>, Condvar);

    impl Wake for Parked {
        fn wake(self: Arc<Self>) {
            *self.0.lock().expect("not poisoned") = true;
            self.1.notify_one();
        }
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        let parked = Arc::new(Parked::default());
        let waker = Waker::from(Arc::clone(&parked));
        let mut future = std::pin::pin!(future);
        loop {
            if let Poll::Ready(output) = future.as_mut().poll(&mut Context::from_waker(&waker)) {
                return output;
            }
            let mut woken = parked.0.lock().expect("not poisoned");
            while !*woken {
                woken = parked.1.wait(woken).expect("not poisoned");
            }
            *woken = false;
        }
    }

    // A wake that is lost leaves a thread parked, and this test without an end.
    #[test]
    fn no_wake_is_lost_between_threads() {
        const LEN: u64 = 20_000;
        for round in 0..5 {
            let watermark = watermark(Some(LEN), 1);
            let threads: Vec<_> = (0..4)
                .map(|number| {
                    let watermark = Arc::clone(&watermark);
                    thread::spawn(move || {
                        let mut follower = watermark.follow();
                        let mut at = 0;
                        loop {
                            let (readable, state) = block_on(follower.wait(at));
                            assert!(readable > at || state != FillState::Running);
                            at = readable;
                            if state != FillState::Running {
                                return (at, state);
                            }
                            if number == 0 {
                                // One that comes and goes.
                                follower = watermark.follow();
                            }
                        }
                    })
                })
                .collect();
            for written in 1..=LEN {
                watermark.advance(written);
            }
            if round % 2 == 0 {
                watermark.verified(LEN);
            } else {
                watermark.failed(FillFailure::Upstream);
            }
            for thread in threads {
                let (at, state) = thread.join().expect("follower");
                assert_eq!(at, if round % 2 == 0 { LEN } else { LEN - 1 });
                assert_eq!(state, watermark.state());
            }
            assert_eq!(watermark.followers(), 0);
        }
    }
}
