//! One fill: room for it, its bytes from upstream, and its end.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Fill, FillError, FillSpec, LinkRecord, Proof};

use super::{BodyAnswer, BodyKind, EndedBy, Fetcher, Running, Stream, answer, tell_verified};
use crate::access::link_key;
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::mailbox::Message;
use crate::metrics::Counter;
use crate::project::{Repository, repository_owner};
use crate::resume::{Arriving, Course, Opening};
use crate::upstream::without_account;

/// What is fetched in whose name.
pub struct Attempt<'a> {
    pub digest: Digest,
    pub kind: BodyKind,
    pub source: &'a Repository,
    /// Origin to ask first.
    pub prefer: Option<&'a str>,
    /// Something older may stand in for it: no hold of an upstream is waited for.
    pub spare: bool,
    /// False when the bytes must come in one answer.
    pub resumes: bool,
}

pub enum Ended {
    /// Held, or failed for a reason that a second fill would meet as well.
    Settled,
    /// The bytes have another digest.
    Mismatched {
        /// They came in several answers.
        spliced: bool,
    },
}

/// Why a fill did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Source(String),
    #[error("{0}")]
    Store(#[from] FillError),
    #[error("longer than limits.body_max")]
    OverLimit,
    #[error("the server is stopping")]
    Stopping,
    #[error("nobody follows a body that will not be stored")]
    Abandoned,
}

/// A fill that has room, and whether its bytes will stay.
struct Admitted {
    fill: Fill<UringDisk>,
    staged: bool,
}

impl Fetcher {
    /// Streams a body into the store and to its followers.
    ///
    /// An error is for the askers that still wait; followers learn it from the watermark.
    pub(super) async fn fill(
        &self,
        attempt: &Attempt<'_>,
        opening: Opening,
        running: &Running,
    ) -> Result<Ended, Failure> {
        let &Attempt {
            digest,
            kind,
            source,
            ..
        } = attempt;
        let origin = opening.origin().clone();
        let proven = || self.proven(running, &digest);
        let refused = |origin: &Arc<str>| self.setbacks.is_refused(&digest, origin);
        let course = Course {
            sources: &self.sources,
            metrics: &self.metrics,
            source,
            proven: &proven,
            digest,
            refused: &refused,
            resumes: attempt.resumes,
        };
        let media_type = opening.media_type();
        let arriving = Arriving::new(course, opening);
        let spec = FillSpec {
            digest,
            length: arriving.announced_len(),
            media_type,
        };
        let Some(admitted) = self.admit(spec, running).await else {
            return Ok(Ended::Settled);
        };
        if running.stopped.get() {
            return Err(Failure::new(
                FailureKind::Busy,
                "purged while it was fetched",
            ));
        }
        let ended_by = EndedBy::default();
        let stream = Stream {
            watermark: admitted.fill.watermark(),
            media_type: media_type.map(Into::into),
            origin,
            ended_by: ended_by.clone(),
            staged: admitted.staged,
            started: Instant::now(),
        };
        // The first ask started this; the others found it running.
        for (position, ask) in running.waiting.take().into_iter().enumerate() {
            let place = self.place(running, &stream, &ask, position > 0);
            answer(&ask, place);
        }
        running.stream.replace(Some(stream));
        let staged = admitted.staged;
        let moved = self.transfer(attempt, arriving, admitted, (running, &ended_by));
        match moved.await {
            Ok(()) => {
                if !staged && kind == BodyKind::Manifest {
                    for source in self.proven(running, &digest) {
                        tell_verified(&self.sources, &self.post, &source, digest).await;
                    }
                }
                Ok(Ended::Settled)
            }
            Err(ended) => Ok(ended),
        }
    }

    /// Moves all bytes and verifies them. An error says whether another fill may do better.
    async fn transfer(
        &self,
        attempt: &Attempt<'_>,
        mut arriving: Arriving<'_>,
        admitted: Admitted,
        (running, ended_by): (&Running, &EndedBy),
    ) -> Result<(), Ended> {
        let started = Instant::now();
        let Admitted { mut fill, staged } = admitted;
        let moved = self.stream(&mut fill, &mut arriving, staged).await;
        let ended = match moved {
            Ok(()) => {
                // Before a follower can have all of it.
                let _ = ended_by.set(arriving.origin().clone());
                let finished = self.finish(fill, attempt, running, arriving.origin()).await;
                finished.map_err(Broken::Store)
            }
            // Dropping it is what fails it, and its followers with it.
            Err(why) => {
                drop(fill);
                Err(why)
            }
        };
        let (digest, bytes) = (attempt.digest, arriving.arrived());
        let (origin, ms) = (arriving.origin(), started.elapsed().as_millis() as u64);
        let Err(error) = ended else {
            self.metrics.count(match staged {
                true => Counter::FillsStaged,
                false => Counter::FillsVerified,
            });
            tracing::info!(%digest, upstream = without_account(origin), bytes, ms, staged, "fill verified");
            return Ok(());
        };
        self.metrics.count(Counter::FillsFailed);
        tracing::warn!(
            %digest, upstream = without_account(origin), repository = %attempt.source.name, bytes, ms, %error,
            "fill failed; its followers were cut"
        );
        Err(self.learn(digest, &arriving, &error))
    }

    /// Only right bytes prove that the source refers to the digest (R9): a 200 may be of a login
    /// page. The link is in the index before anybody can find the body there. A purge that came
    /// before it leaves none, and one that comes now waits for it.
    async fn finish(
        &self,
        mut fill: Fill<UringDisk>,
        attempt: &Attempt<'_>,
        running: &Running,
        origin: &Arc<str>,
    ) -> Result<(), FillError> {
        fill.verify().await?;
        // No await from the end of the verification on.
        let purged = running.stopped.get() || !running.sources.borrow().contains(attempt.source);
        let (_linking, linked) = flume::bounded(1);
        running.linking.replace(Some(linked));
        if !purged {
            self.link(attempt.source, attempt.digest, origin).await;
        }
        fill.finish(clock::now()).await.map(drop)
    }

    /// Remembers what the next fill of this digest must not repeat.
    fn learn(&self, digest: Digest, arriving: &Arriving<'_>, error: &Broken) -> Ended {
        match error {
            Broken::Store(FillError::WrongDigest) => {
                let spliced = arriving.is_spliced();
                match spliced {
                    true => self.metrics.count(Counter::WrongDigests),
                    false => self.mismatched(digest, arriving.asked()),
                }
                Ended::Mismatched { spliced }
            }
            Broken::Store(FillError::Full) | Broken::OverLimit => {
                self.setbacks.outgrew(digest);
                Ended::Settled
            }
            _ => Ended::Settled,
        }
    }

    async fn stream(
        &self,
        fill: &mut Fill<UringDisk>,
        arriving: &mut Arriving<'_>,
        staged: bool,
    ) -> Result<(), Broken> {
        let watermark = fill.watermark();
        let abandoned = || staged && watermark.followers() == 0;
        let wanted = || !self.aborting.get() && !abandoned();
        while let Some(bytes) = arriving.next(&wanted).await.map_err(Broken::Source)? {
            // One that said its length is staged, and no longer than it said.
            if arriving.announced_len().is_none() && arriving.arrived() > self.bounds.body_len_max {
                return Err(Broken::OverLimit);
            }
            if self.aborting.get() {
                return Err(Broken::Stopping);
            }
            fill.write(bytes).await?;
            if abandoned() {
                return Err(Broken::Abandoned);
            }
        }
        Ok(())
    }

    /// Room in the store, else in staging, else none: then all askers are told to relay.
    async fn admit(&self, spec: FillSpec<'_>, running: &Running) -> Option<Admitted> {
        let refusal = if spec
            .length
            .is_some_and(|len| len > self.bounds.body_len_max)
        {
            "longer than limits.body_max".to_owned()
        } else {
            match self.writer.fill(spec).await {
                Ok(fill) => {
                    return Some(Admitted {
                        fill,
                        staged: false,
                    });
                }
                Err(refusal) => refusal.to_string(),
            }
        };
        let digest = spec.digest;
        match self.writer.staging(spec).await {
            Ok(fill) => {
                tracing::warn!(%digest, why = refusal, "not admitted; staged for its followers");
                Some(Admitted { fill, staged: true })
            }
            Err(second) => {
                tracing::warn!(%digest, why = %second, "not admitted and not staged; relayed");
                for ask in running.waiting.take() {
                    answer(&ask, BodyAnswer::Relay);
                }
                None
            }
        }
    }

    /// Puts verified bytes that are already here into the store: a manifest that was fetched by
    /// its tag, or a listing.
    pub async fn hold(
        &self,
        digest: Digest,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), Failure> {
        if self.store.body(&digest).is_some() {
            return Ok(());
        }
        let length = Some(bytes.len() as u64);
        let failed = |error: String| Failure::new(FailureKind::BadBody, error);
        let mut fill = self
            .writer
            .fill(FillSpec {
                digest,
                length,
                media_type: Some(media_type),
            })
            .await
            .map_err(|refusal| failed(refusal.to_string()))?;
        fill.write(bytes.to_vec())
            .await
            .map_err(|error| failed(error.to_string()))?;
        fill.finish(clock::now())
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    async fn link(&self, source: &Repository, digest: Digest, origin: &Arc<str>) {
        let project = self.sources.project(source.project);
        let key = link_key(&project, source, digest);
        let record = LinkRecord {
            origin: origin.clone(),
            proof: Proof::Fetched,
            at: clock::now(),
        };
        let owner = repository_owner(&project.name, &source.name, self.post.shards());
        self.post
            .tell(owner, |reply| Message::Link { key, record, reply })
            .await;
    }
}
