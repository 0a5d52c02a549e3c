//! How far a run is, on a terminal.

use std::io::IsTerminal;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::meter::Live;
use super::run::Settings;
use super::schedule::Extent;

/// How often the figures of the last moment are taken.
const RATE_EVERY: Duration = Duration::from_secs(1);

pub struct Progress {
    bar: ProgressBar,
    extent: Extent,
    started: Instant,
    /// When the rates were last taken, and the counts then.
    before: (Instant, u64, u64),
    rates: String,
}

impl Progress {
    /// Draws only on a terminal, and only when it may.
    pub fn new(settings: &Settings, quiet: bool) -> Progress {
        let bar = match quiet || !std::io::stderr().is_terminal() {
            true => ProgressBar::hidden(),
            false => ProgressBar::new(length(settings.extent)),
        };
        let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {msg}");
        bar.set_style(style.expect("a valid template"));
        let now = Instant::now();
        Progress {
            bar,
            extent: settings.extent,
            started: now,
            before: (now, 0, 0),
            rates: String::new(),
        }
    }

    pub fn show(&mut self, live: &Live) {
        if self.bar.is_hidden() {
            return;
        }
        let requests = live.requests.load(Ordering::Relaxed);
        let bytes = live.bytes.load(Ordering::Relaxed);
        let errors = live.errors.load(Ordering::Relaxed);
        let (at, requests_before, bytes_before) = self.before;
        let passed = at.elapsed();
        if passed >= RATE_EVERY {
            let per_second = |count: u64| count as f64 / passed.as_secs_f64();
            let rate = per_second(requests.saturating_sub(requests_before));
            let moved = per_second(bytes.saturating_sub(bytes_before)) / 1e6;
            self.rates = format!("{rate:.0} requests/s, {moved:.1} MB/s");
            self.before = (Instant::now(), requests, bytes);
        }
        let position = match self.extent {
            Extent::Requests(_) => requests,
            Extent::Time { .. } => self.started.elapsed().as_millis() as u64,
        };
        self.bar.set_position(position);
        let rates = &self.rates;
        self.bar
            .set_message(format!("{requests} requests, {errors} errors, {rates}"));
    }

    pub fn end(&self) {
        self.bar.finish_and_clear();
    }
}

fn length(extent: Extent) -> u64 {
    match extent {
        Extent::Requests(count) => count,
        Extent::Time { warmup, measured } => (warmup + measured).as_millis() as u64,
    }
}
