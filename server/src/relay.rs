//! A body for one client alone, when neither the store nor staging has room for it.
//!
//! Called by `registry`. One upstream request per client, at the client's speed, which must not be
//! too slow: a connection that others wait for is kept for it. The last bytes are held back in
//! memory until the digest matched (S2), which bounds how many relays may run: above that the
//! client is refused (R4). What is wrong before anything was said is asked of the next upstream.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use entrepot_storage::{Digest, Hasher, LinkRecord, Proof};
use monoio::time::timeout;

use crate::access::link_key;
use crate::clock;
use crate::failure::{Failure, FailureKind};
use crate::fetch::BodyKind;
use crate::foreign;
use crate::gate::WAIT_MAX;
use crate::mailbox::Message;
use crate::manifests::{Expected, Manifest};
use crate::metrics::Counter;
use crate::oci::error::Code;
use crate::project::Repository;
use crate::respond::{BLOB_TYPE, CacheStatus, Exchange, Facts, Gone, WHOLE_LEN_MAX};
use crate::source::{Answer, Search, Wanted, accept, body_path, content_type};
use crate::upstream::{Method, Response};
use crate::whole::Until;

/// Relays that may run at once on a shard; each holds at most `WHOLE_LEN_MAX` and one piece, or a
/// manifest.
pub const RELAYS_MAX: usize = 64;
/// Bytes a second that a client must take while its upstream's connection is kept for it: a fill
/// may wait for that (R5). What goes over a slow line is worth no more.
const PACE_MIN: u64 = 64 << 10;
/// How far it may fall behind that: half of the time that others wait for the connection at most.
const BEHIND_MAX: Duration = Duration::from_secs(WAIT_MAX.as_secs() / 2);

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

/// How much longer a client may take for what it is sent.
struct Patience {
    left: Duration,
}

impl Patience {
    /// For the next `len` bytes.
    fn with(&self, len: usize) -> Duration {
        let earned = len as u64 * 1_000_000 / PACE_MIN;
        self.left + Duration::from_micros(earned)
    }

    /// They were taken in this time.
    fn spend(&mut self, len: usize, took: Duration) {
        self.left = self.with(len).saturating_sub(took).min(BEHIND_MAX);
    }
}

/// What is sent to whom.
struct Relayed<'r> {
    source: &'r Repository,
    digest: Digest,
    kind: BodyKind,
    path: &'r str,
    facts: Facts<'r>,
}

impl<'r> Relayed<'r> {
    fn wanted(&self) -> Wanted<'r> {
        Wanted {
            method: Method::Get,
            path: self.path,
            accept: accept(self.kind),
            range: None,
        }
    }
}

pub async fn relay(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    digest: Digest,
    kind: BodyKind,
    digest_text: &str,
) -> Result<(), Gone> {
    let service = exchange.service.clone();
    let Some(_permit) = service.permit(&service.relays, RELAYS_MAX) else {
        return exchange
            .failure(&Failure::busy("relays of this core"), kind.unknown())
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
    let relayed = Relayed {
        source,
        digest,
        kind,
        path: &body_path(kind, &digest),
        facts,
    };
    match kind == BodyKind::Manifest && !exchange.is_head() {
        true => relay_manifest(exchange, relayed).await,
        false => relay_body(exchange, relayed).await,
    }
}

/// Sends a manifest that was checked, as those are that are stored.
async fn relay_manifest(exchange: &mut Exchange<'_>, relayed: Relayed<'_>) -> Result<(), Gone> {
    let service = exchange.service.clone();
    let expected = Some(Expected {
        digest: relayed.digest,
        until: Until::Sent,
        mismatched: &|_| service.metrics.count(Counter::WrongDigests),
    });
    let (wanted, search) = (relayed.wanted(), Search::default());
    let sources = &service.lookup.sources;
    let manifest = sources.manifest(relayed.source, &wanted, search, expected);
    let Manifest {
        origin,
        whole,
        media_type,
    } = match manifest.await {
        Ok(manifest) => manifest,
        Err(unanswered) => {
            let unknown = relayed.kind.unknown();
            return exchange.failure(&unanswered.report, unknown).await;
        }
    };
    link(exchange, relayed.source, relayed.digest, origin).await;
    foreign::note_bytes(&service, relayed.source, &whole.bytes).await;
    let facts = Facts {
        media_type,
        ..relayed.facts
    };
    exchange.begin_relay(&facts, Some(whole.bytes.len() as u64));
    exchange.relay_piece(&whole.bytes).await?;
    exchange.end_relay().await
}

/// Sends a body as it comes, of the first upstream that has the right one as far as it can be told
/// before the client is told anything.
async fn relay_body(exchange: &mut Exchange<'_>, relayed: Relayed<'_>) -> Result<(), Gone> {
    let service = exchange.service.clone();
    let unknown = relayed.kind.unknown();
    let wanted = relayed.wanted();
    let mut given_up: Vec<Arc<str>> = Vec::new();
    let mut failed: Option<Failure> = None;
    loop {
        let refused = |asked: &Arc<str>| given_up.contains(asked);
        let search = Search {
            layer: (relayed.kind == BodyKind::Blob).then_some(relayed.digest),
            refused: Some(&refused),
            ..Search::default()
        };
        let sources = &service.lookup.sources;
        let answer = sources.first(relayed.source, &wanted, search);
        let answer = match answer.await {
            Ok(answer) => answer,
            Err(unanswered) => {
                let failure = failed.unwrap_or(unanswered.report);
                return exchange.failure(&failure, unknown).await;
            }
        };
        let asked = answer.asked().clone();
        let Answer {
            origin, response, ..
        } = answer;
        if exchange.is_head() {
            let media_type = content_type(&response.head);
            let media_type = media_type.filter(|_| relayed.kind == BodyKind::Manifest);
            let facts = Facts {
                media_type: media_type.as_deref().unwrap_or(BLOB_TYPE),
                ..relayed.facts
            };
            return answer_head(exchange, &facts, response.length, &origin, unknown).await;
        }
        match stream(exchange, &relayed, &origin, response).await? {
            Streamed::Answered => return Ok(()),
            Streamed::Bad(why) => {
                failed = Some(Failure::of(FailureKind::BadBody, &origin, why));
                given_up.push(asked);
            }
        }
    }
}

async fn answer_head(
    exchange: &mut Exchange<'_>,
    facts: &Facts<'_>,
    len: Option<u64>,
    origin: &str,
    unknown: Code,
) -> Result<(), Gone> {
    match len {
        Some(len) => exchange.remote(facts, len).await,
        None => {
            let why = "upstream does not tell the length";
            let failure = Failure::of(FailureKind::ServerError, origin, why);
            exchange.failure(&failure, unknown).await
        }
    }
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

/// What became of a body.
enum Streamed {
    /// All of it was sent, or the client was told why it can't be.
    Answered,
    /// It broke or is a wrong one. Nothing was said yet.
    Bad(String),
}

/// Sends a body behind its withheld tail. Without a length it is sent in chunks, unless it ended
/// before anything had to go out.
async fn stream(
    exchange: &mut Exchange<'_>,
    relayed: &Relayed<'_>,
    origin: &Arc<str>,
    response: Response,
) -> Result<Streamed, Gone> {
    let (digest, facts) = (relayed.digest, &relayed.facts);
    let (mut body, len) = (response.body, response.length);
    let mut hasher = Hasher::new(digest.algorithm());
    let mut withheld = Withheld {
        pieces: VecDeque::new(),
        len: 0,
    };
    let mut patience = Patience { left: BEHIND_MAX };
    let mut begun = false;
    let bad = loop {
        match body.read().await {
            Ok(Some(piece)) => {
                hasher.update(&piece);
                withheld.push(piece);
                while let Some(piece) = withheld.release() {
                    if !begun && !exchange.begin_relay(facts, len) {
                        let why = "without room, HTTP/1.0 can't be sent a body of unknown length";
                        let failure = Failure::new(FailureKind::Busy, why);
                        exchange.failure(&failure, Code::Unknown).await?;
                        return Ok(Streamed::Answered);
                    }
                    begun = true;
                    send_in_time(exchange, &piece, &mut patience).await?;
                }
            }
            Ok(None) if hasher.finish() == digest => break None,
            Ok(None) => {
                exchange.service.metrics.count(Counter::WrongDigests);
                break Some("the body does not match its digest".to_owned());
            }
            Err(error) => break Some(error.to_string()),
        }
    };
    match bad {
        Some(why) if begun => exchange.abort(&why).map(|()| Streamed::Answered),
        Some(why) => Ok(Streamed::Bad(why)),
        // Its connection upstream has been given back.
        None => {
            // Before the client has it all: what it asks for next is a hit.
            link(exchange, relayed.source, digest, origin.clone()).await;
            if !begun {
                exchange.begin_relay(facts, Some(withheld.len));
            }
            for piece in withheld.pieces {
                exchange.relay_piece(&piece).await?;
            }
            exchange.end_relay().await.map(|()| Streamed::Answered)
        }
    }
}

/// Sends a piece, or cuts a client that takes too long for it.
async fn send_in_time(
    exchange: &mut Exchange<'_>,
    piece: &[u8],
    patience: &mut Patience,
) -> Result<(), Gone> {
    let start = Instant::now();
    let sent = timeout(patience.with(piece.len()), exchange.relay_piece(piece)).await;
    match sent {
        Ok(sent) => sent?,
        Err(_) => return exchange.abort("too slow to keep a connection to upstream for it"),
    }
    patience.spend(piece.len(), start.elapsed());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{BEHIND_MAX, Duration, PACE_MIN, Patience};

    #[test]
    fn a_client_may_fall_behind_its_pace_for_a_while() {
        let second = Duration::from_secs(1);
        let len = PACE_MIN as usize;
        let behind_s = BEHIND_MAX.as_secs();
        // At half of the pace it is behind by a second for each two.
        let mut slow = Patience { left: BEHIND_MAX };
        for _ in 1..behind_s {
            assert!(slow.with(len) > 2 * second);
            slow.spend(len, 2 * second);
        }
        assert_eq!(slow.with(len), 2 * second);
        slow.spend(len, 2 * second);
        assert_eq!(slow.with(0), Duration::ZERO);

        // At the pace it is never, and being ahead of it saves nothing up.
        let mut steady = Patience { left: BEHIND_MAX };
        for took in [second, second, Duration::ZERO, Duration::ZERO] {
            steady.spend(len, took);
            assert_eq!(steady.left, BEHIND_MAX);
        }
        steady.spend(0, BEHIND_MAX);
        assert_eq!(steady.left, Duration::ZERO);
    }
}
