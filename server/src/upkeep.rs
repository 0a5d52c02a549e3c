//! What a shard does by the clock: it cuts idle connections, commits, evicts, looks at its gates.
//!
//! Called by `shard`. One timer for all, since each wake costs a sleeping core more than what is
//! due most times, which is nothing; and a slow one while there is nothing that could become due.
//! What waits for a disk runs as a task of its own, so that nobody's patience waits for it.

use std::cell::Cell;
use std::future::Future;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Exchange, Writer};
use monoio::time::sleep;

use crate::clock;
use crate::fetch::Fetcher;
use crate::gate::Gates;
use crate::net::watchdog::Watchdog;
use crate::upstream::Client;

/// How often a shard looks at what is due: gates, a group of commits that has grown large, what
/// the compactor asks.
const LOOK: Duration = Duration::from_millis(100);
/// The same while the shard is at rest: the most that the first request afterwards waits for what
/// it needs from here, which is nothing on the way to its bytes.
const REST: Duration = Duration::from_millis(500);
/// A shard without any work for so long is at rest.
const REST_AFTER: Duration = Duration::from_secs(2);
/// The unit of the watchdog's patience.
const SECOND: Duration = Duration::from_secs(1);
/// A group commit is due this long after the last one (or when it is large).
const COMMIT_EVERY: Duration = Duration::from_secs(1);

/// What is looked after.
pub struct Upkeep {
    pub watchdog: Rc<Watchdog>,
    pub client: Rc<Client>,
    pub gates: Rc<Gates>,
    pub fetcher: Rc<Fetcher>,
    pub writer: Rc<Writer<UringDisk>>,
    pub exchange: Arc<Exchange>,
}

impl Upkeep {
    /// Never returns.
    pub async fn run(self) {
        let (committing, maintaining) = (Turn::default(), Turn::default());
        let started = Instant::now();
        let (mut worked, mut swept, mut committed) = (started, started, started);
        loop {
            let at_rest = worked.elapsed() >= REST_AFTER;
            sleep(if at_rest { REST } else { LOOK }).await;
            let now = Instant::now();
            if self.is_working() {
                worked = now;
            }
            if now - swept >= SECOND {
                // A shard that was held up does not make up for it at its clients' cost.
                swept = if now - swept < 2 * SECOND {
                    swept + SECOND
                } else {
                    now
                };
                self.watchdog.sweep();
                self.client.close_idle();
            }
            // Who waits at a gate goes on, or is told that its time is up.
            self.gates.look();
            if now - committed >= COMMIT_EVERY || self.writer.wants_commit() {
                committed = now;
                let writer = self.writer.clone();
                committing.take(async move { commit(&writer).await });
            }
            let writer = self.writer.clone();
            maintaining.take(async move { writer.maintain(clock::now()).await });
        }
    }

    fn is_working(&self) -> bool {
        self.watchdog.take_activity()
            || self.fetcher.running() > 0
            || self.writer.uncommitted() > 0
            || self.gates.has_waiting()
            || !self.exchange.is_quiet()
    }
}

/// One task of a kind at a time.
#[derive(Default)]
struct Turn(Rc<Cell<bool>>);

impl Turn {
    /// Starts the task, unless the one before it still runs.
    fn take(&self, task: impl Future<Output = ()> + 'static) {
        if !self.0.replace(true) {
            let taken = self.0.clone();
            monoio::spawn(async move {
                task.await;
                taken.set(false);
            });
        }
    }
}

/// One group commit.
pub async fn commit(writer: &Writer<UringDisk>) {
    if let Err(error) = writer.commit(clock::now()).await {
        tracing::error!(%error, "group commit failed; what it held is fetched again when asked");
    }
}
