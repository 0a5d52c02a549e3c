//! A connection to an origin: names, TCP, TLS, and the one way to read and write it.
//!
//! Called by `exchange`. Addresses are tried in the order of the resolver, the families in turn,
//! the next one when one has not answered for a moment: see `race`. Where not all addresses are
//! allowed, one is checked here, as it is dialled, so that a name cannot change its mind between
//! check and use; behind a proxy only the looks of the name can be checked.
//! A future dropped inside a read may have lost bytes: such a connection is only ever closed.

use std::cell::Cell;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use monoio::buf::IoBufMut;
use monoio::io::{AsyncReadRent, AsyncWriteRentExt};
use monoio::net::TcpStream;
use monoio::time::timeout;
use rustls::ClientConfig;

use crate::config::{Proxy, Scheme, Url};

use super::Counters;
use super::error::{TlsFailure, UpstreamError};
use super::origin::Reach;
use super::race::{in_turn, race};
use super::resolve::{NamesError, Resolver};
use super::tls::TlsStream;
use super::tunnel::{self, ProxyRefusal};

/// All addresses together may take this many times the connect timeout of one.
const CONNECT_ROUNDS: u32 = 2;
/// RFC 8305 §8: longer than a handshake across a continent, shorter than anybody's patience.
const STAGGER: Duration = Duration::from_millis(250);
/// Addresses of one name that are tried; more of them are not more likely to answer.
const ADDRESSES_MAX: usize = 8;
/// Connections of one shard, idle ones included: a quarter of common descriptor limits.
pub(super) const CONNECTIONS_MAX: usize = 1024;

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub(super) enum StreamError {
    #[error("{0}")]
    Io(io::ErrorKind),
    #[error("{0}")]
    Tls(#[from] TlsFailure),
}

impl From<io::Error> for StreamError {
    fn from(error: io::Error) -> StreamError {
        StreamError::Io(error.kind())
    }
}

/// What one receive brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Got {
    /// Perhaps none, when a TLS record is incomplete or was not for us.
    Bytes,
    /// The peer is done. Without TLS an end cannot be told from a cut, so it counts as clean.
    End { clean: bool },
}

enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream>),
}

pub(super) struct Connection {
    stream: Stream,
    /// Received after the head, not yet taken by the body.
    pub held: Vec<u8>,
    /// The least reach that allows the address it leads to.
    pub needs: Reach,
    /// An answer came over this connection before: its peer may have closed it since.
    pub used: bool,
    _open: OpenGuard,
}

impl Connection {
    /// Sends all of `bytes`.
    pub async fn write(&mut self, bytes: Vec<u8>) -> Result<(), StreamError> {
        match &mut self.stream {
            Stream::Plain(tcp) => send(tcp, bytes).await,
            Stream::Tls(tls) => tls.write(&bytes).await,
        }
    }

    /// Receives once, up to about `room` bytes, and appends them to `out`.
    pub async fn read(&mut self, out: &mut Vec<u8>, room: usize) -> Result<Got, StreamError> {
        match &mut self.stream {
            Stream::Plain(tcp) => match receive(tcp, out, room).await? {
                0 => Ok(Got::End { clean: true }),
                _ => Ok(Got::Bytes),
            },
            Stream::Tls(tls) => tls.read(out, room).await,
        }
    }

    /// Whether bytes arrive within `wait`. Unlike a read this may be given up: it takes nothing.
    pub async fn readable_within(&self, wait: Duration) -> bool {
        let tcp = match &self.stream {
            Stream::Plain(tcp) => tcp,
            Stream::Tls(tls) => tls.tcp(),
        };
        matches!(timeout(wait, tcp.readable(true)).await, Ok(Ok(())))
    }

    /// Gives up buffers while idle.
    pub fn rest(&mut self) {
        self.held = Vec::new();
        if let Stream::Tls(tls) = &mut self.stream {
            tls.rest();
        }
    }
}

pub(super) async fn send(tcp: &mut TcpStream, bytes: Vec<u8>) -> Result<(), StreamError> {
    let (sent, _) = tcp.write_all(bytes).await;
    sent?;
    Ok(())
}

/// One receive of at most `room` bytes at the end of `out`; 0 is the end of the stream.
pub(super) async fn receive(
    tcp: &mut TcpStream,
    out: &mut Vec<u8>,
    room: usize,
) -> Result<usize, StreamError> {
    let len = out.len();
    out.reserve(room);
    let slice = std::mem::take(out).slice_mut(len..len + room);
    let (received, slice) = tcp.read(slice).await;
    *out = slice.into_inner();
    // monoio sets the length only when something was received.
    let received = received?;
    out.truncate(len + received);
    Ok(received)
}

/// How many connections a client holds open, so that their number can be bounded (R4).
#[derive(Default)]
pub(super) struct Open(Rc<Cell<usize>>);

impl Open {
    pub fn count(&self) -> usize {
        self.0.get()
    }

    fn guard(&self) -> Option<OpenGuard> {
        let open = self.0.get();
        (open < CONNECTIONS_MAX).then(|| {
            self.0.set(open + 1);
            OpenGuard(Open(Rc::clone(&self.0)))
        })
    }
}

/// One open connection, counted until it is dropped.
struct OpenGuard(Open);

impl Drop for OpenGuard {
    fn drop(&mut self) {
        self.0.0.set(self.0.0.get() - 1);
    }
}

/// All that a new connection takes.
pub(super) struct Dial<'a> {
    pub origin: &'a Url,
    /// The way there, if it is not direct.
    pub proxy: Option<&'a Proxy>,
    pub tls: &'a Arc<ClientConfig>,
    /// For one address: of TCP, and of what follows it.
    pub timeout: Duration,
    /// Which addresses are allowed.
    pub reach: Reach,
    pub resolver: &'a Resolver,
    pub open: &'a Open,
    pub counters: &'a Counters,
}

impl Dial<'_> {
    pub async fn connect(&self) -> Result<Connection, UpstreamError> {
        let start = Instant::now();
        let budget = self.timeout.saturating_mul(CONNECT_ROUNDS);
        let mut addresses = match timeout(self.timeout, self.addresses()).await {
            Ok(addresses) => addresses?,
            Err(_) => return Err(self.timed_out()),
        };
        let Some(guard) = self.open.guard() else {
            return Err(UpstreamError::Busy);
        };
        let mut failure = self.timed_out();
        while !addresses.is_empty() {
            let left = || budget.saturating_sub(start.elapsed());
            let attempts = addresses.iter().map(|address| self.dial(*address));
            let (address, tcp) = match timeout(left(), race(attempts, STAGGER)).await {
                Ok(Ok(won)) => won,
                Ok(Err(lost)) => return Err(lost.unwrap_or(failure)),
                Err(_) => return Err(failure),
            };
            match timeout(left().min(self.timeout), self.secure(tcp)).await {
                Ok(Ok(stream)) => {
                    self.counters.connections.add(1);
                    return Ok(Connection {
                        stream,
                        held: Vec::new(),
                        needs: self.needs(address),
                        used: false,
                        _open: guard,
                    });
                }
                Ok(Err(error)) => failure = error,
                Err(_) => failure = self.timed_out(),
            }
            addresses.retain(|other| *other != address);
        }
        Err(failure)
    }

    /// What is dialled: the proxy, if there is one.
    fn peer(&self) -> &Url {
        self.proxy.map_or(self.origin, |proxy| &proxy.url)
    }

    fn needs(&self, address: IpAddr) -> Reach {
        match self.proxy {
            None => Reach::to(address),
            Some(_) => Reach::to_host(&self.origin.host),
        }
    }

    async fn addresses(&self) -> Result<Vec<IpAddr>, UpstreamError> {
        let host = &self.peer().host;
        let failed = |reason| match (reason, self.proxy) {
            (NamesError::Busy, _) => UpstreamError::Busy,
            (reason, Some(proxy)) => {
                UpstreamError::proxy(proxy, self.origin, ProxyRefusal::Names(reason))
            }
            (reason, None) => UpstreamError::Names {
                host: host.clone(),
                origin: self.origin.to_string(),
                reason,
            },
        };
        let found = self.resolver.lookup(host).await.map_err(failed)?;
        let allowed = found
            .iter()
            .copied()
            .filter(|address| self.needs(*address) <= self.reach)
            .collect();
        let mut allowed = in_turn(allowed);
        allowed.truncate(ADDRESSES_MAX);
        match allowed.is_empty() {
            true => Err(failed(NamesError::Private)),
            false => Ok(allowed),
        }
    }

    async fn dial(&self, address: IpAddr) -> Result<(IpAddr, TcpStream), UpstreamError> {
        let to = SocketAddr::new(address, self.peer().port);
        match timeout(self.timeout, TcpStream::connect_addr(to)).await {
            Ok(Ok(tcp)) => Ok((address, tcp)),
            Ok(Err(error)) => Err(self.lost(error.kind())),
            Err(_) => Err(self.timed_out()),
        }
    }

    /// All that follows TCP: the proxy's consent, and TLS with the origin.
    async fn secure(&self, mut tcp: TcpStream) -> Result<Stream, UpstreamError> {
        tcp.set_nodelay(true)
            .map_err(|error| self.lost(error.kind()))?;
        if self.origin.scheme == Scheme::Http {
            return Ok(Stream::Plain(tcp));
        }
        if let Some(proxy) = self.proxy {
            let opened = tunnel::open(&mut tcp, proxy, self.origin).await;
            opened.map_err(|reason| UpstreamError::proxy(proxy, self.origin, reason))?;
        }
        match TlsStream::connect(tcp, self.tls.clone(), &self.origin.host).await {
            Ok(stream) => Ok(Stream::Tls(Box::new(stream))),
            Err(StreamError::Tls(reason)) => Err(UpstreamError::Tls {
                origin: self.origin.to_string(),
                reason,
            }),
            Err(StreamError::Io(kind)) => Err(self.lost(kind)),
        }
    }

    fn lost(&self, kind: io::ErrorKind) -> UpstreamError {
        match self.proxy {
            Some(proxy) => UpstreamError::proxy(proxy, self.origin, ProxyRefusal::Lost(kind)),
            None => UpstreamError::Connect {
                origin: self.origin.to_string(),
                kind,
            },
        }
    }

    fn timed_out(&self) -> UpstreamError {
        match self.proxy {
            Some(proxy) => UpstreamError::proxy(proxy, self.origin, ProxyRefusal::TimedOut),
            None => UpstreamError::ConnectTimeout {
                origin: self.origin.to_string(),
            },
        }
    }
}
