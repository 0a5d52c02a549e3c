//! Manifests from upstream: collected, checked, and asked for once more when they break.
//!
//! Used by `fetch` (by digest) and `freshness` (by tag). A manifest is small and nothing of it goes
//! out before all of it is here, so one that broke costs its clients nothing but time: the upstream
//! that sent it is asked once more, if its budget of retries allows that, and then the next.

use std::sync::Arc;
use std::time::Duration;

use entrepot_storage::{Digest, Hasher};
use monoio::time::sleep;

use crate::failure::{Failure, FailureKind};
use crate::jitter::jittered;
use crate::project::Repository;
use crate::source::{Answer, Search, Sources, Unanswered, Wanted, check_manifest, content_type};
use crate::whole::{Until, Whole};

/// Before the second request to the same upstream. A connection that broke is rarely alone.
const PAUSE: Duration = Duration::from_millis(50);

/// What an upstream sent: well-formed, and of the digest that was asked for, if one was.
pub struct Manifest {
    pub origin: Arc<str>,
    pub whole: Whole,
    /// What it is served as.
    pub media_type: &'static str,
}

/// What is known of a manifest before it is here.
pub struct Expected<'a> {
    pub digest: Digest,
    /// What becomes of it.
    pub until: Until,
    /// Told of an origin that is given up because it sent bytes of another digest.
    pub mismatched: &'a dyn Fn(&Arc<str>),
}

/// Why an answer is not the manifest.
enum Bad {
    Broken(Failure),
    Mismatched(Failure),
    /// It would be the same the next time; another upstream may have the manifest.
    Unlike(Failure),
    /// It would be the same everywhere, or there is no room for it.
    Refused(Failure),
}

impl Sources {
    /// The first manifest, in the order of the search.
    pub async fn manifest(
        &self,
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: Search<'_>,
        expected: Option<Expected<'_>>,
    ) -> Result<Manifest, Unanswered> {
        let digest = expected.as_ref().map(|expected| expected.digest);
        let until = expected.as_ref().map_or(Until::Stored, |named| named.until);
        let mut given_up: Vec<Arc<str>> = Vec::new();
        // Of whom the last answer was, if that is asked once more.
        let mut again: Option<Arc<str>> = None;
        let mut failed: Option<Failure> = None;
        loop {
            let refused = |origin: &Arc<str>| {
                given_up.contains(origin) || search.refused.is_some_and(|refused| refused(origin))
            };
            let now = Search {
                prefer: again.as_deref().or(search.prefer),
                refused: Some(&refused),
                ..search
            };
            let answer = match (self.first(repository, wanted, now).await, failed.take()) {
                (Ok(answer), _) => answer,
                (Err(unanswered), Some(failure)) => {
                    return Err(Unanswered {
                        report: Failure::worse(failure, unanswered.report),
                        ..unanswered
                    });
                }
                (Err(unanswered), None) => return Err(unanswered),
            };
            let origin = answer.origin.clone();
            let bad = match self.read(answer, digest, until).await {
                Ok(manifest) => return Ok(manifest),
                Err(Bad::Refused(failure)) => return Err(failure.into()),
                Err(bad) => bad,
            };
            let second = again.as_ref() == Some(&origin);
            let unlike = matches!(bad, Bad::Unlike(_));
            if !second && !unlike && self.may_ask_again(repository, &origin) {
                again = Some(origin);
                sleep(jittered(PAUSE)).await;
            } else {
                if let (Bad::Mismatched(_), Some(expected)) = (&bad, &expected) {
                    (expected.mismatched)(&origin);
                }
                again = None;
                given_up.push(origin);
            }
            let (Bad::Broken(failure)
            | Bad::Mismatched(failure)
            | Bad::Unlike(failure)
            | Bad::Refused(failure)) = bad;
            failed = Some(failure);
        }
    }

    /// Collects and checks an answer.
    async fn read(
        &self,
        answer: Answer,
        digest: Option<Digest>,
        until: Until,
    ) -> Result<Manifest, Bad> {
        let Answer {
            origin,
            mut response,
            ..
        } = answer;
        let collected = self.whole.try_collect(&mut response, &origin, until).await;
        let refused = |failure: Failure| match failure.kind {
            FailureKind::Busy => Bad::Refused(failure),
            _ => Bad::Unlike(failure),
        };
        let whole = match collected.map_err(refused)? {
            Ok(whole) => whole,
            Err(failure) => return Err(Bad::Broken(failure)),
        };
        if digest.is_some_and(|digest| digest_of(&whole.bytes, &digest) != digest) {
            let why = "the manifest does not match its digest";
            return Err(Bad::Mismatched(Failure::of(
                FailureKind::BadBody,
                &origin,
                why,
            )));
        }
        let came_as = content_type(&response.head);
        match check_manifest(&whole.bytes, came_as.as_deref(), &origin) {
            Ok(media_type) => Ok(Manifest {
                origin,
                whole,
                media_type,
            }),
            // The digest is right: nobody has another document of it.
            Err(failure) if digest.is_some() => Err(Bad::Refused(failure)),
            Err(failure) => Err(Bad::Unlike(failure)),
        }
    }
}

/// By the algorithm of another digest.
fn digest_of(bytes: &[u8], like: &Digest) -> Digest {
    let mut hasher = Hasher::new(like.algorithm());
    hasher.update(bytes);
    hasher.finish()
}
