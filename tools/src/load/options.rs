//! What every command takes.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use super::auth::Login;
use super::cli::LoadError;
use super::run::Settings;
use super::schedule::{Extent, Pace};
use super::tls;

/// Threads beyond this would share cores anyway.
const THREADS_MAX: i64 = 256;

#[derive(Debug, Args)]
pub struct Options {
    /// Clients at the same time, each with a connection of its own.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    pub connections: u32,
    /// Threads, each with an io_uring and its share of the connections.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=THREADS_MAX))]
    pub threads: u32,
    /// Seconds to measure.
    #[arg(short, long, value_name = "SECONDS", conflicts_with = "requests")]
    pub duration: Option<f64>,
    /// Stop after so many, of all connections together (default: one each).
    #[arg(short = 'n', long, value_name = "COUNT")]
    pub requests: Option<u64>,
    /// Seconds before measuring.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 0.0,
        requires = "duration"
    )]
    pub warmup: f64,
    /// Open loop: start so many a second whatever the answers do, and take latencies from when
    /// each was due. Give enough connections, or requests wait for a free one (which counts).
    #[arg(long, value_name = "PER_SECOND")]
    pub rate: Option<f64>,
    /// Seconds without progress after which a request is given up.
    #[arg(long, value_name = "SECONDS", default_value_t = 30.0)]
    pub timeout: f64,
    /// A new connection for each request.
    #[arg(long)]
    pub no_keep_alive: bool,
    /// Trust the certificates of this PEM file, beside the system's.
    #[arg(long, value_name = "FILE")]
    pub ca_file: Option<PathBuf>,
    /// Trust any certificate.
    #[arg(long, conflicts_with = "ca_file")]
    pub insecure: bool,
    /// A login, for registries or their token servers.
    #[arg(
        long,
        value_name = "NAME:PASSWORD",
        env = "ENTREPOT_LOAD_USER",
        hide_env_values = true
    )]
    pub user: Option<String>,
    /// A further line of each request; may be given several times.
    #[arg(long, value_name = "NAME: VALUE")]
    pub header: Vec<String>,
    /// One JSON object instead of text.
    #[arg(long)]
    pub json: bool,
    /// Also write a page with plots; it needs nothing else.
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Also write raw histograms, in the HdrHistogram log format (version 2, nanoseconds).
    #[arg(long, value_name = "FILE")]
    pub histogram: Option<PathBuf>,
    /// No progress on the terminal.
    #[arg(short, long)]
    pub quiet: bool,
}

impl Options {
    pub fn settings(&self) -> Result<Settings, LoadError> {
        let login = match &self.user {
            Some(text) => Some(Login::parse(text).ok_or(LoadError::Login)?),
            None => None,
        };
        let extent = match (self.duration, self.requests) {
            (Some(measured), _) => Extent::Time {
                warmup: time(self.warmup)?,
                measured: time(measured)?,
            },
            (None, count) => Extent::Requests(count.unwrap_or(self.connections.into())),
        };
        let pace = match self.rate {
            None => Pace::Closed,
            Some(rate) if rate > 0.0 && rate.is_finite() => Pace::Rate(rate),
            Some(rate) => return Err(LoadError::Rate(rate)),
        };
        Ok(Settings {
            threads: self.threads as usize,
            clients: self.connections as usize,
            pace,
            extent,
            timeout: time(self.timeout)?,
            tls: tls::config(self.ca_file.as_deref(), self.insecure)?,
            login,
            keep_alive: !self.no_keep_alive,
        })
    }

    /// Lines of each request's head.
    pub fn fields(&self, user_agent: &str) -> Result<String, LoadError> {
        let mut fields = format!("User-Agent: {user_agent}\r\n");
        if self.no_keep_alive {
            fields.push_str("Connection: close\r\n");
        }
        for header in &self.header {
            if !header.contains(':') || header.contains(['\r', '\n']) {
                return Err(LoadError::Header(header.clone()));
            }
            fields.push_str(&format!("{header}\r\n"));
        }
        Ok(fields)
    }

    /// For who reads a report later. Without the login.
    pub fn named(&self) -> Vec<(&'static str, String)> {
        let mut named = vec![
            ("connections", self.connections.to_string()),
            ("threads", self.threads.to_string()),
            ("timeout_s", self.timeout.to_string()),
            ("keep_alive", (!self.no_keep_alive).to_string()),
            ("version", env!("CARGO_PKG_VERSION").to_owned()),
        ];
        if let Some(seconds) = self.duration {
            named.push(("duration_s", seconds.to_string()));
            named.push(("warmup_s", self.warmup.to_string()));
        }
        if let Some(count) = self.requests {
            named.push(("requests", count.to_string()));
        }
        if let Some(rate) = self.rate {
            named.push(("rate", rate.to_string()));
        }
        named
    }
}

pub fn time(seconds: f64) -> Result<Duration, LoadError> {
    Duration::try_from_secs_f64(seconds).map_err(|_| LoadError::Time(seconds))
}
