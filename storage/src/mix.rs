//! Hashes of keys in memory: small, seeded by the store's uuid, the same on every run (S7).
//!
//! Never persisted. Digests are spread evenly already; texts come from clients only after an
//! upstream confirmed them, and the seed is not known outside.

use crate::digest::Digest;

const MULTIPLIER: u64 = 0x9e37_79b9_7f4a_7c15;

pub(crate) fn seed(uuid: &[u8; 16]) -> u64 {
    u64::from_le_bytes(uuid[..8].try_into().expect("eight bytes"))
}

/// Folds one word into a hash: a 64 x 64 -> 128-bit product, both halves kept.
pub(crate) fn word(hash: u64, word: u64) -> u64 {
    let product = u128::from(hash ^ word ^ MULTIPLIER) * u128::from(MULTIPLIER ^ 0xff51_afd7);
    (product as u64) ^ ((product >> 64) as u64)
}

pub(crate) fn text(mut hash: u64, text: &str) -> u64 {
    let mut words = text.as_bytes().chunks_exact(8);
    for bytes in &mut words {
        hash = word(
            hash,
            u64::from_le_bytes(bytes.try_into().expect("eight bytes")),
        );
    }
    let mut last = [0; 8];
    last[..words.remainder().len()].copy_from_slice(words.remainder());
    word(word(hash, u64::from_le_bytes(last)), text.len() as u64)
}

pub(crate) fn digest(seed: u64, digest: &Digest) -> u64 {
    let bytes = digest.as_bytes();
    let first = u64::from_le_bytes(bytes[8..16].try_into().expect("eight bytes"));
    word(seed, first)
}
