//! Writes answers: heads, bodies from memory and by `sendfile`, streams that follow a fill.
//!
//! Called by `registry` with what is to be sent; decides nothing about where it comes from. A
//! response delivers exactly its Content-Length or the connection is reset (R6), so whatever goes
//! wrong after the head ends in `Gone`. Status, bytes and cause are logged once per request.

use std::cell::Cell;
use std::fmt::{self, Display};
use std::rc::Rc;
use std::time::Instant;

use bytes::Bytes;
use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Body, FillState};

use crate::failure::Failure;
use crate::fetch::Following;
use crate::http::date;
use crate::http::etag;
use crate::http::framing::{CHUNK_END, LAST_CHUNK, push_chunk_size};
use crate::http::head::{Method, RequestHead, Version};
use crate::http::range::{self, ByteRange, ContentRange, RangeRequest};
use crate::http::response::ResponseHead;
use crate::metrics::{Counter, Gauge, Outcome};
use crate::net::sendfile::SendError;
use crate::net::socket::{Phase, Socket};
use crate::oci::error::{self, Code};
use crate::reading::Reading;
use crate::service::Service;

/// The connection can't go on: the client left, or a body could not be completed.
#[derive(Debug)]
pub struct Gone;

impl From<std::io::Error> for Gone {
    fn from(_: std::io::Error) -> Gone {
        Gone
    }
}

/// What a blob is sent as; its true type is in the descriptor that led to it.
pub const BLOB_TYPE: &str = "application/octet-stream";

/// Why there is nothing left to send.
pub enum Answered {
    Sent,
    Gone,
}

impl From<Gone> for Answered {
    fn from(Gone: Gone) -> Answered {
        Answered::Gone
    }
}

/// A body up to this long is wholly verified before its head goes out, so that a failure is a
/// clean 502 (S2).
pub const WHOLE_LEN_MAX: u64 = entrepot_storage::WITHHELD_BYTES;

/// RFC 9211: what the cache did, as `Cache-Status` and in the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheStatus {
    Hit,
    /// Upstream was asked for the bytes.
    Miss,
    /// Upstream was asked, and the bytes do not stay: there is no room.
    Passed,
    /// Somebody else's request had asked upstream already.
    Collapsed,
    /// Upstream confirmed what we hold.
    Revalidated,
    /// Upstream could not be asked.
    Stale,
}

impl Display for CacheStatus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CacheStatus::Hit => "entrepot; hit",
            CacheStatus::Miss => "entrepot; fwd=uri-miss; stored",
            CacheStatus::Passed => "entrepot; fwd=uri-miss",
            CacheStatus::Collapsed => "entrepot; fwd=uri-miss; collapsed; stored",
            CacheStatus::Revalidated => "entrepot; hit; detail=revalidated",
            CacheStatus::Stale => "entrepot; hit; detail=stale",
        })
    }
}

/// What the head of a body's answer says.
pub struct Facts<'a> {
    /// `sha256:…`
    pub digest: &'a str,
    pub media_type: &'a str,
    pub cache: CacheStatus,
    /// Seconds since upstream was last asked, for what can grow old.
    pub age_s: Option<u64>,
    /// The text of `Warning: 299`, on a stale answer.
    pub warning: Option<&'a str>,
    /// Byte ranges are honoured for blobs, not for manifests.
    pub ranges: bool,
}

/// One request and the way back to its client.
pub struct Exchange<'a> {
    pub service: &'a Rc<Service>,
    pub socket: &'a Rc<Socket>,
    head: Option<&'a RequestHead<'a>>,
    out: &'a mut Vec<u8>,
    keep_alive: bool,
    started: Instant,
    /// Echoed as `OCI-Namespace` when the client asked by `ns`.
    pub namespace: Option<String>,
    /// The body being relayed is sent in chunks.
    chunked: bool,
    /// Status and body bytes so far, for the log.
    sent: Cell<(u16, u64)>,
    pub cache: Option<CacheStatus>,
}

/// The part of a body that is to be sent.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
    partial: bool,
}

impl<'a> Exchange<'a> {
    pub fn new(
        service: &'a Rc<Service>,
        socket: &'a Rc<Socket>,
        head: &'a RequestHead<'a>,
        out: &'a mut Vec<u8>,
        has_body: bool,
    ) -> Exchange<'a> {
        let keep_alive = head.keep_alive && !has_body && !service.watchdog.draining();
        let mut exchange = Exchange::refusal(service, socket, out);
        exchange.keep_alive = keep_alive;
        exchange.head = Some(head);
        exchange
    }

    /// An exchange whose request could not be understood: the connection closes after it.
    pub fn refusal(
        service: &'a Rc<Service>,
        socket: &'a Rc<Socket>,
        out: &'a mut Vec<u8>,
    ) -> Exchange<'a> {
        Exchange {
            service,
            socket,
            head: None,
            out,
            keep_alive: false,
            started: Instant::now(),
            namespace: None,
            chunked: false,
            sent: Cell::new((0, 0)),
            cache: None,
        }
    }

    pub fn head(&self) -> &'a RequestHead<'a> {
        self.head
            .expect("only a refusal has no head, and it asks for nothing")
    }

    pub fn is_head(&self) -> bool {
        self.head.is_some_and(|head| head.method == Method::Head)
    }

    /// Whether another request may follow on the connection.
    pub fn keep_alive(&self) -> bool {
        self.keep_alive
    }

    pub fn elapsed_ms(&self) -> u64 {
        self.started.elapsed().as_millis() as u64
    }

    /// Status and body bytes of the answer.
    pub fn sent(&self) -> (u16, u64) {
        self.sent.get()
    }

    /// An OCI error (distribution-spec, error codes).
    pub async fn error(
        &mut self,
        status: u16,
        code: Code,
        message: &str,
        retry_after_s: Option<u32>,
    ) -> Result<(), Gone> {
        let body = error::body(code, message, None);
        let mut head = self.start(status).field("Content-Type", "application/json");
        head = head.field_u64("Content-Length", body.len() as u64);
        if status == 405 {
            head = head.field("Allow", "GET, HEAD");
        }
        if let Some(seconds) = retry_after_s {
            head = head.field_u64("Retry-After", seconds.into());
        }
        head.finish();
        self.sent.set((status, body.len() as u64));
        self.flush(&body).await
    }

    pub async fn failure(&mut self, failure: &Failure, unknown: Code) -> Result<(), Gone> {
        let (status, code) = (failure.http_status(), failure.code(unknown));
        self.error(status, code, &failure.detail, failure.retry_after_s)
            .await
    }

    /// A small answer that is not content: the base endpoint, a listing.
    pub async fn document(
        &mut self,
        media_type: &str,
        fields: &[(&str, &str)],
        body: &[u8],
    ) -> Result<(), Gone> {
        let cache = self.cache.clone();
        let mut head = self.start(200).field("Content-Type", media_type);
        head = head.field_u64("Content-Length", body.len() as u64);
        if let Some(cache) = cache {
            head = head.field_display("Cache-Status", cache);
        }
        for (name, value) in fields {
            head = head.field(name, value);
        }
        head.finish();
        self.sent.set((200, body.len() as u64));
        self.flush(body).await
    }

    /// The head of a body that only upstream has.
    pub async fn remote(&mut self, facts: &Facts<'_>, len: u64) -> Result<(), Gone> {
        self.content_head(
            facts,
            Some(len),
            Span {
                start: 0,
                end: len,
                partial: false,
            },
        );
        self.sent.set((200, 0));
        self.send(&[], false).await
    }

    /// A body of the store: from memory when it is small, else by `sendfile`.
    pub async fn held(&mut self, body: &Body<UringDisk>, facts: &Facts<'_>) -> Result<(), Gone> {
        let Some(span) = self.span(facts, body.len).await? else {
            return Ok(());
        };
        self.content_head(facts, Some(body.len), span);
        if self.is_head() {
            return self.send(&[], false).await;
        }
        match &body.bytes {
            Some(bytes) => self.memory(bytes, span).await,
            None => self.extent(body, facts.digest, span).await,
        }
    }

    /// A body that is being filled: what is readable now, then what becomes so.
    pub async fn follow(
        &mut self,
        mut following: Following,
        facts: &Facts<'_>,
    ) -> Result<(), Gone> {
        let _gauge = self.service.metrics.hold(Gauge::Followers);
        let streams_unknown = self.head().version >= Version::Http11
            && !self.is_head()
            && self.wanted_range(facts) == RangeRequest::None;
        let len = following.watermark.len();
        if len.is_none_or(|len| len <= WHOLE_LEN_MAX) && !(len.is_none() && streams_unknown) {
            // Nothing is said before it is known to be true.
            if following.follower.wait(u64::MAX).await.1 != FillState::Verified {
                return self.fill_failed().await;
            }
        }
        if following.watermark.len().is_none() {
            // A short one may have ended by the time its first byte may go out.
            let (_, state) = following.follower.wait(0).await;
            if let FillState::Failed(_) = state {
                return self.fill_failed().await;
            }
        }
        let Some(len) = following.watermark.len() else {
            return self.stream_unknown(following, facts).await;
        };
        let Some(span) = self.span(facts, len).await? else {
            return Ok(());
        };
        if self.is_head() {
            self.content_head(facts, Some(len), span);
            return self.send(&[], false).await;
        }
        let (mut readable, mut state) = following.follower.wait(span.start).await;
        if let FillState::Failed(_) = state {
            return self.fill_failed().await;
        }
        self.content_head(facts, Some(len), span);
        let mut reading = Reading::new(following.watermark.lease(), facts.digest);
        let mut at = span.start;
        while at < span.end {
            if readable <= at {
                if state != FillState::Running {
                    return self.abort("the fill failed");
                }
                self.socket.enter(Phase::Work);
                (readable, state) = following.follower.wait(at).await;
                continue;
            }
            let to = readable.min(span.end);
            self.slice(&mut reading, at, to).await?;
            at = to;
        }
        // An empty body has had nothing to take its head along.
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
        if let FillState::Failed(_) = state {
            return self.fill_failed().await;
        }
        self.content_head(
            facts,
            None,
            Span {
                start: 0,
                end: 0,
                partial: false,
            },
        );
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

    /// Begins a range that `relay` sends piece by piece.
    pub fn begin_relayed_range(&mut self, facts: &Facts<'_>, len: u64, (start, end): (u64, u64)) {
        let partial = true;
        self.content_head(
            facts,
            Some(len),
            Span {
                start,
                end,
                partial,
            },
        );
    }

    /// Begins a body that `relay` sends piece by piece: of unknown length in chunks. False for a
    /// client that knows none; then nothing is begun.
    pub fn begin_relay(&mut self, facts: &Facts<'_>, len: Option<u64>) -> bool {
        self.chunked = len.is_none();
        if self.chunked && self.head().version < Version::Http11 {
            return false;
        }
        let end = len.unwrap_or(0);
        let partial = false;
        let start = 0;
        self.content_head(
            facts,
            len,
            Span {
                start,
                end,
                partial,
            },
        );
        true
    }

    /// Ends what was begun; only then is a body of unknown length complete.
    pub async fn end_relay(&mut self) -> Result<(), Gone> {
        if self.chunked {
            self.out.extend_from_slice(LAST_CHUNK);
        }
        self.send(&[], false).await
    }

    pub async fn relay_piece(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        self.socket.enter(Phase::Send);
        if self.chunked {
            push_chunk_size(self.out, bytes.len());
            self.send(bytes, true).await?;
            self.out.extend_from_slice(CHUNK_END);
            self.send(&[], false).await?;
            let (status, sent) = self.sent.get();
            self.sent.set((status, sent + bytes.len() as u64));
        } else {
            self.send(bytes, false).await?;
        }
        self.count(Counter::ServedRelay, bytes.len() as u64);
        self.socket.enter(Phase::Work);
        Ok(())
    }

    /// Ends the connection in the middle of a body, visibly.
    pub fn abort(&mut self, why: &str) -> Result<(), Gone> {
        tracing::warn!(peer = %self.socket.peer(), why, "response cut short");
        self.socket.abort_on_close();
        Err(Gone)
    }

    async fn fill_failed(&mut self) -> Result<(), Gone> {
        let why = "upstream sent a body that is cut short or does not match its digest";
        self.error(502, Code::Unknown, why, None).await
    }

    /// 304, 416, or the part that is to be sent. `None` when the answer is already complete.
    async fn span(&mut self, facts: &Facts<'_>, len: u64) -> Result<Option<Span>, Gone> {
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
    fn wanted_range(&self, facts: &Facts<'_>) -> RangeRequest {
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

    fn content_head(&mut self, facts: &Facts<'_>, len: Option<u64>, span: Span) {
        let status = if span.partial { 206 } else { 200 };
        let bytes = if self.is_head() {
            0
        } else {
            span.end - span.start
        };
        self.sent.set((status, bytes));
        let close_at_end = len.is_none();
        let mut head = self.start(status).field("Content-Type", facts.media_type);
        head = match len {
            Some(_) => head.field_u64("Content-Length", span.end - span.start),
            None => head.field("Transfer-Encoding", "chunked"),
        };
        if let Some(length) = len.filter(|_| span.partial) {
            let part = ContentRange::Part {
                start: span.start,
                end: span.end,
                length: Some(length),
            };
            head = head.field_display("Content-Range", part);
        }
        head = head
            .field("Docker-Content-Digest", facts.digest)
            .field_display("ETag", format_args!("\"{}\"", facts.digest));
        if facts.ranges && !close_at_end {
            head = head.field("Accept-Ranges", "bytes");
        }
        head = head.field_display("Cache-Status", &facts.cache);
        if let Some(seconds) = facts.age_s {
            head = head.field_u64("Age", seconds);
        }
        if let Some(text) = facts.warning {
            head = head.field_display("Warning", format_args!("299 - \"{text}\""));
        }
        head.finish();
        self.cache = Some(facts.cache.clone());
    }

    /// Status line and the fields that every answer has.
    fn start(&mut self, status: u16) -> ResponseHead<'_> {
        self.out.clear();
        let now = crate::clock::now();
        let mut head = ResponseHead::new(self.out, status)
            .field_bytes("Date", &date::format(now))
            .field("Docker-Distribution-API-Version", "registry/2.0");
        if let Some(namespace) = &self.namespace {
            head = head.field("OCI-Namespace", namespace);
        }
        // RFC 9112 §9.3: HTTP/1.0 closes unless it is told otherwise.
        let old = self.head.is_some_and(|head| head.version < Version::Http11);
        if !self.keep_alive {
            head = head.field("Connection", "close");
        } else if old {
            head = head.field("Connection", "keep-alive");
        }
        head
    }

    async fn flush(&mut self, body: &[u8]) -> Result<(), Gone> {
        let body = if self.is_head() { &[] } else { body };
        self.send(body, false).await
    }

    async fn memory(&mut self, bytes: &Bytes, span: Span) -> Result<(), Gone> {
        let part = &bytes[span.start as usize..span.end as usize];
        self.send(part, false).await?;
        self.count(Counter::ServedMemory, part.len() as u64);
        Ok(())
    }

    async fn extent(
        &mut self,
        body: &Body<UringDisk>,
        digest: &str,
        span: Span,
    ) -> Result<(), Gone> {
        if span.start == span.end {
            return self.send(&[], false).await;
        }
        let mut reading = Reading::new(body.lease.clone(), digest);
        let sent = self.slice_sent(&mut reading, span.start, span.end).await;
        if let Err(SendError::Store(_) | SendError::Truncated) = sent {
            self.service.lookup.suspect(digest);
        }
        self.cut_unless(sent)
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

    /// Sends what is in `out`, then `body`.
    async fn send(&mut self, body: &[u8], more: bool) -> Result<(), Gone> {
        self.socket.enter(Phase::Send);
        self.socket.send_all([self.out, body], more).await?;
        self.out.clear();
        Ok(())
    }

    fn count(&self, counter: Counter, bytes: u64) {
        self.service.metrics.add(counter, bytes);
    }

    /// One line for the log: what was asked, what was answered, from where.
    pub fn log(&self, what: &Asked<'_>) {
        let (status, bytes) = self.sent();
        tracing::info!(
            target: "access",
            peer = %self.socket.peer(),
            method = if self.is_head() { "HEAD" } else { "GET" },
            project = what.project,
            repository = what.repository,
            reference = what.reference,
            kind = what.kind,
            status,
            cache = what.outcome.label(),
            upstream = what.upstream,
            bytes,
            ms = self.elapsed_ms(),
            "served"
        );
    }
}

/// What a log line says of the request.
pub struct Asked<'a> {
    pub project: &'a str,
    pub repository: &'a str,
    pub reference: &'a str,
    pub kind: &'static str,
    /// Origin that sent it just now, or `-`.
    pub upstream: &'a str,
    pub outcome: Outcome,
}
