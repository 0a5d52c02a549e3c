//! Our response heads, written into a buffer that the connection keeps (RFC 9112 §4).
//!
//! Nothing is allocated beyond that buffer. Values may come from upstreams and clients: what
//! could end a line or a head is replaced, so that no value can forge a field.

use std::fmt::{self, Display, Write};

use super::{field, scan};

/// A response head in the making: status line written, field lines to follow.
#[must_use = "a head without its empty line swallows what follows"]
pub struct ResponseHead<'b> {
    buffer: &'b mut Vec<u8>,
}

impl<'b> ResponseHead<'b> {
    /// Appends the status line.
    pub fn new(buffer: &'b mut Vec<u8>, status: u16) -> ResponseHead<'b> {
        debug_assert!((100..=599).contains(&status), "status {status}");
        // The line of an unlisted status has no reason: RFC 9112 §4 wants the space all the same.
        buffer.extend_from_slice(b"HTTP/1.1 ");
        push_number(buffer, u64::from(status));
        buffer.push(b' ');
        buffer.extend_from_slice(reason(status).as_bytes());
        buffer.extend_from_slice(b"\r\n");
        ResponseHead { buffer }
    }

    pub fn field(self, name: &str, value: &str) -> ResponseHead<'b> {
        self.field_bytes(name, value.as_bytes())
    }

    pub fn field_bytes(self, name: &str, value: &[u8]) -> ResponseHead<'b> {
        self.line(name, |buffer| buffer.extend_from_slice(value))
    }

    pub fn field_u64(self, name: &str, value: u64) -> ResponseHead<'b> {
        self.line(name, |buffer| push_number(buffer, value))
    }

    /// A value put together from several, without a buffer of its own:
    /// `field_display("etag", format_args!("\"{digest}\""))`.
    pub fn field_display(self, name: &str, value: impl Display) -> ResponseHead<'b> {
        self.line(name, |buffer| {
            // Writing to a Vec does not fail; a Display that does has written all it could.
            let _ = write!(Text(buffer), "{value}");
        })
    }

    /// Appends the empty line.
    pub fn finish(self) {
        self.buffer.extend_from_slice(b"\r\n");
    }

    fn line(self, name: &str, value: impl FnOnce(&mut Vec<u8>)) -> ResponseHead<'b> {
        debug_assert!(
            !name.is_empty() && name.bytes().all(field::is_token),
            "{name:?}"
        );
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.extend_from_slice(b": ");
        let start = self.buffer.len();
        value(self.buffer);
        // RFC 9110 §5.5: CR, LF and NUL are replaced by SP before a value is passed on.
        let mut rest = &mut self.buffer[start..];
        while let Some((bad, after)) = rest.split_at_mut(scan::value_len(rest)).1.split_first_mut()
        {
            *bad = b' ';
            rest = after;
        }
        self.buffer.extend_from_slice(b"\r\n");
        self
    }
}

struct Text<'b>(&'b mut Vec<u8>);

impl Write for Text<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

/// Decimal digits of `u64::MAX`.
const DIGITS_MAX: usize = 20;

fn push_number(buffer: &mut Vec<u8>, mut number: u64) {
    let mut digits = [0; DIGITS_MAX];
    let mut at = DIGITS_MAX;
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    buffer.extend_from_slice(&digits[at..]);
}

/// RFC 9110 §15, and RFC 6585 for 429 and 431.
fn reason(status: u16) -> &'static str {
    match status {
        100 => "Continue",
        200 => "OK",
        206 => "Partial Content",
        304 => "Not Modified",
        307 => "Temporary Redirect",
        308 => "Permanent Redirect",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        412 => "Precondition Failed",
        413 => "Content Too Large",
        414 => "URI Too Long",
        416 => "Range Not Satisfiable",
        417 => "Expectation Failed",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(write: impl FnOnce(&mut Vec<u8>)) -> String {
        let mut buffer = Vec::new();
        write(&mut buffer);
        String::from_utf8(buffer).unwrap()
    }

    #[test]
    fn a_head_of_all_kinds_of_fields() {
        let head = text(|buffer| {
            ResponseHead::new(buffer, 206)
                .field("content-type", "application/octet-stream")
                .field_u64("content-length", 0)
                .field_u64("age", u64::MAX)
                .field_bytes("date", b"Sun, 06 Nov 1994 08:49:37 GMT")
                .field_display("etag", format_args!("\"{}:{}\"", "sha256", 42))
                .finish();
        });
        assert_eq!(
            head,
            "HTTP/1.1 206 Partial Content\r\n\
             content-type: application/octet-stream\r\n\
             content-length: 0\r\n\
             age: 18446744073709551615\r\n\
             date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
             etag: \"sha256:42\"\r\n\r\n"
        );
    }

    #[test]
    fn heads_follow_what_the_buffer_holds() {
        let mut buffer = b"before".to_vec();
        ResponseHead::new(&mut buffer, 100).finish();
        ResponseHead::new(&mut buffer, 599).finish();
        assert_eq!(
            buffer,
            b"beforeHTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 599 \r\n\r\n"
        );
    }

    #[test]
    fn no_value_forges_a_field() {
        let evil = "a\r\nset-cookie: b\0\x7f\tc\u{e9}";
        let expected = "HTTP/1.1 200 OK\r\nlink: a  set-cookie: b  \tc\u{e9}\r\n\r\n";
        let head = text(|buffer| ResponseHead::new(buffer, 200).field("link", evil).finish());
        assert_eq!(head, expected);
        let head = text(|buffer| {
            ResponseHead::new(buffer, 200)
                .field_display("link", evil)
                .finish();
        });
        assert_eq!(head, expected);
    }

    #[test]
    fn a_reused_buffer_does_not_grow() {
        let mut buffer = Vec::with_capacity(256);
        let place = buffer.as_ptr();
        for _ in 0..3 {
            buffer.clear();
            let head = ResponseHead::new(&mut buffer, 200).field_u64("content-length", 7);
            head.field_display("etag", format_args!("\"{}\"", "x"))
                .finish();
        }
        assert_eq!((buffer.as_ptr(), buffer.capacity()), (place, 256));
    }

    #[test]
    fn every_status_we_answer_has_a_reason() {
        for status in [
            200, 206, 304, 400, 401, 403, 404, 405, 408, 414, 416, 417, 429, 431,
        ] {
            assert!(!reason(status).is_empty(), "{status}");
        }
        for status in 500..=505 {
            assert!(!reason(status).is_empty(), "{status}");
        }
    }
}
