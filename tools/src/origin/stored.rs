//! A tar archive in a compressed form that compresses nothing, so that any offset can be read.
//!
//! gzip (RFC 1952) holds deflate pieces of type "stored" (RFC 1951 §3.2.4); zstd (RFC 8878)
//! holds pieces of type "raw" (§3.1.1.2.2). Both are what any decoder reads.

use flate2::Crc;

use super::body::Body;
use super::tar::Tar;

/// The most that one stored piece of deflate holds.
const GZIP_PIECE_LEN: u64 = 65_535;
/// The most that one raw piece of zstd holds, and the window announced.
const ZSTD_PIECE_LEN: u64 = 128 * 1024;
const ZSTD_WINDOW: u8 = (17 - 10) << 3;
const PIECE_HEAD_LEN_MAX: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    Gzip,
    Zstd,
}

#[derive(Debug)]
pub struct Stored {
    tar: Tar,
    form: Form,
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Stored {
    /// Reads the whole archive once when the form ends with a checksum.
    pub fn new(tar: Tar, form: Form) -> Stored {
        let (head, tail) = match form {
            Form::Gzip => (
                vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255],
                gzip_trailer(&tar),
            ),
            Form::Zstd => (vec![0x28, 0xb5, 0x2f, 0xfd, 0, ZSTD_WINDOW], Vec::new()),
        };
        Stored {
            tar,
            form,
            head,
            tail,
        }
    }

    pub fn len(&self) -> u64 {
        let pieces = self.tar.len().div_ceil(self.form.piece_len());
        let heads = pieces * self.form.piece_head_len();
        self.head.len() as u64 + heads + self.tar.len() + self.tail.len() as u64
    }

    pub fn is_empty(&self) -> bool {
        false
    }

    pub fn read_at(&self, offset: u64, out: &mut [u8]) {
        let mut at = offset;
        let mut rest = out;
        while !rest.is_empty() {
            let len = self.read_run(at, rest);
            rest = &mut rest[len..];
            at += len as u64;
        }
    }

    /// Reads up to the end of the head, piece head, piece or tail that `at` is in.
    fn read_run(&self, at: u64, out: &mut [u8]) -> usize {
        let head_len = self.head.len() as u64;
        let tail_start = self.len() - self.tail.len() as u64;
        if at < head_len {
            return copy_from(&self.head[at as usize..], out);
        }
        if at >= tail_start {
            return copy_from(&self.tail[(at - tail_start) as usize..], out);
        }
        let piece_head_len = self.form.piece_head_len();
        let stride = piece_head_len + self.form.piece_len();
        let from = (at - head_len) / stride * self.form.piece_len();
        let len = self.form.piece_len().min(self.tar.len() - from);
        let within = (at - head_len) % stride;
        if within < piece_head_len {
            let mut bytes = [0; PIECE_HEAD_LEN_MAX];
            let last = from + len == self.tar.len();
            let head = self.form.piece_head(len, last, &mut bytes);
            return copy_from(&head[within as usize..], out);
        }
        let skip = within - piece_head_len;
        let run = out.len().min((len - skip) as usize);
        self.tar.read_at(from + skip, &mut out[..run]);
        run
    }
}

impl Form {
    fn piece_len(self) -> u64 {
        match self {
            Form::Gzip => GZIP_PIECE_LEN,
            Form::Zstd => ZSTD_PIECE_LEN,
        }
    }

    fn piece_head_len(self) -> u64 {
        match self {
            Form::Gzip => 5,
            Form::Zstd => 3,
        }
    }

    fn piece_head(self, len: u64, last: bool, bytes: &mut [u8; PIECE_HEAD_LEN_MAX]) -> &[u8] {
        match self {
            Form::Gzip => {
                let len = (len as u16).to_le_bytes();
                *bytes = [u8::from(last), len[0], len[1], !len[0], !len[1]];
                &bytes[..]
            }
            Form::Zstd => {
                let word = (len as u32) << 3 | u32::from(last);
                bytes[..3].copy_from_slice(&word.to_le_bytes()[..3]);
                &bytes[..3]
            }
        }
    }
}

fn gzip_trailer(tar: &Tar) -> Vec<u8> {
    let mut crc = Crc::new();
    let mut buffer = vec![0; 256 * 1024];
    let mut offset = 0;
    while offset < tar.len() {
        let len = buffer.len().min((tar.len() - offset) as usize);
        tar.read_at(offset, &mut buffer[..len]);
        crc.update(&buffer[..len]);
        offset += len as u64;
    }
    let mut trailer = crc.sum().to_le_bytes().to_vec();
    trailer.extend_from_slice(&(tar.len() as u32).to_le_bytes());
    trailer
}

fn copy_from(from: &[u8], out: &mut [u8]) -> usize {
    let len = from.len().min(out.len());
    out[..len].copy_from_slice(&from[..len]);
    len
}

impl From<Stored> for Body {
    fn from(stored: Stored) -> Body {
        Body::Stored(std::sync::Arc::new(stored))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::origin::tar::Filling;
    use std::io::Read;

    fn whole(stored: &Stored) -> Vec<u8> {
        let mut out = vec![0; stored.len() as usize];
        stored.read_at(0, &mut out);
        out
    }

    fn archive(size: u64) -> Tar {
        Tar::new(9, size, 2, Filling::Random)
    }

    /// Sizes so that the archive ends within, at, and just behind the end of a piece.
    const SIZES: [u64; 6] = [0, 1, 61_440, 65_535, 126_464, 300_001];

    fn plain(size: u64) -> Vec<u8> {
        let tar = archive(size);
        let mut out = vec![0; tar.len() as usize];
        tar.read_at(0, &mut out);
        out
    }

    #[test]
    fn gzip_decodes() {
        for size in SIZES {
            let bytes = whole(&Stored::new(archive(size), Form::Gzip));
            let mut decoded = Vec::new();
            let mut decoder = flate2::read::GzDecoder::new(&bytes[..]);
            decoder.read_to_end(&mut decoded).unwrap();
            assert_eq!(decoded, plain(size), "{size}");
        }
    }

    #[test]
    fn zstd_decodes() {
        for size in SIZES {
            let bytes = whole(&Stored::new(archive(size), Form::Zstd));
            assert_eq!(zstd::decode_all(&bytes[..]).unwrap(), plain(size), "{size}");
        }
    }

    #[test]
    fn any_offset_gives_the_bytes_of_the_whole() {
        for form in [Form::Gzip, Form::Zstd] {
            let stored = Stored::new(archive(150_000), form);
            let bytes = whole(&stored);
            for offset in (0..bytes.len())
                .step_by(97)
                .chain(bytes.len() - 20..bytes.len())
            {
                let len = 200.min(bytes.len() - offset);
                let mut part = vec![0; len];
                stored.read_at(offset as u64, &mut part);
                assert_eq!(part, bytes[offset..offset + len], "{form:?} at {offset}");
            }
        }
    }
}
