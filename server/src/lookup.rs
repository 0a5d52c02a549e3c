//! The asker's side: from a repository and a digest or tag to bytes that may be served.
//!
//! Called by `registry` on the connection's own core. A hit is two reads of the index and sends
//! no message. Everything else asks the owner by mailbox: a body of its digest's owner, a proof
//! or a tag of its repository's. Held bytes go out only to a repository with a link (R9).

use std::cell::Cell;
use std::sync::Arc;

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Body, Digest, Store};

use crate::access::{ProofAsk, Proven, is_linked};
use crate::failure::Failure;
use crate::fetch::{BodyAnswer, BodyKind, Following, Seen, Sought, tell_verified};
use crate::freshness::{Resolved, TagAsk, fresh};
use crate::mailbox::{Message, Post};
use crate::project::{Repository, digest_owner, repository_owner};
use crate::source::Sources;
use crate::verify::Why;

/// Rounds of "held but not proven" and "proven but gone" before the client is told to come back.
const ROUNDS_MAX: usize = 4;

/// Bytes that may be served to the repository that asked.
pub enum Found {
    /// In the store; `asked` is false when the index alone answered.
    Held {
        body: Body<UringDisk>,
        asked: bool,
    },
    Follow(Following),
    /// No room anywhere, or only the bytes from another place would prove that it is this
    /// repository's: fetch it for this client alone.
    Relay,
    /// No fill runs that may be joined, and none was wanted.
    Cold,
}

pub struct Lookup {
    pub store: Arc<Store<UringDisk>>,
    pub sources: Sources,
    post: Post,
    small_max: u64,
    /// Set once a loaded body did not stay in RAM: its budget is used up.
    ram_full: Cell<bool>,
}

impl Lookup {
    pub fn new(
        store: Arc<Store<UringDisk>>,
        sources: Sources,
        post: Post,
        small_max: u64,
    ) -> Lookup {
        let ram_full = Cell::new(false);
        Lookup {
            store,
            sources,
            post,
            small_max,
            ram_full,
        }
    }

    /// A small body with its bytes. After a restart the first hit has its owner read and verify
    /// them; `None` when they turned out to be wrong and are gone.
    async fn with_bytes(
        &self,
        digest: &Digest,
        mut body: Body<UringDisk>,
    ) -> Option<Body<UringDisk>> {
        if !self.is_to_be_loaded(&body) {
            return Some(body);
        }
        let (digest, owner) = (*digest, digest_owner(digest, self.post.shards()));
        let loaded = self
            .post
            .ask(owner, |reply| Message::Load { digest, reply });
        match loaded.await {
            Ok(Some(bytes)) => {
                let held = self.store.body(&digest);
                self.ram_full
                    .set(held.is_some_and(|held| held.bytes.is_none()));
                body.bytes = Some(bytes);
                Some(body)
            }
            Ok(None) => None,
            // A full mailbox is no reason to refuse what `sendfile` can serve.
            Err(_) => Some(body),
        }
    }

    fn is_to_be_loaded(&self, body: &Body<UringDisk>) -> bool {
        body.bytes.is_none() && body.len <= self.small_max && !self.ram_full.get()
    }

    /// The body, if it may be served as it is and the repository has a link to it. No message,
    /// no allocation.
    pub fn hit(&self, project: usize, name: &str, digest: &Digest) -> Option<Body<UringDisk>> {
        let body = self.store.body(digest)?;
        if body.unverified || self.is_to_be_loaded(&body) {
            return None;
        }
        self.is_linked(project, name, digest).then_some(body)
    }

    /// Has the owner read a body that was not checked since a crash. False: it is gone.
    async fn verified(&self, digest: Digest) -> Result<bool, Failure> {
        let (owner, why) = (digest_owner(&digest, self.post.shards()), Why::Unverified);
        let verify = |reply| Message::Verify { digest, why, reply };
        self.post.ask(owner, verify).await
    }

    /// Tells the owner of bytes that could not be sent: if they are lost, the next one to ask
    /// gets them from upstream.
    pub fn suspect(&self, digest: &str) {
        let Ok(digest) = Digest::parse(digest) else {
            return;
        };
        let (owner, why) = (digest_owner(&digest, self.post.shards()), Why::Unreadable);
        let post = self.post.clone();
        monoio::spawn(async move {
            let verify = |reply| Message::Verify { digest, why, reply };
            if post.ask(owner, verify).await.is_err() {
                tracing::warn!(%digest, "a body that could not be read was not checked");
            }
        });
    }

    /// The body by whatever it takes. `prefer` is the origin its tag came from.
    pub async fn body(
        &self,
        source: &Repository,
        digest: Digest,
        kind: BodyKind,
        prefer: Option<Arc<str>>,
    ) -> Result<Found, Failure> {
        let sought = Sought {
            digest,
            kind,
            prefer,
            fills: true,
            spare: false,
        };
        self.find(source, &sought).await
    }

    /// A blob of which a range is wanted; it is filled if the project's rule says so.
    pub async fn ranged(&self, source: &Repository, digest: Digest) -> Result<Found, Failure> {
        let projects = self.sources.projects();
        let sought = Sought {
            digest,
            kind: BodyKind::Blob,
            prefer: None,
            fills: projects.get(source.project).fills_cold(),
            spare: false,
        };
        self.find(source, &sought).await
    }

    async fn find(&self, source: &Repository, sought: &Sought) -> Result<Found, Failure> {
        let Sought {
            digest,
            kind,
            fills,
            ..
        } = *sought;
        let (mut asked, mut proved) = (false, false);
        let mut seen: Option<Seen> = None;
        for _ in 0..ROUNDS_MAX {
            let proven = self.is_linked(source.project, &source.name, &digest);
            if let Some(body) = self.store.body(&digest) {
                if proven && body.unverified && !self.verified(digest).await? {
                    continue;
                }
                if proven {
                    if proved && kind == BodyKind::Manifest {
                        tell_verified(&self.sources, &self.post, source, digest).await;
                    }
                    match self.with_bytes(&digest, body).await {
                        Some(body) => return Ok(Found::Held { body, asked }),
                        None => continue,
                    }
                }
                let len = Some(body.len);
                if !self.prove(source, digest, kind, len).await?.linked {
                    return Ok(Found::Relay);
                }
                proved = true;
                continue;
            }
            let answer = sought
                .ask(&self.post, source, proven, seen.as_ref())
                .await?;
            asked = true;
            match answer {
                BodyAnswer::Held => {}
                BodyAnswer::Follow(following) => return Ok(Found::Follow(following)),
                // To ask for the range proves as much as to ask for a proof.
                BodyAnswer::NeedProof(_) if !fills => return Ok(Found::Cold),
                // Nothing tells whether what is being fetched is what was seen.
                BodyAnswer::NeedProof(None) if seen.is_some() => return Ok(Found::Relay),
                BodyAnswer::NeedProof(len) => {
                    let proven = self.prove(source, digest, kind, len).await?;
                    proved = proven.linked;
                    seen = proven.seen.filter(|seen| seen.may_be(len));
                    if !proved && seen.is_none() {
                        return Ok(Found::Relay);
                    }
                }
                BodyAnswer::Relay => return Ok(Found::Relay),
                BodyAnswer::Cold => return Ok(Found::Cold),
                BodyAnswer::Failed(failure) => return Err(failure),
            }
        }
        Err(Failure::busy("a body that comes and goes"))
    }

    /// One HEAD upstream in the repository's name; leaves a link when an upstream has it. `len` is
    /// of what others fetched or are fetching, if it is known.
    pub async fn prove(
        &self,
        source: &Repository,
        digest: Digest,
        kind: BodyKind,
        len: Option<u64>,
    ) -> Result<Proven, Failure> {
        let owner = self.owner(source);
        self.post
            .ask(owner, |reply| {
                let source = source.clone();
                Message::Proof(ProofAsk {
                    digest,
                    kind,
                    source,
                    len,
                    reply,
                })
            })
            .await?
    }

    /// What the tag names, by the index alone.
    pub fn fresh(&self, source: &Repository, tag: &str) -> Option<Resolved> {
        fresh(&self.store, &self.sources, source, tag)
    }

    /// What the tag names: from the index while it is fresh, else by one question upstream.
    pub async fn tag(
        &self,
        source: &Repository,
        tag: &str,
        head: bool,
    ) -> Result<Resolved, Failure> {
        if let Some(resolved) = self.fresh(source, tag) {
            return Ok(resolved);
        }
        let owner = self.owner(source);
        self.post
            .ask(owner, |reply| {
                Message::Tag(TagAsk {
                    source: source.clone(),
                    tag: tag.into(),
                    head,
                    now: false,
                    reply,
                })
            })
            .await?
    }

    pub fn post(&self) -> &Post {
        &self.post
    }

    pub fn owner(&self, source: &Repository) -> usize {
        let project = self.sources.project(source.project);
        repository_owner(&project.name, &source.name, self.post.shards())
    }

    fn is_linked(&self, project: usize, name: &str, digest: &Digest) -> bool {
        is_linked(&self.store, &self.sources.project(project), name, digest)
    }
}
