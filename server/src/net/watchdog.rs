//! Cuts connections that make no progress: slow heads, idle keep-alive, readers that stopped.
//!
//! One per shard. A sweep a second over all connections costs less than a timer for each request,
//! and patience is counted in whole seconds anyway. What a sweep reads lies in a row and apart from
//! the sockets: ten thousand idle ones are 80 KB, and no cache miss each. It knows phases, not
//! HTTP.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use super::socket::Socket;

/// What a connection is waiting for; decides how long it may make no progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Between requests: the client's turn, nothing received yet.
    Idle,
    /// Part of a request head has arrived.
    Head,
    /// We have bytes the client does not take.
    Send,
    /// We wait for an upstream or another shard; they have deadlines of their own.
    Work,
}

/// How long a connection may stay without progress, in seconds, by phase.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    pub idle_s: u32,
    pub head_s: u32,
    pub send_s: u32,
}

pub struct Watchdog {
    /// Seconds since start as of the last sweep.
    tick: Cell<u32>,
    patience: Patience,
    /// By place; free ones are in `Phase::Work`, of which nobody runs out.
    states: RefCell<Vec<State>>,
    /// By place.
    sockets: RefCell<Vec<Weak<Socket>>>,
    free: RefCell<Vec<usize>>,
    draining: Cell<bool>,
    /// A request came since somebody asked.
    active: Cell<bool>,
    said: Cell<u32>,
}

#[derive(Clone, Copy)]
struct State {
    phase: Phase,
    /// Tick of the last progress.
    progress: u32,
}

impl Watchdog {
    pub fn new(patience: Patience) -> Rc<Watchdog> {
        Rc::new(Watchdog {
            tick: Cell::new(0),
            patience,
            states: RefCell::default(),
            sockets: RefCell::default(),
            free: RefCell::default(),
            draining: Cell::new(false),
            active: Cell::new(false),
            said: Cell::new(u32::MAX),
        })
    }

    /// Watches a connection, idle from now on, until what this returns is dropped.
    pub fn watch(self: &Rc<Watchdog>, socket: Weak<Socket>) -> Watched {
        let state = State {
            phase: Phase::Idle,
            progress: self.tick.get(),
        };
        let (mut states, mut sockets) = (self.states.borrow_mut(), self.sockets.borrow_mut());
        let place = match self.free.borrow_mut().pop() {
            Some(place) => {
                states[place] = state;
                sockets[place] = socket;
                place
            }
            None => {
                states.push(state);
                sockets.push(socket);
                states.len() - 1
            }
        };
        Watched {
            watchdog: self.clone(),
            place,
        }
    }

    /// True once in a second: for log lines that a flood would repeat.
    pub fn once_a_second(&self) -> bool {
        let tick = self.tick.get();
        self.said.replace(tick) != tick
    }

    /// Advances the tick by one second and cuts whoever ran out of patience.
    pub fn sweep(&self) {
        self.tick.set(self.tick.get().wrapping_add(1));
        self.cut(|state| self.out_of_patience(state));
    }

    /// From now on idle connections are cut at once; the others finish their request.
    pub fn drain(&self) {
        self.draining.set(true);
        self.cut(|state| state.phase == Phase::Idle);
    }

    pub fn draining(&self) -> bool {
        self.draining.get()
    }

    /// Whether any connection had something to do since this was last asked.
    pub fn take_activity(&self) -> bool {
        self.active.take()
    }

    /// Connections that are still open.
    pub fn open(&self) -> usize {
        self.states.borrow().len() - self.free.borrow().len()
    }

    fn cut(&self, due: impl Fn(State) -> bool) {
        let (states, sockets) = (self.states.borrow(), self.sockets.borrow());
        for (state, socket) in states.iter().zip(sockets.iter()) {
            if due(*state)
                && let Some(socket) = socket.upgrade()
            {
                socket.cut();
            }
        }
    }

    fn out_of_patience(&self, state: State) -> bool {
        let waited_s = self.tick.get().wrapping_sub(state.progress);
        match state.phase {
            Phase::Idle => self.draining.get() || waited_s > self.patience.idle_s,
            Phase::Head => waited_s > self.patience.head_s,
            Phase::Send => waited_s > self.patience.send_s,
            Phase::Work => false,
        }
    }
}

/// A connection's place in its shard's watchdog.
pub struct Watched {
    watchdog: Rc<Watchdog>,
    place: usize,
}

impl Watched {
    /// Enters a phase; its patience starts now.
    pub fn enter(&self, phase: Phase) {
        let progress = self.watchdog.tick.get();
        self.watchdog.states.borrow_mut()[self.place] = State { phase, progress };
        self.watchdog.active.set(true);
    }

    pub fn progressed(&self) {
        self.watchdog.states.borrow_mut()[self.place].progress = self.watchdog.tick.get();
        self.watchdog.active.set(true);
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.enter(Phase::Work);
        self.watchdog.sockets.borrow_mut()[self.place] = Weak::new();
        self.watchdog.free.borrow_mut().push(self.place);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Patience = Patience {
        idle_s: 5,
        head_s: 2,
        send_s: 3,
    };

    fn due(watchdog: &Watchdog) -> Vec<usize> {
        let states = watchdog.states.borrow();
        (0..states.len())
            .filter(|place| watchdog.out_of_patience(states[*place]))
            .collect()
    }

    #[test]
    fn each_phase_has_its_own_patience_from_the_last_progress_on() {
        let watchdog = Watchdog::new(PATIENCE);
        let watched: Vec<Watched> = (0..4).map(|_| watchdog.watch(Weak::new())).collect();
        let phases = [Phase::Idle, Phase::Head, Phase::Send, Phase::Work];
        for (watched, phase) in watched.iter().zip(phases) {
            watched.enter(phase);
        }
        let mut seen = Vec::new();
        for _ in 0..6 {
            watchdog.sweep();
            seen.push(due(&watchdog));
        }
        let expected: [&[usize]; 6] = [&[], &[], &[1], &[1, 2], &[1, 2], &[0, 1, 2]];
        assert_eq!(seen, expected);
        watched[1].progressed();
        assert_eq!(due(&watchdog), [0, 2]);
    }

    #[test]
    fn the_place_of_one_that_left_is_for_the_next_and_nobody_runs_out_in_it() {
        let watchdog = Watchdog::new(PATIENCE);
        let first = watchdog.watch(Weak::new());
        let second = watchdog.watch(Weak::new());
        assert_eq!(watchdog.open(), 2);
        let place = first.place;
        drop(first);
        (0..10).for_each(|_| watchdog.sweep());
        assert_eq!((watchdog.open(), due(&watchdog)), (1, vec![second.place]));
        assert_eq!(watchdog.watch(Weak::new()).place, place);
    }
}
