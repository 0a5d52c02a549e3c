//! What a run measured, as text or JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

/// Of latencies: three digits.
const PRECISION: u8 = 3;
/// Longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    Connect,
    /// The connection ended before the answer began.
    Reset,
    /// It ended within the body.
    Truncated,
    Timeout,
    /// A status other than 2xx.
    Status,
    /// Not HTTP/1.x, or more bytes than promised.
    Head,
    Digest,
}

impl ErrorClass {
    const ALL: [ErrorClass; 7] = [
        ErrorClass::Connect,
        ErrorClass::Reset,
        ErrorClass::Truncated,
        ErrorClass::Timeout,
        ErrorClass::Status,
        ErrorClass::Head,
        ErrorClass::Digest,
    ];

    fn name(self) -> &'static str {
        match self {
            ErrorClass::Connect => "connect",
            ErrorClass::Reset => "reset",
            ErrorClass::Truncated => "truncated",
            ErrorClass::Timeout => "timeout",
            ErrorClass::Status => "status",
            ErrorClass::Head => "head",
            ErrorClass::Digest => "digest",
        }
    }
}

pub struct Report {
    pub url: String,
    pub connections: usize,
    pub requests: u64,
    pub bytes: u64,
    pub took: Duration,
    pub client_cpu: Duration,
    latency: Histogram<u64>,
    first_byte: Histogram<u64>,
    /// Of each connection's first answer.
    pub first_bytes: Vec<Option<Duration>>,
    errors: BTreeMap<ErrorClass, u64>,
    statuses: BTreeMap<u16, u64>,
}

impl Report {
    pub fn new(url: &str, connections: usize) -> Report {
        let longest = LATENCY_MAX.as_nanos() as u64;
        let empty = || Histogram::new_with_max(longest, PRECISION).expect("bounds in range");
        Report {
            url: url.to_owned(),
            connections,
            requests: 0,
            bytes: 0,
            took: Duration::ZERO,
            client_cpu: Duration::ZERO,
            latency: empty(),
            first_byte: empty(),
            first_bytes: vec![None; connections],
            errors: BTreeMap::new(),
            statuses: BTreeMap::new(),
        }
    }

    /// Forgets the warm-up, but for the connections' first answers.
    pub fn restart(&mut self) {
        let first_bytes = std::mem::take(&mut self.first_bytes);
        *self = Report {
            first_bytes,
            ..Report::new(&self.url, self.connections)
        };
    }

    pub fn answered(&mut self, status: u16, latency: Duration, first_byte: Duration) {
        self.requests += 1;
        *self.statuses.entry(status).or_default() += 1;
        record(&mut self.latency, latency);
        record(&mut self.first_byte, first_byte);
    }

    pub fn failed(&mut self, class: ErrorClass) {
        *self.errors.entry(class).or_default() += 1;
    }

    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    fn gb_per_s(&self) -> f64 {
        self.bytes as f64 / 1e9 / self.took.as_secs_f64()
    }

    fn requests_per_s(&self) -> f64 {
        self.requests as f64 / self.took.as_secs_f64()
    }

    fn client_share(&self) -> f64 {
        self.client_cpu.as_secs_f64() / self.took.as_secs_f64()
    }

    pub fn json(&self) -> Value {
        let count = |class: ErrorClass| self.errors.get(&class).copied().unwrap_or(0);
        let errors: BTreeMap<_, _> = ErrorClass::ALL
            .iter()
            .map(|class| (class.name(), count(*class)))
            .collect();
        let first_bytes: Vec<Option<f64>> = self
            .first_bytes
            .iter()
            .map(|time| time.map(|time| ms(time.as_nanos() as u64)))
            .collect();
        json!({
            "url": self.url,
            "connections": self.connections,
            "requests": self.requests,
            "bytes": self.bytes,
            "seconds": self.took.as_secs_f64(),
            "gb_per_s": self.gb_per_s(),
            "requests_per_s": self.requests_per_s(),
            "latency_ms": quantiles(&self.latency),
            "first_byte_ms": quantiles(&self.first_byte),
            "first_bytes_ms": first_bytes,
            "errors": errors,
            "statuses": self.statuses,
            "client_cpu_s": self.client_cpu.as_secs_f64(),
            "client_cpu_share": self.client_share(),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        writeln!(f, "{} on {} connections", self.url, self.connections)?;
        writeln!(
            f,
            "requests   {} in {seconds:.2} s, {:.0} per second",
            self.requests,
            self.requests_per_s()
        )?;
        writeln!(f, "bytes      {}, {:.3} GB/s", self.bytes, self.gb_per_s())?;
        for (name, times) in [("latency", &self.latency), ("first byte", &self.first_byte)] {
            let [p50, p90, p99, max] = marks(times).map(ms);
            writeln!(
                f,
                "{name:<10} p50 {p50:.3} ms, p90 {p90:.3}, p99 {p99:.3}, max {max:.3}"
            )?;
        }
        write!(f, "errors     {}", self.errors())?;
        for (class, count) in &self.errors {
            write!(f, ", {} {count}", class.name())?;
        }
        writeln!(f)?;
        for (status, count) in &self.statuses {
            writeln!(f, "status     {status}: {count}")?;
        }
        let cpu = self.client_cpu.as_secs_f64();
        write!(
            f,
            "client     {cpu:.2} CPU s, {:.0} % of the time",
            100.0 * self.client_share()
        )
    }
}

fn record(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(time.as_nanos() as u64);
}

fn marks(times: &Histogram<u64>) -> [u64; 4] {
    [
        times.value_at_quantile(0.5),
        times.value_at_quantile(0.9),
        times.value_at_quantile(0.99),
        times.max(),
    ]
}

fn quantiles(times: &Histogram<u64>) -> Value {
    let [p50, p90, p99, max] = marks(times).map(ms);
    json!({"p50": p50, "p90": p90, "p99": p99, "max": max})
}

fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
