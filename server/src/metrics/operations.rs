//! What operators had the running server do, and what came of it.
//!
//! Counted by `reload` and `refresh` on their threads, shown by `render`.

use std::sync::atomic::{AtomicU64, Ordering};

use entrepot_storage::Seconds;

use super::Page;
use crate::clock;

closed_set!(ReloadResult {
    Reloaded => "reloaded",
    // The configuration is wrong, or what it names cannot be read.
    Refused => "refused",
    // The shards did not take it over.
    Stuck => "stuck",
});

closed_set!(RefreshResult {
    New => "new",
    Moved => "moved",
    Unchanged => "unchanged",
    // Upstream could not be asked; the cached copy stands in.
    Stale => "stale",
    Failed => "failed",
});

pub struct Operations {
    reloads: [AtomicU64; ReloadResult::ALL.len()],
    refreshes: [AtomicU64; RefreshResult::ALL.len()],
    /// When the configuration in effect was read.
    loaded: AtomicU64,
}

impl Default for Operations {
    fn default() -> Operations {
        Operations {
            reloads: Default::default(),
            refreshes: Default::default(),
            loaded: AtomicU64::new(clock::now()),
        }
    }
}

impl Operations {
    pub fn reload(&self, result: ReloadResult) {
        self.reloads[result as usize].fetch_add(1, Ordering::Relaxed);
        if result == ReloadResult::Reloaded {
            self.loaded.store(clock::now(), Ordering::Relaxed);
        }
    }

    pub fn refresh(&self, result: RefreshResult) {
        self.refreshes[result as usize].fetch_add(1, Ordering::Relaxed);
    }

    fn loaded(&self) -> Seconds {
        self.loaded.load(Ordering::Relaxed)
    }
}

impl Page {
    pub(super) fn operations(&mut self, operations: &Operations) {
        for &result in ReloadResult::ALL {
            let value = operations.reloads[result as usize].load(Ordering::Relaxed);
            let result = result.label();
            let name = format!("entrepot_reloads_total{{result=\"{result}\"}}");
            self.sample("counter", &name, value);
        }
        for &result in RefreshResult::ALL {
            let value = operations.refreshes[result as usize].load(Ordering::Relaxed);
            let result = result.label();
            let name = format!("entrepot_refreshes_total{{result=\"{result}\"}}");
            self.sample("counter", &name, value);
        }
        let loaded = operations.loaded();
        self.sample("gauge", "entrepot_loaded_timestamp_seconds", loaded);
    }
}
