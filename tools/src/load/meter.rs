//! What one thread counts, and how the counts of all threads become one.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

use super::series::{Second, Series};

/// Of latencies: three digits.
const PRECISION: u8 = 3;
/// Longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(3600);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ErrorClass {
    /// Nobody took the connection.
    Connect,
    Tls,
    /// The connection ended before the answer began.
    Reset,
    /// It ended within the body.
    Truncated,
    /// No progress, or not done by the end of the run.
    Timeout,
    /// A status other than 2xx.
    Status,
    /// Not HTTP/1.x, or more bytes than promised.
    Head,
    Digest,
    /// A challenge that cannot be answered, or no token for it.
    Token,
    /// One too many, or to nowhere.
    Redirect,
    /// A manifest that is none, or not for the platform.
    Manifest,
}

impl ErrorClass {
    pub const ALL: [ErrorClass; 11] = [
        ErrorClass::Connect,
        ErrorClass::Tls,
        ErrorClass::Reset,
        ErrorClass::Truncated,
        ErrorClass::Timeout,
        ErrorClass::Status,
        ErrorClass::Head,
        ErrorClass::Digest,
        ErrorClass::Token,
        ErrorClass::Redirect,
        ErrorClass::Manifest,
    ];

    pub fn name(self) -> &'static str {
        match self {
            ErrorClass::Connect => "connect",
            ErrorClass::Tls => "tls",
            ErrorClass::Reset => "reset",
            ErrorClass::Truncated => "truncated",
            ErrorClass::Timeout => "timeout",
            ErrorClass::Status => "status",
            ErrorClass::Head => "head",
            ErrorClass::Digest => "digest",
            ErrorClass::Token => "token",
            ErrorClass::Redirect => "redirect",
            ErrorClass::Manifest => "manifest",
        }
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// `/v2/`
    Ping,
    /// A manifest's HEAD.
    Head,
    Manifest,
    Config,
    Blob,
    Other,
    /// Of a token server; not one of the requests.
    Token,
    /// A whole pull; not one of the requests.
    Image,
}

impl Kind {
    pub const ALL: [Kind; 8] = [
        Kind::Ping,
        Kind::Head,
        Kind::Manifest,
        Kind::Config,
        Kind::Blob,
        Kind::Other,
        Kind::Token,
        Kind::Image,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Ping => "ping",
            Kind::Head => "head",
            Kind::Manifest => "manifest",
            Kind::Config => "config",
            Kind::Blob => "blob",
            Kind::Other => "other",
            Kind::Token => "token",
            Kind::Image => "image",
        }
    }

    pub fn is_request(self) -> bool {
        !matches!(self, Kind::Token | Kind::Image)
    }
}

/// Latencies of one kind.
#[derive(Clone)]
pub struct Times {
    pub latency: Histogram<u64>,
    pub first_byte: Histogram<u64>,
}

impl Default for Times {
    fn default() -> Times {
        let longest = LATENCY_MAX.as_nanos() as u64;
        let empty = || Histogram::new_with_max(longest, PRECISION).expect("bounds in range");
        Times {
            latency: empty(),
            first_byte: empty(),
        }
    }
}

impl Times {
    fn record(&mut self, latency: Duration, first_byte: Duration) {
        self.latency.saturating_record(latency.as_nanos() as u64);
        let first_byte = first_byte.as_nanos() as u64;
        self.first_byte.saturating_record(first_byte);
    }

    /// Exact: the histograms have the same buckets.
    pub fn add(&mut self, other: &Times) {
        let same = "histograms of the same bounds";
        self.latency.add(&other.latency).expect(same);
        self.first_byte.add(&other.first_byte).expect(same);
    }
}

/// Counts of one thread or, added up, of all.
#[derive(Clone, Default)]
pub struct Counts {
    pub bytes: u64,
    pub kinds: BTreeMap<Kind, Times>,
    pub errors: BTreeMap<ErrorClass, u64>,
    pub statuses: BTreeMap<u16, u64>,
    pub redirects: u64,
    /// Pulls of which something failed.
    pub images_failed: u64,
    /// Connections that a server closed while nobody used them.
    pub reconnects: u64,
    pub series: Vec<Second>,
}

impl Counts {
    pub fn add(&mut self, other: &Counts) {
        self.bytes += other.bytes;
        self.redirects += other.redirects;
        self.images_failed += other.images_failed;
        self.reconnects += other.reconnects;
        for (kind, times) in &other.kinds {
            self.kinds.entry(*kind).or_default().add(times);
        }
        for (class, count) in &other.errors {
            *self.errors.entry(*class).or_default() += count;
        }
        for (status, count) in &other.statuses {
            *self.statuses.entry(*status).or_default() += count;
        }
        Second::add_all(&mut self.series, &other.series);
    }
}

/// What a run shows while it goes on; written about ten times a second.
#[derive(Default)]
pub struct Live {
    pub requests: AtomicU64,
    pub bytes: AtomicU64,
    pub errors: AtomicU64,
}

/// The counters of one thread, within reach of all its tasks.
pub struct Meter {
    bytes: Cell<u64>,
    requests: Cell<u64>,
    failures: Cell<u64>,
    /// By `Kind`; those that occur.
    kinds: RefCell<[Option<Box<Times>>; Kind::ALL.len()]>,
    rest: RefCell<Counts>,
    series: RefCell<Series>,
    /// Of each client's first answer.
    first_bytes: RefCell<Vec<Option<Duration>>>,
    live: Arc<Live>,
    due_from: Cell<Option<Instant>>,
    /// What `live` was told already.
    told: Cell<[u64; 3]>,
}

/// When a request was asked and answered.
#[derive(Clone, Copy, Debug)]
pub struct Sample {
    pub kind: Kind,
    pub status: u16,
    pub asked_at: Instant,
    pub first_byte_at: Instant,
    pub done_at: Instant,
}

impl Meter {
    pub fn new(clients: usize, live: Arc<Live>) -> Meter {
        Meter {
            bytes: Cell::new(0),
            requests: Cell::new(0),
            failures: Cell::new(0),
            kinds: RefCell::default(),
            rest: RefCell::default(),
            series: RefCell::new(Series::new(Instant::now())),
            first_bytes: RefCell::new(vec![None; clients]),
            live,
            due_from: Cell::new(None),
            told: Cell::default(),
        }
    }

    /// Forgets the warm-up, but for the clients' first answers. What was due before `due_from` is
    /// not counted from now on.
    pub fn restart(&self, now: Instant, due_from: Option<Instant>) {
        self.due_from.set(due_from);
        self.publish(now);
        self.bytes.set(0);
        self.requests.set(0);
        self.failures.set(0);
        self.told.set([0; 3]);
        self.kinds.take();
        self.rest.take();
        *self.series.borrow_mut() = Series::new(now);
    }

    pub fn add_bytes(&self, len: u64) {
        self.bytes.set(self.bytes.get() + len);
    }

    pub fn answered(&self, sample: &Sample) {
        if self
            .due_from
            .get()
            .is_some_and(|from| sample.asked_at < from)
        {
            return;
        }
        let latency = sample.done_at.saturating_duration_since(sample.asked_at);
        let first_byte = sample.first_byte_at;
        let first_byte = first_byte.saturating_duration_since(sample.asked_at);
        let mut kinds = self.kinds.borrow_mut();
        let times = kinds[sample.kind as usize].get_or_insert_default();
        times.record(latency, first_byte);
        if sample.kind.is_request() {
            self.requests.set(self.requests.get() + 1);
            *self
                .rest
                .borrow_mut()
                .statuses
                .entry(sample.status)
                .or_default() += 1;
            let mut series = self.series.borrow_mut();
            series.record(sample.done_at, latency, self.bytes.get());
        }
    }

    /// The first answer of a client, if it is one.
    pub fn first_answer(&self, client: usize, first_byte: Duration) {
        self.first_bytes.borrow_mut()[client].get_or_insert(first_byte);
    }

    pub fn failed(&self, class: ErrorClass, at: Instant) {
        self.failures.set(self.failures.get() + 1);
        *self.rest.borrow_mut().errors.entry(class).or_default() += 1;
        self.series.borrow_mut().failed(at, self.bytes.get());
    }

    pub fn redirected(&self) {
        self.rest.borrow_mut().redirects += 1;
    }

    pub fn image_failed(&self) {
        self.rest.borrow_mut().images_failed += 1;
    }

    pub fn reconnected(&self) {
        self.rest.borrow_mut().reconnects += 1;
    }

    /// Tells those who watch, and the series.
    pub fn publish(&self, now: Instant) {
        self.series.borrow_mut().turn(now, self.bytes.get());
        let counted = [self.requests.get(), self.bytes.get(), self.failures.get()];
        let told = self.told.replace(counted);
        let live = [&self.live.requests, &self.live.bytes, &self.live.errors];
        for ((counter, counted), told) in live.into_iter().zip(counted).zip(told) {
            counter.fetch_add(counted - told, Ordering::Relaxed);
        }
    }

    pub fn finish(self) -> (Counts, Vec<Option<Duration>>) {
        let mut counts = self.rest.into_inner();
        counts.bytes = self.bytes.get();
        counts.series = self.series.into_inner().finish(counts.bytes);
        let kinds = Kind::ALL.into_iter().zip(self.kinds.into_inner());
        for (kind, times) in kinds {
            if let Some(times) = times {
                counts.kinds.insert(kind, *times);
            }
        }
        (counts, self.first_bytes.into_inner())
    }
}
