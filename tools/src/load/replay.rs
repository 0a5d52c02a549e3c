//! `replay`: what a log says was asked, in its order.

use std::fs;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use super::client::Client;
use super::log::{self, Entry};
use super::meter::Kind;
use super::run::{Work, Worker, Workload};
use super::schedule::{Pace, Turn};
use super::target::Target;
use super::url::Url;

#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    #[error(
        "{0}: no line is a request: give entrepot's log (text or JSON), nginx's combined format, \
         or entrepot-origin's --log"
    )]
    Empty(String),
    #[error("a speed is a number above 0, or max: {0}")]
    Speed(String),
}

/// How fast, against the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Speed {
    Times(f64),
    /// As fast as the answers come.
    Unpaced,
}

impl Speed {
    pub fn parse(text: &str) -> Result<Speed, ReplayError> {
        if text == "max" {
            return Ok(Speed::Unpaced);
        }
        match text.parse() {
            Ok(speed) if speed > 0.0 && f64::is_finite(speed) => Ok(Speed::Times(speed)),
            _ => Err(ReplayError::Speed(text.to_owned())),
        }
    }
}

/// Requests in the order in which they were made.
pub struct Recording {
    pub entries: Arc<[Entry]>,
    /// Lines that were not one.
    pub left_out: usize,
}

impl Recording {
    pub fn read(path: &Path) -> Result<Recording, ReplayError> {
        let name = path.display().to_string();
        let text = fs::read_to_string(path).map_err(|e| ReplayError::Read(name.clone(), e))?;
        let lines = text.lines().filter(|line| !line.trim().is_empty());
        let count = lines.clone().count();
        let mut entries: Vec<Entry> = lines.filter_map(log::parse).collect();
        if entries.is_empty() {
            return Err(ReplayError::Empty(name));
        }
        // Logs are written when an answer ends.
        entries.sort_by_key(|entry| entry.at);
        Ok(Recording {
            left_out: count - entries.len(),
            entries: entries.into(),
        })
    }

    pub fn pace(&self, speed: Speed) -> Pace {
        let Speed::Times(speed) = speed else {
            return Pace::Closed;
        };
        let first = self
            .entries
            .first()
            .map_or(Duration::ZERO, |entry| entry.at);
        let after = |entry: &Entry| (entry.at - first).div_f64(speed);
        Pace::Times(self.entries.iter().map(after).collect())
    }
}

pub struct Replay {
    pub base: Url,
    pub entries: Arc<[Entry]>,
    pub fields: String,
    pub manifest_fields: String,
}

impl Workload for Replay {
    fn client(&self, worker: Rc<Worker>, client: Client) -> Work {
        let (base, entries) = (self.base.clone(), self.entries.clone());
        let (fields, manifest_fields) = (self.fields.clone(), self.manifest_fields.clone());
        Box::pin(async move {
            client.prepare(&base.origin).await;
            let one = async |turn: Turn| {
                let Some(entry) = entries.get(turn.index as usize) else {
                    return;
                };
                let kind = kind_of(entry);
                let fields = match kind {
                    Kind::Manifest | Kind::Head => &manifest_fields,
                    _ => &fields,
                };
                let mut target = Target::new(entry.url(&base), kind, entry.head_only, fields);
                // What failed then may fail now.
                target.status = entry.status.filter(|status| *status >= 400);
                // What fails is counted.
                let _ = client.ask(&target, turn.at).await;
            };
            worker.each_turn(one).await;
        })
    }
}

fn kind_of(entry: &Entry) -> Kind {
    let path = entry.path.split('?').next().unwrap_or_default();
    if path == "/v2/" || path == "/v2" {
        Kind::Ping
    } else if path.contains("/blobs/") {
        Kind::Blob
    } else if !path.contains("/manifests/") {
        Kind::Other
    } else if entry.head_only {
        Kind::Head
    } else {
        Kind::Manifest
    }
}
