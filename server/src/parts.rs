//! Parts of bodies that are not held: the owner's side of a range that no fill will reach soon.
//!
//! Called by the mailbox loop of the shard that owns the digest, so that one request upstream
//! answers all who ask for the same part at the same time. A part is as trustworthy as upstream:
//! no digest vouches for it, and it is neither stored nor kept (S2).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_storage::Digest;

use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Fetcher};
use crate::http::range::ContentRange;
use crate::mailbox::Reply;
use crate::project::Repository;
use crate::source::{Answer, Search, Sources, Wanted, accept, body_path};
use crate::upstream::{self, Method};

/// Bytes of one part. It is collected before it is passed on, so this is what a response holds in
/// memory, and what upstream sends in vain when its client leaves.
pub const PART_LEN_MAX: u64 = 1 << 20;
/// Requests upstream that may run at once on a shard: 128 MiB of parts.
const PARTS_MAX: usize = 128;
/// Those of them that nobody waits for yet: the rest of the room is for clients that do.
const AHEAD_MAX: usize = PARTS_MAX / 2;

pub struct PartAsk {
    pub digest: Digest,
    /// In whose name upstream is asked: its answer is the proof (R9).
    pub source: Repository,
    /// First byte and end (excluded), at most `PART_LEN_MAX` apart; may reach beyond the body.
    pub range: (u64, u64),
    /// Origin to ask first.
    pub prefer: Option<Arc<str>>,
    /// Asked for before a client waits for it.
    pub ahead: bool,
    pub reply: Reply<Result<Part, Unparted>>,
}

/// The bytes from where they were asked for, cut at the end of the body.
#[derive(Clone)]
pub struct Part {
    pub bytes: Bytes,
    /// Of the whole body, if upstream tells.
    pub body_len: Option<u64>,
    pub origin: Arc<str>,
}

/// Why there is no part.
#[derive(Clone)]
pub enum Unparted {
    /// Upstream sends nothing but whole bodies.
    NoRanges,
    Failed(Failure),
}

type Key = (Repository, Digest, (u64, u64));
type Waiting = Vec<Reply<Result<Part, Unparted>>>;

pub struct Parts {
    sources: Sources,
    fetcher: Rc<Fetcher>,
    asking: RefCell<HashMap<Key, Waiting>>,
}

impl Parts {
    /// `fetcher` knows which origins sent wrong bytes.
    pub fn new(sources: Sources, fetcher: Rc<Fetcher>) -> Rc<Parts> {
        Rc::new(Parts {
            sources,
            fetcher,
            asking: RefCell::default(),
        })
    }

    /// Asks upstream, or joins who asks already.
    pub fn part(self: &Rc<Self>, ask: PartAsk) {
        let key = (ask.source, ask.digest, ask.range);
        let mut asking = self.asking.borrow_mut();
        if let Some(waiting) = asking.get_mut(&key) {
            waiting.push(ask.reply);
            return;
        }
        let room = match ask.ahead {
            true => AHEAD_MAX,
            false => PARTS_MAX,
        };
        if asking.len() >= room {
            let busy = Failure::busy("ranges of layers that are not held");
            // The slot has room for its one answer.
            let _ = ask.reply.try_send(Err(Unparted::Failed(busy)));
            return;
        }
        asking.insert(key.clone(), vec![ask.reply]);
        drop(asking);
        let parts = self.clone();
        monoio::spawn(async move {
            let outcome = parts.ask_upstream(&key, ask.prefer.as_deref()).await;
            let waiting = parts.asking.borrow_mut().remove(&key);
            for reply in waiting.into_iter().flatten() {
                let _ = reply.try_send(outcome.clone());
            }
        });
    }

    /// The upstreams in their order, without those that answer a range with another one.
    async fn ask_upstream(
        &self,
        (source, digest, range): &Key,
        prefer: Option<&str>,
    ) -> Result<Part, Unparted> {
        let kind = BodyKind::Blob;
        let path = body_path(kind, digest);
        let wanted = Wanted {
            method: Method::Get,
            path: &path,
            accept: accept(kind),
            range: Some(upstream::Part::between(*range)),
        };
        let mut passed_over: Vec<Arc<str>> = Vec::new();
        let mut before: Option<Failure> = None;
        loop {
            let refused = |origin: &Arc<str>| {
                passed_over.contains(origin) || self.fetcher.is_refused(digest, origin)
            };
            let search = Search {
                prefer,
                layer: (kind == BodyKind::Blob).then_some(*digest),
                refused: Some(&refused),
                ..Search::default()
            };
            let answer = match self.sources.first(source, &wanted, search).await {
                Ok(answer) => answer,
                Err(unanswered) => {
                    let failure = before.unwrap_or(unanswered.report);
                    return Err(Unparted::Failed(failure));
                }
            };
            let origin = answer.origin.clone();
            match read(answer, *range).await {
                Ok(part) => return Ok(part),
                Err(Unparted::NoRanges) => return Err(Unparted::NoRanges),
                Err(Unparted::Failed(failure)) => {
                    before = Some(failure);
                    passed_over.push(origin);
                }
            }
        }
    }
}

/// Collects an answer that is exactly the range, or as much of it as the body has.
async fn read(answer: Answer, (start, end): (u64, u64)) -> Result<Part, Unparted> {
    let Answer {
        origin,
        mut response,
        ..
    } = answer;
    let failed = |why: &str| {
        let failure = Failure::of(FailureKind::BadBody, &origin, why);
        Unparted::Failed(failure)
    };
    if response.status == 200 {
        return Err(Unparted::NoRanges);
    }
    let field = response.head.field("content-range");
    let (len, body_len) = match field.and_then(ContentRange::parse) {
        Some(ContentRange::Part {
            start: first,
            end: last,
            length,
        }) if first == start && (last == end || (last < end && length == Some(last))) => {
            (last - first, length)
        }
        _ => return Err(failed("answered a range with another")),
    };
    let bytes = match response.body.collect(len as usize).await {
        Ok(bytes) => bytes,
        Err(error) => return Err(failed(&error.to_string())),
    };
    if bytes.len() as u64 != len {
        return Err(failed("a range is cut short"));
    }
    let bytes = Bytes::from(bytes);
    Ok(Part {
        bytes,
        body_len,
        origin,
    })
}
