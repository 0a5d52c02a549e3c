//! The command line: what was typed, turned into sources of the configuration.
//!
//! Flags are nothing but shorter names for keys, so `config` alone decides what is valid. Called
//! by `main`; `check-config` and `print-config` are answered here, the only users of stdout.

mod remote;

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::config::{self, Config, Flag, FlagValue, Loaded, Problems, Sources};
use crate::preflight;

pub use remote::{bring_back, purge, refresh, reload, volumes};

const ABOUT: &str = "A pull-through cache for OCI registries";

const LONG_ABOUT: &str = "\
entrepot is a pull-through cache for OCI (Docker) registries. Clients pull through it; what it has \
seen once is served from local disk, and it goes on serving when a registry is down, slow or \
rate-limiting. It needs no configuration file.";

const EXAMPLES: &str = "\
Try it:
  entrepot serve                                    # 0.0.0.0:5000, admin on 127.0.0.1:5001
  docker pull localhost:5000/dh/library/nginx:1.27  # dh is Docker Hub; dhi, ghcr, gcr, quay.io
  docker pull localhost:5000/quay.io/podman/hello   # and lscr are there too
  curl -s http://127.0.0.1:5001/metrics

Where data goes:
  --store DIR, else $STATE_DIRECTORY (set by systemd), else $XDG_CACHE_HOME/entrepot or
  ~/.cache/entrepot. Up to --capacity (default 90% of that file system) is used. With several
  disks --store is repeated, once for each.

Forget something for good, through the running server's control socket:
  entrepot purge tag dh/library/nginx:1.27          # or: digest, repository, project

Configuration:
  entrepot print-config > entrepot.toml             # every key with its value
  entrepot check-config --config entrepot.toml
  entrepot serve --config entrepot.toml --set project.dh.access=anonymous
  Sources, later ones win: defaults, --config, environment and flags, --set.

Point clients at it without changing image names (cache:5000 is this server):
  docker      /etc/docker/daemon.json        {\"registry-mirrors\": [\"http://cache:5000\"]}
  containerd  /etc/containerd/certs.d/ghcr.io/hosts.toml
                [host.\"http://cache:5000/ghcr\"]
                  capabilities = [\"pull\", \"resolve\"]
  podman      /etc/containers/registries.conf
                [[registry]]
                location = \"quay.io\"
                [[registry.mirror]]
                location = \"cache:5000/quay.io\"
                insecure = true

Exit codes: 0 after a drain or when done, 1 when the server could not do it, 2 for a wrong command
line, 69 when no server answers, 78 when the configuration or the machine does not permit a start;
the message says what to change.";

#[derive(Debug, Parser)]
#[command(name = "entrepot", version, about = ABOUT, long_about = LONG_ABOUT)]
#[command(after_long_help = EXAMPLES, arg_required_else_help = true)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs the cache until SIGTERM or SIGINT, then drains
    #[command(after_long_help = EXAMPLES)]
    Serve(Given),
    /// Reads the configuration and says what is wrong with it
    CheckConfig(Given),
    /// Prints the configuration in effect as TOML, passwords masked
    PrintConfig(Given),
    /// Has the running server forget something for good; returns when that is on disk
    Purge(remote::Purge),
    /// Shows the disks of the running server
    Volumes(remote::Reach),
    /// Takes a disk that went offline into use again
    BringBack(remote::BringBack),
    /// Has the running server ask upstream now what a tag names
    Refresh(remote::Refresh),
    /// Has the running server read its configuration again
    Reload(remote::Reach),
}

#[derive(Args, Clone, Debug, Default)]
pub struct Given {
    /// Configuration file (TOML); every key has a default, the file may be empty
    #[arg(long, value_name = "FILE", env = "ENTREPOT_CONFIG")]
    config: Option<PathBuf>,
    /// Where clients pull, such as 0.0.0.0:5000; may be repeated; port 0 takes a free one
    #[arg(
        long,
        value_name = "ADDRESS",
        env = "ENTREPOT_LISTEN",
        value_delimiter = ','
    )]
    listen: Vec<String>,
    /// Where metrics and health are, such as 127.0.0.1:5001
    #[arg(long, value_name = "ADDRESS", env = "ENTREPOT_ADMIN")]
    admin: Option<String>,
    /// Directory of the store, one for each disk; may be repeated; one server at a time
    #[arg(
        long,
        value_name = "DIR",
        env = "ENTREPOT_STORE",
        value_delimiter = ':'
    )]
    store: Vec<String>,
    /// Unix socket for purges and volumes; default control.sock in the first store
    #[arg(long, value_name = "PATH", env = "ENTREPOT_CONTROL")]
    control: Option<String>,
    /// How much of each disk to use: a size such as 2TiB, or a part of it such as 90%
    #[arg(long, value_name = "SIZE", env = "ENTREPOT_CAPACITY")]
    capacity: Option<String>,
    /// Shard threads; default one per core
    #[arg(long, value_name = "NUMBER", env = "ENTREPOT_SHARDS")]
    shards: Option<String>,
    /// text or json, a level (error, warn, info, debug, trace) or filter, or both: json,debug
    #[arg(long, value_name = "FORMAT,LEVEL", env = "ENTREPOT_LOG")]
    log: Option<String>,
    /// Sets any key of the configuration, such as project.dh.access=anonymous; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

impl Given {
    /// Reads all sources.
    pub fn load(&self) -> Result<Loaded, Problems> {
        config::load(&self.sources(), &|name| std::env::var(name).ok())
    }

    /// The same while the server listens.
    pub fn load_again(&self, listening: &[SocketAddr]) -> Result<Loaded, Problems> {
        let env = |name: &str| std::env::var(name).ok();
        config::load_again(&self.sources(), listening, &env)
    }

    fn sources(&self) -> Sources {
        let mut flags = Vec::new();
        for (name, key, values) in [
            ("--listen", "listen", &self.listen),
            ("--store", "store.paths", &self.store),
        ] {
            if !values.is_empty() {
                flags.push(Flag {
                    value: FlagValue::Texts(values.clone()),
                    ..flag(name, key, "")
                });
            }
        }
        for (name, key, value) in [
            ("--admin", "admin", &self.admin),
            ("--control", "control", &self.control),
            ("--capacity", "store.capacity", &self.capacity),
            ("--shards", "shards", &self.shards),
        ] {
            flags.extend(value.iter().map(|value| flag(name, key, value)));
        }
        if let Some(log) = &self.log {
            let (format, level) = split_log(log);
            flags.extend(format.map(|format| flag("--log", "log.format", format)));
            flags.extend(level.map(|level| flag("--log", "log.level", level)));
        }
        flags.extend(self.set.iter().map(|assignment| set(assignment)));
        Sources {
            file: self.config.clone(),
            flags,
        }
    }
}

fn flag(name: &str, key: &str, value: &str) -> Flag {
    Flag {
        name: name.to_owned(),
        key: key.to_owned(),
        value: FlagValue::Typed(value.to_owned()),
    }
}

/// Without a `=` the key is empty, which `config` refuses with the right words.
fn set(assignment: &str) -> Flag {
    let (key, value) = assignment.split_once('=').unwrap_or(("", ""));
    let name = format!("--set {}", if key.is_empty() { assignment } else { key });
    flag(&name, key, value.trim())
}

/// `json,debug` into `json` and `debug`: a first word that is a format is taken as one.
fn split_log(log: &str) -> (Option<&str>, Option<&str>) {
    let (first, rest) = log
        .split_once(',')
        .map_or((log, None), |(a, b)| (a, Some(b)));
    match first {
        "text" | "json" => (Some(first), rest),
        _ => (None, Some(log)),
    }
}

/// Says `ok` and what would be served, or everything that is wrong.
pub fn check_config(given: &Given) -> ExitCode {
    match given.load() {
        Ok(loaded) => {
            report(&loaded);
            written(&format!("ok: {}\n", summary(&loaded.config)))
        }
        Err(problems) => refused(&problems),
    }
}

pub fn print_config(given: &Given) -> ExitCode {
    match given.load() {
        Ok(loaded) => {
            report(&loaded);
            written(&config::print(&loaded.config))
        }
        Err(problems) => refused(&problems),
    }
}

fn report(loaded: &Loaded) {
    for warning in &loaded.warnings {
        eprintln!("entrepot: warning: {warning}");
    }
}

/// Prints every problem; also `serve`'s way to end before it began.
pub fn refused(problems: &Problems) -> ExitCode {
    for problem in &problems.0 {
        eprintln!("entrepot: {problem}");
    }
    ExitCode::from(preflight::EXIT_CODE)
}

/// A reader that has seen enough (`| head`) is no failure of ours.
fn written(text: &str) -> ExitCode {
    match io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("entrepot: cannot write to stdout: {error}");
            ExitCode::FAILURE
        }
    }
}

fn summary(config: &Config) -> String {
    let listen: Vec<_> = config
        .listen
        .iter()
        .map(|address| address.to_string())
        .collect();
    let stores = config.store.paths.iter();
    let stores: Vec<_> = stores.map(|path| path.display().to_string()).collect();
    let projects: Vec<_> = config
        .projects
        .iter()
        .map(|project| match project.default {
            true => format!("{} (default)", project.name),
            false => project.name.clone(),
        })
        .collect();
    format!(
        "listen {}, admin {}, store {}, projects {}",
        listen.join(", "),
        config.admin,
        stores.join(", "),
        projects.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use clap::{CommandFactory, Parser};

    use super::{Cli, Command, Config, Given};
    use crate::config::{self, Capacity, LogFormat};

    fn given(args: &[&str]) -> Given {
        let args = ["entrepot", "serve"].iter().chain(args);
        match Cli::try_parse_from(args).expect("a command line").command {
            Command::Serve(given) => given,
            other => panic!("{other:?}"),
        }
    }

    fn load(args: &[&str]) -> Result<Config, String> {
        let home = |name: &str| (name == "HOME").then(|| "/home/op".to_owned());
        config::load(&given(args).sources(), &home)
            .map(|loaded| loaded.config)
            .map_err(|problems| problems.to_string())
    }

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_keys() {
        let config = load(&[
            "--listen=127.0.0.1:0",
            "--listen",
            "[::1]:0",
            "--admin=127.0.0.1:0",
            "--store=/srv/store",
            "--capacity=2GiB",
            "--shards=2",
            "--log=json,debug",
            "--set",
            "project.dh.upstream.0.url=http://127.0.0.1:5100",
            "--set=limits.drain_timeout = 2s",
            "--set=project.quay.io.access=anonymous",
        ])
        .expect("valid");
        assert_eq!(config.listen.len(), 2);
        assert_eq!(config.admin.to_string(), "127.0.0.1:0");
        assert_eq!(config.store.paths[0].display().to_string(), "/srv/store");
        assert_eq!(config.store.capacity, Capacity::Bytes(2 << 30));
        assert_eq!(config.shards, Some(2));
        assert_eq!(
            (config.log.format, config.log.level.as_str()),
            (LogFormat::Json, "debug")
        );
        assert_eq!(
            config.projects[0].upstreams[0].url.to_string(),
            "http://127.0.0.1:5100"
        );
        assert_eq!(config.limits.drain_timeout, Duration::from_secs(2));
    }

    #[test]
    fn one_flag_sets_format_level_or_both() {
        for (log, format, level) in [
            ("json", LogFormat::Json, "info"),
            ("debug", LogFormat::Text, "debug"),
            ("text,warn", LogFormat::Text, "warn"),
            (
                "json,info,entrepot=trace",
                LogFormat::Json,
                "info,entrepot=trace",
            ),
            (
                "info,entrepot=trace",
                LogFormat::Text,
                "info,entrepot=trace",
            ),
        ] {
            let config = load(&["--log", log]).expect(log);
            assert_eq!(
                (config.log.format, config.log.level.as_str()),
                (format, level),
                "{log}"
            );
        }
    }

    #[test]
    fn wrong_values_name_their_flag() {
        for (args, part) in [
            (
                ["--listen", "5000"],
                "--listen: listen: \"5000\" is not an address",
            ),
            (["--admin", "x"], "--admin: admin: \"x\" is not an address"),
            (
                ["--capacity", "much"],
                "--capacity: store.capacity: \"much\" is not a size",
            ),
            (
                ["--shards", "many"],
                "--shards: shards: expected a whole number",
            ),
            (["--log", "xml"], "--log: log.level: \"xml\" is not a level"),
            (["--set", "listen"], "--set listen: expected key=value"),
            (["--set", "=x"], "expected key=value"),
            (
                ["--config", "/nowhere/c.toml"],
                "/nowhere/c.toml:1: cannot read the configuration",
            ),
        ] {
            let message = load(&args).expect_err(part);
            assert!(message.contains(part), "{part:?} is not in {message:?}");
        }
    }
}
