//! The request head: request line and field lines (RFC 9112 §2–§6).
//!
//! The connection loop calls `parse_request` with all bytes it holds, again when more arrive.
//! The answer for a head does not depend on how it was cut into reads. Nothing is allocated:
//! the head borrows the bytes and keeps the place of each field line.
//! Stricter than RFC 9112 where it leaves a choice: no bare CR or LF, no folding, one
//! `Content-Length`, only the chunked coding (R7).

use thiserror::Error;

use super::field::{self, ConnectionOptions, TransferCodings};
use super::{scan, target};

/// Most field lines a head may have whatever the limits say: their places are kept in an array.
pub const FIELDS_CEILING: usize = 64;
/// Longest head whatever the limits say: places are 16 bits wide.
pub const HEAD_LEN_CEILING: usize = u16::MAX as usize;

/// Bounds on one head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Octets of the whole head, the empty line included; at most `HEAD_LEN_CEILING`.
    pub head_len_max: usize,
    /// Field lines; at most `FIELDS_CEILING`.
    pub fields_max: usize,
    /// Octets of the request target.
    pub target_len_max: usize,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            // Room for a bearer token of 8 KiB and as much again for the rest.
            head_len_max: 32 << 10,
            // Clients send 4 to 12 lines; the rest is room for proxies in front of us.
            fields_max: FIELDS_CEILING,
            // RFC 9112 §3: at least 8000 octets for the request line are recommended.
            target_len_max: 8 << 10,
        }
    }
}

/// Enough bytes, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Parsed<T> {
    Complete(T),
    Partial,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
    Options,
    Connect,
    Other,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Version {
    Http10,
    Http11,
}

/// How the end of a request body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    None,
    Length(u64),
    Chunked,
}

/// The broken rule. Each ends the connection: what follows such a head cannot be trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum HeadError {
    #[error("carriage return without line feed")]
    BareCarriageReturn,
    #[error("line feed without carriage return")]
    BareLineFeed,
    #[error("chunked is not the last transfer coding")]
    ChunkedNotFinal,
    #[error("more than one Content-Length")]
    DuplicateContentLength,
    #[error("more than one Host")]
    DuplicateHost,
    #[error("head too long")]
    HeadTooLong,
    #[error("invalid Content-Length")]
    InvalidContentLength,
    #[error("invalid field name")]
    InvalidFieldName,
    #[error("invalid field value")]
    InvalidFieldValue,
    #[error("invalid Host")]
    InvalidHost,
    #[error("invalid method")]
    InvalidMethod,
    #[error("invalid status line")]
    InvalidStatusLine,
    #[error("invalid request target")]
    InvalidTarget,
    #[error("invalid Transfer-Encoding")]
    InvalidTransferCoding,
    #[error("invalid HTTP version")]
    InvalidVersion,
    #[error("Content-Length together with Transfer-Encoding")]
    LengthWithTransferCoding,
    #[error("no Host")]
    MissingHost,
    #[error("obsolete line folding")]
    ObsoleteLineFolding,
    #[error("request target too long")]
    TargetTooLong,
    #[error("too many field lines")]
    TooManyFields,
    #[error("Transfer-Encoding in HTTP/1.0")]
    TransferCodingInHttp10,
    #[error("unknown expectation")]
    UnknownExpectation,
    #[error("unknown transfer coding")]
    UnknownTransferCoding,
    #[error("unsupported HTTP version")]
    UnsupportedVersion,
    #[error("whitespace before the colon of a field line")]
    WhitespaceBeforeColon,
}

impl HeadError {
    /// The status a client is answered with before its connection is closed.
    pub fn status(self) -> u16 {
        match self {
            HeadError::TargetTooLong => 414,
            HeadError::UnknownExpectation => 417,
            HeadError::HeadTooLong | HeadError::TooManyFields => 431,
            HeadError::UnknownTransferCoding => 501,
            HeadError::UnsupportedVersion => 505,
            _ => 400,
        }
    }
}

/// A complete request head. Borrows the bytes it was parsed from.
#[derive(Clone)]
pub struct RequestHead<'b> {
    pub method: Method,
    /// Origin form (`/path?query`), `*`, or the authority of a CONNECT. Of a target in absolute
    /// form this is the path and query: scheme and authority are cut off.
    pub target: &'b str,
    pub version: Version,
    pub framing: Framing,
    /// Whether the client will send another request after this one.
    pub keep_alive: bool,
    /// Whether the client waits for `100 Continue` before it sends the body.
    pub expect_continue: bool,
    /// Octets of the head; the body or the next head starts there.
    pub len: usize,
    bytes: &'b [u8],
    places: [Place; FIELDS_CEILING],
    count: usize,
}

/// Where the name and the value of a field line are, in octets from the start of the head.
#[derive(Clone, Copy, Default)]
struct Place {
    name: u16,
    name_len: u16,
    value: u16,
    value_len: u16,
}

impl<'b> RequestHead<'b> {
    /// The value of the first line with this name, given in lower case.
    pub fn field(&self, name_lower: &str) -> Option<&'b [u8]> {
        self.fields(name_lower).next()
    }

    /// The values of all lines with this name, given in lower case, in their order.
    pub fn fields(&self, name_lower: &str) -> impl Iterator<Item = &'b [u8]> {
        let wanted = name_lower.as_bytes();
        let places = self.places[..self.count].iter();
        places
            .filter(move |place| usize::from(place.name_len) == wanted.len())
            .map(|place| place.of(self.bytes))
            .filter(move |(name, _)| name.eq_ignore_ascii_case(wanted))
            .map(|(_, value)| value)
    }

    /// All field lines in their order, names as the client wrote them.
    pub fn lines(&self) -> impl Iterator<Item = (&'b [u8], &'b [u8])> {
        let places = self.places[..self.count].iter();
        places.map(|place| place.of(self.bytes))
    }
}

impl Place {
    fn of<'b>(&self, bytes: &'b [u8]) -> (&'b [u8], &'b [u8]) {
        let (name, value) = (usize::from(self.name), usize::from(self.value));
        (
            &bytes[name..name + usize::from(self.name_len)],
            &bytes[value..value + usize::from(self.value_len)],
        )
    }
}

/// Parses one request head from the start of `bytes`, which may hold more than it.
pub fn parse_request<'b>(
    bytes: &'b [u8],
    limits: &Limits,
) -> Result<Parsed<RequestHead<'b>>, HeadError> {
    let len_max = limits.head_len_max.min(HEAD_LEN_CEILING);
    let mut scanner = Scanner {
        bytes: &bytes[..bytes.len().min(len_max)],
        at: 0,
    };
    match scanner.head(limits) {
        Ok(head) => Ok(Parsed::Complete(head)),
        Err(Stop::Refused(error)) => Err(error),
        Err(Stop::Short) if bytes.len() >= len_max => Err(HeadError::HeadTooLong),
        Err(Stop::Short) => Ok(Parsed::Partial),
    }
}

/// Why scanning ended before the head did.
enum Stop {
    Short,
    Refused(HeadError),
}

impl From<HeadError> for Stop {
    fn from(error: HeadError) -> Stop {
        Stop::Refused(error)
    }
}

struct Scanner<'b> {
    bytes: &'b [u8],
    at: usize,
}

impl<'b> Scanner<'b> {
    fn head(&mut self, limits: &Limits) -> Result<RequestHead<'b>, Stop> {
        self.leading_empty_line()?;
        let method = self.method()?;
        let target = self.target(method, limits.target_len_max)?;
        let version = self.version()?;
        let mut head = RequestHead {
            method,
            target,
            version,
            framing: Framing::None,
            keep_alive: false,
            expect_continue: false,
            len: 0,
            bytes: self.bytes,
            places: [Place::default(); FIELDS_CEILING],
            count: 0,
        };
        let meaning = self.field_lines(&mut head, limits.fields_max.min(FIELDS_CEILING))?;
        head.len = self.at;
        head.framing = meaning.framing(version)?;
        head.keep_alive = meaning.connection.keep_alive(version);
        // RFC 9110 §10.1.1: the expectation of an HTTP/1.0 request is ignored.
        head.expect_continue = meaning.expect_continue && version == Version::Http11;
        Ok(head)
    }

    /// RFC 9112 §2.2: one empty line before the request line is ignored.
    fn leading_empty_line(&mut self) -> Result<(), Stop> {
        match self.bytes {
            [b'\r', b'\n', ..] => self.at = 2,
            [] | [b'\r'] => return Err(Stop::Short),
            [b'\r', ..] => return Err(HeadError::BareCarriageReturn.into()),
            [b'\n', ..] => return Err(HeadError::BareLineFeed.into()),
            _ => {}
        }
        Ok(())
    }

    fn method(&mut self) -> Result<Method, Stop> {
        let method = self.take(scan::token_len);
        // RFC 9112 §3: single spaces separate the three parts of the request line.
        if self.next()? != b' ' || method.is_empty() {
            return Err(HeadError::InvalidMethod.into());
        }
        // RFC 9110 §9.1: the method is case-sensitive.
        Ok(match method {
            b"GET" => Method::Get,
            b"HEAD" => Method::Head,
            b"POST" => Method::Post,
            b"PUT" => Method::Put,
            b"PATCH" => Method::Patch,
            b"DELETE" => Method::Delete,
            b"OPTIONS" => Method::Options,
            b"CONNECT" => Method::Connect,
            _ => Method::Other,
        })
    }

    fn target(&mut self, method: Method, len_max: usize) -> Result<&'b str, Stop> {
        let target = self.take(scan::target_len);
        if target.len() > len_max {
            return Err(HeadError::TargetTooLong.into());
        }
        match self.next()? {
            b' ' => {}
            // A request line of two parts is HTTP/0.9.
            b'\r' | b'\n' => return Err(HeadError::InvalidVersion.into()),
            _ => return Err(HeadError::InvalidTarget.into()),
        }
        let target = std::str::from_utf8(target).map_err(|_| HeadError::InvalidTarget)?;
        Ok(target::path_and_query(method, target)?)
    }

    fn version(&mut self) -> Result<Version, Stop> {
        let rest = &self.bytes[self.at..];
        let version = match rest {
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'1', ..] => Version::Http11,
            [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0', ..] => Version::Http10,
            _ => return Err(refused_version(rest)),
        };
        self.at += VERSION.len();
        self.line_end(HeadError::InvalidVersion)?;
        Ok(version)
    }

    fn field_lines(
        &mut self,
        head: &mut RequestHead<'b>,
        fields_max: usize,
    ) -> Result<Meaning, Stop> {
        let mut meaning = Meaning::default();
        loop {
            match self.peek()? {
                b'\r' => break self.line_end(HeadError::BareCarriageReturn)?,
                // RFC 9112 §5.2: folding is refused with 400; so is whitespace before the first
                // field line (§2.2).
                b' ' | b'\t' => return Err(HeadError::ObsoleteLineFolding.into()),
                _ if head.count == fields_max => return Err(HeadError::TooManyFields.into()),
                _ => {}
            }
            let (name, value) = self.field_line(&mut head.places[head.count])?;
            head.count += 1;
            meaning.add(name, value)?;
        }
        // RFC 9112 §3.2: an HTTP/1.1 request without Host is answered with 400.
        if !meaning.host && head.version == Version::Http11 {
            return Err(HeadError::MissingHost.into());
        }
        Ok(meaning)
    }

    fn field_line(&mut self, place: &mut Place) -> Result<(&'b [u8], &'b [u8]), Stop> {
        let name_at = self.at;
        let name = self.take(scan::token_len);
        match self.next()? {
            b':' if !name.is_empty() => {}
            // RFC 9112 §5.1: whitespace between name and colon is refused with 400.
            b' ' | b'\t' => return Err(HeadError::WhitespaceBeforeColon.into()),
            b'\n' => return Err(HeadError::BareLineFeed.into()),
            _ => return Err(HeadError::InvalidFieldName.into()),
        }
        while matches!(self.peek()?, b' ' | b'\t') {
            self.at += 1;
        }
        let value_at = self.at;
        let value = field::trim_end(self.take(scan::value_len));
        self.line_end(HeadError::InvalidFieldValue)?;
        // The casts lose nothing: the bytes scanned end at `HEAD_LEN_CEILING`.
        *place = Place {
            name: name_at as u16,
            name_len: name.len() as u16,
            value: value_at as u16,
            value_len: value.len() as u16,
        };
        Ok((name, value))
    }

    /// RFC 9112 §2.2: a line ends with CRLF; a bare CR or LF is refused, where recipients may
    /// choose. `otherwise` names any other octet.
    fn line_end(&mut self, otherwise: HeadError) -> Result<(), Stop> {
        match &self.bytes[self.at..] {
            [b'\r', b'\n', ..] => self.at += 2,
            [] | [b'\r'] => return Err(Stop::Short),
            [b'\r', ..] => return Err(HeadError::BareCarriageReturn.into()),
            [b'\n', ..] => return Err(HeadError::BareLineFeed.into()),
            _ => return Err(otherwise.into()),
        }
        Ok(())
    }

    #[inline(always)]
    fn take(&mut self, len: impl Fn(&[u8]) -> usize) -> &'b [u8] {
        let rest = &self.bytes[self.at..];
        let (taken, _) = rest.split_at(len(rest));
        self.at += taken.len();
        taken
    }

    fn peek(&self) -> Result<u8, Stop> {
        self.bytes.get(self.at).copied().ok_or(Stop::Short)
    }

    fn next(&mut self) -> Result<u8, Stop> {
        let byte = self.peek()?;
        self.at += 1;
        Ok(byte)
    }
}

/// The shape of a version: `d` stands for a digit.
const VERSION: &[u8; 8] = b"HTTP/d.d";

fn refused_version(rest: &[u8]) -> Stop {
    for (byte, shape) in rest.iter().zip(VERSION) {
        let fits = match shape {
            b'd' => byte.is_ascii_digit(),
            _ => byte == shape,
        };
        if !fits {
            return HeadError::InvalidVersion.into();
        }
    }
    if rest.len() < VERSION.len() {
        return Stop::Short;
    }
    HeadError::UnsupportedVersion.into()
}

/// What the field lines say about the message itself.
#[derive(Default)]
struct Meaning {
    host: bool,
    length: Option<u64>,
    codings: TransferCodings,
    connection: ConnectionOptions,
    expect_continue: bool,
}

impl Meaning {
    fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
        // By length first: nine of ten lines are none of these.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                // RFC 9112 §3.2: a second Host and an invalid one are answered with 400.
                if self.host {
                    return Err(HeadError::DuplicateHost);
                }
                if !target::is_authority(value) {
                    return Err(HeadError::InvalidHost);
                }
                self.host = true;
            }
            6 if name.eq_ignore_ascii_case(b"expect") => {
                // RFC 9110 §10.1.1: what is not understood is answered with 417.
                if !value.eq_ignore_ascii_case(b"100-continue") {
                    return Err(HeadError::UnknownExpectation);
                }
                self.expect_continue = true;
            }
            10 if name.eq_ignore_ascii_case(b"connection") => self.connection.add(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                // RFC 9112 §6.3: equal values may be taken for one. We refuse them (R7).
                if self.length.is_some() {
                    return Err(HeadError::DuplicateContentLength);
                }
                self.length = Some(field::content_length(value)?);
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.codings.add(value),
            _ => {}
        }
        Ok(())
    }

    /// RFC 9112 §6.3: how the end of the body is found.
    fn framing(&self, version: Version) -> Result<Framing, HeadError> {
        if !self.codings.present {
            return Ok(match self.length {
                None | Some(0) => Framing::None,
                Some(length) => Framing::Length(length),
            });
        }
        // RFC 9112 §6.1: framing is faulty in HTTP/1.0, and may be refused beside Content-Length.
        if version == Version::Http10 {
            return Err(HeadError::TransferCodingInHttp10);
        }
        if self.length.is_some() {
            return Err(HeadError::LengthWithTransferCoding);
        }
        self.codings.check()?;
        Ok(Framing::Chunked)
    }
}

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let limits = Limits::default();
    let parsed = parse_request(data, &limits);
    // However the bytes arrive: a shorter read says the same, or that it is too short to say.
    let cut = data.len() / 2;
    match (&parsed, parse_request(&data[..cut], &limits)) {
        (_, Ok(Parsed::Partial)) => {}
        (Err(whole), Err(part)) => assert_eq!(*whole, part),
        (Ok(Parsed::Complete(whole)), Ok(Parsed::Complete(part))) => {
            assert_eq!(whole.len, part.len);
        }
        (_, part) => panic!("part is {:?}", part.map(|_| ())),
    }
    let Ok(Parsed::Complete(head)) = parsed else {
        return;
    };
    assert!(head.len <= data.len() && data[..head.len].ends_with(b"\r\n\r\n"));
    // What we accept httparse accepts, and reads the same. There is no exception.
    let mut lines = [httparse::EMPTY_HEADER; FIELDS_CEILING];
    let mut oracle = httparse::Request::new(&mut lines);
    assert_eq!(oracle.parse(data), Ok(httparse::Status::Complete(head.len)));
    assert_eq!(
        oracle.version,
        Some(u8::from(head.version == Version::Http11))
    );
    let target = oracle.path.unwrap_or_default();
    assert!(
        target.ends_with(head.target) || head.target == "/",
        "{target}"
    );
    let ours = head.lines();
    let theirs = oracle
        .headers
        .iter()
        .map(|line| (line.name.as_bytes(), line.value));
    assert!(ours.eq(theirs));
}

#[cfg(test)]
mod tests {
    use super::*;

    const SKOPEO: &[u8] = b"GET /v2/dh/library/nginx/manifests/1.27 HTTP/1.1\r\n\
        Host: cache:5000\r\n\
        User-Agent: skopeo/1.9.3\r\n\
        Accept: application/vnd.oci.image.manifest.v1+json\r\n\
        Accept: application/vnd.docker.distribution.manifest.v2+json\r\n\
        Accept: application/vnd.docker.distribution.manifest.v1+prettyjws\r\n\
        Accept: application/vnd.docker.distribution.manifest.v1+json\r\n\
        Accept: application/vnd.docker.distribution.manifest.list.v2+json\r\n\
        Accept: application/vnd.oci.image.index.v1+json\r\n\
        Docker-Distribution-Api-Version: registry/2.0\r\n\
        Accept-Encoding: gzip\r\n\r\n";

    const CHUNKED: &[u8] = b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nHost: a\r\n\
        Transfer-Encoding: chunked\r\nConnection: keep-alive, Close\r\nExpect: 100-continue\r\n\r\n";

    fn parse(bytes: &[u8]) -> Result<Parsed<RequestHead<'_>>, HeadError> {
        parse_request(bytes, &Limits::default())
    }

    fn complete(bytes: &[u8]) -> RequestHead<'_> {
        match parse(bytes) {
            Ok(Parsed::Complete(head)) => head,
            Ok(Parsed::Partial) => panic!("partial: {}", bytes.escape_ascii()),
            Err(error) => panic!("{error}: {}", bytes.escape_ascii()),
        }
    }

    /// What is wrong with a head; the answer must be the same when it comes octet by octet.
    fn refused(bytes: &[u8]) -> Option<HeadError> {
        let whole = parse(bytes).err();
        let first = (0..=bytes.len()).find_map(|len| parse(&bytes[..len]).err());
        assert_eq!(first, whole, "{}", bytes.escape_ascii());
        whole
    }

    /// A GET of `/` in HTTP/1.1 with these field lines after its Host.
    fn with(lines: &str) -> Vec<u8> {
        format!("GET / HTTP/1.1\r\nHost: a\r\n{lines}\r\n").into_bytes()
    }

    #[test]
    fn a_client_head_is_read_whole() {
        let head = complete(SKOPEO);
        assert_eq!(head.method, Method::Get);
        assert_eq!(head.target, "/v2/dh/library/nginx/manifests/1.27");
        assert_eq!(head.version, Version::Http11);
        assert_eq!(head.framing, Framing::None);
        assert!(head.keep_alive && !head.expect_continue);
        assert_eq!(head.len, SKOPEO.len());
        assert_eq!(head.field("user-agent"), Some(&b"skopeo/1.9.3"[..]));
        assert_eq!(head.field("range"), None);
        let accepted: Vec<_> = head.fields("accept").collect();
        assert_eq!(accepted.len(), 6);
        assert_eq!(accepted[5], b"application/vnd.oci.image.index.v1+json");
        assert_eq!(head.lines().count(), 10);
        let (name, value) = head.lines().last().unwrap();
        assert_eq!((name, value), (&b"Accept-Encoding"[..], &b"gzip"[..]));
    }

    #[test]
    fn every_prefix_is_partial() {
        for head in [SKOPEO, CHUNKED, b"\r\nHEAD / HTTP/1.0\r\n\r\n"] {
            for len in 0..head.len() {
                assert!(matches!(parse(&head[..len]), Ok(Parsed::Partial)), "{len}");
            }
            assert_eq!(complete(head).len, head.len());
        }
    }

    #[test]
    fn pipelined_requests_are_told_apart() {
        let bytes = [SKOPEO, CHUNKED, SKOPEO].concat();
        let first = complete(&bytes);
        let second = complete(&bytes[first.len..]);
        assert_eq!(second.method, Method::Post);
        assert_eq!(second.framing, Framing::Chunked);
        let third = complete(&bytes[first.len + second.len..]);
        assert_eq!(third.target, first.target);
    }

    #[test]
    fn methods() {
        let cases = [
            ("GET", Method::Get),
            ("HEAD", Method::Head),
            ("POST", Method::Post),
            ("PUT", Method::Put),
            ("PATCH", Method::Patch),
            ("DELETE", Method::Delete),
            ("OPTIONS", Method::Options),
            ("get", Method::Other),
            ("GETS", Method::Other),
            ("PROPFIND", Method::Other),
        ];
        for (method, expected) in cases {
            let bytes = format!("{method} / HTTP/1.1\r\nHost: a\r\n\r\n");
            assert_eq!(complete(bytes.as_bytes()).method, expected, "{method}");
        }
    }

    #[test]
    fn targets() {
        let cases: [(&str, &str, Result<&str, HeadError>); 22] = [
            ("GET", "/", Ok("/")),
            ("GET", "/v2/?ns=docker.io", Ok("/v2/?ns=docker.io")),
            ("GET", "/v2/a/blobs/sha256:00", Ok("/v2/a/blobs/sha256:00")),
            ("GET", "/a//../%zz", Ok("/a//../%zz")),
            ("GET", "http://cache:5000/v2/", Ok("/v2/")),
            ("GET", "HTTPS://[::1]:5000/v2/", Ok("/v2/")),
            ("GET", "http://cache", Ok("/")),
            ("OPTIONS", "*", Ok("*")),
            ("CONNECT", "ghcr.io:443", Ok("ghcr.io:443")),
            ("CONNECT", "/", Err(HeadError::InvalidTarget)),
            ("GET", "ghcr.io:443", Err(HeadError::InvalidTarget)),
            ("GET", "*", Err(HeadError::InvalidTarget)),
            ("GET", "v2/", Err(HeadError::InvalidTarget)),
            ("GET", "ftp://cache/v2/", Err(HeadError::InvalidTarget)),
            ("GET", "http:///v2/", Err(HeadError::InvalidTarget)),
            ("GET", "http://a@b/v2/", Err(HeadError::InvalidTarget)),
            ("GET", "http://cache?ns=a", Err(HeadError::InvalidTarget)),
            ("GET", "/#fragment", Err(HeadError::InvalidTarget)),
            ("GET", "/a\tb", Err(HeadError::InvalidTarget)),
            ("GET", "/a\u{e9}", Err(HeadError::InvalidTarget)),
            ("GET", "/a\"b", Err(HeadError::InvalidTarget)),
            ("GET", "", Err(HeadError::InvalidTarget)),
        ];
        for (method, target, expected) in cases {
            let bytes = format!("{method} {target} HTTP/1.1\r\nHost: a\r\n\r\n").into_bytes();
            match expected {
                Ok(expected) => assert_eq!(complete(&bytes).target, expected, "{target}"),
                Err(expected) => assert_eq!(refused(&bytes), Some(expected), "{target}"),
            }
        }
    }

    #[test]
    fn refused_lines() {
        use HeadError as E;
        let cases: [(&[u8], HeadError); 32] = [
            (b"\nGET / HTTP/1.1\r\n", E::BareLineFeed),
            (b"\rGET / HTTP/1.1\r\n", E::BareCarriageReturn),
            (b"\r\n\r\nGET / HTTP/1.1\r\n", E::InvalidMethod),
            (b" GET / HTTP/1.1\r\n", E::InvalidMethod),
            (b"G\0T / HTTP/1.1\r\n", E::InvalidMethod),
            (b"GET\t/ HTTP/1.1\r\n", E::InvalidMethod),
            (
                b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
                E::InvalidMethod,
            ),
            (b"GET  / HTTP/1.1\r\n", E::InvalidTarget),
            (b"GET /\r\n", E::InvalidVersion),
            (b"GET / \r\n", E::InvalidVersion),
            (b"GET /  HTTP/1.1\r\n", E::InvalidVersion),
            (b"GET / HTTP/1.1 \r\n", E::InvalidVersion),
            (b"GET / HTTP/1.10\r\n", E::InvalidVersion),
            (b"GET / http/1.1\r\n", E::InvalidVersion),
            (b"GET / X\r\n\r\n", E::InvalidVersion),
            (b"GET / HTTP/1.1\n", E::BareLineFeed),
            (b"GET / HTTP/1.1\rX", E::BareCarriageReturn),
            (b"GET / HTTP/1.2\r\n", E::UnsupportedVersion),
            (b"GET / HTTP/0.9\r\n", E::UnsupportedVersion),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", E::InvalidTarget),
            (b"GET / HTTP/2.0\r\n\r\n", E::UnsupportedVersion),
            (
                b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
                E::ObsoleteLineFolding,
            ),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\n b\r\n\r\n",
                E::ObsoleteLineFolding,
            ),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\n\tb\r\n\r\n",
                E::ObsoleteLineFolding,
            ),
            (
                b"GET / HTTP/1.1\r\nHost : a\r\n\r\n",
                E::WhitespaceBeforeColon,
            ),
            (
                b"GET / HTTP/1.1\r\nHost\t: a\r\n\r\n",
                E::WhitespaceBeforeColon,
            ),
            (b"GET / HTTP/1.1\r\n: a\r\n\r\n", E::InvalidFieldName),
            (b"GET / HTTP/1.1\r\nHo(st: a\r\n\r\n", E::InvalidFieldName),
            (b"GET / HTTP/1.1\r\nHost\r\n\r\n", E::InvalidFieldName),
            (b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", E::InvalidFieldValue),
            (b"GET / HTTP/1.1\r\nX: a\x7f\r\n\r\n", E::InvalidFieldValue),
            (b"GET / HTTP/1.1\r\nX: a\x0bb\r\n\r\n", E::InvalidFieldValue),
        ];
        for (bytes, expected) in cases {
            assert_eq!(refused(bytes), Some(expected), "{}", bytes.escape_ascii());
        }
        let cases: [(&[u8], HeadError); 6] = [
            (b"GET / HTTP/1.1\r\nHost\nX: a\r\n\r\n", E::BareLineFeed),
            (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", E::BareLineFeed),
            (
                b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n",
                E::BareCarriageReturn,
            ),
            (
                b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n",
                E::BareCarriageReturn,
            ),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\n", E::BareLineFeed),
            (b"GET / HTTP/1.1\r\nHost: a\r\n\rX", E::BareCarriageReturn),
        ];
        for (bytes, expected) in cases {
            assert_eq!(refused(bytes), Some(expected), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn field_values_are_trimmed_and_opaque() {
        let bytes = with("X: \t a \tb \t\r\nY:\r\nZ:  \r\nO: \u{e9}\u{2028}\r\nX:c\r\n");
        let head = complete(&bytes);
        assert_eq!(head.fields("x").collect::<Vec<_>>(), [&b"a \tb"[..], b"c"]);
        assert_eq!(head.field("y"), Some(&b""[..]));
        assert_eq!(head.field("z"), Some(&b""[..]));
        assert!(head.field("o").is_some_and(|value| !value.is_ascii()));
    }

    #[test]
    fn hosts() {
        let accepted = [
            "a",
            "cache:5000",
            "1.2.3.4:80",
            "[::1]:5000",
            "my_host",
            "a:",
        ];
        for host in accepted {
            complete(format!("GET / HTTP/1.1\r\nhOST:{host}\r\n\r\n").as_bytes());
        }
        let invalid = [
            "", ":80", "a b", "a,b", "a/b", "a:b", "a:123456", "[::1", "[]", "[g]", "u@a",
        ];
        for host in invalid {
            let bytes = format!("GET / HTTP/1.1\r\nHost: {host}\r\n\r\n");
            assert_eq!(
                refused(bytes.as_bytes()),
                Some(HeadError::InvalidHost),
                "{host}"
            );
        }
        assert_eq!(
            refused(&with("Host: a\r\n")),
            Some(HeadError::DuplicateHost)
        );
        assert_eq!(
            refused(b"GET / HTTP/1.1\r\n\r\n"),
            Some(HeadError::MissingHost)
        );
        // HTTP/1.0 knows no Host; one that is there must still be valid and alone.
        complete(b"GET / HTTP/1.0\r\n\r\n");
        let twice = b"GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n";
        assert_eq!(refused(twice), Some(HeadError::DuplicateHost));
    }

    #[test]
    fn framings() {
        use HeadError as E;
        let cases = [
            ("", Ok(Framing::None)),
            ("Content-Length: 0\r\n", Ok(Framing::None)),
            ("content-length: 007\r\n", Ok(Framing::Length(7))),
            (
                "Content-Length: 9223372036854775807\r\n",
                Ok(Framing::Length(i64::MAX as u64)),
            ),
            (
                "Content-Length: 9223372036854775808\r\n",
                Err(E::InvalidContentLength),
            ),
            (
                "Content-Length: 99999999999999999999\r\n",
                Err(E::InvalidContentLength),
            ),
            ("Content-Length: +5\r\n", Err(E::InvalidContentLength)),
            ("Content-Length: -5\r\n", Err(E::InvalidContentLength)),
            ("Content-Length: 5 5\r\n", Err(E::InvalidContentLength)),
            ("Content-Length: 5, 5\r\n", Err(E::InvalidContentLength)),
            ("Content-Length: 0x5\r\n", Err(E::InvalidContentLength)),
            ("Content-Length:\r\n", Err(E::InvalidContentLength)),
            (
                "Content-Length: 5\r\nContent-Length: 5\r\n",
                Err(E::DuplicateContentLength),
            ),
            (
                "Content-Length: 5\r\nContent-Length: 6\r\n",
                Err(E::DuplicateContentLength),
            ),
            (
                "Content-Length: 0\r\nContent-Length: 6\r\n",
                Err(E::DuplicateContentLength),
            ),
            ("Transfer-Encoding: chunked\r\n", Ok(Framing::Chunked)),
            ("transfer-encoding: CHUNKED\r\n", Ok(Framing::Chunked)),
            (
                "Transfer-Encoding: gzip, chunked\r\n",
                Err(E::UnknownTransferCoding),
            ),
            ("Transfer-Encoding: gzip\r\n", Err(E::UnknownTransferCoding)),
            (
                "Transfer-Encoding: xchunked\r\n",
                Err(E::UnknownTransferCoding),
            ),
            (
                "Transfer-Encoding: chunked;a=b\r\n",
                Err(E::UnknownTransferCoding),
            ),
            (
                "Transfer-Encoding: \"chunked\"\r\n",
                Err(E::UnknownTransferCoding),
            ),
            (
                "Transfer-Encoding: identity\r\n",
                Err(E::UnknownTransferCoding),
            ),
            (
                "Transfer-Encoding: chunked, gzip\r\n",
                Err(E::ChunkedNotFinal),
            ),
            (
                "Transfer-Encoding: chunked, chunked\r\n",
                Err(E::ChunkedNotFinal),
            ),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: gzip\r\n",
                Err(E::ChunkedNotFinal),
            ),
            ("Transfer-Encoding: chunked,\r\n", Err(E::ChunkedNotFinal)),
            (
                "Transfer-Encoding: , chunked\r\n",
                Err(E::InvalidTransferCoding),
            ),
            ("Transfer-Encoding:\r\n", Err(E::InvalidTransferCoding)),
            (
                "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n",
                Err(E::LengthWithTransferCoding),
            ),
            (
                "Content-Length: 0\r\nTransfer-Encoding: chunked\r\n",
                Err(E::LengthWithTransferCoding),
            ),
            (
                "Content-Length: 0\r\nTransfer-Encoding: x\r\n",
                Err(E::LengthWithTransferCoding),
            ),
        ];
        for (lines, expected) in cases {
            let bytes = with(lines);
            match expected {
                Ok(framing) => assert_eq!(complete(&bytes).framing, framing, "{lines}"),
                Err(error) => assert_eq!(refused(&bytes), Some(error), "{lines}"),
            }
        }
        let old = b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(refused(old), Some(E::TransferCodingInHttp10));
    }

    #[test]
    fn persistence() {
        let cases = [
            ("1.1", "", true),
            ("1.1", "Connection: close\r\n", false),
            ("1.1", "Connection: Upgrade, CLOSE\r\n", false),
            (
                "1.1",
                "Connection: keep-alive\r\nConnection: close\r\n",
                false,
            ),
            ("1.1", "Connection: closed, xclose\r\n", true),
            ("1.1", "Connection:\r\n", true),
            ("1.0", "", false),
            ("1.0", "Connection: Keep-Alive\r\n", true),
            ("1.0", "Connection: keep-alive, close\r\n", false),
        ];
        for (version, lines, expected) in cases {
            let bytes = format!("GET / HTTP/{version}\r\nHost: a\r\n{lines}\r\n");
            let head = complete(bytes.as_bytes());
            assert_eq!(head.keep_alive, expected, "{version} {lines}");
        }
    }

    #[test]
    fn expectations() {
        assert!(complete(CHUNKED).expect_continue);
        assert!(complete(&with("expect: 100-Continue\r\n")).expect_continue);
        assert!(!complete(b"GET / HTTP/1.0\r\nExpect: 100-continue\r\n\r\n").expect_continue);
        for value in ["", "200-ok", "100-continue, x"] {
            let bytes = with(&format!("Expect: {value}\r\n"));
            assert_eq!(
                refused(&bytes),
                Some(HeadError::UnknownExpectation),
                "{value}"
            );
        }
    }

    #[test]
    fn limits_hold_to_the_octet() {
        let limits = Limits {
            head_len_max: 60,
            fields_max: 2,
            target_len_max: 10,
        };
        let refused = |text: &str| parse_request(text.as_bytes(), &limits).err();
        let partial =
            |text: &str| matches!(parse_request(text.as_bytes(), &limits), Ok(Parsed::Partial));
        assert!(partial("GET /123456789"));
        assert_eq!(refused("GET /1234567890"), Some(HeadError::TargetTooLong));
        assert_eq!(refused("GET /123456789 HTTP/1.1\r\nHost: a\r\n\r\n"), None);
        let two = "GET / HTTP/1.1\r\nHost: a\r\nX: b\r\n";
        assert_eq!(refused(&format!("{two}\r\n")), None);
        assert_eq!(refused(&format!("{two}Y")), Some(HeadError::TooManyFields));
        let fill = |len: usize| format!("GET / HTTP/1.1\r\nHost: a\r\nX: {}", "b".repeat(len));
        let whole = |len: usize| format!("{}\r\n\r\n", fill(len));
        assert_eq!(whole(28).len(), 60);
        assert_eq!(refused(&whole(28)), None);
        assert_eq!(refused(&whole(29)), Some(HeadError::HeadTooLong));
        assert!(partial(&fill(31)));
        assert_eq!(refused(&fill(32)), Some(HeadError::HeadTooLong));
        // What follows a head is no part of it.
        assert_eq!(refused(&format!("{}{}", whole(28), whole(28))), None);
    }

    #[test]
    fn limits_above_the_ceilings_are_the_ceilings() {
        let limits = Limits {
            head_len_max: usize::MAX,
            fields_max: 1000,
            target_len_max: 10,
        };
        let lines = |count: usize| "X: y\r\n".repeat(count);
        let most = with(&lines(FIELDS_CEILING - 1));
        assert!(matches!(
            parse_request(&most, &limits),
            Ok(Parsed::Complete(_))
        ));
        let more = with(&lines(FIELDS_CEILING));
        assert_eq!(
            parse_request(&more, &limits).err(),
            Some(HeadError::TooManyFields)
        );
        let long = with(&format!("X: {}\r\n", "y".repeat(HEAD_LEN_CEILING)));
        assert_eq!(
            parse_request(&long, &limits).err(),
            Some(HeadError::HeadTooLong)
        );
    }

    #[test]
    fn statuses() {
        let cases = [
            (HeadError::BareLineFeed, 400),
            (HeadError::TargetTooLong, 414),
            (HeadError::UnknownExpectation, 417),
            (HeadError::HeadTooLong, 431),
            (HeadError::TooManyFields, 431),
            (HeadError::UnknownTransferCoding, 501),
            (HeadError::UnsupportedVersion, 505),
        ];
        for (error, status) in cases {
            assert_eq!(error.status(), status);
        }
    }

    #[test]
    fn fuzz_mutated_heads() {
        let seeds = [
            SKOPEO,
            CHUNKED,
            b"HEAD http://cache:5000/v2/ HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
            b"OPTIONS * HTTP/1.1\r\nHost: [::1]:5000\r\nContent-Length: 3\r\n\r\nabc",
            b"CONNECT ghcr.io:443 HTTP/1.1\r\nHost: ghcr.io:443\r\n\r\n",
        ];
        let words: [&[u8]; 16] = [
            b"\r\n",
            b"\r",
            b"\n",
            b" ",
            b"\t",
            b":",
            b",",
            b"\0",
            b"\r\n\r\n",
            b"HTTP/1.0",
            b"Host: a\r\n",
            b"Content-Length: 1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"Connection: close\r\n",
            b"http://",
            b"\xff",
        ];
        super::super::fuzzing::run(&seeds, &words, fuzz);
    }
}
