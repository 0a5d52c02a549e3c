//! The endpoints of the OCI distribution specification, as a cache answers them.
//!
//! Called by `connection` with a parsed head. Finds the project and the repository, has `bodies` or
//! `listing` answer, counts and logs. Writes are refused (405 `UNSUPPORTED`).

mod bodies;

use std::borrow::Cow;
use std::sync::Arc;

use crate::fetch::BodyKind;
use crate::listing;
use crate::metrics::{Kind, Outcome};
use crate::oci::endpoint::{self, Endpoint, Reference};
use crate::oci::error::{self, Code};
use crate::project::{Project, Repository};
use crate::respond::{Asked, CacheStatus, Exchange, Gone};
use crate::upstream::without_account;

pub use bodies::warning;

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
    let asked = match bodies::hit(exchange, &place, &request.endpoint).await {
        Some(hit) => hit.map(|()| None),
        // In a box, since it is ten times as large as all that idle and hitting connections need.
        None => Box::pin(dispatch(exchange, &place, &request.endpoint)).await,
    };
    let upstream = asked.as_ref().ok().and_then(Option::as_deref);
    account(exchange, kind, Some((&place, upstream)), &asked);
    asked.map(drop)
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
        } => bodies::tagged(exchange, place, tag).await,
        Endpoint::Manifest {
            reference: Reference::Digest(digest),
            ..
        } => bodies::named(exchange, place, *digest, BodyKind::Manifest).await,
        Endpoint::Blob { digest, .. } => {
            bodies::named(exchange, place, *digest, BodyKind::Blob).await
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
        upstream: place
            .and_then(|(_, upstream)| upstream)
            .map_or("-", without_account),
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

/// The last path segment of a target: a tag or a digest.
fn reference(target: &str) -> &str {
    let path = target.split('?').next().unwrap_or(target);
    path.rsplit('/').next().unwrap_or(path)
}
