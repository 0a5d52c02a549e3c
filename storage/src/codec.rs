//! Bytes to values and back: little-endian, lengths before texts, nothing machine-dependent.
//!
//! A `Reader` never panics on foreign bytes: what does not fit is `None`.

use std::sync::Arc;

use crate::digest::{Algorithm, Digest};

/// All checksums are CRC-32 (IEEE).
pub(crate) fn crc(bytes: &[u8]) -> u32 {
    crc32fast::hash(bytes)
}

#[derive(Default)]
pub(crate) struct Encoder {
    pub(crate) bytes: Vec<u8>,
}

impl Encoder {
    pub(crate) fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    pub(crate) fn u32(&mut self, value: u32) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_le_bytes());
    }

    pub(crate) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    /// Texts are shorter than 4 GiB by the limits of those who make them.
    pub(crate) fn text(&mut self, text: &str) {
        self.u32(u32::try_from(text.len()).expect("text within its limit"));
        self.raw(text.as_bytes());
    }

    pub(crate) fn digest(&mut self, digest: &Digest) {
        self.u8(digest.algorithm().code());
        self.raw(digest.as_bytes());
    }
}

pub(crate) struct Reader<'b> {
    bytes: &'b [u8],
}

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Reader<'b> {
        Reader { bytes }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn raw(&mut self, len: usize) -> Option<&'b [u8]> {
        let (taken, rest) = self.bytes.split_at_checked(len)?;
        self.bytes = rest;
        Some(taken)
    }

    pub(crate) fn rest(&mut self) -> &'b [u8] {
        std::mem::take(&mut self.bytes)
    }

    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.raw(1).map(|b| b[0])
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.raw(4)?.try_into().ok()?))
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.raw(8)?.try_into().ok()?))
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.raw(N)?.try_into().ok()
    }

    pub(crate) fn text(&mut self) -> Option<&'b str> {
        let len = usize::try_from(self.u32()?).ok()?;
        std::str::from_utf8(self.raw(len)?).ok()
    }

    pub(crate) fn boxed(&mut self) -> Option<Box<str>> {
        self.text().map(Box::from)
    }

    pub(crate) fn shared(&mut self) -> Option<Arc<str>> {
        self.text().map(Arc::from)
    }

    pub(crate) fn digest(&mut self) -> Option<Digest> {
        let algorithm = Algorithm::from_code(self.u8()?)?;
        Digest::from_bytes(algorithm, self.raw(algorithm.digest_len())?)
    }
}
