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
use crate::cold;
use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Following};
use crate::foreign;
use crate::freshness::{Certainty, Resolved};
use crate::http::head::Method;
use crate::http::range::RangeRequest;
use crate::listing;
use crate::lookup::Found;
use crate::metrics::{Kind, Outcome};
use crate::oci::endpoint::{self, Endpoint, Reference};
use crate::oci::error::{self, Code};
use crate::oci::manifest;
use crate::project::{Project, Repository};
use crate::relay::relay;
use crate::respond::{Asked, BLOB_TYPE, CacheStatus, Exchange, Facts, Followed, Gone};

type Body = entrepot_storage::Body<UringDisk>;

/// Fills that one request follows while they bring wrong bytes. Each asks other upstreams than the
/// one before, twice, and a client waits for all of them.
const FOLLOWED_MAX: usize = 4;

/// Answers one request, counts it and logs it.
pub async fn answer(exchange: &mut Exchange<'_>) -> Result<(), Gone> {
    let head = exchange.head();
    let request = match endpoint::parse(head.method, head.target) {
        Ok(request) => request,
        Err(route) => {
            let (status, code) = error::answer(route);
            return refuse(exchange, Kind::Other, status, code, &route.to_string()).await;
        }
    };
    exchange.namespace = request.ns.as_deref().map(str::to_owned);
    let kind = match request.endpoint {
        Endpoint::Base => {
            let answered = exchange.document("application/json", &[], b"{}").await;
            account(exchange, Kind::Base, None, &answered);
            return answered;
        }
        Endpoint::Catalog => {
            let why = "a cache cannot list the repositories of its upstreams";
            return refuse(exchange, Kind::Other, 404, Code::Unsupported, why).await;
        }
        Endpoint::Upload { .. } => {
            let why = "this is a pull-through cache: push to the upstream registry";
            return refuse(exchange, Kind::Other, 405, Code::Unsupported, why).await;
        }
        Endpoint::Manifest {
            reference: Reference::Tag(_),
            ..
        } => Kind::Tag,
        Endpoint::Manifest { .. } => Kind::Manifest,
        Endpoint::Blob { .. } => Kind::Blob,
        Endpoint::Tags { .. } | Endpoint::Referrers { .. } => Kind::Listing,
    };
    let service = exchange.service.clone();
    let projects = service.lookup.sources.projects();
    let name = request.endpoint.name();
    let Some((index, name)) = projects.resolve(request.prefix, request.ns.as_deref(), name) else {
        let why = format!("no project serves {name}; see [project.*] in the configuration");
        return refuse(exchange, kind, 404, Code::NameUnknown, &why).await;
    };
    let project = projects.get(index);
    let place = Place {
        project,
        index,
        name,
    };
    if !project.permits(&place.name) {
        // Said as what it is: a client that takes 404 for an answer would look for a typing error.
        let why = format!("project {} does not serve {}", project.name, place.name);
        let answered = exchange.error(403, Code::Denied, &why, None).await;
        account(exchange, kind, Some((&place, None)), &answered);
        return answered;
    }
    let asked = match hit(exchange, &place, &request.endpoint).await {
        Some(hit) => hit.map(|()| None),
        // In a box, since it is ten times as large as all that idle and hitting connections need.
        None => Box::pin(dispatch(exchange, &place, &request.endpoint)).await,
    };
    let upstream = asked.as_ref().ok().and_then(Option::as_deref);
    account(exchange, kind, Some((&place, upstream)), &asked);
    asked.map(drop)
}

/// Answers what the index alone can: no message, and nothing but the way to the socket is waited
/// for. `None`: nothing was said yet.
async fn hit(
    exchange: &mut Exchange<'_>,
    place: &Place<'_>,
    endpoint: &Endpoint<'_>,
) -> Option<Result<(), Gone>> {
    let lookup = &exchange.service.clone().lookup;
    let (digest, kind, resolved) = match endpoint {
        // What is in a manifest of such a project is noted first: see `foreign`.
        Endpoint::Manifest { .. } if place.project.has_foreign_layers() => return None,
        Endpoint::Manifest { reference, .. } => match reference {
            Reference::Digest(digest) => (*digest, BodyKind::Manifest, None),
            Reference::Tag(tag) => {
                let resolved = lookup.fresh(&place.source(), tag)?;
                (resolved.digest, BodyKind::Manifest, Some(resolved))
            }
        },
        Endpoint::Blob { digest, .. } => (*digest, BodyKind::Blob, None),
        _ => return None,
    };
    let body = lookup.hit(place.index, &place.name, &digest)?;
    Some(match resolved {
        Some(resolved) => tagged(exchange, &body, &digest.to_string(), &resolved).await,
        None => {
            // The digest stands in the target as it is written in the answer.
            let text = reference(exchange.head().target);
            held(exchange, &body, text, kind, CacheStatus::Hit).await
        }
    })
}

async fn dispatch(
    exchange: &mut Exchange<'_>,
    place: &Place<'_>,
    endpoint: &Endpoint<'_>,
) -> Asking {
    match endpoint {
        Endpoint::Manifest {
            reference: Reference::Tag(tag),
            ..
        } => tag_manifest(exchange, place, tag).await,
        Endpoint::Manifest {
            reference: Reference::Digest(digest),
            ..
        } => digest_body(exchange, place, *digest, BodyKind::Manifest).await,
        Endpoint::Blob { digest, .. } => {
            digest_body(exchange, place, *digest, BodyKind::Blob).await
        }
        Endpoint::Tags { query, .. } => {
            let unknown = Code::NameUnknown;
            listing::answer(exchange, &place.source(), "tags/list", query, unknown).await
        }
        Endpoint::Referrers { digest, query, .. } => {
            let path = format!("referrers/{digest}");
            let unknown = Code::ManifestUnknown;
            listing::answer(exchange, &place.source(), &path, query, unknown).await
        }
        Endpoint::Base | Endpoint::Catalog | Endpoint::Upload { .. } => Ok(None),
    }
}

async fn refuse(
    exchange: &mut Exchange<'_>,
    kind: Kind,
    status: u16,
    code: Code,
    why: &str,
) -> Result<(), Gone> {
    let answered = exchange.error(status, code, why, None).await;
    account(exchange, kind, None, &answered);
    answered
}

/// Counts and logs a request, whole or not.
fn account<T>(
    exchange: &Exchange<'_>,
    kind: Kind,
    place: Option<(&Place<'_>, Option<&str>)>,
    answered: &Result<T, Gone>,
) {
    let outcome = match (answered, exchange.sent().0, &exchange.cache) {
        (Err(Gone), ..) => Outcome::Cut,
        (_, status, _) if status >= 400 => Outcome::Error,
        (_, _, Some(CacheStatus::Miss | CacheStatus::Passed)) => Outcome::Miss,
        (_, _, Some(CacheStatus::Collapsed)) => Outcome::Collapsed,
        (_, _, Some(CacheStatus::Revalidated)) => Outcome::Revalidated,
        (_, _, Some(CacheStatus::Stale)) => Outcome::Stale,
        (_, _, Some(CacheStatus::Hit) | None) => Outcome::Hit,
    };
    exchange.service.metrics.request(kind, outcome);
    exchange.log(&Asked {
        project: place.map_or("-", |(place, _)| &place.project.name),
        repository: place.map_or("-", |(place, _)| &place.name),
        reference: reference(exchange.head().target),
        kind: kind.label(),
        upstream: place.and_then(|(_, upstream)| upstream).unwrap_or("-"),
        outcome,
    });
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
    let text = reference(exchange.head().target);
    let source = place.source();
    let unknown = kind.unknown();
    if exchange.head().method == Method::Head && service.lookup.store.body(&digest).is_none() {
        return match service.lookup.prove(&source, digest, kind, None).await {
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
    if exchange.wanted_range(&facts(text, BLOB_TYPE, CacheStatus::Passed, kind))
        != RangeRequest::None
    {
        return ranged_blob(exchange, &source, digest, text).await;
    }
    match service.lookup.body(&source, digest, kind, None).await {
        Ok(found) => send(exchange, &source, found, digest, text, kind, None).await,
        Err(failure) => exchange.failure(&failure, unknown).await.map(|()| None),
    }
}

/// A range of a blob that the index alone does not have.
async fn ranged_blob(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    digest: Digest,
    text: &str,
) -> Asking {
    let service = exchange.service.clone();
    let (kind, unknown) = (BodyKind::Blob, Code::BlobUnknown);
    let following = match service.lookup.ranged(source, digest).await {
        Ok(Found::Follow(following)) => Some(following),
        Ok(Found::Relay | Found::Cold) => None,
        Ok(found) => return send(exchange, source, found, digest, text, kind, None).await,
        Err(failure) => return exchange.failure(&failure, unknown).await.map(|()| None),
    };
    let origin = following.as_ref().map(|following| following.origin.clone());
    let cache = following.as_ref().map_or(CacheStatus::Passed, followed);
    let facts = facts(text, BLOB_TYPE, cache, kind);
    match cold::answer(exchange, source, digest, &facts, following).await? {
        cold::Outcome::Answered => Ok(origin),
        // What has to be downloaded whole is kept, whatever the rule.
        cold::Outcome::Whole => match service.lookup.body(source, digest, kind, None).await {
            Ok(found) => send(exchange, source, found, digest, text, kind, None).await,
            Err(failure) => exchange.failure(&failure, unknown).await.map(|()| None),
        },
    }
}

/// What a follower's answer says of the cache.
fn followed(following: &Following) -> CacheStatus {
    match (following.staged, following.collapsed) {
        (true, _) => CacheStatus::Passed,
        (false, true) => CacheStatus::Collapsed,
        (false, false) => CacheStatus::Miss,
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

/// Sends what `lookup` found, and finds it anew when a fill brought wrong bytes before the client
/// was told anything.
async fn send(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    mut found: Found,
    digest: Digest,
    text: &str,
    kind: BodyKind,
    resolved: Option<&Resolved>,
) -> Asking {
    let service = exchange.service.clone();
    for _ in 0..FOLLOWED_MAX {
        if kind == BodyKind::Manifest {
            foreign::note(&service, source, digest, &mut found).await;
        }
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
                return Ok(None);
            }
            Found::Follow(following) => {
                let (origin, ended_by) = (following.origin.clone(), following.ended_by.clone());
                match follow(exchange, following, text, kind).await? {
                    Followed::Answered => return Ok(ended_by.get().cloned().or(Some(origin))),
                    Followed::Mismatched => {}
                }
            }
            Found::Relay | Found::Cold => {
                relay(exchange, source, digest, kind, text).await?;
                return Ok(None);
            }
        }
        found = match service.lookup.body(source, digest, kind, None).await {
            Ok(found) => found,
            Err(failure) => {
                return exchange
                    .failure(&failure, kind.unknown())
                    .await
                    .map(|()| None);
            }
        };
    }
    let failure = Failure::new(FailureKind::BadBody, "every upstream sent wrong bytes");
    exchange.failure(&failure, kind.unknown()).await?;
    Ok(None)
}

async fn follow(
    exchange: &mut Exchange<'_>,
    following: Following,
    text: &str,
    kind: BodyKind,
) -> Result<Followed, Gone> {
    let cache = followed(&following);
    let media_type = match kind {
        BodyKind::Manifest => following.media_type.clone(),
        BodyKind::Blob => None,
    };
    let media_type = media_type.as_deref().unwrap_or(BLOB_TYPE);
    let facts = facts(text, media_type, cache, kind);
    exchange.follow(following, &facts).await
}

/// A held body that was asked for by its digest.
async fn held(
    exchange: &mut Exchange<'_>,
    body: &Body,
    text: &str,
    kind: BodyKind,
    cache: CacheStatus,
) -> Result<(), Gone> {
    if kind == BodyKind::Blob {
        return exchange
            .held(body, &facts(text, BLOB_TYPE, cache, kind))
            .await;
    }
    match manifest_type(exchange, body).await {
        Some(media_type) => {
            let facts = facts(text, &media_type, cache, kind);
            exchange.held(body, &facts).await
        }
        None => {
            let why = "the digest names a blob and not a manifest";
            exchange.error(404, Code::ManifestUnknown, why, None).await
        }
    }
}

/// What a held manifest is sent as; `None` when the body is no manifest. One that came through
/// the blob endpoint has no type yet: the document itself tells it.
async fn manifest_type(exchange: &Exchange<'_>, body: &Body) -> Option<Arc<str>> {
    if let Some(media_type) = &body.media_type {
        return Some(media_type.clone());
    }
    if body.len > exchange.service.lookup.sources.whole.len_max() {
        return None;
    }
    let bytes = exchange.service.warmer.read(body).await?;
    let kind = manifest::detect(&bytes).ok()?;
    Some(kind.media_type().into())
}

/// A held manifest that was asked for by its tag.
async fn tagged(
    exchange: &mut Exchange<'_>,
    body: &Body,
    text: &str,
    resolved: &Resolved,
) -> Result<(), Gone> {
    let Some(media_type) = manifest_type(exchange, body).await else {
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
