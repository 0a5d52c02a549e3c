//! Connections to one upstream over all cores, and the requests that wait for one.
//!
//! Pure. A permit is held from before a request is sent until its body has ended. Who waits is
//! served in order, as far as what it waits for allows, until its deadline. Bodies may take hours
//! and checks of tags take moments, so the bodies never get all permits.

use std::collections::VecDeque;

use super::governor::Lane;

/// Requests that may wait for one upstream. Each holds a client's connection, which costs a few
/// KiB; a queue this long takes longer to serve than its deadline anyway.
pub const WAITING_MAX: usize = 1024;

/// Of this many permits one is kept for HEADs: many tags are checked through one connection while
/// a layer passes through another.
const RESERVE_PART: usize = 8;

/// How many permits only HEADs get: at least one, unless there is no other.
fn reserve(max: usize) -> usize {
    (max / RESERVE_PART).max(1).min(max.saturating_sub(1))
}

pub struct Permits<T> {
    in_use: usize,
    /// Of those in use: of requests whose answers have bodies.
    with_bodies: usize,
    waiting: VecDeque<T>,
}

impl<T> Permits<T> {
    pub fn new() -> Permits<T> {
        Permits {
            in_use: 0,
            with_bodies: 0,
            waiting: VecDeque::new(),
        }
    }

    /// Whether one is free for such a request; the maximum may have changed since the last time.
    pub fn has_free(&self, lane: Lane, max: usize) -> bool {
        let within = lane == Lane::Head || self.with_bodies < max - reserve(max);
        within && self.in_use < max
    }

    pub fn take(&mut self, lane: Lane) {
        self.in_use += 1;
        self.with_bodies += usize::from(lane != Lane::Head);
    }

    pub fn give_back(&mut self, lane: Lane) {
        self.in_use = self.in_use.saturating_sub(1);
        let with_body = usize::from(lane != Lane::Head);
        self.with_bodies = self.with_bodies.saturating_sub(with_body);
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
        permits.take(Lane::Head);
        assert!(permits.has_free(Lane::Head, 2));
        assert!(!permits.has_free(Lane::Head, 1));
        permits.give_back(Lane::Head);
        assert!(permits.has_free(Lane::Head, 1));
    }

    #[test]
    fn bodies_leave_some_to_heads_and_no_more_than_all_are_given() {
        for (max, bodies) in [(1, 1), (2, 1), (3, 2), (8, 7), (16, 14), (256, 224)] {
            let mut permits: Permits<()> = Permits::new();
            let mut given = 0;
            for lane in [Lane::Manifest, Lane::Other].into_iter().cycle() {
                if !permits.has_free(lane, max) {
                    break;
                }
                permits.take(lane);
                given += 1;
            }
            assert_eq!(given, bodies, "{max}");
            while permits.has_free(Lane::Head, max) {
                permits.take(Lane::Head);
            }
            assert_eq!(permits.in_use(), max);
            // What HEADs hold beside their reserve is what bodies wait for.
            permits.give_back(Lane::Other);
            assert!(permits.has_free(Lane::Other, max));
            permits.take(Lane::Head);
            assert!(!permits.has_free(Lane::Other, max));
        }
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
