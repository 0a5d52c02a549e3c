//! The registries behind the cache, as an HTTP/1.1 client of its own.
//!
//! Called by the fetch path of a shard: one [`Client`] a shard, one [`Client::send`] a request.
//! Redirects, credentials and tokens end here; callers see a status, fields and a body that ends
//! cleanly or fails (R6). Credentials go to the origin they belong to and nowhere else (R11).
//! What to do about a failure (stale copy, next upstream) is not decided here: see
//! [`FailureClass`].

mod authorize;
mod body;
mod connect;
mod error;
mod origin;
mod pool;
mod realm;
mod redirect;
mod request;
mod resolve;
mod tls;
mod token;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use body::{Body, PIECE_LEN_MAX, PIECE_LEN_MIN};
pub use error::{BodyError, FailureClass, SetupError, TlsFailure, UpstreamError};
pub use origin::TargetError;
pub use realm::RealmError;
pub use redirect::RedirectError;
pub use request::Client;
pub use resolve::{NamesError, Resolver};
pub use tls::TrustRoots;
pub use token::{Token, TokenAsk, TokenCache, TokenError, TokenFuture, TokenSource};

use crate::config;
use crate::gate;
use crate::http::upstream_head::ResponseHead;

/// Which of the configured upstreams; an index into the slice given to [`Client::new`] and
/// [`Client::learn`]. Never given to another one: a changed upstream is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub usize);

/// What tokens and idle connections age by. Monotonic; a parameter so that tests can move it.
pub type Clock = Rc<dyn Fn() -> Instant>;

/// One configured upstream, its certificates loaded and its credentials encoded.
pub struct Upstream {
    url: config::Url,
    origin: String,
    /// The value of an Authorization field; never printed.
    basic: Option<Secret>,
    tls: Arc<rustls::ClientConfig>,
    connect_timeout: Duration,
    read_timeout: Duration,
    active: bool,
    gate: gate::Rules,
}

impl Upstream {
    /// Reads `ca_file`, so it blocks: call it before the shards start.
    pub fn new(config: &config::Upstream, roots: &TrustRoots) -> Result<Upstream, SetupError> {
        let basic = match (&config.username, &config.password) {
            (Some(username), Some(password)) => Some(basic(username, password.expose())),
            _ => None,
        };
        Ok(Upstream {
            origin: config.url.to_string(),
            tls: tls::client_config(config, roots)?,
            url: config.url.clone(),
            basic,
            connect_timeout: config.connect_timeout,
            read_timeout: config.read_timeout,
            active: config.active,
            gate: gate::Rules {
                connections_max: config.connections_max,
                breaker: config.breaker,
                negative_for: config.negative_for,
            },
        })
    }

    /// `https://registry-1.docker.io`: names this upstream in cache keys and records (R10).
    pub fn origin(&self) -> &str {
        &self.origin
    }

    pub fn has_credentials(&self) -> bool {
        self.basic.is_some()
    }

    /// An inactive upstream is never asked; holding to that is the caller's part.
    pub fn is_active(&self) -> bool {
        self.active
    }
}

/// RFC 7617 §2.
fn basic(username: &str, password: &str) -> Secret {
    Secret::new(format!(
        "Basic {}",
        STANDARD.encode(format!("{username}:{password}"))
    ))
}

/// The value of an Authorization field. Debug does not show it (R11).
#[derive(Clone, PartialEq, Eq)]
struct Secret(Arc<str>);

impl Secret {
    fn new(value: String) -> Secret {
        Secret(value.into())
    }

    fn expose(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(config::MASK)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
}

impl Method {
    pub fn as_str(self) -> &'static str {
        match self {
            Method::Get => "GET",
            Method::Head => "HEAD",
        }
    }
}

/// Nothing of a client's request reaches an upstream but what is named here.
#[derive(Clone, Debug)]
pub struct Request {
    pub method: Method,
    /// The repository as the upstream names it: tokens are remembered for it.
    /// Empty for a request that belongs to none.
    pub repository: String,
    /// `/v2/<repository>/blobs/<digest>`.
    pub path_and_query: String,
    pub accept: Option<&'static str>,
    /// The caller checks for 206 and its Content-Range.
    pub range: Option<Part>,
}

/// The part of a body that is wanted (RFC 9110 §14.2).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    pub first: u64,
    /// Included; `None`: to the end.
    pub last: Option<u64>,
    /// The whole is wanted instead if the body is another one by now (RFC 9110 §13.1.5).
    pub if_range: Option<Validator>,
}

impl Part {
    /// From `start` up to `end`, which is not included and above `start`.
    pub fn between((start, end): (u64, u64)) -> Part {
        Part {
            first: start,
            last: Some(end - 1),
            if_range: None,
        }
    }
}

/// A strong ETag and the origin that gave it; another origin knows nothing of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    pub origin: Arc<str>,
    /// With its quotes, as it came.
    pub etag: Box<str>,
}

/// A final answer: any status but 1xx, redirects that were followed, and 401 and 403.
pub struct Response {
    pub status: u16,
    pub head: ResponseHead,
    /// Of the body; for a HEAD what a GET would have. Unknown when chunked or until close.
    pub length: Option<u64>,
    pub body: Body,
    /// Redirects followed.
    pub hops: u8,
}

/// What one shard's client did; read from anywhere, written by its shard only.
#[derive(Debug, Default)]
pub struct Counters {
    pub gets: Counter,
    pub heads: Counter,
    /// Requests to token services, in no other count.
    pub token_requests: Counter,
    pub redirects: Counter,
    /// Requests repeated because a kept connection had been closed under them.
    pub retries: Counter,
    pub connections: Counter,
    /// Body bytes as received, before any chunked coding is undone.
    pub body_bytes: Counter,
}

/// Written by one shard only, so that adding never contends.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }
}
