//! Large bodies take turns, so that a small answer waits for a few slices and not for all of them.
//!
//! One per shard. Without turns whoever's socket has room sends a slice before the shard looks at
//! its ring again, and a small request waits for them all. Here a few go out, the shard looks at
//! what arrived meanwhile, and then the next in line go on. What arrived goes first, since its
//! tasks were woken before.
//!
//! Everybody draws a ticket and goes when its number is called, so nobody overtakes. A ticket of
//! somebody who went away costs the others one slice of one turn.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

use monoio::net::unix::UnixDatagram;

/// Bytes of the longest slice, one `sendfile` call. With 256 KiB, 30 µs, 1 MiB bodies go out a tenth
/// to a third slower.
pub const SLICE_LEN: u64 = 1 << 20;
/// Whole slices between two looks at the ring, 130 µs each on loopback.
const SLICES: u64 = 2;

/// Bytes that a call counts as at least: a turn is to have an end beside clients that take little.
const CHARGED_MIN: u64 = SLICE_LEN / 32;

pub struct Turns {
    /// Always writable, so that a wait for it is over when the shard has looked at its ring.
    marker: UnixDatagram,
    /// The next ticket.
    next: Cell<u64>,
    /// Tickets below this one may send.
    called: Cell<u64>,
    /// Bytes that those who sent left of their slices since the last look.
    left: Cell<u64>,
    /// Tickets from `called` on that wait, in order, and whom to wake.
    waiting: RefCell<VecDeque<(u64, Waker)>>,
    /// The task of `run`, while there is nothing to do.
    resting: RefCell<Option<Waker>>,
}

impl Turns {
    pub fn new() -> io::Result<Turns> {
        Ok(Turns {
            marker: UnixDatagram::unbound()?,
            next: Cell::new(0),
            called: Cell::new(SLICES),
            left: Cell::new(0),
            waiting: RefCell::default(),
            resting: RefCell::default(),
        })
    }

    /// Waits until one slice may be sent; [`sent`](Turns::sent) then says how long it was, 0 if
    /// nothing came of it.
    pub async fn take(&self) {
        let ticket = self.next.get();
        self.next.set(ticket + 1);
        if let Some(run) = self.resting.borrow_mut().take() {
            run.wake();
        }
        poll_fn(|context| {
            if ticket < self.called.get() {
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            match waiting.binary_search_by_key(&ticket, |(waits, _)| *waits) {
                Ok(found) => waiting[found].1.clone_from(context.waker()),
                Err(place) => waiting.insert(place, (ticket, context.waker().clone())),
            }
            Poll::Pending
        })
        .await
    }

    /// Tells how much of a slice was sent. Short ones, as of a socket with little room, make room
    /// for others in the same turn.
    pub fn sent(&self, len: u64) {
        let taken = len.clamp(CHARGED_MIN, SLICE_LEN);
        self.left.set(self.left.get() + SLICE_LEN - taken);
        if self.left.get() >= SLICE_LEN {
            self.left.set(self.left.get() - SLICE_LEN);
            self.call(1);
        }
    }

    /// Lets so many more go on.
    fn call(&self, more: u64) {
        let called = (self.called.get() + more).min(self.next.get() + SLICES);
        self.called.set(called);
        loop {
            let mut waiting = self.waiting.borrow_mut();
            let first = waiting.front().is_some_and(|(ticket, _)| *ticket < called);
            let Some((_, waker)) = first.then(|| waiting.pop_front()).flatten() else {
                return;
            };
            drop(waiting);
            waker.wake();
        }
    }

    /// Begins a turn each time the shard has looked at its ring. Never returns.
    pub async fn run(&self) {
        let mut seen = 0;
        loop {
            poll_fn(|context| {
                if self.next.get() != seen || !self.waiting.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.resting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            seen = self.next.get();
            // Whatever it says, the ring has been looked at.
            let _ = self.marker.writable(false).await;
            self.left.set(0);
            self.call(SLICES);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use monoio::IoUringDriver;

    use super::*;

    fn on_a_ring(test: impl Future<Output = ()>) {
        let runtime = monoio::RuntimeBuilder::<IoUringDriver>::new().build();
        runtime.expect("a runtime").block_on(test);
    }

    fn turns() -> Rc<Turns> {
        Rc::new(Turns::new().expect("a socket"))
    }

    fn running(turns: &Rc<Turns>) {
        let turns = turns.clone();
        monoio::spawn(async move { turns.run().await });
    }

    #[test]
    fn those_who_wait_go_on_in_their_order_a_few_at_a_time() {
        on_a_ring(async {
            let turns = turns();
            let order = Rc::new(RefCell::new(Vec::new()));
            let all: Vec<_> = (0..3 * SLICES)
                .map(|number| {
                    let (turns, order) = (turns.clone(), order.clone());
                    monoio::spawn(async move {
                        turns.take().await;
                        order.borrow_mut().push(number);
                        turns.sent(SLICE_LEN);
                    })
                })
                .collect();
            turns.marker.writable(false).await.expect("a ring");
            assert_eq!(order.borrow().len() as u64, SLICES, "nobody began a turn");
            running(&turns);
            for each in all {
                each.await;
            }
            assert!(order.borrow().is_sorted());
        });
    }

    #[test]
    fn nobody_overtakes_however_soon_it_comes_back() {
        on_a_ring(async {
            let turns = turns();
            let sent = Rc::new(RefCell::new([0_u32; 7]));
            for number in 0..7 {
                let (turns, sent) = (turns.clone(), sent.clone());
                monoio::spawn(async move {
                    loop {
                        turns.take().await;
                        sent.borrow_mut()[number] += 1;
                        turns.sent(SLICE_LEN);
                        turns.marker.writable(false).await.expect("a ring");
                    }
                });
            }
            running(&turns);
            while sent.borrow().iter().sum::<u32>() < 700 {
                turns.marker.writable(false).await.expect("a ring");
            }
            assert!(sent.borrow().iter().all(|times| (95..=105).contains(times)));
        });
    }

    #[test]
    fn short_slices_make_room_for_others_in_the_same_turn() {
        on_a_ring(async {
            let turns = turns();
            for _ in 0..4 * SLICES {
                turns.take().await;
                turns.sent(SLICE_LEN / 8);
            }
        });
    }

    #[test]
    fn one_who_went_away_keeps_nobody_waiting() {
        on_a_ring(async {
            let turns = turns();
            for _ in 0..SLICES {
                turns.take().await;
            }
            for _ in 0..3 * SLICES {
                let mut gone = Box::pin(turns.take());
                let polled = poll_fn(|context| Poll::Ready(gone.as_mut().poll(context))).await;
                assert!(polled.is_pending());
            }
            running(&turns);
            turns.take().await;
        });
    }
}
