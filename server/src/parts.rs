//! Parts of bodies that are not held: the owner's side of a range that no fill will reach soon.
//!
//! Called by the mailbox loop of the shard that owns the digest, so that one request upstream
//! answers all who ask for the same part at the same time. A part is as trustworthy as upstream:
//! no digest vouches for it, and it is neither stored nor kept (S2).

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use entrepot_storage::Digest;
use monoio::time::sleep;

use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Fetcher};
use crate::http::etag;
use crate::http::range::ContentRange;
use crate::jitter::jittered;
use crate::mailbox::Reply;
use crate::project::Repository;
use crate::source::{Answer, Search, Sources, Wanted, accept, body_path};
use crate::upstream::{self, BodyError, Method, Validator};

/// Bytes of one part. It is collected before it is passed on, so this is what a response holds in
/// memory, and what upstream sends in vain when its client leaves.
pub const PART_LEN_MAX: u64 = 1 << 20;
/// Requests upstream that may run at once on a shard: 128 MiB of parts.
const PARTS_MAX: usize = 128;
/// Those of them that nobody waits for yet: the rest of the room is for clients that do.
const AHEAD_MAX: usize = PARTS_MAX / 2;
/// Answers of one upstream that a part may be made of. It is short: what breaks more often than
/// that is broken for good.
const ANSWERS_MAX: u32 = 4;
/// Before the next of them. A connection that broke is rarely alone.
const PAUSE: Duration = Duration::from_millis(50);

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

/// With the origins that may answer: who asks after a reload took one away, or the login there,
/// does not join who asked before.
type Key = (Repository, Digest, (u64, u64), Vec<Arc<str>>);
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
        let project = self.sources.project(ask.source.project);
        let origins = project.upstreams.iter().map(|(_, origin)| origin.clone());
        let key = (ask.source, ask.digest, ask.range, origins.collect());
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

    /// The upstreams in their order, without those that answer a range with another one. One whose
    /// answer breaks is asked for the rest of it first.
    async fn ask_upstream(
        &self,
        (source, digest, range, _): &Key,
        prefer: Option<&str>,
    ) -> Result<Part, Unparted> {
        let kind = BodyKind::Blob;
        let path = body_path(kind, digest);
        let mut passed_over: Vec<Arc<str>> = Vec::new();
        let mut before: Option<Failure> = None;
        let mut begun: Option<Begun> = None;
        loop {
            let now = begun.as_ref();
            let wanted = Wanted {
                method: Method::Get,
                path: &path,
                accept: accept(kind),
                range: Some(upstream::Part {
                    if_range: now.and_then(|begun| begun.validator.clone()),
                    ..upstream::Part::between((Begun::at(now, range.0), range.1))
                }),
            };
            let refused = |asked: &Arc<str>| {
                let another = now.is_some_and(|begun| begun.asked != *asked);
                another || passed_over.contains(asked) || self.fetcher.is_refused(digest, asked)
            };
            let search = Search {
                prefer: now.map(|begun| &*begun.origin).or(prefer),
                anew: now.is_some(),
                layer: Some(*digest),
                refused: Some(&refused),
                ..Search::default()
            };
            let answer = match (self.sources.first(source, &wanted, search).await, begun) {
                (Ok(answer), now) => (answer, now),
                // The others are asked from the beginning.
                (Err(unanswered), Some(lost)) => {
                    passed_over.push(lost.asked);
                    before.get_or_insert(unanswered.report);
                    begun = None;
                    continue;
                }
                (Err(unanswered), None) => {
                    let failure = before.unwrap_or(unanswered.report);
                    return Err(Unparted::Failed(failure));
                }
            };
            let (answer, now) = answer;
            let asked = answer.asked().clone();
            let failure = match read(answer, now, *range).await {
                Ended::Whole(part) => return Ok(part),
                Ended::NoRanges => return Err(Unparted::NoRanges),
                Ended::Broken(broken, failure) if self.may_go_on(source, &broken) => {
                    let at = Begun::at(Some(&broken), range.0);
                    tracing::debug!(%digest, at, why = &*failure.detail, "a range is gone on with");
                    begun = Some(broken);
                    sleep(jittered(PAUSE)).await;
                    continue;
                }
                Ended::Broken(_, failure) | Ended::Unfit(failure) => failure,
            };
            before = Some(failure);
            passed_over.push(asked);
            begun = None;
        }
    }

    fn may_go_on(&self, source: &Repository, begun: &Begun) -> bool {
        begun.answers < ANSWERS_MAX && self.sources.may_ask_again(source, &begun.origin)
    }
}

/// What came of a part before its answer broke. All of it is of one upstream and one body: no
/// digest vouches for a joint.
struct Begun {
    origin: Arc<str>,
    /// The same, or the place there.
    asked: Arc<str>,
    body_len: Option<u64>,
    validator: Option<Validator>,
    bytes: Vec<u8>,
    /// Of how many answers.
    answers: u32,
}

impl Begun {
    /// The first byte that is missing of a part that starts there.
    fn at(begun: Option<&Begun>, start: u64) -> u64 {
        start + begun.map_or(0, |begun| begun.bytes.len() as u64)
    }

    /// Whether an answer is of the same body.
    fn is_of(&self, body_len: Option<u64>, validator: Option<&Validator>) -> bool {
        let same_etag = match (&self.validator, validator) {
            (Some(known), Some(now)) => known == now,
            _ => true,
        };
        self.body_len == body_len && same_etag
    }
}

/// How an answer ended.
enum Ended {
    Whole(Part),
    /// Its upstream may bring the rest.
    Broken(Begun, Failure),
    /// Its upstream is of no use for this part.
    Unfit(Failure),
    NoRanges,
}

/// Reads an answer that is exactly the rest of the range, or as much of it as the body has.
async fn read(answer: Answer, begun: Option<Begun>, range: (u64, u64)) -> Ended {
    let asked = answer.asked().clone();
    let Answer {
        origin,
        mut response,
        ..
    } = answer;
    let failed = |why: &str| Failure::of(FailureKind::BadBody, &origin, why);
    if response.status == 200 && begun.is_none() {
        return Ended::NoRanges;
    }
    let part = response.head.field("content-range");
    let rest = (Begun::at(begun.as_ref(), range.0), range.1);
    let Some((len, body_len)) = fits(part.and_then(ContentRange::parse), rest) else {
        return Ended::Unfit(failed("answered a range with another"));
    };
    let etag = response.head.field("etag").and_then(etag::strong);
    let validator = etag.map(|etag| Validator {
        asked: asked.clone(),
        etag: etag.into(),
    });
    let mut begun = match begun {
        Some(begun) if begun.is_of(body_len, validator.as_ref()) => begun,
        Some(_) => return Ended::Unfit(failed("answered the rest of a range with another body")),
        None => Begun {
            origin: origin.clone(),
            asked,
            body_len,
            validator,
            bytes: Vec::with_capacity(len as usize),
            answers: 0,
        },
    };
    begun.answers += 1;
    let whole = begun.bytes.len() + len as usize;
    loop {
        let lost = match response.body.read().await {
            Ok(Some(piece)) if piece.len() > whole - begun.bytes.len() => {
                return Ended::Unfit(failed("a range is longer than it says"));
            }
            Ok(Some(piece)) => {
                begun.bytes.extend_from_slice(&piece);
                continue;
            }
            // The bytes are all there; what may be missing is the end of a coding.
            _ if begun.bytes.len() == whole => return Ended::Whole(begun.into()),
            Ok(None) => failed("a range is cut short"),
            // It took a whole read timeout; a client waits.
            Err(error @ (BodyError::Timeout | BodyError::TooSlow | BodyError::TotalTimeout)) => {
                return Ended::Unfit(failed(&error.to_string()));
            }
            Err(error) => failed(&error.to_string()),
        };
        return Ended::Broken(begun, lost);
    }
}

impl From<Begun> for Part {
    fn from(begun: Begun) -> Part {
        Part {
            bytes: begun.bytes.into(),
            body_len: begun.body_len,
            origin: begun.origin,
        }
    }
}

/// Length of an answer, and of the body if it is told, when it begins where it was asked for and
/// ends there too or with the body (RFC 9110 §15.3.7).
fn fits(part: Option<ContentRange>, (start, end): (u64, u64)) -> Option<(u64, Option<u64>)> {
    match part? {
        ContentRange::Part {
            start: first,
            end: last,
            length,
        } if first == start && (last == end || (last < end && length == Some(last))) => {
            Some((last - first, length))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Begun, ContentRange, Validator, fits};

    fn part(start: u64, end: u64, length: Option<u64>) -> Option<ContentRange> {
        Some(ContentRange::Part { start, end, length })
    }

    #[test]
    fn only_what_was_asked_for_is_taken() {
        for (name, part, expected) in [
            ("all of it", part(60, 80, Some(100)), Some((20, Some(100)))),
            ("of unknown length", part(60, 80, None), Some((20, None))),
            ("the end", part(60, 70, Some(70)), Some((10, Some(70)))),
            ("less than there is", part(60, 70, Some(100)), None),
            ("less, of unknown length", part(60, 70, None), None),
            ("another start", part(59, 80, Some(100)), None),
            ("more", part(60, 81, Some(100)), None),
            ("no Content-Range", None, None),
        ] {
            assert_eq!(fits(part, (60, 80)), expected, "{name}");
        }
    }

    #[test]
    fn only_the_rest_of_the_same_body_is_joined() {
        let etag = |etag: &str| {
            Some(Validator {
                asked: "https://a".into(),
                etag: etag.into(),
            })
        };
        let begun = |validator| Begun {
            origin: "https://a".into(),
            asked: "https://a".into(),
            body_len: Some(100),
            validator,
            bytes: vec![0; 7],
            answers: 1,
        };
        assert_eq!(Begun::at(Some(&begun(None)), 60), 67);
        assert_eq!(Begun::at(None, 60), 60);
        for (known, now, len, joined) in [
            (None, None, Some(100), true),
            (etag("\"1\""), etag("\"1\""), Some(100), true),
            (etag("\"1\""), None, Some(100), true),
            (etag("\"1\""), etag("\"2\""), Some(100), false),
            (None, None, Some(101), false),
            (None, None, None, false),
        ] {
            assert_eq!(
                begun(known).is_of(len, now.as_ref()),
                joined,
                "{now:?} {len:?}"
            );
        }
    }
}
