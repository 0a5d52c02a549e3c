//! What a run measured, as text or JSON.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde_json::{Map, Value, json};

use super::meter::{Counts, ErrorClass, Kind, Times};
use super::run::Outcome;

/// By name and quantile.
pub const MARKS: [(&str, f64); 5] = [
    ("p50", 0.5),
    ("p90", 0.9),
    ("p99", 0.99),
    ("p99.9", 0.999),
    ("p99.99", 0.9999),
];

pub struct Report {
    /// What was asked for, in one line.
    pub title: String,
    pub url: String,
    pub connections: usize,
    /// The command line's settings, for who reads the report later.
    pub settings: Vec<(&'static str, String)>,
    pub took: Duration,
    pub client_cpu: Duration,
    pub first_bytes: Vec<Option<Duration>>,
    pub counts: Counts,
    /// All requests together.
    pub all: Times,
    /// What only this command knows.
    pub more: Map<String, Value>,
}

impl Report {
    pub fn new(title: String, url: &str, connections: usize, outcome: Outcome) -> Report {
        let mut all = Times::default();
        for (kind, times) in &outcome.counts.kinds {
            if kind.is_request() {
                all.add(times);
            }
        }
        Report {
            title,
            url: url.to_owned(),
            connections,
            settings: Vec::new(),
            took: outcome.took,
            client_cpu: outcome.client_cpu,
            first_bytes: outcome.first_bytes,
            counts: outcome.counts,
            all,
            more: Map::new(),
        }
    }

    pub fn requests(&self) -> u64 {
        self.all.latency.len()
    }

    pub fn errors(&self) -> u64 {
        self.counts.errors.values().sum()
    }

    pub fn gb_per_s(&self) -> f64 {
        self.per_second(self.counts.bytes) / 1e9
    }

    pub fn requests_per_s(&self) -> f64 {
        self.per_second(self.requests())
    }

    fn per_second(&self, count: u64) -> f64 {
        match self.took.is_zero() {
            true => 0.0,
            false => count as f64 / self.took.as_secs_f64(),
        }
    }

    fn client_share(&self) -> f64 {
        match self.took.is_zero() {
            true => 0.0,
            false => self.client_cpu.as_secs_f64() / self.took.as_secs_f64(),
        }
    }

    /// Whole pulls, when there were some.
    pub fn images(&self) -> Option<&Times> {
        self.counts.kinds.get(&Kind::Image)
    }

    pub fn json(&self) -> Value {
        let count = |class: &ErrorClass| self.counts.errors.get(class).copied().unwrap_or(0);
        let errors: BTreeMap<_, _> = ErrorClass::ALL
            .iter()
            .map(|class| (class.name(), count(class)))
            .collect();
        let first_bytes: Vec<Option<f64>> = self
            .first_bytes
            .iter()
            .map(|time| time.map(|time| ms(time.as_nanos() as u64)))
            .collect();
        let kinds: BTreeMap<_, _> = self
            .counts
            .kinds
            .iter()
            .map(|(kind, times)| (kind.name(), kind_json(times)))
            .collect();
        let settings: Map<String, Value> = self
            .settings
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone().into()))
            .collect();
        let mut object = json!({
            "url": self.url,
            "connections": self.connections,
            "requests": self.requests(),
            "bytes": self.counts.bytes,
            "seconds": self.took.as_secs_f64(),
            "gb_per_s": self.gb_per_s(),
            "requests_per_s": self.requests_per_s(),
            "latency_ms": quantiles(&self.all.latency),
            "first_byte_ms": quantiles(&self.all.first_byte),
            "first_bytes_ms": first_bytes,
            "errors": errors,
            "statuses": self.counts.statuses,
            "redirects": self.counts.redirects,
            "images_failed": self.counts.images_failed,
            "reconnects": self.counts.reconnects,
            "client_cpu_s": self.client_cpu.as_secs_f64(),
            "client_cpu_share": self.client_share(),
            "kinds": kinds,
            "series": self.series_json(),
            "settings": settings,
        });
        let all = object.as_object_mut().expect("made as one");
        all.extend(self.more.clone());
        object
    }

    /// One array for each column: a run of hours stays readable.
    fn series_json(&self) -> Value {
        let series = &self.counts.series;
        let column = |of: &dyn Fn(&super::series::Second) -> f64| -> Vec<f64> {
            series.iter().map(of).collect()
        };
        let quantile = |quantile: f64| column(&|second| second.quantile(quantile) as f64 / 1e3);
        json!({
            "requests": column(&|second| second.requests as f64),
            "bytes": column(&|second| second.bytes as f64),
            "errors": column(&|second| second.errors as f64),
            "p50_ms": quantile(0.5),
            "p99_ms": quantile(0.99),
            "max_ms": quantile(1.0),
        })
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.took.as_secs_f64();
        writeln!(f, "{}", self.title)?;
        let requests = self.requests();
        let rate = self.requests_per_s();
        writeln!(
            f,
            "requests   {requests} in {seconds:.2} s, {rate:.0} per second"
        )?;
        let bytes = self.counts.bytes;
        writeln!(f, "bytes      {bytes}, {:.3} GB/s", self.gb_per_s())?;
        let failed = self.counts.images_failed;
        let whole = self.images().map_or(0, |times| times.latency.len());
        if whole + failed > 0 {
            let rate = self.per_second(whole);
            writeln!(
                f,
                "images     {whole} whole, {rate:.2} per second; {failed} failed"
            )?;
        }
        write_times(f, "latency", &self.all.latency)?;
        write_times(f, "first byte", &self.all.first_byte)?;
        if self.counts.kinds.len() > 1 {
            for (kind, times) in &self.counts.kinds {
                write_times(f, &format!("  {}", kind.name()), &times.latency)?;
            }
        }
        write!(f, "errors     {}", self.errors())?;
        for (class, count) in &self.counts.errors {
            write!(f, ", {} {count}", class.name())?;
        }
        writeln!(f)?;
        for (status, count) in &self.counts.statuses {
            writeln!(f, "status     {status}: {count}")?;
        }
        let Counts {
            redirects,
            reconnects,
            ..
        } = self.counts;
        if redirects + reconnects > 0 {
            writeln!(
                f,
                "besides    redirects {redirects}, reconnects {reconnects}"
            )?;
        }
        for (name, value) in &self.more {
            writeln!(f, "{name:<10} {value}")?;
        }
        let cpu = self.client_cpu.as_secs_f64();
        let share = 100.0 * self.client_share();
        write!(f, "client     {cpu:.2} CPU s, {share:.0} % of the time")
    }
}

fn write_times(f: &mut fmt::Formatter<'_>, name: &str, times: &Histogram<u64>) -> fmt::Result {
    write!(f, "{name:<10}")?;
    for (index, (mark, quantile)) in MARKS.iter().enumerate() {
        let value = ms(times.value_at_quantile(*quantile));
        let unit = if index == 0 { " ms" } else { "" };
        write!(f, " {mark} {value:.3}{unit},")?;
    }
    writeln!(f, " max {:.3}", ms(times.max()))
}

fn kind_json(times: &Times) -> Value {
    json!({
        "requests": times.latency.len(),
        "latency_ms": quantiles(&times.latency),
        "first_byte_ms": quantiles(&times.first_byte),
    })
}

fn quantiles(times: &Histogram<u64>) -> Value {
    let marks = MARKS.iter().map(|(name, quantile)| {
        let value = ms(times.value_at_quantile(*quantile));
        ((*name).to_owned(), value.into())
    });
    let mut object: Map<String, Value> = marks.collect();
    object.insert("max".to_owned(), ms(times.max()).into());
    object.insert("mean".to_owned(), (times.mean() / 1e6).into());
    object.into()
}

/// Milliseconds of nanoseconds.
pub fn ms(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}
