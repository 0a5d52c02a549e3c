//! Asks the upstreams of a project, in their order, until one has what is wanted.
//!
//! Used by `fetch` (bodies), `access` (proofs), `freshness` (tags), `listing` and `relay`. The
//! order is strict priority; a "not found", a denial and a failure all lead to the next one.
//! Which of the failures is reported is decided by `Failure::worse`. Every request goes through
//! the gate of its upstream; while a rate limit is the only thing between a client and an answer,
//! it waits there.

mod ask;
mod elsewhere;
mod heard;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::{Digest, Seconds};

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::gate::{Board, Name, Refusal, SPARE_WAIT_MAX, Shown, Urgency, WAIT_MAX};
use crate::http::upstream_head::ResponseHead;
use crate::mailbox::Post;
use crate::oci::manifest;
use crate::project::{ProjectRef, Projects, Repository};
use crate::upstream::{Client, Method, Part, Response, UpstreamId, counts_for, without_account};
use crate::whole;

/// What is asked of an upstream, below `/v2/<repository>/`.
pub struct Wanted<'a> {
    pub method: Method,
    /// `blobs/<digest>`, `manifests/<reference>`, `tags/list?n=5`, …
    pub path: &'a str,
    pub accept: Option<&'static str>,
    /// The answer may be a 206, or a 200 all the same.
    pub range: Option<Part>,
}

/// How often one request goes round its upstreams: the second time to those that said until when
/// they want to be left alone, when that time is up. One that says so again then is no use to a
/// client that waits.
const ROUNDS_MAX: usize = 2;

/// Says of who is to be asked, as [`Answer::asked`] names them, whether they are passed over.
pub type Refused<'a> = dyn Fn(&Arc<str>) -> bool + 'a;

/// Says of a failure whether a cached copy may stand in for it.
pub type StandsIn<'a> = dyn Fn(&Failure) -> bool + 'a;

/// How the upstreams of a project are gone through: in their order, but for what is said here.
#[derive(Default)]
pub struct Search<'a> {
    /// Asked before the others.
    pub prefer: Option<&'a str>,
    /// Where a record came from: asked first, and the others only if it does not have it or
    /// does not give it. A failure of it is no reason to take another's namesake while the record
    /// may stand in.
    pub came_from: Option<&'a str>,
    /// A cached copy stands in when upstream can't be asked soon: no hold is waited for.
    pub spare: bool,
    /// Whether the record may stand in for a failure of where it came from: else the others are
    /// asked for it, too.
    pub stands_in: Option<&'a StandsIn<'a>>,
    /// That upstream said no a moment ago is no answer: it has said yes since.
    pub anew: bool,
    /// A layer that may be elsewhere by a manifest of the repository.
    pub layer: Option<Digest>,
    /// Who is passed over.
    pub refused: Option<&'a Refused<'a>>,
}

impl Search<'_> {
    fn came_from(&self, asked: &str) -> bool {
        self.came_from.is_some_and(|from| counts_for(from, asked))
    }
}

/// What the upstreams said instead of an answer.
pub struct Unanswered {
    /// The failure to report.
    pub report: Failure,
    /// That of the origin the record came from: it decides whether the record may stand in.
    pub own: Option<Failure>,
}

impl From<Failure> for Unanswered {
    fn from(report: Failure) -> Unanswered {
        Unanswered { report, own: None }
    }
}

impl From<Unanswered> for Failure {
    fn from(unanswered: Unanswered) -> Failure {
        unanswered.report
    }
}

/// What one upstream has: a 200, or a 206 where a range was wanted.
pub struct Answer {
    pub origin: Arc<str>,
    /// The address that a manifest named, if it is of no upstream. It may hold a signature: for no
    /// log.
    pub place: Option<Arc<str>>,
    pub response: Response,
}

impl Answer {
    /// Who was asked: an origin, or a place. Of one host, one place may be right and another wrong.
    pub fn asked(&self) -> &Arc<str> {
        self.place.as_ref().unwrap_or(&self.origin)
    }
}

/// The way of one shard to all upstreams.
#[derive(Clone)]
pub struct Sources {
    client: Rc<Client>,
    /// Swapped by a reload.
    projects: Rc<RefCell<Rc<Projects>>>,
    post: Post,
    board: Arc<Board>,
    /// Of answers that are read whole.
    pub whole: whole::Bounds,
    /// What the board shows of them, so that nobody takes its lock to look.
    levels: Rc<RefCell<Arc<Shown>>>,
    /// Second of the last warning.
    warned: Rc<Cell<Seconds>>,
}

impl Sources {
    pub fn new(
        client: Rc<Client>,
        projects: &Projects,
        post: Post,
        board: Arc<Board>,
        whole: whole::Bounds,
    ) -> Sources {
        let sources = Sources {
            client,
            projects: Rc::default(),
            post,
            board,
            whole,
            levels: Rc::default(),
            warned: Rc::default(),
        };
        sources.adopt(projects);
        sources
    }

    /// As they are now. Take them once for what must agree.
    pub fn projects(&self) -> Rc<Projects> {
        self.projects.borrow().clone()
    }

    pub fn project(&self, index: usize) -> ProjectRef {
        ProjectRef::new(self.projects(), index)
    }

    /// A reload: what is asked from now on goes by these, and these are on the board.
    pub fn adopt(&self, projects: &Projects) {
        let configured = projects.configured().flat_map(|project| {
            project.upstreams.iter().map(|(upstream, origin)| {
                let (project, origin) = (project.name.clone(), without_account(origin).into());
                (*upstream, Name { project, origin })
            })
        });
        *self.levels.borrow_mut() = self.board.adopt(configured);
        *self.projects.borrow_mut() = Rc::new(projects.clone());
    }

    /// How many times as long as configured a tag from this origin is to be trusted, by what
    /// the upstream says of its rate limit.
    pub fn stretch(&self, project: usize, origin: &str) -> u64 {
        let project = self.project(project);
        let upstreams = &project.upstreams;
        let named = upstreams.iter().find(|(_, known)| **known == *origin);
        let levels = self.levels.borrow();
        let levels = named.and_then(|(upstream, _)| levels.get(upstream));
        levels.map_or(1, |levels| levels.stretch())
    }

    /// Whether an origin of the project may be asked again for what it answered and then did not
    /// send; that costs its budget of retries.
    pub fn may_ask_again(&self, repository: &Repository, origin: &str) -> bool {
        let project = self.project(repository.project);
        let mut upstreams = project.upstreams.iter();
        let named = upstreams.find(|(_, known)| **known == *origin);
        named.is_some_and(|(upstream, _)| self.client.may_retry(*upstream))
    }

    /// The shortest `read_timeout` of the repository's upstreams.
    pub fn read_timeout(&self, repository: &Repository) -> Duration {
        let project = self.project(repository.project);
        let upstreams = project.upstreams.iter();
        let shortest = upstreams.map(|(id, _)| self.client.read_timeout(*id)).min();
        shortest.unwrap_or_default()
    }

    /// The first answer, in the order of the search. What upstreams refuse for their rate limit
    /// alone they are asked for once more, within `WAIT_MAX`.
    pub async fn first(
        &self,
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: Search<'_>,
    ) -> Result<Answer, Unanswered> {
        let project = self.project(repository.project);
        if project.is_offline() {
            let why = format!("project {} is offline", project.name);
            return Err(Failure::new(FailureKind::Offline, why).into());
        }
        let ahead = |origin: &str| search.prefer == Some(origin) || search.came_from(origin);
        let upstreams = &project.upstreams;
        let in_order = upstreams
            .iter()
            .filter(|(_, origin)| ahead(origin))
            .chain(upstreams.iter().filter(|(_, origin)| !ahead(origin)));
        let wait_max = match search.spare {
            true => SPARE_WAIT_MAX,
            false => WAIT_MAX,
        };
        let mut round = Round {
            upstreams: in_order.cloned().collect(),
            unanswered: None,
            deadline: Instant::now() + wait_max,
            urgency: match search.spare || upstreams.len() > 1 {
                true => Urgency::Prompt,
                false => Urgency::Patient,
            },
        };
        for _ in 0..ROUNDS_MAX {
            if let Some(answer) = self.go_round(repository, wanted, &search, &mut round).await {
                return Ok(answer);
            }
            round.urgency = Urgency::Patient;
        }
        let unanswered = round.unanswered.unwrap_or_else(|| {
            let why = format!("project {} has no active upstream", project.name);
            let report = Failure::new(FailureKind::Unreachable, why);
            Unanswered { report, own: None }
        });
        self.elsewhere(repository, wanted, &search, unanswered)
            .await
    }

    /// Asks each upstream of the round. Those that are left in it can be asked again later.
    async fn go_round(
        &self,
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: &Search<'_>,
        round: &mut Round,
    ) -> Option<Answer> {
        let mut held = Vec::new();
        for (upstream, origin) in std::mem::take(&mut round.upstreams) {
            let source = (upstream, &origin);
            let asked = self.ask(source, repository, wanted, search, round);
            let Refusal { failure, holds } = match asked.await {
                Ok(response) => {
                    return Some(Answer {
                        origin,
                        place: None,
                        response,
                    });
                }
                Err(refusal) => refusal,
            };
            self.log(&origin, repository, wanted.path, &failure);
            let own = search.came_from(&origin);
            let gone = matches!(failure.kind, FailureKind::NotFound | FailureKind::Denied);
            let last = own && !gone && search.stands_in.is_none_or(|may| may(&failure));
            // Refused after it was waited for, the wait would be too long.
            let refused = round.urgency == Urgency::Patient && failure.status.is_none();
            if holds && !search.spare && !refused {
                held.push((upstream, origin));
            }
            round.note(failure, own);
            if last {
                break;
            }
        }
        round.upstreams = held;
        None
    }

    /// A failure that an operator can do something about is a warning, one a second at most.
    fn log(&self, origin: &str, repository: &Repository, path: &str, error: &Failure) {
        let upstream = without_account(origin);
        let ordinary = matches!(error.kind, FailureKind::NotFound | FailureKind::Denied);
        let now = clock::now();
        if ordinary || self.warned.replace(now) == now {
            tracing::debug!(
                upstream, repository = %repository.name, path, error = %error.detail,
                "upstream has no answer"
            );
        } else {
            tracing::warn!(
                upstream, repository = %repository.name, path, error = %error.detail,
                "upstream failed"
            );
        }
    }
}

/// Once round the upstreams of a search.
struct Round {
    upstreams: Vec<(UpstreamId, Arc<str>)>,
    unanswered: Option<Unanswered>,
    /// Of waiting at gates, over all rounds.
    deadline: Instant,
    urgency: Urgency,
}

impl Round {
    fn note(&mut self, error: Failure, own: bool) {
        self.unanswered = Some(match self.unanswered.take() {
            None => Unanswered {
                own: own.then(|| error.clone()),
                report: error,
            },
            Some(before) => Unanswered {
                own: if own { Some(error.clone()) } else { before.own },
                report: Failure::worse(before.report, error),
            },
        });
    }
}

/// Where a body of this kind is found, below its repository.
pub fn body_path(kind: BodyKind, digest: &entrepot_storage::Digest) -> String {
    match kind {
        BodyKind::Manifest => format!("manifests/{digest}"),
        BodyKind::Blob => format!("blobs/{digest}"),
    }
}

/// What upstream is told we accept: one fixed list for manifests, whatever the client says, so
/// that no client can choose what is stored.
pub fn accept(kind: BodyKind) -> Option<&'static str> {
    match kind {
        BodyKind::Manifest => Some(manifest::ACCEPT),
        BodyKind::Blob => None,
    }
}

/// The media type without parameters (OCI distribution-spec: none are allowed).
pub fn content_type(head: &ResponseHead) -> Option<String> {
    let value = std::str::from_utf8(head.field("content-type")?).ok()?;
    let bare = value.split(';').next().unwrap_or(value).trim();
    (!bare.is_empty()).then(|| bare.to_ascii_lowercase())
}

/// The media type that the manifest is served as; `came_as` is the one it came with.
pub fn check_manifest(
    bytes: &[u8],
    came_as: Option<&str>,
    origin: &str,
) -> Result<&'static str, Failure> {
    match manifest::check(bytes, came_as.unwrap_or("")) {
        Ok(kind) => Ok(kind.media_type()),
        Err(error) => Err(Failure::of(FailureKind::BadBody, origin, error)),
    }
}
