//! A shard's part of a purge: finding its keys slice by slice, and forgetting them in groups.

use std::collections::HashSet;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{
    Digest, ForgetKey, LinkKey, RepositoryKey, SLICES, ScopeKey as Scope, Store, TagKey, TagKind,
    WriteError, Writer, repository_slice,
};
use monoio::time::sleep;

use super::{Done, Step};
use crate::control::Purged;
use crate::fetch::Fetcher;
use crate::freshness::Tags;
use crate::gate::Gates;

/// Between two slices, so that the shard's other tasks get on (R3): a task that only wakes itself
/// would starve the ring.
const PAUSE: Duration = Duration::from_millis(1);
/// Keys that one group forgets: some hundred KiB of records, one sync.
const GROUP_KEYS: usize = 1024;
/// Listings of the repository's tags begin with this; others are of referrers.
const TAG_LISTS: &str = "tags/list";

/// What a purge needs of its shard.
pub struct Owner {
    store: Arc<Store<UringDisk>>,
    writer: Rc<Writer<UringDisk>>,
    fetcher: Rc<Fetcher>,
    tags: Rc<Tags>,
    gates: Rc<Gates>,
    slices: Range<usize>,
}

impl Owner {
    pub fn new(
        store: Arc<Store<UringDisk>>,
        writer: Rc<Writer<UringDisk>>,
        fetcher: Rc<Fetcher>,
        tags: Rc<Tags>,
        gates: Rc<Gates>,
        (shard, shards): (usize, usize),
    ) -> Owner {
        Owner {
            store,
            writer,
            fetcher,
            tags,
            gates,
            slices: slices_owned(shard, shards),
        }
    }

    pub async fn step(&self, step: Step) -> Result<Done, WriteError> {
        match step {
            Step::Bodies(digests) => self.bodies(digests).await,
            Step::LinksTo(digest) => {
                let is_it = |key: &LinkKey| key.digest == digest;
                let keys = self.links(self.slices.clone(), is_it).await;
                self.forget(keys).await
            }
            Step::Negatives(scope) => {
                let within = |scope: &Scope| {
                    let (project, repository) = (&*scope.project, scope.repository.as_deref());
                    self.gates.forget(Some((project, repository)));
                };
                scope
                    .as_ref()
                    .map_or_else(|| self.gates.forget(None), within);
                Ok(Done::default())
            }
            Step::Tag { scope, tag } => self.tag(scope, &tag).await,
            Step::Named(scope) => {
                let within = |project: &str, repository: &str| scope.holds(project, repository);
                let digests = self.led_to(self.slices_of(&scope), within, |_| true).await;
                Ok(Done {
                    digests,
                    ..Done::default()
                })
            }
            Step::NamedElsewhere { digests, besides } => {
                let outside = |project: &str, repository: &str| !besides.holds(project, repository);
                let asked = |digest: &Digest| digests.contains(digest);
                let digests = self.led_to(self.slices.clone(), outside, asked).await;
                Ok(Done {
                    digests,
                    ..Done::default()
                })
            }
            Step::Fills(scope) => {
                let within = |project: &str, repository: &str| scope.holds(project, repository);
                self.fetcher.leave(within).await;
                Ok(Done::default())
            }
            Step::Scope(scope) => {
                let purged = counted(&self.names(&scope).await);
                self.writer.forget(ForgetKey::Scope(scope)).await?;
                Ok(Done {
                    purged,
                    ..Done::default()
                })
            }
            Step::Names(scope) => {
                let keys = self.names(&scope).await;
                self.forget(keys).await
            }
        }
    }

    async fn bodies(&self, digests: Vec<Digest>) -> Result<Done, WriteError> {
        let mut done = Done::default();
        for group in digests.chunks(GROUP_KEYS) {
            for digest in group {
                self.fetcher.stop(digest).await;
                let held = self.store.body(digest).is_some();
                done.purged.bodies += u64::from(held);
            }
            // Also of what is not held: it may lie on a disk that is away.
            let keys = group.iter().map(|digest| ForgetKey::Body(*digest));
            self.writer.forget_all(keys.collect()).await?;
        }
        Ok(done)
    }

    async fn tag(&self, scope: Scope, tag: &str) -> Result<Done, WriteError> {
        let named = |project: &str, repository: &str, name: &str| {
            scope.holds(project, repository) && *name == *tag
        };
        self.tags.drop_named_if(named);
        let Some(repository) = scope.repository.clone() else {
            return Ok(Done::default());
        };
        // Also if it is not held, as of bodies.
        let key = TagKey {
            project: scope.project.clone(),
            repository,
            kind: TagKind::Tag,
            name: tag.into(),
        };
        let held = self.store.tag(&key).is_some();
        self.writer.forget(ForgetKey::Tag(key)).await?;
        let lists = |key: &TagKey| {
            let of_tags = key.kind == TagKind::Listing && key.name.starts_with(TAG_LISTS);
            of_tags && scope.holds(&key.project, &key.repository)
        };
        let keys = self.tags(self.slices_of(&scope), lists).await;
        let mut done = self.forget(keys).await?;
        done.purged.tags += u64::from(held);
        Ok(done)
    }

    /// What the index has of a scope, on this shard.
    async fn names(&self, scope: &Scope) -> Vec<ForgetKey> {
        self.tags
            .drop_named_if(|project, repository, _| scope.holds(project, repository));
        let slices = self.slices_of(scope);
        let in_scope = |key: &TagKey| scope.holds(&key.project, &key.repository);
        let mut keys = self.tags(slices.clone(), in_scope).await;
        let in_scope = |key: &LinkKey| scope.holds(&key.project, &key.repository);
        keys.extend(self.links(slices.clone(), in_scope).await);
        for slice in slices {
            self.store.each_statistics(slice, |key: &RepositoryKey, _| {
                if scope.holds(&key.project, &key.repository) {
                    keys.push(ForgetKey::Statistics(key.clone()));
                }
            });
            sleep(PAUSE).await;
        }
        keys
    }

    /// Those of this shard that can hold records of the scope.
    fn slices_of(&self, scope: &Scope) -> Range<usize> {
        let Some(repository) = &scope.repository else {
            return self.slices.clone();
        };
        let slice = repository_slice(&scope.project, repository);
        match self.slices.contains(&slice) {
            true => slice..slice + 1,
            false => 0..0,
        }
    }

    async fn tags(&self, slices: Range<usize>, which: impl Fn(&TagKey) -> bool) -> Vec<ForgetKey> {
        let mut keys = Vec::new();
        for slice in slices {
            self.store.each_tag(slice, |key, _| {
                if which(key) {
                    keys.push(ForgetKey::Tag(key.clone()));
                }
            });
            sleep(PAUSE).await;
        }
        keys
    }

    async fn links(
        &self,
        slices: Range<usize>,
        which: impl Fn(&LinkKey) -> bool,
    ) -> Vec<ForgetKey> {
        let mut keys = Vec::new();
        for slice in slices {
            self.store.each_link(slice, |key, _| {
                if which(key) {
                    keys.push(ForgetKey::Link(key.clone()));
                }
            });
            sleep(PAUSE).await;
        }
        keys
    }

    /// The digests that tags, listings and links of some repositories lead to, and those that are
    /// being fetched for them.
    async fn led_to(
        &self,
        slices: Range<usize>,
        from: impl Fn(&str, &str) -> bool,
        which: impl Fn(&Digest) -> bool,
    ) -> HashSet<Digest> {
        // First: the link of one that ends meanwhile may be where the walk has been.
        let fetched = self.fetcher.fetched_for(&from).into_iter();
        let mut digests: HashSet<Digest> = fetched.filter(&which).collect();
        for slice in slices {
            self.store.each_tag(slice, |key, record| {
                if which(&record.digest) && from(&key.project, &key.repository) {
                    digests.insert(record.digest);
                }
            });
            self.store.each_link(slice, |key, _| {
                if which(&key.digest) && from(&key.project, &key.repository) {
                    digests.insert(key.digest);
                }
            });
            sleep(PAUSE).await;
        }
        digests
    }

    async fn forget(&self, keys: Vec<ForgetKey>) -> Result<Done, WriteError> {
        let mut purged = Purged::default();
        for group in keys.chunks(GROUP_KEYS) {
            purged += counted(group);
            self.writer.forget_all(group.to_vec()).await?;
        }
        Ok(Done {
            purged,
            ..Done::default()
        })
    }
}

fn counted(keys: &[ForgetKey]) -> Purged {
    let mut purged = Purged::default();
    for key in keys {
        match key {
            ForgetKey::Body(_) => purged.bodies += 1,
            ForgetKey::Link(_) => purged.links += 1,
            ForgetKey::Statistics(_) => purged.statistics += 1,
            ForgetKey::Tag(key) if key.kind == TagKind::Tag => purged.tags += 1,
            ForgetKey::Tag(_) => purged.listings += 1,
            // Counted by what it kills in the index.
            ForgetKey::Scope(_) => {}
        }
    }
    purged
}

/// Those that `repository_owner` gives to the shard.
fn slices_owned(shard: usize, shards: usize) -> Range<usize> {
    let first = |shard: usize| (shard * SLICES).div_ceil(shards);
    first(shard)..first(shard + 1)
}

#[cfg(test)]
mod tests {
    use entrepot_storage::repository_slice;

    use super::slices_owned;
    use crate::project::repository_owner;

    #[test]
    fn every_slice_has_its_owner() {
        for shards in [1, 2, 3, 7, 100, 256] {
            for name in (0..500).map(|name| name.to_string()) {
                let slice = repository_slice("dh", &name);
                let owner = repository_owner("dh", &name, shards);
                assert!(slices_owned(owner, shards).contains(&slice), "{shards}");
            }
        }
    }
}
