//! Waiting within one thread: for a condition, for a turn, for a task nobody can drop.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::rc::Rc;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};

use crate::disk::Disk;

/// Entries of the index that a walk visits in one go: a quarter of a millisecond or so. To give
/// way takes longer than that, and a client may wait for the walk.
const STRIDE: u64 = 4096;

/// A walk over the index that others need not wait for.
#[derive(Default)]
pub(crate) struct Walk {
    visited: u64,
    /// When it gave way last.
    rested: u64,
}

impl Walk {
    pub(crate) fn visit(&mut self) {
        self.visited += 1;
    }

    pub(crate) fn visit_all(&mut self, entries: u64) {
        self.visited += entries;
    }

    pub(crate) fn visited(&self) -> u64 {
        self.visited
    }

    /// Between two slices, with no lock held: gives way if it is time.
    pub(crate) async fn rest<D: Disk>(&mut self, tasks: &D) {
        if self.tired() {
            tasks.give_way().await;
        }
    }

    fn tired(&mut self) -> bool {
        let tired = self.visited - self.rested >= STRIDE;
        if tired {
            self.rested = self.visited;
        }
        tired
    }
}

/// Tasks that wait for a condition on what they share.
#[derive(Default)]
pub(crate) struct Waiters {
    wakers: RefCell<Vec<Waker>>,
}

impl Waiters {
    /// Resolves as soon as `condition` is some; it is asked again after every `wake_all`.
    pub(crate) async fn until<T>(&self, mut condition: impl FnMut() -> Option<T>) -> T {
        poll_fn(|cx| match condition() {
            Some(value) => Poll::Ready(value),
            None => {
                let mut wakers = self.wakers.borrow_mut();
                if !wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                    wakers.push(cx.waker().clone());
                }
                Poll::Pending
            }
        })
        .await
    }

    pub(crate) fn wake_all(&self) {
        for waker in self.wakers.take() {
            waker.wake();
        }
    }
}

/// One task at a time, across awaits.
#[derive(Default)]
pub(crate) struct Gate {
    taken: Cell<bool>,
    waiters: Waiters,
}

pub(crate) struct Turn<'g>(&'g Gate);

impl Gate {
    pub(crate) async fn turn(&self) -> Turn<'_> {
        self.waiters
            .until(|| (!self.taken.replace(true)).then_some(()))
            .await;
        Turn(self)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.0.taken.set(false);
        self.0.waiters.wake_all();
    }
}

/// The same for the tasks of several threads.
#[derive(Default)]
pub(crate) struct SharedGate(Mutex<Queue>);

#[derive(Default)]
struct Queue {
    taken: bool,
    wakers: Vec<Waker>,
}

pub(crate) struct SharedTurn<'g>(&'g SharedGate);

impl SharedGate {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) async fn turn(&self) -> SharedTurn<'_> {
        poll_fn(|cx| {
            let mut queue = self.queue();
            if !std::mem::replace(&mut queue.taken, true) {
                return Poll::Ready(());
            }
            if !queue.wakers.iter().any(|waker| waker.will_wake(cx.waker())) {
                queue.wakers.push(cx.waker().clone());
            }
            Poll::Pending
        })
        .await;
        SharedTurn(self)
    }
}

impl Drop for SharedTurn<'_> {
    fn drop(&mut self) {
        let mut queue = self.0.queue();
        queue.taken = false;
        let wakers = std::mem::take(&mut queue.wakers);
        drop(queue);
        wakers.into_iter().for_each(Waker::wake);
    }
}

/// Lets other tasks run, where the executor takes no task twice before all others: not on monoio.
pub(crate) async fn yield_now() {
    let mut yielded = false;
    poll_fn(|cx| {
        if std::mem::replace(&mut yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

struct Outcome<T> {
    value: Cell<Option<T>>,
    waiters: Waiters,
}

/// Runs `task` to its end even if the future returned here is dropped; what it yields is then
/// dropped too.
pub(crate) async fn detached<D: Disk, T: 'static>(
    disk: &D,
    task: impl Future<Output = T> + 'static,
) -> T {
    let outcome = Rc::new(Outcome {
        value: Cell::new(None),
        waiters: Waiters::default(),
    });
    let told = Rc::clone(&outcome);
    disk.spawn(async move {
        told.value.set(Some(task.await));
        told.waiters.wake_all();
    });
    outcome.waiters.until(|| outcome.value.take()).await
}

/// The same for several tasks at once.
pub(crate) async fn all<D: Disk, F>(disk: &D, tasks: Vec<F>)
where
    F: Future<Output = ()> + 'static,
{
    let left = Rc::new((Cell::new(tasks.len()), Waiters::default()));
    for task in tasks {
        let left = Rc::clone(&left);
        disk.spawn(async move {
            task.await;
            left.0.set(left.0.get() - 1);
            left.1.wake_all();
        });
    }
    left.1.until(|| (left.0.get() == 0).then_some(())).await;
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Wake};
    use std::thread;

    use super::*;
    use crate::disk::sim::{Executor, Random, SimDisk, SimWorld, Step};

    fn run(seed: u64, start: impl FnOnce(SimDisk, &Executor)) {
        let world = SimWorld::new(Random::new(seed), 1 << 20);
        let executor = Executor::new(Random::new(seed));
        start(SimDisk::new(&world, &executor), &executor);
        while executor.step(&world) != Step::Idle {}
    }

    #[test]
    fn a_walk_gives_way_after_a_stride_and_not_for_less() {
        let mut walk = Walk::default();
        let mut tired = |entries| {
            (0..entries).for_each(|_| walk.visit());
            walk.tired()
        };
        assert!(!tired(STRIDE - 1) && tired(1) && !tired(0));
        assert!(!tired(1) && tired(3 * STRIDE) && !tired(STRIDE - 1));
        assert_eq!(walk.visited(), 5 * STRIDE);
    }

    #[test]
    fn a_gate_lets_one_through_at_a_time() {
        for seed in 0..20 {
            let inside = Rc::new(Cell::new(0));
            let passed = Rc::new(Cell::new(0));
            let gate = Rc::new(Gate::default());
            run(seed, |disk, executor| {
                for _ in 0..10 {
                    let (disk, gate) = (disk.clone(), Rc::clone(&gate));
                    let (inside, passed) = (Rc::clone(&inside), Rc::clone(&passed));
                    executor.spawn(async move {
                        let _turn = gate.turn().await;
                        assert_eq!(inside.replace(1), 0);
                        disk.sync_dir().await.expect("no faults");
                        inside.set(0);
                        passed.set(passed.get() + 1);
                    });
                }
            });
            assert_eq!(passed.get(), 10);
        }
    }

    struct Unpark(thread::Thread);

    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }

    fn block_on(future: impl Future<Output = ()>) {
        let waker = Waker::from(Arc::new(Unpark(thread::current())));
        let mut future = pin!(future);
        while future
            .as_mut()
            .poll(&mut Context::from_waker(&waker))
            .is_pending()
        {
            thread::park();
        }
    }

    #[test]
    fn a_shared_gate_lets_one_thread_through_at_a_time() {
        let (gate, inside) = (SharedGate::default(), AtomicBool::new(false));
        let pass = async || {
            let _turn = gate.turn().await;
            assert!(!inside.swap(true, Ordering::SeqCst));
            thread::yield_now();
            inside.store(false, Ordering::SeqCst);
        };
        thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| (0..500).for_each(|_| block_on(pass())));
            }
        });
    }

    #[test]
    fn a_detached_task_ends_though_nobody_waits() {
        for seed in 0..20 {
            let ended = Rc::new(Cell::new(false));
            run(seed, |disk, executor| {
                let ended = Rc::clone(&ended);
                executor.spawn(async move {
                    let task_disk = disk.clone();
                    let mut waiting = Box::pin(detached(&disk, async move {
                        task_disk.sync_dir().await.expect("no faults");
                        ended.set(true);
                    }));
                    poll_fn(|cx| {
                        let _ = waiting.as_mut().poll(cx);
                        Poll::Ready(())
                    })
                    .await;
                });
            });
            assert!(ended.get());
        }
    }
}
