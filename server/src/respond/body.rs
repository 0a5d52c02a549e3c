//! Bodies on their way to a client: held ones from memory or by `sendfile`, those of a running
//! fill as its watermark moves.

use bytes::Bytes;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Body, FillFailure, FillState};

use super::{Exchange, Facts, Gone, Selection, WHOLE_LEN_MAX};
use crate::fetch::Following;
use crate::http::framing::{CHUNK_END, LAST_CHUNK, push_chunk_size};
use crate::http::head::Version;
use crate::http::range::RangeRequest;
use crate::metrics::{Counter, Gauge};
use crate::net::sendfile::SendError;
use crate::net::watchdog::Phase;
use crate::oci::error::Code;
use crate::reading::Reading;

/// What a client was told of the body of a fill.
pub enum Followed {
    /// The body, or an error.
    Answered,
    /// Nothing yet, and the bytes have another digest: there may be others to ask.
    Mismatched,
}

impl Exchange<'_> {
    /// A body of the store: from memory when it is small, else by `sendfile`.
    pub async fn held(&mut self, body: &Body<UringDisk>, facts: &Facts<'_>) -> Result<(), Gone> {
        let Some(selection) = self.select(facts, body.len).await? else {
            return Ok(());
        };
        self.content_head(facts, Some(body.len), &selection);
        if self.is_head() {
            return self.send(&[], false).await;
        }
        match &body.bytes {
            Some(bytes) => self.memory(bytes, &selection).await,
            None => self.extent(body, facts.digest, &selection).await,
        }
    }

    /// A body that is being filled: what is readable now, then what becomes so.
    pub async fn follow(
        &mut self,
        mut following: Following,
        facts: &Facts<'_>,
    ) -> Result<Followed, Gone> {
        let _gauge = self.service.metrics.hold(Gauge::Followers);
        let streams_unknown = self.head().version >= Version::Http11
            && !self.is_head()
            && self.wanted_range(facts) == RangeRequest::None;
        let len = following.watermark.len();
        if len.is_none_or(|len| len <= WHOLE_LEN_MAX) && !(len.is_none() && streams_unknown) {
            // Nothing is said before it is known to be true.
            if let (_, FillState::Failed(why)) = following.follower.wait(u64::MAX).await {
                return self.fill_failed(why).await;
            }
        }
        if following.watermark.len().is_none() {
            // A short one may have ended by the time its first byte may go out.
            if let (_, FillState::Failed(why)) = following.follower.wait(0).await {
                return self.fill_failed(why).await;
            }
        }
        let Some(len) = following.watermark.len() else {
            self.stream_unknown(following, facts).await?;
            return Ok(Followed::Answered);
        };
        let Some(selection) = self.select(facts, len).await? else {
            return Ok(Followed::Answered);
        };
        if self.is_head() {
            self.content_head(facts, Some(len), &selection);
            self.send(&[], false).await?;
            return Ok(Followed::Answered);
        }
        let (first, _) = selection.parts()[0];
        if let (_, FillState::Failed(why)) = following.follower.wait(first).await {
            return self.fill_failed(why).await;
        }
        self.content_head(facts, Some(len), &selection);
        let mut reading = Reading::new(following.watermark.lease(), facts.digest);
        for (nth, (start, end)) in selection.parts().iter().enumerate() {
            selection.push_head(nth, self.out);
            self.follow_to(&mut following, &mut reading, *start, *end)
                .await?;
        }
        self.end_parts(&selection).await?;
        Ok(Followed::Answered)
    }

    /// Sends `[at, end)` of a body that is being filled, as it becomes readable.
    pub async fn follow_to(
        &mut self,
        following: &mut Following,
        reading: &mut Reading<'_>,
        mut at: u64,
        end: u64,
    ) -> Result<(), Gone> {
        while at < end {
            self.socket.enter(Phase::Work);
            let (readable, _) = following.follower.wait(at).await;
            if readable <= at {
                return self.abort("the fill failed");
            }
            let to = readable.min(end);
            self.slice(reading, at, to).await?;
            at = to;
        }
        Ok(())
    }

    /// Sends what is left in `out`: the end of several parts, or the head of an empty body.
    pub async fn end_parts(&mut self, selection: &Selection<'_>) -> Result<(), Gone> {
        selection.push_end(self.out);
        match self.out.is_empty() {
            true => Ok(()),
            false => self.send(&[], false).await,
        }
    }

    /// A body of unknown length, chunked; its last chunk is sent once the digest matched.
    async fn stream_unknown(
        &mut self,
        mut following: Following,
        facts: &Facts<'_>,
    ) -> Result<(), Gone> {
        let (mut readable, mut state) = following.follower.wait(0).await;
        self.content_head(facts, None, &Selection::whole(0));
        let mut reading = Reading::new(following.watermark.lease(), facts.digest);
        let mut at = 0;
        loop {
            if readable > at {
                push_chunk_size(self.out, (readable - at) as usize);
                self.slice(&mut reading, at, readable).await?;
                self.out.extend_from_slice(CHUNK_END);
                at = readable;
                self.sent.set((200, at));
            }
            match state {
                FillState::Running => {}
                FillState::Verified if following.watermark.len() == Some(at) => break,
                FillState::Verified => {}
                FillState::Failed(_) => return self.abort("the fill failed"),
            }
            self.send(&[], false).await?;
            self.socket.enter(Phase::Work);
            (readable, state) = following.follower.wait(at).await;
        }
        self.send(LAST_CHUNK, false).await
    }

    /// Nothing was said yet. A mismatch is not the last word: the caller asks once more, and says
    /// so to the client when nobody has the right bytes.
    async fn fill_failed(&mut self, why: FillFailure) -> Result<Followed, Gone> {
        if why == FillFailure::WrongDigest {
            return Ok(Followed::Mismatched);
        }
        let why = "upstream sent a body that is cut short or does not match its digest";
        self.error(502, Code::Unknown, why, None).await?;
        Ok(Followed::Answered)
    }

    async fn memory(&mut self, bytes: &Bytes, selection: &Selection<'_>) -> Result<(), Gone> {
        let part = |(start, end): (u64, u64)| &bytes[start as usize..end as usize];
        let mut len = 0;
        match selection.parts() {
            [only] => {
                len = part(*only).len();
                self.send(part(*only), false).await?;
            }
            // Together they are no longer than the body, which is small.
            parts => {
                for (nth, each) in parts.iter().enumerate() {
                    selection.push_head(nth, self.out);
                    self.out.extend_from_slice(part(*each));
                    len += part(*each).len();
                }
                self.end_parts(selection).await?;
            }
        }
        self.count(Counter::ServedMemory, len as u64);
        Ok(())
    }

    async fn extent(
        &mut self,
        body: &Body<UringDisk>,
        digest: &str,
        selection: &Selection<'_>,
    ) -> Result<(), Gone> {
        let mut reading = Reading::new(body.lease.clone(), digest);
        for (nth, (start, end)) in selection.parts().iter().enumerate() {
            if start == end {
                continue;
            }
            selection.push_head(nth, self.out);
            let sent = self.slice_sent(&mut reading, *start, *end).await;
            if let Err(SendError::Store(_) | SendError::Truncated) = sent {
                self.service.lookup.suspect(digest);
            }
            self.cut_unless(sent)?;
        }
        self.end_parts(selection).await
    }

    /// What is in `out`, then a range of the body in the same packets.
    async fn slice(&mut self, reading: &mut Reading<'_>, from: u64, to: u64) -> Result<(), Gone> {
        let sent = self.slice_sent(reading, from, to).await;
        self.cut_unless(sent)
    }

    fn cut_unless(&mut self, sent: Result<(), SendError>) -> Result<(), Gone> {
        match sent {
            Ok(()) => Ok(()),
            Err(SendError::Client(_)) => Err(Gone),
            Err(error) => self.abort(&error.to_string()),
        }
    }

    async fn slice_sent(
        &mut self,
        reading: &mut Reading<'_>,
        from: u64,
        to: u64,
    ) -> Result<(), SendError> {
        self.socket.enter(Phase::Send);
        if !self.out.is_empty() {
            let head = self.socket.send_all([self.out, &[]], true).await;
            head.map_err(SendError::Client)?;
            self.out.clear();
        }
        reading.send(self.socket, self.service, from, to).await
    }
}
