//! One shard: a core's thread with its ring, its listener, and the keys it owns.
//!
//! Named by `main` only. `run` is the wiring of a shard on one screen; below it are the loops it
//! starts: accept, mailbox, drain; what goes by the clock is in `upkeep`. Nothing in them blocks
//! (R3), and the mailbox loop starts tasks and awaits none of them (R4).

use std::future::Future;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use entrepot_storage::disk::uring::UringDisk;
use entrepot_storage::{Store, Writer};
use monoio::net::TcpStream;
use monoio::time::sleep;

use crate::access::Links;
use crate::allowance::Allowance;
use crate::clock;
use crate::config::Config;
use crate::connection;
use crate::fetch::{Bounds, Fetcher};
use crate::foreign::Foreign;
use crate::freshness::Tags;
use crate::gate::{Board, Gates};
use crate::generation::Current;
use crate::lookup::Lookup;
use crate::mailbox::{Mailboxes, Message, Post};
use crate::metrics::{Metrics, Operations};
use crate::net::buffers::Buffers;
use crate::net::socket::{self, Socket};
use crate::net::turns::Turns;
use crate::net::warm::Warmer;
use crate::net::watchdog::{Patience, Watchdog};
use crate::parts;
use crate::pinning;
use crate::purge;
use crate::ring;
use crate::service::Service;
use crate::source::Sources;
use crate::upkeep::{self, Upkeep};
use crate::upstream::{Client, Resolver, Token, TokenAsk, TokenCache, TokenSource, UpstreamError};
use crate::verify::Checks;
use crate::whole;

/// The whole answer to a client that there is no room for.
const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\n\
    Content-Length: 0\r\nConnection: close\r\n\r\n";
/// Pause after a failed accept: out of descriptors, it would fail again at once.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Connections taken before the shard looks at its ring again, some 5 µs each. A start of a farm
/// brings thousands, and with one at a time each waits for a turn of the large bodies.
const ACCEPTS_MAX: usize = 32;
/// How often a draining shard looks whether it is done.
const DRAIN_LOOK: Duration = Duration::from_millis(20);

/// What all shards are made of.
pub struct Parts {
    pub config: Arc<Config>,
    /// Shards start with the first; the others come by mailbox.
    pub current: Arc<Current>,
    /// As many as the limit of open files leaves of the configured maximum.
    pub connections: Arc<Allowance>,
    pub fills: Arc<Allowance>,
    pub resolver: Resolver,
    pub store: Arc<Store<UringDisk>>,
    /// Of the store's volumes, in their order.
    pub disks: Vec<UringDisk>,
    pub warmer: Warmer,
    pub mailboxes: Arc<Mailboxes>,
    /// What the gates of the upstreams show.
    pub board: Arc<Board>,
    /// What came of reloads and refreshes.
    pub operations: Arc<Operations>,
    pub drained: Drained,
}

/// The points of a drain at which shards wait for each other.
pub struct Drained {
    idle: Rendezvous,
    durable: Rendezvous,
}

impl Drained {
    pub fn new(shards: usize) -> Drained {
        Drained {
            idle: Rendezvous::new(shards),
            durable: Rendezvous::new(shards),
        }
    }
}

/// A barrier that does not block a shard.
struct Rendezvous {
    missing: AtomicUsize,
}

impl Rendezvous {
    fn new(shards: usize) -> Rendezvous {
        Rendezvous {
            missing: AtomicUsize::new(shards),
        }
    }

    /// Returns when all shards have arrived.
    async fn arrive(&self) {
        self.missing.fetch_sub(1, Ordering::AcqRel);
        while self.missing.load(Ordering::Acquire) > 0 {
            sleep(DRAIN_LOOK).await;
        }
    }
}

/// What one shard gets for itself.
pub struct Seat {
    pub index: usize,
    pub listeners: Vec<TcpListener>,
    pub mailbox: flume::Receiver<Message>,
    pub metrics: Arc<Metrics>,
    /// Told once the shard runs, or why it can't.
    pub started: flume::Sender<io::Result<()>>,
    /// One message: drain.
    pub drain: flume::Receiver<()>,
}

/// Runs a shard until it has drained. Call it on a thread of its own.
pub fn run(parts: Arc<Parts>, seat: Seat) {
    if let Err(error) = pinning::pin(seat.index) {
        tracing::warn!(shard = seat.index, %error, "not pinned to a core");
    }
    let mut runtime = match ring::runtime() {
        Ok(runtime) => runtime,
        Err(error) => {
            let _ = seat.started.send(Err(error));
            return;
        }
    };
    runtime.block_on(serve(parts, seat));
    // A runtime dropped with I/O in flight frees buffers that the kernel still writes to (R2).
    std::mem::forget(runtime);
}

async fn serve(parts: Arc<Parts>, seat: Seat) {
    let turns = match Turns::new() {
        Ok(turns) => Rc::new(turns),
        Err(error) => {
            let error = format!("its turns need a socket: {error}");
            let _ = seat.started.send(Err(io::Error::other(error)));
            return;
        }
    };
    let _ = seat.started.send(Ok(()));
    let config = &parts.config;
    let shards = parts.mailboxes.shards();
    let metrics = seat.metrics.clone();
    let writer = Rc::new(parts.store.writer(parts.disks.clone(), seat.index));
    let post = Post::new(parts.mailboxes.clone(), metrics.clone());
    let tokens = Rc::new(TokenMail { post: post.clone() });
    let generation = parts.current.get();
    let client = Client::new(
        &generation.upstreams,
        parts.resolver.clone(),
        tokens,
        Rc::new(Instant::now),
    );
    metrics.show(client.counters().clone());
    let sources = Sources::new(
        client.clone(),
        &generation.projects,
        post.clone(),
        parts.board.clone(),
        whole::Bounds::new(config.limits.manifest_max),
    );
    let gates = Gates::new(post.clone(), parts.board.clone());
    let bounds = Bounds {
        fills: parts.fills.clone(),
        followers_max: config.limits.followers_max,
        body_len_max: config.limits.body_max,
        mismatch_holdoff: config.limits.mismatch_holdoff,
    };
    let store = &parts.store;
    let fetcher = Fetcher::new(
        store.clone(),
        writer.clone(),
        sources.clone(),
        post.clone(),
        metrics.clone(),
        bounds,
    );
    let tags = Tags::new(store.clone(), writer.clone(), sources.clone(), post.clone());
    let purge = purge::Owner::new(
        store.clone(),
        writer.clone(),
        fetcher.clone(),
        tags.clone(),
        gates.clone(),
        (seat.index, shards),
    );
    let owner = Owner {
        body_parts: parts::Parts::new(sources.clone(), fetcher.clone()),
        fetcher,
        links: Links::new(store.clone(), writer.clone(), sources.clone()),
        foreign: Foreign::new(),
        tags,
        purge: Rc::new(purge),
        checks: Checks::new(writer.clone()),
        gates: gates.clone(),
        tokens: Rc::new(TokenCache::new()),
        client,
        sources: sources.clone(),
        writer: writer.clone(),
    };
    let seconds = |time: Duration| time.as_secs().clamp(1, u64::from(u32::MAX)) as u32;
    let watchdog = Watchdog::new(Patience {
        idle_s: seconds(config.limits.idle_timeout),
        head_s: seconds(config.limits.head_timeout),
        send_s: seconds(config.limits.send_timeout),
    });
    let service = Rc::new(Service {
        lookup: Lookup::new(store.clone(), sources, post, config.store.small_max),
        metrics: metrics.clone(),
        warmer: parts.warmer.clone(),
        watchdog: watchdog.clone(),
        buffers: Buffers::default(),
        turns: turns.clone(),
        head_len_max: config.limits.head_len_max,
        relays: Rc::default(),
        cold: Rc::default(),
        listings: Rc::default(),
        ahead: Rc::default(),
    });
    for listener in &seat.listeners {
        match listener.try_clone() {
            Ok(listener) => drop(monoio::spawn(accept(
                listener,
                service.clone(),
                parts.connections.clone(),
            ))),
            Err(error) => tracing::error!(%error, "a listener could not be shared"),
        }
    }
    let upkeep = Upkeep {
        watchdog,
        client: owner.client.clone(),
        gates,
        fetcher: owner.fetcher.clone(),
        writer,
        exchange: parts.store.exchange(),
    };
    monoio::spawn(async move { turns.run().await });
    monoio::spawn(upkeep.run());
    monoio::spawn(receive(seat.mailbox.clone(), owner.clone()));
    let _ = seat.drain.recv_async().await;
    let patience = config.limits.drain_timeout;
    drain(&seat, &owner, &service, patience, &parts.drained).await;
}

async fn accept(listener: TcpListener, service: Rc<Service>, connections: Arc<Allowance>) {
    // One descriptor to take connections from, and one to wait for them through the ring.
    let arrivals = listener
        .set_nonblocking(true)
        .and_then(|()| listener.try_clone())
        .and_then(monoio::net::TcpListener::from_std);
    let arrivals = match arrivals {
        Ok(arrivals) => arrivals,
        Err(error) => {
            // Or its share of the connections would hang.
            socket::stop_listening(&listener);
            return tracing::error!(%error, "a listener could not be used");
        }
    };
    loop {
        if let Err(error) = arrivals.readable(false).await {
            tracing::warn!(%error, "waiting for connections failed");
            sleep(ACCEPT_PAUSE).await;
        }
        for _ in 0..ACCEPTS_MAX {
            let accepted = listener.accept();
            match accepted.and_then(|(stream, peer)| Ok((TcpStream::from_std(stream)?, peer))) {
                Ok((stream, peer)) => admit(stream, peer, &service, &connections),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EAGAIN) => break,
                    // It went away while it waited.
                    Some(libc::ECONNABORTED | libc::EINTR) => {}
                    // `stop_listening` ends the accept this way.
                    Some(libc::EINVAL) => return,
                    _ => {
                        tracing::warn!(%error, "accept failed");
                        sleep(ACCEPT_PAUSE).await;
                        break;
                    }
                },
            }
        }
    }
}

fn admit(stream: TcpStream, peer: SocketAddr, service: &Rc<Service>, connections: &Arc<Allowance>) {
    let Some(taken) = connections.take() else {
        return turn_away(&stream, peer, service);
    };
    match Socket::new(stream, peer, &service.watchdog) {
        Ok(socket) => {
            let service = service.clone();
            monoio::spawn(async move {
                connection::serve(service, socket).await;
                drop(taken);
            });
        }
        Err(error) => tracing::warn!(%peer, %error, "connection lost at once"),
    }
}

/// One client too many is told so, if its socket takes the words at once.
fn turn_away(stream: &TcpStream, peer: SocketAddr, service: &Service) {
    socket::send_now(stream, FULL);
    if service.watchdog.once_a_second() {
        tracing::warn!(%peer, "connections refused: limits.connections_max is reached");
    }
}

/// What a shard does for the keys it owns.
#[derive(Clone)]
struct Owner {
    fetcher: Rc<Fetcher>,
    body_parts: Rc<parts::Parts>,
    links: Rc<Links>,
    foreign: Rc<Foreign>,
    tags: Rc<Tags>,
    tokens: Rc<TokenCache>,
    client: Rc<Client>,
    sources: Sources,
    writer: Rc<Writer<UringDisk>>,
    purge: Rc<purge::Owner>,
    checks: Rc<Checks>,
    gates: Rc<Gates>,
}

async fn receive(mailbox: flume::Receiver<Message>, owner: Owner) {
    while let Ok(message) = mailbox.recv_async().await {
        // After a reload that got stuck another shard may know more projects. Who asks is told
        // to come back, by the answer that does not come.
        let known = |index| owner.sources.projects().knows(index);
        if message.project().is_none_or(known) {
            owner.take(message);
        }
    }
}

impl Owner {
    fn take(&self, message: Message) {
        match message {
            Message::Body(ask) => self.fetcher.body(ask),
            Message::Part(ask) => self.body_parts.part(ask),
            Message::Tag(ask) => self.tags.resolve(ask),
            Message::Proof(ask) => self.links.prove(ask),
            Message::Foreign(ask) => self.foreign.take(ask),
            Message::Enter(ask) => self.gates.enter(ask),
            Message::Leave(leave) => self.gates.leave(leave),
            Message::Token { ask, reply } => {
                let (tokens, client) = (self.tokens.clone(), self.client.clone());
                monoio::spawn(async move {
                    let _ = reply.try_send(tokens.get(&client, ask).await);
                });
            }
            Message::Link { key, record, reply } => {
                let links = self.links.clone();
                monoio::spawn(async move {
                    links.put(key, record).await;
                    let _ = reply.try_send(());
                });
            }
            Message::Listing { key, record, reply } => {
                let writer = self.writer.clone();
                monoio::spawn(async move {
                    if let Err(error) = writer.put_tag(key, record).await {
                        tracing::warn!(%error, "a listing could not be written");
                    }
                    let _ = reply.try_send(());
                });
            }
            Message::Verified {
                source,
                digest,
                reply,
            } => {
                let tags = self.tags.clone();
                monoio::spawn(async move {
                    tags.settle(&source, digest).await;
                    let _ = reply.try_send(());
                });
            }
            Message::Load { digest, reply } => {
                let writer = self.writer.clone();
                monoio::spawn(async move {
                    let _ = reply.try_send(writer.load(&digest).await);
                });
            }
            Message::BringBack { number, reply } => {
                let writer = self.writer.clone();
                monoio::spawn(async move {
                    let _ = reply.try_send(writer.bring_back(number).await);
                });
            }
            Message::Verify { digest, why, reply } => self.checks.check(digest, why, reply),
            Message::Adopt { adoption, reply } => {
                self.client.learn(&adoption.upstreams);
                if let Some(projects) = &adoption.projects {
                    self.sources.adopt(projects);
                    let configured = projects.upstreams();
                    self.client.retire(|id| configured.contains(&id));
                    self.tokens.retire(|id| configured.contains(&id));
                }
                self.gates.adopt();
                let _ = reply.try_send(());
            }
            Message::Purge { step, reply } => {
                let purge = self.purge.clone();
                monoio::spawn(async move {
                    let _ = reply.try_send(purge.step(step).await);
                });
            }
            Message::Hold {
                digest,
                media_type,
                bytes,
                reply,
            } => {
                let fetcher = self.fetcher.clone();
                monoio::spawn(async move {
                    let held = fetcher.hold(digest, &media_type, bytes).await;
                    let _ = reply.try_send(held);
                });
            }
        }
    }
}

/// Sends asks for tokens to the shard that owns the upstream, so that one token serves all.
struct TokenMail {
    post: Post,
}

impl TokenSource for TokenMail {
    fn token(&self, ask: TokenAsk) -> Pin<Box<dyn Future<Output = Result<Token, UpstreamError>>>> {
        let post = self.post.clone();
        Box::pin(async move {
            let owner = ask.upstream.0 % post.shards();
            match post.ask(owner, |reply| Message::Token { ask, reply }).await {
                Ok(answer) => answer,
                Err(_) => Err(UpstreamError::Busy),
            }
        })
    }
}

/// Stops accepting, lets requests and fills end until the deadline, makes all durable.
async fn drain(
    seat: &Seat,
    owner: &Owner,
    service: &Rc<Service>,
    patience: Duration,
    drained: &Drained,
) {
    for listener in &seat.listeners {
        socket::stop_listening(listener);
    }
    owner.fetcher.drain();
    service.watchdog.drain();
    let deadline = Instant::now() + patience;
    while (service.watchdog.open() > 0 || owner.fetcher.running() > 0) && Instant::now() < deadline
    {
        sleep(DRAIN_LOOK).await;
    }
    let (open, fills) = (service.watchdog.open(), owner.fetcher.running());
    if open > 0 || fills > 0 {
        tracing::warn!(shard = seat.index, open, fills, "drain ran out of time");
        owner.fetcher.abort();
    }
    // Others may still ask this shard, until none has a client or a fill.
    drained.idle.arrive().await;
    // The second makes durable what the first wrote: the entries of the first group.
    upkeep::commit(&owner.writer).await;
    upkeep::commit(&owner.writer).await;
    // Tags wait for bodies that another shard makes durable.
    drained.durable.arrive().await;
    upkeep::commit(&owner.writer).await;
    upkeep::commit(&owner.writer).await;
    if let Err(error) = owner.writer.seal_all(clock::now()).await {
        tracing::warn!(%error, "a segment could not be sealed; the next start will");
    }
}
