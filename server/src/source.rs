//! Asks the upstreams of a project, in their order, until one has what is wanted.
//!
//! Used by `fetch` (bodies), `access` (proofs), `freshness` (tags), `listing` and `relay`. The
//! order is strict priority; a "not found", a denial and a failure all lead to the next one.
//! Which of the failures is reported is decided by `Failure::worse`.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use entrepot_storage::Seconds;

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::http::upstream_head::ResponseHead;
use crate::metrics::{Counter, Metrics};
use crate::oci::manifest;
use crate::project::{Projects, Repository};
use crate::upstream::{Body, Client, Method, Request, Response, UpstreamId};

/// What is asked of an upstream, below `/v2/<repository>/`.
pub struct Wanted<'a> {
    pub method: Method,
    /// `blobs/<digest>`, `manifests/<reference>`, `tags/list?n=5`, …
    pub path: &'a str,
    pub accept: Option<&'static str>,
    /// First byte and end (excluded); the answer may be a 206, or a 200 all the same.
    pub range: Option<(u64, u64)>,
}

/// A 200 of one upstream.
pub struct Answer {
    pub upstream: UpstreamId,
    pub origin: Arc<str>,
    pub response: Response,
}

/// The way of one shard to all upstreams.
#[derive(Clone)]
pub struct Sources {
    client: Rc<Client>,
    projects: Arc<Projects>,
    metrics: Arc<Metrics>,
    /// Second of the last warning.
    warned: Rc<Cell<Seconds>>,
}

impl Sources {
    pub fn new(client: Rc<Client>, projects: Arc<Projects>, metrics: Arc<Metrics>) -> Sources {
        Sources {
            client,
            projects,
            metrics,
            warned: Rc::default(),
        }
    }

    pub fn projects(&self) -> &Projects {
        &self.projects
    }

    /// The first 200. `prefer` is asked before the others. `stop` ends the search early, after a
    /// failure of the origin it is shown.
    pub async fn first(
        &self,
        repository: &Repository,
        prefer: Option<&str>,
        wanted: &Wanted<'_>,
        stop: impl Fn(&str, &Failure) -> bool,
    ) -> Result<Answer, Failure> {
        let project = self.projects.get(repository.project);
        let preferred = |origin: &str| prefer.is_some_and(|prefer| prefer == origin);
        let in_order = project
            .upstreams
            .iter()
            .filter(|(_, origin)| preferred(origin))
            .chain(
                project
                    .upstreams
                    .iter()
                    .filter(|(_, origin)| !preferred(origin)),
            );
        let mut failure = None;
        for (upstream, origin) in in_order {
            match self.ask(*upstream, origin, repository, wanted).await {
                Ok(response) => {
                    return Ok(Answer {
                        upstream: *upstream,
                        origin: origin.clone(),
                        response,
                    });
                }
                Err(error) => {
                    self.log(origin, repository, wanted.path, &error);
                    let last = stop(origin, &error);
                    failure = Some(Failure::worse(failure, error));
                    if last {
                        break;
                    }
                }
            }
        }
        Err(failure.unwrap_or_else(|| {
            let why = format!("project {} has no active upstream", project.name);
            Failure::new(FailureKind::Unreachable, why)
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
        origin: &str,
        repository: &Repository,
        wanted: &Wanted<'_>,
    ) -> Result<Response, Failure> {
        let request = Request {
            method: wanted.method,
            repository: repository.name.to_string(),
            path_and_query: format!("/v2/{}/{}", repository.name, wanted.path),
            accept: wanted.accept,
            range: wanted.range.map(|(start, end)| (start, Some(end - 1))),
        };
        self.metrics.count(match wanted.method {
            Method::Get => Counter::UpstreamGets,
            Method::Head => Counter::UpstreamHeads,
        });
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
    let mut bytes = Vec::new();
    loop {
        match body.read().await {
            Ok(Some(piece)) => bytes.extend_from_slice(&piece),
            Ok(None) => return Ok(bytes),
            Err(error) => {
                return Err(Failure::new(
                    FailureKind::BadBody,
                    format!("{origin}: {error}"),
                ));
            }
        }
        if bytes.len() > manifest::LEN_MAX {
            let why = format!("{origin}: a manifest over {} bytes", manifest::LEN_MAX);
            return Err(Failure::new(FailureKind::BadBody, why));
        }
    }
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
