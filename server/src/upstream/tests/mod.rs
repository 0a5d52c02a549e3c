//! The client against scripted origins on 127.0.0.1: real sockets, the real runtime, no sleeps.

mod auth;
mod faults;
mod origin;
mod plain;
mod redirects;
mod tls;
mod tokens;

use std::cell::{Cell, OnceCell, RefCell};
use std::future::Future;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{
    Client, Method, Part, Request, Resolver, Response, Token, TokenAsk, TokenCache, TokenFuture,
    TokenSource, TrustRoots, Upstream, UpstreamError, UpstreamId,
};
use crate::config::{self, SecretSource};

/// Long enough for a busy machine, so that no test passes by running out of time.
const PATIENCE: Duration = Duration::from_secs(20);
const FIRST: UpstreamId = UpstreamId(0);

/// Runs a test on a runtime of its own, which is never dropped: requests that a test gave up may
/// still be with the kernel.
pub(super) fn run<F: Future>(test: F) -> F::Output {
    let builder = monoio::RuntimeBuilder::<monoio::IoUringDriver>::new();
    let runtime = builder
        .with_entries(64)
        .enable_timer()
        .build()
        .expect("io_uring");
    let mut runtime = std::mem::ManuallyDrop::new(runtime);
    runtime.block_on(test)
}

fn part(first: u64, last: Option<u64>) -> Part {
    Part {
        first,
        last,
        if_range: None,
    }
}

fn upstream(url: &str) -> config::Upstream {
    config::Upstream {
        connect_timeout: PATIENCE,
        read_timeout: PATIENCE,
        ..config::Upstream::new(url.parse().expect(url))
    }
}

/// `user:pass`, which is `dXNlcjpwYXNz`.
fn with_credentials(mut upstream: config::Upstream) -> config::Upstream {
    upstream.username = Some("user".to_owned());
    upstream.password = Some(config::Secret::new("pass".to_owned(), SecretSource::Inline));
    upstream
}

/// One shard that owns all its upstreams.
struct Shard {
    client: Rc<Client>,
    tokens: Rc<LocalTokens>,
    now: Rc<Cell<Instant>>,
}

impl Shard {
    fn new(upstreams: &[config::Upstream]) -> Shard {
        Shard::with_resolver(upstreams, Resolver::start().expect("threads"))
    }

    fn with_resolver(upstreams: &[config::Upstream], resolver: Resolver) -> Shard {
        let roots = TrustRoots::none();
        let upstreams: Vec<Arc<Upstream>> = upstreams
            .iter()
            .map(|config| Arc::new(Upstream::new(config, &roots).expect("a usable upstream")))
            .collect();
        let now = Rc::new(Cell::new(Instant::now()));
        let tokens = Rc::new(LocalTokens {
            cache: TokenCache::new(),
            client: OnceCell::new(),
            asked: RefCell::default(),
            asking: flume::unbounded(),
        });
        let clock = now.clone();
        let source = Rc::new(LocalTokensRef(tokens.clone()));
        let client = Client::new(&upstreams, resolver, source, Rc::new(move || clock.get()));
        tokens.client.set(Rc::downgrade(&client)).expect("set once");
        Shard {
            client,
            tokens,
            now,
        }
    }

    fn pass(&self, time: Duration) {
        self.now.set(self.now.get() + time);
    }

    async fn send(&self, request: Request) -> Result<Response, UpstreamError> {
        self.client.send(FIRST, &request).await
    }

    /// The status and the body of a GET.
    async fn get(&self, path: &str) -> (u16, String) {
        let mut response = self.send(get(path)).await.expect("an answer");
        let body = response.body.collect(1 << 20).await.expect("a body");
        (response.status, String::from_utf8(body).expect("text"))
    }
}

fn get(path: &str) -> Request {
    Request {
        method: Method::Get,
        repository: "library/nginx".to_owned(),
        path_and_query: path.to_owned(),
        elsewhere: None,
        accept: None,
        range: None,
    }
}

fn head(path: &str) -> Request {
    Request {
        method: Method::Head,
        ..get(path)
    }
}

/// The owner's cache, reached without a mailbox.
struct LocalTokens {
    cache: TokenCache,
    client: OnceCell<Weak<Client>>,
    /// What was asked for, and with which token refused.
    asked: RefCell<Vec<(String, Option<Token>)>>,
    /// One message for each of them.
    asking: (flume::Sender<()>, flume::Receiver<()>),
}

struct LocalTokensRef(Rc<LocalTokens>);

impl TokenSource for LocalTokensRef {
    fn token(&self, ask: TokenAsk) -> TokenFuture {
        let tokens = self.0.clone();
        tokens
            .asked
            .borrow_mut()
            .push((ask.scope.clone(), ask.refused.clone()));
        tokens.asking.0.send(()).expect("its receiver is beside it");
        Box::pin(async move {
            let client = tokens
                .client
                .get()
                .and_then(Weak::upgrade)
                .expect("a client");
            tokens.cache.get(&client, ask).await
        })
    }
}
