//! Asks the upstreams of a project, in their order, until one has what is wanted.
//!
//! Used by `fetch` (bodies), `access` (proofs), `freshness` (tags), `listing` and `relay`. The
//! order is strict priority; a "not found", a denial and a failure all lead to the next one.
//! Which of the failures is reported is decided by `Failure::worse`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::Seconds;

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::http::upstream_head::ResponseHead;
use crate::oci::manifest;
use crate::project::{ProjectRef, Projects, Repository};
use crate::upstream::{Body, Client, Method, Part, Request, Response, UpstreamId};

/// What is asked of an upstream, below `/v2/<repository>/`.
pub struct Wanted<'a> {
    pub method: Method,
    /// `blobs/<digest>`, `manifests/<reference>`, `tags/list?n=5`, …
    pub path: &'a str,
    pub accept: Option<&'static str>,
    /// The answer may be a 206, or a 200 all the same.
    pub range: Option<Part>,
}

/// Says of an origin whether it is passed over.
pub type Refused<'a> = dyn Fn(&Arc<str>) -> bool + 'a;

/// How the upstreams of a project are gone through: in their order, but for what is said here.
#[derive(Default)]
pub struct Search<'a> {
    /// Asked before the others.
    pub prefer: Option<&'a str>,
    /// Where a record came from: asked first, and the others only if it does not have it or
    /// does not give it. A failure of it is no reason to take another's namesake.
    pub came_from: Option<&'a str>,
    /// Origins that are passed over.
    pub refused: Option<&'a Refused<'a>>,
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
    pub response: Response,
}

/// The way of one shard to all upstreams.
#[derive(Clone)]
pub struct Sources {
    client: Rc<Client>,
    /// Swapped by a reload.
    projects: Rc<RefCell<Rc<Projects>>>,
    /// Second of the last warning.
    warned: Rc<Cell<Seconds>>,
}

impl Sources {
    pub fn new(client: Rc<Client>, projects: &Projects) -> Sources {
        let projects = Rc::new(RefCell::new(Rc::new(projects.clone())));
        Sources {
            client,
            projects,
            warned: Rc::default(),
        }
    }

    /// As they are now. Take them once for what must agree.
    pub fn projects(&self) -> Rc<Projects> {
        self.projects.borrow().clone()
    }

    pub fn project(&self, index: usize) -> ProjectRef {
        ProjectRef::new(self.projects(), index)
    }

    /// A reload: what is asked from now on goes by these.
    pub fn adopt(&self, projects: &Projects) {
        *self.projects.borrow_mut() = Rc::new(projects.clone());
    }

    /// The first answer, in the order of the search.
    pub async fn first(
        &self,
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: Search<'_>,
    ) -> Result<Answer, Unanswered> {
        let project = self.project(repository.project);
        let ahead =
            |origin: &str| search.prefer == Some(origin) || search.came_from == Some(origin);
        let upstreams = &project.upstreams;
        let in_order = upstreams
            .iter()
            .filter(|(_, origin)| ahead(origin))
            .chain(upstreams.iter().filter(|(_, origin)| !ahead(origin)));
        let mut unanswered: Option<Unanswered> = None;
        for (upstream, origin) in in_order {
            let error = match self
                .ask(*upstream, origin, repository, wanted, &search)
                .await
            {
                Ok(response) => {
                    let origin = origin.clone();
                    return Ok(Answer { origin, response });
                }
                Err(error) => error,
            };
            self.log(origin, repository, wanted.path, &error);
            let own = search.came_from == Some(&**origin);
            let last = own && !matches!(error.kind, FailureKind::NotFound | FailureKind::Denied);
            unanswered = Some(match unanswered {
                None => Unanswered {
                    own: own.then(|| error.clone()),
                    report: error,
                },
                Some(before) => Unanswered {
                    own: if own { Some(error.clone()) } else { before.own },
                    report: Failure::worse(before.report, error),
                },
            });
            if last {
                break;
            }
        }
        Err(unanswered.unwrap_or_else(|| {
            let why = format!("project {} has no active upstream", project.name);
            let report = Failure::new(FailureKind::Unreachable, why);
            Unanswered { report, own: None }
        }))
    }

    /// A failure that an operator can do something about is a warning, one a second at most.
    fn log(&self, origin: &str, repository: &Repository, path: &str, error: &Failure) {
        let ordinary = matches!(error.kind, FailureKind::NotFound | FailureKind::Denied);
        let now = clock::now();
        if ordinary || self.warned.replace(now) == now {
            tracing::debug!(
                upstream = %origin, repository = %repository.name, path, error = %error.detail,
                "upstream has no answer"
            );
        } else {
            tracing::warn!(
                upstream = %origin, repository = %repository.name, path, error = %error.detail,
                "upstream failed"
            );
        }
    }

    async fn ask(
        &self,
        upstream: UpstreamId,
        origin: &Arc<str>,
        repository: &Repository,
        wanted: &Wanted<'_>,
        search: &Search<'_>,
    ) -> Result<Response, Failure> {
        if search.refused.is_some_and(|refused| refused(origin)) {
            let why = format!("{origin} sent wrong bytes for {} a moment ago", wanted.path);
            return Err(Failure::new(FailureKind::BadBody, why));
        }
        let request = Request {
            method: wanted.method,
            repository: repository.name.to_string(),
            path_and_query: format!("/v2/{}/{}", repository.name, wanted.path),
            accept: wanted.accept,
            range: wanted.range.clone().map(|part| Part {
                if_range: part.if_range.filter(|known| known.origin == *origin),
                ..part
            }),
        };
        match self.client.send(upstream, &request).await {
            Ok(response) if response.status == 200 => Ok(response),
            Ok(response) if response.status == 206 && wanted.range.is_some() => Ok(response),
            Ok(response) => Err(Failure::status(
                origin,
                response.status,
                response.head.field("retry-after"),
            )),
            Err(error) => Err(Failure::upstream(origin, &error)),
        }
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

/// Collects a manifest, which is small by its definition.
pub async fn read_manifest(body: &mut Body, origin: &str) -> Result<Vec<u8>, Failure> {
    body.collect(manifest::LEN_MAX)
        .await
        .map_err(|error| Failure::new(FailureKind::BadBody, format!("{origin}: {error}")))
}

pub fn check_manifest(bytes: &[u8], media_type: Option<&str>, origin: &str) -> Result<(), Failure> {
    match manifest::check(bytes, media_type.unwrap_or("")) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::new(
            FailureKind::BadBody,
            format!("{origin}: {error}"),
        )),
    }
}
