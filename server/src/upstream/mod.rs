//! The registries behind the cache, as an HTTP/1.1 client of its own.
//!
//! Called by the fetch path of a shard: one [`Client`] a shard, one [`Client::send`] a request.
//! Redirects, credentials and tokens end here; callers see a status, fields and a body that ends
//! cleanly or fails (R6). Credentials go to the origin they belong to and nowhere else (R11).
//! What to do about a failure (stale copy, next upstream) is not decided here: see
//! [`FailureClass`].

mod account;
mod authorize;
mod body;
mod connect;
mod error;
mod exchange;
mod grant;
mod identity;
mod origin;
mod pool;
mod race;
mod realm;
mod redirect;
mod refresh;
mod request;
mod resolve;
mod retry;
mod tls;
mod token;
mod tunnel;

#[cfg(test)]
mod tests;

use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

pub use account::{counts_for, without_account};
pub use body::{Body, PIECE_LEN_MAX, PIECE_LEN_MIN};
pub use error::{Blame, BodyError, FailureClass, SetupError, TlsFailure, UpstreamError};
pub use origin::{Place, Reach, TargetError};
pub use realm::RealmError;
pub use redirect::RedirectError;
pub use refresh::follow_files;
pub use request::Client;
pub use resolve::{NamesError, Resolver};
pub use tls::TrustRoots;
pub use token::{Token, TokenAsk, TokenCache, TokenError, TokenFuture, TokenSource};
pub use tunnel::ProxyRefusal;

use crate::config;
use crate::gate;
use crate::http::upstream_head::ResponseHead;

use identity::Identity;

/// Which of the configured upstreams; an index into the slice given to [`Client::new`] and
/// [`Client::learn`]. Never given to another one: a changed upstream is a new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UpstreamId(pub usize);

/// What tokens and idle connections age by. Monotonic; a parameter so that tests can move it.
pub type Clock = Rc<dyn Fn() -> Instant>;

/// One configured upstream, its certificates loaded and its credentials encoded.
///
/// Shared by all shards. What `refresh` may change lies behind locks that are held for a copy.
pub struct Upstream {
    config: config::Upstream,
    origin: String,
    record_origin: String,
    login: RwLock<Option<Login>>,
    identity: Option<Arc<Identity>>,
    tls: tls::Settings,
    /// The last look at the files failed, and was logged.
    unreadable: AtomicBool,
}

/// Who we are there.
#[derive(Clone)]
struct Login {
    username: String,
    password: config::Secret,
    /// The value of an Authorization field; never printed.
    basic: Secret,
}

impl Login {
    fn of(config: &config::Upstream) -> Option<Login> {
        let (username, password) = (config.username.as_ref()?, config.password.as_ref()?);
        Some(Login::new(username, password.clone()))
    }

    fn new(username: &str, password: config::Secret) -> Login {
        Login {
            basic: basic(username, password.expose()),
            username: username.to_owned(),
            password,
        }
    }
}

impl Upstream {
    /// Reads certificates and hashes a password, so it blocks: never call it on a shard.
    pub fn new(config: &config::Upstream, roots: &TrustRoots) -> Result<Upstream, SetupError> {
        let identity = config.identity.clone().map(Identity::load).transpose()?;
        let identity = identity.map(Arc::new);
        Ok(Upstream {
            origin: config.url.to_string(),
            record_origin: account::record_origin(config, identity.as_deref()),
            login: RwLock::new(Login::of(config)),
            tls: tls::Settings::new(config, roots, identity.clone())?,
            identity,
            unreadable: AtomicBool::new(false),
            config: config.clone(),
        })
    }

    /// `https://registry-1.docker.io`, and who we are there: names this upstream in cache keys
    /// and records (R10).
    pub fn record_origin(&self) -> &str {
        &self.record_origin
    }

    fn gate(&self) -> gate::Rules {
        gate::Rules {
            connections_max: self.config.connections_max,
            breaker: self.config.breaker,
            negative_for: self.config.negative_for,
        }
    }

    fn login(&self) -> Option<Login> {
        let login = self.login.read();
        login.unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn basic(&self) -> Option<Secret> {
        self.login().map(|login| login.basic)
    }

    /// Where what this upstream names may be, when it was itself reached at `from`.
    fn reach_from(&self, from: Reach) -> Reach {
        match self.config.private {
            Some(true) => Reach::Anywhere,
            Some(false) => Reach::Public,
            // A configured origin may be anywhere; what it leads to has not been configured.
            None => from.min(Reach::Private),
        }
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
    /// Asked there and not at the upstream, as if a redirect of it had led there.
    pub elsewhere: Option<Place>,
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

/// A strong ETag and who gave it, an upstream's origin or another place; nobody else knows of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Validator {
    pub asked: Arc<str>,
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
    /// The upstream itself said it, and not what it led to.
    pub own: bool,
}

/// What one shard's client did; read from anywhere, written by its shard only.
#[derive(Debug, Default)]
pub struct Counters {
    pub gets: Counter,
    pub heads: Counter,
    /// Requests to token services, in no other count.
    pub token_requests: Counter,
    pub redirects: Counter,
    /// Requests made once more because they failed by chance.
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
