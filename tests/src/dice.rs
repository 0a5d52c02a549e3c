//! Choices from a seed, the same for the same seed (xorshift64*).

use crate::image::noise;

pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        let first: [u8; 8] = noise(seed, 8).try_into().expect("eight bytes");
        Dice(u64::from_le_bytes(first) | 1)
    }

    /// A number below `sides`.
    pub fn roll(&mut self, sides: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % sides
    }

    pub fn pick<'t, T>(&mut self, from: &'t [T]) -> &'t T {
        &from[self.roll(from.len() as u64) as usize]
    }
}

/// A number that whoever runs the tests may set.
pub fn setting(variable: &str, default: u64) -> u64 {
    let text = std::env::var(variable);
    text.map_or(default, |text| text.parse().expect("a number"))
}
