//! Wall-clock seconds for ages and records. Timers use the runtime's monotonic clock instead.

use std::time::{SystemTime, UNIX_EPOCH};

use entrepot_storage::Seconds;

/// Seconds since 1970; 0 if the clock stands before that.
pub fn now() -> Seconds {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}
