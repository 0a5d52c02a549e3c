//! One request to an upstream, through redirects and authorization, to its final answer.
//!
//! Called by the fetch path of the shard that owns the client. At most one authorization is
//! obtained for a request, and a request that fails by chance is made once more: see `retry`.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::time::{sleep, timeout};

use crate::gate;
use crate::http::upstream_head::{BodyFraming, ResponseHead};
use crate::jitter;

use super::authorize::{Authorize, Remembered};
use super::body::Body;
use super::connect::Open;
use super::error::UpstreamError;
use super::exchange::{Answer, Ask, LIMITS};
use super::origin::{Reach, Target};
use super::pool::Pool;
use super::redirect::{self, Hop, RedirectError};
use super::resolve::Resolver;
use super::retry::{self, Budget};
use super::tls;
use super::token::TokenSource;
use super::{Clock, Counters, Method, Request, Response, Secret, Upstream, UpstreamId};

/// From a request to its final head, over connections, redirects, tokens and a retry: clients
/// give up after a minute or two, and nothing that still comes by then is worth a fill.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(120);

/// One shard's way to all upstreams.
pub struct Client {
    /// By id; a reload adds to it and takes nothing away.
    known: RefCell<Vec<Rc<Known>>>,
    pub(super) resolver: Resolver,
    tokens: Rc<dyn TokenSource>,
    clock: Clock,
    pub(super) pool: Rc<Pool>,
    pub(super) open: Open,
    pub(super) counters: Arc<Counters>,
}

/// One upstream, and what this shard knows of it.
pub(super) struct Known {
    pub id: UpstreamId,
    pub upstream: Arc<Upstream>,
    pub tls: tls::Settings,
    remembered: Remembered,
    retries: Budget,
    /// It has been asked, so there may be something to forget.
    asked: Cell<bool>,
}

impl Known {
    fn new(id: usize, upstream: &Arc<Upstream>) -> Rc<Known> {
        Rc::new(Known {
            id: UpstreamId(id),
            upstream: upstream.clone(),
            tls: upstream.tls.for_shard(),
            remembered: Remembered::default(),
            retries: Budget::default(),
            asked: Cell::new(false),
        })
    }
}

impl Client {
    /// `tokens` leads to the caches of the shards that own the upstreams.
    pub fn new(
        upstreams: &[Arc<Upstream>],
        resolver: Resolver,
        tokens: Rc<dyn TokenSource>,
        clock: Clock,
    ) -> Rc<Client> {
        let client = Client {
            known: RefCell::default(),
            resolver,
            tokens,
            pool: Pool::new(clock.clone()),
            clock,
            open: Open::default(),
            counters: Arc::default(),
        };
        client.learn(upstreams);
        Rc::new(client)
    }

    /// All upstreams there are now, those known already at their places.
    pub fn learn(&self, upstreams: &[Arc<Upstream>]) {
        let mut known = self.known.borrow_mut();
        let new = upstreams.iter().enumerate().skip(known.len());
        let new = new.map(|(id, upstream)| Known::new(id, upstream));
        known.extend(new);
    }

    pub fn counters(&self) -> &Arc<Counters> {
        &self.counters
    }

    pub(super) fn known(&self, id: UpstreamId) -> Rc<Known> {
        let known = self.known.borrow()[id.0].clone();
        known.asked.set(true);
        known
    }

    /// Forgets the tokens, TLS sessions and idle connections of upstreams that are not configured
    /// any more. Requests under way go on with what they took.
    pub fn retire(&self, is_configured: impl Fn(UpstreamId) -> bool) {
        for known in self.known.borrow_mut().iter_mut() {
            if known.asked.get() && !is_configured(known.id) {
                *known = Known::new(known.id.0, &known.upstream);
            }
        }
        self.pool.retire(is_configured);
    }

    /// How the gate of an upstream lets requests through; asking there first is the caller's part.
    pub fn gate(&self, id: UpstreamId) -> gate::Rules {
        self.known.borrow()[id.0].upstream.gate()
    }

    /// How long an upstream may send nothing.
    pub fn read_timeout(&self, id: UpstreamId) -> Duration {
        self.known.borrow()[id.0].upstream.config.read_timeout
    }

    /// Closes connections that were idle too long; for an occasional timer of the shard.
    pub fn close_idle(&self) {
        self.pool.close_old();
    }

    pub(super) fn now(&self) -> Instant {
        (self.clock)()
    }

    /// The final answer, of whatever status but 401 and 403, which are errors here.
    /// Dropping the future closes its connection.
    pub async fn send(&self, id: UpstreamId, request: &Request) -> Result<Response, UpstreamError> {
        if request.elsewhere.is_none() {
            check_target(&request.path_and_query)?;
        }
        let known = self.known(id);
        let config = &known.upstream.config;
        let deadline = config.total_timeout.map(|time| Instant::now() + time);
        let limit = config.total_timeout.unwrap_or(ANSWER_TIMEOUT);
        let answer = self.send_patiently(&known, request, deadline);
        match timeout(limit.min(ANSWER_TIMEOUT), answer).await {
            Ok(answer) => answer,
            Err(_) => Err(UpstreamError::HeadTimeout {
                origin: known.upstream.origin.clone(),
            }),
        }
    }

    /// Whether a caller may make a request once more because its body broke. Counts as a retry.
    pub fn may_retry(&self, id: UpstreamId) -> bool {
        let granted = self.known(id).retries.spend();
        self.counters.retries.add(granted.into());
        granted
    }

    async fn send_patiently(
        &self,
        known: &Known,
        request: &Request,
        deadline: Option<Instant>,
    ) -> Result<Response, UpstreamError> {
        known.retries.earn();
        let outcome = self.send_once(known, request, deadline).await;
        if !retry::is_worth_it(request.method, &outcome) || !known.retries.spend() {
            return outcome;
        }
        self.counters.retries.add(1);
        if let Ok(response) = outcome {
            response.body.drain().await;
        }
        sleep(jitter::jittered(retry::PAUSE)).await;
        self.send_once(known, request, deadline).await
    }

    async fn send_once(
        &self,
        known: &Known,
        request: &Request,
        deadline: Option<Instant>,
    ) -> Result<Response, UpstreamError> {
        let authorize = Authorize {
            upstream: &known.upstream,
            id: known.id,
            repository: &request.repository,
            remembered: &known.remembered,
            tokens: &self.tokens,
            now: self.now(),
        };
        let mut sent = match &request.elsewhere {
            None => authorize.before().await?,
            Some(_) => None,
        };
        let (mut hop, mut answer) = self.follow(known, request, sent.as_ref(), deadline).await?;
        if answer.head.status == 401 && hop.authorized {
            answer.body.drain().await;
            let reach = known.upstream.reach_from(answer.needs);
            let granted = authorize.after(&answer.head, sent.as_ref(), reach).await?;
            sent = Some(granted);
            (hop, answer) = self.follow(known, request, sent.as_ref(), deadline).await?;
        }
        let own = hop.target.origin == known.upstream.config.url;
        settle(request.method, &hop, own, answer)
    }

    /// One authorization, any redirects.
    async fn follow(
        &self,
        known: &Known,
        request: &Request,
        authorization: Option<&Secret>,
        deadline: Option<Instant>,
    ) -> Result<(Hop, Answer), UpstreamError> {
        let (mut hop, mut reach) = begin(known, request)?;
        loop {
            match request.method {
                Method::Get => self.counters.gets.add(1),
                Method::Head => self.counters.heads.add(1),
            }
            let ask = Ask {
                known,
                method: request.method,
                hop: &hop,
                accept: request.accept,
                range: request.range.as_ref(),
                authorization: authorization.filter(|_| hop.authorized),
                form: None,
                reach,
                deadline,
            };
            let answer = self.exchange(&ask).await?;
            if !redirect::is_redirect(answer.head.status) {
                return Ok((hop, answer));
            }
            reach = reach.min(known.upstream.reach_from(answer.needs));
            hop = redirect::follow(&hop, answer.head.field("location"), reach)?;
            self.counters.redirects.add(1);
            answer.body.drain().await;
        }
    }
}

/// The first request, and the addresses it may go to.
fn begin(known: &Known, request: &Request) -> Result<(Hop, Reach), RedirectError> {
    let config = &known.upstream.config;
    match &request.elsewhere {
        None => {
            let target = Target {
                origin: config.url.clone(),
                path: request.path_and_query.clone(),
            };
            // The configured origin may be anywhere; where it leads to depends on where it is.
            Ok((Hop::first(target), Reach::Anywhere))
        }
        // Whoever wrote the content chose it: the upstream being near is no reason to go near.
        Some(place) => {
            let reach = known.upstream.reach_from(Reach::Public);
            Ok((redirect::lead(place.0.clone(), reach)?, reach))
        }
    }
}

/// What the caller sees of a final answer; `own`: of the upstream's origin.
fn settle(method: Method, hop: &Hop, own: bool, answer: Answer) -> Result<Response, UpstreamError> {
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
        own,
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
