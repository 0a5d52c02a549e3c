//! When the next thing is due, and whether there is one.
//!
//! In an open loop everything has its planned time, whoever is free takes the next, and what is
//! late counts from when it was due: a server that stalls cannot hide behind clients that wait.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::executor::Executor;

#[derive(Clone, Debug)]
pub enum Pace {
    /// Each client asks when it has its answer.
    Closed,
    /// So many a second, of all clients together.
    Rate(f64),
    /// At these times after the start.
    Times(Arc<[Duration]>),
}

/// When to stop.
#[derive(Clone, Copy, Debug)]
pub enum Extent {
    /// Of all clients together.
    Requests(u64),
    Time {
        warmup: Duration,
        measured: Duration,
    },
}

impl Extent {
    pub fn warmup(self) -> Duration {
        match self {
            Extent::Requests(_) => Duration::ZERO,
            Extent::Time { warmup, .. } => warmup,
        }
    }

    /// From the start to the end.
    pub fn whole(self) -> Option<Duration> {
        match self {
            Extent::Requests(_) => None,
            Extent::Time { warmup, measured } => Some(warmup + measured),
        }
    }
}

impl Pace {
    pub fn is_open(&self) -> bool {
        !matches!(self, Pace::Closed)
    }

    /// When number `index` is due after the start; `None`: there is no such number.
    fn due(&self, index: u64) -> Option<Duration> {
        match self {
            Pace::Closed => Some(Duration::ZERO),
            Pace::Rate(rate) => Some(Duration::from_secs_f64(index as f64 / rate)),
            Pace::Times(times) => times.get(usize::try_from(index).ok()?).copied(),
        }
    }

    /// How many are due before the end, by a plan.
    pub fn planned(&self, extent: Extent) -> u64 {
        let end = extent.whole().unwrap_or(Duration::MAX);
        let planned = match self {
            Pace::Closed => return 0,
            Pace::Rate(rate) => (end.as_secs_f64() * rate).ceil() as u64,
            Pace::Times(times) => times.partition_point(|time| *time < end) as u64,
        };
        match extent {
            Extent::Requests(count) => planned.min(count),
            Extent::Time { .. } => planned,
        }
    }
}

/// One thing to do.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// Of all clients together.
    pub index: u64,
    /// When it is due, or now.
    pub at: Instant,
}

/// Hands out turns to the clients of one thread.
pub struct Schedule {
    executor: Rc<Executor>,
    pace: Pace,
    extent: Extent,
    /// Turns taken by all threads.
    taken: Arc<AtomicU64>,
    started: Cell<Instant>,
    /// Turns of this thread that have not ended.
    pub running: Cell<u64>,
}

impl Schedule {
    pub fn new(executor: Rc<Executor>, pace: Pace, extent: Extent, taken: Arc<AtomicU64>) -> Self {
        Schedule {
            executor,
            pace,
            extent,
            taken,
            started: Cell::new(Instant::now()),
            running: Cell::new(0),
        }
    }

    pub fn start(&self, now: Instant) {
        self.started.set(now);
    }

    pub fn started(&self) -> Instant {
        self.started.get()
    }

    /// Waits until the next turn is due.
    pub async fn next(&self) -> Option<Turn> {
        let index = self.taken.fetch_add(1, Ordering::Relaxed);
        if matches!(self.extent, Extent::Requests(count) if index >= count) {
            return None;
        }
        let due = self.pace.due(index)?;
        if self.pace.is_open() && self.extent.whole().is_some_and(|end| due >= end) {
            return None;
        }
        self.running.set(self.running.get() + 1);
        let at = match self.pace.is_open() {
            false => Instant::now(),
            true => {
                let at = self.started.get() + due;
                self.executor.sleep_until(at).await;
                at
            }
        };
        Some(Turn { index, at })
    }

    pub fn done(&self) {
        self.running.set(self.running.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plans_have_an_end() {
        let second = Duration::from_secs(1);
        let time = Extent::Time {
            warmup: second,
            measured: second * 2,
        };
        assert_eq!(Pace::Rate(100.0).planned(time), 300);
        assert_eq!(Pace::Rate(100.0).planned(Extent::Requests(7)), 7);
        assert_eq!(Pace::Closed.planned(time), 0);
        let times: Arc<[Duration]> = [Duration::ZERO, second, second * 3].into();
        let times = Pace::Times(times);
        assert_eq!(times.planned(time), 2);
        assert_eq!(times.planned(Extent::Requests(9)), 3);
        assert_eq!(times.due(1), Some(second));
        assert_eq!(times.due(3), None);
        assert_eq!(Pace::Rate(4.0).due(2), Some(second / 2));
    }
}
