//! A listener that passes bytes on to a real registry and notes every request it saw.
//!
//! The note is made before the request is passed on: once an answer is here, its request counts.
//! Only GET and HEAD pass, so a request ends with its head.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// One read of either side.
const PIECE_LEN: usize = 64 * 1024;

/// The first byte of a TLS record that begins a handshake (RFC 8446 §5.1).
const TLS_HANDSHAKE: u8 = 22;

pub struct Tap {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
}

impl Tap {
    pub fn before(upstream: SocketAddr) -> Tap {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let seen = Arc::new(Mutex::new(Vec::new()));
        let notes = seen.clone();
        // The thread ends with the test process: a listener costs nothing.
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let notes = notes.clone();
                std::thread::spawn(move || pass(client, upstream, &notes));
            }
        });
        Tap { addr, seen }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// `METHOD target` of every request so far.
    pub fn seen(&self) -> Vec<String> {
        self.seen.lock().expect("no thread panics").clone()
    }

    pub fn clear(&self) {
        self.seen.lock().expect("no thread panics").clear();
    }

    pub fn count(&self, method: &str, part: &str) -> usize {
        let start = format!("{method} ");
        let seen = self.seen();
        let matching = |line: &&String| line.starts_with(&start) && line.contains(part);
        seen.iter().filter(matching).count()
    }

    pub fn blob_gets(&self) -> usize {
        self.count("GET", "/blobs/")
    }
}

fn pass(client: TcpStream, upstream: SocketAddr, notes: &Mutex<Vec<String>>) {
    // A stopped registry refuses; closing at once is what a client of it would see.
    let Ok(server) = TcpStream::connect(upstream) else {
        return;
    };
    let (Ok(mut answers_to), Ok(mut answers_from)) = (client.try_clone(), server.try_clone())
    else {
        return;
    };
    let back = std::thread::spawn(move || {
        let _ = std::io::copy(&mut answers_from, &mut answers_to);
        let _ = answers_to.shutdown(Shutdown::Both);
    });
    let _ = pass_requests(client, server, notes);
    let _ = back.join();
}

fn pass_requests(
    mut client: TcpStream,
    mut server: TcpStream,
    notes: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut unread = Vec::new();
    let mut piece = vec![0; PIECE_LEN];
    loop {
        let len = client.read(&mut piece)?;
        if len == 0 {
            return server.shutdown(Shutdown::Write);
        }
        unread.extend_from_slice(&piece[..len]);
        if unread[0] == TLS_HANDSHAKE {
            // Clients told to accept plain HTTP try TLS first and wait ten seconds for an answer.
            return client.shutdown(Shutdown::Both);
        }
        while let Some(end) = unread.windows(4).position(|window| window == b"\r\n\r\n") {
            let head: Vec<u8> = unread.drain(..end + 4).collect();
            let text = String::from_utf8_lossy(&head);
            let mut words = text.split(' ');
            let (method, target) = (words.next(), words.next());
            let note = format!("{} {}", method.unwrap_or("?"), target.unwrap_or("?"));
            notes.lock().expect("no thread panics").push(note);
            server.write_all(&head)?;
        }
    }
}
