//! The admin listener: health and metrics, never on the data port.
//!
//! A thread of its own with blocking sockets: it must answer while shards are busy, and costs
//! them nothing. One connection at a time, each with a deadline; a slow reader delays the next
//! scrape and nothing else.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use entrepot_storage::Store;
use entrepot_storage::disk::uring::UringDisk;

use crate::gate::Board;
use crate::generation::Current;
use crate::http::head::{Limits, Method, Parsed, parse_request};
use crate::http::response::ResponseHead;
use crate::logging::DroppedLines;
use crate::metrics::{self, Metrics, Operations, StoreFigures};

/// How long a scraper may take to send its head or to take the answer.
const PATIENCE: Duration = Duration::from_secs(5);
/// A scraper's head is short.
const HEAD_LEN_MAX: usize = 8 << 10;

pub struct Admin {
    pub current: Arc<Current>,
    pub store: Arc<Store<UringDisk>>,
    pub metrics: Vec<Arc<Metrics>>,
    pub board: Arc<Board>,
    pub operations: Arc<Operations>,
    /// False while starting and while draining.
    pub ready: Arc<AtomicBool>,
    pub log: DroppedLines,
}

/// Binds the listener and answers on a thread until the process ends.
pub fn start(address: SocketAddr, admin: Admin) -> io::Result<SocketAddr> {
    let listener = TcpListener::bind(address)?;
    let address = listener.local_addr()?;
    std::thread::Builder::new()
        .name("admin".to_owned())
        .spawn(move || {
            for stream in listener.incoming() {
                match stream.and_then(|stream| admin.answer(stream)) {
                    Ok(()) => {}
                    Err(error) => tracing::debug!(%error, "admin connection ended"),
                }
            }
        })?;
    Ok(address)
}

impl Admin {
    fn answer(&self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        let limits = Limits {
            head_len_max: HEAD_LEN_MAX,
            ..Limits::default()
        };
        let deadline = Instant::now() + PATIENCE;
        let mut received = Vec::new();
        let mut buffer = [0; 1024];
        let (status, media_type, body, is_head) = loop {
            match parse_request(&received, &limits) {
                Ok(Parsed::Complete(head)) => {
                    let is_head = head.method == Method::Head;
                    let (status, media_type, body) = match head.method {
                        Method::Get | Method::Head => self.page(head.target),
                        _ => (405, "text/plain", "only GET\n".to_owned()),
                    };
                    break (status, media_type, body, is_head);
                }
                Ok(Parsed::Partial) if Instant::now() > deadline => return Ok(()),
                Ok(Parsed::Partial) => match stream.read(&mut buffer)? {
                    0 => return Ok(()),
                    count => received.extend_from_slice(&buffer[..count]),
                },
                Err(error) => break (error.status(), "text/plain", format!("{error}\n"), false),
            }
        };
        let mut out = Vec::with_capacity(body.len() + 256);
        ResponseHead::new(&mut out, status)
            .field("Content-Type", media_type)
            .field_u64("Content-Length", body.len() as u64)
            .field("Connection", "close")
            .finish();
        if !is_head {
            out.extend_from_slice(body.as_bytes());
        }
        stream.write_all(&out)
    }

    fn page(&self, target: &str) -> (u16, &'static str, String) {
        match target {
            "/livez" => (200, "text/plain", "ok\n".to_owned()),
            "/readyz" if self.ready.load(Ordering::Acquire) => {
                (200, "text/plain", "ready\n".to_owned())
            }
            "/readyz" => (503, "text/plain", "starting or stopping\n".to_owned()),
            "/metrics" => {
                let text = metrics::render(
                    &self.metrics,
                    &StoreFigures {
                        usage: self.store.usage(),
                        volumes: self.store.volumes(),
                        compaction: self.store.exchange().compaction(),
                    },
                    &self.board,
                    &self.current.get().config,
                    &self.operations,
                    self.log.get() as u64,
                );
                (200, "text/plain; version=0.0.4", text)
            }
            _ => (
                404,
                "text/plain",
                "there are /livez, /readyz and /metrics\n".to_owned(),
            ),
        }
    }
}
