//! What a request that was sent says to the gate of its upstream.

use std::time::Duration;

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::gate::{Heard, Standing};
use crate::http::rate_limit;
use crate::upstream::{Blame, Response};

/// An answer, and what it is a failure for. What a place says that the upstream led to is not
/// about the upstream, which has answered.
pub(super) fn answer(response: &Response, failure: Option<Failure>) -> Heard {
    let own = response.own;
    let field = |name| response.head.field(name).filter(|_| own);
    let wait = field("retry-after")
        .and_then(|value| rate_limit::retry_after(value, clock::now()))
        .map(Duration::from_secs);
    let budget = match (field("ratelimit-limit"), field("ratelimit-remaining")) {
        (Some(limit), Some(remaining)) => rate_limit::budget(limit, remaining),
        _ => None,
    };
    let blame = if own {
        Blame::Upstream
    } else {
        Blame::Elsewhere
    };
    let standing = failure
        .as_ref()
        .map_or(Standing::Answers, |failure| standing(failure, blame));
    Heard {
        standing,
        failure,
        holds: own && holds(response.status, wait),
        wait,
        budget,
    }
}

/// No answer.
pub(super) fn nothing(failure: &Failure, blame: Blame) -> Heard {
    Heard {
        standing: standing(failure, blame),
        failure: Some(failure.clone()),
        holds: false,
        wait: None,
        budget: None,
    }
}

/// RFC 6585 §4, RFC 9110 §10.2.3.
fn holds(status: u16, wait: Option<Duration>) -> bool {
    status == 429 || (matches!(status, 502..=504) && wait.is_some())
}

fn standing(failure: &Failure, blame: Blame) -> Standing {
    let fails = match (failure.kind, failure.status) {
        (FailureKind::Unreachable | FailureKind::Timeout, _) => true,
        (FailureKind::ServerError, status) => {
            status.is_none_or(|status| matches!(status, 500 | 502..=504))
        }
        _ => false,
    };
    match (blame, fails) {
        (Blame::Us, _) => Standing::Unknown,
        (Blame::Upstream, true) => Standing::Fails,
        (Blame::Upstream, false) | (Blame::Elsewhere, _) => Standing::Answers,
    }
}
