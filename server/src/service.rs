//! What the connections of one shard share: the wiring of the serving path, and nothing else.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::lookup::Lookup;
use crate::metrics::Metrics;
use crate::net::warm::Warmer;
use crate::net::watchdog::Watchdog;
use crate::relay::RELAYS_MAX;

pub struct Service {
    pub lookup: Lookup,
    pub metrics: Arc<Metrics>,
    pub warmer: Warmer,
    pub watchdog: Rc<Watchdog>,
    pub head_len_max: usize,
    pub relays: Rc<Cell<usize>>,
}

impl Service {
    /// Leave to relay one body; `None` when as many run as memory allows.
    pub fn relay_permit(&self) -> Option<RelayPermit> {
        let running = self.relays.get();
        (running < RELAYS_MAX).then(|| {
            self.relays.set(running + 1);
            RelayPermit(self.relays.clone())
        })
    }
}

pub struct RelayPermit(Rc<Cell<usize>>);

impl Drop for RelayPermit {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
