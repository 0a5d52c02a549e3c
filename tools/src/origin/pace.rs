//! Sending at a rate: each piece waits for its place in time.

use std::sync::Mutex;
use std::time::{Duration, Instant};

/// Pieces a second at most, so that a slow answer flows instead of coming in bursts.
const PIECES_PER_SECOND: u64 = 50;
/// A piece this late is caught up with: it was the sender's own work or the scheduler, and a paced
/// line would have gone on meanwhile. After a longer pause the rate begins anew, without a burst.
const LATE_MAX: Duration = Duration::from_millis(20);

/// Shared by all answers, or owned by one.
#[derive(Default)]
pub struct Pace {
    state: Mutex<Option<Paced>>,
}

struct Paced {
    bytes_per_second: u64,
    /// When the next piece may go out.
    next: Instant,
}

impl Pace {
    pub fn set(&self, bytes_per_second: Option<u64>) {
        *self.state.lock().unwrap() = bytes_per_second.map(|rate| Paced {
            bytes_per_second: rate.max(1),
            next: Instant::now(),
        });
    }

    /// The most to send at once.
    pub fn piece_len(&self, len_max: usize) -> usize {
        match &*self.state.lock().unwrap() {
            None => len_max,
            Some(paced) => {
                (paced.bytes_per_second / PIECES_PER_SECOND).clamp(1, len_max as u64) as usize
            }
        }
    }

    /// Waits until `len` further bytes may be sent.
    pub fn wait(&self, len: usize) {
        std::thread::sleep(self.reserve(len, Instant::now()));
    }

    fn reserve(&self, len: usize, now: Instant) -> Duration {
        let mut state = self.state.lock().unwrap();
        let Some(paced) = &mut *state else {
            return Duration::ZERO;
        };
        let late = now.saturating_duration_since(paced.next);
        let start = if late > LATE_MAX { now } else { paced.next };
        let took = Duration::from_secs_f64(len as f64 / paced.bytes_per_second as f64);
        paced.next = start + took;
        // Bytes go out at the end of the time they take: a rate of 1 B/s begins with a wait.
        paced.next.saturating_duration_since(now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reserves_one_after_the_other() {
        let pace = Pace::default();
        let now = Instant::now();
        assert_eq!(pace.reserve(1 << 30, now), Duration::ZERO);
        pace.set(Some(1000));
        // Long enough after the rate was set that nothing is caught up with.
        let now = Instant::now() + LATE_MAX * 2;
        assert_eq!(pace.reserve(500, now), Duration::from_millis(500));
        assert_eq!(pace.reserve(500, now), Duration::from_secs(1));
        let later = now + Duration::from_secs(10);
        assert_eq!(pace.reserve(500, later), Duration::from_millis(500));
    }

    #[test]
    fn what_is_a_little_late_is_caught_up_with() {
        let pace = Pace::default();
        pace.set(Some(1000));
        let mut now = Instant::now() + LATE_MAX * 2;
        let start = now;
        for nth in 1..=100_u32 {
            now += pace.reserve(10, now);
            assert_eq!(now, start + Duration::from_millis(10) * nth);
            // Its sender is late by nearly as long as the piece takes.
            now += Duration::from_millis(9);
        }
    }

    #[test]
    fn pieces_are_small_when_slow() {
        let pace = Pace::default();
        assert_eq!(pace.piece_len(1 << 18), 1 << 18);
        pace.set(Some(10));
        assert_eq!(pace.piece_len(1 << 18), 1);
        pace.set(Some(1 << 40));
        assert_eq!(pace.piece_len(1 << 18), 1 << 18);
    }
}
