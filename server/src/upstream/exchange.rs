//! One request over one connection: kept, dialled, or led through a proxy.
//!
//! Called by `request` for each hop and by `grant` for tokens. A kept connection that was closed
//! under the request is replaced once (RFC 9112 §9.3.1: GET and HEAD may be repeated).
//! Bodies are read by the caller: see `body`.

use std::time::Instant;

use monoio::time::timeout;

use crate::config::{Proxy, Scheme, Url};
use crate::http;
use crate::http::head::{HeadError, Limits, Parsed};
use crate::http::upstream_head::{
    BodyFraming, FIELDS_CEILING, ResponseHead, body_framing, parse_response,
};

use super::body::{Body, Exchange};
use super::connect::{CONNECTIONS_MAX, Connection, Dial, Got, StreamError};
use super::error::UpstreamError;
use super::origin::{Reach, Target};
use super::pool::Key;
use super::redirect::Hop;
use super::request::{Client, Known};
use super::tunnel::{self, ProxyRefusal};
use super::{Method, Part, Secret};

const USER_AGENT: &str = concat!("entrepot/", env!("CARGO_PKG_VERSION"));
/// Signed redirects and policies of CDNs reach some 8 KiB.
pub(super) const LIMITS: Limits = Limits {
    head_len_max: 32 << 10,
    fields_max: FIELDS_CEILING,
    target_len_max: 8 << 10,
};
/// What is received while waiting for a head: a small body often comes with it.
const HEAD_READ_LEN: usize = 16 << 10;
/// 100 and 103 are in use; more than a few are a trap.
const INTERIM_MAX: u32 = 8;

/// A single request as it goes out.
pub(super) struct Ask<'a> {
    pub known: &'a Known,
    pub method: Method,
    pub hop: &'a Hop,
    pub accept: Option<&'a str>,
    pub range: Option<&'a Part>,
    pub authorization: Option<&'a Secret>,
    /// Sent by POST instead of the method; it holds credentials.
    pub form: Option<&'a str>,
    /// Which addresses are allowed.
    pub reach: Reach,
    /// When the whole answer must be here.
    pub deadline: Option<Instant>,
}

pub(super) struct Answer {
    pub head: ResponseHead,
    pub framing: BodyFraming,
    pub body: Body,
    /// The least reach that allows where it came from.
    pub needs: Reach,
}

enum Failure {
    /// A kept connection gave out before anything was answered: it may have been closed while
    /// the request was on its way.
    Unanswered(UpstreamError),
    Final(UpstreamError),
}

impl Client {
    pub(super) async fn exchange(&self, ask: &Ask<'_>) -> Result<Answer, UpstreamError> {
        let upstream = &ask.known.upstream;
        // A client certificate is a credential: it goes where the others go (R11).
        let identified = upstream.identity.is_some() && ask.hop.authorized;
        let key = Key {
            upstream: ask.known.id,
            origin: ask.hop.target.origin.clone(),
            identified,
        };
        let proxy = upstream.config.proxies.of(&key.origin).map(|it| &**it);
        let bytes = ask.encode(proxy);
        // RFC 9110 §9.2.2: what is not idempotent is not sent where it may have to be repeated.
        let kept = match ask.form {
            None => self.pool.take(&key, ask.reach),
            Some(_) => None,
        };
        if let Some(connection) = kept {
            match self.attempt(connection, ask, &key, bytes.clone()).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(error),
                Err(Failure::Unanswered(_)) => self.counters.retries.add(1),
            }
        }
        if self.open.count() >= CONNECTIONS_MAX {
            self.pool.close_all();
        }
        let tls = &ask.known.tls;
        let dial = Dial {
            origin: &key.origin,
            proxy,
            tls: if identified { &tls.own } else { &tls.elsewhere },
            timeout: upstream.config.connect_timeout,
            reach: ask.reach,
            resolver: &self.resolver,
            open: &self.open,
            counters: &self.counters,
        };
        let connection = dial.connect().await?;
        let answer = self
            .attempt(connection, ask, &key, bytes)
            .await
            .map_err(|failure| match failure {
                Failure::Unanswered(error) | Failure::Final(error) => error,
            })?;
        match proxy {
            // RFC 9110 §15.5.8: the proxy's own words, on a request it should have passed on.
            Some(proxy) if answer.head.status == 407 => Err(UpstreamError::proxy(
                proxy,
                &key.origin,
                ProxyRefusal::Status(407),
            )),
            _ => Ok(answer),
        }
    }

    async fn attempt(
        &self,
        mut connection: Connection,
        ask: &Ask<'_>,
        key: &Key,
        bytes: Vec<u8>,
    ) -> Result<Answer, Failure> {
        let origin = &key.origin;
        let (used, needs) = (connection.used, connection.needs);
        let read_timeout = ask.known.upstream.config.read_timeout;
        let head = match timeout(read_timeout, converse(&mut connection, origin, bytes)).await {
            Ok(head) => head?,
            Err(_) => {
                let origin = origin.to_string();
                return Err(Failure::Final(UpstreamError::HeadTimeout { origin }));
            }
        };
        // RFC 9110 §15.5.9: it may have been sent before our request arrived.
        if used && head.status == 408 {
            let origin = origin.to_string();
            return Err(Failure::Unanswered(UpstreamError::Closed { origin }));
        }
        // A POST is answered as a GET is (RFC 9112 §6.3).
        let method = match ask.method {
            Method::Get => http::head::Method::Get,
            Method::Head => http::head::Method::Head,
        };
        let framing = body_framing(method, &head).map_err(|reason| malformed(origin, reason))?;
        let body = Body::new(Exchange {
            keep: head.keep_alive().then(|| (self.pool.clone(), key.clone())),
            connection,
            framing,
            read_timeout,
            deadline: ask.deadline,
            counters: self.counters.clone(),
        });
        Ok(Answer {
            head,
            framing,
            body,
            needs,
        })
    }
}

/// Sends a request and receives the head of its final answer; what follows it stays held.
async fn converse(
    connection: &mut Connection,
    origin: &Url,
    bytes: Vec<u8>,
) -> Result<ResponseHead, Failure> {
    let lost = |error| match error {
        StreamError::Io(kind) => UpstreamError::Lost {
            origin: origin.to_string(),
            kind,
        },
        StreamError::Tls(reason) => UpstreamError::Tls {
            origin: origin.to_string(),
            reason,
        },
    };
    connection
        .write(bytes)
        .await
        .map_err(|error| Failure::Unanswered(lost(error)))?;
    let mut received = Vec::new();
    let mut interim = 0;
    loop {
        match parse_response(&received, &LIMITS).map_err(|reason| malformed(origin, reason))? {
            // RFC 9110 §15.2: nobody asked to switch protocols, so 101 is not skipped.
            Parsed::Complete(head) if head.status < 200 && head.status != 101 => {
                interim += 1;
                if interim > INTERIM_MAX {
                    let origin = origin.to_string();
                    return Err(Failure::Final(UpstreamError::Interim { origin }));
                }
                received.drain(..head.len);
                continue;
            }
            Parsed::Complete(head) if head.status == 101 => {
                return Err(malformed(origin, HeadError::InvalidStatusLine));
            }
            Parsed::Complete(head) => {
                connection.held = received.split_off(head.len);
                return Ok(head);
            }
            Parsed::Partial => {}
        }
        // A read may be of TLS records that carry no data.
        let error = match connection.read(&mut received, HEAD_READ_LEN).await {
            Ok(Got::Bytes) => continue,
            Ok(Got::End { .. }) => UpstreamError::Closed {
                origin: origin.to_string(),
            },
            Err(error) => lost(error),
        };
        return Err(match received.is_empty() && interim == 0 {
            true => Failure::Unanswered(error),
            false => Failure::Final(error),
        });
    }
}

fn malformed(origin: &Url, reason: HeadError) -> Failure {
    Failure::Final(UpstreamError::Head {
        origin: origin.to_string(),
        reason,
    })
}

impl Ask<'_> {
    fn encode(&self, proxy: Option<&Proxy>) -> Vec<u8> {
        let Target { origin, path } = &self.hop.target;
        let host = origin.authority();
        let method = match self.form {
            Some(_) => "POST",
            None => self.method.as_str(),
        };
        // In a tunnel the proxy is not part of the conversation.
        let proxy = proxy.filter(|_| origin.scheme == Scheme::Http);
        let place = proxy.map(|_| origin.to_string()).unwrap_or_default();
        let mut head = format!(
            "{method} {place}{path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {USER_AGENT}\r\n\
             Accept-Encoding: identity\r\n"
        );
        let mut field = |name: &str, value: &str| {
            for part in [name, ": ", value, "\r\n"] {
                head.push_str(part);
            }
        };
        if let Some(accept) = self.accept {
            field("Accept", accept);
        }
        if let Some(Part {
            first,
            last,
            if_range,
        }) = self.range
        {
            let last = last.map(|last| last.to_string()).unwrap_or_default();
            field("Range", &format!("bytes={first}-{last}"));
            if let Some(validator) = if_range {
                field("If-Range", &validator.etag);
            }
        }
        if let Some(authorization) = self.authorization {
            field("Authorization", authorization.expose());
        }
        if let Some(authorization) = proxy.and_then(tunnel::authorization) {
            field("Proxy-Authorization", authorization.expose());
        }
        if let Some(form) = self.form {
            field("Content-Type", "application/x-www-form-urlencoded");
            field("Content-Length", &form.len().to_string());
        }
        head.push_str("\r\n");
        head.push_str(self.form.unwrap_or_default());
        head.into_bytes()
    }
}
