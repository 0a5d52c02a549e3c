//! An accepted connection and the listeners it comes from.
//!
//! Called by `connection` (one task per socket) and by the shard's accept loop. Sockets are
//! `O_NONBLOCK` from the start: a read waits for readability through the ring and then takes
//! what is there, so an idle connection lends no buffer to the kernel (R2) and a read may be
//! dropped at any time without losing bytes.

use std::cell::Cell;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use monoio::net::TcpStream;
use monoio::time::sleep;
use socket2::{Domain, Protocol, SockRef, Type};

use super::watchdog::{Phase, Watchdog, Watched};

/// Connections the kernel may hold for a listener before accept, per shard. Restart of a farm
/// brings thousands at once; the kernel clamps it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long a client that has ended its side and whose socket is full is left alone at first; each
/// time it still has no room, twice as long, up to 64 times.
const REFUSED_PAUSE: Duration = Duration::from_millis(5);
const REFUSED_DOUBLINGS: u32 = 6;

/// A connected, non-blocking TCP socket that its shard's watchdog looks after.
pub struct Socket {
    stream: TcpStream,
    peer: SocketAddr,
    watched: Watched,
    cut: Cell<bool>,
    /// How often it had no room since it last took something.
    refused: Cell<u32>,
}

impl Socket {
    /// Takes an accepted stream: no delay, non-blocking, watched.
    pub fn new(
        stream: TcpStream,
        peer: SocketAddr,
        watchdog: &Rc<Watchdog>,
    ) -> io::Result<Rc<Socket>> {
        let descriptor = borrow(&stream);
        let reference = SockRef::from(&descriptor);
        reference.set_tcp_nodelay(true)?;
        reference.set_nonblocking(true)?;
        Ok(Rc::new_cyclic(|socket| Socket {
            watched: watchdog.watch(socket.clone()),
            stream,
            peer,
            cut: Cell::new(false),
            refused: Cell::new(0),
        }))
    }

    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// Enters a phase; its patience starts now.
    pub fn enter(&self, phase: Phase) {
        self.watched.enter(phase);
    }

    pub fn progressed(&self) {
        self.refused.set(0);
        self.watched.progressed();
    }

    /// Ends the connection from outside its task: pending waits resolve, reads return 0.
    pub fn cut(&self) {
        self.cut.set(true);
        // Failure means that it is gone already.
        let _ = self.reference().shutdown(Shutdown::Both);
    }

    /// True once `cut` was called.
    pub fn is_cut(&self) -> bool {
        self.cut.get()
    }

    /// Makes the close abortive (RST), so that a short body cannot look like a clean end.
    pub fn abort_on_close(&self) {
        // Best effort: the Content-Length already tells the client that bytes are missing (R6).
        let _ = self.reference().set_linger(Some(Duration::ZERO));
    }

    /// Tells the peer that nothing more will be sent; it may still be sending.
    pub fn finish_sending(&self) {
        let _ = self.reference().shutdown(Shutdown::Write);
    }

    /// Waits until something can be read, or the client is gone.
    pub async fn readable(&self) -> io::Result<()> {
        self.stream.readable(false).await
    }

    /// Reads up to `buffer.len()` bytes, and waits if there are none yet; 0 is the end.
    pub async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match io::Read::read(&mut &*self.reference(), buffer) {
                Err(error) if would_block(&error) => self.readable().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                other => return other,
            }
        }
    }

    /// Sends all of `parts` in order. With `more`, the kernel holds the last packet back until
    /// more bytes follow, so that a head and its body share one.
    pub async fn send_all(&self, parts: [&[u8]; 2], more: bool) -> io::Result<()> {
        let [mut first, mut second] = parts;
        let mut flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        if more {
            flags |= libc::MSG_MORE;
        }
        while !first.is_empty() || !second.is_empty() {
            let slices = [IoSlice::new(first), IoSlice::new(second)];
            let sent = if first.is_empty() {
                self.reference()
                    .send_vectored_with_flags(&slices[1..], flags)
            } else if second.is_empty() {
                self.reference()
                    .send_vectored_with_flags(&slices[..1], flags)
            } else {
                self.reference().send_vectored_with_flags(&slices, flags)
            };
            match sent {
                Ok(count) => {
                    self.progressed();
                    let from_first = count.min(first.len());
                    first = &first[from_first..];
                    second = &second[count - from_first..];
                }
                Err(error) if would_block(&error) => self.room().await?,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Holds segments back that are not full until the guard goes (tcp(7), `TCP_CORK`). Without it
    /// every acknowledgement pushes out what just then lies at the end of the queue.
    pub fn cork(&self) -> Corked<'_> {
        // Only slower without it.
        let _ = self.reference().set_tcp_cork(true);
        Corked(self)
    }

    /// Waits until a socket that just took nothing has room.
    ///
    /// A peer that has ended its side makes every poll of the ring answer at once, room or not
    /// (`EPOLLRDHUP` is always polled for), so the second time in a row waits by the clock.
    pub async fn room(&self) -> io::Result<()> {
        let refused = self.refused.get();
        self.refused.set(refused.saturating_add(1));
        if refused > 0 {
            let doublings = (refused - 1).min(REFUSED_DOUBLINGS);
            // In a box, since each connection would hold its timer's 2 KB.
            Box::pin(sleep(REFUSED_PAUSE * (1 << doublings))).await;
        }
        self.writable().await
    }

    /// Waits through the ring until the socket takes bytes; also the fairness yield of long sends.
    /// What comes at once may be wrong: see [`room`](Socket::room).
    pub async fn writable(&self) -> io::Result<()> {
        self.stream.writable(false).await
    }

    pub(super) fn reference(&self) -> SockRef<'_> {
        SockRef::from(self)
    }
}

/// Sends what is held back when it goes.
pub struct Corked<'a>(&'a Socket);

impl Drop for Corked<'_> {
    fn drop(&mut self) {
        // The kernel sends by itself after 200 ms.
        let _ = self.0.reference().set_tcp_cork(false);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        borrow(&self.stream)
    }
}

fn borrow(stream: &TcpStream) -> BorrowedFd<'_> {
    // SAFETY: BorrowedFd requires a descriptor that stays open for its lifetime. The stream
    // owns it and is borrowed for exactly that lifetime; closing it elsewhere would break
    // this, and nothing but the stream's drop closes it.
    unsafe { BorrowedFd::borrow_raw(stream.as_raw_fd()) }
}

/// Sends what the socket takes at once of bytes that nobody waits for.
pub fn send_now(stream: &TcpStream, bytes: &[u8]) {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let _ = SockRef::from(&borrow(stream)).send_with_flags(bytes, flags);
}

pub(super) fn would_block(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Whether this process may have its sockets of an address's family use that congestion control.
pub fn may_control_by(congestion_control: &str, address: SocketAddr) -> io::Result<()> {
    let domain = Domain::for_address(address);
    let socket = socket2::Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_congestion(congestion_control.as_bytes())
}

/// Opens one listener of a `SO_REUSEPORT` group; the kernel spreads connections over the group.
///
/// With port 0 the first call chooses; the caller passes the bound address for the others.
/// Accepted connections inherit `congestion_control`; `None` is what the machine has for all.
pub fn listen(address: SocketAddr, congestion_control: Option<&str>) -> io::Result<TcpListener> {
    let socket = socket2::Socket::new(
        Domain::for_address(address),
        Type::STREAM,
        Some(Protocol::TCP),
    )?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&address.into())?;
    if let Some(name) = congestion_control {
        socket.set_tcp_congestion(name.as_bytes())?;
    }
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Ends a listener: who waits for connections is woken, and accept fails with EINVAL; new
/// connections are refused.
pub fn stop_listening(listener: &TcpListener) {
    let _ = SockRef::from(listener).shutdown(Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_connections_have_the_congestion_control_of_their_listener() {
        // Every kernel has it and permits it to everybody.
        let listener = listen(([127, 0, 0, 1], 0).into(), Some("reno")).expect("a listener");
        let address = listener.local_addr().expect("an address");
        let _client = std::net::TcpStream::connect(address).expect("a connection");
        let (accepted, _) = listener.accept().expect("a connection");
        let control = SockRef::from(&accepted).tcp_congestion().expect("a name");
        assert!(control.starts_with(b"reno"), "{control:?}");
    }
}
