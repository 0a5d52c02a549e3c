//! Fills: the owner's side of a body that is not in the store.
//!
//! Called by the mailbox loop of the shard that owns the digest. One fill runs for a digest
//! however many ask (the owner looks up again first), on this shard, at upstream's speed and
//! nobody else's (R5). Whoever may see its bytes becomes a follower; who has no proof of its own
//! is sent to get one (R9). What a follower does with its bytes is not decided here.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Fill, FillError, FillSpec, Follower, LinkRecord, Proof};
use entrepot_storage::{Store, Watermark, Writer};

use crate::access::link_key;
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::mailbox::{Message, Post, Reply};
use crate::metrics::{Counter, Gauge, Metrics};
use crate::oci::error::Code;
use crate::project::{Repository, repository_owner};
use crate::source::{
    Answer, Search, Sources, Wanted, accept, body_path, check_manifest, content_type, read_manifest,
};
use crate::upstream::{Method, Response};

/// Remembered mismatches; beyond it a new one is not remembered and only costs a refetch.
const REFUSED_MAX: usize = 1024;

/// Remembered bodies that were too long; beyond it a new one costs its askers a cut pull.
const OUTGROWN_MAX: usize = 1024;
/// How long a body counts as too long. Room may come back; a failed fill costs its followers.
const OUTGROWN_HOLDOFF: Duration = Duration::from_secs(60);

/// How a body is asked for, which decides upstream's path and the checks.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Hash)]
pub enum BodyKind {
    Manifest,
    Blob,
}

impl BodyKind {
    /// What a client is told when there is none (distribution-spec, error codes).
    pub fn unknown(self) -> Code {
        match self {
            BodyKind::Manifest => Code::ManifestUnknown,
            BodyKind::Blob => Code::BlobUnknown,
        }
    }
}

/// A connection wants a body that it did not find in the index.
pub struct BodyAsk {
    pub digest: Digest,
    pub kind: BodyKind,
    /// In whose name upstream is asked.
    pub source: Repository,
    /// True when the source has a link to the digest.
    pub proven: bool,
    /// Origin to ask first, where the tag came from.
    pub prefer: Option<Arc<str>>,
    pub reply: Reply<BodyAnswer>,
}

pub enum BodyAnswer {
    /// It is in the index now.
    Held,
    Follow(Following),
    /// A fill runs in another repository's name: prove that yours refers to the digest (R9).
    NeedProof,
    /// Neither the store nor staging has room: fetch it for yourself.
    Relay,
    Failed(Failure),
}

/// A place at a running fill.
pub struct Following {
    pub follower: Follower<UringDisk>,
    pub watermark: Arc<Watermark<UringDisk>>,
    pub media_type: Option<Arc<str>>,
    pub origin: Arc<str>,
    /// True when the bytes will not stay.
    pub staged: bool,
    /// False for the ask that started the fill.
    pub collapsed: bool,
}

/// Limits of one shard's fills.
#[derive(Clone, Copy)]
pub struct Bounds {
    pub fills_max: usize,
    /// Of one fill.
    pub followers_max: usize,
    pub body_len_max: u64,
    /// How long a source that sent wrong bytes is not asked for that digest again.
    pub mismatch_holdoff: Duration,
}

struct Stream {
    watermark: Arc<Watermark<UringDisk>>,
    media_type: Option<Arc<str>>,
    origin: Arc<str>,
    staged: bool,
}

struct Running {
    /// In whose name upstream is being asked; others need a proof.
    source: RefCell<Repository>,
    /// Asks that wait for upstream's head.
    waiting: RefCell<Vec<BodyAsk>>,
    stream: RefCell<Option<Stream>>,
    /// Its digest was purged while upstream was asked.
    stopped: Cell<bool>,
}

/// Why a fill did not come to its end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("{0}")]
    Source(String),
    #[error("{0}")]
    Store(#[from] FillError),
    #[error("longer than limits.body_max")]
    OverLimit,
    #[error("the server is stopping")]
    Stopping,
    #[error("nobody follows a body that will not be stored")]
    Abandoned,
}

/// A fill that has room, and whether its bytes will stay.
struct Admitted {
    fill: Fill<UringDisk>,
    staged: bool,
}

/// A body on its way in: a manifest is collected and checked first, a blob is taken as it comes.
struct Arriving {
    collected: Option<Vec<u8>>,
    body: Option<crate::upstream::Body>,
    len: Option<u64>,
    arrived: u64,
}

impl Arriving {
    async fn open(
        kind: BodyKind,
        mut response: Response,
        media_type: Option<&str>,
        origin: &str,
    ) -> Result<Arriving, Failure> {
        if kind == BodyKind::Blob {
            let (body, len) = (Some(response.body), response.length);
            return Ok(Arriving {
                collected: None,
                body,
                len,
                arrived: 0,
            });
        }
        let bytes = read_manifest(&mut response.body, origin).await?;
        check_manifest(&bytes, media_type, origin)?;
        let len = Some(bytes.len() as u64);
        Ok(Arriving {
            collected: Some(bytes),
            body: None,
            len,
            arrived: 0,
        })
    }

    async fn next(&mut self) -> Result<Option<Vec<u8>>, String> {
        let bytes = match (self.collected.take(), &mut self.body) {
            (Some(bytes), _) => Some(bytes),
            (None, Some(body)) => body.read().await.map_err(|error| error.to_string())?,
            (None, None) => None,
        };
        self.arrived += bytes.as_ref().map_or(0, |bytes| bytes.len() as u64);
        Ok(bytes)
    }
}

/// A manifest and a blob of one digest are asked for at different places of an upstream: one
/// answer says nothing of the other.
type Key = (Digest, BodyKind);

pub struct Fetcher {
    store: Arc<Store<UringDisk>>,
    writer: Rc<Writer<UringDisk>>,
    sources: Sources,
    post: Post,
    metrics: Arc<Metrics>,
    bounds: Bounds,
    running: RefCell<HashMap<Key, Rc<Running>>>,
    refused: RefCell<HashMap<(Digest, Arc<str>), Instant>>,
    /// Bodies of unknown length that turned out to be too long, and until when that is believed.
    outgrown: RefCell<HashMap<Digest, Instant>>,
    draining: Cell<bool>,
    aborting: Cell<bool>,
}

impl Fetcher {
    pub fn new(
        store: Arc<Store<UringDisk>>,
        writer: Rc<Writer<UringDisk>>,
        sources: Sources,
        post: Post,
        metrics: Arc<Metrics>,
        bounds: Bounds,
    ) -> Rc<Fetcher> {
        Rc::new(Fetcher {
            store,
            writer,
            sources,
            post,
            metrics,
            bounds,
            running: RefCell::default(),
            refused: RefCell::default(),
            outgrown: RefCell::default(),
            draining: Cell::new(false),
            aborting: Cell::new(false),
        })
    }

    /// Fills that are running on this shard.
    pub fn running(&self) -> usize {
        self.running.borrow().len()
    }

    /// From now on no fill starts; running ones go on.
    pub fn drain(&self) {
        self.draining.set(true);
    }

    /// Running fills fail at their next piece.
    pub fn abort(&self) {
        self.aborting.set(true);
    }

    /// A purge: whoever asked for the digest until now does not get it into the store. Fills that
    /// have room already are the store's to stop.
    pub fn stop(&self, digest: &Digest) {
        for kind in [BodyKind::Manifest, BodyKind::Blob] {
            if let Some(running) = self.running.borrow().get(&(*digest, kind)) {
                running.stopped.set(true);
            }
        }
    }

    /// Answers an ask, now or when upstream's head has arrived.
    pub fn body(self: &Rc<Self>, ask: BodyAsk) {
        if self.store.body(&ask.digest).is_some() {
            return answer(&ask, BodyAnswer::Held);
        }
        let running = self.running.borrow().get(&(ask.digest, ask.kind)).cloned();
        match running {
            Some(running) => self.join(&running, ask),
            None if self.has_outgrown(&ask.digest) => answer(&ask, BodyAnswer::Relay),
            None => self.start(ask),
        }
    }

    fn join(&self, running: &Running, ask: BodyAsk) {
        if !ask.proven && ask.source != *running.source.borrow() {
            return answer(&ask, BodyAnswer::NeedProof);
        }
        let followers = match &*running.stream.borrow() {
            Some(stream) => stream.watermark.followers(),
            None => running.waiting.borrow().len(),
        };
        if followers >= self.bounds.followers_max {
            return answer(
                &ask,
                BodyAnswer::Failed(Failure::busy("followers of one fill")),
            );
        }
        match &*running.stream.borrow() {
            Some(stream) => answer(&ask, follow(stream, true)),
            None => running.waiting.borrow_mut().push(ask),
        }
    }

    fn start(self: &Rc<Self>, ask: BodyAsk) {
        if self.draining.get() {
            return answer(
                &ask,
                BodyAnswer::Failed(Failure::busy("the server is stopping")),
            );
        }
        if self.running.borrow().len() >= self.bounds.fills_max {
            return answer(
                &ask,
                BodyAnswer::Failed(Failure::busy("fills of this core")),
            );
        }
        let (digest, kind) = (ask.digest, ask.kind);
        let running = Rc::new(Running {
            source: RefCell::new(ask.source.clone()),
            waiting: RefCell::new(vec![ask]),
            stream: RefCell::default(),
            stopped: Cell::new(false),
        });
        self.running
            .borrow_mut()
            .insert((digest, kind), running.clone());
        let fetcher = self.clone();
        monoio::spawn(async move {
            let gauge = fetcher.metrics.hold(Gauge::FillsRunning);
            fetcher.run(digest, kind, &running).await;
            fetcher.running.borrow_mut().remove(&(digest, kind));
            drop(gauge);
            // A fill that ended before it streamed owes its askers an answer.
            for ask in running.waiting.take() {
                answer(&ask, BodyAnswer::Held);
            }
        });
    }

    /// Tries the askers' sources until one is answered, then fills.
    async fn run(&self, digest: Digest, kind: BodyKind, running: &Running) {
        loop {
            let next = {
                let waiting = running.waiting.borrow();
                waiting
                    .first()
                    .map(|ask| (ask.source.clone(), ask.prefer.clone()))
            };
            let Some((source, prefer)) = next else { return };
            running.source.replace(source.clone());
            running.stopped.set(false);
            let opened = self.open(&digest, kind, &source, prefer.as_deref()).await;
            let outcome = match opened {
                Ok(opened) => self.fill(digest, kind, &source, opened, running).await,
                Err(failure) => Err(failure),
            };
            let Err(failure) = outcome else { return };
            // Those who asked in this name fail; a proven joiner's source is tried next (R9).
            let (refused, others) = running
                .waiting
                .take()
                .into_iter()
                .partition(|ask: &BodyAsk| ask.source == source);
            running.waiting.replace(others);
            for ask in refused {
                answer(&ask, BodyAnswer::Failed(failure.clone()));
            }
        }
    }

    async fn open(
        &self,
        digest: &Digest,
        kind: BodyKind,
        source: &Repository,
        prefer: Option<&str>,
    ) -> Result<Answer, Failure> {
        let path = body_path(kind, digest);
        let wanted = Wanted {
            method: Method::Get,
            path: &path,
            accept: accept(kind),
            range: None,
        };
        let search = Search {
            prefer,
            refused: Some(&|origin| self.is_refused(digest, origin)),
            ..Search::default()
        };
        Ok(self.sources.first(source, &wanted, search).await?)
    }

    /// Streams one answer into the store and to its followers.
    ///
    /// An error is for the askers that still wait; followers learn it from the watermark.
    async fn fill(
        &self,
        digest: Digest,
        kind: BodyKind,
        source: &Repository,
        opened: Answer,
        running: &Running,
    ) -> Result<(), Failure> {
        let Answer {
            origin, response, ..
        } = opened;
        // Only a manifest's type is checked, and worth keeping.
        let media_type = content_type(&response.head).filter(|_| kind == BodyKind::Manifest);
        let arriving = Arriving::open(kind, response, media_type.as_deref(), &origin).await?;
        let spec = FillSpec {
            digest,
            length: arriving.len,
            media_type: media_type.as_deref(),
        };
        let Some(admitted) = self.admit(spec, running).await else {
            return Ok(());
        };
        if running.stopped.get() {
            return Err(Failure::new(
                FailureKind::Busy,
                "purged while it was fetched",
            ));
        }
        // The 200 is the source's proof; it is in the index before anybody can ask for it.
        self.link(source, digest, &origin).await;
        let stream = Stream {
            watermark: admitted.fill.watermark(),
            media_type: media_type.as_deref().map(Into::into),
            origin: origin.clone(),
            staged: admitted.staged,
        };
        // The first ask started this; the others found it running.
        for (position, ask) in running.waiting.take().into_iter().enumerate() {
            answer(&ask, follow(&stream, position > 0));
        }
        running.stream.replace(Some(stream));
        let held = self
            .transfer(digest, source, &origin, arriving, admitted)
            .await;
        if held && kind == BodyKind::Manifest {
            self.verified(source, digest).await;
        }
        Ok(())
    }

    /// Tells the repository's owner, who may know a tag that names this manifest.
    async fn verified(&self, source: &Repository, digest: Digest) {
        let project = self.sources.project(source.project).name.clone();
        let owner = repository_owner(&project, &source.name, self.post.shards());
        let source = source.clone();
        let message = |reply| Message::Verified {
            source,
            digest,
            reply,
        };
        self.post.tell(owner, message).await;
    }

    /// Moves all bytes and verifies them. True when they are in the store now.
    async fn transfer(
        &self,
        digest: Digest,
        source: &Repository,
        origin: &Arc<str>,
        mut arriving: Arriving,
        admitted: Admitted,
    ) -> bool {
        let started = Instant::now();
        let Admitted { mut fill, staged } = admitted;
        let moved = self.stream(&mut fill, &mut arriving, staged).await;
        let ended = match moved {
            Ok(()) => fill
                .finish(clock::now())
                .await
                .map(drop)
                .map_err(Broken::Store),
            // Dropping it is what fails it, and its followers with it.
            Err(why) => {
                drop(fill);
                Err(why)
            }
        };
        match ended {
            Err(Broken::Store(FillError::WrongDigest)) => {
                self.metrics.count(Counter::WrongDigests);
                self.refuse(digest, origin.clone());
            }
            // It will not fit the next time either: whoever asks then fetches for itself.
            Err(Broken::Store(FillError::Full) | Broken::OverLimit) => self.outgrew(digest),
            _ => {}
        }
        let (bytes, ms) = (arriving.arrived, started.elapsed().as_millis() as u64);
        match ended {
            Ok(()) => {
                self.metrics.count(match staged {
                    true => Counter::FillsStaged,
                    false => Counter::FillsVerified,
                });
                tracing::info!(%digest, upstream = %origin, bytes, ms, staged, "fill verified");
                !staged
            }
            Err(error) => {
                self.metrics.count(Counter::FillsFailed);
                tracing::warn!(
                    %digest, upstream = %origin, repository = %source.name, bytes, ms, %error,
                    "fill failed; its followers were cut"
                );
                false
            }
        }
    }

    async fn stream(
        &self,
        fill: &mut Fill<UringDisk>,
        arriving: &mut Arriving,
        staged: bool,
    ) -> Result<(), Broken> {
        let watermark = fill.watermark();
        while let Some(bytes) = arriving.next().await.map_err(Broken::Source)? {
            // One that said its length is staged, and no longer than it said.
            if arriving.len.is_none() && arriving.arrived > self.bounds.body_len_max {
                return Err(Broken::OverLimit);
            }
            if self.aborting.get() {
                return Err(Broken::Stopping);
            }
            fill.write(bytes).await?;
            if staged && watermark.followers() == 0 {
                return Err(Broken::Abandoned);
            }
        }
        Ok(())
    }

    /// Room in the store, else in staging, else none: then all askers are told to relay.
    async fn admit(&self, spec: FillSpec<'_>, running: &Running) -> Option<Admitted> {
        let refusal = if spec
            .length
            .is_some_and(|len| len > self.bounds.body_len_max)
        {
            "longer than limits.body_max".to_owned()
        } else {
            match self.writer.fill(spec).await {
                Ok(fill) => {
                    return Some(Admitted {
                        fill,
                        staged: false,
                    });
                }
                Err(refusal) => refusal.to_string(),
            }
        };
        let digest = spec.digest;
        match self.writer.staging(spec).await {
            Ok(fill) => {
                tracing::warn!(%digest, why = refusal, "not admitted; staged for its followers");
                Some(Admitted { fill, staged: true })
            }
            Err(second) => {
                tracing::warn!(%digest, why = %second, "not admitted and not staged; relayed");
                for ask in running.waiting.take() {
                    answer(&ask, BodyAnswer::Relay);
                }
                None
            }
        }
    }

    /// Puts verified bytes that are already here into the store: a manifest that was fetched by
    /// its tag, or a listing.
    pub async fn hold(
        &self,
        digest: Digest,
        media_type: &str,
        bytes: Bytes,
    ) -> Result<(), Failure> {
        if self.store.body(&digest).is_some() {
            return Ok(());
        }
        let length = Some(bytes.len() as u64);
        let failed = |error: String| Failure::new(FailureKind::BadBody, error);
        let mut fill = self
            .writer
            .fill(FillSpec {
                digest,
                length,
                media_type: Some(media_type),
            })
            .await
            .map_err(|refusal| failed(refusal.to_string()))?;
        fill.write(bytes.to_vec())
            .await
            .map_err(|error| failed(error.to_string()))?;
        fill.finish(clock::now())
            .await
            .map_err(|error| failed(error.to_string()))?;
        Ok(())
    }

    async fn link(&self, source: &Repository, digest: Digest, origin: &Arc<str>) {
        let project = self.sources.project(source.project);
        let key = link_key(&project, source, digest);
        let record = LinkRecord {
            origin: origin.clone(),
            proof: Proof::Fetched,
            at: clock::now(),
        };
        let owner = repository_owner(&project.name, &source.name, self.post.shards());
        self.post
            .tell(owner, |reply| Message::Link { key, record, reply })
            .await;
    }

    fn outgrew(&self, digest: Digest) {
        let mut outgrown = self.outgrown.borrow_mut();
        let now = Instant::now();
        outgrown.retain(|_, until| *until > now);
        if outgrown.len() < OUTGROWN_MAX {
            outgrown.insert(digest, now + OUTGROWN_HOLDOFF);
        }
    }

    fn has_outgrown(&self, digest: &Digest) -> bool {
        let outgrown = self.outgrown.borrow();
        let until = outgrown.get(digest);
        until.is_some_and(|until| *until > Instant::now())
    }

    fn refuse(&self, digest: Digest, origin: Arc<str>) {
        let mut refused = self.refused.borrow_mut();
        let now = Instant::now();
        refused.retain(|_, until| *until > now);
        if refused.len() < REFUSED_MAX {
            refused.insert((digest, origin), now + self.bounds.mismatch_holdoff);
        }
    }

    fn is_refused(&self, digest: &Digest, origin: &Arc<str>) -> bool {
        let refused = self.refused.borrow();
        !refused.is_empty()
            && refused
                .get(&(*digest, origin.clone()))
                .is_some_and(|until| *until > Instant::now())
    }
}

fn follow(stream: &Stream, collapsed: bool) -> BodyAnswer {
    BodyAnswer::Follow(Following {
        follower: stream.watermark.follow(),
        watermark: stream.watermark.clone(),
        media_type: stream.media_type.clone(),
        origin: stream.origin.clone(),
        staged: stream.staged,
        collapsed,
    })
}

fn answer(ask: &BodyAsk, answer: BodyAnswer) {
    // The slot has room for its one answer; an error means that the asker has left.
    let _ = ask.reply.try_send(answer);
}
