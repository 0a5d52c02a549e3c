//! The response head of an upstream, parsed by httparse and then held to our own rules.
//!
//! Called by the upstream client. An upstream is foreign input like any client: what frames its
//! body ambiguously is refused, and the answer to ours is then 502 (R7).
//! Interim responses (1xx) are returned like others; the caller skips them, and counts.

use super::field::{self, ConnectionOptions, TransferCodings};
use super::head::{HeadError, Limits, Method, Parsed, Version};

/// Most field lines of a response whatever the limits say. Registries behind several CDNs send
/// up to 40.
pub const FIELDS_CEILING: usize = 128;

/// A complete response head that owns what it holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResponseHead {
    pub status: u16,
    pub version: Version,
    /// Field lines in their order: names in lower case, values trimmed.
    pub fields: Vec<(String, Vec<u8>)>,
    /// Octets of the head; the body starts there.
    pub len: usize,
}

impl ResponseHead {
    /// The value of the first line with this name, given in lower case.
    pub fn field(&self, name_lower: &str) -> Option<&[u8]> {
        self.fields(name_lower).next()
    }

    /// The values of all lines with this name, given in lower case, in their order.
    pub fn fields<'h>(&'h self, name_lower: &str) -> impl Iterator<Item = &'h [u8]> {
        let lines = self.fields.iter();
        lines
            .filter(move |(name, _)| name == name_lower)
            .map(|(_, value)| &value[..])
    }

    /// The first value with this name if it is plain ASCII text.
    pub fn text(&self, name_lower: &str) -> Option<&str> {
        let text = std::str::from_utf8(self.field(name_lower)?).ok()?;
        text.is_ascii().then_some(text)
    }

    /// The one `Content-Length`, which in an answer to HEAD is the length of what GET would get.
    pub fn content_length(&self) -> Result<Option<u64>, HeadError> {
        let mut values = self.fields("content-length");
        let Some(value) = values.next() else {
            return Ok(None);
        };
        if values.next().is_some() {
            return Err(HeadError::DuplicateContentLength);
        }
        field::content_length(value).map(Some)
    }

    /// Whether the upstream will take another request on this connection.
    pub fn keep_alive(&self) -> bool {
        let mut options = ConnectionOptions::default();
        self.fields("connection")
            .for_each(|value| options.add(value));
        options.keep_alive(self.version)
    }
}

/// How the end of a response body is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyFraming {
    Empty,
    Length(u64),
    Chunked,
    UntilClose,
}

/// Parses one response head from the start of `bytes`, which may hold more than it.
pub fn parse_response(bytes: &[u8], limits: &Limits) -> Result<Parsed<ResponseHead>, HeadError> {
    let view = &bytes[..bytes.len().min(limits.head_len_max)];
    line_ends(view)?;
    let mut lines = [httparse::EMPTY_HEADER; FIELDS_CEILING];
    let fields_max = limits.fields_max.min(FIELDS_CEILING);
    let mut response = httparse::Response::new(&mut lines[..fields_max]);
    let len = match response.parse(view).map_err(refused)? {
        httparse::Status::Complete(len) => len,
        httparse::Status::Partial if bytes.len() >= limits.head_len_max => {
            return Err(HeadError::HeadTooLong);
        }
        httparse::Status::Partial => return Ok(Parsed::Partial),
    };
    let (Some(status), Some(minor)) = (response.code, response.version) else {
        return Err(HeadError::InvalidStatusLine);
    };
    // RFC 9110 §15: a status outside of 100 to 599 is invalid.
    if !(100..=599).contains(&status) {
        return Err(HeadError::InvalidStatusLine);
    }
    let lines = response.headers.iter();
    Ok(Parsed::Complete(ResponseHead {
        status,
        version: if minor == 0 {
            Version::Http10
        } else {
            Version::Http11
        },
        fields: lines
            .map(|line| {
                (
                    line.name.to_ascii_lowercase(),
                    field::trim(line.value).to_vec(),
                )
            })
            .collect(),
        len,
    }))
}

/// RFC 9112 §6.3: how the end of the body is found, in the order of its rules.
pub fn body_framing(request: Method, head: &ResponseHead) -> Result<BodyFraming, HeadError> {
    if request == Method::Head || matches!(head.status, 100..=199 | 204 | 304) {
        return Ok(BodyFraming::Empty);
    }
    let length = head.content_length()?;
    let mut codings = TransferCodings::default();
    head.fields("transfer-encoding")
        .for_each(|value| codings.add(value));
    if !codings.present {
        return Ok(length.map_or(BodyFraming::UntilClose, BodyFraming::Length));
    }
    if head.version == Version::Http10 {
        return Err(HeadError::TransferCodingInHttp10);
    }
    if length.is_some() {
        return Err(HeadError::LengthWithTransferCoding);
    }
    codings.check()?;
    Ok(BodyFraming::Chunked)
}

/// RFC 9112 §2.2: httparse takes a bare LF for a line end and skips empty lines at the start; we
/// do not. Nothing after the head is looked at.
fn line_ends(view: &[u8]) -> Result<(), HeadError> {
    if let [b'\r' | b'\n', ..] = view {
        return Err(HeadError::InvalidStatusLine);
    }
    let mut before = 0;
    for (at, byte) in view.iter().enumerate() {
        match (before, byte) {
            (b'\r', b'\n') if view[..at - 1].ends_with(b"\r\n") => return Ok(()),
            (b'\r', b'\n') => {}
            (b'\r', _) => return Err(HeadError::BareCarriageReturn),
            (_, b'\n') => return Err(HeadError::BareLineFeed),
            _ => {}
        }
        before = *byte;
    }
    Ok(())
}

fn refused(error: httparse::Error) -> HeadError {
    match error {
        // RFC 9112 §5.2: a folded line makes the message unusable, and our answer 502.
        httparse::Error::HeaderName => HeadError::InvalidFieldName,
        httparse::Error::HeaderValue => HeadError::InvalidFieldValue,
        httparse::Error::TooManyHeaders => HeadError::TooManyFields,
        httparse::Error::Version => HeadError::InvalidVersion,
        httparse::Error::NewLine => HeadError::BareCarriageReturn,
        httparse::Error::Status | httparse::Error::Token => HeadError::InvalidStatusLine,
    }
}
