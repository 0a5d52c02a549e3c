//! Runs the fuzz functions of the parsers on stable: seeded mutations of given inputs.
//!
//! The functions are the ones cargo-fuzz runs. Here each sees the same inputs every time, so a
//! failure names a seed and stays a failure.

/// Inputs given to each fuzz function.
const INPUTS: u64 = 200_000;
/// Changes made to one input; most have one to three.
const CHANGES_MAX: u64 = 8;
/// Longest input: a few times the longest seed.
const LEN_MAX: usize = 4096;

/// SplitMix64: small, seeded by any number, good enough to choose mutations.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `bound`; 0 if there is none.
    pub fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }
}

/// Calls `fuzz` with every seed and with many mutations of them. `words` are inserted whole:
/// what a grammar gives meaning to is rarely hit by single octets.
pub fn run(seeds: &[&[u8]], words: &[&[u8]], fuzz: fn(&[u8])) {
    for seed in seeds {
        fuzz(seed);
    }
    for seed in 0..INPUTS {
        let input = mutated(&mut Random::new(seed), seeds, words);
        let outcome = std::panic::catch_unwind(|| fuzz(&input));
        assert!(outcome.is_ok(), "seed {seed}: {}", input.escape_ascii());
    }
}

fn mutated(random: &mut Random, seeds: &[&[u8]], words: &[&[u8]]) -> Vec<u8> {
    let mut input = seeds[random.below(seeds.len())].to_vec();
    let changes = 1 + random.next() % (1 + random.next() % CHANGES_MAX);
    for _ in 0..changes {
        let at = random.below(input.len() + 1);
        let end = at + random.below((input.len() - at + 1).min(64));
        match random.below(9) {
            0 => input.truncate(at),
            1 => drop(input.drain(at..end)),
            2 => input.insert(at, random.next() as u8),
            3 | 4 if at < input.len() => input[at] = random.next() as u8,
            5 if at < input.len() => input[at] ^= 1 << random.below(8),
            6 => {
                // The same again, here or elsewhere: duplicate fields, nested arrays.
                let copy = input[at..end].to_vec();
                let to = random.below(input.len() + 1);
                input.splice(to..to, copy);
            }
            7 => {
                let other = seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let word = words[random.below(words.len())].iter().copied();
                input.splice(at..at, word);
            }
        }
    }
    input.truncate(LEN_MAX);
    input
}
