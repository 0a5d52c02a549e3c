//! Connections to one upstream over all cores, and the requests that wait for one.
//!
//! Pure. A permit is held from before a request is sent until its body has ended. Who waits is
//! served in order, as far as what it waits for allows, until its deadline.

use std::collections::VecDeque;

/// Requests that may wait for one upstream. Each holds a client's connection, which costs a few
/// KiB; a queue this long takes longer to serve than its deadline anyway.
pub const WAITING_MAX: usize = 1024;

pub struct Permits<T> {
    in_use: usize,
    waiting: VecDeque<T>,
}

impl<T> Permits<T> {
    pub fn new() -> Permits<T> {
        Permits {
            in_use: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether one is free; the maximum may have changed since the last time.
    pub fn has_free(&self, max: usize) -> bool {
        self.in_use < max
    }

    pub fn take(&mut self) {
        self.in_use += 1;
    }

    pub fn give_back(&mut self) {
        self.in_use = self.in_use.saturating_sub(1);
    }

    pub fn in_use(&self) -> usize {
        self.in_use
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// Whoever comes when the queue is full is given back.
    pub fn queue(&mut self, who: T) -> Result<(), T> {
        if self.waiting.len() >= WAITING_MAX {
            return Err(who);
        }
        self.waiting.push_back(who);
        Ok(())
    }

    /// All who wait, in order; who must wait on is to be queued again, in the same order.
    pub fn take_waiting(&mut self) -> VecDeque<T> {
        std::mem::take(&mut self.waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permits_are_counted() {
        let mut permits: Permits<()> = Permits::new();
        permits.take();
        assert!(permits.has_free(2));
        assert!(!permits.has_free(1));
        permits.give_back();
        assert!(permits.has_free(1));
    }

    #[test]
    fn the_queue_is_bounded_and_in_order() {
        let mut permits = Permits::new();
        for who in 0..WAITING_MAX {
            assert_eq!(permits.queue(who), Ok(()));
        }
        assert_eq!(permits.queue(0), Err(0));
        let waiting = permits.take_waiting();
        assert!(waiting.iter().copied().eq(0..WAITING_MAX));
    }
}
