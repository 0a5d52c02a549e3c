//! HTTP/1.1 as far as a scripted upstream needs it: request heads in, response heads out.
//!
//! Lenient on purpose where it does not matter here: the other side is under test, not this one.

use std::io::{self, Read};

const HEAD_LEN_MAX: usize = 64 * 1024;
/// Control bodies may carry whole manifests.
const BODY_LEN_MAX: usize = 8 << 20;
const READ_LEN: usize = 8 * 1024;

#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    pub method: String,
    pub path: String,
    /// Without the question mark.
    pub query: String,
    /// HTTP/1.0 ends the connection after the answer.
    pub close: bool,
    /// Names in lower case.
    pub fields: Vec<(String, String)>,
}

#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error("the request is not HTTP/1.x")]
    Malformed,
    #[error("the request is too long")]
    TooLong,
    #[error("a request body needs a Content-Length")]
    Length,
}

impl RequestHead {
    pub fn field(&self, name: &str) -> Option<&str> {
        self.fields(name).next()
    }

    pub fn fields(&self, name: &str) -> impl Iterator<Item = &str> {
        let same = move |field: &&(String, String)| field.0 == name;
        self.fields
            .iter()
            .filter(same)
            .map(|field| field.1.as_str())
    }

    pub fn target(&self) -> String {
        if self.query.is_empty() {
            self.path.clone()
        } else {
            format!("{}?{}", self.path, self.query)
        }
    }

    fn parse(head: &str) -> Option<RequestHead> {
        let mut lines = head.split("\r\n");
        let mut words = lines.next()?.split(' ');
        let (method, target, version) = (words.next()?, words.next()?, words.next()?);
        let minor = version.strip_prefix("HTTP/1.")?;
        let mut fields = Vec::new();
        for line in lines {
            let (name, value) = line.split_once(':')?;
            fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
        }
        let (path, query) = target.split_once('?').unwrap_or((target, ""));
        let asked = |what: &str| {
            let named = |field: &(String, String)| {
                field.0 == "connection" && field.1.eq_ignore_ascii_case(what)
            };
            fields.iter().any(named)
        };
        Some(RequestHead {
            method: method.to_owned(),
            path: path.to_owned(),
            query: query.to_owned(),
            close: asked("close") || (minor == "0" && !asked("keep-alive")),
            fields,
        })
    }
}

/// What was read from a connection and not yet used.
#[derive(Default)]
pub struct Inbox {
    bytes: Vec<u8>,
}

impl Inbox {
    /// The next request with its body; `None` when the peer has closed between requests.
    pub fn next(
        &mut self,
        from: &mut impl Read,
    ) -> Result<Option<(RequestHead, Vec<u8>)>, RequestError> {
        let head_len = loop {
            if let Some(at) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            if self.bytes.len() > HEAD_LEN_MAX {
                return Err(RequestError::TooLong);
            }
            // A TLS hello: clients that try HTTPS first wait for the refusal.
            if self
                .bytes
                .first()
                .is_some_and(|byte| !byte.is_ascii_uppercase())
            {
                return Err(RequestError::Malformed);
            }
            if !self.read(from)? {
                return Ok(None);
            }
        };
        let head = std::str::from_utf8(&self.bytes[..head_len]).ok();
        let head = head
            .and_then(RequestHead::parse)
            .ok_or(RequestError::Malformed)?;
        self.bytes.drain(..head_len + 4);
        let body = self.body(&head, from)?;
        Ok(Some((head, body)))
    }

    fn body(&mut self, head: &RequestHead, from: &mut impl Read) -> Result<Vec<u8>, RequestError> {
        if head.field("transfer-encoding").is_some() {
            return Err(RequestError::Length);
        }
        let len = match head.field("content-length") {
            None => 0,
            Some(text) => text.parse().map_err(|_| RequestError::Length)?,
        };
        if len > BODY_LEN_MAX {
            return Err(RequestError::TooLong);
        }
        while self.bytes.len() < len {
            if !self.read(from)? {
                return Err(RequestError::Malformed);
            }
        }
        Ok(self.bytes.drain(..len).collect())
    }

    fn read(&mut self, from: &mut impl Read) -> io::Result<bool> {
        let used = self.bytes.len();
        self.bytes.resize(used + READ_LEN, 0);
        let read = from.read(&mut self.bytes[used..]);
        self.bytes.truncate(used + *read.as_ref().unwrap_or(&0));
        read.map(|len| len > 0)
    }
}

pub fn write_head(out: &mut Vec<u8>, status: u16, fields: &[(String, String)]) {
    let reason = reason(status);
    out.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
    for (name, value) in fields {
        out.extend_from_slice(format!("{name}: {value}\r\n").as_bytes());
    }
    out.extend_from_slice(b"\r\n");
}

fn reason(status: u16) -> &'static str {
    match status {
        200 => "OK",
        206 => "Partial Content",
        301 => "Moved Permanently",
        302 => "Found",
        303 => "See Other",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        416 => "Range Not Satisfiable",
        429 => "Too Many Requests",
        500 => "Internal Server Error",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        _ => "Scripted",
    }
}

/// `a=b&c=d`, percent-decoded, in order.
pub fn query_pairs(query: &str) -> Vec<(String, String)> {
    let parts = query.split('&').filter(|part| !part.is_empty());
    parts
        .map(|part| {
            let (name, value) = part.split_once('=').unwrap_or((part, ""));
            (percent_decode(name), percent_decode(value))
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let mut out = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let coded = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let coded = coded.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match (first, coded) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            (b'+', _) => out.push(b' '),
            (byte, _) => out.push(*byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What a Range field asks of a body (RFC 9110 §14.1.2).
#[derive(Debug, PartialEq, Eq)]
pub enum Range {
    /// None, several, or none that we understand.
    Whole,
    Part(std::ops::Range<u64>),
    Unsatisfiable,
}

pub fn range(field: Option<&str>, len: u64) -> Range {
    let Some(spec) = field.and_then(|field| field.strip_prefix("bytes=")) else {
        return Range::Whole;
    };
    let Some((first, last)) = spec.split_once('-') else {
        return Range::Whole;
    };
    match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(first), Ok(last)) if last < first => Range::Whole,
        (Ok(first), _) if first >= len => Range::Unsatisfiable,
        (Ok(first), Ok(last)) => Range::Part(first..len.min(last.saturating_add(1))),
        (Ok(first), Err(_)) if last.is_empty() => Range::Part(first..len),
        (Err(_), Ok(0)) if first.is_empty() => Range::Unsatisfiable,
        (Err(_), Ok(_)) if first.is_empty() && len == 0 => Range::Unsatisfiable,
        (Err(_), Ok(suffix)) if first.is_empty() => Range::Part(len.saturating_sub(suffix)..len),
        _ => Range::Whole,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pipelined_requests_with_bodies() {
        let mut wire =
            &b"POST /a?b=c HTTP/1.1\r\nContent-Length: 3\r\n\r\nxyzGET / HTTP/1.0\r\n\r\n"[..];
        let mut inbox = Inbox::default();
        let (head, body) = inbox.next(&mut wire).unwrap().unwrap();
        assert_eq!((head.target().as_str(), &body[..]), ("/a?b=c", &b"xyz"[..]));
        assert!(!head.close);
        let (head, _) = inbox.next(&mut wire).unwrap().unwrap();
        assert_eq!((head.path.as_str(), head.close), ("/", true));
        assert!(inbox.next(&mut wire).unwrap().is_none());
    }

    #[test]
    fn a_tls_hello_is_refused_at_once() {
        struct Silent(Option<&'static [u8]>);
        impl Read for Silent {
            fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
                let bytes = self.0.take().expect("read no further");
                out[..bytes.len()].copy_from_slice(bytes);
                Ok(bytes.len())
            }
        }
        let mut inbox = Inbox::default();
        let refused = inbox.next(&mut Silent(Some(&[0x16, 3, 1])));
        assert!(matches!(refused, Err(RequestError::Malformed)));
    }

    #[test]
    fn ranges() {
        for (field, len, expected) in [
            ("bytes=0-0", 10, Range::Part(0..1)),
            ("bytes=3-", 10, Range::Part(3..10)),
            ("bytes=3-99", 10, Range::Part(3..10)),
            ("bytes=-4", 10, Range::Part(6..10)),
            ("bytes=-40", 10, Range::Part(0..10)),
            ("bytes=10-", 10, Range::Unsatisfiable),
            ("bytes=-0", 10, Range::Unsatisfiable),
            ("bytes=5-4", 10, Range::Whole),
            ("bytes=0-1,3-4", 10, Range::Whole),
            ("bytes=a-", 10, Range::Whole),
            ("items=0-1", 10, Range::Whole),
            ("bytes=0-", 0, Range::Unsatisfiable),
        ] {
            assert_eq!(range(Some(field), len), expected, "{field} of {len}");
        }
        assert_eq!(range(None, 10), Range::Whole);
    }

    #[test]
    fn queries() {
        let pairs = query_pairs("scope=repository%3Aa%2Fb%3Apull&x=a+b&flag&bad=%zz");
        let texts: Vec<_> = pairs
            .iter()
            .map(|(n, v)| (n.as_str(), v.as_str()))
            .collect();
        let expected = [
            ("scope", "repository:a/b:pull"),
            ("x", "a b"),
            ("flag", ""),
            ("bad", "%zz"),
        ];
        assert_eq!(texts, expected);
    }
}
