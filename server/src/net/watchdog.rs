//! Cuts connections that make no progress: slow heads, idle keep-alive, readers that stopped.
//!
//! One per shard. A sweep a second over all sockets costs less than a timer for each request,
//! and patience is counted in whole seconds anyway. It knows phases, not HTTP.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::socket::{Phase, Socket};

/// How long a connection may stay without progress, in seconds, by phase.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub idle_s: u32,
    pub head_s: u32,
    pub send_s: u32,
}

pub struct Watchdog {
    tick: Rc<Cell<u32>>,
    patience: Patience,
    sockets: RefCell<Vec<Weak<Socket>>>,
    draining: Cell<bool>,
    said: Cell<u32>,
}

impl Watchdog {
    pub fn new(patience: Patience) -> Rc<Watchdog> {
        Rc::new(Watchdog {
            tick: Rc::default(),
            patience,
            sockets: RefCell::default(),
            draining: Cell::new(false),
            said: Cell::new(u32::MAX),
        })
    }

    /// Seconds since start as of the last sweep, for the sockets to note their progress by.
    pub fn tick(&self) -> Rc<Cell<u32>> {
        self.tick.clone()
    }

    pub fn watch(&self, socket: &Rc<Socket>) {
        self.sockets.borrow_mut().push(Rc::downgrade(socket));
    }

    /// True once in a second: for log lines that a flood would repeat.
    pub fn once_a_second(&self) -> bool {
        let tick = self.tick.get();
        self.said.replace(tick) != tick
    }

    /// Advances the tick by one second and cuts whoever ran out of patience.
    pub fn sweep(&self) {
        let tick = self.tick.get().wrapping_add(1);
        self.tick.set(tick);
        self.sockets.borrow_mut().retain(|weak| {
            let Some(socket) = weak.upgrade() else {
                return false;
            };
            if self.out_of_patience(&socket, tick) {
                socket.cut();
            }
            true
        });
    }

    /// From now on idle connections are cut at once; the others finish their request.
    pub fn drain(&self) {
        self.draining.set(true);
        for socket in self.sockets.borrow().iter().filter_map(Weak::upgrade) {
            if socket.phase() == Phase::Idle {
                socket.cut();
            }
        }
    }

    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Connections that are still open.
    pub fn open(&self) -> usize {
        self.sockets
            .borrow()
            .iter()
            .filter(|weak| weak.strong_count() > 0)
            .count()
    }

    fn out_of_patience(&self, socket: &Socket, tick: u32) -> bool {
        let waited_s = tick.wrapping_sub(socket.progress());
        match socket.phase() {
            Phase::Idle => self.draining.get() || waited_s > self.patience.idle_s,
            Phase::Head => waited_s > self.patience.head_s,
            Phase::Send => waited_s > self.patience.send_s,
            Phase::Work => false,
        }
    }
}
