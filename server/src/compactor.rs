//! The compactor's thread: direct I/O at the lowest priority, in a runtime of its own.
//!
//! Called by `start`. The work itself is the store's; here it is given a thread, disks and a
//! place in the scheduler: it runs when a core is idle, and a little always while room is needed.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use entrepot_storage::disk::direct::{DirectDisk, Rate, executor, keep_awake, sleep};
use entrepot_storage::{Compactor, Exchange};
use flume::RecvTimeoutError;

use crate::priority::{self, Priority};

/// How often it looks for work when there is none.
const LOOK: Duration = Duration::from_millis(100);
/// The same once there was none for a while: a wake of this runtime costs a sleeping core 160 µs.
const REST: Duration = Duration::from_millis(500);
/// Looks without work until then.
const REST_AFTER: u32 = 20;

/// The running thread.
pub struct Running {
    /// Hung up by the thread's end.
    ended: flume::Receiver<()>,
    stop: Arc<AtomicBool>,
}

/// Nothing that is served needs the compactor.
const START_WAIT: Duration = Duration::from_secs(2);
/// A job that has not ended by then is left as a crash would leave it, for the same reason.
const STOP_WAIT: Duration = Duration::from_secs(2);

/// Starts the thread; returns when it has its runtime and its disks, or when that takes longer
/// than the start should wait: where every core is busy, who gives way to all gets there late.
pub fn start(exchange: Arc<Exchange>, paths: Vec<PathBuf>, rate: u64) -> io::Result<Running> {
    let may_idle = priority::returns_from_idle();
    if !may_idle {
        tracing::info!(
            "the compactor runs at nice 19: SCHED_IDLE needs LimitNICE=+19 or CAP_SYS_NICE, to be \
             left again when room is short"
        );
    }
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = stop.clone();
    let (started, on_started) = flume::bounded(1);
    let (ending, ended) = flume::bounded(0);
    let thread = thread::Builder::new().name("compactor".to_owned());
    thread.spawn(move || {
        let _ending: flume::Sender<()> = ending;
        // The runtime's own helper inherits it, for good.
        give_way(Priority::Low);
        let executor = match executor() {
            Ok(executor) => executor,
            Err(error) => {
                // Whoever started it may wait no more.
                tracing::error!(%error, "the compactor has not started");
                return drop(started.send(Err(error)));
            }
        };
        executor.run(async move {
            let compactor = Compactor::new(exchange.clone(), disks(&paths, rate));
            let _ = started.send(Ok(()));
            work(compactor, &exchange, may_idle, &stopped).await;
        });
    })?;
    match on_started.recv_timeout(START_WAIT) {
        Ok(started) => started?,
        Err(RecvTimeoutError::Timeout) => {
            tracing::warn!("the compactor has not started yet: the machine is busy");
        }
        Err(RecvTimeoutError::Disconnected) => {
            return Err(io::Error::other("the compactor's thread died"));
        }
    }
    Ok(Running { ended, stop })
}

fn disks(paths: &[PathBuf], rate: u64) -> Vec<DirectDisk> {
    let rate = Rate::new(rate);
    let mut disks: Vec<DirectDisk> = Vec::new();
    for path in paths {
        disks.push(match disks.first() {
            None => DirectDisk::new(path, rate.clone()),
            Some(first) => first.another(path),
        });
    }
    disks
}

async fn work(
    mut compactor: Compactor<DirectDisk>,
    exchange: &Exchange,
    may_idle: bool,
    stop: &AtomicBool,
) {
    let mut now = None;
    let mut idle_looks = 0;
    while !stop.load(Ordering::Relaxed) {
        let wanted = match exchange.urgent() || !may_idle {
            true => Priority::Low,
            false => Priority::Idle,
        };
        if now != Some(wanted) {
            now = Some(wanted);
            give_way(wanted);
        }
        let awake = keep_awake();
        let worked = compactor.step().await;
        drop(awake);
        if worked {
            idle_looks = 0;
        } else {
            let at_rest = idle_looks >= REST_AFTER && exchange.is_quiet();
            sleep(if at_rest { REST } else { LOOK }).await;
            idle_looks = (idle_looks + 1).min(REST_AFTER);
        }
    }
}

fn give_way(priority: Priority) {
    if let Err(error) = priority::set(priority) {
        tracing::warn!(%error, ?priority, "the compactor's priority could not be set");
    }
}

impl Running {
    /// Ends it at its next step, or leaves it to the end of the process when that takes long: a
    /// step is a whole job, and on busy cores it hardly gets on. What it copied and nobody switched
    /// to is left to recovery.
    pub fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        if self.ended.recv_timeout(STOP_WAIT) == Err(RecvTimeoutError::Timeout) {
            tracing::info!("the compactor is left in the middle of a job");
        }
    }
}
