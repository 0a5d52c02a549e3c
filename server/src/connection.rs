//! The life of one connection: read a head, answer it, again.
//!
//! One task per connection on the shard that accepted it. It owns the bytes received and not yet
//! parsed, so pipelined requests wait here. Framing that is ambiguous ends the connection (R7);
//! so does a request body, for which a cache has no use.

use std::mem;
use std::rc::Rc;

use crate::http::head::{Framing, HeadError, Limits, Parsed, parse_request};
use crate::metrics::{Counter, Gauge};
use crate::net::socket::Socket;
use crate::net::watchdog::Phase;
use crate::oci::error::Code;
use crate::registry;
use crate::respond::{Exchange, Gone};
use crate::service::Service;

/// First size of the receive buffer: a request of any known client fits.
const BUFFER_LEN: usize = 4 << 10;
/// Bytes of an unwanted request body that are read and dropped, so that the client gets to read
/// our answer before the close; more is cut off.
const DISCARD_LEN_MAX: usize = 64 << 10;

/// Serves a connection until either side ends it.
pub async fn serve(service: Rc<Service>, socket: Rc<Socket>) {
    service.metrics.count(Counter::Connections);
    let gauge = service.metrics.hold(Gauge::Connections);
    let limits = Limits {
        head_len_max: service.head_len_max,
        ..Limits::default()
    };
    let buffers = &service.buffers;
    let (mut received, mut out) = (Vec::new(), Vec::new());
    loop {
        if received.is_empty() {
            // Who asks for nothing holds no buffers.
            buffers.give(mem::take(&mut received));
            buffers.give(mem::take(&mut out));
            socket.enter(Phase::Idle);
            if socket.readable().await.is_err() || socket.is_cut() {
                break;
            }
            (received, out) = (buffers.take(), buffers.take());
        }
        socket.enter(Phase::Head);
        match next_request(&service, &socket, &limits, &mut received, &mut out).await {
            Ok(consumed) => {
                received.drain(..consumed);
            }
            Err(End::Closed) => break,
            Err(End::Refused) => {
                discard(&socket).await;
                break;
            }
        }
        if service.watchdog.draining() {
            break;
        }
    }
    buffers.give(received);
    buffers.give(out);
    drop(gauge);
}

enum End {
    Closed,
    /// We answered and will not read on; the client may still be sending.
    Refused,
}

impl From<Gone> for End {
    fn from(Gone: Gone) -> End {
        End::Closed
    }
}

/// Reads and answers one request; returns the length of its head. The patience for a head counts
/// from its first byte, not from each.
async fn next_request(
    service: &Rc<Service>,
    socket: &Rc<Socket>,
    limits: &Limits,
    received: &mut Vec<u8>,
    out: &mut Vec<u8>,
) -> Result<usize, End> {
    if received.is_empty() {
        receive(socket, received).await?;
    }
    loop {
        match parse_request(received, limits) {
            Ok(Parsed::Complete(head)) => {
                socket.enter(Phase::Work);
                let consumed = head.len;
                let has_body = !matches!(head.framing, Framing::None | Framing::Length(0));
                let mut exchange = Exchange::new(service, socket, &head, out, has_body);
                registry::answer(&mut exchange).await?;
                return if has_body {
                    Err(End::Refused)
                } else if exchange.keep_alive() {
                    Ok(consumed)
                } else {
                    Err(End::Closed)
                };
            }
            Ok(Parsed::Partial) => receive(socket, received).await?,
            Err(error) => {
                refuse(service, socket, out, error).await?;
                return Err(End::Refused);
            }
        }
    }
}

async fn receive(socket: &Socket, received: &mut Vec<u8>) -> Result<(), End> {
    let start = received.len();
    received.resize(start + BUFFER_LEN, 0);
    let count = socket.receive(&mut received[start..]).await.unwrap_or(0);
    received.truncate(start + count);
    if count == 0 || socket.is_cut() {
        return Err(End::Closed);
    }
    Ok(())
}

async fn refuse(
    service: &Rc<Service>,
    socket: &Rc<Socket>,
    out: &mut Vec<u8>,
    error: HeadError,
) -> Result<(), End> {
    tracing::info!(peer = %socket.peer(), %error, "request refused");
    let mut exchange = Exchange::refusal(service, socket, out);
    let why = error.to_string();
    exchange
        .error(error.status(), Code::Unsupported, &why, None)
        .await?;
    Ok(())
}

/// Reads on for a moment, so that the close does not destroy the answer on its way.
async fn discard(socket: &Socket) {
    socket.finish_sending();
    socket.enter(Phase::Head);
    let mut dropped = 0;
    let mut buffer = vec![0; BUFFER_LEN];
    while dropped < DISCARD_LEN_MAX {
        match socket.receive(&mut buffer).await {
            Ok(count) if count > 0 => dropped += count,
            _ => break,
        }
    }
}
