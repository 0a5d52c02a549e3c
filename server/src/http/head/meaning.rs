//! The field lines that are about the message itself: its host, its framing, its connection.

use super::{Framing, HeadError, Version};
use crate::http::field::{self, ConnectionOptions, TransferCodings};
use crate::http::target;

/// What the field lines say about the message itself.
#[derive(Default)]
pub(super) struct Meaning {
    pub(super) host: bool,
    length: Option<u64>,
    codings: TransferCodings,
    pub(super) connection: ConnectionOptions,
    pub(super) expect_continue: bool,
}

impl Meaning {
    pub(super) fn add(&mut self, name: &[u8], value: &[u8]) -> Result<(), HeadError> {
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
    pub(super) fn framing(&self, version: Version) -> Result<Framing, HeadError> {
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
