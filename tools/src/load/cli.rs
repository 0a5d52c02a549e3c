//! The command line of `entrepot-load`.

use std::io;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use super::report::Report;
use super::run::{Extent, Run};
use super::target::{Asked, Target, TargetError};

/// A load generator for registries.
#[derive(Debug, Parser)]
#[command(name = "entrepot-load", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch one path on many connections.
    Blob(Blob),
}

#[derive(Debug, Args)]
struct Blob {
    #[arg(long)]
    url: String,
    /// Keep-alive connections.
    #[arg(short, long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    connections: u32,
    /// Seconds to measure.
    #[arg(short, long, conflicts_with = "requests")]
    duration: Option<f64>,
    /// Requests of all connections together (default: one each).
    #[arg(short = 'n', long)]
    requests: Option<u64>,
    /// Seconds before measuring.
    #[arg(long, default_value_t = 0.0, requires = "duration")]
    warmup: f64,
    /// Hash every body and compare with the digest in the path.
    #[arg(long)]
    verify: bool,
    /// Compare with this digest instead.
    #[arg(long, requires = "verify")]
    digest: Option<String>,
    /// HEAD instead of GET.
    #[arg(long)]
    head: bool,
    /// A line of Accept; may be given several times.
    #[arg(long, value_name = "TYPE")]
    accept: Vec<String>,
    #[arg(long, value_name = "NAME: VALUE")]
    header: Vec<String>,
    /// Seconds without progress after which a request is given up.
    #[arg(long, default_value_t = 30.0)]
    timeout: f64,
    /// One JSON object instead of text.
    #[arg(long)]
    json: bool,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("not a time: {0}")]
    Time(f64),
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Fails when any request did.
pub fn run(arguments: Arguments) -> Result<ExitCode, LoadError> {
    let Command::Blob(blob) = arguments.command;
    let report = blob.run()?;
    if blob.json {
        println!("{}", report.json());
    } else {
        println!("{report}");
    }
    Ok(if report.errors() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

impl Blob {
    fn run(&self) -> Result<Report, LoadError> {
        let target = Target::new(&Asked {
            url: &self.url,
            head_only: self.head,
            accept: &self.accept,
            headers: &self.header,
            verify: self.verify,
            digest: self.digest.as_deref(),
        })?;
        let extent = match (self.duration, self.requests) {
            (Some(seconds), _) => Extent::Time {
                warmup: time(self.warmup)?,
                measured: time(seconds)?,
            },
            (None, count) => Extent::Requests(count.unwrap_or(self.connections.into())),
        };
        let connections = self.connections as usize;
        let run = Run::new(&target, &self.url, connections, extent, time(self.timeout)?)?;
        Ok(run.run()?)
    }
}

fn time(seconds: f64) -> Result<Duration, LoadError> {
    Duration::try_from_secs_f64(seconds).map_err(|_| LoadError::Time(seconds))
}
