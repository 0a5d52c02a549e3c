//! What of a body is to be sent: all of it, a range, or nothing at all (RFC 9110 §13, §14).

use super::{Answered, Exchange, Facts, Gone};
use crate::http::etag;
use crate::http::head::Method;
use crate::http::range::{self, ByteRange, ContentRange, RangeRequest};

/// The part of a body that is to be sent.
#[derive(Clone, Copy)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
    pub(super) partial: bool,
}

impl Exchange<'_> {
    /// The range of a blob that the client wants, against its length; `None` when it wants the
    /// whole. `Err` when the answer, a 304 or 416, is sent.
    pub async fn relayed_range(
        &mut self,
        facts: &Facts<'_>,
        len: u64,
    ) -> Result<Option<(u64, u64)>, Answered> {
        match self.span(facts, len).await? {
            Some(span) => Ok(span.partial.then_some((span.start, span.end))),
            None => Err(Answered::Sent),
        }
    }

    /// 304, 416, or the part that is to be sent. `None` when the answer is already complete.
    pub(super) async fn span(&mut self, facts: &Facts<'_>, len: u64) -> Result<Option<Span>, Gone> {
        let whole = Span {
            start: 0,
            end: len,
            partial: false,
        };
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
        match self.wanted_range(facts) {
            // RFC 9110 §14.2: several ranges may be ignored; the answer is the whole body.
            RangeRequest::None | RangeRequest::Multi => Ok(Some(whole)),
            RangeRequest::One(range) => self.ranged(range, len).await,
        }
    }

    async fn ranged(&mut self, range: ByteRange, len: u64) -> Result<Option<Span>, Gone> {
        match range.resolve(len) {
            Ok((start, end)) => Ok(Some(Span {
                start,
                end,
                partial: true,
            })),
            Err(_) => {
                let unsatisfied = ContentRange::Unsatisfied { length: len };
                self.start(416)
                    .field_display("Content-Range", unsatisfied)
                    .field_u64("Content-Length", 0)
                    .finish();
                self.sent.set((416, 0));
                self.send(&[], false).await?;
                Ok(None)
            }
        }
    }

    /// True when one range of a GET is wanted.
    pub fn wants_range(&self, facts: &Facts<'_>) -> bool {
        matches!(self.wanted_range(facts), RangeRequest::One(_))
    }

    /// The Range that applies: of a GET for ranged content whose If-Range, if any, matches.
    pub(super) fn wanted_range(&self, facts: &Facts<'_>) -> RangeRequest {
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
