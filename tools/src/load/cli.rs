//! The command line of `entrepot-load`.

use std::io;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::catalog::CatalogError;
use super::control::ControlError;
use super::help;
use super::image::NameError;
use super::options::Options;
use super::pull::Player;
use super::replay::ReplayError;
use super::tls::TlsError;
use super::url::UrlError;

/// Asks registries, as one client or as thousands, and tells how they answered.
#[derive(Debug, Parser)]
#[command(name = "entrepot-load", version, after_help = help::ALL)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Fetch one path, a blob's for example, on many connections.
    #[command(after_help = help::PATH)]
    Blob(Path),
    /// The same for a manifest, with the Accept line of a client.
    #[command(after_help = help::PATH)]
    Manifest(Path),
    /// Pull whole images as a real client does: tag, index, manifest, config, layers.
    #[command(after_help = help::PULL)]
    Pull(PullOptions),
    /// Many clients ask for the same body at the same moment, once each.
    #[command(after_help = help::HERD)]
    Herd(HerdOptions),
    /// What a registry is asked by many: pings, manifests, blobs, as in published traces.
    #[command(after_help = help::MIX)]
    Mix(MixOptions),
    /// Ask again what an access log says was asked.
    #[command(after_help = help::REPLAY)]
    Replay(ReplayOptions),
}

#[derive(Debug, Args)]
pub struct Path {
    /// What to fetch, as in http://127.0.0.1:5000/v2/dh/library/alpine/manifests/3.20
    #[arg(long)]
    pub url: String,
    /// Hash every body and compare with the digest in the path.
    #[arg(long)]
    pub verify: bool,
    /// Compare with this digest instead.
    #[arg(long, requires = "verify")]
    pub digest: Option<String>,
    /// HEAD instead of GET.
    #[arg(long)]
    pub head: bool,
    /// A line of Accept; may be given several times.
    #[arg(long, value_name = "TYPE")]
    pub accept: Vec<String>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Args)]
pub struct PullOptions {
    /// Images, pulled in turn: http://127.0.0.1:5000/dh/library/alpine:3.20
    #[arg(required = true)]
    pub images: Vec<String>,
    /// Whose requests to send.
    #[arg(long, value_enum, default_value = "containerd")]
    pub client: Player,
    #[arg(
        long,
        value_name = "OS/ARCHITECTURE[/VARIANT]",
        default_value = "linux/amd64"
    )]
    pub platform: String,
    /// Bodies of one image at the same time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    pub parallel: u8,
    /// Discard config and layers instead of hashing them; manifests are verified all the same.
    #[arg(long)]
    pub discard: bool,
    /// Say to a mirror which registry is meant, as containerd does: docker.io
    #[arg(long, value_name = "REGISTRY")]
    pub ns: Option<String>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Args)]
pub struct HerdOptions {
    /// The body; a cold one, or the cache is measured.
    #[arg(long)]
    pub url: String,
    /// Hash every body and compare with the digest in the path.
    #[arg(long)]
    pub verify: bool,
    /// The control URL of the entrepot-origin behind the cache: how often was it asked?
    #[arg(long, value_name = "URL")]
    pub upstream: Option<String>,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Args)]
pub struct MixOptions {
    /// The registry: http://127.0.0.1:5000
    #[arg(long)]
    pub url: String,
    /// What stands before each repository's name there, a project of entrepot for example: dh/
    #[arg(long, default_value = "")]
    pub prefix: String,
    /// What there is to ask for: a JSON file, or the control URL of an entrepot-origin.
    #[arg(long, value_name = "FILE|URL", required_unless_present = "synthesise")]
    pub catalog: Option<String>,
    /// Let the origin at --control make so many blobs, and images of them.
    #[arg(
        long,
        value_name = "COUNT",
        conflicts_with = "catalog",
        requires = "control"
    )]
    pub synthesise: Option<usize>,
    /// The control URL of an entrepot-origin.
    #[arg(long, value_name = "URL")]
    pub control: Option<String>,
    /// Blobs are this much smaller than Docker Hub's layers, whose mean is 25 MiB.
    #[arg(long, default_value_t = 64.0)]
    pub scale: f64,
    /// The same seed asks for the same in the same order.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// So often all clients pull the same image at once.
    #[arg(long, value_name = "SECONDS")]
    pub herd_every: Option<f64>,
    /// Hash what has a digest.
    #[arg(long)]
    pub verify: bool,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, Args)]
pub struct ReplayOptions {
    /// entrepot's log, nginx's in the combined format, or entrepot-origin's.
    #[arg(long, value_name = "FILE")]
    pub log: PathBuf,
    /// The registry: http://127.0.0.1:5000
    #[arg(long)]
    pub url: String,
    /// 1: as recorded; 10: ten times as fast; max: as fast as the connections get answers.
    #[arg(long, default_value = "1")]
    pub speed: String,
    #[command(flatten)]
    pub options: Options,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("{0}: {1}")]
    Write(PathBuf, io::Error),
    #[error("{0} does not go with {1}")]
    Together(&'static str, &'static str),
    #[error("a platform is OS/ARCHITECTURE[/VARIANT], as in linux/arm64/v8: {0}")]
    Platform(String),
    #[error(transparent)]
    Url(#[from] UrlError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error("not a time in seconds: {0}")]
    Time(f64),
    #[error("a rate is a number above 0: {0}")]
    Rate(f64),
    #[error("--user is NAME:PASSWORD")]
    Login,
    #[error("a header is 'Name: value': {0}")]
    Header(String),
    #[error("nothing to verify by: no sha256:<64 hex> or sha512:<128 hex> in the path or --digest")]
    Digest,
    #[error("{0}; is io_uring allowed here (kernel.io_uring_disabled, seccomp, ulimit -l)?")]
    Run(io::Error),
}
