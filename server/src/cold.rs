//! Ranges of a body that is not held: answered at once, whatever runs in the background.
//!
//! Called by `registry`. What a running fill has, or will have soon, comes from the fill. What it
//! will not is asked of upstream in bounded parts, one after the other as the client takes them,
//! so that an open-ended range which its client closes early costs no more than what was taken
//! and one part. Once the fill has caught up the response goes on from there.

use std::sync::Arc;
use std::time::Duration;

use entrepot_storage::{Digest, FillState};
use monoio::time::timeout;

use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Following};
use crate::http::range::{ByteRange, RangeRequest};
use crate::mailbox::Message;
use crate::oci::error::Code;
use crate::parts::{PART_LEN_MAX, Part, PartAsk, Unparted};
use crate::project::{Repository, digest_owner};
use crate::reading::Reading;
use crate::respond::{Exchange, Facts, Gone, Selection, WHOLE_LEN_MAX};
use crate::service::Service;

/// Responses of a shard that hold a part in memory; above that the client is refused, or waits
/// for the fill if one runs (R4).
pub const COLD_MAX: usize = 256;
/// The first part of a range that may go on: later ones are as long as all before them, so that
/// at least half of what upstream sends was taken by the client.
const PART_LEN_MIN: u64 = 256 << 10;
/// A fill that will be there within this time, at the speed it had so far, is waited for. A
/// request of our own takes about as long.
const SOON: Duration = Duration::from_millis(500);
/// What is predicted need not happen: after this long upstream is asked all the same.
const PATIENCE: Duration = Duration::from_secs(1);
/// A fill is always waited for when it is this near: it takes upstream's answers in such pieces.
const NEAR_LEN: u64 = 512 << 10;

/// What became of a range.
pub enum Outcome {
    Answered,
    /// Upstream sends nothing but whole bodies; nothing is said to the client yet.
    NoRanges,
}

/// Answers a request with a range of a blob; `following` is a place at its fill, if one runs.
pub async fn answer(
    exchange: &mut Exchange<'_>,
    source: &Repository,
    digest: Digest,
    facts: &Facts<'_>,
    following: Option<Following>,
) -> Result<Outcome, Gone> {
    let service = exchange.service.clone();
    let permit = service.permit(&service.cold, COLD_MAX);
    let mut cold = Cold {
        service: &service,
        source,
        digest,
        following: None,
        prefer: None,
        opening: None,
    };
    if let Some(mut following) = following {
        let len = following.watermark.len();
        let first = len.and_then(|len| first_byte(exchange.wanted_range(facts), len));
        let waits = match (len, first) {
            // A short one is verified before its head goes out, and that is soon.
            (Some(len), Some(first)) => {
                len <= WHOLE_LEN_MAX || comes_soon(&mut following, len, first).await
            }
            // There is no such byte, or nobody knows yet.
            _ => true,
        };
        if waits || permit.is_none() {
            exchange.follow(following, facts).await?;
            return Ok(Outcome::Answered);
        }
        cold.prefer = Some(following.origin.clone());
        cold.following = Some(following);
    }
    if permit.is_none() {
        let busy = Failure::busy("ranges of layers that are not held");
        exchange.failure(&busy, Code::BlobUnknown).await?;
        return Ok(Outcome::Answered);
    }
    cold.answer(exchange, facts).await
}

/// The first byte that is sent of a body of this length.
fn first_byte(wanted: RangeRequest<'_>, len: u64) -> Option<u64> {
    match wanted {
        RangeRequest::None => Some(0),
        RangeRequest::One(range) => range.resolve(len).ok().map(|(start, _)| start),
        RangeRequest::Several(ranges) => match ranges.resolve(len).ok()? {
            Some(parts) => parts.first().map(|(start, _)| *start),
            None => Some(0),
        },
    }
}

/// Waits for byte `at` of a body of `len`, if it is worth it. True when the fill has it, or failed.
async fn comes_soon(following: &mut Following, len: u64, at: u64) -> bool {
    is_soon(following, len, at) && timeout(PATIENCE, following.follower.wait(at)).await.is_ok()
}

/// Whether byte `at` of a body of `len` will be readable soon.
fn is_soon(following: &Following, len: u64, at: u64) -> bool {
    let readable = following.watermark.readable();
    // The tail becomes readable with the last byte.
    let needed = match at < len - WHOLE_LEN_MAX.min(len) {
        true => at + 1,
        false => len,
    };
    arrives_within(SOON, readable, needed, following.started.elapsed())
}

/// Whether a fill that took `elapsed` for `readable` bytes has `needed` of them after `patience`.
fn arrives_within(patience: Duration, readable: u64, needed: u64, elapsed: Duration) -> bool {
    let missing = needed.saturating_sub(readable);
    missing <= NEAR_LEN
        || u128::from(missing) * elapsed.as_micros() <= u128::from(readable) * patience.as_micros()
}

struct Cold<'c> {
    service: &'c Service,
    source: &'c Repository,
    digest: Digest,
    following: Option<Following>,
    prefer: Option<Arc<str>>,
    /// A part that was fetched already, and where it starts.
    opening: Option<(u64, Part)>,
}

impl Cold<'_> {
    async fn answer(
        &mut self,
        exchange: &mut Exchange<'_>,
        facts: &Facts<'_>,
    ) -> Result<Outcome, Gone> {
        let len = match self.length(exchange.wanted_range(facts)).await {
            Ok(len) => len,
            Err(unparted) => return refuse(exchange, unparted).await,
        };
        let Some(selection) = exchange.select(facts, len).await? else {
            return Ok(Outcome::Answered);
        };
        // The first bytes are here before anything is promised.
        let (start, end) = selection.parts()[0];
        if self.opening.as_ref().is_none_or(|(at, _)| *at != start) {
            let first = (start, end.min(start + PART_LEN_MIN));
            match self.part(first).await {
                Ok(part) => self.opening = Some((start, part)),
                Err(unparted) => return refuse(exchange, unparted).await,
            }
        }
        self.send(exchange, facts, len, &selection).await?;
        Ok(Outcome::Answered)
    }

    /// The length of the body: from the fill, from the first bytes that are wanted, or by a HEAD.
    async fn length(&mut self, wanted: RangeRequest<'_>) -> Result<u64, Unparted> {
        let known = self.following.as_ref();
        if let Some(len) = known.and_then(|following| following.watermark.len()) {
            return Ok(len);
        }
        if let Some(first) = opening(wanted) {
            match self.part(first).await {
                Ok(part) => {
                    let len = part.body_len;
                    self.prefer = Some(part.origin.clone());
                    self.opening = Some((first.0, part));
                    if let Some(len) = len {
                        return Ok(len);
                    }
                }
                // RFC 9110 §15.5.17: the range lies outside; the length says so to the client.
                Err(Unparted::Failed(failure)) if failure.status == Some(416) => {}
                Err(unparted) => return Err(unparted),
            }
        }
        let (lookup, kind) = (&self.service.lookup, BodyKind::Blob);
        let proven = lookup.prove(self.source, self.digest, kind).await;
        let unknown = || {
            Failure::new(
                FailureKind::ServerError,
                "upstream does not tell the length",
            )
        };
        proven
            .and_then(|proven| proven.len.ok_or_else(unknown))
            .map_err(Unparted::Failed)
    }

    async fn send(
        &mut self,
        exchange: &mut Exchange<'_>,
        facts: &Facts<'_>,
        len: u64,
        selection: &Selection<'_>,
    ) -> Result<(), Gone> {
        exchange.begin(facts, len, selection);
        for (nth, (start, end)) in selection.parts().iter().enumerate() {
            exchange.begin_part(selection, nth);
            self.send_part(exchange, facts, len, (*start, *end)).await?;
        }
        exchange.end_parts(selection).await
    }

    async fn send_part(
        &mut self,
        exchange: &mut Exchange<'_>,
        facts: &Facts<'_>,
        len: u64,
        (start, end): (u64, u64),
    ) -> Result<(), Gone> {
        let mut at = start;
        while at < end {
            let opening = self.opening.take().filter(|(first, _)| *first == at);
            if let Some(following) = &mut self.following {
                if let FillState::Failed(_) = following.watermark.state() {
                    return exchange.abort("the fill of the same body failed");
                }
                if opening.is_none() && comes_soon(following, len, at).await {
                    let mut reading = Reading::new(following.watermark.lease(), facts.digest);
                    return exchange.follow_to(following, &mut reading, at, end).await;
                }
            }
            let part = match opening {
                Some((_, part)) => part,
                None => {
                    let step = (at - start).clamp(PART_LEN_MIN, PART_LEN_MAX);
                    match self.part((at, end.min(at + step))).await {
                        Ok(part) => part,
                        Err(Unparted::NoRanges) => {
                            return exchange.abort("upstream stopped to answer ranges");
                        }
                        Err(Unparted::Failed(failure)) => return exchange.abort(&failure.detail),
                    }
                }
            };
            if part.body_len.is_some_and(|told| told != len) {
                return exchange.abort("upstream tells two lengths of one body");
            }
            let wanted = (part.bytes.len() as u64).min(end - at);
            exchange.relay_piece(&part.bytes[..wanted as usize]).await?;
            at += wanted;
        }
        Ok(())
    }

    async fn part(&self, range: (u64, u64)) -> Result<Part, Unparted> {
        let post = self.service.lookup.post();
        let owner = digest_owner(&self.digest, post.shards());
        let asked = post.ask(owner, |reply| {
            Message::Part(PartAsk {
                digest: self.digest,
                source: self.source.clone(),
                range,
                prefer: self.prefer.clone(),
                reply,
            })
        });
        asked.await.map_err(Unparted::Failed)?
    }
}

async fn refuse(exchange: &mut Exchange<'_>, unparted: Unparted) -> Result<Outcome, Gone> {
    match unparted {
        Unparted::NoRanges => Ok(Outcome::NoRanges),
        Unparted::Failed(failure) => {
            exchange.failure(&failure, Code::BlobUnknown).await?;
            Ok(Outcome::Answered)
        }
    }
}

/// The part to begin with while the length is unknown; none if only the length tells where the
/// range is.
fn opening(wanted: RangeRequest<'_>) -> Option<(u64, u64)> {
    let first = match wanted {
        RangeRequest::None => return None,
        RangeRequest::One(range) => range,
        RangeRequest::Several(ranges) => ranges.members().next()?,
    };
    match first {
        ByteRange::Between { first, last } => {
            let end = first.checked_add(PART_LEN_MIN)?;
            Some((first, last.saturating_add(1).min(end)))
        }
        ByteRange::From { first } => Some((first, first.checked_add(PART_LEN_MIN)?)),
        ByteRange::Suffix { .. } => None,
    }
}

#[cfg(test)]
mod tests {
    use super::{Duration, NEAR_LEN, SOON, arrives_within, opening};
    use crate::http::range;

    #[test]
    fn a_fill_is_waited_for_when_it_is_near_or_fast_enough() {
        let mib = 1 << 20;
        let second = Duration::from_secs(1);
        let cases = [
            (0, 1, Duration::ZERO, true),
            (0, NEAR_LEN, second, true),
            (0, NEAR_LEN + 1, second, false),
            (10 * mib, 15 * mib, second, true),
            (10 * mib, 16 * mib, second, false),
            (20 * mib, 10 * mib, second, true),
        ];
        for (readable, needed, elapsed, expected) in cases {
            let found = arrives_within(SOON, readable, needed, elapsed);
            assert_eq!(found, expected, "{readable} {needed} {elapsed:?}");
        }
    }

    #[test]
    fn the_first_part_is_bounded() {
        let kib = 1 << 10;
        let cases = [
            ("bytes=0-9", Some((0, 10))),
            ("bytes=0-", Some((0, 256 * kib))),
            ("bytes=10-999999999", Some((10, 10 + 256 * kib))),
            ("bytes=10-19,50-59", Some((10, 20))),
            ("bytes=-5", None),
            ("bytes=18446744073709551615-", None),
        ];
        for (value, expected) in cases {
            let wanted = range::parse(value.as_bytes());
            assert_eq!(opening(wanted), expected, "{value}");
        }
    }
}
