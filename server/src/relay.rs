//! A body for one client alone, when neither the store nor staging has room for it.
//!
//! Called by `registry`. One upstream request per client, at the client's speed. The last bytes
//! are held back in memory until the digest matched (S2), which bounds how many relays may run:
//! above that the client is refused (R4).

use std::collections::VecDeque;
use std::sync::Arc;

use entrepot_storage::{Digest, Hasher, LinkRecord, Proof};

use crate::access::link_key;
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::mailbox::Message;
use crate::manifests::{Expected, Manifest};
use crate::metrics::Counter;
use crate::oci::error::Code;
use crate::project::Repository;
use crate::respond::{BLOB_TYPE, CacheStatus, Exchange, Facts, Gone, WHOLE_LEN_MAX};
use crate::source::{Answer, Search, Wanted, accept, body_path, content_type};
use crate::upstream::{Body, Method};

/// Relays that may run at once on a shard; each holds at most `WHOLE_LEN_MAX` and one piece.
pub const RELAYS_MAX: usize = 64;

/// Pieces of a body that may not go out yet.
struct Withheld {
    pieces: VecDeque<Vec<u8>>,
    len: u64,
}

impl Withheld {
    fn push(&mut self, piece: Vec<u8>) {
        self.len += piece.len() as u64;
        self.pieces.push_back(piece);
    }

    /// The oldest piece, while what stays behind is still a whole tail.
    fn release(&mut self) -> Option<Vec<u8>> {
        let first = self.pieces.front()?.len() as u64;
        if self.len - first < WHOLE_LEN_MAX {
            return None;
        }
        self.len -= first;
        self.pieces.pop_front()
    }
}

pub async fn relay(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    digest: Digest,
    kind: BodyKind,
    digest_text: &str,
) -> Result<(), Gone> {
    let unknown = kind.unknown();
    let service = exchange.service.clone();
    let Some(_permit) = service.permit(&service.relays, RELAYS_MAX) else {
        return exchange
            .failure(&Failure::busy("relays of this core"), unknown)
            .await;
    };
    service.metrics.count(Counter::Relays);
    let facts = Facts {
        digest: digest_text,
        media_type: BLOB_TYPE,
        cache: CacheStatus::Passed,
        age_s: None,
        warning: None,
        ranges: kind == BodyKind::Blob,
    };
    let path = body_path(kind, &digest);
    let wanted = Wanted {
        method: Method::Get,
        path: &path,
        accept: accept(kind),
        range: None,
    };
    let search = Search {
        layer: (kind == BodyKind::Blob).then_some(digest),
        ..Search::default()
    };
    let sources = &service.lookup.sources;
    if kind == BodyKind::Manifest && !exchange.is_head() {
        let expected = Some(Expected {
            digest,
            mismatched: &|_| service.metrics.count(Counter::WrongDigests),
        });
        let manifest = sources.manifest(source, &wanted, search, expected).await;
        return match manifest {
            Ok(manifest) => send_manifest(exchange, &manifest, facts).await,
            Err(unanswered) => exchange.failure(&unanswered.report, unknown).await,
        };
    }
    let answer = match sources.first(source, &wanted, search).await {
        Ok(answer) => answer,
        Err(unanswered) => return exchange.failure(&unanswered.report, unknown).await,
    };
    let Answer {
        origin, response, ..
    } = answer;
    let media_type = content_type(&response.head).filter(|_| kind == BodyKind::Manifest);
    let facts = Facts {
        media_type: media_type.as_deref().unwrap_or(BLOB_TYPE),
        ..facts
    };
    match response.length {
        Some(len) if exchange.is_head() => exchange.remote(&facts, len).await,
        None if exchange.is_head() => {
            let why = "upstream does not tell the length";
            let failure = Failure::of(FailureKind::ServerError, &origin, why);
            exchange.failure(&failure, unknown).await
        }
        len => {
            if stream(exchange, response.body, digest, len, &facts).await? {
                link(exchange, source, digest, origin).await;
            }
            Ok(())
        }
    }
}

/// Sends a manifest that was checked, as those are that are stored.
async fn send_manifest(
    exchange: &mut Exchange<'_>,
    manifest: &Manifest,
    facts: Facts<'_>,
) -> Result<(), Gone> {
    let facts = Facts {
        media_type: manifest.media_type,
        ..facts
    };
    let bytes = &manifest.whole.bytes;
    exchange.begin_relay(&facts, Some(bytes.len() as u64));
    exchange.relay_piece(bytes).await?;
    exchange.end_relay().await
}

/// What the repository fetched whole it may have from the store as well (R9).
async fn link(exchange: &Exchange<'_>, source: &Repository, digest: Digest, origin: Arc<str>) {
    let lookup = &exchange.service.lookup;
    if lookup.store.body(&digest).is_none() {
        return;
    }
    let key = link_key(&lookup.sources.project(source.project), source, digest);
    let record = LinkRecord {
        origin,
        proof: Proof::Fetched,
        at: clock::now(),
    };
    let owner = lookup.owner(source);
    let link = |reply| Message::Link { key, record, reply };
    lookup.post().tell(owner, link).await;
}

/// Sends a body behind its withheld tail. Without a length it is sent in chunks, unless it ended
/// before anything had to go out. True when all of it was sent.
async fn stream(
    exchange: &mut Exchange<'_>,
    mut body: Body,
    digest: Digest,
    len: Option<u64>,
    facts: &Facts<'_>,
) -> Result<bool, Gone> {
    let mut hasher = Hasher::new(digest.algorithm());
    let mut withheld = Withheld {
        pieces: VecDeque::new(),
        len: 0,
    };
    let mut begun = false;
    let failure = loop {
        match body.read().await {
            Ok(Some(piece)) => {
                hasher.update(&piece);
                withheld.push(piece);
                while let Some(piece) = withheld.release() {
                    if !begun && !exchange.begin_relay(facts, len) {
                        let why = "without room, HTTP/1.0 can't be sent a body of unknown length";
                        let failure = Failure::new(FailureKind::Busy, why);
                        return exchange
                            .failure(&failure, Code::Unknown)
                            .await
                            .map(|()| false);
                    }
                    begun = true;
                    exchange.relay_piece(&piece).await?;
                }
            }
            Ok(None) if hasher.finish() == digest => break None,
            Ok(None) => break Some("the body does not match its digest".to_owned()),
            Err(error) => break Some(error.to_string()),
        }
    };
    match failure {
        None => {
            if !begun {
                exchange.begin_relay(facts, Some(withheld.len));
            }
            for piece in withheld.pieces {
                exchange.relay_piece(&piece).await?;
            }
            exchange.end_relay().await.map(|()| true)
        }
        Some(why) if begun => exchange.abort(&why).map(|()| false),
        Some(why) => {
            let failure = Failure::new(FailureKind::BadBody, why);
            exchange
                .failure(&failure, Code::Unknown)
                .await
                .map(|()| false)
        }
    }
}
