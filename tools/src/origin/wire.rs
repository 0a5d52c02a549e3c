//! One accepted connection, plain or TLS, and the ways to end it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustls::{ServerConfig, ServerConnection, StreamOwned};
use socket2::SockRef;

/// How long an ended connection is drained, so that its last bytes are not lost to a RST.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
const DRAIN_LEN_MAX: usize = 1 << 20;

pub enum Wire {
    Plain(Socket),
    Tls(Box<StreamOwned<ServerConnection, Socket>>),
}

/// The connection's socket; whoever holds the `Arc` keeps it open.
#[derive(Clone)]
pub struct Socket(pub Arc<TcpStream>);

impl Wire {
    pub fn new(socket: Socket, tls: Option<Arc<ServerConfig>>) -> io::Result<Wire> {
        socket.0.set_nodelay(true)?;
        match tls {
            None => Ok(Wire::Plain(socket)),
            Some(config) => {
                let tls = ServerConnection::new(config).map_err(io::Error::other)?;
                Ok(Wire::Tls(Box::new(StreamOwned::new(tls, socket))))
            }
        }
    }

    /// Whether the peer proved that it has a certificate; known with its first request.
    pub fn shows_certificate(&self) -> bool {
        match self {
            Wire::Plain(_) => false,
            Wire::Tls(stream) => stream.conn.peer_certificates().is_some(),
        }
    }

    pub fn socket(&self) -> &Socket {
        match self {
            Wire::Plain(socket) => socket,
            Wire::Tls(stream) => &stream.sock,
        }
    }

    /// RST instead of FIN; what the peer has not yet read may be lost with it.
    pub fn reset(self) {
        // The connection is over either way.
        let _ = SockRef::from(&*self.socket().0).set_linger(Some(Duration::ZERO));
    }

    /// FIN without TLS's goodbye, as a process that dies.
    pub fn truncate(self) {
        self.socket().finish();
    }

    /// A clean end: close_notify where there is TLS, then FIN.
    pub fn close(mut self) {
        if let Wire::Tls(stream) = &mut self {
            stream.conn.send_close_notify();
            // The peer may have left already.
            let _ = stream.flush();
        }
        self.socket().finish();
    }
}

impl Socket {
    /// Whether the peer has closed or reset; never waits.
    pub fn peer_left(&self) -> bool {
        if self.0.set_nonblocking(true).is_err() {
            return true;
        }
        let peeked = self.0.peek(&mut [0]);
        if self.0.set_nonblocking(false).is_err() {
            return true;
        }
        match peeked {
            Ok(len) => len == 0,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Sends FIN and reads what the peer still sends: closing with unread bytes would be a RST.
    fn finish(&self) {
        let mut socket = &*self.0;
        if socket.shutdown(Shutdown::Write).is_err()
            || socket.set_read_timeout(Some(DRAIN_TIMEOUT)).is_err()
        {
            return;
        }
        let mut sink = [0; 4096];
        let mut drained = 0;
        while drained < DRAIN_LEN_MAX {
            match socket.read(&mut sink) {
                Ok(len) if len > 0 => drained += len,
                _ => return,
            }
        }
    }
}

impl Read for Socket {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(out)
    }
}

impl Write for Socket {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        (&*self.0).write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Wire {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.read(out),
            Wire::Tls(stream) => stream.read(out),
        }
    }
}

impl Write for Wire {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Wire::Plain(socket) => socket.write(bytes),
            Wire::Tls(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Wire::Plain(socket) => socket.flush(),
            Wire::Tls(stream) => stream.flush(),
        }
    }
}
