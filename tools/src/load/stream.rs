//! Bytes out and in: a TCP socket of the ring, with or without TLS over it.

use std::io::{self, Read, Write};
use std::net::SocketAddr;
use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;

use rustls::pki_types::ServerName;
use rustls::{ClientConfig, ClientConnection};
use socket2::{Domain, Protocol, Socket, Type};

use super::executor::Executor;
use super::meter::ErrorClass;
use super::ring::Finished;

/// Ciphertext read at a time: four of the longest TLS records.
const WIRE_LEN: usize = 64 * 1024;

pub struct Stream {
    executor: Rc<Executor>,
    socket: Rc<Socket>,
    tls: Option<Box<Tls>>,
}

struct Tls {
    connection: ClientConnection,
    wire: Vec<u8>,
    /// Of `wire`, not yet given to the connection.
    unread: Range<usize>,
}

impl Stream {
    /// Tries the addresses in turn.
    pub async fn connect(
        executor: &Rc<Executor>,
        addrs: &[SocketAddr],
        tls: Option<(Arc<ClientConfig>, &str)>,
    ) -> Result<Stream, ErrorClass> {
        let mut failure = ErrorClass::Connect;
        for addr in addrs {
            let socket = open(*addr).map_err(|_| ErrorClass::Connect)?;
            match executor.connect(socket.clone(), *addr).await {
                Ok(()) => {
                    let mut stream = Stream {
                        executor: executor.clone(),
                        socket,
                        tls: None,
                    };
                    if let Some((config, host)) = tls {
                        stream.shake_hands(config, host).await?;
                    }
                    return Ok(stream);
                }
                Err(error) if error.kind() == io::ErrorKind::TimedOut => {
                    failure = ErrorClass::Timeout;
                }
                Err(_) => failure = ErrorClass::Connect,
            }
        }
        Err(failure)
    }

    async fn shake_hands(
        &mut self,
        config: Arc<ClientConfig>,
        host: &str,
    ) -> Result<(), ErrorClass> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| ErrorClass::Tls)?;
        let connection = ClientConnection::new(config, name).map_err(|_| ErrorClass::Tls)?;
        self.tls = Some(Box::new(Tls {
            connection,
            wire: vec![0; WIRE_LEN],
            unread: 0..0,
        }));
        while self
            .tls
            .as_ref()
            .is_some_and(|tls| tls.connection.is_handshaking())
        {
            self.flush().map_err(|_| ErrorClass::Tls)?;
            match self.read_wire().await {
                Ok(0) => return Err(ErrorClass::Tls),
                Ok(_) => {}
                Err(error) => return Err(class_of(&error, ErrorClass::Tls)),
            }
            let tls = self.tls.as_mut().expect("set above");
            let taken = tls.take();
            // An alert tells the server why.
            let _ = self.flush();
            taken.map_err(|_| ErrorClass::Tls)?;
        }
        self.flush().map_err(|_| ErrorClass::Tls)
    }

    /// Whether bytes can be discarded inside the kernel.
    pub fn is_plain(&self) -> bool {
        self.tls.is_none()
    }

    pub fn send(&mut self, request: &Rc<[u8]>) -> io::Result<()> {
        match &mut self.tls {
            None => self.executor.send(self.socket.clone(), request.clone()),
            Some(tls) => {
                tls.connection.writer().write_all(request)?;
                self.flush()?;
            }
        }
        Ok(())
    }

    /// Reads behind the first `from` bytes of `buffer`, which comes back. Nothing: the end.
    pub async fn read(&mut self, mut buffer: Vec<u8>, from: usize) -> Finished {
        if self.tls.is_none() {
            let socket = self.socket.clone();
            return self.executor.receive(socket, buffer, from).await;
        }
        let result = self.read_plaintext(&mut buffer[from..]).await;
        Finished { result, buffer }
    }

    pub async fn discard(&self, len: u64) -> io::Result<usize> {
        self.executor.discard(self.socket.clone(), len).await
    }

    async fn read_plaintext(&mut self, into: &mut [u8]) -> io::Result<usize> {
        loop {
            let tls = self.tls.as_mut().expect("only called with TLS");
            match tls.connection.reader().read(into) {
                Ok(len) => return Ok(len),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                // The connection ended without saying so: the framing above knows what that means.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) => return Err(error),
            }
            if tls.unread.is_empty() && self.read_wire().await? == 0 {
                return Ok(0);
            }
            self.tls.as_mut().expect("as above").take()?;
            // An answer to a key update, if anything.
            self.flush()?;
        }
    }

    async fn read_wire(&mut self) -> io::Result<usize> {
        let tls = self.tls.as_mut().expect("only called with TLS");
        let wire = std::mem::take(&mut tls.wire);
        let finished = self.executor.receive(self.socket.clone(), wire, 0).await;
        tls.wire = match finished.buffer.is_empty() {
            true => vec![0; WIRE_LEN],
            false => finished.buffer,
        };
        let len = finished.result?;
        tls.unread = 0..len;
        Ok(len)
    }

    fn flush(&mut self) -> io::Result<()> {
        let tls = self.tls.as_mut().expect("only called with TLS");
        let mut out = Vec::new();
        while tls.connection.wants_write() {
            tls.connection.write_tls(&mut out)?;
        }
        if !out.is_empty() {
            self.executor.send(self.socket.clone(), out.into());
        }
        Ok(())
    }
}

impl Tls {
    /// Gives the connection what it takes now of the bytes that came.
    fn take(&mut self) -> io::Result<()> {
        let mut unread = &self.wire[self.unread.clone()];
        while !unread.is_empty() {
            let taken = self.connection.read_tls(&mut unread)?;
            self.unread.start += taken;
            let state = self.connection.process_new_packets();
            let state = state.map_err(io::Error::other)?;
            // Plaintext waits: more would find its buffer full.
            if taken == 0 || state.plaintext_bytes_to_read() > 0 {
                break;
            }
        }
        Ok(())
    }
}

/// What a failure means: it waited too long, or the given class.
pub fn class_of(error: &io::Error, otherwise: ErrorClass) -> ErrorClass {
    match error.kind() {
        io::ErrorKind::TimedOut => ErrorClass::Timeout,
        _ => otherwise,
    }
}

fn open(addr: SocketAddr) -> io::Result<Rc<Socket>> {
    let domain = Domain::for_address(addr);
    let socket = Socket::new(domain, Type::STREAM, Some(Protocol::TCP))?;
    socket.set_tcp_nodelay(true)?;
    Ok(Rc::new(socket))
}
