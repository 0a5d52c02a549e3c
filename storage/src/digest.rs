//! Digests: what a body is called, and the check that it is that body.
//!
//! A digest is kept whole (never truncated): the algorithm and 64 bytes, of which SHA-256 uses
//! the first 32. Parsing follows the OCI image specification, "Digests": lower-case hex of the
//! registered length, nothing else.

use std::fmt;
use std::str::FromStr;

use sha2::Digest as _;

/// Virtual shards: keys are mapped to these, and these to cores when the server starts.
/// Nothing persisted depends on the number (S8).
pub const SLICES: usize = 256;

/// Which of `shards` writers owns a slice. Nothing on disk depends on it (S8).
pub fn owner(slice: usize, shards: usize) -> usize {
    slice * shards / SLICES
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    pub fn name(self) -> &'static str {
        match self {
            Algorithm::Sha256 => "sha256",
            Algorithm::Sha512 => "sha512",
        }
    }

    /// Length of the digest in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            Algorithm::Sha256 => 32,
            Algorithm::Sha512 => 64,
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Algorithm::Sha256 => 1,
            Algorithm::Sha512 => 2,
        }
    }

    pub(crate) fn from_code(code: u8) -> Option<Algorithm> {
        match code {
            1 => Some(Algorithm::Sha256),
            2 => Some(Algorithm::Sha512),
            _ => None,
        }
    }
}

/// The name of a body. Unused bytes are zero, so that comparing all 64 is right.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest {
    algorithm: Algorithm,
    bytes: [u8; Digest::LEN_MAX],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    #[error("a digest is <algorithm>:<hex>")]
    NoColon,
    #[error("the digest's algorithm is neither sha256 nor sha512")]
    UnknownAlgorithm,
    #[error("the digest has the wrong length for its algorithm")]
    WrongLength,
    #[error("the digest is not lower-case hex")]
    NotLowerHex,
}

impl Digest {
    pub const LEN_MAX: usize = 64;

    pub fn parse(text: &str) -> Result<Digest, DigestError> {
        let (name, hex) = text.split_once(':').ok_or(DigestError::NoColon)?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => return Err(DigestError::UnknownAlgorithm),
        };
        if hex.len() != algorithm.digest_len() * 2 {
            return Err(DigestError::WrongLength);
        }
        let mut bytes = [0; Digest::LEN_MAX];
        for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
            *byte = (lower_hex(pair[0])? << 4) | lower_hex(pair[1])?;
        }
        Ok(Digest { algorithm, bytes })
    }

    /// The SHA-256 of bytes at hand.
    pub fn sha256(bytes: &[u8]) -> Digest {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        hasher.update(bytes);
        hasher.finish()
    }

    pub fn from_bytes(algorithm: Algorithm, digest: &[u8]) -> Option<Digest> {
        if digest.len() != algorithm.digest_len() {
            return None;
        }
        let mut bytes = [0; Digest::LEN_MAX];
        bytes[..digest.len()].copy_from_slice(digest);
        Some(Digest { algorithm, bytes })
    }

    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.algorithm.digest_len()]
    }

    /// The virtual shard that owns this digest.
    pub fn slice(&self) -> usize {
        usize::from(self.bytes[0])
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Digest, DigestError> {
        Digest::parse(text)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const HEX: &[u8; 16] = b"0123456789abcdef";
        let mut hex = [0_u8; Digest::LEN_MAX * 2];
        for (pair, byte) in hex.chunks_exact_mut(2).zip(self.as_bytes()) {
            pair[0] = HEX[usize::from(byte >> 4)];
            pair[1] = HEX[usize::from(byte & 15)];
        }
        f.write_str(self.algorithm.name())?;
        f.write_str(":")?;
        f.write_str(
            std::str::from_utf8(&hex[..self.algorithm.digest_len() * 2]).expect("hex is ASCII"),
        )
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn lower_hex(c: u8) -> Result<u8, DigestError> {
    match c {
        b'0'..=b'9' => Ok(c - b'0'),
        b'a'..=b'f' => Ok(c - b'a' + 10),
        _ => Err(DigestError::NotLowerHex),
    }
}

/// A digest in the making.
#[derive(Clone)]
pub struct Hasher(State);

#[derive(Clone)]
enum State {
    Sha256(sha2::Sha256),
    Sha512(sha2::Sha512),
}

impl Hasher {
    pub fn new(algorithm: Algorithm) -> Hasher {
        Hasher(match algorithm {
            Algorithm::Sha256 => State::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => State::Sha512(sha2::Sha512::new()),
        })
    }

    pub fn update(&mut self, bytes: &[u8]) {
        match &mut self.0 {
            State::Sha256(hasher) => hasher.update(bytes),
            State::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn finish(self) -> Digest {
        let mut bytes = [0; Digest::LEN_MAX];
        let algorithm = match self.0 {
            State::Sha256(hasher) => {
                bytes[..32].copy_from_slice(&hasher.finalize());
                Algorithm::Sha256
            }
            State::Sha512(hasher) => {
                bytes.copy_from_slice(&hasher.finalize());
                Algorithm::Sha512
            }
        };
        Digest { algorithm, bytes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn parses_what_it_prints() {
        let digest = Digest::sha256(b"");
        assert_eq!(digest.to_string(), EMPTY);
        assert_eq!(Digest::parse(EMPTY), Ok(digest));
        let mut hasher = Hasher::new(Algorithm::Sha512);
        hasher.update(b"abc");
        let long = hasher.finish();
        assert_eq!(long.as_bytes().len(), 64);
        assert_eq!(Digest::parse(&long.to_string()), Ok(long));
        assert_eq!(
            Digest::from_bytes(Algorithm::Sha512, long.as_bytes()),
            Some(long)
        );
    }

    #[test]
    fn refuses_each_broken_rule() {
        let upper = EMPTY.to_uppercase().replace("SHA256", "sha256");
        for (text, error) in [
            ("e3b0", DigestError::NoColon),
            ("md5:e3b0", DigestError::UnknownAlgorithm),
            ("SHA256:e3b0", DigestError::UnknownAlgorithm),
            ("sha256:e3b0", DigestError::WrongLength),
            (upper.as_str(), DigestError::NotLowerHex),
        ] {
            assert_eq!(Digest::parse(text), Err(error), "{text}");
        }
    }
}
