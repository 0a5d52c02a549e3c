//! Commands that a running server carries out, asked through its control socket.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use entrepot_storage::Digest;

use super::{flag, refused, set, written};
use crate::config::{self, Flag, FlagValue, Sources};
use crate::control::client::{AskError, ask};
use crate::control::{Answer, Purged, Refreshed, Request, Target, VolumeLine};
use crate::preflight;

/// sysexits.h EX_UNAVAILABLE: no server answers.
const UNAVAILABLE: u8 = 69;

/// Which server: the one whose configuration, or control socket, is given.
#[derive(Args, Clone, Debug, Default)]
pub struct Reach {
    /// Control socket of the server; default: what its configuration says
    #[arg(long, value_name = "PATH", env = "ENTREPOT_CONTROL")]
    control: Option<PathBuf>,
    /// Configuration file of the server
    #[arg(long, value_name = "FILE", env = "ENTREPOT_CONFIG")]
    config: Option<PathBuf>,
    /// Directory of the server's store; the first one, if there are several
    #[arg(
        long,
        value_name = "DIR",
        env = "ENTREPOT_STORE",
        value_delimiter = ':'
    )]
    store: Vec<String>,
    /// Sets a key of the configuration as the server's command line does; may be repeated
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
}

#[derive(Args, Clone, Debug)]
pub struct BringBack {
    /// Path of the volume, as `entrepot volumes` shows it
    volume: PathBuf,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub struct Refresh {
    /// Such as dh/library/nginx:1.27; without a tag, latest
    image: String,
    #[command(flatten)]
    reach: Reach,
}

#[derive(Args, Clone, Debug)]
pub struct Purge {
    #[command(subcommand)]
    what: What,
}

#[derive(Clone, Debug, Subcommand)]
enum What {
    /// One body, and every repository's link to it
    Digest {
        /// Such as sha256:9b2…
        digest: Digest,
        #[command(flatten)]
        reach: Reach,
    },
    /// One tag, and the cached tag lists of its repository; not the image
    Tag {
        /// Such as dh/library/nginx:1.27
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// All of a repository, and the bodies that no other one has
    Repository {
        /// Such as dh/library/nginx
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
    /// All repositories of a project
    Project {
        /// Such as dh
        name: String,
        #[command(flatten)]
        reach: Reach,
    },
}

impl Reach {
    /// The control socket; `Err` when what names it is wrong.
    fn socket(&self) -> Result<PathBuf, ExitCode> {
        if let Some(path) = &self.control {
            return Ok(path.clone());
        }
        let mut flags: Vec<Flag> = self.set.iter().map(|assignment| set(assignment)).collect();
        if !self.store.is_empty() {
            flags.push(Flag {
                value: FlagValue::Texts(self.store.clone()),
                ..flag("--store", "store.paths", "")
            });
        }
        let sources = Sources {
            file: self.config.clone(),
            flags,
        };
        config::control_socket(&sources, &|name| std::env::var(name).ok()).map_err(|problems| {
            let code = refused(&problems);
            eprintln!("entrepot: so the server's socket is not known: name it, --control PATH");
            code
        })
    }

    fn ask(&self, request: &Request) -> Result<Answer, ExitCode> {
        let failed = |error: AskError| {
            eprintln!("entrepot: {error}");
            match error {
                AskError::NoServer(_) => ExitCode::from(UNAVAILABLE),
                AskError::Forbidden(_) => ExitCode::from(preflight::EXIT_CODE),
                AskError::Unreachable { .. } | AskError::NoAnswer(_) => ExitCode::FAILURE,
            }
        };
        ask(&self.socket()?, request).map_err(failed)
    }
}

/// Prints the state of every volume.
pub fn volumes(reach: &Reach) -> ExitCode {
    match reach.ask(&Request::Volumes {}) {
        Ok(Answer::Volumes(volumes)) => written(&table(&volumes)),
        Ok(other) => unexpected(&other),
        Err(code) => code,
    }
}

/// Has a volume that went offline taken into use again, with what is on it.
pub fn bring_back(asked: &BringBack) -> ExitCode {
    let path = std::path::absolute(&asked.volume).unwrap_or_else(|_| asked.volume.clone());
    match asked.reach.ask(&Request::BringBack(path)) {
        Ok(Answer::BroughtBack {
            volume,
            bodies,
            unreadable,
        }) => {
            let path = volume.path.display().to_string();
            for name in unreadable {
                eprintln!("entrepot: {path}: {name} could not be read; its bodies are missing");
            }
            written(&format!(
                "{path}: back with {bodies} bodies\n{}",
                table(&[volume])
            ))
        }
        Ok(other) => unexpected(&other),
        Err(code) => code,
    }
}

/// Says what the tag names now; fails when upstream could not be asked.
pub fn refresh(asked: &Refresh) -> ExitCode {
    match asked.reach.ask(&Request::Refresh(asked.image.clone())) {
        Ok(Answer::Refreshed(refreshed)) => {
            let shown = written(&format!("{}: {}\n", asked.image, named(&refreshed)));
            match refreshed.stale {
                None => shown,
                Some(why) => {
                    eprintln!("entrepot: upstream could not be asked: {why}");
                    ExitCode::FAILURE
                }
            }
        }
        Ok(other) => unexpected(&other),
        Err(code) => code,
    }
}

fn named(refreshed: &Refreshed) -> String {
    let (digest, upstream) = (&refreshed.digest, &refreshed.upstream);
    match &refreshed.before {
        _ if refreshed.stale.is_some() => {
            let age_s = refreshed.age_s;
            format!("{digest}, as {upstream} said {age_s} seconds ago")
        }
        Some(before) if before == digest => format!("{digest}, unchanged at {upstream}"),
        Some(before) => format!("{digest}, moved at {upstream}; it was {before}"),
        None => format!("{digest}, new from {upstream}"),
    }
}

/// Has the configuration read again; what needs a restart is said.
pub fn reload(reach: &Reach) -> ExitCode {
    match reach.ask(&Request::Reload {}) {
        Ok(Answer::Reloaded(reloaded)) => {
            for warning in &reloaded.warnings {
                eprintln!("entrepot: warning: {warning}");
            }
            let mut text = format!("reloaded: {} projects\n", reloaded.projects);
            if !reloaded.restart.is_empty() {
                let keys = reloaded.restart.join(", ");
                text.push_str(&format!("unchanged until a restart: {keys}\n"));
            }
            written(&text)
        }
        Ok(other) => unexpected(&other),
        Err(code) => code,
    }
}

const COLUMNS: [&str; 9] = [
    "volume",
    "state",
    "used",
    "capacity",
    "live",
    "dead",
    "pinned",
    "segments",
    "quarantined",
];

fn table(volumes: &[VolumeLine]) -> String {
    let mut rows = vec![COLUMNS.map(str::to_owned)];
    rows.extend(volumes.iter().map(|volume| {
        [
            volume.path.display().to_string(),
            if volume.online { "online" } else { "offline" }.to_owned(),
            size(volume.used),
            size(volume.capacity),
            size(volume.live),
            size(volume.dead),
            size(volume.pinned),
            volume.segments.to_string(),
            volume.quarantined.to_string(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max();
    let widths: Vec<usize> = (0..COLUMNS.len()).filter_map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths);
        let cells: Vec<_> = cells
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

/// For people: one digit after the point.
fn size(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    match unit {
        0 => format!("{bytes}B"),
        _ => format!("{value:.1}{}", units[unit]),
    }
}

/// Says what was forgotten, once it is durable.
pub fn purge(purge: &Purge) -> ExitCode {
    let (name, target, reach) = match &purge.what {
        What::Digest { digest, reach } => {
            let text = digest.to_string();
            (text.clone(), Target::Digest(text), reach)
        }
        What::Tag { name, reach } => (name.clone(), Target::Tag(name.clone()), reach),
        What::Repository { name, reach } => (name.clone(), Target::Repository(name.clone()), reach),
        What::Project { name, reach } => (name.clone(), Target::Project(name.clone()), reach),
    };
    match reach.ask(&Request::Purge(target)) {
        Ok(Answer::Purged(purged)) => written(&format!("{name}: {}\n", told(&purged))),
        Ok(other) => unexpected(&other),
        Err(code) => code,
    }
}

fn told(purged: &Purged) -> String {
    let counts = [
        (purged.bodies, "body", "bodies"),
        (purged.tags, "tag", "tags"),
        (purged.listings, "listing", "listings"),
        (purged.links, "link", "links"),
    ];
    let parts: Vec<_> = counts
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many)| format!("{count} {}", if *count == 1 { one } else { many }))
        .collect();
    match parts.is_empty() {
        true => "nothing was held; none of it will come back".to_owned(),
        false => format!("forgot {}", parts.join(", ")),
    }
}

fn unexpected(answer: &Answer) -> ExitCode {
    match answer {
        Answer::Error(error) => eprintln!("entrepot: {error}"),
        other => eprintln!("entrepot: the server answered something else: {other:?}"),
    }
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_forgotten_is_counted() {
        let purged = Purged {
            bodies: 1,
            links: 2,
            ..Purged::default()
        };
        assert_eq!(told(&purged), "forgot 1 body, 2 links");
        assert!(told(&Purged::default()).starts_with("nothing was held"));
    }

    #[test]
    fn volumes_are_a_table() {
        let line = |path: &str, online| VolumeLine {
            path: path.into(),
            online,
            capacity: 3 << 40,
            used: 1_610_612_736,
            live: 1_023,
            dead: 0,
            pinned: 1 << 20,
            segments: 12,
            quarantined: 3,
        };
        let text = table(&[line("/srv/a", true), line("/srv/long", false)]);
        let expected = "\
volume     state    used    capacity  live   dead  pinned  segments  quarantined
/srv/a     online   1.5GiB  3.0TiB    1023B  0B    1.0MiB  12        3
/srv/long  offline  1.5GiB  3.0TiB    1023B  0B    1.0MiB  12        3
";
        assert_eq!(text, expected);
    }

    #[test]
    fn the_socket_is_the_one_that_the_server_has() {
        let store = Reach {
            store: vec!["/srv/a".to_owned(), "/srv/b".to_owned()],
            ..Reach::default()
        };
        let named = |reach: &Reach| reach.socket().expect("a configuration");
        assert_eq!(named(&store), PathBuf::from("/srv/a/control.sock"));
        let set = Reach {
            set: vec!["control=/run/c.sock".to_owned()],
            ..store.clone()
        };
        assert_eq!(named(&set), PathBuf::from("/run/c.sock"));
        let control = Reach {
            control: Some("/run/other.sock".into()),
            ..set
        };
        assert_eq!(named(&control), PathBuf::from("/run/other.sock"));
    }
}
