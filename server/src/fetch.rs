//! Fills: the owner's side of a body that is not in the store.
//!
//! Called by the mailbox loop of the shard that owns the digest. One fill runs for a digest
//! however many ask (the owner looks up again first), on this shard, at upstream's speed and
//! nobody else's (R5). Whoever may see its bytes becomes a follower; who has no proof of its own
//! is sent to get one (R9). What a follower does with its bytes is not decided here.

mod ask;
mod fill;
mod setbacks;
mod stop;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Digest, Store, Watermark, Writer};
use monoio::time::sleep;

pub use ask::{BodyAnswer, BodyAsk, BodyKind, Bounds, EndedBy, Following, Seen, Sought};

use crate::access::is_linked;
use crate::failure::{Failure, FailureKind};
use crate::mailbox::{Message, Post};
use crate::manifests::Expected;
use crate::metrics::{Counter, Gauge, Metrics};
use crate::project::{Repository, repository_owner};
use crate::resume::Opening;
use crate::source::{Search, Sources, Wanted, accept, body_path};
use crate::upstream::Method;
use crate::whole::Until;

use fill::{Attempt, Ended};
use setbacks::Setbacks;

/// Sources that one fill may ask in the names of. More than one is rare, and each that is refused
/// costs upstream a request; a fill that sixteen are refused for will not be had by a seventeenth.
const SOURCES_MAX: usize = 16;

/// How long an ask that has something older waits for a head with others who have not: the time of
/// a slow answer, and not that of a hold.
const SPARE_WAIT: Duration = Duration::from_secs(3);

struct Stream {
    watermark: Arc<Watermark<UringDisk>>,
    media_type: Option<Arc<str>>,
    origin: Arc<str>,
    ended_by: EndedBy,
    staged: bool,
    started: Instant,
}

struct Running {
    /// In whose name upstream is being asked; others need a proof.
    source: RefCell<Repository>,
    /// In whose names it may go on: of its askers, each with a proof or an answer of its own (R9).
    sources: RefCell<Vec<Repository>>,
    /// Asks that wait for upstream's head.
    waiting: RefCell<Vec<BodyAsk>>,
    stream: RefCell<Option<Stream>>,
    /// All who wait have something older: no hold of an upstream is waited for.
    spare: Cell<bool>,
    /// Its digest was purged.
    stopped: Cell<bool>,
    /// From the verified end on, until its link and then the body can be found.
    linking: RefCell<Option<flume::Receiver<Infallible>>>,
}

/// A manifest and a blob of one digest are asked for at different places of an upstream: one
/// answer says nothing of the other.
type Key = (Digest, BodyKind);

impl Running {
    fn new(ask: BodyAsk) -> Rc<Running> {
        Rc::new(Running {
            source: RefCell::new(ask.source.clone()),
            sources: RefCell::new(vec![ask.source.clone()]),
            spare: Cell::new(ask.sought.spare),
            waiting: RefCell::new(vec![ask]),
            stream: RefCell::default(),
            stopped: Cell::new(false),
            linking: RefCell::default(),
        })
    }

    fn may_go_on_as(&self, source: &Repository) {
        let mut sources = self.sources.borrow_mut();
        if sources.len() < SOURCES_MAX && !sources.contains(source) {
            sources.push(source.clone());
        }
    }

    fn leaves(&self, which: impl Fn(&Repository) -> bool) {
        self.sources.borrow_mut().retain(|source| !which(source));
    }
}

pub struct Fetcher {
    store: Arc<Store<UringDisk>>,
    writer: Rc<Writer<UringDisk>>,
    sources: Sources,
    post: Post,
    metrics: Arc<Metrics>,
    bounds: Bounds,
    running: RefCell<HashMap<Key, Rc<Running>>>,
    setbacks: Setbacks,
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
            running: RefCell::default(),
            setbacks: Setbacks::new(bounds.mismatch_holdoff),
            bounds,
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

    /// Whether the origin sent wrong bytes for the digest a moment ago.
    pub fn is_refused(&self, digest: &Digest, origin: &Arc<str>) -> bool {
        self.setbacks.is_refused(digest, origin)
    }

    /// Answers an ask, now or when upstream's head has arrived.
    pub fn body(self: &Rc<Self>, ask: BodyAsk) {
        let Sought {
            digest,
            kind,
            fills,
            ..
        } = ask.sought;
        if self.store.body(&digest).is_some() {
            return answer(&ask, BodyAnswer::Held);
        }
        let running = self.running.borrow().get(&(digest, kind)).cloned();
        match running {
            Some(running) => self.join(&running, ask),
            None if !fills => answer(&ask, BodyAnswer::Cold),
            None if self.setbacks.has_outgrown(&digest) => answer(&ask, BodyAnswer::Relay),
            None => self.start(ask),
        }
    }

    fn join(&self, running: &Rc<Running>, ask: BodyAsk) {
        let followers = match &*running.stream.borrow() {
            Some(stream) => stream.watermark.followers(),
            None => running.waiting.borrow().len(),
        };
        if followers >= self.bounds.followers_max {
            let busy = Failure::busy("followers of one fill");
            return answer(&ask, BodyAnswer::Failed(busy));
        }
        if let Some(stream) = &*running.stream.borrow() {
            return answer(&ask, self.place(running, stream, &ask, true));
        }
        if !ask.sought.fills && !ask.proven {
            // It gets what it wants sooner by itself.
            return answer(&ask, BodyAnswer::NeedProof(None));
        }
        if ask.sought.spare && !running.spare.get() {
            monoio::spawn(give_up_waiting(running.clone()));
        }
        running.waiting.borrow_mut().push(ask);
    }

    /// A place at the fill for who may see its bytes (R9).
    fn place(
        &self,
        running: &Running,
        stream: &Stream,
        ask: &BodyAsk,
        collapsed: bool,
    ) -> BodyAnswer {
        // A reload may have taken its upstream, or the login, away.
        let project = self.sources.project(ask.source.project);
        let own = ask.source == *running.source.borrow() && project.trusts(&stream.origin);
        // One that was purged since then has to prove itself like others.
        let own = own && running.sources.borrow().contains(&ask.source);
        let like = |seen: &&Seen| Some(seen.len) == stream.watermark.len();
        let seen = ask.seen.as_ref().filter(like);
        let seen = seen.is_some_and(|seen| project.trusts(&seen.origin));
        if !ask.proven && !own && !seen {
            return BodyAnswer::NeedProof(stream.watermark.len());
        }
        running.may_go_on_as(&ask.source);
        follow(stream, collapsed)
    }

    fn start(self: &Rc<Self>, ask: BodyAsk) {
        if self.draining.get() {
            return answer(
                &ask,
                BodyAnswer::Failed(Failure::busy("the server is stopping")),
            );
        }
        let Some(taken) = self.bounds.fills.take() else {
            return answer(&ask, BodyAnswer::Failed(Failure::busy("fills")));
        };
        let (digest, kind) = (ask.sought.digest, ask.sought.kind);
        let running = Running::new(ask);
        self.running
            .borrow_mut()
            .insert((digest, kind), running.clone());
        let fetcher = self.clone();
        monoio::spawn(async move {
            let gauge = fetcher.metrics.hold(Gauge::FillsRunning);
            fetcher.run(digest, kind, &running).await;
            fetcher.running.borrow_mut().remove(&(digest, kind));
            drop((gauge, taken));
            // A fill that ended before it streamed owes its askers an answer.
            for ask in running.waiting.take() {
                answer(&ask, BodyAnswer::Held);
            }
        });
    }

    /// Tries the askers' sources until one is answered, then fills. Of those who want no fill of
    /// their own none is tried.
    async fn run(&self, digest: Digest, kind: BodyKind, running: &Rc<Running>) {
        loop {
            let next = {
                let waiting = running.waiting.borrow();
                let first = waiting.iter().find(|ask| ask.sought.fills);
                first.map(|ask| {
                    let same = |other: &&BodyAsk| other.source == ask.source;
                    let spare = waiting.iter().filter(same).all(|other| other.sought.spare);
                    (ask.source.clone(), ask.sought.prefer.clone(), spare)
                })
            };
            let Some((source, prefer, spare)) = next else {
                for ask in running.waiting.take() {
                    answer(&ask, BodyAnswer::Cold);
                }
                return;
            };
            running.source.replace(source.clone());
            running.spare.set(spare);
            if !spare && running.waiting.borrow().iter().any(|ask| ask.sought.spare) {
                monoio::spawn(give_up_waiting(running.clone()));
            }
            running.may_go_on_as(&source);
            running.stopped.set(false);
            let attempt = Attempt {
                digest,
                kind,
                source: &source,
                prefer: prefer.as_deref(),
                spare,
                resumes: true,
            };
            let Err(failure) = self.fetch(attempt, running).await else {
                return;
            };
            // Those who asked in this name fail, but for who would have waited longer; the source
            // of another is tried next (R9).
            running.leaves(|of| *of == source);
            let refused = |ask: &BodyAsk| ask.source == source && (ask.sought.spare || !spare);
            let (refused, others) = running.waiting.take().into_iter().partition(refused);
            running.waiting.replace(others);
            for ask in refused {
                answer(&ask, BodyAnswer::Failed(failure.clone()));
            }
        }
    }

    /// One fill, and a second one if the first brought bytes of another digest and somebody else
    /// may have the right ones. The followers of the first are cut, but for those who were told
    /// nothing yet: they ask again. Who asks from now on follows the second.
    async fn fetch(&self, attempt: Attempt<'_>, running: &Running) -> Result<(), Failure> {
        let opening = self.open(&attempt).await?;
        let spliced = match self.fill(&attempt, opening, running).await? {
            Ended::Settled => return Ok(()),
            Ended::Mismatched { spliced } => spliced,
        };
        if !self.has_source(&attempt) {
            return Ok(());
        }
        running.stream.replace(None);
        // Which of several answers was wrong is not known: one alone must do now.
        let second = Attempt {
            resumes: !spliced,
            ..attempt
        };
        tracing::info!(digest = %second.digest, spliced, "fetched once more after a mismatch");
        let opening = self.open(&second).await?;
        self.fill(&second, opening, running).await?;
        Ok(())
    }

    /// Whether an upstream is left that did not send wrong bytes a moment ago.
    fn has_source(&self, attempt: &Attempt<'_>) -> bool {
        let project = self.sources.project(attempt.source.project);
        let mut origins = project.upstreams.iter().map(|(_, origin)| origin);
        origins.any(|origin| !self.setbacks.is_refused(&attempt.digest, origin))
    }

    /// The sources of a fill whose proofs stand now.
    fn proven(&self, running: &Running, digest: &Digest) -> Vec<Repository> {
        let sources = running.sources.borrow();
        let proven = sources.iter().filter(|source| {
            let project = self.sources.project(source.project);
            is_linked(&self.store, &project, &source.name, digest)
        });
        proven.cloned().collect()
    }

    async fn open(&self, attempt: &Attempt<'_>) -> Result<Opening, Failure> {
        let &Attempt { digest, kind, .. } = attempt;
        let path = body_path(kind, &digest);
        let wanted = Wanted {
            method: Method::Get,
            path: &path,
            accept: accept(kind),
            range: None,
        };
        let search = Search {
            prefer: attempt.prefer,
            spare: attempt.spare,
            layer: (kind == BodyKind::Blob).then_some(digest),
            refused: Some(&|origin| self.setbacks.is_refused(&digest, origin)),
            ..Search::default()
        };
        let (source, sources) = (attempt.source, &self.sources);
        if kind == BodyKind::Blob {
            let answer = sources.first(source, &wanted, search).await?;
            return Ok(Opening::Answer(answer));
        }
        let mismatched = |origin: &Arc<str>| self.mismatched(digest, origin);
        let expected = Some(Expected {
            digest,
            until: Until::Stored,
            mismatched: &mismatched,
        });
        let manifest = sources.manifest(source, &wanted, search, expected).await?;
        Ok(Opening::Manifest(manifest))
    }

    /// An origin alone sent other bytes than those of the digest.
    fn mismatched(&self, digest: Digest, origin: &Arc<str>) {
        self.metrics.count(Counter::WrongDigests);
        self.setbacks.refuse(digest, origin.clone());
    }
}

/// Tells the repository's owner of a manifest that is held, and that the repository may see: it may
/// know a tag that names it.
pub async fn tell_verified(sources: &Sources, post: &Post, source: &Repository, digest: Digest) {
    let project = sources.project(source.project).name.clone();
    let owner = repository_owner(&project, &source.name, post.shards());
    let source = source.clone();
    let message = |reply| Message::Verified {
        source,
        digest,
        reply,
    };
    post.tell(owner, message).await;
}

/// Sends away those who have something older, when the others have waited this long for an
/// upstream's head: it may be held for longer than they should wait.
async fn give_up_waiting(running: Rc<Running>) {
    sleep(SPARE_WAIT).await;
    let waiting = running.waiting.take().into_iter();
    let (spare, others) = waiting.partition(|ask: &BodyAsk| ask.sought.spare);
    running.waiting.replace(others);
    for ask in spare {
        let why = "others wait for the same of its upstream, which has not answered yet";
        let failure = Failure::new(FailureKind::RateLimited, why);
        answer(&ask, BodyAnswer::Failed(failure));
    }
}

fn follow(stream: &Stream, collapsed: bool) -> BodyAnswer {
    BodyAnswer::Follow(Following {
        follower: stream.watermark.follow(),
        watermark: stream.watermark.clone(),
        media_type: stream.media_type.clone(),
        origin: stream.origin.clone(),
        ended_by: stream.ended_by.clone(),
        staged: stream.staged,
        collapsed,
        started: stream.started,
    })
}

fn answer(ask: &BodyAsk, answer: BodyAnswer) {
    // The slot has room for its one answer; an error means that the asker has left.
    let _ = ask.reply.try_send(answer);
}
