//! One thread of tasks whose order is drawn from a seed.
//!
//! Each step polls one task that was woken or completes one operation of the disk. When neither
//! is left and the caller still waits, somebody forgot to wake somebody.

use std::cell::RefCell;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Wake, Waker};

use super::{Random, SimWorld};

type Task = Pin<Box<dyn Future<Output = ()>>>;

/// Of the steps with both to do, how many in a thousand poll a task.
const TASKS_FIRST: u64 = 600;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    Polled,
    Completed,
    /// Nothing is left to do.
    Idle,
}

/// The tasks of one process. Dropping it ends the process: no task runs again.
pub struct Executor {
    tasks: RefCell<Vec<Option<Task>>>,
    woken: Arc<Woken>,
    random: RefCell<Random>,
}

#[derive(Default)]
struct Woken(Mutex<Vec<usize>>);

impl Woken {
    fn add(&self, task: usize) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }

    fn is_empty(&self) -> bool {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    fn draw(&self, random: &mut Random) -> Option<usize> {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if tasks.is_empty() {
            return None;
        }
        let index = random.index(tasks.len());
        Some(tasks.swap_remove(index))
    }
}

struct TaskWaker {
    task: usize,
    woken: Arc<Woken>,
}

impl Wake for TaskWaker {
    fn wake(self: Arc<Self>) {
        self.woken.add(self.task);
    }
}

impl Executor {
    pub fn new(random: Random) -> Rc<Executor> {
        Rc::new(Executor {
            tasks: RefCell::default(),
            woken: Arc::default(),
            random: RefCell::new(random),
        })
    }

    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        let mut tasks = self.tasks.borrow_mut();
        tasks.push(Some(Box::pin(task)));
        self.woken.add(tasks.len() - 1);
    }

    pub fn step(&self, world: &SimWorld) -> Step {
        let mut random = self.random.borrow_mut();
        let operations = world.operations();
        let poll = !self.woken.is_empty() && (operations == 0 || random.chance(TASKS_FIRST));
        if poll {
            let task = self.woken.draw(&mut random).expect("one was woken");
            drop(random);
            self.poll(task);
            Step::Polled
        } else if operations > 0 {
            world.complete(&mut random);
            Step::Completed
        } else {
            Step::Idle
        }
    }

    fn poll(&self, number: usize) {
        // Taken out while it runs: it may spawn others.
        let Some(mut task) = self.tasks.borrow_mut()[number].take() else {
            return;
        };
        let woken = Arc::clone(&self.woken);
        let waker = Waker::from(Arc::new(TaskWaker {
            task: number,
            woken,
        }));
        if task.as_mut().poll(&mut Context::from_waker(&waker)) == Poll::Pending {
            self.tasks.borrow_mut()[number] = Some(task);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::disk::Disk;
    use crate::disk::sim::SimDisk;

    fn order(seed: u64) -> Vec<u32> {
        let world = SimWorld::new(Random::new(seed), 1 << 20);
        let executor = Executor::new(Random::new(seed));
        let disk = SimDisk::new(&world, &executor);
        let seen = Rc::new(RefCell::new(Vec::new()));
        for number in 0..20 {
            let (disk, seen) = (disk.clone(), Rc::clone(&seen));
            executor.spawn(async move {
                disk.sync_dir().await.expect("no faults");
                seen.borrow_mut().push(number);
            });
        }
        while executor.step(&world) != Step::Idle {}
        seen.take()
    }

    #[test]
    fn a_seed_is_a_run() {
        assert_eq!(order(1).len(), 20);
        assert_eq!(order(1), order(1));
        assert_ne!(order(1), order(2));
    }
}
