//! The digest a body must have (OCI image specification, "Digests").

use std::fmt;

use sha2::{Digest as _, Sha256, Sha512};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    Sha256(String),
    Sha512(String),
}

pub enum Hasher {
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Expected {
    /// Of `sha256:<64 hex>` or `sha512:<128 hex>`.
    pub fn parse(text: &str) -> Option<Expected> {
        let (algorithm, hex) = text.split_once(':')?;
        let hex_of = |len: usize| {
            let lower = hex
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
            (hex.len() == len && lower).then(|| hex.to_owned())
        };
        match algorithm {
            "sha256" => hex_of(64).map(Expected::Sha256),
            "sha512" => hex_of(128).map(Expected::Sha512),
            _ => None,
        }
    }

    pub fn hasher(&self) -> Hasher {
        match self {
            Expected::Sha256(_) => Hasher::Sha256(Sha256::new()),
            Expected::Sha512(_) => Hasher::Sha512(Sha512::new()),
        }
    }

    fn hex(&self) -> &str {
        match self {
            Expected::Sha256(hex) | Expected::Sha512(hex) => hex,
        }
    }
}

impl fmt::Display for Expected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Expected::Sha256(hex) => write!(f, "sha256:{hex}"),
            Expected::Sha512(hex) => write!(f, "sha512:{hex}"),
        }
    }
}

impl Hasher {
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Hasher::Sha256(hasher) => hasher.update(bytes),
            Hasher::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub fn agrees(self, expected: &Expected) -> bool {
        let bytes = match self {
            Hasher::Sha256(hasher) => hasher.finalize().to_vec(),
            Hasher::Sha512(hasher) => hasher.finalize().to_vec(),
        };
        let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        hex == expected.hex()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_agree_with_their_bytes_only() {
        let empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        let expected = Expected::parse(&format!("sha256:{empty}")).unwrap();
        assert!(expected.hasher().agrees(&expected));
        let mut other = expected.hasher();
        other.update(b"x");
        assert!(!other.agrees(&expected));
        let long = "0".repeat(128);
        assert!(Expected::parse(&format!("sha512:{long}")).is_some());
        for bad in ["", "sha256:", "sha256:E3", "md5:00", &long] {
            assert_eq!(Expected::parse(bad), None, "{bad}");
        }
    }
}
