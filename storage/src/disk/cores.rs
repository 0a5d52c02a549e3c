//! Threads that compute for the shards, at their priority: who gets a core, the scheduler says.
//!
//! Part of `UringDisk`, for what takes a shard's time and no disk's: the digests of fills. No
//! work waits: it is taken when a thread waits for it, and done by the shard itself if not.

use std::io;
use std::thread;

use super::Work;

/// Shorter work is done sooner than handed over: 64 KiB are hashed in 40 µs, and a thread that
/// sleeps takes ten to wake.
pub(crate) const HANDED_LEN_MIN: usize = 64 << 10;

/// Handle to the threads; clones share them.
#[derive(Clone)]
pub struct Cores(flume::Sender<Work>);

impl Cores {
    /// Starts `threads` of them; with none all work is handed back.
    pub fn start(threads: usize) -> io::Result<Cores> {
        let (cores, work) = flume::bounded::<Work>(0);
        for number in 0..threads {
            let work = work.clone();
            thread::Builder::new()
                .name(format!("hash-{number}"))
                .spawn(move || work.iter().for_each(|work| work()))?;
        }
        Ok(Cores(cores))
    }

    /// Has a waiting thread do `work` over `len` bytes, or hands it back.
    pub(super) fn take(&self, len: usize, work: Work) -> Result<(), Work> {
        if len < HANDED_LEN_MIN {
            return Err(work);
        }
        self.0
            .try_send(work)
            .map_err(|refused| refused.into_inner())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_is_taken_by_whoever_waits_and_handed_back_otherwise() {
        let cores = Cores::start(1).expect("a thread");
        let (hold, held) = flume::bounded::<()>(0);
        let (began, on_began) = flume::bounded::<()>(0);
        let mut work: Work = Box::new(move || {
            began.send(()).expect("the test waits");
            let _ = held.recv();
        });
        // The thread may not wait yet.
        while let Err(back) = cores.take(HANDED_LEN_MIN, work) {
            work = back;
            thread::yield_now();
        }
        on_began.recv().expect("it runs elsewhere");
        assert!(cores.take(HANDED_LEN_MIN, Box::new(|| {})).is_err());
        drop(hold);
        let none = Cores::start(0).expect("no thread");
        assert!(none.take(HANDED_LEN_MIN, Box::new(|| {})).is_err());
        assert!(cores.take(HANDED_LEN_MIN - 1, Box::new(|| {})).is_err());
    }
}
