//! Whether a failed request is made once more. Pure.
//!
//! Once, after a short random pause, and only from a budget: an upstream that fails every request
//! is not sent twice as many. Whether another source or a cached copy stands in is not decided
//! here.

use std::cell::Cell;
use std::time::Duration;

use super::error::UpstreamError;
use super::{Method, Response};

/// The longest pause. A balancer drops a dead member in it, and a client hardly notices.
pub(super) const PAUSE: Duration = Duration::from_millis(250);
/// What may be saved up, for one upstream on one shard: ten retries.
const SAVED_MAX: u32 = 100;
/// What one request earns, and what a retry costs: in the long run one retry in ten requests.
const EARNED: u32 = 1;
const COST: u32 = 10;

/// The retries that one upstream may still cause.
pub(super) struct Budget(Cell<u32>);

impl Default for Budget {
    fn default() -> Budget {
        Budget(Cell::new(SAVED_MAX))
    }
}

impl Budget {
    /// For each request that is not itself a retry.
    pub fn earn(&self) {
        self.0.set((self.0.get() + EARNED).min(SAVED_MAX));
    }

    pub fn spend(&self) -> bool {
        let left = self.0.get().checked_sub(COST);
        if let Some(left) = left {
            self.0.set(left);
        }
        left.is_some()
    }
}

/// Whether the same request may well succeed a moment later.
pub(super) fn is_worth_it(method: Method, outcome: &Result<Response, UpstreamError>) -> bool {
    match outcome {
        Err(UpstreamError::TokenService(reason)) => is_lost(reason),
        Err(error) => is_lost(error),
        // A HEAD asks whether a tag moved: the cached copy is the better second try.
        Ok(response) => {
            method == Method::Get
                && matches!(response.status, 500 | 502 | 503 | 504)
                && response.head.field("retry-after").is_none()
        }
    }
}

fn is_lost(error: &UpstreamError) -> bool {
    matches!(
        error,
        UpstreamError::Closed { .. } | UpstreamError::Lost { .. }
    )
}

#[cfg(test)]
mod tests {
    use super::{Budget, COST, SAVED_MAX};

    #[test]
    fn an_upstream_that_always_fails_is_asked_little_more() {
        let budget = Budget::default();
        let mut retries = 0;
        for _ in 0..1000 {
            budget.earn();
            retries += usize::from(budget.spend());
        }
        let saved = (SAVED_MAX / COST) as usize;
        assert!((100..=100 + saved).contains(&retries), "{retries}");
    }
}
