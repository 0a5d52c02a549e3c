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
use crate::failure::Failure;
use crate::fetch::BodyKind;
use crate::mailbox::Reply;
use crate::project::{Project, Repository};
use crate::source::{Search, Sources, Wanted, accept, body_path, content_type};
use crate::upstream::Method;

pub struct ProofAsk {
    pub digest: Digest,
    pub kind: BodyKind,
    pub source: Repository,
    pub reply: Reply<Result<Proven, Failure>>,
}

/// What upstream said of a digest in a repository.
#[derive(Clone, Debug)]
pub struct Proven {
    pub len: Option<u64>,
    pub media_type: Option<Arc<str>>,
}

type Key = (Repository, Digest, BodyKind);
type Waiting = Vec<Reply<Result<Proven, Failure>>>;

pub struct Links {
    writer: Rc<Writer<UringDisk>>,
    sources: Sources,
    asking: RefCell<HashMap<Key, Waiting>>,
}

impl Links {
    pub fn new(writer: Rc<Writer<UringDisk>>, sources: Sources) -> Rc<Links> {
        Rc::new(Links {
            writer,
            sources,
            asking: RefCell::default(),
        })
    }

    /// Asks upstream, or joins who asks already.
    pub fn prove(self: &Rc<Self>, ask: ProofAsk) {
        let key = (ask.source, ask.digest, ask.kind);
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

    async fn ask_upstream(&self, (source, digest, kind): &Key) -> Result<Proven, Failure> {
        let path = body_path(*kind, digest);
        let wanted = |method| Wanted {
            method,
            path: &path,
            accept: accept(*kind),
            range: None,
        };
        let search = || Search {
            layer: (*kind == BodyKind::Blob).then_some(*digest),
            ..Search::default()
        };
        let head = wanted(Method::Head);
        let answer = match self.sources.first(source, &head, search()).await {
            Ok(answer) => answer,
            // An upstream that knows no HEAD: the head of a GET says the same, its body is left.
            Err(unanswered) if matches!(unanswered.report.status, Some(405 | 501)) => {
                let get = wanted(Method::Get);
                self.sources.first(source, &get, search()).await?
            }
            Err(unanswered) => return Err(unanswered.report),
        };
        if *kind == BodyKind::Manifest {
            let whole = &self.sources.whole;
            whole.check_len(answer.response.length, &answer.origin)?;
        }
        let project = self.sources.project(source.project);
        let key = link_key(&project, source, *digest);
        let record = LinkRecord {
            origin: answer.origin.clone(),
            proof: Proof::Headed,
            at: clock::now(),
        };
        self.put(key, record).await;
        Ok(Proven {
            len: answer.response.length,
            media_type: content_type(&answer.response.head).map(Into::into),
        })
    }

    /// Records a proof; a disk that can't take it costs a HEAD after the next restart.
    pub async fn put(&self, key: LinkKey, record: LinkRecord) {
        if let Err(error) = self.writer.put_link(key, record).await {
            tracing::warn!(%error, "a link could not be written");
        }
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
