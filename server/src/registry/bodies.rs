//! Manifests and blobs: found by `lookup`, sent by `respond`.
//!
//! The first thing tried for a digest is the index: a hit goes from here to the socket without a
//! message. What a fill brings is followed, and found anew when it was wrong.

use std::sync::Arc;

use entrepot_storage::Digest;
use entrepot_storage::disk::uring::UringDisk;

use super::{Asking, Place, reference};
use crate::clock;
use crate::cold;
use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Following};
use crate::foreign;
use crate::freshness::{Certainty, Resolved};
use crate::http::head::Method;
use crate::http::range::RangeRequest;
use crate::lookup::Found;
use crate::oci::endpoint::{Endpoint, Reference};
use crate::oci::error::Code;
use crate::oci::manifest;
use crate::project::Repository;
use crate::relay::relay;
use crate::respond::{BLOB_TYPE, CacheStatus, Exchange, Facts, Followed, Gone};

type Body = entrepot_storage::Body<UringDisk>;

/// Fills that one request follows while they bring wrong bytes. Each asks other upstreams than the
/// one before, twice, and a client waits for all of them.
const FOLLOWED_MAX: usize = 4;

/// Answers what the index alone can: no message, and nothing but the way to the socket is waited
/// for. `None`: nothing was said yet.
pub(super) async fn hit(
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
        Some(resolved) => held_by_tag(exchange, &body, &digest.to_string(), &resolved).await,
        None => {
            // The digest stands in the target as it is written in the answer.
            let text = reference(exchange.head().target);
            held(exchange, &body, text, kind, CacheStatus::Hit).await
        }
    })
}

pub(super) async fn named(
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

pub(super) async fn tagged(exchange: &mut Exchange<'_>, place: &Place<'_>, tag: &str) -> Asking {
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
                    Some(resolved) => held_by_tag(exchange, &body, text, resolved).await?,
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
async fn held_by_tag(
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
