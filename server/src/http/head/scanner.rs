//! From octets to the parts of a request head, each judged where it stands.

use super::meaning::Meaning;
use super::{FIELDS_CEILING, Framing, HeadError, Limits, Method, Place, RequestHead, Version};
use crate::http::{field, scan, target};

/// Why scanning ended before the head did.
pub(super) enum Stop {
    Short,
    Refused(HeadError),
}

impl From<HeadError> for Stop {
    fn from(error: HeadError) -> Stop {
        Stop::Refused(error)
    }
}

pub(super) struct Scanner<'b> {
    pub(super) bytes: &'b [u8],
    pub(super) at: usize,
}

impl<'b> Scanner<'b> {
    pub(super) fn head(&mut self, limits: &Limits) -> Result<RequestHead<'b>, Stop> {
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
