//! Everything that can go wrong with an upstream, one variant for each cause.
//!
//! Errors are shared between all who wait for one answer, so they are `Clone` and `Send`. None
//! holds a credential, a token, or the query of a redirect, which often is one (R11).

use std::io;
use std::path::PathBuf;

use crate::config::{Proxy, Url};
use crate::http::framing::ChunkError;
use crate::http::head::HeadError;

use super::realm::RealmError;
use super::redirect::RedirectError;
use super::resolve::NamesError;
use super::token::TokenError;
use super::tunnel::ProxyRefusal;

/// What a failure means for the copy we may still have (each has its own stale time).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FailureClass {
    Unreachable,
    ServerError,
    RateLimited,
    NotFound,
    Denied,
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum UpstreamError {
    #[error("looking up {host} for {origin}: {reason}")]
    Names {
        host: String,
        origin: String,
        reason: NamesError,
    },
    #[error("connecting to {origin}: {kind}")]
    Connect { origin: String, kind: io::ErrorKind },
    #[error("connecting to {origin}: timed out")]
    ConnectTimeout { origin: String },
    #[error("the proxy {proxy} gives no way to {origin}: {reason}")]
    Proxy {
        proxy: String,
        origin: String,
        reason: ProxyRefusal,
    },
    #[error("TLS with {origin}: {reason}")]
    Tls { origin: String, reason: TlsFailure },
    #[error("{origin} closed the connection before its answer")]
    Closed { origin: String },
    #[error("connection to {origin} lost before its answer: {kind}")]
    Lost { origin: String, kind: io::ErrorKind },
    #[error("{origin} did not answer in time")]
    HeadTimeout { origin: String },
    #[error("too many connections to upstreams are open")]
    Busy,

    #[error("{origin} sent a malformed head: {reason}")]
    Head { origin: String, reason: HeadError },
    #[error("{origin} sent too many interim answers")]
    Interim { origin: String },
    #[error("{origin} applied a content coding although asked for none")]
    Coding { origin: String },
    #[error("the request target is not one an upstream can be asked for")]
    RequestTarget,
    #[error("redirect refused: {0}")]
    Redirect(#[from] RedirectError),
    #[error("a redirect led to {origin}, which answered {status}")]
    DeniedElsewhere { origin: String, status: u16 },

    #[error("{origin} answered {status}")]
    Denied { origin: String, status: u16 },
    #[error("{origin} asks for credentials and none are configured")]
    NoCredentials { origin: String },
    #[error("token realm refused: {0}")]
    Realm(#[from] RealmError),
    #[error("token service: {0}")]
    Token(#[from] TokenError),
    #[error("token service: {0}")]
    TokenService(Box<UpstreamError>),
}

/// Of whom a failure says that they fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The upstream, or what no request to it can do without: its token service, the way there.
    Upstream,
    /// The upstream answered, and what it led to did not.
    Elsewhere,
    /// Ourselves.
    Us,
}

impl UpstreamError {
    pub(super) fn proxy(proxy: &Proxy, origin: &Url, reason: ProxyRefusal) -> UpstreamError {
        UpstreamError::Proxy {
            proxy: proxy.url.to_string(),
            origin: origin.to_string(),
            reason,
        }
    }

    pub fn class(&self) -> FailureClass {
        use UpstreamError as E;
        match self {
            E::Names { .. }
            | E::Connect { .. }
            | E::ConnectTimeout { .. }
            | E::Proxy { .. }
            | E::Tls { .. }
            | E::Closed { .. }
            | E::Lost { .. }
            | E::HeadTimeout { .. }
            | E::Busy => FailureClass::Unreachable,
            E::Head { .. }
            | E::Interim { .. }
            | E::Coding { .. }
            | E::RequestTarget
            | E::Redirect(_)
            | E::DeniedElsewhere { .. } => FailureClass::ServerError,
            E::Denied { .. } | E::NoCredentials { .. } | E::Realm(_) => FailureClass::Denied,
            E::Token(reason) => reason.class(),
            E::TokenService(reason) => reason.class(),
        }
    }

    /// Of a request to the upstream that records call `record_origin`.
    pub fn blames(&self, record_origin: &str) -> Blame {
        use UpstreamError as E;
        let origin = super::without_account(record_origin);
        match self {
            E::Busy | E::RequestTarget | E::Token(TokenError::Busy) => Blame::Us,
            E::Redirect(_) | E::DeniedElsewhere { .. } | E::Realm(_) => Blame::Elsewhere,
            // It is up: it says whom it refuses and how often, or talks nonsense.
            E::Token(reason) if reason.is_answer() => Blame::Elsewhere,
            E::TokenService(reason) if reason.class() == FailureClass::ServerError => {
                Blame::Elsewhere
            }
            E::Token(_) | E::TokenService(_) => Blame::Upstream,
            E::Names { origin: at, .. }
            | E::Connect { origin: at, .. }
            | E::ConnectTimeout { origin: at }
            | E::Proxy { origin: at, .. }
            | E::Tls { origin: at, .. }
            | E::Closed { origin: at }
            | E::Lost { origin: at, .. }
            | E::HeadTimeout { origin: at }
            | E::Head { origin: at, .. }
            | E::Interim { origin: at }
            | E::Coding { origin: at }
            | E::Denied { origin: at, .. }
            | E::NoCredentials { origin: at } => match at == origin {
                true => Blame::Upstream,
                false => Blame::Elsewhere,
            },
        }
    }

    /// That of a token service, when it failed before it answered.
    pub(super) fn of_token_service(self) -> UpstreamError {
        use UpstreamError as E;
        match self {
            E::Busy | E::Realm(_) | E::Token(_) | E::TokenService(_) => self,
            reason => E::TokenService(Box::new(reason)),
        }
    }

    /// Seconds that a token service names when it limits our rate.
    pub fn retry_after_s(&self) -> Option<u64> {
        match self {
            UpstreamError::Token(TokenError::Limited { retry_after_s }) => *retry_after_s,
            _ => None,
        }
    }

    /// Whether time ran out, which a gateway answers with 504 and not with 502.
    pub fn is_timeout(&self) -> bool {
        use UpstreamError as E;
        match self {
            E::ConnectTimeout { .. } | E::HeadTimeout { .. } => true,
            E::Proxy { reason, .. } => *reason == ProxyRefusal::TimedOut,
            E::TokenService(reason) => reason.is_timeout(),
            _ => false,
        }
    }
}

/// Why a body ended without its clean end; what was read before may be used to resume.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum BodyError {
    #[error("the body ended early")]
    Truncated,
    #[error("no byte of the body arrived in time")]
    Timeout,
    #[error("the whole answer took longer than total_timeout")]
    TotalTimeout,
    #[error("the body arrives too slowly")]
    TooSlow,
    #[error("connection lost inside the body: {0}")]
    Lost(io::ErrorKind),
    #[error("TLS failed inside the body: {0}")]
    Tls(TlsFailure),
    #[error("malformed chunked coding: {0}")]
    Chunked(#[from] ChunkError),
    #[error("the body is longer than allowed here")]
    TooLong,
    #[error("an earlier read of this body was given up")]
    Abandoned,
}

/// A rustls error, or a close of the connection where TLS did not allow one.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TlsFailure {
    #[error(transparent)]
    Session(#[from] rustls::Error),
    #[error("closed during the handshake")]
    Closed,
    #[error("application data when none was asked for")]
    Unasked,
    #[error("the session allows no more data")]
    Exhausted,
    #[error("the host is not a name certificates can be issued for")]
    ServerName,
}

/// A configuration that cannot be put to use; found before anything starts.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("ca_file {path}: {reason}")]
    CaFile { path: PathBuf, reason: String },
    #[error("ca_file {path} holds no certificate")]
    CaFileEmpty { path: PathBuf },
    #[error("certificate {index} of ca_file {path}: {reason}")]
    Certificate {
        path: PathBuf,
        index: usize,
        reason: rustls::Error,
    },
    #[error("client_cert_file {path}: {reason}")]
    Identity { path: PathBuf, reason: String },
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    #[error("certificate verification: {0}")]
    Verifier(#[from] rustls::client::VerifierBuilderError),
}
