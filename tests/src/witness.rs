//! Listeners that keep every byte they are sent: what reached a place, and what did not.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

/// All that was received, over all connections.
pub type Log = Mutex<Vec<u8>>;

/// A listener that keeps every byte it is sent, and answers each request head alike or, as a
/// proxy, passes it on.
pub struct Witness {
    addr: SocketAddr,
    received: Arc<Log>,
}

impl Witness {
    /// `serve` has a connection for itself.
    pub fn start(serve: impl Fn(TcpStream, &Log) + Send + Sync + 'static) -> Witness {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound listener");
        let received = Arc::new(Mutex::new(Vec::new()));
        let (log, serve) = (received.clone(), Arc::new(serve));
        // The threads end with the test process.
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let (log, serve) = (log.clone(), serve.clone());
                thread::spawn(move || serve(client, &log));
            }
        });
        Witness { addr, received }
    }

    /// Answers each head as it is told: status, further fields, body.
    pub fn answering(
        answer: impl Fn(&str) -> (u16, String, String) + Send + Sync + 'static,
    ) -> Witness {
        Witness::start(move |mut client, log| {
            while let Some(head) = read_head(&mut client, log) {
                let (status, fields, body) = answer(&head);
                let len = body.len();
                let answer =
                    format!("HTTP/1.1 {status} X\r\n{fields}Content-Length: {len}\r\n\r\n{body}");
                let _ = client.write_all(answer.as_bytes());
            }
        })
    }

    /// Answers everything with a 404.
    pub fn empty_registry() -> Witness {
        Witness::answering(|_| (404, String::new(), String::new()))
    }

    /// A proxy that asks for credentials and knows names that no resolver does.
    pub fn proxy(known: HashMap<String, SocketAddr>) -> Witness {
        Witness::start(move |mut client, log| {
            while let Some(head) = read_head(&mut client, log) {
                let line = head.lines().next().unwrap_or_default();
                let (method, target) = line.split_once(' ').unwrap_or_default();
                let authority = target.trim_start_matches("http://");
                let authority = authority.split(['/', ' ']).next().unwrap_or_default();
                if !head.contains("Proxy-Authorization: Basic ") {
                    let refusal = "HTTP/1.1 407 Who?\r\nContent-Length: 0\r\n\r\n";
                    let _ = client.write_all(refusal.as_bytes());
                    continue;
                }
                let server = known.get(authority).map(TcpStream::connect);
                let Some(Ok(mut server)) = server else {
                    let _ = client.write_all(b"HTTP/1.1 502 No\r\nContent-Length: 0\r\n\r\n");
                    continue;
                };
                if method == "CONNECT" {
                    let _ = client.write_all(b"HTTP/1.1 200 Through\r\n\r\n");
                } else {
                    // To the origin it is a request like any other, and the last one.
                    let kept: Vec<&str> = head
                        .lines()
                        .skip(1)
                        .filter(|line| !line.is_empty() && !line.starts_with("Proxy-"))
                        .collect();
                    let path = &target["http://".len() + authority.len()..];
                    let fields = kept.join("\r\n");
                    let request =
                        format!("{method} {path}\r\n{fields}\r\nConnection: close\r\n\r\n");
                    let _ = server.write_all(request.as_bytes());
                }
                join(client, server);
                return;
            }
        })
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.received.lock().expect("no thread panics")).into_owned()
    }
}

/// The next request head, noted as it comes; what a Content-Length announces is noted, too.
pub fn read_head(client: &mut TcpStream, log: &Log) -> Option<String> {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") {
        if client.read(&mut byte).ok()? == 0 {
            return None;
        }
        log.lock().expect("no thread panics").push(byte[0]);
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).ok()?;
    let length = head.lines().find_map(|line| {
        let (name, value) = line.split_once(": ")?;
        let named = name.eq_ignore_ascii_case("content-length");
        named.then(|| value.parse::<usize>().ok())?
    });
    let mut body = vec![0; length.unwrap_or(0)];
    client.read_exact(&mut body).ok()?;
    log.lock().expect("no thread panics").extend(body);
    Some(head)
}

/// Passes bytes both ways until one side is done.
fn join(client: TcpStream, server: TcpStream) {
    let ways = (client.try_clone(), server.try_clone());
    let (Ok(mut from_client), Ok(mut to_server)) = ways else {
        return;
    };
    let (mut from_server, mut to_client) = (server, client);
    let up = thread::spawn(move || {
        let _ = std::io::copy(&mut from_client, &mut to_server);
    });
    let _ = std::io::copy(&mut from_server, &mut to_client);
    let _ = to_client.shutdown(Shutdown::Both);
    let _ = up.join();
}
