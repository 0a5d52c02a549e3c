//! Counters of one shard, added up over shards when somebody reads `/metrics`.
//!
//! Every label comes from a closed set, so the number of series is fixed. A shard only adds to
//! its own counters; reading them from the admin thread needs no lock (R8).

use std::fmt::Write;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use entrepot_storage::{Compaction, Usage, VolumeState, VolumeUsage};

use crate::config::Config;
use crate::gate::{Board, FIGURES};
use crate::upstream::Counters;

macro_rules! closed_set {
    ($name:ident { $($variant:ident => $label:literal),+ $(,)? }) => {
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($variant),+ }
        impl $name {
            pub const ALL: &'static [$name] = &[$($name::$variant),+];
            pub fn label(self) -> &'static str {
                match self { $($name::$variant => $label),+ }
            }
        }
    };
}

mod operations;

pub use operations::{Operations, RefreshResult, ReloadResult};

closed_set!(Kind {
    Base => "base",
    Tag => "tag",
    Manifest => "manifest",
    Blob => "blob",
    Listing => "listing",
    Other => "other",
});

closed_set!(Outcome {
    Hit => "hit",
    Miss => "miss",
    Collapsed => "collapsed",
    Revalidated => "revalidated",
    Stale => "stale",
    Error => "error",
    // The answer began and was not completed: the client left, or the body could not go on.
    Cut => "cut",
});

closed_set!(Counter {
    Connections => "entrepot_connections_total",
    Messages => "entrepot_messages_total",
    FillsVerified => "entrepot_fills_total{result=\"verified\"}",
    FillsFailed => "entrepot_fills_total{result=\"failed\"}",
    FillsStaged => "entrepot_fills_total{result=\"staged\"}",
    WrongDigests => "entrepot_wrong_digests_total",
    // Answers that went on with a body where another had broken, and the bytes of those that had
    // to begin at its start.
    FillResumes => "entrepot_fill_resumes_total",
    RepeatedBytes => "entrepot_fill_repeated_bytes_total",
    Relays => "entrepot_relays_total",
    // A response whose lease was revoked went on from where its body is now.
    Resumed => "entrepot_resumed_total",
    ServedSendfile => "entrepot_served_bytes_total{via=\"sendfile\"}",
    ServedMemory => "entrepot_served_bytes_total{via=\"memory\"}",
    ServedRelay => "entrepot_served_bytes_total{via=\"relay\"}",
});

closed_set!(Gauge {
    Connections => "entrepot_connections",
    FillsRunning => "entrepot_fills_running",
    Followers => "entrepot_followers",
});

const KINDS: usize = Kind::ALL.len();
const OUTCOMES: usize = Outcome::ALL.len();

/// One shard's counters.
#[derive(Default)]
pub struct Metrics {
    requests: [[AtomicU64; OUTCOMES]; KINDS],
    counters: [AtomicU64; Counter::ALL.len()],
    gauges: [AtomicU64; Gauge::ALL.len()],
    /// Kept by the shard's upstream client itself.
    upstream: OnceLock<Arc<Counters>>,
}

impl Metrics {
    pub fn request(&self, kind: Kind, outcome: Outcome) {
        self.requests[kind as usize][outcome as usize].fetch_add(1, Ordering::Relaxed);
    }

    pub fn count(&self, counter: Counter) {
        self.add(counter, 1);
    }

    pub fn add(&self, counter: Counter, by: u64) {
        self.counters[counter as usize].fetch_add(by, Ordering::Relaxed);
    }

    /// Shows the counters of the shard's upstream client from now on.
    pub fn show(&self, upstream: Arc<Counters>) {
        // A shard has one client.
        let _ = self.upstream.set(upstream);
    }

    /// Raises a gauge until the guard is dropped.
    pub fn hold(self: &Arc<Self>, gauge: Gauge) -> Held {
        self.gauges[gauge as usize].fetch_add(1, Ordering::Relaxed);
        Held {
            metrics: self.clone(),
            gauge,
        }
    }
}

/// A raised gauge; lowers it on drop.
pub struct Held {
    metrics: Arc<Metrics>,
    gauge: Gauge,
}

impl Drop for Held {
    fn drop(&mut self) {
        self.metrics.gauges[self.gauge as usize].fetch_sub(1, Ordering::Relaxed);
    }
}

/// What the store counts itself.
pub struct StoreFigures {
    pub usage: Usage,
    /// In the order of the configured paths.
    pub volumes: Vec<VolumeUsage>,
    pub compaction: Compaction,
}

/// The Prometheus text (format 0.0.4) of all shards together, with the store's figures.
pub fn render(
    shards: &[Arc<Metrics>],
    store: &StoreFigures,
    board: &Board,
    config: &Config,
    operations: &Operations,
    log_lines_dropped: u64,
) -> String {
    let mut page = Page::default();
    let sum = |pick: &dyn Fn(&Metrics) -> &AtomicU64| -> u64 {
        let values = shards
            .iter()
            .map(|shard| pick(shard).load(Ordering::Relaxed));
        values.sum()
    };
    for &kind in Kind::ALL {
        for &outcome in Outcome::ALL {
            let value = sum(&|shard| &shard.requests[kind as usize][outcome as usize]);
            let (kind, outcome) = (kind.label(), outcome.label());
            let name = format!("entrepot_requests_total{{kind=\"{kind}\",result=\"{outcome}\"}}");
            page.sample("counter", &name, value);
        }
    }
    for &counter in Counter::ALL {
        let value = sum(&|shard| &shard.counters[counter as usize]);
        page.sample("counter", counter.label(), value);
    }
    for &gauge in Gauge::ALL {
        let value = sum(&|shard| &shard.gauges[gauge as usize]);
        page.sample("gauge", gauge.label(), value);
    }
    let upstream = |pick: &dyn Fn(&Counters) -> u64| -> u64 {
        let counters = shards.iter().filter_map(|shard| shard.upstream.get());
        counters.map(|counters| pick(counters)).sum()
    };
    let requests = [
        ("GET", upstream(&|counters| counters.gets.get())),
        ("HEAD", upstream(&|counters| counters.heads.get())),
        ("token", upstream(&|counters| counters.token_requests.get())),
    ];
    for (method, value) in requests {
        let name = format!("entrepot_upstream_requests_total{{method=\"{method}\"}}");
        page.sample("counter", &name, value);
    }
    let others = [
        (
            "entrepot_upstream_redirects_total",
            upstream(&|counters| counters.redirects.get()),
        ),
        (
            "entrepot_upstream_retries_total",
            upstream(&|counters| counters.retries.get()),
        ),
        (
            "entrepot_upstream_connections_total",
            upstream(&|counters| counters.connections.get()),
        ),
        (
            "entrepot_upstream_bytes_total",
            upstream(&|counters| counters.body_bytes.get()),
        ),
    ];
    page.sample(
        "counter",
        "entrepot_log_lines_dropped_total",
        log_lines_dropped,
    );
    for (name, value) in others {
        page.sample("counter", name, value);
    }
    let usage = &store.usage;
    let gauges = [
        ("entrepot_store_capacity_bytes", usage.capacity),
        ("entrepot_store_used_bytes", usage.used),
        ("entrepot_store_staging_bytes", usage.staging),
        ("entrepot_store_uncommitted_bytes", usage.uncommitted_bytes),
        (
            "entrepot_store_uncommitted_records",
            usage.uncommitted_records,
        ),
        ("entrepot_store_segments", usage.segments),
        ("entrepot_store_bodies", usage.bodies),
        ("entrepot_store_tags", usage.tags),
        ("entrepot_store_links", usage.links),
        ("entrepot_store_quarantined_segments", usage.quarantined),
        ("entrepot_projects", config.projects.len() as u64),
        ("entrepot_shards", shards.len() as u64),
    ];
    for (name, value) in gauges {
        page.sample("gauge", name, value);
    }
    page.operations(operations);
    page.upstreams(board);
    page.volumes(&config.store.paths, &store.volumes);
    let evicted = [
        ("idle", usage.evicted_idle),
        ("pressure", usage.evicted_pressure),
        ("room", usage.evicted_room),
    ];
    for (cause, evicted) in &evicted {
        let name = format!("entrepot_store_evicted_bodies_total{{cause=\"{cause}\"}}");
        page.sample("counter", &name, evicted.bodies);
    }
    for (cause, evicted) in &evicted {
        let name = format!("entrepot_store_evicted_bytes_total{{cause=\"{cause}\"}}");
        page.sample("counter", &name, evicted.bytes);
    }
    page.sample(
        "counter",
        "entrepot_store_evicted_records_total",
        usage.evicted_records,
    );
    let compaction = &store.compaction;
    let counters = [
        (
            "entrepot_compaction_read_bytes_total",
            compaction.read_bytes,
        ),
        (
            "entrepot_compaction_written_bytes_total",
            compaction.written_bytes,
        ),
        ("entrepot_compaction_segments_total", compaction.segments),
        ("entrepot_compaction_failed_total", compaction.failed),
        (
            "entrepot_scrub_segments_total",
            compaction.scrubbed_segments,
        ),
        ("entrepot_scrub_bytes_total", compaction.scrubbed_bytes),
        ("entrepot_store_mismatches_total", compaction.mismatches),
        (
            "entrepot_store_unlisted_segments_total",
            compaction.unlisted_segments,
        ),
    ];
    for (name, value) in counters {
        page.sample("counter", name, value);
    }
    page.text
}

/// A figure of a volume: its type, its name, where it is found.
type VolumeFigure = (&'static str, &'static str, fn(&VolumeUsage) -> u64);

const VOLUME_FIGURES: [VolumeFigure; 11] = [
    ("gauge", "online", |volume| {
        u64::from(volume.state == VolumeState::Online)
    }),
    ("gauge", "capacity_bytes", |volume| volume.capacity),
    ("gauge", "used_bytes", |volume| volume.used),
    ("gauge", "live_bytes", |volume| volume.live),
    ("gauge", "dead_bytes", |volume| volume.dead),
    ("gauge", "pinned_bytes", |volume| volume.pinned),
    ("gauge", "oldest_pin_seconds", |volume| volume.oldest_pin_s),
    ("gauge", "staging_bytes", |volume| volume.staging),
    ("gauge", "segments", |volume| volume.segments),
    ("counter", "quarantined_total", |volume| volume.quarantined),
    ("counter", "revoked_total", |volume| volume.revoked),
];

/// Samples, each family after a line that says its type.
#[derive(Default)]
struct Page {
    text: String,
    family: String,
}

impl Page {
    fn sample(&mut self, of: &str, name: &str, value: u64) {
        let family = name.split('{').next().unwrap_or(name);
        if family != self.family {
            // Writing to a String does not fail.
            let _ = writeln!(self.text, "# TYPE {family} {of}");
            self.family = family.to_owned();
        }
        let _ = writeln!(self.text, "{name} {value}");
    }

    /// The state of the gates. Ids tell apart two upstreams of one project with one origin.
    fn upstreams(&mut self, board: &Board) {
        let shown = board.shown();
        for (figure, of, family) in FIGURES {
            for (id, levels) in &*shown {
                let (project, origin) = (&levels.name().project, &levels.name().origin);
                let (project, origin, id) = (label(project), label(origin), id.0);
                let labels = format!("project=\"{project}\",upstream=\"{origin}\",id=\"{id}\"");
                let name = format!("{family}{{{labels}}}");
                self.sample(of, &name, levels.get(*figure));
            }
        }
    }

    fn volumes(&mut self, paths: &[PathBuf], volumes: &[VolumeUsage]) {
        for (of, figure, value) in VOLUME_FIGURES {
            for (path, volume) in paths.iter().zip(volumes) {
                let path = label(&path.display().to_string());
                let name = format!("entrepot_volume_{figure}{{volume=\"{path}\"}}");
                self.sample(of, &name, value(volume));
            }
        }
    }
}

/// As the value of a label is written.
fn label(text: &str) -> String {
    let escaped = text.replace('\\', r"\\").replace('"', r#"\""#);
    escaped.replace('\n', r"\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique_and_every_family_is_typed_once() {
        let home = |name: &str| (name == "HOME").then(|| "/nonexistent".to_owned());
        let loaded = crate::config::load(&crate::config::Sources::default(), &home);
        let config = loaded.expect("an empty configuration is valid").config;
        let shard: Arc<Metrics> = Arc::default();
        shard.request(Kind::Blob, Outcome::Hit);
        let store = StoreFigures {
            usage: Usage::default(),
            volumes: Vec::new(),
            compaction: Compaction::default(),
        };
        let text = render(
            &[shard.clone(), shard],
            &store,
            &Board::default(),
            &config,
            &Operations::default(),
            0,
        );
        let mut seen = std::collections::HashSet::new();
        for line in text.lines() {
            let name = match line.strip_prefix("# TYPE ") {
                Some(typed) => typed,
                None => line.rsplit_once(' ').expect("a name and a value").0,
            };
            assert!(seen.insert(name), "{line} is there twice");
        }
        assert!(text.contains("entrepot_requests_total{kind=\"blob\",result=\"hit\"} 2\n"));
    }

    #[test]
    fn a_path_is_escaped_as_a_label() {
        assert_eq!(label("/srv/a"), "/srv/a");
        assert_eq!(label("a\"b\\c\nd"), r#"a\"b\\c\nd"#);
    }
}
