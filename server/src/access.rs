//! Proofs that a repository refers to a digest, and the links they leave (R9).
//!
//! Called by the mailbox loop of the shard that owns the repository. Held bytes are served to a
//! repository only after upstream answered a HEAD in its own name; one HEAD runs for a
//! (repository, digest) however many ask. A manifest that names a digest proves nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, LinkKey, LinkRecord, Proof, Store, Writer};

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Seen};
use crate::mailbox::Reply;
use crate::project::{Project, Repository};
use crate::source::{Answer, Search, Sources, Wanted, accept, body_path, content_type};
use crate::upstream::Method;

pub struct ProofAsk {
    pub digest: Digest,
    pub kind: BodyKind,
    pub source: Repository,
    /// Of the body that others are fetching, if it is known: an answer of this length is looked for,
    /// and is no proof before the length is verified.
    pub len: Option<u64>,
    pub reply: Reply<Result<Proven, Failure>>,
}

/// What upstream said of a digest in a repository.
#[derive(Clone, Debug)]
pub struct Proven {
    pub len: Option<u64>,
    pub media_type: Option<Arc<str>>,
    /// False: the answer names neither the digest nor the length of what is held, or is of a place
    /// that a manifest named, as anybody's may. Only the bytes would prove it.
    pub linked: bool,
    /// Without a link: what the upstream has, unless that is elsewhere or it does not tell its length.
    pub seen: Option<Seen>,
}

type Key = (Repository, Digest, BodyKind, Option<u64>);
type Waiting = Vec<Reply<Result<Proven, Failure>>>;

pub struct Links {
    store: Arc<Store<UringDisk>>,
    writer: Rc<Writer<UringDisk>>,
    sources: Sources,
    asking: RefCell<HashMap<Key, Waiting>>,
}

impl Links {
    pub fn new(
        store: Arc<Store<UringDisk>>,
        writer: Rc<Writer<UringDisk>>,
        sources: Sources,
    ) -> Rc<Links> {
        Rc::new(Links {
            store,
            writer,
            sources,
            asking: RefCell::default(),
        })
    }

    /// Asks upstream, or joins who asks already.
    pub fn prove(self: &Rc<Self>, ask: ProofAsk) {
        let key = (ask.source, ask.digest, ask.kind, ask.len);
        let mut asking = self.asking.borrow_mut();
        if let Some(waiting) = asking.get_mut(&key) {
            waiting.push(ask.reply);
            return;
        }
        asking.insert(key.clone(), vec![ask.reply]);
        let links = self.clone();
        monoio::spawn(async move {
            let outcome = links.ask_upstream(&key).await;
            let waiting = links.asking.borrow_mut().remove(&key);
            for reply in waiting.into_iter().flatten() {
                let _ = reply.try_send(outcome.clone());
            }
        });
    }

    /// The first upstream that proves it, in their order: one whose answer is no proof is passed
    /// over, unless its body may be the one that others fetch. Without any, the first that has one.
    async fn ask_upstream(&self, key: &Key) -> Result<Proven, Failure> {
        let mut refused: Vec<Arc<str>> = Vec::new();
        let mut unproven: Option<Proven> = None;
        let mut why = None;
        loop {
            let answer = match self.ask_one(key, &refused).await {
                Ok(answer) if !refused.contains(answer.asked()) => answer,
                other => {
                    let failure = other.err();
                    let failure = failure.unwrap_or_else(|| Failure::busy("an answer twice"));
                    return unproven.ok_or(why.unwrap_or(failure));
                }
            };
            match self.proven(key, &answer).await {
                Ok(proven) if proven.linked || answer.place.is_some() => return Ok(proven),
                Ok(proven) => {
                    if proven.seen.as_ref().is_some_and(|seen| seen.may_be(key.3)) {
                        return Ok(proven);
                    }
                    unproven.get_or_insert(proven);
                }
                Err(failure) => {
                    tracing::warn!(
                        repository = %key.0.name, digest = %key.1, error = %failure.detail,
                        "an answer that proves nothing"
                    );
                    why = why.or(Some(failure));
                }
            }
            refused.push(answer.asked().clone());
        }
    }

    async fn ask_one(
        &self,
        (source, digest, kind, _): &Key,
        refused: &[Arc<str>],
    ) -> Result<Answer, Failure> {
        let path = body_path(*kind, digest);
        let is_refused = |asked: &Arc<str>| refused.contains(asked);
        let wanted = |method| Wanted {
            method,
            path: &path,
            accept: accept(*kind),
            range: None,
        };
        let search = || Search {
            layer: (*kind == BodyKind::Blob).then_some(*digest),
            refused: Some(&is_refused),
            ..Search::default()
        };
        let head = wanted(Method::Head);
        match self.sources.first(source, &head, search()).await {
            Ok(answer) => Ok(answer),
            // An upstream that knows no HEAD: the head of a GET says the same, its body is left.
            Err(unanswered) if matches!(unanswered.report.status, Some(405 | 501)) => {
                let get = wanted(Method::Get);
                Ok(self.sources.first(source, &get, search()).await?)
            }
            Err(unanswered) => Err(unanswered.report),
        }
    }

    /// Leaves a link if the answer proves that the repository has the digest.
    async fn proven(
        &self,
        (source, digest, kind, _): &Key,
        answer: &Answer,
    ) -> Result<Proven, Failure> {
        let held = self.store.body(digest).map(|body| body.len);
        let conclusive = check(answer, digest, held)?;
        if *kind == BodyKind::Manifest {
            let whole = &self.sources.whole;
            whole.check_len(answer.response.length, &answer.origin)?;
        }
        let project = self.sources.project(source.project);
        let linked = conclusive && answer.place.is_none();
        if linked {
            let key = link_key(&project, source, *digest);
            let record = LinkRecord {
                origin: answer.origin.clone(),
                proof: Proof::Headed,
                at: clock::now(),
            };
            self.put(key, record).await;
        }
        let len = answer.response.length;
        let unproven = len.filter(|_| !linked && answer.place.is_none());
        Ok(Proven {
            len,
            media_type: content_type(&answer.response.head).map(Into::into),
            linked,
            seen: unproven.map(|len| Seen {
                len,
                origin: answer.origin.clone(),
            }),
        })
    }

    /// Records a proof; a disk that can't take it costs a HEAD after the next restart.
    pub async fn put(&self, key: LinkKey, record: LinkRecord) {
        if let Err(error) = self.writer.put_link(key, record).await {
            tracing::warn!(%error, "a link could not be written");
        }
    }
}

/// A 200 alone is no proof: a login page in front of a registry answers so to everything. Nor is
/// the head of another body. True if the answer names the digest, or the length of what is held:
/// one that is being fetched is of any length before it is verified.
fn check(answer: &Answer, digest: &Digest, held: Option<u64>) -> Result<bool, Failure> {
    let wrong = |why: &str| Err(Failure::of(FailureKind::BadBody, &answer.origin, why));
    let named = answer.response.head.field("docker-content-digest");
    let named = named.and_then(|value| Digest::parse(std::str::from_utf8(value).ok()?.trim()).ok());
    match named.filter(|named| named.algorithm() == digest.algorithm()) {
        Some(named) if named != *digest => return wrong("the answer is of another digest"),
        Some(_) => {}
        None if content_type(&answer.response.head).as_deref() == Some("text/html") => {
            return wrong("the answer is a web page");
        }
        None => {}
    }
    match (held, answer.response.length) {
        (Some(held), Some(len)) if held != len => wrong("the answer is of another length"),
        (Some(_), Some(_)) => Ok(true),
        (_, _) => Ok(named.is_some()),
    }
}

/// Names the link of a repository to a digest.
pub fn link_key(project: &Project, repository: &Repository, digest: Digest) -> LinkKey {
    LinkKey {
        project: Box::from(&*project.name),
        repository: Box::from(&*repository.name),
        digest,
    }
}

/// True when the repository has proven to refer to the digest, at an upstream that is still
/// configured.
pub fn is_linked(
    store: &Store<UringDisk>,
    project: &Project,
    repository: &str,
    digest: &Digest,
) -> bool {
    let key = entrepot_storage::LinkKeyRef {
        project: &project.name,
        repository,
        digest,
    };
    store
        .link(key)
        .is_some_and(|record| project.trusts(&record.origin))
}
