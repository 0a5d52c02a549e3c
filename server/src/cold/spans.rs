//! What is asked of upstream for the ranges that a client wants of a body. Pure.

/// Ranges this near are asked for together: another request costs upstream a pair of heads or, with
/// its redirect, two, and the client a round trip, in which a slow line carries as much as this.
pub const GAP_LEN_MAX: u64 = 64 << 10;
/// Bytes between ranges that one answer may cost upstream beside those that are wanted: as many as
/// are wanted, and these in any case.
pub const SPARE_LEN: u64 = 256 << 10;
/// Spans of one answer. What lies in more places is fetched whole: an upstream that counts requests
/// would sooner send a layer than answer a thousand.
pub const SPANS_MAX: usize = 64;

/// The spans that an answer is made of; first byte included, end excluded.
#[derive(Debug, PartialEq, Eq)]
pub struct Spans {
    spans: Vec<(u64, u64)>,
    /// Of each range its span.
    of: Vec<usize>,
}

impl Spans {
    /// Merges ranges that follow one another closely, in the order in which they are sent; `None`
    /// when they lie in too many places. `ranges` are never empty.
    pub fn of(ranges: &[(u64, u64)]) -> Option<Spans> {
        let pairs = ranges.iter().zip(&ranges[1..]).enumerate();
        // What goes back or overlaps is asked for by itself.
        let gaps = pairs.filter_map(|(nth, (before, next))| {
            let gap = next.0.checked_sub(before.1)?;
            Some((gap, nth + 1))
        });
        let mut gaps: Vec<(u64, usize)> = gaps.collect();
        gaps.sort_unstable();
        let wanted: u64 = ranges.iter().map(|(start, end)| end - start).sum();
        let mut spare = wanted.max(SPARE_LEN);
        let mut count = ranges.len();
        let mut joins = vec![false; ranges.len()];
        for (gap, nth) in gaps {
            let near = gap <= GAP_LEN_MAX || count > SPANS_MAX;
            if gap > spare || !near {
                break;
            }
            spare -= gap;
            count -= 1;
            joins[nth] = true;
        }
        (count <= SPANS_MAX).then(|| Spans::joined(ranges, &joins))
    }

    fn joined(ranges: &[(u64, u64)], joins: &[bool]) -> Spans {
        let mut spans: Vec<(u64, u64)> = Vec::new();
        let mut of = Vec::with_capacity(ranges.len());
        for (range, joins) in ranges.iter().zip(joins) {
            match spans.last_mut() {
                Some(span) if *joins => span.1 = range.1,
                _ => spans.push(*range),
            }
            of.push(spans.len() - 1);
        }
        Spans { spans, of }
    }

    pub fn get(&self, nth: usize) -> Option<(u64, u64)> {
        self.spans.get(nth).copied()
    }

    /// The span that a range lies in.
    pub fn of_range(&self, nth: usize) -> usize {
        self.of[nth]
    }
}

#[cfg(test)]
mod tests {
    use super::{GAP_LEN_MAX, SPANS_MAX, SPARE_LEN, Spans};

    /// Ranges of `len` bytes with gaps of `gap` between them.
    fn even(count: u64, len: u64, gap: u64) -> Vec<(u64, u64)> {
        let start = |nth| nth * (len + gap);
        (0..count)
            .map(|nth| (start(nth), start(nth) + len))
            .collect()
    }

    fn counted(ranges: &[(u64, u64)]) -> Option<(usize, u64)> {
        let spans = Spans::of(ranges)?;
        let bytes = spans.spans.iter().map(|(start, end)| end - start).sum();
        Some((spans.spans.len(), bytes))
    }

    #[test]
    fn near_ranges_are_asked_for_together() {
        let (kib, mib) = (1 << 10, 1 << 20);
        for (name, ranges, expected) in [
            ("one", vec![(5, 9)], Some((1, 4))),
            ("adjacent", even(1024, 4 * kib, 0), Some((1, 4 * mib))),
            (
                "near",
                even(3, 10, GAP_LEN_MAX),
                Some((1, 30 + 2 * GAP_LEN_MAX)),
            ),
            ("not near", even(3, 10, GAP_LEN_MAX + 1), Some((3, 30))),
            ("backwards", vec![(100, 200), (0, 10)], Some((2, 110))),
            ("overlapping", vec![(0, 100), (50, 120)], Some((2, 170))),
            // A quarter of a MiB is spare for four gaps; then they stay apart.
            (
                "small and many",
                even(20, 10, GAP_LEN_MAX),
                Some((16, 200 + SPARE_LEN)),
            ),
            ("scattered", even(65, 10, mib), None),
            ("as many as may be", even(64, 10, mib), Some((64, 640))),
            // Farther apart than near, but together no more than what is wanted.
            (
                "merged to be few",
                even(100, 200 * kib, 100 * kib),
                Some((64, 100 * 200 * kib + 36 * 100 * kib)),
            ),
        ] {
            assert_eq!(counted(&ranges), expected, "{name}");
        }
    }

    #[test]
    fn what_is_asked_stays_within_its_bounds() {
        for (count, len, gap) in [(1024, 1, 1000), (700, 30_000, 29_000), (300, 9, 70_000)] {
            let ranges = even(count, len, gap);
            let Some((spans, bytes)) = counted(&ranges) else {
                continue;
            };
            let wanted = count * len;
            assert!(spans <= SPANS_MAX, "{count} {len} {gap}: {spans}");
            assert!(bytes <= wanted + wanted.max(SPARE_LEN), "{bytes}");
        }
    }

    #[test]
    fn every_range_lies_in_its_span() {
        let ranges = [(0, 10), (20, 30), (1 << 30, (1 << 30) + 5), (7, 9)];
        let spans = Spans::of(&ranges).expect("few");
        for (nth, range) in ranges.iter().enumerate() {
            let span = spans.get(spans.of_range(nth)).expect("its span");
            assert!(span.0 <= range.0 && range.1 <= span.1, "{range:?} {span:?}");
        }
        assert_eq!(spans.get(3), None);
    }
}
