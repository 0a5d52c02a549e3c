//! A run: threads with a ring each, a common start, a warm-up, an end.

use std::cell::{Cell, RefCell};
use std::future::{self, Future};
use std::io;
use std::num::NonZeroU64;
use std::ops::Range;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Barrier};
use std::task::Poll;
use std::thread;
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use rustls::ClientConfig;

use super::auth::Login;
use super::client::{Client, Net};
use super::executor::Executor;
use super::meter::{Counts, ErrorClass, Live, Meter};
use super::ring::Task;
use super::schedule::{Extent, Pace, Schedule, Turn};

/// How often a thread says how far it is.
const TICK: Duration = Duration::from_millis(100);

/// What all commands have in common.
#[derive(Clone)]
pub struct Settings {
    pub threads: usize,
    pub clients: usize,
    pub pace: Pace,
    pub extent: Extent,
    /// Without progress for so long, a request is given up.
    pub timeout: Duration,
    pub tls: Arc<ClientConfig>,
    pub login: Option<Login>,
    pub keep_alive: bool,
}

/// What clients do. One value serves all threads.
pub trait Workload: Sync {
    /// What one client does until there are no more turns.
    fn client(&self, worker: Rc<Worker>, client: Client) -> Work;
}

pub type Work = Pin<Box<dyn Future<Output = ()>>>;

/// What the clients of one thread share in a run.
pub struct Worker {
    pub net: Rc<Net>,
    schedule: Schedule,
    gate: Gate,
    measured_from: Cell<Instant>,
    /// CPU time of this thread before it measured.
    cpu_before: Cell<Duration>,
}

/// Opens when all are there.
struct Gate {
    missing: Cell<usize>,
    waiting: RefCell<Vec<Task>>,
    threads: Arc<Barrier>,
}

impl Worker {
    /// Waits for all clients of all threads, then takes turns until there are none.
    pub async fn each_turn(&self, mut one: impl AsyncFnMut(Turn)) {
        self.pass_gate().await;
        while let Some(turn) = self.schedule.next().await {
            one(turn).await;
            self.schedule.done();
        }
    }

    /// Waits for all clients of all threads, and says when the last came.
    pub async fn together(&self) -> Instant {
        self.pass_gate().await;
        self.started()
    }

    pub fn started(&self) -> Instant {
        self.schedule.started()
    }

    async fn pass_gate(&self) {
        let (gate, executor) = (&self.gate, &self.net.executor);
        gate.missing.set(gate.missing.get() - 1);
        if gate.missing.get() > 0 {
            gate.waiting.borrow_mut().push(executor.current());
            return future::poll_fn(|_| match gate.missing.get() {
                0 => Poll::Ready(()),
                _ => Poll::Pending,
            })
            .await;
        }
        // No task of this thread has anything to do but wait, so the thread may.
        gate.threads.wait();
        let now = Instant::now();
        self.schedule.start(now);
        self.measure(now, None);
        for task in gate.waiting.take() {
            executor.wake(task);
        }
        executor.hurry();
    }

    /// What is answered from here on counts; by a plan, what was due from here on.
    fn measure(&self, now: Instant, due_from: Option<Instant>) {
        let from = due_from.unwrap_or(now);
        self.net.meter.restart(from, due_from);
        self.measured_from.set(from);
        self.cpu_before.set(thread_cpu());
    }
}

/// What a run came to.
pub struct Outcome {
    pub counts: Counts,
    /// Measured time, without the warm-up.
    pub took: Duration,
    pub client_cpu: Duration,
    /// Of each client's first answer.
    pub first_bytes: Vec<Option<Duration>>,
}

/// Runs it. `watch` is called now and then with what was counted so far.
pub fn run(
    settings: &Settings,
    workload: &dyn Workload,
    mut watch: impl FnMut(&Live),
) -> io::Result<Outcome> {
    let live = Arc::new(Live::default());
    let taken = Arc::new(AtomicU64::new(0));
    let threads = settings.threads.min(settings.clients).max(1);
    let barrier = Arc::new(Barrier::new(threads));
    let (sender, finished) = mpsc::channel();
    let mut outcome = Outcome {
        counts: Counts::default(),
        took: Duration::ZERO,
        client_cpu: Duration::ZERO,
        first_bytes: Vec::new(),
    };
    let mut first = 0;
    thread::scope(|scope| {
        for nth in 0..threads {
            // The first threads take what is left over.
            let extra = usize::from(nth < settings.clients % threads);
            let clients = first..first + settings.clients / threads + extra;
            first = clients.end;
            let (sender, barrier) = (sender.clone(), barrier.clone());
            let (live, taken) = (live.clone(), taken.clone());
            scope.spawn(move || {
                let meter = Meter::new(clients.len(), live);
                let part = run_thread(settings, workload, clients, meter, taken, barrier);
                let _ = sender.send(part);
            });
        }
        drop(sender);
        loop {
            match finished.recv_timeout(TICK) {
                Ok(part) => outcome.add(part?),
                Err(RecvTimeoutError::Timeout) => watch(&live),
                Err(RecvTimeoutError::Disconnected) => return Ok::<(), io::Error>(()),
            }
        }
    })?;
    // Planned, and never begun: the server was too slow for the rate to the last.
    let begun = taken.load(Ordering::Relaxed);
    let never = settings.pace.planned(settings.extent).saturating_sub(begun);
    if never > 0 {
        let errors = &mut outcome.counts.errors;
        *errors.entry(ErrorClass::Timeout).or_default() += never;
    }
    Ok(outcome)
}

impl Outcome {
    fn add(&mut self, part: Outcome) {
        self.counts.add(&part.counts);
        self.took = self.took.max(part.took);
        self.client_cpu += part.client_cpu;
        self.first_bytes.extend(part.first_bytes);
    }
}

fn run_thread(
    settings: &Settings,
    workload: &dyn Workload,
    clients: Range<usize>,
    meter: Meter,
    taken: Arc<AtomicU64>,
    threads: Arc<Barrier>,
) -> io::Result<Outcome> {
    let executor = Executor::new()?;
    // What is planned goes out when it is due, not up to 50 µs later (prctl(2), timer slack).
    rustix::thread::set_current_timer_slack(Some(NonZeroU64::MIN))?;
    let (pace, extent) = (settings.pace.clone(), settings.extent);
    let net = Rc::new(Net::new(
        executor.clone(),
        meter,
        settings.tls.clone(),
        settings.login.clone(),
        settings.keep_alive,
    ));
    let worker = Rc::new(Worker {
        net: net.clone(),
        schedule: Schedule::new(executor.clone(), pace, extent, taken),
        gate: Gate {
            missing: Cell::new(clients.len()),
            waiting: RefCell::default(),
            threads,
        },
        measured_from: Cell::new(Instant::now()),
        cpu_before: Cell::new(thread_cpu()),
    });
    for (index, number) in clients.enumerate() {
        let client = Client::new(net.clone(), index, number);
        executor.spawn(workload.client(worker.clone(), client));
    }
    let mut phases = Phases {
        settings,
        warm: settings.extent.warmup().is_zero(),
    };
    executor.run(settings.timeout, |now| phases.tick(now, &worker))?;
    let ended = executor.now();
    phases.give_up_rest(&worker, ended);
    let took = ended.saturating_duration_since(worker.measured_from.get());
    let client_cpu = thread_cpu().saturating_sub(worker.cpu_before.get());
    // All tasks are gone, and with them who else held these.
    drop(worker);
    let (counts, first_bytes) = match Rc::try_unwrap(net) {
        Ok(net) => net.meter.finish(),
        Err(_) => unreachable!("a task outlived its executor"),
    };
    Ok(Outcome {
        counts,
        took,
        client_cpu,
        first_bytes,
    })
}

/// Warm-up, measuring, and, in an open loop, what is late.
struct Phases<'s> {
    settings: &'s Settings,
    warm: bool,
}

impl Phases<'_> {
    /// When to look again; `None` at the end.
    fn tick(&mut self, now: Instant, worker: &Worker) -> Option<Instant> {
        let next = now + TICK;
        if worker.gate.missing.get() > 0 {
            return Some(next);
        }
        let Extent::Time { warmup, measured } = self.settings.extent else {
            worker.net.meter.publish(now);
            return Some(next);
        };
        let open = self.settings.pace.is_open();
        if !self.warm {
            let from = worker.schedule.started() + warmup;
            if now < from {
                return Some(next.min(from));
            }
            self.warm = true;
            worker.measure(now, open.then_some(from));
        }
        worker.net.meter.publish(now);
        let mut end = worker.measured_from.get() + measured;
        if open {
            end += self.settings.timeout;
        }
        (now < end).then_some(next.min(end))
    }

    /// By a plan, everything counts; what did not end in time is an error.
    fn give_up_rest(&self, worker: &Worker, now: Instant) {
        if self.settings.pace.is_open() {
            for _ in 0..worker.schedule.running.get() {
                worker.net.meter.failed(ErrorClass::Timeout, now);
            }
        }
        worker.net.meter.publish(now);
    }
}

/// User and system time of this thread so far.
fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}
