//! Whether a body's bytes are what was written: MiB by MiB against the CRCs of its commit entry,
//! or, where nobody knows these any more, as a whole against its digest.

use crate::digest::{Digest, Hasher};
use crate::record::{BodyEntry, CRC_STRIDE_BYTES};

pub(crate) struct Check {
    /// Of each MiB, as it should be or as it was found.
    crcs: Vec<u32>,
    next: usize,
    sound: bool,
    /// The CRCs are not known.
    by_digest: Option<(Hasher, Digest)>,
}

impl Check {
    pub(crate) fn by_crcs(entry: &BodyEntry) -> Check {
        Check {
            crcs: entry.crcs.clone(),
            next: 0,
            sound: true,
            by_digest: None,
        }
    }

    pub(crate) fn by_digest(digest: &Digest) -> Check {
        Check {
            crcs: Vec::new(),
            next: 0,
            sound: true,
            by_digest: Some((Hasher::new(digest.algorithm()), *digest)),
        }
    }

    /// The next MiB of the body, or what is left of it. Whether all is well so far.
    pub(crate) fn update(&mut self, piece: &[u8]) -> bool {
        debug_assert!(piece.len() as u64 <= CRC_STRIDE_BYTES);
        let crc = crate::codec::crc(piece);
        match &mut self.by_digest {
            Some((hasher, _)) => {
                hasher.update(piece);
                self.crcs.push(crc);
            }
            None => self.sound &= self.crcs.get(self.next) == Some(&crc),
        }
        self.next += 1;
        self.sound
    }

    /// The CRCs of a sound body.
    pub(crate) fn finish(self) -> Option<Vec<u32>> {
        let all = self.next == self.crcs.len();
        let right = self
            .by_digest
            .is_none_or(|(hasher, digest)| hasher.finish() == digest);
        (self.sound && all && right).then_some(self.crcs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(body: &[u8]) -> BodyEntry {
        BodyEntry {
            digest: Digest::sha256(body),
            offset: 0,
            len: body.len() as u64,
            created: 0,
            media_type: None,
            crcs: body
                .chunks(CRC_STRIDE_BYTES as usize)
                .map(crate::codec::crc)
                .collect(),
        }
    }

    fn checked(mut check: Check, body: &[u8]) -> Option<Vec<u32>> {
        for piece in body.chunks(CRC_STRIDE_BYTES as usize) {
            check.update(piece);
        }
        check.finish()
    }

    #[test]
    fn every_flip_and_cut_is_noticed_both_ways() {
        for len in [0_usize, 1, 1 << 20, (2 << 20) + 5] {
            let body: Vec<u8> = (0..len).map(|n| (n / 7) as u8).collect();
            let entry = entry(&body);
            let both = || [Check::by_crcs(&entry), Check::by_digest(&entry.digest)];
            for check in both() {
                assert_eq!(checked(check, &body), Some(entry.crcs.clone()));
            }
            for at in [0, len / 2, len.saturating_sub(1)] {
                let mut flipped = body.clone();
                let Some(byte) = flipped.get_mut(at) else {
                    continue;
                };
                *byte ^= 1;
                for check in both() {
                    assert_eq!(checked(check, &flipped), None, "{len} {at}");
                }
                for check in both() {
                    assert_eq!(checked(check, &body[..len - 1]), None);
                }
            }
        }
    }
}
