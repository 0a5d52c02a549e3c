//! Digests as text, and hashing of whole bodies.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256, Sha512};

use super::body::Body;

/// What is hashed at a time.
const HASH_BUFFER_LEN: usize = 256 * 1024;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Algorithm {
    #[default]
    Sha256,
    Sha512,
}

/// `sha256:<64 hex>` or `sha512:<128 hex>`, lower case.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize, Serialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    pub fn parse(text: &str) -> Option<Digest> {
        let (algorithm, hex) = text.split_once(':')?;
        let hex_len = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return None,
        };
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        (hex.len() == hex_len && hex.bytes().all(lower_hex)).then(|| Digest(text.to_owned()))
    }

    pub fn sha256(bytes: &[u8]) -> Digest {
        Digest(format!("sha256:{}", hex(&Sha256::digest(bytes))))
    }

    pub fn of(body: &Body, algorithm: Algorithm) -> Digest {
        match algorithm {
            Algorithm::Sha256 => Digest(format!("sha256:{}", hex(&hash::<Sha256>(body)))),
            Algorithm::Sha512 => Digest(format!("sha512:{}", hex(&hash::<Sha512>(body)))),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.0
    }
}

impl TryFrom<String> for Digest {
    type Error = String;
    fn try_from(text: String) -> Result<Digest, String> {
        Digest::parse(&text).ok_or_else(|| format!("not a digest: {text}"))
    }
}

fn hash<H: sha2::Digest>(body: &Body) -> Vec<u8> {
    let mut hasher = H::new();
    body.for_each(HASH_BUFFER_LEN, |bytes| hasher.update(bytes));
    hasher.finalize().to_vec()
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grammar() {
        let good = format!("sha256:{}", "0a".repeat(32));
        assert_eq!(Digest::parse(&good).unwrap().as_str(), good);
        assert!(Digest::parse(&format!("sha512:{}", "0a".repeat(64))).is_some());
        for bad in [
            String::new(),
            "sha256:".into(),
            format!("sha256:{}", "0A".repeat(32)),
            format!("sha256:{}", "0a".repeat(31)),
            format!("md5:{}", "0a".repeat(32)),
        ] {
            assert!(Digest::parse(&bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn known_value() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::sha256(b"").as_str(), empty);
        assert_eq!(
            Digest::of(&Body::held(Vec::new()), Algorithm::Sha256).as_str(),
            empty
        );
    }
}
