//! One client of a registry: its connections, its tokens, and where redirects lead it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::ClientConfig;

use super::auth::{self, Challenge, Login, Token};
use super::connection::{Answer, Broken, Connection, Wanted};
use super::digest::Expected;
use super::executor::Executor;
use super::meter::{ErrorClass, Kind, Meter, Sample};
use super::reply;
use super::stream::Stream;
use super::target::Target;
use super::url::{Origin, Url};

/// As most clients follow.
const REDIRECTS_MAX: usize = 5;
/// A connection idle for longer may be closed by the server just when it is used again; clients
/// ask again then (RFC 9112 §9.3.1).
const IDLE_TRUSTED: Duration = Duration::from_secs(1);
/// Before the next request to one that refuses connections.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// What the clients of one thread share.
pub struct Net {
    pub executor: Rc<Executor>,
    pub meter: Meter,
    pub tls: Arc<ClientConfig>,
    pub login: Option<Login>,
    pub keep_alive: bool,
    addresses: RefCell<HashMap<Origin, Rc<[SocketAddr]>>>,
}

pub struct Client {
    pub net: Rc<Net>,
    /// Of this thread's clients.
    index: usize,
    /// Of all threads' clients.
    number: usize,
    #[expect(clippy::vec_box, reason = "they are moved out and in for each request")]
    idle: RefCell<Vec<Box<Connection>>>,
    tokens: RefCell<Vec<Token>>,
}

/// What came of one exchange, as far as the next step needs it.
struct Step {
    answer: Answer,
    challenge: Option<Challenge>,
    location: Option<String>,
}

impl Net {
    pub fn new(
        executor: Rc<Executor>,
        meter: Meter,
        tls: Arc<ClientConfig>,
        login: Option<Login>,
        keep_alive: bool,
    ) -> Net {
        Net {
            executor,
            meter,
            tls,
            login,
            keep_alive,
            addresses: RefCell::default(),
        }
    }

    /// Asks the resolver once; that stops the thread.
    fn addresses(&self, origin: &Origin) -> Result<Rc<[SocketAddr]>, ErrorClass> {
        if let Some(addresses) = self.addresses.borrow().get(origin) {
            return Ok(addresses.clone());
        }
        let addresses: Rc<[SocketAddr]> = origin.resolve().map_err(|_| ErrorClass::Connect)?.into();
        let mut known = self.addresses.borrow_mut();
        known.insert(origin.clone(), addresses.clone());
        Ok(addresses)
    }
}

impl Client {
    pub fn new(net: Rc<Net>, index: usize, number: usize) -> Client {
        Client {
            net,
            index,
            number,
            idle: RefCell::default(),
            tokens: RefCell::default(),
        }
    }

    pub fn number(&self) -> usize {
        self.number
    }

    /// Connects before there is anything to ask. A failure shows when there is.
    pub async fn prepare(&self, origin: &Origin) {
        if self.net.keep_alive
            && let Ok(connection) = self.connect(origin).await
        {
            self.put_back(connection);
        }
    }

    /// Forgets tokens and connections, as a client that starts anew.
    pub fn forget(&self) {
        self.tokens.take();
        self.idle.take();
    }

    /// Asks and counts; redirects and challenges are part of it. `asked_at` is when it should
    /// have been asked.
    pub async fn ask(&self, target: &Target, asked_at: Instant) -> Result<Answer, ErrorClass> {
        let meter = &self.net.meter;
        match self.fetch(target).await {
            Ok(answer) => {
                meter.answered(&Sample {
                    kind: target.kind,
                    status: answer.status,
                    asked_at,
                    first_byte_at: answer.first_byte_at,
                    done_at: answer.done_at,
                });
                let first_byte = answer.first_byte_at.saturating_duration_since(asked_at);
                meter.first_answer(self.index, first_byte);
                // A ping without a login is there to get the challenge.
                let good = match target.status {
                    Some(status) => answer.status == status,
                    None => {
                        let challenged = target.kind == Kind::Ping && answer.status == 401;
                        challenged || (200..300).contains(&answer.status)
                    }
                };
                let class = match (good, answer.right) {
                    (false, _) => ErrorClass::Status,
                    (true, false) => ErrorClass::Digest,
                    (true, true) => return Ok(answer),
                };
                meter.failed(class, answer.done_at);
                Err(class)
            }
            Err(class) => {
                meter.failed(class, self.net.executor.now());
                if class == ErrorClass::Connect {
                    let again = self.net.executor.now() + REFUSED_PAUSE;
                    self.net.executor.sleep_until(again).await;
                }
                Err(class)
            }
        }
    }

    async fn fetch(&self, target: &Target) -> Result<Answer, ErrorClass> {
        let mut moved: Option<Url> = None;
        let mut challenged = false;
        let mut redirects = 0;
        loop {
            let url = moved.as_ref().unwrap_or(&target.url);
            let step = self.exchange(target, url).await?;
            match (step.challenge, step.location) {
                (Some(challenge), _) if !challenged && url.origin == *target.origin() => {
                    challenged = true;
                    if !self.answer_challenge(target, challenge).await? {
                        return Ok(step.answer);
                    }
                    if target.kind == Kind::Ping {
                        return Ok(step.answer);
                    }
                }
                (None, Some(location)) => {
                    redirects += 1;
                    if redirects > REDIRECTS_MAX {
                        return Err(ErrorClass::Redirect);
                    }
                    self.net.meter.redirected();
                    let to = url.join(&location).map_err(|_| ErrorClass::Redirect)?;
                    moved = Some(to);
                }
                _ => return Ok(step.answer),
            }
        }
    }

    /// One request to `url` and its answer, on a connection that is there or a new one.
    async fn exchange(&self, target: &Target, url: &Url) -> Result<Step, ErrorClass> {
        let own = std::ptr::eq(url, &target.url);
        let authorization = match url.origin == *target.origin() {
            true => self.authorization(target),
            false => None,
        };
        let composed;
        let request = if own && authorization.is_none() {
            target.request()
        } else {
            composed = target.request_to(url, authorization.as_deref());
            &composed
        };
        let wanted = Wanted {
            request,
            head_only: target.head_only,
            digest: target.digest.as_ref(),
            len: target.len,
            keep: target.keep,
            meter: &self.net.meter,
        };
        let (answer, connection) = self.exchange_on_any(&url.origin, &wanted).await?;
        let mut step = Step {
            challenge: None,
            location: None,
            answer,
        };
        match step.answer.status {
            401 => {
                let values = reply::fields(connection.head(), "www-authenticate");
                step.challenge = values.filter_map(Challenge::parse).next();
            }
            301 | 302 | 303 | 307 | 308 => {
                step.location = reply::field(connection.head(), "location").map(str::to_owned);
            }
            _ if target.kind == Kind::Head => {
                let value = reply::field(connection.head(), "docker-content-digest");
                step.answer.digest = value.and_then(Expected::parse);
            }
            _ => {}
        }
        if self.net.keep_alive && !step.answer.close {
            self.put_back(connection);
        }
        Ok(step)
    }

    async fn exchange_on_any(
        &self,
        origin: &Origin,
        wanted: &Wanted<'_>,
    ) -> Result<(Answer, Box<Connection>), ErrorClass> {
        if let Some(mut connection) = self.take_idle(origin) {
            let now = self.net.executor.now();
            let idle_long = connection
                .last_used
                .is_some_and(|used| now.duration_since(used) >= IDLE_TRUSTED);
            match connection.exchange(wanted).await {
                Ok(answer) => return Ok((answer, connection)),
                Err(Broken {
                    class: ErrorClass::Reset,
                    began: false,
                }) if idle_long => self.net.meter.reconnected(),
                Err(broken) => return Err(broken.class),
            }
        }
        let mut connection = self.connect(origin).await?;
        match connection.exchange(wanted).await {
            Ok(answer) => Ok((answer, connection)),
            Err(broken) => Err(broken.class),
        }
    }

    fn take_idle(&self, origin: &Origin) -> Option<Box<Connection>> {
        let mut idle = self.idle.borrow_mut();
        let at = idle.iter().rposition(|idle| idle.origin == *origin)?;
        Some(idle.swap_remove(at))
    }

    fn put_back(&self, connection: Box<Connection>) {
        self.idle.borrow_mut().push(connection);
    }

    async fn connect(&self, origin: &Origin) -> Result<Box<Connection>, ErrorClass> {
        let addresses = self.net.addresses(origin)?;
        let executor = &self.net.executor;
        let tls = origin.tls.then(|| (self.net.tls.clone(), &*origin.host));
        let stream = Stream::connect(executor, &addresses, tls).await?;
        let connection = Connection::new(executor.clone(), origin.clone(), stream);
        Ok(Box::new(connection))
    }

    /// What was given out for this target, if it is still good.
    fn authorization(&self, target: &Target) -> Option<String> {
        let tokens = self.tokens.borrow();
        if tokens.is_empty() {
            return None;
        }
        let now = self.net.executor.now();
        let fits = |token: &&Token| {
            let scoped = token.scope.is_none() || token.scope == target.scope;
            let fresh = token.until.is_none_or(|until| now < until);
            scoped && fresh && token.origin == *target.origin()
        };
        let token = tokens.iter().rev().find(fits)?;
        Some(token.authorization.clone())
    }

    /// Whether there are credentials now that there were not before.
    async fn answer_challenge(
        &self,
        target: &Target,
        challenge: Challenge,
    ) -> Result<bool, ErrorClass> {
        let login = self.net.login.as_ref();
        let token = match challenge {
            Challenge::Basic => match login {
                None => return Ok(false),
                Some(login) => Token {
                    origin: target.origin().clone(),
                    scope: None,
                    authorization: login.basic(),
                    until: None,
                },
            },
            Challenge::Bearer {
                realm,
                service,
                scope,
            } => {
                let realm = target.url.join(&realm).map_err(|_| ErrorClass::Token)?;
                // The scope of the ping's challenge is empty; ours says what will be asked for.
                let scope = scope.or_else(|| target.scope.clone());
                let account = login.map(|login| &*login.name);
                let url = auth::token_url(&realm, service.as_deref(), scope.as_deref(), account);
                let (authorization, lifetime) = self.fetch_token(url, target.origin()).await?;
                Token {
                    origin: target.origin().clone(),
                    scope: target.scope.clone(),
                    authorization,
                    until: Some(self.net.executor.now() + lifetime),
                }
            }
        };
        let mut tokens = self.tokens.borrow_mut();
        tokens.retain(|old| old.scope != token.scope || old.origin != token.origin);
        tokens.push(token);
        Ok(true)
    }

    async fn fetch_token(
        &self,
        url: Url,
        registry: &Origin,
    ) -> Result<(String, Duration), ErrorClass> {
        // A login that travelled encrypted stays so.
        let login = self.net.login.as_ref();
        let login = login.filter(|_| url.origin.tls || !registry.tls);
        let asked_at = self.net.executor.now();
        let target = Target::get(url, Kind::Token, "Accept: application/json\r\n");
        let login = login.map(Login::basic);
        let request = target.request_to(&target.url, login.as_deref());
        let wanted = Wanted {
            request: &request,
            head_only: false,
            digest: None,
            len: None,
            keep: true,
            meter: &self.net.meter,
        };
        let (answer, connection) = self.exchange_on_any(target.origin(), &wanted).await?;
        self.net.meter.answered(&Sample {
            kind: Kind::Token,
            status: answer.status,
            asked_at,
            first_byte_at: answer.first_byte_at,
            done_at: answer.done_at,
        });
        if self.net.keep_alive && !answer.close {
            self.put_back(connection);
        }
        match answer.status {
            200 => auth::parse_token(&answer.body).ok_or(ErrorClass::Token),
            _ => Err(ErrorClass::Token),
        }
    }
}
