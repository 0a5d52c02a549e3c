//! The request head: request line and field lines (RFC 9112 §2–§6).
//!
//! The connection loop calls `parse_request` with all bytes it holds, again when more arrive.
//! The answer for a head does not depend on how it was cut into reads. Nothing is allocated:
//! the head borrows the bytes and keeps the place of each field line.
//! Stricter than RFC 9112 where it leaves a choice: no bare CR or LF, no folding, one
//! `Content-Length`, only the chunked coding (R7).

mod meaning;
mod scanner;
#[cfg(test)]
mod tests;

use thiserror::Error;

use scanner::{Scanner, Stop};

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
