//! The configuration: what an operator may say, checked before anything starts.
//!
//! `cli` collects the sources (file, flags, `--set`) and calls [`load`]; the rest of the server
//! sees only the plain values below. Every value has a default, so an empty file is a valid one.
//! A key exists only if something enforces it. Nothing here opens sockets or touches the store.

mod credentials;
pub mod error;
mod load;
mod patterns;
mod print;
mod project;
mod proxy;
mod restart;
mod section;
mod socket;
#[cfg(test)]
mod tests;
mod tree;
pub mod units;
mod upstream;
pub mod url;

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

pub use credentials::{FileError, load_identity, reread};
pub use error::{Cause, Place, Problem, Problems};
pub use load::{Flag, FlagValue, Loaded, SHARDS_MAX, Sources, load, load_again};
pub use patterns::Patterns;
pub use print::print;
pub use proxy::{Proxies, Proxy};
pub use restart::needing_restart;
pub use socket::control_socket;
pub use upstream::{IdentityFiles, Upstream};
pub use url::{Scheme, Url};

#[derive(Clone, Debug)]
pub struct Config {
    /// Where clients pull; never empty.
    pub listen: Vec<SocketAddr>,
    /// Metrics and health; never on the data port.
    pub admin: SocketAddr,
    /// The Unix socket for purges and volumes; short enough for an address.
    pub control: PathBuf,
    /// Shard threads; `None` is one per core.
    pub shards: Option<usize>,
    pub congestion_control: CongestionControl,
    pub log: Log,
    pub store: StoreConfig,
    pub limits: Limits,
    /// In the order of the file.
    pub projects: Vec<Project>,
}

/// What paces the sockets of clients (tcp(7), `TCP_CONGESTION`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CongestionControl {
    /// `cubic`, where the kernel permits it: bbr paces by timers, and on loopback 1 MiB bodies got
    /// half as much with it.
    Preferred,
    /// What the machine has for all sockets.
    System,
    Named(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    pub format: LogFormat,
    /// A tracing filter: `info`, or `info,entrepot::upstream=debug`.
    pub level: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Clone, Debug)]
pub struct StoreConfig {
    /// One directory for each disk, at least one and no two the same.
    pub paths: Vec<PathBuf>,
    /// Of each path.
    pub capacity: Capacity,
    /// Bytes of one segment; `None` lets the store choose by its capacity.
    pub segment: Option<u64>,
    /// A body at least this long gets a segment of its own; `None` lets the store choose.
    pub solo_min: Option<u64>,
    /// Bodies up to this long are also held in memory.
    pub small_max: u64,
    /// How much memory those may take together.
    pub small_budget: u64,
    /// A layer that nobody asked for this long is evicted. Time in which the server runs.
    pub idle_after: Duration,
    /// The same for bodies up to `small_max`, tags and links.
    pub small_idle_after: Duration,
    /// How long reading and checking all bodies once may take.
    pub scrub_every: Duration,
    /// Bytes a second that compaction and scrub may read and write together.
    pub background_rate: u64,
    /// A reader of what is evicted already is cut off after this long, sooner if room is needed.
    pub pin_max: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Capacity {
    /// Of the file system that holds the store; more than 0, at most 100.
    Percent(f64),
    Bytes(u64),
}

impl Capacity {
    /// The budget in bytes on a file system of `file_system_len` bytes.
    pub fn bytes(self, file_system_len: u64) -> u64 {
        match self {
            // f64 is exact to 2^53 bytes (8 PiB), and a budget needs no last byte.
            Capacity::Percent(percent) => (file_system_len as f64 * percent / 100.0) as u64,
            Capacity::Bytes(bytes) => bytes,
        }
    }
}

/// What one process lets its clients and upstreams take. R4: everything is bounded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest request head. Tokens of large registries reach 8 KiB, the 1,024 ranges that podman
    /// asks for at once 22 KiB.
    pub head_len_max: usize,
    /// Client connections over all shards; one more is closed at once.
    pub connections_max: usize,
    /// A kept-alive connection without a request is closed after this.
    pub idle_timeout: Duration,
    /// A request head must be complete this long after its first byte.
    pub head_timeout: Duration,
    /// A client that takes no byte for this long loses its connection.
    pub send_timeout: Duration,
    /// Fills running at once over all shards; a further miss gets 503 with Retry-After.
    pub fills_max: usize,
    /// Followers of one fill; a further one gets 503 with Retry-After.
    pub followers_max: usize,
    /// A body that claims to be longer is relayed and not stored.
    pub body_max: u64,
    /// Bytes of a manifest, a tag list or a list of referrers; a longer one is refused unread.
    pub manifest_max: usize,
    /// A source that sent bytes of another digest is not asked for that digest again for this long.
    pub mismatch_holdoff: Duration,
    /// How long SIGTERM waits for fills and responses.
    pub drain_timeout: Duration,
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const TIB: u64 = 1 << 40;

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            head_len_max: 32 * KIB as usize,
            // 10,000 idle clients and as many sockets as half of a common LimitNOFILE.
            connections_max: 16_384,
            // Above the 60 s after which common clients and balancers give up on their side.
            idle_timeout: Duration::from_secs(75),
            head_timeout: Duration::from_secs(10),
            // A client writing to a slow disk pauses for seconds, hardly for a minute.
            send_timeout: Duration::from_secs(60),
            fills_max: 1_024,
            followers_max: 16_384,
            // The largest model layers seen in public registries are below 100 GiB.
            body_max: 128 * GIB,
            // OCI, "Pushing Manifests": registries should accept 4 MiB; clients of the containerd
            // family refuse more.
            manifest_max: 4 * MIB as usize,
            // A mirror that is being updated needs a moment; a wrong one is not hammered.
            mismatch_holdoff: Duration::from_secs(30),
            // Well below the 90 s after which systemd kills.
            drain_timeout: Duration::from_secs(30),
        }
    }
}

/// A path prefix with its ordered upstreams and its rules.
#[derive(Clone, Debug)]
pub struct Project {
    /// A valid first component of a repository name.
    pub name: String,
    /// Registry hosts (`host` or `host:port`) that `?ns=` may ask for here.
    pub serves: Vec<String>,
    /// Names without a prefix belong here; true for at most one project.
    pub default: bool,
    pub access: Option<Access>,
    /// The first tier whose expression matches a tag decides; the last one has none.
    pub freshness: Vec<Tier>,
    pub stale: Stale,
    pub cold_ranges: ColdRanges,
    /// No upstream is asked for anything; what is cached is served.
    pub offline: bool,
    /// Repositories that may be pulled; `None`: all.
    pub allow: Option<Patterns>,
    /// Repositories that may not, allowed or not.
    pub deny: Option<Patterns>,
    /// https origins that layers may be fetched from when a manifest names them and no upstream
    /// has the layer.
    pub foreign_layers: Vec<Url>,
    /// Tried in order; never empty.
    pub upstreams: Vec<Upstream>,
}

impl Project {
    /// How long a tag is served without asking upstream whether it moved.
    pub fn fresh_for(&self, tag: &str) -> Duration {
        let tier = self.freshness.iter().find(|tier| match &tier.tags {
            Some(tags) => tags.find(tag).is_some_and(|found| found.start() == 0),
            None => true,
        });
        tier.map_or(Duration::ZERO, |tier| tier.for_)
    }

    /// Whether the lists let clients pull a repository, by upstream's name. `deny` wins.
    pub fn permits(&self, repository: &str) -> bool {
        let listed = |list: &Option<Patterns>| list.as_ref().map(|list| list.matches(repository));
        listed(&self.allow) != Some(false) && listed(&self.deny) != Some(true)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Whoever reaches the listener may pull, private repositories included.
    Anonymous,
}

/// What a range of a layer that is not held leads to, beside its own answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ColdRanges {
    /// The whole layer is filled in the background. Clients that read lazily ask for the same few
    /// ranges on every node and fetch the rest later; those that pull in parallel ask for all of
    /// it: the second to ask is a hit.
    #[default]
    Fill,
    /// Nothing more: ranges are passed on, and a layer is held once somebody pulls it whole.
    Pass,
}

#[derive(Clone, Debug)]
pub struct Tier {
    /// Matches from the start of a tag on, as behind `/manifests/` in the configurations of
    /// nginx that such expressions come from: `test` is no match for `latest`. `None` matches
    /// every tag.
    pub tags: Option<regex::Regex>,
    pub for_: Duration,
}

/// How old a tag's last check may be when its cached copy stands in for a failed upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stale {
    pub unreachable: Duration,
    /// It was reached, or seemed to be, and did not answer in time.
    pub timeout: Duration,
    pub server_error: Duration,
    pub rate_limited: Duration,
    pub not_found: Duration,
    pub denied: Duration,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Stale {
    fn default() -> Stale {
        Stale {
            unreachable: DAY.saturating_mul(30),
            timeout: DAY.saturating_mul(30),
            server_error: DAY.saturating_mul(30),
            rate_limited: DAY.saturating_mul(30),
            // A deleted or forbidden tag is an answer, not a failure.
            not_found: Duration::ZERO,
            denied: Duration::ZERO,
        }
    }
}

/// A password. Neither Debug nor Display shows it (R11).
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    value: String,
    source: SecretSource,
}

/// Where a password was found; printed in its stead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    Inline,
    File(PathBuf),
    Env(String),
    /// A name below systemd's directory of credentials.
    Credential {
        name: String,
        path: PathBuf,
    },
}

/// Written for every inline password.
pub const MASK: &str = "***";

impl Secret {
    pub fn new(value: String, source: SecretSource) -> Secret {
        Secret { value, source }
    }

    /// The password itself, for the request that needs it.
    pub fn expose(&self) -> &str {
        &self.value
    }

    pub fn source(&self) -> &SecretSource {
        &self.source
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(MASK)
    }
}
