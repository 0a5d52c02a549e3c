//! What the connections of one shard share: the wiring of the serving path, and nothing else.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::lookup::Lookup;
use crate::metrics::Metrics;
use crate::net::buffers::Buffers;
use crate::net::turns::Turns;
use crate::net::warm::Warmer;
use crate::net::watchdog::Watchdog;

pub struct Service {
    pub lookup: Lookup,
    pub metrics: Arc<Metrics>,
    pub warmer: Warmer,
    pub watchdog: Rc<Watchdog>,
    pub buffers: Buffers,
    pub turns: Rc<Turns>,
    pub head_len_max: usize,
    /// Running relays, cold ranges and listings: each holds a body or a part of one in memory.
    pub relays: Rc<Cell<usize>>,
    pub cold: Rc<Cell<usize>>,
    pub listings: Rc<Cell<usize>>,
    /// Cold ranges that ask ahead.
    pub ahead: Rc<Cell<usize>>,
}

impl Service {
    /// Leave to run one more; `None` when `max` are running.
    pub fn permit(&self, running: &Rc<Cell<usize>>, max: usize) -> Option<Permit> {
        let count = running.get();
        (count < max).then(|| {
            running.set(count + 1);
            Permit(running.clone())
        })
    }
}

pub struct Permit(Rc<Cell<usize>>);

impl Drop for Permit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
