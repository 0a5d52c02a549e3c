//! The age clock: seconds that the store was open, which is what recency is counted in.
//!
//! It follows the time that callers give, but never backwards and never far at once, and stands
//! still while no process has the store. So neither a jump of the system's clock nor a downtime
//! makes anything old, and a clock that goes back makes nothing immortal.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::Seconds;

/// The most one call may add: `Writer::maintain` comes ten times a second, so a longer step is a
/// jump of the system's clock or a process that was stopped.
const STEP_MAX: Seconds = 60;
/// A time this much lower than the latest is a clock that was set back; less is two threads that
/// read it in one order and told it in the other.
const SET_BACK: Seconds = 60;

/// A reading of the age clock, in seconds. 136 years fit.
pub(crate) type Age = u32;

pub(crate) struct AgeClock {
    age: AtomicU32,
    told: AtomicU64,
}

impl AgeClock {
    /// Goes on from `age`, which was reached when the store was closed.
    pub(crate) fn new(age: Age, now: Seconds) -> AgeClock {
        AgeClock {
            age: AtomicU32::new(age),
            told: AtomicU64::new(now),
        }
    }

    pub(crate) fn now(&self) -> Age {
        self.age.load(Ordering::Relaxed)
    }

    /// Moves on to where the last process left it. For recovery.
    pub(crate) fn resume(&self, age: Age) {
        self.age.fetch_max(age, Ordering::Relaxed);
    }

    /// Takes the time it is; of several threads that tell the same second, one moves the clock.
    pub(crate) fn advance(&self, now: Seconds) {
        let last = self.told.load(Ordering::Relaxed);
        if now == last || (now < last && last - now < SET_BACK) {
            return;
        }
        let told = self
            .told
            .compare_exchange(last, now, Ordering::Relaxed, Ordering::Relaxed);
        if told.is_ok() {
            let step = now.saturating_sub(last).min(STEP_MAX) as Age;
            let add = |age: Age| Some(age.saturating_add(step));
            let _ = self
                .age
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn follows_the_time_and_not_its_jumps() {
        let clock = AgeClock::new(1000, 50);
        clock.advance(51);
        clock.advance(51);
        assert_eq!(clock.now(), 1001);
        clock.advance(50);
        clock.advance(51);
        assert_eq!(clock.now(), 1001, "told out of order");
        clock.advance(1 << 40);
        assert_eq!(clock.now(), 1061, "a jump is one step");
        clock.advance(7);
        assert_eq!(clock.now(), 1061, "set back");
        clock.advance(9);
        assert_eq!(clock.now(), 1063, "and goes on from there");
    }

    #[test]
    fn resumes_and_never_goes_back() {
        let clock = AgeClock::new(0, 50);
        clock.resume(1000);
        clock.resume(10);
        clock.advance(51);
        assert_eq!(clock.now(), 1001);
    }

    #[test]
    fn ends_instead_of_beginning_again() {
        let clock = AgeClock::new(Age::MAX - 1, 0);
        clock.advance(30);
        assert_eq!(clock.now(), Age::MAX);
    }
}
