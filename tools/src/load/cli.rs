//! The command line of `entrepot-load`.

use std::io;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use super::digest::Expected;
use super::image::{Name, NameError, Platform};
use super::meter::Kind;
use super::options::Options;
use super::pull::{Player, Pull};
use super::report::Report;
use super::run::{self, Workload};
use super::single::Single;
use super::tls::TlsError;
use super::url::{Url, UrlError};

/// Who we say we are, where no other client is played.
const USER_AGENT: &str = concat!("entrepot-load/", env!("CARGO_PKG_VERSION"));
/// What a manifest may be, in one line as containerd asks.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// A load generator for registries.
#[derive(Debug, Parser)]
#[command(name = "entrepot-load", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Fetch one path, a blob's for example, on many connections.
    Blob(Path),
    /// The same for a manifest, with the Accept line of a client.
    Manifest(Path),
    /// Pull whole images as a real client does: tag, index, manifest, config, layers.
    Pull(PullOptions),
}

#[derive(Debug, Args)]
struct Path {
    /// What to fetch, as in http://127.0.0.1:5000/v2/dh/library/alpine/manifests/3.20
    #[arg(long)]
    url: String,
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
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, Args)]
struct PullOptions {
    /// Images, pulled in turn: http://127.0.0.1:5000/dh/library/alpine:3.20
    #[arg(required = true)]
    images: Vec<String>,
    /// Whose requests to send.
    #[arg(long, value_enum, default_value = "containerd")]
    client: Player,
    #[arg(
        long,
        value_name = "OS/ARCHITECTURE[/VARIANT]",
        default_value = "linux/amd64"
    )]
    platform: String,
    /// Bodies of one image at the same time.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..))]
    parallel: u8,
    /// Discard config and layers instead of hashing them; manifests are verified all the same.
    #[arg(long)]
    discard: bool,
    /// Say to a mirror which registry is meant, as containerd does: docker.io
    #[arg(long, value_name = "REGISTRY")]
    ns: Option<String>,
    #[command(flatten)]
    options: Options,
}

#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    #[error(transparent)]
    Name(#[from] NameError),
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

/// Fails when any request did.
pub fn run(arguments: Arguments) -> Result<ExitCode, LoadError> {
    let (report, options) = match &arguments.command {
        Command::Blob(path) => (path.run(Kind::Blob)?, &path.options),
        Command::Manifest(path) => (path.run(Kind::Manifest)?, &path.options),
        Command::Pull(pull) => (pull.run()?, &pull.options),
    };
    if options.json {
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

impl Path {
    fn run(&self, kind: Kind) -> Result<Report, LoadError> {
        let single = self.workload(kind)?;
        let title = format!("{} on {} connections", self.url, self.options.connections);
        measure(&single, title, &self.url, &self.options)
    }

    fn workload(&self, kind: Kind) -> Result<Single, LoadError> {
        let url = Url::parse(&self.url)?;
        let mut fields = self.options.fields(USER_AGENT)?;
        for media_type in &self.accept {
            fields.push_str(&format!("Accept: {media_type}\r\n"));
        }
        if kind == Kind::Manifest && self.accept.is_empty() {
            fields.push_str(&format!("Accept: {MANIFEST_TYPES}\r\n"));
        }
        let digest = match self.verify && !self.head {
            false => None,
            true => {
                let last = url.path.split('?').next().unwrap_or_default();
                let last = last.rsplit('/').next().unwrap_or_default();
                let named = Expected::parse(self.digest.as_deref().unwrap_or(last));
                Some(named.ok_or(LoadError::Digest)?)
            }
        };
        Ok(Single {
            url,
            kind,
            head_only: self.head,
            fields,
            digest,
        })
    }
}

impl PullOptions {
    fn run(&self) -> Result<Report, LoadError> {
        let platform = Platform::parse(&self.platform);
        let platform = platform.ok_or_else(|| LoadError::Platform(self.platform.clone()))?;
        let images: Result<Vec<Name>, NameError> =
            self.images.iter().map(|name| Name::parse(name)).collect();
        let pull = Pull {
            images: images?,
            player: self.client,
            platform,
            parallel: self.parallel.into(),
            verify: !self.discard,
            query: match &self.ns {
                Some(ns) => format!("?ns={ns}"),
                None => String::new(),
            },
            fields: self.options.fields(self.client.user_agent())?,
        };
        let clients = self.options.connections;
        let url = self.images.join(" ");
        measure(
            &pull,
            format!("{url} by {clients} clients"),
            &url,
            &self.options,
        )
    }
}

fn measure(
    workload: &dyn Workload,
    title: String,
    url: &str,
    options: &Options,
) -> Result<Report, LoadError> {
    let settings = options.settings()?;
    let outcome = run::run(&settings, workload, |_| {}).map_err(LoadError::Run)?;
    let mut report = Report::new(title, url, settings.clients, outcome);
    report.settings = options.named();
    Ok(report)
}
