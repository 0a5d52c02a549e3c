//! A scripted origin: plain threads and blocking sockets, sharing nothing with the client.

use std::io::{ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// An origin that listens; its threads end with the test process.
pub struct Origin {
    pub port: u16,
    heads: Arc<Mutex<Vec<String>>>,
}

impl Origin {
    /// Runs `script` on a thread of its own for each connection.
    pub fn start(script: impl Fn(Peer) + Send + Sync + 'static) -> Origin {
        Origin::start_with(|stream| Box::new(stream), script)
    }

    /// The same below a layer, such as TLS.
    pub fn start_with(
        layer: impl Fn(TcpStream) -> Box<dyn Wire> + Send + Sync + 'static,
        script: impl Fn(Peer) + Send + Sync + 'static,
    ) -> Origin {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("bound").port();
        let heads = Arc::new(Mutex::new(Vec::new()));
        let log = heads.clone();
        let script = Arc::new(script);
        let layer = Arc::new(layer);
        thread::spawn(move || {
            for (nth, stream) in listener.incoming().enumerate() {
                let stream = stream.expect("a connection");
                stream.set_nodelay(true).expect("nodelay");
                let (log, script, layer) = (log.clone(), script.clone(), layer.clone());
                thread::spawn(move || {
                    script(Peer {
                        wire: layer(stream),
                        nth,
                        log,
                    })
                });
            }
        });
        Origin { port, heads }
    }

    /// Answers every request of every connection with what `answer` says of its head.
    pub fn answering(answer: impl Fn(&str) -> String + Send + Sync + 'static) -> Origin {
        Origin::start(move |mut peer| {
            while let Some(head) = peer.request() {
                peer.send(answer(&head));
            }
        })
    }

    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// All request heads so far, in the order of their arrival.
    pub fn heads(&self) -> Vec<String> {
        self.heads.lock().expect("no panic").clone()
    }
}

pub trait Wire: Read + Write + Send {}

impl<T: Read + Write + Send> Wire for T {}

/// One connection of a client.
pub struct Peer {
    wire: Box<dyn Wire>,
    /// Connections of the origin before this one.
    pub nth: usize,
    log: Arc<Mutex<Vec<String>>>,
}

impl Peer {
    /// The next request head; `None` once the client has closed.
    pub fn request(&mut self) -> Option<String> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            match self.wire.read(&mut byte) {
                Ok(0) => return None,
                Ok(_) => head.push(byte[0]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        let head = String::from_utf8(head).expect("an ASCII head");
        self.log.lock().expect("no panic").push(head.clone());
        Some(head)
    }

    /// The body of a request.
    pub fn receive(&mut self, len: usize) -> String {
        let mut body = vec![0; len];
        self.wire.read_exact(&mut body).expect("the body");
        String::from_utf8(body).expect("an ASCII body")
    }

    /// Requests of all connections so far.
    pub fn seen(&self) -> usize {
        self.log.lock().expect("no panic").len()
    }

    /// Sends; a client that has closed is no failure of the origin.
    pub fn send(&mut self, bytes: impl AsRef<[u8]>) {
        let _ = self
            .wire
            .write_all(bytes.as_ref())
            .and_then(|()| self.wire.flush());
    }

    /// Waits until the client has closed.
    pub fn until_closed(&mut self) {
        let mut rest = [0; 4096];
        while !matches!(self.wire.read(&mut rest), Ok(0) | Err(_)) {}
    }
}

/// A whole answer with a body of known length; `fields` are lines without their ends.
pub fn answer(status: u16, fields: &[&str], body: &str) -> String {
    let mut head = format!(
        "HTTP/1.1 {status} Words\r\nContent-Length: {}\r\n",
        body.len()
    );
    for field in fields {
        head.push_str(field);
        head.push_str("\r\n");
    }
    format!("{head}\r\n{body}")
}
