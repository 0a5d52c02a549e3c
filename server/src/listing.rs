//! `tags/list` and `referrers`: forwarded, with the last answer kept for when upstream is down.
//!
//! Called by `registry`. These answers change without notice and are small, so each request asks
//! upstream; what it said is stored like a tag (a name in the repository that points to the
//! digest of the answer) and served with a warning while upstream can't be asked.

use std::sync::Arc;

use bytes::Bytes;
use entrepot_storage::{Digest, TagKey, TagKeyRef, TagKind, TagRecord};

use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::mailbox::Message;
use crate::oci::error::Code;
use crate::project::{Repository, digest_owner};
use crate::registry::warning;
use crate::respond::{CacheStatus, Exchange, Gone};
use crate::source::{Answer, Search, Unanswered, Wanted, content_type};
use crate::upstream::Method;
use crate::whole::{Until, Whole};

/// Listings that may be under way on a shard; each holds a few times its length.
const LISTINGS_MAX: usize = 32;
/// Says which filters upstream applied to referrers (distribution-spec).
const FILTERS_APPLIED: &str = "OCI-Filters-Applied";

struct Listing {
    whole: Whole,
    media_type: String,
    /// `Link`, `OCI-Filters-Applied` and the media type, one a line.
    note: String,
    origin: Arc<str>,
}

pub async fn answer(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    path: &str,
    query: &str,
    unknown: Code,
) -> Result<Option<Arc<str>>, Gone> {
    let service = exchange.service.clone();
    let Some(_permit) = service.permit(&service.listings, LISTINGS_MAX) else {
        let busy = Failure::busy("listings of this core");
        return exchange.failure(&busy, unknown).await.map(|()| None);
    };
    let query = known_parameters(query);
    let path = match query.is_empty() {
        true => path.to_owned(),
        false => format!("{path}?{query}"),
    };
    let kept = kept(exchange, source, &path);
    match forward(exchange, source, &path, kept.as_ref()).await {
        Ok(listing) => {
            remember(exchange, source, &path, &listing).await;
            exchange.cache = Some(CacheStatus::Miss);
            let note = Note::parse(&listing.note);
            let link = note
                .link
                .map(|link| local_link(exchange.head().target, link));
            let fields = fields(link.as_deref(), note.filters, None);
            exchange
                .document(&listing.media_type, &fields, &listing.whole.bytes)
                .await?;
            Ok(Some(listing.origin))
        }
        Err(unanswered) => stale(exchange, source, kept, unanswered, unknown)
            .await
            .map(|()| None),
    }
}

/// The parameters of the specification; others would only make more answers to keep.
fn known_parameters(query: &str) -> String {
    let known = ["n", "last", "artifactType"];
    let pairs = query.split('&').filter(|pair| {
        let name = pair.split('=').next().unwrap_or_default();
        known.contains(&name)
    });
    pairs.collect::<Vec<_>>().join("&")
}

/// The last answer, if its upstream still counts.
fn kept(exchange: &Exchange<'_>, source: &Repository, path: &str) -> Option<TagRecord> {
    let lookup = &exchange.service.lookup;
    let project = lookup.sources.project(source.project);
    let key = TagKeyRef {
        project: &project.name,
        repository: &source.name,
        kind: TagKind::Listing,
        name: path,
    };
    let record = lookup.store.tag(key);
    record.filter(|record| project.trusts(&record.origin))
}

async fn forward(
    exchange: &Exchange<'_>,
    source: &Repository,
    path: &str,
    kept: Option<&TagRecord>,
) -> Result<Listing, Unanswered> {
    let wanted = Wanted {
        method: Method::Get,
        path,
        accept: None,
        range: None,
    };
    let sources = &exchange.service.lookup.sources;
    let stands_in =
        |failure: &Failure| kept.is_some_and(|kept| may_stand_in(exchange, source, kept, failure));
    let search = Search {
        came_from: kept.map(|kept| &*kept.origin),
        spare: FailureKind::is_spare(stands_in),
        stands_in: Some(&stands_in),
        ..Search::default()
    };
    let mut answer = sources.first(source, &wanted, search).await?;
    let Answer {
        origin, response, ..
    } = &mut answer;
    let collected = sources.whole.collect(response, origin, Until::Sent);
    let whole = collected.await.map_err(|report| Unanswered {
        own: Some(report.clone()),
        report,
    })?;
    let field = |name| {
        let value = answer.response.head.field(name).unwrap_or_default();
        String::from_utf8_lossy(value).replace('\n', " ")
    };
    let media_type = content_type(&answer.response.head).unwrap_or("application/json".to_owned());
    Ok(Listing {
        whole,
        note: format!(
            "{}\n{}\n{media_type}",
            field("link"),
            field("oci-filters-applied")
        ),
        media_type,
        origin: answer.origin,
    })
}

/// Keeps the answer for later; without room there is just none.
async fn remember(exchange: &Exchange<'_>, source: &Repository, path: &str, listing: &Listing) {
    let lookup = &exchange.service.lookup;
    let digest = Digest::sha256(&listing.whole.bytes);
    let owner = digest_owner(&digest, lookup.post().shards());
    let held = lookup
        .post()
        .ask(owner, |reply| Message::Hold {
            digest,
            media_type: String::new(),
            bytes: Bytes::copy_from_slice(&listing.whole.bytes),
            reply,
        })
        .await;
    if !matches!(held, Ok(Ok(()))) {
        return;
    }
    let key = TagKey {
        project: Box::from(&*lookup.sources.project(source.project).name),
        repository: Box::from(&*source.name),
        kind: TagKind::Listing,
        name: path.into(),
    };
    let record = TagRecord {
        digest,
        origin: listing.origin.clone(),
        checked: clock::now(),
        note: listing.note.as_str().into(),
    };
    let owner = lookup.owner(source);
    lookup
        .post()
        .tell(owner, |reply| Message::Listing { key, record, reply })
        .await;
}

/// Whether the last answer is held and may be given instead of this failure.
fn may_stand_in(
    exchange: &Exchange<'_>,
    source: &Repository,
    kept: &TagRecord,
    failure: &Failure,
) -> bool {
    let lookup = &exchange.service.lookup;
    let allowed = lookup.sources.project(source.project).stale_for(failure);
    let age_s = clock::now().saturating_sub(kept.checked);
    age_s < allowed.as_secs() && lookup.store.body(&kept.digest).is_some()
}

async fn stale(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    kept: Option<TagRecord>,
    unanswered: Unanswered,
    unknown: Code,
) -> Result<(), Gone> {
    let service = exchange.service.clone();
    let failure = unanswered.report;
    let judged = unanswered.own.as_ref().unwrap_or(&failure);
    let now = clock::now();
    let kept = kept.filter(|record| may_stand_in(exchange, source, record, judged));
    let body = kept
        .as_ref()
        .and_then(|record| service.lookup.store.body(&record.digest));
    let (Some(record), Some(body)) = (kept, body) else {
        return exchange.failure(&failure, unknown).await;
    };
    let read = service.warmer.read(&body).await;
    // Nobody may have read it since it was written.
    let Some(bytes) = read.filter(|bytes| Digest::sha256(bytes) == record.digest) else {
        return exchange.failure(&failure, unknown).await;
    };
    exchange.cache = Some(CacheStatus::Stale);
    let age = now.saturating_sub(record.checked).to_string();
    let text = format!("299 - \"{}\"", warning(&failure.detail));
    let note = Note::parse(&record.note);
    let link = note
        .link
        .map(|link| local_link(exchange.head().target, link));
    let fields = fields(link.as_deref(), note.filters, Some((&age, &text)));
    let media_type = note.media_type.unwrap_or("application/json");
    exchange.document(media_type, &fields, &bytes).await
}

struct Note<'a> {
    link: Option<&'a str>,
    filters: Option<&'a str>,
    media_type: Option<&'a str>,
}

impl<'a> Note<'a> {
    fn parse(note: &'a str) -> Note<'a> {
        let mut lines = note
            .split('\n')
            .map(|line| (!line.is_empty()).then_some(line));
        Note {
            link: lines.next().flatten(),
            filters: lines.next().flatten(),
            media_type: lines.next().flatten(),
        }
    }
}

fn fields<'a>(
    link: Option<&'a str>,
    filters: Option<&'a str>,
    stale: Option<(&'a str, &'a str)>,
) -> Vec<(&'static str, &'a str)> {
    let mut fields = Vec::new();
    fields.extend(link.map(|link| ("Link", link)));
    fields.extend(filters.map(|filters| (FILTERS_APPLIED, filters)));
    if let Some((age, warning)) = stale {
        fields.extend([("Age", age), ("Warning", warning)]);
    }
    fields
}

/// Upstream's `Link: </v2/…?last=x&n=5>; rel="next"` with our path before its query: the path
/// of the request is what the client knows us by.
fn local_link(target: &str, link: &str) -> String {
    let path = target.split('?').next().unwrap_or(target);
    let (Some(open), Some(close)) = (link.find('<'), link.find('>')) else {
        return String::new();
    };
    let query = link[open + 1..close.max(open + 1)]
        .split_once('?')
        .map_or("", |(_, query)| query);
    // A mirror client's `ns` is part of how it reaches us.
    let ns = target
        .split_once('?')
        .and_then(|(_, query)| query.split('&').find(|pair| pair.starts_with("ns=")))
        .map(|ns| format!("&{ns}"))
        .unwrap_or_default();
    format!("<{path}?{query}{ns}>{}", &link[close + 1..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn next_pages_are_asked_for_where_the_first_was() {
        let cases = [
            (
                "/v2/dh/library/x/tags/list?n=2",
                "</v2/library/x/tags/list?last=b&n=2>; rel=\"next\"",
                "</v2/dh/library/x/tags/list?last=b&n=2>; rel=\"next\"",
            ),
            (
                "/v2/library/x/tags/list?n=2&ns=docker.io",
                "<https://registry/v2/library/x/tags/list?last=b>; rel=\"next\"",
                "</v2/library/x/tags/list?last=b&ns=docker.io>; rel=\"next\"",
            ),
            ("/v2/x/tags/list", "nonsense", ""),
            ("/v2/x/tags/list", "><", "</v2/x/tags/list?><"),
        ];
        for (target, link, expected) in cases {
            assert_eq!(local_link(target, link), expected, "{link}");
        }
    }
}
