//! What an upstream said it does not have, or does not give: remembered for seconds, so that
//! scanners and clients that retry at once ask it once.
//!
//! Pure and bounded: the oldest are forgotten first. Only keyed hashes are held, which costs the
//! same for the longest names; the key is drawn at start, so nobody can aim at a collision.

use std::collections::{HashMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

use crate::failure::{Failure, FailureKind};
use crate::upstream::Method;

/// Answers remembered of one upstream, some 100 bytes each. A scanner that asks for more gets
/// through, at the pace of the upstream.
pub const NEGATIVES_MAX: usize = 4096;

/// Names a question. Two with the same name would be the same question but for one chance in
/// 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Question {
    project: u64,
    repository: u64,
    path: u64,
}

/// Makes questions; the same for all shards of a process.
#[derive(Clone, Debug, Default)]
pub struct Namer(RandomState);

impl Namer {
    pub fn question(
        &self,
        project: &str,
        repository: &str,
        method: Method,
        path: &str,
    ) -> Question {
        Question {
            path: self.0.hash_one((method.as_str(), path)),
            ..self.within(project, repository)
        }
    }

    fn within(&self, project: &str, repository: &str) -> Question {
        Question {
            project: self.0.hash_one(project),
            repository: self.0.hash_one((project, repository)),
            path: 0,
        }
    }
}

struct Negative {
    until: Instant,
    failure: Failure,
}

#[derive(Default)]
pub struct Negatives {
    known: HashMap<Question, Negative>,
    /// Oldest first; may name what is no longer known.
    order: VecDeque<Question>,
}

impl Negatives {
    pub fn get(&self, question: &Question, now: Instant) -> Option<&Failure> {
        let negative = self.known.get(question)?;
        (negative.until > now).then_some(&negative.failure)
    }

    /// Remembers a failure, if it is a negative answer and not the lack of one.
    pub fn put(&mut self, question: Question, failure: &Failure, time: Duration, now: Instant) {
        let negative = matches!(failure.kind, FailureKind::NotFound | FailureKind::Denied);
        if !negative || time.is_zero() {
            return;
        }
        let held = Negative {
            until: now + time,
            failure: failure.clone(),
        };
        if self.known.insert(question, held).is_none() {
            self.order.push_back(question);
        }
        while self.order.len() > NEGATIVES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
    }

    /// Whether there is anything to clear.
    pub fn has(&self, question: &Question) -> bool {
        self.known.contains_key(question)
    }

    /// It has it now.
    pub fn clear(&mut self, question: &Question) {
        if self.known.remove(question).is_some() {
            self.order.retain(|known| known != question);
        }
    }

    /// Forgets a project's, or one repository's.
    pub fn clear_within(&mut self, namer: &Namer, project: &str, repository: Option<&str>) {
        let scope = namer.within(project, repository.unwrap_or_default());
        let inside = |question: &Question| match repository {
            Some(_) => question.repository == scope.repository,
            None => question.project == scope.project,
        };
        self.known.retain(|question, _| !inside(question));
        self.order.retain(|question| !inside(question));
    }

    pub fn clear_all(&mut self) {
        *self = Negatives::default();
    }

    pub fn len(&self) -> usize {
        self.known.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    fn missing() -> Failure {
        Failure::status("https://r.example", 404, None)
    }

    #[test]
    fn an_answer_is_remembered_for_its_time_and_for_its_question() {
        let (namer, now) = (Namer::default(), Instant::now());
        let mut negatives = Negatives::default();
        let question = namer.question("dh", "library/app", Method::Head, "manifests/1");
        negatives.put(question, &missing(), TIME, now);
        assert!(negatives.get(&question, now).is_some());
        assert!(negatives.get(&question, now + TIME).is_none());
        for (project, repository, method, path) in [
            ("dh", "library/app", Method::Get, "manifests/1"),
            ("dh", "library/app", Method::Head, "manifests/2"),
            ("dh", "library/apple", Method::Head, "manifests/1"),
            ("ghcr", "library/app", Method::Head, "manifests/1"),
        ] {
            let other = namer.question(project, repository, method, path);
            assert!(negatives.get(&other, now).is_none(), "{project} {path}");
        }
        negatives.clear(&question);
        assert!(negatives.get(&question, now).is_none());
    }

    #[test]
    fn failures_are_no_answers() {
        let (namer, now) = (Namer::default(), Instant::now());
        let question = namer.question("dh", "a", Method::Get, "blobs/x");
        for status in [429, 500, 503] {
            let mut negatives = Negatives::default();
            let failure = Failure::status("https://r.example", status, None);
            negatives.put(question, &failure, TIME, now);
            assert_eq!(negatives.len(), 0, "{status}");
        }
        let mut negatives = Negatives::default();
        negatives.put(question, &missing(), Duration::ZERO, now);
        assert_eq!(negatives.len(), 0);
    }

    #[test]
    fn a_scanner_fills_a_bounded_memory() {
        let (namer, now) = (Namer::default(), Instant::now());
        let mut negatives = Negatives::default();
        let of = |n: usize| namer.question("dh", "a", Method::Head, &format!("manifests/{n}"));
        for n in 0..3 * NEGATIVES_MAX {
            negatives.put(of(n), &missing(), TIME, now);
        }
        assert_eq!(
            (negatives.len(), negatives.order.len()),
            (NEGATIVES_MAX, NEGATIVES_MAX)
        );
        assert!(negatives.get(&of(0), now).is_none());
        assert!(negatives.get(&of(3 * NEGATIVES_MAX - 1), now).is_some());
    }

    #[test]
    fn a_scope_is_cleared_and_nothing_beside_it() {
        let (namer, now) = (Namer::default(), Instant::now());
        let mut negatives = Negatives::default();
        let of = |project, repository| namer.question(project, repository, Method::Get, "blobs/x");
        let all = [of("dh", "a"), of("dh", "b"), of("ghcr", "a")];
        for question in all {
            negatives.put(question, &missing(), TIME, now);
        }
        negatives.clear_within(&namer, "dh", Some("a"));
        assert_eq!(
            all.map(|q| negatives.get(&q, now).is_some()),
            [false, true, true]
        );
        negatives.clear_within(&namer, "dh", None);
        assert_eq!(
            all.map(|q| negatives.get(&q, now).is_some()),
            [false, false, true]
        );
        assert_eq!(negatives.order.len(), 1);
    }
}
