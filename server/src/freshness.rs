//! Tags: what digest a tag names now, and how sure we are.
//!
//! Called by the mailbox loop of the shard that owns the repository. One question runs for a tag
//! however many ask: a HEAD to the upstream the tag came from, a GET only when the digest
//! changed. The tag moves after its manifest is verified. When upstream can't answer, the cached
//! digest stands in for as long as the project's rules allow, and before another upstream's
//! namesake. A client's HEAD fetches nothing: containerd and dockerd ask by HEAD and then for the
//! digest, and the tag moves once that manifest is verified, or at once if it is held.

mod known;
mod named;
mod obtain;

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Seconds, Store, TagKey, TagKind, TagRecord, Writer};

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::mailbox::{Message, Post, Reply};
use crate::manifests::Manifest;
use crate::oci::manifest;
use crate::project::{Repository, digest_owner};
use crate::source::{Answer, Search, Sources, Unanswered, Wanted, content_type};
use crate::upstream::{Method, without_account};
use crate::whole::Whole;

pub use known::fresh;

use known::{cached, record, resolved};
use named::Named;

pub struct TagAsk {
    pub source: Repository,
    pub tag: Arc<str>,
    /// True for a client's HEAD, which answers but moves nothing.
    pub head: bool,
    /// Upstream is asked although the project's rules need no question yet.
    pub now: bool,
    pub reply: Reply<Result<Resolved, Failure>>,
}

/// What a tag names.
#[derive(Clone, Debug)]
pub struct Resolved {
    pub digest: Digest,
    pub origin: Arc<str>,
    /// When upstream last said so.
    pub checked: Seconds,
    pub certainty: Certainty,
    /// True for all but the ask that went upstream.
    pub collapsed: bool,
    /// Set when the manifest is not held, for a HEAD.
    pub remote: Option<Remote>,
}

/// The head of a manifest that only upstream has.
#[derive(Clone, Debug)]
pub struct Remote {
    pub len: u64,
    pub media_type: Arc<str>,
}

#[derive(Clone, Debug)]
pub enum Certainty {
    /// Checked recently enough by the project's rules.
    Fresh,
    /// Upstream just confirmed the digest we had.
    Revalidated,
    /// Upstream named a digest we did not have.
    Changed,
    /// Upstream could not say; this is what it said at `checked`.
    Stale(Failure),
}

type Key = (Repository, Arc<str>);

/// Who waits for the question of a tag.
struct Waiter {
    /// It needs to know what the tag names; others need the manifest too.
    head: bool,
    reply: Reply<Result<Resolved, Failure>>,
}

pub struct Tags {
    store: Arc<Store<UringDisk>>,
    writer: Rc<Writer<UringDisk>>,
    sources: Sources,
    post: Post,
    asking: RefCell<HashMap<Key, Vec<Waiter>>>,
    named: RefCell<VecDeque<Named>>,
}

impl Tags {
    pub fn new(
        store: Arc<Store<UringDisk>>,
        writer: Rc<Writer<UringDisk>>,
        sources: Sources,
        post: Post,
    ) -> Rc<Tags> {
        let asking = RefCell::default();
        Rc::new(Tags {
            store,
            writer,
            sources,
            post,
            asking,
            named: RefCell::default(),
        })
    }

    /// Answers when upstream did, or joins who asks already: never two questions for one tag.
    pub fn resolve(self: &Rc<Self>, ask: TagAsk) {
        let TagAsk { now, reply, .. } = ask;
        // Somebody may have asked while this one was on its way here.
        let known = || fresh(&self.store, &self.sources, &ask.source, &ask.tag);
        if let Some(mut resolved) = (!now).then(known).flatten() {
            resolved.collapsed = true;
            let _ = reply.try_send(Ok(resolved));
            return;
        }
        let head = ask.head;
        let key = (ask.source, ask.tag);
        let mut asking = self.asking.borrow_mut();
        if let Some(waiting) = asking.get_mut(&key) {
            waiting.push(Waiter { head, reply });
            return;
        }
        asking.insert(key.clone(), vec![Waiter { head, reply }]);
        let tags = self.clone();
        monoio::spawn(async move {
            let outcome = tags.ask_upstream(&key, now).await;
            let waiting = tags.asking.borrow_mut().remove(&key).unwrap_or_default();
            for (position, waiter) in waiting.into_iter().enumerate() {
                let mut outcome = outcome.clone();
                if let Ok(resolved) = &mut outcome {
                    resolved.collapsed = position > 0;
                }
                let _ = waiter.reply.try_send(outcome);
            }
        });
    }

    /// Whether anybody who waits needs the manifest itself.
    fn is_pulled(&self, key: &Key) -> bool {
        let asking = self.asking.borrow();
        let waiting = asking.get(key).map(Vec::as_slice).unwrap_or_default();
        waiting.iter().any(|waiter| !waiter.head)
    }

    async fn ask_upstream(&self, key: &Key, now: bool) -> Result<Resolved, Failure> {
        let (source, tag) = key;
        let cached = cached(&self.store, &self.sources, source, tag);
        let outcome = match (!now).then(|| self.fresh_named(key)).flatten() {
            Some((record, remote)) => {
                let settled = self.settle_on(key, cached.as_ref(), record, remote).await;
                settled.map_err(Unanswered::from)
            }
            None => self.revalidate(key, cached.as_ref()).await,
        };
        let unanswered = match outcome {
            Ok(resolved) => return Ok(resolved),
            Err(unanswered) => unanswered,
        };
        // What the tag's own upstream said decides; another one being down does not bring back
        // a tag that was deleted or closed.
        let judged = unanswered.own.as_ref().unwrap_or(&unanswered.report);
        match cached {
            Some(cached) if self.may_stand_in(source, &cached, judged) => {
                tracing::warn!(
                    repository = %source.name, %tag, upstream = without_account(&cached.origin),
                    error = %judged.detail, age_s = clock::now().saturating_sub(cached.checked),
                    "tag served stale"
                );
                let certainty = Certainty::Stale(judged.clone());
                Ok(resolved(&cached, certainty))
            }
            _ => Err(unanswered.report),
        }
    }

    fn may_stand_in(&self, source: &Repository, cached: &TagRecord, failure: &Failure) -> bool {
        let age_s = clock::now().saturating_sub(cached.checked);
        let allowed = self.sources.project(source.project).stale_for(failure);
        age_s < allowed.as_secs() && self.store.body(&cached.digest).is_some()
    }

    /// Whether the cached copy may stand in for what an upstream holds back.
    fn is_spare(&self, source: &Repository, cached: &TagRecord) -> bool {
        FailureKind::is_spare(|failure| self.may_stand_in(source, cached, failure))
    }

    async fn revalidate(
        &self,
        key: &Key,
        cached: Option<&TagRecord>,
    ) -> Result<Resolved, Unanswered> {
        let (source, tag) = key;
        let stands_in = |failure: &Failure| {
            cached.is_some_and(|cached| self.may_stand_in(source, cached, failure))
        };
        let search = || Search {
            came_from: cached.map(|cached| &*cached.origin),
            spare: cached.is_some_and(|cached| self.is_spare(source, cached)),
            stands_in: Some(&stands_in),
            ..Search::default()
        };
        let path = format!("manifests/{tag}");
        let wanted = |method| Wanted {
            method,
            path: &path,
            accept: Some(manifest::ACCEPT),
            range: None,
        };
        let head_first = wanted(Method::Head);
        let headed = self.sources.first(source, &head_first, search()).await;
        match headed {
            Ok(answer) if digest_field(&answer).is_some() => {
                Ok(self.named(key, cached, answer).await?)
            }
            Err(unanswered) if !matches!(unanswered.report.status, Some(405 | 501)) => {
                Err(unanswered)
            }
            // A HEAD without a digest, or an upstream that knows no HEAD: one GET tells.
            _ => {
                let get = wanted(Method::Get);
                let manifest = self.sources.manifest(source, &get, search(), None).await?;
                Ok(self.fetched(key, cached, manifest).await?)
            }
        }
    }

    /// Upstream's HEAD named a digest.
    async fn named(
        &self,
        key: &Key,
        cached: Option<&TagRecord>,
        answer: Answer,
    ) -> Result<Resolved, Failure> {
        let (source, tag) = key;
        let Some(digest) = digest_field(&answer) else {
            let why = "the answer names no digest";
            return Err(Failure::of(FailureKind::ServerError, &answer.origin, why));
        };
        let whole = &self.sources.whole;
        whole.check_len(answer.response.length, &answer.origin)?;
        let record = record(digest, &answer.origin, clock::now());
        if let Some(cached) = cached.filter(|c| c.digest == digest && c.origin == record.origin)
            && self.store.body(&digest).is_some()
        {
            if cached.checked != record.checked {
                self.put(source, tag, record.clone()).await;
            }
            return Ok(resolved(&record, Certainty::Revalidated));
        }
        let remote = remote(&answer);
        drop(answer.response);
        self.settle_on(key, cached, record, remote).await
    }

    /// The tag names another digest. Whoever only asked what it names is told; whoever pulls gets
    /// the manifest, and then the tag moves.
    async fn settle_on(
        &self,
        key: &Key,
        cached: Option<&TagRecord>,
        record: TagRecord,
        remote: Option<Remote>,
    ) -> Result<Resolved, Failure> {
        let (source, tag) = key;
        let mut resolved = resolved(&record, Certainty::Changed);
        if self.store.body(&record.digest).is_none() && !self.is_pulled(key) {
            resolved.remote = remote.clone();
            self.remember(source, tag, record, remote);
            return Ok(resolved);
        }
        let spare = cached.is_some_and(|cached| self.is_spare(source, cached));
        self.obtain(source, record.digest, &record.origin, spare)
            .await?;
        self.put(source, tag, record).await;
        Ok(resolved)
    }

    /// Upstream sent the manifest itself.
    async fn fetched(
        &self,
        key: &Key,
        cached: Option<&TagRecord>,
        manifest: Manifest,
    ) -> Result<Resolved, Failure> {
        let (source, tag) = key;
        // The share of the room is kept until the bytes are stored.
        let Manifest {
            origin,
            whole: Whole {
                bytes,
                share: _share,
            },
            media_type,
        } = manifest;
        let digest = Digest::sha256(&bytes);
        let record = record(digest, &origin, clock::now());
        let certainty = match cached {
            Some(cached) if cached.digest == digest => Certainty::Revalidated,
            _ => Certainty::Changed,
        };
        let mut resolved = resolved(&record, certainty);
        if !self.is_pulled(key) {
            let len = bytes.len() as u64;
            let media_type = media_type.into();
            resolved.remote = Some(Remote { len, media_type });
            self.remember(source, tag, record, resolved.remote.clone());
            return Ok(resolved);
        }
        let owner = digest_owner(&digest, self.post.shards());
        let held = self
            .post
            .ask(owner, |reply| Message::Hold {
                digest,
                media_type: media_type.to_string(),
                bytes: Bytes::from(bytes),
                reply,
            })
            .await?;
        if let Err(failure) = held {
            // Without room the manifest can't be held; its digest is known all the same, and
            // the ask for it by digest is answered from staging or by a relay.
            tracing::warn!(repository = %source.name, %tag, error = %failure.detail, "not held");
            return Ok(resolved);
        }
        self.link(source, digest, &origin).await;
        self.put(source, tag, record).await;
        Ok(resolved)
    }

    async fn put(&self, source: &Repository, tag: &str, record: TagRecord) {
        self.drop_named(source, tag);
        // A tag whose manifest was not admitted is resolved anew each time.
        if self.store.body(&record.digest).is_none() {
            return;
        }
        let project = self.sources.project(source.project);
        let key = TagKey {
            project: Box::from(&*project.name),
            repository: Box::from(&*source.name),
            kind: TagKind::Tag,
            name: tag.into(),
        };
        if let Err(error) = self.writer.put_tag(key, record).await {
            tracing::warn!(%error, "a tag could not be written");
        }
    }
}

fn digest_field(answer: &Answer) -> Option<Digest> {
    let value = answer.response.head.field("docker-content-digest")?;
    Digest::parse(std::str::from_utf8(value).ok()?.trim()).ok()
}

fn remote(answer: &Answer) -> Option<Remote> {
    Some(Remote {
        len: answer.response.length?,
        media_type: content_type(&answer.response.head)?.into(),
    })
}
