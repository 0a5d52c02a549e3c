//! The response head of an upstream, parsed by httparse and then held to our own rules.
//!
//! Called by the upstream client. An upstream is foreign input like any client: what frames its
//! body ambiguously is refused, and the answer to ours is then 502 (R7).
//! Interim responses (1xx) are returned like others; the caller skips them, and counts.

use super::field::{self, ConnectionOptions, TransferCodings};
use super::head::{HeadError, Limits, Method, Parsed, Version};

/// Most field lines of a response whatever the limits say. Those from behind a CDN carry more
/// than requests do.
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

/// What must hold for any bytes at all.
#[cfg(any(test, fuzzing))]
pub fn fuzz(data: &[u8]) {
    let limits = Limits::default();
    let parsed = parse_response(data, &limits);
    match (&parsed, parse_response(&data[..data.len() / 2], &limits)) {
        (_, Ok(Parsed::Partial)) => {}
        // Which rule is named first may differ: line ends are looked at before the rest.
        (Err(_), Err(_)) => {}
        (Ok(Parsed::Complete(whole)), Ok(Parsed::Complete(part))) => assert_eq!(*whole, part),
        (_, part) => panic!("part is {part:?}"),
    }
    let Ok(Parsed::Complete(head)) = parsed else {
        return;
    };
    assert!(head.len <= data.len() && data[..head.len].ends_with(b"\r\n\r\n"));
    // Written again by our own rules, it reads the same.
    let mut again = Vec::new();
    let mut written = super::response::ResponseHead::new(&mut again, head.status);
    for (name, value) in &head.fields {
        written = written.field_bytes(name, value);
    }
    written.finish();
    let again = parse_response(
        &again,
        &Limits {
            head_len_max: usize::MAX,
            ..limits
        },
    );
    let Ok(Parsed::Complete(again)) = again else {
        panic!("written again: {again:?}");
    };
    assert_eq!(
        (again.status, again.fields),
        (head.status, head.fields.clone())
    );
    for method in [Method::Get, Method::Head] {
        if let Ok(BodyFraming::Length(length)) = body_framing(method, &head) {
            assert!(length <= field::LENGTH_MAX);
            assert_eq!(head.content_length(), Ok(Some(length)));
        }
    }
    head.keep_alive();
}

#[cfg(test)]
mod tests {
    use super::*;

    const MANIFEST: &[u8] = b"HTTP/1.1 200 OK\r\n\
        content-length: 1609\r\n\
        Content-Type: application/vnd.oci.image.index.v1+json\r\n\
        docker-content-digest: sha256:4bcff63911fcb4448bd4fdacec207030997caf25e9bea4045fa6c8c44d\r\n\
        ratelimit-limit: 100;w=21600\r\n\
        WWW-Authenticate: Basic realm=\"a\"\r\n\
        www-authenticate:\tBearer realm=\"b\" \r\n\
        X-Text: \xe9\r\n\r\n";

    fn parse(bytes: &[u8]) -> Result<Parsed<ResponseHead>, HeadError> {
        parse_response(bytes, &Limits::default())
    }

    fn complete(text: &str) -> ResponseHead {
        match parse(text.as_bytes()) {
            Ok(Parsed::Complete(head)) => head,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn a_registry_head_is_read_whole() {
        let bytes = [MANIFEST, b"{}"].concat();
        let Ok(Parsed::Complete(head)) = parse(&bytes) else {
            panic!();
        };
        assert_eq!((head.status, head.version), (200, Version::Http11));
        assert_eq!(head.len, MANIFEST.len());
        assert_eq!(head.content_length(), Ok(Some(1609)));
        assert_eq!(
            head.text("content-type"),
            Some("application/vnd.oci.image.index.v1+json")
        );
        assert_eq!(head.text("x-text"), None);
        assert_eq!(head.field("x-text"), Some(&b"\xe9"[..]));
        assert_eq!(head.field("absent"), None);
        let challenges: Vec<_> = head.fields("www-authenticate").collect();
        assert_eq!(
            challenges,
            [&b"Basic realm=\"a\""[..], b"Bearer realm=\"b\""]
        );
        assert!(head.keep_alive());
        for len in 0..MANIFEST.len() {
            assert_eq!(parse(&MANIFEST[..len]), Ok(Parsed::Partial), "{len}");
        }
    }

    #[test]
    fn interim_and_reasonless_heads() {
        assert_eq!(complete("HTTP/1.1 100 Continue\r\n\r\n").status, 100);
        assert_eq!(complete("HTTP/1.1 200\r\n\r\n").status, 200);
        assert_eq!(complete("HTTP/1.1 200 \r\n\r\n").status, 200);
    }

    #[test]
    fn refused_heads() {
        use HeadError as E;
        let cases: [(&str, HeadError); 21] = [
            ("\r\nHTTP/1.1 200 OK\r\n\r\n", E::InvalidStatusLine),
            ("\nHTTP/1.1 200 OK\r\n\r\n", E::InvalidStatusLine),
            ("<html>\r\n\r\n", E::InvalidVersion),
            ("HTTP/0.9 200 OK\r\n\r\n", E::InvalidVersion),
            ("HTTP/2.0 200 OK\r\n\r\n", E::InvalidVersion),
            ("HTTP/1.1 20 OK\r\n\r\n", E::InvalidStatusLine),
            ("HTTP/1.1 2000 OK\r\n\r\n", E::InvalidStatusLine),
            ("HTTP/1.1 099 OK\r\n\r\n", E::InvalidStatusLine),
            ("HTTP/1.1 600 OK\r\n\r\n", E::InvalidStatusLine),
            ("HTTP/1.1  200 OK\r\n\r\n", E::InvalidStatusLine),
            ("HTTP/1.1 200 OK\n\n", E::BareLineFeed),
            ("HTTP/1.1 200 OK\nX: y\r\n\r\n", E::BareLineFeed),
            ("HTTP/1.1 200 OK\r\nX: y\n\r\n", E::BareLineFeed),
            (
                "HTTP/1.1 200 OK\r\nX: y\rZ: a\r\n\r\n",
                E::BareCarriageReturn,
            ),
            ("HTTP/1.1 200 OK\r\n X: y\r\n\r\n", E::InvalidFieldName),
            (
                "HTTP/1.1 200 OK\r\nX: y\r\n folded\r\n\r\n",
                E::InvalidFieldName,
            ),
            ("HTTP/1.1 200 OK\r\nX : y\r\n\r\n", E::InvalidFieldName),
            ("HTTP/1.1 200 OK\r\n: y\r\n\r\n", E::InvalidFieldName),
            ("HTTP/1.1 200 OK\r\nX\r\n\r\n", E::InvalidFieldName),
            ("HTTP/1.1 200 OK\r\nX: \0\r\n\r\n", E::InvalidFieldValue),
            ("HTTP/1.1 200 OK\r\nX: \x7f\r\n\r\n", E::InvalidFieldValue),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text.as_bytes()), Err(expected), "{text:?}");
        }
    }

    #[test]
    fn limits_hold() {
        let limits = Limits {
            head_len_max: 40,
            fields_max: 1,
            ..Limits::default()
        };
        let refused = |text: &str| parse_response(text.as_bytes(), &limits).err();
        let one = "HTTP/1.1 200 OK\r\nX: yyyyyyyyyyyyyyyy";
        assert_eq!(one.len(), 36);
        assert_eq!(refused(&format!("{one}\r\n\r\n and a body")), None);
        assert_eq!(
            refused(&format!("{one}y\r\n\r\n")),
            Some(HeadError::HeadTooLong)
        );
        assert_eq!(refused(&format!("{one}yyyy")), Some(HeadError::HeadTooLong));
        let two = "HTTP/1.1 200 OK\r\nX: y\r\nX: y\r\n\r\n";
        assert_eq!(refused(two), Some(HeadError::TooManyFields));
    }

    #[test]
    fn framings() {
        use HeadError as E;
        let cases: [(Method, &str, Result<BodyFraming, HeadError>); 20] = [
            (Method::Get, "1 200\r\n", Ok(BodyFraming::UntilClose)),
            (
                Method::Get,
                "1 200\r\nContent-Length: 5\r\n",
                Ok(BodyFraming::Length(5)),
            ),
            (
                Method::Get,
                "1 200\r\nContent-Length: 0\r\n",
                Ok(BodyFraming::Length(0)),
            ),
            (
                Method::Get,
                "1 200\r\nTransfer-Encoding: Chunked\r\n",
                Ok(BodyFraming::Chunked),
            ),
            (
                Method::Head,
                "1 200\r\nContent-Length: 5\r\n",
                Ok(BodyFraming::Empty),
            ),
            (
                Method::Head,
                "1 200\r\nTransfer-Encoding: chunked\r\n",
                Ok(BodyFraming::Empty),
            ),
            (
                Method::Get,
                "1 204\r\nContent-Length: 5\r\n",
                Ok(BodyFraming::Empty),
            ),
            (
                Method::Get,
                "1 304\r\nContent-Length: 5\r\n",
                Ok(BodyFraming::Empty),
            ),
            (Method::Get, "1 103\r\n", Ok(BodyFraming::Empty)),
            (Method::Get, "0 200\r\n", Ok(BodyFraming::UntilClose)),
            (
                Method::Get,
                "1 200\r\nContent-Length: 5, 5\r\n",
                Err(E::InvalidContentLength),
            ),
            (
                Method::Get,
                "1 200\r\nContent-Length: -1\r\n",
                Err(E::InvalidContentLength),
            ),
            (
                Method::Get,
                "1 200\r\nContent-Length: 5\r\nContent-Length: 5\r\n",
                Err(E::DuplicateContentLength),
            ),
            (
                Method::Get,
                "1 200\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n",
                Err(E::LengthWithTransferCoding),
            ),
            (
                Method::Get,
                "0 200\r\nTransfer-Encoding: chunked\r\n",
                Err(E::TransferCodingInHttp10),
            ),
            (
                Method::Get,
                "1 200\r\nTransfer-Encoding: gzip\r\n",
                Err(E::UnknownTransferCoding),
            ),
            (
                Method::Get,
                "1 200\r\nTransfer-Encoding: gzip, chunked\r\n",
                Err(E::UnknownTransferCoding),
            ),
            (
                Method::Get,
                "1 200\r\nTransfer-Encoding: chunked, gzip\r\n",
                Err(E::ChunkedNotFinal),
            ),
            (
                Method::Get,
                "1 200\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(E::ChunkedNotFinal),
            ),
            (
                Method::Get,
                "1 200\r\nTransfer-Encoding:\r\n",
                Err(E::InvalidTransferCoding),
            ),
        ];
        for (method, rest, expected) in cases {
            let head = complete(&format!("HTTP/1.{rest}\r\n"));
            assert_eq!(body_framing(method, &head), expected, "{rest}");
        }
    }

    #[test]
    fn persistence() {
        assert!(!complete("HTTP/1.0 200 OK\r\n\r\n").keep_alive());
        assert!(complete("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\n\r\n").keep_alive());
        assert!(!complete("HTTP/1.1 200 OK\r\nConnection: x, Close\r\n\r\n").keep_alive());
    }

    #[test]
    fn fuzz_mutated_heads() {
        let seeds = [
            MANIFEST,
            b"HTTP/1.1 206 Partial Content\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n",
            b"HTTP/1.0 401\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n",
        ];
        let words: [&[u8]; 12] = [
            b"\r\n",
            b"\r",
            b"\n",
            b" ",
            b"\t",
            b":",
            b",",
            b"\0",
            b"\r\n\r\n",
            b"Content-Length: 1\r\n",
            b"Transfer-Encoding: chunked\r\n",
            b"\xff",
        ];
        crate::http::fuzzing::run(&seeds, &words, fuzz);
    }
}
