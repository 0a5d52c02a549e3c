//! Random bytes of any length from a seed, at any offset, faster than a socket takes them.
//!
//! All seeds read one tile of random bytes, each from its own place, and every page carries a
//! stamp of seed and page number. So bytes served from a wrong offset or a wrong seed differ,
//! and reading costs little more than a copy.

use std::sync::OnceLock;

const TILE_LEN: usize = 1 << 20;
/// Distance of stamps: a page of misplaced bytes is always noticed.
const PAGE_LEN: u64 = 4096;
const STAMP_LEN: u64 = 8;
const TILE_SEED: u64 = 0x6f72_6967_696e_2e31;

#[derive(Clone, Copy, Debug)]
pub struct Noise {
    seed: u64,
    /// Where in the tile this seed's first byte stands.
    start: usize,
}

impl Noise {
    pub fn new(seed: u64) -> Noise {
        Noise {
            seed,
            start: (mix(seed) % TILE_LEN as u64) as usize,
        }
    }

    pub fn read_at(&self, offset: u64, out: &mut [u8]) {
        self.copy_tile(offset, out);
        let end = offset + out.len() as u64;
        let mut page = offset / PAGE_LEN;
        while page * PAGE_LEN < end {
            let stamp = mix(self.seed ^ mix(page)).to_le_bytes();
            let at = page * PAGE_LEN;
            let from = at.max(offset);
            let to = (at + STAMP_LEN).min(end);
            if from < to {
                out[(from - offset) as usize..(to - offset) as usize]
                    .copy_from_slice(&stamp[(from - at) as usize..(to - at) as usize]);
            }
            page += 1;
        }
    }

    fn copy_tile(&self, offset: u64, out: &mut [u8]) {
        let tile = tile();
        let mut at = ((self.start as u64 + offset) % TILE_LEN as u64) as usize;
        let mut rest = out;
        while !rest.is_empty() {
            let len = rest.len().min(TILE_LEN - at);
            let (now, later) = rest.split_at_mut(len);
            now.copy_from_slice(&tile[at..at + len]);
            rest = later;
            at = 0;
        }
    }
}

/// A seed for one part of something that has a seed.
pub fn derive(seed: u64, part: u64) -> u64 {
    mix(seed ^ mix(part.wrapping_add(1)))
}

/// splitmix64: every bit of the result depends on every bit of the input.
fn mix(value: u64) -> u64 {
    let mut z = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn tile() -> &'static [u8] {
    static TILE: OnceLock<Vec<u8>> = OnceLock::new();
    TILE.get_or_init(|| {
        (0..TILE_LEN as u64 / 8)
            .flat_map(|word| mix(TILE_SEED ^ mix(word)).to_le_bytes())
            .collect()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(noise: Noise, offset: u64, len: usize) -> Vec<u8> {
        let mut out = vec![0; len];
        noise.read_at(offset, &mut out);
        out
    }

    #[test]
    fn any_offset_gives_the_bytes_of_the_whole() {
        let noise = Noise::new(7);
        let whole = read(noise, 0, 3 * TILE_LEN);
        for (offset, len) in [
            (0, 1),
            (5, 1),
            (4095, 2),
            (4096, 8),
            (4099, 3),
            (TILE_LEN - 3, 9),
            (TILE_LEN / 2, TILE_LEN),
        ] {
            assert_eq!(
                read(noise, offset as u64, len),
                whole[offset..offset + len],
                "{offset}+{len}"
            );
        }
    }

    #[test]
    fn seeds_and_tiles_differ() {
        assert_ne!(read(Noise::new(1), 0, 64), read(Noise::new(2), 0, 64));
        let tile_len = TILE_LEN as u64;
        let noise = Noise::new(1);
        assert_ne!(read(noise, 0, 4096), read(noise, tile_len, 4096));
    }
}
