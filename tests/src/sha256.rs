//! SHA-256 digests as the registry protocol writes them.

use sha2::{Digest as _, Sha256};

/// A running hash that counts what it saw.
#[derive(Default)]
pub struct Hash {
    state: Sha256,
    len: u64,
}

impl Hash {
    pub fn update(&mut self, bytes: &[u8]) {
        self.state.update(bytes);
        self.len += bytes.len() as u64;
    }

    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// `sha256:<64 lower hex digits>`.
    pub fn digest(self) -> String {
        let mut text = String::from("sha256:");
        for byte in self.state.finalize() {
            text.push_str(&format!("{byte:02x}"));
        }
        text
    }
}

/// The digest of `bytes`.
pub fn digest(bytes: &[u8]) -> String {
    let mut hash = Hash::default();
    hash.update(bytes);
    hash.digest()
}

/// A well-formed digest that nothing has.
pub fn absent() -> String {
    digest(b"no registry holds this")
}
