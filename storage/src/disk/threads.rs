//! Threads that do what would block a shard, and how long anybody waits for a disk.
//!
//! A disk that does not answer must not keep everybody waiting, for a group is durable only when
//! all volumes were tried: who waits is told `TimedOut` after a while, and the store gives the
//! disk up. What is under way goes on; what has not begun by then never is.

use std::fs::File;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use monoio::time::timeout;

/// Two, so that a slow unlink does not delay an allocation.
const COUNT: usize = 2;
/// Requests that wait for a helper; who sends more waits, hints are dropped.
const QUEUE_MAX: usize = 1024;
/// Longer than the kernel waits for a disk before it gives it up itself: a SCSI command has 30 s
/// and is tried six times.
pub const PATIENCE: Duration = Duration::from_secs(200);
/// A sync has so much more time as the file takes at this pace, in bytes a second: all of it may
/// have to be written, and no disk that works is slower.
pub(super) const SYNC_PACE: u64 = 8 << 20;
/// At most so much: what is not written is in memory, and the kernel lets no more than a fifth of
/// that be dirty, 25 GB of 128. Whoever hangs holds up a shard's commits as long.
pub(super) const SYNC_PATIENCE_MAX: Duration = Duration::from_secs(600);

type Job = Box<dyn FnOnce() + Send>;

pub(super) struct Threads {
    jobs: flume::Sender<Job>,
    /// Jobs that were begun, hints too: a helper that gets on with those does not hang.
    begun: Arc<AtomicU64>,
}

/// Closes the files that it is sent. It ends when no sender is left.
pub(super) fn closer() -> io::Result<flume::Sender<File>> {
    let (closer, closing) = flume::unbounded::<File>();
    thread::Builder::new()
        .name("disk-close".to_owned())
        .spawn(move || closing.iter().for_each(drop))?;
    Ok(closer)
}

impl Threads {
    /// They end when this is dropped and nothing waits for them.
    pub(super) fn start() -> io::Result<Threads> {
        let (sender, jobs) = flume::bounded::<Job>(QUEUE_MAX);
        for number in 0..COUNT {
            let jobs = jobs.clone();
            thread::Builder::new()
                .name(format!("disk-{number}"))
                .spawn(move || jobs.iter().for_each(|job| job()))?;
        }
        Ok(Threads {
            jobs: sender,
            begun: Arc::default(),
        })
    }

    /// What `work` comes to. `TimedOut`: for all of one `patience` it was under way, or no helper
    /// began anything. What waited first may so take two of them and more.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (answer, answered) = flume::bounded(1);
        let begun = Arc::new(AtomicBool::new(false));
        let (this, all) = (Arc::clone(&begun), Arc::clone(&self.begun));
        let job: Job = Box::new(move || {
            // Whoever waited may have been told that it failed.
            if answer.is_disconnected() {
                return;
            }
            this.store(true, Ordering::Relaxed);
            all.fetch_add(1, Ordering::Relaxed);
            let _ = answer.send(work());
        });
        let gone = || io::Error::other("the helpers of the disk are gone");
        let mut done = pin!(async {
            let sent = self.jobs.send_async(job).await;
            sent.map_err(|_| gone())?;
            answered.recv_async().await.map_err(|_| gone())?
        });
        loop {
            let (this, all) = (begun.load(Ordering::Relaxed), self.begun());
            if let Ok(outcome) = timeout(patience, done.as_mut()).await {
                return outcome;
            }
            if this || self.begun() == all {
                return Err(io::ErrorKind::TimedOut.into());
            }
        }
    }

    fn begun(&self) -> u64 {
        self.begun.load(Ordering::Relaxed)
    }

    /// Has `work` done if there is room for it: the helpers may have better things to do.
    pub(super) fn hint(&self, work: impl FnOnce() + Send + 'static) {
        let all = Arc::clone(&self.begun);
        let job = move || {
            all.fetch_add(1, Ordering::Relaxed);
            work();
        };
        let _ = self.jobs.try_send(Box::new(job));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::{Receiver, Sender, channel};

    use super::*;

    const SHORT: Duration = Duration::from_millis(50);

    /// Until the sender is gone.
    fn hang(released: Receiver<()>) -> impl FnOnce() -> io::Result<()> + Send {
        move || {
            let _ = released.recv();
            Ok(())
        }
    }

    /// Every helper hangs from now on, until the senders are gone.
    fn all_hang(threads: &Threads) -> Vec<Sender<()>> {
        let (hung, hangs) = channel();
        let hang_one = |_| {
            let (release, released) = channel();
            let (hung, hang) = (hung.clone(), hang(released));
            let job: Job = Box::new(move || {
                hung.send(()).expect("it is waited for");
                let _ = hang();
            });
            assert!(threads.jobs.send(job).is_ok());
            release
        };
        let releases = (0..COUNT).map(hang_one).collect();
        for _ in 0..COUNT {
            hangs.recv().expect("one of them");
        }
        releases
    }

    fn timed_out<T>(outcome: io::Result<T>) -> bool {
        outcome.is_err_and(|error| error.kind() == io::ErrorKind::TimedOut)
    }

    #[test]
    fn who_gets_on_with_hints_does_not_hang() {
        let threads = Threads::start().expect("threads");
        let (done, is_done) = channel();
        threads.hint(move || done.send(()).expect("it is waited for"));
        is_done.recv().expect("there is room for it");
        assert_eq!(threads.begun(), 1);
    }

    #[test]
    fn what_hangs_is_given_up_and_what_waits_for_it_is_never_begun() {
        let threads = Threads::start().expect("threads");
        let ran = Arc::new(Mutex::new(Vec::new()));
        let note = |name: &'static str| {
            let ran = Arc::clone(&ran);
            move || {
                ran.lock().expect("no panic").push(name);
                Ok(())
            }
        };
        let test = async {
            let (release, released) = channel();
            assert!(timed_out(threads.run(SHORT, hang(released)).await));
            let beside = threads.run(PATIENCE, note("beside")).await;
            beside.expect("the other helper is free");
            drop(release);
            let releases = all_hang(&threads);
            assert!(timed_out(threads.run(SHORT, note("behind")).await));
            drop(releases);
            let after = threads.run(PATIENCE, note("after")).await;
            after.expect("they are free again");
        };
        monoio::RuntimeBuilder::<monoio::IoUringDriver>::new()
            .enable_timer()
            .build()
            .expect("io_uring is available")
            .block_on(test);
        assert_eq!(*ran.lock().expect("no panic"), ["beside", "after"]);
    }
}
