//! What a purge asks of the fills that run: for whom, and to end.
//!
//! Their links come with their ends, so until then nothing but these names whose they are.

use std::rc::Rc;

use entrepot_storage::Digest;

use super::{BodyKind, Fetcher, Running};
use crate::project::Repository;

impl Fetcher {
    /// What is being fetched for repositories that `whose` knows by their projects' names and
    /// their own.
    pub fn fetched_for(&self, whose: impl Fn(&str, &str) -> bool) -> Vec<Digest> {
        let running = self.running.borrow();
        let theirs = running.iter().filter(|(_, running)| {
            let sources = running.sources.borrow();
            sources.iter().any(|source| self.is_of(source, &whose))
        });
        theirs.map(|((digest, _), _)| *digest).collect()
    }

    /// A purge of the digest: whoever asked for it until now does not get it into the store. Fills
    /// that have room already are the store's to stop. When this returns they leave no link any
    /// more.
    pub async fn stop(&self, digest: &Digest) {
        for kind in [BodyKind::Manifest, BodyKind::Blob] {
            let running = self.running.borrow().get(&(*digest, kind)).cloned();
            if let Some(running) = running {
                running.stopped.set(true);
                running.linked().await;
            }
        }
    }

    /// A purge of the repositories: what others wait for is fetched on, and these have to prove
    /// anew that it is theirs. When this returns fills leave no link of theirs any more.
    pub async fn leave(&self, whose: impl Fn(&str, &str) -> bool) {
        let running: Vec<Rc<Running>> = self.running.borrow().values().cloned().collect();
        for running in running {
            running.leaves(|source| self.is_of(source, &whose));
            if self.is_of(&running.source.borrow(), &whose) {
                running.linked().await;
            }
        }
    }

    fn is_of(&self, source: &Repository, whose: impl Fn(&str, &str) -> bool) -> bool {
        whose(&self.sources.project(source.project).name, &source.name)
    }
}

impl Running {
    /// Returns at once unless a link is being put.
    async fn linked(&self) {
        let linking = self.linking.borrow().clone();
        if let Some(linking) = linking {
            // Nothing is sent: the sender goes when all can be found.
            let _ = linking.recv_async().await;
        }
    }
}
