//! Our response heads, written into a buffer that the connection keeps (RFC 9112 §4).
//!
//! Nothing is allocated beyond that buffer. Values may come from upstreams and clients: what
//! could end a line or a head is replaced, so that no value can forge a field.

use std::fmt::{self, Display, Write};

use super::field;

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
        while let Some((bad, after)) = rest
            .split_at_mut(field::value_len(rest))
            .1
            .split_first_mut()
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
