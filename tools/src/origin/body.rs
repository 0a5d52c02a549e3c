//! What the origin can send: bytes held in memory, or made when read, at any offset.

use std::sync::Arc;

use super::noise::Noise;
use super::stored::Stored;
use super::tar::Tar;

#[derive(Clone, Debug)]
pub enum Body {
    Held(Arc<[u8]>),
    Noise { noise: Noise, len: u64 },
    Tar(Arc<Tar>),
    Stored(Arc<Stored>),
}

impl Body {
    pub fn held(bytes: impl Into<Arc<[u8]>>) -> Body {
        Body::Held(bytes.into())
    }

    pub fn len(&self) -> u64 {
        match self {
            Body::Held(bytes) => bytes.len() as u64,
            Body::Noise { len, .. } => *len,
            Body::Tar(tar) => tar.len(),
            Body::Stored(stored) => stored.len(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Fills `out` from `offset`; the caller stays within `len`.
    pub fn read_at(&self, offset: u64, out: &mut [u8]) {
        assert!(offset + out.len() as u64 <= self.len());
        match self {
            Body::Held(bytes) => {
                out.copy_from_slice(&bytes[offset as usize..offset as usize + out.len()]);
            }
            Body::Noise { noise, .. } => noise.read_at(offset, out),
            Body::Tar(tar) => tar.read_at(offset, out),
            Body::Stored(stored) => stored.read_at(offset, out),
        }
    }

    /// Hands over the whole body in order, at most `step` bytes a call.
    pub fn for_each(&self, step: usize, mut take: impl FnMut(&[u8])) {
        let mut buffer = vec![0; step.min(self.len() as usize)];
        let mut offset = 0;
        while offset < self.len() {
            let len = (self.len() - offset).min(step as u64) as usize;
            self.read_at(offset, &mut buffer[..len]);
            take(&buffer[..len]);
            offset += len as u64;
        }
    }

    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; self.len() as usize];
        self.read_at(0, &mut bytes);
        bytes
    }
}
