//! Keys and values of the small records: tags, links, statistics, and what can be forgotten.
//!
//! Keys come in two shapes: owned, as the index holds them, and borrowed (`…Ref`), so that a
//! lookup allocates nothing. Values share their text, so that a copy allocates nothing either.

use std::sync::Arc;

use crate::digest::{Digest, SLICES};
use crate::{Seconds, mix};

/// What a tag record is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum TagKind {
    /// A tag of the repository.
    Tag,
    /// A cached answer of tags/list or referrers; the name is its query.
    Listing,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TagKey {
    pub project: Box<str>,
    pub repository: Box<str>,
    pub kind: TagKind,
    pub name: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TagKeyRef<'k> {
    pub project: &'k str,
    pub repository: &'k str,
    pub kind: TagKind,
    pub name: &'k str,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagRecord {
    pub digest: Digest,
    /// The upstream that said so, for example `https://registry-1.docker.io`.
    pub origin: Arc<str>,
    pub checked: Seconds,
    /// For a listing: its `Link` field.
    pub note: Arc<str>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LinkKey {
    pub project: Box<str>,
    pub repository: Box<str>,
    pub digest: Digest,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinkKeyRef<'k> {
    pub project: &'k str,
    pub repository: &'k str,
    pub digest: &'k Digest,
}

/// How a repository came to refer to a digest (R9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Proof {
    /// It was fetched in the repository's name.
    Fetched,
    /// A HEAD in the repository's name succeeded.
    Headed,
    /// A manifest of the repository names it. This permits asking and proves nothing.
    Manifest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkRecord {
    pub origin: Arc<str>,
    pub proof: Proof,
    pub at: Seconds,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryKey {
    pub project: Box<str>,
    pub repository: Box<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RepositoryKeyRef<'k> {
    pub project: &'k str,
    pub repository: &'k str,
}

/// Counts of a repository that outlive a restart.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Statistics {
    pub pulls: u64,
    pub served_bytes: u64,
    pub upstream_bytes: u64,
    pub last_pull: Seconds,
}

/// What a purge forgets.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ForgetKey {
    Body(Digest),
    Tag(TagKey),
    Link(LinkKey),
    Statistics(RepositoryKey),
    /// All tags, listings, links and statistics of these repositories, also those that only disks
    /// have.
    Scope(ScopeKey),
}

/// Repositories: one, or all of a project.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ScopeKey {
    pub project: Box<str>,
    /// `None`: all of the project.
    pub repository: Option<Box<str>>,
}

impl ScopeKey {
    pub fn holds(&self, project: &str, repository: &str) -> bool {
        let named = |name: &str| *name == *repository;
        *self.project == *project && self.repository.as_deref().is_none_or(named)
    }

    /// The virtual shard whose owner forgets the scope.
    pub fn slice(&self) -> usize {
        repository_slice(&self.project, self.repository.as_deref().unwrap_or(""))
    }
}

impl ForgetKey {
    /// Project and repository, if it is about one.
    pub(crate) fn repository(&self) -> Option<(&str, &str)> {
        match self {
            ForgetKey::Body(_) | ForgetKey::Scope(_) => None,
            ForgetKey::Tag(key) => Some((&key.project, &key.repository)),
            ForgetKey::Link(key) => Some((&key.project, &key.repository)),
            ForgetKey::Statistics(key) => Some((&key.project, &key.repository)),
        }
    }

    /// The virtual shard that owns the key.
    pub(crate) fn slice(&self) -> usize {
        match self {
            ForgetKey::Body(digest) => digest.slice(),
            ForgetKey::Tag(key) => TagKeyRef::from(key).slice(),
            ForgetKey::Link(key) => LinkKeyRef::from(key).slice(),
            ForgetKey::Statistics(key) => RepositoryKeyRef::from(key).slice(),
            ForgetKey::Scope(scope) => scope.slice(),
        }
    }
}

/// The virtual shard that owns a repository: its tags, links and statistics.
pub fn repository_slice(project: &str, repository: &str) -> usize {
    (repository_hash(0, project, repository) as usize) % SLICES
}

fn repository_hash(seed: u64, project: &str, repository: &str) -> u64 {
    mix::text(mix::text(seed, project), repository)
}

impl TagKeyRef<'_> {
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        let repository = repository_hash(seed, self.project, self.repository);
        mix::word(mix::text(repository, self.name), self.kind as u64)
    }

    pub(crate) fn slice(&self) -> usize {
        repository_slice(self.project, self.repository)
    }
}

impl LinkKeyRef<'_> {
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        let repository = repository_hash(seed, self.project, self.repository);
        mix::word(repository, mix::digest(seed, self.digest))
    }

    pub(crate) fn slice(&self) -> usize {
        repository_slice(self.project, self.repository)
    }
}

impl RepositoryKeyRef<'_> {
    pub(crate) fn hash(&self, seed: u64) -> u64 {
        repository_hash(seed, self.project, self.repository)
    }

    pub(crate) fn slice(&self) -> usize {
        repository_slice(self.project, self.repository)
    }
}

impl<'k> From<&'k TagKey> for TagKeyRef<'k> {
    fn from(key: &'k TagKey) -> TagKeyRef<'k> {
        TagKeyRef {
            project: &key.project,
            repository: &key.repository,
            kind: key.kind,
            name: &key.name,
        }
    }
}

impl<'k> From<&'k LinkKey> for LinkKeyRef<'k> {
    fn from(key: &'k LinkKey) -> LinkKeyRef<'k> {
        LinkKeyRef {
            project: &key.project,
            repository: &key.repository,
            digest: &key.digest,
        }
    }
}

impl<'k> From<&'k RepositoryKey> for RepositoryKeyRef<'k> {
    fn from(key: &'k RepositoryKey) -> RepositoryKeyRef<'k> {
        RepositoryKeyRef {
            project: &key.project,
            repository: &key.repository,
        }
    }
}
