//! What HEADs were told of tags, until the manifest that they named is verified.

use std::collections::VecDeque;
use std::sync::Arc;

use entrepot_storage::{Digest, TagRecord};

use super::known::{cached, is_fresh_in};
use super::{Key, Remote, Tags};
use crate::project::Repository;

/// Tags whose manifest a client is expected to ask for by digest next. The oldest are forgotten:
/// they are asked for anew.
const NAMED_MAX: usize = 1024;

/// What upstream said a tag names, before the manifest was seen.
pub(super) struct Named {
    source: Repository,
    tag: Arc<str>,
    record: TagRecord,
    remote: Option<Remote>,
}

impl Tags {
    /// What a HEAD was told of the tag a moment ago, while the project's rules let that stand.
    pub(super) fn fresh_named(&self, key: &Key) -> Option<(TagRecord, Option<Remote>)> {
        let (source, tag) = key;
        let project = self.sources.project(source.project);
        let named = self.named.borrow();
        let named = named
            .iter()
            .find(|named| named.source == *source && named.tag == *tag)?;
        let record = &named.record;
        let stretch = self.sources.stretch(source.project, &record.origin);
        let fresh = is_fresh_in(&project, source, tag, record, stretch);
        let stands = fresh && project.trusts(&record.origin);
        stands.then(|| (record.clone(), named.remote.clone()))
    }

    /// Keeps what a client's HEAD was told, until the manifest is verified.
    pub(super) fn remember(
        &self,
        source: &Repository,
        tag: &str,
        record: TagRecord,
        remote: Option<Remote>,
    ) {
        self.drop_named(source, tag);
        let mut named = self.named.borrow_mut();
        if named.len() >= NAMED_MAX {
            named.pop_front();
        }
        named.push_back(Named {
            source: source.clone(),
            tag: tag.into(),
            record,
            remote,
        });
    }

    pub(super) fn drop_named(&self, source: &Repository, tag: &str) {
        let mut named = self.named.borrow_mut();
        named.retain(|named| named.source != *source || *named.tag != *tag);
    }

    /// Forgets what HEADs were told of some tags: a purge.
    pub fn drop_named_if(&self, which: impl Fn(&str, &str, &str) -> bool) {
        let projects = self.sources.projects();
        self.named.borrow_mut().retain(|named| {
            let project = &projects.get(named.source.project).name;
            !which(project, &named.source.name, &named.tag)
        });
    }

    /// A manifest of the repository was verified: tags that a HEAD found to name it move now.
    pub async fn settle(&self, source: &Repository, digest: Digest) {
        let settled: VecDeque<Named> = {
            let mut named = self.named.borrow_mut();
            let (settled, waiting) = named
                .drain(..)
                .partition(|named| named.source == *source && named.record.digest == digest);
            *named = waiting;
            settled
        };
        for named in settled {
            let known = cached(&self.store, &self.sources, source, &named.tag);
            // A later question may have been answered first.
            if known.is_none_or(|known| known.checked <= named.record.checked) {
                self.put(source, &named.tag, named.record).await;
            }
        }
    }
}
