//! A way through an egress proxy: CONNECT (RFC 9110 §9.3.6), and the proxy's own authorization.
//!
//! Called by `connect` for https; for http the request itself goes to the proxy, in absolute form
//! (RFC 9112 §3.2.2). The proxy's credentials are in what the proxy reads and nowhere else (R11).

use std::io;

use monoio::net::TcpStream;

use crate::config::{Proxy, Url};
use crate::http::head::{HeadError, Limits, Parsed};
use crate::http::upstream_head::{FIELDS_CEILING, parse_response};

use super::connect::{StreamError, receive, send};
use super::resolve::NamesError;
use super::{Secret, basic};

/// Proxies answer a CONNECT with a few lines, and refuse it with a page.
const LIMITS: Limits = Limits {
    head_len_max: 8 << 10,
    fields_max: FIELDS_CEILING,
    target_len_max: 1 << 10,
};

/// Why there is no way through a proxy.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ProxyRefusal {
    #[error("it answered {0}")]
    Status(u16),
    #[error("it sent a malformed head: {0}")]
    Head(HeadError),
    #[error("it closed the connection")]
    Closed,
    #[error("it sent more than its answer")]
    Unasked,
    #[error("the connection to it was lost: {0}")]
    Lost(io::ErrorKind),
    #[error("it did not answer in time")]
    TimedOut,
    #[error("looking it up: {0}")]
    Names(NamesError),
}

/// The value of Proxy-Authorization, if there are credentials for the proxy.
pub(super) fn authorization(proxy: &Proxy) -> Option<Secret> {
    let (name, password) = proxy.login.as_ref()?;
    Some(basic(name, password.expose()))
}

/// Has the proxy at the other end of `tcp` connect to `origin`; what follows goes there.
pub(super) async fn open(
    tcp: &mut TcpStream,
    proxy: &Proxy,
    origin: &Url,
) -> Result<(), ProxyRefusal> {
    let lost = |error: StreamError| match error {
        StreamError::Io(kind) => ProxyRefusal::Lost(kind),
        StreamError::Tls(_) => ProxyRefusal::Closed,
    };
    let peer = origin.host_and_port();
    let mut request = format!("CONNECT {peer} HTTP/1.1\r\nHost: {peer}\r\n");
    if let Some(authorization) = authorization(proxy) {
        request.push_str("Proxy-Authorization: ");
        request.push_str(authorization.expose());
        request.push_str("\r\n");
    }
    request.push_str("\r\n");
    send(tcp, request.into_bytes()).await.map_err(lost)?;
    let mut received = Vec::new();
    loop {
        if let Parsed::Complete(head) =
            parse_response(&received, &LIMITS).map_err(ProxyRefusal::Head)?
        {
            return match head.status {
                // RFC 9110 §9.3.6: any 2xx, and its fields about a body mean nothing. TLS is
                // begun by us, so nothing can follow.
                200..=299 if head.len == received.len() => Ok(()),
                200..=299 => Err(ProxyRefusal::Unasked),
                status => Err(ProxyRefusal::Status(status)),
            };
        }
        let room = (LIMITS.head_len_max + 1).saturating_sub(received.len());
        if receive(tcp, &mut received, room).await.map_err(lost)? == 0 {
            return Err(ProxyRefusal::Closed);
        }
    }
}
