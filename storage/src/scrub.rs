//! When to check which segment: all that is live once in every period of the age clock, segment
//! by segment in the order of their ids, and first of all those that nobody sealed in time.
//!
//! Pure: it is told the time and what there is.

use crate::clock::Age;

/// Unused turns are kept for this part of a period at most: after a time without a free compactor
/// the scrub does not make up for all of it at once.
const CREDIT_PARTS: u64 = 200;

/// A sealed segment of bodies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Scrubbable {
    pub(crate) volume: u8,
    pub(crate) segment: u64,
    pub(crate) live: u64,
    pub(crate) unverified: bool,
}

/// How far the scrub is.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    last: Option<Age>,
    /// Bytes that may be read.
    credit: u64,
    /// What is left of a byte, in parts of a period.
    rest: u128,
    /// Volume and segment that were read last.
    done: Option<(u8, u64)>,
}

impl Pace {
    /// The segment to read now, if any. `period` in seconds; 0: never.
    pub(crate) fn next(
        &mut self,
        now: Age,
        period: u64,
        segments: &[Scrubbable],
    ) -> Option<Scrubbable> {
        if period == 0 || segments.is_empty() {
            return None;
        }
        let total: u64 = segments.iter().map(|segment| segment.live).sum();
        let next = match self.done {
            Some(done) => after(done, segments),
            // A new process goes on about where the last one was.
            None => start(now, period, total, segments),
        }?;
        self.earn(now, period, total);
        self.credit = self.credit.min((total / CREDIT_PARTS).max(next.live));
        if let Some(first) = segments.iter().find(|segment| segment.unverified) {
            return Some(*first);
        }
        if next.live > self.credit {
            return None;
        }
        self.credit -= next.live;
        self.done = Some((next.volume, next.segment));
        Some(next)
    }

    fn earn(&mut self, now: Age, period: u64, total: u64) {
        let elapsed = now.saturating_sub(self.last.replace(now).unwrap_or(now));
        let earned = u128::from(elapsed) * u128::from(total) + self.rest;
        self.rest = earned % u128::from(period);
        let earned = u64::try_from(earned / u128::from(period)).unwrap_or(u64::MAX);
        self.credit = self.credit.saturating_add(earned);
    }
}

fn place(segment: &Scrubbable) -> (u8, u64) {
    (segment.volume, segment.segment)
}

fn after(done: (u8, u64), segments: &[Scrubbable]) -> Option<Scrubbable> {
    let behind = segments.iter().filter(|segment| place(segment) > done);
    let next = behind.min_by_key(|segment| place(segment));
    next.or_else(|| segments.iter().min_by_key(|segment| place(segment)))
        .copied()
}

/// The segment at the part of all bytes that the clock is at within its period.
fn start(now: Age, period: u64, total: u64, segments: &[Scrubbable]) -> Option<Scrubbable> {
    let into = u128::from(u64::from(now) % period) * u128::from(total) / u128::from(period);
    let mut order = segments.to_vec();
    order.sort_by_key(place);
    let mut sum = 0;
    let first = order.first().copied();
    let reached = |segment: &Scrubbable| {
        sum += u128::from(segment.live);
        sum > into
    };
    order.into_iter().find(reached).or(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;
    const PERIOD: u64 = 1000;

    fn segments(count: u64) -> Vec<Scrubbable> {
        let segment = |n| Scrubbable {
            volume: (n % 2) as u8,
            segment: n,
            live: (n % 3 + 1) * MIB,
            unverified: false,
        };
        (0..count).map(segment).collect()
    }

    /// What is read in these seconds, one look a second.
    fn read(pace: &mut Pace, seconds: std::ops::Range<u32>, all: &[Scrubbable]) -> Vec<u64> {
        seconds
            .flat_map(|now| pace.next(now, PERIOD, all))
            .map(|segment| segment.segment)
            .collect()
    }

    #[test]
    fn everything_is_read_once_in_a_period() {
        let all = segments(30);
        for start in [0, 500, 77_777] {
            let mut pace = Pace::default();
            let first = read(&mut pace, start..start + 1001, &all);
            assert!((29..=31).contains(&first.len()), "{}", first.len());
            let second = read(&mut pace, start + 1001..start + 2050, &all);
            let mut seen = [first, second].concat();
            seen.sort();
            seen.dedup();
            assert_eq!(seen.len(), 30);
        }
    }

    #[test]
    fn a_later_process_goes_on_where_the_clock_is() {
        let all = segments(30);
        let read = read(&mut Pace::default(), 500..600, &all);
        let first = read.first().expect("a tenth of them");
        // Volume 0 holds the even ones, and comes first.
        assert!([28, 1, 3].contains(first), "{first}");
    }

    #[test]
    fn what_nobody_sealed_comes_first_and_at_once() {
        let mut all = segments(30);
        all[17].unverified = true;
        let found = Pace::default().next(5, PERIOD, &all);
        assert_eq!(found.map(|segment| segment.segment), Some(17));
    }

    #[test]
    fn a_time_of_rest_is_not_made_up_for() {
        let all = segments(300);
        let mut pace = Pace::default();
        assert_eq!(pace.next(0, PERIOD, &all), None);
        let mut at_once = 0;
        while pace.next(900, PERIOD, &all).is_some() {
            at_once += 1;
        }
        assert!((1..=3).contains(&at_once), "{at_once}");
        assert_eq!(pace.next(5000, 0, &all), None, "never");
        assert_eq!(pace.next(5000, PERIOD, &[]), None);
    }
}
