//! The control socket: what an operator asks of the running server.
//!
//! One line of JSON in, one line out, and the connection ends. The socket file belongs to the
//! user of the server and lets nobody else in: who may open it may purge. `server` answers on a
//! thread of its own, `client` is the command line's side.

pub mod client;
pub mod server;

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// linux/un.h: `sun_path` has 108 bytes, and the last one is zero.
pub const PATH_LEN_MAX: usize = 107;
/// Bytes of a request or of an answer: sixteen volumes with the longest paths fit twice.
pub const LINE_LEN_MAX: usize = 256 << 10;
/// Bytes read at once.
const READ_LEN: usize = 4 << 10;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    Purge(Target),
    Volumes {},
    /// Takes a volume that went offline into use again: its path.
    BringBack(PathBuf),
    /// Asks upstream now what a tag names: `dh/library/nginx:1.27`.
    Refresh(String),
    /// Reads the configuration again.
    Reload {},
}

/// What is to be forgotten for good, as the operator names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// `sha256:…`
    Digest(String),
    /// `dh/library/nginx:1.27`
    Tag(String),
    /// `dh/library/nginx`
    Repository(String),
    /// `dh`
    Project(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Answer {
    Purged(Purged),
    /// In the order of `store.paths`.
    Volumes(Vec<VolumeLine>),
    /// With how many bodies, and without those in segments that could not be read.
    BroughtBack {
        volume: VolumeLine,
        bodies: u64,
        unreadable: Vec<String>,
    },
    Refreshed(Refreshed),
    Reloaded(Reloaded),
    Error(String),
}

/// What a tag names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Refreshed {
    pub digest: String,
    /// What it named for us before, if anything.
    pub before: Option<String>,
    /// The origin that said so.
    pub upstream: String,
    /// How long ago it said so; more than a moment when `stale` is set.
    pub age_s: u64,
    /// Why upstream could not be asked now.
    pub stale: Option<String>,
}

/// What a reload came to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Reloaded {
    /// How many are configured now.
    pub projects: usize,
    pub warnings: Vec<String>,
    /// Keys whose new values wait for a restart.
    pub restart: Vec<String>,
}

/// One of the store's paths. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeLine {
    pub path: PathBuf,
    pub online: bool,
    pub capacity: u64,
    pub used: u64,
    /// Of bodies that are found.
    pub live: u64,
    /// What compaction gives back.
    pub dead: u64,
    /// Evicted and still read by somebody.
    pub pinned: u64,
    pub segments: u64,
    /// Segments given up since the start.
    pub quarantined: u64,
}

/// How much a purge forgot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Purged {
    pub bodies: u64,
    pub tags: u64,
    pub listings: u64,
    pub links: u64,
    pub statistics: u64,
}

impl std::ops::AddAssign for Purged {
    fn add_assign(&mut self, other: Purged) {
        self.bodies += other.bodies;
        self.tags += other.tags;
        self.listings += other.listings;
        self.links += other.links;
        self.statistics += other.statistics;
    }
}

#[derive(Debug, thiserror::Error)]
enum LineError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the line is longer than {LINE_LEN_MAX} bytes")]
    TooLong,
    #[error("the line did not end in time")]
    TooSlow,
    #[error("the other side closed before the end of a line")]
    Cut,
    #[error("not understood: {0}")]
    Syntax(#[from] serde_json::Error),
}

/// Reads one line within `patience`, however it trickles in.
fn read_line<T: for<'de> Deserialize<'de>>(
    stream: &mut UnixStream,
    patience: Duration,
) -> Result<T, LineError> {
    let deadline = Instant::now() + patience;
    let mut line = Vec::new();
    let mut buffer = [0; READ_LEN];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(LineError::TooSlow);
        }
        stream.set_read_timeout(Some(left))?;
        let count = match stream.read(&mut buffer) {
            Ok(0) => return Err(LineError::Cut),
            Ok(count) => count,
            // The deadline decides.
            Err(error) if is_timeout(&error) => continue,
            Err(error) => return Err(error.into()),
        };
        let end = buffer[..count].iter().position(|byte| *byte == b'\n');
        line.extend_from_slice(&buffer[..end.unwrap_or(count)]);
        if line.len() > LINE_LEN_MAX {
            return Err(LineError::TooLong);
        }
        if end.is_some() {
            return Ok(serde_json::from_slice(&line)?);
        }
    }
}

fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
}

fn write_line<T: Serialize>(stream: &mut UnixStream, value: &T) -> Result<(), LineError> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    Ok(stream.write_all(&line)?)
}

/// Why there is no control socket to answer on.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    #[error("control: another process answers on {}", .0.display())]
    Taken(PathBuf),
    #[error(
        "control: {} is there and is no socket: remove it, or name another path with control",
        .0.display()
    )]
    NoSocket(PathBuf),
    #[error("control: cannot listen on {}: {error}", path.display())]
    Failed { path: PathBuf, error: io::Error },
}
