//! Buffers for connections that have a request, so that those that have none hold no memory.
//!
//! One per shard. A connection takes its buffers when bytes arrive and gives them back when it has
//! answered, so a hit allocates nothing once a shard has warmed up, and ten thousand idle
//! connections cost what the busiest moment cost.

use std::cell::RefCell;

/// Buffers kept for the next request; more were in use at once only in a burst.
const KEPT_MAX: usize = 256;
/// Bytes of a buffer that is kept; a long head or answer does not stay (4 MiB in all).
const KEPT_LEN_MAX: usize = 16 << 10;

#[derive(Default)]
pub struct Buffers(RefCell<Vec<Vec<u8>>>);

impl Buffers {
    /// An empty buffer, most often one that has grown before.
    pub fn take(&self) -> Vec<u8> {
        self.0.borrow_mut().pop().unwrap_or_default()
    }

    /// Takes a buffer back, whatever is in it.
    pub fn give(&self, mut buffer: Vec<u8>) {
        let mut kept = self.0.borrow_mut();
        if (1..=KEPT_LEN_MAX).contains(&buffer.capacity()) && kept.len() < KEPT_MAX {
            buffer.clear();
            kept.push(buffer);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_back_is_empty_and_goes_out_again() {
        let buffers = Buffers::default();
        let mut first = buffers.take();
        assert_eq!(first.capacity(), 0);
        first.extend_from_slice(&[1; 100]);
        buffers.give(first);
        let again = buffers.take();
        assert!(again.is_empty() && again.capacity() >= 100);
    }

    #[test]
    fn no_more_is_kept_than_is_bounded() {
        let buffers = Buffers::default();
        buffers.give(Vec::new());
        buffers.give(Vec::with_capacity(KEPT_LEN_MAX + 1));
        assert!(buffers.0.borrow().is_empty());
        (0..=KEPT_MAX).for_each(|_| buffers.give(vec![0; 10]));
        assert_eq!(buffers.0.borrow().len(), KEPT_MAX);
    }
}
