//! A run second by second.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Two digits are enough for a plot.
const PRECISION: u8 = 2;
/// Longer ones count as this.
const LATENCY_MAX_US: u64 = 3_600_000_000;
/// Later ones count to the last: the series of a longer run would not fit a page anyway.
const SECONDS_MAX: usize = 24 * 3600;

/// Its latencies are kept by value in microseconds: few differ within a second.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Second {
    pub requests: u64,
    pub bytes: u64,
    pub errors: u64,
    latencies_us: BTreeMap<u64, u64>,
}

impl Second {
    /// Adds the seconds of another thread, one by one.
    pub fn add_all(to: &mut Vec<Second>, other: &[Second]) {
        if to.len() < other.len() {
            to.resize_with(other.len(), Second::default);
        }
        for (second, other) in to.iter_mut().zip(other) {
            second.requests += other.requests;
            second.bytes += other.bytes;
            second.errors += other.errors;
            for (value, count) in &other.latencies_us {
                *second.latencies_us.entry(*value).or_default() += count;
            }
        }
    }

    /// In microseconds; 1 is the maximum.
    pub fn quantile(&self, quantile: f64) -> u64 {
        let total: u64 = self.latencies_us.values().sum();
        let rank = ((total as f64 * quantile).ceil() as u64).max(1);
        let mut seen = 0;
        for (value, count) in &self.latencies_us {
            seen += count;
            if seen >= rank {
                return *value;
            }
        }
        0
    }
}

pub struct Series {
    started: Instant,
    seconds: Vec<Second>,
    /// The second that is counted now.
    index: usize,
    now: Second,
    latencies: Histogram<u64>,
    /// All bytes before this second.
    bytes_before: u64,
}

impl Series {
    pub fn new(started: Instant) -> Series {
        let latencies = Histogram::new_with_max(LATENCY_MAX_US, PRECISION);
        Series {
            started,
            seconds: Vec::new(),
            index: 0,
            now: Second::default(),
            latencies: latencies.expect("bounds in range"),
            bytes_before: 0,
        }
    }

    /// `bytes` is what all requests have moved so far.
    pub fn record(&mut self, at: Instant, latency: Duration, bytes: u64) {
        self.turn(at, bytes);
        self.now.requests += 1;
        let latency = latency.as_micros() as u64;
        self.latencies.saturating_record(latency);
    }

    pub fn failed(&mut self, at: Instant, bytes: u64) {
        self.turn(at, bytes);
        self.now.errors += 1;
    }

    /// Goes on to the second of `at`.
    pub fn turn(&mut self, at: Instant, bytes: u64) {
        let second = at.saturating_duration_since(self.started).as_secs() as usize;
        let second = second.min(SECONDS_MAX - 1);
        if second > self.index {
            self.close(bytes);
            self.index = second;
            self.seconds.resize_with(second, Second::default);
        }
    }

    fn close(&mut self, bytes: u64) {
        let mut done = std::mem::take(&mut self.now);
        done.bytes = bytes - self.bytes_before;
        self.bytes_before = bytes;
        let recorded = self.latencies.iter_recorded();
        done.latencies_us = recorded
            .map(|value| (value.value_iterated_to(), value.count_at_value()))
            .collect();
        self.latencies.reset();
        self.seconds.push(done);
    }

    pub fn finish(mut self, bytes: u64) -> Vec<Second> {
        self.close(bytes);
        self.seconds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_stand_where_they_were() {
        let started = Instant::now();
        let mut series = Series::new(started);
        let at = |ms| started + Duration::from_millis(ms);
        series.record(at(10), Duration::from_millis(10), 100);
        series.record(at(20), Duration::from_millis(30), 200);
        series.record(at(2_500), Duration::from_millis(5), 700);
        series.failed(at(2_600), 700);
        let seconds = series.finish(900);
        let counts: Vec<_> = seconds
            .iter()
            .map(|second| (second.requests, second.bytes, second.errors))
            .collect();
        // What moved before the next one was counted belongs to the second before it.
        assert_eq!(counts, [(2, 700, 0), (0, 0, 0), (1, 200, 1)]);
        let near = |found: u64, expected: u64| found.abs_diff(expected) * 50 <= expected;
        assert!(near(seconds[0].quantile(0.5), 10_000));
        assert!(near(seconds[0].quantile(1.0), 30_000));
        assert_eq!(seconds[1].quantile(0.5), 0);
        let mut sum = seconds.clone();
        Second::add_all(&mut sum, &seconds);
        assert_eq!((sum[2].requests, sum[2].errors), (2, 2));
        assert!(near(sum[0].quantile(0.5), 10_000));
    }
}
