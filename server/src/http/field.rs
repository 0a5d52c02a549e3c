//! Field lines: the characters they may hold, and the few values heads and bodies share.
//!
//! Used by the request parser, the chunked decoder and the upstream head alike, so that all
//! three agree on what a name, a value and a length are.

use super::head::{HeadError, Version};

/// Classes of octets, one bit each.
const TOKEN: u8 = 1;
const VALUE: u8 = 2;
const TARGET: u8 = 4;
const HOST: u8 = 8;

/// Longest `Content-Length` we count with: signed 63 bits, so that sums of two never overflow.
pub(super) const LENGTH_MAX: u64 = i64::MAX as u64;

const CLASSES: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        let byte = octet as u8;
        let alphanumeric = byte.is_ascii_alphanumeric();
        // RFC 9110 §5.6.2: tchar.
        if alphanumeric || contains(b"!#$%&'*+-.^_`|~", byte) {
            table[octet] |= TOKEN;
        }
        // RFC 9110 §5.5: VCHAR, obs-text, SP and HTAB. Every other control is refused.
        if (byte >= 0x20 && byte != 0x7f) || byte == b'\t' {
            table[octet] |= VALUE;
        }
        // RFC 3986 §3.3, §3.4: pchar, "/" and "?", and for addresses in absolute form "[" and "]".
        // A fragment is never sent.
        if alphanumeric || contains(b"-._~!$&'()*+,;=:@/?%[]", byte) {
            table[octet] |= TARGET;
        }
        // RFC 3986 §3.2.2 without sub-delims and pct-encoded: no host we serve needs them, and a
        // comma or a quote in a host has only ever confused somebody.
        if alphanumeric || contains(b"-._~", byte) {
            table[octet] |= HOST;
        }
        octet += 1;
    }
    table
}

const fn contains(set: &[u8], byte: u8) -> bool {
    let mut at = 0;
    while at < set.len() {
        if set[at] == byte {
            return true;
        }
        at += 1;
    }
    false
}

#[inline]
pub(crate) fn is_token(byte: u8) -> bool {
    CLASSES[byte as usize] & TOKEN != 0
}

#[inline]
pub(super) fn is_value(byte: u8) -> bool {
    CLASSES[byte as usize] & VALUE != 0
}

#[inline]
pub(super) fn is_target(byte: u8) -> bool {
    CLASSES[byte as usize] & TARGET != 0
}

#[inline]
pub(super) fn is_host(byte: u8) -> bool {
    CLASSES[byte as usize] & HOST != 0
}

/// Removes optional whitespace (RFC 9110 §5.6.3) at both ends.
pub(super) fn trim(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] = value {
        value = rest;
    }
    trim_end(value)
}

pub(super) fn trim_end(mut value: &[u8]) -> &[u8] {
    while let [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// The members of a comma-separated list without quoted strings, trimmed, empty ones included.
pub(super) fn members(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(trim)
}

/// What the `Connection` lines of a head say about persistence.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ConnectionOptions {
    pub close: bool,
    pub keep_alive: bool,
}

impl ConnectionOptions {
    /// RFC 9112 §9.3: close wins; HTTP/1.1 persists unless told; HTTP/1.0 only when told.
    pub fn keep_alive(self, version: Version) -> bool {
        !self.close && (version == Version::Http11 || self.keep_alive)
    }

    pub fn add(&mut self, value: &[u8]) {
        for option in members(value) {
            self.close |= option.eq_ignore_ascii_case(b"close");
            self.keep_alive |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }
}

/// `Content-Length`: digits only, at most `LENGTH_MAX`. A list of equal values is refused too.
pub(super) fn content_length(value: &[u8]) -> Result<u64, HeadError> {
    digits(value)
        .filter(|length| *length <= LENGTH_MAX)
        .ok_or(HeadError::InvalidContentLength)
}

/// Digits and nothing else, or `None`, also when they exceed 64 bits.
pub(super) fn digits(value: &[u8]) -> Option<u64> {
    if value.is_empty() {
        return None;
    }
    let mut number: u64 = 0;
    for byte in value {
        if !byte.is_ascii_digit() {
            return None;
        }
        number = number
            .checked_mul(10)?
            .checked_add(u64::from(byte - b'0'))?;
    }
    Some(number)
}

/// The transfer codings of all `Transfer-Encoding` lines together, in their order.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TransferCodings {
    pub present: bool,
    chunked: bool,
    error: Option<HeadError>,
}

impl TransferCodings {
    pub fn add(&mut self, value: &[u8]) {
        self.present = true;
        for coding in members(value) {
            let error = if self.chunked {
                // RFC 9112 §6.1, §6.3: chunked is applied once, and last.
                HeadError::ChunkedNotFinal
            } else if coding.is_empty() {
                HeadError::InvalidTransferCoding
            } else if !coding.eq_ignore_ascii_case(b"chunked") {
                // RFC 9112 §6.1: a coding that is not understood is answered with 501.
                HeadError::UnknownTransferCoding
            } else {
                self.chunked = true;
                continue;
            };
            self.error.get_or_insert(error);
        }
    }

    /// Whether the codings are chunked and nothing else; the first broken rule otherwise.
    pub fn check(self) -> Result<(), HeadError> {
        match self.error {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}
