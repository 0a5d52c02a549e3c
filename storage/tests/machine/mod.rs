//! One process on a simulated machine.

use std::cell::RefCell;
use std::future::Future;
use std::rc::Rc;

use entrepot_storage::disk::sim::{Ending, Executor, Random, SimWorld, Step};

/// Runs the task to its end; then the process ends as told.
pub fn run<T: 'static, F: Future<Output = T> + 'static>(
    world: &SimWorld,
    ending: Ending,
    task: impl FnOnce(&Rc<Executor>) -> F,
) -> T {
    let executor = Executor::new(Random::new(11));
    let task = task(&executor);
    let output = Rc::new(RefCell::new(None));
    let told = Rc::clone(&output);
    executor.spawn(async move {
        let value = task.await;
        told.borrow_mut().replace(value);
    });
    while output.borrow().is_none() {
        assert_ne!(executor.step(world), Step::Idle, "nobody was woken");
    }
    drop(executor);
    world.end(ending);
    output.take().expect("just seen")
}
