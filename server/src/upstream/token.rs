//! Bearer tokens: what a shard asks for, and the cache on the shard that owns the upstream.
//!
//! A shard asks through `TokenSource`, which the server routes to the owner; there one fetch
//! serves all who ask for the same scope, however many (R4: a bounded number wait, the rest are
//! refused). Tokens are kept per upstream, realm, service and scope, so that none is ever sent
//! for another repository or to another origin (R11). How a token is used: see `authorize`.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, Instant};

use serde::Deserialize;

use super::error::{BodyError, FailureClass, UpstreamError};
use super::grant::Service;
use super::request::Client;
use super::{Reach, Secret, UpstreamId};

/// Distribution token specification: the lifetime when an answer names none.
const LIFETIME_DEFAULT: Duration = Duration::from_secs(60);
/// A day; longer ones are asked for again, lest a revoked grant live on here.
const LIFETIME_MAX: Duration = Duration::from_secs(24 * 3600);
/// A token is not used in its last seconds: the request it goes with takes time too.
const MARGIN: Duration = Duration::from_secs(10);
/// One per repository in use. A token takes 1 to 8 KiB.
const TOKENS_MAX: usize = 2048;
/// One for each upstream and its realm; more are leftovers of former configurations.
const SERVICES_MAX: usize = 256;
/// As many as fills may run at once.
const WAITERS_MAX: usize = 1024;
/// Tokens with many grants reach 16 KiB.
pub(super) const ANSWER_LEN_MAX: usize = 128 << 10;
const TOKEN_LEN_MAX: usize = 24 << 10;
/// Required in a form; services log it.
const CLIENT_ID: &str = "entrepot";

/// A token and how long it may be used. Debug does not show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    authorization: Secret,
    good_until: Instant,
}

impl Token {
    /// Whatever was sent and refused, for comparison.
    pub(super) fn refused(authorization: Secret, now: Instant) -> Token {
        Token {
            authorization,
            good_until: now,
        }
    }

    /// The value of the Authorization field.
    pub(super) fn authorization(&self) -> &Secret {
        &self.authorization
    }

    pub(super) fn is_good(&self, now: Instant) -> bool {
        now < self.good_until
    }
}

/// One shard's question for a token; may cross to the upstream's owner.
#[derive(Clone, Debug)]
pub struct TokenAsk {
    pub upstream: UpstreamId,
    /// From the upstream's challenge; checked before it is asked.
    pub realm: String,
    pub service: Option<String>,
    /// One or more scopes, separated by spaces.
    pub scope: String,
    /// Which addresses the realm may be at, from where the upstream was found.
    pub reach: Reach,
    /// A token that upstream just refused: it must not be the answer.
    pub refused: Option<Token>,
}

/// The way from any shard to the owner's [`TokenCache`].
pub trait TokenSource {
    fn token(&self, ask: TokenAsk) -> TokenFuture;
}

pub type TokenFuture = Pin<Box<dyn Future<Output = Answer>>>;

type Answer = Result<Token, UpstreamError>;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum TokenError {
    #[error("it answered {0}")]
    Status(u16),
    #[error("it answered 429")]
    Limited { retry_after_s: Option<u64> },
    #[error("its answer was lost: {0}")]
    Body(#[from] BodyError),
    #[error("its answer is not what the token specification asks for")]
    Malformed,
    #[error("its answer holds no token")]
    NoToken,
    #[error("its token cannot be sent in a field")]
    InvalidToken,
    #[error("too many wait for it")]
    Busy,
}

impl TokenError {
    pub(super) fn class(&self) -> FailureClass {
        match self {
            // A missing token service says nothing about what was to be pulled.
            TokenError::Status(401 | 403) => FailureClass::Denied,
            TokenError::Limited { .. } => FailureClass::RateLimited,
            TokenError::Busy => FailureClass::Unreachable,
            _ => FailureClass::ServerError,
        }
    }

    /// Whether it answered, if not with a token: another question may be answered with one.
    pub(super) fn is_answer(&self) -> bool {
        match self {
            TokenError::Status(status) => *status < 500,
            TokenError::Limited { .. }
            | TokenError::Malformed
            | TokenError::NoToken
            | TokenError::InvalidToken
            | TokenError::Body(BodyError::Chunked(_) | BodyError::TooLong) => true,
            TokenError::Body(_) | TokenError::Busy => false,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    upstream: UpstreamId,
    realm: String,
    service: Option<String>,
    scope: String,
}

impl Key {
    fn of_service(&self) -> Key {
        Key {
            scope: String::new(),
            ..self.clone()
        }
    }
}

impl TokenAsk {
    fn key(&self) -> Key {
        Key {
            upstream: self.upstream,
            realm: self.realm.clone(),
            service: self.service.clone(),
            scope: self.scope.clone(),
        }
    }

    /// Distribution token specification, "Requesting a Token": one `scope` for each.
    pub(super) fn query(&self) -> String {
        let scopes = self.scope.split_ascii_whitespace();
        let service = self.service.as_deref().map(|service| ("service", service));
        let scopes = scopes.map(|scope| ("scope", scope));
        encode(service.into_iter().chain(scopes))
    }

    /// Distribution token specification, "OAuth2 Token Authentication": the scopes together.
    pub(super) fn form(&self, grant: &[(&str, &str)]) -> String {
        let service = self.service.as_deref().map(|service| ("service", service));
        let scope = Some(("scope", self.scope.as_str())).filter(|_| !self.scope.is_empty());
        let rest = service.into_iter().chain(scope);
        let client = ("client_id", CLIENT_ID);
        encode(grant.iter().copied().chain([client]).chain(rest))
    }
}

fn encode<'a>(fields: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let mut encoded = String::new();
    for (name, value) in fields {
        if !encoded.is_empty() {
            encoded.push('&');
        }
        encoded.push_str(name);
        encoded.push('=');
        escape(value, &mut encoded);
    }
    encoded
}

/// RFC 3986 §3.4, with `&`, `+` and `=` escaped because they separate fields.
fn escape(value: &str, out: &mut String) {
    for byte in value.bytes() {
        match byte {
            b'0'..=b'9' | b'A'..=b'Z' | b'a'..=b'z' => out.push(byte.into()),
            b'-' | b'.' | b'_' | b'~' | b':' | b'/' | b',' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
}

/// All tokens of the upstreams that one shard owns.
#[derive(Default)]
pub struct TokenCache {
    tokens: RefCell<HashMap<Key, Token>>,
    fetching: RefCell<HashMap<Key, Vec<flume::Sender<Answer>>>>,
    /// By a key without its scope.
    services: RefCell<HashMap<Key, Service>>,
}

impl TokenCache {
    pub fn new() -> TokenCache {
        TokenCache::default()
    }

    /// A token from the cache, from the fetch in flight, or fetched now through `client`.
    /// Dropping the future that fetches passes the task on to one that waits.
    pub async fn get(&self, client: &Client, ask: TokenAsk) -> Answer {
        let key = ask.key();
        loop {
            if let Some(token) = self.cached(&key, &ask, client.now()) {
                return Ok(token);
            }
            let Some(waiter) = self.join(&key)? else {
                break;
            };
            if let Ok(answer) = waiter.recv_async().await {
                return answer;
            }
        }
        let fetching = Fetching {
            cache: self,
            key: &key,
        };
        let mut service = self.service(&key);
        let granted = client.fetch_token(&ask, &mut service).await;
        self.remember(&key, service);
        let answer = granted.map(|granted| granted.token);
        if let Ok(token) = &answer {
            self.keep(key.clone(), token.clone(), client.now());
        }
        fetching.finish(&answer);
        answer
    }

    /// Forgets the tokens of upstreams that are not configured any more.
    pub fn retire(&self, is_configured: impl Fn(UpstreamId) -> bool) {
        let mut tokens = self.tokens.borrow_mut();
        tokens.retain(|key, _| is_configured(key.upstream));
        let mut services = self.services.borrow_mut();
        services.retain(|key, _| is_configured(key.upstream));
    }

    /// What was refused is forgotten, whatever becomes of the fetch that follows.
    fn cached(&self, key: &Key, ask: &TokenAsk, now: Instant) -> Option<Token> {
        let mut tokens = self.tokens.borrow_mut();
        let refused = ask.refused.as_ref().map(Token::authorization);
        if tokens.get(key).map(Token::authorization) == refused {
            tokens.remove(key);
        }
        tokens.get(key).filter(|token| token.is_good(now)).cloned()
    }

    fn service(&self, key: &Key) -> Service {
        let services = self.services.borrow();
        services.get(&key.of_service()).cloned().unwrap_or_default()
    }

    fn remember(&self, key: &Key, service: Service) {
        let mut services = self.services.borrow_mut();
        // Forgetting costs a request that asks in the wrong form.
        if services.len() >= SERVICES_MAX {
            services.clear();
        }
        services.insert(key.of_service(), service);
    }

    /// A place among those who wait for the fetch in flight; `None` makes the caller fetch.
    fn join(&self, key: &Key) -> Result<Option<flume::Receiver<Answer>>, UpstreamError> {
        let mut fetching = self.fetching.borrow_mut();
        let Some(waiters) = fetching.get_mut(key) else {
            fetching.insert(key.clone(), Vec::new());
            return Ok(None);
        };
        waiters.retain(|waiter| !waiter.is_disconnected());
        if waiters.len() >= WAITERS_MAX {
            return Err(TokenError::Busy.into());
        }
        let (waiter, answer) = flume::bounded(1);
        waiters.push(waiter);
        Ok(Some(answer))
    }

    fn keep(&self, key: Key, token: Token, now: Instant) {
        let mut tokens = self.tokens.borrow_mut();
        if tokens.len() >= TOKENS_MAX {
            tokens.retain(|_, token| token.is_good(now));
        }
        if tokens.len() >= TOKENS_MAX {
            let oldest = tokens.iter().min_by_key(|(_, token)| token.good_until);
            if let Some(key) = oldest.map(|(key, _)| key.clone()) {
                tokens.remove(&key);
            }
        }
        tokens.insert(key, token);
    }
}

/// The fetch in flight for a key. Dropped before its end, it leaves the waiters to try again.
struct Fetching<'a> {
    cache: &'a TokenCache,
    key: &'a Key,
}

impl Fetching<'_> {
    fn finish(self, answer: &Answer) {
        let waiters = self
            .cache
            .fetching
            .borrow_mut()
            .remove(self.key)
            .unwrap_or_default();
        for waiter in waiters {
            // A waiter that left needs no answer.
            let _ = waiter.try_send(answer.clone());
        }
    }
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.cache.fetching.borrow_mut().remove(self.key);
    }
}

/// What a token service answers. `issued_at` is ignored: its clock is not ours.
#[derive(Deserialize)]
struct Grant {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<serde_json::Value>,
}

/// What a token service gave.
#[derive(Debug, PartialEq)]
pub(super) struct Granted {
    pub token: Token,
    /// For the next one.
    pub refresh: Option<Secret>,
}

/// Parses the answer of a token service that arrived at `now`.
pub(super) fn parse(answer: &[u8], now: Instant) -> Result<Granted, TokenError> {
    let grant: Grant = serde_json::from_slice(answer).map_err(|_| TokenError::Malformed)?;
    let filled = |token: Option<String>| token.filter(|token| !token.is_empty());
    let token = filled(grant.token)
        .or(filled(grant.access_token))
        .ok_or(TokenError::NoToken)?;
    if token.len() > TOKEN_LEN_MAX || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(TokenError::InvalidToken);
    }
    let lifetime = lifetime(grant.expires_in.as_ref());
    // A short life keeps three quarters of itself.
    let good_for = lifetime
        .saturating_sub(MARGIN)
        .max(lifetime * 3 / 4)
        .min(lifetime);
    let refresh = filled(grant.refresh_token).filter(|refresh| refresh.len() <= TOKEN_LEN_MAX);
    Ok(Granted {
        token: Token {
            authorization: Secret::new(format!("Bearer {token}")),
            good_until: now + good_for,
        },
        refresh: refresh.map(Secret::new),
    })
}

fn lifetime(expires_in: Option<&serde_json::Value>) -> Duration {
    let seconds = match expires_in {
        Some(serde_json::Value::Number(number)) => number.as_f64(),
        Some(serde_json::Value::String(text)) => text.parse().ok(),
        _ => None,
    };
    let lifetime = match seconds {
        Some(seconds) if seconds > 0.0 => Duration::try_from_secs_f64(seconds),
        _ => Ok(LIFETIME_DEFAULT),
    };
    // Only too large a number does not fit.
    lifetime.unwrap_or(LIFETIME_MAX).min(LIFETIME_MAX)
}

#[cfg(test)]
mod tests {
    use super::{Duration, Instant, Reach, TokenAsk, TokenError, UpstreamId, parse};

    #[test]
    fn answers_of_token_services() {
        let now = Instant::now();
        for (answer, token, good_for) in [
            (r#"{"token":"a.b-c"}"#, "a.b-c", 50),
            (r#"{"access_token":"x","expires_in":300}"#, "x", 290),
            (
                r#"{"token":"t","access_token":"a","expires_in":3600,"issued_at":"1999"}"#,
                "t",
                3590,
            ),
            (r#"{"token":"","access_token":"a"}"#, "a", 50),
            (r#"{"token":"t","expires_in":"120"}"#, "t", 110),
            (r#"{"token":"t","expires_in":20}"#, "t", 15),
            (r#"{"token":"t","expires_in":0}"#, "t", 50),
            (r#"{"token":"t","expires_in":-5}"#, "t", 50),
            (r#"{"token":"t","expires_in":null}"#, "t", 50),
            (
                r#"{"token":"t","expires_in":1e300,"more":[]}"#,
                "t",
                24 * 3600 - 10,
            ),
        ] {
            let parsed = parse(answer.as_bytes(), now).expect(answer).token;
            assert_eq!(parsed.authorization().expose(), format!("Bearer {token}"));
            let until = now + Duration::from_secs(good_for);
            assert!(!parsed.is_good(until), "{answer}");
            assert!(parsed.is_good(until - Duration::from_millis(1)), "{answer}");
        }
    }

    #[test]
    fn answers_that_hold_no_token() {
        for (answer, error) in [
            ("", TokenError::Malformed),
            ("<html>", TokenError::Malformed),
            ("[]", TokenError::Malformed),
            (r#"{"token":5}"#, TokenError::Malformed),
            ("{}", TokenError::NoToken),
            (r#"{"token":""}"#, TokenError::NoToken),
            (r#"{"token":"a b"}"#, TokenError::InvalidToken),
            (r#"{"token":"a\r\nX: y"}"#, TokenError::InvalidToken),
            (r#"{"token":"\u00e4"}"#, TokenError::InvalidToken),
        ] {
            assert_eq!(
                parse(answer.as_bytes(), Instant::now()),
                Err(error),
                "{answer}"
            );
        }
        let long = format!(r#"{{"token":"{}"}}"#, "a".repeat(25 << 10));
        assert_eq!(
            parse(long.as_bytes(), Instant::now()),
            Err(TokenError::InvalidToken)
        );
    }

    #[test]
    fn what_is_asked() {
        let ask = |service: Option<&str>, scope: &str| TokenAsk {
            upstream: UpstreamId(0),
            realm: "https://r.example/token".to_owned(),
            service: service.map(str::to_owned),
            scope: scope.to_owned(),
            reach: Reach::Public,
            refused: None,
        };
        for (service, scope, query) in [
            (
                Some("registry.docker.io"),
                "repository:library/nginx:pull,push",
                "service=registry.docker.io&scope=repository:library/nginx:pull,push",
            ),
            (
                Some("a service&x=y"),
                "a:b:pull c:d:pull",
                "service=a%20service%26x%3Dy&scope=a:b:pull&scope=c:d:pull",
            ),
            (None, "a", "scope=a"),
            (None, "", ""),
        ] {
            assert_eq!(ask(service, scope).query(), query);
        }
        let form = ask(Some("a service"), "a:b:pull c:d:pull").form(&[("password", "p&=+%")]);
        assert_eq!(
            form,
            "password=p%26%3D%2B%25&client_id=entrepot&service=a%20service\
             &scope=a:b:pull%20c:d:pull"
        );
    }

    #[test]
    fn tokens_are_not_printed() {
        let answer = br#"{"token":"hush","refresh_token":"hush too"}"#;
        let granted = parse(answer, Instant::now()).expect("token");
        assert!(granted.refresh.is_some());
        assert!(!format!("{granted:?}").contains("hush"));
    }
}
