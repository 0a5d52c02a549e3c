//! Tasks of one thread: what runs between two waits of its ring.
//!
//! No wakers: an operation and a timer know the task that waits for them, and nothing else
//! wakes one.

use std::cell::{Cell, RefCell};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::future::{self, Future};
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use socket2::Socket;

use super::ring::{Finished, OpId, Ring, Task};

/// The longest wait of a thread that has nothing to do.
const WAIT_MAX: Duration = Duration::from_secs(1);

type Work = Pin<Box<dyn Future<Output = ()>>>;

pub struct Executor {
    ring: RefCell<Ring>,
    tasks: RefCell<Vec<Option<Work>>>,
    free: RefCell<Vec<Task>>,
    ready: RefCell<VecDeque<Task>>,
    timers: RefCell<BinaryHeap<Reverse<(Instant, Task)>>>,
    /// The task that is polled now.
    current: Cell<Task>,
    /// Tasks that have not ended.
    live: Cell<usize>,
    /// The next tick is due at once.
    hurried: Cell<bool>,
}

impl Executor {
    pub fn new() -> io::Result<Rc<Executor>> {
        Ok(Rc::new(Executor {
            ring: RefCell::new(Ring::new()?),
            tasks: RefCell::default(),
            free: RefCell::default(),
            ready: RefCell::default(),
            timers: RefCell::default(),
            current: Cell::new(0),
            live: Cell::new(0),
            hurried: Cell::new(false),
        }))
    }

    pub fn spawn(&self, work: impl Future<Output = ()> + 'static) {
        let work: Work = Box::pin(work);
        let mut tasks = self.tasks.borrow_mut();
        let task = match self.free.borrow_mut().pop() {
            Some(task) => {
                tasks[task as usize] = Some(work);
                task
            }
            None => {
                tasks.push(Some(work));
                tasks.len() as Task - 1
            }
        };
        self.live.set(self.live.get() + 1);
        self.ready.borrow_mut().push_back(task);
    }

    /// Runs tasks until all have ended or `tick` says so, which names the time of its next call.
    /// What is not done then is given up, and so is an operation without progress for `timeout`.
    pub fn run(
        &self,
        timeout: Duration,
        tick: impl FnMut(Instant) -> Option<Instant>,
    ) -> io::Result<()> {
        let outcome = self.run_tasks(timeout, tick);
        // They hold this executor, which would live on.
        drop(self.tasks.take());
        outcome
    }

    fn run_tasks(
        &self,
        timeout: Duration,
        mut tick: impl FnMut(Instant) -> Option<Instant>,
    ) -> io::Result<()> {
        let mut next_tick = Instant::now();
        loop {
            self.run_ready();
            if self.live.get() == 0 {
                return Ok(());
            }
            let now = self.now();
            if self.hurried.take() || now >= next_tick {
                self.ring.borrow_mut().expire(timeout);
                next_tick = match tick(now) {
                    Some(at) => at,
                    None => return Ok(()),
                };
            }
            let longest = self.until_timer(now);
            let longest = longest.min(next_tick.saturating_duration_since(now));
            let mut ready = self.ready.borrow_mut();
            self.ring.borrow_mut().wait(longest, &mut ready)?;
            drop(ready);
            self.fire_timers();
        }
    }

    /// The task that asks.
    pub fn current(&self) -> Task {
        self.current.get()
    }

    /// Lets the next tick come at once.
    pub fn hurry(&self) {
        self.hurried.set(true);
    }

    pub fn wake(&self, task: Task) {
        self.ready.borrow_mut().push_back(task);
    }

    fn run_ready(&self) {
        let mut context = Context::from_waker(Waker::noop());
        loop {
            let Some(task) = self.ready.borrow_mut().pop_front() else {
                return;
            };
            // A task may wake again after its end, by a timer that lost a race.
            let Some(mut work) = self.tasks.borrow_mut()[task as usize].take() else {
                continue;
            };
            self.current.set(task);
            if work.as_mut().poll(&mut context).is_pending() {
                self.tasks.borrow_mut()[task as usize] = Some(work);
            } else {
                self.live.set(self.live.get() - 1);
                self.free.borrow_mut().push(task);
            }
        }
    }

    fn until_timer(&self, now: Instant) -> Duration {
        let timers = self.timers.borrow();
        timers.peek().map_or(WAIT_MAX, |Reverse((at, _))| {
            at.saturating_duration_since(now)
        })
    }

    fn fire_timers(&self) {
        let now = self.now();
        let mut timers = self.timers.borrow_mut();
        while let Some(Reverse((at, task))) = timers.peek() {
            if *at > now {
                return;
            }
            self.ready.borrow_mut().push_back(*task);
            timers.pop();
        }
    }

    /// When the completions that are handled now came in.
    pub fn now(&self) -> Instant {
        self.ring.borrow().now()
    }

    pub async fn sleep_until(&self, at: Instant) {
        if at <= self.now() {
            return;
        }
        let mut armed = false;
        future::poll_fn(|_| {
            if self.now() >= at {
                return Poll::Ready(());
            }
            if !std::mem::replace(&mut armed, true) {
                let mut timers = self.timers.borrow_mut();
                timers.push(Reverse((at, self.current.get())));
            }
            Poll::Pending
        })
        .await;
    }

    pub async fn connect(&self, socket: Rc<Socket>, to: SocketAddr) -> io::Result<()> {
        let id = self
            .ring
            .borrow_mut()
            .connect(socket, to, self.current.get());
        self.finish(id).await.result.map(drop)
    }

    /// Reads behind the first `from` bytes of the buffer and gives it back.
    pub async fn receive(&self, socket: Rc<Socket>, buffer: Vec<u8>, from: usize) -> Finished {
        let task = self.current.get();
        let id = self.ring.borrow_mut().receive(socket, buffer, from, task);
        self.finish(id).await
    }

    pub async fn discard(&self, socket: Rc<Socket>, len: u64) -> io::Result<usize> {
        let id = self
            .ring
            .borrow_mut()
            .discard(socket, len, self.current.get());
        self.finish(id).await.result
    }

    pub fn send(&self, socket: Rc<Socket>, bytes: Rc<[u8]>) {
        self.ring.borrow_mut().send(socket, bytes);
    }

    async fn finish(&self, id: OpId) -> Finished {
        let mut awaited = Awaited {
            ring: &self.ring,
            id: Some(id),
        };
        future::poll_fn(|_| awaited.poll(self.current.get())).await
    }
}

/// An operation somebody waits for; dropped early, it is cancelled.
struct Awaited<'e> {
    ring: &'e RefCell<Ring>,
    id: Option<OpId>,
}

impl Awaited<'_> {
    fn poll(&mut self, task: Task) -> Poll<Finished> {
        let id = self.id.expect("not polled after its end");
        match self.ring.borrow_mut().take(id, task) {
            Some(finished) => {
                self.id = None;
                Poll::Ready(finished)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.id.take() {
            self.ring.borrow_mut().leave(id);
        }
    }
}

/// One of several futures within a task.
pub type Part<'p> = Pin<Box<dyn Future<Output = ()> + 'p>>;

/// Runs several futures within one task until all have ended.
pub async fn all(mut parts: Vec<Part<'_>>) {
    future::poll_fn(|context| {
        parts.retain_mut(|part| part.as_mut().poll(context).is_pending());
        match parts.is_empty() {
            true => Poll::Ready(()),
            false => Poll::Pending,
        }
    })
    .await;
}
