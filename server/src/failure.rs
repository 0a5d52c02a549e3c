//! Why a request could not be answered from upstream, in the words clients and rules need.
//!
//! Made by `fetch`, `freshness`, `access` and `relay`; turned into a status and an OCI error by
//! `respond`, and into a stale rule by `freshness`. It carries no secret: details are built from
//! statuses and origins only (R11).

use std::sync::Arc;

use crate::clock;
use crate::http::rate_limit;
use crate::oci::error::Code;
use crate::upstream::{self, Blame, FailureClass, UpstreamError};

/// Seconds a client is asked to wait when we refuse it for lack of room.
pub const RETRY_AFTER_S: u32 = 1;
/// Longest wait passed on from an upstream's `Retry-After`.
const RETRY_AFTER_MAX_S: u32 = 300;

/// What is passed on of a time that another names: a date that was just met is no reason to come
/// back at once.
fn passed_on_s(named_s: u64) -> u32 {
    let named_s = u32::try_from(named_s).unwrap_or(RETRY_AFTER_MAX_S);
    named_s.clamp(RETRY_AFTER_S, RETRY_AFTER_MAX_S)
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    NotFound,
    Denied,
    RateLimited,
    ServerError,
    Unreachable,
    Timeout,
    /// The project may ask nobody: the operator said so.
    Offline,
    /// What upstream sent is not what was asked for: wrong digest, wrong length, cut short.
    BadBody,
    /// One of our own limits is reached.
    Busy,
}

#[derive(Clone, Debug)]
pub struct Failure {
    pub kind: FailureKind,
    /// For the log and the error body.
    pub detail: Arc<str>,
    pub retry_after_s: Option<u32>,
    /// The status it was made from, if upstream sent one.
    pub status: Option<u16>,
}

impl FailureKind {
    /// What an upstream is not asked again for a while after: 429, and 5xx with `Retry-After`.
    const HELD_BACK: [FailureKind; 2] = [FailureKind::RateLimited, FailureKind::ServerError];

    /// Whether what may stand in for such failures may for all that an upstream holds back.
    pub fn is_spare(stands_in: impl Fn(&Failure) -> bool) -> bool {
        let all = FailureKind::HELD_BACK.iter();
        all.map(|kind| Failure::new(*kind, ""))
            .all(|failure| stands_in(&failure))
    }
}

impl Failure {
    pub fn new(kind: FailureKind, detail: impl Into<Arc<str>>) -> Failure {
        let retry_after_s = (kind == FailureKind::Busy).then_some(RETRY_AFTER_S);
        Failure {
            kind,
            detail: detail.into(),
            retry_after_s,
            status: None,
        }
    }

    pub fn busy(what: &str) -> Failure {
        Failure::new(
            FailureKind::Busy,
            format!("{what}: the limit is reached, try again"),
        )
    }

    /// Told of an upstream by its name, without the account that it was asked with.
    pub fn of(kind: FailureKind, origin: &str, why: impl std::fmt::Display) -> Failure {
        let origin = upstream::without_account(origin);
        Failure::new(kind, format!("{origin}: {why}"))
    }

    pub fn upstream(origin: &str, error: &UpstreamError) -> Failure {
        let kind = match error.class() {
            FailureClass::NotFound => FailureKind::NotFound,
            FailureClass::Denied => FailureKind::Denied,
            FailureClass::RateLimited => FailureKind::RateLimited,
            FailureClass::ServerError => FailureKind::ServerError,
            FailureClass::Unreachable if error.is_timeout() => FailureKind::Timeout,
            FailureClass::Unreachable => FailureKind::Unreachable,
        };
        let origin = upstream::without_account(origin);
        if error.blames(origin) == Blame::Us {
            return Failure::busy(&format!("{origin}: {error}"));
        }
        let named_s = error.retry_after_s().unwrap_or_default();
        let error = error.to_string();
        // Some causes name the place themselves, another one after a redirect.
        let detail = if error.contains(origin) {
            error
        } else {
            format!("{origin}: {error}")
        };
        let limited = kind == FailureKind::RateLimited;
        Failure {
            retry_after_s: limited.then(|| passed_on_s(named_s)),
            ..Failure::new(kind, detail)
        }
    }

    /// The failure an upstream's status stands for; `retry_after` is its field's value.
    pub fn status(origin: &str, status: u16, retry_after: Option<&[u8]>) -> Failure {
        let origin = upstream::without_account(origin);
        let kind = match status {
            404 | 410 => FailureKind::NotFound,
            401 | 403 => FailureKind::Denied,
            429 => FailureKind::RateLimited,
            _ => FailureKind::ServerError,
        };
        let retry_after_s = retry_after
            .and_then(|value| rate_limit::retry_after(value, clock::now()))
            .map(passed_on_s);
        Failure {
            kind,
            detail: format!("{origin} answered {status}").into(),
            retry_after_s: match kind {
                FailureKind::RateLimited => Some(retry_after_s.unwrap_or(RETRY_AFTER_S)),
                _ => retry_after_s,
            },
            status: Some(status),
        }
    }

    /// How much one failure says against another when several upstreams were asked: an
    /// operator learns most from the one that is not "not found".
    fn weight(&self) -> u8 {
        match self.kind {
            FailureKind::NotFound => 0,
            FailureKind::Denied => 1,
            FailureKind::RateLimited => 2,
            FailureKind::ServerError | FailureKind::BadBody => 3,
            FailureKind::Unreachable | FailureKind::Timeout | FailureKind::Offline => 4,
            FailureKind::Busy => 5,
        }
    }

    /// Of two failures the one that is to be reported.
    pub fn worse(first: Failure, second: Failure) -> Failure {
        if first.weight() >= second.weight() {
            first
        } else {
            second
        }
    }

    /// Status for the client (OCI distribution-spec, error codes; RFC 9110 §15).
    pub fn http_status(&self) -> u16 {
        match self.kind {
            FailureKind::NotFound => 404,
            FailureKind::Denied => 403,
            FailureKind::RateLimited => 429,
            // Offline as unreachable: common clients go on to their next host at once.
            FailureKind::ServerError
            | FailureKind::Unreachable
            | FailureKind::Offline
            | FailureKind::BadBody => 502,
            FailureKind::Timeout => 504,
            FailureKind::Busy => 503,
        }
    }

    /// OCI code; `unknown` is the one for a missing thing of the kind that was asked for.
    pub fn code(&self, unknown: Code) -> Code {
        match self.kind {
            FailureKind::Denied => Code::Denied,
            FailureKind::RateLimited | FailureKind::Busy => Code::TooManyRequests,
            FailureKind::NotFound => unknown,
            FailureKind::BadBody if unknown == Code::ManifestUnknown => Code::ManifestInvalid,
            FailureKind::ServerError
            | FailureKind::Unreachable
            | FailureKind::Timeout
            | FailureKind::Offline
            | FailureKind::BadBody => Code::Unknown,
        }
    }
}
