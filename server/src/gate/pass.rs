//! The asker's side: a pass to send one request, and what is told when it was answered.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::failure::Failure;
use crate::http::rate_limit::Budget;
use crate::mailbox::{Message, Post, Reply};
use crate::upstream::UpstreamId;

use super::breaker;
use super::governor::Lane;
use super::negative::Question;

/// How long a request waits at the gate of an upstream at most, for a connection or for the end
/// of a hold: half of the minute after which proxies and clients give a silent answer up.
pub const WAIT_MAX: Duration = Duration::from_secs(30);

/// The same when a cached copy can answer: time for a few HEADs to come back, and no more.
pub const SPARE_WAIT_MAX: Duration = Duration::from_secs(1);

/// What the configuration says of an upstream's gate. It comes with every ask, so that the owner
/// needs not be told when it changes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Requests under way at once, bodies included.
    pub connections_max: usize,
    pub breaker: breaker::Rules,
    /// How long a negative answer is remembered.
    pub negative_for: Duration,
}

/// An upstream as the log and the metrics call it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Name {
    pub project: Arc<str>,
    pub origin: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// Something else can answer, a cached copy or another upstream: waits for a connection and
    /// for nothing else.
    Prompt,
    /// Nobody else has it: waits for probes and for the end of holds, too.
    Patient,
}

/// Asks to send one request.
pub struct Enter {
    pub upstream: UpstreamId,
    pub name: Name,
    pub rules: Rules,
    pub lane: Lane,
    /// `None` when a copy is cached: then negative answers are neither given nor remembered.
    pub question: Option<Question>,
    pub urgency: Urgency,
    /// It is answered by then, give or take a look of the owner.
    pub deadline: Instant,
    pub reply: Reply<Result<Pass, Refusal>>,
}

/// Why a request is not let through, or was sent and gave no answer.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub failure: Failure,
    /// The upstream wants to be left alone for a while, and nothing else is in the way: it may
    /// help to wait.
    pub holds: bool,
}

impl From<Failure> for Refusal {
    fn from(failure: Failure) -> Refusal {
        Refusal {
            failure,
            holds: false,
        }
    }
}

/// What an answer says of the upstream itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It is up, whatever it said.
    Answers,
    Fails,
    /// The failure is another's: ours, or that of a place it led to.
    Unknown,
}

/// What came of a request.
#[derive(Clone, Debug)]
pub struct Heard {
    pub standing: Standing,
    pub failure: Option<Failure>,
    /// The upstream wants to be left alone for a while: it limits our rate (RFC 6585 §4), or fails
    /// and says for how long (RFC 9110 §10.2.3).
    pub holds: bool,
    /// The time that it names.
    pub wait: Option<Duration>,
    pub budget: Option<Budget>,
}

/// Tells the owner what was heard, that a permit is free again, or both.
pub struct Leave {
    pub upstream: UpstreamId,
    pub lane: Lane,
    pub question: Option<Question>,
    pub heard: Option<Heard>,
    pub probes: Probes,
    pub frees: bool,
}

/// Whose outcome is waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Probes {
    pub breaker: bool,
    pub lane: bool,
}

/// Leave to have one request under way. Dropping it gives the permit back.
pub struct Pass {
    post: Post,
    owner: usize,
    upstream: UpstreamId,
    lane: Lane,
    question: Option<Question>,
    probes: Probes,
    /// The owner would learn nothing from a plain success.
    quiet: bool,
}

impl Pass {
    pub(super) fn new(post: Post, owner: usize, ask: &Enter, probes: Probes, quiet: bool) -> Pass {
        Pass {
            post,
            owner,
            upstream: ask.upstream,
            lane: ask.lane,
            question: ask.question,
            probes,
            quiet,
        }
    }

    /// Tells the owner at once: others may wait for it.
    pub fn heard(&mut self, heard: Heard) {
        let plain = heard.failure.is_none() && heard.budget.is_none();
        if !(plain && self.quiet) {
            self.tell(Some(heard), false);
        }
        self.probes = Probes::default();
    }

    fn tell(&self, heard: Option<Heard>, frees: bool) {
        let leave = Leave {
            upstream: self.upstream,
            lane: self.lane,
            question: self.question,
            heard,
            probes: self.probes,
            frees,
        };
        self.post.inform(self.owner, Message::Leave(leave));
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        self.tell(None, true);
    }
}
