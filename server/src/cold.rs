//! Ranges of a body that is not held: answered at once, whatever runs in the background.
//!
//! Called by `registry`. What a running fill has, or will have soon, comes from the fill. What it
//! will not is asked of upstream in bounded parts, as the client takes them, so that an open-ended
//! range which its client closes early costs no more than a few times what was taken. Once the
//! fill has caught up the response goes on from there. Ranges that are near one another are asked
//! for together; what is wanted from too many places is fetched whole.

mod coming;
mod spans;

use std::time::Duration;

use entrepot_storage::{Digest, FillState};
use monoio::time::timeout;

use self::coming::{Asker, Coming, PART_LEN_MIN};
use self::spans::{GAP_LEN_MAX, Spans};

use crate::failure::{Failure, FailureKind};
use crate::fetch::{BodyKind, Following};
use crate::http::range::{ByteRange, RangeRequest};
use crate::oci::error::Code;
use crate::parts::{Part, Unparted};
use crate::project::Repository;
use crate::reading::Reading;
use crate::respond::{Exchange, Facts, Followed, Gone, Selection, WHOLE_LEN_MAX};
use crate::service::Service;

/// Responses of a shard that hold a part in memory; above that the client is refused, or waits
/// for the fill if one runs (R4).
pub const COLD_MAX: usize = 256;
/// Of those the ones that ask ahead and hold two parts more; the others wait for each.
const AHEAD_MAX: usize = 64;
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
    /// The whole body is needed: upstream sends nothing else, the ranges lie in too many places, or a
    /// fill brought wrong bytes. Nothing is said to the client yet.
    Whole,
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
        asker: Asker {
            post: service.lookup.post().clone(),
            source: source.clone(),
            digest,
            prefer: None,
        },
        following: None,
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
            return Ok(match exchange.follow(following, facts).await? {
                Followed::Answered => Outcome::Answered,
                Followed::Mismatched => Outcome::Whole,
            });
        }
        cold.asker.prefer = Some(following.origin.clone());
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
    asker: Asker,
    following: Option<Following>,
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
        // Nothing is verified here: a whole body, which a 200 promises, is a fill's business.
        if matches!(selection, Selection::Whole(_)) {
            return Ok(Outcome::Whole);
        }
        let Some(spans) = Spans::of(selection.parts()) else {
            return Ok(Outcome::Whole);
        };
        // A fill is on its way to what is wanted: nothing is asked for that it may bring itself.
        let permit = match self.following {
            Some(_) => None,
            None => self.service.permit(&self.service.ahead, AHEAD_MAX),
        };
        let opening = self.opening.take();
        let mut coming = Coming::new(self.asker.clone(), len, spans, opening, permit);
        // The first bytes are here before anything is promised.
        if let Err(unparted) = coming.reach(0, selection.parts()[0].0, 0).await {
            return refuse(exchange, unparted).await;
        }
        self.send(exchange, facts, (len, &selection), &mut coming)
            .await?;
        Ok(Outcome::Answered)
    }

    /// The length of the body: from the fill, from the first bytes that are wanted, or by a HEAD.
    async fn length(&mut self, wanted: RangeRequest<'_>) -> Result<u64, Unparted> {
        let known = self.following.as_ref();
        if let Some(len) = known.and_then(|following| following.watermark.len()) {
            return Ok(len);
        }
        if let Some(first) = opening(wanted) {
            match self.asker.clone().part(first, false).await {
                Ok(part) => {
                    let len = part.body_len;
                    self.asker.prefer = Some(part.origin.clone());
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
        let Asker { source, digest, .. } = &self.asker;
        let lookup = &self.service.lookup;
        let proven = lookup.prove(source, *digest, BodyKind::Blob, None).await;
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
        (len, selection): (u64, &Selection<'_>),
        coming: &mut Coming,
    ) -> Result<(), Gone> {
        exchange.begin(facts, len, selection);
        let mut sent = 0;
        for (nth, (start, end)) in selection.parts().iter().enumerate() {
            exchange.begin_part(selection, nth);
            let mut at = *start;
            while at < *end {
                if !coming.has(at) && self.follows(exchange, facts, (len, at, *end)).await? {
                    break;
                }
                match coming.reach(nth, at, sent).await {
                    Ok(()) => {}
                    Err(Unparted::NoRanges) => {
                        return exchange.abort("upstream stopped to answer ranges");
                    }
                    Err(Unparted::Failed(failure)) => return exchange.abort(&failure.detail),
                }
                let piece = coming.bytes(at, *end);
                exchange.relay_piece(&piece).await?;
                at += piece.len() as u64;
                sent += piece.len() as u64;
            }
        }
        exchange.end_parts(selection).await
    }

    /// Sends `[at, end)` from the fill, if there is one that has its beginning by now or soon.
    async fn follows(
        &mut self,
        exchange: &mut Exchange<'_>,
        facts: &Facts<'_>,
        (len, at, end): (u64, u64, u64),
    ) -> Result<bool, Gone> {
        let Some(following) = &mut self.following else {
            return Ok(false);
        };
        if let FillState::Failed(_) = following.watermark.state() {
            return exchange
                .abort("the fill of the same body failed")
                .map(|()| false);
        }
        if !comes_soon(following, len, at).await {
            return Ok(false);
        }
        let mut reading = Reading::new(following.watermark.lease(), facts.digest);
        let sent = exchange.follow_to(following, &mut reading, at, end).await;
        sent.map(|()| true)
    }
}

async fn refuse(exchange: &mut Exchange<'_>, unparted: Unparted) -> Result<Outcome, Gone> {
    match unparted {
        Unparted::NoRanges => Ok(Outcome::Whole),
        Unparted::Failed(failure) => {
            exchange.failure(&failure, Code::BlobUnknown).await?;
            Ok(Outcome::Answered)
        }
    }
}

/// The part to begin with while the length is unknown: of the first range, and of those that follow
/// it closely. None if only the length tells where the range is.
fn opening(wanted: RangeRequest<'_>) -> Option<(u64, u64)> {
    let ranges = match wanted {
        RangeRequest::None => return None,
        RangeRequest::One(range) => return opening_of(range),
        RangeRequest::Several(ranges) => ranges,
    };
    let mut members = ranges.members();
    let (start, mut end) = opening_of(members.next()?)?;
    for member in members {
        match member {
            ByteRange::Between { first, last }
                if first.checked_sub(end).is_some_and(|gap| gap <= GAP_LEN_MAX)
                    && last < start + PART_LEN_MIN =>
            {
                end = last + 1;
            }
            _ => break,
        }
    }
    Some((start, end))
}

fn opening_of(range: ByteRange) -> Option<(u64, u64)> {
    match range {
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
            ("bytes=10-19,50-59", Some((10, 60))),
            ("bytes=10-19,50-", Some((10, 20))),
            ("bytes=50-59,10-19", Some((50, 60))),
            ("bytes=0-9,5-12", Some((0, 10))),
            ("bytes=10-19,65556-65557", Some((10, 65558))),
            ("bytes=10-19,65557-65558", Some((10, 20))),
            ("bytes=0-9,10-999999", Some((0, 10))),
            ("bytes=-5", None),
            ("bytes=18446744073709551615-", None),
        ];
        for (value, expected) in cases {
            let wanted = range::parse(value.as_bytes());
            assert_eq!(opening(wanted), expected, "{value}");
        }
    }
}
