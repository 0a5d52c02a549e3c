//! Waiting for a condition that can be observed, never for time to pass.

use std::time::{Duration, Instant};

/// How often a condition is looked at that cannot wake us.
const POLL_EVERY: Duration = Duration::from_millis(5);

/// How long a condition may take that holds within a second on an idle machine. Two cores shared
/// with other builds are not idle.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Looks until `look` finds something; panics when `patience` is over.
pub fn until_within<T>(patience: Duration, what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + patience;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(
            Instant::now() < end,
            "gave up after {patience:?} waiting for: {what}"
        );
        std::thread::sleep(POLL_EVERY);
    }
}

/// [`until_within`] the usual patience.
pub fn until<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_within(PATIENCE, what, look)
}

/// Waits until `holds` is true.
pub fn until_true(what: &str, mut holds: impl FnMut() -> bool) {
    until(what, || holds().then_some(()))
}
