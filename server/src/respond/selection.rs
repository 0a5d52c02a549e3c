//! What of a body is to be sent: all of it, a range, several, or nothing at all (RFC 9110 §13, §14).

use std::hash::{BuildHasher, RandomState};
use std::slice;

use super::{Exchange, Facts, Gone};
use crate::http::etag;
use crate::http::head::Method;
use crate::http::multipart::Multipart;
use crate::http::range::{self, ContentRange, RangeRequest, Unsatisfiable};

/// The bytes of a body that are to be sent; first included, end excluded.
pub enum Selection<'t> {
    Whole((u64, u64)),
    Part((u64, u64)),
    Parts(Multipart<'t>),
}

impl Selection<'_> {
    pub fn whole(len: u64) -> Selection<'static> {
        Selection::Whole((0, len))
    }

    /// Never empty, in the order in which they are sent.
    pub fn parts(&self) -> &[(u64, u64)] {
        match self {
            Selection::Whole(part) | Selection::Part(part) => slice::from_ref(part),
            Selection::Parts(multipart) => multipart.parts(),
        }
    }

    /// Length of the answer's body, with what stands between several parts.
    pub(super) fn content_length(&self) -> u64 {
        match self {
            Selection::Whole((start, end)) | Selection::Part((start, end)) => end - start,
            Selection::Parts(multipart) => multipart.content_length(),
        }
    }

    /// Appends what stands before the bytes of a part.
    pub(super) fn push_head(&self, nth: usize, out: &mut Vec<u8>) {
        if let Selection::Parts(multipart) = self {
            multipart.push_head(nth, out);
        }
    }

    /// Appends what follows the bytes of the last part.
    pub(super) fn push_end(&self, out: &mut Vec<u8>) {
        if let Selection::Parts(multipart) = self {
            multipart.push_end(out);
        }
    }
}

impl<'a> Exchange<'a> {
    /// What is to be sent of a body of this length. `None` when that is nothing and the answer, a
    /// 304 or 416, is complete.
    pub async fn select<'t>(
        &mut self,
        facts: &Facts<'t>,
        len: u64,
    ) -> Result<Option<Selection<'t>>, Gone> {
        if etag::if_none_match(self.head().fields("if-none-match"), facts.digest) {
            self.start(304)
                .field_display("ETag", format_args!("\"{}\"", facts.digest))
                .field("Docker-Content-Digest", facts.digest)
                .field_display("Cache-Status", &facts.cache)
                .finish();
            self.sent.set((304, 0));
            self.cache = Some(facts.cache.clone());
            self.send(&[], false).await?;
            return Ok(None);
        }
        let selected = match self.wanted_range(facts) {
            RangeRequest::None => Ok(Selection::whole(len)),
            RangeRequest::One(range) => range.resolve(len).map(Selection::Part),
            RangeRequest::Several(ranges) => ranges.resolve(len).map(|parts| match parts {
                None => Selection::whole(len),
                // RFC 9110 §15.3.7.2: what is left of several may be sent as one.
                Some(parts) if parts.len() == 1 => Selection::Part(parts[0]),
                Some(parts) => {
                    Selection::Parts(Multipart::new(parts, len, facts.media_type, boundary()))
                }
            }),
        };
        match selected {
            Ok(selection) => Ok(Some(selection)),
            Err(Unsatisfiable) => self.unsatisfied(len).await.map(|()| None),
        }
    }

    async fn unsatisfied(&mut self, len: u64) -> Result<(), Gone> {
        let unsatisfied = ContentRange::Unsatisfied { length: len };
        self.start(416)
            .field_display("Content-Range", unsatisfied)
            .field_u64("Content-Length", 0)
            .finish();
        self.sent.set((416, 0));
        self.send(&[], false).await
    }

    /// The Range that applies: of a GET for ranged content whose If-Range, if any, matches.
    pub fn wanted_range(&self, facts: &Facts<'_>) -> RangeRequest<'a> {
        let head = self.head();
        // RFC 9110 §14.2: Range is defined for GET only.
        if !facts.ranges || head.method != Method::Get {
            return RangeRequest::None;
        }
        let Some(value) = head.field("range") else {
            return RangeRequest::None;
        };
        // RFC 9110 §13.1.5: a validator that does not match means the whole representation.
        let matches = head
            .field("if-range")
            .is_none_or(|validator| etag::if_range(validator, facts.digest));
        if matches {
            range::parse(value)
        } else {
            RangeRequest::None
        }
    }
}

/// The keys are random, and no two are the same in a thread.
fn boundary() -> u128 {
    let keys = RandomState::new();
    u128::from(keys.hash_one(0)) << 64 | u128::from(keys.hash_one(1))
}
