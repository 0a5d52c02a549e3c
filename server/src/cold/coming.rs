//! The parts of an answer on their way from upstream, in the order in which they go out.
//!
//! Each is asked of the owner of the digest. While one goes to the client the next two are asked
//! for, so that a client that takes what it asked for waits for upstream once and not for each part.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use entrepot_storage::Digest;
use monoio::task::JoinHandle;

use super::spans::Spans;
use crate::failure::{Failure, FailureKind};
use crate::mailbox::{Message, Post};
use crate::parts::{PART_LEN_MAX, Part, PartAsk, Unparted};
use crate::project::{Repository, digest_owner};
use crate::service::Permit;

/// The first part of a range that may go on: later ones are as long as all before them, so that
/// a client that leaves has taken at least a quarter of what upstream sent.
pub const PART_LEN_MIN: u64 = 256 << 10;
/// Parts that are asked for before they are needed: two hide a round trip of 20 ms at 100 MB/s, and
/// are at most 2 MiB that a client did not take.
const AHEAD_MAX: usize = 2;

/// How parts of one body are asked for.
#[derive(Clone)]
pub struct Asker {
    pub post: Post,
    pub source: Repository,
    pub digest: Digest,
    /// Origin to ask first.
    pub prefer: Option<Arc<str>>,
}

impl Asker {
    /// `ahead`: before it is needed, so it may be refused for lack of room.
    pub async fn part(self, range: (u64, u64), ahead: bool) -> Result<Part, Unparted> {
        let Asker {
            post,
            source,
            digest,
            prefer,
        } = self;
        let owner = digest_owner(&digest, post.shards());
        let asked = post.ask(owner, |reply| {
            Message::Part(PartAsk {
                digest,
                source,
                range,
                prefer,
                ahead,
                reply,
            })
        });
        asked.await.map_err(Unparted::Failed)?
    }
}

struct Asked {
    range: (u64, u64),
    part: JoinHandle<Result<Part, Unparted>>,
}

pub struct Coming {
    asker: Asker,
    /// Of the whole body.
    len: u64,
    spans: Spans,
    /// Span and byte from which on nothing is asked for yet.
    next: (usize, u64),
    asked: VecDeque<Asked>,
    /// What came last, and its first byte.
    held: Option<(u64, Part)>,
    /// Leave to ask ahead.
    permit: Option<Permit>,
}

impl Coming {
    /// `opening` is a part that came already, and its first byte.
    pub fn new(
        asker: Asker,
        len: u64,
        spans: Spans,
        opening: Option<(u64, Part)>,
        permit: Option<Permit>,
    ) -> Coming {
        let mut coming = Coming {
            asker,
            len,
            spans,
            next: (0, 0),
            asked: VecDeque::new(),
            held: opening,
            permit,
        };
        let held = coming.held.as_ref();
        let held_to = held.map_or(0, |(start, part)| start + part.bytes.len() as u64);
        coming.next = coming.after(0, held_to);
        coming
    }

    pub fn has(&self, at: u64) -> bool {
        let held = self.held.as_ref();
        held.is_some_and(|(start, part)| (*start..start + part.bytes.len() as u64).contains(&at))
    }

    /// The bytes from `at` up to `end` as far as they are here; `reach` came before.
    pub fn bytes(&self, at: u64, end: u64) -> Bytes {
        let Some((start, part)) = &self.held else {
            return Bytes::new();
        };
        let end = (end - start).min(part.bytes.len() as u64);
        part.bytes.slice((at - start) as usize..end as usize)
    }

    /// Gets the part with byte `at` of a range; `sent` bytes of the answer have gone out. Ranges and
    /// bytes come in the order of the answer.
    pub async fn reach(&mut self, range: usize, at: u64, sent: u64) -> Result<(), Unparted> {
        while !self.has(at) {
            self.held = None;
            if self.asked.is_empty() {
                self.next = (self.spans.of_range(range), at);
                self.ask_next(sent, false);
            }
            self.ask_ahead(sent);
            let Some(Asked { range, part }) = self.asked.pop_front() else {
                let why = "a range beyond its span";
                return Err(Unparted::Failed(Failure::new(FailureKind::BadBody, why)));
            };
            let part = match part.await {
                // There was no room for what was not needed yet. Now it is.
                Err(Unparted::Failed(failure)) if failure.kind == FailureKind::Busy => {
                    self.asker.clone().part(range, false).await?
                }
                part => part?,
            };
            if part.body_len.is_some_and(|told| told != self.len) {
                let why = "upstream tells two lengths of one body";
                return Err(Unparted::Failed(Failure::new(FailureKind::BadBody, why)));
            }
            self.held = Some((range.0, part));
        }
        self.ask_ahead(sent);
        Ok(())
    }

    /// Not before the client took something: many close after the first bytes.
    fn ask_ahead(&mut self, sent: u64) {
        while self.permit.is_some() && sent > 0 && self.asked.len() < AHEAD_MAX {
            if !self.ask_next(sent, true) {
                return;
            }
        }
    }

    /// False when all that the spans need is asked for.
    fn ask_next(&mut self, sent: u64, ahead: bool) -> bool {
        let (nth, at) = self.next;
        let Some((_, end)) = self.spans.get(nth) else {
            return false;
        };
        let range = (at, end.min(at + sent.clamp(PART_LEN_MIN, PART_LEN_MAX)));
        self.next = self.after(nth, range.1);
        let part = monoio::spawn(self.asker.clone().part(range, ahead));
        self.asked.push_back(Asked { range, part });
        true
    }

    /// Where to go on when a span is asked for up to `at`.
    fn after(&self, nth: usize, at: u64) -> (usize, u64) {
        match (self.spans.get(nth), self.spans.get(nth + 1)) {
            (Some((start, end)), _) if at < end => (nth, at.max(start)),
            (_, Some((start, _))) => (nth + 1, start),
            (_, None) => (nth + 1, at),
        }
    }
}
