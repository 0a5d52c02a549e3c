//! What each command does with its part of the command line.

use std::fs::{self, File};
use std::process::ExitCode;
use std::time::SystemTime;

use serde_json::json;

use super::catalog::Catalog;
use super::cli::{
    Arguments, Command, HerdOptions, LoadError, MixOptions, Path, PullOptions, ReplayOptions,
};
use super::control::{Control, Traffic};
use super::digest::Expected;
use super::herd::Herd;
use super::histogram;
use super::html;
use super::image::{Name, NameError, Platform};
use super::meter::Kind;
use super::mix::Mix;
use super::options::{Options, time};
use super::progress::Progress;
use super::pull::Pull;
use super::replay::{Recording, Replay, Speed};
use super::report::Report;
use super::run::{self, Settings, Workload};
use super::schedule::Extent;
use super::single::Single;
use super::url::Url;

/// Who we say we are, where no other client is played.
const USER_AGENT: &str = concat!("entrepot-load/", env!("CARGO_PKG_VERSION"));
/// What a manifest may be, in one line as containerd asks.
const MANIFEST_TYPES: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

/// Fails when any request did.
pub fn run(arguments: Arguments) -> Result<ExitCode, LoadError> {
    let (report, options) = match &arguments.command {
        Command::Blob(path) => (path.run(Kind::Blob)?, &path.options),
        Command::Manifest(path) => (path.run(Kind::Manifest)?, &path.options),
        Command::Pull(pull) => (pull.run()?, &pull.options),
        Command::Herd(herd) => (herd.run()?, &herd.options),
        Command::Mix(mix) => (mix.run()?, &mix.options),
        Command::Replay(replay) => (replay.run()?, &replay.options),
    };
    write_files(&report, options)?;
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

fn write_files(report: &Report, options: &Options) -> Result<(), LoadError> {
    if let Some(path) = &options.html {
        let written = fs::write(path, html::page(report));
        written.map_err(|error| LoadError::Write(path.clone(), error))?;
    }
    if let Some(path) = &options.histogram {
        let started = SystemTime::now() - report.took;
        let written = histogram::write(report, started, path);
        written.map_err(|error| LoadError::Write(path.clone(), error))?;
    }
    Ok(())
}

/// Tries before a long run what would fail after it.
fn create_files(options: &Options) -> Result<(), LoadError> {
    for path in [&options.html, &options.histogram].into_iter().flatten() {
        let created = File::create(path);
        created.map_err(|error| LoadError::Write(path.clone(), error))?;
    }
    Ok(())
}

impl Path {
    fn run(&self, kind: Kind) -> Result<Report, LoadError> {
        let single = self.workload(kind)?;
        let title = format!("{} on {} connections", self.url, self.options.connections);
        measure(&single, title, &self.url, &self.options, |_| {})
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
                let named = self.digest.as_deref().unwrap_or(reference_of(&url));
                Some(Expected::parse(named).ok_or(LoadError::Digest)?)
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
            |_| {},
        )
    }
}

impl HerdOptions {
    fn run(&self) -> Result<Report, LoadError> {
        let options = &self.options;
        if options.duration.is_some() || options.requests.is_some() || options.rate.is_some() {
            return Err(LoadError::Together(
                "herd",
                "--duration, --requests, --rate",
            ));
        }
        let url = Url::parse(&self.url)?;
        let reference = reference_of(&url).to_owned();
        let digest = match self.verify {
            false => None,
            true => Some(Expected::parse(&reference).ok_or(LoadError::Digest)?),
        };
        let fields = self.options.fields(USER_AGENT)?;
        let herd = Herd(Single {
            url,
            kind: Kind::Blob,
            head_only: false,
            fields,
            digest,
        });
        let upstream = self.upstream.as_deref().map(Control::new).transpose()?;
        let traffic = || -> Result<Traffic, LoadError> {
            let traffic = upstream
                .as_ref()
                .map(|upstream| upstream.traffic(&reference));
            Ok(traffic.transpose()?.unwrap_or_default())
        };
        let before = traffic()?;
        let title = format!("{} for {} clients at once", self.url, options.connections);
        let mut report = measure(&herd, title, &self.url, options, |_| {})?;
        if upstream.is_some() {
            let traffic = traffic()?.since(before);
            let whole = report.requests() - report.errors().min(report.requests());
            let body = report.counts.bytes / whole.max(1);
            let factor = traffic.bytes as f64 / body.max(1) as f64;
            let told = json!({"requests": traffic.gets, "bytes": traffic.bytes, "factor": factor});
            report.more.insert("upstream".to_owned(), told);
        }
        Ok(report)
    }
}

impl MixOptions {
    fn run(&self) -> Result<Report, LoadError> {
        let registry = Url::parse(&self.url)?;
        let catalog = match (&self.catalog, self.synthesise, &self.control) {
            (Some(place), ..) => Catalog::read(place)?,
            (None, Some(blobs), Some(control)) => {
                let control = Control::new(control)?;
                Catalog::make(
                    &control,
                    blobs.max(1),
                    self.scale.max(f64::MIN_POSITIVE),
                    self.seed,
                )?
            }
            // clap asks for one of them.
            (None, ..) => return Err(LoadError::Together("no --catalog", "no --synthesise")),
        };
        let fields = self.options.fields(USER_AGENT)?;
        let mut mix = Mix::new(registry, catalog, self.seed);
        mix.prefix.clone_from(&self.prefix);
        mix.herd_every = self.herd_every.map(time).transpose()?;
        mix.verify = self.verify;
        mix.manifest_fields = format!("{fields}Accept: {MANIFEST_TYPES}\r\n");
        mix.fields = fields;
        let (manifests, blobs) = (mix.manifests.len(), mix.blobs.len());
        let title = format!(
            "a mix of {manifests} manifests and {blobs} blobs of {}",
            self.url
        );
        let mut report = measure(&mix, title, &self.url, &self.options, |_| {})?;
        report.settings.push(("seed", self.seed.to_string()));
        Ok(report)
    }
}

impl ReplayOptions {
    fn run(&self) -> Result<Report, LoadError> {
        let options = &self.options;
        if options.rate.is_some() {
            return Err(LoadError::Together(
                "replay",
                "--rate: the log has the times",
            ));
        }
        let speed = Speed::parse(&self.speed)?;
        let recording = Recording::read(&self.log)?;
        let fields = options.fields(USER_AGENT)?;
        let replay = Replay {
            base: Url::parse(&self.url)?,
            entries: recording.entries.clone(),
            manifest_fields: format!("{fields}Accept: {MANIFEST_TYPES}\r\n"),
            fields,
        };
        let count = recording.entries.len();
        let name = self.log.display();
        let title = format!(
            "{count} requests of {name} to {}, speed {}",
            self.url, self.speed
        );
        let pace = |settings: &mut Settings| {
            settings.pace = recording.pace(speed);
            if options.duration.is_none() {
                let most = options.requests.unwrap_or(u64::MAX);
                settings.extent = Extent::Requests(most.min(count as u64));
            }
        };
        let mut report = measure(&replay, title, &self.url, options, pace)?;
        report.settings.push(("speed", self.speed.clone()));
        let left_out = recording.left_out.into();
        report.more.insert("lines_left_out".to_owned(), left_out);
        Ok(report)
    }
}

/// The last part of a path: a tag or a digest.
fn reference_of(url: &Url) -> &str {
    let path = url.path.split('?').next().unwrap_or_default();
    path.rsplit('/').next().unwrap_or_default()
}

fn measure(
    workload: &dyn Workload,
    title: String,
    url: &str,
    options: &Options,
    change: impl FnOnce(&mut Settings),
) -> Result<Report, LoadError> {
    let mut settings = options.settings()?;
    change(&mut settings);
    create_files(options)?;
    let mut progress = Progress::new(&settings, options.quiet);
    let outcome = run::run(&settings, workload, |live| progress.show(live));
    progress.end();
    let outcome = outcome.map_err(LoadError::Run)?;
    let mut report = Report::new(title, url, settings.clients, outcome);
    report.settings = options.named();
    Ok(report)
}
