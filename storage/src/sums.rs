//! What is computed over a body as it comes in: its digest, and a CRC of each stride.
//!
//! Used by `fill`. Pieces are taken in order, one at a time, on the thread of the fill or on a
//! hashing thread that waits: SHA-256 takes longer than all else that a fill costs, and whoever is
//! served by the fill's own core waits for it.

use std::mem;

use bytes::Bytes;

use crate::digest::{Algorithm, Digest, Hasher};
use crate::disk::{Disk, Work};
use crate::record::CRC_STRIDE_BYTES;

pub(crate) struct Sums {
    hasher: Hasher,
    crc: crc32fast::Hasher,
    crcs: Vec<u32>,
    /// Bytes taken.
    at: u64,
}

impl Sums {
    fn new(algorithm: Algorithm) -> Sums {
        Sums {
            hasher: Hasher::new(algorithm),
            crc: crc32fast::Hasher::new(),
            crcs: Vec::new(),
            at: 0,
        }
    }

    fn update(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        let mut rest = bytes;
        while !rest.is_empty() {
            let room = CRC_STRIDE_BYTES - self.at % CRC_STRIDE_BYTES;
            let (now, later) = rest.split_at(rest.len().min(room as usize));
            self.crc.update(now);
            self.at += now.len() as u64;
            rest = later;
            if self.at.is_multiple_of(CRC_STRIDE_BYTES) {
                let crc = mem::take(&mut self.crc);
                self.crcs.push(crc.finalize());
            }
        }
    }

    /// Of the bytes taken so far.
    pub(crate) fn digest(&self) -> Digest {
        self.hasher.clone().finish()
    }

    /// The CRCs of all strides, the last one included, which may be short. The body ends here.
    pub(crate) fn take_crcs(&mut self) -> Vec<u32> {
        if !self.at.is_multiple_of(CRC_STRIDE_BYTES) {
            self.crcs.push(mem::take(&mut self.crc).finalize());
        }
        mem::take(&mut self.crcs)
    }
}

/// The sums of one body, wherever they are just now.
pub(crate) struct Summing(Place);

enum Place {
    Here(Box<Sums>),
    /// Being updated elsewhere; they come back by this.
    Away(flume::Receiver<Box<Sums>>),
}

impl Summing {
    pub(crate) fn new(algorithm: Algorithm) -> Summing {
        Summing(Place::Here(Box::new(Sums::new(algorithm))))
    }

    /// Waits until all that was given is in the sums. Dropped before its end, nothing is lost.
    pub(crate) async fn here(&mut self) -> &mut Sums {
        if let Place::Away(back) = &self.0 {
            let sums = back.recv_async().await;
            self.0 = Place::Here(sums.expect("work that was taken is done"));
        }
        match &mut self.0 {
            Place::Here(sums) => sums,
            Place::Away(_) => unreachable!("they just came back"),
        }
    }

    /// Adds a piece, here or elsewhere; call it right after [`Summing::here`].
    pub(crate) fn add(&mut self, disk: &impl Disk, bytes: &Bytes) {
        let (done, back) = flume::bounded(1);
        let Place::Here(mut sums) = mem::replace(&mut self.0, Place::Away(back)) else {
            unreachable!("one piece at a time");
        };
        let (len, bytes) = (bytes.len(), bytes.clone());
        let work: Work = Box::new(move || {
            sums.update(&bytes);
            // The fill may be gone.
            let _ = done.send(sums);
        });
        if let Err(work) = disk.elsewhere(len, work) {
            work();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stride_has_its_crc_wherever_pieces_end() {
        let stride = CRC_STRIDE_BYTES as usize;
        let body: Vec<u8> = (0..stride * 2 + 7).map(|at| at as u8).collect();
        let expected: Vec<u32> = body.chunks(stride).map(crc32fast::hash).collect();
        for piece_len in [1 << 10, stride - 1, stride, body.len()] {
            let mut sums = Sums::new(Algorithm::Sha256);
            body.chunks(piece_len).for_each(|piece| sums.update(piece));
            assert_eq!(
                sums.digest(),
                Digest::sha256(&body),
                "pieces of {piece_len}"
            );
            assert_eq!(sums.take_crcs(), expected, "pieces of {piece_len}");
        }
        let mut whole = Sums::new(Algorithm::Sha256);
        whole.update(&body[..stride]);
        assert_eq!(whole.take_crcs(), expected[..1]);
    }
}
