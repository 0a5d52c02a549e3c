//! A synthetic registry workload: which blob is asked for next, and how long it is.
//!
//! After what is published of registries: compressed layers of Docker Hub (CLUSTER '19: 1.8
//! million, mean 26 MB, median below 4 MB, ninth decile 63 MB) as a lognormal of lengths with a
//! tail of model images; reuse as in a sample of IBM's registry traces (FAST '18): 31 % of blob
//! requests are for a blob never seen, the others come back after a gap with the quantiles below.
//! Lengths do not depend on popularity. Manifests are left out: they are 0.01 % of the bytes.

use bytes::Bytes;
use entrepot_storage::{Algorithm, Digest, Hasher};

use crate::memory::FILLER;

/// Of 1,000 requests, for blobs never asked for before.
const NEW_PERMILLE: u64 = 310;
/// Requests since the last one of the same blob: quantiles in per cent.
const GAPS: [(f64, f64); 8] = [
    (0.0, 1.0),
    (10.0, 12.0),
    (25.0, 48.0),
    (50.0, 371.0),
    (75.0, 4_310.0),
    (90.0, 14_669.0),
    (99.0, 105_932.0),
    (100.0, 259_000.0),
];

/// How many in 100 of those that a gap leads to are taken, by how often they were asked for: so
/// 70 % of all blobs are asked for once, as in the sample (68 %).
const TAKEN_PERCENT: [u64; 10] = [8, 25, 40, 52, 62, 70, 78, 85, 92, 100];
/// Gaps that are drawn for one request before it counts as one for a new blob.
const DRAWS_MAX: usize = 64;

const LEN_MEDIAN: f64 = 3.5 * 1024.0 * 1024.0;
const LEN_SIGMA: f64 = 2.0;
/// Of 10,000 blobs, those of the tail.
const HUGE_PER_MYRIAD: u64 = 5;
const HUGE_MIN: f64 = 5.0 * GIB;
const HUGE_MAX: f64 = 15.0 * GIB;
const GIB: f64 = 1024.0 * 1024.0 * 1024.0;
/// The number of a blob is at its end and makes its digest.
const LEN_MIN: u64 = 64;

/// The pseudo-random numbers of Vigna's SplitMix64.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// As random as those of real bodies.
    pub fn digest(&mut self) -> Digest {
        let words: Vec<u8> = (0..4).flat_map(|_| self.draw().to_le_bytes()).collect();
        Digest::from_bytes(Algorithm::Sha256, &words).expect("32 bytes")
    }

    /// Between 0 and 1, neither of them.
    fn fraction(&mut self) -> f64 {
        ((self.draw() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// Box and Muller's.
    fn normal(&mut self) -> f64 {
        let (u, v) = (self.fraction(), self.fraction());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
}

/// Which blobs come back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reuse {
    /// The gap alone decides: every blob is as likely as any other.
    Even,
    /// Rather those that were asked for often, so that most are asked for once. It makes the gaps
    /// shorter than the published ones, about a fifth in the median.
    Skewed,
}

pub struct Trace {
    /// Blobs by number, in the order they are asked for.
    pub requests: Vec<u32>,
    /// Their lengths.
    pub lens: Vec<u64>,
}

impl Trace {
    /// Lengths are divided by `scale`.
    pub fn new(requests: usize, scale: u64, reuse: Reuse, seed: u64) -> Trace {
        let mut random = Random::new(seed);
        let mut trace = Trace {
            requests: Vec::with_capacity(requests),
            lens: Vec::new(),
        };
        // By request: whether its blob was not asked for again since.
        let mut latest: Vec<bool> = Vec::with_capacity(requests);
        let mut uses: Vec<usize> = Vec::new();
        for _ in 0..requests {
            let again = (random.draw() % 1000 >= NEW_PERMILLE)
                .then(|| trace.again(&mut random, reuse, &latest, &uses))
                .flatten();
            let blob = match again {
                Some(at) => {
                    latest[at] = false;
                    trace.requests[at]
                }
                None => {
                    uses.push(0);
                    trace.lens.push(len(&mut random, scale));
                    trace.lens.len() as u32 - 1
                }
            };
            uses[blob as usize] += 1;
            trace.requests.push(blob);
            latest.push(true);
        }
        trace
    }

    /// The last request of a blob that is now asked for again.
    fn again(
        &self,
        random: &mut Random,
        reuse: Reuse,
        latest: &[bool],
        uses: &[usize],
    ) -> Option<usize> {
        if reuse == Reuse::Even {
            return last_use(latest, gap(random.fraction() * 100.0));
        }
        (0..DRAWS_MAX).find_map(|_| {
            let at = last_use(latest, gap(random.fraction() * 100.0))?;
            let uses = uses[self.requests[at] as usize].min(TAKEN_PERCENT.len());
            (random.draw() % 100 < TAKEN_PERCENT[uses - 1]).then_some(at)
        })
    }

    /// Bytes of all blobs together.
    pub fn footprint(&self) -> u64 {
        self.lens.iter().sum()
    }
}

/// The gap at this quantile, between the known ones on a logarithmic scale.
fn gap(percent: f64) -> usize {
    let above = GAPS.iter().position(|(quantile, _)| *quantile >= percent);
    let above = above.unwrap_or(GAPS.len() - 1).max(1);
    let ((from, low), (to, high)) = (GAPS[above - 1], GAPS[above]);
    let share = (percent - from) / (to - from);
    (low.ln() + share * (high.ln() - low.ln())).exp() as usize
}

/// The last use of some blob, `gap` requests ago or the nearest one before that.
fn last_use(latest: &[bool], gap: usize) -> Option<usize> {
    let at = latest.len().checked_sub(gap.max(1))?;
    latest[..=at].iter().rposition(|latest| *latest)
}

/// The length of a blob, divided by `scale`.
pub fn len(random: &mut Random, scale: u64) -> u64 {
    let len = if random.draw() % 10_000 < HUGE_PER_MYRIAD {
        HUGE_MIN + random.fraction() * (HUGE_MAX - HUGE_MIN)
    } else {
        LEN_MEDIAN * (LEN_SIGMA * random.normal()).exp()
    };
    (len as u64 / scale).max(LEN_MIN)
}

/// Bytes of blobs: one page again and again, then the number of the blob.
pub struct Content {
    piece: Bytes,
    /// The hash of so many pieces.
    hashed: Vec<Hasher>,
}

/// A blob is handed out in pieces of this length.
pub const PIECE_LEN: u64 = 1 << 20;
const NUMBER_LEN: u64 = 4;

impl Default for Content {
    fn default() -> Content {
        let piece = FILLER.repeat(PIECE_LEN as usize / FILLER.len());
        Content {
            piece: piece.into(),
            hashed: vec![Hasher::new(Algorithm::Sha256)],
        }
    }
}

impl Content {
    /// Costs a piece's hash at most, and for the longest blob so far the rest of it.
    pub fn digest(&mut self, blob: u32, len: u64) -> Digest {
        let whole = ((len - NUMBER_LEN) / PIECE_LEN) as usize;
        while self.hashed.len() <= whole {
            let mut next = self.hashed[self.hashed.len() - 1].clone();
            next.update(&self.piece);
            self.hashed.push(next);
        }
        let mut hasher = self.hashed[whole].clone();
        let rest = len - NUMBER_LEN - whole as u64 * PIECE_LEN;
        hasher.update(&self.piece[..rest as usize]);
        hasher.update(&blob.to_le_bytes());
        hasher.finish()
    }

    pub fn pieces(&self, blob: u32, len: u64) -> impl Iterator<Item = Bytes> {
        let mut left = len - NUMBER_LEN;
        let mut end = Some(Bytes::copy_from_slice(&blob.to_le_bytes()));
        std::iter::from_fn(move || {
            if left >= PIECE_LEN {
                left -= PIECE_LEN;
                return Some(self.piece.clone());
            }
            let number = end.take()?;
            let rest = &self.piece[..left as usize];
            Some([rest, &number[..]].concat().into())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_those_of_the_pieces() {
        let mut content = Content::default();
        for len in [
            64,
            4100,
            PIECE_LEN - 1,
            PIECE_LEN,
            PIECE_LEN + 3,
            PIECE_LEN + 4,
            3_333_333,
        ] {
            let digest = content.digest(7, len);
            let bytes: Vec<u8> = content.pieces(7, len).flatten().collect();
            assert_eq!(bytes.len() as u64, len);
            assert_eq!(digest, Digest::sha256(&bytes), "{len}");
        }
    }

    /// The generator has the published figures; wide margins, since this is a sample.
    #[test]
    fn lengths_and_gaps_are_as_published() {
        let trace = Trace::new(30_000, 1, Reuse::Even, 1);
        let mut lens = trace.lens.clone();
        lens.sort_unstable();
        let mib = |quantile: usize| lens[lens.len() * quantile / 100] as f64 / (1 << 20) as f64;
        assert!((3.0..4.0).contains(&mib(50)), "median {}", mib(50));
        assert!((38.0..54.0).contains(&mib(90)), "ninth decile {}", mib(90));
        let new = lens.len() as f64 / trace.requests.len() as f64;
        assert!((0.31..0.45).contains(&new), "new {new}");
        let median = median_gap(&trace);
        assert!((200..600).contains(&median), "median gap {median}");
    }

    #[test]
    fn most_blobs_of_the_skewed_workload_are_asked_for_once() {
        let trace = Trace::new(30_000, 1, Reuse::Skewed, 1);
        let mut uses = vec![0; trace.lens.len()];
        for blob in &trace.requests {
            uses[*blob as usize] += 1;
        }
        let once = uses.iter().filter(|uses| **uses == 1).count() as f64 / uses.len() as f64;
        assert!((0.64..0.74).contains(&once), "asked for once: {once}");
        let median = median_gap(&trace);
        assert!((40..120).contains(&median), "median gap {median}");
    }

    fn median_gap(trace: &Trace) -> usize {
        let mut last = vec![None; trace.lens.len()];
        let mut gaps: Vec<usize> = Vec::new();
        for (at, blob) in trace.requests.iter().enumerate() {
            let last: Option<usize> = last[*blob as usize].replace(at);
            gaps.extend(last.map(|last| at - last));
        }
        gaps.sort_unstable();
        gaps[gaps.len() / 2]
    }
}
