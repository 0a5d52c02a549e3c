//! One request to an upstream, through redirects and authorization, to its final answer.
//!
//! Called by the fetch path of the shard that owns the client. Each hop takes a kept connection
//! or dials; a kept one that was closed under the request is replaced once (RFC 9112 §9.3.1:
//! GET and HEAD may be repeated). At most one authorization is obtained for a request.
//! Bodies are read by the caller: see `body`.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::time::timeout;
use rustls::ClientConfig;

use crate::config::Url;
use crate::gate;
use crate::http;
use crate::http::head::{HeadError, Limits, Parsed};
use crate::http::upstream_head::{
    BodyFraming, FIELDS_CEILING, ResponseHead, body_framing, parse_response,
};

use super::authorize::{Authorize, Remembered};
use super::body::{Body, Exchange};
use super::connect::{CONNECTIONS_MAX, Connection, Dial, Got, Open, StreamError};
use super::error::UpstreamError;
use super::origin::Target;
use super::pool::{Key, Pool};
use super::realm;
use super::redirect::{self, Hop};
use super::resolve::Resolver;
use super::tls;
use super::token::{self, ANSWER_LEN_MAX, Token, TokenAsk, TokenError, TokenSource};
use super::{Clock, Counters, Method, Part, Request, Response, Secret, Upstream, UpstreamId};

const USER_AGENT: &str = concat!("entrepot/", env!("CARGO_PKG_VERSION"));
/// From the request to the end of the head, whatever the read timeout is.
const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// Signed redirects and policies of CDNs reach some 8 KiB.
const LIMITS: Limits = Limits {
    head_len_max: 32 << 10,
    fields_max: FIELDS_CEILING,
    target_len_max: 8 << 10,
};
/// What is received while waiting for a head: a small body often comes with it.
const HEAD_READ_LEN: usize = 16 << 10;
/// 100 and 103 are in use; more than a few are a trap.
const INTERIM_MAX: u32 = 8;

/// One shard's way to all upstreams.
pub struct Client {
    /// By id; a reload adds to it and takes nothing away.
    known: RefCell<Vec<Rc<Known>>>,
    resolver: Resolver,
    tokens: Rc<dyn TokenSource>,
    clock: Clock,
    pool: Rc<Pool>,
    open: Open,
    counters: Arc<Counters>,
}

/// One upstream and what this shard has for it.
struct Known {
    upstream: Arc<Upstream>,
    tls: Arc<ClientConfig>,
    remembered: Remembered,
}

/// A single request as it goes out.
struct Ask<'a> {
    id: UpstreamId,
    method: Method,
    hop: &'a Hop,
    accept: Option<&'a str>,
    range: Option<&'a Part>,
    authorization: Option<&'a Secret>,
    /// Private addresses are allowed.
    near: bool,
}

struct Answer {
    head: ResponseHead,
    framing: BodyFraming,
    body: Body,
    /// It came from a private address.
    near: bool,
}

enum Failure {
    /// A kept connection gave out before anything was answered: it may have been closed while
    /// the request was on its way.
    Unanswered(UpstreamError),
    Final(UpstreamError),
}

impl Client {
    /// `tokens` leads to the caches of the shards that own the upstreams.
    pub fn new(
        upstreams: &[Arc<Upstream>],
        resolver: Resolver,
        tokens: Rc<dyn TokenSource>,
        clock: Clock,
    ) -> Rc<Client> {
        let client = Rc::new(Client {
            known: RefCell::default(),
            resolver,
            tokens,
            pool: Pool::new(clock.clone()),
            clock,
            open: Open::default(),
            counters: Arc::default(),
        });
        client.learn(upstreams);
        client
    }

    /// All upstreams there are now, those known already at their places.
    pub fn learn(&self, upstreams: &[Arc<Upstream>]) {
        let mut known = self.known.borrow_mut();
        let new = upstreams.iter().skip(known.len()).map(|upstream| Known {
            tls: tls::for_shard(&upstream.tls),
            upstream: upstream.clone(),
            remembered: Remembered::default(),
        });
        known.extend(new.map(Rc::new));
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    fn known(&self, id: UpstreamId) -> Rc<Known> {
        self.known.borrow()[id.0].clone()
    }

    /// How the gate of an upstream lets requests through; asking there first is the caller's part.
    pub fn gate(&self, id: UpstreamId) -> gate::Rules {
        self.known.borrow()[id.0].upstream.gate
    }

    /// Closes connections that were idle too long; for an occasional timer of the shard.
    pub fn close_idle(&self) {
        self.pool.close_old();
    }

    /// The final answer, of whatever status but 401 and 403, which are errors here.
    /// Dropping the future closes its connection.
    pub async fn send(&self, id: UpstreamId, request: &Request) -> Result<Response, UpstreamError> {
        check_target(&request.path_and_query)?;
        let known = self.known(id);
        let authorize = Authorize {
            upstream: &known.upstream,
            id,
            repository: &request.repository,
            remembered: &known.remembered,
            tokens: &self.tokens,
            now: self.now(),
        };
        let mut sent = authorize.before().await?;
        let (mut hop, mut answer) = self.follow(id, request, sent.as_ref()).await?;
        if answer.head.status == 401 && hop.authorized {
            answer.body.drain().await;
            sent = Some(
                authorize
                    .after(&answer.head, sent.as_ref(), answer.near)
                    .await?,
            );
            (hop, answer) = self.follow(id, request, sent.as_ref()).await?;
        }
        settle(request.method, &hop, answer)
    }

    /// One authorization, any redirects.
    async fn follow(
        &self,
        id: UpstreamId,
        request: &Request,
        authorization: Option<&Secret>,
    ) -> Result<(Hop, Answer), UpstreamError> {
        let origin = self.known(id).upstream.url.clone();
        let target = Target {
            origin,
            path: request.path_and_query.clone(),
        };
        let mut hop = Hop {
            target,
            authorized: true,
            hops: 0,
        };
        // The configured origin may be anywhere; where it leads to depends on where it is.
        let mut near = true;
        loop {
            match request.method {
                Method::Get => self.counters.gets.add(1),
                Method::Head => self.counters.heads.add(1),
            }
            let ask = Ask {
                id,
                method: request.method,
                hop: &hop,
                accept: request.accept,
                range: request.range.as_ref(),
                authorization: authorization.filter(|_| hop.authorized),
                near,
            };
            let answer = self.exchange(&ask).await?;
            if !redirect::is_redirect(answer.head.status) {
                return Ok((hop, answer));
            }
            near = near && answer.near;
            hop = redirect::follow(&hop, answer.head.field("location"), near)?;
            self.counters.redirects.add(1);
            answer.body.drain().await;
        }
    }

    /// A token for `TokenCache`. Redirects of a token service are not followed: what is sent
    /// there is for it alone (R11).
    pub(super) async fn fetch_token(&self, ask: &TokenAsk) -> Result<Token, UpstreamError> {
        let upstream = self.known(ask.upstream).upstream.clone();
        let mut target = realm::check(&upstream.url, &ask.realm)?;
        let query = ask.query();
        if !query.is_empty() {
            target
                .path
                .push(if target.path.contains('?') { '&' } else { '?' });
            target.path.push_str(&query);
        }
        let hop = Hop {
            target,
            authorized: true,
            hops: 0,
        };
        self.counters.token_requests.add(1);
        let mut answer = self
            .exchange(&Ask {
                id: ask.upstream,
                method: Method::Get,
                hop: &hop,
                accept: Some("application/json"),
                range: None,
                authorization: upstream.basic.as_ref(),
                near: ask.near,
            })
            .await?;
        if answer.head.status != 200 {
            answer.body.drain().await;
            return Err(TokenError::Status(answer.head.status).into());
        }
        let answer = answer
            .body
            .collect(ANSWER_LEN_MAX)
            .await
            .map_err(TokenError::Body)?;
        Ok(token::parse(&answer, self.now())?)
    }

    pub(super) fn now(&self) -> Instant {
        (self.clock)()
    }

    async fn exchange(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let known = self.known(ask.id);
        let key = Key {
            upstream: ask.id,
            origin: ask.hop.target.origin.clone(),
        };
        let bytes = ask.encode();
        if let Some(connection) = self.pool.take(&key, ask.near) {
            match self.attempt(connection, ask, &key, bytes.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Unanswered(_)) => self.counters.retries.add(1),
            }
        }
        if self.open.count() >= CONNECTIONS_MAX {
            self.pool.close_all();
        }
        let dial = Dial {
            origin: &key.origin,
            tls: &known.tls,
            timeout: known.upstream.connect_timeout,
            near: ask.near,
            resolver: &self.resolver,
            open: &self.open,
            counters: &self.counters,
        };
        let connection = dial.connect().await?;
        self.attempt(connection, ask, &key, bytes)
            .await
            .map_err(|failure| match failure {
                Failure::Unanswered(error) | Failure::Final(error) => error,
            })
    }

    async fn attempt(
        &self,
        mut connection: Connection,
        ask: &Ask<'_>,
        key: &Key,
        bytes: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let origin = &key.origin;
        let (used, near) = (connection.used, connection.near);
        let read_timeout = self.known(ask.id).upstream.read_timeout;
        let limit = read_timeout.min(HEAD_TIMEOUT);
        let head = match timeout(limit, converse(&mut connection, origin, bytes)).await {
            Ok(head) => head?,
            Err(_) => {
                let origin = origin.to_string();
                return Err(Failure::Final(UpstreamError::HeadTimeout { origin }));
            }
        };
        // RFC 9110 §15.5.9: it may have been sent before our request arrived.
        if used && head.status == 408 {
            let origin = origin.to_string();
            return Err(Failure::Unanswered(UpstreamError::Closed { origin }));
        }
        let method = match ask.method {
            Method::Get => http::head::Method::Get,
            Method::Head => http::head::Method::Head,
        };
        let framing = body_framing(method, &head).map_err(|reason| malformed(origin, reason))?;
        let body = Body::new(Exchange {
            keep: head.keep_alive().then(|| (self.pool.clone(), key.clone())),
            connection,
            framing,
            read_timeout,
            counters: self.counters.clone(),
        });
        Ok(Answer {
            head,
            framing,
            body,
            near,
        })
    }
}

/// Sends a request and receives the head of its final answer; what follows it stays held.
async fn converse(
    connection: &mut Connection,
    origin: &Url,
    bytes: Vec<u8>,
) -> Result<ResponseHead, Failure> {
    let lost = |error| match error {
        StreamError::Io(kind) => UpstreamError::Lost {
            origin: origin.to_string(),
            kind,
        },
        StreamError::Tls(reason) => UpstreamError::Tls {
            origin: origin.to_string(),
            reason,
        },
    };
    connection
        .write(bytes)
        .await
        .map_err(|error| Failure::Unanswered(lost(error)))?;
    let mut received = Vec::new();
    let mut interim = 0;
    loop {
        match parse_response(&received, &LIMITS).map_err(|reason| malformed(origin, reason))? {
            // RFC 9110 §15.2: nobody asked to switch protocols, so 101 is not skipped.
            Parsed::Complete(head) if head.status < 200 && head.status != 101 => {
                interim += 1;
                if interim > INTERIM_MAX {
                    let origin = origin.to_string();
                    return Err(Failure::Final(UpstreamError::Interim { origin }));
                }
                received.drain(..head.len);
                continue;
            }
            Parsed::Complete(head) if head.status == 101 => {
                return Err(malformed(origin, HeadError::InvalidStatusLine));
            }
            Parsed::Complete(head) => {
                connection.held = received.split_off(head.len);
                return Ok(head);
            }
            Parsed::Partial => {}
        }
        // A read may be of TLS records that carry no data.
        let error = match connection.read(&mut received, HEAD_READ_LEN).await {
            Ok(Got::Bytes) => continue,
            Ok(Got::End { .. }) => UpstreamError::Closed {
                origin: origin.to_string(),
            },
            Err(error) => lost(error),
        };
        return Err(match received.is_empty() && interim == 0 {
            true => Failure::Unanswered(error),
            false => Failure::Final(error),
        });
    }
}

fn malformed(origin: &Url, reason: HeadError) -> Failure {
    Failure::Final(UpstreamError::Head {
        origin: origin.to_string(),
        reason,
    })
}

impl Ask<'_> {
    fn encode(&self) -> Vec<u8> {
        let Target { origin, path } = &self.hop.target;
        let (method, host) = (self.method.as_str(), origin.authority());
        let mut head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\n\
             Accept-Encoding: identity\r\n"
        );
        let mut field = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                head.push_str(part);
            }
        };
        if let Some(accept) = self.accept {
            field("Accept", accept);
        }
        if let Some(Part {
            first,
            last,
            if_range,
        }) = self.range
        {
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            field("Range", &format!("bytes={first}-{last}"));
            if let Some(validator) = if_range {
                field("If-Range", &validator.etag);
            }
        }
        if let Some(authorization) = self.authorization {
            field("Authorization", authorization.expose());
        }
        head.push_str("\r\n");
        head.into_bytes()
    }
}

/// What the caller sees of a final answer.
fn settle(method: Method, hop: &Hop, answer: Answer) -> Result<Response, UpstreamError> {
    let Answer {
        head,
        framing,
        mut body,
        ..
    } = answer;
    let origin = || hop.target.origin.to_string();
    let status = head.status;
    if matches!(status, 401 | 403) {
        return Err(match hop.authorized {
            true => UpstreamError::Denied {
                origin: origin(),
                status,
            },
            false => UpstreamError::DeniedElsewhere {
                origin: origin(),
                status,
            },
        });
    }
    let malformed = |reason| UpstreamError::Head {
        origin: origin(),
        reason,
    };
    let mut length = match framing {
        BodyFraming::Length(len) => Some(len),
        BodyFraming::Empty => head.content_length().map_err(malformed)?,
        BodyFraming::Chunked | BodyFraming::UntilClose => None,
    };
    if is_coded(&head) {
        // What was asked for are the bytes that the digest is of (RFC 9110 §8.4).
        match (method, status) {
            (Method::Get, 200..=299) => return Err(UpstreamError::Coding { origin: origin() }),
            // The words of an error are not needed; its status is.
            (Method::Get, _) => body = Body::empty(),
            (Method::Head, _) => {}
        }
        length = None;
    }
    Ok(Response {
        status,
        head,
        length,
        body,
        hops: hop.hops,
    })
}

fn is_coded(head: &ResponseHead) -> bool {
    head.fields("content-encoding")
        .flat_map(|value| value.split(|byte| *byte == b','))
        .map(|coding| coding.trim_ascii())
        .any(|coding| !coding.is_empty() && !coding.eq_ignore_ascii_case(b"identity"))
}

/// RFC 9112 §3.2.1. Queries come from clients, so this is checked although names are not free.
fn check_target(path_and_query: &str) -> Result<(), UpstreamError> {
    let clean = path_and_query
        .bytes()
        .all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let fits = path_and_query.len() <= LIMITS.target_len_max;
    match clean && fits && path_and_query.starts_with('/') {
        true => Ok(()),
        false => Err(UpstreamError::RequestTarget),
    }
}
