//! The endpoints of the OCI distribution specification, as a cache answers them.
//!
//! Called by `connection` with a parsed head. Finds the project and repository, asks `lookup`
//! for bytes and hands them to `respond`. Writes are refused (405 `UNSUPPORTED`). The first
//! thing tried for a digest is the index: a hit goes from here to the socket without a message.

use std::borrow::Cow;
use std::sync::Arc;

use entrepot_storage::Digest;
use entrepot_storage::disk::uring::UringDisk;

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::freshness::{Certainty, Resolved};
use crate::http::head::Method;
use crate::listing;
use crate::lookup::Found;
use crate::metrics::{Kind, Outcome};
use crate::oci::endpoint::{self, Endpoint, Reference};
use crate::oci::error::{self, Code};
use crate::oci::manifest;
use crate::project::{Project, Repository};
use crate::relay::relay;
use crate::respond::{Asked, BLOB_TYPE, CacheStatus, Exchange, Facts, Gone};

type Body = entrepot_storage::Body<UringDisk>;

/// Answers one request.
pub async fn answer(exchange: &mut Exchange<'_>) -> Result<(), Gone> {
    let head = exchange.head();
    let request = match endpoint::parse(head.method, head.target) {
        Ok(request) => request,
        Err(route) => {
            let (status, code) = error::answer(route);
            exchange
                .service
                .metrics
                .request(Kind::Other, Outcome::Error);
            return exchange.error(status, code, &route.to_string(), None).await;
        }
    };
    exchange.namespace = request.ns.as_deref().map(str::to_owned);
    let (name, kind) = match request.endpoint {
        Endpoint::Base => {
            exchange.service.metrics.request(Kind::Base, Outcome::Hit);
            return exchange.document("application/json", &[], b"{}").await;
        }
        Endpoint::Catalog => {
            let why = "a cache cannot list the repositories of its upstreams";
            exchange
                .service
                .metrics
                .request(Kind::Other, Outcome::Error);
            return exchange.error(404, Code::Unsupported, why, None).await;
        }
        Endpoint::Upload { .. } => {
            let why = "this is a pull-through cache: push to the upstream registry";
            exchange
                .service
                .metrics
                .request(Kind::Other, Outcome::Error);
            return exchange.error(405, Code::Unsupported, why, None).await;
        }
        Endpoint::Manifest {
            name,
            reference: Reference::Tag(_),
        } => (name, Kind::Tag),
        Endpoint::Manifest { name, .. } => (name, Kind::Manifest),
        Endpoint::Blob { name, .. } => (name, Kind::Blob),
        Endpoint::Tags { name, .. } | Endpoint::Referrers { name, .. } => (name, Kind::Listing),
    };
    let service = exchange.service.clone();
    let projects = service.lookup.sources.projects();
    let Some((index, name)) = projects.resolve(request.prefix, request.ns.as_deref(), name) else {
        let why = format!("no project serves {name}; see [project.*] in the configuration");
        service.metrics.request(kind, Outcome::Error);
        return exchange.error(404, Code::NameUnknown, &why, None).await;
    };
    let place = Place {
        project: projects.get(index),
        index,
        name,
    };
    let upstream = match request.endpoint {
        Endpoint::Manifest {
            reference: Reference::Tag(tag),
            ..
        } => tag_manifest(exchange, &place, tag).await,
        Endpoint::Manifest {
            reference: Reference::Digest(digest),
            ..
        } => digest_body(exchange, &place, digest, BodyKind::Manifest).await,
        Endpoint::Blob { digest, .. } => {
            digest_body(exchange, &place, digest, BodyKind::Blob).await
        }
        Endpoint::Tags { query, .. } => {
            listing::answer(
                exchange,
                &place.source(),
                "tags/list",
                &query,
                Code::NameUnknown,
            )
            .await
        }
        Endpoint::Referrers { digest, query, .. } => {
            let path = format!("referrers/{digest}");
            listing::answer(
                exchange,
                &place.source(),
                &path,
                &query,
                Code::ManifestUnknown,
            )
            .await
        }
        Endpoint::Base | Endpoint::Catalog | Endpoint::Upload { .. } => Ok(None),
    }?;
    count(exchange, kind);
    exchange.log(&Asked {
        project: &place.project.name,
        repository: &place.name,
        reference: reference(exchange.head().target),
        kind: kind.label(),
        upstream: upstream.as_deref().unwrap_or("-"),
    });
    Ok(())
}

/// Where a request points: a project, and a repository by upstream's name.
struct Place<'a> {
    project: &'a Project,
    index: usize,
    name: Cow<'a, str>,
}

impl Place<'_> {
    fn source(&self) -> Repository {
        Repository {
            project: self.index,
            name: Arc::from(&*self.name),
        }
    }
}

/// Origin that was asked, for the log.
type Asking = Result<Option<Arc<str>>, Gone>;

async fn digest_body(
    exchange: &mut Exchange<'_>,
    place: &Place<'_>,
    digest: Digest,
    kind: BodyKind,
) -> Asking {
    let service = exchange.service.clone();
    // The digest stands in the target as it is written in the answer.
    let text = reference(exchange.head().target);
    if let Some(body) = service.lookup.hit(place.index, &place.name, &digest)
        && let Some(body) = service.lookup.with_bytes(&digest, body).await
    {
        return held(exchange, &body, text, kind, CacheStatus::Hit)
            .await
            .map(|()| None);
    }
    let source = place.source();
    let unknown = unknown(kind);
    if exchange.head().method == Method::Head
        && service.lookup.store.body(&digest, clock::now()).is_none()
    {
        return match service.lookup.prove(&source, digest, kind).await {
            Ok(proven) => {
                let media_type = proven.media_type.as_deref().unwrap_or(BLOB_TYPE);
                let facts = facts(text, media_type, CacheStatus::Passed, kind);
                match proven.len {
                    Some(len) => exchange.remote(&facts, len).await.map(|()| None),
                    None => {
                        let why = "upstream does not tell the length";
                        let failure = Failure::new(FailureKind::ServerError, why);
                        exchange.failure(&failure, unknown).await.map(|()| None)
                    }
                }
            }
            Err(failure) => exchange.failure(&failure, unknown).await.map(|()| None),
        };
    }
    match service.lookup.body(&source, digest, kind, None).await {
        Ok(found) => send(exchange, &source, found, digest, text, kind, None).await,
        Err(failure) => exchange.failure(&failure, unknown).await.map(|()| None),
    }
}

async fn tag_manifest(exchange: &mut Exchange<'_>, place: &Place<'_>, tag: &str) -> Asking {
    let service = exchange.service.clone();
    let source = place.source();
    let unknown = Code::ManifestUnknown;
    let resolved = match service.lookup.tag(&source, tag, exchange.is_head()).await {
        Ok(resolved) => resolved,
        Err(failure) => return exchange.failure(&failure, unknown).await.map(|()| None),
    };
    let text = resolved.digest.to_string();
    let origin = Some(resolved.origin.clone());
    if let Some(remote) = &resolved.remote {
        let facts = facts(
            &text,
            &remote.media_type,
            CacheStatus::Passed,
            BodyKind::Manifest,
        );
        return exchange.remote(&facts, remote.len).await.map(|()| origin);
    }
    let kind = BodyKind::Manifest;
    let prefer = Some(resolved.origin.clone());
    match service
        .lookup
        .body(&source, resolved.digest, kind, prefer)
        .await
    {
        Ok(found) => {
            send(
                exchange,
                &source,
                found,
                resolved.digest,
                &text,
                kind,
                Some(&resolved),
            )
            .await?;
            Ok(origin)
        }
        Err(failure) => exchange.failure(&failure, unknown).await.map(|()| origin),
    }
}

/// Sends what `lookup` found.
async fn send(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    found: Found,
    digest: Digest,
    text: &str,
    kind: BodyKind,
    resolved: Option<&Resolved>,
) -> Asking {
    match found {
        Found::Held { body, asked } => {
            let cache = if asked {
                CacheStatus::Collapsed
            } else {
                CacheStatus::Hit
            };
            match resolved {
                Some(resolved) => tagged(exchange, &body, text, resolved).await?,
                None => held(exchange, &body, text, kind, cache).await?,
            }
            Ok(None)
        }
        Found::Follow(following) => {
            let cache = match (following.collapsed, following.staged) {
                (true, _) => CacheStatus::Collapsed,
                (false, true) => CacheStatus::Passed,
                (false, false) => CacheStatus::Miss,
            };
            let origin = following.origin.clone();
            let media_type = match kind {
                BodyKind::Manifest => following.media_type.clone(),
                BodyKind::Blob => None,
            };
            let media_type = media_type.as_deref().unwrap_or(BLOB_TYPE);
            exchange
                .follow(following, &facts(text, media_type, cache, kind))
                .await?;
            Ok(Some(origin))
        }
        Found::Relay => relay(exchange, source, digest, kind, text)
            .await
            .map(|()| None),
    }
}

/// A held body that was asked for by its digest.
async fn held(
    exchange: &mut Exchange<'_>,
    body: &Body,
    text: &str,
    kind: BodyKind,
    cache: CacheStatus,
) -> Result<(), Gone> {
    match media_type(body, kind) {
        Some(media_type) => {
            exchange
                .held(body, &facts(text, &media_type, cache, kind))
                .await
        }
        None => {
            let why = "the digest names a blob and not a manifest";
            exchange.error(404, Code::ManifestUnknown, why, None).await
        }
    }
}

/// A held manifest that was asked for by its tag.
async fn tagged(
    exchange: &mut Exchange<'_>,
    body: &Body,
    text: &str,
    resolved: &Resolved,
) -> Result<(), Gone> {
    let Some(media_type) = media_type(body, BodyKind::Manifest) else {
        let why = "the tag names a blob and not a manifest";
        return exchange.error(404, Code::ManifestUnknown, why, None).await;
    };
    let (cache, warning) = match &resolved.certainty {
        Certainty::Fresh => (CacheStatus::Hit, None),
        Certainty::Revalidated if resolved.collapsed => (CacheStatus::Collapsed, None),
        Certainty::Revalidated => (CacheStatus::Revalidated, None),
        Certainty::Changed if resolved.collapsed => (CacheStatus::Collapsed, None),
        Certainty::Changed => (CacheStatus::Miss, None),
        Certainty::Stale(failure) => (CacheStatus::Stale, Some(warning(&failure.detail))),
    };
    let facts = Facts {
        digest: text,
        media_type: &media_type,
        cache,
        age_s: Some(clock::now().saturating_sub(resolved.checked)),
        warning: warning.as_deref(),
        ranges: false,
    };
    exchange.held(body, &facts).await
}

fn facts<'a>(
    digest: &'a str,
    media_type: &'a str,
    cache: CacheStatus,
    kind: BodyKind,
) -> Facts<'a> {
    let ranges = kind == BodyKind::Blob;
    Facts {
        digest,
        media_type,
        cache,
        age_s: None,
        warning: None,
        ranges,
    }
}

/// What a held body is sent as. `None` when a manifest is wanted and it is none.
fn media_type(body: &Body, kind: BodyKind) -> Option<Cow<'_, str>> {
    if kind == BodyKind::Blob {
        return Some(Cow::Borrowed(BLOB_TYPE));
    }
    if let Some(media_type) = body.media_type.as_deref()
        && manifest::is_manifest_type(media_type)
    {
        return Some(Cow::Borrowed(media_type));
    }
    // It came through the blob endpoint first; the document itself tells what it is.
    let kind = manifest::check(body.bytes.as_deref()?, "").ok()?;
    Some(Cow::Borrowed(kind.media_type()))
}

/// Text of a `Warning: 299` (distribution-spec: at most 4096 bytes in all), without what would
/// end its quotes.
pub fn warning(detail: &str) -> String {
    const TEXT_LEN_MAX: usize = 512;
    let text: String = detail
        .chars()
        .filter(|c| !c.is_control() && !matches!(c, '"' | '\\') && c.is_ascii())
        .take(TEXT_LEN_MAX)
        .collect();
    format!("served from the cache, upstream could not be asked: {text}")
}

/// The last path segment of a target: a tag or a digest.
fn reference(target: &str) -> &str {
    let path = target.split('?').next().unwrap_or(target);
    path.rsplit('/').next().unwrap_or(path)
}

fn unknown(kind: BodyKind) -> Code {
    match kind {
        BodyKind::Manifest => Code::ManifestUnknown,
        BodyKind::Blob => Code::BlobUnknown,
    }
}

fn count(exchange: &Exchange<'_>, kind: Kind) {
    let outcome = match (exchange.sent().0, &exchange.cache) {
        (status, _) if status >= 400 => Outcome::Error,
        (_, Some(CacheStatus::Miss | CacheStatus::Passed)) => Outcome::Miss,
        (_, Some(CacheStatus::Collapsed)) => Outcome::Collapsed,
        (_, Some(CacheStatus::Revalidated)) => Outcome::Revalidated,
        (_, Some(CacheStatus::Stale)) => Outcome::Stale,
        (_, Some(CacheStatus::Hit) | None) => Outcome::Hit,
    };
    exchange.service.metrics.request(kind, outcome);
}
