//! Purges: forgetting for good what an operator names.
//!
//! Called by `control` on its own thread, which may wait. The shards do the work, each for the
//! keys it owns (`owner`). A purge returns when its forget records are durable: nothing it forgot
//! comes back, whatever crashes. Running fills of the digests are stopped. A pull that asks
//! upstream while the purge runs counts as one after it.
//!
//! Of a repository or project the bodies go first and the names that lead to them last, so that
//! a purge that failed half-way finds the rest when it is made again.

mod owner;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::{Digest, DigestError, ScopeKey as Scope, WriteError, owner as slice_owner};

use crate::control::{Purged, Target};
use crate::generation::Current;
use crate::mailbox::{Mailboxes, Message};
use crate::oci::name::{is_repository, is_tag};
use crate::project::{digest_owner, repository_owner};

pub use owner::Owner;

/// How long one step may take on all shards together. A step is a walk of the index, tenths of a
/// second for millions of records, and a few syncs for each thousand keys.
const STEP_PATIENCE: Duration = Duration::from_secs(300);

#[derive(Debug, thiserror::Error)]
pub enum PurgeError {
    #[error("{found:?} is not a digest: {error}")]
    Digest { found: String, error: DigestError },
    #[error("{0:?} is not a repository: expected <project>/<repository>, such as dh/library/nginx")]
    Repository(String),
    #[error(
        "{0:?} is not a tag: expected <project>/<repository>:<tag>, such as dh/library/nginx:1.27"
    )]
    Tag(String),
    #[error("{0:?} is not the name of a project, such as dh")]
    Project(String),
    #[error(
        "forgotten now, but not on disk: after a crash it may be back ({0}); \
             make the purge again when the disk is well"
    )]
    NotDurable(#[from] WriteError),
    #[error("the server is stopping or does not get on; make the purge again")]
    Stuck,
}

/// What a shard is asked to do, for the keys it owns.
pub enum Step {
    /// Stop the fills of these digests and forget their bodies.
    Bodies(Vec<Digest>),
    /// Forget every repository's link to the digest.
    LinksTo(Digest),
    /// Forget what upstreams said they do not have in the scope, or at all.
    Negatives(Option<Scope>),
    Tag {
        scope: Scope,
        tag: Box<str>,
    },
    /// Say which digests the tags, listings and links in the scope lead to, and which are being
    /// fetched for it.
    Named(Scope),
    /// Say which of these digests something outside of the scope leads to, or is being fetched for.
    NamedElsewhere {
        digests: Arc<HashSet<Digest>>,
        besides: Scope,
    },
    /// Leave no link in the scope when fills end that go on for others.
    Fills(Scope),
    /// Forget everything on disk that is named in the scope, also what is not in the index any more.
    Scope(Scope),
    /// Forget tags, listings, links and statistics.
    Names(Scope),
}

/// What a shard did of a step.
#[derive(Debug, Default)]
pub struct Done {
    pub purged: Purged,
    pub digests: HashSet<Digest>,
}

/// The asking side: has the shards do the steps of a purge, and waits.
pub struct Purger {
    mailboxes: Arc<Mailboxes>,
    current: Arc<Current>,
}

impl Purger {
    pub fn new(mailboxes: Arc<Mailboxes>, current: Arc<Current>) -> Purger {
        Purger { mailboxes, current }
    }

    /// Returns when the purge is durable.
    pub fn purge(&self, target: &Target) -> Result<Purged, PurgeError> {
        match target {
            Target::Digest(text) => {
                let digest = Digest::parse(text).map_err(|error| PurgeError::Digest {
                    found: text.clone(),
                    error,
                })?;
                self.forget_negatives(None)?;
                let mut purged = self.bodies(&HashSet::from([digest]))?;
                purged += self.all(|| Step::LinksTo(digest))?.purged;
                Ok(purged)
            }
            Target::Tag(text) => {
                let wrong = || PurgeError::Tag(text.clone());
                let (name, tag) = text.rsplit_once(':').ok_or_else(wrong)?;
                let scope = self.repository(name).filter(|_| is_tag(tag));
                self.tag(scope.ok_or_else(wrong)?, tag)
            }
            Target::Repository(text) => {
                let scope = self.repository(text);
                self.scope(&scope.ok_or_else(|| PurgeError::Repository(text.clone()))?)
            }
            Target::Project(text) => match is_repository(text) && !text.contains('/') {
                true => self.scope(&Scope {
                    project: text.as_str().into(),
                    repository: None,
                }),
                false => Err(PurgeError::Project(text.clone())),
            },
        }
    }

    /// The project comes first, here as in what clients ask for.
    fn repository(&self, text: &str) -> Option<Scope> {
        let (project, name) = text.split_once('/').filter(|_| is_repository(text))?;
        let projects = self.current.get().projects.clone();
        let repository = projects.upstream_name_in(project, name);
        Some(Scope {
            project: project.into(),
            repository: Some(repository.into()),
        })
    }

    /// From here on upstreams are asked again for what they did not have in the scope, or at all.
    pub fn forget_negatives(&self, scope: Option<&Scope>) -> Result<(), PurgeError> {
        self.all(|| Step::Negatives(scope.cloned())).map(drop)
    }

    fn tag(&self, scope: Scope, tag: &str) -> Result<Purged, PurgeError> {
        self.forget_negatives(Some(&scope))?;
        let repository = scope.repository.as_deref().unwrap_or_default();
        let owner = repository_owner(&scope.project, repository, self.mailboxes.shards());
        let tag = tag.into();
        Ok(self.some(vec![(owner, Step::Tag { scope, tag })])?.purged)
    }

    fn scope(&self, scope: &Scope) -> Result<Purged, PurgeError> {
        self.forget_negatives(Some(scope))?;
        let mut digests = self.all(|| Step::Named(scope.clone()))?.digests;
        if !digests.is_empty() {
            let named = Arc::new(digests.clone());
            let elsewhere = self.all(|| Step::NamedElsewhere {
                digests: named.clone(),
                besides: scope.clone(),
            })?;
            digests.retain(|digest| !elsewhere.digests.contains(digest));
        }
        let mut purged = self.bodies(&digests)?;
        self.all(|| Step::Fills(scope.clone()))?;
        let owner = slice_owner(scope.slice(), self.mailboxes.shards());
        let first = vec![(owner, Step::Scope(scope.clone()))];
        purged += self.some(first)?.purged;
        // Other shards have names of a project, and this one those that came meanwhile.
        purged += self.all(|| Step::Names(scope.clone()))?.purged;
        Ok(purged)
    }

    fn bodies(&self, digests: &HashSet<Digest>) -> Result<Purged, PurgeError> {
        let shards = self.mailboxes.shards();
        let mut owned = vec![Vec::new(); shards];
        for digest in digests {
            owned[digest_owner(digest, shards)].push(*digest);
        }
        let steps = owned.into_iter().map(Step::Bodies).enumerate();
        Ok(self.some(steps.collect())?.purged)
    }

    fn all(&self, step: impl Fn() -> Step) -> Result<Done, PurgeError> {
        self.some(
            (0..self.mailboxes.shards())
                .map(|shard| (shard, step()))
                .collect(),
        )
    }

    /// Has shards do a step each, side by side.
    fn some(&self, steps: Vec<(usize, Step)>) -> Result<Done, PurgeError> {
        let deadline = Instant::now() + STEP_PATIENCE;
        let (reply, answers) = flume::bounded(steps.len());
        let asked = steps.len();
        for (shard, step) in steps {
            let reply = reply.clone();
            let sent = self
                .mailboxes
                .send_by(shard, Message::Purge { step, reply }, deadline);
            sent.then_some(()).ok_or(PurgeError::Stuck)?;
        }
        // What is left are the shards' ends: without them nobody answers any more.
        drop(reply);
        let mut all = Done::default();
        for _ in 0..asked {
            let done = answers.recv_deadline(deadline);
            let done = done.map_err(|_| PurgeError::Stuck)??;
            all.purged += done.purged;
            all.digests.extend(done.digests);
        }
        Ok(all)
    }
}
