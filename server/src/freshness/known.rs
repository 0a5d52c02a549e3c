//! What the index has of a tag, and whether that may still be said without asking.

use std::sync::Arc;

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Seconds, Store, TagKeyRef, TagKind, TagRecord};

use super::{Certainty, Resolved};
use crate::access::is_linked;
use crate::clock;
use crate::due::is_fresh;
use crate::project::{Project, Repository};
use crate::source::Sources;

/// The tag's record, if it came from an upstream that is still configured.
pub(super) fn cached(
    store: &Store<UringDisk>,
    sources: &Sources,
    source: &Repository,
    tag: &str,
) -> Option<TagRecord> {
    let project = sources.project(source.project);
    let key = TagKeyRef {
        project: &project.name,
        repository: &source.name,
        kind: TagKind::Tag,
        name: tag,
    };
    store
        .tag(key)
        .filter(|record| project.trusts(&record.origin))
}

/// What the tag names, if it was checked recently enough and its manifest may be served.
pub fn fresh(
    store: &Store<UringDisk>,
    sources: &Sources,
    source: &Repository,
    tag: &str,
) -> Option<Resolved> {
    let project = sources.project(source.project);
    if project.fresh_for(tag).is_zero() {
        return None;
    }
    let record = cached(store, sources, source, tag)?;
    let body = store.body(&record.digest)?;
    let servable = !body.unverified && is_linked(store, &project, &source.name, &record.digest);
    let stretch = sources.stretch(source.project, &record.origin);
    let fresh = servable && is_fresh_in(&project, source, tag, &record, stretch);
    fresh.then(|| resolved(&record, Certainty::Fresh))
}

/// `stretch`: how many times as long as configured, while the upstream's budget falls.
pub(super) fn is_fresh_in(
    project: &Project,
    source: &Repository,
    tag: &str,
    record: &TagRecord,
    stretch: u64,
) -> bool {
    let fresh_s = project.fresh_for(tag).as_secs().saturating_mul(stretch);
    let name = (&*project.name, &*source.name, tag);
    is_fresh(record.checked, clock::now(), fresh_s, &name)
}

pub(super) fn resolved(record: &TagRecord, certainty: Certainty) -> Resolved {
    Resolved {
        digest: record.digest,
        origin: record.origin.clone(),
        checked: record.checked,
        certainty,
        collapsed: false,
        remote: None,
    }
}

pub(super) fn record(digest: Digest, origin: &Arc<str>, checked: Seconds) -> TagRecord {
    TagRecord {
        digest,
        origin: origin.clone(),
        checked,
        note: Arc::default(),
    }
}
