//! Large bodies take turns, so that a small answer waits for one slice and not for all of them.
//!
//! One per shard. Without turns whoever's socket has room sends a slice before the shard looks at
//! its ring again: with 256 large bodies a small request waits for 256 slices, 30 ms. Here a few
//! go out, the shard looks at what arrived meanwhile, and then the next in line go on. What
//! arrived goes first, since its tasks were woken before.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::task::{Poll, Waker};

use monoio::net::unix::UnixDatagram;

/// Slices between two looks at the ring, 130 µs each.
const SLICES: u32 = 2;

#[derive(Default)]
pub struct Turns {
    /// Slices sent since the shard last looked at its ring.
    sent: Cell<u32>,
    /// In the order in which they came, with some who went away.
    waiting: RefCell<VecDeque<Waker>>,
    /// The task of `run`, while there is nothing to do.
    resting: RefCell<Option<Waker>>,
}

impl Turns {
    /// Waits until one slice may be sent.
    pub async fn take(&self) {
        let mut came_before = false;
        poll_fn(|context| {
            if self.sent.get() < SLICES {
                self.sent.set(self.sent.get() + 1);
                self.wake();
                return Poll::Ready(());
            }
            let mut waiting = self.waiting.borrow_mut();
            let waker = context.waker().clone();
            match came_before {
                // Somebody who just came was faster.
                true => waiting.push_front(waker),
                false => waiting.push_back(waker),
            }
            came_before = true;
            Poll::Pending
        })
        .await
    }

    fn wake(&self) {
        if let Some(waker) = self.resting.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Ends a turn each time the shard has looked at its ring. Returns if the ring fails.
    pub async fn run(&self) -> io::Result<()> {
        // Always writable: the answer comes with the ring's next completions.
        let marker = UnixDatagram::unbound()?;
        loop {
            poll_fn(|context| {
                if self.sent.get() > 0 || !self.waiting.borrow().is_empty() {
                    return Poll::Ready(());
                }
                *self.resting.borrow_mut() = Some(context.waker().clone());
                Poll::Pending
            })
            .await;
            marker.writable(false).await?;
            self.sent.set(0);
            for _ in 0..SLICES {
                let next = self.waiting.borrow_mut().pop_front();
                next.into_iter().for_each(Waker::wake);
            }
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

    #[test]
    fn those_who_wait_go_on_in_their_order_a_few_at_a_time() {
        on_a_ring(async {
            let turns = Rc::new(Turns::default());
            let order = Rc::new(RefCell::new(Vec::new()));
            let all: Vec<_> = (0..3 * SLICES)
                .map(|number| {
                    let (turns, order) = (turns.clone(), order.clone());
                    monoio::spawn(async move {
                        turns.take().await;
                        order.borrow_mut().push(number);
                    })
                })
                .collect();
            UnixDatagram::unbound()
                .expect("a socket")
                .writable(false)
                .await
                .expect("a ring");
            assert_eq!(order.borrow().len() as u32, SLICES, "nobody ends the turn");
            let ending = turns.clone();
            let running = monoio::spawn(async move { ending.run().await });
            for each in all {
                each.await;
            }
            assert!(order.borrow().is_sorted());
            drop(running);
        });
    }

    #[test]
    fn one_who_went_away_keeps_nobody_waiting() {
        on_a_ring(async {
            let turns = Rc::new(Turns::default());
            for _ in 0..SLICES {
                turns.take().await;
            }
            for _ in 0..3 * SLICES {
                let mut gone = Box::pin(turns.take());
                let polled = poll_fn(|context| Poll::Ready(gone.as_mut().poll(context))).await;
                assert!(polled.is_pending());
            }
            let ending = turns.clone();
            let running = monoio::spawn(async move { ending.run().await });
            turns.take().await;
            drop(running);
        });
    }
}
