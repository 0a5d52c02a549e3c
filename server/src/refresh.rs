//! Asking upstream now what a tag names, because an operator wants it.
//!
//! Called by `control` on its own thread, which may wait. The tag's owner asks, whatever the
//! project's freshness says, and the tag moves as by a pull.

use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{ScopeKey as Scope, Store, TagKeyRef, TagKind};

use crate::clock;
use crate::control::Refreshed;
use crate::failure::Failure;
use crate::freshness::{Certainty, Resolved, TagAsk};
use crate::generation::Current;
use crate::mailbox::{Mailboxes, Message};
use crate::metrics::{Operations, RefreshResult};
use crate::oci::name::{is_repository, is_tag};
use crate::project::{Repository, repository_owner};
use crate::purge::Purger;
use crate::upstream;

/// A question, one redirected fetch of a manifest, and the timeouts of every upstream.
const PATIENCE: Duration = Duration::from_secs(300);
/// A question that was on its way already may have been answered before the operator's; the next
/// one cannot.
const QUESTIONS_MAX: usize = 2;
/// As clients take a name without a tag.
const TAG_DEFAULT: &str = "latest";

#[derive(Debug, thiserror::Error)]
pub enum RefreshError {
    #[error(
        "{0:?} is not an image: expected <project>/<repository>:<tag>, such as dh/library/nginx:1.27"
    )]
    Image(String),
    #[error("no project serves {0}; see [project.*] in the configuration")]
    NoProject(String),
    #[error("project {0} does not serve {1}: see its allow and deny lists")]
    Denied(Arc<str>, Arc<str>),
    #[error("{}", .0.detail)]
    Failed(Failure),
    #[error("the server is stopping or does not get on; ask again")]
    Stuck,
}

pub struct Refresher {
    pub store: Arc<Store<UringDisk>>,
    pub mailboxes: Arc<Mailboxes>,
    pub current: Arc<Current>,
    pub operations: Arc<Operations>,
}

fn result_of(refreshed: &Refreshed) -> RefreshResult {
    match &refreshed.before {
        _ if refreshed.stale.is_some() => RefreshResult::Stale,
        None => RefreshResult::New,
        Some(before) if *before == refreshed.digest => RefreshResult::Unchanged,
        Some(_) => RefreshResult::Moved,
    }
}

impl Refresher {
    /// Returns when the tag names what upstream says, or why it cannot be known.
    pub fn refresh(&self, purger: &Purger, image: &str) -> Result<Refreshed, RefreshError> {
        let outcome = self.ask_now(purger, image);
        let result = match &outcome {
            Ok(refreshed) => result_of(refreshed),
            Err(_) => RefreshResult::Failed,
        };
        self.operations.refresh(result);
        let result = result.label();
        match &outcome {
            Ok(Refreshed {
                digest, upstream, ..
            }) => {
                tracing::info!(image, result, %digest, %upstream, "refreshed");
            }
            Err(error) => tracing::warn!(image, result, %error, "not refreshed"),
        }
        outcome
    }

    fn ask_now(&self, purger: &Purger, image: &str) -> Result<Refreshed, RefreshError> {
        let wrong = || RefreshError::Image(image.to_owned());
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, TAG_DEFAULT));
        if !is_repository(name) || !is_tag(tag) {
            return Err(wrong());
        }
        let projects = self.current.get().projects.clone();
        let none = || RefreshError::NoProject(name.to_owned());
        let (index, repository) = projects.resolve(None, None, name).ok_or_else(none)?;
        let project = projects.get(index);
        let source = Repository {
            project: index,
            name: repository.into(),
        };
        if !project.permits(&source.name) {
            return Err(RefreshError::Denied(project.name.clone(), source.name));
        }
        // That it was not there a moment ago is no answer to who asks now.
        let scope = Scope {
            project: (&*project.name).into(),
            repository: Some((&*source.name).into()),
        };
        purger
            .forget_negatives(Some(&scope))
            .map_err(|_| RefreshError::Stuck)?;
        let before = self.store.tag(TagKeyRef {
            project: &project.name,
            repository: &source.name,
            kind: TagKind::Tag,
            name: tag,
        });
        let owner = repository_owner(&project.name, &source.name, self.mailboxes.shards());
        let resolved = self.ask(owner, &source, &tag.into())?;
        let stale = match &resolved.certainty {
            Certainty::Stale(failure) => Some(failure.detail.to_string()),
            Certainty::Fresh | Certainty::Revalidated | Certainty::Changed => None,
        };
        Ok(Refreshed {
            digest: resolved.digest.to_string(),
            before: before.map(|before| before.digest.to_string()),
            upstream: upstream::without_account(&resolved.origin).to_owned(),
            age_s: clock::now().saturating_sub(resolved.checked),
            stale,
        })
    }

    fn ask(
        &self,
        owner: usize,
        source: &Repository,
        tag: &Arc<str>,
    ) -> Result<Resolved, RefreshError> {
        let deadline = Instant::now() + PATIENCE;
        for question in 1.. {
            let (reply, answer) = flume::bounded(1);
            let message = Message::Tag(TagAsk {
                source: source.clone(),
                tag: tag.clone(),
                head: false,
                now: true,
                reply,
            });
            if !self.mailboxes.send_by(owner, message, deadline) {
                break;
            }
            match answer.recv_deadline(deadline) {
                Ok(Ok(resolved)) if resolved.collapsed && question < QUESTIONS_MAX => {}
                Ok(outcome) => return outcome.map_err(RefreshError::Failed),
                Err(_) => break,
            }
        }
        Err(RefreshError::Stuck)
    }
}
