//! Writes answers: heads, bodies from memory and by `sendfile`, streams that follow a fill.
//!
//! Called by `registry` with what is to be sent; decides nothing about where it comes from. A
//! response delivers exactly its Content-Length or the connection is reset (R6), so whatever goes
//! wrong after the head ends in `Gone`. Status, bytes and cause are logged once per request.

mod body;
mod relayed;
mod selection;

use std::cell::Cell;
use std::fmt::{self, Display};
use std::rc::Rc;
use std::time::Instant;

use crate::failure::Failure;
use crate::http::date;
use crate::http::head::{Method, RequestHead, Version};
use crate::http::range::ContentRange;
use crate::http::response::ResponseHead;
use crate::metrics::{Counter, Outcome};
use crate::net::socket::Socket;
use crate::net::watchdog::Phase;
use crate::oci::error::{self, Code};
use crate::service::Service;

pub use self::body::Followed;
pub use self::selection::Selection;

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
        self.content_head(facts, Some(len), &Selection::whole(len));
        self.sent.set((200, 0));
        self.send(&[], false).await
    }

    /// Ends the connection in the middle of a body, visibly.
    pub fn abort(&mut self, why: &str) -> Result<(), Gone> {
        tracing::warn!(peer = %self.socket.peer(), why, "response cut short");
        self.socket.abort_on_close();
        Err(Gone)
    }

    fn content_head(&mut self, facts: &Facts<'_>, len: Option<u64>, selection: &Selection<'_>) {
        let status = match selection {
            Selection::Whole(_) => 200,
            Selection::Part(_) | Selection::Parts(_) => 206,
        };
        let content_length = selection.content_length();
        let bytes = if self.is_head() { 0 } else { content_length };
        self.sent.set((status, bytes));
        let close_at_end = len.is_none();
        let mut head = self.start(status);
        // RFC 9110 §15.3.7.2: several parts say their types and ranges themselves.
        head = match selection {
            Selection::Parts(multipart) => {
                head.field_display("Content-Type", multipart.content_type())
            }
            Selection::Whole(_) | Selection::Part(_) => {
                head.field("Content-Type", facts.media_type)
            }
        };
        head = match len {
            Some(_) => head.field_u64("Content-Length", content_length),
            None => head.field("Transfer-Encoding", "chunked"),
        };
        if let Selection::Part((start, end)) = *selection {
            let part = ContentRange::Part {
                start,
                end,
                length: len,
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
