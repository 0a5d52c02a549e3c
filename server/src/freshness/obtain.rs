//! Gets the manifest that a tag names now, and the proof that its repository has it.

use std::sync::Arc;

use entrepot_storage::{Digest, FillState};

use super::Tags;
use crate::access::{is_linked, link_key};
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyAnswer, BodyKind, Sought};
use crate::project::Repository;

/// Attempts to get a changed tag's manifest while proofs and fills cross each other.
const OBTAIN_ATTEMPTS: usize = 4;

impl Tags {
    /// Makes sure that the manifest is verified, and held when there is room. `spare`: the one that
    /// the tag named before may stand in for it.
    pub(super) async fn obtain(
        &self,
        source: &Repository,
        digest: Digest,
        origin: &Arc<str>,
        spare: bool,
    ) -> Result<(), Failure> {
        let project = self.sources.project(source.project);
        let sought = Sought {
            digest,
            kind: BodyKind::Manifest,
            prefer: Some(origin.clone()),
            fills: true,
            spare,
        };
        for _ in 0..OBTAIN_ATTEMPTS {
            let mut proven = is_linked(&self.store, &project, &source.name, &digest);
            if !proven && self.store.body(&digest).is_some() {
                // The HEAD of the tag in this repository's name named the digest: that is proof.
                self.link(source, digest, origin).await;
                proven = true;
            }
            match sought.ask(&self.post, source, proven, None).await? {
                BodyAnswer::Held if proven => return Ok(()),
                BodyAnswer::Held => {}
                BodyAnswer::Follow(mut following) => {
                    return match following.follower.wait(u64::MAX).await.1 {
                        FillState::Verified => Ok(()),
                        _ => Err(Failure::new(
                            FailureKind::BadBody,
                            "the manifest's fill failed",
                        )),
                    };
                }
                BodyAnswer::NeedProof(_) => self.link(source, digest, origin).await,
                BodyAnswer::Relay | BodyAnswer::Cold => return Ok(()),
                BodyAnswer::Failed(failure) => return Err(failure),
            }
        }
        Err(Failure::busy(
            "a manifest that is fetched and dropped again and again",
        ))
    }

    pub(super) async fn link(&self, source: &Repository, digest: Digest, origin: &Arc<str>) {
        let project = self.sources.project(source.project);
        let key = link_key(&project, source, digest);
        let record = entrepot_storage::LinkRecord {
            origin: origin.clone(),
            proof: entrepot_storage::Proof::Headed,
            at: clock::now(),
        };
        if let Err(error) = self.writer.put_link(key, record).await {
            tracing::warn!(%error, "a link could not be written");
        }
    }
}
